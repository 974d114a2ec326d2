//! How everlog talks to Kafka: a narrow trait over the log; behind it librdkafka, and a fetch client of everlog's own.
//!
//! ```text
//!   log start                 position            end (LSO)     high watermark
//!      │ deleted below           │ next offset        │  open txn     │
//! ─────┴─────────────────────────┴────────────────────┴───────────────┴──► offsets
//! ```
//!
//! - [`Log`]: what the cluster says (topics, ids, bounds, configuration), and [`Log::open`] for a reader.
//! - [`LogReader`]: batches of one or many partitions from explicit offsets; alone or as a member of a group.
//! - `client`: both on librdkafka. `fetcher`: readers alone, without it. `memory`: both in memory, with retention, truncation, transaction markers,
//!   re-creation and groups, passing the same conformance suite.
//!
//! What the trait never does: decide where to start. Offsets and leader epochs always come from the caller, that is
//! from the ledger; `auto.offset.reset` never decides anything.

pub mod client;
#[cfg(feature = "test-util")]
#[allow(
    clippy::panic,
    clippy::cast_possible_wrap,
    reason = "every case panics when the contract is broken; its numbers are small"
)]
pub mod conformance;
mod fetcher;
pub mod memory;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{
    EventColumns, LogBounds, Millis, Offset, OffsetRange, Partition, TopicId, TopicName,
    TopicPartition,
};

/// Which records a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isolation {
    /// Committed transactions only; the end is the last stable offset.
    ReadCommitted,
    /// Everything; the end is the high watermark.
    ReadUncommitted,
}

impl Isolation {
    /// Kafka's name of it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// What went wrong with a request to the cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No broker reachable, a timeout, a leader moving: worth another try with backoff.
    #[error("{what}: {detail}")]
    Unavailable {
        /// The request.
        what: String,
        /// What the client said.
        detail: String,
    },
    /// The topic (or partition) does not exist.
    #[error("topic {0} does not exist")]
    UnknownTopic(String),
    /// Authentication or authorisation failed.
    #[error("{what}: not allowed: {detail}")]
    Denied {
        /// The request.
        what: String,
        /// What the broker said.
        detail: String,
    },
    /// A property or an argument that cannot work.
    #[error("{what}: {detail}")]
    Invalid {
        /// The property or argument.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The reader's own thread or client ended.
    #[error("the Kafka client ended: {0}")]
    Closed(String),
}

impl LogError {
    /// Whether trying again later may help.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// What the cluster says of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: TopicName,
    /// This incarnation's id; none where the broker knows none.
    pub topic_id: Option<TopicId>,
    /// Its partitions, ascending.
    pub partitions: Vec<Partition>,
}

/// The settings of a topic that everlog looks at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicConfig {
    /// `retention.ms`; none when unlimited or unknown, and where `cleanup.policy` does not contain `delete`: then nothing
    /// is deleted by age or size.
    pub retention: Option<Duration>,
    /// `retention.bytes` per partition; none as with `retention`.
    pub retention_bytes: Option<u64>,
    /// Whether `cleanup.policy` contains `compact`.
    pub compacted: bool,
}

/// The first visible record at or after an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetAtTime {
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp.
    pub timestamp: Millis,
}

/// The cluster and its topics, as far as everlog needs them. Every call is bounded in time.
#[async_trait]
pub trait Log: Send + Sync + Debug {
    /// The cluster's id, where it tells.
    async fn cluster_id(&self) -> Result<Option<String>, LogError>;

    /// Every topic that is not internal, and that may be described, with its id and partitions, ascending by name.
    async fn topics(&self) -> Result<Vec<TopicInfo>, LogError>;

    /// The named topics, each with its own answer; one that does not exist is absent. One request for all.
    ///
    /// A topic that may not be described ([`LogError::Denied`]) may exist or not, and takes nothing from the others.
    async fn describe(
        &self,
        topics: &[TopicName],
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, LogError>>, LogError>;

    /// Log start, end under `isolation`, and high watermark. Batched: one round of requests whatever the number of
    /// partitions, and one partition's trouble is not the others'.
    ///
    /// Absent is a partition that does not exist, and one that was not answered: without a leader, or whose leader is away.
    /// So absent says that nothing is known now, and never that the partition is empty, or gone ([`Log::describe`] tells
    /// that), and one of a topic that may not be described. Where nothing is known of any of them, that may be an error.
    async fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError>;

    /// Per partition the first offset whose timestamp is at or after `at` by the broker's time index; absent where
    /// there is none. A partition that exists and is not answered is an error, since absent would say "none". (The broker's answer may lie before the first *visible* such record: callers filter.)
    async fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        at: Millis,
    ) -> Result<BTreeMap<TopicPartition, OffsetAtTime>, LogError>;

    /// Where the log of `leader_epoch` ended, per partition: below the ledger's `next` means truncated (H10, P12).
    /// Partitions whose epoch the broker does not know are answered with none. Absent, as with [`Log::bounds`], is what does
    /// not exist or was not answered: that is not the same as an epoch that is not known.
    async fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError>;

    /// Retention and cleanup policy.
    async fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError>;

    /// A reader with its own connections, threads and memory bound.
    async fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError>;
}

