//! Hostile values: each is a row or a dead letter, and holds no more than its length allows.

use arrow_array::{Array, BinaryArray};
use everlog_common::EventColumns;
use everlog_hostile::{feed, feed_text};

use crate::tests::rows;
use crate::{
    Columns, Decoder, Inference, PathPart, RegisteredSchema, SchemaId, ValueFormat, ValueReader,
    find, misfits,
};

const COLUMNS: [(&str, &str); 11] = [
    ("user_id", "STRING NOT NULL"),
    ("timestamp_ms", "BIGINT"),
    ("price", "DECIMAL(18, 4)"),
    ("ok", "BOOLEAN"),
    ("score", "DOUBLE"),
    ("at", "TIMESTAMP_LTZ(3)"),
    ("day", "DATE"),
    ("blob", "BYTES"),
    ("tags", "ARRAY<STRING>"),
    (
        "items",
        "ARRAY<ROW<id INT NOT NULL, a BIGINT, b BIGINT, c DECIMAL(38, 0), names MAP<STRING, STRING>>>",
    ),
    ("attributes", "MAP<STRING, ARRAY<DOUBLE>>"),
];

/// One record: the row is kept or dead, and what is kept is whole.
fn one(decoder: &mut Decoder, rows: &EventColumns) {
    let decoded = decoder.decode(rows).expect("only records are wrong");
    assert_eq!(decoded.kept.len() + decoded.dead.len(), 1);
    assert_eq!(decoded.columns.num_rows(), decoded.kept.len());
    for dead in &decoded.dead {
        assert!(dead.error.len() < 1_000, "{}", dead.error);
        assert!(!dead.error.contains('\n'), "{}", dead.error);
    }
    for column in decoded.columns.columns() {
        column.to_data().validate_full().expect("valid columns");
    }
}

#[test]
fn json_is_a_row_or_a_dead_letter() {
    let corpus: [&[u8]; 4] = [
        br#"{"user_id":"u1","timestamp_ms":1700000000000,"price":19.99,"ok":true,"score":1.5e3,"at":"2026-01-31T08:00:00.123Z"}"#,
        br#"{"user_id":"\ud83d\ude00\n","day":"2026-01-31","blob":"AAH/","tags":["a",null,"b"],"other":[{"x":[1,2]},"y"]}"#,
        br#"{"user_id":1,"items":[{"id":1,"a":2,"c":99999999999999999999999999999999999999,"names":{"x":"y","z":null}},{"id":2}]}"#,
        br#"{"attributes":{"a":[1,2.5],"b":[],"c":null},"user_id":{"deep":[[[[[[]]]]]]},"timestamp_ms":"17","price":"1e2"}"#,
    ];
    let decoder = std::cell::RefCell::new(Decoder::json(Columns::parse(COLUMNS).unwrap()));
    for text in corpus {
        let decoded = decoder.borrow_mut().decode(&rows([Some(text)])).unwrap();
        assert_eq!(decoded.dead, []);
    }
    feed("JSON value", &corpus, |bytes| {
        one(&mut decoder.borrow_mut(), &rows([Some(bytes)]));
    });
}

/// Questions: a row for any bytes, and any projection as the whole.
#[test]
fn json_is_columns_and_what_is_wrong_with_them() {
    let corpus: [&[u8]; 3] = [
        br#"{"user_id":"u1","timestamp_ms":1700000000000,"price":19.99,"ok":true,"score":1.5e3,"at":"2026-01-31T08:00:00.123Z"}"#,
        br#"{"user_id":1,"items":[{"id":1,"a":2,"names":{"x":"y","z":null}},{"id":2}],"other":[[[{"x":1}]]]}"#,
        br#"{"attributes":{"a":[1,2.5],"b":[],"c":null},"user_id":{"deep":[[[[[[]]]]]]},"ok":7}"#,
    ];
    let format = ValueFormat::Json(Columns::parse(COLUMNS).unwrap());
    let all: Vec<usize> = (0..COLUMNS.len()).collect();
    let reader = |projection: &[usize], errors| {
        std::cell::RefCell::new(ValueReader::new(&format, projection, errors).unwrap())
    };
    let (whole, some) = (reader(&all, true), reader(&[9, 0, 10], false));
    feed("JSON columns", &corpus, |bytes| {
        let values = BinaryArray::from_iter_values([bytes]);
        let whole = whole.borrow_mut().read(&values).unwrap();
        let some = some.borrow_mut().read(&values).unwrap();
        for (ours, at) in some.columns.iter().zip([9, 0, 10]) {
            ours.to_data().validate_full().expect("valid columns");
            assert_eq!((ours.len(), ours), (1, &whole.columns[at]));
        }
        let error = whole
            .errors
            .as_ref()
            .and_then(|errors| errors.iter().next());
        if let Some(Some(error)) = error {
            assert!(error.len() < 1_000 && !error.contains('\n'), "{error}");
        }
    });
}

