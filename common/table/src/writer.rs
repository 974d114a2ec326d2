//! Rows encoded as data files, and stored.
//!
//! ```text
//!   rows ── plan ──► row groups ── encode (a blocking thread) ──► pieces ──► upload ──► EncodedFile
//!                                                              (bounded)   (multipart)
//! ```
//!
//! Invariants
//! - Rows are in order of (generation, partition, offset), over all files of one table partition.
//! - A row group ends at a partition's border, or lies within one partition. Quiet partitions share row groups and
//!   files: of one table partition there are at most ⌈bytes / target⌉ + 1 files.
//! - In memory are at most one encoded row group for each thread that encodes, twice for a moment, and a few pieces and parts
//!   on their way.
//! - A file is complete or invisible. No stored object is ever removed.

mod check;
mod data_file;
mod encode;
mod metrics;
mod pages;
mod plan;
mod row_group;
mod settings;
mod sink;
mod threads;

use everlog_common::mutants::Mutant;
use everlog_common::{Ids, Millis, TopicName, compute};
use iceberg::spec::TableMetadata;
use tokio::sync::mpsc;

use crate::catalog::LoadedTable;
use crate::files::{EncodedFile, PartitionRows};
use crate::schema::{ColumnMap, SchemaError};
use crate::storage::{Storage, StorageError, StorageErrorKind, Upload};
use data_file::TablePartition;
use encode::{EncodeError, FinishedFile, Job};
use sink::{PIECES_IN_FLIGHT, Piece};

pub(crate) use row_group::checked_chunks;
pub(crate) use settings::compression;
pub use threads::SpareThreads;

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
    /// Threads that may help to encode.
    pub spare: SpareThreads,
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
    /// A table property asks for what everlog cannot write.
    #[error("table {table} cannot be written: {what}")]
    Settings {
        /// The table.
        table: String,
        /// Which property, and what would be right.
        what: String,
    },
    /// The commit's time cannot be one.
    #[error(
        "rows cannot be written: {ms} ms since 1970 is no time of a commit; check this machine's clock"
    )]
    ArchivedAt {
        /// Milliseconds.
        ms: i64,
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
            | Self::Settings { .. }
            | Self::ArchivedAt { .. }
            | Self::Rows { .. }
            | Self::Encode { .. } => StorageErrorKind::Invalid,
        }
    }
}

/// Encodes the rows and stores them as files, in order; none where there are no rows. Every file is complete and durable
/// when this returns. Dropping the future leaves at most complete files, and uploads that never become visible.
pub async fn write_files(
    request: WriteRequest<'_>,
    ids: &dyn Ids,
) -> Result<Vec<EncodedFile>, WriteError> {
    let metadata = &request.table.metadata;
    let table = || request.table.ident.to_string();
    let columns =
        ColumnMap::resolve(metadata.current_schema()).map_err(|source| WriteError::Schema {
            table: table(),
            source,
        })?;
    check::rows(&request.rows)?;
    let invalid = |what: String| WriteError::Settings {
        table: table(),
        what,
    };
    let compression = compression(metadata.properties()).map_err(invalid)?;
    let (partitions, groups) = by_table_partition(&request)?;
    let job = Job {
        columns: columns.clone(),
        topic: request.topic.clone(),
        archived_at: request.archived_at,
        compression,
        file_bytes_target: request.file_bytes_target,
        groups,
        spare: request.spare.clone(),
    };
    let (sender, receiver) = compute::channel(PIECES_IN_FLIGHT);
    let encoder = compute::spawn(move || encode::run(&job, &sender));
    let mut store = Store {
        storage: &request.storage,
        metadata,
        columns: &columns,
        partitions: &partitions,
        ids,
        path: String::new(),
        files: Vec::new(),
    };
    let stored = store.run(receiver).await;
    let encoded = encoder.await;
    let encode_error = |what: String| WriteError::Encode {
        path: store.path.clone(),
        what,
    };
    match (stored, encoded) {
        (Err(error), _) => Err(error),
        (Ok(()), Ok(Ok(()))) => Ok(store.files),
        (Ok(()), Ok(Err(EncodeError::Gone(_)))) => Err(WriteError::Stopped),
        (Ok(()), Ok(Err(error))) => Err(encode_error(error.to_string())),
        (Ok(()), Err(error)) if error.is_panic() => {
            Err(encode_error("the encoder panicked".to_owned()))
        }
        (Ok(()), Err(_)) => Err(WriteError::Stopped),
    }
}

