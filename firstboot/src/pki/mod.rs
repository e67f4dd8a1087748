//! Certificates of one node and the TLS configurations made from them.
//!
//! The cluster's root CA never leaves the operator; voters hold an intermediate (path length 0) and sign their own
//! leaves, here. A leaf says what its holder is by extra names: only voters carry `etcd-peer.<uuid>`, only agents
//! carry `agent.<uuid>`, so that a certificate taken from one service opens no other door.

mod leaf;
mod roles;
mod signatures;
mod tls;

pub use leaf::{
    Leaf, PublicKey, Signer, ends, ends_pem, ensure, install, is_due, is_issued_by, is_kept, key_sha256, names,
    public_key, self_signed, stored_ends,
};
pub use roles::{leaves, leaves_of};
pub use tls::{Clients, client, is_agent, server};

#[cfg(test)]
pub(crate) use leaf::tests::TestCa;
