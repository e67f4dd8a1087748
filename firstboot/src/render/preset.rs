//! Time limits of failure detection: one table, and the arithmetic that must hold for every row.

use crate::spec::Rto;

/// Everything that derives from `postgres.rto`. Seconds, unless named otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Life of the leader key without renewal.
    pub ttl: u32,
    /// Pause between two looks at the cluster.
    pub loop_wait: u32,
    /// How long trouble with etcd is tolerated before a primary steps down.
    pub retry_timeout: u32,
    /// How long a crashed primary may take to start before a failover.
    pub primary_start_timeout: u32,
    /// The watchdog fires this long before the leader key expires.
    pub safety_margin: u32,
    /// HAProxy: between checks of a healthy server, of a changing one, of a dead one (ms).
    pub check_ms: [u32; 3],
    /// HAProxy: for one attempt to connect, and between two (ms).
    pub connect_ms: u32,
    /// HAProxy: checks until up, until down.
    pub rise_fall: [u32; 2],
    /// etcd: election timeout (ms).
    pub election_ms: u32,
}

/// The row for a recovery time.
pub const fn of(rto: Rto) -> Preset {
    match rto {
        Rto::Fast => Preset {
            ttl: 20,
            loop_wait: 5,
            retry_timeout: 5,
            primary_start_timeout: 10,
            safety_margin: 5,
            check_ms: [1000, 500, 1000],
            connect_ms: 300,
            rise_fall: [2, 3],
            election_ms: 1000,
        },
        Rto::Norm => Preset {
            ttl: 30,
            loop_wait: 5,
            retry_timeout: 10,
            primary_start_timeout: 20,
            safety_margin: 5,
            check_ms: [1000, 500, 1000],
            connect_ms: 500,
            rise_fall: [2, 3],
            election_ms: 1000,
        },
        Rto::Wide => Preset {
            ttl: 60,
            loop_wait: 10,
            retry_timeout: 20,
            primary_start_timeout: 45,
            safety_margin: 10,
            check_ms: [3000, 1000, 3000],
            connect_ms: 2000,
            rise_fall: [3, 3],
            election_ms: 2000,
        },
    }
}

impl Preset {
    /// Why this row would be unsafe; `None` if it is not.
    pub fn unsafe_because(&self) -> Option<&'static str> {
        let rules = [
            (self.ttl >= 20, "ttl is below 20 s"),
            (self.loop_wait >= 1, "loop_wait is below 1 s"),
            // With three etcd endpoints each gets a third: less rides out no election.
            (self.retry_timeout >= 5, "retry_timeout is below 5 s"),
            (self.loop_wait + 2 * self.retry_timeout <= self.ttl, "loop_wait + 2 x retry_timeout exceeds ttl"),
            (
                self.ttl >= self.safety_margin + self.loop_wait + self.retry_timeout + 5,
                "the watchdog has less than 5 s of slack",
            ),
            (self.election_ms <= self.retry_timeout * 1000 / 2, "an etcd election takes more than half a retry"),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map(|(_, why)| why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_safe_and_the_rules_can_fail() {
        for rto in [Rto::Fast, Rto::Norm, Rto::Wide] {
            assert_eq!(of(rto).unsafe_because(), None, "{rto:?}");
        }
        let eager = Preset { retry_timeout: 10, ..of(Rto::Fast) };
        assert_eq!(eager.unsafe_because(), Some("loop_wait + 2 x retry_timeout exceeds ttl"));
        let unfenced = Preset { safety_margin: 10, ..of(Rto::Fast) };
        assert_eq!(unfenced.unsafe_because(), Some("the watchdog has less than 5 s of slack"));
    }
}
