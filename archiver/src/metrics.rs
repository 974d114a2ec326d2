//! Every metric of the archiver: name, unit, help. Declared here and nowhere else (docs/operations.md lists them).

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;

use everlog_common::{TopicName, TopicPartition};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// A gauge of seconds.
pub(crate) type Seconds = Gauge<f64, AtomicU64>;

/// `{topic, partition}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PartitionLabels {
    topic: String,
    partition: i32,
}

impl From<&TopicPartition> for PartitionLabels {
    fn from(tp: &TopicPartition) -> Self {
        Self {
            topic: tp.topic.as_str().to_owned(),
            partition: tp.partition.get(),
        }
    }
}

/// `{topic, partition, reason}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabels {
    topic: String,
    partition: i32,
    reason: String,
}

impl ReasonLabels {
    pub(crate) fn new(tp: &TopicPartition, reason: &str) -> Self {
        Self {
            topic: tp.topic.as_str().to_owned(),
            partition: tp.partition.get(),
            reason: reason.to_owned(),
        }
    }
}

/// `{topic, reason}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StoppedLabels {
    topic: String,
    reason: &'static str,
}

impl StoppedLabels {
    pub(crate) fn new(topic: &TopicName, reason: &'static str) -> Self {
        Self {
            topic: topic.as_str().to_owned(),
            reason,
        }
    }
}

/// `{topic}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TopicLabels {
    topic: String,
}

impl From<&TopicName> for TopicLabels {
    fn from(topic: &TopicName) -> Self {
        Self {
            topic: topic.as_str().to_owned(),
        }
    }
}

/// `{topic, outcome}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabels {
    topic: String,
    outcome: &'static str,
}

impl OutcomeLabels {
    pub(crate) fn new(topic: &TopicName, outcome: &'static str) -> Self {
        Self {
            topic: topic.as_str().to_owned(),
            outcome,
        }
    }
}

/// `{topic, kind}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ErrorLabels {
    topic: String,
    kind: &'static str,
}

impl ErrorLabels {
    /// `topic` is empty for what concerns no single topic.
    pub(crate) fn new(topic: Option<&TopicName>, kind: &'static str) -> Self {
        Self {
            topic: topic.map_or("", TopicName::as_str).to_owned(),
            kind,
        }
    }
}

/// The archiver's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) ledger_next_offset: Family<PartitionLabels, Gauge>,
    pub(crate) lag_records: Family<PartitionLabels, Gauge>,
    pub(crate) lag_seconds: Family<PartitionLabels, Seconds>,
    pub(crate) retention_headroom_seconds: Family<PartitionLabels, Seconds>,
    pub(crate) gap_offsets: Family<ReasonLabels, Counter>,
    pub(crate) partition_stopped: Family<ReasonLabels, Gauge>,
    pub(crate) topic_stopped: Family<StoppedLabels, Gauge>,
    pub(crate) open_transaction_offsets: Family<PartitionLabels, Gauge>,
    pub(crate) open_transaction_seconds: Family<PartitionLabels, Seconds>,
    pub(crate) commits: Family<OutcomeLabels, Counter>,
    pub(crate) commit_seconds: Family<TopicLabels, Histogram, fn() -> Histogram>,
    pub(crate) files_written: Family<TopicLabels, Counter>,
    pub(crate) bytes_written: Family<TopicLabels, Counter>,
    pub(crate) records: Family<TopicLabels, Counter>,
    pub(crate) last_commit_timestamp_seconds: Family<TopicLabels, Seconds>,
    pub(crate) errors: Family<ErrorLabels, Counter>,
    pub(crate) memory_held_bytes: Gauge,
    pub(crate) maintenance_held_back: Family<TopicLabels, Gauge>,
}

