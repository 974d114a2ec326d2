//! What of a snapshot is still to be emitted: ledger, positions and request as lanes, generation by generation.
//!
//! | position of the partition | in generation g |
//! |---|---|
//! | a later generation | nothing |
//! | in g | from the position up to the ledger's `next`; a recorded gap on the way is an item of its own |
//! | an earlier generation, or none | all of it, from the ledger's `first` |
//!
//! The end of the newest generation is also bounded by where the replay stops.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use everlog_common::{
    Entry, Gap, GapReason, Generation, Ledger, Millis, Offset, Partition, Position, Positions,
};

use super::merger::LaneSpec;
use super::planner::Window;
use crate::request::From;

/// Where a replay stops, besides at its tiers' ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stops {
    /// Per partition of this generation: the first offset that is not wanted any more. Partitions that are not named, and
    /// later generations, are not wanted at all.
    pub offsets: Option<(Generation, BTreeMap<Partition, Offset>)>,
    /// Before the first record whose timestamp is at or after this.
    pub timestamp: Option<i64>,
}

impl Stops {
    /// Where `partition` of `generation` stops, if it does.
    pub fn offset(&self, generation: Generation, partition: Partition) -> Option<Offset> {
        let (at, offsets) = self.offsets.as_ref()?;
        match generation.cmp(at) {
            Ordering::Less => None,
            Ordering::Equal => Some(offsets.get(&partition).copied().unwrap_or_default()),
            Ordering::Greater => Some(Offset::ZERO),
        }
    }
}

/// What to emit.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// The snapshot's ledger.
    pub ledger: &'a Ledger,
    /// Where partitions are; those not in there begin at `from`.
    pub positions: &'a Positions,
    /// Where the others begin. A timestamp has been turned into positions before; what it left begins at the end.
    pub from: From,
    /// The partitions asked for; none: all.
    pub wanted: Option<&'a BTreeSet<Partition>>,
    /// Where to stop.
    pub stops: &'a Stops,
    /// Gaps that were passed already.
    pub passed: &'a [Gap],
}

/// One generation's part of it.
#[derive(Debug, Clone)]
pub struct Phase {
    /// The era.
    pub generation: Generation,
    /// What is due of each partition; those with nothing to emit are absent.
    pub lanes: BTreeMap<Partition, LaneSpec>,
    /// Rows that are due, by the ledger's counts (where only a part of a partition is wanted, about).
    pub rows: u64,
}

impl Selection<'_> {
    /// The generations that have something to emit, ascending.
    pub fn phases(&self) -> Vec<Phase> {
        let generations = self.ledger.generations.iter();
        let phases = generations.map(|(generation, era)| {
            let mut phase = Phase {
                generation: *generation,
                lanes: BTreeMap::new(),
                rows: 0,
            };
            for (partition, entry) in &era.partitions {
                if self.wanted.is_some_and(|w| !w.contains(partition)) {
                    continue;
                }
                if let Some(lane) = self.lane(*generation, *partition, entry) {
                    phase.rows += rows_of(entry, lane.window);
                    phase.lanes.insert(*partition, lane);
                }
            }
            phase
        });
        phases.filter(|phase| !phase.lanes.is_empty()).collect()
    }

    /// Where each partition begins, for those that the ledger has: a value for [`everlog_common::Positions`] before the
    /// first record.
    pub fn starts(&self) -> Positions {
        let mut starts = Positions::new();
        for (generation, era) in &self.ledger.generations {
            for (partition, entry) in &era.partitions {
                let wanted = self.wanted.is_none_or(|w| w.contains(partition));
                let due = self.start(*partition);
                if !wanted || starts.contains_key(partition) || due.generation > *generation {
                    continue;
                }
                let position = Position {
                    generation: *generation,
                    offset: self.first_wanted(*generation, *partition, entry, due),
                };
                starts.insert(*partition, position);
            }
        }
        for (partition, position) in self.positions {
            starts.insert(*partition, *position);
        }
        starts
    }

    /// Whether an offset was asked for by number, so that a missing one is a gap and not just the beginning.
    fn explicit(&self, partition: Partition) -> bool {
        self.positions.contains_key(&partition) || matches!(self.from, From::Offset { .. })
    }

    fn first_wanted(
        &self,
        generation: Generation,
        partition: Partition,
        entry: &Entry,
        start: Position,
    ) -> Offset {
        if start.generation < generation {
            entry.first
        } else if self.explicit(partition) {
            start.offset
        } else {
            start.offset.max(entry.first)
        }
    }

    fn start(&self, partition: Partition) -> Position {
        if let Some(position) = self.positions.get(&partition) {
            return *position;
        }
        let newest = self.ledger.newest().map_or(Generation::FIRST, |(g, _)| g);
        match self.from {
            From::Beginning => Position {
                generation: Generation::FIRST,
                offset: Offset::ZERO,
            },
            From::Offset { generation, offset } => Position {
                generation: generation.unwrap_or(newest),
                offset,
            },
            // No record at or after it in the archive: nothing of the archive is wanted.
            From::Timestamp(_) => {
                let entry = self.ledger.entry(newest, partition);
                Position {
                    generation: newest,
                    offset: entry.map_or(Offset::ZERO, |e| e.next),
                }
            }
        }
    }

    fn lane(
        &self,
        generation: Generation,
        partition: Partition,
        entry: &Entry,
    ) -> Option<LaneSpec> {
        let start = self.start(partition);
        if start.generation > generation {
            return None;
        }
        let from = self.first_wanted(generation, partition, entry, start);
        let stop = self.stops.offset(generation, partition);
        let until = stop.map_or(entry.next, |stop| stop.min(entry.next));
        let mut gaps = Vec::new();
        // Asked for by number, but never archived since Kafka did not have it any more.
        if from < entry.first && from < until {
            gaps.push(Gap {
                generation,
                partition,
                start: from,
                end: Some(entry.first),
                reason: GapReason::Retention,
                at: Millis(0),
            });
        }
        let recorded = self.ledger.gaps_of(generation, partition);
        gaps.extend(recorded.into_iter().filter(|gap| match gap.end {
            _ if self.passed.contains(gap) => false,
            Some(end) => from < end && gap.start < until,
            // The generation's end: passed whenever the generation is left behind, also from beyond it.
            None => stop.is_none_or(|stop| gap.start < stop),
        }));
        if from >= until && gaps.is_empty() {
            return None;
        }
        let window = Window {
            from,
            until: until.max(from),
        };
        let whole = from <= entry.first && until >= entry.next && self.stops.timestamp.is_none();
        Some(LaneSpec {
            window,
            gaps,
            rows_due: whole.then_some(entry.rows),
            until_timestamp: self.stops.timestamp,
        })
    }
}

