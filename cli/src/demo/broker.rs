//! Kafka for the demo: librdkafka's mock cluster inside this process, and the producer that fills it.
//!
//! Its log keeps 5 MB or 100,000 records per partition and forgets the rest at once: a very short retention. So the
//! producer never runs further ahead of the archive than [`Shared::allow`] says. Both live on one thread of their own;
//! archiver and jobs reach the broker over TCP like any other. It does transactions, but knows neither of aborted ones nor how
//! to make topics: so all are made at the start, and no process is killed while it writes to one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, ProducerContext};

use super::clickstream::{Click, Clickstream};
use super::witness::Witness;
use crate::failure::{Failure, Status};

/// How long the broker may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Records that are handed over before the producer looks up again.
const RUN: usize = 256;

/// A broker with its producer. Dropping it ends both.
#[derive(Debug)]
pub(super) struct Broker {
    /// What thread and demo share.
    pub(super) shared: Arc<Shared>,
    /// `host:port`.
    pub(super) bootstrap: String,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the producer is told, and what it tells.
#[derive(Debug, Default)]
pub(super) struct Shared {
    target: AtomicU64,
    allowed: AtomicU64,
    per_second: AtomicU64,
    delivered: AtomicU64,
    failed: AtomicBool,
    why: Mutex<String>,
    witness: Mutex<Witness>,
}

impl Shared {
    /// Produce until there are so many records, at most so many a second.
    pub(super) fn produce_until(&self, target: u64, per_second: u64) {
        self.per_second.store(per_second, Ordering::SeqCst);
        self.target.store(target, Ordering::SeqCst);
    }

    /// Never have more records than that: what is archived and what the log can hold besides.
    pub(super) fn allow(&self, count: u64) {
        self.allowed.fetch_max(count, Ordering::SeqCst);
    }

    /// Records that the broker acknowledged.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::SeqCst)
    }

    /// Why producing failed, if it did.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.failed.load(Ordering::SeqCst) {
            let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
            return Err(Failure::new(
                Status::Failed,
                format!("demo: producing to the embedded broker failed: {why}"),
            ));
        }
        Ok(())
    }

    /// What was produced.
    pub(super) fn witness(&self) -> MutexGuard<'_, Witness> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, why: &str) {
        let mut held = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_empty() {
            why.clone_into(&mut held);
        }
        drop(held);
        self.failed.store(true, Ordering::SeqCst);
    }
}

impl Broker {
    /// Starts the broker with one topic to produce to, and others, each with its partitions; nothing is produced before
    /// [`Shared::produce_until`].
    pub(super) fn start(
        (topic, partitions): (&str, i32),
        others: &[(&str, i32)],
        seed: u64,
    ) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = sync_channel(1);
        let (ready, bootstrap) = sync_channel(1);
        let work = Work {
            topic: topic.to_owned(),
            partitions,
            others: others
                .iter()
                .map(|(topic, partitions)| ((*topic).to_owned(), *partitions))
                .collect(),
            seed,
            shared: Arc::clone(&shared),
            stopped,
        };
        let thread = std::thread::Builder::new()
            .name("demo-broker".to_owned())
            .spawn(move || work.run(&ready))?;
        let answer = bootstrap
            .recv_timeout(PATIENCE)
            .map_err(|error| error.to_string())
            .and_then(|answer| answer);
        match answer {
            Ok(bootstrap) => Ok(Self {
                shared,
                bootstrap,
                stop: Some(stop),
                thread: Some(thread),
            }),
            Err(why) => Err(Failure::new(
                Status::Failed,
                format!("demo: the embedded broker does not start: {why}"),
            )),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            thread.join().ok();
        }
    }
}

/// Counts what the broker acknowledged, and checks where it put it.
#[derive(Debug)]
struct Acknowledged(Arc<Shared>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    /// The offset that the record must get.
    type DeliveryOpaque = Box<i64>;

    fn delivery(&self, result: &DeliveryResult<'_>, due: Box<i64>) {
        match result {
            Ok(message) if message.offset() == *due => {
                self.0.delivered.fetch_add(1, Ordering::SeqCst);
            }
            Ok(message) => self.0.fail(&format!(
                "record {due} of partition {} got offset {}",
                message.partition(),
                message.offset()
            )),
            Err((error, _)) => self.0.fail(&error.to_string()),
        }
    }
}

struct Work {
    topic: String,
    partitions: i32,
    others: Vec<(String, i32)>,
    seed: u64,
    shared: Arc<Shared>,
    stopped: Receiver<()>,
}

impl Work {
    fn run(self, ready: &SyncSender<Result<String, String>>) {
        let made = self.make();
        let (cluster, producer) = match made {
            Ok(made) => made,
            Err(error) => {
                ready.send(Err(error.to_string())).ok();
                return;
            }
        };
        if ready.send(Ok(cluster.bootstrap_servers())).is_err() {
            return;
        }
        if let Err(error) = self.produce(&producer) {
            self.shared.fail(&error.to_string());
        }
        // The broker stays for its readers, also when producing failed, until the demo ends.
        while matches!(
            self.stopped.recv_timeout(Duration::from_millis(100)),
            Err(RecvTimeoutError::Timeout)
        ) {
            producer.poll(Duration::ZERO);
        }
        drop(producer);
        drop(cluster);
    }

