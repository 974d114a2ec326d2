//! Keeping a job's table small: which snapshots expire, with a branch per version.

use std::collections::{BTreeMap, BTreeSet};

use everlog_common::Millis;
use iceberg::spec::{MAIN_BRANCH, SnapshotRef, SnapshotReference, TableMetadata};

use super::state::replaced;
use super::{JobError, JobTable, PROPERTY_JOB};
use crate::lease;
use crate::maintain::plan::{
    COUNT_FLOOR, ExpiryPlan, LOOSE_AGE_MAX, base_bytes, is_off, lapsed, snapshot_bytes,
};
use crate::maintain::{ExpirySettings, MaintenanceReport, MaintenanceSettings, Removal};
use crate::summary::ancestry;

/// Swaps of one round.
const SWAPS_MAX: u32 = 64;

impl JobTable {
    /// One round of maintenance: expiry on main and on every version's branch, then removal of files that nothing needs.
    ///
    /// Cancel-safe: what was not done is done by the next round.
    pub async fn maintain(
        &self,
        settings: &MaintenanceSettings,
    ) -> Result<MaintenanceReport, JobError> {
        let mut report = MaintenanceReport::default();
        self.expire(&settings.expiry, &mut report).await?;
        if settings.removal != Removal::Off {
            self.handle().remove_files(settings, &mut report).await?;
        }
        Ok(report)
    }

    async fn expire(
        &self,
        settings: &ExpirySettings,
        report: &mut MaintenanceReport,
    ) -> Result<(), JobError> {
        let mut conflicts = 0;
        for _ in 0..SWAPS_MAX {
            let table = self.handle().load().await?;
            report.snapshots_left = table.metadata.snapshots().len();
            let state = self.state_of(&table)?;
            let kept: BTreeMap<&str, Option<i64>> = state
                .versions
                .iter()
                .map(|(version, found)| (version.as_str(), found.marked_by))
                .collect();
            let now = self.handle().deps().clock.now();
            let plan = plan_job_expiry(&table.metadata, &state.refs, &kept, now, settings);
            if plan.is_empty() {
                return Ok(());
            }
            let outcome = self.handle().expire_planned(&table, &plan, report).await?;
            if !self.handle().again(outcome, &mut conflicts).await? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Plans what expires in a job's table.
///
/// * Whatever a branch or tag points at stays, except a lease past its deadline; so does the snapshot that holds a version's
///   marker (`versions`: its branches, each with that).
/// * Of main and of each version's branch, the newest snapshots stay, by the same bounds as an archive's main. The
///   metadata's size is shared among them.
/// * The history of branches that are nobody's version stays.
/// * What a dropped version left goes by its age; what belongs to no branch and is not everlog's stays as long as
///   Iceberg's own default.
pub fn plan_job_expiry(
    metadata: &TableMetadata,
    refs: &BTreeMap<String, SnapshotReference>,
    versions: &BTreeMap<&str, Option<i64>>,
    now: Millis,
    settings: &ExpirySettings,
) -> ExpiryPlan {
    let guard = refs
        .get(lease::GUARD)
        .map(|reference| reference.snapshot_id);
    if is_off(metadata) {
        return ExpiryPlan::nothing(guard);
    }
    let tags = lapsed(refs, now);
    let mut kept: BTreeSet<i64> = versions.values().flatten().copied().collect();
    let mut histories: Vec<Vec<&SnapshotRef>> = Vec::new();
    for (name, reference) in refs {
        let is_lapsed = tags.contains(name) && name != lease::GUARD;
        if is_lapsed {
            continue;
        }
        kept.insert(reference.snapshot_id);
        if !reference.is_branch() {
            continue;
        }
        let history: Vec<&SnapshotRef> = ancestry(metadata, Some(reference.snapshot_id)).collect();
        if name != MAIN_BRANCH && !versions.contains_key(name.as_str()) {
            kept.extend(history.iter().map(|s| s.snapshot_id()));
        }
        histories.push(history);
    }
    let known: BTreeSet<i64> = histories
        .iter()
        .flatten()
        .map(|s| s.snapshot_id())
        .collect();
    let budget = settings
        .metadata_bytes_max
        .saturating_sub(base_bytes(metadata))
        / histories.len().max(1) as u64;
    for history in &histories {
        let mut bytes = 0_u64;
        for (place, snapshot) in history.iter().enumerate() {
            bytes = bytes.saturating_add(snapshot_bytes(snapshot));
            let large = place >= COUNT_FLOOR && bytes > budget;
            let many = place >= settings.count_max.max(1);
            let old = place >= settings.count_min.max(1)
                && now.since(Millis(snapshot.timestamp_ms())) > settings.age_max;
            if large || many || old {
                break;
            }
            kept.insert(snapshot.snapshot_id());
        }
    }
    let mut snapshots: Vec<&SnapshotRef> = metadata
        .snapshots()
        .filter(|s| !kept.contains(&s.snapshot_id()))
        .filter(|s| {
            if known.contains(&s.snapshot_id()) {
                return true;
            }
            // its own, or what another engine's compaction made of it
            let ours = replaced(metadata, s.snapshot_id())
                .pop()
                .and_then(|id| metadata.snapshot_by_id(id))
                .is_some_and(|s| s.summary().additional_properties.contains_key(PROPERTY_JOB));
            let age = now.since(Millis(s.timestamp_ms()));
            age > if ours {
                settings.age_max
            } else {
                LOOSE_AGE_MAX.max(settings.age_max)
            }
        })
        .collect();
    snapshots.sort_by_key(|s| (s.sequence_number(), s.snapshot_id()));
    ExpiryPlan::of(metadata, refs, &snapshots, tags, guard)
}
