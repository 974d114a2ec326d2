//! What one partition has in memory between the reader and a commit. No I/O, no clock.
//!
//! ```text
//!   base.next            in flight            buffered          position
//!      │ ◄──── cut, being committed ────► │ ◄── next cut ──► │ ◄── next range from the reader
//! ─────┴──────────────────────────────────┴──────────────────┴──────────► offsets
//! ```
//!
//! Invariants
//! - The segments of consecutive cuts tile the offsets from `base.next` (or the start) up to `position`: no offset twice,
//!   none left out, whatever the borders of the reader's batches.
//! - What the position has passed is dropped when the reader brings it again; a range that begins beyond it is an error,
//!   never a silent step.
//! - At most one cut is in flight; the next one goes on from the entry that the first one made.
//! - Rows are handed on as they came, never copied, except that crumbs are put together so that a thousand quiet
//!   partitions do not drown in array headers.

use everlog_common::mutants::Mutant;
use everlog_common::record::RunningHash;
use everlog_common::{
    Advance, Entry, EventColumns, Generation, Identity, Offset, OffsetRange, Partition, Segment,
};
use everlog_table::files::PartitionRows;

use crate::recovery::Start;

/// What an array costs beside its rows, and what a batch therefore counts at least.
const BATCH_OVERHEAD_BYTES: usize = 2048;

/// A batch with fewer rows and bytes is a crumb.
const CRUMB_ROWS: usize = 1024;
const CRUMB_BYTES: usize = 256 << 10;

/// So many crumbs at the end of a buffer become one batch.
const CRUMBS_MAX: usize = 32;

/// The reader skipped offsets: its contract is broken, and nothing after it may be archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected offset {expected}, the reader went on at {found}")]
pub struct Hole {
    /// The position.
    pub expected: Offset,
    /// Where the range began.
    pub found: Offset,
}

/// A cut whose rows are not what its segments say: a bug, found before anything is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("partition {partition}: {what}")]
pub struct Unsound {
    /// The partition.
    pub partition: Partition,
    /// What is wrong.
    pub what: String,
}

/// The buffer of one partition.
#[derive(Debug)]
pub struct Buffer {
    base: Option<Entry>,
    began_under: Option<i32>,
    position: Offset,
    pending: Pending,
    in_flight: Option<InFlight>,
}

#[derive(Debug, Default)]
struct Pending {
    gap: Option<Segment>,
    /// What the rows cover.
    range: Option<OffsetRange>,
    batches: Vec<EventColumns>,
    crumbs: usize,
    rows: u64,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    end: Offset,
    bytes: usize,
}

impl Buffer {
    /// Empty, at a recovered start.
    pub fn new(start: &Start) -> Self {
        Self {
            base: start.base,
            began_under: start.began_under,
            position: start.offset,
            pending: Pending {
                gap: start.gap,
                ..Pending::default()
            },
            in_flight: None,
        }
    }

    /// The next offset that the reader is expected to bring.
    pub const fn position(&self) -> Offset {
        self.position
    }

    /// The ledger's entry that the next cut goes on from, once what is in flight has landed.
    pub const fn base(&self) -> Option<Entry> {
        self.base
    }

    /// Bytes held, in flight included.
    pub fn bytes(&self) -> usize {
        self.pending.bytes + self.in_flight.map_or(0, |f| f.bytes)
    }

    /// Bytes that the next cut would take.
    pub const fn pending_bytes(&self) -> usize {
        self.pending.bytes
    }

    /// Rows that the next cut would take.
    pub const fn pending_rows(&self) -> u64 {
        self.pending.rows
    }

    /// Whether a cut is being committed.
    pub const fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether the next cut says something that must not wait for rows: a gap.
    pub const fn has_gap(&self) -> bool {
        self.pending.gap.is_some()
    }

    /// Whether there is nothing to cut.
    pub const fn is_empty(&self) -> bool {
        self.pending.gap.is_none() && self.pending.range.is_none()
    }

    /// Whether everything up to the position is in the ledger.
    pub const fn is_settled(&self) -> bool {
        self.is_empty() && self.in_flight.is_none()
    }

