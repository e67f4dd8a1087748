//! The agent from outside, on a directory that stands in for `/`: what it accepts, what it refuses and how it says so.
//! Nothing here needs root, and nothing may change the tree.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pgkiln_tests::binary::{self, Said};

const SECTION: &str = include_str!("../../firstboot/src/spec/testdata/node.yaml");

/// A tree with a machine, an image and a seed in it.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        root.write("proc/meminfo", "MemTotal:        8388608 kB\n");
        root.write("proc/cpuinfo", "processor\t: 0\nprocessor\t: 1\n");
        root.write("proc/sys/kernel/random/boot_id", "0c1c3c3a-0000-4000-8000-000000000001\n");
        root.write("sys/class/net/eth0/type", "1\n");
        root.write("sys/class/net/eth0/address", "02:00:00:00:00:0b\n");
        root.write("usr/lib/pgkiln/image.json", include_str!("../../firstboot/src/testdata/image.json"));
        root.write("usr/share/pgkiln/profiles/node.toml", include_str!("../../profiles/node.toml"));
        root.seed(&user_data());
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    fn seed(&self, user_data: &str) {
        self.write("var/lib/cloud/seed/nocloud/meta-data", "instance-id: i-1\nlocal-hostname: pg-1\n");
        self.write("var/lib/cloud/seed/nocloud/user-data", user_data);
    }

    fn firstboot(&self, args: &[&str]) -> Said {
        let before = content(self.0.path());
        let said = binary::run(binary::firstboot().arg("--root").arg(self.0.path()).args(args));
        assert_eq!(before, content(self.0.path()), "`{args:?}` changed the tree");
        said
    }

    /// `check` refuses with all of `expected` on stderr, each problem with a hint, exit code 1.
    fn refused(&self, expected: &[&str]) {
        let said = self.firstboot(&["check"]);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        for text in expected {
            assert!(said.stderr.contains(text), "no `{text}` in:\n{}", said.stderr);
        }
        let count = |text: &str| said.stderr.matches(text).count();
        assert_eq!(count("error: "), count("\n  hint: "), "{}", said.stderr);
    }
}

fn user_data() -> String {
    let indented: String = SECTION.lines().map(|line| format!("  {line}\n")).collect();
    format!("#cloud-config\nhostname: pg-1\nruncmd: [reboot]\npgkiln:\n{indented}")
}

/// Every path below `dir` with its bytes.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(current) = open.pop() {
        for entry in fs_err::read_dir(&current).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path.clone());
            }
            found.insert(path.clone(), fs_err::read(&path).unwrap_or_default());
        }
    }
    found
}

#[test]
fn a_good_seed_is_planned_and_changes_nothing() {
    let root = Root::new();
    let said = root.firstboot(&["check"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("good: node pg-1 in cluster orders"), "{}", said.stdout);
    assert!(said.stdout.contains("ignored: `runcmd` (line 3)"), "{}", said.stdout);
    let said = root.firstboot(&["plan"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("writes /run/systemd/network/10-pgkiln.network (0644 root)"), "{}", said.stdout);
    assert!(said.stdout.contains("writes /run/pgkiln/patroni/patroni.yml (0600 postgres:postgres)"), "{}", said.stdout);
    assert!(!said.stdout.contains("secret-"), "{}", said.stdout);
}

#[test]
fn wrong_input_names_line_and_remedy() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("  durability:", "  durabilty:", &["user-data:13: unknown key `durabilty`", "did you mean `durability`?"]),
        ("role: node", "role: nod", &["user-data:8: unknown role `nod`", "did you mean `node`?"]),
        (
            "role: node",
            "role: standby",
            &["user-data:10: slot `pg-1` of role `standby` is among the seeds", "the voters"],
        ),
        ("      rewind: secret-rewind\n", "", &["user-data:27: missing secret: password `rewind`"]),
        ("slot: pg-1", "slot: pg-9", &["user-data:7: slot `pg-9` is not among the seeds"]),
        (
            "pg-3: 10.0.0.13",
            "pg-3: 10.0.0.12",
            &["user-data:10: slots `pg-2` and `pg-3` have the same address 10.0.0.12"],
        ),
        (
            "address: 10.0.0.11/24",
            "address: 10.9.0.11/24",
            &["user-data:9: address 10.9.0.11 differs", "user-data:10: seed `pg-2`", "is outside the subnet"],
        ),
        ("pg-3: 10.0.0.13", "pg-2: 10.0.0.13", &["user-data:10: invalid YAML: duplicate mapping key"]),
        ("pg-3: 10.0.0.13", "pg-3: 10.0.0.13, pg-4: 10.0.0.14", &["user-data:10: four seeds", "1, 3 or 5"]),
        (
            ", pg-2: 10.0.0.12, pg-3: 10.0.0.13",
            "",
            &["durability zero-loss with one node that stores data", "durability: available"],
        ),
        ("seeds: {", "seeds: {{", &["user-data:", "invalid YAML"]),
        ("#cloud-config", "#!/bin/sh", &["user-data:1: scripts are refused"]),
        ("pgkiln:", "pgkilm:", &["no `pgkiln:` section"]),
    ];
    let root = Root::new();
    let text = user_data();
    for (from, to, expected) in cases {
        assert!(text.contains(from), "the seed has no `{from}`");
        root.seed(&text.replacen(from, to, 1));
        root.refused(expected);
    }
}

