//! One partition's log in memory: what a broker would answer, as pure state.

use std::collections::{BTreeMap, BTreeSet};

use everlog_common::{EventColumns, EventColumnsBuilder, LogBounds, Millis, Offset, TimestampType};

use crate::{Isolation, OffsetAtTime};

/// A record as a producer gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRecord {
    /// Milliseconds.
    pub timestamp_ms: i64,
    /// Where the timestamp comes from.
    pub timestamp_type: TimestampType,
    /// Null and empty differ.
    pub key: Option<Vec<u8>>,
    /// Null and empty differ.
    pub value: Option<Vec<u8>>,
    /// In order, duplicates kept.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl MemoryRecord {
    /// A record with a value, no key, no headers, and timestamp 0.
    pub fn value(value: impl AsRef<[u8]>) -> Self {
        Self {
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            key: None,
            value: Some(value.as_ref().to_vec()),
            headers: Vec::new(),
        }
    }

    /// With this key.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(key.as_ref().to_vec());
        self
    }

    /// With this timestamp.
    #[must_use]
    pub fn at(mut self, timestamp_ms: i64, timestamp_type: TimestampType) -> Self {
        self.timestamp_ms = timestamp_ms;
        self.timestamp_type = timestamp_type;
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, key: impl AsRef<[u8]>, value: Option<&[u8]>) -> Self {
        self.headers
            .push((key.as_ref().to_vec(), value.map(<[u8]>::to_vec)));
        self
    }
}

/// A transaction across partitions of a [`super::MemoryLog`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transaction(pub(super) u64);

#[derive(Debug, Clone)]
struct Row {
    record: MemoryRecord,
    epoch: i32,
    txn: Option<Transaction>,
}

/// What a reader finds from a position on.
pub(super) enum Read {
    /// Nothing new.
    Nothing,
    /// Rows (maybe none), the position after, and whether that is the end.
    Rows(Box<EventColumns>, Offset, bool),
    /// The position is outside of the log.
    OutOfRange(String),
    /// The position's epoch ended below it, or is unknown.
    Truncated(String),
}

#[derive(Debug, Clone, Default)]
pub(super) struct PartitionLog {
    rows: BTreeMap<i64, Row>,
    log_start: i64,
    end: i64,
    /// (epoch, first offset), ascending; the last is the current one.
    epochs: Vec<(i32, i64)>,
    open: BTreeMap<Transaction, i64>,
    aborted: BTreeSet<Transaction>,
}

impl PartitionLog {
    pub(super) fn new() -> Self {
        Self {
            epochs: vec![(0, 0)],
            ..Self::default()
        }
    }

    fn epoch(&self) -> i32 {
        self.epochs.last().map_or(0, |(epoch, _)| *epoch)
    }

    pub(super) fn append(&mut self, record: MemoryRecord, txn: Option<Transaction>) -> i64 {
        let offset = self.end;
        if let Some(txn) = txn {
            self.open.entry(txn).or_insert(offset);
        }
        let epoch = self.epoch();
        self.rows.insert(offset, Row { record, epoch, txn });
        self.end += 1;
        offset
    }

    /// Writes the control record that ends `txn`, if it wrote here.
    pub(super) fn finish(&mut self, txn: Transaction, commit: bool) {
        if self.open.remove(&txn).is_some() {
            self.end += 1;
            if !commit {
                self.aborted.insert(txn);
            }
        }
    }

    pub(super) fn remove(&mut self, gone: impl Fn(i64, &MemoryRecord) -> bool) {
        self.rows
            .retain(|offset, row| row.txn.is_some() || !gone(*offset, &row.record));
    }

    pub(super) fn skip(&mut self, offsets: i64) {
        self.end += offsets;
    }

    pub(super) fn delete_before(&mut self, offset: i64) {
        self.log_start = self.log_start.max(offset.min(self.end));
        self.rows = self.rows.split_off(&self.log_start);
    }

