//! Partitions that are held back: the same rows, each partition in its order; nobody else waits; memory is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use everlog_common::{Generation, Millis, Partition};
use everlog_kafka::memory::{MemoryLog, MemoryRecord};
use everlog_replayer::{Advance, EventStream, From, Order, ReplayRequest, Until};
use futures::poll;
use proptest::prelude::*;

use crate::support::{
    Produced, Replayed, T, World, from, half_archived, o, p, read_some, request, topic, tp, until,
};

fn set(partitions: impl IntoIterator<Item = i32>) -> BTreeSet<Partition> {
    partitions.into_iter().map(p).collect()
}

/// Reads until nothing comes for a minute; what came was not held back.
async fn read_out(stream: &mut EventStream, replayed: &mut Replayed, held: &BTreeSet<Partition>) {
    stream.hold(held);
    while let Ok(next) = tokio::time::timeout(Duration::from_secs(60), stream.next()).await {
        let Some(batch) = next.unwrap() else { return };
        assert!(!held.contains(&batch.partition));
        replayed.take(&batch);
    }
}

#[tokio::test(start_paused = true)]
async fn in_history_a_held_partition_waits_and_the_others_go_on() {
    let (world, _log, produced) = half_archived(3, 300).await;
    let mut stream = world.open(request()).await.unwrap();
    let mut replayed = Replayed::default();
    read_out(&mut stream, &mut replayed, &set([0, 2])).await;
    assert_eq!(replayed.offsets(0, 1), (0..300).collect::<Vec<_>>());
    assert_eq!((replayed.count(), replayed.live), (300, 0));
    // history ends for all of them at once
    assert!(stream.is_spent(p(1)) && !stream.is_spent(p(0)));
    read_out(&mut stream, &mut replayed, &set([2])).await;
    assert_eq!((replayed.count(), replayed.live), (600, 0));
    read_out(&mut stream, &mut replayed, &set([])).await;
    produced.assert_emitted(&replayed);
    assert!(stream.is_spent(p(0)), "it is over");
}

