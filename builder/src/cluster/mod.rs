//! A cluster as its operator has it: one directory with the definition, the certificate authorities and the passwords.
//!
//! ```text
//! DIR/cluster.toml        the definition: names, addresses, databases; nothing secret      definition, read, check
//! DIR/pki/root.{pem,key}  trust anchor; the key never leaves this directory                pki
//! DIR/pki/intermediate.*  signs the nodes' certificates; goes into the founding bundle     pki
//! DIR/secrets.toml        passwords                                                        secrets
//! DIR/tokens.toml         single-use token per slot, key of group tokens                   secrets
//! DIR/formed.toml         which machines were brought the founding bundle                  form
//! ```
//!
//! [`create`] makes it, whole or not at all; [`Cluster::write_seed`] turns it into what one node reads at first boot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use firstboot::spec::{Founding, Intermediate, Join, Joiner, Secret};
use serde::de::DeserializeOwned;

use crate::problem::Problem;

mod check;
mod definition;
mod files;
mod form;
mod form_client;
#[cfg(test)]
mod form_tests;
mod formed;
mod iso;
mod options;
mod pki;
mod read;
mod secrets;
mod seed;

pub use definition::{Backup, Definition, Node};
pub(crate) use files::private_temporary_dir;
pub use form::{FormOptions, FormedSlot, Outcome};
pub use options::Options;
pub use read::parse;
pub use secrets::{SecretsFile, Tokens};
pub use seed::SeedFormat;

/// Writes the files of a seed's directory as a `cidata` volume into the new file `to` (0600).
pub fn write_cidata(seed: &Path, to: &Path) -> anyhow::Result<()> {
    iso::write(seed, to)
}

/// Version of the founding bundle.
const FOUNDING_SCHEMA: u32 = 1;

/// A cluster's directory.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    /// What the cluster is.
    pub definition: Definition,
}

/// Makes the directory of a new cluster: authorities, passwords, tokens. An existing directory is left alone.
pub fn create(dir: &Path, definition: Definition) -> anyhow::Result<Cluster> {
    check::arguments(&definition, "")?;
    let authorities = pki::Authorities::generate(&definition.name, definition.uuid)?;
    let secrets = SecretsFile::generate(&definition)?;
    let tokens = Tokens::generate(&definition)?;
    files::all_or_nothing(dir, |dir| {
        let file = |name: &str, text: &str| files::private_file(&dir.join(name), text);
        files::private_dir(dir)?;
        files::private_dir(&dir.join("pki"))?;
        file("pki/root.pem", &authorities.root.certificate)?;
        file("pki/root.key", &authorities.root.key)?;
        file("pki/intermediate.pem", &authorities.intermediate.certificate)?;
        file("pki/intermediate.key", &authorities.intermediate.key)?;
        file("secrets.toml", &secrets.to_toml()?)?;
        file("tokens.toml", &tokens.to_toml()?)?;
        file("cluster.toml", &definition.to_toml()?)
    })?;
    Ok(Cluster { dir: dir.to_owned(), definition })
}

/// Where clusters are kept unless a directory is named: `$XDG_DATA_HOME/pgkiln/clusters/NAME`.
pub fn default_dir(name: &str) -> PathBuf {
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("pgkiln/clusters")
        .join(name)
}

/// Finds a cluster by name or directory, as every `pgkiln cluster` command takes it.
pub fn find(name_or_dir: &str) -> anyhow::Result<Cluster> {
    let given = Path::new(name_or_dir);
    if name_or_dir.contains('/') || given.join("cluster.toml").exists() {
        return Cluster::load(given);
    }
    Cluster::load(&default_dir(name_or_dir))
}