    /// Takes what the reader brought; returns how many bytes the buffer grew by.
    pub fn accept(&mut self, range: OffsetRange, columns: EventColumns) -> Result<usize, Hole> {
        if range.end() <= self.position {
            return Ok(0);
        }
        if range.start() > self.position {
            return Err(Hole {
                expected: self.position,
                found: range.start(),
            });
        }
        let columns = if range.start() < self.position {
            columns.slice_offsets(self.position, range.end())
        } else {
            columns
        };
        let before = self.pending.bytes;
        let start = self.pending.range.map_or(self.position, OffsetRange::start);
        // cannot fail: the end lies beyond the position, which is at or beyond the start
        self.pending.range = OffsetRange::new(start, range.end()).ok();
        self.position = range.end();
        let columns = if Mutant::RowLost.is_planted() && columns.len() > 3 {
            columns.slice(0, columns.len() - 1)
        } else {
            columns
        };
        if !columns.is_empty() {
            self.pending.push(columns);
        }
        Ok(self.pending.bytes.saturating_sub(before))
    }

    /// Everything buffered, to be committed; none if there is nothing, or the last cut is still on its way.
    pub fn cut(&mut self, partition: Partition) -> Option<Cut> {
        if self.in_flight.is_some() || self.is_empty() {
            return None;
        }
        let pending = std::mem::take(&mut self.pending);
        self.in_flight = Some(InFlight {
            end: self.position,
            bytes: pending.bytes,
        });
        Some(Cut {
            partition,
            base: self.base,
            began_under: self.began_under,
            gap: pending.gap,
            range: pending.range,
            batches: pending.batches,
            rows: pending.rows,
            bytes: pending.bytes,
            end: self.position,
        })
    }

    /// The cut has landed: the ledger holds `entry` now. False if that is not what was cut, and the buffer is void.
    #[must_use]
    pub fn committed(&mut self, entry: Entry) -> bool {
        let Some(flight) = self.in_flight.take() else {
            return false;
        };
        self.base = Some(entry);
        entry.next == flight.end
    }
}

impl Pending {
    fn push(&mut self, columns: EventColumns) {
        let bytes = columns.bytes();
        let is_crumb = columns.len() < CRUMB_ROWS && bytes < CRUMB_BYTES;
        self.rows += columns.len() as u64;
        self.bytes += bytes + BATCH_OVERHEAD_BYTES;
        self.batches.push(columns);
        self.crumbs = if is_crumb { self.crumbs + 1 } else { 0 };
        if self.crumbs < CRUMBS_MAX {
            return;
        }
        let tail = self.batches.split_off(self.batches.len() - self.crumbs);
        match EventColumns::concat(&tail) {
            Ok(joined) => {
                self.bytes -= BATCH_OVERHEAD_BYTES * (tail.len() - 1);
                let still = joined.len() < CRUMB_ROWS && joined.bytes() < CRUMB_BYTES;
                self.crumbs = usize::from(still);
                self.batches.push(joined);
            }
            Err(_) => {
                self.crumbs = 0;
                self.batches.extend(tail);
            }
        }
    }
}

/// What one commit takes from one partition.
#[derive(Debug, Clone)]
pub struct Cut {
    partition: Partition,
    base: Option<Entry>,
    began_under: Option<i32>,
    gap: Option<Segment>,
    range: Option<OffsetRange>,
    batches: Vec<EventColumns>,
    rows: u64,
    bytes: usize,
    end: Offset,
}

impl Cut {
    /// The partition.
    pub const fn partition(&self) -> Partition {
        self.partition
    }

    /// Where it ends.
    pub const fn end(&self) -> Offset {
        self.end
    }

    /// Rows in it.
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of its rows in memory.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The last row's offset.
    pub fn last_row(&self) -> Option<Offset> {
        self.batches.last().and_then(EventColumns::last_offset)
    }

