//! Kafka's record batches (message format v2) as they come in a fetch response, and their records. No I/O.
//!
//! ```text
//!   a partition's bytes ── Batches ──► Batch (header, checked CRC) ── Unpacker ──► Record, Record, …
//!                                        └─ Visibility: which of them a read_committed reader sees
//! ```
//!
//! - Nothing is believed: lengths are looked up against what is there, the CRC is computed over every batch, the number of
//!   records and the order of their offsets must be what the header says. What is wrong names the batch's offset.
//! - A compressed batch is never unpacked as a whole: records are taken from a window of it, so that its size costs no memory.
//!
//! Format: Kafka's documentation, *Record Batch*; `org.apache.kafka.common.record` where that is short.

mod batch;
mod codec;
mod record;
mod varint;
mod visibility;

pub use self::batch::{Batch, Batches};
pub use self::codec::Codec;
pub use self::record::{Headers, Record, Unpacker};
pub use self::visibility::{AbortedTransaction, Visibility};

/// What is wrong with the bytes of a batch. Each names the batch by its first offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Written by a producer older than Kafka 0.11 and never rewritten.
    #[error(
        "the batch at offset {offset} is of message format v{magic}, and only v2 (Kafka 0.11) is read"
    )]
    OldFormat {
        /// The batch's first offset.
        offset: i64,
        /// The format's number.
        magic: i8,
    },
    /// The bytes are not those that were written.
    #[error("the batch at offset {offset} has the CRC {found:#010x}, and says {stored:#010x}")]
    Crc {
        /// The batch's first offset.
        offset: i64,
        /// In the batch's header.
        stored: u32,
        /// Of the bytes that are there.
        found: u32,
    },
    /// The bytes are whole, and make no sense.
    #[error("the batch at offset {offset} is malformed: {what}")]
    Malformed {
        /// The batch's first offset.
        offset: i64,
        /// Where it stops making sense.
        what: &'static str,
    },
    /// Compressed by what nobody knows, or not what that codec writes.
    #[error("the batch at offset {offset} cannot be unpacked: {detail}")]
    Packed {
        /// The batch's first offset.
        offset: i64,
        /// The codec's words.
        detail: String,
    },
}
