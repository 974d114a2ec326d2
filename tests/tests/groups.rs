//! Archivers that share their work through a consumer group.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use everlog_tests::broker::{Broker, PATIENCE};
use everlog_tests::compare::{assert_same, count};
use everlog_tests::everlog::{Everlog, Setup, eventually, get};
use everlog_tests::services::{Kafka, free_ports};
use serde_json::Value;

/// With sessions that end within a test's patience.
fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(|| {
        let settings = [
            "group.consumer.min.heartbeat.interval.ms=200",
            "group.consumer.heartbeat.interval.ms=200",
            "group.consumer.min.session.timeout.ms=1000",
            "group.consumer.session.timeout.ms=3000",
            "group.min.session.timeout.ms=1000",
        ];
        let args: Vec<&str> = settings.iter().flat_map(|s| ["--set", *s]).collect();
        Kafka::start_with(&args)
    })
}

/// An archiver that tells what it has.
struct Member {
    everlog: Everlog,
    port: u16,
}

/// A partition of a topic.
type Share = (String, i32);

impl Member {
    /// On the tables of `first`, or the first on tables of its own.
    fn new(setup: &Setup, first: Option<&Self>) -> Self {
        let port = free_ports(1);
        let setup = setup
            .clone()
            .archive(&format!("http = \"127.0.0.1:{port}\""));
        let everlog = match first {
            None => Everlog::local(&setup),
            Some(first) => first.everlog.beside(&setup),
        };
        Self { everlog, port }
    }

    /// The partitions that it archives.
    fn shares(&self) -> BTreeSet<Share> {
        let Some((_, text)) = get(self.port, "/healthz") else {
            return BTreeSet::new();
        };
        let said: Value = serde_json::from_str(&text).expect("JSON");
        let topics = said["topics"].as_object().expect("topics");
        let of_topic = |(topic, state): (&String, &Value)| {
            let next = state["next"].as_object().expect("positions");
            let topic = topic.clone();
            let partitions: Vec<i32> = next.keys().map(|p| p.parse().expect("a number")).collect();
            partitions.into_iter().map(move |p| (topic.clone(), p))
        };
        topics.iter().flat_map(of_topic).collect()
    }

    /// Records that it has archived itself.
    fn archived(&self) -> u64 {
        let text = get(self.port, "/metrics").map_or(String::new(), |(_, text)| text);
        text.lines()
            .filter(|l| l.starts_with("everlog_archiver_records_total{"))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}

/// Whether all of `members` have something, nobody what another has, and together they have `count` partitions.
fn is_shared(members: &[&Member], count: usize) -> bool {
    let shares: Vec<_> = members.iter().map(|m| m.shares()).collect();
    let union: BTreeSet<_> = shares.iter().flatten().collect();
    let sum: usize = shares.iter().map(BTreeSet::len).sum();
    sum == count && union.len() == count && shares.iter().all(|s| !s.is_empty())
}

/// Archives what the members left, and compares.
#[track_caller]
fn assert_whole(broker: &Broker, setup: &Setup, member: &Member, topics: &[&str], sent: u64) {
    let mut found = 0;
    let alone = Setup::new(&setup.bootstrap, topics);
    let alone = member.everlog.beside(&alone);
    alone.archive();
    for topic in topics {
        let log = broker.dump(topic);
        found += count(&log) as u64;
        let archived = alone.replay(topic, &["--until", "snapshot"]);
        assert_same(&log, &archived, topic);
    }
    assert_eq!(found, sent);
}

#[tokio::test]
async fn h23_in_a_kip_848_group_one_joins_and_one_is_killed_and_nothing_is_lost_or_doubled() {
    let (broker, topic) = (Broker::new(&kafka().bootstrap), "groups.next");
    broker.create(topic, 6, &[]).await;
    let setup = Setup::new(&kafka().bootstrap, &[topic])
        .archive("commit_interval = \"300ms\"")
        .archive("group = \"kip-848\"")
        .kafka("\"group.protocol\" = \"consumer\"");
    let first = Member::new(&setup, None);
    let second = Member::new(&setup, Some(&first));
    let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let feed = broker.producer(&[]);
            while !done.load(Ordering::SeqCst) {
                let n = sent.fetch_add(300, Ordering::SeqCst);
                feed.fill(topic, 6, n..n + 300);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let stop = StopAtEnd(&done);
        let one = first.everlog.start(&["archive"], "");
        eventually("the first has all", PATIENCE, || {
            is_shared(&[&first], 6) && first.archived() > 0
        });
        // what they joined is a group of that protocol
        let groups = kafka().tool("groups", &["--list", "--type", "consumer"]);
        assert!(groups.contains("kip-848"), "{groups}");

        let two = second.everlog.start(&["archive"], "");
        eventually("both have a share", PATIENCE, || {
            is_shared(&[&first, &second], 6) && second.archived() > 0
        });
        one.kill();
        eventually("the other has all", PATIENCE, || is_shared(&[&second], 6));
        let before = second.archived();
        eventually("and goes on", PATIENCE, || second.archived() > before + 600);
        drop(stop);
        assert_eq!(two.stop(PATIENCE), Some(0));
    });
    let sent = sent.load(Ordering::SeqCst);
    assert_whole(&broker, &setup, &first, &[topic], sent);

