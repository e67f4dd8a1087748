//! What the agent does beyond the components' own ways to shorten an outage. Each is a switch: to measure what it gains, or
//! because it is suspected. On by default is what a test has shown to be safe and to gain something.

use serde::{Deserialize, Serialize};

/// One switch each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tweaks {
    /// Patroni looks at once when the postmaster dies, instead of within `loop_wait`. Off: one wake can come before
    /// Patroni sees the death, and then a whole `loop_wait` begins anew; measured, no gain.
    pub wake_patroni: bool,
    /// HAProxy is told who leads the moment the new leader accepts writes, instead of after its checks.
    pub push_roles: bool,
    /// etcd's leader stays off the machine of PostgreSQL's primary: one failure then costs one election.
    pub move_etcd_leader: bool,
    /// Patroni's fixed waits of 1 s and 2 s in a planned change of leaders are cut short; what it makes sure of in between
    /// stays (`/usr/lib/pgkiln/patroni_quick.py` in the image).
    pub quick_switchover: bool,
}

impl Default for Tweaks {
    fn default() -> Self {
        Self { wake_patroni: true, push_roles: true, move_etcd_leader: true, quick_switchover: true }
    }
}

impl Tweaks {
    /// The keys, with a way to their values.
    pub const KEYS: [&str; 4] = ["wake_patroni", "push_roles", "move_etcd_leader", "quick_switchover"];

    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The switch of a key in [`Tweaks::KEYS`].
    pub fn switch(&mut self, key: &str) -> Option<&mut bool> {
        match key {
            "wake_patroni" => Some(&mut self.wake_patroni),
            "push_roles" => Some(&mut self.push_roles),
            "move_etcd_leader" => Some(&mut self.move_etcd_leader),
            "quick_switchover" => Some(&mut self.quick_switchover),
            _ => None,
        }
    }
}
