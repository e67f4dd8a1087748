//! Metadata that changes under a living node.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use firstboot::status::{Phase, Verdict};
use pgkiln_tests::cluster::TestCluster;

const BACK: Duration = Duration::from_secs(60);

pub(crate) fn instance_id(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = &cluster.slots[2];
    let kept = |path: &str| path.starts_with("/var/lib/pgkiln/");
    let before = cluster.digest_tree(slot)?.only(kept);
    let (members, notes) = (cluster.check_voters(slot)?, cluster.status(slot)?.notes);
    cluster.stop(slot)?;
    cluster.reseed(slot, |seed| {
        edit(&seed.join("meta-data"), |text| text.replace("instance-id: ", "instance-id: changed-"))
    })?;
    cluster.lab.start(slot)?;
    cluster.wait_healthy(BACK)?;
    let changed = before.lost_or_changed(&cluster.digest_tree(slot)?.only(kept));
    ensure!(changed.is_empty(), "a changed instance-id changed\n{changed}");
    ensure!(cluster.check_voters(slot)? == members);
    let now = cluster.status(slot)?.notes;
    ensure!(now == notes, "{notes:?} became {now:?}");
    Ok(())
}

pub(crate) fn seed_removed(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = &cluster.slots[2];
    cluster.stop(slot)?;
    fs_err::remove_dir_all(cluster.var(slot).join("lib/cloud/seed/nocloud"))?;
    cluster.lab.start(slot)?;
    cluster.wait_healthy(BACK)?;
    let notes = cluster.status(slot)?.notes.join("; ");
    ensure!(notes.contains("stored specification") && notes.contains("no metadata"), "notes: {notes:?}");
    let journal = cluster.output(slot, &["journalctl", "-b", "-u", "firstboot", "-o", "cat", "--no-pager"])?;
    ensure!(journal.contains("stored specification"), "{journal}");
    Ok(())
}

pub(crate) fn refused(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = &cluster.slots[2];
    let uuid = cluster.cluster.definition.uuid.to_string();
    let other_uuid = uuid::Uuid::new_v4().to_string();
    type Change = Box<dyn Fn(String) -> String>;
    let cases: [(&str, Change); 3] = [
        ("cluster", Box::new(move |text| text.replace(&uuid, &other_uuid))),
        ("slot", Box::new(|text| text.replace("slot: pg-3", "slot: pg-2").replace("10.91.0.13/24", "10.91.0.12/24"))),
        ("role", Box::new(|text| text.replace("role: node", "role: etcd"))),
    ];
    let members = cluster.check_voters(&cluster.slots[0])?;
    for (key, change) in cases {
        cluster.stop(slot)?;
        cluster.reseed(slot, |seed| edit(&seed.join("user-data"), &*change))?;
        cluster.lab.start(slot)?;
        let status = cluster.wait_for(&format!("a refusal of another {key}"), BACK, || {
            let status = cluster.status(slot)?;
            ensure!(status.phase == Phase::Failed, "{slot} is {:?}", status.phase);
            Ok(status)
        })?;
        let error = status.error.context("a failed agent says why")?;
        ensure!(error.what.contains(&format!("belongs to {key}")), "{key}: {error}");
        ensure!(status.verdict == Verdict::Bad && !error.remedy.is_empty(), "{key}: {error}");
        let running = cluster.run(slot, &["systemctl", "is-active", "etcd", "patroni", "haproxy"])?;
        let running = String::from_utf8_lossy(&running.stdout).into_owned();
        ensure!(!running.lines().any(|line| line == "active"), "{key}: services run: {running}");
        ensure!(cluster.check_voters(&cluster.slots[0])? == members, "{key}: the members changed");
    }
    cluster.stop(slot)?;
    cluster.reseed(slot, |_| Ok(()))?;
    cluster.lab.start(slot)?;
    cluster.wait_healthy(BACK)
}

fn edit(path: &Path, change: impl Fn(String) -> String) -> anyhow::Result<()> {
    let before = fs_err::read_to_string(path)?;
    let after = change(before.clone());
    ensure!(before != after, "{} does not have what this test changes", path.display());
    Ok(fs_err::write(path, after)?)
}
