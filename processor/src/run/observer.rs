//! A running job in numbers: for the progress bar, for Prometheus, and for `everlog job show`. Nothing is decided by them.

use std::borrow::Cow;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use everlog_common::Source;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::registry::HeldBy;
use crate::state::Counts;

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Numbers {
    /// Which tier it reads; none before it reads.
    pub tier: Option<Source>,
    /// Records read since the process began.
    pub events: u64,
    /// Records a second, over the last minute.
    pub events_per_second: f64,
    /// The event time that it has reached, in milliseconds since 1970; none before it has one.
    pub watermark_ms: Option<i64>,
    /// The partition that holds time back.
    pub held_by: Option<HeldBy>,
    /// Partitions that are held back, since they are too far ahead of the slowest one.
    pub held: usize,
    /// Records from where it is to the end; none where that is not known.
    pub left: Option<u64>,
    /// The same to the end of the live log, whatever the bound.
    pub lag: Option<u64>,
    /// Until it is at the end, at the present rate.
    pub eta: Option<Duration>,
    /// Bytes of its state on disk, and of changes in memory.
    pub state_bytes: u64,
    /// The newest epoch that is committed.
    pub epoch: u64,
    /// When it was, in milliseconds since 1970.
    pub epoch_ms: i64,
    /// How long its commit took.
    pub commit: Duration,
    /// Epochs committed by this process.
    pub commits: u64,
    /// Rows, late records and dead letters since the version began.
    pub counts: Counts,
    /// Entries of the decision log.
    pub decisions: u64,
    /// Gaps that were passed by this process.
    pub gaps: Vec<String>,
}

/// Where a job tells its numbers. Shared between the job and whoever shows them.
#[derive(Debug)]
pub struct Observer {
    numbers: Mutex<Numbers>,
    metrics: Metrics,
}

/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;

/// No labels of its own: for a gauge that is absent while its value is not known.
type Known = Vec<(String, String)>;

fn known(gauge: &Family<Known, Gauge>, value: Option<i64>) {
    match value {
        Some(value) => {
            gauge.get_or_create(&Known::new()).set(value);
        }
        None => gauge.clear(),
    }
}

/// The processor's metrics: declared here and nowhere else (docs/operations.md lists them).
#[derive(Debug)]
struct Metrics {
    registry: Registry,
    records: Counter,
    rows: Gauge,
    late: Gauge,
    dead: Gauge,
    lag_records: Family<Known, Gauge>,
    watermark_timestamp_seconds: Family<Known, Seconds>,
    slowest_partition: Family<Known, Gauge>,
    partitions_held: Gauge,
    state_bytes: Gauge,
    epoch: Gauge,
    epochs: Counter,
    commit_seconds: Seconds,
    last_commit_timestamp_seconds: Seconds,
    decisions: Gauge,
    gaps: Counter,
}

impl Metrics {
    fn new(job: &str, version: &str) -> Self {
        // not "job": that is the name that Prometheus gives to what it scrapes
        let labels = [("name", job), ("version", version)];
        let labels = labels.map(|(k, v)| (Cow::Borrowed(k), Cow::Owned(v.to_owned())));
        let registry = Registry::with_labels(labels.into_iter());
        let mut metrics = Self {
            registry,
            records: Counter::default(),
            rows: Gauge::default(),
            late: Gauge::default(),
            dead: Gauge::default(),
            lag_records: Family::default(),
            watermark_timestamp_seconds: Family::default(),
            slowest_partition: Family::default(),
            partitions_held: Gauge::default(),
            state_bytes: Gauge::default(),
            epoch: Gauge::default(),
            epochs: Counter::default(),
            commit_seconds: Gauge::default(),
            last_commit_timestamp_seconds: Gauge::default(),
            decisions: Gauge::default(),
            gaps: Counter::default(),
        };
        let registry = metrics
            .registry
            .sub_registry_with_prefix("everlog_processor");
        macro_rules! register {
            ($($field:ident: $help:literal,)*) => {
                $(registry.register(stringify!($field), $help, metrics.$field.clone());)*
            };
        }
        register! {
            records: "Records read by this process",
            rows: "Rows of the version since it began",
            late: "Records that came too late, since the version began",
            dead: "Records that could not be used, since the version began",
            lag_records: "Records from the job's position to the end of the live log; absent where that is not known",
            watermark_timestamp_seconds: "The event time that the job has reached, as Unix time; absent before it has one",
            slowest_partition: "The partition that holds time back; absent if none does",
            partitions_held: "Partitions that are held back, since they are too far ahead of the slowest one",
            state_bytes: "Bytes of the job's state, on disk and in changes that are not there yet",
            epoch: "The newest epoch that is committed",
            epochs: "Epochs that this process committed",
            commit_seconds: "How long the last epoch's commit took",
            last_commit_timestamp_seconds: "Unix time of the last epoch's commit",
            decisions: "Entries of the job's decision log",
            gaps: "Recorded gaps that this process passed",
        }
        metrics
    }
}

