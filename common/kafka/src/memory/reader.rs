//! The reader over a [`super::MemoryLog`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{Offset, OffsetRange, TopicName, TopicPartition};

use super::group::Question;
use super::partition::Read;
use super::{Cluster, Request, Shared};
use crate::{Fetched, LogError, LogReader, PartitionFault, ReaderEvent, ReaderOptions, StartAt};

#[derive(Debug, Clone, Copy)]
struct Assigned {
    next: Offset,
    epoch: Option<i32>,
    paused: bool,
    dead: bool,
}

#[derive(Debug)]
pub(super) struct MemoryReader {
    shared: Arc<Shared>,
    id: u64,
    group: Option<String>,
    options: ReaderOptions,
    assigned: BTreeMap<TopicPartition, Assigned>,
    /// Who reads first at the next poll, so that a full budget starves nobody.
    turn: VecDeque<TopicPartition>,
}

impl MemoryReader {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: u64,
        group: Option<String>,
        options: ReaderOptions,
    ) -> Self {
        Self {
            shared,
            id,
            group,
            options,
            assigned: BTreeMap::new(),
            turn: VecDeque::new(),
        }
    }

    /// Everything that is there now.
    fn take(&mut self) -> Result<Vec<ReaderEvent>, LogError> {
        let shared = Arc::clone(&self.shared);
        let mut cluster = shared.lock();
        cluster.allow(Request::Poll)?;
        if let Some(question) = self.question(&mut cluster) {
            return Ok(vec![match question {
                Question::Assigned(partitions) => ReaderEvent::Assigned(partitions),
                Question::Revoked { partitions, lost } => ReaderEvent::Revoked { partitions, lost },
            }]);
        }
        let waiting = self.group.as_ref().is_some_and(|name| {
            cluster
                .groups
                .get(name)
                .is_some_and(|g| g.is_waiting(self.id))
        });
        if waiting {
            return Ok(Vec::new());
        }
        let mut events = Vec::new();
        let mut budget = self.options.memory_bytes.max(1);
        for _ in 0..self.turn.len() {
            let Some(tp) = self.turn.pop_front() else {
                break;
            };
            if budget == 0 {
                self.turn.push_front(tp);
                break;
            }
            if let Some(event) = self.read(&mut cluster, &tp, &mut budget) {
                events.push(event);
            }
            self.turn.push_back(tp);
        }
        Ok(events)
    }

    fn question(&self, cluster: &mut Cluster) -> Option<Question> {
        let name = self.group.as_ref()?;
        let partitions = cluster.all_partitions();
        cluster.groups.get_mut(name)?.ask(self.id, &partitions)
    }

    fn read(
        &mut self,
        cluster: &mut Cluster,
        tp: &TopicPartition,
        budget: &mut usize,
    ) -> Option<ReaderEvent> {
        let state = self.assigned.get_mut(tp)?;
        if state.paused || state.dead {
            return None;
        }
        let fault = |state: &mut Assigned, fault| {
            state.dead = true;
            Some(ReaderEvent::Fault {
                partition: tp.clone(),
                fault,
            })
        };
        if let Some(injected) = cluster.faults.remove(tp) {
            return fault(state, injected);
        }
        if cluster.denied.contains(&tp.topic) {
            let why = format!("topic {} is closed", tp.topic);
            return fault(state, PartitionFault::Denied(why));
        }
        let rows_max = cluster.rows_max;
        // a topic that is gone is silence, as with librdkafka, and so is a partition without a leader
        let log = cluster.led(tp)?;
        match log.read(
            (state.next.get(), state.epoch),
            self.options.isolation,
            rows_max,
            *budget,
        ) {
            Read::Nothing => None,
            Read::OutOfRange(detail) => {
                let offset = Some(state.next);
                fault(state, PartitionFault::OutOfRange { offset, detail })
            }
            Read::Truncated(detail) => fault(state, PartitionFault::Truncated(detail)),
            Read::Rows(columns, after, at_end) => {
                let range = OffsetRange::new(state.next, after).ok()?;
                state.next = after;
                if let Some(row) = columns.len().checked_sub(1) {
                    state.epoch = columns.row(row).leader_epoch;
                }
                *budget = budget.saturating_sub(columns.bytes());
                Some(ReaderEvent::Fetched(Fetched {
                    source: tp.clone(),
                    range,
                    columns: *columns,
                    at_end,
                }))
            }
        }
    }

    fn set_paused(&mut self, partitions: &[TopicPartition], paused: bool) {
        for tp in partitions {
            if let Some(state) = self.assigned.get_mut(tp) {
                state.paused = paused;
            }
        }
    }

    fn forget(&mut self, tp: &TopicPartition) {
        self.assigned.remove(tp);
        self.turn.retain(|t| t != tp);
    }

    fn leave(&mut self) {
        if let Some(name) = self.group.take() {
            if let Some(group) = self.shared.lock().groups.get_mut(&name) {
                group.leave(self.id);
            }
            self.shared.changed.notify_waiters();
        }
    }
}

