//! What `everlog status` says, as a value: pure, and the schema of `--json`.
//!
//! Keys of the JSON form are a contract: they are only added, and `version` counts changes of meaning. Times are RFC 3339,
//! durations seconds; what is not known is null.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::time::Duration;

use everlog_archiver::headroom::Headroom;
use everlog_common::{
    Entry, Gap, Generation, Identity, Ledger, LogBounds, Millis, Offset, Partition,
};
use serde::Serialize;

use crate::text;

/// The whole report.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// Of this form: 1.
    pub(super) version: u32,
    /// When it was made.
    pub(super) time: String,
    /// The cluster.
    pub(super) kafka: Kafka,
    /// Ascending by name.
    pub(super) topics: Vec<Topic>,
}

/// The cluster, as far as it answered.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Kafka {
    /// Its id.
    pub(super) cluster_id: Option<String>,
    /// Why log bounds are not known, of all or of some partitions; null where they are.
    pub(super) problem: Option<String>,
}

/// One topic.
#[derive(Debug, Clone, Serialize)]
#[allow(
    clippy::struct_field_names,
    reason = "the names are the keys of the JSON form"
)]
pub(super) struct Topic {
    /// Its name.
    pub(super) topic: String,
    /// Whether Kafka has it; null where it did not say.
    pub(super) in_kafka: Option<bool>,
    /// Its table; null where nothing was archived yet.
    pub(super) table: Option<Table>,
    /// Why the table cannot be used; null where it can.
    pub(super) problem: Option<String>,
    /// Ascending.
    pub(super) generations: Vec<Era>,
    /// Recorded gaps, in the order of recording.
    pub(super) gaps: Vec<GapLine>,
    /// Readers that hold snapshots.
    pub(super) leases: Vec<LeaseLine>,
    /// Of the newest generation and of the log, ascending.
    pub(super) partitions: Vec<PartitionLine>,
}

/// A table.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Table {
    /// Namespace and name.
    pub(super) name: String,
    /// Where its metadata is.
    pub(super) metadata_location: String,
    /// Head of main.
    pub(super) snapshot_id: Option<i64>,
    /// When it was made.
    pub(super) snapshot_time: Option<String>,
    /// How long ago.
    pub(super) snapshot_age_seconds: Option<f64>,
    /// How many snapshots there are.
    pub(super) snapshots: usize,
    /// Rows by the ledger.
    pub(super) rows: u64,
}

/// An era of the topic.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Era {
    /// Its number.
    pub(super) generation: u32,
    /// Whose offsets it counts.
    pub(super) cluster_id: Option<String>,
    /// The topic's id then.
    pub(super) topic_id: Option<String>,
    /// Rows of it.
    pub(super) rows: u64,
    /// Whether the topic that is there now is this one; null where nobody can say.
    pub(super) is_live: Option<bool>,
}

/// A recorded gap.
#[derive(Debug, Clone, Serialize)]
pub(super) struct GapLine {
    /// Its era.
    pub(super) generation: u32,
    /// Its partition.
    pub(super) partition: i32,
    /// First missing offset.
    pub(super) start: i64,
    /// First offset that is not missing; null where nobody can know.
    pub(super) end: Option<i64>,
    /// `retention` or `recreated`.
    pub(super) reason: String,
    /// When it was noticed.
    pub(super) time: String,
}

impl GapLine {
    /// For the report.
    pub(super) fn of(gap: &Gap) -> Self {
        Self {
            generation: gap.generation.0,
            partition: gap.partition.get(),
            start: gap.start.get(),
            end: gap.end.map(Offset::get),
            reason: gap.reason.to_string(),
            time: text::time(gap.at),
        }
    }
}

/// A lease on a snapshot.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LeaseLine {
    /// The tag.
    pub(super) tag: String,
    /// What it holds.
    pub(super) snapshot_id: i64,
    /// Until when.
    pub(super) deadline: String,
}

