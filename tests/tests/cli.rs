//! `pgkiln` with wrong input, from outside: the message says what, where and what to do; the exit code tells refusal (1)
//! from misuse (2); nothing is changed.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::collections::BTreeMap;
use std::path::Path;

use pgkiln_tests::binary::{self, Said};
use pgkiln_tests::workspace;
use sha2::{Digest, Sha256};

const NODES: &str = "10.0.0.11,10.0.0.12,10.0.0.13";

/// Every path below `dir` with its content's digest.
fn content(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(current) = open.pop() {
        for entry in fs_err::read_dir(&current).unwrap() {
            let path = entry.unwrap().path();
            let digest = match path.is_dir() {
                true => "directory".to_owned(),
                false => format!("{:x?}", Sha256::digest(fs_err::read(&path).unwrap())),
            };
            found.insert(path.strip_prefix(dir).unwrap().display().to_string(), digest);
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

/// A directory with one good cluster in `orders/`, and `pgkiln` run inside it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let said =
            place.pgkiln(&["cluster", "new", "orders", "--nodes", NODES, "--database", "orders", "--dir", "orders"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = fs_err::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{file} has no `{from}`:\n{text}");
        fs_err::write(self.path(file), text.replacen(from, to, 1)).unwrap();
    }

    fn pgkiln(&self, args: &[&str]) -> Said {
        let cmd = binary::pgkiln().args(args).current_dir(self.0.path());
        binary::run(cmd.env("XDG_DATA_HOME", self.path("data")).env("XDG_CACHE_HOME", self.path("cache")))
    }

    /// Runs, and fails the test unless it is refused with exit code 1 and all of `expected` on stderr, changing nothing.
    fn refused(&self, args: &[&str], expected: &[&str]) {
        let before = content(self.0.path());
        let said = self.pgkiln(args);
        assert_eq!(said.code, Some(1), "pgkiln {args:?}\n{}{}", said.stdout, said.stderr);
        for text in expected {
            assert!(said.stderr.contains(text), "pgkiln {args:?} does not say `{text}`:\n{}", said.stderr);
        }
        assert_eq!(content(self.0.path()), before, "pgkiln {args:?} changed something");
        let json: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let said = self.pgkiln(&json);
        let object: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| {
            panic!("pgkiln {json:?}: standard output is not one object ({error}): {}", said.stdout)
        });
        for key in ["what", "where", "remedy"] {
            assert!(object["error"][key].is_string(), "pgkiln {json:?}: no error.{key} in {object}");
        }
    }
}

#[test]
fn a_log_filter_that_cannot_be_read_is_told_and_changes_nothing() {
    let show = |filter: &str| {
        binary::run(binary::pgkiln().arg("show").arg(workspace::image("debian-13")).env("PGKILN_LOG", filter))
    };
    let (wrong, right) = (show("hyper=loud"), show("debug"));
    assert_eq!((wrong.code, right.code), (Some(0), Some(0)), "{}{}", wrong.stderr, right.stderr);
    assert!(wrong.stderr.contains("PGKILN_LOG is left aside, `warn` is meant"), "{}", wrong.stderr);
    assert!(!right.stderr.contains("left aside"), "{}", right.stderr);
    assert_eq!(wrong.stdout, right.stdout);
}

#[test]
fn wrong_usage_exits_2() {
    let place = Place::new();
    for args in [
        &[][..],
        &["clutser"],
        &["cluster", "new", "orders"],
        &["cluster", "seed", "orders", "--to", "seeds", "--format", "floppy"],
        &["cluster", "new", "orders", "--nodes", NODES, "--subnet", "10.0.0.0"],
        &["doctor", "--yes"],
        &["bake", "--secure-boot-command", "true"],
        &["bake", "--secure-boot-cert", "c.pem"],
        &["bake", "--secure-boot-command", "true", "--secure-boot-key", "k.pem", "--secure-boot-cert", "c.pem"],
    ] {
        let said = place.pgkiln(args);
        assert_eq!(said.code, Some(2), "pgkiln {args:?}\n{}", said.stderr);
        assert!(said.stderr.contains("--help") || said.stderr.contains("Usage:"), "pgkiln {args:?}\n{}", said.stderr);
    }
}

#[test]
fn a_definition_that_cannot_work_is_refused() {
    let place = Place::new();
    let new = |nodes: &str, more: &[&str], expected: &[&str]| {
        let args = ["cluster", "new", "other", "--dir", "other", "--nodes", nodes];
        place.refused(&[&args[..], more].concat(), expected);
    };
    new(
        "10.0.0.11,10.0.0.12,10.0.0.13,10.0.0.14",
        &[],
        &["four nodes: the voters must be 1, 3 or 5", "hint: leave one out"],
    );
    new("10.0.0.11,10.0.1.12,10.0.0.13", &[], &["address 10.0.1.12 of slot `pg-2` is outside the subnet 10.0.0.0/24"]);
    new(
        "a=10.0.0.11,a=10.0.0.12,b=10.0.0.13",
        &[],
        &["slot `a` is given twice (node 1 and node 2)", "hint: give every"],
    );
    new("10.0.0.11,10.0.0.11,10.0.0.13", &[], &["slots `pg-1` and `pg-2` have the same address 10.0.0.11"]);
    new("10.0.0.11,10.0.0.12,10.0.0.255", &[], &["address 10.0.0.255 of slot `pg-3` names the subnet"]);
    new("10.0.0.11,pg,10.0.0.13", &[], &["`pg` is no IP address", "hint: write addresses like 10.0.0.11"]);
    new("Node_1=10.0.0.11", &[], &["`Node_1` cannot be a slot", "hint: use lower-case letters"]);
    new(NODES, &["--owner", "app"], &["--owner app is given without --database", "hint: add --database"]);
    new(NODES, &["--database", "orders", "--owner", "postgres"], &["role `postgres` belongs to PostgreSQL"]);
    new(NODES, &["--prefix-len", "33"], &["33 is no prefix length of address 10.0.0.11"]);
    new(NODES, &["--gateway", "10.1.0.1"], &["gateway 10.1.0.1 is outside the subnet"]);
    let taken = ["cluster", "new", "orders", "--nodes", NODES, "--dir", "orders"];
    place.refused(&taken, &["orders: already exists; it is never overwritten", "hint: choose another place"]);
}

#[test]
fn a_broken_cluster_toml_names_the_line() {
    let cases: [(&str, &str, &[&str]); 8] = [
        ("role = \"node\"", "rolle = \"node\"", &["cluster.toml:5: unknown key `rolle`", "hint: did you mean `role`?"]),
        (
            "role = \"node\"",
            "role = \"noed\"",
            &["cluster.toml:5: unknown `role`: `noed`", "hint: did you mean `node`?"],
        ),
        ("schema = 1", "schema = 7", &["cluster.toml:2: schema 7 is not known"]),
        ("10.0.0.13", "10.0.3.13", &["cluster.toml:19: address 10.0.3.13 of slot `pg-3` is outside the subnet"]),
        ("slot = \"pg-2\"", "slot = \"pg-1\"", &["cluster.toml:14: slot `pg-1` is given twice"]),
        ("slot = \"pg-2\"", "", &["cluster.toml:13: `nodes` has no `slot`", "hint: add `slot"]),
        ("rto = \"norm\"", "rto = 3", &["`postgres.rto` must be a string, found an integer"]),
        ("uuid = \"", "uuid = ", &["cluster.toml:4: not valid TOML"]),
    ];
    for (from, to, expected) in cases {
        let place = Place::new();
        place.edit("orders/cluster.toml", from, to);
        place.refused(&["cluster", "seed", "./orders", "--embed-secrets", "--to", "seeds"], expected);
    }
}

#[test]
fn a_seed_is_written_only_where_it_may_be() {
    let place = Place::new();
    let seed = |more: &[&str], expected: &[&str]| {
        place.refused(&[&["cluster", "seed", "./orders", "--to", "seeds"], more].concat(), expected);
    };
    seed(&["--embed-secrets", "--slot", "pg-7"], &["orders/cluster.toml: this cluster has no slot `pg-7`"]);
    place.refused(
        &["cluster", "seed", "payments", "--to", "seeds"],
        &["there is no cluster here", "hint: make one with"],
    );
    place
        .refused(&["cluster", "secret", "./orders", "order_app"], &["secrets.toml: role `order_app`", "`orders_app`?"]);
    fs_err::create_dir_all(place.path("seeds/pg-3")).unwrap();
    seed(&["--embed-secrets"], &["seeds/pg-3: already exists"]);
}

#[test]
fn a_missing_secret_is_named() {
    let place = Place::new();
    let roles = "name = \"orders_app\"\nlogin = true";
    let more = format!("{roles}\n[[postgres.roles]]\nname = \"reporting\"\nlogin = true");
    place.edit("orders/cluster.toml", roles, &more);
    place.refused(
        &["cluster", "seed", "./orders", "--embed-secrets", "--to", "seeds"],
        &[
            "missing secret: role `reporting` has no password",
            "hint: pgkiln cluster secret ./orders reporting --generate",
        ],
    );
    place.edit("orders/secrets.toml", "superuser = ", "superusr = ");
    place.refused(&["cluster", "secret", "./orders", "postgres"], &["orders/secrets.toml:", "superusr"]);
}

#[test]
fn a_recipe_without_a_lock_says_that_nothing_is_verified() {
    let said = binary::run(binary::pgkiln().arg("show").arg(workspace::image("ubuntu-24.04-percona-17")));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for line in [
        "2:17.11-1.noble (pinned, not locked)",
        "https://repo.percona.com/ppg-17.11/apt (as the recipe says)",
        "key 4D1BB29D63D98E422B2113B19334A25F8507EFA5",
        "(only its fingerprint counts)",
        "noble noble-updates; main universe",
        "as it was at 2",
        "priority 700",
        "no lock: run `pgkiln lock`",
        "verified: nothing yet",
        "not verified: ",
    ] {
        assert!(said.stdout.contains(line), "`{line}` is not in:\n{}", said.stdout);
    }
}

#[test]
fn secrets_do_not_appear_in_messages() {
    let place = Place::new();
    let secrets = fs_err::read_to_string(place.path("orders/secrets.toml")).unwrap();
    let superuser =
        secrets.lines().find_map(|line| line.strip_prefix("superuser = ")).unwrap().trim_matches('"').to_owned();
    place.edit("orders/secrets.toml", &format!("\"{superuser}\""), &format!("\"{superuser}"));
    let said = place.pgkiln(&["cluster", "secret", "./orders", "postgres", "--json"]);
    assert_eq!(said.code, Some(1));
    assert!(!said.stderr.contains(&superuser) && !said.stdout.contains(&superuser), "{}{}", said.stdout, said.stderr);
}

#[test]
fn show_names_dangerous_versions() {
    let place = Place::new();
    let image = pgkiln_tests::workspace::image("debian-12").display().to_string();
    let said = place.pgkiln(&["show", &image]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let told = format!("{}{}", said.stdout, said.stderr);
    for text in
        ["CVE-2026-33413, fixed in 3.4.42, 3.5.28, 3.6.9", "a learner that never started is promoted", "source: "]
    {
        assert!(told.contains(text), "no `{text}` in:\n{told}");
    }
    let said = place.pgkiln(&["show", &image, "--json"]);
    let object: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let patroni = object["warnings"].as_array().unwrap().iter().find(|one| one["component"] == "patroni").unwrap();
    assert!(patroni["version"].as_str().unwrap().starts_with("3.0.2"), "{patroni}");
    for key in ["name", "meaning", "source"] {
        assert!(patroni[key].is_string(), "{patroni}");
    }
}
