//! The loop: whoever of stream, decoder, engine and committer can go on does.
//!
//! Each of the three workers is either here, or at work in a task that brings it back with what it did. So nothing is shared,
//! and what is decided between two steps is decided on values that stand still.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{
    Clock, EventBatch, Generation, Identity as LogIdentity, Ledger, LogBounds, Partition, Source,
    TopicName, TopicPartition, compute,
};
use everlog_engine::event_time::{END, NEVER};
use everlog_engine::{Candidate, Decision, Engine, EngineError, Progress, Scope};
use everlog_kafka::{Isolation, LogError};
use everlog_replayer::{Advance, Components, EventStream, ReplayError, ReplayRequest, Until};
use everlog_table::archive::{Archive, ArchiveDeps};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::decide::{EpochFacts, EpochRules, EpochStep, IdleClocks, Rate, between_passes};
use super::error::RunError;
use super::observer::Numbers;
use super::peers::Peers;
use super::prepare::{Prepared, engine_name};
use super::source::{Decoded, Decoding, Followed, Piece};
use super::work::{LeftOut, Rules, Stored, Work};
use super::{Bound, Environment, Observer, RunOptions, outputs};
use crate::job::{Job, Side};
use crate::registry::{HeldBy, Live, Phase, Registry};
use crate::state::{
    BasePolicy, Budget, CheckpointError, Checkpoints, Counts, Identity, JobId, Opening, take_over,
};

/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(100);
/// How often the ends of the live log are asked for, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long an answer to that says something of now.
const LOOK_VALID: Duration = Duration::from_secs(15);
/// Pieces between stream and engine.
const PIECES_MAX: usize = 1_024;
/// Rows that are handed to the decoder, and to the engine, at a time: between two of these holds and settles are due.
const ROWS_AT_A_TIME: usize = 131_072;
/// Bound of the orderly end after a signal.
const END_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a commit under way is waited for after an error.
const LAST_COMMIT: Duration = Duration::from_secs(30);
/// Records behind the end that count as being there.
const LIVE_LAG: u64 = 1_000;

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Records read.
    pub events: u64,
    /// Epochs committed.
    pub epochs: u64,
    /// Epochs of an earlier run that were committed to outputs at the start.
    pub rolled_forward: usize,
    /// Rows, late records and dead letters since the version began.
    pub counts: Counts,
    /// The event time that it has reached, in milliseconds since 1970; none before it has one.
    pub watermark_ms: Option<i64>,
    /// Whether its windows are closed for good.
    pub drained: bool,
    /// Recorded gaps that were passed.
    pub gaps: Vec<String>,
}

/// Runs a job until its bound, or until it is asked to end.
///
/// Exactly once: killed at any instant, the next run goes on as if nothing had been. At most one process runs a version: a later
/// one takes over, and this one ends with an error that says so.
pub async fn run(
    prepared: Prepared,
    environment: Environment,
    options: RunOptions,
) -> Result<Summary, RunError> {
    let stop = options.stop.clone();
    // Nothing was read yet: a signal ends it at once, and whatever was begun is gone on with by the next run.
    let begun = tokio::select! {
        begun = begin(prepared, environment, options) => begun?,
        () = stop.cancelled() => return Ok(Summary {
            events: 0,
            epochs: 0,
            rolled_forward: 0,
            counts: Counts::default(),
            watermark_ms: None,
            drained: false,
            gaps: Vec::new(),
        }),
    };
    let mut driver = begun;
    let ended = driver.drive(&stop).await;
    driver.close(ended).await
}

