//! A log in memory: the whole of [`Log`] and [`LogReader`](crate::LogReader) without threads, sockets or randomness, for tests and simulation.
//!
//! It knows what makes Kafka hard: log start moving on, transaction markers and aborted data as offsets without rows,
//! an open transaction that holds the end back, compaction holes, leader epochs, truncation, deletion and re-creation
//! (new id, or none on brokers that know none), partition growth, partitions without a leader, closed topics, groups that take partitions away or throw a member
//! out, requests that fail. Where the client for real brokers is blind, it is blind too: a deleted topic is silence, a topic
//! re-created past the position is read on without a word.
//!
//! What it does not imitate: time (a request takes none), record batches, replication, retention by itself. A group
//! answers at once; [`MemoryLog::deafen`] holds its messages back. A dropped reader leaves its group at once.

mod group;
mod partition;
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use everlog_common::{
    Clock, LogBounds, Millis, Offset, Partition, TopicId, TopicName, TopicPartition,
};
use tokio::sync::Notify;
use uuid::Uuid;

pub use self::partition::{MemoryRecord, Transaction};

use self::group::Group;
use self::partition::PartitionLog;
use self::reader::MemoryReader;
use crate::{
    Isolation, Log, LogError, LogReader, Membership, OffsetAtTime, PartitionFault, ReaderOptions,
    TopicConfig, TopicInfo,
};

/// A request that an interceptor may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// [`Log::cluster_id`].
    ClusterId,
    /// [`Log::topics`].
    Topics,
    /// [`Log::describe`].
    Describe,
    /// [`Log::bounds`].
    Bounds,
    /// [`Log::offsets_at`].
    OffsetsAt,
    /// [`Log::epoch_ends`].
    EpochEnds,
    /// [`Log::topic_config`].
    TopicConfig,
    /// [`Log::open`].
    Open,
    /// [`crate::LogReader::poll`].
    Poll,
    /// [`crate::LogReader::mirror`].
    Mirror,
}

type Interceptor = Box<dyn FnMut(Request) -> Option<LogError> + Send>;

struct Topic {
    id: Option<TopicId>,
    config: TopicConfig,
    partitions: Vec<PartitionLog>,
}

struct Cluster {
    id: Option<String>,
    topic_ids: bool,
    ids_drawn: u64,
    readers_opened: u64,
    transactions: u64,
    rows_max: usize,
    topics: BTreeMap<TopicName, Topic>,
    groups: BTreeMap<String, Group>,
    mirrored: BTreeMap<(String, TopicPartition), Offset>,
    faults: BTreeMap<TopicPartition, PartitionFault>,
    /// Closed to us.
    denied: BTreeSet<TopicName>,
    /// Without a leader: they exist, and nobody answers for them.
    leaderless: BTreeSet<TopicPartition>,
    interceptor: Option<Interceptor>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("topics", &self.topics.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    fn partition(&self, tp: &TopicPartition) -> Option<&PartitionLog> {
        let index = usize::try_from(tp.partition.get()).ok()?;
        self.topics.get(&tp.topic)?.partitions.get(index)
    }

    /// A partition that somebody answers for.
    fn led(&self, tp: &TopicPartition) -> Option<&PartitionLog> {
        (!self.leaderless.contains(tp) && !self.denied.contains(&tp.topic))
            .then(|| self.partition(tp))?
    }

    /// The refusal of all that is asked, where every topic of it is denied.
    fn refuse<'a>(
        &self,
        mut asked: impl Iterator<Item = &'a TopicPartition>,
    ) -> Result<(), LogError> {
        let first = asked.next().map(|tp| &tp.topic);
        let Some(first) = first.filter(|topic| self.denied.contains(*topic)) else {
            return Ok(());
        };
        if asked.all(|tp| self.denied.contains(&tp.topic)) {
            return Err(denied(first));
        }
        Ok(())
    }

    fn partition_mut(&mut self, tp: &TopicPartition) -> Option<&mut PartitionLog> {
        let index = usize::try_from(tp.partition.get()).ok()?;
        self.topics.get_mut(&tp.topic)?.partitions.get_mut(index)
    }

    fn all_partitions(&self) -> Vec<TopicPartition> {
        self.topics
            .iter()
            .filter(|(name, _)| !self.denied.contains(*name))
            .flat_map(|(name, topic)| {
                numbers(topic.partitions.len())
                    .map(|partition| TopicPartition::new(name.clone(), partition))
            })
            .collect()
    }

    fn remove(&mut self, name: &TopicName) -> Option<Topic> {
        self.leaderless.retain(|tp| tp.topic != *name);
        self.topics.remove(name)
    }

