//! What one node reads at first boot: NoCloud `meta-data`, `user-data` and `network-config`, as a directory, a `cidata`
//! volume, or the user-data alone. Written private and in one step; an existing target is refused.

use std::path::Path;

use anyhow::Context;
use firstboot::spec::NodeSpec;
use serde::Serialize;

use super::definition::{Definition, Node};
use super::{files, iso};

/// The shape of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SeedFormat {
    /// A NoCloud directory: meta-data, user-data, network-config
    #[value(name = "dir")]
    Directory,
    /// An ISO 9660 image labelled `cidata`, to attach as a drive
    Iso,
    /// The user-data document alone
    UserData,
}

impl SeedFormat {
    /// Name of `slot`'s seed in a directory of seeds.
    pub fn file_name(self, slot: &str) -> String {
        match self {
            Self::Directory => slot.to_owned(),
            Self::Iso => format!("{slot}.iso"),
            Self::UserData => format!("{slot}.user-data"),
        }
    }
}

#[derive(Serialize)]
struct UserData<'a> {
    hostname: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ssh_authorized_keys: &'a [String],
    pgkiln: &'a NodeSpec,
}

/// Writes the seed of `node` to `to`.
pub(super) fn write(
    definition: &Definition,
    node: &Node,
    spec: &NodeSpec,
    format: SeedFormat,
    to: &Path,
) -> anyhow::Result<()> {
    let user_data = user_data(definition, spec)?;
    let directory = |dir: &Path| {
        files::private_dir(dir)?;
        files::private_file(&dir.join("meta-data"), meta_data(definition, node))?;
        files::private_file(&dir.join("user-data"), &user_data)?;
        files::private_file(&dir.join("network-config"), network_config(definition, node))
    };
    let written = files::all_or_nothing(to, |target| match format {
        SeedFormat::Directory => directory(target),
        SeedFormat::UserData => files::private_file(target, &user_data),
        SeedFormat::Iso => {
            let dir = target.with_extension("seed");
            directory(&dir)?;
            iso::write(&dir, target)
        }
    });
    written.with_context(|| format!("writing the seed of `{}`", node.slot))
}

/// `#cloud-config` with our section.
fn user_data(definition: &Definition, spec: &NodeSpec) -> anyhow::Result<String> {
    let document =
        UserData { hostname: &spec.slot, ssh_authorized_keys: &definition.ssh_authorized_keys, pgkiln: spec };
    Ok(format!("#cloud-config\n{}", serde_saphyr::to_string(&document).context("writing user-data")?))
}

/// The instance id names cluster and slot, not the seed: writing a seed again is no new instance.
fn meta_data(definition: &Definition, node: &Node) -> String {
    format!("instance-id: {}-{}\nlocal-hostname: {}\n", definition.uuid, node.slot, node.slot)
}

/// Network configuration, version 2 (the format of netplan).
fn network_config(definition: &Definition, node: &Node) -> String {
    let matches = match &node.mac {
        Some(mac) => format!("macaddress: \"{mac}\""),
        None => "name: \"*\"".to_owned(),
    };
    let mut text = format!(
        "version: 2\nethernets:\n  primary:\n    match: {{{matches}}}\n    dhcp4: false\n    addresses: [\"{}/{}\"]\n",
        node.address,
        definition.subnet.prefix_len()
    );
    if let Some(gateway) = definition.gateway {
        text += &format!("    routes: [{{to: default, via: \"{gateway}\"}}]\n");
    }
    if !definition.nameservers.is_empty() {
        let servers: Vec<String> = definition.nameservers.iter().map(|server| format!("\"{server}\"")).collect();
        text += &format!("    nameservers: {{addresses: [{}]}}\n", servers.join(", "));
    }
    text
}
