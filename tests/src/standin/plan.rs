//! Which package stands in for which, per recipe.

use super::deb::Change;
use super::material::{BOOKWORM, FORKY, Material, TRIXIE};
use super::{percona, pgdg, ubuntu};

/// A recipe that is proven with stand-ins.
#[derive(Debug)]
pub struct Recipe {
    /// Its directory below `images/`.
    pub name: &'static str,
    /// Ubuntu's codename.
    pub codename: &'static str,
    /// Ubuntu's version.
    pub release: &'static str,
    /// PostgreSQL's major version.
    pub major: u8,
    /// Version of the server in the vendor's archive.
    pub server: &'static str,
    /// Whose packages stand in.
    pub material: &'static Material,
    /// Packages that another release of Debian has nearer to what is meant.
    pub nearer: Option<(&'static Material, &'static [&'static str])>,
    /// Who builds the database packages.
    pub vendor: Vendor,
}

/// Who builds the database packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// Percona; the part of its address before `/apt` (`ppg-17.11`).
    Percona(&'static str),
    /// The PostgreSQL project's own archive.
    Pgdg,
}

/// Programs that need nothing of the release they were built for.
const PORTABLE: &[&str] = &["etcd-server", "etcd-client", "patroni", "python3-ydiff"];

/// All of them.
pub static RECIPES: [Recipe; 4] = [
    Recipe {
        name: "ubuntu-24.04-percona-17",
        codename: "noble",
        release: "24.04",
        major: 17,
        server: "2:17.11-1.noble",
        material: &TRIXIE,
        nearer: None,
        vendor: Vendor::Percona("ppg-17.11"),
    },
    Recipe {
        name: "ubuntu-22.04-percona-15",
        codename: "jammy",
        release: "22.04",
        major: 15,
        server: "2:15.19-1.jammy",
        material: &BOOKWORM,
        nearer: Some((&TRIXIE, PORTABLE)),
        vendor: Vendor::Percona("ppg-15.19"),
    },
    Recipe {
        name: "ubuntu-24.04-pgdg-17",
        codename: "noble",
        release: "24.04",
        major: 17,
        server: "17.11-1.pgdg24.04+2",
        material: &TRIXIE,
        nearer: None,
        vendor: Vendor::Pgdg,
    },
    Recipe {
        name: "ubuntu-24.04-percona-18",
        codename: "noble",
        release: "24.04",
        major: 18,
        server: "3:18.6-1.noble",
        material: &FORKY,
        nearer: None,
        vendor: Vendor::Percona("ppg-18.6"),
    },
];

/// A suite's component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Archive of the recipe (`ubuntu`, `percona`).
    pub archive: &'static str,
    /// Suite.
    pub suite: String,
    /// Component.
    pub component: &'static str,
}

/// One package of the served archives.
#[derive(Debug, Clone)]
pub struct Standin {
    /// Debian's package that it is made of; `None`: relations alone.
    pub of: Option<String>,
    /// Its name now.
    pub name: String,
    /// Its version now; `None`: Debian's.
    pub version: Option<String>,
    /// Where it is served.
    pub place: Place,
    /// What else is different.
    pub change: Change,
    /// Not every release of Debian has it.
    pub if_there: bool,
}

impl Standin {
    /// `of` under its own name.
    pub(super) fn of(of: &str, version: impl Into<String>, place: Place) -> Self {
        let version = Some(version.into());
        Self {
            of: Some(of.to_owned()),
            name: of.to_owned(),
            version,
            place,
            change: Change::default(),
            if_there: false,
        }
    }

    /// A package of relations alone.
    pub(super) fn empty(name: impl Into<String>, version: impl Into<String>, place: Place) -> Self {
        let version = Some(version.into());
        Self { of: None, name: name.into(), version, place, change: Change::default(), if_there: false }
    }

    /// Left out where the material has nothing of it.
    pub(super) fn if_there(mut self) -> Self {
        self.if_there = true;
        self
    }

    pub(super) fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    pub(super) fn field(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.change.fields.push((name, value.into()));
        self
    }

    /// Puts a file into it.
    pub(super) fn put(mut self, path: &str, content: impl Into<String>) -> Self {
        self.change.put.push((path.to_owned(), 0o644, content.into()));
        self
    }

    /// Takes away what begins with one of these paths.
    pub(super) fn take(mut self, paths: &[&str]) -> Self {
        self.change.take.extend(paths.iter().map(|path| (*path).to_owned()));
        self
    }

    pub(super) fn without_scripts(mut self, names: &[&'static str]) -> Self {
        self.change.scripts_taken.extend(names);
        self
    }
}

impl Recipe {
    /// The recipe called `name`.
    pub fn find(name: &str) -> Option<&'static Self> {
        RECIPES.iter().find(|recipe| recipe.name == name)
    }

    /// Every package that is not served as Debian has it.
    pub(super) fn standins(&self) -> Vec<Standin> {
        let mut all = ubuntu::standins(self);
        match self.vendor {
            Vendor::Percona(_) => all.extend(percona::standins(self)),
            Vendor::Pgdg => all.extend(pgdg::standins(self)),
        }
        all
    }

    /// Where a package is served that is not among [`Recipe::standins`].
    pub(super) fn unchanged(&self, name: &str, security: bool) -> Vec<Place> {
        ubuntu::places(self, name, security)
    }
}
