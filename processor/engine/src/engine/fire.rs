//! Final rows: windows whose time has come, in the order of end, key, start.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{FieldRef, Schema};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::common::{DataFusionError, Result as DataFusionResult};

use super::admit::{Parts, one_line, rowwise};
use super::{Engine, rows_of};
use crate::aggregate::{evaluate, mask};
use crate::entry::{self, Item, Owner, Reader, Tag};
use crate::error::EngineError;
use crate::event_time::{END, NEVER, Scope, sessions_due, windows_due};
use crate::sql::{EDGE_END, EDGE_ROWTIME, EDGE_START, Windowed};
use crate::state::{Space, State, StateError};
use crate::window::Panes;

/// A window that fires.
struct Due<'a> {
    end: i64,
    key: &'a [u8],
    start: i64,
}

/// How much one call looks at, which bounds its rows and its memory. Changes no row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub timers: usize,
    /// Of timers, keys and what is stored for them. The timer that reaches it is the last, however much it looks after.
    pub bytes: usize,
}

impl Limit {
    pub fn is_reached(self) -> bool {
        self.timers == 0 || self.bytes == 0
    }

    /// Takes off what a page has looked at, and the rows that it gave.
    pub fn take(&mut self, page: &Page, rows: usize) {
        self.timers = self.timers.saturating_sub(page.keys.len().max(rows));
        self.bytes = self.bytes.saturating_sub(page.bytes);
    }
}

/// How many timers are read at a time: with the longest keys they are 32 MiB.
const TIMERS_AT_ONCE: usize = 512;

/// The timers that are looked at in one call, and what they look after.
pub(super) struct Page {
    pub timers: Vec<Vec<u8>>,
    /// Where in the state it is: for each timer as many keys.
    pub keys: Vec<Vec<u8>>,
    /// What is stored there.
    pub stored: Vec<Option<Vec<u8>>>,
    /// The last time that may fire, and within it the last key: `None` for all keys.
    until: i64,
    last_key: Option<Vec<u8>>,
    /// Where the next page begins.
    pub next: Vec<u8>,
    bytes: usize,
    /// The most that one timer brought.
    largest: usize,
}

/// What timers look after.
#[derive(Clone, Copy)]
pub(super) enum After {
    /// The key's sessions.
    Sessions,
    /// The panes of the key's window that ends then.
    Panes(Panes),
    /// The key's kept times.
    Kept,
}

impl After {
    fn tag(self) -> Tag {
        match self {
            Self::Sessions | Self::Panes(_) => Tag::Window,
            Self::Kept => Tag::Dedup,
        }
    }

    fn space(self) -> Space {
        match self {
            Self::Sessions | Self::Panes(_) => Space::Windows,
            Self::Kept => Space::Dedup,
        }
    }

    /// Adds where it is.
    fn keys(self, time: i64, key: &[u8], keys: &mut Vec<Vec<u8>>) {
        match self {
            Self::Sessions | Self::Kept => keys.push(key.to_vec()),
            Self::Panes(panes) => keys.extend(
                panes
                    .of_window(time - panes.size)
                    .map(|pane| entry::pane_key(key, pane)),
            ),
        }
    }
}

impl Page {
    /// Reads what is due in `from..to` until the limit is reached, in steps, as nobody knows beforehand how large it is.
    fn read(
        state: &dyn State,
        after: After,
        (mut from, to): (Vec<u8>, Vec<u8>),
        due: i64,
        limit: Limit,
    ) -> Result<Self, StateError> {
        let mut page = Self {
            timers: Vec::new(),
            keys: Vec::new(),
            stored: Vec::new(),
            until: due,
            last_key: None,
            next: Vec::new(),
            bytes: 0,
            largest: 1,
        };
        let mut step = 1;
        loop {
            let asked = TIMERS_AT_ONCE.min(limit.timers - page.timers.len());
            let found = state.range(Space::Timers, &from, &to, asked)?;
            let is_all = found.len() < asked;
            let mut timers = found.into_iter().map(|(timer, _)| timer).peekable();
            while timers.peek().is_some() {
                page.look_after(state, after, timers.by_ref().take(step))?;
                if page.bytes >= limit.bytes {
                    return page.cut();
                }
                let as_large = (limit.bytes - page.bytes) / page.largest;
                step = (step * 4).min(as_large).clamp(1, TIMERS_AT_ONCE);
            }
            if is_all {
                page.next = to;
                return Ok(page);
            }
            if page.timers.len() >= limit.timers {
                return page.cut();
            }
            from = page.timers.last().map_or(from, |last| successor(last));
        }
    }

