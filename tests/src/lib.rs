//! The end-to-end harness: what the suites in `tests/tests` share.

pub mod archive;
pub mod archive_server;
