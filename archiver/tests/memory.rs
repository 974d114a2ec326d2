//! The archiver from end to end, on brokers and a catalog in memory: real tables, real files, real Parquet.

#[path = "memory/disturbed.rs"]
mod disturbed;
mod support;

use std::time::Duration;

use everlog_archiver::{ArchiverError, FailureKind, OnGap, Settings};
use everlog_common::{GapReason, Generation, TimestampType};
use everlog_kafka::memory::{MemoryRecord, Request};
use everlog_kafka::{LogError, PartitionFault, TopicConfig};
use everlog_table::catalog::memory::{Call, Fault};

use support::{World, o, p, topic, tp};

fn failures(error: &ArchiverError) -> Vec<FailureKind> {
    match error {
        ArchiverError::Stopped(failures) => failures.iter().map(|f| f.kind).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn every_topic_that_matches_is_archived_up_to_its_end() {
    let world = World::new();
    for (name, partitions) in [
        ("orders.eu", 3),
        ("orders.us", 1),
        ("clicks", 2),
        ("other", 1),
    ] {
        world.log.create_topic(&topic(name), partitions);
        for n in 0..i32::try_from(partitions).unwrap() {
            world.produce(&tp(name, n), 0..500);
        }
    }
    let summary = world.catch_up(&["^orders\\..*", "clicks"]).await.unwrap();
    assert_eq!((summary.topics, summary.rows), (3, 3000));
    world.assert_equals_log("orders.eu", 3).await;
    world.assert_equals_log("orders.us", 1).await;
    world.assert_equals_log("clicks", 2).await;
    assert!(world.archive(&topic("other")).await.is_none());
    // once more: there is nothing to do
    let again = world.catch_up(&["^orders\\..*", "clicks"]).await.unwrap();
    assert_eq!((again.rows, again.commits), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn h14_h15_what_appears_later_is_read_from_its_first_offset() {
    let world = World::new();
    world.log.create_topic(&topic("a.1"), 1);
    let running = world.start(world.settings(&["^a\\."]));
    world.produce(&tp("a.1", 0), 0..10);
    world.wait_for_ledger(&tp("a.1", 0), 10).await;
    world.log.add_partitions(&topic("a.1"), 3);
    world.produce(&tp("a.1", 2), 0..20);
    world.log.create_topic(&topic("a.2"), 1);
    world.produce(&tp("a.2", 0), 0..30);
    world.wait_for_ledger(&tp("a.1", 2), 20).await;
    world.wait_for_ledger(&tp("a.2", 0), 30).await;
    assert!(running.status.is_ready() && running.status.health().is_ok());
    let summary = running.end().await.unwrap();
    assert_eq!(summary.rows, 60);
    world.assert_equals_log("a.1", 3).await;
    world.assert_equals_log("a.2", 1).await;
}

#[tokio::test(start_paused = true)]
async fn h03_h04_only_committed_rows_are_archived_and_trailing_markers_reach_the_ledger() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    let write = |n: i32, from: usize, commit: bool| {
        let txn = world.log.begin();
        for i in from..from + 7 {
            world
                .log
                .append_in(txn, &tp("t", n), MemoryRecord::value(format!("{i}")));
        }
        if commit {
            world.log.commit(txn);
        } else {
            world.log.abort(txn);
        }
    };
    // aborts at the start, in the middle, at the end; partition 1 holds nothing but an abort
    write(0, 0, false);
    write(0, 10, true);
    write(0, 20, false);
    write(0, 30, true);
    write(0, 40, false);
    write(1, 0, false);
    world.catch_up(&["t"]).await.unwrap();
    world.assert_equals_log("t", 2).await;
    let ledger = world.ledger(&topic("t")).await;
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().next, o(40));
    let silent = ledger.entry(Generation(0), p(1)).unwrap();
    assert_eq!((silent.next, silent.rows), (o(8), 0));
    // h05: an open transaction is not in the way, and is not archived
    let open = world.log.begin();
    world
        .log
        .append_in(open, &tp("t", 0), MemoryRecord::value("open"));
    world
        .log
        .append(&tp("t", 0), MemoryRecord::value("behind it"));
    world.catch_up(&["t"]).await.unwrap();
    let ledger = world.ledger(&topic("t")).await;
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().next, o(40));
    world.log.commit(open);
    world.catch_up(&["t"]).await.unwrap();
    world.assert_equals_log("t", 2).await;
}

#[tokio::test(start_paused = true)]
async fn h08_holes_of_compaction_are_no_gaps() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..1000);
    world.log.compact(&tp("t", 0), |offset, _| offset % 3 != 0);
    world.log.skip_offsets(&tp("t", 0), 5);
    world.catch_up(&["t"]).await.unwrap();
    world.assert_equals_log("t", 1).await;
    let ledger = world.ledger(&topic("t")).await;
    assert!(ledger.gaps.is_empty());
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().next, o(1005));
}

