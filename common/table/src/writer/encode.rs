//! Rows to Parquet, on a thread that may block.

use std::sync::Arc;

use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, RecordBatch, cast::AsArray};
use bytes::Bytes;
use everlog_common::{EventColumns, Millis, Offset, OffsetRange, TopicName};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::TypePtr;
use tokio::sync::mpsc;

use super::pages::with_checksums;
use super::plan::{Limits, Slice, pieces, row_groups};
use super::settings;
use super::sink::{Gone, Piece, Sink};
use crate::codec::{self, CodecError, RowContext};
use crate::files::{FileRange, PartitionRows};
use crate::footer::{self, Marks};
use crate::schema::{Column, ColumnMap};

/// Everything that the encoding thread needs.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) columns: ColumnMap,
    pub(super) topic: TopicName,
    pub(super) archived_at: Millis,
    pub(super) compression: Compression,
    pub(super) file_bytes_target: u64,
    /// Per table partition, what goes into it; with rows only.
    pub(super) groups: Vec<Vec<PartitionRows>>,
}

/// A file, all bytes of which were handed over.
#[derive(Debug)]
pub(super) struct FinishedFile {
    /// Which of the job's groups.
    pub(super) group: usize,
    pub(super) ranges: Vec<FileRange>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) metrics: Metrics,
    pub(super) metadata: ParquetMetaData,
}

/// Why encoding ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error("{0}")]
    Footer(String),
    #[cfg(feature = "failpoints")]
    #[error("fail point")]
    FailPoint,
}

/// Exact bounds and counts of a file's rows.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    pub(super) generation: (i32, i32),
    pub(super) partition: (i32, i32),
    pub(super) offset: (i64, i64),
    pub(super) timestamp: Option<(i64, i64)>,
    pub(super) timestamp_raw: Option<(i64, i64)>,
    pub(super) archived_at: i64,
    /// Whether rows are in order of (partition, offset), whatever their generation.
    pub(super) partitions_ascend: bool,
    last: (i32, i32),
    /// Per column.
    pub(super) nulls: [u64; Column::ALL.len()],
}

impl Metrics {
    const fn new(archived_at: i64) -> Self {
        Self {
            generation: (i32::MAX, i32::MIN),
            partition: (i32::MAX, i32::MIN),
            offset: (i64::MAX, i64::MIN),
            timestamp: None,
            timestamp_raw: None,
            archived_at,
            partitions_ascend: true,
            last: (-1, -1),
            nulls: [0; Column::ALL.len()],
        }
    }

    fn take(&mut self, context: &RowContext<'_>, rows: &EventColumns, encoded: &RecordBatch) {
        let (generation, partition) = (context.generation.as_i32(), context.partition.get());
        let place = (generation, partition);
        self.partitions_ascend &= place == self.last || partition > self.last.1;
        self.last = place;
        self.generation = widened(self.generation, generation);
        self.partition = widened(self.partition, partition);
        for offset in [rows.first_offset(), rows.last_offset()]
            .into_iter()
            .flatten()
        {
            self.offset = widened(self.offset, offset.get());
        }
        let timestamps = encoded
            .column(Column::Timestamp.index())
            .as_primitive::<TimestampMicrosecondType>();
        for value in timestamps.iter().flatten() {
            self.timestamp = Some(widened(self.timestamp.unwrap_or((value, value)), value));
        }
        let raw = encoded.column(Column::TimestampRaw.index());
        if raw.null_count() < raw.len() {
            let raw = raw.as_primitive::<arrow_array::types::Int64Type>();
            for value in raw.iter().flatten() {
                let bounds = self.timestamp_raw.unwrap_or((value, value));
                self.timestamp_raw = Some(widened(bounds, value));
            }
        }
        for (nulls, column) in self.nulls.iter_mut().zip(encoded.columns()) {
            *nulls += column.null_count() as u64;
        }
    }
}

fn widened<T: Ord + Copy>((lower, upper): (T, T), value: T) -> (T, T) {
    (lower.min(value), upper.max(value))
}