fn commit_seconds() -> Histogram {
    // 10 ms to 40 s
    Histogram::new(exponential_buckets(0.01, 2.0, 13))
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(version: &'static str) -> Self {
        let mut registry = Registry::default();
        registry.register(
            "everlog_build",
            "The version that runs",
            Info::new([("version", version)]),
        );
        let mut metrics = Self {
            registry,
            ledger_next_offset: Family::default(),
            lag_records: Family::default(),
            lag_seconds: Family::default(),
            retention_headroom_seconds: Family::default(),
            gap_offsets: Family::default(),
            partition_stopped: Family::default(),
            topic_stopped: Family::default(),
            open_transaction_offsets: Family::default(),
            open_transaction_seconds: Family::default(),
            commits: Family::default(),
            commit_seconds: Family::new_with_constructor(commit_seconds as fn() -> Histogram),
            files_written: Family::default(),
            bytes_written: Family::default(),
            records: Family::default(),
            last_commit_timestamp_seconds: Family::default(),
            errors: Family::default(),
            memory_held_bytes: Gauge::default(),
            maintenance_held_back: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = self.registry.sub_registry_with_prefix("everlog_archiver");
        macro_rules! register {
            ($($field:ident: $help:literal,)*) => {
                $(registry.register(stringify!($field), $help, self.$field.clone());)*
            };
        }
        register! {
            ledger_next_offset: "The next offset to archive, by the table's ledger",
            lag_records: "Offsets between the ledger and the end of the log, as of the last look at the brokers",
            lag_seconds: "How long the oldest thing that is not archived has been in the log; 0 when everything is, absent if unknown",
            retention_headroom_seconds:
                "Time until Kafka deletes something that is not archived; +Inf if nothing is deleted, absent if unknown",
            gap_offsets: "Offsets that Kafka deleted before they were archived, recorded as gaps by this process",
            partition_stopped: "1 while a partition is stopped for this reason and needs an operator",
            topic_stopped: "1 while a whole topic is stopped for this reason and needs an operator",
            open_transaction_offsets:
                "Offsets in the log that nobody may read yet, since a transaction before them is open",
            open_transaction_seconds:
                "How long the last stable offset has stood still before such offsets; 0 when it moves",
            commits: "Commits by outcome: committed, fenced, unknown, failed",
            commit_seconds: "Time from the decision to commit to the snapshot",
            files_written: "Data files that were committed",
            bytes_written: "Bytes of data files that were committed",
            records: "Records that were committed",
            last_commit_timestamp_seconds: "Unix time of the last commit",
            errors: "Errors by kind: log, archive, write, reader, maintenance",
            memory_held_bytes: "Bytes of records held in memory, the client's queues included",
            maintenance_held_back: "1 while maintenance finds a reason to leave files that nothing needs (its warning says which), else 0",
        }
    }

    /// The text that Prometheus reads.
    pub(crate) fn encode(&self) -> String {
        let mut out = String::new();
        if let Err(error) = text::encode(&mut out, &self.registry) {
            // writing to a string does not fail; if it does, say so where it is seen
            out.clear();
            let _ = write!(out, "# {error}\n# EOF\n");
        }
        out
    }

    /// Forgets a partition that this process does not read any more.
    pub(crate) fn forget(&self, tp: &TopicPartition) {
        let labels = PartitionLabels::from(tp);
        self.ledger_next_offset.remove(&labels);
        self.unsee(tp);
    }

    /// Forgets what a look at a partition's log told.
    pub(crate) fn unsee(&self, tp: &TopicPartition) {
        let labels = PartitionLabels::from(tp);
        self.lag_records.remove(&labels);
        self.lag_seconds.remove(&labels);
        self.retention_headroom_seconds.remove(&labels);
        self.open_transaction_offsets.remove(&labels);
        self.open_transaction_seconds.remove(&labels);
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::Partition;

    use super::*;

    #[test]
    fn every_metric_has_its_documented_name() {
        let metrics = Metrics::new("1.2.3");
        let topic = TopicName::new("orders").unwrap();
        let tp = TopicPartition::new(topic.clone(), Partition::new(3).unwrap());
        let partition = PartitionLabels::from(&tp);
        metrics.ledger_next_offset.get_or_create(&partition).set(5);
        metrics.lag_records.get_or_create(&partition).set(1);
        metrics.lag_seconds.get_or_create(&partition).set(0.5);
        metrics
            .retention_headroom_seconds
            .get_or_create(&partition)
            .set(f64::INFINITY);
        let reason = ReasonLabels::new(&tp, "retention");
        metrics.gap_offsets.get_or_create(&reason).inc_by(7);
        metrics.partition_stopped.get_or_create(&reason).set(1);
        let stopped = StoppedLabels::new(&topic, "denied");
        metrics.topic_stopped.get_or_create(&stopped).set(1);
        metrics
            .open_transaction_offsets
            .get_or_create(&partition)
            .set(4);
        metrics
            .open_transaction_seconds
            .get_or_create(&partition)
            .set(1.5);
        let outcome = OutcomeLabels::new(&topic, "committed");
        metrics.commits.get_or_create(&outcome).inc();
        let labels = TopicLabels::from(&topic);
        metrics.commit_seconds.get_or_create(&labels).observe(0.3);
        metrics.files_written.get_or_create(&labels).inc();
        metrics.bytes_written.get_or_create(&labels).inc();
        metrics.records.get_or_create(&labels).inc();
        metrics
            .last_commit_timestamp_seconds
            .get_or_create(&labels)
            .set(1.0);
        metrics
            .errors
            .get_or_create(&ErrorLabels::new(Some(&topic), "archive"))
            .inc();
        metrics.memory_held_bytes.set(9);
        metrics.maintenance_held_back.get_or_create(&labels).set(1);
        let text = metrics.encode();
        for line in [
            "everlog_build_info{version=\"1.2.3\"} 1",
            "everlog_archiver_ledger_next_offset{topic=\"orders\",partition=\"3\"} 5",
            "everlog_archiver_lag_records{topic=\"orders\",partition=\"3\"} 1",
            "everlog_archiver_lag_seconds{topic=\"orders\",partition=\"3\"} 0.5",
            "everlog_archiver_retention_headroom_seconds{topic=\"orders\",partition=\"3\"} inf",
            "everlog_archiver_gap_offsets_total{topic=\"orders\",partition=\"3\",reason=\"retention\"} 7",
            "everlog_archiver_partition_stopped{topic=\"orders\",partition=\"3\",reason=\"retention\"} 1",
            "everlog_archiver_topic_stopped{topic=\"orders\",reason=\"denied\"} 1",
            "everlog_archiver_open_transaction_offsets{topic=\"orders\",partition=\"3\"} 4",
            "everlog_archiver_open_transaction_seconds{topic=\"orders\",partition=\"3\"} 1.5",
            "everlog_archiver_commits_total{topic=\"orders\",outcome=\"committed\"} 1",
            "everlog_archiver_commit_seconds_count{topic=\"orders\"} 1",
            "everlog_archiver_files_written_total{topic=\"orders\"} 1",
            "everlog_archiver_bytes_written_total{topic=\"orders\"} 1",
            "everlog_archiver_records_total{topic=\"orders\"} 1",
            "everlog_archiver_last_commit_timestamp_seconds{topic=\"orders\"} 1.0",
            "everlog_archiver_errors_total{topic=\"orders\",kind=\"archive\"} 1",
            "everlog_archiver_memory_held_bytes 9",
            "everlog_archiver_maintenance_held_back{topic=\"orders\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        metrics.forget(&tp);
        let text = metrics.encode();
        assert!(
            !text.contains("ledger_next_offset{") && !text.contains("open_transaction_offsets{")
        );
    }
}
