//! Why an operation on the archive failed, and what its caller does about it.

use everlog_common::{Millis, Partition, TopicName};

use crate::catalog::{CatalogError, CatalogErrorKind};
use crate::manifests::ManifestError;
use crate::schema::SchemaError;
use crate::storage::{StorageError, StorageErrorKind};
use crate::summary::LedgerProblem;

/// What a caller does about an [`ArchiveError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveErrorKind {
    /// Nothing was changed; the same call may succeed later: wait, with backoff.
    Transient,
    /// Somebody else changed the table: stop the topic until an operator has looked (exit status 5).
    ForeignChange,
    /// Stored data breaks a rule: stop the topic, page somebody (exit status 4).
    Corrupt,
    /// The request or the configuration is wrong and stays so.
    Invalid,
    /// The request's files have become too old to be committed safely: drop them, and read the rows again from the ledger.
    Stale,
    /// Credentials are missing, wrong or not sufficient.
    Denied,
    /// The table's name belongs to another topic.
    NameClash,
}

/// Why an operation on the archive failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The catalog failed.
    #[error("table {table}: {doing}")]
    Catalog {
        /// The table.
        table: String,
        /// What was to be done.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: CatalogError,
    },
    /// The object store failed.
    #[error("table {table}: {doing}")]
    Storage {
        /// The table.
        table: String,
        /// What was to be done.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: StorageError,
    },
    /// A file that the table's metadata names is gone.
    #[error(
        "table {table}: {uri} is missing, though snapshot {snapshot_id} needs it; it was deleted by someone other than everlog, or the snapshot has expired"
    )]
    MissingFile {
        /// The table.
        table: String,
        /// The file.
        uri: String,
        /// A snapshot that refers to it.
        snapshot_id: i64,
    },
    /// A file of the table's metadata cannot be read, or contradicts the rest.
    #[error("table {table}: {what}")]
    Corrupt {
        /// The table.
        table: String,
        /// What is wrong, and where.
        what: String,
        /// What was noticed first.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Somebody else changed the table's rows or its history.
    #[error(
        "table {table}: {what}; roll the table back to the ledger's snapshot, or take it as it is with `everlog archive --accept {accept}`",
        accept = snapshot_id.map_or_else(|| "SNAPSHOT".to_owned(), |id| id.to_string())
    )]
    ForeignChange {
        /// The table.
        table: String,
        /// The snapshot that is not ours; none where main has none.
        snapshot_id: Option<i64>,
        /// Its operation, or `rollback`.
        operation: String,
        /// What happened.
        what: String,
    },
    /// Somebody else changed the table's columns, so that an archive cannot be kept in them.
    #[error("table {table}: another engine changed its schema")]
    SchemaChanged {
        /// The table.
        table: String,
        /// What is wrong with it, and the way on.
        #[source]
        source: SchemaError,
    },
    /// The table was dropped, or dropped and made anew, while this process used it.
    #[error("table {table}: {what}; restart everlog to archive into the table that is there now")]
    Replaced {
        /// The table.
        table: String,
        /// What happened.
        what: String,
    },
    /// Another topic has the name already.
    #[error(
        "topic {topic} cannot be archived: its table {table} belongs to topic {owner}; archive one of them into another namespace"
    )]
    NameClash {
        /// The topic asked for.
        topic: TopicName,
        /// The table.
        table: String,
        /// Whose table it is.
        owner: String,
    },
    /// There is a table of that name that everlog did not make.
    #[error(
        "topic {topic} cannot be archived: table {table} exists and is not an archive (it has no property everlog.topic); choose another namespace"
    )]
    NotAnArchive {
        /// The topic asked for.
        topic: TopicName,
        /// The table.
        table: String,
    },
    /// This machine's clock would put a snapshot into the future.
    #[error(
        "table {table}: nothing is committed, since this machine's clock is {ahead_ms} ms ahead of the reference ({reference:?}); correct the clock"
    )]
    ClockAhead {
        /// The table.
        table: String,
        /// What the catalog or the broker says.
        reference: Millis,
        /// By how much.
        ahead_ms: u64,
    },
    /// Files that waited too long for their commit, so that orphan removal may have taken them, or soon may.
    #[error(
        "table {table}: files written {age_s} s ago are not committed any more ({uri}); their rows are read again"
    )]
    Stale {
        /// The table.
        table: String,
        /// One of the files.
        uri: String,
        /// How old they are.
        age_s: u64,
    },
    /// The caller asked for something that cannot be right.
    #[error("table {table}: {what}")]
    Invalid {
        /// The table.
        table: String,
        /// What is wrong.
        what: String,
    },
    /// A commit was tried as often as it is, and always met a competing commit, or a catalog that was busy.
    #[error("table {table}: {attempts} attempts to commit came to nothing: {}", contended_by(last.is_some()))]
    Contended {
        /// The table.
        table: String,
        /// How often it was tried.
        attempts: u32,
        /// Why the last was refused; none: another commit was first.
        #[source]
        last: Option<CatalogError>,
    },
    /// The table cannot be used in its present form.
    #[error("table {table}: {what}")]
    Unsupported {
        /// The table.
        table: String,
        /// What, and what to do.
        what: String,
    },
    /// A commit's advance and its files do not belong together.
    #[error("table {table}: partition {partition}: {what}")]
    Inconsistent {
        /// The table.
        table: String,
        /// The partition.
        partition: Partition,
        /// What differs.
        what: String,
    },
}

