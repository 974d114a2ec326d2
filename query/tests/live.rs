//! `NAME$live` on a cluster in memory: the archive and what lies beyond it, each record once.

#[path = "../../replayer/tests/support/mod.rs"]
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow_cast::display::{ArrayFormatter, FormatOptions};
use everlog_kafka::Log;
use everlog_kafka::memory::{MemoryLog, MemoryRecord};
use everlog_query::{AsOf, Lake, NoValues, QueryError, QueryErrorKind, Session, SessionOptions};
use everlog_replayer::Until;
use futures::StreamExt as _;

use world::{NAMESPACE, Produced, T, World, half_archived, topic, tp, until};

fn lake(world: &World, log: Option<Arc<dyn Log>>) -> Lake {
    Lake {
        catalog: Arc::clone(&world.catalog),
        namespace: NAMESPACE.to_owned(),
        clock: Arc::clone(&world.clock),
        ids: world.ids(),
        log,
        values: Arc::new(NoValues),
    }
}

async fn session(world: &World, options: SessionOptions) -> Session {
    let lake = lake(world, Some(Arc::clone(&world.log)));
    Session::open(lake, options).await.unwrap()
}

fn live() -> SessionOptions {
    SessionOptions {
        live: true,
        ..SessionOptions::default()
    }
}

async fn try_rows(session: &Session, sql: &str) -> Result<Vec<Vec<String>>, QueryError> {
    let mut answer = session.query(sql).await?;
    let mut rows = Vec::new();
    while let Some(batch) = answer.batches.next().await {
        let batch = batch.map_err(QueryError::of)?;
        let options = FormatOptions::new().with_null("∅");
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|array| ArrayFormatter::try_new(array.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|c| c.value(row).to_string()).collect());
        }
    }
    Ok(rows)
}

