//! Offsets, ranges and positions: the algebra that every exactly-once argument rests on.
//!
//! Invariants
//! - An [`Offset`] is never negative.
//! - An [`OffsetRange`] is half-open, never empty, and *covers* offsets: it may be sparse inside (compaction,
//!   transaction markers).
//! - A [`Position`] is the **next** offset to read, never "the last row plus one" (H3).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A value that cannot be an offset, a range, a topic name …
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// Offsets count from 0.
    #[error("offset {0} is negative")]
    NegativeOffset(i64),
    /// A range must cover at least one offset.
    #[error("offset range [{0}, {1}) is empty")]
    EmptyRange(i64, i64),
    /// Kafka's rule: 1 to 249 characters of `[A-Za-z0-9._-]`, not `.` or `..`.
    #[error("{0:?} is not a topic name (1 to 249 characters of [A-Za-z0-9._-])")]
    TopicName(String),
    /// Partitions count from 0.
    #[error("partition {0} is negative")]
    NegativePartition(i32),
    /// Not a Kafka topic id (a UUID or its unpadded base64 form).
    #[error("{0:?} is not a topic id")]
    TopicId(String),
}

/// A Kafka offset: non-negative.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "i64", into = "i64")]
pub struct Offset(i64);

impl Offset {
    /// The first offset a log can have.
    pub const ZERO: Self = Self(0);

    /// Checks that `value` is not negative.
    pub fn new(value: i64) -> Result<Self, PositionError> {
        if value < 0 {
            Err(PositionError::NegativeOffset(value))
        } else {
            Ok(Self(value))
        }
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The offset after this one (saturating: Kafka's offsets end at `i64::MAX`).
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// How many offsets lie from `earlier` up to here; 0 when `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        if self.0 > earlier.0 {
            (self.0 - earlier.0).unsigned_abs()
        } else {
            0
        }
    }
}

impl TryFrom<i64> for Offset {
    type Error = PositionError;
    fn try_from(value: i64) -> Result<Self, PositionError> {
        Self::new(value)
    }
}

impl From<Offset> for i64 {
    fn from(offset: Offset) -> Self {
        offset.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A half-open, non-empty range of offsets `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetRange {
    start: Offset,
    end: Offset,
}

impl OffsetRange {
    /// `[start, end)`; an empty range is refused.
    pub fn new(start: Offset, end: Offset) -> Result<Self, PositionError> {
        if start < end {
            Ok(Self { start, end })
        } else {
            Err(PositionError::EmptyRange(start.0, end.0))
        }
    }

    /// First covered offset.
    pub const fn start(self) -> Offset {
        self.start
    }

    /// First offset that is not covered any more.
    pub const fn end(self) -> Offset {
        self.end
    }

    /// How many offsets are covered (rows may be fewer).
    pub const fn len(self) -> u64 {
        self.end.since(self.start)
    }

    /// Never: kept for the idiom that comes with `len`.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Whether `offset` lies inside.
    pub fn contains(self, offset: Offset) -> bool {
        self.start <= offset && offset < self.end
    }

    /// The part that both cover.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end)).ok()
    }

    /// Both as one, when `other` begins where this ends.
    pub fn join(self, other: Self) -> Option<Self> {
        (self.end == other.start).then_some(Self {
            start: self.start,
            end: other.end,
        })
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

/// A Kafka partition number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct Partition(i32);

impl Partition {
    /// Checks that `value` is not negative.
    pub fn new(value: i32) -> Result<Self, PositionError> {
        if value < 0 {
            Err(PositionError::NegativePartition(value))
        } else {
            Ok(Self(value))
        }
    }

    /// The number.
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl TryFrom<i32> for Partition {
    type Error = PositionError;
    fn try_from(value: i32) -> Result<Self, PositionError> {
        Self::new(value)
    }
}

impl From<Partition> for i32 {
    fn from(partition: Partition) -> Self {
        partition.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An era of a topic: one (cluster id, topic id). Re-creation starts the next; they count from 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Generation(pub u32);

impl Generation {
    /// The first era.
    pub const FIRST: Self = Self(0);

    /// The era after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// As the table's `int` column holds it.
    pub fn as_i32(self) -> i32 {
        i32::try_from(self.0).unwrap_or(i32::MAX)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// (generation, **next** offset to read), ordered lexicographically.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The era that `offset` counts in.
    pub generation: Generation,
    /// The next offset to read.
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.generation, self.offset)
    }
}

/// A position per partition.
pub type Positions = BTreeMap<Partition, Position>;

/// A valid Kafka topic name; cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// Checks Kafka's naming rule.
    pub fn new(name: &str) -> Result<Self, PositionError> {
        let ok = (1..=249).contains(&name.len())
            && name != "."
            && name != ".."
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if ok {
            Ok(Self(name.into()))
        } else {
            Err(PositionError::TopicName(name.to_owned()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TopicName {
    type Err = PositionError;
    fn from_str(s: &str) -> Result<Self, PositionError> {
        Self::new(s)
    }
}

impl TryFrom<String> for TopicName {
    type Error = PositionError;
    fn try_from(s: String) -> Result<Self, PositionError> {
        Self::new(&s)
    }
}

impl From<TopicName> for String {
    fn from(name: TopicName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The broker's UUID of one incarnation of a topic (KIP-516); what tells a re-created topic from the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicId(pub uuid::Uuid);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A topic and one of its partitions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: Partition,
}

impl TopicPartition {
    /// Both as one.
    pub const fn new(topic: TopicName, partition: Partition) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// What a broker says of a partition's ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogBounds {
    /// First offset that can still be read.
    pub log_start: Offset,
    /// Where a reader of the requested isolation stops: the last stable offset under `read_committed`, else the
    /// high watermark. This is "the end" (design: *Exactly once* 8).
    pub end: Offset,
    /// The high watermark: ahead of `end` while a transaction is open (H5).
    pub high_watermark: Offset,
    /// The epoch of the leader that said so, where it tells: its log reaches to the high watermark.
    pub leader_epoch: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(a: i64, b: i64) -> OffsetRange {
        OffsetRange::new(Offset::new(a).unwrap(), Offset::new(b).unwrap()).unwrap()
    }

    #[test]
    fn ranges_are_half_open_and_never_empty() {
        assert!(OffsetRange::new(Offset(3), Offset(3)).is_err());
        assert!(OffsetRange::new(Offset(4), Offset(3)).is_err());
        let r = range(3, 5);
        assert!(r.contains(Offset(3)) && r.contains(Offset(4)) && !r.contains(Offset(5)));
        assert_eq!(r.len(), 2);
        assert_eq!(r.join(range(5, 9)), Some(range(3, 9)));
        assert_eq!(r.join(range(6, 9)), None);
        assert_eq!(range(0, 10).intersection(range(8, 20)), Some(range(8, 10)));
        assert_eq!(range(0, 10).intersection(range(10, 20)), None);
    }

    #[test]
    fn positions_order_by_generation_first() {
        let p = |g, o| Position {
            generation: Generation(g),
            offset: Offset(o),
        };
        assert!(p(0, 500) < p(1, 0));
        assert!(p(1, 4) < p(1, 5));
    }

    #[test]
    fn topic_names_follow_kafkas_rule() {
        for good in ["a", "clickstream.raw", "A_b-c.9", &"x".repeat(249)] {
            assert!(TopicName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "ü", &"x".repeat(250)] {
            assert!(TopicName::new(bad).is_err(), "{bad}");
        }
    }
}
