//! TOML read strictly: unknown keys, wrong types and missing values are problems with file, line and remedy, and all of
//! them are found in one pass. A derive of serde's would stop at the first.
//!
//! ```text
//! let table = reader.document(&text)?;         // syntax
//! reader.known(&table, "", &["name", …]);      // unknown keys, with the nearest known one
//! let name = reader.required(&table, "", "name").and_then(|value| reader.text(value, "name"));
//! reader.finish()?;                            // everything collected
//! ```

use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::{Problem, Problems};

/// A value and where it stands.
pub type Value<'a> = Spanned<DeValue<'a>>;

/// Collects the problems of one file.
#[derive(Debug)]
pub struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    /// A reader of `text`, whose problems point at `file:LINE`.
    pub fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, problems: Vec::new() }
    }

    /// The document's table; every syntax error is reported, not only the first.
    pub fn document(&mut self) -> Result<Spanned<DeTable<'a>>, Problems> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        if errors.is_empty() {
            return Ok(table);
        }
        for error in errors {
            let what = format!("not valid TOML: {}", error.message().trim().replace('\n', ", "));
            self.problem(&error.span().unwrap_or(0..0), what, "correct this line");
        }
        Err(self.finish().err().unwrap_or_default())
    }

    /// Ends reading: everything collected so far, in the order of the file.
    pub fn finish(&mut self) -> Result<(), Problems> {
        if self.problems.is_empty() {
            return Ok(());
        }
        let line = |problem: &Problem| problem.place.rsplit(':').next().and_then(|line| line.parse::<usize>().ok());
        self.problems.sort_by_key(line);
        Err(Problems(std::mem::take(&mut self.problems)))
    }

    /// Adds a problem at a place in the file.
    pub fn problem(&mut self, span: &Range<usize>, what: impl Into<String>, remedy: impl Into<String>) {
        self.problem_in_line(self.line(span), what, remedy);
    }

    /// Adds a problem in a line of the file.
    pub fn problem_in_line(&mut self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem::new(what, format!("{}:{line}", self.file), remedy));
    }

    /// The line in which `span` begins, from 1.
    pub fn line(&self, span: &Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// Whether anything was found wrong so far.
    pub fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Reports every key of `table` that is not among `known`. `path` names the table (empty: the document).
    pub fn known(&mut self, table: &DeTable<'_>, path: &str, known: &[&str]) {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let place = if path.is_empty() { String::new() } else { format!(" in `{path}`") };
                self.problem(&key.span(), format!("unknown key `{name}`{place}"), suggestion(name, known, "key"));
            }
        }
    }

    /// A key's value; its absence is a problem at the table's place.
    pub fn required<'t, 'i>(
        &mut self,
        table: &'t Spanned<DeTable<'i>>,
        path: &str,
        key: &str,
    ) -> Option<&'t Value<'i>> {
        let found = table.get_ref().get(key);
        if found.is_none() {
            let full = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            self.problem(&table.span(), format!("`{full}` is missing"), format!("add `{key} = …`"));
        }
        found
    }

    /// A string.
    pub fn text(&mut self, value: &Value<'_>, path: &str) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            other => {
                let what = format!("`{path}` must be a string, found {}", kind(other));
                self.problem(&value.span(), what, "write it in double quotes");
                None
            }
        }
    }

    /// A string that reads as `T`; `example` shows one.
    pub fn parsed<T: FromStr>(&mut self, value: &Value<'_>, path: &str, example: &str) -> Option<T> {
        let text = self.text(value, path)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.problem(&value.span(), format!("`{text}` is no valid `{path}`"), format!("write it like `{example}`"));
        }
        parsed
    }

    /// A whole number.
    pub fn integer(&mut self, value: &Value<'_>, path: &str) -> Option<i64> {
        let number =
            value.get_ref().as_integer().and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        if number.is_none() {
            let what = format!("`{path}` must be a whole number, found {}", kind(value.get_ref()));
            self.problem(&value.span(), what, "write a number without quotes");
        }
        number
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, value: &Value<'_>, path: &str) -> Option<bool> {
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            let what = format!("`{path}` must be true or false, found {}", kind(value.get_ref()));
            self.problem(&value.span(), what, "write true or false without quotes");
        }
        boolean
    }

    /// One of several words.
    pub fn choice<T: Clone>(&mut self, value: &Value<'_>, path: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(value, path)?;
        let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| choice.clone());
        if chosen.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.problem(&value.span(), format!("unknown `{path}`: `{text}`"), suggestion(&text, &names, "value"));
        }
        chosen
    }

    /// A table, which may be written inline.
    pub fn table<'v, 'i>(&mut self, value: &'v Value<'i>, path: &str) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let what = format!("`{path}` must be a table, found {}", kind(value.get_ref()));
            self.problem(&value.span(), what, format!("write `[{path}]` and its keys below it"));
        }
        table
    }

    /// An array's items; empty if it is none.
    pub fn array<'v, 'i>(&mut self, value: &'v Value<'i>, path: &str) -> &'v [Value<'i>] {
        if let Some(items) = value.get_ref().as_array() {
            return items;
        }
        let what = format!("`{path}` must be an array, found {}", kind(value.get_ref()));
        self.problem(&value.span(), what, format!("write `{path} = [ … ]`"));
        &[]
    }
}

