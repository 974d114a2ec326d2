//! A Kafka topic as output, exactly once.
//!
//! - The transactional id is made of the run id, so a resumed run fences its predecessor and ends what it left open.
//! - Every transaction carries the positions right after its records, as offsets of a consumer group of the same name for
//!   the target's partitions: the offset is the position's, the metadata `generation:offset`. The first one is committed
//!   before the first record.
//! - After initialising transactions the offsets are read back; they say where to go on, whatever the positions file says.
//!
//! Records keep partition, key, value, headers and timestamp. What the topic (or the client) cannot hold as it is, is an
//! error: fewer partitions, `LogAppendTime`, no timestamp or timestamp 0 (the client would write its own time), header
//! keys that are not UTF-8. The source's offsets are not kept; a topic gives its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use everlog_common::{
    EventBatch, EventRef, Partition, Positions, TimestampType, TopicName, compute,
};
use everlog_kafka::client::{TransactionError, TransactionalProducer};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use uuid::Uuid;

use super::{OpenOutput, OutputError};
use crate::resume::{OutputState, parse_position};

/// Bound of every request to the cluster.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// See the module's text.
#[derive(Debug)]
pub(crate) struct TopicOutput {
    inner: Arc<Inner>,
}

struct Inner {
    topic: String,
    partitions: i32,
    producer: TransactionalProducer,
    /// For its group's metadata alone; it subscribes to nothing.
    group: BaseConsumer,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_transaction: bool,
    committed: Positions,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TopicOutput")
            .field("topic", &self.topic)
            .field("partitions", &self.partitions)
            .finish_non_exhaustive()
    }
}

impl TopicOutput {
    /// Checks the target, takes over from an earlier process of the run, and gives the positions that it committed.
    pub(super) async fn open(
        topic: TopicName,
        open: OpenOutput,
    ) -> Result<(Self, Option<Positions>), OutputError> {
        check_timestamps(&topic, &open.kafka).await?;
        let opened = compute::spawn(move || Inner::open(&topic, &open));
        let (inner, positions) = opened.await.map_err(|_| OutputError::Stopped)??;
        let inner = Arc::new(inner);
        Ok((Self { inner }, positions))
    }

    pub(super) async fn write(&mut self, batch: EventBatch) -> Result<(), OutputError> {
        if batch.columns.is_empty() {
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        compute::spawn(move || inner.write(&batch))
            .await
            .map_err(|_| OutputError::Stopped)?
    }

    pub(super) async fn checkpoint(
        &mut self,
        positions: &Positions,
    ) -> Result<OutputState, OutputError> {
        let (inner, positions) = (Arc::clone(&self.inner), positions.clone());
        compute::spawn(move || {
            inner.commit(&positions)?;
            Ok(OutputState::Topic {
                topic: inner.topic.clone(),
            })
        })
        .await
        .map_err(|_| OutputError::Stopped)?
    }
}

/// A topic that stamps records itself cannot keep timestamps.
async fn check_timestamps(
    topic: &TopicName,
    kafka: &BTreeMap<String, String>,
) -> Result<(), OutputError> {
    let failed = |detail: String| producer_error(topic.as_str(), "read its configuration", detail);
    let admin: AdminClient<DefaultClientContext> = client_config(kafka)
        .create()
        .map_err(|e| failed(e.to_string()))?;
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let resource = ResourceSpecifier::Topic(topic.as_str());
    let answers = admin
        .describe_configs([&resource], &options)
        .await
        .map_err(|e| failed(e.to_string()))?;
    for answer in answers {
        let config = answer.map_err(|code| match code {
            RDKafkaErrorCode::UnknownTopicOrPartition => {
                target_error(topic.as_str(), "it does not exist: create it".to_owned())
            }
            code => failed(code.to_string()),
        })?;
        let kind = config.get("message.timestamp.type");
        let kind = kind.and_then(|entry| entry.value.as_deref());
        if kind.is_some_and(|kind| kind != "CreateTime") {
            return Err(target_error(
                topic.as_str(),
                "it stamps records itself, which would replace their timestamps: set message.timestamp.type=CreateTime"
                    .to_owned(),
            ));
        }
    }
    Ok(())
}

fn client_config(kafka: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (key, value) in everlog_kafka::client::for_other_clients(kafka) {
        config.set(key, value);
    }
    config
}

/// Names the transactional producer and its group.
fn run_name(run_id: Uuid) -> String {
    format!("everlog-replay-{run_id}")
}

impl Inner {
    fn open(
        topic: &TopicName,
        open: &OpenOutput,
    ) -> Result<(Self, Option<Positions>), OutputError> {
        let topic = topic.as_str();
        let name = run_name(open.run_id);
        let failed = |doing| move |e: KafkaError| producer_error(topic, doing, e.to_string());
        let producer = TransactionalProducer::open(&open.kafka, &name, &[])
            .map_err(|e| of_transaction(topic, e))?;
        let group: BaseConsumer = client_config(&open.kafka)
            .set("group.id", &name)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .create()
            .map_err(failed("make a group client"))?;
        let partitions = producer
            .partitions(topic)
            .map_err(|e| of_transaction(topic, e))?
            .ok_or_else(|| target_error(topic, "it does not exist: create it".to_owned()))?;
        let inner = Self {
            topic: topic.to_owned(),
            partitions,
            producer,
            group,
            state: Mutex::default(),
        };
        let committed = inner.committed()?;
        let positions = match &open.saved {
            None => None,
            Some((_, saved)) => Some(went_on(topic, saved, &committed)?),
        };
        inner.state().committed = committed;
        Ok((inner, positions))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The positions of the run's last committed transaction.
    fn committed(&self) -> Result<Positions, OutputError> {
        let mut ask = TopicPartitionList::new();
        for partition in 0..self.partitions {
            ask.add_partition(&self.topic, partition);
        }
        let answer = self.group.committed_offsets(ask, REQUEST_TIMEOUT);
        let answer = answer.map_err(|e| {
            producer_error(&self.topic, "read the committed positions", e.to_string())
        })?;
        let mut positions = Positions::new();
        for element in answer.elements() {
            element.error().map_err(|e| {
                producer_error(&self.topic, "read the committed positions", e.to_string())
            })?;
            let Offset::Offset(offset) = element.offset() else {
                continue;
            };
            let position = parse_position(element.metadata());
            let partition = Partition::new(element.partition()).ok();
            match (position.filter(|p| p.offset.get() == offset), partition) {
                (Some(position), Some(partition)) => positions.insert(partition, position),
                _ => {
                    let what = format!(
                        "the committed position of partition {} cannot be read ({offset}, {:?})",
                        element.partition(),
                        element.metadata()
                    );
                    return Err(target_error(&self.topic, what));
                }
            };
        }
        Ok(positions)
    }

    fn write(&self, batch: &EventBatch) -> Result<(), OutputError> {
        self.check_partition(batch.partition)?;
        self.begin()?;
        for row in 0..batch.columns.len() {
            self.send(batch.partition, &batch.columns.row(row))?;
        }
        self.producer.poll().map_err(|e| self.failed(e))
    }

    fn failed(&self, error: TransactionError) -> OutputError {
        of_transaction(&self.topic, error)
    }

    fn check_partition(&self, partition: Partition) -> Result<(), OutputError> {
        if partition.get() < self.partitions {
            return Ok(());
        }
        let what = format!(
            "it has {} partitions, partition {partition} has no place in it: add partitions",
            self.partitions
        );
        Err(target_error(&self.topic, what))
    }

    fn begin(&self) -> Result<(), OutputError> {
        let mut state = self.state();
        if !state.in_transaction {
            self.producer.begin().map_err(|e| self.failed(e))?;
            state.in_transaction = true;
        }
        Ok(())
    }

    fn send(&self, partition: Partition, event: &EventRef<'_>) -> Result<(), OutputError> {
        let refused = |what: &str| OutputError::NotRepresentable {
            topic: self.topic.clone(),
            partition,
            offset: event.offset,
            what: what.to_owned(),
        };
        if event.timestamp_type == TimestampType::None || event.timestamp_ms == 0 {
            return Err(refused(
                "it has no timestamp, or timestamp 0, and the client would write its own time",
            ));
        }
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.topic)
            .partition(partition.get())
            .timestamp(event.timestamp_ms);
        record.key = event.key;
        record.payload = event.value;
        if !event.headers.is_empty() {
            let mut headers = OwnedHeaders::new_with_capacity(event.headers.len());
            for (key, value) in &event.headers {
                let key =
                    std::str::from_utf8(key).map_err(|_| refused("a header's key is not UTF-8"))?;
                headers = headers.insert(Header { key, value: *value });
            }
            record = record.headers(headers);
        }
        self.producer.send(record).map_err(|e| self.failed(e))
    }

