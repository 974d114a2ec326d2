//! Milliseconds to microseconds and back.

use arrow_array::builder::{Int64Builder, TimestampMicrosecondBuilder};
use arrow_array::{Array, Int8Array, Int64Array, TimestampMicrosecondArray};
use everlog_common::TimestampType;

use super::CodecError;
use crate::schema::Column;

/// Kafka's "no timestamp".
const NO_TIMESTAMP: i64 = -1;
const MS_MAX: i64 = i64::MAX / 1000;
const MS_MIN: i64 = i64::MIN / 1000;

/// `timestamp` and, where any row needs it, `timestamp_raw`.
pub(super) fn encode(
    ms: &Int64Array,
    types: &Int8Array,
) -> (TimestampMicrosecondArray, Option<Int64Array>) {
    let simple = |ms: &i64| (MS_MIN..=MS_MAX).contains(ms) && *ms != NO_TIMESTAMP;
    let none = TimestampType::None.code();
    let all_simple = ms.values().iter().fold(true, |all, v| all & simple(v))
        & types
            .values()
            .iter()
            .fold(true, |all, t| all & (*t != none));
    if all_simple {
        let us: Vec<i64> = ms.values().iter().map(|ms| ms * 1000).collect();
        return (us.into(), None);
    }
    let mut stored = TimestampMicrosecondBuilder::with_capacity(ms.len());
    let mut raw = Int64Builder::with_capacity(ms.len());
    for (ms, kind) in ms.values().iter().zip(types.values()) {
        let (us, left) = match (simple(ms), *kind == none) {
            _ if *ms == NO_TIMESTAMP => (None, None),
            (true, false) => (Some(ms * 1000), None),
            _ => (None, Some(*ms)),
        };
        stored.append_option(us);
        raw.append_option(left);
    }
    let raw = raw.finish();
    let some = raw.null_count() < raw.len();
    (stored.finish(), some.then_some(raw))
}

pub(super) fn decode(
    stored: Option<&TimestampMicrosecondArray>,
    raw: Option<&Int64Array>,
    len: usize,
) -> Result<Int64Array, CodecError> {
    let mut ms: Vec<i64> = match stored {
        Some(stored) => exact_millis(stored)?,
        None => vec![NO_TIMESTAMP; len],
    };
    if let Some(nulls) = stored.and_then(|s| s.nulls()) {
        for (row, ms) in ms.iter_mut().enumerate() {
            if nulls.is_null(row) {
                *ms = NO_TIMESTAMP;
            }
        }
    }
    let Some(raw) = raw.filter(|r| r.null_count() < r.len()) else {
        return Ok(ms.into());
    };
    for (row, ms) in ms.iter_mut().enumerate() {
        if raw.is_null(row) {
            continue;
        }
        if stored.is_some_and(|s| s.is_valid(row)) {
            let what = "timestamp has a value too";
            return Err(CodecError::value(Column::TimestampRaw, row, what));
        }
        *ms = raw.value(row);
    }
    Ok(ms.into())
}

/// Milliseconds, for null rows of whatever is stored there.
fn exact_millis(stored: &TimestampMicrosecondArray) -> Result<Vec<i64>, CodecError> {
    let mut rest = 0;
    let ms: Vec<i64> = stored
        .values()
        .iter()
        .map(|us| {
            let ms = us / 1000;
            rest |= us - ms * 1000;
            ms
        })
        .collect();
    if rest == 0 {
        return Ok(ms);
    }
    match (0..stored.len()).find(|i| stored.is_valid(*i) && stored.value(*i) % 1000 != 0) {
        None => Ok(ms),
        Some(row) => {
            let what = format!("{} µs is no whole millisecond", stored.value(row));
            Err(CodecError::value(Column::Timestamp, row, what))
        }
    }
}
