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
//! - Messages come by the callback interface from a queue of our own. The batch interface moves the client's position by one
//!   at each end of partition, and the next pause or rebalance then skips a record without a word.
//! - Rebalances are recorded in their callback and answered later, by the caller's command. All partitions stand still
//!   until then, so answer soon.
//! - One error message stops a partition here, whatever the client does next: going on behind it would be a guess.
//! - `position`, committed offsets and `auto.offset.reset` decide nothing.
//!
//! A limit of the client's interface: a header name that holds a NUL byte is cut off there, and nothing tells.

mod classify;
mod ffi;
mod log;
mod log_lines;
mod probe;
mod properties;
mod reader;
mod slots;
mod worker;

pub use self::log::KafkaLog;
