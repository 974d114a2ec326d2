//! The archiver on a real broker, an SQLite catalog and a warehouse of files.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use everlog_archiver::{
    Archiver, ArchiverError, Components, FailureKind, OnGap, RunSummary, Settings, TopicPattern,
};
use everlog_common::clock::{RandomIds, SystemClock};
use everlog_common::record::RunningHash;
use everlog_common::{Clock, Generation, Ids, Ledger, TopicName, TopicPartition};
use everlog_kafka::Log;
use everlog_kafka::client::KafkaLog;
use everlog_table::archive::{Archive, ArchiveDeps};
use everlog_table::catalog::{self, Catalog};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use support::broker::{Broker, queue, send, transaction};
use support::counted::Counted;
use support::{Rows, archived_rows, assert_same, o, p, rows_of, topic, tp, visible_in};

struct Real {
    broker: &'static Broker,
    lake: tempfile::TempDir,
}

struct Running {
    task: JoinSet<Result<RunSummary, ArchiverError>>,
    stop: CancellationToken,
    status: everlog_archiver::StatusHandle,
}

impl Running {
    async fn end(mut self) -> Result<RunSummary, ArchiverError> {
        self.stop.cancel();
        self.task.join_next().await.unwrap().unwrap()
    }

    async fn ended(mut self) -> Result<RunSummary, ArchiverError> {
        tokio::time::timeout(Duration::from_secs(120), self.task.join_next())
            .await
            .expect("two minutes are enough")
            .unwrap()
            .unwrap()
    }

    async fn crash(mut self) {
        self.task.shutdown().await;
    }
}

impl Real {
    fn new() -> Self {
        Self {
            broker: Broker::shared(),
            lake: tempfile::tempdir().unwrap(),
        }
    }

    fn log(&self) -> KafkaLog {
        let properties = BTreeMap::from([
            (
                "bootstrap.servers".to_owned(),
                self.broker.bootstrap.clone(),
            ),
            ("session.timeout.ms".to_owned(), "6000".to_owned()),
        ]);
        KafkaLog::connect(&properties).unwrap()
    }

    /// Every process has its own connections.
    async fn catalog(&self) -> Arc<dyn Catalog> {
        let path = self.lake.path().display();
        let properties = [
            ("type", "sql".to_owned()),
            ("name", "everlog".to_owned()),
            ("uri", format!("sqlite://{path}/catalog.db")),
            ("warehouse", format!("file://{path}/warehouse")),
        ];
        let properties = properties
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v))
            .collect();
        catalog::connect(&properties).await.unwrap()
    }

    fn settings(&self, topics: &[&str]) -> Settings {
        let patterns = topics
            .iter()
            .map(|t| TopicPattern::parse(t).unwrap())
            .collect();
        Settings {
            commit_interval: Duration::from_millis(300),
            discovery_interval: Duration::from_millis(500),
            ..Settings::new("lake", patterns)
        }
    }

    async fn start(&self, settings: Settings) -> Running {
        let log = Arc::new(self.log());
        Self::start_on(settings, log, self.catalog().await)
    }

    fn start_on(settings: Settings, log: Arc<dyn Log>, catalog: Arc<dyn Catalog>) -> Running {
        let archiver = Archiver::new(
            settings,
            Components {
                log,
                catalog,
                clock: Arc::new(SystemClock::default()),
                ids: Arc::new(RandomIds),
            },
        );
        let status = archiver.status();
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(archiver.run(stop.clone()));
        Running { task, stop, status }
    }

    async fn catch_up(&self, topics: &[&str]) -> Result<RunSummary, ArchiverError> {
        let settings = Settings {
            until_caught_up: true,
            ..self.settings(topics)
        };
        self.start(settings).await.ended().await
    }

    async fn archive(&self, name: &TopicName) -> Option<Archive> {
        let deps = ArchiveDeps {
            catalog: self.catalog().await,
            clock: Arc::new(SystemClock::default()) as Arc<dyn Clock>,
            ids: Arc::new(RandomIds) as Arc<dyn Ids>,
        };
        Archive::open(deps, "lake", name).await.unwrap()
    }

    async fn ledger(&self, name: &TopicName) -> Ledger {
        match self.archive(name).await {
            None => Ledger::default(),
            Some(archive) => archive.state().await.unwrap().ledger,
        }
    }

    async fn wait_for(&self, what: &str, mut check: impl AsyncFnMut() -> bool) {
        let due = Instant::now() + Duration::from_secs(60);
        while Instant::now() < due {
            if check().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what}: not in a minute");
    }

    async fn wait_for_ledger(&self, tp: &TopicPartition, generation: u32, next: i64) {
        let what = format!("{tp} to be archived up to {next}");
        let archive = std::cell::RefCell::new(None);
        self.wait_for(&what, async || {
            if archive.borrow().is_none() {
                let opened = self.archive(&tp.topic).await;
                archive.replace(opened);
            }
            let opened: Option<Archive> = archive.borrow().clone();
            let Some(opened) = opened else { return false };
            let ledger = opened.state().await.unwrap().ledger;
            ledger
                .entry(Generation(generation), tp.partition)
                .is_some_and(|e| e.next >= o(next))
        })
        .await;
    }

    /// The archive's newest generation equals the log, row by row, and the ledger's hash is the log's.
    async fn assert_equals_log(&self, name: &str, partitions: i32) {
        let name = topic(name);
        let archive = self.archive(&name).await.unwrap();
        let mut archived = archived_rows(&archive, &name).await;
        let ledger = self.ledger(&name).await;
        let (generation, era) = ledger.newest().expect("something is archived");
        let log = self.log();
        for n in 0..partitions {
            let tp = TopicPartition::new(name.clone(), p(n));
            let visible = visible_in(&log as &dyn Log, &tp).await;
            let expected: Rows = visible.iter().flat_map(rows_of).collect();
            let mut found = archived.remove(&(generation, p(n))).unwrap_or_default();
            found.sort();
            assert_same(&tp, &found, &expected);
            let entry = era.partitions.get(&p(n));
            assert_eq!(entry.map_or(0, |e| e.rows), expected.len() as u64, "{tp}");
            let mut hash = RunningHash::from(0);
            for columns in &visible {
                hash.update(columns);
            }
            assert_eq!(entry.map_or(0, |e| e.hash), hash.value(), "hash of {tp}");
        }
    }
}