/// Takes the job over, brings outputs and state to its newest epoch, and opens the stream there.
async fn begin(
    prepared: Prepared,
    environment: Environment,
    options: RunOptions,
) -> Result<Driver, RunError> {
    let job = prepared.job().clone();
    let id = prepared.id();
    let location = job.checkpoint.location.clone();
    let registry = Registry::new(environment.storage.clone(), &location, job.name.as_str());
    if options.until != Bound::Snapshot && environment.log.is_none() {
        return Err(RunError::NoKafka(job.source.topic.clone()));
    }
    registry
        .register(
            job.version.as_str(),
            &prepared.version(environment.clock.now()),
        )
        .await?;
    let budget = Budget::of(usize::try_from(job.limits.memory).unwrap_or(usize::MAX));
    let taken = take_over(Opening {
        storage: environment.storage.clone(),
        location: location.clone(),
        identity: Identity {
            job: id.clone(),
            fingerprint: prepared.query().fingerprint(),
            engine: engine_name(),
        },
        writer: environment.ids.uuid(),
        local: local_folder(&environment.scratch, &location, &id),
        local_memory: budget.local,
        patience: outputs::patience(&job),
        base: BasePolicy::default(),
    })
    .await?;
    fail::fail_point!("process::after_take_over");
    let sinks = outputs::open(&prepared, &environment, taken.log()).await?;
    let recovered = taken.recover(sinks).await?;
    let stored = match &recovered.progress {
        Some(bytes) => Some(Stored::read(bytes, &id.to_string())?),
        None => None,
    };
    let progress = stored
        .as_ref()
        .map_or_else(Progress::default, |stored| stored.engine.clone());
    let drained = progress.drained;
    let failed = |source| RunError::Engine {
        job: id.to_string(),
        source,
    };
    // What a call looks at is held a few times over: as bytes, as columns, as rows.
    let engine = Engine::new(Arc::clone(prepared.query()), progress)
        .map_err(failed)?
        .with_bytes_per_call(budget.engine / 4);
    let peers = Peers {
        registry,
        storage: environment.storage.clone(),
        location,
        id: id.clone(),
        topic: job.source.topic.clone(),
        read: BTreeMap::new(),
    };
    let rules = Rules {
        job: id.to_string(),
        topic: job.source.topic.clone(),
        on_error: job.source.on_error,
        epoch: EpochRules {
            changed_max: budget.changes,
            output_max: budget.output,
            interval: job.checkpoint.interval,
        },
        late: LeftOut::new(&job.source.topic, "reason", job.late != Side::Count),
        dead: LeftOut::new(&job.source.topic, "error", job.dead_letter != Side::Count),
    };
    let epoch_rules = rules.epoch;
    let positions = recovered.positions.clone();
    let work = Work::new(
        rules,
        engine,
        recovered.state,
        positions.clone(),
        stored.as_ref(),
    );
    let stream = if drained {
        None
    } else {
        let mut request = request(&job, options.until, budget.source);
        if stored.is_some() {
            request.start = Some(positions.clone());
            request.incarnation = stored.as_ref().and_then(Stored::incarnation);
        }
        let components = Components {
            log: environment.log.clone(),
            catalog: Arc::clone(&environment.catalog),
            clock: Arc::clone(&environment.clock),
            ids: Arc::clone(&environment.ids),
            namespace: environment.namespace.clone(),
        };
        Some(EventStream::open(request, components).await?)
    };
    let now = environment.clock.elapsed();
    let query = prepared.query();
    let windowed = query.is_windowed() && query.event_time().scope == Scope::Global;
    let mut driver = Driver {
        started_ms: environment.clock.now().0,
        epoch_ms: environment.clock.now().0,
        windowed,
        aligned: query.event_time().scope == Scope::Global,
        idle_timeout: job.source.idle_timeout.filter(|_| windowed),
        until: options.until,
        drain: options.drain,
        stop: options.stop,
        was_drained: drained,
        observer: options.observer,
        decoding: Some(Box::new(prepared.into_decoding())),
        followed: Followed::new(positions),
        stream,
        peers,
        work: Some(Box::new(work)),
        tasks: JoinSet::new(),
        read: VecDeque::new(),
        decoded: VecDeque::new(),
        under_way: BTreeMap::new(),
        pieces: 0,
        bytes: 0,
        bytes_max: budget.engine / 2,
        handed: Vec::new(),
        epoch_rules,
        settled: None,
        sealed_at: now,
        ending: drained.then_some(Ending::Bound),
        idle: IdleClocks::default(),
        pass_at: now,
        look: None,
        looking: false,
        look_at: now,
        held: BTreeSet::new(),
        met: None,
        telling: 0,
        tell_at: now,
        tick_at: now,
        rate: Rate::default(),
        disk_bytes: recovered.checkpoints.state_bytes(),
        numbers: Numbers {
            epoch: recovered.checkpoints.epoch(),
            epoch_ms: environment.clock.now().0,
            ..Numbers::default()
        },
        rolled_forward: recovered.rolled_forward,
        checkpoints: Some(Box::new(recovered.checkpoints)),
        missed: BTreeSet::new(),
        job,
        id,
        environment,
    };
    driver.meet_partitions().await?;
    Ok(driver)
}

fn request(job: &Job, until: Bound, memory_bytes: usize) -> ReplayRequest {
    ReplayRequest {
        from: job.source.from,
        until: match until {
            Bound::Never => Until::Never,
            Bound::Now => Until::Now,
            Bound::Snapshot => Until::Snapshot,
        },
        rate: job.limits.rate,
        memory_bytes,
        threads: job.limits.threads.unwrap_or_else(compute::threads),
        ..ReplayRequest::new(job.source.topic.clone())
    }
}

/// Where below `scratch` a machine keeps the state of a version at work: of this location's job alone.
pub fn local_folder(scratch: &Path, location: &str, id: &JobId) -> PathBuf {
    let location = location.trim_end_matches('/');
    let hash = twox_hash::XxHash3_64::oneshot(location.as_bytes());
    let folder = scratch.join(format!("{hash:016x}"));
    folder.join(&id.name).join(&id.version)
}

/// Why it ends.
#[derive(Debug)]
enum Ending {
    /// It was asked to.
    Stopped {
        /// When.
        at: Duration,
        /// Why it was about to end anyway.
        failed: Option<RunError>,
    },
    /// The stream is at the bound.
    Bound,
    /// Reading or decoding failed; what came before is sound, and is kept.
    Failed(RunError),
}

/// A worker that comes back.
#[derive(Debug)]
enum Done {
    Decoded(Result<(Box<Decoding>, Vec<Decoded>, Result<(), RunError>), RunError>),
    Worked(Box<Work>, VecDeque<Decoded>, Result<(), RunError>),
    Committed {
        checkpoints: Box<Checkpoints>,
        epoch: u64,
        done: Result<(), CheckpointError>,
        took: Duration,
    },
    Owner(Box<Checkpoints>, Result<(), CheckpointError>),
    Looked(Option<BTreeMap<Partition, LogBounds>>),
    Told,
    /// A thread ended early.
    Lost(&'static str),
}

/// What the loop woke up for.
enum Event {
    Stop,
    Done(Done),
    Stream(Result<Advance, ReplayError>),
    Tick,
}

/// The live log's ends, as of an answer.
#[derive(Debug)]
struct Look {
    at: Duration,
    bounds: BTreeMap<Partition, LogBounds>,
}

struct Driver {
    environment: Environment,
    job: Job,
    id: JobId,
    windowed: bool,
    /// Whether partitions are held back.
    aligned: bool,
    idle_timeout: Option<Duration>,
    until: Bound,
    drain: bool,
    /// Ends every wait for a catalog or storage in the loop itself.
    stop: CancellationToken,
    was_drained: bool,
    observer: Arc<Observer>,
    /// None: the job was drained before.
    stream: Option<EventStream>,
    followed: Followed,
    peers: Peers,
    /// None: it decodes.
    decoding: Option<Box<Decoding>>,
    /// None: it works.
    work: Option<Box<Work>>,
    /// None: it commits.
    checkpoints: Option<Box<Checkpoints>>,
    tasks: JoinSet<Done>,
    read: VecDeque<Piece>,
    decoded: VecDeque<Decoded>,
    /// Pieces between stream and engine, per partition, in all, and their bytes.
    under_way: BTreeMap<Partition, usize>,
    pieces: usize,
    bytes: usize,
    bytes_max: usize,
    /// What is with the engine: partition and bytes, in order.
    handed: Vec<(Partition, usize)>,
    epoch_rules: EpochRules,
    /// Committed, and not settled yet since the engine works.
    settled: Option<u64>,
    sealed_at: Duration,
    ending: Option<Ending>,
    idle: IdleClocks,
    /// When time may pass idle partitions again.
    pass_at: Duration,
    look: Option<Look>,
    looking: bool,
    look_at: Duration,
    held: BTreeSet<Partition>,
    /// How many partitions, with their generations, the engine was told of, and which generation was the newest then.
    met: Option<(usize, Option<Generation>)>,
    /// Live numbers that are being written.
    telling: usize,
    tell_at: Duration,
    tick_at: Duration,
    started_ms: i64,
    epoch_ms: i64,
    /// Of the local state, after the last epoch.
    disk_bytes: u64,
    rate: Rate,
    numbers: Numbers,
    rolled_forward: usize,
    /// Partition, generation and offset of decisions of other versions that came too late here; told once each.
    missed: BTreeSet<(i32, i32, i64)>,
}

impl Driver {
    fn now(&self) -> Duration {
        self.environment.clock.elapsed()
    }

