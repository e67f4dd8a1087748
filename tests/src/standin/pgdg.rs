//! The PostgreSQL project's archive of every version: Debian's names, no epochs, `libpq5` of the newest major version.

use super::plan::{Place, Recipe, Standin};

pub(super) fn standins(recipe: &Recipe) -> Vec<Standin> {
    let place = Place { archive: "pgdg", suite: format!("{}-pgdg-archive", recipe.codename), component: "main" };
    let of = |name: &str, version: &str| Standin::of(name, version, place.clone());
    let major = recipe.major;
    let (server, client) = (format!("postgresql-{major}"), format!("postgresql-client-{major}"));
    vec![
        // An older one stays in this archive; the recipe's pin must decide.
        of(&server, recipe.server),
        of(&client, recipe.server),
        of(&server, "17.10-1.pgdg24.04+1"),
        of(&client, "17.10-1.pgdg24.04+1"),
        of(&format!("{server}-pgaudit"), "17.1-2.pgdg24.04+1"),
        of(&format!("{server}-repack"), "1.5.3-1.pgdg24.04+1"),
        of(&format!("{server}-wal2json"), "2.6-4.pgdg24.04+1"),
        of("libpq5", "18.6-1.pgdg24.04+2"),
        of("postgresql-common", "293.pgdg24.04+1"),
        of("postgresql-client-common", "293.pgdg24.04+1"),
        of("postgresql-common-dev", "293.pgdg24.04+1"),
        of("patroni", "4.1.5-1.pgdg24.04+1").field("+Depends", "python3-etcd"),
        of("pgbackrest", "2.59.1-1.pgdg24.04+1"),
        of("pgbouncer", "1.26.0-1.pgdg24.04+1"),
    ]
}
