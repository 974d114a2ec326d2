//! A job's memory, shared out.

/// Bytes for each part of a job. Together they are not more than the limit they were made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The local store: its pages in memory.
    pub local: usize,
    /// Changes of one epoch: at so many it ends early. Two epochs' may be held, the one that is being committed and the next.
    pub changes: usize,
    /// Rows, late records and dead letters of one epoch: at so many bytes it ends early. Two epochs' may be held.
    pub output: usize,
    /// What an epoch's file takes while it is encoded.
    pub encoding: usize,
    /// Decoding, grouping and merging of batches.
    pub engine: usize,
    /// Reading ahead, of history or of Kafka.
    pub source: usize,
    /// The sinks' clients.
    pub sink: usize,
}

/// An epoch is one file, encoded in memory and read back as a whole, and its rows are one commit of each output. More memory
/// does not make it larger than this, in bytes: it would come to be larger than a file may be, or take longer than a
/// transaction may be open.
const CHANGES_MAX: usize = 512 << 20;
/// The same of its rows, late records and dead letters.
const OUTPUT_MAX: usize = 128 << 20;

/// The least memory that a job can do with.
pub const MEMORY_MIN: usize = 64 << 20;

impl Budget {
    /// Shares of `limit` bytes; of [`MEMORY_MIN`] where that is more.
    pub fn of(limit: usize) -> Self {
        let limit = limit.max(MEMORY_MIN);
        let percent = |share: usize| limit / 100 * share;
        let changes = percent(10).min(CHANGES_MAX);
        let output = percent(5).min(OUTPUT_MAX);
        let encoding = percent(10).min(CHANGES_MAX + OUTPUT_MAX);
        let left_over = percent(40) - 2 * changes - 2 * output - encoding;
        Self {
            local: percent(30) + left_over,
            changes,
            output,
            encoding,
            engine: percent(12),
            source: percent(12),
            sink: percent(6),
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.local
            + 2 * self.changes
            + 2 * self.output
            + self.encoding
            + self.engine
            + self.source
            + self.sink
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_not_more_than_the_whole() {
        for limit in [0, MEMORY_MIN, 1 << 30, 64 << 30] {
            let total = Budget::of(limit).total();
            assert!(
                total <= limit.max(MEMORY_MIN) && total > limit / 10 * 9,
                "{limit}: {total}"
            );
            // with what the last piece brings on top, whatever does not compress
            let budget = Budget::of(limit);
            assert!(budget.changes + budget.output <= 640 << 20, "{limit}");
        }
    }
}
