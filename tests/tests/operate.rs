//! As an operator meets it: health and metrics, an orderly end, and the memory that is promised, measured on the process
//! as the kernel's peak of what it took.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use everlog_tests::broker::{Broker, Message};
use everlog_tests::compare::{Log, assert_same};
use everlog_tests::everlog::{Everlog, Measured, Setup, eventually, get, memory_peak, parse};
use everlog_tests::services::{Kafka, free_ports};
use serde_json::Value;

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(|| Kafka::start_with(&["--set", "message.max.bytes=115000000"]))
}

const PATIENCE: Duration = Duration::from_mins(4);
const MIB: u64 = 1 << 20;
const HELD: &str = "everlog_archiver_memory_held_bytes";

#[track_caller]
fn assert_within(measured: &Measured, bound: u64, what: &str) {
    assert_eq!(measured.code, Some(0), "{what}: {}", measured.stderr);
    let peak = measured.memory_peak;
    println!("{what}: {} MiB at most", peak / MIB);
    assert!(
        (MIB..=bound).contains(&peak),
        "{what} took {} MiB, more than {} MiB",
        peak / MIB,
        bound / MIB
    );
}

#[tokio::test]
async fn h20_a_record_of_100_mb_goes_through_whole() {
    const RECORD: u64 = 100_000_000;
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "limits.large");
    broker
        .create(topic, 2, &[("max.message.bytes", "115000000")])
        .await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 2, 0..1_000);
    let mut large = vec![0_u8; usize::try_from(RECORD).expect("small")];
    for (i, byte) in large.iter_mut().enumerate() {
        *byte = (i * i / 7 % 251) as u8;
    }
    feed.send(
        topic,
        &Message {
            value: Some(&large),
            ..Message::default()
        },
    );
    drop(large);
    feed.fill(topic, 2, 1_000..2_000);
    let everlog = Everlog::local(
        &Setup::new(&kafka().bootstrap, &[topic])
            .archive("memory = \"64MiB\"")
            .replay("memory = \"16MiB\""),
    );
    // the setting and the process itself, and the record as often as it is there at once: as it was fetched, as a column,
    // encoded, and on its way to the store
    let bound = |setting: u64| (setting + 64) * MIB + 4 * RECORD;
    let archived = everlog.measured(&["archive", "--until-caught-up"], PATIENCE);
    assert_within(&archived, bound(64), "archiving 100 MB at once");
    let path = everlog.dir().join("out.jsonl");
    let output = format!("jsonl:{}", path.display());
    let args = ["replay", topic, "--encoding", "base64", "--output", &output];
    let archive = everlog.measured(&[&args[..], &["--until", "snapshot"]].concat(), PATIENCE);
    assert_within(&archive, bound(16), "replaying 100 MB at once");
    let log = broker.dump(topic);
    let text = std::fs::read_to_string(&path).expect("the output");
    assert_same(&log, &parse(&text), "from the archive");
    drop(text);
    // and from the live topic: of the archive nothing but the first records
    let tail = everlog.beside(
        &Setup::new(&kafka().bootstrap, &[topic])
            .archive("memory = \"64MiB\"")
            .replay("memory = \"16MiB\""),
    );
    let live = tail.measured(&args, PATIENCE);
    assert_within(&live, bound(16), "replaying it to now");
}

#[tokio::test]
async fn a_thousand_partitions_stay_within_the_memory_that_is_promised() {
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "limits.wide");
    broker.create(topic, 1_000, &[]).await;
    // half as much again as the archiver may hold
    let feed = broker.producer(&[("linger.ms", "100")]);
    feed.fill_noise(topic, 1_000, 120_000, 4_000);
    let everlog = Everlog::local(
        &Setup::new(&kafka().bootstrap, &[topic]).archive("commit_interval = \"1h\""),
    );
    let archived = everlog.measured(&["archive", "--until-caught-up"], PATIENCE);
    assert_within(&archived, 512 * MIB, "archiving 1,000 partitions");
    let args = ["replay", topic, "--until", "snapshot", "--output", "count"];
    let replayed = everlog.measured(&args, PATIENCE);
    assert_within(&replayed, 256 * MIB, "replaying 1,000 partitions");
    assert_eq!(replayed.stdout.trim(), "120000");
}

