//! How the archiver is: what `/healthz`, `/readyz` and `/metrics` answer. Written by the run loop, read by anybody.
//!
//! Health means that archived offsets move, not that the process is up (B4): it fails where there is something to read
//! and the ledger stood still for too long, where a partition or a topic is stopped, and where a commit has been held
//! up for too long.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use everlog_common::{
    Clock, Generation, LogBounds, Millis, Offset, Partition, TopicName, TopicPartition,
};
use serde::Serialize;

use crate::error::Failure;
use crate::metrics::{
    ErrorLabels, Metrics, OutcomeLabels, PartitionLabels, ReasonLabels, StoppedLabels, TopicLabels,
};

/// Reads the archiver's state from any task; cheap to clone.
#[derive(Debug, Clone)]
pub struct StatusHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: Arc<dyn Clock>,
    patience: Duration,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_ready: bool,
    /// Why it is not ready, once that is known.
    waits_for: Option<String>,
    /// What the whole process waits for: each of these is released by nothing but its own success.
    waiting: BTreeMap<Waiting, Wait>,
    topics: BTreeMap<TopicName, TopicState>,
}

/// What the whole process may have to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Waiting {
    /// Topics are looked up.
    Brokers,
    /// Records are read.
    Reader,
    /// The group says what this member has.
    Group,
    /// The logs' bounds are looked at: while they are not, nobody knows whether offsets stand still.
    Bounds,
    /// The ends that a catch-up runs to are asked for: until they are known, it does not end.
    Ends,
}

impl Waiting {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Brokers | Self::Reader | Self::Bounds | Self::Ends => "brokers",
            Self::Group => "group",
        }
    }
}

#[derive(Debug, Default)]
struct TopicState {
    hold: Option<Hold>,
    failure: Option<Failure>,
    last_commit: Option<Millis>,
    snapshot_id: Option<i64>,
    partitions: BTreeMap<Partition, PartitionState>,
}

#[derive(Debug, Default)]
struct PartitionState {
    generation: Generation,
    next: Option<Offset>,
    bounds: Option<LogBounds>,
    behind_since: Option<Duration>,
    /// No broker answers for it.
    unanswered: Option<Hold>,
    failure: Option<Failure>,
}

/// What the whole process waits for, and what kind of reason that has.
#[derive(Debug)]
struct Wait {
    hold: Hold,
    reason: &'static str,
}

/// Something that is tried again.
#[derive(Debug, Clone)]
struct Hold {
    since: Duration,
    why: String,
}

/// What `/healthz` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// `ok` or `failing`.
    pub status: &'static str,
    /// Why it fails; empty when it does not.
    pub reasons: Vec<Reason>,
    /// Per topic, what is archived.
    pub topics: BTreeMap<String, TopicHealth>,
}

impl Health {
    /// Whether nothing needs an operator.
    pub fn is_ok(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// One reason to look after the archiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The topic; none: the whole process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The partition; none: the whole topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    /// `stalled`, `held`, `brokers`, `group`, or why something stopped.
    pub reason: &'static str,
    /// In words.
    pub detail: String,
}

/// What is archived of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicHealth {
    /// The newest snapshot that this process made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<i64>,
    /// When, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_commit_ms: Option<i64>,
    /// Per partition: the next offset to archive.
    pub next: BTreeMap<i32, i64>,
}

