//! One epoch into one version's branch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use everlog_common::Millis;
use iceberg::spec::{
    MAIN_BRANCH, ManifestFile, Operation, Snapshot, SnapshotReference, SnapshotRetention, Summary,
    TableMetadata,
};
use iceberg::{TableRequirement, TableUpdate};
use uuid::Uuid;

use super::decide::{Refusal, Step, decide};
use super::state::active_tip;
use super::{JobError, JobErrorKind, JobFile, JobState, JobTable, Marker, VersionState};
use crate::archive::{ArchiveError, metadata_folder};
use crate::catalog::{CatalogError, CatalogErrorKind, CommitReply};
use crate::commit::{Added, Totals, counts};
use crate::manifests::{self, MergeSettings, Target};
use crate::summary::{COMMIT_ID, CURRENT_VERSION, VERSION};

/// Attempts of one commit, each on a state that was just read.
const ATTEMPTS_MAX: u32 = 24;
/// Older files are not committed: orphan removal takes files that are a day old.
const FILES_AGE_MAX: Duration = Duration::from_hours(20);

/// One epoch of one version.
#[derive(Debug, Clone)]
pub struct CommitEpoch {
    /// What the commit says of itself; whose version, which epoch.
    pub marker: Marker,
    /// Rows that the version had put out before this epoch.
    pub rows_before: u64,
    /// Files that are written and durable, holding exactly the epoch's rows. May be none.
    pub files: Vec<JobFile>,
}

/// What became of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOutcome {
    /// It is in the table.
    Committed {
        /// The snapshot that this call made.
        snapshot_id: i64,
        /// Attempts it took.
        attempts: u32,
        /// Whether main moved along.
        moved_main: bool,
    },
    /// It was there already.
    AlreadyCommitted {
        /// The snapshot that holds it, or what other engines made of that.
        snapshot_id: Option<i64>,
    },
}

/// What one attempt goes on, and requires.
struct Base<'a> {
    state: &'a JobState,
    /// Head of the version's branch.
    branch: Option<i64>,
    /// The new snapshot's parent.
    tip: Option<i64>,
    is_active: bool,
}

/// A commit that may still land, for maintenance of this process.
type Open = Option<Arc<()>>;

