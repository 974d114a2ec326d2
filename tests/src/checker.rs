//! One checker for every environment: it reads a history, and says which promise was broken where.
//!
//! ```text
//!   what the broker's log holds ─┐
//!   every catalog state ─────────┤                       ┌─ Violation { rule, at, what }
//!   every object put, deleted ───┼──► Checker::observe ──┤
//!   every batch emitted ─────────┤                       └─ none: everything that was promised held, at every state
//!   every fault, every stop ─────┘
//! ```
//!
//! It knows nothing of everlog's workings: no archiver, no replayer, no reader of ours has a part in it. Events come in the
//! order in which they happened, and each is judged by what had happened until then.
//!
//! | rule | promise |
//! |---|---|
//! | R1 | every record that a consumer sees below the ledger is archived once, byte for byte |
//! | R2 | nothing else is: no aborted record, none of another incarnation, none that never was, no two versions of one log |
//! | R3 | rows of a file are in order, bounds tell the truth |
//! | R4 | a ledger never goes back, and forgets nothing |
//! | R5 | ledger and rows agree: positions, counts, running hash; no ledger is ahead of the log |
//! | R6 | every file that a snapshot needs is there, as long as it was, in one place |
//! | R7 | nothing is deleted that a snapshot needs, or a commit that may still land |
//! | R8 | what a snapshot holds does not change, what was archived stays |
//! | R9 | a replay gives the log: contiguous, in order, no record left out, none twice, across the handoff |
//! | R11 | archive and tail together are the log |
//! | R12 | it goes on: everything is archived once the faults are over; a run in which nothing happened is no proof |
//! | R14 | what is missing is recorded, and nothing else is; what stopped says so truthfully |
//!
//! R10 (resumed equals uninterrupted) is R9 over a run that was resumed: see [`Event::Resumed`]. R13 and R15 are of processes
//! and of damaged bytes, which histories do not hold.

mod log;
mod replay;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use everlog_common::{Gap, Ledger};
use twox_hash::XxHash3_64;

use self::log::Brokers;
use self::replay::Runs;
use self::table::Tables;

/// A partition of one incarnation of a topic: (topic id, partition).
pub type LogId = (u128, i32);

/// A record, as far as it has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Its offset.
    pub offset: i64,
    /// Milliseconds; -1 where it has none.
    pub timestamp_ms: i64,
    /// 0 CreateTime, 1 LogAppendTime, -1 none.
    pub timestamp_type: i8,
    /// Null and empty differ.
    pub key: Option<&'a [u8]>,
    /// Null and empty differ.
    pub value: Option<&'a [u8]>,
    /// In order, duplicates kept.
    pub headers: &'a [(Vec<u8>, Option<Vec<u8>>)],
}

impl RecordView<'_> {
    /// The canonical bytes of docs/table-format.md (*Continuity hash*), written down a second time on purpose.
    pub fn canonical(&self) -> Vec<u8> {
        fn put(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
            let len = bytes.map_or(-1, |b| i32::try_from(b.len()).unwrap_or(i32::MAX));
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(bytes.unwrap_or_default());
        }
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&self.offset.to_le_bytes());
        let at = if self.timestamp_type == -1 {
            -1
        } else {
            self.timestamp_ms
        };
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&self.timestamp_type.to_le_bytes());
        put(&mut out, self.key);
        put(&mut out, self.value);
        let count = u32::try_from(self.headers.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        for (key, value) in self.headers {
            put(&mut out, Some(key));
            put(&mut out, value.as_deref());
        }
        out
    }
}

/// What stands for a record's bytes: all of [`RecordView::canonical`], and the leader epoch where it is known.
pub fn digest(canonical: &[u8], leader_epoch: Option<i32>) -> u64 {
    XxHash3_64::oneshot_with_seed(
        leader_epoch.map_or(u64::MAX, |e| u64::from(e.unsigned_abs())),
        canonical,
    )
}

/// A row of a data file, decoded by the harness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRow {
    /// The era.
    pub generation: u32,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// See [`digest`].
    pub digest: u64,
}

/// What a manifest says of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// Its name.
    pub path: String,
    /// Its length in bytes.
    pub len: u64,
    /// Its rows.
    pub rows: u64,
    /// Lowest and highest generation, partition and offset, where the manifest tells.
    pub bounds: Option<[(i64, i64); 3]>,
}

/// A snapshot, as its manifests have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// Its id.
    pub id: i64,
    /// What it was made from.
    pub parent: Option<i64>,
    /// The ledger in its summary; none where another engine made it.
    pub ledger: Option<Ledger>,
    /// The objects that it needs besides data files: its manifest list and manifests.
    pub metadata: Vec<String>,
    /// Live data files.
    pub files: Vec<FileFacts>,
}

/// What a table's metadata says at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableState {
    /// The topic.
    pub topic: String,
    /// The object that holds the metadata.
    pub metadata: String,
    /// Every snapshot that is still there.
    pub snapshots: Vec<Arc<SnapshotFacts>>,
    /// The head of main.
    pub head: Option<i64>,
}

