//! Where metadata comes from. A datasource answers *found*, *not here* or *broken*; a broken one never falls through
//! to the next, because the next one's answer could be somebody else's.
//!
//! Adding one: a module with `read(&Layout) -> Result<Option<Seed>, Problem>`, a line in [`find`], a directory of
//! examples in its tests.

mod nocloud;

use std::path::PathBuf;

use crate::layout::Layout;
use crate::problem::Problem;

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
}

/// Asks the datasources in order.
pub fn find(layout: &Layout) -> Result<Option<Seed>, Problem> {
    nocloud::read(layout)
}