    #[allow(
        clippy::type_complexity,
        reason = "the client library's own generic type, named once"
    )]
    fn make(
        &self,
    ) -> Result<
        (
            MockCluster<'static, rdkafka::producer::DefaultProducerContext>,
            BaseProducer<Acknowledged>,
        ),
        KafkaError,
    > {
        let cluster = MockCluster::new(1)?;
        cluster.create_topic(&self.topic, self.partitions, 1)?;
        for (topic, partitions) in &self.others {
            cluster.create_topic(topic, *partitions, 1)?;
        }
        let producer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("client.id", "everlog-demo")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("queue.buffering.max.messages", "20000")
            .set("compression.codec", "none")
            .create_with_context(Acknowledged(Arc::clone(&self.shared)))?;
        Ok((cluster, producer))
    }

    /// Sends events as fast as target, pace and archive allow; returns when the demo ends.
    fn produce(&self, producer: &BaseProducer<Acknowledged>) -> Result<(), KafkaError> {
        let mut clicks = Clickstream::new(self.seed, self.partitions);
        let mut next = vec![0_i64; usize::try_from(self.partitions).unwrap_or(0)];
        let mut sent = 0_u64;
        let mut credit = 0_f64;
        let mut before = std::time::Instant::now();
        loop {
            match self.stopped.recv_timeout(Duration::from_millis(2)) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            producer.poll(Duration::ZERO);
            let now = std::time::Instant::now();
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a pace"
            )]
            let due = {
                let per_second = self.shared.per_second.load(Ordering::SeqCst) as f64;
                credit += now.duration_since(before).as_secs_f64() * per_second;
                // What was not used while waiting for the archive is not caught up in one burst.
                credit = credit.min(per_second / 20.0 + 1.0);
                credit as u64
            };
            before = now;
            let bound = self
                .shared
                .target
                .load(Ordering::SeqCst)
                .min(self.shared.allowed.load(Ordering::SeqCst));
            let count = due.min(bound.saturating_sub(sent));
            for i in 0..count {
                let Some(click) = clicks.next() else {
                    return Ok(());
                };
                let Some(offset) = usize::try_from(click.partition)
                    .ok()
                    .and_then(|p| next.get_mut(p))
                else {
                    return Ok(());
                };
                self.send(producer, &click, *offset)?;
                *offset += 1;
                if i % RUN as u64 == 0 {
                    producer.poll(Duration::ZERO);
                }
            }
            sent += count;
            #[allow(clippy::cast_precision_loss, reason = "a pace")]
            {
                credit -= count as f64;
            }
        }
    }

    fn send(
        &self,
        producer: &BaseProducer<Acknowledged>,
        click: &Click,
        offset: i64,
    ) -> Result<(), KafkaError> {
        self.shared.witness().saw(click);
        let headers = OwnedHeaders::new_with_capacity(1).insert(Header {
            key: "source",
            value: Some(click.device),
        });
        let mut record = BaseRecord::with_opaque_to(&self.topic, Box::new(offset))
            .partition(click.partition)
            .key(&click.key)
            .payload(&click.value)
            .timestamp(click.timestamp_ms)
            .headers(headers);
        let mut waited = Duration::ZERO;
        loop {
            match producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if waited < PATIENCE =>
                {
                    record = back;
                    let step = Duration::from_millis(10);
                    producer.poll(step);
                    waited += step;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use everlog_kafka::client::KafkaLog;
    use everlog_kafka::{Isolation, Log as _, Membership, ReaderEvent, ReaderOptions, StartAt};
    use std::collections::BTreeMap;

    use everlog_common::{Offset, Partition, TopicName, TopicPartition};

    use super::super::witness::Tally;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_produced_is_what_a_reader_gets_and_what_the_witness_saw() {
        let broker = Broker::start(("clicks", 2), &[], 1).unwrap();
        broker.shared.allow(5_000);
        broker.shared.produce_until(8_000, 1_000_000);
        let properties = BTreeMap::from([
            ("bootstrap.servers".to_owned(), broker.bootstrap.clone()),
            ("fetch.wait.max.ms".to_owned(), "10".to_owned()),
        ]);
        let log = KafkaLog::connect(&properties).unwrap();
        let mut reader = log
            .open(ReaderOptions {
                membership: Membership::Alone,
                isolation: Isolation::ReadCommitted,
                memory_bytes: 16 << 20,
                linger: Duration::from_millis(10),
            })
            .await
            .unwrap();
        let starts: Vec<_> = [0, 1]
            .map(|p| {
                let partition = Partition::new(p).unwrap();
                let topic = TopicName::new("clicks").unwrap();
                let start = StartAt {
                    offset: Offset::ZERO,
                    leader_epoch: None,
                };
                (TopicPartition::new(topic, partition), start)
            })
            .into();
        reader.assign(&starts).await.unwrap();
        let mut tally = Tally::default();
        let mut more = false;
        let due = std::time::Instant::now() + PATIENCE;
        while tally.count() < 8_000 {
            assert!(std::time::Instant::now() < due, "{}", tally.count());
            broker.shared.check().unwrap();
            for event in reader.poll(Duration::from_millis(50)).await.unwrap() {
                if let ReaderEvent::Fetched(fetched) = event {
                    tally.add(fetched.source.partition, &fetched.columns);
                }
            }
            // The producer stops at what is allowed, and goes on when more is. A reader can see a record before its
            // producer hears that it was taken.
            assert!(tally.count() <= 5_000 || more);
            assert!(broker.shared.delivered() <= 5_000 || more);
            if broker.shared.delivered() == 5_000 && tally.count() == 5_000 {
                broker.shared.allow(10_000);
                more = true;
            }
        }
        assert_eq!(tally.sums(), broker.shared.witness().sums());
        reader.close().await.unwrap();
    }
}
