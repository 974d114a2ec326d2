//! The verification itself: what is read, in which order, and what it is held against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use everlog_common::record::RunningHash;
use everlog_common::{
    EventBatch, EventColumns, Generation, Ledger, Offset, OffsetRange, Partition, Position,
    Positions,
};
use everlog_table::archive::{Archive, ArchiveDeps, ArchiveErrorKind};
use everlog_table::files::{FileBounds, FileRange, PlannedFile};
use everlog_table::scan::{self, FileFooter, RowGroupInfo, ScanError};
use everlog_table::snapshot::{PinError, PinnedSnapshot};
use everlog_table::storage::{StorageError, StorageErrorKind};
use futures::StreamExt;

use super::compare::{Difference, compare, identical};
use super::log_side::{LogSide, LogWindow};
use super::{
    Check, Depth, Finding, Outcome, PartitionFigures, Report, Severity, VerifyProgress,
    VerifyRequest, metadata,
};
use crate::error::{ReplayError, one_line};
use crate::handoff::{LiveFacts, other_cluster};
use crate::history::lanes::{Selection, Stops};
use crate::history::{History, HistoryItem, Reading};
use crate::keeper::Keeper;
use crate::live::Cluster;
use crate::request::{From, Order};
use crate::stream::{Components, isolation_of};

/// Requests to the object store at once.
const REQUESTS: usize = 16;
/// Row groups that a sample has.
const SAMPLE: usize = 64;
/// Attempts of a read that failed for a reason that may pass.
const ATTEMPTS: u32 = 4;

/// Verifies; `progress` is told how far it is. Errors are what could not be looked at; what is wrong is in the report.
pub async fn verify(
    request: VerifyRequest,
    components: Components,
    progress: &mut (dyn FnMut(VerifyProgress) + Send),
) -> Result<Report, ReplayError> {
    let began = components.clock.elapsed();
    let deps = ArchiveDeps {
        catalog: Arc::clone(&components.catalog),
        clock: Arc::clone(&components.clock),
        ids: Arc::clone(&components.ids),
    };
    let archive = Archive::open(deps, &components.namespace, &request.topic).await?;
    let archive = archive.ok_or_else(|| ReplayError::NotArchived {
        topic: request.topic.clone(),
        namespace: components.namespace.clone(),
    })?;
    let mut run = Run {
        report: Report {
            topic: request.topic.clone(),
            table: archive.table().to_string(),
            snapshot_id: None,
            depth: request.depth,
            checks: BTreeMap::new(),
            partitions: BTreeMap::new(),
            findings: Vec::new(),
            counts: BTreeMap::new(),
            gaps: Vec::new(),
            files: 0,
            rows_decoded: 0,
            records_compared: 0,
            took: std::time::Duration::ZERO,
        },
        request,
        components,
        progress,
    };
    run.all(&archive).await?;
    run.report.took = run.components.clock.elapsed().saturating_sub(began);
    Ok(run.report)
}

struct Run<'a> {
    report: Report,
    request: VerifyRequest,
    components: Components,
    progress: &'a mut (dyn FnMut(VerifyProgress) + Send),
}

/// What the two sides have in common.
struct Overlap {
    cluster: Cluster,
    generation: Generation,
    windows: BTreeMap<Partition, LogWindow>,
    compacted: bool,
}

impl Overlap {
    /// Whether every row within `bounds` is compared.
    fn holds(&self, bounds: Option<&FileBounds>) -> bool {
        let Some(bounds) = bounds else {
            return false;
        };
        let (first, last) = bounds.partition;
        bounds.generation == (self.generation, self.generation)
            && (first.get()..=last.get()).all(|partition| {
                let window = Partition::new(partition).map(|p| self.windows.get(&p));
                matches!(window, Ok(Some(w)) if w.start <= bounds.offset.0 && bounds.offset.1 < w.end)
            })
    }
}

