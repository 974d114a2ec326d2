//! Why a job ended, and the exit status that stands for it.

use everlog_common::{Generation, Offset, Partition, TopicName};
use everlog_decode::registry::RegistryError as SchemaRegistryError;
use everlog_decode::{DecodeError, SchemaError};
use everlog_engine::{EngineError, Refusal};
use everlog_replayer::ReplayError;

use crate::job::SecretError;
use crate::registry::RegistryError;
use crate::sink::SinkError;
use crate::state::{CheckpointError, StoreError};

/// Why a job ended. After any of them it goes on from its last checkpoint when it is started again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The query is refused.
    #[error("job {job}: {source}")]
    Query {
        /// The job and its version.
        job: String,
        /// Why.
        source: Refusal,
    },
    /// The query has no equivalent on Flink.
    #[error(
        "job {job}: there is no Flink program for it: {}{}",
        why.reason,
        why.instead.as_ref().map(|instead| format!("; {instead}")).unwrap_or_default()
    )]
    Flink {
        /// The job and its version.
        job: String,
        /// Why.
        why: Refusal,
    },
    /// A column that the sink cannot have.
    #[error("job {job}: sink.{option} names the column {name}, {what}")]
    Column {
        /// The job and its version.
        job: String,
        /// `key` or `timestamp`.
        option: &'static str,
        /// The column.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// Names that cannot be part of a path.
    #[error("{0}")]
    Name(String),
    /// A secret is not where the job file says.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The schema registry cannot be asked.
    #[error(transparent)]
    SchemaRegistry(#[from] SchemaRegistryError),
    /// The subject's schema cannot be read by.
    #[error("subject {subject}: {source}")]
    Schema {
        /// The subject.
        subject: String,
        /// What is wrong.
        source: SchemaError,
    },
    /// The registry of versions.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// State, or what it is saved in.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An output.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// Reading the topic.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A bound in the live log, and no Kafka.
    #[error(
        "topic {0}: the job reads Kafka, which is not configured: give [kafka], or --until snapshot"
    )]
    NoKafka(TopicName),
    /// The engine cannot go on.
    #[error("job {job}: {source}")]
    Engine {
        /// The job and its version.
        job: String,
        /// Why.
        source: EngineError,
    },
    /// Values cannot be decoded at all: not about one record.
    #[error("job {job}: {source}")]
    Decode {
        /// The job and its version.
        job: String,
        /// Why.
        source: DecodeError,
    },
    /// A record that cannot be used, and `on_error = "stop"`.
    #[error(
        "topic {topic} generation {generation} partition {partition} offset {offset}: {why}; the job has on_error = \"stop\": mend the job, or let such records go to dead_letter"
    )]
    BadRecord {
        /// The topic.
        topic: TopicName,
        /// The era.
        generation: Generation,
        /// The partition.
        partition: Partition,
        /// The record's offset.
        offset: Offset,
        /// What is wrong with it.
        why: String,
    },
    /// What a checkpoint says of the run is not readable.
    #[error(
        "job {job}: the progress in its newest epoch cannot be read ({what}): was it written by a newer everlog?"
    )]
    Progress {
        /// The job and its version.
        job: String,
        /// What is wrong.
        what: String,
    },
    /// Rows of one epoch do not fit together.
    #[error("job {job}: the rows of an epoch do not fit together: please report this")]
    Rows {
        /// The job and its version.
        job: String,
        /// What arrow says.
        #[source]
        source: arrow_schema::ArrowError,
    },
    /// The orderly end took too long.
    #[error(
        "job {job}: its last checkpoint was not done {seconds} s after it was asked to end; nothing is lost, it goes on from the one before"
    )]
    EndTimeout {
        /// The job and its version.
        job: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A task ended early: the runtime is shutting down, or there is a bug.
    #[error("{0} was stopped")]
    Stopped(&'static str),
}

impl From<CheckpointError> for RunError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Store(error) => Self::Store(error),
            CheckpointError::Sink(error) => Self::Sink(error),
        }
    }
}

impl RunError {
    /// The exit status that stands for it: 1 other, 2 usage, 3 a gap, 4 corrupt data, 5 another process.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Query { .. }
            | Self::Flink { .. }
            | Self::Column { .. }
            | Self::Name(_)
            | Self::Secret(_)
            | Self::Schema { .. }
            | Self::NoKafka(_) => 2,
            Self::SchemaRegistry(error) => match error {
                SchemaRegistryError::Unavailable { .. } | SchemaRegistryError::Cache { .. } => 1,
                _ => 2,
            },
            Self::Registry(error) => error.exit_status(),
            Self::Store(error) => error.exit_status(),
            Self::Sink(error) => error.exit_status(),
            Self::Replay(error) => error.exit_status(),
            Self::Engine { source, .. } => match source {
                EngineError::TwoPartitions { .. }
                | EngineError::OtherQuery { .. }
                | EngineError::Output { .. }
                | EngineError::Drained => 2,
                _ => 1,
            },
            Self::BadRecord { .. } | Self::Progress { .. } => 4,
            Self::Decode { .. }
            | Self::Rows { .. }
            | Self::EndTimeout { .. }
            | Self::Stopped(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_the_job_each_time_is_not_to_be_started_again() {
        let status = |source| {
            let job = "sessions-v1".to_owned();
            RunError::Engine { job, source }.exit_status()
        };
        let output = EngineError::Output {
            row: "key0 a".to_owned(),
            reason: "Divide by zero error".to_owned(),
        };
        assert_eq!(status(output), 2);
        assert_eq!(status(EngineError::Drained), 2);
        assert_eq!(status(EngineError::Unassigned(3)), 1);
    }
}
