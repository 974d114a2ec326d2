//! Questions to the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{LogBounds, Millis, Offset, Partition, TopicId, TopicName, TopicPartition};
use tokio::sync::Semaphore;

use super::classify;
use super::ffi::admin::{Description, OffsetSpec, PendingOffsets};
use super::ffi::{Client, ClusterMetadata, Code, Failure};
use super::mirror::Mirror;
use super::probe;
use super::properties::{ClientProperties, MemoryPlan};
use super::reader::KafkaReader;
use crate::{
    Isolation, Log, LogError, LogReader, Membership, OffsetAtTime, ReaderOptions, TopicConfig,
    TopicInfo, fetcher,
};

/// Topics that belong to Kafka itself, where the broker does not mark them.
const INTERNAL: &[&str] = &[
    "__consumer_offsets",
    "__transaction_state",
    "__share_group_state",
    "__cluster_metadata",
];

/// So many requests run at once, each on a thread of its own: hundreds of tables that commit together would take hundreds.
/// Fewer than the program's threads for what may block, so that files are written while brokers do not answer.
const REQUESTS: usize = 48;

/// So many questions about epochs run at once: each has a client of its own, with its threads and connections.
const PROBES: usize = 4;

/// What a broker says instead of an offset where there is no record as asked for. Other negative numbers are the client's.
const NO_SUCH_RECORD: i64 = -1;

/// librdkafka's mock cluster names itself so; it knows no topic ids, and does not answer when asked for them.
const MOCK_CLUSTER: &str = "mockCluster";

/// A Kafka cluster through librdkafka.
///
/// One client asks (metadata, offsets, settings); each reader has its own. Every request takes at most
/// `everlog.request.timeout.ms` (10 s).
#[derive(Debug)]
pub struct KafkaLog {
    inner: Arc<Inner>,
    requests: Arc<Semaphore>,
    probes: Semaphore,
}

#[derive(Debug)]
struct Inner {
    client: Arc<Client>,
    properties: ClientProperties,
    /// Whether the cluster answers when asked for topic ids; asked once.
    topic_ids: OnceLock<bool>,
}

/// Partitions that exist.
#[derive(Debug, Default)]
struct Askable {
    led: Vec<TopicPartition>,
    leaderless: Vec<TopicPartition>,
    /// Why a topic is not among them although it may exist.
    refused: Option<LogError>,
}

/// An offset that was asked for.
#[derive(Debug, Clone, Copy)]
struct Known {
    offset: Offset,
    /// Of its record, where a time was asked for.
    timestamp: i64,
    leader_epoch: Option<i32>,
}

/// What was asked of partitions that exist.
#[derive(Debug, Default)]
struct Offsets {
    known: BTreeMap<TopicPartition, Known>,
    /// With the reason.
    unanswered: Vec<(TopicPartition, LogError)>,
}

impl KafkaLog {
    /// Makes the client; it connects in the background.
    ///
    /// `properties` are librdkafka's, passed through. Those that would lose or double records (`enable.auto.commit`,
    /// `auto.offset.reset` and so on with other values than everlog's) are refused by name; `isolation.level` and
    /// `group.id` give way to the reader's options, with a warning. `everlog.request.timeout.ms` bounds each request.
    pub fn connect(properties: &BTreeMap<String, String>) -> Result<Self, LogError> {
        let properties = ClientProperties::parse(properties)?;
        let client = Client::new(&properties.for_requests()).map_err(|e| configuration(&e))?;
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                properties,
                topic_ids: OnceLock::new(),
            }),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            probes: Semaphore::new(PROBES),
        })
    }

    /// Runs a blocking request where it may block.
    async fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Inner) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let inner = Arc::clone(&self.inner);
        let closed = |e: &dyn std::fmt::Display| LogError::Closed(e.to_string());
        let permit = Arc::clone(&self.requests).acquire_owned().await;
        let permit = permit.map_err(|e| closed(&e))?;
        tokio::task::spawn_blocking(move || {
            // as long as the thread is taken, also where nobody waits for the answer any more
            let _permit = permit;
            request(&inner)
        })
        .await
        .map_err(|e| closed(&e))?
    }
}

/// What a client that could not be made means.
pub(super) fn configuration(failure: &Failure) -> LogError {
    LogError::Invalid {
        what: "Kafka properties".into(),
        detail: failure.text.clone(),
    }
}

