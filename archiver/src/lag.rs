//! How long something has been waiting to be archived, from looks at the log's end: no clock, no record timestamps, since
//! producers write what they like there. Only of what was in the log before anybody looked the records alone can tell, and
//! Kafka's retention goes by their timestamps too.

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
    /// What was there before the first look ends here; none: it is not known yet what there is.
    backlog: Option<Offset>,
    /// When records of the backlog were written: the first of each batch, and where the batch ends. Ascending by offset.
    written: VecDeque<(Millis, Offset)>,
    /// Something is known of the age of the whole backlog: the table told when everything was archived last.
    is_bounded: bool,
}

impl EndHistory {
    /// The log ended at `end` at `at`.
    pub(crate) fn look(&mut self, at: Millis, end: Offset) {
        if self.looks.back().is_some_and(|(_, last)| *last >= end) {
            return;
        }
        push(&mut self.looks, (at, end));
    }

    /// Reading begins in a log that ends at `end`. `archived_at`: when everything that was there is known to have been
    /// archived; none: never.
    pub(crate) fn begin(&mut self, archived_at: Option<Millis>, end: Offset) {
        self.backlog = Some(end);
        self.written.clear();
        let Some(at) = archived_at else {
            return;
        };
        self.is_bounded = true;
        match self.looks.front_mut() {
            Some((first, _)) => *first = at.min(*first),
            None => self.looks.push_back((at, end)),
        }
    }

    /// The first record at or after `start`, in a batch that ends at `end`, was written at `at`. Of use in the backlog only.
    pub(crate) fn read(&mut self, at: Millis, start: Offset, end: Offset) {
        if let Some(backlog) = self.backlog.filter(|backlog| start < *backlog) {
            push(&mut self.written, (at, end.min(backlog)));
        }
    }

    /// How long what lies at `next` has been there; zero when the log is not known to reach beyond it. None: nobody can
    /// say, since it was there before and was not read yet.
    pub(crate) fn age(&mut self, now: Millis, next: Offset) -> Option<Duration> {
        for ends in [&mut self.looks, &mut self.written] {
            while ends.front().is_some_and(|(_, end)| *end <= next) {
                ends.pop_front();
            }
        }
        let Some((seen, _)) = self.looks.front() else {
            return Some(Duration::ZERO);
        };
        let seen = now.since(*seen);
        match self.written.front() {
            Some((at, _)) => Some(now.since(*at).max(seen)),
            None if self.is_bounded || self.backlog.is_some_and(|end| next >= end) => Some(seen),
            None => None,
        }
    }
}

fn push(ends: &mut VecDeque<(Millis, Offset)>, at: (Millis, Offset)) {
    ends.push_back(at);
    if ends.len() > LOOKS_MAX {
        let mut keep = false;
        ends.retain(|_| {
            keep = !keep;
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(v: i64) -> Millis {
        Millis(v * 1000)
    }

    fn d(v: u64) -> Option<Duration> {
        Some(Duration::from_secs(v))
    }

    fn o(v: i64) -> Offset {
        Offset::new(v).unwrap()
    }

    #[test]
    fn the_age_is_that_of_the_first_look_beyond_the_position() {
        let mut history = EndHistory::default();
        assert_eq!(history.age(s(5), o(0)), d(0));
        history.begin(Some(s(10)), o(100));
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
        history.begin(None, o(0));
        for i in 1..10_000 {
            history.look(s(i), o(i));
        }
        assert!(history.looks.len() <= LOOKS_MAX);
        assert_eq!(history.age(s(10_000), o(0)), d(9_999));
    }

    #[test]
    fn what_was_there_before_is_as_old_as_its_records_and_unknown_until_they_are_read() {
        let mut history = EndHistory::default();
        history.look(s(1000), o(100));
        assert_eq!(history.age(s(1010), o(0)), None, "not recovered");
        history.begin(None, o(100));
        history.look(s(1000), o(120));
        assert_eq!(history.age(s(1010), o(0)), None, "not read");
        history.read(s(340), o(0), o(40));
        history.read(s(700), o(40), o(110));
        // not of the backlog: when it came was seen
        history.read(s(3), o(110), o(120));
        assert_eq!(history.age(s(1010), o(0)), d(670));
        assert_eq!(history.age(s(1010), o(40)), d(310));
        assert_eq!(history.age(s(1010), o(100)), d(10));
        assert_eq!(history.age(s(1010), o(120)), d(0));
        // another partition's commit made the snapshot: the records of this one are older
        history.begin(Some(s(2000)), o(200));
        history.read(s(500), o(120), o(150));
        assert_eq!(history.age(s(2010), o(120)), d(1510));
    }
}
