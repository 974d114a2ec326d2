//! Appends: what lands, what is fenced, and what becomes of lost replies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{Clock, Ledger, Millis, Segment};
use everlog_table::archive::{ArchiveError, ArchiveErrorKind, ArchiveOptions, CommitOutcome};
use everlog_table::catalog::memory::{Call, Fault};
use everlog_table::catalog::{
    Catalog, CatalogError, CommitReply, CreateReply, LoadedTable, NewTable,
};
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings};
use everlog_table::manifests::MergeSettings;
use everlog_table::storage::Storage;
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use uuid::Uuid;

use crate::rig::{Rig, committed, main_history, rows};

#[tokio::test]
async fn files_and_ledger_come_in_one_snapshot() {
    let rig = Rig::new(1);
    let archive = rig.process().await;
    let before = archive.state().await.expect("a state");
    assert_eq!(
        (before.snapshot_id, before.ledger),
        (None, Ledger::default())
    );
    let ledger = rig.append(&archive, &[(0, 10), (3, 5)]).await;
    let after = archive.state().await.expect("a state");
    assert_eq!(after.ledger, ledger);
    assert_eq!(after.table.metadata.snapshots().len(), 1);
    assert_eq!(rows(&ledger), [(0, 10), (3, 5)].into());
    rig.check().await;
}

#[tokio::test]
async fn b12_the_summary_tells_ledger_and_commit_under_documented_keys() {
    let rig = Rig::new(2);
    let archive = rig.process().await;
    let ledger = rig.append(&archive, &[(0, 10)]).await;
    let table = rig.load().await;
    let snapshot = table.metadata.current_snapshot().expect("a snapshot");
    let summary = &snapshot.summary().additional_properties;
    assert_eq!(summary.get("everlog.ledger"), Some(&ledger.encode()));
    assert_eq!(
        summary.get("everlog.version").map(String::as_str),
        Some("1")
    );
    assert!(
        summary
            .get("everlog.commit-id")
            .is_some_and(|id| Uuid::try_parse(id).is_ok())
    );
    assert_eq!(summary.get("added-records").map(String::as_str), Some("10"));
    assert_eq!(summary.get("total-records").map(String::as_str), Some("10"));
    let properties = table.metadata.properties();
    assert_eq!(properties.get("everlog.ledger"), Some(&ledger.encode()));
    let id = snapshot.snapshot_id().to_string();
    assert_eq!(properties.get("everlog.ledger.snapshot-id"), Some(&id));
}

#[tokio::test]
async fn a_commit_without_rows_moves_the_ledger_and_adds_no_manifest() {
    let rig = Rig::new(3);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 10)]).await;
    let ledger = rig.append(&archive, &[(0, 0)]).await;
    assert_eq!(rows(&ledger), [(0, 10)].into());
    let entry = ledger.cut();
    assert_eq!(entry.values().next().map(|p| p.offset.get()), Some(12));
    let table = rig.load().await;
    let head = table.metadata.current_snapshot_id().expect("a head");
    assert_eq!(rig.rows_of(&table, head).await.len(), 1);
    rig.check().await;
}

#[tokio::test]
async fn writers_of_different_partitions_rebase_over_each_other() {
    let rig = Rig::new(4);
    let (one, two) = (rig.process().await, rig.process().await);
    let ledger = rig.append(&one, &[(0, 1), (1, 1)]).await;
    let mut of_one = ledger.clone();
    let mut of_two = ledger;
    for _ in 0..10 {
        let request = rig.request(&of_one, &[(0, 2)]).await;
        of_one = committed(one.append(request).await);
        let request = rig.request(&of_two, &[(1, 3)]).await;
        of_two = committed(two.append(request).await);
    }
    assert_eq!(rows(&of_two), [(0, 21), (1, 31)].into());
    rig.check().await;
}

