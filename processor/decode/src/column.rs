//! Columns under construction: values are pushed, and what a record pushed before it turned out bad is taken back, so that a
//! bad record costs nothing but itself. (Arrow's own builders only grow, and its readers give up a whole batch.)
//!
//! Invariants
//! - Between two records every column of a batch has as many rows.
//! - [`Builder::truncate`] to an earlier length leaves exactly what was there then.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array,
    Int8Array, Int16Array, Int32Array, Int64Array, ListArray, MapArray, StringArray, StructArray,
    Time32MillisecondArray, Time64MicrosecondArray, TimestampMicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray,
};
use arrow_buffer::{
    BooleanBufferBuilder, Buffer, NullBuffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer,
};
use arrow_schema::{ArrowError, DataType, Field};

use crate::fault::Fault;
use crate::types::{Column, ColumnType, Precision, SqlType, map_entries};

/// Bytes that a record's arrays and maps may come to in columns beyond four times its own length: a list of empty objects
/// takes many times its text where the objects have many fields.
pub(crate) const EXPANSION_SLACK: usize = 128 << 10;

/// What is left of what a record may take.
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Budget {
    /// For a record of so many bytes.
    pub(crate) const fn of(record: usize) -> Self {
        Self(record.saturating_mul(4).saturating_add(EXPANSION_SLACK))
    }

    /// Takes so much, or refuses the record.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), Fault> {
        match self.0.checked_sub(bytes) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => Err(Fault::new(
                "its arrays and maps take many times more memory than its bytes: refused",
            )),
        }
    }
}

/// What a column holds, as far as decoders go different ways for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Boolean,
    /// Of any width.
    Integer,
    Float,
    Double,
    Decimal {
        scale: u8,
    },
    String,
    Bytes,
    Date,
    Time(Precision),
    Timestamp(Precision),
    TimestampLtz(Precision),
    Array,
    Map,
    Row,
}

impl Kind {
    pub(crate) const fn of(sql: &SqlType) -> Self {
        match sql {
            SqlType::Boolean => Self::Boolean,
            SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt => Self::Integer,
            SqlType::Float => Self::Float,
            SqlType::Double => Self::Double,
            SqlType::Decimal { scale, .. } => Self::Decimal { scale: *scale },
            SqlType::String => Self::String,
            SqlType::Bytes => Self::Bytes,
            SqlType::Date => Self::Date,
            SqlType::Time(p) => Self::Time(*p),
            SqlType::Timestamp(p) => Self::Timestamp(*p),
            SqlType::TimestampLtz(p) => Self::TimestampLtz(*p),
            SqlType::Array(_) => Self::Array,
            SqlType::Map(_) => Self::Map,
            SqlType::Row(_) => Self::Row,
        }
    }

    /// The first and the last whole number that stands for a value: dates and times are of the years 0001 to 9999, which is
    /// what can be written as text, and times of day are of one day. The width of integers is for the column to check.
    const fn numbers(self) -> (i64, i64) {
        const DAYS: (i64, i64) = (-719_162, 2_932_896);
        const DAY: i64 = 86_400;
        match self {
            Self::Date => DAYS,
            Self::Time(precision) => (0, DAY * precision.per_second() - 1),
            Self::Timestamp(precision) | Self::TimestampLtz(precision) => {
                let unit = precision.per_second();
                let first = (DAYS.0 * DAY).saturating_mul(unit);
                (
                    first,
                    ((DAYS.1 + 1) * DAY).saturating_mul(unit).saturating_sub(1),
                )
            }
            _ => (i64::MIN, i64::MAX),
        }
    }
}

/// A column, or a part of one, under construction.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) of: ColumnType,
    pub(crate) kind: Kind,
    /// Bytes of one row without its text, bytes and elements.
    pub(crate) width: usize,
    /// The first and the last whole number that it takes.
    numbers: (i64, i64),
    nulls: NullBufferBuilder,
    pub(crate) values: Values,
}

