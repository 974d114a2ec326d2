//! SQL over the archive: every topic's table and every job's table of a namespace, as they are now and as they were.
//!
//! ```text
//!   SQL ─ guard ─ travel ─► names ─► table ──► plan ─► DataFusion ─► batches
//!        read only  AS OF    catalog   │  pinned snapshot: manifests prune files,
//!                                      │  Parquet footers prune row groups
//!                                      ├─ $snapshots, $files … from metadata alone
//!                                      ├─ $live: the archive, then Kafka from exactly its ledger
//!                                      └─ NAME_v: values decoded while they are read
//! ```
//!
//! - [`Session`]: one analyst's door; [`Session::query`] takes one statement and gives an [`Answer`]
//! - [`Lake`]: what there is to ask about; [`SessionOptions`], [`Limits`]: how
//! - [`table`]: a pinned snapshot as a table of DataFusion's
//! - [`QueryError`]: one line that says what is wrong and what to do
//!
//! Guarantees
//! - Read only: a statement that would change anything, read a file that was not named, or reach the network is refused.
//! - One query sees one snapshot of each table, whatever is committed meanwhile; a table at two times is two snapshots.
//! - What metadata says exactly is answered from metadata, and only that: bounds of files that everlog wrote.
//! - A corrupt file of an archive is an error, never other rows. (Files of jobs and of other engines have checksums of their
//!   pages, and none of what lies between.)
//! - Memory, disk, time and nesting are bounded.
//!
//! Not promised: that a query which runs for longer than the hour for which expiry leaves files alone ends well on an
//! old snapshot: it ends with an error, not with other rows. Tag what is read for longer.

mod catalog;
pub mod decode;
mod error;
mod failure;
mod guard;
mod json;
mod lengths;
mod live;
mod metadata;
mod moments;
mod names;
pub mod output;
mod progress;
pub mod script;
mod session;
mod spill;
mod sql_types;
pub mod table;
mod travel;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow_schema::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use everlog_common::{Clock, Ids, Millis};
use everlog_kafka::Log;
use everlog_table::catalog::Catalog;

pub use decode::{NoValues, SchemaChoice, TopicFormat, TopicValues, ValueView, Values};
pub use error::{QueryError, QueryErrorKind};
pub use names::{TableKind, TableName, quoted};
pub use progress::Progress;
pub use session::{Session, THREAD_NAME};

/// What there is to ask about.
#[derive(Debug, Clone)]
pub struct Lake {
    /// Where tables are named.
    pub catalog: Arc<dyn Catalog>,
    /// The namespace whose tables are asked about.
    pub namespace: String,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Identifiers.
    pub ids: Arc<dyn Ids>,
    /// The cluster; `$live` and `--live` alone need it.
    pub log: Option<Arc<dyn Log>>,
    /// How values are decoded: which archives have a view `NAME_v`.
    pub values: Arc<dyn Values>,
}

/// A moment of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AsOf {
    /// The snapshot that was current at this time.
    Time(Millis),
    /// This very snapshot.
    Snapshot(i64),
    /// Where a tag or branch points.
    Tag(String),
}

/// What a query may use up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that sorts, joins and groups hold together before they spill; what cannot spill ends with an error.
    pub memory: u64,
    /// How long a query may take, planning and reading of its answer included; none: as long as it takes.
    pub timeout: Option<Duration>,
    /// How many rows an answer may have: one more is an error; none: as many as there are.
    pub max_rows: Option<u64>,
    /// The folder in which the session makes a temporary folder of its own, which it removes at its end.
    pub spill: PathBuf,
    /// Bytes in that folder, at most.
    pub spill_bytes: u64,
    /// Threads that queries run on, and partitions that they are cut into.
    pub threads: usize,
}

impl Default for Limits {
    /// 1 GiB of memory, 16 GiB of disk in the system's temporary folder, as many threads as there are cores.
    fn default() -> Self {
        Self {
            memory: 1 << 30,
            timeout: None,
            max_rows: None,
            spill: std::env::temp_dir(),
            spill_bytes: 16 << 30,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

/// A local file that a query may name like a table: CSV, JSON lines or Parquet, by the end of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// The table's name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

/// How a session asks.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// The moment of every table that the query does not give one; none: now.
    pub as_of: Option<AsOf>,
    /// Whether archives that the query gives no moment come with what Kafka holds beyond them, up to its end now.
    pub live: bool,
    /// Local files as tables.
    pub files: Vec<NamedFile>,
    /// What a query may use up.
    pub limits: Limits,
}

/// A query on its way. Dropping it cancels the query.
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: SendableRecordBatchStream,
    /// How far the reading is.
    pub progress: Arc<Progress>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("schema", &self.schema)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}
