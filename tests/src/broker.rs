//! Topics, producers and an independent dump of a broker's log.

#![allow(
    unsafe_code,
    reason = "the safe API panics on header keys that are not UTF-8, so the dump reads raw messages"
)]

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka_sys as sys;

use crate::compare::{Log, Record};

/// How long any single request or wait may last.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Where a partition is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// The broker that leads it; none where no broker does.
    pub leader: Option<i32>,
    /// The brokers whose copies are whole.
    pub in_sync: BTreeSet<i32>,
}

/// A handle on a cluster.
#[derive(Debug, Clone)]
pub struct Broker {
    bootstrap: String,
}

impl Broker {
    /// For the cluster at `bootstrap`.
    pub fn new(bootstrap: &str) -> Self {
        Self {
            bootstrap: bootstrap.to_owned(),
        }
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config().create().expect("admin client")
    }

    /// Creates a topic that keeps everything, unless `config` says otherwise.
    pub async fn create(&self, topic: &str, partitions: i32, config: &[(&str, &str)]) {
        self.create_all(&[topic], partitions, config).await;
    }

    /// Several such topics at once.
    pub async fn create_all(&self, topics: &[&str], partitions: i32, config: &[(&str, &str)]) {
        let new = |topic| NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        self.make(topics.iter().copied().map(new).collect(), config)
            .await;
    }

    /// The same with each partition's copies where they are wanted: `nodes[p]` are the brokers of partition `p`, first
    /// the one that is to lead it.
    pub async fn create_on(&self, topic: &str, nodes: &[&[i32]], config: &[(&str, &str)]) {
        let partitions = i32::try_from(nodes.len()).expect("a partition count");
        let new = NewTopic::new(topic, partitions, TopicReplication::Variable(nodes));
        self.make(vec![new], config).await;
    }

