//! Rows as JSON in a Kafka topic, exactly once.
//!
//! An epoch is one short transaction: its rows, and a marker in the compacted topic `everlog.jobs`, whose key is
//! `JOB/VERSION/rows` (or `late`, `dead`). Rows are in the epoch's file before, so that no transaction is open while the job works, however long
//! a replay takes, and none has to be found again after a crash.
//!
//! The transactional id is made of job, version and output. Opening takes it over: what an earlier process left open is aborted,
//! what it had begun to commit is completed, and the process itself is fenced. Only then the marker is read, and it decides
//! what is to be committed. The same is done where a commit's outcome is not known.
//!
//! All markers are in partition 0, whose number does not change when partitions are added. A reader that sees only what is
//! committed does not see beyond the first open transaction, of whichever job; the marker is looked for only once everything
//! that was there when the id was taken over is decided.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use arrow_array::{Array as _, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use async_trait::async_trait;
use everlog_common::{LogBounds, Partition, TopicName, TopicPartition, compute};
use everlog_kafka::client::{KafkaLog, TransactionError, TransactionalProducer, for_other_clients};
use everlog_kafka::{Isolation, Log as _};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::{Channel, Marker, Sink, SinkError, Step, TextLines, next_step};
use crate::state::{Epoch, EpochLog, JobId};

/// The topic of the markers.
pub const MARKERS: &str = "everlog.jobs";
/// Rows that are encoded before they are handed to the client.
const ROWS_PER_PIECE: usize = 1_024;
/// How often an epoch's transaction is tried.
const ATTEMPTS: u32 = 5;
/// Bound of every request to the cluster.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long transactions of others may stay open before that is an error: more than the cluster lets them by default.
const MARKER_PATIENCE: Duration = Duration::from_mins(17);
/// How often it is looked whether they are decided.
const MARKER_RETRY: Duration = Duration::from_millis(100);
/// How many offsets before the end the marker is looked for first; each further look goes back so many times further.
const MARKER_WINDOW: i64 = 1_000;
const MARKER_WINDOW_FACTOR: i64 = 16;
/// Bound of one look at what topics there are.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked.
const LOOK_RETRY: Duration = Duration::from_millis(100);
const FORMAT: u32 = 1;

/// Where and how.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// librdkafka's properties, as in `[kafka]`.
    pub properties: BTreeMap<String, String>,
    /// The topic; it has to exist.
    pub topic: TopicName,
    /// The columns that make a record's key; none: records have no key. One column is its text, several are a JSON object.
    pub key: Vec<String>,
    /// The column of timestamps that records get; none: the time at which they are sent. The topic's retention counts from
    /// them: a replay's rows are removed at once where they are older.
    pub timestamp: Option<String>,
    /// The job's epochs: asked before the transactional id is taken again, so that it is not taken from a later process.
    pub owner: Option<EpochLog>,
}

/// See the module's text.
#[derive(Debug)]
pub struct KafkaSink {
    settings: Arc<KafkaSettings>,
    target: String,
    job: JobId,
    channel: Channel,
    /// None after an outcome that is not known.
    producer: Option<Arc<TransactionalProducer>>,
    log: KafkaLog,
    held: Option<Marker>,
}

/// A marker's record.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    topic: String,
    channel: Channel,
    #[serde(flatten)]
    marker: Marker,
}

impl KafkaSink {
    /// Takes the output over and reads its marker.
    pub async fn open(
        settings: KafkaSettings,
        job: JobId,
        channel: Channel,
    ) -> Result<Self, SinkError> {
        let target = format!("kafka:{}", settings.topic);
        if settings.topic.as_str() == MARKERS {
            let what = "it is the topic of the jobs' markers: name another".to_owned();
            return Err(SinkError::Target { target, what });
        }
        let log = KafkaLog::connect(&settings.properties)
            .map_err(|e| kafka(&target, "make a client", e))?;
        prepare_markers(&settings.properties, &target).await?;
        if settings.timestamp.is_some() {
            warn_of_retention(&log, &settings.topic).await;
        }
        let mut sink = Self {
            settings: Arc::new(settings),
            target,
            job,
            channel,
            producer: None,
            log,
            held: None,
        };
        sink.producer().await?;
        Ok(sink)
    }

