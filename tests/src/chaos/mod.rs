//! Breaking a cluster while it is written to, and proving afterwards that nothing went wrong.
//!
//! ```text
//! writers, probes -> histories ; (histories, rows read back) -> checker
//! ```
//!
//! Writers are applications: they go through HAProxy (or the virtual IP) and change the connection when it fails. Probes go
//! to one node each, past every proxy, and try to write there all the time: they are how a second primary is seen that
//! no proxy leads to. Both are the same [`client`]. Two things are checked after every scenario:
//!
//! * **I1** nothing acknowledged is lost, and nothing is there that was never sent;
//! * **I2** there are never two writers at one instant.
//!
//! A new scenario is a function in [`scenarios`] and a line in its table.

mod arena;
pub mod checker;
mod client;
mod history;
pub mod scenarios;

pub use arena::{Arena, Outcome, Pace, Scene};
pub use client::{Client, Observers};
pub use history::{Accepted, Attempt, History, Result};
