//! What a Kafka value says, as Arrow columns: JSON, Avro by a schema registry, or raw bytes.
//!
//! ```text
//!   EventColumns ──► Decoder ──► columns of the rows that decoded · which rows these are · dead letters
//!                       ▲
//!                       │ schemas, before they are needed
//!                    Registry ◄─► its answers, on disk
//! ```
//!
//! - [`Decoder`]: rows in, columns out; pure, so that a replay gives what the live run gave
//! - [`ValueReader`]: values in, some of their columns out, whatever is wrong with them: for questions
//! - [`Inference`]: the columns that a sample of JSON has
//! - [`find`]: one place inside a JSON text
//! - [`types`]: the types of columns, as SQL names them
//! - [`registry`]: the one part with I/O: schemas by number, each asked for once and then kept on disk
//!
//! docs/decoding.md is the specification: what each type takes, and what is refused.
//!
//! Guarantees: a bad record costs only itself, and says why. Any bytes give a row or a dead letter, never a panic, and hold no
//! more than 16 times their length and a mebibyte on the way. What a record gives depends on nothing but the record, the
//! columns, and its writer's schema.
//!
//! Not promised: that what two producers write in different ways comes out the same.
//!
//! Why not the readers of arrow-json and arrow-avro: they give up a whole batch for one bad record, without saying which one
//! it was; and the former reads 1.5 into an integer column as 1.

mod avro;
mod column;
mod fault;
mod infer;
mod json;
mod number;
mod raw;
pub mod registry;
mod time;
pub mod types;
mod values;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

use arrow_array::{Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow_schema::{ArrowError, SchemaRef};
use everlog_common::EventColumns;

pub use self::avro::{Misfit, RegisteredSchema, SchemaError, SchemaId, misfits, schema_id};
pub use self::infer::Inference;
pub use self::json::path::{JsonValue, PathPart, find};
pub use self::types::{Column, ColumnType, Columns, Precision, SqlType, TypeError};
pub use self::values::{ReadValues, ValueFormat, ValueReader};

use self::avro::Avro;
use self::column::Row;
use self::fault::Fault;

/// Decodes values of one topic.
#[derive(Debug)]
pub struct Decoder {
    columns: Columns,
    schema: SchemaRef,
    format: Format,
}

/// How values are written. Protobuf and JSON Schema would each be one more.
#[derive(Debug)]
enum Format {
    /// What a string with escapes says is put together in the buffer.
    Json(Vec<u8>),
    Avro(Avro),
    Raw,
}

/// What became of rows.
#[derive(Debug)]
pub struct Decoded {
    /// The rows that decoded, in their order.
    pub columns: RecordBatch,
    /// Which rows these are, ascending.
    pub kept: UInt32Array,
    /// The others, ascending.
    pub dead: Vec<Dead>,
}

/// A row that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    /// Its index among the rows.
    pub row: u32,
    /// What is wrong with it, and where; one line.
    pub error: String,
}

/// Why nothing was decoded. Not about any record's content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// [`Decoder::unlearned`] was not asked, or what it said was not learned.
    #[error("schema {0} was not looked up before it was needed")]
    Unlearned(SchemaId),
    /// More rows than can be counted.
    #[error("a batch of {0} rows is too large to be decoded")]
    Rows(usize),
    /// What was built are no columns.
    #[error("the decoded columns do not fit together: please report this")]
    Arrow(#[from] ArrowError),
}

impl Decoder {
    /// Of JSON objects whose fields are these columns.
    pub fn json(columns: Columns) -> Self {
        Self::new(columns, Format::Json(Vec::new()))
    }

    /// Of Avro records that are read into these columns, whatever schemas they were written with.
    pub fn avro(columns: Columns) -> Self {
        let avro = Avro::declared(&columns);
        Self::new(columns, Format::Avro(avro))
    }

