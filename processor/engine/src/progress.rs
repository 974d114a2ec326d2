//! What of a job is not in its [`State`](crate::State): positions, clocks, decisions, counters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event_time::{Clock, Decision, END, NEVER};

/// How far a job has come. Goes into every checkpoint, with the state it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The query it belongs to, 0 before the first start. See [`crate::Query::fingerprint`].
    pub fingerprint: u64,
    /// Per partition: position and time. They hold the watermark back from the moment they are here.
    pub partitions: BTreeMap<i32, PartitionProgress>,
    /// The decision log in order of partition, generation, offset, with the highest floor ever given for each of these.
    pub decisions: Vec<Decision>,
    /// What the whole has reached: the lowest watermark of all partitions, never decreasing.
    pub watermark: i64,
    /// Whether the job was drained: it then takes no more records.
    pub drained: bool,
    /// What has been counted so far.
    pub counters: Counters,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            fingerprint: 0,
            partitions: BTreeMap::new(),
            decisions: Vec::new(),
            watermark: NEVER,
            drained: false,
            counters: Counters::default(),
        }
    }
}

/// One partition's position and time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionProgress {
    /// The generation that `next_offset` belongs to.
    pub generation: i32,
    /// The first offset that has not been processed.
    pub next_offset: i64,
    /// Its time.
    pub clock: Clock,
    /// Whether the topic does not have it in `generation`: it then holds nobody back. See [`crate::Engine::lacks`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
}

impl PartitionProgress {
    /// What it lets time come to.
    pub(crate) fn watermark(&self, bound: i64) -> i64 {
        if self.away {
            END
        } else {
            self.clock.watermark(bound)
        }
    }
}

/// Records and rows since the job began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Records handed to the engine.
    pub records: u64,
    /// Records that no window took, or that were too old to be told from a duplicate.
    pub late: u64,
    /// Records that only some of their hopping windows took.
    pub partly_late: u64,
    /// Records without a usable event time, or for which an expression failed.
    pub dead: u64,
    /// Records that the query's WHERE left out.
    pub filtered: u64,
    /// Records dropped as duplicates.
    pub duplicates: u64,
    /// Rows that were emitted.
    pub rows: u64,
}
