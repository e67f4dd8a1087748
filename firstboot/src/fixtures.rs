//! A node for tests: specification, image, profile, machine.

use crate::facts::{Facts, Link, Machine};
use crate::image_info::ImageInfo;
use crate::plan::Desired;
use crate::profile::Profile;
use crate::spec::NodeSpec;
use crate::stored::Accepted;

pub(crate) const SPEC: &str = include_str!("spec/testdata/node.yaml");
pub(crate) const IMAGE: &str = include_str!("testdata/image.json");

pub(crate) fn desired() -> Desired {
    let spec = NodeSpec::from_text(SPEC, "user-data").expect("good");
    let secrets = spec.founding.clone().expect("founding");
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
