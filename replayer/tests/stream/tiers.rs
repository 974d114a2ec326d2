//! Both tiers as one stream: where it begins and ends, what is passed, and every turn of the seam.

use std::time::Duration;

use everlog_common::{Millis, Offset, Partition, Positions};
use everlog_kafka::memory::MemoryRecord;
use everlog_replayer::{EventStream, From, OnGap, ReplayError, ReplayRequest, Until};
use everlog_table::snapshot::SnapshotSelector;

use crate::support::{
    Produced, Replayed, T, World, from, half_archived, o, p, read_some, request, topic, tp, until,
};

#[tokio::test(start_paused = true)]
async fn h41_history_then_tail_is_the_log_without_seam() {
    let (world, _log, produced) = half_archived(3, 200).await;
    let replayed = world.replay(request()).await.unwrap();
    produced.assert_emitted(&replayed);
    assert_eq!((replayed.archived, replayed.live), (600, 600));
    let ends: Vec<(Partition, Offset)> = replayed
        .positions
        .iter()
        .map(|(p, at)| (*p, at.offset))
        .collect();
    assert_eq!(ends, [(p(0), o(400)), (p(1), o(400)), (p(2), o(400))]);
}

#[tokio::test(start_paused = true)]
async fn until_snapshot_needs_no_kafka() {
    let (world, _log, _) = half_archived(2, 100).await;
    let mut components = world.components();
    components.log = None;
    let mut stream = EventStream::open(until(Until::Snapshot), components.clone())
        .await
        .unwrap();
    let mut replayed = Replayed::default();
    while let Some(batch) = stream.next().await.unwrap() {
        replayed.take(&batch);
    }
    assert_eq!((replayed.archived, replayed.live), (200, 0));
    stream.close().await;
    let error = EventStream::open(request(), components.clone())
        .await
        .unwrap_err();
    assert!(matches!(error, ReplayError::NoKafka(_)) && error.exit_status() == 2);
    // an end that the archive reaches needs none either
    assert!(
        EventStream::open(until(Until::Offset(o(50))), components)
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn until_now_is_the_end_seen_at_the_start() {
    let (world, log, mut produced) = half_archived(2, 100).await;
    let mut stream = world.open(request()).await.unwrap();
    let before = produced.count();
    produced.produce(&log, &topic(T), 0, 50);
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, usize::MAX).await;
    assert_eq!(replayed.count(), before);
}

#[tokio::test(start_paused = true)]
async fn until_offset_ends_before_it_in_either_tier() {
    let (world, _log, _) = half_archived(2, 100).await;
    for bound in [0, 1, 50, 99, 100, 101, 150, 199, 200, 5000] {
        let replayed = world.replay(until(Until::Offset(o(bound)))).await.unwrap();
        let expected: Vec<i64> = (0..bound.min(200)).collect();
        assert_eq!(replayed.offsets(0, 0), expected, "until offset {bound}");
        assert_eq!(replayed.offsets(0, 1), expected, "until offset {bound}");
    }
}

#[tokio::test(start_paused = true)]
async fn from_offset_begins_at_it_in_either_tier() {
    let (world, _log, _) = half_archived(2, 100).await;
    for first in [0, 1, 50, 100, 101, 199, 200, 300] {
        let start = From::Offset {
            generation: None,
            offset: o(first),
        };
        let replayed = world.replay(from(start)).await.unwrap();
        let expected: Vec<i64> = (first..200).collect();
        assert_eq!(replayed.offsets(0, 1), expected, "from offset {first}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_asked_partitions_come() {
    let (world, _log, _) = half_archived(4, 50).await;
    let some = ReplayRequest {
        partitions: Some([p(1), p(3)].into()),
        ..request()
    };
    let replayed = world.replay(some).await.unwrap();
    assert_eq!(replayed.offsets(0, 1).len(), 100);
    assert_eq!(replayed.offsets(0, 3).len(), 100);
    assert_eq!(replayed.count(), 200);
    let none = ReplayRequest {
        partitions: Some([p(9)].into()),
        ..request()
    };
    let error = world.replay(none).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "--partitions: topic t has no partition 9"
    );
}

#[tokio::test(start_paused = true)]
async fn h18_timestamps_mean_the_first_record_at_or_after_in_either_tier() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 2);
    let mut produced = Produced::default();
    let stamps = [10, 5, 30, 20, 50, 40, 35, 60, 15, 70];
    let base = 1_700_000_000_000;
    for ms in stamps {
        produced.at(&log, &topic(T), 0, base + ms);
    }
    produced.at(&log, &topic(T), 1, base + 1);
    world.commit_all(&topic(T), 3).await;
    for ms in [45, 80, 20, 90] {
        produced.at(&log, &topic(T), 0, base + ms);
    }
    produced.at(&log, &topic(T), 1, base + 55);
    let all: Vec<i64> = stamps.into_iter().chain([45, 80, 20, 90]).collect();
    for t in [0, 1, 5, 6, 11, 21, 31, 36, 51, 61, 71, 81, 90, 91] {
        let first = all.iter().position(|ms| *ms >= t).unwrap_or(all.len());
        let replayed = world
            .replay(from(From::Timestamp(Millis(base + t))))
            .await
            .unwrap();
        let expected: Vec<i64> = (first..all.len()).map(|o| o as i64).collect();
        assert_eq!(replayed.offsets(0, 0), expected, "from timestamp {t}");
        let other: Vec<i64> = match t {
            ..=1 => vec![0, 1],
            ..=55 => vec![1],
            _ => vec![],
        };
        assert_eq!(
            replayed.offsets(0, 1),
            other,
            "from timestamp {t}, partition 1"
        );
        let replayed = world
            .replay(until(Until::Timestamp(Millis(base + t))))
            .await
            .unwrap();
        let expected: Vec<i64> = (0..first).map(|o| o as i64).collect();
        assert_eq!(replayed.offsets(0, 0), expected, "until timestamp {t}");
    }
}

