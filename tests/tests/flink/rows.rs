//! The rows of both sides in one form, and the first difference.

use std::fs;
use std::path::Path;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMillisecondType,
};
use arrow_array::{Array as _, ArrayRef, RecordBatch};
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use serde_json::Value;

/// A row; null is none. Numbers, times and bits of doubles as text.
pub type Row = Vec<Option<String>>;

/// Everlog's.
pub fn of_batch(batch: &RecordBatch) -> Vec<Row> {
    (0..batch.num_rows())
        .map(|row| batch.columns().iter().map(|c| cell(c, row)).collect())
        .collect()
}

fn cell(array: &ArrayRef, row: usize) -> Option<String> {
    array.is_valid(row).then(|| match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Boolean => array.as_boolean().value(row).to_string(),
        DataType::Float64 => double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(row),
        DataType::Timestamp(TimeUnit::Millisecond, Some(_)) => array
            .as_primitive::<TimestampMillisecondType>()
            .value(row)
            .to_string(),
        other => panic!("no text for {other}"),
    })
}

fn double(value: f64) -> String {
    format!("{value:?}")
}

/// Those of a file of JSON lines.
pub fn of_lines(file: &Path, schema: &SchemaRef) -> Vec<Row> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let row = |line: &str| -> Row {
        let value: Value = serde_json::from_str(line).expect("a row");
        let cells = schema.fields().iter().map(|field| {
            let cell = &value[field.name()];
            (!cell.is_null()).then(|| self::text(cell, field.data_type()))
        });
        cells.collect()
    };
    text.lines().map(row).collect()
}

/// Flink's: what its sink of JSON files left in a folder.
pub fn of_files(folder: &Path, schema: &SchemaRef) -> Vec<Row> {
    let mut rows = Vec::new();
    for file in fs::read_dir(folder).into_iter().flatten() {
        let path = file.expect("a file").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        assert!(
            name.starts_with("part-"),
            "Flink left {name}: it did not commit its rows"
        );
        rows.extend(of_lines(&path, schema));
    }
    rows
}

fn text(value: &Value, data_type: &DataType) -> String {
    let found = match (data_type, value) {
        (DataType::Utf8, Value::String(text)) => Some(text.clone()),
        (DataType::Int32 | DataType::Int64, Value::Number(n)) => n.as_i64().map(|n| n.to_string()),
        (DataType::Boolean, Value::Bool(is)) => Some(is.to_string()),
        (DataType::Float64, Value::Number(n)) => n.as_f64().map(double),
        // of at most fifteen digits here, which doubles hold
        (DataType::Decimal128(_, scale), Value::Number(n)) => n
            .as_f64()
            .map(|n| format!("{n:.*}", usize::try_from(*scale).unwrap_or_default())),
        // in ISO 8601, or as SQL writes it
        (DataType::Timestamp(..), Value::String(text)) => {
            chrono::DateTime::parse_from_rfc3339(&text.replacen(' ', "T", 1))
                .ok()
                .map(|time| time.timestamp_millis().to_string())
        }
        _ => None,
    };
    found.unwrap_or_else(|| panic!("{value} is no {data_type}"))
}

/// Which columns say a row's place: window end, group keys, window start.
#[derive(Debug)]
pub struct Place(Vec<(usize, bool)>);

impl Place {
    /// By names; `end` and `start` are times.
    pub fn new(schema: &SchemaRef, end: &str, keys: &[&str], start: &str) -> Self {
        let index = |name: &str| schema.index_of(name).expect("a column of the rows");
        let mut columns = vec![(index(end), true)];
        columns.extend(keys.iter().map(|key| (index(key), false)));
        columns.push((index(start), true));
        Self(columns)
    }

    fn of(&self, row: &[Option<String>]) -> Vec<(Option<i64>, Option<String>)> {
        let cell = |(index, time): &(usize, bool)| match &row[*index] {
            Some(text) if *time => (text.parse().ok(), None),
            other => (None, other.clone()),
        };
        self.0.iter().map(cell).collect()
    }

    /// In the order that everlog promises.
    pub fn sort(&self, rows: &mut [Row]) {
        rows.sort_by_cached_key(|row| self.of(row));
    }

    /// Whether they are in that order, each place once.
    #[track_caller]
    pub fn assert_in_order(&self, rows: &[Row]) {
        for pair in rows.windows(2) {
            assert!(
                self.of(&pair[0]) < self.of(&pair[1]),
                "rows out of order\n  {:?}\n  {:?}",
                pair[0],
                pair[1]
            );
        }
    }
}

/// Panics with the first row that differs.
#[track_caller]
pub fn assert_same(everlog: &[Row], flink: &[Row], what: &str) {
    let first = (0..everlog.len().max(flink.len())).find(|&i| everlog.get(i) != flink.get(i));
    if let Some(i) = first {
        panic!(
            "{what}: of {} rows here and {} of Flink's the first that differ are number {i}\n  everlog {:?}\n  Flink   {:?}",
            everlog.len(),
            flink.len(),
            everlog.get(i),
            flink.get(i)
        );
    }
}
