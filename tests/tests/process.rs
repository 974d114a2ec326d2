//! A job over history and live on real servers: the same rows whichever way they came, and however often it is killed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use everlog_common::clock::{RandomIds, SystemClock};
use everlog_processor::sink::TextLines;
use everlog_table::archive::ArchiveDeps;
use everlog_table::catalog;
use everlog_table::job::JobTable;
use everlog_tests::broker::{Broker, Feed, Message, PATIENCE};
use everlog_tests::crashing::job_points;
use everlog_tests::everlog::{Everlog, Setup, eventually, get};
use everlog_tests::services::{Kafka, RestCatalog, S3, free_ports};
use futures::TryStreamExt as _;
use serde_json::Value;

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

fn broker() -> Broker {
    Broker::new(&kafka().bootstrap)
}

/// The next of a fixed sequence of numbers without pattern.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
}

/// A clickstream: some users, some of it out of order, some too late, some that nobody can read.
struct Clicks {
    seed: u64,
    now: i64,
    partitions: u64,
}

impl Clicks {
    fn new(partitions: u64) -> Self {
        Self {
            seed: 7,
            now: 1_700_000_000_000,
            partitions,
        }
    }

    fn produce(&mut self, feed: &Feed, topic: &str, count: usize) {
        for _ in 0..count {
            // a user is away for an hour on average
            self.now += i64::try_from(next(&mut self.seed) % 180_000).unwrap();
            let user = next(&mut self.seed) % 40;
            let kind = ["view", "view", "add_to_cart", "purchase"]
                [usize::try_from(next(&mut self.seed) % 4).unwrap()];
            let off = match next(&mut self.seed) % 50 {
                0 => 4 * 3_600_000,
                n => i64::try_from(n * 500).unwrap(),
            };
            let value = if next(&mut self.seed).is_multiple_of(500) {
                "{\"user_id\":".to_owned()
            } else {
                format!(
                    r#"{{"user_id":"user {user}","product_id":"p{}","event_type":"{kind}","timestamp_ms":{}}}"#,
                    next(&mut self.seed) % 100,
                    self.now - off
                )
            };
            let message = Message {
                partition: i32::try_from(user % self.partitions).unwrap(),
                key: None,
                value: Some(value.as_bytes()),
                timestamp: Some(self.now),
                headers: Vec::new(),
            };
            feed.send(topic, &message);
        }
        feed.flush();
    }
}

/// The job of the README: sessions with a gap of half an hour.
struct Sessions<'a> {
    topic: &'a str,
    version: &'a str,
    /// The `[sink]` section.
    sink: String,
    location: String,
    /// Lines of `[checkpoint]` and `[limits]`.
    interval: &'a str,
    limits: &'a str,
}

impl Sessions<'_> {
    fn write(&self, everlog: &Everlog) -> String {
        let table = self.topic.replace('.', "_");
        let text = format!(
            r#"
[job]
name = "sessions"
version = "{version}"

[source]
topic = "{topic}"
format = "json"
columns = {{ user_id = "STRING NOT NULL", product_id = "STRING", event_type = "STRING", timestamp_ms = "BIGINT NOT NULL" }}
event_time = "to_timestamp_millis(timestamp_ms)"
out_of_orderness = "30s"

[query]
sql = """
SELECT user_id, SESSION_START(ts, INTERVAL '30' MINUTE) AS session_start, SESSION_END(ts, INTERVAL '30' MINUTE) AS session_end,
       count(*) FILTER (WHERE event_type = 'view') AS views, count(*) FILTER (WHERE event_type = 'purchase') AS purchases
FROM {table} GROUP BY user_id, SESSION(ts, INTERVAL '30' MINUTE)"""

[sink]
{sink}

[checkpoint]
interval = "{interval}"
location = "{location}"

[limits]
memory = "128MiB"
{limits}
"#,
            version = self.version,
            topic = self.topic,
            sink = self.sink,
            interval = self.interval,
            location = self.location,
            limits = self.limits,
        );
        let path = everlog.dir().join(format!("{}.toml", self.version));
        std::fs::write(&path, text).expect("write the job");
        path.display().to_string()
    }
}