    /// Reads what some more timers look after.
    fn look_after(
        &mut self,
        state: &dyn State,
        after: After,
        timers: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(), StateError> {
        let (first_timer, first_key) = (self.timers.len(), self.keys.len());
        for timer in timers {
            let (time, key) = entry::read_timer(&timer)?;
            after.keys(time, key, &mut self.keys);
            self.timers.push(timer);
        }
        let stored = state.get_many(after.space(), &self.keys[first_key..])?;
        let per_timer = stored.len() / (self.timers.len() - first_timer).max(1);
        let keys = self.keys[first_key..].chunks(per_timer.max(1));
        let values = stored.chunks(per_timer.max(1));
        for ((timer, keys), values) in self.timers[first_timer..].iter().zip(keys).zip(values) {
            let keys = keys.iter().map(Vec::len).sum::<usize>();
            let values = values.iter().flatten().map(Vec::len).sum::<usize>();
            let bytes = timer.len() + keys + values;
            self.largest = self.largest.max(bytes);
            self.bytes += bytes;
        }
        self.stored.extend(stored);
        Ok(())
    }

    /// There may be more behind it.
    fn cut(mut self) -> Result<Self, StateError> {
        if let Some(last) = self.timers.last() {
            let (time, key) = entry::read_timer(last)?;
            self.until = time;
            self.last_key = Some(key.to_vec());
            self.next = successor(last);
        }
        Ok(self)
    }

    pub fn is_full(&self) -> bool {
        self.last_key.is_some()
    }

    /// Whether a window of `key` that ends at `end` comes before everything after this page.
    fn holds(&self, end: i64, key: &[u8]) -> bool {
        match &self.last_key {
            None => end <= self.until,
            Some(last) => (end, key) <= (self.until, last.as_slice()),
        }
    }
}

/// The first key after this one.
fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

impl Engine {
    /// What is due and was not looked at yet, as far as the limit goes.
    ///
    /// It begins where the page before ended, which changes nothing: that page's timers are gone, and what was put since
    /// lies behind them, as no accepted record belongs to a time that has fired. But stores keep a mark for everything
    /// that was deleted, and from the front each page would read the marks of all that ever fired.
    pub(super) fn due(
        &self,
        state: &dyn State,
        after: After,
        scope: i32,
        due: i64,
        limit: Limit,
    ) -> Result<Page, StateError> {
        let tag = after.tag();
        let seen = self.seen.get(&(tag as u8, scope)).cloned();
        let from = seen.unwrap_or_else(|| entry::timer_key(tag, scope, NEVER, &[]));
        let to = match due {
            END => successor(&entry::timer_key(tag, scope, END, &[])),
            due => entry::timer_key(tag, scope, due + 1, &[]),
        };
        Page::read(state, after, (from, to), due, limit)
    }

    /// Fires what is due for the windows that follow `partition`'s time, as far as `limit` goes, and takes it off. Says
    /// whether more is due.
    pub(super) fn fire_partition(
        &mut self,
        state: &mut dyn State,
        partition: i32,
        limit: &mut Limit,
    ) -> Result<(Vec<RecordBatch>, bool), EngineError> {
        let query = Arc::clone(&self.query);
        let Some(windowed) = &query.planned.windowed else {
            return Ok((Vec::new(), false));
        };
        let watermark = self.watermark_of(partition);
        if watermark == NEVER {
            return Ok((Vec::new(), false));
        }
        let scope = self.scope_id(partition);
        let owned = query.scope() == Scope::Partition;
        let (rows, page) = match windowed.window.panes() {
            None => {
                let due = sessions_due(watermark, self.lateness);
                let page = self.due(state, After::Sessions, scope, due, *limit)?;
                let rows = self.fire_sessions(state, windowed, &page, scope, owned)?;
                (rows, page)
            }
            Some(panes) => {
                let due = windows_due(watermark, self.lateness);
                let per_window = usize::try_from(panes.size / panes.slide).unwrap_or(1);
                let limit = Limit {
                    timers: (limit.timers / per_window).max(1),
                    ..*limit
                };
                let page = self.due(state, After::Panes(panes), scope, due, limit)?;
                let rows = self.fire_panes(state, windowed, panes, &page, owned)?;
                (rows, page)
            }
        };
        let more = page.is_full();
        limit.take(&page, rows.iter().map(RecordBatch::num_rows).sum());
        self.seen.insert((Tag::Window as u8, scope), page.next);
        Ok((rows, more))
    }

