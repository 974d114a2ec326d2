//! What JSON and raw values give, type by type: the rules of docs/decoding.md.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int32Type, Int64Type,
    Time32MillisecondType, TimestampMillisecondType, TimestampNanosecondType,
};
use everlog_common::{EventColumnsBuilder, Offset, TimestampType};
use proptest::prelude::*;

use super::*;

/// Rows with these values.
pub(crate) fn rows<'a>(values: impl IntoIterator<Item = Option<&'a [u8]>>) -> EventColumns {
    let mut builder = EventColumnsBuilder::new();
    for (offset, value) in values.into_iter().enumerate() {
        let offset = Offset::new(i64::try_from(offset).unwrap()).unwrap();
        let none: [(&[u8], Option<&[u8]>); 0] = [];
        builder.push(
            offset,
            (0, TimestampType::Create),
            Some(b"k"),
            value,
            none.into_iter(),
            None,
        );
    }
    builder.finish()
}

fn json(columns: &[(&str, &str)], values: &[&str]) -> Decoded {
    let columns = Columns::parse(columns.iter().copied()).unwrap();
    Decoder::json(columns)
        .decode(&rows(values.iter().map(|v| Some(v.as_bytes()))))
        .unwrap()
}

/// The one column of one record, or why it is dead.
fn one(of: &str, value: &str) -> Result<ArrayRef, String> {
    let text = format!("{{\"c\":{value}}}");
    let decoded = json(&[("c", of)], &[&text]);
    match decoded.dead.first() {
        Some(dead) => Err(dead.error.clone()),
        None => Ok(ArrayRef::clone(decoded.columns.column(0))),
    }
}

use arrow_array::ArrayRef;

/// Each of these values is refused with this.
fn refused(of: &str, cases: &[(&str, &str)]) {
    for (value, why) in cases {
        match one(of, value) {
            Ok(array) => panic!("{of} {value}: {array:?}"),
            Err(error) => assert_eq!(error, *why, "{of} {value}"),
        }
    }
}

#[test]
fn a_bad_record_costs_only_itself() {
    let columns = [
        ("user_id", "STRING NOT NULL"),
        ("product_id", "STRING"),
        ("timestamp_ms", "BIGINT NOT NULL"),
        ("tags", "ARRAY<STRING>"),
    ];
    let decoded = json(
        &columns,
        &[
            r#"{"user_id":"a","product_id":"p","timestamp_ms":1,"tags":["x","y"]}"#,
            r#"{"user_id":"b","product_id":"gone","tags":["gone"],"timestamp_ms":"soon"}"#,
            r#" { "timestamp_ms" : 3 , "extra" : {"a":[1,{"b":"}"}]} , "user_id" : "\u00e4\"\n" } "#,
            r#"{"product_id":"p","timestamp_ms":4}"#,
            r#"{"user_id":null,"timestamp_ms":5}"#,
            r#"{"user_id":"a","user_id":"b","timestamp_ms":6}"#,
            "",
            "[]",
            r#"{"user_id":"a","timestamp_ms":9}x"#,
            r#"{"user_id":"a","timestamp_ms":1"#,
            r#"{"user_id":"z","timestamp_ms":11,"product_id":null,"tags":[]}"#,
        ],
    );
    assert_eq!(decoded.kept.values(), &[0, 2, 10]);
    let users: Vec<_> = decoded
        .columns
        .column(0)
        .as_string::<i32>()
        .iter()
        .collect();
    assert_eq!(users, [Some("a"), Some("ä\"\n"), Some("z")]);
    let products: Vec<_> = decoded
        .columns
        .column(1)
        .as_string::<i32>()
        .iter()
        .collect();
    assert_eq!(products, [Some("p"), None, None]);
    let times = decoded.columns.column(2).as_primitive::<Int64Type>();
    assert_eq!(times.values(), &[1, 3, 11]);
    let tags = decoded.columns.column(3).as_list::<i32>();
    assert_eq!(tags.value_length(0), 2);
    assert!(tags.is_null(1) && tags.is_valid(2) && tags.value_length(2) == 0);
    let errors: Vec<(u32, &str)> = decoded
        .dead
        .iter()
        .map(|d| (d.row, d.error.as_str()))
        .collect();
    assert_eq!(
        errors,
        [
            (
                1,
                "timestamp_ms: \"soon\" is not a number, BIGINT is expected"
            ),
            (3, "user_id: is missing, and is NOT NULL"),
            (4, "user_id: is null, and is NOT NULL"),
            (5, "user_id: stands twice in the object"),
            (
                6,
                "the value is no JSON for these columns: it ends at byte 0, where an object with the columns is expected"
            ),
            (
                7,
                "the value is no JSON for these columns: an object with the columns is expected at byte 0, not '['"
            ),
            (
                8,
                "the value is no JSON for these columns: the end of the value is expected at byte 32, not 'x'"
            ),
            (
                9,
                "the value is no JSON for these columns: it ends at byte 31, where ',' or '}' is expected"
            ),
        ]
    );
}

