use everlog_common::Offset;

use super::*;

/// The file of the documentation.
const FULL: &str = include_str!("../../../docs/jobs.md");

const SMALL: &str = r#"
[job]
name = "sessions"
version = "v1"
[source]
topic = "clickstream.raw"
format = "json"
columns = { user_id = "STRING NOT NULL", amount = "DECIMAL(10, 2)", at = "TIMESTAMP_LTZ(3)" }
[query]
sql = "SELECT user_id FROM clickstream_raw"
[sink]
type = "jsonl"
path = "out.jsonl"
"#;

/// The file with a line put in the place of the first that begins so, or at the end of its section.
fn with(section: &str, line: &str) -> String {
    let key = line.split_once(" =").map_or(line, |(key, _)| key);
    let mut out = Vec::new();
    let mut inside = false;
    let mut done = false;
    for old in SMALL.lines() {
        if old.starts_with('[') {
            if inside && !done {
                out.push(line);
                done = true;
            }
            inside = old == format!("[{section}]");
        }
        if inside && old.split_once(" =").is_some_and(|(k, _)| k == key) {
            out.push(line);
            done = true;
        } else {
            out.push(old);
        }
    }
    let header = format!("[{section}]");
    if !done {
        if !inside {
            out.push(&header);
        }
        out.push(line);
    }
    out.join("\n")
}

fn without(key: &str) -> String {
    SMALL
        .lines()
        .filter(|line| line.split_once(" =").is_none_or(|(k, _)| k != key))
        .collect::<Vec<_>>()
        .join("\n")
}

fn problems(text: &str) -> Vec<String> {
    match Job::parse(text, "job.toml") {
        Ok(job) => panic!("no problem: {job:?}"),
        Err(error) => error.problems.iter().map(ToString::to_string).collect(),
    }
}

/// The file with this line has this one problem, without its line's number.
fn refused(section: &str, line: &str, expected: &str) {
    let text = with(section, line);
    let found = problems(&text);
    let [one] = found.as_slice() else {
        panic!("{line}: {found:#?}");
    };
    let (key, rest) = one.split_once(": ").unwrap();
    let key = key.split_once(" (line ").map_or(key, |(key, _)| key);
    assert_eq!(format!("{key}: {rest}"), expected, "{line}");
}

#[test]
fn a_small_file_gets_every_default() {
    let job = Job::parse(SMALL, "job.toml").unwrap();
    assert_eq!(
        (job.name.as_str(), job.version.as_str()),
        ("sessions", "v1")
    );
    assert_eq!(job.source.table(), "clickstream_raw");
    assert_eq!(job.source.from, From::Beginning);
    assert_eq!(job.source.event_time, "_timestamp");
    assert_eq!(job.source.time, EventTime::default());
    assert_eq!(job.source.idle_timeout, None);
    assert_eq!(job.source.deduplicate, None);
    assert_eq!(job.source.on_error, OnError::DeadLetter);
    let Format::Json(columns) = &job.source.format else {
        panic!("not JSON");
    };
    // in the order of the file
    let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["user_id", "amount", "at"]);
    assert_eq!(
        job.sink,
        Sink::Jsonl {
            path: "out.jsonl".into()
        }
    );
    assert_eq!((&job.late, &job.dead_letter), (&Side::Count, &Side::Count));
    assert_eq!(job.checkpoint.interval, Duration::from_secs(10));
    assert_eq!(job.checkpoint.location, "file:///var/lib/everlog/jobs");
    let limits = Limits {
        memory: 1 << 30,
        threads: None,
        rate: None,
    };
    assert_eq!(job.limits, limits);
}

