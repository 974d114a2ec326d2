//! Decoded rows in any order in, every partition's rows in offset order out.
//!
//! A *lane* holds one partition's rows that were decoded and not emitted. What lies below the lane's barrier (see
//! [`super::planner`]) is complete and goes out: as a slice where one run is contiguous, merged by offset where runs
//! interleave. What the merger asserts of every row:
//!
//! - it lies where the file said (else [`MergeError::Misplaced`]);
//! - no other row has its offset ([`MergeError::Duplicate`]), none comes after its successors were emitted;
//! - it does not lie in a recorded gap ([`MergeError::InGap`]);
//! - a partition that was read as a whole had as many rows as the ledger says ([`MergeError::RowCount`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use arrow_array::UInt32Array;
use arrow_schema::ArrowError;
use everlog_common::{EventColumns, Gap, Offset, OffsetRange, Partition};

use super::planner::{Origin, Unit, Window};

/// Rows of a batch, at most.
pub const BATCH_ROWS_MAX: usize = 64 << 10;
/// Runs shorter than this are put together, so that finely interleaved or tiny files do not become tiny batches.
const SLICE_ROWS_MIN: usize = 512;
/// Rows that weigh more than this do not wait for others.
const FEW_BYTES: usize = 1 << 20;
/// One row group's runs of a partition are put together where they have fewer rows than this, and weigh little.
const TINY_ROWS: usize = 64;
const TINY_BYTES: usize = 8 << 20;
/// Runs that interleave within one row group are sorted by copying, up to this size: a column holds 2 GiB at most.
const COPY_BYTES_MAX: usize = 512 << 20;
/// Rows that one merge puts together (copies), at most: bounds the time between two looks at the clock.
const MERGE_ROWS_MAX: usize = 8 << 10;

/// Stored data that contradicts itself. Files are the caller's numbers.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The same offset twice.
    #[error("offsets {range} of partition {partition} are there twice")]
    Duplicate {
        /// The partition.
        partition: Partition,
        /// From the first offset seen twice to the end of what both runs cover.
        range: OffsetRange,
        /// Where they are.
        files: (usize, usize),
    },
    /// A row whose turn was over: its file hid it.
    #[error("offset {offset} of partition {partition} comes after {position} was reached")]
    Late {
        /// The partition.
        partition: Partition,
        /// The row.
        offset: Offset,
        /// Where the partition was already.
        position: Offset,
        /// Where the row is.
        file: usize,
    },
    /// Rows outside of the bounds that the file or its manifest entry states.
    #[error("offsets [{first}, {last}] of partition {partition} lie outside of the stated bounds")]
    Misplaced {
        /// The partition.
        partition: Partition,
        /// First of the run.
        first: Offset,
        /// Last of the run.
        last: Offset,
        /// Where the rows are.
        file: usize,
    },
    /// A row where the ledger says that there is none.
    #[error("offset {offset} lies in the recorded gap of {gap}")]
    InGap {
        /// The row.
        offset: Offset,
        /// The gap.
        gap: Gap,
    },
    /// The ledger counted another number of rows.
    #[error("partition {partition} has {found} rows in {range}, the ledger says {due}")]
    RowCount {
        /// The partition.
        partition: Partition,
        /// The whole of it.
        range: OffsetRange,
        /// Rows emitted.
        found: u64,
        /// Rows by the ledger.
        due: u64,
    },
    /// Arrow refused: the columns are not what the reader said.
    #[error("cannot merge decoded columns")]
    Arrow(#[from] ArrowError),
}

/// What is due of one partition.
#[derive(Debug, Clone)]
pub struct LaneSpec {
    /// Wanted offsets: `until` is where the generation's history ends, or earlier.
    pub window: Window,
    /// Recorded gaps that touch the window, in order.
    pub gaps: Vec<Gap>,
    /// The ledger's row count, where the window is all that the ledger has of the partition.
    pub rows_due: Option<u64>,
    /// End before the first record whose timestamp is at or after this (milliseconds).
    pub until_timestamp: Option<i64>,
}

