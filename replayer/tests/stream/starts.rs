//! Where a replay begins, in partitions and generations that the archive does not have, and where it cannot begin.

use everlog_common::{Generation, Position};
use everlog_replayer::{From, ReplayError, ReplayRequest, Until};

use crate::support::{Produced, T, World, o, p, request, topic};

fn at(generation: Option<u32>, offset: i64) -> ReplayRequest {
    ReplayRequest {
        from: From::Offset {
            generation: generation.map(Generation),
            offset: o(offset),
        },
        ..request()
    }
}

#[tokio::test(start_paused = true)]
async fn an_offset_by_number_holds_for_partitions_that_are_not_archived_yet() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 2);
    let mut produced = Produced::default();
    produced.produce(&log, &topic(T), 0, 100);
    world.commit_all(&topic(T), 100).await;
    produced.produce(&log, &topic(T), 1, 150);
    produced.produce(&log, &topic(T), 0, 20);
    let replayed = world.replay(at(None, 60)).await.unwrap();
    assert_eq!(replayed.offsets(0, 0), (60..120).collect::<Vec<i64>>());
    assert_eq!(replayed.offsets(0, 1), (60..150).collect::<Vec<i64>>());
    // beyond the one partition's end, within the other's
    let replayed = world.replay(at(None, 130)).await.unwrap();
    assert_eq!(replayed.offsets(0, 0), Vec::<i64>::new());
    assert_eq!(replayed.offsets(0, 1), (130..150).collect::<Vec<i64>>());
}

#[tokio::test(start_paused = true)]
async fn what_neither_tier_has_is_an_error_and_not_silence() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 1);
    let mut produced = Produced::default();
    produced.produce(&log, &topic(T), 0, 100);
    world.commit_all(&topic(T), 60).await;
    let error = world.open(at(Some(3), 50)).await.unwrap_err();
    assert!(
        matches!(error, ReplayError::NoSuchGeneration { .. }),
        "{error}"
    );
    assert_eq!(error.exit_status(), 2);
    let snapshot = ReplayRequest {
        until: Until::Snapshot,
        ..at(Some(3), 50)
    };
    let error = world.open(snapshot).await.unwrap_err();
    assert!(
        matches!(error, ReplayError::NoSuchGeneration { .. }),
        "{error}"
    );
    // waiting for an offset that is far away would be silence for ever
    let follow = ReplayRequest {
        until: Until::Never,
        ..at(None, 1_000)
    };
    let error = world.open(follow).await.unwrap_err();
    assert!(matches!(error, ReplayError::BeyondTheEnd { .. }), "{error}");
    let saved = |offset| ReplayRequest {
        start: Some(
            [(
                p(0),
                Position {
                    generation: Generation::FIRST,
                    offset: o(offset),
                },
            )]
            .into(),
        ),
        ..request()
    };
    let error = world.open(saved(101)).await.unwrap_err();
    assert!(matches!(error, ReplayError::BeyondTheEnd { .. }), "{error}");
    assert_eq!(world.replay(saved(100)).await.unwrap().count(), 0);
}
