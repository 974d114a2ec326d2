//! What a commit may do, decided from facts: no I/O here.
//!
//! ```text
//!   load ──► decide ──► Proceed(ledger) ──► files, swap ──► Committed
//!     ▲        │                                  │ Conflict: again from load
//!     │        ├─► AlreadyLanded                  │ Unknown
//!     │        └─► Fenced                         ▼
//!     └────────────────────────── judge ◄── read back ── Open: a neutral commit on the same parent
//! ```
//!
//! Invariants
//! - C1 The ledger that goes in is the parent's with all of the advances applied, or nothing goes in. The parent is the
//!   one that the swap requires.
//! - C2 A commit's rows are exactly what its advances count, per partition.
//! - C3 An attempt counts as dead only where main has moved on from its parent without it: the swap required that very
//!   parent, so it cannot land any more. Nothing is sent before.
//! - C4 An attempt of ours is recognised by its commit id, also where a proxy delivered it twice and the second delivery
//!   met a conflict with the first (P5).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use everlog_common::ledger::Refusal;
use everlog_common::mutants::Mutant;
use everlog_common::{Advance, Generation, Ledger, Millis, Partition, Segment};
use iceberg::spec::{
    MAIN_BRANCH, Operation, Snapshot, SnapshotReference, SnapshotRetention, Summary, TableMetadata,
};
use iceberg::{TableRequirement, TableUpdate};
use uuid::Uuid;

use crate::files::EncodedFile;
use crate::summary::{ACCEPTED, find_commit, property_entries, summary_entries};

/// How far our clock may be ahead of the catalog's, or another reference (docs/exactly-once.md, 9).
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(30);

/// What to do with a request, given the table it would go into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Commit with this ledger, on this very parent.
    Proceed {
        /// The parent's ledger with the advances applied.
        ledger: Ledger,
    },
    /// An attempt of this request is in main's history already.
    AlreadyLanded {
        /// The snapshot it made.
        snapshot_id: i64,
    },
    /// The ledger is not what the advances were read from.
    Fenced {
        /// Per partition that is fenced.
        refusals: Vec<Refusal>,
    },
    /// The request breaks a rule that the caller has to keep.
    Malformed {
        /// The partition.
        partition: Partition,
        /// Which rule.
        what: String,
    },
}

/// Decides about a request. `parent` is the ledger found for the head of `metadata`'s main.
pub fn decide(
    metadata: &TableMetadata,
    parent: &Ledger,
    commit_id: Uuid,
    advances: &[Advance],
) -> Decision {
    if Mutant::RetryAddsAgain.is_planted()
        && let Some(ledger) = added_again(parent, advances)
    {
        return Decision::Proceed { ledger };
    }
    if let Some(snapshot_id) = find_commit(metadata, commit_id) {
        return Decision::AlreadyLanded { snapshot_id };
    }
    let refusals = match parent.apply(advances) {
        Ok(ledger) => return proceed(parent, ledger, advances),
        Err(refusals) => refusals,
    };
    let malformed = refusals.iter().find_map(|refusal| match refusal {
        Refusal::Malformed { partition, what } => Some((*partition, what.clone())),
        Refusal::Fenced { .. } => None,
    });
    match malformed {
        Some((partition, what)) => Decision::Malformed { partition, what },
        None => Decision::Fenced { refusals },
    }
}

/// [`Mutant::RetryAddsAgain`]: the rows counted a second time, where the ledger has moved on.
fn added_again(parent: &Ledger, advances: &[Advance]) -> Option<Ledger> {
    parent.apply(advances).err()?;
    let mut ledger = parent.clone();
    for advance in advances {
        let era = ledger.generations.get_mut(&advance.generation)?;
        let entry = era.partitions.get_mut(&advance.partition)?;
        entry.rows += advance.rows();
        entry.next = entry.next.max(advance.end()?);
    }
    Some(ledger)
}

