//! How long to wait after a failure.

use std::time::Duration;

/// So many failures in a row are no passing trouble.
const LONG: u32 = 8;

/// Doubles from failure to failure, up to a limit.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) const fn new((first, most): (Duration, Duration)) -> Self {
        Self {
            first,
            most,
            failures: 0,
        }
    }

    pub(super) const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How long to wait now.
    pub(super) fn failed(&mut self) -> Duration {
        let wait = self.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        wait.min(self.most)
    }

    /// Whether it fails so long that it is no passing trouble: a certificate that is being replaced, say.
    pub(super) const fn is_long(&self) -> bool {
        self.failures >= LONG
    }

    /// Whether it was the first failure after a success.
    pub(super) const fn is_first(&self) -> bool {
        self.failures == 1
    }
}
