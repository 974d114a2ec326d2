//! How fast values are decoded on this machine, on one thread:
//! `cargo run --release -p everlog-decode --example decode_rates`.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::time::{Duration, Instant};

use everlog_common::{EventColumns, EventColumnsBuilder, Offset, TimestampType};
use everlog_decode::{Columns, Decoder, RegisteredSchema, SchemaId};

const ROWS: i64 = 8_192;

fn rows(value: impl Fn(i64) -> Vec<u8>) -> EventColumns {
    let mut builder = EventColumnsBuilder::new();
    for row in 0..ROWS {
        builder.push(
            Offset::new(row).expect("from 0"),
            (row, TimestampType::Create),
            None,
            Some(&value(row)),
            std::iter::empty(),
            None,
        );
    }
    builder.finish()
}

fn measure(name: &str, decoder: &mut Decoder, rows: &EventColumns) {
    let bytes = rows.values.value_data().len();
    let mut best = Duration::MAX;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let start = Instant::now();
        let decoded = decoder.decode(rows).expect("nothing is unlearned");
        best = best.min(start.elapsed());
        assert_eq!(decoded.kept.len() + decoded.dead.len(), rows.len());
    }
    let seconds = best.as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let (rows, bytes) = (rows.len() as f64, bytes as f64);
    println!(
        "{name:<24} {:>6.2} M rows/s  {:>7.0} MB/s  {:>5.0} ns/row  ({:.0} bytes each)",
        rows / seconds / 1e6,
        bytes / seconds / 1e6,
        seconds * 1e9 / rows,
        bytes / rows
    );
}

fn click(row: i64) -> String {
    let kind =
        ["view", "view", "view", "add_to_cart", "purchase"][usize::try_from(row % 5).unwrap_or(0)];
    format!(
        "{{\"user_id\":\"user-{}\",\"product_id\":\"product-{}\",\"event_type\":\"{kind}\",\"timestamp_ms\":{}}}",
        row * 7_919 % 100_000,
        row * 104_729 % 5_000,
        1_760_000_000_000 + row
    )
}

fn main() {
    let columns = [
        ("user_id", "STRING NOT NULL"),
        ("product_id", "STRING"),
        ("event_type", "STRING"),
        ("timestamp_ms", "BIGINT NOT NULL"),
    ];
    let columns = || Columns::parse(columns).expect("columns");
    let mut json = Decoder::json(columns());
    measure(
        "JSON clicks",
        &mut json,
        &rows(|row| click(row).into_bytes()),
    );
    let bad = |row: i64| {
        let text = click(row);
        if row % 10 == 0 {
            text.replace("17600", "x")
        } else {
            text
        }
        .into_bytes()
    };
    measure("JSON, every tenth bad", &mut json, &rows(bad));
    let wide = |row: i64| {
        let more: String = (0..20)
            .map(|i| format!(",\"field_{i}\":\"value {row}\""))
            .collect();
        click(row).replace('}', &format!("{more}}}")).into_bytes()
    };
    measure("JSON, 20 fields unread", &mut json, &rows(wide));
    let schema = r#"{"type":"record","name":"Click","fields":[{"name":"user_id","type":"string"},{"name":"product_id","type":["null","string"]},
        {"name":"event_type","type":{"type":"enum","name":"E","symbols":["view","add_to_cart","purchase"]}},{"name":"timestamp_ms","type":"long"}]}"#;
    let mut avro = Decoder::avro(columns());
    avro.learn(SchemaId(1), Ok(&RegisteredSchema::avro(schema)));
    let value = |row: i64| {
        let mut value = vec![0, 0, 0, 0, 1, 20];
        value.extend_from_slice(format!("user{:06}", row * 7_919 % 100_000).as_bytes());
        value.extend_from_slice(&[2, 20]);
        value.extend_from_slice(format!("prod{:06}", row * 104_729 % 5_000).as_bytes());
        value.push(2 * u8::try_from(row % 3).unwrap_or(0));
        let mut zigzag = 2 * (1_760_000_000_000_u64 + row.unsigned_abs());
        while zigzag > 127 {
            value.push((zigzag & 127) as u8 | 128);
            zigzag >>= 7;
        }
        value.push(zigzag as u8);
        value
    };
    measure("Avro clicks", &mut avro, &rows(value));
}