    /// An unclean election: what lies from `offset` on is gone, a new epoch begins there.
    pub(super) fn truncate(&mut self, offset: i64) {
        let offset = offset.clamp(self.log_start, self.end);
        self.rows.split_off(&offset);
        self.open.retain(|_, first| *first < offset);
        let next = self.epoch() + 1;
        self.end = offset;
        self.epochs.retain(|(_, first)| *first < offset);
        self.epochs.push((next, offset));
    }

    pub(super) fn bump_epoch(&mut self) {
        let next = self.epoch() + 1;
        self.epochs.push((next, self.end));
    }

    fn stable_end(&self, isolation: Isolation) -> i64 {
        match isolation {
            Isolation::ReadUncommitted => self.end,
            Isolation::ReadCommitted => self.open.values().copied().min().unwrap_or(self.end),
        }
    }

    pub(super) fn bounds(&self, isolation: Isolation) -> LogBounds {
        LogBounds {
            log_start: offset(self.log_start),
            end: offset(self.stable_end(isolation)),
            high_watermark: offset(self.end),
            leader_epoch: Some(self.epoch()),
        }
    }

    pub(super) fn at_time(&self, at: Millis) -> Option<OffsetAtTime> {
        self.rows
            .iter()
            .find(|(_, row)| {
                row.record.timestamp_type != TimestampType::None && row.record.timestamp_ms >= at.0
            })
            .map(|(o, row)| OffsetAtTime {
                offset: offset(*o),
                timestamp: Millis(row.record.timestamp_ms),
            })
    }

    /// Kafka's rule: the current epoch ends at the log's end, an older one where the next began; an epoch later than
    /// the current one is unknown.
    pub(super) fn epoch_end(&self, epoch: i32) -> Option<Offset> {
        if epoch == self.epoch() {
            return Some(offset(self.end));
        }
        self.epochs
            .iter()
            .find(|(e, _)| *e > epoch)
            .map(|(_, first)| offset(*first))
    }

    fn refuses(&self, next: i64, epoch: Option<i32>) -> Option<Read> {
        if let Some(epoch) = epoch {
            match self.epoch_end(epoch) {
                None => {
                    return Some(Read::Truncated(format!(
                        "no epoch found less or equal to {epoch}"
                    )));
                }
                Some(end) if end.get() < next => {
                    return Some(Read::Truncated(format!(
                        "at offset {next} (leader epoch {epoch}): broker end offset is {end}"
                    )));
                }
                Some(_) => {}
            }
        }
        (next < self.log_start || next > self.end)
            .then(|| Read::OutOfRange(format!("the log is [{}, {})", self.log_start, self.end)))
    }

    /// What a fetch from `next` gives: at most `rows_max` rows and `bytes_max` bytes, but at least one row if any.
    pub(super) fn read(
        &self,
        (next, epoch): (i64, Option<i32>),
        isolation: Isolation,
        rows_max: usize,
        bytes_max: usize,
    ) -> Read {
        if let Some(refusal) = self.refuses(next, epoch) {
            return refusal;
        }
        let end = self.stable_end(isolation);
        if next >= end {
            return Read::Nothing;
        }
        let mut builder = EventColumnsBuilder::new();
        let mut after = next;
        let mut full = false;
        for (at, row) in self.rows.range(next..end) {
            let hidden = isolation == Isolation::ReadCommitted
                && row.txn.is_some_and(|txn| self.aborted.contains(&txn));
            if hidden {
                continue;
            }
            if builder.len() >= rows_max || (!builder.is_empty() && builder.bytes() >= bytes_max) {
                // the position goes behind the last row, never into what comes next
                full = true;
                break;
            }
            let r = &row.record;
            builder.push(
                offset(*at),
                (r.timestamp_ms, r.timestamp_type),
                r.key.as_deref(),
                r.value.as_deref(),
                r.headers.iter().map(|(k, v)| (k.as_slice(), v.as_deref())),
                Some(row.epoch),
            );
            after = at + 1;
        }
        let after = if full { after } else { end };
        Read::Rows(Box::new(builder.finish()), offset(after), after == end)
    }
}

/// Offsets in here are never negative: they start at 0 and only grow.
fn offset(value: i64) -> Offset {
    Offset::new(value).unwrap_or_default()
}
