//! `everlog sql` on real Kafka: what the archive and its tail hold, each record once, as other engines read it too.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use base64::Engine as _;
use everlog_tests::broker::{Broker, Feed, Message};
use everlog_tests::compare::{Log, Record, assert_same, count};
use everlog_tests::engines::{digest, foreign, read};
use everlog_tests::everlog::{Everlog, Setup};
use everlog_tests::services::{self, Kafka};
use serde_json::Value;

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

fn broker() -> Broker {
    Broker::new(&kafka().bootstrap)
}

const PARTITIONS: i32 = 4;

/// Records with everything in them: keys and values that are null, empty, no text, or mean something to a terminal.
fn fill(feed: &Feed, topic: &str, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let number = i64::try_from(n).expect("small");
        let key = format!("user-{}", n % 7);
        let value = [n.to_string().as_bytes(), &[0xff, 0, b'\n', 0x1b]].concat();
        let headers = match n % 5 {
            0 => vec![("a", Some(&b"1"[..])), ("b", None), ("a", Some(&b""[..]))],
            _ => Vec::new(),
        };
        feed.send(
            topic,
            &Message {
                partition: i32::try_from(n).expect("small") % PARTITIONS,
                key: (n % 11 != 0).then_some(key.as_bytes()),
                value: match n % 13 {
                    0 => None,
                    1 => Some(b""),
                    _ => Some(&value),
                },
                timestamp: Some(1_700_000_000_000 + number * 100),
                headers,
            },
        );
    }
    feed.flush();
}

/// The JSON lines of an answer.
#[track_caller]
fn rows(everlog: &Everlog, options: &[&str], sql: &str) -> Vec<Value> {
    let args = [&["sql", "--format", "jsonl"], options, &[sql]].concat();
    let text = everlog.ok(&args);
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object"))
        .collect()
}

/// The only number of an answer.
#[track_caller]
fn number(everlog: &Everlog, options: &[&str], sql: &str) -> i64 {
    let rows = rows(everlog, options, sql);
    assert_eq!(rows.len(), 1, "{sql}");
    let row = rows[0].as_object().expect("an object");
    assert_eq!(row.len(), 1, "{sql}");
    let value = row.values().next().expect("a value");
    value.as_i64().unwrap_or_else(|| panic!("{sql}: {value}"))
}

/// Every record of a table, as the other readers of these tests know it.
#[track_caller]
fn log(everlog: &Everlog, options: &[&str], table: &str) -> Log {
    let sql = format!(
        "SELECT partition, \"offset\", CAST(timestamp AS BIGINT) / 1000 AS ts, timestamp_type, key, value, headers \
         FROM \"{table}\" ORDER BY generation, partition, \"offset\""
    );
    let mut log = Log::new();
    for row in rows(everlog, options, &sql) {
        let record = record(&row).unwrap_or_else(|| panic!("not a record: {row}"));
        log.entry(record.partition).or_default().push(record);
    }
    log
}

fn record(row: &Value) -> Option<Record> {
    let headers = row.get("headers")?.as_array()?.iter().map(|header| {
        let key = header.get("key")?.as_str()?.as_bytes().to_vec();
        Some((key, bytes(header.get("value")?)?))
    });
    Some(Record {
        partition: i32::try_from(row.get("partition")?.as_i64()?).ok()?,
        offset: row.get("offset")?.as_i64()?,
        timestamp: row.get("ts")?.as_i64(),
        timestamp_type: match row.get("timestamp_type")?.as_i64()? {
            0 => "create",
            1 => "logappend",
            _ => "none",
        },
        key: bytes(row.get("key")?)?,
        value: bytes(row.get("value")?)?,
        headers: headers.collect::<Option<_>>()?,
    })
}

fn bytes(value: &Value) -> Option<Option<Vec<u8>>> {
    let base64 = base64::engine::general_purpose::STANDARD;
    match value {
        Value::Null => Some(None),
        Value::String(text) => base64.decode(text).ok().map(Some),
        _ => None,
    }
}

/// What a table holds more than once.
const TWICE: &str = "SELECT generation, partition, \"offset\", count(*) AS n FROM {} GROUP BY 1, 2, 3 HAVING count(*) <> 1";

fn twice(table: &str) -> String {
    TWICE.replace("{}", table)
}