impl Observer {
    /// Nothing yet.
    pub fn new(job: &str, version: &str) -> Self {
        Self {
            numbers: Mutex::default(),
            metrics: Metrics::new(job, version),
        }
    }

    /// How far the job is.
    pub fn numbers(&self) -> Numbers {
        self.numbers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What Prometheus reads.
    pub fn render_metrics(&self) -> String {
        let mut out = String::new();
        // Writing to a text does not fail.
        let _written = text::encode(&mut out, &self.metrics.registry);
        out
    }

    /// Tells new numbers.
    pub(super) fn tell(&self, now: Numbers) {
        let mut shown = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = &self.metrics;
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        metrics
            .records
            .inc_by(now.events.saturating_sub(shown.events));
        metrics
            .epochs
            .inc_by(now.commits.saturating_sub(shown.commits));
        metrics
            .gaps
            .inc_by(now.gaps.len().saturating_sub(shown.gaps.len()) as u64);
        metrics.rows.set(whole(now.counts.rows));
        metrics.late.set(whole(now.counts.late));
        metrics.dead.set(whole(now.counts.dead));
        known(&metrics.lag_records, now.lag.map(whole));
        let slowest = now.held_by.map(|by| i64::from(by.partition));
        known(&metrics.slowest_partition, slowest);
        match now.watermark_ms {
            Some(ms) => {
                let seconds = metrics
                    .watermark_timestamp_seconds
                    .get_or_create(&Known::new());
                seconds.set(ms as f64 / 1_000.0);
            }
            None => metrics.watermark_timestamp_seconds.clear(),
        }
        metrics.partitions_held.set(whole(now.held as u64));
        metrics.state_bytes.set(whole(now.state_bytes));
        metrics.epoch.set(whole(now.epoch));
        metrics.commit_seconds.set(now.commit.as_secs_f64());
        metrics
            .last_commit_timestamp_seconds
            .set(now.epoch_ms as f64 / 1_000.0);
        metrics.decisions.set(whole(now.decisions));
        *shown = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_follow_the_numbers_and_name_the_job() {
        let observer = Observer::new("sessions", "v2");
        for events in [10, 25] {
            observer.tell(Numbers {
                events,
                lag: Some(7),
                held_by: Some(HeldBy {
                    generation: 0,
                    partition: 3,
                    watermark_ms: None,
                }),
                watermark_ms: Some(1_500),
                ..Numbers::default()
            });
        }
        assert_eq!(observer.numbers().events, 25);
        let text = observer.render_metrics();
        for line in [
            "everlog_processor_records_total{name=\"sessions\",version=\"v2\"} 25",
            "everlog_processor_lag_records{name=\"sessions\",version=\"v2\"} 7",
            "everlog_processor_slowest_partition{name=\"sessions\",version=\"v2\"} 3",
            "everlog_processor_watermark_timestamp_seconds{name=\"sessions\",version=\"v2\"} 1.5",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        observer.tell(Numbers::default());
        assert!(!observer.render_metrics().contains("lag_records{"));
    }
}