fn kind(value: &DeValue<'_>) -> String {
    let article = if value.type_str().starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {}", value.type_str())
}

/// The nearest known name, or all of them.
pub fn suggestion(name: &str, known: &[&str], noun: &str) -> String {
    let near = known.iter().map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate));
    match near.min_by_key(|(distance, _)| *distance) {
        Some((distance, candidate)) if distance <= 2.max(name.len() / 3) => format!("did you mean `{candidate}`?"),
        _ => format!("known {noun}s: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_a_file_in_its_order() {
        let text = "nmae = 'x'\nnumber = 'seven'\nflag = 1\nrole = 'noed'\nitems = 3\n[inner]\nnonsense_key = 1\n";
        let mut reader = Reader::new("image.toml", text);
        let table = reader.document().unwrap();
        let top = table.get_ref();
        reader.known(top, "", &["name", "number", "flag", "role", "items", "inner"]);
        reader.required(&table, "", "name");
        reader.integer(&top["number"], "number");
        reader.boolean(&top["flag"], "flag");
        reader.choice(&top["role"], "role", &[("node", 1), ("etcd", 2)]);
        reader.array(&top["items"], "items");
        let inner = reader.table(&top["inner"], "inner").unwrap();
        reader.known(inner, "inner", &["alpha", "beta"]);
        insta::assert_snapshot!(reader.finish().unwrap_err().to_string(), @r"
        image.toml:1: unknown key `nmae`
          hint: did you mean `name`?
        image.toml:1: `name` is missing
          hint: add `name = …`
        image.toml:2: `number` must be a whole number, found a string
          hint: write a number without quotes
        image.toml:3: `flag` must be true or false, found an integer
          hint: write true or false without quotes
        image.toml:4: unknown `role`: `noed`
          hint: did you mean `node`?
        image.toml:5: `items` must be an array, found an integer
          hint: write `items = [ … ]`
        image.toml:7: unknown key `nonsense_key` in `inner`
          hint: known keys: alpha, beta
        ");
    }

    #[test]
    fn syntax_errors_name_their_lines() {
        let mut reader = Reader::new("image.toml", "a = 1\nb = \nc = 3\na = 4\n");
        insta::assert_snapshot!(reader.document().unwrap_err().to_string(), @r"
        image.toml:2: not valid TOML: string values must be quoted, expected literal string
          hint: correct this line
        image.toml:4: not valid TOML: duplicate key
          hint: correct this line
        ");
    }
}
