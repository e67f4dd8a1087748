//! Asks apt which packages an empty system would get. apt runs in a directory of its own: no configuration, sources, keys
//! or package state of the host reach it, and it reads only indexes that were verified before.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::problem::Problem;
use crate::tool::{Captured, Cmd, table};

/// apt in its directory.
#[derive(Debug)]
pub struct Solver {
    dir: PathBuf,
    config: PathBuf,
}

/// A suite as apt will see it: `mirror` is a directory with `dists/<suite>`.
#[derive(Debug)]
pub struct Source<'a> {
    /// Local copy of the verified indexes.
    pub mirror: &'a Path,
    /// Suite.
    pub suite: &'a str,
    /// Components.
    pub components: &'a [String],
    /// Binary keyring.
    pub keyring: &'a Path,
    /// Pin of all its packages: `Pin` line and priority.
    pub pin: Option<(String, i64)>,
}

/// A package apt would install.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chosen {
    /// Name.
    pub name: String,
    /// Version with epoch.
    pub version: String,
    /// `amd64`, `all`, …
    pub arch: String,
}

impl Solver {
    /// Sets apt up in `dir` and lets it read the indexes of `sources`. Of the `held` packages it takes these versions, if
    /// there are any.
    pub fn new(dir: &Path, architecture: &str, sources: &[Source<'_>], held: &[(&str, &str)]) -> anyhow::Result<Self> {
        for sub in
            ["etc/apt.conf.d", "etc/preferences.d", "etc/trusted.gpg.d", "lists/partial", "cache/archives/partial"]
        {
            fs_err::create_dir_all(dir.join(sub))?;
        }
        fs_err::write(dir.join("status"), "")?;
        let (mut list, mut preferences) = (String::new(), String::new());
        for source in sources {
            let options = format!("arch={architecture} signed-by={}", source.keyring.display());
            let components = source.components.join(" ");
            writeln!(list, "deb [{options}] file:{} {} {components}", source.mirror.display(), source.suite)?;
            if let Some((pin, priority)) = &source.pin {
                writeln!(preferences, "Package: *\nPin: {pin}\nPin-Priority: {priority}\n")?;
            }
        }
        for (name, version) in held {
            writeln!(preferences, "Package: {name}\nPin: version {version}\nPin-Priority: 1001\n")?;
        }
        fs_err::write(dir.join("etc/sources.list"), list)?;
        fs_err::write(dir.join("etc/preferences"), preferences)?;
        let config = dir.join("apt.conf");
        fs_err::write(&config, configuration(dir, architecture))?;
        let solver = Self { dir: dir.to_owned(), config };
        let updated = solver.apt_get(["update"]).captured()?;
        let told = String::from_utf8_lossy(&updated.stderr);
        // apt-get update succeeds even when an index is missing; it says so in lines that begin with W or E.
        if !updated.status.success()
            || told.lines().any(|line| line.starts_with("W: Failed") || line.starts_with("E: "))
        {
            return Err(failed(
                "apt cannot read the archive's indexes",
                &updated,
                "report this: they were verified before",
            ));
        }
        Ok(solver)
    }

    fn apt_get<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        Cmd::new(&table::APT_GET)
            .arg("-q")
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .env("APT_CONFIG", &self.config)
            .current_dir(&self.dir)
    }

    /// What installing `packages` (`name` or `name=version`) on an empty system brings; sorted.
    pub fn solve(&self, packages: &[String], place: &str) -> anyhow::Result<Vec<Chosen>> {
        let names = packages.iter().map(String::as_str);
        let solved = self.apt_get(["--simulate", "--yes", "install", "--"].into_iter().chain(names)).captured()?;
        if !solved.status.success() {
            let text = String::from_utf8_lossy(&solved.stdout).into_owned() + &String::from_utf8_lossy(&solved.stderr);
            let unmet =
                text.split_once("The following packages have unmet dependencies:").map_or(&*text, |(_, rest)| rest);
            let told: Vec<&str> = unmet.lines().map(str::trim).filter(|line| !line.is_empty()).take(12).collect();
            return Err(Problem::new(
                format!("apt finds no set of packages that satisfies the recipe: {}", told.join(" | ")),
                place,
                "correct packages or pinned versions in image.toml, or add the archive that has what is missing",
            )
            .into());
        }
        let text = String::from_utf8(solved.stdout).context("reading apt's answer")?;
        let mut chosen = text
            .lines()
            .filter_map(|line| line.strip_prefix("Inst "))
            .map(installation)
            .collect::<anyhow::Result<Vec<_>>>()?;
        chosen.sort();
        Ok(chosen)
    }
}

/// `libc6 (2.41-12 Debian:13.2/stable [amd64])`, with `[old version]` or trailing `[]` parts around.
fn installation(line: &str) -> anyhow::Result<Chosen> {
    let parsed = (|| {
        let (name, rest) = line.split_once(' ')?;
        let inside = rest.split_once('(')?.1.rsplit_once(')')?.0;
        let version = inside.split(' ').next()?;
        let arch = inside.rsplit_once('[')?.1.trim_end_matches(']');
        Some(Chosen { name: name.split(':').next()?.to_owned(), version: version.to_owned(), arch: arch.to_owned() })
    })();
    parsed.with_context(|| format!("apt says `Inst {line}`, which is not understood"))
}

fn configuration(dir: &Path, architecture: &str) -> String {
    let dir = dir.display();
    format!(
        r#"// Everything apt would read from or write to the host is here instead.
Dir "{dir}";
Dir::Etc "{dir}/etc";
Dir::Etc::sourceparts "-";
Dir::State "{dir}";
Dir::State::lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}/cache";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
// Only the set matters, not an order in which it could be installed.
APT::Immediate-Configure "false";
// The indexes are in our directory, which the user _apt cannot read.
APT::Sandbox::User "root";
Acquire::Languages "none";
// Dates were checked before, with better messages.
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
"#
    )
}

fn failed(what: &str, captured: &Captured, remedy: &str) -> anyhow::Error {
    let stderr = String::from_utf8_lossy(&captured.stderr);
    let told: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).take(8).collect();
    Problem::new(format!("{what}: {}", told.join(" | ")), "apt-get", remedy).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_s_lines_are_understood() {
        let chosen = |line| {
            let Chosen { name, version, arch } = installation(line).unwrap();
            [name, version, arch]
        };
        assert_eq!(chosen("libc6 (2.41-12 Debian:13.2/stable [amd64])"), ["libc6", "2.41-12", "amd64"]);
        assert_eq!(
            chosen("keepalived (1:2.3.3-1 Debian:13.2/stable, Debian-Security:13/x [all]) []"),
            ["keepalived", "1:2.3.3-1", "all"]
        );
        assert!(installation("nonsense").is_err());
    }
}
