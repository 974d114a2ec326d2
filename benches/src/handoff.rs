//! The seam: how long nothing comes between the last batch of history and the first of the live tail, while the topic is
//! being written to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use everlog_common::Source;
use everlog_common::clock::{RandomIds, SystemClock};
use everlog_kafka::Log;
use everlog_kafka::client::KafkaLog;
use everlog_replayer::{Components, EventStream, ReplayRequest, Until};
use everlog_tests::broker::Broker;
use everlog_tests::everlog::{Everlog, Setup};
use tokio::runtime::Runtime;

use crate::measure::median;

const TOPIC: &str = "bench.handoff";
const HISTORY: u64 = 200_000;
const ROUNDS: usize = 20;

/// Measures the pause [`ROUNDS`] times and prints it.
pub(crate) fn report(runtime: &Runtime, bootstrap: &str, broker: &Broker) {
    runtime.block_on(broker.create(TOPIC, 2, &[]));
    let feed = broker.producer(&[]);
    feed.fill(TOPIC, 2, 0..HISTORY);
    let lake = Everlog::local(&Setup::new(bootstrap, &[TOPIC]));
    lake.archive();

    let done = AtomicBool::new(false);
    let sent = AtomicU64::new(HISTORY);
    let pauses: Vec<f64> = std::thread::scope(|scope| {
        scope.spawn(|| {
            // a steady live load of about 5,000 events a second
            while !done.load(Ordering::SeqCst) {
                let n = sent.fetch_add(50, Ordering::SeqCst);
                feed.fill(TOPIC, 2, n..n + 50);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let pauses = (0..ROUNDS)
            .map(|_| runtime.block_on(pause(bootstrap, &lake)))
            .collect();
        done.store(true, Ordering::SeqCst);
        pauses
    });
    let worst = pauses.iter().copied().fold(0.0, f64::max);
    println!(
        "\nhandoff pause over {ROUNDS} replays of {HISTORY} archived events into a live topic: median {:.0} ms, worst {:.0} ms \
         (floor: p99 < 1000 ms, aim: median 50 ms)",
        median(pauses.into_iter()),
        worst
    );
}

/// Milliseconds between the last batch of history and the first live one.
async fn pause(bootstrap: &str, lake: &Everlog) -> f64 {
    let kafka = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap.to_owned())]);
    let log: Arc<dyn Log> = Arc::new(KafkaLog::connect(&kafka).expect("a Kafka client"));
    let catalog = everlog_table::catalog::connect(&lake.catalog)
        .await
        .expect("the catalog");
    let components = Components {
        log: Some(log),
        catalog,
        clock: Arc::new(SystemClock::default()),
        ids: Arc::new(RandomIds),
        namespace: "everlog".to_owned(),
    };
    let mut request = ReplayRequest::new(TOPIC.parse().expect("a topic's name"));
    request.until = Until::Never;
    let mut stream = EventStream::open(request, components)
        .await
        .expect("a stream");
    let mut last = Instant::now();
    let found = loop {
        let batch = stream
            .next()
            .await
            .expect("the next batch")
            .expect("a following stream never ends");
        if batch.columns.is_empty() {
            continue;
        }
        if batch.source == Source::Live {
            break last.elapsed();
        }
        last = Instant::now();
    };
    stream.close().await;
    found.as_secs_f64() * 1e3
}
