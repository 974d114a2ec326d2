//! Epochs to their files, their outputs and the local store, and what to do after a crash.
//!
//! ```text
//!   JobState ──seal──► epoch ──► 1 file ──► 2 outputs ──► 3 local store ──settle──► JobState
//!                                                         └► 4 now and then, beside the work: base image, then old files go
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Positions, compute};
use everlog_table::storage::{Storage, StorageErrorKind};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::changes::Changes;
use super::changes::ENTRY_OVERHEAD_BYTES;
use super::epoch::{self, Counts, Epoch, Header};
use super::error::StoreError;
use super::local::{At, Image, Local};
use super::log::{EpochLog, Identity, corrupt};
use super::overlay::JobState;
use super::recovery::{self, EpochCounts, Facts, OutputFacts, StatePlan};
use crate::sink::{Channel, Marker, Sink, SinkError};

/// How often recovery begins again because files went away under it, or the local store turned out to be of other epochs.
const RECOVERY_ATTEMPTS: u32 = 3;
/// Memory that one part of a base image takes, at most: it is encoded on top of that.
const PART_BYTES_MAX: usize = 16 << 20;
/// Less than this would be very many parts.
const PART_BYTES_MIN: usize = 2 << 20;

/// When a base image is made. Files of epochs are never more than eight times `epochs_min`, but where epochs come faster than an image can
/// be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BasePolicy {
    /// Epochs after which one is due, where they are not small against the state.
    pub epochs_min: u64,
}

impl Default for BasePolicy {
    fn default() -> Self {
        Self { epochs_min: 64 }
    }
}

impl BasePolicy {
    /// Whether an image is due: `epochs` and `bytes` of changes came since the one before, which has `base` bytes.
    fn is_due(self, epochs: u64, bytes: u64, base: u64) -> bool {
        epochs >= self.epochs_min && bytes >= base / 2
            || epochs >= self.epochs_min.saturating_mul(8)
    }
}

/// What a job's state is opened with.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Where the epochs' files go.
    pub storage: Storage,
    /// The folder of all jobs, as a URI that `storage` understands.
    pub location: String,
    /// Of what the state has to be.
    pub identity: Identity,
    /// An identifier that nobody else draws.
    pub writer: Uuid,
    /// A folder of this machine, for this version of the job alone.
    pub local: PathBuf,
    /// Memory of the local store, in bytes.
    pub local_memory: usize,
    /// How long to wait for an earlier process of the job to let the local store go.
    pub patience: Duration,
    /// When base images are made.
    pub base: BasePolicy,
}

/// Why a checkpoint, or recovery, failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An output.
    #[error(transparent)]
    Sink(#[from] SinkError),
}

impl CheckpointError {
    /// The exit status that stands for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Store(error) => error.exit_status(),
            Self::Sink(error) => error.exit_status(),
        }
    }

    /// Whether a file of the state was removed meanwhile.
    fn is_gone(&self) -> bool {
        matches!(self, Self::Store(StoreError::Storage { source, .. }) if source.kind() == StorageErrorKind::NotFound)
    }

    /// Whether another process took the job over.
    pub fn is_fenced(&self) -> bool {
        matches!(
            self,
            Self::Store(StoreError::Fenced { .. }) | Self::Sink(SinkError::Fenced { .. })
        )
    }
}

/// A job that this process took over. Open the outputs next, then [`recover`](Self::recover).
#[derive(Debug)]
pub struct Taken {
    log: EpochLog,
    claim: Epoch,
    opening: Opening,
}

/// Where a job goes on.
#[derive(Debug)]
pub struct Recovered {
    /// The engine's progress; none: the job begins.
    pub progress: Option<Vec<u8>>,
    /// Where to read on.
    pub positions: Positions,
    /// Rows so far.
    pub counts: Counts,
    /// What the engine works on.
    pub state: JobState,
    /// Where sealed epochs go.
    pub checkpoints: Checkpoints,
    /// Epochs that recovery committed to outputs.
    pub rolled_forward: usize,
}

