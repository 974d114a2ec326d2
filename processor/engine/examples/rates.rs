//! How fast a clickstream is sessionised on this machine, on one thread, decoding and state store aside:
//! `cargo run --release -p everlog-engine --example rates`.

#![allow(clippy::print_stdout, reason = "what it is for")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "numbers here are small"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow_schema::{DataType, Field, Schema};
use everlog_engine::{Engine, EventTime, MemoryState, Progress, Query, Space};

const SESSION: &str = "SELECT user_id, SESSION_START(ts, INTERVAL '30' MINUTE) AS session_start,
    SESSION_END(ts, INTERVAL '30' MINUTE) AS session_end, count(*) AS events,
    count(*) FILTER (WHERE event_type = 'view') AS views, count(*) FILTER (WHERE event_type = 'purchase') AS purchases
    FROM clicks GROUP BY user_id, SESSION(ts, INTERVAL '30' MINUTE)";
const TUMBLE: &str = "SELECT user_id, TUMBLE_START(ts, INTERVAL '1' HOUR) AS s, count(*) AS events, max(product_id) AS product
    FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '1' HOUR)";
const HOP: &str = "SELECT product_id, HOP_START(ts, INTERVAL '10' MINUTE, INTERVAL '1' HOUR) AS s, count(*) AS events
    FROM clicks GROUP BY product_id, HOP(ts, INTERVAL '10' MINUTE, INTERVAL '1' HOUR)";

/// The next of a fixed sequence of numbers without pattern.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
}

/// `count` records of `users` users, ten a millisecond, up to 5 s out of order.
fn batch(offset: i64, count: i64, users: u64, seed: &mut u64) -> RecordBatch {
    let (mut user, mut product, mut kind, mut time) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for row in offset..offset + count {
        user.push(format!("user-{:08}", next(seed) % users));
        product.push(format!("product-{:05}", next(seed) % 1_000));
        kind.push(["view", "view", "view", "add_to_cart", "purchase"][(next(seed) % 5) as usize]);
        time.push(1_700_000_000_000 + row / 10 - (next(seed) % 5_000) as i64);
    }
    let rows = count as usize;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("user_id", Arc::new(StringArray::from(user))),
        ("product_id", Arc::new(StringArray::from(product))),
        ("event_type", Arc::new(StringArray::from(kind))),
        ("timestamp_ms", Arc::new(Int64Array::from(time))),
        ("_generation", Arc::new(Int32Array::from(vec![0; rows]))),
        ("_partition", Arc::new(Int32Array::from(vec![0; rows]))),
        (
            "_offset",
            Arc::new(Int64Array::from_iter_values(offset..offset + count)),
        ),
        (
            "_timestamp",
            Arc::new(TimestampMillisecondArray::from(vec![None; rows]).with_timezone("UTC")),
        ),
    ];
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

fn measure(name: &str, sql: &str, users: u64, rows: i64) {
    let text = |name| Field::new(name, DataType::Utf8, false);
    let schema = Schema::new(vec![
        text("user_id"),
        text("product_id"),
        text("event_type"),
        Field::new("timestamp_ms", DataType::Int64, false),
    ]);
    let event_time = EventTime {
        bound: Duration::from_secs(5),
        ..EventTime::default()
    };
    let query = Query::new(
        sql,
        "clicks",
        Arc::new(schema),
        "to_timestamp_millis(timestamp_ms)",
        event_time,
    )
    .expect("a good query");
    let mut engine = Engine::new(Arc::new(query), Progress::default()).expect("a new job");
    engine.assign(&[(0, 0)]);
    let mut state = MemoryState::default();
    let (mut seed, mut spent, mut fired) = (1, Duration::ZERO, 0);
    let total = 4_000_000;
    for offset in (0..total).step_by(rows as usize) {
        let batch = batch(offset, rows, users, &mut seed);
        let began = Instant::now();
        let mut emitted = engine.process(&mut state, &batch).expect("good records");
        fired += emitted.rows.num_rows();
        while emitted.more {
            emitted = engine.fire(&mut state).expect("it fires");
            fired += emitted.rows.num_rows();
        }
        spent += began.elapsed();
    }
    println!(
        "{name:<8} {users:>8} users, batches of {rows:>6}: {:>10.0} records/s, {fired} rows, {} open",
        total as f64 / spent.as_secs_f64(),
        state.len(Space::Windows),
    );
}

fn main() {
    for users in [1_000, 100_000, 1_000_000] {
        for rows in [8_192, 65_536] {
            measure("session", SESSION, users, rows);
        }
    }
    measure("tumble", TUMBLE, 100_000, 8_192);
    measure("hop", HOP, 100_000, 8_192);
}
