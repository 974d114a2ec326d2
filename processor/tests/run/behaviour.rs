//! What a job does besides: silent partitions, new ones and old ones, versions, bad records, two processes, an orderly end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use everlog_processor::job::Job;
use everlog_processor::registry::Registry;
use everlog_processor::run::{Bound, Environment, Prepared, RunError, RunOptions, Summary, run};
use everlog_table::storage::Storage;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::world::{Desk, World, options};

const BEGIN: i64 = 1_700_000_000_000;

const JOB: &str = r#"
[job]
name = "counts"
version = "v1"

[source]
topic = "clicks"
format = "json"
columns = { user = "STRING NOT NULL", at = "BIGINT NOT NULL" }
event_time = "to_timestamp_millis(at)"
out_of_orderness = "0s"

[query]
sql = "SELECT user, TUMBLE_START(ts, INTERVAL '10' SECOND) AS began, count(*) AS events FROM clicks GROUP BY user, TUMBLE(ts, INTERVAL '10' SECOND)"

[sink]
type = "jsonl"
path = "DIR/rows.jsonl"
late = "jsonl:DIR/late.jsonl"
dead_letter = "jsonl:DIR/dead.jsonl"

[checkpoint]
interval = "100ms"
location = "file://DIR/state"

[limits]
memory = "64MiB"
"#;

