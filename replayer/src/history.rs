//! The history tier: the data files of one pinned snapshot as batches in order.
//!
//! ```text
//!   PlannedFile ──facts──► Assembly (planner + merger + timeline, pure) ──► EventBatch
//!                            │ work ▲ footers, decoded row groups
//!                            ▼      │
//!                          scanner: tasks that read footers and decode row groups, bounded by bytes
//! ```
//!
//! Order: generation by generation; within one, every partition's offsets strictly increase.

pub mod assembly;
mod facts;
pub mod lanes;
pub mod merger;
pub mod planner;
mod scanner;
pub mod timeline;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use everlog_common::{
    Clock, EventBatch, Gap, Generation, Millis, Partition, Position, Positions, Source, TopicName,
};
use everlog_table::files::PlannedFile;
use everlog_table::storage::Storage;

pub(crate) use self::facts::describe;

use self::assembly::{Assembly, Limits, Ready};
use self::lanes::{Phase, Selection, Stops};
use self::merger::MergeError;
use self::scanner::{Reply, Scanner};
use crate::error::ReplayError;
use crate::request::Order;

/// Files that are opened ahead of decoding.
const FILES_AHEAD: usize = 24;
/// Row groups in flight per thread: small ones are bound by the store's latency, large ones by bytes.
const UNITS_PER_THREAD: usize = 4;

/// How history is read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) topic: TopicName,
    pub(crate) storage: Storage,
    pub(crate) files: Arc<Vec<PlannedFile>>,
    pub(crate) order: Order,
    pub(crate) memory_bytes: usize,
    pub(crate) threads: usize,
    pub(crate) clock: Arc<dyn Clock>,
}

/// What history gives.
#[derive(Debug)]
pub(crate) enum HistoryItem {
    /// Events.
    Batch(EventBatch),
    /// A recorded gap was passed.
    Gap(Gap),
}

/// Reads a selection of a snapshot.
#[derive(Debug)]
pub(crate) struct History {
    reading: Reading,
    phases: VecDeque<Phase>,
    current: Option<Current>,
    /// Rows of the whole selection, by the ledger.
    rows_due: u64,
    rows_out: u64,
    /// Partitions that ended before the asked timestamp was reached.
    stopped: BTreeSet<Partition>,
    /// Partitions that are held back.
    held: BTreeSet<Partition>,
    /// Only files and row groups that may hold a record at or after this (milliseconds).
    only_from: Option<i64>,
}

#[derive(Debug)]
struct Current {
    generation: Generation,
    assembly: Assembly,
    scanner: Scanner,
}

impl History {
    /// Over what the selection leaves to emit.
    pub(crate) fn new(reading: Reading, phases: Vec<Phase>) -> Self {
        Self {
            rows_due: phases.iter().map(|p| p.rows).sum(),
            phases: phases.into(),
            reading,
            current: None,
            rows_out: 0,
            stopped: BTreeSet::new(),
            held: BTreeSet::new(),
            only_from: None,
        }
    }

