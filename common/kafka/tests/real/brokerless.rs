//! Clients that are told of no broker, after which librdkafka knows none to ask (see `client::brokerless`).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use everlog_kafka::client::BrokerWatch;
use everlog_kafka::conformance::{Reading, World, alone, at, numbered, partition};
use everlog_kafka::{Isolation, Log};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer as _};

use crate::support::{Broker, Real};

/// As a property it makes sure of what otherwise is a race inside of librdkafka: that nobody asks for a new start.
const NO_REBOOTSTRAP: (&str, &str) = ("metadata.recovery.strategy", "none");
const PATIENCE: Duration = Duration::from_mins(1);

/// The caller's line tells what is waited for.
#[track_caller]
fn until<F: AsyncFn() -> bool>(done: F) -> impl Future<Output = ()> {
    let waiting = std::panic::Location::caller();
    async move {
        let began = Instant::now();
        while !done().await {
            assert!(began.elapsed() < PATIENCE, "waited in vain at {waiting}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A broker that answers what a client asks first, and names itself or nobody.
#[derive(Debug, Default)]
struct Told {
    names_nobody: AtomicBool,
    connections: AtomicUsize,
    open: AtomicUsize,
    asked: AtomicUsize,
}

impl Told {
    fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let told = Arc::new(Self::default());
        let shared = Arc::clone(&told);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let told = Arc::clone(&shared);
                std::thread::spawn(move || {
                    told.open.fetch_add(1, Ordering::SeqCst);
                    told.connections.fetch_add(1, Ordering::SeqCst);
                    // the client closes it
                    told.serve(&connection.unwrap(), address.port()).ok();
                    told.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        (told, address.to_string())
    }

    fn serve(&self, mut connection: &TcpStream, port: u16) -> std::io::Result<()> {
        loop {
            let mut length = [0; 4];
            connection.read_exact(&mut length)?;
            let mut request = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
            connection.read_exact(&mut request)?;
            let mut answer = request[4..8].to_vec();
            match request[..2] {
                // ApiVersions 3: no error; itself and Metadata 1; not throttled
                [0, 18] => answer.extend([
                    0, 0, 3, 0, 18, 0, 0, 0, 3, 0, 0, 3, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0,
                ]),
                [0, 3] => {
                    self.asked.fetch_add(1, Ordering::SeqCst);
                    answer.extend(self.metadata(port));
                }
                _ => return Ok(()),
            }
            connection.write_all(&u32::try_from(answer.len()).unwrap().to_be_bytes())?;
            connection.write_all(&answer)?;
        }
    }

    /// Metadata 1: perhaps broker 1 (without a rack); it is the controller; a topic without partitions.
    fn metadata(&self, port: u16) -> Vec<u8> {
        let mut answer = Vec::new();
        if self.names_nobody.load(Ordering::SeqCst) {
            answer.extend([0, 0, 0, 0]);
        } else {
            answer.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 9]);
            answer.extend(b"127.0.0.1");
            answer.extend([0, 0]);
            answer.extend(port.to_be_bytes());
            answer.extend([0xff, 0xff]);
        }
        answer.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 80]);
        // librdkafka has too little memory for a very small answer
        answer.extend([b't'; 80]);
        answer.extend([0, 0, 0, 0, 0]);
        answer
    }

    /// A client comes first by the address that it was given, and then by the one that it was told.
    fn has_told(&self, clients: usize) -> bool {
        self.connections.load(Ordering::SeqCst) >= 2 * clients
    }

    /// Nobody is connected, and nobody comes for a while.
    async fn is_left(&self) -> bool {
        let began = Instant::now();
        while self.open.load(Ordering::SeqCst) == 0 {
            if began.elapsed() > Duration::from_secs(2) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

/// The client decommissions its broker, and closes its connections; asked again, it finds the broker that is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_told_of_no_broker_asks_again() {
    let (told, address) = Told::start();
    let world = Real::at(
        address,
        &[NO_REBOOTSTRAP, ("everlog.request.timeout.ms", "1500")],
    );
    until(async || world.log.cluster_id().await.is_ok() && told.has_told(1)).await;
    told.names_nobody.store(true, Ordering::SeqCst);
    until(async || {
        world.log.cluster_id().await.ok();
        told.is_left().await
    })
    .await;
    told.names_nobody.store(false, Ordering::SeqCst);
    until(async || world.log.cluster_id().await.is_ok()).await;
}

/// A reader's client has nobody who asks, and comes back all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_was_told_of_no_broker_asks_again() {
    let (told, address) = Told::start();
    let world = Real::at(
        address,
        &[
            NO_REBOOTSTRAP,
            ("topic.metadata.refresh.interval.ms", "1000"),
        ],
    );
    until(async || world.log.cluster_id().await.is_ok() && told.has_told(1)).await;
    let options = alone(Isolation::ReadCommitted);
    let reader = world.log.open(options).await.unwrap();
    until(async || told.has_told(2)).await;
    // the reader's own client is the only one now
    drop(world);
    told.names_nobody.store(true, Ordering::SeqCst);
    until(async || told.is_left().await).await;
    told.names_nobody.store(false, Ordering::SeqCst);
    let asked = told.asked.load(Ordering::SeqCst);
    until(async || told.asked.load(Ordering::SeqCst) > asked).await;
    reader.close().await.unwrap();
}

/// A client that is not the log's comes back as well, once it is looked after.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_was_told_of_no_broker_asks_again() {
    let (told, address) = Told::start();
    let properties = BTreeMap::from(
        [("bootstrap.servers", address.as_str()), NO_REBOOTSTRAP]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    let mut config = ClientConfig::new();
    config.extend(properties.clone());
    let producer: BaseProducer = config.create().unwrap();
    let watch = BrokerWatch::new(&properties).unwrap();
    let is_answered = || {
        let ask = || {
            let client = producer.client();
            client.fetch_metadata(None, Duration::from_millis(1500))
        };
        tokio::task::block_in_place(ask).is_ok()
    };
    until(async || is_answered() && told.has_told(1)).await;
    told.names_nobody.store(true, Ordering::SeqCst);
    until(async || {
        is_answered();
        told.is_left().await
    })
    .await;
    told.names_nobody.store(false, Ordering::SeqCst);
    assert!(!is_answered(), "it came back by itself");
    until(async || {
        watch.keep_a_broker(producer.client());
        is_answered()
    })
    .await;
}

/// A cluster of one broker stands still for so long that it is fenced, and is asked all the time: whatever it says of itself
/// meanwhile, log and reader go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_fenced_is_found_again() {
    let broker = Broker::start();
    let properties = [("everlog.request.timeout.ms", "1500")];
    let world = Real::at(broker.bootstrap(), &properties);
    let mut properties = properties.to_vec();
    properties.push(NO_REBOOTSTRAP);
    properties.push(("topic.metadata.refresh.interval.ms", "200"));
    let other = Real::at(broker.bootstrap(), &properties);
    let name = world.fresh_name();
    world.create_topic(&name, 1).await;
    let tp = partition(&name, 0);
    world.produce(&tp, numbered(0, 10)).await;
    let mut readings = Vec::new();
    for log in [&world.log, &other.log] {
        let starts = [(tp.clone(), at(0))];
        let mut reading = Reading::alone(log, Isolation::ReadCommitted, &starts).await;
        reading.until_position(&tp, 10).await;
        readings.push(reading);
    }
    tokio::task::block_in_place(|| broker.freeze());
    let frozen = Instant::now();
    let mut is_silent = false;
    while frozen.elapsed() < Duration::from_secs(6) {
        let (one, two) = tokio::join!(world.log.topics(), other.log.topics());
        // the first may yet be answered
        is_silent = one.is_err() && two.is_err();
    }
    assert!(is_silent);
    tokio::task::block_in_place(|| broker.thaw());
    let thawed = Instant::now();
    for log in [&world.log, &other.log] {
        // once is not enough: the broker may be fenced only then
        let mut answered: Option<Instant> = None;
        while answered.is_none_or(|since| since.elapsed() < Duration::from_secs(3)) {
            let tps = std::slice::from_ref(&tp);
            let bounds = log.bounds(tps, Isolation::ReadCommitted).await;
            answered = match bounds {
                Ok(bounds) if bounds.contains_key(&tp) => answered.or(Some(Instant::now())),
                _ => None,
            };
            log.topics().await.ok();
            assert!(thawed.elapsed() < 2 * PATIENCE, "the log is silent");
        }
    }
    world.produce(&tp, numbered(10, 20)).await;
    for mut reading in readings {
        reading.until_position(&tp, 20).await;
        reading.close().await;
    }
}