    fn info(&self, name: &TopicName) -> Option<Result<TopicInfo, LogError>> {
        if self.denied.contains(name) {
            return Some(Err(denied(name)));
        }
        self.topics.get(name).map(|topic| {
            Ok(TopicInfo {
                name: name.clone(),
                topic_id: topic.id,
                partitions: numbers(topic.partitions.len()).collect(),
            })
        })
    }

    fn draw_topic_id(&mut self) -> Option<TopicId> {
        self.ids_drawn += 1;
        self.topic_ids.then(|| {
            TopicId(Uuid::from_u128(
                0x7f00_u128 << 112 | u128::from(self.ids_drawn),
            ))
        })
    }

    fn allow(&mut self, request: Request) -> Result<(), LogError> {
        match self.interceptor.as_mut().and_then(|hook| hook(request)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn numbers(count: usize) -> impl Iterator<Item = Partition> {
    (0..count).filter_map(|n| Partition::new(i32::try_from(n).ok()?).ok())
}

fn denied(topic: &TopicName) -> LogError {
    LogError::Denied {
        what: format!("topic {topic}"),
        detail: "the memory log was told to refuse it".to_owned(),
    }
}

#[derive(Debug)]
struct Shared {
    cluster: Mutex<Cluster>,
    changed: Notify,
    clock: Arc<dyn Clock>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Cluster> {
        // a panic elsewhere leaves a log that is still consistent: every change is one statement
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cluster in memory. Clones are the same cluster.
///
/// The methods that are not [`Log`]'s play producer, broker and operator. They panic where a topic or partition does
/// not exist, since that is a mistake in the test.
#[derive(Debug, Clone)]
pub struct MemoryLog {
    shared: Arc<Shared>,
}

impl MemoryLog {
    /// An empty cluster with the id `memory` and topic ids.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            shared: Arc::new(Shared {
                cluster: Mutex::new(Cluster {
                    id: Some("memory".to_owned()),
                    topic_ids: true,
                    ids_drawn: 0,
                    readers_opened: 0,
                    transactions: 0,
                    rows_max: 1000,
                    topics: BTreeMap::new(),
                    groups: BTreeMap::new(),
                    mirrored: BTreeMap::new(),
                    faults: BTreeMap::new(),
                    denied: BTreeSet::new(),
                    leaderless: BTreeSet::new(),
                    interceptor: None,
                }),
                changed: Notify::new(),
                clock,
            }),
        }
    }

    fn change<T>(&self, act: impl FnOnce(&mut Cluster) -> T) -> T {
        let result = act(&mut self.shared.lock());
        self.shared.changed.notify_waiters();
        result
    }

    #[allow(clippy::panic, reason = "a mistake in the test, see above")]
    fn on<T>(&self, tp: &TopicPartition, act: impl FnOnce(&mut PartitionLog) -> T) -> T {
        self.change(|c| {
            act(c
                .partition_mut(tp)
                .unwrap_or_else(|| panic!("{tp} does not exist")))
        })
    }

    /// Gives the cluster another id, or none.
    pub fn set_cluster_id(&self, id: Option<&str>) {
        self.change(|c| c.id = id.map(str::to_owned));
    }

    /// Topics created from now on have no id, as before Kafka 2.8.
    pub fn forget_topic_ids(&self) {
        self.change(|c| c.topic_ids = false);
    }

    /// At most so many rows in one batch (1,000 at first).
    pub fn limit_batches(&self, rows: usize) {
        self.change(|c| c.rows_max = rows.max(1));
    }

    /// Creates a topic; one of that name must not exist.
    pub fn create_topic(&self, name: &TopicName, partitions: usize) -> Option<TopicId> {
        self.change(|c| {
            assert!(!c.topics.contains_key(name), "topic {name} exists");
            let id = c.draw_topic_id();
            let topic = Topic {
                id,
                config: TopicConfig::default(),
                partitions: vec![PartitionLog::new(); partitions],
            };
            c.topics.insert(name.clone(), topic);
            id
        })
    }

    /// Deletes a topic.
    pub fn delete_topic(&self, name: &TopicName) {
        self.change(|c| c.remove(name));
    }

    /// Deletes a topic and creates it anew with as many partitions, under a new id.
    pub fn recreate_topic(&self, name: &TopicName) -> Option<TopicId> {
        let partitions = self
            .change(|c| c.remove(name))
            .map_or(1, |topic| topic.partitions.len());
        self.create_topic(name, partitions)
    }

    /// Grows a topic to `total` partitions.
    #[allow(clippy::panic, reason = "a mistake in the test, see above")]
    pub fn add_partitions(&self, name: &TopicName, total: usize) {
        self.change(|c| {
            let topic = c
                .topics
                .get_mut(name)
                .unwrap_or_else(|| panic!("topic {name} does not exist"));
            while topic.partitions.len() < total {
                topic.partitions.push(PartitionLog::new());
            }
        });
    }

    /// Sets what [`Log::topic_config`] answers.
    pub fn set_topic_config(&self, name: &TopicName, config: TopicConfig) {
        self.change(|c| {
            if let Some(topic) = c.topics.get_mut(name) {
                topic.config = config;
            }
        });
    }

    /// Appends a record; returns its offset.
    pub fn append(&self, tp: &TopicPartition, record: MemoryRecord) -> Offset {
        let offset = self.on(tp, |p| p.append(record, None));
        Offset::new(offset).unwrap_or_default()
    }

    /// Appends records with these values.
    pub fn append_values<V: AsRef<[u8]>>(
        &self,
        tp: &TopicPartition,
        values: impl IntoIterator<Item = V>,
    ) {
        for value in values {
            self.append(tp, MemoryRecord::value(value));
        }
    }

    /// Begins a transaction.
    pub fn begin(&self) -> Transaction {
        self.change(|c| {
            c.transactions += 1;
            Transaction(c.transactions)
        })
    }

    /// Appends a record in a transaction; it holds the end back until that is finished.
    pub fn append_in(&self, txn: Transaction, tp: &TopicPartition, record: MemoryRecord) -> Offset {
        let offset = self.on(tp, |p| p.append(record, Some(txn)));
        Offset::new(offset).unwrap_or_default()
    }

    /// Commits: one control record in every partition that the transaction wrote to.
    pub fn commit(&self, txn: Transaction) {
        self.finish(txn, true);
    }

    /// Aborts: one control record likewise; its rows are visible to nobody under `read_committed`.
    pub fn abort(&self, txn: Transaction) {
        self.finish(txn, false);
    }

    fn finish(&self, txn: Transaction, commit: bool) {
        self.change(|c| {
            for topic in c.topics.values_mut() {
                for partition in &mut topic.partitions {
                    partition.finish(txn, commit);
                }
            }
        });
    }

    /// Compaction: removes the rows that `gone` picks (outside of transactions); their offsets stay as holes.
    pub fn compact(&self, tp: &TopicPartition, gone: impl Fn(i64, &MemoryRecord) -> bool) {
        self.on(tp, |p| p.remove(gone));
    }

    /// So many offsets without rows at the end (control records of anything).
    pub fn skip_offsets(&self, tp: &TopicPartition, count: u32) {
        self.on(tp, |p| p.skip(i64::from(count)));
    }

    /// Retention or `DeleteRecords`: the log starts at `before` from now on.
    pub fn delete_records(&self, tp: &TopicPartition, before: Offset) {
        self.on(tp, |p| p.delete_before(before.get()));
    }

    /// An unclean election: the log ends at `end`, and a new leader epoch begins there.
    pub fn truncate(&self, tp: &TopicPartition, end: Offset) {
        self.on(tp, |p| p.truncate(end.get()));
    }

    /// A clean election: a new leader epoch begins.
    pub fn bump_epoch(&self, tp: &TopicPartition) {
        self.on(tp, PartitionLog::bump_epoch);
    }

    /// Closes a topic, or opens it again: while closed it may neither be described nor read, whether it exists or not.
    pub fn deny(&self, topic: &TopicName, is_denied: bool) {
        self.change(|c| {
            if is_denied {
                c.denied.insert(topic.clone());
            } else {
                c.denied.remove(topic);
            }
        });
    }

    /// Nobody leads the partition any more: it is described, but not answered for, and silent to readers.
    pub fn lose_leader(&self, tp: &TopicPartition) {
        self.change(|c| c.leaderless.insert(tp.clone()));
    }

    /// Ends [`MemoryLog::lose_leader`]: the log is as it was.
    pub fn regain_leader(&self, tp: &TopicPartition) {
        self.change(|c| c.leaderless.remove(tp));
    }

    /// The next poll of a reader that has this partition tells this fault (once).
    pub fn fault(&self, tp: &TopicPartition, fault: PartitionFault) {
        self.change(|c| c.faults.insert(tp.clone(), fault));
    }

    /// Asks `hook` before every request; what it returns is the answer. Replaces the hook before.
    pub fn intercept(&self, hook: impl FnMut(Request) -> Option<LogError> + Send + 'static) {
        self.change(|c| c.interceptor = Some(Box::new(hook)));
    }

    /// Ends [`MemoryLog::intercept`].
    pub fn stop_intercepting(&self) {
        self.change(|c| c.interceptor = None);
    }

    /// A group's members, in the order in which they joined.
    pub fn members(&self, group: &str) -> Vec<u64> {
        self.change(|c| c.groups.get(group).map(Group::members).unwrap_or_default())
    }

    /// What the group gave to a member.
    pub fn owned(&self, group: &str, member: u64) -> Vec<TopicPartition> {
        self.change(|c| {
            c.groups
                .get(group)
                .map(|g| g.owned(member))
                .unwrap_or_default()
        })
    }

    /// Throws a member out: others may have its partitions at once. It reads on until it hears of it (lost), answers,
    /// and joins again.
    pub fn expel(&self, group: &str, member: u64) {
        self.change(|c| {
            if let Some(group) = c.groups.get_mut(group) {
                group.expel(member);
            }
        });
    }

    /// Whether a member is kept from hearing of group changes: a zombie while it was expelled.
    pub fn deafen(&self, group: &str, member: u64, deaf: bool) {
        self.change(|c| {
            if let Some(group) = c.groups.get_mut(group) {
                group.deafen(member, deaf);
            }
        });
    }

    /// What [`crate::LogReader::mirror`] wrote for a group.
    pub fn mirrored(&self, group: &str, tp: &TopicPartition) -> Option<Offset> {
        self.change(|c| c.mirrored.get(&(group.to_owned(), tp.clone())).copied())
    }

    fn ask<T>(&self, request: Request, answer: impl FnOnce(&Cluster) -> T) -> Result<T, LogError> {
        let mut cluster = self.shared.lock();
        cluster.allow(request)?;
        Ok(answer(&cluster))
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn cluster_id(&self) -> Result<Option<String>, LogError> {
        self.ask(Request::ClusterId, |c| c.id.clone())
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        self.ask(Request::Topics, |c| {
            c.topics
                .keys()
                .filter_map(|name| c.info(name)?.ok())
                .collect()
        })
    }

    async fn describe(
        &self,
        topics: &[TopicName],
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, LogError>>, LogError> {
        self.ask(Request::Describe, |c| {
            topics
                .iter()
                .filter_map(|name| Some((name.clone(), c.info(name)?)))
                .collect()
        })
    }

    async fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        self.ask(Request::Bounds, |c| {
            c.refuse(partitions.iter())?;
            Ok(partitions
                .iter()
                .filter_map(|tp| Some((tp.clone(), c.led(tp)?.bounds(isolation))))
                .collect())
        })?
    }

    async fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        at: Millis,
    ) -> Result<BTreeMap<TopicPartition, OffsetAtTime>, LogError> {
        self.ask(Request::OffsetsAt, |c| {
            if let Some(tp) = partitions.iter().find(|tp| c.denied.contains(&tp.topic)) {
                return Err(denied(&tp.topic));
            }
            if let Some(tp) = partitions.iter().find(|tp| c.leaderless.contains(tp)) {
                return Err(LogError::Unavailable {
                    what: "offsets at a time".to_owned(),
                    detail: format!("{tp} has no leader"),
                });
            }
            Ok(partitions
                .iter()
                .filter_map(|tp| Some((tp.clone(), c.partition(tp)?.at_time(at)?)))
                .collect())
        })?
    }

    async fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
        self.ask(Request::EpochEnds, |c| {
            c.refuse(partitions.iter().map(|(tp, _)| tp))?;
            Ok(partitions
                .iter()
                .filter_map(|(tp, epoch)| Some((tp.clone(), c.led(tp)?.epoch_end(*epoch))))
                .collect())
        })?
    }

    async fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError> {
        self.ask(Request::TopicConfig, |c| {
            if c.denied.contains(topic) {
                return Err(denied(topic));
            }
            let found = c.topics.get(topic).map(|t| t.config.clone());
            found.ok_or_else(|| LogError::UnknownTopic(topic.as_str().to_owned()))
        })?
    }

    async fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError> {
        let mut cluster = self.shared.lock();
        cluster.allow(Request::Open)?;
        let group = match &options.membership {
            Membership::Alone => None,
            Membership::Group { group, topics } => Some((group.clone(), topics.clone())),
        };
        cluster.readers_opened += 1;
        let id = cluster.readers_opened;
        let group = group.map(|(name, topics)| {
            cluster
                .groups
                .entry(name.clone())
                .or_default()
                .join(id, &topics);
            name
        });
        drop(cluster);
        self.shared.changed.notify_waiters();
        Ok(Box::new(MemoryReader::new(
            Arc::clone(&self.shared),
            id,
            group,
            options,
        )))
    }
}

#[cfg(test)]
mod tests;
