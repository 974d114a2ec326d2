//! A job at work: history, then live, by one code path, epoch by epoch.
//!
//! ```text
//!   EventStream ──► pieces ──► decoding ──► engine ──► rows, late, dead ──┐
//!       ▲  (one order per      (a thread)   (a thread)   + changed state   │ seal: changes, output or interval
//!       │   partition)                         ▲                           ▼
//!       └──── hold: who is too far ahead ──────┘                        epoch ──► file ──► outputs ──► local store
//!                                                                        (one under way, beside the next one's work)
//! ```
//!
//! - [`Prepared`] is a job that was checked; [`run`] runs it.
//! - `decide` has the loop's decisions as pure functions, `driver` acts on them.
//! - [`Observer`] has the numbers.
//!
//! Promised: the committed outputs are those of an uninterrupted run, whatever is killed and whenever; rows do not depend on
//! how the stream cuts or interleaves batches, on threads, or on when epochs end. Positions, incarnation, decisions and
//! rows are in one epoch: none is ever ahead of another.
//!
//! Not promised: when a row comes out, and which epoch it is in.

mod decide;
mod driver;
mod error;
mod estimate;
mod observer;
mod outputs;
mod peers;
mod prepare;
mod source;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use everlog_common::{Clock, Ids};
use everlog_kafka::Log;
use everlog_table::catalog::Catalog;
use everlog_table::storage::Storage;
use tokio_util::sync::CancellationToken;

pub use self::driver::{Summary, local_folder, run};
pub use self::error::RunError;
pub use self::estimate::{Estimate, Sample};
pub use self::observer::{Numbers, Observer};
pub use self::outputs::{client_id, output_of};
pub use self::prepare::Prepared;

/// What a job works with; everything external is injected.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Kafka; not needed with [`Bound::Snapshot`].
    pub log: Option<Arc<dyn Log>>,
    /// Where the archive's table is, and tables of jobs go.
    pub catalog: Arc<dyn Catalog>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Identifiers.
    pub ids: Arc<dyn Ids>,
    /// The namespace of all tables.
    pub namespace: String,
    /// librdkafka's properties, for outputs to topics.
    pub kafka: BTreeMap<String, String>,
    /// Reaches `checkpoint.location`.
    pub storage: Storage,
    /// A folder of this machine: state at work, answers of schema registries. What is in it may be lost.
    pub scratch: PathBuf,
    /// A variable of the environment, for secrets that the job file names.
    pub variable: fn(&str) -> Option<String>,
}

/// Where a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bound {
    /// Nowhere.
    #[default]
    Never,
    /// At the end of the live log as it is at the start.
    Now,
    /// At the end of the archive's newest snapshot.
    Snapshot,
}

/// How to run a job.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where it ends; open windows are kept for a later run.
    pub until: Bound,
    /// Whether they are fired there as if event time had ended, which closes the job.
    pub drain: bool,
    /// Where it tells its numbers.
    pub observer: Arc<Observer>,
    /// Asks for an orderly end.
    pub stop: CancellationToken,
}
