//! Component versions that are known to be dangerous in a cluster: what `pgkiln show` warns of. One row each, with its source.
//!
//! Versions are upstream's. A distribution may have mended one under an unchanged number: its changelog tells, this table
//! does not. To add a row, name what happens to a cluster, and what the agent does about it where it does something.

use crate::image::Image;
use crate::lock::Lock;

/// `(major, minor, patch)` of an upstream release.
type Release = (u32, u32, u32);

/// Something wrong with a component.
#[derive(Debug)]
struct Advisory {
    /// The component's name in recipes.
    component: &'static str,
    /// CVE, or the issue in a few words.
    name: &'static str,
    /// The first good release of every line that has one, oldest first; lines after the last one were never affected.
    fixed: &'static [Release],
    /// What it means for a cluster.
    meaning: &'static str,
    /// Where it is documented.
    source: &'static str,
}

#[rustfmt::skip]
const ADVISORIES: &[Advisory] = &[
    Advisory {
        component: "etcd", name: "CVE-2026-33413", fixed: &[(3, 4, 42), (3, 5, 28), (3, 6, 9)],
        meaning: "member list, alarms, leases and compaction need no login; here every client still needs a certificate of \
                  the cluster. A fixed etcd needs Patroni 4.1.1 or later",
        source: "GHSA-q8m4-xhhv-38mg",
    },
    Advisory {
        component: "etcd", name: "CVE-2026-33343", fixed: &[(3, 4, 42), (3, 5, 28), (3, 6, 9)],
        meaning: "a nested transaction reads and writes beyond its user's rights: the users `proxy` and `patroni` are not kept \
                  apart from the rest",
        source: "GHSA-rfx7-8w68-q57q",
    },
    Advisory {
        component: "etcd", name: "a learner that never started is promoted", fixed: &[(3, 4, 24), (3, 5, 7)],
        meaning: "a vote for a member that does not run can end the quorum; the agent asks for a promotion only after the \
                  learner has started",
        source: "etcd CHANGELOG-3.4 (3.4.24), CHANGELOG-3.5 (3.5.7)",
    },
    Advisory {
        component: "etcd", name: "a deposed leader revokes leases", fixed: &[(3, 4, 31), (3, 5, 13)],
        meaning: "Patroni's leader key can vanish under a healthy primary, which then fails over",
        source: "etcd CHANGELOG-3.4 (3.4.31), CHANGELOG-3.5 (3.5.13)",
    },
    Advisory {
        component: "etcd", name: "a revoked lease is renewed without an error", fixed: &[(3, 4, 38), (3, 5, 23), (3, 6, 5)],
        meaning: "a holder may believe that it still has a lease which is gone",
        source: "etcd CHANGELOG-3.4 (3.4.38), CHANGELOG-3.5 (3.5.23), CHANGELOG-3.6 (3.6.5)",
    },
    Advisory {
        component: "etcd", name: "end of life", fixed: &[(3, 5, 0)],
        meaning: "the line 3.4 ended with 3.4.45: what is found now is mended by a distribution or by nobody",
        source: "etcd CHANGELOG-3.4 (3.4.45, 2026-06-01)",
    },
    Advisory {
        component: "patroni", name: "a cut-off primary takes the leader key back", fixed: &[(3, 0, 3)],
        meaning: "two primaries, and acknowledged rows are lost; `debian-12` brings a program that renews the key as 3.0.3 does, \
                  and the agent refuses such a Patroni without it",
        source: "patroni/patroni#2693, `_update_leader` in etcd3.py; seen in this project's cluster tests",
    },
    Advisory {
        component: "patroni", name: "two members of one name go unnoticed", fixed: &[(3, 0, 4)],
        meaning: "a cloned machine could act for the original; the agent starts Patroni only while it holds the slot's lease",
        source: "patroni/patroni#1804, #2724, #2881",
    },
    Advisory {
        component: "patroni", name: "timing rules are not enforced", fixed: &[(3, 2, 0)],
        meaning: "`loop_wait + 2 * retry_timeout <= ttl` is up to whoever changes them; the agent's presets keep it",
        source: "Patroni documentation, release notes of 3.2.0",
    },
    Advisory {
        component: "patroni", name: "failsafe mode does not cover every loss of etcd", fixed: &[(4, 0, 7)],
        meaning: "a primary may demote itself although it reaches every member",
        source: "Patroni documentation, release notes of 4.0.7",
    },
    Advisory {
        component: "keepalived", name: "no peers means multicast", fixed: &[(2, 2, 5)],
        meaning: "with an empty `unicast_peer` it announces itself to the network; the agent starts it with peers only",
        source: "keepalived.conf(5), `unicast_fault_no_peer`",
    },
    Advisory {
        component: "pgbouncer", name: "CVE-2025-2291", fixed: &[(1, 24, 1)],
        meaning: "`auth_query` lets users in whose password has expired (`VALID UNTIL`)",
        source: "PgBouncer 1.24.1, changelog",
    },
];

