//! Every way to break a cluster, with three seeds: each has a cluster of its own and an order of its own, where the same
//! cluster goes through all of them. More seeds and longer outages: `just torture chaos`.

use firstboot::spec::Rto;
use pgkiln_tests::chaos::scenarios::{Scenario, named};
use pgkiln_tests::chaos::{self, Arena, Pace};

/// Clusters side by side: they wait most of the time.
const SEEDS: [u64; 3] = [1, 2, 3];

fn all() -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let seeds = SEEDS.map(|seed| scope.spawn(move || chaos::all(seed, &[], Pace::SHORT)));
        seeds.into_iter().try_for_each(|seed| {
            let all = seed.join().unwrap_or_else(|_| anyhow::bail!("a scenario panicked"))?;
            eprintln!("{all} in {:.0} s", all.seconds);
            Ok(())
        })
    })
}

fn some(wanted: &[(&'static Scenario, u64)]) -> anyhow::Result<()> {
    let mut arena = Arena::new("chaos", Rto::Fast)?;
    for (scenario, seed) in wanted {
        eprintln!("{}", arena.run(scenario, *seed, Pace::SHORT)?);
    }
    Ok(())
}

fn one(text: &str) -> anyhow::Result<(&'static Scenario, u64)> {
    let (name, seed) = text.split_once(':').unwrap_or((text, "1"));
    Ok((named(name)?, seed.parse()?))
}

fn run() -> anyhow::Result<()> {
    // `PGKILN_TEST_ONLY=node-killed:7,switchover:1`: for whoever works on one scenario.
    match std::env::var("PGKILN_TEST_ONLY") {
        Ok(only) => some(&only.split(',').map(one).collect::<anyhow::Result<Vec<_>>>()?),
        Err(_) => all(),
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nobody_writes_twice() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    run().unwrap_or_else(|error| panic!("{error:#}"));
}
