//! What must hold once the faults are over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Output;
use std::sync::Arc;
use std::time::Instant;

use everlog_common::GapReason;
use everlog_tests::broker::PATIENCE;
use everlog_tests::compare::{Log, assert_same, count};
use everlog_tests::everlog::{eventually, parse};
use serde_json::Value;

use crate::actors::{Actor, Role, Shared};
use crate::load;
use crate::world::{GAP, PLAIN, TOPICS, Topic, World, output};

/// Runs a check; a panic is a violation, and the other checks go on.
pub fn check(shared: &Shared, what: &str, act: impl FnOnce()) {
    let began = Instant::now();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(act)) {
        shared.tally.violation(format!("{what}: {}", said(&*panic)));
    } else {
        println!("  holds: {what} ({:.1} s)", began.elapsed().as_secs_f64());
    }
}

/// What a panic said.
pub fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

/// All the checks. Producers and supervisors must have ended; archivers and replays still run.
pub fn judge(world: &mut World, sent: u64) {
    let shared = Arc::clone(&world.shared);
    println!("the faults are over");
    for topic in TOPICS {
        check(
            &shared,
            &format!("all of {} is archived", topic.name),
            || {
                world.keep(topic);
                await_archived(world, topic);
            },
        );
    }
    for archiver in &world.archivers {
        check(&shared, &format!("{} ends in order", archiver.name), || {
            let running = archiver.take().expect("it runs");
            assert_eq!(running.stop(PATIENCE), Some(0), "{}", log_of(archiver));
        });
    }
    // what only Kafka has: archive and tail together are the log
    let archived = world.truth.clone();
    let feed = world.broker.producer(&[("enable.idempotence", "true")]);
    for topic in TOPICS {
        load::fill(&feed, topic.name, topic.partitions, 0..300);
        world.keep(topic);
    }
    let mut records = 0;
    for topic in TOPICS {
        let (whole, archived) = (&world.truth[topic.name], &archived[topic.name]);
        records += count(whole);
        shared
            .tally
            .fact(&format!("records of {}", topic.name), count(whole));
        let gaps = gaps(world, topic);
        check(&shared, &format!("the archive of {}", topic.name), || {
            let replayed = world
                .table_of(topic)
                .replay(topic.name, &["--until", "snapshot"]);
            assert_same(&without(archived, &gaps), &replayed, "the archive");
        });
        check(
            &shared,
            &format!("archive and tail of {}", topic.name),
            || {
                let replayed = world.table_of(topic).replay(topic.name, &[]);
                assert_same(&without(whole, &gaps), &replayed, "archive and tail");
            },
        );
    }
    shared.tally.fact("records", records);
    check(&shared, "every acknowledged record is in the log", || {
        assert_eq!(count(&archived[PLAIN.name]) as u64, sent);
    });
    check(&shared, "gaps are what was deleted", || assert_gaps(world));
    for replay in &world.replays {
        check(&shared, &format!("{} gave the log", replay.name), || {
            assert_followed(world, replay);
        });
    }
    for topic in TOPICS {
        check(
            &shared,
            &format!("everlog verify --full {}", topic.name),
            || {
                verify(world, topic);
            },
        );
    }
}

fn log_of(actor: &Actor) -> String {
    let path = actor
        .everlog
        .dir()
        .join(format!("{}.log", actor.args.join("-")));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n    ")
}

/// The ledger covers the last record that Kafka gave.
fn await_archived(world: &World, topic: Topic) {
    let truth = &world.truth[topic.name];
    eventually(topic.name, 2 * PATIENCE, || {
        let ledger = world.ledger(topic).unwrap_or_default();
        let mut last = truth
            .iter()
            .filter_map(|(p, records)| Some((*p, records.last()?.offset)));
        last.all(|(partition, offset)| World::next(&ledger, partition) > offset)
    });
}

/// A partition, its first offset that is missing, and the first that is not.
type Interval = (i32, i64, i64);

fn gaps(world: &World, topic: Topic) -> Vec<Interval> {
    let ledger = world.ledger(topic).expect("the ledger");
    let gaps = ledger.gaps.iter();
    gaps.map(|g| {
        (
            g.partition.get(),
            g.start.get(),
            g.end.map_or(i64::MAX, everlog_common::Offset::get),
        )
    })
    .collect()
}

fn without(log: &Log, gaps: &[Interval]) -> Log {
    let mut log = log.clone();
    for (partition, start, end) in gaps {
        let records = log.entry(*partition).or_default();
        records.retain(|r| !(*start..*end).contains(&r.offset));
    }
    log.retain(|_, records| !records.is_empty());
    log
}

/// Gaps are only where Kafka had deleted before the archive had it, and nowhere where nothing was deleted.
fn assert_gaps(world: &World) {
    for topic in TOPICS {
        let ledger = world.ledger(topic).expect("the ledger");
        assert!(
            topic.name == GAP.name || ledger.gaps.is_empty(),
            "{:?}",
            ledger.gaps
        );
        for gap in &ledger.gaps {
            let (start, end) = (gap.start.get(), gap.end.expect("an end").get());
            let within = world
                .overtaken
                .iter()
                .any(|(p, from, to)| *p == gap.partition.get() && *from <= start && end <= *to);
            assert!(within, "{gap} was not deleted: {:?}", world.overtaken);
            assert!(
                matches!(gap.reason, GapReason::Retention),
                "{gap} has another reason"
            );
        }
    }
    let recorded = gaps(world, GAP).len();
    world.shared.tally.fact("gaps recorded", recorded);
    assert!(
        recorded > 0 || world.overtaken.is_empty(),
        "no gap although Kafka deleted {:?}",
        world.overtaken
    );
}

/// A replay that was killed and resumed all the time gave what an uninterrupted one gives: the log.
fn assert_followed(world: &World, replay: &Arc<Actor>) {
    let topic = TOPICS
        .into_iter()
        .find(|t| replay.args[1] == t.name)
        .expect("a topic");
    let truth = &world.truth[topic.name];
    let running = replay.take();
    if let (Role::Follower, Some(running)) = (replay.role, running) {
        let lines = || {
            let text = std::fs::read(output(replay)).unwrap_or_default();
            text.iter().filter(|b| **b == b'\n').count()
        };
        eventually("it has everything", PATIENCE, || lines() >= count(truth));
        assert_eq!(running.stop(PATIENCE), Some(0), "{}", log_of(replay));
    } else {
        // a last time, to the end
        let args: Vec<_> = replay.args.iter().map(String::as_str).collect();
        replay.everlog.ok(&args);
    }
    let text = std::fs::read_to_string(output(replay)).expect("its output");
    assert_same(truth, &parse(&text), &replay.name);
}

fn verify(world: &World, topic: Topic) {
    let args = ["verify", topic.name, "--full", "--json"];
    let Output {
        status,
        stdout,
        stderr,
    } = world.table_of(topic).run(&args);
    let text = String::from_utf8_lossy(&stdout);
    assert_eq!(
        status.code(),
        Some(0),
        "{text}\n{}",
        String::from_utf8_lossy(&stderr)
    );
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let compared = report["records_compared"].as_u64().unwrap_or(0);
    world.shared.tally.fact(
        &format!("records of {} compared by verify", topic.name),
        compared,
    );
    assert_eq!(report["holds"], true, "{report}");
}
