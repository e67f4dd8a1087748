//! The main job, end to end and for real: bake, boot three nodes, write through HAProxy, kill the leader's whole node, and
//! count what was lost.

pub mod client;
mod timeline;
pub mod writer;
