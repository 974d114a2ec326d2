//! The archive of one topic: the only door to its Iceberg table.
//!
//! ```text
//!   archiver ──► append ──┐                                   ┌── files  ◄── replayer
//!               resolve   ├─► one compare-and-swap on the ──► pin (a lease)
//!   maintain ─► expiry ───┘   catalog, never sent twice       └── snapshots, state
//! ```
//!
//! Guarantees: files and ledger change in one swap or not at all; an append lands only if the ledger of the very parent
//! that the swap requires is what the caller read from; an outcome that nobody can know yet is said to be so.
//!
//! Not promised: anything about commits of other engines, beyond noticing them.

use std::sync::Arc;

use everlog_common::ledger::Refusal;
use everlog_common::{Advance, Clock, Ids, Ledger, Millis, TopicName};

use crate::catalog::{Catalog, LoadedTable};
use crate::files::EncodedFile;
use crate::schema::TableSettings;
use crate::storage::Storage;

mod error;

pub use error::{ArchiveError, ArchiveErrorKind};

/// What an [`Archive`] works with.
#[derive(Debug, Clone)]
pub struct ArchiveDeps {
    /// Where tables are named.
    pub catalog: Arc<dyn Catalog>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Identifiers and jitter.
    pub ids: Arc<dyn Ids>,
}

/// The archive of one topic. Clones share caches and take turns committing.
#[derive(Debug, Clone)]
pub struct Archive {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    deps: ArchiveDeps,
}

/// A table as one read showed it, with its ledger.
#[derive(Debug, Clone)]
pub struct TableState {
    /// The table.
    pub table: LoadedTable,
    /// Head of main; none before the first commit.
    pub snapshot_id: Option<i64>,
    /// When it was made.
    pub snapshot_time: Option<Millis>,
    /// What the head holds.
    pub ledger: Ledger,
}

/// What one commit adds.
#[derive(Debug, Clone)]
pub struct AppendRequest {
    /// Per partition, where it goes on and what it adds. May come without files: offsets without rows, gaps.
    pub advances: Vec<Advance>,
    /// Files that are written and durable, holding exactly the advances' rows.
    pub files: Vec<EncodedFile>,
    /// The commit's time: the `archived_at` of its rows.
    pub archived_at: Millis,
    /// The broker's or the catalog's time, where known: nothing is committed while our clock is over 30 s ahead of it.
    pub reference_time: Option<Millis>,
}

/// What became of an append.
#[derive(Debug)]
#[must_use = "an unknown outcome must be resolved, a fence obeyed"]
pub enum CommitOutcome {
    /// Files and ledger are in the table.
    Committed {
        /// The snapshot that this commit made.
        snapshot_id: i64,
        /// The ledger in it.
        ledger: Ledger,
        /// Attempts it took.
        attempts: u32,
    },
    /// Nothing was committed: some entries are not what the advances were read from.
    Fenced {
        /// Which, and why. Partitions not named may be proposed again.
        refusals: Vec<Refusal>,
        /// The ledger that fenced.
        ledger: Ledger,
    },
    /// Nobody can say yet. Propose nothing else for these partitions, delete nothing, and call [`Archive::resolve`].
    Unknown(PendingCommit),
}

/// A commit whose outcome is open.
#[derive(Debug)]
pub struct PendingCommit {
    request: AppendRequest,
}

impl PendingCommit {
    /// What was to be committed.
    pub fn request(&self) -> &AppendRequest {
        &self.request
    }
}

/// One snapshot, for people and for choosing.
#[derive(Debug, Clone)]
pub struct SnapshotInfo {
    /// Its id.
    pub snapshot_id: i64,
    /// The one before it.
    pub parent_id: Option<i64>,
    /// When it was made.
    pub time: Millis,
    /// `append`, `replace` …
    pub operation: String,
    /// Whether it is in the history of main.
    pub on_main: bool,
    /// What it holds, where it says so.
    pub ledger: Option<Ledger>,
    /// Rows in the table then, where it says so.
    pub rows: Option<u64>,
    /// Tags and branches that point at it, sorted.
    pub refs: Vec<String>,
}

impl Archive {
    /// Opens the archive of a topic; none where it has none yet.
    pub async fn open(
        deps: ArchiveDeps,
        namespace: &str,
        topic: &TopicName,
    ) -> Result<Option<Self>, ArchiveError> {
        let _ = (deps, namespace, topic);
        todo!()
    }

    /// Opens the archive of a topic, making namespace and table where they are not there yet.
    pub async fn open_or_create(
        deps: ArchiveDeps,
        namespace: &str,
        topic: &TopicName,
        settings: &TableSettings,
    ) -> Result<Self, ArchiveError> {
        let _ = (deps, namespace, topic, settings);
        todo!()
    }

    /// The topic.
    pub fn topic(&self) -> &TopicName {
        todo!()
    }

    /// The table's state now, read from the catalog. A foreign change is an error.
    pub async fn state(&self) -> Result<TableState, ArchiveError> {
        todo!()
    }

    /// The object store that holds the table's files.
    pub async fn storage(&self) -> Result<Storage, ArchiveError> {
        todo!()
    }

    /// Commits files and ledger in one swap, rebasing over other commits as long as the fence holds.
    ///
    /// Not cancel-safe: dropping the future leaves the outcome unknown; go on from [`Archive::state`].
    pub async fn append(&self, request: AppendRequest) -> Result<CommitOutcome, ArchiveError> {
        let _ = request;
        todo!()
    }

    /// One bounded round of finding out: reads the table back, and moves a quiet table on by a ledger-neutral commit.
    pub async fn resolve(&self, pending: PendingCommit) -> Result<CommitOutcome, ArchiveError> {
        let _ = pending;
        todo!()
    }

    /// Takes a table that somebody else changed as it is: commits a ledger that is true for `snapshot_id`, which must
    /// be the head of main.
    pub async fn accept(&self, snapshot_id: i64) -> Result<Ledger, ArchiveError> {
        let _ = snapshot_id;
        todo!()
    }

    /// Every snapshot that is still there, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, ArchiveError> {
        todo!()
    }
}
