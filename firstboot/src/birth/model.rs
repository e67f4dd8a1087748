//! Tries to break the rule: random schedules of polls, partitions, crashes, restarts and replaced disks.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// One voter: a disk, and what it remembers of peers while it runs.
struct Node {
    record: Record,
    started: bool,
    seen: BTreeMap<String, Seen>,
}

struct World {
    nodes: Vec<Node>,
    cut: Vec<Vec<bool>>,
    /// Every start with `new` there ever was: slot, disk, founders.
    starts: Vec<(String, Uuid, Disks)>,
}

#[derive(Debug, Clone)]
enum Action {
    /// `a` asks `b` and keeps the answer, however old it becomes.
    Poll(usize, usize),
    /// `a` acts on what it has seen; its durable write may be the last thing before a crash.
    Act(usize, bool),
    /// `a` loses its memory, not its disk.
    Crash(usize),
    /// `a` gets a blank disk.
    Replace(usize),
    /// The link between `a` and `b` changes.
    Cut(usize, usize),
}

fn slot(index: usize) -> String {
    format!("pg-{}", index + 1)
}

impl World {
    fn new(count: usize) -> Self {
        let seeds = (0..count).map(|i| (slot(i), format!("10.0.0.{}", 11 + i).parse().unwrap())).collect();
        let voters = Voters { cluster: Uuid::nil(), seeds };
        let node = |i| Node { record: Record::new(&slot(i), voters.clone()), started: false, seen: BTreeMap::new() };
        Self { nodes: (0..count).map(node).collect(), cut: vec![vec![false; count]; count], starts: Vec::new() }
    }

    fn run(&mut self, action: &Action) {
        match *action {
            Action::Poll(a, b) if a != b => {
                let answer = if self.cut[a][b] {
                    Seen::Silent("no route".to_owned())
                } else {
                    Seen::Shows(Box::new(self.shown(b)))
                };
                // A broken link does not make a seed forget what it saw: stale views are the dangerous ones.
                if matches!(answer, Seen::Shows(_)) || !self.nodes[a].seen.contains_key(&slot(b)) {
                    self.nodes[a].seen.insert(slot(b), answer);
                }
            }
            Action::Poll(..) => {}
            Action::Act(a, crash) => {
                self.act(a);
                if crash {
                    self.nodes[a].seen.clear();
                }
            }
            Action::Crash(a) => self.nodes[a].seen.clear(),
            Action::Replace(a) => {
                let voters = self.nodes[a].record.voters.clone();
                self.nodes[a] = Node { record: Record::new(&slot(a), voters), started: false, seen: BTreeMap::new() };
            }
            Action::Cut(a, b) => {
                let cut = !self.cut[a][b];
                self.cut[a][b] = cut;
                self.cut[b][a] = cut;
            }
        }
    }

    fn shown(&self, index: usize) -> Record {
        let node = &self.nodes[index];
        let stage = if node.started { Stage::Born } else { node.record.stage };
        Record { stage, ..node.record.clone() }
    }

    fn act(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let own = Own { record: &node.record, born: node.started, etcd_data: node.started, pg_data: false };
        match decide(own, &node.seen) {
            Decision::Accept(disks) => {
                assert_eq!(node.record.stage, Stage::Intent, "a disk accepts once");
                node.record.stage = Stage::Accepted;
                node.record.disks = Some(disks);
            }
            Decision::Commit => node.record.stage = Stage::Committed,
            Decision::StartNew => {
                assert_eq!(node.record.stage, Stage::Committed);
                node.started = true;
                let start = (node.record.slot.clone(), node.record.disk, node.record.disks.clone().unwrap());
                self.starts.push(start);
            }
            Decision::Wait(why) => assert!(!why.is_empty(), "waits without saying for what"),
            Decision::Born | Decision::Replace(_) | Decision::Refuse(_) => {}
        }
    }

    /// Two founding sets are the same or have no disk in common (every disk was replaced in between: nothing of the
    /// first cluster exists any more), and nobody founds with a disk that is not counted.
    fn check(&self) {
        for (slot, disk, disks) in &self.starts {
            assert_eq!(disks.get(slot), Some(disk), "{slot} started as a founder it is not");
            for (_, _, other) in &self.starts {
                let shared = disks.iter().any(|(slot, disk)| other.get(slot) == Some(disk));
                assert!(disks == other || !shared, "two clusters: {disks:?} and {other:?}");
            }
        }
    }

