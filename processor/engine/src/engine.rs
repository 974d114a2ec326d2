//! Takes batches of records, keeps open windows, gives final rows.

mod admit;
mod dedup;
mod fire;
mod panes;
mod sessions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DataFusionError;

use crate::aggregate::{Inputs, evaluate};
use crate::entry::GROUP_KEY_BYTES_MAX;
use crate::error::EngineError;
use crate::event_time::{
    self, Candidate, Choice, Decision, END, NEVER, Scope, millis, session_accepts,
};
use crate::progress::{PartitionProgress, Progress};
use crate::query::Query;
use crate::sql::Windowed;
use crate::state::State;
use crate::window::Panes;
use admit::{Admitted, LeftOut, keep, rowwise};
use fire::Limit;
use sessions::Interned;

/// What a call gave.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// Final rows, in the order of window end, key, window start; without a window in the order of the records.
    pub rows: RecordBatch,
    /// Records that came too late: `generation`, `partition`, `offset`, `reason`, in the order of their offsets.
    pub late: RecordBatch,
    /// Records that could not be used, in the same form.
    pub dead: RecordBatch,
    /// What time has reached: the job's, or where time is per partition that partition's. `None` before it has begun,
    /// [`event_time::END`] after it has ended.
    pub watermark: Option<i64>,
    /// Whether more is due than one call does, rows or only forgetting: call [`Engine::fire`] until it is false.
    pub more: bool,
}

/// Runs one query over batches.
///
/// The same calls on the same progress and state give the same result. After an error both are those of a torn batch:
/// drop the engine and go back to the last checkpoint.
pub struct Engine {
    query: Arc<Query>,
    progress: Progress,
    /// Decisions about offsets that are still to come, in order, per partition.
    pending: BTreeMap<i32, VecDeque<Decision>>,
    /// The newest generation of which anything was processed.
    generation: Option<i32>,
    /// The partitions of later ones, which are told anew after a restart, as are those that these do not have.
    coming: BTreeMap<i32, BTreeSet<i32>>,
    lacking: BTreeMap<i32, BTreeSet<i32>>,
    /// The schema of the last batch, and where in it the query's columns stand.
    source: Option<(SchemaRef, Vec<usize>)>,
    left_out: SchemaRef,
    /// Per kind and scope, the key before which no timer is left. It says nothing that the state does not.
    seen: BTreeMap<(u8, i32), Vec<u8>>,
    /// Partitions of which deduplication has more to forget than one call does. It says nothing that the state does not.
    expiring: BTreeSet<i32>,
    bound: i64,
    lateness: i64,
    max_future: Option<i64>,
    limit: Limit,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

/// How many timers are looked at in one call, which bounds its rows.
const TIMERS_PER_CALL: usize = 32_768;

/// How many bytes of timers, keys and what is stored for them are looked at in one call, which bounds its memory: that is a
/// small multiple of them. Ordinary windows reach the other limit first.
const BYTES_PER_CALL: usize = 8 << 20;

impl Engine {
    /// Goes on from `progress`, which is [`Progress::default`] for a new job.
    pub fn new(query: Arc<Query>, mut progress: Progress) -> Result<Self, EngineError> {
        let expected = query.fingerprint();
        if progress.fingerprint != 0 && progress.fingerprint != expected {
            return Err(EngineError::OtherQuery {
                found: progress.fingerprint,
                expected,
            });
        }
        progress.fingerprint = expected;
        let mut pending: BTreeMap<i32, VecDeque<Decision>> = BTreeMap::new();
        for decision in &progress.decisions {
            let done = progress
                .partitions
                .get(&decision.partition)
                .is_some_and(|partition| {
                    (decision.generation, decision.offset)
                        <= (partition.generation, partition.next_offset)
                });
            if !done {
                pending
                    .entry(decision.partition)
                    .or_default()
                    .push_back(*decision);
            }
        }
        let left_out = Arc::new(Schema::new(vec![
            Field::new("generation", DataType::Int32, false),
            Field::new("partition", DataType::Int32, false),
            Field::new("offset", DataType::Int64, false),
            Field::new("reason", DataType::Utf8, false),
        ]));
        Ok(Self {
            bound: millis(query.event_time().bound),
            lateness: query.lateness(),
            max_future: query.event_time().max_future.map(millis),
            limit: Limit {
                timers: TIMERS_PER_CALL,
                bytes: BYTES_PER_CALL,
            },
            query,
            generation: progress.partitions.values().map(|at| at.generation).max(),
            progress,
            pending,
            coming: BTreeMap::new(),
            lacking: BTreeMap::new(),
            source: None,
            left_out,
            seen: BTreeMap::new(),
            expiring: BTreeSet::new(),
        })
    }

