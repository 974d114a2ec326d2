//! One thing is away, and everything else goes on: a leader, a table's catalog, its store, a permission, the group; and
//! whoever looks is told.

use std::time::Duration;

use everlog_archiver::{FailureKind, Settings};
use everlog_common::{Generation, TopicPartition};
use everlog_kafka::memory::{MemoryRecord, Request};
use everlog_kafka::{LogError, PartitionFault};
use everlog_table::catalog::memory::{Call, Fault};

use super::support::lens::Ask;
use super::support::store::No;
use super::support::{Running, World, o, p, topic, tp};
use super::{failures, gauge, in_group};

async fn next(world: &World, tp: &TopicPartition) -> i64 {
    let ledger = world.ledger(&tp.topic).await;
    let era = ledger.newest().map(|(_, era)| era.clone());
    era.and_then(|era| era.partitions.get(&tp.partition).map(|e| e.next.get()))
        .unwrap_or(0)
}

async fn seconds(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

fn has_reason(running: &Running, reason: &str, partition: Option<i32>) -> bool {
    let reasons = running.status.health().reasons;
    reasons
        .iter()
        .any(|r| r.reason == reason && r.partition == partition)
}

fn denied() -> LogError {
    LogError::Denied {
        what: "ask".into(),
        detail: "no".into(),
    }
}

fn unavailable() -> LogError {
    LogError::Unavailable {
        what: "ask".into(),
        detail: "no broker".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn b07_a_partition_without_a_leader_is_left_out_of_commits_and_holds_nobody_else() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    let running = world.start(world.settings(&["t"]));
    for n in 0..2 {
        world.produce(&tp("t", n), 0..50);
        world.wait_for_ledger(&tp("t", n), 50).await;
    }
    // its broker dies when rows of it were read, and are to be committed
    for n in 0..2 {
        world.produce(&tp("t", n), 50..100);
    }
    world.lens.lose_leader(&tp("t", 1));
    world.wait_for_ledger(&tp("t", 0), 100).await;
    world.produce(&tp("t", 0), 100..150);
    world.wait_for_ledger(&tp("t", 0), 150).await;
    assert_eq!(next(&world, &tp("t", 1)).await, 50);
    let metrics = running.status.render_metrics();
    assert!(metrics.contains("lag_records{topic=\"t\",partition=\"0\"}"));
    world
        .wait_for("health to say so", async || {
            has_reason(&running, "held", Some(1))
        })
        .await;
    let metrics = running.status.render_metrics();
    assert!(!metrics.contains("lag_records{topic=\"t\",partition=\"1\"}"));
    world.lens.elect_leader(&tp("t", 1));
    world.wait_for_ledger(&tp("t", 1), 100).await;
    world
        .wait_for("health to recover", async || {
            running.status.health().is_ok()
        })
        .await;
    running.end().await.unwrap();
    world.assert_equals_log("t", 2).await;
}

#[tokio::test(start_paused = true)]
async fn b07_a_partition_without_a_leader_at_the_start_holds_nobody_else() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 3);
    for n in 0..3 {
        world.produce(&tp("t", n), 0..50);
    }
    world.catch_up(&["t"]).await.unwrap();
    for n in 0..3 {
        world.produce(&tp("t", n), 50..80);
    }
    world.lens.lose_leader(&tp("t", 2));
    // a catch-up archives the others, and waits for this one rather than to leave it out
    let settings = Settings {
        until_caught_up: true,
        ..world.settings(&["t"])
    };
    let mut running = world.start(settings);
    for n in 0..2 {
        world.wait_for_ledger(&tp("t", n), 80).await;
    }
    seconds(60).await;
    assert!(!running.has_ended());
    world.lens.elect_leader(&tp("t", 2));
    running.ended().await.unwrap();
    world.assert_equals_log("t", 3).await;
}

