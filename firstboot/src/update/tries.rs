//! Whose fault a boot that is not good is. A boot loader counts tries; what it cannot know is that this node waits for others.
//!
//! *Good*: the file loses its counter (`systemd-bless-boot` does the same, and finds it done). *Undecided* for a while (no
//! metadata yet, peers or etcd's quorum missing, a rebuild): the try is given back, so that any number of power cuts during a
//! long wait uses up none. *Bad*: a try that was given back in this boot is taken after all, or a version that needs a while to
//! show that it does not work would be tried for ever; then `pgkiln-fall-back.service` starts the other version.

use std::path::Path;

use anyhow::Result;

use super::loader::{self, Entry};
use super::{TRIES, slots};
use crate::layout::Layout;

/// Gives the try of this boot back; says what the file had counted, or nothing if there is nothing to give back.
pub fn give_back(layout: &Layout) -> Result<Option<Entry>> {
    let Some(running) = counting(layout)? else { return Ok(None) };
    // A counter that nobody has touched yet has nothing to be given back.
    if running.left == Some(TRIES) && running.done == 0 {
        return Ok(None);
    }
    let tries = Some(running.left.unwrap_or(0) + running.done).filter(|n| *n > 0);
    loader::rename(&layout.at(slots::ESP), &running, tries, 0)?;
    Ok(Some(running))
}

/// The boot that got its try back was bad: it counts as it did before.
pub fn take_again(layout: &Layout, before: &Entry) -> Result<()> {
    let Some(running) = counting(layout)?.filter(|running| running.id == before.id) else { return Ok(()) };
    loader::rename(&layout.at(slots::ESP), &running, before.left, before.done)
}

/// The running version was good: it counts no more.
pub fn bless(layout: &Layout) -> Result<Option<String>> {
    let Some(running) = counting(layout)? else { return Ok(None) };
    loader::rename(&layout.at(slots::ESP), &running, None, 0)?;
    Ok(Some(running.id))
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
mod tests {
    use fs_err as fs;

    use super::*;

    fn boot(name: &str) -> (tempfile::TempDir, Layout) {
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

    fn names(layout: &Layout) -> Vec<String> {
        let found = fs::read_dir(layout.at("/boot/EFI/Linux")).unwrap();
        let mut names: Vec<_> = found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_try_is_given_back_and_a_good_boot_counts_no_more() {
        let (_dir, layout) = boot("x_1+1-2.efi");
        assert_eq!(give_back(&layout).unwrap().map(|before| before.id).as_deref(), Some("x_1.efi"));
        assert_eq!(names(&layout), ["x_0.efi", "x_1+3.efi"]);
        assert_eq!(give_back(&layout).unwrap(), None, "once");
        assert_eq!(bless(&layout).unwrap().as_deref(), Some("x_1.efi"));
        assert_eq!(names(&layout), ["x_0.efi", "x_1.efi"]);
        assert_eq!((bless(&layout).unwrap(), give_back(&layout).unwrap()), (None, None));
    }

    #[test]
    fn a_bad_boot_takes_the_try_it_got_back() {
        for counted in ["x_1+2-1.efi", "x_1+0-3.efi"] {
            let (_dir, layout) = boot(counted);
            let before = give_back(&layout).unwrap().unwrap();
            assert_eq!(names(&layout), ["x_0.efi", "x_1+3.efi"]);
            take_again(&layout, &before).unwrap();
            assert_eq!(names(&layout), ["x_0.efi", counted]);
            bless(&layout).unwrap();
            take_again(&layout, &before).unwrap();
            assert_eq!(names(&layout), ["x_0.efi", "x_1.efi"], "good is good");
        }
    }

    #[test]
    fn the_last_try_is_given_back_too() {
        let (_dir, layout) = boot("x_1+0-3.efi");
        give_back(&layout).unwrap();
        assert_eq!(names(&layout), ["x_0.efi", "x_1+3.efi"]);
    }
}
