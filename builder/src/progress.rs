//! Progress for people: bars on a terminal, plain `[3/9] unpack … 4.1s` lines everywhere else.
//!
//! Everything here goes to stderr. Standard output belongs to the result: text from [`Ui::say`], or with `--json` the one
//! object of [`Ui::result`] and nothing else.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// How often a long step says that it is alive where there is no bar.
const HEARTBEAT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bars,
    Lines,
    Silent,
}

/// What every command gets: where to tell the person, where to put the result, and the global options.
#[derive(Debug)]
pub struct Ui {
    mode: Mode,
    json: bool,
    cache_dir: PathBuf,
    bars: MultiProgress,
    /// Steps in progress: one begun inside another is shown indented.
    depth: AtomicUsize,
}

impl Ui {
    /// The interface of a command line run: bars if stderr is a terminal. `cache_dir` is the global `--cache`.
    pub fn new(json: bool, cache_dir: PathBuf) -> Self {
        let terminal = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self::with_mode(if terminal { Mode::Bars } else { Mode::Lines }, json, cache_dir)
    }

    /// Says nothing at all; for tests and for callers that tell their own story.
    pub fn silent(cache_dir: PathBuf) -> Self {
        Self::with_mode(Mode::Silent, false, cache_dir)
    }

    fn with_mode(mode: Mode, json: bool, cache_dir: PathBuf) -> Self {
        let target = if mode == Mode::Bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { mode, json, cache_dir, bars: MultiProgress::with_draw_target(target), depth: AtomicUsize::new(0) }
    }

    /// Whether the result is one JSON object on standard output.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Where packages and root trees are cached (global `--cache DIR`).
    pub fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    /// Text of the result, for people; nothing with `--json`.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.json && self.mode != Mode::Silent {
            // A reader that went away (`| head`) is no failure of ours.
            self.bars.suspend(|| drop(writeln!(std::io::stdout(), "{}", text.as_ref())));
        }
    }

    /// The result for machines: one object, one line; nothing without `--json`.
    pub fn result(&self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            let line = serde_json::to_string(value)?;
            self.bars.suspend(|| drop(writeln!(std::io::stdout(), "{line}")));
        }
        Ok(())
    }

    /// A line about what is happening, on stderr.
    pub fn note(&self, text: impl AsRef<str>) {
        if self.mode != Mode::Silent {
            self.bars.suspend(|| drop(writeln!(std::io::stderr(), "{}", text.as_ref())));
        }
    }

    /// Something the reader should know although the command goes on.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.note(format!("warning: {}", text.as_ref()));
    }

    /// A sequence of `total` steps, numbered on the way.
    pub fn steps(&self, total: usize) -> Steps<'_> {
        Steps { ui: self, total, next: AtomicUsize::new(1) }
    }

    /// One step without a number.
    pub fn step(&self, name: impl Into<String>) -> Step<'_> {
        Step::start(self, String::new(), name.into())
    }
}

/// Numbered steps of one flow.
#[derive(Debug)]
pub struct Steps<'ui> {
    ui: &'ui Ui,
    total: usize,
    next: AtomicUsize,
}

impl<'ui> Steps<'ui> {
    /// Begins the next step; it ends with [`Step::done`] or, on an early return, as failed.
    pub fn start(&self, name: impl Into<String>) -> Step<'ui> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Step::start(self.ui, format!("[{n}/{}] ", self.total), name.into())
    }
}

/// A step in progress. Methods take `&self`, so that parallel workers can share it.
#[derive(Debug)]
pub struct Step<'ui> {
    ui: &'ui Ui,
    label: String,
    started: Instant,
    bar: ProgressBar,
    position: AtomicU64,
    total: AtomicU64,
    last_line: Mutex<Instant>,
    finished: bool,
}