/// The values, by what they are stored as.
#[derive(Debug)]
pub(crate) enum Values {
    Bits(BooleanBufferBuilder),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    I128(Vec<i128>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes(Bytes),
    List(List),
    Row(Row),
}

/// Texts or byte strings, one after the other.
#[derive(Debug)]
pub(crate) struct Bytes {
    /// Where each row ends.
    ends: Vec<i32>,
    pub(crate) data: Vec<u8>,
}

/// Arrays, or maps as arrays of keys and values.
#[derive(Debug)]
pub(crate) struct List {
    /// Where each row ends.
    ends: Vec<i32>,
    /// Of a map.
    pub(crate) keys: Option<Box<Builder>>,
    pub(crate) items: Box<Builder>,
}

/// Fields by name.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) fields: Vec<Builder>,
    names: Vec<Box<str>>,
    by_name: HashMap<Box<[u8]>, usize>,
}

/// Below so many names, comparing with each is faster than a table.
const NAMES_COMPARED: usize = 6;

impl Row {
    pub(crate) fn new(columns: &[Column], rows: usize) -> Self {
        let names: Vec<Box<str>> = columns.iter().map(|c| c.name.as_str().into()).collect();
        let table = || {
            names
                .iter()
                .enumerate()
                .map(|(i, name)| (name.as_bytes().into(), i))
        };
        Self {
            fields: columns.iter().map(|c| Builder::new(&c.of, rows)).collect(),
            by_name: if names.len() > NAMES_COMPARED {
                table().collect()
            } else {
                HashMap::new()
            },
            names,
        }
    }

    /// The field of that name. `guess` is looked at first: records name their fields in the same order.
    pub(crate) fn find(&self, name: &[u8], guess: usize) -> Option<usize> {
        if self.names.get(guess).is_some_and(|n| n.as_bytes() == name) {
            return Some(guess);
        }
        if self.by_name.is_empty() {
            self.names.iter().position(|n| n.as_bytes() == name)
        } else {
            self.by_name.get(name).copied()
        }
    }

    pub(crate) fn name(&self, field: usize) -> &str {
        self.names.get(field).map_or("", |name| name)
    }

    /// Takes back all rows from `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        for field in &mut self.fields {
            field.truncate(len);
        }
    }

    /// Gives null to every field that has no row `len` yet.
    pub(crate) fn complete(&mut self, len: usize) -> Result<(), Fault> {
        let Self { fields, names, .. } = self;
        for (field, name) in fields.iter_mut().zip(names) {
            if field.len() == len {
                if !field.of.nullable {
                    return Err(Fault::new("is missing, and is NOT NULL").in_field(name));
                }
                field.push_blank();
            }
        }
        Ok(())
    }

    /// Lets `push` give a field, which may be null, its row `len`. Where it cannot, the field gets null, and what is wrong is
    /// returned; so is a null of a field that is declared NOT NULL.
    pub(crate) fn one(
        &mut self,
        at: usize,
        len: usize,
        required: &[bool],
        push: impl FnOnce(&mut Builder) -> Result<(), Fault>,
    ) -> Result<Option<Fault>, Fault> {
        let Some(field) = self.fields.get_mut(at) else {
            return Ok(None);
        };
        let fault = match push(field) {
            Ok(()) if required.get(at) == Some(&true) && field.is_null(len) => {
                Fault::new("is null, and is NOT NULL")
            }
            Ok(()) => return Ok(None),
            Err(fault) => {
                field.truncate(len);
                field.push_null()?;
                fault
            }
        };
        Ok(Some(fault.in_field(self.name(at))))
    }

    /// Gives null to every field that has no row `len` yet, all of which may be null; what is wrong with the first of them
    /// that is declared NOT NULL.
    pub(crate) fn fill(&mut self, len: usize, required: &[bool]) -> Option<Fault> {
        let mut first = None;
        for (i, field) in self.fields.iter_mut().enumerate() {
            if field.len() == len {
                field.push_blank();
                if required.get(i) == Some(&true) {
                    first.get_or_insert(i);
                }
            }
        }
        first.map(|i| Fault::new("is missing, and is NOT NULL").in_field(self.name(i)))
    }

    /// The columns as arrays, and empty ones in their place.
    pub(crate) fn finish(&mut self) -> Result<Vec<ArrayRef>, ArrowError> {
        self.fields.iter_mut().map(Builder::finish).collect()
    }
}

