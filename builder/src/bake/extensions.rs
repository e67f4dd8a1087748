//! Whether the server of a tree can load the extensions its recipe lists: tried on a throw-away PostgreSQL inside the sandbox,
//! without network, from the finished tree. A library that does not fit its server is found here, not on a node.
//!
//! Once per tree: the list is part of a tree's key, and a tree that fails is not kept.

use std::fmt::Write as _;

use anyhow::Context;
use firstboot::spec::{is_plugin, is_preloaded};

use crate::image::Image;
use crate::problem::{Problem, Problems};
use crate::sandbox::Sandbox;

/// What a line of the script's answer begins with.
const GOOD: &str = "pgkiln-good ";
const BAD: &str = "pgkiln-bad ";

/// Creates every extension; for an output plugin, a logical slot that uses it. All that fail are reported together.
pub fn check(image: &Image, sandbox: &Sandbox) -> anyhow::Result<()> {
    if image.extensions.is_empty() {
        return Ok(());
    }
    let postgresql = image.components.get("postgresql").context("the parser wants a component for extensions")?;
    let bin = postgresql.paths.get("bin_dir").context("the parser wants its `bin_dir` for extensions")?;
    let names: Vec<&str> = image.extensions.keys().map(String::as_str).collect();
    let output = sandbox.run(&["sh", "-c", &script(bin, &names)]).context("trying the recipe's extensions")?;
    let told = String::from_utf8_lossy(&output.stdout);
    let problems = image.extensions.iter().filter_map(|(name, package)| {
        if told.lines().any(|line| line.strip_prefix(GOOD) == Some(name)) {
            return None;
        }
        let bad = format!("{BAD}{name} ");
        let why = told.lines().find_map(|line| line.strip_prefix(&bad)).unwrap_or("the server does not start with it");
        Some(Problem::new(
            format!("the server cannot load the extension `{name}`: {why}"),
            image.at(package.line),
            format!("`{}` must be the package that has it for this server; else remove the line", package.value),
        ))
    });
    let problems: Vec<Problem> = problems.collect();
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems).into()) }
}

/// The server runs as its own user: it refuses to be root.
fn script(bin: &str, names: &[&str]) -> String {
    let preloaded: Vec<&str> = names.iter().copied().filter(|name| is_preloaded(name)).collect();
    let plugins: Vec<&str> = names.iter().copied().filter(|name| is_plugin(name)).collect();
    let plugins = plugins.join(",");
    let mut inner = format!(
        "set -euf; cd /tmp; PATH={bin}:$PATH; export PGHOST=/tmp PGDATABASE=postgres; \
         initdb -D /tmp/pg -A trust --no-sync --locale=C.UTF-8 >/tmp/initdb.log 2>&1 || {{ cat /tmp/initdb.log; exit 1; }}; \
         plugins=; if postgres --describe-config | grep -q '^output_plugin_libraries'; \
         then plugins='-c output_plugin_libraries={plugins}'; fi; \
         start() {{ pg_ctl -D /tmp/pg -w -s -l /tmp/server.log -o \"-k /tmp -c listen_addresses= -c fsync=off -c wal_level=logical \
         -c dynamic_shared_memory_type=mmap -c shared_buffers=16MB $plugins -c shared_preload_libraries='$1'\" start; }}; "
    );
    let all = preloaded.join(",");
    // Without libraries, if need be, so that one that is broken does not hide what else is.
    let _ = write!(inner, "start '{all}' || {{ tail -n 5 /tmp/server.log >&2; start ''; }}; ");
    for name in names {
        let sql = match is_plugin(name) {
            true => format!("SELECT pg_create_logical_replication_slot('pgkiln', '{name}', true)"),
            false => format!("CREATE EXTENSION \"{name}\" CASCADE"),
        };
        let quoted = sql.replace('"', "\\\"");
        let _ = write!(
            inner,
            "if told=$(psql -X -q -v ON_ERROR_STOP=1 -c \"{quoted}\" 2>&1 >/dev/null); then echo '{GOOD}{name}'; \
             else echo '{BAD}{name}' $(echo \"$told\" | tr '\\n' ' '); fi; "
        );
    }
    inner.push_str("pg_ctl -D /tmp/pg -s -m immediate stop");
    // The sandbox's /dev belongs to root.
    format!("exec setpriv --reuid=postgres --regid=postgres --clear-groups sh -c {}", quote(&inner))
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_must_be_loaded_at_start_is() {
        let script = script("/usr/lib/postgresql/17/bin", &["pg_repack", "pgaudit", "wal2json"]);
        assert!(script.contains("pgaudit") && script.contains("CREATE EXTENSION \\\"pg_repack\\\""), "{script}");
        assert!(!script.contains("CREATE EXTENSION \\\"wal2json\\\""), "{script}");
    }
}
