//! Huge pages from the real size: PostgreSQL itself is asked how many its shared memory takes, with the parameters it
//! will run with, and the kernel reserves them before Patroni starts.
//!
//! `huge_pages = try` stays: without enough of them PostgreSQL starts with ordinary pages. Whatever fails here is a note in
//! the status and never a failed boot. Not worth it below 1 GiB of shared buffers: page tables of 2 MiB for each connection
//! are what it saves (8 bytes for each 4 KiB, PostgreSQL documentation, "Linux Huge Pages").

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use fs_err as fs;
use nix::unistd::User;
use serde::Serialize;

use crate::facts::Facts;
use crate::layout::Layout;
use crate::plan::Desired;
use crate::render::patroni;
use crate::tool::Tool;

/// Shared buffers (MiB) from which huge pages are reserved.
const WORTHWHILE_MIB: u64 = 1024;
/// Never more of the machine's memory than this: everything else must fit in the rest.
const MOST_PERCENT: u64 = 60;
const PAGES: &str = "/proc/sys/vm/nr_hugepages";
/// In memory, for a moment: an empty data directory, since PostgreSQL computes its size only over one. The node's own is
/// never touched for a question.
const SCRATCH: &str = "/run/pgkiln/hugepages";

/// What PostgreSQL is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Question {
    bin_dir: String,
    memory_mib: u64,
    parameters: BTreeMap<String, String>,
}

/// Parameters that make shared memory larger; libraries add their own.
const SIZES: [&str; 14] = [
    "shared_buffers",
    "wal_buffers",
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_replication_slots",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "max_pred_locks_per_transaction",
    "autovacuum_max_workers",
    "min_dynamic_shared_memory",
    "shared_preload_libraries",
    "track_activity_query_size",
    "superuser_reserved_connections",
];

impl Question {
    /// The question for this node; `None` if huge pages are not worth it or not wanted.
    pub fn new(desired: &Desired, facts: &Facts) -> Result<Option<Self>> {
        let mut all = patroni::cluster_parameters(desired, facts);
        all.extend(patroni::local_parameters(desired, facts));
        let wanted = all.get("huge_pages").and_then(|value| value.as_str()) != Some("off");
        let buffers = all.get("shared_buffers").and_then(super::mebibytes).unwrap_or(0);
        if !wanted || buffers < WORTHWHILE_MIB {
            return Ok(None);
        }
        let set = |name: &&str| Some(((*name).to_owned(), all.get(*name)?.as_str()?.to_owned()));
        Ok(Some(Self {
            bin_dir: desired.image.path("postgresql", "bin_dir")?.display().to_string(),
            memory_mib: facts.memory_mib,
            parameters: SIZES.iter().filter_map(set).collect(),
        }))
    }

    /// How many huge pages PostgreSQL's shared memory takes.
    pub async fn pages(&self, layout: &Layout) -> Result<u64> {
        let scratch = layout.at(SCRATCH);
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch)?;
        // PostgreSQL's user passes through; the agent's own umask would not let it.
        fs::set_permissions(&scratch, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        let asked = self.ask(&scratch.join("data")).await;
        let _ = fs::remove_dir_all(&scratch);
        asked
    }

    async fn ask(&self, data: &std::path::Path) -> Result<u64> {
        let user = User::from_name("postgres")?.context("this system has no user `postgres`")?;
        let owner = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
        fs::create_dir(data)?;
        fs::os::unix::fs::chown(data, owner.0, owner.1)?;
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        let limit = Duration::from_secs(30);
        let initdb = Tool::new(format!("{}/initdb", self.bin_dir)).args(["--no-sync", "--no-instructions", "--pgdata"]);
        initdb.arg(data).arg("--auth=reject").user(uid, gid).limit(limit).run().await?;
        let mut postgres = Tool::new(format!("{}/postgres", self.bin_dir)).arg("-D").arg(data);
        for (name, value) in &self.parameters {
            postgres = postgres.arg("-c").arg(format!("{name}={value}"));
        }
        let postgres = postgres.args(["-C", "shared_memory_size_in_huge_pages"]).user(uid, gid).limit(limit);
        let said = postgres.run().await?;
        let pages: i64 = said.trim().parse().with_context(|| format!("PostgreSQL answered `{}`", said.trim()))?;
        // -1: this kernel has no huge pages.
        u64::try_from(pages).context("this kernel has no huge pages")
    }

    /// Reserves them; the answer is a note for the status, if there is anything to say.
    pub async fn reserve(&self, layout: &Layout) -> Option<String> {
        let path = layout.at(PAGES);
        if let Err(error) = fs::OpenOptions::new().write(true).open(&path) {
            let why = error.kind();
            return Some(format!(
                "huge pages are not reserved: {PAGES} cannot be written here ({why}; in a container the \
                                 host decides, `firstboot tune --explain` says how many). PostgreSQL uses ordinary pages"
            ));
        }
        let pages = match self.pages(layout).await {
            // One in a hundred more: the size changes a little with each minor version.
            Ok(pages) => pages + pages.div_ceil(100),
            Err(error) => {
                return Some(format!("huge pages are not reserved: {error:#}. PostgreSQL uses ordinary pages"));
            }
        };
        if pages * page_mib(layout) > self.memory_mib * MOST_PERCENT / 100 {
            return Some(format!(
                "huge pages are not reserved: {pages} would leave too little of the machine's memory"
            ));
        }
        let before = read(&path);
        if before >= pages {
            return None;
        }
        let written = fs::write(&path, pages.to_string());
        let now = read(&path);
        if written.is_ok() && now >= pages {
            tracing::info!("{pages} huge pages reserved");
            return None;
        }
        // Too few are of no use to PostgreSQL and lost to everybody else.
        let _ = fs::write(&path, before.to_string());
        Some(format!(
            "huge pages are not reserved: the kernel found {now} of {pages} in one piece. Reserve them at boot with \
             `hugepages={pages}` on the kernel's command line. PostgreSQL uses ordinary pages"
        ))
    }
}

/// How many are reserved now.
pub fn reserved(layout: &Layout) -> u64 {
    read(&layout.at(PAGES))
}

fn read(path: &std::path::Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn page_mib(layout: &Layout) -> u64 {
    let text = fs::read_to_string(layout.at("/proc/meminfo")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Hugepagesize:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(2, |kb| (kb / 1024).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{desired, facts};

    #[test]
    fn asked_only_where_it_is_worth_it() {
        let question = |memory_mib| Question::new(&desired(), &Facts { memory_mib, ..facts() }).unwrap();
        assert_eq!(question(2048), None);
        let large = question(8192).unwrap();
        assert_eq!(large.parameters["shared_buffers"], "2048MB");
        assert_eq!(large.parameters["max_connections"], "273");
        assert_eq!(large.parameters["shared_preload_libraries"], "pg_stat_statements");
        let mut off = desired();
        off.accepted.spec.postgres.parameters.insert("huge_pages".into(), "off".into());
        assert_eq!(Question::new(&off, &facts()).unwrap(), None);
    }

    #[test]
    fn a_kernel_that_takes_no_orders_is_a_note() {
        let root = tempfile::tempdir().unwrap();
        let question = Question::new(&desired(), &facts()).unwrap().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let note = runtime.block_on(question.reserve(&Layout::new(root.path()))).unwrap();
        assert!(note.contains("PostgreSQL uses ordinary pages"), "{note}");
    }
}
