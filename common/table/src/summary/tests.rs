use std::collections::BTreeMap;

use everlog_common::{Entry, Generation, Ledger, Offset, Partition, ledger::GenerationLedger};
use iceberg::spec::{
    FormatVersion, MAIN_BRANCH, Operation, PartitionSpec, Snapshot, SnapshotReference,
    SnapshotRetention, SortOrder, Summary, TableMetadata, TableMetadataBuilder,
};
use proptest::prelude::*;

use super::*;

/// A table's metadata, and what is done to it by whom.
pub(crate) struct Table {
    pub(crate) metadata: TableMetadata,
    next_id: i64,
}

fn ledger(rows: u64) -> Ledger {
    let entry = Entry {
        first: Offset::ZERO,
        next: Offset::new(i64::try_from(rows).expect("few")).expect("an offset"),
        leader_epoch: None,
        rows,
        hash: rows,
    };
    let era = GenerationLedger {
        partitions: [(Partition::new(0).expect("a partition"), entry)].into(),
        ..GenerationLedger::default()
    };
    Ledger {
        generations: [(Generation::FIRST, era)].into(),
        gaps: Vec::new(),
    }
}

impl Table {
    pub(crate) fn new() -> Self {
        let built = TableMetadataBuilder::new(
            crate::schema::table_schema().expect("a schema"),
            PartitionSpec::unpartition_spec().into_unbound(),
            SortOrder::unsorted_order(),
            "s3://lake/t".to_owned(),
            FormatVersion::V2,
            HashMap::new(),
        )
        .and_then(TableMetadataBuilder::build)
        .expect("metadata");
        Self {
            metadata: built.metadata,
            next_id: 100,
        }
    }

    pub(crate) fn change(
        &mut self,
        f: impl FnOnce(TableMetadataBuilder) -> iceberg::Result<TableMetadataBuilder>,
    ) {
        let builder = self.metadata.clone().into_builder(None);
        let built = f(builder)
            .and_then(TableMetadataBuilder::build)
            .expect("a change");
        self.metadata = built.metadata;
    }

    pub(crate) fn head(&self) -> Option<i64> {
        self.metadata.current_snapshot_id()
    }

    fn rows(&self) -> u64 {
        self.metadata
            .current_snapshot()
            .and_then(|s| {
                s.summary()
                    .additional_properties
                    .get("rows-in-truth")?
                    .parse()
                    .ok()
            })
            .unwrap_or(0)
    }

    pub(crate) fn add(&mut self, operation: Operation, rows: u64, ours: bool, tells: bool) -> i64 {
        self.next_id += 1;
        let id = self.next_id;
        let mut properties: HashMap<String, String> =
            [("rows-in-truth".to_owned(), rows.to_string())].into();
        if tells {
            properties.insert("total-records".to_owned(), rows.to_string());
        }
        let text = ledger(rows).encode();
        if ours {
            properties.extend(summary_entries(
                &text,
                Uuid::from_u128(id.unsigned_abs().into()),
                None,
            ));
        }
        let snapshot = Snapshot::builder()
            .with_snapshot_id(id)
            .with_parent_snapshot_id(self.head())
            .with_sequence_number(self.metadata.next_sequence_number())
            .with_timestamp_ms(self.metadata.last_updated_ms() + 1)
            .with_manifest_list(format!("s3://lake/t/metadata/{id}.avro"))
            .with_summary(Summary {
                operation,
                additional_properties: properties,
            })
            .with_schema_id(0)
            .build();
        self.change(|b| {
            let b = b
                .add_snapshot(snapshot)?
                .set_ref(MAIN_BRANCH, main_at(id))?;
            if ours {
                b.set_properties(property_entries(&text, id))
            } else {
                Ok(b)
            }
        });
        id
    }

    pub(crate) fn append(&mut self, rows: u64) -> i64 {
        self.add(Operation::Append, self.rows() + rows, true, true)
    }

    fn find(&self) -> Result<Found, LedgerProblem> {
        let counted: BTreeMap<i64, u64> = self
            .metadata
            .snapshots()
            .filter_map(|s| {
                let rows = s.summary().additional_properties.get("rows-in-truth")?;
                Some((s.snapshot_id(), rows.parse().ok()?))
            })
            .collect();
        find_ledger(&self.metadata, None, &counted)
    }
}

fn main_at(snapshot_id: i64) -> SnapshotReference {
    SnapshotReference::new(
        snapshot_id,
        SnapshotRetention::Branch {
            min_snapshots_to_keep: None,
            max_snapshot_age_ms: None,
            max_ref_age_ms: None,
        },
    )
}

fn is_foreign(result: &Result<Found, LedgerProblem>) -> bool {
    matches!(result, Err(LedgerProblem::ForeignChange { .. }))
}

#[test]
fn a_fresh_table_has_an_empty_ledger() {
    let found = Table::new().find().expect("a ledger");
    assert_eq!(found, Found::default());
}

#[test]
fn a_main_without_snapshots_that_had_a_ledger_was_rolled_back() {
    let mut table = Table::new();
    table.append(5);
    table.change(|b| Ok(b.remove_ref(MAIN_BRANCH)));
    assert!(is_foreign(&table.find()));
}

