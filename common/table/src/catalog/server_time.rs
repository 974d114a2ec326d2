//! What time it is where the catalog runs, from what its answers say.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use chrono::DateTime;
use everlog_common::Millis;

/// The time of a server. Answers are late, and a cache in between may repeat an old one: of several, the one by which it
/// is latest now is closest to the truth.
#[derive(Debug, Default)]
pub(super) struct ServerTime {
    seen: Mutex<Option<(Instant, Millis)>>,
}

impl ServerTime {
    /// An answer that arrived at `at` said that it was `time`.
    pub(super) fn saw(&self, at: Instant, time: Millis) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_none_or(|before| passed(before, at) < time) {
            *seen = Some((at, time));
        }
    }

    /// The same, as HTTP's `Date` says it; anything else is passed over.
    pub(super) fn saw_date(&self, at: Instant, date: &str) {
        if let Ok(date) = DateTime::parse_from_rfc2822(date) {
            self.saw(at, Millis(date.timestamp_millis()));
        }
    }

    /// What time it is there now; none before any answer said so.
    pub(super) fn at(&self, now: Instant) -> Option<Millis> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.map(|before| passed(before, now))
    }
}

fn passed((at, time): (Instant, Millis), now: Instant) -> Millis {
    time.plus(now.saturating_duration_since(at))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn any_text_is_a_date_or_passed_over() {
        everlog_hostile::feed_text("date", &["Tue, 14 Nov 2023 22:13:20 GMT"], |text| {
            let time = ServerTime::default();
            time.saw_date(Instant::now(), text);
            let _ = time.at(Instant::now());
        });
    }

    #[test]
    fn time_goes_on_from_the_latest_answer_and_old_ones_change_nothing() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let time = ServerTime::default();
        assert_eq!(time.at(start), None);
        time.saw_date(start, "not a date");
        assert_eq!(time.at(start), None);
        time.saw_date(start, "Tue, 14 Nov 2023 22:13:20 GMT");
        assert_eq!(time.at(start), Some(Millis(1_700_000_000_000)));
        let later = start + s(100);
        assert_eq!(time.at(later), Some(Millis(1_700_000_100_000)));
        // from a cache
        time.saw(later, Millis(1_700_000_000_000));
        assert_eq!(time.at(later), Some(Millis(1_700_000_100_000)));
        // this machine slept, and its count of seconds with it
        time.saw(later, Millis(1_700_003_000_000));
        assert_eq!(time.at(later + s(1)), Some(Millis(1_700_003_001_000)));
    }
}
