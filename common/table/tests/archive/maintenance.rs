//! Expiry and removal: what goes, what stays, and that nothing that anybody may need goes.

use std::time::Duration;

use everlog_common::Ledger;
use everlog_table::archive::{ArchiveOptions, CommitOutcome};
use everlog_table::catalog::memory::{Call, Fault};
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings};
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};
use iceberg::TableUpdate;
use iceberg::spec::Operation;

use crate::rig::{Foreign, Rig, committed, main_history};

const HOUR: Duration = Duration::from_hours(1);

fn expiring() -> ArchiveOptions {
    ArchiveOptions {
        expiry: Some(ExpirySettings::default()),
        ..ArchiveOptions::default()
    }
}

#[tokio::test]
async fn h34_metadata_and_manifests_stay_small_over_many_commits() {
    let rig = Rig::new(70);
    let archive = rig.process_with(expiring()).await;
    let mut ledger = Ledger::default();
    let (mut snapshots, mut bytes, mut manifests) = (0, 0, 0);
    for round in 0..600_i32 {
        let request = rig.request(&ledger, &[(round % 5, 2)]).await;
        ledger = committed(archive.append(request).await);
        rig.clock.advance(Duration::from_secs(30));
        if round % 50 == 49 {
            let table = rig.load().await;
            snapshots = snapshots.max(table.metadata.snapshots().len());
            bytes = bytes.max(serde_json::to_vec(&*table.metadata).expect("json").len());
            let head = table.metadata.current_snapshot().expect("a head");
            let version = table.metadata.format_version();
            let list = everlog_table::manifests::read_list(
                &archive.storage().await.expect("a store"),
                head,
                version,
            )
            .await;
            manifests = manifests.max(list.expect("a list").len());
        }
    }
    assert!(
        snapshots <= 120 + 16 + 1,
        "{snapshots} snapshots, of an hour: 120"
    );
    assert!(bytes <= 200_000, "{bytes} bytes of metadata");
    assert!(manifests <= 45, "{manifests} manifests");
    assert_eq!(ledger.rows(), 1200);
    rig.check().await;
}

#[tokio::test]
async fn expiry_keeps_the_head_the_tagged_the_branched_and_the_newest() {
    let rig = Rig::new(71);
    let archive = rig.process().await;
    for _ in 0..40 {
        rig.append(&archive, &[(0, 1)]).await;
        rig.clock.advance(Duration::from_mins(1));
    }
    let history = main_history(&rig.load().await.metadata);
    rig.tag("year-end", history[30]).await;
    let table = rig.load().await;
    let reference = iceberg::spec::SnapshotReference::new(
        history[35],
        iceberg::spec::SnapshotRetention::Branch {
            min_snapshots_to_keep: None,
            max_snapshot_age_ms: None,
            max_ref_age_ms: None,
        },
    );
    let updates = vec![TableUpdate::SetSnapshotRef {
        ref_name: "audit".to_owned(),
        reference,
    }];
    rig.commit(&table, vec![], updates).await;
    rig.clock.advance(HOUR * 48);
    let report = archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert_eq!(report.snapshots_expired, 40 - 20 - 2);
    let table = rig.load().await;
    for kept in history[..20].iter().chain([&history[30], &history[35]]) {
        assert!(table.metadata.snapshot_by_id(*kept).is_some());
    }
    let again = archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert_eq!(again.snapshots_expired, 0);
    rig.append(&archive, &[(0, 1)]).await;
    rig.check().await;
}

#[tokio::test]
async fn a_large_ledger_makes_snapshots_expire_earlier() {
    let rig = Rig::new(72);
    let archive = rig.process().await;
    let all: Vec<(i32, u64)> = (0..1000).map(|p| (p, 1)).collect();
    rig.append(&archive, &all).await;
    for round in 0..40 {
        rig.append(&archive, &[(round, 1)]).await;
    }
    let settings = MaintenanceSettings {
        expiry: ExpirySettings {
            metadata_bytes_max: 400_000,
            ..ExpirySettings::default()
        },
        ..MaintenanceSettings::default()
    };
    archive.maintain(&settings).await.expect("maintained");
    let table = rig.load().await;
    let bytes = serde_json::to_vec(&*table.metadata).expect("json").len();
    assert!(bytes < 420_000, "{bytes}");
    assert!(table.metadata.snapshots().len() >= 5);
    rig.check().await;
}

