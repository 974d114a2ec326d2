//! Tables as SQL reads them: the rows that were archived, pruned or not, in order or not, by whoever wrote the files.

mod support;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use everlog_query::QueryError;
use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::{NOON, Record, World, error, plan, rows, try_rows, utc, value};

/// Three commits of three partitions: offsets with holes, records without time, key or value, headers.
fn records(commit: i64) -> Vec<Record> {
    let mut all = Vec::new();
    for partition in 0..3 {
        for n in 0..40 {
            let offset = commit * 100 + n * 2 + i64::from(partition);
            let mut record = Record::new(partition, offset);
            // not in the order of the offsets
            record.timestamp = Some(NOON + (offset * 7_919 % 1_000) * 1_000);
            match n % 10 {
                3 => record.timestamp = None,
                4 => record.key = None,
                5 => record.value = None,
                6 => record.value = Some(Vec::new()),
                7 => {
                    record.headers = vec![
                        ("h".to_owned(), Some(b"x".to_vec())),
                        ("h".to_owned(), None),
                    ];
                }
                _ => {}
            }
            all.push(record);
        }
    }
    all
}

async fn world() -> (World, Vec<Record>) {
    let world = World::new().await;
    let mut all = Vec::new();
    for commit in 0..3 {
        let records = records(commit);
        world.append_cut("orders", &records, 1).await;
        all.extend(records);
    }
    (world, all)
}

fn text(value: Option<&Vec<u8>>) -> String {
    value.map_or_else(
        || "∅".to_owned(),
        |bytes| {
            bytes.iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        },
    )
}

fn shown(record: &Record) -> Vec<String> {
    let time = record.timestamp.map_or_else(
        || "∅".to_owned(),
        |ms| {
            let time = chrono::DateTime::from_timestamp_millis(ms).expect("a time");
            time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
        },
    );
    vec![
        record.partition.to_string(),
        record.offset.to_string(),
        time,
        text(record.key.as_ref()),
        text(record.value.as_ref()),
    ]
}

const SHOWN: &str = "partition, \"offset\", \"timestamp\", key, value";

