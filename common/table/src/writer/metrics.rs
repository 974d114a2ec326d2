//! Exact bounds and counts of rows, as they are encoded.

use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, RecordBatch, cast::AsArray};
use everlog_common::EventColumns;

use crate::codec::RowContext;
use crate::schema::Column;

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
    first: Option<(i32, i32)>,
    last: (i32, i32),
    /// Per column.
    pub(super) nulls: [u64; Column::ALL.len()],
}

impl Metrics {
    pub(super) const fn new(archived_at: i64) -> Self {
        Self {
            generation: (i32::MAX, i32::MIN),
            partition: (i32::MAX, i32::MIN),
            offset: (i64::MAX, i64::MIN),
            timestamp: None,
            timestamp_raw: None,
            archived_at,
            partitions_ascend: true,
            first: None,
            last: (-1, -1),
            nulls: [0; Column::ALL.len()],
        }
    }

    pub(super) fn take(
        &mut self,
        context: &RowContext<'_>,
        rows: &EventColumns,
        encoded: &RecordBatch,
    ) {
        let (generation, partition) = (context.generation.as_i32(), context.partition.get());
        let place = (generation, partition);
        self.follow(place);
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

    /// Takes those of rows that come after all rows so far.
    pub(super) fn merge(&mut self, next: &Self) {
        let Some(first) = next.first else { return };
        self.follow(first);
        self.partitions_ascend &= next.partitions_ascend;
        self.last = next.last;
        self.generation = united(self.generation, next.generation);
        self.partition = united(self.partition, next.partition);
        self.offset = united(self.offset, next.offset);
        self.timestamp = united_where_known(self.timestamp, next.timestamp);
        self.timestamp_raw = united_where_known(self.timestamp_raw, next.timestamp_raw);
        for (nulls, more) in self.nulls.iter_mut().zip(next.nulls) {
            *nulls += more;
        }
    }

    fn follow(&mut self, place: (i32, i32)) {
        self.first.get_or_insert(place);
        self.partitions_ascend &= place == self.last || place.1 > self.last.1;
    }
}

fn united<T: Ord + Copy>(a: (T, T), b: (T, T)) -> (T, T) {
    (a.0.min(b.0), a.1.max(b.1))
}

fn united_where_known<T: Ord + Copy>(a: Option<(T, T)>, b: Option<(T, T)>) -> Option<(T, T)> {
    match (a, b) {
        (Some(a), Some(b)) => Some(united(a, b)),
        (one, other) => one.or(other),
    }
}

fn widened<T: Ord + Copy>((lower, upper): (T, T), value: T) -> (T, T) {
    (lower.min(value), upper.max(value))
}