/// Takes a job over, so that no earlier process of it can go on. State of another job, query or engine is refused before anything is changed.
pub async fn take_over(opening: Opening) -> Result<Taken, StoreError> {
    let Opening {
        storage,
        location,
        identity,
        writer,
        ..
    } = &opening;
    let (log, claim) =
        EpochLog::take_over(storage.clone(), location, identity.clone(), *writer).await?;
    Ok(Taken {
        log,
        claim,
        opening,
    })
}

impl Taken {
    /// For sinks that must not take an output back from a later process.
    pub fn log(&self) -> &EpochLog {
        &self.log
    }

    /// The newest epoch.
    pub fn epoch(&self) -> u64 {
        self.claim.number
    }

    /// Brings outputs and local store to the newest epoch.
    pub async fn recover(
        self,
        mut outputs: Vec<Box<dyn Sink>>,
    ) -> Result<Recovered, CheckpointError> {
        let Self {
            log,
            claim,
            opening,
        } = self;
        let Opening {
            local: folder,
            local_memory,
            patience,
            ..
        } = opening.clone();
        let opened = compute::spawn(move || Local::open(&folder, local_memory, patience));
        let mut local = opened.await.map_err(|_| StoreError::Stopped)??;
        let mut rolled_forward = 0;
        let mut attempts = RECOVERY_ATTEMPTS;
        let base = loop {
            attempts -= 1;
            let facts = match gather(&log, &claim, &local, &mut outputs).await {
                // A process that was fenced may still be removing what its last base image makes superfluous.
                Err(error) if error.is_gone() && attempts > 0 => {
                    tracing::info!(job = %opening.identity.job, %error, "files went away: looking again");
                    continue;
                }
                facts => facts?,
            };
            let plan = recovery::decide(&facts).map_err(|source| StoreError::Refused {
                job: opening.identity.job.to_string(),
                source,
            })?;
            tracing::info!(job = %opening.identity.job, epoch = claim.number, local = facts.local, state = ?plan.state, commits = plan.commits.len(), "recovery");
            let mut read: Option<Epoch> = None;
            for (number, channel) in plan.commits {
                let epoch = match read.take().filter(|epoch| epoch.number == number) {
                    Some(epoch) => epoch,
                    None => log.read(number).await?,
                };
                for sink in outputs.iter_mut().filter(|sink| sink.channel() == channel) {
                    sink.commit(&epoch).await?;
                }
                rolled_forward += 1;
                read = Some(epoch);
            }
            let brought;
            (local, brought) = bring(&log, &claim, local, plan.state).await?;
            match brought {
                true => break facts.bases.last().copied().unwrap_or(0),
                false if attempts > 0 => {
                    tracing::warn!(job = %opening.identity.job, "the local state is of other epochs: it is made anew");
                    let recreated = compute::spawn(move || local.recreate());
                    local = recreated.await.map_err(|_| StoreError::Stopped)??;
                }
                false => {
                    return Err(StoreError::Corrupt {
                        file: format!("epochs up to {}", claim.number),
                        what: "they do not follow on each other: files were removed, or mixed with others".into(),
                    }
                    .into());
                }
            }
        };
        let local = Arc::new(local);
        let counts = claim.after();
        let state = JobState::new(
            Arc::new(opening.identity.clone()),
            Arc::clone(&local),
            claim.number,
            counts,
        );
        let checkpoints = Checkpoints {
            log,
            local,
            outputs,
            policy: opening.base,
            writer: opening.writer,
            head: claim.number,
            base,
            base_bytes: 0,
            bytes: 0,
            part_bytes: (opening.local_memory / 4).clamp(PART_BYTES_MIN, PART_BYTES_MAX),
            image: JoinSet::new(),
        };
        Ok(Recovered {
            progress: (!claim.progress.is_empty()).then(|| claim.progress.clone()),
            positions: claim.positions,
            counts,
            state,
            checkpoints,
            rolled_forward,
        })
    }
}