#[tokio::test(start_paused = true)]
async fn live_a_held_partition_waits_and_the_others_go_on() {
    let (world, log, mut produced) = half_archived(3, 100).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 600).await;
    for round in 1..=3 {
        for partition in 0..3 {
            produced.produce(&log, &topic(T), partition, 50);
        }
        read_out(&mut stream, &mut replayed, &set([0, 1])).await;
        assert_eq!(replayed.offsets(0, 2).len(), 200 + 50 * round);
        assert_eq!(replayed.offsets(0, 0).len(), 200);
        let positions = stream.positions();
        assert_eq!(positions[&p(0)].offset, o(200), "as far as was handed out");
    }
    read_out(&mut stream, &mut replayed, &set([])).await;
    produced.assert_emitted(&replayed);
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn much_of_a_held_partition_pauses_the_reader_and_too_much_is_read_again() {
    let (world, log, mut produced) = half_archived(2, 10).await;
    log.limit_batches(20);
    let request = ReplayRequest {
        // a quarter of it for the tail: some hundred records
        memory_bytes: 64 << 10,
        ..until(Until::Never)
    };
    let mut stream = EventStream::open(request, world.hesitant()).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 40).await;
    world.asked.lock().unwrap().clear();
    let names = || -> Vec<(&'static str, Vec<i32>)> { world.asked.lock().unwrap().clone() };

    // little: it waits aside, and the reader goes on
    stream.hold(&set([0]));
    produced.produce(&log, &topic(T), 0, 10);
    produced.produce(&log, &topic(T), 1, 10);
    read_out(&mut stream, &mut replayed, &set([0])).await;
    assert!(names().is_empty());

    // much: paused; the other one goes on
    for _ in 0..20 {
        produced.produce(&log, &topic(T), 0, 500);
        produced.produce(&log, &topic(T), 1, 100);
        read_out(&mut stream, &mut replayed, &set([0])).await;
    }
    assert_eq!(replayed.offsets(0, 1).len(), 20 + 10 + 2_000);
    let calls = names();
    assert_eq!(calls[0], ("pause", vec![0]), "{calls:?}");
    // in time or not, what came with it was too much, or not: but it happens once
    assert!(calls.len() <= 2, "{calls:?}");
    assert!(calls.iter().all(|(_, of)| *of == [0]));

    read_out(&mut stream, &mut replayed, &set([])).await;
    let calls = names();
    let last = calls.last().unwrap();
    assert!(last.0 == "resume" || last.0 == "assign", "{calls:?}");
    produced.assert_emitted(&replayed);
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_for_memory_is_dropped_and_comes_again() {
    let (world, log, mut produced) = half_archived(4, 10).await;
    let request = ReplayRequest {
        memory_bytes: 32 << 10,
        ..until(Until::Never)
    };
    let mut stream = EventStream::open(request, world.hesitant()).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 80).await;
    // batches as large as all of the tail's memory, of all partitions at once
    for partition in 0..4 {
        produced.produce(&log, &topic(T), partition, 3_000);
    }
    let all_but_one = set([0, 1, 2]);
    read_out(&mut stream, &mut replayed, &all_but_one).await;
    assert_eq!(replayed.offsets(0, 3).len(), 3_020);
    let asked = world.asked.lock().unwrap().clone();
    assert!(
        asked.iter().any(|(what, _)| *what == "unassign"),
        "{asked:?}"
    );
    // one after the other
    read_out(&mut stream, &mut replayed, &set([0, 2])).await;
    assert_eq!(replayed.offsets(0, 1).len(), 3_020);
    read_out(&mut stream, &mut replayed, &set([])).await;
    produced.assert_emitted(&replayed);
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_fall_out_of_the_tail_gives_again_what_was_held_and_still_holds_it() {
    let (world, log, mut produced) = half_archived(2, 100).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 400).await;
    let held = set([0]);
    produced.produce(&log, &topic(T), 0, 60);
    produced.produce(&log, &topic(T), 1, 60);
    read_out(&mut stream, &mut replayed, &held).await;
    // what waits aside is gone from Kafka, archived, and the tail is left
    world.commit_all(&topic(T), 1000).await;
    for partition in 0..2 {
        log.delete_records(&tp(T, partition), o(250));
    }
    read_out(&mut stream, &mut replayed, &held).await;
    assert_eq!(replayed.offsets(0, 0).len(), 200);
    // it has the archive for itself, and nobody is held back by the other one
    assert!(stream.is_spent(p(1)) && !stream.is_spent(p(0)));
    read_out(&mut stream, &mut replayed, &set([])).await;
    produced.produce(&log, &topic(T), 0, 5);
    read_some(&mut stream, &mut replayed, produced.count()).await;
    produced.assert_emitted(&replayed);
    assert!(replayed.archived >= 200 + 50, "{}", replayed.archived);
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn ends_by_timestamp_and_offset_come_of_held_partitions_too() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 2);
    let mut produced = Produced::default();
    let base = 1_700_000_000_000;
    for n in 0..40 {
        if n == 10 {
            world.commit_all(&topic(T), 100).await;
        }
        produced.at(&log, &topic(T), 0, base + n);
        produced.at(&log, &topic(T), 1, base + n);
    }
    for (bound, len) in [
        (Until::Timestamp(Millis(base + 25)), 25),
        (Until::Timestamp(Millis(base + 5)), 5),
        (Until::Offset(o(30)), 30),
        (Until::Now, 40),
    ] {
        for begin in [From::Beginning, From::Timestamp(Millis(base))] {
            let request = ReplayRequest {
                from: begin,
                ..until(bound)
            };
            let mut stream = world.open(request).await.unwrap();
            let mut replayed = Replayed::default();
            while replayed.offsets(0, 1).len() < len {
                // history ends for both
                let held = if stream.is_spent(p(1)) {
                    set([])
                } else {
                    set([0])
                };
                stream.hold(&held);
                let next = tokio::time::timeout(Duration::from_secs(30), stream.advance()).await;
                match next.expect("it goes on").unwrap() {
                    Advance::Batch(batch) => {
                        assert!(!held.contains(&batch.partition));
                        replayed.take(&batch);
                    }
                    Advance::Changed => {}
                    Advance::End => panic!("{bound:?}: partition 0 has not come"),
                }
            }
            // all of the other one waits, if any of it does: it is not forgotten at the end
            stream.hold(&set([]));
            let mut rest = Replayed::default();
            read_some(&mut stream, &mut rest, usize::MAX).await;
            let all: Vec<i64> = [replayed.offsets(0, 0), rest.offsets(0, 0)].concat();
            assert_eq!(all, (0..len as i64).collect::<Vec<_>>(), "{bound:?}");
            assert_eq!(rest.offsets(0, 1), [0; 0], "{bound:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_timestamp_is_sought_again_in_what_was_dropped() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 2);
    let mut produced = Produced::default();
    let base = 1_700_000_000_000;
    for partition in 0..2 {
        produced.at(&log, &topic(T), partition, base);
    }
    world.commit_all(&topic(T), 100).await;
    let request = ReplayRequest {
        from: From::Timestamp(Millis(base + 1_000)),
        memory_bytes: 32 << 10,
        ..until(Until::Never)
    };
    let mut stream = world.open(request).await.unwrap();
    let mut replayed = Replayed::default();
    for n in 0..3_000 {
        produced.at(&log, &topic(T), 0, base + n);
        produced.at(&log, &topic(T), 1, base + n);
    }
    read_out(&mut stream, &mut replayed, &set([0])).await;
    assert_eq!(replayed.offsets(0, 1), (1_001..3_001).collect::<Vec<_>>());
    assert!(!stream.positions().contains_key(&p(0)));
    read_out(&mut stream, &mut replayed, &set([])).await;
    assert_eq!(replayed.offsets(0, 0), (1_001..3_001).collect::<Vec<_>>());
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn by_time_nothing_is_held() {
    let (world, _log, produced) = half_archived(2, 50).await;
    let mut stream = world
        .open(ReplayRequest {
            order: Order::Time,
            ..request()
        })
        .await
        .unwrap();
    stream.hold(&set([0, 1]));
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, usize::MAX).await;
    produced.assert_emitted(&replayed);
}

#[tokio::test(start_paused = true)]
async fn at_end_is_what_the_log_said_last() {
    let (world, log, mut produced) = half_archived(2, 50).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    while replayed.live == 0 {
        assert!(!stream.at_end(p(0)), "never in history");
        let one_more = replayed.count() + 1;
        read_some(&mut stream, &mut replayed, one_more).await;
    }
    read_out(&mut stream, &mut replayed, &set([])).await;
    assert!(stream.at_end(p(0)) && stream.at_end(p(1)) && stream.is_spent(p(0)));
    produced.produce(&log, &topic(T), 0, 2_500);
    read_some(&mut stream, &mut replayed, 200 + 1_000).await;
    assert!(!stream.at_end(p(0)) && stream.at_end(p(1)));
    assert!(!stream.is_spent(p(0)));
    read_out(&mut stream, &mut replayed, &set([])).await;
    assert!(stream.at_end(p(0)));
    // a reader that does not tell: the log is asked
    assert!(!stream.at_end(p(7)), "there is none");
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn partitions_are_known_before_their_rows() {
    let (world, log, mut produced) = half_archived(2, 50).await;
    log.add_partitions(&topic(T), 3);
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let known = |generation: u32, partitions: std::ops::Range<i32>| -> BTreeSet<_> {
        partitions.map(|n| (Generation(generation), p(n))).collect()
    };
    assert_eq!(*stream.partitions(), known(0, 0..3));
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, produced.count()).await;
    log.add_partitions(&topic(T), 4);
    produced.produce(&log, &topic(T), 3, 10);
    let changed = tokio::time::timeout(Duration::from_secs(60), stream.advance()).await;
    assert!(matches!(changed, Ok(Ok(Advance::Changed))), "{changed:?}");
    assert_eq!(*stream.partitions(), known(0, 0..4));
    read_some(&mut stream, &mut replayed, produced.count()).await;
    produced.assert_emitted(&replayed);

    // created anew: the next generation
    log.recreate_topic(&topic(T));
    log.append_values(&tp(T, 1), ["first"]);
    world.commit_all(&topic(T), 1000).await;
    let both: BTreeSet<_> = known(0, 0..4).union(&known(1, 0..4)).copied().collect();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(60), stream.advance()).await;
        match next.expect("it comes").unwrap() {
            Advance::Batch(batch) if batch.generation == Generation(1) => {
                let it = (batch.generation, batch.partition);
                assert!(stream.partitions().contains(&it));
                if !batch.columns.is_empty() {
                    break;
                }
            }
            Advance::Batch(_) | Advance::Changed => {}
            Advance::End => panic!("it ended"),
        }
    }
    // the archive names the one that has something, the tail all of them
    let all = tokio::time::timeout(Duration::from_secs(60), async {
        while *stream.partitions() != both {
            stream.advance().await.unwrap();
        }
    });
    all.await.expect("they are found");
    let resumed = ReplayRequest {
        start: Some(stream.positions().clone()),
        incarnation: stream.incarnation().cloned(),
        ..request()
    };
    stream.close().await;
    let stream = world.open(resumed).await.unwrap();
    assert_eq!(
        *stream.partitions(),
        known(1, 0..4),
        "what is behind is over"
    );
    stream.close().await;
    let newest = From::Offset {
        generation: None,
        offset: o(0),
    };
    let stream = world.open(from(newest)).await.unwrap();
    assert_eq!(*stream.partitions(), known(1, 0..4));
    let some = ReplayRequest {
        partitions: Some(set([1])),
        ..request()
    };
    let stream = world.open(some).await.unwrap();
    assert_eq!(
        *stream.partitions(),
        [(Generation(0), p(1)), (Generation(1), p(1))].into()
    );
}

