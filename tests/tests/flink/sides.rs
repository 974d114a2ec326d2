//! One query over one topic, here and on Flink.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray};
use everlog_common::Offset;
use everlog_common::record::{EventColumnsBuilder, TimestampType};
use everlog_decode::Decoder;
use everlog_engine::{Emitted, Engine, EventTime, Flink as Program, MemoryState, Progress, Query};
use everlog_tests::broker::Broker;
use everlog_tests::compare::Record;
use everlog_tests::services::{Flink, Kafka};
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::clicks::columns;
use crate::rows::{self, Row};

pub fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

fn flink() -> &'static Flink {
    static FLINK: OnceLock<Flink> = OnceLock::new();
    FLINK.get_or_init(|| Flink::start(&["--slots", "8"]))
}

/// SQL over the clicks.
pub fn query(sql: &str, time: EventTime) -> Query {
    Query::new(
        sql,
        "clicks",
        columns().schema(),
        "to_timestamp_millis(timestamp_ms)",
        time,
    )
    .unwrap_or_else(|refusal| panic!("{sql}: {refusal}"))
}

/// What everlog gave.
#[derive(Debug, Default)]
pub struct Outcome {
    pub rows: Vec<Row>,
    /// Partition and offset.
    pub late: BTreeSet<(i32, i64)>,
}

impl Outcome {
    fn take(&mut self, emitted: &Emitted) {
        assert_eq!(emitted.dead.num_rows(), 0, "{:?}", emitted.dead);
        self.rows.extend(rows::of_batch(&emitted.rows));
        let partitions = emitted.late.column(1).as_primitive::<Int32Type>();
        let offsets = emitted.late.column(2).as_primitive::<Int64Type>();
        let places = partitions.values().iter().zip(offsets.values().iter());
        self.late.extend(places.map(|(p, o)| (*p, *o)));
    }
}

/// Everlog's decoder and engine over a topic that ends where it ends now, in batches and an order of partitions that chance
/// decides.
pub fn everlog(query: &Arc<Query>, topic: &str, random: &mut StdRng) -> Outcome {
    let log = Broker::new(&kafka().bootstrap).dump(topic);
    let mut engine = Engine::new(Arc::clone(query), Progress::default()).expect("a new job");
    let mut state = MemoryState::default();
    let mut decoder = Decoder::json(columns());
    let all: Vec<(i32, i32)> = log.keys().map(|partition| (0, *partition)).collect();
    engine.assign(&all);
    let mut left: BTreeMap<i32, &[Record]> = log.iter().map(|(p, r)| (*p, r.as_slice())).collect();
    let mut outcome = Outcome::default();
    while !left.is_empty() {
        let number = random.random_range(0..left.len());
        let partition = *left.keys().nth(number).expect("one of them");
        let records = left[&partition];
        let (now, rest) = records.split_at(random.random_range(1..=700).min(records.len()));
        if rest.is_empty() {
            left.remove(&partition);
        } else {
            left.insert(partition, rest);
        }
        let batch = decoded(&mut decoder, partition, now);
        let mut emitted = engine.process(&mut state, &batch).expect("a good batch");
        outcome.take(&emitted);
        while emitted.more {
            emitted = engine.fire(&mut state).expect("it fires");
            outcome.take(&emitted);
        }
    }
    let mut emitted = engine.drain(&mut state).expect("it drains");
    outcome.take(&emitted);
    while emitted.more {
        emitted = engine.fire(&mut state).expect("it fires");
        outcome.take(&emitted);
    }
    outcome
}

fn decoded(decoder: &mut Decoder, partition: i32, records: &[Record]) -> RecordBatch {
    let mut builder = EventColumnsBuilder::new();
    for record in records {
        builder.push(
            Offset::new(record.offset).expect("an offset"),
            (record.timestamp.expect("a time"), TimestampType::Create),
            record.key.as_deref(),
            record.value.as_deref(),
            std::iter::empty(),
            None,
        );
    }
    let decoded = decoder.decode(&builder.finish()).expect("rows");
    assert_eq!(decoded.dead, []);
    let count = records.len();
    let offsets = records.iter().map(|record| record.offset);
    let times = records.iter().map(|record| record.timestamp);
    let own: [(&str, ArrayRef); 4] = [
        ("_generation", Arc::new(Int32Array::from(vec![0; count]))),
        (
            "_partition",
            Arc::new(Int32Array::from(vec![partition; count])),
        ),
        ("_offset", Arc::new(Int64Array::from_iter_values(offsets))),
        (
            "_timestamp",
            Arc::new(
                times
                    .collect::<TimestampMillisecondArray>()
                    .with_timezone("UTC"),
            ),
        ),
    ];
    let schema = decoded.columns.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let columns = names.zip(decoded.columns.columns().iter().cloned());
    RecordBatch::try_from_iter_with_nullable(
        columns
            .chain(own)
            .map(|(name, column)| (name, column, true)),
    )
    .expect("columns of one length")
}

/// How Flink runs it.
#[derive(Clone, Copy, Debug)]
pub struct OnFlink {
    /// Wider than the data: nothing is late, and everything fires at the end of the topic, when Flink's watermark is at its
    /// maximum.
    pub all_time: bool,
    pub parallelism: usize,
}

impl OnFlink {
    /// Flink's own idea of what is late, with a watermark after every record: by default it looks at the wall clock.
    pub const AS_IT_COMES: Self = Self {
        all_time: false,
        parallelism: 1,
    };
}

fn owned(options: &[(&str, &str)]) -> Vec<(String, String)> {
    options
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// The rows of the same query as Flink SQL over the same topic, in the order of Flink's files.
pub fn on_flink(query: &Query, topic: &str, how: OnFlink) -> Vec<Row> {
    let folder = tempfile::Builder::new()
        .prefix("everlog-rows")
        .tempdir()
        .expect("temp dir");
    let rows = folder.path().join("rows");
    let program = query.flink(&Program {
        source: owned(&[
            ("connector", "kafka"),
            ("topic", topic),
            ("properties.bootstrap.servers", &kafka().bootstrap),
            ("properties.isolation.level", "read_committed"),
            ("scan.startup.mode", "earliest-offset"),
            ("scan.bounded.mode", "latest-offset"),
            ("scan.watermark.emit.strategy", "on-event"),
            ("format", "json"),
        ]),
        sink_name: "rows".to_owned(),
        sink: owned(&[
            ("connector", "filesystem"),
            ("path", &rows.display().to_string()),
            ("format", "json"),
            ("json.timestamp-format.standard", "ISO-8601"),
            ("json.encode.decimal-as-plain-number", "true"),
        ]),
        watermark: how.all_time.then_some(Duration::from_hours(30 * 24)),
    });
    let program = program.expect("Flink has all of it");
    run_on_flink(&program, how.parallelism);
    rows::of_files(&rows, &query.output_schema())
}

/// Runs an SQL program of one INSERT to its end.
pub fn run_on_flink(program: &str, parallelism: usize) {
    let jobs = flink().sql(program, &[&format!("parallelism.default={parallelism}")]);
    assert!(
        matches!(jobs.as_slice(), [job] if job.contains(r#""state":"FINISHED""#)),
        "{jobs:?}\n{program}"
    );
}
