//! Reads footers and decodes row groups on tasks that it owns, as many as the assembly gives work for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{EventColumns, Generation, Partition, compute};
use everlog_table::files::PlannedFile;
use everlog_table::scan::{self, FileFooter, ScanError};
use everlog_table::storage::StorageErrorKind;
use tokio::task::JoinSet;

use super::assembly::{Assembly, Work};
use super::merger::{MergeError, sorted_runs};
use super::planner::{GroupFacts, NodeId, Unit};
use super::{Reading, data_error, facts};
use crate::error::ReplayError;

/// How often a read is tried that failed for a reason that may pass. The store's client repeats single requests besides.
const ATTEMPTS: u32 = 4;
/// Footers that are kept between opening a file and decoding its last row group; one that had to go is read again.
const FOOTERS_MAX: usize = 64;
/// Wait before the second attempt; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(250);

/// What came back.
#[derive(Debug)]
pub(super) enum Reply {
    /// A file's row groups.
    Opened(NodeId, Vec<GroupFacts>),
    /// A row group's rows.
    Decoded(NodeId, Vec<(Partition, EventColumns)>),
}

#[derive(Debug)]
enum Done {
    Opened(NodeId, usize, Result<FileFooter, ScanError>),
    Decoded(
        NodeId,
        usize,
        Result<Vec<(Partition, EventColumns)>, DecodeError>,
    ),
}

#[derive(Debug)]
enum DecodeError {
    Scan(ScanError),
    Merge(MergeError),
    Stopped,
}

/// A footer is kept while row groups of its file are still to be decoded.
#[derive(Debug)]
struct Opened {
    footer: Arc<FileFooter>,
    left: usize,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Scanner {
    reading: Reading,
    generation: Generation,
    only_from: Option<i64>,
    tasks: JoinSet<Done>,
    footers: BTreeMap<usize, Opened>,
    footers_by_age: VecDeque<usize>,
}

impl Scanner {
    pub(super) fn new(reading: Reading, generation: Generation, only_from: Option<i64>) -> Self {
        Self {
            reading,
            generation,
            only_from,
            tasks: JoinSet::new(),
            footers: BTreeMap::new(),
            footers_by_age: VecDeque::new(),
        }
    }

    /// Starts all that the assembly wants read now.
    pub(super) fn start(&mut self, assembly: &mut Assembly) {
        while let Some(work) = assembly.work() {
            match work {
                Work::Open(node, file) => {
                    let reading = self.reading.clone();
                    self.tasks.spawn(async move {
                        let footer = open(&reading, &reading.files[file]).await;
                        Done::Opened(node, file, footer)
                    });
                }
                Work::Decode(unit) => {
                    let footer = self.footer_for(&unit);
                    let (reading, generation) = (self.reading.clone(), self.generation);
                    self.tasks.spawn(async move {
                        let runs = decode(&reading, generation, &unit, footer).await;
                        Done::Decoded(unit.node, unit.origin.file, runs)
                    });
                }
            }
        }
    }

    /// Whether nothing is being read.
    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The next reply. Cancel-safe.
    pub(super) async fn reply(&mut self) -> Result<Reply, ReplayError> {
        let done = match self.tasks.join_next().await {
            Some(Ok(done)) => done,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(_)) | None => return Err(ReplayError::Stopped("reading of data files")),
        };
        match done {
            Done::Opened(node, number, footer) => {
                let file = &self.reading.files[number];
                let footer = footer.map_err(|e| scan_error(file, e))?;
                let groups = facts::of_groups(file, &footer, self.generation, self.only_from);
                self.keep(number, footer, groups.len());
                Ok(Reply::Opened(node, groups))
            }
            Done::Decoded(node, number, runs) => {
                let files = &self.reading.files;
                let runs = runs.map_err(|e| match e {
                    DecodeError::Scan(e) => scan_error(&files[number], e),
                    DecodeError::Merge(e) => data_error(self.generation, files, e),
                    DecodeError::Stopped => ReplayError::Stopped("decoding of data files"),
                })?;
                Ok(Reply::Decoded(node, runs))
            }
        }
    }

    fn keep(&mut self, file: usize, footer: FileFooter, left: usize) {
        if left == 0 {
            return;
        }
        let footer = Arc::new(footer);
        self.footers.insert(file, Opened { footer, left });
        self.footers_by_age.push_back(file);
        if self.footers_by_age.len() > FOOTERS_MAX
            && let Some(oldest) = self.footers_by_age.pop_front()
        {
            self.footers.remove(&oldest);
        }
    }

    /// The footer that was read when the file was opened; none for a row group that is decoded again later.
    fn footer_for(&mut self, unit: &Unit) -> Option<Arc<FileFooter>> {
        let file = unit.origin.file;
        let opened = self.footers.get_mut(&file)?;
        let footer = Arc::clone(&opened.footer);
        if !unit.again {
            opened.left -= 1;
            if opened.left == 0 {
                self.footers.remove(&file);
            }
        }
        Some(footer)
    }
}

async fn open(reading: &Reading, file: &PlannedFile) -> Result<FileFooter, ScanError> {
    let mut wait = BACKOFF;
    for _ in 1..ATTEMPTS {
        match scan::read_footer(&reading.storage, file).await {
            Err(error) if error.kind() == StorageErrorKind::Transient => {
                tracing::debug!(file = %file.path, %error, "reading a footer again");
                reading.clock.sleep(wait).await;
                wait *= 2;
            }
            result => return result,
        }
    }
    scan::read_footer(&reading.storage, file).await
}

async fn decode(
    reading: &Reading,
    generation: Generation,
    unit: &Unit,
    footer: Option<Arc<FileFooter>>,
) -> Result<Vec<(Partition, EventColumns)>, DecodeError> {
    let number = unit.origin.file;
    let file = &reading.files[number];
    let footer = match footer {
        Some(footer) => footer,
        None => Arc::new(open(reading, file).await.map_err(DecodeError::Scan)?),
    };
    let group = unit.origin.row_group;
    let mut attempt = 1;
    let mut wait = BACKOFF;
    let runs = loop {
        let read =
            scan::read_row_group(&reading.storage, file, &footer, group, &reading.topic).await;
        match read {
            Err(error) if error.kind() == StorageErrorKind::Transient && attempt < ATTEMPTS => {
                tracing::debug!(file = %file.path, group, %error, "decoding a row group again");
                reading.clock.sleep(wait).await;
                wait *= 2;
                attempt += 1;
            }
            result => break result.map_err(DecodeError::Scan)?,
        }
    };
    let due = footer.row_groups.get(group).map_or(0, |g| g.rows);
    let found: u64 = runs.iter().map(|r| r.columns.len() as u64).sum();
    if due != found {
        return Err(DecodeError::Scan(ScanError::Corrupt {
            path: file.path.clone(),
            what: format!("row group {group} has {found} rows, its footer says {due}"),
        }));
    }
    let sorted = compute::spawn(move || {
        let wanted = runs.into_iter().filter(|r| r.generation == generation);
        let runs = wanted.map(|r| (r.partition, r.columns)).collect();
        sorted_runs(number, runs)
    });
    match sorted.await {
        Ok(runs) => runs.map_err(DecodeError::Merge),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(DecodeError::Stopped),
    }
}

fn scan_error(file: &PlannedFile, source: ScanError) -> ReplayError {
    let holds = facts::describe(file);
    if source.kind() == StorageErrorKind::NotFound {
        return ReplayError::FileGone { holds, source };
    }
    ReplayError::Scan { holds, source }
}
