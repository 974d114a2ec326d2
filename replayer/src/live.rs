//! The live tier: what the cluster says of the topic, and its log from explicit positions.
//!
//! Invariant: what [`Tailer::poll`] hands out of a partition is contiguous from its start. Offsets below are dropped,
//! offsets beyond are an error, whatever the client does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::mutants::Mutant;
use everlog_common::{
    Clock, EventBatch, Generation, Identity, LogBounds, Offset, OffsetRange, Partition, Position,
    Positions, Source, TopicName, TopicPartition,
};
use everlog_kafka::{
    Isolation, Log, LogError, LogReader, Membership, PartitionFault, ReaderEvent, ReaderOptions,
    StartAt, TopicInfo,
};

use crate::error::ReplayError;
use crate::handoff::{LastRead, LiveFacts};

/// Requests are repeated for so long while the cluster is not available.
const PATIENCE: Duration = Duration::from_secs(60);
/// First wait between repetitions; doubled up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A batch is handed over when it has waited so long.
const LINGER: Duration = Duration::from_millis(5);

/// Asks about one topic.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) topic: TopicName,
    pub(crate) isolation: Isolation,
    /// The partitions that matter; none: all.
    pub(crate) wanted: Option<BTreeSet<Partition>>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Cluster {
    /// Identity, bounds, and where the epochs of our last records ended; none where the topic does not exist. While the
    /// cluster, or the leader of a partition that matters, is not available the questions are repeated, for a bounded time.
    pub(crate) async fn facts(
        &self,
        epochs: &BTreeMap<Partition, LastRead>,
    ) -> Result<Option<LiveFacts>, LogError> {
        let mut patience = Patience::new(self);
        loop {
            match self.ask(epochs).await {
                Err(error) if patience.has_waited(&error).await => {}
                answer => return answer,
            }
        }
    }

    /// Bounds of one partition; none where it does not exist. Repeated as with [`Cluster::facts`].
    pub(crate) async fn bounds_of(
        &self,
        partition: Partition,
    ) -> Result<Option<LogBounds>, LogError> {
        let mut patience = Patience::new(self);
        loop {
            match self.ask_bounds(partition).await {
                Err(error) if patience.has_waited(&error).await => {}
                answer => return answer,
            }
        }
    }

    async fn ask_bounds(&self, partition: Partition) -> Result<Option<LogBounds>, LogError> {
        let info = self.described().await?;
        if !info.is_some_and(|info| info.partitions.contains(&partition)) {
            return Ok(None);
        }
        let bounds = self.bounds(&[self.partition(partition)]).await?;
        Ok(bounds.into_values().next())
    }

    /// The identity is read before and after the bounds, so that both are of one incarnation.
    async fn ask(
        &self,
        epochs: &BTreeMap<Partition, LastRead>,
    ) -> Result<Option<LiveFacts>, LogError> {
        let Some((identity, partitions)) = self.identity().await? else {
            return Ok(None);
        };
        let matters = |p: &Partition| self.wanted.as_ref().is_none_or(|w| w.contains(p));
        let all: Vec<TopicPartition> = partitions
            .iter()
            .filter(|p| matters(p))
            .map(|p| self.partition(*p))
            .collect();
        let bounds = self.bounds(&all).await?;
        let asked: Vec<(TopicPartition, i32)> = epochs
            .iter()
            .filter(|(p, _)| partitions.contains(p) && matters(p))
            .map(|(p, last)| (self.partition(*p), last.leader_epoch))
            .collect();
        let ends = if asked.is_empty() {
            BTreeMap::new()
        } else {
            self.log.epoch_ends(&asked).await?
        };
        all_answered(asked.iter().map(|(tp, _)| tp), &ends)?;
        let after = self.identity().await?;
        if after.as_ref().map(|(identity, _)| identity) != Some(&identity) {
            return Err(LogError::Unavailable {
                what: format!("topic {}", self.topic),
                detail: "it changed while it was being looked at".to_owned(),
            });
        }
        let ends = ends
            .into_iter()
            .filter_map(|(tp, end)| Some((tp.partition, end?)));
        Ok(Some(LiveFacts {
            identity,
            bounds: bounds
                .into_iter()
                .map(|(tp, b)| (tp.partition, b))
                .collect(),
            epoch_ends: ends.collect(),
        }))
    }

    /// Bounds of partitions that exist. One that is not answered is not known yet: taken for gone, or for empty, it would end
    /// a replay early.
    async fn bounds(
        &self,
        all: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        let bounds = self.log.bounds(all, self.isolation).await?;
        all_answered(all, &bounds)?;
        Ok(bounds)
    }

    /// Where the logs of these partitions end now, as far as that is answered.
    pub(crate) async fn ends(
        &self,
        partitions: &BTreeSet<Partition>,
    ) -> Result<BTreeMap<Partition, Offset>, LogError> {
        let all: Vec<TopicPartition> = partitions.iter().map(|p| self.partition(*p)).collect();
        let bounds = self.log.bounds(&all, self.isolation).await?;
        let ends = bounds.into_iter().map(|(tp, b)| (tp.partition, b.end));
        Ok(ends.collect())
    }

    /// Whose log it is now; none where the topic does not exist. The topic's id alone is one request, and enough while the
    /// cluster is known: no other cluster has it.
    pub(crate) async fn look(&self, whole: bool) -> Result<Option<Identity>, LogError> {
        if whole {
            return Ok(self.identity().await?.map(|(identity, _)| identity));
        }
        Ok(self.described().await?.map(|info| Identity {
            cluster_id: None,
            topic_id: info.topic_id,
        }))
    }

    async fn identity(&self) -> Result<Option<(Identity, Vec<Partition>)>, LogError> {
        let Some(info) = self.described().await? else {
            return Ok(None);
        };
        let identity = Identity {
            cluster_id: self.log.cluster_id().await?,
            topic_id: info.topic_id,
        };
        Ok(Some((identity, info.partitions)))
    }

    async fn described(&self) -> Result<Option<TopicInfo>, LogError> {
        let mut described = self.log.describe(std::slice::from_ref(&self.topic)).await?;
        described.remove(&self.topic).transpose()
    }

    pub(crate) fn partition(&self, partition: Partition) -> TopicPartition {
        TopicPartition::new(self.topic.clone(), partition)
    }
}

