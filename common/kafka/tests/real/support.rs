//! One real broker for all tests of a binary, and a producer that writes every kind of record.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{TimestampType, TopicName, TopicPartition};
use everlog_kafka::Log;
use everlog_kafka::client::KafkaLog;
use everlog_kafka::conformance::{Ending, World};
use everlog_kafka::memory::MemoryRecord;
use everlog_services::{free_ports, script};
use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use rdkafka_sys as sys;

pub const WAIT: Duration = Duration::from_secs(30);

/// A running broker. The watcher holds its standard input open: when this process ends, however it ends, the watcher
/// stops the broker and removes its folder.
#[derive(Debug)]
pub struct Broker {
    dir: PathBuf,
    port: u16,
    nodes: u16,
    _watcher: Mutex<Child>,
}

impl Broker {
    /// Starts a broker; panics with the script's words when that fails.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more settings, as key=value.
    pub fn start_with(settings: &[&str]) -> Self {
        Self::start_nodes(1, settings)
    }

    /// A cluster.
    #[allow(
        clippy::zombie_processes,
        reason = "the watcher ends after this process, by design"
    )]
    pub fn start_nodes(nodes: u16, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("everlog-kafka-test-")
            .tempdir()
            .unwrap()
            .keep();
        let watcher = Command::new("setsid")
            .args([
                "bash",
                "-c",
                "cat >/dev/null; \"$1\" stop \"$2\" >/dev/null 2>&1; rm -rf \"$2\"",
                "watch",
            ])
            .arg(script("kafka.sh"))
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut failures = Vec::new();
        for _ in 0..3 {
            let port = free_ports(2 * nodes);
            let started = Command::new(script("kafka.sh"))
                .arg("start")
                .arg(&dir)
                .arg(port.to_string())
                .args(["--nodes", &nodes.to_string()])
                // rebalances of the new protocol within a test's patience
                .args(["--set", "group.consumer.min.heartbeat.interval.ms=200"])
                .args(["--set", "group.consumer.heartbeat.interval.ms=200"])
                .args(["--set", "group.consumer.min.session.timeout.ms=2000"])
                .args(["--set", "group.consumer.session.timeout.ms=6000"])
                .args(["--set", "group.min.session.timeout.ms=1000"])
                .args(settings.iter().flat_map(|s| ["--set", *s]))
                .stdout(Stdio::null())
                .output()
                .unwrap();
            if started.status.success() {
                return Self {
                    dir,
                    port,
                    nodes,
                    _watcher: Mutex::new(watcher),
                };
            }
            failures.push(String::from_utf8_lossy(&started.stderr).into_owned());
            std::fs::remove_dir_all(&dir).ok();
        }
        panic!("no broker: {failures:?}");
    }

    pub fn bootstrap(&self) -> String {
        let of = |n: u16| format!("127.0.0.1:{}", self.port + 2 * n);
        (0..self.nodes).map(of).collect::<Vec<_>>().join(",")
    }

    fn attempt(&self, args: &[&str]) -> Result<(), String> {
        let mut child = Command::new(script("kafka.sh"))
            .arg(args[0])
            .arg(&self.dir)
            .args(&args[1..])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = String::new();
        child.stderr.take().unwrap().read_to_string(&mut words).ok();
        if child.wait().unwrap().success() {
            Ok(())
        } else {
            Err(words)
        }
    }

    fn run(&self, args: &[&str]) {
        self.attempt(args)
            .unwrap_or_else(|words| panic!("{args:?}: {words}"));
    }

    /// Where its partitions are.
    pub fn data(&self) -> PathBuf {
        self.dir.join("node1").join("data")
    }

    /// One of Kafka's own tools, told where the broker is.
    pub fn tool(&self, args: &[&str]) {
        let done = Command::new(script("kafka.sh"))
            .arg("tool")
            .arg(args[0])
            .args(["--bootstrap-server", &self.bootstrap()])
            .args(&args[1..])
            .output()
            .unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
    }

    /// Nobody may read or describe the topic any more (with an authorizer).
    pub fn close_topic(&self, topic: &TopicName) {
        self.tool(&[
            "org.apache.kafka.tools.AclCommand",
            "--add",
            "--deny-principal",
            "User:ANONYMOUS",
            "--operation",
            "All",
            "--topic",
            topic.as_str(),
            "--force",
        ]);
    }

    /// Kills the broker the hard way.
    pub fn kill(&self) {
        self.kill_node(1);
    }

    /// One of several.
    pub fn kill_node(&self, node: i32) {
        self.run(&["kill-node", &node.to_string()]);
    }

    /// Stops it in order.
    pub fn stop(&self) {
        self.run(&["stop-node", "1"]);
    }

    /// Starts it again.
    pub fn start_again(&self) {
        self.start_node(1);
    }

    /// One of several.
    pub fn start_node(&self, node: i32) {
        // threads of a killed process may hold its ports for a moment longer than the process lives
        let mut words = String::new();
        for _ in 0..5 {
            match self.attempt(&["start-node", &node.to_string()]) {
                Ok(()) => return,
                Err(failed) => words = failed,
            }
        }
        panic!("{words}");
    }

    /// The kernel takes its time away: connections stay, nothing answers.
    pub fn freeze(&self) {
        self.run(&["pause-node", "1"]);
    }

    pub fn thaw(&self) {
        self.run(&["resume-node", "1"]);
    }
}

