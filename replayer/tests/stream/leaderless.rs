//! Partitions for which no broker answers: not known yet, which is neither empty nor gone.

use std::time::Duration;

use everlog_kafka::LogError;
use everlog_replayer::verify::{VerifyRequest, verify};
use everlog_replayer::{From, ReplayError, ReplayRequest, Until};

use crate::support::{Replayed, T, half_archived, o, p, read_some, request, topic, tp, until};

#[track_caller]
fn names_it(error: &ReplayError) {
    match error {
        ReplayError::Log(LogError::Unavailable { what, .. }) => assert_eq!(what, "t-1"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_waits_for_the_leader_of_a_partition_and_has_all_of_it() {
    let (world, log, produced) = half_archived(3, 100).await;
    log.lose_leader(&tp(T, 1));
    let comes_back = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        log.regain_leader(&tp(T, 1));
    };
    let (replayed, ()) = tokio::join!(world.replay(request()), comes_back);
    produced.assert_emitted(&replayed.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_nobody_leads_for_long_is_an_error_that_names_it() {
    let (world, log, _) = half_archived(2, 100).await;
    log.lose_leader(&tp(T, 1));
    let error = world.replay(request()).await.unwrap_err();
    names_it(&error);
    // nor does the archive hold for it
    let error = verify(
        VerifyRequest::new(topic(T)),
        world.components(),
        &mut |_| {},
    )
    .await
    .unwrap_err();
    names_it(&error);
    // who does not ask for it does not wait for it
    let only = ReplayRequest {
        partitions: Some([p(0)].into()),
        ..request()
    };
    assert_eq!(world.replay(only).await.unwrap().count(), 200);
    // what is archived is there, whatever Kafka says
    let replayed = world.replay(until(Until::Snapshot)).await.unwrap();
    assert_eq!(replayed.count(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_follower_goes_on_in_the_others_and_later_in_all() {
    let (world, log, mut produced) = half_archived(2, 100).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 400).await;
    log.lose_leader(&tp(T, 1));
    // over several looks at the topic, and over their patience
    for _ in 0..10 {
        produced.produce(&log, &topic(T), 0, 5);
        produced.produce(&log, &topic(T), 1, 5);
        let before = replayed.count();
        read_some(&mut stream, &mut replayed, before + 5).await;
        let quiet = tokio::time::timeout(Duration::from_secs(15), stream.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }
    assert_eq!(replayed.offsets(0, 1).len(), 200);
    log.regain_leader(&tp(T, 1));
    read_some(&mut stream, &mut replayed, 500).await;
    produced.assert_emitted(&replayed);
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_offset_by_number_waits_too() {
    let (world, log, _) = half_archived(2, 100).await;
    log.lose_leader(&tp(T, 0));
    let late = ReplayRequest {
        from: From::Offset {
            generation: None,
            offset: o(190),
        },
        ..request()
    };
    let comes_back = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        log.regain_leader(&tp(T, 0));
    };
    let (replayed, ()) = tokio::join!(world.replay(late), comes_back);
    let replayed = replayed.unwrap();
    assert_eq!(replayed.offsets(0, 0), (190..200).collect::<Vec<i64>>());
    assert_eq!(replayed.offsets(0, 1), (190..200).collect::<Vec<i64>>());
}