/// Events that a replay handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// Which replay.
    pub run: u64,
    /// The era.
    pub generation: u32,
    /// The partition.
    pub partition: i32,
    /// What the batch covers: first offset, next offset.
    pub range: (i64, i64),
    /// Offset and [`digest`] of each row.
    pub rows: Vec<(i64, u64)>,
    /// From the live log.
    pub is_live: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A topic was created, or created anew under another id.
    TopicCreated {
        /// Its name.
        topic: String,
        /// This incarnation.
        topic_id: u128,
        /// Its partitions.
        partitions: i32,
    },
    /// It has so many partitions now.
    PartitionsAdded {
        /// This incarnation.
        topic_id: u128,
        /// All of them.
        partitions: i32,
    },
    /// The topic is no more.
    TopicDeleted {
        /// Its name.
        topic: String,
    },
    /// The broker has a record.
    Appended {
        /// Where.
        log: LogId,
        /// Its offset.
        offset: i64,
        /// The leader's epoch.
        epoch: i32,
        /// See [`RecordView::canonical`].
        canonical: Vec<u8>,
        /// The transaction that it is part of.
        txn: Option<u64>,
    },
    /// The log ends here: control records count.
    LogEnd {
        /// Where.
        log: LogId,
        /// The next offset.
        end: i64,
    },
    /// A transaction was committed, or aborted.
    TransactionEnded {
        /// Which.
        txn: u64,
        /// Whether its records are to be seen.
        committed: bool,
    },
    /// Compaction took a record.
    Compacted {
        /// Where.
        log: LogId,
        /// Its offset.
        offset: i64,
    },
    /// Retention, or a delete: the log begins here from now on.
    LogStart {
        /// Where.
        log: LogId,
        /// The first offset.
        offset: i64,
    },
    /// An unclean election.
    Truncated {
        /// Where.
        log: LogId,
        /// The log ends here now.
        end: i64,
        /// The epoch that begins there.
        epoch: i32,
    },
    /// An object is stored.
    Put {
        /// Its name.
        name: String,
        /// Its length.
        len: u64,
        /// A hash of its bytes.
        hash: u64,
        /// Its rows, where it is a data file.
        rows: Option<Arc<Vec<FileRow>>>,
    },
    /// An object is gone.
    Deleted {
        /// Its name.
        name: String,
    },
    /// A commit is on its way to the catalog, which may carry it out from now on.
    CommitSent {
        /// A number.
        attempt: u64,
        /// What it needs.
        needs: Vec<String>,
    },
    /// That commit was carried out, or never will be.
    CommitSettled {
        /// Which.
        attempt: u64,
    },
    /// The catalog swapped a table's metadata.
    Table(TableState),
    /// A replay of a topic begins, from the first record.
    Opened {
        /// A number of its own.
        run: u64,
        /// The topic.
        topic: String,
    },
    /// It handed something out.
    Emitted(Emission),
    /// It passed offsets that neither tier has, and said so.
    Passed {
        /// Which.
        run: u64,
        /// The era.
        generation: u32,
        /// The partition.
        partition: i32,
        /// First offset, and the one behind; none: nobody knows.
        range: (i64, Option<i64>),
    },
    /// It was interrupted, and goes on from these positions: partition to generation and next offset. What it gave beyond is
    /// void.
    Resumed {
        /// Which.
        run: u64,
        /// Where.
        positions: BTreeMap<i32, (u32, i64)>,
    },
    /// It ended by itself.
    Finished {
        /// Which.
        run: u64,
        /// The partitions of which it read everything up to now: of those it must hold all of archive and log (R11).
        full: BTreeSet<i32>,
    },
    /// Something that no fault excuses: a panic, a complaint about stored data that nobody touched.
    Wrong {
        /// What.
        what: String,
    },
    /// An archiver says that it stopped something.
    Stopped {
        /// The topic.
        topic: String,
        /// The partition; none: the topic.
        partition: Option<i32>,
        /// The kind of failure, by everlog's name of it.
        kind: String,
    },
    /// Something was broken on purpose.
    Fault {
        /// What.
        kind: &'static str,
    },
    /// The faults are over, everybody had the time that recovery may take.
    Settled,
}

/// The rules, by the numbers of the list above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the table above says what they are")]
pub enum Rule {
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R11,
    R12,
    R14,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// By which event, counted from 0.
    pub at: usize,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at event {}: {}", self.rule, self.at, self.what)
    }
}

/// What happened, in numbers: for reports, and for those who doubt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that the brokers took.
    pub records: u64,
    /// Records that the tables hold at the end.
    pub archived: u64,
    /// Catalog states.
    pub states: u64,
    /// Rows that replays gave.
    pub emitted: u64,
    /// Gaps in the ledgers.
    pub gaps: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
}

/// Violations are kept up to here: the first is what matters.
const VIOLATIONS_MAX: usize = 20;

/// What every part of the checker writes to.
#[derive(Debug, Default)]
struct Findings {
    at: usize,
    violations: Vec<Violation>,
}

impl Findings {
    fn broken(&mut self, rule: Rule, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation {
                rule,
                at: self.at,
                what,
            });
        }
    }

    fn check(&mut self, rule: Rule, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken(rule, what());
        }
    }
}

