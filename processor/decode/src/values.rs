//! Values as columns for questions, not for jobs: every value gives a row, and what is wrong with one column costs only that
//! column.
//!
//! ```text
//!   values ──► ValueReader (some of the columns) ──► those columns, as many rows as values · what was wrong with each value
//! ```
//!
//! Invariants
//! - A column's value depends on the record and the column alone: any projection gives what the whole gives.
//! - A null value (a tombstone) is null in every column, and nothing is wrong with it.
//! - Where nothing is wrong with a value, its row is the one that [`crate::Decoder`] gives.

use arrow_array::builder::StringBuilder;
use arrow_array::{Array, ArrayRef, BinaryArray, StringArray};

use crate::DecodeError;
use crate::avro::{self, Avro, AvroColumns, RegisteredSchema, SchemaError, SchemaId};
use crate::column::Row;
use crate::fault::{Fault, shown_bytes};
use crate::json;
use crate::types::{Column, ColumnType, Columns, SqlType};

/// The name of the one column of text.
const TEXT_COLUMN: &str = "value";

/// How the values of a topic are written, and what they are read into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueFormat {
    /// JSON objects with these fields.
    Json(Columns),
    /// Avro records, by a schema registry, with these fields.
    Avro(Columns),
    /// Avro records, read as this schema says, with its defaults and aliases.
    AvroAs(RegisteredSchema),
    /// UTF-8, into the column `value`.
    Text,
}

impl ValueFormat {
    /// The columns that values are read into.
    pub fn columns(&self) -> Result<Columns, SchemaError> {
        Ok(match self {
            Self::Json(columns) | Self::Avro(columns) => columns.clone(),
            Self::AvroAs(schema) => avro::columns_of(schema)?.0,
            Self::Text => Columns::own([Column {
                name: TEXT_COLUMN.to_owned(),
                of: ColumnType {
                    sql: SqlType::String,
                    nullable: true,
                },
            }]),
        })
    }
}

/// Reads values into some of their columns.
#[derive(Debug)]
pub struct ValueReader {
    /// Those that are read, every one of which may be null.
    columns: Vec<Column>,
    /// Which of them are declared NOT NULL.
    required: Vec<bool>,
    /// Where, among those that are read, the wanted ones stand.
    wanted: Vec<usize>,
    tells_errors: bool,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Json(Vec<u8>),
    Avro(AvroColumns),
    Text,
}

/// What values say.
#[derive(Debug, Clone)]
pub struct ReadValues {
    /// The columns that were asked for, in that order, a row for each value.
    pub columns: Vec<ArrayRef>,
    /// What is wrong with each value, where something is; only if it was asked for.
    pub errors: Option<StringArray>,
}

impl ValueReader {
    /// Of the columns at these places among [`ValueFormat::columns`], none of them twice. What is wrong with a value takes
    /// reading all of its columns, and is told only if `errors` asks for it.
    pub fn new(
        format: &ValueFormat,
        projection: &[usize],
        errors: bool,
    ) -> Result<Self, SchemaError> {
        let all = format.columns()?;
        let read: Vec<usize> = if errors {
            (0..all.as_slice().len()).collect()
        } else {
            projection.to_vec()
        };
        let columns: Vec<&Column> = read
            .iter()
            .filter_map(|at| all.as_slice().get(*at))
            .collect();
        let mut places = vec![None; all.as_slice().len()];
        for (place, at) in read.iter().enumerate() {
            if let Some(entry) = places.get_mut(*at) {
                *entry = Some(place);
            }
        }
        let wanted = projection
            .iter()
            .filter_map(|at| places.get(*at).copied().flatten())
            .collect();
        let format = match format {
            ValueFormat::Json(_) => Format::Json(Vec::new()),
            ValueFormat::Avro(declared) => {
                Format::Avro(AvroColumns::new(Avro::declared(declared), places))
            }
            ValueFormat::AvroAs(schema) => {
                Format::Avro(AvroColumns::new(avro::columns_of(schema)?.1, places))
            }
            ValueFormat::Text => Format::Text,
        };
        Ok(Self {
            required: columns.iter().map(|column| !column.of.nullable).collect(),
            columns: columns.into_iter().map(nullable).collect(),
            wanted,
            tells_errors: errors,
            format,
        })
    }

    /// The schemas that must be [learned](Self::learn) before these values can be read, ascending. None but for Avro.
    pub fn unlearned(&self, values: &BinaryArray) -> Vec<SchemaId> {
        match &self.format {
            Format::Avro(avro) => avro.unlearned(values),
            Format::Json(_) | Format::Text => Vec::new(),
        }
    }

    /// What the registry says of a schema: itself, or why there is none; then every value with its number has that error.
    pub fn learn(&mut self, id: SchemaId, answer: Result<&RegisteredSchema, &str>) {
        if let Format::Avro(avro) = &mut self.format {
            avro.learn(id, answer);
        }
    }

    /// Reads values.
    pub fn read(&mut self, values: &BinaryArray) -> Result<ReadValues, DecodeError> {
        let mut row = Row::new(&self.columns, values.len());
        let mut errors = self
            .tells_errors
            .then(|| StringBuilder::with_capacity(values.len(), 0));
        for (len, value) in values.iter().enumerate() {
            let fault = match value {
                None => None,
                Some(value) => {
                    let read = match &mut self.format {
                        Format::Json(scratch) => {
                            json::columns(value, &mut row, len, &self.required, scratch)
                        }
                        Format::Avro(avro) => avro
                            .columns(value, &mut row, len, &self.required)
                            .map_err(DecodeError::Unlearned)?,
                        Format::Text => text(value, &mut row, len),
                    };
                    read.unwrap_or_else(|fault| {
                        row.truncate(len);
                        Some(fault)
                    })
                }
            };
            // whatever has no value yet: all of it, of a value that is none
            row.fill(len, &[]);
            if let Some(errors) = &mut errors {
                errors.append_option(fault.map(|fault| fault.to_string()));
            }
        }
        let all = row.finish()?;
        Ok(ReadValues {
            columns: self
                .wanted
                .iter()
                .filter_map(|at| all.get(*at).cloned())
                .collect(),
            errors: errors.map(|mut errors| errors.finish()),
        })
    }
}

fn nullable(column: &Column) -> Column {
    let mut column = column.clone();
    column.of.nullable = true;
    column
}

fn text(value: &[u8], row: &mut Row, len: usize) -> Result<Option<Fault>, Fault> {
    row.one(0, len, &[], |into| match std::str::from_utf8(value) {
        Ok(_) => into.push_bytes(value),
        Err(error) => Err(Fault::new(format!(
            "\"{}\" is not UTF-8 at byte {}",
            shown_bytes(value),
            error.valid_up_to()
        ))),
    })
}

#[cfg(test)]
mod tests;
