use std::collections::BTreeMap;

use everlog_common::ledger::GenerationLedger;
use everlog_common::{Advance, EventColumnsBuilder, Gap, TimestampType, TopicId};
use proptest::prelude::*;

use super::*;
use crate::accumulator::Buffer;

fn offset(v: i64) -> Offset {
    Offset::new(v).unwrap()
}

fn range(a: i64, b: i64) -> OffsetRange {
    OffsetRange::new(offset(a), offset(b)).unwrap()
}

fn p(v: i32) -> Partition {
    Partition::new(v).unwrap()
}

fn identity(cluster: &str, topic: u128) -> Identity {
    Identity {
        cluster_id: Some(cluster.to_owned()),
        topic_id: Some(TopicId(uuid::Uuid::from_u128(topic))),
    }
}

fn entry(first: i64, next: i64) -> Entry {
    Entry {
        first: offset(first),
        next: offset(next),
        leader_epoch: Some(3),
        rows: (next - first).unsigned_abs(),
        hash: 7,
    }
}

fn ledger(eras: &[(Identity, &[(i32, Entry)])]) -> Ledger {
    let mut ledger = Ledger::default();
    for (i, (identity, entries)) in eras.iter().enumerate() {
        let era = GenerationLedger {
            identity: identity.clone(),
            partitions: entries.iter().map(|(n, e)| (p(*n), *e)).collect(),
        };
        let number = Generation(u32::try_from(i).unwrap());
        ledger.generations.insert(number, era);
    }
    ledger
}

fn ask(ledger: &Ledger, identity: &Identity, accept: Option<&str>) -> Result<Era, TopicRefusal> {
    era(TopicFacts {
        ledger,
        identity,
        accept_cluster: accept,
        recorded: None,
        configured: Isolation::ReadCommitted,
    })
}

fn bounds(log_start: i64, end: i64, high_watermark: i64) -> Option<LogBounds> {
    Some(LogBounds {
        log_start: offset(log_start),
        end: offset(end),
        high_watermark: offset(high_watermark),
        leader_epoch: None,
    })
}

fn decide(
    entry: Option<&Entry>,
    bounds: Option<LogBounds>,
    epoch_end: Option<i64>,
    on_gap: OnGap,
) -> Decision {
    partition(PartitionFacts {
        entry,
        bounds,
        epoch_end: epoch_end.map(offset),
        on_gap,
        now: Millis(5),
    })
}

#[test]
fn h15_a_partition_new_to_the_ledger_starts_at_the_logs_first_offset_never_at_its_end() {
    let decision = decide(None, bounds(40, 90, 95), None, OnGap::Stop);
    let Decision::Start(start) = decision else {
        panic!("{decision:?}")
    };
    assert_eq!(
        (start.offset, start.base, start.gap),
        (offset(40), None, None)
    );
}

#[test]
fn h16_a_known_partition_starts_at_the_ledgers_next_with_its_epoch() {
    let e = entry(0, 70);
    let decision = decide(Some(&e), bounds(40, 90, 95), Some(90), OnGap::Stop);
    assert_eq!(
        decision,
        Decision::Start(Start {
            offset: offset(70),
            leader_epoch: Some(3),
            base: Some(e),
            began_under: bounds(40, 90, 95).and_then(|b| b.leader_epoch),
            gap: None
        })
    );
}

#[test]
fn h01_records_deleted_before_they_were_archived_stop_the_partition_or_become_a_gap() {
    let e = entry(0, 10);
    assert_eq!(
        decide(Some(&e), bounds(40, 90, 90), Some(90), OnGap::Stop),
        Decision::StopGap(range(10, 40))
    );
    let Decision::Start(start) = decide(Some(&e), bounds(40, 90, 90), Some(90), OnGap::Record)
    else {
        panic!("not started")
    };
    assert_eq!((start.offset, start.base), (offset(40), Some(e)));
    assert_eq!(
        start.gap,
        Some(Segment::Gap {
            start: offset(10),
            end: Some(offset(40)),
            reason: GapReason::Retention,
            at: Millis(5)
        })
    );
}

