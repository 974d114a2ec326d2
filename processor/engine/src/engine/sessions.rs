//! Records into sessions.
//!
//! A batch is first cut into sub-sessions in one pass, in whatever order its records are: a record joins the latest
//! sub-session of its key or begins another. Sub-sessions and the stored sessions of the same keys are then merged
//! where their times differ by at most the gap (rule 3), and every aggregate is updated once for the whole batch.

use arrow_array::ArrayRef;
use arrow_schema::Schema;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use std::sync::Arc;

use super::admit::Bad;
use super::{Engine, Records};
use crate::aggregate::{KeyCodec, NO_KEY};
use crate::entry::{self, Owner, Reader, Tag};
use crate::error::EngineError;
use crate::event_time::{END, Scope};
use crate::sql::Windowed;
use crate::state::{Space, State};

/// The distinct keys of a batch, and which of them each record has.
pub(super) struct Interned {
    pub keys: Vec<Vec<u8>>,
    pub of_row: Vec<usize>,
}

impl Interned {
    /// Leaves out the keys that are longer than `max` bytes, and says which rows had them.
    pub fn leave_out_longer(&mut self, max: usize, name: &str) -> Option<Bad> {
        if self.keys.iter().all(|key| key.len() <= max) {
            return None;
        }
        let mut count = 0;
        let places: Vec<Result<usize, usize>> = self
            .keys
            .iter()
            .map(|key| {
                if key.len() > max {
                    return Err(key.len());
                }
                count += 1;
                Ok(count - 1)
            })
            .collect();
        self.keys.retain(|key| key.len() <= max);
        let mut rows = Vec::new();
        let mut good = Vec::with_capacity(self.of_row.len());
        let mut of_row = Vec::with_capacity(self.of_row.len());
        for (row, key) in self.of_row.iter().enumerate() {
            good.push(places[*key].is_ok());
            match places[*key] {
                Ok(place) => of_row.push(place),
                Err(bytes) => rows.push((
                    row,
                    format!(
                        "its {name} takes {bytes} bytes in the job's state, where at most {max} fit"
                    ),
                )),
            }
        }
        self.of_row = of_row;
        Some(Bad {
            rows,
            good: good.into(),
        })
    }
}

/// A part of a session: the records of one key that lie within the gap of each other, in order of arrival.
struct Part {
    first: i64,
    last: i64,
    /// The part of the same key before this one.
    before: u32,
    group: usize,
}

const NONE: u32 = u32::MAX;

/// What a merged session is made of.
#[derive(Clone, Copy)]
enum From {
    Stored(usize),
    Batch(u32),
}

impl Engine {
    /// Finds the distinct keys.
    pub(super) fn intern(
        codec: &KeyCodec,
        columns: &[ArrayRef],
        rows: usize,
    ) -> Result<Interned, EngineError> {
        if columns.is_empty() {
            return Ok(Interned {
                keys: vec![NO_KEY.to_vec()],
                of_row: vec![0; rows],
            });
        }
        let schema = Arc::new(Schema::new(codec.fields.clone()));
        let mut groups =
            new_group_values(schema, &GroupOrdering::None).map_err(EngineError::Aggregate)?;
        let mut of_row = Vec::with_capacity(rows);
        groups
            .intern(columns, &mut of_row)
            .map_err(EngineError::Aggregate)?;
        let count = groups.len();
        let distinct = groups.emit(EmitTo::All).map_err(EngineError::Aggregate)?;
        let keys = codec
            .write(&distinct, count)
            .map_err(EngineError::Aggregate)?;
        Ok(Interned { keys, of_row })
    }

    /// Where time is per partition, the last offset of each key in the batch.
    pub(super) fn last_offsets(&self, interned: &Interned, offsets: &[i64]) -> Option<Vec<i64>> {
        (self.query.scope() == Scope::Partition).then(|| {
            let mut last = vec![0; interned.keys.len()];
            for (key, offset) in interned.of_row.iter().zip(offsets) {
                last[*key] = *offset;
            }
            last
        })
    }

    /// Checks that a stored window of `key` belongs to this partition.
    pub(super) fn check_owner(
        windowed: &Windowed,
        stored: Owner,
        now: Owner,
        key: &[u8],
    ) -> Result<(), EngineError> {
        if stored.partition == now.partition {
            return Ok(());
        }
        let columns = windowed
            .codec
            .read(std::iter::once(key))
            .map_err(EngineError::Aggregate)?;
        let mut parts = Vec::with_capacity(columns.len());
        for column in &columns {
            parts.push(datafusion::arrow::util::display::array_value_to_string(
                column, 0,
            )?);
        }
        Err(EngineError::TwoPartitions {
            key: parts.join(", "),
            first: stored.partition,
            first_offset: stored.offset,
            second: now.partition,
            second_offset: now.offset,
        })
    }

