//! Tables and files that are not what they were: an error before anything wrong is emitted, and it says where.

use bytes::Bytes;
use everlog_common::Generation;
use everlog_replayer::{ReplayError, ReplayRequest, Until, one_line};
use everlog_table::files::PartitionRows;
use everlog_table::snapshot::SnapshotSelector;
use iceberg::spec::Operation;

use crate::support::engine::delete_file;
use crate::support::{Produced, Replayed, T, World, o, p, read_to_error, topic, until};

/// Two commits of 50 rows of one partition each, and the rows.
async fn two_commits() -> (World, Replayed) {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 1);
    Produced::default().produce(&log, &topic(T), 0, 100);
    world.commit_all(&topic(T), 50).await;
    let whole = world.replay(until(Until::Snapshot)).await.unwrap();
    assert_eq!(whole.count(), 100);
    (world, whole)
}

/// The error of a replay of the snapshot; what it emitted before must be how the log begins.
async fn fails(world: &World, whole: &Replayed) -> (ReplayError, usize) {
    let mut replayed = Replayed::default();
    let error = match world.open(until(Until::Snapshot)).await {
        Ok(mut stream) => read_to_error(&mut stream, &mut replayed).await,
        Err(error) => error,
    };
    let (found, all) = (replayed.rows.get(&(0, 0)), &whole.rows[&(0, 0)]);
    let found = found.map_or(&[][..], Vec::as_slice);
    assert_eq!(found, &all[..found.len()]);
    (error, found.len())
}

#[tokio::test(start_paused = true)]
async fn a_missing_file_is_an_error_that_names_it_and_its_interval() {
    let (world, whole) = two_commits().await;
    let files = world.head(&topic(T)).await.files().await.unwrap();
    world.remove(&topic(T), &[files[1].path.clone()]).await;
    let (error, rows) = fails(&world, &whole).await;
    let line = one_line(&error);
    assert!(line.contains(&files[1].path), "{line}");
    assert!(
        line.contains("50 rows of partition 0, offsets [50, 99]"),
        "{line}"
    );
    assert_eq!(error.exit_status(), 4);
    assert!(rows <= 50);
    // of a named snapshot as well
    let named = ReplayRequest {
        selector: SnapshotSelector::Id(world.head(&topic(T)).await.snapshot_id),
        ..until(Until::Snapshot)
    };
    let error = world.replay(named).await.unwrap_err();
    assert!(one_line(&error).contains("offsets [50, 99]"), "{error:?}");
    assert_eq!(error.exit_status(), 4);
}