#[test]
fn h10_a_log_that_ends_below_the_ledger_is_truncated() {
    let e = entry(0, 10);
    for on_gap in [OnGap::Stop, OnGap::Record] {
        let short = decide(Some(&e), bounds(0, 8, 8), None, on_gap);
        let Decision::Truncated(truncation) = short else {
            panic!("{short:?}")
        };
        assert_eq!((truncation.end, truncation.leader_epoch), (offset(8), None));
        // written again past the old end by a new leader: only the epoch tells
        let rewritten = decide(Some(&e), bounds(0, 30, 30), Some(8), on_gap);
        let Decision::Truncated(truncation) = rewritten else {
            panic!("{rewritten:?}")
        };
        assert_eq!(truncation.leader_epoch, Some(3));
        assert!(truncation.to_string().contains("leader epoch 3 ended at 8"));
    }
}

#[test]
fn p12_a_trailing_high_watermark_of_a_new_leader_is_asked_again_not_called_truncated() {
    let e = entry(0, 10);
    assert_eq!(
        decide(Some(&e), bounds(0, 8, 8), Some(10), OnGap::Stop),
        Decision::Unsettled
    );
}

#[test]
fn an_open_transaction_holds_the_end_back_without_harm() {
    // read_uncommitted rows up to 10, last stable offset 5
    let e = entry(0, 10);
    assert!(matches!(
        decide(Some(&e), bounds(0, 5, 12), Some(12), OnGap::Stop),
        Decision::Start(_)
    ));
}

#[test]
fn a_partition_that_is_not_there_is_absent() {
    assert_eq!(decide(None, None, None, OnGap::Stop), Decision::Absent);
    let e = entry(0, 10);
    assert_eq!(decide(Some(&e), None, None, OnGap::Stop), Decision::Absent);
}

#[test]
fn an_empty_table_begins_generation_zero() {
    let era = ask(&Ledger::default(), &identity("a", 1), None).unwrap();
    assert_eq!(
        era,
        Era {
            generation: Generation(0),
            is_new: true,
            closing: vec![]
        }
    );
}

#[test]
fn h12_another_topic_id_begins_a_generation_and_closes_the_old_one_with_an_unknown_end() {
    let held = ledger(&[(identity("a", 1), &[(0, entry(0, 10)), (1, entry(5, 6))])]);
    let era = ask(&held, &identity("a", 2), None).unwrap();
    assert_eq!((era.generation, era.is_new), (Generation(1), true));
    let closed: Vec<_> = era
        .closing
        .iter()
        .map(|c| (c.generation, c.partition, c.entry.next))
        .collect();
    assert_eq!(
        closed,
        vec![
            (Generation(0), p(0), offset(10)),
            (Generation(0), p(1), offset(6))
        ]
    );
    assert!(era.closing.iter().all(|c| c.identity == identity("a", 1)));
}

#[test]
fn b06_a_recreated_topic_with_lower_offsets_is_read_from_its_start_not_filtered() {
    // the old entry (next 1000) belongs to generation 0: in the new era the partition is unknown
    let held = ledger(&[(identity("a", 1), &[(0, entry(0, 1000))])]);
    let era = ask(&held, &identity("a", 2), None).unwrap();
    let e = held.entry(era.generation, p(0));
    let Decision::Start(start) = decide(e, bounds(0, 20, 20), None, OnGap::Stop) else {
        panic!("not started")
    };
    assert_eq!((start.offset, start.base), (offset(0), None));
}