#[tokio::test(start_paused = true)]
async fn b07_partitions_without_data_hold_nobody_up() {
    let world = World::new();
    world.log.create_topic(&topic("empty"), 5);
    world.log.create_topic(&topic("t"), 50);
    world.produce(&tp("t", 49), 0..10);
    world.catch_up(&["empty", "t"]).await.unwrap();
    world.assert_equals_log("t", 50).await;
    assert_eq!(world.ledger(&topic("empty")).await.rows(), 0);
    assert_eq!(
        world
            .ledger(&topic("t"))
            .await
            .newest()
            .unwrap()
            .1
            .partitions
            .len(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_quiet_position_is_committed_after_the_idle_interval_and_at_shutdown() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let settings = Settings {
        idle_commit_interval: Duration::from_secs(60),
        ..world.settings(&["t"])
    };
    let running = world.start(settings);
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    world.log.skip_offsets(&tp("t", 0), 3);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let next = |ledger: everlog_common::Ledger| ledger.entry(Generation(0), p(0)).unwrap().next;
    assert_eq!(next(world.ledger(&topic("t")).await), o(10));
    assert!(running.status.health().is_ok());
    world.wait_for_ledger(&tp("t", 0), 13).await;
    world.log.skip_offsets(&tp("t", 0), 4);
    tokio::time::sleep(Duration::from_secs(2)).await;
    running.end().await.unwrap();
    assert_eq!(next(world.ledger(&topic("t")).await), o(17));
}

/// Crashes at arbitrary instants, restarts, and nothing is lost or doubled.
#[tokio::test(start_paused = true)]
async fn p01_a_crash_at_any_instant_loses_and_doubles_nothing() {
    for seed in 0..12_u64 {
        let world = World::new();
        world.log.create_topic(&topic("t"), 3);
        world.log.limit_batches(7);
        let mut made = [0_usize; 3];
        for round in 0..6_u64 {
            let settings = Settings {
                commit_interval: Duration::from_millis(100 + 50 * (seed % 5)),
                ..world.settings(&["t"])
            };
            let running = world.start(settings);
            for step in 0..5_u64 {
                for (n, made) in made.iter_mut().enumerate() {
                    let more = usize::try_from((seed + step + round) % 9).unwrap() + n;
                    world.produce(&tp("t", i32::try_from(n).unwrap()), *made..*made + more);
                    *made += more;
                }
                // from the middle of a poll to the middle of a commit
                let ms = (seed * 37 + round * 101 + step * 13) % 170;
                tokio::time::sleep(Duration::from_millis(ms)).await;
                for _ in 0..(seed * 7 + round * 3) % 40 {
                    tokio::task::yield_now().await;
                }
            }
            running.crash().await;
        }
        world.catch_up(&["t"]).await.unwrap();
        world.assert_equals_log("t", 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn h28_two_archivers_of_one_topic_double_nothing_and_make_progress() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 4);
    world.log.limit_batches(50);
    let settings = Settings {
        commit_interval: Duration::from_millis(300),
        ..world.settings(&["t"])
    };
    let first = world.start(settings.clone());
    let second = world.start(settings);
    for round in 0..60 {
        for n in 0..4 {
            world.produce(&tp("t", n), round * 20..round * 20 + 20);
        }
        tokio::time::sleep(Duration::from_millis(130)).await;
    }
    for n in 0..4 {
        world.wait_for_ledger(&tp("t", n), 1200).await;
    }
    first.end().await.unwrap();
    second.end().await.unwrap();
    world.assert_equals_log("t", 4).await;
}

#[tokio::test(start_paused = true)]
async fn h28_the_weaker_of_two_archivers_ends_with_another_writer_and_the_stronger_goes_on() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let strong = world.start(Settings {
        commit_interval: Duration::from_millis(900),
        ..world.settings(&["t"])
    });
    // always later than the other: never first
    let weak = world.start(Settings {
        commit_interval: Duration::from_secs(5),
        ..world.settings(&["t"])
    });
    for round in 0..200 {
        world.produce(&tp("t", 0), round * 3..round * 3 + 3);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let error = weak.ended().await.unwrap_err();
    assert_eq!(
        (failures(&error), error.exit_status()),
        (vec![FailureKind::AnotherWriter], 5)
    );
    world.wait_for_ledger(&tp("t", 0), 600).await;
    strong.end().await.unwrap();
    world.assert_equals_log("t", 1).await;
}

#[tokio::test(start_paused = true)]
async fn h01_b24_a_lost_race_with_retention_stops_that_partition_alone() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    for n in 0..2 {
        world.produce(&tp("t", n), 0..100);
    }
    world.catch_up(&["t"]).await.unwrap();
    for n in 0..2 {
        world.produce(&tp("t", n), 100..200);
    }
    world.log.delete_records(&tp("t", 0), o(150));
    let running = world.start(world.settings(&["t"]));
    world.wait_for_ledger(&tp("t", 1), 200).await;
    let health = running.status.health();
    assert_eq!(
        (health.reasons.len(), health.reasons[0].reason),
        (1, "retention")
    );
    assert!(health.reasons[0].detail.contains("[100, 150)"));
    let error = running.end().await.unwrap_err();
    assert_eq!(
        (failures(&error), error.exit_status()),
        (vec![FailureKind::Gap], 3)
    );
    let ledger = world.ledger(&topic("t")).await;
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().next, o(100));
    // and so does a job that only wants to catch up
    let error = world.catch_up(&["t"]).await.unwrap_err();
    assert_eq!(error.exit_status(), 3);
}

#[tokio::test(start_paused = true)]
async fn h01_b24_a_lost_race_with_retention_is_recorded_where_that_is_wanted() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..200);
    let before = world.visible_rows(&tp("t", 0)).await;
    let settings = Settings {
        on_gap: OnGap::Record,
        ..world.settings(&["t"])
    };
    let running = world.start(settings.clone());
    world.wait_for_ledger(&tp("t", 0), 200).await;
    running.end().await.unwrap();
    world.produce(&tp("t", 0), 200..300);
    world.log.delete_records(&tp("t", 0), o(250));
    let running = world.start(settings);
    world.wait_for_ledger(&tp("t", 0), 300).await;
    let metrics = running.status.render_metrics();
    assert!(metrics.contains(
        "everlog_archiver_gap_offsets_total{topic=\"t\",partition=\"0\",reason=\"retention\"} 50"
    ));
    let summary = running.end().await.unwrap();
    assert_eq!(summary.gaps.len(), 1);
    let ledger = world.ledger(&topic("t")).await;
    let gap = ledger.gaps[0];
    assert_eq!(
        (gap.start, gap.end, gap.reason),
        (o(200), Some(o(250)), GapReason::Retention)
    );
    let mut expected = before;
    expected.extend(world.visible_rows(&tp("t", 0)).await);
    let mut found = world
        .archived(&topic("t"))
        .await
        .remove(&(Generation(0), p(0)))
        .unwrap();
    found.sort();
    support::assert_same(&tp("t", 0), &found, &expected);
}