impl StatusHandle {
    /// Nothing known yet.
    pub(crate) fn new(clock: Arc<dyn Clock>, patience: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                clock,
                patience,
                metrics: Metrics::new(env!("CARGO_PKG_VERSION")),
                state: Mutex::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // every change is one statement: a panic elsewhere leaves nothing half done
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// What `/metrics` answers.
    pub fn render_metrics(&self) -> String {
        self.inner.metrics.encode()
    }

    /// Whether every topic configured by name was found, and every topic that was there is being read or is known not to
    /// be readable. Stays once it is so.
    pub fn is_ready(&self) -> bool {
        self.lock().is_ready
    }

    /// What is waited for, while it is not ready; none: it is.
    pub fn waits_for(&self) -> Option<String> {
        let state = self.lock();
        if state.is_ready {
            return None;
        }
        let why = state.waiting.values().next().map(|wait| &wait.hold.why);
        let why = why.or(state.waits_for.as_ref());
        Some(why.map_or_else(|| "topics are being looked up".to_owned(), Clone::clone))
    }

    /// What `/healthz` answers.
    pub fn health(&self) -> Health {
        let now = self.inner.clock.elapsed();
        let patience = self.inner.patience;
        let state = self.lock();
        let mut reasons = Vec::new();
        for wait in state.waiting.values() {
            if now.saturating_sub(wait.hold.since) > patience {
                reasons.push(Reason {
                    topic: None,
                    partition: None,
                    reason: wait.reason,
                    detail: wait.hold.why.clone(),
                });
            }
        }
        for (name, topic) in &state.topics {
            topic.reasons(name, now, patience, &mut reasons);
        }
        let topics = state
            .topics
            .iter()
            .map(|(name, topic)| (name.as_str().to_owned(), topic.health()))
            .collect();
        Health {
            status: if reasons.is_empty() { "ok" } else { "failing" },
            reasons,
            topics,
        }
    }

    pub(crate) fn set_ready(&self) {
        self.lock().is_ready = true;
    }

    /// Not ready yet, and why.
    pub(crate) fn not_ready(&self, why: String) {
        self.lock().waits_for = Some(why);
    }

    /// The brokers do not answer, or the client has a problem.
    pub(crate) fn trouble(&self, what: Waiting, why: &str) {
        self.wait_for(what, why);
        self.count_error(None, "log");
    }

    /// The same, for a reason that is not the one that it mostly has.
    pub(crate) fn trouble_because(&self, what: Waiting, reason: &'static str, why: &str) {
        self.wait_because(what, reason, why);
        self.count_error(None, "log");
    }

    /// The whole process waits for something, which may be quite in order.
    pub(crate) fn wait_for(&self, what: Waiting, why: &str) {
        self.wait_because(what, what.as_str(), why);
    }

    fn wait_because(&self, what: Waiting, reason: &'static str, why: &str) {
        let since = self.inner.clock.elapsed();
        let mut state = self.lock();
        let wait = state.waiting.entry(what).or_insert(Wait {
            hold: Hold {
                since,
                why: String::new(),
            },
            reason,
        });
        wait.reason = reason;
        why.clone_into(&mut wait.hold.why);
    }

    /// That very thing works again.
    pub(crate) fn no_trouble(&self, what: Waiting) {
        self.lock().waiting.remove(&what);
    }

    /// Work on a topic waits for something outside.
    pub(crate) fn hold(&self, topic: &TopicName, kind: &'static str, why: &str) {
        let since = self.inner.clock.elapsed();
        let mut state = self.lock();
        let hold = state
            .topics
            .entry(topic.clone())
            .or_default()
            .hold
            .get_or_insert(Hold {
                since,
                why: String::new(),
            });
        why.clone_into(&mut hold.why);
        drop(state);
        self.count_error(Some(topic), kind);
    }

    /// It goes on.
    pub(crate) fn release(&self, topic: &TopicName) {
        if let Some(topic) = self.lock().topics.get_mut(topic) {
            topic.hold = None;
        }
    }

    pub(crate) fn count_error(&self, topic: Option<&TopicName>, kind: &'static str) {
        self.metrics()
            .errors
            .get_or_create(&ErrorLabels::new(topic, kind))
            .inc();
    }

    /// A round of maintenance ended, and left files that nothing needs, or did not.
    pub(crate) fn maintained(&self, topic: &TopicName, held_back: bool) {
        // a round may end after its topic was given away
        let is_ours = self
            .lock()
            .topics
            .get(topic)
            .is_some_and(|t| t.failure.is_none());
        if is_ours {
            self.metrics()
                .maintenance_held_back
                .get_or_create(&TopicLabels::from(topic))
                .set(i64::from(held_back));
        }
    }

    pub(crate) fn count_commit(&self, topic: &TopicName, outcome: &'static str) {
        self.metrics()
            .commits
            .get_or_create(&OutcomeLabels::new(topic, outcome))
            .inc();
    }

    /// A snapshot was made.
    pub(crate) fn committed(
        &self,
        topic: &TopicName,
        snapshot_id: i64,
        at: Millis,
        took: Duration,
    ) {
        let labels = TopicLabels::from(topic);
        let metrics = self.metrics();
        metrics
            .commit_seconds
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
        #[allow(clippy::cast_precision_loss, reason = "a time in seconds")]
        metrics
            .last_commit_timestamp_seconds
            .get_or_create(&labels)
            .set(at.0 as f64 / 1000.0);
        let mut state = self.lock();
        let topic = state.topics.entry(topic.clone()).or_default();
        topic.last_commit = Some(at);
        topic.snapshot_id = Some(snapshot_id);
    }

    /// The ledger says so of a partition that this process reads. A step, also to another generation, is progress.
    pub(crate) fn moved(&self, tp: &TopicPartition, generation: Generation, next: Offset) {
        self.metrics()
            .ledger_next_offset
            .get_or_create(&PartitionLabels::from(tp))
            .set(next.get());
        let mut state = self.lock();
        let partition = state.partition(tp);
        if partition.next != Some(next) || partition.generation != generation {
            partition.behind_since = None;
        }
        (partition.generation, partition.next) = (generation, Some(next));
        partition.unanswered = None;
    }

    /// A look at the log: `archived` is where everything below is archived or holds no rows.
    pub(crate) fn looked(&self, tp: &TopicPartition, bounds: LogBounds, archived: Offset) {
        let now = self.inner.clock.elapsed();
        let lag = i64::try_from(bounds.end.since(archived)).unwrap_or(i64::MAX);
        self.metrics()
            .lag_records
            .get_or_create(&PartitionLabels::from(tp))
            .set(lag);
        let mut state = self.lock();
        let partition = state.partition(tp);
        partition.bounds = Some(bounds);
        partition.unanswered = None;
        if lag == 0 {
            partition.behind_since = None;
        } else {
            partition.behind_since.get_or_insert(now);
        }
    }

    /// No broker answers for a partition (no leader), although its topic is there.
    pub(crate) fn unanswered(&self, tp: &TopicPartition) {
        let since = self.inner.clock.elapsed();
        self.lock().partition(tp).unanswered.get_or_insert(Hold {
            since,
            why: "no broker answers for it: it may have no leader".to_owned(),
        });
    }

    /// What was last seen of a log is too old to be shown: absent is what unknown looks like to an alert.
    pub(crate) fn unseen(&self, tp: &TopicPartition) {
        self.metrics().unsee(tp);
    }

    /// A partition or a topic is stopped for good.
    pub(crate) fn stopped(&self, failure: &Failure) {
        let mut state = self.lock();
        if let Some(partition) = failure.partition {
            let tp = TopicPartition::new(failure.topic.clone(), partition);
            self.metrics()
                .partition_stopped
                .get_or_create(&ReasonLabels::new(&tp, failure.kind.as_str()))
                .set(1);
            state.partition(&tp).failure = Some(failure.clone());
        } else {
            self.metrics()
                .topic_stopped
                .get_or_create(&StoppedLabels::new(&failure.topic, failure.kind.as_str()))
                .set(1);
            self.metrics()
                .maintenance_held_back
                .remove(&TopicLabels::from(&failure.topic));
            let topic = state.topics.entry(failure.topic.clone()).or_default();
            topic.failure = Some(failure.clone());
            topic.hold = None;
            // nobody looks at its logs any more
            for partition in topic.partitions.keys() {
                let tp = TopicPartition::new(failure.topic.clone(), *partition);
                self.metrics().unsee(&tp);
            }
        }
    }

    /// This process does not read a partition any more.
    pub(crate) fn forget(&self, tp: &TopicPartition) {
        self.metrics().forget(tp);
        let mut state = self.lock();
        if let Some(topic) = state.topics.get_mut(&tp.topic)
            && let Some(partition) = topic.partitions.remove(&tp.partition)
            && let Some(failure) = partition.failure
        {
            self.metrics()
                .partition_stopped
                .remove(&ReasonLabels::new(tp, failure.kind.as_str()));
        }
    }

    /// A topic is gone, with everything that was known of it.
    pub(crate) fn forget_topic(&self, topic: &TopicName) {
        let partitions: Vec<Partition> = self
            .lock()
            .topics
            .get(topic)
            .map(|t| t.partitions.keys().copied().collect())
            .unwrap_or_default();
        for partition in partitions {
            self.forget(&TopicPartition::new(topic.clone(), partition));
        }
        let failure = self.lock().topics.remove(topic).and_then(|t| t.failure);
        self.metrics()
            .maintenance_held_back
            .remove(&TopicLabels::from(topic));
        if let Some(failure) = failure {
            self.metrics()
                .topic_stopped
                .remove(&StoppedLabels::new(topic, failure.kind.as_str()));
        }
    }
}

impl State {
    fn partition(&mut self, tp: &TopicPartition) -> &mut PartitionState {
        self.topics
            .entry(tp.topic.clone())
            .or_default()
            .partitions
            .entry(tp.partition)
            .or_default()
    }
}

impl TopicState {
    fn reasons(&self, name: &TopicName, now: Duration, patience: Duration, out: &mut Vec<Reason>) {
        let mut add = |partition: Option<Partition>, reason, detail: String| {
            out.push(Reason {
                topic: Some(name.as_str().to_owned()),
                partition: partition.map(Partition::get),
                reason,
                detail,
            });
        };
        if let Some(failure) = &self.failure {
            add(None, failure.kind.as_str(), failure.message.clone());
        }
        if let Some(hold) = &self.hold
            && now.saturating_sub(hold.since) > patience
        {
            let detail = format!(
                "for {} s: {}",
                now.saturating_sub(hold.since).as_secs(),
                hold.why
            );
            add(None, "held", detail);
        }
        for (partition, p) in &self.partitions {
            if let Some(failure) = &p.failure {
                add(
                    Some(*partition),
                    failure.kind.as_str(),
                    failure.message.clone(),
                );
            } else if let Some(hold) = &p.unanswered
                && now.saturating_sub(hold.since) > patience
            {
                let detail = format!(
                    "for {} s: {}",
                    now.saturating_sub(hold.since).as_secs(),
                    hold.why
                );
                add(Some(*partition), "held", detail);
            } else if let Some(since) = p.behind_since
                && now.saturating_sub(since) > patience
            {
                let detail = format!(
                    "stands at {} for {} s, the log ends at {}",
                    p.next
                        .map_or_else(|| "its start".to_owned(), |n| n.to_string()),
                    now.saturating_sub(since).as_secs(),
                    p.bounds
                        .map_or_else(|| "?".to_owned(), |b| b.end.to_string()),
                );
                add(Some(*partition), "stalled", detail);
            }
        }
    }