#[test]
fn rows_are_asked_for_only_where_a_snapshot_does_not_tell() {
    let mut table = Table::new();
    table.append(5);
    let id = table.add(Operation::Replace, 5, false, false);
    let asked = find_ledger(&table.metadata, None, &BTreeMap::new());
    assert!(matches!(asked, Err(LedgerProblem::RowsUnknown { snapshot_id }) if snapshot_id == id));
    let found = find_ledger(&table.metadata, None, &[(id, 5)].into()).expect("a ledger");
    assert_eq!(
        (found.snapshot_id, found.written_by),
        (Some(id), Some(id - 1))
    );
    assert!(is_foreign(&find_ledger(
        &table.metadata,
        None,
        &[(id, 4)].into()
    )));
}

#[test]
fn a_parent_that_goes_in_a_circle_ends() {
    let mut table = Table::new();
    let first = table.append(5);
    assert_eq!(ancestry(&table.metadata, Some(first)).count(), 1);
    assert_eq!(ancestry(&table.metadata, Some(-1)).count(), 0);
    assert_eq!(ancestry(&table.metadata, None).count(), 0);
}

#[test]
fn a_newer_version_of_the_format_is_refused_with_its_number() {
    let mut table = Table::new();
    let id = table.append(5);
    let newer = ledger(5).encode().replace("\"v\":1", "\"v\":9");
    table.change(|b| b.set_properties(property_entries(&newer, id)));
    let problem = table.find().expect_err("unreadable");
    assert!(
        matches!(problem, LedgerProblem::Unreadable { .. }),
        "{problem}"
    );
}

/// What happens to a table.
#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    /// Another engine compacts; with or without a row count.
    Replace(bool),
    /// Snapshots of main before the newest so many expire.
    ExpireAllBut(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u64..20).prop_map(Step::Append),
        2 => any::<bool>().prop_map(Step::Replace),
        1 => (1_usize..4).prop_map(Step::ExpireAllBut),
    ]
}

fn take(table: &mut Table, step: &Step) {
    match step {
        Step::Append(rows) => {
            table.append(*rows);
        }
        Step::Replace(tells) if table.head().is_some() => {
            table.add(Operation::Replace, table.rows(), false, *tells);
        }
        Step::Replace(_) => {}
        Step::ExpireAllBut(count) => {
            let old: Vec<i64> = ancestry(&table.metadata, table.head())
                .skip(*count)
                .map(|s| s.snapshot_id())
                .collect();
            table.change(|b| Ok(b.remove_snapshots(&old)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// S1: as long as nobody changes rows, the ledger is found, and is the newest.
    #[test]
    fn the_newest_ledger_is_found_through_replaces_and_expiry(
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let mut table = Table::new();
        for step in &steps {
            take(&mut table, step);
            let found = table.find().expect("a ledger");
            prop_assert_eq!(found.ledger.rows(), table.rows());
            prop_assert_eq!(found.snapshot_id, table.head());
        }
    }

    /// A foreign change is noticed whatever came before it, and whatever other engines do after it.
    #[test]
    fn a_foreign_change_is_noticed(
        before in prop::collection::vec(step(), 0..12),
        operation in prop_oneof![
            Just(Operation::Append), Just(Operation::Overwrite), Just(Operation::Delete)
        ],
        rows in 0_u64..50,
        replaces in 0_usize..3,
    ) {
        let mut table = Table::new();
        table.append(3);
        for step in &before {
            take(&mut table, step);
        }
        let id = table.add(operation, rows, false, true);
        for _ in 0..replaces {
            table.add(Operation::Replace, rows, false, true);
        }
        let problem = table.find();
        prop_assert!(is_foreign(&problem), "{:?}", problem);
        if let Err(LedgerProblem::ForeignChange { snapshot_id, .. }) = problem {
            prop_assert!(snapshot_id.is_some_and(|found| found >= id));
        }
    }

    /// S3: main moved to any older snapshot is a rollback; moved back, all is well.
    #[test]
    fn a_rollback_is_noticed_and_undone(
        steps in prop::collection::vec((1_u64..20).prop_map(Step::Append), 2..10),
        back in 1_usize..9,
    ) {
        let mut table = Table::new();
        for step in &steps {
            take(&mut table, step);
        }
        let head = table.head().expect("a head");
        let history: Vec<i64> =
            ancestry(&table.metadata, Some(head)).map(|s| s.snapshot_id()).collect();
        let target = history[back.min(history.len() - 1)];
        table.change(|b| b.set_ref(MAIN_BRANCH, main_at(target)));
        prop_assert!(is_foreign(&table.find()));
        let old = ledger_of_history(&table.metadata, target).expect("its own ledger");
        prop_assert_eq!(old.ledger.rows(), table.rows());
        table.change(|b| b.set_ref(MAIN_BRANCH, main_at(head)));
        prop_assert_eq!(table.find().expect("a ledger").ledger.rows(), table.rows());
    }

    /// A snapshot of history has its own ledger, whatever came later.
    #[test]
    fn every_snapshot_of_history_keeps_its_ledger(
        steps in prop::collection::vec(step(), 1..16),
    ) {
        let mut table = Table::new();
        let mut truth: BTreeMap<i64, u64> = BTreeMap::new();
        for step in &steps {
            take(&mut table, step);
            if let Some(head) = table.head() {
                truth.insert(head, table.rows());
            }
        }
        for snapshot in table.metadata.snapshots() {
            let id = snapshot.snapshot_id();
            match find_ledger(&table.metadata, Some(id), &truth) {
                Ok(found) => prop_assert_eq!(Some(&found.ledger.rows()), truth.get(&id)),
                Err(LedgerProblem::NoLedger { .. }) => {
                    prop_assert!(ledger_text(snapshot).is_none());
                }
                Err(problem) => prop_assert!(false, "{}", problem),
            }
        }
    }
}
