//! RFC 4180: a head, fields in quotes where they need them, lines that end with CR LF.
//!
//! Null is nothing at all, an empty text is `""`. Bytes are base64, lists and structures JSON.

use std::io::Write as _;

use arrow_array::cast::AsArray as _;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::display::ArrayFormatter;
use arrow_json::writer::{EncoderOptions, NullableEncoder, make_encoder};
use arrow_schema::{ArrowError, DataType, FieldRef, SchemaRef};

use super::cells::{PLAIN, shown};
use super::{OutputError, Rows, Sink, as_plain, jsonl, plain};

/// Handed to the sink at a time.
const CHUNK: usize = 64 << 10;

pub(super) struct Csv {
    sink: Sink,
    schema: SchemaRef,
    json: EncoderOptions,
}

impl std::fmt::Debug for Csv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Csv")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl Csv {
    pub(super) fn new(schema: &SchemaRef, mut sink: Sink) -> Result<Self, OutputError> {
        let mut head = Vec::new();
        for (i, field) in schema.fields().iter().enumerate() {
            if i > 0 {
                head.push(b',');
            }
            quote(field.name().as_bytes(), &mut head);
        }
        head.extend_from_slice(b"\r\n");
        sink.write_all(&head)?;
        Ok(Self {
            sink,
            schema: plain(schema),
            json: jsonl::options(),
        })
    }
}

impl Rows for Csv {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError> {
        let of_arrow = |error| OutputError::arrow("CSV", error);
        let batch = as_plain(batch, &self.schema).map_err(of_arrow)?;
        let fields = self.schema.fields().iter();
        let columns = fields.zip(batch.columns());
        let columns = columns.map(|(field, array)| Column::of(field, array, &self.json));
        let mut columns = columns.collect::<Result<Vec<_>, _>>().map_err(of_arrow)?;
        let mut text = Vec::new();
        let mut field = Vec::new();
        for row in 0..batch.num_rows() {
            for (i, column) in columns.iter_mut().enumerate() {
                if i > 0 {
                    text.push(b',');
                }
                field.clear();
                if column.write(row, &mut field).map_err(of_arrow)? {
                    quote(&field, &mut text);
                }
            }
            text.extend_from_slice(b"\r\n");
            if text.len() >= CHUNK {
                self.sink.write_all(&text)?;
                text.clear();
            }
        }
        self.sink.write_all(&text)?;
        self.sink.flush()?;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), OutputError> {
        self.sink.flush()?;
        Ok(())
    }
}

/// A field, in quotes where it is empty (nothing would be null), or has a character that ends fields or lines.
fn quote(field: &[u8], out: &mut Vec<u8>) {
    let needs = field.is_empty()
        || field
            .iter()
            .any(|b| matches!(b, b',' | b'"' | b'\r' | b'\n'));
    if !needs {
        out.extend_from_slice(field);
        return;
    }
    out.push(b'"');
    for byte in field {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

/// One column's values as fields.
enum Column<'a> {
    Null,
    Small(&'a arrow_array::StringArray),
    Large(&'a arrow_array::LargeStringArray),
    View(&'a arrow_array::StringViewArray),
    /// In JSON, without the quotes of a text.
    Json {
        encoder: NullableEncoder<'a>,
        is_text: bool,
    },
    Other(&'a dyn Array, ArrayFormatter<'a>),
}

impl<'a> Column<'a> {
    fn of(
        field: &'a FieldRef,
        array: &'a ArrayRef,
        json: &'a EncoderOptions,
    ) -> Result<Self, ArrowError> {
        let array = array.as_ref();
        Ok(match array.data_type() {
            DataType::Null => Self::Null,
            DataType::Utf8 => Self::Small(array.as_string()),
            DataType::LargeUtf8 => Self::Large(array.as_string()),
            DataType::Utf8View => Self::View(array.as_string_view()),
            data_type => {
                let is_text = matches!(
                    data_type,
                    DataType::Binary
                        | DataType::LargeBinary
                        | DataType::BinaryView
                        | DataType::FixedSizeBinary(_)
                );
                if is_text || data_type.is_nested() {
                    let encoder = make_encoder(field, array, json)?;
                    Self::Json { encoder, is_text }
                } else {
                    Self::Other(array, ArrayFormatter::try_new(array, &PLAIN)?)
                }
            }
        })
    }

    /// Says whether there is a value.
    fn write(&mut self, row: usize, out: &mut Vec<u8>) -> Result<bool, ArrowError> {
        let text = match self {
            Self::Null => None,
            Self::Small(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Large(array) => array.is_valid(row).then(|| array.value(row)),
            Self::View(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Json { encoder, .. } if encoder.is_null(row) => None,
            Self::Json { encoder, is_text } => {
                encoder.encode(row, out);
                if *is_text {
                    // base64 in quotes
                    out.pop();
                    out.remove(0);
                }
                return Ok(true);
            }
            Self::Other(array, _) if array.is_null(row) => None,
            Self::Other(array, formatter) => {
                out.extend_from_slice(shown(*array, formatter, row)?.as_bytes());
                return Ok(true);
            }
        };
        out.extend_from_slice(text.unwrap_or_default().as_bytes());
        Ok(text.is_some())
    }
}