/// One partition.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PartitionLine {
    /// Its number.
    pub(super) partition: i32,
    /// The era that `archive` counts in, or that the next commit will begin.
    pub(super) generation: u32,
    /// What is archived; null where nothing is.
    pub(super) archive: Option<Archived>,
    /// What Kafka has; null where it did not say.
    pub(super) log: Option<Bounds>,
    /// Offsets from the ledger to the log's end.
    pub(super) lag_records: Option<u64>,
    /// Age of the oldest record that is not archived, by its timestamp.
    pub(super) lag_seconds: Option<f64>,
    /// How far the archive is ahead of deletion.
    pub(super) headroom: HeadroomLine,
    /// Recorded gaps in this partition, all eras.
    pub(super) gaps: usize,
    /// Kafka has it and did not say what is in it.
    #[serde(skip)]
    is_unanswered: bool,
}

/// A ledger entry.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Archived {
    /// Where archiving began.
    pub(super) first: i64,
    /// The next offset to archive.
    pub(super) next: i64,
    /// Rows.
    pub(super) rows: u64,
    /// The running hash over them, in hexadecimal.
    pub(super) hash: String,
}

/// A log's ends.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Bounds {
    /// First offset.
    pub(super) start: i64,
    /// Where a reader of the configured isolation stops.
    pub(super) end: i64,
    /// The high watermark.
    pub(super) high_watermark: i64,
}

/// A headroom.
#[derive(Debug, Clone, Serialize)]
pub(super) struct HeadroomLine {
    /// `ahead`, `unlimited` (nothing is deleted), `overtaken` or `unknown`.
    pub(super) state: &'static str,
    /// With `ahead`: so long.
    pub(super) seconds: Option<f64>,
    #[serde(skip)]
    value: Headroom,
}

impl HeadroomLine {
    /// For the report.
    pub(super) fn of(value: Headroom) -> Self {
        let (state, seconds) = match value {
            Headroom::Unlimited => ("unlimited", None),
            Headroom::Ahead(d) => ("ahead", Some(text::seconds(d))),
            Headroom::Overtaken => ("overtaken", None),
            Headroom::Unknown => ("unknown", None),
        };
        Self {
            state,
            seconds,
            value,
        }
    }

    /// What is worst comes first.
    fn rank(&self) -> (u8, Duration) {
        match self.value {
            Headroom::Overtaken => (0, Duration::ZERO),
            Headroom::Ahead(d) => (1, d),
            Headroom::Unknown => (2, Duration::ZERO),
            Headroom::Unlimited => (3, Duration::ZERO),
        }
    }
}

/// Which era of a topic is the one that Kafka has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LiveEra {
    /// Kafka was not asked, or did not answer.
    Unknown,
    /// Kafka does not have the topic.
    Gone,
    /// This one; where it is not in the ledger, the next commit begins it.
    Is(Generation),
}

impl LiveEra {
    /// From what Kafka says of itself and of the topic.
    pub(super) fn of(ledger: &Ledger, identity: &Identity) -> Self {
        Self::Is(ledger.generation_for(identity))
    }
}

/// The eras of a ledger.
pub(super) fn eras(ledger: &Ledger, live: LiveEra) -> Vec<Era> {
    ledger
        .generations
        .iter()
        .map(|(number, generation)| Era {
            generation: number.0,
            cluster_id: generation.identity.cluster_id.clone(),
            topic_id: generation.identity.topic_id.map(|id| id.to_string()),
            rows: generation.partitions.values().map(|e| e.rows).sum(),
            is_live: match live {
                LiveEra::Unknown => None,
                LiveEra::Gone => Some(false),
                LiveEra::Is(era) => Some(era == *number),
            },
        })
        .collect()
}

/// What is known of one partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartitionFacts {
    /// Which one.
    pub(super) partition: Partition,
    /// The era that is shown.
    pub(super) generation: Generation,
    /// The ledger's entry in that era.
    pub(super) entry: Option<Entry>,
    /// The log's ends, if that era is the live one.
    pub(super) bounds: Option<LogBounds>,
    /// Kafka has the partition, and no broker answered for it.
    pub(super) is_unanswered: bool,
    /// Age of the oldest record that is not archived.
    pub(super) oldest: Option<Duration>,
    /// How far ahead of deletion.
    pub(super) headroom: Headroom,
    /// Recorded gaps.
    pub(super) gaps: usize,
}

/// Offsets from the ledger, or the log's start where nothing is archived, to the log's end. Those that Kafka deleted before
/// they were archived count: the archiver's metric is the same.
pub(super) fn lag(next: Option<Offset>, bounds: &LogBounds) -> u64 {
    bounds.end.since(next.unwrap_or(bounds.log_start))
}