    fn transactional_id(&self) -> String {
        format!(
            "everlog-job-{}-{}-{}",
            self.job.name, self.job.version, self.channel
        )
    }

    fn key(&self) -> String {
        format!("{}/{}/{}", self.job.name, self.job.version, self.channel)
    }

    /// The producer; where there is none, takes the id over and reads the marker.
    async fn producer(&mut self) -> Result<Arc<TransactionalProducer>, SinkError> {
        if let Some(producer) = &self.producer {
            return Ok(Arc::clone(producer));
        }
        if let Some(owner) = &self.settings.owner {
            owner.check_owner().await.map_err(|error| match error {
                crate::state::StoreError::Fenced { .. } => self.fenced(),
                other => SinkError::Other {
                    target: self.target.clone(),
                    doing: "ask whether this process still owns the job",
                    source: Box::new(other),
                },
            })?;
        }
        let (settings, id) = (Arc::clone(&self.settings), self.transactional_id());
        let opened = compute::spawn(move || {
            let defaults = [
                ("transaction.timeout.ms", "60000"),
                ("partitioner", "murmur2_random"),
            ];
            let producer = TransactionalProducer::open(&settings.properties, &id, &defaults)?;
            let partitions = producer.partitions(settings.topic.as_str())?;
            Ok((producer, partitions))
        });
        let opened = opened.await.map_err(|_| SinkError::Stopped)?;
        let (producer, partitions) = opened.map_err(|error| self.failed(error))?;
        if partitions.is_none() {
            return Err(SinkError::Target {
                target: self.target.clone(),
                what: "the topic does not exist: create it".into(),
            });
        }
        self.held = self.read_marker().await?;
        let producer = Arc::new(producer);
        self.producer = Some(Arc::clone(&producer));
        Ok(producer)
    }

    fn fenced(&self) -> SinkError {
        SinkError::Fenced {
            target: self.target.clone(),
            job: self.job.name.clone(),
            version: self.job.version.clone(),
        }
    }

    fn failed(&self, error: TransactionError) -> SinkError {
        match error {
            TransactionError::Fenced { .. } => self.fenced(),
            TransactionError::Aborted { doing, detail }
            | TransactionError::Unknown { doing, detail } => SinkError::Kafka {
                target: self.target.clone(),
                doing,
                detail,
            },
            other => kafka(&self.target, "commit", other),
        }
    }

    /// What is committed. Our own transactions are all decided; others' may hide what lies behind them.
    async fn read_marker(&self) -> Result<Option<Marker>, SinkError> {
        let began = Instant::now();
        let LogBounds { high_watermark, .. } = self.bounds().await?;
        let bounds = loop {
            let bounds = self.bounds().await?;
            if bounds.end >= high_watermark {
                break bounds;
            }
            if began.elapsed() > MARKER_PATIENCE {
                return Err(kafka(
                    &self.target,
                    "read the marker",
                    format_args!(
                        "transactions in topic {MARKERS} have been open for {} minutes: find them with kafka-transactions.sh find-hanging, and abort them",
                        MARKER_PATIENCE.as_secs() / 60
                    ),
                ));
            }
            tokio::time::sleep(MARKER_RETRY).await;
        };
        let (settings, key) = (Arc::clone(&self.settings), self.key());
        let (low, high) = (bounds.log_start.get(), bounds.end.get());
        let found = compute::spawn(move || find_marker(&settings.properties, &key, low, high));
        let found = found.await.map_err(|_| SinkError::Stopped)?;
        let found = found.map_err(|detail| kafka(&self.target, "read the marker", detail))?;
        let Some(text) = found else { return Ok(None) };
        let wrong = |what: String| SinkError::Target {
            target: self.target.clone(),
            what,
        };
        let stored: Stored = serde_json::from_slice(&text).map_err(|e| {
            wrong(format!(
                "its marker {} in topic {MARKERS} cannot be read ({e})",
                self.key()
            ))
        })?;
        if stored.format != FORMAT {
            return Err(wrong(format!(
                "its marker has form {}, this everlog reads form {FORMAT}",
                stored.format
            )));
        }
        if stored.topic != self.settings.topic.as_str() {
            return Err(wrong(format!(
                "{} of job {} went to topic {} before: name that one, or change job.version",
                self.channel, self.job, stored.topic
            )));
        }
        Ok(Some(stored.marker))
    }

