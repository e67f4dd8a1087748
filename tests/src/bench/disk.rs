//! Disks: how large, how fast baked (beside mkosi), and what an emulated machine's boot spends its time on.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use pgkiln::bake::{self, Baked, Options};
use pgkiln::cache::Cache;
use pgkiln::cli::default_cache_dir;
use pgkiln::image::Overrides;
use pgkiln::lock::Recipe;
use pgkiln::lock::relock::fetch_or_relock;
use pgkiln::outputs::Format;
use pgkiln::progress::Ui;
use serde::Serialize;

use super::mkosi::Mkosi;
use crate::disk::{seed, value};
use crate::plot::{Bar, median};
use crate::qemu::{self, Machine};
use crate::workspace;

/// From power to a node that is good, emulated beside other work.
const LIMIT: Duration = Duration::from_secs(900);

/// Room for slot B and `/var`.
const BYTES: u64 = 6 << 30;

/// What firmware says when it has found the boot loader.
const HANDED_OVER: &str = "BdsDxe: starting";

/// Says when what was reached, on the kernel's clock, and powers off. What was before that clock began is measured by the host's,
/// to a fifth of a second: under QEMU's emulation systemd-boot leaves no times for systemd.
const PROBE: &str = "\
until firstboot verdict; do sleep 0.2; done; \
echo probe-good=$(cut -d\" \" -f1 /proc/uptime); \
echo probe-systemd=$(systemctl show -P UserspaceTimestampMonotonic); \
echo probe-agent=$(systemctl show -P ExecMainStartTimestampMonotonic firstboot); \
echo probe-init=$(dmesg | grep -m1 \"Run /init\" | tr -d \"[]\" | xargs); \
echo probe-end=yes; \
systemctl poweroff";

/// A measurement and what it must not exceed.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    bar: Bar,
    limit: Option<f64>,
}

impl Row {
    fn new(label: &str, limit: Option<f64>, runs: Vec<f64>) -> Self {
        Self { bar: Bar { label: label.to_owned(), runs }, limit }
    }
}

/// Everything [`disk`] measured.
#[derive(Debug)]
pub struct Disk {
    /// MB.
    sizes: Vec<Row>,
    /// Seconds.
    bakes: Vec<Row>,
    /// Seconds, stage after stage.
    boot: Vec<Row>,
    /// Our bake's time as a part of mkosi's, and what it may be.
    ratio: Option<f64>,
    /// How busy the machine was, before and after.
    load: [String; 2],
}

/// Measures sizes once, times `runs` times: ours and, with `peer`, mkosi's in turn. `agent`: instead of building one.
pub fn disk(runs: usize, peer: bool, agent: Option<PathBuf>) -> anyhow::Result<Disk> {
    let before = load()?;
    let bench = Bench::new(agent)?;
    let (sizes, raw) = bench.sizes()?;
    let (bakes, ratio) = bench.bakes(runs, peer)?;
    let boots = (0..runs).map(|_| bench.boot(&raw)).collect::<anyhow::Result<Vec<Boot>>>()?;
    let stage = |label: &str, of: fn(&Boot) -> f64| Row::new(label, None, boots.iter().map(of).collect());
    let boot = vec![
        stage("firmware", |boot| boot.firmware),
        stage("boot loader", |boot| boot.loader),
        stage("kernel", |boot| boot.kernel),
        stage("initrd", |boot| boot.initrd),
        stage("systemd until the agent starts", |boot| boot.systemd),
        stage("agent until the node is good", |boot| boot.agent),
        stage("hand-over by the firmware to a good node", |boot| boot.total - boot.firmware),
    ];
    Ok(Disk { sizes, bakes, boot, ratio, load: [before, load()?] })
}

