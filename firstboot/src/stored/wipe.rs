//! Removes the founding secrets from a seed that can be written to, once they are kept in `secrets.json`.
//!
//! Cutting lines out of somebody's document keeps his comments but is only right if the result says so: it is parsed
//! again and must be the same document without `founding`, with no secret left anywhere in its text. Otherwise (flow
//! style, quoted keys, anything clever) the whole document is written anew. What can neither be cut nor written anew
//! is an error, never a silent rest.

use anyhow::{Context, Result, ensure};

use crate::datasource::Seed;
use crate::spec::tree::{self, Node, Value};
use crate::{durable, user_data};

/// Removes `pgkiln.founding` from the seed's file; a seed that cannot be written to and carries it is an error.
pub(super) fn wipe(seed: &Seed) -> Result<()> {
    let text = user_data::decode(&seed.user_data, &seed.place)?;
    let Some(wiped) = without_secrets(&text, &seed.place)? else { return Ok(()) };
    let path = seed.wipeable.as_ref().context("it cannot be written to: detach it")?;
    durable::write(path, wiped.as_bytes(), 0o600)?;
    tracing::info!("secrets wiped from {}", path.display());
    Ok(())
}

/// The document without its founding bundle and without its token; `None` if it has neither.
fn without_secrets(text: &str, place: &str) -> Result<Option<String>> {
    let mut wiped = None;
    for name in ["founding", "join"] {
        let without = without(wiped.as_deref().unwrap_or(text), name, place)?;
        wiped = without.or(wiped);
    }
    Ok(wiped)
}

/// The document without one key of our section.
fn without(text: &str, name: &str, place: &str) -> Result<Option<String>> {
    let mut root = tree::parse(text, place)?;
    let Some(section) = entry(&mut root, "pgkiln") else { return Ok(None) };
    let Value::Map(entries) = &mut section.value else { return Ok(None) };
    let Some(at) = entries.iter().position(|(key, _)| key.name == name) else { return Ok(None) };
    let (key, secret) = entries.remove(at);
    let mut secrets = Vec::new();
    leaves(&secret, &mut secrets);
    let good = |candidate: &str| {
        let same = tree::parse(candidate, place).is_ok_and(|parsed| parsed.value == root.value);
        same && !secrets.iter().any(|secret| candidate.contains(secret.as_str()))
    };
    let cut = cut(text, key.line, key.column);
    if good(&cut) {
        return Ok(Some(cut));
    }
    let body = serde_saphyr::to_string(&root).context("writing the document without its secrets")?;
    let anew = format!("#cloud-config\n# Written anew by firstboot, which removed its secrets.\n{body}");
    ensure!(good(&anew), "the secrets also stand elsewhere in the document: remove them");
    Ok(Some(anew))
}

fn entry<'a>(node: &'a mut Node, name: &str) -> Option<&'a mut Node> {
    match &mut node.value {
        Value::Map(entries) => entries.iter_mut().find(|(key, _)| key.name == name).map(|(_, value)| value),
        _ => None,
    }
}

/// The secret texts of a bundle or a token, line by line. Certificates are public and may stand elsewhere.
fn leaves(secret: &Node, found: &mut Vec<String>) {
    let key = secret.get("intermediate").and_then(|node| node.get("key"));
    let key = key.into_iter().chain(secret.get("token"));
    let passwords = secret.get("passwords").map(Node::entries).unwrap_or_default().iter().map(|(_, node)| node);
    for text in key.chain(passwords).filter_map(Node::scalar) {
        found.extend(text.lines().filter(|line| line.len() >= 8 && !line.starts_with("-----")).map(str::to_owned));
    }
}

