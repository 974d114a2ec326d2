//! One pass over the rows of both sides, in the order of (key, start, end).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use arrow_array::Array as _;
use datafusion::arrow::util::display::array_value_to_string;
use twox_hash::XxHash3_64;

use super::report::{Example, Groups, Kind, MeasureReport, ReportedRow, Rows, SameRows};
use super::rows::{Number, Row, Sorted};
use super::{Columns, CompareError, Edges, Mode};

const DAY_MS: i64 = 86_400_000;
/// A window that is open on both sides is in neither output. It is taken to be no longer than the longest of all that are there, and
/// no longer than this: else one endless window would excuse what is missing anywhere.
const OPEN_MS_MAX: i64 = DAY_MS;
/// Rows of each side that an example shows.
const EXAMPLE_ROWS: usize = 10;

/// What decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) mode: Mode,
    /// Event time that both outputs cover, in milliseconds.
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) horizon: i64,
    pub(super) tolerance: f64,
    pub(super) examples: usize,
}

/// What the pass found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) rows: Rows,
    pub(super) same: Option<SameRows>,
    pub(super) groups: Option<Groups>,
    pub(super) measures: Vec<MeasureReport>,
    pub(super) examples: Vec<Example>,
    pub(super) first_ms: Option<i64>,
    pub(super) last_ms: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Left,
    Right,
}

impl Of {
    const fn place(self) -> usize {
        match self {
            Self::Left => 0,
            Self::Right => 1,
        }
    }
}

/// Sweeps both sides.
pub(super) async fn run(
    left: &mut Sorted,
    right: &mut Sorted,
    columns: &Columns,
    facts: &Facts,
) -> Result<Found, CompareError> {
    match facts.mode {
        Mode::Same => same(left, right, columns, facts).await,
        Mode::Changed => changed(left, right, columns, facts).await,
    }
}

fn is_inside(row: &Row, facts: &Facts) -> bool {
    row.start() >= facts.from && row.end() <= facts.to
}

/// Examples: those of the smallest hashes, so that they come from everywhere and are the same every time.
struct Examples {
    max: usize,
    kept: BinaryHeap<Ranked>,
}

struct Ranked {
    rank: u64,
    example: Example,
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}
impl Eq for Ranked {}
impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank)
    }
}

impl Examples {
    fn new(max: usize) -> Self {
        Self {
            max,
            kept: BinaryHeap::new(),
        }
    }

    fn rank(row: &Row) -> u64 {
        let mut bytes = row.key().to_vec();
        bytes.extend_from_slice(&row.start().to_be_bytes());
        XxHash3_64::oneshot(&bytes)
    }

    fn takes(&self, rank: u64) -> bool {
        self.max > 0
            && (self.kept.len() < self.max
                || self.kept.peek().is_some_and(|worst| rank < worst.rank))
    }

    fn add(&mut self, kind: Kind, left: &[Row], right: &[Row], columns: &Columns) {
        let Some(first) = left.first().or_else(|| right.first()) else {
            return;
        };
        let rank = Self::rank(first);
        if !self.takes(rank) {
            return;
        }
        let shown = |rows: &[Row]| -> Vec<ReportedRow> {
            rows.iter().map(|row| show(row, columns)).collect()
        };
        let example = Example {
            kind,
            left: shown(left),
            right: shown(right),
        };
        self.add_made(rank, example);
    }

    fn add_made(&mut self, rank: u64, example: Example) {
        if !self.takes(rank) {
            return;
        }
        self.kept.push(Ranked { rank, example });
        if self.kept.len() > self.max {
            self.kept.pop();
        }
    }

    fn into_list(self) -> Vec<Example> {
        self.kept
            .into_sorted_vec()
            .into_iter()
            .map(|ranked| ranked.example)
            .collect()
    }
}

fn show(row: &Row, columns: &Columns) -> ReportedRow {
    let window = columns.window.iter().flat_map(Edges::columns);
    columns
        .keys
        .iter()
        .chain(window)
        .chain(&columns.rest)
        .filter_map(|name| {
            let array = row.of.batch.column_by_name(name)?;
            let text = if array.is_null(row.index) {
                "null".to_owned()
            } else {
                array_value_to_string(array, row.index).unwrap_or_default()
            };
            Some((name.clone(), text))
        })
        .collect()
}