#[test]
fn avro_is_columns_and_what_is_wrong_with_them() {
    let good = click();
    let format = ValueFormat::Avro(Columns::parse(COLUMNS).unwrap());
    let all: Vec<usize> = (0..COLUMNS.len()).collect();
    let reader = |projection: &[usize], errors| {
        let mut reader = ValueReader::new(&format, projection, errors).unwrap();
        reader.learn(SchemaId(7), Ok(&RegisteredSchema::avro(WRITER)));
        std::cell::RefCell::new(reader)
    };
    let (whole, some) = (reader(&all, true), reader(&[10, 1], false));
    feed("Avro columns", &[&good], |bytes| {
        let values = BinaryArray::from_iter_values([bytes]);
        let read = |reader: &std::cell::RefCell<ValueReader>| {
            let mut reader = reader.borrow_mut();
            for id in reader.unlearned(&values) {
                reader.learn(id, Err("nobody knows it"));
            }
            reader.read(&values).unwrap()
        };
        let (whole, some) = (read(&whole), read(&some));
        for (ours, at) in some.columns.iter().zip([10, 1]) {
            ours.to_data().validate_full().expect("valid columns");
            assert_eq!(ours, &whole.columns[at]);
        }
    });
}

#[test]
fn any_bytes_say_something_of_columns_or_nothing() {
    let corpus: [&[u8]; 2] = [
        br#"{"a":1,"b":[{"c":"2026-01-31T08:00:00Z","d":{"e":1.5}},null],"f":{"g":{"h":[[]]}}}"#,
        br#"{"":0,"\u0061":12345678901234567890,"x":{"k1":1,"k2":2}}"#,
    ];
    feed("sample", &corpus, |bytes| {
        let mut inference = Inference::new();
        let added = inference.add(bytes);
        if let (Ok(()), Ok(columns)) = (added, inference.columns()) {
            for column in &columns {
                let text = column.of.to_string();
                assert_eq!(text.parse().as_ref(), Ok(&column.of));
            }
        }
    });
}

#[test]
fn a_place_in_any_bytes_is_json_or_nothing() {
    let corpus: [&[u8]; 2] = [
        br#"{"a":[1,{"b":"\u00e4"}],"c":null}"#,
        br#"[{"a":{"b":[true,-1.5e3]}},"x"]"#,
    ];
    let paths: [&[PathPart<'_>]; 4] = [
        &[],
        &[PathPart::Key("a"), PathPart::Index(1), PathPart::Key("b")],
        &[PathPart::Index(0), PathPart::Key("a")],
        &[PathPart::Key("c")],
    ];
    feed("JSON path", &corpus, |bytes| {
        let scratch = &mut Vec::new();
        for path in paths {
            if let Some(found) = find(bytes, path, scratch) {
                let _ = (found.integer(), found.float(), found.boolean());
                let _ = (found.text(scratch), found.len(scratch));
                serde_json::from_str::<serde::de::IgnoredAny>(found.json()).expect("JSON");
            }
        }
    });
}

/// Good and bad together give what the good ones give alone.
#[test]
fn bad_neighbours_change_nothing() {
    let good: &[u8] = br#"{"user_id":"u1","tags":["a","b"],"items":[{"id":7,"names":{"k":"v"}}],"attributes":{"x":[1]}}"#;
    let decoder = std::cell::RefCell::new(Decoder::json(Columns::parse(COLUMNS).unwrap()));
    let alone = decoder.borrow_mut().decode(&rows([Some(good)])).unwrap();
    feed("neighbour", &[good], |bytes| {
        let decoded = decoder
            .borrow_mut()
            .decode(&rows([Some(bytes), Some(good)]))
            .unwrap();
        let last = decoded.columns.num_rows() - 1;
        assert_eq!(decoded.columns.slice(last, 1), alone.columns);
    });
}

const WRITER: &str = r#"{"type":"record","name":"Click","fields":[
    {"name":"user_id","type":"string"},
    {"name":"timestamp_ms","type":["null","long"]},
    {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":18,"scale":2}},
    {"name":"unread","type":{"type":"array","items":["null",{"type":"record","name":"Tree","fields":[
        {"name":"left","type":["null","Tree"]},{"name":"none","type":"null"}]}]}},
    {"name":"score","type":"float"},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"blob","type":{"type":"fixed","name":"F","size":3}},
    {"name":"tags","type":{"type":"array","items":{"type":"enum","name":"E","symbols":["A","B"]}}},
    {"name":"attributes","type":{"type":"map","values":{"type":"array","items":"int"}}}]}"#;

