//! The main job, end to end and for real: bake, boot three nodes, write through the virtual IP, kill the whole node that
//! leads and holds that address, count what was lost.
//!
//! ```text
//! doctor -> bake -> cluster -> boot -> write -> kill the leader, write on, read back -> killed node returns
//! ```
//!
//! Nothing is simulated: the nodes boot the image that was baked a moment before, the writer is an ordinary role over
//! `sslmode=verify-full`, and what dies is a node with everything that runs on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::bake;
use crate::cluster::SeedFormat;
use crate::doctor::{self, Install, Purpose};
use crate::lab;
use crate::outputs::Format;
use crate::progress::{Ui, size};

pub mod client;
mod nodes;
mod place;
mod scenario;
mod story;
mod timeline;
pub mod writer;

use place::Place;

/// doctor, bake, cluster, boot, write, fail over, return.
const STEPS: usize = 7;
/// HAProxy's port for clients that write.
const READ_WRITE: u16 = 5000;

/// How to run the demo.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the image to bake.
    pub image: PathBuf,
    /// Leave the lab up at the end.
    pub keep: bool,
    /// Whether missing packages may be installed.
    pub install: Install,
}

/// What the demo found; these fields are read by programs.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Name of the image.
    pub image: String,
    /// SHA-256 of its root image.
    pub image_sha256: String,
    /// Whether the archive had lost a locked package, so that newer ones were taken.
    pub relocked: bool,
    /// Seconds the bake took.
    pub bake_seconds: f64,
    /// Seconds from the first node's start to a row read through the virtual IP with two replicas streaming.
    pub ready_seconds: f64,
    /// Members of the cluster: the leader and its streaming replicas.
    pub members: usize,
    /// Slot that leads at the end.
    pub leader: String,
    /// Slot that holds the virtual IP at the end.
    pub vip_owner: String,
    /// What `pg_stat_replication` says an acknowledged write is worth.
    pub durability: &'static str,
    /// Rows acknowledged to the writer.
    pub acked_writes: usize,
    /// Acknowledged rows that were not there afterwards.
    pub lost_writes: usize,
    /// Seconds from killing the node that leads and holds the virtual IP to the next write acknowledged through it.
    pub failover_seconds: f64,
    /// Label of the first full backup, which the cluster makes by itself.
    pub backup: String,
    /// How to connect while the lab is up.
    pub connect: String,
}

/// Runs the demo; whatever happens, only `keep` leaves something running.
pub fn run(options: &Options, ui: &Ui) -> anyhow::Result<Outcome> {
    let steps = ui.steps(STEPS);

    let step = steps.start("doctor");
    doctor::ensure(&[Purpose::Bake, Purpose::Lab], options.install, ui).context("checking this host")?;
    step.done();

    let step = steps.start("bake");
    let baked = bake::bake(&bake_options(&options.image, ui), ui).context("baking the image")?;
    if baked.relocked {
        ui.warn("the archive no longer has every locked package; newer ones were taken, for this run only");
    }
    step.done_with(format!("root image {}", size(baked.root_bytes)));

    // Only now: an interrupted bake cleans up after itself, but would leave this directory.
    let step = steps.start("cluster");
    let place = Place::create()?;
    let cluster = place.cluster()?;
    let slots: Vec<String> = cluster.definition.nodes.iter().map(|node| node.slot.clone()).collect();
    let seeds = cluster.write_seeds(&slots, SeedFormat::Directory, &place.seeds(), true)?;
    step.done_with("certificate authorities, passwords, a seed per node");

    let mut lab = lab::Options::new(place.lab_name(), &baked.root, cluster.definition.subnet);
    lab.state_dir = place.lab_state();
    for (node, seed) in cluster.definition.nodes.iter().zip(seeds) {
        lab = lab.node(&node.slot, node.address, Some(seed));
    }
    if let Some(vip) = &cluster.definition.vip {
        lab = lab.publish(vip.address.addr().to_string(), READ_WRITE, None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    let (lab, told) = match runtime.block_on(scenario::run(lab, &cluster, &steps)) {
        Ok(done) => done,
        Err(failed) => {
            if let Some(lab) = failed.lab.filter(|_| options.keep) {
                lab.detach()?;
                let name = place.lab_name().to_owned();
                let files = place.keep();
                ui.warn(format!(
                    "the lab is kept as it is: `pgkiln lab status {name}`, its files are in {}",
                    files.display()
                ));
            }
            return Err(failed.error);
        }
    };

    let outcome = Outcome {
        image: options.image.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        image_sha256: baked.root_sha256.to_string(),
        relocked: baked.relocked,
        bake_seconds: rounded(baked.elapsed),
        ready_seconds: rounded(told.ready),
        members: told.members,
        leader: told.leader.clone(),
        vip_owner: told.vip_owner.clone(),
        durability: told.durability,
        acked_writes: told.acknowledged,
        lost_writes: told.lost,
        failover_seconds: rounded(told.failover),
        backup: told.backup.clone(),
        connect: told.connect.clone(),
    };
    match ui.json() {
        // Standard output is for the object alone; the story is still worth a log.
        true => ui.note(story::of(&outcome, &told)),
        false => ui.say(story::of(&outcome, &told)),
    }
    if options.keep {
        lab.detach()?;
        ui.say(story::look_around(&place.keep(), &told));
    } else {
        let step = ui.step("taking the lab down");
        lab.down(false)?;
        step.done();
        ui.say("Everything is gone again; `cargo demo --keep` leaves the cluster up, to connect and look around.");
    }
    anyhow::ensure!(told.lost == 0, story::lost(&told));
    Ok(outcome)
}

fn bake_options(image: &Path, ui: &Ui) -> bake::Options {
    let out = ui.cache_dir().join("demo").join(image.file_name().unwrap_or_default());
    bake::Options { formats: Some(vec![Format::Tree]), relock: true, ..bake::Options::new(image, out) }
}

/// Seconds with as many digits as were measured.
fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
