//! The engine at work on a job's state: decoded pieces in, an epoch's rows gathered. Runs on a thread that may be held up.
//!
//! After an error it is dropped: engine and state are torn, and the job goes on from the last epoch.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int32Array, RecordBatch, StringArray, UInt32Array};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow_select::concat::concat_batches;
use everlog_common::{
    Generation, Identity, Offset, Partition, Position, Positions, TopicId, TopicName,
};
use everlog_engine::event_time::NEVER;
use everlog_engine::{Decision, Emitted, Engine, EngineError, Progress};
use everlog_replayer::handoff::Incarnation;
use serde::{Deserialize, Serialize};

use super::decide::EpochRules;
use super::error::RunError;
use super::source::{Decoded, row_of, timestamps};
use crate::job::OnError;
use crate::state::{Epoch, JobState, Sealing, no_rows};

/// Rows that go through the engine at a time, where they come in several pieces.
const JOINED_ROWS: usize = 65_536;

/// What of a run goes into every epoch besides the state, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    /// The event time up to which every row is out. In the middle of a long firing the engine's own is further.
    pub(super) watermark: i64,
    /// The engine's.
    pub(super) engine: Progress,
    /// Whose log the positions of the newest generation count.
    incarnation: Option<StoredIncarnation>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredIncarnation {
    generation: u32,
    cluster_id: Option<String>,
    topic_id: Option<uuid::Uuid>,
}

impl Stored {
    /// Reads what an epoch has.
    pub(super) fn read(bytes: &[u8], job: &str) -> Result<Self, RunError> {
        serde_json::from_slice(bytes).map_err(|error| RunError::Progress {
            job: job.to_owned(),
            what: error.to_string(),
        })
    }

    /// Whose log its positions count.
    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        let stored = self.incarnation.as_ref()?;
        Some(Incarnation {
            generation: Generation(stored.generation),
            identity: Identity {
                cluster_id: stored.cluster_id.clone(),
                topic_id: stored.topic_id.map(TopicId),
            },
        })
    }
}

/// Where records that were left out go, so far as it decides what is kept of them.
#[derive(Debug, Clone)]
pub(super) struct LeftOut {
    schema: SchemaRef,
    whole: bool,
    topic: TopicName,
}

impl LeftOut {
    /// `whole`: with topic, timestamp, key and value, for an output; else where they are and why, for counting.
    pub(super) fn new(topic: &TopicName, reason: &str, whole: bool) -> Self {
        let utc = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        let mut fields = vec![
            Field::new("generation", DataType::Int32, false),
            Field::new("partition", DataType::Int32, false),
            Field::new("offset", DataType::Int64, false),
            Field::new(reason, DataType::Utf8, false),
        ];
        if whole {
            fields.insert(0, Field::new("topic", DataType::Utf8, false));
            fields.push(Field::new("timestamp", utc, true));
            fields.push(Field::new("key", DataType::Binary, true));
            fields.push(Field::new("value", DataType::Binary, true));
        }
        Self {
            schema: Arc::new(Schema::new(fields)),
            whole,
            topic: topic.clone(),
        }
    }

    fn batch(
        &self,
        decoded: &Decoded,
        rows: &[(usize, String)],
    ) -> Result<RecordBatch, ArrowError> {
        let piece = &decoded.piece;
        let count = rows.len();
        let index = |row: &usize| u32::try_from(*row).unwrap_or(u32::MAX);
        let taken: UInt32Array = rows.iter().map(|(row, _)| Some(index(row))).collect();
        let columns = piece.columns.take(&taken)?;
        let reasons = rows.iter().map(|(_, reason)| reason.as_str());
        let mut all: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from_value(piece.generation.as_i32(), count)),
            Arc::new(Int32Array::from_value(piece.partition.get(), count)),
            Arc::new(columns.offsets.clone()),
            Arc::new(StringArray::from_iter_values(reasons)),
        ];
        if self.whole {
            let topic =
                StringArray::from_iter_values(std::iter::repeat_n(self.topic.as_str(), count));
            all.insert(0, Arc::new(topic));
            all.push(Arc::new(timestamps(&columns)));
            all.push(Arc::new(columns.keys));
            all.push(Arc::new(columns.values));
        }
        RecordBatch::try_new(Arc::clone(&self.schema), all)
    }
}

