//! Taking a table as somebody else left it: an operator's decision, `everlog archive --accept SNAPSHOT`.
//!
//! Positions never come from foreign rows. A rolled-back main takes back the ledger of its head, so the archiver goes on
//! from there. Where rows were added, rewritten or deleted, the newest ledger keeps its positions, and its row counts are
//! counted anew: from footers of our files, from the rows of others'. Rows that the ledger does not know (an offset at or
//! beyond `next`, a partition that was never archived) or that are there twice cannot be accepted: the next commit, or
//! every replay, would be wrong.
//!
//! The running hash is kept as it was: it tells of the rows that were archived, not of what somebody made of them.

use std::collections::{BTreeMap, BTreeSet};

use everlog_common::{Generation, Ledger, Offset, OffsetRange, Partition};
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::ManifestEntry;

use super::parent::Parent;
use super::{AppendRequest, Archive, ArchiveError};
use crate::catalog::{CatalogErrorKind, CommitReply, LoadedTable};
use crate::commit::Added;
use crate::files::PlannedFile;
use crate::maintain::ExpiryPlan;
use crate::manifests;
use crate::scan;
use crate::schema::ColumnMap;
use crate::summary::{self, ancestry};

/// Attempts to commit the accepted ledger.
const ATTEMPTS_MAX: u32 = 8;
/// Files read at once while counting.
const READS_AT_ONCE: usize = 8;

type Key = (Generation, Partition);

/// What a file holds.
#[derive(Debug, Default)]
struct Held {
    rows: BTreeMap<Key, u64>,
    spans: BTreeMap<Key, Vec<OffsetRange>>,
}