// --- any time, anybody ---------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Act {
    Produce(usize, usize),
    Grow,
    /// Everything is archived, and Kafka forgets most of it.
    Forget(usize),
    Pause(u64),
    Hold(BTreeSet<i32>),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0_usize..6, 1_usize..60).prop_map(|(p, n)| Act::Produce(p, n)),
        1 => Just(Act::Grow),
        2 => (0_usize..6).prop_map(Act::Forget),
        2 => prop_oneof![1_u64..200, Just(11_000)].prop_map(Act::Pause),
        5 => prop::collection::btree_set(0_i32..5, 0..5).prop_map(Act::Hold),
    ];
    prop::collection::vec(act, 0..24)
}

#[derive(Debug, Clone)]
struct Case {
    acts: Vec<Act>,
    /// Each future of `advance` is polled so often, then dropped.
    polls: Vec<u8>,
    /// Dropped futures and batches between two acts.
    between: usize,
    rate: Option<u64>,
    memory_bytes: usize,
}

fn case() -> impl Strategy<Value = Case> {
    (
        acts(),
        // one of them long enough for a whole step
        prop::collection::vec(1_u8..6, 1..6).prop_map(|mut polls| {
            polls.push(8);
            polls
        }),
        1_usize..20,
        prop::option::weighted(0.2, 1_000_u64..100_000),
        prop_oneof![Just(8 << 10), Just(16 << 10), Just(1 << 20)],
    )
        .prop_map(|(acts, polls, between, rate, memory_bytes)| Case {
            acts,
            polls,
            between,
            rate,
            memory_bytes,
        })
}

