//! Proof that an archive is what the log was: read-only, in bounded memory, while everything runs.
//!
//! | check | quick | sampled | full |
//! |---|---|---|---|
//! | the ledgers along the snapshots' history only grow | yes | yes | yes |
//! | the ledger's rows are the live files' rows, no file reaches beyond the ledger | yes | yes | yes |
//! | every file is there, as long as its manifest says | yes | yes | yes |
//! | what files say that they cover does not overlap, and has the ledger's rows per partition | | yes | yes |
//! | stored data decodes, under its checksums, in order, where its file says | | a sample | yes |
//! | every partition's rows, in order, hash to the ledger's running hash | | | yes |
//! | every record that Kafka still has is the archive's, field by field, and the other way around | | yes | yes |
//!
//! What is found wrong is a [`Finding`], never an error: errors are for what could not be looked at.

pub mod compare;
mod log_side;
mod metadata;
mod run;

use std::collections::BTreeMap;
use std::time::Duration;

use everlog_common::{Gap, Generation, OffsetRange, Partition, TopicName};
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};

pub use run::verify;

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// Metadata alone: seconds, whatever the archive's size.
    Quick,
    /// Every footer, a sample of the data, and all that Kafka still has.
    #[default]
    Sampled,
    /// Every byte, and all that Kafka still has.
    Full,
}

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// The topic.
    pub topic: TopicName,
    /// How much.
    pub depth: Depth,
    /// Which snapshot.
    pub selector: SnapshotSelector,
    /// Whether the snapshot is held against expiry meanwhile.
    pub lease: LeaseMode,
    /// Bound of what is held in memory, bytes.
    pub memory_bytes: usize,
    /// Threads that decode.
    pub threads: usize,
    /// So many findings are kept with their details; all are counted.
    pub findings_max: usize,
    /// What the sample is drawn by.
    pub seed: u64,
}

impl VerifyRequest {
    /// The default of everything.
    pub fn new(topic: TopicName) -> Self {
        Self {
            topic,
            depth: Depth::default(),
            selector: SnapshotSelector::Current,
            lease: LeaseMode::Auto,
            memory_bytes: 256 << 20,
            threads: 2,
            findings_max: 20,
            seed: 0,
        }
    }
}

/// The parts of a verification, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// Ledgers along the snapshots' history.
    History,
    /// Ledger against manifests.
    Manifests,
    /// Files in the object store.
    Files,
    /// What footers say that their files cover.
    Coverage,
    /// Stored data.
    Data,
    /// Running hashes.
    Hashes,
    /// The log that Kafka still has.
    Log,
}

impl Check {
    /// All, in order.
    pub const ALL: [Self; 7] = [
        Self::History,
        Self::Manifests,
        Self::Files,
        Self::Coverage,
        Self::Data,
        Self::Hashes,
        Self::Log,
    ];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::Manifests => "manifests",
            Self::Files => "files",
            Self::Coverage => "coverage",
            Self::Data => "data",
            Self::Hashes => "hashes",
            Self::Log => "log",
        }
    }
}

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Looked at: `detail` says how much. What was wrong is in the findings.
    Done {
        /// How much was looked at, for people.
        detail: String,
    },
    /// Not part of this depth, or there was nothing to compare with.
    Skipped {
        /// Why.
        reason: String,
    },
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Records are missing that nothing explains.
    Gap,
    /// Something is stored that is not what the log had, or contradicts itself.
    Corruption,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which check found it.
    pub check: Check,
    /// How bad it is.
    pub severity: Severity,
    /// Where, if it is about offsets of one partition.
    pub place: Option<(Generation, Partition, OffsetRange)>,
    /// What is wrong, complete.
    pub what: String,
    /// What the log has there, where that can be shown.
    pub log: Option<String>,
    /// What the archive has there, where that can be shown.
    pub archive: Option<String>,
}

/// What was verified of one partition of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartitionFigures {
    /// What the ledger covers.
    pub covered: Option<OffsetRange>,
    /// Rows by the ledger.
    pub rows: u64,
    /// The offsets that were compared with Kafka.
    pub compared: Option<OffsetRange>,
    /// Records that both sides have, and that are the same.
    pub same: u64,
    /// Records that the archive has and a compacted log no longer does.
    pub compacted: u64,
    /// Whether all rows were read and hash to what the ledger says.
    pub hash_proven: bool,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// The topic.
    pub topic: TopicName,
    /// Namespace and name of the table.
    pub table: String,
    /// The snapshot that was verified; none where nothing was archived yet.
    pub snapshot_id: Option<i64>,
    /// How much was looked at.
    pub depth: Depth,
    /// Every check.
    pub checks: BTreeMap<Check, Outcome>,
    /// Per generation and partition.
    pub partitions: BTreeMap<(Generation, Partition), PartitionFigures>,
    /// The first so many.
    pub findings: Vec<Finding>,
    /// How many there were, by severity.
    pub counts: BTreeMap<Severity, u64>,
    /// Recorded gaps: holes that the ledger explains.
    pub gaps: Vec<Gap>,
    /// Live data files.
    pub files: u64,
    /// Rows of the archive that were decoded.
    pub rows_decoded: u64,
    /// Records of Kafka that were compared.
    pub records_compared: u64,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Whether all holds.
    pub fn holds(&self) -> bool {
        self.counts.values().all(|n| *n == 0)
    }

    /// The worst that was found.
    pub fn worst(&self) -> Option<Severity> {
        self.counts
            .iter()
            .filter_map(|(severity, n)| (*n > 0).then_some(*severity))
            .max()
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// What is being done.
    pub check: Check,
    /// Of the check: files, rows or records.
    pub done: u64,
    /// The same at its end, as far as known.
    pub due: u64,
}
