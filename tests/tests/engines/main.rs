//! `docs/engines.md`, block by block, on real engines, a REST catalog and S3: each answers what the log holds, and what
//! `everlog replay` gives, byte for byte.
//!
//! pyiceberg and DuckDB run in `make test`; Spark, Trino and Flink in `make engines`, which names them in `EVERLOG_ENGINES`.

mod ask;
mod page;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use everlog_tests::broker::{Broker, Feed, Message};
use everlog_tests::compare::{Log, assert_same, count};
use everlog_tests::everlog::{Everlog, Setup};
use everlog_tests::services::{
    Flink, Kafka, Postgres, RestCatalog, S3, S3_ACCESS_KEY, S3_SECRET_KEY, Trino, script,
};
use everlog_tests::values::{COLUMNS, values};
use serde_json::Value;

use ask::{Answer, Engine, program, selected, shell};
use rows::assert_reads;

const TOPIC: &str = "orders";
const TABLE: &str = "lake.everlog.orders";
const PARTITIONS: i32 = 3;
const DECODE: &str = "[decode.orders]\nformat = \"json\"\ncolumns = { user_id = \"STRING\", amount = \"DECIMAL(10, 2)\" }";

/// Orders, and what else a log holds: tombstones, keys that are no text, headers of all kinds.
fn fill(feed: &Feed, numbers: std::ops::Range<u32>) {
    for n in numbers {
        let key = [n.to_string().as_bytes(), &[0xff, 0]].concat();
        let value = format!(
            "{{\"user_id\":\"user-{}\",\"amount\":{}.25}}",
            n % 7,
            n % 50
        );
        let headers = match n % 5 {
            0 => vec![
                ("a", Some(&b"\x00\xff"[..])),
                ("b", None),
                ("a", Some(&b""[..])),
            ],
            _ => Vec::new(),
        };
        feed.send(
            TOPIC,
            &Message {
                partition: i32::try_from(n).expect("small") % PARTITIONS,
                key: (n % 11 != 0).then_some(&key[..]),
                value: (n % 13 != 0).then_some(value.as_bytes()),
                timestamp: Some(1_769_000_000_000 + i64::from(n) * 1_001),
                headers,
            },
        );
    }
    feed.flush();
}

/// A lake with two states: of then, and of now.
struct Lake {
    everlog: Everlog,
    setup: Setup,
    broker: Broker,
    /// Its own: every lake here has the page's topic.
    _kafka: Kafka,
    then: Log,
    now: Log,
    /// The snapshot of then.
    id: String,
    /// A moment at which it was the newest.
    time: DateTime<Utc>,
}

impl Lake {
    /// Fills it; `make` says on what catalog.
    async fn fill(make: impl FnOnce(&Setup) -> Everlog) -> Self {
        let kafka = Kafka::start();
        let broker = Broker::new(&kafka.bootstrap);
        broker.create(TOPIC, PARTITIONS, &[]).await;
        let setup = Setup::new(&kafka.bootstrap, &[TOPIC]).replay(DECODE);
        let everlog = make(&setup);
        let feed = broker.producer(&[]);
        fill(&feed, 0..400);
        everlog.archive();
        let then = broker.dump(TOPIC);
        let id = snapshots(&everlog).pop().expect("a snapshot");
        let pause = Duration::from_millis(1_100);
        tokio::time::sleep(pause).await;
        let time = Utc::now();
        tokio::time::sleep(pause).await;
        for round in 1..4 {
            fill(&feed, round * 400..round * 400 + 300);
            everlog.archive();
        }
        Self {
            now: broker.dump(TOPIC),
            _kafka: kafka,
            everlog,
            setup,
            broker,
            then,
            id,
            time,
        }
    }

