//! dpkg's `path-exclude` and `path-include`, with dpkg's own rules, so that `dpkg --verify` in the image agrees with us.
//!
//! The last matching pattern wins. A directory or symbolic link that is excluded stays if some include pattern could bring
//! back something below it (dpkg compares the pattern's text before its first wildcard). `*` also matches `/`.

/// Where the image keeps the patterns for its own dpkg.
pub const CONFIG_PATH: &str = "etc/dpkg/dpkg.cfg.d/pgkiln";

/// A list of exclude and include patterns.
#[derive(Debug, Clone)]
pub struct Filter(Vec<Rule>);

#[derive(Debug, Clone)]
struct Rule {
    include: bool,
    pattern: Vec<u8>,
}

impl Filter {
    /// Reads the `path-exclude=` and `path-include=` lines of a dpkg configuration file.
    pub fn parse(config: &str) -> Self {
        let rule = |line: &str| {
            let (option, pattern) = line.split_once('=')?;
            let include = match option.trim() {
                "path-include" => true,
                "path-exclude" => false,
                _ => return None,
            };
            Some(Rule { include, pattern: pattern.trim().as_bytes().to_vec() })
        };
        Self(config.lines().filter_map(rule).collect())
    }

    /// The dpkg configuration file for a recipe's patterns: includes last, so that they win.
    pub fn config(excludes: &[String], includes: &[String]) -> String {
        let excludes = excludes.iter().map(|pattern| format!("path-exclude={pattern}\n"));
        excludes.chain(includes.iter().map(|pattern| format!("path-include={pattern}\n"))).collect()
    }

    /// Whether dpkg would leave `path` (absolute) out; `may_hold_others` for directories and symbolic links.
    pub fn skips(&self, path: &str, may_hold_others: bool) -> bool {
        let path = path.as_bytes();
        let last = self.0.iter().rev().find(|rule| matches(&rule.pattern, path));
        let skip = last.is_some_and(|rule| !rule.include);
        skip && !(may_hold_others && self.0.iter().any(|rule| rule.include && path.starts_with(rule.literal_prefix())))
    }
}

impl Rule {
    fn literal_prefix(&self) -> &[u8] {
        let end = self.pattern.iter().position(|byte| b"*?[\\".contains(byte)).unwrap_or(self.pattern.len());
        let prefix = &self.pattern[..end];
        prefix.strip_suffix(b"/").unwrap_or(prefix)
    }
}

/// `fnmatch(pattern, text, 0)` for `*` and `?`; the wildcards that recipes use.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => matches(&pattern[1..], text) || (!text.is_empty() && matches(pattern, &text[1..])),
        (Some(b'?'), Some(_)) => matches(&pattern[1..], &text[1..]),
        (Some(a), Some(b)) if a == b => matches(&pattern[1..], &text[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str =
        "path-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\npath-include=/usr/share/locale/en*
path-exclude=/usr/share/doc/*\npath-include=/usr/share/doc/*/copyright\n";

    #[test]
    fn last_match_wins_and_parents_of_includes_stay() {
        let filter = Filter::parse(RULES);
        assert!(filter.skips("/usr/share/man/man1/ls.1.gz", false));
        assert!(!filter.skips("/usr/share/doc/bash/copyright", false));
        assert!(filter.skips("/usr/share/doc/bash/changelog.gz", false));
        assert!(!filter.skips("/usr/share/doc/bash", true), "an include may bring back a file below");
        assert!(!filter.skips("/usr/share/locale/en_GB/LC_MESSAGES/x.mo", false));
        assert!(filter.skips("/usr/share/locale/de/LC_MESSAGES/x.mo", false));
        assert!(!filter.skips("/usr/share/locale", true));
        assert!(!filter.skips("/usr/bin/ls", false));
    }
}