fn contended_by(refused: bool) -> &'static str {
    if refused {
        "the catalog refused them for now"
    } else {
        "another writer or engine is changing the table all the time"
    }
}

impl ArchiveError {
    /// What the caller does about it.
    pub fn kind(&self) -> ArchiveErrorKind {
        match self {
            Self::Catalog { source, .. } => match source.kind() {
                CatalogErrorKind::Transient | CatalogErrorKind::Unknown => {
                    ArchiveErrorKind::Transient
                }
                CatalogErrorKind::Unauthorized => ArchiveErrorKind::Denied,
                CatalogErrorKind::NotFound | CatalogErrorKind::Invalid => ArchiveErrorKind::Invalid,
                CatalogErrorKind::Corrupt => ArchiveErrorKind::Corrupt,
            },
            Self::Storage { source, .. } => match source.kind() {
                StorageErrorKind::Transient => ArchiveErrorKind::Transient,
                StorageErrorKind::NotFound | StorageErrorKind::Corrupt => ArchiveErrorKind::Corrupt,
                StorageErrorKind::Unauthorized => ArchiveErrorKind::Denied,
                StorageErrorKind::Invalid => ArchiveErrorKind::Invalid,
            },
            Self::ClockAhead { .. } | Self::Contended { .. } => ArchiveErrorKind::Transient,
            Self::Stale { .. } => ArchiveErrorKind::Stale,
            Self::ForeignChange { .. } | Self::SchemaChanged { .. } | Self::Replaced { .. } => {
                ArchiveErrorKind::ForeignChange
            }
            Self::MissingFile { .. } | Self::Corrupt { .. } => ArchiveErrorKind::Corrupt,
            Self::NameClash { .. } | Self::NotAnArchive { .. } => ArchiveErrorKind::NameClash,
            Self::Invalid { .. } | Self::Unsupported { .. } | Self::Inconsistent { .. } => {
                ArchiveErrorKind::Invalid
            }
        }
    }

    /// A problem with a manifest, as an error about this table.
    pub(crate) fn of_manifest(table: &str, snapshot_id: i64, problem: ManifestError) -> Self {
        let table = table.to_owned();
        match problem {
            ManifestError::Storage { doing, source, .. } => Self::Storage {
                table,
                doing: if doing == "read" {
                    "cannot read a manifest"
                } else {
                    "cannot write a manifest"
                },
                source,
            },
            ManifestError::Missing { uri } => Self::MissingFile {
                table,
                uri,
                snapshot_id,
            },
            ManifestError::Corrupt { .. } => Self::Corrupt {
                table,
                what: format!("snapshot {snapshot_id}: {problem}"),
                source: Some(Box::new(problem)),
            },
            ManifestError::Refused { .. } => Self::Invalid {
                table,
                what: problem.to_string(),
            },
        }
    }

    /// A problem with the ledger, as an error about this table.
    pub(crate) fn of_ledger(table: &str, problem: LedgerProblem) -> Self {
        let table = table.to_owned();
        match problem {
            LedgerProblem::ForeignChange {
                snapshot_id,
                operation,
                what,
            } => Self::ForeignChange {
                table,
                snapshot_id,
                operation,
                what,
            },
            LedgerProblem::NoSuchSnapshot { .. } | LedgerProblem::NoLedger { .. } => {
                Self::Invalid {
                    table,
                    what: problem.to_string(),
                }
            }
            LedgerProblem::Unreadable { .. }
            | LedgerProblem::Disagreement { .. }
            | LedgerProblem::RowsUnknown { .. } => Self::Corrupt {
                table,
                what: problem.to_string(),
                source: Some(Box::new(problem)),
            },
        }
    }
}
