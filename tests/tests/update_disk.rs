//! A machine's own disk takes another version: into the other slot, by the real boot loader's counting, and back again from one
//! whose agent or Patroni does not work; a machine that only waits uses up none of its tries.
//!
//! Needs root, QEMU and `PGKILN_TEST_IMAGE`; the disk is baked beside that image. Clusters: `update`.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pgkiln::outputs::Format;
use pgkiln_tests::disk::{self, RUN_VOLUME, object, value};
use pgkiln_tests::qemu::Machine;
use pgkiln_tests::{image, next};

/// From power to the machine's end. Emulation on a busy machine is slow: a limit only ends a test that would never end.
const LIMIT: Duration = Duration::from_secs(600);
/// One step per boot. A boot of a version that does not work never comes to its end: the machine restarts by itself.
const PROBE: &str = r#"
say() { echo "probe-$1=$2"; }
loader() { ls /boot/EFI/Linux | xargs; }
udevadm settle
if [ ! -e /dev/disk/by-label/cidata ]; then
    say counted "$(loader)"
    until loader | grep -q +3; do sleep 1; done
    say loader "$(loader)"
    systemctl poweroff
    exit
fi
step=$(cat /var/step 2>/dev/null || echo first)
until firstboot verdict; do sleep 1; done
say status "$(firstboot update --status --json)"
case $step in
first)
    until psql -qc 'CREATE TABLE kept AS SELECT 42 AS n'; do sleep 1; done
    say kept "$(psql -Atc 'SELECT n FROM kept')"
    echo second > /var/step
    say update "$(firstboot update --older --json /run/set/good)"
    systemctl reboot ;;
second)
    say kept "$(psql -Atc 'SELECT n FROM kept')"
    say again "$(firstboot update --older /run/set/good 2>&1 | tr '\n' ' ')"
    echo third > /var/step
    say update "$(firstboot update --older --json --tries 1 /run/set/broken)"
    systemctl reboot ;;
third)
    echo last > /var/step
    say update "$(firstboot update --older --json --tries 1 /run/set/without-patroni)"
    systemctl reboot ;;
last)
    say kept "$(psql -Atc 'SELECT n FROM kept')"
    systemctl poweroff ;;
esac
"#;

#[test]
#[ignore = "needs root, QEMU, five minutes: `cargo selftest --machines`"]
fn a_disk_takes_a_version_and_goes_back_from_a_broken_one() -> anyhow::Result<()> {
    if image::baked().is_none() {
        return Ok(());
    }
    let work = tempfile::Builder::new().prefix("pgkiln-update-").tempdir_in("/var/tmp")?;
    let [good, broken] = next::bake()?;
    let without_patroni = next::bake_without("patroni")?;
    let (disk, first) = disk::bake(work.path(), Format::Raw, None)?;
    let sets = disk::volume(
        work.path(),
        &[("good", &good), ("broken", &broken), ("without-patroni", &without_patroni)],
        PROBE,
    )?;
    let machine = Machine::new(&work.path().join("machine"), &disk)?.volume(&sets).probe(RUN_VOLUME);
    let started = Instant::now();
    let since = |what: &str| eprintln!("{:>6.1}s  {what}", started.elapsed().as_secs_f64());

    let said = machine.boot()?.wait_for_end(LIMIT)?;
    ensure!(value(&said, "counted").contains("+2-1.efi"), "the boot loader counts: {said}");
    ensure!(value(&said, "loader").contains("+3.efi"), "a machine without metadata keeps its tries: {said}");
    since("a boot without metadata got its try back");

    let machine = machine.seed(&disk::seed(work.path())?);
    let said = machine.boot()?.wait_for_end(LIMIT)?;
    let (status, update) = (object(&said, "status")?, object(&said, "update")?);
    ensure!(status["node"]["running"] == first.as_str() && status["node"]["other_slot"] == "_empty", "{status}");
    ensure!(update["to"] == good.version.as_str() && update["tries"] == 3, "{update}");
    ensure!(value(&said, "kept") == "42", "it made no data: {said}");
    since(&format!("the node is good and has taken the version in {} s", update["seconds"]));

    let said = machine.boot()?.wait_for_end(LIMIT)?;
    let (status, update) = (object(&said, "status")?, object(&said, "update")?);
    let loader = status["node"]["loader"].as_array().cloned().unwrap_or_default();
    ensure!(status["node"]["running"] == good.version.as_str(), "{status}");
    ensure!(status["node"]["other_slot"] == first.as_str(), "{status}");
    ensure!(loader.len() == 2 && loader[0]["running"] == true && loader[0]["tries_left"].is_null(), "{status}");
    ensure!(value(&said, "kept") == "42", "its data is not there: {said}");
    ensure!(value(&said, "again").contains("runs here already"), "{said}");
    ensure!(update["to"] == broken.version.as_str() && update["tries"] == 1, "{update}");
    since("the new version is good, with the data");

    let falls_back = |what: &str| -> anyhow::Result<String> {
        let said = machine.boot()?.wait_for_end(LIMIT)?;
        ensure!(said.contains("this boot is bad: restarting"), "{what}: {said}");
        since(&format!("the version {what} has restarted the machine"));
        let said = machine.boot()?.wait_for_end(LIMIT)?;
        let status = object(&said, "status")?;
        ensure!(status["node"]["running"] == good.version.as_str(), "{what}: {status}");
        ensure!(status["node"]["loader"][1]["tries_left"] == 0, "{what}: {status}");
        since("the version before runs again");
        Ok(said)
    };
    let said = falls_back("without an agent")?;
    let update = object(&said, "update")?;
    ensure!(update["to"] == without_patroni.version.as_str() && update["tries"] == 1, "{update}");
    let said = falls_back("without Patroni")?;
    ensure!(value(&said, "kept") == "42", "its data is not there: {said}");
    Ok(())
}
