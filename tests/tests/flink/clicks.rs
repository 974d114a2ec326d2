//! Random clickstreams, decided by a seed.

use everlog_decode::Columns;
use everlog_tests::broker::{Broker, Message};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// The columns that jobs declare.
pub const COLUMNS: [(&str, &str); 8] = [
    ("event_id", "STRING NOT NULL"),
    ("user_id", "STRING"),
    ("kind", "STRING"),
    ("amount", "BIGINT"),
    ("pieces", "INT"),
    ("price", "DOUBLE"),
    ("paid", "DECIMAL(10, 2)"),
    ("timestamp_ms", "BIGINT NOT NULL"),
];

/// 2023-11-14T22:13:20Z; a multiple of every time's grain.
const EPOCH: i64 = 1_700_000_000_000 - 1_700_000_000_000 % GRAIN;

/// Times are multiples of it, so that no two differ by a whole number of seconds up to [`GRAIN`]: what is exactly one gap
/// apart is a race in Flink.
const GRAIN: i64 = 7;

pub fn columns() -> Columns {
    Columns::parse(COLUMNS).expect("column types")
}

/// One event, at its place in its partition.
#[derive(Clone, Debug)]
pub struct Click {
    pub id: String,
    pub user: Option<String>,
    pub kind: Option<&'static str>,
    pub amount: Option<i64>,
    pub pieces: Option<i32>,
    /// In quarters, so that sums are exact in any order: Flink adds doubles as they come.
    pub price: f64,
    /// Hundredths.
    pub paid: Option<i64>,
    pub time: i64,
}

impl Click {
    pub fn json(&self) -> String {
        let text = |value: Option<&str>| value.map_or("null".to_owned(), |v| format!("{v:?}"));
        let paid = self.paid.map_or("null".to_owned(), |hundredths| {
            format!("{}.{:02}", hundredths / 100, hundredths % 100)
        });
        let number = |value: Option<i64>| value.map_or("null".to_owned(), |v| v.to_string());
        format!(
            r#"{{"event_id":{:?},"user_id":{},"kind":{},"amount":{},"pieces":{},"price":{:?},"paid":{paid},"timestamp_ms":{}}}"#,
            self.id,
            text(self.user.as_deref()),
            text(self.kind),
            number(self.amount),
            number(self.pieces.map(i64::from)),
            self.price,
            self.time,
        )
    }
}

/// Clicks per partition.
pub type Clicks = Vec<Vec<Click>>;

/// What the clicks are like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub partitions: usize,
    /// In each.
    pub clicks: usize,
    pub users: u32,
    /// Milliseconds between two, at most.
    pub step: i64,
    /// How far back those go that are out of order, four in ten.
    pub disorder: i64,
    /// How many of a hundred are sent twice.
    pub copies: u32,
    /// Whether a user's clicks are all in one partition.
    pub keyed: bool,
}

/// The generator of this run's random choices; `salt` makes each test's its own.
pub fn random(salt: u64) -> StdRng {
    static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let seed = *SEED.get_or_init(|| {
        everlog_services::environment("EVERLOG_FLINK_SEED").map_or_else(
            || u64::from(rand::random::<u32>()),
            |text| text.parse().expect("EVERLOG_FLINK_SEED is a number"),
        )
    });
    println!("EVERLOG_FLINK_SEED={seed} gives the same records again");
    StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(salt))
}

pub fn generate(random: &mut StdRng, shape: Shape) -> Clicks {
    (0..shape.partitions)
        .map(|partition| one(random, shape, partition))
        .collect()
}

fn one(random: &mut StdRng, shape: Shape, partition: usize) -> Vec<Click> {
    let mut now = 0;
    let mut clicks: Vec<Click> = Vec::with_capacity(shape.clicks);
    while clicks.len() < shape.clicks {
        if random.random_ratio(shape.copies, 100)
            && let Some(back) = clicks.len().checked_sub(random.random_range(1..20))
        {
            clicks.push(clicks[back].clone());
            continue;
        }
        now += random.random_range(0..=shape.step);
        let back = if random.random_ratio(4, 10) {
            random.random_range(0..=shape.disorder)
        } else {
            0
        };
        // rounding may not carry a time behind what the disorder allows
        let ticks = (now - back + GRAIN - 1).div_euclid(GRAIN);
        let user = random.random_range(0..shape.users);
        let user = if shape.keyed {
            user - user % shape.partitions as u32 + partition as u32
        } else {
            user
        };
        let some = |random: &mut StdRng| random.random_ratio(9, 10);
        clicks.push(Click {
            id: format!("{partition}-{}", clicks.len()),
            user: (shape.keyed || random.random_ratio(19, 20)).then(|| format!("user-{user}")),
            kind: some(random)
                .then(|| ["view", "add_to_cart", "purchase"][random.random_range(0..3)]),
            amount: some(random).then(|| random.random_range(-50..1000)),
            pieces: some(random).then(|| random.random_range(0..9)),
            price: f64::from(random.random_range(0..4000_i32)) / 4.0,
            paid: some(random).then(|| random.random_range(0..100_000)),
            time: EPOCH + ticks * GRAIN,
        });
    }
    clicks
}

/// Puts them into a new topic.
pub async fn produce(broker: &Broker, topic: &str, clicks: &[Vec<Click>]) {
    let partitions = i32::try_from(clicks.len()).expect("few partitions");
    broker.create(topic, partitions, &[]).await;
    fill(broker, topic, clicks);
}

/// Puts them into a topic that is there.
pub fn fill(broker: &Broker, topic: &str, clicks: &[Vec<Click>]) {
    let feed = broker.producer(&[]);
    for (partition, clicks) in (0..).zip(clicks) {
        for click in clicks {
            feed.send(
                topic,
                &Message {
                    partition,
                    key: click.user.as_deref().map(str::as_bytes),
                    value: Some(click.json().as_bytes()),
                    timestamp: Some(click.time),
                    ..Message::default()
                },
            );
        }
    }
    feed.flush();
}