impl JobTable {
    /// Commits an epoch to its version's branch, and to main where the version is active: one swap. Rebases over other
    /// versions' commits.
    ///
    /// After an error of kind [`JobErrorKind::Transient`] the epoch may be in the table or not: call again with the same
    /// epoch, or ask [`JobTable::committed`] first. Any other error means that it is not.
    pub async fn commit(&self, epoch: &CommitEpoch) -> Result<JobOutcome, JobError> {
        self.check(epoch)?;
        let commit_id = self.handle().deps().ids.uuid();
        let mut open: Open = None;
        let mut last: Option<CatalogError> = None;
        let mut invalid = 0;
        for attempt in 1..=ATTEMPTS_MAX {
            if attempt > 1 {
                self.handle().back_off(attempt - 1).await;
            }
            let table = match self.handle().load().await {
                Ok(table) => table,
                // with an attempt on its way, that the table cannot be read now says nothing
                Err(error) if open.is_some() && JobError::from_kind(&error) => {
                    tracing::warn!(
                        table = %self.table(), %commit_id, %error, "cannot read the table back yet"
                    );
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let state = self.state_of(&table)?;
            let found = state.versions.get(&epoch.marker.version);
            let base = match self.base(&state, found, epoch)? {
                Ok(base) => base,
                Err(outcome) => return Ok(outcome),
            };
            self.handle().check_clock(None).await?;
            let name = format!("{commit_id}-{attempt}");
            let (snapshot, list) = self.store(&base, epoch, commit_id, &name).await?;
            drop(list);
            let snapshot_id = snapshot.snapshot_id();
            let (requirements, updates) = proposal(&base, epoch, snapshot);
            fail::fail_point!("job::before_swap");
            let reply = self.swap(&table, requirements, updates).await;
            fail::fail_point!("job::after_swap_before_reply");
            match reply {
                CommitReply::Committed(_) => {
                    return Ok(JobOutcome::Committed {
                        snapshot_id,
                        attempts: attempt,
                        moved_main: base.is_active,
                    });
                }
                CommitReply::Conflict => last = None,
                CommitReply::Unknown(error) => {
                    tracing::warn!(
                        table = %self.table(), %commit_id, %error,
                        "commit outcome unknown, reading the table back"
                    );
                    open.get_or_insert_with(|| Arc::clone(&self.handle().open_commits));
                    last = Some(error);
                }
                CommitReply::Refused(error) => {
                    // a sequence number may have been taken by a commit between
                    let again = match error.kind() {
                        CatalogErrorKind::Transient => true,
                        CatalogErrorKind::Invalid => {
                            invalid += 1;
                            invalid < 3
                        }
                        _ => false,
                    };
                    if !again {
                        return Err(self.handle().catalog_error("cannot commit", error).into());
                    }
                    last = Some(error);
                }
            }
        }
        Err(match open {
            Some(_) => JobError::Unknown {
                table: self.handle().table_name(),
                version: epoch.marker.version.clone(),
                epoch: epoch.marker.epoch,
                why: last.map_or_else(
                    || "the catalog did not answer".to_owned(),
                    |e| e.to_string(),
                ),
            },
            None => self.contended(ATTEMPTS_MAX, last),
        })
    }

    fn check(&self, epoch: &CommitEpoch) -> Result<(), JobError> {
        if epoch.marker.job != self.job() {
            return Err(self.invalid(format!(
                "an epoch of job {} cannot be committed to it",
                epoch.marker.job
            )));
        }
        let rows: u64 = epoch.files.iter().map(|file| file.rows).sum();
        if epoch.rows_before.checked_add(rows) != Some(epoch.marker.rows) {
            return Err(self.invalid(format!(
                "epoch {} adds {rows} rows to {} and counts {}",
                epoch.marker.epoch, epoch.rows_before, epoch.marker.rows
            )));
        }
        let now = self.handle().deps().clock.now();
        if let Some(file) = epoch
            .files
            .iter()
            .find(|file| now.since(file.written_at) > FILES_AGE_MAX)
        {
            return Err(JobError::Table(ArchiveError::Stale {
                table: self.handle().table_name(),
                uri: file.data_file.file_path().to_owned(),
                age_s: now.since(file.written_at).as_secs(),
            }));
        }
        Ok(())
    }

    /// What the attempt goes on; or its outcome, where nothing is to be done.
    fn base<'a>(
        &self,
        state: &'a JobState,
        found: Option<&VersionState>,
        epoch: &CommitEpoch,
    ) -> Result<Result<Base<'a>, JobOutcome>, JobError> {
        let version = &epoch.marker.version;
        if let Some(what) = found.and_then(|found| found.problem.clone()) {
            return Err(self.foreign(what));
        }
        let marker = found.and_then(|found| found.marker.as_ref());
        let head = found.and_then(|found| found.head);
        match decide(found.is_some(), marker, epoch.rows_before, &epoch.marker) {
            Step::Proceed => {}
            Step::AlreadyCommitted => {
                return Ok(Err(JobOutcome::AlreadyCommitted { snapshot_id: head }));
            }
            Step::Refused(refusal) => return Err(self.fenced(epoch, refusal)),
        }
        let is_active = state.active == *version;
        let tip = if is_active {
            active_tip(&state.table.metadata, version, state.main, head)
                .map_err(|what| self.foreign(what))?
        } else {
            head
        };
        Ok(Ok(Base {
            state,
            branch: head,
            tip,
            is_active,
        }))
    }

    fn fenced(&self, epoch: &CommitEpoch, refusal: Refusal) -> JobError {
        JobError::Fenced {
            table: self.handle().table_name(),
            version: epoch.marker.version.clone(),
            epoch: epoch.marker.epoch,
            refusal,
        }
    }