/// How many threads a process has.
fn threads(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn many_topics_take_the_memory_that_is_promised_and_each_round_one_commit_a_topic() {
    const TOPICS: usize = 120;
    const BACKLOG: u64 = 125;
    const ROUNDS: u64 = 2;
    let broker = Broker::new(&kafka().bootstrap);
    let topics: Vec<String> = (0..TOPICS).map(|n| format!("limits.many.{n:03}")).collect();
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    broker.create_all(&names, 1, &[]).await;
    let feed = broker.producer(&[("linger.ms", "100")]);
    // together twice as much as may be held
    let value = vec![7; 8_000];
    let message = Message {
        value: Some(&value),
        ..Message::default()
    };
    for _ in 0..BACKLOG {
        for topic in &topics {
            feed.send(topic, &message);
        }
    }
    feed.flush();
    let port = free_ports(1);
    let everlog = Everlog::local(
        &Setup::new(&kafka().bootstrap, &[r"^limits\.many\."])
            .archive(&format!("http = \"127.0.0.1:{port}\""))
            .archive("commit_interval = \"500ms\"")
            .archive("memory = \"64MiB\""),
    );
    let archiver = everlog.start(&["archive"], "");
    let until_archived = |next: u64| {
        eventually("everything archived", PATIENCE, || {
            let m = get(port, "/metrics").map_or_else(BTreeMap::new, |_| metrics(port));
            topics.iter().all(|topic| {
                let name = "everlog_archiver_ledger_next_offset";
                let next_of = m.get(&format!("{name}{{topic=\"{topic}\",partition=\"0\"}}"));
                next_of.is_some_and(|n| (n - next as f64).abs() < 0.5)
            })
        });
    };
    // commits that landed, commits that did not, and data files, of all topics
    let work = || {
        let m = metrics(port);
        let sum = |is_it: &dyn Fn(&str) -> bool| -> f64 {
            m.iter().filter(|(k, _)| is_it(k)).map(|(_, v)| v).sum()
        };
        let is_commit = |k: &str| k.starts_with("everlog_archiver_commits_total{");
        let has_landed = |k: &str| k.contains("outcome=\"committed\"");
        [
            sum(&|k| is_commit(k) && has_landed(k)),
            sum(&|k| is_commit(k) && !has_landed(k)),
            sum(&|k| k.starts_with("everlog_archiver_files_written_total{")),
        ]
        .map(|n| n as u64)
    };
    until_archived(BACKLOG);
    let [mut commits, failed, mut files] = work();
    assert_eq!(failed, 0);
    for round in 0..ROUNDS {
        for topic in &topics {
            feed.send(
                topic,
                &Message {
                    value: Some(b"one"),
                    ..Message::default()
                },
            );
        }
        feed.flush();
        until_archived(BACKLOG + round + 1);
        let [commits_now, failed_now, files_now] = work();
        let of_round = (commits_now - commits, failed_now, files_now - files);
        assert_eq!(of_round, (TOPICS as u64, 0, TOPICS as u64), "round {round}");
        (commits, files) = (commits_now, files_now);
    }
    // neither a thread nor a share of memory for each topic: the setting and the process itself
    let (peak, threads) = (memory_peak(archiver.pid()), threads(archiver.pid()));
    println!(
        "{TOPICS} topics: {} MiB at most, {threads} threads",
        peak / MIB
    );
    assert!(peak <= (64 + 96) * MIB, "{} MiB", peak / MIB);
    assert!((1..TOPICS).contains(&threads), "{threads} threads");
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    let report: Value = serde_json::from_str(&everlog.ok(&["status", "--json"])).expect("JSON");
    for (topic, of_topic) in topics
        .iter()
        .zip(report["topics"].as_array().expect("topics"))
    {
        assert_eq!(of_topic["topic"], topic.as_str());
        assert_eq!(of_topic["table"]["rows"], BACKLOG + ROUNDS, "{topic}");
        assert_eq!(of_topic["partitions"][0]["lag_records"], 0, "{topic}");
    }
    for topic in topics.iter().step_by(40) {
        let replayed = everlog.replay(topic, &["--until", "snapshot"]);
        assert_same(&broker.dump(topic), &replayed, topic);
    }
}

/// What `/metrics` says, by name and labels.
fn metrics(port: u16) -> BTreeMap<String, f64> {
    let (status, text) = get(port, "/metrics").expect("an answer");
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    lines.filter_map(sample).collect()
}

/// `/healthz`: its status, and what it says.
fn health(port: u16) -> (u16, Value) {
    let (status, text) = get(port, "/healthz").expect("an answer");
    (status, serde_json::from_str(&text).expect("JSON"))
}

#[tokio::test]
async fn health_readiness_and_metrics_tell_what_the_broker_and_the_table_hold() {
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "operate.metrics");
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 2, 0..1_000);
    let port = free_ports(1);
    let setup = Setup::new(&kafka().bootstrap, &[topic])
        .archive(&format!("http = \"127.0.0.1:{port}\""))
        .archive("commit_interval = \"200ms\"");
    let everlog = Everlog::local(&setup);
    let archiver = everlog.start(&["archive"], "");
    eventually("readiness", PATIENCE, || {
        get(port, "/readyz").is_some_and(|(status, _)| status == 200)
    });
    let next = |m: &BTreeMap<String, f64>, partition: i32| {
        let labels = format!("{{topic=\"{topic}\",partition=\"{partition}\"}}");
        let of = |name: &str| m.get(&format!("everlog_archiver_{name}{labels}")).copied();
        (
            of("ledger_next_offset"),
            of("lag_records"),
            of("retention_headroom_seconds"),
        )
    };
    eventually("everything archived", PATIENCE, || {
        // nothing is ever deleted, so headroom has no end
        let all = (Some(500.0), Some(0.0), Some(f64::INFINITY));
        let m = metrics(port);
        next(&m, 0) == all && next(&m, 1) == all
    });
    let m = metrics(port);
    let of = |name: &str| m[&format!("everlog_archiver_{name}{{topic=\"{topic}\"}}")];
    assert!((of("records_total") - 1_000.0).abs() < 0.5, "{m:?}");
    assert!(of("files_written_total") >= 1.0 && of("bytes_written_total") > 1_000.0);
    let commits =
        m[&format!("everlog_archiver_commits_total{{topic=\"{topic}\",outcome=\"committed\"}}")];
    assert!(commits >= 1.0 && (of("commit_seconds_count") - commits).abs() < 0.5);
    let (status, said) = health(port);
    assert_eq!((status, said["status"].as_str()), (200, Some("ok")));
    assert_eq!(said["topics"][topic]["next"]["1"], 500, "{said}");
    // what a script reads agrees with it, and with the broker
    let report: Value = serde_json::from_str(&everlog.ok(&["status", "--json"])).expect("JSON");
    let of_topic = &report["topics"][0];
    assert_eq!(of_topic["topic"], topic);
    assert_eq!(of_topic["table"]["rows"], 1_000);
    assert_eq!(
        of_topic["table"]["snapshot_id"],
        said["topics"][topic]["snapshot_id"]
    );
    for partition in 0..2_i32 {
        let line = &of_topic["partitions"][usize::try_from(partition).expect("small")];
        let (start, end) = broker.bounds(topic, partition);
        assert_eq!(
            (line["log"]["start"].as_i64(), line["log"]["end"].as_i64()),
            (Some(start), Some(end))
        );
        assert_eq!(line["archive"]["next"].as_i64(), Some(end));
        assert_eq!(line["lag_records"], 0);
        assert_eq!(line["headroom"]["state"], "unlimited");
    }
    assert_eq!(get(port, "/other").map(|(status, _)| status), Some(404));
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    assert_eq!(get(port, "/healthz"), None, "it still listens");

    // Kafka was faster: that partition stops, is named, and the process says so at its end; the other one goes on
    feed.fill(topic, 2, 1_000..1_400);
    broker.delete_records(topic, 0, 600).await;
    let archiver = everlog.start(&["archive"], "");
    eventually("the gap is told", PATIENCE, || {
        get(port, "/healthz").is_some_and(|(status, _)| status == 503)
    });
    let (_, said) = health(port);
    let reason = &said["reasons"][0];
    assert_eq!(reason["reason"], "retention", "{said}");
    assert_eq!(
        (reason["topic"].as_str(), reason["partition"].as_i64()),
        (Some(topic), Some(0))
    );
    let stopped = format!(
        "everlog_archiver_partition_stopped{{topic=\"{topic}\",partition=\"0\",reason=\"retention\"}}"
    );
    assert!((metrics(port)[&stopped] - 1.0).abs() < 0.5);
    eventually("the other partition goes on", PATIENCE, || {
        next(&metrics(port), 1).0 == Some(700.0)
    });
    assert_eq!(archiver.stop(PATIENCE), Some(3));
}