/// How rows are released.
#[derive(Debug, Clone, Copy)]
pub struct Release {
    /// Bytes of one batch, about, at most.
    pub bytes_max: usize,
    /// Whether a few rows wait for more of their partition, while more is to come.
    pub patient: bool,
}

/// What a lane gives.
#[derive(Debug)]
pub enum Step {
    /// Offsets of a partition with their rows; maybe without any.
    Rows(Rows),
    /// A recorded gap was passed.
    Gap(Gap),
    /// A node that was not handed over yet may hold the next row.
    Blocked,
    /// It is through.
    Finished,
}

/// Offsets of a partition with their rows; maybe without any.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The partition.
    pub partition: Partition,
    /// What is covered.
    pub range: OffsetRange,
    /// The rows.
    pub columns: EventColumns,
}

#[derive(Debug)]
struct Run {
    columns: EventColumns,
    bytes: usize,
    origin: Origin,
}

/// What a run costs beside its rows: a thousand partitions' runs of one row each weigh more by themselves than by those.
pub(super) const RUN_BYTES: usize = size_of::<Run>();

impl Run {
    fn new(columns: EventColumns, origin: Origin) -> Self {
        Self {
            bytes: columns.bytes() + RUN_BYTES,
            columns,
            origin,
        }
    }

    fn first(&self) -> Offset {
        self.columns.first_offset().unwrap_or_default()
    }

    /// What one of its rows weighs, about.
    fn row_bytes(&self) -> usize {
        ((self.bytes - RUN_BYTES) / self.columns.len().max(1)).max(1)
    }
}

#[derive(Debug)]
struct Lane {
    partition: Partition,
    spec: LaneSpec,
    gaps: VecDeque<Gap>,
    position: Offset,
    rows: u64,
    /// By first offset; two runs may begin at the same one (a duplicate, found at release).
    runs: BTreeMap<(Offset, u64), Run>,
    bytes: usize,
    /// Rows in all runs.
    waiting: usize,
    stopped: bool,
    finished: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Merger {
    lanes: BTreeMap<Partition, Lane>,
    next_run: u64,
    bytes: usize,
}

impl Merger {
    /// One lane per partition; partitions without one are dropped when they come.
    pub fn new(specs: BTreeMap<Partition, LaneSpec>) -> Self {
        let lanes = specs.into_iter().map(|(partition, spec)| {
            let lane = Lane {
                partition,
                gaps: spec.gaps.iter().copied().collect(),
                position: spec.window.from,
                rows: 0,
                runs: BTreeMap::new(),
                bytes: 0,
                waiting: 0,
                stopped: false,
                finished: false,
                spec,
            };
            (partition, lane)
        });
        Self {
            lanes: lanes.collect(),
            next_run: 0,
            bytes: 0,
        }
    }

    /// Bytes of rows that wait.
    pub fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// The partitions.
    pub fn partitions(&self) -> impl Iterator<Item = Partition> + '_ {
        self.lanes.keys().copied()
    }

    /// Bytes of rows that wait in these lanes.
    pub fn bytes_of(&self, partitions: &BTreeSet<Partition>) -> usize {
        let lanes = partitions.iter().filter_map(|p| self.lanes.get(p));
        lanes.map(|l| l.bytes).sum()
    }

    /// The lane that holds most, besides these, where any holds something.
    pub fn heaviest(&self, besides: &BTreeSet<Partition>) -> Option<Partition> {
        let lanes = self.lanes.values();
        let lanes = lanes.filter(|l| l.bytes > 0 && !besides.contains(&l.partition));
        lanes.max_by_key(|l| l.bytes).map(|l| l.partition)
    }

    /// Whether `partition` has offsets or gaps that were not released.
    pub fn has_more(&self, partition: Partition) -> bool {
        let lane = self.lanes.get(&partition).filter(|l| !l.finished);
        lane.is_some_and(|l| l.position < l.spec.window.until || !l.gaps.is_empty())
    }