/// A place where the compiler cannot see that the kinds agree.
fn other_kind() -> Fault {
    Fault::new("the decoder put a value into a column of another kind: please report this")
}

/// What does not fit says what it is and what would.
pub(crate) fn out_of_range(value: impl std::fmt::Display, of: &SqlType) -> Fault {
    Fault::new(format!("{value} is out of the range of {of}"))
}

fn capacity<T>(rows: usize) -> Vec<T> {
    // more comes as it is needed: a few rows of a large batch may be all that a partition has
    Vec::with_capacity(rows.min(1 << 16))
}

impl Builder {
    pub(crate) fn new(of: &ColumnType, rows: usize) -> Self {
        let values = match &of.sql {
            SqlType::Boolean => Values::Bits(BooleanBufferBuilder::new(rows.min(1 << 16))),
            SqlType::TinyInt => Values::I8(capacity(rows)),
            SqlType::SmallInt => Values::I16(capacity(rows)),
            SqlType::Int | SqlType::Date => Values::I32(capacity(rows)),
            SqlType::Time(p) if *p <= Precision::Millis => Values::I32(capacity(rows)),
            SqlType::BigInt
            | SqlType::Time(_)
            | SqlType::Timestamp(_)
            | SqlType::TimestampLtz(_) => Values::I64(capacity(rows)),
            SqlType::Decimal { .. } => Values::I128(capacity(rows)),
            SqlType::Float => Values::F32(capacity(rows)),
            SqlType::Double => Values::F64(capacity(rows)),
            SqlType::String | SqlType::Bytes => Values::Bytes(Bytes {
                ends: capacity(rows),
                data: Vec::new(),
            }),
            // how many elements there will be, nobody knows
            SqlType::Array(item) => Values::List(List {
                ends: capacity(rows),
                keys: None,
                items: Box::new(Self::new(item, 0)),
            }),
            SqlType::Map(value) => Values::List(List {
                ends: capacity(rows),
                keys: Some(Box::new(Self::new(
                    &ColumnType {
                        sql: SqlType::String,
                        nullable: false,
                    },
                    0,
                ))),
                items: Box::new(Self::new(value, 0)),
            }),
            SqlType::Row(fields) => Values::Row(Row::new(fields, rows)),
        };
        let width = match &values {
            Values::Bits(_) | Values::I8(_) => 1,
            Values::I16(_) => 2,
            Values::I32(_) | Values::F32(_) | Values::Bytes(_) | Values::List(_) => 4,
            Values::I64(_) | Values::F64(_) => 8,
            Values::I128(_) => 16,
            Values::Row(row) => row.fields.iter().map(|f| f.width).sum::<usize>() + 1,
        };
        Self {
            of: of.clone(),
            kind: Kind::of(&of.sql),
            width,
            numbers: Kind::of(&of.sql).numbers(),
            nulls: NullBufferBuilder::new(rows.min(1 << 16)),
            values,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.nulls.len()
    }

    /// Whether a row that is there is null.
    pub(crate) fn is_null(&self, row: usize) -> bool {
        !self.nulls.is_valid(row)
    }

    /// Takes back all rows from `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        match &mut self.values {
            Values::Bits(v) => v.truncate(len),
            Values::I8(v) => v.truncate(len),
            Values::I16(v) => v.truncate(len),
            Values::I32(v) => v.truncate(len),
            Values::I64(v) => v.truncate(len),
            Values::I128(v) => v.truncate(len),
            Values::F32(v) => v.truncate(len),
            Values::F64(v) => v.truncate(len),
            Values::Bytes(v) => {
                v.ends.truncate(len);
                v.data.truncate(last(&v.ends));
            }
            Values::List(v) => {
                v.ends.truncate(len);
                let items = last(&v.ends);
                if let Some(keys) = &mut v.keys {
                    keys.truncate(items);
                }
                v.items.truncate(items);
            }
            Values::Row(row) => row.truncate(len),
        }
        self.nulls.truncate(len);
    }

    /// The row is there: its value was pushed.
    pub(crate) fn valid(&mut self) {
        self.nulls.append_non_null();
    }

    /// Pushes null, or refuses it.
    pub(crate) fn push_null(&mut self) -> Result<(), Fault> {
        if !self.of.nullable {
            return Err(Fault::new("is null, and is NOT NULL"));
        }
        self.push_blank();
        Ok(())
    }

    /// Pushes null; where that cannot be, a value that a null above it hides.
    fn push_blank(&mut self) {
        match &mut self.values {
            Values::Bits(v) => v.append(false),
            Values::I8(v) => v.push(0),
            Values::I16(v) => v.push(0),
            Values::I32(v) => v.push(0),
            Values::I64(v) => v.push(0),
            Values::I128(v) => v.push(0),
            Values::F32(v) => v.push(0.0),
            Values::F64(v) => v.push(0.0),
            Values::Bytes(Bytes { ends, .. }) | Values::List(List { ends, .. }) => {
                let end = ends.last().copied().unwrap_or(0);
                ends.push(end);
            }
            Values::Row(row) => row.fields.iter_mut().for_each(Self::push_blank),
        }
        self.nulls.append(!self.of.nullable);
    }

    pub(crate) fn push_bool(&mut self, value: bool) -> Result<(), Fault> {
        let Values::Bits(v) = &mut self.values else {
            return Err(other_kind());
        };
        v.append(value);
        self.valid();
        Ok(())
    }

    /// Pushes a whole number into any column of such, if it fits. Dates and times are numbers too.
    pub(crate) fn push_integer(&mut self, value: i64) -> Result<(), Fault> {
        if value < self.numbers.0 || value > self.numbers.1 {
            return Err(out_of_range(value, &self.of.sql));
        }
        let fits = match &mut self.values {
            Values::I64(v) => {
                v.push(value);
                true
            }
            Values::I32(v) => i32::try_from(value).map(|n| v.push(n)).is_ok(),
            Values::I16(v) => i16::try_from(value).map(|n| v.push(n)).is_ok(),
            Values::I8(v) => i8::try_from(value).map(|n| v.push(n)).is_ok(),
            _ => return Err(other_kind()),
        };
        if !fits {
            return Err(out_of_range(value, &self.of.sql));
        }
        self.valid();
        Ok(())
    }

    /// Pushes the digits of a DECIMAL, point left out, if they are not too many.
    pub(crate) fn push_decimal(&mut self, unscaled: i128) -> Result<(), Fault> {
        let (Values::I128(v), SqlType::Decimal { precision, .. }) =
            (&mut self.values, &self.of.sql)
        else {
            return Err(other_kind());
        };
        if unscaled.unsigned_abs() >= 10_u128.pow(u32::from(*precision)) {
            return Err(Fault::new(format!(
                "has more digits than {} holds",
                self.of.sql
            )));
        }
        v.push(unscaled);
        self.valid();
        Ok(())
    }

    pub(crate) fn push_f32(&mut self, value: f32) -> Result<(), Fault> {
        match &mut self.values {
            Values::F32(v) => v.push(value),
            Values::F64(v) => v.push(f64::from(value)),
            _ => return Err(other_kind()),
        }
        self.valid();
        Ok(())
    }

    pub(crate) fn push_f64(&mut self, value: f64) -> Result<(), Fault> {
        let Values::F64(v) = &mut self.values else {
            return Err(other_kind());
        };
        v.push(value);
        self.valid();
        Ok(())
    }

    /// Pushes text, which is UTF-8, or bytes.
    pub(crate) fn push_bytes(&mut self, value: &[u8]) -> Result<(), Fault> {
        self.push_with(|data| {
            data.extend_from_slice(value);
            Ok(())
        })
    }

    /// Lets `write` append the row's bytes; on an error what it appended is taken back with the record.
    pub(crate) fn push_with(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let Values::Bytes(Bytes { ends, data }) = &mut self.values else {
            return Err(other_kind());
        };
        write(data)?;
        let end = i32::try_from(data.len())
            .map_err(|_| Fault::new("a column of a batch is longer than 2 GiB"))?;
        ends.push(end);
        self.valid();
        Ok(())
    }

    /// The elements of a row were pushed.
    pub(crate) fn end_list(&mut self) -> Result<(), Fault> {
        let Values::List(list) = &mut self.values else {
            return Err(other_kind());
        };
        let end = i32::try_from(list.items.len())
            .map_err(|_| Fault::new("a column of a batch has more than 2^31 elements"))?;
        list.ends.push(end);
        self.valid();
        Ok(())
    }

    /// The entries of a map were pushed; no key may be among them twice.
    pub(crate) fn end_map(&mut self) -> Result<(), Fault> {
        if let Values::List(list) = &self.values
            && let Some(keys) = &list.keys
            && let Values::Bytes(keys) = &keys.values
            && let Some(key) = keys.twice_from(last(&list.ends))
        {
            return Err(Fault::new("stands twice in the map").in_key(key));
        }
        self.end_list()
    }

    /// The column as an array; an empty one in its place.
    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.finish();
        let sql = &self.of.sql;
        Ok(match &mut self.values {
            Values::Bits(v) => Arc::new(BooleanArray::new(v.finish(), nulls)),
            Values::I8(v) => Arc::new(Int8Array::try_new(taken(v), nulls)?),
            Values::I16(v) => Arc::new(Int16Array::try_new(taken(v), nulls)?),
            Values::I32(v) => match sql {
                SqlType::Date => Arc::new(Date32Array::try_new(taken(v), nulls)?),
                SqlType::Time(_) => Arc::new(Time32MillisecondArray::try_new(taken(v), nulls)?),
                _ => Arc::new(Int32Array::try_new(taken(v), nulls)?),
            },
            Values::I64(v) => match sql {
                SqlType::Time(_) => Arc::new(Time64MicrosecondArray::try_new(taken(v), nulls)?),
                SqlType::Timestamp(p) => timestamps(*p, taken(v), nulls, None)?,
                SqlType::TimestampLtz(p) => timestamps(*p, taken(v), nulls, Some("UTC"))?,
                _ => Arc::new(Int64Array::try_new(taken(v), nulls)?),
            },
            Values::I128(v) => {
                Arc::new(Decimal128Array::try_new(taken(v), nulls)?.with_data_type(sql.arrow()))
            }
            Values::F32(v) => Arc::new(Float32Array::try_new(taken(v), nulls)?),
            Values::F64(v) => Arc::new(Float64Array::try_new(taken(v), nulls)?),
            Values::Bytes(v) => {
                let data = Buffer::from_vec(std::mem::take(&mut v.data));
                let ends = offsets(&mut v.ends);
                match sql {
                    SqlType::String => Arc::new(StringArray::try_new(ends, data, nulls)?),
                    _ => Arc::new(BinaryArray::try_new(ends, data, nulls)?),
                }
            }
            Values::List(list) => {
                let ends = offsets(&mut list.ends);
                let items = list.items.finish()?;
                match (&mut list.keys, sql) {
                    (Some(keys), SqlType::Map(value)) => {
                        let entries = map_entries(value);
                        let DataType::Struct(fields) = entries.data_type() else {
                            return Err(ArrowError::SchemaError("a map of no entries".to_owned()));
                        };
                        let pairs = StructArray::try_new(
                            fields.clone(),
                            vec![keys.finish()?, items],
                            None,
                        )?;
                        Arc::new(MapArray::try_new(entries, ends, pairs, nulls, false)?)
                    }
                    _ => {
                        let field =
                            Field::new("item", items.data_type().clone(), list.items.of.nullable);
                        Arc::new(ListArray::try_new(Arc::new(field), ends, items, nulls)?)
                    }
                }
            }
            Values::Row(row) => {
                let DataType::Struct(fields) = sql.arrow() else {
                    return Err(ArrowError::SchemaError("a row of no fields".to_owned()));
                };
                Arc::new(StructArray::try_new(fields, row.finish()?, nulls)?)
            }
        })
    }
}

