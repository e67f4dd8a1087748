//! `pgkiln diff` from outside: two locks, two baked images, one of each, and what is neither.

use std::path::{Path, PathBuf};

use pgkiln_tests::binary::{self, Said};
use pgkiln_tests::workspace;
use serde_json::{Value, json};

type Result<T = ()> = anyhow::Result<T>;

fn diff(old: &Path, new: &Path, more: &[&str]) -> Said {
    binary::run(binary::pgkiln().arg("diff").arg(old).arg(new).args(more))
}

#[track_caller]
fn result(old: &Path, new: &Path) -> Value {
    let said = diff(old, new, &["--json"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    serde_json::from_str(&said.stdout).expect("one object")
}

/// The committed lock with some changes, in a directory like an image's.
fn lock(dir: &Path, changes: &[(&str, &str)]) -> Result<PathBuf> {
    let mut text = fs_err::read_to_string(workspace::image("tools").join("image.lock"))?;
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in the lock");
        text = text.replacen(from, to, 1);
    }
    fs_err::create_dir_all(dir)?;
    fs_err::write(dir.join("image.lock"), text)?;
    Ok(dir.to_owned())
}

/// A manifest of two packages, a unit, the link that enables it and a file.
fn manifest() -> Value {
    let file = |path: &str, mode: &str, digit: &str| json!({ "path": path, "owner_package": null, "mode": mode, "uid": 0, "gid": 0, "sha256": digit.repeat(64) });
    json!({
        "schema": 1, "image": "x", "variant": null, "version": "1", "source_date_epoch": 1,
        "packages": [
            { "name": "etcd-server", "version": "3.5.1", "arch": "amd64", "sha256": "1".repeat(64), "archive": "debian" },
            { "name": "less", "version": "6", "arch": "amd64", "sha256": "2".repeat(64), "archive": "debian" },
        ],
        "files": [
            file("/usr/bin/less", "0100755", "a"),
            file("/usr/lib/systemd/system/etcd.service", "0100644", "b"),
            file("/etc/systemd/system/multi-user.target.wants/etcd.service", "0120777", "c"),
        ],
        "outputs": [{ "name": "x.root.squashfs", "format": "squashfs", "bytes": 1000, "sha256": "3".repeat(64) }],
    })
}

fn baked(dir: &Path, manifest: &Value) -> Result<PathBuf> {
    fs_err::create_dir_all(dir)?;
    fs_err::write(dir.join("manifest.json"), manifest.to_string())?;
    Ok(dir.to_owned())
}

#[test]
fn two_locks() -> Result {
    let work = tempfile::tempdir()?;
    let old = lock(&work.path().join("old"), &[])?;
    let text = fs_err::read_to_string(old.join("image.lock"))?;
    let gpgv = text.split("[[package]]").find(|block| block.contains("name = \"gpgv\"")).expect("tools has gpgv");
    let value = |key: &str| {
        let line = gpgv.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.expect("a field").trim_matches('"').to_owned()
    };
    let (sha256, size) = (value("sha256"), value("size").parse::<u64>()?);
    let block =
        gpgv.replace(&value("version"), "9.9").replace(&sha256, &"0".repeat(64)).replace(&size.to_string(), "7");
    let new = lock(&work.path().join("new"), &[(gpgv, &block)])?;

    assert_eq!(result(&old, &old)["same"], json!(true));
    let found = result(&old, &new.join("image.lock"));
    assert_eq!(found["same"], json!(false));
    assert_eq!(found["packages"], json!([{ "package": "gpgv", "old": value("version"), "new": "9.9" }]));
    let sizes = &found["sizes"][0];
    assert_eq!(sizes["old"].as_u64().zip(sizes["new"].as_u64()).map(|(old, new)| old - new), Some(size - 7));
    assert_eq!(found["files"], Value::Null, "a lock knows no files");
    let said = diff(&old, &new, &[]);
    assert!(said.stdout.contains(&format!("gpgv {} → 9.9", value("version"))), "{}", said.stdout);
    assert!(diff(&old, &old, &[]).stdout.contains("no difference"));
    Ok(())
}

#[test]
fn two_baked_images() -> Result {
    let work = tempfile::tempdir()?;
    let old = baked(&work.path().join("old"), &manifest())?;
    let mut changed = manifest();
    changed["packages"][0]["version"] = json!("3.5.2");
    changed["packages"][0]["sha256"] = json!("4".repeat(64));
    changed["packages"][1]["name"] = json!("more");
    changed["files"][0]["mode"] = json!("0104755");
    changed["files"][2]["path"] = json!("/etc/systemd/system/multi-user.target.wants/other.service");
    changed["outputs"][0]["bytes"] = json!(1500);
    let new = baked(&work.path().join("new"), &changed)?;

    let found = result(&old, &new);
    let drift: Vec<&str> =
        found["packages"].as_array().expect("a list").iter().filter_map(|one| one["package"].as_str()).collect();
    assert_eq!(drift, ["etcd-server", "less", "more"]);
    assert_eq!(found["sizes"], json!([{ "name": "x.root.squashfs", "old": 1000, "new": 1500 }]));
    let wants = |unit: &str| format!("/etc/systemd/system/multi-user.target.wants/{unit}");
    let units = json!({ "added": [wants("other.service")], "removed": [wants("etcd.service")], "changed": [] });
    assert_eq!(found["units"], units);
    assert_eq!(found["files"]["changed"], json!(["/usr/bin/less"]), "set-uid is a difference");
    let said = diff(&old, &new, &[]);
    for line in ["etcd-server 3.5.1 → 3.5.2", "less removed (6)", "more added (6)", "(+500 bytes)", "~ /usr/bin/less"]
    {
        assert!(said.stdout.contains(line), "`{line}` is not in:\n{}", said.stdout);
    }
    Ok(())
}

#[test]
fn a_lock_beside_a_baked_image_and_what_is_neither() -> Result {
    let work = tempfile::tempdir()?;
    let image = baked(&work.path().join("baked"), &manifest())?;
    let tools = lock(&work.path().join("lock"), &[])?;
    let found = result(&tools, &image);
    assert!(found["packages"].as_array().is_some_and(|packages| !packages.is_empty()));
    assert_eq!(found["sizes"], json!([]), "sizes of packages and of outputs are not the same thing");

    let said = diff(&tools, &work.path().join("nothing"), &[]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("nothing: there is neither a lock nor a baked image here"), "{}", said.stderr);
    fs_err::write(work.path().join("bad.json"), "{\"packages\": 3}")?;
    let said = diff(&tools, &work.path().join("bad.json"), &[]);
    assert!(said.stderr.contains("bad.json: not a manifest"), "{}", said.stderr);
    Ok(())
}
