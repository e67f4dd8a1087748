//! Roles, databases and extensions: the script rendered by `render::sql`, through psql's stdin (never argv). Patroni
//! runs it once when the cluster is founded; the agent runs it again on the leader when the specification changes.
//! And single questions to the server here.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use fs_err as fs;

use crate::layout::Layout;
use crate::tool::Tool;

/// Runs the script on the server behind `connection` (libpq string; default: the local socket as `postgres`).
pub async fn reconcile(layout: &Layout, connection: Option<&str>) -> Result<()> {
    let path = layout.run().join("patroni/bootstrap.sql");
    let script = fs::read(&path).context("reading the script of roles and databases")?;
    let connection = connection.unwrap_or("host=/run/postgresql user=postgres dbname=postgres");
    let mut psql = Tool::new("psql")
        .args(["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--output=/dev/null"])
        .arg(format!("--dbname={connection}"))
        // A statement that waits for a replica would wait for ever on the first node of a cluster.
        .env("PGOPTIONS", "-c synchronous_commit=local -c client_min_messages=warning")
        .stdin(script);
    // The image's own psql, not the version-guessing wrapper of some distributions, which takes longer than the script.
    if let Ok(image) = crate::image_info::ImageInfo::load(layout)
        && let Ok(bin) = image.path("postgresql", "bin_dir")
        && Path::new(bin).join("psql").exists()
    {
        psql = psql.program(bin.join("psql"));
    }
    psql.run().await.map(drop)
}

/// The local server's answer to one question, as the superuser; `limit` bounds a server that hangs.
pub async fn ask(question: &str, limit: Duration) -> Result<String> {
    ask_in("postgres", question, limit).await
}

/// The same in another database.
pub async fn ask_in(database: &str, question: &str, limit: Duration) -> Result<String> {
    let psql = Tool::new("psql").args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--no-password"]);
    let quoted = database.replace('\\', "\\\\").replace('\'', "\\'");
    let psql = psql.arg(format!("--dbname=host=/run/postgresql user=postgres dbname='{quoted}' connect_timeout=2"));
    let said = psql.arg(format!("--command={question}")).limit(limit).run().await?;
    Ok(said.trim().to_owned())
}