#[tokio::test]
async fn h27_a_writer_that_read_from_an_older_entry_is_fenced_and_nothing_lands() {
    let rig = Rig::new(5);
    let (old, new) = (rig.process().await, rig.process().await);
    let seen = rig.append(&old, &[(0, 10), (1, 10)]).await;
    let zombie = rig.request(&seen, &[(0, 7), (1, 1)]).await;
    let current = rig.append(&new, &[(0, 3)]).await;
    let before = rig.load().await.metadata_location;
    match old.append(zombie).await.expect("an outcome") {
        CommitOutcome::Fenced { refusals, ledger } => {
            let fenced: Vec<i32> = refusals.iter().map(|r| r.partition().get()).collect();
            assert_eq!(fenced, [0]);
            assert_eq!(ledger, current);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.load().await.metadata_location, before);
    // What is not fenced is proposed again without it.
    let rest = rig.request(&seen, &[(1, 1)]).await;
    assert_eq!(
        rows(&committed(old.append(rest).await)),
        [(0, 13), (1, 11)].into()
    );
    rig.check().await;
}

#[tokio::test]
async fn h27_who_was_fenced_goes_on_from_where_the_other_one_stopped() {
    let rig = Rig::new(22);
    let (blue, green) = (rig.process().await, rig.process().await);
    let seen = rig.append(&blue, &[(0, 10)]).await;
    let late = rig.request(&seen, &[(0, 1)]).await;
    rig.append(&green, &[(0, 3)]).await;
    let outcome = blue.append(late).await.expect("an outcome");
    assert!(
        matches!(outcome, CommitOutcome::Fenced { .. }),
        "{outcome:?}"
    );
    // The other one commits once more before blue has read the ledger again, and ends.
    rig.append(&green, &[(0, 4)]).await;
    let current = blue.state().await.expect("the state").ledger;
    let request = rig.request(&current, &[(0, 2)]).await;
    assert_eq!(
        rows(&committed(blue.append(request).await)),
        [(0, 19)].into()
    );
    rig.check().await;
}

#[tokio::test]
async fn h28_of_two_archivers_that_start_alike_each_offset_is_taken_once() {
    let rig = Rig::new(6);
    let (blue, green) = (rig.process().await, rig.process().await);
    let start = Ledger::default();
    let (of_blue, of_green) = (
        rig.request(&start, &[(0, 5)]).await,
        rig.request(&start, &[(0, 5)]).await,
    );
    let (blue, green) = tokio::join!(blue.append(of_blue), green.append(of_green));
    let landed = [blue, green]
        .into_iter()
        .filter(|outcome| matches!(outcome, Ok(CommitOutcome::Committed { .. })))
        .count();
    assert_eq!(landed, 1);
    rig.check().await;
}

#[tokio::test]
async fn p07_a_lost_reply_is_read_back_and_nothing_is_sent_again() {
    let rig = Rig::new(7);
    let archive = rig.process().await;
    let ledger = rig.append(&archive, &[(0, 10)]).await;
    rig.memory.inject(Call::Commit, Fault::LostAfter);
    let request = rig.request(&ledger, &[(0, 5)]).await;
    let commits = rig.memory.commits();
    let ledger = committed(archive.append(request).await);
    assert_eq!(
        rig.memory.commits(),
        commits + 1,
        "one commit, the lost one"
    );
    assert_eq!(rows(&ledger), [(0, 15)].into());
    rig.check().await;
}

#[tokio::test]
async fn p06_an_attempt_that_may_land_late_is_made_impossible_before_anything_else_is_sent() {
    let rig = Rig::new(8);
    let archive = rig.process().await;
    let ledger = rig.append(&archive, &[(0, 10)]).await;
    rig.memory.inject(Call::Commit, Fault::Late);
    let request = rig.request(&ledger, &[(0, 5)]).await;
    let ledger = committed(archive.append(request).await);
    assert_eq!(rows(&ledger), [(0, 15)].into());
    let table = rig.load().await;
    assert_eq!(
        main_history(&table.metadata).len(),
        3,
        "first, neutral, rebased"
    );
    assert_eq!(rig.memory.land().await, Some(false), "the late one is dead");
    assert_eq!(rig.load().await.metadata_location, table.metadata_location);
    rig.check().await;
}

#[tokio::test]
async fn p06_the_very_first_commit_is_settled_alike() {
    let rig = Rig::new(9);
    let archive = rig.process().await;
    rig.memory.inject(Call::Commit, Fault::Late);
    let request = rig.request(&Ledger::default(), &[(0, 5)]).await;
    let ledger = committed(archive.append(request).await);
    assert_eq!(rows(&ledger), [(0, 5)].into());
    assert_eq!(rig.memory.land().await, Some(false));
    rig.check().await;
}

#[tokio::test]
async fn h26_while_the_catalog_is_silent_the_outcome_stays_unknown_and_is_resolved_later() {
    let rig = Rig::new(10);
    let archive = rig.process().await;
    let ledger = rig.append(&archive, &[(0, 10)]).await;
    let request = rig.request(&ledger, &[(0, 5)]).await;
    rig.memory.inject(Call::Commit, Fault::Late);
    for _ in 0..7 {
        rig.memory.inject(Call::Load, Fault::Unavailable);
    }
    let objects = rig.objects();
    let outcome = archive.append(request).await.expect("an outcome");
    let CommitOutcome::Unknown(pending) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(pending.request().advances.len(), 1);
    assert!(rig.objects().is_superset(&objects), "nothing was deleted");
    // It lands after all, while nobody looks.
    assert_eq!(rig.memory.land().await, Some(true));
    let ledger = committed(archive.resolve(pending).await);
    assert_eq!(rows(&ledger), [(0, 15)].into());
    rig.check().await;
}

#[tokio::test]
async fn h26_a_rival_that_took_the_offsets_meanwhile_fences_the_resolved_commit() {
    let rig = Rig::new(11);
    let (archive, rival) = (rig.process().await, rig.process().await);
    let ledger = rig.append(&archive, &[(0, 10)]).await;
    let request = rig.request(&ledger, &[(0, 5)]).await;
    rig.memory.inject(Call::Commit, Fault::LostBefore);
    for _ in 0..7 {
        rig.memory.inject(Call::Load, Fault::Unavailable);
    }
    let outcome = archive.append(request).await.expect("an outcome");
    let CommitOutcome::Unknown(pending) = outcome else {
        panic!("{outcome:?}")
    };
    rig.append(&rival, &[(0, 1)]).await;
    let outcome = archive.resolve(pending).await.expect("an outcome");
    assert!(
        matches!(outcome, CommitOutcome::Fenced { .. }),
        "{outcome:?}"
    );
    rig.check().await;
}

/// A proxy that delivers every commit twice and passes on the second answer.
#[derive(Debug)]
struct Repeating(Arc<dyn Catalog>);

#[async_trait]
impl Catalog for Repeating {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.0.ensure_namespace(namespace).await
    }
    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        self.0.list_tables(namespace).await
    }
    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        self.0.load(table).await
    }
    async fn create(&self, table: NewTable) -> Result<CreateReply, CatalogError> {
        self.0.create(table).await
    }
    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
        key: Uuid,
    ) -> CommitReply {
        drop(
            self.0
                .commit(base, requirements.clone(), updates.clone(), key)
                .await,
        );
        self.0.commit(base, requirements, updates, key).await
    }
    fn storage_for(&self, table: &LoadedTable) -> Result<Storage, CatalogError> {
        self.0.storage_for(table)
    }
}

