//! The clickstreams that jobs and queries are measured on: the same in every run.

use everlog_decode::Columns;
use everlog_tests::broker::{Broker, Message};
use tokio::runtime::Runtime;

/// Kafka partitions; a user's clicks are all in one.
pub(crate) const PARTITIONS: u32 = 4;

/// The columns that the job declares; the values have two fields more.
pub(crate) const COLUMNS: [(&str, &str); 4] = [
    ("user_id", "STRING NOT NULL"),
    ("product_id", "STRING"),
    ("event_type", "STRING"),
    ("timestamp_ms", "BIGINT NOT NULL"),
];

/// Sessions that end after half an hour without a click.
pub(crate) const SESSIONS: &str = "SELECT user_id, SESSION_START(ts, INTERVAL '30' MINUTE) AS session_start, \
     SESSION_END(ts, INTERVAL '30' MINUTE) AS session_end, \
     count(*) FILTER (WHERE event_type = 'view') AS views, \
     count(*) FILTER (WHERE event_type = 'purchase') AS purchases \
     FROM bench_clicks GROUP BY user_id, SESSION(ts, INTERVAL '30' MINUTE)";

/// The topic of [`SESSIONS`].
pub(crate) const TOPIC: &str = "bench.clicks";

/// Times are multiples of it: no two clicks are exactly half an hour apart, which is a race in Flink.
const GRAIN: u64 = 7;
/// The first click's.
const EPOCH: u64 = 1_760_000_000_000 / GRAIN * GRAIN;
/// Users that click at a time.
const ACTIVE: u64 = 20_000;
/// Clicks of a user, on average.
const CLICKS_PER_USER: u64 = 20;

/// Milliseconds.
const DAY: u64 = 24 * 60 * 60 * 1_000;
/// Where users live.
const COUNTRIES: [&str; 11] = [
    "AT", "BR", "CH", "DE", "ES", "FR", "GB", "IT", "JP", "PL", "US",
];

pub(crate) fn columns() -> Columns {
    Columns::parse(COLUMNS).expect("column types")
}

/// One click, as it is in Kafka, or what else has a key and a value.
#[derive(Debug)]
pub(crate) struct Click {
    pub partition: i32,
    pub key: String,
    pub value: String,
    pub time: i64,
}

/// The stream of `count` clicks of 200 bytes and their keys.
///
/// A user clicks about twenty times within as many minutes, then never again: so sessions end all along, and about
/// 80,000 are open once an hour has passed. One in five comes up to five seconds late, none so late that it would not count.
pub(crate) fn sessions(count: usize) -> impl Iterator<Item = Click> {
    stream(count, |n| n * 3)
}

/// The same stream, spread over one day.
pub(crate) fn day(count: usize) -> impl Iterator<Item = Click> {
    stream(count, move |n| n * DAY / count as u64)
}

/// `after`: milliseconds from the first click to the one of a number.
fn stream(count: usize, after: impl Fn(u64) -> u64) -> impl Iterator<Item = Click> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    (0..count as u64).map(move |n| {
        let random = next(&mut state);
        let user = n / CLICKS_PER_USER + (random >> 33) % ACTIVE;
        let late = if random.is_multiple_of(5) {
            (random >> 12) % 5_000
        } else {
            0
        };
        click(user, random, EPOCH + after(n) + 5_000 - late)
    })
}

/// One record about each user of a stream of `count` clicks; the key is the one of the clicks.
pub(crate) fn users(count: usize) -> impl Iterator<Item = Click> {
    (0..count as u64 / CLICKS_PER_USER + ACTIVE).map(|user| {
        let key = user_key(user);
        let country = COUNTRIES[usize::try_from(user % 11).unwrap_or_default()];
        let plan = if user.is_multiple_of(4) {
            "paid"
        } else {
            "free"
        };
        Click {
            partition: partition(user),
            value: format!(r#"{{"user_id":"{key}","country":"{country}","plan":"{plan}"}}"#),
            key,
            time: i64::try_from(EPOCH).unwrap_or_default(),
        }
    })
}

/// One click of each of `count` users within a quarter of an hour: all sessions are open at once.
pub(crate) fn open(count: usize) -> impl Iterator<Item = Click> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    (0..count as u64).map(move |n| {
        // every user once, in an order that is not that of the keys
        let user = n.wrapping_mul(2_654_435_761) % 4_294_967_296;
        click(user, next(&mut state), EPOCH + n * 900_000 / count as u64)
    })
}

fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 3
}

fn click(user: u64, random: u64, time: u64) -> Click {
    let time = time / GRAIN * GRAIN;
    let product = (random >> 20) % 20_000;
    let kinds = ["view", "view", "view", "add_to_cart", "purchase"];
    let kind = kinds[usize::try_from((random >> 7) % 5).unwrap_or_default()];
    let key = user_key(user);
    let mut value = format!(
        r#"{{"user_id":"{key}","product_id":"p-{product:06}","event_type":"{kind}","timestamp_ms":{time},"session":"{random:016x}","page":"/shop/{product}"}}"#
    );
    while value.len() < 200 {
        value.push(' ');
    }
    Click {
        partition: partition(user),
        key,
        value,
        time: i64::try_from(time).unwrap_or_default(),
    }
}

fn user_key(user: u64) -> String {
    format!("user-{user:010}")
}

fn partition(user: u64) -> i32 {
    i32::try_from(user % u64::from(PARTITIONS)).unwrap_or_default()
}

/// Creates a topic.
pub(crate) fn create(runtime: &Runtime, broker: &Broker, topic: &str) {
    let partitions = i32::try_from(PARTITIONS).unwrap_or_default();
    runtime.block_on(broker.create(topic, partitions, &[]));
}

/// Fills it.
pub(crate) fn fill(broker: &Broker, topic: &str, clicks: impl Iterator<Item = Click>) {
    let feed = broker.producer(&[
        ("compression.type", "lz4"),
        ("batch.size", "262144"),
        ("linger.ms", "20"),
        ("queue.buffering.max.messages", "500000"),
    ]);
    for click in clicks {
        feed.send(
            topic,
            &Message {
                partition: click.partition,
                key: Some(click.key.as_bytes()),
                value: Some(click.value.as_bytes()),
                timestamp: Some(click.time),
                ..Message::default()
            },
        );
    }
    feed.flush();
}
