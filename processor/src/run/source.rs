//! From what the stream hands out to what the engine takes: pieces of bounded size, positions that moved, decoded columns.
//!
//! Invariant: what is done here depends on the records alone. Borders of pieces change no row: the engine's rows are a
//! function of each partition's records.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, TimestampMillisecondArray,
    UInt32Array,
};
use arrow_buffer::{BooleanBuffer, NullBuffer};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow_select::take::take;
use everlog_common::{
    EventBatch, EventColumns, Generation, Offset, OffsetRange, Partition, Position, Positions,
    TimestampType, compute,
};
use everlog_decode::registry::Registry;
use everlog_decode::{DecodeError, Decoder};
use everlog_replayer::handoff::Incarnation;

use super::error::RunError;

/// Rows that are decoded and handed to the engine at a time: enough that a batch's own costs do not show, few enough that
/// what it makes is small against a job's memory.
const PIECE_ROWS: usize = 16_384;

/// A run of records of one partition, as read.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// The era.
    pub(super) generation: Generation,
    /// The partition.
    pub(super) partition: Partition,
    /// The position after it.
    pub(super) end: Offset,
    /// The records; may be none, where only the position moved.
    pub(super) columns: EventColumns,
    /// Positions of other partitions that moved before it: behind gaps, and those of partitions that joined.
    pub(super) moved: Vec<(Partition, Position)>,
    /// Whose log it is, where that is new.
    pub(super) incarnation: Option<Incarnation>,
}

impl Piece {
    /// The position after it.
    pub(super) fn position(&self) -> Position {
        Position {
            generation: self.generation,
            offset: self.end,
        }
    }

    /// Memory that it holds, about.
    pub(super) fn bytes(&self) -> usize {
        self.columns.bytes()
    }
}

/// Where the stream was when it was looked at last: what moved since then goes with the next piece.
#[derive(Debug, Default)]
pub(super) struct Followed {
    positions: Positions,
    incarnation: Option<Incarnation>,
}

impl Followed {
    /// From these positions on.
    pub(super) fn new(positions: Positions) -> Self {
        Self {
            positions,
            incarnation: None,
        }
    }

    /// Cuts a batch into pieces; the first has all that moved besides.
    pub(super) fn pieces(
        &mut self,
        batch: EventBatch,
        positions: &Positions,
        incarnation: Option<&Incarnation>,
    ) -> Vec<Piece> {
        let mut moved = self.moved(positions);
        moved.retain(|(partition, _)| *partition != batch.partition);
        let mut new = incarnation
            .filter(|now| self.incarnation.as_ref() != Some(*now))
            .cloned();
        if new.is_some() {
            self.incarnation.clone_from(&new);
        }
        let EventBatch {
            generation,
            partition,
            range,
            columns,
            ..
        } = batch;
        let mut pieces = Vec::new();
        for (range, columns) in cut(range, columns) {
            pieces.push(Piece {
                generation,
                partition,
                end: range.end(),
                columns,
                moved: std::mem::take(&mut moved),
                incarnation: new.take(),
            });
        }
        pieces
    }

    /// Positions that are others than before, ascending by partition.
    pub(super) fn moved(&mut self, positions: &Positions) -> Vec<(Partition, Position)> {
        let moved: Vec<_> = positions
            .iter()
            .filter(|(partition, at)| self.positions.get(*partition) != Some(*at))
            .map(|(partition, at)| (*partition, *at))
            .collect();
        self.positions.extend(moved.iter().copied());
        moved
    }
}

