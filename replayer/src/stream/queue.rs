//! What was read and not handed out, in order; what of it is held back waits aside, so that it blocks nobody else.
//!
//! ```text
//!   read ──► ready ──front──► handed out
//!              ▲ │ of a held partition
//!    released  │ ▼
//!             aside (per partition)
//! ```
//!
//! Invariants
//! - Q1 Of one partition, what waits aside comes before what is ready, and each in the order in which it was read.
//! - Q2 The front is never of a held partition.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use everlog_common::{EventBatch, Gap, Partition};

/// Something to hand out.
#[derive(Debug)]
pub(super) enum Queued {
    Batch(EventBatch),
    Gap(Gap),
}

impl Queued {
    fn partition(&self) -> Partition {
        match self {
            Self::Batch(batch) => batch.partition,
            Self::Gap(gap) => gap.partition,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.columns.bytes(),
            Self::Gap(_) => 0,
        }
    }
}

/// What waits aside of one partition.
#[derive(Debug, Default)]
struct Aside {
    items: VecDeque<Queued>,
    bytes: usize,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Queue {
    ready: VecDeque<Queued>,
    held: BTreeSet<Partition>,
    aside: BTreeMap<Partition, Aside>,
    aside_bytes: usize,
}

impl Queue {
    /// Behind everything else.
    pub(super) fn push(&mut self, item: Queued) {
        self.ready.push_back(item);
    }

    /// The rest of what was popped last.
    pub(super) fn push_front(&mut self, item: Queued) {
        self.ready.push_front(item);
    }

    /// What is to be handed out next.
    pub(super) fn front(&mut self) -> Option<&Queued> {
        if !self.held.is_empty() {
            self.set_aside();
        }
        self.ready.front()
    }

    /// Takes what [`Queue::front`] showed.
    pub(super) fn pop(&mut self) -> Option<Queued> {
        self.ready.pop_front()
    }

    fn set_aside(&mut self) {
        while let Some(item) = self.ready.pop_front() {
            let partition = item.partition();
            if !self.held.contains(&partition) {
                self.ready.push_front(item);
                return;
            }
            let bytes = item.bytes();
            let aside = self.aside.entry(partition).or_default();
            aside.items.push_back(item);
            aside.bytes += bytes;
            self.aside_bytes += bytes;
        }
    }

    /// Holds these back from now on, and no others; what waited of those that are released comes first.
    pub(super) fn hold(&mut self, held: &BTreeSet<Partition>) {
        self.held.clone_from(held);
        let released: Vec<Partition> = self
            .aside
            .keys()
            .filter(|p| !held.contains(p))
            .copied()
            .collect();
        for partition in released.into_iter().rev() {
            for item in self.forget_aside(partition).into_iter().rev() {
                self.ready.push_front(item);
            }
        }
    }

    /// The partitions that are held back.
    pub(super) fn held(&self) -> &BTreeSet<Partition> {
        &self.held
    }

    /// Whether something of `partition` waits.
    pub(super) fn has(&self, partition: Partition) -> bool {
        self.aside.contains_key(&partition)
            || self.ready.iter().any(|item| item.partition() == partition)
    }

    /// Whether something waits aside.
    pub(super) fn is_holding(&self) -> bool {
        !self.aside.is_empty()
    }

    /// Bytes of the rows that wait aside.
    pub(super) fn aside_bytes(&self) -> usize {
        self.aside_bytes
    }

    /// The partition of which most waits aside.
    pub(super) fn heaviest(&self) -> Option<Partition> {
        let heaviest = self.aside.iter().max_by_key(|(_, aside)| aside.bytes);
        heaviest.map(|(partition, _)| *partition)
    }

    fn forget_aside(&mut self, partition: Partition) -> VecDeque<Queued> {
        let aside = self.aside.remove(&partition).unwrap_or_default();
        self.aside_bytes -= aside.bytes;
        aside.items
    }

    /// Drops all that waits of `partition`.
    pub(super) fn forget(&mut self, partition: Partition) {
        self.forget_aside(partition);
        self.ready.retain(|item| item.partition() != partition);
    }

