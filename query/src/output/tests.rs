use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::builder::{BinaryViewBuilder, ListBuilder, StringBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, DictionaryArray, Float64Array,
    Int64Array, RecordBatch, RecordBatchOptions, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};

use super::*;

#[derive(Debug, Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn bytes(&self) -> Vec<u8> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }
}

fn written(format: Format, schema: &SchemaRef, batches: &[RecordBatch]) -> Buffer {
    let buffer = Buffer::default();
    let mut output = Output::new(format, schema, Box::new(buffer.clone())).unwrap();
    for batch in batches {
        output.write(batch).unwrap();
    }
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(output.finish().unwrap(), rows as u64);
    buffer
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

fn one(format: Format, batch: &RecordBatch) -> String {
    written(format, &batch.schema(), std::slice::from_ref(batch)).text()
}

/// Texts that mean something to a terminal, to CSV, or to who looks for nothing.
fn hostile() -> RecordBatch {
    let texts = [
        Some("a\x1b[2J\u{9b}31m"),
        Some("line\r\nbreak\t\"quoted\", and a comma"),
        Some(""),
        None,
        Some("NULL"),
        Some("\u{202e}cod.exe\u{2028}"),
        Some("日本"),
    ];
    let bytes: Vec<Option<&[u8]>> = vec![
        Some(b"text"),
        Some(&[0xff, 0, 1]),
        Some(b""),
        None,
        Some(b"\x1b]0;title\x07"),
        Some(b"NULL"),
        Some("日本".as_bytes()),
    ];
    batch(vec![
        ("text", Arc::new(StringArray::from(texts.to_vec()))),
        ("bytes", Arc::new(BinaryArray::from(bytes))),
    ])
}

#[test]
fn no_value_steers_the_terminal() {
    let text = one(Format::Table, &hostile());
    assert!(
        text.chars()
            .all(|c| c == '\n' || !c.is_control() && c != '\u{202e}' && c != '\u{2028}'),
        "{text:?}"
    );
    for shown in [
        " a\\u{1b}[2J\\u{9b}31m ",
        "line\\r\\nbreak\\t\"quoted\", and a comma",
        "| \\xff0001\n",
        "| \\u{1b}]0;title\\u{7}\n",
        "| \"NULL\"\n",
        " \"NULL\" ",
        " NULL ",
        "| NULL\n",
        "\\u{202e}cod.exe\\u{2028}",
        "(7 rows)\n",
    ] {
        assert!(text.contains(shown), "{shown:?} in\n{text}");
    }
    assert_eq!(text.lines().count(), 2 + 7 + 1, "{text}");
    // nor does a column's name
    let named = batch(vec![("a\x1b[2J", Arc::new(Int64Array::from(vec![1])))]);
    assert!(!one(Format::Table, &named).contains('\x1b'));
}

#[test]
fn a_table_is_aligned_by_what_is_seen() {
    let rows = batch(vec![
        (
            "n",
            Arc::new(Int64Array::from(vec![Some(1), None, Some(-100)])),
        ),
        ("wide", Arc::new(StringArray::from(vec!["日本", "ab", "é"]))),
        (
            "last",
            Arc::new(BooleanArray::from(vec![true, false, true])),
        ),
    ]);
    assert_eq!(
        one(Format::Table, &rows),
        "  n   | wide | last\n\
         ------+------+-------\n\
         \u{20}   1 | 日本 | true\n\
         \u{20}NULL | ab   | false\n\
         \u{20}-100 | é    | true\n\
         (3 rows)\n"
    );
    let none = written(Format::Table, &rows.schema(), &[]).text();
    assert_eq!(none, " n | wide | last\n---+------+------\n(0 rows)\n");
}

#[test]
fn a_table_comes_before_its_end_and_a_giant_value_does_not_widen_it() {
    let schema = batch(vec![("v", Arc::new(StringArray::from(vec!["x"])))]).schema();
    let buffer = Buffer::default();
    let mut output = Output::new(Format::Table, &schema, Box::new(buffer.clone())).unwrap();
    let giant = "x".repeat(5 << 20);
    let rows = vec![giant.as_str(), "y"];
    output
        .write(&batch(vec![("v", Arc::new(StringArray::from(rows)))]))
        .unwrap();
    assert!(buffer.bytes().len() > 5 << 20, "shown before the end");
    output
        .write(&batch(vec![(
            "v",
            Arc::new(StringArray::from(vec!["z"; 10_000])),
        )]))
        .unwrap();
    output.finish().unwrap();
    assert!(buffer.bytes().len() < (5 << 20) + 100_000);
    assert!(buffer.text().ends_with("\n z\n(10002 rows)\n"));
}

#[test]
fn times_are_in_utc_and_nested_values_tell_text_from_nothing() {
    let times = TimestampMicrosecondArray::from(vec![Some(1_700_000_000_123_000), None]);
    let (zoned, plain) = (times.clone().with_timezone("+02:00"), times);
    let mut list = ListBuilder::new(StringBuilder::new());
    list.append_value([Some("a"), None, Some("NULL")]);
    list.append_null();
    let fields = Fields::from(vec![
        Field::new("key", DataType::Utf8, true),
        Field::new("value", DataType::Binary, true),
    ]);
    let structure = StructArray::new(
        fields,
        vec![
            Arc::new(StringArray::from(vec![Some("k\x1b"), None])),
            Arc::new(BinaryArray::from(vec![Some(&[0xfe_u8][..]), Some(b"x")])),
        ],
        None,
    );
    let decimals = Decimal128Array::from(vec![Some(1_234_567), None]);
    let rows = batch(vec![
        ("zoned", Arc::new(zoned)),
        ("plain", Arc::new(plain)),
        ("list", Arc::new(list.finish())),
        ("s", Arc::new(structure)),
        (
            "d",
            Arc::new(decimals.with_precision_and_scale(10, 2).unwrap()),
        ),
    ]);
    let text = one(Format::Table, &rows);
    for shown in [
        " 2023-11-14T22:13:20.123Z | 2023-11-14T22:13:20.123 | [\"a\", NULL, \"NULL\"] ",
        "| {key: \"k\\u{1b}\", value: \\xfe} | 12345.67\n",
        "| NULL                    | NULL                ",
        "| {key: NULL, value: \"x\"} ",
    ] {
        assert!(text.contains(shown), "{shown:?} in\n{text}");
    }
    assert_eq!(
        one(Format::Jsonl, &rows),
        "{\"zoned\":\"2023-11-14T22:13:20.123Z\",\"plain\":\"2023-11-14T22:13:20.123\",\"list\":[\"a\",null,\"NULL\"],\"s\":{\"key\":\"k\\u001b\",\"value\":\"/g==\"},\"d\":12345.67}\n\
         {\"zoned\":null,\"plain\":null,\"list\":null,\"s\":{\"key\":null,\"value\":\"eA==\"},\"d\":null}\n"
    );
    assert_eq!(
        one(Format::Csv, &rows),
        "zoned,plain,list,s,d\r\n\
         2023-11-14T22:13:20.123Z,2023-11-14T22:13:20.123,\"[\"\"a\"\",null,\"\"NULL\"\"]\",\"{\"\"key\"\":\"\"k\\u001b\"\",\"\"value\"\":\"\"/g==\"\"}\",12345.67\r\n\
         ,,,\"{\"\"key\"\":null,\"\"value\"\":\"\"eA==\"\"}\",\r\n"
    );
}

#[test]
fn csv_tells_null_from_empty_and_quotes_what_needs_it() {
    let text = one(Format::Csv, &hostile());
    let expected = "text,bytes\r\n\
        a\x1b[2J\u{9b}31m,dGV4dA==\r\n\
        \"line\r\nbreak\t\"\"quoted\"\", and a comma\",/wAB\r\n\
        \"\",\"\"\r\n\
        ,\r\n\
        NULL,G10wO3RpdGxlBw==\r\n\
        \u{202e}cod.exe\u{2028},TlVMTA==\r\n\
        日本,5pel5pys\r\n";
    assert_eq!(text, expected);
}

#[test]
fn json_lines_are_one_object_a_row_with_nulls_and_base64() {
    let text = one(Format::Jsonl, &hostile());
    let rows: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 7);
    assert_eq!(
        rows[0],
        serde_json::json!({"text": "a\x1b[2J\u{9b}31m", "bytes": "dGV4dA=="})
    );
    assert_eq!(rows[1]["bytes"], "/wAB");
    assert_eq!(rows[2], serde_json::json!({"text": "", "bytes": ""}));
    assert_eq!(rows[3], serde_json::json!({"text": null, "bytes": null}));
    assert!(!text.contains('\x1b'), "JSON escapes control characters");

    let numbers = batch(vec![
        (
            "f",
            Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY, 0.1])),
        ),
        ("i", Arc::new(Int64Array::from(vec![i64::MIN, 0, i64::MAX]))),
    ]);
    assert_eq!(
        one(Format::Jsonl, &numbers),
        "{\"f\":null,\"i\":-9223372036854775808}\n{\"f\":null,\"i\":0}\n{\"f\":0.1,\"i\":9223372036854775807}\n"
    );
}

