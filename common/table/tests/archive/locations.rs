//! Metadata that leads out of the table's folder: nothing is opened, merged or deleted there.

use std::time::Duration;

use bytes::Bytes;
use everlog_common::Ids;
use everlog_table::archive::{Archive, ArchiveErrorKind, ArchiveOptions};
use everlog_table::maintain::{MaintenanceSettings, Removal};
use everlog_table::manifests::{self, MergeSettings};
use everlog_table::schema::TableSettings;
use iceberg::TableUpdate;
use iceberg::spec::{Operation, Snapshot, Summary};

use crate::rig::{NAMESPACE, Rig, WAREHOUSE, topic};
use crate::support::chain;

const OUTSIDE: &str = "lake://warehouse/everlog/orders2/metadata";

/// A commit whose manifest list, or a manifest in it, lies outside.
async fn commit_outside(rig: &Rig, list_outside: bool) -> String {
    let table = rig.load().await;
    let storage = rig.catalog.storage_for(&table).expect("a storage");
    let head = table.metadata.current_snapshot().expect("a head");
    let version = table.metadata.format_version();
    let mut list = manifests::read_list(&storage, head, version)
        .await
        .expect("a list");
    let snapshot_id = rig.ids.snapshot_id();
    let target = manifests::Target {
        metadata: &table.metadata,
        storage: &storage,
        snapshot_id,
    };
    let mut stolen = format!("{OUTSIDE}/stolen-m0.avro");
    let folder = if list_outside {
        OUTSIDE.to_owned()
    } else {
        let bytes = storage
            .get(&list[0].manifest_path)
            .await
            .expect("a manifest");
        storage.put(&stolen, bytes).await.expect("stored");
        list[0].manifest_path.clone_from(&stolen);
        format!("{}/metadata", table.metadata.location())
    };
    let parent = table.metadata.current_snapshot_id();
    let (path, _) = target
        .list(&format!("{folder}/list"), parent, list)
        .await
        .expect("stored");
    if list_outside {
        stolen.clone_from(&path);
    }
    let snapshot = Snapshot::builder()
        .with_snapshot_id(snapshot_id)
        .with_parent_snapshot_id(parent)
        .with_sequence_number(table.metadata.next_sequence_number())
        .with_timestamp_ms(rig.clock_now().max(table.metadata.last_updated_ms()))
        .with_manifest_list(path)
        .with_summary(Summary {
            operation: Operation::Replace,
            additional_properties: head.summary().additional_properties.clone(),
        })
        .with_schema_id(table.metadata.current_schema_id())
        .build();
    let ledger_of = TableUpdate::SetProperties {
        updates: [(
            "everlog.ledger.snapshot-id".to_owned(),
            snapshot_id.to_string(),
        )]
        .into(),
    };
    let updates = vec![
        TableUpdate::AddSnapshot { snapshot },
        crate::rig::set_main(snapshot_id),
        ledger_of,
    ];
    rig.commit(&table, vec![], updates).await;
    stolen
}

