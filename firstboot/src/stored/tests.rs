//! First and later boots on a directory that stands in for `/`.

use fs_err as fs;

use super::*;
use crate::fixtures::{SPEC, facts};
use crate::spec::Password;

/// A node's disk and its seed.
struct Node {
    root: tempfile::TempDir,
    board: Board,
    facts: Facts,
}

impl Node {
    fn new() -> Self {
        let machine = Machine { smbios: Some("machine-1".into()), disks: vec!["DISK1".into()] };
        let facts = Facts { machine, ..facts() };
        Self { root: tempfile::tempdir().unwrap(), board: Board::new(None), facts }
    }

    /// One that has accepted the seed of `pg-1`.
    fn accepted() -> Self {
        let node = Self::new();
        node.boot(&document(SPEC)).unwrap();
        node
    }

    fn layout(&self) -> Layout {
        Layout::new(self.root.path())
    }

    fn seed(&self, text: &str) -> Seed {
        let path = self.root.path().join("user-data");
        fs::write(&path, text).unwrap();
        Seed {
            source: "NoCloud, /seed".into(),
            place: "user-data".into(),
            instance_id: "i-1".into(),
            user_data: text.into(),
            wipeable: Some(path),
            ..Seed::default()
        }
    }

    fn start(&self, found: Result<Option<Seed>, Problem>) -> Result<(Accepted, Secrets), Vec<Problem>> {
        accept(&self.layout(), found, &self.facts, &self.board)
    }

    fn boot(&self, text: &str) -> Result<(Accepted, Secrets), Vec<Problem>> {
        self.start(Ok(Some(self.seed(text))))
    }

    fn stored(&self) -> Accepted {
        durable::read_json(&self.layout().spec()).unwrap().unwrap()
    }

    fn noted(&self, text: &str) -> bool {
        self.board.get().notes.iter().any(|note| note.contains(text))
    }

    fn user_data(&self) -> String {
        fs::read_to_string(self.root.path().join("user-data")).unwrap()
    }

    /// Everything the agent remembers.
    fn lib(&self) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(self.layout().lib()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }
}

fn document(section: &str) -> String {
    let indented: String = section.lines().map(|line| format!("  {line}\n")).collect();
    format!("#cloud-config\nhostname: pg-1\npgkiln:\n{indented}")
}

/// `SPEC` as on later boots: the founding bundle is gone.
fn later() -> String {
    SPEC.split("founding:").next().unwrap().to_owned()
}

#[test]
fn the_first_boot_keeps_the_specification_and_wipes_the_secrets() {
    let node = Node::accepted();
    assert!(!node.user_data().contains("secret-") && node.user_data().contains("slot: pg-1"), "{}", node.user_data());
    let spec = fs::read_to_string(node.layout().spec()).unwrap();
    assert!(!spec.contains("secret-"), "{spec}");
    let secrets: Secrets = durable::read_json(&node.layout().secrets()).unwrap().unwrap();
    assert_eq!(secrets.passwords.get(Password::Superuser).unwrap().expose(), "secret-superuser");
    use std::os::unix::fs::PermissionsExt;
    for path in [node.layout().spec(), node.layout().secrets(), node.layout().identity()] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    assert!(node.board.get().notes.is_empty());
}

#[test]
fn a_first_boot_without_a_good_seed_keeps_nothing() {
    let node = Node::new();
    let broken = Problem::new("unreadable", "volume", "x");
    let wrong = document(&SPEC.replace("role: node", "role: nod"));
    for found in [Ok(None), Err(broken), Ok(Some(node.seed(&wrong))), Ok(Some(node.seed(&document(&later()))))] {
        assert!(!node.start(found).unwrap_err().is_empty());
        assert!(!node.layout().lib().exists());
    }
}

#[test]
fn secrets_that_cannot_be_wiped_are_said_and_stop_nothing() {
    let node = Node::new();
    let seed = Seed { wipeable: None, ..node.seed(&document(SPEC)) };
    node.start(Ok(Some(seed))).unwrap();
    assert!(node.noted("still in NoCloud, /seed: it cannot be written to"), "{:?}", node.board.get().notes);
}

