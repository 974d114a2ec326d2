//! The seam against a model: a broker whose log grows, loses its start, grows partitions and is made anew; an archiver
//! that is anywhere behind; a replay that is killed at any step. Whatever happens, what was emitted is the broker's log.

use everlog_common::ledger::GenerationLedger;
use everlog_common::{Entry, Gap, GapReason, Millis, TopicId};
use proptest::prelude::*;

use super::*;

fn offset(o: i64) -> Offset {
    Offset::new(o).unwrap()
}

fn partition(p: i32) -> Partition {
    Partition::new(p).unwrap()
}

fn identity(incarnation: u128) -> Identity {
    Identity {
        cluster_id: Some("c".to_owned()),
        topic_id: Some(TopicId(uuid::Uuid::from_u128(incarnation))),
    }
}

fn entry(first: i64, next: i64) -> Entry {
    Entry {
        first: offset(first),
        next: offset(next),
        leader_epoch: Some(0),
        rows: next.abs_diff(first),
        hash: 0,
    }
}

fn ledger(generations: &[(u128, &[(i32, i64, i64)])]) -> Ledger {
    let mut ledger = Ledger::default();
    for (i, (incarnation, entries)) in generations.iter().enumerate() {
        let era = GenerationLedger {
            identity: identity(*incarnation),
            partitions: entries
                .iter()
                .map(|(p, first, next)| (partition(*p), entry(*first, *next)))
                .collect(),
        };
        ledger
            .generations
            .insert(Generation(u32::try_from(i).unwrap()), era);
    }
    ledger
}

fn facts(incarnation: u128, bounds: &[(i32, i64, i64)]) -> LiveFacts {
    LiveFacts {
        identity: identity(incarnation),
        bounds: bounds
            .iter()
            .map(|(p, start, end)| {
                let bounds = LogBounds {
                    log_start: offset(*start),
                    end: offset(*end),
                    high_watermark: offset(*end),
                    leader_epoch: None,
                };
                (partition(*p), bounds)
            })
            .collect(),
        epoch_ends: BTreeMap::new(),
    }
}

fn positions(at: &[(i32, u32, i64)]) -> Positions {
    at.iter()
        .map(|(p, g, o)| {
            let position = Position {
                generation: Generation(*g),
                offset: offset(*o),
            };
            (partition(*p), position)
        })
        .collect()
}

fn ask(ledger: &Ledger, fresh: bool, at: &[(i32, u32, i64)], live: &LiveFacts) -> Decision {
    ask_after(&BTreeMap::new(), ledger, fresh, at, live)
}

/// The same after the last records `epochs`.
fn ask_after(
    epochs: &BTreeMap<Partition, LastRead>,
    ledger: &Ledger,
    fresh: bool,
    at: &[(i32, u32, i64)],
    live: &LiveFacts,
) -> Decision {
    let place = Place {
        ledger,
        ledger_is_fresh: fresh,
        positions: &positions(at),
        incarnation: None,
        epochs,
        wanted: None,
    };
    decide(&place, live)
}

/// A record of epoch 4 that ends at `next`.
fn last_read(next: i64) -> BTreeMap<Partition, LastRead> {
    let last = LastRead {
        leader_epoch: 4,
        next: offset(next),
    };
    BTreeMap::from([(partition(0), last)])
}

