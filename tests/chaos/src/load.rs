//! Producers: idempotent ones, and transactional ones that abort, give up in the middle and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use everlog_tests::broker::{Broker, Feed, Message, PATIENCE};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

use crate::actors::Shared;

type Transactional = ThreadedProducer<DefaultProducerContext>;

/// Event time of the first record.
const EPOCH: i64 = 1_700_000_000_000;

/// Records with everything in them: null, empty, no text, headers, event times that go back.
pub fn fill(feed: &Feed, topic: &str, partitions: i32, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let key = format!("user-{}", n % 97);
        let value = [format!("{topic} {n} ").as_bytes(), &[0xff, 0, b'\n']].concat();
        let number = i64::try_from(n).expect("small");
        let headers = match n % 7 {
            0 => vec![("a", Some(&b"1"[..])), ("b", None), ("a", Some(&b""[..]))],
            _ => Vec::new(),
        };
        let partition = n % u64::from(partitions.unsigned_abs());
        feed.send(
            topic,
            &Message {
                partition: i32::try_from(partition).expect("a partition"),
                key: (n % 11 != 0).then_some(key.as_bytes()),
                value: match n % 29 {
                    0 => None,
                    1 => Some(b""),
                    _ => Some(&value),
                },
                timestamp: Some(EPOCH + number * 10 - number % 3 * 1_700),
                headers,
            },
        );
    }
    feed.flush();
}

/// Produces `size` records to each of `topics` every `pause`, until nothing is started any more; all that was sent is
/// acknowledged and counted.
pub fn idempotent(
    broker: &Broker,
    shared: &Shared,
    topics: &[(&str, i32, &AtomicU64)],
    size: u64,
    pause: Duration,
) {
    let feed = broker.producer(&[
        ("enable.idempotence", "true"),
        ("socket.timeout.ms", "10000"),
    ]);
    while shared.goes_on() {
        for (topic, partitions, sent) in topics {
            let n = sent.load(Ordering::SeqCst);
            fill(&feed, topic, *partitions, n..n + size);
            sent.store(n + size, Ordering::SeqCst);
        }
        std::thread::sleep(pause);
    }
}

/// What became of transactions.
#[derive(Debug, Default)]
pub struct Transactions {
    /// Committed, as the broker said.
    pub committed: AtomicU64,
    /// Aborted on purpose.
    pub aborted: AtomicU64,
    /// Left in the middle by a producer that went away.
    pub abandoned: AtomicU64,
    /// Aborted because of an error.
    pub failed: AtomicU64,
}

enum Trouble {
    /// Abort, and go on.
    Abort,
    /// A new producer.
    Fatal(String),
}

fn trouble(error: &KafkaError) -> Trouble {
    match error {
        KafkaError::Transaction(e) if e.txn_requires_abort() => Trouble::Abort,
        other => Trouble::Fatal(other.to_string()),
    }
}

/// Transactions over the partitions of `topic`, until nothing is started any more.
pub fn transactional(
    bootstrap: &str,
    shared: &Shared,
    topic: &str,
    partitions: i32,
    done: &Arc<Transactions>,
) {
    let mut rng = StdRng::seed_from_u64(shared.seed ^ 0x7478_6e73);
    let mut producer = connect(bootstrap, shared);
    let mut n = 0;
    while let Some(p) = &producer {
        if !shared.goes_on() {
            return;
        }
        let size = rng.random_range(1..60);
        let fate = rng.random_range(0..100);
        match transaction(p, topic, partitions, n..n + size, fate) {
            Ok(counter) => {
                let counter = match counter {
                    Fate::Committed => &done.committed,
                    Fate::Aborted => &done.aborted,
                    Fate::Abandoned => &done.abandoned,
                };
                counter.fetch_add(1, Ordering::SeqCst);
                if fate >= 95 {
                    producer = connect(bootstrap, shared);
                }
            }
            Err(error) => {
                done.failed.fetch_add(1, Ordering::SeqCst);
                let aborted = match trouble(&error) {
                    Trouble::Abort => p.abort_transaction(PATIENCE).is_ok(),
                    Trouble::Fatal(why) => {
                        println!("  a transactional producer starts anew: {why}");
                        false
                    }
                };
                if !aborted {
                    producer = connect(bootstrap, shared);
                }
            }
        }
        n += size;
        std::thread::sleep(Duration::from_millis(200));
    }
}

enum Fate {
    Committed,
    Aborted,
    Abandoned,
}

/// A producer that has fenced the one before it, and ended what that one had left open; none where that cannot be had
/// before it is over.
fn connect(bootstrap: &str, shared: &Shared) -> Option<Transactional> {
    loop {
        let producer: Transactional = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("transactional.id", "chaos")
            .set("transaction.timeout.ms", "20000")
            .set("linger.ms", "5")
            .set("socket.timeout.ms", "10000")
            .create()
            .expect("producer");
        if producer.init_transactions(Duration::from_secs(20)).is_ok() {
            return Some(producer);
        }
        if !shared.goes_on() {
            return None;
        }
    }
}

fn transaction(
    producer: &Transactional,
    topic: &str,
    partitions: i32,
    numbers: std::ops::Range<u64>,
    fate: u32,
) -> Result<Fate, KafkaError> {
    producer.begin_transaction()?;
    for n in numbers {
        let partition = n % u64::from(partitions.unsigned_abs());
        let value = format!("transaction of fate {fate}, record {n}");
        let record = BaseRecord::<[u8], [u8]>::to(topic)
            .partition(i32::try_from(partition).expect("a partition"))
            .payload(value.as_bytes());
        producer.send(record).map_err(|(error, _)| error)?;
    }
    // also where it comes to nothing its records reach the log before
    producer.flush(PATIENCE)?;
    match fate {
        0..80 => {
            let due = Instant::now() + PATIENCE;
            loop {
                match producer.commit_transaction(Duration::from_secs(20)) {
                    Ok(()) => return Ok(Fate::Committed),
                    Err(KafkaError::Transaction(e)) if e.is_retriable() && Instant::now() < due => {
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        80..95 => {
            producer.abort_transaction(PATIENCE)?;
            Ok(Fate::Aborted)
        }
        _ => Ok(Fate::Abandoned),
    }
}
