//! Whole tables, read by an engine, as records.

use base64::Engine as _;
use everlog_tests::compare::{Log, Record, assert_same, count};
use everlog_tests::engines::{digest, read};
use everlog_tests::everlog::Everlog;
use serde_json::Value;

use crate::ask::{Answer, Engine};

/// Every row of `lake.everlog.orders`, by one SELECT in the engine's words; of a snapshot, or the newest.
fn select(engine: &Engine, table: &str, snapshot: Option<&str>) -> String {
    let at = |before: &str, after: &str| {
        snapshot.map_or(String::new(), |id| format!(" {before}{id}{after}"))
    };
    match engine {
        Engine::PyIceberg | Engine::Flink(_) => unreachable!("read otherwise"),
        Engine::DuckDb => format!(
            "SELECT \"partition\", \"offset\", epoch_ms(\"timestamp\"), timestamp_type, base64(key), base64(value), \
             list_transform(headers, lambda h: [h.key, base64(h.value)]) FROM {table}{};\n",
            at("AT (VERSION => ", ")")
        ),
        Engine::Spark(_) => format!(
            "SELECT partition, `offset`, unix_millis(timestamp), timestamp_type, base64(key), base64(value), \
             transform(headers, h -> array(h.key, base64(h.value))) FROM {table}{};\n",
            at("VERSION AS OF ", "")
        ),
        Engine::Trino(_) => format!(
            "SELECT \"partition\", \"offset\", date_diff('millisecond', TIMESTAMP '1970-01-01 00:00:00 UTC', \"timestamp\"), \
             timestamp_type, to_base64(key), to_base64(value), transform(headers, h -> ARRAY[h.key, to_base64(h.value)]) \
             FROM {table}{};\n",
            at("FOR VERSION AS OF ", "")
        ),
    }
}

/// Asserts that the engine's rows are these, of the newest snapshot and of an older one: record by record, and by hash.
/// `connect` is what its session begins with.
#[track_caller]
pub fn assert_reads(
    engine: &Engine,
    everlog: &Everlog,
    connect: &str,
    table: &str,
    expected: &[(Option<&str>, &Log)],
) {
    if let Engine::PyIceberg = engine {
        let leaf = table.rsplit('.').next().expect("a name");
        for (snapshot, log) in expected {
            let id = snapshot.map(|id| id.parse().expect("an id"));
            let reading = read(everlog, "pyiceberg", leaf, id);
            assert_eq!(
                (reading.rows, reading.sha256),
                digest(log),
                "pyiceberg {snapshot:?}"
            );
        }
        return;
    }
    let found: Vec<Log> = if let Engine::Flink(flink) = engine {
        let of = |(snapshot, _): &(Option<&str>, &Log)| by_flink(flink, connect, table, *snapshot);
        expected.iter().map(of).collect()
    } else {
        let selects = expected
            .iter()
            .map(|(snapshot, _)| select(engine, table, *snapshot));
        let program = format!("{connect}\n{}", selects.collect::<String>());
        let answers = engine.ask(everlog, &program);
        assert_eq!(answers.len(), expected.len(), "{engine:?}");
        answers.iter().map(log_of).collect()
    };
    for ((snapshot, log), found) in expected.iter().zip(found) {
        let what = format!("{engine:?} at {snapshot:?}");
        assert_same(log, &found, &what);
        assert_eq!(digest(log), digest(&found), "{what}");
        println!("{what}: {} rows, {}", count(&found), digest(&found).1);
    }
}

fn log_of(answer: &Answer) -> Log {
    let mut log = Log::new();
    for row in answer {
        let record = record(row).unwrap_or_else(|| panic!("not a record: {row:?}"));
        log.entry(record.partition).or_default().push(record);
    }
    for records in log.values_mut() {
        records.sort_by_key(|record| record.offset);
    }
    log
}

fn record(row: &[Option<String>]) -> Option<Record> {
    let [partition, offset, timestamp, kind, key, value, headers] = row else {
        return None;
    };
    let headers: Vec<(String, Option<String>)> = serde_json::from_str(headers.as_ref()?).ok()?;
    let headers = headers.into_iter().map(|(key, value)| {
        let value = value.map(|value| bytes(&value)).transpose();
        value.map(|value| (key.into_bytes(), value))
    });
    Some(Record {
        partition: partition.as_ref()?.parse().ok()?,
        offset: offset.as_ref()?.parse().ok()?,
        timestamp: timestamp.as_ref().map(|ms| ms.parse()).transpose().ok()?,
        timestamp_type: kind_of(kind.as_ref()?.parse().ok()?),
        key: key.as_deref().map(bytes).transpose().ok()?,
        value: value.as_deref().map(bytes).transpose().ok()?,
        headers: headers.collect::<Result<_, _>>().ok()?,
    })
}

fn kind_of(number: i32) -> &'static str {
    match number {
        0 => "create",
        1 => "logappend",
        _ => "none",
    }
}

/// Some engines break lines.
fn bytes(base64: &str) -> Result<Vec<u8>, base64::DecodeError> {
    let text: String = base64.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(text)
}

/// Flink has no function that makes text of bytes: its JSON files do.
fn by_flink(
    flink: &everlog_tests::services::Flink,
    connect: &str,
    table: &str,
    snapshot: Option<&str>,
) -> Log {
    let folder = tempfile::Builder::new()
        .prefix("everlog-rows")
        .tempdir()
        .expect("temp dir");
    let rows = folder.path().join("rows");
    let hint = snapshot.map_or(String::new(), |id| {
        format!(" /*+ OPTIONS('snapshot-id' = '{id}') */")
    });
    let program = format!(
        "{connect}
CREATE TEMPORARY TABLE copied (p INT, o BIGINT, t TIMESTAMP_LTZ(6), c INT, k BYTES, v BYTES, h ARRAY<ROW<k STRING, v BYTES>>)
  WITH ('connector' = 'filesystem', 'path' = 'file://{}', 'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601');
INSERT INTO copied SELECT `partition`, `offset`, `timestamp`, timestamp_type, key, `value`, headers FROM {table}{hint};
",
        rows.display()
    );
    flink.sql(&program, &[]);
    let mut answer = Answer::new();
    for entry in std::fs::read_dir(&rows).expect("Flink's files") {
        let text = std::fs::read_to_string(entry.expect("a file").path()).expect("JSON lines");
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).expect("a JSON object");
            let text = |name: &str| row[name].as_str().map(str::to_owned);
            let number = |name: &str| row[name].as_i64().map(|number| number.to_string());
            let time = text("t").map(|time| {
                let time = chrono::DateTime::parse_from_rfc3339(&time).expect("a time");
                time.timestamp_millis().to_string()
            });
            let headers = row["h"].as_array().expect("headers").iter();
            let headers: Vec<[&Value; 2]> =
                headers.map(|header| [&header["k"], &header["v"]]).collect();
            let headers = serde_json::to_string(&headers).expect("JSON");
            answer.push(vec![
                number("p"),
                number("o"),
                time,
                number("c"),
                text("k"),
                text("v"),
                Some(headers),
            ]);
        }
    }
    log_of(&answer)
}
