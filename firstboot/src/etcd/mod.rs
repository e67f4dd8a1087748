//! A small client of etcd's v3 JSON gateway: the calls the agent makes, nothing else.
//!
//! The gateway and not gRPC: it is what Patroni uses as well, it is in every supported release, and it costs no code
//! generator and no protobuf runtime. Certificate-name login does not work through the gateway, so every call carries
//! a token got with user and password on top of the client certificate.
//!
//! A call goes to the preferred endpoint (this node's own, first) and on to the next one when that cannot answer;
//! a refusal by etcd is final and typed, never decided by the caller from prose.

mod auth;
mod client;
mod kv;
mod lease;
mod member;
mod wire;

#[cfg(test)]
pub(crate) mod tests;

pub use auth::{Accounts, Permission, node_user};
pub(crate) use client::plain;
pub use client::{Client, Credentials, Endpoint, Error};
pub use kv::{Event, KeyValue, Swap, Watcher};
pub use lease::LeaseId;
pub use member::{Member, MemberStatus};
