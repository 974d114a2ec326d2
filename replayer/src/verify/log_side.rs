//! What Kafka still has, handed out partition by partition in the order in which the archive is read.
//!
//! The archive's side drives: it asks for a partition's records up to an offset. What comes of other partitions meanwhile
//! waits here; beyond the budget the partitions that wait are paused, the asked one never is, so there is no deadlock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Clock, EventColumns, Offset, OffsetRange, Partition, TopicPartition};
use everlog_kafka::{
    Fetched, LogReader, Membership, PartitionFault, ReaderEvent, ReaderOptions, StartAt,
};

use crate::error::ReplayError;
use crate::live::Cluster;

/// A wait for records, at most.
const POLL_WAIT: Duration = Duration::from_millis(500);
/// Without any record for so long, the cluster is not available.
const PATIENCE: Duration = Duration::from_secs(120);
const LINGER: Duration = Duration::from_millis(20);

/// The offsets of a partition that both sides should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogWindow {
    /// Kafka's first offset, or the archive's where that is later.
    pub(super) start: Offset,
    /// The archive's end, or Kafka's where that is earlier.
    pub(super) end: Offset,
}

#[derive(Debug)]
struct Lane {
    next: Offset,
    end: Offset,
    queue: VecDeque<EventColumns>,
    /// Kafka deleted what lies below while it was being read.
    deleted_below: Offset,
    paused: bool,
    assigned: bool,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct LogSide {
    reader: Box<dyn LogReader>,
    cluster: Cluster,
    clock: Arc<dyn Clock>,
    lanes: BTreeMap<Partition, Lane>,
    held: usize,
    budget: usize,
}

/// Records of one partition.
#[derive(Debug)]
pub(super) struct LogRows {
    /// In order; all of the asked range, besides what was deleted.
    pub(super) rows: Vec<EventColumns>,
    /// Below this Kafka deleted records before they could be read: nothing can be said of them.
    pub(super) deleted_below: Offset,
}

impl LogSide {
    pub(super) async fn open(
        cluster: Cluster,
        windows: &BTreeMap<Partition, LogWindow>,
        budget: usize,
    ) -> Result<Self, ReplayError> {
        let options = ReaderOptions {
            membership: Membership::Alone,
            isolation: cluster.isolation,
            memory_bytes: budget / 2,
            linger: LINGER,
        };
        let reader = cluster.log.open(options).await?;
        let clock = Arc::clone(&cluster.clock);
        let lanes = windows.iter().map(|(partition, window)| {
            let lane = Lane {
                next: window.start,
                end: window.end,
                queue: VecDeque::new(),
                deleted_below: Offset::ZERO,
                paused: false,
                assigned: true,
            };
            (*partition, lane)
        });
        let mut side = Self {
            reader,
            clock,
            lanes: lanes.collect(),
            held: 0,
            budget: budget / 2,
            cluster,
        };
        let starts: Vec<_> = windows
            .iter()
            .map(|(p, window)| side.start(*p, window.start))
            .collect();
        side.reader.assign(&starts).await?;
        Ok(side)
    }

    fn start(&self, partition: Partition, offset: Offset) -> (TopicPartition, StartAt) {
        let start = StartAt {
            offset,
            leader_epoch: None,
        };
        (self.cluster.partition(partition), start)
    }

    /// The records of `range`, which begins where the last one ended; it is cut at the window's end.
    pub(super) async fn take(
        &mut self,
        partition: Partition,
        range: OffsetRange,
    ) -> Result<LogRows, ReplayError> {
        let mut silent_since = self.clock.elapsed();
        loop {
            let Some(lane) = self.lanes.get(&partition) else {
                return Ok(LogRows {
                    rows: Vec::new(),
                    deleted_below: range.end(),
                });
            };
            let (next, end) = (lane.next, lane.end);
            if next >= range.end().min(end) {
                return Ok(self.hand_out(partition, range));
            }
            if self.read_on(partition).await? > 0 {
                silent_since = self.clock.elapsed();
            } else if self.clock.elapsed().saturating_sub(silent_since) > PATIENCE {
                return Err(ReplayError::Log(everlog_kafka::LogError::Unavailable {
                    what: format!("{} partition {partition}", self.cluster.topic),
                    detail: format!(
                        "no record came for {} s, at offset {} of {}",
                        PATIENCE.as_secs(),
                        next,
                        end
                    ),
                }));
            }
        }
    }