#[async_trait]
impl LogReader for MemoryReader {
    async fn poll(&mut self, wait: Duration) -> Result<Vec<ReaderEvent>, LogError> {
        let shared = Arc::clone(&self.shared);
        let until = shared.clock.elapsed() + wait;
        loop {
            // registered before looking, so that no change is missed in between
            let mut changed = std::pin::pin!(shared.changed.notified());
            changed.as_mut().enable();
            let events = self.take()?;
            if !events.is_empty() {
                return Ok(events);
            }
            let left = until.saturating_sub(shared.clock.elapsed());
            if left.is_zero() {
                return Ok(Vec::new());
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = shared.clock.sleep(left) => {}
            }
        }
    }

    async fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), LogError> {
        for (tp, start) in partitions {
            self.forget(tp);
            self.turn.push_back(tp.clone());
            self.assigned.insert(
                tp.clone(),
                Assigned {
                    next: start.offset,
                    epoch: start.leader_epoch,
                    paused: false,
                    dead: false,
                },
            );
        }
        if let Some(name) = &self.group {
            if let Some(group) = self.shared.lock().groups.get_mut(name) {
                group.answer_assigned(self.id);
            }
            self.shared.changed.notify_waiters();
        }
        Ok(())
    }

    async fn subscribe(&mut self, topics: &[TopicName]) -> Result<(), LogError> {
        let Some(name) = &self.group else {
            return Err(LogError::Invalid {
                what: "subscribe".to_owned(),
                detail: "a reader alone is no member of a group".to_owned(),
            });
        };
        if let Some(group) = self.shared.lock().groups.get_mut(name) {
            group.subscribe(self.id, topics);
        }
        self.shared.changed.notify_waiters();
        Ok(())
    }

    async fn unassign(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        for tp in partitions {
            self.forget(tp);
        }
        if let Some(name) = self.group.clone() {
            let taken = self
                .shared
                .lock()
                .groups
                .get_mut(&name)
                .map(|group| group.answer_revoked(self.id))
                .unwrap_or_default();
            for tp in &taken {
                self.forget(tp);
            }
            self.shared.changed.notify_waiters();
        }
        Ok(())
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.set_paused(partitions, true);
        Ok(())
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.set_paused(partitions, false);
        self.shared.changed.notify_waiters();
        Ok(())
    }

    async fn mirror(&mut self, positions: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        let mut cluster = self.shared.lock();
        cluster.allow(Request::Mirror)?;
        if let Some(name) = &self.group {
            for (tp, offset) in positions {
                cluster.mirrored.insert((name.clone(), tp.clone()), *offset);
            }
        }
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        0
    }

    async fn close(mut self: Box<Self>) -> Result<(), LogError> {
        self.leave();
        Ok(())
    }
}

impl Drop for MemoryReader {
    fn drop(&mut self) {
        self.leave();
    }
}
