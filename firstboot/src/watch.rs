//! The long life after boot: look at this node's services, say how they are, record what the cluster needs to know.
//!
//! Looks often until the node is good and rarely afterwards: a healthy node costs next to nothing.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::net::TcpStream;

use crate::backup::Trouble;
use crate::durable;
use crate::etcd::Client;
use crate::image_info::ImageInfo;
use crate::layout::Layout;
use crate::patroni::{Local, Member, Patroni};
use crate::register::{self, Keys};
use crate::services::{Services, Unit};
use crate::sql;
use crate::status::{Board, Phase, Verdict};
use crate::update::{fits, tries};
use crate::verdict::{self, Health};

/// Between looks at a node that is not good yet.
const SOON: Duration = Duration::from_millis(1000);
/// Between looks at a good one.
const SLOW: Duration = Duration::from_secs(5);
/// Every how many looks at a node that is not good systemd is asked about its units.
const ASK_SYSTEMD: u32 = 8;
/// PostgreSQL that was started in vain for so long does not start.
const IN_VAIN: Duration = Duration::from_secs(60);
/// A question to PostgreSQL here.
const ASK: Duration = Duration::from_secs(2);
/// HAProxy's statistics listener: connecting there touches no server.
const HAPROXY: (&str, u16) = ("127.0.0.1", 7000);

/// What is watched.
#[derive(Debug)]
pub struct Watch {
    /// Paths.
    pub layout: Layout,
    /// What runs here.
    pub image: ImageInfo,
    /// Where it is said.
    pub board: Board,
    /// The cluster.
    pub keys: Keys,
    /// Its name.
    pub cluster: String,
    /// This node.
    pub slot: String,
    /// etcd.
    pub client: std::sync::Arc<Client>,
    /// Patroni here, if the role runs it.
    pub patroni: Option<Patroni>,
    /// Whether this Patroni says who streams; where it does not, PostgreSQL is asked.
    pub says_streaming: bool,
    /// Whether nothing acknowledged may be lost.
    pub zero_loss: bool,
    /// Whether etcd runs here.
    pub voter: bool,
    /// Whether the role runs HAProxy.
    pub haproxy: bool,
    /// What keeps the repository host from its work.
    pub repository: Trouble,
    /// Those of the role.
    pub services: Services,
    /// Cluster-wide settings that the specification changed and Patroni does not know yet.
    pub patch: Option<serde_json::Value>,
}

/// What has been done already.
#[derive(Debug, Default)]
struct Done {
    system_id: bool,
    reconciled: bool,
    patched: bool,
    born: bool,
    marked: bool,
    blessed: bool,
    /// Looks since this node was last good.
    doubtful: u32,
    /// What systemd said of its units when it was last asked.
    failing: Vec<Unit>,
    /// Since when PostgreSQL has been started in vain.
    in_vain: Option<Instant>,
}

impl Done {
    /// Whether it is long enough. With the preset `wide` Patroni tries once in ten seconds. Said only while a try has failed:
    /// one that is under way may be a long recovery, which is no reason to go back to another version.
    fn does_not_start(&mut self, local: Option<&Local>, now: Instant) -> bool {
        match local.and_then(Local::starts) {
            Some(true) => self.in_vain = None,
            Some(false) => return now.duration_since(*self.in_vain.get_or_insert(now)) > IN_VAIN,
            None => {}
        }
        false
    }

    /// What is remembered of the first good look; `image`: of what runs PostgreSQL here.
    fn was_good(&mut self, layout: &Layout, image: Option<&ImageInfo>) {
        // Leads or follows: whatever is in PostgreSQL's directory is a database now.
        if !self.born {
            let removed = durable::remove(&layout.unborn());
            self.born = removed.map_err(|error| tracing::warn!("{error:#}")).is_ok();
        }
        if let Some(image) = image.filter(|_| !self.marked) {
            let marked = fits::record(layout, image);
            self.marked = marked.map_err(|error| tracing::warn!("the data marker: {error:#}")).is_ok();
        }
        // A boot's verdict is asked for once: what was bad then, and was corrected, has nobody else who says that it is good.
        if !self.blessed {
            self.blessed = tries::say_good(layout);
        }
    }
}

impl Watch {
    /// Watches until dropped.
    pub async fn run(&self) -> Result<()> {
        let (mut done, mut services) = (Done::default(), self.services.clone());
        loop {
            let mut health = self.look().await;
            let local = health.patroni.as_ref().and_then(|said| said.as_ref().ok());
            health.postgres_does_not_start = done.does_not_start(local, Instant::now());
            if verdict::judge(&health).0 == Verdict::Good {
                (done.doubtful, done.failing) = (0, Vec::new());
                services.forget();
            } else {
                done.doubtful += 1;
                // systemd is asked rarely: starting takes a while, and asking costs more than all other looks.
                if done.doubtful.is_multiple_of(ASK_SYSTEMD) {
                    done.failing = services.look().await.to_vec();
                }
                health.failing.clone_from(&done.failing);
            }
            let (verdict, why) = verdict::judge(&health);
            self.say(verdict, why);
            if verdict == Verdict::Good {
                done.was_good(&self.layout, self.patroni.is_some().then_some(&self.image));
            }
            if let Err(error) = self.chores(&health, &mut done).await {
                tracing::warn!("{error:#}");
            }
            let settled = verdict == Verdict::Good && done.system_id;
            tokio::time::sleep(if settled { SLOW } else { SOON }).await;
        }
    }