/// Reads a history.
#[derive(Debug, Default)]
pub struct Checker {
    brokers: Brokers,
    tables: Tables,
    runs: Runs,
    findings: Findings,
    stopped: BTreeMap<(String, Option<i32>), String>,
    counts: Counts,
    is_settled: bool,
}

impl Checker {
    /// Of a world in which nothing has happened yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what happened next.
    pub fn observe(&mut self, event: Event) {
        match event {
            Event::Table(state) => {
                self.counts.states += 1;
                self.tables
                    .take_state(state, &self.brokers, &mut self.findings);
            }
            Event::Put {
                name,
                len,
                hash,
                rows,
            } => self
                .tables
                .take_put(name, (len, hash), rows, &mut self.findings),
            Event::Deleted { name } => self.tables.take_delete(&name, &mut self.findings),
            Event::CommitSent { attempt, needs } => self.tables.take_sent(attempt, needs),
            Event::CommitSettled { attempt } => self.tables.take_settled(attempt),
            Event::Opened { run, topic } => self.runs.open(run, topic, &self.tables),
            Event::Emitted(emission) => {
                self.counts.emitted += emission.rows.len() as u64;
                self.runs
                    .take(emission, &self.brokers, &self.tables, &mut self.findings);
            }
            Event::Passed {
                run,
                generation,
                partition,
                range,
            } => self.runs.pass(
                run,
                (generation, partition, range),
                &self.tables,
                &mut self.findings,
            ),
            Event::Resumed { run, positions } => {
                self.runs
                    .resume(run, &positions, &self.tables, &mut self.findings);
            }
            Event::Finished { run, full } => {
                self.runs
                    .finish(run, &full, &self.brokers, &self.tables, &mut self.findings);
            }
            Event::Wrong { what } => self.findings.broken(Rule::R12, what),
            Event::Stopped {
                topic,
                partition,
                kind,
            } => {
                self.stopped.insert((topic, partition), kind);
            }
            Event::Fault { kind } => *self.counts.faults.entry(kind).or_default() += 1,
            Event::Settled => self.settle(),
            other => {
                if matches!(other, Event::Appended { .. }) {
                    self.counts.records += 1;
                }
                self.brokers.take(other);
            }
        }
        self.findings.at += 1;
    }

    /// R12: everything that can be archived is; what is not, is told (R14).
    fn settle(&mut self) {
        self.is_settled = true;
        for (topic, topic_id) in self.brokers.topics() {
            let diverged = self.tables.diverged(topic, topic_id, &self.brokers);
            for (partition, log) in self.brokers.partitions(topic_id) {
                let next = self.tables.next(topic, topic_id, partition);
                let end = log.stable_end();
                if next == Some(end) || (next.is_none() && log.is_untouched()) {
                    continue;
                }
                let told = self
                    .stopped
                    .get(&(topic.to_owned(), Some(partition)))
                    .or_else(|| self.stopped.get(&(topic.to_owned(), None)));
                let is_true = match told.map(String::as_str) {
                    Some("truncated") => diverged.contains(&partition),
                    Some("retention") => next.is_some_and(|next| next < log.log_start()),
                    _ => false,
                };
                if is_true {
                    continue;
                }
                let rule = if told.is_some() { Rule::R14 } else { Rule::R12 };
                self.findings.broken(
                    rule,
                    format!(
                        "{topic}-{partition} is archived up to {next:?}, the log is [{}, {end}); told: {told:?}, diverged: {}",
                        log.log_start(),
                        diverged.contains(&partition),
                    ),
                );
            }
        }
    }

    /// The end of the history.
    pub fn finish(mut self) -> Outcome {
        self.tables.at_the_end(&self.brokers, &mut self.findings);
        let findings = &mut self.findings;
        findings.check(Rule::R12, self.is_settled, || {
            "the run never came to rest".to_owned()
        });
        self.counts.archived = self.tables.rows();
        self.counts.gaps = self.tables.gaps();
        let counts = &self.counts;
        findings.check(Rule::R12, counts.archived > 0, || {
            "nothing was archived".to_owned()
        });
        findings.check(Rule::R12, counts.emitted > 0, || {
            "nothing was replayed".to_owned()
        });
        Outcome {
            violations: self.findings.violations,
            counts: self.counts,
        }
    }

    /// What was found so far.
    pub fn violations(&self) -> &[Violation] {
        &self.findings.violations
    }
}

/// What a history came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Broken promises, in order.
    pub violations: Vec<Violation>,
    /// What happened.
    pub counts: Counts,
}

/// Whether a recorded gap covers all of `[start, end)`.
fn is_gap(gaps: &[Gap], start: i64, end: i64) -> bool {
    let mut at = start;
    let mut sorted: Vec<_> = gaps.iter().map(|g| (g.start.get(), g.end)).collect();
    sorted.sort_unstable_by_key(|(start, _)| *start);
    for (from, to) in sorted {
        if from <= at {
            at = at.max(to.map_or(i64::MAX, everlog_common::Offset::get));
        }
    }
    at >= end
}

#[cfg(test)]
mod tests;