#[tokio::test(start_paused = true)]
async fn h10_a_partition_whose_brokers_contradict_themselves_is_asked_again_by_itself() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 2);
    for n in 0..2 {
        world.produce(&tp("t", n), 0..50);
    }
    world.catch_up(&["t"]).await.unwrap();
    for n in 0..2 {
        world.produce(&tp("t", n), 50..80);
    }
    // a new leader's high watermark trails behind what was archived; its epochs say that nothing was lost
    world.lens.trail(&tp("t", 1), Some(o(20)));
    let running = world.start(world.settings(&["t"]));
    world.wait_for_ledger(&tp("t", 0), 80).await;
    assert_eq!(next(&world, &tp("t", 1)).await, 50);
    world.lens.trail(&tp("t", 1), None);
    world.wait_for_ledger(&tp("t", 1), 80).await;
    running.end().await.unwrap();
    world.assert_equals_log("t", 2).await;
}

async fn a_held_table_beside(settings: impl Fn(&World) -> Settings) {
    let world = World::new();
    for name in ["t.held", "t.free"] {
        world.log.create_topic(&topic(name), 2);
    }
    let settings = Settings {
        memory: 32 << 20,
        ..settings(&world)
    };
    let running = world.start(settings);
    for name in ["t.held", "t.free"] {
        world.produce(&tp(name, 0), 0..10);
        world.wait_for_ledger(&tp(name, 0), 10).await;
    }
    world.gate.refuse_commits(&["t_held"]);
    // more than all of the memory, again and again
    let value = vec![7_u8; 200_000];
    for i in 0..400 {
        world
            .log
            .append(&tp("t.held", i % 2), MemoryRecord::value(&value));
    }
    let mut at = 10;
    for _ in 0..10 {
        for n in 0..2 {
            world.produce(&tp("t.free", n), at..at + 10);
        }
        at += 10;
        world
            .wait_for_ledger(&tp("t.free", 0), i64::try_from(at).unwrap())
            .await;
    }
    let held = gauge(
        &running.status.render_metrics(),
        "everlog_archiver_memory_held_bytes",
    );
    assert!(
        (4 << 20..24 << 20).contains(&held),
        "{held} bytes of the held table"
    );
    seconds(90).await;
    assert!(has_reason(&running, "held", None));
    world.gate.refuse_commits(&[]);
    world.wait_for_ledger(&tp("t.held", 0), 210).await;
    world.wait_for_ledger(&tp("t.held", 1), 200).await;
    running.end().await.unwrap();
    world.assert_equals_log("t.held", 2).await;
    world.assert_equals_log("t.free", 2).await;
}

#[tokio::test(start_paused = true)]
async fn b07_a_table_that_cannot_be_committed_starves_no_other() {
    a_held_table_beside(|world| world.settings(&["^t\\."])).await;
}

#[tokio::test(start_paused = true)]
async fn b07_a_table_that_cannot_be_committed_starves_no_other_in_a_group() {
    a_held_table_beside(|world| in_group(world, 1000)).await;
}