    fn health(&self) -> TopicHealth {
        TopicHealth {
            snapshot_id: self.snapshot_id,
            last_commit_ms: self.last_commit.map(|m| m.0),
            next: self
                .partitions
                .iter()
                .filter_map(|(p, state)| Some((p.get(), state.next?.get())))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::clock::ManualClock;

    use super::*;
    use crate::error::FailureKind;

    fn o(v: i64) -> Offset {
        Offset::new(v).unwrap()
    }

    fn bounds(end: i64) -> LogBounds {
        LogBounds {
            log_start: o(0),
            end: o(end),
            high_watermark: o(end),
            leader_epoch: None,
        }
    }

    fn setup() -> (Arc<ManualClock>, StatusHandle, TopicPartition) {
        let clock = Arc::new(ManualClock::default());
        let status = StatusHandle::new(
            Arc::clone(&clock) as Arc<dyn Clock>,
            Duration::from_secs(60),
        );
        let topic = TopicName::new("t").unwrap();
        let tp = TopicPartition::new(topic, Partition::new(0).unwrap());
        (clock, status, tp)
    }

    #[test]
    fn b04_health_fails_when_offsets_stand_still_with_something_to_read() {
        let (clock, status, tp) = setup();
        status.moved(&tp, Generation(0), o(5));
        status.looked(&tp, bounds(9), o(5));
        assert!(status.health().is_ok());
        clock.advance(Duration::from_secs(61));
        status.looked(&tp, bounds(12), o(5));
        let health = status.health();
        assert_eq!(
            (health.status, health.reasons[0].reason),
            ("failing", "stalled")
        );
        assert!(
            health.reasons[0]
                .detail
                .contains("stands at 5 for 61 s, the log ends at 12")
        );
        // any step is progress
        status.moved(&tp, Generation(0), o(6));
        assert!(status.health().is_ok());
    }

    #[test]
    fn standing_still_at_the_end_is_healthy() {
        let (clock, status, tp) = setup();
        status.moved(&tp, Generation(0), o(5));
        status.looked(&tp, bounds(5), o(5));
        clock.advance(Duration::from_secs(3600));
        status.looked(&tp, bounds(5), o(5));
        assert!(status.health().is_ok());
    }

    #[test]
    fn p08_a_held_commit_is_unhealthy_after_a_while_and_healthy_once_it_goes_on() {
        let (clock, status, tp) = setup();
        status.hold(&tp.topic, "archive", "outcome unknown");
        clock.advance(Duration::from_secs(30));
        status.hold(&tp.topic, "archive", "still unknown");
        assert!(status.health().is_ok());
        clock.advance(Duration::from_secs(31));
        let health = status.health();
        assert_eq!(health.reasons[0].reason, "held");
        assert!(health.reasons[0].detail.contains("still unknown"));
        status.release(&tp.topic);
        assert!(status.health().is_ok());
    }

    /// The one thing that works says nothing about the others.
    #[test]
    fn b04_what_the_process_waits_for_is_released_by_its_own_success_alone() {
        let (clock, status, _) = setup();
        status.trouble(Waiting::Bounds, "bounds: timed out");
        status.wait_for(Waiting::Group, "nothing is assigned");
        assert_eq!(status.waits_for().as_deref(), Some("nothing is assigned"));
        for _ in 0..7 {
            clock.advance(Duration::from_secs(10));
            status.no_trouble(Waiting::Brokers);
            status.trouble(Waiting::Bounds, "bounds: timed out again");
        }
        let said: Vec<_> = status.health().reasons;
        assert_eq!((said[0].reason, said[1].reason), ("group", "brokers"));
        assert_eq!(said[1].detail, "bounds: timed out again");
        status.no_trouble(Waiting::Bounds);
        status.no_trouble(Waiting::Group);
        assert!(status.health().is_ok());
    }

    #[test]
    fn a_partition_that_nobody_answers_for_is_a_reason_after_a_while() {
        let (clock, status, tp) = setup();
        status.unanswered(&tp);
        clock.advance(Duration::from_secs(61));
        status.unanswered(&tp);
        let health = serde_json::to_value(status.health()).unwrap();
        assert_eq!(health["reasons"][0]["reason"], "held");
        assert_eq!(health["reasons"][0]["partition"], 0);
        status.looked(&tp, bounds(0), o(0));
        assert!(status.health().is_ok());
    }

    #[test]
    fn b04_a_stopped_topic_is_a_metric_and_what_was_last_seen_of_its_logs_is_not() {
        let (_, status, tp) = setup();
        status.moved(&tp, Generation(0), o(5));
        status.looked(&tp, bounds(5), o(5));
        assert!(status.render_metrics().contains("lag_records{"));
        status.stopped(&Failure {
            topic: tp.topic.clone(),
            partition: None,
            kind: FailureKind::AnotherWriter,
            message: "a foreign change".to_owned(),
        });
        let metrics = status.render_metrics();
        assert!(
            metrics.contains(
                "everlog_archiver_topic_stopped{topic=\"t\",reason=\"another_writer\"} 1"
            )
        );
        assert!(!metrics.contains("lag_records{"), "{metrics}");
        status.forget_topic(&tp.topic);
        assert!(!status.render_metrics().contains("topic_stopped{"));
    }

    #[test]
    fn a_stopped_partition_is_a_reason_until_it_belongs_to_somebody_else() {
        let (_, status, tp) = setup();
        status.stopped(&Failure {
            topic: tp.topic.clone(),
            partition: Some(tp.partition),
            kind: FailureKind::Gap,
            message: "gone".to_owned(),
        });
        let health = serde_json::to_value(status.health()).unwrap();
        assert_eq!(health["reasons"][0]["reason"], "retention");
        assert_eq!(health["reasons"][0]["partition"], 0);
        assert!(status.render_metrics().contains("partition_stopped{"));
        status.forget(&tp);
        assert!(status.health().is_ok());
        assert!(!status.render_metrics().contains("partition_stopped{"));
    }
}
