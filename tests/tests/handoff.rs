//! History, then the live tail: no gap, no duplicate, whatever moves in between.

use std::sync::OnceLock;
use std::time::Duration;

use everlog_tests::broker::{Broker, PATIENCE};
use everlog_tests::compare::{Log, assert_same, count};
use everlog_tests::everlog::{Everlog, Setup, eventually, parse};
use everlog_tests::services::Kafka;

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

fn broker() -> Broker {
    Broker::new(&kafka().bootstrap)
}

/// What the log held over time: `earlier`, and then what `later` adds.
fn union(earlier: &Log, later: &Log) -> Log {
    let mut all = earlier.clone();
    for (partition, records) in later {
        let held = all.entry(*partition).or_default();
        let last = held.last().map_or(-1, |r| r.offset);
        held.extend(records.iter().filter(|r| r.offset > last).cloned());
    }
    all
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn the_tail_goes_on_where_the_archive_ends() {
    let (broker, topic) = (broker(), "handoff.plain");
    broker.create(topic, 3, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 3, 0..3_000);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    feed.fill(topic, 3, 3_000..5_000);
    let lines = everlog.ok(&["replay", topic, "--encoding", "base64", "--output", "jsonl"]);
    assert_same(&broker.dump(topic), &parse(&lines), "replay to now");
    assert_eq!(lines.matches(r#""source":"archive""#).count(), 3_000);
    assert_eq!(lines.matches(r#""source":"live""#).count(), 2_000);
}

#[tokio::test]
async fn h41_kafka_has_forgotten_what_the_archive_holds() {
    let (broker, topic) = (broker(), "handoff.forgotten");
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 2, 0..2_000);
    let before = broker.dump(topic);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    for partition in 0..2 {
        broker.delete_records(topic, partition, 900).await;
    }
    feed.fill(topic, 2, 2_000..2_600);
    let all = union(&before, &broker.dump(topic));
    assert_eq!(count(&all), 2_600);
    assert_same(&all, &everlog.replay(topic, &[]), "replay to now");
    // the whole archive is gone from Kafka, up to exactly the Cut
    for partition in 0..2 {
        broker.delete_records(topic, partition, 1_000).await;
    }
    assert_same(
        &all,
        &everlog.replay(topic, &[]),
        "replay to now, at the Cut",
    );
}

#[tokio::test]
async fn h42_a_hole_between_archive_and_log_is_an_error_that_names_it() {
    let (broker, topic) = (broker(), "handoff.hole");
    broker.create(topic, 1, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 1, 0..100);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    feed.fill(topic, 1, 100..200);
    broker.delete_records(topic, 0, 150).await;
    let output = everlog.run(&["replay", topic, "--output", "count"]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("100") && error.contains("150"), "{error}");
}

#[tokio::test]
async fn h01_b24_retention_overtakes_the_archiver() {
    let (broker, topic) = (broker(), "handoff.overtaken");
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 2, 0..200);
    let setup = Setup::new(&kafka().bootstrap, &[topic]);
    let everlog = Everlog::local(&setup);
    everlog.archive();
    let first = broker.dump(topic);
    feed.fill(topic, 2, 200..600);
    broker.delete_records(topic, 0, 200).await; // 100..200 of partition 0 is lost
    // stop: partition 0 stops and is named, partition 1 goes on
    let output = everlog.run(&["archive", "--until-caught-up"]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("100") && error.contains("200"), "{error}");
    let now = broker.dump(topic);
    let other: Log = [(1, now[&1].clone())].into();
    let replayed = everlog.replay(topic, &["--until", "snapshot", "--partitions", "1"]);
    assert_same(&other, &replayed, "the other partition went on");
    // record: the gap is written down for good, and replay passes it with a word
    everlog
        .beside(&setup.clone().archive("on_gap = \"record\""))
        .archive();
    let output = everlog.run(&["replay", topic, "--encoding", "base64", "--output", "jsonl"]);
    let error = stderr(&output);
    assert!(output.status.success(), "{error}");
    assert!(
        error.contains("100") && error.contains("200") && error.contains("gap"),
        "{error}"
    );
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_same(&union(&first, &now), &parse(&text), "replay over the gap");
    let output = everlog.run(&["replay", topic, "--on-gap", "stop", "--output", "count"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(everlog.ok(&["status", "--json"]).contains("retention"));
}

#[tokio::test]
async fn h12_b06_a_topic_that_was_created_again_is_a_new_generation() {
    let (broker, topic) = (broker(), "handoff.recreated");
    broker.create(topic, 1, &[]).await;
    broker.producer(&[]).fill(topic, 1, 0..300);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    let old = broker.dump(topic);
    broker.delete(topic).await;
    broker.create(topic, 1, &[]).await;
    // longer than the old one: by offsets alone it would go on silently at 300
    broker.producer(&[]).fill(topic, 1, 1_000..1_500);
    everlog.archive();
    let new = broker.dump(topic);
    let text = everlog.ok(&["replay", topic, "--encoding", "base64", "--output", "jsonl"]);
    let (first, second): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|l| l.contains(r#""generation":0"#));
    assert_same(&old, &parse(&first.join("\n")), "generation 0");
    assert_same(&new, &parse(&second.join("\n")), "generation 1");
    let switch = text.lines().position(|l| l.contains(r#""generation":1"#));
    assert_eq!(
        switch,
        Some(first.len()),
        "the older generation ends before the newer begins"
    );
}

#[tokio::test]
async fn h12_created_again_while_the_archiver_runs() {
    let (broker, topic) = (broker(), "handoff.recreated_live");
    broker.create(topic, 1, &[]).await;
    broker.producer(&[]).fill(topic, 1, 0..300);
    let setup = Setup::new(&kafka().bootstrap, &[topic]).archive("discovery_interval = \"1s\"");
    let everlog = Everlog::local(&setup);
    let running = everlog.start(&["archive"], "");
    let archived = || {
        let all = [
            "replay",
            topic,
            "--until",
            "snapshot",
            "--encoding",
            "base64",
            "--output",
            "jsonl",
        ];
        String::from_utf8_lossy(&everlog.run(&all).stdout)
            .lines()
            .count()
    };
    eventually("the first generation archived", PATIENCE, || {
        archived() == 300
    });
    let old = broker.dump(topic);
    broker.delete(topic).await;
    broker.create(topic, 1, &[]).await;
    broker.producer(&[]).fill(topic, 1, 1_000..1_700);
    let new = broker.dump(topic);
    eventually("the second generation archived", PATIENCE, || {
        archived() == 1_000
    });
    assert_eq!(running.stop(PATIENCE), Some(0));
    let text = everlog.ok(&["replay", topic, "--encoding", "base64", "--output", "jsonl"]);
    let (first, second): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|l| l.contains(r#""generation":0"#));
    assert_same(&old, &parse(&first.join("\n")), "generation 0");
    assert_same(&new, &parse(&second.join("\n")), "generation 1");
}

#[tokio::test]
async fn h12_created_again_under_a_follower_again_and_again() {
    let (broker, topic) = (broker(), "handoff.recreated_followed");
    broker.create(topic, 1, &[]).await;
    broker.producer(&[]).fill(topic, 1, 0..300);
    let setup = Setup::new(&kafka().bootstrap, &[topic]).archive("discovery_interval = \"1s\"");
    let everlog = Everlog::local(&setup);
    everlog.archive();
    let archiver = everlog.start(&["archive"], "");
    let path = everlog.dir().join("out.jsonl");
    let output = format!("jsonl:{}", path.display());
    let args = ["replay", topic, "--follow", "--encoding", "base64"];
    let follower = everlog.start(&[&args[..], &["--output", &output]].concat(), "");
    let emitted = |generation: u64| {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let of_it = format!(r#""generation":{generation},"#);
        let lines: Vec<&str> = text[..whole].lines().collect();
        let lines = lines.iter().filter(|l| l.contains(&of_it));
        parse(&lines.copied().collect::<Vec<_>>().join("\n"))
    };
    eventually("the first topic", PATIENCE, || count(&emitted(0)) == 300);
    let mut logs = vec![broker.dump(topic)];
    for generation in 1..=3 {
        broker.delete(topic).await;
        broker.create(topic, 1, &[]).await;
        // at once longer than all before: whoever goes on at an old offset finds something there
        let numbers = generation * 100_000..generation * 100_000 + 300 + 1_000 * generation;
        let records = numbers.end - numbers.start;
        broker.producer(&[]).fill(topic, 1, numbers);
        eventually("the new topic", PATIENCE, || {
            count(&emitted(generation)) as u64 == records
        });
        logs.push(broker.dump(topic));
    }
    assert_eq!(follower.stop(PATIENCE), Some(0));
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    for (generation, log) in (0..).zip(&logs) {
        let what = format!("generation {generation}");
        assert_same(log, &emitted(generation), &what);
    }
}

#[tokio::test]
async fn h14_h15_what_appears_later_is_read_from_its_first_offset() {
    let broker = broker();
    broker.create("later.one", 1, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill("later.one", 1, 0..200);
    let setup =
        Setup::new(&kafka().bootstrap, &["^later\\..*"]).archive("discovery_interval = \"1s\"");
    let everlog = Everlog::local(&setup);
    let running = everlog.start(&["archive"], "");
    let archived = |topic: &str| {
        let all = [
            "replay",
            topic,
            "--until",
            "snapshot",
            "--encoding",
            "base64",
            "--output",
            "jsonl",
        ];
        String::from_utf8_lossy(&everlog.run(&all).stdout)
            .lines()
            .count()
    };
    eventually("the first topic", PATIENCE, || archived("later.one") == 200);
    // records first, discovery later: none of them may be skipped
    broker.create("later.two", 2, &[]).await;
    feed.fill("later.two", 2, 0..300);
    broker.grow("later.one", 3).await;
    let feed = broker.producer(&[]);
    feed.fill("later.one", 3, 200..800);
    eventually("everything", PATIENCE, || {
        archived("later.one") == 800 && archived("later.two") == 300
    });
    assert_eq!(running.stop(PATIENCE), Some(0));
    for topic in ["later.one", "later.two"] {
        let replayed = everlog.replay(topic, &["--until", "snapshot"]);
        assert_same(&broker.dump(topic), &replayed, topic);
    }
}

#[tokio::test]
async fn a_following_replay_crosses_the_handoff_while_archive_and_log_move() {
    let (broker, topic) = (broker(), "handoff.follow");
    broker.create(topic, 3, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 3, 0..5_000);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    let archiver = everlog.start(&["archive"], "");
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
        "--resume",
        &positions,
    ];
    let lines = || std::fs::read_to_string(&path).map_or(0, |t| t.lines().count() as u64);
    let mut sent = 5_000_u64;
    // killed without warning in history, at the seam and in the tail; each time it goes on exactly
    for target in [1_000, 5_500, 7_000, 9_000] {
        let follower = everlog.start(&args, "");
        while sent < target {
            feed.fill(topic, 3, sent..sent + 500);
            sent += 500;
        }
        eventually("the follower moves", PATIENCE, || lines() >= target / 2);
        follower.kill();
    }
    let follower = everlog.start(&args, "");
    feed.fill(topic, 3, sent..sent + 700);
    sent += 700;
    eventually("the follower has everything", PATIENCE, || lines() >= sent);
    assert_eq!(follower.stop(Duration::from_secs(20)), Some(0));
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    let text = std::fs::read_to_string(&path).expect("the output");
    assert_same(&broker.dump(topic), &parse(&text), "follow with kills");
}
