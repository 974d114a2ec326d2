//! [`Log`](crate::Log) and [`LogReader`](crate::LogReader) on librdkafka.
//!
//! ```text
//!   caller ── assign/unassign/pause … ──►  commands ─┐                       ┌─ partition queues (librdkafka threads)
//!          ◄── poll: events ── outbox (bounded) ◄── worker thread ◄── own queue ◄┘
//!                                                    │  serves rebalances and logs, copies messages to columns
//!                                                    └─ slots: next offset per partition; what is below is dropped
//! ```
//!
//! Decisions that rest on measurements (librdkafka 2.12.1; the versions are pinned in the workspace):
//! - Messages come one by one, as events, from a queue of our own. The interface for batches moves the client's position by
//!   one at each end of partition, the one with a callback by markers of transactions whose records it drops: the next pause
//!   or rebalance then skips records without a word. See `ffi::Queue::consume`.
//! - Rebalances are recorded in their callback and answered later, by the caller's command. All partitions stand still
//!   until then, so answer soon.
//! - One error message stops a partition here, whatever the client does next: going on behind it would be a guess.
//! - `position`, committed offsets and `auto.offset.reset` decide nothing.
//!
//! Limits of the client:
//! - A header name that holds a NUL byte is cut off there, and nothing tells.
//! - A record with more than 100,000 headers (or malformed ones) is a [`PartitionFault::Corrupt`](crate::PartitionFault::Corrupt): librdkafka does
//!   not read them, and a record without its headers would be another one.
//! - A topic that is deleted, or that may not be described any more, is silence to a reader that is alone; [`Log`](crate::Log)'s
//!   answers say it.
//! - A client that is told of no broker at all (a cluster of one, fenced after a pause) may be silent for ever. After 10 s it is
//!   given the configured brokers again; see `brokerless`.
//! - A batch that fails its CRC is a [`PartitionFault::Corrupt`](crate::PartitionFault::Corrupt) when it comes first in a
//!   response. Further behind, librdkafka 2.12.1 computes a wrong place to go on (`rd_kafka_buf_skip_to` in
//!   `rd_kafka_msgset_reader_v2`) and ends the *process* by an assertion. Nothing wrong is ever delivered.

mod brokerless;
mod classify;
mod ffi;
mod log;
mod log_lines;
mod mirror;
mod probe;
mod properties;
mod reader;
mod slots;
mod transactions;
mod worker;

pub use self::ffi::BrokerWatch;
pub use self::log::KafkaLog;
pub(crate) use self::mirror::Mirror;
pub use self::properties::for_other_clients;
pub use self::transactions::{TransactionError, TransactionalProducer};