    /// Until everything is done that shall be.
    async fn drive(&mut self, stop: &CancellationToken) -> Result<(), RunError> {
        loop {
            self.start_decoding();
            self.go_on().await?;
            if self.is_over() {
                return Ok(());
            }
            let now = self.now();
            if now >= self.tick_at {
                self.tick_at = now + TICK;
                self.tick(now).await?;
            }
            match self.wait(stop).await {
                Event::Stop => {
                    let at = self.now();
                    tracing::info!(job = %self.id, "a last checkpoint, then the end");
                    let failed = match self.ending.take() {
                        Some(Ending::Failed(error)) => Some(error),
                        _ => None,
                    };
                    self.ending = Some(Ending::Stopped { at, failed });
                    self.let_go_of_unread();
                }
                Event::Done(done) => self.done(done)?,
                Event::Stream(Ok(Advance::Batch(batch))) => self.take(batch),
                Event::Stream(Ok(Advance::End)) => self.ending = Some(Ending::Bound),
                Event::Stream(Err(error)) => self.ending = Some(Ending::Failed(error.into())),
                // What is held and who there is, is looked at before anything else is done.
                Event::Stream(Ok(Advance::Changed)) | Event::Tick => {}
            }
        }
    }

    async fn wait(&mut self, stop: &CancellationToken) -> Event {
        let room = self.ending.is_none() && self.pieces < PIECES_MAX && self.bytes < self.bytes_max;
        let stoppable = !matches!(self.ending, Some(Ending::Stopped { .. }));
        let clock = Arc::clone(&self.environment.clock);
        let Self { stream, tasks, .. } = self;
        let next = async {
            match stream.as_mut().filter(|_| room) {
                Some(stream) => stream.advance().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled(), if stoppable => Event::Stop,
            Some(done) = tasks.join_next() => Event::Done(done.unwrap_or(Done::Lost("a worker"))),
            read = next => Event::Stream(read),
            () = clock.sleep(TICK) => Event::Tick,
        }
    }

    /// A batch of the stream, as pieces.
    fn take(&mut self, batch: EventBatch) {
        let Some(stream) = &self.stream else { return };
        self.numbers.tier = Some(batch.source);
        if !batch.columns.is_empty() {
            self.idle.wake(batch.partition);
        }
        let pieces = self
            .followed
            .pieces(batch, stream.positions(), stream.incarnation());
        for piece in pieces {
            self.remember(&piece);
            self.read.push_back(piece);
        }
    }

    /// A piece is under way.
    fn remember(&mut self, piece: &Piece) {
        *self.under_way.entry(piece.partition).or_default() += 1;
        self.pieces += 1;
        self.bytes += piece.bytes();
    }

    /// A piece is through, or dropped.
    fn forget(&mut self, partition: Partition, bytes: usize) {
        self.pieces = self.pieces.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(count) = self.under_way.get_mut(&partition) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&partition);
            }
        }
    }

    /// Drops what was read and not handed to the engine: the next run reads it again.
    fn let_go_of_unread(&mut self) {
        let read = std::mem::take(&mut self.read);
        let decoded = std::mem::take(&mut self.decoded);
        let pieces = read.into_iter().chain(decoded.into_iter().map(|d| d.piece));
        for piece in pieces.collect::<Vec<_>>() {
            self.forget(piece.partition, piece.bytes());
        }
    }

    fn start_decoding(&mut self) {
        if self.read.is_empty() || self.stopped() {
            return;
        }
        let Some(decoding) = self.decoding.take() else {
            return;
        };
        let (mut pieces, mut rows) = (Vec::new(), 0);
        while rows < ROWS_AT_A_TIME
            && let Some(piece) = self.read.pop_front()
        {
            rows += piece.columns.len();
            pieces.push(piece);
        }
        self.tasks
            .spawn(async move { Done::Decoded(decoding.decode(pieces).await) });
    }

    fn stopped(&self) -> bool {
        matches!(self.ending, Some(Ending::Stopped { .. }))
    }

    /// Whether everything that shall be processed was, but for draining.
    fn is_processed(&self) -> bool {
        let Some(work) = &self.work else { return false };
        match &self.ending {
            None => false,
            Some(Ending::Stopped { .. }) => true,
            Some(_) => self.pieces == 0 && !work.has_more(),
        }
    }

    fn is_drain_due(&self) -> bool {
        let at_bound = matches!(self.ending, Some(Ending::Bound));
        let drained = self.work.as_ref().is_some_and(|w| w.progress().drained);
        self.drain && at_bound && !drained && self.is_processed()
    }

    fn is_over(&self) -> bool {
        let saved = self.work.as_ref().is_some_and(|work| !work.is_dirty());
        saved && self.checkpoints.is_some() && self.is_processed() && !self.is_drain_due()
    }

    /// What can be done while the engine is here: settle, end the epoch, hold partitions back, hand it more.
    async fn go_on(&mut self) -> Result<(), RunError> {
        let Some(mut work) = self.work.take() else {
            return Ok(());
        };
        if let Some(epoch) = self.settled.take() {
            work.settle(epoch);
        }
        self.work = Some(work);
        if matches!(self.ending, Some(Ending::Bound)) && !self.arrive().await? {
            return Ok(());
        }
        if self.seal_if_due()? == EpochStep::Wait {
            return Ok(());
        }
        self.hold_back();
        if self.stopped() {
            return Ok(());
        }
        if self.is_drain_due() {
            tracing::info!(job = %self.id, "event time ends: firing every window");
            if let Some(work) = self.work.take() {
                self.tasks.spawn(async move {
                    match compute::spawn(move || work.drain()).await {
                        Ok((work, done)) => Done::Worked(work, VecDeque::new(), done),
                        Err(_) => Done::Lost("the engine"),
                    }
                });
            }
            return Ok(());
        }
        self.hand_over().await
    }

    /// Ends the epoch where that is due; gives what was decided.
    fn seal_if_due(&mut self) -> Result<EpochStep, RunError> {
        let now = self.now();
        let ending = self.is_processed() && !self.is_drain_due();
        let (Some(work), committing) = (&mut self.work, self.checkpoints.is_none()) else {
            return Ok(EpochStep::Wait);
        };
        let (changed, output) = work.bytes();
        let step = self.epoch_rules.decide(&EpochFacts {
            changed,
            output,
            since: now.saturating_sub(self.sealed_at),
            dirty: work.is_dirty(),
            committing,
            ending,
        });
        match step {
            EpochStep::GoOn | EpochStep::Wait => {}
            EpochStep::Seal => {
                let Some(mut checkpoints) = self.checkpoints.take() else {
                    return Ok(step);
                };
                let epoch = work.seal()?;
                fail::fail_point!("process::sealed");
                self.sealed_at = now;
                let clock = Arc::clone(&self.environment.clock);
                self.tasks.spawn(async move {
                    let began = clock.elapsed();
                    let done = checkpoints.commit(&epoch).await;
                    Done::Committed {
                        checkpoints,
                        epoch: epoch.number,
                        done,
                        took: clock.elapsed().saturating_sub(began),
                    }
                });
            }
            EpochStep::CheckOwner => {
                let Some(mut checkpoints) = self.checkpoints.take() else {
                    return Ok(step);
                };
                self.sealed_at = now;
                self.tasks.spawn(async move {
                    let owner = checkpoints.check_owner().await;
                    Done::Owner(checkpoints, owner)
                });
            }
        }
        Ok(step)
    }

    /// Gives the engine what is decoded.
    async fn hand_over(&mut self) -> Result<(), RunError> {
        let more = self.work.as_ref().is_some_and(|work| work.has_more());
        if self.decoded.is_empty() && !more {
            return Ok(());
        }
        if !self.meet_partitions().await? {
            return Ok(());
        }
        let (mut pieces, mut rows) = (VecDeque::new(), 0);
        while rows < ROWS_AT_A_TIME
            && let Some(decoded) = self.decoded.pop_front()
        {
            rows += decoded.piece.columns.len();
            pieces.push_back(decoded);
        }
        let Some(work) = self.work.take() else {
            return Ok(());
        };
        self.handed = pieces
            .iter()
            .map(|d| (d.piece.partition, d.piece.bytes()))
            .collect();
        self.tasks.spawn(async move {
            match compute::spawn(move || work.run(pieces)).await {
                Ok((work, rest, done)) => Done::Worked(work, rest, done),
                Err(_) => Done::Lost("the engine"),
            }
        });
        Ok(())
    }

    fn done(&mut self, done: Done) -> Result<(), RunError> {
        match done {
            Done::Decoded(Ok((decoding, decoded, result))) => {
                self.decoding = Some(decoding);
                for decoded in decoded {
                    if self.stopped() {
                        self.forget(decoded.piece.partition, decoded.piece.bytes());
                    } else {
                        self.decoded.push_back(decoded);
                    }
                }
                if let Err(error) = result {
                    self.fail(error);
                }
            }
            Done::Decoded(Err(error)) => self.fail(error),
            Done::Worked(work, rest, result) => {
                result?;
                for (partition, bytes) in std::mem::take(&mut self.handed) {
                    self.forget(partition, bytes);
                }
                for decoded in rest.into_iter().rev() {
                    self.remember(&decoded.piece);
                    self.decoded.push_front(decoded);
                }
                if self.stopped() {
                    self.let_go_of_unread();
                }
                if work.progress().drained && !work.has_more() {
                    fail::fail_point!("process::drained");
                }
                self.work = Some(work);
            }
            Done::Committed {
                checkpoints,
                epoch,
                done,
                took,
            } => {
                done?;
                self.settled = Some(epoch);
                self.epoch_ms = self.environment.clock.now().0;
                self.numbers.epoch = epoch;
                self.numbers.epoch_ms = self.epoch_ms;
                self.numbers.commit = took;
                self.numbers.commits += 1;
                self.disk_bytes = checkpoints.state_bytes();
                self.checkpoints = Some(checkpoints);
                tracing::debug!(job = %self.id, epoch, took_ms = took.as_millis(), "epoch committed");
                self.tell_at = self.now();
            }
            Done::Owner(checkpoints, owner) => {
                owner?;
                self.checkpoints = Some(checkpoints);
            }
            Done::Looked(bounds) => {
                self.looking = false;
                let at = self.now();
                if let Some(bounds) = bounds {
                    self.look = Some(Look { at, bounds });
                }
            }
            Done::Told => self.telling = self.telling.saturating_sub(1),
            Done::Lost(what) => return Err(RunError::Stopped(what)),
        }
        Ok(())
    }

    /// Nothing can be read or decoded any more; what is decoded is processed yet.
    fn fail(&mut self, error: RunError) {
        let read: Vec<Piece> = std::mem::take(&mut self.read).into();
        for piece in read {
            self.forget(piece.partition, piece.bytes());
        }
        // What was with the decoder when it failed is lost: only what is decoded is still to come.
        let left: Vec<_> = self.decoded.iter().map(|d| d.piece.partition).collect();
        let with_engine = self.handed.iter().map(|(partition, _)| *partition);
        let mut under_way = BTreeMap::new();
        for partition in left.into_iter().chain(with_engine) {
            *under_way.entry(partition).or_default() += 1;
        }
        self.pieces = self.decoded.len() + self.handed.len();
        self.under_way = under_way;
        if !self.stopped() {
            self.ending = Some(Ending::Failed(error));
        }
    }

    /// Partitions that exist, at the start or since then: each holds time back from here on, and one that was not there
    /// before time began joins with a decision. None may be passed because nobody knew of it. False: it was asked to end
    /// before all was known, and nothing more may be processed.
    async fn meet_partitions(&mut self) -> Result<bool, RunError> {
        let (Some(stream), Some(_)) = (&self.stream, &self.work) else {
            return Ok(true);
        };
        let all = stream.partitions();
        // Partitions of a new generation may be known before the archive has it, and with it what has ended.
        let newest = stream.incarnation().map(|i| i.generation);
        let there = Some((all.len(), newest));
        if self.met == there {
            return Ok(true);
        }
        let all: Vec<(i32, i32)> = all
            .iter()
            .map(|(generation, partition)| (generation.as_i32(), partition.get()))
            .collect();
        let known = stream.partitions().iter().map(|(_, partition)| *partition);
        let known: BTreeSet<Partition> = known.collect();
        let Some(others) = before(&self.stop, self.peers.decisions()).await else {
            return Ok(false);
        };
        let absent = async {
            if self.windowed {
                let topic = &self.job.source.topic;
                absent(&self.environment, topic, self.until, known).await
            } else {
                Ok((BTreeSet::new(), true))
            }
        };
        let Some(absent) = before(&self.stop, absent).await else {
            return Ok(false);
        };
        let (absent, is_all) = absent?;
        self.obey(&others?)?;
        if let Some(work) = &mut self.work {
            // Of a generation that is over it counts what the archive has of it.
            let there: Vec<_> = all.into_iter().filter(|at| !absent.contains(at)).collect();
            for decision in work.assign(&there, &absent) {
                tracing::info!(job = %self.id, partition = decision.partition, floor = decision.floor, "a partition joins: it takes the time that the job has reached");
            }
        }
        // Else it is asked again.
        self.met = there.filter(|_| is_all);
        Ok(true)
    }

    fn obey<'a>(
        &mut self,
        decisions: impl IntoIterator<Item = &'a Decision>,
    ) -> Result<(), RunError> {
        let Some(work) = &mut self.work else {
            return Ok(());
        };
        let decisions: Vec<Decision> = decisions.into_iter().copied().collect();
        for decision in work.obey(&decisions)? {
            let place = (decision.partition, decision.generation, decision.offset);
            if self.missed.insert(place) {
                tracing::warn!(job = %self.id, partition = decision.partition, offset = decision.offset, "another version let time pass a partition at an offset that this one has passed: rows may differ there");
            }
        }
        Ok(())
    }

    /// Holds back what is too far ahead of the slowest partition.
    fn hold_back(&mut self) {
        let (Some(work), Some(stream)) = (&self.work, &mut self.stream) else {
            return;
        };
        if !self.aligned || self.ending.is_some() {
            return;
        }
        let candidates = candidates(work.progress(), |partition| {
            stream.is_spent(partition) && !self.under_way.contains_key(&partition)
        });
        let choice = work.engine().next_partition(&candidates);
        let held: BTreeSet<Partition> = choice
            .held
            .iter()
            .filter_map(|(_, partition)| Partition::new(*partition).ok())
            .collect();
        stream.hold(&held);
        self.held = held;
    }

    /// What is looked at now and then: idle partitions, the log's ends, the numbers, the time that is left for the end.
    async fn tick(&mut self, now: Duration) -> Result<(), RunError> {
        if let Some(Ending::Stopped { at, .. }) = &self.ending
            && now.saturating_sub(*at) >= END_TIMEOUT
        {
            return Err(RunError::EndTimeout {
                job: self.id.to_string(),
                seconds: END_TIMEOUT.as_secs(),
            });
        }
        self.begin_look(now);
        if self.ending.is_none() {
            let arrived = self.arrive().await?;
            if arrived {
                self.pass_idle(now).await?;
            }
        }
        self.count(now);
        self.tell_live(now, None);
        Ok(())
    }

    /// Positions that moved without a batch: of partitions that joined, and behind gaps. False: it was asked to end before.
    async fn arrive(&mut self) -> Result<bool, RunError> {
        if self.work.is_none() || self.pieces > 0 {
            return Ok(true);
        }
        if !self.meet_partitions().await? {
            return Ok(false);
        }
        let Some(stream) = &self.stream else {
            return Ok(true);
        };
        let moved = self.followed.moved(stream.positions());
        let incarnation = stream.incarnation().cloned();
        if let Some(work) = &mut self.work {
            work.know(incarnation);
            work.arrive(&moved)?;
        }
        Ok(true)
    }

    fn begin_look(&mut self, now: Duration) {
        let Some(log) = self.environment.log.as_ref().map(Arc::clone) else {
            return;
        };
        if self.looking || now < self.look_at || self.until == Bound::Snapshot {
            return;
        }
        let Some(work) = &self.work else { return };
        let topic = self.job.source.topic.clone();
        let partitions: Vec<TopicPartition> = work
            .progress()
            .partitions
            .keys()
            .filter_map(|p| Partition::new(*p).ok())
            .map(|p| TopicPartition::new(topic.clone(), p))
            .collect();
        let often = self.idle_timeout.map_or(LOOK_INTERVAL, |timeout| {
            (timeout / 2).clamp(TICK * 2, LOOK_INTERVAL)
        });
        self.look_at = now + often;
        self.looking = true;
        self.tasks.spawn(async move {
            let asked = log.bounds(&partitions, Isolation::ReadCommitted).await;
            Done::Looked(asked.ok().map(|bounds| {
                let ends = bounds.into_iter().map(|(tp, b)| (tp.partition, b));
                ends.collect()
            }))
        });
    }

    /// Where the stream is, as far as nothing of the partition is under way.
    fn is_at_end(&self, partition: Partition, now: Duration) -> bool {
        let (Some(stream), Some(look)) = (&self.stream, &self.look) else {
            return false;
        };
        let fresh = now.saturating_sub(look.at) <= LOOK_VALID;
        let (Some(at), Some(bounds)) = (
            stream.positions().get(&partition),
            look.bounds.get(&partition),
        ) else {
            return false;
        };
        let newest = stream.incarnation().map(|i| i.generation);
        fresh
            && !self.under_way.contains_key(&partition)
            && !self.held.contains(&partition)
            && newest == Some(at.generation)
            && at.offset >= bounds.high_watermark
            && stream.at_end(partition)
    }

    /// Lets time pass partitions that have been silent at the ends of their logs for `idle_timeout`.
    async fn pass_idle(&mut self, now: Duration) -> Result<(), RunError> {
        let Some(timeout) = self.idle_timeout else {
            return Ok(());
        };
        let Some(work) = &self.work else {
            return Ok(());
        };
        let partitions: Vec<Partition> = work
            .progress()
            .partitions
            .keys()
            .filter_map(|p| Partition::new(*p).ok())
            .collect();
        for partition in partitions {
            let at_end = self.is_at_end(partition, now);
            self.idle.see(partition, at_end, now);
        }
        // Whatever comes elsewhere moves time on, and so would pass a silent partition again, with every look.
        if now < self.pass_at {
            return Ok(());
        }
        let idle = self.idle.idle(now, timeout);
        let proposed = |work: &Work| -> Vec<Decision> {
            let all = idle.iter().filter_map(|p| work.engine().idle(p.get()));
            all.collect()
        };
        if proposed(work).is_empty() {
            return Ok(());
        }
        self.pass_at = now + between_passes(timeout);
        // Another version may have passed it already: then at the same place.
        let Some(others) = before(&self.stop, self.peers.decisions()).await else {
            return Ok(());
        };
        self.obey(&others?)?;
        let Some(work) = &mut self.work else {
            return Ok(());
        };
        for partition in &idle {
            // Each on what the one before has left.
            let Some(decision) = work.engine().idle(partition.get()) else {
                continue;
            };
            tracing::info!(job = %self.id, partition = decision.partition, offset = decision.offset, floor = decision.floor, "nothing came for idle_timeout: time passes this partition");
            work.obey(&[decision])?;
        }
        Ok(())
    }

    /// Brings the numbers up to date.
    fn count(&mut self, now: Duration) {
        if let Some(stream) = &self.stream {
            let gaps = stream.gaps_passed();
            for gap in gaps.get(self.numbers.gaps.len()..).unwrap_or_default() {
                tracing::warn!(job = %self.id, %gap, "passing a recorded gap");
                self.numbers.gaps.push(gap.to_string());
            }
            let progress = stream.progress();
            self.numbers.tier = Some(progress.tier);
            self.numbers.left = progress
                .events_left
                .map(|left| left + self.rows_under_way());
        }
        self.numbers.lag = self.lag();
        let Some(work) = &self.work else {
            self.observer.tell(self.numbers.clone());
            return;
        };
        let progress = work.progress();
        let all = candidates(progress, |_| false);
        let slowest = work.engine().next_partition(&all).slowest;
        let numbers = &mut self.numbers;
        numbers.held_by = slowest.filter(|_| self.windowed && !progress.drained).map(
            |((generation, partition), at)| HeldBy {
                generation,
                partition,
                watermark_ms: (at != NEVER && at != END).then_some(at),
            },
        );
        numbers.held = self.held.len();
        numbers.events = work.events();
        numbers.counts = work.counts();
        numbers.decisions = progress.decisions.len() as u64;
        numbers.watermark_ms = (progress.watermark != NEVER && progress.watermark != END)
            .then_some(progress.watermark);
        numbers.state_bytes = self.disk_bytes + work.state().held_bytes() as u64;
        self.rate.sample(now, numbers.events);
        numbers.events_per_second = self.rate.per_second(now, numbers.events);
        let left = numbers.left.or(numbers.lag);
        #[allow(
            clippy::cast_precision_loss,
            reason = "a time for people, and far below 2^52"
        )]
        let eta = left
            .filter(|left| *left > LIVE_LAG && numbers.events_per_second > 0.0)
            .and_then(|left| {
                Duration::try_from_secs_f64(left as f64 / numbers.events_per_second).ok()
            });
        numbers.eta = eta;
        self.observer.tell(numbers.clone());
    }

    fn rows_under_way(&self) -> u64 {
        let read = self.read.iter().map(|p| p.columns.len());
        let decoded = self.decoded.iter().map(|d| d.piece.columns.len());
        read.chain(decoded).sum::<usize>() as u64
    }

    /// Offsets from where the job is to the ends of the live log, where that was answered.
    fn lag(&self) -> Option<u64> {
        let look = self.look.as_ref()?;
        let stream = self.stream.as_ref()?;
        let newest = stream.incarnation()?.generation;
        let lag = look.bounds.iter().map(|(partition, bounds)| {
            let at = stream.positions().get(partition);
            let at = at.filter(|at| at.generation == newest);
            bounds
                .end
                .since(at.map_or(bounds.log_start, |at| at.offset))
        });
        Some(lag.sum::<u64>() + self.rows_under_way())
    }

    /// What `everlog job show` reads. It never stops the job.
    fn tell_live(&mut self, now: Duration, ended: Option<Phase>) {
        if ended.is_none() && (self.telling > 0 || now < self.tell_at) {
            return;
        }
        self.tell_at = now + self.job.checkpoint.interval;
        self.telling += 1;
        let live = self.live(ended);
        let (storage, location, id) = (
            self.environment.storage.clone(),
            self.job.checkpoint.location.clone(),
            self.id.clone(),
        );
        self.tasks.spawn(async move {
            if let Err(error) = live.write(&storage, &location, &id).await {
                tracing::debug!(job = %id, %error, "the live numbers cannot be written");
            }
            Done::Told
        });
    }

    fn live(&self, ended: Option<Phase>) -> Live {
        let numbers = &self.numbers;
        let phase = ended.unwrap_or(match numbers.tier {
            Some(Source::Live) => Phase::Live,
            Some(Source::Archive) | None => Phase::History,
        });
        Live {
            at_ms: self.environment.clock.now().0,
            started_ms: self.started_ms,
            phase,
            interval_ms: u64::try_from(self.job.checkpoint.interval.as_millis())
                .unwrap_or(u64::MAX),
            epoch: numbers.epoch,
            epoch_ms: self.epoch_ms,
            watermark_ms: numbers.watermark_ms,
            held_by: numbers.held_by,
            lag_records: numbers.lag,
            events: numbers.events,
            events_per_second: numbers.events_per_second,
            eta_s: numbers.eta.map(|eta| eta.as_secs()),
            state_bytes: numbers.state_bytes,
            rows: numbers.counts.rows,
            late: numbers.counts.late,
            dead: numbers.counts.dead,
        }
    }

    /// Lets everything go in order, whatever happened.
    async fn close(mut self, ended: Result<(), RunError>) -> Result<Summary, RunError> {
        // An epoch that is being committed is sound, whatever happened after it.
        let committing = self.checkpoints.is_none();
        let ended = match ended {
            Err(error) if committing && !matches!(error, RunError::EndTimeout { .. }) => {
                self.wait_for_commit().await;
                Err(error)
            }
            ended => ended,
        };
        let now = self.now();
        self.count(now);
        if ended.is_ok() {
            // One under way could come after it, and say that the job runs.
            self.wait_until_told().await;
            self.tell_live(now, Some(Phase::Ended));
        }
        let clock = Arc::clone(&self.environment.clock);
        let closing = async {
            if let Some(checkpoints) = self.checkpoints.take()
                && let Err(error) = checkpoints.close().await
            {
                tracing::warn!(job = %self.id, %error, "the state was not closed in order; the next run mends that");
            }
            self.wait_until_told().await;
        };
        tokio::select! {
            () = closing => {}
            () = clock.sleep(LAST_COMMIT) => {
                tracing::warn!(job = %self.id, "the job did not end in order within {LAST_COMMIT:?}; nothing is lost");
            }
        }
        if let Some(stream) = self.stream.take() {
            stream.close().await;
        }
        ended?;
        let Some(work) = &self.work else {
            return Err(RunError::Stopped("the engine"));
        };
        let summary = Summary {
            events: work.events(),
            epochs: self.numbers.commits,
            rolled_forward: self.rolled_forward,
            counts: work.counts(),
            watermark_ms: self.numbers.watermark_ms,
            drained: work.progress().drained,
            gaps: self.numbers.gaps.clone(),
        };
        match self.ending.take() {
            Some(
                Ending::Failed(error)
                | Ending::Stopped {
                    failed: Some(error),
                    ..
                },
            ) => Err(error),
            _ if self.was_drained && !self.drain => Err(RunError::Engine {
                job: self.id.to_string(),
                source: EngineError::Drained,
            }),
            _ => Ok(summary),
        }
    }

    /// Waits for numbers that are being written.
    async fn wait_until_told(&mut self) {
        let clock: Arc<dyn Clock> = Arc::clone(&self.environment.clock);
        let (tasks, telling) = (&mut self.tasks, &mut self.telling);
        let told = async {
            while *telling > 0
                && let Some(done) = tasks.join_next().await
            {
                *telling -= usize::from(matches!(done, Ok(Done::Told)));
            }
        };
        tokio::select! {
            () = told => {}
            () = clock.sleep(LAST_COMMIT) => {
                tracing::debug!(job = %self.id, "live numbers could not be written within {LAST_COMMIT:?}");
            }
        }
    }

    async fn wait_for_commit(&mut self) {
        let clock: Arc<dyn Clock> = Arc::clone(&self.environment.clock);
        let tasks = &mut self.tasks;
        let committed = async {
            while let Some(done) = tasks.join_next().await {
                if let Ok(Done::Committed { checkpoints, .. } | Done::Owner(checkpoints, _)) = done
                {
                    return Some(checkpoints);
                }
            }
            None
        };
        let committed = tokio::select! {
            committed = committed => committed,
            () = clock.sleep(LAST_COMMIT) => None,
        };
        self.checkpoints = committed;
    }
}