    /// Whether `partition` waits for rows or has some.
    pub fn is_finished(&self, partition: Partition) -> bool {
        self.lanes.get(&partition).is_none_or(|l| l.finished)
    }

    /// Where `partition` is.
    pub fn position(&self, partition: Partition) -> Option<Offset> {
        self.lanes.get(&partition).map(|l| l.position)
    }

    /// Where `partition` ended early: the first record at or after the asked timestamp.
    pub fn stopped_at(&self, partition: Partition) -> Option<Offset> {
        let lane = self.lanes.get(&partition)?;
        lane.stopped.then_some(lane.position)
    }

    /// Takes in the rows of `unit`: per partition sorted runs, as [`sorted_runs`] makes them.
    pub fn accept(
        &mut self,
        unit: &Unit,
        runs: Vec<(Partition, EventColumns)>,
    ) -> Result<(), MergeError> {
        for (partition, columns) in runs {
            let (Some(first), Some(last)) = (columns.first_offset(), columns.last_offset()) else {
                continue;
            };
            if unit.again {
                self.accept_again(unit, partition, &columns)?;
                continue;
            }
            if !unit.extent.admits(partition, first, last) {
                return Err(MergeError::Misplaced {
                    partition,
                    first,
                    last,
                    file: unit.origin.file,
                });
            }
            self.hold(unit.origin, partition, columns)?;
        }
        Ok(())
    }

    fn accept_again(
        &mut self,
        unit: &Unit,
        partition: Partition,
        columns: &EventColumns,
    ) -> Result<(), MergeError> {
        let super::planner::Extent::Ranges(ranges) = &unit.extent else {
            return Ok(());
        };
        for (_, range) in ranges.iter().filter(|(p, _)| *p == partition) {
            let part = columns.slice_offsets(range.start(), range.end());
            self.hold(unit.origin, partition, part)?;
        }
        Ok(())
    }

    fn hold(
        &mut self,
        origin: Origin,
        partition: Partition,
        columns: EventColumns,
    ) -> Result<(), MergeError> {
        let Some(lane) = self.lanes.get_mut(&partition) else {
            return Ok(());
        };
        if lane.finished {
            return Ok(());
        }
        let columns = columns.slice_offsets(lane.spec.window.from, lane.spec.window.until);
        let Some(first) = columns.first_offset() else {
            return Ok(());
        };
        if first < lane.position {
            return Err(MergeError::Late {
                partition,
                offset: first,
                position: lane.position,
                file: origin.file,
            });
        }
        let run = Run::new(columns, origin);
        self.bytes += run.bytes;
        lane.insert(first, run, &mut self.next_run);
        Ok(())
    }

    /// The next step of `partition`, as `how` says. `barrier` is what [`super::planner::Planner::barrier`] says now.
    pub fn release(
        &mut self,
        partition: Partition,
        barrier: Option<Offset>,
        how: Release,
    ) -> Result<Step, MergeError> {
        let Some(lane) = self.lanes.get_mut(&partition) else {
            return Ok(Step::Finished);
        };
        let before = lane.bytes;
        let step = lane.release(barrier, how, &mut self.next_run);
        self.bytes = self.bytes + lane.bytes - before;
        step
    }

    /// Copies what is held of `origin` when that is the smaller part of it, so that the larger part's memory is free.
    pub fn settle(&mut self, origin: Origin) -> Result<(), MergeError> {
        let held: usize = self
            .lanes
            .values()
            .flat_map(|l| l.runs.values())
            .filter(|r| r.origin == origin)
            .map(|r| r.bytes - RUN_BYTES)
            .sum();
        if held == 0 || held > origin.bytes / 2 {
            return Ok(());
        }
        for lane in self.lanes.values_mut() {
            for run in lane.runs.values_mut().filter(|r| r.origin == origin) {
                run.columns = copy_rows(&run.columns, run.columns.len())?;
            }
        }
        Ok(())
    }

