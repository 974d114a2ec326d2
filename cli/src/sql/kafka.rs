//! The cluster, once a query asks for it: most do not, and a client opens connections.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use everlog_common::{LogBounds, Millis, Offset, TopicName, TopicPartition};
use everlog_kafka::client::KafkaLog;
use everlog_kafka::{
    Isolation, Log, LogError, LogReader, OffsetAtTime, ReaderOptions, TopicConfig, TopicInfo,
};

use crate::settings::Settings;

/// A cluster whose client is made by the first question.
pub(super) struct OnDemand {
    properties: BTreeMap<String, String>,
    log: Mutex<Option<Arc<KafkaLog>>>,
}

impl OnDemand {
    /// None where no brokers are configured.
    pub(super) fn configured(settings: &Settings) -> Option<Arc<dyn Log>> {
        let properties = settings.kafka.reveal();
        let names_brokers = ["bootstrap.servers", "metadata.broker.list"]
            .iter()
            .any(|key| properties.contains_key(*key));
        names_brokers.then(|| {
            Arc::new(Self {
                properties: properties.clone(),
                log: Mutex::new(None),
            }) as Arc<dyn Log>
        })
    }

    fn log(&self) -> Result<Arc<KafkaLog>, LogError> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = &*log {
            return Ok(Arc::clone(log));
        }
        let new = Arc::new(KafkaLog::connect(&self.properties)?);
        *log = Some(Arc::clone(&new));
        Ok(new)
    }
}

/// Its properties hold secrets.
impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand").finish_non_exhaustive()
    }
}

#[async_trait]
impl Log for OnDemand {
    async fn cluster_id(&self) -> Result<Option<String>, LogError> {
        self.log()?.cluster_id().await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        self.log()?.topics().await
    }

    async fn describe(
        &self,
        topics: &[TopicName],
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, LogError>>, LogError> {
        self.log()?.describe(topics).await
    }

    async fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        self.log()?.bounds(partitions, isolation).await
    }

    async fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        at: Millis,
    ) -> Result<BTreeMap<TopicPartition, OffsetAtTime>, LogError> {
        self.log()?.offsets_at(partitions, at).await
    }

    async fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
        self.log()?.epoch_ends(partitions).await
    }

    async fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError> {
        self.log()?.topic_config(topic).await
    }

    async fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError> {
        self.log()?.open(options).await
    }
}
