//! Other engines and operators: what is walked past, what stops the archive, and how it goes on.

use everlog_common::Ledger;
use everlog_table::archive::{ArchiveError, ArchiveErrorKind};
use iceberg::TableUpdate;
use iceberg::spec::Operation;

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