/// Batches of one output in this epoch.
#[derive(Debug, Default)]
struct Gathered {
    batches: Vec<RecordBatch>,
    bytes: usize,
}

impl Gathered {
    fn add(&mut self, batch: RecordBatch) {
        if batch.num_rows() > 0 {
            self.bytes += batch.get_array_memory_size();
            self.batches.push(batch);
        }
    }

    fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        self.bytes = 0;
        let batches = std::mem::take(&mut self.batches);
        match <[RecordBatch; 1]>::try_from(batches) {
            Ok([batch]) => Ok(batch),
            Err(batches) => match batches.first() {
                Some(first) => concat_batches(&first.schema(), &batches),
                None => Ok(no_rows()),
            },
        }
    }
}

/// What a job is, as far as the work goes.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// For messages.
    pub(super) job: String,
    /// The topic.
    pub(super) topic: TopicName,
    /// What a record does that cannot be used.
    pub(super) on_error: OnError,
    /// When an epoch is full.
    pub(super) epoch: EpochRules,
    /// Where late records go.
    pub(super) late: LeftOut,
    /// Where dead letters go.
    pub(super) dead: LeftOut,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Work {
    rules: Rules,
    engine: Engine,
    state: JobState,
    positions: Positions,
    incarnation: Option<Incarnation>,
    rows: Gathered,
    late: Gathered,
    dead: Gathered,
    /// Rows are due that did not fit into one call.
    more: bool,
    /// See [`Stored::watermark`].
    complete: i64,
    dirty: bool,
    /// Records taken by this process.
    events: u64,
}

impl Work {
    /// Goes on from an epoch.
    pub(super) fn new(
        rules: Rules,
        engine: Engine,
        state: JobState,
        positions: Positions,
        stored: Option<&Stored>,
    ) -> Self {
        Self {
            rules,
            engine,
            state,
            positions,
            incarnation: stored.and_then(Stored::incarnation),
            rows: Gathered::default(),
            late: Gathered::default(),
            dead: Gathered::default(),
            // What did not fit into the epoch before.
            more: stored.is_some(),
            complete: stored.map_or(NEVER, |stored| stored.watermark),
            dirty: false,
            events: 0,
        }
    }

    /// The engine's progress.
    pub(super) fn progress(&self) -> &Progress {
        self.engine.progress()
    }

    /// The engine.
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The state.
    pub(super) fn state(&self) -> &JobState {
        &self.state
    }

    /// Records taken by this process.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Bytes of changes and of output in this epoch.
    pub(super) fn bytes(&self) -> (usize, usize) {
        let output = self.rows.bytes + self.late.bytes + self.dead.bytes;
        (self.state.changed_bytes(), output)
    }

    /// Rows so far, those of this epoch included.
    pub(super) fn counts(&self) -> crate::state::Counts {
        let rows = |gathered: &Gathered| {
            let rows = gathered.batches.iter().map(RecordBatch::num_rows);
            rows.sum::<usize>() as u64
        };
        let before = self.state.counts();
        crate::state::Counts {
            rows: before.rows + rows(&self.rows),
            late: before.late + rows(&self.late),
            dead: before.dead + rows(&self.dead),
        }
    }

    /// Whether there is something to save.
    pub(super) fn is_dirty(&self) -> bool {
        let (changed, output) = self.bytes();
        self.dirty || changed > 0 || output > 0
    }

    /// Whether rows are due.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    /// The epochs up to this one are committed.
    pub(super) fn settle(&mut self, epoch: u64) {
        self.state.settle(epoch);
    }