#[test]
fn the_files_of_the_documentation_are_jobs() {
    let mut jobs = Vec::new();
    for block in FULL.split("```toml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        if text.contains("[job]") {
            jobs.push(Job::parse(text, "docs/jobs.md").unwrap_or_else(|e| panic!("{e}")));
        }
    }
    assert!(jobs.len() >= 2, "{}", jobs.len());
    let job = &jobs[0];
    assert_eq!(job.source.event_time, "to_timestamp_millis(timestamp_ms)");
    assert_eq!(job.source.time.bound, Duration::from_secs(30));
    assert_eq!(job.source.time.lateness, Some(Duration::from_mins(30)));
    let table = Sink::Iceberg {
        table: "sessions".to_owned(),
        output: Output::Branch,
    };
    assert_eq!(job.sink, table);
    assert_eq!(job.late, Side::Jsonl("late.jsonl".into()));
    // every key that there is has its place on the page
    for (section, keys) in document::KEYS {
        assert!(FULL.contains(&format!("`[{section}]`")), "[{section}]");
        for key in keys {
            assert!(FULL.contains(&format!("| `{key}` |")), "{section}.{key}");
        }
    }
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let job = Job::parse(
        r#"
[job]
name = "orders_by-day"
version = "2026"
[source]
topic = "orders"
from = "offset:1:17"
format = "avro"
registry = "https://registry:8081/"
registry_user = "ann"
registry_password = "env:REGISTRY_PASSWORD"
registry_timeout = "1s"
subject = "orders-com.example.Order"
event_time = "placed_at"
out_of_orderness = "0s"
allowed_lateness = "1h"
event_time_scope = "global"
idle_timeout = "5m"
max_future = "10m"
max_skew = "2h"
deduplicate = { by = ["order_id", "line"], within = "1d" }
on_error = "stop"
[query]
sql = """
SELECT 1"""
[sink]
type = "kafka"
topic = "orders.daily"
key = ["country"]
timestamp = "day"
late = "kafka:orders.late"
dead_letter = "jsonl:/tmp/dead.jsonl"
[checkpoint]
interval = "500ms"
location = "s3://bucket/jobs/"
[limits]
memory = "512MiB"
threads = 4
rate = 100_000
"#,
        "job.toml",
    )
    .unwrap();
    let from = From::Offset {
        generation: Some(everlog_common::Generation(1)),
        offset: Offset::new(17).unwrap(),
    };
    assert_eq!(job.source.from, from);
    let Format::Avro(avro) = &job.source.format else {
        panic!("not Avro");
    };
    assert_eq!(avro.columns, None);
    assert_eq!(avro.subject, "orders-com.example.Order");
    let settings = avro
        .registry
        .settings(|name| (name == "REGISTRY_PASSWORD").then(|| "s3cret".to_owned()))
        .unwrap();
    assert_eq!(
        settings.auth,
        everlog_decode::registry::Auth::Basic {
            user: "ann".to_owned(),
            password: "s3cret".to_owned()
        }
    );
    let error = avro.registry.settings(|_| None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the variable REGISTRY_PASSWORD, which is named for the schema registry, is not set"
    );
    assert_eq!(job.source.time.max_skew, Some(Duration::from_hours(2)));
    assert_eq!(job.source.time.max_future, Some(Duration::from_mins(10)));
    assert_eq!(job.source.idle_timeout, Some(Duration::from_mins(5)));
    let unique = job.source.deduplicate.unwrap();
    assert_eq!(
        (unique.by.len(), unique.within),
        (2, Duration::from_hours(24))
    );
    assert_eq!(job.source.on_error, OnError::Stop);
    let Sink::Kafka { key, timestamp, .. } = &job.sink else {
        panic!("not Kafka");
    };
    assert_eq!(key.as_deref(), Some(&["country".to_owned()][..]));
    assert_eq!(timestamp.as_deref(), Some("day"));
    assert_eq!(
        job.late,
        Side::Kafka(TopicName::new("orders.late").unwrap())
    );
    assert_eq!(job.checkpoint.location, "s3://bucket/jobs");
    assert_eq!(job.limits.rate, NonZeroU64::new(100_000));
}

