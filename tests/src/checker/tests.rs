//! For every rule: a right history is right, and one that breaks exactly this rule is found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use everlog_common::ledger::{Entry, Gap, GapReason, GenerationLedger, Identity, Ledger};
use everlog_common::{Generation, Millis, Offset, Partition, TopicId};
use twox_hash::XxHash3_64;

use super::{
    Checker, Emission, Event, FileFacts, FileRow, LogId, RecordView, Rule, SnapshotFacts,
    TableState, digest,
};

const ID: u128 = 7;

fn canonical(log: LogId, offset: i64) -> Vec<u8> {
    let value = format!("{}/{}/{offset}", log.0, log.1);
    let view = RecordView {
        offset,
        timestamp_ms: offset,
        timestamp_type: 0,
        key: None,
        value: Some(value.as_bytes()),
        headers: &[],
    };
    view.canonical()
}

fn row(partition: i32, offset: i64) -> FileRow {
    FileRow {
        generation: 0,
        partition,
        offset,
        digest: digest(&canonical((ID, partition), offset), Some(0)),
    }
}

fn append(partition: i32, offset: i64, txn: Option<u64>) -> Event {
    Event::Appended {
        log: (ID, partition),
        offset,
        epoch: 0,
        canonical: canonical((ID, partition), offset),
        txn,
    }
}

fn o(n: i64) -> Offset {
    Offset::new(n).unwrap()
}

fn p(n: i32) -> Partition {
    Partition::new(n).unwrap()
}

/// What a story is made of. Partition 0 is 0 1 2, 3 4 (committed, marker 5), 6 (aborted, marker 7), 8. Partition 1 is 0 to 4,
/// of which retention takes 1 and 2 before they are archived.
struct Parts {
    /// The rows of three files.
    files: [Vec<FileRow>; 3],
    /// The ledger's next offsets after each of three commits.
    next: [[i64; 2]; 3],
    first: [i64; 2],
    gap: Option<(i64, i64)>,
    /// Which files each snapshot lists.
    listed: [Vec<usize>; 3],
    parents: [Option<i64>; 3],
    /// Emissions of run 1: partition, range, offsets, live.
    emitted: Vec<(i32, (i64, i64), Vec<i64>, bool)>,
    /// Events put before the one with the label.
    before: Vec<(&'static str, Event)>,
    left_out: Vec<&'static str>,
    /// The last word on a commit's ledger.
    ledger: fn(usize, &mut Ledger),
    facts: fn(usize, &mut SnapshotFacts),
}

impl Parts {
    fn right() -> Self {
        Self {
            files: [
                vec![row(0, 0), row(0, 1), row(0, 2), row(1, 0)],
                vec![row(0, 3), row(0, 4), row(1, 3), row(1, 4)],
                vec![row(0, 8)],
            ],
            next: [[3, 1], [8, 5], [9, 5]],
            first: [0, 0],
            gap: Some((1, 3)),
            listed: [vec![0], vec![0, 1], vec![0, 1, 2]],
            parents: [None, Some(101), Some(102)],
            emitted: vec![
                (0, (0, 8), vec![0, 1, 2, 3, 4], false),
                (1, (0, 1), vec![0], false),
                (1, (3, 5), vec![3, 4], false),
                (0, (8, 9), vec![8], true),
            ],
            before: Vec::new(),
            left_out: Vec::new(),
            ledger: |_, _| {},
            facts: |_, _| {},
        }
    }