#[tokio::test]
async fn gc_disabled_means_that_nothing_goes() {
    let rig = Rig::new(73);
    let archive = rig.process().await;
    for _ in 0..30 {
        rig.append(&archive, &[(0, 1)]).await;
    }
    let table = rig.load().await;
    let updates = vec![TableUpdate::SetProperties {
        updates: [("gc.enabled".to_owned(), "false".to_owned())].into(),
    }];
    rig.commit(&table, vec![], updates).await;
    rig.clock.advance(HOUR * 100);
    let objects = rig.objects();
    let report = archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert_eq!(report.snapshots_expired, 0);
    assert!(
        report
            .held_back
            .is_some_and(|why| why.contains("gc.enabled"))
    );
    assert_eq!(rig.objects(), objects);
}

/// Commits over some days, with everything that leaves files behind.
async fn used_table(rig: &Rig) -> Ledger {
    let archive = rig.process_with(expiring()).await;
    let mut ledger = Ledger::default();
    for round in 0..150_i32 {
        if round % 40 == 7 {
            rig.memory.inject(Call::Commit, Fault::LostBefore);
        }
        if round % 40 == 17 {
            rig.memory.inject(Call::Commit, Fault::Conflict);
        }
        let request = rig.request(&ledger, &[(round % 3, 2)]).await;
        ledger = committed(archive.append(request).await);
        rig.clock.advance(Duration::from_mins(30));
        if round % 50 == 49 {
            rig.foreign(Foreign::of(Operation::Replace, 0)).await;
        }
        rig.stamp_files();
    }
    ledger
}

#[tokio::test]
async fn what_nothing_needs_goes_after_a_day_and_everything_else_stays_readable() {
    let rig = Rig::new(74);
    let ledger = used_table(&rig).await;
    let archive = rig.process().await;
    let before = rig.objects();
    let dry = MaintenanceSettings {
        deletes: false,
        ..MaintenanceSettings::default()
    };
    let counted = archive.maintain(&dry).await.expect("maintained");
    let (held, now) = (before.len(), rig.objects().len());
    assert!(now >= held, "a dry round deletes nothing");
    assert!(counted.files_deleted > 100, "{counted:?}");
    rig.stamp_files();
    let fresh = rig.process().await;
    let report = fresh
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert!(report.held_back.is_none(), "{report:?}");
    assert!(report.data_searched);
    assert_eq!(report.files_deleted, counted.files_deleted);
    assert!(
        rig.objects().len() < held / 2 + 200,
        "{} of {held} left",
        rig.objects().len()
    );
    rig.check().await;
    let pinned = fresh
        .pin(&SnapshotSelector::Current, LeaseMode::Off)
        .await
        .expect("a pin");
    assert_eq!(pinned.ledger, ledger);
    pinned.files().await.expect("files");
    // The old data files that a replace took out of the newest snapshot are gone, others are not.
    let again = fresh
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert_eq!(again.files_deleted, 0, "{again:?}");
}

#[tokio::test]
async fn h29_files_of_a_commit_on_its_way_stay() {
    let rig = Rig::new(75);
    used_table(&rig).await;
    let archive = rig.process().await;
    let ledger = archive.state().await.expect("a state").ledger;
    // Another process has written its files, and has not committed yet.
    let request = rig.request(&ledger, &[(0, 4)]).await;
    rig.stamp_files();
    rig.clock.advance(HOUR * 19);
    rig.append(&archive, &[(1, 1)]).await;
    rig.stamp_files();
    archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    let path = request.files[0].data_file.file_path();
    assert!(
        archive
            .storage()
            .await
            .expect("a store")
            .exists(path)
            .await
            .expect("a store")
    );
    committed(rig.process().await.append(request).await);
    rig.check().await;
}