#[tokio::test(start_paused = true)]
async fn h01_retention_that_overtakes_a_running_reader_keeps_what_was_read() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.log.limit_batches(10);
    let running = world.start(Settings {
        on_gap: OnGap::Record,
        commit_interval: Duration::from_secs(3600),
        ..world.settings(&["t"])
    });
    world.produce(&tp("t", 0), 0..40);
    let head = world.visible_rows(&tp("t", 0)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // what is read is in memory only; now the log loses it, and more
    world.produce(&tp("t", 0), 40..100);
    world.log.delete_records(&tp("t", 0), o(70));
    world.produce(&tp("t", 0), 100..110);
    world.wait_for_ledger(&tp("t", 0), 40).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    running.end().await.unwrap();
    let ledger = world.ledger(&topic("t")).await;
    let gap = ledger.gaps[0];
    assert_eq!((gap.start, gap.end), (o(40), Some(o(70))));
    let mut expected = head;
    expected.extend(world.visible_rows(&tp("t", 0)).await);
    let mut found = world
        .archived(&topic("t"))
        .await
        .remove(&(Generation(0), p(0)))
        .unwrap();
    found.sort();
    support::assert_same(&tp("t", 0), &found, &expected);
}

#[tokio::test(start_paused = true)]
async fn h12_a_topic_created_anew_while_it_is_read_begins_a_generation() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    let running = world.start(world.settings(&["t"]));
    for n in 0..2 {
        world.produce(&tp("t", n), 0..100);
    }
    world.wait_for_ledger(&tp("t", 0), 100).await;
    world.wait_for_ledger(&tp("t", 1), 100).await;
    // longer than the old one at once: the client reads on without a word
    world.log.recreate_topic(&topic("t"));
    for n in 0..2 {
        world.produce(&tp("t", n), 1000..1300);
    }
    world
        .wait_for("generation 1 to be archived", async || {
            let ledger = world.ledger(&topic("t")).await;
            (0..2).all(|n| {
                ledger
                    .entry(Generation(1), p(n))
                    .is_some_and(|e| e.next == o(300))
            })
        })
        .await;
    running.end().await.unwrap();
    let ledger = world.ledger(&topic("t")).await;
    let closed: Vec<_> = ledger
        .gaps
        .iter()
        .map(|g| (g.generation, g.partition, g.start, g.end))
        .collect();
    assert_eq!(
        closed,
        vec![
            (Generation(0), p(0), o(100), None),
            (Generation(0), p(1), o(100), None)
        ]
    );
    let archived = world.archived(&topic("t")).await;
    for n in 0..2 {
        let mut now = archived[&(Generation(1), p(n))].clone();
        now.sort();
        support::assert_same(&tp("t", n), &now, &world.visible_rows(&tp("t", n)).await);
        assert_eq!(archived[&(Generation(0), p(n))].len(), 100);
    }
}

#[tokio::test(start_paused = true)]
async fn b06_a_shorter_topic_created_anew_while_nobody_looked_is_read_from_its_start() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..1000);
    world.catch_up(&["t"]).await.unwrap();
    world.log.recreate_topic(&topic("t"));
    world.produce(&tp("t", 0), 0..5);
    let summary = world.catch_up(&["t"]).await.unwrap();
    assert_eq!(summary.rows, 5);
    let ledger = world.ledger(&topic("t")).await;
    assert_eq!(ledger.entry(Generation(1), p(0)).unwrap().next, o(5));
    assert!(ledger.is_closed(Generation(0), p(0)));
}

