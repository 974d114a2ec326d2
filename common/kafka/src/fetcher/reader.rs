//! The caller's side.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{EventColumns, Offset, OffsetRange, TopicName, TopicPartition};
use tokio::sync::oneshot;

use super::leaders::{LastWords, Leaders};
use super::state::Shared;
use crate::client::Mirror;
use crate::{Fetched, LogError, LogReader, ReaderEvent, StartAt};

/// Closing takes at most so long: connections are cut, so that no thread waits on one.
const CLOSE_LIMIT: Duration = Duration::from_secs(15);

static READERS: AtomicU64 = AtomicU64::new(0);

/// Ends its threads when dropped; they do so by themselves, in bounded time.
#[derive(Debug)]
pub(crate) struct FetchReader {
    shared: Arc<Shared>,
    ended: Option<oneshot::Receiver<()>>,
    mirror: Option<Mirror>,
}

impl FetchReader {
    pub(super) fn start(shared: Arc<Shared>, mirror: Option<Mirror>) -> Result<Self, LogError> {
        let number = READERS.fetch_add(1, Ordering::Relaxed);
        let leaders = Leaders::new(Arc::clone(&shared), number);
        let (done, ended) = oneshot::channel();
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(format!("everlog-fetch-{number}"))
            .spawn(move || {
                let words = LastWords(Arc::clone(&of_thread));
                leaders.run();
                drop(words);
                of_thread.end("the reader was closed");
                // a caller that went away does not wait
                done.send(()).ok();
            })
            .map_err(|e| LogError::Unavailable {
                what: "start a reader's thread".into(),
                detail: e.to_string(),
            })?;
        Ok(Self {
            shared,
            ended: Some(ended),
            mirror,
        })
    }

    fn take(&self) -> Result<Vec<ReaderEvent>, LogError> {
        let (events, was_full) = self.shared.lock().take(self.shared.bounds)?;
        if was_full {
            self.shared.ring();
        }
        Ok(merged(events, self.shared.bounds.batch))
    }

    fn change(&self, change: impl FnOnce(&mut super::state::State)) {
        change(&mut self.shared.lock());
        self.shared.ring();
    }
}

/// Small batches of a partition that wait behind each other as one: a caller that was busy is not kept busy by their number.
fn merged(events: Vec<ReaderEvent>, enough: usize) -> Vec<ReaderEvent> {
    let mut all: Vec<ReaderEvent> = Vec::with_capacity(events.len());
    // per partition: where its last batch is, and what belongs to it
    let mut open: BTreeMap<TopicPartition, (usize, usize, Vec<Fetched>)> = BTreeMap::new();
    for event in events {
        match event {
            ReaderEvent::Fetched(fetched) => {
                let bytes = fetched.columns.bytes();
                match open.get_mut(&fetched.source) {
                    Some((_, held, parts)) if *held + bytes < enough => {
                        *held += bytes;
                        parts.push(fetched);
                    }
                    _ => {
                        let source = fetched.source.clone();
                        let before = open.insert(source, (all.len(), bytes, Vec::new()));
                        all.push(ReaderEvent::Fetched(fetched));
                        if let Some((at, _, parts)) = before {
                            join(&mut all, at, parts);
                        }
                    }
                }
                continue;
            }
            ReaderEvent::Fault { ref partition, .. } => {
                if let Some((at, _, parts)) = open.remove(partition) {
                    join(&mut all, at, parts);
                }
            }
            ReaderEvent::Assigned(_) | ReaderEvent::Revoked { .. } => {}
        }
        all.push(event);
    }
    for (_, (at, _, parts)) in open {
        join(&mut all, at, parts);
    }
    all
}

/// Joins a batch with those that follow it.
fn join(all: &mut [ReaderEvent], at: usize, parts: Vec<Fetched>) {
    let (Some(ReaderEvent::Fetched(first)), Some(last)) = (all.get_mut(at), parts.last()) else {
        return;
    };
    let Ok(range) = OffsetRange::new(first.range.start(), last.range.end()) else {
        return;
    };
    let at_end = last.at_end;
    let mut columns = vec![std::mem::replace(&mut first.columns, EventColumns::empty())];
    columns.extend(parts.into_iter().map(|part| part.columns));
    columns.retain(|part| !part.is_empty());
    first.columns = EventColumns::concat(&columns).expect("all batches have the same few columns");
    first.range = range;
    first.at_end = at_end;
}