#[tokio::test]
async fn p05_a_conflict_with_ones_own_commit_is_recognised() {
    let mut rig = Rig::new(12);
    rig.catalog = Arc::new(Repeating(Arc::clone(&rig.catalog)));
    let archive = rig.process().await;
    let mut ledger = Ledger::default();
    for _ in 0..5 {
        let request = rig.request(&ledger, &[(0, 4)]).await;
        ledger = committed(archive.append(request).await);
    }
    assert_eq!(rows(&ledger), [(0, 20)].into());
    assert_eq!(main_history(&rig.load().await.metadata).len(), 5);
    rig.check().await;
}

#[tokio::test]
async fn p01_files_that_landed_cannot_land_again() {
    let rig = Rig::new(21);
    let archive = rig.process().await;
    let request = rig.request(&Ledger::default(), &[(0, 10), (1, 4)]).await;
    committed(archive.append(request.clone()).await);
    // The process dies before it learns that, and proposes the same; so does a new one.
    for archive in [archive, rig.process().await] {
        let outcome = archive.append(request.clone()).await.expect("an outcome");
        assert!(
            matches!(&outcome, CommitOutcome::Fenced { refusals, .. } if refusals.len() == 2),
            "{outcome:?}"
        );
    }
    assert_eq!(main_history(&rig.load().await.metadata).len(), 1);
    rig.check().await;
}

#[tokio::test]
async fn p04_offsets_never_go_back() {
    let rig = Rig::new(13);
    let archive = rig.process().await;
    let first = rig.append(&archive, &[(0, 10)]).await;
    rig.append(&archive, &[(0, 10)]).await;
    // A writer that rewinds: it claims the entry of now, and starts before it.
    let ledger = archive.state().await.expect("a state").ledger;
    let mut request = rig.request(&first, &[(0, 3)]).await;
    request.advances[0].base = rig.advance(&ledger, 0, 3).base;
    let error = archive.append(request).await.expect_err("refused");
    assert_eq!(error.kind(), ArchiveErrorKind::Invalid, "{error}");
    rig.check().await;
}

