//! The future of `next` may be dropped at any await: nothing is lost, doubled or reordered by it.

use std::num::NonZeroU64;
use std::time::Duration;

use everlog_replayer::{EventStream, Order, ReplayRequest, Until};
use futures::poll;
use proptest::prelude::*;

use crate::support::{Produced, Replayed, T, half_archived, o, topic, tp, until};

#[derive(Debug, Clone, Copy)]
enum Act {
    Produce(usize, usize),
    Grow,
    /// Everything is archived, and Kafka forgets most of it.
    Forget(usize),
    Pause(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0_usize..6, 1_usize..30).prop_map(|(p, n)| Act::Produce(p, n)),
        1 => Just(Act::Grow),
        2 => (0_usize..6).prop_map(Act::Forget),
        2 => prop_oneof![1_u64..200, Just(11_000)].prop_map(Act::Pause),
    ];
    prop::collection::vec(act, 0..12)
}

#[derive(Debug, Clone)]
struct Case {
    acts: Vec<Act>,
    /// Each future of `next` is polled so often, then dropped.
    polls: Vec<u8>,
    /// Dropped futures between two acts.
    between: usize,
    rate: Option<u64>,
    order: Order,
    memory_bytes: usize,
}

fn case() -> impl Strategy<Value = Case> {
    (
        acts(),
        // one of them long enough for a whole step
        prop::collection::vec(1_u8..6, 1..6).prop_map(|mut polls| {
            polls.push(6);
            polls
        }),
        1_usize..40,
        prop::option::weighted(0.2, 1_000_u64..100_000),
        prop_oneof![Just(Order::Partition), Just(Order::Time)],
        prop_oneof![Just(16 << 10), Just(1 << 20)],
    )
        .prop_map(|(acts, polls, between, rate, order, memory_bytes)| Case {
            acts,
            polls,
            between,
            rate,
            order,
            memory_bytes,
        })
}

async fn run(case: &Case) -> (Produced, Replayed) {
    let (world, log, mut produced) = half_archived(2, 80).await;
    log.limit_batches(5);
    let request = ReplayRequest {
        rate: case.rate.and_then(NonZeroU64::new),
        order: case.order,
        memory_bytes: case.memory_bytes,
        ..until(Until::Never)
    };
    let mut stream = EventStream::open(request, world.hesitant()).await.unwrap();
    let mut replayed = Replayed::default();
    let (mut acts, mut partitions) = (case.acts.iter(), 2);
    let mut dropped = 0;
    for polls in case.polls.iter().cycle() {
        let mut next = Box::pin(stream.next());
        let mut got = None;
        for _ in 0..*polls {
            if let std::task::Poll::Ready(batch) = poll!(next.as_mut()) {
                got = Some(batch);
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(next);
        if let Some(batch) = got {
            replayed.take(&batch.unwrap().expect("it never ends"));
            continue;
        }
        dropped += 1;
        assert!(
            dropped < 200_000,
            "{} of {}",
            replayed.count(),
            produced.count()
        );
        tokio::time::sleep(Duration::from_micros(300)).await;
        if dropped % case.between != 0 {
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
            None if replayed.count() == produced.count() => break,
            None => {}
        }
    }
    let positions = stream.positions().clone();
    for (partition, rows) in &produced.rows {
        let end = i64::try_from(rows.len()).unwrap();
        let at = positions.get(&crate::support::p(*partition));
        assert_eq!(at.map(|at| at.offset.get()), Some(end));
    }
    stream.close().await;
    (produced, replayed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn next_may_be_dropped_at_any_moment(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let (produced, replayed) = runtime.block_on(run(&case));
        produced.assert_emitted(&replayed);
    }
}
