//! The whole of planner, merger and timeline against brute force: any layout, any knowledge of it, any order of replies.

use std::collections::BTreeMap;

use everlog_common::{
    EventColumnsBuilder, GapReason, Generation, Millis, OffsetRange, TimestampType,
};
use proptest::prelude::*;

use super::*;
use crate::history::merger::{RUN_BYTES, sorted_runs};
use crate::history::planner::{Extent, Hint};

fn offset(o: i64) -> Offset {
    Offset::new(o).unwrap()
}

fn partition(p: usize) -> Partition {
    Partition::new(i32::try_from(p).unwrap()).unwrap()
}

fn range(a: i64, b: i64) -> OffsetRange {
    OffsetRange::new(offset(a), offset(b)).unwrap()
}

/// (partition, offset, timestamp)
type Row = (usize, i64, i64);

/// How rows come to lie in row groups.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// As the archiver writes: commit by commit, each sorted by (partition, offset).
    Own,
    /// Sorted by (partition, offset) over everything.
    Compacted,
    /// Rows anywhere.
    Shuffled,
}

/// What planning knows of a row group before it is decoded.
#[derive(Debug, Clone, Copy)]
enum Known {
    Nothing,
    Bounds,
    Ranges,
}

#[derive(Debug, Clone)]
struct Case {
    layout: Layout,
    /// Per partition: (first offset, steps to the next offset, timestamps).
    logs: Vec<(i64, Vec<(i64, i64)>)>,
    commit_rows: usize,
    group_rows: usize,
    groups_per_file: usize,
    known: Vec<Known>,
    hints: Vec<i64>,
    shuffle: Vec<u16>,
    replies: Vec<u8>,
    hold_bytes: usize,
    units: usize,
    order: Order,
}

fn case() -> impl Strategy<Value = Case> {
    let log = (
        0_i64..20,
        prop::collection::vec((1_i64..4, 0_i64..60), 0..60),
    );
    (
        (
            prop_oneof![
                Just(Layout::Own),
                Just(Layout::Compacted),
                Just(Layout::Shuffled)
            ],
            prop::collection::vec(log, 1..5),
            1_usize..30,
            1_usize..20,
            1_usize..4,
        ),
        prop::collection::vec(
            prop_oneof![
                Just(Known::Nothing),
                Just(Known::Bounds),
                Just(Known::Ranges)
            ],
            1..6,
        ),
        prop::collection::vec(0_i64..100, 1..6),
        prop::collection::vec(any::<u16>(), 250),
        prop::collection::vec(any::<u8>(), 1..40),
        (
            100_usize..60_000,
            1_usize..5,
            prop_oneof![Just(Order::Partition), Just(Order::Time)],
        ),
    )
        .prop_map(
            |(
                (layout, logs, commit_rows, group_rows, groups_per_file),
                known,
                hints,
                shuffle,
                replies,
                (hold_bytes, units, order),
            )| Case {
                layout,
                logs,
                commit_rows,
                group_rows,
                groups_per_file,
                known,
                hints,
                shuffle,
                replies,
                hold_bytes,
                units,
                order,
            },
        )
}

impl Case {
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (p, (first, steps)) in self.logs.iter().enumerate() {
            let mut at = *first;
            for (step, ts) in steps {
                at += step;
                rows.push((p, at, *ts));
            }
        }
        rows
    }

    fn end(&self, p: usize) -> i64 {
        let (first, steps) = &self.logs[p];
        first + steps.iter().map(|(s, _)| s).sum::<i64>() + 3
    }

    fn laid_out(&self) -> Vec<Row> {
        let rows = self.rows();
        match self.layout {
            Layout::Compacted => rows,
            Layout::Shuffled => {
                let mut keyed: Vec<(u16, Row)> = rows
                    .iter()
                    .enumerate()
                    .map(|(i, r)| (self.shuffle[i % self.shuffle.len()], *r))
                    .collect();
                keyed.sort();
                keyed.into_iter().map(|(_, r)| r).collect()
            }
            Layout::Own => {
                // the n-th commit holds the n-th slice of every partition's log
                let mut keyed: Vec<(usize, Row)> = Vec::new();
                let mut seen = vec![0; self.logs.len()];
                for row in rows {
                    keyed.push((seen[row.0] / self.commit_rows, row));
                    seen[row.0] += 1;
                }
                keyed.sort();
                keyed.into_iter().map(|(_, r)| r).collect()
            }
        }
    }

    fn files(&self) -> Vec<Vec<Vec<Row>>> {
        let rows = self.laid_out();
        let groups: Vec<Vec<Row>> = rows.chunks(self.group_rows).map(<[Row]>::to_vec).collect();
        groups
            .chunks(self.groups_per_file)
            .map(<[Vec<Row>]>::to_vec)
            .collect()
    }
}

