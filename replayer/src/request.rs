//! What to replay: the request as a value, and the parsers of its parts as the command line writes them.
//!
//! | part | means, per partition |
//! |---|---|
//! | `beginning` | the first archived offset of the first generation |
//! | `offset:N` | offset N of the newest generation; what lies before the first archived offset counts as a gap |
//! | `offset:G:N` | offset N of generation G, then every later generation |
//! | `timestamp:T` | the first visible record at or after T, in either tier, out-of-order timestamps included |
//! | until `offset:N`, `timestamp:T` | exclusive; bounded by what exists at the start: a replay waits for the future only with `--follow` |

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use everlog_common::{Generation, Millis, Offset, Partition, Positions, TopicName, compute};
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};

use crate::handoff::Incarnation;

/// Numbers of partitions that one list may name.
const PARTITIONS_MAX: usize = 100_000;

/// An option that cannot be meant. Messages are complete: they name the option and a right form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// `--from` is none of its forms.
    #[error("--from {0}: not one of beginning, offset:N, offset:GENERATION:N, timestamp:RFC3339")]
    From(String),
    /// `--until` is none of its forms.
    #[error("--until {0}: not one of snapshot, now, offset:N, timestamp:RFC3339")]
    Until(String),
    /// An offset is no number from 0.
    #[error("{option} {text}: {offset:?} is not an offset (a number from 0)")]
    Offset {
        /// The option.
        option: &'static str,
        /// Its value.
        text: String,
        /// The part that is wrong.
        offset: String,
    },
    /// A generation is no number from 0.
    #[error("{option} {text}: {generation:?} is not a generation (a number from 0)")]
    Generation {
        /// The option.
        option: &'static str,
        /// Its value.
        text: String,
        /// The part that is wrong.
        generation: String,
    },
    /// Not an RFC 3339 time.
    #[error("{option} {text}: not an RFC 3339 time such as 2026-01-31T08:00:00Z")]
    Timestamp {
        /// The option.
        option: &'static str,
        /// Its value.
        text: String,
    },
    /// Not a list of partitions.
    #[error("--partitions {text}: {part:?} is not a partition or a range such as 0,3-5")]
    Partitions {
        /// The whole value.
        text: String,
        /// The part that is wrong.
        part: String,
    },
    /// More partitions than a topic has.
    #[error("--partitions {0}: names more than {PARTITIONS_MAX} partitions")]
    TooManyPartitions(String),
    /// Not an order.
    #[error("--order {0}: not one of partition, time")]
    Order(String),
    /// Not a way with gaps.
    #[error("--on-gap {0}: not one of pass, stop")]
    OnGap(String),
    /// The output is the input: each event would come again.
    #[error("--output kafka:{0}: this is the topic that is replayed; give another one")]
    IntoItself(TopicName),
    /// Two options that exclude each other.
    #[error("{first} and {second} exclude each other: {reason}")]
    Conflict {
        /// One option.
        first: &'static str,
        /// The other one.
        second: &'static str,
        /// Why.
        reason: &'static str,
    },
}

/// Where a replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At the first archived record.
    Beginning,
    /// At an offset of a generation; none is the newest one.
    Offset {
        /// The era.
        generation: Option<Generation>,
        /// The offset, in every partition.
        offset: Offset,
    },
    /// At the first visible record at or after an instant.
    Timestamp(Millis),
}

/// Where a replay ends, exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// At the end of the pinned snapshot: Kafka is not needed.
    Snapshot,
    /// At the end of the live log as it is when the replay starts.
    Now,
    /// At an offset of the newest generation, or at [`Until::Now`] where that comes first.
    Offset(Offset),
    /// At the first visible record at or after an instant, or at [`Until::Now`] where that comes first.
    Timestamp(Millis),
    /// Never.
    Never,
}

/// The order in which events of different partitions come. Within a partition it is always the log's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Batches of different partitions interleave freely.
    #[default]
    Partition,
    /// Merged by timestamp, ties by (partition, offset): total within one pinned snapshot, then arrival order.
    Time,
}

/// What to do where the ledger records a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnGap {
    /// Go on behind it; it is in [`crate::EventStream::gaps_passed`].
    #[default]
    Pass,
    /// Stop with [`crate::ReplayError::Gap`].
    Stop,
}