/// Rows in a window, by the partition's average density.
fn rows_of(entry: &Entry, window: Window) -> u64 {
    let all = entry.next.since(entry.first);
    let part = window.until.since(window.from.max(entry.first)).min(all);
    let rows = u128::from(entry.rows) * u128::from(part) / u128::from(all.max(1));
    u64::try_from(rows).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use everlog_common::ledger::GenerationLedger;

    use super::*;

    fn offset(o: i64) -> Offset {
        Offset::new(o).unwrap()
    }

    fn partition(p: i32) -> Partition {
        Partition::new(p).unwrap()
    }

    fn at(generation: u32, o: i64) -> Position {
        Position {
            generation: Generation(generation),
            offset: offset(o),
        }
    }

    /// Per generation: (partition, first, next).
    fn ledger(generations: &[&[(i32, i64, i64)]]) -> Ledger {
        let mut ledger = Ledger::default();
        for (g, entries) in generations.iter().enumerate() {
            let mut era = GenerationLedger::default();
            for (p, first, next) in *entries {
                let entry = Entry {
                    first: offset(*first),
                    next: offset(*next),
                    leader_epoch: None,
                    rows: next.abs_diff(*first),
                    hash: 0,
                };
                era.partitions.insert(partition(*p), entry);
            }
            ledger
                .generations
                .insert(Generation(u32::try_from(g).unwrap()), era);
        }
        ledger
    }

    fn selection<'a>(
        ledger: &'a Ledger,
        positions: &'a Positions,
        from: From,
        stops: &'a Stops,
    ) -> Selection<'a> {
        Selection {
            ledger,
            positions,
            from,
            wanted: None,
            stops,
            passed: &[],
        }
    }

    /// (generation, partition, from, until) of every lane.
    fn windows(selection: &Selection<'_>) -> Vec<(u32, i32, i64, i64)> {
        let phases = selection.phases();
        let lanes = phases.iter().flat_map(|phase| {
            phase.lanes.iter().map(|(p, lane)| {
                let w = lane.window;
                (phase.generation.0, p.get(), w.from.get(), w.until.get())
            })
        });
        lanes.collect()
    }

    const NEWEST: fn(i64) -> From = |o| From::Offset {
        generation: None,
        offset: Offset::new(o).unwrap(),
    };

    #[test]
    fn from_the_beginning_every_generation_is_read_whole() {
        let ledger = ledger(&[&[(0, 5, 10), (1, 0, 3)], &[(0, 0, 4)]]);
        let (none, stops) = (Positions::new(), Stops::default());
        let all = selection(&ledger, &none, From::Beginning, &stops);
        assert_eq!(windows(&all), [(0, 0, 5, 10), (0, 1, 0, 3), (1, 0, 0, 4)]);
        assert_eq!(
            all.starts(),
            [(partition(0), at(0, 5)), (partition(1), at(0, 0))].into()
        );
        assert!(
            all.phases()
                .iter()
                .all(|p| p.lanes.values().all(|l| l.rows_due.is_some()))
        );
    }

    #[test]
    fn an_offset_without_generation_is_one_of_the_newest() {
        let ledger = ledger(&[&[(0, 0, 10)], &[(0, 0, 4), (1, 0, 9)]]);
        let (none, stops) = (Positions::new(), Stops::default());
        assert_eq!(
            windows(&selection(&ledger, &none, NEWEST(2), &stops)),
            [(1, 0, 2, 4), (1, 1, 2, 9)]
        );
        let older = From::Offset {
            generation: Some(Generation(0)),
            offset: offset(7),
        };
        assert_eq!(
            windows(&selection(&ledger, &none, older, &stops)),
            [(0, 0, 7, 10), (1, 0, 0, 4), (1, 1, 0, 9)]
        );
    }

    #[test]
    fn an_offset_before_the_first_archived_one_is_a_gap() {
        let ledger = ledger(&[&[(0, 5, 10)]]);
        let (none, stops) = (Positions::new(), Stops::default());
        let asked = selection(&ledger, &none, NEWEST(2), &stops);
        let lane = &asked.phases()[0].lanes[&partition(0)];
        assert_eq!(
            (lane.gaps[0].start, lane.gaps[0].end),
            (offset(2), Some(offset(5)))
        );
        assert_eq!(asked.starts()[&partition(0)], at(0, 2));
    }

    #[test]
    fn h44_a_resumed_replay_reads_only_what_its_positions_leave() {
        let ledger = ledger(&[&[(0, 0, 10), (1, 0, 10)], &[(0, 0, 4), (1, 0, 9)]]);
        let stops = Stops::default();
        let positions = [(partition(0), at(0, 10)), (partition(1), at(1, 3))].into();
        assert_eq!(
            windows(&selection(&ledger, &positions, From::Beginning, &stops)),
            [(1, 0, 0, 4), (1, 1, 3, 9)]
        );
        let beyond = [(partition(0), at(1, 50)), (partition(1), at(1, 9))].into();
        assert!(windows(&selection(&ledger, &beyond, From::Beginning, &stops)).is_empty());
    }

    #[test]
    fn the_stop_bounds_its_own_generation_alone() {
        let ledger = ledger(&[&[(0, 0, 10)], &[(0, 0, 9), (1, 0, 9)]]);
        let none = Positions::new();
        let stops = Stops {
            offsets: Some((Generation(1), [(partition(0), offset(5))].into())),
            timestamp: None,
        };
        let all = selection(&ledger, &none, From::Beginning, &stops);
        assert_eq!(windows(&all), [(0, 0, 0, 10), (1, 0, 0, 5)]);
    }

    #[test]
    fn gaps_come_with_the_window_that_reaches_them() {
        let mut ledger = ledger(&[&[(0, 0, 20)], &[(0, 0, 5)]]);
        let gap = |generation, start, end: Option<i64>| Gap {
            generation: Generation(generation),
            partition: partition(0),
            start: offset(start),
            end: end.map(offset),
            reason: GapReason::Retention,
            at: Millis(1),
        };
        ledger.gaps = vec![gap(0, 4, Some(8)), gap(0, 20, None)];
        let (none, stops) = (Positions::new(), Stops::default());
        let gaps = |positions: &Positions| -> Vec<i64> {
            let selection = selection(&ledger, positions, From::Beginning, &stops);
            let phases = selection.phases();
            let lanes = phases.iter().flat_map(|p| p.lanes.values());
            lanes
                .flat_map(|l| l.gaps.iter().map(|g| g.start.get()))
                .collect()
        };
        assert_eq!(gaps(&none), [4, 20]);
        assert_eq!(
            gaps(&[(partition(0), at(0, 6))].into()),
            [4, 20],
            "in the middle of it"
        );
        assert_eq!(gaps(&[(partition(0), at(0, 8))].into()), [20]);
        assert_eq!(
            gaps(&[(partition(0), at(0, 30))].into()),
            [20],
            "the tail was ahead of the archive"
        );
        assert_eq!(gaps(&[(partition(0), at(1, 0))].into()), Vec::<i64>::new());
    }
}