#[tokio::test(start_paused = true)]
async fn b07_tables_whose_store_is_away_keep_nobody_from_encoding() {
    let world = World::new();
    let names = ["one", "two", "three", "free"];
    for name in names {
        world.log.create_topic(&topic(name), 1);
    }
    let running = world.start(world.settings(&names));
    for name in names {
        world.produce(&tp(name, 0), 0..10);
        world.wait_for_ledger(&tp(name, 0), 10).await;
    }
    for name in &names[..3] {
        world.store.refuse(&format!("{name}/data/"), No::Away);
        world.produce(&tp(name, 0), 10..20);
    }
    seconds(5).await;
    for at in [10, 20, 30_usize] {
        world.produce(&tp("free", 0), at..at + 10);
        world
            .wait_for_ledger(&tp("free", 0), i64::try_from(at).unwrap() + 10)
            .await;
    }
    assert_eq!(next(&world, &tp("one", 0)).await, 10);
    world.store.refuse_nothing();
    for name in names {
        world.wait_for_ledger(&tp(name, 0), 20).await;
    }
    running.end().await.unwrap();
    for name in names {
        world.assert_equals_log(name, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_denied_for_a_moment_stops_nothing() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(world.settings(&["t"]));
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    // brokers that are restarted one by one
    let mut left = 5;
    world.lens.refuse(move |ask| {
        let is_check = matches!(ask, Ask::Bounds(_)) && left > 0;
        left -= i32::from(is_check);
        is_check.then(denied)
    });
    world.produce(&tp("t", 0), 10..20);
    world.wait_for_ledger(&tp("t", 0), 20).await;
    // credentials of the store and of the catalog that are rotated
    world.store.refuse("t/data/", No::Denied(4));
    world.produce(&tp("t", 0), 20..30);
    world.wait_for_ledger(&tp("t", 0), 30).await;
    for _ in 0..4 {
        world.catalog.inject(Call::Commit, Fault::Denied);
    }
    world.produce(&tp("t", 0), 30..40);
    world.wait_for_ledger(&tp("t", 0), 40).await;
    let metrics = running.status.render_metrics();
    assert!(!metrics.contains("outcome=\"failed\""), "{metrics}");
    running.end().await.unwrap();
    world.assert_equals_log("t", 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_stays_denied_stops_its_topic_and_every_signal_says_so() {
    let world = World::new();
    for name in ["t", "free"] {
        world.log.create_topic(&topic(name), 1);
    }
    let running = world.start(world.settings(&["t", "free"]));
    for name in ["t", "free"] {
        world.produce(&tp(name, 0), 0..10);
        world.wait_for_ledger(&tp(name, 0), 10).await;
    }
    seconds(2).await;
    let metrics = running.status.render_metrics();
    assert!(metrics.contains("lag_records{topic=\"t\",partition=\"0\"} 0"));
    world.store.refuse("t/data/", No::Denied(u32::MAX));
    world.produce(&tp("t", 0), 10..20);
    world
        .wait_for("the topic to stop", async || {
            has_reason(&running, "denied", None)
        })
        .await;
    world.produce(&tp("free", 0), 10..20);
    world.wait_for_ledger(&tp("free", 0), 20).await;
    seconds(30).await;
    let metrics = running.status.render_metrics();
    for line in [
        "everlog_archiver_topic_stopped{topic=\"t\",reason=\"denied\"} 1",
        "everlog_archiver_commits_total{topic=\"t\",outcome=\"failed\"} 1",
        "everlog_archiver_lag_records{topic=\"free\",partition=\"0\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    // what nobody looks at any more is not shown as if it stood still
    for name in ["lag_records", "lag_seconds", "retention_headroom_seconds"] {
        let stale = format!("{name}{{topic=\"t\"");
        assert!(!metrics.contains(&stale), "{stale} is in\n{metrics}");
    }
    let error = running.end().await.unwrap_err();
    assert_eq!(failures(&error), vec![FailureKind::Denied]);
}

/// A commit that ends before anything was proposed counts as well.
#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_in_its_check_is_counted() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(world.settings(&["t"]));
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    world
        .lens
        .refuse(|ask| matches!(ask, Ask::Bounds(_)).then(denied));
    world.produce(&tp("t", 0), 10..20);
    world
        .wait_for("the topic to stop", async || {
            has_reason(&running, "denied", None)
        })
        .await;
    let metrics = running.status.render_metrics();
    assert!(
        metrics.contains("everlog_archiver_commits_total{topic=\"t\",outcome=\"failed\"} 1"),
        "{metrics}"
    );
    assert_eq!(running.end().await.unwrap_err().exit_status(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_table_is_made_for_a_topic_that_may_not_be_read() {
    let world = World::new();
    for name in ["mine", "theirs"] {
        world.log.create_topic(&topic(name), 1);
        world.produce(&tp(name, 0), 0..10);
    }
    world.lens.refuse(|ask| match ask {
        Ask::Describe([name]) if *name == topic("theirs") => Some(denied()),
        _ => None,
    });
    let running = world.start(world.settings(&["^"]));
    world.wait_for_ledger(&tp("mine", 0), 10).await;
    world
        .wait_for("the other to be refused", async || {
            has_reason(&running, "denied", None)
        })
        .await;
    assert!(world.archive(&topic("theirs")).await.is_none());
    running.end().await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn h12_a_topic_created_anew_during_a_catch_up_runs_to_its_new_end() {
    for fewer in [false, true] {
        let world = World::new();
        world.log.create_topic(&topic("t"), 3);
        for n in 0..3 {
            world.produce(&tp("t", n), 0..1000);
        }
        // read, and not committed
        world.gate.refuse_commits(&["t"]);
        let running = world.start(Settings {
            until_caught_up: true,
            ..world.settings(&["t"])
        });
        seconds(5).await;
        world.log.delete_topic(&topic("t"));
        world
            .log
            .create_topic(&topic("t"), if fewer { 1 } else { 3 });
        world.produce(&tp("t", 0), 0..5);
        seconds(5).await;
        world.gate.refuse_commits(&[]);
        tokio::time::timeout(Duration::from_secs(300), running.ended())
            .await
            .expect("it ends")
            .unwrap();
        let ledger = world.ledger(&topic("t")).await;
        let (_, era) = ledger.newest().unwrap();
        assert_eq!(era.partitions[&p(0)].next, o(5));
        assert_eq!(era.partitions.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_created_anew_with_fewer_partitions_is_healthy() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 4);
    let running = world.start(world.settings(&["t"]));
    for n in 0..4 {
        world.produce(&tp("t", n), 0..10);
        world.wait_for_ledger(&tp("t", n), 10).await;
    }
    world.log.delete_topic(&topic("t"));
    world.log.create_topic(&topic("t"), 2);
    world.produce(&tp("t", 1), 0..7);
    world
        .wait_for("the new topic", async || {
            let ledger = world.ledger(&topic("t")).await;
            let entry = ledger.entry(Generation(1), p(1)).copied();
            entry.is_some_and(|e| e.next == o(7))
        })
        .await;
    seconds(120).await;
    let health = running.status.health();
    assert!(health.is_ok(), "{health:?}");
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn b04_a_topic_that_moved_away_while_it_was_prepared_is_not_held_for_ever() {
    let world = World::new();
    for name in ["t.stays", "t.goes"] {
        world.log.create_topic(&topic(name), 1);
    }
    world.gate.close();
    let running = world.start(in_group(&world, 1000));
    seconds(20).await;
    assert!(!running.status.is_ready());
    world.log.delete_topic(&topic("t.goes"));
    seconds(60).await;
    world.gate.open();
    world.produce(&tp("t.stays", 0), 0..10);
    world.wait_for_ledger(&tp("t.stays", 0), 10).await;
    seconds(120).await;
    let health = running.status.health();
    assert!(health.is_ok(), "{health:?}");
    assert!(
        running.status.is_ready(),
        "{:?}",
        running.status.waits_for()
    );
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn b04_who_cannot_see_the_logs_is_not_healthy_and_shows_no_old_figures() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(world.settings(&["t"]));
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    seconds(5).await;
    assert!(running.status.health().is_ok());
    // topics are found as before: that says nothing about these
    world
        .lens
        .refuse(|ask| matches!(ask, Ask::Bounds(_)).then(unavailable));
    seconds(90).await;
    assert!(has_reason(&running, "brokers", None));
    let metrics = running.status.render_metrics();
    assert!(!metrics.contains("lag_records{"), "{metrics}");
    world.lens.refuse_nothing();
    seconds(5).await;
    assert!(running.status.health().is_ok());
    assert!(running.status.render_metrics().contains("lag_records{"));
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn b04_one_topic_that_may_not_be_looked_at_blinds_no_other() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        world.log.create_topic(&topic(name), 1);
        world.produce(&tp(name, 0), 0..10);
    }
    let running = world.start(world.settings(&["a", "b", "c"]));
    for name in ["a", "b", "c"] {
        world.wait_for_ledger(&tp(name, 0), 10).await;
    }
    world.lens.refuse(|ask| match ask {
        Ask::Bounds(asked) if asked.iter().any(|tp| tp.topic == topic("b")) => Some(denied()),
        _ => None,
    });
    for name in ["a", "c"] {
        world.log.skip_offsets(&tp(name, 0), 3);
    }
    seconds(90).await;
    let metrics = running.status.render_metrics();
    for name in ["a", "c"] {
        let line = format!("lag_records{{topic=\"{name}\"");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("lag_records{topic=\"b\""), "{metrics}");
    assert!(has_reason(&running, "brokers", None));
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn b04_lag_is_looked_at_however_seldom_topics_are() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(Settings {
        discovery_interval: Duration::from_secs(3600),
        ..world.settings(&["t"])
    });
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    world.gate.refuse_commits(&["t"]);
    world.produce(&tp("t", 0), 10..17);
    seconds(20).await;
    let lag = "everlog_archiver_lag_records{topic=\"t\",partition=\"0\"}";
    assert_eq!(gauge(&running.status.render_metrics(), lag), 7);
    seconds(90).await;
    assert!(has_reason(&running, "stalled", Some(0)));
    running.crash().await;
}

#[tokio::test(start_paused = true)]
async fn b04_a_member_that_the_group_gives_nothing_is_neither_ready_nor_healthy() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    // no word from the group, from the first poll on
    world
        .log
        .intercept(|request| (request == Request::Poll).then(unavailable));
    let running = world.start(in_group(&world, 1000));
    world
        .wait_for("the member", async || !world.log.members("g").is_empty())
        .await;
    let id = world.log.members("g")[0];
    world.log.deafen("g", id, true);
    world.log.stop_intercepting();
    seconds(40).await;
    assert!(!running.status.is_ready() && running.status.health().is_ok());
    seconds(40).await;
    assert!(has_reason(&running, "group", None) && !running.status.is_ready());
    world.log.deafen("g", id, false);
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    assert!(running.status.health().is_ok() && running.status.is_ready());
    // a member that has nothing since there is nothing is quite in order
    let second = world.start(in_group(&world, 1000));
    seconds(120).await;
    assert!(second.status.health().is_ok() && second.status.is_ready());
    second.end().await.unwrap();
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn h05_a_transaction_that_hangs_shows_although_nothing_lags() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(world.settings(&["t"]));
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    let open = world.log.begin();
    world
        .log
        .append_in(open, &tp("t", 0), MemoryRecord::value("open"));
    world.produce(&tp("t", 0), 0..20);
    seconds(70).await;
    let labels = "{topic=\"t\",partition=\"0\"}";
    let figure = |name: &str| {
        let name = format!("everlog_archiver_{name}{labels}");
        gauge(&running.status.render_metrics(), &name)
    };
    assert_eq!(figure("lag_records"), 0);
    assert_eq!(figure("open_transaction_offsets"), 21);
    assert!(figure("open_transaction_seconds") >= 60);
    world.log.commit(open);
    world.wait_for_ledger(&tp("t", 0), 32).await;
    seconds(3).await;
    assert_eq!(figure("open_transaction_offsets"), 0);
    assert_eq!(figure("open_transaction_seconds"), 0);
    running.end().await.unwrap();
    world.assert_equals_log("t", 1).await;
}

#[tokio::test(start_paused = true)]
async fn sigterm_is_over_within_thirty_seconds_whatever_is_away() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(in_group(&world, 1000));
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    world.gate.close();
    world.produce(&tp("t", 0), 10..20);
    seconds(3).await;
    let began = world.clock.elapsed();
    running.end().await.unwrap();
    assert!(world.clock.elapsed() - began < Duration::from_secs(28));
}

#[tokio::test(start_paused = true)]
async fn one_corrupt_answer_after_other_faults_stops_nothing() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    let running = world.start(world.settings(&["t"]));
    for i in 0..4 {
        world
            .log
            .fault(&tp("t", 0), PartitionFault::Other(format!("{i}")));
        seconds(10).await;
    }
    world
        .log
        .fault(&tp("t", 0), PartitionFault::Corrupt("crc".into()));
    seconds(40).await;
    assert!(running.status.health().is_ok());
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    running.end().await.unwrap();
    world.assert_equals_log("t", 1).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_while_this_machine_is_ahead_of_the_catalog() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.gate.set_behind(Duration::from_secs(2));
    let running = world.start(world.settings(&["t"]));
    world.produce(&tp("t", 0), 0..10);
    world.wait_for_ledger(&tp("t", 0), 10).await;
    world.gate.set_behind(Duration::from_secs(2 * 86_400));
    world.produce(&tp("t", 0), 10..20);
    seconds(100).await;
    assert_eq!(next(&world, &tp("t", 0)).await, 10);
    let reasons = running.status.health().reasons;
    assert!(
        reasons
            .iter()
            .any(|r| r.reason == "held" && r.detail.contains("correct the clock")),
        "{reasons:?}"
    );
    world.gate.set_behind(Duration::from_secs(20));
    world.wait_for_ledger(&tp("t", 0), 20).await;
    running.end().await.unwrap();
    world.assert_equals_log("t", 1).await;
}

/// A word for one rollback is no word for the next one.
#[tokio::test(start_paused = true)]
async fn h33_a_snapshot_is_accepted_once() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    for at in [0, 10] {
        world.produce(&tp("t", 0), at..at + 10);
        world.catch_up(&["t"]).await.unwrap();
    }
    let first = world.first_snapshot("t").await;
    world.roll_back("t", first).await;
    let error = world.catch_up(&["t"]).await.unwrap_err();
    assert_eq!(failures(&error), vec![FailureKind::AnotherWriter]);
    let running = world.start(Settings {
        accept: Some(first),
        ..world.settings(&["t"])
    });
    world
        .wait_for("the snapshot to be accepted", async || {
            running.status.is_ready()
        })
        .await;
    world.wait_for_ledger(&tp("t", 0), 20).await;
    world.roll_back("t", first).await;
    // the next who looks at the table does so to recover a partition
    world
        .log
        .fault(&tp("t", 0), PartitionFault::Other("away".into()));
    world
        .wait_for("the topic to stop", async || {
            has_reason(&running, "another_writer", None)
        })
        .await;
    let error = running.end().await.unwrap_err();
    assert_eq!(failures(&error), vec![FailureKind::AnotherWriter]);
}

/// What one member may not do another may: its topic is shared among the others, and what it can do it goes on doing.
#[tokio::test(start_paused = true)]
async fn h23_a_topic_that_failed_in_one_member_is_archived_by_the_others() {
    let world = World::new();
    // more of the one than a group that only evens out would take from a member
    for (name, partitions) in [("t", 4), ("free", 2)] {
        world.log.create_topic(&topic(name), partitions);
        world.produce(&tp(name, 0), 0..10);
    }
    let settings = Settings {
        group: Some("g".to_owned()),
        ..world.settings(&["t", "free"])
    };
    let poor = world.start(settings.clone());
    for name in ["t", "free"] {
        world.wait_for_ledger(&tp(name, 0), 10).await;
    }
    world.store.refuse("t/data/", No::Denied(8));
    world.produce(&tp("t", 0), 10..20);
    world
        .wait_for("the topic to stop", async || {
            has_reason(&poor, "denied", None)
        })
        .await;
    // its permissions are other ones
    let rich = world.start(settings);
    world
        .wait_for("the topic to be shared among the others", async || {
            let members = world.log.members("g");
            let owned = |m: u64| world.log.owned("g", m);
            let of_t = |m: u64| owned(m).iter().filter(|tp| tp.topic == topic("t")).count();
            members.len() == 2 && of_t(members[0]) == 0 && of_t(members[1]) == 4
        })
        .await;
    world.wait_for_ledger(&tp("t", 0), 20).await;
    world.produce(&tp("free", 0), 10..20);
    world.produce(&tp("free", 1), 0..20);
    world.wait_for_ledger(&tp("free", 0), 20).await;
    world.wait_for_ledger(&tp("free", 1), 20).await;
    assert!(has_reason(&poor, "denied", None), "an operator must see it");
    assert_eq!(
        failures(&poor.end().await.unwrap_err()),
        vec![FailureKind::Denied]
    );
    rich.end().await.unwrap();
    world.assert_equals_log("t", 4).await;
    world.assert_equals_log("free", 2).await;
}

/// A topic that one look does not see is not given up, however far looks lie apart.
#[tokio::test(start_paused = true)]
async fn h14_a_look_that_misses_a_topic_takes_nothing_from_a_group_whose_looks_are_rare() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..10);
    let running = world.start(Settings {
        group: Some("g".to_owned()),
        discovery_interval: Duration::from_secs(120),
        ..world.settings(&["t"])
    });
    world.wait_for_ledger(&tp("t", 0), 10).await;
    let member = world.log.members("g")[0];
    let owned = || world.log.owned("g", member).len();
    // the second look does not see it, the third does
    world.lens.hide(&topic("t"));
    seconds(150).await;
    world.lens.show(&topic("t"));
    assert_eq!(owned(), 1, "the topic was given up for one look");
    world.produce(&tp("t", 0), 10..20);
    world.wait_for_ledger(&tp("t", 0), 20).await;
    seconds(300).await;
    assert_eq!(owned(), 1);
    // and it is, once it stays away
    world.lens.hide(&topic("t"));
    seconds(600).await;
    assert_eq!(owned(), 0);
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn b04_a_catch_up_that_does_not_know_its_ends_says_why() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..10);
    world.lens.refuse(|ask| match ask {
        Ask::Bounds(_) => Some(denied()),
        Ask::Describe(_) => None,
    });
    let running = world.start(Settings {
        until_caught_up: true,
        ..world.settings(&["t"])
    });
    seconds(90).await;
    let said = running.status.health().reasons;
    let reason = said
        .iter()
        .find(|r| r.detail.contains("the ends to catch up to"));
    let reason = reason.unwrap_or_else(|| panic!("{said:?}"));
    assert_eq!((reason.reason, &reason.topic), ("denied", &None));
    assert!(reason.detail.contains("not allowed"), "{reason:?}");
    running.crash().await;
}

/// Being refused is no step towards being gone.
#[tokio::test(start_paused = true)]
async fn a_topic_that_is_missed_before_and_after_a_refusal_is_not_gone() {
    let world = World::new();
    world.log.create_topic(&topic("t"), 1);
    world.produce(&tp("t", 0), 0..10);
    let running = world.start(Settings {
        discovery_interval: Duration::from_secs(10),
        ..world.settings(&["t"])
    });
    world.wait_for_ledger(&tp("t", 0), 10).await;
    world.lens.hide(&topic("t"));
    seconds(11).await;
    world.lens.show(&topic("t"));
    world.lens.deny(&topic("t"), true);
    seconds(35).await;
    world.lens.deny(&topic("t"), false);
    world.lens.hide(&topic("t"));
    seconds(11).await;
    world.lens.show(&topic("t"));
    let health = running.status.health();
    assert!(
        health.topics.contains_key("t"),
        "it was forgotten: {health:?}"
    );
    world.produce(&tp("t", 0), 10..20);
    world.wait_for_ledger(&tp("t", 0), 20).await;
    running.end().await.unwrap();
    world.assert_equals_log("t", 1).await;
}