    /// Stores manifests and manifest list of one attempt, merging a group of old manifests where it is due.
    async fn store(
        &self,
        base: &Base<'_>,
        epoch: &CommitEpoch,
        commit_id: Uuid,
        name: &str,
    ) -> Result<(Snapshot, Vec<ManifestFile>), JobError> {
        let metadata = &base.state.table.metadata;
        let storage = self.storage();
        let table_name = self.handle().table_name();
        let ids = &self.handle().deps().ids;
        let snapshot_id = std::iter::repeat_with(|| ids.snapshot_id())
            .find(|id| metadata.snapshot_by_id(*id).is_none())
            .unwrap_or_default();
        let failed = |problem| {
            JobError::Table(ArchiveError::of_manifest(
                &table_name,
                base.tip.unwrap_or_default(),
                problem,
            ))
        };
        let parent = base.tip.and_then(|id| metadata.snapshot_by_id(id));
        let old = match parent {
            Some(parent) => manifests::read_list(&storage, parent, metadata.format_version())
                .await
                .map_err(failed)?,
            None => Vec::new(),
        };
        if let Some(file) = manifests::delete_manifest(&old) {
            return Err(self.foreign(format!(
                "another engine put delete files ({}) under version {}, whose branch is everlog's alone",
                file.manifest_path, epoch.marker.version
            )));
        }
        let before = match base.tip {
            Some(tip) => self.handle().totals(&storage, tip, &old).await?,
            None => Totals {
                bytes: Some(0),
                ..Totals::default()
            },
        };
        let target = Target {
            metadata,
            storage: &storage,
            snapshot_id,
        };
        let folder = metadata_folder(metadata);
        let prefix = format!("{folder}/{name}");
        let files = epoch.files.iter();
        let files = files.map(|file| (file.partition_spec_id, file.data_file.clone()));
        let mut list = target.add_all(&prefix, files).await.map_err(failed)?;
        let old = target.merge_due(&prefix, old, MergeSettings::default());
        list.extend(old.await.map_err(failed)?);
        let stem = format!("{folder}/snap-{snapshot_id}-{name}");
        let (uri, list) = target.list(&stem, base.tip, list).await.map_err(failed)?;
        let added = added(&epoch.files);
        let bytes_before = before
            .bytes
            .or_else(|| crate::summary::summary_number(parent?, "total-files-size"));
        let totals = Totals {
            files: before.files.saturating_add(added.files),
            rows: before.rows.saturating_add(added.rows),
            bytes: bytes_before.map(|b| b.saturating_add(added.bytes)),
        };
        if manifests::totals(&list).is_some_and(|listed| listed.rows != totals.rows) {
            return Err(JobError::Table(ArchiveError::Corrupt {
                table: table_name,
                what: format!(
                    "a commit would list other rows than the {} of its parent and the {} of epoch {}; it was not made",
                    before.rows, added.rows, epoch.marker.epoch
                ),
                source: None,
            }));
        }
        let now = self.handle().deps().clock.now();
        let snapshot = snapshot(metadata, snapshot_id, base.tip, uri, now, {
            let mut entries = epoch.marker.to_summary();
            entries.extend(counts(added, totals));
            entries.insert(COMMIT_ID.to_owned(), commit_id.to_string());
            entries.insert(VERSION.to_owned(), CURRENT_VERSION.to_owned());
            entries.insert("engine-name".to_owned(), "everlog".to_owned());
            entries.insert(
                "engine-version".to_owned(),
                env!("CARGO_PKG_VERSION").to_owned(),
            );
            entries
        });
        Ok((snapshot, list))
    }
}

impl JobError {
    /// Whether a read that failed so may succeed later.
    fn from_kind(error: &ArchiveError) -> bool {
        use crate::archive::ArchiveErrorKind as Kind;
        matches!(error.kind(), Kind::Transient | Kind::Denied)
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        self.kind() == JobErrorKind::Transient
    }
}