    fn settle(&mut self) {
        let count = self.nodes.len();
        self.cut = vec![vec![false; count]; count];
        // Intent, accepted, committed, started: four rounds are enough, each with fresh views.
        for _ in 0..5 {
            for a in 0..count {
                for b in 0..count {
                    self.run(&Action::Poll(a, b));
                }
                self.act(a);
            }
        }
    }
}

fn action(count: usize, replace: u32) -> impl Strategy<Value = Action> {
    let node = 0..count;
    prop_oneof![
        10 => (node.clone(), node.clone()).prop_map(|(a, b)| Action::Poll(a, b)),
        6 => (node.clone(), prop::bool::weighted(0.3)).prop_map(|(a, crash)| Action::Act(a, crash)),
        1 => node.clone().prop_map(Action::Crash),
        replace => node.clone().prop_map(Action::Replace),
        1 => (node.clone(), node).prop_map(|(a, b)| Action::Cut(a, b)),
    ]
}

fn schedule(replace: u32) -> impl Strategy<Value = (usize, Vec<Action>)> {
    prop_oneof![1 => Just(1usize), 6 => Just(3), 3 => Just(5)]
        .prop_flat_map(move |count| (Just(count), prop::collection::vec(action(count, replace), 0..200)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_two_clusters_whatever_happens((count, actions) in schedule(1)) {
        let mut world = World::new(count);
        for action in &actions {
            world.run(action);
            world.check();
        }
        world.settle();
        world.check();
    }

    #[test]
    fn every_cluster_whose_disks_live_is_founded_after_healing((count, actions) in schedule(0)) {
        let mut world = World::new(count);
        actions.iter().for_each(|action| world.run(action));
        world.settle();
        world.check();
        prop_assert!(world.nodes.iter().all(|node| node.started));
    }
}

/// The schedule that breaks "start when all intents are equal": pg-2 is replaced between two peers' looks at it.
#[test]
fn a_disk_replaced_between_two_looks_founds_nothing() {
    let mut world = World::new(3);
    let old = [Action::Poll(0, 1), Action::Poll(0, 2), Action::Poll(1, 0), Action::Poll(1, 2), Action::Poll(2, 0)];
    for action in old.iter().chain(&[Action::Act(0, false), Action::Act(1, false), Action::Replace(1)]) {
        world.run(action);
    }
    for action in [Action::Poll(2, 1), Action::Act(2, false), Action::Poll(1, 2), Action::Act(1, false)] {
        world.run(&action);
    }
    world.settle();
    assert!(world.starts.is_empty(), "{:?}", world.starts);
    let own = Own { record: &world.nodes[0].record, born: false, etcd_data: false, pg_data: false };
    let Decision::Wait(why) = decide(own, &world.nodes[0].seen) else { panic!("not waiting") };
    assert!(why.iter().any(|line| line.contains("pg-2 (10.0.0.12:8443): its disk was replaced")), "{why:?}");
}

/// Everyone started, then pg-3 gets a blank disk: it founds nothing, it may only replace its dead member.
#[test]
fn a_replaced_disk_joins_when_the_others_run() {
    let mut world = World::new(3);
    world.settle();
    assert_eq!(world.starts.len(), 3);
    world.run(&Action::Replace(2));
    world.settle();
    assert_eq!(world.starts.len(), 3);
    let own = Own { record: &world.nodes[2].record, born: false, etcd_data: false, pg_data: false };
    let Decision::Replace(problem) = decide(own, &world.nodes[2].seen) else { panic!("not refused") };
    assert!(problem.what.contains("another disk in slot `pg-3`"), "{problem}");
}

/// etcd directories lost with PostgreSQL data kept, with and without the agent's own records.
#[test]
fn lost_etcd_with_postgresql_data_founds_nothing() {
    let mut world = World::new(3);
    world.settle();
    let fresh = Record::new("pg-1", world.nodes[0].record.voters.clone());
    let lost = Own { record: &world.nodes[0].record, born: true, etcd_data: false, pg_data: true };
    let wiped = Own { record: &fresh, born: false, etcd_data: false, pg_data: true };
    for own in [lost, wiped] {
        match decide(own, &BTreeMap::new()) {
            Decision::Replace(problem) | Decision::Refuse(problem) => assert!(!problem.remedy.is_empty()),
            other => panic!("{other:?}"),
        }
    }
}
