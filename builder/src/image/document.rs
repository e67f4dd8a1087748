//! The recipe's tables, each of which learns its known keys from being asked for them: reading a key and knowing it cannot
//! drift apart. What is wrong is collected by [`strict`](crate::strict).

use std::cell::{RefCell, RefMut};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Located;
use crate::strict::Reader;

/// A table of the recipe.
pub(super) struct Table<'d, 'i> {
    reader: &'d RefCell<Reader<'i>>,
    /// Dotted name for messages; empty at the top.
    name: String,
    table: &'d DeTable<'i>,
    pub(super) line: usize,
    asked: RefCell<Vec<&'static str>>,
}

impl<'d, 'i> Table<'d, 'i> {
    pub(super) fn top(reader: &'d RefCell<Reader<'i>>, table: &'d DeTable<'i>) -> Self {
        Self::new(reader, String::new(), table, 1)
    }

    fn new(reader: &'d RefCell<Reader<'i>>, name: String, table: &'d DeTable<'i>, line: usize) -> Self {
        Self { reader, name, table, line, asked: RefCell::default() }
    }

    fn reader(&self) -> RefMut<'d, Reader<'i>> {
        self.reader.borrow_mut()
    }

    /// Reports a problem in a line.
    pub(super) fn problem(&self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        self.reader().problem_in_line(line, what, remedy);
    }

    fn get(&self, key: &'static str) -> Option<(&'d Spanned<DeValue<'i>>, usize)> {
        self.asked.borrow_mut().push(key);
        let (found, value) = self.table.iter().find(|(found, _)| found.get_ref() == key)?;
        Some((value, self.reader().line(&found.span())))
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Whether the key is there, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.keys().any(|found| found.get_ref() == key)
    }

    /// A string, if the key is there.
    pub(super) fn text(&self, key: &'static str) -> Option<Located<String>> {
        let (value, line) = self.get(key)?;
        let value = self.reader().text(value, &self.full(key))?;
        Some(Located { value, line })
    }

    /// A string that must be there.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<Located<String>> {
        if !self.has(key) {
            self.missing(key, example);
        }
        self.text(key)
    }

    pub(super) fn missing(&self, key: &str, example: &str) {
        self.problem(self.line, format!("`{}` is missing", self.full(key)), format!("add {key} = {example}"));
    }

    /// A whole number, if the key is there.
    pub(super) fn integer(&self, key: &'static str) -> Option<Located<i64>> {
        let (value, line) = self.get(key)?;
        let value = self.reader().integer(value, &self.full(key))?;
        Some(Located { value, line })
    }

    /// An array of strings; empty if the key is not there.
    pub(super) fn texts(&self, key: &'static str) -> Vec<Located<String>> {
        let Some((value, _)) = self.get(key) else { return Vec::new() };
        let mut reader = self.reader();
        let mut texts = Vec::new();
        for item in reader.array(value, &self.full(key)) {
            let line = reader.line(&item.span());
            texts.extend(reader.text(item, &self.full(key)).map(|value| Located { value, line }));
        }
        texts
    }

    /// A table, if the key is there.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'d, 'i>> {
        let (value, line) = self.get(key)?;
        let table = self.reader().table(value, &self.full(key))?;
        Some(Table::new(self.reader, self.full(key), table, line))
    }

    /// Tables inside this one, by name, in the order of the file; for tables whose keys are names.
    pub(super) fn named_tables(&self) -> Vec<(String, Table<'d, 'i>)> {
        let mut entries: Vec<_> = self.table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut tables = Vec::new();
        for (key, value) in entries {
            let (name, line) = (key.get_ref().to_string(), self.reader().line(&key.span()));
            let full = self.full(&name);
            let table = self.reader().table(value, &full);
            tables.extend(table.map(|table| (name, Table::new(self.reader, full, table, line))));
        }
        tables
    }

    /// Strings inside this table by name; for tables whose keys are names.
    pub(super) fn named_texts(&self) -> Vec<(String, Located<String>)> {
        let mut texts = Vec::new();
        for (key, value) in self.table {
            let name = key.get_ref().to_string();
            let line = self.reader().line(&key.span());
            texts.extend(self.reader().text(value, &self.full(&name)).map(|value| (name, Located { value, line })));
        }
        texts
    }

    /// Reports every key nobody asked for.
    pub(super) fn finish(self) {
        self.reader().known(self.table, &self.name, &self.asked.borrow());
    }
}
