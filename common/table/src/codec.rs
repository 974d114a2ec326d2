//! Event columns to table columns and back, bit for bit.
//!
//! | in the log | `timestamp` | `timestamp_raw` |
//! |---|---|---|
//! | -1: no timestamp | null | null |
//! | what microseconds hold, of type create or log append | milliseconds × 1000 | null |
//! | anything else | null | milliseconds |
//!
//! | headers in the log | `headers` | `headers_raw` |
//! |---|---|---|
//! | none | empty list (read: also null) | null |
//! | every key is UTF-8 | the list | null |
//! | a key is not UTF-8 | null | the list in the form below |
//!
//! `headers_raw`, all numbers little endian: the count (u32); per header the key's length (i32) and bytes, then the
//! value's length (i32, -1 for null) and bytes.

mod headers;
mod timestamps;

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BinaryArray, DictionaryArray, Int8Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow_schema::{ArrowError, DataType};
use everlog_common::mutants::Mutant;
use everlog_common::{EventColumns, Generation, Millis, Partition, TopicName};

use crate::schema::{Column, ColumnMap};

/// Why rows cannot be stored, or what was stored cannot be rows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A column is missing, or of another type.
    #[error("column {column} has type {found}, which is not what the format says")]
    Type {
        /// The column.
        column: &'static str,
        /// Its type, or that it is missing.
        found: String,
    },
    /// A value is none that a writer could have stored.
    #[error("column {column}, row {row}: {what}")]
    Value {
        /// The column.
        column: &'static str,
        /// The row, counted within the batch.
        row: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A time cannot be stored.
    #[error("archived_at {0} ms cannot be stored as microseconds")]
    ArchivedAt(i64),
    /// Arrow refused the arrays.
    #[error("arrow refused the columns")]
    Arrow(#[from] ArrowError),
}

impl CodecError {
    fn value(column: Column, row: usize, what: impl Into<String>) -> Self {
        Self::Value {
            column: column.name(),
            row,
            what: what.into(),
        }
    }
}

/// What all rows of one encoded batch have in common.
#[derive(Debug, Clone, Copy)]
pub struct RowContext<'a> {
    /// The topic.
    pub topic: &'a TopicName,
    /// Its era.
    pub generation: Generation,
    /// The partition.
    pub partition: Partition,
    /// The commit's time.
    pub archived_at: Millis,
}

/// A time as the table's microseconds.
pub(crate) fn micros(at: Millis) -> Result<i64, CodecError> {
    at.0.checked_mul(1000).ok_or(CodecError::ArchivedAt(at.0))
}

/// The rows as the table stores them; the schema is [`ColumnMap::arrow_schema`].
pub fn encode(
    columns: &ColumnMap,
    context: RowContext<'_>,
    rows: &EventColumns,
) -> Result<RecordBatch, CodecError> {
    let len = rows.len();
    let schema = columns.arrow_schema();
    let (mut timestamp, timestamp_raw) =
        timestamps::encode(&rows.timestamps, &rows.timestamp_types);
    if Mutant::TimestampCut.is_planted() {
        timestamp = timestamp.unary(|us| us - us.rem_euclid(1_000_000));
    }
    let headers_type = schema.field(Column::Headers.index()).data_type();
    let (headers, headers_raw) = headers::encode(&rows.headers, headers_type)?;
    let types = rows.timestamp_types.values().iter().map(|t| {
        if Mutant::TimestampTypeLost.is_planted() {
            0
        } else {
            i32::from(*t)
        }
    });
    let archived_at = micros(context.archived_at)?;
    let in_utc = |array: TimestampMicrosecondArray| array.with_timezone("+00:00");
    let arrays: Vec<ArrayRef> = Column::ALL
        .into_iter()
        .map(|column| -> ArrayRef {
            match column {
                Column::Topic => Arc::new(constant_topic(context.topic, len)),
                Column::Generation => {
                    Arc::new(Int32Array::from_value(context.generation.as_i32(), len))
                }
                Column::Partition => Arc::new(Int32Array::from_value(context.partition.get(), len)),
                Column::Offset => Arc::new(rows.offsets.clone()),
                Column::Timestamp => Arc::new(in_utc(timestamp.clone())),
                Column::TimestampType => Arc::new(Int32Array::from_iter_values(types.clone())),
                Column::Key => Arc::new(rows.keys.clone()),
                Column::Value if Mutant::EmptyValueLost.is_planted() => {
                    let values = rows.values.iter();
                    let kept = values.map(|v| v.filter(|v| !v.is_empty()));
                    Arc::new(kept.collect::<BinaryArray>())
                }
                Column::Value => Arc::new(rows.values.clone()),
                Column::Headers => Arc::new(headers.clone()),
                Column::LeaderEpoch if Mutant::EpochLost.is_planted() => {
                    new_null_array(&DataType::Int32, len)
                }
                Column::LeaderEpoch => Arc::new(rows.leader_epochs.clone()),
                Column::ArchivedAt => Arc::new(in_utc(TimestampMicrosecondArray::from_value(
                    archived_at,
                    len,
                ))),
                Column::TimestampRaw => timestamp_raw
                    .clone()
                    .map_or_else(|| new_null_array(&DataType::Int64, len), |a| Arc::new(a)),
                Column::HeadersRaw => headers_raw
                    .clone()
                    .map_or_else(|| new_null_array(&DataType::Binary, len), |a| Arc::new(a)),
            }
        })
        .collect();
    Ok(RecordBatch::try_new(Arc::clone(schema), arrays)?)
}

