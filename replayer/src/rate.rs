//! `--rate`: events per second, as waits before batches.

use std::num::NonZeroU64;
use std::time::Duration;

/// A batch holds about this share of a second, at most, so that a low rate is even.
const SLICES_PER_SECOND: u64 = 20;

/// Says how long to wait before a batch. It works on elapsed time alone; what was not used is not saved up beyond one
/// batch, so a pause is not followed by a burst.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RateLimit {
    per_second: NonZeroU64,
    /// When the next event is due.
    due: Duration,
}

impl RateLimit {
    pub(crate) fn new(per_second: NonZeroU64, now: Duration) -> Self {
        Self {
            per_second,
            due: now,
        }
    }

    /// Rows that one batch may have.
    pub(crate) fn batch_rows(&self) -> usize {
        let rows = (self.per_second.get() / SLICES_PER_SECOND).max(1);
        usize::try_from(rows).unwrap_or(usize::MAX)
    }

    /// How long to wait from `now` before the next batch.
    pub(crate) fn wait(&self, now: Duration) -> Duration {
        self.due.saturating_sub(now)
    }

    /// A batch of `rows` went out at `now`.
    pub(crate) fn emitted(&mut self, rows: usize, now: Duration) {
        let nanos = rows as u128 * 1_000_000_000 / u128::from(self.per_second.get());
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.due = self.due.max(now) + takes;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However batches fall, no more than the rate plus one batch goes out in any time since the start.
        #[test]
        fn the_rate_is_never_exceeded(rate in 1_u64..1_000_000, pauses in prop::collection::vec(0_u64..2_000_000, 1..200)) {
            let mut limit = RateLimit::new(NonZeroU64::new(rate).unwrap(), Duration::ZERO);
            let (mut now, mut out) = (Duration::ZERO, 0_u64);
            for pause in pauses {
                now += Duration::from_micros(pause);
                now += limit.wait(now);
                let rows = limit.batch_rows();
                let allowed = now.as_secs_f64() * rate as f64 + 1.0;
                prop_assert!(out as f64 <= allowed * 1.0001, "{out} in {now:?} at {rate}/s");
                out += rows as u64;
                limit.emitted(rows, now);
            }
        }
    }

    #[test]
    fn a_fast_reader_gets_the_whole_rate() {
        let mut limit = RateLimit::new(NonZeroU64::new(1000).unwrap(), Duration::ZERO);
        let (mut now, mut out) = (Duration::ZERO, 0);
        while now < Duration::from_secs(10) {
            now += limit.wait(now);
            out += limit.batch_rows();
            limit.emitted(limit.batch_rows(), now);
        }
        assert!((9_950..=10_100).contains(&out), "{out}");
    }
}
