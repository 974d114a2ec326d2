//! The tables: every state that the catalog had, every object, and every commit that may still come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use everlog_common::{Entry, Gap, GapReason, Generation, Ledger, Partition};
use twox_hash::XxHash3_64;

use super::log::{Brokers, PartitionLog};
use super::{FileRow, Findings, LogId, Rule, SnapshotFacts, TableState, is_gap};

/// A partition of an era.
pub(super) type Key = (u32, i32);

#[derive(Debug)]
struct Object {
    len: u64,
    hash: u64,
    rows: Option<Arc<Vec<FileRow>>>,
    is_there: bool,
}

/// What the head of main holds of one partition.
#[derive(Debug, Default)]
pub(super) struct Archived {
    pub(super) rows: BTreeMap<i64, u64>,
    /// The running hash over them.
    hash: u64,
}

#[derive(Debug, Default)]
struct Table {
    /// Every snapshot that was ever seen.
    known: BTreeMap<i64, Arc<SnapshotFacts>>,
    /// Those of the newest state.
    live: BTreeSet<i64>,
    metadata: String,
    head: Option<i64>,
    ledger: Ledger,
    files: BTreeSet<String>,
    archived: BTreeMap<Key, Archived>,
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    tables: BTreeMap<String, Table>,
    objects: BTreeMap<String, Object>,
    /// How many live snapshots need an object.
    needed: BTreeMap<String, u32>,
    attempts: BTreeMap<u64, Vec<String>>,
}

impl Tables {
    pub(super) fn take_put(
        &mut self,
        name: String,
        (len, hash): (u64, u64),
        rows: Option<Arc<Vec<FileRow>>>,
        findings: &mut Findings,
    ) {
        if let Some(before) = self.objects.get(&name) {
            findings.check(
                Rule::R8,
                before.is_there && before.len == len && before.hash == hash,
                || format!("{name} was written a second time"),
            );
        }
        let object = Object {
            len,
            hash,
            rows,
            is_there: true,
        };
        self.objects.insert(name, object);
    }

    pub(super) fn take_delete(&mut self, name: &str, findings: &mut Findings) {
        findings.check(Rule::R7, !self.needed.contains_key(name), || {
            format!("{name} was deleted, and a snapshot needs it")
        });
        for (attempt, needs) in &self.attempts {
            findings.check(Rule::R7, !needs.iter().any(|n| n == name), || {
                format!("{name} was deleted, and commit {attempt} may still land")
            });
        }
        if let Some(object) = self.objects.get_mut(name) {
            object.is_there = false;
        }
    }

    pub(super) fn take_sent(&mut self, attempt: u64, needs: Vec<String>) {
        self.attempts.insert(attempt, needs);
    }

    pub(super) fn take_settled(&mut self, attempt: u64) {
        self.attempts.remove(&attempt);
    }

    /// What the newest ledger says is archived next of a partition of an incarnation.
    pub(super) fn next(&self, topic: &str, topic_id: u128, partition: i32) -> Option<i64> {
        let (_, entry) = self.entry(topic, topic_id, partition)?;
        Some(entry.next.get())
    }

    fn entry(&self, topic: &str, topic_id: u128, partition: i32) -> Option<(Generation, Entry)> {
        let table = self.tables.get(topic)?;
        let (generation, era) =
            table.ledger.generations.iter().find(|(_, era)| {
                era.identity.topic_id.map(|id| id.0.as_u128()) == Some(topic_id)
            })?;
        let partition = Partition::new(partition).ok()?;
        Some((*generation, *era.partitions.get(&partition)?))
    }

    /// The ledger of a topic's head, and the rows of a partition there.
    pub(super) fn ledger(&self, topic: &str) -> Option<&Ledger> {
        Some(&self.tables.get(topic)?.ledger)
    }

    pub(super) fn archived(&self, topic: &str, key: Key) -> Option<&Archived> {
        self.tables.get(topic)?.archived.get(&key)
    }