/// A warning about one component of a recipe.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    /// The component.
    pub component: String,
    /// Its locked version.
    pub version: String,
    /// CVE, or the issue in a few words.
    pub name: &'static str,
    /// First good releases, oldest first.
    pub fixed: Vec<String>,
    /// What it means for a cluster.
    pub meaning: &'static str,
    /// Where it is documented.
    pub source: &'static str,
}

/// What is known to be wrong with the locked components of an image.
pub fn warnings(image: &Image, lock: &Lock) -> Vec<Warning> {
    let versions = image.components.iter().filter_map(|(name, component)| {
        let package = lock.package(&component.package.value)?;
        Some((name.as_str(), package.version.as_str()))
    });
    versions.flat_map(|(name, version)| warnings_of(name, version)).collect()
}

fn warnings_of(component: &str, version: &str) -> Vec<Warning> {
    let affects = |one: &&Advisory| one.component == component && affected(upstream(version), one.fixed);
    let warning = |one: &Advisory| Warning {
        component: component.to_owned(),
        version: version.to_owned(),
        name: one.name,
        fixed: one.fixed.iter().map(|(major, minor, patch)| format!("{major}.{minor}.{patch}")).collect(),
        meaning: one.meaning,
        source: one.source,
    };
    ADVISORIES.iter().filter(affects).map(warning).collect()
}

/// Judged by the fix of its own line; a line without one is as old as the first fixed release, or newer than all of them.
fn affected(version: Release, fixed: &[Release]) -> bool {
    let own = fixed.iter().find(|fix| (fix.0, fix.1) == (version.0, version.1));
    own.or(fixed.first()).is_some_and(|fix| version < *fix)
}

/// Upstream's part of a package version: `1:2.2.7-1+b2` is 2.2.7.
fn upstream(version: &str) -> Release {
    firstboot::image_info::upstream(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(component: &str, version: &str) -> Vec<&'static str> {
        warnings_of(component, version).into_iter().map(|warning| warning.name).collect()
    }

    #[test]
    fn every_line_is_judged_by_its_own_fix() {
        const FIXED: &[Release] = &[(3, 4, 42), (3, 5, 28), (3, 6, 9)];
        for (version, expected) in [
            ((3, 3, 25), true),
            ((3, 4, 41), true),
            ((3, 4, 42), false),
            ((3, 5, 0), true),
            ((3, 5, 28), false),
            ((3, 6, 8), true),
            ((3, 6, 9), false),
            ((3, 7, 0), false),
            ((4, 0, 0), false),
        ] {
            assert_eq!(affected(version, FIXED), expected, "{version:?}");
        }
    }

    #[test]
    fn oldest_and_newest_components() {
        let etcd = names("etcd", "3.4.23-4+b4");
        for name in ["CVE-2026-33413", "CVE-2026-33343", "a learner that never started is promoted", "end of life"] {
            assert!(etcd.contains(&name), "{name}: {etcd:?}");
        }
        assert!(names("etcd", "3.5.16-4+b5").contains(&"CVE-2026-33413"));
        assert!(!names("etcd", "3.5.16-4+b5").contains(&"end of life"));
        assert!(names("etcd", "1:3.5.33-1.noble").is_empty() && names("etcd", "3.7.1").is_empty());
        assert_eq!(names("patroni", "3.0.2-1").len(), 4);
        assert!(names("patroni", "4.1.4-1").is_empty());
        assert!(names("keepalived", "1:2.2.7-1+b2").is_empty() && !names("keepalived", "1:2.2.4-0.2build1").is_empty());
        assert!(names("unknown", "0.1").is_empty());
    }

    #[test]
    fn rows_are_complete_and_in_order() {
        for one in ADVISORIES {
            assert!(one.fixed.is_sorted() && !one.fixed.is_empty(), "{}", one.name);
            assert!(!one.meaning.is_empty() && !one.source.is_empty(), "{}", one.name);
        }
    }
}
