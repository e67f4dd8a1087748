//! The hash tree that lets the kernel check every block of the root as it is read.

use std::path::PathBuf;

use anyhow::Context;

use super::Work;

/// Makes the hash tree with the tool tree's veritysetup: its file and the root hash.
pub(super) fn format(work: &Work<'_>) -> anyhow::Result<(PathBuf, String)> {
    let hashes = work.dir.join("root.verity");
    let root = work.root.file_name().and_then(|name| name.to_str()).context("path of the root image")?;
    let link = work.dir.join(root);
    // A link, not a copy: the sandbox shows one directory.
    if link != work.root {
        fs_err::hard_link(work.root, &link)?;
    }
    let output = work.run(&[
        "veritysetup",
        "format",
        "--hash=sha256",
        "--data-block-size=4096",
        "--hash-block-size=4096",
        &format!("--salt={}", work.digest("salt")),
        &format!("--uuid={}", work.uuid("verity")),
        &format!("/srv/{root}"),
        "/srv/root.verity",
    ])?;
    let text = String::from_utf8(output.stdout).context("veritysetup's output")?;
    let hash = text.lines().find_map(|line| line.strip_prefix("Root hash:")).map(|hash| hash.trim().to_owned());
    let hash = hash.filter(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
    Ok((hashes, hash.context("veritysetup printed no root hash")?))
}