    /// Partitions whose log was cut below what is archived: the archive holds what Kafka lost.
    pub(super) fn diverged(&self, topic: &str, topic_id: u128, brokers: &Brokers) -> BTreeSet<i32> {
        let is_diverged = |partition: i32, log: &PartitionLog| {
            let Some((generation, entry)) = self.entry(topic, topic_id, partition) else {
                return false;
            };
            let rows = self.archived(topic, (generation.0, partition));
            log.cuts.iter().any(|cut| {
                let holds_lost = rows.is_some_and(|archived| {
                    archived.rows.range(cut.end..).any(|(offset, digest)| {
                        let versions = log.versions(*offset);
                        let of_row = versions.iter().find(|v| v.digest == *digest);
                        of_row.is_some_and(|v| v.epoch < cut.epoch)
                    })
                });
                let is_behind = entry.next.get() > cut.end
                    && entry.leader_epoch.is_none_or(|epoch| epoch < cut.epoch);
                holds_lost || is_behind
            })
        };
        brokers
            .partitions(topic_id)
            .filter(|(partition, log)| is_diverged(*partition, log))
            .map(|(partition, _)| partition)
            .collect()
    }

    pub(super) fn rows(&self) -> u64 {
        let all = self.tables.values().flat_map(|t| t.archived.values());
        all.map(|a| a.rows.len() as u64).sum()
    }

    pub(super) fn gaps(&self) -> u64 {
        let all = self.tables.values().map(|t| t.ledger.gaps.len() as u64);
        all.sum()
    }

    pub(super) fn take_state(
        &mut self,
        state: TableState,
        brokers: &Brokers,
        findings: &mut Findings,
    ) {
        let mut table = self.tables.remove(&state.topic).unwrap_or_default();
        let mut live = BTreeSet::new();
        for snapshot in &state.snapshots {
            live.insert(snapshot.id);
            match table.known.get(&snapshot.id) {
                Some(known) => {
                    findings.check(
                        Rule::R8,
                        Arc::ptr_eq(known, snapshot) || known == snapshot,
                        || format!("snapshot {} is not what it was", snapshot.id),
                    );
                }
                None => {
                    self.check_snapshot(snapshot, &table, findings);
                    table.known.insert(snapshot.id, Arc::clone(snapshot));
                }
            }
        }
        self.count_needed(&table, &live, &state.metadata);
        table.live = live;
        table.metadata.clone_from(&state.metadata);
        if state.head != table.head {
            let head = state.head.and_then(|id| table.known.get(&id)).cloned();
            match head {
                Some(head) => {
                    self.check_head(&state.topic, &mut table, &head, brokers, findings);
                }
                None => findings.broken(
                    Rule::R8,
                    format!(
                        "{}: main is at {:?}, which is no snapshot",
                        state.topic, state.head
                    ),
                ),
            }
            table.head = state.head;
        }
        self.tables.insert(state.topic, table);
    }

