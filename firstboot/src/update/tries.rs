//! Whose fault a boot that is not good is. A boot loader counts tries; what it cannot know is that this node waits for others.
//!
//! *Good*: the file loses its counter (`systemd-bless-boot` does the same, and finds it done), however late. *Undecided* for a
//! while (no metadata yet, peers or etcd's quorum missing, a rebuild): this boot's try is given back, so that any number of power
//! cuts during a long wait uses up none; those of earlier boots, which were bad or said nothing, stay counted. *Bad*: a try that
//! was given back in this boot is taken after all, or a version that needs a while to show that it does not work would be tried for
//! ever; then `pgkiln-fall-back.service` starts the other version. What was given back is a file of this boot: whoever asks for the
//! verdict may be the one who gives it back, and another the one who learns that the boot is bad.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::loader::{self, Entry};
use super::slots;
use crate::durable;
use crate::layout::Layout;

/// What this boot's file had counted before its try was given back.
const GIVEN_BACK: &str = "/run/pgkiln/given-back.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct GivenBack {
    id: String,
    left: Option<u32>,
    done: u32,
}

/// Gives the try of this boot back; says what the file had counted, or nothing if there is nothing to give back.
pub fn give_back(layout: &Layout) -> Result<Option<Entry>> {
    let Some(running) = counting(layout)? else { return Ok(None) };
    // Nobody has touched this counter.
    if running.done == 0 {
        return Ok(None);
    }
    let before = GivenBack { id: running.id.clone(), left: running.left, done: running.done };
    let given = durable::read_json::<GivenBack>(&layout.at(GIVEN_BACK))?.filter(|given| given.id == before.id);
    if given.is_some_and(|given| given != before) {
        return Ok(None);
    }
    durable::write_volatile(&layout.at(GIVEN_BACK), &serde_json::to_vec(&before)?, 0o644, None)?;
    let left = running.left.unwrap_or(0).saturating_add(1);
    loader::rename(&layout.at(slots::ESP), &running, Some(left), running.done - 1)?;
    Ok(Some(running))
}

/// This boot is bad: if it got its try back, it counts as it did before.
pub fn take_again(layout: &Layout) -> Result<()> {
    let Some(before) = durable::read_json::<GivenBack>(&layout.at(GIVEN_BACK))? else { return Ok(()) };
    let Some(running) = counting(layout)?.filter(|running| running.id == before.id) else { return Ok(()) };
    loader::rename(&layout.at(slots::ESP), &running, before.left, before.done)
}

/// The running version was good: it counts no more.
pub fn bless(layout: &Layout) -> Result<Option<String>> {
    let Some(running) = counting(layout)? else { return Ok(None) };
    match loader::rename(&layout.at(slots::ESP), &running, None, 0) {
        Ok(()) => Ok(Some(running.id)),
        // Whoever else asks for the verdict, or systemd, was faster.
        Err(_) if counting(layout)?.is_none() => Ok(None),
        Err(error) => Err(error),
    }
}

/// [`bless`] for those that go on without it; whether it is done.
pub fn say_good(layout: &Layout) -> bool {
    match bless(layout) {
        Ok(Some(id)) => tracing::info!("{id} was good: the boot loader counts no more"),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!("the boot loader's file: {error:#}");
            return false;
        }
    }
    true
}

/// The file of what runs, while its tries are counted.
fn counting(layout: &Layout) -> Result<Option<Entry>> {
    let esp = layout.at(slots::ESP);
    if !Path::new(&esp).join("EFI/Linux").is_dir() {
        return Ok(None);
    }
    let Some(hash) = slots::running(layout) else { return Ok(None) };
    let found = loader::entries(&esp)?.into_iter();
    Ok(found.filter(|entry| entry.left.is_some()).find(|entry| entry.root_hash.as_deref() == Some(hash.as_str())))
}

#[cfg(test)]
pub(crate) mod tests {
    use fs_err as fs;