#[tokio::test]
async fn conflicts_are_retried_and_an_unreachable_catalog_is_not_committed_to() {
    let rig = Rig::new(14);
    let archive = rig.process().await;
    let ledger = rig.append(&archive, &[(0, 10)]).await;
    for _ in 0..3 {
        rig.memory.inject(Call::Commit, Fault::Conflict);
    }
    rig.memory.inject(Call::Commit, Fault::Unavailable);
    let request = rig.request(&ledger, &[(0, 1)]).await;
    let outcome = archive.append(request).await.expect("an outcome");
    assert!(
        matches!(outcome, CommitOutcome::Committed { attempts: 5, .. }),
        "{outcome:?}"
    );
    let ledger = archive.state().await.expect("a state").ledger;
    let request = rig.request(&ledger, &[(0, 1)]).await;
    rig.memory.inject(Call::Commit, Fault::Denied);
    rig.memory.inject(Call::Commit, Fault::Denied);
    let error = archive.append(request).await.expect_err("refused");
    assert_eq!(error.kind(), ArchiveErrorKind::Denied, "{error}");
    rig.check().await;
}

#[tokio::test]
async fn a_quiet_writer_reads_the_catalog_once() {
    let rig = Rig::new(15);
    let archive = rig.process().await;
    let mut ledger = rig.append(&archive, &[(0, 1)]).await;
    for _ in 0..3 {
        let request = rig.request(&ledger, &[(0, 1)]).await;
        // Were the table loaded, this would be met.
        rig.memory.inject(Call::Load, Fault::Denied);
        ledger = committed(archive.append(request).await);
        let table = rig.catalog.load(&rig.ident()).await;
        assert!(table.is_err(), "the fault was still waiting");
    }
    rig.check().await;
}

#[tokio::test]
async fn nothing_is_committed_while_our_clock_is_ahead() {
    let rig = Rig::new(16);
    let archive = rig.process().await;
    let mut request = rig.request(&Ledger::default(), &[(0, 1)]).await;
    request.reference_time = Some(rig.clock.now());
    rig.clock.advance(Duration::from_secs(31));
    let error = archive.append(request.clone()).await.expect_err("refused");
    assert!(matches!(error, ArchiveError::ClockAhead { .. }), "{error}");
    assert_eq!(rig.memory.commits(), 0);
    request.reference_time = Some(rig.clock.now());
    committed(archive.append(request).await);
}

/// A catalog that tells the time, and how often it was asked for anything.
#[derive(Debug)]
struct Timed {
    inner: Arc<dyn Catalog>,
    time: Mutex<Millis>,
    /// What it says at the next request.
    next: Mutex<Option<Millis>>,
}

#[async_trait]
impl Catalog for Timed {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.inner.ensure_namespace(namespace).await
    }
    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        self.inner.list_tables(namespace).await
    }
    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        if let Some(next) = self.next.lock().expect("a lock").take() {
            *self.time.lock().expect("a lock") = next;
        }
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
        self.inner.commit(base, requirements, updates, key).await
    }
    fn storage_for(&self, table: &LoadedTable) -> Result<Storage, CatalogError> {
        self.inner.storage_for(table)
    }
    fn server_time(&self) -> Option<Millis> {
        Some(*self.time.lock().expect("a lock"))
    }
}

#[tokio::test]
async fn nothing_is_committed_expired_or_accepted_while_our_clock_is_ahead_of_the_catalogs() {
    let mut rig = Rig::new(16);
    let timed = Arc::new(Timed {
        inner: Arc::clone(&rig.catalog),
        time: Mutex::new(rig.clock.now()),
        next: Mutex::default(),
    });
    rig.catalog = Arc::clone(&timed) as Arc<dyn Catalog>;
    let archive = rig.process().await;
    let mut ledger = Ledger::default();
    for _ in 0..3 {
        let request = rig.request(&ledger, &[(0, 1)]).await;
        ledger = committed(archive.append(request).await);
    }
    // this machine is two days ahead all of a sudden: whatever has a deadline looks as if it were over
    rig.clock.advance(Duration::from_hours(48));
    let commits = rig.memory.commits();
    let request = rig.request(&ledger, &[(0, 1)]).await;
    let settings = MaintenanceSettings {
        expiry: ExpirySettings {
            count_min: 1,
            ..ExpirySettings::default()
        },
        ..MaintenanceSettings::default()
    };
    for archive in [&archive, &rig.process().await] {
        let error = archive.append(request.clone()).await.expect_err("refused");
        assert!(matches!(error, ArchiveError::ClockAhead { .. }), "{error}");
        let error = archive.maintain(&settings).await.expect_err("refused");
        assert!(matches!(error, ArchiveError::ClockAhead { .. }), "{error}");
    }
    assert_eq!(rig.memory.commits(), commits);
    // it slept, in truth: what the catalog says when it is asked again counts, and not what it had said
    *timed.next.lock().expect("a lock") = Some(rig.clock.now());
    committed(archive.append(request).await);
    rig.check().await;
}

