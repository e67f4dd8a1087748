//! A client that never stops writing, and never writes a number twice: a row then stands for one write, and an unknown
//! outcome stays unknown. (The demo's writer sends again, as an application does; here that would let one write's answer
//! hide another's loss.)
//!
//! A write that is not answered in time is left behind with its connection, which is still listened to: a primary that
//! nobody should listen to any more shows itself by late answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use pgkiln::demo::client::{Login, Session};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_postgres::Statement;
use tokio_postgres::error::SqlState;

use super::history::{Accepted, Attempt, History, Result};

/// How long an answer is listened for after the client went on.
const LATE: Duration = Duration::from_secs(60);
/// From an open connection to a prepared statement.
const PREPARE: Duration = Duration::from_secs(2);
/// Before the next attempt to connect, so that a refusing port is no busy loop.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Who writes where.
#[derive(Debug, Clone)]
pub struct Client {
    /// Part of every row's key.
    pub name: String,
    /// Ports on 127.0.0.1, tried in turn.
    pub ports: Vec<u16>,
    /// Between two writes.
    pub pace: Duration,
    /// The same while the server refuses to write.
    pub refused_pace: Duration,
    /// When it gives a write up and connects anew.
    pub patience: Duration,
    /// Stays connected to a server that refuses to write.
    pub stays: bool,
}

impl Client {
    /// An application: through proxies, on to the next one when a write fails.
    pub fn application(name: impl Into<String>, ports: Vec<u16>) -> Self {
        let (pace, patience) = (Duration::from_millis(10), Duration::from_secs(2));
        Self { name: name.into(), ports, pace, refused_pace: pace, patience, stays: false }
    }

    /// A probe: at one node's PostgreSQL, whatever it is. Let in, it writes quickly: what an old primary acknowledges too
    /// late happens within milliseconds.
    pub fn probe(name: impl Into<String>, port: u16) -> Self {
        let (pace, refused_pace, patience) =
            (Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1));
        Self { name: name.into(), ports: vec![port], pace, refused_pace, patience, stays: true }
    }
}

/// Clients at work on a thread of their own.
pub struct Observers {
    origin: Instant,
    logs: Vec<Arc<Log>>,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

/// What all tasks of a client share.
struct Log {
    origin: Instant,
    slots: BTreeMap<IpAddr, Arc<str>>,
    history: Mutex<History>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a write that is about to be sent; its number.
    fn sent(&self) -> i64 {
        let mut history = self.lock();
        let number = history.attempts.len() as i64 + 1;
        history.attempts.push(Attempt { number, sent: self.origin.elapsed(), result: Result::Unknown });
        number
    }

    fn ended(&self, number: i64, result: Result) {
        let index = usize::try_from(number - 1).unwrap_or_default();
        if let Some(attempt) = self.lock().attempts.get_mut(index) {
            attempt.result = result;
        }
    }
}

impl Observers {
    /// Starts `clients`; addresses of servers are translated to `slots`.
    pub fn start(login: &Login, clients: Vec<Client>, slots: &BTreeMap<IpAddr, Arc<str>>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        let origin = Instant::now();
        let mut logs = Vec::new();
        for client in clients {
            let history = Mutex::new(History::of(&client.name));
            let log = Arc::new(Log { origin, slots: slots.clone(), history });
            logs.push(Arc::clone(&log));
            runtime.spawn(write_forever(login.clone(), client, log));
        }
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || drop(runtime.block_on(stopped)));
        Ok(Self { origin, logs, stop, thread })
    }

    /// A moment as histories name it.
    pub fn time(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.origin)
    }

    /// Asks the history so far of the client that is `role`.
    pub fn ask<T>(&self, role: &str, question: impl FnOnce(&History) -> T) -> anyhow::Result<T> {
        let log = self.logs.iter().find(|log| log.lock().role() == role);
        Ok(question(&log.with_context(|| format!("no client `{role}`"))?.lock()))
    }

    /// Whoever acknowledged the last write of all.
    pub fn last(&self) -> Option<Accepted> {
        let last = |log: &Arc<Log>| log.lock().accepted().last().map(|(_, accepted)| accepted.clone());
        self.logs.iter().filter_map(last).max_by_key(|accepted| accepted.answered)
    }

    /// Ends all clients.
    pub fn stop(self) -> Vec<History> {
        let _ = self.stop.send(());
        let _ = self.thread.join();
        self.logs.iter().map(|log| log.lock().clone()).collect()
    }
}

/// An open connection with its statement.
struct Line {
    session: Session,
    insert: Statement,
}

impl Line {
    async fn open(login: &Login, port: u16) -> anyhow::Result<Self> {
        let session = login.connect(port).await?;
        let sql = "INSERT INTO chaos_rows (writer, n) VALUES ($1, $2) RETURNING host(inet_server_addr()), \
                   substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
        let insert = timeout(PREPARE, session.client.prepare(sql)).await??;
        Ok(Self { session, insert })
    }

    /// One write; how long to wait before the next one, or `None` if the connection is of no more use.
    async fn write(&self, log: &Log, number: i64, client: &Client) -> Option<Duration> {
        let writer = log.lock().writer.clone();
        let result = self.session.client.query_one(&self.insert, &[&writer, &number]).await;
        let answered = log.origin.elapsed();
        match result {
            Ok(row) => {
                let (address, timeline): (String, String) = (row.get(0), row.get(1));
                let slot = address.parse().ok().and_then(|ip: IpAddr| log.slots.get(&ip).cloned());
                let slot = slot.unwrap_or_else(|| address.into());
                let timeline = u32::from_str_radix(&timeline, 16).unwrap_or_default();
                log.ended(number, Result::Accepted(Accepted { slot, timeline, answered }));
                Some(client.pace)
            }
            Err(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                log.ended(number, Result::Refused);
                client.stays.then_some(client.refused_pace)
            }
            Err(_) => None,
        }
    }
}

async fn write_forever(login: Login, client: Client, log: Arc<Log>) {
    let client = Arc::new(client);
    for port in client.ports.iter().cycle() {
        if let Ok(line) = Line::open(&login, *port).await {
            write_until_error(line, &client, &log).await;
        }
        sleep(RECONNECT_PAUSE).await;
    }
}

async fn write_until_error(mut line: Line, client: &Arc<Client>, log: &Arc<Log>) {
    loop {
        let (number, log, client) = (log.sent(), Arc::clone(log), Arc::clone(client));
        let patience = client.patience;
        let write = tokio::spawn(async move {
            let pause = timeout(LATE, line.write(&log, number, &client)).await.ok().flatten();
            pause.map(|pause| (line, pause))
        });
        // A write that takes too long goes on by itself.
        let Ok(Ok(Some((back, pause)))) = timeout(patience, write).await else { return };
        line = back;
        sleep(pause).await;
    }
}
