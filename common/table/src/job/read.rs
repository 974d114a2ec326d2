//! The rows of one snapshot, file after file, in memory that is bounded by a row group.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, new_null_array};
use arrow_cast::cast;
use arrow_schema::{Field, Schema as ArrowSchema, SchemaRef};
use bytes::Bytes;
use everlog_common::compute;
use futures::Stream;
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::spec::{DataContentType, DataFile, DataFileFormat};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ParquetMetaDataReader;

use super::{JobError, JobTable};
use crate::archive::ArchiveError;
use crate::files::pair_of;
use crate::footer::TAIL_LEN;
use crate::manifests;
use crate::scan::{Chunk, Chunks, guard};
use crate::storage::Storage;

/// Rows of one batch, at most.
const BATCH_ROWS: usize = 8 << 10;
/// How much of a file's end is fetched at first.
const PREFETCH: u64 = 64 << 10;
/// How a Parquet file ends.
const MAGIC: &[u8] = b"PAR1";

/// The rows of one snapshot.
#[derive(Debug, Clone)]
pub struct JobScan {
    table: String,
    storage: Storage,
    snapshot_id: Option<i64>,
    schema: SchemaRef,
    /// The ids of the columns, in the schema's order.
    ids: Vec<i32>,
    files: Vec<DataFile>,
}

impl JobTable {
    /// The rows of a snapshot, with these columns, all of the table's where none are named. None of it is read yet; the
    /// files are those of the snapshot, whatever happens to the table meanwhile.
    ///
    /// Files come in the order in which they were committed, rows in that of their file.
    pub async fn scan(
        &self,
        snapshot_id: Option<i64>,
        columns: Option<&[String]>,
    ) -> Result<JobScan, JobError> {
        let table = self.handle().load().await?;
        let metadata = &table.metadata;
        let table_name = self.handle().table_name();
        let current = metadata.current_schema();
        let whole = schema_to_arrow_schema(current).map_err(|e| self.invalid(e.to_string()))?;
        let mut fields = Vec::new();
        let mut ids = Vec::new();
        for (field, iceberg) in whole.fields().iter().zip(current.as_struct().fields()) {
            if columns.is_none_or(|wanted| wanted.contains(field.name())) {
                ids.push(iceberg.id);
                fields.push(Field::new(field.name(), field.data_type().clone(), true));
            }
        }
        if let Some(missing) = columns
            .unwrap_or_default()
            .iter()
            .find(|name| whole.field_with_name(name).is_err())
        {
            return Err(self.invalid(format!("there is no column {missing}")));
        }
        let mut entries = Vec::new();
        if let Some(id) = snapshot_id {
            let snapshot = metadata.snapshot_by_id(id).ok_or_else(|| {
                self.invalid(format!("snapshot {id} is not there; it may have expired"))
            })?;
            let storage = self.storage();
            let failed =
                |problem| JobError::Table(ArchiveError::of_manifest(&table_name, id, problem));
            let list = manifests::read_list(&storage, snapshot, metadata.format_version())
                .await
                .map_err(failed)?;
            if let Some(file) = manifests::delete_manifest(&list) {
                return Err(self.foreign(format!(
                    "snapshot {id} has delete files ({}), which everlog does not read",
                    file.manifest_path
                )));
            }
            for list in manifests::read_manifests(&storage, &list)
                .await
                .map_err(failed)?
            {
                entries.extend(
                    list.into_iter()
                        .filter(iceberg::spec::ManifestEntry::is_alive),
                );
            }
        }
        entries.sort_by_key(|entry| entry.sequence_number().unwrap_or_default());
        let mut files = Vec::with_capacity(entries.len());
        for entry in entries {
            let file = entry.data_file().clone();
            let plain = file.content_type() == DataContentType::Data
                && file.file_format() == DataFileFormat::Parquet;
            if !plain {
                return Err(self.foreign(format!(
                    "{} is no Parquet file of rows, which everlog does not read",
                    file.file_path()
                )));
            }
            files.push(file);
        }
        Ok(JobScan {
            table: table_name,
            storage: self.storage(),
            snapshot_id,
            schema: Arc::new(ArrowSchema::new(fields)),
            ids,
            files,
        })
    }
}

impl JobScan {
    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The snapshot; none: there are no rows.
    pub fn snapshot_id(&self) -> Option<i64> {
        self.snapshot_id
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.files.iter().map(DataFile::record_count).sum()
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The files' bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(DataFile::file_size_in_bytes).sum()
    }