    use super::*;

    pub(crate) fn boot(name: &str) -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let hash = "cd".repeat(32);
        fs::create_dir_all(layout.at("/boot/EFI/Linux")).unwrap();
        fs::create_dir_all(layout.at("/proc")).unwrap();
        fs::write(layout.at("/proc/cmdline"), format!("ro roothash={hash} quiet\n")).unwrap();
        let uki = loader::tests::uki(&hash);
        fs::write(layout.at("/boot/EFI/Linux").join(name), uki).unwrap();
        fs::write(layout.at("/boot/EFI/Linux/x_0.efi"), loader::tests::uki(&"ee".repeat(32))).unwrap();
        (dir, layout)
    }

    pub(crate) fn names(layout: &Layout) -> Vec<String> {
        let found = fs::read_dir(layout.at("/boot/EFI/Linux")).unwrap();
        let mut names: Vec<_> = found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_try_is_given_back_and_a_good_boot_counts_no_more() {
        let (_dir, layout) = boot("x_1+2-1.efi");
        assert_eq!(give_back(&layout).unwrap().map(|before| before.id).as_deref(), Some("x_1.efi"));
        assert_eq!(names(&layout), ["x_0.efi", "x_1+3.efi"]);
        assert_eq!(give_back(&layout).unwrap(), None, "once");
        assert_eq!(bless(&layout).unwrap().as_deref(), Some("x_1.efi"));
        assert_eq!(names(&layout), ["x_0.efi", "x_1.efi"]);
        assert_eq!((bless(&layout).unwrap(), give_back(&layout).unwrap()), (None, None));
    }

    #[test]
    fn a_bad_boot_takes_the_try_it_got_back() {
        for (counted, whole) in
            [("x_1+2-1.efi", "x_1+3.efi"), ("x_1+0-3.efi", "x_1+1-2.efi"), ("x_1+0-1.efi", "x_1+1.efi")]
        {
            let (_dir, layout) = boot(counted);
            take_again(&layout).unwrap();
            assert_eq!(names(&layout), ["x_0.efi", counted], "nothing was given back");
            give_back(&layout).unwrap().unwrap();
            assert_eq!(names(&layout), ["x_0.efi", whole]);
            // Whoever else asks has nothing to give back, and may still be the one who learns that the boot is bad.
            assert_eq!(give_back(&layout).unwrap(), None);
            for _ in 0..2 {
                take_again(&layout).unwrap();
                assert_eq!(names(&layout), ["x_0.efi", counted]);
            }
            bless(&layout).unwrap();
            take_again(&layout).unwrap();
            assert_eq!(names(&layout), ["x_0.efi", "x_1.efi"], "good is good");
        }
    }

    #[test]
    fn a_version_that_is_bad_in_every_other_boot_is_given_up() {
        let (_dir, layout) = boot("x_1+3.efi");
        let esp = layout.at(slots::ESP);
        for (bad, counted) in
            [(true, "x_1+2-1.efi"), (false, "x_1+1-2.efi"), (true, "x_1+1-2.efi"), (true, "x_1+0-3.efi")]
        {
            loader::count_down(&esp, &counting(&layout).unwrap().unwrap()).unwrap();
            assert_eq!(names(&layout), ["x_0.efi", counted]);
            give_back(&layout).unwrap().unwrap();
            if bad {
                take_again(&layout).unwrap();
            }
            fs::remove_file(layout.at(GIVEN_BACK)).unwrap();
        }
        assert_eq!(counting(&layout).unwrap().unwrap().left, Some(0));
    }

    #[test]
    fn good_is_said_once_more_by_whoever_is_late() {
        let (_dir, layout) = boot("x_1+2-1.efi");
        give_back(&layout).unwrap();
        take_again(&layout).unwrap();
        assert!(say_good(&layout) && say_good(&layout));
        assert_eq!(names(&layout), ["x_0.efi", "x_1.efi"]);
    }
}
