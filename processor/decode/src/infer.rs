//! The columns that a sample of JSON values has: types that hold for all of it.
//!
//! | in the sample | column |
//! |---|---|
//! | `true`, `false` | `BOOLEAN` |
//! | whole numbers that fit 64 bits | `BIGINT` |
//! | numbers with a point or an exponent, whole ones beside them | `DOUBLE`; `STRING` where a whole number beside them, or one of them, does not fit it |
//! | whole numbers that do not fit 64 bits | `STRING` |
//! | strings that are all dates, times of a wall clock, or instants | `DATE`, `TIMESTAMP(p)`, `TIMESTAMP_LTZ(p)` |
//! | other strings | `STRING` |
//! | arrays, objects | `ARRAY<…>`, `ROW<…>`, by the same rules; `STRING`, their JSON, where they are deep, empty, or have very many names |
//! | several of these, or nothing but null | `STRING` |
//! | never missing and never null | `NOT NULL` |

use std::collections::HashMap;

use crate::fault::Fault;
use crate::json::{Reader, Text};
use crate::number;
use crate::time::{self, Zone};
use crate::types::{Column, ColumnType, Columns, Precision, SqlType, TypeError};

/// Objects deeper than this inside a column are their JSON.
const DEPTH_MAX: usize = 6;

/// An object with more names than this is a map to somebody, and its JSON here.
const NAMES_MAX: usize = 100;

/// Columns; more fields are not told.
const COLUMNS_MAX: usize = 1_000;

/// Places in all; what is found beyond them is not looked into, so that no sample takes much memory.
const PLACES_MAX: usize = 2_000;

/// Doubles hold every whole number up to this one.
const EXACT_IN_DOUBLE: u64 = 1 << 53;

const PRECISIONS: [Precision; 3] = [Precision::Millis, Precision::Micros, Precision::Nanos];

/// What a sample of JSON objects has.
#[derive(Debug, Default)]
pub struct Inference {
    objects: Objects,
    /// Places that are known.
    places: usize,
    scratch: Vec<u8>,
}

/// What is known of the values at one place.
#[derive(Debug, Default)]
struct Shape {
    nulls: u64,
    booleans: u64,
    numbers: Numbers,
    texts: Texts,
    arrays: u64,
    items: Option<Box<Shape>>,
    objects: Objects,
    /// Arrays and objects that nobody looked into.
    deep: u64,
}

#[derive(Debug, Default)]
struct Numbers {
    count: u64,
    /// Written with a point or an exponent.
    fractions: bool,
    /// A whole one that 64 bits do not hold, or one that a double does not.
    huge: bool,
    /// A whole one that a double does not hold exactly.
    inexact: bool,
}

#[derive(Debug)]
struct Texts {
    count: u64,
    are_dates: bool,
    are_wall_times: [bool; PRECISIONS.len()],
    are_instants: [bool; PRECISIONS.len()],
}

impl Default for Texts {
    fn default() -> Self {
        Self {
            count: 0,
            are_dates: true,
            are_wall_times: [true; PRECISIONS.len()],
            are_instants: [true; PRECISIONS.len()],
        }
    }
}

#[derive(Debug, Default)]
struct Objects {
    count: u64,
    fields: Vec<(String, Shape)>,
    by_name: HashMap<String, usize>,
    /// There were more names than are kept.
    is_full: bool,
}

impl Inference {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at one more value. An error says why it is no JSON object; the value then says nothing of the columns.
    pub fn add(&mut self, value: &[u8]) -> Result<(), String> {
        // first whether it is JSON at all: a part of a broken value must not count
        let mut scratch = std::mem::take(&mut self.scratch);
        let added = check(value, &mut scratch).and_then(|()| {
            let mut reader = Reader::of_object(value, &mut scratch)?;
            self.objects
                .add(&mut reader, 0, COLUMNS_MAX, &mut self.places)
        });
        self.scratch = scratch;
        added.map_err(|fault| fault.to_string())
    }

    /// The columns, in the order in which they were first met. An error where there are none.
    pub fn columns(&self) -> Result<Columns, TypeError> {
        Columns::new(self.objects.columns(0))
    }

    /// Whether there were more fields than columns can be.
    pub const fn is_cut(&self) -> bool {
        self.objects.is_full
    }
}

fn check(value: &[u8], scratch: &mut Vec<u8>) -> Result<(), Fault> {
    Reader::of_object(value, scratch)?;
    let mut reader = Reader::new(value, scratch)?;
    reader.skip()?;
    reader.end()
}