impl PartitionLine {
    /// For the report.
    pub(super) fn of(facts: &PartitionFacts) -> Self {
        Self {
            partition: facts.partition.get(),
            generation: facts.generation.0,
            archive: facts.entry.map(|e| Archived {
                first: e.first.get(),
                next: e.next.get(),
                rows: e.rows,
                hash: format!("{:016x}", e.hash),
            }),
            log: facts.bounds.map(|b| Bounds {
                start: b.log_start.get(),
                end: b.end.get(),
                high_watermark: b.high_watermark.get(),
            }),
            lag_records: facts.bounds.map(|b| lag(facts.entry.map(|e| e.next), &b)),
            lag_seconds: facts.oldest.map(text::seconds),
            headroom: HeadroomLine::of(facts.headroom),
            gaps: facts.gaps,
            is_unanswered: facts.is_unanswered,
        }
    }

    /// The ledger cannot be read: how far the log is ahead of it is not known.
    pub(super) fn lose_ledger(&mut self) {
        self.lag_records = None;
        self.lag_seconds = None;
        self.headroom = HeadroomLine::of(Headroom::Unknown);
    }

    fn worst_first(&self, other: &Self) -> Ordering {
        self.headroom
            .rank()
            .cmp(&other.headroom.rank())
            .then(other.lag_records.cmp(&self.lag_records))
    }
}

