//! One policy for trying again: doubling, bounded, with jitter from the injected source.

use std::time::Duration;

use everlog_common::Ids;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// How often something failed in a row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Failures in a row so far.
    pub(crate) const fn failures(self) -> u32 {
        self.failures
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// One more failure; how long to wait: between half and all of 0.2 s, 0.4 s, … 30 s.
    pub(crate) fn next(&mut self, ids: &dyn Ids) -> Duration {
        let whole = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = u64::try_from(whole.as_millis() / 2).unwrap_or(0);
        Duration::from_millis(half + ids.below(half + 1))
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::clock::SeededIds;

    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_begin_anew() {
        let ids = SeededIds::new(1);
        let mut backoff = Backoff::default();
        for i in 0..40 {
            let whole = (FIRST * (1 << i.min(16))).min(LONGEST);
            let wait = backoff.next(&ids);
            assert!(wait >= whole / 2 && wait <= whole, "{i}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next(&ids) <= FIRST);
    }
}