    /// Has at most `timers` looked at per call, for tests of [`Emitted::more`].
    #[must_use]
    pub fn with_timers_per_call(mut self, timers: usize) -> Self {
        self.limit.timers = timers.max(1);
        self
    }

    /// Has calls end when so many bytes of keys and state have been looked at: of windows that fire, and again of what
    /// deduplication forgets. Fewer make more calls with fewer rows each; the sequence of rows is the same. One window is
    /// always looked at as a whole.
    #[must_use]
    pub fn with_bytes_per_call(mut self, bytes: usize) -> Self {
        self.limit.bytes = bytes.max(1);
        self
    }

    /// Where it stands: what belongs into a checkpoint beside the state.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The query that it runs.
    pub fn query(&self) -> &Arc<Query> {
        &self.query
    }

    /// The newest generation that has begun: of which anything was processed. None before any partition was assigned.
    pub fn generation(&self) -> Option<i32> {
        self.generation
    }

    /// Says which partitions exist, as generation and partition, each with all generations that are known: from now on they
    /// hold the watermark back; those of a generation that has not begun do so from its beginning on.
    ///
    /// A partition that joins after time has begun gets a decision, which is part of the progress, and also returned where
    /// it joins at once: whoever replays the job must [decide](Engine::decide) the same. All known decisions must be given
    /// before. At the beginning of a generation the decision follows from the records alone, where all that come before were
    /// processed.
    pub fn assign(&mut self, partitions: &[(i32, i32)]) -> Vec<Decision> {
        let mut partitions = partitions.to_vec();
        partitions.sort_unstable_by_key(|(generation, partition)| (*partition, *generation));
        let first = partitions.iter().map(|(generation, _)| *generation).min();
        self.generation = self.generation.or(first);
        let mut made = Vec::new();
        for (generation, partition) in partitions {
            if Some(generation) > self.generation {
                self.coming.entry(generation).or_default().insert(partition);
            } else {
                made.extend(self.join(generation, partition));
            }
        }
        made
    }

    /// Says which partitions a generation does not have, as generation and partition: all that is known of that, and nothing
    /// that [`Engine::assign`] says, which is to be called after it. They hold nobody back from the beginning of that
    /// generation on, until one has them again, which they join as new ones do. Gives whether anything is different at once.
    ///
    /// Of a generation that is over, those lack of which it has no record, whether or not the topic had them.
    pub fn lacks(&mut self, absent: impl IntoIterator<Item = (i32, i32)>) -> bool {
        self.lacking.clear();
        let mut changed = false;
        for (generation, partition) in absent {
            if Some(generation) > self.generation {
                let lacking = self.lacking.entry(generation).or_default();
                lacking.insert(partition);
            } else {
                changed |= self.leave(generation, partition);
            }
        }
        self.advance_watermark();
        changed
    }

    /// A partition is in a generation. One that was not there, or not any more, takes the time that was reached.
    fn join(&mut self, generation: i32, partition: i32) -> Option<Decision> {
        let at = self
            .progress
            .partitions
            .entry(partition)
            .or_insert(PartitionProgress {
                generation,
                away: true,
                ..PartitionProgress::default()
            });
        if generation < at.generation {
            return None;
        }
        if generation > at.generation {
            (at.generation, at.next_offset) = (generation, 0);
        }
        if !std::mem::take(&mut at.away) {
            self.obey(partition);
            return None;
        }
        let offset = at.next_offset;
        self.obey(partition);
        let reached = self.progress.watermark;
        let own = self.progress.partitions[&partition].watermark(self.bound);
        let waits = self.query.is_windowed() && self.query.scope() == Scope::Global;
        (waits && reached > own).then(|| {
            let decision = Decision {
                generation,
                partition,
                offset,
                floor: reached,
            };
            self.record(decision);
            self.obey(partition);
            decision
        })
    }