impl Bytes {
    fn row(&self, row: usize) -> &[u8] {
        let end = |row: usize| self.ends.get(row).map_or(0, |end| usize_of(*end));
        let from = row.checked_sub(1).map_or(0, end);
        self.data.get(from..end(row)).unwrap_or_default()
    }

    /// A value that stands twice among the rows from `from`.
    fn twice_from(&self, from: usize) -> Option<&[u8]> {
        /// Below so many rows, comparing each with each is faster than sorting.
        const FEW: usize = 8;
        let len = self.ends.len();
        if len.saturating_sub(from) <= FEW {
            return (from..len)
                .find(|row| (from..*row).any(|before| self.row(before) == self.row(*row)))
                .map(|row| self.row(row));
        }
        let mut rows: Vec<u32> = (from..len)
            .map(|row| u32::try_from(row).unwrap_or(u32::MAX))
            .collect();
        let value = |row: &u32| self.row(usize::try_from(*row).unwrap_or(usize::MAX));
        rows.sort_unstable_by(|a, b| value(a).cmp(value(b)));
        rows.windows(2)
            .find(|pair| value(&pair[0]) == value(&pair[1]))
            .map(|pair| value(&pair[0]))
    }
}

fn usize_of(end: i32) -> usize {
    usize::try_from(end).unwrap_or(0)
}

