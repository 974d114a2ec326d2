//! Fidelity, sizes, codecs, compaction, pauses, memory.

use std::time::{Duration, Instant};

use everlog_common::{TimestampType, TopicName};
use everlog_kafka::conformance::{Ending, Reading, World, alone, at, numbered, partition};
use everlog_kafka::memory::MemoryRecord;
use everlog_kafka::{Isolation, Log, PartitionFault, ReaderOptions};
use rdkafka::producer::Producer as _;

use crate::support::{Real, WAIT, fresh};

fn name() -> TopicName {
    TopicName::new(&fresh("records")).unwrap()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn h18_the_brokers_timestamps_are_told_from_the_producers() {
    let world = Real::new();
    let name = name();
    world
        .create_with(&name, 1, &[("message.timestamp.type", "LogAppendTime")])
        .await;
    let tp = partition(&name, 0);
    world
        .produce(
            &tp,
            vec![MemoryRecord::value("v").at(5, TimestampType::Create)],
        )
        .await;
    let mut reading =
        Reading::alone(&world.log, Isolation::ReadCommitted, &[(tp.clone(), at(0))]).await;
    reading.until_position(&tp, 1).await;
    let row = reading.batches[0].columns.row(0);
    assert_eq!(row.timestamp_type, TimestampType::LogAppend);
    assert!(row.timestamp_ms > 1_600_000_000_000);
    assert_eq!(row.leader_epoch, Some(0));
    reading.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h21_every_codec_is_read() {
    let world = Real::new();
    let name = name();
    world.create_topic(&name, 1).await;
    let tp = partition(&name, 0);
    let mut expected = Vec::new();
    for (n, codec) in ["none", "gzip", "snappy", "lz4", "zstd"].iter().enumerate() {
        let producer = world.producer(&[("compression.type", codec), ("linger.ms", "50")]);
        let records = numbered(n * 500, n * 500 + 500);
        Real::produce_with(&producer, &tp, &records);
        expected.extend(records.into_iter().filter_map(|r| r.value));
    }
    let mut reading =
        Reading::alone(&world.log, Isolation::ReadCommitted, &[(tp.clone(), at(0))]).await;
    reading.until_position(&tp, 2500).await;
    let values: Vec<_> = reading.rows[&tp].iter().map(|(_, v)| v.clone()).collect();
    assert_eq!(values, expected);
    reading.close().await;
}

/// h20: far above every limit of the reader; the small ones around it come too, and memory is given back.
#[tokio::test(flavor = "multi_thread")]
async fn h20_a_record_of_100_mb_passes_a_reader_of_16_mib() {
    let world = Real::new();
    let name = name();
    world
        .create_with(&name, 2, &[("max.message.bytes", "115343360")])
        .await;
    let (big, small) = (partition(&name, 0), partition(&name, 1));
    world.produce(&small, numbered(0, 100)).await;
    let sizes = [10, 10_000_000, 100_000_000, 20];
    let records: Vec<_> = sizes
        .iter()
        .map(|len| MemoryRecord::value(noise(*len, *len as u64)))
        .collect();
    for record in &records {
        world.produce(&big, vec![record.clone()]).await;
    }
    let reader = world
        .log
        .open(ReaderOptions {
            memory_bytes: 16 << 20,
            ..alone(Isolation::ReadCommitted)
        })
        .await
        .unwrap();
    let mut reading = Reading::new(reader);
    reading
        .assign(&[(big.clone(), at(0)), (small.clone(), at(0))])
        .await;
    reading.until_position(&big, 4).await;
    reading.until_position(&small, 100).await;
    let read: Vec<_> = reading.rows[&big].iter().map(|(_, v)| v).collect();
    for (record, value) in records.iter().zip(read) {
        assert!(
            record.value.as_ref() == Some(value),
            "{} bytes",
            value.len()
        );
    }
    reading.stays_quiet().await;
    assert!(reading.reader.held_bytes() < 1 << 20);
    reading.close().await;
}

/// librdkafka reads 100,000 headers and no more. A record with one more is never handed out without them: its partition
/// stops there, and the others go on. everlog's own client reads it.
#[tokio::test(flavor = "multi_thread")]
async fn h19_headers_that_a_client_does_not_read_are_not_dropped() {
    let world = Real::of_librdkafka();
    let name = name();
    world.create_topic(&name, 2).await;
    let (many, good) = (partition(&name, 0), partition(&name, 1));
    let with = |count: usize| {
        let mut record = MemoryRecord::value("v");
        record.headers = vec![(b"h".to_vec(), Some(b"1".to_vec())); count];
        record
    };
    world.produce(&many, vec![with(1), with(100_000)]).await;
    world.produce(&many, vec![with(100_001), with(2)]).await;
    world.produce(&good, numbered(0, 10)).await;
    let starts = [(many.clone(), at(0)), (good.clone(), at(0))];
    let mut reading = Reading::alone(&world.log, Isolation::ReadCommitted, &starts).await;
    match reading.until_fault().await {
        PartitionFault::Corrupt(why) => assert!(why.contains("offset 2"), "{why}"),
        other => panic!("{other:?}"),
    }
    reading.until_position(&good, 10).await;
    reading.stays_quiet().await;
    assert_eq!(reading.positions[&many], 2);
    let counts = |reading: &Reading| -> Vec<usize> {
        let batches = reading.batches.iter().filter(|batch| batch.source == many);
        batches
            .flat_map(|batch| (0..batch.columns.len()).map(|i| batch.columns.row(i).headers.len()))
            .collect()
    };
    assert_eq!(counts(&reading), [1, 100_000]);
    // behind it the records are whole
    reading.faults.clear();
    reading.assign(&[(many.clone(), at(3))]).await;
    reading.until_position(&many, 4).await;
    reading.close().await;

    let world = Real::new();
    let mut reading = Reading::alone(&world.log, Isolation::ReadCommitted, &starts).await;
    reading.until_position(&many, 4).await;
    assert_eq!(counts(&reading), [1, 100_000, 100_001, 2]);
    reading.close().await;
}

/// h12: what is read on is never the log of another topic of that name, wherever its offsets are.
#[tokio::test(flavor = "multi_thread")]
async fn h12_a_topic_that_is_created_anew_is_not_read_on() {
    let world = Real::new();
    let name = name();
    world.create_topic(&name, 1).await;
    let tp = partition(&name, 0);
    world.produce(&tp, numbered(0, 10)).await;
    let starts = [(tp.clone(), at(0))];
    let mut reading = Reading::alone(&world.log, Isolation::ReadCommitted, &starts).await;
    reading.until_position(&tp, 10).await;
    world.recreate_topic(&name).await;
    world.produce(&tp, numbered(500, 530)).await;
    match reading.until_fault().await {
        PartitionFault::Gone(why) => assert!(why.contains("created again"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(reading.positions[&tp], 10);
    // assigned again it is the new one
    reading.faults.clear();
    reading.rows.clear();
    reading.assign(&[(tp.clone(), at(0))]).await;
    reading.until_position(&tp, 30).await;
    assert_eq!(reading.values(&tp)[0], "500");
    reading.close().await;
}

/// h08: what compaction removed is offsets without rows, also right before the end.
#[tokio::test(flavor = "multi_thread")]
async fn h08_compaction_leaves_offsets_without_rows() {
    let world = Real::new();
    let name = name();
    world
        .create_with(
            &name,
            1,
            &[
                ("cleanup.policy", "compact"),
                ("retention.ms", "604800000"),
                ("segment.ms", "100"),
                ("min.cleanable.dirty.ratio", "0.01"),
                ("delete.retention.ms", "0"),
                ("max.compaction.lag.ms", "100"),
            ],
        )
        .await;
    // the broker's default of a week is in its settings all the same
    let config = world.log.topic_config(&name).await.unwrap();
    assert!(config.compacted);
    assert_eq!((config.retention, config.retention_bytes), (None, None));
    let tp = partition(&name, 0);
    let keyed = |n: usize| MemoryRecord::value(n.to_string()).key((n % 4).to_string());
    world.produce(&tp, (0..64).map(keyed).collect()).await;
    // a later segment lets the first be cleaned
    let began = Instant::now();
    let mut end = 64;
    let rows = loop {
        assert!(began.elapsed() < Duration::from_mins(1), "not compacted");
        tokio::time::sleep(Duration::from_millis(500)).await;
        world
            .produce(&tp, vec![keyed(usize::try_from(end).unwrap())])
            .await;
        end += 1;
        let mut reading =
            Reading::alone(&world.log, Isolation::ReadCommitted, &[(tp.clone(), at(0))]).await;
        reading.until_position(&tp, end).await;
        let rows = reading.offsets(&tp);
        reading.close().await;
        if rows[0] >= 60 {
            break rows;
        }
    };
    assert!(rows.len() < 10, "{rows:?}");
    let mut inside = Reading::alone(
        &world.log,
        Isolation::ReadCommitted,
        &[(tp.clone(), at(30))],
    )
    .await;
    inside.until_position(&tp, end).await;
    assert!(inside.faults.is_empty());
    inside.close().await;
}

/// Retention passes a paused position: on resume the partition stops and says so; the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn h01_records_deleted_under_a_paused_reader_are_a_fault() {
    let world = Real::new();
    let name = name();
    world.create_topic(&name, 2).await;
    let (a, b) = (partition(&name, 0), partition(&name, 1));
    world.produce(&a, numbered(0, 10)).await;
    let mut reading = Reading::alone(
        &world.log,
        Isolation::ReadCommitted,
        &[(a.clone(), at(0)), (b.clone(), at(0))],
    )
    .await;
    reading.until_position(&a, 10).await;
    reading
        .reader
        .pause(std::slice::from_ref(&a))
        .await
        .unwrap();
    // what was asked for before the pause still comes
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.produce(&a, numbered(10, 30)).await;
    world.delete_records(&a, 20).await;
    reading
        .reader
        .resume(std::slice::from_ref(&a))
        .await
        .unwrap();
    match reading.until_fault().await {
        PartitionFault::OutOfRange { offset, .. } => {
            assert_eq!(offset.map(everlog_common::Offset::get), Some(10));
        }
        other => panic!("{other:?}"),
    }
    world.produce(&b, numbered(0, 5)).await;
    reading.until_position(&b, 5).await;
    reading.assign(&[(a.clone(), at(20))]).await;
    reading.until_position(&a, 30).await;
    assert_eq!(
        reading.offsets(&a),
        (0..10).chain(20..30).collect::<Vec<i64>>()
    );
    reading.close().await;
}

/// Pauses at every moment, while records arrive: none lost, none twice, whatever the client repeats.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_pauses_lose_and_repeat_nothing() {
    pauses_lose_and_repeat_nothing(&Real::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_pauses_lose_and_repeat_nothing_by_librdkafka() {
    pauses_lose_and_repeat_nothing(&Real::of_librdkafka()).await;
}

async fn pauses_lose_and_repeat_nothing(world: &Real) {
    const PAUSES: usize = 770;
    const EACH: usize = 60;
    let name = name();
    world.create_topic(&name, 2).await;
    let tps = [partition(&name, 0), partition(&name, 1)];
    let starts: Vec<_> = tps.iter().map(|tp| (tp.clone(), at(0))).collect();
    let mut reading = Reading::alone(&world.log, Isolation::ReadCommitted, &starts).await;
    let producer = world.producer(&[("linger.ms", "1")]);
    for n in 0..PAUSES {
        let tp = &tps[n % 2];
        for tp in &tps {
            Real::send(&producer, tp, &numbered(n * EACH, n * EACH + EACH));
        }
        reading
            .reader
            .pause(std::slice::from_ref(tp))
            .await
            .unwrap();
        reading
            .step(Duration::from_millis(u64::try_from(n % 5).unwrap()))
            .await;
        reading
            .reader
            .resume(std::slice::from_ref(tp))
            .await
            .unwrap();
        reading
            .step(Duration::from_millis(u64::try_from(n % 7).unwrap()))
            .await;
        assert!(reading.faults.is_empty(), "{:?}", reading.faults);
    }
    Real::produce_with(&producer, &tps[0], &[]);
    let expected: Vec<_> = (0..PAUSES * EACH).map(|n| n.to_string()).collect();
    for tp in &tps {
        reading
            .until_position(tp, i64::try_from(PAUSES * EACH).unwrap())
            .await;
        assert!(reading.values(tp) == expected, "{tp}");
    }
    reading.close().await;
}

/// Pauses at every moment, while small transactions are committed: each of their records arrives. librdkafka's callback
/// interface loses some: after a pause it drops the records that wait, and still moves its position over the marker behind them.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_pauses_lose_no_transaction() {
    pauses_lose_no_transaction(&Real::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_pauses_lose_no_transaction_by_librdkafka() {
    pauses_lose_no_transaction(&Real::of_librdkafka()).await;
}

async fn pauses_lose_no_transaction(world: &Real) {
    const TRANSACTIONS: usize = 200;
    const PARTITIONS: i32 = 16;
    const EACH: usize = 3;
    let name = name();
    world.create_topic(&name, PARTITIONS).await;
    let tps: Vec<_> = (0..PARTITIONS).map(|n| partition(&name, n)).collect();
    let starts: Vec<_> = tps.iter().map(|tp| (tp.clone(), at(0))).collect();
    let mut reading = Reading::alone(&world.log, Isolation::ReadCommitted, &starts).await;
    let producer = world.producer(&[("transactional.id", name.as_str()), ("linger.ms", "0")]);
    let pauses = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            producer.init_transactions(WAIT).unwrap();
            for n in 0..TRANSACTIONS {
                producer.begin_transaction().unwrap();
                for tp in &tps {
                    Real::send(&producer, tp, &numbered(n * EACH, n * EACH + EACH));
                }
                producer.commit_transaction(WAIT).unwrap();
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let mut pauses = 0;
                while !writing.is_finished() {
                    reading.reader.pause(&tps).await.unwrap();
                    reading.step(Duration::from_millis(pauses % 4)).await;
                    reading.reader.resume(&tps).await.unwrap();
                    reading.step(Duration::from_millis(2 + pauses % 5)).await;
                    pauses += 1;
                }
                pauses
            })
        })
    });
    assert!(pauses > 100, "{pauses}");
    let expected: Vec<_> = (0..TRANSACTIONS * EACH).map(|n| n.to_string()).collect();
    for tp in &tps {
        // each transaction has a marker besides
        let end = i64::try_from(TRANSACTIONS * (EACH + 1)).unwrap();
        reading.until_position(tp, end).await;
        let given = reading.values(tp);
        let first_lost = expected.iter().zip(&given).position(|(a, b)| a != b);
        assert!(
            given == expected,
            "{tp}: {} of {} records, the first that is missing: {first_lost:?}",
            given.len(),
            expected.len()
        );
    }
    assert!(reading.faults.is_empty(), "{:?}", reading.faults);
    reading.close().await;
}

/// Nobody polls: memory stays bounded, fetching stops; then everything comes, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_nobody_polls_holds_no_more_than_its_memory() {
    const MEMORY: usize = 8 << 20;
    const ROWS: usize = 40_000;
    let world = Real::new();
    let name = name();
    world.create_topic(&name, 4).await;
    let tps: Vec<_> = (0..4).map(|n| partition(&name, n)).collect();
    let producer = world.producer(&[]);
    let records: Vec<_> = (0..ROWS / 4)
        .map(|n| MemoryRecord::value(noise(2_000, n as u64)))
        .collect();
    for tp in &tps {
        Real::produce_with(&producer, tp, &records);
    }
    let reader = world
        .log
        .open(ReaderOptions {
            memory_bytes: MEMORY,
            ..alone(Isolation::ReadCommitted)
        })
        .await
        .unwrap();
    let mut reading = Reading::new(reader);
    let starts: Vec<_> = tps.iter().map(|tp| (tp.clone(), at(0))).collect();
    reading.assign(&starts).await;
    let mut most = 0;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(reading.reader.held_bytes());
    }
    assert!(most > MEMORY / 8, "it fills: {most}");
    assert!(most < MEMORY + (2 << 20), "it is bounded: {most}");
    for tp in &tps {
        reading
            .until_position(tp, i64::try_from(records.len()).unwrap())
            .await;
        let same = reading.rows[tp]
            .iter()
            .zip(&records)
            .all(|((_, v), r)| r.value.as_ref() == Some(v));
        assert!(same);
    }
    reading.close().await;
}

/// The end comes with the rows before it, or by itself behind control records; never without a move of the position.
#[tokio::test(flavor = "multi_thread")]
async fn h03_each_transaction_at_the_end_moves_the_position_again() {
    let world = Real::new();
    let name = name();
    world.create_topic(&name, 1).await;
    let tp = partition(&name, 0);
    let mut reading =
        Reading::alone(&world.log, Isolation::ReadCommitted, &[(tp.clone(), at(0))]).await;
    let mut end = 0;
    for (n, ending) in [Ending::Abort, Ending::Commit, Ending::Abort, Ending::Abort]
        .into_iter()
        .enumerate()
    {
        world
            .transaction(&tp, numbered(n * 3, n * 3 + 3), ending)
            .await;
        end += 4;
        reading.until_position(&tp, end).await;
        assert!(reading.at_end.contains(&tp));
    }
    assert_eq!(reading.values(&tp), ["3", "4", "5"]);
    reading.close().await;
}