    async fn bounds(&self) -> Result<LogBounds, SinkError> {
        let failed =
            |e: &dyn std::fmt::Display| kafka(&self.target, "read the bounds of the markers", e);
        let topic = TopicName::new(MARKERS).map_err(|e| failed(&e))?;
        let partition = Partition::new(0).map_err(|e| failed(&e))?;
        let partition = TopicPartition::new(topic, partition);
        let due = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let bounds = self
                .log
                .bounds(std::slice::from_ref(&partition), Isolation::ReadCommitted)
                .await;
            match bounds {
                Ok(mut all) => match all.remove(&partition) {
                    Some(bounds) => return Ok(bounds),
                    None if Instant::now() > due => return Err(failed(&"it has no leader")),
                    None => {}
                },
                Err(error) if Instant::now() > due => return Err(failed(&error)),
                Err(_) => {}
            }
            tokio::time::sleep(MARKER_RETRY).await;
        }
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn channel(&self) -> Channel {
        self.channel
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    async fn committed(&mut self) -> Result<Option<Marker>, SinkError> {
        self.producer().await?;
        self.held = self.read_marker().await?;
        Ok(self.held.clone())
    }

    async fn commit(&mut self, epoch: &Epoch) -> Result<(), SinkError> {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            let producer = self.producer().await?;
            if next_step(self.held.as_ref(), epoch, self.channel)? == Step::Done {
                return Ok(());
            }
            let marker = Marker::after(epoch, self.channel);
            let stored = Stored {
                format: FORMAT,
                topic: self.settings.topic.to_string(),
                channel: self.channel,
                marker: marker.clone(),
            };
            let rows = Rows {
                settings: Arc::clone(&self.settings),
                target: self.target.clone(),
                batch: self.channel.of(epoch).clone(),
                marker_key: self.key(),
                marker: serde_json::to_vec(&stored)
                    .map_err(|e| kafka(&self.target, "write the marker", e))?,
            };
            // Until it is known: nothing. A call that is dropped here leaves it so.
            self.producer = None;
            let written = compute::spawn(move || {
                let written = rows.commit(&producer);
                (producer, written)
            });
            let (producer, written) = written.await.map_err(|_| SinkError::Stopped)?;
            match written {
                Ok(()) => {
                    self.producer = Some(producer);
                    self.held = Some(marker);
                    return Ok(());
                }
                Err(Failed::Rows(error)) => return Err(error),
                // Brokers say the same to a producer whose transaction was open for too long, for instance while they were
                // away. Who owns the job knows which it was: he is asked before the id is taken again.
                Err(Failed::Transaction(error @ TransactionError::Fenced { .. }))
                    if self.settings.owner.is_none() =>
                {
                    return Err(self.failed(error));
                }
                Err(Failed::Transaction(error)) if left == 0 => return Err(self.failed(error)),
                Err(Failed::Transaction(error)) => {
                    tracing::warn!(target = %self.target, epoch = epoch.number, %error, "once more");
                    if matches!(error, TransactionError::Aborted { .. }) {
                        self.producer = Some(producer);
                    }
                }
            }
        }
    }
}

/// Kafka removes records by their timestamps, which a replay takes from years ago.
async fn warn_of_retention(log: &KafkaLog, topic: &TopicName) {
    let config = log.topic_config(topic).await;
    if let Ok(Some(retention)) = config.map(|config| config.retention) {
        tracing::warn!(
            %topic,
            retention_hours = retention.as_secs() / 3_600,
            "sink.timestamp is set, and the topic removes rows that are older than its retention, however new they are here: set retention.ms=-1 for a replay"
        );
    }
}