#[tokio::test(start_paused = true)]
async fn p13_a_truncated_file_is_an_error_that_names_it_and_its_interval() {
    let (world, whole) = two_commits().await;
    let storage = world.storage(&topic(T)).await;
    let file = world.head(&topic(T)).await.files().await.unwrap()[1].clone();
    let good = storage.get(&file.path).await.unwrap();
    for len in (0..good.len()).step_by(97).chain([good.len() - 1]) {
        storage.put(&file.path, good.slice(..len)).await.unwrap();
        let (error, rows) = fails(&world, &whole).await;
        let line = one_line(&error);
        assert!(
            line.contains(&file.path) && line.contains("[50, 99]"),
            "{line}"
        );
        assert_eq!(error.exit_status(), 4, "{len} bytes: {line}");
        assert!(rows <= 50);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_an_error_or_without_effect() {
    let (world, whole) = two_commits().await;
    let storage = world.storage(&topic(T)).await;
    let file = world.head(&topic(T)).await.files().await.unwrap()[1].clone();
    let good = storage.get(&file.path).await.unwrap();
    let (mut noticed, mut tried) = (0, 0);
    for at in (0..good.len()).step_by(5) {
        tried += 1;
        let mut bad = good.to_vec();
        bad[at] ^= 1 << (at % 8);
        storage.put(&file.path, Bytes::from(bad)).await.unwrap();
        let mut replayed = Replayed::default();
        let mut stream = world.open(until(Until::Snapshot)).await.unwrap();
        let error = loop {
            match stream.next().await {
                Ok(Some(batch)) => replayed.take(&batch),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        match error {
            None => assert_eq!(replayed.rows, whole.rows, "byte {at}"),
            Some(error) => {
                noticed += 1;
                let line = one_line(&error);
                assert!(line.contains(&file.path), "byte {at}: {line}");
                assert!(replayed.count() <= 50, "byte {at}: {line}");
            }
        }
    }
    assert!(noticed > tried / 2, "{noticed} of {tried}");
}

#[tokio::test(start_paused = true)]
async fn p01_a_file_listed_twice_is_an_error_before_anything_is_emitted() {
    let (world, whole) = two_commits().await;
    let files = world.data_files(&topic(T)).await;
    assert_eq!(files.len(), 2);
    // as many rows as before: the sum alone does not tell
    let twice = vec![files[0].clone(), files[0].clone()];
    world
        .replace(&topic(T), Operation::Replace, twice, Vec::new())
        .await;
    let (error, rows) = fails(&world, &whole).await;
    let line = one_line(&error);
    assert!(
        line.contains("listed twice") && line.contains(files[0].file_path()),
        "{line}"
    );
    assert_eq!((error.exit_status(), rows), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn p01_rows_that_are_in_two_files_are_an_error_that_names_files_and_interval() {
    let (world, whole) = two_commits().await;
    let files = world.data_files(&topic(T)).await;
    let mut stream = world.open(until(Until::Offset(o(50)))).await.unwrap();
    let mut batches = Vec::new();
    while let Some(batch) = stream.next().await.unwrap() {
        batches.push(batch.columns);
    }
    stream.close().await;
    let copy = PartitionRows {
        generation: Generation::FIRST,
        partition: p(0),
        range: everlog_common::OffsetRange::new(o(0), o(50)).unwrap(),
        batches,
    };
    let copy = world.written(&topic(T), vec![copy]).await;
    let paths = [
        files[0].file_path().to_owned(),
        copy[0].file_path().to_owned(),
    ];
    let both = vec![files[0].clone(), copy[0].clone()];
    world
        .replace(&topic(T), Operation::Replace, both, Vec::new())
        .await;
    let (error, rows) = fails(&world, &whole).await;
    let line = one_line(&error);
    assert!(paths.iter().all(|path| line.contains(path)), "{line}");
    assert!(
        line.contains("offsets [0, 50) of partition 0 are there twice"),
        "{line}"
    );
    assert_eq!((error.exit_status(), rows), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn delete_files_are_refused_before_anything_is_emitted() {
    let (world, whole) = two_commits().await;
    let files = world.data_files(&topic(T)).await;
    let table = world.archive(&topic(T)).await.state().await.unwrap().table;
    let deletes = vec![delete_file(&table, &files[0])];
    // an engine that calls it a replace with as many rows as before
    world
        .replace(&topic(T), Operation::Replace, files, deletes)
        .await;
    let (error, rows) = fails(&world, &whole).await;
    let line = one_line(&error);
    assert!(
        line.contains("delete files") && line.contains("copy-on-write"),
        "{line}"
    );
    assert_eq!(
        (error.exit_status(), rows),
        (5, 0),
        "another writer changed the table"
    );
}

#[tokio::test(start_paused = true)]
async fn h33_rows_of_another_writer_are_refused_and_older_snapshots_stay_readable() {
    let (world, whole) = two_commits().await;
    let mut files = world.data_files(&topic(T)).await;
    let before = world.head(&topic(T)).await.snapshot_id;
    files.push(files[0].clone());
    world
        .replace(&topic(T), Operation::Append, files, Vec::new())
        .await;
    let (error, rows) = fails(&world, &whole).await;
    assert_eq!((error.exit_status(), rows), (5, 0), "{error:?}");
    let older = ReplayRequest {
        selector: SnapshotSelector::Id(before),
        ..until(Until::Snapshot)
    };
    assert_eq!(world.replay(older).await.unwrap().rows, whole.rows);
}