impl Archive {
    /// Takes a table that somebody else changed as it is: commits a ledger that is true for `snapshot_id`, which must
    /// be the head of main. Where nothing is to be accepted, nothing is committed.
    pub async fn accept(&self, snapshot_id: i64) -> Result<Ledger, ArchiveError> {
        let mut turn = self.inner.turn.lock().await;
        *turn = None;
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                self.back_off(attempt).await;
            }
            let table = self.load().await?;
            match self.find(&table, None).await {
                Ok(found) => return Ok(found.ledger),
                Err(ArchiveError::ForeignChange { .. }) => {}
                Err(error) => return Err(error),
            }
            let head = table.metadata.current_snapshot_id();
            if head != Some(snapshot_id) {
                return Err(self.invalid(match head {
                    Some(head) => format!(
                        "main is at snapshot {head}, not at {snapshot_id}; look at it, and accept that"
                    ),
                    None => "main has no snapshot; set it to one before accepting it".to_owned(),
                }));
            }
            self.check_clock(None).await?;
            let ledger = self.reconciled(&table, snapshot_id).await?;
            let parent = self.accepted_parent(table, snapshot_id, &ledger).await?;
            let commit_id = self.inner.deps.ids.uuid();
            let mut proposal = self.propose(&parent, commit_id, ledger.clone(), Added::default());
            proposal.accepted = Some(snapshot_id);
            let request = AppendRequest {
                advances: Vec::new(),
                files: Vec::new(),
                archived_at: proposal.now,
                reference_time: None,
            };
            let name = format!("{commit_id}-1");
            self.store(&parent, &mut proposal, &name, &request).await?;
            match self.swap(&parent, &proposal, &ExpiryPlan::default()).await {
                CommitReply::Committed(_) => return Ok(ledger),
                // An unknown outcome is seen by the next read: then there is nothing left to accept, or it is the same
                // head again, and both swaps require it.
                CommitReply::Conflict | CommitReply::Unknown(_) => {}
                CommitReply::Refused(error) if error.kind() == CatalogErrorKind::Transient => {}
                CommitReply::Refused(error) => {
                    return Err(self.catalog_error("cannot commit the accepted ledger", error));
                }
            }
        }
        Err(ArchiveError::Contended {
            table: self.table_name(),
            attempts: ATTEMPTS_MAX,
            last: None,
        })
    }

    async fn accepted_parent(
        &self,
        table: LoadedTable,
        head: i64,
        ledger: &Ledger,
    ) -> Result<Parent, ArchiveError> {
        let list = self.read_list(&self.store_of_files(), &table, head).await?;
        self.parent_with(table, Some(head), ledger.clone(), list)
            .await
    }

    /// The ledger that is true for the head of main.
    async fn reconciled(&self, table: &LoadedTable, head: i64) -> Result<Ledger, ArchiveError> {
        let metadata = &table.metadata;
        if let Ok(found) = summary::ledger_of_history(metadata, head) {
            return Ok(found.ledger);
        }
        let (base, base_snapshot) = self.newest_ledger(table, head)?;
        let after = self.live_files(table, head).await?;
        let before = match base_snapshot {
            Some(id) => self.live_files(table, id).await?,
            None => BTreeMap::new(),
        };
        let added: Vec<&PlannedFile> = after
            .iter()
            .filter(|(path, _)| !before.contains_key(*path))
            .map(|(_, file)| file)
            .collect();
        let removed: Vec<&PlannedFile> = before
            .iter()
            .filter(|(path, _)| !after.contains_key(*path))
            .map(|(_, file)| file)
            .collect();
        let added_held = self.held(&added).await?;
        let removed_held = match self.held(&removed).await {
            Ok(held) if base_snapshot.is_some() => held,
            // What was removed cannot be read any more: everything that is left is counted.
            _ => {
                let all: Vec<&PlannedFile> = after.values().collect();
                let held = self.held(&all).await?;
                return recount(&base, &[], &held, true)
                    .map_err(|what| self.unacceptable(head, &what));
            }
        };
        // Of what stayed, only files that reach into the added offsets can hold one of them too.
        let kept: Vec<&PlannedFile> = after
            .iter()
            .filter(|(path, file)| before.contains_key(*path) && touches(file, &added_held))
            .map(|(_, file)| file)
            .collect();
        let kept_held = self.held(&kept).await?;
        let mut all = added_held;
        let fresh = all.len();
        all.extend(kept_held);
        check_known(&base, &all)
            .and_then(|()| check_single(&all))
            .and_then(|()| {
                all.truncate(fresh);
                recount(&base, &removed_held, &all, false)
            })
            .map_err(|what| self.unacceptable(head, &what))
    }

    fn unacceptable(&self, head: i64, what: &str) -> ArchiveError {
        self.invalid(format!(
            "snapshot {head} cannot be accepted: {what}; roll the table back to before it"
        ))
    }

    /// The ledger that the table was at before it was changed, and the snapshot whose files are known to be its.
    fn newest_ledger(
        &self,
        table: &LoadedTable,
        head: i64,
    ) -> Result<(Ledger, Option<i64>), ArchiveError> {
        let metadata = &table.metadata;
        let told = ancestry(metadata, Some(head)).find_map(|snapshot| {
            let text = snapshot
                .summary()
                .additional_properties
                .get(summary::LEDGER)?;
            Some((text.clone(), Some(snapshot.snapshot_id())))
        });
        let property = metadata.properties().get(summary::LEDGER);
        let found = told.or_else(|| property.map(|text| (text.clone(), None)));
        let Some((text, snapshot)) = found else {
            return Err(self.invalid(
                "neither a snapshot nor the table's properties have a ledger; the table cannot be accepted as an archive"
                    .to_owned(),
            ));
        };
        match Ledger::decode(&text) {
            Ok(ledger) => Ok((ledger, snapshot)),
            Err(source) => Err(ArchiveError::Corrupt {
                table: self.table_name(),
                what: "its newest ledger cannot be read".to_owned(),
                source: Some(Box::new(source)),
            }),
        }
    }

    async fn live_files(
        &self,
        table: &LoadedTable,
        snapshot_id: i64,
    ) -> Result<BTreeMap<String, PlannedFile>, ArchiveError> {
        let storage = self.store_of_files();
        let list = self.read_list(&storage, table, snapshot_id).await?;
        if let Some(file) = manifests::delete_manifest(&list) {
            return Err(ArchiveError::Unsupported {
                table: self.table_name(),
                what: format!(
                    "snapshot {snapshot_id} has delete files ({}), which an archive must not have; rewrite the data files with the deletes applied, then accept that snapshot",
                    file.manifest_path
                ),
            });
        }
        let columns = ColumnMap::resolve(table.metadata.current_schema())
            .map_err(|source| self.invalid(source.to_string()))?;
        let entries = manifests::read_manifests(&storage, &list)
            .await
            .map_err(|problem| {
                ArchiveError::of_manifest(&self.table_name(), snapshot_id, problem)
            })?;
        let mut files = BTreeMap::new();
        for entry in entries
            .iter()
            .flatten()
            .filter(|e: &&ManifestEntry| e.is_alive())
        {
            let file =
                PlannedFile::from_entry(entry, &columns).map_err(|source| self.scan(source))?;
            files.insert(file.path.clone(), file);
        }
        Ok(files)
    }

    fn scan(&self, source: scan::ScanError) -> ArchiveError {
        ArchiveError::Corrupt {
            table: self.table_name(),
            what: source.to_string(),
            source: Some(Box::new(source)),
        }
    }

    async fn held(&self, files: &[&PlannedFile]) -> Result<Vec<Held>, ArchiveError> {
        let reads: Vec<_> = files.iter().map(|file| self.held_by(file)).collect();
        futures::stream::iter(reads)
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await
    }

    /// What a file holds: by its footer where we wrote it, else by reading it.
    async fn held_by(&self, file: &PlannedFile) -> Result<Held, ArchiveError> {
        let storage = self.store_of_files();
        let footer = scan::read_footer(&storage, file)
            .await
            .map_err(|source| self.scan(source))?;
        let mut held = Held::default();
        if let Some(ranges) = &footer.ranges {
            for range in ranges.iter().filter(|range| range.rows > 0) {
                held.add((range.generation, range.partition), range.range, range.rows);
            }
            return Ok(held);
        }
        for group in &footer.row_groups {
            let runs =
                scan::read_row_group(&storage, file, &footer, group.index, &self.inner.topic)
                    .await
                    .map_err(|source| self.scan(source))?;
            for run in runs {
                for offset in run.columns.offsets.values() {
                    let range = Offset::new(*offset)
                        .and_then(|start| OffsetRange::new(start, start.next()))
                        .map_err(|source| self.invalid(format!("{}: {source}", file.path)))?;
                    held.add((run.generation, run.partition), range, 1);
                }
            }
        }
        Ok(held)
    }
}

