//! What the Apache library writes is read here, value by value; and the rules of resolution, case by case.

use apache_avro::types::Value as Avro;
use apache_avro::{Schema as Theirs, to_avro_datum};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    TimestampMicrosecondType, TimestampMillisecondType,
};
use arrow_array::{Array, ArrayRef};
use proptest::prelude::*;

use super::*;
use crate::tests::rows;
use crate::{Decoded, Decoder};

/// A value of the registry's format.
fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    let mut value = vec![0];
    value.extend_from_slice(&id.to_be_bytes());
    value.extend_from_slice(body);
    value
}

fn written(schema: &str, value: impl Into<Avro>) -> Vec<u8> {
    let schema = Theirs::parse_str(schema).unwrap();
    framed(1, &to_avro_datum(&schema, value).unwrap())
}

fn record(fields: &[(&str, Avro)]) -> Avro {
    Avro::Record(
        fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
    )
}

fn decode(mut decoder: Decoder, writer: &str, values: &[Vec<u8>]) -> Decoded {
    decoder.learn(SchemaId(1), Ok(&RegisteredSchema::avro(writer)));
    let values = values.iter().map(|v| Some(v.as_slice()));
    decoder.decode(&rows(values)).unwrap()
}

/// A record with one field of this type.
fn of(field: &str) -> String {
    format!(r#"{{"type":"record","name":"R","fields":[{{"name":"c","type":{field}}}]}}"#)
}

/// One field, written as the first type and declared as the second.
fn one(writer: &str, column: &str, value: Avro) -> Result<ArrayRef, String> {
    let decoder = Decoder::avro(Columns::parse([("c", column)]).unwrap());
    let writer = of(writer);
    let value = written(&writer, record(&[("c", value)]));
    let decoded = decode(decoder, &writer, &[value]);
    match decoded.dead.first() {
        Some(dead) => Err(dead.error.clone()),
        None => Ok(ArrayRef::clone(decoded.columns.column(0))),
    }
}

#[test]
fn numbers_are_widened_and_never_cut() {
    let long = one("\"int\"", "BIGINT", Avro::Int(-7)).unwrap();
    assert_eq!(long.as_primitive::<Int64Type>().value(0), -7);
    let small = one("\"long\"", "INT", Avro::Long(7)).unwrap();
    assert_eq!(small.as_primitive::<Int32Type>().value(0), 7);
    let error = one("\"long\"", "INT", Avro::Long(1 << 40)).unwrap_err();
    assert_eq!(error, "c: 1099511627776 is out of the range of INT");
    let double = one("\"float\"", "DOUBLE", Avro::Float(1.5)).unwrap();
    assert_eq!(
        double.as_primitive::<Float64Type>().value(0).to_bits(),
        1.5_f64.to_bits()
    );
    let float = one("\"int\"", "FLOAT", Avro::Int(3)).unwrap();
    assert_eq!(
        float.as_primitive::<Float32Type>().value(0).to_bits(),
        3_f32.to_bits()
    );
    let error = one("\"double\"", "FLOAT", Avro::Double(1.5)).unwrap_err();
    assert_eq!(error, "c: the writer's double cannot be read as FLOAT");
    let decimal = one("\"long\"", "DECIMAL(5, 2)", Avro::Long(123)).unwrap();
    assert_eq!(decimal.as_primitive::<Decimal128Type>().value(0), 12_300);
    let error = one("\"string\"", "BIGINT", Avro::String("1".into())).unwrap_err();
    assert_eq!(error, "c: the writer's string cannot be read as BIGINT");
}

#[test]
fn logical_types_are_exact_or_refused() {
    let money = r#"{"type":"bytes","logicalType":"decimal","precision":10,"scale":3}"#;
    let amount = |n: i64| Avro::Decimal(n.to_be_bytes().to_vec().into());
    let read = |n, to| one(money, to, amount(n));
    for n in [0, 1_230, -1_230, i64::from(i32::MIN)] {
        let exact = read(n, "DECIMAL(20, 3)").unwrap();
        assert_eq!(
            exact.as_primitive::<Decimal128Type>().value(0),
            i128::from(n)
        );
    }
    let wider = read(-1_230, "DECIMAL(20, 5)").unwrap();
    assert_eq!(wider.as_primitive::<Decimal128Type>().value(0), -123_000);
    let narrower = read(1_230, "DECIMAL(20, 2)").unwrap();
    assert_eq!(narrower.as_primitive::<Decimal128Type>().value(0), 123);
    assert_eq!(
        read(1_234, "DECIMAL(20, 2)").unwrap_err(),
        "c: a decimal with more than 2 digits after the point, which its column does not hold"
    );
    assert_eq!(
        read(1_234_000, "DECIMAL(3, 0)").unwrap_err(),
        "c: has more digits than DECIMAL(3, 0) holds"
    );
    let micros = r#"{"type":"long","logicalType":"timestamp-micros"}"#;
    let instant = |n, to| one(micros, to, Avro::TimestampMicros(n));
    let same = instant(1_500, "TIMESTAMP_LTZ(6)").unwrap();
    assert_eq!(
        same.as_primitive::<TimestampMicrosecondType>().value(0),
        1_500
    );
    let coarser = instant(-2_000, "TIMESTAMP(3)").unwrap();
    assert_eq!(
        coarser.as_primitive::<TimestampMillisecondType>().value(0),
        -2
    );
    assert_eq!(
        instant(1_500, "TIMESTAMP_LTZ(3)").unwrap_err(),
        "c: 1500 is finer than the column's unit"
    );
    let raw = instant(1_500, "BIGINT").unwrap();
    assert_eq!(raw.as_primitive::<Int64Type>().value(0), 1_500);
    assert_eq!(
        one("\"long\"", "TIMESTAMP_LTZ(3)", Avro::Long(1)).unwrap_err(),
        "c: the writer's long cannot be read as TIMESTAMP_LTZ(3)"
    );
    let local = r#"{"type":"long","logicalType":"local-timestamp-millis"}"#;
    assert!(one(local, "TIMESTAMP(3)", Avro::LocalTimestampMillis(1)).is_ok());
    assert!(one(local, "TIMESTAMP_LTZ(3)", Avro::LocalTimestampMillis(1)).is_err());
    let date = one(
        r#"{"type":"int","logicalType":"date"}"#,
        "DATE",
        Avro::Date(3),
    )
    .unwrap();
    assert_eq!(date.as_primitive::<Date32Type>().value(0), 3);
    let id = uuid::Uuid::from_u128(7);
    let uuid = one(
        r#"{"type":"string","logicalType":"uuid"}"#,
        "STRING",
        Avro::Uuid(id),
    )
    .unwrap();
    assert_eq!(uuid.as_string::<i32>().value(0), id.to_string());
}

#[test]
fn unions_are_read_by_the_branch_that_is_there() {
    let writer = r#"["null","string","long"]"#;
    let branch = |n, value| Avro::Union(n, Box::new(value));
    let text = one(writer, "STRING", branch(1, Avro::String("x".into()))).unwrap();
    assert_eq!(text.as_string::<i32>().value(0), "x");
    assert!(
        one(writer, "STRING", branch(0, Avro::Null))
            .unwrap()
            .is_null(0)
    );
    assert_eq!(
        one(writer, "STRING", branch(2, Avro::Long(1))).unwrap_err(),
        "c: the writer's long cannot be read as STRING"
    );
    assert_eq!(
        one(writer, "STRING NOT NULL", branch(0, Avro::Null)).unwrap_err(),
        "c: is null, and is NOT NULL"
    );
    // a topic with several kinds of records
    let events = r#"[{"type":"record","name":"A","fields":[{"name":"c","type":"int"}]},
                     {"type":"record","name":"B","fields":[{"name":"d","type":"int"},{"name":"c","type":"long"}]}]"#;
    let values = [
        framed(1, &[0, 10]),
        framed(1, &[2, 2, 12]),
        framed(1, &[4, 2]),
    ];
    let decoder = Decoder::avro(Columns::parse([("c", "BIGINT"), ("d", "INT")]).unwrap());
    let decoded = decode(decoder, events, &values);
    assert_eq!(
        decoded
            .columns
            .column(0)
            .as_primitive::<Int64Type>()
            .values(),
        &[5, 6]
    );
    assert!(decoded.columns.column(1).is_null(0));
    assert_eq!(decoded.dead[0].error, "branch 2 of a union of 2");
}

