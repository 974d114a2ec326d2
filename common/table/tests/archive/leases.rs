//! Pins: which snapshot, what holds it, and the cross-checks of its plan.

use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Clock, Millis};
use everlog_table::archive::ArchiveErrorKind;
use everlog_table::catalog::memory::{Call, Fault};
use everlog_table::lease;
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings};
use everlog_table::snapshot::{LeaseMode, PinError, SnapshotSelector};
use iceberg::TableUpdate;
use iceberg::spec::{MAIN_BRANCH, Operation};

use crate::rig::{Foreign, Rig, main_history};

/// Everything but the head expires at once.
fn eager() -> MaintenanceSettings {
    MaintenanceSettings {
        expiry: ExpirySettings {
            age_max: Duration::ZERO,
            count_min: 1,
            ..ExpirySettings::default()
        },
        ..MaintenanceSettings::default()
    }
}

#[tokio::test]
async fn h31_a_leased_snapshot_stays_until_it_is_released() {
    let rig = Rig::new(50);
    let (reader, writer) = (rig.process().await, rig.process().await);
    let ledger = rig.append(&writer, &[(0, 10)]).await;
    let pinned = reader
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await
        .expect("a pin");
    assert_eq!(pinned.ledger, ledger);
    assert_eq!(pinned.cut(), ledger.cut());
    for _ in 0..5 {
        rig.clock.advance(Duration::from_mins(1));
        rig.append(&writer, &[(0, 1)]).await;
    }
    let report = writer.maintain(&eager()).await.expect("maintained");
    assert_eq!((report.snapshots_expired, report.snapshots_left), (4, 2));
    assert_eq!(pinned.files().await.expect("files").len(), 1);
    pinned.release().await;
    let table = rig.load().await;
    let tags = table.metadata.snapshots().len();
    assert_eq!(tags, 2, "released, not expired yet");
    // First the lease's snapshot, which the guard still holds; then the guard is gone, and it goes.
    writer.maintain(&eager()).await.expect("maintained");
    let report = writer.maintain(&eager()).await.expect("maintained");
    assert_eq!(report.snapshots_left, 1);
    rig.check().await;
}

#[tokio::test]
async fn readers_of_one_process_share_a_lease_and_the_last_gives_it_back() {
    let rig = Rig::new(51);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 10)]).await;
    let one = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await
        .expect("a pin");
    let commits = rig.memory.commits();
    let two = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await
        .expect("a pin");
    assert_eq!(rig.memory.commits(), commits, "no second tag");
    assert_eq!(
        one.lease.as_ref().map(|l| &l.tag),
        two.lease.as_ref().map(|l| &l.tag)
    );
    let tag = one.lease.as_ref().map(|l| l.tag.clone()).expect("a lease");
    one.release().await;
    assert!(rig.load().await.metadata.snapshot_for_ref(&tag).is_some());
    two.release().await;
    assert!(rig.load().await.metadata.snapshot_for_ref(&tag).is_none());
    // Another process makes its own.
    let three = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await
        .expect("a pin");
    let other = rig.process().await;
    let four = other
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await
        .expect("a pin");
    assert_ne!(three.lease, four.lease);
    three.release().await;
    let held = four.lease.as_ref().map(|l| l.tag.clone()).expect("a lease");
    assert!(rig.load().await.metadata.snapshot_for_ref(&held).is_some());
}

#[tokio::test]
async fn a_lease_lasts_its_term_and_is_renewed_with_a_later_deadline() {
    let rig = Rig::new(52);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 10)]).await;
    let mut pinned = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await
        .expect("a pin");
    rig.append(&archive, &[(0, 1)]).await;
    let first = pinned.lease.clone().expect("a lease");
    assert_eq!(first.deadline, rig.clock.now().plus(lease::TERM));
    let due = pinned.renew_at().expect("a time");
    rig.clock.advance(due.since(rig.clock.now()));
    pinned.renew().await.expect("renewed");
    let second = pinned.lease.clone().expect("a lease");
    assert!(second.deadline > first.deadline);
    let table = rig.load().await;
    assert!(table.metadata.snapshot_for_ref(&first.tag).is_none());
    assert!(table.metadata.snapshot_for_ref(&second.tag).is_some());
    // Nobody renews any more: the deadline ends it, for us too.
    rig.clock.advance(lease::TERM + Duration::from_secs(1));
    drop(pinned);
    for _ in 0..3 {
        archive.maintain(&eager()).await.expect("maintained");
    }
    let table = rig.load().await;
    assert!(table.metadata.snapshot_for_ref(&second.tag).is_none());
    assert!(table.metadata.snapshot_for_ref(lease::GUARD).is_none());
    assert_eq!(table.metadata.snapshots().len(), 1);
}

