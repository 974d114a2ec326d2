//! Whether a version may take over, decided from facts: no I/O here.

use std::time::Duration;

use everlog_common::Positions;

use super::Compared;

/// How far a version is behind another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Behind {
    /// Records that the other has read and it has not; none where they cannot be counted: it is in an older generation of
    /// the topic, or has not begun a partition.
    pub records: Option<u64>,
    /// Event time that the other has passed and it has not, where both are known.
    pub event_time: Option<Duration>,
}

/// How far an epoch goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reached {
    /// Rows that the version has put out with it, and before.
    pub rows: u64,
    /// Where the version is in the source after it.
    pub positions: Positions,
}

/// Where a version is, as far as its output shows it: of its newest epochs, newest first, the first all of whose rows are in
/// the output, else where the output's own marker says.
///
/// The newest epoch alone would be one too far while it is being committed. And the marker alone is too old: epochs without
/// rows leave none.
pub fn committed<'a>(epochs: impl IntoIterator<Item = &'a Reached>, marker: &Reached) -> Positions {
    let mut epochs = epochs.into_iter();
    let shown = epochs.find(|epoch| epoch.rows <= marker.rows);
    shown.unwrap_or(marker).positions.clone()
}

/// How far `version` is behind `active`, by where both are in the source.
pub fn behind(version: &Positions, active: &Positions) -> Behind {
    let records = active.iter().try_fold(0_u64, |sum, (partition, ahead)| {
        match version.get(partition) {
            Some(at) if at.generation > ahead.generation => Some(sum),
            Some(at) if at.generation == ahead.generation => {
                Some(sum.saturating_add(ahead.offset.since(at.offset)))
            }
            // a partition without a record is no arrears
            None if ahead.generation.0 == 0 && ahead.offset.get() == 0 => Some(sum),
            _ => None,
        }
    });
    Behind {
        records,
        event_time: None,
    }
}

/// What is known when a version shall take over.
#[derive(Debug, Clone, PartialEq)]
pub struct PromoteFacts {
    /// The version.
    pub version: String,
    /// The active version.
    pub active: String,
    /// Whether the version's output has anything.
    pub has_output: bool,
    /// How far it is behind the active version.
    pub behind: Behind,
    /// Whether both outputs are such as [`crate::compare`] reads.
    pub can_be_compared: bool,
    /// The newest comparison of the two, whichever was named first.
    pub comparison: Option<Compared>,
    /// Event time that both outputs cover, so that it could be compared; none where it is not known.
    pub comparable: Option<Duration>,
}

/// What is asked of a version before it takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromoteRules {
    /// It may be behind by so many records. Both versions run, and neither commits at every moment.
    pub records_max: u64,
    /// Or, where it is known, by so much event time.
    pub event_time_max: Duration,
    /// A comparison covers so much event time; or half of all that can be compared, where that is less: it grows on while
    /// people look at the report.
    pub compared_min: Duration,
    /// Take over whatever was compared, or was not. A version that has not caught up is not promoted all the same.
    pub force: bool,
}

impl Default for PromoteRules {
    fn default() -> Self {
        Self {
            records_max: 10_000,
            event_time_max: Duration::from_mins(1),
            compared_min: Duration::from_hours(24),
            force: false,
        }
    }
}

/// Whether a version may take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It may; with what of the comparison was overlooked because of `force`.
    Ready {
        /// What was missing.
        overlooked: Vec<String>,
    },
    /// It may not.
    NotReady {
        /// Why, and what to do, one sentence each.
        reasons: Vec<String>,
    },
}

/// Decides it.
pub fn decide(facts: &PromoteFacts, rules: &PromoteRules) -> Readiness {
    let PromoteFacts {
        version, active, ..
    } = facts;
    if !facts.has_output {
        return Readiness::NotReady {
            reasons: vec![format!(
                "version {version} has put out nothing yet; run it with `everlog process` first"
            )],
        };
    }
    if version == active {
        return Readiness::Ready {
            overlooked: Vec::new(),
        };
    }
    let mut reasons = Vec::new();
    let in_records = facts
        .behind
        .records
        .is_some_and(|records| records <= rules.records_max);
    let in_time = facts
        .behind
        .event_time
        .is_some_and(|time| time <= rules.event_time_max);
    if !in_records && !in_time {
        let by = match (facts.behind.records, facts.behind.event_time) {
            (Some(records), _) => format!("by {records} records"),
            (None, Some(time)) => format!("by {} s of event time", time.as_secs()),
            (None, None) => "by more than can be counted".to_owned(),
        };
        reasons.push(format!(
            "version {version} is behind {active} {by}; let it catch up (`everlog job show` tells how far it is)"
        ));
    }
    let missing = missing_comparison(facts, rules);
    if rules.force && reasons.is_empty() {
        return Readiness::Ready {
            overlooked: missing.into_iter().collect(),
        };
    }
    if !rules.force {
        reasons.extend(missing);
    }
    if reasons.is_empty() {
        Readiness::Ready {
            overlooked: Vec::new(),
        }
    } else {
        Readiness::NotReady { reasons }
    }
}

/// What is missing of a comparison that one could trust.
fn missing_comparison(facts: &PromoteFacts, rules: &PromoteRules) -> Option<String> {
    let PromoteFacts {
        version, active, ..
    } = facts;
    if !facts.can_be_compared {
        return Some(format!(
            "everlog compares Iceberg outputs alone, and {active} and {version} write to something else; look at both, then promote with --force"
        ));
    }
    let Some(compared) = &facts.comparison else {
        return Some(format!(
            "versions {active} and {version} were never compared; run `everlog compare JOB {active} {version}`, or promote with --force"
        ));
    };
    if !compared.agree {
        return Some(format!(
            "the comparison of {active} and {version} found differences; look at its report, and promote with --force if they are what you want"
        ));
    }
    let span = compared.to_ms.saturating_sub(compared.from_ms);
    let span = Duration::from_millis(u64::try_from(span).unwrap_or(0));
    let wanted = facts.comparable.map_or(rules.compared_min, |there| {
        (there / 2).min(rules.compared_min)
    });
    (span < wanted).then(|| {
        format!(
            "the comparison of {active} and {version} covers {} s of event time where {} s are asked for; compare them again",
            span.as_secs(),
            wanted.as_secs()
        )
    })
}
