//! A job's table as one read showed it: versions, branches, who is active.

use std::collections::BTreeMap;

use everlog_common::Millis;
use iceberg::spec::{MAIN_BRANCH, Operation, SnapshotReference, TableMetadata};
use serde::{Deserialize, Serialize};

use super::{
    JobError, JobTable, JobTableSpec, Marker, PROPERTY_ACTIVE, PROPERTY_PREVIOUS, PROPERTY_VERSION,
};
use crate::catalog::LoadedTable;
use crate::summary::{ancestry, summary_number};

/// What a table keeps of a version, as a property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// The columns that it writes.
    pub columns: Vec<String>,
    /// Of its logic.
    pub fingerprint: String,
    /// When it first came to the table, in milliseconds since 1970.
    pub created_ms: i64,
    /// What people shall know of it, for instance its SQL.
    #[serde(default)]
    pub about: BTreeMap<String, String>,
}

impl VersionRecord {
    pub(super) fn new(spec: &JobTableSpec, now: Millis) -> Self {
        Self {
            columns: spec
                .columns
                .fields()
                .iter()
                .map(|f| f.name().clone())
                .collect(),
            fingerprint: spec.fingerprint.clone(),
            created_ms: now.0,
            about: spec.about.clone(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A version's branch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionState {
    /// What the table keeps of it; none where that cannot be read.
    pub record: Option<VersionRecord>,
    /// Where its branch is; none before its first commit.
    pub head: Option<i64>,
    /// When the head was made.
    pub head_time: Option<Millis>,
    /// Rows in the branch, by the head's summary.
    pub rows: Option<u64>,
    /// What its last commit said.
    pub marker: Option<Marker>,
    /// Which snapshot said so: the head, or an ancestor that only other engines' `replace` snapshots follow.
    pub marked_by: Option<i64>,
    /// Why its branch cannot be written to, where that is so.
    pub problem: Option<String>,
}

/// A job's table as one read showed it.
#[derive(Debug, Clone)]
pub struct JobState {
    /// The table.
    pub table: LoadedTable,
    /// The version that writes main.
    pub active: String,
    /// The version that was active before.
    pub previous: Option<String>,
    /// Where main is.
    pub main: Option<i64>,
    /// The versions, by name.
    pub versions: BTreeMap<String, VersionState>,
    /// Every branch and tag.
    pub refs: BTreeMap<String, SnapshotReference>,
}

impl JobState {
    /// The names of the versions, for people.
    pub(super) fn names(&self) -> String {
        if self.versions.is_empty() {
            return "none".to_owned();
        }
        let names: Vec<&str> = self.versions.keys().map(String::as_str).collect();
        names.join(", ")
    }
}

impl JobTable {
    /// The table's state now.
    pub async fn state(&self) -> Result<JobState, JobError> {
        let table = self.handle().load().await?;
        self.state_of(&table)
    }

    /// How far a version's output has come, as its branch tells; none before its first commit.
    pub async fn committed(&self, version: &str) -> Result<Option<Marker>, JobError> {
        let mut state = self.state().await?;
        match state.versions.remove(version) {
            Some(VersionState {
                problem: Some(what),
                ..
            }) => Err(self.foreign(what)),
            Some(found) => Ok(found.marker),
            None => Ok(None),
        }
    }

    pub(super) fn foreign(&self, what: String) -> JobError {
        JobError::Foreign {
            table: self.handle().table_name(),
            what,
        }
    }

    pub(super) fn state_of(&self, table: &LoadedTable) -> Result<JobState, JobError> {
        let metadata = &table.metadata;
        let refs = self.handle().refs(metadata)?;
        let properties = metadata.properties();
        let Some(active) = properties.get(PROPERTY_ACTIVE).cloned() else {
            return Err(self.foreign(format!(
                "its property {PROPERTY_ACTIVE} was removed, so that nobody knows which version writes main; set it again"
            )));
        };
        let mut versions: BTreeMap<String, VersionState> = properties
            .iter()
            .filter_map(|(key, value)| {
                let version = key.strip_prefix(PROPERTY_VERSION)?;
                let record = serde_json::from_str(value).ok();
                let state = VersionState {
                    record,
                    ..VersionState::default()
                };
                Some((version.to_owned(), state))
            })
            .collect();
        for (version, state) in &mut versions {
            let Some(reference) = refs.get(version) else {
                continue;
            };
            if !reference.is_branch() {
                state.problem = Some(format!(
                    "there is a tag {version}, where version {version} has its branch; drop the tag"
                ));
                continue;
            }
            state.head = Some(reference.snapshot_id);
            if let Some(head) = metadata.snapshot_by_id(reference.snapshot_id) {
                state.head_time = Some(Millis(head.timestamp_ms()));
                state.rows = summary_number(head, "total-records");
            }
            match marker_of(metadata, reference.snapshot_id, self.job(), version) {
                Ok((snapshot_id, marker)) => {
                    state.marker = Some(marker);
                    state.marked_by = Some(snapshot_id);
                }
                Err(what) => state.problem = Some(what),
            }
        }
        Ok(JobState {
            table: table.clone(),
            active,
            previous: properties.get(PROPERTY_PREVIOUS).cloned(),
            main: metadata.current_snapshot_id(),
            versions,
            refs,
        })
    }
}

/// Ancestors of a snapshot, itself first, as long as only another engine's `replace` with unchanged row count comes between.
pub(super) fn replaced(metadata: &TableMetadata, head: i64) -> Vec<i64> {
    let mut same = Vec::new();
    let mut rows: Option<u64> = None;
    for snapshot in ancestry(metadata, Some(head)) {
        let own = summary_number(snapshot, "total-records");
        if !same.is_empty() && (own.is_none() || own != rows) {
            break;
        }
        same.push(snapshot.snapshot_id());
        rows = own;
        let is_ours = snapshot
            .summary()
            .additional_properties
            .contains_key(super::PROPERTY_JOB);
        if is_ours || snapshot.summary().operation != Operation::Replace {
            break;
        }
    }
    same
}

/// The marker at the head of a branch, and whose it is.
fn marker_of(
    metadata: &TableMetadata,
    head: i64,
    job: &str,
    version: &str,
) -> Result<(i64, Marker), String> {
    let last = replaced(metadata, head).pop();
    let Some(snapshot) = last.and_then(|id| metadata.snapshot_by_id(id)) else {
        return Err(format!(
            "branch {version} points at a snapshot that is not there"
        ));
    };
    match Marker::of(snapshot)? {
        Some(marker) if marker.job == job && marker.version == version => {
            Ok((snapshot.snapshot_id(), marker))
        }
        Some(marker) => Err(format!(
            "branch {version} is at snapshot {head}, which version {} of job {} wrote; move the branch back to the newest snapshot of its own",
            marker.version, marker.job
        )),
        None => Err(format!(
            "branch {version} is at snapshot {head}, an {} by another engine; a version's branch is everlog's alone: move it back to the newest snapshot that has everlog.job in its summary",
            snapshot.summary().operation.as_str()
        )),
    }
}

/// Where the active version builds on: the newer of main and its branch, of which one may be a `replace` ahead (J2).
pub(super) fn active_tip(
    metadata: &TableMetadata,
    version: &str,
    main: Option<i64>,
    branch: Option<i64>,
) -> Result<Option<i64>, String> {
    let (main, branch) = match (main, branch) {
        (None, None) => return Ok(None),
        (Some(main), Some(branch)) if main == branch => return Ok(Some(main)),
        (Some(main), Some(branch)) => (main, branch),
        (main, _) => {
            let at = main.map_or_else(|| "nowhere".to_owned(), |id| format!("at snapshot {id}"));
            return Err(format!(
                "{MAIN_BRANCH} is {at}, which is not what the active version {version} wrote; `everlog promote` sets it to a version's head"
            ));
        }
    };
    if replaced(metadata, main).contains(&branch) {
        return Ok(Some(main));
    }
    if replaced(metadata, branch).contains(&main) {
        return Ok(Some(branch));
    }
    Err(format!(
        "{MAIN_BRANCH} was moved to snapshot {main} by somebody else, where the active version {version} left it at {branch}; `everlog promote` of {version} sets it back, `everlog job drop` ends a version"
    ))
}
