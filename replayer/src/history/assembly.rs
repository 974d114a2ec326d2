//! Planner, merger and timeline as one: what to read next, and what is ready to be emitted. No I/O, so that the very
//! same code is driven by the scanner and by property tests.
//!
//! Memory: what waits in lanes stays within [`Limits::hold_bytes`]. Beyond three quarters of it reading goes by *focus*:
//! only what the heaviest lane (or, by time, the lane without a next row) waits for. Beyond all of it the farthest rows
//! are given up and decoded again when their turn comes. Below a quarter of it a few rows of a partition wait for more, so
//! that they become batches. So any layout is read in bounded memory; a layout that keeps
//! to the order of the log is read once.
//!
//! Lanes that are held back keep a quarter of that memory together; rows of theirs beyond it, that came with rows of
//! others, are given up at once.

use std::collections::{BTreeMap, BTreeSet};

use everlog_common::{EventColumns, Gap, Offset, Partition};

use super::merger::{LaneSpec, MergeError, Merger, Release, Rows, Step};
use super::planner::{FileFacts, GroupFacts, Needed, NodeId, Planner, Unit, Window};
use super::timeline::{TimeStep, Timeline};
use crate::request::Order;

/// Bytes of one batch, at most (about).
const BATCH_BYTES_MAX: usize = 8 << 20;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of decoded rows that wait for others.
    pub hold_bytes: usize,
    /// Bytes of row groups that are being decoded.
    pub decode_bytes: usize,
    /// Row groups that are being decoded.
    pub units: usize,
    /// Files that are being opened, and opened ones that wait.
    pub files: usize,
}

/// Something to read.
#[derive(Debug)]
pub enum Work {
    /// Open a file, then call [`Assembly::opened`].
    Open(NodeId, usize),
    /// Decode a row group, then call [`Assembly::decoded`].
    Decode(Unit),
}

/// What is ready.
#[derive(Debug)]
pub enum Ready {
    /// Rows, in order.
    Rows(Rows),
    /// A recorded gap was passed.
    Gap(Gap),
    /// Nothing before more was read.
    Waiting,
    /// Everything is out.
    Finished,
}

/// See the module's text.
#[derive(Debug)]
pub struct Assembly {
    planner: Planner,
    merger: Merger,
    timeline: Option<Timeline>,
    limits: Limits,
    /// Lanes that may have something to give, held ones too.
    active: BTreeSet<Partition>,
    /// Lanes that give nothing now.
    held: BTreeSet<Partition>,
    /// Whether a few rows of a partition wait for more of it: until memory gets short, so that topics of many quiet
    /// partitions, whose commits hold a row or two of each, do not come out row by row.
    patient: bool,
    unfinished: usize,
    /// The lane that everything is read for while memory is short; by time, the one whose next row is not known.
    focus: Option<Partition>,
    decoding: BTreeMap<NodeId, Unit>,
    opening: usize,
    unsettled: Vec<super::planner::Origin>,
    decoded_units: u64,
    decoded_again: u64,
}

impl Assembly {
    /// Over the files of a snapshot that may hold rows of the lanes.
    pub fn new(
        lanes: BTreeMap<Partition, LaneSpec>,
        files: impl IntoIterator<Item = FileFacts>,
        order: Order,
        limits: Limits,
    ) -> Self {
        let windows: BTreeMap<Partition, Window> =
            lanes.iter().map(|(p, spec)| (*p, spec.window)).collect();
        let active: BTreeSet<Partition> = lanes.keys().copied().collect();
        Self {
            planner: Planner::new(&windows, files),
            timeline: (order == Order::Time).then(|| Timeline::new(active.iter().copied())),
            merger: Merger::new(lanes),
            limits,
            unfinished: active.len(),
            active,
            held: BTreeSet::new(),
            patient: true,
            focus: None,
            decoding: BTreeMap::new(),
            opening: 0,
            unsettled: Vec::new(),
            decoded_units: 0,
            decoded_again: 0,
        }
    }

