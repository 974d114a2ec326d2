//! Other engines and operators: what is walked past, what stops the archive, and how it goes on.

use everlog_common::{Ids, Ledger};
use everlog_table::archive::{ArchiveError, ArchiveErrorKind};
use everlog_table::manifests;
use iceberg::TableUpdate;
use iceberg::spec::{
    ManifestFile, NestedField, NestedFieldRef, Operation, PrimitiveType, Schema, Snapshot, Type,
};

use crate::rig::{Foreign, Rig, committed, main_history, rows};

fn foreign_snapshot(error: &ArchiveError) -> Option<i64> {
    match error {
        ArchiveError::ForeignChange { snapshot_id, .. } => *snapshot_id,
        other => panic!("expected a foreign change, got {other}"),
    }
}

#[tokio::test]
async fn h33_a_replace_with_unchanged_rows_is_walked_past() {
    for tells_totals in [true, false] {
        let rig = Rig::new(30);
        let archive = rig.process().await;
        let mut ledger = rig.append(&archive, &[(0, 10)]).await;
        ledger = {
            let request = rig.request(&ledger, &[(0, 5)]).await;
            committed(archive.append(request).await)
        };
        rig.foreign(Foreign {
            tells_totals,
            ..Foreign::of(Operation::Replace, 0)
        })
        .await;
        assert_eq!(archive.state().await.expect("a state").ledger, ledger);
        let request = rig.request(&ledger, &[(0, 5)]).await;
        let ledger = committed(archive.append(request).await);
        assert_eq!(rows(&ledger), [(0, 20)].into());
        rig.check().await;
    }
}

#[tokio::test]
async fn b17_a_replace_that_lost_rows_stops_the_archive() {
    for tells_totals in [true, false] {
        let rig = Rig::new(31);
        let archive = rig.process().await;
        rig.append(&archive, &[(0, 10)]).await;
        let id = rig
            .foreign(Foreign {
                tells_totals,
                ..Foreign::of(Operation::Replace, 1)
            })
            .await;
        let error = archive.state().await.expect_err("stopped");
        assert_eq!(foreign_snapshot(&error), Some(id));
        assert!(error.to_string().contains("10"), "{error}");
    }
}

#[tokio::test]
async fn h33_foreign_rows_stop_the_archive_with_the_snapshot_and_the_way_on() {
    for operation in [Operation::Append, Operation::Overwrite, Operation::Delete] {
        let rig = Rig::new(32);
        let archive = rig.process().await;
        let ledger = rig.append(&archive, &[(0, 10)]).await;
        let id = rig.foreign(Foreign::of(operation, 2)).await;
        let request = rig.request(&ledger, &[(0, 5)]).await;
        let error = archive.append(request).await.expect_err("stopped");
        assert_eq!(error.kind(), ArchiveErrorKind::ForeignChange);
        assert_eq!(foreign_snapshot(&error), Some(id));
        let text = error.to_string();
        assert!(
            text.contains(&format!("everlog archive --accept {id}")),
            "{text}"
        );
    }
}

#[tokio::test]
async fn h33_a_rolled_back_main_stops_the_archive_and_rolling_forward_starts_it() {
    let rig = Rig::new(33);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 10)]).await;
    let old = rig
        .load()
        .await
        .metadata
        .current_snapshot_id()
        .expect("a head");
    let ledger = rig.append(&archive, &[(0, 10)]).await;
    let new = rig
        .load()
        .await
        .metadata
        .current_snapshot_id()
        .expect("a head");
    rig.set_main_to(old).await;
    let error = archive.state().await.expect_err("stopped");
    assert_eq!(foreign_snapshot(&error), Some(old));
    // A writer that does not know yet is stopped too: its swap requires the head that it knows.
    let request = rig.request(&ledger, &[(0, 1)]).await;
    let error = archive.append(request).await.expect_err("stopped");
    assert_eq!(error.kind(), ArchiveErrorKind::ForeignChange);
    rig.set_main_to(new).await;
    assert_eq!(archive.state().await.expect("a state").ledger, ledger);
}

