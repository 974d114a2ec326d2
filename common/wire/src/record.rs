//! The records of a batch.

use std::io::{self, Read as _};
use std::ops::ControlFlow;

use everlog_common::TimestampType;
use everlog_common::record::HeaderRef;

use crate::varint;
use crate::{Batch, Codec, WireError};

/// Unpacked bytes are read so many at once.
const WINDOW_BYTES: usize = 128 << 10;
/// A control record's key: version and type, of which this one aborts.
const ABORT: [u8; 2] = 0_i16.to_be_bytes();

/// One record, borrowed from its batch.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    /// Its offset.
    pub offset: i64,
    /// Milliseconds; -1 where there is none, whatever the type says.
    pub timestamp_ms: i64,
    /// Where the timestamp comes from.
    pub timestamp_type: TimestampType,
    /// Null and empty differ.
    pub key: Option<&'a [u8]>,
    /// Null and empty differ.
    pub value: Option<&'a [u8]>,
    /// In order, duplicates kept.
    pub headers: Headers<'a>,
}

/// The headers of a record: looked through when the record was read, so that they cannot fail any more.
#[derive(Debug, Clone, Default)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Headers<'a> {
    type Item = HeaderRef<'a>;

    fn next(&mut self) -> Option<HeaderRef<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut fields = Fields { rest: self.rest };
        let (name, value) = fields.header()?;
        self.rest = fields.rest;
        Some((name, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// What is read off, field by field; none where it is not there.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    #[inline]
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    #[inline]
    fn int(&mut self) -> Option<i32> {
        let (value, length) = varint::int(self.rest)?;
        self.take(length)?;
        Some(value)
    }

    #[inline]
    fn long(&mut self) -> Option<i64> {
        let (value, length) = varint::long(self.rest)?;
        self.take(length)?;
        Some(value)
    }

    /// Bytes with their length before them, where -1 is null.
    #[inline]
    fn nullable(&mut self) -> Option<Option<&'a [u8]>> {
        match self.int()? {
            -1 => Some(None),
            length => Some(Some(self.take(usize::try_from(length).ok()?)?)),
        }
    }

    fn header(&mut self) -> Option<HeaderRef<'a>> {
        let name = self.nullable()??;
        Some((name, self.nullable()?))
    }

    fn headers(&mut self) -> Option<Headers<'a>> {
        let left = usize::try_from(self.int()?).ok()?;
        let headers = Headers {
            rest: self.rest,
            left,
        };
        for _ in 0..left {
            self.header()?;
        }
        Some(headers)
    }
}

/// A record as it stands in its batch.
struct Raw<'a> {
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Headers<'a>,
}

impl<'a> Raw<'a> {
    /// `bytes` are the record's, without its length.
    #[inline]
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Fields { rest: bytes };
        // attributes, of which there are none
        fields.take(1)?;
        let raw = Self {
            timestamp_delta: fields.long()?,
            offset_delta: fields.int()?,
            key: fields.nullable()?,
            value: fields.nullable()?,
            headers: fields.headers()?,
        };
        fields.rest.is_empty().then_some(raw)
    }
}

/// Takes the records out of batches; keeps the memory for it from batch to batch.
#[derive(Debug)]
pub struct Unpacker {
    window: Vec<u8>,
    record_max: usize,
}

impl Unpacker {
    /// One that refuses compressed records of more than `record_max` bytes: a few kilobytes may say that they are gigabytes.
    pub const fn new(record_max: usize) -> Self {
        Self {
            window: Vec::new(),
            record_max,
        }
    }

