//! The end-to-end harness: what the suites in `tests/tests` share. What needs the baked image, root or namespaces says so
//! where it starts.

pub mod archive;
pub mod archive_server;
pub mod bench;
pub mod binary;
pub mod birth;
pub mod chaos;
pub mod cluster;
pub mod crash;
pub mod disk;
pub mod flips;
pub mod image;
pub mod keys;
pub mod memory;
pub mod next;
pub mod plot;
pub mod powercut;
pub mod qemu;
pub mod random;
pub mod reference;
pub mod repro;
pub mod standin;
pub mod tls_server;
pub mod tree_diff;
pub mod workspace;