/// Waits between repetitions of a question, for a bounded time.
struct Patience<'a> {
    clock: &'a dyn Clock,
    began: Duration,
    wait: Duration,
}

impl<'a> Patience<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self {
            clock: cluster.clock.as_ref(),
            began: cluster.clock.elapsed(),
            wait: BACKOFF,
        }
    }

    /// Whether the question is to be asked again: then the wait before that is over.
    async fn has_waited(&mut self, error: &LogError) -> bool {
        if !error.is_transient() || self.clock.elapsed().saturating_sub(self.began) >= PATIENCE {
            return false;
        }
        tracing::debug!(%error, "asking the cluster again");
        self.clock.sleep(self.wait).await;
        self.wait = (self.wait * 2).min(BACKOFF_MAX);
        true
    }
}

/// An error that may pass by itself where one is missing in the answers.
fn all_answered<'a, T>(
    asked: impl IntoIterator<Item = &'a TopicPartition>,
    answers: &BTreeMap<TopicPartition, T>,
) -> Result<(), LogError> {
    let mut asked = asked.into_iter();
    match asked.find(|tp| !answers.contains_key(tp)) {
        None => Ok(()),
        Some(missing) => Err(LogError::Unavailable {
            what: missing.to_string(),
            detail: "no broker answers for this partition: it has no leader, or its leader is away"
                .to_owned(),
        }),
    }
}

/// What the tail gives.
#[derive(Debug)]
pub(crate) enum TailEvent {
    /// Offsets of a partition, with their rows if it has any.
    Batch(EventBatch),
    /// A partition cannot be read on.
    Lost(Partition, PartitionFault),
}

/// Reads the live log from explicit positions.
#[derive(Debug)]
pub(crate) struct Tailer {
    reader: Box<dyn LogReader>,
    topic: TopicName,
    generation: Generation,
    clock: Arc<dyn Clock>,
    next: BTreeMap<Partition, Offset>,
    starts: BTreeMap<Partition, StartAt>,
    /// Where the logs end, as was said last.
    ends: BTreeMap<Partition, Offset>,
    paused: BTreeSet<Partition>,
}

/// What a tailer is to read from now on.
#[derive(Debug, Default)]
pub(crate) struct Adjustment {
    /// Partitions that are not fetched for now; what was fetched may still come.
    pub(crate) pause: BTreeSet<Partition>,
    /// Paused ones that are fetched again.
    pub(crate) resume: BTreeSet<Partition>,
    /// Partitions of which nothing comes until they are added again.
    pub(crate) leave: BTreeSet<Partition>,
    /// Partitions to begin with.
    pub(crate) add: BTreeMap<Partition, StartAt>,
}

impl Adjustment {
    pub(crate) fn is_empty(&self) -> bool {
        self.pause.is_empty()
            && self.resume.is_empty()
            && self.leave.is_empty()
            && self.add.is_empty()
    }
}

impl Tailer {
    /// Opens a reader and assigns `starts`; it buffers from now on. `reached` may be beyond a start: what lies before is
    /// dropped.
    pub(crate) async fn open(
        cluster: &Cluster,
        generation: Generation,
        starts: BTreeMap<Partition, StartAt>,
        reached: &Positions,
        memory_bytes: usize,
    ) -> Result<Self, LogError> {
        let options = ReaderOptions {
            membership: Membership::Alone,
            isolation: cluster.isolation,
            memory_bytes,
            linger: LINGER,
        };
        let reader = cluster.log.open(options).await?;
        let mut tailer = Self {
            reader,
            topic: cluster.topic.clone(),
            generation,
            clock: Arc::clone(&cluster.clock),
            next: BTreeMap::new(),
            starts: BTreeMap::new(),
            ends: BTreeMap::new(),
            paused: BTreeSet::new(),
        };
        tailer.add(starts, reached).await?;
        Ok(tailer)
    }