#[test]
fn secrets_are_shown_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "t0ken\n").unwrap();
    let secret = |text: &str| Secret::parse(text).unwrap();
    let written = secret(&format!("file:{}", path.display()));
    assert_eq!(written.reveal(|_| None).unwrap(), "t0ken");
    assert!(secret("file:/nowhere/token").reveal(|_| None).is_err());
    assert_eq!(format!("{:?}", secret("hunter2")), "<redacted>");
    for nothing in ["", "env:", "file:"] {
        assert_eq!(Secret::parse(nothing), None, "{nothing}");
    }
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = r#"
[jobs]
[job]
name = "Sessions"
versoin = "v1"
[source]
topic = "clickstream raw"
format = "jsn"
colums = { a = "INT" }
sql = "SELECT 1"
[kafka]
[sink]
type = 7
"#;
    assert_eq!(
        problems(text),
        [
            "jobs (line 2): is unknown; did you mean [job]?",
            "job.name (line 4): \"Sessions\" cannot name files, branches and topics: 1 to 64 of a-z, 0-9, - and _, beginning with a letter; write \"sessions\"",
            "job.versoin (line 5): is unknown; did you mean version?",
            "source.topic (line 7): \"clickstream raw\" is not a topic name (1 to 249 characters of [A-Za-z0-9._-])",
            "source.format (line 8): must be \"json\" or \"avro\" or \"raw\", not \"jsn\" (did you mean \"json\"?)",
            "source.colums (line 9): is unknown; did you mean columns?",
            "source.sql (line 10): is unknown; it belongs in [query]",
            "kafka (line 11): is no section of a job: [kafka] belongs in everlog.toml",
            "sink.type (line 13): must be text in quotes, not the number 7",
            "job.version: is missing, add it like: version = \"v1\"",
            "query.sql: is missing, add it like: sql = \"SELECT …\"",
        ]
    );
    let error = Job::parse(text, "dir/job.toml").unwrap_err().to_string();
    assert_eq!(error.lines().count(), 11);
    assert!(error.lines().all(|line| line.starts_with("dir/job.toml: ")));
}