impl Held {
    fn add(&mut self, key: Key, range: OffsetRange, rows: u64) {
        *self.rows.entry(key).or_default() += rows;
        let spans = self.spans.entry(key).or_default();
        match spans.last().and_then(|last| last.join(range)) {
            Some(joined) => {
                spans.pop();
                spans.push(joined);
            }
            None => spans.push(range),
        }
    }
}

/// Whether a file's bounds reach into any of what others hold; a file without bounds may.
fn touches(file: &PlannedFile, others: &[Held]) -> bool {
    let Some(bounds) = &file.bounds else {
        return true;
    };
    others
        .iter()
        .flat_map(|held| &held.spans)
        .any(|((era, p), spans)| {
            (bounds.generation.0..=bounds.generation.1).contains(era)
                && (bounds.partition.0..=bounds.partition.1).contains(p)
                && spans
                    .iter()
                    .any(|span| span.start() <= bounds.offset.1 && bounds.offset.0 < span.end())
        })
}

/// Every offset lies where the ledger says that the archive is.
fn check_known(base: &Ledger, all: &[Held]) -> Result<(), String> {
    for ((generation, partition), spans) in all.iter().flat_map(|held| &held.spans) {
        let entry = base.entry(*generation, *partition);
        for span in spans {
            let known = entry.is_some_and(|e| e.first <= span.start() && span.end() <= e.next);
            if !known {
                return Err(format!(
                    "it holds offsets {span} of partition {partition} (generation {generation}), of which the ledger knows {}",
                    entry.map_or_else(
                        || "nothing".to_owned(),
                        |e| format!("[{}, {})", e.first, e.next)
                    )
                ));
            }
        }
    }
    Ok(())
}