    /// Gives up rows, farthest first and of the heaviest lanes first, until no more than `budget` bytes are held. Every
    /// lane keeps its next rows up to `floor` bytes, `keep` up to half of the budget.
    pub fn trim(
        &mut self,
        budget: usize,
        floor: usize,
        keep: Option<Partition>,
    ) -> Result<GivenUp, MergeError> {
        let mut given_up = GivenUp::new();
        while self.bytes > budget {
            let floor_of = |p| {
                if Some(p) == keep {
                    floor.max(budget / 2)
                } else {
                    floor
                }
            };
            let heaviest = self
                .lanes
                .values_mut()
                .filter(|l| l.bytes > floor_of(l.partition) && l.can_shrink())
                .max_by_key(|l| l.bytes - floor_of(l.partition));
            let Some(lane) = heaviest else { break };
            let before = lane.bytes;
            let target = floor_of(lane.partition);
            let over = (self.bytes - budget).min(before - target);
            let (origin, range) = lane.shrink(over, &mut self.next_run)?;
            self.bytes = self.bytes + lane.bytes - before;
            given_up
                .entry(origin)
                .or_default()
                .push((lane.partition, range));
        }
        Ok(given_up)
    }

    /// Gives up rows of these lanes, farthest first, until they hold no more than `budget` bytes together, or their next
    /// row each.
    pub fn trim_of(
        &mut self,
        partitions: &BTreeSet<Partition>,
        budget: usize,
    ) -> Result<GivenUp, MergeError> {
        let mut given_up = GivenUp::new();
        let mut held = self.bytes_of(partitions);
        while held > budget {
            let lanes = self.lanes.values_mut();
            let lanes = lanes.filter(|l| partitions.contains(&l.partition) && l.can_shrink());
            let Some(lane) = lanes.max_by_key(|l| l.bytes) else {
                break;
            };
            let before = lane.bytes;
            let (origin, range) = lane.shrink(held - budget, &mut self.next_run)?;
            self.bytes = self.bytes + lane.bytes - before;
            held = held + lane.bytes - before;
            let ranges = given_up.entry(origin).or_default();
            ranges.push((lane.partition, range));
        }
        Ok(given_up)
    }
}

/// Rows that were decoded and given up again, by where they are.
pub type GivenUp = BTreeMap<Origin, Vec<(Partition, OffsetRange)>>;

impl Lane {
    fn release(
        &mut self,
        barrier: Option<Offset>,
        how: Release,
        next_run: &mut u64,
    ) -> Result<Step, MergeError> {
        if self.finished {
            return Ok(Step::Finished);
        }
        let end = self.spec.window.until;
        let complete = barrier.unwrap_or(end).min(end);
        let head = self.runs.keys().next().map(|(first, _)| *first);
        let mut stop = complete;
        if let Some(gap) = self.gaps.front().copied() {
            let inside = |h: &Offset| *h >= gap.start && gap.end.is_none_or(|end| *h < end);
            if let Some(offset) = head.filter(inside) {
                return Err(MergeError::InGap { offset, gap });
            }
            // Passed once it is known that no row lies in it.
            let behind = gap.end.map_or(gap.start, |gap_end| gap_end.min(end));
            if complete >= behind && head.is_none_or(|h| h >= gap.start) {
                return Ok(self.pass(gap));
            }
            stop = stop.min(gap.start);
        }
        let few = self.waiting < SLICE_ROWS_MIN && self.bytes < FEW_BYTES;
        if how.patient && few && complete < end {
            return Ok(Step::Blocked);
        }
        if head.is_some_and(|h| h < stop) {
            let columns = self.take_below(stop, how.bytes_max, next_run)?;
            return Ok(self.emit(columns));
        }
        if complete < end {
            return Ok(Step::Blocked);
        }
        match self.advance(end, EventColumns::empty()) {
            Some(rows) => Ok(Step::Rows(rows)),
            None => self.finish().map(|()| Step::Finished),
        }
    }

