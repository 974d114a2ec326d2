//! Why the state of a job cannot be kept or used.

use std::path::PathBuf;

use everlog_table::storage::StorageError;

use super::recovery::Refusal;

/// Why the state of a job cannot be kept or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The place of the epochs failed.
    #[error("checkpoint: cannot {doing}")]
    Storage {
        /// What was to be done.
        doing: String,
        /// What went wrong.
        #[source]
        source: StorageError,
    },
    /// A file is not what was written.
    #[error(
        "checkpoint {file}: {what}; bring it back from a copy, or begin the job anew under another version"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// An epoch is too large for one file.
    #[error(
        "checkpoint: epoch {epoch} has {bytes} bytes, at most {max} fit: lower limits.memory or checkpoint.interval"
    )]
    TooLarge {
        /// The epoch.
        epoch: u64,
        /// Its size.
        bytes: u64,
        /// What a file may have.
        max: u64,
    },
    /// Something cannot be encoded.
    #[error("checkpoint: epoch {epoch} cannot be encoded: {what}")]
    Encoding {
        /// The epoch.
        epoch: u64,
        /// Why.
        what: String,
    },
    /// Another process of the job took over.
    #[error(
        "job {job} version {version}: another process took it over at epoch {epoch}; this one ends, nothing is lost or doubled; let one process at a time run a version of a job"
    )]
    Fenced {
        /// The job.
        job: String,
        /// Its version.
        version: String,
        /// The first epoch that is the other's.
        epoch: u64,
    },
    /// Processes take the job over from each other all the time.
    #[error(
        "job {job}: {attempts} attempts to take it over failed, since others took it over; let one process at a time run a version of a job"
    )]
    Contended {
        /// The job and its version.
        job: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// It belongs to another job.
    #[error(
        "checkpoint {folder}: it is of job {its}, this is job {ours}: give each its own checkpoint.location"
    )]
    OtherJob {
        /// Where.
        folder: String,
        /// Whose it is.
        its: String,
        /// Who asks.
        ours: String,
    },
    /// The query is another one.
    #[error(
        "job {job}: its state was made by another query (or source columns, or event time): change job.version, so that the new query begins from its source, beside the old one"
    )]
    OtherQuery {
        /// The job and its version.
        job: String,
    },
    /// What computed the state is another version.
    #[error(
        "job {job}: its state was made by {its}, this is {ours}, which may compute other rows from it: go on with the former release, or change job.version and replay"
    )]
    OtherEngine {
        /// The job and its version.
        job: String,
        /// What made the state.
        its: String,
        /// What asks.
        ours: String,
    },
    /// State and outputs do not belong together, or files are missing.
    #[error("job {job}: {source}")]
    Refused {
        /// The job and its version.
        job: String,
        /// Why.
        source: Refusal,
    },
    /// The local store failed.
    #[error("local state {}: cannot {doing}: {what}", folder.display())]
    Local {
        /// Where.
        folder: PathBuf,
        /// What was to be done.
        doing: &'static str,
        /// What it said.
        what: String,
    },
    /// Another process has the local store open.
    #[error(
        "local state {}: another process still has it: an earlier one of this job ends at its next checkpoint, wait for that and start again", folder.display()
    )]
    LocalInUse {
        /// Where.
        folder: PathBuf,
    },
    /// The runtime is shutting down.
    #[error("the checkpoint was stopped")]
    Stopped,
}

impl StoreError {
    /// The exit status that stands for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::OtherJob { .. } | Self::OtherQuery { .. } | Self::OtherEngine { .. } => 2,
            Self::Corrupt { .. } | Self::Refused { .. } => 4,
            Self::Fenced { .. } | Self::Contended { .. } => 5,
            Self::Storage { .. }
            | Self::TooLarge { .. }
            | Self::Encoding { .. }
            | Self::Local { .. }
            | Self::LocalInUse { .. }
            | Self::Stopped => 1,
        }
    }
}
