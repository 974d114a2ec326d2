//! Rows encoded as data files, and stored.

use everlog_common::{Ids, Millis, TopicName};

use crate::catalog::LoadedTable;
use crate::files::{EncodedFile, PartitionRows};
use crate::schema::SchemaError;
use crate::storage::{Storage, StorageError, StorageErrorKind};

/// One file shall have so many bytes, unless configured.
pub const FILE_BYTES_TARGET: u64 = 32 << 20;

/// What a commit writes.
#[derive(Debug)]
pub struct WriteRequest<'a> {
    /// The table, as the commit's parent has it.
    pub table: &'a LoadedTable,
    /// Where its files go.
    pub storage: Storage,
    /// The topic.
    pub topic: TopicName,
    /// The commit's time.
    pub archived_at: Millis,
    /// Ascending by (generation, partition), each at most once; those without rows go into no file.
    pub rows: Vec<PartitionRows>,
    /// A file ends with the row group that brings it to so many bytes.
    pub file_bytes_target: u64,
}

/// Why rows could not be stored. Nothing of the commit is in the table; what was stored is left to orphan removal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The table is not what everlog writes to.
    #[error("table {table} cannot be written")]
    Schema {
        /// The table.
        table: String,
        /// What is wrong with it.
        #[source]
        source: SchemaError,
    },
    /// The table's partition spec asks for what a commit does not have one value of.
    #[error("table {table} cannot be written: partition field `{field}`: {message}")]
    PartitionField {
        /// The table.
        table: String,
        /// The field of its partition spec.
        field: String,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// The rows are not what they must be: a bug of the caller.
    #[error("rows of partition {partition} cannot be written: {what}")]
    Rows {
        /// The partition.
        partition: i32,
        /// Which rule they break.
        what: String,
    },
    /// The rows cannot be encoded.
    #[error("data file {path} cannot be encoded: {what}")]
    Encode {
        /// The file that was being written.
        path: String,
        /// Why.
        what: String,
    },
    /// The object store failed.
    #[error("data file {path} cannot be stored")]
    Storage {
        /// The file that was being written.
        path: String,
        /// What went wrong.
        #[source]
        source: StorageError,
    },
    /// The runtime is shutting down.
    #[error("writing was stopped")]
    Stopped,
}

impl WriteError {
    /// What the caller can do about it.
    pub fn kind(&self) -> StorageErrorKind {
        match self {
            Self::Storage { source, .. } => source.kind(),
            Self::Stopped => StorageErrorKind::Transient,
            Self::Schema { .. }
            | Self::PartitionField { .. }
            | Self::Rows { .. }
            | Self::Encode { .. } => StorageErrorKind::Invalid,
        }
    }
}

/// Encodes the rows and stores them as files, in order; none where there are no rows.
#[allow(clippy::unused_async, reason = "the writer lands next")]
pub async fn write_files(
    _request: WriteRequest<'_>,
    _ids: &dyn Ids,
) -> Result<Vec<EncodedFile>, WriteError> {
    Err(WriteError::Stopped)
}