    /// What stands on the page for this lake's own.
    fn names(&self) -> Vec<(&'static str, String)> {
        let property = |key: &str| self.everlog.catalog.get(key).cloned().unwrap_or_default();
        let store = property("s3.endpoint").replace("http://", "");
        vec![
            ("http://catalog:8181", property("uri")),
            ("minio:9000", store),
            ("ACCESS_KEY", S3_ACCESS_KEY.to_owned()),
            ("SECRET_KEY", S3_SECRET_KEY.to_owned()),
            ("6341277311420927", self.id.clone()),
            (
                "2026-01-31 08:00:00",
                self.time.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
            ),
            (
                "2026-01-31T08:00:00",
                self.time.format("%Y-%m-%dT%H:%M:%S%.3f").to_string(),
            ),
            ("1769846400000", self.time.timestamp_millis().to_string()),
        ]
    }

    /// An answer by its name on the page.
    fn answer(&self, name: &str) -> Answer {
        let one = |number: usize| vec![vec![Some(number.to_string())]];
        match name {
            "now" => one(count(&self.now)),
            "then" => one(count(&self.then)),
            "partitions" => {
                let rows = self.now.iter().map(|(partition, records)| {
                    let last = records.last().expect("records").offset;
                    let row = [
                        i64::from(*partition),
                        i64::try_from(records.len()).expect("few"),
                        last,
                    ];
                    row.map(|number| Some(number.to_string())).to_vec()
                });
                rows.collect()
            }
            "user-1" => one(self.users()["user-1"].0),
            "users" => {
                let users = self.users().into_iter();
                let row = |(user, (orders, cents)): (String, (usize, u64))| {
                    let amount = format!("{}.{:02}", cents / 100, cents % 100);
                    vec![Some(user), Some(orders.to_string()), Some(amount)]
                };
                users.map(row).collect()
            }
            "snapshots" => {
                let ids = snapshots(&self.everlog).into_iter();
                ids.map(|id| vec![Some(id)]).collect()
            }
            other => panic!("no answer is called {other}"),
        }
    }

    /// Orders of each user, and their amounts in cents: from the log's bytes.
    fn users(&self) -> BTreeMap<String, (usize, u64)> {
        let mut users: BTreeMap<String, (usize, u64)> = BTreeMap::new();
        for value in self
            .now
            .values()
            .flatten()
            .filter_map(|record| record.value.as_ref())
        {
            let order: Value = serde_json::from_slice(value).expect("JSON");
            let user = order["user_id"].as_str().expect("a user").to_owned();
            let amount = order["amount"].as_f64().expect("an amount");
            let sum = users.entry(user).or_default();
            sum.0 += 1;
            sum.1 += (amount * 100.0) as u64;
        }
        users
    }

    /// Runs an engine's blocks of the page and compares their answers. Gives what its sessions begin with.
    #[track_caller]
    fn run_page(&self, runner: &str, names: &[(&str, String)], engine: &Engine) {
        let blocks = page::of(runner, names);
        let program = program(&self.everlog, &blocks);
        let answers = engine.ask(&self.everlog, &program.text);
        assert_eq!(
            answers.len(),
            program.answers.len(),
            "{runner}: {answers:?}"
        );
        for (name, mut found) in program.answers.iter().zip(answers) {
            let mut expected = self.answer(name);
            if name == "snapshots" {
                found.iter_mut().for_each(|row| row.truncate(1));
            }
            expected.sort();
            found.sort();
            assert_eq!(found, expected, "{runner}: {name}");
        }
        println!("{runner}: {} answers of the page", program.answers.len());
    }

    /// That this is what replays give, too.
    #[track_caller]
    fn assert_replays(&self) {
        let now = self.everlog.replay(TOPIC, &["--until", "snapshot"]);
        assert_same(&self.now, &now, "replay");
        let then = ["--snapshot", &self.id, "--until", "snapshot"];
        let then = self.everlog.replay(TOPIC, &then);
        assert_same(&self.then, &then, "replay of then");
    }
}

/// Snapshots of a topic's table, oldest first.
fn snapshots(everlog: &Everlog) -> Vec<String> {
    let sql = "SELECT snapshot_id FROM \"orders$snapshots\" ORDER BY committed_at";
    let text = everlog.ok(&["sql", "--format", "csv", sql]);
    text.lines().skip(1).map(str::to_owned).collect()
}