/// Whether the columns beside the window are equal, floats within the tolerance.
fn rest_agrees(left: &Row, right: &Row, columns: &Columns, tolerance: f64) -> bool {
    if left.rest() == right.rest() {
        return true;
    }
    columns.rest.iter().all(|name| {
        let arrays = (
            left.of.batch.column_by_name(name),
            right.of.batch.column_by_name(name),
        );
        let (Some(a), Some(b)) = arrays else {
            return false;
        };
        let (a, b) = (a.slice(left.index, 1), b.slice(right.index, 1));
        if *a == *b {
            return true;
        }
        if !a.data_type().is_floating() || a.is_null(0) || b.is_null(0) {
            return false;
        }
        let float = |text: Result<String, _>| -> Option<f64> {
            let text: Result<String, datafusion::arrow::error::ArrowError> = text;
            text.ok()?.parse().ok()
        };
        match (
            float(array_value_to_string(&a, 0)),
            float(array_value_to_string(&b, 0)),
        ) {
            (Some(a), Some(b)) => Number::Float(a).agrees(Number::Float(b), tolerance),
            _ => false,
        }
    })
}

async fn same(
    left: &mut Sorted,
    right: &mut Sorted,
    columns: &Columns,
    facts: &Facts,
) -> Result<Found, CompareError> {
    let windowed = columns.window.is_some();
    let mut found = Found::default();
    let mut same = SameRows::default();
    let mut examples = Examples::new(facts.examples);
    // per side, how far rows of this key reach that begin before the range
    let mut key: Vec<u8> = Vec::new();
    let mut reach: [Option<i64>; 2] = [None, None];
    let (mut one, mut other) = (left.next().await?, right.next().await?);
    loop {
        let order = match (&one, &other) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(l), Some(r)) if windowed => l.window_cmp(r),
            (Some(l), Some(r)) => l.window_cmp(r).then_with(|| l.rest().cmp(r.rest())),
        };
        let first = if order == Ordering::Greater {
            &other
        } else {
            &one
        };
        if let Some(row) = first
            && row.key() != key.as_slice()
        {
            key = row.key().to_vec();
            reach = [None, None];
        }
        if order == Ordering::Equal {
            if let (Some(l), Some(r)) = (&one, &other) {
                if is_inside(l, facts) {
                    found.note(l);
                    found.rows.left += 1;
                    found.rows.right += 1;
                    if rest_agrees(l, r, columns, facts.tolerance) {
                        same.equal += 1;
                    } else {
                        same.different += 1;
                        examples.add(
                            Kind::Different,
                            std::slice::from_ref(l),
                            std::slice::from_ref(r),
                            columns,
                        );
                    }
                } else {
                    found.rows.outside_left += 1;
                    found.rows.outside_right += 1;
                    reach_out(&mut reach, Of::Left, l, facts);
                    reach_out(&mut reach, Of::Right, r, facts);
                }
            }
            one = left.next().await?;
            other = right.next().await?;
            continue;
        }
        let of = if order == Ordering::Less {
            Of::Left
        } else {
            Of::Right
        };
        if let Some(row) = if of == Of::Left { &one } else { &other } {
            let counterpart = reach[1 - of.place()];
            if !is_inside(row, facts) {
                *found.rows.outside(of == Of::Left) += 1;
                reach_out(&mut reach, of, row, facts);
            } else if counterpart.is_some_and(|end| row.start() < end) {
                *found.rows.border(of == Of::Left) += 1;
            } else {
                found.note(row);
                let alone = std::slice::from_ref(row);
                if of == Of::Left {
                    found.rows.left += 1;
                    same.only_left += 1;
                    examples.add(Kind::OnlyLeft, alone, &[], columns);
                } else {
                    found.rows.right += 1;
                    same.only_right += 1;
                    examples.add(Kind::OnlyRight, &[], alone, columns);
                }
            }
        }
        match of {
            Of::Left => one = left.next().await?,
            Of::Right => other = right.next().await?,
        }
    }
    found.same = Some(same);
    found.examples = examples.into_list();
    Ok(found)
}

fn reach_out(reach: &mut [Option<i64>; 2], of: Of, row: &Row, facts: &Facts) {
    if row.start() < facts.from {
        reach[of.place()] = reach[of.place()].max(Some(row.end()));
    }
}

impl Found {
    fn note(&mut self, row: &Row) {
        let start = row.start();
        self.first_ms = Some(self.first_ms.map_or(start, |first| first.min(start)));
        self.last_ms = self.last_ms.max(Some(row.end()));
    }
}

