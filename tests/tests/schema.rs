//! `everlog schema` on real Kafka and a real registry, and the view that it prints in real DuckDB.

use std::fmt::Write as _;
use std::process::Command;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType,
    TimestampMillisecondType,
};
use arrow_array::{Array as _, ArrayRef, BinaryArray};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use everlog_decode::{Columns, ValueFormat, ValueReader};
use everlog_services::{Kafka, SchemaRegistry, environment, script};
use everlog_tests::broker::{Broker, Message};
use everlog_tests::everlog::{Everlog, Setup};
use everlog_tests::values::{COLUMNS, values};

/// What DuckDB is asked of each column, so that both sides give the same text.
const PROBES: [&str; 10] = [
    "s",
    "n",
    "b",
    "d",
    "m",
    "day",
    "epoch_us(\"at\")",
    "epoch_us(wall)",
    "hex(raw)",
    "\"odd/na~me\"",
];

/// One row of a column as DuckDB's probe has it.
fn text(column: usize, array: &ArrayRef, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    Some(match column {
        0 => array.as_string::<i32>().value(row).to_owned(),
        1 => array.as_primitive::<Int64Type>().value(row).to_string(),
        2 => array.as_boolean().value(row).to_string(),
        3 => format!("{:?}", array.as_primitive::<Float64Type>().value(row)),
        4 => array.as_primitive::<Decimal128Type>().value_as_string(row),
        5 => array
            .as_primitive::<Date32Type>()
            .value_as_date(row)
            .unwrap()
            .to_string(),
        6 => (array.as_primitive::<TimestampMillisecondType>().value(row) * 1_000).to_string(),
        7 => array
            .as_primitive::<TimestampMicrosecondType>()
            .value(row)
            .to_string(),
        8 => array
            .as_binary::<i32>()
            .value(row)
            .iter()
            .fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02X}");
                hex
            }),
        _ => array
            .as_primitive::<arrow_array::types::Int32Type>()
            .value(row)
            .to_string(),
    })
}

/// What DuckDB's view of these columns gives for the values, by these expressions; and its SQL.
fn in_duckdb(
    columns: &[(&str, &str)],
    probes: &[&str],
    values: &[Option<Vec<u8>>],
) -> (Vec<Vec<Option<String>>>, String) {
    let columns: Vec<String> = columns
        .iter()
        .map(|(name, of)| format!("{name:?} = {of:?}"))
        .collect();
    let lines = format!(
        "[decode.t]\nformat = \"json\"\ncolumns = {{ {} }}",
        columns.join(", ")
    );
    let everlog = Everlog::local(&Setup::new("127.0.0.1:1", &["t"]).replay(&lines));
    let sql = everlog.ok(&[
        "schema", "view", "t", "--engine", "duckdb", "--table", "archive",
    ]);
    let mut encoded = String::new();
    for value in values {
        let line = value.as_ref().map(|value| STANDARD.encode(value));
        let _ = writeln!(encoded, "{}", serde_json::json!(line));
    }
    let file = |name: &str, text: &str| {
        let path = everlog.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let python = environment("EVERLOG_PYTHON").expect(
        "EVERLOG_PYTHON is not set: run the tests by `make test`, which prepares the readers",
    );
    let output = Command::new(python)
        .arg(script("../scripts/duckdb_view.py"))
        .arg("--sql")
        .arg(file("view.sql", &sql))
        .arg("--values")
        .arg(file("values", &encoded))
        .arg("--probe")
        .arg(file("probes", &probes.join("\n")))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{sql}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rows: Vec<Vec<Option<String>>> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), values.len());
    (rows, sql)
}