async fn gather(
    log: &EpochLog,
    claim: &Epoch,
    local: &Local,
    outputs: &mut [Box<dyn Sink>],
) -> Result<Facts, CheckpointError> {
    let mut held: Vec<(Channel, Option<Marker>)> = Vec::new();
    for sink in outputs.iter_mut() {
        held.push((sink.channel(), sink.committed().await?));
    }
    let listing = log.listing().await?;
    // Our own epoch is the newest, or another process has come.
    if listing.epochs.last() != Some(&claim.number) {
        log.check_owner().await?;
        let newest = listing.epochs.last().copied().unwrap_or(0);
        return Err(StoreError::Refused {
            job: log.identity().job.to_string(),
            source: recovery::Refusal::Missing {
                from: newest + 1,
                to: claim.number,
            },
        }
        .into());
    }
    let bases = listing.bases.range(..=claim.number).copied().collect();
    let bases = log.own_bases(bases).await?;
    let mut epochs = listing.epochs;
    // What lies before a hole is of no use, and may be the rest of a removal.
    let mut first = claim.number;
    while first > 1 && epochs.contains(&(first - 1)) {
        first -= 1;
    }
    epochs = epochs.split_off(&first);
    let oldest = held
        .iter()
        .map(|(_, marker)| marker.as_ref().map_or(0, |m| m.epoch))
        .min();
    let from = oldest
        .map_or(claim.number, |oldest| (oldest + 1).min(claim.number))
        .max(first);
    let mut headers = log.headers((from..=claim.number).collect()).await?;
    // A process that was fenced may have died right after it wrote a file under a number that had become free: the next
    // epoch does not name it as its parent.
    let follows = |pair: &[Header]| matches!(pair, [a, b] if b.parent == a.writer);
    if let Some(at) = headers.windows(2).rposition(|pair| !follows(pair)) {
        headers.drain(..=at);
        epochs = epochs.split_off(&headers.first().map_or(claim.number, |header| header.epoch));
    }
    let at = local.at()?.filter(|at| at.chain == log.chain());
    let at = match at {
        // An epoch of that number exists, but another one: a process that was fenced had applied its own.
        Some(at) if epochs.contains(&at.epoch) => {
            let header = log.header(at.epoch).await?;
            (header.writer == at.writer).then_some(at.epoch)
        }
        Some(at) => Some(at.epoch),
        None => None,
    };
    Ok(Facts {
        head: claim.number,
        epochs,
        bases,
        local: at,
        recent: headers
            .iter()
            .map(|header| EpochCounts {
                epoch: header.epoch,
                before: header.before,
                after: header.after,
            })
            .collect(),
        outputs: held
            .into_iter()
            .map(|(channel, marker)| OutputFacts {
                channel,
                held: marker.map(|m| (m.epoch, m.rows)),
            })
            .collect(),
    })
}

/// Brings the local store to the newest epoch; `false`: the files do not follow on what it has.
async fn bring(
    log: &EpochLog,
    claim: &Epoch,
    mut local: Local,
    plan: StatePlan,
) -> Result<(Local, bool), StoreError> {
    let (from, mut parent) = match plan {
        StatePlan::Current => return Ok((local, true)),
        StatePlan::Apply { from } => (from, local.at()?.map_or(Uuid::nil(), |at| at.writer)),
        StatePlan::Rebuild { base, from } => {
            let recreated = compute::spawn(move || local.recreate());
            local = recreated.await.map_err(|_| StoreError::Stopped)??;
            match base {
                None => (from, Uuid::nil()),
                Some(base) => {
                    let writer;
                    (local, writer) = load_base(log, base, local).await?;
                    (from, writer)
                }
            }
        }
    };
    for number in from..=claim.number {
        let Some((writer, epoch)) = log.read_after(number, parent).await? else {
            return Ok((local, false));
        };
        let at = At::new(log.chain(), number, writer);
        let applied = compute::spawn(move || {
            let applied = local.apply(&epoch.changes, at);
            (local, applied)
        });
        let applied = applied.await.map_err(|_| StoreError::Stopped)?;
        local = applied.0;
        applied.1?;
        parent = writer;
    }
    Ok((local, true))
}