/// What one transaction holds.
struct Rows {
    settings: Arc<KafkaSettings>,
    target: String,
    batch: RecordBatch,
    marker_key: String,
    marker: Vec<u8>,
}

enum Failed {
    Transaction(TransactionError),
    Rows(SinkError),
}

impl From<TransactionError> for Failed {
    fn from(error: TransactionError) -> Self {
        Self::Transaction(error)
    }
}

impl Rows {
    fn commit(&self, producer: &TransactionalProducer) -> Result<(), Failed> {
        // What cannot be written is found before anything is begun.
        let lines = TextLines::new(&self.batch).map_err(|e| self.lines(e))?;
        let key = self.key_columns().map_err(Failed::Rows)?;
        let timestamps = self.timestamps().map_err(Failed::Rows)?;
        producer.begin()?;
        let mut text = Vec::new();
        let mut keys = Vec::new();
        for from in (0..lines.len()).step_by(ROWS_PER_PIECE) {
            let to = (from + ROWS_PER_PIECE).min(lines.len());
            text.clear();
            lines
                .append(from, to, &mut text)
                .map_err(|e| self.lines(e))?;
            keys.clear();
            if let Some(key) = &key {
                key.append(from, to, &mut keys).map_err(|e| self.lines(e))?;
            }
            let one_column = self.settings.key.len() == 1;
            let mut keys = keys
                .split(|b| *b == b'\n')
                .map(|line| key_of(line, one_column));
            // A line feed within a text is escaped.
            for (row, line) in (from..to).zip(text.split(|b| *b == b'\n')) {
                let mut record: BaseRecord<'_, [u8], [u8]> =
                    BaseRecord::to(self.settings.topic.as_str()).payload(line);
                let row_key = key.as_ref().and_then(|_| keys.next().flatten());
                record.key = row_key.as_deref();
                record.timestamp = timestamps
                    .as_ref()
                    .and_then(|all| all.get(row).copied().flatten());
                producer.send(record)?;
            }
            producer.poll()?;
        }
        let marker = BaseRecord::to(MARKERS)
            .partition(0)
            .key(self.marker_key.as_bytes())
            .payload(self.marker.as_slice());
        producer.send(marker)?;
        producer.commit()?;
        Ok(())
    }

    fn lines(&self, source: super::LinesError) -> Failed {
        Failed::Rows(SinkError::Lines {
            target: self.target.clone(),
            source,
        })
    }

    fn column(&self, name: &str, option: &str) -> Result<usize, SinkError> {
        self.batch
            .schema()
            .index_of(name)
            .map_err(|_| SinkError::Target {
                target: self.target.clone(),
                what: format!("{option} names column {name:?}, which the query does not give"),
            })
    }

    fn key_columns(&self) -> Result<Option<TextLines>, SinkError> {
        if self.settings.key.is_empty() {
            return Ok(None);
        }
        let columns = self
            .settings
            .key
            .iter()
            .map(|name| self.column(name, "sink.key"));
        let columns: Vec<usize> = columns.collect::<Result<_, _>>()?;
        let lines = self
            .batch
            .project(&columns)
            .map_err(super::LinesError::from);
        lines
            .and_then(|batch| TextLines::new(&batch))
            .map(Some)
            .map_err(|source| SinkError::Lines {
                target: self.target.clone(),
                source,
            })
    }

