//! Backups of a real cluster: three nodes and a repository host. Run by `cargo selftest`; alone:
//! `PGKILN_TEST_IMAGE=… cargo test -p pgkiln-tests --test backup`.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use firstboot::backup::{Listed, Record};
use firstboot::spec::Role;
use firstboot::status::Verdict;
use pgkiln::cluster::Node;
use pgkiln::tool::{Cmd, Tool};
use pgkiln_tests::cluster::{Story, TestCluster};

const CP: Tool = Tool { name: "cp", package: "coreutils", minimum: None, why: "moving a repository's disk" };
/// Slot of the repository host.
const BKP: &str = "bkp-1";
/// From the start of the nodes to the first full backup.
const FIRST: Duration = Duration::from_secs(180);
/// A segment on its way.
const ARCHIVED: Duration = Duration::from_secs(90);

fn cluster(name: &'static str, nodes: usize) -> anyhow::Result<TestCluster> {
    let builder = TestCluster::builder().named(name).nodes(nodes).define(|definition| {
        let address = "10.91.0.31".parse().expect("an address");
        definition.nodes.push(Node::new(BKP, address).with_role(Role::Backup));
    });
    builder.up()
}

/// Slots of the database nodes.
fn databases(cluster: &TestCluster) -> Vec<String> {
    cluster.others(BKP)
}

fn record(cluster: &TestCluster) -> anyhow::Result<Record> {
    let key = format!("/pgkiln/{}/backup", cluster.cluster.definition.uuid);
    let text = cluster.output("pg-1", &["etcdctl", "get", "--print-value-only", &key])?;
    serde_json::from_str(&text).with_context(|| format!("{key} is {text:?}"))
}

fn backups(cluster: &TestCluster, slot: &str) -> anyhow::Result<Listed> {
    Ok(serde_json::from_str(&cluster.output(slot, &["firstboot", "backups", "--json"])?)?)
}

/// Ends the present WAL segment and waits until it is in the repository.
fn archive(cluster: &TestCluster) -> anyhow::Result<String> {
    let leader = cluster.leader()?;
    // A segment with nothing in it is not ended.
    cluster.psql(&leader, "SELECT pg_logical_emit_message(true, 'test', 'something')")?;
    let segment = cluster.psql(&leader, "SELECT pg_walfile_name(pg_switch_wal())")?;
    cluster.wait_for(&format!("{segment} in the repository"), ARCHIVED, || {
        let newest = backups(cluster, BKP)?.wal_max.unwrap_or_default();
        ensure!(newest >= segment, "the newest is {newest}");
        Ok(())
    })?;
    Ok(segment)
}

#[test]
fn three_nodes_and_a_repository_host() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    let cluster = cluster("backup", 3).unwrap_or_else(|error| panic!("{error:#}"));
    let mut story = Story::about(&cluster);
    story.act(&[("the first full backup, by itself", first_full)]);
    story.look(&[
        ("commands without flags, as root and postgres", commands),
        ("archiving on, the same on every node", archiving),
        ("timers on the repository host", timers),
        ("no passphrase is readable or an argument", passphrase),
    ]);
    story.act(&[
        ("a segment is archived once it is complete", segment),
        ("restored: the first full backup and all WAL", restored),
        ("the repository host without power: writes go on, archiving catches up", host_down),
        ("a failover without the repository host waits for nothing", failover_without_host),
        ("another version of pgBackRest is noticed", other_version),
        ("a wrong passphrase is refused", wrong_passphrase),
        ("an empty disk in place of the repository is refused", lost_repository),
    ]);
    story.end();
}