    /// Counts what the new set of snapshots needs.
    fn count_needed(&mut self, table: &Table, live: &BTreeSet<i64>, metadata: &str) {
        let names = |id: &i64| {
            table.known.get(id).into_iter().flat_map(|s| {
                let files = s.files.iter().map(|f| f.path.clone());
                s.metadata.iter().cloned().chain(files)
            })
        };
        for name in live.difference(&table.live).flat_map(names) {
            *self.needed.entry(name).or_default() += 1;
        }
        let gone: Vec<String> = table.live.difference(live).flat_map(names).collect();
        for name in gone.iter().chain(std::iter::once(&table.metadata)) {
            if let Some(count) = self.needed.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.needed.remove(name);
                }
            }
        }
        *self.needed.entry(metadata.to_owned()).or_default() += 1;
    }

    /// What holds for any snapshot: its objects are there, once each, and bounds tell the truth.
    fn check_snapshot(&self, snapshot: &SnapshotFacts, table: &Table, findings: &mut Findings) {
        let id = snapshot.id;
        for name in &snapshot.metadata {
            findings.check(
                Rule::R6,
                self.objects.get(name).is_some_and(|o| o.is_there),
                || format!("snapshot {id} needs {name}, which is not there"),
            );
        }
        let mut seen = BTreeSet::new();
        for file in &snapshot.files {
            let path = &file.path;
            findings.check(Rule::R6, seen.insert(path.as_str()), || {
                format!("snapshot {id} lists {path} twice")
            });
            let object = self.objects.get(path).filter(|o| o.is_there);
            let Some(object) = object else {
                findings.broken(
                    Rule::R6,
                    format!("snapshot {id} needs {path}, which is not there"),
                );
                continue;
            };
            findings.check(Rule::R6, object.len == file.len, || {
                format!(
                    "{path} has {} bytes, snapshot {id} says {}",
                    object.len, file.len
                )
            });
            let Some(rows) = &object.rows else {
                findings.broken(Rule::R6, format!("{path} is no data file"));
                continue;
            };
            findings.check(Rule::R5, rows.len() as u64 == file.rows, || {
                format!(
                    "{path} has {} rows, snapshot {id} says {}",
                    rows.len(),
                    file.rows
                )
            });
            if !table.files.contains(path) {
                check_order(path, rows, file.bounds, findings);
            }
        }
    }

    /// What holds for a new head of main, given the one before.
    fn check_head(
        &self,
        topic: &str,
        table: &mut Table,
        head: &SnapshotFacts,
        brokers: &Brokers,
        findings: &mut Findings,
    ) {
        findings.check(Rule::R4, head.parent == table.head, || {
            format!(
                "{topic}: snapshot {} follows {:?}, main was at {:?}",
                head.id, head.parent, table.head
            )
        });
        let before = std::mem::take(&mut table.ledger);
        let Some(ledger) = &head.ledger else {
            findings.broken(
                Rule::R4,
                format!("{topic}: snapshot {} has no ledger", head.id),
            );
            return;
        };
        check_monotonic(topic, &before, ledger, findings);
        let files: BTreeSet<String> = head.files.iter().map(|f| f.path.clone()).collect();
        for gone in table.files.difference(&files) {
            findings.broken(
                Rule::R8,
                format!("{topic}: snapshot {} has lost {gone}", head.id),
            );
        }
        let mut added: Vec<FileRow> = Vec::new();
        for path in files.difference(&table.files) {
            let rows = self.objects.get(path).and_then(|o| o.rows.as_ref());
            added.extend(rows.into_iter().flat_map(|rows| rows.iter().copied()));
        }
        added.sort_unstable_by_key(|r| (r.generation, r.partition, r.offset));
        for row in added {
            let log = log_of(ledger, row.generation, row.partition).and_then(|id| brokers.log(id));
            let archived = table
                .archived
                .entry((row.generation, row.partition))
                .or_default();
            take_row(topic, row, log, archived, findings);
        }
        for (generation, era) in &ledger.generations {
            for (partition, entry) in &era.partitions {
                let key = (generation.0, partition.get());
                let Some(log) = log_of(ledger, key.0, key.1).and_then(|id| brokers.log(id)) else {
                    findings.broken(
                        Rule::R2,
                        format!("{topic}-{partition}: generation {generation} is of no topic that ever was"),
                    );
                    continue;
                };
                let base = before.entry(*generation, *partition);
                let nothing = Archived::default();
                let archived = table.archived.get(&key).unwrap_or(&nothing);
                let facts = PartitionState {
                    topic,
                    key,
                    entry,
                    base,
                    log,
                    archived,
                    gaps: ledger.gaps_of(*generation, *partition),
                };
                facts.check(findings);
            }
        }
        let rows: u64 = table.archived.values().map(|a| a.rows.len() as u64).sum();
        findings.check(Rule::R5, rows == ledger.rows(), || {
            format!("{topic}: {rows} rows, the ledger counts {}", ledger.rows())
        });
        check_new_gaps(topic, &before, ledger, table, brokers, findings);
        table.ledger = ledger.clone();
        table.files = files;
    }

    /// What can only be said when everything has happened: records that were committed late.
    pub(super) fn at_the_end(&self, brokers: &Brokers, findings: &mut Findings) {
        for (topic, table) in &self.tables {
            for (generation, era) in &table.ledger.generations {
                for (partition, entry) in &era.partitions {
                    let key = (generation.0, partition.get());
                    let log = log_of(&table.ledger, key.0, key.1).and_then(|id| brokers.log(id));
                    let Some(log) = log else { continue };
                    let nothing = Archived::default();
                    let archived = table.archived.get(&key).unwrap_or(&nothing);
                    for (offset, version) in log.visible(entry.first.get(), entry.next.get()) {
                        let holds = archived.rows.contains_key(&offset)
                            || log.is_beyond_reach(
                                offset,
                                version,
                                entry.next.get(),
                                entry.leader_epoch,
                            );
                        findings.check(Rule::R1, holds, || {
                            format!(
                                "{topic}-{partition}: offset {offset} is in the log, and is not archived, the ledger is at {}",
                                entry.next
                            )
                        });
                    }
                }
            }
        }
        for name in self.needed.keys() {
            findings.check(
                Rule::R6,
                self.objects.get(name).is_some_and(|o| o.is_there),
                || format!("{name} is needed at the end, and is not there"),
            );
        }
    }
}

