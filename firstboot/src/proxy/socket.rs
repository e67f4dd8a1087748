//! HAProxy's runtime socket: one connection a command, so that an answer has an end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::servers::{BACKENDS, Command, RW};
use super::state::{self, Running};
use crate::render::haproxy;
use crate::render::preset::Preset;

/// A local socket answers at once; `wait` takes as long as it was told.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a removed server's last connections may take to close after they were shut down.
const CLOSING: Duration = Duration::from_secs(5);
/// Between tries to delete it, where HAProxy has no `wait` (before 3.0).
const PAUSE: Duration = Duration::from_millis(100);

/// Sends a line to the socket at `path` and returns the answer without its blank ends.
pub async fn ask(path: &Path, line: &str) -> Result<String> {
    let asked = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer.trim().to_owned())
    };
    let answer = tokio::time::timeout(ANSWER + CLOSING, asked).await.context("no answer in time").flatten();
    answer.with_context(|| format!("HAProxy, `{line}`"))
}

/// Whether HAProxy behind the socket at `path` has a server that it takes for the primary.
pub async fn leads(path: &Path) -> Result<bool> {
    let running = state::parse(&ask(path, &format!("show servers state {RW}")).await?, &[RW])?;
    Ok(running.iter().any(|server| server.up && !server.maintenance))
}

/// The runtime socket.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
    preset: Preset,
    ca: String,
}

impl Socket {
    /// HAProxy behind `path`; new servers are checked with the times of `preset` and certificates of `ca`.
    pub fn new(path: PathBuf, preset: Preset, ca: &Path) -> Self {
        Self { path, preset, ca: ca.display().to_string() }
    }

    async fn ask(&self, line: &str) -> Result<String> {
        ask(&self.path, line).await
    }

    /// A command that answers nothing, or `said`, when it succeeded.
    async fn tell(&self, line: &str, said: &str) -> Result<()> {
        let answer = self.ask(line).await?;
        anyhow::ensure!(answer == said, "HAProxy, `{line}`: {answer}");
        Ok(())
    }

    /// What HAProxy has now.
    pub async fn running(&self) -> Result<Vec<Running>> {
        state::parse(&self.ask("show servers state").await?, &BACKENDS)
    }

    /// Carries out one command.
    pub async fn apply(&self, command: &Command) -> Result<()> {
        match command {
            Command::Add { backend, slot, address } => {
                let server = haproxy::dynamic_server(slot, *address, &self.preset, &self.ca);
                self.tell(&format!("add server {backend}/{server}"), "New server registered.").await?;
                self.tell(&format!("enable health {backend}/{slot}"), "").await?;
                // A server leaves maintenance "up": in one line with its end, no connection comes between.
                let line = format!("set server {backend}/{slot} state ready; set server {backend}/{slot} health down");
                self.tell(&line, "").await
            }
            Command::Remove { backend, slot } => self.remove(backend, slot).await,
            Command::Drain(slot) => self.tell(&format!("set server ro/{slot} state drain"), "").await,
            Command::Ready { backend, slot } => {
                self.tell(&format!("set server {backend}/{slot} state ready"), "").await
            }
        }
    }

    async fn remove(&self, backend: &str, slot: &str) -> Result<()> {
        self.tell(&format!("set server {backend}/{slot} state maint"), "").await?;
        self.tell(&format!("shutdown sessions server {backend}/{slot}"), "").await?;
        // Unknown before 3.0, where asking again and again does the same.
        let _ = self.ask(&format!("wait {}s srv-removable {backend}/{slot}", CLOSING.as_secs())).await?;
        let start = std::time::Instant::now();
        loop {
            let answer = self.ask(&format!("del server {backend}/{slot}")).await?;
            match answer.as_str() {
                "Server deleted." | "No such server." => return Ok(()),
                _ if start.elapsed() < CLOSING => tokio::time::sleep(PAUSE).await,
                _ => bail!("HAProxy does not delete {backend}/{slot}: {answer}"),
            }
        }
    }

    /// `leader` leads and nobody else does: its server is up, all others are down, their sessions end. Returns what was
    /// changed. The checks go on and confirm or correct it.
    pub async fn lead(&self, leader: &str) -> Result<Vec<String>> {
        let mut changed = Vec::new();
        let running = self.running().await?;
        let leads = running.iter().filter(|server| server.backend == RW);
        for server in leads {
            let name = &server.name;
            if name == leader && !server.up && !server.maintenance {
                self.tell(&format!("set server {RW}/{name} health up"), "").await?;
                changed.push(format!("{name} up"));
            } else if name != leader && server.up {
                let line = format!("set server {RW}/{name} health down; shutdown sessions server {RW}/{name}");
                self.tell(&line, "").await?;
                changed.push(format!("{name} down"));
            }
        }
        Ok(changed)
    }
}