fn first_full(cluster: &TestCluster) -> anyhow::Result<()> {
    let full = cluster.wait_for("the first full backup", FIRST, || {
        record(cluster)?.first_full.context("the stanza exists, no backup yet")
    })?;
    eprintln!("       {full} {:.1}s after the nodes' start", cluster.started.elapsed().as_secs_f64());
    let listed = backups(cluster, BKP)?;
    ensure!(listed.backups.len() == 1 && listed.backups[0].label == full, "{listed:?}");
    ensure!(listed.backups[0].kind == "full" && listed.status == "ok", "{listed:?}");
    let record = record(cluster)?;
    ensure!(record.pg_system_id == cluster.system_identifier("pg-1")?, "{record:?}");
    ensure!((record.stanza.as_str(), record.repository.as_str()) == ("orders", BKP), "{record:?}");
    let journal = cluster.output(BKP, &["journalctl", "-b", "-u", "firstboot", "--no-pager"])?;
    ensure!(journal.matches("stanza orders made").count() == 1, "{journal}");
    let status = cluster.wait_for("the repository host to be good", ARCHIVED, || {
        let status = cluster.status(BKP)?;
        ensure!(status.verdict == Verdict::Good && status.notes.is_empty(), "{status:?}");
        Ok(status)
    })?;
    ensure!(status.role.as_deref() == Some("backup"), "{status:?}");
    Ok(())
}

fn commands(cluster: &TestCluster) -> anyhow::Result<()> {
    let full = record(cluster)?.first_full.context("no backup")?;
    for slot in databases(cluster).iter().map(String::as_str).chain([BKP]) {
        for user in ["root", "postgres"] {
            let text = cluster.output_as(slot, user, &["pgbackrest", "info"])?;
            ensure!(text.contains(&full) && text.contains("status: ok"), "{slot} as {user}: {text}");
        }
        ensure!(backups(cluster, slot)?.backups[0].label == full, "{slot}");
    }
    Ok(())
}

fn archiving(cluster: &TestCluster) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    for slot in databases(cluster) {
        // Patroni gives it to standbys only.
        let restore = if slot == leader { "" } else { "/usr/lib/pgkiln/pgbackrest-archive-get %f %p" };
        for (setting, expected) in [
            ("archive_mode", "on"),
            ("archive_command", "/usr/lib/pgkiln/pgbackrest-archive-push %p"),
            ("restore_command", restore),
        ] {
            let got = cluster.psql(&slot, &format!("SHOW {setting}"))?;
            ensure!(got == expected, "{slot}: {setting} is {got}");
        }
        let status = cluster.status(&slot)?;
        ensure!(!status.notes.iter().any(|note| note.starts_with("backups")), "{slot}: {:?}", status.notes);
    }
    Ok(())
}

fn timers(cluster: &TestCluster) -> anyhow::Result<()> {
    let listed = cluster.output(BKP, &["systemctl", "list-timers", "--no-legend", "--all", "pgkiln-*"])?;
    ensure!(listed.lines().count() == 2, "{listed}");
    let full = cluster.output(BKP, &["systemctl", "show", "-p", "TimersCalendar", "pgkiln-backup-full.timer"])?;
    ensure!(full.contains("Sun *-*-* 02:00:00"), "{full}");
    // What the timer starts, now.
    cluster.output(BKP, &["systemctl", "start", "pgkiln-backup-diff.service"])?;
    let listed = backups(cluster, BKP)?;
    ensure!(listed.backups.len() == 2 && listed.backups[1].kind == "diff", "{listed:?}");
    cluster.wait_for("the newest backup in the registry", ARCHIVED, || {
        let record = record(cluster)?;
        ensure!(record.last.as_ref() == Some(&listed.backups[1].label), "{record:?}");
        ensure!(record.first_full.as_ref() == Some(&listed.backups[0].label), "{record:?}");
        Ok(())
    })
}

fn passphrase(cluster: &TestCluster) -> anyhow::Result<()> {
    let config = "/run/pgkiln/pgbackrest/pgbackrest.conf";
    for slot in &cluster.slots {
        let mode = cluster.output(slot, &["stat", "-c", "%a %U", config])?;
        ensure!(mode == "600 postgres", "{slot}: {mode}");
        // The pattern is in a file: an argument would find itself.
        let script = format!(
            "sed -n 's/^repo1-cipher-pass=//p' {config} > /run/p; wc -c < /run/p; \
             cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cFf /run/p; journalctl -b | grep -cFf /run/p; rm /run/p"
        );
        let found = cluster.output(slot, &["sh", "-c", &script])?;
        let found: Vec<&str> = found.split_whitespace().collect();
        ensure!(found == ["33", "0", "0"], "{slot}: length, arguments, journal: {found:?}");
    }
    Ok(())
}

fn segment(cluster: &TestCluster) -> anyhow::Result<()> {
    let start = Instant::now();
    let segment = archive(cluster)?;
    eprintln!("       {segment} archived and listed after {:.1}s", start.elapsed().as_secs_f64());
    Ok(())
}

