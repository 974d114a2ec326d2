//! What ends a job: each error says what is wrong, where, and what to do.

use crate::state::StateError;

/// The engine cannot go on. Its progress and state are those of a torn batch: go back to the last checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A batch is not what the query was planned for.
    #[error("a batch does not fit the query: {0}")]
    Batch(String),
    /// Records came again, or in the wrong order.
    #[error(
        "partition {partition} is at generation {at_generation}, offset {at_offset}, but was handed generation {generation}, offset {offset}: records must come once and in order"
    )]
    Order {
        /// The partition.
        partition: i32,
        /// The generation of the position.
        at_generation: i32,
        /// The next offset that is due.
        at_offset: i64,
        /// The generation of the record.
        generation: i32,
        /// The offset of the record.
        offset: i64,
    },
    /// Records of a partition that was not assigned.
    #[error(
        "partition {0} was not assigned before its records came: it would not have held the watermark back"
    )]
    Unassigned(i32),
    /// With time per partition, a key must belong to one partition.
    #[error(
        "the key {key} occurs in partition {first} (offset {first_offset}) and in partition {second} (offset {second_offset}): with event_time_scope = \"partition\" the key must determine the partition; use event_time_scope = \"global\""
    )]
    TwoPartitions {
        /// The group key.
        key: String,
        /// The partition that holds it.
        first: i32,
        /// Where it was seen last.
        first_offset: i64,
        /// The other partition.
        second: i32,
        /// Where it was seen there.
        second_offset: i64,
    },
    /// A decision about records that have been processed already.
    #[error(
        "a decision for partition {partition} at generation {generation}, offset {offset} comes too late: the position is {at_generation}, {at_offset}"
    )]
    LateDecision {
        /// The partition.
        partition: i32,
        /// The decision's generation.
        generation: i32,
        /// The decision's offset.
        offset: i64,
        /// The position's generation.
        at_generation: i32,
        /// The position's offset.
        at_offset: i64,
    },
    /// The progress belongs to another query or engine.
    #[error(
        "the checkpoint was made by another query, or by another version of the engine ({found:016x}, now {expected:016x}): give the job a new version and replay"
    )]
    OtherQuery {
        /// The fingerprint in the checkpoint.
        found: u64,
        /// The query's.
        expected: u64,
    },
    /// The job was drained, which closed its windows.
    #[error(
        "the job was drained: its windows are closed, and it takes no more records; start a new version"
    )]
    Drained,
    /// HAVING or SELECT failed for a window.
    #[error(
        "a row of the result cannot be computed: {reason} ({row}); no row may be missing, so the job ends here each time: give it a new version whose SQL expects this, as x / NULLIF(y, 0) does"
    )]
    Output {
        /// The group: its key, its aggregates, its window.
        row: String,
        /// What failed.
        reason: String,
    },
    /// An expression failed for any row.
    #[error("an expression of the query cannot be computed: {0}")]
    Row(#[source] datafusion::common::DataFusionError),
    /// The aggregates failed.
    #[error("the aggregates cannot be computed: {0}")]
    Aggregate(#[source] datafusion::common::DataFusionError),
    /// The state failed.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<arrow_schema::ArrowError> for EngineError {
    fn from(error: arrow_schema::ArrowError) -> Self {
        EngineError::Aggregate(error.into())
    }
}