#[tokio::test]
async fn an_orderly_end_makes_a_last_commit() {
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "operate.end");
    broker.create(topic, 3, &[]).await;
    let feed = broker.producer(&[]);
    let port = free_ports(1);
    let everlog = Everlog::local(
        &Setup::new(&kafka().bootstrap, &[topic])
            .archive(&format!("http = \"127.0.0.1:{port}\""))
            .archive("commit_interval = \"1h\""),
    );
    let mut archived = 0;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        feed.fill(topic, 3, archived..archived + 900);
        archived += 900;
        let archiver = everlog.start(&["archive"], "");
        // read, and not committed for an hour to come: what it holds grows no more
        let (mut held, mut since) = (0.0, Instant::now());
        eventually("everything read", PATIENCE, || {
            let now = get(port, "/metrics").map_or(0.0, |_| metrics(port)[HELD]);
            if (now - held).abs() > 0.5 {
                (held, since) = (now, Instant::now());
            }
            held > 50_000.0 && since.elapsed() > Duration::from_millis(1_500)
        });
        assert_eq!(archiver.end_by(signal, Duration::from_secs(30)), Some(0));
        let replayed = everlog.replay(topic, &["--until", "snapshot"]);
        assert_same(&broker.dump(topic), &replayed, "after the last commit");
    }
    // a replay that follows ends in order, too, with what it wrote saved
    let path = everlog.dir().join("out.jsonl");
    let output = format!("jsonl:{}", path.display());
    let positions = everlog.dir().join("positions.json").display().to_string();
    let args = [
        "replay",
        topic,
        "--follow",
        "--encoding",
        "base64",
        "--output",
        &output,
    ];
    let read = || -> Log { parse(&std::fs::read_to_string(&path).unwrap_or_default()) };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let follower = everlog.start(&[&args[..], &["--resume", &positions]].concat(), "");
        feed.fill(topic, 3, archived..archived + 300);
        archived += 300;
        eventually("the follower has everything", PATIENCE, || {
            std::fs::read_to_string(&path).is_ok_and(|t| t.lines().count() as u64 == archived)
        });
        assert_eq!(follower.end_by(signal, Duration::from_secs(30)), Some(0));
        let saved: Value =
            serde_json::from_str(&std::fs::read_to_string(&positions).expect("saved"))
                .expect("JSON");
        assert_eq!(saved["events"].as_u64(), Some(archived), "{saved}");
    }
    assert_same(&broker.dump(topic), &read(), "the follower");
}

