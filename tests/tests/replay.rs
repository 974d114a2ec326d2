//! Every option of `everlog replay`, by the binary: what it gives, what it refuses, and what it leaves behind when it is
//! killed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use everlog_tests::broker::{Broker, Feed, Message, PATIENCE};
use everlog_tests::compare::{Log, Record, assert_same, count};
use everlog_tests::crashing::fail_points;
use everlog_tests::engines::foreign;
use everlog_tests::everlog::{Everlog, Setup, binary, parse};
use everlog_tests::services::Kafka;
use tokio::sync::OnceCell;

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

fn broker() -> Broker {
    Broker::new(&kafka().bootstrap)
}

const PARTITIONS: i32 = 4;
/// The event time that records begin at, 2023-11-14T22:13:20Z.
const EPOCH: i64 = 1_700_000_000_000;

/// Records with everything in them: keys and values that are null, empty or no text, headers, and event times that go
/// forth and back within a partition and are the same in several.
fn fill(feed: &Feed, topic: &str, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let number = i64::try_from(n).expect("small");
        let key = format!("user-{}", n % 7);
        let value = [n.to_string().as_bytes(), &[0xff, 0, b'\n']].concat();
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
                timestamp: Some(EPOCH + number / 8 * 1_000 - number % 3 * 1_700),
                headers,
            },
        );
    }
    feed.flush();
}

/// A topic of 4,000 records: three snapshots after 1,000 records each, and 1,000 records that are in Kafka alone. Shared,
/// and only read.
struct World {
    everlog: Everlog,
    log: Log,
    /// Per snapshot: its id, an instant at which it was the newest, and what it holds.
    snapshots: Vec<(String, String, Log)>,
}

const TOPIC: &str = "replay.options";

impl World {
    async fn get() -> &'static Self {
        static WORLD: OnceCell<World> = OnceCell::const_new();
        WORLD.get_or_init(Self::new).await
    }

    async fn new() -> Self {
        let broker = broker();
        broker.create(TOPIC, PARTITIONS, &[]).await;
        let feed = broker.producer(&[]);
        let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[TOPIC]));
        let mut snapshots = Vec::new();
        for round in 0..3 {
            fill(&feed, TOPIC, round * 1_000..(round + 1) * 1_000);
            everlog.archive();
            let id = foreign(&everlog, "replay_options", &["snapshots"])["current"].to_string();
            std::thread::sleep(Duration::from_millis(20));
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .expect("a time after 1970");
            std::thread::sleep(Duration::from_millis(20));
            let now = rfc3339(i64::try_from(now.as_millis()).expect("small"));
            snapshots.push((id, now, broker.dump(TOPIC)));
        }
        let tag = ["tag", "first", &snapshots[0].0];
        foreign(&everlog, "replay_options", &tag);
        fill(&feed, TOPIC, 3_000..4_000);
        Self {
            everlog,
            log: broker.dump(TOPIC),
            snapshots,
        }
    }

    #[track_caller]
    fn gives(&self, expected: &Log, args: &[&str]) {
        assert_same(expected, &self.everlog.replay(TOPIC, args), &args.join(" "));
    }
}

fn rfc3339(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .expect("in the calendar")
        .to_rfc3339()
}

/// Of every partition, the records that `keep` says.
fn only(log: &Log, keep: impl Fn(&Record) -> bool) -> Log {
    let kept = |records: &Vec<Record>| records.iter().filter(|r| keep(r)).cloned().collect();
    let mut some: Log = log.iter().map(|(p, records)| (*p, kept(records))).collect();
    some.retain(|_, records: &mut Vec<Record>| !records.is_empty());
    some
}

/// Of every partition, what lies before or from the first record at or after `ms`.
fn cut_by_time(log: &Log, from: Option<i64>, until: Option<i64>) -> Log {
    let first = |records: &[Record], ms: i64| {
        let at = records.iter().position(|r| r.timestamp >= Some(ms));
        at.unwrap_or(records.len())
    };
    let mut some = log.clone();
    for records in some.values_mut() {
        let end = until.map_or(records.len(), |ms| first(records, ms));
        let start = from.map_or(0, |ms| first(records, ms)).min(end);
        *records = records[start..end].to_vec();
    }
    some.retain(|_, records| !records.is_empty());
    some
}

