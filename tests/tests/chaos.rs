//! Every way to break a cluster, with three seeds; more with `torture chaos`. One cluster goes through all of it.

use firstboot::spec::Rto;
use pgkiln_tests::chaos::scenarios::{ALL, Scenario, named};
use pgkiln_tests::chaos::{Arena, Pace};

/// What CI has time for: what is over in seconds with every seed, everything else with one of them.
fn selected() -> Vec<(&'static Scenario, u64)> {
    let all = (1..=3).flat_map(|seed| ALL.iter().enumerate().map(move |(place, scenario)| (place, scenario, seed)));
    let wanted = all.filter(|(place, scenario, seed)| scenario.short || *place as u64 % 3 + 1 == *seed);
    wanted.map(|(_, scenario, seed)| (scenario, seed)).collect()
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

#[test]
fn every_scenario_is_selected() {
    let selected = selected();
    assert!(ALL.iter().all(|scenario| selected.iter().any(|(one, _)| one.name == scenario.name)));
}
