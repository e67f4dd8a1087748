//! What the machine says: through the kernel's log, so that it reaches every console and later the journal.

use std::io::Write;

/// Severities of `/dev/kmsg` (syslog's). Consoles show what is below `loglevel=`, which is 6 in our images.
const CRITICAL: u8 = 2;
const NOTICE: u8 = 5;

/// Progress.
pub(crate) fn say(text: &str) {
    write(NOTICE, text);
}

/// A failure; shown whatever the command line says.
pub(crate) fn alarm(text: &str) {
    write(CRITICAL, text);
}

fn write(severity: u8, text: &str) {
    let line = format!("<{severity}>pgkiln: {text}\n");
    let log = std::fs::OpenOptions::new().write(true).open("/dev/kmsg");
    if log.and_then(|mut log| log.write_all(line.as_bytes())).is_err() {
        // Before /dev is mounted there is the console the kernel gave us.
        eprintln!("pgkiln: {text}");
    }
}
