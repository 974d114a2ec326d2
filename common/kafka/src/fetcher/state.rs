//! What the caller and the reader's threads share: partitions, and what waits to be taken.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use everlog_common::{EventColumns, Offset, OffsetRange, TopicPartition};
use everlog_wire::WireError;
use tokio::sync::Notify;

use super::connection::Sockets;
use super::part::{Part, Passed};
use super::settings::{Address, Settings};
use crate::{Fetched, Isolation, LogError, PartitionFault, ReaderEvent, StartAt};

/// How a reader's memory is shared out, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// What waits to be taken.
    pub(super) outbox: usize,
    /// Rows are handed over at this size.
    pub(super) batch: usize,
}

/// Everything, for the reader's threads and its caller.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) isolation: Isolation,
    pub(super) bounds: Bounds,
    pub(super) sockets: Sockets,
    state: Mutex<State>,
    /// Something changed that a thread may wait for.
    bell: Condvar,
    /// Something waits for the caller.
    pub(super) ready: Notify,
    /// Bytes of answers that are being read.
    in_hand: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) parts: BTreeMap<TopicPartition, Part>,
    /// Ids of assignments.
    next_id: u64,
    pub(super) brokers: BTreeMap<i32, Address>,
    outbox: VecDeque<ReaderEvent>,
    outbox_bytes: usize,
    error: Option<LogError>,
    ended: Option<String>,
    stop: bool,
}

impl Shared {
    pub(super) fn new(settings: Settings, isolation: Isolation, bounds: Bounds) -> Self {
        Self {
            settings,
            isolation,
            bounds,
            sockets: Sockets::default(),
            state: Mutex::default(),
            bell: Condvar::new(),
            ready: Notify::new(),
            in_hand: AtomicUsize::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something changes, at most `limit`.
    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        limit: Duration,
    ) -> MutexGuard<'a, State> {
        self.bell
            .wait_timeout(state, limit)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Waits for `limit`, or until the reader ends: then false.
    pub(super) fn rest(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.lock();
        while !state.stop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self.wait(state, left);
        }
        false
    }

    pub(super) fn ring(&self) {
        self.bell.notify_all();
    }

    /// Ends everything: threads stop where they wait, and connections are cut.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.sockets.cut();
        self.ring();
    }

    pub(super) fn hold(&self, bytes: usize) {
        self.in_hand.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn let_go(&self, bytes: usize) {
        self.in_hand.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed) + self.lock().outbox_bytes
    }

    /// No more comes, and why.
    pub(super) fn end(&self, why: &str) {
        self.lock().ended.get_or_insert_with(|| why.to_owned());
        self.ready.notify_one();
    }

    /// Tells the caller once of what concerns no partition alone.
    pub(super) fn report(&self, error: LogError) {
        self.lock().error = Some(error);
        self.ready.notify_one();
    }

    /// Stops a partition, if it is still this assignment.
    pub(super) fn fail(&self, tp: &TopicPartition, id: u64, fault: PartitionFault) {
        let mut state = self.lock();
        state.fail(tp, id, fault);
        drop(state);
        self.ready.notify_one();
    }

    /// An answer contradicts itself: it is fetched again, and a fault when that does not help.
    pub(super) fn goes_beyond(
        &self,
        tp: &TopicPartition,
        id: u64,
        offset: i64,
    ) -> Result<(), WireError> {
        let mut state = self.lock();
        let part = state.parts.get_mut(tp).filter(|part| part.id == id);
        if part.is_some_and(|part| part.goes_beyond(Instant::now())) {
            let what = "it lies beyond the end of the log, behind a hole";
            return Err(WireError::Malformed { offset, what });
        }
        Ok(())
    }

    /// Hands rows over; waits for room before. False where the
    /// assignment is gone.
    pub(super) fn deliver(&self, tp: &TopicPartition, id: u64, rows: Rows) -> bool {
        let bytes = rows.columns.bytes();
        let mut state = self.lock();
        loop {
            if state.stop {
                return false;
            }
            let Some(part) = state.parts.get(tp).filter(|p| p.id == id && !p.dead) else {
                return false;
            };
            let from = part.next;
            // one that is larger than everything still passes, alone
            if bytes == 0 || state.outbox_bytes == 0 || state.outbox_bytes < self.bounds.outbox {
                state.put(tp, from, rows, bytes);
                break;
            }
            state = self.wait(state, Duration::from_secs(1));
        }
        drop(state);
        self.ready.notify_one();
        true
    }
}

/// Rows to hand over.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) columns: EventColumns,
    /// The position behind them.
    pub(super) next: i64,
    /// What the last batch that was taken tells; none where none was.
    pub(super) passed: Option<Passed>,
    /// The end of the log as of the answer, when this is all of it.
    pub(super) end: Option<i64>,
}

impl State {
    pub(super) fn is_stopped(&self) -> bool {
        self.stop
    }

    pub(super) fn has_room(&self, bounds: Bounds) -> bool {
        self.outbox_bytes < bounds.outbox
    }

    pub(super) fn assign(&mut self, tp: TopicPartition, start: StartAt) {
        self.withdraw(&tp);
        self.next_id += 1;
        let part = Part::new(self.next_id, start);
        self.parts.insert(tp, part);
    }

    pub(super) fn unassign(&mut self, tp: &TopicPartition) {
        self.parts.remove(tp);
        self.withdraw(tp);
    }

    /// Takes back what nobody has taken yet.
    fn withdraw(&mut self, gone: &TopicPartition) {
        let mut bytes = 0;
        self.outbox.retain(|event| match event {
            ReaderEvent::Fetched(f) if f.source == *gone => {
                bytes += f.columns.bytes();
                false
            }
            ReaderEvent::Fault { partition, .. } => partition != gone,
            _ => true,
        });
        self.outbox_bytes = self.outbox_bytes.saturating_sub(bytes);
    }

    pub(super) fn fail(&mut self, tp: &TopicPartition, id: u64, fault: PartitionFault) {
        let Some(part) = self.parts.get_mut(tp).filter(|part| part.id == id) else {
            return;
        };
        if part.told_fault {
            return;
        }
        (part.dead, part.told_fault) = (true, true);
        let partition = tp.clone();
        self.outbox
            .push_back(ReaderEvent::Fault { partition, fault });
    }

    fn put(&mut self, tp: &TopicPartition, from: i64, rows: Rows, bytes: usize) {
        let Some(part) = self.parts.get_mut(tp) else {
            return;
        };
        part.advance(rows.next, rows.passed);
        let at_end = rows.end.is_some_and(|end| part.next >= end);
        let range = Offset::new(from)
            .and_then(|from| Ok((from, Offset::new(part.next)?)))
            .ok()
            .and_then(|(from, to)| OffsetRange::new(from, to).ok());
        // none where the position did not move
        let Some(range) = range else { return };
        self.outbox_bytes += bytes;
        self.outbox.push_back(ReaderEvent::Fetched(Fetched {
            source: tp.clone(),
            range,
            columns: rows.columns,
            at_end,
        }));
    }

    /// What waits for the caller, or why nothing will come; and whether threads may wait for the room.
    pub(super) fn take(&mut self, bounds: Bounds) -> Result<(Vec<ReaderEvent>, bool), LogError> {
        if self.outbox.is_empty() {
            if let Some(error) = self.error.take() {
                return Err(error);
            }
            if let Some(why) = &self.ended {
                return Err(LogError::Closed(why.clone()));
            }
        }
        let was_full = !self.has_room(bounds);
        self.outbox_bytes = 0;
        Ok((std::mem::take(&mut self.outbox).into(), was_full))
    }
}
