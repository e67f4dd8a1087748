//! Secure Boot by a command: what a PKCS #11 token or openssl signs is, byte for byte, what the key in a file signs; sbverify
//! believes it; and what is no signature of the certificate's key is refused.
//!
//! Run by `cargo selftest`: needs root, and the tool tree whose sbsign lays the signature out.

use std::path::{Path, PathBuf};

use pgkiln::bake::{RootTree, tool_tree};
use pgkiln::disk::secure_boot::{self, Keys, Signer};
use pgkiln::problem::Problem;
use pgkiln::progress::Ui;
use pgkiln::sandbox::Sandbox;
use pgkiln::tool::{Cmd, shell_quoted, table};
use pgkiln_tests::{image, workspace};

type Result<T = ()> = anyhow::Result<T>;

const EPOCH: u64 = 1_763_900_000;
/// A program for firmware that the tool tree has.
const PROGRAM: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";
/// Debian's and Ubuntu's place of the token's library.
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "123456";

/// A program to sign, as a bake has it.
struct Place {
    work: tempfile::TempDir,
    tools: RootTree,
}

impl Place {
    /// `None` where nothing that needs root is run.
    fn new() -> Result<Option<Self>> {
        if image::baked().is_none() {
            return Ok(None);
        }
        let tools = tool_tree(&workspace::image("tools"), &Ui::silent(pgkiln::cli::default_cache_dir()))?;
        let place = Self { work: tempfile::tempdir()?, tools };
        fs_err::create_dir(place.path("disk"))?;
        fs_err::copy(place.tools.root.join(PROGRAM), place.path("disk/program.efi"))?;
        Ok(Some(place))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// Makes `<name>.key` and its certificate `<name>.crt`.
    fn make(&self, name: &str, algorithm: &[&str]) -> Result {
        let (key, certificate) = (self.key(name), self.certificate(name));
        let subject = format!("/CN={name}");
        let cmd = Cmd::new(&table::OPENSSL).args(["req", "-x509", "-nodes", "-days", "3650", "-subj", &subject]);
        cmd.arg("-newkey").args(algorithm).arg("-keyout").arg(key).arg("-out").arg(certificate).run()
    }

    fn key(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.key"))
    }

    fn certificate(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.crt"))
    }

    /// openssl, which takes the key from its file as a token takes it from itself.
    fn openssl(&self, name: &str) -> Signer {
        Signer::Command(format!("openssl pkeyutl -sign -inkey {}", quoted(&self.key(name))))
    }

    /// The signed program.
    fn sign(&self, signer: Signer, certificate: &str) -> Result<Vec<u8>> {
        let keys = Keys { signer, certificate: self.certificate(certificate) };
        let signed = secure_boot::sign(&self.tools.root, &self.path("disk"), EPOCH, &keys, "program.efi")?;
        Ok(fs_err::read(signed)?)
    }

    /// Whether sbverify believes what was signed last.
    fn believed(&self, certificate: &str) -> Result<bool> {
        let path = format!("/mnt/{certificate}.crt");
        let sandbox = Sandbox::new(&self.tools.root, EPOCH).bind(self.work.path(), "mnt", true);
        let output = sandbox.output(&["sbverify", "--cert", &path, "/mnt/disk/program.efi.signed"])?;
        Ok(output.status.success())
    }

    #[track_caller]
    fn refused(&self, signer: Signer, certificate: &str, why: &str, remedy: &str) {
        let error = self.sign(signer, certificate).expect_err(why);
        let problem = error.downcast_ref::<Problem>().unwrap_or_else(|| panic!("{error:#}"));
        assert!(problem.what.contains(why) && problem.remedy.contains(remedy), "{problem} instead of {why}");
    }
}

fn quoted(path: &Path) -> String {
    shell_quoted(&path.display().to_string())
}

#[test]
fn a_command_signs_what_the_key_itself_would() -> Result {
    let Some(place) = Place::new()? else { return Ok(()) };
    place.make("other", &["rsa:2048"])?;
    for bits in ["rsa:2048", "rsa:4096"] {
        place.make("ours", &[bits])?;
        let by_key = place.sign(Signer::Key(place.key("ours")), "ours")?;
        assert!(place.believed("ours")? && !place.believed("other")?, "{bits}: by the key");
        let by_command = place.sign(place.openssl("ours"), "ours")?;
        assert!(place.believed("ours")? && !place.believed("other")?, "{bits}: by the command");
        assert!(by_key == by_command, "{bits}: the command's signature differs");
        assert!(place.sign(place.openssl("ours"), "ours")? == by_command, "{bits}: another one the second time");
    }
    Ok(())
}

#[test]
fn a_token_signs_and_keeps_its_key() -> Result {
    let Some(place) = Place::new()? else { return Ok(()) };
    place.make("ours", &["rsa:3072"])?;
    let (conf, tokens) = (place.path("softhsm2.conf"), place.path("tokens"));
    fs_err::create_dir(&tokens)?;
    fs_err::write(&conf, format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display()))?;
    let token = || Cmd::new(&table::SOFTHSM).env("SOFTHSM2_CONF", &conf);
    token().args(["--init-token", "--free", "--label", "pgkiln", "--pin", PIN, "--so-pin", PIN]).run()?;
    let import = token().args(["--token", "pgkiln", "--label", "secure boot", "--id", "a1b2", "--pin", PIN]);
    import.arg("--import").arg(place.key("ours")).run()?;