impl Cluster {
    /// Reads a cluster's directory; every problem of its definition at once.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("cluster.toml");
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let remedy = "make one with `pgkiln cluster new`, or give the directory that has a cluster.toml";
                return Err(Problem::new("there is no cluster here", dir.display().to_string(), remedy).into());
            }
            Err(error) => return Err(error.into()),
        };
        let definition = parse(&text, &path.display().to_string())?;
        Ok(Self { dir: dir.to_owned(), definition })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The root certificate, for clients' `sslrootcert`.
    pub fn ca_pem_path(&self) -> PathBuf {
        self.dir.join("pki/root.pem")
    }

    /// When the intermediate stops being valid, in seconds since 1970; no node can be founded after that.
    pub fn intermediate_expires_at(&self) -> anyhow::Result<i64> {
        pki::expires_at(&fs_err::read_to_string(self.dir.join("pki/intermediate.pem"))?)
    }

    /// The password of an application role.
    pub fn secret(&self, role: &str) -> anyhow::Result<Secret> {
        let mut secrets = self.secrets()?;
        if let Some(found) = secrets.roles.remove(role) {
            return Ok(found.password);
        }
        if role == "postgres" {
            return Ok(secrets.passwords.superuser);
        }
        let known: Vec<&str> = secrets.roles.keys().map(String::as_str).chain(["postgres"]).collect();
        let remedy = crate::strict::suggestion(role, &known, "role");
        let place = self.dir.join("secrets.toml").display().to_string();
        Err(Problem::new(format!("role `{role}` has no password in this cluster"), place, remedy).into())
    }

    /// Writes the seeds of `slots` into the directory `dir` and returns their paths; if one of them is there already,
    /// none is written.
    pub fn write_seeds(
        &self,
        slots: &[String],
        format: SeedFormat,
        dir: &Path,
        embed_secrets: bool,
    ) -> anyhow::Result<Vec<PathBuf>> {
        let paths: Vec<PathBuf> = slots.iter().map(|slot| dir.join(format.file_name(slot))).collect();
        for path in &paths {
            files::refuse_existing(path)?;
        }
        for (slot, path) in slots.iter().zip(&paths) {
            self.write_seed(slot, format, path, embed_secrets)?;
        }
        Ok(paths)
    }

    /// Writes what the node in `slot` reads at first boot to `to`, which must not exist yet. A voter whose seed embeds no
    /// secrets waits until [`Cluster::form`] brings them.
    pub fn write_seed(&self, slot: &str, format: SeedFormat, to: &Path, embed_secrets: bool) -> anyhow::Result<()> {
        let node = self.known_slot(slot)?;
        let voter = self.definition.is_voter(slot);
        let mut spec =
            self.definition.node_spec(node, &pki::fingerprint(&fs_err::read_to_string(self.ca_pem_path())?)?);
        if voter && embed_secrets {
            spec.founding = Some(self.founding()?);
        } else {
            spec.join = Some(Join { token: self.token(slot)? });
        }
        seed::write(&self.definition, node, &spec, format, to)
    }

    /// What the founding voters need before there is a cluster that could hand it out.
    fn founding(&self) -> anyhow::Result<Founding> {
        let read = |name: &str| fs_err::read_to_string(self.dir.join("pki").join(name));
        let secrets = self.secrets()?;
        let mut roles = BTreeMap::new();
        for role in self.definition.login_roles() {
            let Some(secret) = secrets.roles.get(role) else {
                let place = self.dir.join("secrets.toml").display().to_string();
                let remedy = format!("pgkiln cluster secret {} {role} --generate", self.dir.display());
                return Err(
                    Problem::new(format!("missing secret: role `{role}` has no password"), place, remedy).into()
                );
            };
            roles.insert(role.to_owned(), secret.verifier.clone());
        }
        Ok(Founding {
            schema: FOUNDING_SCHEMA,
            ca: read("root.pem")?,
            intermediate: Intermediate { cert: read("intermediate.pem")?, key: Secret::new(read("intermediate.key")?) },
            passwords: secrets.passwords,
            roles,
            joiners: self.joiners()?,
        })
    }

    /// What voters must know to let the others in.
    fn joiners(&self) -> anyhow::Result<BTreeMap<String, Joiner>> {
        let tokens: Tokens = self.read_toml("tokens.toml")?;
        let others = self.definition.nodes.iter().filter(|node| !self.definition.is_voter(&node.slot));
        // A slot without a token cannot be joined by anybody: that is told to whoever asks for its seed.
        Ok(others.filter_map(|node| Some((node.slot.clone(), tokens.joiner(&node.slot)?))).collect())
    }

    /// Issues the token of a slot anew: the one before lets nobody in once the voters have their new seeds. A voter's is good
    /// for being brought the founding bundle, at once.
    pub fn issue_token(&self, slot: &str) -> anyhow::Result<()> {
        self.known_slot(slot)?;
        let mut tokens: Tokens = self.read_toml("tokens.toml")?;
        tokens.issue(slot)?;
        files::replace_private_file(&self.dir.join("tokens.toml"), &tokens.to_toml()?)
    }

    /// Signs a new intermediate; the one before stays valid until its end, so nothing has to happen at the same time.
    pub fn renew_intermediate(&self) -> anyhow::Result<()> {
        let file = |name: &str| self.dir.join("pki").join(name);
        let read = |name: &str| fs_err::read_to_string(file(name));
        let root = pki::Authority { certificate: read("root.pem")?, key: read("root.key")? };
        let new = pki::renew_intermediate(&self.definition.name, self.definition.uuid, &root)?;
        // Certificate and key come from two files: a kill in between is cured by running it again.
        files::replace_private_file(&file("intermediate.key"), &new.key)?;
        files::replace_private_file(&file("intermediate.pem"), &new.certificate)
    }

    fn known_slot(&self, slot: &str) -> Result<&Node, Problem> {
        self.definition.node(slot).ok_or_else(|| {
            let known: Vec<&str> = self.definition.nodes.iter().map(|node| node.slot.as_str()).collect();
            let place = self.dir.join("cluster.toml").display().to_string();
            let remedy = crate::strict::suggestion(slot, &known, "slot");
            Problem::new(format!("this cluster has no slot `{slot}`"), place, remedy)
        })
    }

    /// What the node in `slot` proves with that it may join.
    fn token(&self, slot: &str) -> anyhow::Result<Secret> {
        Ok(self.issued(slot)?.0)
    }

    /// The same and its number, both of one moment: it may be issued anew at any time.
    fn issued(&self, slot: &str) -> anyhow::Result<(Secret, u32)> {
        let mut tokens: Tokens = self.read_toml("tokens.toml")?;
        let issue = tokens.issue_of(slot);
        let token = tokens.slots.remove(slot).map(|token| (token.0, issue));
        token.ok_or_else(|| {
            let place = self.dir.join("tokens.toml").display().to_string();
            let remedy = format!("pgkiln cluster token {} {slot}", self.dir.display());
            Problem::new(format!("slot `{slot}` has no token"), place, remedy).into()
        })
    }

    fn secrets(&self) -> anyhow::Result<SecretsFile> {
        self.read_toml("secrets.toml")
    }

    fn read_toml<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<T> {
        let path = self.dir.join(name);
        let text = fs_err::read_to_string(&path)?;
        // The message of the TOML reader would quote the line, and the line is secret.
        toml::from_str(&text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
            let remedy = "undo the last change of this file, or restore it from a copy";
            Problem::new(error.message(), format!("{}:{line}", path.display()), remedy).into()
        })
    }

    /// Generates the password of a login role that was added to `cluster.toml` later; an existing one is left alone.
    pub fn generate_secret(&self, role: &str) -> anyhow::Result<()> {
        let place = self.dir.join("cluster.toml").display().to_string();
        let known: Vec<&str> = self.definition.login_roles().collect();
        if !known.contains(&role) {
            let remedy =
                format!("add it to `postgres.roles` first ({})", crate::strict::suggestion(role, &known, "role"));
            return Err(Problem::new(format!("no role `{role}` logs in to this cluster"), place, remedy).into());
        }
        let mut secrets = self.secrets()?;
        if secrets.roles.contains_key(role) {
            let remedy = "read it without --generate";
            return Err(Problem::new(format!("role `{role}` has a password already"), place, remedy).into());
        }
        secrets.roles.insert(role.to_owned(), secrets::RoleSecret::generate()?);
        files::replace_private_file(&self.dir.join("secrets.toml"), &secrets.to_toml()?)
    }
}

#[cfg(test)]
mod tests;
