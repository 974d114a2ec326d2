//! How open windows are stored: the bytes of keys, values and timers.
//!
//! | space | key | value |
//! |---|---|---|
//! | windows, session | group key | owner?, timer, one item per open session: first, last, state |
//! | windows, tumble and hop | group key, pane start | owner?, one item per set of windows: first window, 0, state |
//! | timers | tag, partition (0 where time is global), time, group key or dedup key | nothing |
//! | dedup | partition, dedup key | timer, the kept event times |
//!
//! The owner (partition and last offset) is there where time is per partition, to see a key that occurs in two. Times
//! in keys are big-endian with the sign flipped, so that they sort; in values all numbers are little-endian.

use crate::state::{KEY_BYTES_MAX, StateError};

/// What stands before the key in a timer's: tag, partition, time.
const TIMER_BYTES: usize = 1 + 4 + 8;

/// The longest group key that can be stored: its timer's key is the longest that it is part of.
pub(crate) const GROUP_KEY_BYTES_MAX: usize = KEY_BYTES_MAX - TIMER_BYTES;

/// The longest key for deduplication that can be stored: in timers, it stands behind its partition.
pub(crate) const DEDUP_KEY_BYTES_MAX: usize = GROUP_KEY_BYTES_MAX - 4;

/// What a timer looks after. The number is the first byte of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    Window = 0,
    Dedup = 1,
}

/// Which partition holds a key, and the last offset that it was seen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub partition: i32,
    pub offset: i64,
}

pub(crate) fn sortable(time: i64) -> [u8; 8] {
    (time ^ i64::MIN).to_be_bytes()
}

pub(crate) fn unsortable(bytes: [u8; 8]) -> i64 {
    i64::from_be_bytes(bytes) ^ i64::MIN
}

/// A key of the group `key`, for the pane that begins at `start`.
pub(crate) fn pane_key(key: &[u8], start: i64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 8);
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&sortable(start));
    bytes
}

pub(crate) fn timer_key(tag: Tag, partition: i32, time: i64, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(TIMER_BYTES + key.len());
    bytes.push(tag as u8);
    bytes.extend_from_slice(&partition.to_be_bytes());
    bytes.extend_from_slice(&sortable(time));
    bytes.extend_from_slice(key);
    bytes
}

/// The time of a timer, and the key that it is for.
pub(crate) fn read_timer(bytes: &[u8]) -> Result<(i64, &[u8]), StateError> {
    let (time, key) = bytes
        .get(5..)
        .and_then(|rest| rest.split_first_chunk::<8>())
        .ok_or_else(|| damaged("a timer"))?;
    Ok((unsortable(*time), key))
}

pub(crate) fn dedup_key(partition: i32, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + key.len());
    bytes.extend_from_slice(&partition.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

pub(crate) fn damaged(what: &str) -> StateError {
    StateError::new(format!(
        "{what} in the job's state is damaged; restore an earlier checkpoint"
    ))
}

/// What of a window is stored beside its accumulators' state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item<'a> {
    pub a: i64,
    pub b: i64,
    pub state: &'a [u8],
}

/// Reads a value of the windows space.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (chunk, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or_else(|| damaged("a window"))?;
        self.bytes = rest;
        Ok(*chunk)
    }

    pub fn long(&mut self) -> Result<i64, StateError> {
        Ok(i64::from_le_bytes(self.chunk()?))
    }

    pub fn owner(&mut self) -> Result<Owner, StateError> {
        let partition = i32::from_le_bytes(self.chunk()?);
        let offset = self.long()?;
        Ok(Owner { partition, offset })
    }

    pub fn item(&mut self) -> Result<Option<Item<'a>>, StateError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let a = self.long()?;
        let b = self.long()?;
        let length = u32::from_le_bytes(self.chunk()?) as usize;
        let (state, rest) = self
            .bytes
            .split_at_checked(length)
            .ok_or_else(|| damaged("a window"))?;
        self.bytes = rest;
        Ok(Some(Item { a, b, state }))
    }

    pub fn longs(&mut self) -> Result<Vec<i64>, StateError> {
        let mut longs = Vec::with_capacity(self.bytes.len() / 8);
        while !self.bytes.is_empty() {
            longs.push(self.long()?);
        }
        Ok(longs)
    }
}

pub(crate) fn write_owner(bytes: &mut Vec<u8>, owner: Owner) {
    bytes.extend_from_slice(&owner.partition.to_le_bytes());
    bytes.extend_from_slice(&owner.offset.to_le_bytes());
}

pub(crate) fn write_long(bytes: &mut Vec<u8>, long: i64) {
    bytes.extend_from_slice(&long.to_le_bytes());
}

pub(crate) fn write_item(
    bytes: &mut Vec<u8>,
    a: i64,
    b: i64,
    state: &[u8],
) -> Result<(), StateError> {
    let length = u32::try_from(state.len()).map_err(|_| {
        StateError::new("one window's state is over 4 GiB: narrow what its aggregates collect")
    })?;
    write_long(bytes, a);
    write_long(bytes, b);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(state);
    Ok(())
}
