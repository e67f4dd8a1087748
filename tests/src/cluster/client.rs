//! Clients outside the cluster: what an application sees.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Context;
use pgkiln::demo::client::{Login, Session};
use pgkiln::demo::writer::{self, Log, Writer};
use tokio::sync::oneshot;

use super::TestCluster;

/// Runs a future to its end on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    Ok(runtime.block_on(future))
}

impl TestCluster {
    /// A login of the application's role, verifying the cluster's certificate.
    pub fn login(&self) -> anyhow::Result<Login> {
        let password = self.cluster.secret("orders_app")?;
        Login::new(&self.cluster.ca_pem_path(), &self.cluster.definition.name, "orders", "orders_app", password)
    }

    /// The host port that leads to `port` of `slot`.
    pub fn port(&self, slot: &str, port: u16) -> anyhow::Result<u16> {
        self.lab.host_port(slot, port)
    }

    /// Runs `work` in a session of the application through `port` (5000: leader, 5001: replicas) of `slot`'s HAProxy.
    pub fn session<T>(
        &self,
        slot: &str,
        port: u16,
        work: impl AsyncFnOnce(&Session) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let (login, port) = (self.login()?, self.port(slot, port)?);
        block_on(async {
            let session = login.connect(port).await?;
            work(&session).await
        })?
    }

    /// One value of one row, asked by the application through `port` of `slot`'s HAProxy.
    pub fn ask(&self, slot: &str, port: u16, sql: &str) -> anyhow::Result<String> {
        self.session(slot, port, async |session| {
            let row = session.client.query_one(sql, &[]).await?;
            Ok(row.try_get::<_, String>(0)?)
        })
    }

    /// Starts an application that writes without pause through the HAProxies of `slots`.
    pub fn write_through(&self, slots: &[String]) -> anyhow::Result<Background> {
        let ports = slots.iter().map(|slot| self.port(slot, 5000)).collect::<anyhow::Result<Vec<_>>>()?;
        let first = slots.first().context("no node to write through")?;
        // Numbers begin at 1 again: rows of an earlier writer would answer for this one.
        self.session(first, 5000, async |session| {
            session.client.batch_execute("DROP TABLE IF EXISTS demo_rows").await?;
            writer::create_table(session).await
        })?;
        Background::start(self.login()?, ports)
    }

    /// How many of the acknowledged rows are missing now.
    pub fn lost(&self, through: &str, log: &Log) -> anyhow::Result<usize> {
        // Right after an outage a connection may still meet a proxy that has not noticed.
        self.wait_for("reading the rows back", Duration::from_secs(20), || {
            self.session(through, 5000, async |session| writer::lost(session, &log.acknowledged).await)
        })
    }
}

/// A writer on a thread of its own.
pub struct Background {
    writer: Writer,
    thread: std::thread::JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Background {
    fn start(login: Login, ports: Vec<u16>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        let writer = runtime.block_on(async { Writer::start(login, ports) });
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || drop(runtime.block_on(stopped)));
        Ok(Self { writer, thread, stop })
    }

    /// Waits until `rows` rows are acknowledged.
    pub fn wait_rows(&self, rows: usize, limit: Duration) -> anyhow::Result<()> {
        self.wait(limit, || (self.writer.acknowledged() >= rows).then_some(()))
            .with_context(|| format!("{} of {rows} rows acknowledged", self.writer.acknowledged()))
    }

    /// Seconds from `moment` to the first write that was sent and acknowledged after it.
    pub fn wait_write_after(&self, moment: Instant, limit: Duration) -> anyhow::Result<f64> {
        let answered =
            self.wait(limit, || self.writer.acknowledged_after(moment)).context("no write was acknowledged")?;
        Ok(answered.duration_since(moment).as_secs_f64())
    }

    fn wait<T>(&self, limit: Duration, mut poll: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = poll() {
                return Ok(value);
            }
            anyhow::ensure!(start.elapsed() < limit, "not within {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the writer.
    pub fn stop(self) -> Log {
        let log = self.writer.stop();
        let _ = self.stop.send(());
        let _ = self.thread.join();
        log
    }
}
