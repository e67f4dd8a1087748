//! TOML with line numbers, read strictly: a key that nobody asked for is a problem, and problems are collected, not thrown.

use std::cell::RefCell;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Located;
use crate::problem::{Problem, Problems};

/// A file being checked: its lines and the problems found so far.
pub(super) struct Document<'a> {
    file: &'a Path,
    text: &'a str,
    problems: RefCell<Vec<(usize, Problem)>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        Self { file, text, problems: RefCell::new(Vec::new()) }
    }

    /// Line of a byte offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }

    pub(super) fn problem(&self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        let place = format!("{}:{line}", self.file.display());
        self.problems.borrow_mut().push((line, Problem::new(what, place, remedy)));
    }

    /// All problems in the order of the file.
    pub(super) fn problems(self) -> Problems {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(line, _)| *line);
        Problems(problems.into_iter().map(|(_, problem)| problem).collect())
    }

    pub(super) fn has_problems(&self) -> bool {
        !self.problems.borrow().is_empty()
    }
}

/// A table; it learns which keys are known from being asked for them.
pub(super) struct Table<'d, 'i> {
    document: &'d Document<'i>,
    /// Dotted name for messages; empty at the top.
    name: String,
    table: &'d DeTable<'i>,
    pub(super) line: usize,
    asked: RefCell<Vec<&'static str>>,
}

impl<'d, 'i> Table<'d, 'i> {
    pub(super) fn new(
        document: &'d Document<'i>,
        name: impl Into<String>,
        table: &'d DeTable<'i>,
        line: usize,
    ) -> Self {
        Self { document, name: name.into(), table, line, asked: RefCell::default() }
    }

    fn get(&self, key: &'static str) -> Option<(&'d DeValue<'i>, usize)> {
        self.asked.borrow_mut().push(key);
        let (found, value) = self.table.iter().find(|(found, _)| found.get_ref() == key)?;
        Some((value.get_ref(), self.document.line(found.span().start)))
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn wrong_type(&self, key: &str, line: usize, found: &DeValue<'_>, wanted: &str, example: &str) {
        let what = format!("`{}` is {}, not {wanted}", self.full(key), found.type_str());
        self.document.problem(line, what, format!("write {key} = {example}"));
    }

    /// A string, if the key is there.
    pub(super) fn text(&self, key: &'static str) -> Option<Located<String>> {
        let (value, line) = self.get(key)?;
        match value.as_str() {
            Some(text) => Some(Located { value: text.to_owned(), line }),
            None => {
                self.wrong_type(key, line, value, "a string", "\"…\"");
                None
            }
        }
    }

    /// A string that must be there.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<Located<String>> {
        if self.table.iter().any(|(found, _)| found.get_ref() == key) {
            return self.text(key);
        }
        self.asked.borrow_mut().push(key);
        self.missing(key, example);
        None
    }

    pub(super) fn missing(&self, key: &str, example: &str) {
        let place = if self.name.is_empty() { String::new() } else { format!(" in [{}]", self.name) };
        self.document.problem(self.line, format!("`{key}` is missing{place}"), format!("add {key} = {example}"));
    }

    /// An integer, if the key is there.
    pub(super) fn integer(&self, key: &'static str) -> Option<Located<i64>> {
        let (value, line) = self.get(key)?;
        let parsed = value.as_integer().and_then(|n| i64::from_str_radix(n.as_str(), n.radix()).ok());
        if parsed.is_none() {
            self.wrong_type(key, line, value, "a whole number", "1");
        }
        parsed.map(|value| Located { value, line })
    }

    /// An array of strings; empty if the key is not there.
    pub(super) fn texts(&self, key: &'static str) -> Vec<Located<String>> {
        let Some((value, line)) = self.get(key) else { return Vec::new() };
        let Some(array) = value.as_array() else {
            self.wrong_type(key, line, value, "an array of strings", "[\"…\"]");
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in array {
            let line = self.document.line(item.span().start);
            match item.get_ref().as_str() {
                Some(text) => texts.push(Located { value: text.to_owned(), line }),
                None => self.wrong_type(key, line, item.get_ref(), "a string in the array", "[\"…\"]"),
            }
        }
        texts
    }

    /// A table, if the key is there.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'d, 'i>> {
        let (value, line) = self.get(key)?;
        match value.as_table() {
            Some(table) => Some(Table::new(self.document, self.full(key), table, line)),
            None => {
                self.wrong_type(key, line, value, "a table", &format!("{{ … }} or a section [{}]", self.full(key)));
                None
            }
        }
    }

    /// Tables inside this one, by name, in the order of the file; for tables whose keys are names.
    pub(super) fn named_tables(&self) -> Vec<(String, Table<'d, 'i>)> {
        let mut entries: Vec<(&Spanned<_>, &Spanned<DeValue<'i>>)> = self.table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut tables = Vec::new();
        for (key, value) in entries {
            let (name, line) = (key.get_ref().to_string(), self.document.line(key.span().start));
            match value.get_ref().as_table() {
                Some(table) => {
                    let full = self.full(&name);
                    tables.push((name, Table::new(self.document, full, table, line)));
                }
                None => self.wrong_type(&name, line, value.get_ref(), "a table", "{ … }"),
            }
        }
        tables
    }

    /// Strings inside this table by name; for tables whose keys are names.
    pub(super) fn named_texts(&self) -> Vec<(String, Located<String>)> {
        let mut texts = Vec::new();
        for (key, value) in self.table {
            let line = self.document.line(key.span().start);
            match value.get_ref().as_str() {
                Some(text) => texts.push((key.get_ref().to_string(), Located { value: text.to_owned(), line })),
                None => self.wrong_type(key.get_ref(), line, value.get_ref(), "a string", "\"…\""),
            }
        }
        texts
    }

    /// Reports every key nobody asked for.
    pub(super) fn finish(self) {
        let asked = self.asked.borrow();
        for key in self.table.keys().filter(|key| !asked.iter().any(|known| key.get_ref() == known)) {
            let line = self.document.line(key.span().start);
            let what = format!("unknown key `{}`", self.full(key.get_ref()));
            self.document.problem(line, what, suggestion(key.get_ref(), asked.iter().copied()));
        }
    }
}

/// `did you mean …?` if one of `known` is close, else all of them.
pub(super) fn suggestion<'k>(word: &str, known: impl IntoIterator<Item = &'k str> + Clone) -> String {
    match closest(word, known.clone()) {
        Some(best) => format!("did you mean `{best}`?"),
        None => {
            let mut all: Vec<String> = known.into_iter().map(|word| format!("`{word}`")).collect();
            all.sort();
            format!("known are {}", all.join(", "))
        }
    }
}

/// The nearest of `known` by spelling, if any is near enough to be meant.
pub(crate) fn closest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let score = |known: &&str| strsim::jaro_winkler(word, known);
    let best = known.into_iter().max_by(|a, b| score(a).total_cmp(&score(b)).then_with(|| b.cmp(a)))?;
    (score(&best) >= 0.85 || strsim::osa_distance(word, best) <= 1).then_some(best)
}
