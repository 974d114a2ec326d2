//! Time and identifiers are injected, so that the same code runs under a simulated clock and one seed.

use std::fmt::Debug;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

/// Milliseconds since the Unix epoch, UTC.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Millis(pub i64);

impl Millis {
    /// This instant and `d` more (saturating).
    #[must_use]
    pub fn plus(self, d: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// Time from `earlier` to here; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Wall time, elapsed time and waiting. No decision about data rests on it: it paces work and stamps snapshots.
#[async_trait]
pub trait Clock: Send + Sync + Debug {
    /// Wall time now.
    fn now(&self) -> Millis;
    /// Time since some fixed instant; never goes back.
    fn elapsed(&self) -> Duration;
    /// Waits. Cancel-safe.
    async fn sleep(&self, duration: Duration);
}

/// A source of identifiers that nobody else draws (commit ids, file names, run ids) and of jitter.
pub trait Ids: Send + Sync + Debug {
    /// A fresh identifier.
    fn uuid(&self) -> Uuid;
    /// A number in `[0, bound)`; 0 when `bound` is 0.
    fn below(&self, bound: u64) -> u64;
    /// A positive number for a snapshot id.
    fn snapshot_id(&self) -> i64 {
        let (a, b) = self.uuid().as_u64_pair();
        i64::try_from((a ^ b) >> 1).unwrap_or(1).max(1)
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            start: std::time::Instant::now(),
        }
    }
}

#[async_trait]
impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's clock"
    )]
    fn now(&self) -> Millis {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// Identifiers from the operating system's random source.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl Ids for RandomIds {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that draws random identifiers"
    )]
    fn uuid(&self) -> Uuid {
        Uuid::new_v4()
    }

    fn below(&self, bound: u64) -> u64 {
        if bound == 0 {
            0
        } else {
            self.uuid().as_u64_pair().0 % bound
        }
    }
}

/// A clock that a test moves by hand; `sleep` advances it and returns.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: AtomicI64,
}

impl ManualClock {
    /// Starts at `now`.
    pub fn at(now: Millis) -> Self {
        Self {
            now: AtomicI64::new(now.0),
        }
    }

    /// Moves time on.
    pub fn advance(&self, d: Duration) {
        self.now.fetch_add(
            i64::try_from(d.as_millis()).unwrap_or(i64::MAX),
            Ordering::SeqCst,
        );
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Millis {
        Millis(self.now.load(Ordering::SeqCst))
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.now.load(Ordering::SeqCst)).unwrap_or(0))
    }

    async fn sleep(&self, duration: Duration) {
        self.advance(duration);
        tokio::task::yield_now().await;
    }
}

/// Identifiers from one seed: the same seed gives the same sequence.
#[derive(Debug)]
pub struct SeededIds {
    state: AtomicU64,
}

impl SeededIds {
    /// Starts the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            state: AtomicU64::new(seed),
        }
    }

    fn draw(&self) -> u64 {
        // splitmix64: every state gives another output, which is all that identifiers need
        let mut z = self
            .state
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst)
            .wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl Ids for SeededIds {
    fn uuid(&self) -> Uuid {
        let high = self.draw();
        let low = self.draw();
        uuid::Builder::from_random_bytes(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
            .into_uuid()
    }

    fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.draw() % bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let (a, b) = (SeededIds::new(7), SeededIds::new(7));
        let left: Vec<_> = (0..100).map(|_| (a.uuid(), a.snapshot_id())).collect();
        let right: Vec<_> = (0..100).map(|_| (b.uuid(), b.snapshot_id())).collect();
        assert_eq!(left, right);
        assert!(left.iter().all(|(_, s)| *s > 0));
        let distinct: std::collections::BTreeSet<_> = left.iter().map(|(u, _)| *u).collect();
        assert_eq!(distinct.len(), 100);
    }
}