    fn ledger_after(&self, commit: usize) -> Ledger {
        let rows: Vec<FileRow> = self.files[..=commit].concat();
        let entry = |partition: i32| {
            let mut own: Vec<_> = rows.iter().filter(|r| r.partition == partition).collect();
            own.sort_by_key(|r| r.offset);
            let hash = own.iter().fold(0_u64, |hash, r| {
                let mut bytes = hash.to_le_bytes().to_vec();
                bytes.extend(canonical((ID, partition), r.offset));
                XxHash3_64::oneshot(&bytes)
            });
            Entry {
                first: o(self.first[usize::try_from(partition).unwrap()]),
                next: o(self.next[commit][usize::try_from(partition).unwrap()]),
                leader_epoch: Some(0),
                rows: own.len() as u64,
                hash,
            }
        };
        let era = GenerationLedger {
            identity: Identity {
                cluster_id: Some("c".to_owned()),
                topic_id: Some(TopicId(uuid::Uuid::from_u128(ID))),
            },
            partitions: (0..2).map(|n| (p(n), entry(n))).collect(),
        };
        let gaps = self.gap.filter(|_| commit > 0).map(|(start, end)| Gap {
            generation: Generation(0),
            partition: p(1),
            start: o(start),
            end: Some(o(end)),
            reason: GapReason::Retention,
            at: Millis(0),
        });
        let mut ledger = Ledger {
            generations: BTreeMap::from([(Generation(0), era)]),
            gaps: gaps.into_iter().collect(),
        };
        (self.ledger)(commit, &mut ledger);
        ledger
    }

    fn snapshot(&self, commit: usize) -> Arc<SnapshotFacts> {
        let file = |n: &usize| {
            let rows = &self.files[*n];
            let span = |of: fn(&FileRow) -> i64| {
                let all = rows.iter().map(of);
                (all.clone().min().unwrap_or(0), all.max().unwrap_or(0))
            };
            FileFacts {
                path: format!("f{n}"),
                len: 10,
                rows: rows.len() as u64,
                bounds: Some([
                    span(|r| i64::from(r.generation)),
                    span(|r| i64::from(r.partition)),
                    span(|r| r.offset),
                ]),
            }
        };
        let mut facts = SnapshotFacts {
            id: 101 + i64::try_from(commit).unwrap(),
            parent: self.parents[commit],
            ledger: Some(self.ledger_after(commit)),
            metadata: vec![format!("list{commit}")],
            files: self.listed[commit].iter().map(file).collect(),
        };
        (self.facts)(commit, &mut facts);
        Arc::new(facts)
    }

