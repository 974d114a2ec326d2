//! `--order time`.

use everlog_common::{Millis, TimestampType};
use everlog_kafka::memory::MemoryRecord;
use everlog_replayer::{From, Order, ReplayRequest, Until};

use crate::support::{Produced, Replayed, T, World, o, p, request, topic, tp, until};

/// The definition: the heads' least (timestamp, partition, offset), again and again.
fn merged(rows: impl IntoIterator<Item = (i32, i64, i64)>) -> Vec<(i32, i64, i64)> {
    let mut logs: Vec<std::collections::VecDeque<(i64, i32, i64)>> = vec![Default::default(); 3];
    for (partition, offset, ts) in rows {
        logs[partition as usize].push_back((ts, partition, offset));
    }
    let mut merged = Vec::new();
    while let Some(next) = logs.iter().filter_map(|l| l.front()).min().copied() {
        logs[next.1 as usize].pop_front();
        merged.push((next.1, next.2, next.0));
    }
    merged
}

#[tokio::test(start_paused = true)]
async fn order_by_time_is_total_within_the_snapshot_and_the_same_every_time() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 3);
    let mut produced = Produced::default();
    for i in 0..300_i64 {
        let partition = i32::try_from(i % 3).unwrap();
        produced.at(
            &log,
            &topic(T),
            partition,
            1_700_000_000_000 + (i * 7919) % 100,
        );
    }
    world.commit_all(&topic(T), 17).await;
    let by_time = ReplayRequest {
        order: Order::Time,
        ..until(Until::Snapshot)
    };
    let first = world.replay(by_time.clone()).await.unwrap();
    produced.assert_emitted(&first);
    // the definition, row by row
    let expected = merged(world.replay(until(Until::Snapshot)).await.unwrap().sequence);
    assert_eq!(first.sequence, expected);
    for (memory_bytes, threads) in [(64 << 10, 1), (1 << 20, 4)] {
        let again = ReplayRequest {
            memory_bytes,
            threads,
            ..by_time.clone()
        };
        assert_eq!(world.replay(again).await.unwrap().sequence, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn order_by_time_crosses_the_handoff_and_is_resumed_in_its_snapshot() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 3);
    let mut produced = Produced::default();
    let write = |produced: &mut Produced, from: i64, to: i64| {
        for i in from..to {
            let partition = i32::try_from(i % 3).unwrap();
            let ms = 1_700_000_000_000 + (i * 7919) % 100;
            produced.at(&log, &topic(T), partition, ms);
        }
    };
    write(&mut produced, 0, 150);
    world.commit_all(&topic(T), 17).await;
    write(&mut produced, 150, 240);
    let by_time = ReplayRequest {
        order: Order::Time,
        ..request()
    };
    let archived = merged(world.replay(until(Until::Snapshot)).await.unwrap().sequence);
    let mut stream = world.open(by_time.clone()).await.unwrap();
    let snapshot = stream.snapshot_id();
    let mut whole = Replayed::default();
    let mut at = vec![(0, stream.positions().clone())];
    while let Some(batch) = stream.next().await.unwrap() {
        whole.take(&batch);
        at.push((whole.count(), stream.positions().clone()));
    }
    stream.close().await;
    produced.assert_emitted(&whole);
    assert_eq!(
        whole.sequence[..150],
        archived,
        "by time within the snapshot, then as it arrives"
    );
    // the archive goes on: in the newest snapshot the rest would be merged otherwise
    world.commit_all(&topic(T), 1000).await;
    for (count, positions) in at.into_iter().step_by(5) {
        let resumed = ReplayRequest {
            start: Some(positions),
            resumed_snapshot: snapshot,
            ..by_time.clone()
        };
        let rest = world.replay(resumed).await.unwrap();
        assert_eq!(rest.count(), 240 - count);
        if count < 150 {
            assert_eq!(
                rest.sequence[..150 - count],
                archived[count..],
                "resumed after {count}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h18_wild_timestamps_are_found_and_ordered_by_their_value() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 3);
    let year_9999 = 253_402_300_799_999;
    let stamps = [
        0,
        -1,
        1_700_000_000_000,
        -86_400_001,
        year_9999,
        i64::MAX,
        5,
        i64::MIN,
        i64::MAX / 1000,
        i64::MAX / 1000 + 1,
        1,
    ];
    let mut wild: Vec<(i64, TimestampType)> = Vec::new();
    for (i, ms) in stamps.into_iter().enumerate() {
        wild.push((ms, TimestampType::Create));
        if i % 3 == 0 {
            wild.push((-1, TimestampType::None));
        }
    }
    for (i, (ms, kind)) in wild.iter().enumerate() {
        log.append(
            &tp(T, 0),
            MemoryRecord::value(format!("{i}")).at(*ms, *kind),
        );
        log.append(
            &tp(T, 2),
            MemoryRecord::value(format!("{i}")).at(*ms, *kind),
        );
        if i == wild.len() / 2 {
            // from here on only the log has it
            world.commit_all(&topic(T), 3).await;
        }
    }
    let len = i64::try_from(wild.len()).unwrap();
    for at in stamps.into_iter().flat_map(|ms| [ms, ms.saturating_add(1)]) {
        let first = wild
            .iter()
            .position(|(ms, kind)| *kind != TimestampType::None && *ms >= at);
        let first = first.map_or(len, |i| i64::try_from(i).unwrap());
        let from = ReplayRequest {
            from: From::Timestamp(Millis(at)),
            ..request()
        };
        let to = until(Until::Timestamp(Millis(at)));
        for (request, expected) in [(from, first..len), (to, 0..first)] {
            let asked = format!("{:?} {:?}", request.from, request.until);
            let replayed = world.replay(request).await.unwrap();
            for partition in [0, 2] {
                let expected: Vec<i64> = expected.clone().collect();
                assert_eq!(replayed.offsets(0, partition), expected, "{asked}");
            }
        }
    }
    let by_time = ReplayRequest {
        order: Order::Time,
        ..until(Until::Snapshot)
    };
    let expected = merged(world.replay(until(Until::Snapshot)).await.unwrap().sequence);
    let replayed = world.replay(by_time).await.unwrap();
    assert_eq!(replayed.sequence, expected);
    assert_eq!(replayed.positions[&p(0)].offset, o(len / 2 + 1));
}
