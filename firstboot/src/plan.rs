//! What must be done on this boot, as a value: computed purely from specification, machine and records, printed by
//! `firstboot plan`, compared as text in tests. Everything a step will write is rendered here, so that an error in a
//! template is found before the first byte is written.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::backup;
use crate::facts::Facts;
use crate::image_info::ImageInfo;
use crate::pki;
use crate::problem::Problem;
use crate::profile::Profile;
use crate::proxy;
use crate::render::{self, Input};
use crate::spec::{NodeSpec, Password, PoolerKind, Role, Secrets, VipMode};
use crate::state::State;
use crate::step::{Action, File};
use crate::stored::Accepted;
use crate::tune::hugepages::Question;

/// Everything that determines what the node must become.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The accepted specification and its companions.
    pub accepted: Accepted,
    /// What this node holds of the cluster's secrets; nothing before it has joined.
    pub secrets: Secrets,
    /// What the image contains.
    pub image: ImageInfo,
    /// What the role runs.
    pub profile: Profile,
}

impl Desired {
    /// The specification.
    pub fn spec(&self) -> &NodeSpec {
        &self.accepted.spec
    }

    /// This node's address.
    pub fn ip(&self) -> Result<IpAddr> {
        self.spec().ip().context("the specification gives this node no address")
    }

    /// Whether this node runs a component: its role does, etcd runs on voters only, pgBackRest where there are backups.
    pub fn runs(&self, component: &str) -> bool {
        self.profile.runs(component)
            && match component {
                "etcd" => self.spec().is_voter(),
                "pgbackrest" => self.spec().backup.is_some(),
                _ => true,
            }
    }

    /// What rendering etcd's environment looks at.
    pub fn input(&self) -> Result<Input<'_>> {
        Ok(Input { spec: self.spec(), ip: self.ip()?, etcd_version: self.image.version_of("etcd")? })
    }
}

/// How long the effect of a step lasts, hence when it must be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// On disk: once, and when its input changes.
    Disk,
    /// In `/run` and `/etc`: once a boot.
    Boot,
    /// As long as this process: every run.
    Run,
}

/// Why a step is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Never done here.
    New,
    /// Done with another input.
    Changed,
    /// Must be done on every boot, or by every run.
    Again,
    /// Done, same input: nothing to do.
    No,
}

/// One step of the plan.
#[derive(Debug, Clone)]
pub struct Step {
    /// Identifier: a module of `step/`.
    pub id: &'static str,
    /// What it does, for people.
    pub summary: String,
    /// How long its effect lasts.
    pub lasts: Lasts,
    /// SHA-256 of its input.
    pub digest: String,
    /// Whether and why it must be done.
    pub due: Due,
    /// The work.
    pub action: Action,
}

/// The steps of this boot in order.
#[derive(Debug, Clone)]
pub struct Plan {
    title: String,
    /// All steps, due or not.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether nothing is due but what every run does.
    pub fn is_settled(&self) -> bool {
        self.steps.iter().all(|step| step.due == Due::No || step.lasts == Lasts::Run)
    }
}

/// Computes the plan; refuses what this version does not carry out.
pub fn plan(desired: &Desired, facts: &Facts, state: &State) -> Result<Plan, Vec<Problem>> {
    refuse_unsupported(desired.spec())?;
    refuse_old_components(desired)?;
    let accepted = &desired.accepted;
    let network = render::network::files(
        desired.spec(),
        accepted.network_config.as_deref(),
        &facts.links,
        &accepted.source_of("network-config"),
    )?;
    let ours = |error: anyhow::Error| match error.downcast::<Problem>() {
        Ok(problem) => vec![problem],
        Err(error) => vec![Problem::new(format!("{error:#}"), "plan", "report this: the image and its agent disagree")],
    };
    let actions = actions(desired, facts, network).map_err(ours)?;
    let steps = actions.into_iter().map(|(id, lasts, summary, action)| {
        let digest = hex(&Sha256::digest(action.input()?));
        let due = match (state.steps.get(id), lasts) {
            (_, Lasts::Run) => Due::Again,
            (None, _) => Due::New,
            (Some(record), _) if record.input_digest != digest => Due::Changed,
            (Some(record), Lasts::Boot) if record.boot_id != facts.boot_id => Due::Again,
            (Some(_), _) => Due::No,
        };
        Ok(Step { id, summary, lasts, digest, due, action })
    });
    let steps = steps.collect::<Result<_>>().map_err(ours)?;
    let spec = desired.spec();
    let title = format!("{} {} in cluster {} ({})", spec.role.name(), spec.slot, spec.cluster.name, spec.cluster.uuid);
    Ok(Plan { title, steps })
}

