//! Where a job's open windows live: an ordered key-value space, and one in memory.
//!
//! What is stored is bytes only, never live objects, so that a checkpoint, a spill to disk and a restart are the same
//! bytes. The engine calls [`State::range`] on [`Space::Timers`] alone: an implementation may keep the other two unordered.

use std::collections::BTreeMap;

/// The parts of a job's state. The numbers are part of the stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Space {
    /// Open windows: group key (and pane) to accumulator state.
    Windows = 0,
    /// When to look at a window next: time and group key, without a value.
    Timers = 1,
    /// Event times kept per key for deduplication.
    Dedup = 2,
}

impl Space {
    /// Every space, in the order of its numbers.
    pub const ALL: [Space; 3] = [Space::Windows, Space::Timers, Space::Dedup];
}

/// The longest key that a [`State`] takes. The engine makes no longer one: what would need it is a dead letter.
pub const KEY_BYTES_MAX: usize = 65_535;

/// The store could not answer. Carries the store's own error.
#[derive(Debug, thiserror::Error)]
#[error("the job's state cannot be read or written: {0}")]
pub struct StateError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl StateError {
    /// Wraps an error of the store.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// Ordered key-value space that holds a job's windows. Keys sort as bytes, and have 1 to [`KEY_BYTES_MAX`] of them.
///
/// Reads see the writes that were made before, whether they are durable yet or not.
pub trait State {
    /// The value of `key`, if there is one.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// The values of `keys`, in their order. A key may be asked for more than once.
    fn get_many(&self, space: Space, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StateError> {
        keys.iter().map(|key| self.get(space, key)).collect()
    }

    /// Sets the value of `key`.
    fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) -> Result<(), StateError>;

    /// Sets the value of `key`, which the caller knows not to be there. A store may then forget it without a trace when it is
    /// removed before it was ever durable.
    fn put_new(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) -> Result<(), StateError> {
        self.put(space, key, value)
    }

    /// Removes `key`; nothing happens if it is not there.
    fn delete(&mut self, space: Space, key: Vec<u8>) -> Result<(), StateError>;

    /// Keys and values in key order, from `from` up to but not including `to`, at most `limit`.
    fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError>;
}

/// A [`State`] in memory, for tests and jobs without a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryState {
    spaces: [BTreeMap<Vec<u8>, Vec<u8>>; 3],
}

impl MemoryState {
    /// How many entries `space` holds.
    pub fn len(&self, space: Space) -> usize {
        self.spaces[space as usize].len()
    }

    /// Whether no space holds anything.
    pub fn is_empty(&self) -> bool {
        self.spaces.iter().all(BTreeMap::is_empty)
    }

    /// All entries of `space`, in key order.
    pub fn entries(&self, space: Space) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.spaces[space as usize]
            .iter()
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }
}

impl State for MemoryState {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.spaces[space as usize].get(key).cloned())
    }

    fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) -> Result<(), StateError> {
        // As strict as the stores on disk are.
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(StateError::new(format!(
                "a key has {} bytes, 1 to {KEY_BYTES_MAX} are possible",
                key.len()
            )));
        }
        self.spaces[space as usize].insert(key, value);
        Ok(())
    }

    /// Refuses what is there: stores that count on it not to be would bring back what was removed.
    fn put_new(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) -> Result<(), StateError> {
        if self.spaces[space as usize].contains_key(&key) {
            return Err(StateError::new(format!("{key:?} is in {space:?} already")));
        }
        self.put(space, key, value)
    }

    fn delete(&mut self, space: Space, key: Vec<u8>) -> Result<(), StateError> {
        self.spaces[space as usize].remove(&key);
        Ok(())
    }

    fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let bounds = (
            std::ops::Bound::Included(from),
            std::ops::Bound::Excluded(to),
        );
        Ok(self.spaces[space as usize]
            .range::<[u8], _>(bounds)
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }
}