/// In a lab of its own, whose machine has nothing but the same image, the repository's disk and its passphrase.
fn restored(cluster: &TestCluster) -> anyhow::Result<()> {
    let others = databases(cluster);
    let writer = cluster.write_through(&others)?;
    writer.wait_rows(500, Duration::from_secs(60))?;
    let log = writer.stop();
    archive(cluster)?;
    let first = record(cluster)?.first_full.context("no backup")?;
    let settings = cluster.output(BKP, &["cat", "/run/pgkiln/pgbackrest/pgbackrest.conf"])?;
    let fresh = TestCluster::builder().named("restore").nodes(1).without_seeds().up()?;
    let machine = &fresh.slots[0];
    // Its /var was empty; who copies into it before tmpfiles has run meets no directory.
    fresh.wait_for("the new machine's /var", Duration::from_secs(60), || {
        fresh.output(machine, &["systemctl", "is-active", "systemd-tmpfiles-setup.service"])
    })?;
    let (repository, to) = (cluster.var(BKP).join("lib/pgbackrest"), fresh.var(machine).join("lib"));
    Cmd::new(&CP).arg("-a").arg(repository).arg(to).run().context("moving the repository to the new machine")?;
    let script = format!(
        r#"set -eu
d=/var/tmp/restore; mkdir -m 700 $d $d/socket
grep -Ev '^(pg[0-9]+-|tls-|lock-path|\[orders\])' > $d/conf
printf 'lock-path=%s/lock\n[orders]\npg1-path=%s/data\n' $d $d >> $d/conf
/usr/bin/pgbackrest --config=$d/conf --stanza=orders --set={first} --archive-mode=off restore
cat >> $d/data/postgresql.auto.conf <<E
listen_addresses = ''
unix_socket_directories = '$d/socket'
ssl = off
hba_file = '$d/hba'
ident_file = '$d/ident'
recovery_target_action = 'promote'
synchronous_standby_names = ''
shared_preload_libraries = ''
E
echo 'local all all trust' > $d/hba; : > $d/ident
b=$(ls -d /usr/lib/postgresql/*/bin)
[ -e $d/data/postgresql.conf ] || : > $d/data/postgresql.conf
$b/pg_ctl -D $d/data -l $d/log -w -t 60 start > /dev/null || {{ cat $d/log; exit 1; }}
i=0; while [ "$($b/psql -h $d/socket -XAtc 'SELECT pg_is_in_recovery()' postgres)" != f ]; do
  i=$((i+1)); [ $i -lt 100 ] || {{ cat $d/log; exit 1; }}; sleep 0.2; done
$b/psql -h $d/socket -XAtc 'SELECT n FROM demo_rows' orders
$b/pg_ctl -D $d/data -m immediate stop > /dev/null; rm -rf $d
"#
    );
    let start = Instant::now();
    let as_postgres = ["runuser", "-u", "postgres", "--", "sh", "-c", &script];
    let done = fresh.lab.exec_with_input(machine, as_postgres, settings)?;
    let rows = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{rows}{}", String::from_utf8_lossy(&done.stderr));
    let rows: std::collections::BTreeSet<i64> = rows.lines().filter_map(|line| line.parse().ok()).collect();
    let lost: Vec<_> = log.acknowledged.iter().filter(|n| !rows.contains(n)).collect();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("       {} acknowledged, {} restored in {seconds:.1}s", log.acknowledged.len(), rows.len());
    ensure!(lost.is_empty(), "acknowledged rows are not in the restored database: {lost:?}");
    Ok(())
}

fn host_down(cluster: &TestCluster) -> anyhow::Result<()> {
    let others = databases(cluster);
    let writer = cluster.write_through(&others)?;
    writer.wait_rows(100, Duration::from_secs(30))?;
    cluster.lab.kill(BKP)?;
    let leader = cluster.leader()?;
    for _ in 0..12 {
        cluster.psql(&leader, "SELECT pg_logical_emit_message(true, 'x', 'x'), pg_switch_wal()")?;
    }
    cluster.wait_for("a note on the leader", ARCHIVED, || {
        let notes = cluster.status(&leader)?.notes;
        ensure!(
            notes.iter().any(|note| note.contains("does not answer") && note.contains("writes go on")),
            "{notes:?}"
        );
        Ok(())
    })?;
    let status = cluster.status(&leader)?;
    ensure!(status.verdict == Verdict::Good, "{status:?}");
    writer.wait_write_after(Instant::now(), Duration::from_secs(5))?;
    let log = writer.stop();
    eprintln!("       longest pause between writes {:.2}s", log.longest_pause.as_secs_f64());
    ensure!(log.longest_pause < Duration::from_secs(2), "writes paused for {:?}", log.longest_pause);
    cluster.lab.start(BKP)?;
    let start = Instant::now();
    archive(cluster)?;
    eprintln!("       caught up {:.1}s after the host's start", start.elapsed().as_secs_f64());
    cluster.wait_for("the note to go", ARCHIVED, || {
        let notes = cluster.status(&leader)?.notes;
        ensure!(!notes.iter().any(|note| note.starts_with("backups")), "{notes:?}");
        Ok(())
    })
}

fn failover_without_host(cluster: &TestCluster) -> anyhow::Result<()> {
    let with = handover(cluster)?;
    cluster.lab.kill(BKP)?;
    // By now every node knows.
    std::thread::sleep(Duration::from_secs(8));
    let without = handover(cluster)?;
    eprintln!("       longest pause between writes {without:.2}s, with the repository host {with:.2}s");
    ensure!(without < with + 3.0, "{without:.1}s without the repository host, {with:.1}s with it");
    cluster.lab.start(BKP)?;
    archive(cluster)?;
    Ok(())
}

/// Shuts the leader's node down and starts it again; the longest pause between writes.
fn handover(cluster: &TestCluster) -> anyhow::Result<f64> {
    let leader = cluster.leader()?;
    let others: Vec<_> = databases(cluster).into_iter().filter(|slot| *slot != leader).collect();
    let writer = cluster.write_through(&others)?;
    writer.wait_rows(100, Duration::from_secs(30))?;
    cluster.stop(&leader)?;
    writer.wait_write_after(Instant::now(), Duration::from_secs(30))?;
    let log = writer.stop();
    ensure!(cluster.lost(&others[0], &log)? == 0, "acknowledged rows are lost");
    cluster.lab.start(&leader)?;
    cluster.wait_for("healthy databases", ARCHIVED, || cluster.check_healthy(&databases(cluster)))?;
    Ok(log.longest_pause.as_secs_f64())
}

fn other_version(cluster: &TestCluster) -> anyhow::Result<()> {
    let script = "sed 's/\"version\": *\"2\\.[0-9.]*-/\"version\": \"2.99.0-/' /usr/lib/pgkiln/image.json > /run/image.json \
                  && grep -q 2.99.0- /run/image.json && mount --bind /run/image.json /usr/lib/pgkiln/image.json";
    cluster.output(BKP, &["sh", "-c", script])?;
    refused(cluster, "both ends must be exactly the same version")?;
    cluster.output(BKP, &["umount", "/usr/lib/pgkiln/image.json"])?;
    good_again(cluster)
}

fn wrong_passphrase(cluster: &TestCluster) -> anyhow::Result<()> {
    let secrets = "/var/lib/pgkiln/secrets.json";
    let change =
        format!("cp -a {secrets} /run/s && sed -i 's/\"repository\": \"..../\"repository\": \"____/' {secrets}");
    cluster.output(BKP, &["sh", "-c", &change])?;
    refused(cluster, "the passphrase of this cluster does not open the repository")?;
    cluster.output(BKP, &["cp", "-a", "/run/s", secrets])?;
    good_again(cluster)
}

fn lost_repository(cluster: &TestCluster) -> anyhow::Result<()> {
    let path = format!("/var/lib/pgbackrest/{}", cluster.cluster.definition.uuid);
    cluster.output(BKP, &["mv", &path, "/var/lib/pgbackrest/away"])?;
    refused(cluster, "is empty, but the cluster has one since")?;
    cluster.output(BKP, &["sh", "-c", &format!("rm -rf {path}; mv /var/lib/pgbackrest/away {path}")])?;
    good_again(cluster)
}

/// The repository host starts its agent again and says this, with a remedy.
fn refused(cluster: &TestCluster, expected: &str) -> anyhow::Result<()> {
    cluster.output(BKP, &["systemctl", "restart", "--no-block", "firstboot"])?;
    cluster.wait_for(expected, ARCHIVED, || {
        let status = cluster.status(BKP)?;
        let error = status.error.as_ref().with_context(|| format!("{status:?}"))?;
        ensure!(error.what.contains(expected) && !error.remedy.is_empty(), "{error:?}");
        ensure!(status.verdict == Verdict::Undecided, "{status:?}");
        Ok(())
    })
}

fn good_again(cluster: &TestCluster) -> anyhow::Result<()> {
    cluster.output(BKP, &["systemctl", "restart", "--no-block", "firstboot"])?;
    cluster.wait_for("the repository host to be good again", ARCHIVED, || {
        let status = cluster.status(BKP)?;
        ensure!(status.verdict == Verdict::Good && status.error.is_none(), "{status:?}");
        Ok(())
    })?;
    archive(cluster)?;
    Ok(())
}

/// A cluster that meets the repository of another one under its own name.
#[test]
fn the_repository_of_another_cluster_is_refused() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    let run = || -> anyhow::Result<()> {
        let first = cluster("backup-a", 1)?;
        first.wait_for("the first full backup", FIRST, || record(&first)?.first_full.context("no backup yet"))?;
        first.stop(BKP)?;
        let from = first.var(BKP).join(format!("lib/pgbackrest/{}", first.cluster.definition.uuid));
        let kept = tempfile::tempdir()?;
        let copy = kept.path().join("repository");
        copy_tree(&from, &copy)?;
        let passphrase = passphrase_of(&first)?;
        drop(first);

        let second = cluster("backup-b", 1)?;
        second.wait_for("the stanza", FIRST, || record(&second))?;
        let uuid = second.cluster.definition.uuid;
        let key = format!("/pgkiln/{uuid}/backup");
        second.output(BKP, &["systemctl", "stop", "firstboot"])?;
        second.output("pg-1", &["etcdctl", "del", &key])?;
        let here = second.var(BKP).join(format!("lib/pgbackrest/{uuid}"));
        fs_err::remove_dir_all(&here)?;
        copy_tree(&copy, &here)?;
        let before = listing(&here)?;
        refused(&second, "the passphrase of this cluster does not open the repository")?;
        let secrets = "/var/lib/pgkiln/secrets.json";
        let change = format!("sed -i 's/\"repository\": \"[^\"]*\"/\"repository\": \"{passphrase}\"/' {secrets}");
        second.output(BKP, &["sh", "-c", &change])?;
        refused(&second, "the repository here is of a database with system identifier")?;
        ensure!(listing(&here)? == before, "the foreign repository was changed");
        let recorded = second.output("pg-1", &["etcdctl", "get", "--print-value-only", &key])?;
        ensure!(recorded.is_empty(), "recorded all the same: {recorded}");
        Ok(())
    };
    run().unwrap_or_else(|error| panic!("{error:#}"));
}

fn passphrase_of(cluster: &TestCluster) -> anyhow::Result<String> {
    let text = fs_err::read_to_string(cluster.cluster.dir().join("secrets.toml"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("repository = "));
    Ok(line.context("secrets.toml has no passphrase of the repository")?.trim_matches('"').to_owned())
}

/// With owners: pgBackRest refuses what belongs to others.
fn copy_tree(from: &std::path::Path, to: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let about = fs_err::metadata(from)?;
    if about.is_dir() {
        fs_err::create_dir(to)?;
        for entry in fs_err::read_dir(from)? {
            let entry = entry?;
            if !entry.file_type()?.is_symlink() {
                copy_tree(&entry.path(), &to.join(entry.file_name()))?;
            }
        }
    } else {
        fs_err::copy(from, to)?;
    }
    fs_err::set_permissions(to, std::fs::Permissions::from_mode(about.mode()))?;
    Ok(std::os::unix::fs::chown(to, Some(about.uid()), Some(about.gid()))?)
}

/// Every file with its size.
fn listing(directory: &std::path::Path) -> anyhow::Result<Vec<(std::path::PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs_err::read_dir(&directory)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => todo.push(entry.path()),
                false => found.push((entry.path(), entry.metadata()?.len())),
            }
        }
    }
    found.sort();
    Ok(found)
}
