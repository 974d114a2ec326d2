//! Keys, values and headers as they are.

use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{Array, ArrayRef, BinaryArray, ListArray, StructArray};
use arrow_schema::{ArrowError, DataType};
use everlog_common::EventColumns;

use crate::fault::{Fault, shown_bytes};
use crate::types::{Column, ColumnType, Columns, SqlType};

fn column(name: &str, sql: SqlType, nullable: bool) -> Column {
    Column {
        name: name.to_owned(),
        of: ColumnType { sql, nullable },
    }
}

/// `key BYTES, value BYTES, headers ARRAY<ROW<key STRING NOT NULL, value BYTES> NOT NULL> NOT NULL`
pub(crate) fn columns() -> Columns {
    let header = ColumnType {
        sql: SqlType::Row(vec![
            column("key", SqlType::String, false),
            column("value", SqlType::Bytes, true),
        ]),
        nullable: false,
    };
    Columns::own([
        column("key", SqlType::Bytes, true),
        column("value", SqlType::Bytes, true),
        column("headers", SqlType::Array(Box::new(header)), false),
    ])
}

/// Whether every header key is text, as the column is.
pub(crate) fn check(rows: &EventColumns, row: usize) -> Result<(), Fault> {
    let offsets = rows.headers.value_offsets();
    let (Some(from), Some(to)) = (offsets.get(row), offsets.get(row + 1)) else {
        return Ok(());
    };
    if from == to {
        return Ok(());
    }
    let keys = header_parts(&rows.headers).map(|(keys, _)| keys);
    for at in *from..*to {
        let Some(key) = keys
            .zip(usize::try_from(at).ok())
            .map(|(k, at)| k.value(at))
        else {
            continue;
        };
        if std::str::from_utf8(key).is_err() {
            return Err(Fault::new(format!(
                "the header key \"{}\" is not UTF-8",
                shown_bytes(key)
            )));
        }
    }
    Ok(())
}

fn header_parts(headers: &ListArray) -> Option<(&BinaryArray, &BinaryArray)> {
    let entries = headers.values().as_any().downcast_ref::<StructArray>()?;
    let part = |i: usize| entries.columns().get(i)?.as_any().downcast_ref();
    Some((part(0)?, part(1)?))
}

/// The columns of rows that [`check`] found right.
pub(crate) fn arrays(rows: &EventColumns) -> Result<Vec<ArrayRef>, ArrowError> {
    let wrong = || ArrowError::SchemaError("headers of another type".to_owned());
    let (keys, values) = header_parts(&rows.headers).ok_or_else(wrong)?;
    let offsets = rows.headers.offsets();
    // only the entries of these rows are known to be text
    let bound = |at: Option<&i32>| at.and_then(|at| usize::try_from(*at).ok()).unwrap_or(0);
    let (from, to) = (bound(offsets.first()), bound(offsets.last()));
    let (keys, values) = (keys.slice(from, to - from), values.slice(from, to - from));
    let mut text = StringBuilder::with_capacity(keys.len(), 0);
    for key in keys.iter().flatten() {
        text.append_value(std::str::from_utf8(key).map_err(|_| wrong())?);
    }
    let text = text.finish();
    let schema = columns().schema();
    let DataType::List(item) = schema.field(2).data_type() else {
        return Err(wrong());
    };
    let DataType::Struct(fields) = item.data_type() else {
        return Err(wrong());
    };
    let entries =
        StructArray::try_new(fields.clone(), vec![Arc::new(text), Arc::new(values)], None)?;
    let lengths = offsets
        .windows(2)
        .map(|pair| bound(pair.get(1)) - bound(pair.first()));
    let headers = ListArray::try_new(
        Arc::clone(item),
        arrow_buffer::OffsetBuffer::from_lengths(lengths),
        Arc::new(entries),
        None,
    )?;
    Ok(vec![
        Arc::new(rows.keys.clone()),
        Arc::new(rows.values.clone()),
        Arc::new(headers),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_columns_are_some_that_could_be_declared() {
        let columns = columns();
        assert_eq!(Columns::new(columns.as_slice().to_vec()), Ok(columns));
    }
}
