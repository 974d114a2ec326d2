//! How long something has been waiting to be archived, from looks at the log's end. No clock, no record timestamps:
//! producers write what they like there.

use std::collections::VecDeque;
use std::time::Duration;

use everlog_common::{Millis, Offset};

/// Looks that are kept; when there are more, every second one goes.
const LOOKS_MAX: usize = 64;

/// What a partition's end was, when.
#[derive(Debug, Clone, Default)]
pub(crate) struct EndHistory {
    /// Ascending in both; the first is the earliest look at which something not archived was there.
    looks: VecDeque<(Millis, Offset)>,
}

impl EndHistory {
    /// The log ended at `end` at `at`.
    pub(crate) fn look(&mut self, at: Millis, end: Offset) {
        if self.looks.back().is_some_and(|(_, last)| *last >= end) {
            return;
        }
        self.looks.push_back((at, end));
        if self.looks.len() > LOOKS_MAX {
            let mut keep = false;
            self.looks.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// How long what lies at `next` has been there; zero when the log is not known to reach beyond it.
    pub(crate) fn age(&mut self, now: Millis, next: Offset) -> Duration {
        while self.looks.front().is_some_and(|(_, end)| *end <= next) {
            self.looks.pop_front();
        }
        self.looks
            .front()
            .map_or(Duration::ZERO, |(at, _)| now.since(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(v: i64) -> Millis {
        Millis(v * 1000)
    }

    fn d(v: u64) -> Duration {
        Duration::from_secs(v)
    }

    fn o(v: i64) -> Offset {
        Offset::new(v).unwrap()
    }

    #[test]
    fn the_age_is_that_of_the_first_look_beyond_the_position() {
        let mut history = EndHistory::default();
        assert_eq!(history.age(s(5), o(0)), d(0));
        history.look(s(10), o(100));
        history.look(s(20), o(100));
        history.look(s(30), o(200));
        assert_eq!(history.age(s(40), o(50)), d(30));
        assert_eq!(history.age(s(40), o(100)), d(10));
        assert_eq!(history.age(s(40), o(200)), d(0));
    }

    #[test]
    fn a_long_backlog_keeps_its_first_look_and_a_bound() {
        let mut history = EndHistory::default();
        for i in 1..10_000 {
            history.look(s(i), o(i));
        }
        assert!(history.looks.len() <= LOOKS_MAX);
        assert_eq!(history.age(s(10_000), o(0)), d(9_999));
    }
}