impl Inner {
    fn timeout(&self) -> Duration {
        self.properties.request_timeout
    }

    fn error(&self, what: &str, failure: &Failure) -> LogError {
        classify::request(what, failure, self.client.log().last_error())
    }

    /// Every request but those about epochs begins with one of these.
    fn metadata(&self, what: &str, all: bool) -> Result<ClusterMetadata, LogError> {
        self.client.keep_a_broker();
        self.client.metadata(all, self.timeout()).map_err(|e| {
            // for the next one: it may have waited in vain for a broker
            self.client.keep_a_broker();
            self.error(what, &e)
        })
    }

    fn cluster_id(&self) -> Result<Option<String>, LogError> {
        // asked again each time: another cluster may answer at the address by now
        self.metadata("cluster id", false)?;
        Ok(self.client.cluster_id())
    }

    /// An admin request that waits for a broker makes the client connect without a pause, so that a core is busy with it.
    /// A metadata request waits quietly.
    fn reach(&self, what: &str) -> Result<(), LogError> {
        self.metadata(what, false).map(drop)
    }

    fn knows_topic_ids(&self) -> Result<bool, LogError> {
        if let Some(known) = self.topic_ids.get() {
            return Ok(*known);
        }
        let mock = self
            .cluster_id()?
            .is_some_and(|id| id.starts_with(MOCK_CLUSTER));
        Ok(*self.topic_ids.get_or_init(|| !mock))
    }

    fn found(&self, wanted: &BTreeSet<String>) -> Result<Vec<Description>, LogError> {
        if !self.knows_topic_ids()? {
            let all = self.metadata("topics", true)?;
            return Ok(all
                .topics
                .into_iter()
                .filter(|(name, ..)| wanted.contains(name))
                .map(without_id)
                .collect());
        }
        self.reach("describe topics")?;
        let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        self.client
            .describe_topics(&names, self.timeout())
            .map_err(|e| self.error("describe topics", &e))
    }

    fn describe(
        &self,
        wanted: &BTreeSet<String>,
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, LogError>>, LogError> {
        Ok(collect(self.found(wanted)?.iter()))
    }

    fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        let all = self.metadata("topics", true)?;
        let wanted = all
            .topics
            .into_iter()
            .map(|(name, ..)| name)
            .filter(|name| !INTERNAL.contains(&name.as_str()))
            .collect();
        self.describe(&wanted)?
            .into_values()
            // one may have been closed, or deleted, between both requests
            .filter(|info| !matches!(info, Err(LogError::Denied { .. })))
            .collect()
    }

    fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        let what = "log bounds";
        let Askable {
            led: askable,
            refused,
            ..
        } = self.askable(partitions)?;
        if askable.is_empty() {
            return refused.map_or_else(|| Ok(BTreeMap::new()), Err);
        }
        let ask = |spec| {
            self.client
                .list_offsets(names(&askable), spec, self.timeout())
                .map_err(|e| self.error(what, &e))
        };
        // all at once; each partition's log start, stable end and high watermark only grow
        let start = ask(OffsetSpec::Earliest)?;
        let stable = match isolation {
            Isolation::ReadCommitted => Some(ask(OffsetSpec::LatestCommitted)?),
            Isolation::ReadUncommitted => None,
        };
        let high = ask(OffsetSpec::LatestUncommitted)?;
        let start = self.offsets(what, start, &askable)?;
        let stable = stable
            .map(|p| self.offsets(what, p, &askable))
            .transpose()?;
        let high = self.offsets(what, high, &askable)?;
        let mut bounds = BTreeMap::new();
        for (tp, high) in &high.known {
            let end = stable
                .as_ref()
                .map_or(Some(high), |stable| stable.known.get(tp));
            if let (Some(log_start), Some(end)) = (start.known.get(tp), end) {
                bounds.insert(tp.clone(), consistent(*log_start, *end, *high));
            }
        }
        let unanswered = high.unanswered.into_iter().chain(start.unanswered).next();
        match unanswered.map(|(_, why)| why).or(refused) {
            Some(why) if bounds.is_empty() => Err(why),
            _ => Ok(bounds),
        }
    }

    /// Which of these exist, and which of those have somebody to ask: the client would wait for the others' leaders until
    /// the time is up.
    fn askable(&self, partitions: &[TopicPartition]) -> Result<Askable, LogError> {
        let wanted = partitions
            .iter()
            .map(|tp| tp.topic.as_str().to_owned())
            .collect();
        let found = self.found(&wanted)?;
        let has_leader: BTreeMap<(&str, i32), bool> = found
            .iter()
            .flat_map(|d| {
                let topic = d.name.as_str();
                d.partitions.iter().map(move |(p, led)| ((topic, *p), *led))
            })
            .collect();
        let distinct: BTreeSet<&TopicPartition> = partitions.iter().collect();
        let mut askable = Askable {
            refused: collect(found.iter()).into_values().find_map(Result::err),
            ..Askable::default()
        };
        for tp in distinct {
            match has_leader.get(&(tp.topic.as_str(), tp.partition.get())) {
                Some(true) => askable.led.push(tp.clone()),
                Some(false) => askable.leaderless.push(tp.clone()),
                None => {}
            }
        }
        if !askable.leaderless.is_empty() {
            tracing::debug!(partitions = ?askable.leaderless, "partitions without a leader are not asked");
        }
        Ok(askable)
    }

    /// Waits for an answer, and takes it apart: one partition's trouble is none of the others.
    fn offsets(
        &self,
        what: &str,
        pending: PendingOffsets,
        asked: &[TopicPartition],
    ) -> Result<Offsets, LogError> {
        let unanswered = |tp: &TopicPartition| LogError::Unavailable {
            what: what.to_owned(),
            detail: format!("{tp}: its leader does not answer"),
        };
        let mut offsets = Offsets::default();
        let listed = match pending.wait() {
            // by what the client knows, nobody leads any of these
            Err(failure) if failure.code == Code::NO_ENTRY => {
                let all = asked.iter().map(|tp| (tp.clone(), unanswered(tp)));
                offsets.unanswered.extend(all);
                return Ok(offsets);
            }
            listed => listed.map_err(|e| self.error(what, &e))?,
        };
        for one in listed {
            if classify::gone(one.code) {
                continue;
            }
            let Some(tp) = source(&one.topic, one.partition) else {
                continue;
            };
            if one.code != Code::OK {
                let failure = Failure {
                    code: one.code,
                    text: format!("{tp}: {}", super::ffi::code_text(one.code)),
                };
                let error = self.error(what, &failure);
                if !error.is_transient() && !matches!(error, LogError::Denied { .. }) {
                    return Err(error);
                }
                tracing::debug!(%error, "a partition was not answered");
                offsets.unanswered.push((tp, error));
            } else if let Ok(offset) = Offset::new(one.offset) {
                let known = Known {
                    offset,
                    timestamp: one.timestamp,
                    leader_epoch: one.leader_epoch,
                };
                offsets.known.insert(tp, known);
            } else if one.offset != NO_SUCH_RECORD {
                // its broker did not answer, and the client leaves it at that
                let why = unanswered(&tp);
                offsets.unanswered.push((tp, why));
            }
        }
        Ok(offsets)
    }

    fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        at: Millis,
    ) -> Result<BTreeMap<TopicPartition, OffsetAtTime>, LogError> {
        let what = "offsets at a time";
        let askable = self.askable(partitions)?;
        // absent would say that there is no such record
        if let Some(refused) = askable.refused {
            return Err(refused);
        }
        if let Some(tp) = askable.leaderless.first() {
            return Err(LogError::Unavailable {
                what: what.to_owned(),
                detail: format!("{tp} has no leader"),
            });
        }
        if askable.led.is_empty() {
            return Ok(BTreeMap::new());
        }
        let pending = self
            .client
            .list_offsets(
                names(&askable.led),
                OffsetSpec::AtTime(at.0),
                self.timeout(),
            )
            .map_err(|e| self.error(what, &e))?;
        let mut offsets = self.offsets(what, pending, &askable.led)?;
        if let Some((_, why)) = offsets.unanswered.pop() {
            return Err(why);
        }
        Ok(offsets
            .known
            .into_iter()
            .map(|(tp, known)| {
                let at = OffsetAtTime {
                    offset: known.offset,
                    timestamp: Millis(known.timestamp),
                };
                (tp, at)
            })
            .collect())
    }

    fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
        let wanted: Vec<_> = partitions.iter().map(|(tp, _)| tp.clone()).collect();
        let Askable { led, refused, .. } = self.askable(&wanted)?;
        let askable: BTreeSet<_> = led.into_iter().collect();
        let asked: BTreeMap<_, _> = partitions
            .iter()
            .filter(|(tp, _)| askable.contains(tp))
            .cloned()
            .collect();
        if asked.is_empty() {
            return refused.map_or_else(|| Ok(BTreeMap::new()), Err);
        }
        probe::epoch_ends(&self.properties, &asked)
    }

    fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError> {
        self.reach("settings of a topic")?;
        let values = match self.client.topic_config(topic.as_str(), self.timeout()) {
            Ok(values) => values,
            Err(e) if classify::gone(e.code) => {
                return Err(LogError::UnknownTopic(topic.as_str().to_owned()));
            }
            Err(e) => return Err(self.error(&format!("settings of topic {topic}"), &e)),
        };
        Ok(topic_config(&values))
    }

    fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError> {
        let brokers = self.metadata("open a reader", false)?.brokers;
        let mirrors = match &options.membership {
            Membership::Alone => self.properties.group().is_some(),
            Membership::Group { .. } => true,
        };
        let properties = |plan: &MemoryPlan| {
            let (membership, isolation) = (&options.membership, options.isolation);
            self.properties.for_reader(membership, isolation, plan)
        };
        let plan = MemoryPlan::new(options.memory_bytes, brokers);
        let (of_librdkafka, overrides) = properties(&plan);
        for o in overrides {
            tracing::warn!(
                key = o.key,
                why = o.why,
                "the configured Kafka property is not used"
            );
        }
        if options.membership == Membership::Alone && self.properties.fetches_itself {
            let plan = MemoryPlan::of_fetcher(options.memory_bytes, brokers);
            let (ours, _) = properties(&plan);
            let mirror = || mirrors.then(|| Mirror::new(of_librdkafka.clone()));
            let bounds = (plan.own, plan.batch);
            if let Some(reader) = fetcher::open(&ours, &options, bounds, mirror)? {
                return Ok(Box::new(reader));
            }
        }
        let reader = KafkaReader::start(&of_librdkafka, options, plan, mirrors)?;
        Ok(Box::new(reader))
    }
}

