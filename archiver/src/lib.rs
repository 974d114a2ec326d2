//! Kafka to Iceberg, exactly once.
//!
//! ```text
//!              assign at the ledger's offsets
//!        ┌──────────────────────────────────────────┐
//!        ▼                                          │
//!   LogReader ──► buffers ──► cut ──► check ──► files ──► one snapshot (rows + ledger)
//!   (batches)     by bytes    per      identity,  Parquet,     compare-and-swap
//!                             table    epochs     off-thread
//! ```
//!
//! [`Archiver::run`] reads every configured topic and commits what it read, table by table, every commit interval, or
//! sooner when memory asks for it. Where to start is decided by [`recovery`] from the ledger alone; what a commit is
//! made of by [`accumulator`]; when, by the run loop, which decides nothing else.
//!
//! Guarantees: each record that a consumer of the configured isolation sees, from the ledger's start, is in the table
//! once, in order, whatever crashed or was doubled; what Kafka deleted before is told, never skipped.
//!
//! Not promised: that the archive keeps up. [`headroom`] says how far ahead of deletion it is.
//!
//! Start reading at [`recovery`], then [`accumulator`], then `pipeline`.

pub mod accumulator;
mod backoff;
pub mod budget;
mod error;
pub mod headroom;
pub mod http;
mod lag;
mod metrics;
mod pipeline;
pub mod recovery;
mod settings;
mod status;

use std::sync::Arc;

use everlog_common::{Clock, Gap, Ids};
use everlog_kafka::Log;
use everlog_table::catalog::Catalog;
use tokio_util::sync::CancellationToken;

pub use error::{ArchiverError, Failure, FailureKind};
pub use settings::{Maintenance, OnGap, Settings, TopicPattern, TopicPatternError};
pub use status::{Health, Reason, StatusHandle, TopicHealth};

/// What the archiver works with. Everything outside comes through here, so that the same code runs in simulation.
#[derive(Debug, Clone)]
pub struct Components {
    /// The brokers.
    pub log: Arc<dyn Log>,
    /// The tables.
    pub catalog: Arc<dyn Catalog>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Identifiers and jitter.
    pub ids: Arc<dyn Ids>,
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunSummary {
    /// Topics that were archived at the end.
    pub topics: usize,
    /// Snapshots that were made.
    pub commits: u64,
    /// Records that were committed.
    pub rows: u64,
    /// Gaps that were recorded.
    pub gaps: Vec<Gap>,
}

/// Archives topics until it is told to end.
#[derive(Debug)]
pub struct Archiver {
    settings: Settings,
    components: Components,
    status: StatusHandle,
}

impl Archiver {
    /// Nothing happens before [`Archiver::run`].
    pub fn new(settings: Settings, components: Components) -> Self {
        let status = StatusHandle::new(Arc::clone(&components.clock), settings.patience());
        Self {
            settings,
            components,
            status,
        }
    }

    /// How it is, for whoever answers questions about it.
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// Runs until `shutdown`, or until everything is caught up where that was asked for; then commits what was read,
    /// and ends.
    ///
    /// Dropping the future is a crash, in effect: the next run goes on from the ledger.
    pub async fn run(self, shutdown: CancellationToken) -> Result<RunSummary, ArchiverError> {
        tracing::info!(settings = ?self.settings.describe(), "archiver starts");
        pipeline::run(self.settings, self.components, self.status, shutdown).await
    }
}
