//! Keys: from a file, where the host vouches for it, or from an https address, where only the full fingerprint does.

use std::collections::HashMap;

use pgkiln_tests::archive::{Archive, Deb, Publication};
use pgkiln_tests::archive_server::Server;
use pgkiln_tests::binary::{self, Said};
use pgkiln_tests::keys::Keys;
use pgkiln_tests::tls_server::{Answer, TlsServer};

use super::all_keys;
use super::hostile::Result;

/// `pgkiln lock` with the key at an address, from outside: which certificates are trusted is the process's environment.
struct Place {
    archive: Archive,
    plain: Server,
    tls: TlsServer,
    work: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let keys = std::sync::Arc::new(all_keys()?);
        let mut archive = Archive::with_keys("stable", keys.clone())?;
        archive.add(&Deb::new("base", "1").essential())?;
        archive.publish(&Publication::default())?;
        fs_err::copy(archive.first_keyring(), archive.dir().join("key.gpg"))?;
        let plain = Server::start(archive.dir())?;
        let tls = TlsServer::start(answers(&keys, &plain.url())?)?;
        Ok(Self { archive, plain, tls, work: tempfile::tempdir()? })
    }

    /// Locks with `key`; `trusted`: whether the server's certificate is.
    fn lock(&self, key: &str, trusted: bool) -> Result<Said> {
        let image = self.archive.recipe(self.work.path(), &self.plain.url(), &["base"])?;
        let recipe = image.join("image.toml");
        let text = fs_err::read_to_string(&recipe)?;
        let keyring = self.archive.keyring().display().to_string();
        fs_err::write(&recipe, text.replace(&keyring, &key.replace("TLS", &self.tls.url())))?;
        let cmd = binary::pgkiln().args(["lock", "--update"]).arg(&image).arg("--cache").arg(self.cache());
        let cmd = if trusted { cmd.env("SSL_CERT_FILE", self.tls.certificate()) } else { cmd };
        Ok(binary::run(cmd))
    }

    fn cache(&self) -> std::path::PathBuf {
        self.work.path().join("cache")
    }

    #[track_caller]
    fn refused(&self, key: &str, trusted: bool, says: &str) -> Result {
        let said = self.lock(key, trusted)?;
        assert_eq!(said.code, Some(1), "{key}: {}", said.stderr);
        assert!(said.stderr.contains(says), "{key}: expected `{says}` in: {}", said.stderr);
        assert!(said.stderr.contains("hint: "), "{key}: {}", said.stderr);
        assert!(!self.work.path().join("fixture/image.lock").exists(), "{key}: a lock was written");
        let store = self.cache().join("cas/sha256");
        assert!(!store.exists() || fs_err::read_dir(&store)?.next().is_none(), "{key}: the store is not empty");
        Ok(())
    }
}

fn answers(keys: &Keys, plain: &str) -> Result<HashMap<String, Answer>> {
    let exported = |file: &str, names: &[&str]| Ok::<_, anyhow::Error>(fs_err::read(keys.export(file, names)?)?);
    let content = |bytes: Vec<u8>| Answer::Content(bytes);
    let answers = [
        ("/first.gpg", content(exported("a.gpg", &["first"])?)),
        ("/moved.gpg", Answer::Redirect("/first.gpg".into())),
        ("/second.gpg", content(exported("b.gpg", &["second"])?)),
        ("/several.gpg", content(exported("c.gpg", &["first", "stranger"])?)),
        ("/secret.gpg", content(keys.export_secret("first")?)),
        ("/page.html", content(b"<html>Please log in</html>\n".to_vec())),
        ("/large.gpg", content(vec![0x99; 2 << 20])),
        ("/downgrade.gpg", Answer::Redirect(format!("{plain}/key.gpg"))),
        ("/circle.gpg", Answer::Redirect("/circle.gpg".into())),
    ];
    Ok(answers.into_iter().map(|(path, answer)| (path.to_owned(), answer)).collect())
}

#[test]
fn a_key_at_an_address_is_taken_only_if_it_is_the_pinned_one() -> Result {
    let place = Place::new()?;
    let (first, stranger) = (place.archive.fingerprint(0), all_of(&place, "stranger.gpg")?);
    place.refused(
        "TLS/second.gpg",
        true,
        &format!("the key served is {}, the recipe pins {first}", place.archive.fingerprint(1)),
    )?;
    place.refused("TLS/several.gpg", true, &format!("beside a pinned key the file has others: {stranger}"))?;
    place.refused("TLS/secret.gpg", true, "not a key file: it has a secret key")?;
    place.refused("TLS/page.html", true, "not a key file: there is no key in it")?;
    place.refused("TLS/large.gpg", true, "is larger than 1048576 bytes")?;
    place.refused("TLS/none.gpg", true, "no longer has the key of archive `fixture`")?;
    place.refused("TLS/downgrade.gpg", true, "it is redirected to the unprotected address http://")?;
    place.refused("TLS/circle.gpg", true, "it is redirected without end")?;
    place.refused("TLS/first.gpg", false, "certificate")?;
    place.refused(
        &format!("{}/key.gpg", place.plain.url()),
        true,
        "image.toml:12: the key would come over an unprotected connection",
    )?;
    assert!(place.plain.requests("key.gpg").is_empty(), "a key was asked for over plain http");
    for good in ["TLS/first.gpg", "TLS/moved.gpg"] {
        let said = place.lock(good, true)?;
        assert_eq!(said.code, Some(0), "{good}: {}", said.stderr);
    }
    Ok(())
}

fn all_of(place: &Place, file: &str) -> Result<String> {
    let path = place.archive.keyring().with_file_name(file);
    let keys = pgkiln::apt::keyring::read(&fs_err::read(&path)?, file)?;
    Ok(keys.into_iter().map(|key| key.fingerprint).collect::<Vec<_>>().join(", "))
}

#[test]
fn a_key_file_must_have_the_pinned_key() -> Result {
    let place = Place::new()?;
    let beside = |name: &str| place.archive.keyring().with_file_name(name).display().to_string();
    place.refused(&beside("stranger.gpg"), true, "has none of the pinned keys: it has ")?;
    place.refused(
        "/no/such/keyring.gpg",
        true,
        "the keyring `/no/such/keyring.gpg` of archive `fixture` does not exist",
    )?;
    let page = place.work.path().join("page.gpg");
    fs_err::write(&page, "<html>\n")?;
    place.refused(&page.display().to_string(), true, "not a key file")?;
    let said = place.lock(&beside("first.gpg"), true)?;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    Ok(())
}