/// Pieces of at most [`PIECE_ROWS`] rows, which cover the range together.
fn cut(range: OffsetRange, columns: EventColumns) -> Vec<(OffsetRange, EventColumns)> {
    if columns.len() <= PIECE_ROWS {
        return vec![(range, columns)];
    }
    let mut pieces = Vec::new();
    let (mut from, mut start) = (0, range.start());
    while from < columns.len() {
        let rows = PIECE_ROWS.min(columns.len() - from);
        let piece = columns.slice(from, rows);
        from += rows;
        // The next piece begins with its first row: what lies between has no rows.
        let next = (from < columns.len())
            .then(|| columns.slice(from, 1).first_offset())
            .flatten();
        let end = next.unwrap_or(range.end());
        match OffsetRange::new(start, end) {
            Ok(range) => pieces.push((range, piece)),
            // Offsets increase, so this cannot be.
            Err(_) => pieces.push((range, piece)),
        }
        start = end;
    }
    pieces
}

/// A piece with what its values say.
#[derive(Debug)]
pub(super) struct Decoded {
    /// As read.
    pub(super) piece: Piece,
    /// The records that decoded, with the columns that the engine adds.
    pub(super) batch: RecordBatch,
    /// Those that did not: row and reason, ascending.
    pub(super) dead: Vec<(usize, String)>,
}

/// The decoder with the registry behind it.
#[derive(Debug)]
pub(super) struct Decoding {
    decoder: Decoder,
    registry: Option<Arc<Registry>>,
    /// The decoder's columns, then the engine's.
    schema: SchemaRef,
    job: String,
}

impl Decoding {
    pub(super) fn new(decoder: Decoder, registry: Option<Arc<Registry>>, job: String) -> Self {
        let mut fields: Vec<Arc<Field>> = decoder.schema().fields().iter().cloned().collect();
        let utc = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        for (name, kind, nullable) in [
            ("_generation", DataType::Int32, false),
            ("_partition", DataType::Int32, false),
            ("_offset", DataType::Int64, false),
            ("_timestamp", utc, true),
        ] {
            fields.push(Arc::new(Field::new(name, kind, nullable)));
        }
        Self {
            decoder,
            registry,
            schema: Arc::new(Schema::new(fields)),
            job,
        }
    }

    /// Decodes pieces in their order. The decoder comes back whatever happened, with what was decoded before an error.
    pub(super) async fn decode(
        mut self: Box<Self>,
        pieces: Vec<Piece>,
    ) -> Result<(Box<Self>, Vec<Decoded>, Result<(), RunError>), RunError> {
        if let Some(registry) = &self.registry {
            for piece in &pieces {
                registry.teach(&mut self.decoder, &piece.columns).await?;
            }
        }
        let work = compute::spawn(move || {
            let mut all = Vec::with_capacity(pieces.len());
            for piece in pieces {
                match self.one(piece) {
                    Ok(decoded) => all.push(decoded),
                    Err(source) => {
                        let job = self.job.clone();
                        return (self, all, Err(RunError::Decode { job, source }));
                    }
                }
            }
            (self, all, Ok(()))
        });
        work.await.map_err(|_| RunError::Stopped("decoding"))
    }

    fn one(&mut self, piece: Piece) -> Result<Decoded, DecodeError> {
        let decoded = self.decoder.decode(&piece.columns)?;
        let batch = self.with_places(&piece, &decoded.columns, &decoded.kept)?;
        let row = |row: u32| usize::try_from(row).unwrap_or(usize::MAX);
        let dead = decoded.dead.into_iter().map(|d| (row(d.row), d.error));
        Ok(Decoded {
            batch,
            dead: dead.collect(),
            piece,
        })
    }

    /// Adds generation, partition, offset and timestamp of each record that decoded.
    fn with_places(
        &self,
        piece: &Piece,
        columns: &RecordBatch,
        kept: &UInt32Array,
    ) -> Result<RecordBatch, ArrowError> {
        let rows = columns.num_rows();
        let (mut offsets, mut times): (ArrayRef, ArrayRef) = (
            Arc::new(piece.columns.offsets.clone()),
            Arc::new(timestamps(&piece.columns)),
        );
        if rows != piece.columns.len() {
            offsets = take(&offsets, kept, None)?;
            times = take(&times, kept, None)?;
        }
        let mut all = columns.columns().to_vec();
        all.push(Arc::new(Int32Array::from_value(
            piece.generation.as_i32(),
            rows,
        )));
        all.push(Arc::new(Int32Array::from_value(
            piece.partition.get(),
            rows,
        )));
        all.push(offsets);
        all.push(times);
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), all, &options)
    }
}

