//! Versions of a job as a user handles them, with the real binary: compare, promote, roll back, drop. What the versions put
//! out is written here by their own parts (epochs, sinks, registry), so that every case is what it is meant to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema};
use everlog_common::clock::{RandomIds, SystemClock};
use everlog_common::{Clock as _, Generation, Offset, Partition, Position, Positions, TopicName};
use everlog_engine::{EventTime, Progress, Query};
use everlog_processor::registry::{HeldBy, Live, Output, Phase, Registry, Version};
use everlog_processor::sink::iceberg::IcebergSink;
use everlog_processor::sink::kafka::{KafkaSettings, KafkaSink};
use everlog_processor::sink::{Channel, Sink};
use everlog_processor::state::{Epoch, EpochLog, Identity, JobId, no_rows};
use everlog_table::archive::ArchiveDeps;
use everlog_table::catalog;
use everlog_table::job::{JobPartitioning, JobState, JobTable, JobTableSpec};
use everlog_table::storage::Storage;
use everlog_tests::broker::Broker;
use everlog_tests::everlog::{Everlog, Setup};
use everlog_tests::services::{Kafka, RestCatalog, S3};
use serde_json::Value;
use uuid::Uuid;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const BEGIN: i64 = 1_700_000_000_000;
/// Event time of all that is clicked.
const SPAN: i64 = 60 * HOUR;
const ENGINE: &str = "everlog-test 1";
const NAMESPACE: &str = "everlog";

/// Who clicked when, in event time: some pause for 25 minutes, which a gap of 30 joins and one of 20 cuts.
fn clicks() -> Vec<(u32, i64)> {
    let mut clicks = Vec::new();
    for user in 0..30_u32 {
        let mut at = BEGIN + i64::from(user) * 7 * MINUTE;
        let mut turn = user;
        while at < BEGIN + SPAN {
            clicks.push((user, at));
            turn += 1;
            at += match turn % 7 {
                0 => 5 * HOUR + i64::from(user) * MINUTE,
                3 => 25 * MINUTE,
                _ => 4 * MINUTE,
            };
        }
    }
    clicks
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    end: i64,
    user: u32,
    start: i64,
    clicks: i64,
}

/// The sessions of these clicks, in the order in which a job puts them out.
fn sessions(gap: i64) -> Vec<Session> {
    let mut found: Vec<Session> = Vec::new();
    for (user, at) in clicks() {
        match found.last_mut() {
            Some(last) if last.user == user && at <= last.end => {
                last.end = at + gap;
                last.clicks += 1;
            }
            _ => found.push(Session {
                end: at + gap,
                user,
                start: at,
                clicks: 1,
            }),
        }
    }
    found.sort_by_key(|s| (s.end, s.user, s.start));
    found
}

fn query(minutes: u32) -> Query {
    let columns = [
        Field::new("user_id", DataType::Utf8, false),
        Field::new("timestamp_ms", DataType::Int64, false),
    ];
    let window = format!("SESSION(ts, INTERVAL '{minutes}' MINUTE)");
    let edge = |edge: &str| window.replace("SESSION(", &format!("SESSION_{edge}("));
    Query::new(
        &format!(
            "SELECT user_id, {} AS session_start, {} AS session_end, count(*) AS clicks FROM clicks GROUP BY user_id, {window}",
            edge("START"),
            edge("END")
        ),
        "clicks",
        Arc::new(Schema::new(columns.to_vec())),
        "to_timestamp_millis(timestamp_ms)",
        EventTime::default(),
    )
    .expect("a query")
}

fn batch(query: &Query, sessions: &[Session]) -> RecordBatch {
    let time = |of: &dyn Fn(&Session) -> i64| -> ArrayRef {
        let times = TimestampMillisecondArray::from_iter_values(sessions.iter().map(of));
        Arc::new(times.with_timezone("UTC"))
    };
    let users = sessions.iter().map(|s| format!("user {:02}", s.user));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(users)),
        time(&|s| s.start),
        time(&|s| s.end),
        Arc::new(Int64Array::from_iter_values(
            sessions.iter().map(|s| s.clicks),
        )),
    ];
    RecordBatch::try_new(query.output_schema(), columns).expect("rows")
}

fn at(offset: i64) -> Positions {
    let position = Position {
        generation: Generation(0),
        offset: Offset::new(offset).expect("an offset"),
    };
    [(Partition::new(0).expect("a partition"), position)].into()
}

/// The installation, and what its jobs' parts need.
struct Place {
    everlog: Everlog,
    storage: Storage,
    location: String,
    deps: ArchiveDeps,
}

