//! Where a job's rows go, each way exactly once.
//!
//! | sink | what is atomic | what recovery reads | what stops a zombie |
//! |---|---|---|---|
//! | [`mod@file`] | the replacing of the marker beside the file | the marker; the file is cut back to the length it names | a lock on the file |
//! | [`kafka`] | a transaction that holds rows and marker | the marker in the topic `everlog.jobs`, after the transactional id was taken over | the transactional id |
//! | iceberg | a commit of the table's metadata | the marker in the snapshot's summary | the commit's requirement on its parent |
//!
//! The rows of a job are one sequence, the same in every run, and an epoch's file holds a numbered piece of it. So a sink
//! needs to know one number: how many rows it holds. [`next_step`] decides by that number alone, and it is why committing an epoch
//! twice, by whichever process, does no harm.

pub mod file;
pub mod iceberg;
pub mod kafka;
mod lines;

use std::fmt;

use arrow_array::RecordBatch;
use async_trait::async_trait;
use everlog_common::Positions;
use serde::{Deserialize, Serialize};

use crate::state::Epoch;

pub use lines::{LinesError, TextLines};

/// Which of an epoch's outputs a sink takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// The query's rows.
    Rows,
    /// Records that came too late.
    Late,
    /// Records that could not be decoded, or have no usable event time.
    Dead,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rows, Self::Late, Self::Dead];

    /// As it is written in names and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Late => "late",
            Self::Dead => "dead",
        }
    }

    /// What of an epoch goes there.
    pub fn of(self, epoch: &Epoch) -> &RecordBatch {
        match self {
            Self::Rows => &epoch.rows,
            Self::Late => &epoch.late,
            Self::Dead => &epoch.dead,
        }
    }

    /// How many rows went there before an epoch.
    pub fn before(self, epoch: &Epoch) -> u64 {
        match self {
            Self::Rows => epoch.rows_before,
            Self::Late => epoch.late_before,
            Self::Dead => epoch.dead_before,
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a sink's last commit says of itself. Recovery believes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The job.
    pub job: String,
    /// Its version.
    pub version: String,
    /// The last epoch that brought rows.
    pub epoch: u64,
    /// Rows so far, this epoch's included.
    pub rows: u64,
    /// Where the job is in its source after that epoch.
    #[serde(with = "crate::state::epoch::positions")]
    pub positions: Positions,
    /// What computed the rows.
    pub engine: String,
}

impl Marker {
    /// What a sink for `channel` says after `epoch`.
    pub fn after(epoch: &Epoch, channel: Channel) -> Self {
        Self {
            job: epoch.job.name.clone(),
            version: epoch.job.version.clone(),
            epoch: epoch.number,
            rows: channel.before(epoch) + channel.of(epoch).num_rows() as u64,
            positions: epoch.positions.clone(),
            engine: epoch.engine.clone(),
        }
    }
}

/// What a sink does about an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It holds all of its rows: nothing.
    Done,
    /// They come next: commit them.
    Append,
}

/// Decides it by what the sink holds. An epoch without rows for the sink is done.
pub fn next_step(
    held: Option<&Marker>,
    epoch: &Epoch,
    channel: Channel,
) -> Result<Step, SinkError> {
    let held = held.map_or(0, |marker| marker.rows);
    let before = channel.before(epoch);
    let after = before + channel.of(epoch).num_rows() as u64;
    if held >= after {
        Ok(Step::Done)
    } else if held == before {
        Ok(Step::Append)
    } else {
        Err(SinkError::OutOfStep {
            channel,
            held,
            epoch: epoch.number,
            before,
            after,
        })
    }
}

/// Where rows go. What [`committed`](Self::committed) says is what recovery believes.
#[async_trait]
pub trait Sink: Send {
    /// Which of an epoch's outputs it takes.
    fn channel(&self) -> Channel {
        Channel::Rows
    }

    /// Its name for messages, such as `kafka:TOPIC`.
    fn target(&self) -> String;

    /// What it holds: read back from where the rows are, not remembered. None: nothing was ever committed.
    async fn committed(&mut self) -> Result<Option<Marker>, SinkError>;

    /// Commits an epoch's rows and its marker as one, durably. An epoch that it holds already is no error and changes nothing.
    /// Where the outcome of an attempt is not known, it finds out. Not cancel-safe: after a dropped call open it anew.
    async fn commit(&mut self, epoch: &Epoch) -> Result<(), SinkError>;
}

/// Why a sink failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// Reading or writing failed.
    #[error("output {target}: cannot {doing}")]
    Io {
        /// What is written to.
        target: String,
        /// What was to be done.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The target is not fit, or not what was left there.
    #[error("output {target}: {what}")]
    Target {
        /// What is written to.
        target: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The cluster, or the client, failed.
    #[error("output {target}: cannot {doing}: {detail}")]
    Kafka {
        /// What is written to.
        target: String,
        /// What was to be done.
        doing: &'static str,
        /// What the client said.
        detail: String,
    },
    /// Another process took over.
    #[error(
        "output {target}: another process runs job {job} version {version} and took over; this one ends, nothing is lost or doubled"
    )]
    Fenced {
        /// What is written to.
        target: String,
        /// The job.
        job: String,
        /// Its version.
        version: String,
    },
    /// An earlier process has not ended yet.
    #[error(
        "output {target}: another process still writes it: an earlier one of this job ends at its next checkpoint, wait for that and start again"
    )]
    InUse {
        /// What is written to.
        target: String,
    },
    /// The rows cannot be written as they are.
    #[error("output {target}: {source}")]
    Lines {
        /// What is written to.
        target: String,
        /// What cannot be written.
        source: LinesError,
    },
    /// What the sink holds is neither the beginning nor the end of an epoch.
    #[error(
        "the output for {channel} holds {held} rows, epoch {epoch} brings rows {before} to {after}: the output was changed, or state and output are not of one run; begin the job anew under another version"
    )]
    OutOfStep {
        /// Which output.
        channel: Channel,
        /// Rows that it holds.
        held: u64,
        /// The epoch.
        epoch: u64,
        /// Rows before the epoch.
        before: u64,
        /// Rows after it.
        after: u64,
    },
    /// A table refused, or could not be reached.
    #[error("output {target}: {source}")]
    Table {
        /// What is written to.
        target: String,
        /// The exit status: 1 may pass, 2 not valid, 4 corrupt, 5 another process or a foreign change.
        status: u8,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Anything else that a sink reports.
    #[error("output {target}: cannot {doing}")]
    Other {
        /// What is written to.
        target: String,
        /// What was to be done.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime is shutting down.
    #[error("the output was stopped")]
    Stopped,
}

impl SinkError {
    /// The exit status that stands for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Target { .. } => 2,
            Self::OutOfStep { .. } => 4,
            Self::Fenced { .. } => 5,
            Self::Table { status, .. } => *status,
            Self::Io { .. }
            | Self::Kafka { .. }
            | Self::InUse { .. }
            | Self::Lines { .. }
            | Self::Other { .. }
            | Self::Stopped => 1,
        }
    }
}