    /// Hands the records from offset `from` on to `each`, until it breaks; true when all were handed over.
    pub fn records<F>(
        &mut self,
        batch: &Batch<'_>,
        from: i64,
        mut each: F,
    ) -> Result<bool, WireError>
    where
        F: FnMut(Record<'_>) -> ControlFlow<()>,
    {
        let mut last = batch.base_offset - 1;
        let flow = self.raw(batch, |raw| {
            let offset = batch.base_offset.checked_add(i64::from(raw.offset_delta));
            let Some(offset) =
                offset.filter(|offset| *offset > last && *offset <= batch.last_offset)
            else {
                return Err(
                    batch.malformed("its records' offsets do not increase up to its last one")
                );
            };
            last = offset;
            if offset < from {
                return Ok(ControlFlow::Continue(()));
            }
            let (timestamp_ms, timestamp_type) = match batch.timestamp_type {
                TimestampType::LogAppend => (batch.max_timestamp, TimestampType::LogAppend),
                _ => match batch.base_timestamp.wrapping_add(raw.timestamp_delta) {
                    -1 => (-1, TimestampType::None),
                    at => (at, TimestampType::Create),
                },
            };
            Ok(each(Record {
                offset,
                timestamp_ms,
                timestamp_type,
                key: raw.key,
                value: raw.value,
                headers: raw.headers,
            }))
        })?;
        Ok(flow.is_continue())
    }

    /// Whether a control batch says that its producer's transaction was aborted.
    pub(crate) fn is_abort_marker(&mut self, batch: &Batch<'_>) -> Result<bool, WireError> {
        let mut aborts = false;
        let _ended = self.raw(batch, |raw| {
            aborts = raw.key.is_some_and(|key| key.get(2..4) == Some(&ABORT));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(aborts)
    }

    fn raw<F>(&mut self, batch: &Batch<'_>, mut each: F) -> Result<ControlFlow<()>, WireError>
    where
        F: FnMut(Raw<'_>) -> Result<ControlFlow<()>, WireError>,
    {
        if batch.codec == Codec::None {
            let mut found = Found::new(batch);
            let mut rest = batch.body;
            let flow = found.take_all(&mut rest, &mut each)?;
            if flow.is_continue() {
                found.must_be_all(rest)?;
            }
            return Ok(flow);
        }
        self.raw_of_packed(batch, each)
    }

    fn raw_of_packed<F>(
        &mut self,
        batch: &Batch<'_>,
        mut each: F,
    ) -> Result<ControlFlow<()>, WireError>
    where
        F: FnMut(Raw<'_>) -> Result<ControlFlow<()>, WireError>,
    {
        let packed = |error: io::Error| WireError::Packed {
            offset: batch.base_offset,
            detail: error.to_string(),
        };
        let mut reader = batch.codec.reader(batch.body).map_err(packed)?;
        let mut found = Found::new(batch);
        // `held` bytes of the window are there: the front of a record that is not whole yet
        let mut held = 0;
        loop {
            if held > self.record_max {
                return Err(WireError::Packed {
                    offset: batch.base_offset,
                    detail: format!("a record of it has more than {} bytes", self.record_max),
                });
            }
            let wanted = held + WINDOW_BYTES;
            if self.window.len() < wanted {
                self.window.resize(wanted, 0);
            }
            let count = match reader.read(self.window.get_mut(held..).unwrap_or_default()) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(packed(error)),
            };
            let there = self.window.get(..held + count).unwrap_or_default();
            let mut rest = there;
            if found.take_all(&mut rest, &mut each)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if count == 0 {
                found.must_be_all(rest)?;
                break;
            }
            let left = rest.len();
            let from = there.len() - left;
            if from > 0 {
                self.window.copy_within(from..from + left, 0);
            }
            held = left;
        }
        // one giant record does not keep its memory for ever
        self.window.truncate(WINDOW_BYTES);
        self.window.shrink_to(4 * WINDOW_BYTES);
        Ok(ControlFlow::Continue(()))
    }
}

/// How many records of a batch were found.
struct Found<'b, 'a> {
    batch: &'b Batch<'a>,
    left: i32,
}

impl<'b, 'a> Found<'b, 'a> {
    const fn new(batch: &'b Batch<'a>) -> Self {
        Self {
            batch,
            left: batch.count,
        }
    }

    /// Every record that is whole, off the front of `rest`.
    fn take_all<F>(&mut self, rest: &mut &[u8], each: &mut F) -> Result<ControlFlow<()>, WireError>
    where
        F: FnMut(Raw<'_>) -> Result<ControlFlow<()>, WireError>,
    {
        while self.left > 0 {
            let Some((length, prefix)) = varint::int(rest) else {
                if rest.len() >= varint::INT_BYTES_MAX {
                    return Err(self.batch.malformed("a record's length is none"));
                }
                break;
            };
            let Ok(length) = usize::try_from(length) else {
                return Err(self.batch.malformed("a record's length is negative"));
            };
            let Some((bytes, behind)) = rest
                .get(prefix..)
                .and_then(|bytes| bytes.split_at_checked(length))
            else {
                break;
            };
            let Some(raw) = Raw::of(bytes) else {
                return Err(self
                    .batch
                    .malformed("a record's fields do not fit its length"));
            };
            self.left -= 1;
            *rest = behind;
            if each(raw)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Nothing more comes: `rest` is what is no record.
    fn must_be_all(&self, rest: &[u8]) -> Result<(), WireError> {
        if self.left > 0 {
            return Err(self.batch.malformed("it ends before its last record"));
        }
        if !rest.is_empty() {
            return Err(self.batch.malformed("it goes on behind its last record"));
        }
        Ok(())
    }
}