    async fn make<'a>(&self, topics: Vec<NewTopic<'a>>, config: &[(&'a str, &'a str)]) {
        let topics: Vec<NewTopic<'_>> = topics
            .into_iter()
            .map(|new| configured(new, config))
            .collect();
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for result in self
            .admin()
            .create_topics(&topics, &options)
            .await
            .expect("create topics")
        {
            result.unwrap_or_else(|(topic, e)| panic!("cannot create {topic}: {e:?}"));
        }
        let made: Vec<_> = topics.iter().map(|t| (t.name, t.num_partitions)).collect();
        self.await_topics(&made);
    }

    /// Waits until every client sees `partitions` partitions.
    pub fn await_topic(&self, topic: &str, partitions: i32) {
        self.await_topics(&[(topic, partitions)]);
    }

    fn await_topics(&self, topics: &[(&str, i32)]) {
        let consumer: BaseConsumer = self.config().create().expect("consumer");
        for (topic, partitions) in topics {
            Self::await_one(&consumer, topic, *partitions);
        }
    }

    fn await_one(consumer: &BaseConsumer, topic: &str, partitions: i32) {
        let due = Instant::now() + PATIENCE;
        loop {
            let seen = consumer
                .fetch_metadata(Some(topic), Duration::from_secs(5))
                .ok()
                .and_then(|m| m.topics().first().map(|t| t.partitions().len()));
            if seen == usize::try_from(partitions).ok() {
                return;
            }
            assert!(
                Instant::now() < due,
                "topic {topic} never had {partitions} partitions"
            );
            std::thread::yield_now();
        }
    }

    /// Waits until the cluster says so of a partition's copies.
    #[track_caller]
    pub fn await_copies(
        &self,
        topic: &str,
        partition: i32,
        what: &str,
        is_so: impl Fn(&Copies) -> bool,
    ) {
        if let Err(copies) = self.copies_within(PATIENCE, topic, partition, is_so) {
            panic!("{topic}-{partition}: {what} did not come true, {copies}");
        }
    }

    /// The same within a time; what it said last, where it does not come true.
    pub fn copies_within(
        &self,
        patience: Duration,
        topic: &str,
        partition: i32,
        is_so: impl Fn(&Copies) -> bool,
    ) -> Result<(), String> {
        let consumer: BaseConsumer = self.config().create().expect("consumer");
        let due = Instant::now() + patience;
        loop {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5));
            let copies = metadata.map(|metadata| {
                let partitions = metadata.topics().first()?.partitions();
                let found = partitions.iter().find(|p| p.id() == partition)?;
                Some(Copies {
                    leader: (found.leader() >= 0).then_some(found.leader()),
                    in_sync: found.isr().iter().copied().collect(),
                })
            });
            if let Ok(Some(copies)) = &copies
                && is_so(copies)
            {
                return Ok(());
            }
            if Instant::now() >= due {
                return Err(format!("{copies:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the cluster has `count` brokers that take part: one that has just started answers before it does.
    pub fn await_nodes(&self, count: usize) {
        let consumer: BaseConsumer = self.config().create().expect("consumer");
        let due = Instant::now() + PATIENCE;
        loop {
            let metadata = consumer.fetch_metadata(None, Duration::from_secs(5));
            let seen = metadata.ok().map(|metadata| metadata.brokers().len());
            if seen.is_some_and(|seen| seen >= count) {
                return;
            }
            assert!(Instant::now() < due, "{count} brokers: {seen:?} are seen");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Deletes a topic and waits until it is gone.
    pub async fn delete(&self, topic: &str) {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for result in self
            .admin()
            .delete_topics(&[topic], &options)
            .await
            .expect("delete topic")
        {
            result.unwrap_or_else(|e| panic!("cannot delete {topic}: {e:?}"));
        }
        let consumer: BaseConsumer = self.config().create().expect("consumer");
        let due = Instant::now() + PATIENCE;
        loop {
            let metadata = consumer
                .fetch_metadata(None, Duration::from_secs(5))
                .expect("metadata");
            if metadata.topics().iter().all(|t| t.name() != topic) {
                return;
            }
            assert!(Instant::now() < due, "topic {topic} was never deleted");
            std::thread::yield_now();
        }
    }

    /// Grows a topic.
    pub async fn grow(&self, topic: &str, partitions: usize) {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let new = NewPartitions::new(topic, partitions);
        for result in self
            .admin()
            .create_partitions([&new], &options)
            .await
            .expect("grow")
        {
            result.unwrap_or_else(|e| panic!("cannot grow {topic}: {e:?}"));
        }
        self.await_topic(topic, i32::try_from(partitions).expect("a partition count"));
    }

    /// Deletes records below `before`, as retention would.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before))
            .expect("an offset");
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        self.admin()
            .delete_records(&list, &options)
            .await
            .expect("delete records");
    }

    /// Log start and end (last stable offset) of a partition.
    pub fn bounds(&self, topic: &str, partition: i32) -> (i64, i64) {
        let mut config = self.config();
        let consumer: BaseConsumer = config
            .set("isolation.level", "read_committed")
            .create()
            .expect("consumer");
        watermarks(&consumer, topic, partition)
    }

    /// A producer; `extra` properties win.
    pub fn producer(&self, extra: &[(&str, &str)]) -> Feed {
        let mut config = self.config();
        config
            .set("linger.ms", "5")
            .set("message.max.bytes", "115000000");
        for (key, value) in extra {
            config.set(*key, *value);
        }
        let delivered = Delivered::default();
        Feed {
            producer: config
                .create_with_context(delivered.clone())
                .expect("producer"),
            delivered,
        }
    }

    /// Every record that a `read_committed` consumer is given, per partition, up to the end seen at the call: read one by
    /// one with the plain poll, independent of everlog's own ingest.
    pub fn dump(&self, topic: &str) -> Log {
        let mut config = self.config();
        config
            .set("group.id", "dump")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("fetch.message.max.bytes", "110000000")
            .set("receive.message.max.bytes", "250000000");
        let consumer: BaseConsumer = config.create().expect("consumer");
        let metadata = consumer
            .fetch_metadata(Some(topic), PATIENCE)
            .expect("metadata");
        let partitions: Vec<i32> = metadata.topics()[0]
            .partitions()
            .iter()
            .map(rdkafka::metadata::MetadataPartition::id)
            .collect();
        let mut list = TopicPartitionList::new();
        let mut open = BTreeSet::new();
        for partition in partitions {
            let (start, _) = watermarks(&consumer, topic, partition);
            list.add_partition_offset(topic, partition, Offset::Offset(start))
                .expect("an offset");
            open.insert(partition);
        }
        consumer.assign(&list).expect("assign");
        let mut log = Log::new();
        let due = Instant::now() + 3 * PATIENCE;
        while !open.is_empty() {
            assert!(
                Instant::now() < due,
                "dump of {topic} never reached the end of {open:?}"
            );
            match consumer.poll(Duration::from_millis(200)) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                // a broker that went away, or is down: the client looks for another by itself
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
                ))) => {}
                Some(Err(error)) => panic!("dump of {topic}: {error}"),
                Some(Ok(message)) => {
                    let record = read(&message);
                    if open.contains(&record.partition) {
                        log.entry(record.partition).or_default().push(record);
                    }
                }
            }
        }
        log
    }
}