#[tokio::test]
async fn live_is_the_archive_and_kafkas_tail_each_record_once() {
    let (broker, topic) = (broker(), "sql.live");
    broker.create(topic, PARTITIONS, &[]).await;
    let feed = broker.producer(&[]);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    fill(&feed, topic, 0..1_000);
    everlog.archive();
    fill(&feed, topic, 1_000..2_500);

    let live = "\"sql_live$live\"";
    assert_eq!(
        number(&everlog, &[], "SELECT count(*) FROM sql_live"),
        1_000
    );
    assert_eq!(
        number(&everlog, &[], &format!("SELECT count(*) FROM {live}")),
        2_500
    );
    assert_eq!(
        number(&everlog, &["--live"], "SELECT count(*) FROM sql_live"),
        2_500
    );
    assert_eq!(rows(&everlog, &[], &twice(live)), Vec::<Value>::new());
    // what is not archived has no time of archiving, and nothing else differs
    let tail = format!("SELECT count(*) FROM {live} WHERE archived_at IS NULL");
    assert_eq!(number(&everlog, &[], &tail), 1_500);
    assert_same(
        &broker.dump(topic),
        &log(&everlog, &[], "sql_live$live"),
        "$live",
    );
    assert_same(
        &broker.dump(topic),
        &log(&everlog, &["--live"], "sql_live"),
        "--live",
    );
    // both ends of a join are the same, and filters hold in the tail
    let pairs = format!(
        "SELECT count(*) FROM {live} a JOIN {live} b ON a.partition = b.partition AND a.\"offset\" = b.\"offset\""
    );
    assert_eq!(number(&everlog, &[], &pairs), 2_500);
    let some = format!(
        "SELECT count(*) FROM {live} WHERE partition = 1 AND \"offset\" BETWEEN 200 AND 399"
    );
    assert_eq!(number(&everlog, &[], &some), 200);
    assert_eq!(
        rows(
            &everlog,
            &[],
            &format!("SELECT \"offset\" FROM {live} LIMIT 7")
        )
        .len(),
        7
    );

    // before the first commit, everything is tail; after the last one, nothing
    everlog.archive();
    assert_eq!(number(&everlog, &[], &tail), 0);
    assert_eq!(
        number(&everlog, &["--live"], "SELECT count(*) FROM sql_live"),
        2_500
    );
}

#[tokio::test]
async fn live_shows_committed_transactions_alone() {
    let (broker, topic) = (broker(), "sql.transactions");
    broker.create(topic, PARTITIONS, &[]).await;
    let feed = broker.producer(&[("transactional.id", "sql")]);
    feed.init_transactions();
    feed.begin();
    fill(&feed, topic, 0..400);
    feed.commit();
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    for (numbers, commit) in [(400..600, false), (600..1_000, true), (1_000..1_200, false)] {
        feed.begin();
        fill(&feed, topic, numbers);
        if commit {
            feed.commit();
        } else {
            feed.abort();
        }
    }
    assert_eq!(
        number(
            &everlog,
            &["--live"],
            "SELECT count(*) FROM sql_transactions"
        ),
        800
    );
    // one that is open is not the end of the wait, and not shown
    feed.begin();
    fill(&feed, topic, 1_200..1_300);
    assert_eq!(
        number(
            &everlog,
            &["--live"],
            "SELECT count(*) FROM sql_transactions"
        ),
        800
    );
    feed.commit();
    assert_eq!(
        number(
            &everlog,
            &["--live"],
            "SELECT count(*) FROM sql_transactions"
        ),
        900
    );
    let found = log(&everlog, &["--live"], "sql_transactions");
    assert_same(&broker.dump(topic), &found, "committed records");
}