impl Place {
    async fn of(everlog: Everlog, location: String) -> Self {
        let catalog = catalog::connect(&everlog.catalog).await.expect("a catalog");
        let deps = ArchiveDeps {
            catalog,
            clock: Arc::new(SystemClock::default()),
            ids: Arc::new(RandomIds),
        };
        Self {
            storage: Storage::from_properties(&everlog.catalog).expect("a storage"),
            everlog,
            location,
            deps,
        }
    }

    fn registry(&self, job: &str) -> Registry {
        Registry::new(self.storage.clone(), &self.location, job)
    }

    /// The arguments, and where the jobs are.
    fn with<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [args, &["--location", self.location.as_str()]].concat()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        self.everlog.ok(&self.with(args))
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    #[track_caller]
    fn fails(&self, args: &[&str], status: i32) -> String {
        self.everlog.fails(&self.with(args), status)
    }

    async fn table(&self) -> JobTable {
        JobTable::open(self.deps.clone(), NAMESPACE, "sessions", "sessions")
            .await
            .expect("a table")
            .expect("it is there")
    }

    async fn state(&self) -> JobState {
        self.table().await.state().await.expect("its state")
    }

    async fn files(&self, folder: &str) -> usize {
        use futures::TryStreamExt as _;
        let listed = self.storage.list(folder).expect("a folder");
        listed.try_collect::<Vec<_>>().await.expect("a list").len()
    }
}

/// A version as its process leaves it after some epochs.
struct Run {
    id: JobId,
    query: Query,
    sink: Box<dyn Sink>,
    log: EpochLog,
    next: u64,
    rows: u64,
}

impl Run {
    async fn begin(
        place: &Place,
        (job, version): (&str, &str),
        minutes: u32,
        output: Output,
        properties: &BTreeMap<String, String>,
    ) -> Self {
        let (id, query) = (JobId::new(job, version).expect("a job"), query(minutes));
        let registered = Version {
            output: output.clone(),
            fingerprint: format!("{:016x}", query.fingerprint()),
            engine: ENGINE.to_owned(),
            created_ms: SystemClock::default().now().0,
            sql: format!("SELECT … {minutes} MINUTE"),
            topic: "clicks".to_owned(),
            late: None,
            dead_letter: None,
            from: None,
            roles: Some(query.roles()),
            schema: None,
        };
        place
            .registry(job)
            .register(version, &registered)
            .await
            .expect("registered");
        let identity = Identity {
            job: id.clone(),
            fingerprint: query.fingerprint(),
            engine: ENGINE.to_owned(),
        };
        let (log, claim) = EpochLog::take_over(
            place.storage.clone(),
            &place.location,
            identity,
            Uuid::new_v4(),
        )
        .await
        .expect("taken over");
        let sink: Box<dyn Sink> = match output {
            Output::Kafka { topic } => {
                let settings = KafkaSettings {
                    properties: properties.clone(),
                    topic: TopicName::new(&topic).expect("a topic"),
                    key: query.roles().keys,
                    timestamp: None,
                    owner: Some(log.clone()),
                };
                let opened = KafkaSink::open(settings, id.clone(), Channel::Rows).await;
                Box::new(opened.expect("a topic"))
            }
            Output::Branch { table } => {
                let spec = JobTableSpec {
                    table,
                    job: job.to_owned(),
                    version: version.to_owned(),
                    columns: query.output_schema(),
                    fingerprint: registered.fingerprint,
                    partitioning: JobPartitioning::None,
                    properties: BTreeMap::new(),
                    about: BTreeMap::new(),
                };
                let opened = IcebergSink::open(place.deps.clone(), NAMESPACE, &spec).await;
                Box::new(opened.expect("a table"))
            }
            other => panic!("{other} is not written here"),
        };
        Self {
            id,
            query,
            sink,
            log,
            next: claim.number + 1,
            rows: 0,
        }
    }

    /// The next epoch: rows, the event time that they are complete up to, and the next offset.
    fn epoch(&self, rows: &[Session], watermark: i64, offset: i64) -> Epoch {
        let progress = Progress {
            watermark,
            ..Progress::default()
        };
        Epoch {
            number: self.next,
            job: self.id.clone(),
            fingerprint: self.query.fingerprint(),
            engine: ENGINE.to_owned(),
            changes: Arc::default(),
            progress: serde_json::to_vec(&progress).expect("JSON"),
            positions: at(offset),
            rows_before: self.rows,
            late_before: 0,
            dead_before: 0,
            rows: batch(&self.query, rows),
            late: no_rows(),
            dead: no_rows(),
        }
    }

