//! Records into the panes of tumbling and hopping windows.
//!
//! A pane is as long as the slide, and a window is made of the panes that it holds when it fires. A record that comes
//! too late for the first of its windows but not for the last counts in the later ones only: it is kept in the same
//! pane under the start of the first window that takes it.

use datafusion::common::HashMap;

use super::{Engine, Records};
use crate::entry::{self, Item, Owner, Reader, Tag};
use crate::error::EngineError;
use crate::event_time::NEVER;
use crate::sql::Windowed;
use crate::state::{Space, State};
use crate::window::Panes;

/// The records of one key and pane that count from the same window on.
struct Slot {
    from: i64,
    /// The next slot of the same pane.
    next: u32,
    new: bool,
}

/// A key's pane.
struct Pane {
    key: u32,
    start: i64,
    slots: u32,
}

const NONE: u32 = u32::MAX;

/// The panes that a batch touches.
#[derive(Default)]
struct Touched {
    panes: Vec<Pane>,
    slots: Vec<Slot>,
    by_start: HashMap<(u32, i64), u32>,
}

impl Touched {
    /// The slot of a record, made if it is the first.
    fn slot(&mut self, key: u32, start: i64, from: i64) -> u32 {
        let pane = *self.by_start.entry((key, start)).or_insert_with(|| {
            self.panes.push(Pane {
                key,
                start,
                slots: NONE,
            });
            u32::try_from(self.panes.len() - 1).unwrap_or(NONE)
        });
        let pane = &mut self.panes[pane as usize];
        let mut next = pane.slots;
        while let Some(slot) = self.slots.get(next as usize) {
            if slot.from == from {
                return next;
            }
            next = slot.next;
        }
        self.slots.push(Slot {
            from,
            next: pane.slots,
            new: true,
        });
        pane.slots = u32::try_from(self.slots.len() - 1).unwrap_or(NONE);
        pane.slots
    }

    fn find(&self, pane: &Pane, from: i64) -> Option<usize> {
        let mut next = pane.slots;
        while let Some(slot) = self.slots.get(next as usize) {
            if slot.from == from {
                return Some(next as usize);
            }
            next = slot.next;
        }
        None
    }
}

