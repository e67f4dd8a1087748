//! PID 1 of the initramfs: from the kernel's hands to systemd on a root whose every byte is checked.
//!
//! A package of its own, with three small dependencies: what stands between the firmware and a verified root should be short enough to
//! be read in one sitting. It loads the drivers the machine asks for, finds the root by the identifiers that follow from
//! `roothash=` on the (signed) command line (or, with `pgkiln.live` or `pgkiln.mode=install`, in one file in memory), lets the kernel check it with
//! dm-verity, puts a writable `/etc` in memory above the image's, tells systemd where the rest of this disk is, and starts it. There is no shell: a failure is said in plain
//! words on every console, and the machine then reboots or powers off (`pgkiln.failure=`).
//!
//! Not dracut, which is the usual choice and was tried first: with what a verified root needs its archive had 29.5 MB instead of
//! 1.8, the way to the verified root took 10.4 s instead of 4.2 (same kernel and disk, QEMU's `-icount`), and what it
//! does when something is missing is a shell nobody can log in to. What it can and this cannot (network roots, RAID, LVM, LUKS)
//! is not asked of this root.
//!
//! Each step is a module; a further one is a call in [`boot`].

mod attach;
mod cmdline;
mod console;
mod disk;
mod dm;
mod fail;
mod gpt;
mod handoff;
mod image_file;
mod modules;
mod root;
mod verity;

use std::convert::Infallible;
use std::time::Instant;

use cmdline::{Mode, Options};
use console::say;
use disk::Found;
use fail::Failed;

fn main() {
    let mut options = Options::default();
    match boot(&mut options, Instant::now()) {
        Ok(never) => match never {},
        Err(failed) => fail::end(&failed, &options),
    }
}

/// The way to systemd; comes back only if it fails.
fn boot(options: &mut Options, started: Instant) -> Result<Infallible, Failed> {
    root::mount_virtual()?;
    *options = Options::read()?;
    let mut modules = modules::List::read()?;
    modules.load_required()?;
    let found = match options.mode {
        Mode::Disk => disk::wait(options, || modules.load_for_devices())?,
        Mode::Live => {
            let found = image_file::open(&mut modules)?;
            image_file::forget_head();
            Found { var: disk::state(|| modules.load_for_devices())?, ..found }
        }
        Mode::Install => image_file::open(&mut modules)?,
    };
    say(&format!("root {} and its hash tree {}", found.root.display(), found.hashes.display()));
    let tree = verity::read(&found.hashes, found.hashes_at, &options.root_hash)?;
    let device = dm::open_verity(&found, &tree, &options.root_hash)?;
    if options.mode == Mode::Install {
        image_file::offer(&found, &device)?;
    }
    root::mount(&device)?;
    root::overlay_etc()?;
    handoff::machine_id(&found)?;
    handoff::units(&found, options)?;
    say(&format!("verified root is ready after {:.1} s; starting systemd", started.elapsed().as_secs_f64()));
    root::switch()
}