async fn rows(session: &Session, sql: &str) -> Vec<Vec<String>> {
    let rows = try_rows(session, sql).await;
    rows.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

async fn number(session: &Session, sql: &str) -> u64 {
    let rows = rows(session, sql).await;
    assert_eq!((rows.len(), rows[0].len()), (1, 1), "{sql}: {rows:?}");
    rows[0][0].parse().unwrap()
}

/// (generation, partition) → offset and value, in offset order, as a replay has them.
async fn everything(session: &Session) -> world::Emitted {
    let sql = "SELECT generation, partition, \"offset\", CAST(value AS VARCHAR) FROM \"t$live\" ORDER BY 1, 2, 3";
    let mut all = BTreeMap::new();
    for row in rows(session, sql).await {
        let era = (row[0].parse().unwrap(), row[1].parse().unwrap());
        let records: &mut Vec<(i64, String)> = all.entry(era).or_default();
        records.push((row[2].parse().unwrap(), row[3].clone()));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_archive_and_the_tail_are_what_a_replay_gives() {
    let (world, _, produced) = half_archived(3, 200).await;
    let ask = session(&world, SessionOptions::default()).await;
    assert_eq!(number(&ask, "SELECT count(*) FROM \"t$live\"").await, 1_200);
    let archived = number(&ask, "SELECT count(*) FROM t").await;
    assert_eq!(archived, 3 * 200);
    let replayed = world.replay(until(Until::Now)).await.unwrap();
    produced.assert_emitted(&replayed);
    assert_eq!(everything(&ask).await, replayed.rows);

    // the whole query, as with --live; what was given a moment has no tail
    let whole = session(&world, live()).await;
    assert_eq!(number(&whole, "SELECT count(*) FROM t").await, 1_200);
    let then = "SELECT count(*) FROM t FOR TIMESTAMP AS OF TIMESTAMP '2090-01-01 00:00:00'";
    assert_eq!(number(&whole, then).await, archived);

    // a column of the archive's alone, filters that prune the archive, few columns, none, and a limit
    for (sql, expected) in [
        (
            "SELECT count(*) FROM \"t$live\" WHERE archived_at IS NULL",
            600,
        ),
        ("SELECT count(archived_at) FROM \"t$live\"", 600),
        ("SELECT count(*) FROM \"t$live\" WHERE partition = 1", 400),
        (
            "SELECT count(*) FROM \"t$live\" WHERE \"offset\" >= 150 AND \"offset\" < 250",
            300,
        ),
        (
            "SELECT count(*) FROM \"t$live\" WHERE \"offset\" > 10000",
            0,
        ),
        ("SELECT max(\"offset\") FROM \"t$live\"", 399),
        (
            "SELECT count(DISTINCT CAST(value AS VARCHAR)) FROM \"t$live\"",
            1_200,
        ),
        (
            "SELECT count(*) FROM (SELECT 1 FROM \"t$live\" LIMIT 700)",
            700,
        ),
        (
            "SELECT count(*) FROM \"t$live\" WHERE topic = 't' AND headers IS NOT NULL",
            1_200,
        ),
    ] {
        assert_eq!(number(&ask, sql).await, expected, "{sql}");
    }
    let columns = |name: &'static str| async { ask.columns(name).await.unwrap() };
    let (archive, both) = (columns("t").await, columns("t$live").await);
    let types = |schema: &arrow_schema::Schema| -> Vec<(String, arrow_schema::DataType)> {
        schema
            .fields()
            .iter()
            .map(|f| (f.name().clone(), f.data_type().clone()))
            .collect()
    };
    assert_eq!(types(&archive), types(&both));
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_commit_everything_is_tail() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 2);
    world.archive(&topic(T)).await;
    let ask = session(&world, SessionOptions::default()).await;
    assert_eq!(number(&ask, "SELECT count(*) FROM \"t$live\"").await, 0);
    let mut produced = Produced::default();
    produced.produce(&log, &topic(T), 1, 50);
    assert_eq!(number(&ask, "SELECT count(*) FROM \"t$live\"").await, 50);
    assert_eq!(number(&ask, "SELECT count(*) FROM t").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_eras_and_partitions_that_are_gone_come_once() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 3);
    let mut produced = Produced::default();
    for n in 0..3 {
        produced.produce(&log, &topic(T), n, 40);
    }
    world.commit_all(&topic(T), 1_000).await;
    // deleted, and made anew with fewer partitions
    log.delete_topic(&topic(T));
    log.create_topic(&topic(T), 2);
    let mut produced = Produced::default();
    produced.produce(&log, &topic(T), 0, 70);
    world.commit_all(&topic(T), 1_000).await;
    produced.produce(&log, &topic(T), 0, 5);
    produced.produce(&log, &topic(T), 1, 9);
    let ask = session(&world, SessionOptions::default()).await;
    let replayed = world.replay(until(Until::Now)).await.unwrap();
    assert_eq!(replayed.count(), 120 + 84);
    assert_eq!(everything(&ask).await, replayed.rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_parts_of_a_query_end_at_the_same_offsets() {
    let (world, log, _) = half_archived(2, 100).await;
    let ask = session(&world, SessionOptions::default()).await;
    let over = Arc::new(AtomicBool::new(false));
    let producer = std::thread::spawn({
        let (log, over): (MemoryLog, _) = (log.clone(), Arc::clone(&over));
        move || {
            let mut count = 0_u64;
            while !over.load(Ordering::SeqCst) {
                log.append(&tp(T, 0), MemoryRecord::value("more"));
                count += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            count
        }
    });
    let sql = "SELECT count(*) FROM \"t$live\" a FULL JOIN \"t$live\" b \
               ON a.partition = b.partition AND a.\"offset\" = b.\"offset\" \
               WHERE a.\"offset\" IS NULL OR b.\"offset\" IS NULL";
    for _ in 0..20 {
        assert_eq!(number(&ask, sql).await, 0);
    }
    over.store(true, Ordering::SeqCst);
    assert!(producer.join().unwrap() > 20, "the log grew meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_archived_meanwhile_comes_once() {
    let (world, log, mut produced) = half_archived(2, 300).await;
    let ask = session(&world, SessionOptions::default()).await;
    // planned on this snapshot, read after the archive went on and Kafka has forgotten
    let answer = ask
        .query("SELECT count(*), count(DISTINCT partition * 1000000 + \"offset\") FROM \"t$live\"");
    let mut answer = answer.await.unwrap();
    world.commit_all(&topic(T), 1_000).await;
    for n in 0..2 {
        log.delete_records(&tp(T, n), world::o(450));
        produced.produce(&log, &topic(T), n, 10);
    }
    let batch = answer.batches.next().await.unwrap().unwrap();
    let number = |column: usize| {
        let options = FormatOptions::new();
        let shown = ArrayFormatter::try_new(batch.column(column).as_ref(), &options).unwrap();
        shown.value(0).to_string().parse::<usize>().unwrap()
    };
    // the end is that of the moment when the reading began: before or after the last records
    assert_eq!(number(0), number(1));
    assert!([1_200, 1_210, 1_220].contains(&number(0)), "{}", number(0));
    assert_eq!(produced.count(), 1_220);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_dropped_ends_its_reader() {
    let (world, _, _) = half_archived(2, 5_000).await;
    let before = Arc::strong_count(&world.log);
    let ask = session(&world, SessionOptions::default()).await;
    let mut answer = ask.query("SELECT * FROM \"t$live\"").await.unwrap();
    answer.batches.next().await.unwrap().unwrap();
    drop(answer);
    drop(ask);
    let began = Instant::now();
    while Arc::strong_count(&world.log) > before {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "somebody still reads"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_live_is_told() {
    let (world, log, _) = half_archived(1, 10).await;
    let without = Session::open(lake(&world, None), SessionOptions::default())
        .await
        .unwrap();
    let error = try_rows(&without, "SELECT * FROM \"t$live\"")
        .await
        .unwrap_err();
    assert!(matches!(error, QueryError::NoCluster), "{error}");
    assert_eq!(error.kind(), QueryErrorKind::Usage);
    assert_eq!(number(&without, "SELECT count(*) FROM t").await, 10);

    let moment = SessionOptions {
        as_of: Some(AsOf::Tag("x".to_owned())),
        ..live()
    };
    let both = Session::open(lake(&world, Some(Arc::clone(&world.log))), moment).await;
    assert_eq!(both.unwrap_err().kind(), QueryErrorKind::Usage);

    // another cluster's topic of the same name: no waiting helps
    log.set_cluster_id(Some("another"));
    let ask = session(&world, SessionOptions::default()).await;
    let error = try_rows(&ask, "SELECT count(*) FROM \"t$live\"")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another cluster"), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
}