    fn hand_out(&mut self, partition: Partition, range: OffsetRange) -> LogRows {
        let mut rows = Vec::new();
        let mut deleted_below = Offset::ZERO;
        if let Some(lane) = self.lanes.get_mut(&partition) {
            deleted_below = lane.deleted_below;
            while let Some(columns) = lane.queue.pop_front() {
                let wanted = columns.slice_offsets(range.start(), range.end());
                let rest = columns.slice_offsets(range.end(), lane.end.max(range.end()));
                self.held -= columns.bytes().min(self.held);
                if !wanted.is_empty() {
                    rows.push(wanted);
                }
                if !rest.is_empty() {
                    self.held += rest.bytes();
                    lane.queue.push_front(rest);
                    break;
                }
            }
        }
        LogRows {
            rows,
            deleted_below,
        }
    }

    /// One wait for records; returns how many events came.
    async fn read_on(&mut self, wanted: Partition) -> Result<usize, ReplayError> {
        self.balance(wanted).await?;
        let events = match self.reader.poll(POLL_WAIT).await {
            Ok(events) => events,
            Err(error) if error.is_transient() => {
                self.clock.sleep(POLL_WAIT).await;
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
        let count = events.len();
        for event in events {
            match event {
                ReaderEvent::Fetched(fetched) => self.take_in(fetched)?,
                ReaderEvent::Fault { partition, fault } => {
                    self.mend(partition.partition, fault).await?;
                }
                // nobody else assigns: membership is Alone
                ReaderEvent::Assigned(_) | ReaderEvent::Revoked { .. } => {}
            }
        }
        let done: Vec<Partition> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.assigned && lane.next >= lane.end)
            .map(|(p, _)| *p)
            .collect();
        if !done.is_empty() {
            let all: Vec<_> = done.iter().map(|p| self.cluster.partition(*p)).collect();
            self.reader.unassign(&all).await?;
            for partition in done {
                if let Some(lane) = self.lanes.get_mut(&partition) {
                    lane.assigned = false;
                }
            }
        }
        Ok(count)
    }

    fn take_in(&mut self, fetched: Fetched) -> Result<(), ReplayError> {
        let partition = fetched.source.partition;
        let Some(lane) = self.lanes.get_mut(&partition) else {
            return Ok(());
        };
        if fetched.range.start() > lane.next {
            return Err(ReplayError::Skipped {
                topic: self.cluster.topic.clone(),
                partition,
                expected: lane.next,
                found: fetched.range.start(),
            });
        }
        let columns = fetched.columns.slice_offsets(lane.next, lane.end);
        lane.next = lane.next.max(fetched.range.end());
        if !columns.is_empty() {
            self.held += columns.bytes();
            lane.queue.push_back(columns);
        }
        Ok(())
    }

    /// Retention may pass the reader: it goes on at the log's new start.
    async fn mend(
        &mut self,
        partition: Partition,
        fault: PartitionFault,
    ) -> Result<(), ReplayError> {
        let tp = self.cluster.partition(partition);
        let failed = |source| ReplayError::Fault {
            topic: self.cluster.topic.clone(),
            partition,
            source,
        };
        if !matches!(fault, PartitionFault::OutOfRange { .. }) {
            return Err(failed(fault));
        }
        let Some(bounds) = self.cluster.bounds_of(partition).await? else {
            return Err(failed(fault));
        };
        let Some(lane) = self.lanes.get_mut(&partition) else {
            return Ok(());
        };
        if bounds.log_start <= lane.next {
            return Err(failed(fault));
        }
        lane.next = bounds.log_start;
        lane.deleted_below = bounds.log_start;
        if lane.next < lane.end {
            let start = StartAt {
                offset: bounds.log_start,
                leader_epoch: None,
            };
            self.reader.assign(&[(tp, start)]).await?;
        }
        Ok(())
    }

    /// Beyond the budget everything but `wanted` waits; with room again all go on.
    async fn balance(&mut self, wanted: Partition) -> Result<(), ReplayError> {
        let full = self.held > self.budget;
        let room = self.held < self.budget / 2;
        let mut pause = Vec::new();
        let mut resume = Vec::new();
        for (partition, lane) in &mut self.lanes {
            if !lane.assigned {
                continue;
            }
            let tp = TopicPartition::new(self.cluster.topic.clone(), *partition);
            let is_wanted = *partition == wanted;
            if lane.paused && (is_wanted || room) {
                lane.paused = false;
                resume.push(tp);
            } else if !lane.paused && full && !is_wanted {
                lane.paused = true;
                pause.push(tp);
            }
        }
        if !pause.is_empty() {
            self.reader.pause(&pause).await?;
        }
        if !resume.is_empty() {
            self.reader.resume(&resume).await?;
        }
        Ok(())
    }

    pub(super) async fn close(self) {
        if let Err(error) = self.reader.close().await {
            tracing::debug!(%error, "the reader did not close cleanly");
        }
    }
}
