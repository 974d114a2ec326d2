//! The state that a job works on: what changed, in memory, over the local store.
//!
//! ```text
//!   put, delete ──► changes of this epoch          newest wins
//!                   sealed epochs, being committed      │
//!   get, range  ◄── local store                         ▼
//! ```
//!
//! Sealing hands the changes over as an epoch and begins the next at once: the job goes on while the epoch is written, committed and
//! applied. What is sealed stays readable here until the local store has it.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::RecordBatch;
use everlog_common::Positions;
use everlog_engine::{Space, State, StateError};

use super::changes::{Change, Changes};
use super::epoch::{Counts, Epoch};
use super::local::Local;
use super::log::Identity;

/// Entries that are read of the local store at a time, at least.
const PAGE_MIN: usize = 64;

/// What ends an epoch, besides the changes.
#[derive(Debug, Clone)]
pub struct Sealing {
    /// The engine's progress, as JSON.
    pub progress: Vec<u8>,
    /// Where the job is in its source.
    pub positions: Positions,
    /// The query's rows since the epoch before.
    pub rows: RecordBatch,
    /// Late records since then.
    pub late: RecordBatch,
    /// Dead letters since then.
    pub dead: RecordBatch,
}

/// See the module's text.
#[derive(Debug)]
pub struct JobState {
    identity: Arc<Identity>,
    local: Arc<Local>,
    changes: Changes,
    /// Oldest first.
    sealed: VecDeque<(u64, Arc<Changes>)>,
    /// The newest epoch's number, sealed or from before.
    epoch: u64,
    counts: Counts,
}

impl JobState {
    /// Over a local store that is at `epoch`.
    pub(super) fn new(
        identity: Arc<Identity>,
        local: Arc<Local>,
        epoch: u64,
        counts: Counts,
    ) -> Self {
        Self {
            identity,
            local,
            changes: Changes::default(),
            sealed: VecDeque::new(),
            epoch,
            counts,
        }
    }

    /// Memory that the changes of this epoch hold, about.
    pub fn changed_bytes(&self) -> usize {
        self.changes.bytes()
    }

    /// Memory that all changes hold which the local store does not have yet, about.
    pub fn held_bytes(&self) -> usize {
        self.changes.bytes() + self.sealed.iter().map(|(_, c)| c.bytes()).sum::<usize>()
    }

    /// Epochs that were sealed and are not settled.
    pub fn unsettled(&self) -> usize {
        self.sealed.len()
    }

    /// The newest epoch's number.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Rows of all epochs so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Ends the epoch. It is to be committed before the next one that is sealed.
    pub fn seal(&mut self, sealing: Sealing) -> Arc<Epoch> {
        self.epoch += 1;
        let changes = Arc::new(std::mem::take(&mut self.changes));
        self.sealed.push_back((self.epoch, Arc::clone(&changes)));
        let epoch = Epoch {
            number: self.epoch,
            job: self.identity.job.clone(),
            fingerprint: self.identity.fingerprint,
            engine: self.identity.engine.clone(),
            changes,
            progress: sealing.progress,
            positions: sealing.positions,
            rows_before: self.counts.rows,
            late_before: self.counts.late,
            dead_before: self.counts.dead,
            rows: sealing.rows,
            late: sealing.late,
            dead: sealing.dead,
        };
        self.counts = epoch.after();
        Arc::new(epoch)
    }

    /// The epochs up to this one are committed, and the local store has them.
    pub fn settle(&mut self, epoch: u64) {
        while self
            .sealed
            .front()
            .is_some_and(|(number, _)| *number <= epoch)
        {
            self.sealed.pop_front();
        }
    }

    /// Newest first.
    fn layers(&self) -> impl Iterator<Item = &Changes> {
        std::iter::once(&self.changes)
            .chain(self.sealed.iter().rev().map(|(_, changes)| &**changes))
    }

    fn known(&self, space: Space, key: &[u8]) -> Option<Option<Vec<u8>>> {
        self.layers()
            .find_map(|changes| changes.get(space, key))
            .map(Option::<&Vec<u8>>::cloned)
    }
}

impl State for JobState {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self.known(space, key) {
            Some(value) => Ok(value),
            None => self.local.get(space, key).map_err(StateError::new),
        }
    }

    fn get_many(&self, space: Space, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StateError> {
        let mut values = Vec::with_capacity(keys.len());
        let (mut places, mut asked) = (Vec::new(), Vec::new());
        for key in keys {
            let known = self.known(space, key);
            if known.is_none() {
                places.push(values.len());
                asked.push(key.as_slice());
            }
            values.push(known.flatten());
        }
        let found = self
            .local
            .get_many(space, &asked)
            .map_err(StateError::new)?;
        for (place, value) in places.into_iter().zip(found) {
            values[place] = value;
        }
        Ok(values)
    }

    fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) -> Result<(), StateError> {
        Local::check_key(&key).map_err(StateError::new)?;
        self.changes.set(space, key, Some(value));
        Ok(())
    }

    fn put_new(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) -> Result<(), StateError> {
        Local::check_key(&key).map_err(StateError::new)?;
        self.changes.add(space, key, value);
        Ok(())
    }

    fn delete(&mut self, space: Space, key: Vec<u8>) -> Result<(), StateError> {
        self.changes.remove(space, key);
        Ok(())
    }

    fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
        let mut out = Vec::new();
        let mut from = from.to_vec();
        while out.len() < limit && from.as_slice() < to {
            let page_size = (limit - out.len()).max(PAGE_MIN);
            let page = self
                .local
                .range(space, &from, to, page_size)
                .map_err(StateError::new)?;
            // Behind the page there may be more in the local store: the layers are read as far as the page goes.
            let next = (page.len() == page_size)
                .then(|| successor(page.last().map_or(&[], |(key, _)| key)));
            let end = next.as_deref().unwrap_or(to);
            let layers: Vec<_> = self
                .layers()
                .map(|changes| changes.range(space, &from, end).peekable())
                .collect();
            merge(page, layers, limit, &mut out);
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(out)
    }
}

/// The first key after this one.
fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// Entries of the page with what the layers, newest first, make of it, until `out` has `limit`.
fn merge<'a, L: Iterator<Item = Change<'a>>>(
    page: Vec<(Vec<u8>, Vec<u8>)>,
    mut layers: Vec<std::iter::Peekable<L>>,
    limit: usize,
    out: &mut Vec<(Vec<u8>, Vec<u8>)>,
) {
    let mut page = page.into_iter().peekable();
    while out.len() < limit {
        let lowest = layers
            .iter_mut()
            .filter_map(|layer| layer.peek().map(|(key, _)| *key))
            .min();
        match (lowest, page.peek()) {
            (None, None) => return,
            (Some(key), stored) if stored.is_none_or(|(stored, _)| *key <= *stored) => {
                page.next_if(|(stored, _)| stored == key);
                let mut newest = None;
                for layer in &mut layers {
                    if let Some((_, value)) = layer.next_if(|(k, _)| *k == key) {
                        newest = newest.or(Some(value));
                    }
                }
                if let Some(Some(value)) = newest {
                    out.push((key.clone(), value.clone()));
                }
            }
            _ => out.extend(page.next()),
        }
    }
}
