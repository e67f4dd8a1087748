//! The power fails twice, at random moments: in a machine's first boot, and in an update. 50 times: `just torture update`.
//!
//! Needs root, QEMU and `PGKILN_TEST_IMAGE`; the disk is baked beside that image.

use pgkiln_tests::image;
use pgkiln_tests::powercut::Prepared;
use pgkiln_tests::random::SplitMix;

#[test]
#[ignore = "needs root, QEMU and four minutes"]
fn power_may_fail_in_a_first_boot_and_in_an_update() -> anyhow::Result<()> {
    if image::baked().is_none() {
        return Ok(());
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let cuts = Prepared::new()?.first_boot_and_update(&mut SplitMix(now.as_secs()))?;
    eprintln!("{cuts}");
    Ok(())
}