#[test]
fn missing_or_broken_metadata_runs_the_stored_specification_loudly() {
    for (found, why) in [
        (Ok(None), "no metadata found"),
        (
            Err(Problem::new("unreadable: I/O error", "volume cidata/user-data", "x")),
            "volume cidata/user-data: unreadable",
        ),
    ] {
        let node = Node::accepted();
        let before = node.lib();
        let (accepted, secrets) = node.start(found).unwrap();
        assert_eq!(
            (accepted.spec.slot.as_str(), secrets.passwords.get(Password::Rewind).unwrap().expose().as_str()),
            ("pg-1", "secret-rewind")
        );
        assert!(node.noted("running the stored specification") && node.noted(why), "{:?}", node.board.get().notes);
        assert_eq!(node.lib(), before);
    }
    let node = Node::accepted();
    let before = node.lib();
    node.boot(&document(&later().replace("role: node", "role: nod"))).unwrap();
    assert!(node.noted("metadata is invalid: user-data:7: unknown role `nod`"), "{:?}", node.board.get().notes);
    assert_eq!(node.lib(), before);
}

#[test]
fn secrets_that_came_over_a_network_are_refused_and_a_used_token_there_is_no_secret() {
    let node = Node::new();
    let served = |text: &str| Ok(Some(Seed { network: true, wipeable: None, ..node.seed(text) }));
    let refused = node.start(served(&document(SPEC))).unwrap_err();
    assert!(refused[0].what.contains("secrets over a network") && refused[0].place == "user-data:3", "{refused:?}");
    assert!(!node.layout().lib().exists());

    node.boot(&document(SPEC)).unwrap();
    let before = node.lib();
    node.start(served(&document(&later()))).unwrap();
    assert!(node.board.get().notes.is_empty(), "{:?}", node.board.get().notes);
    node.start(served(&document(SPEC))).unwrap();
    assert!(node.noted("metadata is invalid") && node.noted("over a network"), "{:?}", node.board.get().notes);
    assert_eq!(node.lib(), before);
}

#[test]
fn the_same_seed_and_another_instance_id_change_nothing() {
    for text in [document(&later()), document(SPEC)] {
        let node = Node::accepted();
        let before = node.lib();
        let seed = Seed { instance_id: "i-2".into(), ..node.seed(&text) };
        node.start(Ok(Some(seed))).unwrap();
        assert_eq!(node.lib(), before);
        assert!(node.board.get().notes.is_empty());
        assert!(!node.user_data().contains("secret-"));
    }
}

#[test]
fn another_nodes_metadata_is_refused_and_left_alone() {
    for (from, to, expected) in [
        ("name: orders, uuid: 6", "name: orders, uuid: 7", "belongs to cluster `orders 6f9c"),
        ("slot: pg-1", "slot: pg-2", "belongs to slot `pg-1`, the metadata says `pg-2`"),
        ("role: node", "role: database", "belongs to role `node`, the metadata says `database`"),
    ] {
        let node = Node::accepted();
        let before = node.lib();
        let text = document(&SPEC.replace(from, to).replace("address: 10.0.0.11/24\n", ""));
        let problems = node.boot(&text).unwrap_err();
        assert!(problems[0].what.contains(expected), "{problems:?}");
        assert_eq!(node.lib(), before);
        assert_eq!(node.user_data(), text, "that node may still need its secrets");
    }
}

#[test]
fn reloadable_keys_are_taken_over_and_others_are_not() {
    let node = Node::accepted();
    let changed = later().replace("work_mem: 32MB", "work_mem: 64MB").replace("10.0.0.0/16", "10.1.0.0/16");
    let changed = changed.replace("pg-3: 10.0.0.13", "pg-3: 10.0.0.14");
    let changed = changed.replace("role: node", "role: node\ntweaks: {push_roles: false}");
    let (accepted, _) = node.boot(&document(&changed).replace("hostname: pg-1", "timezone: Europe/Berlin")).unwrap();
    assert_eq!(accepted.spec.postgres.parameters["work_mem"], "64MB");
    assert_eq!(accepted.spec.client_networks[0].to_string(), "10.1.0.0/16");
    assert_eq!(accepted.config.timezone.as_deref(), Some("Europe/Berlin"));
    assert!(!accepted.spec.tweaks.push_roles);
    assert_eq!(accepted.spec.seeds["pg-3"].to_string(), "10.0.0.13");
    assert!(node.noted("changed in metadata but not applied: spec.seeds.pg-3"), "{:?}", node.board.get().notes);
    assert_eq!(node.stored(), accepted);
    let previous = || durable::read_json::<NodeSpec>(&node.layout().previous_spec()).unwrap().unwrap();
    assert_eq!(previous().postgres.parameters["work_mem"], "32MB");
    // Changed again before Patroni heard of it: what Patroni has is still the first one.
    node.boot(&document(&changed.replace("64MB", "96MB"))).unwrap();
    assert_eq!(node.stored().spec.postgres.parameters["work_mem"], "96MB");
    assert_eq!(previous().postgres.parameters["work_mem"], "32MB");
}

