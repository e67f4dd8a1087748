//! Where metadata comes from. A datasource answers *found*, *not here* or *broken*; a broken one never falls through
//! to the next, because the next one's answer could be somebody else's.
//!
//! Adding one: a module with `read(&Layout) -> Result<Option<Seed>, Problem>`, a line in [`search`], a directory of
//! examples in its tests.

mod asked;
pub mod dhcp;
mod http;
mod nocloud;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use crate::facts;
use crate::layout::Layout;
use crate::problem::Problem;
use crate::status::Board;

/// How long whoever cannot wait for ever waits for a metadata server: links and DHCP of real switches take half of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a boot that has a specification waits for a server that may be gone for good: for link and DHCP …
const LATER: Duration = Duration::from_secs(20);
/// … and where there is a network, for instance when the agent alone is restarted: its slot's lease must not run out.
const RESTART: Duration = Duration::from_secs(5);

/// What a datasource found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    /// Where, in words: `NoCloud, /var/lib/cloud/seed/nocloud`.
    pub source: String,
    /// How problems name the user-data.
    pub place: String,
    /// Instance id.
    pub instance_id: String,
    /// Host name of the metadata; the user-data's own wins.
    pub hostname: Option<String>,
    /// User-data as found.
    pub user_data: Vec<u8>,
    /// Network configuration (version 2), if there is one.
    pub network_config: Option<String>,
    /// The user-data file, if it is on a writable file system and secrets in it can be wiped.
    pub wipeable: Option<PathBuf>,
    /// It came over a network, where others can read it, too: nothing secret is taken from it.
    pub network: bool,
}

/// Asks the datasources in order. A metadata server that somebody named is asked until it answers, or as long as `limit`
/// says; `board` hears why it has not yet.
pub async fn search(layout: &Layout, board: &Board, limit: Option<Duration>) -> Result<Option<Seed>, Problem> {
    match asked::read(layout)? {
        // Named by whoever started this machine: what else is attached to it does not count.
        Some(asked) => http::read(layout, &asked, board, limit).await.map(Some),
        None => nocloud::read(layout),
    }
}

/// For how long a run of the agent asks: a first boot for ever, there is nothing else it could do.
pub fn patience(layout: &Layout) -> Option<Duration> {
    let limit = if facts::is_on_a_network() { RESTART } else { LATER };
    layout.spec().exists().then_some(limit)
}

/// The same for whoever looks once, on a node or before its `/var` is there.
pub fn find(layout: &Layout) -> Result<Option<Seed>, Problem> {
    if asked::read(layout)?.is_none() {
        return nocloud::read(layout);
    }
    // The disk of an earlier boot is there: the specification on it counts, whoever keeps the metadata may be gone.
    let kept = layout.at("/dev/disk/by-partlabel/pgkiln-state").exists();
    match asked_once(layout.clone(), if kept { LATER } else { PATIENCE }) {
        Err(problem) if kept => {
            tracing::warn!("going on without metadata: {}: {}", problem.place, problem.what);
            Ok(None)
        }
        found => found,
    }
}

/// On a thread of its own: the caller may be inside a runtime already.
fn asked_once(layout: Layout, limit: Duration) -> Result<Option<Seed>, Problem> {
    let failed = |why: String| Problem::new(why, "metadata", "report this: it is no fault of the metadata");
    let asking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        runtime.block_on(search(&layout, &Board::new(None), Some(limit)))
    });
    asking.join().unwrap_or_else(|_| Err(failed("asking for metadata broke off".to_owned())))
}
