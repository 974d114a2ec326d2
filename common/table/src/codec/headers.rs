//! Header lists, whose keys are strings in the table and bytes in the log.

use std::sync::Arc;

use arrow_array::builder::{ArrayBuilder, BinaryBuilder};
use arrow_array::{Array, ArrayRef, BinaryArray, ListArray, StringArray, StructArray};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, FieldRef, Fields};
use everlog_common::mutants::Mutant;
use everlog_common::record::header_fields;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::CodecError;
use crate::schema::{Column, HEADER_KEY_ID, HEADER_VALUE_ID};

/// `headers` and, where any row needs it, `headers_raw`.
pub(super) fn encode(
    headers: &ListArray,
    target: &DataType,
) -> Result<(ListArray, Option<BinaryArray>), CodecError> {
    let (element, fields) = list_fields(target)?;
    let lists = Lists::of(headers)?;
    if !Mutant::HeadersReversed.is_planted()
        && let Ok(keys) = StringArray::try_from_binary(lists.keys.clone())
    {
        let list = list_array(element, fields, lists.offsets, keys, lists.values, None)?;
        return Ok((list, None));
    }
    let (list, raw) = encode_by_row(&lists, element, fields)?;
    Ok((list, Some(raw)))
}

/// The way of batches with a key that is not UTF-8.
fn encode_by_row(
    lists: &Lists,
    element: FieldRef,
    fields: Fields,
) -> Result<(ListArray, BinaryArray), CodecError> {
    let mut offsets = vec![0_i32];
    let mut raw = BinaryBuilder::new();
    let mut present = Vec::with_capacity(lists.len());
    let (mut keys, mut values) = (BinaryBuilder::new(), BinaryBuilder::new());
    for row in 0..lists.len() {
        let entries = lists.row(row);
        let strings = entries
            .clone()
            .all(|i| std::str::from_utf8(lists.keys.value(i)).is_ok());
        present.push(strings);
        if strings {
            let (first, last) = (entries.start, entries.end);
            for i in entries {
                let i = if Mutant::HeadersReversed.is_planted() {
                    first + last - 1 - i
                } else {
                    i
                };
                keys.append_value(lists.keys.value(i));
                values.append_option(lists.value(i));
            }
            raw.append_null();
        } else {
            raw.append_value(to_raw(
                entries.map(|i| (lists.keys.value(i), lists.value(i))),
            ));
        }
        offsets.push(i32::try_from(keys.len()).unwrap_or(i32::MAX));
    }
    let list = list_array(
        element,
        fields,
        OffsetBuffer::new(ScalarBuffer::from(offsets)),
        StringArray::try_from_binary(keys.finish())?,
        values.finish(),
        Some(NullBuffer::from(present)),
    )?;
    Ok((list, raw.finish()))
}

fn list_array(
    element: FieldRef,
    fields: Fields,
    offsets: OffsetBuffer<i32>,
    keys: StringArray,
    values: BinaryArray,
    nulls: Option<NullBuffer>,
) -> Result<ListArray, CodecError> {
    let columns: Vec<ArrayRef> = vec![Arc::new(keys), Arc::new(values)];
    let entries = StructArray::try_new(fields, columns, None)?;
    Ok(ListArray::try_new(
        element,
        offsets,
        Arc::new(entries),
        nulls,
    )?)
}

fn list_fields(target: &DataType) -> Result<(FieldRef, Fields), CodecError> {
    if let DataType::List(element) = target
        && let DataType::Struct(fields) = element.data_type()
    {
        return Ok((Arc::clone(element), fields.clone()));
    }
    Err(wrong_type(target))
}

fn wrong_type(found: &DataType) -> CodecError {
    CodecError::Type {
        column: Column::Headers.name(),
        found: found.to_string(),
    }
}

/// Header lists as plain arrays: what row `i` has is `offsets[i]..offsets[i + 1]` of both.
struct Lists {
    offsets: OffsetBuffer<i32>,
    keys: BinaryArray,
    values: BinaryArray,
}

impl Lists {
    fn of(list: &ListArray) -> Result<Self, CodecError> {
        let offsets = list.offsets();
        let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
        let entries = list
            .values()
            .slice(index(first), index(last) - index(first));
        let entries = entries
            .as_any()
            .downcast_ref::<StructArray>()
            .ok_or_else(|| wrong_type(list.data_type()))?;
        if entries.null_count() > 0 {
            return Err(CodecError::value(Column::Headers, 0, "a header is null"));
        }
        let keys = part(entries, "key", HEADER_KEY_ID).and_then(bytes_of);
        let values = part(entries, "value", HEADER_VALUE_ID).and_then(bytes_of);
        let (Some(keys), Some(values)) = (keys, values) else {
            return Err(wrong_type(list.data_type()));
        };
        if keys.null_count() > 0 {
            return Err(CodecError::value(
                Column::Headers,
                0,
                "a header key is null",
            ));
        }
        let offsets = if first == 0 {
            offsets.clone()
        } else {
            let rebased: Vec<i32> = offsets.iter().map(|o| o - first).collect();
            OffsetBuffer::new(ScalarBuffer::from(rebased))
        };
        Ok(Self {
            offsets,
            keys,
            values,
        })
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn row(&self, row: usize) -> std::ops::Range<usize> {
        index(self.offsets[row])..index(self.offsets[row + 1])
    }

    fn value(&self, i: usize) -> Option<&[u8]> {
        self.values.is_valid(i).then(|| self.values.value(i))
    }
}

/// By name, or by the id that creation gives it, where it was renamed.
fn part<'a>(entries: &'a StructArray, name: &str, id: i32) -> Option<&'a ArrayRef> {
    let id = id.to_string();
    let by_id = || {
        let has_id = |f: &FieldRef| f.metadata().get(PARQUET_FIELD_ID_META_KEY) == Some(&id);
        entries.fields().iter().position(has_id)
    };
    let by_name = entries.fields().iter().position(|f| f.name() == name);
    by_name.or_else(by_id).map(|at| entries.column(at))
}

