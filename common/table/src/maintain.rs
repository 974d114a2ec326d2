//! Keeping a table small: expiry of snapshots, and removal of files that nothing needs any more.

use std::time::Duration;

use crate::archive::{Archive, ArchiveError};

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
            age_max: Duration::from_secs(3600),
            count_min: 20,
            count_max: 500,
            metadata_bytes_max: 4 << 20,
        }
    }
}

/// What maintenance does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceSettings {
    /// Which snapshots expire.
    pub expiry: ExpirySettings,
    /// Whether files are deleted at all. Off: expiry only, and a count of what would be deleted.
    pub deletes: bool,
    /// How long after its expiry the files of a snapshot stay (at least an hour).
    pub expired_grace: Duration,
    /// How old a file must be that no snapshot needs (at least 24 hours).
    pub orphan_age: Duration,
    /// How often data folders are searched for such files.
    pub orphan_interval: Duration,
}

impl Default for MaintenanceSettings {
    fn default() -> Self {
        Self {
            expiry: ExpirySettings::default(),
            deletes: true,
            expired_grace: Duration::from_secs(3600),
            orphan_age: Duration::from_secs(24 * 3600),
            orphan_interval: Duration::from_secs(24 * 3600),
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
    /// Files that nothing needs and that are old enough: deleted, or counted only where `deletes` is off.
    pub files_deleted: usize,
    /// Their bytes.
    pub bytes_deleted: u64,
    /// Files that nothing needs and that are not old enough yet.
    pub files_waiting: usize,
    /// Their bytes.
    pub bytes_waiting: u64,
}

impl Archive {
    /// One round of maintenance: expiry in one swap, then removal of files.
    pub async fn maintain(
        &self,
        settings: &MaintenanceSettings,
    ) -> Result<MaintenanceReport, ArchiveError> {
        let _ = settings;
        todo!()
    }
}