    /// Milliseconds; none where there is none, or none that Kafka has a place for.
    fn timestamps(&self) -> Result<Option<Vec<Option<i64>>>, SinkError> {
        let Some(name) = &self.settings.timestamp else {
            return Ok(None);
        };
        let column = self.batch.column(self.column(name, "sink.timestamp")?);
        let ms: Vec<Option<i64>> = match column.data_type() {
            DataType::Timestamp(TimeUnit::Second, _) => column
                .as_primitive::<TimestampSecondType>()
                .iter()
                .map(|t| t.and_then(|t| t.checked_mul(1_000)))
                .collect(),
            DataType::Timestamp(TimeUnit::Millisecond, _) => column
                .as_primitive::<TimestampMillisecondType>()
                .iter()
                .collect(),
            DataType::Timestamp(TimeUnit::Microsecond, _) => column
                .as_primitive::<TimestampMicrosecondType>()
                .iter()
                .map(|t| t.map(|t| t.div_euclid(1_000)))
                .collect(),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => column
                .as_primitive::<TimestampNanosecondType>()
                .iter()
                .map(|t| t.map(|t| t.div_euclid(1_000_000)))
                .collect(),
            other => {
                return Err(SinkError::Target {
                    target: self.target.clone(),
                    what: format!(
                        "sink.timestamp names column {name:?}, which is {other} and no timestamp"
                    ),
                });
            }
        };
        Ok(Some(ms.into_iter().map(|t| t.filter(|t| *t > 0)).collect()))
    }
}

/// Of the key columns as a JSON object.
fn key_of(line: &[u8], one_column: bool) -> Option<Vec<u8>> {
    if !one_column {
        return Some(line.to_vec());
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line).ok()?;
    match object.into_iter().next()?.1 {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.into_bytes()),
        other => Some(other.to_string().into_bytes()),
    }
}

fn client_config(properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (key, value) in for_other_clients(properties) {
        config.set(key, value);
    }
    config
}

/// Whether the brokers have a topic, now or within a while. All topics are asked for: a request for one may make it.
pub(crate) async fn becomes_known(
    admin: &Arc<AdminClient<DefaultClientContext>>,
    topic: &str,
    patience: Duration,
) -> Result<bool, SinkError> {
    let (admin, topic) = (Arc::clone(admin), topic.to_owned());
    let known = compute::spawn(move || {
        let due = Instant::now() + patience;
        loop {
            let asked = admin.inner().fetch_metadata(None, LOOK_TIMEOUT);
            let is_known = asked.is_ok_and(|metadata| {
                let mut topics = metadata.topics().iter();
                topics
                    .any(|t| t.name() == topic && t.error().is_none() && !t.partitions().is_empty())
            });
            if is_known || Instant::now() >= due {
                return is_known;
            }
            std::thread::park_timeout(LOOK_RETRY);
        }
    });
    known.await.map_err(|_| SinkError::Stopped)
}

