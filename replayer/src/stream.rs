//! [`EventStream`]: history, handoff and tail behind one `next`.
//!
//! ```text
//!            ┌── queue ◄── History ──end──► switch (task) ──► Live ──┐
//!   next ◄───┤               ▲                  │  ▲                 │ lost, re-created, new partition
//!            └── positions   └──newer snapshot──┘  └─────────────────┘
//! ```
//!
//! Everything that takes more than one step (pinning, planning, asking the cluster, opening a reader) runs in a task that
//! the stream owns, and everything read waits in the queue: so `next` may be dropped at any await and called again.
//! Positions move when a batch is handed out, and only then: they are one value at every instant, in mid-switch too.
//!
//! What is held back ([`EventStream::hold`]) stays where it is cheapest: in history its lane stops, in the tail the reader is
//! paused once much waits, and lets go of the partition once too much does; the rest waits aside in the queue. A switch drops
//! what waits aside: it was not handed out, so the next tier gives it again.

mod hold;
mod open;
mod queue;
mod switch;
mod tail;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::mutants::Mutant;
use everlog_common::{
    Clock, EventBatch, Gap, Generation, Ids, Ledger, Millis, Offset, OffsetRange, Partition,
    Position, Positions, Source,
};
use everlog_kafka::{Log, LogError};
use everlog_table::archive::Archive;
use everlog_table::catalog::Catalog;
use tokio::task::JoinSet;

pub(crate) use self::open::isolation_of;
use self::queue::{Queue, Queued};
use self::switch::{SwitchInput, Switched, switch};
use self::tail::ReadingLive;
use crate::error::ReplayError;
use crate::handoff::{Incarnation, LastRead};
use crate::history::lanes::Stops;
use crate::history::merger::first_at_or_after;
use crate::history::{History, HistoryItem};
use crate::keeper::Keeper;
use crate::live::{Cluster, Tailer};
use crate::progress::{Meter, Progress};
use crate::rate::RateLimit;
use crate::request::{From, OnGap, ReplayRequest, Until};
use crate::task::OwnedTask;

/// The live reader is opened while about so many rows of history are left: enough for it to be ready, too few for it to
/// become stale.
const PREPARE_ROWS: u64 = 2_000_000;
/// Snapshots that vanish under the reader without an event in between.
const VANISHED_MAX: u32 = 4;
/// Bound of the orderly end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// What a replay works with; everything external is injected.
#[derive(Debug, Clone)]
pub struct Components {
    /// Kafka; not needed for replays that end with a snapshot.
    pub log: Option<Arc<dyn Log>>,
    /// Where the archive's table is.
    pub catalog: Arc<dyn Catalog>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Identifiers.
    pub ids: Arc<dyn Ids>,
    /// The archive's namespace.
    pub namespace: String,
}

/// What does not change during a replay.
#[derive(Debug)]
struct Context {
    request: ReplayRequest,
    archive: Archive,
    cluster: Option<Cluster>,
    clock: Arc<dyn Clock>,
    /// Whether a newer snapshot may take the place of the pinned one.
    may_refresh: bool,
}

/// An open replay: batches in order, historic, then live.
///
/// - Per partition, batches are contiguous: each begins where the one before ended, or behind a recorded gap; offsets
///   strictly increase within a generation, and generations follow each other.
/// - Across partitions the order is [`crate::Order`]'s.
/// - Memory is bounded by the request, whatever the files' layout, and whatever is held back; or by one row group, where that
///   is larger.
///
/// Not promised: that events of different partitions come in any order besides; that other engines' expiry spares the
/// files that are being read.
#[derive(Debug)]
pub struct EventStream {
    context: Arc<Context>,
    state: State,
    queue: Queue,
    /// The partitions that there are, each from the generation that the replay begins in.
    known: BTreeSet<(Generation, Partition)>,
    /// Some were found that the caller does not know of.
    grew: bool,
    /// Who of those that are not held back was spent when the caller last could see it.
    spent: BTreeSet<Partition>,
    /// What was read last, to its end or up to now.
    ledger: Ledger,
    snapshot_id: Option<i64>,
    keeper: Option<Keeper>,
    stops: Stops,
    /// Partitions whose end by timestamp was found.
    finished: BTreeSet<Partition>,
    /// Partitions that have shown no record at or after the asked timestamp yet.
    seeking: BTreeSet<Partition>,
    /// Where every partition is; those that are seeking included.
    reached: Positions,
    positions: Positions,
    /// Whose positions those of the newest generation are.
    incarnation: Option<Incarnation>,
    /// The last record before the position.
    epochs: BTreeMap<Partition, LastRead>,
    gaps: Vec<Gap>,
    rate: Option<RateLimit>,
    meter: Meter,
    /// Snapshots that vanished, falls out of the tail, since the last event.
    vanished: u32,
    falls: u32,
    cleanup: JoinSet<()>,
}