    /// A partition is not in a generation; whether that was not known.
    fn leave(&mut self, generation: i32, partition: i32) -> bool {
        let Some(at) = self.progress.partitions.get_mut(&partition) else {
            return false;
        };
        if at.away || (at.generation, at.next_offset) > (generation, 0) {
            return false;
        }
        (at.generation, at.next_offset, at.away) = (generation, 0, true);
        self.obey(partition);
        true
    }

    /// Something of a partition is next. Where that is the first of its generation, all that come with this generation take
    /// the time that everything before has led to, and only then those leave that it does not have: so nothing depends on
    /// when either was known.
    fn begin(&mut self, generation: i32, partition: i32) {
        while let Some(now) = self.generation
            && now < generation
        {
            let later = self.coming.keys().chain(self.lacking.keys());
            let next = later.copied().filter(|at| *at > now).min();
            let next = next.map_or(generation, |next| next.min(generation));
            self.advance_watermark();
            for joins in self.coming.remove(&next).unwrap_or_default() {
                self.join(next, joins);
            }
            for leaves in self.lacking.remove(&next).unwrap_or_default() {
                self.leave(next, leaves);
            }
            self.generation = Some(next);
        }
        // It is there, whatever was said.
        if self
            .progress
            .partitions
            .get(&partition)
            .is_some_and(|at| at.away)
        {
            self.join(generation, partition);
        }
        self.advance_watermark();
    }

    /// Enters a decision into the log, and says whether it says more than the log did: entering the same decision again
    /// changes nothing. It applies before the record at its offset, and as soon as the position has reached it.
    ///
    /// The log keeps one entry per offset, with the highest floor that was given for it: the others say nothing beside it.
    /// So a partition that is passed again and again while it is silent has one entry, however long that goes on.
    pub fn decide(&mut self, decision: Decision) -> Result<bool, EngineError> {
        if self
            .logged(&decision)
            .is_ok_and(|at| self.progress.decisions[at].floor >= decision.floor)
        {
            return Ok(false);
        }
        if let Some(at) = self.progress.partitions.get(&decision.partition)
            && (decision.generation, decision.offset) < (at.generation, at.next_offset)
        {
            return Err(EngineError::LateDecision {
                partition: decision.partition,
                generation: decision.generation,
                offset: decision.offset,
                at_generation: at.generation,
                at_offset: at.next_offset,
            });
        }
        self.record(decision);
        self.obey(decision.partition);
        self.advance_watermark();
        Ok(true)
    }

    /// The decision that lets time pass `partition` while it is silent: up to the lowest watermark of the others, so far as
    /// these have not ended. `None` if it does not hold them back, as it never does where time is per partition. Only right
    /// while the partition's position is the end of its log.
    pub fn idle(&self, partition: i32) -> Option<Decision> {
        if self.query.scope() == Scope::Partition {
            return None;
        }
        let own = self.progress.partitions.get(&partition)?;
        if own.away {
            return None;
        }
        let others = self
            .progress
            .partitions
            .iter()
            .filter(|(other, _)| **other != partition);
        // Of those that have ended there is no time to wait for: their end would be this partition's, too.
        let floor = others
            .map(|(_, other)| other.watermark(self.bound))
            .filter(|watermark| *watermark != END)
            .min()?;
        (floor > own.clock.watermark(self.bound)).then_some(Decision {
            generation: own.generation,
            partition,
            offset: own.next_offset,
            floor,
        })
    }

    /// Where the log has an entry for the same place as `decision`, or where that would stand.
    fn logged(&self, decision: &Decision) -> Result<usize, usize> {
        let place = |d: &Decision| (d.partition, d.generation, d.offset);
        let decisions = &self.progress.decisions;
        decisions.binary_search_by_key(&place(decision), place)
    }

    fn record(&mut self, decision: Decision) {
        match self.logged(&decision) {
            Ok(at) => {
                let known = &mut self.progress.decisions[at];
                known.floor = known.floor.max(decision.floor);
            }
            Err(at) => self.progress.decisions.insert(at, decision),
        }
        let key = |d: &Decision| (d.partition, d.generation, d.offset, d.floor);
        let pending = self.pending.entry(decision.partition).or_default();
        let at = pending.partition_point(|other| key(other) < key(&decision));
        pending.insert(at, decision);
    }