#[test]
fn what_was_closed_is_not_closed_again() {
    let mut held = ledger(&[
        (identity("a", 1), &[(0, entry(0, 10)), (1, entry(5, 6))]),
        (identity("a", 2), &[(0, entry(0, 1))]),
    ]);
    held.gaps.push(Gap {
        generation: Generation(0),
        partition: p(0),
        start: offset(10),
        end: None,
        reason: GapReason::Recreated,
        at: Millis(1),
    });
    let era = ask(&held, &identity("a", 2), None).unwrap();
    assert!(!era.is_new);
    let closed: Vec<_> = era.closing.iter().map(|c| c.partition).collect();
    assert_eq!(closed, vec![p(1)]);
}

#[test]
fn h13_another_cluster_is_refused_unless_it_is_accepted_by_name() {
    let held = ledger(&[(identity("a", 1), &[(0, entry(0, 10))])]);
    // the very same topic id, as after a restore: still other offsets
    for topic in [1, 2] {
        let here = identity("b", topic);
        for accept in [None, Some("c"), Some("a")] {
            let refused = ask(&held, &here, accept).unwrap_err();
            assert!(matches!(refused, TopicRefusal::ForeignCluster { .. }));
            assert!(refused.to_string().contains("accept_cluster = \"b\""));
        }
        let era = ask(&held, &here, Some("b")).unwrap();
        assert_eq!((era.generation, era.is_new), (Generation(1), true));
        assert_eq!(era.closing.len(), 1);
    }
}

#[test]
fn p02_an_earlier_incarnation_never_rewinds_the_table() {
    let held = ledger(&[
        (identity("a", 1), &[(0, entry(0, 10))]),
        (identity("a", 2), &[(0, entry(0, 4))]),
    ]);
    let refused = ask(&held, &identity("a", 1), None).unwrap_err();
    assert!(matches!(
        refused,
        TopicRefusal::EndedGeneration {
            generation: Generation(0),
            newest: Generation(1),
            ..
        }
    ));
}

#[test]
fn a_broker_without_topic_ids_is_compared_by_cluster_alone() {
    let held = ledger(&[(identity("a", 1), &[(0, entry(0, 10))])]);
    let mute = Identity {
        cluster_id: Some("a".to_owned()),
        topic_id: None,
    };
    assert!(!ask(&held, &mute, None).unwrap().is_new);
    let other = Identity {
        cluster_id: Some("b".to_owned()),
        topic_id: None,
    };
    assert!(ask(&held, &other, None).is_err());
}

#[test]
fn h04_the_recorded_isolation_cannot_change() {
    let ledger = Ledger::default();
    let here = identity("a", 1);
    let ask = |recorded| {
        era(TopicFacts {
            ledger: &ledger,
            identity: &here,
            accept_cluster: None,
            recorded: Some(recorded),
            configured: Isolation::ReadCommitted,
        })
    };
    assert!(ask(Isolation::ReadCommitted).is_ok());
    assert!(matches!(
        ask(Isolation::ReadUncommitted),
        Err(TopicRefusal::Isolation { .. })
    ));
}

fn check(last_row: Option<i64>, end: i64, epoch_end: Option<i64>, hw: i64) -> CommitCheck {
    before_commit(CommitFacts {
        last_row: last_row.map(offset),
        leader_epoch: Some(3),
        end: offset(end),
        epoch_end: epoch_end.map(offset),
        high_watermark: offset(hw),
        leaders_epoch: None,
        began_under: None,
        has_unproven_hole: false,
    })
}