/// How a reader gets its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// The caller assigns; nobody else is asked.
    Alone,
    /// A member of a consumer group (cooperative); the group tells by [`ReaderEvent::Assigned`] and
    /// [`ReaderEvent::Revoked`].
    ///
    /// Topics are names. Expressions would mean something else to each client and broker (POSIX's, RE2's, or ours), and take
    /// in internal topics: who has expressions resolves them, and calls [`LogReader::subscribe`].
    Group {
        /// The group's id.
        group: String,
        /// The topics to share at first; with none, nothing is given before [`LogReader::subscribe`].
        topics: Vec<TopicName>,
    },
}

/// How to read.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// Alone or in a group.
    pub membership: Membership,
    /// What is visible.
    pub isolation: Isolation,
    /// Bound of everything that the reader holds (the client's queues, its own batches), in bytes; one record larger
    /// than that still passes.
    pub memory_bytes: usize,
    /// A batch is handed over when it has waited so long, or is large enough.
    pub linger: Duration,
}

/// Where to start reading a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartAt {
    /// The next offset to deliver.
    pub offset: Offset,
    /// The epoch of the last record before it, where known: lets the broker detect a truncated log.
    pub leader_epoch: Option<i32>,
}

/// Rows of one partition, in offset order.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Where they come from.
    pub source: TopicPartition,
    /// What they cover: from the position before to the position after. Offsets inside without a row are none of
    /// the protocol's (control records, aborted data, compaction).
    pub range: OffsetRange,
    /// The rows; may be none when only the position moved (end of partition behind control records).
    pub columns: EventColumns,
    /// Whether the position after is the log's end, as of the reader's last fetch.
    pub at_end: bool,
}

/// Why a partition cannot be read on. It delivers nothing more until it is assigned again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionFault {
    /// The asked offset is not in the log (below its start or beyond its end): compare with [`Log::bounds`].
    #[error("offset {offset:?} is out of range: {detail}")]
    OutOfRange {
        /// The offset asked for, where the client says it.
        offset: Option<Offset>,
        /// The client's words.
        detail: String,
    },
    /// The log was cut below what was read before (KIP-320).
    #[error("log truncated: {0}")]
    Truncated(String),
    /// Topic or partition is gone.
    #[error("topic or partition is gone: {0}")]
    Gone(String),
    /// Not allowed to read it.
    #[error("not allowed: {0}")]
    Denied(String),
    /// Stored data that the client refuses (CRC, unknown codec).
    #[error("corrupt data in the log: {0}")]
    Corrupt(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What a reader has to tell. Order within one partition is the order of the log.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one event stands for thousands of rows; a box would not be noticed"
)]
pub enum ReaderEvent {
    /// Rows, or a position that moved without rows.
    Fetched(Fetched),
    /// The group gives these; nothing is read until the caller answers by [`LogReader::assign`].
    Assigned(Vec<TopicPartition>),
    /// The group takes these back; the caller commits or drops what it has, then answers by
    /// [`LogReader::unassign`]. `lost`: they belong to somebody else already.
    Revoked {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// No time to commit: the member was thrown out.
        lost: bool,
    },
    /// A partition stopped.
    Fault {
        /// Which.
        partition: TopicPartition,
        /// Why.
        fault: PartitionFault,
    },
}

/// Reads partitions from explicit positions.
///
/// Contract (every implementation passes `conformance`):
/// - per assigned partition, ranges are contiguous from the assigned offset, rows strictly increasing, none lost,
///   none twice, over pause, resume, rebalance and end of partition;
/// - after `unassign` or a fault returns, no more rows of that partition are handed out;
/// - memory stays within [`ReaderOptions::memory_bytes`] plus a small multiple of the largest record, however long
///   the caller does not poll; group membership is kept alive meanwhile;
/// - dropping the reader stops its threads; `close` also leaves the group.
#[async_trait]
pub trait LogReader: Send + Debug {
    /// Waits for events, at most `wait`; an empty answer means that nothing came. Cancel-safe: events not returned are
    /// returned by the next call.
    async fn poll(&mut self, wait: Duration) -> Result<Vec<ReaderEvent>, LogError>;

    /// Adds partitions at explicit positions (re-assigning one that is assigned moves it). Answers
    /// [`ReaderEvent::Assigned`] too, also when it was empty. Where the group is taking a partition back at this moment,
    /// its [`ReaderEvent::Revoked`] wins: once that is answered, the partition is not read.
    async fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), LogError>;

    /// In a group: these topics from now on, and no others. Partitions of topics that are new are given, those of topics
    /// that are left out are taken back, both as the group gets to it. Alone it is refused.
    async fn subscribe(&mut self, topics: &[TopicName]) -> Result<(), LogError>;

    /// Takes partitions away. Answers [`ReaderEvent::Revoked`].
    async fn unassign(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError>;

    /// Stops fetching; the position stays. What was asked for before may still come, one answer of a broker at most.
    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError>;

    /// Goes on exactly where it was paused.
    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError>;

    /// Mirrors positions to the consumer group for lag tools; never read back, best effort.
    async fn mirror(&mut self, positions: &[(TopicPartition, Offset)]) -> Result<(), LogError>;

    /// Bytes held in the reader's own batches and the client's queues, as far as known.
    fn held_bytes(&self) -> usize;

    /// Leaves the group and ends the client's threads; bounded in time.
    async fn close(self: Box<Self>) -> Result<(), LogError>;
}