impl Objects {
    /// The members of one more object, after its brace.
    fn add(
        &mut self,
        reader: &mut Reader<'_>,
        depth: usize,
        names_max: usize,
        places: &mut usize,
    ) -> Result<(), Fault> {
        self.count += 1;
        if reader.is_empty(b'}') {
            return Ok(());
        }
        loop {
            reader.sign(b'"', "the name of a field in quotes")?;
            let name = match reader.string()? {
                Text::Plain(name) => String::from_utf8_lossy(name).into_owned(),
                Text::Escaped => String::from_utf8_lossy(reader.scratch()).into_owned(),
            };
            reader.sign(b':', "':'")?;
            match self.field(name, names_max, places) {
                Some(field) => field.add(reader, depth, places)?,
                None => reader.skip()?,
            }
            if !reader.another(b'}', "',' or '}'")? {
                return Ok(());
            }
        }
    }

    fn field(&mut self, name: String, names_max: usize, places: &mut usize) -> Option<&mut Shape> {
        let at = match self.by_name.get(&name) {
            Some(at) => *at,
            None if self.fields.len() >= names_max || *places >= PLACES_MAX => {
                self.is_full = true;
                return None;
            }
            None => {
                *places += 1;
                let at = self.fields.len();
                self.by_name.insert(name.clone(), at);
                self.fields.push((name, Shape::default()));
                at
            }
        };
        self.fields.get_mut(at).map(|(_, shape)| shape)
    }

    fn columns(&self, depth: usize) -> Vec<Column> {
        self.fields
            .iter()
            // no declaration can name it
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, shape)| Column {
                name: name.clone(),
                of: ColumnType {
                    sql: shape.sql(depth),
                    nullable: shape.values() < self.count,
                },
            })
            .collect()
    }
}

impl Shape {
    /// One more value.
    fn add(
        &mut self,
        reader: &mut Reader<'_>,
        depth: usize,
        places: &mut usize,
    ) -> Result<(), Fault> {
        reader.space();
        match reader.byte() {
            Some(b'n') => {
                self.nulls += 1;
                reader.skip()
            }
            Some(b't' | b'f') => {
                self.booleans += 1;
                reader.skip()
            }
            Some(b'"') => {
                reader.past_byte();
                match reader.string()? {
                    Text::Plain(text) => self.texts.add(text),
                    Text::Escaped => self.texts.add(reader.scratch()),
                }
                Ok(())
            }
            Some(b'[' | b'{') if depth >= DEPTH_MAX => {
                self.deep += 1;
                reader.skip()
            }
            Some(b'[') => {
                self.arrays += 1;
                reader.past_byte();
                if reader.is_empty(b']') {
                    return Ok(());
                }
                let items = self.items.get_or_insert_default();
                loop {
                    items.add(reader, depth + 1, places)?;
                    if !reader.another(b']', "',' or ']'")? {
                        return Ok(());
                    }
                }
            }
            Some(b'{') => {
                reader.past_byte();
                self.objects.add(reader, depth + 1, NAMES_MAX, places)
            }
            _ => {
                let number = reader.skipped()?;
                self.numbers.add(number);
                Ok(())
            }
        }
    }

    /// How many were not null.
    const fn values(&self) -> u64 {
        self.booleans
            + self.numbers.count
            + self.texts.count
            + self.arrays
            + self.objects.count
            + self.deep
    }

    fn sql(&self, depth: usize) -> SqlType {
        let all = self.values();
        let only = |count: u64| count > 0 && count == all;
        if only(self.booleans) {
            SqlType::Boolean
        } else if only(self.numbers.count) {
            self.numbers.sql()
        } else if only(self.texts.count) {
            self.texts.sql()
        } else if only(self.arrays) {
            let item = match &self.items {
                Some(items) => ColumnType {
                    sql: items.sql(depth + 1),
                    nullable: items.nulls > 0,
                },
                None => ColumnType {
                    sql: SqlType::String,
                    nullable: true,
                },
            };
            SqlType::Array(Box::new(item))
        } else if only(self.objects.count) && !self.objects.is_full {
            match self.objects.columns(depth + 1) {
                fields if fields.is_empty() => SqlType::String,
                fields => SqlType::Row(fields),
            }
        } else {
            SqlType::String
        }
    }
}