    /// Reaches a gap: first the position moves up to it, then it is passed.
    fn pass(&mut self, gap: Gap) -> Step {
        if let Some(rows) = self.advance(gap.start, EventColumns::empty()) {
            return Step::Rows(rows);
        }
        self.gaps.pop_front();
        let after = gap.end.unwrap_or(gap.start).min(self.spec.window.until);
        self.position = self.position.max(after);
        Step::Gap(gap)
    }

    fn emit(&mut self, columns: EventColumns) -> Step {
        let stop = self
            .spec
            .until_timestamp
            .and_then(|at| first_at_or_after(&columns, at));
        let (after, columns) = match stop {
            Some(row) => {
                let offset = Offset::new(columns.offsets.value(row)).unwrap_or_default();
                self.stop_at(offset);
                (offset, columns.slice(0, row))
            }
            None => (
                columns.last_offset().map_or(self.position, Offset::next),
                columns,
            ),
        };
        self.rows += columns.len() as u64;
        self.advance(after, columns)
            .map_or(Step::Finished, Step::Rows)
    }

    /// Moves the position; none where it is there already.
    fn advance(&mut self, to: Offset, columns: EventColumns) -> Option<Rows> {
        let range = OffsetRange::new(self.position, to).ok()?;
        self.position = to;
        Some(Rows {
            partition: self.partition,
            range,
            columns,
        })
    }

    fn stop_at(&mut self, offset: Offset) {
        self.stopped = true;
        self.finished = true;
        self.spec.window.until = offset;
        self.spec.rows_due = None;
        self.gaps.clear();
        self.runs.clear();
        (self.bytes, self.waiting) = (0, 0);
    }

    fn insert(&mut self, first: Offset, run: Run, next_run: &mut u64) {
        self.bytes += run.bytes;
        self.waiting += run.columns.len();
        self.runs.insert((first, *next_run), run);
        *next_run += 1;
    }

    fn taken(&mut self, run: Run) -> Run {
        self.bytes -= run.bytes;
        self.waiting -= run.columns.len();
        run
    }

    fn finish(&mut self) -> Result<(), MergeError> {
        self.finished = true;
        let window = OffsetRange::new(self.spec.window.from, self.spec.window.until);
        match (self.spec.rows_due, window) {
            (Some(due), Ok(range)) if due != self.rows => Err(MergeError::RowCount {
                partition: self.partition,
                range,
                found: self.rows,
                due,
            }),
            _ => Ok(()),
        }
    }

    /// The next rows below `stop`; there is at least one.
    fn take_below(
        &mut self,
        stop: Offset,
        bytes_max: usize,
        next_run: &mut u64,
    ) -> Result<EventColumns, MergeError> {
        let mut runs = self.runs.iter();
        let (key, first) = runs.next().expect("the caller saw a row below `stop`");
        let key = *key;
        let per_row = first.row_bytes();
        let rows_max = (bytes_max / per_row).clamp(1, BATCH_ROWS_MAX);
        let second = runs.next().map(|((offset, _), _)| *offset);
        let until = second.map_or(stop, |second| second.min(stop));
        let alone = first.columns.slice_offsets(first.first(), until);
        let more_follows = second.is_some_and(|second| second < stop);
        if more_follows && alone.len() < SLICE_ROWS_MIN.min(rows_max) {
            let rows_max = rows_max.min(MERGE_ROWS_MAX);
            return self.merge_below(stop, (rows_max, bytes_max), next_run);
        }
        let columns = alone.slice(0, alone.len().min(rows_max));
        self.shorten(key, columns.len(), next_run);
        Ok(columns)
    }

    /// Takes the first `rows` rows off a run.
    fn shorten(&mut self, key: (Offset, u64), rows: usize, next_run: &mut u64) {
        let Some(run) = self.runs.remove(&key) else {
            return;
        };
        let run = self.taken(run);
        let rest = run.columns.slice(rows, run.columns.len() - rows);
        if let Some(first) = rest.first_offset() {
            self.insert(first, Run::new(rest, run.origin), next_run);
        }
    }