#[async_trait]
impl LogReader for FetchReader {
    async fn poll(&mut self, wait: Duration) -> Result<Vec<ReaderEvent>, LogError> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let events = self.take()?;
            if !events.is_empty() || wait.is_zero() {
                return Ok(events);
            }
            // a notification between `take` and here is kept for us
            let ready = self.shared.ready.notified();
            if tokio::time::timeout_at(until, ready).await.is_err() {
                return self.take();
            }
        }
    }

    async fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), LogError> {
        self.change(|state| {
            for (tp, start) in partitions {
                state.assign(tp.clone(), *start);
            }
        });
        Ok(())
    }

    async fn subscribe(&mut self, _topics: &[TopicName]) -> Result<(), LogError> {
        Err(LogError::Invalid {
            what: "subscribe".into(),
            detail: "a reader alone is no member of a group".into(),
        })
    }

    async fn unassign(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.change(|state| {
            for tp in partitions {
                state.unassign(tp);
            }
        });
        Ok(())
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.change(|state| {
            for tp in partitions {
                if let Some(part) = state.parts.get_mut(tp) {
                    part.paused = true;
                }
            }
        });
        Ok(())
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.change(|state| {
            for tp in partitions {
                if let Some(part) = state.parts.get_mut(tp) {
                    part.paused = false;
                }
            }
        });
        Ok(())
    }

    async fn mirror(&mut self, positions: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        if let Some(mirror) = self.mirror.as_mut().filter(|_| !positions.is_empty()) {
            mirror.send(positions);
        }
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        self.shared.held_bytes()
    }

    async fn close(mut self: Box<Self>) -> Result<(), LogError> {
        self.shared.stop();
        if let Some(mirror) = self.mirror.take() {
            mirror.close().await;
        }
        if let Some(ended) = self.ended.take() {
            // an error means that the thread is gone already
            if tokio::time::timeout(CLOSE_LIMIT, ended).await.is_err() {
                return Err(LogError::Closed(format!(
                    "the client did not end within {CLOSE_LIMIT:?}"
                )));
            }
        }
        Ok(())
    }
}

impl Drop for FetchReader {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::{EventColumnsBuilder, Partition, TimestampType};
    use proptest::prelude::*;

    use super::*;
    use crate::PartitionFault;

    fn tp(n: i32) -> TopicPartition {
        TopicPartition::new(TopicName::new("t").unwrap(), Partition::new(n).unwrap())
    }

    fn offset(n: i64) -> Offset {
        Offset::new(n).unwrap()
    }

    proptest! {
        /// However batches, ends and faults wait: per partition the same rows, ranges and faults in the same order.
        #[test]
        fn joined_batches_are_the_batches(
            steps in prop::collection::vec((0_i32..3, 0_i64..4, 0_i64..3, any::<bool>(), 0_u8..12), 0..40),
            enough in 1_usize..600,
        ) {
            let mut next = [0_i64; 3];
            let mut events = Vec::new();
            for (n, rows, behind, at_end, fault) in steps {
                // a position that did not move is not told
                let rows = if rows + behind == 0 { 1 } else { rows };
                let place = &mut next[usize::try_from(n).unwrap()];
                let from = *place;
                let mut builder = EventColumnsBuilder::new();
                for _ in 0..rows {
                    let value = Some(&b"some value"[..]);
                    builder.push(offset(*place), (0, TimestampType::Create), None, value, std::iter::empty(), None);
                    *place += 1;
                }
                *place += behind;
                events.push(ReaderEvent::Fetched(Fetched {
                    source: tp(n),
                    range: OffsetRange::new(offset(from), offset(*place)).unwrap(),
                    columns: builder.finish(),
                    at_end,
                }));
                if fault == 0 {
                    events.push(ReaderEvent::Fault { partition: tp(n), fault: PartitionFault::Gone(place.to_string()) });
                }
            }
            let told = |events: &[ReaderEvent]| {
                let mut all: BTreeMap<TopicPartition, (Vec<i64>, Vec<(i64, String)>, i64, bool)> = BTreeMap::new();
                for event in events {
                    match event {
                        ReaderEvent::Fetched(f) => {
                            let (rows, _, next, at_end) = all.entry(f.source.clone()).or_default();
                            assert_eq!(f.range.start().get(), *next);
                            *next = f.range.end().get();
                            *at_end = f.at_end;
                            rows.extend(f.columns.offsets.values());
                        }
                        ReaderEvent::Fault { partition, fault } => {
                            let (_, faults, next, _) = all.entry(partition.clone()).or_default();
                            faults.push((*next, fault.to_string()));
                        }
                        other => panic!("{other:?}"),
                    }
                }
                all
            };
            let before = told(&events);
            let count = events.len();
            let joined = merged(events, enough);
            prop_assert!(joined.len() <= count);
            prop_assert_eq!(told(&joined), before);
        }
    }
}