impl Numbers {
    fn add(&mut self, number: &[u8]) {
        self.count += 1;
        let double = std::str::from_utf8(number)
            .ok()
            .and_then(|n| n.parse().ok());
        let fits_double = double.is_some_and(f64::is_finite);
        if number.iter().any(|b| matches!(b, b'.' | b'e' | b'E')) {
            self.fractions = true;
            self.huge |= !fits_double;
            return;
        }
        let whole = number::exact(number, 0).ok();
        match whole.and_then(|whole| i64::try_from(whole).ok()) {
            Some(whole) => self.inexact |= whole.unsigned_abs() > EXACT_IN_DOUBLE,
            None => self.huge = true,
        }
    }

    const fn sql(&self) -> SqlType {
        match (self.huge, self.fractions, self.inexact) {
            (true, _, _) | (_, true, true) => SqlType::String,
            (false, true, false) => SqlType::Double,
            (false, false, _) => SqlType::BigInt,
        }
    }
}

impl Texts {
    fn add(&mut self, text: &[u8]) {
        self.count += 1;
        self.are_dates = self.are_dates && time::date(text).is_ok();
        for (at, precision) in PRECISIONS.into_iter().enumerate() {
            for (are, zone) in [
                (&mut self.are_wall_times, Zone::None),
                (&mut self.are_instants, Zone::Given),
            ] {
                if let Some(are) = are.get_mut(at) {
                    *are = *are && time::timestamp(text, precision, zone).is_ok();
                }
            }
        }
    }

