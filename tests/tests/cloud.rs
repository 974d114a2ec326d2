//! REST catalog and S3, and what goes wrong with them: before the request is done, and after.

use std::sync::OnceLock;
use std::time::Duration;

use everlog_tests::broker::{Broker, PATIENCE};
use everlog_tests::compare::{assert_same, count};
use everlog_tests::engines;
use everlog_tests::everlog::{Everlog, Setup, eventually};
use everlog_tests::services::{Kafka, RestCatalog, S3};

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

struct World {
    broker: Broker,
    s3: S3,
    catalog: RestCatalog,
}

impl World {
    fn start() -> Self {
        let s3 = S3::start();
        let catalog = RestCatalog::start(&s3);
        Self {
            broker: Broker::new(&kafka().bootstrap),
            s3,
            catalog,
        }
    }

    fn everlog(&self, topic: &str, interval: &str) -> Everlog {
        let setup = Setup::new(&kafka().bootstrap, &[topic])
            .archive(&format!("commit_interval = \"{interval}\""));
        Everlog::rest(&setup, &self.catalog, &self.s3)
    }
}

fn archived(everlog: &Everlog, topic: &str) -> usize {
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
    everlog
        .run(&all)
        .stdout
        .iter()
        .filter(|b| **b == b'\n')
        .count()
}

#[tokio::test]
async fn archive_replay_and_other_engines_on_a_rest_catalog_and_s3() {
    let (world, topic) = (World::start(), "cloud.plain");
    world.broker.create(topic, 3, &[]).await;
    let feed = world.broker.producer(&[("compression.type", "zstd")]);
    feed.fill(topic, 3, 0..20_000);
    let everlog = world.everlog(topic, "1s");
    everlog.archive();
    let first = world.broker.dump(topic);
    for engine in ["pyiceberg", "duckdb"] {
        let reading = engines::read(&everlog, engine, "cloud_plain", None);
        assert_eq!(
            (reading.rows, reading.sha256),
            engines::digest(&first),
            "{engine}"
        );
    }
    feed.fill(topic, 3, 20_000..25_000);
    assert_same(
        &world.broker.dump(topic),
        &everlog.replay(topic, &[]),
        "replay to now",
    );
}

#[tokio::test]
async fn p05_p08_h26_replies_lost_and_refused_under_load() {
    let (world, topic) = (World::start(), "cloud.faults");
    world.broker.create(topic, 2, &[]).await;
    let feed = world.broker.producer(&[]);
    feed.fill(topic, 2, 0..500);
    let everlog = world.everlog(topic, "300ms");
    let archiver = everlog.start(&["archive"], "");
    eventually("the first commit", PATIENCE, || {
        archived(&everlog, topic) == 500
    });
    let mut sent = 500_u64;
    for fault in [
        "mode=after&count=1&status=503",
        "mode=before&count=1&status=503",
        "mode=conflict&count=1",
        "mode=after&count=2&status=500",
        "mode=before&count=2&status=504",
        "mode=drop&count=1",
        "mode=conflict&count=3",
        "mode=after&count=1&status=502",
    ] {
        world.catalog.fault(fault);
        feed.fill(topic, 2, sent..sent + 500);
        sent += 500;
        let target = usize::try_from(sent).expect("small");
        eventually(fault, PATIENCE, || archived(&everlog, topic) == target);
    }
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    let log = world.broker.dump(topic);
    assert_eq!(count(&log) as u64, sent);
    assert_same(
        &log,
        &everlog.replay(topic, &["--until", "snapshot"]),
        "after catalog faults",
    );
    let reading = engines::read(&everlog, "pyiceberg", "cloud_faults", None);
    assert_eq!(
        (reading.rows, reading.sha256),
        engines::digest(&log),
        "pyiceberg"
    );
}

#[tokio::test]
async fn s3_stalls_and_dies_under_the_archiver() {
    let (world, topic) = (World::start(), "cloud.s3");
    world.broker.create(topic, 2, &[]).await;
    let feed = world.broker.producer(&[]);
    feed.fill(topic, 2, 0..500);
    let everlog = world.everlog(topic, "300ms");
    let archiver = everlog.start(&["archive"], "");
    eventually("the first commit", PATIENCE, || {
        archived(&everlog, topic) == 500
    });
    world.s3.control("pause");
    feed.fill(topic, 2, 500..1_500);
    std::thread::sleep(Duration::from_secs(3));
    world.s3.control("resume");
    eventually("commits after a stall", 2 * PATIENCE, || {
        archived(&everlog, topic) == 1_500
    });
    world.s3.control("kill");
    feed.fill(topic, 2, 1_500..2_500);
    std::thread::sleep(Duration::from_secs(2));
    world.s3.restart();
    eventually("commits after a restart", 3 * PATIENCE, || {
        archived(&everlog, topic) == 2_500
    });
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    let replayed = everlog.replay(topic, &["--until", "snapshot"]);
    assert_same(&world.broker.dump(topic), &replayed, "after S3 faults");
}
