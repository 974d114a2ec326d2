//! Each column by itself, whatever is wrong with the others; and any projection as the whole.

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{RecordBatch, UInt32Array};
use proptest::prelude::*;

use super::*;
use crate::Decoder;
use crate::tests::rows;

fn columns(pairs: &[(&str, &str)]) -> Columns {
    Columns::parse(pairs.iter().copied()).unwrap()
}

fn values<'a>(values: impl IntoIterator<Item = Option<&'a [u8]>>) -> BinaryArray {
    BinaryArray::from_iter(values)
}

fn texts(array: &ArrayRef) -> Vec<Option<&str>> {
    array.as_string::<i32>().iter().collect()
}

fn errors(read: &ReadValues) -> Vec<Option<&str>> {
    read.errors.as_ref().unwrap().iter().collect()
}

#[test]
fn what_is_wrong_with_a_column_costs_only_that_column() {
    let format = ValueFormat::Json(columns(&[
        ("user", "STRING NOT NULL"),
        ("price", "DECIMAL(10, 2)"),
        ("tags", "ARRAY<ROW<a INT>>"),
    ]));
    let texts_in: Vec<Option<&[u8]>> = vec![
        Some(br#"{"user":"a","price":1.25,"tags":[{"a":1}]}"#),
        Some(br#"{"price":1.255,"user":"b","tags":[{"a":1},{"a":"x"}]}"#),
        None,
        Some(br#"{"tags":[{"a":1},{"a":2}],"price":7}"#),
        Some(br#"{"user":"e","user":"f","price":8}"#),
        Some(br#"{"user":null}"#),
        Some(br#"{"user":"h","price":1,"tags":[}"#),
        Some(b"\xff"),
        Some(br#"{"user":"i"}"#),
    ];
    let mut reader = ValueReader::new(&format, &[2, 0, 1], true).unwrap();
    let read = reader.read(&values(texts_in)).unwrap();
    let [tags, user, price] = read.columns.as_slice() else {
        panic!("three columns")
    };
    assert_eq!(
        texts(user),
        [
            Some("a"),
            Some("b"),
            None,
            None,
            None,
            None,
            None,
            None,
            Some("i")
        ]
    );
    let prices: Vec<bool> = (0..9).map(|row| price.is_valid(row)).collect();
    assert_eq!(
        prices,
        [true, false, false, true, true, false, false, false, false]
    );
    let tags = tags.as_list::<i32>();
    assert!(tags.is_valid(0) && tags.is_null(1) && tags.is_valid(3));
    assert_eq!(tags.value_length(3), 2);
    assert_eq!(
        errors(&read),
        [
            None,
            Some("price: 1.255 has more digits after the point than DECIMAL(10, 2) holds"),
            None,
            Some("user: is missing, and is NOT NULL"),
            Some("user: stands twice in the object"),
            Some("user: is null, and is NOT NULL"),
            Some("the value is no JSON for these columns: a value is expected at byte 30, not '}'"),
            Some("the value is no JSON: it is not UTF-8 at byte 0"),
            None,
        ]
    );
}

#[test]
fn text_is_one_column() {
    let mut reader = ValueReader::new(&ValueFormat::Text, &[0], true).unwrap();
    let read = reader
        .read(&values([Some(&b"a"[..]), Some(b""), None, Some(b"a\xff")]))
        .unwrap();
    assert_eq!(texts(&read.columns[0]), [Some("a"), Some(""), None, None]);
    assert_eq!(
        errors(&read),
        [
            None,
            None,
            None,
            Some("value: \"a\u{fffd}\" is not UTF-8 at byte 1")
        ]
    );
}

#[test]
fn without_columns_there_are_rows_all_the_same() {
    let format = ValueFormat::Json(columns(&[("a", "INT")]));
    let mut reader = ValueReader::new(&format, &[], true).unwrap();
    let read = reader
        .read(&values([Some(&b"{}"[..]), Some(b"x")]))
        .unwrap();
    assert!(read.columns.is_empty());
    assert_eq!(read.errors.unwrap().null_count(), 1);
}

const WRITER: &str = r#"{"type":"record","name":"R","fields":[
    {"name":"id","type":"long"},
    {"name":"old","type":["null","string"]},
    {"name":"kind","type":{"type":"enum","name":"K","symbols":["A","B"]}},
    {"name":"more","type":{"type":"array","items":"string"}}]}"#;

const READER: &str = r#"{"type":"record","name":"R","fields":[
    {"name":"id","type":"int"},
    {"name":"renamed","type":["null","string"],"aliases":["old"]},
    {"name":"kind","type":"string"},
    {"name":"added","type":"long","default":7}]}"#;

fn avro(projection: &[usize], errors: bool) -> ValueReader {
    let format = ValueFormat::AvroAs(RegisteredSchema::avro(READER));
    let mut reader = ValueReader::new(&format, projection, errors).unwrap();
    reader.learn(SchemaId(1), Ok(&RegisteredSchema::avro(WRITER)));
    reader.learn(SchemaId(2), Err("it is gone"));
    reader
}

fn record(id: i64, old: Option<&str>, kind: u8, more: &[&str]) -> Vec<u8> {
    use apache_avro::types::Value as Avro;
    let schema = apache_avro::Schema::parse_str(WRITER).unwrap();
    let old = match old {
        None => Avro::Union(0, Box::new(Avro::Null)),
        Some(text) => Avro::Union(1, Box::new(Avro::String(text.to_owned()))),
    };
    let kind = ["A", "B"][usize::from(kind)];
    let more = more.iter().map(|m| Avro::String((*m).to_owned())).collect();
    let value = Avro::Record(vec![
        ("id".to_owned(), Avro::Long(id)),
        ("old".to_owned(), old),
        (
            "kind".to_owned(),
            Avro::Enum(u32::from(kind == "B"), kind.to_owned()),
        ),
        ("more".to_owned(), Avro::Array(more)),
    ]);
    let mut framed = vec![0, 0, 0, 0, 1];
    framed.extend(apache_avro::to_avro_datum(&schema, value).unwrap());
    framed
}

#[test]
fn avro_columns_are_read_one_by_one() {
    let good = record(1, Some("x"), 1, &["m"]);
    let too_large = record(1 << 40, Some("y"), 0, &[]);
    let cut = &good[..good.len() - 1];
    let all = values([
        Some(good.as_slice()),
        Some(&too_large),
        Some(cut),
        Some(&[0, 0, 0, 0, 2, 9]),
        Some(b"{}"),
        None,
    ]);
    let mut reader = avro(&[0, 1, 2, 3], true);
    assert!(reader.unlearned(&all).is_empty());
    let read = reader.read(&all).unwrap();
    assert_eq!(read.columns[0].null_count(), 5);
    assert_eq!(
        texts(&read.columns[1]),
        [Some("x"), Some("y"), None, None, None, None]
    );
    assert_eq!(
        texts(&read.columns[2]),
        [Some("B"), Some("A"), None, None, None, None]
    );
    let added = read.columns[3].as_primitive::<Int64Type>();
    assert_eq!(added.iter().flatten().collect::<Vec<_>>(), [7, 7]);
    assert_eq!(
        errors(&read),
        [
            None,
            Some("id: 1099511627776 is out of the range of INT"),
            Some("the value ends in the middle of the record"),
            Some("schema 2: it is gone"),
            Some("the value begins with byte 0x7b, not with the 0 of a schema registry's format"),
            None,
        ]
    );
    let unknown = values([Some(&[0, 0, 0, 0, 9][..])]);
    assert_eq!(reader.unlearned(&unknown), [SchemaId(9)]);
    assert!(matches!(
        reader.read(&unknown),
        Err(DecodeError::Unlearned(SchemaId(9)))
    ));
}

/// JSON-like texts, most of them right.
fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        4 => Just("1".to_owned()),
        2 => Just("\"x\\u0041\"".to_owned()),
        1 => Just("null".to_owned()),
        1 => Just("[1,2]".to_owned()),
        1 => Just("[1,\"y\"]".to_owned()),
        1 => Just("{\"n\":1}".to_owned()),
        1 => Just("{\"n\":{}}".to_owned()),
        1 => Just("\"\\ud83d\"".to_owned()),
        1 => Just("300".to_owned()),
        1 => Just("tru".to_owned()),
        1 => (100_usize..140).prop_map(|n| format!("{}{}", "[".repeat(n), "]".repeat(n))),
        1 => (100_usize..140).prop_map(|n| format!("{{\"z\":{}{}}}", "[".repeat(n), "]".repeat(n))),
    ];
    let member = ("[a-e]", value).prop_map(|(name, value)| format!("\"{name}\":{value}"));
    let object = proptest::collection::vec(member, 0..6)
        .prop_map(|members| format!("{{{}}}", members.join(",")).into_bytes());
    (
        object,
        proptest::option::weighted(0.1, any::<prop::sample::Index>()),
    )
        .prop_map(|(mut text, cut)| {
            if let Some(cut) = cut {
                text.truncate(cut.index(text.len()));
            }
            text
        })
}

const ANY_COLUMNS: [(&str, &str); 5] = [
    ("a", "TINYINT"),
    ("b", "STRING NOT NULL"),
    ("c", "ARRAY<INT NOT NULL>"),
    ("d", "ROW<n INT NOT NULL, m STRING>"),
    ("e", "MAP<STRING, STRING>"),
];

proptest! {
    /// The model: every row alone, all columns; and, where a row has no error, what a job's decoder gives.
    #[test]
    fn any_projection_gives_what_the_whole_gives(
        texts in proptest::collection::vec(proptest::option::weighted(0.95, any_text()), 1..12),
        projection in Just(vec![0_usize, 1, 2, 3, 4]).prop_shuffle(),
        take in 0_usize..6,
        wants_errors in any::<bool>(),
    ) {
        let projection = projection.into_iter().take(take).collect::<Vec<_>>();
        let format = ValueFormat::Json(columns(&ANY_COLUMNS));
        let all = values(texts.iter().map(Option::as_deref));
        let whole = ValueReader::new(&format, &[0, 1, 2, 3, 4], true).unwrap().read(&all).unwrap();
        let part = ValueReader::new(&format, &projection, wants_errors).unwrap().read(&all).unwrap();
        for (array, at) in part.columns.iter().zip(&projection) {
            prop_assert_eq!(array.to_data(), whole.columns[*at].to_data());
        }
        if wants_errors {
            prop_assert_eq!(part.errors.as_ref(), whole.errors.as_ref());
        }
        let told = whole.errors.as_ref().unwrap();
        let mut alone = ValueReader::new(&format, &[0, 1, 2, 3, 4], true).unwrap();
        for row in 0..all.len() {
            let one = alone.read(&all.slice(row, 1)).unwrap();
            for (array, together) in one.columns.iter().zip(&whole.columns) {
                let together = together.slice(row, 1);
                prop_assert_eq!(array, &together);
            }
            let error = one.errors.unwrap();
            prop_assert_eq!(error.iter().next(), told.iter().nth(row));
        }
        let decoded = Decoder::json(columns(&ANY_COLUMNS)).decode(&rows(texts.iter().map(Option::as_deref))).unwrap();
        let right: Vec<u32> = (0..all.len()).filter(|row| told.is_null(*row) && all.is_valid(*row)).map(|row| row as u32).collect();
        // a nested value may be too deep to be skipped, and right to be read
        for (at, row) in decoded.kept.iter().flatten().enumerate() {
            if right.contains(&row) {
                for (array, theirs) in whole.columns.iter().zip(decoded.columns.columns()) {
                    let (ours, theirs) = (array.slice(row as usize, 1), theirs.slice(at, 1));
                    prop_assert_eq!(&ours, &theirs);
                }
            }
        }
        for row in &right {
            prop_assert!(decoded.kept.values().contains(row), "row {} is right here, dead there", row);
        }
    }

    #[test]
    fn any_projection_of_avro_gives_what_the_whole_gives(
        records in proptest::collection::vec((any::<i64>(), proptest::option::of(".{0,3}"), 0_u8..2, any::<prop::sample::Index>(), any::<u8>()), 1..8),
        projection in Just(vec![0_usize, 1, 2, 3]).prop_shuffle(),
        take in 0_usize..5,
    ) {
        let projection: Vec<usize> = projection.into_iter().take(take).collect();
        let bytes: Vec<Vec<u8>> = records.iter().map(|(id, old, kind, at, byte)| {
            let mut bytes = record(*id >> (byte % 64), old.as_deref(), *kind, &["m", "n"]);
            if byte % 3 == 0 {
                let at = 5 + at.index(bytes.len() - 5);
                bytes[at] = *byte;
            }
            bytes
        }).collect();
        let all = values(bytes.iter().map(|b| Some(b.as_slice())));
        let whole = avro(&[0, 1, 2, 3], true).read(&all).unwrap();
        let part = avro(&projection, false).read(&all).unwrap();
        for (array, at) in part.columns.iter().zip(&projection) {
            prop_assert_eq!(array.to_data(), whole.columns[*at].to_data());
        }
    }
}

#[test]
fn a_reader_is_used_again_and_again() {
    let format = ValueFormat::Json(columns(&[("a", "STRING")]));
    let mut reader = ValueReader::new(&format, &[0], false).unwrap();
    for round in 0..3_u32 {
        let text = format!("{{\"a\":\"{round}\"}}");
        let read = reader.read(&values([Some(text.as_bytes())])).unwrap();
        let batch = RecordBatch::try_from_iter([("a", ArrayRef::clone(&read.columns[0]))]).unwrap();
        let kept =
            arrow_select::take::take_record_batch(&batch, &UInt32Array::from(vec![0])).unwrap();
        assert_eq!(texts(kept.column(0)), [Some(round.to_string().as_str())]);
        assert!(read.errors.is_none());
    }
}
