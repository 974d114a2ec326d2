//! Why an operation on a job's table failed, and what its caller does about it.

use super::columns::ColumnChange;
use super::decide::Refusal;
use crate::archive::{ArchiveError, ArchiveErrorKind};

/// What a caller does about a [`JobError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobErrorKind {
    /// Nothing was changed, or what was changed is found by the next attempt: try the same again, with backoff.
    Transient,
    /// Another process writes this version, or somebody else changed the table: stop (exit status 5).
    Fenced,
    /// Stored data breaks a rule: stop (exit status 4).
    Corrupt,
    /// The request or the configuration is wrong and stays so (exit status 2).
    Invalid,
    /// Credentials are missing, wrong or not sufficient.
    Denied,
}

/// Why an operation on a job's table failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The table, the catalog or the object store failed.
    #[error(transparent)]
    Table(#[from] ArchiveError),
    /// The table is not this job's.
    #[error(
        "table {table} cannot be the output of job {job}: it belongs to {owner}; choose another `table` in [sink]"
    )]
    OtherJob {
        /// The table.
        table: String,
        /// The job asked for.
        job: String,
        /// Whose it is.
        owner: String,
    },
    /// A version that cannot be one.
    #[error(
        "{version:?} is not a version: give 1 to 100 letters, digits, `.`, `_` or `-`, beginning with a letter or digit, and neither `main` nor beginning with `before-` or `everlog-`"
    )]
    VersionName {
        /// What was given.
        version: String,
    },
    /// The version's columns are not the table's.
    #[error(
        "table {table}: version {version} cannot be a branch of it: {change}; a branch may only add columns: write {version} to a table of its own with `output = \"table\"` in [sink], or put out the column as it is"
    )]
    Columns {
        /// The table.
        table: String,
        /// The version.
        version: String,
        /// What differs.
        change: Box<ColumnChange>,
    },
    /// The version's logic is not what wrote its branch.
    #[error(
        "table {table}: version {version} was written by other logic than this; a changed query is a new version: give it another `version` in [job]"
    )]
    Logic {
        /// The table.
        table: String,
        /// The version.
        version: String,
    },
    /// The version's branch is not where this process left it.
    #[error("table {table}: epoch {epoch} of version {version} was not committed: {refusal}")]
    Fenced {
        /// The table.
        table: String,
        /// The version.
        version: String,
        /// The epoch that was to be committed.
        epoch: u64,
        /// Why not.
        refusal: Refusal,
    },
    /// Somebody else moved main, or wrote to a branch.
    #[error("table {table}: {what}")]
    Foreign {
        /// The table.
        table: String,
        /// What happened, and the way on.
        what: String,
    },
    /// No such version.
    #[error("table {table} has no version {version}; it has {known}")]
    NoVersion {
        /// The table.
        table: String,
        /// The version asked for.
        version: String,
        /// Those that are there.
        known: String,
    },
    /// What was asked for cannot be done in the table's present state.
    #[error("table {table}: {what}")]
    Refused {
        /// The table.
        table: String,
        /// Why, and what to do.
        what: String,
    },
    /// The epoch may or may not be in the table.
    #[error(
        "table {table}: whether epoch {epoch} of version {version} was committed is not known yet: {why}"
    )]
    Unknown {
        /// The table.
        table: String,
        /// The version.
        version: String,
        /// The epoch.
        epoch: u64,
        /// What stood in the way.
        why: String,
    },
}

impl JobError {
    /// What the caller does about it.
    pub fn kind(&self) -> JobErrorKind {
        match self {
            Self::Table(error) => match error.kind() {
                ArchiveErrorKind::Transient | ArchiveErrorKind::Stale => JobErrorKind::Transient,
                ArchiveErrorKind::ForeignChange => JobErrorKind::Fenced,
                ArchiveErrorKind::Corrupt => JobErrorKind::Corrupt,
                ArchiveErrorKind::Invalid | ArchiveErrorKind::NameClash => JobErrorKind::Invalid,
                ArchiveErrorKind::Denied => JobErrorKind::Denied,
            },
            Self::OtherJob { .. }
            | Self::VersionName { .. }
            | Self::Columns { .. }
            | Self::Logic { .. }
            | Self::NoVersion { .. }
            | Self::Refused { .. } => JobErrorKind::Invalid,
            Self::Fenced { .. } | Self::Foreign { .. } => JobErrorKind::Fenced,
            Self::Unknown { .. } => JobErrorKind::Transient,
        }
    }
}