impl Engine {
    pub(super) fn add_to_panes(
        &mut self,
        state: &mut dyn State,
        windowed: &Windowed,
        panes: Panes,
        records: Records<'_>,
        froms: &[i64],
    ) -> Result<(), EngineError> {
        let mut interned = records.interned;
        let last_offsets = self.last_offsets(&interned, records.offsets);
        let mut touched = Touched::default();
        // Most records of a key lie in the pane of the one before.
        let mut latest = vec![(0_i64, 0_i64, NONE); interned.keys.len()];
        for ((of_row, &time), &from) in interned.of_row.iter_mut().zip(records.times).zip(froms) {
            let start = panes.pane(time);
            let known = &mut latest[*of_row];
            if known.2 == NONE || known.0 != start || known.1 != from {
                let key = u32::try_from(*of_row).unwrap_or(NONE);
                *known = (start, from, touched.slot(key, start, from));
            }
            *of_row = known.2 as usize;
        }

        let entries: Vec<Vec<u8>> = touched
            .panes
            .iter()
            .map(|pane| entry::pane_key(&interned.keys[pane.key as usize], pane.start))
            .collect();
        let stored = state.get_many(Space::Windows, &entries)?;
        let owner = |key: u32| {
            last_offsets.as_ref().map(|offsets| Owner {
                partition: records.partition,
                offset: offsets[key as usize],
            })
        };
        let mut states = Vec::new();
        let mut groups = Vec::new();
        // What a pane holds that this batch does not touch is written back as it is.
        let mut others: Vec<(usize, Item<'_>)> = Vec::new();
        for (i, pane) in touched.panes.iter().enumerate() {
            let Some(bytes) = &stored[i] else {
                continue;
            };
            let mut reader = Reader::new(bytes);
            if let Some(now) = owner(pane.key) {
                Self::check_owner(
                    windowed,
                    reader.owner()?,
                    now,
                    &interned.keys[pane.key as usize],
                )?;
            }
            while let Some(item) = reader.item()? {
                match touched.find(pane, item.a) {
                    None => others.push((i, item)),
                    Some(slot) => {
                        touched.slots[slot].new = false;
                        states.push(item.state);
                        groups.push(slot);
                    }
                }
            }
        }
        let mut fold = windowed
            .aggregates
            .fold(touched.slots.len())
            .map_err(EngineError::Aggregate)?;
        fold.merge(&states, &groups)
            .map_err(EngineError::Aggregate)?;
        fold.update(&records.inputs, &mut interned.of_row)
            .map_err(EngineError::Aggregate)?;
        let folded = fold.states().map_err(EngineError::Aggregate)?;

        let scope = self.scope_id(records.partition);
        let are_new: Vec<bool> = stored.iter().map(Option::is_none).collect();
        self.set_window_timers(state, panes, &touched, &are_new, &interned.keys, scope)?;
        let mut others = others.into_iter().peekable();
        for (i, (pane, key)) in touched.panes.iter().zip(entries).enumerate() {
            let mut items = Vec::new();
            let mut next = pane.slots;
            while let Some(slot) = touched.slots.get(next as usize) {
                items.push((slot.from, folded.group(next as usize)));
                next = slot.next;
            }
            while let Some((_, item)) = others.next_if(|(of, _)| *of == i) {
                items.push((item.a, item.state));
            }
            items.sort_unstable_by_key(|(from, _)| *from);
            let mut value = Vec::with_capacity(12 + items.len() * 48);
            if let Some(owner) = owner(pane.key) {
                entry::write_owner(&mut value, owner);
            }
            for (from, bytes) in items {
                entry::write_item(&mut value, from, 0, bytes)?;
            }
            if are_new[i] {
                state.put_new(Space::Windows, key, value)?;
            } else {
                state.put(Space::Windows, key, value)?;
            }
        }
        Ok(())
    }

    /// Sets a timer for every window that has got its first record.
    ///
    /// Where the pane before holds records that count in all their windows, it has set the timers of all windows but the
    /// one that begins with this pane.
    fn set_window_timers(
        &self,
        state: &mut dyn State,
        panes: Panes,
        touched: &Touched,
        are_new: &[bool],
        keys: &[Vec<u8>],
        scope: i32,
    ) -> Result<(), EngineError> {
        let mut asked = Vec::new();
        let mut before = Vec::new();
        for (i, pane) in touched.panes.iter().enumerate() {
            let whole = touched
                .find(pane, NEVER)
                .is_some_and(|slot| touched.slots[slot].new);
            if whole && panes.size > panes.slide {
                asked.push(i);
                before.push(entry::pane_key(
                    &keys[pane.key as usize],
                    pane.start - panes.slide,
                ));
            }
        }
        let found = state.get_many(Space::Windows, &before)?;
        let owned = self.query.scope() == crate::event_time::Scope::Partition;
        let mut covered = vec![false; touched.panes.len()];
        for (i, bytes) in asked.into_iter().zip(found) {
            let pane = &touched.panes[i];
            let in_batch = touched
                .by_start
                .get(&(pane.key, pane.start - panes.slide))
                .is_some_and(|other| {
                    touched
                        .find(&touched.panes[*other as usize], NEVER)
                        .is_some()
                });
            let in_state = match bytes {
                None => false,
                Some(bytes) => {
                    let mut reader = Reader::new(&bytes);
                    if owned {
                        reader.owner()?;
                    }
                    // Items are in order, and NEVER is the lowest.
                    reader.item()?.is_some_and(|item| item.a == NEVER)
                }
            };
            covered[i] = in_batch || in_state;
        }
        for ((pane, covered), is_new) in touched.panes.iter().zip(covered).zip(are_new) {
            // A pane that is a whole window has the window's timer; what overlaps may have got it from another pane.
            let mut is_first = *is_new && panes.size == panes.slide;
            let key = &keys[pane.key as usize];
            let mut next = pane.slots;
            while let Some(slot) = touched.slots.get(next as usize) {
                next = slot.next;
                if !slot.new {
                    continue;
                }
                let from = if covered && slot.from == NEVER {
                    pane.start
                } else {
                    slot.from
                };
                for start in panes.windows(pane.start, from) {
                    let timer = entry::timer_key(Tag::Window, scope, start + panes.size, key);
                    if std::mem::take(&mut is_first) {
                        state.put_new(Space::Timers, timer, Vec::new())?;
                    } else {
                        state.put(Space::Timers, timer, Vec::new())?;
                    }
                }
            }
        }
        Ok(())
    }
}
