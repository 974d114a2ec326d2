//! One row group's columns, finished, with checksums: the part of encoding that several threads may do at once.

use std::sync::Arc;

use arrow_array::Array as _;
use everlog_common::{EventColumns, Offset};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::TypePtr;

use super::encode::{EncodeError, Job};
use super::metrics::Metrics;
use super::pages::{CheckedChunk, with_checksums};
use super::plan::{Limits, Slice, pieces};
use super::settings;
use super::sink::Sink;
use crate::codec::{self, RowContext};
use crate::files::PartitionRows;

/// More than the footer of a file with one row group takes.
const FOOTER_BYTES: usize = 64 << 10;

/// Encodes row groups of one table partition.
pub(super) struct RowGroupEncoder<'a> {
    job: &'a Job,
    items: &'a [PartitionRows],
    factory: ArrowRowGroupWriterFactory,
    schema: TypePtr,
    properties: Arc<WriterProperties>,
}

/// A row group that only has to be put into its file.
pub(super) struct EncodedRowGroup {
    pub(super) chunks: Vec<CheckedChunk>,
    pub(super) covered: Vec<Covered>,
    pub(super) metrics: Metrics,
}

/// What rows there are of one of the items.
pub(super) struct Covered {
    pub(super) item: usize,
    pub(super) start: Offset,
    pub(super) rows: u64,
}

impl<'a> RowGroupEncoder<'a> {
    /// `first` is the first row group: from its keys follows how keys are encoded.
    pub(super) fn new(
        job: &'a Job,
        items: &'a [PartitionRows],
        first: &[Slice],
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
        // the factory takes schema and properties from a file
        let nowhere =
            SerializedFileWriter::new(Vec::new(), Arc::clone(&schema), Arc::clone(&properties))?;
        Ok(Self {
            factory: ArrowRowGroupWriterFactory::new(&nowhere, Arc::clone(arrow_schema)),
            job,
            items,
            schema,
            properties,
        })
    }

    /// A file for these row groups.
    pub(super) fn file(&self, sink: Sink) -> Result<SerializedFileWriter<Sink>, EncodeError> {
        let (schema, properties) = (Arc::clone(&self.schema), Arc::clone(&self.properties));
        Ok(SerializedFileWriter::new(sink, schema, properties)?)
    }

    /// Encodes one row group. In memory is then what it came to; meanwhile twice that.
    pub(super) fn encode(&self, slices: &[Slice]) -> Result<EncodedRowGroup, EncodeError> {
        // the number is of use to encryption alone
        let mut writers = self.factory.create_column_writers(0)?;
        let mut metrics = Metrics::new(codec::micros(self.job.archived_at)?);
        let mut covered: Vec<Covered> = Vec::new();
        for slice in slices {
            let rows = slice.len as u64;
            match covered.last_mut() {
                Some(last) if last.item == slice.item => last.rows += rows,
                _ => covered.push(Covered {
                    item: slice.item,
                    start: start_of(self.items, *slice),
                    rows,
                }),
            }
            self.write(*slice, &mut writers, &mut metrics)?;
            #[cfg(feature = "failpoints")]
            fail::fail_point!("writer::mid_row_group", |_| Err(EncodeError::FailPoint));
        }
        Ok(EncodedRowGroup {
            chunks: checked_chunks(writers, &self.schema, &self.properties)?,
            covered,
            metrics,
        })
    }

    fn write(
        &self,
        slice: Slice,
        writers: &mut [ArrowColumnWriter],
        metrics: &mut Metrics,
    ) -> Result<(), EncodeError> {
        let job = self.job;
        let item = &self.items[slice.item];
        let context = RowContext {
            topic: &job.topic,
            generation: item.generation,
            partition: item.partition,
            archived_at: job.archived_at,
        };
        let rows = item.batches[slice.batch].slice(slice.from, slice.len);
        for rows in pieces(&rows, Limits::PIECE) {
            let encoded = codec::encode(&job.columns, context, &rows)?;
            metrics.take(&context, &rows, &encoded);
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
}

/// Finishes the columns of a row group. They go through a file in memory, the one way to get at their bytes.
pub(crate) fn checked_chunks(
    writers: Vec<ArrowColumnWriter>,
    schema: &TypePtr,
    properties: &Arc<WriterProperties>,
) -> Result<Vec<CheckedChunk>, ParquetError> {
    let finished: Vec<_> = writers
        .into_iter()
        .map(ArrowColumnWriter::close)
        .collect::<Result<_, _>>()?;
    // a buffer that grows would hold half as much again for a moment
    let bytes: u64 = finished.iter().map(|c| c.close().bytes_written).sum();
    let room = usize::try_from(bytes).unwrap_or(0) + FOOTER_BYTES;
    let mut memory = SerializedFileWriter::new(
        Vec::with_capacity(room),
        Arc::clone(schema),
        Arc::clone(properties),
    )?;
    let mut row_group = memory.next_row_group()?;
    let mut closes = Vec::with_capacity(finished.len());
    for chunk in finished {
        closes.push(chunk.close().clone());
        chunk.append_to_row_group(&mut row_group)?;
    }
    let placed = row_group.close()?;
    let memory = memory.into_inner()?;
    let mut chunks = Vec::with_capacity(closes.len());
    for (close, column) in closes.into_iter().zip(placed.columns()) {
        let (start, len) = column.byte_range();
        let chunk = usize::try_from(start)
            .ok()
            .zip(usize::try_from(start + len).ok())
            .and_then(|(from, to)| memory.get(from..to))
            .ok_or_else(|| ParquetError::General("column chunk is not there".to_owned()))?;
        chunks.push(with_checksums(chunk, close)?);
    }
    Ok(chunks)
}

/// The first offset that a slice covers: of the item's first rows, where the item begins.
pub(super) fn start_of(items: &[PartitionRows], slice: Slice) -> Offset {
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