#[test]
fn a_tombstone_and_what_is_not_utf8_are_dead() {
    let mut decoder = Decoder::json(Columns::parse([("a", "INT")]).unwrap());
    let decoded = decoder
        .decode(&rows([
            None,
            Some(b"{\"a\":1,\"b\":\"\xff\"}".as_slice()),
            Some(b"{}"),
        ]))
        .unwrap();
    assert_eq!(decoded.kept.values(), &[2]);
    assert_eq!(decoded.dead[0].error, "the value is null (a tombstone)");
    assert_eq!(
        decoded.dead[1].error,
        "the value is no JSON: it is not UTF-8 at byte 12"
    );
    let nothing = decoder.decode(&rows([])).unwrap();
    assert_eq!(nothing.columns.num_rows(), 0);
}

#[test]
fn whole_numbers_are_exact_or_refused() {
    let int = |of, value| one(of, value).map(|a| a.as_primitive::<Int64Type>().value(0));
    for (text, value) in [
        ("0", 0),
        ("-0", 0),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
        ("1.0", 1),
        ("1e3", 1000),
        ("12300e-2", 123),
        ("\"42\"", 42),
        ("9007199254740993", 9_007_199_254_740_993),
    ] {
        assert_eq!(int("BIGINT", text), Ok(value), "{text}");
    }
    refused(
        "BIGINT",
        &[
            (
                "9223372036854775808",
                "c: 9223372036854775808 is out of the range of BIGINT",
            ),
            (
                "1e999999999999",
                "c: 1e999999999999 is out of the range of BIGINT",
            ),
            ("1.5", "c: 1.5 is not a whole number, as BIGINT is"),
            ("1e-1", "c: 1e-1 is not a whole number, as BIGINT is"),
            ("true", "c: BIGINT is expected, not true"),
            ("[1]", "c: BIGINT is expected, not an array"),
            ("\"\"", "c: \"\" is not a number, BIGINT is expected"),
            ("\" 1\"", "c: \" 1\" is not a number, BIGINT is expected"),
            (
                "\"0x1f\"",
                "c: \"0x1f\" is not a number, BIGINT is expected",
            ),
            (
                "01",
                "the value is no JSON for these columns: ',' or '}' is expected at byte 6, not '1'",
            ),
            (
                "+1",
                "c: the value is no JSON for these columns: a value is expected at byte 5, not '+'",
            ),
            (
                "-",
                "c: the value is no JSON for these columns: a number is expected at byte 5, not '-'",
            ),
            (
                "1.",
                "c: the value is no JSON for these columns: a number is expected at byte 5, not '1'",
            ),
            (
                "NaN",
                "c: the value is no JSON for these columns: a value is expected at byte 5, not 'N'",
            ),
        ],
    );
    assert_eq!(
        one("TINYINT", "-128")
            .unwrap()
            .as_primitive::<Int8Type>()
            .value(0),
        -128
    );
    refused(
        "TINYINT",
        &[("128", "c: 128 is out of the range of TINYINT")],
    );
    refused(
        "SMALLINT",
        &[("32768", "c: 32768 is out of the range of SMALLINT")],
    );
    refused(
        "INT",
        &[("2147483648", "c: 2147483648 is out of the range of INT")],
    );
    assert_eq!(
        one("INT", "2147483647")
            .unwrap()
            .as_primitive::<Int32Type>()
            .value(0),
        i32::MAX
    );
}

