//! The stream on a real broker: what holding does to a real client, which pauses, forgets what it had fetched, and begins again.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::clock::{SeededIds, SystemClock};
use everlog_common::{Clock, Partition};
use everlog_kafka::client::KafkaLog;
use everlog_replayer::{Advance, EventStream, ReplayRequest, Until};
use everlog_services::Kafka;
use everlog_table::catalog::memory::MemoryCatalog;
use object_store::memory::InMemory;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use support::{Replayed, T, World, p, topic};

const WAIT: Duration = Duration::from_secs(30);
const PARTITIONS: i32 = 4;

async fn create(kafka: &Kafka) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &kafka.bootstrap)
        .create()
        .unwrap();
    let new = NewTopic::new(T, PARTITIONS, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(WAIT));
    let done = admin.create_topics([&new], &options).await.unwrap();
    done[0].as_ref().unwrap();
}

/// Transactions of numbered records of a kilobyte each, into all partitions; every third one is aborted.
struct Feed {
    producer: BaseProducer,
    transactions: usize,
    /// What is to be seen, per partition.
    values: BTreeMap<i32, Vec<String>>,
}

impl Feed {
    fn new(kafka: &Kafka) -> Self {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &kafka.bootstrap)
            .set("transactional.id", "feed")
            .set("linger.ms", "2")
            .create()
            .unwrap();
        producer.init_transactions(WAIT).unwrap();
        Self {
            producer,
            transactions: 0,
            values: BTreeMap::new(),
        }
    }

    fn write(&mut self, each: usize) {
        self.producer.begin_transaction().unwrap();
        let commits = self.next_commits();
        for partition in 0..PARTITIONS {
            for n in 0..each {
                let value = format!("{}/{n} {}", self.transactions, "x".repeat(1000));
                let record = BaseRecord::<(), _>::to(T).partition(partition);
                self.producer.send(record.payload(&value)).unwrap();
                if commits {
                    self.values.entry(partition).or_default().push(value);
                }
            }
        }
        self.producer.flush(WAIT).unwrap();
        if commits {
            self.producer.commit_transaction(WAIT).unwrap();
        } else {
            self.producer.abort_transaction(WAIT).unwrap();
        }
        self.transactions += 1;
    }

    fn next_commits(&self) -> bool {
        self.transactions % 3 != 2
    }

    fn count(&self) -> usize {
        self.values.values().map(Vec::len).sum()
    }
}

/// Reads until nothing came for a while, or `batches` did.
async fn read(
    stream: &mut EventStream,
    replayed: &mut Replayed,
    held: &BTreeSet<Partition>,
    batches: usize,
) {
    stream.hold(held);
    let mut left = batches;
    while left > 0 {
        let next = tokio::time::timeout(Duration::from_millis(400), stream.advance());
        match next.await {
            Ok(Ok(Advance::Batch(batch))) => {
                assert!(!held.contains(&batch.partition));
                replayed.take(&batch);
                left -= 1;
            }
            Ok(Ok(Advance::Changed)) => {}
            Ok(Ok(Advance::End)) => panic!("it never ends"),
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_and_released_partitions_of_a_real_log_lose_and_repeat_nothing() {
    let kafka = Kafka::start();
    create(&kafka).await;
    let mut feed = Feed::new(&kafka);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let properties = BTreeMap::from([("bootstrap.servers".to_owned(), kafka.bootstrap.clone())]);
    let log = KafkaLog::connect(&properties).unwrap();
    let ids = Arc::new(SeededIds::new(7));
    let store = Arc::new(InMemory::new());
    let catalog = MemoryCatalog::new(store, support::WAREHOUSE, Arc::clone(&clock), ids);
    let world = World::new(clock, Arc::new(log), Arc::new(catalog));
    for _ in 0..6 {
        feed.write(50);
    }
    world.commit_all(&topic(T), 10_000).await;
    let archived = feed.count();

    let request = ReplayRequest {
        // a quarter for the tail: 2,000 records
        memory_bytes: 8 << 20,
        ..support::until(Until::Never)
    };
    let components = world.hesitant();
    let mut stream = EventStream::open(request, components).await.unwrap();
    let mut replayed = Replayed::default();
    for round in 0..40_usize {
        feed.write(100);
        let held: BTreeSet<Partition> = match round % 10 {
            // one goes on alone: the others fill the memory, are paused, and let go of
            0..=7 => (0..PARTITIONS)
                .filter(|n| *n as usize != round / 2 % 4)
                .map(p)
                .collect(),
            8 => [p(0)].into(),
            _ => BTreeSet::new(),
        };
        // now and then changed while batches come
        let batches = if round % 3 == 0 { 5 } else { 100 };
        read(&mut stream, &mut replayed, &held, batches).await;
    }
    // on a busy machine a pause may have come in time each time: then more comes at once, until one comes too late
    let has_let_go = || {
        let asked = world.asked.lock().unwrap();
        asked.iter().any(|(what, _)| *what == "unassign")
    };
    for burst in 0..30 {
        if has_let_go() {
            break;
        }
        read(&mut stream, &mut replayed, &BTreeSet::new(), 1000).await;
        feed.write(2_000);
        let others = (0..PARTITIONS).filter(|n| *n != burst % PARTITIONS);
        let held: BTreeSet<Partition> = others.map(p).collect();
        read(&mut stream, &mut replayed, &held, 1000).await;
    }
    let nobody = BTreeSet::new();
    let mut rounds = 0;
    while replayed.count() < feed.count() {
        read(&mut stream, &mut replayed, &nobody, 1000).await;
        rounds += 1;
        assert!(rounds < 100, "{} of {}", replayed.count(), feed.count());
    }
    assert_eq!(replayed.archived, archived);
    for (partition, values) in &feed.values {
        let rows = &replayed.rows[&(0, *partition)];
        let found: Vec<&String> = rows.iter().map(|(_, value)| value).collect();
        assert!(found.iter().copied().eq(values), "partition {partition}");
    }
    let asked = world.asked.lock().unwrap().clone();
    for call in ["pause", "resume", "unassign"] {
        let times = asked.iter().filter(|(what, _)| *what == call).count();
        assert!(times > 0, "no {call} in {asked:?}");
    }

    // one that has nothing more does not hold the others back for long, though the client says nothing of its end
    if !feed.next_commits() {
        feed.write(20);
    }
    feed.write(20);
    let held = BTreeSet::from([p(0)]);
    stream.hold(&held);
    let spent = tokio::time::timeout(Duration::from_secs(20), async {
        let all_but_one = feed.count() - 20;
        while replayed.count() < all_but_one || !(1..PARTITIONS).all(|n| stream.is_spent(p(n))) {
            match stream.advance().await.unwrap() {
                Advance::Batch(batch) => replayed.take(&batch),
                Advance::Changed => {}
                Advance::End => panic!("it never ends"),
            }
        }
    });
    spent.await.expect("all of them are at their ends");
    assert!((1..PARTITIONS).all(|n| stream.at_end(p(n))));
    assert!(!stream.is_spent(p(0)), "it has the last transaction");
    assert_eq!(replayed.count(), feed.count() - 20);
    stream.close().await;
}
