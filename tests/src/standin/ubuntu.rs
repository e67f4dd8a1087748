//! Ubuntu's archive: pockets, `main` and `universe`, its own builds of what the vendors build too, and its `os-release`.

use super::plan::{Place, Recipe, Standin, Vendor};

/// What the recipes need from `universe` (packages.ubuntu.com).
const UNIVERSE: &[&str] = &[
    "etcd-client",
    "etcd-server",
    "patroni",
    "pgbackrest",
    "pgbouncer",
    "pipexec",
    "python3-cdiff",
    "python3-consul",
    "python3-etcd",
    "python3-kazoo",
    "python3-pysyncobj",
    "python3-ydiff",
];

fn pocket(recipe: &Recipe, pocket: &str, component: &'static str) -> Place {
    let archive = if pocket == "-security" { "ubuntu-security" } else { "ubuntu" };
    Place { archive, suite: format!("{}{pocket}", recipe.codename), component }
}

fn component(name: &str) -> &'static str {
    if UNIVERSE.contains(&name) { "universe" } else { "main" }
}

/// Debian's security updates are in `-security` and, as Ubuntu does it, in `-updates` too.
pub(super) fn places(recipe: &Recipe, name: &str, security: bool) -> Vec<Place> {
    let pockets: &[&str] = if security { &["-security", "-updates"] } else { &[""] };
    pockets.iter().map(|pocket_name| pocket(recipe, pocket_name, component(name))).collect()
}

pub(super) fn standins(recipe: &Recipe) -> Vec<Standin> {
    let jammy = recipe.codename == "jammy";
    let version = |noble: &str, in_jammy: &str| if jammy { in_jammy.to_owned() } else { noble.to_owned() };
    let of = |name: &str, noble: &str, in_jammy: &str, pocket_name: &str| {
        Standin::of(name, version(noble, in_jammy), pocket(recipe, pocket_name, component(name)))
    };
    let kernel = version("6.8.0-110.110", "5.15.0-170.180");
    let mut all = vec![
        of("base-files", "13ubuntu10.3", "12ubuntu4.7", "-updates").put("/usr/lib/os-release", os_release(recipe)),
        Standin::of("linux-image-cloud-amd64", kernel, pocket(recipe, "-updates", "main")).named("linux-image-virtual"),
        of("keepalived", "1:2.2.8-1build2", "1:2.2.4-0.2build1", ""),
        of("python3-etcd", "0.4.5-4", "0.4.5-2", ""),
        // Ubuntu's own builds of what a vendor builds too. A recipe that took one of them would have no pin, epoch or priority.
        of("libpq5", "16.15-0ubuntu0.24.04.1", "14.24-0ubuntu0.22.04.1", "-security"),
        of("postgresql-client-common", "257build1.1", "238", ""),
        of("postgresql-common", "257build1.1", "238", ""),
        of("haproxy", "2.8.5-1ubuntu3.6", "2.4.24-0ubuntu0.22.04.3", "-updates"),
        of("patroni", "3.2.2-2", "2.1.2-2", ""),
        of("pgbackrest", "2.50-1build2", "2.37-1", ""),
        of("pgbouncer", "1.22.0-1build3", "1.16.1-1ubuntu1", ""),
        of("etcd-server", "3.4.30-1ubuntu0.24.04.3", "3.3.25+dfsg-7ubuntu0.22.04.2", "-updates"),
        of("etcd-client", "3.4.30-1ubuntu0.24.04.3", "3.3.25+dfsg-7ubuntu0.22.04.2", "-updates"),
    ];
    all.push(of("postgresql-common-dev", "257build1.1", "238", "").if_there());
    if jammy {
        // Its release is from before this dependency on `usrmerge | usr-is-merged`.
        all.push(of("init-system-helpers", "", "1.62", "").field("Depends", "perl-base"));
    }
    if recipe.vendor == Vendor::Pgdg {
        // What PGDG does not have.
        all.retain(|standin| !["pgbackrest", "pgbouncer", "patroni"].contains(&standin.name.as_str()));
    }
    all
}

fn os_release(recipe: &Recipe) -> String {
    let (codename, release) = (recipe.codename, recipe.release);
    let name = if codename == "jammy" { "Jammy Jellyfish" } else { "Noble Numbat" };
    format!(
        "PRETTY_NAME=\"Ubuntu {release} LTS (stand-in made of Debian's packages)\"\nNAME=\"Ubuntu\"\nVERSION_ID=\"{release}\"\n\
         VERSION=\"{release} LTS ({name})\"\nVERSION_CODENAME={codename}\nID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME={codename}\n"
    )
}