/// A replay, as asked for.
#[derive(Debug, Clone)]
pub struct ReplayRequest {
    /// The topic.
    pub topic: TopicName,
    /// Where to begin.
    pub from: From,
    /// Where to end.
    pub until: Until,
    /// Which snapshot is history.
    pub selector: SnapshotSelector,
    /// Only these partitions; none: all.
    pub partitions: Option<BTreeSet<Partition>>,
    /// The order across partitions.
    pub order: Order,
    /// Events per second, at most.
    pub rate: Option<NonZeroU64>,
    /// What to do at a recorded gap.
    pub on_gap: OnGap,
    /// Whether the snapshot is held against expiry.
    pub lease: LeaseMode,
    /// Positions of an earlier run; partitions that are not in there begin at `from`.
    pub start: Option<Positions>,
    /// Whose positions those of the newest generation in `start` are, as [`crate::EventStream::incarnation`] said.
    pub incarnation: Option<Incarnation>,
    /// The snapshot that the earlier run was reading: `--order time` goes on in it where it is still there.
    pub resumed_snapshot: Option<i64>,
    /// Memory for decoded rows, read-ahead and the live reader's buffers.
    pub memory_bytes: usize,
    /// Row groups decoded at the same time.
    pub threads: usize,
}

impl ReplayRequest {
    /// Memory where nothing is said.
    pub const MEMORY_BYTES: usize = 256 << 20;

    /// Everything of `topic` from the beginning until now.
    pub fn new(topic: TopicName) -> Self {
        Self {
            topic,
            from: From::Beginning,
            until: Until::Now,
            selector: SnapshotSelector::Current,
            partitions: None,
            order: Order::Partition,
            rate: None,
            on_gap: OnGap::Pass,
            lease: LeaseMode::Auto,
            start: None,
            incarnation: None,
            resumed_snapshot: None,
            memory_bytes: Self::MEMORY_BYTES,
            threads: compute::threads(),
        }
    }

    /// Refuses what cannot be meant.
    pub fn validate(&self) -> Result<(), RequestError> {
        let fixed = !matches!(self.selector, SnapshotSelector::Current);
        if fixed && self.until == Until::Never {
            return Err(RequestError::Conflict {
                first: "--follow",
                second: "--snapshot, --as-of or --tag",
                reason: "a named snapshot does not grow; leave one of them out",
            });
        }
        Ok(())
    }

    /// Whether the live log has a part in it. Of a named snapshot, a bound by offset or time is only looked for there.
    pub fn is_live(&self) -> bool {
        match self.until {
            Until::Snapshot => false,
            Until::Now | Until::Never => true,
            Until::Offset(_) | Until::Timestamp(_) => {
                matches!(self.selector, SnapshotSelector::Current)
            }
        }
    }

    /// Whether `partition` is asked for.
    pub fn wants(&self, partition: Partition) -> bool {
        self.partitions
            .as_ref()
            .is_none_or(|p| p.contains(&partition))
    }
}

impl Until {
    /// What `--until` and `--follow` mean together; `until` is none where the option is not given.
    pub fn resolve(
        until: Option<Self>,
        follow: bool,
        selector: &SnapshotSelector,
    ) -> Result<Self, RequestError> {
        match (until, follow) {
            (Some(_), true) => Err(RequestError::Conflict {
                first: "--follow",
                second: "--until",
                reason: "a replay that follows never ends",
            }),
            (None, true) => Ok(Self::Never),
            (Some(until), false) => Ok(until),
            (None, false) if matches!(selector, SnapshotSelector::Current) => Ok(Self::Now),
            (None, false) => Ok(Self::Snapshot),
        }
    }
}

impl FromStr for From {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        const OPTION: &str = "--from";
        if text == "beginning" {
            return Ok(Self::Beginning);
        }
        if let Some(at) = text.strip_prefix("timestamp:") {
            return parse_timestamp(OPTION, text, at).map(Self::Timestamp);
        }
        let Some(rest) = text.strip_prefix("offset:") else {
            return Err(RequestError::From(text.to_owned()));
        };
        let (generation, offset) = match rest.split_once(':') {
            None => (None, rest),
            Some((generation, offset)) => {
                let number = parse_number(generation).and_then(|g| u32::try_from(g).ok());
                let number = number.ok_or_else(|| RequestError::Generation {
                    option: OPTION,
                    text: text.to_owned(),
                    generation: generation.to_owned(),
                })?;
                (Some(Generation(number)), offset)
            }
        };
        Ok(Self::Offset {
            generation,
            offset: parse_offset(OPTION, text, offset)?,
        })
    }
}