#[tokio::test(start_paused = true)]
async fn a_topic_deleted_and_created_later_is_found_again() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.log.create_topic(&topic("u"), 1);
    let running = world.start(world.settings(&["t", "u"]));
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    world.log.delete_topic(&topic("t"));
    tokio::time::sleep(Duration::from_secs(120)).await;
    world.produce(&tp("u", 0), 0..10);
    world.wait_for_ledger(&tp("u", 0), 10).await;
    assert!(
        running.status.health().is_ok(),
        "{:?}",
        running.status.health()
    );
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..7);
    world
        .wait_for("the new topic", async || {
            let ledger = world.ledger(&topic("t")).await;
            ledger
                .entry(Generation(1), p(0))
                .is_some_and(|e| e.next == o(7))
        })
        .await;
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn h10_p12_a_truncated_log_stops_the_partition_and_says_so() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    for n in 0..2 {
        world.produce(&tp("t", n), 0..100);
    }
    world.catch_up(&["t"]).await.unwrap();
    // an unclean election; the new leader writes on past the old end
    world.log.truncate(&tp("t", 0), o(60));
    for n in 0..2 {
        world.produce(&tp("t", n), 500..600);
    }
    let error = world.catch_up(&["t"]).await.unwrap_err();
    assert_eq!(
        (failures(&error), error.exit_status()),
        (vec![FailureKind::Truncated], 1)
    );
    assert!(
        error.to_string().contains("leader epoch 0 ended at 60"),
        "{error}"
    );
    let ledger = world.ledger(&topic("t")).await;
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().next, o(100));
    assert_eq!(ledger.entry(Generation(0), p(1)).unwrap().next, o(200));
}

#[tokio::test(start_paused = true)]
async fn h10_rows_that_an_election_took_back_are_not_committed() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..50);
    let running = world.start(Settings {
        commit_interval: Duration::from_secs(20),
        ..world.settings(&["t"])
    });
    world.wait_for_ledger(&tp("t", 0), 50).await;
    world.produce(&tp("t", 0), 50..80);
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.log.truncate(&tp("t", 0), o(60));
    world.produce(&tp("t", 0), 900..950);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!running.status.health().is_ok());
    let error = running.end().await.unwrap_err();
    assert_eq!(failures(&error), vec![FailureKind::Truncated]);
    let ledger = world.ledger(&topic("t")).await;
    assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().next, o(50));
    // the next start is fine: what is in the ledger is in the log
    world.catch_up(&["t"]).await.unwrap();
    world.assert_equals_log("t", 1).await;
}

#[tokio::test(start_paused = true)]
async fn h10_markers_of_a_later_leader_are_no_truncation() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let txn = world.log.begin();
    world
        .log
        .append_in(txn, &tp("t", 0), MemoryRecord::value("a"));
    world.log.bump_epoch(&tp("t", 0));
    world.log.commit(txn);
    world.catch_up(&["t"]).await.unwrap();
    let ledger = world.ledger(&topic("t")).await;
    assert_eq!(
        ledger.entry(Generation(0), p(0)).unwrap().leader_epoch,
        Some(1),
        "the marker's, which reaches to the end"
    );
    world.produce(&tp("t", 0), 0..3);
    world.catch_up(&["t"]).await.unwrap();
    world.assert_equals_log("t", 1).await;
    let ledger = world.ledger(&topic("t")).await;
    assert_eq!(
        ledger.entry(Generation(0), p(0)).unwrap().leader_epoch,
        Some(1)
    );
}

/// What has no rows has no epoch of theirs; an election that takes it back is noticed by the leader's of then.
#[tokio::test(start_paused = true)]
async fn h10_p12_offsets_without_rows_that_an_election_took_back_are_noticed() {
    for rows_before in [0_usize, 4] {
        let world = World::new();
        world.log.create_topic(&topic("t"), 1);
        world.produce(&tp("t", 0), 0..rows_before);
        world.log.bump_epoch(&tp("t", 0));
        let txn = world.log.begin();
        for value in ["a", "b"] {
            world
                .log
                .append_in(txn, &tp("t", 0), MemoryRecord::value(value));
        }
        world.log.abort(txn);
        world.catch_up(&["t"]).await.unwrap();
        let next = i64::try_from(rows_before).unwrap() + 3;
        let ledger = world.ledger(&topic("t")).await;
        let entry = ledger.entry(Generation(0), p(0)).unwrap();
        assert_eq!((entry.next, entry.leader_epoch), (o(next), Some(1)));
        // the log is cut below what is archived, and grows beyond it by other records
        world.log.truncate(&tp("t", 0), o(next - 3));
        world.produce(&tp("t", 0), 500..510);
        let error = world.catch_up(&["t"]).await.unwrap_err();
        assert_eq!(failures(&error), vec![FailureKind::Truncated], "{error}");
        let ledger = world.ledger(&topic("t")).await;
        assert_eq!(ledger.entry(Generation(0), p(0)).unwrap().next, o(next));
    }
}