fn starts(decision: &Decision) -> Vec<(i32, i64)> {
    match decision {
        Decision::Tail { starts, .. } => starts
            .iter()
            .map(|(p, s)| (p.get(), s.offset.get()))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn h41_the_tail_begins_at_exactly_the_cut() {
    let ledger = ledger(&[(1, &[(0, 0, 10), (1, 0, 7)])]);
    let live = facts(1, &[(0, 5, 20), (1, 7, 7)]);
    assert_eq!(
        starts(&ask(&ledger, false, &[(0, 0, 10), (1, 0, 7)], &live)),
        [(0, 10), (1, 7)]
    );
}

#[test]
fn h02_retention_past_the_cut_asks_for_a_newer_snapshot() {
    let ledger = ledger(&[(1, &[(0, 0, 10)])]);
    let live = facts(1, &[(0, 11, 20)]);
    assert_eq!(
        ask(&ledger, false, &[(0, 0, 10)], &live),
        Decision::NewerSnapshot
    );
}

#[test]
fn h42_a_hole_between_a_stalled_archiver_and_the_log_is_an_error_that_names_it() {
    let ledger = ledger(&[(1, &[(0, 0, 10)])]);
    let live = facts(1, &[(0, 15, 20)]);
    let Decision::Stuck(error) = ask(&ledger, true, &[(0, 0, 10)], &live) else {
        panic!("a hole was jumped");
    };
    assert!(error.is_gap());
    assert_eq!(
        error.to_string(),
        "partition 0: offsets [10, 15) of generation 0 are neither in the archive nor in Kafka: the log begins at 15 now, the archive ends at 10; start the archiver with on_gap = \"record\" to record the gap, then replay again"
    );
}

#[test]
fn h45_a_tail_ahead_of_the_archive_goes_on_from_its_own_position() {
    let ledger = ledger(&[(1, &[(0, 0, 10), (1, 0, 10)])]);
    let live = facts(1, &[(0, 5, 50), (1, 5, 50)]);
    assert_eq!(
        starts(&ask(&ledger, false, &[(0, 0, 30), (1, 0, 10)], &live)),
        [(0, 30), (1, 10)]
    );
}

#[test]
fn h12_a_topic_made_anew_is_never_tailed_as_the_old_one() {
    let old = ledger(&[(1, &[(0, 0, 10)])]);
    let live = facts(2, &[(0, 0, 50)]);
    assert_eq!(
        ask(&old, false, &[(0, 0, 10)], &live),
        Decision::NewerSnapshot
    );
    assert!(matches!(
        ask(&old, true, &[(0, 0, 10)], &live),
        Decision::Stuck(SeamError::Recreated { .. })
    ));
    let new = ledger(&[(1, &[(0, 0, 10)]), (2, &[(0, 0, 5)])]);
    assert_eq!(starts(&ask(&new, false, &[(0, 1, 5)], &live)), [(0, 5)]);
}

#[test]
fn h12_positions_from_before_the_first_commit_count_for_their_incarnation_alone() {
    let before = Incarnation {
        generation: Generation::FIRST,
        identity: identity(1),
    };
    let ask = |ledger: &Ledger, live: u128| {
        let place = Place {
            ledger,
            ledger_is_fresh: true,
            positions: &positions(&[(0, 0, 10)]),
            incarnation: Some(&before),
            epochs: &BTreeMap::new(),
            wanted: None,
        };
        decide(&place, &facts(live, &[(0, 0, 50)]))
    };
    let refused = |decision: &Decision| {
        matches!(
            decision,
            Decision::Stuck(SeamError::OtherIncarnation { .. })
        )
    };
    let nothing = Ledger::default();
    assert_eq!(starts(&ask(&nothing, 1)), [(0, 10)]);
    assert!(refused(&ask(&nothing, 2)), "made anew, nothing archived");
    let new = ledger(&[(2, &[(0, 0, 20)])]);
    assert!(refused(&ask(&new, 2)), "only the new one was archived");
    let both = ledger(&[(1, &[(0, 0, 20)]), (2, &[(0, 0, 20)])]);
    assert_eq!(starts(&ask(&both, 2)), [(0, 0)]);
    // Where nobody knows ids, nothing contradicts.
    let mut unknown = both.clone();
    for era in unknown.generations.values_mut() {
        era.identity = Identity::default();
    }
    assert_eq!(before.contradicts(&unknown, Some(&identity(3))), None);
}

#[test]
fn h13_another_cluster_is_refused() {
    let ledger = ledger(&[(1, &[(0, 0, 10)])]);
    let mut live = facts(1, &[(0, 0, 50)]);
    live.identity.cluster_id = Some("other".to_owned());
    assert!(matches!(
        ask(&ledger, true, &[(0, 0, 10)], &live),
        Decision::Stuck(SeamError::OtherCluster { .. })
    ));
}

#[test]
fn h10_a_truncated_log_is_an_error() {
    let ledger = ledger(&[(1, &[(0, 0, 10)])]);
    let live = facts(1, &[(0, 0, 8)]);
    assert!(matches!(
        ask(&ledger, true, &[(0, 0, 10)], &live),
        Decision::Stuck(SeamError::Truncated {
            by_epoch: false,
            ..
        })
    ));
    let mut grown = facts(1, &[(0, 0, 30)]);
    grown.epoch_ends.insert(partition(0), offset(9));
    assert!(matches!(
        ask_after(&last_read(10), &ledger, true, &[(0, 0, 10)], &grown),
        Decision::Stuck(problem @ SeamError::Truncated { .. }) if problem.is_final()
    ));
}

#[test]
fn h10_markers_of_a_later_leader_behind_the_last_record_are_no_truncation() {
    let ledger = ledger(&[(1, &[(0, 0, 10)])]);
    let epoch_of = |end: Option<i64>| {
        let mut live = facts(1, &[(0, 0, 30)]);
        live.epoch_ends
            .extend(end.map(|end| (partition(0), offset(end))));
        // the last record ends at 18, and up to 20 there are none
        match ask_after(&last_read(18), &ledger, true, &[(0, 0, 20)], &live) {
            Decision::Tail { starts, .. } => {
                assert_eq!(starts[&partition(0)].offset, offset(20));
                Ok(starts[&partition(0)].leader_epoch)
            }
            other => Err(other),
        }
    };
    // an epoch that does not reach the position is not held against it, by the client neither
    assert_eq!(epoch_of(Some(18)), Ok(None));
    assert_eq!(epoch_of(None), Ok(None));
    assert_eq!(epoch_of(Some(30)), Ok(Some(4)));
    assert!(matches!(
        epoch_of(Some(17)),
        Err(Decision::Stuck(SeamError::Truncated { .. }))
    ));
}

#[test]
fn a_position_asked_for_beyond_the_end_is_waited_for() {
    let ledger = ledger(&[(1, &[(0, 0, 10)])]);
    let live = facts(1, &[(0, 0, 12)]);
    assert_eq!(
        starts(&ask(&ledger, false, &[(0, 0, 100)], &live)),
        [(0, 12)]
    );
}

#[test]
fn h14_a_new_partition_is_read_from_its_first_offset() {
    let ledger = ledger(&[(1, &[(0, 0, 10)])]);
    let live = facts(1, &[(0, 5, 20), (1, 0, 9)]);
    assert_eq!(
        starts(&ask(&ledger, false, &[(0, 0, 10)], &live)),
        [(0, 10), (1, 0)]
    );
    // Its start is gone already: only a ledger read later tells whether it was archived.
    let late = facts(1, &[(0, 5, 20), (1, 3, 9)]);
    assert_eq!(
        ask(&ledger, false, &[(0, 0, 10)], &late),
        Decision::NewerSnapshot
    );
    assert_eq!(
        starts(&ask(&ledger, true, &[(0, 0, 10)], &late)),
        [(0, 10), (1, 3)]
    );
}

#[test]
fn a_partition_that_left_the_live_topic_is_an_error() {
    let ledger = ledger(&[(1, &[(0, 0, 10), (1, 0, 10)])]);
    let live = facts(1, &[(0, 0, 20)]);
    assert!(matches!(
        ask(&ledger, true, &[(0, 0, 10), (1, 0, 10)], &live),
        Decision::Stuck(SeamError::PartitionGone { .. })
    ));
}

// The model.

/// One incarnation of the topic: per partition the log's start, and its end; every offset is a record.
#[derive(Debug, Clone)]
struct Era {
    id: u128,
    logs: Vec<(i64, i64)>,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Produce(usize, i64),
    /// Retention takes a share of what the log has.
    Retain(usize, u8),
    Grow,
    Recreate,
    /// The archiver reads up to a share of what it has not yet.
    Archive(u8),
    /// The replay takes a step.
    Replay,
    /// The replay is killed, and resumed from its positions.
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    History,
    /// Tailing since these facts, without knowing of anything after.
    Live,
}

#[derive(Debug)]
struct Model {
    eras: Vec<Era>,
    archive: Ledger,
    archived_eras: Vec<u128>,
    /// The replay.
    pinned: Ledger,
    at: Positions,
    /// Kept together with the positions, over kills too.
    incarnation: Option<Incarnation>,
    /// It ended with an error: its positions are of an incarnation that never was archived.
    refused: bool,
    mode: Mode,
    emitted: Vec<(u128, i32, i64)>,
    passed: Vec<Gap>,
    stuck: u32,
}

impl Model {
    fn new(partitions: usize) -> Self {
        Self {
            eras: vec![Era {
                id: 1,
                logs: vec![(0, 0); partitions],
            }],
            archive: Ledger::default(),
            archived_eras: Vec::new(),
            pinned: Ledger::default(),
            at: Positions::new(),
            incarnation: None,
            refused: false,
            mode: Mode::History,
            emitted: Vec::new(),
            passed: Vec::new(),
            stuck: 0,
        }
    }

    fn live(&self) -> &Era {
        self.eras.last().unwrap()
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Produce(p, n) => {
                let log = &mut self.eras.last_mut().unwrap().logs;
                let p = p % log.len();
                log[p].1 += n;
            }
            Act::Retain(p, share) => {
                let log = &mut self.eras.last_mut().unwrap().logs;
                let p = p % log.len();
                log[p].0 += (log[p].1 - log[p].0) * i64::from(share) / 255;
            }
            Act::Grow => self.eras.last_mut().unwrap().logs.push((0, 0)),
            Act::Recreate => {
                let id = self.live().id + 1;
                let partitions = self.live().logs.len();
                self.eras.push(Era {
                    id,
                    logs: vec![(0, 0); partitions],
                });
            }
            Act::Archive(share) => self.archive(share),
            Act::Replay => self.replay(),
            Act::Kill => {
                self.mode = Mode::History;
                self.pinned = self.archive.clone();
            }
        }
    }

    /// As the archiver does: gaps are recorded, an old generation is closed by a gap of unknown end.
    fn archive(&mut self, share: u8) {
        let live = self.live().clone();
        if self.archived_eras.last() != Some(&live.id) {
            if let Some((generation, newest)) = self.archive.newest() {
                let gaps: Vec<Gap> = newest
                    .partitions
                    .iter()
                    .map(|(p, e)| gap(generation, *p, e.next, None))
                    .collect();
                self.archive.gaps.extend(gaps);
            }
            let generation = Generation(u32::try_from(self.archived_eras.len()).unwrap());
            self.archived_eras.push(live.id);
            let era = GenerationLedger {
                identity: identity(live.id),
                partitions: BTreeMap::new(),
            };
            self.archive.generations.insert(generation, era);
        }
        let (generation, _) = self.archive.newest().unwrap();
        let mut gaps = Vec::new();
        let era = self.archive.generations.get_mut(&generation).unwrap();
        for (p, (start, end)) in live.logs.iter().enumerate() {
            let p = partition(i32::try_from(p).unwrap());
            let e = era
                .partitions
                .entry(p)
                .or_insert_with(|| entry(*start, *start));
            if e.next.get() < *start {
                gaps.push(gap(generation, p, e.next, Some(offset(*start))));
                e.next = offset(*start);
            }
            let next = e.next.get() + (end - e.next.get()) * i64::from(share) / 255;
            e.rows += next.abs_diff(e.next.get());
            e.next = offset(next);
        }
        self.archive.gaps.extend(gaps);
    }

    /// One step of the replay: the rest of the pinned history, or what the tail has, or the switch.
    fn replay(&mut self) {
        if self.refused || self.refuses() {
            return;
        }
        if self.mode == Mode::History {
            self.read_history();
        }
        let live = self.live().clone();
        let logs: Vec<(i32, i64, i64)> = live
            .logs
            .iter()
            .enumerate()
            .map(|(p, (s, e))| (i32::try_from(p).unwrap(), *s, *e))
            .collect();
        let facts = facts(live.id, &logs);
        match self.decide(false, &facts) {
            Decision::Tail { generation, starts } => self.tail(generation, &starts),
            Decision::Stuck(problem) => panic!("stuck on an old ledger: {problem}"),
            Decision::NewerSnapshot => {
                self.pinned = self.archive.clone();
                self.mode = Mode::History;
                if self.refuses() || self.read_history() {
                    return;
                }
                match self.decide(true, &facts) {
                    Decision::Tail { generation, starts } => self.tail(generation, &starts),
                    Decision::Stuck(_) => self.stuck += 1,
                    Decision::NewerSnapshot => panic!("nothing is newer than a fresh ledger"),
                }
            }
        }
    }

    fn decide(&self, fresh: bool, facts: &LiveFacts) -> Decision {
        let place = Place {
            ledger: &self.pinned,
            ledger_is_fresh: fresh,
            positions: &self.at,
            incarnation: self.incarnation.as_ref(),
            epochs: &BTreeMap::new(),
            wanted: None,
        };
        decide(&place, facts)
    }

    /// T5: only where the archive's generation really is another incarnation.
    fn refuses(&mut self) -> bool {
        let Some(before) = &self.incarnation else {
            return false;
        };
        self.refused = before.contradicts(&self.pinned, None).is_some();
        if self.refused {
            let archived = self.archived_eras[before.generation.0 as usize];
            assert_ne!(identity(archived), before.identity);
        }
        self.refused
    }

    /// Emits what the pinned snapshot has beyond the positions, by the very function that the stream plans with.
    fn read_history(&mut self) -> bool {
        use crate::history::lanes::{Selection, Stops};
        let stops = Stops::default();
        let selection = Selection {
            ledger: &self.pinned,
            positions: &self.at,
            from: crate::request::From::Beginning,
            wanted: None,
            stops: &stops,
            passed: &self.passed,
        };
        let phases = selection.phases();
        let some = !phases.is_empty();
        self.incarnation = Incarnation::newest(&self.pinned).or(self.incarnation.take());
        for phase in phases {
            let id = self.archived_eras[phase.generation.0 as usize];
            for (p, lane) in phase.lanes {
                let inside = |o: i64| {
                    lane.gaps
                        .iter()
                        .any(|g| g.start.get() <= o && g.end.is_some_and(|e| o < e.get()))
                };
                let offsets = lane.window.from.get()..lane.window.until.get();
                self.emitted
                    .extend(offsets.filter(|o| !inside(*o)).map(|o| (id, p.get(), o)));
                self.passed.extend(lane.gaps);
                let position = Position {
                    generation: phase.generation,
                    offset: lane.window.until,
                };
                let at = self.at.entry(p).or_insert(position);
                *at = position.max(*at);
            }
        }
        some
    }

    fn tail(&mut self, generation: Generation, starts: &BTreeMap<Partition, StartAt>) {
        self.mode = Mode::Live;
        let live = self.live().clone();
        self.incarnation = Some(Incarnation {
            generation,
            identity: identity(live.id),
        });
        for (p, start) in starts {
            let (log_start, end) = live.logs[p.get() as usize];
            assert!(
                start.offset.get() >= log_start,
                "T1: tailed from below the log's start"
            );
            self.emitted
                .extend((start.offset.get()..end).map(|o| (live.id, p.get(), o)));
            let offset = offset(end.max(start.offset.get()));
            self.at.insert(*p, Position { generation, offset });
        }
    }
}

fn gap(generation: Generation, partition: Partition, start: Offset, end: Option<Offset>) -> Gap {
    let reason = if end.is_some() {
        GapReason::Retention
    } else {
        GapReason::Recreated
    };
    Gap {
        generation,
        partition,
        start,
        end,
        reason,
        at: Millis(0),
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0_usize..4, 1_i64..9).prop_map(|(p, n)| Act::Produce(p, n)),
        3 => (0_usize..4, any::<u8>()).prop_map(|(p, s)| Act::Retain(p, s)),
        1 => Just(Act::Grow),
        1 => Just(Act::Recreate),
        4 => any::<u8>().prop_map(Act::Archive),
        5 => Just(Act::Replay),
        2 => Just(Act::Kill),
    ];
    prop::collection::vec(act, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// T1-T5, h41-h46, b11: per incarnation and partition the emitted offsets are the log's, from the first archived one,
    /// once and in order; what is missing is a recorded gap that was passed.
    #[test]
    fn h46_whatever_happens_around_the_seam_the_broker_s_log_is_emitted(partitions in 1_usize..3, acts in acts()) {
        let mut model = Model::new(partitions);
        for act in acts {
            model.act(act);
        }
        // In the end the archiver catches up and the replay is given as many steps as it needs.
        model.act(Act::Archive(255));
        for _ in 0..4 {
            model.act(Act::Replay);
        }
        let generations: BTreeMap<u128, u32> =
            model.archived_eras.iter().enumerate().map(|(g, id)| (*id, g as u32)).collect();
        let mut last: BTreeMap<(u128, i32), i64> = BTreeMap::new();
        let mut order: BTreeMap<i32, u128> = BTreeMap::new();
        for (id, p, o) in &model.emitted {
            let era = order.insert(*p, *id);
            prop_assert!(era.is_none_or(|before| before <= *id), "generations follow each other");
            if let Some(before) = last.insert((*id, *p), *o) {
                prop_assert!(before < *o, "offset {o} of partition {p} came after {before}");
                if before + 1 < *o {
                    // several recordings may share the interval
                    let is_gap = |o: i64| model.passed.iter().any(|g| {
                        Some(&g.generation.0) == generations.get(id) && g.partition.get() == *p
                            && g.start.get() <= o && g.end.is_some_and(|e| o < e.get())
                    });
                    prop_assert!((before + 1..*o).all(is_gap), "[{}, {o}) of partition {p} was skipped", before + 1);
                }
            }
        }
        if model.refused {
            return Ok(());
        }
        // Everything that the archive or the newest log has was emitted.
        for (generation, era) in &model.archive.generations {
            let id = model.archived_eras[generation.0 as usize];
            for (p, e) in &era.partitions {
                if e.rows == 0 {
                    continue;
                }
                let reached = last.get(&(id, p.get())).copied();
                let recorded = model.archive.gaps_of(*generation, *p);
                let due = (e.first.get()..e.next.get()).rev().find(|o| {
                    !recorded.iter().any(|g| g.start.get() <= *o && g.end.is_some_and(|end| *o < end.get()))
                });
                prop_assert!(due.is_none() || reached >= due, "partition {p} ends at {reached:?}, due is {due:?}");
            }
        }
    }
}
