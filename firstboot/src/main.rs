//! `firstboot`, the first-boot agent.

fn main() {}
