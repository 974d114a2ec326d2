//! One JSON object a row. Nulls are written, bytes are base64, what JSON has no number for (NaN, infinity) is null.

use std::io::Write as _;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::{Array, RecordBatch, StructArray};
use arrow_cast::display::ArrayFormatter;
use arrow_json::writer::{Encoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, SchemaRef};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::cells::{PLAIN, shown};
use super::{OutputError, Rows, Sink, as_plain, plain};

/// Handed to the sink at a time.
const CHUNK: usize = 64 << 10;

pub(super) struct JsonLines {
    sink: Sink,
    schema: SchemaRef,
    row: FieldRef,
    options: EncoderOptions,
}

impl std::fmt::Debug for JsonLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JsonLines")
            .field("row", &self.row)
            .finish_non_exhaustive()
    }
}

impl JsonLines {
    pub(super) fn new(schema: &SchemaRef, sink: Sink) -> Self {
        let schema = plain(schema);
        Self {
            sink,
            row: Arc::new(Field::new_struct("", schema.fields().clone(), false)),
            schema,
            options: options(),
        }
    }
}

impl Rows for JsonLines {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError> {
        let of_arrow = |error| OutputError::arrow("JSON", error);
        if batch.num_columns() == 0 {
            for _ in 0..batch.num_rows() {
                self.sink.write_all(b"{}\n")?;
            }
            self.sink.flush()?;
            return Ok(());
        }
        let rows = StructArray::from(as_plain(batch, &self.schema).map_err(of_arrow)?);
        let mut encoder = make_encoder(&self.row, &rows, &self.options).map_err(of_arrow)?;
        let mut text = Vec::new();
        for row in 0..rows.len() {
            encoder.encode(row, &mut text);
            text.push(b'\n');
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

/// How values become JSON, here and in the fields of CSV.
pub(super) fn options() -> EncoderOptions {
    EncoderOptions::default()
        .with_explicit_nulls(true)
        .with_encoder_factory(Arc::new(Ours))
}

/// Makes encoders for bytes, and for times, of which some have no form in Arrow.
#[derive(Debug)]
struct Ours;

impl EncoderFactory for Ours {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Box::new(Bytes(move |row| array.value(row)))
            }
            DataType::LargeBinary => {
                let array = array.as_binary::<i64>();
                Box::new(Bytes(move |row| array.value(row)))
            }
            DataType::BinaryView => {
                let array = array.as_binary_view();
                Box::new(Bytes(move |row| array.value(row)))
            }
            DataType::FixedSizeBinary(_) => {
                let array = array.as_fixed_size_binary();
                Box::new(Bytes(move |row| array.value(row)))
            }
            DataType::Timestamp(..) | DataType::Date32 => Box::new(Times {
                array,
                formatter: ArrayFormatter::try_new(array, &PLAIN)?,
            }),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct Bytes<F>(F);

impl<'a, F: Fn(usize) -> &'a [u8]> Encoder for Bytes<F> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        // none of its characters needs an escape
        out.push(b'"');
        out.extend_from_slice(STANDARD.encode((self.0)(row)).as_bytes());
        out.push(b'"');
    }
}

struct Times<'a> {
    array: &'a dyn Array,
    formatter: ArrayFormatter<'a>,
}

impl Encoder for Times<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        // every time has a text, and none of its characters needs an escape
        let text = shown(self.array, &self.formatter, row).unwrap_or_default();
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}
