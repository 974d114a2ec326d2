//! One record's bytes into the columns, by its schema's plan.
//!
//! Nothing here trusts a length: what a record says that it has is compared with what is left of it, and what takes no bytes
//! at all (nulls, records without fields) is counted against the record's budget.

use serde_json::Value;

use super::plan::{Read, Step, Width};
use super::schema::{Id, Schema, Shape};
use crate::column::{Budget, Builder, Kind, Row, Values};
use crate::fault::{Fault, shown, shown_bytes};
use crate::time;

/// What is skipped may nest so deep, a type inside itself included.
const SKIPPED_NESTING_MAX: usize = 200;

/// Reads the record into the row `len`. On an error the columns hold parts of it: they are to be truncated.
pub(super) fn record(
    bytes: &[u8],
    schema: &Schema,
    read: &Read,
    row: &mut Row,
    len: usize,
) -> Result<(), Fault> {
    let mut reader = Reader {
        rest: bytes,
        schema,
        budget: Budget::of(bytes.len()),
    };
    reader.root(read, row, len)?;
    match reader.rest.len() {
        0 => Ok(()),
        left => Err(left_behind(left)),
    }
}

/// The same, where what is wrong with a column costs only that column: it is null then. The first such thing is returned;
/// `required` says which columns are declared NOT NULL. An error is of bytes that are no such record: as for [`record`].
///
/// Where a field ends is what its writer's schema says, whether it is wanted or not. So what a column gets depends on
/// nothing but the bytes and the column, and whether the bytes are a record at all does not depend on the columns.
pub(super) fn columns(
    bytes: &[u8],
    schema: &Schema,
    read: &Read,
    row: &mut Row,
    len: usize,
    required: &[bool],
) -> Result<Option<Fault>, Fault> {
    let mut reader = Reader {
        rest: bytes,
        schema,
        budget: Budget::of(bytes.len()),
    };
    let mut read = read;
    // a union of records; of unions inside it nothing is planned
    if let Read::Union(branches) = read {
        let branch = reader.branch(branches.len())?;
        read = branches.get(branch).ok_or_else(ends)?;
    }
    let Read::Record { steps, defaults } = read else {
        reader.root(read, row, len)?;
        return Err(Fault::new("the value is no record"));
    };
    let mut first = None;
    for step in steps {
        let (Step::Skip(of) | Step::Field(_, _, of)) = step;
        let whole = reader.rest;
        reader.budget = Budget::of(bytes.len());
        reader.skip(*of, 0)?;
        let Step::Field(at, read, _) = step else {
            continue;
        };
        let mut field = Reader {
            rest: whole
                .get(..whole.len() - reader.rest.len())
                .unwrap_or_default(),
            schema,
            budget: Budget::of(bytes.len()),
        };
        let fault = row.one(*at, len, required, |builder| {
            field.value(read, builder)?;
            match field.rest.len() {
                0 => Ok(()),
                left => Err(Fault::new(format!(
                    "{left} bytes are left behind it: a block says another length than it has"
                ))),
            }
        })?;
        first = first.or(fault);
    }
    for (at, value) in defaults {
        reader.budget = Budget::of(bytes.len());
        let fault = row.one(*at, len, required, |builder| reader.default(value, builder))?;
        first = first.or(fault);
    }
    match reader.rest.len() {
        0 => Ok(first.or(row.fill(len, required))),
        left => Err(left_behind(left)),
    }
}

fn left_behind(bytes: usize) -> Fault {
    Fault::new(format!(
        "{bytes} bytes are left behind the record: it was not written with this schema"
    ))
}

struct Reader<'a> {
    rest: &'a [u8],
    schema: &'a Schema,
    budget: Budget,
}