    // sessions are the brokers' in this protocol: a setting that would do nothing is refused by its name
    let refused = first
        .everlog
        .beside(&setup.kafka("\"session.timeout.ms\" = \"6000\""));
    let error = refused.fails(&["archive", "--until-caught-up"], 2);
    assert!(error.contains("session.timeout.ms"), "{error}");
}

/// Sets a flag when dropped: a test that fails must not wait for its own load.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn h14_h15_a_group_shares_the_topics_that_an_expression_finds_also_later() {
    let broker = Broker::new(&kafka().bootstrap);
    let early = ["groups.found-1", "groups.found-22"];
    let (late, other) = ("groups.found-333", "groups.found-d");
    for topic in early.iter().chain([&other]) {
        broker.create(topic, 3, &[]).await;
    }
    let feed = broker.producer(&[]);
    let mut sent = 0;
    let mut fill = |topics: &[&str]| {
        for topic in topics {
            feed.fill(topic, 3, sent..sent + 900);
            sent += 900;
        }
    };
    fill(&early);
    feed.fill(other, 3, 0..30);
    // in the language of one regular expression library, and not in that of the other
    let setup = Setup::new(&kafka().bootstrap, &[r"^groups\.found-\d+$"])
        .archive("commit_interval = \"300ms\"")
        .archive("discovery_interval = \"500ms\"")
        .archive("group = \"found\"")
        .kafka("\"session.timeout.ms\" = \"6000\"");
    let first = Member::new(&setup, None);
    let second = Member::new(&setup, Some(&first));
    let one = first.everlog.start(&["archive"], "");
    eventually("the first has all", PATIENCE, || is_shared(&[&first], 6));
    let two = second.everlog.start(&["archive"], "");
    let both = [&first, &second];
    eventually("both have a share", PATIENCE, || is_shared(&both, 6));
    fill(&early);
    let archived = || first.archived() + second.archived();
    eventually("all is archived", PATIENCE, || archived() >= 3_600);
    assert!(second.archived() >= 300, "the second did none of it");

    // records before anybody could know of it
    broker.create(late, 4, &[]).await;
    feed.fill(late, 4, 0..1_000);
    let began = Instant::now();
    eventually("the new topic is shared", PATIENCE, || is_shared(&both, 10));
    println!("shared after {:?}", began.elapsed());
    feed.fill(late, 4, 1_000..2_000);
    fill(&early);
    let sent = sent + 2_000;
    eventually("all is archived", PATIENCE, || archived() >= sent);
    assert_eq!(one.stop(PATIENCE), Some(0));
    assert_eq!(two.stop(PATIENCE), Some(0));
    assert!(first.everlog.ledger(other).await.newest().is_none());
    assert_whole(&broker, &setup, &first, &[early[0], early[1], late], sent);
}
