//! The two invariants, as functions of what clients saw and of the rows found afterwards.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use super::history::{History, Result};

/// Rows found, by writer and number.
pub type Rows = HashSet<(String, i64)>;

/// I1: every acknowledged write is there, and nothing is there that was refused or never sent.
pub fn nothing_lost(histories: &[History], rows: &Rows) -> Vec<String> {
    let mut found = Vec::new();
    let mut possible = HashSet::new();
    for history in histories {
        for attempt in &history.attempts {
            let key = (history.writer.clone(), attempt.number);
            match &attempt.result {
                Result::Accepted(accepted) if !rows.contains(&key) => found.push(format!(
                    "lost: {} {}, sent at {:.3?} and acknowledged at {:.3?} by {} on timeline {}",
                    key.0, key.1, attempt.sent, accepted.answered, accepted.slot, accepted.timeline
                )),
                _ => {}
            }
            if attempt.result != Result::Refused {
                possible.insert(key);
            }
        }
    }
    let writers: HashSet<&str> = histories.iter().map(|history| history.writer.as_str()).collect();
    let invented = rows.iter().filter(|row| writers.contains(row.0.as_str()) && !possible.contains(*row));
    found.extend(invented.map(|(writer, number)| format!("never sent, or refused: {writer} {number}")));
    found
}

/// I2: never two writers at one instant.
///
/// A timeline has one writer. And once a newer timeline has acknowledged a write, older ones acknowledge nothing that is
/// sent later. (A write that an old primary acknowledged was sent while the new one was not known to have begun proves
/// nothing: the two may have been one after the other.)
pub fn one_writer(histories: &[History]) -> Vec<String> {
    let mut found = Vec::new();
    let mut slots: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    let mut first: BTreeMap<u32, (Duration, &str)> = BTreeMap::new();
    for (_, accepted) in histories.iter().flat_map(History::accepted) {
        slots.entry(accepted.timeline).or_default().insert(&accepted.slot);
        let begun = first.entry(accepted.timeline).or_insert((accepted.answered, &accepted.slot));
        *begun = (*begun).min((accepted.answered, &accepted.slot));
    }
    for (timeline, slots) in slots.iter().filter(|(_, slots)| slots.len() > 1) {
        found.push(format!("two writers on timeline {timeline}: {slots:?}"));
    }
    for history in histories {
        for (attempt, accepted) in history.accepted() {
            let newer = first.range(accepted.timeline + 1..).filter(|(_, (answered, _))| *answered < attempt.sent);
            if let Some((timeline, (answered, slot))) = newer.min_by_key(|(_, begun)| **begun) {
                found.push(format!(
                    "two writers: {} {} was sent at {:.3?} and acknowledged at {:.3?} by {} on timeline {}, but {slot} had \
                     acknowledged on timeline {timeline} at {answered:.3?}",
                    history.writer,
                    attempt.number,
                    attempt.sent,
                    accepted.answered,
                    accepted.slot,
                    accepted.timeline
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::history::Attempt;
    use super::super::history::tests::{accepted, ms};
    use super::*;

    fn history(writer: &str, attempts: Vec<Attempt>) -> History {
        History { writer: writer.into(), attempts }
    }

    fn rows(numbers: &[i64]) -> Rows {
        numbers.iter().map(|number| ("app".to_owned(), *number)).collect()
    }

    #[test]
    fn an_acknowledged_row_must_be_there_and_an_unanswered_one_may() {
        let unknown = Attempt { number: 2, sent: ms(1), result: Result::Unknown };
        let refused = Attempt { number: 3, sent: ms(2), result: Result::Refused };
        let app = [history("app", vec![accepted(1, "pg-1", 1, 0, 1), unknown, refused])];
        assert_eq!(nothing_lost(&app, &rows(&[1])), Vec::<String>::new());
        assert_eq!(nothing_lost(&app, &rows(&[1, 2])), Vec::<String>::new());
        let lost = nothing_lost(&app, &rows(&[2]));
        assert!(lost.len() == 1 && lost[0].starts_with("lost: app 1, "), "{lost:?}");
    }

    #[test]
    fn a_row_nobody_sent_or_that_was_refused_must_not_be_there() {
        let refused = Attempt { number: 3, sent: ms(2), result: Result::Refused };
        let app = [history("app", vec![refused])];
        assert_eq!(nothing_lost(&app, &rows(&[3])), ["never sent, or refused: app 3"]);
        assert_eq!(nothing_lost(&app, &rows(&[9])), ["never sent, or refused: app 9"]);
        let of_another_run = Rows::from([("older".to_owned(), 1)]);
        assert_eq!(nothing_lost(&app, &of_another_run), Vec::<String>::new());
    }

    #[test]
    fn a_handover_is_no_violation() {
        let old = history("a", vec![accepted(1, "pg-1", 1, 0, 5), accepted(2, "pg-1", 1, 9, 40)]);
        // Sent before the new primary was known to have begun: its commit may have come first.
        let new = history("b", vec![accepted(1, "pg-2", 2, 8, 10), accepted(2, "pg-2", 2, 50, 55)]);
        assert_eq!(one_writer(&[old, new]), Vec::<String>::new());
    }

    #[test]
    fn an_old_primary_that_still_acknowledges_is_found() {
        let old = history("a", vec![accepted(1, "pg-1", 1, 0, 5), accepted(2, "pg-1", 1, 11, 12)]);
        let new = history("b", vec![accepted(1, "pg-2", 2, 8, 10)]);
        let found = one_writer(&[old, new]);
        assert!(found.len() == 1 && found[0].starts_with("two writers: a 2 was sent at 11"), "{found:?}");
    }

    #[test]
    fn two_writers_on_one_timeline_are_found() {
        let one = history("a", vec![accepted(1, "pg-1", 3, 0, 5)]);
        let two = history("b", vec![accepted(1, "pg-2", 3, 90, 95)]);
        assert_eq!(one_writer(&[one, two]), ["two writers on timeline 3: {\"pg-1\", \"pg-2\"}"]);
    }
}
