//! Snapshots held against expiry, and what happens to a reader whose snapshot goes all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use everlog_common::Millis;
use everlog_kafka::memory::MemoryLog;
use everlog_replayer::{ReplayRequest, Until, one_line};
use everlog_table::catalog::memory::{Call, Fault};
use everlog_table::lease;
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};

use crate::support::{
    Produced, Replayed, T, World, half_archived, read_some, read_to_error, topic, until,
};

/// The deadlines of all leases.
async fn deadlines(world: &World) -> BTreeSet<Millis> {
    let snapshots = world.archive(&topic(T)).await.snapshots().await.unwrap();
    let refs = snapshots.into_iter().flat_map(|s| s.refs);
    refs.filter_map(|tag| lease::deadline_of(&tag)).collect()
}

async fn leases(world: &World) -> usize {
    deadlines(world).await.len()
}

/// Tasks of a stream end a moment after the batch that made them end.
async fn leases_become(world: &World, count: usize) {
    for _ in 0..100 {
        if leases(world).await == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let snapshots = world.archive(&topic(T)).await.snapshots().await.unwrap();
    let refs: Vec<_> = snapshots.iter().map(|s| (s.snapshot_id, &s.refs)).collect();
    panic!("not {count} leases: {refs:?}");
}

#[tokio::test(start_paused = true)]
async fn leases_are_given_back_and_never_held_by_the_tail() {
    let (world, _log, _) = half_archived(1, 100).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    assert_eq!(leases(&world).await, 1);
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 200).await;
    leases_become(&world, 0).await;
    stream.close().await;
    let stream = world.open(until(Until::Snapshot)).await.unwrap();
    assert_eq!(leases(&world).await, 1);
    stream.close().await;
    assert_eq!(leases(&world).await, 0);
    // nor is one left behind by a replay that ends with an error
    let damaged = world.head(&topic(T)).await.files().await.unwrap();
    world.remove(&topic(T), &[damaged[0].path.clone()]).await;
    let mut stream = world.open(until(Until::Snapshot)).await.unwrap();
    read_to_error(&mut stream, &mut Replayed::default()).await;
    leases_become(&world, 0).await;
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_snapshot_is_leased_before_the_old_one_is_let_go() {
    let (world, log, mut produced) = half_archived(1, 200).await;
    let mut stream = world.open(until(Until::Never)).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 1).await;
    let first = stream.snapshot_id();
    world.commit_all(&topic(T), 1000).await;
    log.delete_records(&crate::support::tp(T, 0), crate::support::o(300));
    while stream.snapshot_id() == first {
        assert_eq!(leases(&world).await, 1);
        let count = replayed.count() + 1;
        read_some(&mut stream, &mut replayed, count).await;
    }
    produced.produce(&log, &topic(T), 0, 1);
    read_some(&mut stream, &mut replayed, produced.count()).await;
    produced.assert_emitted(&replayed);
    leases_become(&world, 0).await;
    stream.close().await;
}