#[tokio::test(start_paused = true)]
async fn h13_another_cluster_is_refused_until_it_is_accepted() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..10);
    world.catch_up(&["t"]).await.unwrap();
    world.log.set_cluster_id(Some("elsewhere"));
    let error = world.catch_up(&["t"]).await.unwrap_err();
    assert_eq!(
        (failures(&error), error.exit_status()),
        (vec![FailureKind::Configuration], 2)
    );
    assert!(
        error.to_string().contains("accept_cluster = \"elsewhere\""),
        "{error}"
    );
    let settings = Settings {
        until_caught_up: true,
        accept_cluster: Some("elsewhere".to_owned()),
        ..world.settings(&["t"])
    };
    world.start(settings).ended().await.unwrap();
    let ledger = world.ledger(&topic("t")).await;
    assert_eq!(ledger.entry(Generation(1), p(0)).unwrap().rows, 10);
}

#[tokio::test(start_paused = true)]
async fn h26_p08_a_lost_reply_after_a_landed_commit_doubles_nothing() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    let running = world.start(world.settings(&["t"]));
    for n in 0..2 {
        world.produce(&tp("t", n), 0..50);
    }
    world.wait_for_ledger(&tp("t", 0), 50).await;
    for fault in [
        Fault::LostAfter,
        Fault::LostBefore,
        Fault::Unavailable,
        Fault::Conflict,
    ] {
        world.catalog.inject(Call::Commit, fault);
        let next = world.log_end(&tp("t", 0)).await;
        for n in 0..2 {
            world.produce(&tp("t", n), next..next + 50);
        }
        for n in 0..2 {
            world
                .wait_for_ledger(&tp("t", n), i64::try_from(next).unwrap() + 50)
                .await;
        }
    }
    let metrics = running.status.render_metrics();
    assert!(!metrics.contains("outcome=\"failed\""), "{metrics}");
    running.end().await.unwrap();
    world.assert_equals_log("t", 2).await;
}

#[tokio::test(start_paused = true)]
async fn h26_an_attempt_that_is_still_on_its_way_lands_never_or_alone() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(world.settings(&["t"]));
    world.produce(&tp("t", 0), 0..50);
    world.wait_for_ledger(&tp("t", 0), 50).await;
    world.catalog.inject(Call::Commit, Fault::Late);
    world.produce(&tp("t", 0), 50..100);
    world.wait_for_ledger(&tp("t", 0), 100).await;
    // the late one arrives after everything was moved on: it must not change the table any more
    assert_eq!(world.catalog.land().await, Some(false));
    running.end().await.unwrap();
    world.assert_equals_log("t", 1).await;
}

#[tokio::test(start_paused = true)]
async fn b05_an_unreachable_catalog_holds_the_table_and_fails_health_after_a_while() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(world.settings(&["t"]));
    world.produce(&tp("t", 0), 0..50);
    world.wait_for_ledger(&tp("t", 0), 50).await;
    world.gate.close();
    world.produce(&tp("t", 0), 50..100);
    world
        .wait_for("health to say so", async || {
            let reasons = running.status.health().reasons;
            reasons.iter().any(|r| r.reason == "held")
        })
        .await;
    world.gate.open();
    world.wait_for_ledger(&tp("t", 0), 100).await;
    world
        .wait_for("health to recover", async || {
            running.status.health().is_ok()
        })
        .await;
    running.end().await.unwrap();
    world.assert_equals_log("t", 1).await;
}

#[tokio::test(start_paused = true)]
async fn brokers_that_do_not_answer_hold_commits_and_lose_nothing() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(world.settings(&["t"]));
    world.produce(&tp("t", 0), 0..50);
    world.wait_for_ledger(&tp("t", 0), 50).await;
    let mut refused = 0_u32;
    world.log.intercept(move |request| {
        if request == Request::Poll || refused == 60 {
            return None;
        }
        refused += 1;
        Some(LogError::Unavailable {
            what: "ask".into(),
            detail: "no broker".into(),
        })
    });
    world.produce(&tp("t", 0), 50..100);
    world.wait_for_ledger(&tp("t", 0), 100).await;
    world.log.stop_intercepting();
    running.end().await.unwrap();
    world.assert_equals_log("t", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_gives_up_on_a_partition_goes_on_from_the_ledger() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    let running = world.start(world.settings(&["t"]));
    for round in 0..10 {
        for n in 0..2 {
            world.produce(&tp("t", n), round * 10..round * 10 + 10);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let fault = match round % 3 {
            0 => PartitionFault::Other("connection".into()),
            1 => PartitionFault::OutOfRange {
                offset: None,
                detail: "no".into(),
            },
            _ => PartitionFault::Gone("moving".into()),
        };
        world.log.fault(&tp("t", 0), fault);
    }
    for n in 0..2 {
        world.wait_for_ledger(&tp("t", n), 100).await;
    }
    running.end().await.unwrap();
    world.assert_equals_log("t", 2).await;
}

#[tokio::test(start_paused = true)]
async fn corrupt_data_in_the_log_stops_that_partition_with_its_own_status() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    let running = world.start(world.settings(&["t"]));
    world.produce(&tp("t", 1), 0..10);
    world
        .wait_for("the partition to stop", async || {
            world
                .log
                .fault(&tp("t", 0), PartitionFault::Corrupt("crc".into()));
            !running.status.health().is_ok()
        })
        .await;
    world.wait_for_ledger(&tp("t", 1), 10).await;
    assert_eq!(running.end().await.unwrap_err().exit_status(), 4);
}