/// Makes the topic of the markers where there is none, and checks that it keeps them.
async fn prepare_markers(
    properties: &BTreeMap<String, String>,
    target: &str,
) -> Result<(), SinkError> {
    let failed = |doing, e: &dyn std::fmt::Display| kafka(target, doing, e);
    let admin: AdminClient<DefaultClientContext> = client_config(properties)
        .create()
        .map_err(|e| failed("make a client", &e))?;
    let admin = Arc::new(admin);
    let options = AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT));
    let topic = NewTopic::new(MARKERS, 1, TopicReplication::Fixed(-1))
        .set("cleanup.policy", "compact")
        .set("segment.bytes", "16777216")
        .set("min.cleanable.dirty.ratio", "0.1");
    // One that is there takes no right to make topics, and no broker that can.
    if !becomes_known(&admin, MARKERS, Duration::ZERO).await? {
        let made = match admin.create_topics([&topic], &options).await {
            // A broker that lets nobody make topics: it is made when it is written to.
            Err(KafkaError::AdminOp(RDKafkaErrorCode::UnsupportedFeature)) => return Ok(()),
            made => made.map_err(|e| failed("create the topic everlog.jobs", &e))?,
        };
        match made.into_iter().next() {
            None | Some(Ok(_)) => return Ok(()),
            // Who may not create it may well use it.
            Some(Err((
                _,
                RDKafkaErrorCode::TopicAlreadyExists
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ))) => {}
            Some(Err((_, code))) => return Err(failed("create the topic everlog.jobs", &code)),
        }
    }
    let options = AdminOptions::new()
        .request_timeout(Some(LOOK_TIMEOUT))
        .operation_timeout(Some(LOOK_TIMEOUT));
    let answers = match admin
        .describe_configs([&ResourceSpecifier::Topic(MARKERS)], &options)
        .await
    {
        // A broker that says nothing of how topics are kept.
        Err(KafkaError::AdminOp(RDKafkaErrorCode::UnsupportedFeature)) => return Ok(()),
        // The markers can be written and read all the same: nothing depends on the answer today.
        Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut)) => {
            tracing::warn!(
                topic = MARKERS,
                "no broker says how the topic is kept: its cleanup.policy has to be compact"
            );
            return Ok(());
        }
        answers => answers.map_err(|e| failed("read the configuration of topic everlog.jobs", &e)),
    };
    for answer in answers? {
        let config = match answer {
            Ok(config) => config,
            Err(RDKafkaErrorCode::UnknownTopicOrPartition) => {
                return Err(SinkError::Target {
                    target: target.to_owned(),
                    what: format!(
                        "topic {MARKERS} does not exist and may not be created by this user: create it with one partition and cleanup.policy=compact"
                    ),
                });
            }
            // Who may not read it has to know.
            Err(RDKafkaErrorCode::TopicAuthorizationFailed) => return Ok(()),
            Err(code) => {
                return Err(failed(
                    "read the configuration of topic everlog.jobs",
                    &code,
                ));
            }
        };
        let policy = config
            .get("cleanup.policy")
            .and_then(|entry| entry.value.as_deref());
        if policy.is_some_and(|policy| policy != "compact") {
            return Err(SinkError::Target {
                target: target.to_owned(),
                what: format!(
                    "topic {MARKERS} has cleanup.policy={}, which would delete the markers of jobs that stand still: set it to compact",
                    policy.unwrap_or_default()
                ),
            });
        }
    }
    Ok(())
}

/// The newest value of a key in the offsets from `low` up to `high`, all of which are decided. Blocks.
fn find_marker(
    properties: &BTreeMap<String, String>,
    key: &str,
    low: i64,
    high: i64,
) -> Result<Option<Vec<u8>>, String> {
    let consumer: BaseConsumer = client_config(properties)
        .set("group.id", "everlog-jobs-reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .create()
        .map_err(|e| e.to_string())?;
    let (mut window, mut end) = (MARKER_WINDOW, high);
    while end > low {
        let start = end.saturating_sub(window).max(low);
        if let Some(found) = newest_between(&consumer, key, start, end)? {
            return Ok(found);
        }
        end = start;
        window = window.saturating_mul(MARKER_WINDOW_FACTOR);
    }
    Ok(None)
}

/// The last record of the key from `start` and before `end`; its value is none where it is a tombstone.
fn newest_between(
    consumer: &BaseConsumer,
    key: &str,
    start: i64,
    end: i64,
) -> Result<Option<Option<Vec<u8>>>, String> {
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(MARKERS, 0, Offset::Offset(start))
        .map_err(|e| e.to_string())?;
    consumer.assign(&assignment).map_err(|e| e.to_string())?;
    let mut newest = None;
    let mut due = Instant::now() + REQUEST_TIMEOUT;
    loop {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                due = Instant::now() + REQUEST_TIMEOUT;
                if message.offset() >= end {
                    return Ok(newest);
                }
                if message.key() == Some(key.as_bytes()) {
                    newest = Some(message.payload().map(<[u8]>::to_vec));
                }
            }
            // Everything before `end` was decided when it was asked for, so the end lies there or behind.
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(newest),
            Some(Err(error)) if Instant::now() > due => return Err(error.to_string()),
            None if Instant::now() > due => return Err("no answer".to_owned()),
            Some(Err(_)) | None => {}
        }
    }
}

fn kafka(target: &str, doing: &'static str, detail: impl std::fmt::Display) -> SinkError {
    SinkError::Kafka {
        target: target.to_owned(),
        doing,
        detail: detail.to_string(),
    }
}

#[cfg(test)]
mod tests;
