//! The run loop. One task owns the reader and everything that was read; what waits for the outside runs as owned tasks
//! and comes back as a value.
//!
//! ```text
//!             ┌────────────────────── run loop ───────────────────────┐
//!  reader ──► │ events ─► buffers (accumulator) ─► cut ──┐            │
//!    ▲        │ recovery decisions ─► assign             │            │
//!    │        └──────▲───────────────────────────────────┼────────────┘
//!    └── assign      │ Done                              ▼ spawn
//!                    └──── prepare · commit · discover · observe · maintain
//! ```
//!
//! Invariants
//! - A partition is read only after [`crate::recovery`] said from where, and only from there.
//! - One job per table at a time: nothing is proposed while an outcome is open.
//! - What the loop throws away (a fence, a revocation, another topic id) is read again from the ledger, never guessed.
//! - Nothing here decides by the clock what is archived; it decides only when.

mod caught_up;
mod commit;
mod done;
mod events;
mod jobs;
mod prepare;
mod topic;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::mutants::Mutant;
use everlog_common::{Gap, Offset, TopicName, TopicPartition, compute};
use everlog_kafka::{LogError, LogReader, Membership, ReaderOptions};
use everlog_table::archive::ArchiveDeps;
use everlog_table::writer::SpareThreads;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::caught_up::CaughtUp;
use self::jobs::Done;
use self::topic::{JobKind, Rules, Topic};
use crate::backoff::Backoff;
use crate::budget::{Budget, Pressure};
use crate::error::{ArchiverError, Failure, FailureKind, one_line};
use crate::settings::Settings;
use crate::status::{StatusHandle, Waiting};
use crate::{Components, RunSummary};

/// How long one poll of the reader waits, and so how late a timer may be.
const POLL: Duration = Duration::from_millis(50);

/// How often timers are looked at while data flows.
const TICK: Duration = Duration::from_millis(5);

/// How long the last commit may take before the process leaves: what is not committed is read again next time. With the two
/// below it is less than the 30 seconds after which supervisors kill.
const LAST_COMMIT: Duration = Duration::from_secs(20);

/// How long the last mirroring to the group may take; nobody relies on it.
const LAST_MIRROR: Duration = Duration::from_secs(2);

/// How long leaving the group may take; the group notices by itself what does not say goodbye.
const CLOSE: Duration = Duration::from_secs(5);

/// How long partitions that the group takes back are held for their last commit.
const REVOKE: Duration = Duration::from_secs(10);

/// How long the group waits for an answer while partitions are being recovered.
const ASSIGN: Duration = Duration::from_secs(5);

/// A topic that is not there for so long is not waited for any longer.
const MISSING: Duration = Duration::from_secs(30);

/// How often the ledger is mirrored to the consumer group.
const MIRROR: Duration = Duration::from_secs(5);

/// How often the logs are looked at, at least: health cannot be slower than that.
const OBSERVATION: Duration = Duration::from_secs(15);

/// Why a member of a group has nothing to do, and maybe should have.
const NOTHING_ASSIGNED: &str = "the group has not assigned anything to this member yet";

/// The same of one that was a member.
const THROWN_OUT: &str =
    "the group took every partition away as lost, and has not assigned anything since";

/// How many tables encode files at once.
const ENCODERS: usize = 2;

/// Threads that help those that encode, at most; each has a row group in memory.
const SPARE_THREADS_MAX: usize = 3;
/// How often something may be denied in a row before that is believed: credentials and access lists change one server
/// at a time.
const DENIALS_MAX: u32 = 8;

/// So many fences in a row, for so long, and another writer is stronger.
const FENCES_MAX: u32 = 20;

/// One for each core beyond the first: the reader needs some of them, and takes it by being scheduled.
fn spare_threads() -> usize {
    compute::threads()
        .saturating_sub(1)
        .clamp(1, SPARE_THREADS_MAX)
}

/// What the group asked and waits for. Answered in order.
enum Question {
    /// It gave partitions; the answer is due when they are recovered, at the latest then.
    Assigned { deadline: Duration },
    /// It wants partitions back; the answer is due when the last of them is committed, at the latest then.
    Revoked {
        partitions: Vec<TopicPartition>,
        waiting: BTreeSet<TopicPartition>,
        deadline: Duration,
    },
}

enum Phase {
    Running,
    Stopping { deadline: Duration },
}