fn names(partitions: &[TopicPartition]) -> impl Iterator<Item = (&str, i32)> {
    partitions
        .iter()
        .map(|tp| (tp.topic.as_str(), tp.partition.get()))
}

fn source(topic: &str, partition: i32) -> Option<TopicPartition> {
    Some(TopicPartition::new(
        TopicName::new(topic).ok()?,
        Partition::new(partition).ok()?,
    ))
}

/// Answers of different moments, put right: the log may have been cut or written to in between, and each bound only grows.
fn consistent(log_start: Known, end: Known, high: Known) -> LogBounds {
    let last = end.offset.max(log_start.offset);
    LogBounds {
        log_start: log_start.offset,
        end: last,
        high_watermark: high.offset.max(last),
        // of the answer that the high watermark is from: it says nothing of another leader's
        leader_epoch: high.leader_epoch.filter(|_| high.offset >= last),
    }
}

fn without_id((name, code, partitions): (String, Code, Vec<(i32, bool)>)) -> Description {
    Description {
        internal: false,
        id: uuid::Uuid::nil(),
        error: (code != Code::OK).then(|| Failure {
            code,
            text: super::ffi::code_text(code),
        }),
        name,
        partitions,
    }
}

fn collect<'a>(
    found: impl Iterator<Item = &'a Description>,
) -> BTreeMap<TopicName, Result<TopicInfo, LogError>> {
    let mut infos = BTreeMap::new();
    for topic in found {
        if topic.internal || INTERNAL.contains(&topic.name.as_str()) {
            continue;
        }
        // a name that Kafka's rule forbids cannot be a topic
        let Ok(name) = TopicName::new(&topic.name) else {
            continue;
        };
        if let Some(error) = &topic.error {
            if !classify::gone(error.code) {
                let what = format!("describe topic {name}");
                infos.insert(name, Err(classify::request(&what, error, None)));
            }
            continue;
        }
        let mut partitions: Vec<_> = topic
            .partitions
            .iter()
            .filter_map(|(p, _)| Partition::new(*p).ok())
            .collect();
        partitions.sort_unstable();
        infos.insert(
            name.clone(),
            Ok(TopicInfo {
                name,
                topic_id: (!topic.id.is_nil()).then_some(TopicId(topic.id)),
                partitions,
            }),
        );
    }
    infos
}