#[tokio::test]
async fn live_knows_a_topic_that_was_created_again_from_its_predecessor() {
    let (broker, topic) = (broker(), "sql.recreated");
    broker.create(topic, PARTITIONS, &[]).await;
    fill(&broker.producer(&[]), topic, 0..400);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    broker.delete(topic).await;
    // with fewer partitions: those of the old one are not read again
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 2, 0..300);
    let line = everlog.fails(&["sql", "--live", "SELECT count(*) FROM sql_recreated"], 1);
    assert!(
        line.contains("created anew") && line.contains("start the archiver"),
        "{line}"
    );
    everlog.archive();
    feed.fill(topic, 2, 300..500);
    let live = "\"sql_recreated$live\"";
    let per_era =
        format!("SELECT generation AS g, count(*) AS n FROM {live} GROUP BY 1 ORDER BY 1");
    let found: Vec<String> = rows(&everlog, &[], &per_era)
        .iter()
        .map(Value::to_string)
        .collect();
    assert_eq!(found, [r#"{"g":0,"n":400}"#, r#"{"g":1,"n":500}"#]);
    assert_eq!(rows(&everlog, &[], &twice(live)), Vec::<Value>::new());
}

#[tokio::test]
async fn live_fails_where_records_are_in_neither_tier() {
    let (broker, topic) = (broker(), "sql.hole");
    broker.create(topic, 1, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 1, 0..100);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    feed.fill(topic, 1, 100..300);
    broker.delete_records(topic, 0, 200).await;
    let line = everlog.fails(&["sql", "SELECT count(*) FROM \"sql_hole$live\""], 3);
    assert!(
        line.contains("neither in the archive nor in Kafka"),
        "{line}"
    );
    // the archive alone is whole
    assert_eq!(number(&everlog, &[], "SELECT count(*) FROM sql_hole"), 100);
}

#[tokio::test]
async fn other_engines_read_the_same_rows() {
    let (broker, topic) = (broker(), "sql.engines");
    broker.create(topic, PARTITIONS, &[]).await;
    let feed = broker.producer(&[]);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    fill(&feed, topic, 0..600);
    everlog.archive();
    let first = foreign(&everlog, "sql_engines", &["snapshots"])["current"]
        .as_i64()
        .expect("an id");
    fill(&feed, topic, 600..1_500);
    everlog.archive();
    for snapshot in [None, Some(first)] {
        let id = snapshot.map(|id| id.to_string());
        let options: Vec<&str> = id
            .iter()
            .flat_map(|id| ["--snapshot", id.as_str()])
            .collect();
        let ours = log(&everlog, &options, "sql_engines");
        assert_eq!(count(&ours), if snapshot.is_some() { 600 } else { 1_500 });
        let (rows, sha256) = digest(&ours);
        for engine in ["pyiceberg", "duckdb"] {
            let theirs = read(&everlog, engine, "sql_engines", snapshot);
            assert_eq!(
                (theirs.rows, &theirs.sha256),
                (rows, &sha256),
                "{engine} {snapshot:?}"
            );
        }
    }
}

/// What python answers to a line.
#[track_caller]
fn python(code: &str) -> String {
    let python = services::environment("EVERLOG_PYTHON").unwrap_or_else(|| {
        panic!(
            "EVERLOG_PYTHON is not set: run the tests by `make test`, which prepares the readers"
        )
    });
    let output = Command::new(python)
        .args(["-c", code])
        .output()
        .expect("run python");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test]
async fn other_tools_load_what_is_written() {
    let (broker, topic) = (broker(), "sql.files");
    broker.create(topic, PARTITIONS, &[]).await;
    fill(&broker.producer(&[]), topic, 0..1_000);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    let sql = "SELECT * FROM sql_files ORDER BY partition, \"offset\"";
    let write = |format: &str| {
        let path = everlog.dir().join(format!("answer.{format}"));
        let text = path.display().to_string();
        everlog.ok(&["sql", "--format", format, "--out", &text, sql]);
        text
    };
    let expected = "(1000, 4, 77)";
    let sums = "SELECT count(*), count(DISTINCT \"partition\"), count(*) FILTER (value IS NULL)";
    for (format, reader) in [
        ("parquet", "read_parquet"),
        ("csv", "read_csv"),
        ("jsonl", "read_json"),
    ] {
        let path = write(format);
        let options = match format {
            "csv" => ", nullstr='', allow_quoted_nulls=false, all_varchar=true",
            "jsonl" => ", format='newline_delimited'",
            _ => "",
        };
        let code = format!(
            "import duckdb; print(duckdb.sql(\"\"\"{sums} FROM {reader}('{path}'{options})\"\"\").fetchone())"
        );
        assert_eq!(python(&code), expected, "{format}");
    }
    let path = write("arrow");
    let code = format!(
        "import pyarrow as pa; t = pa.ipc.open_file('{path}').read_all(); print(t.num_rows, t.column('value').null_count)"
    );
    assert_eq!(python(&code), "1000 77");
    // nothing but the four answers was left behind
    let names: BTreeSet<String> = std::fs::read_dir(everlog.dir())
        .expect("list")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.contains("answer"))
        .collect();
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        [
            "answer.arrow",
            "answer.csv",
            "answer.jsonl",
            "answer.parquet"
        ]
    );
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_query_quietly() {
    let (broker, topic) = (broker(), "sql.pipe");
    broker.create(topic, PARTITIONS, &[]).await;
    broker.producer(&[]).fill(topic, PARTITIONS, 0..50_000);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    for format in ["table", "csv", "jsonl"] {
        let mut child = everlog
            .command(&["sql", "--format", format, "SELECT * FROM sql_pipe"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run everlog");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert!(!line.is_empty());
        let output = child.wait_with_output().expect("end");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{format}");
    }
}