fn click() -> Vec<u8> {
    let mut value = vec![0, 0, 0, 0, 7];
    value.extend_from_slice(b"\x04u1\x02\xd0\x0f\x04\x07\xcf");
    // unread: two items, the second with a tree of one more; then the end
    value.extend_from_slice(b"\x04\x00\x02\x02\x00\x00");
    value.extend_from_slice(&1.5_f32.to_le_bytes());
    // at: 1000 µs; blob; tags: [B, A]
    value.extend_from_slice(b"\xd0\x0f\x01\x02\x03\x04\x02\x00\x00");
    // attributes: {"k": [1]} in a block of known length
    value.extend_from_slice(b"\x01\x0a\x02k\x02\x02\x00\x00");
    value
}

fn avro() -> Decoder {
    let mut decoder = Decoder::avro(Columns::parse(COLUMNS).unwrap());
    decoder.learn(SchemaId(7), Ok(&RegisteredSchema::avro(WRITER)));
    decoder
}

#[test]
fn avro_is_a_row_or_a_dead_letter() {
    let good = click();
    let decoder = std::cell::RefCell::new(avro());
    let decoded = decoder
        .borrow_mut()
        .decode(&rows([Some(good.as_slice())]))
        .unwrap();
    assert_eq!(decoded.dead, []);
    feed("Avro value", &[&good], |bytes| {
        let rows = rows([Some(bytes)]);
        let mut decoder = decoder.borrow_mut();
        for id in decoder.unlearned(&rows) {
            decoder.learn(id, Err("nobody knows it"));
        }
        one(&mut decoder, &rows);
    });
}

#[test]
fn what_takes_no_bytes_is_counted_too() {
    let mut value = vec![0, 0, 0, 0, 7];
    value.extend_from_slice(b"\x04u1\x00\x00");
    // unread: 2^62 items, each of them null
    value.extend_from_slice(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]);
    value.extend(std::iter::repeat_n(0, 1 << 20));
    let decoded = avro().decode(&rows([Some(value.as_slice())])).unwrap();
    assert_eq!(decoded.dead.len(), 1);
    let mut decoder = Decoder::avro(Columns::parse([("a", "ARRAY<BIGINT>")]).unwrap());
    let nulls = r#"{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"array","items":"null"}}]}"#;
    decoder.learn(SchemaId(1), Ok(&RegisteredSchema::avro(nulls)));
    let value = [
        0, 0, 0, 0, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01,
    ];
    let decoded = decoder.decode(&rows([Some(value.as_slice())])).unwrap();
    assert!(
        decoded.dead[0]
            .error
            .contains("take many times more memory"),
        "{}",
        decoded.dead[0].error
    );
}

#[test]
fn schemas_are_used_or_refused() {
    let value = click();
    let value = rows([Some(value.as_slice())]);
    let corpus = [
        WRITER,
        r#"["null",{"type":"record","name":"a.B","fields":[{"name":"user_id","type":["string","bytes"],"default":"x"}]}]"#,
        r#"{"type":"record","name":"R","fields":[{"name":"user_id","type":"R"}]}"#,
    ];
    feed_text("Avro schema", &corpus, |text| {
        let schema = RegisteredSchema::avro(text);
        let mut decoder = Decoder::avro(Columns::parse(COLUMNS).unwrap());
        decoder.learn(SchemaId(7), Ok(&schema));
        one(&mut decoder, &value);
        let click = RegisteredSchema::avro(WRITER);
        for found in [misfits(&schema, &click), misfits(&click, &schema)] {
            assert!(found.map_or(0, |found| found.len()) <= 20);
        }
        if let Ok(mut decoder) = Decoder::avro_as(&schema) {
            decoder.learn(SchemaId(7), Ok(&RegisteredSchema::avro(WRITER)));
            one(&mut decoder, &value);
        }
    });
}