#[tokio::test]
async fn from_until_partitions_and_snapshots_give_exactly_what_they_say() {
    let world = World::get().await;
    let log = &world.log;
    assert_eq!(count(log), 4_000);
    world.gives(log, &[]);
    let archived = &world.snapshots[2].2;
    world.gives(archived, &["--until", "snapshot"]);

    let some = only(log, |r| r.partition != 1);
    world.gives(&some, &["--partitions", "0,2-3"]);
    let some = only(archived, |r| r.partition == 1);
    world.gives(&some, &["--partitions", "1", "--until", "snapshot"]);

    // offsets, in both tiers: 750 of each partition are archived
    for from in [0, 600, 750, 900] {
        let some = only(log, |r| r.offset >= from);
        world.gives(&some, &["--from", &format!("offset:{from}")]);
        world.gives(&some, &["--from", &format!("offset:0:{from}")]);
    }
    for until in [10, 750, 900, 5_000] {
        let some = only(log, |r| r.offset < until);
        world.gives(&some, &["--until", &format!("offset:{until}")]);
    }
    let some = only(log, |r| (700..800).contains(&r.offset));
    world.gives(&some, &["--from", "offset:700", "--until", "offset:800"]);
    world.gives(
        &Log::new(),
        &["--from", "offset:800", "--until", "offset:700"],
    );

    // timestamps, in both tiers, where event time goes forth and back: the first record at or after
    for n in [0, 1_111, 3_000, 3_501] {
        let at = EPOCH + n / 8 * 1_000 - 700;
        let text = format!("timestamp:{}", rfc3339(at));
        world.gives(&cut_by_time(log, Some(at), None), &["--from", &text]);
        world.gives(&cut_by_time(log, None, Some(at)), &["--until", &text]);
    }
    let (early, late) = (EPOCH + 100_000, EPOCH + 400_000);
    let (from, until) = (rfc3339(early), rfc3339(late));
    let args = [
        "--from",
        &format!("timestamp:{from}"),
        "--until",
        &format!("timestamp:{until}"),
    ];
    world.gives(&cut_by_time(log, Some(early), Some(late)), &args);
    let after = format!("timestamp:{}", rfc3339(EPOCH + 10_000_000));
    world.gives(&Log::new(), &["--from", &after]);

    // older states: by id, by time, by tag; the tail has no part in them
    for (id, instant, held) in &world.snapshots {
        world.gives(held, &["--snapshot", id]);
        world.gives(held, &["--as-of", instant]);
    }
    let first = &world.snapshots[0].2;
    world.gives(first, &["--tag", "first"]);
    let some = only(first, |r| r.offset >= 100 && r.partition == 2);
    let args = [
        "--tag",
        "first",
        "--from",
        "offset:100",
        "--partitions",
        "2",
    ];
    world.gives(&some, &args);
    let some = only(first, |r| r.offset < 100);
    world.gives(&some, &["--tag", "first", "--until", "offset:100"]);

    // without Kafka: what ends in the archive needs none
    let alone = world.everlog.beside(&Setup::new("127.0.0.1:1", &[TOPIC]));
    let replayed = alone.replay(TOPIC, &["--until", "snapshot", "--lease", "off"]);
    assert_same(archived, &replayed, "without Kafka");
}

