//! The live log is not what it was: created anew, truncated, another cluster's, gone for a while. What is emitted as an
//! incarnation's record is that incarnation's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use everlog_kafka::LogError;
use everlog_kafka::memory::{MemoryLog, MemoryRecord, Request};
use everlog_replayer::handoff::Incarnation;
use everlog_replayer::{EventStream, ReplayError, ReplayRequest, Until, one_line};
use proptest::prelude::*;
use tokio::time::Instant;

use crate::support::{
    Produced, Replayed, T, World, half_archived, o, p, read_some, read_to_error, request, topic,
    tp, until,
};

/// Records that say of which incarnation they are.
fn write(log: &MemoryLog, era: usize, partition: i32, count: usize) {
    for _ in 0..count {
        log.append(&tp(T, partition), MemoryRecord::value(format!("era {era}")));
    }
}

/// The incarnations whose records were emitted as records of each generation.
fn eras(replayed: &Replayed) -> BTreeMap<u32, Vec<String>> {
    let mut eras: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for ((generation, _), rows) in &replayed.rows {
        let found = eras.entry(*generation).or_default();
        found.extend(rows.iter().map(|(_, value)| value.clone()));
        found.sort();
        found.dedup();
    }
    eras
}

#[tokio::test(start_paused = true)]
async fn h12_a_topic_made_anew_is_a_new_generation_never_the_old_ones_continuation() {
    let (world, log, _) = half_archived(2, 50).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 200).await;
    log.recreate_topic(&topic(T));
    // in partition 0 there is something at the offset where the old one would go on
    let mut anew = Produced::default();
    anew.produce(&log, &topic(T), 0, 300);
    anew.produce(&log, &topic(T), 1, 20);
    world.commit_all(&topic(T), 1000).await;
    anew.produce(&log, &topic(T), 1, 20);
    read_some(&mut stream, &mut replayed, 200 + 340).await;
    assert_eq!(
        replayed.offsets(0, 0),
        (0..100).collect::<Vec<_>>(),
        "the old one, as far as it was tailed"
    );
    assert_eq!(replayed.offsets(0, 1), (0..100).collect::<Vec<_>>());
    assert_eq!(replayed.offsets(1, 0), (0..300).collect::<Vec<_>>());
    assert_eq!(replayed.offsets(1, 1), (0..40).collect::<Vec<_>>());
    let gaps: Vec<String> = stream
        .gaps_passed()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        gaps,
        [
            "partition 0 [50, unknown) of generation 0 (recreated)",
            "partition 1 [50, unknown) of generation 0 (recreated)"
        ],
        "what the old one still held is unknown"
    );
    assert_eq!(stream.positions()[&p(0)].generation.0, 1);
    stream.close().await;
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Write(i32, usize),
    Recreate,
    Commit,
    /// The replay goes on for so many milliseconds.
    Read(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..2, 1_usize..40).prop_map(|(partition, n)| Act::Write(partition, n)),
        2 => Just(Act::Recreate),
        2 => Just(Act::Commit),
        6 => prop_oneof![Just(0), 1_u64..5, 50_u64..300, Just(11_000)].prop_map(Act::Read),
    ];
    prop::collection::vec(act, 1..40)
}

