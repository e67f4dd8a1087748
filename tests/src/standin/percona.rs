//! Percona's minor repository: its names, epochs and relations, from the control files and build recipes of
//! percona/postgres-packaging (branch 17.11), percona/haproxy-packaging and the versions of Percona-QA/ppg-testing.

use super::plan::{Place, Recipe, Standin};

pub(super) fn standins(recipe: &Recipe) -> Vec<Standin> {
    let (major, codename) = (recipe.major, recipe.codename);
    let place = Place { archive: "percona", suite: codename.to_owned(), component: "main" };
    let of = |name: &str, version: &str| Standin::of(name, format!("{version}.{codename}"), place.clone());
    let empty = |name: String, version: &str| Standin::empty(name, format!("{version}.{codename}"), place.clone());
    let server = |name: &str| Standin::of(name, recipe.server, place.clone());
    let (server_name, client_name) = (format!("postgresql-{major}"), format!("postgresql-client-{major}"));

    let mut postgresql = server(&server_name)
        .named(format!("percona-{server_name}"))
        .field("+Provides", format!("{server_name}, percona-postgresql-contrib-{major}"))
        .field("Recommends", format!("percona-pg-telemetry{major}"));
    let mut all = vec![
        server(&client_name)
            .named(format!("percona-{client_name}"))
            .field("Provides", format!("{client_name}, postgresql-client")),
        server("libpq5"),
        of("postgresql-common", "1:293-1"),
        of("postgresql-client-common", "1:293-1"),
        empty("percona-postgresql-common".into(), "1:293-1").field("Depends", "postgresql-common"),
        // Recommended by the server: a recipe that installed it would send data home.
        empty(format!("percona-pg-telemetry{major}"), "1.2.0-1").field("Depends", "percona-telemetry-agent"),
        empty("percona-telemetry-agent".into(), "1.0.10-1"),
        patroni(recipe, of("patroni", "1:4.1.5-1")),
        of("python3-ydiff", "1:1.4.2-3"),
        of("python3-pysyncobj", "1:0.3.15-2"),
        etcd(of("etcd-server", "1:3.5.33-1")),
        of("etcd-client", "1:3.5.33-1"),
        empty("etcd".into(), "1:3.5.33-1").field("Depends", "etcd-server, etcd-client"),
        of("haproxy", "2:2.8.27-1")
            .named("percona-haproxy")
            .field("Provides", "haproxy")
            .field("Conflicts", "haproxy")
            .field("Replaces", "haproxy"),
        // Whether it brings a unit is not known; without one the recipe must.
        of("pgbackrest", "1:2.59.0-1")
            .named("percona-pgbackrest")
            .field("Provides", "pgbackrest")
            .take(&["/usr/lib/systemd/", "/lib/systemd/"]),
        of(&format!("{server_name}-pgaudit"), "1:17.1-4").named(format!("percona-{server_name}-pgaudit")),
        of(&format!("{server_name}-repack"), "1:1.5.3-1").named(format!("percona-{server_name}-repack")),
        of(&format!("{server_name}-wal2json"), "1:2.6-6").named(format!("percona-{server_name}-wal2json")),
        stat_monitor(recipe, of(&server_name, "1:2.4.0-1")),
        of("pgbouncer", "1:1.25.2-2").named("percona-pgbouncer").field("Provides", "pgbouncer"),
    ];
    all.push(of("postgresql-common-dev", "1:293-1").if_there());
    if major == 17 {
        // The server of this major version needs it; what is inside cannot be stood in for.
        all.push(empty("percona-pg-tde17".into(), "2.2.0-1"));
        postgresql = postgresql.field("+Depends", "percona-pg-tde17");
    }
    // Debian's scripts know its own packages by name.
    let postinst = "#!/bin/sh\nset -e\nif [ \"$1\" = configure ]; then\n  . /usr/share/debconf/confmodule\n  \
                    . /usr/share/postgresql-common/maintscripts-functions\n  \
                    configure_version \"${DPKG_MAINTSCRIPT_PACKAGE##*-}\" \"$2\"\nfi\n";
    postgresql.change.scripts_put.push(("postinst", postinst.to_owned()));
    // In front: relations on Debian's server mean this one.
    all.insert(0, postgresql);
    all
}