fn extent(rows: &[Row], known: Known) -> Extent {
    let bounds = |pick: fn(&Row) -> i64| {
        let values = || rows.iter().map(pick);
        (values().min().unwrap(), values().max().unwrap())
    };
    match known {
        Known::Nothing => Extent::Unknown,
        Known::Bounds => {
            let (low, high) = bounds(|r| r.0 as i64);
            let offsets = bounds(|r| r.1);
            Extent::Bounds {
                partitions: (partition(low as usize), partition(high as usize)),
                offsets: (offset(offsets.0), offset(offsets.1)),
            }
        }
        Known::Ranges => {
            let mut spans: BTreeMap<usize, (i64, i64)> = BTreeMap::new();
            for (p, o, _) in rows {
                let span = spans.entry(*p).or_insert((*o, *o));
                *span = (span.0.min(*o), span.1.max(*o));
            }
            Extent::Ranges(
                spans
                    .into_iter()
                    .map(|(p, (a, b))| (partition(p), range(a, b + 1)))
                    .collect(),
            )
        }
    }
}

fn hint(archived_at: i64, extent: &Extent) -> Hint {
    Hint {
        archived_at,
        sequence: 0,
        lowest: extent.lowest(),
    }
}

fn columns(rows: &[(i64, i64)]) -> EventColumns {
    let mut b = EventColumnsBuilder::new();
    for (o, ts) in rows {
        let value = o.to_le_bytes();
        b.push(
            offset(*o),
            (*ts, TimestampType::Create),
            None,
            Some(&value),
            std::iter::empty(),
            None,
        );
    }
    b.finish()
}

/// As the table's reader hands a row group over: file order, a new run where partition or order breaks.
fn decode(rows: &[Row]) -> Vec<(Partition, EventColumns)> {
    let mut runs: Vec<(usize, Vec<(i64, i64)>)> = Vec::new();
    for (p, o, ts) in rows {
        match runs.last_mut() {
            Some((q, run)) if q == p && run.last().unwrap().0 < *o => run.push((*o, *ts)),
            _ => runs.push((*p, vec![(*o, *ts)])),
        }
    }
    runs.into_iter()
        .map(|(p, run)| (partition(p), columns(&run)))
        .collect()
}

/// A reply comes within so many steps.
const REPLY_STEPS_MAX: usize = 50;

#[derive(Debug, Default)]
struct Outcome {
    rows: Vec<Row>,
    covered: BTreeMap<usize, Vec<(i64, i64)>>,
    gaps: Vec<Gap>,
    decoded: (u64, u64),
    stopped: BTreeMap<usize, i64>,
    held_max: usize,
}

fn run(case: &Case, lanes: BTreeMap<Partition, LaneSpec>) -> Result<Outcome, MergeError> {
    run_held(case, lanes, &[])
}

/// Who is held back for so many steps, in turn and again and again; nobody, without any.
type Holds = [(usize, BTreeSet<usize>)];