/// Kafka timestamps; null where a record has none.
pub(super) fn timestamps(columns: &EventColumns) -> TimestampMillisecondArray {
    let none = TimestampType::None.code();
    let types = columns.timestamp_types.values();
    let nulls = types.contains(&none).then(|| {
        NullBuffer::new(BooleanBuffer::collect_bool(types.len(), |row| {
            types[row] != none
        }))
    });
    TimestampMillisecondArray::new(columns.timestamps.values().clone(), nulls).with_timezone("UTC")
}

/// The row of an offset.
pub(super) fn row_of(offsets: &Int64Array, offset: i64) -> Option<usize> {
    offsets.values().binary_search(&offset).ok()
}

#[cfg(test)]
mod tests {
    use everlog_common::{EventColumnsBuilder, EventRef, Source, TopicName};
    use proptest::prelude::*;

    use super::*;

    fn batch(offsets: &[i64], start: i64, end: i64) -> EventBatch {
        let mut builder = EventColumnsBuilder::new();
        for offset in offsets {
            builder.push_event(&EventRef {
                offset: Offset::new(*offset).unwrap(),
                timestamp_ms: *offset,
                timestamp_type: TimestampType::Create,
                key: None,
                value: Some(b"{}"),
                headers: Vec::new(),
                leader_epoch: None,
            });
        }
        EventBatch {
            topic: TopicName::new("t").unwrap(),
            generation: Generation(1),
            partition: Partition::new(3).unwrap(),
            range: OffsetRange::new(Offset::new(start).unwrap(), Offset::new(end).unwrap())
                .unwrap(),
            columns: builder.finish(),
            source: Source::Archive,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// Pieces hold every row once, in order, and cover the range without a hole.
        #[test]
        fn pieces_are_the_batch(rows in 0_usize..40_000, every in 1_i64..4, tail in 0_i64..3) {
            let offsets: Vec<i64> = (0..rows).map(|n| 7 + i64::try_from(n).unwrap() * every).collect();
            let end = offsets.last().map_or(7, |last| last + 1) + tail;
            let batch = batch(&offsets, 5, end);
            let mut found = Vec::new();
            let mut position = Offset::new(5).unwrap();
            for piece in Followed::default().pieces(batch, &Positions::new(), None) {
                prop_assert!(piece.columns.len() <= PIECE_ROWS);
                prop_assert!(piece.columns.first_offset().is_none_or(|first| first >= position));
                prop_assert!(piece.columns.last_offset().is_none_or(|last| last < piece.end));
                found.extend_from_slice(piece.columns.offsets.values());
                position = piece.end;
            }
            prop_assert_eq!(found, offsets);
            prop_assert_eq!(position.get(), end);
        }
    }

    #[test]
    fn what_moved_besides_goes_with_the_first_piece_once() {
        let at = |offset| Position {
            generation: Generation(1),
            offset: Offset::new(offset).unwrap(),
        };
        let p = |n| Partition::new(n).unwrap();
        let mut followed = Followed::new([(p(3), at(5)), (p(4), at(1))].into());
        let now: Positions = [(p(3), at(9)), (p(4), at(2)), (p(5), at(0))].into();
        let pieces = followed.pieces(batch(&[5, 6], 5, 9), &now, None);
        assert_eq!(pieces[0].moved, [(p(4), at(2)), (p(5), at(0))]);
        let pieces = followed.pieces(batch(&[9], 9, 10), &now, None);
        assert!(pieces[0].moved.is_empty());
    }
}