/// The log that an era's partition was archived from.
pub(super) fn log_of(ledger: &Ledger, generation: u32, partition: i32) -> Option<LogId> {
    let era = ledger.generations.get(&Generation(generation))?;
    Some((era.identity.topic_id?.0.as_u128(), partition))
}

fn check_order(
    path: &str,
    rows: &[FileRow],
    bounds: Option<[(i64, i64); 3]>,
    findings: &mut Findings,
) {
    let place = |r: &FileRow| (r.generation, r.partition, r.offset);
    findings.check(
        Rule::R3,
        rows.windows(2).all(|w| place(&w[0]) < place(&w[1])),
        || format!("{path}: rows are not in order"),
    );
    let span = |of: fn(&FileRow) -> i64| {
        let all = rows.iter().map(of);
        all.clone().min().zip(all.max())
    };
    let real = [
        span(|r| i64::from(r.generation)),
        span(|r| i64::from(r.partition)),
        span(|r| r.offset),
    ];
    findings.check(Rule::R3, bounds.map(|b| b.map(Some)) == Some(real), || {
        format!("{path}: bounds are {bounds:?}, rows are in {real:?}")
    });
}

fn check_monotonic(topic: &str, before: &Ledger, after: &Ledger, findings: &mut Findings) {
    for (generation, era) in &before.generations {
        for (partition, old) in &era.partitions {
            let new = after.entry(*generation, *partition);
            let holds = new.is_some_and(|new| {
                new.next >= old.next && new.rows >= old.rows && new.first == old.first
            });
            findings.check(Rule::R4, holds, || {
                format!("{topic}-{partition}: the ledger went from {old:?} to {new:?}")
            });
        }
        findings.check(
            Rule::R4,
            after
                .generations
                .get(generation)
                .is_some_and(|new| new.identity == era.identity),
            || format!("{topic}: generation {generation} is another's now"),
        );
    }
    findings.check(
        Rule::R4,
        before.gaps.iter().all(|g| after.gaps.contains(g)),
        || format!("{topic}: a gap was forgotten"),
    );
}

/// R1 (once) and R2 (a record that was, and is to be seen).
fn take_row(
    topic: &str,
    row: FileRow,
    log: Option<&PartitionLog>,
    archived: &mut Archived,
    findings: &mut Findings,
) {
    let FileRow {
        generation,
        partition,
        offset,
        digest,
    } = row;
    let name = || format!("{topic}-{partition} generation {generation} offset {offset}");
    let last = archived.rows.last_key_value().map(|(o, _)| *o);
    if archived.rows.insert(offset, digest).is_some() {
        findings.broken(Rule::R1, format!("{} is archived twice", name()));
        return;
    }
    findings.check(Rule::R3, last.is_none_or(|last| last < offset), || {
        format!("{} was archived after {last:?}", name())
    });
    let Some(log) = log else { return };
    let versions = log.versions(offset);
    let Some(version) = versions.iter().find(|v| v.digest == digest) else {
        let (rule, what) = if versions.is_empty() {
            (Rule::R2, "was never in the log")
        } else {
            (Rule::R1, "is not what the log holds")
        };
        findings.broken(rule, format!("{} {what}", name()));
        return;
    };
    findings.check(Rule::R2, log.is_committed(version), || {
        format!("{} is of a transaction that was not committed", name())
    });
    // Both sides of a cut in one archive: a history that nobody ever had.
    for cut in &log.cuts {
        let lost = |(o, d): (&i64, &u64)| {
            let of_row = log.versions(*o).iter().find(|v| v.digest == *d);
            of_row.is_some_and(|v| v.epoch < cut.epoch)
        };
        if version.epoch >= cut.epoch
            && offset >= cut.end
            && archived.rows.range(cut.end..).any(lost)
        {
            findings.broken(
                Rule::R2,
                format!(
                    "{} is of epoch {}, and what epoch {} cut off at {} is archived too",
                    name(),
                    version.epoch,
                    cut.epoch,
                    cut.end
                ),
            );
            return;
        }
    }
    let mut bytes = archived.hash.to_le_bytes().to_vec();
    bytes.extend_from_slice(&version.canonical);
    archived.hash = XxHash3_64::oneshot(&bytes);
}

