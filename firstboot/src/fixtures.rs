//! A node for tests: specification, image, profile, machine.

use crate::facts::{Facts, Link, Machine};
use crate::image_info::ImageInfo;
use crate::plan::Desired;
use crate::profile::Profile;
use crate::spec::{NodeSpec, Password, Role, Secret, Secrets};
use crate::stored::Accepted;

pub(crate) const SPEC: &str = include_str!("spec/testdata/node.yaml");
pub(crate) const IMAGE: &str = include_str!("testdata/image.json");
/// Of `debian-12`: the oldest components that are supported.
pub(crate) const IMAGE_OLDEST: &str = include_str!("testdata/image-oldest.json");

pub(crate) fn desired() -> Desired {
    let spec = NodeSpec::from_text(SPEC, "user-data").expect("good");
    let secrets = Secrets::from(spec.founding.clone().expect("founding"));
    let accepted = Accepted {
        schema: 1,
        source: "NoCloud, /var/lib/cloud/seed/nocloud".into(),
        instance_id: "i-1".into(),
        spec: spec.without_secrets(),
        config: Default::default(),
        network_config: None,
        ignored: Vec::new(),
    };
    let image: ImageInfo = serde_json::from_str(IMAGE).expect("image.json");
    let profile = Profile::parse(include_str!("../../profiles/node.toml")).expect("profile");
    Desired { accepted, secrets, image, profile }
}

/// The same node of an image with the oldest components that are supported.
pub(crate) fn desired_of_oldest_image() -> Desired {
    of_oldest_image(desired())
}

pub(crate) fn of_oldest_image(desired: Desired) -> Desired {
    Desired { image: serde_json::from_str(IMAGE_OLDEST).expect("image.json"), ..desired }
}

/// The layout with three databases that vote, three proxies and a repository host.
pub(crate) const MEMBERS: &str = "members:
  pg-1: {role: database, address: 10.0.0.11}
  pg-2: {role: database, address: 10.0.0.12}
  pg-3: {role: database, address: 10.0.0.13}
  px-1: {role: proxy, address: 10.0.0.21}
  px-2: {role: proxy, address: 10.0.0.22}
  px-3: {role: proxy, address: 10.0.0.23}
  bkp-1: {role: backup, address: 10.0.0.31}
";

const BACKUP: &str = "backup: {repository: {type: host, host: bkp-1}, full: Sun 02:00, retention_full: 2}\n";

/// Section of the node in `slot` of that layout; with the founding bundle where it votes.
pub(crate) fn section_of(slot: &str) -> String {
    let (role, text) = match slot.split('-').next() {
        Some("px") => ("proxy", SPEC.split("founding:").next().unwrap_or_default()),
        Some("bkp") => ("backup", SPEC.split("founding:").next().unwrap_or_default()),
        _ => ("database", SPEC),
    };
    let address = MEMBERS.lines().find_map(|line| line.trim().strip_prefix(slot)?.split("address: ").nth(1));
    let address = address.expect("a member").trim_end_matches('}');
    text.replace("slot: pg-1", &format!("slot: {slot}"))
        .replace("role: node", &format!("role: {role}"))
        .replace("address: 10.0.0.11/24", &format!("address: {address}/24"))
        .replace("client_networks:", &format!("{MEMBERS}{BACKUP}client_networks:"))
}

/// The node in `slot` of that layout.
pub(crate) fn desired_as(slot: &str) -> Desired {
    let mut desired = desired();
    let spec = NodeSpec::from_text(&section_of(slot), "user-data").expect("good");
    let profile = match spec.role {
        Role::Proxy => include_str!("../../profiles/proxy.toml"),
        Role::Backup => include_str!("../../profiles/backup.toml"),
        _ => include_str!("../../profiles/database.toml"),
    };
    desired.profile = Profile::parse(profile).expect("profile");
    if !spec.is_voter() {
        let share = desired.secrets.passwords.only(Password::of_joiners(spec.role));
        let passwords = share.with(Password::EtcdNode, Secret::new("secret-node".to_owned()));
        desired.secrets = Secrets { schema: 1, ca: desired.secrets.ca, passwords, ..Secrets::default() };
    }
    desired.accepted.spec = spec.without_secrets();
    desired
}

pub(crate) fn facts() -> Facts {
    Facts {
        boot_id: "boot-1".into(),
        machine: Machine::default(),
        memory_mib: 8192,
        cpus: 4,
        links: vec![Link { name: "host0".into(), mac: "02:00:00:00:00:0b".into() }],
        ..Facts::default()
    }
}
