//! The virtual IP on this node: Keepalived is started once nobody but a peer's Keepalived answers for the address, and
//! then looked after.
//!
//! ```text
//! probe ── free, or held by a peer ──> start Keepalived ──> attend: here or not, still uncontested
//!   └───── answered by anyone else ──> say so and probe again, never claim
//! ```
//!
//! Keepalived itself cannot ask before it claims: while it runs, the attendant probes now and then, and takes a candidate
//! out of the race when a stranger has the address, or for as long as a peer's HAProxy leads to a primary and this one's
//! does not.

mod aside;
mod check;
mod probe;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use fs_err as fs;

use aside::Route;
pub use check::check;
use probe::{Finding, Peer};

use crate::facts::{self, Link};
use crate::plan::Desired;
use crate::problem::Problem;
use crate::proxy::socket;
use crate::render::keepalived;
use crate::spec::{NodeSpec, Password, Secret};
use crate::status::{Board, VipStatus};
use crate::step::{File, Host};
use crate::tool::{self, Tool};

/// Between looks at whether the address is here.
const LOOK: Duration = Duration::from_secs(1);
/// Between probes of an address that somebody else has.
const AGAIN: Duration = Duration::from_secs(3);
/// Looks between probes while Keepalived runs.
const LOOKS_PER_PROBE: u32 = 30;
/// Looks without Keepalived until it is called a problem: systemd starts it again within two.
const MISSED: u32 = 5;
/// The same until an address that a killed Keepalived left behind is taken away: its unit does that, if it can.
const LEFT_BEHIND: u32 = 2;
/// Where Keepalived of this image writes its process id.
const PID_FILE: &str = "/run/keepalived.pid";
const CONFIG: &str = "/run/pgkiln/keepalived/keepalived.conf";
const ENVIRONMENT: &str = "/run/pgkiln/keepalived/vip.env";

/// Looks after the virtual IP of one node.
#[derive(Debug)]
pub struct Keeper {
    address: IpAddr,
    unit: String,
    spec: NodeSpec,
    secret: Secret,
    peers: Vec<Peer>,
    host: Host,
}

impl Keeper {
    /// `None` without a virtual IP.
    pub fn new(host: &Host, desired: &Desired, unit: &str) -> Result<Option<Self>> {
        let spec = desired.spec();
        let Some(vip) = spec.lan_vip() else { return Ok(None) };
        let mut peers = Vec::new();
        if host.layout.is_live() {
            let tls = crate::pki::client(&host.layout.pki(), "agent", Some(spec.cluster.uuid))?;
            for (slot, ip) in keepalived::candidates(spec).into_iter().filter(|(slot, _)| *slot != spec.slot) {
                peers.push(Peer::new(&slot, ip, tls.clone())?);
            }
        }
        let status = VipStatus { address: vip.addr(), here: false, mac: None, leads: None, problem: None };
        host.board.update(|board| board.vip = Some(status));
        Ok(Some(Self {
            address: vip.addr(),
            unit: unit.to_owned(),
            spec: spec.clone(),
            secret: desired.secrets.passwords.get(Password::EtcdProxy)?.clone(),
            peers,
            host: host.clone(),
        }))
    }

    fn board(&self) -> &Board {
        &self.host.board
    }