    pub(super) fn add_to_sessions(
        &mut self,
        state: &mut dyn State,
        windowed: &Windowed,
        records: Records<'_>,
    ) -> Result<(), EngineError> {
        let gap = windowed.window.length();
        let mut interned = records.interned;
        let last_offsets = self.last_offsets(&interned, records.offsets);
        let (mut parts, latest) = cut(&mut interned, records.times, gap);
        let stored = state.get_many(Space::Windows, &interned.keys)?;

        let mut plan = Merge {
            gap,
            sessions: Vec::with_capacity(interned.keys.len()),
            states: Vec::new(),
            groups: Vec::new(),
            scratch: Vec::new(),
        };
        let mut heads = Vec::with_capacity(interned.keys.len());
        for (i, key) in interned.keys.iter().enumerate() {
            let mut timer = None;
            if let Some(bytes) = &stored[i] {
                let mut reader = Reader::new(bytes);
                if let Some(offsets) = &last_offsets {
                    let now = Owner {
                        partition: records.partition,
                        offset: offsets[i],
                    };
                    Self::check_owner(windowed, reader.owner()?, now, key)?;
                }
                timer = Some(reader.long()?);
                plan.stored(&mut reader)?;
            }
            let first = plan.sessions.len();
            plan.merge(&mut parts, latest[i]);
            heads.push((timer, first..plan.sessions.len()));
        }

        for part in &mut interned.of_row {
            *part = parts[*part].group;
        }
        let mut fold = windowed
            .aggregates
            .fold(plan.sessions.len())
            .map_err(EngineError::Aggregate)?;
        fold.merge(&plan.states, &plan.groups)
            .map_err(EngineError::Aggregate)?;
        fold.update(&records.inputs, &mut interned.of_row)
            .map_err(EngineError::Aggregate)?;
        let states = fold.states().map_err(EngineError::Aggregate)?;

        let scope = self.scope_id(records.partition);
        for (i, (key, (timer, range))) in interned.keys.into_iter().zip(heads).enumerate() {
            let sessions = &plan.sessions[range.clone()];
            let next = sessions
                .iter()
                .map(|(_, last)| last + gap)
                .min()
                .unwrap_or(END);
            let is_new = timer.is_none();
            // A timer may come too early, as sessions grow; it must not come too late. A key has one.
            let due = match timer {
                Some(timer) if timer <= next => timer,
                old => {
                    if let Some(old) = old {
                        state.delete(
                            Space::Timers,
                            entry::timer_key(Tag::Window, scope, old, &key),
                        )?;
                    }
                    state.put_new(
                        Space::Timers,
                        entry::timer_key(Tag::Window, scope, next, &key),
                        Vec::new(),
                    )?;
                    next
                }
            };
            let mut value = Vec::with_capacity(48 + sessions.len() * 48);
            if let Some(offsets) = &last_offsets {
                let owner = Owner {
                    partition: records.partition,
                    offset: offsets[i],
                };
                entry::write_owner(&mut value, owner);
            }
            entry::write_long(&mut value, due);
            for (group, (first, last)) in range.zip(sessions) {
                entry::write_item(&mut value, *first, *last, states.group(group))?;
            }
            if is_new {
                state.put_new(Space::Windows, key, value)?;
            } else {
                state.put(Space::Windows, key, value)?;
            }
        }
        Ok(())
    }

    /// Whose timers a partition's windows have.
    pub(super) fn scope_id(&self, partition: i32) -> i32 {
        match self.query.scope() {
            Scope::Global => 0,
            Scope::Partition => partition,
        }
    }
}

/// Cuts the records of each key into parts; `of_row` names parts afterwards. Gives the parts, and each key's last one.
fn cut(interned: &mut Interned, times: &[i64], gap: i64) -> (Vec<Part>, Vec<u32>) {
    let mut latest = vec![NONE; interned.keys.len()];
    let mut parts: Vec<Part> = Vec::with_capacity(interned.keys.len());
    for (of_row, &time) in interned.of_row.iter_mut().zip(times) {
        let head = &mut latest[*of_row];
        if let Some(part) = parts.get_mut(*head as usize)
            && time >= part.first - gap
            && time <= part.last + gap
        {
            part.first = part.first.min(time);
            part.last = part.last.max(time);
            *of_row = *head as usize;
            continue;
        }
        *of_row = parts.len();
        parts.push(Part {
            first: time,
            last: time,
            before: *head,
            group: 0,
        });
        *head = u32::try_from(parts.len() - 1).unwrap_or(NONE);
    }
    (parts, latest)
}

/// Stored sessions and the batch's parts, becoming sessions.
struct Merge<'a> {
    gap: i64,
    /// First and last time of every session to be; the key's are next to each other, in order.
    sessions: Vec<(i64, i64)>,
    /// Stored states, and the session that each goes into.
    states: Vec<&'a [u8]>,
    groups: Vec<usize>,
    scratch: Vec<(i64, i64, From)>,
}

impl<'a> Merge<'a> {
    fn stored(&mut self, reader: &mut Reader<'a>) -> Result<(), EngineError> {
        while let Some(item) = reader.item()? {
            self.scratch
                .push((item.a, item.b, From::Stored(self.states.len())));
            self.states.push(item.state);
            self.groups.push(0);
        }
        Ok(())
    }

    /// Merges what is in the scratch with the parts of one key.
    fn merge(&mut self, parts: &mut [Part], latest: u32) {
        let mut next = latest;
        while let Some(part) = parts.get(next as usize) {
            self.scratch
                .push((part.first, part.last, From::Batch(next)));
            next = part.before;
        }
        self.scratch
            .sort_unstable_by_key(|(first, last, _)| (*first, *last));
        let start = self.sessions.len();
        for (first, last, from) in self.scratch.drain(..) {
            match self.sessions.get_mut(start..).and_then(<[_]>::last_mut) {
                Some(session) if first <= session.1 + self.gap => session.1 = session.1.max(last),
                _ => self.sessions.push((first, last)),
            }
            let group = self.sessions.len() - 1;
            match from {
                From::Stored(state) => self.groups[state] = group,
                From::Batch(part) => parts[part as usize].group = group,
            }
        }
    }
}