#[tokio::test]
async fn a_reader_that_may_not_write_reads_without_a_lease() {
    let rig = Rig::new(53);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 10)]).await;
    rig.memory.inject(Call::Commit, Fault::Denied);
    rig.memory.inject(Call::Commit, Fault::Denied);
    let pinned = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await
        .expect("a pin");
    assert_eq!(pinned.lease, None);
    assert_eq!(pinned.files().await.expect("files").len(), 1);
    let commits = rig.memory.commits();
    let pinned = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Off)
        .await
        .expect("a pin");
    assert_eq!(pinned.lease, None);
    assert_eq!(rig.memory.commits(), commits);
}

#[tokio::test]
async fn a_lease_whose_reply_was_lost_is_looked_for() {
    for fault in [
        Fault::LostAfter,
        Fault::LostBefore,
        Fault::Conflict,
        Fault::Unavailable,
    ] {
        let rig = Rig::new(54);
        let archive = rig.process().await;
        rig.append(&archive, &[(0, 10)]).await;
        rig.memory.inject(Call::Commit, fault);
        let pinned = archive
            .pin(&SnapshotSelector::Current, LeaseMode::Auto)
            .await
            .expect("a pin");
        let tag = pinned
            .lease
            .as_ref()
            .map(|l| l.tag.clone())
            .expect("a lease");
        assert!(
            rig.load().await.metadata.snapshot_for_ref(&tag).is_some(),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn the_guard_stops_an_expiry_that_does_not_know_of_a_lease() {
    let rig = Rig::new(56);
    let archive = rig.process().await;
    for _ in 0..3 {
        rig.append(&archive, &[(0, 1)]).await;
    }
    let before = rig.load().await;
    let old = *main_history(&before.metadata).last().expect("a first");
    let plan = everlog_table::maintain::plan_expiry(
        &before.metadata,
        &std::collections::BTreeMap::new(),
        rig.clock.now().plus(Duration::from_mins(1)),
        &eager().expiry,
    );
    assert!(plan.snapshots.contains(&old));
    archive
        .pin(&SnapshotSelector::Id(old), LeaseMode::Auto)
        .await
        .expect("a pin");
    let key = everlog_common::Ids::uuid(&*rig.ids);
    let reply = rig
        .catalog
        .commit(&before, plan.requirements(), plan.updates(), key)
        .await;
    assert!(
        matches!(reply, everlog_table::catalog::CommitReply::Conflict),
        "{reply:?}"
    );
}

#[tokio::test]
async fn snapshots_are_chosen_by_id_time_and_tag() {
    let rig = Rig::new(57);
    let archive = rig.process().await;
    let empty = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Off)
        .await;
    assert!(matches!(empty, Err(PinError::Empty { .. })), "{empty:?}");
    let mut times = Vec::new();
    for _ in 0..4 {
        rig.append(&archive, &[(0, 1)]).await;
        times.push(rig.clock.now());
        rig.clock.advance(Duration::from_secs(10));
    }
    let history = main_history(&rig.load().await.metadata);
    rig.tag("golden", history[1]).await;
    let pin = async |selector| archive.pin(&selector, LeaseMode::Off).await;
    let as_of = |at: Millis| SnapshotSelector::AsOf(at);
    assert_eq!(
        pin(as_of(times[2])).await.expect("a pin").snapshot_id,
        history[1]
    );
    let between = times[1].plus(Duration::from_secs(5));
    assert_eq!(
        pin(as_of(between)).await.expect("a pin").snapshot_id,
        history[2]
    );
    let id = SnapshotSelector::Id(history[3]);
    assert_eq!(pin(id).await.expect("a pin").ledger.rows(), 1);
    let tag = SnapshotSelector::Tag("golden".to_owned());
    assert_eq!(pin(tag).await.expect("a pin").snapshot_id, history[1]);
    rig.expire(vec![history[3], history[2]]).await;
    for (selector, word) in [
        (SnapshotSelector::Id(history[3]), "not there"),
        (as_of(times[0]), "expired"),
        (SnapshotSelector::Tag("none".to_owned()), "golden"),
    ] {
        let error = pin(selector).await.expect_err("not there");
        assert_eq!(error.kind(), ArchiveErrorKind::Invalid);
        assert!(error.to_string().contains(word), "{error}");
    }
    // The history of a kept snapshot is told, where that is known.
    assert_eq!(
        pin(as_of(times[2])).await.expect("a pin").snapshot_id,
        history[1]
    );
}

#[tokio::test]
async fn b14_a_pin_reads_all_files_of_its_snapshot_whatever_comes_later() {
    let rig = Rig::new(58);
    let archive = rig.process().await;
    for round in 0..40 {
        rig.append(&archive, &[(round % 4, 3)]).await;
    }
    let pinned = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await
        .expect("a pin");
    let files = pinned.files().await.expect("files");
    assert_eq!(files.len(), 40);
    assert!(files.is_sorted_by_key(|f| f.bounds.map(|b| (b.partition.0, b.offset.0))));
    rig.foreign(Foreign::of(Operation::Replace, 0)).await;
    rig.append(&archive, &[(0, 3)]).await;
    assert_eq!(pinned.files().await.expect("files"), files);
    let again = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await
        .expect("a pin");
    assert_eq!(again.files().await.expect("files").len(), 2);
}

#[tokio::test]
async fn a_manifest_that_is_gone_says_that_the_snapshot_has_expired() {
    let rig = Rig::new(59);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 3)]).await;
    let pinned = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Off)
        .await
        .expect("a pin");
    let table = rig.load().await;
    let snapshot = Arc::clone(table.metadata.current_snapshot().expect("a head"));
    archive
        .storage()
        .await
        .expect("a store")
        .delete(snapshot.manifest_list())
        .await
        .expect("deleted");
    let error = pinned.files().await.expect_err("gone");
    let PinError::Vanished { uri, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(uri, snapshot.manifest_list());
}