/// The blocks of a runner in a language.
fn text(runner: &str, names: &[(&str, String)], language: &str) -> String {
    let blocks = page::of(runner, names).into_iter();
    let blocks = blocks.filter(|block| block.language == language);
    blocks.map(|block| block.text).collect()
}

/// The first block of a runner: what a session begins with.
fn connect(runner: &str, names: &[(&str, String)]) -> String {
    page::of(runner, names).remove(0).text
}

#[test]
fn the_page_has_a_runner_for_each_block_and_names_the_versions_that_are_tested() {
    let text = page::read("engines.md");
    let blocks = page::blocks(&text);
    let runners: BTreeSet<&str> = blocks.iter().map(|block| block.runner.as_str()).collect();
    assert_eq!(runners, BTreeSet::from(page::RUNNERS));
    for placeholder in page::STANDS_FOR {
        assert!(text.contains(placeholder), "{placeholder}");
    }
    for block in &blocks {
        assert!(
            ["sql", "python", "properties", "sh"].contains(&block.language.as_str()),
            "line {}: {}",
            block.line,
            block.language
        );
    }
    // the versions that it names are those that are pinned
    let pinned = |file: &str| {
        std::fs::read_to_string(script(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
    };
    let version = |file: &str, before: &str, after: &str| {
        let pinned = pinned(file);
        let rest = pinned
            .split_once(before)
            .unwrap_or_else(|| panic!("{before} in {file}"))
            .1;
        rest.split_once(after).expect("an end").0.to_owned()
    };
    let iceberg = version("pom/spark.xml", "<iceberg>", "<");
    assert_eq!(iceberg, version("pom/flink-iceberg.xml", "<iceberg>", "<"));
    let spark = version("spark.sh", "VERSION=", "\n");
    assert_eq!(spark, version("pom/spark.xml", "<spark>", "<"));
    let flink = version("pom/flink.xml", "<flink>", "<");
    let postgres = version(
        "pom/spark.xml",
        "<artifactId>postgresql</artifactId><version>",
        "<",
    );
    for named in [
        format!(
            "pyiceberg {}",
            version("requirements.txt", "pyiceberg==", "\n")
        ),
        format!("DuckDB {}", version("requirements.txt", "duckdb==", "\n")),
        format!("Spark {spark}, Iceberg {iceberg}"),
        format!("Trino {}", version("trino.sh", "VERSION=", "\n")),
        format!("Flink {flink}, Iceberg {iceberg}"),
        format!("iceberg-spark-runtime-4.0_2.13:{iceberg}"),
        format!("iceberg-aws-bundle:{iceberg}"),
        format!("iceberg-flink-runtime-2.1-{iceberg}.jar"),
        format!("org.postgresql:postgresql:{postgres}"),
    ] {
        assert!(text.contains(&named), "{named}");
    }
}

#[tokio::test]
async fn every_engine_reads_what_is_in_the_log() {
    let s3 = S3::start();
    let catalog = RestCatalog::start(&s3);
    let mut lake = Lake::fill(|setup| Everlog::rest(setup, &catalog, &s3)).await;
    let names = lake.names();
    lake.assert_replays();
    for block in page::of("everlog", &names) {
        let said = shell(&lake.everlog, &block.text);
        for id in snapshots(&lake.everlog) {
            assert!(said.contains(&id), "{id}: {said}");
        }
    }

    // in the page's order: pyiceberg makes the tag that the others read
    let mut engines = Vec::new();
    if selected("pyiceberg") {
        let begin = connect("pyiceberg", &names);
        engines.push(("pyiceberg", Engine::PyIceberg, begin));
    }
    if selected("duckdb") {
        let begin = connect("duckdb", &names);
        engines.push(("duckdb", Engine::DuckDb, begin));
    }
    if selected("spark") {
        let properties = text("spark", &names, "properties");
        engines.push(("spark", Engine::Spark(properties), String::new()));
    }
    if selected("trino") {
        let trino = Trino::start("lake", &text("trino", &names, "properties"));
        engines.push(("trino", Engine::Trino(Box::new(trino)), String::new()));
    }
    if selected("flink") {
        let begin = connect("flink", &names);
        let flink = Flink::start(&["--iceberg", "parallelism.default=1"]);
        engines.push(("flink", Engine::Flink(Box::new(flink)), begin));
    }
    let [(_, Engine::PyIceberg, in_python), _, ..] = engines.as_slice() else {
        panic!("pyiceberg, which makes the tag, and another engine are needed");
    };
    let in_python = in_python.clone();
    for (runner, engine, begin) in &engines {
        lake.run_page(runner, &names, engine);
        let id = lake.id.as_str();
        let expected = [(None, &lake.now), (Some(id), &lake.then)];
        assert_reads(engine, &lake.everlog, begin, TABLE, &expected);
    }

    // snapshots expire, manifests are merged; the tagged snapshot stays
    let tight = lake.everlog.beside(
        &lake
            .setup
            .clone()
            .archive("snapshots_max = 2")
            .archive("snapshots_min = 1"),
    );
    // sixteen manifests become one with the next commit, and what came before were a few commits
    let feed = lake.broker.producer(&[]);
    for round in 0..18 {
        fill(&feed, 2_000 + round * 20..2_020 + round * 20);
        tight.archive();
    }
    tight.ok(&["maintain", TOPIC]);
    lake.now = lake.broker.dump(TOPIC);
    let left = snapshots(&lake.everlog);
    assert!(left.contains(&lake.id) && left.len() <= 4, "{left:?}");
    let count = "print(len(table.inspect.manifests()))\n";
    let manifests = Engine::PyIceberg.ask(&lake.everlog, &format!("{in_python}{count}"));
    let manifests: usize = manifests[1][0][0]
        .as_deref()
        .expect("a number")
        .parse()
        .expect("a number");
    assert!(
        manifests < 16,
        "{manifests} manifests of more than 18 commits: none were merged"
    );
    lake.assert_replays();
    for (_, engine, begin) in &engines {
        let id = lake.id.as_str();
        let expected = [(None, &lake.now), (Some(id), &lake.then)];
        assert_reads(engine, &lake.everlog, begin, TABLE, &expected);
    }

    // Spark writes every file anew
    let Some((_, spark, _)) = engines.iter().find(|(name, _, _)| *name == "spark") else {
        return;
    };
    let rewrite = "CALL lake.system.rewrite_data_files(table => 'everlog.orders', options => map('rewrite-all', 'true'));\n";
    let rewritten = spark.ask(&lake.everlog, rewrite);
    assert!(
        rewritten[0][0][0].as_deref() > Some("0"),
        "nothing was rewritten: {rewritten:?}"
    );
    lake.assert_replays();
    for (_, engine, begin) in &engines {
        let id = lake.id.as_str();
        let expected = [(None, &lake.now), (Some(id), &lake.then)];
        assert_reads(engine, &lake.everlog, begin, TABLE, &expected);
    }
    // and the archiver goes on
    fill(&feed, 3_000..3_100);
    lake.everlog.archive();
    lake.now = lake.broker.dump(TOPIC);
    lake.assert_replays();
    let (_, engine, begin) = &engines[0];
    assert_reads(engine, &lake.everlog, begin, TABLE, &[(None, &lake.now)]);
}

/// The columns of `odd` in each engine's words, so that all give the same text.
fn probes(engine: &Engine) -> [&'static str; 10] {
    match engine {
        Engine::DuckDb => [
            "s",
            "n",
            "b",
            "d",
            "m",
            "CAST(day AS VARCHAR)",
            "epoch_us(\"at\")",
            "epoch_us(wall)",
            "lower(hex(raw))",
            "\"odd/na~me\"",
        ],
        Engine::Spark(_) => [
            "s",
            "n",
            "b",
            "d",
            "m",
            "CAST(day AS STRING)",
            "unix_micros(at)",
            "unix_micros(CAST(wall AS TIMESTAMP))",
            "lower(hex(raw))",
            "`odd/na~me`",
        ],
        Engine::Trino(_) => [
            "s",
            "n",
            "b",
            "d",
            "m",
            "CAST(day AS VARCHAR)",
            "CAST(round(to_unixtime(at) * 1000000) AS BIGINT)",
            "CAST(round(to_unixtime(with_timezone(wall, 'UTC')) * 1000000) AS BIGINT)",
            "lower(to_hex(raw))",
            "\"odd/na~me\"",
        ],
        Engine::PyIceberg | Engine::Flink(_) => unreachable!("there is no view for it"),
    }
}

/// The same in everlog's words.
const PROBES: [&str; 10] = [
    "s",
    "n",
    "b",
    "d",
    "CAST(m AS VARCHAR)",
    "CAST(day AS VARCHAR)",
    "CAST(\"at\" AS BIGINT) * 1000",
    "CAST(wall AS BIGINT)",
    "encode(raw, 'hex')",
    "\"odd/na~me\"",
];

/// Where an engine is known to differ, as docs/sql.md says: Spark passes over what stands behind the JSON.
fn is_known(engine: &Engine, value: Option<&[u8]>) -> bool {
    matches!(engine, Engine::Spark(_)) && value.is_some_and(|value| value.ends_with(b"}x"))
}

/// Text that is the same for the same double, and for the same truth.
fn normal(column: usize, cell: Option<&str>) -> Option<String> {
    let cell = cell?;
    Some(match column {
        2 => cell.to_lowercase(),
        3 => format!("{:?}", cell.parse::<f64>().expect("a number")),
        _ => cell.to_owned(),
    })
}

#[tokio::test]
async fn views_give_in_every_engine_what_everlog_gives() {
    let (s3, kafka, topic) = (S3::start(), Kafka::start(), "odd");
    let catalog = RestCatalog::start(&s3);
    let broker = Broker::new(&kafka.bootstrap);
    broker.create(topic, 1, &[]).await;
    let feed = broker.producer(&[]);
    let values = values();
    for value in &values {
        let value = value.as_deref();
        let message = Message {
            value,
            ..Message::default()
        };
        feed.send(topic, &message);
    }
    feed.flush();
    let columns = COLUMNS.map(|(name, of)| format!("{name:?} = {of:?}"));
    let lines = format!(
        "[decode.odd]\nformat = \"json\"\ncolumns = {{ {} }}",
        columns.join(", ")
    );
    let setup = Setup::new(&kafka.bootstrap, &[topic]).replay(&lines);
    let everlog = Everlog::rest(&setup, &catalog, &s3);
    everlog.archive();
    let probes_of_ours = (0..).zip(PROBES);
    let columns: Vec<String> = probes_of_ours
        .map(|(number, probe): (u32, &str)| format!("{probe} AS c{number}"))
        .collect();
    let sql = format!("SELECT {} FROM odd_v ORDER BY _offset", columns.join(", "));
    let ours = everlog.ok(&["sql", "--format", "jsonl", &sql]);
    let row = |line: &str| -> Vec<Value> {
        let row: Value = serde_json::from_str(line).expect("a row");
        let cells = (0..PROBES.len()).map(|number| row[format!("c{number}")].clone());
        cells.collect()
    };
    let ours: Vec<Vec<Value>> = ours.lines().map(row).collect();
    assert_eq!(ours.len(), values.len());

    let property = |key: &str| everlog.catalog[key].clone();
    let mut names: Vec<(&str, String)> = page::STANDS_FOR
        .map(|placeholder| (placeholder, "1".to_owned()))
        .to_vec();
    names[..4].clone_from_slice(&[
        ("http://catalog:8181", property("uri")),
        ("minio:9000", s3.endpoint.replace("http://", "")),
        ("ACCESS_KEY", S3_ACCESS_KEY.to_owned()),
        ("SECRET_KEY", S3_SECRET_KEY.to_owned()),
    ]);
    let mut engines = Vec::new();
    if selected("duckdb") {
        let begin = format!("{}SET TimeZone = 'UTC';\n", connect("duckdb", &names));
        engines.push(("duckdb", Engine::DuckDb, begin, "odd_v"));
    }
    if selected("spark") {
        let properties = text("spark", &names, "properties");
        let properties = format!("{properties}spark.sql.session.timeZone=UTC\n");
        engines.push(("spark", Engine::Spark(properties), String::new(), "odd_v"));
    }
    if selected("trino") {
        let trino = Trino::start("lake", &text("trino", &names, "properties"));
        let trino = Engine::Trino(Box::new(trino));
        engines.push(("trino", trino, String::new(), "lake.everlog.odd_v"));
    }
    assert!(!engines.is_empty(), "no engine was asked");
    for (name, engine, begin, view) in engines {
        let create = [
            "schema",
            "view",
            topic,
            "--engine",
            name,
            "--table",
            "lake.everlog.odd",
        ];
        let create = everlog.ok(&create);
        let select = probes(&engine).join(", ");
        let program = format!("{begin}{create}SELECT {select} FROM {view} ORDER BY _offset;\n");
        let mut theirs = engine.ask(&everlog, &program);
        let theirs = theirs.pop().expect("an answer");
        assert_eq!(theirs.len(), values.len(), "{engine:?}");
        let mut wrong = Vec::new();
        for (row, value) in values.iter().enumerate() {
            for (column, (name, _)) in COLUMNS.iter().enumerate() {
                let of = |value: &Value| match value {
                    Value::Null => None,
                    Value::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                };
                if is_known(&engine, value.as_deref()) {
                    continue;
                }
                let due = normal(column, of(&ours[row][column]).as_deref());
                let found = normal(column, theirs[row][column].as_deref());
                if due != found {
                    let value = value.as_deref().map(String::from_utf8_lossy);
                    wrong.push(format!("{name} of {value:?}: {found:?}, not {due:?}"));
                }
            }
        }
        assert!(
            wrong.is_empty(),
            "{engine:?}:\n{}\n{create}",
            wrong.join("\n")
        );
        println!("{engine:?}: {} values", values.len());
    }
}

#[tokio::test]
async fn engines_read_sql_catalogs_as_the_page_says() {
    let lake = Lake::fill(Everlog::local).await;
    let mut names = lake.names();
    let file = lake.everlog.dir().join("catalog.db").display().to_string();
    names.push(("/var/lib/everlog/catalog.db", file));
    for (runner, engine) in [
        ("pyiceberg-sqlite", Engine::PyIceberg),
        ("duckdb-sqlite", Engine::DuckDb),
    ] {
        if selected(runner.trim_end_matches("-sqlite")) {
            lake.run_page(runner, &names, &engine);
        }
    }
    if !selected("spark") && !selected("trino") {
        return;
    }

    let (s3, postgres) = (S3::start(), Postgres::start());
    let lake = Lake::fill(|setup| {
        let of_store = s3.properties();
        let mut properties = vec![
            ("type", "sql"),
            ("name", "everlog"),
            ("uri", &postgres.uri),
            ("warehouse", "s3://warehouse/lake"),
            ("namespace", "everlog"),
        ];
        properties.extend(
            of_store
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str())),
        );
        Everlog::with_properties(setup, &properties)
    })
    .await;
    let mut names = lake.names();
    let (user, place) = postgres.uri["postgres://".len()..]
        .split_once('@')
        .expect("a user");
    let (user, password) = user.split_once(':').expect("a password");
    names.extend([
        ("db:5432/lake", place.to_owned()),
        ("s3://warehouse/lake", "s3://warehouse/lake".to_owned()),
        ("DB_USER", user.to_owned()),
        ("DB_PASSWORD", password.to_owned()),
    ]);
    if selected("spark") {
        let properties = text("spark-postgres", &names, "properties");
        lake.run_page("spark-postgres", &names, &Engine::Spark(properties));
    }
    if selected("trino") {
        let trino = Trino::start("lake", &text("trino-postgres", &names, "properties"));
        lake.run_page("trino-postgres", &names, &Engine::Trino(Box::new(trino)));
    }
}