#[test]
fn a_seed_without_any_secret_is_refused() {
    let root = Root::new();
    let text = user_data();
    root.seed(text.split("  founding:").next().unwrap());
    root.refused(&[
        "user-data:4: missing secret: the specification has neither `founding` nor `join`",
        "--embed-secrets",
    ]);
}

#[test]
fn all_problems_come_at_once() {
    let root = Root::new();
    let text = user_data().replace("durability:", "durabilty:").replace("role: node", "role: nod");
    root.seed(&text.replace("pg-3: 10.0.0.13}", "pg-3: 10.0.0.x}"));
    root.refused(&["`durabilty`", "`nod`", "`10.0.0.x` is not valid"]);
}

#[test]
fn no_seed_and_half_a_seed() {
    let root = Root::new();
    fs_err::remove_file(root.path("var/lib/cloud/seed/nocloud/meta-data")).unwrap();
    root.refused(&["the seed has no `meta-data`"]);
    fs_err::remove_dir_all(root.path("var/lib/cloud")).unwrap();
    root.refused(&["no metadata found"]);
    let volume = "dev/disk/by-label/cidata";
    root.write(&format!("{volume}/user-data"), &user_data());
    root.write(&format!("{volume}/meta-data"), "instance-id: i-1\n");
    assert_eq!(root.firstboot(&["check"]).code, Some(0));
}

#[test]
fn first_boot_fails_closed() {
    let root = Root::new();
    root.seed(&user_data().replace("role: node", "role: nod"));
    let said = binary::run(binary::firstboot().arg("--root").arg(root.0.path()).arg("run"));
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(
        said.stderr.contains("unknown role `nod`") && said.stderr.contains("nothing was started"),
        "{}",
        said.stderr
    );
    assert!(!root.path("var/lib/pgkiln/spec.json").exists());
    let status = root.firstboot(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!((&status["phase"], &status["verdict"]), (&"Failed".into(), &"bad".into()));
    assert_eq!(status["error"]["what"], "unknown role `nod`");
    assert!(status["error"]["where"].as_str().unwrap().ends_with("user-data:8"), "{status}");
}

#[test]
fn inspect_says_what_the_datasource_says() {
    let root = Root::new();
    let said = root.firstboot(&["inspect", "--json"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let value: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(value["instance_id"], "i-1");
    assert_eq!(value["spec"]["slot"], "pg-1");
    assert_eq!(value["ignored_keys"][0]["key"], "runcmd");
    let file = value["network"]["files"]["10-pgkiln.network"].as_str().unwrap();
    assert!(file.contains("Address=10.0.0.11/24"), "{file}");
    assert!(!said.stdout.contains("secret-"), "{}", said.stdout);
}
