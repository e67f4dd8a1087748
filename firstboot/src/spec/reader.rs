//! Reading typed values out of a [`Node`] tree while collecting problems: each has its line, a suggestion if a name is
//! close to a known one, and a remedy.

use std::str::FromStr;

use super::tree::{Node, Value};
use crate::problem::Problem;

/// Collects problems of one document.
#[derive(Debug)]
pub struct Reader<'a> {
    place: &'a str,
    /// Everything found so far.
    pub problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    /// A reader whose problems point at `place:LINE`.
    pub fn new(place: &'a str) -> Self {
        Self { place, problems: Vec::new() }
    }

    /// Adds a problem at a line.
    pub fn problem(&mut self, line: u64, what: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem::new(what, format!("{}:{line}", self.place), remedy));
    }

    /// Checks that `node` is a mapping with no keys but `known`.
    pub fn mapping(&mut self, node: &Node, path: &str, known: &[&str]) {
        if !matches!(node.value, Value::Map(_)) {
            let what = format!("`{path}` must be a mapping, found {}", node.kind());
            self.problem(node.line, what, format!("write its keys ({}) indented below it", known.join(", ")));
        }
        for (key, _) in node.entries() {
            if !known.contains(&key.name.as_str()) {
                let what = format!("unknown key `{}` in `{path}`", key.name);
                self.problem(key.line, what, suggestion(&key.name, known, "key"));
            }
        }
    }

    /// Checks that `node` is a mapping; its keys are names.
    pub fn mapping_of_names(&mut self, node: &Node, path: &str) {
        if !matches!(node.value, Value::Map(_)) {
            let what = format!("`{path}` must be a mapping, found {}", node.kind());
            self.problem(node.line, what, "write one name a line, indented below it");
        }
    }

    /// A key's value, `None` if absent or null.
    pub fn optional<'n>(&self, node: &'n Node, key: &str) -> Option<&'n Node> {
        node.get(key).filter(|value| !matches!(value.value, Value::Null))
    }

    /// A key's value; its absence is a problem.
    pub fn required<'n>(&mut self, node: &'n Node, path: &str, key: &str) -> Option<&'n Node> {
        let found = self.optional(node, key);
        if found.is_none() && matches!(node.value, Value::Map(_)) {
            self.problem(node.line, format!("`{path}.{key}` is missing"), format!("add `{key}:` to `{path}`"));
        }
        found
    }

    /// A scalar as text.
    pub fn text(&mut self, node: &Node, path: &str) -> Option<String> {
        let text = node.scalar();
        if text.is_none() {
            self.problem(
                node.line,
                format!("`{path}` must be text, found {}", node.kind()),
                "write one value on this line",
            );
        }
        text
    }

    /// A value parsed from its text; `like` shows a right one.
    pub fn parsed<T: FromStr>(&mut self, node: &Node, path: &str, like: &str) -> Option<T> {
        let text = self.text(node, path)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.problem(node.line, format!("`{path}`: `{text}` is not valid"), format!("write it like `{like}`"));
        }
        value
    }

    /// One of a table of names.
    pub fn choice<T: Copy>(&mut self, node: &Node, path: &str, table: &[(&str, T)]) -> Option<T> {
        let text = self.text(node, path)?;
        if let Some((_, value)) = table.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names: Vec<_> = table.iter().map(|(name, _)| *name).collect();
        let what = path.rsplit('.').next().unwrap_or(path);
        self.problem(node.line, format!("unknown {what} `{text}`"), suggestion(&text, &names, "value"));
        None
    }

    /// True or false.
    pub fn boolean(&mut self, node: &Node, path: &str) -> Option<bool> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => {
                let what = format!("`{path}` must be true or false, found {}", node.kind());
                self.problem(node.line, what, "write `true` or `false`");
                None
            }
        }
    }

    /// The items of a list.
    pub fn list<'n>(&mut self, node: &'n Node, path: &str) -> &'n [Node] {
        match &node.value {
            Value::List(items) => items,
            _ => {
                let what = format!("`{path}` must be a list, found {}", node.kind());
                self.problem(node.line, what, "write `[a, b]`, or one `- item` a line");
                &[]
            }
        }
    }
}

/// `did you mean …?`, or the list of what there is.
pub fn suggestion(name: &str, known: &[&str], noun: &str) -> String {
    let close = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min();
    match close {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None => format!("use one of the known {noun}s: {}", known.join(", ")),
    }
}
