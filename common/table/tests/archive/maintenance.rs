//! Expiry and removal: what goes, what stays, and that nothing that anybody may need goes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{Ids as _, Ledger};
use everlog_table::archive::{
    Archive, ArchiveDeps, ArchiveError, ArchiveErrorKind, ArchiveOptions, CommitOutcome,
};
use everlog_table::catalog::memory::{Call, Fault, MemoryCatalog};
use everlog_table::catalog::{
    Catalog, CatalogError, CommitReply, CreateReply, LoadedTable, NewTable,
};
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings, Removal, plan_expiry};
use everlog_table::schema::TableSettings;
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};
use everlog_table::storage::Storage;
use iceberg::spec::{Operation, SnapshotReference, SnapshotRetention};
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use object_store::local::LocalFileSystem;
use uuid::Uuid;

use crate::rig::{Foreign, NAMESPACE, Rig, WAREHOUSE, committed, main_history, topic};

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
    let reference = SnapshotReference::new(
        history[35],
        SnapshotRetention::Branch {
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
        removal: Removal::Count,
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

/// `write.metadata.path` may be any folder: where its listing shows data, too, a round that does not look for data must not
/// take live files for metadata that nothing needs.
#[tokio::test]
async fn data_below_the_metadata_folder_is_not_taken_for_metadata() {
    let rig = Rig::new(85);
    used_table(&rig).await;
    let archive = rig.process().await;
    let location = rig.load().await.metadata.location().to_owned();
    let storage = archive.storage().await.expect("a store");
    let live = format!("{location}/data/live.parquet");
    let bytes = bytes::Bytes::from_static(b"rows");
    storage.put(&live, bytes).await.expect("stored");
    let ledger = archive.state().await.expect("a state").ledger;
    let mut request = rig.request_of(vec![rig.advance(&ledger, 0, 2)]).await;
    request.files[0] = rig.file_at(&live, request.files[0].ranges.clone()).await;
    committed(archive.append(request).await);
    let updates = vec![TableUpdate::SetProperties {
        updates: [("write.metadata.path".to_owned(), location)].into(),
    }];
    let table = rig.load().await;
    rig.commit(&table, vec![], updates).await;
    for _ in 0..3 {
        rig.append(&archive, &[(0, 1)]).await;
    }
    rig.stamp_files();
    rig.clock.advance(HOUR * 30);
    rig.append(&archive, &[(0, 1)]).await;
    rig.stamp_files();
    // the first round looks for data that nothing needs, the ones soon after do not
    for _ in 0..3 {
        archive
            .maintain(&MaintenanceSettings::default())
            .await
            .expect("maintained");
        assert!(storage.exists(&live).await.expect("a store"));
        rig.check().await;
        rig.clock.advance(Duration::from_secs(180));
    }
}

/// Another catalog on the same warehouse: another `catalog.name`, an address by mistake, a lost database.
fn other_catalog(rig: &Rig) -> Arc<MemoryCatalog> {
    let store = LocalFileSystem::new_with_prefix(rig.folder.path()).expect("a store");
    Arc::new(MemoryCatalog::new(
        Arc::new(store),
        WAREHOUSE,
        Arc::clone(&rig.clock) as _,
        Arc::clone(&rig.ids) as _,
    ))
}

async fn archive_of(rig: &Rig, catalog: &Arc<MemoryCatalog>) -> Result<Archive, ArchiveError> {
    let deps = ArchiveDeps {
        catalog: Arc::clone(catalog) as _,
        ..rig.deps()
    };
    Archive::open_or_create(deps, NAMESPACE, &topic(), &TableSettings::default()).await
}

#[tokio::test]
async fn d1_a_catalog_that_does_not_know_a_table_makes_none_in_its_folder() {
    let rig = Rig::new(80);
    used_table(&rig).await;
    let before = rig.objects();
    let error = archive_of(&rig, &other_catalog(&rig))
        .await
        .expect_err("the folder is taken");
    assert_eq!(error.kind(), ArchiveErrorKind::Invalid);
    let told = format!("{error:?}");
    assert!(
        told.contains("lake://warehouse/everlog/orders") && told.contains("catalog.name"),
        "{told}"
    );
    assert_eq!(rig.objects(), before);
    rig.check().await;
}

#[tokio::test]
async fn d1_of_two_tables_in_one_folder_neither_loses_a_file() {
    let rig = Rig::new(81);
    // Both are made while nothing is there yet, so neither catalog can know of the other.
    let other = other_catalog(&rig);
    let theirs = archive_of(&rig, &other).await.expect("an archive");
    used_table(&rig).await;
    let ours = rig.process().await;
    let (before, settings) = (rig.objects(), MaintenanceSettings::default());
    let report = theirs.maintain(&settings).await.expect("maintained");
    let reason = report.held_back.expect("a reason");
    assert!(reason.contains("another table's metadata"), "{reason}");
    assert_eq!(report.files_deleted, 0);
    assert_eq!(rig.objects(), before);
    // An empty table's only file stays, and holds up nothing.
    let report = ours.maintain(&settings).await.expect("maintained");
    assert_eq!(report.held_back, None);
    assert!(report.files_deleted > 0);
    let empty = other.load(&rig.ident()).await.expect("a catalog");
    assert!(empty.is_some(), "its metadata is there");
    // From their first rows on, ours is held up too.
    let ledger = theirs.state().await.expect("a state").ledger;
    let request = rig.request(&ledger, &[(0, 3)]).await;
    committed(theirs.append(request).await);
    rig.clock.advance(HOUR * 48);
    rig.append(&ours, &[(0, 1)]).await;
    rig.stamp_files();
    let before = rig.objects();
    for archive in [&ours, &theirs] {
        let report = archive.maintain(&settings).await.expect("maintained");
        assert_eq!(report.files_deleted, 0);
        assert!(report.held_back.is_some(), "{report:?}");
    }
    assert!(rig.objects().is_superset(&before));
    rig.check().await;
}

#[tokio::test]
async fn a_data_folder_that_other_tables_may_share_is_not_searched() {
    let rig = Rig::new(82);
    used_table(&rig).await;
    let archive = rig.process().await;
    let table = rig.load().await;
    let storage = rig.catalog.storage_for(&table).expect("a store");
    let put = |uri: String| {
        let storage = storage.clone();
        async move {
            let bytes = bytes::Bytes::from_static(b"rows");
            storage.put(&uri, bytes).await.expect("stored");
            uri
        }
    };
    let shared = put(format!("{WAREHOUSE}/fast/another-tables.parquet")).await;
    let orphan = put(format!("{}/data/orphan.parquet", table.metadata.location())).await;
    let updates = vec![TableUpdate::SetProperties {
        updates: [("write.data.path".to_owned(), format!("{WAREHOUSE}/fast"))].into(),
    }];
    rig.commit(&table, vec![], updates).await;
    rig.stamp_files();
    rig.clock.advance(HOUR * 48);
    rig.append(&archive, &[(0, 1)]).await;
    rig.stamp_files();
    let report = archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert!(report.not_searched.is_some_and(|why| why.contains("/fast")));
    assert!(storage.exists(&shared).await.expect("a store"));
    assert!(!storage.exists(&orphan).await.expect("a store"));
    rig.check().await;
    // A folder of its own is searched, as soon as it shows files of its own.
    let own = format!("{}/fast", table.metadata.location());
    let orphan = put(format!("{own}/orphan.parquet")).await;
    let updates = vec![TableUpdate::SetProperties {
        updates: [("write.folder-storage.path".to_owned(), own)].into(),
    }];
    let table = rig.load().await;
    let removals = vec![TableUpdate::RemoveProperties {
        removals: vec!["write.data.path".to_owned()],
    }];
    rig.commit(&table, vec![], removals).await;
    let table = rig.load().await;
    rig.commit(&table, vec![], updates).await;
    rig.stamp_files();
    rig.clock.advance(HOUR * 48);
    rig.append(&archive, &[(0, 1)]).await;
    rig.stamp_files();
    let report = archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert!(report.held_back.is_some_and(|why| why.contains("/fast")));
    assert!(storage.exists(&orphan).await.expect("a store"));
    let ledger = archive.state().await.expect("a state").ledger;
    let range = rig.advance(&ledger, 0, 2);
    let mut request = rig.request_of(vec![range]).await;
    let live = format!("{}/fast/live.parquet", table.metadata.location());
    request.files[0] = rig
        .file_at(&put(live).await, request.files[0].ranges.clone())
        .await;
    committed(archive.append(request).await);
    rig.stamp_files();
    rig.clock.advance(HOUR * 48);
    rig.append(&archive, &[(0, 1)]).await;
    rig.stamp_files();
    let report = archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert_eq!(report.held_back, None);
    assert!(!storage.exists(&orphan).await.expect("a store"));
    rig.check().await;
}

/// Metadata files that no log leads to, as they stay behind where the chain of logs is broken: of this very table, or of
/// creations that came to nothing.
async fn strays(rig: &Rig, count: u32, are_own: bool) -> Vec<String> {
    let table = rig.load().await;
    let storage = rig.catalog.storage_for(&table).expect("a storage");
    let mut json = serde_json::to_value(&*table.metadata).expect("json");
    if !are_own {
        json["table-uuid"] = Uuid::from_u128(9).to_string().into();
        json["snapshots"] = serde_json::json!([]);
    }
    let bytes = bytes::Bytes::from(serde_json::to_vec(&json).expect("json"));
    let mut names = Vec::new();
    for n in 0..count {
        let id = rig.ids.uuid();
        let folder = format!("{}/metadata", table.metadata.location());
        let name = format!("{folder}/{n:05}-{id}.metadata.json");
        storage.put(&name, bytes.clone()).await.expect("stored");
        names.push(name);
    }
    names
}

async fn left_of(archive: &Archive, names: &[String]) -> usize {
    let storage = archive.storage().await.expect("a store");
    let mut left = 0;
    for name in names {
        left += usize::from(storage.exists(name).await.expect("a store"));
    }
    left
}

/// A table that was used for days, with orphans of its data, and strays beside its metadata; and the orphans.
async fn with_strays(rig: &Rig, own: u32, nobodys: u32) -> (Vec<String>, Vec<String>) {
    used_table(rig).await;
    let own = strays(rig, own, true).await;
    strays(rig, nobodys, false).await;
    let ledger = rig.process().await.state().await.expect("a state").ledger;
    let request = rig.request(&ledger, &[(0, 4)]).await;
    let orphan = request.files[0].data_file.file_path().to_owned();
    rig.stamp_files();
    rig.clock.advance(HOUR * 48);
    rig.append(&rig.process().await, &[(0, 1)]).await;
    rig.stamp_files();
    (own, vec![orphan])
}

#[tokio::test]
async fn one_round_by_hand_gets_past_any_number_of_unknown_metadata_files() {
    let rig = Rig::new(90);
    let (own, orphans) = with_strays(&rig, 1_050, 20).await;
    let archive = rig.process().await;
    let by_hand = MaintenanceSettings {
        judged_max: usize::MAX,
        ..MaintenanceSettings::default()
    };
    let report = archive.maintain(&by_hand).await.expect("maintained");
    assert_eq!(report.held_back, None);
    assert_eq!(left_of(&archive, &own).await, 0);
    assert_eq!(left_of(&archive, &orphans).await, 0);
    rig.check().await;
}

#[tokio::test]
async fn rounds_that_may_look_at_a_few_unknown_metadata_files_get_past_all_of_them() {
    let rig = Rig::new(91);
    let (own, orphans) = with_strays(&rig, 25, 12).await;
    let settings = MaintenanceSettings {
        judged_max: 10,
        orphan_interval: Duration::ZERO,
        ..MaintenanceSettings::default()
    };
    // each by a process that remembers nothing: what is the table's own goes, and nothing else before all is known
    let mut left = vec![own.len()];
    for _ in 0..6 {
        let archive = rig.process().await;
        let report = archive.maintain(&settings).await.expect("maintained");
        assert!(
            report
                .held_back
                .is_some_and(|why| why.contains("yet to be looked at"))
        );
        left.push(left_of(&archive, &own).await);
        assert_eq!(left_of(&archive, &orphans).await, 1);
    }
    assert!(
        left.is_sorted_by(|a, b| a >= b) && left[6] < left[0],
        "{left:?}"
    );
    // those that stay are remembered by a process that goes on
    let archive = rig.process().await;
    let mut rounds = 0;
    while archive
        .maintain(&settings)
        .await
        .expect("maintained")
        .held_back
        .is_some()
    {
        rounds += 1;
        assert!(rounds < 10, "no end to it");
    }
    assert_eq!(left_of(&archive, &own).await, 0);
    assert_eq!(left_of(&archive, &orphans).await, 0);
    rig.check().await;
}

#[tokio::test]
async fn d1_another_tables_metadata_among_many_of_our_own_is_found_before_anything_else_goes() {
    let rig = Rig::new(92);
    let (_, orphans) = with_strays(&rig, 25, 0).await;
    // in the middle of them by age: neither among the newest nor among the oldest
    let table = rig.load().await;
    let mut json = serde_json::to_value(&*table.metadata).expect("json");
    json["table-uuid"] = Uuid::from_u128(8).to_string().into();
    let storage = rig.catalog.storage_for(&table).expect("a storage");
    let theirs = format!(
        "{}/metadata/theirs.metadata.json",
        table.metadata.location()
    );
    let bytes = bytes::Bytes::from(serde_json::to_vec(&json).expect("json"));
    storage.put(&theirs, bytes).await.expect("stored");
    rig.stamp_files();
    strays(&rig, 25, true).await;
    rig.clock.advance(HOUR);
    rig.append(&rig.process().await, &[(0, 1)]).await;
    rig.stamp_files();
    let settings = MaintenanceSettings {
        judged_max: 10,
        ..MaintenanceSettings::default()
    };
    let archive = rig.process().await;
    let mut said = Vec::new();
    for _ in 0..10 {
        let report = archive.maintain(&settings).await.expect("maintained");
        said.push(report.held_back.expect("a reason"));
        assert_eq!(left_of(&archive, &orphans).await, 1, "{said:?}");
        rig.clock.advance(Duration::from_mins(11));
    }
    assert!(said[9].contains("another table's metadata"), "{said:?}");
    assert_eq!(left_of(&archive, &[theirs]).await, 1);
    rig.check().await;
}

/// Adds rows in a file of this name; another file, in the default folder, is written for it and never committed.
async fn append_at(rig: &Rig, archive: &Archive, name: &str) -> String {
    let ledger = archive.state().await.expect("a state").ledger;
    let mut request = rig.request_of(vec![rig.advance(&ledger, 0, 2)]).await;
    let orphan = request.files[0].data_file.file_path().to_owned();
    request.files[0] = rig.file_at(name, request.files[0].ranges.clone()).await;
    committed(archive.append(request).await);
    orphan
}

/// A table whose files go to `{location}/fast`, with two orphans in the default folder: one of them is old.
async fn with_an_old_folder(rig: &Rig, more: &[(&str, &str)]) -> String {
    let archive = rig.process().await;
    let table = rig.load().await;
    let location = table.metadata.location().to_owned();
    let data = ("write.data.path", "fast");
    let updates = std::iter::once(&data)
        .chain(more)
        .map(|(key, folder)| ((*key).to_owned(), format!("{location}/{folder}")))
        .collect();
    let updates = vec![TableUpdate::SetProperties { updates }];
    rig.commit(&table, vec![], updates).await;
    let orphan = append_at(rig, &archive, &format!("{location}/fast/a.parquet")).await;
    rig.stamp_files();
    rig.clock.advance(HOUR * 48);
    append_at(rig, &archive, &format!("{location}/fast/b.parquet")).await;
    rig.stamp_files();
    orphan
}

#[tokio::test]
async fn an_old_data_folder_that_holds_orphans_only_is_emptied() {
    let rig = Rig::new(93);
    let orphan = with_an_old_folder(&rig, &[]).await;
    let archive = rig.process().await;
    let settings = MaintenanceSettings::default();
    let report = archive.maintain(&settings).await.expect("maintained");
    assert_eq!((report.held_back, report.files_deleted), (None, 1));
    assert_eq!(left_of(&archive, &[orphan]).await, 0);
    rig.check().await;
}

#[tokio::test]
async fn an_old_data_folder_with_a_file_of_a_needed_name_is_left_alone() {
    let rig = Rig::new(94);
    let orphan = with_an_old_folder(&rig, &[]).await;
    // one folder under two names, say by a link: what the table names in the one is listed in the other
    let needed = orphan.replace(orphan.rsplit('/').next().expect("a name"), "a.parquet");
    let archive = rig.process().await;
    let storage = archive.storage().await.expect("a store");
    let bytes = bytes::Bytes::from_static(b"rows");
    storage.put(&needed, bytes).await.expect("stored");
    rig.stamp_files();
    rig.clock.advance(HOUR * 48);
    append_at(&rig, &archive, &orphan.replace("/data/", "/fast/c-")).await;
    rig.stamp_files();
    let settings = MaintenanceSettings::default();
    let report = archive.maintain(&settings).await.expect("maintained");
    assert!(
        report
            .held_back
            .is_some_and(|why| why.contains("two names"))
    );
    assert_eq!(left_of(&archive, &[orphan, needed]).await, 2);
    rig.check().await;
}

#[tokio::test]
async fn an_old_data_folder_where_another_table_would_not_show_waits_for_an_operator() {
    let rig = Rig::new(95);
    let orphan = with_an_old_folder(&rig, &[("write.metadata.path", "meta")]).await;
    let settings = MaintenanceSettings::default();
    let archive = rig.process().await;
    let report = archive.maintain(&settings).await.expect("maintained");
    let why = report.held_back.expect("a reason");
    assert!(why.contains(&orphan) && why.contains("by hand"), "{why}");
    assert_eq!(left_of(&archive, std::slice::from_ref(&orphan)).await, 1);
    // who has done what it says is not told again
    let storage = archive.storage().await.expect("a store");
    storage.delete(&orphan).await.expect("deleted");
    let fresh = rig.process().await;
    let report = fresh.maintain(&settings).await.expect("maintained");
    assert_eq!(report.held_back, None);
    rig.check().await;
}

/// Deletes old metadata as a server does that keeps few versions: all but the current.
fn forget_old_metadata(rig: &Rig, current: &str) {
    let name = current.rsplit('/').next().expect("a name");
    for path in rig.objects() {
        if path.ends_with(".metadata.json") && !path.ends_with(name) {
            std::fs::remove_file(path).expect("deleted");
        }
    }
}

#[tokio::test]
async fn where_nobody_can_tell_the_past_files_go_an_hour_after_they_were_seen_unneeded() {
    let rig = Rig::new(83);
    used_table(&rig).await;
    let archive = rig.process().await;
    let settings = MaintenanceSettings {
        orphan_interval: Duration::ZERO,
        ..MaintenanceSettings::default()
    };
    let mut deleted = Vec::new();
    for _ in 0..4 {
        rig.append(&archive, &[(0, 1)]).await;
        rig.stamp_files();
        forget_old_metadata(&rig, &rig.load().await.metadata_location);
        let report = archive.maintain(&settings).await.expect("maintained");
        assert_eq!(report.held_back, None);
        deleted.push(report.files_deleted);
        // Another process has not seen anything for an hour.
        let fresh = rig.process().await;
        let report = fresh.maintain(&settings).await.expect("maintained");
        assert_eq!(report.files_deleted, 0);
        rig.clock.advance(Duration::from_mins(25));
    }
    assert_eq!(deleted[..3], [0, 0, 0], "{deleted:?}");
    assert!(deleted[3] > 50, "{deleted:?}");
    rig.check().await;
}

#[tokio::test]
async fn with_removal_off_snapshots_expire_and_nothing_is_looked_for() {
    let rig = Rig::new(84);
    let archive = rig.process().await;
    for _ in 0..40 {
        rig.append(&archive, &[(0, 1)]).await;
        rig.clock.advance(Duration::from_mins(10));
    }
    // What a search would stumble on.
    let head = rig.load().await.metadata_location;
    forget_old_metadata(&rig, &head);
    let settings = MaintenanceSettings {
        removal: Removal::Off,
        ..MaintenanceSettings::default()
    };
    let report = archive.maintain(&settings).await.expect("maintained");
    assert_eq!(report.snapshots_expired, 20);
    assert_eq!((report.files_waiting, report.data_searched), (0, false));
    rig.check().await;
}

/// A catalog before which another engine tags a snapshot right when a commit removes it.
#[derive(Debug)]
struct Tagging {
    inner: Arc<dyn Catalog>,
    exactly: bool,
    tagged: Mutex<Vec<i64>>,
    rode: AtomicBool,
}

impl Tagging {
    fn before(rig: &mut Rig, exactly: bool) -> Arc<Self> {
        let tagging = Arc::new(Self {
            inner: Arc::clone(&rig.catalog),
            exactly,
            tagged: Mutex::default(),
            rode: AtomicBool::new(false),
        });
        rig.catalog = Arc::clone(&tagging) as _;
        tagging
    }

    fn tagged(&self) -> Vec<i64> {
        self.tagged.lock().expect("a lock").clone()
    }
}

#[async_trait]
impl Catalog for Tagging {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.inner.ensure_namespace(namespace).await
    }
    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        self.inner.list_tables(namespace).await
    }
    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        self.inner.load(table).await
    }
    async fn create(&self, table: NewTable) -> Result<CreateReply, CatalogError> {
        self.inner.create(table).await
    }
    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
        key: Uuid,
    ) -> CommitReply {
        let adds = |u: &TableUpdate| matches!(u, TableUpdate::AddSnapshot { .. });
        let doomed = updates.iter().find_map(|update| match update {
            TableUpdate::RemoveSnapshots { snapshot_ids } => snapshot_ids.first().copied(),
            _ => None,
        });
        if let Some(doomed) = doomed {
            if updates.iter().any(adds) {
                self.rode.store(true, Ordering::SeqCst);
            }
            let first = self.tagged().is_empty();
            if first && self.exactly {
                let table = self.inner.load(&base.ident).await.expect("a catalog");
                let tag = vec![TableUpdate::SetSnapshotRef {
                    ref_name: "year-end".to_owned(),
                    reference: SnapshotReference::new(
                        doomed,
                        SnapshotRetention::Tag {
                            max_ref_age_ms: None,
                        },
                    ),
                }];
                let reply = self
                    .inner
                    .commit(&table.expect("a table"), vec![], tag, key)
                    .await;
                assert!(matches!(reply, CommitReply::Committed(_)), "{reply:?}");
            }
            self.tagged.lock().expect("a lock").push(doomed);
        }
        self.inner.commit(base, requirements, updates, key).await
    }
    fn removes_exactly(&self) -> bool {
        self.exactly
    }
    fn storage_for(&self, table: &LoadedTable) -> Result<Storage, CatalogError> {
        self.inner.storage_for(table)
    }
}

