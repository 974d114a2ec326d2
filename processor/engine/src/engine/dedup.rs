//! Drops what repeats an earlier record of the same partition.

use arrow_array::{ArrayRef, BooleanArray};
use std::sync::Arc;

use super::Engine;
use super::admit::{Admitted, LeftOut};
use super::fire::{After, Limit};
use crate::entry::{self, DEDUP_KEY_BYTES_MAX, Reader, Tag};
use crate::error::EngineError;
use crate::event_time::{NEVER, session_accepts};
use crate::query::DedupPlan;
use crate::state::{Space, State};

/// The event times that were kept for a key, and when to forget the first.
struct Kept {
    timer: Option<i64>,
    times: Vec<i64>,
    changed: bool,
}

impl Engine {
    /// Keeps the first of equal records, in the order of their partition.
    pub(super) fn drop_duplicates(
        &mut self,
        state: &mut dyn State,
        plan: &DedupPlan,
        admitted: &mut Admitted,
        late: &mut LeftOut,
        dead: &mut LeftOut,
    ) -> Result<(), EngineError> {
        let within = plan.dedup.within;
        let lateness = self.query.dedup_lateness();
        let rows = admitted.batch.num_rows();
        let columns: Vec<ArrayRef> = plan
            .columns
            .iter()
            .map(|index| Arc::clone(admitted.batch.column(*index)))
            .collect();
        let mut interned = Self::intern(&plan.codec, &columns, rows)?;
        let long = interned.leave_out_longer(DEDUP_KEY_BYTES_MAX, "key for deduplication");
        admitted.drop_bad(long, dead)?;
        let rows = admitted.batch.num_rows();
        let keys: Vec<Vec<u8>> = interned
            .keys
            .iter()
            .map(|key| entry::dedup_key(admitted.partition, key))
            .collect();
        let mut kept = Vec::with_capacity(keys.len());
        for bytes in state.get_many(Space::Dedup, &keys)? {
            kept.push(match bytes {
                None => Kept {
                    timer: None,
                    times: Vec::new(),
                    changed: false,
                },
                Some(bytes) => {
                    let mut reader = Reader::new(&bytes);
                    Kept {
                        timer: Some(reader.long()?),
                        times: reader.longs()?,
                        changed: false,
                    }
                }
            });
        }
        let mut keep = vec![true; rows];
        for (row, &time) in admitted.times().iter().enumerate() {
            if !session_accepts(time, admitted.before[row], lateness) {
                let reason = format!(
                    "its event time of {time} ms is {} ms behind its partition's watermark, too late to be told from a duplicate",
                    admitted.before[row].saturating_sub(time)
                );
                late.push(admitted.offsets[row], reason);
                keep[row] = false;
                continue;
            }
            let known = &mut kept[interned.of_row[row]];
            if known
                .times
                .iter()
                .any(|other| time.abs_diff(*other) <= within.unsigned_abs())
            {
                self.progress.counters.duplicates += 1;
                keep[row] = false;
            } else {
                known.times.push(time);
                known.changed = true;
            }
        }
        for (key, mut known) in keys.into_iter().zip(kept) {
            if known.changed {
                let is_new = known.timer.is_none();
                self.remember(
                    state,
                    admitted.partition,
                    (key, is_new),
                    known.timer,
                    &mut known.times,
                )?;
            }
        }
        admitted.keep(&BooleanArray::from(keep))
    }

    /// Writes the times of a key, which may be new to the state, and a timer for the first of them.
    fn remember(
        &self,
        state: &mut dyn State,
        partition: i32,
        (key, is_new): (Vec<u8>, bool),
        timer: Option<i64>,
        times: &mut [i64],
    ) -> Result<(), EngineError> {
        times.sort_unstable();
        let Some(first) = times.first() else {
            return Ok(());
        };
        let next = self.forget_at(*first);
        let due = match timer {
            Some(timer) if timer <= next => timer,
            old => {
                if let Some(old) = old {
                    state.delete(
                        Space::Timers,
                        entry::timer_key(Tag::Dedup, partition, old, &key),
                    )?;
                }
                state.put_new(
                    Space::Timers,
                    entry::timer_key(Tag::Dedup, partition, next, &key),
                    Vec::new(),
                )?;
                next
            }
        };
        let mut value = Vec::with_capacity(8 + times.len() * 8);
        entry::write_long(&mut value, due);
        for time in times.iter() {
            entry::write_long(&mut value, *time);
        }
        if is_new {
            state.put_new(Space::Dedup, key, value)?;
        } else {
            state.put(Space::Dedup, key, value)?;
        }
        Ok(())
    }

    /// The watermark from which on no record can repeat one of `time`.
    fn forget_at(&self, time: i64) -> i64 {
        let within = self
            .query
            .dedup
            .as_ref()
            .map_or(0, |plan| plan.dedup.within);
        time + within + self.query.dedup_lateness()
    }

    /// Forgets what no record can repeat any more, as far as `limit` goes. Changes no result, and so may be late: what is
    /// left is remembered in [`Engine::expiring`].
    pub(super) fn expire(
        &mut self,
        state: &mut dyn State,
        partition: i32,
        limit: &mut Limit,
    ) -> Result<(), EngineError> {
        if self.query.dedup.is_none() {
            return Ok(());
        }
        let Some(at) = self.progress.partitions.get(&partition) else {
            return Ok(());
        };
        let watermark = at.clock.watermark(self.bound);
        if watermark == NEVER {
            return Ok(());
        }
        let page = self.due(state, After::Kept, partition, watermark, *limit)?;
        limit.take(&page, 0);
        if page.is_full() {
            self.expiring.insert(partition);
        } else {
            self.expiring.remove(&partition);
        }
        for ((key, timer), bytes) in page.keys.into_iter().zip(page.timers).zip(page.stored) {
            state.delete(Space::Timers, timer)?;
            let bytes = bytes.ok_or_else(|| entry::damaged("a timer without its key"))?;
            let mut reader = Reader::new(&bytes);
            reader.long()?;
            let mut times = reader.longs()?;
            times.retain(|time| self.forget_at(*time) > watermark);
            if times.is_empty() {
                state.delete(Space::Dedup, key)?;
            } else {
                self.remember(state, partition, (key, false), None, &mut times)?;
            }
        }
        self.seen.insert((Tag::Dedup as u8, partition), page.next);
        Ok(())
    }
}