/// What `work` gives, unless the stop comes first: what it waits for may not answer for long.
async fn before<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        done = work => Some(done),
    }
}

/// The partitions that hold time back, ascending, as candidates for reading.
fn candidates(progress: &Progress, at_end: impl Fn(Partition) -> bool) -> Vec<Candidate> {
    let all = progress.partitions.iter().map(|(partition, at)| Candidate {
        generation: at.generation,
        partition: *partition,
        at_end: Partition::new(*partition).map_or(true, &at_end),
    });
    all.collect()
}

/// Of the generations of a topic which of `known` partitions they do not have. Of those before the newest the ledger knows for
/// good: also one that was there, and that nobody wrote to, can have held time back no longer than that generation was the
/// newest, since who reads the archive later does not see it. The newest may get more: of it only the topic knows, by its
/// partitions, where it could be asked.
fn lacking(
    ledger: &Ledger,
    known: &BTreeSet<Partition>,
    topic: Option<&[Partition]>,
) -> BTreeSet<(i32, i32)> {
    let newest = ledger.newest().map(|(generation, _)| generation);
    let absent = ledger.generations.iter().flat_map(|(generation, era)| {
        let is_over = Some(*generation) != newest;
        let gone = known.iter().filter(move |partition| {
            let in_topic = topic.is_none_or(|there| there.contains(partition));
            !era.partitions.contains_key(partition) && (is_over || !in_topic)
        });
        gone.map(|partition| (generation.as_i32(), partition.get()))
    });
    absent.collect()
}