/// Checks once more, by other means, what [`Ledger::apply`] promises.
fn proceed(parent: &Ledger, ledger: Ledger, advances: &[Advance]) -> Decision {
    let added: u64 = advances.iter().map(Advance::rows).sum();
    let partition = advances.first().map(|advance| advance.partition);
    match partition {
        Some(partition)
            if !Mutant::LedgerFenceOff.is_planted()
                && (!ledger.descends_from(parent) || ledger.rows() != parent.rows() + added) =>
        {
            Decision::Malformed {
                partition,
                what: "the new ledger does not descend from its parent".to_owned(),
            }
        }
        _ => Decision::Proceed { ledger },
    }
}

/// What became of an attempt whose reply was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is in main's history.
    Landed {
        /// The snapshot it made.
        snapshot_id: i64,
    },
    /// It is not, and never will be.
    Dead,
    /// It may still land.
    Open,
}

/// Judges attempts on `parent` from a fresh read of the table (C3).
pub fn judge(metadata: &TableMetadata, commit_id: Uuid, parent: Option<i64>) -> Verdict {
    match find_commit(metadata, commit_id) {
        Some(snapshot_id) => Verdict::Landed { snapshot_id },
        None if metadata.current_snapshot_id() == parent => Verdict::Open,
        None => Verdict::Dead,
    }
}

/// A request that cannot be right, whatever the table holds (C2).
pub fn check_request(
    advances: &[Advance],
    files: &[EncodedFile],
) -> Result<(), (Option<Partition>, String)> {
    let mut paths = BTreeSet::new();
    let mut rows: BTreeMap<(Generation, Partition), u64> = BTreeMap::new();
    let by_key: BTreeMap<(Generation, Partition), &Advance> = advances
        .iter()
        .map(|advance| ((advance.generation, advance.partition), advance))
        .collect();
    for file in files {
        let path = file.data_file.file_path();
        if !paths.insert(path) {
            return Err((None, format!("file {path} is in the commit twice")));
        }
        let counted: u64 = file.ranges.iter().map(|range| range.rows).sum();
        if counted != file.rows || file.data_file.record_count() != file.rows {
            return Err((
                None,
                format!(
                    "file {path} says {} rows, its ranges {counted}, its manifest entry {}",
                    file.rows,
                    file.data_file.record_count()
                ),
            ));
        }
        for range in &file.ranges {
            let key = (range.generation, range.partition);
            let covered = by_key.get(&key).is_some_and(|advance| {
                advance.segments.iter().any(|segment| {
                    matches!(segment, Segment::Data { range: data, .. }
                        if data.start() < range.range.end() && range.range.start() < data.end())
                }) && advance.start().is_some_and(|at| at <= range.range.start())
                    && advance.end().is_some_and(|end| range.range.end() <= end)
            });
            if range.rows > 0 && !covered {
                return Err((
                    Some(range.partition),
                    format!(
                        "file {path} covers {} of generation {}, which the commit does not advance over",
                        range.range, range.generation
                    ),
                ));
            }
            *rows.entry(key).or_default() += range.rows;
        }
    }
    for advance in advances {
        let held = rows
            .get(&(advance.generation, advance.partition))
            .copied()
            .unwrap_or(0);
        if held != advance.rows() {
            return Err((
                Some(advance.partition),
                format!(
                    "the files hold {held} rows, the advance counts {}",
                    advance.rows()
                ),
            ));
        }
    }
    Ok(())
}

/// By how much `now` is too far ahead of the reference, if it is.
pub fn clock_ahead(now: Millis, reference: Option<Millis>) -> Option<Duration> {
    let ahead = now.since(reference?);
    (ahead > CLOCK_AHEAD_MAX).then_some(ahead)
}

/// How many files, rows and bytes a snapshot has, for Iceberg's summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Data files.
    pub files: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes; none where an engine did not say and the manifest list cannot.
    pub bytes: Option<u64>,
}

/// What a commit adds, for Iceberg's summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Added {
    /// Data files.
    pub files: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// Table partitions that got files.
    pub partitions: u64,
}

impl Added {
    /// Of a commit's files.
    pub fn of(files: &[EncodedFile]) -> Self {
        let mut partitions = Vec::new();
        for file in files {
            if !partitions.contains(&file.data_file.partition()) {
                partitions.push(file.data_file.partition());
            }
        }
        Self {
            files: files.len() as u64,
            rows: files.iter().map(|file| file.rows).sum(),
            bytes: files
                .iter()
                .map(|file| file.data_file.file_size_in_bytes())
                .sum(),
            partitions: partitions.len() as u64,
        }
    }
}

