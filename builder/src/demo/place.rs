//! The demo's directory: cluster, seeds, the nodes' data. Gone with the demo, or with the lab that is kept.

use std::path::PathBuf;

use anyhow::Context;
use firstboot::spec::Rto;
use tempfile::TempDir;

use crate::cluster::{self, Cluster};
use crate::lab;

/// Name of the demo's cluster and database; its role is `orders_app`.
const CLUSTER: &str = "orders";
/// On a real disk: PostgreSQL's data does not belong into memory.
const PARENT: &str = "/var/tmp";

pub(super) struct Place {
    dir: TempDir,
    lab_name: String,
}

impl Place {
    pub(super) fn create() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("pgkiln-demo-").tempdir_in(PARENT).context("creating a directory")?;
        let taken = lab::names()?;
        let numbered = (2..).map(|n| format!("demo-{n}"));
        let mut names = std::iter::once("demo".to_owned()).chain(numbered);
        let lab_name = names.find(|name| !taken.contains(name)).unwrap_or_default();
        Ok(Self { dir, lab_name })
    }

    pub(super) fn lab_name(&self) -> &str {
        &self.lab_name
    }

    /// Three nodes and a repository host on one network. All of it is one machine, so the preset for one LAN is the right one.
    pub(super) fn cluster(&self) -> anyhow::Result<Cluster> {
        let options = cluster::Options {
            name: CLUSTER.into(),
            nodes: ["10.0.0.11", "10.0.0.12", "10.0.0.13"].map(String::from).to_vec(),
            vip: Some("10.0.0.10".parse()?),
            backup: vec!["10.0.0.31".into()],
            database: Some(CLUSTER.into()),
            client_networks: vec!["10.0.0.0/24".parse()?],
            ..cluster::Options::default()
        };
        let mut definition = options.definition()?;
        definition.postgres.rto = Rto::Fast;
        cluster::create(&self.dir.path().join("cluster"), definition)
    }

    pub(super) fn seeds(&self) -> PathBuf {
        self.dir.path().join("seeds")
    }

    pub(super) fn lab_state(&self) -> PathBuf {
        self.dir.path().join("lab")
    }

    /// Leaves the directory where it is.
    pub(super) fn keep(self) -> PathBuf {
        self.dir.keep()
    }
}
