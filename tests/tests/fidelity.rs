//! What goes in comes out: archived, replayed, and seen by other engines, bit for bit.

use std::sync::OnceLock;

use everlog_tests::broker::{Broker, Message, PATIENCE};
use everlog_tests::compare::{self, assert_same};
use everlog_tests::engines;
use everlog_tests::everlog::{Everlog, Setup, eventually};
use everlog_tests::services::Kafka;

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(|| Kafka::start_with(&["--set", "message.max.bytes=115000000"]))
}

fn broker() -> Broker {
    Broker::new(&kafka().bootstrap)
}

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

#[tokio::test]
async fn h19_every_kind_of_record_survives_bit_for_bit() {
    let (broker, topic) = (broker(), "fidelity.kinds");
    broker
        .create(topic, 3, &[("max.message.bytes", "20000000")])
        .await;
    for codec in CODECS {
        let feed = broker.producer(&[("compression.type", codec)]);
        let empty: &[u8] = b"";
        let odd: &[u8] = &[0, 0xff, 0xfe, b'\n', 0x80];
        for (key, value) in [
            (None, None),
            (Some(empty), Some(empty)),
            (None, Some(empty)),
            (Some(empty), None),
            (Some(odd), Some(odd)),
        ] {
            feed.send(
                topic,
                &Message {
                    partition: 0,
                    key,
                    value,
                    headers: vec![
                        ("twice", Some(b"1")),
                        ("null", None),
                        ("twice", Some(b"2")),
                        ("", Some(b"empty key")),
                        ("empty", Some(b"")),
                        ("bytes", Some(odd)),
                    ],
                    ..Message::default()
                },
            );
        }
        // wild event times (H18): the first millisecond, the year 9999, one that microseconds cannot hold
        for timestamp in [1, 253_402_300_799_999, i64::MAX / 10] {
            feed.send(
                topic,
                &Message {
                    partition: 1,
                    timestamp: Some(timestamp),
                    ..Message::default()
                },
            );
        }
        feed.flush();
    }
    let feed = broker.producer(&[("message.max.bytes", "20000000")]);
    feed.send_raw_header(topic, 2, &[0xff, 0xfe, b'k'], b"value");
    let large = vec![b'x'; 10_000_000];
    feed.send(
        topic,
        &Message {
            partition: 2,
            value: Some(&large),
            ..Message::default()
        },
    );
    feed.flush();

    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    let log = broker.dump(topic);
    assert_eq!(compare::count(&log), 5 * (5 + 3) + 2);
    assert_same(
        &log,
        &everlog.replay(topic, &["--until", "snapshot"]),
        "replay from the archive",
    );
    assert_same(&log, &everlog.replay(topic, &[]), "replay to now");
    for engine in ["pyiceberg", "duckdb"] {
        let reading = engines::read(&everlog, engine, "fidelity_kinds", None);
        assert_eq!(
            (reading.rows, reading.sha256),
            engines::digest(&log),
            "{engine}"
        );
    }
}

#[tokio::test]
async fn h18_broker_timestamps_and_their_type_are_kept_per_record() {
    let (broker, topic) = (broker(), "fidelity.logappend");
    broker
        .create(topic, 1, &[("message.timestamp.type", "LogAppendTime")])
        .await;
    broker.producer(&[]).fill(topic, 1, 0..500);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    let log = broker.dump(topic);
    assert!(log[&0].iter().all(|r| r.timestamp_type == "logappend"));
    assert_same(
        &log,
        &everlog.replay(topic, &["--until", "snapshot"]),
        "replay from the archive",
    );
    assert_same(&log, &everlog.replay(topic, &[]), "replay to now");
}

#[tokio::test]
async fn other_engines_see_the_same_rows_now_and_at_an_older_snapshot() {
    let (broker, topic) = (broker(), "fidelity.engines");
    broker.create(topic, 4, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 4, 0..4_000);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    let first = broker.dump(topic);
    assert_eq!(compare::count(&first), 4_000);
    let older = engines::read(&everlog, "pyiceberg", "fidelity_engines", None);
    feed.fill(topic, 4, 4_000..6_000);
    everlog.archive();
    let second = broker.dump(topic);
    for engine in ["pyiceberg", "duckdb"] {
        let now = engines::read(&everlog, engine, "fidelity_engines", None);
        assert_eq!(
            (now.rows, now.sha256),
            engines::digest(&second),
            "{engine} now"
        );
        let then = engines::read(&everlog, engine, "fidelity_engines", Some(older.snapshot));
        assert_eq!(
            (then.rows, then.sha256),
            engines::digest(&first),
            "{engine}, older snapshot"
        );
    }
    let id = older.snapshot.to_string();
    assert_same(
        &first,
        &everlog.replay(topic, &["--snapshot", &id]),
        "replay of the older snapshot",
    );
}

#[tokio::test]
async fn h03_h04_transactions_with_aborts_at_start_middle_and_end() {
    let (broker, topic) = (broker(), "fidelity.transactions");
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[("transactional.id", "fidelity")]);
    feed.init_transactions();
    let mut n = 0;
    for (commit, records) in [
        (false, 30),
        (true, 50),
        (false, 10),
        (true, 20),
        (false, 40),
    ] {
        feed.begin();
        feed.fill(topic, 2, n..n + records);
        n += records;
        if commit {
            feed.commit();
        } else {
            feed.abort();
        }
    }
    let log = broker.dump(topic);
    assert_eq!(compare::count(&log), 70);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    assert_same(
        &log,
        &everlog.replay(topic, &["--until", "snapshot"]),
        "replay from the archive",
    );
    // the ledger has passed the trailing abort: everlog and the broker agree on the next offset
    let status = everlog.ok(&["status", "--json"]);
    for partition in 0..2 {
        let (_, end) = broker.bounds(topic, partition);
        assert!(status.contains(&end.to_string()), "no {end} in {status}");
    }
    everlog.archive(); // nothing new: catching up again is at once and changes nothing
    assert_same(&log, &everlog.replay(topic, &[]), "replay to now");
}

#[tokio::test]
async fn h08_h24_a_compacted_topic_with_holes() {
    let (broker, topic) = (broker(), "fidelity.compacted");
    broker
        .create(
            topic,
            1,
            &[
                ("cleanup.policy", "compact"),
                ("segment.ms", "200"),
                ("min.cleanable.dirty.ratio", "0.01"),
                ("max.compaction.lag.ms", "500"),
            ],
        )
        .await;
    let feed = broker.producer(&[]);
    for round in 0..4_u64 {
        feed.fill(topic, 1, round * 97..(round + 1) * 97);
    }
    // the active segment is never cleaned: keep it rolling until the cleaner has made holes
    eventually("compaction", PATIENCE, || {
        feed.fill(topic, 1, 0..1);
        compare::count(&broker.dump(topic)) < 300
    });
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    everlog.archive();
    let replayed = everlog.replay(topic, &["--until", "snapshot"]);
    // the cleaner goes on: what a consumer is given now may be less than the archive, never more or other
    let log = broker.dump(topic);
    let archived = &replayed[&0];
    assert!(
        log[&0].iter().all(|r| archived.contains(r)),
        "a record of the log is not archived"
    );
    assert!(
        archived.windows(2).all(|w| w[0].offset < w[1].offset),
        "offsets do not increase"
    );
    assert!(archived.len() < 388, "no holes: {}", archived.len());
}