    /// Merges the heads of all runs that begin below `stop`, as far as their next rows are all at hand.
    fn merge_below(
        &mut self,
        stop: Offset,
        (rows_max, bytes_max): (usize, usize),
        next_run: &mut u64,
    ) -> Result<EventColumns, MergeError> {
        let keys: Vec<(Offset, u64)> = self
            .runs
            .keys()
            .take_while(|(first, _)| *first < stop)
            .take(rows_max)
            .copied()
            .collect();
        let share = |run: &Run| {
            let rows = (bytes_max / run.row_bytes()).min(rows_max);
            (rows / keys.len()).max(1)
        };
        // Each run gives at most its share of rows, so the merge may not pass the first row that a run keeps back, nor the
        // first run that is left out.
        let left_out = self.runs.keys().nth(keys.len()).map(|(first, _)| *first);
        let kept_back = keys
            .iter()
            .map(|key| &self.runs[key])
            .filter_map(|run| run.columns.offsets.values().get(share(run)))
            .filter_map(|&o| Offset::new(o).ok());
        // Two runs that begin at the same offset are a duplicate: past it, so that it is found.
        let limit = kept_back
            .chain(left_out)
            .fold(stop, Offset::min)
            .max(keys[0].0.next());
        let mut parts = Vec::with_capacity(keys.len());
        for key in keys {
            let run = &self.runs[&key];
            let part = run.columns.slice_offsets(key.0, limit);
            if !part.is_empty() {
                parts.push((part, run.origin));
                let rows = parts.last().map_or(0, |(p, _)| p.len());
                self.shorten(key, rows, next_run);
            }
        }
        merge(self.partition, &parts)
    }

    fn can_shrink(&self) -> bool {
        self.runs.len() > 1 || self.runs.values().any(|r| r.columns.len() > 1)
    }

    /// Gives up about `over` bytes of the farthest run.
    fn shrink(
        &mut self,
        over: usize,
        next_run: &mut u64,
    ) -> Result<(Origin, OffsetRange), MergeError> {
        let (_, run) = self.runs.pop_last().expect("can_shrink was asked");
        let run = self.taken(run);
        let rows = run.columns.len();
        let whole = !self.runs.is_empty() && run.bytes <= over;
        let keep = if whole {
            0
        } else {
            // What stays is copied, so that the memory of what goes is really free; at least one row goes.
            let part = rows.saturating_mul(run.bytes.saturating_sub(over)) / run.bytes.max(1);
            part.clamp(usize::from(self.runs.is_empty()), rows - 1)
        };
        let gone = run.columns.slice(keep, rows - keep);
        if keep > 0 {
            let kept = Run::new(copy_rows(&run.columns, keep)?, run.origin);
            self.insert(kept.first(), kept, next_run);
        }
        let first = gone.first_offset().unwrap_or_default();
        let last = gone.last_offset().unwrap_or_default();
        let range = OffsetRange::new(first, last.next())
            .map_err(|e| ArrowError::ComputeError(e.to_string()))?;
        Ok((run.origin, range))
    }
}

/// The first `rows` rows in memory of their own.
fn copy_rows(columns: &EventColumns, rows: usize) -> Result<EventColumns, ArrowError> {
    columns.take(&UInt32Array::from_iter_values(
        0..u32::try_from(rows).unwrap_or(u32::MAX),
    ))
}

/// The first row whose timestamp is at or after `at`; a record without a timestamp is never one.
pub fn first_at_or_after(columns: &EventColumns, at: i64) -> Option<usize> {
    let stamps = columns.timestamps.values().iter();
    let kinds = columns.timestamp_types.values().iter();
    stamps
        .zip(kinds)
        .position(|(ts, kind)| *ts >= at && *kind >= 0)
}