    /// Commits the records so far together with the positions after them.
    fn commit(&self, positions: &Positions) -> Result<(), OutputError> {
        if *positions == self.state().committed {
            return Ok(());
        }
        self.begin()?;
        let mut offsets = TopicPartitionList::new();
        for (partition, position) in positions {
            self.check_partition(*partition)?;
            let mut element = offsets.add_partition(&self.topic, partition.get());
            element
                .set_offset(Offset::Offset(position.offset.get()))
                .map_err(|e| producer_error(&self.topic, "name a position", e.to_string()))?;
            element.set_metadata(position.to_string());
        }
        let group = self.group.group_metadata().ok_or_else(|| {
            let detail = "the client has no group".to_owned();
            producer_error(&self.topic, "add positions to the transaction", detail)
        })?;
        self.producer
            .add_offsets(&offsets, &group)
            .and_then(|()| self.producer.commit())
            .map_err(|e| self.failed(e))?;
        let mut state = self.state();
        state.in_transaction = false;
        state.committed.clone_from(positions);
        Ok(())
    }
}

/// The committed positions. They are never behind the positions file, which is written after each commit, the first
/// one included. If they are, the broker forgot them (offsets of a group that is idle for `offsets.retention.minutes`, a
/// week, expire), and a guess would lose or repeat records.
fn went_on(
    topic: &str,
    saved: &Positions,
    committed: &Positions,
) -> Result<Positions, OutputError> {
    let forgotten = saved
        .iter()
        .find(|(partition, position)| committed.get(partition).is_none_or(|c| c < position));
    match forgotten {
        None => Ok(committed.clone()),
        Some((partition, position)) => Err(target_error(
            topic,
            format!(
                "the cluster has no committed position of partition {partition} at or after {position}: it forgot it (offsets.retention.minutes), or is another cluster; begin anew with another positions file and an empty topic"
            ),
        )),
    }
}

/// Anything that the producer did not get over ends the run, and the next one resumes.
fn of_transaction(topic: &str, error: TransactionError) -> OutputError {
    let (doing, detail) = error.into_parts();
    producer_error(topic, doing, detail)
}

fn producer_error(topic: &str, doing: &'static str, detail: String) -> OutputError {
    OutputError::Producer {
        topic: topic.to_owned(),
        doing,
        detail,
    }
}

fn target_error(topic: &str, what: String) -> OutputError {
    OutputError::Target {
        topic: topic.to_owned(),
        what,
    }
}