#[tokio::test]
async fn h30_files_that_waited_too_long_are_not_committed() {
    let rig = Rig::new(17);
    let archive = rig.process().await;
    let request = rig.request(&Ledger::default(), &[(0, 1)]).await;
    rig.clock.advance(Duration::from_hours(2));
    let path = request.files[0].data_file.file_path().to_owned();
    archive
        .storage()
        .await
        .expect("a store")
        .delete(&path)
        .await
        .expect("deleted");
    let error = archive.append(request).await.expect_err("refused");
    assert_eq!(error.kind(), ArchiveErrorKind::Stale, "{error}");
    let request = rig.request(&Ledger::default(), &[(0, 1)]).await;
    rig.clock.advance(Duration::from_hours(2));
    let ledger = committed(archive.append(request).await);
    let request = rig.request(&ledger, &[(0, 1)]).await;
    rig.clock.advance(Duration::from_hours(21));
    let error = archive.append(request).await.expect_err("refused");
    assert_eq!(error.kind(), ArchiveErrorKind::Stale, "{error}");
    rig.check().await;
}

#[tokio::test]
async fn a_request_whose_files_and_advances_differ_is_refused() {
    let rig = Rig::new(18);
    let archive = rig.process().await;
    let good = rig.request(&Ledger::default(), &[(0, 5)]).await;
    let mut fewer = good.clone();
    fewer.files.clear();
    let mut twice = good.clone();
    twice.files.push(good.files[0].clone());
    let mut elsewhere = good.clone();
    elsewhere.files[0].ranges[0].partition = crate::rig::partition(9);
    let mut more = good.clone();
    if let Segment::Data { rows, .. } = &mut more.advances[0].segments[0] {
        *rows = 6;
    }
    for request in [fewer, twice, elsewhere, more] {
        let error = archive.append(request).await.expect_err("refused");
        assert_eq!(error.kind(), ArchiveErrorKind::Invalid, "{error}");
    }
    assert_eq!(rig.memory.commits(), 0);
    committed(archive.append(good).await);
}

#[tokio::test]
async fn merging_keeps_manifests_few_and_every_row_once() {
    let rig = Rig::new(19);
    let options = ArchiveOptions {
        merge: MergeSettings {
            fan_in: 4,
            ..MergeSettings::default()
        },
        ..ArchiveOptions::default()
    };
    let archive = rig.process_with(options).await;
    let mut ledger = Ledger::default();
    for round in 0..70_i32 {
        let request = rig.request(&ledger, &[(round % 3, 2)]).await;
        ledger = committed(archive.append(request).await);
        rig.clock.advance(Duration::from_secs(10));
    }
    let table = rig.load().await;
    let head = table.metadata.current_snapshot().expect("a head");
    let storage = archive.storage().await.expect("a store");
    let list = everlog_table::manifests::read_list(&storage, head, table.metadata.format_version())
        .await
        .expect("a list");
    assert!(
        list.len() <= 12,
        "{} manifests after 70 commits",
        list.len()
    );
    let mut sequence = Vec::new();
    for file in &list {
        for entry in everlog_table::manifests::read_manifest(&storage, file)
            .await
            .expect("read")
        {
            let (number, id) = (entry.sequence_number(), entry.snapshot_id().expect("an id"));
            let snapshot = table.metadata.snapshot_by_id(id).expect("a snapshot");
            assert_eq!(
                number,
                Some(snapshot.sequence_number()),
                "as it was committed"
            );
            sequence.push(number);
        }
    }
    sequence.sort_unstable();
    sequence.dedup();
    assert_eq!(sequence.len(), 70, "one file of each commit");
    rig.check().await;
}

