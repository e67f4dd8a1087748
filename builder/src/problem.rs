//! Errors as a person at two in the morning needs them: what is wrong, where, and what to do about it.

use std::fmt;

use serde::Serialize;

/// One refusal or failure with its remedy; the `error` object of `firstboot status --json` .
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, thiserror::Error)]
pub struct Problem {
    /// What is wrong, one sentence, values in backticks.
    pub what: String,
    /// File (and line), address or unit it concerns; empty if there is none.
    #[serde(rename = "where")]
    pub place: String,
    /// What the reader should do next.
    pub remedy: String,
}

impl Problem {
    /// A problem at `place` (for instance `user-data:12`) that `remedy` would cure.
    pub fn new(what: impl Into<String>, place: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), place: place.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        write!(f, "{}", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "\n  hint: {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Several problems found in one pass, reported together.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