#[tokio::test]
async fn b04_health_fails_while_a_frozen_broker_holds_what_is_to_be_read_and_heals() {
    let cluster = Kafka::start();
    let (broker, topic) = (Broker::new(&cluster.bootstrap), "operate.frozen");
    broker.create(topic, 1, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 1, 0..500);
    let port = free_ports(1);
    let everlog = Everlog::local(
        &Setup::new(&cluster.bootstrap, &[topic])
            .archive(&format!("http = \"127.0.0.1:{port}\""))
            .archive("commit_interval = \"3s\""),
    );
    let mut archiver = everlog.start(&["archive"], "");
    let next = || {
        let said = get(port, "/healthz")?.1;
        let said: Value = serde_json::from_str(&said).ok()?;
        said["topics"][topic]["next"]["0"].as_i64()
    };
    eventually("the first commit", PATIENCE, || next() == Some(500));
    feed.fill(topic, 1, 500..600);
    cluster.node("pause-node", 1);
    assert_eq!(health(port).0, 200, "a broker may be slow");
    eventually("health fails", PATIENCE, || health(port).0 == 503);
    let (_, said) = health(port);
    let reasons = said["reasons"].as_array().expect("a list");
    let known = ["brokers", "stalled", "held"];
    assert!(
        !reasons.is_empty()
            && reasons
                .iter()
                .all(|r| known.contains(&r["reason"].as_str().unwrap_or_default())),
        "{said}"
    );
    assert!(archiver.is_running(), "{}", archiver.log());
    cluster.node("resume-node", 1);
    eventually("health is back", PATIENCE, || {
        health(port).0 == 200 && next() == Some(600)
    });
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    assert_same(
        &broker.dump(topic),
        &everlog.replay(topic, &["--until", "snapshot"]),
        "after the freeze",
    );
}

#[tokio::test]
async fn d1_an_archiver_whose_catalog_is_lost_touches_nothing_of_the_table_that_it_does_not_know() {
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "operate.lost");
    broker.create(topic, 2, &[]).await;
    broker.producer(&[]).fill(topic, 2, 0..500);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    // the database and what it keeps beside it
    let files = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).expect("a folder");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths
            .filter(|path| path.display().to_string().contains("/catalog.db"))
            .collect()
    };
    let away = tempfile::tempdir_in(everlog.dir()).expect("a folder");
    let moved = |from: &Path, to: &Path| {
        for path in files(from) {
            let name = path.file_name().expect("a name");
            std::fs::rename(&path, to.join(name)).expect("moved");
        }
    };
    moved(everlog.dir(), away.path());
    let said = everlog.fails(&["archive", "--until-caught-up"], 2);
    assert!(
        said.contains("does not know") && said.contains("catalog.name"),
        "{said}"
    );
    for path in files(everlog.dir()) {
        std::fs::remove_file(path).expect("removed");
    }
    moved(away.path(), everlog.dir());
    assert_same(
        &broker.dump(topic),
        &everlog.replay(topic, &["--until", "snapshot"]),
        "with the catalog that it had",
    );
}