impl FromStr for Until {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        const OPTION: &str = "--until";
        match text {
            "snapshot" => return Ok(Self::Snapshot),
            "now" => return Ok(Self::Now),
            _ => {}
        }
        if let Some(at) = text.strip_prefix("timestamp:") {
            return parse_timestamp(OPTION, text, at).map(Self::Timestamp);
        }
        match text.strip_prefix("offset:") {
            Some(offset) => parse_offset(OPTION, text, offset).map(Self::Offset),
            None => Err(RequestError::Until(text.to_owned())),
        }
    }
}

impl FromStr for Order {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        match text {
            "partition" => Ok(Self::Partition),
            "time" => Ok(Self::Time),
            _ => Err(RequestError::Order(text.to_owned())),
        }
    }
}

impl FromStr for OnGap {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        match text {
            "pass" => Ok(Self::Pass),
            "stop" => Ok(Self::Stop),
            _ => Err(RequestError::OnGap(text.to_owned())),
        }
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beginning => f.write_str("beginning"),
            Self::Offset {
                generation: None,
                offset,
            } => write!(f, "offset:{offset}"),
            Self::Offset {
                generation: Some(generation),
                offset,
            } => write!(f, "offset:{generation}:{offset}"),
            Self::Timestamp(at) => write!(f, "timestamp:{}", Rfc3339(*at)),
        }
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot => f.write_str("snapshot"),
            Self::Now => f.write_str("now"),
            Self::Offset(offset) => write!(f, "offset:{offset}"),
            Self::Timestamp(at) => write!(f, "timestamp:{}", Rfc3339(*at)),
            Self::Never => f.write_str("never"),
        }
    }
}

/// Prints an instant as RFC 3339, or as milliseconds where the calendar ends.
#[derive(Debug, Clone, Copy)]
pub struct Rfc3339(pub Millis);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match chrono::DateTime::from_timestamp_millis(self.0.0) {
            Some(at) => write!(f, "{}", at.format("%Y-%m-%dT%H:%M:%S%.3fZ")),
            None => write!(f, "{} ms", self.0.0),
        }
    }
}

/// Reads an RFC 3339 time; a part of a millisecond counts as a whole one, since only whole ones are stored.
pub fn parse_timestamp(option: &'static str, text: &str, at: &str) -> Result<Millis, RequestError> {
    let Ok(time) = chrono::DateTime::parse_from_rfc3339(at) else {
        return Err(RequestError::Timestamp {
            option,
            text: text.to_owned(),
        });
    };
    let part = time.timestamp_subsec_nanos() % 1_000_000;
    Ok(Millis(time.timestamp_millis() + i64::from(part > 0)))
}

/// Reads `--partitions`: numbers and ranges (both ends included), separated by commas.
pub fn parse_partitions(text: &str) -> Result<BTreeSet<Partition>, RequestError> {
    let mut partitions = BTreeSet::new();
    for part in text.split(',') {
        let wrong = || RequestError::Partitions {
            text: text.to_owned(),
            part: part.to_owned(),
        };
        let number = |s: &str| parse_number(s).and_then(|n| i32::try_from(n).ok());
        let (low, high) = match part.split_once('-') {
            None => (number(part), number(part)),
            Some((low, high)) => (number(low), number(high)),
        };
        let (Some(low), Some(high)) = (low, high) else {
            return Err(wrong());
        };
        if low > high {
            return Err(wrong());
        }
        if usize::try_from(high - low).unwrap_or(usize::MAX) >= PARTITIONS_MAX {
            return Err(RequestError::TooManyPartitions(text.to_owned()));
        }
        partitions.extend((low..=high).filter_map(|p| Partition::new(p).ok()));
        if partitions.len() > PARTITIONS_MAX {
            return Err(RequestError::TooManyPartitions(text.to_owned()));
        }
    }
    Ok(partitions)
}

/// Digits only: no sign, no space, nothing that `str::parse` would let pass besides.
fn parse_number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