    /// Drops all that waits aside; gives whose it was.
    pub(super) fn forget_held(&mut self) -> Vec<Partition> {
        self.aside_bytes = 0;
        std::mem::take(&mut self.aside).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::{
        EventColumnsBuilder, Generation, Offset, OffsetRange, Source, TimestampType, TopicName,
    };
    use proptest::prelude::*;

    use super::*;

    fn partition(p: i32) -> Partition {
        Partition::new(p).unwrap()
    }

    fn batch(p: i32, n: i64) -> Queued {
        let offset = Offset::new(n).unwrap();
        let mut columns = EventColumnsBuilder::new();
        let stamp = (0, TimestampType::Create);
        columns.push(offset, stamp, None, Some(b"v"), std::iter::empty(), None);
        Queued::Batch(EventBatch {
            topic: TopicName::new("t").unwrap(),
            generation: Generation::FIRST,
            partition: partition(p),
            range: OffsetRange::new(offset, offset.next()).unwrap(),
            columns: columns.finish(),
            source: Source::Live,
        })
    }

    fn name(item: &Queued) -> (i32, i64) {
        match item {
            Queued::Batch(batch) => (batch.partition.get(), batch.range.start().get()),
            Queued::Gap(_) => panic!("none was put in"),
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Push(i32),
        Pop,
        Hold(BTreeSet<i32>),
        Forget(i32),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            6 => (0..4).prop_map(Act::Push),
            5 => Just(Act::Pop),
            3 => prop::collection::btree_set(0..4, 0..4).prop_map(Act::Hold),
            1 => (0..4).prop_map(Act::Forget),
        ];
        prop::collection::vec(act, 1..150)
    }

    proptest! {
        /// Against one plain queue per partition: nothing held comes, nobody is blocked by it, every partition keeps its
        /// order, and bytes are counted right.
        #[test]
        fn held_partitions_wait_and_block_nobody(acts in acts()) {
            let mut queue = Queue::default();
            let mut model: BTreeMap<i32, VecDeque<i64>> = BTreeMap::new();
            let (mut held, mut n) = (BTreeSet::new(), 0);
            for act in acts {
                match act {
                    Act::Push(p) => {
                        queue.push(batch(p, n));
                        model.entry(p).or_default().push_back(n);
                        n += 1;
                    }
                    Act::Pop => {
                        let free = model.iter().any(|(p, log)| !held.contains(p) && !log.is_empty());
                        prop_assert_eq!(queue.front().is_some(), free);
                        if !free {
                            continue;
                        }
                        let (p, n) = name(&queue.pop().unwrap());
                        prop_assert!(!held.contains(&p));
                        prop_assert_eq!(model.get_mut(&p).unwrap().pop_front(), Some(n));
                    }
                    Act::Hold(partitions) => {
                        let all: BTreeSet<Partition> = partitions.iter().map(|p| partition(*p)).collect();
                        queue.hold(&all);
                        held = partitions;
                    }
                    Act::Forget(p) => {
                        queue.forget(partition(p));
                        model.remove(&p);
                    }
                }
                for p in 0..4 {
                    let waits = model.get(&p).is_some_and(|log| !log.is_empty());
                    prop_assert_eq!(queue.has(partition(p)), waits);
                }
                let bytes: usize = queue.aside.values().flat_map(|a| &a.items).map(Queued::bytes).sum();
                prop_assert_eq!(queue.aside_bytes(), bytes);
                prop_assert!(queue.aside.keys().all(|p| queue.held().contains(p)));
            }
        }
    }

    #[test]
    fn what_waited_comes_before_what_came_later() {
        let mut queue = Queue::default();
        for (p, n) in [(0, 0), (1, 0), (0, 1)] {
            queue.push(batch(p, n));
        }
        queue.hold(&[partition(0)].into());
        queue.front();
        assert_eq!(queue.pop().as_ref().map(name), Some((1, 0)));
        assert!(queue.front().is_none());
        assert!(queue.is_holding() && queue.heaviest() == Some(partition(0)));
        queue.push(batch(0, 2));
        queue.push(batch(1, 1));
        queue.hold(&BTreeSet::new());
        let mut left = Vec::new();
        while queue.front().is_some() {
            left.extend(queue.pop().as_ref().map(name));
        }
        assert_eq!(left, [(0, 0), (0, 1), (0, 2), (1, 1)]);
        queue.push(batch(0, 3));
        queue.hold(&[partition(0)].into());
        assert!(queue.front().is_none());
        assert_eq!(queue.forget_held(), [partition(0)]);
        assert!(!queue.is_holding() && queue.aside_bytes() == 0);
    }
}