#[tokio::test]
async fn what_cannot_be_meant_is_one_line_and_the_right_exit_status() {
    let world = World::get().await;
    let setup = Setup::new(&kafka().bootstrap, &[TOPIC]);
    broker().create("replay.narrow", 2, &[]).await;
    let stamped = [("message.timestamp.type", "LogAppendTime")];
    broker().create("replay.stamped", 4, &stamped).await;
    let elsewhere = world.everlog.dir().join("no-such-folder").join("file");
    let elsewhere = elsewhere.display().to_string();
    let output = format!("jsonl:{elsewhere}");
    let torn = world.everlog.dir().join("torn.json");
    std::fs::write(&torn, "{\"version\":1,").expect("write");
    let torn = torn.display().to_string();
    let (oldest, newest) = (&world.snapshots[0].0, &world.snapshots[2].0);
    let cases: [(&[&str], i32, &[&str]); 30] = [
        (&["--from", "offset:-1"], 2, &["--from", "-1"]),
        (&["--from", "offset:x"], 2, &["--from", "x"]),
        (&["--from", "offset:7:0"], 2, &["generation 7"]),
        (&["--from", "offset:a:0"], 2, &["--from", "generation"]),
        (&["--from", "timestamp:yesterday"], 2, &["RFC 3339"]),
        (&["--until", "tomorrow"], 2, &["--until", "snapshot, now"]),
        (&["--until", "offset:1e3"], 2, &["--until", "1e3"]),
        (
            &["--until", "timestamp:2026-13-01T00:00:00Z"],
            2,
            &["RFC 3339"],
        ),
        (&["--follow", "--until", "now"], 2, &["--follow", "--until"]),
        (&["--follow", "--tag", "first"], 2, &["--follow", "--tag"]),
        (&["--snapshot", "12345"], 2, &["12345", "is not there"]),
        (&["--snapshot", "newest"], 2, &["--snapshot", "newest"]),
        (&["--tag", "nope"], 2, &["nope", "first"]),
        (&["--as-of", "1999-01-01T00:00:00Z"], 2, &["1999-01-01"]),
        (&["--as-of", "now"], 2, &["--as-of", "RFC 3339"]),
        (
            &["--as-of", "2026-01-01T00:00:00Z", "--snapshot", oldest],
            2,
            &["--snapshot"],
        ),
        (&["--partitions", "0,9"], 2, &["partition 9"]),
        (&["--partitions", "3-1"], 2, &["--partitions", "3-1"]),
        (&["--partitions", ""], 2, &["--partitions"]),
        (&["--order", "size"], 2, &["--order", "partition, time"]),
        (&["--rate", "fast"], 2, &["--rate", "fast"]),
        (&["--rate=-5"], 2, &["--rate", "-5"]),
        (&["--on-gap", "skip"], 2, &["--on-gap", "pass, stop"]),
        (&["--lease", "maybe"], 2, &["--lease", "auto"]),
        (&["--encoding", "hex"], 2, &["--encoding", "base64"]),
        (&["--output", &output], 1, &[&elsewhere]),
        (
            &["--output", "kafka:replay.nowhere"],
            2,
            &["replay.nowhere", "create it"],
        ),
        (
            &["--output", "kafka:replay.narrow"],
            2,
            &["2 partitions", "add partitions"],
        ),
        (&["--output", "kafka:replay.stamped"], 2, &["CreateTime"]),
        (&["--resume", &torn], 1, &[&torn, "remove it"]),
    ];
    for (args, status, expected) in cases {
        let all = [&["replay", TOPIC][..], args].concat();
        let error = if args.contains(&"kafka:replay.narrow") {
            world.everlog.fails(&all, status)
        } else {
            world.everlog.refuses(&all, status)
        };
        for part in expected {
            assert!(error.contains(part), "{args:?}: {part} is not in {error}");
        }
    }
    // text that is none is an error that names the record, and the way on
    let error = world.everlog.fails(&["replay", TOPIC], 1);
    assert!(
        error.contains("base64") && error.contains("offset"),
        "{error}"
    );
    // a positions file belongs to one replay
    let positions = world.everlog.dir().join("positions.json");
    let positions = positions.display().to_string();
    let args = ["replay", TOPIC, "--output", "count", "--resume", &positions];
    assert_eq!(world.everlog.ok(&args), "4000\n");
    for other in ["jsonl", "kafka:replay.narrow"] {
        let args = ["replay", TOPIC, "--output", other, "--resume", &positions];
        let error = world.everlog.fails(&args, 2);
        assert!(error.contains(&positions), "{error}");
    }
    let args = [
        "replay",
        "replay.narrow",
        "--output",
        "count",
        "--resume",
        &positions,
    ];
    let error = world.everlog.beside(&setup).fails(&args, 2);
    assert!(error.contains(&positions), "{error}");
    // resumed in an older state than it has reached already
    let args = [&args[2..], &["--snapshot", newest]].concat();
    let all = [&["replay", TOPIC][..], &args].concat();
    assert_eq!(world.everlog.ok(&all), "4000\n", "nothing is left to do");
}

/// What a merge by timestamp of the partitions' heads gives: ties by partition, then offset.
fn merged(log: &Log) -> Vec<(i32, i64)> {
    let mut rest: BTreeMap<i32, &[Record]> = log.iter().map(|(p, r)| (*p, &r[..])).collect();
    let mut order = Vec::new();
    loop {
        let heads = rest.values().filter_map(|r| r.first());
        let next = heads.min_by_key(|r| (r.timestamp, r.partition, r.offset));
        let Some(next) = next else {
            return order;
        };
        order.push((next.partition, next.offset));
        rest.entry(next.partition).and_modify(|r| *r = &r[1..]);
    }
}