/// The rows sorted into the table's partitions; each group keeps their order.
fn by_table_partition(
    request: &WriteRequest<'_>,
) -> Result<(Vec<TablePartition>, Vec<Vec<PartitionRows>>), WriteError> {
    let metadata = &request.table.metadata;
    let archived_at = check::archived_at(request.archived_at)?;
    let mut partitions: Vec<TablePartition> = Vec::new();
    let mut groups: Vec<Vec<PartitionRows>> = Vec::new();
    for rows in request.rows.iter().filter(|r| r.rows() > 0) {
        let partition = TablePartition::of(
            metadata,
            &request.topic,
            rows.generation,
            rows.partition,
            archived_at,
        );
        let partition = partition.map_err(|bad| WriteError::PartitionField {
            table: request.table.ident.to_string(),
            field: bad.field,
            message: bad.message,
        })?;
        match partitions.iter().rposition(|p| *p == partition) {
            Some(group) => groups[group].push(rows.clone()),
            None => {
                partitions.push(partition);
                groups.push(vec![rows.clone()]);
            }
        }
    }
    Ok((partitions, groups))
}

/// Takes pieces from the encoder, and stores them.
struct Store<'a> {
    storage: &'a Storage,
    metadata: &'a TableMetadata,
    columns: &'a ColumnMap,
    partitions: &'a [TablePartition],
    ids: &'a dyn Ids,
    /// The file being written.
    path: String,
    files: Vec<EncodedFile>,
}

impl Store<'_> {
    /// Ends when the encoder does. What is not complete then is given up.
    async fn run(&mut self, mut pieces: mpsc::Receiver<Piece>) -> Result<(), WriteError> {
        let mut open: Option<Upload> = None;
        let result = self.take_all(&mut pieces, &mut open).await;
        if let Some(upload) = open {
            // The store removes what is left of it by its own rules, should this fail too.
            if let Err(error) = upload.abort().await {
                tracing::warn!(path = self.path, %error, "unfinished data file was not given up");
            }
        }
        result
    }

    async fn take_all(
        &mut self,
        pieces: &mut mpsc::Receiver<Piece>,
        open: &mut Option<Upload>,
    ) -> Result<(), WriteError> {
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Open(group) => {
                    #[cfg(feature = "failpoints")]
                    fail::fail_point!("writer::before_upload", |_| Err(WriteError::Stopped));
                    let id = self.ids.uuid();
                    self.path = self.partitions[group].new_path(self.metadata, id);
                    let upload = self.storage.writer(&self.path);
                    *open = Some(upload.map_err(|source| self.failed(source))?);
                }
                Piece::Bytes(bytes) => {
                    if let Some(upload) = open.as_mut() {
                        let written = upload.write(bytes).await;
                        written.map_err(|source| self.failed(source))?;
                    }
                }
                Piece::Close(file) => {
                    if let Some(upload) = open.take() {
                        let stored = if Mutant::CommitBeforeFile.is_planted() {
                            let bytes = upload.written();
                            upload.abort().await.map(|()| bytes)
                        } else {
                            upload.finish().await
                        };
                        let bytes = stored.map_err(|source| self.failed(source))?;
                        self.close(bytes, *file)?;
                        #[cfg(feature = "failpoints")]
                        fail::fail_point!("writer::after_upload", |_| Err(WriteError::Stopped));
                    }
                }
            }
        }
        Ok(())
    }

    fn close(&mut self, stored: u64, file: FinishedFile) -> Result<(), WriteError> {
        let unusable = |what: String| WriteError::Encode {
            path: self.path.clone(),
            what,
        };
        if stored != file.bytes {
            let what = format!("{stored} bytes were stored of {}", file.bytes);
            return Err(unusable(what));
        }
        let partition = &self.partitions[file.group];
        let data_file =
            data_file::data_file(self.metadata, self.columns, partition, &self.path, &file);
        self.files.push(EncodedFile {
            data_file: data_file.map_err(unusable)?,
            partition_spec_id: self.metadata.default_partition_spec_id(),
            bytes: file.bytes,
            rows: file.rows,
            ranges: file.ranges,
        });
        Ok(())
    }

    fn failed(&self, source: StorageError) -> WriteError {
        WriteError::Storage {
            path: self.path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