/// With the settings that a test's topic has.
fn configured<'a>(mut new: NewTopic<'a>, config: &[(&'a str, &'a str)]) -> NewTopic<'a> {
    if !config.iter().any(|(k, _)| *k == "retention.ms") {
        new = new.set("retention.ms", "-1");
    }
    // Kafka 4 refuses timestamps more than an hour ahead, unless told otherwise (H18).
    for key in [
        "message.timestamp.after.max.ms",
        "message.timestamp.before.max.ms",
    ] {
        new = new.set(key, "9223372036854775807");
    }
    for (key, value) in config {
        new = new.set(key, value);
    }
    new
}

/// A borrowed message as an owned record.
fn read(message: &BorrowedMessage<'_>) -> Record {
    let raw = message.ptr();
    // SAFETY: the message is alive for this call; librdkafka owns every pointer read below for as long as it is.
    unsafe {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        let ts = sys::rd_kafka_message_timestamp(raw, &raw mut kind);
        let (timestamp, timestamp_type) = match kind {
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME => (Some(ts), "create"),
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => {
                (Some(ts), "logappend")
            }
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => (None, "none"),
        };
        let bytes = |pointer: *const u8, len: usize| {
            (!pointer.is_null()).then(|| std::slice::from_raw_parts(pointer, len).to_vec())
        };
        let mut headers = Vec::new();
        let mut list = std::ptr::null_mut();
        if sys::rd_kafka_message_headers(raw, &raw mut list)
            == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
            let mut i = 0;
            while sys::rd_kafka_header_get_all(
                list,
                i,
                &raw mut name,
                &raw mut value,
                &raw mut size,
            ) == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
            {
                headers.push((
                    CStr::from_ptr(name).to_bytes().to_vec(),
                    bytes(value.cast(), size),
                ));
                i += 1;
            }
        }
        Record {
            partition: (*raw).partition,
            offset: (*raw).offset,
            timestamp,
            timestamp_type,
            key: bytes((*raw).key.cast::<u8>().cast_const(), (*raw).key_len),
            value: bytes((*raw).payload.cast::<u8>().cast_const(), (*raw).len),
            headers,
        }
    }
}

/// What to produce.
#[derive(Debug, Clone, Default)]
pub struct Message<'a> {
    /// Kafka partition.
    pub partition: i32,
    /// None is null.
    pub key: Option<&'a [u8]>,
    /// None is null.
    pub value: Option<&'a [u8]>,
    /// Milliseconds; none leaves it to the client.
    pub timestamp: Option<i64>,
    /// Header keys here are UTF-8: raw ones go through [`Feed::send_raw_header`].
    pub headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

/// A producer that waits for every acknowledgement at [`Feed::flush`].
#[allow(missing_debug_implementations, reason = "the producer within has none")]
pub struct Feed {
    producer: ThreadedProducer<Delivered>,
    delivered: Delivered,
}

/// Keeps the first record that the broker did not take: a test whose input is not what it thinks proves nothing.
#[derive(Debug, Clone, Default)]
struct Delivered(Arc<Mutex<Option<String>>>);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        // What an aborted transaction had not sent yet is thrown away, as asked.
        let purged = |error: &KafkaError| {
            matches!(
                error.rdkafka_error_code(),
                Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
            )
        };
        if let Err((error, _)) = result
            && !purged(error)
        {
            let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            refused.get_or_insert_with(|| error.to_string());
        }
    }
}