fn load() -> anyhow::Result<String> {
    let text = fs_err::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// Bakes of `debian-13` into a scratch directory.
struct Bench {
    cache: Cache,
    ui: Ui,
    work: tempfile::TempDir,
    /// Given, or what the first bake leaves.
    agent: Option<PathBuf>,
}

impl Bench {
    fn new(agent: Option<PathBuf>) -> anyhow::Result<Self> {
        let cache = Cache::open(std::env::var_os("PGKILN_TEST_CACHE").map_or_else(default_cache_dir, PathBuf::from))?;
        let work = cache.work_dir("bench-")?;
        Ok(Self { ui: Ui::silent(cache.root().to_owned()), cache, work, agent })
    }

    fn bake(&self, out: &str, formats: &[Format], change: impl FnOnce(&mut Options)) -> anyhow::Result<Baked> {
        let mut options = Options {
            agent: self.agent.clone(),
            relock: true,
            formats: Some(formats.to_vec()),
            ..Options::new(workspace::image("debian-13"), self.work.path().join(out))
        };
        change(&mut options);
        bake::bake(&options, &self.ui)
    }

    /// Sizes, and the disk for virtual machines.
    fn sizes(&self) -> anyhow::Result<(Vec<Row>, PathBuf)> {
        let cloud = self.bake("cloud", &[Format::Raw, Format::Qcow2, Format::Pxe, Format::Update], |_| ())?;
        let metal = self.bake("metal", &[Format::Raw], |options| {
            options.overrides = Overrides { variant: Some("metal".to_owned()), ..Overrides::default() };
        })?;
        let row = |label: &str, limit: Option<f64>, baked: &Baked, ending: &str| -> anyhow::Result<Row> {
            let meta = fs_err::metadata(output(baked, ending)?)?;
            // What a disk uses is what is not a hole.
            let bytes = if ending.ends_with(".raw") { meta.blocks() * 512 } else { meta.len() };
            Ok(Row::new(label, limit, vec![bytes as f64 / 1e6]))
        };
        let rows = vec![
            row("disk, used", Some(330.0), &cloud, "debian-13.raw")?,
            row("disk for metal, used", Some(400.0), &metal, "debian-13-metal.raw")?,
            row("qcow2, compressed", Some(320.0), &cloud, ".qcow2")?,
            row("initrd", Some(16.0), &cloud, ".initrd")?,
            row("unified kernel image", None, &cloud, ".efi")?,
        ];
        Ok((rows, output(&cloud, "debian-13.raw")?.to_owned()))
    }

    fn bakes(&self, runs: usize, peer: bool) -> anyhow::Result<(Vec<Row>, Option<f64>)> {
        let recipe = Recipe::load(&workspace::image("debian-13"))?.locked()?;
        let recipe = fetch_or_relock(recipe, &self.cache, &|_| ())?.recipe;
        let peer = peer.then(|| Mkosi::new(&recipe, &self.cache, &self.work.path().join("mkosi"))).transpose()?;
        // With something behind its end, which makes it another one.
        let built = format!("agent/{}-unknown-linux-gnu/agent/firstboot", std::env::consts::ARCH);
        let built = fs_err::read(self.agent.clone().unwrap_or_else(|| self.cache.root().join(built)))?;
        let agent = self.work.path().join("agent");
        let (mut fresh, mut again, mut theirs, mut used) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for run in 0..runs {
            for (times, from_nothing) in [(&mut fresh, true), (&mut again, false)] {
                fs_err::write(&agent, [&built[..], format!("{run} {from_nothing}").as_bytes()].concat())?;
                let baked = self.bake("timed", &[Format::Raw], |options| {
                    (options.fresh, options.agent) = (from_nothing, Some(agent.clone()));
                })?;
                times.push(baked.elapsed.as_secs_f64());
            }
            if let Some(peer) = &peer {
                let (elapsed, bytes) = peer.make()?;
                theirs.push(elapsed.as_secs_f64());
                used.push(bytes as f64 / 1e6);
            }
        }
        let ratio = peer.is_some().then(|| median(&fresh) / median(&theirs));
        let mut rows = vec![
            Row::new("bake of a disk, everything but packages new", None, fresh),
            Row::new("bake of a disk, changed agent", Some(6.0), again),
        ];
        if peer.is_some() {
            rows.push(Row::new(&format!("mkosi, same packages ({:.0} MB used)", median(&used)), None, theirs));
        }
        Ok((rows, ratio))
    }

    /// Boots a new copy of a disk once, as a cluster of one.
    fn boot(&self, raw: &Path) -> anyhow::Result<Boot> {
        let work = self.cache.work_dir("bench-")?;
        let disk = work.path().join("disk.raw");
        qemu::disk(raw, &disk, BYTES)?;
        let machine = Machine::new(&work.path().join("machine"), &disk)?.seed(&seed(work.path())?).probe(PROBE);
        let started = Instant::now();
        let mut booted = machine.boot()?;
        booted.wait_for(HANDED_OVER, LIMIT)?;
        let firmware = started.elapsed().as_secs_f64();
        booted.wait_for("probe-good=", LIMIT)?;
        let total = started.elapsed().as_secs_f64();
        stages(&booted.wait_for("probe-end=", LIMIT)?, firmware, total)
    }
}

fn output<'a>(baked: &'a Baked, ending: &str) -> anyhow::Result<&'a Path> {
    let found = baked.outputs.iter().find(|path| path.to_string_lossy().ends_with(ending));
    Ok(found.with_context(|| format!("no output *{ending}"))?)
}