    /// These partitions exist, each with all its generations, and those are not in theirs. Gives the decisions that were made
    /// for those that are new after time has begun.
    pub(super) fn assign(
        &mut self,
        partitions: &[(i32, i32)],
        absent: &BTreeSet<(i32, i32)>,
    ) -> Vec<Decision> {
        let known = self.engine.progress().partitions.clone();
        self.more |= self.engine.lacks(absent.iter().copied());
        let made = self.engine.assign(partitions);
        self.dirty |= self.engine.progress().partitions != known;
        made
    }

    /// Enters decisions of others; gives those that come too late here, which nothing can be done about.
    pub(super) fn obey(&mut self, decisions: &[Decision]) -> Result<Vec<Decision>, RunError> {
        let mut missed = Vec::new();
        for decision in decisions {
            match self.engine.decide(*decision) {
                Ok(entered) => {
                    self.dirty |= entered;
                    self.more |= entered;
                }
                Err(EngineError::LateDecision { .. }) => missed.push(*decision),
                Err(source) => return Err(self.failed(source)),
            }
        }
        Ok(missed)
    }

    /// Closes every window, as if event time had ended, and fires as many as one call does.
    pub(super) fn drain(mut self: Box<Self>) -> (Box<Self>, Result<(), RunError>) {
        let drained = self.engine.drain(&mut self.state);
        let done = match drained {
            Ok(emitted) => {
                self.rows.add(emitted.rows);
                self.more = emitted.more;
                self.dirty = true;
                self.reached();
                Ok(())
            }
            Err(source) => Err(self.failed(source)),
        };
        (self, done)
    }

    /// Works until everything is done or the epoch is full; what is left comes back.
    pub(super) fn run(
        mut self: Box<Self>,
        mut pieces: VecDeque<Decoded>,
    ) -> (Box<Self>, VecDeque<Decoded>, Result<(), RunError>) {
        let done = self.work(&mut pieces);
        (self, pieces, done)
    }

    fn work(&mut self, pieces: &mut VecDeque<Decoded>) -> Result<(), RunError> {
        loop {
            let (changed, output) = self.bytes();
            if self.rules.epoch.is_full(changed, output) {
                return Ok(());
            }
            if self.more {
                let fired = self.engine.fire(&mut self.state);
                let emitted = fired.map_err(|source| self.failed(source))?;
                self.rows.add(emitted.rows);
                self.more = emitted.more;
                self.reached();
                continue;
            }
            let rows_max = match self.rules.on_error {
                OnError::Stop => 1,
                OnError::DeadLetter => JOINED_ROWS,
            };
            let joined = join(pieces, rows_max);
            if joined.is_empty() {
                return Ok(());
            }
            self.take(&joined)?;
            fail::fail_point!("process::batch_done");
        }
    }

    fn reached(&mut self) {
        if !self.more {
            self.complete = self.engine.progress().watermark;
        }
    }

    /// Takes pieces of one partition that follow on each other.
    fn take(&mut self, joined: &[Decoded]) -> Result<(), RunError> {
        let (Some(first), Some(last)) = (joined.first(), joined.last()) else {
            return Ok(());
        };
        self.arrive(&first.piece.moved)?;
        self.know(first.piece.incarnation.clone());
        let mut dead: Vec<_> = joined.iter().map(|decoded| decoded.dead.clone()).collect();
        self.stop_at(joined, &dead)?;
        for decoded in joined {
            self.events += decoded.piece.columns.len() as u64;
        }
        let full = joined.iter().map(|decoded| &decoded.batch);
        let full: Vec<_> = full.filter(|batch| batch.num_rows() > 0).collect();
        let whole;
        let batch = match full.as_slice() {
            [] => None,
            [one] => Some(*one),
            [one, ..] => {
                let all = concat_batches(one.schema_ref(), full.iter().copied());
                whole = all.map_err(|source| self.misfit(source))?;
                Some(&whole)
            }
        };
        if let Some(batch) = batch {
            let processed = self.engine.process(&mut self.state, batch);
            let emitted = processed.map_err(|source| self.failed(source))?;
            self.gather(joined, emitted, &mut dead)?;
        }
        for rows in &mut dead {
            rows.sort_by_key(|(row, _)| *row);
        }
        self.stop_at(joined, &dead)?;
        for (decoded, rows) in joined.iter().zip(&dead) {
            if !rows.is_empty() {
                let batch = self.rules.dead.batch(decoded, rows);
                self.dead.add(batch.map_err(|source| self.misfit(source))?);
            }
        }
        let (partition, position) = (last.piece.partition, last.piece.position());
        self.dirty |= self.positions.insert(partition, position) != Some(position);
        self.advance(partition, position)?;
        self.reached();
        Ok(())
    }

