//! Memory, shared so that sorts which spill come to their end.
//!
//! A sort holds batches until it may hold no more, and only then merges them: for the merge it needs the keys of all of them a
//! second time, which it did not count before. Out of a pool that it has filled it does not get that, and fails with its disk
//! empty. So what can spill is given half of the memory at most, and spills earlier.

use std::sync::{Mutex, MutexGuard, PoisonError};

use datafusion::common::{DataFusionError, Result as PlanResult};
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};

/// A pool with these rules:
///
/// - all together never hold more than there is;
/// - consumers that can spill share half of it evenly, less where what cannot spill has left less;
/// - its last eighth is for what cannot spill and holds less than a sixteenth: a merge of spilled files takes as much as it
///   gets, and those beside and above it need a little too.
#[derive(Debug)]
pub(crate) struct Shares {
    bytes: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    spillers: usize,
    spillable: usize,
    unspillable: usize,
}

impl Held {
    fn of(&mut self, consumer: &MemoryConsumer) -> &mut usize {
        if consumer.can_spill() {
            &mut self.spillable
        } else {
            &mut self.unspillable
        }
    }

    fn total(self) -> usize {
        self.spillable.saturating_add(self.unspillable)
    }

    /// How many bytes a reservation may hold that now holds `mine` of these, in a pool of so many.
    fn allowed(self, pool: usize, can_spill: bool, mine: usize) -> usize {
        let before_last = pool - pool / 8;
        let others = self.total().saturating_sub(mine);
        if can_spill {
            let left = before_last.saturating_sub(self.unspillable);
            let share = left.min(pool / 2) / self.spillers.max(1);
            return share.min(before_last.saturating_sub(others));
        }
        let small = pool.saturating_sub(others).min(pool / 16);
        small.max(before_last.saturating_sub(others))
    }
}

impl Shares {
    /// Of so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            held: Mutex::default(),
        }
    }

    /// Sums stay right whoever panics: nothing that may is done under the lock.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryPool for Shares {
    fn register(&self, consumer: &MemoryConsumer) {
        self.held().spillers += usize::from(consumer.can_spill());
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        let mut held = self.held();
        held.spillers = held
            .spillers
            .saturating_sub(usize::from(consumer.can_spill()));
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        let mut held = self.held();
        let sum = held.of(reservation.consumer());
        *sum = sum.saturating_add(additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let mut held = self.held();
        let sum = held.of(reservation.consumer());
        *sum = sum.saturating_sub(shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> PlanResult<()> {
        let consumer = reservation.consumer();
        let mine = reservation.size();
        let mut held = self.held();
        let allowed = held.allowed(self.bytes, consumer.can_spill(), mine);
        if mine.saturating_add(additional) > allowed {
            let taken = held.total();
            drop(held);
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} holds {mine} bytes, needs {additional} more, and may hold {allowed}: {taken} of {} are taken",
                consumer.name(),
                self.bytes
            )));
        }
        let sum = held.of(consumer);
        *sum = sum.saturating_add(additional);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.held().total()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn pool(bytes: usize) -> Arc<dyn MemoryPool> {
        Arc::new(Shares::new(bytes))
    }

    fn consumer(pool: &Arc<dyn MemoryPool>, can_spill: bool) -> MemoryReservation {
        MemoryConsumer::new("one")
            .with_can_spill(can_spill)
            .register(pool)
    }

    #[test]
    fn what_can_spill_shares_half() {
        let pool = pool(1_600);
        let first = consumer(&pool, true);
        assert!(first.try_grow(801).is_err());
        first.try_grow(800).unwrap();
        let second = consumer(&pool, true);
        assert!(first.try_grow(1).is_err());
        second.try_grow(400).unwrap();
        assert!(second.try_grow(1).is_err());
        drop(first);
        second.try_grow(400).unwrap();
        assert_eq!(pool.reserved(), 800);
    }

    #[test]
    fn what_cannot_spill_leaves_the_last_eighth_to_the_small() {
        let pool = pool(1_600);
        let large = consumer(&pool, false);
        assert!(large.try_grow(1_401).is_err());
        large.try_grow(1_400).unwrap();
        let spiller = consumer(&pool, true);
        assert!(spiller.try_grow(1).is_err());
        let small = consumer(&pool, false);
        small.try_grow(100).unwrap();
        assert!(small.try_grow(1).is_err());
        let other = consumer(&pool, false);
        other.try_grow(100).unwrap();
        assert!(consumer(&pool, false).try_grow(1).is_err());
        assert_eq!(pool.reserved(), 1_600);
    }

    #[test]
    fn a_merge_has_room_beside_a_sort_that_is_full() {
        let pool = pool(1_600);
        let sort = consumer(&pool, true);
        sort.try_grow(800).unwrap();
        let merge = consumer(&pool, false);
        merge.try_grow(600).unwrap();
        assert!(merge.try_grow(1).is_err());
        sort.shrink(800);
        merge.try_grow(800).unwrap();
        assert_eq!(merge.free(), 1_400);
        assert_eq!(pool.reserved(), 0);
    }
}
