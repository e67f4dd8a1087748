//! Where everything is on a node. Every path hangs under one root, so that `plan`, `check` and `inspect` work on a
//! tree mounted anywhere and tests work on a temporary directory.

use std::path::{Path, PathBuf};

/// The node's file system, seen from `root` (`/` on a running node).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self::new("/")
    }
}

impl Layout {
    /// A layout under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory that stands in for `/`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether this is the running system rather than a tree somewhere.
    pub fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// `path` (absolute as on the node) under the root.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// `/var/lib/pgkiln`, root only: everything the agent remembers between boots.
    pub fn lib(&self) -> PathBuf {
        self.at("/var/lib/pgkiln")
    }

    /// Records of finished steps (`state::State`).
    pub fn state(&self) -> PathBuf {
        self.lib().join("state.json")
    }

    /// The accepted specification, without secrets of the seed (0600 all the same).
    pub fn spec(&self) -> PathBuf {
        self.lib().join("spec.json")
    }

    /// The specification whose cluster-wide settings Patroni still has: only while a change waits to be handed over.
    pub fn previous_spec(&self) -> PathBuf {
        self.lib().join("previous-spec.json")
    }

    /// The founding bundle as accepted at first boot (0600).
    pub fn secrets(&self) -> PathBuf {
        self.lib().join("secrets.json")
    }

    /// Which machine this disk belongs to (`stored::Identity`).
    pub fn identity(&self) -> PathBuf {
        self.lib().join("identity.json")
    }

    /// Intent, committed and born records of the two-phase birth.
    pub fn birth(&self) -> PathBuf {
        self.lib().join("birth")
    }

    /// Written durably when etcd first served a linearizable read: from then on founding a cluster is impossible.
    pub fn born(&self) -> PathBuf {
        self.birth().join("born.json")
    }

    /// Keys and certificates that persist: `ca.pem`, `intermediate.{pem,key}`, `<name>.{pem,key}`.
    pub fn pki(&self) -> PathBuf {
        self.lib().join("pki")
    }

    /// `/run/pgkiln`: everything rendered, gone at power-off.
    pub fn run(&self) -> PathBuf {
        self.at("/run/pgkiln")
    }

    /// Environment of etcd.service.
    pub fn etcd_env(&self) -> PathBuf {
        self.run().join("etcd/etcd.env")
    }

    /// Patroni's local configuration (secrets inside: 0600 postgres).
    pub fn patroni_yml(&self) -> PathBuf {
        self.run().join("patroni/patroni.yml")
    }

    /// HAProxy's configuration.
    pub fn haproxy_cfg(&self) -> PathBuf {
        self.run().join("haproxy/haproxy.cfg")
    }

    /// HAProxy's runtime socket.
    pub fn haproxy_socket(&self) -> PathBuf {
        self.at("/run/haproxy/admin.sock")
    }

    /// Servers HAProxy was last given, for a boot before the registry can be read.
    pub fn servers(&self) -> PathBuf {
        self.lib().join("servers.json")
    }

    /// Directory of the certificates one service may read: `/run/pgkiln/pki/<service>`.
    pub fn service_pki(&self, service: &str) -> PathBuf {
        self.run().join("pki").join(service)
    }

    /// What `firstboot status` prints.
    pub fn status(&self) -> PathBuf {
        self.run().join("status.json")
    }

    /// etcd's data directory; `member` below it means "has data".
    pub fn etcd_data(&self) -> PathBuf {
        self.at("/var/lib/etcd/default")
    }

    /// etcd's log: made once it knows its cluster; `member` alone is there before.
    pub fn etcd_wal(&self) -> PathBuf {
        self.etcd_data().join("member/wal")
    }

    /// PostgreSQL's data directory for one major version.
    pub fn pgdata(&self, major: u32) -> PathBuf {
        self.at(format!("/var/lib/postgresql/{major}/main"))
    }

    /// There as long as PostgreSQL's directory has not become a database (`unborn`).
    pub fn unborn(&self) -> PathBuf {
        self.lib().join("postgresql-unborn.json")
    }

    /// Host keys of sshd.
    pub fn ssh(&self) -> PathBuf {
        self.at("/var/lib/ssh")
    }

    /// What the image says about itself.
    pub fn image_json(&self) -> PathBuf {
        self.at("/usr/lib/pgkiln/image.json")
    }

    /// Profiles, one per role.
    pub fn profiles(&self) -> PathBuf {
        self.at("/usr/share/pgkiln/profiles")
    }
}