/// (partition, offset) of every line.
fn sequence(text: &str) -> Vec<(i32, i64)> {
    let mut all = Vec::new();
    for line in text.lines() {
        for record in parse(line).into_values().flatten() {
            all.push((record.partition, record.offset));
        }
    }
    all
}

#[tokio::test]
async fn h48_order_by_time_is_the_merge_of_the_partitions_and_the_same_in_every_run() {
    let world = World::get().await;
    let args = ["replay", TOPIC, "--order", "time", "--encoding", "base64"];
    let history = [&args[..], &["--until", "snapshot"]].concat();
    let expected = merged(&world.snapshots[2].2);
    let first = world.everlog.ok(&history);
    assert_eq!(sequence(&first), expected);
    assert_eq!(world.everlog.ok(&history), first, "another run");
    let some = [
        &history[..],
        &["--partitions", "1,3", "--from", "offset:200"],
    ]
    .concat();
    let log = only(&world.snapshots[2].2, |r| {
        r.partition % 2 == 1 && r.offset >= 200
    });
    assert_eq!(sequence(&world.everlog.ok(&some)), merged(&log));
    // into the tail: total in history, then as it arrives, each partition in its own order
    let all = world.everlog.ok(&args);
    assert_eq!(sequence(&all)[..expected.len()], expected);
    assert_same(&world.log, &parse(&all), "by time, to now");
    // killed in history and resumed: the same order over both runs
    let positions = world.everlog.dir().join("by-time.json");
    let resume = [
        "--resume",
        &positions.display().to_string(),
        "--rate",
        "1500",
    ];
    let path = world.everlog.dir().join("by-time.jsonl");
    let output = ["--output", &format!("jsonl:{}", path.display())];
    let args = [&history[..], &output, &resume].concat();
    let killed = world.everlog.start(&args, "replay::position_saved@2");
    assert_eq!(killed.wait(PATIENCE), None, "not killed");
    world.everlog.ok(&args);
    let text = std::fs::read_to_string(&path).expect("the output");
    assert_eq!(sequence(&text), expected, "over two runs");
}

#[tokio::test]
async fn a_rate_is_kept_and_jsonl_is_as_kcat_writes_it() {
    let (broker, topic) = (broker(), "replay.text");
    broker.create(topic, 1, &[]).await;
    let feed = broker.producer(&[]);
    for (key, value, headers) in [
        (Some(&b"k"[..]), Some(&b"caf\xc3\xa9 \"q\"\n"[..]), vec![]),
        (None, None, vec![("h", Some(&b"1"[..])), ("n", None)]),
    ] {
        let message = Message {
            key,
            value,
            timestamp: Some(EPOCH),
            headers,
            ..Message::default()
        };
        feed.send(topic, &message);
    }
    feed.flush();
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    let expected = concat!(
        r#"{"topic":"replay.text","partition":0,"offset":0,"tstype":"create","ts":1700000000000,"headers":[],"key":"k","payload":"café \"q\"\n","generation":0,"source":"archive"}"#,
        "\n",
        r#"{"topic":"replay.text","partition":0,"offset":1,"tstype":"create","ts":1700000000000,"headers":["h","1","n",null],"key":null,"payload":null,"generation":0,"source":"archive"}"#,
        "\n"
    );
    let same = |a: &str, b: &str| {
        let json = |text: &str| -> Vec<serde_json::Value> {
            text.lines()
                .map(|l| serde_json::from_str(l).expect("JSON"))
                .collect()
        };
        assert_eq!(json(a), json(b));
    };
    same(&everlog.ok(&["replay", topic]), expected);
    // 900 events at 450 a second
    feed.fill(topic, 1, 0..898);
    let began = Instant::now();
    let output = everlog.ok(&["replay", topic, "--rate", "450", "--output", "count"]);
    let took = began.elapsed();
    assert_eq!(output, "900\n");
    assert!(
        (Duration::from_millis(1_700)..Duration::from_secs(8)).contains(&took),
        "900 events at 450 a second took {took:?}"
    );
}

