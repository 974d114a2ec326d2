//! Where a table keeps its ledger, and how it is found again when others write to the table too.
//!
//! One commit writes the ledger twice, into the snapshot's summary and into the table's properties:
//!
//! | key | in | holds |
//! |---|---|---|
//! | `everlog.ledger` | summary, property | [`Ledger::encode`], see docs/table-format.md |
//! | `everlog.ledger.snapshot-id` | property | the snapshot that carries the same ledger in its summary |
//! | `everlog.commit-id` | summary | which commit made the snapshot: how a writer recognises its own after a lost reply |
//! | `everlog.accepted-snapshot-id` | summary | which foreign snapshot an operator accepted with this commit |
//! | `everlog.version` | summary | version of these keys, `1` |
//! | `everlog.isolation` | property, copied to the summary | whose records were archived: `read_committed` or `read_uncommitted` |
//!
//! The summary belongs to the snapshot and is right for time travel; the property survives the expiry of snapshots, and
//! other engines' commits, which write no summary of ours. [`find_ledger`] believes both only where they agree.
//!
//! Invariants
//! - S1 The ledger found for the head of main counts exactly the head's rows, or there is no ledger but a problem.
//! - S2 Only `replace` snapshots without a ledger are walked past, each with an unchanged row count.
//! - S3 A property whose snapshot is not on main is a rolled-back main, never a newer ledger.

use std::collections::{BTreeMap, HashMap};

use everlog_common::ledger::LedgerFormatError;
use everlog_common::{Ledger, Millis};
use iceberg::spec::{Operation, SnapshotRef, TableMetadata};
use uuid::Uuid;

/// The ledger, in a snapshot's summary and among the table's properties.
pub const LEDGER: &str = crate::schema::PROPERTY_LEDGER;
/// Property: the snapshot whose summary holds the same ledger as the property.
pub const LEDGER_SNAPSHOT_ID: &str = "everlog.ledger.snapshot-id";
/// Summary: the commit that made the snapshot.
pub const COMMIT_ID: &str = "everlog.commit-id";
/// Summary: version of the keys.
pub const VERSION: &str = "everlog.version";
/// Property and summary: the isolation under which the archive is written.
pub const ISOLATION: &str = "everlog.isolation";
/// Summary: the foreign snapshot that an operator accepted with this commit.
pub const ACCEPTED: &str = "everlog.accepted-snapshot-id";
/// The version that this code writes.
pub const CURRENT_VERSION: &str = "1";

/// A ledger, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The ledger; empty for a table that nothing was archived to yet.
    pub ledger: Ledger,
    /// The snapshot it is true for; none for a table without one.
    pub snapshot_id: Option<i64>,
    /// The snapshot that wrote it: `snapshot_id`, or an ancestor that only `replace` snapshots follow.
    pub written_by: Option<i64>,
}

/// Why a table's state has no ledger that can be believed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerProblem {
    /// Somebody else changed the table's rows or its history.
    #[error("{what}")]
    ForeignChange {
        /// The snapshot that is not ours; none where main has no snapshot at all.
        snapshot_id: Option<i64>,
        /// Its operation, or `rollback`.
        operation: String,
        /// What happened.
        what: String,
    },
    /// A stored ledger cannot be read.
    #[error("{place}: unreadable ledger")]
    Unreadable {
        /// Snapshot or property.
        place: String,
        /// Why.
        #[source]
        source: LedgerFormatError,
    },
    /// What one commit wrote twice differs.
    #[error(
        "the ledger in the summary of snapshot {snapshot_id} and the table property {LEDGER} differ"
    )]
    Disagreement {
        /// The snapshot.
        snapshot_id: i64,
    },
    /// The snapshot's summary has no row count: count the rows of its manifests and ask again.
    #[error("snapshot {snapshot_id} does not tell its row count")]
    RowsUnknown {
        /// The snapshot.
        snapshot_id: i64,
    },
    /// The table has no such snapshot (any more).
    #[error("snapshot {snapshot_id} is not in the table")]
    NoSuchSnapshot {
        /// The snapshot.
        snapshot_id: i64,
    },
    /// Neither the snapshot nor an ancestor that is still there has a ledger.
    #[error("snapshot {snapshot_id} has no ledger, and the snapshots before it have expired")]
    NoLedger {
        /// The snapshot.
        snapshot_id: i64,
    },
}