    fn fire_sessions(
        &self,
        state: &mut dyn State,
        windowed: &Windowed,
        page: &Page,
        scope: i32,
        owned: bool,
    ) -> Result<Vec<RecordBatch>, EngineError> {
        if page.timers.is_empty() {
            return Ok(Vec::new());
        }
        let gap = windowed.window.length();
        let mut due: Vec<(Due<'_>, &[u8])> = Vec::with_capacity(page.keys.len());
        for ((key, timer), bytes) in page.keys.iter().zip(&page.timers).zip(&page.stored) {
            let bytes = bytes
                .as_ref()
                .ok_or_else(|| entry::damaged("a timer without its window"))?;
            let mut reader = Reader::new(bytes);
            let mut rest = Vec::new();
            let owner = if owned { Some(reader.owner()?) } else { None };
            reader.long()?;
            while let Some(item) = reader.item()? {
                if page.holds(item.b + gap, key) {
                    let window = Due {
                        end: item.b + gap,
                        key,
                        start: item.a,
                    };
                    due.push((window, item.state));
                } else {
                    rest.push(item);
                }
            }
            state.delete(Space::Timers, timer.clone())?;
            let Some(next) = rest.iter().map(|item| item.b + gap).min() else {
                state.delete(Space::Windows, key.clone())?;
                continue;
            };
            state.put_new(
                Space::Timers,
                entry::timer_key(Tag::Window, scope, next, key),
                Vec::new(),
            )?;
            let mut value = Vec::with_capacity(bytes.len());
            if let Some(owner) = owner {
                entry::write_owner(&mut value, owner);
            }
            entry::write_long(&mut value, next);
            for item in rest {
                entry::write_item(&mut value, item.a, item.b, item.state)?;
            }
            state.put(Space::Windows, key.clone(), value)?;
        }
        due.sort_unstable_by_key(|(window, _)| (window.end, window.key, window.start));
        let (windows, states): (Vec<Due<'_>>, Vec<&[u8]>) = due.into_iter().unzip();
        let groups: Vec<usize> = (0..states.len()).collect();
        rows(windowed, &self.query.planned, &windows, &states, &groups)
    }

    fn fire_panes(
        &self,
        state: &mut dyn State,
        windowed: &Windowed,
        panes: Panes,
        page: &Page,
        owned: bool,
    ) -> Result<Vec<RecordBatch>, EngineError> {
        if page.timers.is_empty() {
            return Ok(Vec::new());
        }
        let mut windows = Vec::with_capacity(page.timers.len());
        for timer in &page.timers {
            let (end, key) = entry::read_timer(timer)?;
            let start = end - panes.size;
            windows.push(Due { end, key, start });
        }
        let per_window = page.keys.len() / windows.len();
        let mut states = Vec::new();
        let mut groups = Vec::new();
        let found = page.stored.chunks(per_window);
        for (group, (window, found)) in windows.iter().zip(found).enumerate() {
            let before = states.len();
            let mut first: Option<Owner> = None;
            for bytes in found.iter().flatten() {
                let mut reader = Reader::new(bytes);
                if owned {
                    // A batch looks at the owners of the panes that it touches, here are those of a whole window.
                    let owner = reader.owner()?;
                    let stored = *first.get_or_insert(owner);
                    Self::check_owner(windowed, stored, owner, window.key)?;
                }
                while let Some(Item { a: from, state, .. }) = reader.item()? {
                    if from <= window.start {
                        states.push(state);
                        groups.push(group);
                    }
                }
            }
            if states.len() == before {
                return Err(entry::damaged("a timer without its window").into());
            }
        }
        let rows = rows(windowed, &self.query.planned, &windows, &states, &groups)?;
        // The pane that a window begins with is in no later one.
        let firsts = page.keys.iter().zip(&page.stored).step_by(per_window);
        for (first, there) in firsts {
            if there.is_some() {
                state.delete(Space::Windows, first.clone())?;
            }
        }
        for timer in &page.timers {
            state.delete(Space::Timers, timer.clone())?;
        }
        Ok(rows)
    }
}

/// The rows of windows: results, HAVING, SELECT. `states[i]` belongs to window `groups[i]`.
fn rows(
    windowed: &Windowed,
    planned: &crate::sql::Planned,
    windows: &[Due<'_>],
    states: &[&[u8]],
    groups: &[usize],
) -> Result<Vec<RecordBatch>, EngineError> {
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    let mut fold = windowed
        .aggregates
        .fold(windows.len())
        .map_err(EngineError::Aggregate)?;
    fold.merge(states, groups).map_err(EngineError::Aggregate)?;
    let results = match fold.results() {
        Ok(results) => results,
        Err(error) => return Err(without_result(windowed, windows, states, groups, error)),
    };
    let mut columns = windowed
        .codec
        .read(windows.iter().map(|window| window.key))
        .map_err(EngineError::Aggregate)?;
    columns.extend(results);
    columns.push(instants(windows, |window| window.start));
    columns.push(instants(windows, |window| window.end));
    columns.push(instants(windows, |window| window.end - 1));
    let mut grouped = rows_of(&windowed.grouped, columns, windows.len())?;
    if let Some(having) = &windowed.having {
        let keep = whole(&grouped, |batch| mask(having, batch))?;
        grouped = filter_record_batch(&grouped, &keep)?;
    }
    let columns = whole(&grouped, |batch| evaluate(&planned.projection, batch))?;
    Ok(vec![rows_of(&planned.output, columns, grouped.num_rows())?])
}

/// Evaluates over grouped rows: what fails for one of them by itself ends the job, as no row may be missing.
fn whole<T: Parts>(
    grouped: &RecordBatch,
    evaluate: impl Fn(&RecordBatch) -> DataFusionResult<T>,
) -> Result<T, EngineError> {
    let (bad, result) = rowwise(grouped, evaluate)?;
    let Some((row, reason)) = bad.and_then(|bad| bad.rows.into_iter().next()) else {
        return Ok(result);
    };
    Err(EngineError::Output {
        row: told(grouped, row),
        reason,
    })
}

fn instants(windows: &[Due<'_>], of: impl Fn(&Due<'_>) -> i64) -> ArrayRef {
    let times = TimestampMillisecondArray::from_iter_values(windows.iter().map(of));
    Arc::new(times.with_timezone("UTC"))
}

/// The error of the first window whose aggregates have no result by themselves, as an average that its type does not hold.
fn without_result(
    windowed: &Windowed,
    windows: &[Due<'_>],
    states: &[&[u8]],
    groups: &[usize],
    error: DataFusionError,
) -> EngineError {
    let result = |group: usize| {
        let own: Vec<&[u8]> = states
            .iter()
            .zip(groups)
            .filter(|(_, of)| **of == group)
            .map(|(state, _)| *state)
            .collect();
        let mut fold = windowed.aggregates.fold(1)?;
        fold.merge(&own, &vec![0; own.len()])?;
        fold.results()
    };
    let failed = windows
        .iter()
        .enumerate()
        .find_map(|(group, window)| Some((window, result(group).err()?)));
    let Some((window, reason)) = failed else {
        return EngineError::Aggregate(error);
    };
    let row = windowed
        .codec
        .read(std::iter::once(window.key))
        .and_then(|mut columns| {
            let window = std::slice::from_ref(window);
            let keys = columns.len();
            columns.push(instants(window, |window| window.start));
            columns.push(instants(window, |window| window.end));
            let fields = windowed.grouped.fields().iter().take(keys).cloned();
            let edges = [EDGE_START, EDGE_END].map(|edge| windowed.grouped.field_with_name(edge));
            let mut fields: Vec<FieldRef> = fields.collect();
            for edge in edges {
                fields.push(Arc::new(edge?.clone()));
            }
            Ok(RecordBatch::try_new(
                Arc::new(Schema::new(fields)),
                columns,
            )?)
        });
    match row {
        Ok(row) => EngineError::Output {
            row: told(&row, 0),
            reason: one_line(&reason.strip_backtrace()),
        },
        Err(error) => EngineError::Aggregate(error),
    }
}

/// What a row of groups has, for people.
fn told(grouped: &RecordBatch, row: usize) -> String {
    let of_row = |column: &ArrayRef| {
        let text = datafusion::arrow::util::display::array_value_to_string(column, row);
        one_line(&text.unwrap_or_default())
            .chars()
            .take(100)
            .collect::<String>()
    };
    let parts: Vec<String> = grouped
        .schema_ref()
        .fields()
        .iter()
        .zip(grouped.columns())
        .filter(|(field, _)| field.name() != EDGE_ROWTIME)
        .map(|(field, column)| match field.name().as_str() {
            EDGE_START => format!("window start {}", of_row(column)),
            EDGE_END => format!("window end {}", of_row(column)),
            name => format!("{name} {}", of_row(column)),
        })
        .collect();
    parts.join(", ")
}
