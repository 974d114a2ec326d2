//! What everlog promises about memory, measured on the process: the kernel's peak of what it took.

use std::sync::OnceLock;
use std::time::Duration;

use everlog_tests::broker::{Broker, Message};
use everlog_tests::compare::assert_same;
use everlog_tests::everlog::{Everlog, Measured, Setup, parse};
use everlog_tests::services::Kafka;

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(|| Kafka::start_with(&["--set", "message.max.bytes=115000000"]))
}

const PATIENCE: Duration = Duration::from_mins(4);
const MIB: u64 = 1 << 20;

#[track_caller]
fn assert_within(measured: &Measured, bound: u64, what: &str) {
    assert_eq!(measured.code, Some(0), "{what}: {}", measured.stderr);
    let peak = measured.memory_peak;
    println!("{what}: {} MiB at most", peak / MIB);
    assert!(
        (MIB..=bound).contains(&peak),
        "{what} took {} MiB, more than {} MiB",
        peak / MIB,
        bound / MIB
    );
}

#[tokio::test]
async fn h20_a_record_of_100_mb_goes_through_whole() {
    const RECORD: u64 = 100_000_000;
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "limits.large");
    broker
        .create(topic, 2, &[("max.message.bytes", "115000000")])
        .await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 2, 0..1_000);
    let mut large = vec![0_u8; usize::try_from(RECORD).expect("small")];
    for (i, byte) in large.iter_mut().enumerate() {
        *byte = (i * i / 7 % 251) as u8;
    }
    feed.send(
        topic,
        &Message {
            value: Some(&large),
            ..Message::default()
        },
    );
    drop(large);
    feed.fill(topic, 2, 1_000..2_000);
    let everlog = Everlog::local(
        &Setup::new(&kafka().bootstrap, &[topic])
            .archive("memory = \"64MiB\"")
            .replay("memory = \"16MiB\""),
    );
    // the setting and the process itself, and the record as often as it is there at once: as it was fetched, as a column,
    // encoded, and on its way to the store
    let bound = |setting: u64| (setting + 64) * MIB + 4 * RECORD;
    let archived = everlog.measured(&["archive", "--until-caught-up"], PATIENCE);
    assert_within(&archived, bound(64), "archiving 100 MB at once");
    let path = everlog.dir().join("out.jsonl");
    let output = format!("jsonl:{}", path.display());
    let args = ["replay", topic, "--encoding", "base64", "--output", &output];
    let archive = everlog.measured(&[&args[..], &["--until", "snapshot"]].concat(), PATIENCE);
    assert_within(&archive, bound(16), "replaying 100 MB at once");
    let log = broker.dump(topic);
    let text = std::fs::read_to_string(&path).expect("the output");
    assert_same(&log, &parse(&text), "from the archive");
    drop(text);
    // and from the live topic: of the archive nothing but the first records
    let tail = everlog.beside(
        &Setup::new(&kafka().bootstrap, &[topic])
            .archive("memory = \"64MiB\"")
            .replay("memory = \"16MiB\""),
    );
    let live = tail.measured(&args, PATIENCE);
    assert_within(&live, bound(16), "replaying it to now");
}

#[tokio::test]
async fn a_thousand_partitions_stay_within_the_memory_that_is_promised() {
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "limits.wide");
    broker.create(topic, 1_000, &[]).await;
    // half as much again as the archiver may hold
    let feed = broker.producer(&[("linger.ms", "100")]);
    feed.fill_noise(topic, 1_000, 120_000, 4_000);
    let everlog = Everlog::local(
        &Setup::new(&kafka().bootstrap, &[topic]).archive("commit_interval = \"1h\""),
    );
    let archived = everlog.measured(&["archive", "--until-caught-up"], PATIENCE);
    assert_within(&archived, 512 * MIB, "archiving 1,000 partitions");
    let args = ["replay", topic, "--until", "snapshot", "--output", "count"];
    let replayed = everlog.measured(&args, PATIENCE);
    assert_within(&replayed, 256 * MIB, "replaying 1,000 partitions");
    assert_eq!(replayed.stdout.trim(), "120000");
}
