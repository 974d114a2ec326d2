//! Rows to Parquet, on a thread that may block.

use bytes::Bytes;
use everlog_common::{Millis, OffsetRange, TopicName, compute};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::writer::SerializedFileWriter;
use tokio::sync::mpsc;

use super::metrics::Metrics;
use super::plan::{Limits, Slice, row_groups};
use super::row_group::{Covered, EncodedRowGroup, RowGroupEncoder, start_of};
use super::sink::{Gone, Piece, Sink};
use super::threads::{Helper, SpareThreads};
use crate::codec::{self, CodecError};
use crate::files::{FileRange, PartitionRows};
use crate::footer::{self, Marks};
use crate::schema::ColumnMap;

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
    pub(super) spare: SpareThreads,
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

/// Encodes all files of a job, one after the other; row groups that follow each other at the same time, as far as there are
/// threads to spare.
pub(super) fn run(job: &Job, pieces: &mpsc::Sender<Piece>) -> Result<(), EncodeError> {
    job.groups
        .iter()
        .enumerate()
        .try_for_each(|(group, items)| run_group(job, group, items, pieces))
}

fn run_group(
    job: &Job,
    group: usize,
    items: &[PartitionRows],
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), EncodeError> {
    let send = |piece: Piece| compute::send(pieces, piece).map_err(|_| Gone);
    let plan = row_groups(items, Limits::ROW_GROUP);
    let Some(first) = plan.first() else {
        return Ok(());
    };
    let encoder = RowGroupEncoder::new(job, items, first)?;
    let mut open: Option<FileWriter<'_>> = None;
    let mut at = 0;
    while at < plan.len() {
        let (encoded, _helpers) = encode_some(&encoder, &plan[at..], &job.spare)?;
        for row_group in encoded {
            at += 1;
            let mut file = match open.take() {
                Some(file) => file,
                None => {
                    send(Piece::Open(group))?;
                    FileWriter::new(job, items, &encoder, Sink::new(pieces.clone()))?
                }
            };
            file.append(row_group)?;
            let next = plan.get(at).and_then(|slices| slices.first());
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

/// The first row group of a plan, and as many of the next as there are threads to spare. Those stay taken until what they
/// made is no longer in memory.
fn encode_some(
    encoder: &RowGroupEncoder<'_>,
    plan: &[Vec<Slice>],
    spare: &SpareThreads,
) -> Result<(Vec<EncodedRowGroup>, Vec<Helper>), EncodeError> {
    let Some((own, rest)) = plan.split_first() else {
        return Ok((Vec::new(), Vec::new()));
    };
    let helpers: Vec<Helper> = rest.iter().map_while(|_| spare.take()).collect();
    let encoded: Result<Vec<_>, _> = std::thread::scope(|scope| {
        let others: Vec<_> = rest
            .iter()
            .take(helpers.len())
            .map(|slices| scope.spawn(|| encoder.encode(slices)))
            .collect();
        let own = encoder.encode(own);
        let others = others.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        std::iter::once(own).chain(others).collect()
    });
    Ok((encoded?, helpers))
}

struct FileWriter<'a> {
    job: &'a Job,
    items: &'a [PartitionRows],
    writer: SerializedFileWriter<Sink>,
    ranges: Vec<Covered>,
    checksums: Vec<u64>,
    metrics: Metrics,
}

impl<'a> FileWriter<'a> {
    fn new(
        job: &'a Job,
        items: &'a [PartitionRows],
        encoder: &RowGroupEncoder<'_>,
        sink: Sink,
    ) -> Result<Self, EncodeError> {
        Ok(Self {
            job,
            items,
            writer: encoder.file(sink)?,
            ranges: Vec::new(),
            checksums: Vec::new(),
            metrics: Metrics::new(codec::micros(job.archived_at)?),
        })
    }

    fn bytes_written(&self) -> u64 {
        self.writer.bytes_written() as u64
    }

    fn append(&mut self, encoded: EncodedRowGroup) -> Result<(), EncodeError> {
        let mut row_group = self.writer.next_row_group()?;
        for chunk in encoded.chunks {
            self.checksums.push(footer::checksum(&chunk.bytes));
            row_group.append_column(&Bytes::from(chunk.bytes), chunk.close)?;
        }
        row_group.close()?;
        self.metrics.merge(&encoded.metrics);
        for covered in encoded.covered {
            match self.ranges.last_mut() {
                Some(last) if last.item == covered.item => last.rows += covered.rows,
                _ => self.ranges.push(covered),
            }
        }
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