#[tokio::test(start_paused = true)]
async fn h03_control_records_and_compaction_leave_no_hole_in_positions() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 1);
    let write = |n: usize, commit: bool| {
        let txn = log.begin();
        for i in 0..n {
            log.append_in(txn, &tp(T, 0), MemoryRecord::value(format!("{i}")));
        }
        if commit {
            log.commit(txn);
        } else {
            log.abort(txn);
        }
    };
    write(5, false);
    write(5, true);
    write(5, false);
    world.commit_all(&topic(T), 100).await;
    write(5, true);
    write(3, false);
    let replayed = world.replay(request()).await.unwrap();
    assert_eq!(
        replayed.offsets(0, 0),
        (6..11).chain(18..23).collect::<Vec<_>>()
    );
    assert_eq!(
        replayed.positions[&p(0)].offset,
        o(28),
        "trailing aborts and markers are passed"
    );
}

#[tokio::test(start_paused = true)]
async fn h10_a_follower_passes_the_marker_of_a_later_leader_behind_the_last_record() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 1);
    let write = || {
        let txn = log.begin();
        for i in 0..5 {
            log.append_in(txn, &tp(T, 0), MemoryRecord::value(format!("{i}")));
        }
        log.bump_epoch(&tp(T, 0));
        log.commit(txn);
    };
    Produced::default().produce(&log, &topic(T), 0, 5);
    world.commit_all(&topic(T), 100).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    for round in 1..=2_usize {
        write();
        read_some(&mut stream, &mut replayed, 5 + 5 * round).await;
        // the live log is looked at several times meanwhile
        let quiet = tokio::time::timeout(Duration::from_secs(90), stream.next()).await;
        assert!(quiet.is_err(), "round {round}: {quiet:?}");
    }
    assert_eq!(
        replayed.offsets(0, 0),
        (0..10).chain(11..16).collect::<Vec<_>>()
    );
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn h02_retention_that_passes_the_cut_sends_the_reader_to_a_newer_snapshot() {
    let (world, log, produced) = half_archived(2, 200).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 1).await;
    // while history is being read, the archive goes on and Kafka forgets what the pinned snapshot does not have
    world.commit_all(&topic(T), 50).await;
    log.delete_records(&tp(T, 0), o(300));
    read_some(&mut stream, &mut replayed, 800).await;
    produced.assert_emitted(&replayed);
    assert_eq!(replayed.gaps, Vec::<String>::new());
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn h42_a_hole_between_a_stalled_archive_and_the_log_is_an_error_with_the_interval() {
    let (world, log, _) = half_archived(2, 100).await;
    log.delete_records(&tp(T, 1), o(120));
    let error = world.replay(request()).await.unwrap_err();
    assert_eq!(error.exit_status(), 3);
    let line = everlog_replayer::one_line(&error);
    assert!(
        line.contains("partition 1: offsets [100, 120) of generation 0"),
        "{line}"
    );
}

#[tokio::test(start_paused = true)]
async fn h09_a_recorded_gap_is_passed_or_stops_the_replay() {
    let (world, log, _) = half_archived(1, 100).await;
    log.delete_records(&tp(T, 0), o(150));
    world.commit_all(&topic(T), 1000).await;
    let replayed = world.replay(request()).await.unwrap();
    assert_eq!(
        replayed.offsets(0, 0),
        (0..100).chain(150..200).collect::<Vec<_>>()
    );
    assert_eq!(
        replayed.gaps,
        ["partition 0 [100, 150) of generation 0 (retention)"]
    );
    let stop = ReplayRequest {
        on_gap: OnGap::Stop,
        ..request()
    };
    let mut stream = world.open(stop).await.unwrap();
    let mut before = Replayed::default();
    let error = loop {
        match stream.next().await {
            Ok(Some(batch)) => before.take(&batch),
            Ok(None) => panic!("it ended"),
            Err(error) => break error,
        }
    };
    assert_eq!((error.exit_status(), before.count()), (3, 100));
    assert_eq!(
        stream.positions()[&p(0)].offset,
        o(100),
        "a resumption meets the gap again"
    );
}