/// The server's own `pg_stat_statements` under this name: Debian has nothing nearer.
fn stat_monitor(recipe: &Recipe, standin: Standin) -> Standin {
    let major = recipe.major;
    let mut standin = standin
        .named(format!("percona-pg-stat-monitor{major}"))
        .field("Depends", format!("percona-postgresql-{major}"))
        .without_scripts(&["postinst", "postrm", "preinst", "prerm", "templates", "config", "triggers", "conffiles"]);
    for field in ["Provides", "Recommends", "Breaks", "Conflicts", "Replaces", "Pre-Depends"] {
        standin = standin.field(field, "");
    }
    standin.change.keep = vec![
        format!("/usr/lib/postgresql/{major}/lib/pg_stat_statements."),
        format!("/usr/share/postgresql/{major}/extension/pg_stat_statements"),
    ];
    standin.change.rename = Some(("pg_stat_statements".to_owned(), "pg_stat_monitor".to_owned()));
    standin
}

/// Upstream's unit and dependencies, no scripts of its own.
fn patroni(recipe: &Recipe, standin: Standin) -> Standin {
    let depends = format!(
        "python3-psycopg2, python3-etcd, python3-consul | python3-kazoo | python3-kubernetes, python3-six, python3-requests, \
         python3-yaml, python3-dateutil, python3-psutil, python3-prettytable, python3-click, python3-cdiff, python3-ydiff, \
         python3-pysyncobj, python3-systemd, percona-postgresql-{0} | postgresql-{0}, python3-urllib3, python3:any",
        recipe.major
    );
    let unit = "[Unit]\nDescription=Runners to orchestrate a high-availability PostgreSQL\nAfter=syslog.target network.target\n\n\
                [Service]\nType=notify\nUser=postgres\nGroup=postgres\n\
                Environment=PATRONI_CONFIG_LOCATION=/etc/patroni/patroni.yml\nOOMScoreAdjust=-1000\n\
                ExecStart=/usr/bin/patroni ${PATRONI_CONFIG_LOCATION}\nExecReload=/bin/kill -s HUP $MAINPID\n\
                KillMode=process\nTimeoutSec=30\nRestart=no\n\n[Install]\nWantedBy=multi-user.target\n";
    standin
        .named("percona-patroni")
        .field("Provides", "patroni")
        .field("Conflicts", "patroni")
        .field("Replaces", "patroni")
        .field("Depends", depends)
        .take(&["/usr/lib/systemd/", "/lib/systemd/", "/etc/", "/usr/bin/pg_createconfig_patroni"])
        .put("/usr/lib/systemd/system/patroni.service", unit)
        .put("/etc/patroni/patroni.yml.sample", "# see the manual\n")
        .without_scripts(&["postinst", "prerm", "postrm", "preinst"])
}

/// Upstream's binaries with a unit that starts etcd with a file, which makes etcd deaf to its environment.
fn etcd(standin: Standin) -> Standin {
    let unit = "[Unit]\nDescription=etcd - highly-available key value store\nAfter=network.target\nWants=network-online.target\n\n\
                [Service]\nType=notify\nUser=etcd\nWorkingDirectory=/var/lib/etcd/\nPermissionsStartOnly=true\n\
                ExecStart=/bin/bash -c \"GOMAXPROCS=$(nproc) /usr/bin/etcd --config-file /etc/etcd/etcd.conf.yaml\"\n\
                Restart=on-failure\nLimitNOFILE=65536\n\n[Install]\nWantedBy=multi-user.target\n";
    let postinst = "#!/bin/sh\nset -e\nif ! getent passwd etcd >/dev/null; then\n  \
                    adduser --system --group --home /var/lib/etcd --no-create-home etcd\nfi\n\
                    mkdir -p /var/lib/etcd && chown etcd:etcd /var/lib/etcd && chmod 700 /var/lib/etcd\n";
    let mut standin = standin
        .field("Depends", "adduser, libc6, pipexec")
        .take(&["/usr/lib/systemd/", "/lib/systemd/", "/etc/"])
        .put("/usr/lib/systemd/system/etcd.service", unit)
        .put("/etc/etcd/etcd.conf.yaml", "# name: 'default'\n# data-dir: /var/lib/etcd\n")
        .without_scripts(&["preinst", "prerm", "postrm"]);
    standin.change.scripts_put.push(("postinst", postinst.to_owned()));
    standin
}