/// The archiver at work.
pub(crate) struct Pipeline {
    settings: Arc<Settings>,
    components: Components,
    status: StatusHandle,
    reader: Box<dyn LogReader>,
    budget: Budget,
    encoders: Arc<Semaphore>,
    spare: SpareThreads,
    topics: BTreeMap<TopicName, Topic>,
    jobs: JoinSet<Done>,
    phase: Phase,
    is_full: bool,
    /// The group has said once what this member has.
    was_assigned: bool,
    /// Whose tables this process has opened before: a member of a group may give a topic away and get it again.
    opened: BTreeSet<TopicName>,
    /// Something happened that timers and jobs have to see at once.
    is_due: bool,
    ticked_at: Duration,
    questions: VecDeque<Question>,
    caught_up: Option<CaughtUp>,
    looks: Looks,
    mirror: BTreeMap<TopicPartition, Offset>,
    /// A fault of the client itself: the last commit is made, then the process ends.
    broken: Option<LogError>,
    poll_backoff: Backoff,
    poll_at: Duration,
    gone: Vec<Failure>,
    /// The snapshot that the operator accepts, until it was of use.
    accept: Option<i64>,
    summary: RunSummary,
}

/// What is looked at again and again, and when next. None: it is being looked at.
struct Looks {
    discovery: Option<Duration>,
    discovery_backoff: Backoff,
    was_discovered: bool,
    /// Topics configured by name that the last look did not find.
    missing: BTreeSet<TopicName>,
    /// Topics that the last looks did not allow us to see: how many in a row, and whether it was archived before.
    denied: BTreeMap<TopicName, (u32, bool)>,
    /// In a group: the topics that it shares, and when each was there last.
    shared: BTreeMap<TopicName, Duration>,
    /// What the group was told of them.
    subscription: BTreeSet<TopicName>,
    observation: Option<Duration>,
    targets: Option<Duration>,
    targets_backoff: Backoff,
    maintenance: Option<Duration>,
    mirror: Duration,
    configs: BTreeMap<TopicName, (Duration, Option<everlog_kafka::TopicConfig>)>,
}

/// Runs until shutdown, or until everything is caught up where that was asked for.
pub(crate) async fn run(
    settings: Settings,
    components: Components,
    status: StatusHandle,
    shutdown: CancellationToken,
) -> Result<RunSummary, ArchiverError> {
    let budget = Budget::new(settings.memory);
    let Some(reader) = open(&settings, &components, &status, budget, &shutdown).await? else {
        return Ok(RunSummary::default());
    };
    let now = components.clock.elapsed();
    let caught_up = settings.until_caught_up.then(CaughtUp::default);
    let maintenance = settings
        .maintenance
        .as_ref()
        .map(|m| now.saturating_add(m.interval.min(Duration::from_secs(60))));
    let accept = settings.accept;
    if settings.group.is_some() {
        status.wait_for(Waiting::Group, NOTHING_ASSIGNED);
    }
    let pipeline = Pipeline {
        settings: Arc::new(settings),
        components,
        status,
        reader,
        budget,
        encoders: Arc::new(Semaphore::new(ENCODERS)),
        spare: SpareThreads::new(spare_threads()),
        topics: BTreeMap::new(),
        jobs: JoinSet::new(),
        phase: Phase::Running,
        is_full: false,
        was_assigned: false,
        opened: BTreeSet::new(),
        is_due: true,
        ticked_at: now,
        questions: VecDeque::new(),
        caught_up,
        looks: Looks {
            discovery: Some(now),
            discovery_backoff: Backoff::default(),
            was_discovered: false,
            missing: BTreeSet::new(),
            denied: BTreeMap::new(),
            shared: BTreeMap::new(),
            subscription: BTreeSet::new(),
            observation: Some(now),
            targets: None,
            targets_backoff: Backoff::default(),
            maintenance,
            mirror: now,
            configs: BTreeMap::new(),
        },
        mirror: BTreeMap::new(),
        broken: None,
        poll_backoff: Backoff::default(),
        poll_at: Duration::ZERO,
        gone: Vec::new(),
        accept,
        summary: RunSummary::default(),
    };
    pipeline.run(shutdown).await
}