fn bytes_of(array: &ArrayRef) -> Option<BinaryArray> {
    let any = array.as_any();
    if let Some(strings) = any.downcast_ref::<StringArray>() {
        return Some(BinaryArray::from(strings.clone()));
    }
    any.downcast_ref::<BinaryArray>().cloned()
}

fn index(offset: i32) -> usize {
    usize::try_from(offset).unwrap_or(0)
}

pub(super) fn decode(
    stored: Option<&ListArray>,
    raw: Option<&BinaryArray>,
    len: usize,
) -> Result<ListArray, CodecError> {
    let lists = match stored {
        Some(list) => Lists::of(list)?,
        None => Lists {
            offsets: OffsetBuffer::new_zeroed(len),
            keys: BinaryArray::new_null(0),
            values: BinaryArray::new_null(0),
        },
    };
    let is_null = |row: usize| stored.is_some_and(|s| s.is_null(row));
    let raw = raw.filter(|r| r.null_count() < r.len());
    let some_null = stored.is_some_and(|s| s.null_count() > 0);
    // A null list is an empty one; what it spans, if anything, does not count.
    let spans_nothing = !some_null || (0..len).all(|r| !is_null(r) || lists.row(r).is_empty());
    if raw.is_none() && spans_nothing {
        return event_headers(lists.offsets, lists.keys, lists.values);
    }
    let mut offsets = vec![0_i32];
    let (mut keys, mut values) = (BinaryBuilder::new(), BinaryBuilder::new());
    for row in 0..len {
        let entries = if is_null(row) { 0..0 } else { lists.row(row) };
        match raw.filter(|r| r.is_valid(row)) {
            None => {
                for i in entries {
                    keys.append_value(lists.keys.value(i));
                    values.append_option(lists.value(i));
                }
            }
            Some(raw) => {
                if !entries.is_empty() {
                    let what = "headers has a value too";
                    return Err(CodecError::value(Column::HeadersRaw, row, what));
                }
                let parsed = from_raw(raw.value(row)).ok_or_else(|| {
                    CodecError::value(Column::HeadersRaw, row, "is no header list")
                })?;
                for (key, value) in parsed {
                    keys.append_value(key);
                    values.append_option(value);
                }
            }
        }
        offsets.push(i32::try_from(keys.len()).unwrap_or(i32::MAX));
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    event_headers(offsets, keys.finish(), values.finish())
}

fn event_headers(
    offsets: OffsetBuffer<i32>,
    keys: BinaryArray,
    values: BinaryArray,
) -> Result<ListArray, CodecError> {
    let columns: Vec<ArrayRef> = vec![Arc::new(keys), Arc::new(values)];
    let entries = StructArray::try_new(header_fields(), columns, None)?;
    let element = Field::new("element", DataType::Struct(header_fields()), false);
    Ok(ListArray::try_new(
        Arc::new(element),
        offsets,
        Arc::new(entries),
        None,
    )?)
}

fn to_raw<'a>(headers: impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Vec<u8> {
    let mut out = Vec::new();
    let length = |len: usize| i32::try_from(len).unwrap_or(i32::MAX).to_le_bytes();
    let count = u32::try_from(headers.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
    for (key, value) in headers {
        out.extend_from_slice(&length(key.len()));
        out.extend_from_slice(key);
        match value {
            None => out.extend_from_slice(&(-1_i32).to_le_bytes()),
            Some(value) => {
                out.extend_from_slice(&length(value.len()));
                out.extend_from_slice(value);
            }
        }
    }
    out
}

type RawHeader<'a> = (&'a [u8], Option<&'a [u8]>);

/// None where the bytes are not of that form, to the last one.
fn from_raw(bytes: &[u8]) -> Option<Vec<RawHeader<'_>>> {
    fn number(rest: &mut &[u8]) -> Option<i32> {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        Some(i32::from_le_bytes(*head))
    }
    fn take<'a>(rest: &mut &'a [u8], len: i32) -> Option<&'a [u8]> {
        let (head, tail) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        *rest = tail;
        Some(head)
    }
    let mut rest = bytes;
    let count = number(&mut rest)?.cast_unsigned();
    let mut headers = Vec::new();
    for _ in 0..count {
        let len = number(&mut rest)?;
        let key = take(&mut rest, len)?;
        let value = match number(&mut rest)? {
            -1 => None,
            len => Some(take(&mut rest, len)?),
        };
        headers.push((key, value));
    }
    rest.is_empty().then_some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_headers_are_read_back_or_refused() {
        let two: [RawHeader<'_>; 2] = [(b"key", Some(b"value")), (b"\xff", None)];
        let two = to_raw(two.into_iter());
        let corpus: [&[u8]; 3] = [
            &two,
            &[0; 4],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        ];
        everlog_hostile::feed("headers_raw", &corpus, |bytes| {
            if let Some(headers) = from_raw(bytes) {
                assert_eq!(to_raw(headers.into_iter()), bytes);
            }
        });
    }
}