/// Without the block that begins at `line` and `column`: that line and everything indented deeper.
fn cut(text: &str, line: u64, column: u64) -> String {
    let depth = |line: &str| line.chars().take_while(|c| *c == ' ').count() as u64;
    let mut kept = String::new();
    let mut inside = false;
    for (number, content) in (1..).zip(text.split_inclusive('\n')) {
        inside = number == line || inside && (content.trim().is_empty() || depth(content) >= column);
        if !inside {
            kept.push_str(content);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wiped(text: &str) -> String {
        without_secrets(text, "user-data").unwrap().expect("a bundle")
    }

    #[test]
    fn a_block_is_cut_and_the_rest_stays_as_it_was() {
        let before = "#cloud-config\n# Ours.\npgkiln:\n  slot: pg-1\n";
        let bundle = "  founding:\n    intermediate:\n      key: |\n        secret-key-1\n\n        secret-key-2\n    \
                      passwords: {superuser: secret-superuser}\n";
        let after = "  # Not a `founding:` line.\n  role: node\nhostname: pg-1\n";
        assert_eq!(wiped(&format!("{before}{bundle}{after}")), format!("{before}{after}"));
        // Last in the section, next to another section.
        let text = format!("{before}{bundle}hostname: 'yes'\n");
        assert_eq!(wiped(&text), format!("{before}hostname: 'yes'\n"));
    }

    #[test]
    fn a_token_is_cut_as_well() {
        let before = "#cloud-config\npgkiln:\n  slot: px-1\n";
        let join = "  join: {token: \"px-1.secret-token\"}\n";
        assert_eq!(wiped(&format!("{before}{join}  role: proxy\n")), format!("{before}  role: proxy\n"));
        let both = format!("{before}{join}  founding: {{passwords: {{superuser: secret-superuser}}}}\n");
        assert_eq!(wiped(&both), before);
    }

    #[test]
    fn every_other_style_is_written_anew() {
        let bundle = "{schema: 1, passwords: {superuser: \"secret-superuser\"}}";
        for document in [
            format!("#cloud-config\npgkiln: {{slot: pg-1, founding: {bundle}, role: node}}\n"),
            "#cloud-config\npgkiln:\n  slot: pg-1\n  role: node\n  founding: {schema: 1,\n  passwords: {superuser: \
             secret-superuser}}\n"
                .to_owned(),
            format!(
                "#cloud-config\n{{\"pgkiln\": {{\"slot\": \"pg-1\", \"role\": \"node\", \"founding\":\n{bundle}}}}}\n"
            ),
            format!("#cloud-config\npgkiln:\n  ? \"founding\"\n  : {bundle}\n  slot: pg-1\n  role: node\n"),
        ] {
            let text = wiped(&document);
            assert!(text.starts_with("#cloud-config\n") && !text.contains("secret-"), "{document}\n{text}");
            let root = tree::parse(&text, "user-data").unwrap();
            let section = root.get("pgkiln").unwrap();
            assert!(section.get("founding").is_none());
            assert_eq!(section.get("role").and_then(Node::scalar).as_deref(), Some("node"), "{text}");
        }
    }

    #[test]
    fn ambiguous_scalars_survive() {
        let text = "#cloud-config\na: ['yes', '1', 1, 1.5, true, null, '02:00:00:00:00:01', '0x10', \"x\\ny\"]\n\
                    pgkiln: {founding: {passwords: {superuser: secret-superuser}}, slot: '007'}\n";
        let values = |text: &str| tree::parse(text, "x").unwrap().get("a").unwrap().value.clone();
        assert_eq!(values(&wiped(text)), values(text));
    }

    #[test]
    fn a_secret_that_stands_elsewhere_too_is_not_left_silently() {
        let text = "#cloud-config\npgkiln:\n  founding: {passwords: {superuser: &it secret-superuser}}\nmotd: *it\n";
        assert!(without_secrets(text, "user-data").is_err());
        assert!(without_secrets("#cloud-config\npgkiln: {slot: pg-1}\n", "user-data").unwrap().is_none());
        assert!(without_secrets("#cloud-config\n", "user-data").is_ok_and(|wiped| wiped.is_none()));
    }
}