/// See [`lacking`], by what archive and topic say now; and whether the topic was asked where that matters.
async fn absent(
    environment: &Environment,
    topic: &TopicName,
    until: Bound,
    mut known: BTreeSet<Partition>,
) -> Result<(BTreeSet<(i32, i32)>, bool), RunError> {
    let Some(ledger) = ledger(environment, topic).await? else {
        return Ok((BTreeSet::new(), true));
    };
    let eras = ledger.generations.values();
    known.extend(eras.flat_map(|era| era.partitions.keys().copied()));
    let by_archive = lacking(&ledger, &known, None);
    let (Some(log), Some((_, newest))) = (&environment.log, ledger.newest()) else {
        return Ok((by_archive, true));
    };
    let in_all = known.iter().all(|p| newest.partitions.contains_key(p));
    if ledger.generations.len() < 2 || in_all || until == Bound::Snapshot {
        return Ok((by_archive, true));
    }
    let asked = async {
        let cluster_id = log.cluster_id().await?;
        let mut described = log.describe(std::slice::from_ref(topic)).await?;
        let info = described.remove(topic).transpose()?;
        Ok::<_, LogError>((cluster_id, info))
    };
    match asked.await {
        Ok((cluster_id, info)) => {
            let there = info.filter(|info| {
                let identity = LogIdentity {
                    cluster_id,
                    topic_id: info.topic_id,
                };
                newest.identity.agrees(&identity)
            });
            let there = there.as_ref().map(|info| info.partitions.as_slice());
            Ok((lacking(&ledger, &known, there), true))
        }
        Err(error) => {
            tracing::debug!(%topic, %error, "the topic's partitions cannot be asked for");
            Ok((by_archive, false))
        }
    }
}

