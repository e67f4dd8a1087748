//! Configure: unpacked packages become a system that is ready to be an image.
//!
//! dpkg itself runs the postinst scripts, settles conffiles and triggers; we decide what it finds ([`prepare`]) and what
//! stays ([`clean`], [`var`]). Nothing that makes a node an individual may come out of it: no database cluster, no host keys,
//! no machine-id, no running or enabled service.

use std::path::Path;

use anyhow::Context;

use crate::sandbox::Sandbox;
use crate::unpack::dpkg_db::set_mode;

mod clean;
pub mod ids;
pub mod seal;
pub mod var;

/// Which units the image starts by itself; the agent starts everything else. Read by `systemctl preset-all` here, and by
/// systemd should it ever take a boot for the first one.
const PRESET: &str = "\
# The agent starts the node's services, nothing else does.
enable getty@.service
enable systemd-networkd.service
enable systemd-networkd.socket
enable systemd-resolved.service
disable *
";

/// Where presets lie, with what; earlier by name than the distribution's.
const PRESETS: [(&str, &str); 2] = [
    ("usr/lib/systemd/system-preset/00-pgkiln.preset", PRESET),
    ("usr/lib/systemd/user-preset/00-pgkiln.preset", "disable *\n"),
];

/// Comes with systemd-networkd, but the agent itself waits for the address it was given; this would wait for all links.
const WAIT_ONLINE: &str = "systemd-networkd-wait-online.service";

/// What postinst scripts must find so that they make nothing individual. Called when the base is unpacked.
pub fn prepare(root: &Path) -> anyhow::Result<()> {
    ids::add(root)?;
    // invoke-rc.d asks this before it starts anything.
    write(root, "usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
    set_mode(&root.join("usr/sbin/policy-rc.d"), 0o755)?;
    // postgresql-common would make and start a cluster `main`.
    write(root, "etc/postgresql-common/createcluster.conf", "create_main_cluster = false\nstart_conf = disabled\n")?;
    // openssh-server makes no key that is there; `clean` removes them.
    for kind in ["rsa", "ecdsa", "ed25519"] {
        write(root, &format!("etc/ssh/ssh_host_{kind}_key"), "")?;
    }
    // ssl-cert likewise.
    write(root, "etc/ssl/certs/ssl-cert-snakeoil.pem", "")?;
    write(root, "etc/ssl/private/ssl-cert-snakeoil.key", "")?;
    // systemd makes no random one if there is one.
    write(root, "etc/machine-id", "uninitialized\n")
}

/// Runs `dpkg --configure` for everything that is unpacked, and cleans up.
pub fn configure(root: &Path, sandbox: &Sandbox) -> anyhow::Result<()> {
    // ucf would otherwise ask about createcluster.conf and keep the question, with a random file name, for ever.
    let sandbox = sandbox.clone().env("UCF_FORCE_CONFFOLD", "1");
    sandbox.run(&["dpkg", "--configure", "--pending"]).context("configuring packages")?;
    if root.join("usr/bin/systemctl").exists() {
        for (path, text) in PRESETS {
            write(root, path, text)?;
        }
        sandbox.run(&["systemctl", "preset-all"]).context("switching services off")?;
        sandbox.run(&["systemctl", "disable", WAIT_ONLINE]).context("switching services off")?;
        sandbox.run(&["systemctl", "--global", "preset-all"]).context("switching user services off")?;
    }
    clean::clean(root)?;
    var::empty(root)
}

/// Writes a small file of ours, with its directories.
fn write(root: &Path, path: &str, text: &str) -> anyhow::Result<()> {
    let path = root.join(path);
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    fs_err::write(&path, text)?;
    Ok(())
}
