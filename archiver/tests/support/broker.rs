//! A real broker for one test binary, and a producer.

#![allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "every test binary uses its own part; tests wait by the machine's clock"
)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use everlog_common::TopicPartition;
use everlog_services::{free_ports, script};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

const WAIT: Duration = Duration::from_secs(30);

/// A running broker. The watcher holds its standard input open: when this process ends, however it ends, the watcher
/// stops the broker and removes its folder.
#[derive(Debug)]
pub struct Broker {
    dir: PathBuf,
    pub bootstrap: String,
    _watcher: Mutex<Child>,
}

impl Broker {
    /// The broker that all tests of this binary share.
    pub fn shared() -> &'static Self {
        static BROKER: OnceLock<Broker> = OnceLock::new();
        BROKER.get_or_init(Self::start)
    }

    fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("everlog-archiver-test-")
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
            let port = free_ports(2);
            let started = Command::new(script("kafka.sh"))
                .arg("start")
                .arg(&dir)
                .arg(port.to_string())
                .args(["--set", "group.min.session.timeout.ms=1000"])
                .args(["--set", "group.initial.rebalance.delay.ms=0"])
                .stdout(Stdio::null())
                .output()
                .unwrap();
            if started.status.success() {
                return Self {
                    dir,
                    bootstrap: format!("127.0.0.1:{port}"),
                    _watcher: Mutex::new(watcher),
                };
            }
            failures.push(String::from_utf8_lossy(&started.stderr).into_owned());
            std::fs::remove_dir_all(&dir).ok();
        }
        panic!("no broker: {failures:?}");
    }

    /// Runs a verb of the script on the only node: `kill-node`, `start-node`, `pause-node`, `resume-node`.
    pub fn node(&self, verb: &str) {
        let done = Command::new(script("kafka.sh"))
            .arg(verb)
            .arg(&self.dir)
            .arg("1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(done.success(), "{verb}");
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config().create().unwrap()
    }

    pub async fn create(&self, topic: &str, partitions: i32) {
        let new =
            NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("retention.ms", "-1");
        let due = Instant::now() + WAIT;
        loop {
            let done = self
                .admin()
                .create_topics([&new], &options())
                .await
                .unwrap()
                .remove(0);
            match done {
                Ok(_) => break,
                // still being deleted
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) if Instant::now() < due => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("create {topic}: {error:?}"),
            }
        }
        // leaders take a moment
        let producer = self.producer(&[]);
        while Instant::now() < due {
            let found = producer
                .client()
                .fetch_metadata(Some(topic), WAIT)
                .ok()
                .and_then(|m| m.topics().first().map(|t| t.partitions().len()));
            if found == usize::try_from(partitions).ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("topic {topic} did not come up");
    }

    pub async fn delete(&self, topic: &str) {
        let done = self
            .admin()
            .delete_topics(&[topic], &options())
            .await
            .unwrap();
        done[0].as_ref().unwrap();
    }

    pub async fn grow(&self, topic: &str, partitions: usize) {
        let new = NewPartitions::new(topic, partitions);
        let done = self
            .admin()
            .create_partitions([&new], &options())
            .await
            .unwrap();
        done[0].as_ref().unwrap();
    }

    pub async fn delete_records(&self, tp: &TopicPartition, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(
            tp.topic.as_str(),
            tp.partition.get(),
            Offset::Offset(before),
        )
        .unwrap();
        self.admin()
            .delete_records(&list, &options())
            .await
            .unwrap();
    }

    pub fn producer(&self, extra: &[(&str, &str)]) -> BaseProducer {
        let mut config = self.config();
        config
            .set("linger.ms", "2")
            .set("message.max.bytes", "10000000");
        for (key, value) in extra {
            config.set(*key, *value);
        }
        config.create().unwrap()
    }

    pub fn transactional(&self, id: &str) -> BaseProducer {
        let producer = self.producer(&[("transactional.id", id)]);
        producer.init_transactions(WAIT).unwrap();
        producer
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(WAIT))
}

/// Sends numbered records and waits for all of them.
pub fn send(producer: &BaseProducer, tp: &TopicPartition, values: std::ops::Range<usize>) {
    queue(producer, tp, values);
    producer.flush(WAIT).unwrap();
}

/// Sends without waiting.
pub fn queue(producer: &BaseProducer, tp: &TopicPartition, values: std::ops::Range<usize>) {
    for i in values {
        let (key, value) = (format!("k{}", i % 7), format!("{tp}:{i}"));
        let mut record = BaseRecord::to(tp.topic.as_str())
            .partition(tp.partition.get())
            .key(&key)
            .payload(&value);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    producer.poll(Duration::from_millis(5));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
    }
}

/// One transaction of `values`.
pub fn transaction(
    producer: &BaseProducer,
    tp: &TopicPartition,
    values: std::ops::Range<usize>,
    commit: bool,
) {
    producer.begin_transaction().unwrap();
    send(producer, tp, values);
    if commit {
        producer.commit_transaction(WAIT).unwrap();
    } else {
        producer.abort_transaction(WAIT).unwrap();
    }
}