    /// The lowest and the highest value of a column, from the manifests: whole numbers, and times in the table's unit. None
    /// where there are no rows, no such column, or a file without bounds of it.
    pub fn bounds(&self, column: &str) -> Option<(i64, i64)> {
        let place = self.schema.index_of(column).ok()?;
        let id = *self.ids.get(place)?;
        let of_files = self.files.iter().filter(|file| file.record_count() > 0);
        of_files.map(|file| pair_of(file, id)).reduce(|all, one| {
            let ((low, high), (lower, higher)) = (all?, one?);
            Some((low.min(lower), high.max(higher)))
        })?
    }

    /// The rows. In memory is one row group at a time, of the columns that were asked for.
    pub fn batches(self) -> impl Stream<Item = Result<RecordBatch, JobError>> + Send + 'static {
        let state = (Arc::new(self), 0_usize, None::<Open>, Vec::new());
        futures::stream::try_unfold(state, |(scan, mut file, mut open, mut ready)| async move {
            loop {
                if let Some(batch) = Vec::pop(&mut ready) {
                    return Ok(Some((batch, (scan, file, open, ready))));
                }
                if open.as_ref().is_some_and(|o| o.group < o.groups()) {
                    if let Some(mut at) = open.take() {
                        ready = scan.read_group(&at).await?;
                        at.group += 1;
                        open = Some(at);
                    }
                    continue;
                }
                let Some(next) = scan.files.get(file) else {
                    return Ok(None);
                };
                open = Some(scan.open(next.clone()).await?);
                file += 1;
            }
        })
    }

    fn corrupt(&self, path: &str, what: &str) -> JobError {
        JobError::Table(ArchiveError::Corrupt {
            table: self.table.clone(),
            what: format!("data file {path}: {what}"),
            source: None,
        })
    }

    async fn get(&self, path: &str, range: std::ops::Range<u64>) -> Result<Bytes, JobError> {
        self.storage.get_range(path, range).await.map_err(|source| {
            JobError::Table(ArchiveError::Storage {
                table: self.table.clone(),
                doing: "cannot read a data file",
                source,
            })
        })
    }

    async fn open(&self, file: DataFile) -> Result<Open, JobError> {
        let path = file.file_path().to_owned();
        let size = file.file_size_in_bytes();
        if size < 12 {
            return Err(self.corrupt(&path, "it is too short for a Parquet file"));
        }
        let mut tail = self.get(&path, size - PREFETCH.min(size)..size).await?;
        let end = tail.len().saturating_sub(TAIL_LEN);
        let (len, magic) = tail[end..].split_at(4);
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]);
        let fits = u64::from(len) <= size - 12;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if magic != MAGIC || !fits || len > guard::FOOTER_BYTES_MAX {
            return Err(self.corrupt(
                &path,
                "it does not end as a Parquet file where its manifest says that it ends",
            ));
        }
        if len + TAIL_LEN > tail.len() {
            tail = self
                .get(&path, size - (len + TAIL_LEN) as u64..size)
                .await?;
        }
        let footer = tail.slice(tail.len() - TAIL_LEN - len..tail.len() - TAIL_LEN);
        let expected = file.record_count();
        let parsed = compute::spawn(move || parse(&footer, expected)).await;
        match parsed {
            Ok(Ok(metadata)) => Ok(Open {
                path,
                size,
                metadata,
                group: 0,
            }),
            Ok(Err(what)) => Err(self.corrupt(&path, &what)),
            Err(_) => Err(self.corrupt(&path, "the parser of its footer was stopped, or panicked")),
        }
    }

    /// The batches of a row group, the last one first.
    async fn read_group(&self, open: &Open) -> Result<Vec<RecordBatch>, JobError> {
        let metadata = open.metadata.metadata();
        let group = metadata.row_group(open.group);
        let leaves: Vec<usize> = group
            .columns()
            .iter()
            .enumerate()
            .filter(|(_, column)| {
                let descriptor = column.column_descr();
                let root = metadata
                    .file_metadata()
                    .schema_descr()
                    .root_schema()
                    .get_fields()
                    .iter()
                    .find(|field| {
                        Some(field.name()) == descriptor.path().parts().first().map(String::as_str)
                    });
                root.is_some_and(|root| {
                    let info = root.get_basic_info();
                    info.has_id() && self.ids.contains(&info.id())
                })
            })
            .map(|(leaf, _)| leaf)
            .collect();
        let ranges: Vec<std::ops::Range<u64>> = leaves
            .iter()
            .filter_map(|leaf| group.columns().get(*leaf))
            .map(|column| {
                let (start, len) = column.byte_range();
                start..start.saturating_add(len)
            })
            .collect();
        if ranges.iter().any(|range| range.end > open.size) {
            return Err(self.corrupt(&open.path, "a column chunk lies outside of it"));
        }
        let fetched = self
            .storage
            .get_ranges(&open.path, &ranges)
            .await
            .map_err(|source| {
                JobError::Table(ArchiveError::Storage {
                    table: self.table.clone(),
                    doing: "cannot read a data file",
                    source,
                })
            })?;
        let chunks = fetched
            .into_iter()
            .zip(&ranges)
            .map(|(bytes, range)| Chunk::new(range.start, bytes))
            .collect();
        let input = Chunks::new(chunks, open.size);
        let mask = ProjectionMask::leaves(metadata.file_metadata().schema_descr(), leaves.clone());
        let (reader, index) = (open.metadata.clone(), open.group);
        let (schema, ids) = (Arc::clone(&self.schema), self.ids.clone());
        let rows = usize::try_from(group.num_rows()).unwrap_or_default();
        let nothing = leaves.is_empty();
        let decoded = compute::spawn(move || -> Result<Vec<RecordBatch>, String> {
            if nothing {
                let columns = schema
                    .fields()
                    .iter()
                    .map(|field| new_null_array(field.data_type(), rows))
                    .collect();
                return Ok(vec![
                    RecordBatch::try_new(schema, columns).map_err(|e| e.to_string())?,
                ]);
            }
            let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(input, reader)
                .with_row_groups(vec![index])
                .with_projection(mask)
                .with_batch_size(BATCH_ROWS)
                .build()
                .map_err(|e| e.to_string())?;
            let mut all = Vec::new();
            for batch in batches {
                let batch = batch.map_err(|e| e.to_string())?;
                all.push(as_table(&batch, &schema, &ids)?);
            }
            all.reverse();
            Ok(all)
        })
        .await;
        match decoded {
            Ok(Ok(batches)) => Ok(batches),
            Ok(Err(what)) => Err(self.corrupt(&open.path, &what)),
            Err(_) => Err(self.corrupt(&open.path, "its decoder was stopped, or panicked")),
        }
    }
}