/// Encodes all files of a job, one after the other.
pub(super) fn run(job: &Job, pieces: &mpsc::Sender<Piece>) -> Result<(), EncodeError> {
    let send = |piece: Piece| pieces.blocking_send(piece).map_err(|_| Gone);
    for (group, items) in job.groups.iter().enumerate() {
        let plan = row_groups(items, Limits::ROW_GROUP);
        let mut open: Option<FileEncoder<'_>> = None;
        for (i, slices) in plan.iter().enumerate() {
            let mut file = match open.take() {
                Some(file) => file,
                None => {
                    send(Piece::Open(group))?;
                    FileEncoder::new(job, items, slices, Sink::new(pieces.clone()))?
                }
            };
            file.write_row_group(slices)?;
            let next = plan.get(i + 1).and_then(|slices| slices.first());
            if next.is_none() || file.bytes_written() >= job.file_bytes_target {
                let finished = file.finish(group, next)?;
                send(Piece::Close(Box::new(finished)))?;
            } else {
                open = Some(file);
            }
        }
    }
    Ok(())
}

struct FileEncoder<'a> {
    job: &'a Job,
    items: &'a [PartitionRows],
    writer: SerializedFileWriter<Sink>,
    factory: ArrowRowGroupWriterFactory,
    schema: TypePtr,
    properties: Arc<WriterProperties>,
    ranges: Vec<Covered>,
    checksums: Vec<u64>,
    metrics: Metrics,
}

/// What the file has of one of the items.
struct Covered {
    item: usize,
    start: Offset,
    rows: u64,
}

impl<'a> FileEncoder<'a> {
    fn new(
        job: &'a Job,
        items: &'a [PartitionRows],
        first: &[Slice],
        sink: Sink,
    ) -> Result<Self, EncodeError> {
        let arrow_schema = job.columns.arrow_schema();
        let converter = ArrowSchemaConverter::new().schema_root("table");
        let descriptor = converter.convert(arrow_schema)?;
        let rows = first.iter().map(|s| s.len).sum();
        let keys = first.iter().flat_map(|s| {
            let keys = &items[s.item].batches[s.batch].keys;
            (s.from..s.from + s.len).map(|i| keys.is_valid(i).then(|| keys.value(i)))
        });
        let pays = settings::dictionary_pays(keys, rows);
        let properties = settings::properties(&job.columns, &descriptor, job.compression, pays);
        let schema = descriptor.root_schema_ptr();
        let writer = SerializedFileWriter::new(sink, Arc::clone(&schema), Arc::clone(&properties))?;
        Ok(Self {
            factory: ArrowRowGroupWriterFactory::new(&writer, Arc::clone(arrow_schema)),
            job,
            items,
            writer,
            schema,
            properties,
            ranges: Vec::new(),
            checksums: Vec::new(),
            metrics: Metrics::new(codec::micros(job.archived_at)?),
        })
    }

    fn bytes_written(&self) -> u64 {
        self.writer.bytes_written() as u64
    }

    fn write_row_group(&mut self, slices: &[Slice]) -> Result<(), EncodeError> {
        let number = self.writer.flushed_row_groups().len();
        let mut writers = self.factory.create_column_writers(number)?;
        for slice in slices {
            self.write_slice(*slice, &mut writers)?;
            #[cfg(feature = "failpoints")]
            fail::fail_point!("writer::mid_row_group", |_| Err(EncodeError::FailPoint));
        }
        self.append_row_group(writers)
    }

    fn write_slice(
        &mut self,
        slice: Slice,
        writers: &mut [ArrowColumnWriter],
    ) -> Result<(), EncodeError> {
        let job = self.job;
        let item = &self.items[slice.item];
        let context = RowContext {
            topic: &job.topic,
            generation: item.generation,
            partition: item.partition,
            archived_at: job.archived_at,
        };
        self.cover(slice);
        let rows = item.batches[slice.batch].slice(slice.from, slice.len);
        for rows in pieces(&rows, Limits::PIECE) {
            let encoded = codec::encode(&job.columns, context, &rows)?;
            self.metrics.take(&context, &rows, &encoded);
            let mut writers = writers.iter_mut();
            let fields = job.columns.arrow_schema().fields();
            for (field, array) in fields.iter().zip(encoded.columns()) {
                for (leaf, writer) in compute_leaves(field, array)?.iter().zip(&mut writers) {
                    writer.write(leaf)?;
                }
            }
        }
        Ok(())
    }