#[tokio::test]
async fn p08_nothing_is_deleted_while_an_outcome_is_unknown() {
    let rig = Rig::new(76);
    used_table(&rig).await;
    let archive = rig.process().await;
    let ledger = rig.append(&archive, &[(0, 1)]).await;
    let request = rig.request(&ledger, &[(0, 4)]).await;
    rig.memory.inject(Call::Commit, Fault::Late);
    for _ in 0..7 {
        rig.memory.inject(Call::Load, Fault::Unavailable);
    }
    let pending = archive.append(request).await;
    let pending = match pending {
        Ok(CommitOutcome::Unknown(pending)) => pending,
        other => panic!("{other:?}"),
    };
    rig.stamp_files();
    let objects = rig.objects();
    let report = archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert!(
        report
            .held_back
            .is_some_and(|why| why.contains("not known"))
    );
    assert!(rig.objects().is_superset(&objects));
    assert_eq!(rig.memory.land().await, Some(true));
    committed(archive.resolve(pending).await);
    rig.check().await;
}

#[tokio::test]
async fn a_snapshot_that_expired_a_moment_ago_is_still_readable() {
    let rig = Rig::new(77);
    used_table(&rig).await;
    let archive = rig.process().await;
    let old = *main_history(&rig.load().await.metadata)
        .last()
        .expect("a first");
    let reader = archive
        .pin(&SnapshotSelector::Id(old), LeaseMode::Off)
        .await
        .expect("a pin");
    // Everything but the head expires now, though all of it is older than a day.
    rig.clock.advance(HOUR * 40);
    rig.append(&archive, &[(0, 1)]).await;
    rig.stamp_files();
    let settings = MaintenanceSettings {
        expiry: ExpirySettings {
            count_min: 1,
            ..ExpirySettings::default()
        },
        ..MaintenanceSettings::default()
    };
    archive.maintain(&settings).await.expect("maintained");
    assert!(rig.load().await.metadata.snapshot_by_id(old).is_none());
    reader.files().await.expect("still there");
    // An hour later it may go, and does.
    rig.clock.advance(HOUR + Duration::from_mins(1));
    rig.append(&archive, &[(0, 1)]).await;
    rig.stamp_files();
    let report = archive.maintain(&settings).await.expect("maintained");
    assert!(report.files_deleted > 0, "{report:?}");
    let fresh = rig.process().await;
    fresh
        .pin(&SnapshotSelector::Current, LeaseMode::Off)
        .await
        .expect("a pin")
        .files()
        .await
        .expect("files");
    rig.check().await;
}

#[tokio::test]
async fn a_clock_that_runs_ahead_makes_nothing_old() {
    let rig = Rig::new(78);
    let archive = rig.process().await;
    for _ in 0..5 {
        rig.append(&archive, &[(0, 1)]).await;
    }
    let request = rig
        .request(&archive.state().await.expect("a state").ledger, &[(0, 1)])
        .await;
    rig.stamp_files();
    let objects = rig.objects();
    rig.clock.advance(HOUR * 24 * 20);
    archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert!(rig.objects().is_superset(&objects));
    drop(request);
}

#[tokio::test]
async fn a_folder_that_does_not_show_the_tables_own_files_is_left_alone() {
    let rig = Rig::new(79);
    used_table(&rig).await;
    let archive = rig.process().await;
    // Somebody moved new metadata elsewhere: this folder's files are told apart by nothing any more.
    let table = rig.load().await;
    let updates = vec![TableUpdate::SetProperties {
        updates: [(
            "write.metadata.path".to_owned(),
            format!("{}/elsewhere", table.metadata.location()),
        )]
        .into(),
    }];
    rig.commit(&table, vec![], updates).await;
    rig.clock.advance(HOUR * 30);
    rig.stamp_files();
    let metadata = |objects: std::collections::BTreeSet<String>| -> Vec<String> {
        objects
            .into_iter()
            .filter(|o| o.contains("/metadata/"))
            .collect()
    };
    let before = metadata(rig.objects());
    archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    rig.check().await;
    assert_eq!(metadata(rig.objects()), before);
}
