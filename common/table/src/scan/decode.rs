//! Column chunks to runs of rows, on a thread that may block.

use std::sync::Weak;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, BinaryArray, Int32Array, RecordBatch, StringArray};
use bytes::{Buf, Bytes};
use everlog_common::Partition;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::DecodedRun;
use super::columns::Projection;
use crate::codec::{self, CodecError, StoredColumns};
use crate::files::generation;
use crate::footer;
use crate::schema::Column;

/// Unpacked bytes that one batch shall have: enough to amortise its cost, few enough for the processor's caches.
const BATCH_BYTES: u64 = 2 << 20;
const BATCH_ROWS_MAX: u64 = 16 << 10;

/// One column chunk as it was fetched.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(super) start: u64,
    pub(super) bytes: Bytes,
    /// What the footer says its bytes come to.
    pub(super) checksum: Option<u64>,
}

/// One row group, fetched.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) metadata: ArrowReaderMetadata,
    pub(super) row_group: usize,
    pub(super) projection: Projection,
    pub(super) chunks: Vec<Chunk>,
    pub(super) file_bytes: u64,
    /// The topic that each row must be of, where the rows have to tell.
    pub(super) topic: Option<String>,
}

/// Why a row group cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("column chunk at {start} to {end} does not match its checksum")]
    Checksum { start: u64, end: u64 },
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error(transparent)]
    Arrow(#[from] arrow_schema::ArrowError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("{0}")]
    Rows(String),
}

/// Decodes a row group: its runs, each of at most one batch's rows. Ends early when nobody holds what `awaited` points to.
pub(super) fn run(fetched: &Fetched, awaited: &Weak<()>) -> Result<Vec<DecodedRun>, DecodeError> {
    for chunk in &fetched.chunks {
        let intact = chunk
            .checksum
            .is_none_or(|c| footer::checksum(&chunk.bytes) == c);
        if !intact {
            return Err(DecodeError::Checksum {
                start: chunk.start,
                end: chunk.start + chunk.bytes.len() as u64,
            });
        }
    }
    let info = fetched.metadata.metadata().row_group(fetched.row_group);
    let rows = u64::try_from(info.num_rows()).unwrap_or(0).max(1);
    let unpacked = u64::try_from(info.total_byte_size()).unwrap_or(0);
    let batch_rows = (BATCH_BYTES.saturating_mul(rows) / unpacked.max(1)).clamp(1, BATCH_ROWS_MAX);
    match decode(fetched, batch_rows, awaited) {
        // Arrow's offsets are of 32 bits: a batch of a few huge rows among small ones may not fit.
        Err(_) if batch_rows > 1 && unpacked > i32::MAX.unsigned_abs().into() => {
            decode(fetched, 1, awaited)
        }
        other => other,
    }
}

fn decode(
    fetched: &Fetched,
    batch_rows: u64,
    awaited: &Weak<()>,
) -> Result<Vec<DecodedRun>, DecodeError> {
    let input = Chunks {
        chunks: fetched.chunks.clone(),
        file_bytes: fetched.file_bytes,
    };
    let batches =
        ParquetRecordBatchReaderBuilder::new_with_metadata(input, fetched.metadata.clone())
            .with_row_groups(vec![fetched.row_group])
            .with_projection(fetched.projection.mask.clone())
            .with_batch_size(usize::try_from(batch_rows).unwrap_or(1))
            .build()?;
    let (mut rows, mut runs) = (0, Vec::new());
    for batch in batches {
        if awaited.strong_count() == 0 {
            return Ok(Vec::new());
        }
        let batch = batch?;
        rows += batch.num_rows();
        runs.append(&mut runs_of(fetched, &batch)?);
    }
    let expected = fetched
        .metadata
        .metadata()
        .row_group(fetched.row_group)
        .num_rows();
    if i64::try_from(rows) != Ok(expected) {
        let what = format!("it has {rows} rows, its footer says {expected}");
        return Err(DecodeError::Rows(what));
    }
    Ok(runs)
}