/// The broker that all tests of this binary share.
pub fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(Broker::start)
}

/// Remembers records that the broker refused.
#[derive(Debug, Default)]
pub struct Deliveries {
    refused: Mutex<Vec<String>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.refused.lock().unwrap().push(error.to_string());
        }
    }
}

pub type Producer = BaseProducer<Deliveries>;

/// The world on a real broker.
pub struct Real {
    pub log: KafkaLog,
    pub bootstrap: String,
    open_transactions: Mutex<Vec<Producer>>,
}

static NAMES: AtomicU32 = AtomicU32::new(0);

pub fn fresh(prefix: &str) -> String {
    let n = NAMES.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{n}")
}

impl Real {
    pub fn new() -> Self {
        Self::at(broker().bootstrap(), &[])
    }

    /// Whose readers are librdkafka's.
    pub fn of_librdkafka() -> Self {
        Self::with(&[("everlog.fetch.client", "librdkafka")])
    }

    /// With more properties for the log under test.
    pub fn with(properties: &[(&str, &str)]) -> Self {
        Self::at(broker().bootstrap(), properties)
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "what to log is a matter of the test run"
    )]
    pub fn at(bootstrap: String, properties: &[(&str, &str)]) -> Self {
        static LOGGING: OnceLock<()> = OnceLock::new();
        LOGGING.get_or_init(|| {
            if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("EVERLOG_TEST_LOG") {
                tracing_subscriber::fmt()
                    .with_env_filter(filter)
                    .with_writer(std::io::stderr)
                    .init();
            }
        });
        let mut all = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap.clone())]);
        if let Ok(contexts) = std::env::var("EVERLOG_TEST_DEBUG") {
            all.insert("debug".to_owned(), contexts);
        }
        all.extend(
            properties
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
        Self {
            log: KafkaLog::connect(&all).unwrap(),
            bootstrap,
            open_transactions: Mutex::default(),
        }
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()
            .unwrap()
    }

    pub async fn create_with(&self, name: &TopicName, partitions: i32, settings: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name.as_str(), partitions, TopicReplication::Fixed(1))
            .set("retention.ms", "-1")
            // 2099 is a timestamp too
            .set("message.timestamp.after.max.ms", "9223372036854775807");
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let done = self
            .admin()
            .create_topics(&[topic], &options())
            .await
            .unwrap();
        done[0].as_ref().unwrap();
        self.wait_for_topic(name, usize::try_from(partitions).unwrap())
            .await;
    }

    pub async fn delete_topic(&self, name: &TopicName) {
        let done = self
            .admin()
            .delete_topics(&[name.as_str()], &options())
            .await
            .unwrap();
        done[0].as_ref().unwrap();
    }

    /// Until the topic has so many partitions, each with a leader that answers.
    async fn wait_for_topic(&self, name: &TopicName, partitions: usize) {
        let all: Vec<_> = (0..i32::try_from(partitions).unwrap())
            .map(|n| everlog_kafka::conformance::partition(name, n))
            .collect();
        for _ in 0..600 {
            let bounds = self
                .log
                .bounds(&all, everlog_kafka::Isolation::ReadUncommitted)
                .await;
            if bounds.is_ok_and(|b| b.len() == partitions) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} did not come up");
    }

    pub fn producer(&self, settings: &[(&str, &str)]) -> Producer {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("message.max.bytes", "200000000")
            .set("queue.buffering.max.kbytes", "1048576");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        config.create_with_context(Deliveries::default()).unwrap()
    }

    /// The broker that leads a partition, as the cluster says.
    pub fn leader(&self, tp: &TopicPartition) -> i32 {
        let metadata = self
            .admin()
            .inner()
            .fetch_metadata(Some(tp.topic.as_str()), WAIT)
            .unwrap();
        let found = metadata.topics()[0].partitions().iter();
        let mut found = found.filter(|p| p.id() == tp.partition.get());
        found.next().unwrap().leader()
    }

    /// What a group committed.
    pub fn committed(&self, group: &str, tp: &TopicPartition) -> Option<i64> {
        let consumer: rdkafka::consumer::BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(tp.topic.as_str(), tp.partition.get());
        let found = rdkafka::consumer::Consumer::committed_offsets(&consumer, list, WAIT).ok()?;
        match found.elements().first()?.offset() {
            rdkafka::Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }

    /// Sends without waiting for the broker.
    pub fn send(producer: &Producer, tp: &TopicPartition, records: &[MemoryRecord]) {
        for record in records {
            assert!(send(producer, tp, record), "the producer's queue is full");
        }
        producer.poll(Duration::ZERO);
    }

    pub fn produce_with(producer: &Producer, tp: &TopicPartition, records: &[MemoryRecord]) {
        for record in records {
            while !send(producer, tp, record) {
                producer.poll(Duration::from_millis(10));
            }
        }
        tokio::task::block_in_place(|| producer.flush(WAIT).unwrap());
        let refused = producer.context().refused.lock().unwrap();
        assert!(refused.is_empty(), "{tp}: {refused:?}");
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(WAIT))
        .operation_timeout(Some(WAIT))
}