#[derive(Debug)]
enum State {
    History(Box<ReadingHistory>),
    Switching(OwnedTask<Result<Switched, ReplayError>>),
    Live(Box<ReadingLive>),
    /// The tail, while its reader is told what to read.
    Adjusting(OwnedTask<Result<Box<ReadingLive>, LogError>>),
    Ended,
    Failed,
}

#[derive(Debug)]
struct ReadingHistory {
    history: History,
    /// The live reader, being opened while history goes on.
    prepared: Option<OwnedTask<Option<Tailer>>>,
}

/// What [`EventStream::advance`] gives.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one batch stands for thousands of rows; a box would not be noticed"
)]
pub enum Advance {
    /// The next batch.
    Batch(EventBatch),
    /// Nothing to process, but something to decide anew: [`EventStream::partitions`] grew, or, while something is held back,
    /// [`EventStream::is_spent`] says something else of a partition that is not.
    Changed,
    /// The end.
    End,
}

impl EventStream {
    /// The next batch; none at the end. After an error the stream is over; its positions stay.
    ///
    /// Cancel-safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<EventBatch>, ReplayError> {
        loop {
            match self.advance().await? {
                Advance::Batch(batch) => return Ok(Some(batch)),
                Advance::Changed => {}
                Advance::End => return Ok(None),
            }
        }
    }

    /// As [`EventStream::next`], for who holds partitions back: it also returns when that is to be decided anew.
    ///
    /// Cancel-safe: dropping the future loses nothing.
    pub async fn advance(&mut self) -> Result<Advance, ReplayError> {
        match self.step().await {
            Ok(advance) => Ok(advance),
            Err(error) => {
                self.let_go();
                self.queue.forget_held();
                self.state = State::Failed;
                Err(error)
            }
        }
    }

    /// The next offset to read of every partition, right after the batches handed out so far. Resuming from it, in any
    /// state, equals going on. A partition of which nothing is known yet is absent: it begins where the request says.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Whose log the positions of the newest generation count: to be kept together with them, for
    /// [`ReplayRequest::incarnation`]. None while nothing was read of a log that nobody knows.
    pub fn incarnation(&self) -> Option<&Incarnation> {
        self.incarnation.as_ref()
    }

    /// The snapshot that is, or was last, read; none before the first commit.
    pub fn snapshot_id(&self) -> Option<i64> {
        self.snapshot_id
    }

    /// Where it stops, by what there was when it was opened: who reads the same topic twice for one answer ends both there.
    pub fn stops(&self) -> &Stops {
        &self.stops
    }

    /// Recorded gaps passed so far, in order of passing.
    pub fn gaps_passed(&self) -> &[Gap] {
        &self.gaps
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let tier = match &self.state {
            State::History(_) => Source::Archive,
            _ => Source::Live,
        };
        let now = self.context.clock.elapsed();
        self.meter.progress(tier, self.events_left(), now)
    }

    /// Ends it in order: closes the live reader, gives the lease back. Bounded in time.
    pub async fn close(mut self) {
        self.let_go();
        let all = async { while self.cleanup.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_TIMEOUT, all).await.is_err() {
            tracing::warn!("the replay did not end in order within {CLOSE_TIMEOUT:?}");
        }
    }

    /// Hands tail and lease to tasks that end them.
    fn let_go(&mut self) {
        if let State::Live(live) = std::mem::replace(&mut self.state, State::Ended) {
            self.cleanup.spawn(live.tailer.close());
        }
        self.release_keeper();
    }

    fn release_keeper(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            self.cleanup.spawn(keeper.release());
        }
        // Those that are through already.
        while self.cleanup.try_join_next().is_some() {}
    }

    async fn step(&mut self) -> Result<Advance, ReplayError> {
        loop {
            if std::mem::take(&mut self.grew) {
                return Ok(Advance::Changed);
            }
            if let Some(batch) = self.dequeue().await? {
                return Ok(Advance::Batch(batch));
            }
            if self.others_changed() {
                return Ok(Advance::Changed);
            }
            match &mut self.state {
                State::History(_) => self.step_history().await?,
                State::Switching(task) => {
                    let switched = task.join().await.map_err(ReplayError::Stopped)??;
                    self.switched(switched);
                }
                State::Live(_) => self.step_live().await?,
                State::Adjusting(task) => {
                    let live = task.join().await.map_err(ReplayError::Stopped)??;
                    self.adjusted(live);
                }
                State::Ended => return Ok(Advance::End),
                State::Failed => return Err(ReplayError::Stopped("the replay")),
            }
        }
    }

    /// The next batch of the queue, at its time.
    async fn dequeue(&mut self) -> Result<Option<EventBatch>, ReplayError> {
        loop {
            match self.queue.front() {
                None => return Ok(None),
                Some(Queued::Gap(gap)) => {
                    let gap = *gap;
                    if self.context.request.on_gap == OnGap::Stop {
                        return Err(ReplayError::Gap(gap));
                    }
                    self.queue.pop();
                    self.pass(gap);
                }
                Some(Queued::Batch(batch)) => {
                    let rows = batch.columns.len();
                    if let Some(rate) = self.rate.filter(|_| rows > 0) {
                        let wait = rate.wait(self.context.clock.elapsed());
                        if !wait.is_zero() {
                            self.context.clock.sleep(wait).await;
                            continue;
                        }
                    }
                    return Ok(self.hand_out());
                }
            }
        }
    }

    /// Takes the front batch, or as much of it as the rate allows at once, and moves the position.
    fn hand_out(&mut self) -> Option<EventBatch> {
        let Some(Queued::Batch(batch)) = self.queue.pop() else {
            return None;
        };
        let rows_max = self.rate.map_or(usize::MAX, |rate| rate.batch_rows());
        let (batch, rest) = split(batch, rows_max);
        if let Some(rest) = rest {
            self.queue.push_front(Queued::Batch(rest));
        }
        let rows = batch.columns.len();
        let now = self.context.clock.elapsed();
        if let Some(rate) = self.rate.as_mut() {
            rate.emitted(rows, now);
        }
        let mut position = Position {
            generation: batch.generation,
            offset: batch.range.end(),
        };
        if Mutant::PositionOneEarly.is_planted() && rows > 0 {
            let before = position.offset.get() - 1;
            position.offset = Offset::new(before).unwrap_or(position.offset);
        }
        self.reached.insert(batch.partition, position);
        self.positions.insert(batch.partition, position);
        if let Some(last) = rows.checked_sub(1) {
            let row = batch.columns.row(last);
            if let Some(leader_epoch) = row.leader_epoch {
                let last = LastRead {
                    leader_epoch,
                    next: row.offset.next(),
                };
                self.epochs.insert(batch.partition, last);
            }
            self.meter
                .emitted(rows as u64, Some(Millis(row.timestamp_ms)), now);
            (self.vanished, self.falls) = (0, 0);
        }
        Some(batch)
    }

    fn pass(&mut self, gap: Gap) {
        // whoever reads the stream is told by `gaps_passed`
        tracing::debug!(%gap, "passing a recorded gap");
        self.gaps.push(gap);
        let Some(end) = gap.end else { return };
        let behind = Position {
            generation: gap.generation,
            offset: end,
        };
        let at = self.reached.entry(gap.partition).or_insert(behind);
        *at = behind.max(*at);
        self.positions.insert(gap.partition, *at);
    }

    async fn step_history(&mut self) -> Result<(), ReplayError> {
        self.prepare();
        let State::History(reading) = &mut self.state else {
            return Ok(());
        };
        match reading.history.next(self.queue.is_holding()).await {
            Ok(Some(HistoryItem::Batch(batch))) => self.take_batch(batch),
            Ok(Some(HistoryItem::Gap(gap))) => self.queue.push(Queued::Gap(gap)),
            Ok(None) => self.end_history(),
            Err(error) if error.is_vanished() && self.context.may_refresh => {
                self.vanished += 1;
                if self.vanished > VANISHED_MAX {
                    return Err(error);
                }
                tracing::warn!(%error, "a file is gone: planning again on the newest snapshot");
                self.start_switch(None, Some(error));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Opens the live reader while the last part of history is being read.
    fn prepare(&mut self) {
        let (Some(cluster), State::History(reading)) = (&self.context.cluster, &self.state) else {
            return;
        };
        let (done, due) = reading.history.progress();
        if reading.prepared.is_some() || due - done > PREPARE_ROWS {
            return;
        }
        let mut reached = self.reached.clone();
        for (partition, cut) in self.ledger.cut() {
            let at = reached.entry(partition).or_insert(cut);
            *at = cut.max(*at);
        }
        let due = self.due(&reached);
        let input = switch::Preparing {
            cluster: cluster.clone(),
            ledger: self.ledger.clone(),
            reached,
            incarnation: self.incarnation.clone(),
            due,
            epochs: self.cut_epochs(),
            memory_bytes: self.context.live_bytes(),
        };
        let task = OwnedTask::spawn("opening the live log", switch::prepare(input));
        if let State::History(reading) = &mut self.state {
            reading.prepared = Some(task);
        }
    }

    /// Everything of the snapshot is out.
    fn end_history(&mut self) {
        let State::History(reading) = std::mem::replace(&mut self.state, State::Ended) else {
            return;
        };
        self.finished.extend(reading.history.stopped());
        self.epochs = self.cut_epochs();
        if self.context.cluster.is_none() || self.is_done() || Mutant::TailLeftOut.is_planted() {
            self.release_keeper();
            return;
        }
        fail::fail_point!("replay::before_switch");
        self.start_switch(reading.prepared, None);
    }

    /// Leader epochs as the ledger has them, for partitions that go on where it ends.
    fn cut_epochs(&self) -> BTreeMap<Partition, LastRead> {
        let mut epochs = self.epochs.clone();
        let Some((generation, newest)) = self.ledger.newest() else {
            return epochs;
        };
        for (partition, entry) in &newest.partitions {
            let cut = Position {
                generation,
                offset: entry.next,
            };
            let ahead = self.reached.get(partition).is_some_and(|at| *at > cut);
            match entry.leader_epoch {
                Some(leader_epoch) if !ahead => {
                    let next = entry.next;
                    epochs.insert(*partition, LastRead { leader_epoch, next })
                }
                None if !ahead => epochs.remove(partition),
                _ => None,
            };
        }
        epochs
    }

    fn start_switch(
        &mut self,
        prepared: Option<OwnedTask<Option<Tailer>>>,
        vanished: Option<ReplayError>,
    ) {
        for partition in self.queue.forget_held() {
            self.read_again(partition);
        }
        let due = self.due(&self.reached);
        let input = SwitchInput {
            context: Arc::clone(&self.context),
            ledger: self.ledger.clone(),
            snapshot_id: self.snapshot_id,
            reached: self.reached.clone(),
            incarnation: self.incarnation.clone(),
            due,
            epochs: self.epochs.clone(),
            stops: self.stops.clone(),
            passed: self.gaps.clone(),
            finished: self.finished.clone(),
            prepared,
            vanished,
            falls: self.falls,
        };
        if let State::Live(live) = std::mem::replace(&mut self.state, State::Ended) {
            self.cleanup.spawn(live.tailer.close());
        }
        self.state = State::Switching(OwnedTask::spawn("the switch", switch(input)));
    }

    fn switched(&mut self, switched: Switched) {
        match switched {
            Switched::History {
                mut history,
                keeper,
                ledger,
                snapshot_id,
            } => {
                // The newest snapshot is leased: now the old one may go.
                self.release_keeper();
                self.keeper = Some(*keeper);
                self.ledger = ledger;
                self.incarnation = Incarnation::newest(&self.ledger);
                self.snapshot_id = Some(snapshot_id);
                self.learn_ledger();
                history.hold(self.queue.held());
                self.state = State::History(Box::new(ReadingHistory {
                    history: *history,
                    prepared: None,
                }));
            }
            Switched::Live {
                tailer,
                identity,
                ledger,
                checked_at,
            } => {
                fail::fail_point!("replay::after_assign");
                self.release_keeper();
                self.ledger = ledger;
                self.learn_ledger();
                self.begin_live(*tailer, identity, checked_at);
            }
            Switched::Nothing => self.release_keeper(),
        }
    }

    /// Queues a batch, cut to what is wanted.
    fn take_batch(&mut self, batch: EventBatch) {
        let partition = batch.partition;
        if self.finished.contains(&partition) {
            return;
        }
        let stop = self.stops.offset(batch.generation, partition);
        let until = stop.map_or(batch.range.end(), |stop| stop.min(batch.range.end()));
        let Some(mut batch) = cut(batch, None, until) else {
            return;
        };
        if self.seeking.contains(&partition) {
            let From::Timestamp(at) = self.context.request.from else {
                return;
            };
            let Some(row) = first_at_or_after(&batch.columns, at.0) else {
                let position = Position {
                    generation: batch.generation,
                    offset: batch.range.end(),
                };
                self.reached.insert(partition, position);
                return;
            };
            self.seeking.remove(&partition);
            let from = batch.columns.row(row).offset;
            let end = batch.range.end();
            match cut(batch, Some(from), end) {
                Some(rest) => batch = rest,
                None => return,
            }
        }
        let stop = self
            .stops
            .timestamp
            .and_then(|at| first_at_or_after(&batch.columns, at));
        if let Some(row) = stop {
            self.finished.insert(partition);
            let end = batch.columns.row(row).offset;
            match cut(batch, None, end) {
                Some(rest) => batch = rest,
                None => return,
            }
        }
        self.queue.push(Queued::Batch(batch));
    }

    /// Whether the replay is at its end.
    fn is_done(&self) -> bool {
        // What waits aside may be the rest of a partition that ends at a timestamp: that counts as read.
        !self.queue.is_holding()
            && self.stops.offsets.is_some()
            && self.due(&self.reached).is_some_and(|due| due.is_empty())
    }

    /// The partitions of the live topic that are still to be read from `reached`; none: whatever there is.
    fn due(&self, reached: &Positions) -> Option<BTreeSet<Partition>> {
        let Some((generation, stops)) = &self.stops.offsets else {
            return self.context.request.partitions.clone();
        };
        let due = stops.iter().filter(|(partition, stop)| {
            let end = Position {
                generation: *generation,
                offset: **stop,
            };
            !is_there(reached, **partition, end) && !self.finished.contains(partition)
        });
        Some(due.map(|(partition, _)| *partition).collect())
    }

    fn events_left(&self) -> Option<u64> {
        let in_history = match &self.state {
            State::History(reading) => {
                let (done, all) = reading.history.progress();
                all - done
            }
            State::Ended => return Some(0),
            State::Switching(_) | State::Live(_) | State::Adjusting(_) | State::Failed => 0,
        };
        let request = &self.context.request;
        match (&self.stops.offsets, request.until) {
            (_, Until::Never) => None,
            (None, _) => Some(in_history),
            (Some((generation, stops)), _) => {
                let cut = self.ledger.cut();
                let left = stops.iter().map(|(partition, stop)| {
                    let cut = cut.get(partition).filter(|c| c.generation == *generation);
                    let at = self.reached.get(partition);
                    let at = at.filter(|at| at.generation == *generation);
                    let from = cut.into_iter().chain(at).map(|p| p.offset).max();
                    stop.since(from.unwrap_or_default())
                });
                Some(in_history + left.sum::<u64>())
            }
        }
    }
}

impl Context {
    /// The live reader's part of the memory; what waits to be proved may take as much.
    fn live_bytes(&self) -> usize {
        self.request.memory_bytes / 4
    }
}

/// Whether `partition` is at its `end`.
fn is_there(reached: &Positions, partition: Partition, end: Position) -> bool {
    match reached.get(&partition) {
        Some(at) => *at >= end,
        // Nothing of it was seen in any tier, and nothing was there at the start.
        None => end.offset == Offset::ZERO,
    }
}

/// The first `rows_max` rows, and the rest.
fn split(batch: EventBatch, rows_max: usize) -> (EventBatch, Option<EventBatch>) {
    if batch.columns.len() <= rows_max {
        return (batch, None);
    }
    let border = batch.columns.row(rows_max).offset;
    let (start, end) = (batch.range.start(), batch.range.end());
    let first = cut(batch.clone(), Some(start), border);
    let rest = cut(batch.clone(), Some(border), end);
    match (first, rest) {
        (Some(first), rest @ Some(_)) => (first, rest),
        _ => (batch, None),
    }
}

/// The part of a batch in `[from, until)`; none where that is empty.
fn cut(mut batch: EventBatch, from: Option<Offset>, until: Offset) -> Option<EventBatch> {
    let from = from.unwrap_or(batch.range.start()).max(batch.range.start());
    let range = OffsetRange::new(from, until.min(batch.range.end())).ok()?;
    if range != batch.range {
        batch.columns = batch.columns.slice_offsets(range.start(), range.end());
        batch.range = range;
    }
    Some(batch)
}