/// A batch as the archive's tables give it: views, a dictionary that changes from batch to batch, and two columns of a name.
fn changing(topic: &str) -> RecordBatch {
    let dictionary: DictionaryArray<Int32Type> = [topic, topic].into_iter().collect();
    let mut views = BinaryViewBuilder::new();
    views.append_value([0xff; 40]);
    views.append_null();
    let numbers = || Arc::new(Int64Array::from(vec![1, 2]));
    batch(vec![
        ("topic", Arc::new(dictionary)),
        ("value", Arc::new(views.finish())),
        ("n", numbers()),
        ("n", numbers()),
    ])
}

#[test]
fn parquet_and_arrow_are_read_back_with_every_column() {
    let batches = [changing("one"), changing("another")];
    let schema = batches[0].schema();

    let parquet = written(Format::Parquet, &schema, &batches).bytes();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(
        bytes::Bytes::from(parquet),
    );
    let parquet: Vec<RecordBatch> = reader
        .unwrap()
        .build()
        .unwrap()
        .map(Result::unwrap)
        .collect();

    let file = written(Format::ArrowFile, &schema, &batches).bytes();
    let file = arrow_ipc::reader::FileReader::try_new(io::Cursor::new(file), None).unwrap();
    let file: Vec<RecordBatch> = file.map(Result::unwrap).collect();

    let stream = written(Format::ArrowStream, &schema, &batches).bytes();
    let stream = arrow_ipc::reader::StreamReader::try_new(io::Cursor::new(stream), None).unwrap();
    let stream: Vec<RecordBatch> = stream.map(Result::unwrap).collect();

    for found in [parquet, file, stream] {
        let schema = found[0].schema();
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names, ["topic", "value", "n", "n_2"]);
        let all = arrow_select::concat::concat_batches(&schema, &found).unwrap();
        let lines = one(Format::Jsonl, &all);
        let first = "{\"topic\":\"one\",\"value\":\"/////////////////////////////////////////////////////w==\",\"n\":1,\"n_2\":1}\n";
        assert!(lines.starts_with(first), "{lines}");
        assert!(
            lines.ends_with("{\"topic\":\"another\",\"value\":null,\"n\":2,\"n_2\":2}\n"),
            "{lines}"
        );
        assert_eq!(all.num_rows(), 4);
    }
}

