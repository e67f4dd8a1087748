//! Whose fault a boot that is not good is. A boot loader counts tries; what it cannot know is that this node waits for others.
//!
//! *Good*: the file loses its counter (`systemd-bless-boot` does the same, and finds it done). *Undecided* for a while (no
//! metadata yet, peers or etcd's quorum missing, a rebuild): the try is given back, so that any number of power cuts during a
//! long wait uses up none. *Bad*: nothing is done here; `pgkiln-fall-back.service` starts the other version.

use std::path::Path;

use anyhow::Result;

use super::loader::{self, Entry};
use super::{TRIES, slots};
use crate::layout::Layout;

/// Gives the try of this boot back; says which file it was, or nothing if there is none to give back.
pub fn give_back(layout: &Layout) -> Result<Option<String>> {
    let Some(running) = counting(layout)? else { return Ok(None) };
    // A counter that nobody has touched yet has nothing to be given back.
    if running.left == Some(TRIES) && running.done == 0 {
        return Ok(None);
    }
    loader::rename(
        &layout.at(slots::ESP),
        &running,
        Some(running.left.unwrap_or(0) + running.done).filter(|n| *n > 0),
    )?;
    Ok(Some(running.id))
}

/// The running version was good: it counts no more.
pub fn bless(layout: &Layout) -> Result<Option<String>> {
    let Some(running) = counting(layout)? else { return Ok(None) };
    loader::rename(&layout.at(slots::ESP), &running, None)?;
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
        assert_eq!(give_back(&layout).unwrap().as_deref(), Some("x_1.efi"));
        assert_eq!(names(&layout), ["x_0.efi", "x_1+3.efi"]);
        assert_eq!(give_back(&layout).unwrap(), None, "once");
        assert_eq!(bless(&layout).unwrap().as_deref(), Some("x_1.efi"));
        assert_eq!(names(&layout), ["x_0.efi", "x_1.efi"]);
        assert_eq!((bless(&layout).unwrap(), give_back(&layout).unwrap()), (None, None));
    }

    #[test]
    fn the_last_try_is_given_back_too() {
        let (_dir, layout) = boot("x_1+0-3.efi");
        give_back(&layout).unwrap();
        assert_eq!(names(&layout), ["x_0.efi", "x_1+3.efi"]);
    }
}
