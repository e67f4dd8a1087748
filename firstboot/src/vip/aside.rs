//! Standing aside: a candidate whose HAProxy leads to no primary leaves the address to one whose HAProxy does.
//!
//! HAProxy here may be in the best of health and yet be the wrong one to hold the address: a network that loses frames in
//! one direction, or cuts this node off, leaves VRRP satisfied and clients without a primary. While nobody leads anywhere
//! no node is better than another, and nothing moves. A candidate that hears no peer at all is the one that is cut off.
//!
//! The agent says it by touching a file that Keepalived's check looks at; if the agent ends, what it said soon counts for
//! nothing.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use fs_err as fs;

use crate::layout::Layout;
use crate::problem::Problem;
use crate::status::VipStatus;

/// Readable for the check, which runs as a user without rights.
const MARK: &str = "/run/pgkiln/vip/stand-aside";
/// How long the agent's last word counts.
const FRESH: Duration = Duration::from_secs(10);
/// Looks, a second apart, without a way to a primary: all HAProxies learn of a new one within that time.
const PATIENCE: u32 = 3;
/// Looks between questions to the peers: each answer takes a TLS handshake.
const ASK: u32 = 3;

const NO_PRIMARY: &str = "HAProxy here reaches no primary";

/// How long this node's HAProxy has led to no primary.
#[derive(Debug, Default)]
pub(super) struct Route {
    looks: u32,
}

impl Route {
    /// Notes a look; whether the peers should be asked now. `None`: HAProxy did not answer, which its own check notices.
    pub(super) fn look(&mut self, leads: Option<bool>) -> bool {
        self.looks = if leads == Some(false) { self.looks.saturating_add(1) } else { 0 };
        self.looks >= PATIENCE && (self.looks - PATIENCE).is_multiple_of(ASK)
    }

    /// Whether there is a way, or was a moment ago.
    pub(super) fn is_fine(&self) -> bool {
        self.looks == 0
    }
}

/// Why this node should stand aside, after what every peer's agent said; `None`: nobody is better off.
pub(super) fn why(said: &[(String, Result<Option<VipStatus>, String>)]) -> Option<Problem> {
    let better = said.iter().find(|(_, status)| matches!(status, Ok(Some(vip)) if vip.leads == Some(true)));
    let what = match better {
        Some((slot, _)) => format!("{NO_PRIMARY}, the one of `{slot}` does: the address is left to it"),
        None if said.iter().all(|(_, status)| status.is_err()) => {
            format!("{NO_PRIMARY} and no peer answers: the address is left to those who may be better off")
        }
        None => return None,
    };
    let remedy = "look for what drops packets between this node and the primary (`patronictl list`, `ping`, firewall, MTU); \
                  this node takes part again by itself";
    Some(Problem::new(what, "pgkiln.vip", remedy))
}

/// Whether a problem with the address is one of [`why`]'s.
pub(super) fn is_reason(problem: &Problem) -> bool {
    problem.what.starts_with(NO_PRIMARY)
}

/// Says so to Keepalived's check, or takes it back.
pub(super) fn tell(layout: &Layout, aside: bool) -> Result<()> {
    let mark = layout.at(MARK);
    if aside {
        let dir = mark.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir)?;
        // Whatever umask the agent has.
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        fs::write(mark, "")?;
    } else if mark.exists() {
        fs::remove_file(mark)?;
    }
    Ok(())
}

/// What the check sees.
pub(super) fn stands_aside() -> bool {
    let told = fs::metadata(MARK).and_then(|meta| meta.modified());
    told.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < FRESH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(leads: Option<bool>) -> (String, Result<Option<VipStatus>, String>) {
        let address = "10.0.0.10".parse().unwrap();
        ("pg-2".to_owned(), Ok(Some(VipStatus { address, here: false, mac: None, leads, problem: None })))
    }

    fn silent() -> (String, Result<Option<VipStatus>, String>) {
        ("pg-3".to_owned(), Err("no answer in time".to_owned()))
    }

    #[test]
    fn only_for_one_who_is_better_off_or_when_cut_off() {
        assert!(why(&[peer(Some(true)), silent()]).unwrap().what.contains("the one of `pg-2` does"));
        assert!(why(&[silent(), silent()]).unwrap().what.contains("no peer answers"));
        assert_eq!(why(&[peer(Some(false)), peer(Some(false))]), None, "nobody leads: nobody is better off");
        assert_eq!(why(&[peer(Some(false)), silent()]), None);
        assert_eq!(why(&[peer(None), silent()]), None, "an agent that does not say");
    }

    #[test]
    fn peers_are_asked_after_some_patience_and_now_and_then() {
        let mut route = Route::default();
        let asks = |route: &mut Route, leads| (0..9).map(|_| route.look(leads)).collect::<Vec<_>>();
        assert_eq!(asks(&mut route, Some(true)), [false; 9]);
        let wanted = [false, false, true, false, false, true, false, false, true];
        assert_eq!(asks(&mut route, Some(false)), wanted);
        assert!(!route.is_fine());
        assert!(!route.look(None) && route.is_fine(), "a dead HAProxy is the check's business");
        assert_eq!(asks(&mut route, Some(false)), wanted);
    }

    #[test]
    fn what_was_told_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        tell(&layout, false).unwrap();
        tell(&layout, true).unwrap();
        tell(&layout, true).unwrap();
        let mode = layout.at(MARK).parent().unwrap().metadata().unwrap().permissions().mode();
        assert!(layout.at(MARK).exists() && mode & 0o005 == 0o005, "the check must see it: {mode:o}");
        tell(&layout, false).unwrap();
        assert!(!layout.at(MARK).exists());
    }
}
