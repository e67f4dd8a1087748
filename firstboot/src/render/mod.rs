//! Specification to bytes: pure functions without input or output, golden-tested. What they return, `apply` writes.

pub mod access;
pub mod etcd;
pub mod etcdctl;
pub mod haproxy;
pub mod keepalived;
pub mod network;
pub mod patroni;
pub mod pgbackrest;
pub mod preset;
pub mod sql;

use std::net::IpAddr;

use crate::spec::NodeSpec;

/// What rendering looks at.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The accepted specification.
    pub spec: &'a NodeSpec,
    /// This node's address.
    pub ip: IpAddr,
    /// Version of etcd in the image.
    pub etcd_version: (u32, u32, u32),
}

/// An address as it stands in a URL.
pub fn host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests;