/// Finds the ledger that is true for a snapshot of this very metadata: the head of main where `at` is none.
///
/// `counted` has the row counts that the caller took from manifests, after [`LedgerProblem::RowsUnknown`].
pub fn find_ledger(
    metadata: &TableMetadata,
    at: Option<i64>,
    counted: &BTreeMap<i64, u64>,
) -> Result<Found, LedgerProblem> {
    let head = metadata.current_snapshot_id();
    match at {
        Some(id) if Some(id) != head => of_history(metadata, id, counted),
        _ => of_main(metadata, counted),
    }
}

/// The ledger that a snapshot's own history tells, whatever main and the table's property say.
pub fn ledger_of_history(metadata: &TableMetadata, at: i64) -> Result<Found, LedgerProblem> {
    of_history(metadata, at, &BTreeMap::new())
}

/// The snapshots from `from` to the oldest ancestor that is still there, newest first.
pub fn ancestry(metadata: &TableMetadata, from: Option<i64>) -> impl Iterator<Item = &SnapshotRef> {
    // The bound holds even if the parents of corrupt metadata go in a circle.
    let bound = metadata.snapshots().len();
    std::iter::successors(
        from.and_then(|id| metadata.snapshot_by_id(id)),
        move |snapshot| metadata.snapshot_by_id(snapshot.parent_snapshot_id()?),
    )
    .take(bound)
}

/// What the table held at a time: the snapshot that was made current last by then, whatever came of it later. That is what
/// other engines give too: a job's version that takes over brings its own history with it, and a rollback takes some away, but
/// neither changes what was seen before. Metadata without a log has its ancestry to go by. None: the log does not go
/// back so far.
pub fn snapshot_as_of(metadata: &TableMetadata, time: Millis) -> Option<&SnapshotRef> {
    let log = metadata.history();
    if log.is_empty() {
        return ancestry(metadata, metadata.current_snapshot_id())
            .find(|snapshot| snapshot.timestamp_ms() <= time.0);
    }
    // clocks differ: entries are in the order of what happened, their times need not be
    let entry = log
        .iter()
        .rev()
        .find(|entry| entry.timestamp_ms <= time.0)?;
    metadata.snapshot_by_id(entry.snapshot_id)
}

/// From when on [`snapshot_as_of`] knows what the table held, and what it was then; none: there are no snapshots.
pub fn oldest_as_of(metadata: &TableMetadata) -> Option<(Millis, i64)> {
    let log = metadata.history().iter();
    if let Some(entry) = log.min_by_key(|entry| entry.timestamp_ms) {
        return Some((Millis(entry.timestamp_ms), entry.snapshot_id));
    }
    let oldest = ancestry(metadata, metadata.current_snapshot_id()).last()?;
    Some((Millis(oldest.timestamp_ms()), oldest.snapshot_id()))
}

/// The snapshot on main that this commit made, if it did.
pub fn find_commit(metadata: &TableMetadata, commit_id: Uuid) -> Option<i64> {
    let id = commit_id.to_string();
    ancestry(metadata, metadata.current_snapshot_id())
        .find(|s| s.summary().additional_properties.get(COMMIT_ID) == Some(&id))
        .map(|s| s.snapshot_id())
}

/// A number in a snapshot's summary, for instance `total-records`.
pub fn summary_number(snapshot: &SnapshotRef, key: &str) -> Option<u64> {
    let text = snapshot.summary().additional_properties.get(key)?;
    text.parse().ok()
}

/// What a commit writes into its snapshot's summary besides Iceberg's own counts.
pub fn summary_entries(
    ledger: &str,
    commit_id: Uuid,
    isolation: Option<&String>,
) -> HashMap<String, String> {
    let mut entries = HashMap::from([
        (LEDGER.to_owned(), ledger.to_owned()),
        (COMMIT_ID.to_owned(), commit_id.to_string()),
        (VERSION.to_owned(), CURRENT_VERSION.to_owned()),
        ("engine-name".to_owned(), "everlog".to_owned()),
        (
            "engine-version".to_owned(),
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
    ]);
    if let Some(isolation) = isolation {
        entries.insert(ISOLATION.to_owned(), isolation.clone());
    }
    entries
}

/// What the same commit writes into the table's properties.
pub fn property_entries(ledger: &str, snapshot_id: i64) -> HashMap<String, String> {
    HashMap::from([
        (LEDGER.to_owned(), ledger.to_owned()),
        (LEDGER_SNAPSHOT_ID.to_owned(), snapshot_id.to_string()),
    ])
}

/// The property as it stands.
struct Property<'a> {
    text: &'a str,
    snapshot_id: i64,
}

