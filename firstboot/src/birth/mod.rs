//! How a cluster's etcd is founded exactly once.
//!
//! etcd trusts its configuration: a voter started with `new` and an empty directory founds a cluster, and if it had
//! voted before its directory was lost, it votes twice. So no seed starts `new` because it found nobody, only after
//! all voters agreed, durably, on who founds: not on addresses alone but on *disks*. Each disk draws a random identity
//! when it first stores its intent.
//!
//! ```text
//! intent     stored: cluster, voters, this disk's identity             shown to peers from here on
//!   | every voter shows the same intent (or a peer accepted our disk)
//! accepted   stored: {slot -> disk} as seen; never changed again on this disk
//!   | every voter accepted the same disks (or a peer is committed to them)
//! committed  stored; etcd starts with `new`
//!   | etcd served a linearizable read
//! born       born.json: from here on `new` is impossible
//! ```
//!
//! Why the extra round: views are stale by nature. Had a seed started as soon as it saw equal intents, a voter whose
//! disk is replaced in that second could be counted by one peer with its old disk and by the other with its new one,
//! and two majorities would exist. A disk accepts one set of disks in its life, and a set is committed only when all
//! its disks accepted it; so two committed sets share no disk, and no lone replaced disk is ever in one.
//!
//! A disk that has no part in a born cluster (its etcd directory is lost, or it is blank) may come back as a
//! [`Replacement`] of its slot's dead member, never by founding.
//!
//! [`decide`] is this rule as a pure function, [`agree`] talks to peers and stores, `model` (tests) tries to break it.

mod decide;
mod drive;
#[cfg(test)]
mod model;
mod record;
mod replace;

pub use decide::{Decision, Own, Seen, decide};
pub use drive::{Agreement, Desk, agree};
pub use record::{Born, Disks, Record, Stage, Voters};
pub use replace::Replacement;