#[tokio::test]
async fn a_pin_of_history_does_not_ask_what_main_is_now() {
    let rig = Rig::new(60);
    let archive = rig.process().await;
    let ledger = rig.append(&archive, &[(0, 3)]).await;
    let old = rig
        .load()
        .await
        .metadata
        .current_snapshot_id()
        .expect("a head");
    rig.foreign(Foreign::of(Operation::Append, 3)).await;
    let pinned = archive
        .pin(&SnapshotSelector::Id(old), LeaseMode::Auto)
        .await
        .expect("a pin");
    assert_eq!(pinned.ledger, ledger);
    assert_eq!(pinned.files().await.expect("files").len(), 1);
    let error = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Auto)
        .await;
    assert_eq!(
        error.expect_err("foreign").kind(),
        ArchiveErrorKind::ForeignChange
    );
}

#[tokio::test]
async fn main_keeps_the_retention_that_somebody_gave_it() {
    let rig = Rig::new(61);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 3)]).await;
    let table = rig.load().await;
    let head = table.metadata.current_snapshot_id().expect("a head");
    let retention = iceberg::spec::SnapshotRetention::Branch {
        min_snapshots_to_keep: Some(7),
        max_snapshot_age_ms: None,
        max_ref_age_ms: None,
    };
    let reference = iceberg::spec::SnapshotReference::new(head, retention);
    let updates = vec![TableUpdate::SetSnapshotRef {
        ref_name: MAIN_BRANCH.to_owned(),
        reference,
    }];
    rig.commit(&table, vec![], updates).await;
    let fresh = rig.process().await;
    rig.append(&fresh, &[(0, 3)]).await;
    rig.append(&fresh, &[(0, 3)]).await;
    let json = serde_json::to_value(&*rig.load().await.metadata).expect("json");
    assert_eq!(json["refs"]["main"]["min-snapshots-to-keep"], 7);
}
