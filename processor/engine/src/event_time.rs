//! Event time: watermarks, lateness, floors, and which partition to read next. Pure functions of the log.
//!
//! The rules and their proof are in `docs/event-time.md`; the numbers in the comments here are the rules there.
//! All times are milliseconds since 1970 in UTC. [`NEVER`] stands for a watermark that has not begun.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The watermark before the first record: everything is newer.
pub const NEVER: i64 = i64::MIN;

/// The watermark after the last record: everything is older. As a floor: this partition ended here.
pub const END: i64 = i64::MAX;

/// The first and last event time that is taken, 0001-01-01 to the end of 9999: what every format can hold.
pub const EVENT_TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// What a job says about its event time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventTime {
    /// How far records of one partition may be out of order and still be on time.
    pub bound: Duration,
    /// How much longer a window takes records after its end has been passed. `None`: 0 for tumble and hop, the gap for
    /// sessions.
    pub lateness: Option<Duration>,
    /// Whether time is one for the whole topic or each partition's own.
    pub scope: Scope,
    /// How far an event time may be ahead of its record's Kafka timestamp. `None`: any distance.
    pub max_future: Option<Duration>,
    /// How far a partition may be read ahead of the slowest one. `None`: the window's size or gap; without a window the
    /// bound, and a minute at least.
    pub max_skew: Option<Duration>,
}

impl Default for EventTime {
    fn default() -> Self {
        Self {
            bound: Duration::ZERO,
            lateness: None,
            scope: Scope::Global,
            max_future: Some(Duration::from_hours(1)),
            max_skew: None,
        }
    }
}

/// Whose time a window follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The slowest partition's.
    #[default]
    Global,
    /// The partition's own: the group key determines the partition.
    Partition,
}

/// Milliseconds of a duration, at most what event times can span.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).map_or(1 << 52, |ms| ms.min(1 << 52))
}

/// An entry of the decision log: from `offset` on, this partition's watermark is at least `floor`.
///
/// The only way in which time passes a partition that is silent, new or has ended (rule 5). It is part of the job's
/// input: a replay, a restart and a later version obey the same entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Decision {
    /// The generation of the topic that `offset` belongs to.
    pub generation: i32,
    /// The partition.
    pub partition: i32,
    /// Applies before the record at this offset, and as soon as the position has reached it.
    pub offset: i64,
    /// Milliseconds; [`END`] says that the partition has no more records.
    pub floor: i64,
}

/// One partition's time: the highest event time so far, and the highest floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// The highest event time of the partition's records so far, [`NEVER`] before the first.
    pub highest: i64,
    /// The highest floor so far, [`NEVER`] without one.
    pub floor: i64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            highest: NEVER,
            floor: NEVER,
        }
    }
}

impl Clock {
    /// The partition's watermark: no accepted record after it is at or below it.
    pub fn watermark(&self, bound: i64) -> i64 {
        if self.highest == NEVER {
            return self.floor;
        }
        (self.highest - bound - 1).max(self.floor)
    }

    /// Sees a record's event time.
    pub fn see(&mut self, time: i64) {
        self.highest = self.highest.max(time);
    }

    /// Obeys a floor.
    pub fn raise(&mut self, floor: i64) {
        self.floor = self.floor.max(floor);
    }
}

/// Why a record's event time cannot be used (rules 6 and 7): `None` if it can.
pub fn unusable(
    time: Option<i64>,
    kafka_timestamp: Option<i64>,
    max_future: Option<i64>,
) -> Option<String> {
    let Some(time) = time else {
        return Some("the event time is null".to_owned());
    };
    if !EVENT_TIMES.contains(&time) {
        return Some(format!(
            "the event time {time} ms is outside the years 1 to 9999"
        ));
    }
    let (Some(kafka), Some(max)) = (kafka_timestamp, max_future) else {
        return None;
    };
    let ahead = time.saturating_sub(kafka);
    (ahead > max).then(|| {
        format!(
            "the event time is {ahead} ms ahead of the record's Kafka timestamp, more than max_future ({max} ms)"
        )
    })
}

/// Whether a session takes a record (rule 2): it is newer than its own partition's watermark before it, less the lateness.
#[inline]
pub fn session_accepts(time: i64, watermark: i64, lateness: i64) -> bool {
    time > watermark.saturating_sub(lateness)
}

/// Whether a window that ends at `end` takes a record (rule 1).
#[inline]
pub fn window_accepts(end: i64, watermark: i64, lateness: i64) -> bool {
    end.saturating_sub(1).saturating_add(lateness) > watermark
}

/// The last end of a session that fires at `watermark` (rule 4): `end + lateness <= watermark`.
#[inline]
pub fn sessions_due(watermark: i64, lateness: i64) -> i64 {
    match watermark {
        NEVER | END => watermark,
        _ => watermark.saturating_sub(lateness),
    }
}

/// The last end of a tumbling or hopping window that fires at `watermark` (rule 4): `end - 1 + lateness <= watermark`.
#[inline]
pub fn windows_due(watermark: i64, lateness: i64) -> i64 {
    match watermark {
        NEVER | END => watermark,
        _ => watermark.saturating_sub(lateness).saturating_add(1),
    }
}

/// A partition that could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The generation of its next record.
    pub generation: i32,
    /// The partition.
    pub partition: i32,
    /// Whether it has reached the end of what there is to read now: it then no longer holds the others back.
    pub at_end: bool,
}

/// What to read next. See [`choose`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The partition to read from: generation and partition.
    pub next: Option<(i32, i32)>,
    /// Partitions that may read ahead but must not hand over: more than the skew ahead.
    pub held: Vec<(i32, i32)>,
    /// The partition that holds time back, and its watermark ([`NEVER`] if it has none).
    pub slowest: Option<((i32, i32), i64)>,
}

/// Reads next from the partition with the lowest watermark, ties by number, and holds back what is more than `max_skew`
/// ahead of it.
///
/// Changes no result, only how much is open at once: the rows are the same in any order of reading.
pub fn choose(candidates: &[(Candidate, i64)], max_skew: Option<i64>) -> Choice {
    let slowest = candidates
        .iter()
        .filter(|(candidate, _)| !candidate.at_end)
        .min_by_key(|(candidate, watermark)| (*watermark, candidate.partition));
    let Some((first, lowest)) = slowest else {
        return Choice::default();
    };
    let limit = max_skew.map_or(END, |skew| match *lowest {
        NEVER => NEVER,
        lowest => lowest.saturating_add(skew),
    });
    let held = candidates
        .iter()
        .filter(|(candidate, watermark)| !candidate.at_end && *watermark > limit)
        .map(|(candidate, _)| (candidate.generation, candidate.partition))
        .collect();
    let name = (first.generation, first.partition);
    Choice {
        next: Some(name),
        held,
        slowest: Some((name, *lowest)),
    }
}