/// One boot, in seconds.
#[derive(Debug)]
struct Boot {
    firmware: f64,
    loader: f64,
    kernel: f64,
    initrd: f64,
    systemd: f64,
    agent: f64,
    /// All of these.
    total: f64,
}

/// What the probe said, as stages that follow one another.
fn stages(said: &str, firmware: f64, total: f64) -> anyhow::Result<Boot> {
    let number = |name: &str| -> anyhow::Result<f64> {
        let word = value(said, name).split_whitespace().next().and_then(|word| word.parse().ok());
        word.with_context(|| format!("probe-{name} in\n{said}"))
    };
    let (init, good) = (number("init")?, number("good")?);
    let (systemd, agent) = (number("systemd")? / 1e6, number("agent")? / 1e6);
    Ok(Boot {
        firmware,
        loader: total - good - firmware,
        kernel: init,
        initrd: systemd - init,
        systemd: agent - systemd,
        agent: good - agent,
        total,
    })
}

impl Disk {
    /// The tables; numbers and charts go to `target/bench/disk-{size,bake,boot}.{json,svg}`.
    pub fn publish(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        for (name, title, unit, rows) in [
            ("disk-size", "Sizes", "MB", &self.sizes),
            ("disk-bake", "Bakes", "s", &self.bakes),
            ("disk-boot", "Boot of an emulated machine", "s", &self.boot),
        ] {
            let bars: Vec<Bar> = rows.iter().map(|row| row.bar.clone()).collect();
            super::draw_bars(name, title, unit, &bars, &serde_json::to_value(rows)?)?;
            text += &table(title, unit, rows);
        }
        if let Some(ratio) = self.ratio {
            let _ = writeln!(text, "bake / mkosi: {ratio:.2} (limit 0.45)");
        }
        let _ = writeln!(text, "load of this machine: {} before, {} after", self.load[0], self.load[1]);
        Ok(text)
    }
}

fn table(title: &str, unit: &str, rows: &[Row]) -> String {
    let mut text = format!("{:<46} {:>8} {:>8}  runs\n", format!("{title} ({unit})"), "median", "limit");
    for Row { bar, limit } in rows {
        let runs: Vec<String> = bar.runs.iter().map(|run| format!("{run:.1}")).collect();
        let limit = limit.map_or_else(String::new, |limit| format!("{limit:.0}"));
        let _ = writeln!(text, "{:<46} {:>8.1} {limit:>8}  {}", bar.label, median(&bar.runs), runs.join(" "));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_up_to_the_whole() {
        let said = "probe-good=40.25\nprobe-systemd=9500000\nprobe-agent=21000000\n\
                    probe-init=5.125000 Run /init as init process\n";
        let boot = stages(said, 6.5, 49.25).unwrap();
        let Boot { firmware, loader, kernel, initrd, systemd, agent, total } = boot;
        assert_eq!([firmware, loader, kernel, initrd, systemd, agent], [6.5, 2.5, 5.125, 4.375, 11.5, 19.25]);
        assert_eq!(total, firmware + loader + kernel + initrd + systemd + agent);
        assert!(stages("probe-good=1", 1.0, 2.0).unwrap_err().to_string().contains("probe-init"));
    }

    #[test]
    fn a_limit_stands_beside_what_was_measured() {
        let rows = [Row::new("initrd", Some(16.0), vec![1.75]), Row::new("other", None, vec![1.0, 3.0])];
        let text = table("Sizes", "MB", &rows);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["initrd", "1.8", "16", "1.8"]);
        assert_eq!(lines[2], ["other", "2.0", "1.0", "3.0"]);
    }
}