#[tokio::test]
async fn a_manifest_or_a_list_outside_is_neither_read_nor_merged_nor_maintained() {
    for list_outside in [false, true] {
        let rig = Rig::new(200);
        let archive = rig.process_with(ArchiveOptions {
            merge: MergeSettings {
                fan_in: 2,
                ..MergeSettings::default()
            },
            ..ArchiveOptions::default()
        });
        let archive = archive.await;
        let ledger = rig.append(&archive, &[(0, 2)]).await;
        let stolen = commit_outside(&rig, list_outside).await;
        // a process that has not seen the table before
        let archive = rig.process_with(ArchiveOptions {
            merge: MergeSettings {
                fan_in: 2,
                ..MergeSettings::default()
            },
            ..ArchiveOptions::default()
        });
        let archive = archive.await;
        let mut ledger = ledger;
        let mut refused = None;
        // the manifest is read where it is merged
        for _ in 0..4 {
            let request = rig.request(&ledger, &[(0, 1)]).await;
            match archive.append(request).await {
                Ok(everlog_table::archive::CommitOutcome::Committed { ledger: after, .. }) => {
                    ledger = after;
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let error = refused.expect("a merge that is refused");
        let line = chain(&error);
        assert!(
            line.contains(&stolen) && line.contains("is outside of"),
            "{line}"
        );
        assert_eq!(error.kind(), ArchiveErrorKind::Invalid, "{line}");
        rig.clock.advance(Duration::from_hours(72));
        rig.stamp_files();
        let before = rig.objects();
        let maintained = archive.maintain(&MaintenanceSettings::default()).await;
        let line = chain(&maintained.expect_err("it cannot know what is needed"));
        assert!(line.contains(&stolen), "{line}");
        assert_eq!(rig.objects(), before);
    }
}

#[tokio::test]
async fn maintenance_deletes_nothing_where_a_property_or_a_location_leads_it() {
    let rig = Rig::new(201);
    let archive = rig.process().await;
    for _ in 0..3 {
        rig.append(&archive, &[(0, 1)]).await;
    }
    let table = rig.load().await;
    let storage = rig.catalog.storage_for(&table).expect("a storage");
    let victims = [
        format!("{OUTSIDE}/snap-1.avro"),
        format!("{WAREHOUSE}/everlog/orders2/data/old.parquet"),
        format!("{OUTSIDE}/00001-x.metadata.json"),
    ];
    for uri in &victims {
        storage
            .put(uri, Bytes::from_static(b"another's"))
            .await
            .expect("stored");
    }
    for key in [
        "write.metadata.path",
        "write.data.path",
        "write.folder-storage.path",
    ] {
        for place in [
            OUTSIDE.to_owned(),
            format!("{WAREHOUSE}/everlog/orders2"),
            WAREHOUSE.to_owned(),
            format!("{}/..", table.metadata.location()),
        ] {
            let table = rig.load().await;
            let updates = vec![TableUpdate::SetProperties {
                updates: [(key.to_owned(), place.clone())].into(),
            }];
            // a catalog that stores metadata itself may refuse to write it there, which is as well
            let reply = rig
                .catalog
                .commit(&table, vec![], updates, rig.ids.uuid())
                .await;
            if !matches!(reply, everlog_table::catalog::CommitReply::Committed(_)) {
                continue;
            }
            rig.clock.advance(Duration::from_hours(48));
            rig.stamp_files();
            for removal in [Removal::Count, Removal::Delete] {
                let settings = MaintenanceSettings {
                    removal,
                    ..MaintenanceSettings::default()
                };
                // refused, or done without going there
                let fresh = Archive::open_or_create(
                    rig.deps(),
                    NAMESPACE,
                    &topic(),
                    &TableSettings::default(),
                )
                .await;
                if let Ok(archive) = fresh {
                    drop(archive.maintain(&settings).await);
                }
            }
            for uri in &victims {
                assert!(
                    storage.exists(uri).await.expect("a store"),
                    "{key}={place}: {uri} is gone"
                );
            }
            let table = rig.load().await;
            let updates = vec![TableUpdate::RemoveProperties {
                removals: vec![key.to_owned()],
            }];
            rig.commit(&table, vec![], updates).await;
        }
    }
}

#[tokio::test]
async fn a_table_that_was_moved_out_of_the_warehouse_is_not_opened() {
    let rig = Rig::new(202);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 1)]).await;
    let table = rig.load().await;
    let updates = vec![TableUpdate::SetLocation {
        location: "lake://elsewhere/orders".to_owned(),
    }];
    let reply = rig
        .catalog
        .commit(&table, vec![], updates, rig.ids.uuid())
        .await;
    // either the catalog refuses to put its metadata there, or nobody opens it
    if matches!(reply, everlog_table::catalog::CommitReply::Committed(_)) {
        let opened =
            Archive::open_or_create(rig.deps(), NAMESPACE, &topic(), &TableSettings::default())
                .await;
        let line = chain(&opened.expect_err("outside"));
        assert!(
            line.contains("elsewhere") && line.contains("is outside of"),
            "{line}"
        );
    }
    let old = archive.storage().await.expect("a store");
    let error = old
        .put("lake://elsewhere/orders/data/x.parquet", Bytes::new())
        .await
        .expect_err("outside");
    assert!(error.to_string().contains("is outside of"), "{error}");
}