#[test]
fn what_is_no_toml_is_that_alone() {
    let found = problems("[job]\nname = \n[source");
    assert!(found.iter().any(|p| p.starts_with("line 2: ")), "{found:?}");
    assert!(
        found.iter().all(|p| !p.contains("missing, add")),
        "{found:?}"
    );
    assert_eq!(
        problems("job = 1\n")[0],
        "job (line 1): must be a section, written [job], not an integer"
    );
    let nowhere = Job::read(Path::new("/nowhere/job.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        nowhere.starts_with("/nowhere/job.toml: cannot be read: No such file"),
        "{nowhere}"
    );
}

#[test]
fn what_is_missing_is_told_with_an_example() {
    for (key, expected) in [
        (
            "name",
            "job.name: is missing, add it like: name = \"sessions\"",
        ),
        (
            "version",
            "job.version: is missing, add it like: version = \"v1\"",
        ),
        (
            "topic",
            "source.topic: is missing, add it like: topic = \"clickstream.raw\"",
        ),
        (
            "format",
            "source.format: is missing, add it like: format = \"json\"",
        ),
        (
            "columns",
            "source.columns: is missing, add it like: columns = { user_id = \"STRING NOT NULL\", timestamp_ms = \"BIGINT\" }",
        ),
        (
            "sql",
            "query.sql: is missing, add it like: sql = \"SELECT …\"",
        ),
        (
            "type",
            "sink.type: is missing, add it like: type = \"iceberg\"",
        ),
        (
            "path",
            "sink.path: is missing, add it like: path = \"sessions.jsonl\"",
        ),
    ] {
        assert_eq!(problems(&without(key)), [expected]);
    }
}

#[test]
fn names_are_fit_for_files_branches_and_topics() {
    let what = "cannot name files, branches and topics: 1 to";
    for name in ["1st", "a.b", "a b", "ä", "-a"] {
        refused(
            "job",
            &format!("name = {name:?}"),
            &format!("job.name: {name:?} {what} 64 of a-z, 0-9, - and _, beginning with a letter"),
        );
    }
    let long = "a".repeat(65);
    refused(
        "job",
        &format!("name = {long:?}"),
        &format!("job.name: {long:?} {what} 64 of a-z, 0-9, - and _, beginning with a letter"),
    );
    refused(
        "job",
        "version = \"1.0\"",
        &format!(
            "job.version: \"1.0\" {what} 32 of a-z, 0-9, - and _, beginning with a letter or digit"
        ),
    );
    refused(
        "job",
        "version = \"V2\"",
        &format!(
            "job.version: \"V2\" {what} 32 of a-z, 0-9, - and _, beginning with a letter or digit; write \"v2\""
        ),
    );
    for version in ["main", "before-v2", "everlog-x"] {
        refused(
            "job",
            &format!("version = {version:?}"),
            &format!(
                "job.version: {version:?} is a name that everlog gives itself; write one like \"v1\""
            ),
        );
    }
    refused("job", "name = \"\"", "job.name: must not be empty");
    refused(
        "job",
        "name = true",
        "job.name: must be text in quotes, not true",
    );
}

#[test]
fn the_source_is_checked() {
    let source =
        |line: &str, expected: &str| refused("source", line, &format!("source.{expected}"));
    source(
        "topic = \"^a.*\"",
        "topic: \"^a.*\" is not a topic name (1 to 249 characters of [A-Za-z0-9._-]); a job reads one topic",
    );
    source(
        "from = \"yesterday\"",
        "from: \"yesterday\": not one of beginning, offset:N, offset:GENERATION:N, timestamp:RFC3339",
    );
    source(
        "from = \"offset:x\"",
        "from: \"offset:x\": \"x\" is not an offset (a number from 0)",
    );
    source(
        "columns = \"user_id\"",
        "columns: must be a table of names and types, like { user_id = \"STRING NOT NULL\" }, not \"user_id\"",
    );
    source(
        "columns = { a = \"STRNG\" }",
        "columns.a: \"STRNG\" is not a column type: there is no type STRNG; did you mean STRING?",
    );
    source(
        "columns = { a = 1 }",
        "columns.a: must be a type in quotes, like \"BIGINT\", not the number 1",
    );
    source(
        "columns = { a.b = \"INT\" }",
        "columns.a: must be a type in quotes, like \"BIGINT\", not a table; for nested fields write \"ROW<name STRING, …>\", and a name with a dot in quotes",
    );
    source(
        "columns = {}",
        "columns: there are no columns: name at least one, like user_id = \"STRING NOT NULL\"",
    );
    source(
        "columns = { ts = \"BIGINT\" }",
        "columns.ts: is what SQL calls the event time: a field of that name can be declared only as it, by event_time = \"ts\"",
    );
    source(
        "columns = { _offset = \"BIGINT\" }",
        "columns._offset: is a column that every job has: it cannot be declared",
    );
    source(
        "registry = \"http://r\"",
        "registry: is for format = \"avro\": remove it",
    );
    source(
        "event_time = \"at\"",
        "out_of_orderness: is missing beside event_time: say how far records of a partition may be out of order, like: out_of_orderness = \"30s\"",
    );
    source(
        "out_of_orderness = 30",
        "out_of_orderness: must be text with a unit, like \"10s\", not the number 30",
    );
    source(
        "out_of_orderness = \"30\"",
        "out_of_orderness: \"30\" is not a duration: write a number with ms, s, m, h or d, like \"10s\"",
    );
    source(
        "out_of_orderness = \"400d\"",
        "out_of_orderness: is 400d, must be from 0ms to 365d",
    );
    source(
        "allowed_lateness = \"-1s\"",
        "allowed_lateness: \"-1s\" is not a duration: write a number with ms, s, m, h or d, like \"10s\"",
    );
    source(
        "event_time_scope = \"partitions\"",
        "event_time_scope: must be \"global\" or \"partition\", not \"partitions\" (did you mean \"partition\"?)",
    );
    source(
        "idle_timeout = \"1ms\"",
        "idle_timeout: is 1ms, must be from 1s to 365d",
    );
    source(
        "max_future = \"0s\"",
        "max_future: is 0ms, must be from 1s to 36500d",
    );
    source(
        "max_skew = \"0s\"",
        "max_skew: is 0ms, must be from 1s to 365d",
    );
    source(
        "on_error = \"skip\"",
        "on_error: must be \"dead_letter\" or \"stop\", not \"skip\" (did you mean \"stop\"?)",
    );
    source(
        "deduplicate = true",
        "deduplicate: must be like { by = [\"event_id\"], within = \"1h\" }, not true",
    );
    source(
        "deduplicate = { by = [], within = \"1h\" }",
        "deduplicate: must be like { by = [\"event_id\"], within = \"1h\" }",
    );
    source(
        "deduplicate = { by = [\"at\"] }",
        "deduplicate: must be like { by = [\"event_id\"], within = \"1h\" }",
    );
    source(
        "deduplicate = { by = [\"userid\"], within = \"1h\" }",
        "deduplicate: there is no column userid; did you mean user_id?",
    );
    source(
        "deduplicate = { by = [\"nothing\"], within = \"1h\" }",
        "deduplicate: there is no column nothing; the columns are user_id, amount, at",
    );
    source(
        "deduplicate = { on = [\"at\"], within = \"1h\" }",
        "deduplicate: on is unknown; did you mean by?",
    );
    source(
        "deduplicate = { by = [\"at\"], within = \"0s\" }",
        "deduplicate: within must be from 1ms to 365d",
    );
    source(
        "deduplicate = { by = [\"at\"], within = \"1\" }",
        "deduplicate: within: \"1\" is not a duration: write a number with ms, s, m, h or d, like \"10s\"",
    );
    source(
        "wherever = 1",
        "wherever: is unknown; [source] has topic, from, format, columns, registry, registry_user, registry_password, registry_token, registry_timeout, subject, event_time, out_of_orderness, allowed_lateness, event_time_scope, idle_timeout, max_future, max_skew, deduplicate, on_error",
    );
    let ts = with(
        "source",
        "columns = { ts = \"TIMESTAMP(3)\" }\nevent_time = \"ts\"\nout_of_orderness = \"1s\"",
    );
    Job::parse(&ts, "job.toml").unwrap();
    let scope = with(
        "source",
        "event_time_scope = \"partition\"\nidle_timeout = \"1m\"",
    );
    let why = "has no meaning with event_time_scope = \"partition\", where each partition has its own time: remove it";
    assert!(problems(&scope)[0].ends_with(why));
}

#[test]
fn raw_and_avro_have_their_own_keys() {
    let raw = |more: &str| {
        without("columns").replace("format = \"json\"", &format!("format = \"raw\"\n{more}"))
    };
    assert_eq!(
        Job::parse(&raw(""), "j").unwrap().source.format,
        Format::Raw
    );
    assert_eq!(
        problems(&raw("columns = { a = \"INT\" }")),
        [
            "source.columns (line 8): has no meaning with format = \"raw\", whose columns are key, value and headers: remove it"
        ]
    );
    let avro =
        |more: &str| SMALL.replace("format = \"json\"", &format!("format = \"avro\"\n{more}"));
    let job = Job::parse(&avro("registry = \"http://r:8081\""), "j").unwrap();
    let Format::Avro(avro_of) = job.source.format else {
        panic!("not Avro");
    };
    assert!(avro_of.columns.is_some());
    assert_eq!(avro_of.subject, "clickstream.raw-value");
    assert_eq!(avro_of.registry.auth, Auth::None);
    for (more, expected) in [
        (
            "",
            "source.registry: is missing, add it like: registry = \"http://127.0.0.1:8081\"",
        ),
        (
            "registry = \"r:8081\"",
            "source.registry (line 8): \"r:8081\" is no http:// or https:// address; write it like \"http://127.0.0.1:8081\"",
        ),
        (
            "registry = \"http://r\"\nregistry_user = \"ann\"",
            "source.registry_password: is missing beside registry_user, add it like: registry_password = \"env:REGISTRY_PASSWORD\"",
        ),
        (
            "registry = \"http://r\"\nregistry_password = \"x\"",
            "source.registry_user: is missing beside registry_password",
        ),
        (
            "registry = \"http://r\"\nregistry_user = \"ann\"\nregistry_token = \"x\"",
            "source.registry_token (line 10): excludes registry_user and registry_password: write a token or those",
        ),
        (
            "registry = \"http://r\"\nregistry_token = \"env:\"",
            "source.registry_token (line 9): names nothing: write env:NAME or file:PATH",
        ),
        (
            "registry = \"http://r\"\nregistry_timeout = \"1h\"",
            "source.registry_timeout (line 9): is 1h, must be from 100ms to 1m",
        ),
    ] {
        assert_eq!(problems(&avro(more)), [expected]);
    }
}

#[test]
fn the_sink_and_the_rest_are_checked() {
    refused(
        "sink",
        "type = \"s3\"",
        "sink.type: must be \"iceberg\" or \"kafka\" or \"jsonl\", not \"s3\"",
    );
    refused(
        "sink",
        "table = \"t\"",
        "sink.table: is for type = \"iceberg\": remove it",
    );
    refused(
        "sink",
        "topic = \"t\"",
        "sink.topic: is for type = \"kafka\": remove it",
    );
    refused(
        "sink",
        "key = [\"user_id\"]",
        "sink.key: is for type = \"kafka\": remove it",
    );
    refused(
        "sink",
        "timestamp = \"day\"",
        "sink.timestamp: is for type = \"kafka\": remove it",
    );
    for (key, found) in [
        ("\"user_id\"", "\"user_id\""),
        ("[]", "an array"),
        ("[1]", "an array"),
    ] {
        let kafka = SMALL.replace(
            "type = \"jsonl\"\npath = \"out.jsonl\"",
            &format!("type = \"kafka\"\ntopic = \"clean\"\nkey = {key}"),
        );
        let expected = format!(
            "sink.key (line 14): must name columns of the query, like [\"user_id\"], not {found}"
        );
        assert_eq!(problems(&kafka), [expected]);
    }
    refused(
        "sink",
        "output = \"branch\"",
        "sink.output: is for type = \"iceberg\": remove it",
    );
    refused(
        "sink",
        "late = \"file:x\"",
        "sink.late: must be \"count\", \"jsonl:PATH\" or \"kafka:TOPIC\", not \"file:x\"",
    );
    refused(
        "sink",
        "late = \"jsonl:\"",
        "sink.late: must be \"count\", \"jsonl:PATH\" or \"kafka:TOPIC\", not \"jsonl:\"",
    );
    refused(
        "sink",
        "late = \"jsonl:out.jsonl\"",
        "sink.late: goes to the same place as sink.path: give another one",
    );
    refused(
        "sink",
        "dead_letter = \"kafka:no way\"",
        "sink.dead_letter: \"no way\" is not a topic name (1 to 249 characters of [A-Za-z0-9._-])",
    );
    // rows, late records and dead letters go to topics of their version
    let own = SMALL
        .replace(
            "type = \"jsonl\"\npath = \"out.jsonl\"",
            "type = \"kafka\"\ntopic = \"clean\"\nlate = \"kafka:clean\"",
        )
        .replace("topic = \"clickstream.raw\"", "topic = \"clean.v1\"");
    assert_eq!(
        problems(&own),
        [
            "sink.topic (line 13): is the topic that the job reads: what it writes would come again; give another one",
            "sink.late (line 14): is the topic that the job reads: what it writes would come again; give another one",
            "sink.late (line 14): goes to the same place as sink.topic: give another one",
        ]
    );
    let of_another = own
        .replace("version = \"v1\"", "version = \"v2\"")
        .replace("late =", "# late =");
    assert!(Job::parse(&of_another, "job.toml").is_ok());
    let iceberg = |rest: &str| {
        SMALL.replace(
            "type = \"jsonl\"\npath = \"out.jsonl\"",
            &format!("type = \"iceberg\"\n{rest}"),
        )
    };
    assert_eq!(
        problems(&iceberg("")),
        ["sink.table: is missing, add it like: table = \"sessions\""]
    );
    assert_eq!(
        problems(&iceberg("table = \"lake.sessions\"")),
        [
            "sink.table (line 13): \"lake.sessions\" is no table name: up to 200 letters, digits and _; the namespace is the one in everlog.toml"
        ]
    );
    assert_eq!(
        problems(&iceberg("table = \"t\"\noutput = \"branches\"")),
        [
            "sink.output (line 14): must be \"branch\" or \"table\", not \"branches\" (did you mean \"branch\"?)"
        ]
    );
    let kafka = SMALL.replace("type = \"jsonl\"\npath = \"out.jsonl\"", "type = \"kafka\"");
    assert_eq!(
        problems(&kafka),
        ["sink.topic: is missing, add it like: topic = \"sessions\""]
    );
    refused(
        "checkpoint",
        "interval = \"1ms\"",
        "checkpoint.interval: is 1ms, must be from 100ms to 1h",
    );
    for (location, why) in [
        ("/var/lib", "is no location: write \"file:///var/lib\""),
        (
            "jobs",
            "is no location: write file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or abfss://…",
        ),
        (
            "file://var/lib",
            "names a host: a file's location has three slashes, file:///var/lib",
        ),
        (
            "ftp://x/y",
            "is no location: write file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or abfss://…",
        ),
        (
            "s3://",
            "is no location: write file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or abfss://…",
        ),
        (
            "file:///a/../b",
            "is no location: write file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or abfss://…",
        ),
    ] {
        refused(
            "checkpoint",
            &format!("location = {location:?}"),
            &format!("checkpoint.location: {location:?} {why}"),
        );
    }
    refused(
        "limits",
        "memory = \"1MiB\"",
        "limits.memory: is 1MiB, must be from 64MiB to 1024GiB",
    );
    refused(
        "limits",
        "memory = 512",
        "limits.memory: must be text with a unit, like \"512MiB\", not the number 512",
    );
    refused(
        "limits",
        "memory = \"1.5GiB\"",
        "limits.memory: \"1.5GiB\" is not a size: write a number with B, KiB, MiB or GiB, like \"512MiB\"",
    );
    refused(
        "limits",
        "threads = 0",
        "limits.threads: is 0, must be from 1 to 1024",
    );
    refused(
        "limits",
        "threads = \"2\"",
        "limits.threads: must be a whole number, not \"2\"",
    );
    refused(
        "limits",
        "rate = -1",
        "limits.rate: is -1, must be from 1 to 4294967295",
    );
}

#[test]
fn any_text_is_a_job_or_refused() {
    let documented = FULL.split("```toml\n").nth(1).unwrap();
    let documented = documented.split("```").next().unwrap();
    everlog_hostile::feed_text_within(
        everlog_hostile::SQL_BYTES_PER_BYTE,
        "job file",
        &[SMALL, documented],
        |text| {
            if let Err(error) = Job::parse(text, "job.toml") {
                assert!(!error.problems.is_empty());
            }
        },
    );
}