#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_a_row_as_it_was_archived() {
    let (world, all) = world().await;
    let session = world.session().await;
    let mut expected: Vec<Vec<String>> = all.iter().map(shown).collect();
    let mut found = rows(&session, &format!("SELECT {SHOWN} FROM orders")).await;
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let constant = "SELECT DISTINCT topic, generation, timestamp_type, leader_epoch FROM orders WHERE \"timestamp\" IS NOT NULL";
    assert_eq!(rows(&session, constant).await, [["orders", "0", "0", "∅"]]);
    // what is nested
    for (filter, count) in [
        ("headers IS NULL", 0),
        ("headers IS NOT NULL AND partition = 1", 120),
        ("cardinality(headers) = 2", 36),
    ] {
        let sql = format!("SELECT count(*) FROM orders WHERE {filter}");
        assert_eq!(value(&session, &sql).await, count.to_string(), "{filter}");
    }
    let headers = "SELECT count(*) FROM orders WHERE headers[1]['key'] = 'h' AND headers[1]['value'] = 'x' AND headers[2]['value'] IS NULL";
    assert_eq!(value(&session, headers).await, "36");
    // bytes compare with text
    assert_eq!(
        value(&session, "SELECT count(*) FROM orders WHERE key = 'k1'").await,
        all.iter()
            .filter(|r| r.key.as_deref() == Some(b"k1"))
            .count()
            .to_string()
    );
    assert_eq!(
        rows(&session, "SELECT * FROM orders WHERE \"offset\" < 0").await,
        Vec::<Vec<String>>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_bounds_come_from_metadata_where_they_are_exact() {
    let (world, all) = world().await;
    let session = world.session().await;
    let sql = "SELECT count(*), min(\"offset\"), max(\"offset\"), min(\"timestamp\"), max(\"timestamp\") FROM orders";
    let plan = plan(&session, sql).await;
    assert!(!plan.contains("DataSourceExec"), "{plan}");
    let times = || all.iter().filter_map(|r| r.timestamp);
    let time = |ms: Option<i64>| {
        let time = chrono::DateTime::from_timestamp_millis(ms.expect("times")).expect("a time");
        time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    let expected = vec![
        all.len().to_string(),
        all.iter()
            .map(|r| r.offset)
            .min()
            .expect("rows")
            .to_string(),
        all.iter()
            .map(|r| r.offset)
            .max()
            .expect("rows")
            .to_string(),
        time(times().min()),
        time(times().max()),
    ];
    assert_eq!(rows(&session, sql).await, [expected]);
    // with a filter they are counted
    let sql =
        "SELECT count(*), max(\"offset\") FROM orders WHERE partition = 1 AND \"offset\" < 100";
    let mine = all.iter().filter(|r| r.partition == 1 && r.offset < 100);
    let expected = vec![
        mine.clone().count().to_string(),
        mine.map(|r| r.offset).max().expect("rows").to_string(),
    ];
    assert_eq!(rows(&session, sql).await, [expected]);
    // nulls among the times: their count is in no manifest
    let sql = "SELECT count(\"timestamp\") FROM orders";
    assert_eq!(value(&session, sql).await, times().count().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_row_groups_that_cannot_match_are_not_read() {
    let (world, _) = world().await;
    let session = world.session().await;
    let all = plan(&session, "SELECT value FROM orders").await;
    let some = plan(
        &session,
        "SELECT value FROM orders WHERE \"offset\" >= 200 AND partition = 2",
    )
    .await;
    let files = |plan: &str| plan.matches(".parquet").count();
    assert!(
        files(&all) >= 3 && files(&some) < files(&all),
        "{all}\n{some}"
    );
    let none = plan(
        &session,
        "SELECT value FROM orders WHERE \"timestamp\" > '2100-01-01'",
    )
    .await;
    assert!(none.contains("EmptyExec"), "{none}");
    let answer = session
        .query("SELECT count(value) FROM orders WHERE \"offset\" >= 200")
        .await;
    let answer = answer.expect("an answer");
    let progress = Arc::clone(&answer.progress);
    support::batches(answer).await.expect("rows");
    assert!(progress.bytes_read() > 0 && progress.bytes_read() <= progress.bytes_planned());
    assert_eq!(progress.rows_read(), 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_the_files_saves_a_sort() {
    let (world, all) = world().await;
    let session = world.session().await;
    let mut expected: Vec<Vec<String>> = Vec::new();
    let mut sorted = all.clone();
    sorted.sort_by_key(|r| (r.partition, r.offset));
    expected.extend(
        sorted
            .iter()
            .map(|r| vec![r.partition.to_string(), r.offset.to_string()]),
    );
    let sql = "SELECT partition, \"offset\" FROM orders ORDER BY partition, \"offset\"";
    let physical = plan(&session, sql).await;
    assert!(!physical.contains("SortExec"), "{physical}");
    assert_eq!(rows(&session, sql).await, expected);
    let limited = format!("{sql} LIMIT 7");
    assert!(!plan(&session, &limited).await.contains("SortExec"));
    assert_eq!(rows(&session, &limited).await, expected[..7]);
    let skipping = format!("{sql} LIMIT 7 OFFSET 150");
    assert_eq!(rows(&session, &skipping).await, expected[150..157]);
    // one partition: by offset alone
    let sql = "SELECT partition, \"offset\" FROM orders WHERE partition = 1 ORDER BY \"offset\"";
    let one: Vec<_> = expected
        .iter()
        .filter(|row| row[0] == "1")
        .cloned()
        .collect();
    assert_eq!(rows(&session, sql).await, one);
    // the other way round there is a sort, and the same rows
    let sql =
        "SELECT partition, \"offset\" FROM orders ORDER BY partition DESC, \"offset\" DESC LIMIT 5";
    let mut backwards = expected.clone();
    backwards.reverse();
    assert_eq!(rows(&session, sql).await, backwards[..5]);
}

/// A condition, as SQL and as what it means: SQL's three values.
#[derive(Debug, Clone)]
enum Condition {
    Partition(&'static str, i32),
    Offset(&'static str, i64),
    Time(&'static str, i64),
    Between(i64, i64),
    KeyIs(u8),
    KeyNull(bool),
    ValueNull(bool),
    TimeNull(bool),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Not(Box<Self>),
    In(Vec<i64>),
}

fn compared<T: PartialOrd>(a: T, operator: &str, b: T) -> bool {
    match operator {
        "<" => a < b,
        "<=" => a <= b,
        ">" => a > b,
        ">=" => a >= b,
        "=" => a == b,
        _ => a != b,
    }
}

impl Condition {
    fn sql(&self) -> String {
        match self {
            Self::Partition(op, n) => format!("partition {op} {n}"),
            Self::Offset(op, n) => format!("\"offset\" {op} {n}"),
            Self::Time(op, ms) => format!("\"timestamp\" {op} {}", instant(*ms)),
            Self::Between(a, b) => {
                format!("\"timestamp\" BETWEEN {} AND {}", instant(*a), instant(*b))
            }
            Self::KeyIs(n) => format!("key = 'k{n}'"),
            Self::KeyNull(is) => null("key", *is),
            Self::ValueNull(is) => null("value", *is),
            Self::TimeNull(is) => null("\"timestamp\"", *is),
            Self::And(a, b) => format!("({} AND {})", a.sql(), b.sql()),
            Self::Or(a, b) => format!("({} OR {})", a.sql(), b.sql()),
            Self::Not(a) => format!("(NOT {})", a.sql()),
            Self::In(list) => {
                let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                format!("\"offset\" IN ({})", list.join(", "))
            }
        }
    }

    fn of(&self, r: &Record) -> Option<bool> {
        match self {
            Self::Partition(op, n) => Some(compared(r.partition, op, *n)),
            Self::Offset(op, n) => Some(compared(r.offset, op, *n)),
            Self::Time(op, ms) => r.timestamp.map(|time| compared(time, op, *ms)),
            Self::Between(a, b) => r.timestamp.map(|time| *a <= time && time <= *b),
            Self::KeyIs(n) => r
                .key
                .as_ref()
                .map(|key| *key == format!("k{n}").into_bytes()),
            Self::KeyNull(is) => Some(r.key.is_none() == *is),
            Self::ValueNull(is) => Some(r.value.is_none() == *is),
            Self::TimeNull(is) => Some(r.timestamp.is_none() == *is),
            Self::And(a, b) => match (a.of(r), b.of(r)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Self::Or(a, b) => match (a.of(r), b.of(r)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Self::Not(a) => a.of(r).map(|is| !is),
            Self::In(list) => Some(list.contains(&r.offset)),
        }
    }
}

fn instant(ms: i64) -> String {
    format!("TIMESTAMP '{}'", utc(ms))
}

fn null(column: &str, is: bool) -> String {
    format!("{column} IS {}NULL", if is { "" } else { "NOT " })
}

fn conditions() -> impl Strategy<Value = Condition> {
    let operator = prop::sample::select(vec!["<", "<=", ">", ">=", "=", "<>"]);
    let time = NOON - 100_000..NOON + 1_100_000_i64;
    let one = prop_oneof![
        (operator.clone(), -1..4_i32).prop_map(|(op, n)| Condition::Partition(op, n)),
        (operator.clone(), -5..310_i64).prop_map(|(op, n)| Condition::Offset(op, n)),
        (operator, time.clone()).prop_map(|(op, ms)| Condition::Time(op, ms / 1_000 * 1_000)),
        (time.clone(), time).prop_map(|(a, b)| Condition::Between(a, b)),
        (0..6_u8).prop_map(Condition::KeyIs),
        any::<bool>().prop_map(Condition::KeyNull),
        any::<bool>().prop_map(Condition::ValueNull),
        any::<bool>().prop_map(Condition::TimeNull),
        prop::collection::vec(0..310_i64, 1..30).prop_map(Condition::In),
    ];
    one.prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| Condition::And(Box::new(a), Box::new(b))),
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| Condition::Or(Box::new(a), Box::new(b))),
            inner.prop_map(|a| Condition::Not(Box::new(a))),
        ]
    })
}

#[test]
fn a_pruned_answer_is_the_answer() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (world, all) = runtime.block_on(world());
    let session = runtime.block_on(world.session());
    let mut runner = TestRunner::new(Config {
        cases: 96,
        ..Config::default()
    });
    let run = runner.run(&conditions(), |condition| {
        let filter = condition.sql();
        let sql = format!("SELECT {SHOWN} FROM orders WHERE {filter}");
        let mut found = runtime.block_on(rows(&session, &sql));
        let kept = all
            .iter()
            .filter(|record| condition.of(record) == Some(true));
        let mut expected: Vec<Vec<String>> = kept.map(shown).collect();
        found.sort();
        expected.sort();
        prop_assert_eq!(&found, &expected, "{}", sql);
        let counted = format!("SELECT count(*) FROM orders WHERE {filter}");
        let counted = runtime.block_on(value(&session, &counted));
        prop_assert_eq!(counted, expected.len().to_string(), "{}", sql);
        let mut kept: Vec<_> = all
            .iter()
            .filter(|record| condition.of(record) == Some(true))
            .map(|record| (record.partition, record.offset))
            .collect();
        kept.sort_unstable();
        let first = kept.iter().take(7);
        let first: Vec<_> = first.map(|(p, o)| vec![p.to_string(), o.to_string()]).collect();
        let sql = format!(
            "SELECT partition, \"offset\" FROM orders WHERE {filter} ORDER BY partition, \"offset\" LIMIT 7"
        );
        prop_assert_eq!(runtime.block_on(rows(&session, &sql)), first, "{}", sql);
        Ok(())
    });
    run.expect("the same rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_byte_is_an_error_and_never_another_answer() {
    let world = World::new().await;
    let records: Vec<Record> = (0..50).map(|n| Record::new(0, n)).collect();
    world.append("orders", &records).await;
    let file = world.path_of(world.data_files("orders").await[0].file_path());
    let whole = std::fs::read(&file).expect("a file");
    let sql = format!("SELECT {SHOWN} FROM orders WHERE \"offset\" >= 10");
    let mut expected: Vec<Vec<String>> = records[10..].iter().map(shown).collect();
    expected.sort();
    let (mut refused, mut same) = (0, 0);
    for at in (0..whole.len()).step_by(whole.len() / 150) {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        std::fs::write(&file, &changed).expect("written");
        // a session of its own, that remembers no footer
        let session = world.session().await;
        match try_rows(&session, &sql).await {
            Ok(mut found) => {
                found.sort();
                assert_eq!(found, expected, "byte {at} of {}", whole.len());
                same += 1;
            }
            Err(QueryError::Corrupt(_)) => refused += 1,
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
    // columns that were not asked for, and the page index, are not looked at
    assert!(
        refused > 40 && same > 0,
        "{refused} refused, {same} the same"
    );
}

/// A file as another engine writes it: other names, another order, without the columns that are null everywhere.
fn foreign_file(records: &[Record]) -> Vec<u8> {
    let field = |name: &str, kind: DataType, id: i32, nullable: bool| {
        Field::new(name, kind, nullable).with_metadata(HashMap::from([(
            "PARQUET:field_id".to_owned(),
            id.to_string(),
        )]))
    };
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Arc::new(Schema::new(vec![
        field("payload", DataType::Binary, 8, true),
        field("key", DataType::Binary, 7, true),
        field("archived_at", time(), 11, false),
        field("timestamp", time(), 5, true),
        field("offset", DataType::Int64, 4, false),
        // under a name that is another column's in the table
        field("generation", DataType::Int32, 3, false),
        field("partition", DataType::Int32, 2, false),
        field("topic", DataType::Utf8, 1, false),
        field("timestamp_type", DataType::Int32, 6, false),
    ]));
    let us = |ms: i64| ms * 1_000;
    let times = records.iter().map(|r| r.timestamp.map(us));
    let kinds = records
        .iter()
        .map(|r| if r.timestamp.is_some() { 0 } else { -1 });
    let columns: Vec<ArrayRef> = vec![
        Arc::new(BinaryArray::from_iter(
            records.iter().map(|r| r.value.as_deref()),
        )),
        Arc::new(BinaryArray::from_iter(
            records.iter().map(|r| r.key.as_deref()),
        )),
        Arc::new(
            TimestampMicrosecondArray::from_iter_values(records.iter().map(|_| us(NOON)))
                .with_timezone("UTC"),
        ),
        Arc::new(
            times
                .collect::<TimestampMicrosecondArray>()
                .with_timezone("UTC"),
        ),
        Arc::new(Int64Array::from_iter_values(
            records.iter().map(|r| r.offset),
        )),
        Arc::new(Int32Array::from_iter_values(
            records.iter().map(|r| r.partition),
        )),
        Arc::new(Int32Array::from_iter_values(records.iter().map(|_| 0))),
        Arc::new(StringArray::from_iter_values(
            records.iter().map(|_| "orders"),
        )),
        Arc::new(Int32Array::from_iter_values(kinds)),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("a batch");
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, None).expect("a writer");
    writer.write(&batch).expect("written");
    writer.into_inner().expect("a file")
}

async fn stored(world: &World, name: &str, bytes: Vec<u8>, rows: u64) -> DataFile {
    let table = world.loaded("orders").await;
    let partition = world.data_files("orders").await[0].partition().clone();
    let path = format!("{}/data/{name}", table.metadata.location());
    let size = bytes.len() as u64;
    let storage = world.storage("orders").await;
    storage.put(&path, bytes.into()).await.expect("stored");
    DataFileBuilder::default()
        .content(DataContentType::Data)
        .file_path(path)
        .file_format(DataFileFormat::Parquet)
        .partition(partition)
        .record_count(rows)
        .file_size_in_bytes(size)
        .build()
        .expect("a data file")
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_another_engine_rewrote_are_read_by_field_id() {
    let (world, mut all) = world().await;
    for record in &mut all {
        record.headers.clear();
    }
    // in no order
    let mut shuffled = all.clone();
    shuffled.reverse();
    let (first, second) = shuffled.split_at(100);
    let mut files = Vec::new();
    for (name, part) in [("00000-1-a.parquet", first), ("00000-2-b.parquet", second)] {
        files.push(stored(&world, name, foreign_file(part), part.len() as u64).await);
    }
    world.rewrite("orders", files, Vec::new()).await;
    let session = world.session().await;
    let mut expected: Vec<Vec<String>> = all.iter().map(shown).collect();
    let mut found = rows(&session, &format!("SELECT {SHOWN} FROM orders")).await;
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    for (filter, keep) in [
        (
            "partition = 1",
            Box::new(|r: &Record| r.partition == 1) as Box<dyn Fn(&Record) -> bool>,
        ),
        ("generation = 1", Box::new(|_: &Record| false)),
        (
            "generation = 0 AND leader_epoch IS NULL",
            Box::new(|_: &Record| true),
        ),
        ("leader_epoch = 3", Box::new(|_: &Record| false)),
        ("value IS NULL", Box::new(|r: &Record| r.value.is_none())),
        (
            "headers IS NULL AND \"offset\" > 50",
            Box::new(|r: &Record| r.offset > 50),
        ),
    ] {
        let sql = format!("SELECT {SHOWN} FROM orders WHERE {filter}");
        let mut found = rows(&session, &sql).await;
        let mut expected: Vec<Vec<String>> = all.iter().filter(|r| keep(r)).map(shown).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{filter}");
    }
    // what its manifest does not say is looked for in the file, and what says nothing of order is sorted
    let sql = "SELECT min(\"offset\"), max(\"offset\"), count(*) FROM orders";
    assert!(plan(&session, sql).await.contains("DataSourceExec"));
    assert_eq!(rows(&session, sql).await, [["0", "280", "360"]]);
    let sql = "SELECT partition, \"offset\" FROM orders ORDER BY partition, \"offset\"";
    assert!(plan(&session, sql).await.contains("SortExec"));
    let mut sorted = all.clone();
    sorted.sort_by_key(|r| (r.partition, r.offset));
    let sorted: Vec<Vec<String>> = sorted
        .iter()
        .map(|r| vec![r.partition.to_string(), r.offset.to_string()])
        .collect();
    assert_eq!(rows(&session, sql).await, sorted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_delete_files_is_refused() {
    let (world, _) = world().await;
    let data = world.data_files("orders").await;
    let table = world.loaded("orders").await;
    let deletes = DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(format!(
            "{}/data/deletes.parquet",
            table.metadata.location()
        ))
        .file_format(DataFileFormat::Parquet)
        .partition(data[0].partition().clone())
        .record_count(1)
        .file_size_in_bytes(100)
        .build()
        .expect("a delete file");
    world.rewrite("orders", data, vec![deletes]).await;
    let session = world.session().await;
    let refused = error(&session, "SELECT count(*) FROM orders").await;
    assert!(matches!(refused, QueryError::Unsupported(_)), "{refused}");
    assert!(refused.to_string().contains("delete files"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_snapshot_has_no_rows() {
    let world = World::new().await;
    world.archive("orders").await;
    let session = world.session().await;
    assert_eq!(value(&session, "SELECT count(*) FROM orders").await, "0");
    assert_eq!(
        value(&session, "SELECT max(\"offset\") FROM orders").await,
        "∅"
    );
    assert_eq!(
        value(&session, "SELECT count(*) FROM \"orders$ledger\"").await,
        "0"
    );
    assert_eq!(
        value(&session, "SELECT count(*) FROM \"orders$files\"").await,
        "0"
    );
}
