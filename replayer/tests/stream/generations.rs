//! Two incarnations of a topic in one table.

use everlog_common::{Generation, Position, Positions};
use everlog_replayer::{From, OnGap, Order, ReplayRequest, Until};

use crate::support::{
    Produced, Replayed, T, World, from, o, p, read_to_error, request, topic, until,
};

/// 60 and 40 archived records of the first incarnation (10 more of each were lost with it), 50 and 30 of the second, of which
/// the last 10 are only in Kafka.
async fn twice() -> World {
    let (world, log, _) = World::in_memory();
    let mut produced = Produced::default();
    log.create_topic(&topic(T), 2);
    produced.produce(&log, &topic(T), 0, 60);
    produced.produce(&log, &topic(T), 1, 40);
    world.commit_all(&topic(T), 25).await;
    for partition in 0..2 {
        produced.produce(&log, &topic(T), partition, 10);
    }
    log.recreate_topic(&topic(T));
    let mut produced = Produced::default();
    produced.produce(&log, &topic(T), 0, 40);
    produced.produce(&log, &topic(T), 1, 20);
    world.commit_all(&topic(T), 25).await;
    for partition in 0..2 {
        produced.produce(&log, &topic(T), partition, 10);
    }
    world
}

fn range(from: i64, to: i64) -> Vec<i64> {
    (from..to).collect()
}

/// Offsets of (0, 0), (0, 1), (1, 0) and (1, 1), as (generation, partition).
fn offsets(replayed: &Replayed) -> [Vec<i64>; 4] {
    [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(g, p)| replayed.offsets(g, p))
}

#[tokio::test(start_paused = true)]
async fn h12_generations_follow_each_other_and_only_the_newest_has_a_tail() {
    let world = twice().await;
    for order in [Order::Partition, Order::Time] {
        let request = ReplayRequest { order, ..request() };
        let replayed = world.replay(request).await.unwrap();
        let expected = [range(0, 60), range(0, 40), range(0, 50), range(0, 30)];
        assert_eq!(offsets(&replayed), expected);
        assert_eq!((replayed.archived, replayed.live), (160, 20));
        assert_eq!(replayed.gaps.len(), 2, "{:?}", replayed.gaps);
    }
    let stop = ReplayRequest {
        on_gap: OnGap::Stop,
        ..request()
    };
    let mut stream = world.open(stop).await.unwrap();
    let error = read_to_error(&mut stream, &mut Replayed::default()).await;
    assert_eq!(error.exit_status(), 3);
}

#[tokio::test(start_paused = true)]
async fn offsets_and_bounds_are_the_newest_generation_s_unless_another_is_named() {
    let world = twice().await;
    let start = |generation| From::Offset {
        generation,
        offset: o(30),
    };
    let newest = world.replay(from(start(None))).await.unwrap();
    assert_eq!(offsets(&newest), [vec![], vec![], range(30, 50), vec![]]);
    let older = world
        .replay(from(start(Some(Generation(0)))))
        .await
        .unwrap();
    let expected = [range(30, 60), range(30, 40), range(0, 50), range(0, 30)];
    assert_eq!(offsets(&older), expected);
    let bounded = world.replay(until(Until::Offset(o(45)))).await.unwrap();
    let expected = [range(0, 60), range(0, 40), range(0, 45), range(0, 30)];
    assert_eq!(offsets(&bounded), expected);
    let one = ReplayRequest {
        partitions: Some([p(1)].into()),
        ..request()
    };
    let one = world.replay(one).await.unwrap();
    assert_eq!(offsets(&one), [vec![], range(0, 40), vec![], range(0, 30)]);
}

#[tokio::test(start_paused = true)]
async fn a_replay_is_resumed_from_any_position_of_either_generation() {
    let world = twice().await;
    let mut stream = world.open(request()).await.unwrap();
    let mut at: Vec<(usize, Positions)> = vec![(0, stream.positions().clone())];
    let mut whole = Replayed::default();
    while let Some(batch) = stream.next().await.unwrap() {
        whole.take(&batch);
        at.push((whole.count(), stream.positions().clone()));
    }
    let incarnation = stream.incarnation().cloned();
    stream.close().await;
    assert_eq!(whole.count(), 180);
    for (count, positions) in at {
        let resumed = ReplayRequest {
            start: Some(positions),
            incarnation: incarnation.clone(),
            ..request()
        };
        assert_eq!(world.replay(resumed).await.unwrap().count(), 180 - count);
    }
    // a position between the generations: the first one is through in partition 0
    let between = Position {
        generation: Generation(0),
        offset: o(60),
    };
    let resumed = ReplayRequest {
        start: Some([(p(0), between)].into()),
        ..request()
    };
    let replayed = world.replay(resumed).await.unwrap();
    let expected = [vec![], range(0, 40), range(0, 50), range(0, 30)];
    assert_eq!(offsets(&replayed), expected);
}