impl<'a> Property<'a> {
    fn of(metadata: &'a TableMetadata) -> Result<Option<Self>, LedgerProblem> {
        let properties = metadata.properties();
        let broken = |what: &str| LedgerProblem::Unreadable {
            place: format!("table property {LEDGER_SNAPSHOT_ID}"),
            source: LedgerFormatError::Invalid(what.to_owned()),
        };
        match (properties.get(LEDGER), properties.get(LEDGER_SNAPSHOT_ID)) {
            (None, None) => Ok(None),
            (Some(text), Some(id)) => Ok(Some(Self {
                text,
                snapshot_id: id.parse().map_err(|_| broken("not a snapshot id"))?,
            })),
            (Some(_), None) => Err(broken("missing, though there is a ledger")),
            (None, Some(_)) => Err(broken("there, though there is no ledger")),
        }
    }

    fn decode(&self) -> Result<Ledger, LedgerProblem> {
        decode(self.text, || format!("table property {LEDGER}"))
    }
}

fn decode(text: &str, place: impl Fn() -> String) -> Result<Ledger, LedgerProblem> {
    Ledger::decode(text).map_err(|source| LedgerProblem::Unreadable {
        place: place(),
        source,
    })
}

fn ledger_text(snapshot: &SnapshotRef) -> Option<&str> {
    let text = snapshot.summary().additional_properties.get(LEDGER)?;
    Some(text)
}

fn of_main(metadata: &TableMetadata, counted: &BTreeMap<i64, u64>) -> Result<Found, LedgerProblem> {
    let property = Property::of(metadata)?;
    let Some(head) = metadata.current_snapshot() else {
        return match property {
            None => Ok(Found::default()),
            Some(property) => Err(LedgerProblem::ForeignChange {
                snapshot_id: None,
                operation: "rollback".to_owned(),
                what: format!(
                    "main has no snapshot, but the ledger was written with snapshot {}",
                    property.snapshot_id
                ),
            }),
        };
    };
    let mut walked: Vec<&SnapshotRef> = Vec::new();
    for snapshot in ancestry(metadata, Some(head.snapshot_id())) {
        let id = snapshot.snapshot_id();
        let Some(text) = ledger_text(snapshot) else {
            only_replaced(snapshot)?;
            walked.push(snapshot);
            let parent_expired = snapshot
                .parent_snapshot_id()
                .is_some_and(|parent| metadata.snapshot_by_id(parent).is_none());
            if parent_expired {
                break;
            }
            continue;
        };
        let Some(property) = &property else {
            return Err(LedgerProblem::ForeignChange {
                snapshot_id: Some(id),
                operation: snapshot.summary().operation.as_str().to_owned(),
                what: format!(
                    "snapshot {id} has a ledger, but the table property {LEDGER} is gone"
                ),
            });
        };
        if property.snapshot_id != id {
            return Err(rolled_back(metadata, property.snapshot_id, id));
        }
        let ledger = decode(text, || format!("snapshot {id}"))?;
        if property.text != text && property.decode()? != ledger {
            return Err(LedgerProblem::Disagreement { snapshot_id: id });
        }
        rows_unchanged(&walked, &ledger, counted)?;
        own_rows(snapshot, &ledger)?;
        return Ok(Found {
            ledger,
            snapshot_id: Some(head.snapshot_id()),
            written_by: Some(id),
        });
    }
    // No snapshot on main that is still there has a ledger: only the property can know, and only if its snapshot has
    // expired. Were that snapshot still in the table, main would have left it behind.
    let oldest = walked
        .last()
        .map_or(head.snapshot_id(), |s| s.snapshot_id());
    let Some(property) = property else {
        return Err(foreign_start(head));
    };
    let expired = metadata.snapshot_by_id(property.snapshot_id).is_none()
        && walked
            .last()
            .is_some_and(|s| s.parent_snapshot_id().is_some());
    if !expired {
        return Err(rolled_back(metadata, property.snapshot_id, oldest));
    }
    let ledger = property.decode()?;
    rows_unchanged(&walked, &ledger, counted)?;
    Ok(Found {
        ledger,
        snapshot_id: Some(head.snapshot_id()),
        written_by: Some(property.snapshot_id),
    })
}