/// A file that is being read.
struct Open {
    path: String,
    size: u64,
    metadata: ArrowReaderMetadata,
    /// The next row group.
    group: usize,
}

impl Open {
    fn groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }
}

fn parse(footer: &[u8], rows: u64) -> Result<ArrowReaderMetadata, String> {
    guard::check(footer).map_err(str::to_owned)?;
    let parquet = ParquetMetaDataReader::decode_metadata(footer).map_err(|e| e.to_string())?;
    let total = parquet.file_metadata().num_rows();
    if u64::try_from(total) != Ok(rows) {
        return Err(format!("it has {total} rows, its manifest says {rows}"));
    }
    let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ArrowReaderMetadata::try_new(Arc::new(parquet), plain).map_err(|e| e.to_string())
}

/// A file's columns as the table has them now: found by id, null where the file is older than the column.
fn as_table(batch: &RecordBatch, schema: &SchemaRef, ids: &[i32]) -> Result<RecordBatch, String> {
    let id_of = |field: &Field| -> Option<i32> {
        field
            .metadata()
            .get(parquet::arrow::PARQUET_FIELD_ID_META_KEY)?
            .parse()
            .ok()
    };
    let own = batch.schema();
    let columns: Result<Vec<ArrayRef>, String> = schema
        .fields()
        .iter()
        .zip(ids)
        .map(|(field, id)| {
            let place = own.fields().iter().position(|f| id_of(f) == Some(*id));
            match place {
                Some(place) => cast(batch.column(place), field.data_type())
                    .map_err(|e| format!("column {}: {e}", field.name())),
                None => Ok(new_null_array(field.data_type(), batch.num_rows())),
            }
        })
        .collect();
    RecordBatch::try_new(Arc::clone(schema), columns?).map_err(|e| e.to_string())
}