    async fn put(&mut self, rows: &[Session], watermark: i64, offset: i64) {
        let epoch = self.epoch(rows, watermark, offset);
        self.log.put(&epoch).await.expect("an epoch");
        self.sink.commit(&epoch).await.expect("a commit");
        self.next += 1;
        self.rows += rows.len() as u64;
    }

    /// Everything, in two epochs.
    async fn all(&mut self, sessions: &[Session], lateness: i64) {
        let until = BEGIN + SPAN / 2;
        let (first, rest): (Vec<Session>, Vec<Session>) = sessions
            .iter()
            .cloned()
            .partition(|s| s.end + lateness <= until);
        self.put(&first, until, 50_000).await;
        self.put(&rest, BEGIN + SPAN + 4 * HOUR, 100_000).await;
    }
}

fn branch() -> Output {
    Output::Branch {
        table: "sessions".to_owned(),
    }
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one story, in its order")]
async fn versions_on_branches_are_compared_promoted_rolled_back_and_dropped() {
    let s3 = S3::start();
    let rest = RestCatalog::start(&s3);
    let everlog = Everlog::rest(&Setup::new("127.0.0.1:1", &["clicks"]), &rest, &s3);
    let place = Place::of(everlog, "s3://warehouse/jobs".to_owned()).await;
    assert!(
        place
            .ok(&["job", "list"])
            .contains("there are no jobs in s3://warehouse/jobs")
    );
    let why = place.fails(&["job", "show", "sessions"], 2);
    assert!(why.contains("there is no job sessions"), "{why}");

    let none = BTreeMap::new();
    let begin = |version: &'static str, minutes| {
        Run::begin(&place, ("sessions", version), minutes, branch(), &none)
    };
    let (thirty, twenty) = (sessions(30 * MINUTE), sessions(20 * MINUTE));
    assert!(twenty.len() > thirty.len());
    let mut v1 = begin("v1", 30).await;
    v1.all(&thirty, 30 * MINUTE).await;
    let main = place.state().await.main;

    // A replay that is half done: what it has agrees, and it is told to catch up.
    let mut again = begin("again", 30).await;
    let until = BEGIN + 30 * HOUR;
    let half: Vec<Session> = thirty
        .iter()
        .filter(|s| s.end + 30 * MINUTE <= until)
        .cloned()
        .collect();
    again.put(&half, until, 50_000).await;
    let why = place.fails(&["promote", "sessions", "again"], 1);
    assert!(
        why.contains("is behind v1 by 50000 records") && why.contains("never compared"),
        "{why}"
    );
    let report = place.json(&["compare", "sessions", "v1", "again"]);
    assert_eq!(report["mode"], "same");
    assert_eq!(report["agree"], true);
    assert_eq!(report["keys"], serde_json::json!(["user_id"]));
    assert_eq!(report["rows"]["left"], half.len());
    assert_eq!(report["same"]["equal"], half.len());
    assert_eq!(report["right"]["engine"], ENGINE);
    let why = place.fails(&["promote", "sessions", "again", "--force"], 1);
    assert!(why.contains("behind") && !why.contains("compared"), "{why}");

    // Another gap: windows differ, clicks do not.
    let mut v2 = begin("v2", 20).await;
    v2.all(&twenty, 20 * MINUTE).await;
    let why = place.fails(&["promote", "sessions", "v2"], 1);
    assert!(why.contains("`everlog compare JOB v1 v2`"), "{why}");
    let report = place.ok(&["compare", "sessions", "v1", "v2"]);
    for expected in [
        "v1 against v2, by what is conserved",
        "one became several",
        "they agree in everything that is conserved",
        "  split\n",
    ] {
        assert!(report.contains(expected), "{expected}\n{report}");
    }
    let may = place.ok(&["promote", "sessions", "v2", "--dry-run"]);
    assert!(
        may.contains("v2 may be promoted; nothing was changed"),
        "{may}"
    );
    let before = place.state().await;
    assert_eq!((before.active.as_str(), before.main), ("v1", main));

    // What is lost is found, whatever the window: one click less.
    let mut wrong = twenty.clone();
    if let Some(session) = wrong.get_mut(100) {
        session.clicks -= 1;
    }
    let mut v3 = begin("v3", 20).await;
    v3.all(&wrong, 20 * MINUTE).await;
    let why = place.fails(&["compare", "sessions", "v1", "v3"], 1);
    assert!(
        why.contains("versions v1 and v3 of job sessions: they differ"),
        "{why}"
    );
    let why = place.fails(&["promote", "sessions", "v3"], 1);
    assert!(why.contains("found differences"), "{why}");

    let promoted = place.json(&["promote", "sessions", "v2"]);
    assert_eq!(promoted["changed"], true);
    assert_eq!(promoted["before"], "v1");
    assert_eq!(promoted["main"]["tag"], "before-v2");
    assert_eq!(promoted["behind"]["records"], 0);
    let state = place.state().await;
    assert_eq!(state.active, "v2");
    assert_eq!(state.main, state.versions["v2"].head);
    assert_eq!(Some(state.refs["before-v2"].snapshot_id), main);
    let scan = place
        .table()
        .await
        .scan(state.main, None)
        .await
        .expect("main");
    assert_eq!(scan.rows(), twenty.len() as u64);
    let same = place.ok(&["promote", "sessions", "v2"]);
    assert_eq!(same, "sessions: v2 is active, as it was\n");

    // A running version tells more of itself.
    let now = SystemClock::default().now().0;
    let live = Live {
        at_ms: now,
        started_ms: now - 60_000,
        phase: Phase::History,
        interval_ms: 10_000,
        epoch: 3,
        epoch_ms: now,
        watermark_ms: Some(until),
        held_by: Some(HeldBy {
            generation: 0,
            partition: 0,
            watermark_ms: Some(until),
        }),
        lag_records: Some(50_000),
        events: 50_000,
        events_per_second: 25_000.0,
        eta_s: Some(2),
        state_bytes: 4_096,
        rows: half.len() as u64,
        late: 0,
        dead: 0,
    };
    let id = JobId::new("sessions", "again").expect("a job");
    live.write(&place.storage, &place.location, &id)
        .await
        .expect("said");
    let shown = place.json(&["job", "show", "sessions"]);
    assert_eq!(
        (&shown["active"], &shown["previous"]),
        (&"v2".into(), &"v1".into())
    );
    let versions = shown["versions"].as_array().expect("versions");
    let names: Vec<&Value> = versions.iter().map(|v| &v["version"]).collect();
    assert_eq!(names, ["again", "v1", "v2", "v3"]);
    assert_eq!(versions[0]["doing"], "history");
    assert_eq!(versions[0]["live"]["lag_records"], 50_000);
    assert_eq!(versions[1]["doing"], "not seen");
    assert_eq!(
        versions[1]["checkpoint"]["positions"]["0"]["offset"],
        100_000
    );
    assert_eq!(versions[1]["rows"], thirty.len());
    assert_eq!(versions[2]["is_active"], true);
    let listed = place.ok(&["job", "list"]);
    for expected in ["v2 (active)", "history", "50,000", "25,000/s"] {
        assert!(listed.contains(expected), "{expected}\n{listed}");
    }

    let back = place.ok(&["rollback", "sessions"]);
    assert!(back.contains("v1 is active, and no longer v2"), "{back}");
    assert!(back.contains("v1 does not seem to be running"), "{back}");
    let state = place.state().await;
    assert_eq!((state.active.as_str(), state.main), ("v1", main));
    // and forward again
    place.ok(&["rollback", "sessions"]);
    assert_eq!(place.state().await.active, "v2");

    let why = place.fails(&["job", "drop", "sessions", "v2", "--yes"], 2);
    assert!(why.contains("v2 of job sessions is active"), "{why}");
    let why = place.fails(&["job", "drop", "sessions", "v1"], 2);
    assert!(why.contains("give --yes"), "{why}");
    let folder = "s3://warehouse/jobs/sessions/v1";
    assert!(place.files(folder).await > 0);
    let dropped = place.ok(&["job", "drop", "sessions", "v1", "--yes"]);
    assert!(dropped.contains("version v1 is dropped"), "{dropped}");
    assert_eq!(place.files(folder).await, 0);
    let state = place.state().await;
    assert!(!state.versions.contains_key("v1") && !state.refs.contains_key("v1"));
    assert_eq!(state.main, state.versions["v2"].head);
    let why = place.fails(&["job", "drop", "sessions", "v1", "--yes"], 2);
    assert!(why.contains("has no version v1"), "{why}");
    let why = place.fails(&["rollback", "sessions"], 2);
    assert!(
        why.contains("dropped") && why.contains("before-v2"),
        "{why}"
    );
    // a process that still runs it is stopped
    let mut epoch = v1.epoch(&[], BEGIN + SPAN + 5 * HOUR, 100_001);
    let fenced = v1.log.put(&epoch).await.expect_err("fenced");
    assert_eq!(fenced.exit_status(), 5, "{fenced}");
    epoch.rows = batch(&v1.query, &thirty[..1]);
    let refused = v1.sink.commit(&epoch).await.expect_err("fenced");
    assert_eq!(refused.exit_status(), 5, "{refused}");

    let maintained = place.everlog.ok(&["maintain"]);
    assert!(
        maintained.starts_with("sessions (job sessions): "),
        "{maintained}"
    );
}

