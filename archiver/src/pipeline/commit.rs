//! One commit of one table, from the cut to a known outcome.
//!
//! ```text
//!  check identity, bounds, epochs ─► seal and encode ─► append ─┬─► committed
//!        ▲                                 ▲                    ├─► fenced: without those, again from "encode"
//!        │ another topic id: all void      │                    ├─► unknown: resolve, until it is known
//!        │ truncated: those void           └── files without a  └─► refused for now: append again
//!        │                                     fenced partition
//!        └ the brokers do not answer: wait     are kept
//!          (one partition alone does not: without it)
//! ```
//!
//! The task owns what it commits. It ends with a definite outcome, or it is dropped (a crash, in effect): then the
//! ledger tells what became of it. It deletes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::ledger::Refusal;
use everlog_common::mutants::Mutant;
use everlog_common::{
    Advance, GapReason, Generation, Identity, Ledger, LogBounds, Millis, Offset, Partition,
    Segment, TopicName, TopicPartition, compute,
};
use everlog_kafka::{Isolation, Log, LogError};
use everlog_table::archive::{
    AppendRequest, Archive, ArchiveDeps, ArchiveError, ArchiveErrorKind, CommitOutcome,
    PendingCommit,
};
use everlog_table::catalog::LoadedTable;
use everlog_table::files::{EncodedFile, PartitionRows};
use everlog_table::storage::StorageErrorKind;
use everlog_table::writer::{
    FILE_BYTES_TARGET, SpareThreads, WriteError, WriteRequest, write_files,
};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;

use super::prepare::{self, identity_of};
use super::{DENIALS_MAX, MISSING};
use crate::accumulator::Cut;
use crate::backoff::Backoff;
use crate::error::{FailureKind, one_line};
use crate::recovery::{self, Closing, CommitCheck, CommitFacts, Truncation};
use crate::status::StatusHandle;

/// How often contradicting answers of the brokers are asked again before they are believed, and how often a partition
/// that does not answer before the others go on without it.
const LOOKS: u32 = 4;

/// So many cuts are hashed at once.
const SEALERS: usize = 2;

/// Time between two such looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// What is to be committed, and with what.
pub(crate) struct Job {
    pub(crate) topic: TopicName,
    pub(crate) archive: Archive,
    pub(crate) table: LoadedTable,
    pub(crate) generation: Generation,
    /// What the brokers said when the partitions were assigned.
    pub(crate) identity: Identity,
    pub(crate) closing: Vec<Closing>,
    pub(crate) cuts: Vec<Cut>,
    pub(crate) isolation: Isolation,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) deps: ArchiveDeps,
    pub(crate) status: StatusHandle,
    /// Bounds how many tables encode at once.
    pub(crate) encoders: Arc<Semaphore>,
    pub(crate) spare: SpareThreads,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) landed: Option<Landed>,
    /// Partitions that somebody else had moved on.
    pub(crate) fenced: BTreeMap<Partition, String>,
    /// Partitions whose log was cut below what was to be committed.
    pub(crate) truncated: BTreeMap<Partition, Truncation>,
    /// Partitions that no broker answered for (no leader): what was read of them is unchecked, and was not committed.
    pub(crate) unanswered: BTreeSet<Partition>,
    /// Partitions of which something has to be read again, since leaders changed meanwhile.
    pub(crate) unproven: BTreeSet<Partition>,
    pub(crate) end: End,
}

/// A snapshot that was made.
#[derive(Debug)]
pub(crate) struct Landed {
    pub(crate) ledger: Ledger,
    pub(crate) partitions: BTreeSet<Partition>,
    pub(crate) gaps: Vec<(Partition, Segment)>,
    pub(crate) rows: u64,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum End {
    /// With a definite outcome for every partition.
    Done,
    /// The topic is another one than the rows were read from: they are void.
    AnotherTopic,
    /// The topic does not exist.
    Gone,
    /// The table cannot be written any more.
    Failed(FailureKind, String),
}

impl Report {
    fn ended(end: End) -> Self {
        Self {
            landed: None,
            fenced: BTreeMap::new(),
            truncated: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            unproven: BTreeSet::new(),
            end,
        }
    }
}

/// What the check before the commit found.
struct Checked {
    /// As the brokers say right now.
    identity: Identity,
    /// The epoch that the ledger keeps, per partition.
    epochs: BTreeMap<Partition, Option<i32>>,
    truncated: BTreeMap<Partition, Truncation>,
    unanswered: BTreeSet<Partition>,
    unproven: BTreeSet<Partition>,
}

enum Stop {
    AnotherTopic,
    Gone,
    Failed(FailureKind, String),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::AnotherTopic => Self::AnotherTopic,
            Stop::Gone => Self::Gone,
            Stop::Failed(kind, why) => Self::Failed(kind, why),
        }
    }
}