/// Everything that one swap puts in, on one parent.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// The snapshot to be.
    pub snapshot_id: i64,
    /// Its parent: the head of main that the swap requires.
    pub parent: Option<i64>,
    /// Where its manifest list is stored.
    pub manifest_list: String,
    /// Our time.
    pub now: Millis,
    /// Which commit this is.
    pub commit_id: Uuid,
    /// The ledger that goes in.
    pub ledger: Ledger,
    /// What it adds.
    pub added: Added,
    /// What there is after it.
    pub totals: Totals,
    /// Isolation, as the table records it.
    pub isolation: Option<String>,
    /// The foreign snapshot that an operator accepts with this.
    pub accepted: Option<i64>,
    /// How main keeps its snapshots, where somebody said so.
    pub retention: Option<SnapshotRetention>,
}

impl Proposal {
    /// The snapshot.
    pub fn snapshot(&self, base: &TableMetadata) -> Snapshot {
        let parent_time = self
            .parent
            .and_then(|id| base.snapshot_by_id(id))
            .map_or(i64::MIN, |parent| parent.timestamp_ms());
        let mut properties = summary_entries(
            &self.ledger.encode(),
            self.commit_id,
            self.isolation.as_ref(),
        );
        properties.extend(counts(self.added, self.totals));
        if let Some(id) = self.accepted {
            properties.insert(ACCEPTED.to_owned(), id.to_string());
        }
        Snapshot::builder()
            .with_snapshot_id(self.snapshot_id)
            .with_parent_snapshot_id(self.parent)
            .with_sequence_number(base.next_sequence_number())
            .with_timestamp_ms(self.now.0.max(base.last_updated_ms()).max(parent_time))
            .with_manifest_list(self.manifest_list.clone())
            .with_summary(Summary {
                operation: Operation::Append,
                additional_properties: properties,
            })
            .with_schema_id(base.current_schema_id())
            .build()
    }

    /// What the swap requires.
    pub fn requirements(&self, base: &TableMetadata) -> Vec<TableRequirement> {
        vec![
            TableRequirement::UuidMatch { uuid: base.uuid() },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: MAIN_BRANCH.to_owned(),
                snapshot_id: self.parent,
            },
            // what is remembered of a table may be older than another engine's change to its columns
            TableRequirement::CurrentSchemaIdMatch {
                current_schema_id: base.current_schema_id(),
            },
        ]
    }

    /// What the swap does.
    pub fn updates(&self, base: &TableMetadata) -> Vec<TableUpdate> {
        vec![
            TableUpdate::AddSnapshot {
                snapshot: self.snapshot(base),
            },
            TableUpdate::SetSnapshotRef {
                ref_name: MAIN_BRANCH.to_owned(),
                reference: SnapshotReference::new(
                    self.snapshot_id,
                    self.retention.clone().unwrap_or(SnapshotRetention::Branch {
                        min_snapshots_to_keep: None,
                        max_snapshot_age_ms: None,
                        max_ref_age_ms: None,
                    }),
                ),
            },
            TableUpdate::SetProperties {
                updates: property_entries(&self.ledger.encode(), self.snapshot_id),
            },
        ]
    }
}

/// Iceberg's own counts, for a snapshot's summary.
pub(crate) fn counts(added: Added, totals: Totals) -> HashMap<String, String> {
    let mut counts: HashMap<String, String> = [
        ("added-data-files", added.files),
        ("added-records", added.rows),
        ("added-files-size", added.bytes),
        ("changed-partition-count", added.partitions),
        ("total-data-files", totals.files),
        ("total-records", totals.rows),
        ("total-delete-files", 0),
        ("total-position-deletes", 0),
        ("total-equality-deletes", 0),
    ]
    .into_iter()
    .filter(|(key, count)| *count > 0 || !key.starts_with("added-"))
    .map(|(key, count)| (key.to_owned(), count.to_string()))
    .collect();
    if let Some(bytes) = totals.bytes {
        counts.insert("total-files-size".to_owned(), bytes.to_string());
    }
    counts
}
