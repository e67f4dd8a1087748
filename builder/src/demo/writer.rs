//! An application that never stops writing: numbered rows, one after the other, each acknowledged before the next.
//!
//! It does what a careful application does. A write without an answer is of unknown outcome, so the same row is sent again
//! (`ON CONFLICT DO NOTHING`) over a new connection, through the next address. Every acknowledged number is kept, so that
//! afterwards each of them can be looked for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinHandle;

use super::client::{Login, Session};

/// How long a write may stay unanswered before the connection is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before the next attempt to connect, so that a refusing port is no busy loop.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// What the writer has done so far.
#[derive(Debug, Default, Clone)]
pub struct Log {
    /// Numbers of the acknowledged rows, ascending.
    pub acknowledged: Vec<i64>,
    /// When the last acknowledged write was sent, and when its answer came.
    pub last: Option<(Instant, Instant)>,
    /// The longest time between two acknowledged writes.
    pub longest_pause: Duration,
    /// When the connection in use was lost for the first time after it had worked.
    pub first_error: Option<(Instant, String)>,
}

/// A running writer; it stops when dropped.
pub struct Writer {
    log: Arc<Mutex<Log>>,
    task: JoinHandle<()>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The table the rows go to; created by its writer, an ordinary role.
pub async fn create_table(session: &Session) -> anyhow::Result<()> {
    let table = "CREATE TABLE IF NOT EXISTS demo_rows (n bigint PRIMARY KEY, written_at timestamptz DEFAULT now())";
    session.client.batch_execute(table).await.context("creating the demo's table")
}

impl Writer {
    /// Starts writing through `ports`, the first one first.
    pub fn start(login: Login, ports: Vec<u16>) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let task = tokio::spawn(write_forever(login, ports, Arc::clone(&log)));
        Self { log, task }
    }

    /// What it has done so far.
    pub fn log(&self) -> Log {
        lock(&self.log).clone()
    }

    /// How many rows are acknowledged.
    pub fn acknowledged(&self) -> usize {
        lock(&self.log).acknowledged.len()
    }

    /// When the first write sent after `moment` was acknowledged.
    pub fn acknowledged_after(&self, moment: Instant) -> Option<Instant> {
        lock(&self.log).last.filter(|(sent, _)| *sent > moment).map(|(_, answered)| answered)
    }

    /// Ends the writer.
    pub fn stop(self) -> Log {
        self.task.abort();
        self.log()
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_forever(login: Login, ports: Vec<u16>, log: Arc<Mutex<Log>>) {
    let mut next = 1;
    for port in ports.iter().cycle() {
        let Ok(session) = login.connect(*port).await else {
            tokio::time::sleep(RECONNECT_PAUSE).await;
            continue;
        };
        let error = write_until_error(&session, &mut next, &log).await;
        tracing::debug!(port, "writer: {error:#}");
        lock(&log).first_error.get_or_insert_with(|| (Instant::now(), format!("{error:#}")));
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn write_until_error(session: &Session, next: &mut i64, log: &Mutex<Log>) -> anyhow::Error {
    let insert = "INSERT INTO demo_rows (n) VALUES ($1) ON CONFLICT DO NOTHING";
    let statement = match tokio::time::timeout(WRITE_TIMEOUT, session.client.prepare(insert)).await {
        Ok(Ok(statement)) => statement,
        Ok(Err(error)) => return error.into(),
        Err(late) => return late.into(),
    };
    loop {
        let sent = Instant::now();
        match tokio::time::timeout(WRITE_TIMEOUT, session.client.execute(&statement, &[&*next])).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return error.into(),
            Err(late) => return late.into(),
        }
        let mut log = lock(log);
        let now = Instant::now();
        if let Some((_, before)) = log.last {
            log.longest_pause = log.longest_pause.max(now - before);
        }
        log.acknowledged.push(*next);
        log.last = Some((sent, now));
        *next += 1;
    }
}

/// How many of the acknowledged rows are not in the table.
pub async fn lost(session: &Session, acknowledged: &[i64]) -> anyhow::Result<usize> {
    let rows = session.client.query("SELECT n FROM demo_rows", &[]).await.context("reading the rows back")?;
    let present: std::collections::HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    Ok(acknowledged.iter().filter(|number| !present.contains(number)).count())
}