    /// Holds these partitions back from now on, and no others: nothing of them is ready, nothing is read for them alone,
    /// and what comes of them with others' rows has its own, smaller part of the memory. By time there is nothing to hold:
    /// every partition waits for every other one.
    ///
    /// What is held blocks nobody else. [`Ready::Waiting`] without work means that all that is left is held.
    pub fn hold(&mut self, held: &BTreeSet<Partition>) {
        if self.timeline.is_some() || self.held == *held {
            return;
        }
        self.held.clone_from(held);
        self.focus = self.focus.filter(|p| !held.contains(p));
        self.planner.hold(held);
    }

    /// Whether `partition` has something that did not come out yet.
    pub fn has_more(&self, partition: Partition) -> bool {
        self.merger.has_more(partition)
    }

    fn next_active(&self) -> Option<Partition> {
        let mut active = self.active.iter();
        active.find(|p| !self.held.contains(p)).copied()
    }

    /// What is ready now.
    pub fn next(&mut self) -> Result<Ready, MergeError> {
        let ready = if self.timeline.is_some() {
            self.next_by_time()?
        } else {
            self.next_by_partition()?
        };
        if matches!(ready, Ready::Waiting) {
            self.make_room()?;
        }
        Ok(ready)
    }

    fn next_by_partition(&mut self) -> Result<Ready, MergeError> {
        let free = self.merger.held_bytes() - self.merger.bytes_of(&self.held);
        if free >= self.limits.hold_bytes / 4 {
            self.patient = false;
        }
        let how = Release {
            bytes_max: BATCH_BYTES_MAX,
            patient: self.patient,
        };
        while let Some(partition) = self.next_active() {
            let barrier = self.planner.barrier(partition);
            match self.merger.release(partition, barrier, how)? {
                Step::Rows(rows) => return Ok(Ready::Rows(rows)),
                Step::Gap(gap) => return Ok(Ready::Gap(gap)),
                Step::Blocked => {
                    self.active.remove(&partition);
                }
                Step::Finished => {
                    self.active.remove(&partition);
                    self.finish(partition);
                }
            }
        }
        // Not before everything that waited is out: else it would go on row by row at the border.
        self.patient = true;
        Ok(if self.unfinished == 0 {
            Ready::Finished
        } else {
            Ready::Waiting
        })
    }

    fn next_by_time(&mut self) -> Result<Ready, MergeError> {
        let Some(timeline) = self.timeline.as_mut() else {
            return Ok(Ready::Finished);
        };
        let (planner, merger) = (&mut self.planner, &mut self.merger);
        let share = self.limits.hold_bytes / 2 / self.active.len().max(1);
        let how = Release {
            bytes_max: share.min(BATCH_BYTES_MAX),
            patient: false,
        };
        let step = timeline.next(|partition| {
            let barrier = planner.barrier(partition);
            let step = merger.release(partition, barrier, how)?;
            if let (Step::Finished, Some(end)) = (&step, merger.position(partition)) {
                planner.end_at(partition, end);
            }
            Ok(step)
        })?;
        Ok(match step {
            TimeStep::Rows(rows) => Ready::Rows(rows),
            TimeStep::Gap(gap) => Ready::Gap(gap),
            TimeStep::Finished => Ready::Finished,
            TimeStep::Blocked(partition) => {
                self.focus = Some(partition);
                Ready::Waiting
            }
        })
    }

    fn finish(&mut self, partition: Partition) {
        self.unfinished -= 1;
        if self.focus == Some(partition) {
            self.focus = None;
        }
        if let Some(end) = self.merger.position(partition)
            && self.planner.end_at(partition, end)
        {
            self.wake();
        }
    }

    /// Everything that could go out is out: what stays is put into as little memory as allowed.
    fn make_room(&mut self) -> Result<(), MergeError> {
        for origin in std::mem::take(&mut self.unsettled) {
            self.merger.settle(origin)?;
        }
        let by_time = self.timeline.is_some();
        let hold = self.limits.hold_bytes;
        // Before anything else: reading on must not wait for what nobody takes.
        let aside = self.merger.trim_of(&self.held, hold / 4)?;
        for (origin, ranges) in aside {
            self.planner.put_back(origin, ranges);
        }
        if !by_time {
            let held = self.merger.held_bytes();
            if held > hold / 4 * 3 {
                self.focus = self.focus.or(self.merger.heaviest(&self.held));
            } else if held < hold / 2 {
                self.focus = None;
            }
        }
        let floor = if by_time {
            hold / 4 / self.active.len().max(1)
        } else {
            0
        };
        for (origin, ranges) in self.merger.trim(hold, floor, self.focus)? {
            self.planner.put_back(origin, ranges);
        }
        Ok(())
    }