async fn load_base(
    log: &EpochLog,
    base: u64,
    mut local: Local,
) -> Result<(Local, Uuid), StoreError> {
    let manifest = log.base(base).await?;
    for part in &manifest.parts {
        let bytes = log.part(part).await?;
        let uri = log.part_uri(part);
        let loaded = compute::spawn(move || {
            let loaded = load_part(&local, &uri, &bytes);
            (local, loaded)
        });
        let loaded = loaded.await.map_err(|_| StoreError::Stopped)?;
        local = loaded.0;
        loaded.1?;
    }
    local.set_at(At::new(log.chain(), base, manifest.writer))?;
    Ok((local, manifest.writer))
}

fn load_part(local: &Local, uri: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let mut failed = Ok(());
    let mut piece = Changes::default();
    epoch::read_changes(bytes, |space, key, value| {
        piece.set(space, key.to_vec(), value.map(<[u8]>::to_vec));
    })
    .map_err(|broken| corrupt(uri, broken))?;
    let entries = piece
        .iter()
        .map(|(space, key, value)| (space, key.as_slice(), value.map(Vec::as_slice)));
    if let Err(error) = local.load(entries) {
        failed = Err(error);
    }
    failed
}

/// Where sealed epochs go.
#[derive(Debug)]
pub struct Checkpoints {
    log: EpochLog,
    local: Arc<Local>,
    outputs: Vec<Box<dyn Sink>>,
    policy: BasePolicy,
    writer: Uuid,
    /// The newest epoch that is committed.
    head: u64,
    /// The newest base image's epoch, and its bytes as far as this process knows.
    base: u64,
    base_bytes: u64,
    /// Of changes since then.
    bytes: u64,
    /// Memory for one part of an image.
    part_bytes: usize,
    /// The image that is being written, if any.
    image: JoinSet<Result<(u64, u64), StoreError>>,
}

impl std::fmt::Debug for dyn Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.target())
    }
}

impl Checkpoints {
    /// Commits a sealed epoch: file, outputs, local store. When it returns, the epoch is committed for good, and can be
    /// [settled](JobState::settle). After an error the process ends and recovers: nothing is lost. Not cancel-safe.
    pub async fn commit(&mut self, epoch: &Arc<Epoch>) -> Result<(), CheckpointError> {
        fail::fail_point!("process::before_epoch_file");
        self.log.put(epoch).await?;
        fail::fail_point!("process::after_epoch_file");
        for sink in &mut self.outputs {
            fail::fail_point!("process::before_sink");
            sink.commit(epoch).await?;
            fail::fail_point!("process::after_sink");
        }
        fail::fail_point!("process::before_local");
        let (local, applied) = (Arc::clone(&self.local), Arc::clone(epoch));
        let at = At::new(self.log.chain(), epoch.number, self.writer);
        let apply = compute::spawn(move || local.apply(&applied.changes, at));
        apply.await.map_err(|_| StoreError::Stopped)??;
        fail::fail_point!("process::after_local");
        self.head = epoch.number;
        self.bytes += epoch.changes.bytes() as u64;
        self.look_after_the_base()?;
        Ok(())
    }

    /// Whether this process still owns the job: for when there is nothing to commit, so that an earlier process ends soon.
    /// Takes `&mut self` because sinks are not `Sync`, and a task of its own may ask.
    pub async fn check_owner(&mut self) -> Result<(), CheckpointError> {
        Ok(self.log.check_owner().await?)
    }