/// Sends any record; false when the producer's queue is full.
#[allow(
    unsafe_code,
    reason = "header names that are not UTF-8 and timestamp -1 exist only in the C interface"
)]
fn send(producer: &Producer, tp: &TopicPartition, record: &MemoryRecord) -> bool {
    use sys::rd_kafka_vtype_t as V;
    let topic = CString::new(tp.topic.as_str()).unwrap();
    let memory = |bytes: Option<&Vec<u8>>| match bytes {
        None => sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: std::ptr::null_mut(),
            size: 0,
        },
        Some(bytes) => sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: bytes.as_ptr().cast_mut().cast(),
            size: bytes.len(),
        },
    };
    // SAFETY: all pointers outlive the call, which copies (F_COPY); the headers belong to the producer when it succeeds
    // and are freed here when it does not.
    unsafe {
        let headers = sys::rd_kafka_headers_new(record.headers.len());
        for (name, value) in &record.headers {
            let (data, size) = value.as_ref().map_or((std::ptr::null(), 0), |v| {
                (v.as_ptr().cast(), isize::try_from(v.len()).unwrap())
            });
            sys::rd_kafka_header_add(
                headers,
                name.as_ptr().cast::<c_char>(),
                isize::try_from(name.len()).unwrap(),
                data,
                size,
            );
        }
        let vu = |vtype, u| sys::rd_kafka_vu_s { vtype, u };
        let mut all = vec![
            vu(
                V::RD_KAFKA_VTYPE_TOPIC,
                sys::rd_kafka_vu_s__bindgen_ty_1 {
                    cstr: topic.as_ptr(),
                },
            ),
            vu(
                V::RD_KAFKA_VTYPE_PARTITION,
                sys::rd_kafka_vu_s__bindgen_ty_1 {
                    i32_: tp.partition.get(),
                },
            ),
            vu(
                V::RD_KAFKA_VTYPE_VALUE,
                sys::rd_kafka_vu_s__bindgen_ty_1 {
                    mem: memory(record.value.as_ref()),
                },
            ),
            vu(
                V::RD_KAFKA_VTYPE_KEY,
                sys::rd_kafka_vu_s__bindgen_ty_1 {
                    mem: memory(record.key.as_ref()),
                },
            ),
            vu(
                V::RD_KAFKA_VTYPE_TIMESTAMP,
                sys::rd_kafka_vu_s__bindgen_ty_1 {
                    i64_: if record.timestamp_type == TimestampType::None {
                        -1
                    } else {
                        record.timestamp_ms
                    },
                },
            ),
            vu(
                V::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::rd_kafka_vu_s__bindgen_ty_1 {
                    i: sys::RD_KAFKA_MSG_F_COPY,
                },
            ),
        ];
        all.push(vu(
            V::RD_KAFKA_VTYPE_HEADERS,
            sys::rd_kafka_vu_s__bindgen_ty_1 { headers },
        ));
        let error =
            sys::rd_kafka_produceva(producer.client().native_ptr(), all.as_ptr(), all.len());
        if error.is_null() {
            return true;
        }
        let code = sys::rd_kafka_error_code(error);
        sys::rd_kafka_error_destroy(error);
        sys::rd_kafka_headers_destroy(headers);
        assert_eq!(
            code,
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL,
            "produce to {tp}"
        );
        false
    }
}