#[tokio::test(start_paused = true)]
async fn h45_a_tail_that_falls_behind_retention_goes_back_to_history() {
    let (world, log, mut produced) = half_archived(2, 100).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 400).await;
    for n in 0..5 {
        // the consumer sleeps; the log moves on beyond it, the archive has it all
        produced.produce(&log, &topic(T), 0, 300);
        produced.produce(&log, &topic(T), 1, 10);
        world.commit_all(&topic(T), 1000).await;
        log.delete_records(&tp(T, 0), o(200 + 300 * n + 250));
        read_some(&mut stream, &mut replayed, produced.count()).await;
    }
    produced.assert_emitted(&replayed);
    // 200 were archived at first, and five times 250 were gone from Kafka when they were asked for
    assert!(replayed.archived >= 200 + 5 * 250, "{}", replayed.archived);
    assert_eq!(replayed.gaps, Vec::<String>::new());
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn h14_partitions_added_after_the_cut_are_read_from_their_first_offset() {
    let (world, log, mut produced) = half_archived(1, 50).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    log.add_partitions(&topic(T), 2);
    produced.produce(&log, &topic(T), 1, 30);
    read_some(&mut stream, &mut replayed, produced.count()).await;
    log.add_partitions(&topic(T), 4);
    produced.produce(&log, &topic(T), 3, 30);
    produced.produce(&log, &topic(T), 0, 30);
    read_some(&mut stream, &mut replayed, produced.count()).await;
    // one whose start is gone already, but archived
    log.add_partitions(&topic(T), 5);
    produced.produce(&log, &topic(T), 4, 40);
    world.commit_all(&topic(T), 1000).await;
    log.delete_records(&tp(T, 4), o(25));
    read_some(&mut stream, &mut replayed, produced.count()).await;
    produced.assert_emitted(&replayed);
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn h46_b11_a_replay_resumed_from_any_position_equals_one_that_was_never_stopped() {
    let (world, log, produced) = half_archived(3, 60).await;
    log.limit_batches(7);
    let mut positions: Vec<(usize, Positions)> = Vec::new();
    let mut whole = Replayed::default();
    let mut stream = world.open(request()).await.unwrap();
    positions.push((0, stream.positions().clone()));
    while let Some(batch) = stream.next().await.unwrap() {
        whole.take(&batch);
        positions.push((whole.count(), stream.positions().clone()));
    }
    stream.close().await;
    produced.assert_emitted(&whole);
    assert!(positions.len() > 30, "{} positions", positions.len());
    for (count, at) in positions {
        let resumed = ReplayRequest {
            start: Some(at.clone()),
            ..request()
        };
        let rest = world.replay(resumed).await.unwrap();
        assert_eq!(rest.count(), produced.count() - count, "from {at:?}");
        for (partition, rows) in &produced.rows {
            let from = at.get(&p(*partition)).map_or(0, |at| at.offset.get());
            assert_eq!(
                rest.offsets(0, *partition),
                (from..rows.len() as i64).collect::<Vec<_>>()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_snapshot_is_read_as_it_was() {
    let (world, _log, _) = half_archived(1, 100).await;
    let older = world.archive(&topic(T)).await.snapshots().await.unwrap();
    for info in older.iter().filter(|s| s.ledger.is_some()) {
        let request = ReplayRequest {
            selector: SnapshotSelector::Id(info.snapshot_id),
            ..until(Until::Snapshot)
        };
        let replayed = world.replay(request).await.unwrap();
        assert_eq!(
            replayed.count() as u64,
            info.ledger.as_ref().unwrap().rows()
        );
    }
    assert!(older.len() >= 3);
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept() {
    let (world, _log, produced) = half_archived(2, 500).await;
    let limited = ReplayRequest {
        rate: std::num::NonZeroU64::new(100),
        ..request()
    };
    let began = tokio::time::Instant::now();
    let replayed = world.replay(limited).await.unwrap();
    produced.assert_emitted(&replayed);
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(19) && took <= Duration::from_secs(22),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_archive_that_has_nothing_yet_is_tailed_from_the_log_s_start() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 2);
    world.archive(&topic(T)).await;
    log.append_values(&tp(T, 1), (0..20).map(|i| i.to_string()));
    log.delete_records(&tp(T, 1), o(5));
    let replayed = world.replay(request()).await.unwrap();
    assert_eq!(replayed.offsets(0, 1), (5..20).collect::<Vec<_>>());
    let error = world.replay(until(Until::Snapshot)).await.unwrap_err();
    assert!(error.to_string().contains("nothing was archived yet"));
}

#[tokio::test(start_paused = true)]
async fn a_topic_without_archive_is_an_error() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic("other"), 1);
    let error = world
        .replay(ReplayRequest::new(topic("other")))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "topic other is not archived in namespace lake: check both names, or start the archiver for it"
    );
}

#[tokio::test(start_paused = true)]
async fn progress_tells_tier_share_and_what_is_left() {
    let (world, _log, produced) = half_archived(1, 300).await;
    let mut stream = world.open(request()).await.unwrap();
    let first = stream.progress();
    assert_eq!(first.events, 0);
    assert_eq!(first.events_left, Some(produced.count() as u64));
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, usize::MAX).await;
    let last = stream.progress();
    assert_eq!(
        (last.events, last.events_left, last.share),
        (600, Some(0), Some(1.0))
    );
}
