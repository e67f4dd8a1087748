//! What a host must have before pgkiln can work on it, why, and how to get it.
//!
//! One table ([`requirements`]) serves `pgkiln doctor`, the checks that `demo` and `selftest` make first, and the
//! documentation. A check tries the real thing where that is cheap (it mounts a cgroup2 rather than reading a version).

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;

use crate::problem::{Problem, Problems};
use crate::progress::Ui;
use crate::tool::{Cmd, table};

mod host;
mod requirements;

pub use requirements::{Purpose, Requirement};

/// One requirement and what this host has.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What is required.
    pub what: &'static str,
    /// Oldest version or smallest amount that works; empty if any does.
    pub minimum: String,
    /// What this host has; empty if it is missing.
    pub found: String,
    /// Whether that is enough.
    pub ok: bool,
    /// Why it is needed.
    pub why: &'static str,
    /// What it is needed for.
    #[serde(rename = "for")]
    pub purpose: Purpose,
    /// Debian and Ubuntu package that brings it.
    pub package: Option<&'static str>,
    /// What to do if it is missing.
    pub remedy: String,
}

/// Everything that was checked.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether all requirements are met.
    pub ok: bool,
    /// One entry per requirement, in the table's order.
    pub requirements: Vec<Finding>,
    /// The command that installs what packages can bring.
    pub install: Option<String>,
}

/// Checks this host for `purposes`.
pub fn check(purposes: &[Purpose], ui: &Ui) -> Report {
    let requirements: Vec<Finding> = requirements::all(ui.cache_dir())
        .into_iter()
        .filter(|requirement| purposes.contains(&requirement.purpose))
        .map(Requirement::check)
        .collect();
    let packages = missing_packages(&requirements);
    let install = (!packages.is_empty()).then(|| format!("apt-get install {}", packages.join(" ")));
    Report { ok: requirements.iter().all(|finding| finding.ok), requirements, install }
}

fn missing_packages(findings: &[Finding]) -> Vec<&'static str> {
    let mut packages: Vec<_> = findings.iter().filter(|finding| !finding.ok).filter_map(|f| f.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

impl Report {
    /// The missing requirements as problems, each with its remedy.
    pub fn problems(&self) -> Problems {
        let missing = self.requirements.iter().filter(|finding| !finding.ok);
        Problems(
            missing
                .map(|finding| {
                    let found = match finding.found.as_str() {
                        "" => "is missing".to_owned(),
                        found => format!("is {found}, {} needed", finding.minimum),
                    };
                    let what = format!("{} {found}; it is for {}", finding.what, finding.why);
                    Problem::new(what, "this host", finding.remedy.clone())
                })
                .collect(),
        )
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let width = self.requirements.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
        let found = self.requirements.iter().map(|finding| finding.found.chars().count()).max().unwrap_or(0).max(7);
        let line = |finding: &Finding| {
            let mark = if finding.ok { "ok     " } else { "MISSING" };
            let minimum = match finding.minimum.as_str() {
                "" => String::new(),
                minimum => format!(" (needs {minimum})"),
            };
            let has = if finding.found.is_empty() { "-" } else { &finding.found };
            let what = finding.what;
            format!("{mark}  {what:width$}  {has:found$}  {}: {}{minimum}", finding.purpose.name(), finding.why)
        };
        self.requirements.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Whether missing packages may be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Install {
    /// Never: only say what is missing.
    No,
    /// Ask the person at the terminal; without one, only say what is missing.
    Ask,
    /// Yes.
    Yes,
}

/// apt removes a package that does not go with one it was asked for, for instance tools of a newer QEMU than the one
/// installed beside them. What was there at the first look is then missing at the second.
const ROUNDS: usize = 2;

/// Checks this host and, if allowed, installs what packages can bring; an error lists what is still missing.
pub fn ensure(purposes: &[Purpose], install: Install, ui: &Ui) -> anyhow::Result<Report> {
    let mut report = check(purposes, ui);
    for _ in 0..ROUNDS {
        match &report.install {
            Some(command) if may_install(install, command, ui)? => {
                apt_install(&missing_packages(&report.requirements), ui)?;
                report = check(purposes, ui);
            }
            _ => break,
        }
    }
    if report.ok { Ok(report) } else { Err(report.problems().into()) }
}

fn may_install(install: Install, command: &str, ui: &Ui) -> anyhow::Result<bool> {
    if install == Install::No || !host::is_debian_like() {
        return Ok(false);
    }
    if !nix::unistd::geteuid().is_root() {
        ui.note(format!("missing packages; to install them, run as root: {command}"));
        return Ok(false);
    }
    if install == Install::Yes {
        return Ok(true);
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        ui.note(format!("not asking, standard input is no terminal; add --yes, or run: {command}"));
        return Ok(false);
    }
    eprint!("Run `{command}` now? [y/N] ");
    std::io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn apt_install(packages: &[&str], ui: &Ui) -> anyhow::Result<()> {
    let step = ui.step(format!("apt-get install {}", packages.join(" ")));
    let apt = |args: &[&str]| Cmd::new(&table::APT_GET).args(args).env("DEBIAN_FRONTEND", "noninteractive").run();
    if !host::has_package_lists() {
        apt(&["--quiet", "update"])?;
    }
    let install = ["--quiet", "--yes", "--no-install-recommends", "install"];
    let args: Vec<&str> = install.iter().chain(packages).copied().collect();
    let plan = Cmd::new(&table::APT_GET).arg("--simulate").args(&args).captured()?;
    let removed = removals(&String::from_utf8_lossy(&plan.stdout)).join(", ");
    if !removed.is_empty() {
        ui.warn(format!("apt takes away what does not go with these packages: {removed}"));
    }
    if apt(&args).is_err() {
        // Lists older than the mirror name versions that are gone; fresh ones don't.
        apt(&["--quiet", "update"])?;
        apt(&args).context("installing what the host lacks")?;
    }
    step.done();
    Ok(())
}

/// What a simulated run would remove (apt-get(8): `Remv`).
fn removals(plan: &str) -> Vec<&str> {
    plan.lines().filter_map(|line| line.strip_prefix("Remv ")?.split_whitespace().next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_take_away_is_read_from_its_plan() {
        let plan = "Reading package lists...\nThe following packages will be REMOVED:\n  qemu-utils\n\
                    Remv qemu-utils [1:10.0.2+ds-2] [qemu-block-extra:amd64 ]\nInst ovmf (2022.11-6 Debian:12 [all])\n";
        assert_eq!(removals(plan), ["qemu-utils"]);
        assert!(removals("Inst ovmf (2022.11-6)\n").is_empty());
    }
}
