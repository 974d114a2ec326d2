//! Questions to the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{LogBounds, Millis, Offset, Partition, TopicId, TopicName, TopicPartition};

use super::classify;
use super::ffi::admin::{Description, ListedOffset, OffsetSpec};
use super::ffi::{Client, ClusterMetadata, Code, Failure};
use super::probe;
use super::properties::{ClientProperties, MemoryPlan};
use super::reader::KafkaReader;
use crate::{
    Isolation, Log, LogError, LogReader, Membership, OffsetAtTime, ReaderOptions, TopicConfig,
    TopicInfo,
};

/// Topics that belong to Kafka itself, where the broker does not mark them.
const INTERNAL: &[&str] = &[
    "__consumer_offsets",
    "__transaction_state",
    "__share_group_state",
    "__cluster_metadata",
];

/// librdkafka's mock cluster names itself so; it knows no topic ids, and does not answer when asked for them.
const MOCK_CLUSTER: &str = "mockCluster";

/// A Kafka cluster through librdkafka.
///
/// One client asks (metadata, offsets, settings); each reader has its own. Every request takes at most
/// `everlog.request.timeout.ms` (10 s).
#[derive(Debug)]
pub struct KafkaLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Arc<Client>,
    properties: ClientProperties,
    /// Whether the cluster answers when asked for topic ids; asked once.
    topic_ids: OnceLock<bool>,
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
        })
    }

    /// Runs a blocking request where it may block.
    async fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Inner) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || request(&inner))
            .await
            .map_err(|e| LogError::Closed(e.to_string()))?
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

    fn metadata(&self, what: &str, all: bool) -> Result<ClusterMetadata, LogError> {
        self.client
            .metadata(all, self.timeout())
            .map_err(|e| self.error(what, &e))
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

    fn describe(
        &self,
        wanted: &BTreeSet<String>,
    ) -> Result<BTreeMap<TopicName, TopicInfo>, LogError> {
        if !self.knows_topic_ids()? {
            let all = self.metadata("topics", true)?;
            return collect(
                all.topics
                    .into_iter()
                    .filter(|(name, ..)| wanted.contains(name))
                    .map(without_id),
            );
        }
        self.reach("describe topics")?;
        let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let found = self
            .client
            .describe_topics(&names, self.timeout())
            .map_err(|e| self.error("describe topics", &e))?;
        collect(found.into_iter())
    }

    fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        let all = self.metadata("topics", true)?;
        let wanted = all
            .topics
            .into_iter()
            .map(|(name, ..)| name)
            .filter(|name| !INTERNAL.contains(&name.as_str()))
            .collect();
        Ok(self.describe(&wanted)?.into_values().collect())
    }

    fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        let existing = self.existing(partitions)?;
        if existing.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ask = |spec| {
            self.client
                .list_offsets(names(&existing), spec, self.timeout())
                .map_err(|e| self.error("log bounds", &e))
        };
        // all at once; each partition's log start, stable end and high watermark only grow
        let start = ask(OffsetSpec::Earliest)?;
        let stable = match isolation {
            Isolation::ReadCommitted => Some(ask(OffsetSpec::LatestCommitted)?),
            Isolation::ReadUncommitted => None,
        };
        let high = ask(OffsetSpec::LatestUncommitted)?;
        let wait = |pending: super::ffi::admin::PendingOffsets| {
            pending.wait().map_err(|e| self.error("log bounds", &e))
        };
        let start = self.offsets("log bounds", wait(start)?)?;
        let stable = stable
            .map(|p| self.offsets("log bounds", wait(p)?))
            .transpose()?;
        let high = self.offsets("log bounds", wait(high)?)?;
        let mut bounds = BTreeMap::new();
        for (tp, (high, _)) in &high {
            let end = stable
                .as_ref()
                .map_or(Some(high), |s| s.get(tp).map(|(o, _)| o));
            if let (Some((log_start, _)), Some(end)) = (start.get(tp), end) {
                bounds.insert(tp.clone(), consistent(*log_start, *end, *high));
            }
        }
        Ok(bounds)
    }

    /// Those that exist: the client would wait for the others' leaders until the time is up.
    fn existing(&self, partitions: &[TopicPartition]) -> Result<Vec<TopicPartition>, LogError> {
        let wanted = partitions
            .iter()
            .map(|tp| tp.topic.as_str().to_owned())
            .collect();
        let known = self.describe(&wanted)?;
        let mut existing: Vec<_> = partitions
            .iter()
            .filter(|tp| {
                known
                    .get(&tp.topic)
                    .is_some_and(|info| info.partitions.contains(&tp.partition))
            })
            .cloned()
            .collect();
        existing.sort();
        existing.dedup();
        Ok(existing)
    }

    fn offsets(
        &self,
        what: &str,
        listed: Vec<ListedOffset>,
    ) -> Result<BTreeMap<TopicPartition, (Offset, i64)>, LogError> {
        let mut offsets = BTreeMap::new();
        for one in listed {
            if classify::gone(one.code) {
                continue;
            }
            if one.code != Code::OK {
                let failure = Failure {
                    code: one.code,
                    text: format!(
                        "{}-{}: {}",
                        one.topic,
                        one.partition,
                        super::ffi::code_text(one.code)
                    ),
                };
                return Err(self.error(what, &failure));
            }
            // -1: no such record
            if let (Ok(offset), Some(tp)) =
                (Offset::new(one.offset), source(&one.topic, one.partition))
            {
                offsets.insert(tp, (offset, one.timestamp));
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
        let existing = self.existing(partitions)?;
        if existing.is_empty() {
            return Ok(BTreeMap::new());
        }
        let listed = self
            .client
            .list_offsets(names(&existing), OffsetSpec::AtTime(at.0), self.timeout())
            .and_then(super::ffi::admin::PendingOffsets::wait)
            .map_err(|e| self.error(what, &e))?;
        Ok(self
            .offsets(what, listed)?
            .into_iter()
            .map(|(tp, (offset, timestamp))| {
                let timestamp = Millis(timestamp);
                (tp, OffsetAtTime { offset, timestamp })
            })
            .collect())
    }

    fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
        let wanted: Vec<_> = partitions.iter().map(|(tp, _)| tp.clone()).collect();
        let existing: BTreeSet<_> = self.existing(&wanted)?.into_iter().collect();
        let asked: BTreeMap<_, _> = partitions
            .iter()
            .filter(|(tp, _)| existing.contains(tp))
            .cloned()
            .collect();
        if asked.is_empty() {
            return Ok(BTreeMap::new());
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

    fn open(&self, options: ReaderOptions) -> Result<KafkaReader, LogError> {
        let brokers = self.metadata("open a reader", false)?.brokers;
        let plan = MemoryPlan::new(options.memory_bytes, brokers);
        let (properties, overrides) =
            self.properties
                .for_reader(&options.membership, options.isolation, &plan);
        for o in overrides {
            tracing::warn!(
                key = o.key,
                why = o.why,
                "the configured Kafka property is not used"
            );
        }
        let mirrors = match &options.membership {
            Membership::Alone => self.properties.group().is_some(),
            Membership::Group { .. } => true,
        };
        KafkaReader::start(&properties, options, plan, mirrors)
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
fn consistent(log_start: Offset, end: Offset, high_watermark: Offset) -> LogBounds {
    let end = end.max(log_start);
    LogBounds {
        log_start,
        end,
        high_watermark: high_watermark.max(end),
    }
}

fn without_id((name, code, partitions): (String, Code, Vec<i32>)) -> Description {
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

fn collect(
    found: impl Iterator<Item = Description>,
) -> Result<BTreeMap<TopicName, TopicInfo>, LogError> {
    let mut infos = BTreeMap::new();
    for topic in found {
        if let Some(error) = &topic.error {
            if classify::gone(error.code) {
                continue;
            }
            return Err(classify::request(
                &format!("describe topic {}", topic.name),
                error,
                None,
            ));
        }
        if topic.internal || INTERNAL.contains(&topic.name.as_str()) {
            continue;
        }
        // a name that Kafka's rule forbids cannot be a topic
        let Ok(name) = TopicName::new(&topic.name) else {
            continue;
        };
        let mut partitions: Vec<_> = topic
            .partitions
            .iter()
            .filter_map(|p| Partition::new(*p).ok())
            .collect();
        partitions.sort_unstable();
        infos.insert(
            name.clone(),
            TopicInfo {
                name,
                topic_id: (!topic.id.is_nil()).then_some(TopicId(topic.id)),
                partitions,
            },
        );
    }
    Ok(infos)
}

fn topic_config(values: &BTreeMap<String, String>) -> TopicConfig {
    let number = |key: &str| values.get(key).and_then(|v| v.parse::<u64>().ok());
    TopicConfig {
        retention: number("retention.ms").map(Duration::from_millis),
        retention_bytes: number("retention.bytes"),
        compacted: values
            .get("cleanup.policy")
            .is_some_and(|p| p.split(',').any(|part| part.trim() == "compact")),
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
    ) -> Result<BTreeMap<TopicName, TopicInfo>, LogError> {
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
        self.ask(move |inner| inner.epoch_ends(&partitions)).await
    }

    async fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError> {
        let topic = topic.clone();
        self.ask(move |inner| inner.topic_config(&topic)).await
    }

    async fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError> {
        let reader = self.ask(move |inner| inner.open(options)).await?;
        Ok(Box::new(reader))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_different_moments_never_contradict_each_other() {
        let o = |n| Offset::new(n).unwrap();
        // retention passed the stable end that was read a moment before
        let b = consistent(o(50), o(40), o(45));
        assert_eq!(
            (b.log_start, b.end, b.high_watermark),
            (o(50), o(50), o(50))
        );
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
    }
}