    fn sql(&self) -> SqlType {
        let first = |are: &[bool]| {
            let mut known = PRECISIONS.into_iter().zip(are);
            known.find(|(_, are)| **are).map(|(precision, _)| precision)
        };
        if self.are_dates {
            SqlType::Date
        } else if let Some(precision) = first(&self.are_instants) {
            SqlType::TimestampLtz(precision)
        } else if let Some(precision) = first(&self.are_wall_times) {
            SqlType::Timestamp(precision)
        } else {
            SqlType::String
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{Array as _, BinaryArray};
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::{ValueFormat, ValueReader};

    fn inferred(values: &[&str]) -> String {
        let mut inference = Inference::new();
        for value in values {
            inference.add(value.as_bytes()).unwrap();
        }
        inference.columns().unwrap().to_string()
    }

    #[test]
    fn types_hold_for_the_whole_sample() {
        for (values, columns) in [
            (
                &[r#"{"a":1,"b":"x","c":true}"#, r#"{"a":-2,"c":null}"#][..],
                "`a` BIGINT NOT NULL, `b` STRING, `c` BOOLEAN",
            ),
            (&[r#"{"a":1}"#, r#"{"a":1.5}"#], "`a` DOUBLE NOT NULL"),
            (
                &[r#"{"a":9007199254740993}"#, r#"{"a":1.5}"#],
                "`a` STRING NOT NULL",
            ),
            (&[r#"{"a":9007199254740993}"#], "`a` BIGINT NOT NULL"),
            (&[r#"{"a":9223372036854775808}"#], "`a` STRING NOT NULL"),
            (&[r#"{"a":1e999}"#], "`a` STRING NOT NULL"),
            (&[r#"{"a":1}"#, r#"{"a":"x"}"#], "`a` STRING NOT NULL"),
            (&[r#"{"a":null}"#, "{}"], "`a` STRING"),
            (
                &[r#"{"a":"2026-01-31"}"#, r#"{"a":"0001-01-01"}"#],
                "`a` DATE NOT NULL",
            ),
            (
                &[
                    r#"{"a":"2026-01-31T08:00:00Z"}"#,
                    r#"{"a":"2026-01-31 08:00:00.123+02:00"}"#,
                ],
                "`a` TIMESTAMP_LTZ(3) NOT NULL",
            ),
            (
                &[
                    r#"{"a":"2026-01-31T08:00:00.123456Z"}"#,
                    r#"{"a":"2026-01-31 08:00:00Z"}"#,
                ],
                "`a` TIMESTAMP_LTZ(6) NOT NULL",
            ),
            (
                &[r#"{"a":"2026-01-31T08:00:00"}"#],
                "`a` TIMESTAMP(3) NOT NULL",
            ),
            (
                &[
                    r#"{"a":"2026-01-31T08:00:00"}"#,
                    r#"{"a":"2026-01-31T08:00:00Z"}"#,
                ],
                "`a` STRING NOT NULL",
            ),
            (&[r#"{"a":"2026-13-31"}"#], "`a` STRING NOT NULL"),
            (&[r#"{"a":"17"}"#], "`a` STRING NOT NULL"),
            (
                &[r#"{"a":[1,2]}"#, r#"{"a":[]}"#, r#"{"a":[null]}"#],
                "`a` ARRAY<BIGINT> NOT NULL",
            ),
            (&[r#"{"a":[]}"#], "`a` ARRAY<STRING> NOT NULL"),
            (&[r#"{"a":{}}"#], "`a` STRING NOT NULL"),
            (
                &[r#"{"a":{"x":1,"y z":[{"b":true}]}}"#, r#"{"a":{"x":2}}"#],
                "`a` ROW<`x` BIGINT NOT NULL, `y z` ARRAY<ROW<`b` BOOLEAN NOT NULL> NOT NULL>> NOT NULL",
            ),
            (&[r#"{"":1,"\u0061":2}"#], "`a` BIGINT NOT NULL"),
        ] {
            assert_eq!(inferred(values), columns, "{values:?}");
        }
    }

    #[test]
    fn what_is_no_object_says_nothing() {
        let mut inference = Inference::new();
        for value in ["", "17", "[]", r#"{"a":1"#, r#"{"a":1}x"#, r#"{"a":nul}"#] {
            inference.add(value.as_bytes()).unwrap_err();
        }
        assert_eq!(inference.columns(), Err(TypeError::NoColumns));
        inference.add(b"{}").unwrap();
        assert_eq!(inference.columns(), Err(TypeError::NoColumns));
    }

    #[test]
    fn deep_and_wide_objects_are_their_json() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(20), "]".repeat(20));
        let arrays = "ARRAY<".repeat(DEPTH_MAX);
        let columns = inferred(&[&deep]);
        assert!(
            columns.starts_with(&format!("`a` {arrays}STRING NOT NULL>")),
            "{columns}"
        );
        let names: Vec<String> = (0..=NAMES_MAX).map(|i| format!("\"k{i}\":1")).collect();
        let wide = format!("{{\"a\":{{{}}}}}", names.join(","));
        assert_eq!(inferred(&[&wide]), "`a` STRING NOT NULL");
        let names: Vec<String> = (0..=COLUMNS_MAX).map(|i| format!("\"k{i}\":1")).collect();
        let mut inference = Inference::new();
        inference
            .add(format!("{{{}}}", names.join(",")).as_bytes())
            .unwrap();
        assert!(inference.is_cut());
        assert_eq!(inference.columns().unwrap().as_slice().len(), COLUMNS_MAX);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_filter_map("finite", |d| d.is_finite().then(|| Value::from(d))),
            (-3_i64..3).prop_map(Value::from),
            "[a-c]{0,3}".prop_map(Value::from),
            "20[0-9]{2}-0[1-9]-[0-3][0-9]".prop_map(Value::from),
            "20[0-9]{2}-0[1-9]-[0-2][0-9]T0[0-9]:00:00(\\.[0-9]{1,9})?Z?".prop_map(Value::from),
        ];
        leaf.prop_recursive(10, 24, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-c]", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// The model is the reader: with the inferred columns nothing is wrong with any value of the sample.
        #[test]
        fn inferred_columns_take_every_value_of_the_sample(
            objects in proptest::collection::vec(proptest::collection::btree_map("[a-d]", any_value(), 0..4), 1..8),
        ) {
            let texts: Vec<String> = objects.iter().map(|object| serde_json::to_string(object).unwrap()).collect();
            let mut inference = Inference::new();
            for text in &texts {
                inference.add(text.as_bytes()).unwrap();
            }
            let Ok(columns) = inference.columns() else { return Ok(()); };
            // as the configuration will read them
            let pairs: Vec<(String, String)> = columns.iter().map(|c| (c.name.clone(), c.of.to_string())).collect();
            let again = Columns::parse(pairs.iter().map(|(name, of)| (name.as_str(), of.as_str()))).unwrap();
            prop_assert_eq!(&again, &columns);
            let all: Vec<usize> = (0..columns.as_slice().len()).collect();
            let mut reader = ValueReader::new(&ValueFormat::Json(columns), &all, true).unwrap();
            let values = BinaryArray::from_iter_values(texts.iter().map(String::as_bytes));
            let read = reader.read(&values).unwrap();
            let errors = read.errors.unwrap();
            prop_assert_eq!(errors.null_count(), errors.len(), "{:?} {:?}", errors, texts);
        }
    }
}
