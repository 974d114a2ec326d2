//! Keeping a table small: expiry of snapshots, and removal of files that nothing needs any more.

//! ```text
//!   expire:  load ─► plan ─► one swap (or along with a commit, where the catalog takes it on that very state only)
//!   remove:  load ─► what is needed ─► list ─► load again ─► delete
//! ```
//!
//! What is removed is derived from what is there, so a crash loses nothing: the next round finds the same.
//!
//! Invariants
//! - G1 A file goes only if no snapshot of the table needs it now, none needed it at any time in the last hour
//!   ([`MaintenanceSettings::expired_grace`]), and it is a day old ([`MaintenanceSettings::orphan_age`]): nobody's commit
//!   that is still on its way can refer to it, since files of that age are not committed any more (H29, H30).
//! - G2 A metadata file goes only if it is proven to be superseded for an hour, or is a day old and never was current.
//! - G3 Nothing goes while a commit of this process is open (P7), nor if the listing does not show what the table is known
//!   to need: then names are written in two ways, and everything would look unneeded.
//! - G4 Time is the object store's: a clock of ours that runs ahead makes nothing old.
//! - G5 Nothing goes where another table's metadata is found, nor where no file of the table's own is shown: two catalogs
//!   on one warehouse, or a table that was dropped and made anew, may have put two tables into one folder. Data folders
//!   are searched below the table's own location only. The default one may show none once new files go elsewhere, if
//!   another table at this location would show by its metadata, and nothing that is needed has the name of a file there.

use std::time::Duration;

use iceberg::TableRequirement;
use iceberg::spec::MAIN_BRANCH;

use crate::archive::{Archive, ArchiveError};
use crate::catalog::{CatalogError, CatalogErrorKind, CommitReply, LoadedTable, commit_key};
use crate::handle::Handle;

pub(crate) mod plan;
mod remove;

pub use plan::{ExpiryPlan, plan_expiry};
pub(crate) use remove::Upkeep;

/// Attempts to expire, each on a fresh state.
const ATTEMPTS_MAX: u32 = 8;
/// Swaps of one round; each expires a few hundred snapshots.
const SWAPS_MAX: u32 = 64;

/// Which snapshots expire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpirySettings {
    /// Older ones expire.
    pub age_max: Duration,
    /// So many stay, whatever their age.
    pub count_min: usize,
    /// More expire, whatever their age.
    pub count_max: usize,
    /// About how large the table's metadata may grow; beyond it, older snapshots expire.
    pub metadata_bytes_max: u64,
}

impl Default for ExpirySettings {
    fn default() -> Self {
        Self {
            age_max: Duration::from_hours(1),
            count_min: 20,
            count_max: 500,
            metadata_bytes_max: 4 << 20,
        }
    }
}

/// What becomes of files that nothing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// They stay, and nobody looks for them: snapshots expire, which costs no listing.
    Off,
    /// They are counted and stay.
    Count,
    /// They are deleted.
    Delete,
}

/// What maintenance does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceSettings {
    /// Which snapshots expire.
    pub expiry: ExpirySettings,
    /// What becomes of files that nothing needs.
    pub removal: Removal,
    /// How long after its expiry the files of a snapshot stay (at least an hour).
    pub expired_grace: Duration,
    /// How old a file must be that no snapshot needs (at least 24 hours).
    pub orphan_age: Duration,
    /// How often data folders are searched for such files.
    pub orphan_interval: Duration,
    /// At most so many metadata files that nothing of the table leads to are read in one round, to learn whose they are. Until
    /// all of them are known, no more goes than those that are the table's own.
    pub judged_max: usize,
}

impl Default for MaintenanceSettings {
    fn default() -> Self {
        Self {
            expiry: ExpirySettings::default(),
            removal: Removal::Delete,
            expired_grace: Duration::from_hours(1),
            orphan_age: Duration::from_hours(24),
            orphan_interval: Duration::from_hours(24),
            judged_max: 1_000,
        }
    }
}

/// What one round of maintenance did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MaintenanceReport {
    /// Snapshots that were expired.
    pub snapshots_expired: usize,
    /// Leases whose deadline had passed, removed.
    pub leases_removed: usize,
    /// Snapshots left.
    pub snapshots_left: usize,
    /// Files that nothing needs and that are old enough: deleted, or counted only with [`Removal::Count`].
    pub files_deleted: usize,
    /// Their bytes.
    pub bytes_deleted: u64,
    /// Files that nothing needs and that are not old enough yet.
    pub files_waiting: usize,
    /// Their bytes.
    pub bytes_waiting: u64,
    /// Whether data folders were searched too, not only metadata.
    pub data_searched: bool,
    /// Why nothing was deleted, or nothing of some folder, where that is so.
    pub held_back: Option<String>,
    /// Which data folder is never searched, and why, where that is so.
    pub not_searched: Option<String>,
}

