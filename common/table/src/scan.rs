//! Data files read: footer, then row group by row group, each as runs of one partition.
//!
//! Files may be everlog's own or another engine's: columns are found by field id, in any order; statistics and key-value
//! metadata may be missing; rows may be in any order.
//!
//! Invariants
//! - What is delivered is what was stored: lengths are held against the manifest, page checksums against the pages, and
//!   in everlog's own files a checksum against every byte that is read, before it is decoded.
//! - Bytes that make no sense are an error that names file and place; they cost no more memory than the file's size
//!   allows, and no panic leaves the decoding thread.

mod bounds;
mod columns;
mod decode;
pub(crate) mod guard;
mod open;

use std::sync::Arc;

use everlog_common::{EventColumns, Generation, Partition, TopicName, compute};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;

use crate::files::{FileBounds, FileRange, PlannedFile};
use crate::schema::Column;
use crate::storage::{Storage, StorageError, StorageErrorKind};
use columns::FileColumns;
pub(crate) use decode::{Chunk, Chunks};
use decode::{DecodeError, Fetched};

#[cfg(test)]
pub(crate) use open::parse as check_footer;
pub use open::{read_footer, read_plain_footer};

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
    metadata: ArrowReaderMetadata,
    columns: FileColumns,
    /// The topic of all rows, and the checksums of all column chunks, where everlog wrote the file.
    own: Option<Own>,
}

#[derive(Debug, Clone)]
struct Own {
    topic: String,
    checksums: Vec<u64>,
}

/// What a Parquet file of any table says of itself.
#[derive(Debug, Clone)]
pub struct PlainFooter {
    /// Parquet's own metadata, without a page index: that has no checksum.
    pub parquet: Arc<ParquetMetaData>,
    /// The checksums of all column chunks, row group after row group, where everlog's archiver wrote the file.
    pub checksums: Option<Vec<u64>>,
}

impl FileFooter {
    /// The topic of all rows, where everlog wrote the file.
    pub fn topic(&self) -> Option<&str> {
        self.own.as_ref().map(|own| own.topic.as_str())
    }

    /// The same without what only an archive's files have.
    pub fn into_plain(self) -> PlainFooter {
        PlainFooter {
            parquet: Arc::clone(self.metadata.metadata()),
            checksums: self.own.map(|own| own.checksums),
        }
    }
}

/// Whether a column chunk's bytes are those that its file's footer has the checksum of.
pub fn is_intact(chunk: &[u8], checksum: u64) -> bool {
    crate::footer::checksum(chunk) == checksum
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

/// The columns that make up a record, and say whose it is.
const RECORD: [Column; 11] = [
    Column::Generation,
    Column::Partition,
    Column::Offset,
    Column::Timestamp,
    Column::TimestampType,
    Column::Key,
    Column::Value,
    Column::Headers,
    Column::LeaderEpoch,
    Column::TimestampRaw,
    Column::HeadersRaw,
];

/// Fetches and decodes one row group, on a thread that may block: its runs, in file order. Checksums and lengths are verified;
/// rows of another topic are refused. Where this is dropped, decoding ends with the batch that it is at.
pub async fn read_row_group(
    storage: &Storage,
    file: &PlannedFile,
    footer: &FileFooter,
    row_group: usize,
    topic: &TopicName,
) -> Result<Vec<DecodedRun>, ScanError> {
    let wrong = |what: String| ScanError::corrupt(&file.path, what);
    if let Some(own) = &footer.own
        && own.topic != topic.as_str()
    {
        let (found, topic) = (&own.topic, topic.as_str());
        return Err(wrong(format!("it holds topic {found:?}, not {topic:?}")));
    }
    if row_group >= footer.row_groups.len() {
        return Err(wrong(format!("it has no row group {row_group}")));
    }
    let fetched = fetch(storage, file, footer, row_group, topic).await?;
    let waiting = Arc::new(());
    let awaited = Arc::downgrade(&waiting);
    match compute::spawn(move || decode::run(&fetched, &awaited)).await {
        Ok(Ok(runs)) => Ok(runs),
        Ok(Err(DecodeError::Parquet(ParquetError::NYI(what)))) => {
            Err(ScanError::unsupported(&file.path, what))
        }
        Ok(Err(error)) => Err(wrong(format!("row group {row_group}: {error}"))),
        Err(error) if error.is_panic() => Err(wrong(format!(
            "row group {row_group}: the Parquet decoder panicked"
        ))),
        Err(_) => Err(ScanError::Stopped {
            path: file.path.clone(),
        }),
    }
}

async fn fetch(
    storage: &Storage,
    file: &PlannedFile,
    footer: &FileFooter,
    row_group: usize,
    topic: &TopicName,
) -> Result<Fetched, ScanError> {
    let parquet = footer.metadata.metadata();
    let schema = parquet.file_metadata().schema_descr();
    let mut wanted = RECORD.to_vec();
    if footer.own.is_none() {
        wanted.push(Column::Topic);
    }
    let projection = footer.columns.project(&wanted, schema);
    let chunks = parquet.row_group(row_group).columns();
    let ranges: Vec<std::ops::Range<u64>> = projection
        .leaves
        .iter()
        .map(|leaf| {
            let (start, len) = chunks[*leaf].byte_range();
            start..start + len
        })
        .collect();
    let fetched = storage.get_ranges(&file.path, &ranges).await;
    let fetched = fetched.map_err(|source| ScanError::Storage {
        path: file.path.clone(),
        source,
    })?;
    let checksum = |leaf: usize| {
        let checksums = &footer.own.as_ref()?.checksums;
        checksums.get(row_group * chunks.len() + leaf).copied()
    };
    let chunk = |(bytes, (range, leaf)): (bytes::Bytes, (&std::ops::Range<u64>, &usize))| Chunk {
        start: range.start,
        bytes,
        checksum: checksum(*leaf),
    };
    let placed = ranges.iter().zip(&projection.leaves);
    Ok(Fetched {
        chunks: fetched.into_iter().zip(placed).map(chunk).collect(),
        metadata: footer.metadata.clone(),
        row_group,
        projection,
        file_bytes: file.size_bytes,
        topic: footer.own.is_none().then(|| topic.as_str().to_owned()),
    })
}

#[cfg(test)]
mod tests;