    /// The last row's leader epoch where there are rows, else the base's.
    pub fn leader_epoch(&self) -> Option<i32> {
        match self.batches.last() {
            Some(columns) => columns
                .len()
                .checked_sub(1)
                .and_then(|row| columns.row(row).leader_epoch),
            None => self.base.and_then(|b| b.leader_epoch),
        }
    }

    /// The epoch of the leader that was there before reading began.
    pub const fn began_under(&self) -> Option<i32> {
        self.began_under
    }

    /// Whether offsets without rows lie before a row of a later leader than any that is known to have been there when they were
    /// read: that leader may have cut the log below them, and have records there. Nothing is known of them where the
    /// brokers do not tell who leads.
    pub fn has_unproven_hole(&self) -> bool {
        let Some(began) = self.began_under else {
            return false;
        };
        // whoever served an offset led at least as late as whoever wrote what was read before it
        let mut led = self
            .base
            .and_then(|b| b.leader_epoch)
            .map_or(began, |e| e.max(began));
        let mut due = self.range.map_or(0, |r| r.start().get());
        for columns in &self.batches {
            let offsets = columns.offsets.values();
            let epochs = columns.leader_epochs.iter();
            for (offset, epoch) in offsets.iter().zip(epochs) {
                if let Some(epoch) = epoch {
                    if epoch > led && *offset > due {
                        return true;
                    }
                    led = led.max(epoch);
                }
                due = offset.saturating_add(1);
            }
        }
        false
    }

    /// What the next advance begins with: an interval that Kafka no longer has.
    pub fn gap(&self) -> Option<Segment> {
        self.gap
    }

    /// Checks that the rows are what the segments say, and hashes them. Work for a thread that may be busy: it looks
    /// at every byte.
    pub fn seal(&self) -> Result<u64, Unsound> {
        let unsound = |what: String| Unsound {
            partition: self.partition,
            what,
        };
        let mut hash = RunningHash::from(match self.base {
            Some(base) if !Mutant::HashFromZero.is_planted() => base.hash,
            _ => 0,
        });
        let mut rows = 0_u64;
        // the offset that the next row has to reach at least
        let mut least = self.range.map_or(0, |r| r.start().get());
        for columns in &self.batches {
            for &offset in columns.offsets.values() {
                if offset < least {
                    return Err(unsound(format!(
                        "offset {offset} where at least {least} was due"
                    )));
                }
                least = offset.saturating_add(1);
            }
            rows += columns.len() as u64;
            hash.update(columns);
        }
        let end = self.range.map_or(0, |r| r.end().get());
        if rows > 0 && least > end {
            return Err(unsound(format!(
                "a row at {}, the range ends at {end}",
                least - 1
            )));
        }
        if rows != self.rows {
            return Err(unsound(format!("{rows} rows, counted {}", self.rows)));
        }
        Ok(hash.value())
    }

    /// The advance that it makes.
    pub fn advance(
        &self,
        generation: Generation,
        identity: &Identity,
        leader_epoch: Option<i32>,
        hash: u64,
    ) -> Advance {
        let range = match (self.range, self.last_row()) {
            (Some(range), Some(row)) if Mutant::MaxRowPlusOne.is_planted() => {
                OffsetRange::new(range.start(), row.next()).ok()
            }
            (range, _) => range,
        };
        let data = range.map(|range| Segment::Data {
            range,
            rows: self.rows,
        });
        let gap = match self.gap {
            Some(Segment::Gap {
                start,
                end: Some(end),
                ..
            }) if Mutant::GapUnrecorded.is_planted() => OffsetRange::new(start, end)
                .ok()
                .map(|range| Segment::Data { range, rows: 0 }),
            gap => gap,
        };
        Advance {
            generation,
            identity: identity.clone(),
            partition: self.partition,
            base: self.base,
            segments: gap.into_iter().chain(data).collect(),
            leader_epoch,
            hash,
        }
    }

    /// Its rows for the writer (the arrays are shared, not copied); none if there are none.
    pub fn partition_rows(&self, generation: Generation) -> Option<PartitionRows> {
        let range = self.range.filter(|_| self.rows > 0)?;
        Some(PartitionRows {
            generation,
            partition: self.partition,
            range,
            batches: self.batches.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
