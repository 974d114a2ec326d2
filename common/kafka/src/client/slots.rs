//! Per assigned partition: the next offset, and the rows that wait to be handed over. Pure but for the row copies.
//!
//! Invariants
//! - S1 `from ≤ next`; the ranges that [`Slot::take`] gives follow each other without a hole, from the assigned offset.
//! - S2 Rows are strictly increasing; a row below `next` is dropped (the client repeats single messages after a pause).
//! - S3 A dead slot takes nothing any more.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use everlog_common::record::HeaderRef;
use everlog_common::{EventColumnsBuilder, Offset, OffsetRange, TimestampType, TopicPartition};

use crate::Fetched;

/// One record, borrowed from the client.
pub(super) struct Incoming<'a, H> {
    pub(super) offset: i64,
    pub(super) timestamp: (i64, TimestampType),
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: H,
    pub(super) leader_epoch: Option<i32>,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Kept { bytes: usize },
    Repeated,
    Unwanted,
}

#[derive(Debug)]
pub(super) struct Slot {
    source: TopicPartition,
    /// Where the next range begins.
    from: i64,
    next: i64,
    rows: EventColumnsBuilder,
    waiting_since: Option<Instant>,
    dead: bool,
}

impl Slot {
    pub(super) fn new(source: TopicPartition, start: Offset) -> Self {
        Self {
            source,
            from: start.get(),
            next: start.get(),
            rows: EventColumnsBuilder::new(),
            waiting_since: None,
            dead: false,
        }
    }

