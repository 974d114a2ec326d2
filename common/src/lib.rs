//! What the write side and the read side must agree on: what a record is, what a position is, what a ledger is and how
//! it may change, and where time and identifiers come from. Nothing else belongs here.
//!
//! - [`position`]: offsets, ranges, positions, topic names
//! - [`record`]: records as Arrow columns, batches, the running hash
//! - [`ledger`]: the ledger and its rules, with its stored form
//! - [`clock`]: injected time and identifiers
//! - [`mutants`]: bugs on purpose, for tests alone
//! - [`compute`]: where work runs that would hold up an async thread
//! - [`units`]: how durations and sizes are written in the files of both
//!
//! How we talk to Kafka is `everlog-kafka` (`common/kafka`), how the table stores it all is `everlog-table`
//! (`common/table`); both build on this crate, which needs neither librdkafka nor Iceberg.

pub mod clock;
pub mod compute;
pub mod ledger;
pub mod mutants;
pub mod position;
pub mod record;
pub mod units;

pub use clock::{Clock, Ids, Millis};
pub use ledger::{Advance, Entry, Gap, GapReason, Identity, Ledger, Segment};
pub use position::{
    Generation, LogBounds, Offset, OffsetRange, Partition, Position, Positions, TopicId, TopicName,
    TopicPartition,
};
pub use record::{EventBatch, EventColumns, EventColumnsBuilder, EventRef, Source, TimestampType};