/// Runs a replay that follows while the topic is made anew at any instant; gives what it emitted.
async fn follow(acts: &[Act]) -> Replayed {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 2);
    log.limit_batches(7);
    let mut era = 0;
    write(&log, era, 0, 30);
    world.commit_all(&topic(T), 13).await;
    let mut stream = EventStream::open(until(Until::Never), world.hesitant())
        .await
        .unwrap();
    let mut replayed = Replayed::default();
    let mut over = false;
    for act in acts {
        match *act {
            Act::Write(partition, count) => write(&log, era, partition, count),
            Act::Recreate => {
                era += 1;
                log.recreate_topic(&topic(T));
                // as long as the old one at once: whoever goes on at an old offset finds something there
                write(&log, era, 0, 60);
            }
            Act::Commit => world.commit_all(&topic(T), 1000).await,
            Act::Read(ms) => {
                let until = Instant::now() + Duration::from_millis(ms);
                while !over && Instant::now() <= until {
                    tokio::select! {
                        biased;
                        next = stream.next() => match next {
                            Ok(batch) => replayed.take(&batch.expect("it never ends")),
                            // one that was not archived in time
                            Err(ReplayError::Seam { .. }) => over = true,
                            Err(error) => panic!("{}", one_line(&error)),
                        },
                        () = tokio::time::sleep_until(until) => {
                            // lets the tasks of this instant run
                            tokio::task::yield_now().await;
                            break;
                        }
                    }
                }
            }
        }
    }
    stream.close().await;
    replayed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Whatever the moment, no record of one incarnation is emitted as one of another.
    #[test]
    fn h12_whenever_a_topic_is_made_anew_every_record_is_emitted_as_its_own(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let replayed = runtime.block_on(follow(&acts));
        let eras = eras(&replayed);
        let mut seen = Vec::new();
        for (generation, found) in &eras {
            prop_assert_eq!(found.len(), 1, "generation {}: {:?}", generation, found);
            prop_assert!(!seen.contains(&found[0]), "{:?} in two generations", found);
            seen.push(found[0].clone());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h12_what_was_read_of_a_topic_that_is_gone_is_not_emitted_unproved() {
    let (world, log, _) = half_archived(1, 50).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 100).await;
    log.recreate_topic(&topic(T));
    write(&log, 1, 0, 500);
    let error = read_to_error(&mut stream, &mut replayed).await;
    assert!(one_line(&error).contains("created anew"), "{error:?}");
    assert_eq!(replayed.count(), 100);
    assert_eq!(stream.positions()[&p(0)].offset, o(100));
}

#[tokio::test(start_paused = true)]
async fn a_live_event_waits_for_one_small_request_and_requests_are_few() {
    let (world, log, mut produced) = half_archived(1, 50).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    log.intercept(move |request| {
        if request == Request::Describe {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        None
    });
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 100).await;
    // after a pause: at once
    tokio::time::sleep(Duration::from_secs(5)).await;
    produced.produce(&log, &topic(T), 0, 1);
    let began = Instant::now();
    read_some(&mut stream, &mut replayed, 101).await;
    assert!(
        began.elapsed() < Duration::from_millis(5),
        "{:?}",
        began.elapsed()
    );
    // an event every millisecond for ten seconds: within a tenth of a second, by ten requests a second
    asked.store(0, Ordering::SeqCst);
    let mut written = std::collections::VecDeque::new();
    let mut slowest = Duration::ZERO;
    for _ in 0..10_000 {
        produced.produce(&log, &topic(T), 0, 1);
        written.push_back(Instant::now());
        let until = Instant::now() + Duration::from_millis(1);
        while let Ok(batch) = tokio::time::timeout_at(until, stream.next()).await {
            let batch = batch.unwrap().unwrap();
            replayed.take(&batch);
            for at in written.drain(..batch.columns.len()) {
                slowest = slowest.max(at.elapsed());
            }
        }
    }
    assert!(slowest <= Duration::from_millis(110), "{slowest:?}");
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked <= 110, "{asked} requests in ten seconds");
    read_some(&mut stream, &mut replayed, produced.count()).await;
    produced.assert_emitted(&replayed);
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn while_nobody_tells_whose_log_it_is_its_events_wait() {
    let (world, log, mut produced) = half_archived(1, 50).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 100).await;
    log.intercept(|request| {
        (request == Request::Describe).then(|| LogError::Unavailable {
            what: "describe".to_owned(),
            detail: "no broker".to_owned(),
        })
    });
    produced.produce(&log, &topic(T), 0, 100);
    let silence = Duration::from_secs(300);
    let nothing = tokio::time::timeout(silence, stream.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    log.stop_intercepting();
    read_some(&mut stream, &mut replayed, 200).await;
    produced.assert_emitted(&replayed);
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn where_brokers_know_no_topic_ids_the_first_events_wait_for_a_check() {
    let (world, log, _) = World::in_memory();
    log.forget_topic_ids();
    log.create_topic(&topic(T), 2);
    let mut produced = Produced::default();
    produced.produce(&log, &topic(T), 0, 60);
    world.commit_all(&topic(T), 20).await;
    produced.produce(&log, &topic(T), 0, 60);
    let mut stream = EventStream::open(until(Until::Never), world.hesitant())
        .await
        .unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 120).await;
    for _ in 0..30 {
        produced.produce(&log, &topic(T), 1, 10);
        read_some(&mut stream, &mut replayed, produced.count()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    produced.assert_emitted(&replayed);
    // another cluster at the same address is noticed all the same
    log.set_cluster_id(Some("elsewhere"));
    let error = read_to_error(&mut stream, &mut replayed).await;
    assert!(one_line(&error).contains("another cluster"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn h12_before_the_first_commit_positions_count_for_the_incarnation_they_were_read_from() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 1);
    world.archive(&topic(T)).await;
    write(&log, 0, 0, 20);
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 20).await;
    let (positions, incarnation) = (stream.positions().clone(), stream.incarnation().cloned());
    assert!(incarnation.is_some());
    log.recreate_topic(&topic(T));
    write(&log, 1, 0, 60);
    let error = read_to_error(&mut stream, &mut replayed).await;
    assert!(
        one_line(&error).contains("created anew before its first commit"),
        "{error:?}"
    );
    assert_eq!(eras(&replayed)[&0], ["era 0"]);
    drop(stream);
    // nor does a resumed replay take them for the new one's, whether that is archived by then or not
    let resumed = |incarnation: Option<Incarnation>| ReplayRequest {
        start: Some(positions.clone()),
        incarnation,
        ..request()
    };
    for archived in [false, true] {
        if archived {
            world.commit_all(&topic(T), 1000).await;
        }
        let error = world.open(resumed(incarnation.clone())).await.unwrap_err();
        assert!(
            one_line(&error).contains("replay from the beginning"),
            "{error:?}"
        );
        assert_eq!(error.exit_status(), 1);
    }
    let fresh = world.replay(request()).await.unwrap();
    assert_eq!(fresh.offsets(0, 0), (0..60).collect::<Vec<_>>());
    // positions of the incarnation that was archived are as good as ever
    let before = world.open(request()).await.unwrap();
    let theirs = before.incarnation().cloned();
    before.close().await;
    let rest = world.replay(resumed(theirs)).await.unwrap();
    assert_eq!(rest.offsets(0, 0), (20..60).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn h12_a_topic_made_anew_and_not_archived_is_an_error() {
    let (world, log, _) = half_archived(1, 50).await;
    log.recreate_topic(&topic(T));
    log.append_values(&tp(T, 0), (0..500).map(|i| i.to_string()));
    let error = world.replay(request()).await.unwrap_err();
    let line = one_line(&error);
    assert!(line.contains("created anew"), "{line}");
    assert_eq!(error.exit_status(), 1);
}

#[tokio::test(start_paused = true)]
async fn h13_another_cluster_is_refused_before_anything_is_emitted() {
    let (world, log, _) = half_archived(1, 50).await;
    log.set_cluster_id(Some("elsewhere"));
    let error = world.open(request()).await.unwrap_err();
    assert!(one_line(&error).contains("another cluster"));
}

#[tokio::test(start_paused = true)]
async fn h10_a_truncated_log_is_an_error() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 1);
    log.append_values(&tp(T, 0), (0..100).map(|i| i.to_string()));
    world.commit_all(&topic(T), 1000).await;
    log.truncate(&tp(T, 0), o(60));
    let error = world.replay(until(Until::Never)).await.unwrap_err();
    assert!(one_line(&error).contains("truncated"), "{error:?}");
}