    fn say(&self, verdict: Verdict, why: Option<String>) {
        if self.board.get().verdict != verdict {
            tracing::info!("verdict: {verdict:?}{}", why.as_ref().map(|w| format!(" ({w})")).unwrap_or_default());
        }
        self.board.verdict(verdict);
        let problem = self.repository.get();
        match why {
            Some(why) => {
                self.board.waiting(why);
                if problem.is_some() {
                    self.board.update(|status| status.error = problem);
                }
            }
            None => self.board.update(|status| {
                status.phase = Phase::Running;
                status.waiting_for = None;
                status.error = None;
            }),
        }
    }

    /// One look at everything.
    async fn look(&self) -> Health {
        let etcd = if self.voter { self.etcd().await } else { None };
        let patroni = match &self.patroni {
            Some(patroni) => Some(self.local(patroni).await.map_err(|error| format!("{error:#}"))),
            None => None,
        };
        let irreplaceable = match (&self.patroni, &patroni) {
            (Some(rest), Some(Ok(local))) if self.zero_loss && local.leads() => self.hurry_succession(rest).await,
            _ => false,
        };
        let haproxy = if self.haproxy { TcpStream::connect(HAPROXY).await.err().map(|e| e.to_string()) } else { None };
        let repository = self.repository.get();
        let vip = self.board.get().vip.and_then(|vip| vip.problem);
        let vip = vip.map(|problem| format!("{}; {}", problem.what, problem.remedy));
        Health { etcd, patroni, irreplaceable, haproxy, repository, vip, ..Health::default() }
    }

    async fn local(&self, patroni: &Patroni) -> Result<Local> {
        let mut local = patroni.local().await?;
        if !self.says_streaming && local.follows() {
            let receives = "SELECT status FROM pg_stat_wal_receiver";
            let status = sql::ask(receives, ASK).await.unwrap_or_default();
            local.replication_state = Some(if status.is_empty() { "not streaming".to_owned() } else { status });
        }
        Ok(local)
    }

    /// Whether a standby receives WAL from this leader.
    async fn has_standby(&self, members: &[Member]) -> bool {
        if self.says_streaming {
            return members.iter().any(Member::streams);
        }
        let streams = "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming'";
        sql::ask(streams, ASK).await.is_ok_and(|said| said == "t")
    }

    /// Whether nobody may take over from this leader. PostgreSQL may already wait for standbys that Patroni has not yet
    /// named in `/sync`: were the leader lost in between, nobody could be elected. While a standby streams and none is
    /// named, Patroni is woken instead of waited for.
    async fn hurry_succession(&self, patroni: &Patroni) -> bool {
        let Ok(members) = patroni.members().await else { return false };
        if members.iter().any(Member::may_take_over) {
            return false;
        }
        if self.has_standby(&members).await
            && let Err(error) = patroni.wake().await
        {
            tracing::debug!("waking Patroni: {error:#}");
        }
        true
    }

    /// Why the member of etcd here is not part of a quorum. Nodes without one do their work with or without it.
    async fn etcd(&self) -> Option<String> {
        match self.client.status(&self.slot).await {
            Ok(status) if status.leader != 0 => None,
            Ok(_) => Some("no leader".to_owned()),
            Err(error) => Some(error.to_string()),
        }
    }

    async fn chores(&self, health: &Health, done: &mut Done) -> Result<()> {
        if !done.system_id && health.etcd.is_none() {
            done.system_id = match self.voter {
                true => register::record_system_id(&self.client, self.keys, &self.cluster).await?,
                false => register::pg_system_id(&self.client, self.keys).await?.is_some(),
            };
        }
        if let (Some(patroni), Some(Ok(local)), false) = (&self.patroni, &health.patroni, done.patched)
            && (local.leads() || local.follows())
        {
            self.hand_over_settings(patroni).await?;
            done.patched = true;
        }
        let leads = matches!(&health.patroni, Some(Ok(local)) if local.leads());
        if !leads {
            // Whoever leads next does it once.
            done.reconciled = false;
        } else if done.system_id && !done.reconciled {
            // Patroni names the system only after its own run of the same script.
            sql::reconcile(&self.layout, None).await?;
            done.reconciled = true;
        }
        Ok(())
    }

    /// Once for each change, by the node that was told: settings an operator changes in Patroni later stay his.
    async fn hand_over_settings(&self, patroni: &Patroni) -> Result<()> {
        if let Some(patch) = &self.patch {
            patroni.patch_config(patch).await?;
            tracing::warn!("cluster-wide settings changed in Patroni: {patch}");
        }
        durable::remove(&self.layout.previous_spec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_that_was_bad_and_is_good_counts_no_more() {
        let (_dir, layout) = tries::tests::boot("x_1+2-1.efi");
        let mut done = Done::default();
        done.was_good(&layout, None);
        assert_eq!(tries::tests::names(&layout), ["x_0.efi", "x_1.efi"]);
        assert!(done.blessed && done.born && !done.marked);
    }

    #[test]
    fn postgresql_that_is_started_in_vain_for_a_minute_does_not_start() {
        let (mut done, start) = (Done::default(), Instant::now());
        let mut look = |state: Option<&str>, seconds| {
            let local = state.map(|state| Local { state: state.to_owned(), ..Local::default() });
            done.does_not_start(local.as_ref(), start + Duration::from_secs(seconds))
        };
        assert!(!look(Some("start failed"), 0) && !look(Some("starting"), 30) && !look(None, 40));
        assert!(look(Some("start failed"), 61), "the tries between do not count as better");
        assert!(!look(Some("starting"), 600), "it may be recovering");
        assert!(
            !look(Some("running"), 602)
                && !look(Some("crashed"), 603)
                && !look(Some("restart failed (restarting)"), 660)
        );
        assert!(look(Some("crashed"), 664));
        assert!(!look(Some("creating replica"), 665), "somebody has it begin anew");
    }
}
