//! How far ahead of deletion the archive is. Facts in, an answer out; shared by the metric and `everlog status`.
//!
//! Two ways to see it, and the shorter one counts: by age (a record is deleted `retention.ms` after it was written, so
//! what is left is retention minus the age of the oldest record that is not archived) and by distance (offsets between
//! the log's start and the ledger, at the speed at which the start moves). Where `retention.bytes` limits the log, age
//! alone says nothing. A compacted topic without a delete policy loses nothing by age.

use std::fmt;
use std::time::Duration;

use everlog_common::Offset;
use everlog_kafka::TopicConfig;

/// What is known.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadroomFacts {
    /// The topic's settings, where they could be read.
    pub config: Option<TopicConfig>,
    /// The log's first offset.
    pub log_start: Offset,
    /// The next offset to archive.
    pub next: Offset,
    /// How old the oldest record is that is not archived; zero when everything is. None: not known.
    pub oldest_unarchived: Option<Duration>,
    /// How fast the log's start moved lately, in offsets per second; none: not observed for long enough.
    pub start_speed: Option<f64>,
}

/// How long until Kafka deletes something that is not archived.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Headroom {
    /// Nothing is deleted by policy.
    Unlimited,
    /// About so long.
    Ahead(Duration),
    /// It has happened.
    Overtaken,
    /// Nobody can say.
    Unknown,
}

impl Headroom {
    /// For a gauge: seconds; infinite where nothing is deleted, none where unknown.
    pub fn seconds(self) -> Option<f64> {
        match self {
            Self::Unlimited => Some(f64::INFINITY),
            Self::Ahead(d) => Some(d.as_secs_f64()),
            Self::Overtaken => Some(0.0),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for Headroom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("nothing is deleted"),
            Self::Overtaken => f.write_str("overtaken"),
            Self::Unknown => f.write_str("unknown"),
            Self::Ahead(d) => {
                let s = d.as_secs();
                let (days, hours, minutes) = (s / 86_400, s / 3600 % 24, s / 60 % 60);
                match (days, hours, minutes) {
                    (0, 0, 0) => write!(f, "{s} s"),
                    (0, 0, m) => write!(f, "{m} min"),
                    (0, h, m) => write!(f, "{h} h {m} min"),
                    (d, h, _) => write!(f, "{d} d {h} h"),
                }
            }
        }
    }
}

/// How far ahead of deletion the archive of a partition is.
pub fn headroom(facts: &HeadroomFacts) -> Headroom {
    if facts.next < facts.log_start {
        return Headroom::Overtaken;
    }
    let by_distance = facts.start_speed.and_then(|speed| {
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let distance = facts.next.since(facts.log_start) as f64;
        (speed > 0.0)
            .then(|| Duration::try_from_secs_f64(distance / speed).ok())
            .flatten()
    });
    let Some(config) = &facts.config else {
        return by_distance.map_or(Headroom::Unknown, Headroom::Ahead);
    };
    let by_age = match (config.retention, facts.oldest_unarchived) {
        (Some(retention), Some(age)) => Some(retention.saturating_sub(age)),
        _ => None,
    };
    // with a byte limit the age is only half of the truth
    let is_bound_known = config.retention_bytes.is_none() || by_distance.is_some();
    match (by_age, by_distance) {
        (Some(a), Some(d)) => Headroom::Ahead(a.min(d)),
        (Some(a), None) if is_bound_known => Headroom::Ahead(a),
        (None, Some(d)) => Headroom::Ahead(d),
        (None, None) if config.retention.is_none() && config.retention_bytes.is_none() => {
            Headroom::Unlimited
        }
        _ => Headroom::Unknown,
    }
}

/// The speed of a log's start, from two looks at it.
pub fn start_speed(earlier: (Duration, Offset), later: (Duration, Offset)) -> Option<f64> {
    let seconds = later.0.checked_sub(earlier.0)?.as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    let moved = later.1.since(earlier.1) as f64;
    (seconds >= 1.0).then(|| moved / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn facts() -> HeadroomFacts {
        HeadroomFacts {
            config: Some(TopicConfig {
                retention: Some(HOUR * 168),
                retention_bytes: None,
                compacted: false,
            }),
            log_start: Offset::new(100).unwrap(),
            next: Offset::new(1000).unwrap(),
            oldest_unarchived: Some(HOUR * 2),
            start_speed: None,
        }
    }

    #[test]
    fn by_age_it_is_retention_minus_the_age_of_what_is_not_archived() {
        assert_eq!(headroom(&facts()), Headroom::Ahead(HOUR * 166));
        assert_eq!(headroom(&facts()).to_string(), "6 d 22 h");
    }

    #[test]
    fn the_shorter_of_age_and_distance_counts() {
        let f = HeadroomFacts {
            start_speed: Some(0.25),
            ..facts()
        };
        assert_eq!(headroom(&f), Headroom::Ahead(HOUR));
    }

    #[test]
    fn a_byte_limit_makes_age_alone_say_nothing() {
        let mut f = facts();
        f.config.as_mut().unwrap().retention_bytes = Some(1 << 30);
        assert_eq!(headroom(&f), Headroom::Unknown);
        f.start_speed = Some(900.0);
        assert_eq!(headroom(&f), Headroom::Ahead(Duration::from_secs(1)));
    }

    #[test]
    fn overtaken_unlimited_and_unknown_are_said() {
        let mut f = facts();
        f.next = Offset::new(99).unwrap();
        assert_eq!(headroom(&f), Headroom::Overtaken);
        let f = HeadroomFacts {
            config: Some(TopicConfig::default()),
            ..facts()
        };
        assert_eq!(headroom(&f), Headroom::Unlimited);
        let f = HeadroomFacts {
            config: None,
            ..facts()
        };
        assert_eq!(headroom(&f), Headroom::Unknown);
        assert_eq!(Headroom::Unknown.seconds(), None);
    }

    #[test]
    fn the_speed_needs_a_second_at_least() {
        let at = |s: u64, o: i64| (Duration::from_secs(s), Offset::new(o).unwrap());
        assert_eq!(start_speed(at(0, 10), at(10, 30)), Some(2.0));
        assert_eq!(start_speed(at(0, 10), at(0, 30)), None);
        assert_eq!(start_speed(at(5, 10), at(1, 30)), None);
    }
}