    let by_key = place.sign(Signer::Key(place.key("ours")), "ours")?;
    fs_err::remove_file(place.key("ours"))?;
    let tool = table::PKCS11_TOOL.find()?;
    let line = format!(
        "export SOFTHSM2_CONF={} PIN={PIN}; {} --module {MODULE} --token-label pgkiln --id a1b2 --pin env:PIN --sign \
         --mechanism RSA-PKCS",
        quoted(&conf),
        quoted(&tool)
    );
    let by_token = place.sign(Signer::Command(line.clone()), "ours")?;
    assert!(place.believed("ours")? && by_token == by_key, "the token's signature differs");
    place.refused(Signer::Command(line.replace("a1b2", "ffff")), "ours", "failed", "RSA-PKCS");
    Ok(())
}

#[test]
fn what_is_no_signature_of_the_certificate_s_key_is_refused() -> Result {
    let Some(place) = Place::new()? else { return Ok(()) };
    place.make("ours", &["rsa:2048"])?;
    place.make("other", &["rsa:2048"])?;
    place.make("curve", &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"])?;
    place.make("short", &["rsa:1024"])?;
    let command = Signer::Command;
    let remedy = "openssl pkeyutl";
    place.refused(place.openssl("other"), "ours", "the key of", remedy);
    place.refused(command("cat".to_owned()), "ours", "51 bytes instead of 256", remedy);
    place.refused(command("echo no >&2; exit 3".to_owned()), "ours", "exit status: 3", remedy);
    // It hashes the digest once more.
    let hashes = format!("openssl dgst -sha256 -sign {}", quoted(&place.key("ours")));
    place.refused(command(hashes), "ours", "the key of", remedy);
    let random = format!("openssl pkeyutl -sign -inkey {} -pkeyopt rsa_padding_mode:pss", quoted(&place.key("ours")));
    place.refused(command(random + " -pkeyopt digest:sha256 || head -c 256 /dev/zero"), "ours", "the key of", remedy);
    place.refused(Signer::Key(place.key("other")), "ours", "not the key of the certificate", "made for it");
    place.refused(Signer::Key(place.certificate("ours")), "ours", "not a private key", "openssl pkcs8");
    place.refused(place.openssl("curve"), "curve", "not RSA", "65537");
    place.refused(place.openssl("short"), "short", "1024 bits", "2048 to 4096");
    Ok(())
}
