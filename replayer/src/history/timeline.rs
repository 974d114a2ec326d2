//! `--order time`: the partitions' rows merged by timestamp, ties by (partition, offset), each partition's own order
//! kept. A classic merge of heads, so its result depends on nothing but the rows: the same for every run over the same
//! snapshot.
//!
//! Invariant: nothing is emitted while any partition's next row is unknown.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use everlog_common::{Gap, Offset, OffsetRange, Partition};

use super::merger::{MergeError, Rows, Step};

/// Sorts a row among the heads of all partitions. A record without a timestamp counts as -1.
type HeadKey = (i64, Partition, i64);

/// What the timeline gives.
#[derive(Debug)]
pub enum TimeStep {
    /// The next rows.
    Rows(Rows),
    /// A recorded gap was passed.
    Gap(Gap),
    /// This partition's next row is not known yet.
    Blocked(Partition),
    /// Everything is out.
    Finished,
}

/// See the module's text.
#[derive(Debug)]
pub struct Timeline {
    /// Partitions whose next rows have to be asked for.
    empty: BTreeSet<Partition>,
    chunks: BTreeMap<Partition, Rows>,
    heads: BinaryHeap<Reverse<HeadKey>>,
}

impl Timeline {
    /// Over these partitions.
    pub fn new(partitions: impl IntoIterator<Item = Partition>) -> Self {
        Self {
            empty: partitions.into_iter().collect(),
            chunks: BTreeMap::new(),
            heads: BinaryHeap::new(),
        }
    }

    /// Bytes of the rows that wait here.
    pub fn held_bytes(&self) -> usize {
        self.chunks.values().map(|r| r.columns.bytes()).sum()
    }

    /// The next rows; `release` asks a partition for its own.
    pub fn next(
        &mut self,
        mut release: impl FnMut(Partition) -> Result<Step, MergeError>,
    ) -> Result<TimeStep, MergeError> {
        while let Some(partition) = self.empty.first().copied() {
            match release(partition)? {
                Step::Rows(rows) if rows.columns.is_empty() => return Ok(TimeStep::Rows(rows)),
                Step::Rows(rows) => {
                    self.empty.remove(&partition);
                    self.heads.push(Reverse(head(&rows)));
                    self.chunks.insert(partition, rows);
                }
                Step::Gap(gap) => return Ok(TimeStep::Gap(gap)),
                Step::Blocked => return Ok(TimeStep::Blocked(partition)),
                Step::Finished => {
                    self.empty.remove(&partition);
                }
            }
        }
        let Some(Reverse((_, partition, _))) = self.heads.pop() else {
            return Ok(TimeStep::Finished);
        };
        let Some(chunk) = self.chunks.remove(&partition) else {
            return Ok(TimeStep::Finished);
        };
        let limit = self.heads.peek().map(|Reverse(key)| *key);
        let rows = limit.map_or(chunk.columns.len(), |limit| rows_before(&chunk, limit));
        let (now, later) = split(chunk, rows);
        match later {
            Some(later) => {
                self.heads.push(Reverse(head(&later)));
                self.chunks.insert(partition, later);
            }
            None => {
                self.empty.insert(partition);
            }
        }
        Ok(TimeStep::Rows(now))
    }
}

fn stamp(rows: &Rows, row: usize) -> i64 {
    if rows.columns.timestamp_types.value(row) < 0 {
        -1
    } else {
        rows.columns.timestamps.value(row)
    }
}

fn head(rows: &Rows) -> HeadKey {
    (
        stamp(rows, 0),
        rows.partition,
        rows.columns.offsets.value(0),
    )
}

/// How many of the chunk's rows come before `limit`; at least one, since its head was the least.
fn rows_before(chunk: &Rows, limit: HeadKey) -> usize {
    let before = |row: &usize| {
        let offset = chunk.columns.offsets.value(*row);
        (stamp(chunk, *row), chunk.partition, offset) < limit
    };
    (0..chunk.columns.len()).take_while(before).count().max(1)
}

/// The first `rows` rows and the rest, each with what it covers.
fn split(chunk: Rows, rows: usize) -> (Rows, Option<Rows>) {
    let columns = chunk.columns.slice(rows, chunk.columns.len() - rows);
    if columns.is_empty() {
        return (chunk, None);
    }
    let now = chunk.columns.slice(0, rows);
    let border = now.last_offset().map_or(chunk.range.start(), Offset::next);
    let ranges = (
        OffsetRange::new(chunk.range.start(), border),
        OffsetRange::new(border, chunk.range.end()),
    );
    let (Ok(first), Ok(second)) = ranges else {
        return (chunk, None);
    };
    let partition = chunk.partition;
    let part = |range, columns| Rows {
        partition,
        range,
        columns,
    };
    (part(first, now), Some(part(second, columns)))
}