/// One partition of a new head.
struct PartitionState<'a> {
    topic: &'a str,
    key: Key,
    entry: &'a Entry,
    base: Option<&'a Entry>,
    log: &'a PartitionLog,
    archived: &'a Archived,
    gaps: Vec<Gap>,
}

impl PartitionState<'_> {
    fn check(&self, findings: &mut Findings) {
        let (entry, log, archived) = (self.entry, self.log, self.archived);
        let name = || format!("{}-{} generation {}", self.topic, self.key.1, self.key.0);
        let next = entry.next.get();
        if self.base.is_some_and(|base| base == entry) {
            return;
        }
        findings.check(
            Rule::R5,
            archived.rows.len() as u64 == entry.rows
                && archived
                    .rows
                    .last_key_value()
                    .is_none_or(|(o, _)| *o < next)
                && archived
                    .rows
                    .first_key_value()
                    .is_none_or(|(o, _)| *o >= entry.first.get()),
            || {
                format!(
                    "{}: the ledger says {entry:?}, {} rows in {:?}..={:?}",
                    name(),
                    archived.rows.len(),
                    archived.rows.first_key_value(),
                    archived.rows.last_key_value()
                )
            },
        );
        findings.check(Rule::R5, archived.hash == entry.hash, || {
            format!("{}: the running hash is not that of the rows", name())
        });
        let was_cut = log.cuts.iter().any(|cut| cut.end < next);
        findings.check(Rule::R5, was_cut || next <= log.stable_end(), || {
            format!(
                "{}: the ledger is at {next}, the log ends at {}",
                name(),
                log.stable_end()
            )
        });
        findings.check(Rule::R14, entry.first.get() <= log.log_start(), || {
            format!(
                "{}: archiving began at {}, the log begins at {}",
                name(),
                entry.first,
                log.log_start()
            )
        });
        let from = self.base.map_or(entry.first, |base| base.next).get();
        for (offset, version) in log.kept(from, next) {
            if archived.rows.contains_key(&offset) || is_gap(&self.gaps, offset, offset + 1) {
                continue;
            }
            // What was cut off before is archived, so that what came instead is not.
            let was_replaced = log.is_beyond_reach(offset, version, next, entry.leader_epoch);
            findings.check(Rule::R1, was_replaced, || {
                format!(
                    "{}: offset {offset} is not archived, and in no gap; the ledger is at {next}",
                    name()
                )
            });
        }
    }
}

/// R14: a gap is what the log had lost, and nothing is archived in it.
fn check_new_gaps(
    topic: &str,
    before: &Ledger,
    after: &Ledger,
    table: &Table,
    brokers: &Brokers,
    findings: &mut Findings,
) {
    for gap in after.gaps.iter().filter(|g| !before.gaps.contains(g)) {
        let key = (gap.generation.0, gap.partition.get());
        let start = gap.start.get();
        let log = log_of(after, key.0, key.1).and_then(|id| brokers.log(id));
        let is_true = match (gap.reason, gap.end) {
            (GapReason::Retention, Some(end)) => {
                log.is_some_and(|log| start < end.get() && end.get() <= log.log_start())
            }
            (GapReason::Recreated, None) => {
                log_of(after, key.0, key.1).map(|id| id.0) != brokers.current(topic)
            }
            _ => false,
        };
        findings.check(Rule::R14, is_true, || {
            format!("{topic}: the ledger records {gap}, which is not missing")
        });
        let end = gap.end.map_or(i64::MAX, everlog_common::Offset::get);
        let inside = table.archived.get(&key).and_then(|archived| {
            let mut rows = archived.rows.range(start..end.max(start));
            rows.next()
        });
        findings.check(Rule::R14, inside.is_none(), || {
            format!("{topic}: the ledger records {gap}, and {inside:?} is archived")
        });
    }
}