fn click(world: &World, partition: i32, user: &str, second: i64) -> i64 {
    let at = BEGIN + second * 1_000;
    world.append(partition, &format!(r#"{{"user":"{user}","at":{at}}}"#), at)
}

/// A job that runs until it is told to end.
struct Running {
    options: RunOptions,
    ended: JoinHandle<Result<Summary, RunError>>,
}

async fn start(desk: &Desk, text: &str, world: &World) -> Running {
    let environment = desk.environment(world);
    let job = Job::parse(text, "job.toml").unwrap_or_else(|e| panic!("{e}"));
    let prepared = Prepared::new(job, &environment).await.unwrap();
    let options = options(Bound::Never, false);
    let ended = tokio::spawn(run(prepared, environment, options.clone()));
    Running { options, ended }
}

impl Running {
    async fn stop(self) -> Result<Summary, RunError> {
        self.options.stop.cancel();
        self.ended.await.unwrap()
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let due = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(
            tokio::time::Instant::now() < due,
            "{what} did not come true"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_follows_the_topic_and_ends_in_order() {
    let world = World::new(1).await;
    for second in 0..30 {
        click(&world, 0, "a", second);
    }
    world.archive_all(7).await;
    let desk = Desk::new(JOB);
    let running = start(&desk, desk.text(), &world).await;
    eventually("two windows", || desk.lines("rows.jsonl").len() == 2).await;
    for second in 30..50 {
        click(&world, 0, "a", second);
    }
    eventually("two more", || desk.lines("rows.jsonl").len() == 4).await;
    let numbers = running.options.observer.numbers();
    assert!(numbers.events >= 40 && numbers.epoch > 0, "{numbers:?}");
    let summary = running.stop().await.unwrap();
    assert_eq!(
        (summary.events, summary.counts.rows, summary.drained),
        (50, 4, false)
    );
    // its last checkpoint has everything: nothing is read twice
    let done = desk.run(&world, Bound::Now, true).await.unwrap();
    assert_eq!((done.events, done.counts.rows), (0, 5));
    assert_eq!(desk.lines("rows.jsonl").len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_waits_for_a_silent_partition_unless_it_may_pass_it() {
    let world = World::new(2).await;
    for second in 0..25 {
        click(&world, 0, "a", second);
    }
    click(&world, 1, "b", 0);
    let desk = Desk::new(JOB);
    desk.run(&world, Bound::Now, false).await.unwrap();
    assert!(
        desk.lines("rows.jsonl").is_empty(),
        "time waits for partition 1"
    );

    let idle = desk.with(
        "out_of_orderness = \"0s\"",
        "out_of_orderness = \"0s\"\nidle_timeout = \"1s\"",
    );
    let running = start(&desk, &idle, &world).await;
    eventually("the windows that partition 1 held back", || {
        desk.lines("rows.jsonl").len() == 3
    })
    .await;
    // the decision is in the checkpoint: what comes now below it is late, in this run and in every other
    click(&world, 1, "b", 5);
    click(&world, 1, "b", 24);
    eventually("the late record", || desk.lines("late.jsonl").len() == 1).await;
    let first = running.stop().await.unwrap();
    assert_eq!(first.counts.late, 1);

    // a later version obeys the entry without being silent itself, from the archive as well
    world.archive_all(5).await;
    let v2 = desk
        .with("version = \"v1\"", "version = \"v2\"")
        .replace("rows.jsonl", "rows2.jsonl")
        .replace("late.jsonl", "late2.jsonl")
        .replace("dead.jsonl", "dead2.jsonl");
    desk.run_text(&v2, &world, Bound::Snapshot, true)
        .await
        .unwrap();
    desk.run_text(&idle, &world, Bound::Now, true)
        .await
        .unwrap();
    assert_eq!(desk.lines("rows2.jsonl"), desk.lines("rows.jsonl"));
    assert_eq!(desk.lines("late2.jsonl"), desk.lines("late.jsonl"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_joins_takes_the_time_that_was_reached() {
    let world = World::new(1).await;
    for second in 0..25 {
        click(&world, 0, "a", second);
    }
    let desk = Desk::new(JOB);
    let running = start(&desk, desk.text(), &world).await;
    eventually("two windows", || desk.lines("rows.jsonl").len() == 2).await;
    world.log.add_partitions(&world.topic, 2);
    // below the time that was reached: late, whenever it is read
    click(&world, 1, "b", 3);
    click(&world, 1, "b", 24);
    eventually("the late record", || desk.lines("late.jsonl").len() == 1).await;
    running.stop().await.unwrap();
    world.archive_all(4).await;
    let v2 = desk
        .with("version = \"v1\"", "version = \"v2\"")
        .replace("rows.jsonl", "rows2.jsonl")
        .replace("late.jsonl", "late2.jsonl")
        .replace("dead.jsonl", "dead2.jsonl");
    desk.run_text(&v2, &world, Bound::Snapshot, true)
        .await
        .unwrap();
    desk.run(&world, Bound::Now, true).await.unwrap();
    assert_eq!(desk.lines("rows2.jsonl"), desk.lines("rows.jsonl"));
    assert_eq!(desk.lines("late2.jsonl"), desk.lines("late.jsonl"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_the_topic_lost_holds_nobody_back() {
    let world = World::new(3).await;
    for second in 0..12 {
        for partition in 0..3 {
            click(&world, partition, "a", second);
        }
    }
    world.archive_all(5).await;
    // created anew with fewer partitions
    world.log.delete_topic(&world.topic);
    world.log.create_topic(&world.topic, 2);
    for second in 12..40 {
        for partition in 0..2 {
            click(&world, partition, "a", second);
        }
    }
    world.archive_all(5).await;
    let desk = Desk::new(JOB);
    desk.run(&world, Bound::Now, false).await.unwrap();
    // up to second 39, although partition 2 ended at second 11
    let rows = desk.lines("rows.jsonl");
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows[0].contains("\"events\":30"), "{rows:?}");
    assert!(rows[1].contains("\"events\":22"), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_record_is_a_dead_letter_or_ends_the_job() {
    let world = World::new(1).await;
    click(&world, 0, "a", 0);
    world.append(0, "no json", BEGIN);
    world.append(
        0,
        &format!(r#"{{"user":"a","at":{}}}"#, BEGIN + 86_400_000),
        BEGIN,
    );
    click(&world, 0, "a", 1);
    let desk = Desk::new(JOB);
    let summary = desk.run(&world, Bound::Now, true).await.unwrap();
    assert_eq!((summary.counts.rows, summary.counts.dead), (1, 2));
    let dead = desk.lines("dead.jsonl");
    for (line, offset, bytes, why) in [
        (&dead[0], 1, "bm8ganNvbg==", "JSON"),
        (&dead[1], 2, "", "max_future"),
    ] {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["topic"], "clicks");
        assert_eq!(
            (&line["generation"], &line["partition"], &line["offset"]),
            (&0.into(), &0.into(), &offset.into())
        );
        assert!(line["error"].as_str().unwrap().contains(why), "{line}");
        if !bytes.is_empty() {
            assert_eq!(line["value"], bytes);
        }
    }

    let desk = Desk::new(JOB);
    let stop = desk.with("[query]", "on_error = \"stop\"\n\n[query]");
    for _ in 0..2 {
        let error = desk
            .run_text(&stop, &world, Bound::Now, true)
            .await
            .unwrap_err();
        assert_eq!(error.exit_status(), 4);
        assert!(
            error.to_string().contains("partition 0 offset 1: "),
            "{error}"
        );
    }
    assert!(desk.lines("rows.jsonl").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_the_later_one_goes_on() {
    let world = World::new(1).await;
    for second in 0..25 {
        click(&world, 0, "a", second);
    }
    let desk = Desk::new(JOB);
    let first = start(&desk, desk.text(), &world).await;
    eventually("two windows", || desk.lines("rows.jsonl").len() == 2).await;
    let second = start(&desk, desk.text(), &world).await;
    let ended = first.ended.await.unwrap().unwrap_err();
    assert_eq!(ended.exit_status(), 5, "{ended}");
    for second in 25..35 {
        click(&world, 0, "a", second);
    }
    eventually("the later one's window", || {
        desk.lines("rows.jsonl").len() == 3
    })
    .await;
    let summary = second.stop().await.unwrap();
    assert_eq!(summary.counts.rows, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_query_needs_another_version() {
    let world = World::new(1).await;
    click(&world, 0, "a", 0);
    let desk = Desk::new(JOB);
    desk.run(&world, Bound::Now, false).await.unwrap();
    let other = desk.with("count(*) AS events", "count(*) + 1 AS events");
    let error = desk
        .run_text(&other, &world, Bound::Now, false)
        .await
        .unwrap_err();
    assert_eq!(error.exit_status(), 2);
    assert!(error.to_string().contains("new version"), "{error}");

    let storage = Storage::from_properties(&std::collections::BTreeMap::new()).unwrap();
    let location = format!("file://{}/state", desk.folder.path().display());
    let registered = Registry::new(storage, &location, "counts")
        .get()
        .await
        .unwrap();
    let version = &registered.versions["v1"];
    assert_eq!(
        (version.topic.as_str(), version.from.as_deref()),
        ("clicks", None)
    );
    assert_eq!(version.roles.as_ref().unwrap().keys, ["user"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_memory_makes_many_epochs_and_the_same_rows() {
    let world = World::new(2).await;
    let pad = "x".repeat(200);
    // more windows than fire at once
    for user in 0..40_000_i32 {
        let second = i64::from(user) / 5_000;
        click(&world, user % 2, &format!("user-{user:05}-{pad}"), second);
    }
    world.archive_all(18_000).await;
    let desk = Desk::new(JOB);
    let small = desk.with("interval = \"100ms\"", "interval = \"1h\"");
    let summary = desk
        .run_text(&small, &world, Bound::Snapshot, true)
        .await
        .unwrap();
    // the state alone is more than an epoch may change, and so is the output
    assert!(summary.epochs >= 3, "{summary:?}");
    assert_eq!(summary.events, 40_000);
    let rows = desk.lines("rows.jsonl");
    assert_eq!(rows.len(), 40_000);
    assert!(rows.is_sorted(), "one window, by key");
    assert!(rows.iter().all(|row| row.contains("\"events\":1}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallelism_may_change_between_runs() {
    let world = World::new(3).await;
    let desk = Desk::new(JOB);
    for (threads, end) in [(1, 1_000), (4, 2_000), (2, 3_000)] {
        for n in end - 1_000..end {
            click(
                &world,
                n % 3,
                &format!("user {}", n % 17),
                i64::from(n) / 10,
            );
        }
        world.archive_all(100).await;
        let text = desk.with(
            "memory = \"64MiB\"",
            &format!("memory = \"64MiB\"\nthreads = {threads}"),
        );
        let summary = desk.run_text(&text, &world, Bound::Now, end == 3_000).await;
        assert_eq!(summary.unwrap().events, 1_000);
    }
    let rows = desk.lines("rows.jsonl");
    assert_eq!(rows.len(), 30 * 17, "ten seconds, 17 users");
    let whole = Desk::new(JOB);
    whole.run(&world, Bound::Snapshot, true).await.unwrap();
    assert_eq!(rows, whole.lines("rows.jsonl"));
}

/// A schema registry with one subject, whose newest schema is what it was last told; gives its address.
async fn schema_registry(newest: Arc<Mutex<String>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            let path = b"GET /subjects/clicks-value/versions/latest ";
            assert!(asked.starts_with(path), "{asked:?}");
            let body = newest.lock().unwrap().clone();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn another_host_reads_avro_by_the_schema_of_the_first() {
    let schema = |id: u32, fields: &[&str]| {
        let fields: Vec<_> = fields
            .iter()
            .map(|name| serde_json::json!({"name": name, "type": "string"}))
            .collect();
        let text = serde_json::json!({"type": "record", "name": "Click", "fields": fields});
        serde_json::json!({"subject": "clicks-value", "id": id, "version": id, "schema": text.to_string()})
            .to_string()
    };
    let newest = Arc::new(Mutex::new(schema(1, &["user"])));
    let url = schema_registry(Arc::clone(&newest)).await;
    let world = World::new(1).await;
    let desk = Desk::new(&format!(
        r#"
[job]
name = "copies"
version = "v1"

[source]
topic = "clicks"
format = "avro"
registry = "{url}"
subject = "clicks-value"

[query]
sql = "SELECT * FROM clicks"

[sink]
type = "jsonl"
path = "DIR/copies.jsonl"

[checkpoint]
location = "file://DIR/jobs"
"#
    ));
    let columns = async |host: &str, text: &str| {
        let environment = Environment {
            scratch: desk.path(host),
            ..desk.environment(&world)
        };
        let job = Job::parse(text, "job.toml").unwrap_or_else(|e| panic!("{e}"));
        let prepared = Prepared::new(job, &environment).await.unwrap();
        let names = prepared.query().output_schema();
        let names: Vec<String> = names.fields().iter().map(|f| f.name().clone()).collect();
        let done = run(prepared, environment, options(Bound::Now, false)).await;
        (names, done.map(|summary| summary.epochs))
    };
    let (names, done) = columns("a", desk.text()).await;
    assert_eq!(names, ["user", "ts"]);
    done.unwrap();
    *newest.lock().unwrap() = schema(2, &["user", "page"]);
    let (names, done) = columns("b", desk.text()).await;
    assert_eq!(names, ["user", "ts"]);
    done.unwrap();
    // dropped and begun anew, a version has the newest
    let versions = Registry::new(
        desk.environment(&world).storage,
        &format!("file://{}", desk.path("jobs").display()),
        "anew",
    );
    let other = desk.with("name = \"copies\"", "name = \"anew\"");
    let other = other.replace("copies.jsonl", "anew.jsonl");
    *newest.lock().unwrap() = schema(1, &["user"]);
    let prepared = async |text: &str| {
        let job = Job::parse(text, "job.toml").unwrap_or_else(|e| panic!("{e}"));
        let prepared = Prepared::new(job, &desk.environment(&world)).await.unwrap();
        prepared.query().output_schema().fields().len()
    };
    assert_eq!(prepared(&other).await, 2);
    assert_eq!(versions.read().await.unwrap(), None);
    *newest.lock().unwrap() = schema(2, &["user", "page"]);
    assert_eq!(prepared(&other).await, 3);
    // a new version has the newest
    let other = desk.with("version = \"v1\"", "version = \"v2\"");
    let other = other.replace("copies.jsonl", "copies2.jsonl");
    let (names, done) = columns("b", &other).await;
    assert_eq!(names, ["user", "page", "ts"]);
    done.unwrap();
}