/// A replay of which little is read yet.
async fn begun(
    request: ReplayRequest,
) -> (
    World,
    MemoryLog,
    Produced,
    std::sync::Arc<everlog_table::catalog::memory::MemoryCatalog>,
    everlog_replayer::EventStream,
    Replayed,
) {
    let (world, log, catalog) = World::in_memory();
    log.create_topic(&topic(T), 2);
    let mut produced = Produced::default();
    for partition in 0..2 {
        produced.produce(&log, &topic(T), partition, 400);
    }
    world.commit_all(&topic(T), 4).await;
    // so little memory that most of it is read only when its turn comes
    let request = ReplayRequest {
        memory_bytes: 16 << 10,
        threads: 1,
        ..request
    };
    let mut stream = world.open(request).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 1).await;
    assert!(replayed.count() < 100, "{} read already", replayed.count());
    (world, log, produced, catalog, stream, replayed)
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_at_two_thirds_and_again_after_a_failure() {
    let (world, _log, produced, catalog, mut stream, mut replayed) =
        begun(until(Until::Never)).await;
    let first = deadlines(&world).await;
    assert_eq!(first.len(), 1);
    tokio::time::sleep(lease::TERM / 3 * 2 + Duration::from_secs(60)).await;
    let second = deadlines(&world).await;
    assert_eq!(second.len(), 1);
    assert!(second > first, "{second:?} after {first:?}");
    // the catalog cannot be reached when the next renewal is due, for longer than one renewal tries
    for _ in 0..20 {
        catalog.inject(Call::Commit, Fault::Unavailable);
    }
    tokio::time::sleep(lease::TERM / 3 * 2).await;
    for _ in 0..100 {
        if deadlines(&world).await > second {
            break;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(deadlines(&world).await > second, "renewed in the end");
    read_some(&mut stream, &mut replayed, produced.count()).await;
    produced.assert_emitted(&replayed);
    stream.close().await;
    assert_eq!(leases(&world).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_ends_nothing_as_long_as_files_are_there() {
    let (world, _log, produced, catalog, mut stream, mut replayed) =
        begun(until(Until::Never)).await;
    let first = deadlines(&world).await;
    for _ in 0..20 {
        catalog.inject(Call::Commit, Fault::Denied);
    }
    tokio::time::sleep(lease::TERM).await;
    assert_eq!(deadlines(&world).await, first, "it could not be renewed");
    catalog.clear_faults();
    read_some(&mut stream, &mut replayed, produced.count()).await;
    produced.assert_emitted(&replayed);
    stream.close().await;
}

#[tokio::test(start_paused = true)]
async fn h31_b13_h32_a_snapshot_expired_under_a_reader_is_replaced_by_the_newest() {
    for lease in [LeaseMode::Off, LeaseMode::Auto] {
        let request = ReplayRequest {
            lease,
            ..until(Until::Never)
        };
        let (world, log, mut produced, _, mut stream, mut replayed) = begun(request).await;
        let first = stream.snapshot_id();
        // another engine rewrites the files, expires the snapshot whatever tags it has, and removes what it needed
        let old = world.compact(&topic(T)).await;
        world.remove(&topic(T), &old).await;
        produced.produce(&log, &topic(T), 0, 100);
        read_some(&mut stream, &mut replayed, produced.count()).await;
        produced.assert_emitted(&replayed);
        assert_ne!(stream.snapshot_id(), first, "it is another snapshot");
        assert_eq!(replayed.live, 100);
        stream.close().await;
        leases_become(&world, 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn h32_files_rewritten_under_a_reader_that_holds_its_snapshot_change_nothing() {
    let (world, _log, produced, _, mut stream, mut replayed) = begun(until(Until::Never)).await;
    let first = stream.snapshot_id();
    world.compact(&topic(T)).await;
    read_some(&mut stream, &mut replayed, produced.count()).await;
    produced.assert_emitted(&replayed);
    assert_eq!(stream.snapshot_id(), first);
    stream.close().await;
    // and what they were rewritten into is read as well
    produced.assert_emitted(&world.replay(until(Until::Snapshot)).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn h31_a_named_snapshot_that_expires_under_a_reader_is_a_clear_error() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 1);
    let mut produced = Produced::default();
    produced.produce(&log, &topic(T), 0, 400);
    world.commit_all(&topic(T), 4).await;
    let id = world.head(&topic(T)).await.snapshot_id;
    let request = ReplayRequest {
        selector: SnapshotSelector::Id(id),
        lease: LeaseMode::Off,
        memory_bytes: 16 << 10,
        threads: 1,
        ..until(Until::Snapshot)
    };
    let mut stream = world.open(request).await.unwrap();
    let mut replayed = Replayed::default();
    read_some(&mut stream, &mut replayed, 1).await;
    let old = world.compact(&topic(T)).await;
    world.remove(&topic(T), &old).await;
    let error = read_to_error(&mut stream, &mut replayed).await;
    let line = one_line(&error);
    assert!(old.iter().any(|path| line.contains(path)), "{line}");
    assert!(line.contains("offsets ["), "{line}");
    assert!(line.contains("expired"), "{line}");
    assert_eq!(error.exit_status(), 4);
    assert!(replayed.count() < 400);
    // what came is sound, and a later replay says the same
    let rows = replayed.offsets(0, 0);
    assert_eq!(rows, (0..rows.len() as i64).collect::<Vec<_>>());
}