type Draft = (&'static str, Lasts, String, Action);

fn actions(desired: &Desired, facts: &Facts, network: Vec<(String, String)>) -> Result<Vec<Draft>> {
    let mut steps = machine(desired, network)?;
    if desired.secrets.are_here() {
        steps.extend(cluster(desired, facts)?);
    } else if desired.spec().is_voter() {
        // The same: what follows can only be planned with what is in the bundle.
        steps.push(("form", Lasts::Run, "the founding bundle, from `pgkiln cluster form`".to_owned(), Action::Form));
    } else {
        // What follows can only be planned with what the voters answer.
        let voters = desired.spec().seeds.keys().cloned().collect::<Vec<_>>().join(", ");
        steps.push(("join", Lasts::Run, format!("let in by {voters}"), Action::Join));
    }
    Ok(steps)
}

/// What every machine needs, in a cluster or not.
fn machine(desired: &Desired, network: Vec<(String, String)>) -> Result<Vec<Draft>> {
    let (spec, config) = (desired.spec(), &desired.accepted.config);
    let ip = desired.ip()?;
    let files: Vec<File> =
        network.into_iter().map(|(name, text)| File::public(format!("/run/systemd/network/{name}"), text)).collect();
    let how = if files.is_empty() { "configured elsewhere" } else { "by systemd-networkd" };
    let hostname = config.hostname.clone().unwrap_or_else(|| spec.slot.clone());
    let short = hostname.split('.').next().unwrap_or(&hostname).to_owned();
    let mut steps: Vec<Draft> = vec![
        ("network", Lasts::Boot, format!("{ip} {how}"), Action::Network { files, address: ip }),
        ("hostname", Lasts::Boot, short.clone(), Action::Hostname { hosts: hosts(desired, &short), name: short }),
        ("identity", Lasts::Boot, "machine-id kept in /var/lib/pgkiln".to_owned(), Action::Identity),
    ];
    let zone = config.timezone.clone();
    let sources = config.ntp.as_ref().filter(|ntp| ntp.enabled).map(ntp_sources);
    let clock = (desired.image.unit("chrony").ok()).filter(|_| config.ntp.as_ref().is_none_or(|ntp| ntp.enabled));
    let summary = format!("{}, {}", zone.as_deref().unwrap_or("UTC"), clock.unwrap_or("no time service"));
    let unit = clock.map(str::to_owned);
    steps.push(("clock", Lasts::Boot, summary, Action::Clock { zone, sources, unit }));
    if !config.ssh_authorized_keys.is_empty() {
        let keys = config.ssh_authorized_keys.clone();
        let unit = desired.image.unit("ssh")?.to_owned();
        steps.push(("ssh", Lasts::Boot, format!("{} keys for root", keys.len()), Action::Ssh { keys, unit }));
    }
    Ok(steps)
}

/// What makes it a node of its cluster.
fn cluster(desired: &Desired, facts: &Facts) -> Result<Vec<Draft>> {
    let (spec, ip) = (desired.spec(), desired.ip()?);
    let mut steps: Vec<Draft> = Vec::new();
    let names = pki::leaves(spec, ip).iter().map(|leaf| leaf.name.clone()).collect::<Vec<_>>();
    let names = format!("certificates for {}", names.join(", "));
    steps.push(("pki", Lasts::Boot, names, Action::Pki { spec: Box::new(spec.clone()) }));
    let files = config_files(desired, facts)?;
    let names: Vec<_> = files.iter().filter_map(|file| file.path.rsplit('/').next()).collect();
    steps.push(("config", Lasts::Boot, names.join(", "), Action::Files(files.clone())));
    let held = "lease of slot";
    for service in desired.profile.services.iter().filter(|service| desired.runs(service)) {
        // Nothing that must not run twice under one name starts before the slot is held; a proxy waits for nobody.
        if !["etcd", "haproxy", "keepalived"].contains(&service.as_str()) && !holds_slot(&steps) {
            steps.push(("slot", Lasts::Run, format!("{held} {}", spec.slot), Action::Slot));
        }
        let unit = desired.image.unit(service)?.to_owned();
        match service.as_str() {
            "etcd" => {
                let voters = spec.seeds.keys().cloned().collect::<Vec<_>>().join(", ");
                steps.push(("etcd", Lasts::Run, format!("member of {voters}"), Action::Etcd { unit }));
            }
            "pgbackrest" => steps.push(("pgbackrest", Lasts::Boot, format!("start {unit}"), Action::Start { unit })),
            "patroni" => {
                if let Some(question) = Question::new(desired, facts)? {
                    let summary = "from what PostgreSQL says it needs".to_owned();
                    steps.push(("hugepages", Lasts::Boot, summary, Action::HugePages(question)));
                }
                steps.push(("patroni", Lasts::Boot, format!("start {unit}"), Action::Start { unit }));
            }
            "keepalived" => {
                let Some(vip) = spec.lan_vip() else { continue };
                // Which interface it will be is known when the network is up: rendered again then.
                let secret = desired.secrets.passwords.get(Password::EtcdProxy)?;
                render::keepalived::config(spec, secret, &render::keepalived::candidates(spec), "lo")?;
                steps.push((
                    "keepalived",
                    Lasts::Run,
                    format!("virtual IP {}", vip.addr()),
                    Action::Keepalived { unit },
                ));
            }
            "haproxy" => steps.push(("haproxy", Lasts::Boot, format!("start {unit}"), Action::Start { unit })),
            other => {
                let what = format!("role `{}` needs `{other}`, which this version does not run", spec.role.name());
                return Err(Problem::new(what, "pgkiln.role", "use an image of a later version for this node").into());
            }
        }
    }
    if !holds_slot(&steps) {
        steps.push(("slot", Lasts::Run, format!("{held} {}", spec.slot), Action::Slot));
    }
    Ok(steps)
}

fn holds_slot(steps: &[Draft]) -> bool {
    steps.iter().any(|(_, _, _, action)| matches!(action, Action::Slot))
}

fn config_files(desired: &Desired, facts: &Facts) -> Result<Vec<File>> {
    let mut files = Vec::new();
    if desired.runs("etcd") {
        let text = render::etcd::environment(&desired.input()?, render::etcd::InitialState::Existing);
        files.push(File::owned("/run/pgkiln/etcd/etcd.env", text, 0o640, ("root", "etcd")));
    }
    for (user, text) in render::etcdctl::environments(desired.spec(), &desired.secrets)? {
        let path = format!("/run/pgkiln/etcdctl/{user}.env");
        files.push(File::owned(path, text, 0o400, (user, user)));
    }
    if desired.runs("patroni") {
        let text = render::patroni::config(desired, facts)?;
        files.push(File::owned("/run/pgkiln/patroni/patroni.yml", text, 0o600, ("postgres", "postgres")));
        let text = render::patroni::environment(desired.spec());
        files.push(File::owned("/run/pgkiln/patroni/patroni.env", text, 0o644, ("root", "root")));
        let text = render::sql::reconcile(desired.spec(), &desired.secrets);
        files.push(File::owned("/run/pgkiln/patroni/bootstrap.sql", text, 0o600, ("postgres", "postgres")));
    }
    if desired.runs("pgbackrest") {
        let most = backup::queue_max_mib(facts);
        files.extend(render::pgbackrest::files(desired, &backup::members(desired.spec()), most)?);
    }
    if desired.runs("haproxy") {
        files.extend(proxy::files(desired.spec(), &proxy::first_servers(&facts.servers, desired.spec())));
    }
    Ok(files)
}

fn hosts(desired: &Desired, short: &str) -> String {
    let mut text = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {short}\n");
    if let Some(fqdn) = &desired.accepted.config.fqdn {
        text = text.replace(&format!("127.0.1.1 {short}"), &format!("127.0.1.1 {fqdn} {short}"));
    }
    for (slot, member) in desired.spec().all_members() {
        text.push_str(&format!("{} {slot}\n", member.address));
    }
    text
}

fn ntp_sources(ntp: &crate::user_data::Ntp) -> String {
    let servers = ntp.servers.iter().map(|server| format!("server {server} iburst\n"));
    let pools = ntp.pools.iter().map(|pool| format!("pool {pool} iburst\n"));
    servers.chain(pools).collect()
}

fn refuse_unsupported(spec: &NodeSpec) -> Result<(), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut refuse = |what: &str, place: &str, remedy: &str| problems.push(Problem::new(what, place, remedy));
    if matches!(spec.role, Role::Replica | Role::Standby) {
        let what = format!("role `{}` is not carried out by this version", spec.role.name());
        refuse(&what, "pgkiln.role", "use role node, database, etcd, proxy or backup");
    }
    if spec.vip.as_ref().is_some_and(|vip| vip.mode == VipMode::Cloud) {
        let what = "a virtual IP moved by the cloud is not carried out by this version";
        refuse(what, "pgkiln.vip", "remove `vip`, or set `mode: none`");
    }
    if spec.lan_vip().is_some_and(|vip| vip.addr().is_ipv6()) {
        let what = "a virtual IPv6 address is not carried out by this version";
        refuse(what, "pgkiln.vip", "use a free IPv4 address of the subnet, or remove `vip`");
    }
    if spec.pooler.kind != PoolerKind::None {
        refuse("poolers are not carried out by this version", "pgkiln.pooler", "set `kind: none`");
    }
    if spec.disks.data.is_some() {
        refuse("a separate data disk is not carried out by this version", "pgkiln.disks", "remove `disks`");
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn refuse_old_components(desired: &Desired) -> Result<(), Vec<Problem>> {
    let unknown = |error: anyhow::Error| {
        vec![Problem::new(format!("{error:#}"), "/usr/lib/pgkiln/image.json", "boot an image made by `pgkiln bake`")]
    };
    match crate::requires::problems(desired).map_err(unknown)? {
        problems if problems.is_empty() => Ok(()),
        problems => Err(problems),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for (number, step) in self.steps.iter().enumerate() {
            let due = match step.due {
                Due::New => "new",
                Due::Changed => "changed",
                Due::Again => "again",
                Due::No => "done",
            };
            writeln!(f, "[{}/{}] {:<9} {:<8} {}", number + 1, self.steps.len(), step.id, due, step.summary)?;
            for file in step.action.files() {
                writeln!(f, "        writes {} ({:04o} {})", file.path, file.mode, file.owner_name())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