#[test]
fn h10_what_ends_behind_the_last_rows_epoch_is_kept_with_the_leaders() {
    // the row's epoch 3 ended at 10; a marker of the leader of epoch 5 is at 10
    let read = |began: Option<i32>,
                leader_epoch: Option<i32>,
                epoch_end: Option<i64>,
                leaders: Option<i32>| {
        before_commit(CommitFacts {
            last_row: leader_epoch.map(|_| offset(9)),
            leader_epoch,
            end: offset(11),
            epoch_end: epoch_end.map(offset),
            high_watermark: offset(11),
            leaders_epoch: leaders,
            began_under: began,
            has_unproven_hole: false,
        })
    };
    let check = |leader_epoch, epoch_end, leaders| read(leaders, leader_epoch, epoch_end, leaders);
    assert_eq!(
        check(Some(3), Some(10), Some(5)),
        CommitCheck::Sound(Some(5))
    );
    assert_eq!(check(Some(3), None, Some(5)), CommitCheck::Sound(Some(5)));
    assert_eq!(
        check(Some(3), Some(11), Some(5)),
        CommitCheck::Sound(Some(3))
    );
    assert_eq!(check(None, None, Some(5)), CommitCheck::Sound(Some(5)));
    // read while leaders changed: the marker may have been an older leader's, and the new one have a record in its place
    for began in [None, Some(3), Some(4)] {
        let judged = read(began, Some(3), Some(10), Some(5));
        assert_eq!(judged, CommitCheck::Unproven);
        let reaches = read(began, Some(3), Some(11), Some(5));
        assert_eq!(reaches, CommitCheck::Sound(Some(3)));
    }
    // an answer of a leader before the row's own proves nothing, neither does none
    assert_eq!(check(Some(3), Some(10), Some(2)), CommitCheck::Unproven);
    assert_eq!(check(Some(3), Some(10), None), CommitCheck::Sound(None));
}

#[test]
fn h10_offsets_without_rows_before_a_later_leaders_row_are_read_again() {
    let read = |has_unproven_hole, epoch_end| {
        before_commit(CommitFacts {
            last_row: Some(offset(9)),
            leader_epoch: Some(1),
            end: offset(10),
            epoch_end: Some(offset(epoch_end)),
            high_watermark: offset(12),
            leaders_epoch: Some(1),
            began_under: Some(0),
            has_unproven_hole,
        })
    };
    assert_eq!(read(false, 12), CommitCheck::Sound(Some(1)));
    assert_eq!(read(true, 12), CommitCheck::Unproven);
    // what is known to be lost is told as that
    assert!(matches!(read(true, 8), CommitCheck::Truncated(_)));
}

#[test]
fn h10_control_records_of_a_later_leader_are_no_truncation() {
    // rows to 10 in epoch 3, which ended at 11; a marker of epoch 4 at 11
    assert_eq!(check(Some(10), 12, Some(11), 12), CommitCheck::Sound(None));
    assert_eq!(
        check(Some(10), 12, Some(12), 12),
        CommitCheck::Sound(Some(3))
    );
    assert_eq!(check(Some(10), 11, None, 12), CommitCheck::Sound(Some(3)));
    assert_eq!(check(Some(10), 12, None, 12), CommitCheck::Sound(None));
    // and a row that its epoch no longer holds is one
    assert!(matches!(
        check(Some(11), 12, Some(11), 20),
        CommitCheck::Truncated(_)
    ));
    assert!(matches!(
        check(Some(10), 11, None, 8),
        CommitCheck::Truncated(_)
    ));
    assert_eq!(check(Some(10), 11, Some(11), 8), CommitCheck::Unsettled);
}