fn in_group(world: &World, interval_ms: u64) -> Settings {
    Settings {
        group: Some("g".to_owned()),
        commit_interval: Duration::from_millis(interval_ms),
        ..world.settings(&["^t"])
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_shares_the_work_and_hands_over_what_it_has_committed() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 6);
    // long: only the revocation commits
    let first = world.start(in_group(&world, 60_000));
    world
        .wait_for("the first member", async || {
            world.log.members("g").len() == 1
        })
        .await;
    for n in 0..6 {
        world.produce(&tp("t", n), 0..100);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = world.start(in_group(&world, 500));
    world
        .wait_for("the work to be shared", async || {
            world
                .log
                .members("g")
                .iter()
                .all(|m| world.log.owned("g", *m).len() == 3)
                && world.log.members("g").len() == 2
        })
        .await;
    let given: Vec<_> = world.log.owned("g", world.log.members("g")[1]);
    for tp in &given {
        // committed by the first before it gave them away
        let ledger = world.ledger(&tp.topic).await;
        assert_eq!(
            ledger.entry(Generation(0), tp.partition).unwrap().next,
            o(100)
        );
    }
    for n in 0..6 {
        world.produce(&tp("t", n), 100..200);
    }
    for tp in &given {
        world.wait_for_ledger(tp, 200).await;
    }
    first.end().await.unwrap();
    for n in 0..6 {
        world.wait_for_ledger(&tp("t", n), 200).await;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.log.mirrored("g", &given[0]), Some(o(200)));
    let summary = second.end().await.unwrap();
    assert!(summary.rows >= 300);
    world.assert_equals_log("t", 6).await;
}

#[tokio::test(start_paused = true)]
async fn h23_a_rebalance_storm_loses_and_doubles_nothing_and_makes_progress() {
    let world = World::new();
    world.log.create_topic(&topic("t1"), 4);
    world.log.create_topic(&topic("t2"), 4);
    world.log.limit_batches(20);
    let mut members = vec![world.start(in_group(&world, 1000))];
    let mut made = 0;
    for round in 0..40_usize {
        for name in ["t1", "t2"] {
            for n in 0..4 {
                world.produce(&tp(name, n), made..made + 10);
            }
        }
        made += 10;
        match round % 4 {
            0 | 1 => members.push(world.start(in_group(&world, 1000))),
            2 => members.remove(0).end().await.map(|_| ()).unwrap(),
            _ => members.remove(0).crash().await,
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let rows = world.ledger(&topic("t1")).await.rows();
    assert!(rows > 200, "the storm made no progress: {rows} rows");
    members.push(world.start(in_group(&world, 500)));
    for name in ["t1", "t2"] {
        for n in 0..4 {
            world
                .wait_for_ledger(&tp(name, n), i64::try_from(made).unwrap())
                .await;
        }
    }
    for member in members {
        member.end().await.unwrap();
    }
    world.assert_equals_log("t1", 4).await;
    world.assert_equals_log("t2", 4).await;
}

#[tokio::test(start_paused = true)]
async fn h23_p03_a_zombie_that_was_thrown_out_is_fenced() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    let zombie = world.start(in_group(&world, 1000));
    world.produce(&tp("t", 0), 0..50);
    world.wait_for_ledger(&tp("t", 0), 50).await;
    let id = world.log.members("g")[0];
    // it is thrown out and does not hear of it, and reads and commits on
    world.log.deafen("g", id, true);
    world.log.expel("g", id);
    let second = world.start(in_group(&world, 700));
    for round in 0..30 {
        for n in 0..2 {
            world.produce(&tp("t", n), 50 + round * 10..60 + round * 10);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    world.wait_for_ledger(&tp("t", 0), 350).await;
    world.wait_for_ledger(&tp("t", 1), 300).await;
    world.log.deafen("g", id, false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    zombie.end().await.unwrap();
    second.end().await.unwrap();
    world.assert_equals_log("t", 2).await;
}

#[tokio::test(start_paused = true)]
async fn catching_up_waits_for_a_partition_that_nobody_leads() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 3);
    for n in 0..3 {
        world.produce(&tp("t", n), 0..100);
    }
    // at the very start, when nothing is known of its end
    world.log.lose_leader(&tp("t", 1));
    let comes_back = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        world.log.regain_leader(&tp("t", 1));
    };
    let (done, ()) = tokio::join!(world.catch_up(&["t"]), comes_back);
    assert_eq!(done.unwrap().rows, 300);
    world.assert_equals_log("t", 3).await;
    // and when the archive knows an epoch of it, which nobody confirms
    for n in 0..3 {
        world.produce(&tp("t", n), 100..150);
    }
    world.log.lose_leader(&tp("t", 2));
    let comes_back = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        world.log.regain_leader(&tp("t", 2));
    };
    let (done, ()) = tokio::join!(world.catch_up(&["t"]), comes_back);
    assert_eq!(done.unwrap().rows, 150);
    world.assert_equals_log("t", 3).await;
}

/// Expressions mean the same with a group as without: the archiver's own language, its own look at the topics.
#[tokio::test(start_paused = true)]
async fn h14_a_group_shares_what_the_expression_matches_and_nothing_else() {
    let world = World::new();
    for name in ["orders-12", "orders-d", "a", "ab"] {
        world.log.create_topic(&topic(name), 2);
        world.produce(&tp(name, 1), 0..10);
    }
    let settings = Settings {
        group: Some("g".to_owned()),
        ..world.settings(&[r"^orders-\d+$", "^(?:a|b)$"])
    };
    let members = [world.start(settings.clone()), world.start(settings)];
    world.wait_for_ledger(&tp("orders-12", 1), 10).await;
    world.wait_for_ledger(&tp("a", 1), 10).await;
    for name in ["orders-13", "b", "bc"] {
        world.log.create_topic(&topic(name), 1);
        world.produce(&tp(name, 0), 0..10);
    }
    world.wait_for_ledger(&tp("orders-13", 0), 10).await;
    world.wait_for_ledger(&tp("b", 0), 10).await;
    // one that is gone is shared no more, and the others are
    world.log.delete_topic(&topic("b"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.produce(&tp("orders-13", 0), 10..20);
    world.wait_for_ledger(&tp("orders-13", 0), 20).await;
    for member in members {
        assert!(
            member.status.health().is_ok(),
            "{:?}",
            member.status.health()
        );
        member.end().await.unwrap();
    }
    for name in ["orders-d", "ab", "bc"] {
        let archive = world.archive(&topic(name)).await;
        assert!(archive.is_none(), "{name} is not configured");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_catches_up_together() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 4);
    for n in 0..4 {
        world.produce(&tp("t", n), 0..300);
    }
    let settings = Settings {
        until_caught_up: true,
        ..in_group(&world, 500)
    };
    let members = [
        world.start(settings.clone()),
        world.start(settings.clone()),
        world.start(settings),
    ];
    for member in members {
        tokio::time::timeout(Duration::from_secs(120), member.ended())
            .await
            .unwrap()
            .unwrap();
    }
    world.assert_equals_log("t", 4).await;
}

#[tokio::test(start_paused = true)]
async fn memory_stays_within_its_bound_and_a_record_larger_than_all_of_it_passes() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 8);
    let memory = 16 << 20;
    let settings = Settings {
        memory,
        commit_interval: Duration::from_secs(3600),
        ..world.settings(&["t"])
    };
    let value = vec![7_u8; 100_000];
    for i in 0..400 {
        world
            .log
            .append(&tp("t", i % 8), MemoryRecord::value(&value));
    }
    world
        .log
        .append(&tp("t", 3), MemoryRecord::value(vec![1_u8; 20 << 20]));
    let running = world.start(settings);
    let mut most = 0;
    let status = running.status.clone();
    world
        .wait_for("everything to be archived", async || {
            let held = gauge(
                &status.render_metrics(),
                "everlog_archiver_memory_held_bytes",
            );
            most = most.max(held);
            world.ledger(&topic("t")).await.rows() == 401
        })
        .await;
    // the bound, and once the large record
    assert!(most < memory + (22 << 20), "{most} bytes held");
    running.end().await.unwrap();
    world.assert_equals_log("t", 8).await;
}

/// A gauge's value, its fraction cut off.
fn gauge(metrics: &str, name: &str) -> usize {
    metrics
        .lines()
        .find_map(|line| {
            let value = line.strip_prefix(name)?.trim();
            value.split('.').next()?.parse().ok()
        })
        .unwrap_or(0)
}

/// Retention counts from when a record was written, not from when the archiver first saw it.
#[tokio::test(start_paused = true)]
async fn b24_what_was_never_archived_is_as_old_as_its_records_and_unknown_before_they_are_read() {
    const LAG: &str = "everlog_archiver_lag_seconds{topic=\"t\",partition=\"0\"}";
    const HEADROOM: &str =
        "everlog_archiver_retention_headroom_seconds{topic=\"t\",partition=\"0\"}";
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let config = TopicConfig {
        retention: Some(Duration::from_secs(900)),
        ..TopicConfig::default()
    };
    world.log.set_topic_config(&topic("t"), config);
    let written = world.clock.now().0 - 660_000;
    for i in 0..10 {
        let record = MemoryRecord::value(format!("{i}")).at(written + i, TimestampType::Create);
        world.log.append(&tp("t", 0), record);
    }
    world.gate.close();
    let settings = Settings {
        commit_interval: Duration::from_secs(120),
        ..world.settings(&["t"])
    };
    let running = world.start(settings);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let metrics = running.status.render_metrics();
    assert!(
        metrics.contains("lag_records{topic=\"t\"")
            && !metrics.contains(LAG)
            && !metrics.contains(HEADROOM),
        "{metrics}"
    );
    world.gate.open();
    world
        .wait_for("the age of the records", async || {
            running.status.render_metrics().contains(LAG)
        })
        .await;
    let metrics = running.status.render_metrics();
    let age = gauge(&metrics, LAG);
    assert!((660..900).contains(&age), "{metrics}");
    assert!(gauge(&metrics, HEADROOM) <= 900 - age, "{metrics}");
    world.wait_for_ledger(&tp("t", 0), 10).await;
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_named_topic_that_does_not_exist_fails_a_catch_up_and_is_waited_for_otherwise() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..10);
    let error = world.catch_up(&["t", "nowhere"]).await.unwrap_err();
    assert_eq!(error.exit_status(), 1);
    assert!(
        error
            .to_string()
            .contains("nowhere: the topic does not exist"),
        "{error}"
    );
    world.assert_equals_log("t", 1).await;
    // in a group as well, where members see only what the group gives them
    for group in [None, Some("g".to_owned())] {
        let settings = Settings {
            group,
            ..world.settings(&["t", "never", "^no such"])
        };
        let running = world.start(settings);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(
            running.status.waits_for().as_deref(),
            Some("configured and not in Kafka: never")
        );
        running.end().await.unwrap();
    }
    let running = world.start(world.settings(&["t", "nowhere"]));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!running.status.is_ready());
    world.log.create_topic(&topic("nowhere"), 1);
    world.produce(&tp("nowhere", 0), 0..10);
    world.wait_for_ledger(&tp("nowhere", 0), 10).await;
    assert!(
        running.status.is_ready(),
        "{:?}",
        running.status.waits_for()
    );
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_denied_topic_takes_nothing_from_the_others() {
    let world = World::new();
    for name in ["t", "closed", "closes"] {
        world.log.create_topic(&topic(name), 2);
        world.produce(&tp(name, 0), 0..10);
    }
    world.log.deny(&topic("closed"), true);
    let error = world.catch_up(&["t", "closed"]).await.unwrap_err();
    assert_eq!(failures(&error), vec![FailureKind::Denied]);
    assert!(error.to_string().contains("closed"), "{error}");
    world.assert_equals_log("t", 2).await;

    for group in [None, Some("g".to_owned())] {
        world.log.deny(&topic("closed"), true);
        world.log.deny(&topic("closes"), false);
        let settings = Settings {
            group,
            ..world.settings(&["t", "closed", "^closes$"])
        };
        let running = world.start(settings);
        let end = async |name: &str| i64::try_from(world.log_end(&tp(name, 0)).await).unwrap();
        for name in ["t", "closes"] {
            world.produce(&tp(name, 0), 0..10);
            world.wait_for_ledger(&tp(name, 0), end(name).await).await;
        }
        assert_eq!(
            running.status.waits_for().as_deref(),
            Some("configured and not allowed to see: closed")
        );
        // one that is being read is closed, too
        world.log.deny(&topic("closes"), true);
        tokio::time::sleep(Duration::from_secs(200)).await;
        world.produce(&tp("t", 0), 0..10);
        world.wait_for_ledger(&tp("t", 0), end("t").await).await;
        // and one is opened
        world.log.deny(&topic("closed"), false);
        world.produce(&tp("closed", 0), 0..10);
        world
            .wait_for_ledger(&tp("closed", 0), end("closed").await)
            .await;
        let health = format!("{:?}", running.status.health());
        assert!(health.contains("closes"), "{health}");
        let error = running.end().await.unwrap_err();
        let kinds = failures(&error);
        assert!(
            kinds.iter().all(|kind| *kind == FailureKind::Denied) && !kinds.is_empty(),
            "{error}"
        );
        assert!(error.to_string().contains("closes"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clash_of_table_names_fails_that_topic_alone() {
    let world = World::new();
    for name in ["a.b", "a_b"] {
        world.log.create_topic(&topic(name), 1);
        world.produce(&tp(name, 0), 0..10);
    }
    world.catch_up(&["a.b"]).await.unwrap();
    world.log.create_topic(&topic("c"), 1);
    world.produce(&tp("c", 0), 0..10);
    let error = world.catch_up(&["a.b", "a_b", "c"]).await.unwrap_err();
    assert_eq!(failures(&error), vec![FailureKind::Configuration]);
    assert!(
        error.to_string().contains("a_b") && error.to_string().contains("a.b"),
        "{error}"
    );
    world.assert_equals_log("a.b", 1).await;
    world.assert_equals_log("c", 1).await;
}

#[tokio::test(start_paused = true)]
async fn brokers_without_topic_ids_are_archived_by_cluster_alone() {
    let world = World::new();
    world.log.forget_topic_ids();
    world.log.create_topic(&topic("t"), 2);
    for n in 0..2 {
        world.produce(&tp("t", n), 0..100);
    }
    world.catch_up(&["t"]).await.unwrap();
    world.produce(&tp("t", 0), 100..150);
    world.catch_up(&["t"]).await.unwrap();
    world.assert_equals_log("t", 2).await;
}