impl<'ui> Step<'ui> {
    fn start(ui: &'ui Ui, number: String, name: String) -> Self {
        let depth = ui.depth.fetch_add(1, Ordering::Relaxed);
        let label = "    ".repeat(depth) + &number + &name;
        let bar = ui.bars.add(ProgressBar::new_spinner());
        bar.set_style(style("{spinner} {prefix} … {elapsed} {wide_msg}"));
        bar.set_prefix(label.clone());
        if ui.mode == Mode::Bars {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        let now = Instant::now();
        let (position, total) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { ui, label, started: now, bar, position, total, last_line: Mutex::new(now), finished: false }
    }

    /// Time since the step began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The step is `bytes` long; from now on [`Step::advance`] draws a bar.
    pub fn expect_bytes(&self, bytes: u64) {
        self.expect(bytes, "{spinner} {prefix} … {elapsed} {bar:30} {bytes}/{total_bytes} {wide_msg}");
    }

    /// The step consists of `items` equal parts.
    pub fn expect_items(&self, items: u64) {
        self.expect(items, "{spinner} {prefix} … {elapsed} {bar:30} {pos}/{len} {wide_msg}");
    }

    fn expect(&self, total: u64, template: &str) {
        self.total.store(total, Ordering::Relaxed);
        self.bar.set_length(total);
        self.bar.set_style(style(template));
    }

    /// This much more is done.
    pub fn advance(&self, amount: u64) {
        self.position.fetch_add(amount, Ordering::Relaxed);
        self.bar.inc(amount);
        self.heartbeat("");
    }

    /// What the step is doing right now.
    pub fn detail(&self, text: impl AsRef<str>) {
        self.bar.set_message(text.as_ref().to_owned());
        self.heartbeat(text.as_ref());
    }

    /// Where there is no bar, a line now and then shows that a long step is alive.
    fn heartbeat(&self, detail: &str) {
        if self.ui.mode != Mode::Lines {
            return;
        }
        let Ok(mut last) = self.last_line.try_lock() else { return };
        if last.elapsed() < HEARTBEAT {
            return;
        }
        *last = Instant::now();
        let (position, total) = (self.position.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        let percent = match total {
            0 => String::new(),
            _ => format!(" {}%", position.min(total) * 100 / total),
        };
        let space = if detail.is_empty() { "" } else { " " };
        self.ui.note(format!("{} … {}{percent}{space}{detail}", self.label, seconds(self.elapsed())));
    }

    /// Ends the step well; the time it took.
    pub fn done(self) -> Duration {
        self.done_with("")
    }

    /// Ends the step well with a remark (`233 packages, 41 MB fetched`); the time it took.
    pub fn done_with(mut self, remark: impl AsRef<str>) -> Duration {
        let elapsed = self.elapsed();
        self.finished = true;
        self.bar.finish_and_clear();
        let remark = remark.as_ref();
        let remark = if remark.is_empty() { String::new() } else { format!(" ({remark})") };
        self.ui.note(format!("{} … {}{remark}", self.label, seconds(elapsed)));
        elapsed
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.ui.depth.fetch_sub(1, Ordering::Relaxed);
        if !self.finished {
            self.bar.finish_and_clear();
            self.ui.note(format!("{} … failed after {}", self.label, seconds(self.elapsed())));
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// `4.1s`, `73s`, `2m05s`: as exact as a person needs it.
pub fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    match whole {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..120 => format!("{whole}s"),
        _ => format!("{}m{:02}s", whole / 60, whole % 60),
    }
}

/// `41 MB`: sizes in decimal units, as disks and mirrors state them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        let texts = [40, 4_120, 73_900, 125_000].map(|ms| seconds(Duration::from_millis(ms)));
        assert_eq!(texts, ["0.0s", "4.1s", "73s", "2m05s"]);
        assert_eq!([999, 41_000, 265_400_000, 24_000_000_000].map(size), ["999 B", "41 kB", "265 MB", "24 GB"]);
    }

    #[test]
    fn steps_count_and_can_be_shared_by_workers() {
        let ui = Ui::silent(PathBuf::new());
        let steps = ui.steps(2);
        let step = steps.start("fetch");
        assert_eq!(step.label, "[1/2] fetch");
        step.expect_bytes(100);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| step.advance(25));
            }
        });
        assert_eq!(step.position.load(Ordering::Relaxed), 100);
        assert_eq!(ui.step("one file").label, "    one file");
        step.done();
        assert_eq!(steps.start("unpack").label, "[2/2] unpack");
    }
}