fn run_held(
    case: &Case,
    lanes: BTreeMap<Partition, LaneSpec>,
    holds: &Holds,
) -> Result<Outcome, MergeError> {
    let files = case.files();
    let mut holds = holds.iter().cycle();
    let (mut hold_for, mut held) = (0, BTreeSet::new());
    let pick = |list: &[i64], i: usize| list[i % list.len()];
    let known = |i: usize| case.known[i % case.known.len()];
    let facts: Vec<FileFacts> = files
        .iter()
        .enumerate()
        .map(|(i, groups)| {
            let all: Vec<Row> = groups.concat();
            let extent = extent(&all, known(i));
            let hint = hint(pick(&case.hints, i), &extent);
            FileFacts {
                file: i,
                extent,
                hint,
            }
        })
        .collect();
    let limits = Limits {
        hold_bytes: case.hold_bytes,
        decode_bytes: 1 << 20,
        units: case.units,
        files: 4,
    };
    let wanted: Vec<Partition> = lanes.keys().copied().collect();
    let mut assembly = Assembly::new(lanes, facts, case.order, limits);
    let mut pending: Vec<(usize, Work)> = Vec::new();
    let mut outcome = Outcome::default();
    let mut replies = case.replies.iter().cycle();
    for step in 0_usize..100_000 {
        if hold_for == 0
            && let Some((steps, partitions)) = holds.next()
        {
            hold_for = *steps;
            held = partitions.iter().map(|p| partition(*p)).collect();
            assembly.hold(&held);
        }
        hold_for = hold_for.saturating_sub(1);
        match assembly.next()? {
            Ready::Rows(rows) => {
                assert!(!held.contains(&rows.partition), "it is held back");
                let p = rows.partition.get() as usize;
                let span = (rows.range.start().get(), rows.range.end().get());
                outcome.covered.entry(p).or_default().push(span);
                for i in 0..rows.columns.len() {
                    let row = rows.columns.row(i);
                    assert!(rows.range.contains(row.offset), "rows lie in their range");
                    outcome.rows.push((p, row.offset.get(), row.timestamp_ms));
                }
            }
            Ready::Gap(gap) => outcome.gaps.push(gap),
            Ready::Finished => {
                outcome.decoded = assembly.decoded_units();
                for p in wanted {
                    assert!(!assembly.has_more(p));
                    if let Some(o) = assembly.stopped_at(p) {
                        outcome.stopped.insert(p.get() as usize, o.get());
                    }
                }
                return Ok(outcome);
            }
            Ready::Waiting => {
                outcome.held_max = outcome.held_max.max(assembly.merger.held_bytes());
                while let Some(work) = assembly.work() {
                    pending.push((step, work));
                }
                if pending.is_empty() && !held.is_empty() {
                    let mut free = wanted.iter().filter(|p| !held.contains(p));
                    assert!(free.all(|p| !assembly.has_more(*p)), "all else is out");
                    hold_for = 0;
                    continue;
                }
                assert!(
                    !pending.is_empty(),
                    "waits for nothing, focus {:?}",
                    assembly.focus
                );
                // in any order, but none is left lying for ever
                let oldest = (0..pending.len()).min_by_key(|i| pending[*i].0).unwrap();
                let reply = if pending[oldest].0 + REPLY_STEPS_MAX < step {
                    oldest
                } else {
                    usize::from(*replies.next().unwrap()) % pending.len()
                };
                match pending.swap_remove(reply).1 {
                    Work::Open(node, file) => {
                        let groups = files[file]
                            .iter()
                            .enumerate()
                            .map(|(g, rows)| {
                                let extent = extent(rows, known(file + g));
                                let hint = hint(pick(&case.hints, file), &extent);
                                GroupFacts {
                                    row_group: g,
                                    bytes: columns(
                                        &rows.iter().map(|r| (r.1, r.2)).collect::<Vec<_>>(),
                                    )
                                    .bytes(),
                                    extent,
                                    hint,
                                }
                            })
                            .collect();
                        assembly.opened(node, groups);
                    }
                    Work::Decode(unit) => {
                        let rows = &files[unit.origin.file][unit.origin.row_group];
                        assembly
                            .decoded(unit.node, sorted_runs(unit.origin.file, decode(rows))?)?;
                    }
                }
            }
        }
    }
    panic!("no end in sight");
}

fn lanes(case: &Case, window: impl Fn(usize) -> (i64, i64)) -> BTreeMap<Partition, LaneSpec> {
    (0..case.logs.len())
        .map(|p| {
            let (from, until) = window(p);
            let spec = LaneSpec {
                window: Window {
                    from: offset(from),
                    until: offset(until),
                },
                gaps: Vec::new(),
                rows_due: None,
                until_timestamp: None,
            };
            (partition(p), spec)
        })
        .collect()
}