#[test]
fn other_numbers_are_the_nearest_or_exact() {
    let double = |text| {
        one("DOUBLE", text)
            .unwrap()
            .as_primitive::<Float64Type>()
            .value(0)
    };
    assert_eq!(double("0.1").to_bits(), 0.1_f64.to_bits());
    assert_eq!(double("1e-400").to_bits(), 0.0_f64.to_bits());
    assert_eq!(double("\"17\"").to_bits(), 17.0_f64.to_bits());
    let float = one("FLOAT", "16777217").unwrap();
    assert_eq!(
        float.as_primitive::<Float32Type>().value(0).to_bits(),
        16_777_216.0_f32.to_bits()
    );
    refused(
        "DOUBLE",
        &[
            ("1e400", "c: 1e400 is out of the range of DOUBLE"),
            ("\"NaN\"", "c: \"NaN\" is not a number, DOUBLE is expected"),
        ],
    );
    refused("FLOAT", &[("1e39", "c: 1e39 is out of the range of FLOAT")]);
    let decimal = |text| {
        one("DECIMAL(10, 2)", text)
            .unwrap()
            .as_primitive::<Decimal128Type>()
            .value(0)
    };
    assert_eq!(decimal("19.99"), 1999);
    assert_eq!(decimal("\"-19.990\""), -1999);
    assert_eq!(decimal("12345678.9e0"), 1_234_567_890);
    refused(
        "DECIMAL(10, 2)",
        &[
            (
                "0.001",
                "c: 0.001 has more digits after the point than DECIMAL(10, 2) holds",
            ),
            ("100000000", "c: has more digits than DECIMAL(10, 2) holds"),
            ("1e60", "c: 1e60 is out of the range of DECIMAL(10, 2)"),
            ("{}", "c: DECIMAL(10, 2) is expected, not an object"),
        ],
    );
}