    pub(super) fn source(&self) -> &TopicPartition {
        &self.source
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Nothing more is taken; what was taken before is still handed over.
    pub(super) fn die(&mut self) {
        self.dead = true;
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// Whether a record at `offset` would be kept.
    pub(super) fn takes(&self, offset: i64) -> bool {
        !self.dead && offset >= self.next
    }

    /// Whether a row of `bytes` would no longer fit into this batch.
    pub(super) fn would_overflow(&self, bytes: usize) -> bool {
        !self.rows.is_empty()
            && self.rows.bytes().saturating_add(bytes) > EventColumnsBuilder::BATCH_BYTES_MAX
    }

    pub(super) fn take_in<'a, H: Iterator<Item = HeaderRef<'a>>>(
        &mut self,
        record: Incoming<'a, H>,
        now: Instant,
    ) -> Taken {
        if self.dead {
            return Taken::Unwanted;
        }
        let Ok(offset) = Offset::new(record.offset) else {
            return Taken::Unwanted;
        };
        if !self.takes(record.offset) {
            return Taken::Repeated;
        }
        let before = self.rows.bytes();
        self.rows.push(
            offset,
            record.timestamp,
            record.key,
            record.value,
            record.headers,
            record.leader_epoch,
        );
        self.next = offset.next().get();
        self.waiting_since.get_or_insert(now);
        Taken::Kept {
            bytes: self.rows.bytes() - before,
        }
    }

    /// The client's position reached the end at `offset`: what lies before it without a row is none of the protocol's.
    pub(super) fn reached_end(&mut self, offset: i64) {
        if !self.dead {
            self.next = self.next.max(offset);
        }
    }

    /// Whether rows have waited for `linger`.
    pub(super) fn is_due(&self, now: Instant, linger: Duration) -> bool {
        self.waiting_since
            .is_some_and(|since| now.duration_since(since) >= linger)
    }

    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    /// Everything since the last time, if the position moved.
    pub(super) fn take(&mut self, at_end: bool) -> Option<Fetched> {
        let range =
            OffsetRange::new(Offset::new(self.from).ok()?, Offset::new(self.next).ok()?).ok()?;
        self.from = self.next;
        self.waiting_since = None;
        Some(Fetched {
            source: self.source.clone(),
            range,
            columns: self.rows.finish(),
            at_end,
        })
    }
}

/// All assigned partitions.
#[derive(Debug, Default)]
pub(super) struct Slots {
    all: Vec<Slot>,
    by_name: BTreeMap<TopicPartition, usize>,
    /// By the client's topic handle: good as long as the topic stays assigned, so forgotten at each change.
    by_handle: HashMap<(usize, i32), Option<usize>>,
    /// The last one found: messages of a partition come in runs.
    last: Option<((usize, i32), usize)>,
}

impl Slots {
    pub(super) fn insert(&mut self, slot: Slot) {
        self.remove(slot.source());
        self.by_handle.clear();
        self.last = None;
        self.by_name.insert(slot.source.clone(), self.all.len());
        self.all.push(slot);
    }

    pub(super) fn remove(&mut self, tp: &TopicPartition) -> Option<Slot> {
        let index = self.by_name.remove(tp)?;
        self.by_handle.clear();
        self.last = None;
        let slot = self.all.swap_remove(index);
        if let Some(moved) = self.all.get(index) {
            self.by_name.insert(moved.source.clone(), index);
        }
        Some(slot)
    }

    pub(super) fn get_mut(&mut self, tp: &TopicPartition) -> Option<&mut Slot> {
        let index = *self.by_name.get(tp)?;
        self.all.get_mut(index)
    }

    /// By the client's handle of a topic; `name` is asked at most once per handle.
    pub(super) fn find(
        &mut self,
        handle: usize,
        partition: i32,
        name: impl FnOnce() -> Option<TopicPartition>,
    ) -> Option<&mut Slot> {
        let key = (handle, partition);
        if let Some((last, index)) = self.last
            && last == key
        {
            return self.all.get_mut(index);
        }
        let by_name = &self.by_name;
        let index = (*self
            .by_handle
            .entry(key)
            .or_insert_with(|| name().and_then(|tp| by_name.get(&tp).copied())))?;
        self.last = Some((key, index));
        self.all.get_mut(index)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.all.iter_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.all.iter()
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::{Partition, TopicName};
    use proptest::prelude::*;

    use super::*;

    fn tp(n: i32) -> TopicPartition {
        TopicPartition::new(TopicName::new("t").unwrap(), Partition::new(n).unwrap())
    }

    fn push(slot: &mut Slot, offset: i64) -> Taken {
        slot.take_in(
            Incoming {
                offset,
                timestamp: (0, TimestampType::Create),
                key: None,
                value: Some(b"v"),
                headers: std::iter::empty(),
                leader_epoch: None,
            },
            Instant::now(),
        )
    }

    proptest! {
        /// Whatever the client delivers (repeats, holes, ends), ranges are contiguous and rows increase, each once.
        #[test]
        fn ranges_are_contiguous_and_rows_increase(
            start in 0_i64..50,
            steps in prop::collection::vec((0_u8..4, 0_i64..200), 0..200),
        ) {
            let mut slot = Slot::new(tp(0), Offset::new(start).unwrap());
            let (mut position, mut last) = (start, None);
            let mut check = |fetched: Option<Fetched>| {
                if let Some(f) = fetched {
                    assert_eq!(f.range.start().get(), position);
                    position = f.range.end().get();
                    for offset in f.columns.offsets.values() {
                        assert!(f.range.contains(Offset::new(*offset).unwrap()));
                        assert!(last.is_none_or(|l| *offset > l) && *offset >= start);
                        last = Some(*offset);
                    }
                }
            };
            for (step, offset) in steps {
                match step {
                    0 | 1 => { push(&mut slot, offset); }
                    2 => slot.reached_end(offset),
                    _ => check(slot.take(false)),
                }
            }
            check(slot.take(false));
            prop_assert!(slot.take(true).is_none());
        }
    }

    #[test]
    fn repeats_are_dropped_and_a_dead_slot_takes_nothing() {
        let mut slot = Slot::new(tp(0), Offset::new(5).unwrap());
        assert_eq!(push(&mut slot, 4), Taken::Repeated);
        assert!(matches!(push(&mut slot, 5), Taken::Kept { .. }));
        assert_eq!(push(&mut slot, 5), Taken::Repeated);
        slot.die();
        assert_eq!(push(&mut slot, 6), Taken::Unwanted);
        slot.reached_end(9);
        let before = slot.take(false).unwrap();
        assert_eq!((before.range.end().get(), before.columns.len()), (6, 1));
    }

    #[test]
    fn slots_are_found_by_handle_until_the_assignment_changes() {
        let mut slots = Slots::default();
        for n in 0..3 {
            slots.insert(Slot::new(tp(n), Offset::ZERO));
        }
        let found = slots.find(77, 2, || Some(tp(2))).unwrap();
        assert_eq!(found.source(), &tp(2));
        assert!(slots.find(77, 2, || panic!("known by now")).is_some());
        slots.remove(&tp(0));
        let found = slots.find(77, 2, || Some(tp(2))).unwrap();
        assert_eq!(found.source(), &tp(2));
        assert!(slots.find(78, 0, || Some(tp(0))).is_none());
    }
}