fn last(ends: &[i32]) -> usize {
    usize_of(ends.last().copied().unwrap_or(0))
}

fn taken<T: arrow_buffer::ArrowNativeType>(values: &mut Vec<T>) -> ScalarBuffer<T> {
    ScalarBuffer::from(std::mem::take(values))
}

fn offsets(ends: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let mut all = std::mem::take(ends);
    all.insert(0, 0);
    OffsetBuffer::new(ScalarBuffer::from(all))
}

fn timestamps(
    precision: Precision,
    values: ScalarBuffer<i64>,
    nulls: Option<NullBuffer>,
    zone: Option<&str>,
) -> Result<ArrayRef, ArrowError> {
    Ok(match precision {
        Precision::Seconds => {
            Arc::new(TimestampSecondArray::try_new(values, nulls)?.with_timezone_opt(zone))
        }
        Precision::Millis => {
            Arc::new(TimestampMillisecondArray::try_new(values, nulls)?.with_timezone_opt(zone))
        }
        Precision::Micros => {
            Arc::new(TimestampMicrosecondArray::try_new(values, nulls)?.with_timezone_opt(zone))
        }
        Precision::Nanos => {
            Arc::new(TimestampNanosecondArray::try_new(values, nulls)?.with_timezone_opt(zone))
        }
    })
}

