//! The project's programs as a user runs them: built once per test run, called with arguments, judged by exit code and
//! streams.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pgkiln::tool::{Captured, Cmd, Tool, table};

use crate::workspace;

const PGKILN: Tool = Tool { name: "pgkiln", package: "", minimum: None, why: "testing the builder" };
const FIRSTBOOT: Tool = Tool { name: "firstboot", package: "", minimum: None, why: "testing the agent" };

/// The builder; `cargo test` alone does not build programs of other packages.
pub fn pgkiln() -> Cmd {
    Cmd::at(&PGKILN, pgkiln_path())
}

/// Where the builder is; built if need be.
pub fn pgkiln_path() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("pgkiln")).clone()
}

/// The agent, as a program of this host.
pub fn firstboot() -> Cmd {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    Cmd::at(&FIRSTBOOT, BUILT.get_or_init(|| build("firstboot")))
}

/// Builds both, so that no test has to, within its time limit and beside others that want the same.
pub fn build_all() {
    pgkiln_path();
    firstboot();
}

fn build(name: &str) -> PathBuf {
    let profile = profile_dir();
    let target = profile.parent().map_or_else(|| workspace::root().join("target"), Path::to_owned);
    // In the profile of the caller: a second one would mean building everything twice.
    let release = profile.ends_with("release").then_some("--release");
    // As part of the workspace, which is how the tests are built: alone, a program needs fewer features of its dependencies, and
    // cargo would build all of them, and both libraries, a second time.
    let cargo = Cmd::new(&table::CARGO).outside_cargo().args(["build", "--quiet", "--workspace", "--bin", name]);
    let built = cargo.args(release).arg("--target-dir").arg(&target).current_dir(workspace::root()).run();
    built.unwrap_or_else(|error| panic!("building {name}: {error:#}"));
    target.join(if release.is_some() { "release" } else { "debug" }).join(name)
}

/// Where this test or program itself was built (`target/debug/deps/<test>`, `target/release/<program>`).
fn profile_dir() -> PathBuf {
    let own = std::env::current_exe().ok();
    let profile = own.as_deref().and_then(Path::parent).map(|dir| match dir.ends_with("deps") {
        true => dir.parent().unwrap_or(dir),
        false => dir,
    });
    profile.map_or_else(|| workspace::root().join("target/debug"), Path::to_owned)
}

/// What a finished program said, as text.
#[derive(Debug)]
pub struct Said {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Captured> for Said {
    fn from(done: Captured) -> Self {
        Self {
            code: done.status.code(),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    }
}

/// Runs a program to its end.
pub fn run(cmd: Cmd) -> Said {
    let line = cmd.command_line();
    cmd.captured().unwrap_or_else(|error| panic!("{line}: {error:#}")).into()
}