    /// Applies the decisions that the position of `partition` has reached.
    fn obey(&mut self, partition: i32) {
        let (Some(at), Some(pending)) = (
            self.progress.partitions.get_mut(&partition),
            self.pending.get_mut(&partition),
        ) else {
            return;
        };
        while let Some(next) = pending.front()
            && (next.generation, next.offset) <= (at.generation, at.next_offset)
        {
            at.clock.raise(next.floor);
            pending.pop_front();
        }
        if pending.is_empty() {
            self.pending.remove(&partition);
        }
    }

    fn advance_watermark(&mut self) {
        let there = self.progress.partitions.values().filter(|p| !p.away);
        let clocks = there.map(|p| p.clock.watermark(self.bound));
        let lowest = clocks.min().unwrap_or(NEVER);
        self.progress.watermark = self.progress.watermark.max(lowest);
    }

    /// The watermark that the windows of `partition` follow.
    fn watermark_of(&self, partition: i32) -> i64 {
        if self.progress.drained {
            return END;
        }
        match self.query.scope() {
            Scope::Global => self.progress.watermark,
            Scope::Partition => self
                .progress
                .partitions
                .get(&partition)
                .map_or(NEVER, |p| p.clock.watermark(self.bound)),
        }
    }

    /// Which partition to read next, and which to hold back. Changes no row, only how much is open at once.
    pub fn next_partition(&self, candidates: &[Candidate]) -> Choice {
        let timed: Vec<(Candidate, i64)> = candidates
            .iter()
            .map(|candidate| {
                let at = self.progress.partitions.get(&candidate.partition).copied();
                (*candidate, at.unwrap_or_default().watermark(self.bound))
            })
            .collect();
        event_time::choose(&timed, self.query.max_skew())
    }

    /// Says that the position of a partition has moved to `offset` without records (control records, an empty tail).
    pub fn advance(
        &mut self,
        state: &mut dyn State,
        generation: i32,
        partition: i32,
        offset: i64,
    ) -> Result<Emitted, EngineError> {
        let at = self.progress.partitions.get(&partition);
        if at.is_none_or(|at| (generation, offset) > (at.generation, at.next_offset)) {
            self.begin(generation, partition);
        }
        let at = self.position(partition)?;
        if (generation, offset) > (at.generation, at.next_offset) {
            at.generation = generation;
            at.next_offset = offset;
        }
        self.obey(partition);
        self.advance_watermark();
        let fired = self.fire_partition(state, partition, &mut { self.limit })?;
        self.expire(state, partition, &mut { self.limit })?;
        self.emitted(fired, LeftOut::default(), LeftOut::default(), partition)
    }

    fn position(&mut self, partition: i32) -> Result<&mut PartitionProgress, EngineError> {
        self.progress
            .partitions
            .get_mut(&partition)
            .ok_or(EngineError::Unassigned(partition))
    }

    /// Takes one decoded batch of one generation and partition, offsets increasing. Its columns are found by name: see
    /// [`Query::input_schema`]; what else it has is ignored.
    pub fn process(
        &mut self,
        state: &mut dyn State,
        batch: &RecordBatch,
    ) -> Result<Emitted, EngineError> {
        if self.progress.drained {
            return Err(EngineError::Drained);
        }
        if batch.num_rows() == 0 {
            return self.fire(state);
        }
        let query = Arc::clone(&self.query);
        let mut dead = LeftOut::default();
        let mut late = LeftOut::default();
        let mut admitted = self.admit(batch, &mut dead)?;
        let partition = admitted.partition;
        if let Some(plan) = &query.dedup {
            self.drop_duplicates(state, plan, &mut admitted, &mut late, &mut dead)?;
        }
        if let Some(filter) = &query.planned.filter {
            let (bad, mask) = rowwise(&admitted.batch, |batch| {
                crate::aggregate::mask(filter, batch)
            })?;
            admitted.drop_bad(bad, &mut dead)?;
            let before = admitted.batch.num_rows();
            admitted.keep(&mask)?;
            self.progress.counters.filtered += (before - admitted.batch.num_rows()) as u64;
        }
        let fired = match &query.planned.windowed {
            None => {
                let (bad, columns) = rowwise(&admitted.batch, |batch| {
                    evaluate(&query.planned.projection, batch)
                })?;
                admitted.drop_bad(bad, &mut dead)?;
                self.advance_watermark();
                let count = admitted.batch.num_rows();
                (vec![rows_of(&query.planned.output, columns, count)?], false)
            }
            Some(windowed) => {
                self.window(state, windowed, &mut admitted, &mut late, &mut dead)?;
                self.advance_watermark();
                self.fire_partition(state, partition, &mut { self.limit })?
            }
        };
        self.expire(state, partition, &mut { self.limit })?;
        self.emitted(fired, late, dead, partition)
    }