/// Runs a commit to its end.
pub(crate) async fn commit(mut job: Job) -> Report {
    let mut report = Report::ended(End::Done);
    if let Err(stop) = job.check_and_propose(&mut report).await {
        report.end = stop.into();
    }
    if let Some(outcome) = report.outcome() {
        job.status.count_commit(&job.topic, outcome);
    }
    job.status.release(&job.topic);
    report
}

impl Report {
    /// What it counts as, beside a commit that landed.
    fn outcome(&self) -> Option<&'static str> {
        match (&self.end, &self.landed) {
            (End::Done, Some(_)) => None,
            (End::Done, None) if !self.fenced.is_empty() => Some("fenced"),
            _ => Some("failed"),
        }
    }
}

/// How many refusals in a row are waited out before they are believed. Credentials are rotated and brokers and stores
/// restarted one by one, so the first one proves little; rows that were read wait meanwhile.
#[derive(Default)]
struct Patience {
    denials: u32,
}

impl Patience {
    /// Whether this denial is one too many.
    fn is_over(&mut self) -> bool {
        self.denials += 1;
        self.denials >= DENIALS_MAX
    }

    /// Something was allowed.
    fn renew(&mut self) {
        self.denials = 0;
    }

    /// What to wait for; what not to wait for, or not any longer, is a stop.
    fn with_archive(&mut self, error: &ArchiveError) -> Result<String, Stop> {
        let why = one_line(error);
        match FailureKind::of_archive(error) {
            None => {
                self.renew();
                Ok(why)
            }
            Some(FailureKind::Denied) if !self.is_over() => Ok(why),
            Some(kind) => Err(Stop::Failed(kind, why)),
        }
    }

    /// The same for an error of writing files.
    fn with_write(&mut self, error: &WriteError) -> Result<String, Stop> {
        let why = one_line(error);
        if matches!(error, WriteError::Schema { .. }) {
            // we made it otherwise
            return Err(Stop::Failed(FailureKind::AnotherWriter, why));
        }
        match error.kind() {
            // a bucket or folder that is not there may come back; nothing of ours was there before
            StorageErrorKind::Transient | StorageErrorKind::NotFound => {
                self.renew();
                Ok(why)
            }
            StorageErrorKind::Unauthorized if !self.is_over() => Ok(why),
            StorageErrorKind::Unauthorized => Err(Stop::Failed(FailureKind::Denied, why)),
            StorageErrorKind::Invalid => Err(Stop::Failed(FailureKind::Configuration, why)),
            StorageErrorKind::Corrupt => Err(Stop::Failed(FailureKind::Corrupt, why)),
        }
    }
}

impl Job {
    async fn check_and_propose(&mut self, report: &mut Report) -> Result<(), Stop> {
        let started = self.deps.clock.elapsed();
        let checked = self.check().await?;
        self.cuts.retain(|cut| {
            let partition = cut.partition();
            checked.epochs.contains_key(&partition)
        });
        report.truncated.clone_from(&checked.truncated);
        report.unanswered.clone_from(&checked.unanswered);
        report.unproven.clone_from(&checked.unproven);
        if self.cuts.is_empty() {
            return Ok(());
        }
        self.propose(&checked, started, report).await
    }

    /// Waits before another try, and says why.
    async fn hold(&self, backoff: &mut Backoff, kind: &'static str, why: &str) {
        let wait = backoff.next(self.deps.ids.as_ref());
        self.status.hold(&self.topic, kind, why);
        tracing::warn!(
            topic = %self.topic,
            tries = backoff.failures(),
            wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            reason = why,
            "commit held"
        );
        self.deps.clock.sleep(wait).await;
    }