#[test]
fn text_is_what_a_string_says_and_the_text_of_anything_else() {
    let text = |value| one("STRING", value).map(|a| a.as_string::<i32>().value(0).to_owned());
    for (value, said) in [
        ("\"\"", ""),
        ("\"plain ä\"", "plain ä"),
        (
            r#""\"\\\/\b\f\n\r\t\u0041\ud83d\ude00""#,
            "\"\\/\u{8}\u{c}\n\r\tA😀",
        ),
        ("42", "42"),
        ("1.50", "1.50"),
        ("true", "true"),
        (r#"{"a": [1, "x"]}"#, r#"{"a": [1, "x"]}"#),
        (r#""\u0000""#, "\0"),
    ] {
        assert_eq!(text(value).as_deref(), Ok(said), "{value}");
    }
    refused(
        "STRING",
        &[
            (
                r#""\ud83d""#,
                "c: half of a character, \\ud83d, is no text (before byte 12)",
            ),
            (
                r#""\udc00\ud800""#,
                "c: half of a character, \\udc00, is no text (before byte 12)",
            ),
            (
                r#""\x""#,
                "c: the value is no JSON for these columns: an escape like \\n or \\u00e4 is expected at byte 7, not 'x'",
            ),
            (
                r#""\u00g0""#,
                "c: the value is no JSON for these columns: a hexadecimal digit is expected at byte 10, not 'g'",
            ),
            (
                "\"a\nb\"",
                "c: the value is no JSON for these columns: no control character inside a string is expected at byte 7, not '\\n'",
            ),
            (
                "\"a",
                "c: the value is no JSON for these columns: it ends at byte 8, where '\"' is expected",
            ),
            (
                "nul",
                "c: the value is no JSON for these columns: a value is expected at byte 5, not 'n'",
            ),
            (
                "[1,]",
                "c: the value is no JSON for these columns: a value is expected at byte 8, not ']'",
            ),
        ],
    );
}

#[test]
fn every_other_type_takes_what_it_says() {
    assert!(one("BOOLEAN", "true").unwrap().as_boolean().value(0));
    refused(
        "BOOLEAN",
        &[
            ("\"true\"", "c: BOOLEAN is expected, not a string"),
            ("1", "c: BOOLEAN is expected, not a number"),
        ],
    );
    assert_eq!(
        one("BYTES", "\"AAH/\"")
            .unwrap()
            .as_binary::<i32>()
            .value(0),
        [0, 1, 255]
    );
    refused(
        "BYTES",
        &[(
            "\"AAH\"",
            "c: \"AAH\" is not base64, which BYTES are in JSON: Invalid padding",
        )],
    );
    assert_eq!(
        one("DATE", "\"1970-01-02\"")
            .unwrap()
            .as_primitive::<Date32Type>()
            .value(0),
        1
    );
    refused(
        "DATE",
        &[
            (
                "\"1970-02-30\"",
                "c: \"1970-02-30\" is not a date like 2026-01-31",
            ),
            ("1", "c: DATE is expected, not a number"),
        ],
    );
    let time = one("TIME(3)", "\"00:00:01.5\"").unwrap();
    assert_eq!(time.as_primitive::<Time32MillisecondType>().value(0), 1500);
    let instant = one("TIMESTAMP_LTZ(3)", "\"1970-01-01T02:00:00.001+02:00\"").unwrap();
    assert_eq!(
        instant.as_primitive::<TimestampMillisecondType>().value(0),
        1
    );
    let wall = one("TIMESTAMP(9)", "\"1970-01-01 00:00:00.000000001\"").unwrap();
    assert_eq!(wall.as_primitive::<TimestampNanosecondType>().value(0), 1);
    refused(
        "TIMESTAMP_LTZ(3)",
        &[(
            "1700000000000",
            "c: TIMESTAMP_LTZ(3) is expected, not a number: declare it BIGINT, and convert it in SQL",
        )],
    );
    let row = one(
        "ROW<a INT, b ROW<c STRING NOT NULL>>",
        r#"{"b":{"c":"x"},"z":1}"#,
    )
    .unwrap();
    assert!(row.as_struct().column(0).is_null(0));
    refused(
        "ROW<a INT, b ROW<c ARRAY<INT NOT NULL> NOT NULL>>",
        &[
            (r#"{"b":{}}"#, "c.b.c: is missing, and is NOT NULL"),
            (
                r#"{"b":{"c":[1,null]}}"#,
                "c.b.c[1]: is null, and is NOT NULL",
            ),
            (
                r#"{"b":{"c":[1,2,true]}}"#,
                "c.b.c[2]: INT is expected, not true",
            ),
            (
                "[]",
                "c: ROW<`a` INT, `b` ROW<`c` ARRAY<INT NOT NULL> NOT NULL>> is expected, not an array",
            ),
        ],
    );
    let map = one("MAP<STRING, INT>", r#"{"x":1,"\u0079":null}"#).unwrap();
    let entries = map.as_map().value(0);
    assert_eq!(entries.column(0).as_string::<i32>().value(1), "y");
    assert!(entries.column(1).is_null(1));
    let many: String = (0..20).map(|i| format!("\"k{i}\":1,")).collect();
    refused(
        "MAP<STRING, INT>",
        &[(
            &format!("{{{many}\"k5\":1}}"),
            "c[\"k5\"]: stands twice in the map",
        )],
    );
    refused(
        "MAP<STRING, INT>",
        &[
            (
                r#"{"x":1,"y":2,"\u0078":3}"#,
                "c[\"x\"]: stands twice in the map",
            ),
            (
                r#"{"x":"y"}"#,
                "c[\"x\"]: \"y\" is not a number, INT is expected",
            ),
            (
                "[]",
                "c: MAP<STRING NOT NULL, INT> is expected, not an array",
            ),
        ],
    );
}

#[test]
fn what_is_not_declared_is_skipped_if_it_is_json() {
    let nested = |depth| {
        format!(
            "{{\"x\":{}{},\"c\":1}}",
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    let decoded = json(
        &[("c", "INT")],
        &[&nested(128), &nested(130), r#"{"x":1,"x":2}"#],
    );
    assert_eq!(decoded.kept.values(), &[0, 2]);
    assert_eq!(
        decoded.dead[0].error,
        "nested more than 128 deep at byte 134"
    );
}

#[test]
fn a_record_that_would_take_far_more_than_its_bytes_is_refused() {
    let of = "ARRAY<ROW<a BIGINT, b BIGINT, c BIGINT, d BIGINT, e BIGINT, f BIGINT, g BIGINT, h BIGINT>>";
    let list = |count| format!("[{}{{}}]", "{},".repeat(count));
    assert!(one(of, &list(1_000)).is_ok());
    let error = one(of, &list(100_000)).unwrap_err();
    assert!(
        error.contains("take many times more memory than its bytes"),
        "{error}"
    );
}

#[test]
fn raw_rows_are_keys_values_and_headers() {
    let mut builder = EventColumnsBuilder::new();
    let headers: [&[(&[u8], Option<&[u8]>)]; 3] = [
        &[(b"a", Some(b"1")), (b"a", None)],
        &[(b"\xff", None)],
        &[(b"z", Some(b""))],
    ];
    for (offset, headers) in (0..).zip(headers) {
        let value: Option<&[u8]> = (offset != 2).then_some(b"v");
        builder.push(
            Offset::new(offset).unwrap(),
            (0, TimestampType::Create),
            None,
            value,
            headers.iter().copied(),
            None,
        );
    }
    let rows = builder.finish();
    let mut decoder = Decoder::raw();
    let decoded = decoder.decode(&rows).unwrap();
    assert_eq!(decoded.kept.values(), &[0, 2]);
    assert_eq!(
        decoded.dead[0].error,
        "the header key \"\u{fffd}\" is not UTF-8"
    );
    let columns = decoded.columns;
    assert!(columns.column(0).is_null(0));
    assert!(columns.column(1).is_valid(0) && columns.column(1).is_null(1));
    let first = columns.column(2).as_list::<i32>().value(0);
    assert_eq!(first.as_struct().column(0).as_string::<i32>().value(1), "a");
    assert!(first.as_struct().column(1).is_null(1));
    // a slice has entries of other rows before and behind its own
    let last = decoder.decode(&rows.slice(2, 1)).unwrap();
    let headers = last.columns.column(2).as_list::<i32>().value(0);
    assert_eq!(
        headers.as_struct().column(0).as_string::<i32>().value(0),
        "z"
    );
    assert!(decoder.decode(&rows.slice(1, 1)).unwrap().kept.is_empty());
}

/// JSON of any kind, nested a little.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>()
            .prop_filter("finite", |f| f.is_finite())
            .prop_map(Into::into),
        ".{0,20}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            proptest::collection::hash_map(".{0,8}", inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_serde_writes_is_read(a in any_json(), s in ".{0,40}", n in any::<i64>(), d in any::<f64>(), pretty in any::<bool>()) {
        let d = if d.is_finite() { d } else { 0.5 };
        let object = serde_json::json!({"zz": a, "s": s, "n": n, "d": d, "raw": a});
        let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) }.unwrap();
        let decoded = json(&[("s", "STRING NOT NULL"), ("n", "BIGINT NOT NULL"), ("d", "DOUBLE NOT NULL"), ("raw", "STRING")], &[&text]);
        prop_assert_eq!(&decoded.dead, &[]);
        let columns = decoded.columns;
        prop_assert_eq!(columns.column(0).as_string::<i32>().value(0), s);
        prop_assert_eq!(columns.column(1).as_primitive::<Int64Type>().value(0), n);
        prop_assert_eq!(columns.column(2).as_primitive::<Float64Type>().value(0).to_bits(), d.to_bits());
        let raw = columns.column(3).as_string::<i32>();
        match a {
            serde_json::Value::Null => prop_assert!(raw.is_null(0)),
            serde_json::Value::String(text) => prop_assert_eq!(raw.value(0), text),
            other => {
                // serde reads a double to the last digit but one: both texts by the same reader
                let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
                prop_assert_eq!(read(raw.value(0)), read(&other.to_string()));
            }
        }
    }

    /// What is skipped is JSON by exactly serde's judgement: two parsers, one grammar.
    #[test]
    fn what_is_skipped_is_json(text in r#"[\[\]{},:"\\ue+.0-9a-f truenlsf]{0,24}"#) {
        let whole = format!("{{\"x\":{text}}}");
        let decoded = json(&[("c", "INT")], &[&whole]);
        // of a number serde asks that a double holds it
        let theirs = serde_json::from_str::<serde_json::Value>(&whole);
        let theirs = theirs.is_ok() || theirs.is_err_and(|e| e.to_string().contains("out of range"));
        // a text like `1,"c":true` declares the column after all
        prop_assume!(!text.contains("\"c\""));
        prop_assert_eq!(decoded.dead.is_empty(), theirs, "{}: {:?}", whole, decoded.dead);
    }
}