#[tokio::test]
async fn b15_the_ledger_survives_the_expiry_of_every_snapshot_that_told_it() {
    let rig = Rig::new(34);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 10)]).await;
    let ledger = rig.append(&archive, &[(0, 5)]).await;
    rig.foreign(Foreign::of(Operation::Replace, 0)).await;
    let table = rig.load().await;
    let old: Vec<i64> = main_history(&table.metadata).into_iter().skip(1).collect();
    assert_eq!(old.len(), 2);
    rig.expire(old).await;
    assert_eq!(archive.state().await.expect("a state").ledger, ledger);
    let request = rig.request(&ledger, &[(0, 5)]).await;
    assert_eq!(
        rows(&committed(archive.append(request).await)),
        [(0, 20)].into()
    );
    rig.check().await;
}

#[tokio::test]
async fn a_ledger_property_that_somebody_changed_is_not_believed() {
    let rig = Rig::new(35);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 10)]).await;
    let table = rig.load().await;
    let updates = vec![TableUpdate::SetProperties {
        updates: [("everlog.ledger".to_owned(), Ledger::default().encode())].into(),
    }];
    rig.commit(&table, vec![], updates).await;
    let error = archive.state().await.expect_err("not believed");
    assert_eq!(error.kind(), ArchiveErrorKind::Corrupt, "{error}");
    let table = rig.load().await;
    let updates = vec![TableUpdate::RemoveProperties {
        removals: vec![
            "everlog.ledger".to_owned(),
            "everlog.ledger.snapshot-id".to_owned(),
        ],
    }];
    rig.commit(&table, vec![], updates).await;
    let error = archive.state().await.expect_err("not believed");
    assert_eq!(error.kind(), ArchiveErrorKind::ForeignChange, "{error}");
}

#[tokio::test]
async fn damaged_manifests_and_metadata_are_told_and_end_nothing() {
    let rig = Rig::new(90);
    let archive = rig.process().await;
    for _ in 0..3 {
        rig.append(&archive, &[(0, 2), (1, 3)]).await;
    }
    let table = rig.load().await;
    let storage = archive.storage().await.expect("a store");
    let head = table.metadata.current_snapshot().expect("a head");
    let version = table.metadata.format_version();
    let list = manifests::read_list(&storage, head, version).await;
    let manifest = list.expect("a list").remove(0);
    // The same under names that tell nothing, as other engines write them: then the parsers have to notice.
    let folder = format!("{}/metadata", table.metadata.location());
    let foreign_manifest = ManifestFile {
        manifest_path: format!("{folder}/foreign-m0.avro"),
        ..manifest.clone()
    };
    let foreign_head = Snapshot::builder()
        .with_snapshot_id(head.snapshot_id())
        .with_sequence_number(head.sequence_number())
        .with_timestamp_ms(head.timestamp_ms())
        .with_manifest_list(format!("{folder}/foreign-list.avro"))
        .with_summary(head.summary().clone())
        .build();
    for (from, to) in [
        (
            manifest.manifest_path.as_str(),
            foreign_manifest.manifest_path.as_str(),
        ),
        (head.manifest_list(), foreign_head.manifest_list()),
    ] {
        let bytes = storage.get(from).await.expect("a file");
        storage.put(to, bytes).await.expect("stored");
    }
    let (mut refused, mut read) = (0, 0);
    for uri in [
        head.manifest_list(),
        manifest.manifest_path.as_str(),
        table.metadata_location.as_str(),
        foreign_manifest.manifest_path.as_str(),
        foreign_head.manifest_list(),
    ] {
        let tells = !uri.contains("/foreign-");
        let whole = storage.get(uri).await.expect("a file");
        for _ in 0..1_500 {
            let mut bytes = whole.to_vec();
            for _ in 0..=rig.ids.below(4) {
                let place = usize::try_from(rig.ids.below(bytes.len() as u64)).expect("small");
                bytes[place] = match rig.ids.below(3) {
                    0 => u8::try_from(rig.ids.below(256)).expect("a byte"),
                    1 => 0xff,
                    _ => bytes[place] ^ (1 << rig.ids.below(8)),
                };
            }
            let changed = bytes[..] != whole[..];
            storage.put(uri, bytes.into()).await.expect("stored");
            let outcome = if uri == table.metadata_location {
                rig.catalog.load(&rig.ident()).await.map(drop).is_ok()
            } else if uri == manifest.manifest_path {
                manifests::read_manifest(&storage, &manifest).await.is_ok()
            } else if uri == head.manifest_list() {
                manifests::read_list(&storage, head, version).await.is_ok()
            } else if uri == foreign_manifest.manifest_path {
                let read = manifests::read_manifest(&storage, &foreign_manifest);
                read.await.is_ok()
            } else {
                let read = manifests::read_list(&storage, &foreign_head, version);
                read.await.is_ok()
            };
            // Whatever is read of it: the counts of a state are no reason to end either.
            drop(archive.state().await);
            assert_eq!(tells && outcome, tells && !changed, "{uri}");
            if outcome {
                read += 1;
            } else {
                refused += 1;
            }
        }
        storage.put(uri, whole).await.expect("mended");
    }
    assert!(
        refused > 4_500 && read > 100,
        "{refused} refused, {read} read"
    );
    rig.check().await;
}

