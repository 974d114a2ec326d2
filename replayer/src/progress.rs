//! How far a replay is, for a progress bar.

use std::collections::VecDeque;
use std::time::Duration;

use everlog_common::{Millis, Source};

/// The rate is that of about this much time.
const RATE_SPAN: Duration = Duration::from_secs(5);
/// Samples of the rate.
const SAMPLES: usize = 50;

/// How far a replay is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Where events come from now.
    pub tier: Source,
    /// Events so far, in this process.
    pub events: u64,
    /// Events per second, lately.
    pub events_per_second: f64,
    /// Timestamp of the latest event.
    pub time: Option<Millis>,
    /// Events that are still due up to the end, about; none where there is no end, or nobody knows.
    pub events_left: Option<u64>,
    /// What is done, from 0 to 1; none where there is no end, or nobody knows.
    pub share: Option<f64>,
    /// Time that the rest takes at the present rate.
    pub left: Option<Duration>,
}

/// Counts events and their rate.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    events: u64,
    time: Option<Millis>,
    samples: VecDeque<(Duration, u64)>,
}

impl Meter {
    pub(crate) fn emitted(&mut self, events: u64, time: Option<Millis>, now: Duration) {
        self.events += events;
        self.time = time.or(self.time);
        let gap = RATE_SPAN / u32::try_from(SAMPLES).unwrap_or(1);
        if self.samples.back().is_none_or(|(at, _)| *at + gap <= now) {
            self.samples.push_back((now, self.events));
            while self.samples.len() > SAMPLES {
                self.samples.pop_front();
            }
        }
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "figures for people, and far below 2^52"
    )]
    pub(crate) fn progress(
        &self,
        tier: Source,
        events_left: Option<u64>,
        now: Duration,
    ) -> Progress {
        // what is older says nothing of now: a tail may have been silent since
        let mut recent = self.samples.iter().filter(|(at, _)| *at + RATE_SPAN >= now);
        let (since, before) = recent.next().copied().unwrap_or((now, self.events));
        let span = now.saturating_sub(since).as_secs_f64();
        let events_per_second = if span > 0.0 {
            (self.events - before) as f64 / span
        } else {
            0.0
        };
        let all = events_left.map(|left| self.events + left);
        Progress {
            tier,
            events: self.events,
            events_per_second,
            time: self.time,
            events_left,
            share: all.map(|all| self.events as f64 / all.max(1) as f64),
            left: events_left
                .filter(|_| events_per_second > 0.0)
                .and_then(|left| Duration::try_from_secs_f64(left as f64 / events_per_second).ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_share_and_time_left_follow_from_what_was_emitted() {
        let mut meter = Meter::default();
        for second in 0..=4 {
            meter.emitted(
                100,
                Some(Millis(second)),
                Duration::from_secs(second.unsigned_abs()),
            );
        }
        let progress = meter.progress(Source::Archive, Some(500), Duration::from_secs(4));
        assert_eq!(progress.events, 500);
        assert!((progress.events_per_second - 100.0).abs() < 0.001);
        assert_eq!(progress.share, Some(0.5));
        assert_eq!(progress.left, Some(Duration::from_secs(5)));
        assert_eq!(progress.time, Some(Millis(4)));
    }

    #[test]
    fn a_silent_tail_has_no_rate() {
        let mut meter = Meter::default();
        for second in 0..3 {
            meter.emitted(100, None, Duration::from_secs(second));
        }
        let rate = |at| {
            let progress = meter.progress(Source::Live, None, Duration::from_secs(at));
            progress.events_per_second
        };
        assert!(rate(2) > 99.0 && rate(4) > 1.0 && rate(4) < 99.0);
        assert!(rate(8).abs() < f64::EPSILON);
    }

    #[test]
    fn nothing_is_claimed_where_nothing_is_known() {
        let progress = Meter::default().progress(Source::Live, None, Duration::ZERO);
        assert_eq!((progress.share, progress.left), (None, None));
    }
}