impl Run<'_> {
    async fn all(&mut self, archive: &Archive) -> Result<(), ReplayError> {
        let pinned = match archive
            .pin(&self.request.selector, self.request.lease)
            .await
        {
            Ok(pinned) => pinned,
            Err(PinError::Empty { .. }) => {
                for check in Check::ALL {
                    self.skip(check, "nothing was archived yet");
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.report.snapshot_id = Some(pinned.snapshot_id);
        let ledger = pinned.ledger.clone();
        self.report.gaps.clone_from(&ledger.gaps);
        self.figures(&ledger);
        self.history(archive).await?;
        let location = pinned.table().metadata.location().to_owned();
        let planned = self.manifests(&pinned).await;
        let reading_isolation = isolation_of(pinned.table());
        let storage = pinned.storage().clone();
        let keeper = Keeper::new(pinned, Arc::clone(&self.components.clock));
        let done = match planned {
            Ok(Some(files)) => {
                let reading = Reading {
                    topic: self.request.topic.clone(),
                    storage,
                    files: Arc::new(files),
                    order: Order::Partition,
                    memory_bytes: self.request.memory_bytes / 2,
                    threads: self.request.threads,
                    clock: Arc::clone(&self.components.clock),
                };
                self.files_and_data(&reading, &ledger, &location, reading_isolation)
                    .await
            }
            Ok(None) => {
                for check in [
                    Check::Files,
                    Check::Coverage,
                    Check::Data,
                    Check::Hashes,
                    Check::Log,
                ] {
                    self.skip(check, "the manifests contradict the ledger");
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        keeper.release().await;
        done
    }

    async fn files_and_data(
        &mut self,
        reading: &Reading,
        ledger: &Ledger,
        location: &str,
        isolation: everlog_kafka::Isolation,
    ) -> Result<(), ReplayError> {
        let lost = self.files(reading, location).await?;
        let overlap = self.overlap(ledger, isolation).await?;
        if self.request.depth == Depth::Quick {
            for check in [Check::Coverage, Check::Data, Check::Hashes] {
                self.skip(check, "not part of --quick");
            }
            if overlap.is_some() {
                self.skip(Check::Log, "records are not compared with --quick");
            }
            return Ok(());
        }
        let footers = self.coverage(reading, ledger, &lost).await?;
        if self.request.depth == Depth::Sampled {
            // nothing is compared where files are lost
            let compared = overlap.as_ref().filter(|_| lost.is_empty());
            self.sample(reading, &footers, compared).await?;
            self.skip(Check::Hashes, "only --full reads every row");
        }
        drop(footers);
        if !lost.is_empty() {
            if self.request.depth == Depth::Full {
                self.skip(Check::Data, "files are missing or cut");
                self.skip(Check::Hashes, "files are missing or cut");
            }
            self.skip(Check::Log, "files are missing or cut");
            return Ok(());
        }
        self.rows(reading, ledger, overlap).await
    }

    // --- what is found -----------------------------------------------------------------------------------------

    fn found(&mut self, finding: Finding) {
        *self.report.counts.entry(finding.severity).or_default() += 1;
        if self.report.findings.len() < self.request.findings_max {
            self.report.findings.push(finding);
        }
    }

    fn corrupt(&mut self, check: Check, what: String) {
        self.found(Finding {
            check,
            severity: Severity::Corruption,
            place: None,
            what,
            log: None,
            archive: None,
        });
    }

    fn skip(&mut self, check: Check, reason: &str) {
        let reason = reason.to_owned();
        self.report
            .checks
            .entry(check)
            .or_insert(Outcome::Skipped { reason });
    }

    fn did(&mut self, check: Check, detail: String) {
        self.report.checks.insert(check, Outcome::Done { detail });
    }

    fn step(&mut self, check: Check, done: u64, due: u64) {
        (self.progress)(VerifyProgress { check, done, due });
    }

    fn figures(&mut self, ledger: &Ledger) {
        for (generation, era) in &ledger.generations {
            for (partition, entry) in &era.partitions {
                let figures = PartitionFigures {
                    covered: OffsetRange::new(entry.first, entry.next).ok(),
                    rows: entry.rows,
                    ..PartitionFigures::default()
                };
                self.report
                    .partitions
                    .insert((*generation, *partition), figures);
            }
        }
    }

    // --- metadata ----------------------------------------------------------------------------------------------

    async fn history(&mut self, archive: &Archive) -> Result<(), ReplayError> {
        let snapshots = archive.snapshots().await?;
        let (n, findings) = metadata::history(&snapshots);
        for finding in findings {
            self.found(finding);
        }
        self.did(
            Check::History,
            format!("{n} ledgers of {} snapshots", snapshots.len()),
        );
        Ok(())
    }

    /// The live files; none where the manifests contradict the ledger, which is a finding.
    async fn manifests(
        &mut self,
        pinned: &PinnedSnapshot,
    ) -> Result<Option<Vec<PlannedFile>>, ReplayError> {
        let detail = |n: usize| format!("{n} files, {} rows", pinned.ledger.rows());
        match pinned.files().await {
            Ok(files) => {
                self.report.files = files.len() as u64;
                self.did(Check::Manifests, detail(files.len()));
                Ok(Some(files))
            }
            Err(error) if error.kind() == ArchiveErrorKind::Corrupt => {
                self.corrupt(Check::Manifests, one_line(&error));
                self.did(Check::Manifests, "contradict the ledger".to_owned());
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether every file is there with the length that its manifest says; the numbers of those that are not.
    async fn files(
        &mut self,
        reading: &Reading,
        location: &str,
    ) -> Result<BTreeSet<usize>, ReplayError> {
        let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
        let wanted: BTreeSet<&str> = reading.files.iter().map(|f| f.path.as_str()).collect();
        let folder = format!("{}/data", location.trim_end_matches('/'));
        let due = reading.files.len() as u64;
        // one request lists a thousand; what lies elsewhere is asked for one by one
        if let Ok(mut listed) = reading.storage.list(&folder) {
            while let Some(object) = listed.next().await {
                let Ok(object) = object else { break };
                if wanted.contains(object.uri.as_str()) {
                    sizes.insert(object.uri, object.size);
                    self.step(Check::Files, sizes.len() as u64, due);
                }
            }
        }
        let others = reading
            .files
            .iter()
            .filter(|f| !sizes.contains_key(&f.path));
        let asked = others.map(|file| {
            let storage = reading.storage.clone();
            let path = file.path.clone();
            async move {
                let size = storage.size(&path).await;
                (path, size)
            }
        });
        let answers: Vec<(String, Result<u64, StorageError>)> = futures::stream::iter(asked)
            .buffered(REQUESTS)
            .collect()
            .await;
        for (path, size) in answers {
            match size {
                Ok(size) => {
                    sizes.insert(path, size);
                }
                Err(error) if error.kind() == StorageErrorKind::NotFound => {}
                Err(source) => {
                    return Err(ReplayError::Scan {
                        holds: "looking for a data file".to_owned(),
                        source: ScanError::Storage { path, source },
                    });
                }
            }
        }
        let mut lost = BTreeSet::new();
        for (number, file) in reading.files.iter().enumerate() {
            let holds = crate::history::describe(file);
            match sizes.get(&file.path) {
                Some(size) if *size == file.size_bytes => {}
                Some(size) => {
                    lost.insert(number);
                    self.corrupt(
                        Check::Files,
                        format!(
                            "{holds}: it has {size} bytes, its manifest says {}",
                            file.size_bytes
                        ),
                    );
                }
                None => {
                    lost.insert(number);
                    self.found(Finding {
                        check: Check::Files,
                        severity: Severity::Gap,
                        place: place_of(file),
                        what: format!("{holds}: it is not in the object store"),
                        log: None,
                        archive: None,
                    });
                }
            }
        }
        self.did(Check::Files, format!("{due} files looked for"));
        Ok(lost)
    }

    // --- footers and a sample ----------------------------------------------------------------------------------

    async fn coverage(
        &mut self,
        reading: &Reading,
        ledger: &Ledger,
        lost: &BTreeSet<usize>,
    ) -> Result<BTreeMap<usize, FileFooter>, ReplayError> {
        let due = (reading.files.len() - lost.len()) as u64;
        let numbers = (0..reading.files.len()).filter(|n| !lost.contains(n));
        let mut opened = futures::stream::iter(numbers.map(|number| {
            let reading = reading.clone();
            async move { (number, footer(&reading, number).await) }
        }))
        .buffered(REQUESTS);
        let mut footers = BTreeMap::new();
        let mut ranges: Vec<(usize, FileRange)> = Vec::new();
        let (mut unknown, mut foreign) = (0, 0_u64);
        let mut done = 0;
        while let Some((number, footer)) = opened.next().await {
            done += 1;
            self.step(Check::Coverage, done, due);
            let file = &reading.files[number];
            match footer {
                Ok(footer) => {
                    match &footer.ranges {
                        Some(own) => ranges.extend(own.iter().map(|r| (number, *r))),
                        None => {
                            unknown += file.rows;
                            foreign += 1;
                        }
                    }
                    footers.insert(number, footer);
                }
                Err(error) => {
                    unknown += file.rows;
                    self.unreadable(Check::Coverage, file, error)?;
                }
            }
        }
        unknown += lost.iter().map(|n| reading.files[*n].rows).sum::<u64>();
        for finding in metadata::coverage(ledger, &ranges, unknown) {
            self.found(finding);
        }
        let others = if foreign == 0 {
            String::new()
        } else {
            format!(", {foreign} of another engine, which do not say what they cover")
        };
        self.did(
            Check::Coverage,
            format!("{} footers{others}", footers.len()),
        );
        Ok(footers)
    }

    /// A file that makes no sense is a finding, one that cannot be fetched an error.
    fn unreadable(
        &mut self,
        check: Check,
        file: &PlannedFile,
        error: ScanError,
    ) -> Result<(), ReplayError> {
        let holds = crate::history::describe(file);
        match error.kind() {
            StorageErrorKind::Corrupt | StorageErrorKind::NotFound => {
                self.corrupt(check, format!("{holds}: {}", one_line(&error)));
                Ok(())
            }
            _ => Err(ReplayError::Scan {
                holds,
                source: error,
            }),
        }
    }

    async fn sample(
        &mut self,
        reading: &Reading,
        footers: &BTreeMap<usize, FileFooter>,
        compared: Option<&Overlap>,
    ) -> Result<(), ReplayError> {
        let all: usize = footers.values().map(|f| f.row_groups.len()).sum();
        // what is compared with the log is read whole anyway
        let apart = |group: &RowGroupInfo| {
            !compared.is_some_and(|overlap| overlap.holds(group.bounds.as_ref()))
        };
        let mut groups: Vec<(u64, usize, usize)> = footers
            .iter()
            .flat_map(|(n, footer)| footer.row_groups.iter().map(|g| (*n, g)))
            .filter(|(_, group)| apart(group))
            .enumerate()
            .map(|(i, (n, group))| (shuffled(self.request.seed, i as u64), n, group.index))
            .collect();
        let read_whole = all - groups.len();
        groups.sort_unstable();
        groups.truncate(SAMPLE);
        let due = groups.len() as u64;
        let mut rows = 0;
        for (i, (_, number, group)) in groups.into_iter().enumerate() {
            self.step(Check::Data, i as u64, due);
            let file = &reading.files[number];
            let footer = &footers[&number];
            match decoded(reading, number, footer, group).await {
                Ok(runs) => {
                    let (n, wrong) = judge(footer, group, &runs);
                    rows += n;
                    if let Some(what) = wrong {
                        let holds = crate::history::describe(file);
                        self.corrupt(Check::Data, format!("{holds}: row group {group}: {what}"));
                    }
                }
                Err(error) => self.unreadable(Check::Data, file, error)?,
            }
        }
        self.report.rows_decoded += rows;
        self.did(Check::Data, sampled(due, all, rows, read_whole));
        Ok(())
    }

    // --- the log -----------------------------------------------------------------------------------------------

    /// What Kafka still has of what the archive has. Findings by bounds alone are made here.
    async fn overlap(
        &mut self,
        ledger: &Ledger,
        isolation: everlog_kafka::Isolation,
    ) -> Result<Option<Overlap>, ReplayError> {
        let Some(log) = self.components.log.clone() else {
            self.skip(Check::Log, "Kafka was not asked");
            return Ok(None);
        };
        let cluster = Cluster {
            log: Arc::clone(&log),
            topic: self.request.topic.clone(),
            isolation,
            wanted: None,
            clock: Arc::clone(&self.components.clock),
        };
        let Some(facts) = cluster.facts(&BTreeMap::new()).await? else {
            self.skip(Check::Log, "the topic is not in Kafka any more");
            return Ok(None);
        };
        let generation = ledger.generation_for(&facts.identity);
        let Some(era) = ledger.generations.get(&generation) else {
            let other = ledger
                .newest()
                .and_then(|(g, newest)| other_cluster(g, &newest.identity, &facts.identity));
            let reason = other.map_or_else(
                || "the topic was made anew, and nothing of it is archived yet".to_owned(),
                |other| other.to_string(),
            );
            self.skip(Check::Log, &reason);
            return Ok(None);
        };
        let mut windows = BTreeMap::new();
        for (partition, entry) in &era.partitions {
            let Some(bounds) = facts.bounds.get(partition) else {
                continue;
            };
            self.bounds_alone(&facts, generation, *partition, entry.next, ledger);
            let start = bounds.log_start.max(entry.first);
            let end = bounds.end.min(entry.next);
            if start < end {
                windows.insert(*partition, LogWindow { start, end });
            }
        }
        let config = log.topic_config(&self.request.topic).await?;
        Ok(Some(Overlap {
            cluster,
            generation,
            windows,
            compacted: config.compacted,
        }))
    }

    fn bounds_alone(
        &mut self,
        facts: &LiveFacts,
        generation: Generation,
        partition: Partition,
        next: Offset,
        ledger: &Ledger,
    ) {
        let Some(bounds) = facts.bounds.get(&partition) else {
            return;
        };
        let recorded = |start: Offset| {
            ledger
                .gaps_of(generation, partition)
                .iter()
                .any(|gap| gap.start <= start && gap.end.is_none_or(|end| end > start))
        };
        if bounds.log_start > next
            && !recorded(next)
            && let Ok(range) = OffsetRange::new(next, bounds.log_start)
        {
            self.found(Finding {
                check: Check::Log,
                severity: Severity::Gap,
                place: Some((generation, partition, range)),
                what: format!(
                    "Kafka deleted offsets {range} of partition {partition} before they were archived"
                ),
                log: None,
                archive: None,
            });
        }
        if bounds.high_watermark < next
            && let Ok(range) = OffsetRange::new(bounds.high_watermark, next)
        {
            self.found(Finding {
                check: Check::Log,
                severity: Severity::Corruption,
                place: Some((generation, partition, range)),
                what: format!(
                    "the archive has offsets {range} of partition {partition}, where Kafka's log ends: it was truncated"
                ),
                log: None,
                archive: None,
            });
        }
    }

    /// Reads rows in order: all of them with `--full`, else those that Kafka still has; hashes the former, compares the
    /// latter.
    async fn rows(
        &mut self,
        reading: &Reading,
        ledger: &Ledger,
        overlap: Option<Overlap>,
    ) -> Result<(), ReplayError> {
        let full = self.request.depth == Depth::Full;
        let empty = Positions::new();
        let mut positions = Positions::new();
        let mut stops = Stops::default();
        let mut wanted = None;
        if !full {
            let Some(overlap) = &overlap else {
                return Ok(());
            };
            let generation = overlap.generation;
            let mut ends = BTreeMap::new();
            for (partition, window) in &overlap.windows {
                let offset = window.start;
                positions.insert(*partition, Position { generation, offset });
                ends.insert(*partition, window.end);
            }
            wanted = Some(overlap.windows.keys().copied().collect::<BTreeSet<_>>());
            stops.offsets = Some((generation, ends));
        }
        let selection = Selection {
            ledger,
            positions: if full { &empty } else { &positions },
            from: From::Beginning,
            wanted: wanted.as_ref(),
            stops: &stops,
            passed: &[],
        };
        let history = History::new(reading.clone(), selection.phases());
        let mut log = match &overlap {
            Some(overlap) if !overlap.windows.is_empty() => Some(
                LogSide::open(
                    overlap.cluster.clone(),
                    &overlap.windows,
                    self.request.memory_bytes / 2,
                )
                .await?,
            ),
            _ => None,
        };
        let read = self
            .read_rows(history, overlap.as_ref(), log.as_mut())
            .await;
        if let Some(log) = log {
            log.close().await;
        }
        let hashes = read?;
        if full {
            self.judge_hashes(ledger, hashes.as_ref());
        }
        if overlap.is_some() {
            let detail = format!("{} records compared", self.report.records_compared);
            self.did(Check::Log, detail);
        }
        Ok(())
    }

    /// The running hashes where all rows could be read; none where they could not, which is a finding.
    async fn read_rows(
        &mut self,
        mut history: History,
        overlap: Option<&Overlap>,
        mut log: Option<&mut LogSide>,
    ) -> Result<Option<BTreeMap<(Generation, Partition), (u64, RunningHash)>>, ReplayError> {
        let full = self.request.depth == Depth::Full;
        let check = if full { Check::Data } else { Check::Log };
        let mut hashes = BTreeMap::new();
        loop {
            let batch = match history.next(false).await {
                Ok(Some(HistoryItem::Batch(batch))) => batch,
                Ok(Some(HistoryItem::Gap(_))) => continue,
                Ok(None) => break,
                Err(error) if error.exit_status() == 4 => {
                    self.corrupt(check, one_line(&error));
                    self.did(check, "ended at what cannot be read".to_owned());
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            self.report.rows_decoded += batch.columns.len() as u64;
            let (done, due) = history.progress();
            self.step(check, done, due);
            if full {
                let (rows, hash) = hashes
                    .entry((batch.generation, batch.partition))
                    .or_insert_with(|| (0, RunningHash::from(0)));
                hash.update(&batch.columns);
                *rows += batch.columns.len() as u64;
            }
            if let (Some(overlap), Some(log)) = (overlap, log.as_deref_mut())
                && overlap.generation == batch.generation
            {
                self.compare_batch(overlap, log, &batch).await?;
            }
        }
        if full {
            self.did(Check::Data, format!("{} rows", self.report.rows_decoded));
        }
        Ok(Some(hashes))
    }

    async fn compare_batch(
        &mut self,
        overlap: &Overlap,
        log: &mut LogSide,
        batch: &EventBatch,
    ) -> Result<(), ReplayError> {
        let partition = batch.partition;
        let Some(window) = overlap.windows.get(&partition) else {
            return Ok(());
        };
        let start = batch.range.start().max(window.start);
        let end = batch.range.end().min(window.end);
        let Ok(range) = OffsetRange::new(start, end) else {
            return Ok(());
        };
        let theirs = log.take(partition, range).await?;
        let from = range.start().max(theirs.deleted_below.min(range.end()));
        let ours = batch.columns.slice_offsets(from, range.end());
        let theirs: Vec<EventColumns> = theirs
            .rows
            .iter()
            .map(|rows| rows.slice_offsets(from, range.end()))
            .collect();
        let records: usize = theirs.iter().map(EventColumns::len).sum();
        self.report.records_compared += records as u64;
        let mut differences = Vec::new();
        let same = if identical(&theirs, &ours) {
            records as u64
        } else {
            let theirs = EventColumns::concat(&theirs).map_err(|source| ReplayError::Data {
                generation: batch.generation,
                files: Vec::new(),
                source: source.into(),
            })?;
            compare(&theirs, &ours, &mut |d| differences.push(d))
        };
        let key = (batch.generation, partition);
        let figures = self.report.partitions.entry(key).or_default();
        figures.same += same;
        let compared = figures.compared.map_or(from, OffsetRange::start);
        figures.compared = OffsetRange::new(compared, range.end()).ok();
        for difference in differences {
            self.differs(overlap, key, difference);
        }
        Ok(())
    }

    fn differs(&mut self, overlap: &Overlap, key: (Generation, Partition), difference: Difference) {
        let (generation, partition) = key;
        let recorded = |range: OffsetRange| {
            let gaps = self.report.gaps.iter();
            let mut of = gaps.filter(|g| g.generation == generation && g.partition == partition);
            of.any(|g| g.start <= range.start() && g.end.is_none_or(|end| range.end() <= end))
        };
        let finding = match difference {
            Difference::Missing { range, .. } if recorded(range) => return,
            Difference::Missing { range, records } => Finding {
                check: Check::Log,
                severity: Severity::Gap,
                place: Some((generation, partition, range)),
                what: format!(
                    "{records} records of offsets {range} of partition {partition} are in Kafka and not in the archive"
                ),
                log: Some(format!("{records} records")),
                archive: Some("none".to_owned()),
            },
            Difference::Extra { records, .. } if overlap.compacted => {
                self.report.partitions.entry(key).or_default().compacted += records;
                return;
            }
            Difference::Extra { range, records } => Finding {
                check: Check::Log,
                severity: Severity::Corruption,
                place: Some((generation, partition, range)),
                what: format!(
                    "{records} records of offsets {range} of partition {partition} are in the archive and not in Kafka"
                ),
                log: Some("none".to_owned()),
                archive: Some(format!("{records} records")),
            },
            Difference::Changed {
                offset,
                fields,
                log,
                archive,
            } => Finding {
                check: Check::Log,
                severity: Severity::Corruption,
                place: OffsetRange::new(offset, offset.next())
                    .ok()
                    .map(|range| (generation, partition, range)),
                what: format!(
                    "offset {offset} of partition {partition} differs in {}",
                    fields.join(", ")
                ),
                log: Some(log),
                archive: Some(archive),
            },
        };
        self.found(finding);
    }

    fn judge_hashes(
        &mut self,
        ledger: &Ledger,
        hashes: Option<&BTreeMap<(Generation, Partition), (u64, RunningHash)>>,
    ) {
        let Some(hashes) = hashes else {
            self.skip(Check::Hashes, "not all rows could be read");
            return;
        };
        let mut proven = 0;
        for (generation, era) in &ledger.generations {
            for (partition, entry) in &era.partitions {
                let key = (*generation, *partition);
                let (rows, hash) = hashes
                    .get(&key)
                    .map_or((0, 0), |(rows, hash)| (*rows, hash.value()));
                if rows == entry.rows && hash == entry.hash {
                    proven += 1;
                    self.report.partitions.entry(key).or_default().hash_proven = true;
                    continue;
                }
                self.found(Finding {
                    check: Check::Hashes,
                    severity: Severity::Corruption,
                    place: OffsetRange::new(entry.first, entry.next)
                        .ok()
                        .map(|range| (*generation, *partition, range)),
                    what: format!(
                        "the {rows} rows of partition {partition} hash to {hash:016x}, the ledger says {} rows and {:016x}",
                        entry.rows, entry.hash
                    ),
                    log: None,
                    archive: None,
                });
            }
        }
        self.did(Check::Hashes, format!("{proven} partitions proven"));
    }
}

fn sampled(groups: u64, all: usize, rows: u64, compared: usize) -> String {
    let rest = if compared == 0 {
        String::new()
    } else {
        format!(" ({compared} more are compared with Kafka whole)")
    };
    format!("a sample of {groups} of {all} row groups, {rows} rows{rest}")
}

/// A file of one partition, as offsets.
fn place_of(file: &PlannedFile) -> Option<(Generation, Partition, OffsetRange)> {
    let bounds = file.bounds?;
    let one =
        bounds.generation.0 == bounds.generation.1 && bounds.partition.0 == bounds.partition.1;
    let range = OffsetRange::new(bounds.offset.0, bounds.offset.1.next()).ok()?;
    one.then_some((bounds.generation.0, bounds.partition.0, range))
}

async fn footer(reading: &Reading, number: usize) -> Result<FileFooter, ScanError> {
    let mut attempt = 1;
    loop {
        match scan::read_footer(&reading.storage, &reading.files[number]).await {
            Err(error) if error.kind() == StorageErrorKind::Transient && attempt < ATTEMPTS => {
                reading.clock.sleep(pause(attempt)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

async fn decoded(
    reading: &Reading,
    number: usize,
    footer: &FileFooter,
    group: usize,
) -> Result<Vec<scan::DecodedRun>, ScanError> {
    let file = &reading.files[number];
    let mut attempt = 1;
    loop {
        match scan::read_row_group(&reading.storage, file, footer, group, &reading.topic).await {
            Err(error) if error.kind() == StorageErrorKind::Transient && attempt < ATTEMPTS => {
                reading.clock.sleep(pause(attempt)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn pause(attempt: u32) -> std::time::Duration {
    std::time::Duration::from_millis(250) * (1 << attempt.min(4))
}

/// Rows of a decoded row group, and what is wrong with them.
fn judge(footer: &FileFooter, group: usize, runs: &[scan::DecodedRun]) -> (u64, Option<String>) {
    let rows: u64 = runs.iter().map(|r| r.columns.len() as u64).sum();
    let due = footer.row_groups.get(group).map_or(0, |g| g.rows);
    if rows != due {
        return (
            rows,
            Some(format!("it has {rows} rows, its footer says {due}")),
        );
    }
    let Some(ranges) = &footer.ranges else {
        return (rows, None);
    };
    let mut last: BTreeMap<(Generation, Partition), Offset> = BTreeMap::new();
    for run in runs {
        let (Some(first), Some(end)) = (run.columns.first_offset(), run.columns.last_offset())
        else {
            continue;
        };
        let inside = ranges.iter().any(|r| {
            r.generation == run.generation
                && r.partition == run.partition
                && r.range.contains(first)
                && r.range.contains(end)
        });
        if !inside {
            let what = format!(
                "offsets {first} to {end} of partition {} lie outside of what the file covers",
                run.partition
            );
            return (rows, Some(what));
        }
        let before = last.insert((run.generation, run.partition), end);
        if before.is_some_and(|before| before >= first) {
            let what = format!(
                "offset {first} of partition {} is out of order",
                run.partition
            );
            return (rows, Some(what));
        }
    }
    (rows, None)
}

/// A number for `i` that looks like chance, the same for a seed each time (`SplitMix64`).
fn shuffled(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