/// No offset is there twice.
fn check_single(all: &[Held]) -> Result<(), String> {
    let mut by_key: BTreeMap<Key, BTreeSet<(Offset, Offset)>> = BTreeMap::new();
    for ((generation, partition), spans) in all.iter().flat_map(|held| &held.spans) {
        let taken = by_key.entry((*generation, *partition)).or_default();
        for span in spans {
            let before = taken.range(..(span.end(), Offset::ZERO)).next_back();
            let clash = before.is_some_and(|(_, end)| *end > span.start());
            if clash || !taken.insert((span.start(), span.end())) {
                return Err(format!(
                    "offsets of {span} of partition {partition} (generation {generation}) are in two files"
                ));
            }
        }
    }
    Ok(())
}

/// The ledger with its rows counted anew.
fn recount(
    base: &Ledger,
    removed: &[Held],
    added: &[Held],
    from_nothing: bool,
) -> Result<Ledger, String> {
    if from_nothing {
        check_known(base, added)?;
        check_single(added)?;
    }
    let sum =
        |all: &[Held], key: &Key| -> u64 { all.iter().filter_map(|held| held.rows.get(key)).sum() };
    let mut ledger = base.clone();
    for (generation, era) in &mut ledger.generations {
        for (partition, entry) in &mut era.partitions {
            let key = (*generation, *partition);
            let start = if from_nothing { 0 } else { entry.rows };
            let rows = (start + sum(added, &key)).checked_sub(sum(removed, &key));
            let covered = entry.next.since(entry.first);
            entry.rows = rows.filter(|rows| *rows <= covered).ok_or_else(|| {
                format!("the rows of partition {partition} (generation {generation}) do not add up")
            })?;
        }
    }
    Ok(ledger)
}

#[cfg(test)]
mod tests {
    use everlog_common::{Entry, ledger::GenerationLedger};

    use super::*;

    fn offset(n: i64) -> Offset {
        Offset::new(n).expect("an offset")
    }

    fn span(from: i64, to: i64) -> OffsetRange {
        OffsetRange::new(offset(from), offset(to)).expect("a range")
    }

    fn key() -> Key {
        (Generation::FIRST, Partition::new(0).expect("a partition"))
    }

    fn held(spans: &[(i64, i64)]) -> Held {
        let mut held = Held::default();
        for (from, to) in spans {
            held.add(key(), span(*from, *to), (to - from).unsigned_abs());
        }
        held
    }

    fn ledger() -> Ledger {
        let entry = Entry {
            first: offset(100),
            next: offset(200),
            leader_epoch: None,
            rows: 100,
            hash: 7,
        };
        let era = GenerationLedger {
            partitions: [(key().1, entry)].into(),
            ..GenerationLedger::default()
        };
        Ledger {
            generations: [(Generation::FIRST, era)].into(),
            gaps: Vec::new(),
        }
    }

    #[test]
    fn deleted_rows_are_counted_away_and_positions_stay() {
        let after = recount(
            &ledger(),
            &[held(&[(100, 150)])],
            &[held(&[(100, 140)])],
            false,
        )
        .expect("a ledger");
        let entry = after.entry(key().0, key().1).expect("an entry");
        assert_eq!((entry.rows, entry.next), (90, offset(200)));
        let anew = recount(&ledger(), &[], &[held(&[(100, 190)])], true).expect("a ledger");
        assert_eq!(anew, after);
    }

    #[test]
    fn offsets_beyond_the_ledger_are_refused() {
        for spans in [(199, 201), (50, 60), (99, 101)] {
            let what = check_known(&ledger(), &[held(&[spans])]).expect_err("unknown");
            assert!(what.contains("[100, 200)"), "{what}");
        }
        check_known(&ledger(), &[held(&[(100, 200)])]).expect("known");
    }

    #[test]
    fn offsets_in_two_files_are_refused() {
        check_single(&[held(&[(100, 110), (120, 130)]), held(&[(110, 120)])]).expect("single");
        for other in [(105, 106), (100, 110), (90, 101), (109, 111), (90, 140)] {
            let all = [held(&[(100, 110), (120, 130)]), held(&[other])];
            check_single(&all).expect_err("double");
        }
    }
}