fn topic_config(values: &BTreeMap<String, String>) -> TopicConfig {
    let has_policy = |name: &str| {
        let policies = values.get("cleanup.policy")?;
        Some(policies.split(',').any(|policy| policy.trim() == name))
    };
    // the limits stand in the settings of a compacted topic too, where nothing obeys them
    let deletes = has_policy("delete").unwrap_or(true);
    let number = |key: &str| values.get(key).filter(|_| deletes)?.parse::<u64>().ok();
    TopicConfig {
        retention: number("retention.ms").map(Duration::from_millis),
        retention_bytes: number("retention.bytes"),
        compacted: has_policy("compact").unwrap_or(false),
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn cluster_id(&self) -> Result<Option<String>, LogError> {
        self.ask(Inner::cluster_id).await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        self.ask(Inner::topics).await
    }

    async fn describe(
        &self,
        topics: &[TopicName],
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, LogError>>, LogError> {
        let wanted = topics.iter().map(|t| t.as_str().to_owned()).collect();
        self.ask(move |inner| inner.describe(&wanted)).await
    }

    async fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        let partitions = partitions.to_vec();
        self.ask(move |inner| inner.bounds(&partitions, isolation))
            .await
    }

    async fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        at: Millis,
    ) -> Result<BTreeMap<TopicPartition, OffsetAtTime>, LogError> {
        let partitions = partitions.to_vec();
        self.ask(move |inner| inner.offsets_at(&partitions, at))
            .await
    }

    async fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
        let partitions = partitions.to_vec();
        let _permit = self
            .probes
            .acquire()
            .await
            .map_err(|e| LogError::Closed(e.to_string()))?;
        self.ask(move |inner| inner.epoch_ends(&partitions)).await
    }

    async fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError> {
        let topic = topic.clone();
        self.ask(move |inner| inner.topic_config(&topic)).await
    }

    async fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError> {
        self.ask(move |inner| inner.open(options)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_different_moments_never_contradict_each_other() {
        let o = |n| Offset::new(n).unwrap();
        let at = |n| Known {
            offset: o(n),
            timestamp: -1,
            leader_epoch: Some(7),
        };
        // retention passed the stable end that was read a moment before
        let b = consistent(at(50), at(40), at(45));
        assert_eq!(
            (b.log_start, b.end, b.high_watermark, b.leader_epoch),
            (o(50), o(50), o(50), None)
        );
        assert_eq!(consistent(at(0), at(40), at(45)).leader_epoch, Some(7));
    }

    #[test]
    fn settings_say_unlimited_as_none() {
        let values = |pairs: &[(&str, &str)]| {
            topic_config(
                &pairs
                    .iter()
                    .map(|(k, v)| ((*k).into(), (*v).into()))
                    .collect(),
            )
        };
        let config = values(&[
            ("retention.ms", "-1"),
            ("retention.bytes", "1000"),
            ("cleanup.policy", "compact,delete"),
        ]);
        assert_eq!(config.retention, None);
        assert_eq!(config.retention_bytes, Some(1000));
        assert!(config.compacted);
        assert!(!values(&[("cleanup.policy", "delete")]).compacted);
        // a broker that does not tell the policy has the default one
        let untold = values(&[("retention.ms", "5000")]);
        assert_eq!(untold.retention, Some(Duration::from_secs(5)));
        assert!(!untold.compacted);
    }

    #[test]
    fn limits_that_a_compacted_topic_does_not_obey_are_none() {
        let values = |policy: &str| {
            topic_config(
                &[
                    ("cleanup.policy", policy),
                    ("retention.ms", "604800000"),
                    ("retention.bytes", "1000"),
                ]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            )
        };
        let compacted = values("compact");
        assert_eq!(
            (compacted.retention, compacted.retention_bytes),
            (None, None)
        );
        assert!(compacted.compacted);
        let both = values("compact, delete");
        assert_eq!(both.retention, Some(Duration::from_hours(168)));
        assert_eq!(both.retention_bytes, Some(1000));
    }
}
