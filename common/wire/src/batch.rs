//! The headers of record batches.

use everlog_common::TimestampType;

use crate::{Codec, WireError};

/// Bytes before a batch's records.
const HEADER_BYTES: usize = 61;
/// Base offset and length, which stand before what the length counts.
const PREFIX_BYTES: usize = 12;
/// Leader epoch, magic and CRC: behind them is what the CRC covers.
const CRC_FROM: usize = PREFIX_BYTES + 9;

const CODEC_BITS: i16 = 0b111;
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// A batch: its header, checked, and the bytes of its records.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Offset of its first record as it was written; compaction may have removed that record.
    pub base_offset: i64,
    /// Offset of its last record as it was written.
    pub last_offset: i64,
    /// The epoch of the leader that appended it; none in batches of before epochs.
    pub leader_epoch: Option<i32>,
    /// How the records are compressed.
    pub codec: Codec,
    /// Whose clock the timestamps are of.
    pub timestamp_type: TimestampType,
    /// Of the records; the append time where the type is that.
    pub max_timestamp: i64,
    /// Whether it is part of a transaction.
    pub is_transactional: bool,
    /// Whether it holds markers of the protocol, and no records of anyone.
    pub is_control: bool,
    /// Of the idempotent producer; -1 without.
    pub producer_id: i64,
    pub(crate) base_timestamp: i64,
    pub(crate) count: i32,
    pub(crate) body: &'a [u8],
}

impl Batch<'_> {
    pub(crate) fn malformed(&self, what: &'static str) -> WireError {
        WireError::Malformed {
            offset: self.base_offset,
            what,
        }
    }
}

/// The batches of a partition's part of a fetch response, in order. Ends behind the last that is whole: a broker cuts off
/// where the response is full.
#[derive(Debug, Clone)]
pub struct Batches<'a> {
    rest: &'a [u8],
    /// The first offset that the next batch may have.
    next: i64,
}

impl<'a> Batches<'a> {
    /// Those in `bytes`.
    pub const fn of(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            next: 0,
        }
    }

    /// Whether something is left that is no whole batch.
    pub const fn is_cut_off(&self) -> bool {
        !self.rest.is_empty()
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<Batch<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        // the lengths of every format lie at the same place
        let base_offset = i64::from_be_bytes(at(self.rest, 0)?);
        let length = i32::from_be_bytes(at(self.rest, 8)?);
        let malformed = |what| WireError::Malformed {
            offset: base_offset,
            what,
        };
        let Ok(length) = usize::try_from(length) else {
            self.rest = &[];
            return Some(Err(malformed("its length is negative")));
        };
        let (bytes, rest) = self
            .rest
            .split_at_checked(length.checked_add(PREFIX_BYTES)?)?;
        self.rest = rest;
        let batch = if base_offset < self.next {
            Err(malformed("it begins before the end of the batch before it"))
        } else {
            parse(base_offset, bytes)
        };
        match &batch {
            Ok(batch) => self.next = batch.last_offset.saturating_add(1),
            Err(_) => self.rest = &[],
        }
        Some(batch)
    }
}

fn at<const N: usize>(bytes: &[u8], from: usize) -> Option<[u8; N]> {
    bytes.get(from..from.checked_add(N)?)?.try_into().ok()
}

fn parse(base_offset: i64, bytes: &[u8]) -> Result<Batch<'_>, WireError> {
    let malformed = |what| WireError::Malformed {
        offset: base_offset,
        what,
    };
    let short = || malformed("it is shorter than a header");
    let [magic] = at(bytes, 16).ok_or_else(short)?;
    let magic = magic.cast_signed();
    if magic != 2 {
        return Err(if magic < 2 {
            WireError::OldFormat {
                offset: base_offset,
                magic,
            }
        } else {
            malformed("its message format is not known")
        });
    }
    let (header, body) = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(short)?;
    let int = |from| at(header, from).map_or(0, i32::from_be_bytes);
    let long = |from| at(header, from).map_or(0, i64::from_be_bytes);
    let stored = at(header, 17).map_or(0, u32::from_be_bytes);
    let found = crc32c::crc32c(&bytes[CRC_FROM..]);
    if found != stored {
        return Err(WireError::Crc {
            offset: base_offset,
            stored,
            found,
        });
    }
    let attributes = at(header, 21).map_or(0, i16::from_be_bytes);
    let (last_offset_delta, count) = (int(23), int(57));
    let last_offset = base_offset.checked_add(i64::from(last_offset_delta));
    let Some(last_offset) = last_offset.filter(|last| *last >= base_offset) else {
        return Err(malformed("its offsets are none"));
    };
    if count < 0 || i64::from(count) > i64::from(last_offset_delta) + 1 {
        return Err(malformed("it has more records than offsets"));
    }
    let Some(codec) = Codec::of(attributes & CODEC_BITS) else {
        return Err(WireError::Packed {
            offset: base_offset,
            detail: format!("codec {} is not known", attributes & CODEC_BITS),
        });
    };
    let leader_epoch = int(12);
    Ok(Batch {
        base_offset,
        last_offset,
        leader_epoch: (leader_epoch >= 0).then_some(leader_epoch),
        codec,
        timestamp_type: if attributes & LOG_APPEND_TIME == 0 {
            TimestampType::Create
        } else {
            TimestampType::LogAppend
        },
        max_timestamp: long(35),
        is_transactional: attributes & TRANSACTIONAL != 0,
        is_control: attributes & CONTROL != 0,
        producer_id: long(43),
        base_timestamp: long(27),
        count,
        body,
    })
}