/// What one attempt to expire came to.
#[derive(Debug)]
pub(crate) enum Expired {
    /// There was nothing to do.
    Nothing,
    /// Something expired; there may be more.
    Some,
    /// Not applied, or not known to be: for a competing commit, or for this.
    Missed(Option<CatalogError>),
}

impl Archive {
    /// One round of maintenance: expiry, then removal of files. Manifests are merged by appends.
    ///
    /// Cancel-safe: what was not done is done by the next round.
    pub async fn maintain(
        &self,
        settings: &MaintenanceSettings,
    ) -> Result<MaintenanceReport, ArchiveError> {
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
    ) -> Result<(), ArchiveError> {
        let mut conflicts = 0;
        for _ in 0..SWAPS_MAX {
            let outcome = self.expire_once(settings, report).await?;
            if !self.handle().again(outcome, &mut conflicts).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One swap, on a state that was read right before.
    pub(crate) async fn expire_once(
        &self,
        settings: &ExpirySettings,
        report: &mut MaintenanceReport,
    ) -> Result<Expired, ArchiveError> {
        let table = self.load().await?;
        report.snapshots_left = table.metadata.snapshots().len();
        // Where main is not ours any more, an operator decides first; history is evidence until then.
        let found = self.find(&table, None).await?;
        let refs = self.refs(&table.metadata)?;
        let now = self.deps().clock.now();
        let plan = plan_expiry(&table.metadata, &refs, now, settings);
        if plan.is_empty() || found.snapshot_id.is_none() {
            return Ok(Expired::Nothing);
        }
        self.handle().expire_planned(&table, &plan, report).await
    }
}

impl Handle {
    /// One swap of what was planned from exactly this state.
    pub(crate) async fn expire_planned(
        &self,
        table: &LoadedTable,
        plan: &ExpiryPlan,
        report: &mut MaintenanceReport,
    ) -> Result<Expired, ArchiveError> {
        // a clock that runs ahead would take leases and tags for over
        self.check_clock(None).await?;
        match self.swap_expiry(table, plan).await {
            CommitReply::Committed(after) => {
                report.snapshots_expired += plan.snapshots.len();
                report.leases_removed += plan
                    .tags
                    .iter()
                    .filter(|tag| crate::lease::deadline_of(tag).is_some())
                    .count();
                report.snapshots_left = after.metadata.snapshots().len();
                Ok(Expired::Some)
            }
            CommitReply::Conflict => Ok(Expired::Missed(None)),
            // What an unknown outcome did is seen by the next read: expiry has nothing that could be done twice.
            CommitReply::Unknown(error) => Ok(Expired::Missed(Some(error))),
            CommitReply::Refused(error) if error.kind() == CatalogErrorKind::Transient => {
                Ok(Expired::Missed(Some(error)))
            }
            CommitReply::Refused(error) => {
                Err(self.catalog_error("cannot expire snapshots", error))
            }
        }
    }

    /// Whether to swap again after this one, which missed `conflicts` times in a row; waits where another writer was in the way.
    ///
    /// # Errors
    /// [`ArchiveError::Contended`] where it missed too often.
    pub(crate) async fn again(
        &self,
        outcome: Expired,
        conflicts: &mut u32,
    ) -> Result<bool, ArchiveError> {
        match outcome {
            Expired::Nothing => return Ok(false),
            Expired::Some => *conflicts = 0,
            Expired::Missed(last) => {
                *conflicts += 1;
                if *conflicts >= ATTEMPTS_MAX {
                    return Err(ArchiveError::Contended {
                        table: self.table_name(),
                        attempts: *conflicts,
                        last,
                    });
                }
                self.back_off(*conflicts).await;
            }
        }
        Ok(true)
    }

    async fn swap_expiry(&self, table: &LoadedTable, plan: &ExpiryPlan) -> CommitReply {
        let mut requirements = vec![
            TableRequirement::UuidMatch {
                uuid: table.metadata.uuid(),
            },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: MAIN_BRANCH.to_owned(),
                snapshot_id: table.metadata.current_snapshot_id(),
            },
        ];
        requirements.extend(plan.requirements());
        let key = commit_key(&*self.deps().ids, self.deps().clock.now());
        self.deps()
            .catalog
            .commit(table, requirements, plan.updates(), key)
            .await
    }
}