    fn cover(&mut self, slice: Slice) {
        let rows = slice.len as u64;
        match self.ranges.last_mut() {
            Some(last) if last.item == slice.item => last.rows += rows,
            _ => self.ranges.push(Covered {
                item: slice.item,
                start: start_of(self.items, slice),
                rows,
            }),
        }
    }

    /// Puts the finished columns into the file. They go through a file in memory, the one way to get at their bytes.
    fn append_row_group(&mut self, writers: Vec<ArrowColumnWriter>) -> Result<(), EncodeError> {
        let mut memory = SerializedFileWriter::new(
            Vec::new(),
            Arc::clone(&self.schema),
            Arc::clone(&self.properties),
        )?;
        let mut row_group = memory.next_row_group()?;
        let mut closes = Vec::with_capacity(writers.len());
        for writer in writers {
            let chunk = writer.close()?;
            closes.push(chunk.close().clone());
            chunk.append_to_row_group(&mut row_group)?;
        }
        let placed = row_group.close()?;
        let memory = memory.into_inner()?;
        let mut row_group = self.writer.next_row_group()?;
        for (close, column) in closes.into_iter().zip(placed.columns()) {
            let (start, len) = column.byte_range();
            let chunk = usize::try_from(start)
                .ok()
                .zip(usize::try_from(start + len).ok())
                .and_then(|(from, to)| memory.get(from..to))
                .ok_or_else(|| ParquetError::General("column chunk is not there".to_owned()))?;
            let checked = with_checksums(chunk, close)?;
            self.checksums.push(footer::checksum(&checked.bytes));
            row_group.append_column(&Bytes::from(checked.bytes), checked.close)?;
        }
        row_group.close()?;
        Ok(())
    }

    /// Ends the file. `next` is what goes into the next file, if it is of the same table partition.
    fn finish(mut self, group: usize, next: Option<&Slice>) -> Result<FinishedFile, EncodeError> {
        let ranges = self.file_ranges(next)?;
        let marks = Marks {
            topic: self.job.topic.as_str().to_owned(),
            ranges,
            checksums: self.checksums,
        };
        for pair in marks.to_key_values() {
            self.writer.append_key_value_metadata(pair);
        }
        self.writer.flush().map_err(ParquetError::from)?;
        self.writer.inner_mut().hold();
        let metadata = self.writer.finish()?;
        let sink = self.writer.inner_mut();
        footer::seal(sink.held_bytes()).map_err(EncodeError::Footer)?;
        sink.release()?;
        Ok(FinishedFile {
            group,
            rows: marks.ranges.iter().map(|r| r.rows).sum(),
            ranges: marks.ranges,
            bytes: self.writer.bytes_written() as u64,
            metrics: self.metrics,
            metadata,
        })
    }

    fn file_ranges(&self, next: Option<&Slice>) -> Result<Vec<FileRange>, EncodeError> {
        let range = |covered: &Covered| {
            let item = &self.items[covered.item];
            let end = match next {
                Some(next) if next.item == covered.item => start_of(self.items, *next),
                _ => item.range.end(),
            };
            Ok(FileRange {
                generation: item.generation,
                partition: item.partition,
                range: OffsetRange::new(covered.start, end)
                    .map_err(|e| EncodeError::Footer(e.to_string()))?,
                rows: covered.rows,
            })
        };
        self.ranges.iter().map(range).collect()
    }
}

/// The first offset that a slice covers: of the item's first rows, where the item begins.
fn start_of(items: &[PartitionRows], slice: Slice) -> Offset {
    let item = &items[slice.item];
    let first = slice.from == 0
        && item.batches[..slice.batch]
            .iter()
            .all(EventColumns::is_empty);
    let row = || item.batches[slice.batch].offsets.value(slice.from);
    if first {
        item.range.start()
    } else {
        Offset::new(row()).unwrap_or_default()
    }
}
