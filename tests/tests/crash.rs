//! The agent killed while it makes a node, at points spread over its first run; all points with `torture crash`.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pgkiln_tests::cluster::TestCluster;
use pgkiln_tests::crash::Sweep;

const LIMIT: Duration = Duration::from_secs(120);

fn sweep(nodes: usize, points: usize) -> anyhow::Result<()> {
    let sweep = Sweep::measure(nodes)?;
    eprintln!("{} events in a first run of {nodes} nodes", sweep.events.len());
    for number in sweep.sample(points) {
        let outcome = sweep.point(number)?;
        let at = outcome.killed_at.map_or("the end".to_owned(), |event| event.to_string());
        eprintln!("killed at {number} ({at}): healthy {:.1}s after the second start", outcome.seconds);
    }
    Ok(())
}

/// Power of the first node that has `path` in PostgreSQL's directory is cut at once.
fn cut_when(nodes: usize, path: &str) -> anyhow::Result<()> {
    let cluster = TestCluster::builder().named("founding").nodes(nodes).up()?;
    let has = |slot: &&String| {
        let majors = fs_err::read_dir(cluster.var(slot).join("lib/postgresql"));
        let majors = majors.into_iter().flatten().filter_map(Result::ok);
        majors.map(|major| major.path().join("main").join(path)).any(|path| path.exists())
    };
    let start = Instant::now();
    let slot = loop {
        // Which node founds is Patroni's affair.
        if let Some(slot) = cluster.slots.iter().find(has) {
            break slot;
        }
        ensure!(start.elapsed() < LIMIT, "no node ever had {path}");
        std::thread::sleep(Duration::from_millis(2));
    };
    cluster.lab.kill(slot)?;
    cluster.lab.start(slot)?;
    cluster.wait_healthy(LIMIT).with_context(|| format!("power of {slot} was cut when {path} appeared"))?;
    let notes = cluster.status(slot)?.notes;
    eprintln!("power of {slot} cut at {path}: healthy again; {}", notes.join("; "));
    ensure!(notes.iter().any(|note| note.contains("was interrupted")), "nobody was told: {notes:?}");
    let left = cluster.output(slot, &["ls", "/var/lib/pgkiln"])?;
    ensure!(!left.contains("unborn"), "the record of an unborn directory outlived its birth: {left}");
    Ok(())
}

#[test]
fn a_killed_agent_continues_where_it_was() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    sweep(1, 6).unwrap_or_else(|error| panic!("{error:#}"));
    sweep(3, 2).unwrap_or_else(|error| panic!("{error:#}"));
    for (nodes, path) in [(1, "PG_VERSION"), (1, "postmaster.pid"), (3, "backup_label")] {
        cut_when(nodes, path).unwrap_or_else(|error| panic!("{error:#}"));
    }
}
