//! What happened when, for the story at the end.

use std::fmt::Write as _;
use std::time::Instant;

/// Events of one run, in seconds since its first node was started; what came before has negative times.
#[derive(Debug)]
pub(super) struct Timeline {
    origin: Instant,
    events: Vec<(f64, String)>,
}

impl Timeline {
    /// A timeline whose zero is now.
    pub(super) fn starting_now() -> Self {
        Self { origin: Instant::now(), events: Vec::new() }
    }

    /// The moment that counts as zero.
    pub(super) fn origin(&self) -> Instant {
        self.origin
    }

    /// Something that happened at `at`; returns the time on the line.
    pub(super) fn add(&mut self, at: Instant, text: impl Into<String>) -> f64 {
        let seconds = match at.checked_duration_since(self.origin) {
            Some(since) => since.as_secs_f64(),
            None => -self.origin.duration_since(at).as_secs_f64(),
        };
        self.events.push((seconds, text.into()));
        seconds
    }

    /// Something that happens now.
    pub(super) fn now(&mut self, text: impl Into<String>) -> f64 {
        self.add(Instant::now(), text)
    }

    /// The story in the order of time.
    pub(super) fn render(&self) -> String {
        let mut events: Vec<_> = self.events.iter().collect();
        events.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let mut text = String::new();
        for (seconds, event) in events {
            let _ = writeln!(text, "{seconds:>8.2}s  {event}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn told_in_order_of_time() {
        let mut line = Timeline::starting_now();
        let zero = line.origin;
        line.add(zero + Duration::from_millis(12_340), "second");
        line.add(zero + Duration::from_millis(1_500), "first");
        assert_eq!(line.render(), "    1.50s  first\n   12.34s  second\n");
    }
}
