//! Answers as bytes: an aligned table for people; CSV, JSON lines, Parquet and Arrow IPC for programs.
//!
//! | | table | csv | jsonl | parquet, arrow |
//! |---|---|---|---|---|
//! | null | `NULL` (the text NULL in quotes) | nothing | `null` | null |
//! | empty text | nothing | `""` | `""` | empty |
//! | bytes | text if they are UTF-8, else `\x` and hexadecimal digits | base64 | base64 | bytes |
//! | times with a zone | RFC 3339 in UTC | RFC 3339 in UTC | RFC 3339 in UTC | UTC |
//! | lists, structures | `[1, NULL]`, `{a: 1}` | JSON | JSON | as they are |
//!
//! - [`Output`]: writes batches as they come; memory is bounded whatever the answer's length
//! - [`PartFile`]: a file that appears under its name only once it is whole
//!
//! What a record holds never steers the terminal: the table shows control characters, and those that turn the direction of
//! writing, as escapes. Its text is for people, and not to be parsed: `\n` may be a line break or these two characters.

mod binary;
mod cells;
mod csv;
mod file;
mod jsonl;
mod table;

use std::fmt::Debug;
use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use parquet::errors::ParquetError;

use crate::sql_types::is_utc;

pub use cells::printable;
pub use file::PartFile;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Columns under each other, for people.
    #[default]
    Table,
    /// RFC 4180, with a head.
    Csv,
    /// One JSON object a row.
    Jsonl,
    /// A Parquet file.
    Parquet,
    /// Arrow IPC as a file: with a footer, for random access.
    ArrowFile,
    /// Arrow IPC as a stream: readable while it is written.
    ArrowStream,
}

impl Format {
    /// Whether it is bytes that a terminal cannot show.
    pub const fn is_binary(self) -> bool {
        matches!(self, Self::Parquet | Self::ArrowFile | Self::ArrowStream)
    }
}

/// Why an answer could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The bytes did not go out.
    #[error("cannot write the answer: {0}")]
    Io(#[from] io::Error),
    /// The format has no form for these values.
    #[error("cannot write the answer as {format}: {what}")]
    Values {
        /// The format.
        format: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl OutputError {
    /// Whether the reader of the output went away: nothing is wrong, and nobody listens.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    fn arrow(format: &'static str, error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, error) => Self::Io(error),
            error => Self::Values {
                format,
                what: error.to_string(),
            },
        }
    }

    fn parquet(error: ParquetError) -> Self {
        match error {
            ParquetError::External(source) => match source.downcast::<io::Error>() {
                Ok(error) => Self::Io(*error),
                Err(source) => Self::Values {
                    format: "Parquet",
                    what: source.to_string(),
                },
            },
            error => Self::Values {
                format: "Parquet",
                what: error.to_string(),
            },
        }
    }
}

/// Where an answer goes.
pub type Sink = Box<dyn Write + Send>;

/// Writes the batches of one format.
trait Rows: Debug + Send {
    /// The next rows. What can be shown by now is handed to the sink.
    fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError>;

    /// What is left, and the end of the format.
    fn finish(&mut self) -> Result<(), OutputError>;
}

/// An answer on its way out.
#[derive(Debug)]
pub struct Output {
    rows: Box<dyn Rows>,
    count: u64,
}

impl Output {
    /// Begins an answer; `schema` is that of all its batches.
    pub fn new(format: Format, schema: &SchemaRef, sink: Sink) -> Result<Self, OutputError> {
        let rows: Box<dyn Rows> = match format {
            Format::Table => Box::new(table::Table::new(schema, sink)),
            Format::Csv => Box::new(csv::Csv::new(schema, sink)?),
            Format::Jsonl => Box::new(jsonl::JsonLines::new(schema, sink)),
            Format::Parquet => Box::new(binary::Parquet::new(schema, sink)?),
            Format::ArrowFile => Box::new(binary::ArrowFile::new(schema, sink)?),
            Format::ArrowStream => Box::new(binary::ArrowStream::new(schema, sink)?),
        };
        Ok(Self { rows, count: 0 })
    }

    /// The next rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError> {
        self.rows.write(batch)?;
        self.count += batch.num_rows() as u64;
        Ok(())
    }

    /// Ends the answer; says how many rows it had.
    pub fn finish(mut self) -> Result<u64, OutputError> {
        self.rows.finish()?;
        Ok(self.count)
    }
}

/// A schema with names that are there once: who reads by name would see one of two columns. Of two `offset`, the second is
/// `offset_2`.
fn distinct(schema: &Schema) -> SchemaRef {
    let mut taken: std::collections::BTreeSet<String> =
        schema.fields().iter().map(|f| f.name().clone()).collect();
    let mut seen = std::collections::BTreeSet::new();
    let fields: Vec<Arc<Field>> = schema
        .fields()
        .iter()
        .map(|field| {
            if seen.insert(field.name().clone()) {
                return Arc::clone(field);
            }
            let mut number = 2_u64;
            let name = loop {
                let name = format!("{}_{number}", field.name());
                if taken.insert(name.clone()) {
                    break name;
                }
                number += 1;
            };
            Arc::new(field.as_ref().clone().with_name(name))
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// The same instants, told in UTC.
fn in_utc(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Timestamp(unit, Some(zone)) if !is_utc(zone) => {
            Some(DataType::Timestamp(*unit, Some("+00:00".into())))
        }
        _ => None,
    }
}

/// What is written of a schema: distinct names, times in UTC, and no dictionaries, which change from batch to batch.
fn plain(schema: &Schema) -> SchemaRef {
    let schema = distinct(schema);
    let fields: Vec<Arc<Field>> = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = match field.data_type() {
                DataType::Dictionary(_, values) => Some(values.as_ref().clone()),
                other => in_utc(other),
            };
            match data_type {
                Some(data_type) => {
                    let field = field.as_ref().clone();
                    Arc::new(field.with_data_type(data_type).with_nullable(true))
                }
                None => Arc::new(field.as_ref().clone().with_nullable(true)),
            }
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// A batch under [`plain`]'s schema.
fn as_plain(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| {
        if column.data_type() == field.data_type() {
            Ok(Arc::clone(column))
        } else {
            arrow_cast::cast(column, field.data_type())
        }
    });
    let columns = columns.collect::<Result<Vec<_>, ArrowError>>()?;
    let rows = arrow_array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &rows)
}

#[cfg(test)]
mod tests;
