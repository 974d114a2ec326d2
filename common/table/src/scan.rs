//! Data files read: footer, then row group by row group, each as runs of one partition.

use std::sync::Arc;

use everlog_common::{EventColumns, Generation, Partition, TopicName};
use parquet::file::metadata::ParquetMetaData;

use crate::files::{FileBounds, FileRange, PlannedFile};
use crate::storage::{Storage, StorageError, StorageErrorKind};

/// Why a data file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The object store failed.
    #[error("data file {path} cannot be fetched")]
    Storage {
        /// The file.
        path: String,
        /// What went wrong.
        #[source]
        source: StorageError,
    },
    /// The file is not what its writer stored, or not what its manifest says.
    #[error("data file {path} is corrupt: {what}")]
    Corrupt {
        /// The file.
        path: String,
        /// What is wrong, and where.
        what: String,
    },
    /// The file is sound, but everlog does not read such files.
    #[error("data file {path} cannot be read: {what}")]
    Unsupported {
        /// The file.
        path: String,
        /// What it is, and the way on.
        what: String,
    },
    /// The runtime is shutting down.
    #[error("reading of data file {path} was stopped")]
    Stopped {
        /// The file.
        path: String,
    },
}

impl ScanError {
    /// What the caller can do about it.
    pub fn kind(&self) -> StorageErrorKind {
        match self {
            Self::Storage { source, .. } => source.kind(),
            Self::Corrupt { .. } => StorageErrorKind::Corrupt,
            Self::Unsupported { .. } => StorageErrorKind::Invalid,
            Self::Stopped { .. } => StorageErrorKind::Transient,
        }
    }

    pub(crate) fn corrupt(path: &str, what: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn unsupported(path: &str, what: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}

/// One row group, by its footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowGroupInfo {
    /// Its number in the file.
    pub index: usize,
    /// Rows.
    pub rows: u64,
    /// What has to be fetched to read it.
    pub compressed_bytes: u64,
    /// What its rows weigh unpacked, about.
    pub uncompressed_bytes: u64,
    /// None where the file has no statistics.
    pub bounds: Option<FileBounds>,
}

/// What a file says of itself.
#[derive(Debug, Clone)]
pub struct FileFooter {
    /// What each partition covers, ascending; none in files that another engine wrote.
    pub ranges: Option<Vec<FileRange>>,
    /// The row groups, in file order.
    pub row_groups: Vec<RowGroupInfo>,
    #[allow(dead_code, reason = "read by the decoder")]
    metadata: Arc<ParquetMetaData>,
}

/// Rows of one partition, in file order.
///
/// * Offsets increase strictly. Where they do not, or the partition changes, the next run begins; it may also begin for
///   the size of the run alone.
#[derive(Debug, Clone)]
pub struct DecodedRun {
    /// The topic's era.
    pub generation: Generation,
    /// The partition.
    pub partition: Partition,
    /// The rows; never none.
    pub columns: EventColumns,
}

/// Reads a file's footer, and holds length and row count against the manifest.
#[allow(clippy::unused_async, reason = "the reader lands next")]
pub async fn read_footer(_storage: &Storage, file: &PlannedFile) -> Result<FileFooter, ScanError> {
    Err(ScanError::unsupported(&file.path, "the reader lands next"))
}

/// Fetches and decodes one row group. Checksums and lengths are verified; rows of another topic are refused.
#[allow(clippy::unused_async, reason = "the reader lands next")]
pub async fn read_row_group(
    _storage: &Storage,
    file: &PlannedFile,
    _footer: &FileFooter,
    _row_group: usize,
    _topic: &TopicName,
) -> Result<Vec<DecodedRun>, ScanError> {
    Err(ScanError::unsupported(&file.path, "the reader lands next"))
}