proptest! {
    /// Every combination: the decision is the one of the table in the module's first lines.
    #[test]
    fn every_combination_of_bounds_entry_and_mode_has_one_right_answer(
        held in prop::option::of((0_i64..20, 0_i64..40)),
        log_start in 0_i64..60, visible in 0_i64..30, open in 0_i64..10,
        epoch_end in prop::option::of(0_i64..100), record in any::<bool>(),
    ) {
        let e = held.map(|(first, covered)| entry(first, first + covered));
        let (end, hw) = (log_start + visible, log_start + visible + open);
        let on_gap = if record { OnGap::Record } else { OnGap::Stop };
        let epoch_end = e.and(epoch_end);
        let decision = decide(e.as_ref(), bounds(log_start, end, hw), epoch_end, on_gap);
        match decision {
            Decision::Start(s) => {
                // never below what can be read, never above what exists, never a hole that is not told
                prop_assert!(s.offset >= offset(log_start) && s.offset <= offset(hw));
                prop_assert_eq!(s.base, e);
                match (e, s.gap) {
                    (None, gap) => prop_assert!(gap.is_none() && s.offset == offset(log_start)),
                    (Some(e), None) => prop_assert!(s.offset == e.next && s.leader_epoch == e.leader_epoch),
                    (Some(e), Some(gap)) => {
                        prop_assert!(record && e.next < s.offset && s.leader_epoch.is_none());
                        prop_assert_eq!((gap.start(), gap.end()), (e.next, Some(s.offset)));
                    }
                }
                if let Some(end) = epoch_end { prop_assert!(offset(end) >= e.unwrap().next); }
            }
            Decision::StopGap(r) => {
                prop_assert!(!record);
                prop_assert_eq!((r.start(), r.end()), (e.unwrap().next, offset(log_start)));
            }
            Decision::Truncated(t) => {
                prop_assert_eq!(t.next, e.unwrap().next);
                prop_assert!(t.end < t.next);
            }
            Decision::Unsettled => prop_assert!(e.unwrap().next > offset(hw) && epoch_end.is_some()),
            Decision::Absent => prop_assert!(false),
        }
    }

    /// A started partition's first advance, closings included, is always accepted by the ledger it came from.
    #[test]
    fn what_recovery_says_the_ledger_accepts(
        eras in prop::collection::vec((0_u8..2, 0_u128..3, prop::collection::btree_map(0_i32..3, (0_i64..9, 0_i64..9), 0..3)), 0..4),
        cluster in 0_u8..2, topic in 0_u128..4, log_start in 0_i64..20, len in 1_i64..9,
    ) {
        let name = |c: u8| if c == 0 { "a" } else { "b" };
        let eras: Vec<(Identity, BTreeMap<i32, (i64, i64)>)> = eras
            .into_iter().map(|(c, t, ps)| (identity(name(c), t), ps)).collect();
        let mut held = Ledger::default();
        for (i, (id, ps)) in eras.iter().enumerate() {
            // a ledger never holds one identity twice
            if held.generations.values().any(|g| g.identity.agrees(id)) { continue; }
            let number = Generation(u32::try_from(held.generations.len()).unwrap());
            let _ = i;
            held.generations.insert(number, GenerationLedger {
                identity: id.clone(),
                partitions: ps.iter().map(|(n, (f, c))| (p(*n), entry(*f, f + c))).collect(),
            });
        }
        let here = identity(name(cluster), topic);
        let Ok(era) = ask(&held, &here, Some(name(cluster))) else { return Ok(()) };
        let mut advances: Vec<Advance> = era.closing.iter().map(|c| Advance {
            generation: c.generation, identity: c.identity.clone(), partition: c.partition, base: Some(c.entry),
            segments: vec![Segment::Gap { start: c.entry.next, end: None, reason: GapReason::Recreated, at: Millis(0) }],
            leader_epoch: c.entry.leader_epoch, hash: c.entry.hash,
        }).collect();
        let e = held.entry(era.generation, p(0));
        if let Decision::Start(s) = decide(e, bounds(log_start, log_start + 40, log_start + 40), None, OnGap::Record) {
            let mut segments: Vec<Segment> = s.gap.into_iter().collect();
            segments.push(Segment::Data {
                range: range(s.offset.get(), s.offset.get() + len), rows: len.unsigned_abs(),
            });
            advances.push(Advance {
                generation: era.generation, identity: here, partition: p(0), base: s.base, segments,
                leader_epoch: None, hash: 99,
            });
        }
        let next = held.apply(&advances);
        prop_assert!(next.is_ok(), "{:?}", next);
        prop_assert!(next.unwrap().descends_from(&held));
    }
}