fn kinds(error: &ArchiverError) -> Vec<FailureKind> {
    match error {
        ArchiverError::Stopped(failures) => failures.iter().map(|f| f.kind).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h03_h04_transactions_with_aborts_at_start_middle_and_end() {
    let real = Real::new();
    let name = "real.txn";
    real.broker.create(name, 2).await;
    let producer = real.broker.transactional("real.txn");
    for (n, from) in [(0, 0), (1, 1000)] {
        for (i, commit) in [false, true, false, true, true, false]
            .into_iter()
            .enumerate()
        {
            let at = from + i * 100;
            transaction(&producer, &tp(name, n), at..at + 50, commit);
        }
    }
    let summary = real.catch_up(&[name]).await.unwrap();
    assert_eq!(summary.rows, 300);
    real.assert_equals_log(name, 2).await;
    // 6 transactions of 50 records and a marker each
    let ledger = real.ledger(&topic(name)).await;
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().next, o(306));
    // nothing new: no commit
    let again = real.catch_up(&[name]).await.unwrap();
    assert_eq!((again.commits, again.rows), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_crashes_under_load_lose_and_double_nothing() {
    let real = Real::new();
    let name = "real.crash";
    real.broker.create(name, 3).await;
    let producer = real.broker.producer(&[]);
    let mut made = 0;
    for round in 0..8_u64 {
        let running = real.start(real.settings(&[name])).await;
        let due = Instant::now() + Duration::from_millis(300 + round * 170);
        while Instant::now() < due {
            for n in 0..3 {
                queue(&producer, &tp(name, n), made..made + 200);
            }
            made += 200;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        running.crash().await;
    }
    for n in 0..3 {
        send(&producer, &tp(name, n), made..made + 1);
    }
    real.catch_up(&[name]).await.unwrap();
    real.assert_equals_log(name, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h28_two_archivers_of_one_topic_double_nothing() {
    let real = Real::new();
    let name = "real.rivals";
    real.broker.create(name, 3).await;
    let producer = real.broker.producer(&[]);
    let one = real.start(real.settings(&[name])).await;
    let two = real.start(real.settings(&[name])).await;
    for round in 0..40 {
        for n in 0..3 {
            queue(&producer, &tp(name, n), round * 100..round * 100 + 100);
        }
        tokio::time::sleep(Duration::from_millis(70)).await;
    }
    for n in 0..3 {
        send(&producer, &tp(name, n), 4000..4001);
    }
    for n in 0..3 {
        real.wait_for_ledger(&tp(name, n), 0, 4001).await;
    }
    one.end().await.unwrap();
    two.end().await.unwrap();
    real.assert_equals_log(name, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h01_deleted_records_stop_the_partition_or_are_recorded() {
    let real = Real::new();
    let name = "real.gap";
    real.broker.create(name, 2).await;
    let producer = real.broker.producer(&[]);
    for n in 0..2 {
        send(&producer, &tp(name, n), 0..100);
    }
    real.catch_up(&[name]).await.unwrap();
    for n in 0..2 {
        send(&producer, &tp(name, n), 100..200);
    }
    real.broker.delete_records(&tp(name, 0), 150).await;
    let error = real.catch_up(&[name]).await.unwrap_err();
    assert_eq!(
        (kinds(&error), error.exit_status()),
        (vec![FailureKind::Gap], 3)
    );
    let ledger = real.ledger(&topic(name)).await;
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().next, o(100));
    assert_eq!(ledger.entry(Generation(0), p(1)).unwrap().next, o(200));
    let settings = Settings {
        until_caught_up: true,
        on_gap: OnGap::Record,
        ..real.settings(&[name])
    };
    let summary = real.start(settings).await.ended().await.unwrap();
    assert_eq!((summary.gaps.len(), summary.rows), (1, 50));
    let gap = real.ledger(&topic(name)).await.gaps[0];
    assert_eq!((gap.start, gap.end), (o(100), Some(o(150))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h01_records_deleted_under_a_running_reader_become_a_gap() {
    let real = Real::new();
    let name = "real.race";
    real.broker.create(name, 1).await;
    let producer = real.broker.producer(&[]);
    send(&producer, &tp(name, 0), 0..100);
    let settings = Settings {
        on_gap: OnGap::Record,
        ..real.settings(&[name])
    };
    let running = real.start(settings.clone()).await;
    real.wait_for_ledger(&tp(name, 0), 0, 100).await;
    running.end().await.unwrap();
    send(&producer, &tp(name, 0), 100..300);
    real.broker.delete_records(&tp(name, 0), 250).await;
    let running = real.start(settings).await;
    real.wait_for_ledger(&tp(name, 0), 0, 300).await;
    assert!(
        running
            .status
            .render_metrics()
            .contains("gap_offsets_total")
    );
    running.end().await.unwrap();
    let ledger = real.ledger(&topic(name)).await;
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().rows, 150);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h12_a_topic_created_anew_while_it_is_read_begins_a_generation() {
    let real = Real::new();
    let name = "real.anew";
    real.broker.create(name, 1).await;
    let producer = real.broker.producer(&[]);
    send(&producer, &tp(name, 0), 0..100);
    let running = real.start(real.settings(&[name])).await;
    real.wait_for_ledger(&tp(name, 0), 0, 100).await;
    real.broker.delete(name).await;
    real.broker.create(name, 1).await;
    let producer = real.broker.producer(&[]);
    send(&producer, &tp(name, 0), 1000..1250);
    real.wait_for_ledger(&tp(name, 0), 1, 250).await;
    running.end().await.unwrap();
    let ledger = real.ledger(&topic(name)).await;
    assert!(ledger.is_closed(Generation(0), p(0)));
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().rows, 100);
    real.assert_equals_log(name, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h14_h15_topics_and_partitions_that_appear_later_are_read_from_their_start() {
    let real = Real::new();
    real.broker.create("later.a", 1).await;
    let producer = real.broker.producer(&[]);
    let running = real.start(real.settings(&["^later\\."])).await;
    send(&producer, &tp("later.a", 0), 0..10);
    real.wait_for_ledger(&tp("later.a", 0), 0, 10).await;
    real.broker.grow("later.a", 3).await;
    real.broker.create("later.b", 1).await;
    let producer = real.broker.producer(&[]);
    send(&producer, &tp("later.a", 2), 0..20);
    send(&producer, &tp("later.b", 0), 0..30);
    real.wait_for_ledger(&tp("later.a", 2), 0, 20).await;
    real.wait_for_ledger(&tp("later.b", 0), 0, 30).await;
    running.end().await.unwrap();
    real.assert_equals_log("later.a", 3).await;
    real.assert_equals_log("later.b", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h23_a_rebalance_storm_loses_and_doubles_nothing_and_makes_progress() {
    let real = Real::new();
    let name = "real.storm";
    real.broker.create(name, 6).await;
    let producer = real.broker.producer(&[]);
    let settings = Settings {
        group: Some("real-storm".to_owned()),
        ..real.settings(&[name])
    };
    let mut members = vec![real.start(settings.clone()).await];
    let mut made = 0;
    for round in 0..10_usize {
        match round % 3 {
            0 | 1 => members.push(real.start(settings.clone()).await),
            _ if round % 2 == 0 => members.remove(0).crash().await,
            _ => members.remove(0).end().await.map(|_| ()).unwrap(),
        }
        let due = Instant::now() + Duration::from_millis(700);
        while Instant::now() < due {
            for n in 0..6 {
                queue(&producer, &tp(name, n), made..made + 50);
            }
            made += 50;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(
        real.ledger(&topic(name)).await.rows() > 0,
        "no progress in the storm"
    );
    for n in 0..6 {
        send(&producer, &tp(name, n), made..made + 1);
    }
    let next = i64::try_from(made).unwrap() + 1;
    for n in 0..6 {
        real.wait_for_ledger(&tp(name, n), 0, next).await;
    }
    for member in members {
        member.end().await.unwrap();
    }
    real.assert_equals_log(name, 6).await;
}

/// A round of many tables is as much work as so many rounds of one, whatever the tables hold by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_of_commits_asks_brokers_and_catalog_once_for_each_table() {
    const TOPICS: usize = 24;
    const ROUNDS: usize = 4;
    let real = Real::new();
    let names: Vec<String> = (0..TOPICS).map(|n| format!("real.many.{n:02}")).collect();
    let producer = real.broker.producer(&[]);
    for name in &names {
        real.broker.create(name, 1).await;
        send(&producer, &tp(name, 0), 0..100);
    }
    // what is looked at besides, now and then, is no part of a commit
    let settings = Settings {
        discovery_interval: Duration::from_secs(3600),
        ..real.settings(&["^real\\.many\\."])
    };
    let log: Arc<Counted<dyn Log>> = Counted::new(Arc::new(real.log()));
    let catalog = Counted::new(real.catalog().await);
    let running = Real::start_on(
        settings,
        Arc::clone(&log) as Arc<dyn Log>,
        Arc::clone(&catalog) as Arc<dyn Catalog>,
    );
    for round in 0..=ROUNDS {
        if round > 0 {
            for name in &names {
                send(&producer, &tp(name, 0), 99 + round..100 + round);
            }
        }
        let next = 100 + i64::try_from(round).unwrap();
        for name in &names {
            real.wait_for_ledger(&tp(name, 0), 0, next).await;
        }
        let (brokers, tables) = (log.take(), catalog.take());
        if round == 0 {
            continue;
        }
        println!("round {round}: {brokers:?} {tables:?}");
        let asked = |what: &str| brokers.get(what).copied().unwrap_or(0);
        for what in ["describe", "bounds", "epoch_ends"] {
            // the logs are looked at once in a while
            let allowed = TOPICS..=TOPICS + 1;
            assert!(allowed.contains(&asked(what)), "round {round}: {brokers:?}");
        }
        assert_eq!(asked("open"), 0, "round {round}");
        assert_eq!(tables.get("commit"), Some(&TOPICS), "round {round}");
        let loads = tables.get("load").copied().unwrap_or(0);
        assert!(loads <= TOPICS, "round {round}: {tables:?}");
    }
    running.end().await.unwrap();
    for name in &names {
        real.assert_equals_log(name, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_the_first_new_event_is_archived_within_five_seconds() {
    let real = Real::new();
    let name = "real.restart";
    real.broker.create(name, 4).await;
    let producer = real.broker.producer(&[]);
    for n in 0..4 {
        send(&producer, &tp(name, n), 0..1000);
    }
    let running = real.start(real.settings(&[name])).await;
    for n in 0..4 {
        real.wait_for_ledger(&tp(name, n), 0, 1000).await;
    }
    running.crash().await;
    send(&producer, &tp(name, 1), 1000..1001);
    let began = Instant::now();
    let running = real.start(real.settings(&[name])).await;
    real.wait_for_ledger(&tp(name, 1), 0, 1001).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    running.end().await.unwrap();
}
