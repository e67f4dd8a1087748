//! Ways to break a cluster, one after the other in the same cluster. Here what is over in seconds, a lost node and a lost
//! quorum; all of them, with many seeds: `just torture chaos`.

use firstboot::spec::Rto;
use pgkiln_tests::chaos::scenarios::{ALL, Scenario, named};
use pgkiln_tests::chaos::{Arena, Pace};

/// What there is time for in every run of the tests.
fn selected() -> Vec<(&'static Scenario, u64)> {
    let wanted =
        ALL.iter().filter(|scenario| scenario.short || ["node-killed", "quorum-lost"].contains(&scenario.name));
    wanted.map(|scenario| (scenario, 1)).collect()
}

fn one(text: &str) -> anyhow::Result<(&'static Scenario, u64)> {
    let (name, seed) = text.split_once(':').unwrap_or((text, "1"));
    Ok((named(name)?, seed.parse()?))
}

fn run() -> anyhow::Result<()> {
    // `PGKILN_TEST_ONLY=node-killed:7,switchover:1`: for whoever works on one scenario.
    let wanted = match std::env::var("PGKILN_TEST_ONLY") {
        Ok(only) => only.split(',').map(one).collect::<anyhow::Result<_>>()?,
        Err(_) => selected(),
    };
    let mut arena = Arena::new("chaos", Rto::Fast)?;
    for (scenario, seed) in wanted {
        eprintln!("{}", arena.run(scenario, seed, Pace::SHORT)?);
    }
    Ok(())
}

#[test]
fn nothing_acknowledged_is_lost_and_nobody_writes_twice() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    run().unwrap_or_else(|error| panic!("{error:#}"));
}
