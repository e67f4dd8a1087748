//! Stand-ins for archives that cannot be reached where this is tested: Ubuntu's, Percona's and PGDG's.
//!
//! Real packages of Debian's archive get the other archives' names, versions, epochs and relations, and are served on loopback in
//! those archives' layout, signed by keys made on the spot. A recipe is then locked, baked and booted unchanged, with one overlay
//! file for addresses and keys.
//!
//! What that proves: that the recipe's names, pins, epochs, priorities, suites, components and snapshot fit the archives as
//! they are documented, that our code handles their layout and packages, and that what is made boots to a cluster. What it does
//! not prove: that the archives have these versions, that their keys are the pinned ones, or how their own builds behave: the
//! programs inside are Debian's.
//!
//! ```text
//! material.rs   Debian's packages of a release, locked and fetched by pgkiln itself
//! plan.rs       which of them stands in for what ([`Standin`]); percona.rs, ubuntu.rs, pgdg.rs: the archives
//! deb.rs        a package under another name: new control member, content as it is where possible
//! relation.rs   relations that follow the new names and versions
//! publish.rs    pools, indexes, Release files, signatures
//! served.rs     all of it for one recipe, served, with its overlay
//! ```

pub mod deb;
pub mod material;
mod percona;
mod pgdg;
mod plan;
mod publish;
pub mod relation;
mod served;
mod ubuntu;

pub use plan::{RECIPES, Recipe, Standin};
pub use served::{STATEMENT, Served};
