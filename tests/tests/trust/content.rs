//! Indexes and packages that are not what was signed, or that nobody should have signed.

use pgkiln::digest::Sha256;
use pgkiln_tests::archive::{Deb, Publication};
use pgkiln_tests::archive_server::Fault;

use super::hostile::{Case, Hostile, Result, newer};

const INDEX: &str = "main/binary-amd64/Packages";
const PACKED: &str = "main/binary-amd64/Packages.gz";
const DEB: &str = "app_2.0-1_all.deb";

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write as _;
    let mut packed = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
    packed.write_all(content)?;
    Ok(packed.finish()?)
}

/// The archive signs `app` truthfully by digest and size, but what is inside says something else.
fn inside(h: &mut Hostile, other: &Deb) -> Result {
    let path = h.archive.pool_path("app")?;
    let (old, old_size) = Sha256::of_file(&path)?;
    let index = h.archive.index()?;
    other.build(&path)?;
    let (new, size) = Sha256::of_file(&path)?;
    let index = index.replace(&old.to_string(), &new.to_string());
    let index = index.replace(&format!("Size: {old_size}\nSHA256: {new}"), &format!("Size: {size}\nSHA256: {new}"));
    h.sign(&h.archive.lay_out(&newer(), index)?)
}

/// The package as it was locked, served with more behind it or something else.
fn serve(h: &Hostile, change: impl FnOnce(&mut Vec<u8>)) -> Result {
    let path = h.archive.pool_path("app")?;
    let mut bytes = fs_err::read(&path)?;
    change(&mut bytes);
    Ok(fs_err::write(path, bytes)?)
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "altered index",
        says: "index main/binary-amd64/Packages.gz is altered",
        make: |h| {
            h.server.fail(PACKED, Fault::Corrupt, usize::MAX);
            Ok(())
        },
    },
    Case {
        name: "index of an earlier state, mixed with a new suite",
        says: "index main/binary-amd64/Packages.gz has the wrong size",
        make: |h| {
            let file = h.archive.inrelease().with_file_name(PACKED);
            let earlier = fs_err::read(&file)?;
            h.archive.add(&Deb::new("third", "1"))?;
            h.archive.publish(&newer())?;
            Ok(fs_err::write(file, earlier)?)
        },
    },
    Case {
        name: "index that cannot be unpacked",
        says: "cannot be unpacked",
        make: |h| h.index_files(&[(PACKED, b"plain text".to_vec())]),
    },
    Case {
        name: "index that unpacks to more than is signed",
        says: "unpacks to more than the",
        make: |h| {
            let index = h.archive.index()?;
            h.index_files(&[(PACKED, gzip(&vec![b'\n'; 1 << 20])?), (INDEX, index.into_bytes())])
        },
    },
    Case {
        name: "index that unpacks to something else",
        says: "unpacks to something else",
        make: |h| {
            let index = h.archive.index()?;
            h.index_files(&[(PACKED, gzip(index.replace("app", "bad").as_bytes())?), (INDEX, index.into_bytes())])
        },
    },
    Case {
        name: "index that is not UTF-8",
        says: "Packages.gz is not UTF-8 text",
        make: |h| h.index_files(&[(PACKED, gzip(b"Package: \xe9\n")?)]),
    },
    Case {
        name: "package path with ..",
        says: "which leads out of the archive",
        make: |h| h.index("Filename: pool/app", "Filename: pool/../../../app"),
    },
    Case {
        name: "absolute package path",
        says: "the absolute file name",
        make: |h| h.index("Filename: pool/app", "Filename: /etc/app"),
    },
    Case {
        name: "package path that is none",
        says: "which is none",
        make: |h| h.index("Filename: pool/app", "Filename: pool/\\app"),
    },
    Case {
        name: "package name that is none",
        says: "has a package called `../app`",
        make: |h| h.index("Package: app", "Package: ../app"),
    },
    Case {
        name: "package version that is none",
        says: "has the version `1:2.0-1 evil`",
        make: |h| h.index("Version: 1:2.0-1", "Version: 1:2.0-1 evil"),
    },
    Case { name: "package without SHA256", says: "has no SHA256 in the index", make: |h| h.index("SHA256:", "SHA1:") },
    Case {
        name: "package without size",
        says: "has no size in the index",
        make: |h| h.index("Size:", "Installed-Size:"),
    },
    Case {
        name: "one version with two contents",
        says: "is listed twice",
        make: |h| {
            let index = h.archive.index()?;
            let other = index.replace("SHA256: ", "SHA256: 0").replace("pool/app", "pool/other");
            // One digit more in front, one less at the end.
            let other: Vec<String> = other
                .lines()
                .map(|line| match line.starts_with("SHA256") {
                    true => line[..line.len() - 1].to_owned(),
                    false => line.to_owned(),
                })
                .collect();
            let index = index + &other.join("\n") + "\n\n";
            h.sign(&h.archive.lay_out(&newer(), index)?)
        },
    },
    Case {
        name: "altered package",
        says: "app 1:2.0-1 is altered",
        make: |h| {
            h.server.fail(DEB, Fault::Corrupt, usize::MAX);
            Ok(())
        },
    },
    Case {
        name: "package that ends early",
        says: "app 1:2.0-1 has the wrong size: ",
        make: |h| serve(h, |bytes| bytes.truncate(100)),
    },
    Case {
        name: "package that says it is another",
        says: "its Package is `other`",
        make: |h| inside(h, &Deb::new("other", "1:2.0-1")),
    },
    Case {
        name: "package that says it is another version",
        says: "its Version is `1:1.0-1`",
        make: |h| inside(h, &Deb::new("app", "1:1.0-1")),
    },
    Case {
        name: "package that says it is for another architecture",
        says: "its Architecture is `arm64`",
        make: |h| inside(h, &Deb::new("app", "1:2.0-1").architecture("arm64")),
    },
    Case {
        name: "package that is none",
        says: "app 1:2.0-1 is not a Debian package",
        make: |h| {
            serve(h, |bytes| *bytes = b"#!/bin/sh\necho hello\n".to_vec())?;
            h.archive.publish(&Publication { ..newer() })
        },
    },
];