fn added(files: &[JobFile]) -> Added {
    let mut partitions = Vec::new();
    for file in files {
        if !partitions.contains(&file.data_file.partition()) {
            partitions.push(file.data_file.partition());
        }
    }
    Added {
        files: files.len() as u64,
        rows: files.iter().map(|file| file.rows).sum(),
        bytes: files.iter().map(|file| file.bytes).sum(),
        partitions: partitions.len() as u64,
    }
}

fn snapshot(
    base: &TableMetadata,
    snapshot_id: i64,
    parent: Option<i64>,
    manifest_list: String,
    now: Millis,
    properties: HashMap<String, String>,
) -> Snapshot {
    let parent_time = parent
        .and_then(|id| base.snapshot_by_id(id))
        .map_or(i64::MIN, |parent| parent.timestamp_ms());
    Snapshot::builder()
        .with_snapshot_id(snapshot_id)
        .with_parent_snapshot_id(parent)
        .with_sequence_number(base.next_sequence_number())
        .with_timestamp_ms(now.0.max(base.last_updated_ms()).max(parent_time))
        .with_manifest_list(manifest_list)
        .with_summary(Summary {
            operation: Operation::Append,
            additional_properties: properties,
        })
        .with_schema_id(base.current_schema_id())
        .build()
}

/// What the swap requires, and does (J2, J3).
fn proposal(
    base: &Base<'_>,
    epoch: &CommitEpoch,
    snapshot: Snapshot,
) -> (Vec<TableRequirement>, Vec<TableUpdate>) {
    let snapshot_id = snapshot.snapshot_id();
    let metadata = &base.state.table.metadata;
    let version = &epoch.marker.version;
    let mut requirements = unmoved(base.state);
    if base.branch.is_none() {
        requirements.push(TableRequirement::RefSnapshotIdMatch {
            r#ref: version.clone(),
            snapshot_id: None,
        });
    }
    requirements.push(TableRequirement::CurrentSchemaIdMatch {
        current_schema_id: metadata.current_schema_id(),
    });
    let mut updates = vec![
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef {
            ref_name: version.clone(),
            reference: SnapshotReference::new(snapshot_id, kept_for_ever()),
        },
    ];
    if base.is_active {
        updates.push(set_main(base.state, snapshot_id));
    }
    (requirements, updates)
}

/// That the table is the one that was read, and that main and every version with a branch are where they were.
pub(super) fn unmoved(state: &JobState) -> Vec<TableRequirement> {
    let at = |name: &str, snapshot_id: Option<i64>| TableRequirement::RefSnapshotIdMatch {
        r#ref: name.to_owned(),
        snapshot_id,
    };
    let mut requirements = vec![
        TableRequirement::UuidMatch {
            uuid: state.table.metadata.uuid(),
        },
        at(MAIN_BRANCH, state.main),
    ];
    let branches = state
        .versions
        .iter()
        .filter_map(|(version, found)| Some(at(version, Some(found.head?))));
    requirements.extend(branches);
    requirements
}

/// Main at a snapshot, keeping its history as somebody said.
pub(super) fn set_main(state: &JobState, snapshot_id: i64) -> TableUpdate {
    let retention = state
        .refs
        .get(MAIN_BRANCH)
        .map(|reference| reference.retention.clone());
    TableUpdate::SetSnapshotRef {
        ref_name: MAIN_BRANCH.to_owned(),
        reference: SnapshotReference::new(
            snapshot_id,
            retention.unwrap_or(SnapshotRetention::Branch {
                min_snapshots_to_keep: None,
                max_snapshot_age_ms: None,
                max_ref_age_ms: None,
            }),
        ),
    }
}

/// A version's branch: no other engine's expiry may drop it for its age.
fn kept_for_ever() -> SnapshotRetention {
    SnapshotRetention::Branch {
        min_snapshots_to_keep: None,
        max_snapshot_age_ms: None,
        max_ref_age_ms: Some(i64::MAX),
    }
}