    /// Sorts the records into windows.
    fn window(
        &mut self,
        state: &mut dyn State,
        windowed: &Windowed,
        admitted: &mut Admitted,
        late: &mut LeftOut,
        dead: &mut LeftOut,
    ) -> Result<(), EngineError> {
        let mut froms = self.accept(windowed, admitted, late)?;
        let narrow = admitted.batch.project(&windowed.columns)?;
        let (bad, (keys, mut inputs)) = rowwise(&narrow, |batch| {
            let keys = evaluate(&windowed.keys, batch)?;
            Ok((keys, windowed.aggregates.inputs(batch)?))
        })?;
        if let Some(bad) = &bad {
            froms = froms.map(|froms| keep(&froms, &bad.good));
        }
        admitted.drop_bad(bad, dead)?;
        if admitted.batch.num_rows() == 0 {
            return Ok(());
        }
        let mut interned = Self::intern(&windowed.codec, &keys, admitted.batch.num_rows())?;
        if let Some(long) = interned.leave_out_longer(GROUP_KEY_BYTES_MAX, "group key") {
            for input in &mut inputs {
                input.keep(&long.good).map_err(EngineError::Aggregate)?;
            }
            froms = froms.map(|froms| keep(&froms, &long.good));
            admitted.drop_bad(Some(long), dead)?;
            if admitted.batch.num_rows() == 0 {
                return Ok(());
            }
        }
        let records = Records {
            partition: admitted.partition,
            times: admitted.times(),
            offsets: &admitted.offsets,
            interned,
            inputs,
        };
        match windowed.window.panes() {
            None => self.add_to_sessions(state, windowed, records),
            Some(panes) => {
                self.add_to_panes(state, windowed, panes, records, &froms.unwrap_or_default())
            }
        }
    }

    /// Leaves out what is late (rules 1 and 2). For tumble and hop, gives per record the start of the first window that
    /// takes it, [`NEVER`] where all do.
    fn accept(
        &mut self,
        windowed: &Windowed,
        admitted: &mut Admitted,
        late: &mut LeftOut,
    ) -> Result<Option<Vec<i64>>, EngineError> {
        let lateness = self.lateness;
        let mut mask = vec![true; admitted.batch.num_rows()];
        let mut froms = None;
        if let Some(panes) = windowed.window.panes() {
            let mut starts = Vec::with_capacity(mask.len());
            for (row, (&time, &before)) in admitted.times().iter().zip(&admitted.before).enumerate()
            {
                match first_window(panes, time, before, lateness) {
                    Some(from) => {
                        self.progress.counters.partly_late += u64::from(from != NEVER);
                        starts.push(from);
                    }
                    None => mask[row] = false,
                }
            }
            froms = Some(starts);
        } else {
            for (row, (&time, &before)) in admitted.times().iter().zip(&admitted.before).enumerate()
            {
                mask[row] = session_accepts(time, before, lateness);
            }
        }
        if mask.iter().all(|taken| *taken) {
            return Ok(froms);
        }
        for (row, _) in mask.iter().enumerate().filter(|(_, taken)| !**taken) {
            let reason = late_reason(admitted.times()[row], admitted.before[row], lateness);
            late.push(admitted.offsets[row], reason);
        }
        admitted.keep(&mask.into())?;
        Ok(froms)
    }

