//! A process' way to the brokers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{Clock, LogBounds, Millis, Offset, TopicName, TopicPartition};
use everlog_kafka::{
    Isolation, Log, LogError, LogReader, OffsetAtTime, ReaderEvent, ReaderOptions, StartAt,
    TopicConfig, TopicInfo,
};

use crate::world::Process;

/// The brokers, for one process.
#[derive(Debug)]
pub struct SimLog {
    process: Arc<Process>,
}

impl SimLog {
    /// Of this process.
    pub fn new(process: Arc<Process>) -> Self {
        Self { process }
    }

    fn log(&self) -> &dyn Log {
        &self.process.world.log
    }

    fn is_stale(&self) -> bool {
        let world = &self.process.world;
        world.strikes(world.plan.faults.log_stale, "stale answer of the brokers")
    }

    async fn pass(&self, what: &str) -> Result<(), LogError> {
        self.process.pass(what).await;
        let world = &self.process.world;
        if world.strikes(world.plan.faults.log, "brokers away") {
            return Err(LogError::Unavailable {
                what: what.to_owned(),
                detail: "injected".to_owned(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Log for SimLog {
    async fn cluster_id(&self) -> Result<Option<String>, LogError> {
        self.pass("cluster id").await?;
        self.log().cluster_id().await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        self.pass("topics").await?;
        self.log().topics().await
    }

    async fn describe(
        &self,
        topics: &[TopicName],
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, LogError>>, LogError> {
        self.pass("describe").await?;
        let answer = self.log().describe(topics).await;
        if self.is_stale() {
            // it was true when it was given, and arrives when it is not any more
            let world = &self.process.world;
            world.clock.sleep(world.rng.millis(200, 4_000)).await;
        }
        self.process.pass("described").await;
        answer
    }

    async fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        self.pass("bounds").await?;
        let answer = self.log().bounds(partitions, isolation).await;
        if self.is_stale() {
            let world = &self.process.world;
            world.clock.sleep(world.rng.millis(200, 4_000)).await;
        }
        self.process.pass("bounds known").await;
        answer
    }

    async fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        at: Millis,
    ) -> Result<BTreeMap<TopicPartition, OffsetAtTime>, LogError> {
        self.pass("offsets at").await?;
        self.log().offsets_at(partitions, at).await
    }

    async fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
        self.pass("epoch ends").await?;
        let answer = self.log().epoch_ends(partitions).await;
        self.process.pass("epoch ends known").await;
        answer
    }

    async fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError> {
        self.pass("topic config").await?;
        self.log().topic_config(topic).await
    }

    async fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError> {
        self.pass("open").await?;
        let reader = self.log().open(options).await?;
        Ok(Box::new(SimReader {
            process: Arc::clone(&self.process),
            reader,
        }))
    }
}

/// A reader. What was fetched is handed over without a step in between: that is what readers promise.
#[derive(Debug)]
struct SimReader {
    process: Arc<Process>,
    reader: Box<dyn LogReader>,
}

#[async_trait]
impl LogReader for SimReader {
    async fn poll(&mut self, wait: Duration) -> Result<Vec<ReaderEvent>, LogError> {
        let world = &self.process.world;
        if world.strikes(world.plan.faults.poll_slow, "slow poll") {
            world.clock.sleep(world.rng.millis(1, 3_000)).await;
        }
        self.process.pass("poll").await;
        self.reader.poll(wait).await
    }

    async fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), LogError> {
        self.process.pass("assign").await;
        self.reader.assign(partitions).await
    }

    async fn subscribe(&mut self, topics: &[TopicName]) -> Result<(), LogError> {
        self.process.pass("subscribe").await;
        self.reader.subscribe(topics).await
    }

    async fn unassign(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.process.pass("unassign").await;
        self.reader.unassign(partitions).await
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.reader.pause(partitions).await
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.reader.resume(partitions).await
    }

    async fn mirror(&mut self, positions: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        self.reader.mirror(positions).await
    }

    fn held_bytes(&self) -> usize {
        self.reader.held_bytes()
    }

    async fn close(self: Box<Self>) -> Result<(), LogError> {
        self.process.pass("close").await;
        self.reader.close().await
    }
}