async fn run(case: &Case) -> (Produced, Replayed) {
    let (world, log, mut produced) = half_archived(3, 80).await;
    log.limit_batches(5);
    let request = ReplayRequest {
        rate: case.rate.and_then(std::num::NonZeroU64::new),
        memory_bytes: case.memory_bytes,
        ..until(Until::Never)
    };
    let mut stream = EventStream::open(request, world.hesitant()).await.unwrap();
    let mut replayed = Replayed::default();
    let (mut acts, mut partitions, mut held) = (case.acts.iter(), 3, BTreeSet::new());
    let mut steps = 0;
    for polls in case.polls.iter().cycle() {
        let mut next = Box::pin(stream.advance());
        let mut got = None;
        for _ in 0..*polls {
            if let std::task::Poll::Ready(advance) = poll!(next.as_mut()) {
                got = Some(advance.unwrap());
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(next);
        match got {
            Some(Advance::Batch(batch)) => {
                assert!(!held.contains(&batch.partition), "{:?}", batch.partition);
                let it = (batch.generation, batch.partition);
                assert!(stream.partitions().contains(&it));
                replayed.take(&batch);
            }
            Some(Advance::Changed) => {}
            Some(Advance::End) => panic!("it never ends"),
            None => tokio::time::sleep(Duration::from_micros(300)).await,
        }
        steps += 1;
        assert!(
            steps < 400_000,
            "{} of {}, {held:?}",
            replayed.count(),
            produced.count()
        );
        if steps % case.between != 0 {
            continue;
        }
        match acts.next() {
            Some(Act::Produce(partition, count)) => {
                let partition = i32::try_from(partition % partitions).unwrap();
                produced.produce(&log, &topic(T), partition, *count);
            }
            Some(Act::Grow) => {
                partitions += 1;
                log.add_partitions(&topic(T), partitions);
            }
            Some(Act::Forget(partition)) => {
                world.commit_all(&topic(T), 1000).await;
                let partition = i32::try_from(partition % partitions).unwrap();
                let end = produced.rows.get(&partition).map_or(0, Vec::len);
                let before = i64::try_from(end).unwrap() - 3;
                if before > 0 {
                    log.delete_records(&tp(T, partition), o(before));
                }
            }
            Some(Act::Pause(ms)) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Some(Act::Hold(partitions)) => {
                held = set(partitions.iter().copied());
                stream.hold(&held);
            }
            None if !held.is_empty() => {
                held.clear();
                stream.hold(&held);
            }
            None if replayed.count() == produced.count() => break,
            None => {}
        }
    }
    let positions = stream.positions().clone();
    for (partition, rows) in &produced.rows {
        let end = i64::try_from(rows.len()).unwrap();
        let at = positions.get(&p(*partition));
        assert_eq!(at.map(|at| at.offset.get()), Some(end));
    }
    stream.close().await;
    (produced, replayed)
}

/// As a processor does it: what is more than `skew` ahead of the slowest one that is not spent is held back.
async fn aligned(stream: &mut EventStream, skew: i64) -> Vec<(u32, i32, i64)> {
    let mut marks: BTreeMap<Partition, i64> = BTreeMap::new();
    let mut rows = Vec::new();
    loop {
        let all: BTreeSet<Partition> = stream.partitions().iter().map(|(_, p)| *p).collect();
        let going: Vec<(Partition, i64)> = all
            .into_iter()
            .filter(|p| !stream.is_spent(*p))
            .map(|p| (p, marks.get(&p).copied().unwrap_or(i64::MIN)))
            .collect();
        let slowest = going.iter().map(|(_, at)| *at).min().unwrap_or(i64::MIN);
        let limit = slowest.saturating_add(skew);
        let ahead = going.into_iter().filter(|(_, at)| *at > limit);
        let held: BTreeSet<Partition> = ahead.map(|(p, _)| p).collect();
        stream.hold(&held);
        let next = tokio::time::timeout(Duration::from_secs(300), stream.advance()).await;
        match next.expect("somebody goes on").unwrap() {
            Advance::Batch(batch) => {
                assert!(!held.contains(&batch.partition));
                for i in 0..batch.columns.len() {
                    let row = batch.columns.row(i);
                    let mark = marks.entry(batch.partition).or_insert(i64::MIN);
                    *mark = row.timestamp_ms.max(*mark);
                    let row = (batch.generation.0, batch.partition.get(), row.offset.get());
                    rows.push(row);
                }
            }
            Advance::Changed => {}
            Advance::End => return rows,
        }
    }
}

/// Per partition, steps of event time; how much of it is archived.
type Log = (Vec<i64>, usize);

/// An incarnation of the topic.
fn write(log: &MemoryLog, logs: &[Log], part: impl Fn(&Log) -> std::ops::Range<usize>) {
    for (partition, of_it) in logs.iter().enumerate() {
        let tp = tp(T, i32::try_from(partition).unwrap());
        for n in part(of_it) {
            let at = 1_700_000_000_000 + of_it.0[..=n].iter().sum::<i64>();
            let record = MemoryRecord::value(format!("{n}"));
            log.append(&tp, record.at(at, everlog_common::TimestampType::Create));
        }
    }
}

fn logs() -> impl Strategy<Value = Vec<Log>> {
    let log = (1_i64..400, 0_usize..60).prop_flat_map(|(step, len)| {
        let steps = prop::collection::vec(0..step, len);
        (steps, 0..=len)
    });
    prop::collection::vec(log, 3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn held_and_released_at_any_moment_every_partition_gives_the_same_rows(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let (produced, replayed) = runtime.block_on(run(&case));
        produced.assert_emitted(&replayed);
    }

    /// Over two incarnations, history and tail, partitions of any speed: nobody waits for ever.
    #[test]
    fn aligned_by_event_time_it_comes_to_its_end(
        eras in prop::collection::vec(logs(), 1..3),
        skew in 0_i64..3_000,
        batch in 1_usize..30,
        memory_bytes in prop_oneof![Just(16 << 10), Just(1 << 20)],
    ) {
        // one that is not archived at all after another one is an error
        let last = eras.len() - 1;
        prop_assume!(last == 0 || eras[last].iter().any(|(_, archived)| *archived > 0));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (world, log, _) = World::in_memory();
            log.create_topic(&topic(T), 3);
            log.limit_batches(batch);
            for (n, era) in eras.iter().enumerate() {
                write(&log, era, |(steps, archived)| 0..if n < last { steps.len() } else { *archived });
                world.commit_all(&topic(T), 7).await;
                if n < last {
                    log.recreate_topic(&topic(T));
                } else {
                    write(&log, era, |(steps, archived)| *archived..steps.len());
                }
            }
            world.archive(&topic(T)).await;
            let request = ReplayRequest { memory_bytes, ..request() };
            let mut stream = EventStream::open(request, world.hesitant()).await.unwrap();
            let mut rows = aligned(&mut stream, skew).await;
            stream.close().await;
            rows.sort_unstable();
            let mut expected = Vec::new();
            // an incarnation of which nothing was archived is none
            let eras = eras.iter().enumerate().filter(|(n, era)| *n == last || era.iter().any(|(steps, _)| !steps.is_empty()));
            for (generation, (_, era)) in eras.enumerate() {
                for (p, (steps, _)) in era.iter().enumerate() {
                    expected.extend((0..steps.len()).map(|o| (generation as u32, p as i32, o as i64)));
                }
            }
            assert_eq!(rows, expected);
        });
    }
}