fn whole(case: &Case) -> BTreeMap<Partition, LaneSpec> {
    let mut specs = lanes(case, |p| (case.logs[p].0, case.end(p)));
    for (p, spec) in &mut specs {
        spec.rows_due = Some(case.logs[p.get() as usize].1.len() as u64);
    }
    specs
}

/// The definition of `--order time`, row by row.
fn merged_by_time(rows: &[Row], partitions: usize) -> Vec<Row> {
    let mut logs: Vec<std::collections::VecDeque<Row>> = vec![Default::default(); partitions];
    for row in rows {
        logs[row.0].push_back(*row);
    }
    let mut out = Vec::new();
    while let Some(p) = (0..partitions)
        .filter(|p| !logs[*p].is_empty())
        .min_by_key(|p| (logs[*p][0].2, *p, logs[*p][0].1))
    {
        out.push(logs[p].pop_front().unwrap());
    }
    out
}

fn of_partition(rows: &[Row], p: usize) -> Vec<Row> {
    rows.iter().filter(|r| r.0 == p).copied().collect()
}

fn assert_contiguous(covered: &[(i64, i64)], from: i64, until: i64) {
    let mut at = from;
    for (a, b) in covered {
        assert_eq!(*a, at, "ranges are contiguous");
        at = *b;
    }
    assert_eq!(at, until, "covered up to the end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// h32: whatever the layout, and whatever is known of it, every partition's rows come out once and in order.
    #[test]
    fn h32_any_layout_gives_every_partition_in_order(case in case()) {
        let outcome = run(&case, whole(&case)).unwrap();
        let expected = case.rows();
        for p in 0..case.logs.len() {
            prop_assert_eq!(of_partition(&outcome.rows, p), of_partition(&expected, p));
            assert_contiguous(outcome.covered.get(&p).map_or(&[][..], Vec::as_slice), case.logs[p].0, case.end(p));
        }
        if case.order == Order::Time {
            prop_assert_eq!(outcome.rows, merged_by_time(&expected, case.logs.len()));
        }
        let row = columns(&[(0, 0)]).bytes() + RUN_BYTES;
        prop_assert!(outcome.held_max <= case.hold_bytes + case.logs.len() * row, "held {} of {}", outcome.held_max, case.hold_bytes);
    }

    /// Whoever is held back whenever: the same rows, each partition in its order, and never more memory.
    #[test]
    fn holding_changes_no_row(
        mut case in case(),
        mut holds in prop::collection::vec((1_usize..30, prop::collection::btree_set(0_usize..5, 0..5)), 1..8),
    ) {
        case.order = Order::Partition;
        // so that it ends
        holds.push((10, BTreeSet::new()));
        let outcome = run_held(&case, whole(&case), &holds).unwrap();
        let expected = case.rows();
        for p in 0..case.logs.len() {
            prop_assert_eq!(of_partition(&outcome.rows, p), of_partition(&expected, p));
            assert_contiguous(outcome.covered.get(&p).map_or(&[][..], Vec::as_slice), case.logs[p].0, case.end(p));
        }
        let row = columns(&[(0, 0)]).bytes() + RUN_BYTES;
        prop_assert!(outcome.held_max <= case.hold_bytes + case.logs.len() * row, "held {} of {}", outcome.held_max, case.hold_bytes);
    }

    /// With enough memory no row group is decoded twice.
    #[test]
    fn a_shared_row_group_is_decoded_once(mut case in case()) {
        case.hold_bytes = 10 << 20;
        let outcome = run(&case, whole(&case)).unwrap();
        let groups: usize = case.files().iter().map(Vec::len).sum();
        prop_assert_eq!(outcome.decoded, (groups as u64, 0));
    }

    /// Only the wanted offsets come, and ranges cover exactly the window.
    #[test]
    fn windows_are_cut_exactly(case in case(), from in 0_i64..100, len in 0_i64..80) {
        let until = from + len;
        let specs = lanes(&case, |p| (from.min(case.end(p)), until.min(case.end(p))));
        let outcome = run(&case, specs).unwrap();
        for p in 0..case.logs.len() {
            let expected: Vec<Row> = of_partition(&case.rows(), p).into_iter().filter(|r| r.1 >= from && r.1 < until).collect();
            prop_assert_eq!(of_partition(&outcome.rows, p), expected);
        }
    }

    /// h18: the end by timestamp is the first record at or after it, out-of-order timestamps included.
    #[test]
    fn h18_until_timestamp_ends_before_the_first_such_record(case in case(), at in 0_i64..60) {
        let mut specs = whole(&case);
        for spec in specs.values_mut() {
            spec.until_timestamp = Some(at);
        }
        let outcome = run(&case, specs).unwrap();
        for p in 0..case.logs.len() {
            let log = of_partition(&case.rows(), p);
            let stop = log.iter().position(|r| r.2 >= at);
            prop_assert_eq!(outcome.stopped.get(&p).copied(), stop.map(|i| log[i].1));
            prop_assert_eq!(of_partition(&outcome.rows, p), log[..stop.unwrap_or(log.len())].to_vec());
        }
    }

    /// A row that lies in two files is an error, never emitted twice.
    #[test]
    fn a_duplicate_is_an_error(case in case(), which in any::<prop::sample::Index>(), copies in 1_usize..4) {
        let mut case = case;
        case.layout = Layout::Compacted;
        prop_assume!(!case.rows().is_empty());
        let row = case.rows()[which.index(case.rows().len())];
        let twice = DuplicatedCase { case, row, copies };
        let error = twice.run();
        prop_assert!(matches!(error, Err(MergeError::Duplicate { .. } | MergeError::Late { .. } | MergeError::RowCount { .. })), "{error:?}");
    }
}

struct DuplicatedCase {
    case: Case,
    row: Row,
    copies: usize,
}

impl DuplicatedCase {
    /// The case's files and one more with the row.
    fn run(&self) -> Result<Vec<Row>, MergeError> {
        let mut files = self.case.files();
        for _ in 0..self.copies {
            files.push(vec![vec![self.row]]);
        }
        let facts: Vec<FileFacts> = files
            .iter()
            .enumerate()
            .map(|(file, groups)| {
                let extent = extent(&groups.concat(), Known::Bounds);
                FileFacts {
                    file,
                    hint: hint(file as i64, &extent),
                    extent,
                }
            })
            .collect();
        let limits = Limits {
            hold_bytes: 1 << 20,
            decode_bytes: 1 << 20,
            units: 3,
            files: 3,
        };
        let mut assembly = Assembly::new(whole(&self.case), facts, self.case.order, limits);
        let mut pending = Vec::new();
        let mut out = Vec::new();
        loop {
            match assembly.next()? {
                Ready::Rows(rows) => out.extend((0..rows.columns.len()).map(|i| {
                    (
                        rows.partition.get() as usize,
                        rows.columns.offsets.value(i),
                        0,
                    )
                })),
                Ready::Gap(_) => {}
                Ready::Finished => return Ok(out),
                Ready::Waiting => {
                    while let Some(work) = assembly.work() {
                        pending.push(work);
                    }
                    match pending.remove(0) {
                        Work::Open(node, file) => {
                            let groups = files[file].iter().enumerate().map(|(row_group, rows)| {
                                let extent = extent(rows, Known::Bounds);
                                GroupFacts {
                                    row_group,
                                    bytes: 100,
                                    hint: hint(0, &extent),
                                    extent,
                                }
                            });
                            assembly.opened(node, groups.collect());
                        }
                        Work::Decode(unit) => {
                            let rows = &files[unit.origin.file][unit.origin.row_group];
                            assembly
                                .decoded(unit.node, sorted_runs(unit.origin.file, decode(rows))?)?;
                        }
                    }
                }
            }
        }
    }
}

fn plain(logs: Vec<(i64, Vec<(i64, i64)>)>, layout: Layout) -> Case {
    Case {
        layout,
        logs,
        commit_rows: 2,
        group_rows: 2,
        groups_per_file: 2,
        known: vec![Known::Bounds],
        hints: vec![0, 1, 2, 3],
        shuffle: (0_u16..250).map(|i| i * 89 % 251).collect(),
        replies: vec![0],
        hold_bytes: 1 << 20,
        units: 2,
        order: Order::Partition,
    }
}

#[test]
fn a_recorded_gap_is_passed_between_the_rows_around_it() {
    let case = plain(vec![(0, vec![(1, 0), (1, 0), (8, 0), (1, 0)])], Layout::Own); // 1 2 | 10 11
    let gap = Gap {
        generation: Generation::FIRST,
        partition: partition(0),
        start: offset(3),
        end: Some(offset(9)),
        reason: GapReason::Retention,
        at: Millis(0),
    };
    let mut specs = whole(&case);
    specs.get_mut(&partition(0)).unwrap().gaps = vec![gap];
    let outcome = run(&case, specs.clone()).unwrap();
    assert_eq!(outcome.gaps, [gap]);
    assert_eq!(
        outcome.rows.iter().map(|r| r.1).collect::<Vec<_>>(),
        [1, 2, 10, 11]
    );
    let covered = &outcome.covered[&0];
    assert!(
        covered.iter().all(|(a, b)| *b <= 3 || *a >= 9),
        "nothing covers the gap: {covered:?}"
    );

    specs.get_mut(&partition(0)).unwrap().gaps[0].end = Some(offset(11));
    assert!(
        matches!(run(&case, specs), Err(MergeError::InGap { offset: o, .. }) if o == offset(10))
    );
}

/// Reads until nothing more can be done; gives whose rows came.
fn drain(assembly: &mut Assembly, files: &[Vec<Vec<Row>>]) -> BTreeSet<usize> {
    let mut came = BTreeSet::new();
    loop {
        match assembly.next().unwrap() {
            Ready::Rows(rows) => {
                came.insert(rows.partition.get() as usize);
            }
            Ready::Gap(_) => {}
            Ready::Finished => return came,
            Ready::Waiting => match assembly.work() {
                None => return came,
                Some(Work::Open(node, file)) => {
                    let groups = files[file].iter().enumerate().map(|(row_group, rows)| {
                        let extent = extent(rows, Known::Bounds);
                        GroupFacts {
                            row_group,
                            bytes: 100,
                            hint: hint(0, &extent),
                            extent,
                        }
                    });
                    assembly.opened(node, groups.collect());
                }
                Some(Work::Decode(unit)) => {
                    let rows = &files[unit.origin.file][unit.origin.row_group];
                    let runs = sorted_runs(unit.origin.file, decode(rows)).unwrap();
                    assembly.decoded(unit.node, runs).unwrap();
                }
            },
        }
    }
}

#[test]
fn nothing_is_read_for_a_held_partition_alone() {
    // partition 0 in the first 50 files, more than are opened ahead, and partition 1 in the others
    let mut case = plain(vec![(0, vec![(1, 0); 100]); 2], Layout::Compacted);
    case.groups_per_file = 1;
    let files = case.files();
    let facts = files.iter().enumerate().map(|(file, groups)| {
        let extent = extent(&groups.concat(), Known::Bounds);
        FileFacts {
            file,
            hint: hint(file as i64, &extent),
            extent,
        }
    });
    let limits = Limits {
        hold_bytes: 1 << 20,
        decode_bytes: 1 << 20,
        units: 2,
        files: 4,
    };
    let mut assembly = Assembly::new(whole(&case), facts, Order::Partition, limits);
    assembly.hold(&[partition(0)].into());
    assert_eq!(drain(&mut assembly, &files), [1].into());
    assert_eq!(assembly.decoded_units(), (50, 0));
    assert!(assembly.has_more(partition(0)) && !assembly.has_more(partition(1)));
    assert_eq!(assembly.merger.held_bytes(), 0, "no read-ahead of it");
    assembly.hold(&BTreeSet::new());
    assert_eq!(drain(&mut assembly, &files), [0].into());
    assert_eq!(
        (assembly.decoded_units(), assembly.waiting()),
        ((100, 0), 0)
    );
}

#[test]
fn a_held_partition_s_rows_that_come_with_others_take_a_part_of_the_memory() {
    // every row group has rows of both
    let mut case = plain(vec![(0, vec![(1, 0); 4000]); 2], Layout::Own);
    case.commit_rows = 40;
    case.group_rows = 80;
    case.groups_per_file = 5;
    case.hints = (0..50).collect();
    case.hold_bytes = 64 << 10;
    let holds = [(1_000_000, [0].into()), (1_000_000, BTreeSet::new())];
    let outcome = run_held(&case, whole(&case), &holds).unwrap();
    assert!(outcome.held_max <= case.hold_bytes, "{}", outcome.held_max);
    let first = outcome.rows.iter().position(|r| r.0 == 0).unwrap();
    assert_eq!(first, 4000, "partition 1 goes through without partition 0");
    // what did not fit is decoded once more, and not over and over
    let (units, again) = outcome.decoded;
    assert!(again > 0 && units <= 2 * 100 + 10, "{:?}", outcome.decoded);
}

#[test]
fn fewer_rows_than_the_ledger_counted_are_an_error() {
    let case = plain(vec![(0, vec![(1, 0), (1, 0)])], Layout::Own);
    let mut specs = whole(&case);
    specs.get_mut(&partition(0)).unwrap().rows_due = Some(3);
    let error = run(&case, specs).unwrap_err();
    assert!(
        matches!(
            error,
            MergeError::RowCount {
                found: 2,
                due: 3,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn rows_outside_of_the_stated_bounds_are_an_error() {
    let unit = Unit {
        node: {
            let facts = FileFacts {
                file: 0,
                extent: Extent::Unknown,
                hint: hint(0, &Extent::Unknown),
            };
            let windows = [(
                partition(0),
                Window {
                    from: offset(0),
                    until: offset(9),
                },
            )]
            .into();
            Planner::new(&windows, [facts]).take_file().unwrap().0
        },
        origin: super::super::planner::Origin {
            file: 7,
            row_group: 0,
            bytes: 0,
        },
        extent: Extent::Ranges(vec![(partition(0), range(0, 5))]),
        again: false,
    };
    let case = plain(vec![(0, vec![(1, 0)])], Layout::Own);
    let mut merger = Merger::new(whole(&case));
    let error = merger
        .accept(&unit, vec![(partition(0), columns(&[(4, 0), (5, 0)]))])
        .unwrap_err();
    assert!(
        matches!(error, MergeError::Misplaced { file: 7, .. }),
        "{error:?}"
    );
}

/// A commit of a topic with many quiet partitions holds a row or two of each.
fn quiet(partitions: usize, commits: usize) -> Case {
    let mut case = plain(vec![(0, vec![(1, 0); commits]); partitions], Layout::Own);
    case.commit_rows = 1;
    case.group_rows = partitions;
    case.groups_per_file = 1;
    case.units = 8;
    case.hints = (0..i64::try_from(commits).unwrap()).collect();
    case.hold_bytes = 16 << 20;
    case
}

fn batches(outcome: &Outcome) -> usize {
    outcome.covered.values().map(Vec::len).sum()
}

#[test]
fn wide_and_quiet_topics_are_not_emitted_row_by_row() {
    // whichever end of the history is read first
    let case = quiet(1, 400);
    let mut reversed = case.clone();
    reversed.hints.reverse();
    for case in [&case, &reversed] {
        let outcome = run(case, whole(case)).unwrap();
        assert!(batches(&outcome) < 10, "{} batches", batches(&outcome));
    }
    // 20,000 rows of 100 partitions, and too little memory to keep them all
    let mut case = quiet(100, 200);
    case.hold_bytes = 4 << 20;
    let outcome = run(&case, whole(&case)).unwrap();
    assert_eq!(outcome.rows.len(), 20_000);
    assert!(batches(&outcome) < 4_000, "{} batches", batches(&outcome));
    assert!(outcome.held_max <= case.hold_bytes, "{}", outcome.held_max);
}
