//! Where and when backups are made.

use serde::{Deserialize, Serialize};

/// Full backups without another word: once a week, when few are awake.
const FULL: &str = "Sun 02:00";
/// Full backups kept without another word.
const RETENTION_FULL: u32 = 2;

/// Backups of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Where they are kept.
    pub repository: Repository,
    /// When full backups are made (systemd calendar expression).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// How many full backups are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_full: Option<u32>,
}

/// A place for backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// `host`: a repository host over TLS.
    #[serde(rename = "type")]
    pub kind: String,
    /// Slot or address of the repository host, a node of role `backup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

impl Backup {
    /// Backups on the node in slot (or at address) `host`.
    pub fn on_host(host: impl Into<String>) -> Self {
        let repository = Repository { kind: "host".to_owned(), host: Some(host.into()) };
        Self { repository, full: None, retention_full: None }
    }

    /// When full backups are made.
    pub fn full(&self) -> &str {
        self.full.as_deref().unwrap_or(FULL)
    }

    /// When differential backups are made: daily at the time of the full one (in its time zone), except on its weekday. Where
    /// that is not one day of every week both fall on one day now and then, and the full one goes first.
    pub fn diff(&self) -> String {
        let mut parts = self.full().split_whitespace().peekable();
        let day = parts.next_if(|part| is_weekdays(part)).and_then(|day| DAYS.iter().find(|known| *known == &day));
        let every_week = parts.peek().is_some_and(|part| is_time(part));
        let days = match day.filter(|_| every_week) {
            Some(day) => DAYS.into_iter().filter(|other| other != day).collect::<Vec<_>>().join(","),
            None => "*-*-*".to_owned(),
        };
        let time = parts.find(|part| is_time(part)).unwrap_or("00:00");
        let zone = parts.next().map(|zone| format!(" {zone}")).unwrap_or_default();
        format!("{days} {time}{zone}")
    }

    /// How many full backups are kept.
    pub fn retention_full(&self) -> u32 {
        self.retention_full.unwrap_or(RETENTION_FULL)
    }
}

/// Whether `text` is a calendar expression as systemd.time(7) has them, as far as backups need them: a word
/// (`daily`, `weekly`, `monthly`), or weekdays, a date, a time, a time zone, each optional, with at least one of them.
pub fn is_calendar(text: &str) -> bool {
    if ["daily", "weekly", "monthly"].contains(&text) {
        return true;
    }
    let mut parts = text.split_whitespace().peekable();
    let mut seen = 0;
    for kind in [is_weekdays, is_date, is_time] {
        if parts.next_if(|part| kind(part)).is_some() {
            seen += 1;
        }
    }
    let zone = |part: &&str| {
        *part == "UTC" || (part.contains('/') && part.chars().all(|c| c.is_alphanumeric() || "/_-+".contains(c)))
    };
    parts.next_if(zone);
    seen > 0 && parts.next().is_none()
}

/// As systemd writes them.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

fn is_weekdays(part: &str) -> bool {
    let day = |name: &str| {
        let short = name.get(..3).unwrap_or_default().to_ascii_lowercase();
        let full = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
        full.iter().any(|day| day[..3] == short && (name.len() == 3 || name.eq_ignore_ascii_case(day)))
    };
    part.split(',').all(|range| range.split("..").all(day))
}

fn is_date(part: &str) -> bool {
    let fields: Vec<_> = part.split('-').collect();
    matches!(fields.len(), 2 | 3) && fields.iter().all(|field| is_field(field, 0, 9999))
}

fn is_time(part: &str) -> bool {
    let fields: Vec<_> = part.split(':').collect();
    let highest = [23, 59, 59];
    matches!(fields.len(), 2 | 3) && fields.iter().zip(highest).all(|(field, highest)| is_field(field, 0, highest))
}

/// `*`, numbers, ranges and repetitions: `1,15`, `9..17`, `0/6`.
fn is_field(field: &str, lowest: u32, highest: u32) -> bool {
    let number = |text: &str| text.parse::<u32>().is_ok_and(|n| (lowest..=highest).contains(&n));
    let ranged = |text: &str| text == "*" || text.split("..").count() <= 2 && text.split("..").all(number);
    let repeated = |text: &str| match text.split_once('/') {
        Some((from, every)) => ranged(from) && number(every),
        None => ranged(text),
    };
    field.split(',').all(repeated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_expressions() {
        for good in [
            "Sun 02:00",
            "weekly",
            "*-*-01 03:30",
            "Mon..Fri 22:00:00",
            "Sat,sunday 1:00",
            "Sun 02:00 UTC",
            "04:00",
            "Sun 02:00 Europe/Berlin",
            "*-*-* 0/6:00",
        ] {
            assert!(is_calendar(good), "{good}");
        }
        for bad in ["", "Sunday at 2", "25:00", "Son 02:00", "02:00 Sun", "never", "02:00; rm"] {
            assert!(!is_calendar(bad), "{bad}");
        }
    }

    #[test]
    fn differential_backups_are_made_at_the_same_time_on_the_other_days() {
        let mut backup = Backup::on_host("bkp-1");
        assert_eq!((backup.full(), backup.retention_full()), ("Sun 02:00", 2));
        let mut diff = |full: &str| {
            backup.full = Some(full.to_owned());
            let diff = backup.diff();
            assert!(is_calendar(full) && is_calendar(&diff), "{full}: {diff}");
            diff
        };
        assert_eq!(diff("Sun 02:00"), "Mon,Tue,Wed,Thu,Fri,Sat 02:00");
        assert_eq!(diff("Wed 23:30 Europe/Berlin"), "Mon,Tue,Thu,Fri,Sat,Sun 23:30 Europe/Berlin");
        assert_eq!(diff("Sun *-*-1..7 02:00"), "*-*-* 02:00");
        assert_eq!(diff("Sat,Sun 02:00"), "*-*-* 02:00");
        assert_eq!(diff("monthly"), "*-*-* 00:00");
    }
}