/// What the archive has of the topic by now. Not of the driver: a future that borrows it cannot change threads.
async fn ledger(environment: &Environment, topic: &TopicName) -> Result<Option<Ledger>, RunError> {
    let deps = ArchiveDeps {
        catalog: Arc::clone(&environment.catalog),
        clock: Arc::clone(&environment.clock),
        ids: Arc::clone(&environment.ids),
    };
    let archive = Archive::open(deps, &environment.namespace, topic);
    match archive.await.map_err(ReplayError::from)? {
        Some(archive) => {
            let state = archive.state().await.map_err(ReplayError::from)?;
            Ok(Some(state.ledger))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::ledger::GenerationLedger;
    use everlog_common::{Entry, Offset};

    use super::*;

    fn p(n: i32) -> Partition {
        Partition::new(n).unwrap()
    }

    fn ledger(eras: &[&[i32]]) -> Ledger {
        let entry = Entry {
            first: Offset::ZERO,
            next: Offset::ZERO,
            leader_epoch: None,
            rows: 0,
            hash: 0,
        };
        let generations = eras.iter().zip(0..).map(|(partitions, number)| {
            let era = GenerationLedger {
                partitions: partitions.iter().map(|n| (p(*n), entry)).collect(),
                ..GenerationLedger::default()
            };
            (Generation(number), era)
        });
        Ledger {
            generations: generations.collect(),
            gaps: Vec::new(),
        }
    }

    #[test]
    fn the_archive_knows_of_generations_that_are_over_and_the_topic_of_the_newest() {
        let ledger = ledger(&[&[0, 1, 2], &[0], &[0, 2]]);
        let known: BTreeSet<Partition> = (0..4).map(p).collect();
        let over = [(0, 3), (1, 1), (1, 2), (1, 3)];
        let by_archive = lacking(&ledger, &known, None);
        assert_eq!(by_archive, BTreeSet::from(over));
        // partition 1 is there, and nobody has written to it yet
        let topic = [p(0), p(1), p(2)];
        let asked = lacking(&ledger, &known, Some(&topic));
        assert_eq!(&asked - &by_archive, BTreeSet::from([(2, 3)]));
        assert!(lacking(&Ledger::default(), &known, None).is_empty());
    }

    #[tokio::test]
    async fn a_wait_ends_at_the_stop() {
        let stop = CancellationToken::new();
        assert_eq!(before(&stop, async { 7 }).await, Some(7));
        let (waiting, stopping) = (stop.clone(), stop);
        let wait =
            tokio::spawn(async move { before(&waiting, std::future::pending::<()>()).await });
        stopping.cancel();
        assert_eq!(wait.await.unwrap(), None);
    }
}