/// Gives the table other columns, as another engine's ALTER TABLE does.
async fn alter(rig: &Rig, change: impl FnOnce(&mut Vec<NestedFieldRef>, i32)) {
    let table = rig.load().await;
    let metadata = &table.metadata;
    let mut fields = metadata.current_schema().as_struct().fields().to_vec();
    change(&mut fields, metadata.last_column_id() + 1);
    let id = metadata.schemas_iter().map(|s| s.schema_id()).max();
    let schema = Schema::builder()
        .with_schema_id(id.expect("a schema") + 1)
        .with_fields(fields)
        .build()
        .expect("a schema");
    let updates = vec![
        TableUpdate::AddSchema { schema },
        TableUpdate::SetCurrentSchema { schema_id: -1 },
    ];
    rig.commit(&table, vec![], updates).await;
}

fn column(id: i32, name: &str, kind: PrimitiveType) -> NestedFieldRef {
    NestedField::optional(id, name, Type::Primitive(kind)).into()
}

#[tokio::test]
async fn h35_a_column_that_another_engine_drops_or_makes_anew_stops_the_next_commit() {
    let dropped = |fields: &mut Vec<NestedFieldRef>, _: i32| {
        fields.retain(|field| field.name != "headers_raw");
    };
    let made_anew = |fields: &mut Vec<NestedFieldRef>, id: i32| {
        fields.retain(|field| field.name != "headers_raw");
        fields.push(column(id, "headers_raw", PrimitiveType::Binary));
    };
    for is_anew in [false, true] {
        let rig = Rig::new(45);
        let archive = rig.process().await;
        let ledger = rig.append(&archive, &[(0, 10)]).await;
        if is_anew {
            alter(&rig, made_anew).await;
        } else {
            alter(&rig, dropped).await;
        }
        let head = rig.load().await.metadata.current_snapshot_id();
        let request = rig.request(&ledger, &[(0, 5)]).await;
        // whoever has just started finds it as well as who remembers the table as it was
        for process in [archive, rig.process().await] {
            let error = process.append(request.clone()).await.expect_err("stopped");
            assert_eq!(error.kind(), ArchiveErrorKind::ForeignChange, "{error}");
            assert!(
                matches!(&error, ArchiveError::SchemaChanged { source, .. }
                    if source.to_string().contains("headers_raw")),
                "{error:?}"
            );
        }
        assert_eq!(rig.load().await.metadata.current_snapshot_id(), head);
        rig.check().await;
    }
}

#[tokio::test]
async fn h35_a_column_that_another_engine_adds_stops_nothing() {
    let rig = Rig::new(46);
    let archive = rig.process().await;
    let ledger = rig.append(&archive, &[(0, 10)]).await;
    alter(&rig, |fields, id| {
        fields.push(column(id, "note", PrimitiveType::String));
    })
    .await;
    let request = rig.request(&ledger, &[(0, 5)]).await;
    committed(archive.append(request).await);
    rig.append(&archive, &[(0, 5)]).await;
    rig.check().await;
}
