//! Roles, databases and extensions as a psql script that may be run any number of times.

use crate::spec::{NodeSpec, Secrets, is_plugin};

/// The script: passwords appear only as SCRAM verifiers.
pub fn reconcile(spec: &NodeSpec, secrets: &Secrets) -> String {
    let mut text = String::from("-- Written by firstboot at every boot; safe to run again.\n\\set ON_ERROR_STOP on\n");
    for role in &spec.postgres.roles {
        let name = literal(&role.name);
        let login = if role.login { "LOGIN" } else { "NOLOGIN" };
        text.push_str(&format!(
            "SELECT format('CREATE ROLE %I', {name}) \
             WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name}) \\gexec\n"
        ));
        let password = secrets.roles.get(&role.name).map_or(String::new(), |v| format!(" PASSWORD {}", literal(v)));
        text.push_str(&format!(
            "ALTER ROLE {} {login} NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS{password};\n",
            identifier(&role.name)
        ));
    }
    for database in &spec.postgres.databases {
        let name = literal(&database.name);
        let owner = database.owner.as_deref().unwrap_or("postgres");
        text.push_str(&format!(
            "SELECT format('CREATE DATABASE %I OWNER %I', {name}, {}) \
             WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = {name}) \\gexec\n",
            literal(owner)
        ));
        text.push_str(&format!("ALTER DATABASE {} OWNER TO {};\n", identifier(&database.name), identifier(owner)));
    }
    for database in &spec.postgres.databases {
        if spec.postgres.extensions.is_empty() {
            continue;
        }
        text.push_str(&format!("\\connect {}\n", identifier(&database.name)));
        for extension in spec.postgres.extensions.iter().filter(|name| !is_plugin(name)) {
            text.push_str(&format!("CREATE EXTENSION IF NOT EXISTS {};\n", identifier(extension)));
        }
    }
    text
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
