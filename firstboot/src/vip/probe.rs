//! Does anybody have the address already, and may they? Peers hold it rightly if their agent says that their Keepalived
//! gave it to the very interface that answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;

use crate::problem::Problem;
use crate::status::VipStatus;
use crate::tool::Tool;

/// For a peer's answer.
const LIMIT: Duration = Duration::from_secs(2);
/// The agent's port.
const PORT: u16 = 8443;
/// `arping`: somebody answered.
const ANSWERED: i32 = 1;

/// What a probe found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nobody answers.
    Free,
    /// A peer's Keepalived has it.
    Peer(String),
    /// Somebody else has it.
    Taken(Problem),
}

/// The MAC address that answers for `address`, if any: duplicate address detection of RFC 5227, with no sender address.
pub(super) async fn answer(device: &str, address: IpAddr) -> Result<Option<String>> {
    let arping = Tool::new("arping").args(["-D", "-c", "2", "-w", "2", "-I", device]).arg(address.to_string());
    let said = arping.answers(&[ANSWERED]).limit(Duration::from_secs(10)).run().await?;
    Ok(parse(&said))
}

/// `Unicast reply from 10.0.0.10 [02:00:00:00:00:99]  0.7ms`
fn parse(said: &str) -> Option<String> {
    let line = said.lines().find(|line| line.contains("reply from"))?;
    let (_, rest) = line.split_once('[')?;
    Some(rest.split_once(']')?.0.to_lowercase())
}

/// What to make of an answer, given what every peer's agent says about itself.
pub(super) fn judge(address: IpAddr, mac: &str, said: &[(String, Result<Option<VipStatus>, String>)]) -> Finding {
    let mut of = String::new();
    let mut silent = Vec::new();
    for (slot, status) in said {
        match status {
            Ok(Some(vip)) if vip.mac.as_deref() == Some(mac) && vip.address == address => {
                if vip.here {
                    return Finding::Peer(slot.clone());
                }
                of = format!(" of `{slot}`, whose Keepalived has not given it that address");
            }
            Ok(_) => {}
            Err(why) => silent.push(format!("{slot}: {why}")),
        }
    }
    let mut what = format!("{address} is answered by {mac}{of}");
    if of.is_empty() {
        what.push_str(", which is no node of this cluster");
        if !silent.is_empty() {
            what.push_str(&format!(", or one that does not say so ({})", silent.join("; ")));
        }
    }
    let remedy = "take the address away from there, or make a new cluster with a free one; it is probed again every few \
                  seconds, and Keepalived starts by itself once it is free";
    Finding::Taken(Problem::new(what, "pgkiln.vip", remedy))
}

/// Another node that may hold the address.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) slot: String,
    http: reqwest::Client,
}

impl Peer {
    pub(super) fn new(slot: &str, ip: IpAddr, tls: rustls::ClientConfig) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(LIMIT)
            .http1_only()
            // Probes are rare: no connection is kept for them.
            .pool_max_idle_per_host(0)
            .tls_backend_preconfigured(tls)
            .resolve(slot, SocketAddr::new(ip, PORT))
            .build()?;
        Ok(Self { slot: slot.to_owned(), http })
    }

    /// What its agent says about the virtual IP.
    pub(super) async fn ask(&self) -> Result<Option<VipStatus>, String> {
        #[derive(Deserialize)]
        struct Said {
            #[serde(default)]
            vip: Option<VipStatus>,
        }
        let plain = |e: reqwest::Error| crate::etcd::plain(&e);
        let response = self.http.get(format!("https://{}:{PORT}/v1/status", self.slot)).send().await.map_err(plain)?;
        if !response.status().is_success() {
            return Err(format!("answers {}", response.status()));
        }
        let bytes = response.bytes().await.map_err(plain)?;
        serde_json::from_slice::<Said>(&bytes).map(|said| said.vip).map_err(|e| format!("answers something else: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: &str = "10.0.0.10";
    const MAC: &str = "02:00:00:00:00:0b";

    fn status(here: bool, mac: &str) -> Result<Option<VipStatus>, String> {
        let problem = None;
        Ok(Some(VipStatus { address: VIP.parse().unwrap(), here, mac: Some(mac.to_owned()), leads: None, problem }))
    }

    fn found(said: &[Result<Option<VipStatus>, String>]) -> Finding {
        let said: Vec<_> = said.iter().enumerate().map(|(n, s)| (format!("pg-{}", n + 2), s.clone())).collect();
        judge(VIP.parse().unwrap(), MAC, &said)
    }

    fn taken(said: &[Result<Option<VipStatus>, String>]) -> String {
        match found(said) {
            Finding::Taken(problem) => problem.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_peer_that_holds_it_is_no_conflict() {
        assert_eq!(found(&[status(false, "02:00:00:00:00:0c"), status(true, MAC)]), Finding::Peer("pg-3".into()));
    }

    #[test]
    fn everybody_else_is() {
        // A peer holds it, and yet somebody else answers.
        assert!(taken(&[status(true, "02:00:00:00:00:0c"), Ok(None)]).contains("no node of this cluster"));
        // A peer's machine answers, but not because of its Keepalived.
        let by_hand = taken(&[status(false, MAC), status(false, "02:00:00:00:00:0d")]);
        assert!(by_hand.contains("of `pg-2`, whose Keepalived has not"), "{by_hand}");
        // A peer whose agent is away might hold it: nothing is claimed on a guess.
        let unknown = taken(&[Err("no answer in time".into()), Ok(None)]);
        assert!(unknown.contains("or one that does not say so (pg-2: no answer in time)"), "{unknown}");
        assert!(unknown.contains("hint: "), "{unknown}");
    }

    #[test]
    fn reads_arping() {
        let said = "ARPING 10.0.0.10 from 0.0.0.0 host0\nUnicast reply from 10.0.0.10 [02:00:00:00:00:0B]  0.689ms\n\
                    Sent 1 probes (1 broadcast(s))\nReceived 1 response(s)\n";
        assert_eq!(parse(said).as_deref(), Some(MAC));
        assert_eq!(parse("ARPING 10.0.0.10 from 0.0.0.0 host0\nSent 2 probes\nReceived 0 response(s)\n"), None);
    }
}