impl Feed {
    /// Queues one record, waiting while the queue is full.
    pub fn send(&self, topic: &str, message: &Message<'_>) {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &message.headers {
            headers = headers.insert(Header { key, value: *value });
        }
        let due = Instant::now() + PATIENCE;
        loop {
            let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(message.partition);
            if let Some(key) = message.key {
                record = record.key(key);
            }
            if let Some(value) = message.value {
                record = record.payload(value);
            }
            if let Some(timestamp) = message.timestamp {
                record = record.timestamp(timestamp);
            }
            if !message.headers.is_empty() {
                record = record.headers(headers.clone());
            }
            match self.producer.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    assert!(Instant::now() < due, "the producer's queue stays full");
                    self.producer.poll(Duration::from_millis(20));
                }
                Err((error, _)) => panic!("cannot produce to {topic}: {error}"),
            }
        }
    }

    /// Produces one record whose header key is arbitrary bytes (no NUL), and waits for it.
    pub fn send_raw_header(&self, topic: &str, partition: i32, key: &[u8], value: &[u8]) {
        let topic = std::ffi::CString::new(topic).expect("a topic name");
        let rk = self.producer.client().native_ptr();
        // SAFETY: the topic handle and the header list live until the calls below give them up; librdkafka copies
        // names and values, and takes the list over when the call succeeds.
        unsafe {
            let handle = sys::rd_kafka_topic_new(rk, topic.as_ptr(), std::ptr::null_mut());
            assert!(!handle.is_null(), "no topic handle");
            let headers = sys::rd_kafka_headers_new(1);
            let len = |n: usize| isize::try_from(n).expect("a small length");
            sys::rd_kafka_header_add(
                headers,
                key.as_ptr().cast(),
                len(key.len()),
                value.as_ptr().cast(),
                len(value.len()),
            );
            let vars = [
                var(sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT, |v| {
                    v.u.rkt = handle;
                }),
                var(sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION, |v| {
                    v.u.i32_ = partition;
                }),
                var(sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS, |v| {
                    v.u.headers = headers;
                }),
                var(sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE, |v| {
                    v.u.mem.ptr = value.as_ptr().cast_mut().cast();
                    v.u.mem.size = value.len();
                }),
                var(sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS, |v| {
                    v.u.i = 2;
                }),
            ];
            let error = sys::rd_kafka_produceva(rk, vars.as_ptr(), vars.len());
            assert!(error.is_null(), "cannot produce a raw header");
            sys::rd_kafka_topic_destroy(handle);
        }
        self.flush();
    }

    /// Waits until everything queued is acknowledged.
    pub fn flush(&self) {
        self.producer.flush(PATIENCE).expect("flush");
        let refused = self
            .delivered
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        assert_eq!(*refused, None, "the broker did not take a record");
    }

    /// For a producer with a `transactional.id`: call once.
    pub fn init_transactions(&self) {
        self.producer
            .init_transactions(PATIENCE)
            .expect("init transactions");
    }

    /// Begins a transaction.
    pub fn begin(&self) {
        self.producer.begin_transaction().expect("begin");
    }

    /// Commits it.
    pub fn commit(&self) {
        self.producer.commit_transaction(PATIENCE).expect("commit");
    }

    /// Aborts it, after its records have reached the log.
    pub fn abort(&self) {
        self.flush();
        self.producer.abort_transaction(PATIENCE).expect("abort");
    }

    /// `count` records whose values are `size` bytes that no codec makes smaller, spread over `partitions`.
    pub fn fill_noise(&self, topic: &str, partitions: i32, count: u64, size: usize) {
        let mut state = count ^ 0x9e37_79b9_7f4a_7c15;
        let mut value = vec![0_u8; size];
        for n in 0..count {
            for part in value.chunks_mut(8) {
                // xorshift: the same bytes in every run
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                part.copy_from_slice(&state.to_le_bytes()[..part.len()]);
            }
            let partition =
                i32::try_from(n % u64::from(partitions.unsigned_abs())).expect("a partition");
            self.send(
                topic,
                &Message {
                    partition,
                    value: Some(&value),
                    ..Message::default()
                },
            );
        }
        self.flush();
    }

    /// `count` plain records, spread over `partitions`, with a value that names its number.
    pub fn fill(&self, topic: &str, partitions: i32, numbers: std::ops::Range<u64>) {
        for n in numbers {
            let key = format!("user-{}", n % 97);
            let value = format!(r#"{{"n":{n},"user_id":"{key}","event_type":"view"}}"#);
            let partition =
                i32::try_from(n % u64::from(partitions.unsigned_abs())).expect("a partition");
            self.send(
                topic,
                &Message {
                    partition,
                    key: Some(key.as_bytes()),
                    value: Some(value.as_bytes()),
                    ..Message::default()
                },
            );
        }
        self.flush();
    }
}

/// One argument of `rd_kafka_produceva`.
fn var(
    kind: sys::rd_kafka_vtype_t,
    set: impl FnOnce(&mut sys::rd_kafka_vu_t),
) -> sys::rd_kafka_vu_t {
    // SAFETY: the struct is plain data; all zeroes is a valid value of it.
    let mut v: sys::rd_kafka_vu_t = unsafe { std::mem::zeroed() };
    v.vtype = kind;
    set(&mut v);
    v
}

/// Log start and end. A leader that has just changed does not answer at once.
fn watermarks(consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
    let due = Instant::now() + PATIENCE;
    loop {
        match consumer.fetch_watermarks(topic, partition, PATIENCE) {
            Ok(bounds) => return bounds,
            Err(error) if Instant::now() >= due => panic!("watermarks: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
