//! Output tables of jobs: what a commit does to branch and main and what it survives, promotion, maintenance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use everlog_common::clock::{RandomIds, SystemClock};
use everlog_table::archive::{Archive, ArchiveDeps};
use everlog_table::catalog::memory::{Call, Fault};
use everlog_table::catalog::{Catalog, connect};
use everlog_table::job::{
    CommitEpoch, JobError, JobErrorKind, JobOutcome, JobPartitioning, JobRows, JobTable,
    JobTableSpec, Marker, Promotion, job_tables,
};
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings};
use everlog_table::schema::TableSettings;
use futures::TryStreamExt;
use iceberg::spec::{
    MAIN_BRANCH, Operation, Snapshot, SnapshotReference, SnapshotRetention, Summary, Transform,
};
use iceberg::{TableIdent, TableUpdate};

use crate::rig::{NAMESPACE, Rig, set_main, topic};
use crate::support::{Properties, Service, properties, python, s3, with};

const HOUR: Duration = Duration::from_hours(1);
const JOB: &str = "sessions";

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new(
            "session_end",
            DataType::Timestamp(TimeUnit::Millisecond, None),
            false,
        ),
        Field::new("views", DataType::Int64, false),
    ]))
}

fn more_columns() -> SchemaRef {
    let mut fields = columns().fields().to_vec();
    fields.push(Arc::new(Field::new("purchases", DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

fn spec(version: &str) -> JobTableSpec {
    JobTableSpec {
        table: "sessions".to_owned(),
        job: JOB.to_owned(),
        version: version.to_owned(),
        columns: columns(),
        fingerprint: format!("logic of {version}"),
        partitioning: JobPartitioning::None,
        properties: BTreeMap::new(),
        about: BTreeMap::from([("sql".to_owned(), "SELECT 1".to_owned())]),
    }
}

/// Rows `from` to `to` of a version's sequence.
fn rows(from: u64, to: u64, columns: &SchemaRef) -> RecordBatch {
    let numbers: Vec<i64> = (from..to).map(|n| i64::try_from(n).expect("few")).collect();
    let mut arrays: Vec<arrow_array::ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(
            numbers.iter().map(|n| format!("user {}", n % 7)),
        )),
        Arc::new(TimestampMillisecondArray::from_iter_values(
            numbers.iter().map(|n| 1_700_000_000_000 + n * 3_600_000),
        )),
        Arc::new(Int64Array::from(numbers.clone())),
    ];
    if columns.fields().len() > 3 {
        arrays.push(Arc::new(Int64Array::from(numbers)));
    }
    RecordBatch::try_new(Arc::clone(columns), arrays).expect("rows")
}

/// A process that runs a version.
struct Process {
    table: JobTable,
    version: String,
    columns: SchemaRef,
    epoch: u64,
    rows: u64,
}

impl Process {
    async fn start(deps: ArchiveDeps, namespace: &str, spec: &JobTableSpec) -> Self {
        let table = JobTable::open_or_create(deps, namespace, spec)
            .await
            .expect("a table");
        let marker = table.committed(&spec.version).await.expect("a marker");
        Self {
            table,
            version: spec.version.clone(),
            columns: Arc::clone(&spec.columns),
            epoch: marker.as_ref().map_or(0, |m| m.epoch),
            rows: marker.map_or(0, |m| m.rows),
        }
    }

    async fn of(rig: &Rig, version: &str) -> Self {
        Self::start(rig.deps(), NAMESPACE, &spec(version)).await
    }

    /// The next epoch, of so many rows.
    async fn epoch(&self, count: u64) -> CommitEpoch {
        let state = self.table.state().await.expect("a state");
        let request = JobRows {
            table: &state.table,
            rows: &rows(self.rows, self.rows + count, &self.columns),
        };
        let files = self.table.write(request).await.expect("files");
        CommitEpoch {
            files,
            ..self.epoch_of(count)
        }
    }

    /// The same without its files.
    fn epoch_of(&self, count: u64) -> CommitEpoch {
        let to = self.rows + count;
        CommitEpoch {
            marker: Marker {
                job: JOB.to_owned(),
                version: self.version.clone(),
                epoch: self.epoch + 1,
                rows: to,
                positions: format!("{{\"0\":{to}}}"),
                watermark: Some(1_700_000_000_000),
                engine: "test 1".to_owned(),
            },
            rows_before: self.rows,
            files: Vec::new(),
        }
    }

    fn took(&mut self, epoch: &CommitEpoch) {
        self.epoch = epoch.marker.epoch;
        self.rows = epoch.marker.rows;
    }

    async fn go_on(&mut self, count: u64) -> JobOutcome {
        let epoch = self.epoch(count).await;
        let outcome = self.table.commit(&epoch).await.expect("a commit");
        self.took(&epoch);
        outcome
    }
}

/// The numbers of the rows in a snapshot, in their order.
async fn numbers(table: &JobTable, snapshot_id: Option<i64>) -> Vec<i64> {
    let scan = table
        .scan(snapshot_id, Some(&["views".to_owned()]))
        .await
        .expect("a scan");
    let batches: Vec<RecordBatch> = scan.batches().try_collect().await.expect("rows");
    batches
        .iter()
        .flat_map(|batch| {
            batch
                .column(0)
                .as_primitive::<Int64Type>()
                .values()
                .to_vec()
        })
        .collect()
}

fn up_to(count: u64) -> Vec<i64> {
    (0..i64::try_from(count).expect("few")).collect()
}

/// Every version's branch holds its sequence once and in order, its marker counts it, and main is the active one's.
async fn check(table: &JobTable) {
    let state = table.state().await.expect("a state");
    for (version, found) in &state.versions {
        assert_eq!(found.problem, None, "{version}");
        let counted = found.marker.as_ref().map_or(0, |m| m.rows);
        assert_eq!(
            numbers(table, found.head).await,
            up_to(counted),
            "{version}"
        );
        assert_eq!(found.rows.unwrap_or(0), counted, "{version}");
    }
    let active = state
        .versions
        .get(&state.active)
        .expect("an active version");
    assert_eq!(state.main, active.head);
}

fn ident() -> TableIdent {
    TableIdent::from_strs([NAMESPACE, "sessions"]).expect("a name")
}

#[tokio::test]
async fn the_active_version_moves_main_and_the_other_one_does_not() {
    let rig = Rig::new(1);
    let mut v1 = Process::of(&rig, "v1").await;
    let mut v2 = Process::of(&rig, "v2").await;
    // the second version may be the first to commit
    assert!(matches!(
        v2.go_on(4).await,
        JobOutcome::Committed {
            moved_main: false,
            ..
        }
    ));
    assert_eq!(v1.table.state().await.expect("a state").main, None);
    assert!(matches!(
        v1.go_on(3).await,
        JobOutcome::Committed {
            moved_main: true,
            ..
        }
    ));
    v2.go_on(5).await;
    v1.go_on(2).await;
    let state = v1.table.state().await.expect("a state");
    assert_eq!((state.active.as_str(), state.previous), ("v1", None));
    assert_eq!(numbers(&v1.table, state.main).await, up_to(5));
    check(&v2.table).await;
    // what there is of the branches no expiry of other engines drops
    for version in ["v1", "v2"] {
        let SnapshotRetention::Branch { max_ref_age_ms, .. } = &state.refs[version].retention
        else {
            panic!("a branch");
        };
        assert_eq!(*max_ref_age_ms, Some(i64::MAX));
    }
}

#[tokio::test]
async fn an_epoch_that_is_there_already_is_not_committed_twice() {
    let rig = Rig::new(2);
    let mut v1 = Process::of(&rig, "v1").await;
    let epoch = v1.epoch(3).await;
    v1.table.commit(&epoch).await.expect("a commit");
    let commits = rig.memory.commits();
    assert!(matches!(
        v1.table.commit(&epoch).await,
        Ok(JobOutcome::AlreadyCommitted { .. })
    ));
    v1.took(&epoch);
    // an epoch without rows changes nothing
    let empty = v1.epoch(0).await;
    assert!(matches!(
        v1.table.commit(&empty).await,
        Ok(JobOutcome::AlreadyCommitted { .. })
    ));
    assert_eq!(rig.memory.commits(), commits);
    // a restart goes on behind it
    let mut again = Process::of(&rig, "v1").await;
    assert_eq!((again.epoch, again.rows), (1, 3));
    again.go_on(2).await;
    check(&again.table).await;
}

#[tokio::test]
async fn every_kind_of_lost_reply_leaves_every_row_once() {
    let rig = Rig::new(3);
    let mut v1 = Process::of(&rig, "v1").await;
    v1.go_on(1).await;
    for fault in [
        Fault::LostAfter,
        Fault::LostBefore,
        Fault::Conflict,
        Fault::Unavailable,
    ] {
        rig.memory.inject(Call::Commit, fault);
        v1.go_on(3).await;
        check(&v1.table).await;
    }
    // it lands after it was sent again
    rig.memory.inject(Call::Commit, Fault::Late);
    v1.go_on(3).await;
    assert_eq!(rig.memory.land().await, Some(false));
    check(&v1.table).await;
    // the table cannot be read back at once
    rig.memory.inject(Call::Load, Fault::Unavailable);
    let error = v1.table.state().await.expect_err("not there");
    assert_eq!(error.kind(), JobErrorKind::Transient);
    let epoch = v1.epoch(2).await;
    rig.memory.inject(Call::Commit, Fault::LostAfter);
    let (commit, ()) = tokio::join!(v1.table.commit(&epoch), async {
        tokio::task::yield_now().await;
        rig.memory.inject(Call::Load, Fault::Unavailable);
    });
    commit.expect("a commit");
    v1.took(&epoch);
    v1.go_on(1).await;
    check(&v1.table).await;
}

#[tokio::test]
async fn a_catalog_that_never_answers_leaves_the_outcome_open_and_the_next_call_finds_it() {
    let rig = Rig::new(4);
    let mut v1 = Process::of(&rig, "v1").await;
    v1.go_on(1).await;
    let epoch = v1.epoch(2).await;
    rig.memory.inject(Call::Commit, Fault::Late);
    for _ in 0..40 {
        rig.memory.inject(Call::Commit, Fault::LostBefore);
    }
    let error = v1.table.commit(&epoch).await.expect_err("no answer");
    assert!(matches!(error, JobError::Unknown { .. }), "{error}");
    assert!(error.is_transient());
    rig.memory.clear_faults();
    assert_eq!(rig.memory.land().await, Some(true));
    assert!(matches!(
        v1.table.commit(&epoch).await,
        Ok(JobOutcome::AlreadyCommitted { .. })
    ));
    v1.took(&epoch);
    check(&v1.table).await;
}

#[tokio::test]
async fn two_processes_of_one_version_do_not_double_a_row() {
    let rig = Rig::new(5);
    let mut one = Process::of(&rig, "v1").await;
    one.go_on(4).await;
    let mut zombie = Process::of(&rig, "v1").await;
    let late = zombie.epoch(3).await;
    one.go_on(5).await;
    // all of it is there: the rows are one sequence
    assert!(matches!(
        zombie.table.commit(&late).await,
        Ok(JobOutcome::AlreadyCommitted { .. })
    ));
    zombie.took(&late);
    let ahead = zombie.epoch(9).await;
    let error = zombie.table.commit(&ahead).await.expect_err("out of step");
    assert_eq!(error.kind(), JobErrorKind::Fenced, "{error}");
    check(&one.table).await;
}

#[tokio::test]
async fn promote_is_one_swap_and_after_it_the_other_one_writes_main() {
    let rig = Rig::new(6);
    let mut v1 = Process::of(&rig, "v1").await;
    let mut v2 = Process::of(&rig, "v2").await;
    v1.go_on(3).await;
    v2.go_on(2).await;
    v2.go_on(6).await;
    let before = v1.table.state().await.expect("a state");
    let promotion = Promotion {
        version: "v2".to_owned(),
        from: "v1".to_owned(),
    };
    let commits = rig.memory.commits();
    let moved = v1.table.promote(&promotion).await.expect("promoted");
    assert_eq!(rig.memory.commits(), commits + 1);
    assert_eq!(moved.before, before.main);
    assert_eq!(moved.tag.as_deref(), Some("before-v2"));
    assert_eq!(moved.previous.as_deref(), Some("v1"));
    check(&v1.table).await;
    // both go on, and main is v2's from now on
    assert!(matches!(
        v1.go_on(2).await,
        JobOutcome::Committed {
            moved_main: false,
            ..
        }
    ));
    assert!(matches!(
        v2.go_on(1).await,
        JobOutcome::Committed {
            moved_main: true,
            ..
        }
    ));
    check(&v1.table).await;
    let state = v1.table.state().await.expect("a state");
    assert_eq!(numbers(&v1.table, state.main).await, up_to(9));
    // the numbers before are there under the tag
    let tagged = state.refs["before-v2"].snapshot_id;
    assert_eq!(numbers(&v1.table, Some(tagged)).await, up_to(3));
    // once more is nothing to do
    let again = v1.table.promote(&promotion).await.expect("there");
    assert_eq!((again.attempts, again.tag), (0, None));
    // back, to what v1 has come to meanwhile; and forth, with a tag of its own
    let back = v1.table.rollback().await.expect("rolled back");
    assert_eq!(
        (back.active.as_str(), back.tag.as_deref()),
        ("v1", Some("before-v1"))
    );
    check(&v1.table).await;
    let forth = v1.table.rollback().await.expect("rolled back");
    assert_eq!(
        (forth.active.as_str(), forth.tag.as_deref()),
        ("v2", Some("before-v2-2"))
    );
    check(&v1.table).await;
    // the first version cannot take over behind somebody's back
    let error = v1
        .table
        .promote(&Promotion {
            version: "v1".to_owned(),
            from: "v3".to_owned(),
        })
        .await
        .expect_err("another is active");
    assert_eq!(error.kind(), JobErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn a_promotion_whose_reply_is_lost_is_made_once() {
    for (seed, fault) in [
        (7, Fault::LostAfter),
        (8, Fault::LostBefore),
        (9, Fault::Late),
    ] {
        let rig = Rig::new(seed);
        let mut v1 = Process::of(&rig, "v1").await;
        let mut v2 = Process::of(&rig, "v2").await;
        v1.go_on(3).await;
        v2.go_on(4).await;
        rig.memory.inject(Call::Commit, fault);
        let moved = v1
            .table
            .promote(&Promotion {
                version: "v2".to_owned(),
                from: "v1".to_owned(),
            })
            .await
            .expect("promoted");
        assert_eq!(moved.tag.as_deref(), Some("before-v2"), "{fault:?}");
        rig.memory.land().await;
        let state = v1.table.state().await.expect("a state");
        assert_eq!(state.active, "v2");
        let tags = state.refs.keys().filter(|name| name.starts_with("before-"));
        assert_eq!(tags.count(), 1, "{fault:?}");
        v1.go_on(1).await;
        v2.go_on(1).await;
        check(&v1.table).await;
    }
}

/// A commit that was derived before a promotion never moves main after it, nor leaves it behind.
#[tokio::test]
async fn a_promotion_that_races_commits_of_both_versions_leaves_main_with_the_active_one() {
    for late in ["v1", "v2"] {
        let rig = Rig::new(10);
        let mut v1 = Process::of(&rig, "v1").await;
        let mut v2 = Process::of(&rig, "v2").await;
        v1.go_on(3).await;
        v2.go_on(4).await;
        // it is on its way while main moves
        rig.memory.inject(Call::Commit, Fault::Late);
        for _ in 0..24 {
            rig.memory.inject(Call::Commit, Fault::LostBefore);
        }
        let process = if late == "v1" { &mut v1 } else { &mut v2 };
        let epoch = process.epoch(2).await;
        let error = process.table.commit(&epoch).await.expect_err("no answer");
        assert!(error.is_transient());
        rig.memory.clear_faults();
        v1.table
            .promote(&Promotion {
                version: "v2".to_owned(),
                from: "v1".to_owned(),
            })
            .await
            .expect("promoted");
        assert_eq!(rig.memory.land().await, Some(false), "{late}");
        check(&v1.table).await;
        let process = if late == "v1" { &mut v1 } else { &mut v2 };
        process.table.commit(&epoch).await.expect("a commit");
        process.took(&epoch);
        check(&v1.table).await;
        v1.go_on(1).await;
        v2.go_on(1).await;
        check(&v1.table).await;
    }
}

#[tokio::test]
async fn a_dropped_version_is_gone_and_its_process_is_refused() {
    let rig = Rig::new(11);
    let mut v1 = Process::of(&rig, "v1").await;
    let mut v2 = Process::of(&rig, "v2").await;
    v1.go_on(3).await;
    v2.go_on(4).await;
    let error = v1.table.drop_version("v1").await.expect_err("active");
    assert!(
        error.to_string().contains("promote another first"),
        "{error}"
    );
    let epoch = v2.epoch(1).await;
    rig.memory.inject(Call::Commit, Fault::LostAfter);
    assert!(
        v1.table
            .drop_version("v2")
            .await
            .expect("dropped")
            .is_some()
    );
    let state = v1.table.state().await.expect("a state");
    assert!(!state.refs.contains_key("v2") && !state.versions.contains_key("v2"));
    let error = v2.table.commit(&epoch).await.expect_err("dropped");
    assert_eq!(error.kind(), JobErrorKind::Fenced, "{error}");
    let error = v1.table.drop_version("v2").await.expect_err("gone");
    assert!(matches!(error, JobError::NoVersion { .. }), "{error}");
    // the name is free again, and begins from nothing
    let mut anew = Process::of(&rig, "v2").await;
    assert_eq!(anew.rows, 0);
    anew.go_on(2).await;
    check(&v1.table).await;
    // the version before a promotion can be dropped, and is not there to roll back to
    v1.table
        .promote(&Promotion {
            version: "v2".to_owned(),
            from: "v1".to_owned(),
        })
        .await
        .expect("promoted");
    v1.table.drop_version("v1").await.expect("dropped");
    let error = v1.table.rollback().await.expect_err("gone");
    assert_eq!(error.kind(), JobErrorKind::Invalid);
    let tagged = v1.table.state().await.expect("a state").refs["before-v2"].snapshot_id;
    assert_eq!(numbers(&v1.table, Some(tagged)).await, up_to(3));
}

#[tokio::test]
async fn a_later_version_may_add_a_column_and_nothing_else() {
    let rig = Rig::new(12);
    let mut v1 = Process::of(&rig, "v1").await;
    v1.go_on(3).await;
    let changed = Arc::new(Schema::new(vec![
        Field::new("user_id", DataType::Int64, false),
        columns().field(1).clone(),
        columns().field(2).clone(),
    ]));
    let refused = JobTableSpec {
        columns: changed,
        ..spec("v2")
    };
    let error = JobTable::open_or_create(rig.deps(), NAMESPACE, &refused)
        .await
        .expect_err("another type");
    assert!(
        error.to_string().contains("output = \"table\"") && error.to_string().contains("user_id"),
        "{error}"
    );
    let wider = JobTableSpec {
        columns: more_columns(),
        ..spec("v2")
    };
    rig.memory.inject(Call::Commit, Fault::LostAfter);
    let mut v2 = Process::start(rig.deps(), NAMESPACE, &wider).await;
    v2.go_on(4).await;
    // the first one goes on without the column, also after a restart
    let mut v1 = Process::of(&rig, "v1").await;
    v1.go_on(2).await;
    check(&v1.table).await;
    let state = v1.table.state().await.expect("a state");
    for (version, nulls) in [("v1", 5), ("v2", 0)] {
        let scan = v1
            .table
            .scan(
                state.versions[version].head,
                Some(&["purchases".to_owned()]),
            )
            .await
            .expect("a scan");
        let batches: Vec<RecordBatch> = scan.batches().try_collect().await.expect("rows");
        let found: usize = batches.iter().map(|b| b.column(0).null_count()).sum();
        assert_eq!(found, nulls, "{version}");
    }
    // other logic is another version
    let other = JobTableSpec {
        fingerprint: "changed".to_owned(),
        ..spec("v1")
    };
    let error = JobTable::open_or_create(rig.deps(), NAMESPACE, &other)
        .await
        .expect_err("other logic");
    assert!(matches!(error, JobError::Logic { .. }), "{error}");
}

#[tokio::test]
async fn tables_of_others_are_left_alone() {
    let rig = Rig::new(13);
    drop(
        Archive::open_or_create(rig.deps(), NAMESPACE, &topic(), &TableSettings::default())
            .await
            .expect("an archive"),
    );
    let on_archive = JobTableSpec {
        table: "orders".to_owned(),
        ..spec("v1")
    };
    let error = JobTable::open_or_create(rig.deps(), NAMESPACE, &on_archive)
        .await
        .expect_err("an archive");
    assert!(error.to_string().contains("topic orders"), "{error}");
    let v1 = Process::of(&rig, "v1").await;
    let other_job = JobTableSpec {
        job: "other".to_owned(),
        ..spec("v1")
    };
    let error = JobTable::open_or_create(rig.deps(), NAMESPACE, &other_job)
        .await
        .expect_err("another job's");
    assert!(error.to_string().contains("job sessions"), "{error}");
    let found = job_tables(&*rig.catalog, NAMESPACE).await.expect("a list");
    assert_eq!(
        found,
        BTreeMap::from([("sessions".to_owned(), JOB.to_owned())])
    );
    drop(v1);
}

#[tokio::test]
async fn somebody_elses_rows_on_main_stop_the_active_version_and_promote_sets_main_back() {
    let rig = Rig::new(14);
    let mut v1 = Process::of(&rig, "v1").await;
    v1.go_on(3).await;
    let first = v1
        .table
        .state()
        .await
        .expect("a state")
        .main
        .expect("a head");
    v1.go_on(3).await;
    let table = v1.table.state().await.expect("a state").table;
    rig.commit(&table, vec![], vec![set_main(first)]).await;
    let epoch = v1.epoch(1).await;
    let error = v1.table.commit(&epoch).await.expect_err("main was moved");
    assert_eq!(error.kind(), JobErrorKind::Fenced);
    assert!(error.to_string().contains("everlog promote"), "{error}");
    v1.table
        .promote(&Promotion {
            version: "v1".to_owned(),
            from: "v1".to_owned(),
        })
        .await
        .expect("set back");
    v1.table.commit(&epoch).await.expect("a commit");
    v1.took(&epoch);
    check(&v1.table).await;
}

/// What a compaction by another engine does to a branch: the same rows in another snapshot.
async fn replace(rig: &Rig, table: &JobTable, branch: &str, rows_lost: u64) -> i64 {
    let state = table.state().await.expect("a state");
    let metadata = &state.table.metadata;
    let head = state.refs[branch].snapshot_id;
    let old = metadata.snapshot_by_id(head).expect("a head");
    let total: u64 = old.summary().additional_properties["total-records"]
        .parse()
        .expect("a number");
    let id = old.snapshot_id() ^ 1;
    let snapshot = Snapshot::builder()
        .with_snapshot_id(id)
        .with_parent_snapshot_id(Some(head))
        .with_sequence_number(metadata.next_sequence_number())
        .with_timestamp_ms(rig.clock_now().max(metadata.last_updated_ms()))
        .with_manifest_list(old.manifest_list().to_owned())
        .with_summary(Summary {
            operation: Operation::Replace,
            additional_properties: [("total-records".to_owned(), (total - rows_lost).to_string())]
                .into(),
        })
        .with_schema_id(metadata.current_schema_id())
        .build();
    let reference = SnapshotReference::new(id, state.refs[branch].retention.clone());
    let updates = vec![
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef {
            ref_name: branch.to_owned(),
            reference,
        },
    ];
    rig.commit(&state.table, vec![], updates).await;
    id
}

#[tokio::test]
async fn a_compaction_of_main_or_of_a_branch_is_walked_past_if_no_row_is_lost() {
    let rig = Rig::new(15);
    let mut v1 = Process::of(&rig, "v1").await;
    let mut v2 = Process::of(&rig, "v2").await;
    v1.go_on(3).await;
    v2.go_on(3).await;
    for branch in [MAIN_BRANCH, "v1", "v2"] {
        replace(&rig, &v1.table, branch, 0).await;
        v1.go_on(2).await;
        v2.go_on(2).await;
        check(&v1.table).await;
    }
    replace(&rig, &v1.table, "v2", 1).await;
    let epoch = v2.epoch(1).await;
    let error = v2.table.commit(&epoch).await.expect_err("a row is lost");
    assert_eq!(error.kind(), JobErrorKind::Fenced, "{error}");
}

fn data_files(rig: &Rig) -> usize {
    let objects = rig.objects();
    objects.iter().filter(|o| o.ends_with(".parquet")).count()
}

#[tokio::test]
async fn maintenance_keeps_what_versions_and_tags_need_and_bounds_the_rest() {
    let rig = Rig::new(16);
    let mut v1 = Process::of(&rig, "v1").await;
    let mut v2 = Process::of(&rig, "v2").await;
    for _ in 0..40 {
        v1.go_on(1).await;
        v2.go_on(1).await;
        rig.clock.advance(Duration::from_mins(1));
    }
    v1.table
        .promote(&Promotion {
            version: "v2".to_owned(),
            from: "v1".to_owned(),
        })
        .await
        .expect("promoted");
    for _ in 0..40 {
        v1.go_on(1).await;
        v2.go_on(1).await;
        rig.clock.advance(Duration::from_mins(1));
    }
    replace(&rig, &v1.table, "v1", 0).await;
    rig.stamp_files();
    rig.clock.advance(HOUR * 48);
    let settings = MaintenanceSettings {
        expiry: ExpirySettings {
            count_min: 10,
            ..ExpirySettings::default()
        },
        ..MaintenanceSettings::default()
    };
    v1.table.maintain(&settings).await.expect("maintained");
    let state = v1.table.state().await.expect("a state");
    // ten of each branch, the tag, and what the replace stands on is among them
    assert_eq!(state.table.metadata.snapshots().len(), 21);
    rig.stamp_files();
    rig.clock.advance(HOUR * 2);
    let report = v1.table.maintain(&settings).await.expect("maintained");
    assert_eq!(report.held_back, None);
    check(&v1.table).await;
    let tagged = state.refs["before-v2"].snapshot_id;
    assert_eq!(numbers(&v1.table, Some(tagged)).await, up_to(40));
    v1.go_on(1).await;
    v2.go_on(1).await;
    // a dropped version's snapshots go, and then its files
    v2.table.drop_version("v1").await.expect("dropped");
    rig.stamp_files();
    rig.clock.advance(HOUR * 48);
    v2.go_on(1).await;
    rig.stamp_files();
    let before = data_files(&rig);
    let report = v2.table.maintain(&settings).await.expect("maintained");
    assert!(report.snapshots_expired > 10, "{report:?}");
    rig.stamp_files();
    rig.clock.advance(HOUR * 30);
    v2.go_on(1).await;
    rig.stamp_files();
    let fresh = Process::of(&rig, "v2").await;
    let report = fresh.table.maintain(&settings).await.expect("maintained");
    assert_eq!(report.held_back, None, "{report:?}");
    // of the first version, what the tag does not hold: 41 epochs after the 40 before it; the other one added a file
    assert_eq!(before + 1 - data_files(&rig), 41, "{report:?}");
    check(&v2.table).await;
    assert_eq!(numbers(&v2.table, Some(tagged)).await, up_to(40));
}

#[tokio::test]
async fn an_archive_keeps_the_branches_that_others_made_on_it() {
    // maintenance of an archive does not know of jobs, and must not drop a branch of theirs by chance
    let rig = Rig::new(17);
    let archive = rig.process().await;
    for _ in 0..30 {
        rig.append(&archive, &[(0, 1)]).await;
        rig.clock.advance(Duration::from_mins(1));
    }
    let head = rig
        .load()
        .await
        .metadata
        .current_snapshot_id()
        .expect("a head");
    let table = rig.load().await;
    let reference = SnapshotReference::new(
        head,
        SnapshotRetention::Branch {
            min_snapshots_to_keep: None,
            max_snapshot_age_ms: None,
            max_ref_age_ms: Some(1),
        },
    );
    let updates = vec![TableUpdate::SetSnapshotRef {
        ref_name: "audit".to_owned(),
        reference,
    }];
    rig.commit(&table, vec![], updates).await;
    for _ in 0..30 {
        rig.append(&archive, &[(0, 1)]).await;
    }
    rig.clock.advance(HOUR * 200);
    archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert!(rig.load().await.metadata.snapshot_by_id(head).is_some());
}

#[tokio::test]
async fn a_table_by_days_holds_the_same_rows() {
    let rig = Rig::new(18);
    let by_day = JobTableSpec {
        partitioning: JobPartitioning::By {
            column: "session_end".to_owned(),
            transform: Transform::Day,
        },
        ..spec("v1")
    };
    let mut v1 = Process::start(rig.deps(), NAMESPACE, &by_day).await;
    v1.go_on(100).await;
    v1.go_on(20).await;
    let state = v1.table.state().await.expect("a state");
    let scan = v1.table.scan(state.main, None).await.expect("a scan");
    assert!(scan.files() > 5, "{}", scan.files());
    // over all files, without reading one; times in microseconds
    let first = 1_700_000_000_000_000;
    assert_eq!(
        scan.bounds("session_end"),
        Some((first, first + 119 * 3_600_000_000))
    );
    assert_eq!(scan.bounds("views"), Some((0, 119)));
    assert_eq!(
        (scan.bounds("user_id"), scan.bounds("clicks")),
        (None, None)
    );
    let mut found = numbers(&v1.table, state.main).await;
    found.sort_unstable();
    assert_eq!(found, up_to(120));
}

fn sqlite(folder: &tempfile::TempDir, own: &[(&str, &str)]) -> Properties {
    let path = folder.path().display();
    with(
        properties(&[
            ("type", "sql"),
            ("uri", &format!("sqlite://{path}/catalog.db")),
            ("warehouse", &format!("file://{path}/warehouse")),
        ]),
        own,
    )
}

async fn deps_of(properties: &Properties) -> ArchiveDeps {
    let catalog: Arc<dyn Catalog> = connect(properties).await.expect("a catalog");
    ArchiveDeps {
        catalog,
        clock: Arc::new(SystemClock::default()),
        ids: Arc::new(RandomIds),
    }
}

/// Both versions commit, main is promoted and rolled back meanwhile, and nothing is lost or doubled.
async fn storm(properties: &Properties, namespace: &str) {
    let deps = deps_of(properties).await;
    let mut v1 = Process::start(deps, namespace, &spec("v1")).await;
    let mut v2 = Process::start(deps_of(properties).await, namespace, &spec("v2")).await;
    v1.go_on(5).await;
    v2.go_on(5).await;
    let operator = v1.table.clone();
    tokio::join!(
        async {
            for _ in 0..12 {
                v1.go_on(3).await;
            }
        },
        async {
            for _ in 0..12 {
                v2.go_on(2).await;
            }
        },
        async {
            for (version, from) in [("v2", "v1"), ("v1", "v2"), ("v2", "v1")] {
                let promotion = Promotion {
                    version: version.to_owned(),
                    from: from.to_owned(),
                };
                operator.promote(&promotion).await.expect("promoted");
                let state = operator.state().await.expect("a state");
                // readers see one version's rows and never a mixture
                let active = &state.versions[&state.active];
                let found = numbers(&operator, state.main).await;
                assert_eq!(
                    found.len() as u64,
                    active.marker.as_ref().expect("one").rows
                );
            }
        }
    );
    check(&v1.table).await;
    let state = v1.table.state().await.expect("a state");
    assert_eq!(state.active, "v2");
    assert_eq!(state.versions["v1"].marker.as_ref().expect("one").rows, 41);
    assert_eq!(state.versions["v2"].marker.as_ref().expect("one").rows, 29);
    let report = v1
        .table
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert_eq!(report.files_deleted, 0, "all of it is young");
    check(&v1.table).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_versions_commit_and_main_moves_at_the_same_time() {
    let folder = tempfile::tempdir().expect("a folder");
    storm(&sqlite(&folder, &[]), NAMESPACE).await;
    assert_eq!(ident().name(), "sessions");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_rest_and_s3_versions_commit_main_moves_and_replies_are_lost() {
    let (service, reach) = s3();
    let server = Service::start(
        "catalog.sh",
        &[
            "s3://warehouse/lake",
            &format!("s3.endpoint=http://127.0.0.1:{}", service.port),
            "s3.access-key-id=testkey",
            "s3.secret-access-key=testsecret",
            "s3.path-style-access=true",
        ],
    );
    let properties = with(reach, &[("type", "rest"), ("uri", &server.said)]);
    storm(&properties, NAMESPACE).await;
    let mut v1 = Process::start(deps_of(&properties).await, NAMESPACE, &spec("v1")).await;
    let mut v2 = Process::start(deps_of(&properties).await, NAMESPACE, &spec("v2")).await;
    for fault in [
        "mode=after&status=503",
        "mode=after&status=500",
        "mode=before&status=503",
        "mode=before&status=429",
        "mode=conflict",
        "mode=drop",
        "mode=drop-before",
    ] {
        server.run("fault", &[fault]);
        v1.go_on(2).await;
        server.run("fault", &[fault]);
        v2.go_on(1).await;
        server.run("fault", &[fault]);
        let moved = v1.table.rollback().await.expect(fault);
        assert!(moved.tag.is_some(), "{fault}");
        check(&v1.table).await;
    }
}

/// What Iceberg's own Python reader sees: both branches by name, main, and main as of before the promotion.
const READ: &str = r#"
import sys, datetime
from pyiceberg.catalog import load_catalog
uri, warehouse, at = sys.argv[1:4]
catalog = load_catalog("everlog", type="sql", uri=uri, warehouse=warehouse)
table = catalog.load_table("everlog.sessions")
def rows(scan): return sorted(scan.to_arrow().column("views").to_pylist())
for branch in ("main", "v1", "v2", "before-v2"):
    print(branch, len(rows(table.scan().use_ref(branch))))
then = table.snapshot_as_of_timestamp(int(at))
print("then", len(rows(table.scan(snapshot_id=then.snapshot_id))))
print("pruned", len(table.scan(row_filter="views >= 1000").to_arrow()))
print("late", len(list(table.scan(row_filter="user_id = 'user 3'").plan_files())) > 0)

# DuckDB: what a plain read shows, and one that names main's snapshot
import duckdb, pathlib
from importlib.util import find_spec
c = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
for name in ("httpfs", "avro", "iceberg"):
    base = pathlib.Path(find_spec(f"duckdb_extension_{name}").origin).parent
    c.execute(f"LOAD '{next(base.rglob('*.duckdb_extension'))}'")
place = table.metadata_location.removeprefix("file://")
main = table.metadata.current_snapshot_id
count = lambda source: c.execute(f"SELECT count(*) FROM {source}").fetchone()[0]
print("duckdb", duckdb.__version__, count(f"iceberg_scan('{place}')"), count(f"iceberg_scan('{place}', snapshot_from_id => {main})"))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn pyiceberg_reads_branches_and_travels_in_time_across_a_promotion() {
    let folder = tempfile::tempdir().expect("a folder");
    let properties = sqlite(&folder, &[("name", "everlog")]);
    let mut v1 = Process::start(deps_of(&properties).await, NAMESPACE, &spec("v1")).await;
    let mut v2 = Process::start(
        deps_of(&properties).await,
        NAMESPACE,
        &JobTableSpec {
            columns: more_columns(),
            ..spec("v2")
        },
    )
    .await;
    v1.go_on(7).await;
    v2.go_on(4).await;
    v2.go_on(5).await;
    let state = v1.table.state().await.expect("a state");
    let then = state.versions["v1"].head_time.expect("a time").0;
    tokio::time::sleep(Duration::from_millis(20)).await;
    v1.table
        .promote(&Promotion {
            version: "v2".to_owned(),
            from: "v1".to_owned(),
        })
        .await
        .expect("promoted");
    v2.go_on(3).await;
    // the newest snapshot is not main's
    v1.go_on(1).await;
    let path = folder.path().display();
    let output = python(
        READ,
        &[
            &format!("sqlite:///{path}/catalog.db"),
            &format!("file://{path}/warehouse"),
            &then.to_string(),
        ],
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "main 12",
            "v1 8",
            "v2 12",
            "before-v2 7",
            "then 7",
            "pruned 0",
            "late True",
            "duckdb 1.5.5 12 12"
        ]
    );
}

/// Versions that commit, restart, are promoted, rolled back and dropped, over a catalog that loses replies and carries requests
/// out late: at every moment each branch holds its version's rows once and in order, and main is the active version's.
#[tokio::test]
async fn whatever_happens_every_branch_is_a_sequence_and_main_is_the_active_ones() {
    let (mut commits, mut moves) = (0, 0);
    for seed in 0..6 {
        let (some, others) = random_history(1_000 + seed).await;
        (commits, moves) = (commits + some, moves + others);
    }
    assert!(commits > 100 && moves > 15, "{commits} {moves}");
}

async fn random_history(seed: u64) -> (u32, u32) {
    use everlog_common::Ids;
    use everlog_common::clock::SeededIds;
    let rig = Rig::new(seed);
    let dice = SeededIds::new(seed ^ 0xd1ce);
    let names = ["v1", "v2", "v3"];
    let mut processes: BTreeMap<&str, (Process, Option<CommitEpoch>)> = BTreeMap::new();
    processes.insert("v1", (Process::of(&rig, "v1").await, None));
    let (mut commits, mut moves) = (0, 0);
    for step in 0..70 {
        let name = names[usize::try_from(dice.below(3)).expect("small")];
        if dice.below(3) == 0 {
            let fault = [
                Fault::LostAfter,
                Fault::LostBefore,
                Fault::Late,
                Fault::Conflict,
                Fault::Unavailable,
            ][usize::try_from(dice.below(5)).expect("small")];
            rig.memory.inject(Call::Commit, fault);
        }
        if dice.below(4) == 0 {
            rig.memory.land().await;
        }
        match dice.below(12) {
            0 => {
                // killed, and started anew
                processes.remove(name);
            }
            1 => {
                let table = &processes.values().next().expect("one").0.table;
                let from = table.state().await.expect("a state").active;
                let promotion = Promotion {
                    version: name.to_owned(),
                    from,
                };
                match table.promote(&promotion).await {
                    Ok(_) => moves += 1,
                    Err(error) => assert_eq!(error.kind(), JobErrorKind::Invalid, "{error}"),
                }
            }
            2 => {
                let table = &processes.values().next().expect("one").0.table;
                match table.rollback().await {
                    Ok(_) => moves += 1,
                    Err(error) => assert_eq!(error.kind(), JobErrorKind::Invalid, "{error}"),
                }
            }
            3 if name != "v1" => {
                let table = processes.values().next().expect("one").0.table.clone();
                match table.drop_version(name).await {
                    Ok(_) => drop(processes.remove(name)),
                    Err(error) => assert_eq!(error.kind(), JobErrorKind::Invalid, "{error}"),
                }
            }
            _ => {
                if !processes.contains_key(name) {
                    processes.insert(name, (Process::of(&rig, name).await, None));
                }
                let (process, open) = processes.get_mut(name).expect("it runs");
                let epoch = match open.take() {
                    Some(epoch) => epoch,
                    None => process.epoch(dice.below(4)).await,
                };
                match process.table.commit(&epoch).await {
                    Ok(_) => {
                        commits += 1;
                        process.took(&epoch);
                    }
                    // the end of a version may come late, too
                    Err(error) if error.to_string().contains("was dropped") => {
                        processes.remove(name);
                    }
                    Err(error) => {
                        assert!(error.is_transient(), "seed {seed} step {step}: {error}");
                        *open = Some(epoch);
                    }
                }
            }
        }
        if processes.is_empty() {
            processes.insert("v1", (Process::of(&rig, "v1").await, None));
        }
        let table = &processes.values().next().expect("one").0.table;
        check(table).await;
    }
    rig.memory.clear_faults();
    while rig.memory.land().await.is_some() {}
    let mut last = Process::of(&rig, "v1").await;
    last.go_on(1).await;
    check(&last.table).await;
    (commits, moves)
}

/// Rows of every kind of column, in the last of which values that bounds get wrong easily: negative decimals, long strings, NaN.
fn all_kinds() -> RecordBatch {
    use arrow_array::builder::{ListBuilder, StringBuilder};
    use arrow_array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array,
        StringViewArray, StructArray, TimestampMicrosecondArray, UInt64Array,
    };
    let long = "z".repeat(40);
    let mut lists = ListBuilder::new(StringBuilder::new());
    lists.append_value([Some("a"), None]);
    lists.append_null();
    lists.append_value([Some("b")]);
    let inner: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        (
            "flag",
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
        ),
        (
            "amount",
            Arc::new(
                Decimal128Array::from(vec![Some(-150), Some(7), None])
                    .with_precision_and_scale(12, 2)
                    .expect("a decimal"),
            ),
        ),
        (
            "large",
            Arc::new(
                Decimal128Array::from(vec![Some(-(10_i128.pow(30))), Some(10_i128.pow(30)), None])
                    .with_precision_and_scale(38, 4)
                    .expect("a decimal"),
            ),
        ),
        (
            "ratio",
            Arc::new(Float64Array::from(vec![f64::NAN, -0.5, 2.5])),
        ),
        (
            "day",
            Arc::new(Date32Array::from(vec![Some(-1), Some(19_782), None])),
        ),
        (
            "at",
            Arc::new(TimestampMicrosecondArray::from(vec![-1, 0, 1]).with_timezone("+00:00")),
        ),
        (
            "name",
            Arc::new(StringViewArray::from_iter_values([
                "",
                "\u{e9}t\u{e9}",
                long.as_str(),
            ])),
        ),
        (
            "raw",
            Arc::new(BinaryArray::from_iter_values([
                b"\x00".as_slice(),
                b"",
                b"\xff",
            ])),
        ),
        ("count", Arc::new(UInt64Array::from(vec![0, 5, u64::MAX]))),
        ("list", Arc::new(lists.finish())),
        (
            "pair",
            Arc::new(StructArray::from(vec![(
                Arc::new(Field::new("n", DataType::Int64, true)),
                inner,
            )])),
        ),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("rows")
}

const FILTERS: &str = r#"
import sys
from pyiceberg.catalog import load_catalog
uri, warehouse = sys.argv[1:3]
table = load_catalog("everlog", type="sql", uri=uri, warehouse=warehouse).load_table("everlog.sessions")
from decimal import Decimal
from pyiceberg.expressions import EqualTo, LessThan, GreaterThan, LessThanOrEqual
# pyiceberg takes a decimal only with its column's scale
for filter in (
    EqualTo("amount", Decimal("-1.50")), GreaterThan("amount", Decimal("0.07")), LessThan("large", Decimal("0.0000")),
    GreaterThan("ratio", 2.0), "day = '1969-12-31'", "at >= '1970-01-01T00:00:00.000001+00:00'",
    EqualTo("name", "z" * 40), EqualTo("name", ""), EqualTo("count", Decimal(2**64 - 1)), "flag = false",
):
    print(len(table.scan(row_filter=filter).to_arrow()), end=" ")
rows = table.scan(selected_fields=("name", "list", "pair")).to_arrow().to_pylist()
rows.sort(key=lambda row: row["name"])
print([(row["list"], row["pair"]) for row in rows])
for task in table.scan(row_filter=GreaterThan("amount", Decimal("1.00"))).plan_files():
    print("not pruned")
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_column_is_read_back_and_pruned_rightly() {
    let folder = tempfile::tempdir().expect("a folder");
    let properties = sqlite(&folder, &[("name", "everlog")]);
    let rows = all_kinds();
    let kinds = JobTableSpec {
        columns: rows.schema(),
        ..spec("v1")
    };
    let process = Process::start(deps_of(&properties).await, NAMESPACE, &kinds).await;
    let state = process.table.state().await.expect("a state");
    let request = JobRows {
        table: &state.table,
        rows: &rows,
    };
    let files = process.table.write(request).await.expect("files");
    let mut epoch = process.epoch_of(3);
    epoch.files = files;
    process.table.commit(&epoch).await.expect("a commit");
    let state = process.table.state().await.expect("a state");
    let scan = process.table.scan(state.main, None).await.expect("a scan");
    let batches: Vec<RecordBatch> = scan.batches().try_collect().await.expect("rows");
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    assert_eq!(batches[0].num_columns(), rows.num_columns());
    let path = folder.path().display();
    let output = python(
        FILTERS,
        &[
            &format!("sqlite:///{path}/catalog.db"),
            &format!("file://{path}/warehouse"),
        ],
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        said.trim(),
        "1 0 1 1 1 1 1 1 1 1 [(['a', None], {'n': 1}), (['b'], {'n': 3}), (None, {'n': None})]",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
