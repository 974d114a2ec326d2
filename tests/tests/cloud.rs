//! REST catalog and S3, and what goes wrong with them: before the request is done, and after.

use std::sync::OnceLock;
use std::time::Duration;

use everlog_tests::broker::{Broker, PATIENCE};
use everlog_tests::compare::{assert_same, count};
use everlog_tests::engines;
use everlog_tests::everlog::{Everlog, Setup, eventually, get};
use everlog_tests::services::{Kafka, Postgres, RestCatalog, S3, free_ports};

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

#[tokio::test]
async fn p08_two_archivers_on_a_postgres_catalog_that_is_killed_under_them() {
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "cloud.postgres");
    broker.create(topic, 4, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 4, 0..500);
    let postgres = Postgres::start();
    let setup = Setup::new(&kafka().bootstrap, &[topic])
        .archive("commit_interval = \"300ms\"")
        .archive("group = \"cloud-postgres\"");
    let one = Everlog::postgres(&setup, &postgres);
    let two = one.beside(&setup);
    // rivals for the table's creation, too
    let archivers = [one.start(&["archive"], ""), two.start(&["archive"], "")];
    eventually("the first commit", PATIENCE, || {
        archived(&one, topic) == 500
    });
    let mut sent = 500_u64;
    for round in 0..3 {
        // in the middle of commits, and then while there is none to take them
        feed.fill(topic, 4, sent..sent + 1_000);
        std::thread::sleep(Duration::from_millis(100 + 150 * round));
        postgres.kill();
        feed.fill(topic, 4, sent + 1_000..sent + 1_500);
        std::thread::sleep(Duration::from_secs(1));
        postgres.restart();
        sent += 1_500;
        let target = usize::try_from(sent).expect("small");
        eventually("commits after a restart", 2 * PATIENCE, || {
            archived(&two, topic) == target
        });
    }
    for archiver in archivers {
        assert_eq!(archiver.stop(PATIENCE), Some(0));
    }
    let log = broker.dump(topic);
    assert_eq!(count(&log) as u64, sent);
    assert_same(
        &log,
        &one.replay(topic, &["--until", "snapshot"]),
        "PostgreSQL",
    );
    two.ok(&["verify", topic]);
}

/// A catalog with everything that a hosted one has: OAuth2, vended credentials, a prefix, idempotency keys.
fn hosted(s3: &S3) -> RestCatalog {
    let options = [
        "--credential",
        "me:s3cret",
        "--token-seconds",
        "30",
        "--vend",
        "--idempotency",
        "PT30M",
        "--prefix",
        "ware/house",
    ];
    RestCatalog::start_with(s3, &options)
}

/// A number among a server's counters; 0 where it has not counted that.
fn counted(catalog: &RestCatalog, what: &str) -> u64 {
    let stats: serde_json::Value = serde_json::from_str(&catalog.stats()).expect("JSON");
    let counters = stats.as_object().expect("an object");
    let named = counters.iter().filter(|(name, _)| name.starts_with(what));
    named.filter_map(|(_, number)| number.as_u64()).sum()
}

#[tokio::test]
async fn oauth2_vended_credentials_and_idempotency_keys_while_tokens_are_revoked() {
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "cloud.hosted");
    broker.create(topic, 3, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 3, 0..500);
    let s3 = S3::start();
    let catalog = hosted(&s3);
    let setup = Setup::new(&kafka().bootstrap, &[topic]).archive("commit_interval = \"300ms\"");
    // whatever reaches the store is vended: no key is configured
    let everlog = Everlog::rest_with(&setup, &catalog, &[("credential", "me:s3cret")]);
    let archiver = everlog.start(&["archive"], "");
    eventually("the first commit", PATIENCE, || {
        archived(&everlog, topic) == 500
    });
    let mut sent = 500_u64;
    for fault in ["", "mode=auth&count=1", "mode=after&count=1&status=503"] {
        catalog.revoke();
        if !fault.is_empty() {
            catalog.fault(fault);
        }
        let issued = counted(&catalog, "token issued");
        feed.fill(topic, 3, sent..sent + 500);
        sent += 500;
        let target = usize::try_from(sent).expect("small");
        eventually("commits after tokens were revoked", PATIENCE, || {
            archived(&everlog, topic) == target
        });
        assert!(counted(&catalog, "token issued") > issued);
    }
    assert!(
        counted(&catalog, "idempotency key") >= 4,
        "{}",
        catalog.stats()
    );
    assert!(
        counted(&catalog, "not authorized") >= 3,
        "{}",
        catalog.stats()
    );
    let log = archiver.log();
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    assert!(
        !log.contains("s3cret") && !log.contains("testsecret"),
        "{log}"
    );
    assert_same(
        &broker.dump(topic),
        &everlog.replay(topic, &["--until", "snapshot"]),
        "a hosted catalog",
    );
    everlog.ok(&["verify", topic]);
    everlog.ok(&["maintain", topic]);
}

#[tokio::test]
async fn d3_a_proxys_pages_under_load_stop_nothing() {
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "cloud.pages");
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 2, 0..300);
    let s3 = S3::start();
    let catalog = hosted(&s3);
    let port = free_ports(1);
    let setup = Setup::new(&kafka().bootstrap, &[topic])
        .archive("commit_interval = \"300ms\"")
        .archive(&format!("http = \"127.0.0.1:{port}\""));
    let everlog = Everlog::rest_with(&setup, &catalog, &[("credential", "me:s3cret")]);
    let archiver = everlog.start(&["archive"], "");
    eventually("the first commit", PATIENCE, || {
        archived(&everlog, topic) == 300
    });
    let mut sent = 300_u64;
    for fault in [
        "mode=page&count=2&status=404",
        "mode=page-after&count=1&status=404",
        "mode=page&count=2&status=200",
        "mode=page-after&count=1&status=200",
        "mode=page&count=4&status=404&method=GET",
        "mode=page&count=4&status=200&method=GET",
        "mode=page&count=2&status=404&path=/v1/oauth/tokens",
        "mode=page&count=2&status=200&path=/v1/oauth/tokens",
    ] {
        catalog.fault(fault);
        if fault.contains("oauth") {
            catalog.revoke();
        }
        feed.fill(topic, 2, sent..sent + 300);
        sent += 300;
        // counted by the archiver itself: a replay would meet the pages in its place
        let done = format!("everlog_archiver_records_total{{topic=\"{topic}\"}} {sent}");
        eventually(fault, PATIENCE, || {
            get(port, "/metrics").is_some_and(|(_, metrics)| metrics.contains(&done))
        });
    }
    catalog.fault("mode=");
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    let log = broker.dump(topic);
    assert_eq!(count(&log) as u64, sent);
    assert_same(
        &log,
        &everlog.replay(topic, &["--until", "snapshot"]),
        "after a proxy's pages",
    );
}