/// Windows of both sides that overlap, as sums.
struct Group {
    key: Vec<u8>,
    start: i64,
    end: i64,
    sides: [Share; 2],
    /// Whether all windows lie inside the range; if not, whether one of them ends after it.
    inside: bool,
    ends_after: bool,
}

/// One side's windows in a group.
#[derive(Default)]
struct Share {
    rows: u64,
    outside: u64,
    start: i64,
    end: i64,
    sums: Vec<Number>,
    /// The first of them.
    shown: Vec<Row>,
}

impl Group {
    fn new(row: &Row, measures: usize) -> Self {
        let share = || Share {
            sums: vec![Number::default(); measures],
            start: i64::MAX,
            end: i64::MIN,
            ..Share::default()
        };
        Self {
            key: row.key().to_vec(),
            start: row.start(),
            end: row.end(),
            sides: [share(), share()],
            inside: true,
            ends_after: false,
        }
    }

    fn takes(&self, row: &Row) -> bool {
        row.start() < self.end && row.key() == self.key
    }

    fn add(&mut self, of: Of, row: Row, facts: &Facts) {
        self.end = self.end.max(row.end());
        let share = &mut self.sides[of.place()];
        share.rows += 1;
        share.start = share.start.min(row.start());
        share.end = share.end.max(row.end());
        for (measure, sum) in share.sums.iter_mut().enumerate() {
            *sum = sum.plus(row.measure(measure));
        }
        if !is_inside(&row, facts) {
            share.outside += 1;
            self.inside = false;
            self.ends_after |= row.end() > facts.to;
        }
        if share.shown.len() < EXAMPLE_ROWS {
            share.shown.push(row);
        }
    }

    fn kind(&self) -> Kind {
        let [left, right] = &self.sides;
        match (left.rows, right.rows) {
            (_, 0) => Kind::OnlyLeft,
            (0, _) => Kind::OnlyRight,
            (1, 1) if left.start == right.start && left.end == right.end => Kind::Identical,
            (1, 1) => Kind::Moved,
            (1, _) => Kind::Split,
            (_, 1) => Kind::Merged,
            _ => Kind::Mixed,
        }
    }
}

/// A key's sums of one day.
struct KeyDay {
    key: Vec<u8>,
    day: i64,
    sums: [Vec<Number>; 2],
}

struct Changed<'a> {
    columns: &'a Columns,
    facts: &'a Facts,
    found: Found,
    groups: Groups,
    measures: Vec<MeasureReport>,
    examples: Examples,
    /// Groups of one side alone that may be open on the other, of one key, each within the horizon of the next. They become one, as
    /// far as their days allow.
    pending: Vec<Group>,
    /// How much longer than the shortest a window may be that is open on both sides, in milliseconds.
    stretch: i64,
    key_day: Option<KeyDay>,
}

/// More pending groups than this are given up as open: one key of a chain that long tells nothing.
const PENDING_MAX: usize = 100_000;

async fn changed(
    left: &mut Sorted,
    right: &mut Sorted,
    columns: &Columns,
    facts: &Facts,
) -> Result<Found, CompareError> {
    let mut state = Changed {
        columns,
        facts,
        found: Found::default(),
        groups: Groups::default(),
        measures: columns
            .measures
            .iter()
            .map(|column| MeasureReport::new(column))
            .collect(),
        examples: Examples::new(facts.examples),
        pending: Vec::new(),
        stretch: 0,
        key_day: None,
    };
    let mut group: Option<Group> = None;
    let (mut one, mut other) = (left.next().await?, right.next().await?);
    state.stretch = left.stretch().max(right.stretch()).min(OPEN_MS_MAX);
    loop {
        let of = match (&one, &other) {
            (None, None) => break,
            (Some(_), None) => Of::Left,
            (None, Some(_)) => Of::Right,
            (Some(l), Some(r)) if l.window_cmp(r) == Ordering::Greater => Of::Right,
            (Some(_), Some(_)) => Of::Left,
        };
        let row = match of {
            Of::Left => std::mem::replace(&mut one, left.next().await?),
            Of::Right => std::mem::replace(&mut other, right.next().await?),
        };
        let Some(row) = row else { continue };
        if let Some(full) = group.take_if(|group| !group.takes(&row)) {
            let ends_key = full.key != row.key();
            state.close(full);
            if ends_key {
                state.end_key();
            }
        }
        group
            .get_or_insert_with(|| Group::new(&row, columns.measures.len()))
            .add(of, row, facts);
    }
    if let Some(last) = group {
        state.close(last);
    }
    state.end_key();
    state.end_day();
    let mut found = state.found;
    found.groups = Some(state.groups);
    found.measures = state.measures;
    found.examples = state.examples.into_list();
    Ok(found)
}