    /// Whose log the positions of the newest generation count, where that is known.
    pub(super) fn know(&mut self, incarnation: Option<Incarnation>) {
        if incarnation.is_some() && self.incarnation != incarnation {
            self.incarnation = incarnation;
            self.dirty = true;
        }
    }

    /// Positions that moved over offsets without records. The partitions are assigned.
    ///
    /// In a generation that has not begun they are only where it is going to be read from: it begins with what is read.
    pub(super) fn arrive(&mut self, moved: &[(Partition, Position)]) -> Result<(), RunError> {
        let begun = self.engine.generation();
        for (partition, position) in moved {
            self.dirty |= self.positions.insert(*partition, *position) != Some(*position);
            if begun.is_none_or(|begun| position.generation.as_i32() <= begun) {
                self.advance(*partition, *position)?;
            }
        }
        Ok(())
    }

    fn advance(&mut self, partition: Partition, position: Position) -> Result<(), RunError> {
        let (generation, next) = (position.generation.as_i32(), position.offset.get());
        let at = self.engine.progress().partitions.get(&partition.get());
        if at.is_some_and(|at| (at.generation, at.next_offset) >= (generation, next)) {
            return Ok(());
        }
        let advanced = self
            .engine
            .advance(&mut self.state, generation, partition.get(), next);
        let emitted = advanced.map_err(|source| self.failed(source))?;
        // No record, so nothing is late or dead.
        self.rows.add(emitted.rows);
        self.more |= emitted.more;
        Ok(())
    }

    /// Takes what the engine gave for pieces.
    fn gather(
        &mut self,
        joined: &[Decoded],
        emitted: Emitted,
        dead: &mut [Vec<(usize, String)>],
    ) -> Result<(), RunError> {
        self.rows.add(emitted.rows);
        self.more |= emitted.more;
        for (decoded, dead) in joined.iter().zip(dead) {
            dead.extend(left_out(decoded, &emitted.dead));
            let late: Vec<_> = left_out(decoded, &emitted.late).collect();
            if !late.is_empty() {
                let batch = self.rules.late.batch(decoded, &late);
                self.late.add(batch.map_err(|source| self.misfit(source))?);
            }
        }
        Ok(())
    }

    /// With `on_error = "stop"` the first dead letter ends the job, before its position.
    fn stop_at(&self, joined: &[Decoded], dead: &[Vec<(usize, String)>]) -> Result<(), RunError> {
        let firsts = joined
            .iter()
            .zip(dead)
            .map(|(decoded, rows)| (decoded, rows.first()));
        for (decoded, first) in firsts {
            if let Some((row, why)) = first
                && self.rules.on_error == OnError::Stop
            {
                return Err(RunError::BadRecord {
                    topic: self.rules.topic.clone(),
                    generation: decoded.piece.generation,
                    partition: decoded.piece.partition,
                    offset: offset_of(decoded, *row),
                    why: why.clone(),
                });
            }
        }
        Ok(())
    }