/// How an output that is killed again and again is read in the end.
struct Killed {
    everlog: Everlog,
    topic: String,
    positions: String,
    output: String,
    /// Standard output of all runs.
    printed: Vec<String>,
}

impl Killed {
    fn args(&self, rate: &'static str) -> Vec<&str> {
        let mut args = vec!["replay", &self.topic, "--encoding", "base64"];
        args.extend(["--output", &self.output, "--resume", &self.positions]);
        args.extend(["--rate", rate]);
        args
    }

    /// Runs it until it kills itself at the fail point.
    fn kill_at(&mut self, point: &str) {
        let running = self.everlog.piped(&self.args("1500"), point);
        let (lines, status, said) = running.rest();
        assert_eq!(
            status, None,
            "{}: {point} was not reached: {said}",
            self.output
        );
        self.printed.extend(lines);
    }

    fn finish(&mut self) {
        let running = self.everlog.piped(&self.args("1000000"), "");
        let (lines, status, said) = running.rest();
        assert_eq!(status, Some(0), "{}: {said}", self.output);
        self.printed.extend(lines);
    }
}

/// Records without the offsets that they were written at.
fn unnumbered(log: &Log) -> Log {
    let mut log = log.clone();
    log.values_mut().flatten().for_each(|r| r.offset = 0);
    log
}

#[tokio::test]
async fn h46_b11_killed_in_history_at_the_seam_and_in_the_tail_every_event_goes_out_once() {
    let (broker, topic) = (broker(), "replay.killed");
    broker.create(topic, PARTITIONS, &[]).await;
    let feed = broker.producer(&[]);
    fill(&feed, topic, 0..3_000);
    let setup = Setup::new(&kafka().bootstrap, &[topic]);
    let everlog = Everlog::local(&setup);
    everlog.archive();
    fill(&feed, topic, 3_000..6_000);
    broker.create("replay.copy", PARTITIONS, &[]).await;

    // at 1,500 events a second a checkpoint falls into history, and one into the tail; points that a new version adds are
    // killed at, too
    let mut kills: Vec<String> = vec![
        "replay::output_written@1".to_owned(),
        "replay::output_final@2".to_owned(),
        "replay::position_saved@2".to_owned(),
        "replay::output_written@3".to_owned(),
    ];
    let seam = fail_points(&["replayer"]);
    assert!(seam.len() >= 6, "fail points are missing: {seam:?}");
    let named: BTreeSet<String> = kills
        .iter()
        .filter_map(|k| Some(k.split_once('@')?.0.to_owned()))
        .collect();
    kills.extend(seam.difference(&named).map(|point| format!("{point}@1")));
    let in_the_tail = ["replay::output_final@2", "replay::output_written@2"];
    kills.extend(in_the_tail.map(str::to_owned));

    let files = ["kafka:replay.copy", "jsonl:PATH", "jsonl"].map(|output| {
        let everlog = everlog.beside(&setup);
        let path = |name: &str| everlog.dir().join(name).display().to_string();
        Killed {
            topic: topic.to_owned(),
            positions: path("positions.json"),
            output: output.replace("PATH", &path("out.jsonl")),
            printed: Vec::new(),
            everlog,
        }
    });
    let ended: Vec<Killed> = std::thread::scope(|scope| {
        let threads = files.map(|mut run| {
            let kills = &kills;
            scope.spawn(move || {
                for point in kills {
                    run.kill_at(point);
                }
                run.finish();
                run
            })
        });
        threads.map(|t| t.join().expect("no panic")).into()
    });
    let log = broker.dump(topic);
    assert_eq!(count(&log), 6_000);
    let mut ended = ended.into_iter();
    let (mut copy, mut file, mut printed) = (
        ended.next().expect("three"),
        ended.next().expect("three"),
        ended.next().expect("three"),
    );
    // the topic: partition, key, value, headers and timestamps, each once and in order
    let found = broker.dump("replay.copy");
    assert_same(&unnumbered(&log), &unnumbered(&found), "the copy");
    let path = file
        .output
        .strip_prefix("jsonl:")
        .expect("a path")
        .to_owned();
    let read = || parse(&std::fs::read_to_string(&path).expect("the output"));
    assert_same(&log, &read(), "the file");
    // standard output: at least once. A killed run may leave half a line; each run goes on at or before where the last ended
    let mut seen: BTreeMap<i32, i64> = BTreeMap::new();
    let mut distinct = Log::new();
    let whole = printed.printed.iter().filter(|l| l.ends_with('\n'));
    for record in whole.flat_map(|l| parse(l).into_values().flatten()) {
        let next = seen.entry(record.partition).or_insert(0);
        assert!(record.offset <= *next, "left out: {next} of {record:?}");
        if record.offset == *next {
            *next += 1;
            distinct.entry(record.partition).or_default().push(record);
        }
    }
    assert_same(&log, &distinct, "standard output");

    // once at the end, a run has nothing to do; and what is new is all that it does then
    printed.printed.clear();
    for round in [0, 1] {
        for run in [&mut copy, &mut file, &mut printed] {
            run.finish();
        }
        let log = broker.dump(topic);
        let found = broker.dump("replay.copy");
        assert_same(&unnumbered(&log), &unnumbered(&found), "the copy, again");
        assert_same(&log, &read(), "the file, again");
        assert_eq!(printed.printed.len(), round * 200, "standard output, again");
        if round == 0 {
            fill(&feed, topic, 6_000..6_200);
        }
    }
}

