//! `pgkiln cluster`: see [`crate::cluster`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use firstboot::spec::Role;
use ipnet::IpNet;
use serde_json::json;

use crate::cluster::{self, Cluster, FormOptions, Options, Outcome, SeedFormat};
use crate::lab::Lab;
use crate::problem::Problem;
use crate::progress::Ui;

/// Arguments of `pgkiln cluster`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Define a cluster: certificate authorities, passwords, tokens, in a directory only you can read
    New(New),
    /// Write what each node reads at first boot
    Seed(Seed),
    /// Bring the founding secrets to the voters whose seeds have none, once each; they wait for it on port 8443
    Form(Form),
    /// Issue the token of a node anew: for another machine in its slot, or a slot added later
    Token(Token),
    /// Sign a new intermediate certificate: it lives for a year, and every certificate of the nodes ends with it
    Renew(Renew),
    /// Print the password of a role
    Secret(Secret),
    /// Show what the cluster's directory defines; contacts no node
    Status(Status),
    /// List the cluster's backups, as its repository host in a lab sees them
    Backups(Backups),
}

#[derive(Debug, clap::Args)]
struct New {
    /// Name of the cluster: lower-case letters, digits and hyphens
    name: String,
    /// The nodes that store data, 1, 3 or 5 of them: ADDRESS, or SLOT=ADDRESS (slots default to pg-1, pg-2, …)
    #[arg(long, required = true, value_delimiter = ',', value_name = "[SLOT=]ADDRESS")]
    nodes: Vec<String>,
    /// What --nodes do: `node` is etcd, PostgreSQL and HAProxy in one; `database` leaves HAProxy to --proxy
    #[arg(long, value_parser = role, default_value = "node", value_name = "node|database")]
    role: Role,
    /// Nodes that run etcd only, 3 or 5 of them; then --nodes of role `database` have no vote (slots: etcd-1, …)
    #[arg(long, value_delimiter = ',', value_name = "[SLOT=]ADDRESS")]
    etcd: Vec<String>,
    /// Nodes that run HAProxy only, any number (slots: px-1, …)
    #[arg(long, value_delimiter = ',', value_name = "[SLOT=]ADDRESS")]
    proxy: Vec<String>,
    /// Repository host for backups (slot: bkp-1)
    #[arg(long, value_delimiter = ',', value_name = "[SLOT=]ADDRESS")]
    backup: Vec<String>,
    /// Network of the nodes, like 10.0.0.0/24
    #[arg(long, value_name = "CIDR", conflicts_with = "prefix_len")]
    subnet: Option<IpNet>,
    /// Prefix length of the nodes' addresses [default: 24, for IPv6 64]
    #[arg(long, value_name = "BITS")]
    prefix_len: Option<u8>,
    /// Default route of the nodes
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<IpAddr>,
    /// Virtual IP of the HAProxies, moved by Keepalived: a free address of the nodes' network
    #[arg(long, value_name = "ADDRESS")]
    vip: Option<IpAddr>,
    /// Database to create
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Role that owns it and logs in [default: NAME_app]
    #[arg(long, value_name = "ROLE")]
    owner: Option<String>,
    /// Network whose clients may log in with TLS and password; may be repeated [default: only the cluster's own]
    #[arg(long = "client-network", value_name = "CIDR", value_delimiter = ',')]
    client_networks: Vec<IpNet>,
    /// Directory to create [default: $XDG_DATA_HOME/pgkiln/clusters/NAME]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Seed {
    /// Name of the cluster, or its directory
    cluster: String,
    /// Only the seed of this slot [default: all]
    #[arg(long)]
    slot: Option<String>,
    /// Shape of a seed
    #[arg(long, value_enum, default_value = "dir")]
    format: SeedFormat,
    /// Put the intermediate CA's key and the cluster's passwords into the voters' seeds, for trusted media: the nodes wipe
    /// them once they have accepted them. Without it every seed carries a single-use token, and the voters wait for
    /// `pgkiln cluster form`
    #[arg(long)]
    embed_secrets: bool,
    /// Directory for the seeds: DIR/SLOT, DIR/SLOT.iso or DIR/SLOT.user-data
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Form {
    /// Name of the cluster, or its directory
    cluster: String,
    /// Where a voter is reached, if not at its own address and port 8443: through a tunnel, or in a lab
    #[arg(long, value_delimiter = ',', value_name = "SLOT=ADDRESS:PORT", value_parser = at)]
    at: Vec<(String, SocketAddr)>,
    /// How long voters that are not up yet are waited for
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    wait: u64,
}

fn at(text: &str) -> Result<(String, SocketAddr), String> {
    let (slot, address) = text.split_once('=').ok_or("write it like pg-1=127.0.0.1:18443")?;
    let address = address.parse().map_err(|_| format!("`{address}` is no ADDRESS:PORT"))?;
    Ok((slot.to_owned(), address))
}

#[derive(Debug, clap::Args)]
struct Token {
    /// Name of the cluster, or its directory
    cluster: String,
    /// The slot
    slot: String,
}

#[derive(Debug, clap::Args)]
struct Renew {
    /// Name of the cluster, or its directory
    cluster: String,
}

#[derive(Debug, clap::Args)]
struct Secret {
    /// Name of the cluster, or its directory
    cluster: String,
    /// The role: one of the cluster's own, or `postgres`
    role: String,
    /// First generate the password of a role that was added to cluster.toml and has none yet
    #[arg(long)]
    generate: bool,
}

#[derive(Debug, clap::Args)]
struct Status {
    /// Name of the cluster, or its directory
    cluster: String,
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "node" => Ok(Role::Node),
        "database" => Ok(Role::Database),
        _ => Err("use `node` or `database`; other roles have arguments of their own".to_owned()),
    }
}