#[tokio::test]
async fn versions_with_topics_of_their_own_are_promoted_by_name() {
    let kafka = Kafka::start();
    let broker = Broker::new(&kafka.bootstrap);
    broker
        .create_all(&["sessions.v1", "sessions.v2"], 1, &[])
        .await;
    let everlog = Everlog::local(&Setup::new(&kafka.bootstrap, &["clicks"]));
    let location = format!("file://{}/jobs", everlog.dir().display());
    let place = Place::of(everlog, location).await;
    let properties = BTreeMap::from([("bootstrap.servers".to_owned(), kafka.bootstrap.clone())]);
    let begin = |version: &'static str, minutes| {
        let output = Output::Kafka {
            topic: format!("sessions.{version}"),
        };
        Run::begin(&place, ("sessions", version), minutes, output, &properties)
    };
    let (thirty, twenty) = (sessions(30 * MINUTE), sessions(20 * MINUTE));
    let mut v1 = begin("v1", 30).await;
    v1.all(&thirty, 30 * MINUTE).await;
    let mut v2 = begin("v2", 20).await;
    let why = place.fails(&["promote", "sessions", "v2", "--force"], 1);
    assert!(why.contains("v2 has put out nothing yet"), "{why}");
    v2.put(&twenty[..10], BEGIN, 100).await;
    let why = place.fails(&["promote", "sessions", "v2", "--force"], 1);
    assert!(why.contains("behind v1 by 99900 records"), "{why}");
    v2.put(&twenty[10..], BEGIN + SPAN, 100_000).await;
    let why = place.fails(&["compare", "sessions", "v1", "v2"], 2);
    assert!(why.contains("v1 writes to kafka:sessions.v1"), "{why}");
    let why = place.fails(&["promote", "sessions", "v2"], 1);
    assert!(why.contains("Iceberg outputs alone"), "{why}");
    assert_eq!(place.json(&["job", "show", "sessions"])["active"], "v1");

    let promoted = place.ok(&["promote", "sessions", "v2", "--force"]);
    assert!(
        promoted.contains("v2 is active, and no longer v1")
            && promoted.contains("consumers read kafka:sessions.v2 from now on"),
        "{promoted}"
    );
    let shown = place.json(&["job", "show", "sessions"]);
    assert_eq!(
        (&shown["active"], &shown["previous"]),
        (&"v2".into(), &"v1".into())
    );
    assert_eq!(shown["versions"][1]["output"], "kafka:sessions.v2");
    assert_eq!(shown["activations"][0]["version"], "v2");
    assert_eq!(shown["problems"], serde_json::json!([]));

    let back = place.json(&["rollback", "sessions"]);
    assert_eq!(
        (&back["active"], &back["main"]),
        (&"v1".into(), &Value::Null)
    );
    let dropped = place.ok(&["job", "drop", "sessions", "v2", "--yes"]);
    assert!(
        dropped.contains("its topic sessions.v2 is left"),
        "{dropped}"
    );
    // its readers have it still: the rows, and what ended each transaction
    let (first, end) = broker.bounds("sessions.v2", 0);
    assert!(
        first == 0 && end >= i64::try_from(twenty.len()).expect("few"),
        "{end}"
    );
    let left = place.json(&["job", "show", "sessions"]);
    assert_eq!(left["versions"].as_array().map(Vec::len), Some(1));
    // by its file: what is in it decides where to look
    let job = format!(
        "[job]\nname = \"sessions\"\nversion = \"v1\"\n\
         [source]\ntopic = \"clicks\"\nformat = \"json\"\ncolumns = {{ user_id = \"STRING\" }}\n\
         [query]\nsql = \"SELECT user_id FROM clicks\"\n\
         [sink]\ntype = \"kafka\"\ntopic = \"sessions\"\n\
         [checkpoint]\nlocation = \"{}\"\n",
        place.location
    );
    let path = place.everlog.dir().join("sessions.toml");
    std::fs::write(&path, job).expect("write the job");
    let path = path.display().to_string();
    let shown = place.everlog.ok(&["job", "show", &path]);
    assert!(shown.contains("v1 (active)"), "{shown}");
    let why = place.fails(&["job", "show", &path], 2);
    assert!(
        why.contains("--location is for a job that is given by its name"),
        "{why}"
    );
}