#[tokio::test]
async fn a_pipe_shows_no_progress_and_may_break_and_a_terminal_shows_it() {
    let world = World::get().await;
    let args = ["replay", TOPIC, "--encoding", "base64"];
    // `| head -3`
    let mut piped = world.everlog.piped(&args, "");
    assert_eq!(piped.lines(3).len(), 3);
    piped.hang_up();
    let (_, status, said) = piped.rest();
    assert_eq!((status, said.as_str()), (Some(0), ""), "a broken pipe");
    // everything: one line of summary, and nothing of a bar
    let output = world.everlog.run(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().count(), 1, "{said:?}");
    assert!(said.starts_with("4,000 events"), "{said}");
    assert!(!said.contains(['\r', '\u{1b}']), "{said:?}");
    // on a terminal the bar says how many, how fast, which tier, and how much is left
    let command = format!(
        "{} --config {} replay {TOPIC} --rate 4000 --output count",
        binary().display(),
        world.everlog.config.display()
    );
    let seen = on_a_terminal(&command);
    for part in [
        "%",
        "/s",
        "archive",
        "ETA",
        "2023-11-14T",
        "\u{1b}[",
        "4000",
    ] {
        assert!(seen.contains(part), "{part} is not in {seen:?}");
    }
}

/// What a command shows on a terminal, by util-linux' `script`.
fn on_a_terminal(command: &str) -> String {
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run script (util-linux)");
    // the terminal is open as long as our end of it is
    let mut input = child.stdin.take().expect("piped");
    let _ = input.flush();
    let output = child.wait_with_output().expect("wait");
    drop(input);
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{seen}");
    seen
}

#[tokio::test]
async fn h45_a_live_reader_that_falls_behind_retention_goes_back_to_history() {
    let (broker, topic) = (broker(), "replay.behind");
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 2, 0..400);
    // a reader that stands still in the tail: the pipe is full, and what the client holds is little
    let setup = Setup::new(&kafka().bootstrap, &[topic]).replay("memory = \"16MiB\"");
    let everlog = Everlog::local(&setup);
    everlog.archive();
    let follow = ["replay", topic, "--follow", "--encoding", "base64"];
    let mut follower = everlog.piped(&follow, "");
    let mut lines = follower.lines(400);
    feed.fill_noise(topic, 2, 400, 100_000);
    let mut all = broker.dump(topic);
    everlog.archive();
    for partition in 0..2 {
        let (_, end) = broker.bounds(topic, partition);
        broker.delete_records(topic, partition, end).await;
    }
    feed.fill(topic, 2, 400..600);
    for (partition, records) in broker.dump(topic) {
        all.entry(partition).or_default().extend(records);
    }
    lines.extend(follower.lines(600));
    assert_same(&all, &parse(&lines.concat()), "the follower");
    let back = lines[400..]
        .iter()
        .filter(|l| l.contains(r#""source":"archive""#));
    assert!(back.count() > 0, "it never went back to history");
    // whoever read it goes away: it ends with the next event
    follower.hang_up();
    feed.fill(topic, 2, 600..610);
    let (_, status, said) = follower.rest();
    assert_eq!(status, Some(0), "{said}");
    assert!(!said.contains("error"), "{said}");
}
