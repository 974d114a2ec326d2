//! Rows as JSON: one object per row, on a line of its own.
//!
//! - Keys are the columns, always all of them, in their order; null is `null`.
//! - Timestamps are RFC 3339, dates and times ISO 8601, decimals and 64-bit integers numbers in full; what these forms cannot
//!   say is `null`: a double that is not a number or infinite, a time of a year before 0 or after 9999.
//! - Bytes in a column of their own are standard base64 with padding; within lists and structs they are hexadecimal.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_json::writer::{LineDelimited, NullableEncoder, WriterBuilder};
use arrow_json::{Encoder, EncoderFactory, EncoderOptions};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Schema};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Why rows cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the rows cannot be written as JSON: {0}")]
pub struct LinesError(#[from] ArrowError);

/// Rows of one batch, ready to be written piece by piece.
#[derive(Debug)]
pub struct TextLines {
    batch: RecordBatch,
}

impl TextLines {
    /// Of a batch.
    pub fn new(batch: &RecordBatch) -> Result<Self, LinesError> {
        let schema = batch.schema();
        let mut fields = Vec::with_capacity(batch.num_columns());
        let mut columns = Vec::with_capacity(batch.num_columns());
        for (field, column) in schema.fields().iter().zip(batch.columns()) {
            let column = match plain(column)? {
                Some(plain) => plain,
                None => Arc::clone(column),
            };
            fields.push(Field::new(field.name(), column.data_type().clone(), true));
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new_with_options(schema, columns, &options)?;
        Ok(Self { batch })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends rows `from..to` to `out`, each with a line feed after it.
    pub fn append(&self, from: usize, to: usize, out: &mut Vec<u8>) -> Result<(), LinesError> {
        if from >= to {
            return Ok(());
        }
        let builder = WriterBuilder::new()
            .with_explicit_nulls(true)
            .with_encoder_factory(Arc::new(Times));
        let mut writer = builder.build::<_, LineDelimited>(out);
        writer.write(&self.batch.slice(from, to - from))?;
        writer.finish()?;
        Ok(())
    }
}

/// The column as it is written, where that is another one.
fn plain(column: &ArrayRef) -> Result<Option<ArrayRef>, ArrowError> {
    fn text<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> ArrayRef {
        Arc::new(
            values
                .map(|bytes| bytes.map(|b| STANDARD.encode(b)))
                .collect::<StringArray>(),
        )
    }
    Ok(match column.data_type() {
        DataType::Binary => Some(text(column.as_binary::<i32>().iter())),
        DataType::LargeBinary => Some(text(column.as_binary::<i64>().iter())),
        DataType::BinaryView => Some(text(column.as_binary_view().iter())),
        DataType::FixedSizeBinary(_) => Some(text(column.as_fixed_size_binary().iter())),
        found => {
            let by_offset = zones_by_offset(found);
            if by_offset == *found {
                None
            } else {
                Some(arrow_cast::cast(column, &by_offset)?)
            }
        }
    })
}

/// The same type with UTC by a name that needs no database of zones.
fn zones_by_offset(of: &DataType) -> DataType {
    let field = |field: &FieldRef| -> FieldRef {
        let inner = zones_by_offset(field.data_type());
        Arc::new(field.as_ref().clone().with_data_type(inner))
    };
    match of {
        DataType::Timestamp(unit, Some(zone)) if zone.eq_ignore_ascii_case("UTC") => {
            DataType::Timestamp(*unit, Some("+00:00".into()))
        }
        DataType::List(item) => DataType::List(field(item)),
        DataType::LargeList(item) => DataType::LargeList(field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(field(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        other => other.clone(),
    }
}

/// Writes times, wherever they stand. Left to itself, the writer puts an error's text in place of a time that it cannot write.
#[derive(Debug)]
struct Times;

impl EncoderFactory for Times {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let has_year = match array.data_type() {
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => true,
            other if other.is_temporal() => false,
            _ => return Ok(None),
        };
        let encoder = TimeEncoder {
            times: ArrayFormatter::try_new(array, &FormatOptions::new())?,
            has_year,
            text: String::new(),
        };
        let nulls = array.nulls().cloned();
        Ok(Some(NullableEncoder::new(Box::new(encoder), nulls)))
    }
}

struct TimeEncoder<'a> {
    times: ArrayFormatter<'a>,
    has_year: bool,
    text: String,
}

impl Encoder for TimeEncoder<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        self.text.clear();
        let written = self.times.value(row).write(&mut self.text);
        // A year of more than four digits, or before 0, has a sign, which is not of RFC 3339.
        let said = written.is_ok() && !(self.has_year && self.text.starts_with(['+', '-']));
        if said {
            out.push(b'"');
            out.extend_from_slice(self.text.as_bytes());
            out.push(b'"');
        } else {
            out.extend_from_slice(b"null");
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::builder::{ListBuilder, TimestampMillisecondBuilder};
    use arrow_array::{
        BinaryArray, Date32Array, Decimal128Array, Float64Array, Int64Array, StructArray,
        Time32SecondArray, TimestampMicrosecondArray, TimestampMillisecondArray,
    };

    use super::*;

    #[test]
    fn a_row_is_a_line_with_all_columns() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            (
                "user",
                Arc::new(StringArray::from(vec![Some("a\n\"b"), None])),
            ),
            ("n", Arc::new(Int64Array::from(vec![i64::MAX, 0]))),
            (
                "bytes",
                Arc::new(BinaryArray::from(vec![Some([0xff, 0].as_slice()), None])),
            ),
            ("x", Arc::new(Float64Array::from(vec![f64::NAN, 0.5]))),
            (
                "at",
                Arc::new(
                    TimestampMillisecondArray::from(vec![1_700_000_000_123, 0])
                        .with_timezone("UTC"),
                ),
            ),
            (
                "sum",
                Arc::new(
                    Decimal128Array::from(vec![12_345, -1])
                        .with_precision_and_scale(10, 2)
                        .unwrap(),
                ),
            ),
        ];
        let lines = TextLines::new(&RecordBatch::try_from_iter(columns).unwrap()).unwrap();
        let mut out = b"before\n".to_vec();
        lines.append(0, 1, &mut out).unwrap();
        lines.append(1, lines.len(), &mut out).unwrap();
        lines.append(2, 2, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                "before\n",
                r#"{"user":"a\n\"b","n":9223372036854775807,"bytes":"/wA=","x":null,"at":"2023-11-14T22:13:20.123Z","sum":123.45}"#,
                "\n",
                r#"{"user":null,"n":0,"bytes":null,"x":0.5,"at":"1970-01-01T00:00:00Z","sum":-0.01}"#,
                "\n"
            )
        );
    }

    fn written(columns: Vec<(&str, ArrayRef)>) -> String {
        let lines = TextLines::new(&RecordBatch::try_from_iter(columns).unwrap()).unwrap();
        let mut out = Vec::new();
        lines.append(0, lines.len(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_time_that_has_no_text_is_null_wherever_it_stands() {
        const YEAR_9999: i64 = 253_402_300_799_999;
        const YEAR_0: i64 = -62_167_219_200_000;
        let millis = [
            Some(9_000_000_000_000_000_000),
            Some(i64::MIN),
            Some(YEAR_9999 + 1),
            Some(YEAR_9999),
            Some(YEAR_0),
            Some(YEAR_0 - 1),
            None,
        ];
        let array = || TimestampMillisecondArray::from(millis.to_vec());
        let utc: ArrayRef = Arc::new(array().with_timezone("UTC"));
        let mut list = ListBuilder::new(
            TimestampMillisecondBuilder::new().with_data_type(utc.data_type().clone()),
        );
        for value in millis {
            list.append_value([Some(0), value]);
        }
        let inner: FieldRef = Arc::new(Field::new("at", utc.data_type().clone(), true));
        let row = StructArray::from(vec![(inner, Arc::clone(&utc))]);
        let text = written(vec![
            ("utc", utc),
            ("wall", Arc::new(array())),
            ("list", Arc::new(list.finish())),
            ("row", Arc::new(row)),
        ]);
        let times = [
            "null",
            "null",
            "null",
            "9999-12-31T23:59:59.999",
            "0000-01-01T00:00:00",
            "null",
            "null",
        ];
        let mut expected = String::new();
        for time in times {
            let (utc, wall) = match time {
                "null" => ("null".to_owned(), "null".to_owned()),
                time => (format!("\"{time}Z\""), format!("\"{time}\"")),
            };
            expected += &format!(
                "{{\"utc\":{utc},\"wall\":{wall},\"list\":[\"1970-01-01T00:00:00Z\",{utc}],\"row\":{{\"at\":{utc}}}}}\n"
            );
        }
        assert_eq!(text, expected);
    }

    #[test]
    fn dates_and_times_of_day_that_have_no_text_are_null_too() {
        let text = written(vec![
            (
                "day",
                Arc::new(Date32Array::from(vec![i32::MAX, 2_932_897, 2_932_896])),
            ),
            (
                "of_day",
                Arc::new(Time32SecondArray::from(vec![86_400, -1, 86_399])),
            ),
            (
                "micros",
                Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX, i64::MIN, 1])),
            ),
        ]);
        assert_eq!(
            text,
            concat!(
                r#"{"day":null,"of_day":null,"micros":null}"#,
                "\n",
                r#"{"day":null,"of_day":null,"micros":null}"#,
                "\n",
                r#"{"day":"9999-12-31","of_day":"23:59:59","micros":"1970-01-01T00:00:00.000001"}"#,
                "\n"
            )
        );
    }
}