    /// Rows emitted, and rows due by the ledger (about, where only parts of partitions are wanted).
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.rows_out, self.rows_due.max(self.rows_out))
    }

    /// Partitions whose end by timestamp was found.
    pub(crate) fn stopped(&self) -> &BTreeSet<Partition> {
        &self.stopped
    }

    /// Holds these partitions back from now on, and no others: see [`Assembly::hold`].
    pub(crate) fn hold(&mut self, held: &BTreeSet<Partition>) {
        self.held.clone_from(held);
        if let Some(current) = &mut self.current {
            current.assembly.hold(held);
        }
    }

    /// Whether the generation that is being read has more of `partition`.
    pub(crate) fn has_more(&self, partition: Partition) -> bool {
        match (&self.current, self.phases.front()) {
            (Some(current), _) => current.assembly.has_more(partition),
            (None, Some(next)) => {
                next.lanes.contains_key(&partition) && !self.stopped.contains(&partition)
            }
            (None, None) => false,
        }
    }

    /// The next item; none at the end. Cancel-safe. `stays`: in the generation that it is in, since something of it waits
    /// to be handed out. Where all that is left (or all of the generation) is held back, no item comes.
    pub(crate) async fn next(&mut self, stays: bool) -> Result<Option<HistoryItem>, ReplayError> {
        loop {
            let Some(current) = self.current.as_mut() else {
                match self.phases.pop_front() {
                    None => return Ok(None),
                    Some(mut phase) => {
                        phase.lanes.retain(|p, _| !self.stopped.contains(p));
                        self.current = Some(self.begin(phase));
                    }
                }
                continue;
            };
            let generation = current.generation;
            let failed = |files: &[PlannedFile], e| data_error(generation, files, e);
            match current.assembly.next() {
                Err(error) => return Err(failed(&self.reading.files, error)),
                Ok(Ready::Rows(rows)) => {
                    current.scanner.start(&mut current.assembly);
                    self.rows_out += rows.columns.len() as u64;
                    return Ok(Some(HistoryItem::Batch(EventBatch {
                        topic: self.reading.topic.clone(),
                        generation,
                        partition: rows.partition,
                        range: rows.range,
                        columns: rows.columns,
                        source: Source::Archive,
                    })));
                }
                Ok(Ready::Gap(gap)) => return Ok(Some(HistoryItem::Gap(gap))),
                Ok(Ready::Finished) if stays => return std::future::pending().await,
                Ok(Ready::Finished) => {
                    self.stopped.extend(current.assembly.stopped());
                    self.current = None;
                }
                Ok(Ready::Waiting) => {
                    current.scanner.start(&mut current.assembly);
                    if current.scanner.is_idle() && !self.held.is_empty() {
                        return std::future::pending().await;
                    }
                    let reply = current.scanner.reply().await?;
                    let accepted = match reply {
                        Reply::Opened(node, groups) => {
                            current.assembly.opened(node, groups);
                            Ok(())
                        }
                        Reply::Decoded(node, runs) => current.assembly.decoded(node, runs),
                    };
                    accepted.map_err(|e| failed(&self.reading.files, e))?;
                }
            }
        }
    }

    fn begin(&self, phase: Phase) -> Current {
        let reading = &self.reading;
        let limits = Limits {
            hold_bytes: reading.memory_bytes / 4,
            decode_bytes: reading.memory_bytes / 4,
            units: reading.threads * UNITS_PER_THREAD,
            files: FILES_AHEAD,
        };
        let files = reading.files.iter().enumerate();
        let facts =
            files.filter_map(|(i, f)| facts::of_file(i, f, phase.generation, self.only_from));
        let mut assembly = Assembly::new(phase.lanes, facts, reading.order, limits);
        assembly.hold(&self.held);
        Current {
            generation: phase.generation,
            assembly,
            scanner: Scanner::new(reading.clone(), phase.generation, self.only_from),
        }
    }
}

/// The first record at or after `at` of every partition that the selection leaves, in order of (generation, offset).
/// Partitions without one are absent.
pub(crate) async fn find_timestamp(
    reading: &Reading,
    selection: Selection<'_>,
    at: Millis,
) -> Result<Positions, ReplayError> {
    let stops = Stops {
        offsets: None,
        timestamp: Some(at.0),
    };
    let mut found = Positions::new();
    let selection = Selection {
        stops: &stops,
        ..selection
    };
    for mut phase in selection.phases() {
        phase.lanes.retain(|p, _| !found.contains_key(p));
        for lane in phase.lanes.values_mut() {
            lane.gaps.clear();
        }
        let generation = phase.generation;
        let partitions: Vec<_> = phase.lanes.keys().copied().collect();
        let mut history = History::new(
            Reading {
                order: Order::Partition,
                ..reading.clone()
            },
            Vec::new(),
        );
        history.only_from = Some(at.0);
        let mut current = history.begin(phase);
        loop {
            let failed = |e| data_error(generation, &reading.files, e);
            match current.assembly.next().map_err(failed)? {
                Ready::Rows(_) | Ready::Gap(_) => {}
                Ready::Finished => break,
                Ready::Waiting => {
                    current.scanner.start(&mut current.assembly);
                    match current.scanner.reply().await? {
                        Reply::Opened(node, groups) => current.assembly.opened(node, groups),
                        Reply::Decoded(node, runs) => {
                            current.assembly.decoded(node, runs).map_err(failed)?;
                        }
                    }
                }
            }
        }
        for partition in partitions {
            if let Some(offset) = current.assembly.stopped_at(partition) {
                found.insert(partition, Position { generation, offset });
            }
        }
    }
    Ok(found)
}

fn data_error(generation: Generation, files: &[PlannedFile], source: MergeError) -> ReplayError {
    let numbers = match &source {
        MergeError::Duplicate { files, .. } if files.0 == files.1 => vec![files.0],
        MergeError::Duplicate { files, .. } => vec![files.0, files.1],
        MergeError::Late { file, .. } | MergeError::Misplaced { file, .. } => vec![*file],
        MergeError::InGap { .. } | MergeError::RowCount { .. } | MergeError::Arrow(_) => vec![],
    };
    let path = |number: usize| files.get(number).map(|f| f.path.clone());
    ReplayError::Data {
        generation,
        files: numbers.into_iter().filter_map(path).collect(),
        source,
    }
}