fn of_history(
    metadata: &TableMetadata,
    at: i64,
    counted: &BTreeMap<i64, u64>,
) -> Result<Found, LedgerProblem> {
    if metadata.snapshot_by_id(at).is_none() {
        return Err(LedgerProblem::NoSuchSnapshot { snapshot_id: at });
    }
    let mut walked: Vec<&SnapshotRef> = Vec::new();
    for snapshot in ancestry(metadata, Some(at)) {
        let id = snapshot.snapshot_id();
        if let Some(text) = ledger_text(snapshot) {
            let ledger = decode(text, || format!("snapshot {id}"))?;
            rows_unchanged(&walked, &ledger, counted)?;
            own_rows(snapshot, &ledger)?;
            return Ok(Found {
                ledger,
                snapshot_id: Some(at),
                written_by: Some(id),
            });
        }
        only_replaced(snapshot)?;
        walked.push(snapshot);
    }
    // The property may still know what the expired parent held.
    let parent = walked.last().and_then(|s| s.parent_snapshot_id());
    match Property::of(metadata)? {
        Some(property) if parent == Some(property.snapshot_id) => {
            let ledger = property.decode()?;
            rows_unchanged(&walked, &ledger, counted)?;
            Ok(Found {
                ledger,
                snapshot_id: Some(at),
                written_by: parent,
            })
        }
        _ => Err(LedgerProblem::NoLedger { snapshot_id: at }),
    }
}

/// S2, the operation.
fn only_replaced(snapshot: &SnapshotRef) -> Result<(), LedgerProblem> {
    let operation = &snapshot.summary().operation;
    if *operation == Operation::Replace {
        return Ok(());
    }
    let id = snapshot.snapshot_id();
    Err(LedgerProblem::ForeignChange {
        snapshot_id: Some(id),
        operation: operation.as_str().to_owned(),
        what: format!(
            "snapshot {id} ({}) was not written by everlog",
            operation.as_str()
        ),
    })
}

/// S2, the count.
fn rows_unchanged(
    walked: &[&SnapshotRef],
    ledger: &Ledger,
    counted: &BTreeMap<i64, u64>,
) -> Result<(), LedgerProblem> {
    for snapshot in walked {
        let id = snapshot.snapshot_id();
        let rows = summary_number(snapshot, "total-records")
            .or_else(|| counted.get(&id).copied())
            .ok_or(LedgerProblem::RowsUnknown { snapshot_id: id })?;
        if rows != ledger.rows() {
            return Err(LedgerProblem::ForeignChange {
                snapshot_id: Some(id),
                operation: snapshot.summary().operation.as_str().to_owned(),
                what: format!(
                    "snapshot {id} ({}) holds {rows} rows where the ledger counts {}",
                    snapshot.summary().operation.as_str(),
                    ledger.rows()
                ),
            });
        }
    }
    Ok(())
}

/// S1 for a snapshot of ours: its own total, which we always write.
fn own_rows(snapshot: &SnapshotRef, ledger: &Ledger) -> Result<(), LedgerProblem> {
    match summary_number(snapshot, "total-records") {
        Some(rows) if rows != ledger.rows() => Err(LedgerProblem::Unreadable {
            place: format!("snapshot {}", snapshot.snapshot_id()),
            source: LedgerFormatError::Invalid(format!(
                "it counts {} rows, the snapshot {rows}",
                ledger.rows()
            )),
        }),
        _ => Ok(()),
    }
}

fn foreign_start(head: &SnapshotRef) -> LedgerProblem {
    let id = head.snapshot_id();
    LedgerProblem::ForeignChange {
        snapshot_id: Some(id),
        operation: head.summary().operation.as_str().to_owned(),
        what: format!("main is at snapshot {id}, and the table has no ledger"),
    }
}

fn rolled_back(metadata: &TableMetadata, property: i64, found: i64) -> LedgerProblem {
    let head = metadata.current_snapshot_id().unwrap_or(found);
    LedgerProblem::ForeignChange {
        snapshot_id: Some(head),
        operation: "rollback".to_owned(),
        what: format!(
            "main was moved to snapshot {head}, whose history does not end in the ledger's snapshot {property}"
        ),
    }
}

#[cfg(test)]
pub(crate) mod tests;
