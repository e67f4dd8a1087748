//! Founding under the worst circumstances: nodes that come up at different times, and a network that is cut while they
//! agree. Every run follows from its seed.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::cluster::TestCluster;
use crate::random::SplitMix;

/// From healing to a whole cluster.
const LIMIT: Duration = Duration::from_secs(60);

/// What happens when, in milliseconds after the lab is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circumstances {
    /// Start of each node.
    pub starts: [u64; 3],
    /// The first node is cut off from the others …
    pub cut: u64,
    /// … until here.
    pub healed: u64,
}

impl Circumstances {
    /// The circumstances of a seed: starts within ten seconds, and a cut that begins anywhere from before the first start
    /// until after the last one, so that it meets every stage of the agreement.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let starts = [random.below(10_000), random.below(10_000), random.below(10_000)];
        let cut = random.below(14_000).saturating_sub(2_000);
        Self { starts, cut, healed: cut + 3_000 + random.below(12_000) }
    }
}

impl fmt::Display for Circumstances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let [one, two, three] = self.starts.map(seconds);
        let (cut, healed) = (seconds(self.cut), seconds(self.healed));
        write!(f, "starts {one:.1} {two:.1} {three:.1} s, pg-1 cut off {cut:.1}-{healed:.1} s")
    }
}

/// Founds a cluster under the circumstances of `seed`; returns the seconds from healing to a healthy cluster.
pub fn run(seed: u64) -> anyhow::Result<f64> {
    let circumstances = Circumstances::of_seed(seed);
    let cluster = TestCluster::builder().named("birth").off().up()?;
    let mut events = vec![(circumstances.cut, Event::Cut), (circumstances.healed, Event::Heal)];
    events.extend(circumstances.starts.iter().enumerate().map(|(index, at)| (*at, Event::Start(index))));
    events.sort_by_key(|(at, _)| *at);
    let (begin, mut healed) = (Instant::now(), Instant::now());
    for (at, event) in events {
        std::thread::sleep((begin + Duration::from_millis(at)).saturating_duration_since(Instant::now()));
        match event {
            Event::Start(index) => cluster.lab.start(&cluster.slots[index])?,
            Event::Cut => {
                for other in &cluster.slots[1..] {
                    cluster.lab.partition(&cluster.slots[0], other, false)?;
                }
            }
            Event::Heal => cluster.lab.heal(None)?,
        }
        healed = Instant::now();
    }
    cluster.wait_for(&format!("one cluster ({circumstances})"), LIMIT, || check_one_cluster(&cluster))?;
    Ok(healed.elapsed().as_secs_f64())
}

enum Event {
    Start(usize),
    Cut,
    Heal,
}

/// One etcd cluster of three voters and one system identifier, whichever node is asked about itself.
fn check_one_cluster(cluster: &TestCluster) -> anyhow::Result<()> {
    let ask = |what: fn(&TestCluster, &str) -> anyhow::Result<String>| {
        cluster.slots.iter().map(|slot| what(cluster, slot)).collect::<anyhow::Result<BTreeSet<String>>>()
    };
    let clusters = ask(TestCluster::etcd_cluster_id)?;
    ensure!(clusters.len() == 1, "etcd cluster ids {clusters:?}");
    for slot in &cluster.slots {
        cluster.check_voters(slot)?;
    }
    let systems = ask(TestCluster::system_identifier)?;
    ensure!(systems.len() == 1, "system identifiers {systems:?}");
    cluster.check_healthy(&cluster.slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_tells_everything_and_seeds_differ() {
        assert_eq!(Circumstances::of_seed(7), Circumstances::of_seed(7));
        let all: BTreeSet<String> = (0..100).map(|seed| Circumstances::of_seed(seed).to_string()).collect();
        assert_eq!(all.len(), 100);
    }

    #[test]
    fn cuts_meet_every_stage_of_the_agreement() {
        let cases: Vec<_> = (1..=50).map(Circumstances::of_seed).collect();
        let before = cases.iter().filter(|c| c.cut < *c.starts.iter().min().unwrap()).count();
        let during = cases
            .iter()
            .filter(|c| (c.starts.iter().min().unwrap()..c.starts.iter().max().unwrap()).contains(&&c.cut))
            .count();
        assert!(before >= 5 && during >= 10 && before + during < 50, "{before} before, {during} during");
    }
}