#[tokio::test]
async fn d2_a_tag_that_another_engine_makes_while_its_snapshot_is_about_to_expire_stays() {
    for by_commit in [true, false] {
        let mut rig = Rig::new(85);
        let tagging = Tagging::before(&mut rig, true);
        let options = if by_commit {
            expiring()
        } else {
            ArchiveOptions::default()
        };
        let archive = rig.process_with(options).await;
        for _ in 0..60 {
            rig.append(&archive, &[(0, 1)]).await;
            rig.clock.advance(Duration::from_mins(5));
        }
        let settings = MaintenanceSettings::default();
        archive.maintain(&settings).await.expect("maintained");
        assert_eq!(tagging.rode.load(Ordering::SeqCst), by_commit);
        let (tagged, table) = (tagging.tagged(), rig.load().await);
        assert!(tagged.len() > 1, "it was planned anew: {tagged:?}");
        let kept = table.metadata.snapshot_for_ref("year-end");
        assert_eq!(kept.map(|s| s.snapshot_id()), Some(tagged[0]));
        assert!(table.metadata.snapshots().len() < 40);
        rig.check().await;
    }
}

#[tokio::test]
async fn d2_where_a_catalog_may_rebase_removals_expiry_never_goes_along_with_a_commit() {
    let mut rig = Rig::new(86);
    let tagging = Tagging::before(&mut rig, false);
    let archive = rig.process_with(expiring()).await;
    for _ in 0..60 {
        rig.append(&archive, &[(0, 1)]).await;
        rig.clock.advance(Duration::from_mins(5));
    }
    assert!(!tagging.rode.load(Ordering::SeqCst));
    assert!(tagging.tagged().len() > 1, "it was done apart");
    let table = rig.load().await;
    assert!(table.metadata.snapshots().len() <= 20 + 16 + 12);
    // A tag that is moved meanwhile is among the requirements.
    let refs = [(
        "v1".to_owned(),
        table.metadata.current_snapshot_id().expect("a head"),
    )];
    let references = refs
        .iter()
        .map(|(name, id)| {
            let retention = SnapshotRetention::Tag {
                max_ref_age_ms: None,
            };
            (name.clone(), SnapshotReference::new(*id, retention))
        })
        .collect();
    let settings = ExpirySettings {
        count_min: 1,
        count_max: 1,
        ..ExpirySettings::default()
    };
    let now = everlog_common::Clock::now(&*rig.clock);
    let plan = plan_expiry(&table.metadata, &references, now, &settings);
    let required = TableRequirement::RefSnapshotIdMatch {
        r#ref: "v1".to_owned(),
        snapshot_id: Some(refs[0].1),
    };
    assert!(plan.requirements().contains(&required));
    rig.check().await;
}
