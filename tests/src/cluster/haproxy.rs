//! What a node's HAProxy says about its servers.

use anyhow::ensure;
use firstboot::proxy::servers::BACKENDS;
use firstboot::proxy::state::{self, Running};

use super::TestCluster;

/// The image has no program that talks to a socket but Patroni's Python.
const ASK: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect('/run/haproxy/admin.sock')
s.sendall(sys.argv[1].encode() + b'\\n')
print(b''.join(iter(lambda: s.recv(65536), b'')).decode())";

impl TestCluster {
    /// HAProxy's answer to one command.
    pub fn haproxy(&self, slot: &str, command: &str) -> anyhow::Result<String> {
        self.output(slot, &["python3", "-c", ASK, command])
    }

    /// The servers of a node's HAProxy.
    pub fn haproxy_servers(&self, slot: &str) -> anyhow::Result<Vec<Running>> {
        state::parse(&self.haproxy(slot, "show servers state")?, &BACKENDS)
    }

    /// The slots a node's HAProxy sends new connections of `backend` to.
    pub fn haproxy_up(&self, slot: &str, backend: &str) -> anyhow::Result<Vec<String>> {
        let servers = self.haproxy_servers(slot)?.into_iter();
        let mut up: Vec<_> = servers.filter(|s| s.backend == backend && s.up && !s.drained).map(|s| s.name).collect();
        up.sort_unstable();
        Ok(up)
    }

    /// Every node's HAProxy sends writers to the leader alone and readers to all others.
    pub fn check_routing(&self) -> anyhow::Result<()> {
        let leader = self.leader()?;
        for slot in &self.slots {
            let (rw, ro) = (self.haproxy_up(slot, "rw")?, self.haproxy_up(slot, "ro")?);
            ensure!(rw == [leader.clone()], "{slot} sends writers to {rw:?}, {leader} leads");
            ensure!(ro == self.others(&leader), "{slot} sends readers to {ro:?}, {leader} leads");
        }
        Ok(())
    }
}