fn runs_of(fetched: &Fetched, batch: &RecordBatch) -> Result<Vec<DecodedRun>, DecodeError> {
    let column = |column: Column| fetched.projection.column(batch, column);
    if let Some(topic) = &fetched.topic {
        check_topic(column(Column::Topic), topic).map_err(DecodeError::Rows)?;
    }
    let generations: Int32Array = codec::required(column, Column::Generation)?;
    let partitions: Int32Array = codec::required(column, Column::Partition)?;
    let columns = StoredColumns::collect(column)?.decode()?;
    let (generations, partitions) = (generations.values(), partitions.values());
    let run = |from: usize, to: usize| -> Result<DecodedRun, DecodeError> {
        let (era, partition) = (generations[from], partitions[from]);
        let bad =
            || DecodeError::Rows(format!("generation {era}, partition {partition} cannot be"));
        Ok(DecodedRun {
            generation: generation(i64::from(era)).ok_or_else(bad)?,
            partition: Partition::new(partition).map_err(|_| bad())?,
            columns: columns.slice(from, to - from),
        })
    };
    let len = columns.len();
    let offsets = columns.offsets.values();
    if is_constant(generations) && is_constant(partitions) && increases(offsets) {
        return Ok(vec![run(0, len)?]);
    }
    let mut runs = Vec::new();
    let mut from = 0;
    for i in 1..len {
        let goes_on = generations[i] == generations[i - 1]
            && partitions[i] == partitions[i - 1]
            && offsets[i] > offsets[i - 1];
        if !goes_on {
            runs.push(run(from, i)?);
            from = i;
        }
    }
    runs.push(run(from, len)?);
    Ok(runs)
}

/// Without a branch per value, so that it is vectorised.
fn is_constant(values: &[i32]) -> bool {
    let first = values.first().copied().unwrap_or_default();
    values.iter().fold(0, |all, v| all | (v ^ first)) == 0
}

fn increases(values: &[i64]) -> bool {
    let next = values.get(1..).unwrap_or_default();
    values
        .iter()
        .zip(next)
        .fold(true, |all, (a, b)| all & (a < b))
}

/// Whether every row says that it is of this topic.
fn check_topic(column: Option<ArrayRef>, topic: &str) -> Result<(), String> {
    let column = column.ok_or("the topic column is missing")?;
    if column.null_count() > 0 {
        return Err("a row is of no topic".to_owned());
    }
    let rows = column
        .as_dictionary_opt::<Int32Type>()
        .ok_or_else(|| format!("the topic column has type {}", column.data_type()))?;
    let values = strings(rows.values()).ok_or_else(|| {
        format!(
            "the topic column has values of type {}",
            rows.values().data_type()
        )
    })?;
    let other = |value: Option<&[u8]>| value != Some(topic.as_bytes());
    if !values.iter().any(other) {
        return Ok(());
    }
    // A dictionary may have values that no row uses.
    for key in rows.keys().values() {
        let value = usize::try_from(*key).ok().filter(|k| *k < values.len());
        let value = value.and_then(|k| values.is_valid(k).then(|| values.value(k)));
        if other(value) {
            let found = String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
            return Err(format!("a row is of topic {found:?}, not {topic:?}"));
        }
    }
    Ok(())
}

fn strings(array: &ArrayRef) -> Option<BinaryArray> {
    let any = array.as_any();
    match any.downcast_ref::<StringArray>() {
        Some(strings) => Some(BinaryArray::from(strings.clone())),
        None => any.downcast_ref::<BinaryArray>().cloned(),
    }
}

impl Chunk {
    /// Bytes from a position on, without a checksum.
    pub(crate) fn new(start: u64, bytes: Bytes) -> Self {
        Self {
            start,
            bytes,
            checksum: None,
        }
    }
}

/// The fetched parts of a file, as if it was there.
pub(crate) struct Chunks {
    chunks: Vec<Chunk>,
    file_bytes: u64,
}

impl Chunks {
    /// Parts of a file of so many bytes.
    pub(crate) fn new(chunks: Vec<Chunk>, file_bytes: u64) -> Self {
        Self { chunks, file_bytes }
    }

    /// The bytes from `start` to the end of the chunk that has it.
    fn from(&self, start: u64) -> parquet::errors::Result<Bytes> {
        let found = self.chunks.iter().find_map(|chunk| {
            let at = usize::try_from(start.checked_sub(chunk.start)?).ok()?;
            (at < chunk.bytes.len()).then(|| chunk.bytes.slice(at..))
        });
        found.ok_or_else(|| ParquetError::EOF(format!("no column chunk has position {start}")))
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.file_bytes
    }
}

impl ChunkReader for Chunks {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let bytes = self.from(start)?;
        if length > bytes.len() {
            let what = format!("a page at {start} is longer than its column chunk");
            return Err(ParquetError::EOF(what));
        }
        Ok(bytes.slice(..length))
    }
}