#[derive(Debug, clap::Args)]
struct Backups {
    /// Name of the cluster, or its directory
    cluster: String,
    /// Lab that runs the cluster [default: the cluster's name]; elsewhere: `firstboot backups` on a node
    #[arg(long, value_name = "NAME")]
    lab: Option<String>,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    match args.command {
        Command::New(args) => new(args, ui),
        Command::Seed(args) => seed(args, ui),
        Command::Form(args) => form(args, ui),
        Command::Token(args) => token(&args, ui),
        Command::Renew(args) => renew(&args, ui),
        Command::Secret(args) => secret(&args, ui),
        Command::Status(args) => status(&args, ui),
        Command::Backups(args) => backups(&args, ui),
    }
}

fn new(args: New, ui: &Ui) -> anyhow::Result<()> {
    let dir = args.dir.unwrap_or_else(|| cluster::default_dir(&args.name));
    let definition = Options {
        name: args.name,
        nodes: args.nodes,
        role: Some(args.role),
        etcd: args.etcd,
        proxies: args.proxy,
        backup: args.backup,
        subnet: args.subnet,
        prefix_len: args.prefix_len,
        gateway: args.gateway,
        vip: args.vip,
        database: args.database,
        owner: args.owner,
        client_networks: args.client_networks,
    }
    .definition()?;
    let cluster = cluster::create(&dir, definition)?;
    let (name, dir) = (&cluster.definition.name, dir.display());
    let by = if cluster::default_dir(name) == cluster.dir() { name.clone() } else { dir.to_string() };
    ui.say(format!("cluster `{name}` is defined in {dir}: it holds the root CA's key and all passwords, keep it safe"));
    if cluster.definition.data_nodes() == 1 {
        ui.say("one node stores data: durability is `available`, a write is safe on that node's disk and nowhere else");
    }
    ui.say(format!("next:\n  pgkiln cluster seed {by} --embed-secrets --to seeds"));
    for role in cluster.definition.login_roles() {
        ui.say(format!("  pgkiln cluster secret {by} {role}"));
    }
    ui.result(&json!({ "cluster": name, "uuid": cluster.definition.uuid, "dir": cluster.dir() }))
}

fn seed(args: Seed, ui: &Ui) -> anyhow::Result<()> {
    let cluster = cluster::find(&args.cluster)?;
    let all = || cluster.definition.nodes.iter().map(|node| node.slot.clone()).collect();
    let slots: Vec<String> = args.slot.map_or_else(all, |slot| vec![slot]);
    let paths = cluster.write_seeds(&slots, args.format, &args.to, args.embed_secrets)?;
    let written: Vec<_> = slots.iter().zip(&paths).map(|(slot, path)| json!({ "slot": slot, "path": path })).collect();
    for (slot, path) in slots.iter().zip(&paths) {
        ui.say(format!("{slot}: {}", path.display()));
    }
    match args.embed_secrets {
        true => ui.say("these seeds hold secrets: delete them once the nodes run"),
        false => {
            ui.say(format!("boot the nodes, then bring the voters their secrets: pgkiln cluster form {}", args.cluster))
        }
    }
    ui.result(&json!({ "cluster": cluster.definition.name, "seeds": written }))
}

