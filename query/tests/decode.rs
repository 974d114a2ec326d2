//! Views of decoded values through a session: declared, found in a registry, at any time, and never failing for a value.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use everlog_common::TopicName;
use everlog_common::clock::{RandomIds, SystemClock};
use everlog_decode::registry::{Auth, Registry, RegistrySettings};
use everlog_decode::{Columns, SchemaId};
use everlog_query::{Lake, SchemaChoice, Session, SessionOptions, TopicFormat, TopicValues};
use support::{Record, World, error, plan, rows, try_rows, value};

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn json(columns: &[(&str, &str)]) -> TopicFormat {
    TopicFormat::Json(Columns::parse(columns.iter().copied()).unwrap())
}

fn record(offset: i64, value: Option<&[u8]>) -> Record {
    let mut record = Record::new(0, offset);
    record.value = value.map(<[u8]>::to_vec);
    record
}

async fn session(world: &World, values: TopicValues) -> Session {
    let lake = Lake {
        values: Arc::new(values),
        ..world.lake()
    };
    let options = SessionOptions {
        limits: world.limits(),
        ..SessionOptions::default()
    };
    Session::open(lake, options).await.unwrap()
}

const CLICKS: [(&str, &str); 4] = [
    ("user", "STRING NOT NULL"),
    ("n", "BIGINT"),
    ("at", "TIMESTAMP_LTZ(3)"),
    ("items", "ARRAY<ROW<id BIGINT, price DECIMAL(10, 2)>>"),
];