#[test]
fn a_new_password_of_a_role_is_kept() {
    let node = Node::accepted();
    let (_, secrets) = node.boot(&document(&SPEC.replace("$c3RvcmVk:", "$bmV3:"))).unwrap();
    assert!(secrets.roles["orders_app"].contains("$bmV3:"), "{:?}", secrets.roles);
    assert!(!node.user_data().contains("secret-"));
}

#[test]
fn every_change_says_when_it_takes_effect() {
    let node = Node::accepted();
    let before = node.stored();
    let mut after = before.clone();
    after.spec.postgres.parameters.insert("max_connections".into(), "300".into());
    after.spec.postgres.databases.clear();
    after.spec.postgres.durability = spec::Durability::Available;
    after.spec.cluster.ca_sha256 = "0".repeat(64);
    after.spec.backup = Some(spec::Backup::on_host("bkp-2"));
    after.spec.tweaks.push_roles = !after.spec.tweaks.push_roles;
    let lines: Vec<_> = change::changes(&before, &after).iter().map(ToString::to_string).collect();
    let line =
        |path: &str| lines.iter().find(|line| line.starts_with(path)).unwrap_or_else(|| panic!("{path}: {lines:?}"));
    assert!(line("spec.cluster.ca_sha256").contains("NOT applied"));
    assert!(line("spec.postgres.parameters.max_connections: null -> \"300\"").contains("next restart"));
    assert!(line("spec.postgres.databases").contains("when this node leads"));
    assert!(line("spec.postgres.durability").contains("goes to Patroni"));
    // Other nodes and the repository have a part in it.
    assert!(line("spec.backup").contains("NOT applied"));
    assert!(line("spec.tweaks").contains("at this boot"));
    assert!(
        lines.iter().filter(|line| !line.starts_with("spec.backup") && !line.starts_with("spec.tweaks")).count() == 4
    );
}

#[test]
fn a_disk_in_another_machine_starts_nothing() {
    for machine in [
        Machine { smbios: Some("machine-2".into()), disks: vec!["DISK1".into()] },
        Machine { smbios: Some("machine-1".into()), disks: vec!["DISK2".into()] },
    ] {
        let mut node = Node::accepted();
        let before = node.lib();
        node.facts.machine = machine.clone();
        for found in [Ok(None), Ok(Some(node.seed(&document(&later()))))] {
            let problems = node.start(found).unwrap_err();
            assert!(problems[0].what.contains("may be a clone"), "{problems:?}");
            assert!(problems[0].remedy.contains("identity.json"), "{problems:?}");
            assert_eq!(node.lib(), before);
        }
        // The remedy works, and makes this machine the one.
        fs::remove_file(node.layout().identity()).unwrap();
        node.boot(&document(&later())).unwrap();
        let identity: Identity = durable::read_json(&node.layout().identity()).unwrap().unwrap();
        assert_eq!(identity.machine, machine);
    }
}

#[test]
fn lost_or_damaged_records_stop_the_node() {
    for name in ["secrets.json", "spec.json", "identity.json"] {
        let node = Node::accepted();
        fs::write(node.layout().lib().join(name), "{").unwrap();
        assert!(node.boot(&document(&later())).unwrap_err()[0].what.contains(name));
    }
    let node = Node::accepted();
    fs::remove_file(node.layout().secrets()).unwrap();
    assert_eq!(node.boot(&document(&later())).unwrap_err()[0].what, "secrets.json is gone");
}
