//! How much may be held in memory, and what to do about it. No I/O.
//!
//! ```text
//!  0 ───────── eager ─────────────── resume ──────────── limit ───────── limit + one record
//!      by the clock │ largest table first │ … stays as it is │ reading stops │
//! ```
//!
//! What counts: rows buffered, rows in flight, and what the reader holds. The limit leaves room for what does not count, so
//! that the whole process stays within the setting: encoding, which works on one file at a time; what the reader brings
//! after it was told to stop; and the process itself with its allocator. One record that is larger than everything
//! still passes: what stops is the *next* poll.

/// The share of memory that encoding and uploading files may take beside the rows themselves: for each thread that encodes a
/// row group, once as its pages and once as it goes out, and the parts on their way. Rows that do not compress take it all.
const ENCODING_BYTES: usize = 80 << 20;

/// What the process takes beside rows: partitions, their positions and metrics, the client's threads, and what the allocator
/// cannot give back.
const PROCESS_BYTES: usize = 128 << 20;

/// A table that has buffered so much is committed before its time: four files' worth at most.
const TABLE_BYTES_MAX: usize = 128 << 20;

/// The bounds that follow from one setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    reader: usize,
    limit: usize,
}

/// What a reading task may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Read on.
    None,
    /// Read on, and commit the largest table now.
    Eager,
    /// Commit, and read nothing more until it has landed.
    Full,
}

impl Budget {
    /// Splits `memory` into the reader's share, room for encoding and what may be buffered.
    pub fn new(memory: usize) -> Self {
        // the client overshoots by a fetch per broker: an eighth keeps 1,000 partitions flowing (16 MiB is enough)
        let reader = (memory / 8).clamp(4 << 20, 64 << 20);
        let encoding = ENCODING_BYTES.min(memory / 4);
        let process = PROCESS_BYTES.min(memory / 4);
        Self {
            reader,
            limit: memory
                .saturating_sub(encoding + reader + process)
                .max(memory / 2),
        }
    }

    /// What the reader may hold.
    pub const fn reader(&self) -> usize {
        self.reader
    }

    /// Above which nothing more is read.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// How much tables whose commit is on its way may hold together before nothing more of them is read, so that those
    /// whose catalog or store is away leave room for the others: with the reader's share on top it is still less than where
    /// reading goes on.
    pub const fn waiting_limit(&self) -> usize {
        self.limit / 16 * 7
    }

    /// When one table alone is reason enough for a commit.
    pub fn table_limit(&self) -> usize {
        TABLE_BYTES_MAX.min(self.limit / 3)
    }

    /// What `held` bytes mean; `was_full` is the answer before, so that reading does not flutter. `waiting` of them belong
    /// to tables whose commit is on its way beside others: they may stay for long, and reading goes on above them.
    pub fn pressure(&self, held: usize, waiting: usize, was_full: bool) -> Pressure {
        let above = waiting.saturating_add(self.limit / 8).min(self.limit);
        let resume = (self.limit / 4 * 3).max(above);
        if held >= self.limit || (was_full && held >= resume) {
            Pressure::Full
        } else if held >= self.limit / 2 {
            Pressure::Eager
        } else {
            Pressure::None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reading_stops_at_the_limit_and_goes_on_below_three_quarters() {
        let budget = Budget::new(512 << 20);
        let limit = budget.limit();
        assert_eq!(budget.pressure(0, 0, false), Pressure::None);
        assert_eq!(budget.pressure(limit / 2, 0, false), Pressure::Eager);
        assert_eq!(budget.pressure(limit - 1, 0, false), Pressure::Eager);
        assert_eq!(budget.pressure(limit, 0, false), Pressure::Full);
        assert_eq!(budget.pressure(limit / 5 * 4, 0, true), Pressure::Full);
        assert_eq!(budget.pressure(limit / 3 * 2, 0, true), Pressure::Eager);
    }

    proptest! {
        #[test]
        fn the_shares_never_exceed_the_whole(mib in 16_usize..100_000) {
            let memory = mib << 20;
            let budget = Budget::new(memory);
            prop_assert!(budget.limit() <= memory && budget.reader() < budget.limit());
            prop_assert!(budget.table_limit() * 3 <= budget.limit());
            // what is held up, and what the reader still brings of it, stops nobody else
            let held = budget.waiting_limit() + budget.reader();
            prop_assert!(memory < 32 << 20 || budget.pressure(held, 0, true) != Pressure::Full);
        }

        #[test]
        fn b07_what_waits_stops_reading_only_where_the_memory_ends(mib in 16_usize..4096, waits in 0_usize..100) {
            let budget = Budget::new(mib << 20);
            let waiting = budget.limit() / 100 * waits;
            prop_assert!(budget.pressure(waiting, waiting, true) != Pressure::Full);
            prop_assert_eq!(budget.pressure(budget.limit(), waiting, false), Pressure::Full);
        }
    }
}