#[cfg(test)]
mod tests {
    use arrow_array::Array;
    use proptest::prelude::*;

    use super::*;

    fn builder(text: &str) -> Builder {
        Builder::new(&text.parse().unwrap(), 4)
    }

    /// Pushes something of every shape, by chance.
    fn push(builder: &mut Builder, mut chance: u64) {
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(7);
        if chance >> 61 == 0 && builder.push_null().is_ok() {
            return;
        }
        let number = i64::try_from(chance >> 57).unwrap();
        match &mut builder.values {
            Values::Bits(_) => builder.push_bool(chance >> 63 == 1).unwrap(),
            Values::I128(_) => builder.push_decimal(i128::from(number)).unwrap(),
            Values::F32(_) => builder.push_f32(1.5).unwrap(),
            Values::F64(_) => builder.push_f64(2.5).unwrap(),
            Values::Bytes(_) => builder
                .push_bytes(&b"hello"[..(chance >> 62) as usize])
                .unwrap(),
            Values::List(list) => {
                for i in 0..chance >> 62 {
                    if let Some(keys) = &mut list.keys {
                        keys.push_bytes(b"k").unwrap();
                    }
                    push(&mut list.items, chance ^ i);
                }
                builder.end_list().unwrap();
            }
            Values::Row(row) => {
                for (i, field) in row.fields.iter_mut().enumerate() {
                    push(field, chance ^ (i as u64) << 20);
                }
                builder.valid();
            }
            _ => builder.push_integer(number).unwrap(),
        }
    }

