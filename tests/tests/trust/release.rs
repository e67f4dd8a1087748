//! Signed by the right key, but old, or another archive's, or not what was asked for.

use jiff::SignedDuration;
use pgkiln_tests::archive::Publication;

use super::hostile::{Case, Hostile, Result, newer};

/// Signs a `Release` file in which `from` is `to`.
fn with(h: &Hostile, from: &str, to: &str) -> Result {
    let release = h.release()?;
    anyhow::ensure!(release.contains(from), "{from} is not in the Release file");
    h.sign(&release.replace(from, to))
}

fn without(h: &Hostile, field: &str) -> Result {
    let release = h.release()?;
    let kept: Vec<&str> = release.lines().filter(|line| !line.starts_with(field)).collect();
    h.sign(&(kept.join("\n") + "\n"))
}

/// The archive is believed, then shows a state of the day before.
fn yesterday(h: &Hostile) -> Result {
    h.archive.publish(&Publication { made: SignedDuration::from_hours(-2), ..Publication::default() })
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "expired",
        says: "its index was valid until",
        make: |h| {
            let valid_for = Some(SignedDuration::from_hours(-1));
            h.archive.publish(&Publication { valid_for, ..newer() })
        },
    },
    Case {
        name: "from the future",
        says: "made in the future",
        make: |h| h.archive.publish(&Publication { made: SignedDuration::from_hours(100), ..Publication::default() }),
    },
    Case { name: "without a date", says: "it has no Date", make: |h| without(h, "Date:") },
    Case {
        name: "with a date that is none",
        says: "its Date cannot be read",
        make: |h| with(h, "Date: ", "Date: some "),
    },
    Case {
        name: "older than the lock",
        says: "image.lock saw it at",
        make: |h| {
            h.resolve()?.write_if_changed(&h.image.join("image.lock"))?;
            fs_err::remove_file(h.cache.root().join("seen/fixture.json"))?;
            forget_indexes(h)?;
            yesterday(h)
        },
    },
    Case {
        name: "older than what the cache saw",
        says: "fixture.json saw it at",
        make: |h| {
            h.resolve()?;
            forget_indexes(h)?;
            yesterday(h)
        },
    },
    Case {
        name: "another suite",
        says: "asked for the suite `stable`, got `testing`",
        make: |h| with(h, "stable", "testing"),
    },
    Case {
        name: "another archive that the same key signs",
        says: "its origin is `Other`",
        make: |h| {
            h.edit("components", "origin = \"Fixture\"\ncomponents")?;
            h.archive.publish(&Publication { origin: "Other", ..newer() })
        },
    },
    Case {
        name: "another archive of the same origin",
        says: "its label is `Other`",
        make: |h| {
            h.edit("components", "label = \"Fixture\"\ncomponents")?;
            with(h, "Label: Fixture", "Label: Other")
        },
    },
    Case {
        name: "another archive than last time",
        says: "the archive changed its name",
        make: |h| {
            h.resolve()?;
            forget_indexes(h)?;
            h.archive.publish(&Publication { origin: "Other", ..newer() })
        },
    },
    Case {
        name: "without the architecture",
        says: "no architecture `amd64`",
        make: |h| with(h, "Architectures: amd64", "Architectures: arm64 i386"),
    },
    Case {
        name: "without the component",
        says: "no component `main`",
        make: |h| with(h, "Components: main", "Components: contrib"),
    },
    Case {
        name: "without the component's index",
        says: "no packages for component `main`",
        make: |h| with(h, "main/binary-amd64", "main/binary-i386"),
    },
    Case {
        name: "indexes by MD5 only",
        says: "by MD5Sum only, which can be forged",
        make: |h| with(h, "SHA256:", "MD5Sum:"),
    },
    Case {
        name: "indexes by SHA-1 only",
        says: "by SHA1 only, which can be forged",
        make: |h| with(h, "SHA256:", "SHA1:"),
    },
    Case { name: "no indexes", says: "the suite lists no indexes", make: |h| with(h, "SHA256:", "Files:") },
    Case {
        name: "a digest that is none",
        says: "the suite lists an index as",
        make: |h| with(h, " main/binary-amd64/Packages.gz", ""),
    },
];

/// What was honestly in the cache before is not what these cases ask about.
fn forget_indexes(h: &Hostile) -> Result {
    let store = h.cache.root().join("cas/sha256");
    fs_err::remove_dir_all(&store)?;
    Ok(fs_err::create_dir(&store)?)
}
