//! Hostile archives: whatever breaks the chain key → InRelease → index → package is refused with its own message, and leaves
//! nothing behind that a later bake could take. Every archive here is really signed and served on loopback; one thing is
//! wrong with it.

use std::sync::Arc;

use pgkiln_tests::keys::{Keys, LONG_AGO};

mod content;
mod hostile;
mod keys;
mod release;
mod signature;

use hostile::{Case, Hostile, Result};

fn cases() -> Vec<Case> {
    [signature::CASES, release::CASES, content::CASES].concat()
}

/// Good keys and every other sort.
fn all_keys() -> Result<Keys> {
    let mut keys = Keys::new()?;
    for name in ["first", "second", "stranger", "revoked"] {
        keys.make(name, "ed25519", "never", &[])?;
    }
    keys.make("rsa", "rsa2048", "never", &[])?;
    keys.make("old", "ed25519", "never", &["--faked-system-time", LONG_AGO])?;
    keys.make("expired", "ed25519", "2d", &["--faked-system-time", LONG_AGO])?;
    keys.export("keyring.gpg", &["first", "second", "rsa", "old", "expired"])?;
    keys.export("first.gpg", &["first"])?;
    keys.export("stranger.gpg", &["stranger"])?;
    Ok(keys)
}

#[test]
fn every_hostile_archive_is_refused_with_its_own_message_and_leaves_nothing() -> Result {
    let keys = Arc::new(all_keys()?);
    let cases = cases();
    assert!(cases.len() >= 30, "{} cases", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        let problem = match Hostile::new(keys.clone()).and_then(|hostile| hostile.refusal(case)) {
            Ok(problem) => problem,
            Err(error) => {
                failures.push(format!("{}: {error:#}", case.name));
                continue;
            }
        };
        eprintln!("{:<44} {}", case.name, problem.what);
        if !problem.what.contains(case.says) {
            failures.push(format!("{}: expected `{}` in: {problem}", case.name, case.says));
        }
        if problem.place.is_empty() || problem.remedy.is_empty() {
            failures.push(format!("{}: no place or remedy: {problem}", case.name));
        }
        for other in cases.iter().filter(|other| other.name != case.name && problem.what.contains(other.says)) {
            failures.push(format!("{}: reads like {}: {problem}", case.name, other.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// The control: the same archive with nothing wrong passes, signed by one key or by several, dated or for ever.
#[test]
fn an_honest_archive_passes() -> Result {
    let keys = Arc::new(all_keys()?);
    let hostile = Hostile::new(keys)?;
    hostile.passes()?;
    let release = hostile.archive.lay_out(&hostile::newer(), hostile.archive.index()?)?;
    hostile.sign_by(&release, &["second", "first"], &[])?;
    hostile.passes()?;
    let for_ever = pgkiln_tests::archive::Publication { valid_for: None, ..hostile::newer() };
    hostile.archive.publish(&for_ever)?;
    hostile.passes()
}