fn form(args: Form, ui: &Ui) -> anyhow::Result<()> {
    let cluster = cluster::find(&args.cluster)?;
    let options = FormOptions { at: args.at.into_iter().collect(), patience: Duration::from_secs(args.wait) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    let name = &cluster.definition.name;
    let step = ui.step(format!("forming `{name}`"));
    let voters = runtime.block_on(cluster.form(&options, ui))?;
    step.done();
    let brought = voters.iter().filter(|voter| voter.outcome == Outcome::Brought).count();
    ui.say(match brought {
        0 => format!("nothing was sent: all voters of `{name}` have their secrets"),
        _ => format!(
            "{brought} of {} voters were brought their secrets; they found `{name}` by themselves",
            voters.len()
        ),
    });
    ui.result(&json!({ "cluster": name, "uuid": cluster.definition.uuid, "voters": voters }))
}

fn token(args: &Token, ui: &Ui) -> anyhow::Result<()> {
    let cluster = cluster::find(&args.cluster)?;
    cluster.issue_token(&args.slot)?;
    let (by, slot) = (&args.cluster, &args.slot);
    if cluster.definition.is_voter(slot) {
        ui.say(format!(
            "voter `{slot}` has a new token: it may be brought the founding secrets by another machine. Next:"
        ));
        ui.say(format!("  pgkiln cluster seed {by} --slot {slot} --to seeds"));
        ui.say(format!("  boot the node in `{slot}` with its new seed, then: pgkiln cluster form {by}"));
        return ui.result(&json!({ "cluster": cluster.definition.name, "slot": slot }));
    }
    ui.say(format!("slot `{slot}` has a new token; the one before lets nobody in once the voters know. Next:"));
    ui.say(format!("  pgkiln cluster seed {by} --embed-secrets --to seeds"));
    ui.say("  give the voters their new seeds, then on each: systemctl restart firstboot (no service stops)");
    ui.say(format!("  boot the node in `{slot}` with its new seed"));
    ui.result(&json!({ "cluster": cluster.definition.name, "slot": slot }))
}

fn renew(args: &Renew, ui: &Ui) -> anyhow::Result<()> {
    let cluster = cluster::find(&args.cluster)?;
    cluster.renew_intermediate()?;
    let expires = jiff::Timestamp::from_second(cluster.intermediate_expires_at()?)?;
    ui.say(format!("the new intermediate certificate ends {expires}; the one before stays valid until its end. Next:"));
    ui.say(format!("  pgkiln cluster seed {} --embed-secrets --to seeds", args.cluster));
    ui.say("  give the voters their new seeds, then on each: systemctl restart firstboot (no service stops)");
    ui.say("  they renew their certificates at once, the other nodes theirs when these are due");
    ui.result(&json!({ "cluster": cluster.definition.name, "intermediate_expires_at": expires.to_string() }))
}

fn secret(args: &Secret, ui: &Ui) -> anyhow::Result<()> {
    let cluster = cluster::find(&args.cluster)?;
    if args.generate {
        cluster.generate_secret(&args.role)?;
    }
    let password = cluster.secret(&args.role)?;
    ui.say(password.expose());
    ui.result(&json!({ "cluster": cluster.definition.name, "role": args.role, "password": password.expose() }))
}

fn status(args: &Status, ui: &Ui) -> anyhow::Result<()> {
    let cluster = cluster::find(&args.cluster)?;
    let definition = &cluster.definition;
    let expires = jiff::Timestamp::from_second(cluster.intermediate_expires_at()?)?;
    ui.say(format!("cluster {}  {}  subnet {}", definition.name, definition.uuid, definition.subnet));
    for node in &definition.nodes {
        let vote = if definition.is_voter(&node.slot) { "votes" } else { "" };
        ui.say(format!("  {}  {}  {}  {vote}", node.slot, node.address, definition.role_of(node).name()).trim_end());
    }
    ui.say(format!("root certificate {}", cluster.ca_pem_path().display()));
    ui.say(describe_expiry(expires, &cluster));
    ui.result(&json!({
        "cluster": definition.name,
        "uuid": definition.uuid,
        "nodes": definition.nodes,
        "ca": cluster.ca_pem_path(),
        "intermediate_expires_at": expires.to_string(),
    }))
}

fn backups(args: &Backups, ui: &Ui) -> anyhow::Result<()> {
    let definition = cluster::find(&args.cluster)?.definition;
    let Some(slot) = definition.repositories().next() else {
        let what = format!("cluster `{}` has no node of role `backup`", definition.name);
        return Err(Problem::new(what, "cluster.toml", "add one to `nodes`, write its seed and boot it").into());
    };
    let lab = Lab::attach(args.lab.as_deref().unwrap_or(&definition.name))?;
    let done = lab.exec(slot, ["firstboot", "--json", "backups"])?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        return Err(Problem::new(said, slot, "see `firstboot status` there").into());
    }
    let listed: firstboot::backup::Listed =
        serde_json::from_slice(&done.stdout).context("reading the node's answer")?;
    ui.say(listed.to_string().trim_end());
    ui.result(&listed)
}

fn describe_expiry(expires: jiff::Timestamp, cluster: &Cluster) -> String {
    let days = (expires.as_second() - jiff::Timestamp::now().as_second()) / 86_400;
    let name = &cluster.definition.name;
    match days {
        ..0 => format!("intermediate certificate EXPIRED at {expires}: no node of `{name}` can be founded any more"),
        _ => format!("intermediate certificate ends {expires} (in {days} days)"),
    }
}
