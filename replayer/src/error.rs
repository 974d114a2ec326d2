//! Why a replay stopped, and the exit status that stands for it.

use everlog_common::{Gap, Generation, Partition, Position, TopicName};
use everlog_kafka::{LogError, PartitionFault};
use everlog_table::archive::{ArchiveError, ArchiveErrorKind};
use everlog_table::scan::ScanError;
use everlog_table::snapshot::PinError;
use everlog_table::storage::StorageErrorKind;

use crate::handoff::SeamError;
use crate::history::merger::MergeError;
use crate::request::RequestError;

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The request cannot be meant.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no table of this topic.
    #[error(
        "topic {topic} is not archived in namespace {namespace}: check both names, or start the archiver for it"
    )]
    NotArchived {
        /// The topic.
        topic: TopicName,
        /// Where it was looked for.
        namespace: String,
    },
    /// A partition that was asked for by number is in neither tier.
    #[error("--partitions: topic {topic} has no partition {partition}")]
    NoSuchPartition {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
    },
    /// The replay ends in the live log, and no Kafka was given.
    #[error(
        "topic {0}: the replay goes on in Kafka, which is not configured: give [kafka], or --until snapshot"
    )]
    NoKafka(TopicName),
    /// Resumed with a snapshot older than the positions.
    #[error(
        "partition {partition} is at {position}, generation {newest} is the newest of the snapshot asked for: resume with the current snapshot"
    )]
    AheadOfSnapshot {
        /// The partition.
        partition: Partition,
        /// Where it is.
        position: Position,
        /// The snapshot's newest generation.
        newest: Generation,
    },
    /// A generation that was asked for by number is in neither tier.
    #[error("--from: topic {topic} has no generation {generation}, its newest is {newest}")]
    NoSuchGeneration {
        /// The topic.
        topic: TopicName,
        /// What was asked for.
        generation: Generation,
        /// The newest one.
        newest: Generation,
    },
    /// A position that neither the archive nor the live log has reached.
    #[error(
        "topic {topic} partition {partition}: offset {offset} is beyond the end, {end}: the log was truncated, or the position is another log's"
    )]
    BeyondTheEnd {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// The position.
        offset: everlog_common::Offset,
        /// The end of both tiers.
        end: everlog_common::Offset,
    },
    /// The archive failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The snapshot cannot be pinned or planned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A data file cannot be read.
    #[error("{holds}")]
    Scan {
        /// What the file holds, by the manifest.
        holds: String,
        /// What went wrong.
        #[source]
        source: ScanError,
    },
    /// A data file that the snapshot lists is not there.
    #[error(
        "{holds}: the file is gone; if the snapshot was expired while it was read, read the newest one, or hold it by a tag or a lease; else the file is lost and has to be restored"
    )]
    FileGone {
        /// What the file holds, by the manifest.
        holds: String,
        /// What went wrong.
        #[source]
        source: ScanError,
    },
    /// The data files contradict themselves, each other or the ledger.
    #[error("generation {generation}{}", in_files(files))]
    Data {
        /// The era.
        generation: Generation,
        /// The files concerned, where it is known.
        files: Vec<String>,
        /// What is wrong.
        #[source]
        source: MergeError,
    },
    /// A recorded gap, and the request says to stop there.
    #[error("a recorded gap: {0}; pass it with --on-gap pass")]
    Gap(Gap),
    /// Neither tier has what comes next.
    #[error("topic {topic}")]
    Seam {
        /// The topic.
        topic: TopicName,
        /// What is wrong.
        #[source]
        source: SeamError,
    },
    /// The live topic is not there.
    #[error("topic {0} is not in Kafka any more; its archive can be read with --until snapshot")]
    TopicGone(TopicName),
    /// One broker says that the topic was created anew, another that it was not, again and again.
    #[error(
        "the brokers do not agree whether topic {0} was created anew; look at the cluster's health, then replay again"
    )]
    Unsettled(TopicName),
    /// Kafka failed.
    #[error("kafka")]
    Log(#[from] LogError),
    /// A partition of the live log cannot be read.
    #[error("topic {topic} partition {partition}")]
    Fault {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// Why.
        #[source]
        source: PartitionFault,
    },
    /// The live reader handed over other offsets than those that come next: emitting them would lose records.
    #[error(
        "topic {topic} partition {partition}: the live reader went on at {found} instead of {expected}"
    )]
    Skipped {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// Our next offset.
        expected: everlog_common::Offset,
        /// Where the reader was.
        found: everlog_common::Offset,
    },
    /// A task ended early: the runtime is shutting down, or there is a bug.
    #[error("{0} was stopped")]
    Stopped(&'static str),
}

/// The causes of an error, outermost first, as one line.
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Transparent errors repeat themselves.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = inner.source();
    }
    line
}

fn in_files(files: &[String]) -> String {
    match files {
        [] => String::new(),
        [one] => format!(", {one}"),
        many => format!(", {}", many.join(" and ")),
    }
}

impl ReplayError {
    /// The exit status that stands for it: 1 other, 2 usage, 3 a gap, 4 corrupt data, 5 another writer.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Request(_)
            | Self::NoSuchPartition { .. }
            | Self::NoSuchGeneration { .. }
            | Self::NoKafka(_)
            | Self::AheadOfSnapshot { .. } => 2,
            Self::Archive(error) => archive_status(error.kind()),
            Self::Pin(PinError::Vanished { .. }) => 1,
            // Another engine's doing.
            Self::Pin(PinError::DeleteFiles { .. }) => 5,
            Self::Pin(error) => archive_status(error.kind()),
            Self::Scan { source, .. } => match source.kind() {
                StorageErrorKind::Corrupt => 4,
                StorageErrorKind::Invalid
                | StorageErrorKind::NotFound
                | StorageErrorKind::Transient
                | StorageErrorKind::Unauthorized => 1,
            },
            Self::FileGone { .. } | Self::Data { .. } => 4,
            Self::Gap(_) => 3,
            Self::Seam { source, .. } if source.is_gap() => 3,
            Self::Fault {
                source: PartitionFault::Corrupt(_),
                ..
            } => 4,
            Self::Log(LogError::Invalid { .. }) => 2,
            Self::NotArchived { .. }
            | Self::BeyondTheEnd { .. }
            | Self::Seam { .. }
            | Self::TopicGone(_)
            | Self::Unsettled(_)
            | Self::Log(_)
            | Self::Fault { .. }
            | Self::Skipped { .. }
            | Self::Stopped(_) => 1,
        }
    }

    /// Whether a data file or manifest that was there is gone: the snapshot was expired under the reader.
    pub(crate) fn is_vanished(&self) -> bool {
        matches!(
            self,
            Self::FileGone { .. } | Self::Pin(PinError::Vanished { .. })
        )
    }
}

fn archive_status(kind: ArchiveErrorKind) -> u8 {
    match kind {
        ArchiveErrorKind::Transient
        | ArchiveErrorKind::Stale
        | ArchiveErrorKind::Denied
        | ArchiveErrorKind::NameClash => 1,
        ArchiveErrorKind::Invalid => 2,
        ArchiveErrorKind::Corrupt => 4,
        ArchiveErrorKind::ForeignChange => 5,
    }
}
