//! `pgkiln netboot`: everything a machine without a disk of the image fetches, over HTTP: an iPXE script of its own, kernel,
//! initrd and root of one baked set, and its metadata (NoCloud), found by its MAC address.
//!
//! ```text
//! /boot.ipxe                     the same for all: chains to the script of whoever asks      script
//! /ipxe/MAC                      what this machine boots, and where its metadata is          script
//! /i/VERSION/FILE                files of a baked `pxe` set, with Range                      set
//! /seed/MAC/user-data …          NoCloud                                                     machines
//! ```
//!
//! Nothing proves who asks, so nothing secret is served: seeds that hold secrets are refused before the first request, and
//! clusters are founded by `pgkiln cluster form`. What is served is looked up in tables that were made at start; no request
//! becomes a path.

mod advice;
mod dhcp;
mod machines;
mod range;
mod reply;
mod script;
mod server;
mod set;
#[cfg(test)]
mod tests;

pub use advice::advice;
pub use dhcp::{Proxy, address_of, own_address};
pub use machines::{Machine, Machines, Mode};
pub use server::{Event, Site, serve};
pub use set::Set;