    /// Asks the brokers who they are and what they have. What cannot be asked is waited for: a batch is never committed
    /// unchecked. A partition that alone does not answer is left out.
    async fn check(&self) -> Result<Checked, Stop> {
        let mut backoff = Backoff::default();
        let mut patience = Patience::default();
        let mut looks = 0;
        let began = self.deps.clock.elapsed();
        loop {
            match self.look().await {
                Ok((checked, is_settled)) => {
                    looks += 1;
                    if is_settled || looks >= LOOKS {
                        return Ok(checked);
                    }
                    self.deps.clock.sleep(BETWEEN_LOOKS).await;
                }
                // metadata may be on its way; dropping the rows is not to be undone
                Err(Look::Stop(Stop::Gone))
                    if self.deps.clock.elapsed().saturating_sub(began) < MISSING =>
                {
                    self.hold(&mut backoff, "log", "the topic is not there")
                        .await;
                }
                Err(Look::Stop(stop)) => return Err(stop),
                Err(Look::Log(error)) if error.is_transient() => {
                    patience.renew();
                    self.hold(&mut backoff, "log", &one_line(&error)).await;
                }
                Err(Look::Log(LogError::UnknownTopic(_))) => return Err(Stop::Gone),
                Err(Look::Log(error @ LogError::Denied { .. })) => {
                    let why = one_line(&error);
                    if patience.is_over() {
                        return Err(Stop::Failed(FailureKind::Denied, why));
                    }
                    self.hold(&mut backoff, "log", &why).await;
                }
                Err(Look::Log(error)) => {
                    return Err(Stop::Failed(FailureKind::Other, one_line(&error)));
                }
            }
        }
    }

    /// One look; whether its answers agree with each other.
    async fn look(&self) -> Result<(Checked, bool), Look> {
        let partitions: Vec<TopicPartition> = self
            .cuts
            .iter()
            .map(|cut| TopicPartition::new(self.topic.clone(), cut.partition()))
            .collect();
        let bounds = self.log.bounds(&partitions, self.isolation).await?;
        let epochs: Vec<(TopicPartition, i32)> = self
            .cuts
            .iter()
            .zip(&partitions)
            .filter(|(_, tp)| bounds.contains_key(tp))
            .filter_map(|(cut, tp)| Some((tp.clone(), cut.leader_epoch()?)))
            .collect();
        let ends = if epochs.is_empty() {
            BTreeMap::new()
        } else {
            self.log.epoch_ends(&epochs).await?
        };
        // last: everything above was asked of the topic that this names
        let identity = identity_of(self.log.as_ref(), &self.topic).await?;
        let identity = if Mutant::TopicIdUnseen.is_planted() {
            self.identity.clone()
        } else {
            identity
        };
        if !identity.agrees(&self.identity) {
            return Err(Look::Stop(Stop::AnotherTopic));
        }
        let mut checked = Checked {
            identity,
            epochs: BTreeMap::new(),
            truncated: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            unproven: BTreeSet::new(),
        };
        let mut is_settled = true;
        for (cut, tp) in self.cuts.iter().zip(&partitions) {
            let epoch_end = match cut.leader_epoch() {
                Some(_) => ends.get(tp).copied(),
                None => Some(None),
            };
            match verdict(cut, epoch_end, bounds.get(tp)) {
                Some(CommitCheck::Sound(epoch)) => {
                    checked.epochs.insert(cut.partition(), epoch);
                }
                Some(CommitCheck::Truncated(truncation)) => {
                    // a high watermark may trail for a moment: look again before that is believed
                    is_settled &= truncation.leader_epoch.is_some();
                    checked.truncated.insert(cut.partition(), truncation);
                }
                Some(CommitCheck::Unproven) => {
                    checked.unproven.insert(cut.partition());
                }
                // still contradicting at the last look: the epoch proves that the rows are there
                Some(CommitCheck::Unsettled) => {
                    is_settled = false;
                    checked.epochs.insert(cut.partition(), cut.leader_epoch());
                }
                // a leader is being elected, or metadata is on its way: the next look may tell
                None => {
                    is_settled = false;
                    checked.unanswered.insert(cut.partition());
                }
            }
        }
        Ok((checked, is_settled))
    }