/// All rows of `parts`, each sorted, by offset.
fn merge(
    partition: Partition,
    parts: &[(EventColumns, Origin)],
) -> Result<EventColumns, MergeError> {
    let ordered = parts
        .windows(2)
        .all(|w| w[0].0.last_offset() < w[1].0.first_offset());
    let columns: Vec<EventColumns> = parts.iter().map(|(c, _)| c.clone()).collect();
    if ordered {
        return Ok(EventColumns::concat(&columns)?);
    }
    let mut starts = Vec::with_capacity(parts.len());
    let mut total = 0_u32;
    for part in &columns {
        starts.push(total);
        total += u32::try_from(part.len()).unwrap_or(u32::MAX);
    }
    let mut heads: BinaryHeap<Reverse<(i64, usize, usize)>> = columns
        .iter()
        .enumerate()
        .filter(|(_, c)| !c.is_empty())
        .map(|(i, c)| Reverse((c.offsets.value(0), i, 0)))
        .collect();
    let mut indices = Vec::with_capacity(total as usize);
    let mut previous: Option<(i64, usize)> = None;
    while let Some(Reverse((offset, part, row))) = heads.pop() {
        if let Some((_, other)) = previous.filter(|(o, _)| *o == offset) {
            let last = columns[part]
                .last_offset()
                .min(columns[other].last_offset());
            let first = Offset::new(offset).unwrap_or_default();
            return Err(duplicate(
                partition,
                first,
                last,
                (parts[other].1.file, parts[part].1.file),
            ));
        }
        previous = Some((offset, part));
        indices.push(starts[part] + u32::try_from(row).unwrap_or(u32::MAX));
        if let Some(next) = columns[part].offsets.values().get(row + 1) {
            heads.push(Reverse((*next, part, row + 1)));
        }
    }
    let all = EventColumns::concat(&columns)?;
    Ok(all.take(&UInt32Array::from(indices))?)
}

fn duplicate(
    partition: Partition,
    first: Offset,
    last: Option<Offset>,
    files: (usize, usize),
) -> MergeError {
    let end = last.unwrap_or(first).max(first).next();
    match OffsetRange::new(first, end) {
        Ok(range) => MergeError::Duplicate {
            partition,
            range,
            files,
        },
        Err(_) => MergeError::Late {
            partition,
            offset: first,
            position: first,
            file: files.1,
        },
    }
}

/// Puts one row group's runs (each increasing, together in any order) into as few sorted runs per partition as need no
/// copy, or into one by copying when they interleave. For a blocking thread.
pub fn sorted_runs(
    file: usize,
    runs: Vec<(Partition, EventColumns)>,
) -> Result<Vec<(Partition, EventColumns)>, MergeError> {
    let mut per_partition: BTreeMap<Partition, Vec<EventColumns>> = BTreeMap::new();
    for (partition, columns) in runs {
        if !columns.is_empty() {
            per_partition.entry(partition).or_default().push(columns);
        }
    }
    let mut sorted = Vec::new();
    for (partition, mut parts) in per_partition {
        parts.sort_by_key(EventColumns::first_offset);
        let disjoint = parts
            .windows(2)
            .all(|w| w[0].last_offset() < w[1].first_offset());
        let rows: usize = parts.iter().map(EventColumns::len).sum();
        let bytes: usize = parts.iter().map(EventColumns::bytes).sum();
        let tiny = parts.len() > 1 && rows / parts.len() < TINY_ROWS && bytes < TINY_BYTES;
        // Too much for one column: the lane merges it piece by piece.
        let huge = bytes > COPY_BYTES_MAX;
        if huge || (disjoint && !tiny) {
            sorted.extend(parts.into_iter().map(|columns| (partition, columns)));
            continue;
        }
        let origin = Origin {
            file,
            row_group: 0,
            bytes: 0,
        };
        let parts: Vec<(EventColumns, Origin)> = parts.into_iter().map(|c| (c, origin)).collect();
        sorted.push((partition, merge(partition, &parts)?));
    }
    Ok(sorted)
}