#[test]
fn an_answer_without_rows_is_still_an_answer() {
    let schema = changing("x").schema();
    let parquet = written(Format::Parquet, &schema, &[]).bytes();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(
        bytes::Bytes::from(parquet),
    );
    assert_eq!(reader.unwrap().schema().fields().len(), 4);
    for format in [Format::ArrowFile, Format::ArrowStream] {
        assert!(!written(format, &schema, &[]).bytes().is_empty());
    }
    assert_eq!(
        written(Format::Csv, &schema, &[]).text(),
        "topic,value,n,n\r\n"
    );
    assert_eq!(written(Format::Jsonl, &schema, &[]).text(), "");
}

#[test]
fn rows_without_columns_are_counted() {
    let schema: SchemaRef = Arc::new(Schema::empty());
    let options = RecordBatchOptions::new().with_row_count(Some(3));
    let rows = RecordBatch::try_new_with_options(Arc::clone(&schema), vec![], &options).unwrap();
    let one = |format| written(format, &schema, std::slice::from_ref(&rows)).text();
    assert_eq!(one(Format::Jsonl), "{}\n{}\n{}\n");
    assert!(one(Format::Table).ends_with("(3 rows)\n"));
}

/// Takes so many bytes, then says that nobody reads.
#[derive(Debug)]
struct Gone(usize);

impl Write for Gone {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.checked_sub(bytes.len()) {
            Some(left) => {
                self.0 = left;
                Ok(bytes.len())
            }
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_leaves_is_told_apart_in_every_format() {
    let schema = changing("x").schema();
    for format in [
        Format::Table,
        Format::Csv,
        Format::Jsonl,
        Format::Parquet,
        Format::ArrowFile,
        Format::ArrowStream,
    ] {
        let write = |room| {
            let mut output = Output::new(format, &schema, Box::new(Gone(room)))?;
            output.write(&changing("x"))?;
            output.finish()
        };
        let ended: Vec<OutputError> = [0, 10, 40]
            .into_iter()
            .filter_map(|room| write(room).err())
            .collect();
        assert_eq!(ended.len(), 3, "{format:?}");
        for error in ended {
            assert!(error.is_broken_pipe(), "{format:?}: {error}");
        }
    }
}

#[test]
fn a_file_is_there_when_it_is_whole_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answer.csv");
    std::fs::write(&path, "old").unwrap();
    let entries = || std::fs::read_dir(folder.path()).unwrap().count();

    let part = PartFile::create(&path).unwrap();
    part.sink().unwrap().write_all(b"half").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(entries(), 2);
    drop(part);
    assert_eq!(entries(), 1, "nothing is left behind");

    let part = PartFile::create(&path).unwrap();
    part.sink().unwrap().write_all(b"new").unwrap();
    part.commit().unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    assert_eq!(entries(), 1);

    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let part = PartFile::create(&link).unwrap();
    part.sink().unwrap().write_all(b"by a link").unwrap();
    part.commit().unwrap();
    assert!(link.is_symlink());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "by a link");

    assert!(PartFile::create(folder.path()).is_err());
    assert!(PartFile::create(&folder.path().join("no/such/folder")).is_err());
    // a device is written to, and stays
    let null = PartFile::create(std::path::Path::new("/dev/null")).unwrap();
    null.sink().unwrap().write_all(b"gone").unwrap();
    null.commit().unwrap();
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
}