    /// Proposes, until everything has landed or is fenced.
    async fn propose(
        &mut self,
        checked: &Checked,
        started: Duration,
        report: &mut Report,
    ) -> Result<(), Stop> {
        fail::fail_point!("archiver::before_encode");
        let mut archived_at = self.deps.clock.now();
        let mut hashes: BTreeMap<Partition, u64> = BTreeMap::new();
        let mut files: Vec<EncodedFile> = Vec::new();
        loop {
            let missing = missing_rows(&self.cuts, self.generation, &files);
            if hashes.is_empty() {
                hashes = self.seal().await?;
            }
            if !missing.is_empty() {
                files.extend(self.encode(missing, archived_at).await?);
            }
            fail::fail_point!("archiver::after_files");
            let advances = self.advances(checked, &hashes, archived_at);
            let request = AppendRequest {
                advances,
                files: files.clone(),
                archived_at,
                reference_time: None,
            };
            match self.append(request).await? {
                Settled::Committed {
                    snapshot_id,
                    ledger,
                    attempts,
                } => {
                    fail::fail_point!("archiver::after_append");
                    self.landed(snapshot_id, ledger, attempts, &files, started, report);
                    return Ok(());
                }
                // the rows are still here: other files
                Settled::Stale => {
                    files.clear();
                    archived_at = self.deps.clock.now();
                }
                Settled::Fenced(ledger) => {
                    let refused = self.refused(checked, &hashes, archived_at, &ledger)?;
                    self.closing
                        .retain(|c| !refused.closing.contains(&(c.generation, c.partition)));
                    self.cuts
                        .retain(|cut| !refused.fenced.contains_key(&cut.partition()));
                    keep_files_without(&mut files, refused.fenced.keys());
                    report.fenced.extend(refused.fenced);
                    if self.cuts.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Checks and hashes what was cut, on threads that may be busy.
    async fn seal(&self) -> Result<BTreeMap<Partition, u64>, Stop> {
        let _permit = self.encoders.acquire().await;
        let seal = |cut: &Cut| {
            let cut = cut.clone();
            compute::spawn(move || cut.seal().map(|hash| (cut.partition(), hash)))
        };
        futures::stream::iter(self.cuts.iter().map(seal))
            .buffer_unordered(SEALERS)
            .map(|sealed| match sealed {
                Ok(Ok(hash)) => Ok(hash),
                Ok(Err(unsound)) => Err(format!(
                    "what was read is not what the reader said: {unsound}"
                )),
                Err(_) => Err("hashing was stopped".to_owned()),
            })
            .map_err(|why| Stop::Failed(FailureKind::Other, why))
            .try_collect()
            .await
    }

    /// Writes files, however long the store is away. Others encode while this one waits for it.
    async fn encode(
        &self,
        rows: Vec<PartitionRows>,
        archived_at: Millis,
    ) -> Result<Vec<EncodedFile>, Stop> {
        let mut backoff = Backoff::default();
        let mut patience = Patience::default();
        loop {
            let permit = self.encoders.acquire().await;
            let why = match self.archive.storage().await {
                Ok(storage) => {
                    let request = WriteRequest {
                        table: &self.table,
                        storage,
                        topic: self.topic.clone(),
                        archived_at,
                        rows: rows.clone(),
                        file_bytes_target: FILE_BYTES_TARGET,
                        spare: self.spare.clone(),
                    };
                    match write_files(request, self.deps.ids.as_ref()).await {
                        Ok(files) => {
                            self.status.release(&self.topic);
                            return Ok(files);
                        }
                        Err(error) => patience.with_write(&error)?,
                    }
                }
                Err(error) => patience.with_archive(&error)?,
            };
            drop(permit);
            self.hold(&mut backoff, "write", &why).await;
        }
    }

    fn advances(
        &self,
        checked: &Checked,
        hashes: &BTreeMap<Partition, u64>,
        at: Millis,
    ) -> Vec<Advance> {
        let closing = self.closing.iter().map(|c| closing_advance(c, at));
        let cuts = self.cuts.iter().map(|cut| {
            let epoch = checked.epochs.get(&cut.partition()).copied().flatten();
            let hash = hashes.get(&cut.partition()).copied().unwrap_or_default();
            cut.advance(self.generation, &checked.identity, epoch, hash)
        });
        closing.chain(cuts).collect()
    }

    /// Appends, and finds out what became of it, however long that takes.
    async fn append(&self, request: AppendRequest) -> Result<Settled, Stop> {
        let mut backoff = Backoff::default();
        let mut patience = Patience::default();
        let mut pending: Option<PendingCommit> = None;
        loop {
            let was_open = pending.is_some();
            let outcome = match pending.take() {
                None => self.archive.append(request.clone()).await,
                Some(open) => self.archive.resolve(open).await,
            };
            let why = match outcome.map(settle) {
                Ok(Ok(settled)) => {
                    self.status.release(&self.topic);
                    return Ok(settled);
                }
                Ok(Err(open)) => {
                    if !was_open {
                        self.status.count_commit(&self.topic, "unknown");
                        backoff.reset();
                    }
                    pending = Some(open);
                    "the catalog did not say whether the last commit was applied".to_owned()
                }
                // not applied, or proved dead; and the files too old for another attempt
                Err(error) if error.kind() == ArchiveErrorKind::Stale => {
                    self.status.release(&self.topic);
                    return Ok(Settled::Stale);
                }
                // definitely not applied: an open outcome is never an error
                Err(error) => patience.with_archive(&error)?,
            };
            self.hold(&mut backoff, "archive", &why).await;
        }
    }

    /// Which of the advances the ledger that fenced refuses. Asked one by one, since a refusal does not name the era.
    fn refused(
        &self,
        checked: &Checked,
        hashes: &BTreeMap<Partition, u64>,
        at: Millis,
        ledger: &Ledger,
    ) -> Result<Refused, Stop> {
        let mut refused = Refused::default();
        for advance in self.advances(checked, hashes, at) {
            let Err(refusals) = ledger.apply(std::slice::from_ref(&advance)) else {
                continue;
            };
            for refusal in refusals {
                if let Refusal::Malformed { .. } = refusal {
                    return Err(Stop::Failed(FailureKind::Other, refusal.to_string()));
                }
                if advance.generation == self.generation {
                    refused
                        .fenced
                        .insert(advance.partition, refusal.to_string());
                } else {
                    refused
                        .closing
                        .insert((advance.generation, advance.partition));
                }
            }
        }
        if refused.fenced.is_empty() && refused.closing.is_empty() {
            // the table fenced what its own ledger accepts
            return Err(Stop::Failed(
                FailureKind::Other,
                "a commit was refused for no reason that the ledger shows".to_owned(),
            ));
        }
        Ok(refused)
    }

    fn landed(
        &self,
        snapshot_id: i64,
        ledger: Ledger,
        attempts: u32,
        files: &[EncodedFile],
        started: Duration,
        report: &mut Report,
    ) {
        let took = self.deps.clock.elapsed().saturating_sub(started);
        let rows: u64 = self.cuts.iter().map(Cut::rows).sum();
        let bytes: u64 = files.iter().map(|f| f.bytes).sum();
        let labels = (&self.topic).into();
        let metrics = self.status.metrics();
        metrics
            .files_written
            .get_or_create(&labels)
            .inc_by(files.len() as u64);
        metrics.bytes_written.get_or_create(&labels).inc_by(bytes);
        metrics.records.get_or_create(&labels).inc_by(rows);
        self.status.count_commit(&self.topic, "committed");
        self.status
            .committed(&self.topic, snapshot_id, self.deps.clock.now(), took);
        tracing::info!(
            topic = %self.topic,
            snapshot = snapshot_id,
            generation = self.generation.0,
            partitions = self.cuts.len(),
            rows,
            files = files.len(),
            bytes,
            attempts,
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "committed"
        );
        report.landed = Some(Landed {
            ledger,
            partitions: self.cuts.iter().map(Cut::partition).collect(),
            gaps: self
                .cuts
                .iter()
                .filter_map(|cut| Some((cut.partition(), cut.gap()?)))
                .collect(),
            rows,
        });
    }
}

enum Look {
    Log(LogError),
    Stop(Stop),
}

impl From<LogError> for Look {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl From<prepare::Failure> for Look {
    fn from(failure: prepare::Failure) -> Self {
        match failure {
            prepare::Failure::Log(error) => Self::Log(error),
            prepare::Failure::Gone => Self::Stop(Stop::Gone),
            other => Self::Stop(Stop::Failed(FailureKind::Other, other.to_string())),
        }
    }
}

enum Settled {
    Committed {
        snapshot_id: i64,
        ledger: Ledger,
        attempts: u32,
    },
    Fenced(Ledger),
    /// The files waited so long that orphan removal may meet them.
    Stale,
}

fn settle(outcome: CommitOutcome) -> Result<Settled, PendingCommit> {
    match outcome {
        CommitOutcome::Committed {
            snapshot_id,
            ledger,
            attempts,
        } => Ok(Settled::Committed {
            snapshot_id,
            ledger,
            attempts,
        }),
        CommitOutcome::Fenced { ledger, .. } => Ok(Settled::Fenced(ledger)),
        CommitOutcome::Unknown(pending) => Err(pending),
    }
}

#[derive(Default)]
struct Refused {
    fenced: BTreeMap<Partition, String>,
    closing: BTreeSet<(Generation, Partition)>,
}

/// What the brokers' answers say of a cut; none where one of them is missing. `epoch_end`: of those that were asked for,
/// the outer none is no answer, the inner one an epoch that the broker does not know.
fn verdict(
    cut: &Cut,
    epoch_end: Option<Option<Offset>>,
    bounds: Option<&LogBounds>,
) -> Option<CommitCheck> {
    Some(recovery::before_commit(CommitFacts {
        last_row: cut.last_row(),
        leader_epoch: cut.leader_epoch(),
        end: cut.end(),
        epoch_end: epoch_end?,
        high_watermark: bounds?.high_watermark,
        leaders_epoch: bounds?.leader_epoch,
        began_under: cut.began_under(),
        has_unproven_hole: cut.has_unproven_hole(),
    }))
}

fn closing_advance(closing: &Closing, at: Millis) -> Advance {
    Advance {
        generation: closing.generation,
        identity: closing.identity.clone(),
        partition: closing.partition,
        base: Some(closing.entry),
        segments: vec![Segment::Gap {
            start: closing.entry.next,
            end: None,
            reason: GapReason::Recreated,
            at,
        }],
        leader_epoch: closing.entry.leader_epoch,
        hash: closing.entry.hash,
    }
}

/// The rows that are in none of `files` yet.
fn missing_rows(cuts: &[Cut], generation: Generation, files: &[EncodedFile]) -> Vec<PartitionRows> {
    let written: BTreeSet<Partition> = files
        .iter()
        .flat_map(|f| f.ranges.iter().map(|r| r.partition))
        .collect();
    let mut rows: Vec<PartitionRows> = cuts
        .iter()
        .filter(|cut| !written.contains(&cut.partition()))
        .filter_map(|cut| cut.partition_rows(generation))
        .collect();
    rows.sort_by_key(|r| r.partition);
    rows
}

/// Drops every file with a row of `fenced`, and then those that hold only a part of a partition whose other part went
/// with them. The objects stay where they are: orphan removal takes them.
fn keep_files_without<'a>(
    files: &mut Vec<EncodedFile>,
    fenced: impl Iterator<Item = &'a Partition>,
) {
    let mut void: BTreeSet<Partition> = fenced.copied().collect();
    loop {
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(files)
            .into_iter()
            .partition(|f| f.ranges.iter().any(|r| void.contains(&r.partition)));
        *files = kept;
        if gone.is_empty() {
            return;
        }
        void.extend(
            gone.iter()
                .flat_map(|f| f.ranges.iter().map(|r| r.partition)),
        );
    }
}