    /// Gives the rows that are due. Calls of [`Engine::process`] do so too; this is for [`Emitted::more`], and after
    /// [`Engine::decide`].
    pub fn fire(&mut self, state: &mut dyn State) -> Result<Emitted, EngineError> {
        self.advance_watermark();
        let scopes: Vec<i32> = match self.query.scope() {
            Scope::Global => vec![0],
            Scope::Partition => self.progress.partitions.keys().copied().collect(),
        };
        let mut rows: Vec<RecordBatch> = Vec::new();
        let mut more = false;
        let mut last = 0;
        // All partitions together are looked at no more than one is.
        let mut limit = self.limit;
        for partition in scopes {
            if limit.is_reached() {
                more = true;
                break;
            }
            let (some, left) = self.fire_partition(state, partition, &mut limit)?;
            rows.extend(some);
            last = partition;
            if left {
                more = true;
                break;
            }
        }
        let mut limit = self.limit;
        for partition in self.expiring.clone() {
            if limit.is_reached() {
                break;
            }
            self.expire(state, partition, &mut limit)?;
        }
        self.emitted((rows, more), LeftOut::default(), LeftOut::default(), last)
    }

    /// Fires every window as if event time had ended, and closes the job.
    pub fn drain(&mut self, state: &mut dyn State) -> Result<Emitted, EngineError> {
        self.progress.drained = true;
        self.progress.watermark = END;
        self.fire(state)
    }

    fn emitted(
        &mut self,
        (rows, more): (Vec<RecordBatch>, bool),
        late: LeftOut,
        dead: LeftOut,
        partition: i32,
    ) -> Result<Emitted, EngineError> {
        let output = &self.query.planned.output;
        let rows = match <[RecordBatch; 1]>::try_from(rows) {
            Ok([rows]) => rows,
            Err(rows) => arrow_select::concat::concat_batches(output, &rows)?,
        };
        let counters = &mut self.progress.counters;
        counters.rows += rows.num_rows() as u64;
        counters.late += late.len() as u64;
        counters.dead += dead.len() as u64;
        let generation = self
            .progress
            .partitions
            .get(&partition)
            .map_or(0, |p| p.generation);
        let watermark = self.watermark_of(partition);
        Ok(Emitted {
            rows,
            late: late.batch(&self.left_out, generation, partition)?,
            dead: dead.batch(&self.left_out, generation, partition)?,
            watermark: (watermark != NEVER).then_some(watermark),
            more: more || !self.expiring.is_empty(),
        })
    }
}

/// Records on their way into windows.
struct Records<'a> {
    partition: i32,
    times: &'a [i64],
    offsets: &'a [i64],
    interned: Interned,
    inputs: Vec<Inputs>,
}

/// The start of the first window that takes a record: [`NEVER`] if all that hold it do, `None` if none does.
fn first_window(panes: Panes, time: i64, watermark: i64, lateness: i64) -> Option<i64> {
    let takes = |start: i64| event_time::window_accepts(start + panes.size, watermark, lateness);
    let pane = panes.pane(time);
    if takes(panes.first_window(pane)) {
        return Some(NEVER);
    }
    if !takes(pane) {
        return None;
    }
    // Between the two, start + size - 1 + lateness > watermark bounds the watermark: nothing overflows.
    let lowest = watermark - lateness - panes.size + 2;
    Some(-(-lowest).div_euclid(panes.slide) * panes.slide)
}

fn late_reason(time: i64, watermark: i64, lateness: i64) -> String {
    if watermark == END {
        return format!("its event time is {time} ms, but its partition was declared ended");
    }
    format!(
        "its event time of {time} ms is {} ms behind its partition's watermark; the allowed lateness is {lateness} ms",
        watermark.saturating_sub(time)
    )
}

fn rows_of(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    count: usize,
) -> Result<RecordBatch, EngineError> {
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(count));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|error| EngineError::Row(DataFusionError::from(error)))
}

impl LeftOut {
    fn batch(
        mut self,
        schema: &SchemaRef,
        generation: i32,
        partition: i32,
    ) -> Result<RecordBatch, EngineError> {
        self.0.sort_by_key(|(offset, _)| *offset);
        let count = self.0.len();
        let (offsets, reasons): (Vec<i64>, Vec<String>) = self.0.into_iter().unzip();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(vec![generation; count])),
            Arc::new(Int32Array::from(vec![partition; count])),
            Arc::new(Int64Array::from(offsets)),
            Arc::new(StringArray::from(reasons)),
        ];
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}