fn parse_offset(option: &'static str, text: &str, offset: &str) -> Result<Offset, RequestError> {
    let parsed = parse_number(offset).and_then(|n| Offset::new(n).ok());
    parsed.ok_or_else(|| RequestError::Offset {
        option,
        text: text.to_owned(),
        offset: offset.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_of_from_is_read() {
        let offset = |generation, o| From::Offset {
            generation,
            offset: Offset::new(o).unwrap(),
        };
        for (text, expected) in [
            ("beginning", From::Beginning),
            ("offset:0", offset(None, 0)),
            ("offset:2:17", offset(Some(Generation(2)), 17)),
            (
                "timestamp:1970-01-01T00:00:01Z",
                From::Timestamp(Millis(1000)),
            ),
            (
                "timestamp:1970-01-01T02:00:00.5+02:00",
                From::Timestamp(Millis(500)),
            ),
            (
                "timestamp:1970-01-01T00:00:00.0000001Z",
                From::Timestamp(Millis(1)),
            ),
            (
                "timestamp:1969-12-31T23:59:59.9995Z",
                From::Timestamp(Millis(0)),
            ),
        ] {
            assert_eq!(text.parse::<From>(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_wrong_option_is_answered_by_one_line_that_shows_the_right_form() {
        let message = |text: &str| text.parse::<From>().unwrap_err().to_string();
        assert_eq!(
            message("start"),
            "--from start: not one of beginning, offset:N, offset:GENERATION:N, timestamp:RFC3339"
        );
        assert_eq!(
            message("offset:-1"),
            "--from offset:-1: \"-1\" is not an offset (a number from 0)"
        );
        assert_eq!(
            message("offset:x:1"),
            "--from offset:x:1: \"x\" is not a generation (a number from 0)"
        );
        assert_eq!(
            message("timestamp:yesterday"),
            "--from timestamp:yesterday: not an RFC 3339 time such as 2026-01-31T08:00:00Z"
        );
        assert_eq!(
            "offset:".parse::<Until>().unwrap_err().to_string(),
            "--until offset:: \"\" is not an offset (a number from 0)"
        );
        assert_eq!(
            parse_partitions("0,5-3").unwrap_err().to_string(),
            "--partitions 0,5-3: \"5-3\" is not a partition or a range such as 0,3-5"
        );
    }

    #[test]
    fn partition_lists_hold_numbers_and_ranges() {
        let read = |text: &str| -> Option<Vec<i32>> {
            let list = parse_partitions(text).ok()?;
            Some(list.into_iter().map(Partition::get).collect())
        };
        assert_eq!(read("0,3-5"), Some(vec![0, 3, 4, 5]));
        assert_eq!(read("7"), Some(vec![7]));
        assert_eq!(read("3-3,3"), Some(vec![3]));
        for bad in [
            "",
            ",",
            "1,",
            "-1",
            "1-",
            "a",
            "1 ",
            "+1",
            "0-2147483647",
            "99999999999",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn any_text_is_an_option_that_is_printed_and_read_back_or_refused() {
        let corpus = [
            "beginning",
            "offset:2:17",
            "timestamp:1970-01-01T02:00:00.5+02:00",
            "snapshot",
            "now",
            "0,3-5",
        ];
        everlog_hostile::feed_text("replay option", &corpus, |text| {
            if let Ok(from) = text.parse::<From>() {
                let _ = from.to_string();
            }
            let _ = text.parse::<Until>();
            let _ = text.parse::<crate::output::OutputTarget>();
            if text.len() < 100 {
                // each range may stand for up to PARTITIONS_MAX partitions: bounded by that, not by the text
                assert!(
                    parse_partitions(text).is_ok_and(|all| all.len() <= PARTITIONS_MAX)
                        || parse_partitions(text).is_err()
                );
            }
        });
    }

    #[test]
    fn until_defaults_to_now_or_to_the_named_snapshot() {
        let resolve = |until, follow, selector| Until::resolve(until, follow, &selector);
        assert_eq!(
            resolve(None, false, SnapshotSelector::Current),
            Ok(Until::Now)
        );
        assert_eq!(
            resolve(None, false, SnapshotSelector::Id(7)),
            Ok(Until::Snapshot)
        );
        assert_eq!(
            resolve(None, true, SnapshotSelector::Current),
            Ok(Until::Never)
        );
        assert!(resolve(Some(Until::Now), true, SnapshotSelector::Current).is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(generation in prop::option::of(any::<u32>()), offset in 0..=i64::MAX, ms in -60_000_000_000_000_i64..200_000_000_000_000) {
            let at = From::Offset { generation: generation.map(Generation), offset: Offset::new(offset).unwrap() };
            prop_assert_eq!(at.to_string().parse::<From>(), Ok(at));
            let at = Until::Timestamp(Millis(ms));
            prop_assert_eq!(at.to_string().parse::<Until>(), Ok(at));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".*") {
            let _ = (text.parse::<From>(), text.parse::<Until>(), parse_partitions(&text));
        }
    }
}