/// One step of a partition's life, and of its reader.
#[derive(Debug, Clone)]
enum Step {
    /// So many rows, and then offsets without rows (markers, or aborted).
    Write(usize, usize),
    /// Another leader; an unclean one lacks what is above so many hundredths of the log.
    Elect(Option<usize>),
    /// So many offsets are read.
    Read(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..4, 0_usize..3).prop_map(|(rows, holes)| Step::Write(rows, holes)),
        2 => prop::option::of(0_usize..100).prop_map(Step::Elect),
        4 => (1_usize..6).prop_map(Step::Read),
    ]
}

/// A log: per offset the epoch of whoever wrote it, and whether it is a row.
#[derive(Default)]
struct Model {
    log: Vec<(i32, bool)>,
    leader: i32,
}

impl Model {
    fn epoch_end(&self, epoch: i32) -> i64 {
        self.log.partition_point(|(e, _)| *e <= epoch) as i64
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// h10: a batch that is judged sound is what the log has: every offset without a row included. The reader is a client
    /// that compares its last row's epoch with the leader's, as KIP-320 has it, and knows nothing of offsets without rows.
    #[test]
    fn h10_what_is_sound_is_what_the_log_has(steps in prop::collection::vec(step(), 1..24)) {
        let mut model = Model::default();
        let mut read: Vec<(i32, bool)> = Vec::new();
        let mut buffer = Buffer::new(&Start {
            offset: Offset::ZERO, leader_epoch: None, base: None, began_under: Some(0), gap: None,
        });
        for step in steps {
            match step {
                Step::Write(rows, holes) => {
                    let epoch = model.leader;
                    model.log.extend(std::iter::repeat_n((epoch, true), rows));
                    model.log.extend(std::iter::repeat_n((epoch, false), holes));
                }
                Step::Elect(cut) => {
                    model.leader += 1;
                    if let Some(percent) = cut {
                        model.log.truncate(model.log.len() * percent / 100);
                    }
                }
                Step::Read(most) => {
                    let last = read.iter().rev().find(|(_, is_row)| *is_row);
                    if last.is_some_and(|(epoch, _)| model.epoch_end(*epoch) < read.len() as i64)
                        || model.log.len() < read.len()
                    {
                        return Ok(()); // the client says that the log was truncated
                    }
                    let from = read.len();
                    let new: Vec<(i32, bool)> = model.log.iter().skip(from).take(most).copied().collect();
                    if new.is_empty() {
                        continue;
                    }
                    let mut builder = EventColumnsBuilder::new();
                    for (i, (epoch, _)) in new.iter().enumerate().filter(|(_, (_, is_row))| *is_row) {
                        let at = offset((from + i) as i64);
                        builder.push(at, (0, TimestampType::Create), None, None, [].into_iter(), Some(*epoch));
                    }
                    let end = (from + new.len()) as i64;
                    buffer.accept(range(from as i64, end), builder.finish()).unwrap();
                    read.extend(new);
                }
            }
        }
        let Some(cut) = buffer.cut(p(0)) else { return Ok(()) };
        let judged = before_commit(CommitFacts {
            last_row: cut.last_row(),
            leader_epoch: cut.leader_epoch(),
            end: cut.end(),
            epoch_end: cut.leader_epoch().map(|e| offset(model.epoch_end(e))),
            high_watermark: offset(model.log.len() as i64),
            leaders_epoch: Some(model.leader),
            began_under: cut.began_under(),
            has_unproven_hole: cut.has_unproven_hole(),
        });
        if let CommitCheck::Sound(_) = judged {
            let rows = |log: &[(i32, bool)]| -> Vec<Option<i32>> {
                log.iter().map(|(epoch, is_row)| is_row.then_some(*epoch)).collect()
            };
            prop_assert_eq!(rows(&read), rows(&model.log[..read.len()]), "leader {}", model.leader);
        }
        // and where one leader was there all the time, nothing is read twice
        if model.leader == 0 {
            prop_assert_eq!(judged, CommitCheck::Sound(cut.leader_epoch().or(Some(0))));
        }
    }
}