#[test]
fn each_record_is_read_with_its_own_schema() {
    let columns = Columns::parse([("a", "BIGINT NOT NULL"), ("b", "STRING")]).unwrap();
    let mut decoder = Decoder::avro(columns);
    let schema = |fields: &str| {
        RegisteredSchema::avro(&format!(
            r#"{{"type":"record","name":"R","fields":[{fields}]}}"#
        ))
    };
    let first = schema(r#"{"name":"a","type":"int"}"#);
    let second = schema(
        r#"{"name":"gone","type":{"type":"map","values":"bytes"}},{"name":"b","type":["null","string"]},{"name":"a","type":"long"}"#,
    );
    let third = schema(r#"{"name":"b","type":"string"}"#);
    for (id, schema) in [(1, &first), (2, &second), (3, &third)] {
        decoder.learn(SchemaId(id), Ok(schema));
    }
    decoder.learn(SchemaId(4), Err("nobody knows it"));
    let json = RegisteredSchema {
        kind: "JSON".to_owned(),
        ..first.clone()
    };
    decoder.learn(SchemaId(5), Ok(&json));
    let values = [
        framed(2, b"\x02\x02k\x02v\x00\x02\x02x\x04"),
        framed(1, b"\x02"),
        framed(3, b"\x02x"),
        framed(4, b""),
        framed(5, b"\x02"),
        framed(1, b"\x02\x02"),
        framed(1, b""),
        b"\x00\x00".to_vec(),
        b"{\"a\":1}".to_vec(),
        Vec::new(),
    ];
    let values = rows(values.iter().map(|v| Some(v.as_slice())));
    let decoded = decoder.decode(&values).unwrap();
    assert_eq!(
        decoded
            .columns
            .column(0)
            .as_primitive::<Int64Type>()
            .values(),
        &[2, 1]
    );
    let b: Vec<_> = decoded
        .columns
        .column(1)
        .as_string::<i32>()
        .iter()
        .collect();
    assert_eq!(b, [Some("x"), None]);
    let errors: Vec<&str> = decoded.dead.iter().map(|d| d.error.as_str()).collect();
    assert_eq!(
        errors,
        [
            "a: is missing, and is NOT NULL",
            "schema 4: nobody knows it",
            "schema 5: the Avro schema cannot be used: it is JSON, not AVRO",
            "1 bytes are left behind the record: it was not written with this schema",
            "a: the value ends in the middle of the record",
            "the value is shorter than the number of a schema",
            "the value begins with byte 0x7b, not with the 0 of a schema registry's format",
            "the value is empty",
        ]
    );
}

#[test]
fn the_readers_schema_has_defaults_and_aliases() {
    let reader = r#"{"type":"record","name":"R","fields":[
        {"name":"id","aliases":["old_id"],"type":"long"},
        {"name":"kind","type":{"type":"enum","name":"K","symbols":["A","B"]},"default":"B"},
        {"name":"note","type":["null","string"],"default":null},
        {"name":"blob","type":"bytes","default":"\u00ff\u0001"},
        {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":6,"scale":2},"default":"\u0001\u0000"},
        {"name":"tags","type":{"type":"array","items":"string"},"default":["x","y"]},
        {"name":"sub","type":{"type":"record","name":"S","fields":[{"name":"n","type":"int"},{"name":"m","type":["null","double"]}]},"default":{"n":5}},
        {"name":"map","type":{"type":"map","values":"float"},"default":{"k":1.5}},
        {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"},"default":17}]}"#;
    let decoder = Decoder::avro_as(&RegisteredSchema::avro(reader)).unwrap();
    assert_eq!(
        decoder.columns().to_string(),
        "`id` BIGINT NOT NULL, `kind` STRING NOT NULL, `note` STRING, `blob` BYTES NOT NULL, `price` DECIMAL(6, 2) NOT NULL, \
         `tags` ARRAY<STRING NOT NULL> NOT NULL, `sub` ROW<`n` INT NOT NULL, `m` DOUBLE> NOT NULL, \
         `map` MAP<STRING NOT NULL, FLOAT NOT NULL> NOT NULL, `at` TIMESTAMP_LTZ(3) NOT NULL"
    );
    let writer = r#"{"type":"record","name":"R","fields":[{"name":"old_id","type":"int"}]}"#;
    let decoded = decode(decoder, writer, &[framed(1, &[8])]);
    assert_eq!(decoded.dead, []);
    let column = |i: usize| decoded.columns.column(i);
    assert_eq!(column(0).as_primitive::<Int64Type>().value(0), 4);
    assert_eq!(column(1).as_string::<i32>().value(0), "B");
    assert!(column(2).is_null(0));
    assert_eq!(column(3).as_binary::<i32>().value(0), [255, 1]);
    assert_eq!(column(4).as_primitive::<Decimal128Type>().value(0), 256);
    assert_eq!(column(5).as_list::<i32>().value_length(0), 2);
    assert_eq!(
        column(6)
            .as_struct()
            .column(0)
            .as_primitive::<Int32Type>()
            .value(0),
        5
    );
    assert_eq!(column(7).as_map().value_length(0), 1);
    assert_eq!(
        column(8)
            .as_primitive::<TimestampMillisecondType>()
            .value(0),
        17
    );
}

#[test]
fn a_schema_that_is_no_table_says_what_to_do() {
    for (schema, why) in [
        (
            "\"string\"".to_owned(),
            "it is a string, not a record: declare `columns`",
        ),
        (
            of(r#"["int","string"]"#),
            "field c is a union of int, string: declare `columns`, without it or with another type",
        ),
        (
            of(r#"["null","R"]"#),
            "field c.c.c.c.c.c.c.c.c contains itself, or nests more than 16 deep: declare",
        ),
        (of("\"null\""), "field c is always null: declare"),
        (
            of(r#"{"type":"record","name":"E","fields":[]}"#),
            "field c is a record without fields: declare",
        ),
        (
            of(r#"{"type":"bytes","logicalType":"decimal","precision":50}"#),
            "field c has 50 digits, more than the 38 of a DECIMAL: declare",
        ),
    ] {
        let error = Decoder::avro_as(&RegisteredSchema::avro(&schema))
            .unwrap_err()
            .to_string();
        let expected = format!("the Avro schema cannot be used: {why}");
        assert!(error.starts_with(&expected), "{error}");
    }
}

/// A type by both names, and a way to make values of it.
#[derive(Debug, Clone)]
enum Kind {
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Date,
    Millis,
    Enum,
    Nullable(Box<Kind>),
    Array(Box<Kind>),
    Map(Box<Kind>),
    Record(Vec<Kind>),
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let leaf = prop_oneof![
        Just(Kind::Boolean),
        Just(Kind::Int),
        Just(Kind::Long),
        Just(Kind::Float),
        Just(Kind::Double),
        Just(Kind::Bytes),
        Just(Kind::String),
        Just(Kind::Date),
        Just(Kind::Millis),
        Just(Kind::Enum),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let boxed = inner.clone().prop_map(Box::new);
        prop_oneof![
            boxed
                .clone()
                .prop_filter("a union in a union", |kind| !matches!(
                    **kind,
                    Kind::Nullable(_)
                ))
                .prop_map(Kind::Nullable),
            boxed.clone().prop_map(Kind::Array),
            boxed.prop_map(Kind::Map),
            proptest::collection::vec(inner, 1..4).prop_map(Kind::Record),
        ]
    })
}

impl Kind {
    fn schema(&self, next: &mut usize) -> serde_json::Value {
        use serde_json::json;
        *next += 1;
        let name = format!("N{next}");
        match self {
            Self::Boolean => json!("boolean"),
            Self::Int => json!("int"),
            Self::Long => json!("long"),
            Self::Float => json!("float"),
            Self::Double => json!("double"),
            Self::Bytes => json!("bytes"),
            Self::String => json!("string"),
            Self::Date => json!({"type": "int", "logicalType": "date"}),
            Self::Millis => json!({"type": "long", "logicalType": "timestamp-millis"}),
            Self::Enum => json!({"type": "enum", "name": name, "symbols": ["A", "B", "C"]}),
            Self::Nullable(inner) => json!(["null", inner.schema(next)]),
            Self::Array(inner) => json!({"type": "array", "items": inner.schema(next)}),
            Self::Map(inner) => json!({"type": "map", "values": inner.schema(next)}),
            Self::Record(kinds) => {
                let fields: Vec<_> = kinds
                    .iter()
                    .enumerate()
                    .map(|(i, kind)| json!({"name": format!("f{i}"), "type": kind.schema(next)}))
                    .collect();
                json!({"type": "record", "name": name, "fields": fields})
            }
        }
    }

    fn value(&self, chance: &mut u64) -> Avro {
        *chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let n = (*chance >> 16) as i64;
        let few = (*chance >> 61) as usize;
        match self {
            Self::Boolean => Avro::Boolean(n & 1 == 1),
            Self::Int => Avro::Int(n as i32),
            Self::Long => Avro::Long(*chance as i64),
            Self::Float => Avro::Float(n as f32),
            Self::Double => Avro::Double(n as f64 / 3.0),
            Self::Bytes => Avro::Bytes(n.to_le_bytes()[..few].to_vec()),
            Self::String => Avro::String("äb😀c".chars().take(few).collect()),
            // of the years 1 to 9999
            Self::Date => Avro::Date(n as i32 % 700_000),
            Self::Millis => Avro::TimestampMillis(n % 250_000_000_000_000 - 60_000_000_000_000),
            Self::Enum => Avro::Enum((few % 3) as u32, ["A", "B", "C"][few % 3].to_owned()),
            Self::Nullable(_) if few < 2 => Avro::Union(0, Box::new(Avro::Null)),
            Self::Nullable(inner) => Avro::Union(1, Box::new(inner.value(chance))),
            Self::Array(inner) => Avro::Array((0..few / 2).map(|_| inner.value(chance)).collect()),
            Self::Map(inner) => Avro::Map(
                (0..few / 2)
                    .map(|i| (format!("k{i}"), inner.value(chance)))
                    .collect(),
            ),
            Self::Record(kinds) => Avro::Record(
                kinds
                    .iter()
                    .enumerate()
                    .map(|(i, kind)| (format!("f{i}"), kind.value(chance)))
                    .collect(),
            ),
        }
    }

    /// Whether the row of the array says what the value does.
    fn check(&self, array: &dyn Array, row: usize, value: &Avro) {
        let same = match (self, value) {
            (Self::Nullable(_), Avro::Union(0, _)) => array.is_null(row),
            (Self::Nullable(inner), Avro::Union(_, value)) => {
                return inner.check(array, row, value);
            }
            (_, _) if array.is_null(row) => false,
            (Self::Boolean, Avro::Boolean(b)) => array.as_boolean().value(row) == *b,
            (Self::Int, Avro::Int(n)) => array.as_primitive::<Int32Type>().value(row) == *n,
            (Self::Date, Avro::Date(n)) => array.as_primitive::<Date32Type>().value(row) == *n,
            (Self::Long, Avro::Long(n)) => array.as_primitive::<Int64Type>().value(row) == *n,
            (Self::Millis, Avro::TimestampMillis(n)) => {
                array.as_primitive::<TimestampMillisecondType>().value(row) == *n
            }
            (Self::Float, Avro::Float(n)) => {
                array.as_primitive::<Float32Type>().value(row).to_bits() == n.to_bits()
            }
            (Self::Double, Avro::Double(n)) => {
                array.as_primitive::<Float64Type>().value(row).to_bits() == n.to_bits()
            }
            (Self::Bytes, Avro::Bytes(b)) => array.as_binary::<i32>().value(row) == b.as_slice(),
            (Self::String, Avro::String(s)) => array.as_string::<i32>().value(row) == s,
            (Self::Enum, Avro::Enum(_, s)) => array.as_string::<i32>().value(row) == s,
            (Self::Array(inner), Avro::Array(values)) => {
                let items = array.as_list::<i32>().value(row);
                for (i, value) in values.iter().enumerate() {
                    inner.check(&items, i, value);
                }
                items.len() == values.len()
            }
            (Self::Map(inner), Avro::Map(values)) => {
                let entries = array.as_map().value(row);
                for i in 0..entries.len() {
                    let key = entries.column(0).as_string::<i32>().value(i);
                    inner.check(entries.column(1), i, &values[key]);
                }
                entries.len() == values.len()
            }
            (Self::Record(kinds), Avro::Record(values)) => {
                for (i, kind) in kinds.iter().enumerate() {
                    kind.check(array.as_struct().column(i), row, &values[i].1);
                }
                true
            }
            _ => false,
        };
        assert!(same, "{self:?}: {value:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn what_the_apache_library_writes_is_read(kinds in proptest::collection::vec(any_kind(), 1..5), seed in any::<u64>(), count in 1_usize..5) {
        let record = Kind::Record(kinds.clone());
        let schema = record.schema(&mut 0).to_string();
        let theirs = Theirs::parse_str(&schema).unwrap();
        let mut chance = seed;
        let values: Vec<Avro> = (0..count).map(|_| record.value(&mut chance)).collect();
        let bytes: Vec<Vec<u8>> = values.iter().map(|v| framed(1, &to_avro_datum(&theirs, v.clone()).unwrap())).collect();
        let decoder = Decoder::avro_as(&RegisteredSchema::avro(&schema)).unwrap();
        let decoded = decode(decoder, &schema, &bytes);
        prop_assert_eq!(&decoded.dead, &[]);
        for (row, value) in values.iter().enumerate() {
            let Avro::Record(fields) = value else { unreachable!() };
            for (i, kind) in kinds.iter().enumerate() {
                kind.check(decoded.columns.column(i), row, &fields[i].1);
            }
        }
        // and what nobody reads is skipped to the same place
        let none = Decoder::avro(Columns::parse([("nobody", "INT")]).unwrap());
        let skipped = decode(none, &schema, &bytes);
        prop_assert_eq!(&skipped.dead, &[]);
        prop_assert_eq!(skipped.kept.len(), count);
    }
}
