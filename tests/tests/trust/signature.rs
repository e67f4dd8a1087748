//! Who signed, and what exactly.

use pgkiln_tests::keys::LONG_AGO;

use super::hostile::Case;

pub(super) const CASES: &[Case] = &[
    Case { name: "unsigned", says: "not signed, so nothing", make: |h| h.serve(h.release()?) },
    Case {
        name: "text before the signed part",
        says: "text before the signed part",
        make: |h| h.serve(format!("Origin: Someone\n\n{}", h.inrelease()?)),
    },
    Case {
        name: "text after the signature",
        says: "text after the signature",
        make: |h| h.serve(format!("{}\nOrigin: Someone\n", h.inrelease()?)),
    },
    Case {
        name: "cut off",
        says: "cut off before the end of its signature",
        make: |h| {
            let text = h.inrelease()?;
            h.serve(&text[..text.len() - 60])
        },
    },
    Case {
        name: "no signature in the block",
        says: "no signature in its signature block",
        make: |h| {
            let text = h.inrelease()?;
            let at = text.find("-----BEGIN PGP SIGNATURE").unwrap_or_default();
            h.serve(format!("{}-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n", &text[..at]))
        },
    },
    Case {
        name: "not UTF-8",
        says: "not UTF-8 text, which a Release file",
        make: |h| {
            let text = h.release()?.replace("Origin: Fixture", "Origin: Fixtur@");
            let latin1: Vec<u8> = text.bytes().map(|byte| if byte == b'@' { 0xe9 } else { byte }).collect();
            h.sign_by(latin1, &["first"], &[])
        },
    },
    Case {
        name: "larger than any suite",
        says: "is larger than 16777216 bytes",
        make: |h| {
            let text = h.release()? + &" \n".repeat(9 << 20);
            h.sign(&text)
        },
    },
    Case {
        name: "altered after signing",
        says: "the file was altered or is incomplete",
        make: |h| h.serve(h.inrelease()?.replace("Label: Fixture", "Label: Faxture")),
    },
    Case {
        name: "a key that is not pinned",
        says: ", the recipe pins ",
        make: |h| h.sign_by(h.release()?, &["second"], &[]),
    },
    Case {
        name: "a key that is not in the keyring",
        says: "a key that is not in the keyring",
        make: |h| h.sign_by(h.release()?, &["stranger"], &[]),
    },
    Case {
        name: "expired key",
        says: "a key that has expired",
        make: |h| {
            h.pin("expired")?;
            h.sign_by(h.release()?, &["expired"], &["--faked-system-time", LONG_AGO])
        },
    },
    Case {
        name: "revoked key",
        says: "a key that was revoked",
        make: |h| {
            h.pin("revoked")?;
            h.sign_by(h.release()?, &["revoked"], &[])?;
            h.keys.revoke("revoked")?;
            let keyring = h.keys.export("revoked.gpg", &["revoked"])?;
            h.edit(&h.archive.keyring().display().to_string(), &keyring.display().to_string())
        },
    },
    Case {
        name: "expired signature",
        says: "but the signature has expired",
        make: |h| {
            h.pin("old")?;
            let more = ["--faked-system-time", LONG_AGO, "--default-sig-expire", "1d"];
            h.sign_by(h.release()?, &["old"], &more)
        },
    },
    Case {
        name: "SHA-1 signature",
        says: "signed with SHA-1",
        make: |h| {
            h.pin("rsa")?;
            h.sign_by(h.release()?, &["rsa"], &["--digest-algo", "SHA1"])
        },
    },
    Case {
        name: "MD5 signature",
        says: "signed with MD5",
        make: |h| {
            h.pin("rsa")?;
            h.sign_by(h.release()?, &["rsa"], &["--allow-weak-digest-algos", "--digest-algo", "MD5"])
        },
    },
    Case {
        name: "RIPEMD-160 signature",
        says: "signed with RIPEMD-160",
        make: |h| {
            h.pin("rsa")?;
            h.sign_by(h.release()?, &["rsa"], &["--digest-algo", "RIPEMD160"])
        },
    },
    Case {
        name: "of two signatures only a stranger's is valid",
        says: "besides it is signed by",
        make: |h| {
            // The pinned key signed something; the second key signed what is served, and both signatures are shown.
            let sha = ["--digest-algo", "SHA512"];
            let signed = |text: &str, name: &str| h.keys.clearsign(text, &[name], &sha);
            let ours = String::from_utf8(signed("Origin: Fixture\n", "first")?)?;
            let theirs = String::from_utf8(signed(&h.release()?, "second")?)?;
            let block = |text: &str| {
                let at = text.find("-----BEGIN PGP SIGNATURE").unwrap_or_default();
                h.keys.dearmour(&text[at..])
            };
            // gpgv stops at the first bad one.
            let both = [block(&theirs)?, block(&ours)?].concat();
            let at = theirs.find("-----BEGIN PGP SIGNATURE").unwrap_or_default();
            let armour = h.keys.armour_signature(&both)?;
            h.serve(format!("{}{armour}", &theirs[..at]))
        },
    },
];