#[async_trait]
impl World for Real {
    fn log(&self) -> &dyn Log {
        &self.log
    }

    fn fresh_name(&self) -> TopicName {
        TopicName::new(&fresh("topic")).unwrap()
    }

    async fn create_topic(&self, name: &TopicName, partitions: i32) {
        self.create_with(name, partitions, &[]).await;
    }

    async fn recreate_topic(&self, name: &TopicName) {
        self.delete_topic(name).await;
        for _ in 0..600 {
            let gone = self.log.describe(std::slice::from_ref(name)).await;
            if gone.is_ok_and(|found| found.is_empty()) {
                self.create_with(name, 1, &[]).await;
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} was not deleted");
    }

    async fn add_partitions(&self, name: &TopicName, total: i32) {
        let total = usize::try_from(total).unwrap();
        let done = self
            .admin()
            .create_partitions(&[NewPartitions::new(name.as_str(), total)], &options())
            .await
            .unwrap();
        done[0].as_ref().unwrap();
        self.wait_for_topic(name, total).await;
    }

    async fn produce(&self, tp: &TopicPartition, records: Vec<MemoryRecord>) {
        let producer = self.producer(&[]);
        Self::produce_with(&producer, tp, &records);
    }

    async fn transaction(&self, tp: &TopicPartition, records: Vec<MemoryRecord>, ending: Ending) {
        let producer = self.producer(&[
            ("transactional.id", &fresh("txn")),
            ("transaction.timeout.ms", "600000"),
        ]);
        tokio::task::block_in_place(|| {
            producer.init_transactions(WAIT).unwrap();
            producer.begin_transaction().unwrap();
        });
        Self::produce_with(&producer, tp, &records);
        tokio::task::block_in_place(|| match ending {
            Ending::Commit => producer.commit_transaction(WAIT).unwrap(),
            Ending::Abort => producer.abort_transaction(WAIT).unwrap(),
            Ending::Open => self.open_transactions.lock().unwrap().push(producer),
        });
    }

    async fn delete_records(&self, tp: &TopicPartition, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(
            tp.topic.as_str(),
            tp.partition.get(),
            rdkafka::Offset::Offset(before),
        )
        .unwrap();
        self.admin()
            .delete_records(&list, &options())
            .await
            .unwrap();
    }
}