#[test]
fn nested_values_are_nested_in_duckdb() {
    let columns = [
        (
            "items",
            "ARRAY<ROW<id BIGINT, price DECIMAL(10, 2), `it's` STRING>>",
        ),
        ("attributes", "MAP<STRING, ARRAY<BIGINT>>"),
        ("place", "ROW<city STRING, at ROW<lat DOUBLE>>"),
    ];
    let probes = ["to_json(items)", "to_json(attributes)", "to_json(place)"];
    let values = [
        r#"{"items":[{"id":1,"price":9.99,"it's":"a,b"},{"id":1.5},null],"attributes":{"a":[1,2],"b":null},"place":{"city":"Ulm","at":{"lat":48.5}}}"#,
        r#"{"items":{"id":1},"attributes":[1],"place":"Ulm"}"#,
        r#"{"items":[],"attributes":{},"place":{}}"#,
    ];
    let values = values.map(|value| Some(value.as_bytes().to_vec()));
    let (rows, sql) = in_duckdb(&columns, &probes, &values);
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        rows,
        [
            [
                some(
                    r#"[{"id":1,"price":9.99,"it's":"a,b"},{"id":null,"price":null,"it's":null},null]"#
                ),
                some(r#"{"a":[1,2],"b":null}"#),
                some(r#"{"city":"Ulm","at":{"lat":48.5}}"#),
            ],
            [None, None, None],
            [some("[]"), some("{}"), some(r#"{"city":null,"at":null}"#)],
        ],
        "{sql}"
    );
}

#[test]
fn the_view_gives_in_duckdb_what_everlog_gives() {
    let values = values();
    let (theirs, sql) = in_duckdb(&COLUMNS, &PROBES, &values);
    let format = ValueFormat::Json(Columns::parse(COLUMNS).unwrap());
    let all: Vec<usize> = (0..COLUMNS.len()).collect();
    let mut reader = ValueReader::new(&format, &all, false).unwrap();
    let array = BinaryArray::from_iter(values.iter().map(Option::as_deref));
    let ours = reader.read(&array).unwrap();
    let mut seen = [0; COLUMNS.len()];
    for (row, value) in values.iter().enumerate() {
        let value = value.as_deref().map(String::from_utf8_lossy);
        for (column, array) in ours.columns.iter().enumerate() {
            let ours = text(column, array, row);
            seen[column] += usize::from(ours.is_some());
            assert_eq!(
                theirs[row][column], ours,
                "column {} of {value:?}\n{sql}",
                COLUMNS[column].0
            );
        }
    }
    assert!(seen.iter().all(|seen| *seen > 1), "{seen:?}");
}

#[tokio::test]
async fn what_is_inferred_reads_the_topic() {
    let kafka = Kafka::start();
    let broker = Broker::new(&kafka.bootstrap);
    let topic = "schema.inferred";
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[]);
    for n in 0..200_i32 {
        let value = match n {
            13 => "broken".to_owned(),
            _ => format!(
                "{{\"user\":\"u{n}\",\"n\":{n},\"at\":\"2026-01-31T08:00:00Z\",\"price\":{n}.5}}"
            ),
        };
        feed.send(
            topic,
            &Message {
                partition: n % 2,
                value: Some(value.as_bytes()),
                ..Message::default()
            },
        );
    }
    feed.flush();
    let setup = Setup::new(&kafka.bootstrap, &[topic]);
    let everlog = Everlog::local(&setup);
    // there is no archive, and no catalog, yet
    let from_kafka = everlog.ok(&["schema", "infer", topic]);
    everlog.archive();
    let inferred = everlog.ok(&["schema", "infer", topic]);
    assert!(
        inferred.starts_with("# schema.inferred: 200 values seen, 0 tombstones, 1 failed\n# the first that failed: partition 1, offset 6: the value is no JSON"),
        "{inferred}"
    );
    let table = |text: &str| {
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(table(&from_kafka), table(&inferred));
    assert_eq!(
        table(&inferred),
        "[decode.\"schema.inferred\"]\nformat = \"json\"\n\n[decode.\"schema.inferred\".columns]\nuser = \"STRING NOT NULL\"\nn = \"BIGINT NOT NULL\"\nat = \"TIMESTAMP_LTZ(3) NOT NULL\"\nprice = \"DOUBLE NOT NULL\""
    );
    let some = everlog.ok(&["schema", "infer", topic, "--sample", "10"]);
    assert!(some.contains("10 values seen"), "{some}");
    let with_view = everlog.beside(&setup.replay(&inferred));
    let counted = with_view.ok(&[
        "sql",
        "--format",
        "csv",
        "SELECT count(*), count(\"user\"), count(_error), sum(price) FROM schema_inferred_v",
    ]);
    assert_eq!(
        counted.lines().nth(1),
        Some("200,199,1,19986.5"),
        "{counted}"
    );
    let refused = everlog.fails(&["schema", "infer", "schema.nowhere"], 1);
    assert!(
        refused.contains("there is no topic schema.nowhere"),
        "{refused}"
    );
}

const EVENT_1: &str = r#"{"type":"record","name":"Event","fields":[{"name":"a","type":"int"}]}"#;
const EVENT_2: &str = r#"{"type":"record","name":"Event","fields":[{"name":"a","type":"long"},{"name":"b","type":["null","string"],"default":null}]}"#;
const EVENT_3: &str = r#"{"type":"record","name":"Event","fields":[{"name":"a","type":"string"}]}"#;

fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    [&[0], id.to_be_bytes().as_slice(), body].concat()
}

#[tokio::test]
async fn versions_are_checked_against_what_is_archived() {
    let kafka = Kafka::start();
    let registry = SchemaRegistry::start();
    let broker = Broker::new(&kafka.bootstrap);
    let topic = "schema.events";
    broker.create(topic, 1, &[]).await;
    let subject = "schema.events-value";
    let first = registry.register(subject, EVENT_1, &[]);
    let second = registry.register(subject, EVENT_2, &[]);
    let feed = broker.producer(&[]);
    for value in [
        framed(first, &[6]),
        framed(first, &[8]),
        framed(second, &[10, 2, 2, b'x']),
    ] {
        feed.send(
            topic,
            &Message {
                value: Some(&value),
                ..Message::default()
            },
        );
    }
    feed.flush();
    let lines = format!("[registry]\nurl = {:?}\ncache = \"CACHE\"", registry.url);
    let cache = tempfile::tempdir().unwrap();
    let lines = lines.replace("CACHE", &cache.path().display().to_string());
    let everlog = Everlog::local(&Setup::new(&kafka.bootstrap, &[topic]).replay(&lines));
    everlog.archive();
    let checked = everlog.ok(&["schema", "check", topic]);
    assert!(
        checked.ends_with("BACKWARD_TRANSITIVE: yes, FULL_TRANSITIVE: no\n"),
        "{checked}"
    );
    assert!(
        checked.contains("  in use in partition 0, offsets 0 to 1: 2 values\n  it cannot read the newest: a: long was written, int is read\n"),
        "{checked}"
    );
    everlog.fails(&["schema", "check", topic, "--full"], 1);
    let rows = everlog.ok(&[
        "sql",
        "--format",
        "csv",
        "SELECT a, b FROM schema_events_v ORDER BY _offset",
    ]);
    assert_eq!(
        rows.lines().skip(1).collect::<Vec<_>>(),
        ["3,", "4,", "5,x"],
        "{rows}"
    );
    let spark = everlog.ok(&["schema", "view", topic, "--engine", "spark"]);
    assert_eq!(spark.matches("from_avro(").count(), 2, "{spark}");
    let trino = everlog.fails(&["schema", "view", topic, "--engine", "trino"], 1);
    assert!(
        trino.contains("Trino cannot decode Avro inside a column"),
        "{trino}"
    );
    // a version that reads nothing of it
    registry.register(subject, EVENT_3, &[]);
    let output = everlog.run(&["schema", "check", topic]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        told.contains("the newest cannot read it: a: int was written, string is read"),
        "{told}"
    );
    let why = String::from_utf8_lossy(&output.stderr);
    let expected =
        format!("written with schemas that the newest cannot read: id {first}, {second}");
    assert!(why.contains(&expected), "{why}");
    let unknown = everlog.fails(&["schema", "check", "schema.nothing"], 2);
    assert!(
        unknown.contains("the registry has no subject schema.nothing-value"),
        "{unknown}"
    );
}