/// Opens the reader; brokers that are not there yet are waited for.
async fn open(
    settings: &Settings,
    components: &Components,
    status: &StatusHandle,
    budget: Budget,
    shutdown: &CancellationToken,
) -> Result<Option<Box<dyn LogReader>>, ArchiverError> {
    let mut backoff = Backoff::default();
    loop {
        let membership = match &settings.group {
            None => Membership::Alone,
            // what there is to share is found first: see `share`
            Some(group) => Membership::Group {
                group: group.clone(),
                topics: Vec::new(),
            },
        };
        let options = ReaderOptions {
            membership,
            isolation: if Mutant::ReadsUncommitted.is_planted() {
                everlog_kafka::Isolation::ReadUncommitted
            } else {
                settings.isolation
            },
            memory_bytes: budget.reader(),
            linger: Duration::from_millis(20),
        };
        match components.log.open(options).await {
            Ok(reader) => return Ok(Some(reader)),
            Err(error) if error.is_transient() => {
                status.trouble(Waiting::Brokers, &one_line(&error));
                tracing::warn!(reason = %one_line(&error), "the brokers are not reached");
            }
            Err(error) => return Err(ArchiverError::Log(error)),
        }
        let wait = backoff.next(components.ids.as_ref());
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(None),
            () = components.clock.sleep(wait) => {}
        }
    }
}

impl Pipeline {
    fn now(&self) -> Duration {
        self.components.clock.elapsed()
    }

    fn is_alone(&self) -> bool {
        self.settings.group.is_none()
    }

    fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. })
    }

    fn deps(&self) -> ArchiveDeps {
        ArchiveDeps {
            catalog: Arc::clone(&self.components.catalog),
            clock: Arc::clone(&self.components.clock),
            ids: Arc::clone(&self.components.ids),
        }
    }

    async fn run(mut self, shutdown: CancellationToken) -> Result<RunSummary, ArchiverError> {
        loop {
            self.weigh().await;
            let now = self.now();
            if self.is_due || now.saturating_sub(self.ticked_at) >= TICK {
                (self.is_due, self.ticked_at) = (false, now);
                self.tick(now).await;
                if self.is_finished() {
                    break;
                }
            }
            self.hold_tables().await;
            let can_poll = self.can_poll();
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if !self.is_stopping() => self.stop("asked to"),
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => match done {
                    Ok(done) => {
                        self.is_due = true;
                        self.on_done(done).await;
                    }
                    Err(error) => return self.panicked(&error).await,
                },
                polled = self.reader.poll(POLL), if can_poll => match polled {
                    Ok(events) => {
                        self.is_due |= events.is_empty();
                        fail::fail_point!("archiver::after_poll");
                        self.poll_backoff.reset();
                        self.status.no_trouble(Waiting::Reader);
                        for event in events {
                            self.on_event(event).await;
                        }
                    }
                    Err(error) => self.on_poll_error(error),
                },
                () = self.components.clock.sleep(POLL), if !can_poll => self.is_due = true,
            }
        }
        self.end().await
    }

    /// Whether the reader may bring more. In a group it is asked in any case: somebody may want partitions back; what
    /// is beyond the budget is paused instead.
    fn can_poll(&self) -> bool {
        !self.is_stopping() && self.now() >= self.poll_at && (!self.is_full || !self.is_alone())
    }

    fn on_poll_error(&mut self, error: LogError) {
        if error.is_transient() {
            self.status.trouble(Waiting::Reader, &one_line(&error));
            self.poll_at = self.now() + self.poll_backoff.next(self.components.ids.as_ref());
            tracing::warn!(reason = %one_line(&error), "reading failed, trying again");
        } else {
            self.break_down(error);
        }
    }

    /// The client is of no use any more: commit what was read, and end.
    fn break_down(&mut self, error: LogError) {
        tracing::error!(reason = %one_line(&error), "the Kafka client cannot go on");
        self.status.count_error(None, "reader");
        self.broken.get_or_insert(error);
        self.stop("the client ended");
    }

    /// Reads nothing more, commits what there is.
    fn stop(&mut self, why: &'static str) {
        if self.is_stopping() {
            return;
        }
        tracing::info!(reason = why, "stopping");
        self.is_due = true;
        self.phase = Phase::Stopping {
            deadline: self.now() + LAST_COMMIT,
        };
        for topic in self.topics.values_mut() {
            topic.flush |= topic.is_dirty();
        }
    }

    fn is_finished(&self) -> bool {
        let Phase::Stopping { deadline } = self.phase else {
            return false;
        };
        let is_committing = |t: &Topic| t.job == Some(JobKind::Commit);
        let is_left = self
            .topics
            .values()
            .any(|t| is_committing(t) || (t.is_dirty() && t.failure.is_none()));
        !is_left || self.now() >= deadline
    }

    /// What is due: timers, jobs, pressure.
    async fn tick(&mut self, now: Duration) {
        self.answer_the_group(now).await;
        self.look_around(now);
        self.check_caught_up(now);
        let rules = Rules {
            table_limit: self.budget.table_limit(),
            idle_interval: self.settings.idle_commit_interval,
        };
        let mut due: Vec<(TopicName, JobKind, &'static str)> = Vec::new();
        for (name, topic) in &mut self.topics {
            if topic.job.is_some() || topic.failure.is_some() {
                continue;
            }
            topic.flush |= matches!(self.phase, Phase::Stopping { .. }) && topic.is_dirty();
            let is_wanted = topic.retry_at <= now
                && matches!(self.phase, Phase::Running)
                && !topic.wanted(now).is_empty();
            let commit = topic.commit_due(now, rules);
            if let Some((kind, reason)) = JobKind::next(topic.last_job, commit, is_wanted) {
                due.push((name.clone(), kind, reason));
            }
        }
        for (name, kind, reason) in due {
            match kind {
                JobKind::Commit => self.start_commit(&name, reason),
                JobKind::Prepare => self.start_prepare(&name),
            }
        }
        if matches!(self.phase, Phase::Running) {
            self.mirror_to_group(now).await;
            if !self.topics.is_empty() && self.topics.values().all(Topic::is_dead) {
                self.stop("nothing is left that could go on");
            }
        }
    }

    /// Obeys the budget: the largest table first, then no more reading.
    async fn weigh(&mut self) {
        let rows: usize = self.topics.values().map(Topic::held_bytes).sum();
        let held = rows + self.reader.held_bytes();
        self.status
            .metrics()
            .memory_held_bytes
            .set(i64::try_from(held).unwrap_or(i64::MAX));
        let pressure = self.budget.pressure(held, self.waiting(), self.is_full);
        // with nothing to commit, only reading on makes room: a record larger than all of it waits in the reader
        let is_full = pressure == Pressure::Full && rows > 0;
        if is_full != self.is_full {
            self.is_full = is_full;
            if !self.is_alone() {
                self.hold_reading(is_full).await;
            }
        }
        let table_limit = self.budget.table_limit();
        self.is_due |= self
            .topics
            .values()
            .any(|t| t.job.is_none() && t.failure.is_none() && t.pending_bytes >= table_limit);
        if pressure != Pressure::None {
            // a commit of crumbs would not help, unless nothing else is left
            let least = if is_full { 1 } else { self.budget.limit() / 8 };
            let largest = self
                .topics
                .values_mut()
                .filter(|t| t.job.is_none() && t.failure.is_none() && t.pending_bytes >= least)
                .max_by_key(|t| t.pending_bytes);
            if let Some(topic) = largest {
                topic.flush = true;
                self.is_due = true;
            }
        }
    }

    /// Bytes of tables whose commit is on its way, where there are others beside them.
    fn waiting(&self) -> usize {
        if self.topics.values().filter(|t| !t.parts.is_empty()).count() < 2 {
            return 0;
        }
        self.topics
            .values()
            .filter(|t| t.job == Some(JobKind::Commit))
            .map(Topic::held_bytes)
            .sum()
    }

    /// Tables whose commits do not come through must not take the memory of those whose do.
    async fn hold_tables(&mut self) {
        let is_too_much = self.waiting() > self.budget.waiting_limit();
        let changed: Vec<TopicName> = self
            .topics
            .iter()
            .filter(|(_, t)| t.must_wait(is_too_much) != t.is_paused)
            .map(|(name, _)| name.clone())
            .collect();
        // else nothing is read anyway
        let may_read = !self.is_full || self.is_alone();
        for name in changed {
            let Some(topic) = self.topics.get_mut(&name) else {
                continue;
            };
            topic.is_paused = !topic.is_paused;
            let pause = topic.is_paused;
            tracing::debug!(topic = %name, pause, held_bytes = topic.held_bytes(), "its commit takes long");
            let reading = topic::full_names(&name, &topic.reading());
            if may_read {
                self.pause_or_resume(reading, pause).await;
            }
        }
    }

    /// Pauses or resumes everything that is being read and does not wait for its own commit.
    async fn hold_reading(&mut self, pause: bool) {
        let reading = self
            .topics
            .iter()
            .filter(|(_, topic)| !topic.is_paused)
            .flat_map(|(name, topic)| topic::full_names(name, &topic.reading()))
            .collect();
        self.pause_or_resume(reading, pause).await;
    }

    async fn pause_or_resume(&mut self, reading: Vec<TopicPartition>, pause: bool) {
        if reading.is_empty() {
            return;
        }
        let result = if pause {
            self.reader.pause(&reading).await
        } else {
            self.reader.resume(&reading).await
        };
        if let Err(error) = result {
            self.on_reader_error(error);
        }
    }

    fn on_reader_error(&mut self, error: LogError) {
        if error.is_transient() {
            self.status.trouble(Waiting::Reader, &one_line(&error));
            tracing::warn!(reason = %one_line(&error), "the Kafka client failed, trying again");
        } else {
            self.break_down(error);
        }
    }

    fn check_caught_up(&mut self, now: Duration) {
        let Some(caught_up) = &self.caught_up else {
            return;
        };
        if self.is_stopping() {
            return;
        }
        if caught_up.is_done(&self.topics) {
            self.stop("caught up");
            return;
        }
        let mut refresh = Vec::new();
        for (name, topic) in &mut self.topics {
            if caught_up.wants_flush(name, topic) {
                topic.flush |= topic.is_dirty();
            } else if topic.job.is_none()
                && topic.failure.is_none()
                && topic.retry_at <= now
                && (caught_up.waits_for_others(name, topic) || caught_up.wants_ends(name, topic))
            {
                topic.retry_at = now + Duration::from_secs(1);
                refresh.push(name.clone());
            }
        }
        for name in refresh {
            self.start_prepare(&name);
        }
    }

    /// Stops a topic for good.
    async fn fail_topic(&mut self, name: &TopicName, kind: FailureKind, message: String) {
        let now = self.now();
        let failure = Failure {
            topic: name.clone(),
            partition: None,
            kind,
            message,
        };
        tracing::error!(topic = %name, kind = kind.as_str(), reason = %failure.message, "topic stopped");
        self.status.stopped(&failure);
        let reading = match self.topics.get_mut(name) {
            Some(topic) => topic.fail(now, failure),
            None => Vec::new(),
        };
        self.pause(name, &reading).await;
    }

    async fn pause(&mut self, name: &TopicName, partitions: &[everlog_common::Partition]) {
        if partitions.is_empty() {
            return;
        }
        let names = topic::full_names(name, partitions);
        if let Err(error) = self.reader.pause(&names).await {
            self.on_reader_error(error);
        }
    }

    async fn panicked(
        mut self,
        error: &tokio::task::JoinError,
    ) -> Result<RunSummary, ArchiverError> {
        tracing::error!(reason = %error, "a task ended by a panic");
        let message = error.to_string();
        self.jobs.shutdown().await;
        if let Err(error) = self.reader.close().await {
            tracing::debug!(reason = %one_line(&error), "closing the reader failed");
        }
        Err(ArchiverError::Panicked(message))
    }

    /// The orderly end.
    async fn end(mut self) -> Result<RunSummary, ArchiverError> {
        let left: u64 = self.topics.values().map(|t| t.pending_rows).sum();
        let is_open = self.topics.values().any(|t| t.job == Some(JobKind::Commit));
        if left > 0 || is_open {
            tracing::warn!(
                rows = left,
                open_commit = is_open,
                "not everything was committed in time: it is read again at the next start"
            );
        }
        self.jobs.shutdown().await;
        let clock = Arc::clone(&self.components.clock);
        if !self.mirror.is_empty() {
            self.looks.mirror = Duration::ZERO;
            let now = self.now();
            tokio::select! {
                biased;
                () = self.mirror_to_group(now) => {}
                () = clock.sleep(LAST_MIRROR) => tracing::debug!("mirroring to the group took too long"),
            }
        }
        tokio::select! {
            biased;
            closed = self.reader.close() => if let Err(error) = closed {
                tracing::warn!(reason = %one_line(&error), "leaving the brokers failed");
            },
            () = clock.sleep(CLOSE) => tracing::warn!("leaving the brokers took too long"),
        }
        let mut failures: Vec<Failure> = std::mem::take(&mut self.gone);
        failures.extend(self.topics.values().flat_map(Topic::failures));
        self.summary.topics = self.topics.len();
        tracing::info!(
            topics = self.summary.topics,
            commits = self.summary.commits,
            rows = self.summary.rows,
            gaps = self.summary.gaps.len(),
            failures = failures.len(),
            "ended"
        );
        if !failures.is_empty() {
            return Err(ArchiverError::of_failures(failures));
        }
        match self.broken.take() {
            Some(error) => Err(ArchiverError::Log(error)),
            None => Ok(self.summary),
        }
    }

    fn record_gap(&mut self, gap: Gap) {
        self.summary.gaps.push(gap);
    }
}
