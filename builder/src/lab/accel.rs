//! Whether KVM works here: a device node says little (nested hosts have one under which kernels hang), so the image itself is
//! booted once with a time limit. The answer is remembered until the host restarts.

use std::io::Read;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::machine::Accel;
use super::qemu;

/// From power-on to systemd's first words; a tenth of it where KVM works.
const LIMIT: Duration = Duration::from_secs(40);
/// What systemd prints before anything else.
const ALIVE: &str = "Welcome to ";
const ANSWER: &str = "/run/pgkiln-kvm";

/// What `wanted` means on this host, for machines that boot `image`.
pub(super) fn settle(wanted: Accel, image: &Path) -> Accel {
    if wanted != Accel::Auto {
        return wanted;
    }
    if !Path::new("/dev/kvm").exists() {
        return Accel::Tcg;
    }
    let works = match fs_err::read_to_string(ANSWER) {
        Ok(answer) => answer.trim() == "works",
        Err(_) => match boots(image) {
            Ok(works) => {
                // Forgotten, it is found out again.
                let _ = fs_err::write(ANSWER, if works { "works\n" } else { "fails\n" });
                works
            }
            // Nothing was tried, so nothing is known: the next lab asks again.
            Err(_) => false,
        },
    };
    if works { Accel::Kvm } else { Accel::Tcg }
}

fn boots(image: &Path) -> anyhow::Result<bool> {
    let (mut console, output) = std::io::pipe()?;
    let errors = output.try_clone()?;
    let scratch = tempfile::tempdir()?;
    let mut running = qemu::probe(image, scratch.path())?.spawn(output.into(), errors.into())?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut seen, mut buffer) = (String::new(), [0; 4096]);
        while let Ok(n @ 1..) = console.read(&mut buffer) {
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            if seen.contains(ALIVE) {
                let _ = tell.send(());
                return;
            }
        }
    });
    let alive = told.recv_timeout(LIMIT).is_ok();
    running.kill()?;
    Ok(alive)
}