    /// What the outputs say they hold.
    pub async fn committed(&mut self) -> Result<Vec<(Channel, Option<Marker>)>, CheckpointError> {
        let mut all = Vec::new();
        for sink in &mut self.outputs {
            all.push((sink.channel(), sink.committed().await?));
        }
        Ok(all)
    }

    /// Bytes of the local store on disk.
    pub fn state_bytes(&self) -> u64 {
        self.local.disk_bytes()
    }

    /// The newest epoch that is committed.
    pub fn epoch(&self) -> u64 {
        self.head
    }

    /// Waits for a base image that is being written.
    pub async fn close(mut self) -> Result<(), CheckpointError> {
        while let Some(done) = self.image.join_next().await {
            done.map_err(|_| StoreError::Stopped)??;
        }
        let local = Arc::clone(&self.local);
        let synced = compute::spawn(move || local.sync());
        synced.await.map_err(|_| StoreError::Stopped)??;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn let_outputs_go(&mut self) {
        self.outputs.clear();
    }

    fn look_after_the_base(&mut self) -> Result<(), StoreError> {
        while let Some(done) = self.image.try_join_next() {
            match done.map_err(|_| StoreError::Stopped)? {
                Ok((base, bytes)) => {
                    self.base = base;
                    self.base_bytes = bytes;
                }
                // The next one may come through; until then there are more epochs to keep.
                Err(error) => {
                    tracing::warn!(job = %self.log.identity().job, %error, "no base image");
                }
            }
        }
        if self.image.is_empty()
            && self
                .policy
                .is_due(self.head - self.base, self.bytes, self.base_bytes)
        {
            self.bytes = 0;
            // Right after an epoch was applied, and before the next is: with all epochs that come, it is the state, and those are in
            // the log before they are applied.
            let image = self.local.image();
            let (log, local) = (self.log.clone(), Arc::clone(&self.local));
            let at = (self.head, self.writer);
            self.image
                .spawn(write_base(log, local, (image, self.part_bytes), at));
        }
        Ok(())
    }
}

/// Writes an image, then removes what it makes superfluous. Gives its epoch and bytes.
async fn write_base(
    log: EpochLog,
    local: Arc<Local>,
    (mut image, part_bytes): (Image, usize),
    (number, writer): (u64, Uuid),
) -> Result<(u64, u64), StoreError> {
    let mut parts = Vec::new();
    let mut total = 0;
    loop {
        let next = compute::spawn(move || {
            let piece = image.next(part_bytes).and_then(|piece| {
                let Some(piece) = piece else { return Ok(None) };
                let mut bytes = Vec::new();
                let entries = piece.iter();
                let entries = entries.map(|(space, key, value)| (*space, key, Some(value)));
                let written = epoch::write_changes(entries, &mut bytes);
                written.map_err(|e| StoreError::Encoding {
                    epoch: number,
                    what: e.to_string(),
                })?;
                let size = piece
                    .iter()
                    .map(|(_, key, value)| key.len() + value.len() + ENTRY_OVERHEAD_BYTES);
                Ok(Some((bytes, size.sum::<usize>() as u64)))
            });
            (image, piece)
        });
        let (back, piece) = next.await.map_err(|_| StoreError::Stopped)?;
        image = back;
        let Some((bytes, size)) = piece? else { break };
        parts.push(log.put_part(number, parts.len(), bytes).await?);
        total += size;
    }
    log.put_base((number, writer), parts, total).await?;
    let synced = compute::spawn(move || local.sync());
    synced.await.map_err(|_| StoreError::Stopped)??;
    match log.prune(number).await {
        Ok(removed) => tracing::info!(epoch = number, bytes = total, removed, "base image"),
        Err(StoreError::Storage { source, .. }) if source.kind() == StorageErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok((number, total))
}
