//! Killed, doubled, disturbed: afterwards the union of archive and tail equals the broker's log, record by record.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use everlog_tests::broker::{Broker, PATIENCE};
use everlog_tests::compare::{assert_same, count};
use everlog_tests::crashing::fail_points;
use everlog_tests::everlog::{Everlog, Setup, eventually};
use everlog_tests::services::Kafka;

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

fn broker() -> Broker {
    Broker::new(&kafka().bootstrap)
}

/// Archive and tail against the log.
#[track_caller]
fn assert_whole(broker: &Broker, everlog: &Everlog, topic: &str, what: &str) {
    let log = broker.dump(topic);
    assert_same(&log, &everlog.replay(topic, &["--until", "snapshot"]), what);
    assert_same(&log, &everlog.replay(topic, &[]), what);
}

#[tokio::test]
async fn p01_p08_killed_at_every_fail_point_of_a_commit_under_load() {
    let broker = broker();
    let points = fail_points(&["archiver", "common/table"]);
    assert!(points.len() >= 8, "fail points are missing: {points:?}");
    let mut never_reached = Vec::new();
    for (i, point) in points.iter().enumerate() {
        let topic = format!("crash.point{i}");
        broker.create(&topic, 2, &[]).await;
        let setup =
            Setup::new(&kafka().bootstrap, &[&topic]).archive("commit_interval = \"200ms\"");
        let everlog = Everlog::local(&setup);
        let feed = broker.producer(&[]);
        let mut sent = 0;
        for hit in [1, 3] {
            let mut running = everlog.start(&["archive"], &format!("{point}@{hit}"));
            let mut rounds = 0;
            // load while it runs: the kill comes in the middle of it
            while running.is_running() && rounds < 200 {
                feed.fill(&topic, 2, sent..sent + 100);
                sent += 100;
                rounds += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            if running.is_running() {
                never_reached.push(format!("{point}@{hit}"));
                running.kill();
            } else {
                assert_eq!(
                    running.wait(PATIENCE),
                    None,
                    "{point}@{hit}: ended by itself"
                );
            }
        }
        everlog.archive();
        assert_whole(&broker, &everlog, &topic, point);
        assert_eq!(count(&broker.dump(&topic)) as u64, sent);
    }
    // each is met once; not each, in these seconds, three times
    let missed: Vec<_> = never_reached.iter().filter(|p| p.ends_with("@1")).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

#[tokio::test]
async fn p03_b02_two_archivers_on_the_same_partitions_double_nothing() {
    let (broker, topic) = (broker(), "crash.rivals");
    broker.create(topic, 4, &[]).await;
    let setup = Setup::new(&kafka().bootstrap, &[topic]).archive("commit_interval = \"300ms\"");
    let one = Everlog::local(&setup);
    let two = one.beside(&setup);
    let (first, second) = (one.start(&["archive"], ""), two.start(&["archive"], ""));
    let feed = broker.producer(&[]);
    for round in 0..40_u64 {
        feed.fill(topic, 4, round * 500..(round + 1) * 500);
        std::thread::sleep(Duration::from_millis(100));
    }
    // both survive, or one gives up with the status that says so; together they go on
    let ends = [first.stop(PATIENCE), second.stop(PATIENCE)];
    assert!(ends.iter().all(|e| matches!(e, Some(0 | 5))), "{ends:?}");
    one.archive();
    assert_whole(&broker, &one, topic, "two archivers at once");
    assert_eq!(count(&broker.dump(topic)), 20_000);
}

#[tokio::test]
async fn h23_b01_a_rebalance_storm_loses_and_doubles_nothing_and_makes_progress() {
    let (broker, topic) = (broker(), "crash.storm");
    broker.create(topic, 6, &[]).await;
    let setup = Setup::new(&kafka().bootstrap, &[topic])
        .archive("commit_interval = \"300ms\"")
        .archive("group = \"storm\"");
    let setup = Setup {
        kafka: vec!["\"session.timeout.ms\" = \"6000\"".to_owned()],
        ..setup
    };
    let one = Everlog::local(&setup);
    let others = [one.beside(&setup), one.beside(&setup)];
    let sent = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let feed = broker.producer(&[]);
            while !done.load(Ordering::SeqCst) {
                let n = sent.fetch_add(300, Ordering::SeqCst);
                feed.fill(topic, 6, n..n + 300);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let steady = one.start(&["archive"], "");
        for round in 0..4 {
            let a = others[0].start(&["archive"], "");
            std::thread::sleep(Duration::from_millis(1_500));
            let b = others[1].start(&["archive"], "");
            std::thread::sleep(Duration::from_millis(1_500));
            // one leaves in order, one without a word
            if round % 2 == 0 {
                assert_eq!(a.stop(PATIENCE), Some(0));
                b.kill();
            } else {
                a.kill();
                assert_eq!(b.stop(PATIENCE), Some(0));
            }
        }
        let archived = || {
            let output = one.run(&[
                "replay",
                topic,
                "--until",
                "snapshot",
                "--encoding",
                "base64",
                "--output",
                "jsonl",
            ]);
            output.stdout.iter().filter(|b| **b == b'\n').count()
        };
        let before = archived();
        eventually("progress after the storm", PATIENCE, || {
            archived() > before + 300
        });
        done.store(true, Ordering::SeqCst);
        assert_eq!(steady.stop(PATIENCE), Some(0));
    });
    let alone = one.beside(&Setup::new(&kafka().bootstrap, &[topic]));
    alone.archive();
    assert_whole(&broker, &alone, topic, "after a rebalance storm");
    assert_eq!(
        count(&broker.dump(topic)) as u64,
        sent.load(Ordering::SeqCst)
    );
}

#[tokio::test]
async fn the_broker_restarts_under_archiver_and_follower() {
    // its own cluster: the others' tests must not notice
    let cluster = Kafka::start();
    let broker = Broker::new(&cluster.bootstrap);
    let topic = "crash.broker";
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[("enable.idempotence", "true")]);
    feed.fill(topic, 2, 0..2_000);
    let everlog = Everlog::local(
        &Setup::new(&cluster.bootstrap, &[topic]).archive("commit_interval = \"300ms\""),
    );
    everlog.archive();
    let archiver = everlog.start(&["archive"], "");
    let path = everlog.dir().join("out.jsonl");
    let output = format!("jsonl:{}", path.display());
    let follower = everlog.start(
        &[
            "replay",
            topic,
            "--follow",
            "--encoding",
            "base64",
            "--output",
            &output,
        ],
        "",
    );
    let lines = || std::fs::read_to_string(&path).map_or(0, |t| t.lines().count());
    eventually("the follower starts", PATIENCE, || lines() >= 2_000);
    for round in 1..3_u64 {
        cluster.node(if round == 1 { "kill-node" } else { "stop-node" }, 1);
        cluster.node("start-node", 1);
        feed.fill(topic, 2, round * 2_000..(round + 1) * 2_000);
    }
    eventually("the follower has everything", PATIENCE, || lines() >= 6_000);
    assert_eq!(follower.stop(PATIENCE), Some(0));
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    everlog.archive();
    assert_whole(&broker, &everlog, topic, "after broker restarts");
    let text = std::fs::read_to_string(&path).expect("the output");
    let followed = everlog_tests::everlog::parse(&text);
    assert_same(&broker.dump(topic), &followed, "the follower");
}