async fn clicks(world: &World) {
    world
        .append(
            "clicks.raw",
            &[
                record(0, Some(br#"{"user":"ann","n":1,"at":"2026-01-31T08:00:00Z","items":[{"id":1,"price":9.99}]}"#)),
                record(1, Some(br#"{"user":"bob","n":"many"}"#)),
                record(2, None),
            ],
        )
        .await;
    world
        .append(
            "clicks.raw",
            &[
                record(5, Some(b"\xff\xfe")),
                record(6, Some(br#"{"n":6}"#)),
                record(7, Some(br#"{"user":"eve","n":7,"items":[]}"#)),
            ],
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_topic_has_a_view_beside_its_table() {
    let world = World::new().await;
    clicks(&world).await;
    world.append("other", &[record(0, Some(b"x"))]).await;
    let session = session(
        &world,
        TopicValues::new([(topic("clicks.raw"), json(&CLICKS))], None),
    )
    .await;
    let names: Vec<String> = session
        .tables()
        .await
        .unwrap()
        .into_iter()
        .map(|t| t.name)
        .collect();
    assert_eq!(names, ["clicks_raw", "clicks_raw_v", "other"]);
    assert_eq!(
        rows(&session, "SELECT _topic, _partition, _offset, \"user\", n, _error FROM clicks_raw_v ORDER BY _offset").await,
        [
            ["clicks.raw", "0", "0", "ann", "1", "∅"],
            ["clicks.raw", "0", "1", "bob", "∅", "n: \"many\" is not a number, BIGINT is expected"],
            ["clicks.raw", "0", "2", "∅", "∅", "∅"],
            ["clicks.raw", "0", "5", "∅", "∅", "the value is no JSON: it is not UTF-8 at byte 0"],
            ["clicks.raw", "0", "6", "∅", "6", "user: is missing, and is NOT NULL"],
            ["clicks.raw", "0", "7", "eve", "7", "∅"],
        ]
    );
    assert_eq!(
        rows(
            &session,
            "SELECT items[1]['price'], at FROM clicks_raw_v WHERE \"user\" = 'ann'"
        )
        .await,
        [["9.99", "2026-01-31T08:00:00Z"]]
    );
    // joined with the table itself, and with another view of the same
    let joined = "SELECT count(*) FROM clicks_raw t JOIN clicks_raw_v v ON t.\"offset\" = v._offset WHERE v.n > 5 AND t.key IS NOT NULL";
    assert_eq!(value(&session, joined).await, "2");
    let columns = session.columns("clicks_raw_v").await.unwrap();
    assert_eq!(columns.field(0).name(), "_topic");
    let missing = error(&session, "SELECT * FROM other_v").await.to_string();
    assert!(
        missing.contains("other_v") && missing.contains("[decode.\"other\"]"),
        "{missing}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_on_kafkas_columns_prune_and_nothing_is_decoded_without_need() {
    let world = World::new().await;
    clicks(&world).await;
    let session = session(
        &world,
        TopicValues::new([(topic("clicks.raw"), json(&CLICKS))], None),
    )
    .await;
    let files = |plan: &str| plan.matches(".parquet").count();
    let all = plan(&session, "SELECT n FROM clicks_raw_v").await;
    let some = plan(&session, "SELECT n FROM clicks_raw_v WHERE _offset >= 5").await;
    assert!(all.contains("DecodeExec: columns=[n]"), "{all}");
    assert!(files(&some) < files(&all), "{all}\n{some}");
    for sql in [
        "SELECT count(*) FROM clicks_raw_v",
        "SELECT max(_offset) FROM clicks_raw_v",
        "SELECT _offset, _key FROM clicks_raw_v WHERE _offset > 1",
    ] {
        let plan = plan(&session, sql).await;
        assert!(!plan.contains("DecodeExec"), "{sql}\n{plan}");
    }
    assert_eq!(
        value(&session, "SELECT count(*) FROM clicks_raw_v").await,
        "6"
    );
    assert_eq!(
        value(&session, "SELECT max(_offset) FROM clicks_raw_v").await,
        "7"
    );
    assert_eq!(
        rows(&session, "SELECT n FROM clicks_raw_v LIMIT 3")
            .await
            .len(),
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_travels_as_its_table_does() {
    let world = World::new().await;
    let first = world
        .append("clicks", &[record(0, Some(br#"{"n":1}"#))])
        .await;
    world
        .append("clicks", &[record(1, Some(br#"{"n":2}"#))])
        .await;
    let values = TopicValues::new([(topic("clicks"), json(&[("n", "BIGINT")]))], None);
    let session = session(&world, values).await;
    assert_eq!(value(&session, "SELECT sum(n) FROM clicks_v").await, "3");
    let before = format!("SELECT sum(n) FROM clicks_v FOR VERSION AS OF {first}");
    assert_eq!(value(&session, &before).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_called_like_a_view_goes_before_it() {
    let world = World::new().await;
    world
        .append("clicks", &[record(0, Some(br#"{"n":1}"#))])
        .await;
    world
        .append("clicks_v", &[record(0, Some(b"x")), record(1, Some(b"y"))])
        .await;
    let values = TopicValues::new([(topic("clicks"), json(&[("n", "BIGINT")]))], None);
    let session = session(&world, values).await;
    assert_eq!(
        value(&session, "SELECT count(value) FROM clicks_v").await,
        "2"
    );
    let names: Vec<String> = session
        .tables()
        .await
        .unwrap()
        .into_iter()
        .map(|t| t.name)
        .collect();
    assert_eq!(names, ["clicks", "clicks_v"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_functions_and_operators_read_raw_values() {
    let world = World::new().await;
    clicks(&world).await;
    let session = world.session().await;
    for (filter, count) in [
        ("value ->> 'user' = 'ann'", "1"),
        ("'ann' = value ->> 'user'", "1"),
        ("value ->> 'user' LIKE '%e' AND value -> 'n' = '7'", "1"),
        ("value -> 'items' -> 0 ->> 'id' IN ('1', '2')", "1"),
        ("value ->> 'user' IS NULL", "3"),
        ("try_cast(value ->> 'n' AS BIGINT) BETWEEN 1 AND 6", "2"),
        ("value ->> 'user' || '!' = 'bob!'", "1"),
        ("json_get_int(value, 'n') > 1", "2"),
        ("json_length(value, 'items') = 0", "1"),
        ("json_get_float(value, 'items', 0, 'price') < 10", "1"),
        ("json_contains(value, 'at')", "1"),
    ] {
        let sql = format!("SELECT count(*) FROM clicks_raw WHERE {filter}");
        assert_eq!(value(&session, &sql).await, count, "{filter}");
    }
    let wrong = try_rows(&session, "SELECT json_get(\"offset\", 'a') FROM clicks_raw").await;
    let wrong = wrong.unwrap_err().to_string();
    assert!(
        wrong.contains("json_get takes JSON as text or bytes"),
        "{wrong}"
    );
}

#[derive(Clone, Default)]
struct Told {
    asked: Arc<Mutex<Vec<String>>>,
    is_down: Arc<Mutex<bool>>,
}

const FIRST: &str =
    r#"{\"type\":\"record\",\"name\":\"E\",\"fields\":[{\"name\":\"a\",\"type\":\"int\"}]}"#;
const SECOND: &str = r#"{\"type\":\"record\",\"name\":\"E\",\"fields\":[{\"name\":\"a\",\"type\":\"long\"},{\"name\":\"b\",\"type\":\"string\",\"default\":\"none\"}]}"#;

async fn answer(State(told): State<Told>, request: Request) -> (StatusCode, String) {
    let path = request.uri().path().to_owned();
    told.asked.lock().unwrap().push(path.clone());
    if *told.is_down.lock().unwrap() {
        return (StatusCode::BAD_REQUEST, "gone".to_owned());
    }
    let body = match path.as_str() {
        "/subjects" => r#"["events-value","nobody-value"]"#.to_owned(),
        "/subjects/events-value/versions/latest" => {
            format!(r#"{{"id":2,"version":2,"schema":"{SECOND}"}}"#)
        }
        "/subjects/events-value/versions/1" => {
            format!(r#"{{"id":1,"version":1,"schema":"{FIRST}"}}"#)
        }
        "/schemas/ids/1" => format!(r#"{{"schema":"{FIRST}"}}"#),
        "/schemas/ids/2" => format!(r#"{{"schema":"{SECOND}"}}"#),
        _ => {
            let body = r#"{"error_code":40403,"message":"not found"}"#;
            return (StatusCode::NOT_FOUND, body.to_owned());
        }
    };
    (StatusCode::OK, body)
}

async fn registry(folder: &std::path::Path) -> (Arc<Registry>, Told) {
    let told = Told::default();
    let router = Router::new().fallback(answer).with_state(told.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = RegistrySettings {
        url: format!("http://{}", listener.local_addr().unwrap()),
        auth: Auth::None,
        timeout: Duration::from_secs(5),
    };
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let clock = Arc::new(SystemClock::default());
    let registry = Registry::open(&settings, folder, clock, Arc::new(RandomIds)).unwrap();
    (Arc::new(registry), told)
}

fn events() -> Vec<Record> {
    vec![
        record(0, Some(&[0, 0, 0, 0, 1, 6])),
        record(1, Some(&[0, 0, 0, 0, 2, 8, 2, b'x'])),
        record(2, Some(&[0, 0, 0, 0, 99, 8])),
        record(3, Some(&[0, 0, 0, 0, 1])),
        record(4, None),
        record(5, Some(b"{}")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_the_registry_has_a_subject_of_is_found_and_read_by_the_newest_schema() {
    let world = World::new().await;
    world.append("events", &events()).await;
    world.append("silent", &[record(0, Some(b"x"))]).await;
    let (registry, told) = registry(&world.folder.path().join("schemas")).await;
    let session = session(&world, TopicValues::new([], Some(registry))).await;
    assert_eq!(value(&session, "SELECT count(*) FROM events").await, "6");
    assert!(
        told.asked.lock().unwrap().is_empty(),
        "a registry that no query needs is not asked"
    );
    assert_eq!(
        rows(
            &session,
            "SELECT _offset, a, b, _error FROM events_v ORDER BY _offset"
        )
        .await,
        [
            ["0", "3", "none", "∅"],
            ["1", "4", "x", "∅"],
            [
                "2",
                "∅",
                "∅",
                "schema 99: the registry does not know it: not found (error 40403)"
            ],
            ["3", "∅", "∅", "the value ends in the middle of the record"],
            ["4", "∅", "∅", "∅"],
            [
                "5",
                "∅",
                "∅",
                "the value begins with byte 0x7b, not with the 0 of a schema registry's format"
            ],
        ]
    );
    let names: Vec<String> = session
        .tables()
        .await
        .unwrap()
        .into_iter()
        .map(|t| t.name)
        .collect();
    assert_eq!(names, ["events", "events_v", "silent"]);
    // what was asked once is known: of the whole session nothing changes when the registry goes
    *told.is_down.lock().unwrap() = true;
    assert_eq!(value(&session, "SELECT sum(a) FROM events_v").await, "7");
    assert_eq!(
        value(&session, "SELECT count(b) FROM events_v WHERE _offset < 2").await,
        "2"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_schema_or_declared_columns_go_before_the_newest() {
    let world = World::new().await;
    world.append("events", &events()).await;
    let (registry, _) = registry(&world.folder.path().join("schemas")).await;
    let avro = |columns, schema| TopicFormat::Avro {
        columns,
        schema,
        subject: "events-value".to_owned(),
    };
    let columns = Columns::parse([("b", "STRING"), ("a", "INT")]).unwrap();
    for (format, expected) in [
        (avro(None, SchemaChoice::Version(1)), vec!["a"]),
        (avro(None, SchemaChoice::Id(SchemaId(2))), vec!["a", "b"]),
        (avro(Some(columns), SchemaChoice::Newest), vec!["b", "a"]),
    ] {
        let values = TopicValues::new([(topic("events"), format)], Some(Arc::clone(&registry)));
        let session = session(&world, values).await;
        let columns = session.columns("events_v").await.unwrap();
        let names: Vec<&str> = columns.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names[6..names.len() - 1], expected);
        assert_eq!(value(&session, "SELECT sum(a) FROM events_v").await, "7");
    }
    let missing = TopicValues::new(
        [(topic("events"), avro(None, SchemaChoice::Version(9)))],
        Some(registry),
    );
    let session = session(&world, missing).await;
    let why = error(&session, "SELECT * FROM events_v").await.to_string();
    assert!(
        why.contains("the registry has no version 9 of subject events-value"),
        "{why}"
    );
    // the table itself is there all the same
    assert_eq!(value(&session, "SELECT count(*) FROM events").await, "6");
}

/// A sort stood below the decoding once, where another column has the place.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_ordered_by_any_of_its_columns() {
    let world = World::new().await;
    for commit in 0..3 {
        let records: Vec<Record> = (0..100)
            .map(|n| {
                let n = commit * 100 + n;
                let mut record = Record::new(n as i32 % 2, n);
                // neither the values nor their bytes are in order
                let user = n * 37 % 300;
                record.value = Some(
                    format!(r#"{{"x":{},"n":{user},"user":"u{user:03}"}}"#, n * 7 % 10).into(),
                );
                record
            })
            .collect();
        let (even, odd): (Vec<Record>, Vec<Record>) = records
            .into_iter()
            .partition(|record| record.partition == 0);
        world.append("clicks.raw", &[even, odd].concat()).await;
    }
    let values = || {
        let columns = [("user", "STRING"), ("n", "BIGINT"), ("x", "INT")];
        TopicValues::new([(topic("clicks.raw"), json(&columns))], None)
    };
    for threads in [1, 2] {
        let lake = Lake {
            values: Arc::new(values()),
            ..world.lake()
        };
        let mut limits = world.limits();
        limits.threads = threads;
        let options = SessionOptions {
            limits,
            ..SessionOptions::default()
        };
        let session = Session::open(lake, options).await.unwrap();
        for column in [
            "\"user\"",
            "n",
            "x",
            "_offset",
            "_partition",
            "_timestamp",
            "_key",
        ] {
            for direction in ["ASC", "DESC"] {
                let sql = format!("SELECT {column} FROM clicks_raw_v");
                let mut expected = rows(&session, &sql).await.concat();
                match column {
                    "n" | "x" | "_offset" | "_partition" => {
                        expected.sort_by_key(|n| n.parse::<i64>().unwrap());
                    }
                    _ => expected.sort(),
                }
                if direction == "DESC" {
                    expected.reverse();
                }
                let ordered = format!("{sql} ORDER BY {column} {direction}");
                assert_eq!(
                    rows(&session, &ordered).await.concat(),
                    expected,
                    "{ordered}"
                );
                let some = format!("{ordered} LIMIT 7");
                assert_eq!(
                    rows(&session, &some).await.concat(),
                    expected[..7],
                    "{some}"
                );
                let first = format!(
                    "SELECT c FROM (SELECT {column} AS c, row_number() OVER (ORDER BY {column} {direction}) AS n FROM clicks_raw_v) WHERE n = 1"
                );
                assert_eq!(value(&session, &first).await, expected[0], "{first}");
            }
        }
        let sql = "SELECT _partition, _offset, n FROM clicks_raw_v WHERE n >= 0 ORDER BY _partition, _offset LIMIT 3";
        let found = rows(&session, sql).await;
        assert_eq!(
            found,
            [["0", "0", "0"], ["0", "2", "74"], ["0", "4", "148"]]
        );
    }
}
