//! Failures, and how they end.

use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use crate::cmdline::{OnFailure, Options};
use crate::console;

/// How long the reason stays on the console before the machine goes on: long enough to be read or photographed.
const SHOWN: Duration = Duration::from_secs(10);

/// Why the machine cannot boot, and what to do about it.
#[derive(Debug)]
pub(crate) struct Failed {
    what: String,
    remedy: String,
}

impl Failed {
    /// What is wrong, and what the reader should do.
    pub(crate) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }

    /// For a system call that failed: what it was for, and the kernel's answer.
    pub(crate) fn call(what: &str, error: impl std::fmt::Display) -> Self {
        let remedy = "the kernel of this image and its initrd do not fit together, or the machine lacks memory";
        Self::new(format!("{what}: {error}"), remedy)
    }
}

/// Says why, waits, and reboots or powers off: in a boot with counted tries a reboot is what leads to the older image.
pub(crate) fn end(failed: &Failed, options: &Options) -> ! {
    console::alarm(&format!("cannot boot: {}", failed.what));
    console::alarm(&format!("what to do: {}", failed.remedy));
    let (verb, mode) = match options.on_failure {
        OnFailure::Reboot => ("rebooting", RebootMode::RB_AUTOBOOT),
        OnFailure::PowerOff => ("powering off", RebootMode::RB_POWER_OFF),
    };
    console::alarm(&format!("{verb} in {} s", SHOWN.as_secs()));
    thread::sleep(SHOWN);
    nix::unistd::sync();
    loop {
        let refused = reboot(mode).err();
        console::alarm(&format!("{verb} failed: {refused:?}"));
        thread::sleep(SHOWN);
    }
}