    /// What to read now. To be asked after [`Assembly::next`] said [`Ready::Waiting`], or at any time to read ahead.
    pub fn work(&mut self) -> Option<Work> {
        let held =
            self.merger.held_bytes() + self.timeline.as_ref().map_or(0, Timeline::held_bytes);
        // By partition the focus stays until half of the memory is free again: what else was read meanwhile would be given up.
        let by_time = self.timeline.is_some();
        let short = held > self.limits.hold_bytes / 4 * 3 || (self.focus.is_some() && !by_time);
        let weight: usize = self.decoding.values().map(|u| u.origin.bytes).sum();
        let full = self.decoding.len() >= self.limits.units || weight >= self.limits.decode_bytes;
        // One that is larger than all of it is decoded alone.
        let fits = match self.decoding.len() {
            0 => usize::MAX,
            _ => self.limits.decode_bytes.saturating_sub(weight),
        };
        if let Some(partition) = self.focus.filter(|_| !full) {
            match self.planner.take_for(partition, fits) {
                Some(Needed::File(node, file)) => return Some(self.open(node, file)),
                Some(Needed::Unit(unit)) => return Some(self.decode(unit)),
                None => {}
            }
        }
        // While memory is short, only what the focus needs is read; when nothing is being read for it, it must not wait.
        let idle = self.decoding.is_empty() && self.opening == 0;
        if short && !(idle && self.focus.is_none()) {
            return None;
        }
        // What was given up once is not read ahead again before there is room to keep it.
        let room = idle || held < self.limits.hold_bytes / 2;
        if !full && let Some(unit) = self.planner.take_unit(fits, room) {
            return Some(self.decode(unit));
        }
        // Opened row groups may wait for a file that comes before them in turn.
        let ahead = self.opening + self.planner.opened_groups();
        let stalled = self.opening == 0 && self.decoding.is_empty();
        if (ahead < self.limits.files || stalled)
            && let Some((node, file)) = self.planner.take_file()
        {
            return Some(self.open(node, file));
        }
        None
    }

    fn open(&mut self, node: NodeId, file: usize) -> Work {
        self.opening += 1;
        Work::Open(node, file)
    }

    fn decode(&mut self, unit: Unit) -> Work {
        self.decoded_again += u64::from(unit.again);
        self.decoded_units += 1;
        self.decoding.insert(unit.node, unit.clone());
        Work::Decode(unit)
    }

    /// A file's footer was read.
    pub fn opened(&mut self, node: NodeId, groups: Vec<GroupFacts>) {
        self.opening = self.opening.saturating_sub(1);
        self.planner.opened(node, groups);
        self.wake();
    }

    /// A row group was decoded, its rows as [`super::merger::sorted_runs`] gives them.
    pub fn decoded(
        &mut self,
        node: NodeId,
        runs: Vec<(Partition, EventColumns)>,
    ) -> Result<(), MergeError> {
        let Some(unit) = self.decoding.remove(&node) else {
            return Ok(());
        };
        self.merger.accept(&unit, runs)?;
        self.planner.decoded(node);
        self.unsettled.push(unit.origin);
        self.wake();
        Ok(())
    }

    fn wake(&mut self) {
        let merger = &self.merger;
        self.active
            .extend(merger.partitions().filter(|p| !merger.is_finished(*p)));
    }

    /// Where a partition ended before its window did: the first record at or after the asked timestamp.
    pub fn stopped_at(&self, partition: Partition) -> Option<Offset> {
        self.merger.stopped_at(partition)
    }

    /// The partitions that ended so.
    pub fn stopped(&self) -> impl Iterator<Item = Partition> + '_ {
        let partitions = self.merger.partitions();
        partitions.filter(|p| self.merger.stopped_at(*p).is_some())
    }

    /// Files and row groups that nobody took yet.
    pub fn waiting(&self) -> usize {
        self.planner.waiting()
    }

    /// Row groups decoded so far, and how many of them again.
    pub fn decoded_units(&self) -> (u64, u64) {
        (self.decoded_units, self.decoded_again)
    }
}

#[cfg(test)]
mod tests;