    const TYPES: [&str; 12] = [
        "BOOLEAN",
        "TINYINT NOT NULL",
        "SMALLINT",
        "TIME(6)",
        "DECIMAL(20, 3)",
        "FLOAT",
        "DOUBLE NOT NULL",
        "STRING",
        "TIMESTAMP_LTZ(9)",
        "ARRAY<ARRAY<INT NOT NULL>>",
        "MAP<STRING, ROW<a DATE NOT NULL, b BYTES>>",
        "ROW<a ARRAY<STRING NOT NULL> NOT NULL, b ROW<c TIME(3) NOT NULL>>",
    ];

    proptest! {
        #[test]
        fn what_is_taken_back_was_never_there(
            kept in proptest::collection::vec(any::<u64>(), 0..20),
            bad in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..6),
        ) {
            for text in TYPES {
                let mut straight = builder(text);
                let mut crooked = builder(text);
                for (i, chance) in kept.iter().enumerate() {
                    for (at, chance) in &bad {
                        if at.index(kept.len()) == i {
                            push(&mut crooked, *chance);
                            crooked.truncate(i);
                        }
                    }
                    push(&mut straight, *chance);
                    push(&mut crooked, *chance);
                }
                let (straight, crooked) = (straight.finish().unwrap(), crooked.finish().unwrap());
                prop_assert_eq!(straight.len(), kept.len());
                prop_assert_eq!(straight.data_type(), &text.parse::<ColumnType>().unwrap().sql.arrow());
                prop_assert_eq!(straight.to_data(), crooked.to_data());
            }
        }
    }

    #[test]
    fn a_null_row_hides_fields_that_are_not_null() {
        let mut rows = builder("ROW<a INT NOT NULL>");
        rows.push_null().unwrap();
        assert!(rows.finish().unwrap().is_null(0));
        let error = builder("INT NOT NULL").push_null().unwrap_err();
        assert_eq!(error.to_string(), "is null, and is NOT NULL");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = builder("TINYINT").push_integer(128).unwrap_err();
        assert_eq!(error.to_string(), "128 is out of the range of TINYINT");
        let error = builder("DECIMAL(3, 1)").push_decimal(1000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "has more digits than DECIMAL(3, 1) holds"
        );
        builder("DECIMAL(3, 1)").push_decimal(-999).unwrap();
    }

    #[test]
    fn dates_and_times_are_what_text_can_say() {
        for (text, first, last) in [
            ("DATE", -719_162, 2_932_896),
            ("TIME(3)", 0, 86_399_999),
            ("TIMESTAMP(0)", -62_135_596_800, 253_402_300_799),
            ("TIMESTAMP_LTZ(3)", -62_135_596_800_000, 253_402_300_799_999),
            (
                "TIMESTAMP(6)",
                -62_135_596_800_000_000,
                253_402_300_799_999_999,
            ),
        ] {
            for good in [first, last] {
                builder(text).push_integer(good).unwrap();
            }
            for bad in [first - 1, last + 1, i64::MIN, i64::MAX] {
                let error = builder(text).push_integer(bad).unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!("{bad} is out of the range of {text}")
                );
            }
        }
        // Nanoseconds end before the years do.
        builder("TIMESTAMP(9)").push_integer(i64::MIN).unwrap();
    }
}
