//! Which batches a reader of committed records sees.
//!
//! A response names the transactions that were aborted in what it holds, by producer and first offset; where each ends is said
//! by its marker in the log. The rule is that of Kafka's own consumer (`CompletedFetch`).

use std::collections::BTreeSet;

use crate::{Batch, Unpacker, WireError};

/// A transaction that was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// Whose.
    pub producer_id: i64,
    /// Where it began in this partition.
    pub first_offset: i64,
}

/// Judges the batches of one partition's part of a response, in order.
#[derive(Debug)]
pub struct Visibility {
    /// The ones ahead, the next one last; none where everything is seen.
    ahead: Option<Vec<AbortedTransaction>>,
    /// Producers whose transaction here was aborted, and whose marker is still to come.
    aborting: BTreeSet<i64>,
}

impl Visibility {
    /// Everything but the protocol's own markers is seen.
    pub const fn of_everything() -> Self {
        Self {
            ahead: None,
            aborting: BTreeSet::new(),
        }
    }

    /// What was aborted is not seen. The broker ends the response at the last stable offset.
    pub fn of_committed(mut aborted: Vec<AbortedTransaction>) -> Self {
        aborted.sort_by_key(|transaction| std::cmp::Reverse(transaction.first_offset));
        Self {
            ahead: Some(aborted),
            aborting: BTreeSet::new(),
        }
    }

    /// Whether the records of `batch` are seen: it is the next one.
    pub fn sees(&mut self, batch: &Batch<'_>, unpacker: &mut Unpacker) -> Result<bool, WireError> {
        if let Some(ahead) = &mut self.ahead
            && batch.producer_id >= 0
        {
            while let Some(next) = ahead.pop_if(|next| next.first_offset <= batch.last_offset) {
                self.aborting.insert(next.producer_id);
            }
            if batch.is_control {
                if unpacker.is_abort_marker(batch)? {
                    self.aborting.remove(&batch.producer_id);
                }
            } else if batch.is_transactional && self.aborting.contains(&batch.producer_id) {
                return Ok(false);
            }
        }
        Ok(!batch.is_control)
    }
}
