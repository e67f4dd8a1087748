//! sshd: only when somebody's keys are given. Host keys persist, so that a node keeps its fingerprint.

use anyhow::Result;

use super::{File, Host};
use crate::durable;
use crate::tool::{self, Tool};

pub(super) async fn apply(host: &Host, keys: &[String], unit: &str) -> Result<()> {
    let directory = host.layout.ssh();
    durable::create_dir(&directory, 0o700)?;
    let key = directory.join("ssh_host_ed25519_key");
    if host.layout.is_live() && !key.exists() {
        // Made beside and renamed: a killed ssh-keygen leaves no half key under the final name.
        let new = directory.join(".new");
        durable::remove(&new)?;
        durable::remove(&directory.join(".new.pub"))?;
        Tool::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&new).run().await?;
        fs_err::File::open(&new)?.sync_all()?;
        fs_err::rename(directory.join(".new.pub"), directory.join("ssh_host_ed25519_key.pub"))?;
        fs_err::rename(&new, &key)?;
        durable::sync_dir(&directory)?;
    }
    let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
    // sshd refuses keys in directories that others may write to; /run/pgkiln is root's.
    File::public("/run/pgkiln/ssh/root", text).write(&host.layout)?;
    if host.layout.is_live() {
        tool::systemctl(&["start", "--no-block", unit]).run().await?;
    }
    Ok(())
}