fn state(everlog: &Everlog) -> String {
    format!("file://{}/jobs", everlog.dir().display())
}

fn file(everlog: &Everlog, name: &str) -> PathBuf {
    everlog.dir().join(name)
}

fn jsonl(everlog: &Everlog, name: &str) -> String {
    format!(
        "type = \"jsonl\"\npath = \"{}\"",
        file(everlog, name).display()
    )
}

fn lines(everlog: &Everlog, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file(everlog, name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// One row, whatever form its times have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    end: i64,
    user: String,
    start: i64,
    views: u64,
    purchases: u64,
}

fn row(line: &str) -> Row {
    let json: Value = serde_json::from_str(line).expect("a row");
    let time = |name: &str| {
        let text = json[name].as_str().expect("a time");
        chrono::DateTime::parse_from_rfc3339(text)
            .expect("RFC 3339")
            .timestamp_millis()
    };
    Row {
        end: time("session_end"),
        user: json["user_id"].as_str().expect("a user").to_owned(),
        start: time("session_start"),
        views: json["views"].as_u64().expect("a count"),
        purchases: json["purchases"].as_u64().expect("a count"),
    }
}

fn rows(lines: &[String]) -> Vec<Row> {
    lines.iter().map(|line| row(line)).collect()
}

/// The table of the job's versions.
async fn job_table(everlog: &Everlog, table: &str) -> JobTable {
    let catalog = catalog::connect_existing(&everlog.catalog)
        .await
        .expect("the catalog");
    let deps = ArchiveDeps {
        catalog,
        clock: Arc::new(SystemClock::default()),
        ids: Arc::new(RandomIds),
    };
    let table = JobTable::open(deps, "everlog", table, "sessions").await;
    table.expect("the table").expect("it is there")
}

/// What a snapshot holds, in the order of the commits, each row as JSON.
async fn table_lines(table: &JobTable, snapshot_id: Option<i64>) -> Vec<String> {
    let scan = table.scan(snapshot_id, None).await.expect("a scan");
    let batches: Vec<_> = scan.batches().try_collect().await.expect("the rows");
    let mut text = Vec::new();
    for batch in batches {
        let lines = TextLines::new(&batch).expect("lines");
        lines.append(0, lines.len(), &mut text).expect("lines");
    }
    let text = String::from_utf8(text).expect("UTF-8");
    text.lines().map(str::to_owned).collect()
}

/// The rows of a version's branch.
async fn table_rows(everlog: &Everlog, table: &str, version: &str) -> Vec<Row> {
    let table = job_table(everlog, table).await;
    let state = table.state().await.expect("its state");
    rows(&table_lines(&table, state.versions[version].head).await)
}

/// The rows of a topic, per key in the order of the log, all of them sorted.
fn topic_rows(broker: &Broker, topic: &str) -> Vec<Row> {
    let mut all = Vec::new();
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    for record in broker.dump(topic).into_values().flatten() {
        let value = String::from_utf8(record.value.expect("a value")).expect("UTF-8");
        let row = row(&value);
        assert_eq!(record.key.as_deref(), Some(row.user.as_bytes()));
        let before = last.insert(row.user.clone(), row.end);
        assert!(before.is_none_or(|end| end < row.end), "{row:?}");
        all.push(row);
    }
    all.sort();
    all
}

#[tokio::test]
async fn history_live_and_both_give_the_same_rows_on_rest_catalog_and_s3() {
    let (broker, topic) = (broker(), "process.tiers");
    broker.create(topic, 3, &[]).await;
    let setup = Setup::new(&kafka().bootstrap, &[topic]);
    let (live, history) = (Everlog::local(&setup), Everlog::local(&setup));
    let s3 = S3::start();
    let catalog = RestCatalog::start(&s3);
    let both = Everlog::rest(&setup, &catalog, &s3);
    let mut clicks = Clicks::new(3);
    let feed = broker.producer(&[]);

    live.archive(); // of an empty topic
    clicks.produce(&feed, topic, 4_000);
    both.archive();
    clicks.produce(&feed, topic, 3_000);
    history.archive();

    let job = |everlog: &Everlog, version, sink, location: String| {
        Sessions {
            topic,
            version,
            sink,
            location,
            interval: "500ms",
            limits: "",
        }
        .write(everlog)
    };
    let sinks = |everlog: &Everlog| {
        format!(
            "{}\nlate = \"jsonl:{}\"\ndead_letter = \"jsonl:{}\"",
            jsonl(everlog, "rows"),
            file(everlog, "late").display(),
            file(everlog, "dead").display()
        )
    };
    let alone = job(&history, "v1", sinks(&history), state(&history));
    history.ok(&["process", &alone, "--until", "snapshot", "--drain"]);
    let expected = lines(&history, "rows");
    let sorted = |everlog: &Everlog, name: &str| {
        let mut all = lines(everlog, name);
        all.sort();
        all
    };
    assert!(expected.len() > 500, "{} sessions", expected.len());
    assert!(!lines(&history, "late").is_empty() && !lines(&history, "dead").is_empty());
    assert!(rows(&expected).is_sorted(), "by end, user, start");

    let of_kafka = job(&live, "v1", sinks(&live), state(&live));
    live.ok(&["process", &of_kafka, "--until", "now", "--drain"]);
    assert_eq!(lines(&live, "rows"), expected, "from Kafka alone");
    for side in ["late", "dead"] {
        assert_eq!(sorted(&live, side), sorted(&history, side), "{side}");
    }

    let s3_state = "s3://warehouse/jobs".to_owned();
    let of_both = job(&both, "v1", sinks(&both), s3_state.clone());
    both.ok(&["process", &of_both, "--until", "now", "--drain"]);
    assert_eq!(lines(&both, "rows"), expected, "from S3, then Kafka");
    for side in ["late", "dead"] {
        assert_eq!(sorted(&both, side), sorted(&history, side), "{side}");
    }

    let iceberg = "type = \"iceberg\"\ntable = \"sessions\"".to_owned();
    let into_table = job(&both, "v2", iceberg, s3_state.clone());
    both.ok(&["process", &into_table, "--until", "now", "--drain"]);
    let in_table = table_rows(&both, "sessions", "v2").await;
    assert_eq!(in_table, rows(&expected), "in the table");

    let kafka = "type = \"kafka\"\ntopic = \"process.sessions\"".to_owned();
    let into_topic = job(&both, "v3", kafka, s3_state);
    both.ok(&["process", &into_topic, "--until", "now", "--drain"]);
    let in_topic = topic_rows(&broker, "process.sessions.v3");
    assert_eq!(in_topic, rows(&expected), "in the topic");
}

#[tokio::test]
async fn killed_at_every_fail_point_the_outputs_are_those_of_an_uninterrupted_run() {
    let (broker, topic) = (broker(), "process.killed");
    broker.create(topic, 2, &[]).await;
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    let mut clicks = Clicks::new(2);
    let feed = broker.producer(&[]);
    clicks.produce(&feed, topic, 2_000);
    everlog.archive();
    clicks.produce(&feed, topic, 1_000);

    // slow enough for many epochs, of which a kill may meet the third
    let write = |version: &str, sink: String| {
        Sessions {
            topic,
            version,
            sink,
            location: state(&everlog),
            interval: "100ms",
            limits: "rate = 3000",
        }
        .write(&everlog)
    };
    let whole = write("whole", jsonl(&everlog, "whole"));
    everlog.ok(&["process", &whole, "--until", "now", "--drain"]);
    let expected = rows(&lines(&everlog, "whole"));
    assert!(expected.len() > 200, "{} sessions", expected.len());

    let points = job_points();
    assert!(points.len() >= 12, "fail points are missing: {points:?}");
    let mut never = Vec::new();
    for (n, point) in points.into_iter().enumerate() {
        let mut sinks = vec![("t", "type = \"iceberg\"\ntable = \"killed\"".to_owned())];
        if point.starts_with("process::") {
            sinks.push(("f", jsonl(&everlog, &format!("f{n}"))));
            sinks.push(("k", "type = \"kafka\"\ntopic = \"process.out\"".to_owned()));
        }
        for (kind, sink) in sinks {
            let version = format!("{kind}{n}");
            let job = write(&version, sink);
            let args = ["process", job.as_str(), "--until", "now", "--drain"];
            for hit in [1, 3] {
                let running = everlog.start(&args, &format!("{point}@{hit}"));
                match running.wait(PATIENCE) {
                    None => {}
                    Some(0) => never.push(format!("{point}@{hit}, {kind}")),
                    Some(status) => panic!("{point}@{hit}, {kind}: ended with {status}"),
                }
            }
            everlog.ok(&args);
            let found = match kind {
                "t" => table_rows(&everlog, "killed", &version).await,
                "f" => rows(&lines(&everlog, &version)),
                _ => topic_rows(&broker, &format!("process.out.{version}")),
            };
            let mut expected = expected.clone();
            if kind == "k" {
                expected.sort();
            }
            assert_eq!(found, expected, "killed at {point}, {kind}");
        }
    }
    // each is met once; those at the start or the end of a run are not met three times
    let missed: Vec<_> = never.iter().filter(|p| p.contains("@1,")).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

#[tokio::test]
async fn a_live_job_is_killed_stopped_and_watched_and_goes_on() {
    let (broker, topic) = (broker(), "process.live");
    broker.create(topic, 2, &[]).await;
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    let mut clicks = Clicks::new(2);
    let feed = broker.producer(&[]);
    clicks.produce(&feed, topic, 1_000);
    everlog.archive();
    let write = |version: &str| {
        Sessions {
            topic,
            version,
            sink: jsonl(&everlog, version),
            location: state(&everlog),
            interval: "200ms",
            limits: "",
        }
        .write(&everlog)
    };
    let job = write("live");
    for round in 0..4 {
        let port = free_ports(1);
        let address = format!("127.0.0.1:{port}");
        let running = everlog.start(&["process", &job, "--http", &address], "");
        let before = lines(&everlog, "live").len();
        clicks.produce(&feed, topic, 500);
        eventually("new rows", PATIENCE, || {
            lines(&everlog, "live").len() > before
        });
        let metrics = get(port, "/metrics").expect("metrics").1;
        let named = "everlog_processor_records_total{name=\"sessions\",version=\"live\"}";
        assert!(metrics.contains(named), "{metrics}");
        assert_eq!(get(port, "/healthz").expect("health").0, 200);
        if round % 2 == 0 {
            running.kill();
        } else {
            assert_eq!(running.stop(Duration::from_secs(30)), Some(0));
        }
    }
    everlog.ok(&["process", &job, "--until", "now", "--drain"]);
    let whole = write("whole");
    everlog.ok(&["process", &whole, "--until", "now", "--drain"]);
    assert_eq!(lines(&everlog, "live"), lines(&everlog, "whole"));

    // what a drained job says, and what a later one of the same version
    let again = everlog.fails(&["process", &job, "--until", "now"], 2);
    assert!(again.contains("was drained"), "{again}");
}

#[tokio::test]
async fn a_job_is_checked_and_shown_as_flink_has_it() {
    let (broker, topic) = (broker(), "process.checked");
    broker.create(topic, 1, &[]).await;
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    let mut clicks = Clicks::new(1);
    let feed = broker.producer(&[]);
    let job = Sessions {
        topic,
        version: "v1",
        sink: "type = \"iceberg\"\ntable = \"sessions\"".to_owned(),
        location: state(&everlog),
        interval: "10s",
        limits: "",
    }
    .write(&everlog);
    let early = everlog.ok(&["process", "--check", &job]);
    assert!(early.contains("replay        not estimated: "), "{early}");
    clicks.produce(&feed, topic, 2_000);
    everlog.archive();
    let checked = everlog.ok(&["process", "--check", &job]);
    for part in [
        "job           sessions version v1",
        "output        iceberg:sessions",
        "session, ends after a pause of 30m",
        "session_end TIMESTAMP_LTZ(3)",
        "replay        2,000 records in ",
        "unusable      ",
    ] {
        assert!(checked.contains(part), "{part} in\n{checked}");
    }
    let flink = everlog.ok(&["process", "--flink", &job]);
    for part in [
        "CREATE TABLE `process_checked`",
        "'scan.watermark.emit.strategy' = 'on-event'",
        "INSERT INTO `sessions`",
        "SESSION(`ts`, INTERVAL '30' MINUTE)",
    ] {
        assert!(flink.contains(part), "{part} in\n{flink}");
    }
    assert!(
        !std::path::Path::new(&file(&everlog, "jobs")).exists(),
        "nothing was begun"
    );

    let text = std::fs::read_to_string(&job).expect("the job");
    let wrong = text.replace("out_of_orderness = \"30s\"", "out_of_orderness = \"soon\"");
    std::fs::write(&job, wrong).expect("write");
    let said = everlog.fails(&["process", &job], 2);
    assert!(said.contains("v1.toml"), "{said}");
    std::fs::write(&job, text.replace("count(*)", "now()")).expect("write");
    let said = everlog.refuses(&["process", "--check", &job], 2);
    assert!(said.contains("now()"), "{said}");
}

/// The job of the README and what it makes version 2 of it by, word for word.
const README: &str = include_str!("../../README.md");

/// Writes the README's job as `version`, with sessions that end after so many minutes; gives its path.
fn of_readme(everlog: &Everlog, version: &str, minutes: &str) -> String {
    let (_, rest) = README
        .split_once("cat > sessions.toml <<'TOML'\n")
        .expect("a job");
    let (job, rest) = rest.split_once("\nTOML\n").expect("its end");
    let second =
        "sed -e 's/v1/v2/g' -e \"s/'30' MINUTE/'20' MINUTE/g\" sessions.toml > sessions-v2.toml";
    assert!(rest.contains(second), "version 2 is made otherwise now");
    let text = job
        .replace("v1", version)
        .replace("'30' MINUTE", &format!("'{minutes}' MINUTE"))
        // what is this test's own: its bucket, its folder, and that it is in a hurry
        .replace("s3://my-bucket/jobs", "s3://warehouse/jobs")
        .replace("jsonl:", &format!("jsonl:{}/", everlog.dir().display()))
        .replace("[checkpoint]", "[checkpoint]\ninterval = \"500ms\"");
    let path = everlog.dir().join(format!("sessions-{version}.toml"));
    std::fs::write(&path, text).expect("write the job");
    path.display().to_string()
}

#[tokio::test]
async fn the_case_of_the_readme_on_kafka_and_s3() {
    let (broker, topic) = (broker(), "clickstream.raw");
    broker.create(topic, 3, &[]).await;
    let s3 = S3::start();
    let catalog = RestCatalog::start(&s3);
    let everlog = Everlog::rest(&Setup::new(&kafka().bootstrap, &[topic]), &catalog, &s3);
    let mut clicks = Clicks::new(3);
    let feed = broker.producer(&[]);
    clicks.produce(&feed, topic, 6_000);
    everlog.archive();
    let archiver = everlog.start(&["archive"], "");

    let (v1, v2) = (
        of_readme(&everlog, "v1", "30"),
        of_readme(&everlog, "v2", "20"),
    );
    let show = || -> Value {
        let shown = everlog.ok(&["job", "show", &v1, "--json"]);
        serde_json::from_str(&shown).expect("JSON")
    };
    let of_version = |version: &str| {
        let job = show();
        let versions = job["versions"].as_array().expect("versions").clone();
        let found = versions.into_iter().find(|v| v["version"] == version);
        found.unwrap_or(Value::Null)
    };
    // all that was produced is behind its output's marker, or is nothing that gives rows yet
    let at_the_end = |version: &str| {
        let shown = of_version(version);
        let positions = shown["checkpoint"]["positions"].as_object();
        let read = positions.map_or(0, |all| {
            all.values().filter_map(|at| at["offset"].as_i64()).sum()
        });
        let ends: i64 = (0..3).map(|p| broker.bounds(topic, p).1).sum();
        shown["live"]["phase"] == "live" && shown["doing"] == "live" && read == ends
    };

    // version 1, killed while it is live
    let checked = everlog.ok(&["process", "--check", &v1]);
    assert!(checked.contains("6,000 records in "), "{checked}");
    let first = everlog.start(&["process", &v1], "");
    eventually("version 1 is live", PATIENCE, || {
        everlog.run(&["job", "show", &v1]).status.success() && at_the_end("v1")
    });
    clicks.produce(&feed, topic, 1_000);
    first.kill();
    let first = everlog.start(&["process", &v1], "");

    // version 2 beside it, killed in its replay
    let killed = everlog.start(&["process", &v2], "process::after_epoch_file@1");
    assert_eq!(killed.wait(PATIENCE), None, "it was to be killed");
    let second = everlog.start(&["process", &v2], "");
    clicks.produce(&feed, topic, 1_000);
    eventually("both are live", PATIENCE, || {
        at_the_end("v1") && at_the_end("v2")
    });

    // version 1 against its own replay, row by row
    let again = of_readme(&everlog, "v3", "30");
    everlog.ok(&["process", &again, "--until", "now"]);
    let compared = |left: &str, right: &str| -> Value {
        let compared = everlog.ok(&["compare", &v1, left, right, "--json"]);
        serde_json::from_str(&compared).expect("JSON")
    };
    let same = compared("v1", "v3");
    assert_eq!(same["mode"], "same", "{same}");
    assert!(same["same"]["equal"].as_u64() > Some(500), "{same}");

    // what the shorter gap changed: sessions, and no click
    let early = everlog.fails(&["promote", &v1, "v2"], 1);
    assert!(early.contains("compare"), "{early}");
    let changed = compared("v1", "v2");
    assert_eq!(changed["mode"], "changed", "{changed}");
    assert_eq!(changed["agree"], true, "{changed}");
    assert!(changed["groups"]["split"].as_u64() > Some(50), "{changed}");
    assert_eq!(changed["groups"]["not_conserved"], 0, "{changed}");
    let measures = changed["measures"].as_array().expect("measures");
    let names: Vec<_> = measures.iter().map(|m| m["column"].as_str()).collect();
    assert_eq!(names, [Some("clicks"), Some("purchases")]);

    let table = job_table(&everlog, "sessions").await;
    let before = table.state().await.expect("its state");
    assert_eq!(before.active, "v1");
    assert_eq!(before.main, before.versions["v1"].head);
    everlog.ok(&["promote", &v1, "v2"]);
    let after = table.state().await.expect("its state");
    assert_eq!(after.active, "v2");
    assert_eq!(after.main, after.versions["v2"].head);
    let old = table_lines(&table, Some(after.refs["before-v2"].snapshot_id)).await;
    let new = table_lines(&table, after.main).await;
    assert!(new.len() > old.len() && old.len() > 500, "time travel");

    // main goes on with version 2, and version 1 beside it
    clicks.produce(&feed, topic, 1_000);
    eventually("both go on", PATIENCE, || {
        at_the_end("v1") && at_the_end("v2")
    });
    assert_eq!(first.stop(Duration::from_secs(60)), Some(0));
    assert_eq!(second.stop(Duration::from_secs(60)), Some(0));
    let last = table.state().await.expect("its state");
    assert_eq!(last.main, last.versions["v2"].head);
    assert!(table_lines(&table, last.main).await.len() > new.len());
    let v1_rows = table_lines(&table, last.versions["v1"].head).await;
    assert!(v1_rows.starts_with(&old) && v1_rows.len() > old.len());

    everlog.ok(&["rollback", &v1]);
    let back = table.state().await.expect("its state");
    assert_eq!(back.main, back.versions["v1"].head);
    everlog.ok(&["job", "drop", &v1, "v2", "--yes"]);
    assert_eq!(of_version("v2"), Value::Null);
    assert_eq!(archiver.stop(Duration::from_secs(60)), Some(0));
}
