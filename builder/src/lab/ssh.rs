//! Running a command in a node that is a machine of its own: over ssh, with a key the lab made and the node's seed carries.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::tool::{Cmd, Tool, shell_quoted, table};

/// Makes the lab's key.
const SSH_KEYGEN: Tool =
    Tool { name: "ssh-keygen", package: "openssh-client", minimum: None, why: "a key for the lab's machines" };

/// How a command gets into a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Door {
    /// The node's address.
    pub(super) address: IpAddr,
    /// Private key.
    pub(super) key: PathBuf,
    /// Where the connection waits for the next command: a handshake takes a second under emulation.
    pub(super) socket: PathBuf,
}

/// Makes the key pair `path`, `path.pub`; returns what goes into `authorized_keys`.
pub(super) fn make_key(path: &Path) -> anyhow::Result<String> {
    let args = ["-q", "-t", "ed25519", "-N", "", "-C", "pgkiln-lab", "-f"];
    Cmd::new(&SSH_KEYGEN).args(args).arg(path).run()?;
    Ok(fs_err::read_to_string(path.with_extension("pub"))?.trim().to_owned())
}

impl Door {
    /// `argv` as root of the node; for a caller inside the lab's network.
    pub(super) fn command(&self, argv: &[String], terminal: bool) -> Cmd {
        // Whoever can reach the node is in the lab's own network, and its host key is as new as the node.
        let options = [
            "-oBatchMode=yes",
            "-oStrictHostKeyChecking=no",
            "-oUserKnownHostsFile=/dev/null",
            "-oLogLevel=ERROR",
            "-oConnectTimeout=5",
            "-oServerAliveInterval=5",
            "-oServerAliveCountMax=3",
            "-oControlMaster=auto",
            "-oControlPersist=60",
        ];
        let words: Vec<String> = argv.iter().map(|word| shell_quoted(word)).collect();
        Cmd::new(&table::SSH)
            .args(options)
            .arg(format!("-oControlPath={}", self.socket.display()))
            .arg(if terminal { "-tt" } else { "-T" })
            .arg("-i")
            .arg(&self.key)
            .arg(format!("root@{}", self.address))
            .arg("--")
            .arg(words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_node_as_they_are() {
        let door = Door { address: "10.0.0.11".parse().unwrap(), key: "/k".into(), socket: "/s".into() };
        let argv = ["psql", "-c", "select 'a b'"].map(str::to_owned);
        // Quoted once for the node's shell, and once more for whoever pastes the line.
        let line = door.command(&argv, false).command_line();
        assert!(line.contains(&shell_quoted(&format!("psql -c {}", shell_quoted("select 'a b'")))), "{line}");
        assert!(line.contains(" -T -i /k root@10.0.0.11 -- "), "{line}");
    }
}
