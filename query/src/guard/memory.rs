//! Memory with some left for the small.
//!
//! A sort that merges what it spilled takes as much memory for its inputs as it gets, and then needs a little for the merge
//! itself: out of a pool that it emptied it would not get that. So large consumers cannot have the last part of the pool.

use datafusion::common::{DataFusionError, Result as PlanResult};
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};

/// A pool whose last eighth is for consumers of less than a sixteenth of it.
#[derive(Debug)]
pub(crate) struct Headroom<P> {
    inner: P,
    bytes: usize,
}

impl<P: MemoryPool> Headroom<P> {
    /// Over a pool of so many bytes.
    pub(crate) fn new(inner: P, bytes: usize) -> Self {
        Self { inner, bytes }
    }
}

impl<P: MemoryPool> MemoryPool for Headroom<P> {
    fn register(&self, consumer: &MemoryConsumer) {
        self.inner.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.inner.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.inner.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.inner.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> PlanResult<()> {
        let after = self.inner.reserved().saturating_add(additional);
        let mine = reservation.size().saturating_add(additional);
        if after > self.bytes - self.bytes / 8 && mine > self.bytes / 16 {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} needs {additional} bytes more than its {}, and {} of {} are taken",
                reservation.consumer().name(),
                reservation.size(),
                self.inner.reserved(),
                self.bytes
            )));
        }
        self.inner.try_grow(reservation, additional)
    }

    fn reserved(&self) -> usize {
        self.inner.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.inner.memory_limit()
    }
}