#[tokio::test]
async fn a_name_that_differs_in_case_alone_belongs_to_the_topic_that_has_it() {
    let rig = Rig::new(20);
    rig.process().await;
    let topic = everlog_common::TopicName::new("Orders").expect("a name");
    let settings = everlog_table::schema::TableSettings::default();
    let opened =
        everlog_table::archive::Archive::open_or_create(rig.deps(), "everlog", &topic, &settings)
            .await;
    let error = opened.expect_err("a clash");
    assert_eq!(error.kind(), ArchiveErrorKind::NameClash);
    let text = error.to_string();
    assert!(text.contains("Orders") && text.contains("orders"), "{text}");
    let topic = everlog_common::TopicName::new("a.b").expect("a name");
    let other = everlog_common::TopicName::new("a_b").expect("a name");
    let open = everlog_table::archive::Archive::open_or_create;
    open(rig.deps(), "everlog", &topic, &settings)
        .await
        .expect("the first");
    let error = open(rig.deps(), "everlog", &other, &settings)
        .await
        .expect_err("a clash");
    assert_eq!(error.kind(), ArchiveErrorKind::NameClash);
}

/// Both looked before either was there.
#[tokio::test]
async fn of_two_tables_made_at_once_whose_names_fold_alike_one_is_left() {
    let rig = Rig::new(23);
    rig.process().await;
    let settings = everlog_table::schema::TableSettings::default();
    let lesser = everlog_common::TopicName::new("ORDERS").expect("a name");
    let table = everlog_table::schema::new_table("everlog", &lesser, &settings).expect("a table");
    rig.deps().catalog.create(table).await.expect("created");
    let open = everlog_table::archive::Archive::open_or_create;
    let error = open(rig.deps(), "everlog", &crate::rig::topic(), &settings)
        .await
        .expect_err("a clash");
    assert_eq!(error.kind(), ArchiveErrorKind::NameClash);
    open(rig.deps(), "everlog", &lesser, &settings)
        .await
        .expect("the lesser name keeps it");
}

/// What has rows stays what it is: nothing that comes later takes its name.
#[tokio::test]
async fn a_table_with_rows_keeps_its_name() {
    let rig = Rig::new(24);
    let archive = rig.process().await;
    rig.append(&archive, &[(0, 1)]).await;
    let settings = everlog_table::schema::TableSettings::default();
    let lesser = everlog_common::TopicName::new("ORDERS").expect("a name");
    let table = everlog_table::schema::new_table("everlog", &lesser, &settings).expect("a table");
    rig.deps().catalog.create(table).await.expect("created");
    let open = everlog_table::archive::Archive::open_or_create;
    open(rig.deps(), "everlog", &crate::rig::topic(), &settings)
        .await
        .expect("it has rows");
    let error = open(rig.deps(), "everlog", &lesser, &settings)
        .await
        .expect_err("it has none");
    assert_eq!(error.kind(), ArchiveErrorKind::NameClash);
}

/// A catalog from which the table is dropped right before a commit.
#[derive(Debug)]
struct Dropping {
    inner: Arc<dyn Catalog>,
    armed: AtomicBool,
    dropped: AtomicBool,
}

#[async_trait]
impl Catalog for Dropping {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.inner.ensure_namespace(namespace).await
    }
    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        self.inner.list_tables(namespace).await
    }
    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        if self.dropped.load(Ordering::SeqCst) {
            return Ok(None);
        }
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
        if self.armed.load(Ordering::SeqCst) {
            self.dropped.store(true, Ordering::SeqCst);
            return CommitReply::Refused(CatalogError::NotFound {
                what: "commit".to_owned(),
                message: "404 NoSuchTableException".to_owned(),
            });
        }
        self.inner.commit(base, requirements, updates, key).await
    }
    fn storage_for(&self, table: &LoadedTable) -> Result<Storage, CatalogError> {
        self.inner.storage_for(table)
    }
}

#[tokio::test]
async fn a_table_that_was_dropped_is_said_to_be_so_by_a_commit_as_by_a_read() {
    for remembered in [true, false] {
        let mut rig = Rig::new(22);
        let dropping = Arc::new(Dropping {
            inner: Arc::clone(&rig.catalog),
            armed: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
        });
        rig.catalog = Arc::clone(&dropping) as _;
        let archive = rig.process().await;
        let ledger = rig.append(&archive, &[(0, 3)]).await;
        let request = rig.request(&ledger, &[(0, 2)]).await;
        let archive = if remembered {
            archive
        } else {
            rig.process().await
        };
        dropping.armed.store(true, Ordering::SeqCst);
        let error = archive.append(request).await.expect_err("no table");
        assert!(matches!(error, ArchiveError::Replaced { .. }), "{error:?}");
    }
}