    /// Runs until the agent ends; Keepalived goes on without it.
    pub async fn run(self) {
        loop {
            match self.admit().await {
                Ok(None) => self.attend().await,
                Ok(Some(problem)) => self.tell(Some(problem)),
                Err(error) => self.tell(Some(self.failed(&error))),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Starts Keepalived, or says why not.
    async fn admit(&self) -> Result<Option<Problem>> {
        let ip = self.spec.ip().context("the specification gives this node no address")?;
        let link = facts::link_with(&self.host.layout, ip).with_context(|| format!("no interface has {ip}"))?;
        let mac = Some(link.mac.clone());
        self.board().update(|status| status.vip.iter_mut().for_each(|vip| vip.mac.clone_from(&mac)));
        if !running() {
            if facts::has_address(self.address) {
                return Ok(Some(self.configured_here(&link)));
            }
            if let Finding::Taken(problem) = self.probe(&link).await? {
                return Ok(Some(problem));
            }
        }
        self.start(&link).await?;
        Ok(None)
    }

    async fn probe(&self, link: &Link) -> Result<Finding> {
        let Some(mac) = probe::answer(&link.name, self.address).await? else { return Ok(Finding::Free) };
        Ok(probe::judge(self.address, &mac, &self.ask_peers().await))
    }

    async fn start(&self, link: &Link) -> Result<()> {
        let candidates = keepalived::candidates(&self.spec);
        let text = keepalived::config(&self.spec, &self.secret, &candidates, &link.name)?;
        let unchanged = fs::read_to_string(self.host.layout.at(CONFIG)).is_ok_and(|present| present == text);
        let environment = keepalived::environment(self.address, &link.name);
        File { mode: 0o600, ..File::public(CONFIG, text) }.write(&self.host.layout)?;
        File::public(ENVIRONMENT, environment).write(&self.host.layout)?;
        // A running one reads a changed configuration without letting go of the address.
        let call = if unchanged || !running() { "start" } else { "reload-or-restart" };
        tool::systemctl(&[call, &self.unit]).run().await?;
        Ok(())
    }

    /// Looks after a running Keepalived; returns after taking it out of the race.
    async fn attend(&self) {
        let (mut looks, mut missed) = (0, 0);
        let mut route = Route::default();
        self.tell(None);
        loop {
            let runs = running();
            let here = runs && facts::has_address(self.address);
            let leads = socket::leads(&self.host.layout.haproxy_socket()).await.ok();
            self.board().update(|status| {
                let Some(vip) = &mut status.vip else { return };
                vip.leads = leads;
                if vip.here != here {
                    vip.here = here;
                    tracing::info!("the virtual IP {} is {}", self.address, if here { "here" } else { "not here" });
                }
            });
            self.stand_aside(&mut route, leads).await;
            missed = if runs { 0 } else { missed + 1 };
            if missed == LEFT_BEHIND {
                self.remove().await;
            }
            if missed == MISSED {
                self.tell(Some(self.stopped()));
            } else if runs && missed == 0 && looks > 0 {
                self.recovered();
            }
            looks += 1;
            if runs && looks % LOOKS_PER_PROBE == 0 && self.contested(here).await {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Out of the race for as long as another candidate is better off.
    async fn stand_aside(&self, route: &mut Route, leads: Option<bool>) {
        let before = self.board().get().vip.and_then(|vip| vip.problem).filter(aside::is_reason);
        let why = match route.look(leads) {
            _ if route.is_fine() => None,
            true => aside::why(&self.ask_peers().await),
            false => before.clone(),
        };
        if why != before {
            match &why {
                Some(problem) => tracing::warn!("the virtual IP {}: {problem}", self.address),
                None => tracing::info!("HAProxy leads to a primary: this node may have the virtual IP again"),
            }
            self.board().update(|status| status.vip.iter_mut().for_each(|vip| vip.problem.clone_from(&why)));
        }
        if let Err(error) = aside::tell(&self.host.layout, why.is_some()) {
            tracing::error!("Keepalived's check cannot be told: {error:#}");
        }
    }

    /// All at once: however many are silent, the answer takes no longer than one of them, and what the check is told stays fresh.
    async fn ask_peers(&self) -> Vec<(String, Result<Option<VipStatus>, String>)> {
        let asked = self.peers.iter().cloned().map(|peer| async move { (peer.slot.clone(), peer.ask().await) });
        asked.collect::<tokio::task::JoinSet<_>>().join_all().await
    }

    async fn remove(&self) {
        let ip = self.spec.ip().and_then(|ip| facts::link_with(&self.host.layout, ip));
        if let Some(link) = ip.filter(|_| facts::has_address(self.address)) {
            let address = format!("{}/32", self.address);
            match Tool::new("ip").args(["address", "del", &address, "dev", &link.name]).run().await {
                Ok(_) => tracing::warn!("Keepalived is gone and left {address} behind: removed"),
                Err(error) => tracing::error!("{error:#}"),
            }
        }
    }

    /// Whether a stranger has the address and this candidate has left the race for it. A holder stays: it was first.
    async fn contested(&self, here: bool) -> bool {
        let Some(link) = self.spec.ip().and_then(|ip| facts::link_with(&self.host.layout, ip)) else { return false };
        let mut last = None;
        // An address on the move answers from here and there: only what stays is a stranger.
        for _ in 0..3 {
            match self.probe(&link).await {
                Ok(Finding::Taken(problem)) => last = Some(problem),
                _ => return false,
            }
            tokio::time::sleep(LOOK).await;
        }
        let Some(problem) = last else { return false };
        self.tell(Some(problem));
        if here {
            return false;
        }
        // A peer that does not answer may be the rightful holder, whose agent is away.
        if self.ask_peers().await.iter().any(|(_, said)| said.is_err()) {
            return false;
        }
        if let Err(error) = tool::systemctl(&["stop", &self.unit]).run().await {
            tracing::error!("{error:#}");
        }
        true
    }

    fn tell(&self, problem: Option<Problem>) {
        let before = self.board().get().vip.and_then(|vip| vip.problem);
        if let Some(problem) = problem.as_ref().filter(|problem| Some(*problem) != before.as_ref()) {
            tracing::error!("the virtual IP {} is not claimed: {problem}", self.address);
        }
        self.board().update(|status| {
            if let Some(vip) = &mut status.vip {
                vip.here &= problem.is_none();
                vip.problem = problem;
            }
        });
    }

    /// Keepalived runs again after [`Self::stopped`].
    fn recovered(&self) {
        let stopped = self.stopped();
        self.board().update(|status| {
            if let Some(vip) = status.vip.as_mut().filter(|vip| vip.problem.as_ref() == Some(&stopped)) {
                vip.problem = None;
            }
        });
    }

    fn stopped(&self) -> Problem {
        Problem::new(
            format!("{} does not run: this node takes no part in moving the address", self.unit),
            "pgkiln.vip",
            format!("see `journalctl -b -u {0}`, then `systemctl start {0}`", self.unit),
        )
    }

    fn configured_here(&self, link: &Link) -> Problem {
        Problem::new(
            format!("{} is configured on {} of this node, and not by Keepalived", self.address, link.name),
            "pgkiln.vip",
            format!(
                "take it away: `ip address del {} dev {}`; Keepalived starts by itself then",
                self.address, link.name
            ),
        )
    }

    fn failed(&self, error: &anyhow::Error) -> Problem {
        match error.downcast_ref::<Problem>() {
            Some(problem) => problem.clone(),
            None => Problem::new(format!("{error:#}"), "pgkiln.vip", format!("see `journalctl -b -u {}`", self.unit)),
        }
    }
}

/// Whether Keepalived runs. Asked every second: systemd would be asked at a higher price.
fn running() -> bool {
    let pid = fs::read_to_string(PID_FILE).unwrap_or_default();
    let comm = fs::read_to_string(format!("/proc/{}/comm", pid.trim())).unwrap_or_default();
    !pid.trim().is_empty() && comm.trim() == "keepalived"
}