    /// Ends the epoch.
    pub(super) fn seal(&mut self) -> Result<Arc<Epoch>, RunError> {
        let stored = Stored {
            watermark: self.complete,
            engine: self.engine.progress().clone(),
            incarnation: self.incarnation.as_ref().map(|i| StoredIncarnation {
                generation: i.generation.0,
                cluster_id: i.identity.cluster_id.clone(),
                topic_id: i.identity.topic_id.map(|id| id.0),
            }),
        };
        let progress = serde_json::to_vec(&stored).map_err(|error| RunError::Progress {
            job: self.rules.job.clone(),
            what: error.to_string(),
        })?;
        let finished = |gathered: &mut Gathered, job: &str| {
            gathered.finish().map_err(|source| RunError::Rows {
                job: job.to_owned(),
                source,
            })
        };
        let sealing = Sealing {
            progress,
            positions: self.positions.clone(),
            rows: finished(&mut self.rows, &self.rules.job)?,
            late: finished(&mut self.late, &self.rules.job)?,
            dead: finished(&mut self.dead, &self.rules.job)?,
        };
        self.dirty = false;
        Ok(self.state.seal(sealing))
    }

    fn failed(&self, source: EngineError) -> RunError {
        RunError::Engine {
            job: self.rules.job.clone(),
            source,
        }
    }

    fn misfit(&self, source: ArrowError) -> RunError {
        RunError::Rows {
            job: self.rules.job.clone(),
            source,
        }
    }
}

/// Takes the first piece out, with as many of its partition as follow and have `rows_max` rows together at most, or are one: the
/// more records of a key the engine sees at once, the less often its state is read and written. Pieces that come with news of
/// other partitions are not passed, nor is the border of a generation.
fn join(pieces: &mut VecDeque<Decoded>, rows_max: usize) -> Vec<Decoded> {
    let Some(first) = pieces.pop_front() else {
        return Vec::new();
    };
    let (generation, partition) = (first.piece.generation, first.piece.partition);
    let mut rows = first.piece.columns.len();
    let mut joined = vec![first];
    let mut place = 0;
    while let Some(next) = pieces.get(place) {
        let news = !next.piece.moved.is_empty() || next.piece.incarnation.is_some();
        if news || next.piece.generation != generation {
            break;
        }
        if next.piece.partition != partition {
            place += 1;
            continue;
        }
        rows = rows.saturating_add(next.piece.columns.len());
        if rows > rows_max {
            break;
        }
        joined.extend(pieces.remove(place));
    }
    joined
}

fn offset_of(decoded: &Decoded, row: usize) -> Offset {
    let offsets = decoded.piece.columns.offsets.values();
    let offset = offsets.get(row).copied().unwrap_or_default();
    Offset::new(offset).unwrap_or_default()
}

/// Rows and reasons of what the engine left out of a piece.
fn left_out<'a>(
    decoded: &'a Decoded,
    batch: &'a RecordBatch,
) -> impl Iterator<Item = (usize, String)> + 'a {
    offsets_and_reasons(batch).filter_map(|(offset, reason)| {
        let row = row_of(&decoded.piece.columns.offsets, offset)?;
        Some((row, reason.to_owned()))
    })
}

/// The first record that the engine left out: its offset and why.
pub(super) fn first_left_out(batch: &RecordBatch) -> Option<(i64, String)> {
    let (offset, reason) = offsets_and_reasons(batch).next()?;
    Some((offset, reason.to_owned()))
}

fn offsets_and_reasons(batch: &RecordBatch) -> impl Iterator<Item = (i64, &str)> {
    let offsets = batch
        .column_by_name("offset")
        .and_then(|column| column.as_primitive_opt::<Int64Type>());
    let reasons = batch
        .column_by_name("reason")
        .and_then(|column| column.as_string_opt::<i32>());
    let pairs = offsets.zip(reasons).map(|(offsets, reasons)| {
        let reasons = reasons.iter().map(Option::unwrap_or_default);
        offsets.values().iter().copied().zip(reasons)
    });
    pairs.into_iter().flatten()
}