    /// Of Avro records that are read as this schema says, with its defaults and aliases.
    pub fn avro_as(reader: &RegisteredSchema) -> Result<Self, SchemaError> {
        let (columns, avro) = avro::columns_of(reader)?;
        Ok(Self::new(columns, Format::Avro(avro)))
    }

    /// Of nothing: the columns are `key`, `value` and `headers`.
    pub fn raw() -> Self {
        Self::new(raw::columns(), Format::Raw)
    }

    fn new(columns: Columns, format: Format) -> Self {
        Self {
            schema: columns.schema(),
            columns,
            format,
        }
    }

    /// The columns, with their types as SQL names them.
    pub const fn columns(&self) -> &Columns {
        &self.columns
    }

    /// The same for Arrow.
    pub const fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The schemas that must be [learned](Self::learn) before these rows can be decoded, ascending. None but for Avro.
    pub fn unlearned(&self, rows: &EventColumns) -> Vec<SchemaId> {
        match &self.format {
            Format::Avro(avro) => avro.unlearned(&rows.values),
            Format::Json(_) | Format::Raw => Vec::new(),
        }
    }

    /// What the registry says of a schema: itself, or why there is none; then every record with its number is a dead letter.
    pub fn learn(&mut self, id: SchemaId, answer: Result<&RegisteredSchema, &str>) {
        if let Format::Avro(avro) = &mut self.format {
            avro.learn(id, answer);
        }
    }

    /// Decodes rows.
    pub fn decode(&mut self, rows: &EventColumns) -> Result<Decoded, DecodeError> {
        let count = u32::try_from(rows.len()).map_err(|_| DecodeError::Rows(rows.len()))?;
        let mut kept: Vec<u32> = Vec::with_capacity(rows.len());
        let mut dead = Vec::new();
        let mut sort = |row: u32, done: Result<(), Fault>| match done {
            Ok(()) => {
                kept.push(row);
                true
            }
            Err(fault) => {
                let error = fault.to_string();
                dead.push(Dead { row, error });
                false
            }
        };
        let arrays = match &mut self.format {
            Format::Raw => {
                for row in 0..count {
                    sort(row, raw::check(rows, index(row)));
                }
                let kept = UInt32Array::from(kept.clone());
                if dead.is_empty() {
                    raw::arrays(rows)?
                } else {
                    raw::arrays(&rows.take(&kept)?)?
                }
            }
            Format::Json(scratch) => {
                let mut builders = Row::new(self.columns.as_slice(), rows.len());
                let mut len = 0;
                for row in 0..count {
                    let done = match value(rows, row) {
                        Ok(text) => json::record(text, &mut builders, len, scratch),
                        Err(fault) => Err(fault),
                    };
                    if sort(row, done) {
                        len += 1;
                    } else {
                        builders.truncate(len);
                    }
                }
                builders.finish()?
            }
            Format::Avro(avro) => {
                let mut builders = Row::new(self.columns.as_slice(), rows.len());
                let mut len = 0;
                for row in 0..count {
                    let done = match value(rows, row) {
                        Ok(bytes) => avro
                            .record(bytes, &mut builders, len)
                            .map_err(DecodeError::Unlearned)?,
                        Err(fault) => Err(fault),
                    };
                    if sort(row, done) {
                        len += 1;
                    } else {
                        builders.truncate(len);
                    }
                }
                builders.finish()?
            }
        };
        let options = RecordBatchOptions::new().with_row_count(Some(kept.len()));
        let columns =
            RecordBatch::try_new_with_options(SchemaRef::clone(&self.schema), arrays, &options)?;
        Ok(Decoded {
            columns,
            kept: UInt32Array::from(kept),
            dead,
        })
    }
}

fn index(row: u32) -> usize {
    usize::try_from(row).unwrap_or(usize::MAX)
}

fn value(rows: &EventColumns, row: u32) -> Result<&[u8], Fault> {
    let row = index(row);
    if rows.values.is_null(row) {
        return Err(Fault::new("the value is null (a tombstone)"));
    }
    Ok(rows.values.value(row))
}