    /// The era that it reads.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Where it was started.
    pub(crate) fn starts(&self) -> &BTreeMap<Partition, StartAt> {
        &self.starts
    }

    /// The partitions that it does not fetch for now.
    pub(crate) fn paused(&self) -> &BTreeSet<Partition> {
        &self.paused
    }

    /// Whether it reads `partition`, paused or not.
    pub(crate) fn reads(&self, partition: Partition) -> bool {
        self.next.contains_key(&partition)
    }

    /// Whether more of `partition` than up to `at` came from the log.
    pub(crate) fn is_beyond(&self, partition: Partition, at: Position) -> bool {
        at.generation == self.generation
            && self.next.get(&partition).is_some_and(|n| *n > at.offset)
    }

    /// Whether the log of `partition` ended at `at` when it was asked last, and nothing came since.
    pub(crate) fn is_at_end(&self, partition: Partition, at: Position) -> bool {
        at.generation == self.generation
            && self.next.get(&partition) == Some(&at.offset)
            && self.ends.get(&partition) == Some(&at.offset)
    }

    /// Logs end here, or farther on.
    pub(crate) fn heard_ends(&mut self, ends: impl IntoIterator<Item = (Partition, Offset)>) {
        for (partition, end) in ends {
            let known = self.ends.entry(partition).or_insert(end);
            *known = end.max(*known);
        }
    }

    /// Changes what is read. Not cancel-safe.
    pub(crate) async fn adjust(
        &mut self,
        change: Adjustment,
        reached: &Positions,
    ) -> Result<(), LogError> {
        if !change.leave.is_empty() {
            self.reader.unassign(&self.named(&change.leave)).await?;
            for partition in &change.leave {
                self.next.remove(partition);
                self.paused.remove(partition);
            }
        }
        if !change.pause.is_empty() {
            self.reader.pause(&self.named(&change.pause)).await?;
            self.paused.extend(change.pause);
        }
        if !change.resume.is_empty() {
            self.reader.resume(&self.named(&change.resume)).await?;
            self.paused.retain(|p| !change.resume.contains(p));
        }
        if !change.add.is_empty() {
            self.add(change.add, reached).await?;
        }
        Ok(())
    }

    fn named(&self, partitions: &BTreeSet<Partition>) -> Vec<TopicPartition> {
        let partitions = partitions.iter();
        partitions
            .map(|p| TopicPartition::new(self.topic.clone(), *p))
            .collect()
    }

    /// Adds partitions.
    async fn add(
        &mut self,
        starts: BTreeMap<Partition, StartAt>,
        reached: &Positions,
    ) -> Result<(), LogError> {
        let assigned: Vec<(TopicPartition, StartAt)> = starts
            .iter()
            .map(|(p, start)| (TopicPartition::new(self.topic.clone(), *p), *start))
            .collect();
        self.reader.assign(&assigned).await?;
        for (partition, start) in starts {
            let at = reached
                .get(&partition)
                .filter(|at| at.generation == self.generation)
                .map_or(start.offset, |at| at.offset.max(start.offset));
            let at = if Mutant::TailOneEarly.is_planted() {
                start.offset
            } else {
                at
            };
            self.next.insert(partition, at);
            self.starts.insert(partition, start);
        }
        Ok(())
    }

    /// Waits for events, at most `wait`. Cancel-safe.
    pub(crate) async fn poll(&mut self, wait: Duration) -> Result<Vec<TailEvent>, ReplayError> {
        let events = match self.reader.poll(wait).await {
            Ok(events) => events,
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "the live reader waits for the cluster");
                self.clock.sleep(BACKOFF).await;
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
        let mut out = Vec::with_capacity(events.len());
        for event in events {
            match event {
                ReaderEvent::Fetched(fetched) => {
                    let partition = fetched.source.partition;
                    let Some(next) = self.next.get_mut(&partition) else {
                        continue;
                    };
                    let range = fetched.range;
                    if fetched.at_end {
                        let end = self.ends.entry(partition).or_insert(range.end());
                        *end = range.end().max(*end);
                    }
                    if range.start() > *next {
                        return Err(ReplayError::Skipped {
                            topic: self.topic.clone(),
                            partition,
                            expected: *next,
                            found: range.start(),
                        });
                    }
                    let Ok(range) = OffsetRange::new(*next, range.end()) else {
                        continue;
                    };
                    *next = range.end();
                    out.push(TailEvent::Batch(EventBatch {
                        topic: self.topic.clone(),
                        generation: self.generation,
                        partition,
                        range,
                        columns: fetched.columns.slice_offsets(range.start(), range.end()),
                        source: Source::Live,
                    }));
                }
                ReaderEvent::Fault { partition, fault } => {
                    out.push(TailEvent::Lost(partition.partition, fault));
                }
                // Nobody else assigns: membership is Alone.
                ReaderEvent::Assigned(_) | ReaderEvent::Revoked { .. } => {}
            }
        }
        Ok(out)
    }

    /// Ends the client's threads.
    pub(crate) async fn close(self) {
        if let Err(error) = self.reader.close().await {
            tracing::debug!(%error, "the live reader did not close cleanly");
        }
    }
}
