//! What an epoch changes, while it is in memory.
//!
//! Only timers are ever asked for by range ([`everlog_engine::State`]): windows and times for deduplication are hashed, and put in
//! order when they are written. That is once per epoch, where an ordered map would compare keys at each change.
//!
//! What was not there when the epoch began, and is gone when it ends, leaves no trace. A replay goes through days between two
//! checkpoints: most of its windows live no longer than that, and cost no file and no local store.

use std::collections::{BTreeMap, HashMap, btree_map, hash_map};
use std::hash::BuildHasher as _;
use std::ops::Bound;

use everlog_engine::Space;
use foldhash::fast::RandomState;

/// What an entry costs in memory besides its key and value.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 96;
/// Parts of a hashed space. Each grows by itself, so that growth never holds the whole space twice.
const PARTS: usize = 32;

/// A key with its new value; none: removed.
pub type Change<'a> = (&'a Vec<u8>, Option<&'a Vec<u8>>);

/// What changed, per space, the last change of a key alone.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    timers: BTreeMap<Vec<u8>, Entry>,
    windows: Hashed,
    dedup: Hashed,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct Entry {
    /// None: removed.
    value: Option<Vec<u8>>,
    /// The key was not there when the epoch began; then it has a value.
    is_new: bool,
}

impl Entry {
    fn change(&self) -> Option<&Vec<u8>> {
        self.value.as_ref()
    }

    fn value_bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len)
    }
}

/// What they are to whoever applies them.
impl PartialEq for Changes {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Changes {}

impl Changes {
    /// The change of a key; none: it did not change.
    pub fn get(&self, space: Space, key: &[u8]) -> Option<Option<&Vec<u8>>> {
        let entry = match space {
            Space::Timers => self.timers.get(key),
            Space::Windows => self.windows.get(key),
            Space::Dedup => self.dedup.get(key),
        };
        entry.map(Entry::change)
    }

    /// The changes from one key up to but not including another, in order.
    pub fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
    ) -> Box<dyn Iterator<Item = Change<'_>> + '_> {
        match space {
            Space::Timers => {
                let bounds = (Bound::Included(from), Bound::Excluded(to));
                let range = self.timers.range::<[u8], _>(bounds);
                Box::new(range.map(|(key, entry)| (key, entry.change())))
            }
            Space::Windows => Box::new(self.windows.ordered(|key| from <= key && key < to)),
            Space::Dedup => Box::new(self.dedup.ordered(|key| from <= key && key < to)),
        }
    }

    /// Sets the value of a key, or says that it is removed, whatever was there.
    pub fn set(&mut self, space: Space, key: Vec<u8>, value: Option<Vec<u8>>) {
        let is_new = false;
        self.take(space, key, Entry { value, is_new });
    }

    /// Sets the value of a key that is not there now.
    pub fn add(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) {
        let (value, is_new) = (Some(value), true);
        self.take(space, key, Entry { value, is_new });
    }

    fn take(&mut self, space: Space, key: Vec<u8>, entry: Entry) {
        let key_bytes = key.len() + ENTRY_OVERHEAD_BYTES;
        self.bytes += key_bytes + entry.value_bytes();
        let before = match space {
            Space::Timers => match self.timers.entry(key) {
                btree_map::Entry::Occupied(mut place) => Some(replace(place.get_mut(), entry)),
                btree_map::Entry::Vacant(place) => {
                    place.insert(entry);
                    None
                }
            },
            Space::Windows => self.windows.take(key, entry),
            Space::Dedup => self.dedup.take(key, entry),
        };
        if let Some(before) = before {
            self.bytes -= key_bytes + before.map_or(0, |value| value.len());
        }
    }

    /// Removes a key, if it is there.
    pub fn remove(&mut self, space: Space, key: Vec<u8>) {
        let added = match space {
            Space::Timers => match self.timers.get(&key) {
                Some(entry) if entry.is_new => self.timers.remove(&key),
                _ => None,
            },
            Space::Windows => self.windows.remove_new(&key),
            Space::Dedup => self.dedup.remove_new(&key),
        };
        match added {
            Some(entry) => self.bytes -= key.len() + ENTRY_OVERHEAD_BYTES + entry.value_bytes(),
            None => self.set(space, key, None),
        }
    }

    /// Memory held, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many keys changed.
    pub fn len(&self) -> usize {
        self.timers.len() + self.windows.len() + self.dedup.len()
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, by space and key.
    pub fn iter(&self) -> impl Iterator<Item = (Space, &Vec<u8>, Option<&Vec<u8>>)> {
        let of = |space: Space| -> Box<dyn Iterator<Item = Change<'_>> + '_> {
            match space {
                Space::Timers => {
                    let all = self.timers.iter();
                    Box::new(all.map(|(key, entry)| (key, entry.change())))
                }
                Space::Windows => Box::new(self.windows.ordered(|_| true)),
                Space::Dedup => Box::new(self.dedup.ordered(|_| true)),
            }
        };
        let spaces = Space::ALL.into_iter();
        spaces.flat_map(move |space| of(space).map(move |(key, value)| (space, key, value)))
    }
}

/// The new value in the place of an old one. Whether the key was there when the epoch began stays as it is.
fn replace(place: &mut Entry, entry: Entry) -> Option<Vec<u8>> {
    std::mem::replace(&mut place.value, entry.value)
}

/// A space that is asked for single keys.
#[derive(Debug, Clone, Default)]
struct Hashed {
    /// None, or [`PARTS`].
    parts: Vec<HashMap<Vec<u8>, Entry, RandomState>>,
    /// Says which part has a key.
    place: RandomState,
}

impl Hashed {
    fn part(&self, key: &[u8]) -> usize {
        usize::try_from(self.place.hash_one(key) % PARTS as u64).unwrap_or_default()
    }

    fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.parts.get(self.part(key))?.get(key)
    }

    /// Gives the value before, where there was an entry.
    fn take(&mut self, key: Vec<u8>, entry: Entry) -> Option<Option<Vec<u8>>> {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, HashMap::default);
        }
        let part = self.part(&key);
        match self.parts.get_mut(part)?.entry(key) {
            hash_map::Entry::Occupied(mut place) => Some(replace(place.get_mut(), entry)),
            hash_map::Entry::Vacant(place) => {
                place.insert(entry);
                None
            }
        }
    }

    /// Takes an entry out that the epoch began without.
    fn remove_new(&mut self, key: &[u8]) -> Option<Entry> {
        let part = self.part(key);
        let part = self.parts.get_mut(part)?;
        match part.get(key) {
            Some(entry) if entry.is_new => part.remove(key),
            _ => None,
        }
    }

    fn len(&self) -> usize {
        self.parts.iter().map(HashMap::len).sum()
    }

    /// Those that are wanted, by key.
    fn ordered(&self, wanted: impl Fn(&[u8]) -> bool) -> std::vec::IntoIter<Change<'_>> {
        let all = self.parts.iter().flatten();
        let wanted = all.filter(|(key, _)| wanted(key));
        let mut all: Vec<Change<'_>> = wanted.map(|(key, e)| (key, e.change())).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<(u8, Vec<u8>), Option<Vec<u8>>>;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0_u8..4, 1..4)
    }

    proptest! {
        /// Hashed or not, changes are an ordered map of the last change of each key.
        #[test]
        fn changes_are_an_ordered_map(
            all in prop::collection::vec((0_usize..3, key(), prop::option::of(key())), 0..200),
            from in key(),
            to in key(),
        ) {
            let (mut changes, mut model) = (Changes::default(), Model::new());
            for (space, key, value) in all {
                changes.set(Space::ALL[space], key.clone(), value.clone());
                model.insert((space as u8, key), value);
            }
            let found: Vec<_> = changes
                .iter()
                .map(|(space, key, value)| ((space as u8, key.clone()), value.cloned()))
                .collect();
            let expected: Vec<_> = model.clone().into_iter().collect();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(changes.len(), model.len());
            for space in Space::ALL {
                let of_space = model.iter().filter(|((number, _), _)| *number == space as u8);
                let between: Vec<_> = of_space
                    .filter(|((_, key), _)| from <= *key && *key < to)
                    .map(|((_, key), value)| (key, value.as_ref()))
                    .collect();
                // an ordered map's range would panic
                if from < to {
                    let range: Vec<_> = changes.range(space, &from, &to).collect();
                    prop_assert_eq!(range, between);
                }
            }
            for ((space, key), value) in &model {
                let space = Space::ALL[usize::from(*space)];
                prop_assert_eq!(changes.get(space, key), Some(value.as_ref()));
            }
            prop_assert_eq!(changes.bytes(), bytes(&changes));
            let copy = changes.clone();
            prop_assert_eq!(&copy, &changes);
        }

        /// Epoch after epoch, what is applied is what the state became, whether keys are said to be new or not.
        #[test]
        fn changes_applied_epoch_by_epoch_are_the_state(
            epochs in prop::collection::vec(
                prop::collection::vec((0_usize..3, key(), prop::option::of(key()), any::<bool>()), 0..60),
                1..5,
            ),
        ) {
            let (mut applied, mut state) = (Model::new(), Model::new());
            for epoch in epochs {
                let mut changes = Changes::default();
                for (space, key, value, told) in epoch {
                    let (place, of) = ((space as u8, key.clone()), Space::ALL[space]);
                    let is_there = state.contains_key(&place);
                    match value {
                        Some(value) => {
                            if told && !is_there {
                                changes.add(of, key, value.clone());
                            } else {
                                changes.set(of, key, Some(value.clone()));
                            }
                            state.insert(place, Some(value));
                        }
                        None => {
                            changes.remove(of, key);
                            state.remove(&place);
                        }
                    }
                    prop_assert_eq!(changes.bytes(), bytes(&changes));
                }
                for (space, key, value) in changes.iter() {
                    let place = (space as u8, key.clone());
                    match value {
                        Some(value) => applied.insert(place, Some(value.clone())),
                        None => applied.remove(&place),
                    };
                }
                prop_assert_eq!(&applied, &state);
            }
        }
    }

    fn bytes(changes: &Changes) -> usize {
        changes
            .iter()
            .map(|(_, key, value)| key.len() + ENTRY_OVERHEAD_BYTES + value.map_or(0, Vec::len))
            .sum()
    }

    #[test]
    fn a_key_that_was_new_is_forgotten_and_one_that_was_not_is_removed() {
        for space in Space::ALL {
            let mut changes = Changes::default();
            changes.add(space, vec![1], vec![1]);
            changes.set(space, vec![1], Some(vec![1, 2]));
            changes.remove(space, vec![1]);
            assert!(changes.is_empty() && changes.bytes() == 0, "{space:?}");
            assert_eq!(changes.get(space, &[1]), None);

            // there before, gone, and there again
            changes.remove(space, vec![1]);
            changes.add(space, vec![1], vec![3]);
            changes.remove(space, vec![1]);
            assert_eq!(changes.get(space, &[1]), Some(None), "{space:?}");
        }
    }
}
