//! A snapshot held for reading: which one, its files, its ledger, and the lease that keeps it.

use everlog_common::{Ledger, Millis, Positions};

use crate::archive::{Archive, ArchiveError, ArchiveErrorKind};
use crate::files::PlannedFile;
use crate::storage::Storage;

/// Which snapshot to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotSelector {
    /// The head of main.
    Current,
    /// This very one.
    Id(i64),
    /// The newest in main's history that was made at this time or before.
    AsOf(Millis),
    /// Where a tag (or branch) points.
    Tag(String),
}

/// Whether to hold a snapshot against expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeaseMode {
    /// With a lease, or with a warning where the catalog does not let us write.
    #[default]
    Auto,
    /// Without.
    Off,
}

/// A tag that holds a snapshot against our expiry until its deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The tag's name, `everlog-lease-<deadline>-<id>`.
    pub tag: String,
    /// Until when.
    pub deadline: Millis,
    /// Whether this reader made it; only then is it released by it.
    pub own: bool,
}

/// Why a snapshot could not be pinned or planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// There is no such snapshot (any more).
    #[error("table {table}: {what}")]
    NotFound {
        /// The table.
        table: String,
        /// What was asked for, and what there is instead.
        what: String,
    },
    /// The table has no snapshot yet.
    #[error("table {table}: nothing was archived yet")]
    Empty {
        /// The table.
        table: String,
    },
    /// A manifest or manifest list of the snapshot is gone: it has expired. Plan again on the newest snapshot.
    #[error(
        "table {table}: snapshot {snapshot_id} has expired while it was read ({uri} is gone); read the newest snapshot, or keep this one with a lease or a tag"
    )]
    Vanished {
        /// The table.
        table: String,
        /// The snapshot.
        snapshot_id: i64,
        /// The file.
        uri: String,
    },
    /// Another engine put delete files on the table.
    #[error(
        "table {table}: snapshot {snapshot_id} has delete files ({uri}), which the archive does not read; rewrite the table's data files with the engine that wrote them (copy-on-write), or roll it back"
    )]
    DeleteFiles {
        /// The table.
        table: String,
        /// The snapshot.
        snapshot_id: i64,
        /// The delete manifest.
        uri: String,
    },
    /// Files and ledger contradict each other: nothing of this snapshot may be emitted.
    #[error("table {table}: snapshot {snapshot_id}: {what}")]
    Contradiction {
        /// The table.
        table: String,
        /// The snapshot.
        snapshot_id: i64,
        /// What differs.
        what: String,
    },
    /// Anything else about the table.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl PinError {
    /// What the caller does about it.
    pub fn kind(&self) -> ArchiveErrorKind {
        match self {
            Self::NotFound { .. } | Self::Empty { .. } | Self::DeleteFiles { .. } => {
                ArchiveErrorKind::Invalid
            }
            Self::Vanished { .. } | Self::Contradiction { .. } => ArchiveErrorKind::Corrupt,
            Self::Archive(error) => error.kind(),
        }
    }
}

/// A snapshot that is being read.
///
/// * Ledger and files are of one snapshot, whatever is committed meanwhile.
/// * With a lease, our expiry leaves it alone until the deadline; call [`PinnedSnapshot::renew`] at two thirds.
#[derive(Debug)]
pub struct PinnedSnapshot {
    /// The snapshot.
    pub snapshot_id: i64,
    /// When it was made.
    pub time: Millis,
    /// What it holds.
    pub ledger: Ledger,
    /// What keeps it; none with [`LeaseMode::Off`] or where the catalog does not let us write.
    pub lease: Option<Lease>,
}

impl Archive {
    /// Chooses a snapshot, takes a lease on it, and checks that both are there.
    pub async fn pin(
        &self,
        selector: &SnapshotSelector,
        lease: LeaseMode,
    ) -> Result<PinnedSnapshot, PinError> {
        let _ = (selector, lease);
        todo!()
    }
}

impl PinnedSnapshot {
    /// The live data files, with the cross-checks done: rows add up to the ledger's, and no file reaches beyond it.
    pub async fn files(&self) -> Result<Vec<PlannedFile>, PinError> {
        todo!()
    }

    /// Where history ends and the live log begins, per partition of the newest generation.
    pub fn cut(&self) -> Positions {
        self.ledger.cut()
    }

    /// The object store that holds the files.
    pub fn storage(&self) -> &Storage {
        todo!()
    }

    /// When to call [`PinnedSnapshot::renew`]; none without a lease.
    pub fn renew_at(&self) -> Option<Millis> {
        todo!()
    }

    /// Extends the lease to its full term from now. An error of kind `Transient` may be tried again until the deadline.
    pub async fn renew(&mut self) -> Result<(), PinError> {
        todo!()
    }

    /// Gives the lease back, if it is this reader's own. A failure is only logged: the deadline ends it too.
    pub async fn release(self) {
        todo!()
    }
}
