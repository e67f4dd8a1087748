//! `pgkiln sign` and `pgkiln verify --public-key` with keys and signatures of the real minisign.

use std::path::{Path, PathBuf};

use pgkiln::digest::Sha256;
use pgkiln::tool::{Cmd, table};
use pgkiln_tests::binary::{self, Said};

type Result<T = ()> = anyhow::Result<T>;

/// A directory as a bake leaves it, and two pairs of keys.
struct Place {
    work: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let place = Self { work: tempfile::tempdir()? };
        place.outputs("1")?;
        for name in ["ours", "other"] {
            let keys = Cmd::new(&table::MINISIGN).args(["-G", "-W", "-p"]).arg(place.path(&format!("{name}.pub")));
            keys.arg("-s").arg(place.path(&format!("{name}.key"))).run()?;
        }
        Ok(place)
    }

    fn outputs(&self, version: &str) -> Result {
        let dir = self.path("out");
        fs_err::create_dir_all(&dir)?;
        fs_err::write(dir.join("x.root.squashfs"), "root")?;
        let sha256 = Sha256::of("root");
        let manifest = serde_json::json!({
            "image": "x", "version": version, "root_hash": null,
            "outputs": [{"name": "x.root.squashfs", "format": "squashfs", "bytes": 4, "sha256": sha256}],
        });
        let manifest = manifest.to_string();
        fs_err::write(dir.join("manifest.json"), &manifest)?;
        let sums = format!("{sha256}  x.root.squashfs\n{}  manifest.json\n", Sha256::of(&manifest));
        Ok(fs_err::write(dir.join("SHA256SUMS"), sums)?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn sign(&self, key: &str) -> Said {
        binary::run(binary::pgkiln().arg("sign").arg(self.path("out")).arg("--key").arg(self.path(key)))
    }

    fn verify(&self, key: impl AsRef<Path>) -> Said {
        binary::run(binary::pgkiln().arg("verify").arg(self.path("out")).arg("--public-key").arg(key.as_ref()))
    }

    #[track_caller]
    fn refused(&self, key: impl AsRef<Path>, told: &str) {
        let said = self.verify(key);
        assert!(said.code == Some(1) && said.stderr.contains(told) && said.stderr.contains("hint: "), "{said:?}");
    }

    fn signature(&self) -> Result<String> {
        Ok(fs_err::read_to_string(self.path("out/SHA256SUMS.minisig"))?)
    }
}

#[test]
fn only_the_given_key_s_signature_of_these_sums_is_believed() -> Result {
    let place = Place::new()?;
    let ours = place.path("ours.pub");
    let plain = binary::run(binary::pgkiln().arg("verify").arg(place.path("out")));
    assert!(plain.code == Some(0) && plain.stdout.contains("not signed"), "{plain:?}");
    place.refused(&ours, "there is no signature");

    assert_eq!(place.sign("ours.key").code, Some(0));
    let signature = place.signature()?;
    assert!(signature.contains("trusted comment: x 1\n"), "{signature}");
    let said = place.verify(&ours);
    assert!(said.code == Some(0) && said.stdout.contains("signed by the given key"), "{said:?}");
    // The key itself instead of its file; and minisign agrees with us.
    let text = fs_err::read_to_string(&ours)?;
    assert_eq!(place.verify(text.lines().nth(1).expect("a second line")).code, Some(0));
    let minisign = Cmd::new(&table::MINISIGN).arg("-V").arg("-p").arg(&ours).arg("-m");
    minisign.arg(place.path("out/SHA256SUMS")).run()?;
    assert_eq!(place.sign("ours.key").code, Some(0));
    assert_eq!(place.signature()?, signature, "signing again gives other bytes");
    let unchecked = binary::run(binary::pgkiln().arg("verify").arg(place.path("out")));
    assert!(unchecked.stdout.contains("by whom was not checked"), "{unchecked:?}");

    place.refused(place.path("other.pub"), "another key signed");
    place.refused("nonsense", "nor a public key");
    // Sums that fit the files, as somebody makes them who exchanges both.
    place.outputs("2")?;
    place.refused(&ours, "the sums were altered");
    fs_err::write(place.path("out/SHA256SUMS.minisig"), "nonsense\n")?;
    place.refused(&ours, "not a signature of minisign");
    Ok(())
}

/// Made by minisign itself without our comment, over the right sums: of which bake is not said.
#[test]
fn a_signature_names_image_and_version() -> Result {
    let place = Place::new()?;
    let sign = Cmd::new(&table::MINISIGN).arg("-S").arg("-s").arg(place.path("ours.key"));
    sign.args(["-t", "x 0", "-m"]).arg(place.path("out/SHA256SUMS")).run()?;
    place.refused(place.path("ours.pub"), "it is the signature of `x 0`, not of `x 1`");
    Ok(())
}

#[test]
fn what_is_not_in_order_is_not_signed() -> Result {
    let place = Place::new()?;
    fs_err::write(place.path("out/x.root.squashfs"), "boot")?;
    let said = place.sign("ours.key");
    assert!(said.code == Some(1) && said.stderr.contains("it was altered"), "{said:?}");
    assert!(!place.path("out/SHA256SUMS.minisig").exists());
    place.outputs("1")?;
    let said = place.sign("none.key");
    assert!(said.code == Some(1) && said.stderr.contains("minisign did not sign"), "{said:?}");
    Ok(())
}
