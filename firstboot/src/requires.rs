//! What a node needs of its image's components: decided by their versions, never by the distribution's name. A component
//! that is too old for what the specification asks is refused by name before anything starts.
//!
//! Smaller differences are settled where they matter: options by version in `render`, what a component does not say
//! is asked elsewhere (`watch`). To add a row, name the feature and the first release that has it.

use anyhow::Result;

use crate::plan::Desired;
use crate::problem::Problem;

type Release = (u32, u32, u32);

/// Feature, component, first release, and whose nodes need it: those that run the last one.
const FEATURES: [(&str, &str, Release, &str); 5] = [
    ("members without a vote, as which a lost voter comes back", "etcd", (3, 4, 0), "etcd"),
    ("failsafe mode, which keeps a primary up without etcd", "patroni", (3, 0, 0), "patroni"),
    ("`wal_keep_size` and `max_slot_wal_keep_size`", "postgresql", (13, 0, 0), "patroni"),
    ("servers that come and go while it runs", "haproxy", (2, 6, 0), "haproxy"),
    ("a TLS server", "pgbackrest", (2, 37, 0), "pgbackrest"),
];

/// The first pgBackRest for a major version of PostgreSQL (release notes of pgBackRest). Earlier ones: any with TLS.
const BACKS_UP: [(u32, Release); 3] = [(16, (2, 46, 0)), (17, (2, 53, 1)), (18, (2, 55, 0))];

/// Before this release Patroni overwrites the leader key of whoever was elected while it was cut off (`_update_leader` in
/// Patroni's `etcd3.py`), and acknowledged rows are lost. An image may bring a program that renews the key as later
/// releases do, and names it among Patroni's paths.
const KEEPS_OTHERS_KEY: Release = (3, 0, 3);
/// Name of that path.
const COMPARE_AND_SET: &str = "compare_and_set";

/// Everything the components of this image are too old for.
pub fn problems(desired: &Desired) -> Result<Vec<Problem>> {
    let image = &desired.image;
    let mut problems = Vec::new();
    let mut need = |feature: &str, component: &str, first: Release| -> Result<()> {
        let found = image.version_of(component)?;
        if found < first {
            let (major, minor, patch) = first;
            problems.push(Problem::new(
                format!("{component} {} has not: {feature}", image.upstream_of(component)?),
                format!("image {}", image.name),
                format!("boot an image with {component} {major}.{minor}.{patch} or later"),
            ));
        }
        Ok(())
    };
    for (feature, component, first, runs) in FEATURES {
        if desired.runs(runs) {
            need(feature, component, first)?;
        }
    }
    if desired.runs("patroni") && image.path("patroni", COMPARE_AND_SET).is_err() {
        need("a renewal of the leader key that never takes it from another node", "patroni", KEEPS_OTHERS_KEY)?;
    }
    if desired.runs("pgbackrest") {
        let major = image.postgresql_major()?;
        // A later major version needs at least what the last known one does.
        if let Some((_, first)) = BACKS_UP.iter().rfind(|(known, _)| *known <= major) {
            need(&format!("backups of PostgreSQL {major}"), "pgbackrest", *first)?;
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, desired, desired_as};

    fn told(mut desired: Desired, component: &str, version: &str) -> Vec<String> {
        desired.image.components.get_mut(component).unwrap().version = version.to_owned();
        problems(&desired).unwrap().into_iter().map(|problem| problem.what).collect()
    }

    #[test]
    fn the_images_of_this_project_have_everything() {
        for image in [fixtures::IMAGE, fixtures::IMAGE_OLDEST] {
            for slot in ["pg-1", "px-1", "bkp-1"] {
                let mut desired = desired_as(slot);
                desired.image = serde_json::from_str(image).unwrap();
                assert_eq!(problems(&desired).unwrap(), []);
            }
        }
    }

    #[test]
    fn what_a_component_lacks_is_named_on_the_nodes_that_run_it() {
        let patroni = told(desired(), "patroni", "2.1.7-1");
        assert_eq!(patroni[0], "patroni 2.1.7 has not: failsafe mode, which keeps a primary up without etcd");
        assert_eq!(told(desired(), "etcd", "3.3.25").len(), 1);
        assert_eq!(told(desired(), "haproxy", "2.4.24-0ubuntu0.22.04.1").len(), 1);
        assert_eq!(told(desired(), "postgresql", "12.22-1").len(), 1);
        assert_eq!(told(desired_as("px-1"), "patroni", "2.1.7-1"), [""; 0], "a proxy runs no Patroni");
        assert_eq!(told(desired(), "pgbackrest", "2.36-1"), [""; 0], "no backups, nothing to need");
    }

    #[test]
    fn a_patroni_that_takes_others_leader_keys_is_refused() {
        let taken = ["patroni 3.0.2 has not: a renewal of the leader key that never takes it from another node"];
        assert_eq!(told(desired(), "patroni", "3.0.2-1"), taken);
        assert_eq!(told(desired(), "patroni", "3.0.3-1"), [""; 0]);
        let mut mended = fixtures::desired_of_oldest_image();
        assert_eq!(problems(&mended).unwrap(), []);
        mended.image.components.get_mut("patroni").unwrap().paths.remove(COMPARE_AND_SET);
        assert_eq!(problems(&mended).unwrap().len(), 1);
    }

    #[test]
    fn backups_need_a_pgbackrest_that_knows_the_server() {
        let backs_up = |major: u32, pgbackrest: &str| {
            let mut desired = desired_as("pg-1");
            desired.image.components.get_mut("postgresql").unwrap().version = format!("{major}.1-1");
            told(desired, "pgbackrest", pgbackrest)
        };
        assert_eq!(backs_up(15, "2.45-1"), [""; 0]);
        assert_eq!(backs_up(17, "2.53-1"), ["pgbackrest 2.53.0 has not: backups of PostgreSQL 17"]);
        assert_eq!(backs_up(17, "2.53.1-1"), [""; 0]);
        assert_eq!(backs_up(19, "2.54-1"), ["pgbackrest 2.54.0 has not: backups of PostgreSQL 19"]);
        assert_eq!(backs_up(15, "2.36-1"), ["pgbackrest 2.36.0 has not: a TLS server"]);
    }
}
