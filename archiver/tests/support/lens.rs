//! A log that a test can answer for: what brokers say wrongly, or do not say at all, while the records are as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Mutex;

use async_trait::async_trait;
use everlog_common::{LogBounds, Millis, Offset, TopicName, TopicPartition};
use everlog_kafka::memory::MemoryLog;
use everlog_kafka::{
    Isolation, Log, LogError, LogReader, OffsetAtTime, ReaderOptions, TopicConfig, TopicInfo,
};

/// A request, with what it asks for.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    Describe(&'a [TopicName]),
    Bounds(&'a [TopicPartition]),
}

type Refuse = Box<dyn FnMut(Ask<'_>) -> Option<LogError> + Send>;

#[derive(Default)]
struct Wrong {
    leaderless: BTreeSet<TopicPartition>,
    hidden: BTreeSet<TopicName>,
    undescribed: BTreeSet<TopicName>,
    high_watermarks: BTreeMap<TopicPartition, Offset>,
    refuse: Option<Refuse>,
}

/// The memory log, through a test's eyes.
pub struct Lens {
    inner: MemoryLog,
    wrong: Mutex<Wrong>,
}

impl fmt::Debug for Lens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lens").field(&self.inner).finish()
    }
}

impl Lens {
    pub fn new(inner: MemoryLog) -> Self {
        Self {
            inner,
            wrong: Mutex::default(),
        }
    }

    /// Nobody answers for this partition.
    pub fn lose_leader(&self, tp: &TopicPartition) {
        self.wrong.lock().unwrap().leaderless.insert(tp.clone());
    }

    pub fn elect_leader(&self, tp: &TopicPartition) {
        self.wrong.lock().unwrap().leaderless.remove(tp);
    }

    /// Nobody who looks for this topic finds it.
    pub fn hide(&self, topic: &TopicName) {
        self.wrong.lock().unwrap().hidden.insert(topic.clone());
    }

    pub fn show(&self, topic: &TopicName) {
        self.wrong.lock().unwrap().hidden.remove(topic);
    }

    /// The brokers refuse to describe this topic, and go on serving it to those who read it.
    pub fn deny(&self, topic: &TopicName, is_denied: bool) {
        let undescribed = &mut self.wrong.lock().unwrap().undescribed;
        if is_denied {
            undescribed.insert(topic.clone());
        } else {
            undescribed.remove(topic);
        }
    }

    /// The leader's high watermark trails; none: it does not any longer.
    pub fn trail(&self, tp: &TopicPartition, at: Option<Offset>) {
        let mut wrong = self.wrong.lock().unwrap();
        match at {
            Some(at) => wrong.high_watermarks.insert(tp.clone(), at),
            None => wrong.high_watermarks.remove(tp),
        };
    }

    /// Asks `hook` before every request that [`Ask`] knows.
    pub fn refuse(&self, hook: impl FnMut(Ask<'_>) -> Option<LogError> + Send + 'static) {
        self.wrong.lock().unwrap().refuse = Some(Box::new(hook));
    }

    pub fn refuse_nothing(&self) {
        self.wrong.lock().unwrap().refuse = None;
    }

    fn allow(&self, ask: Ask<'_>) -> Result<(), LogError> {
        let refuse = &mut self.wrong.lock().unwrap().refuse;
        match refuse.as_mut().and_then(|hook| hook(ask)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Log for Lens {
    async fn cluster_id(&self) -> Result<Option<String>, LogError> {
        self.inner.cluster_id().await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        let mut topics = self.inner.topics().await?;
        let wrong = self.wrong.lock().unwrap();
        topics.retain(|info| !wrong.hidden.contains(&info.name));
        Ok(topics)
    }

    async fn describe(
        &self,
        topics: &[TopicName],
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, LogError>>, LogError> {
        self.allow(Ask::Describe(topics))?;
        let mut described = self.inner.describe(topics).await?;
        let wrong = self.wrong.lock().unwrap();
        described.retain(|name, _| !wrong.hidden.contains(name));
        for (name, answer) in &mut described {
            if wrong.undescribed.contains(name) {
                *answer = Err(LogError::Denied {
                    what: format!("describe topic {name}"),
                    detail: "the test says no".to_owned(),
                });
            }
        }
        Ok(described)
    }

    async fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        self.allow(Ask::Bounds(partitions))?;
        let mut bounds = self.inner.bounds(partitions, isolation).await?;
        let wrong = self.wrong.lock().unwrap();
        bounds.retain(|tp, _| !wrong.leaderless.contains(tp));
        for (tp, bounds) in &mut bounds {
            if let Some(at) = wrong.high_watermarks.get(tp) {
                bounds.high_watermark = bounds.high_watermark.min(*at);
                bounds.end = bounds.end.min(*at);
            }
        }
        Ok(bounds)
    }

    async fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        at: Millis,
    ) -> Result<BTreeMap<TopicPartition, OffsetAtTime>, LogError> {
        self.inner.offsets_at(partitions, at).await
    }

    async fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
        let mut ends = self.inner.epoch_ends(partitions).await?;
        let wrong = self.wrong.lock().unwrap();
        ends.retain(|tp, _| !wrong.leaderless.contains(tp));
        Ok(ends)
    }

    async fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError> {
        self.inner.topic_config(topic).await
    }

    async fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError> {
        self.inner.open(options).await
    }
}
