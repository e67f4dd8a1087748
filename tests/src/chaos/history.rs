//! What one client did, write by write.

use std::sync::Arc;
use std::time::Duration;

/// How one write ended. Times are since the observers' start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Result {
    /// Acknowledged.
    Accepted(Accepted),
    /// The server does not write: the row cannot be there.
    Refused,
    /// No answer, or an error after which the row may or may not be there.
    Unknown,
}

/// Who acknowledged a write, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The node whose PostgreSQL it was.
    pub slot: Arc<str>,
    /// Timeline it wrote on.
    pub timeline: u32,
    /// When the answer was there.
    pub answered: Duration,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Its number; each is sent once, so that a row stands for one write.
    pub number: i64,
    /// When it was sent.
    pub sent: Duration,
    /// How it ended.
    pub result: Result,
}

/// All writes of a client, in the order they were sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The client; part of every row's key.
    pub writer: String,
    /// Its writes.
    pub attempts: Vec<Attempt>,
}

impl History {
    /// Nothing yet.
    pub fn of(writer: impl Into<String>) -> Self {
        Self { writer: writer.into(), attempts: Vec::new() }
    }

    /// What the client is: the part of its name behind the run.
    pub fn role(&self) -> &str {
        self.writer.rsplit('/').next().unwrap_or_default()
    }

    /// The acknowledged writes.
    pub fn accepted(&self) -> impl Iterator<Item = (&Attempt, &Accepted)> {
        self.attempts.iter().filter_map(|attempt| match &attempt.result {
            Result::Accepted(accepted) => Some((attempt, accepted)),
            _ => None,
        })
    }

    /// When the first write that was sent after `moment` was acknowledged.
    pub fn answered_after(&self, moment: Duration) -> Option<Duration> {
        self.accepted().filter(|(attempt, _)| attempt.sent > moment).map(|(_, accepted)| accepted.answered).min()
    }

    /// When the last write was acknowledged by `slot`.
    pub fn last_by(&self, slot: &str) -> Option<Duration> {
        self.accepted().filter(|(_, accepted)| *accepted.slot == *slot).map(|(_, accepted)| accepted.answered).max()
    }

    /// The longest time without an acknowledgement, from the first one to the last.
    pub fn longest_pause(&self) -> Duration {
        let mut answers: Vec<Duration> = self.accepted().map(|(_, accepted)| accepted.answered).collect();
        answers.sort();
        answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::chaos) fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    pub(in crate::chaos) fn accepted(number: i64, slot: &str, timeline: u32, sent: u64, answered: u64) -> Attempt {
        let result = Result::Accepted(Accepted { slot: slot.into(), timeline, answered: ms(answered) });
        Attempt { number, sent: ms(sent), result }
    }

    #[test]
    fn a_pause_is_measured_between_answers_whenever_they_were_asked_for() {
        let late = accepted(2, "pg-1", 1, 20, 900);
        let unknown = Attempt { number: 3, sent: ms(30), result: Result::Unknown };
        let attempts = vec![accepted(1, "pg-1", 1, 0, 10), late, unknown, accepted(4, "pg-2", 2, 390, 400)];
        let history = History { writer: "app".into(), attempts };
        assert_eq!(history.longest_pause(), ms(500));
        assert_eq!(history.answered_after(ms(25)), Some(ms(400)));
        assert_eq!(history.answered_after(ms(390)), None);
    }
}