impl Changed<'_> {
    fn close(&mut self, group: Group) {
        if !group.inside {
            let leads_to_the_end = group.ends_after
                && self
                    .pending
                    .last()
                    .is_some_and(|last| group.start.saturating_sub(last.end) <= self.facts.horizon);
            if leads_to_the_end {
                self.give_up_pending();
            } else {
                self.take_pending();
            }
            self.exclude(&group);
            return;
        }
        match group.kind() {
            Kind::OnlyLeft | Kind::OnlyRight => {
                let near = self
                    .pending
                    .last()
                    .is_none_or(|last| group.start.saturating_sub(last.end) <= self.facts.horizon);
                if !near {
                    self.take_pending();
                }
                self.pending.push(lean(group));
                if self.pending.len() > PENDING_MAX {
                    self.take_pending();
                }
            }
            _ => {
                self.take_pending();
                self.take(group);
            }
        }
    }

    fn end_key(&mut self) {
        // what leads from the last of them to the end may itself be open on both sides, and in neither output
        let reach = self.facts.horizon.saturating_add(self.stretch);
        let open = self.facts.to != i64::MAX
            && self
                .pending
                .last()
                .is_some_and(|last| self.facts.to.saturating_sub(last.end) <= reach);
        if open {
            self.give_up_pending();
        } else {
            self.take_pending();
        }
    }

    fn take_pending(&mut self) {
        for group in std::mem::take(&mut self.pending) {
            self.take(group);
        }
    }

    fn give_up_pending(&mut self) {
        for group in std::mem::take(&mut self.pending) {
            self.exclude(&group);
        }
    }

    fn exclude(&mut self, group: &Group) {
        let [left, right] = &group.sides;
        self.found.rows.outside_left += left.outside;
        self.found.rows.outside_right += right.outside;
        self.found.rows.border_left += left.rows - left.outside;
        self.found.rows.border_right += right.rows - right.outside;
    }

    fn take(&mut self, group: Group) {
        let kind = group.kind();
        let [left, right] = &group.sides;
        self.found.rows.left += left.rows;
        self.found.rows.right += right.rows;
        self.found.first_ms = Some(
            self.found
                .first_ms
                .map_or(group.start, |first| first.min(group.start)),
        );
        self.found.last_ms = self.found.last_ms.max(Some(group.end));
        self.groups.count(kind);
        let conserved = left
            .sums
            .iter()
            .zip(&right.sums)
            .all(|(a, b)| a.agrees(*b, self.facts.tolerance));
        if kind == Kind::Identical
            && let (Some(l), Some(r)) = (left.shown.first(), right.shown.first())
            && rest_agrees(l, r, self.columns, self.facts.tolerance)
        {
            self.groups.equal_rows += 1;
        }
        if !conserved {
            self.groups.not_conserved += 1;
        }
        if kind != Kind::Identical || !conserved {
            self.examples
                .add(kind, &left.shown, &right.shown, self.columns);
        }
        let day = group.start.div_euclid(DAY_MS);
        let same_day = self
            .key_day
            .as_ref()
            .is_some_and(|open| open.day == day && open.key == group.key);
        if !same_day {
            self.end_day();
            let none = || vec![Number::default(); self.measures.len()];
            self.key_day = Some(KeyDay {
                key: group.key.clone(),
                day,
                sums: [none(), none()],
            });
        }
        if let Some(open) = &mut self.key_day {
            for (sums, share) in open.sums.iter_mut().zip(&group.sides) {
                for (sum, more) in sums.iter_mut().zip(&share.sums) {
                    *sum = sum.plus(*more);
                }
            }
        }
    }

    fn end_day(&mut self) {
        let Some(open) = self.key_day.take() else {
            return;
        };
        let [left, right] = &open.sums;
        for ((measure, left), right) in self.measures.iter_mut().zip(left).zip(right) {
            measure.add(open.day, *left, *right, self.facts.tolerance);
        }
    }
}

/// A group without more examples than it needs while it waits.
fn lean(mut group: Group) -> Group {
    for share in &mut group.sides {
        share.shown.truncate(2);
    }
    group
}