fn ends() -> Fault {
    Fault::new("the value ends in the middle of the record")
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or_else(ends)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or_else(ends)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A number in zigzag form, seven bits to a byte.
    fn long(&mut self) -> Result<i64, Fault> {
        let mut value: u64 = 0;
        for (at, byte) in self.rest.iter().enumerate() {
            let bits = u64::from(byte & 0x7f);
            // the tenth byte has one bit left
            if at == 9 && *byte > 1 {
                break;
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = self.rest.get(at + 1..).unwrap_or_default();
                let half = i64::try_from(value >> 1).unwrap_or_default();
                return Ok(if value & 1 == 1 { !half } else { half });
            }
            if at == 9 {
                break;
            }
        }
        if self.rest.len() < 10 {
            Err(ends())
        } else {
            Err(Fault::new("a number has more than 64 bits"))
        }
    }

    fn integer(&mut self, width: Width) -> Result<i64, Fault> {
        let value = self.long()?;
        if width == Width::Int && i32::try_from(value).is_err() {
            return Err(Fault::new(format!("{value} is out of the range of an int")));
        }
        Ok(value)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let len = self.long()?;
        match usize::try_from(len) {
            Ok(len) => self.take(len),
            Err(_) => Err(Fault::new(format!("a length of {len}"))),
        }
    }

    fn text(&mut self) -> Result<&'a [u8], Fault> {
        let bytes = self.bytes()?;
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(bytes),
            Err(_) => Err(Fault::new(format!(
                "\"{}\" is not UTF-8",
                shown_bytes(bytes)
            ))),
        }
    }

    /// How many items the next block of an array or map has, and how many bytes, where it says so; none ends it.
    fn block(&mut self) -> Result<Option<(usize, Option<usize>)>, Fault> {
        let count = self.long()?;
        if count == 0 {
            return Ok(None);
        }
        let bytes = if count < 0 {
            let bytes = self.long()?;
            let bytes = usize::try_from(bytes)
                .map_err(|_| Fault::new(format!("a block of {bytes} bytes")))?;
            Some(bytes)
        } else {
            None
        };
        let count = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
        Ok(Some((count, bytes)))
    }

    fn branch(&mut self, branches: usize) -> Result<usize, Fault> {
        let branch = self.long()?;
        usize::try_from(branch)
            .ok()
            .filter(|branch| *branch < branches)
            .ok_or_else(|| Fault::new(format!("branch {branch} of a union of {branches}")))
    }

    fn root(&mut self, read: &Read, row: &mut Row, len: usize) -> Result<(), Fault> {
        match read {
            Read::Record { steps, defaults } => self.fields(steps, defaults, row, len),
            Read::Union(branches) => {
                let branch = self.branch(branches.len())?;
                match branches.get(branch) {
                    Some(read) => self.root(read, row, len),
                    None => Err(ends()),
                }
            }
            Read::Null => Err(Fault::new("the record is null")),
            Read::Never(why) => Err(Fault::new(why.as_str())),
            _ => Err(Fault::new("the value is no record")),
        }
    }

    fn fields(
        &mut self,
        steps: &[Step],
        defaults: &[(usize, Value)],
        row: &mut Row,
        len: usize,
    ) -> Result<(), Fault> {
        for step in steps {
            match step {
                Step::Field(at, read, _) => {
                    if let Some(field) = row.fields.get_mut(*at) {
                        self.value(read, field)
                            .map_err(|fault| fault.in_field(row.name(*at)))?;
                    }
                }
                Step::Skip(id) => self.skip(*id, 0)?,
            }
        }
        for (at, value) in defaults {
            if let Some(field) = row.fields.get_mut(*at) {
                self.default(value, field)
                    .map_err(|fault| fault.in_field(row.name(*at)))?;
            }
        }
        row.complete(len)
    }

    fn value(&mut self, read: &Read, into: &mut Builder) -> Result<(), Fault> {
        match read {
            Read::Null => into.push_null(),
            Read::Boolean => match self.take(1)? {
                [0] => into.push_bool(false),
                [1] => into.push_bool(true),
                _ => Err(Fault::new("a boolean that is neither 0 nor 1")),
            },
            Read::Integer(width) => into.push_integer(self.integer(*width)?),
            Read::IntegerToDouble(width) => {
                #[allow(
                    clippy::cast_precision_loss,
                    reason = "Avro promotes a long to the nearest double"
                )]
                let value = self.integer(*width)? as f64;
                into.push_f64(value)
            }
            Read::IntegerToFloat(width) => {
                #[allow(
                    clippy::cast_precision_loss,
                    reason = "Avro promotes a long to the nearest float"
                )]
                let value = self.integer(*width)? as f32;
                into.push_f32(value)
            }
            Read::IntegerToDecimal(width, scale) => {
                let value = i128::from(self.integer(*width)?);
                into.push_decimal(rescaled(value, 0, *scale)?)
            }
            Read::Rescaled(width, from, to) => {
                into.push_integer(time::rescale(self.integer(*width)?, *from, *to)?)
            }
            Read::Float => into.push_f32(f32::from_le_bytes(self.array()?)),
            Read::Double => into.push_f64(f64::from_le_bytes(self.array()?)),
            Read::Bytes => into.push_bytes(self.bytes()?),
            Read::Text => into.push_bytes(self.text()?),
            Read::Fixed(size) => into.push_bytes(self.take(*size)?),
            Read::FixedUuid => {
                let uuid = uuid::Uuid::from_bytes(self.array()?);
                let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
                into.push_bytes(uuid.hyphenated().encode_lower(&mut text).as_bytes())
            }
            Read::Enum(symbols) => {
                let at = self.long()?;
                let symbol = usize::try_from(at).ok().and_then(|at| symbols.get(at));
                match symbol {
                    Some(symbol) => {
                        // its number is shorter than its name
                        self.budget.take(symbol.len())?;
                        into.push_bytes(symbol.as_bytes())
                    }
                    None => Err(Fault::new(format!(
                        "symbol {at} of an enum of {}",
                        symbols.len()
                    ))),
                }
            }
            Read::Decimal { size, from, to } => {
                let bytes = match size {
                    Some(size) => self.take(*size)?,
                    None => self.bytes()?,
                };
                into.push_decimal(rescaled(decimal(bytes)?, *from, *to)?)
            }
            Read::Array(item) => {
                if let Values::List(list) = &mut into.values {
                    let mut index = 0;
                    while let Some((count, _)) = self.block()? {
                        for _ in 0..count {
                            self.budget.take(list.items.width)?;
                            self.value(item, &mut list.items)
                                .map_err(|fault| fault.in_element(index))?;
                            index += 1;
                        }
                    }
                }
                into.end_list()
            }
            Read::Map(value) => {
                if let Values::List(list) = &mut into.values
                    && let Some(keys) = &mut list.keys
                {
                    while let Some((count, _)) = self.block()? {
                        for _ in 0..count {
                            self.budget.take(list.items.width + keys.width + 4)?;
                            let key = self.text()?;
                            keys.push_bytes(key)?;
                            self.value(value, &mut list.items)
                                .map_err(|fault| fault.in_key(key))?;
                        }
                    }
                }
                into.end_map()
            }
            Read::Record { steps, defaults } => {
                let len = into.len();
                if let Values::Row(row) = &mut into.values {
                    self.fields(steps, defaults, row, len)?;
                }
                into.valid();
                Ok(())
            }
            Read::Union(branches) => {
                let branch = self.branch(branches.len())?;
                match branches.get(branch) {
                    Some(read) => self.value(read, into),
                    None => Err(ends()),
                }
            }
            Read::Never(why) => Err(Fault::new(why.as_str())),
        }
    }

    /// What the reader's schema says for a field that the writer did not have.
    fn default(&mut self, value: &Value, into: &mut Builder) -> Result<(), Fault> {
        let wrong = |into: &Builder| {
            Fault::new(format!(
                "the schema's default {} is no {}",
                shown(&value.to_string()),
                into.of.sql
            ))
        };
        // a default may be long, and every record without the field has it
        self.budget.take(into.width)?;
        match (into.kind, value) {
            (_, Value::Null) => into.push_null(),
            (Kind::Boolean, Value::Bool(value)) => into.push_bool(*value),
            (
                Kind::Integer
                | Kind::Date
                | Kind::Time(_)
                | Kind::Timestamp(_)
                | Kind::TimestampLtz(_),
                Value::Number(number),
            ) => match number.as_i64() {
                Some(number) => into.push_integer(number),
                None => Err(wrong(into)),
            },
            (Kind::Float, Value::Number(number)) => match number.as_f64() {
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "the nearest float is what the default of a float means"
                )]
                Some(number) => into.push_f32(number as f32),
                None => Err(wrong(into)),
            },
            (Kind::Double, Value::Number(number)) => match number.as_f64() {
                Some(number) => into.push_f64(number),
                None => Err(wrong(into)),
            },
            (Kind::String, Value::String(text)) => {
                self.budget.take(text.len())?;
                into.push_bytes(text.as_bytes())
            }
            (Kind::Bytes | Kind::Decimal { .. }, Value::String(text)) => {
                self.budget.take(text.len())?;
                // a character for each byte
                let bytes: Option<Vec<u8>> = text
                    .chars()
                    .map(|c| u8::try_from(u32::from(c)).ok())
                    .collect();
                let bytes = bytes.ok_or_else(|| wrong(into))?;
                if into.kind == Kind::Bytes {
                    into.push_bytes(&bytes)
                } else {
                    into.push_decimal(decimal(&bytes)?)
                }
            }
            (Kind::Array, Value::Array(values)) => {
                if let Values::List(list) = &mut into.values {
                    for value in values {
                        self.default(value, &mut list.items)?;
                    }
                }
                into.end_list()
            }
            (Kind::Map, Value::Object(values)) => {
                if let Values::List(list) = &mut into.values
                    && let Some(keys) = &mut list.keys
                {
                    for (key, value) in values {
                        self.budget.take(key.len())?;
                        keys.push_bytes(key.as_bytes())?;
                        self.default(value, &mut list.items)?;
                    }
                }
                into.end_map()
            }
            (Kind::Row, Value::Object(values)) => {
                let len = into.len();
                if let Values::Row(row) = &mut into.values {
                    for (name, value) in values {
                        if let Some(at) = row.find(name.as_bytes(), 0)
                            && let Some(field) = row.fields.get_mut(at)
                        {
                            self.default(value, field)?;
                        }
                    }
                    row.complete(len)?;
                }
                into.valid();
                Ok(())
            }
            _ => Err(wrong(into)),
        }
    }

    /// Goes past a value.
    fn skip(&mut self, id: Id, depth: usize) -> Result<(), Fault> {
        self.budget.take(1)?;
        if depth > SKIPPED_NESTING_MAX {
            return Err(Fault::new(format!(
                "nested more than {SKIPPED_NESTING_MAX} deep"
            )));
        }
        let schema = self.schema;
        match &schema.get(id).shape {
            Shape::Null | Shape::Pending => {}
            Shape::Boolean => {
                self.take(1)?;
            }
            Shape::Int | Shape::Long | Shape::Enum { .. } => {
                self.long()?;
            }
            Shape::Float => {
                self.take(4)?;
            }
            Shape::Double => {
                self.take(8)?;
            }
            Shape::Bytes | Shape::String => {
                self.bytes()?;
            }
            Shape::Fixed { size } => {
                self.take(*size)?;
            }
            Shape::Array(item) => self.skip_items(*item, false, depth)?,
            Shape::Map(value) => self.skip_items(*value, true, depth)?,
            Shape::Union(branches) => {
                let branch = self.branch(branches.len())?;
                if let Some(branch) = branches.get(branch) {
                    self.skip(*branch, depth + 1)?;
                }
            }
            Shape::Record { fields, .. } => {
                for field in fields {
                    self.skip(field.of, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    fn skip_items(&mut self, item: Id, keys: bool, depth: usize) -> Result<(), Fault> {
        while let Some((count, bytes)) = self.block()? {
            if let Some(bytes) = bytes {
                self.take(bytes)?;
                continue;
            }
            for _ in 0..count {
                if keys {
                    self.bytes()?;
                }
                self.skip(item, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// A big-endian number in two's complement, of any length that its value does not need.
fn decimal(bytes: &[u8]) -> Result<i128, Fault> {
    let negative = bytes.first().is_some_and(|b| b & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let mut all = [fill; 16];
    let (extra, low) = bytes.split_at(bytes.len().saturating_sub(16));
    for (place, byte) in all.iter_mut().rev().zip(low.iter().rev()) {
        *place = *byte;
    }
    let value = i128::from_be_bytes(all);
    if extra.iter().any(|b| *b != fill) || (value < 0) != negative {
        return Err(Fault::new("a decimal of more than 38 digits"));
    }
    Ok(value)
}

/// Digits with so many after the point, as digits with another number of them.
fn rescaled(value: i128, from: u8, to: u8) -> Result<i128, Fault> {
    let factor = 10_i128
        .checked_pow(u32::from(from.abs_diff(to)))
        .ok_or_else(|| Fault::new("a decimal of more than 38 digits"))?;
    if to >= from {
        value
            .checked_mul(factor)
            .ok_or_else(|| Fault::new("a decimal of more than 38 digits"))
    } else if value % factor == 0 {
        Ok(value / factor)
    } else {
        Err(Fault::new(format!(
            "a decimal with more than {to} digits after the point, which its column does not hold"
        )))
    }
}