impl Report {
    /// For people: partitions with the least headroom first, then a line per topic.
    pub(super) fn render(&self) -> String {
        let mut lines: Vec<(&str, &PartitionLine)> = self
            .topics
            .iter()
            .flat_map(|t| t.partitions.iter().map(|p| (t.topic.as_str(), p)))
            .collect();
        lines.sort_by(|(a, x), (b, y)| {
            x.worst_first(y)
                .then(a.cmp(b))
                .then(x.partition.cmp(&y.partition))
        });
        let mut rows = vec![
            [
                "TOPIC",
                "PARTITION",
                "GENERATION",
                "ARCHIVED",
                "LOG",
                "LAG",
                "BEHIND",
                "HEADROOM",
                "GAPS",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        rows.extend(lines.iter().map(|(topic, line)| row(topic, line)));
        let mut out = if lines.is_empty() {
            String::from("no topic is archived, and none that is configured exists\n")
        } else {
            text::table(&rows, &[1, 2, 3, 4, 5, 6])
        };
        out.push('\n');
        for topic in &self.topics {
            out.push_str(&topic.line());
        }
        if let Some(problem) = &self.kafka.problem {
            let _ = writeln!(out, "kafka: {problem}");
        }
        out
    }
}

fn row(topic: &str, line: &PartitionLine) -> Vec<String> {
    let offset = |o: i64| text::count(u64::try_from(o).unwrap_or(0));
    let dash = || "-".to_owned();
    // nothing there, or nobody who says what is there
    let of_the_log = || if line.is_unanswered { "?" } else { "-" }.to_owned();
    vec![
        topic.to_owned(),
        line.partition.to_string(),
        line.generation.to_string(),
        line.archive.as_ref().map_or_else(dash, |a| {
            format!("[{}, {})", offset(a.first), offset(a.next))
        }),
        line.log.as_ref().map_or_else(of_the_log, |b| {
            format!("[{}, {})", offset(b.start), offset(b.end))
        }),
        line.lag_records.map_or_else(of_the_log, text::count),
        line.lag_seconds.map_or_else(of_the_log, |s| {
            text::duration(Duration::try_from_secs_f64(s).unwrap_or_default())
        }),
        line.headroom.value.to_string(),
        line.gaps.to_string(),
    ]
}

impl Topic {
    fn line(&self) -> String {
        let mut out = format!("{}: ", self.topic);
        match &self.table {
            None if self.problem.is_some() => out.push_str("the table cannot be used"),
            None if self.in_kafka == Some(false) => out.push_str("not in Kafka, not archived"),
            None => out.push_str("nothing is archived yet"),
            Some(table) => {
                let _ = write!(
                    out,
                    "table {}, {} in {}",
                    table.name,
                    text::things(table.rows, "row"),
                    text::things(table.snapshots as u64, "snapshot"),
                );
                if let (Some(id), Some(age)) = (table.snapshot_id, table.snapshot_age_seconds) {
                    let age = Duration::try_from_secs_f64(age).unwrap_or_default();
                    let _ = write!(out, ", the last one {id}, {} old", text::duration(age));
                }
            }
        }
        if self.table.is_some() && self.in_kafka == Some(false) {
            out.push_str(", no longer in Kafka");
        }
        if self.generations.len() > 1 {
            let _ = write!(out, ", {} generations", self.generations.len());
        }
        if !self.leases.is_empty() {
            let leases = text::things(self.leases.len() as u64, "lease");
            let _ = write!(out, ", {leases}");
        }
        out.push('\n');
        if let Some(problem) = &self.problem {
            let _ = writeln!(out, "  {problem}");
        }
        for gap in &self.gaps {
            let end = gap
                .end
                .map_or_else(|| "unknown".to_owned(), |e| e.to_string());
            let _ = writeln!(
                out,
                "  gap in partition {} of generation {}: [{}, {end}), {}, noticed {}",
                gap.partition, gap.generation, gap.start, gap.reason, gap.time
            );
        }
        out
    }
}

/// The deadline in a lease's name, `everlog-lease-<deadline>-<id>`.
pub(super) fn lease_deadline(tag: &str) -> Option<Millis> {
    let rest = tag.strip_prefix("everlog-lease-")?;
    let (deadline, _) = rest.split_once('-')?;
    deadline.parse().ok().map(Millis)
}

#[cfg(test)]
mod tests {
    use everlog_common::GapReason;

    use super::*;

    fn offset(o: i64) -> Offset {
        Offset::new(o).unwrap()
    }

    fn facts(partition: i32, next: i64, headroom: Headroom) -> PartitionFacts {
        PartitionFacts {
            partition: Partition::new(partition).unwrap(),
            generation: Generation::FIRST,
            entry: Some(Entry {
                first: offset(0),
                next: offset(next),
                leader_epoch: None,
                rows: 10,
                hash: 255,
            }),
            bounds: Some(LogBounds {
                log_start: offset(100),
                end: offset(2_000),
                high_watermark: offset(2_000),
                leader_epoch: None,
            }),
            is_unanswered: false,
            oldest: Some(Duration::from_secs(75)),
            headroom,
            gaps: 0,
        }
    }

    fn report(partitions: Vec<PartitionFacts>) -> Report {
        Report {
            version: 1,
            time: text::time(Millis(0)),
            kafka: Kafka::default(),
            topics: vec![Topic {
                topic: "orders".to_owned(),
                in_kafka: Some(true),
                table: Some(Table {
                    name: "everlog.orders".to_owned(),
                    metadata_location: "file:///x".to_owned(),
                    snapshot_id: Some(7),
                    snapshot_time: None,
                    snapshot_age_seconds: Some(4.0),
                    snapshots: 12,
                    rows: 30,
                }),
                problem: None,
                generations: Vec::new(),
                gaps: vec![GapLine::of(&Gap {
                    generation: Generation::FIRST,
                    partition: Partition::new(1).unwrap(),
                    start: offset(5),
                    end: Some(offset(9)),
                    reason: GapReason::Retention,
                    at: Millis(1_000),
                })],
                leases: Vec::new(),
                partitions: partitions.iter().map(PartitionLine::of).collect(),
            }],
        }
    }

    #[test]
    fn what_is_worst_comes_first() {
        let text = report(vec![
            facts(0, 1_999, Headroom::Unlimited),
            facts(1, 1_000, Headroom::Ahead(Duration::from_hours(76))),
            facts(2, 50, Headroom::Overtaken),
            facts(3, 1_500, Headroom::Ahead(Duration::from_mins(1))),
            facts(4, 1_000, Headroom::Unknown),
        ])
        .render();
        let order: Vec<&str> = text
            .lines()
            .skip(1)
            .take(5)
            .filter_map(|l| l.split_whitespace().nth(1))
            .collect();
        assert_eq!(order, ["2", "3", "1", "4", "0"], "{text}");
        assert!(text.contains("3 d 4 h"), "{text}");
        assert!(
            text.contains(
                "orders: table everlog.orders, 30 rows in 12 snapshots, the last one 7, 4.0 s old"
            ),
            "{text}"
        );
        assert!(
            text.contains("gap in partition 1 of generation 0: [5, 9), retention, noticed 1970-01-01T00:00:01.000Z"),
            "{text}"
        );
    }

    #[test]
    fn a_partition_for_which_nobody_answers_is_a_question_and_the_others_are_told() {
        let lost = PartitionFacts {
            bounds: None,
            is_unanswered: true,
            oldest: None,
            ..facts(1, 1_000, Headroom::Unknown)
        };
        let gone = PartitionFacts {
            bounds: None,
            oldest: None,
            ..facts(2, 500, Headroom::Unknown)
        };
        let report = report(vec![facts(0, 1_500, Headroom::Unlimited), lost, gone]);
        let text = report.render();
        let columns = |partition: &str| -> Vec<String> {
            let mut lines = text.lines().map(|l| l.split("  ").map(str::trim));
            let found = lines.find_map(|l| {
                let cells: Vec<_> = l.filter(|c| !c.is_empty()).map(str::to_owned).collect();
                (cells.get(1).map(String::as_str) == Some(partition)).then_some(cells)
            });
            found.unwrap()
        };
        assert_eq!(columns("1")[3..7], ["[0, 1,000)", "?", "?", "?"], "{text}");
        assert_eq!(columns("2")[3..7], ["[0, 500)", "-", "-", "-"], "{text}");
        assert_eq!(columns("0")[4..6], ["[100, 2,000)", "500"], "{text}");
        let json = serde_json::to_value(&report).unwrap();
        let partition = &json["topics"][0]["partitions"][1];
        assert!(partition["log"].is_null() && partition["lag_records"].is_null());
        assert_eq!(partition["archive"]["next"], 1_000);
    }

    #[test]
    fn lag_counts_from_the_ledger_also_what_kafka_has_deleted() {
        let bounds = LogBounds {
            log_start: offset(100),
            end: offset(150),
            high_watermark: offset(160),
            leader_epoch: None,
        };
        assert_eq!(lag(None, &bounds), 50);
        assert_eq!(lag(Some(offset(20)), &bounds), 130);
        assert_eq!(lag(Some(offset(149)), &bounds), 1);
        assert_eq!(lag(Some(offset(155)), &bounds), 0);
    }

    #[test]
    fn the_json_form_keeps_its_keys() {
        let report = report(vec![facts(
            0,
            1_000,
            Headroom::Ahead(Duration::from_mins(1)),
        )]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["version"], 1);
        let partition = &json["topics"][0]["partitions"][0];
        assert_eq!(
            *partition,
            serde_json::json!({
                "partition": 0,
                "generation": 0,
                "archive": {"first": 0, "next": 1_000, "rows": 10, "hash": "00000000000000ff"},
                "log": {"start": 100, "end": 2_000, "high_watermark": 2_000},
                "lag_records": 1_000,
                "lag_seconds": 75.0,
                "headroom": {"state": "ahead", "seconds": 60.0},
                "gaps": 0,
            })
        );
        assert_eq!(json["topics"][0]["gaps"][0]["reason"], "retention");
        let keys: Vec<&String> = json["topics"][0].as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "gaps",
                "generations",
                "in_kafka",
                "leases",
                "partitions",
                "problem",
                "table",
                "topic"
            ]
        );
    }

    #[test]
    fn a_lease_says_when_it_ends() {
        assert_eq!(lease_deadline("everlog-lease-1234-abc"), Some(Millis(1234)));
        assert_eq!(lease_deadline("v1"), None);
        assert_eq!(lease_deadline("everlog-lease-x-abc"), None);
    }

    #[test]
    fn a_topic_without_a_table_says_why() {
        let mut report = report(Vec::new());
        let line = |report: &Report| report.topics[0].line();
        report.topics[0].in_kafka = Some(false);
        assert!(line(&report).contains("no longer in Kafka"));
        report.topics[0].table = None;
        assert!(line(&report).starts_with("orders: not in Kafka, not archived\n"));
        report.topics[0].in_kafka = Some(true);
        assert!(line(&report).starts_with("orders: nothing is archived yet\n"));
        report.topics[0].problem = Some("snapshot 7 was rolled back".to_owned());
        assert!(
            line(&report)
                .starts_with("orders: the table cannot be used\n  snapshot 7 was rolled back\n")
        );
    }
}