    fn events(&self) -> Vec<Event> {
        let mut all: Vec<(&'static str, Event)> = Vec::new();
        let put = |name: &str, rows: Option<&Vec<FileRow>>| Event::Put {
            name: name.to_owned(),
            len: 10,
            hash: 1,
            rows: rows.map(|rows| Arc::new(rows.clone())),
        };
        let created = Event::TopicCreated {
            topic: "t".to_owned(),
            topic_id: ID,
            partitions: 2,
        };
        all.push(("created", created));
        for offset in 0..3 {
            all.push(("append", append(0, offset, None)));
        }
        for offset in 0..5 {
            all.push(("append", append(1, offset, None)));
        }
        let snapshots: Vec<_> = (0..3).map(|n| self.snapshot(n)).collect();
        let commit = |all: &mut Vec<(&'static str, Event)>, n: usize| {
            const PUT: [&str; 3] = ["put f0", "put f1", "put f2"];
            const LIST: [&str; 3] = ["put list0", "put list1", "put list2"];
            const STATE: [&str; 3] = ["state 0", "state 1", "state 2"];
            all.push((PUT[n], put(&format!("f{n}"), Some(&self.files[n]))));
            all.push((LIST[n], put(&format!("list{n}"), None)));
            all.push((LIST[n], put(&format!("m{n}"), None)));
            let state = TableState {
                topic: "t".to_owned(),
                metadata: format!("m{n}"),
                snapshots: snapshots[..=n].to_vec(),
                head: Some(snapshots[n].id),
            };
            all.push((STATE[n], Event::Table(state)));
        };
        commit(&mut all, 0);
        for (offset, txn) in [(3, 1), (4, 1)] {
            all.push(("append", append(0, offset, Some(txn))));
        }
        let ended = |txn, committed| Event::TransactionEnded { txn, committed };
        let end = |end| Event::LogEnd { log: (ID, 0), end };
        all.push(("commit", ended(1, true)));
        all.push(("marker", end(6)));
        all.push(("append", append(0, 6, Some(2))));
        all.push(("abort", ended(2, false)));
        all.push(("marker", end(8)));
        let retention = Event::LogStart {
            log: (ID, 1),
            offset: 3,
        };
        all.push(("retention", retention));
        commit(&mut all, 1);
        all.push(("append", append(0, 8, None)));
        let opened = Event::Opened {
            run: 1,
            topic: "t".to_owned(),
        };
        all.push(("opened", opened));
        for (partition, range, offsets, is_live) in &self.emitted {
            let digests = offsets.iter().map(|o| {
                let bytes = canonical((ID, *partition), *o);
                (*o, digest(&bytes, Some(0)))
            });
            let emission = Emission {
                run: 1,
                generation: 0,
                partition: *partition,
                range: *range,
                rows: digests.collect(),
                is_live: *is_live,
            };
            all.push(("emitted", Event::Emitted(emission)));
        }
        let finished = Event::Finished {
            run: 1,
            full: BTreeSet::from([0, 1]),
        };
        all.push(("finished", finished));
        commit(&mut all, 2);
        all.push(("settled", Event::Settled));
        let mut events = Vec::new();
        for (label, event) in all {
            for (_, more) in self.before.iter().filter(|(at, _)| *at == label) {
                events.push(more.clone());
            }
            if !self.left_out.contains(&label) {
                events.push(event);
            }
        }
        events
    }

    fn broken(&self) -> BTreeSet<Rule> {
        let mut checker = Checker::new();
        for event in self.events() {
            checker.observe(event);
        }
        let outcome = checker.finish();
        for violation in &outcome.violations {
            println!("{violation}");
        }
        outcome.violations.iter().map(|v| v.rule).collect()
    }
}

/// A story that is told otherwise, and the one rule that it breaks.
fn assert_breaks(rule: Rule, change: impl FnOnce(&mut Parts)) {
    let mut parts = Parts::right();
    change(&mut parts);
    assert_eq!(parts.broken(), BTreeSet::from([rule]));
}

fn entry(ledger: &mut Ledger, partition: i32) -> &mut Entry {
    let era = ledger.generations.get_mut(&Generation(0)).unwrap();
    era.partitions.get_mut(&p(partition)).unwrap()
}

#[test]
fn a_right_history_is_right() {
    assert_eq!(Parts::right().broken(), BTreeSet::new());
}

#[test]
fn r01_a_record_that_is_lost() {
    assert_breaks(Rule::R1, |s| {
        s.files[1].remove(1);
        s.emitted[0].2.pop();
        s.left_out.push("finished");
    });
}

#[test]
fn r01_a_record_that_is_doubled() {
    let mut parts = Parts::right();
    parts.files[2].insert(0, row(0, 4));
    let broken = parts.broken();
    assert!(broken.contains(&Rule::R1), "{broken:?}");
}

#[test]
fn r01_a_record_with_other_bytes() {
    let mut parts = Parts::right();
    parts.files[1][0].digest += 1;
    assert!(parts.broken().contains(&Rule::R1));
}

#[test]
fn r02_an_aborted_record() {
    let mut parts = Parts::right();
    parts.files[1].insert(2, row(0, 6));
    parts.emitted[0].2.push(6);
    let broken = parts.broken();
    assert!(broken.contains(&Rule::R2), "{broken:?}");
}

#[test]
fn r02_a_record_that_never_was() {
    let mut parts = Parts::right();
    parts.files[1].insert(2, row(0, 5));
    assert!(parts.broken().contains(&Rule::R2));
}

#[test]
fn r02_both_sides_of_a_truncation() {
    let mut parts = Parts::right();
    let bytes = canonical((99, 0), 3);
    let new = Event::Appended {
        log: (ID, 0),
        offset: 2,
        epoch: 1,
        canonical: canonical((99, 0), 2),
        txn: None,
    };
    let next = Event::Appended {
        log: (ID, 0),
        offset: 3,
        epoch: 1,
        canonical: bytes.clone(),
        txn: None,
    };
    let cut = Event::Truncated {
        log: (ID, 0),
        end: 2,
        epoch: 1,
    };
    parts.before = vec![("commit", cut), ("commit", new), ("commit", next)];
    // offset 2 is archived of the lost epoch, 3 of the new one
    parts.files[1][0].digest = digest(&bytes, Some(1));
    assert!(parts.broken().contains(&Rule::R2));
}

#[test]
fn r03_rows_out_of_order() {
    assert_breaks(Rule::R3, |s| s.files[0].swap(0, 1));
}

#[test]
fn r03_bounds_that_lie() {
    assert_breaks(Rule::R3, |s| {
        s.facts = |commit, facts| {
            if commit > 0 {
                facts.files[1].bounds = Some([(0, 0), (0, 1), (4, 4)]);
            }
        };
    });
}

#[test]
fn r04_a_ledger_that_goes_back() {
    let mut parts = Parts::right();
    parts.ledger = |commit, ledger| {
        if commit == 2 {
            entry(ledger, 1).next = o(4);
        }
    };
    assert!(parts.broken().contains(&Rule::R4));
}

#[test]
fn r04_a_snapshot_that_forgets_its_parent() {
    assert_breaks(Rule::R4, |s| s.parents[2] = Some(101));
}

#[test]
fn r04_a_gap_that_is_forgotten() {
    assert_breaks(Rule::R4, |s| {
        s.ledger = |commit, ledger| {
            if commit == 2 {
                ledger.gaps.clear();
            }
        };
    });
}

#[test]
fn r05_a_ledger_that_counts_wrongly() {
    assert_breaks(Rule::R5, |s| {
        s.ledger = |commit, ledger| {
            if commit > 0 {
                entry(ledger, 0).rows += 1;
            }
        };
    });
}

#[test]
fn r05_a_hash_of_other_rows() {
    assert_breaks(Rule::R5, |s| {
        s.ledger = |commit, ledger| {
            if commit == 2 {
                entry(ledger, 0).hash += 1;
            }
        };
    });
}

#[test]
fn r05_a_ledger_ahead_of_the_log() {
    let mut parts = Parts::right();
    parts.next[2][0] = 10;
    let broken = parts.broken();
    assert!(broken.contains(&Rule::R5), "{broken:?}");
}

#[test]
fn r06_a_file_that_is_not_there() {
    let mut parts = Parts::right();
    parts.left_out.push("put f2");
    assert!(parts.broken().contains(&Rule::R6));
}

#[test]
fn r06_a_file_that_is_listed_twice() {
    assert_breaks(Rule::R6, |s| s.listed[2].push(2));
}

#[test]
fn r06_a_file_of_another_length() {
    assert_breaks(Rule::R6, |s| {
        s.facts = |commit, facts| {
            if commit == 2 {
                facts.files[2].len = 9;
            }
        };
    });
}

#[test]
fn r07_a_file_that_is_deleted_though_it_is_needed() {
    let deleted = Event::Deleted {
        name: "f0".to_owned(),
    };
    let mut parts = Parts::right();
    parts.before.push(("settled", deleted));
    // and so it is missing at the end
    assert_eq!(parts.broken(), BTreeSet::from([Rule::R6, Rule::R7]));
}

#[test]
fn r07_a_file_of_a_commit_that_may_still_land() {
    let sent = Event::CommitSent {
        attempt: 1,
        needs: vec!["x".to_owned()],
    };
    let deleted = Event::Deleted {
        name: "x".to_owned(),
    };
    let settled = Event::CommitSettled { attempt: 1 };
    assert_breaks(Rule::R7, |s| {
        s.before = vec![("settled", sent.clone()), ("settled", deleted.clone())];
    });
    let mut parts = Parts::right();
    parts.before = vec![
        ("settled", sent),
        ("settled", settled),
        ("settled", deleted),
    ];
    assert_eq!(parts.broken(), BTreeSet::new());
}

#[test]
fn r08_an_object_that_is_written_again() {
    let again = Event::Put {
        name: "f0".to_owned(),
        len: 10,
        hash: 2,
        rows: None,
    };
    assert_breaks(Rule::R8, |s| s.before.push(("settled", again)));
}

#[test]
fn r08_a_snapshot_that_changes() {
    let mut parts = Parts::right();
    let mut other = (*parts.snapshot(0)).clone();
    other.files.clear();
    let state = TableState {
        topic: "t".to_owned(),
        metadata: "m2".to_owned(),
        snapshots: vec![Arc::new(other), parts.snapshot(1), parts.snapshot(2)],
        head: Some(103),
    };
    parts.before.push(("settled", Event::Table(state)));
    assert_eq!(parts.broken(), BTreeSet::from([Rule::R8]));
}

#[test]
fn r08_rows_that_vanish() {
    let mut parts = Parts::right();
    parts.listed[2] = vec![1, 2];
    assert!(parts.broken().contains(&Rule::R8));
}

#[test]
fn r09_a_handoff_that_leaves_an_offset_out() {
    assert_breaks(Rule::R9, |s| {
        s.left_out.push("finished");
        s.emitted[3] = (0, (9, 9), vec![], true);
    });
}

#[test]
fn r09_a_record_that_comes_twice() {
    let mut parts = Parts::right();
    parts.emitted[3] = (0, (7, 9), vec![8], true);
    assert!(parts.broken().contains(&Rule::R9));
}

#[test]
fn r09_a_live_batch_without_its_record() {
    assert_breaks(Rule::R9, |s| {
        s.left_out.push("finished");
        s.emitted[3].2.clear();
    });
}

#[test]
fn r09_an_archived_record_that_is_left_out() {
    assert_breaks(Rule::R9, |s| {
        s.left_out.push("finished");
        s.emitted[0].2.remove(1);
    });
}

#[test]
fn r10_a_resumed_run_goes_on_where_it_was_saved() {
    let resumed = |offset: i64| Event::Resumed {
        run: 1,
        positions: BTreeMap::from([(0, (0, offset)), (1, (0, 5))]),
    };
    let again = |from: i64, offsets: &[i64]| {
        let rows = offsets
            .iter()
            .map(|o| (*o, digest(&canonical((ID, 0), *o), Some(0))));
        Event::Emitted(Emission {
            run: 1,
            generation: 0,
            partition: 0,
            range: (from, 9),
            rows: rows.collect(),
            is_live: false,
        })
    };
    let mut parts = Parts::right();
    parts.before = vec![("finished", resumed(4)), ("finished", again(4, &[4, 8]))];
    assert_eq!(parts.broken(), BTreeSet::new());
    let mut parts = Parts::right();
    parts.left_out.push("finished");
    parts.before = vec![("state 2", resumed(4)), ("state 2", again(5, &[8]))];
    assert_eq!(parts.broken(), BTreeSet::from([Rule::R9]));
}

#[test]
fn r11_a_replay_of_everything_that_lacks_the_tail() {
    assert_breaks(Rule::R11, |s| {
        s.emitted.pop();
    });
}

#[test]
fn r12_a_run_that_stands_still() {
    assert_breaks(Rule::R12, |s| {
        let more = append(0, 9, None);
        s.before.push(("settled", more));
    });
}

#[test]
fn r12_a_run_in_which_nothing_happens() {
    let outcome = Checker::new().finish();
    assert!(outcome.violations.iter().any(|v| v.rule == Rule::R12));
    assert_breaks(Rule::R12, |s| s.left_out.push("settled"));
}

#[test]
fn r14_offsets_that_are_skipped_without_a_word() {
    let mut parts = Parts::right();
    parts.gap = None;
    parts.emitted[1].1 = (0, 3);
    let broken = parts.broken();
    assert!(broken.contains(&Rule::R1), "{broken:?}");
}

#[test]
fn r14_a_gap_that_is_none() {
    assert_breaks(Rule::R14, |s| {
        // retention takes them only after they were said to be missing
        s.left_out.push("retention");
        let late = Event::LogStart {
            log: (ID, 1),
            offset: 3,
        };
        s.before.push(("opened", late));
    });
}

#[test]
fn r14_archiving_that_begins_too_late() {
    let mut parts = Parts::right();
    parts.first = [1, 0];
    parts.files[0].remove(0);
    parts.left_out.extend(["finished", "emitted"]);
    let broken = parts.broken();
    assert!(broken.contains(&Rule::R14), "{broken:?}");
}

#[test]
fn r14_a_stop_that_is_not_true() {
    assert_breaks(Rule::R14, |s| {
        let stopped = Event::Stopped {
            topic: "t".to_owned(),
            partition: Some(0),
            kind: "truncated".to_owned(),
        };
        s.before = vec![("settled", append(0, 9, None)), ("settled", stopped)];
    });
}