fn constant_topic(topic: &TopicName, len: usize) -> DictionaryArray<arrow_array::types::Int32Type> {
    let values = Arc::new(StringArray::from_iter_values([topic.as_str()]));
    DictionaryArray::new(Int32Array::from_value(0, len), values)
}

/// Columns of a data file, of which the optional ones may be missing. Arrays are of one length.
#[derive(Debug)]
pub struct StoredColumns {
    len: usize,
    offsets: Int64Array,
    timestamps: Option<TimestampMicrosecondArray>,
    timestamp_types: Int32Array,
    keys: Option<BinaryArray>,
    values: Option<BinaryArray>,
    headers: Option<ListArray>,
    leader_epochs: Option<Int32Array>,
    timestamps_raw: Option<Int64Array>,
    headers_raw: Option<BinaryArray>,
}

impl StoredColumns {
    /// Takes the columns that make up a record from wherever `column` finds them.
    pub fn collect(column: impl Fn(Column) -> Option<ArrayRef>) -> Result<Self, CodecError> {
        let offsets: Int64Array = required(&column, Column::Offset)?;
        Ok(Self {
            len: offsets.len(),
            offsets,
            timestamps: optional(&column, Column::Timestamp)?,
            timestamp_types: required(&column, Column::TimestampType)?,
            keys: optional(&column, Column::Key)?,
            values: optional(&column, Column::Value)?,
            headers: optional(&column, Column::Headers)?,
            leader_epochs: optional(&column, Column::LeaderEpoch)?,
            timestamps_raw: optional(&column, Column::TimestampRaw)?,
            headers_raw: optional(&column, Column::HeadersRaw)?,
        })
    }

    /// The records that they store.
    pub fn decode(self) -> Result<EventColumns, CodecError> {
        let len = self.len;
        if let Some(row) = self.offsets.values().iter().position(|o| *o < 0) {
            let what = format!("{} is no offset", self.offsets.value(row));
            return Err(CodecError::value(Column::Offset, row, what));
        }
        let binary =
            |array: Option<BinaryArray>| array.unwrap_or_else(|| BinaryArray::new_null(len));
        Ok(EventColumns {
            timestamps: timestamps::decode(
                self.timestamps.as_ref(),
                self.timestamps_raw.as_ref(),
                len,
            )?,
            timestamp_types: types(&self.timestamp_types)?,
            headers: headers::decode(self.headers.as_ref(), self.headers_raw.as_ref(), len)?,
            keys: binary(self.keys),
            values: if Mutant::TombstoneLost.is_planted() {
                let values = binary(self.values);
                let read = values.iter().map(|v| Some(v.unwrap_or_default()));
                read.collect::<BinaryArray>()
            } else {
                binary(self.values)
            },
            leader_epochs: self
                .leader_epochs
                .unwrap_or_else(|| Int32Array::new_null(len)),
            offsets: self.offsets,
        })
    }
}

fn types(stored: &Int32Array) -> Result<Int8Array, CodecError> {
    let values = stored.values();
    if let Some(row) = values.iter().position(|t| !(-1..=1).contains(t)) {
        let what = format!("{} is no timestamp type", values[row]);
        return Err(CodecError::value(Column::TimestampType, row, what));
    }
    Ok(values
        .iter()
        .map(|t| i8::try_from(*t).unwrap_or(-1))
        .collect::<Vec<i8>>()
        .into())
}

/// The column as an array without nulls.
pub(crate) fn required<A: Array + Clone + 'static>(
    column: impl Fn(Column) -> Option<ArrayRef>,
    which: Column,
) -> Result<A, CodecError> {
    let array: A = optional(column, which)?.ok_or_else(|| CodecError::Type {
        column: which.name(),
        found: "none: it is missing".to_owned(),
    })?;
    match array.nulls() {
        Some(nulls) if nulls.null_count() > 0 => {
            let row = (0..array.len()).find(|i| array.is_null(*i)).unwrap_or(0);
            Err(CodecError::value(which, row, "is null"))
        }
        _ => Ok(array),
    }
}

fn optional<A: Array + Clone + 'static>(
    column: impl Fn(Column) -> Option<ArrayRef>,
    which: Column,
) -> Result<Option<A>, CodecError> {
    let Some(array) = column(which) else {
        return Ok(None);
    };
    match array.as_any().downcast_ref::<A>() {
        Some(typed) => Ok(Some(typed.clone())),
        None => Err(CodecError::Type {
            column: which.name(),
            found: array.data_type().to_string(),
        }),
    }
}

#[cfg(test)]
mod tests;
