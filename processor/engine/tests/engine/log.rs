//! Logs of records, and runs of a query over them in a given order.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMillisecondType};
use arrow_array::{
    Array, ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use everlog_engine::{
    Decision, Emitted, Engine, EngineError, EventTime, MemoryState, Progress, Query, Space, State,
};

/// One record; its offset is its place in its partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub user: String,
    pub kind: &'static str,
    pub amount: Option<i64>,
    pub price: f64,
    pub time: Option<i64>,
    pub kafka: Option<i64>,
}

pub fn record(user: &str, time: i64) -> Record {
    Record {
        user: user.to_owned(),
        kind: "view",
        amount: Some(1),
        price: 0.5,
        time: Some(time),
        kafka: None,
    }
}

/// Records per partition.
pub type Log = Vec<Vec<Record>>;

pub fn source_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("kind", DataType::Utf8, true),
        Field::new("amount", DataType::Int64, true),
        Field::new("price", DataType::Float64, true),
        Field::new("timestamp_ms", DataType::Int64, true),
    ]))
}

pub fn query(sql: &str, event_time: EventTime) -> Arc<Query> {
    Arc::new(try_query(sql, event_time).expect("the query is good"))
}

pub fn try_query(sql: &str, event_time: EventTime) -> Result<Query, everlog_engine::Refusal> {
    Query::new(
        sql,
        "clicks",
        source_schema(),
        "to_timestamp_millis(timestamp_ms)",
        event_time,
    )
}

/// A batch of the records of one partition from `offset` on.
pub fn batch(partition: i32, offset: usize, records: &[Record]) -> RecordBatch {
    let count = records.len();
    let offsets = (0..count).map(|i| (offset + i) as i64);
    let columns: Vec<(&str, ArrayRef)> = vec![
        (
            "user_id",
            Arc::new(StringArray::from_iter_values(
                records.iter().map(|r| &r.user),
            )),
        ),
        (
            "kind",
            Arc::new(StringArray::from_iter_values(
                records.iter().map(|r| r.kind),
            )),
        ),
        (
            "amount",
            Arc::new(records.iter().map(|r| r.amount).collect::<Int64Array>()),
        ),
        (
            "price",
            Arc::new(Float64Array::from_iter_values(
                records.iter().map(|r| r.price),
            )),
        ),
        (
            "timestamp_ms",
            Arc::new(records.iter().map(|r| r.time).collect::<Int64Array>()),
        ),
        ("_generation", Arc::new(Int32Array::from(vec![0; count]))),
        (
            "_partition",
            Arc::new(Int32Array::from(vec![partition; count])),
        ),
        ("_offset", Arc::new(Int64Array::from_iter_values(offsets))),
        (
            "_timestamp",
            Arc::new(
                records
                    .iter()
                    .map(|r| r.kafka)
                    .collect::<TimestampMillisecondArray>()
                    .with_timezone("UTC"),
            ),
        ),
    ];
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

/// One value, exactly: doubles by their bits, times in milliseconds.
pub fn cell(array: &ArrayRef, row: usize) -> String {
    if array.is_null(row) {
        return "null".to_owned();
    }
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Boolean => array.as_boolean().value(row).to_string(),
        DataType::Float64 => double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Timestamp(TimeUnit::Millisecond, Some(zone)) if zone.as_ref() == "UTC" => array
            .as_primitive::<TimestampMillisecondType>()
            .value(row)
            .to_string(),
        DataType::List(_) => {
            let list = array.as_list::<i32>().value(row);
            (0..list.len())
                .map(|i| cell(&list, i))
                .collect::<Vec<_>>()
                .join(",")
        }
        other => panic!("no text for {other}"),
    }
}

pub fn double(value: f64) -> String {
    format!("{:016x}", value.to_bits())
}

pub fn lines(batch: &RecordBatch) -> Vec<String> {
    (0..batch.num_rows())
        .map(|row| {
            batch
                .columns()
                .iter()
                .map(|column| cell(column, row))
                .collect::<Vec<_>>()
                .join("|")
        })
        .collect()
}

/// What a run gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// In the order that they came; with time per partition, each partition's.
    pub rows: Vec<String>,
    pub late: Vec<String>,
    pub dead: Vec<String>,
}

/// A query running over a log.
pub struct Run {
    pub engine: Engine,
    pub state: MemoryState,
    pub outcome: Outcome,
    pub positions: Vec<usize>,
    timers: usize,
    bytes: usize,
}

impl Run {
    pub fn new(query: &Arc<Query>, partitions: usize) -> Self {
        let engine = Engine::new(Arc::clone(query), Progress::default()).expect("a new job");
        Self {
            engine,
            state: MemoryState::default(),
            outcome: Outcome::default(),
            positions: vec![0; partitions],
            timers: 1 << 20,
            bytes: 1 << 30,
        }
    }

    /// A run that all partitions are assigned to from the start.
    pub fn assigned(query: &Arc<Query>, partitions: usize) -> Self {
        let mut run = Self::new(query, partitions);
        let all: Vec<(i32, i32)> = (0..partitions as i32).map(|p| (0, p)).collect();
        assert_eq!(run.engine.assign(&all), []);
        run
    }

    pub fn timers_per_call(mut self, timers: usize) -> Self {
        self.timers = timers;
        self.engine = self.engine.with_timers_per_call(timers);
        self
    }

    pub fn bytes_per_call(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self.engine = self.engine.with_bytes_per_call(bytes);
        self
    }

    /// Stops and starts again from what a checkpoint holds, as bytes.
    pub fn restart(&mut self) {
        let progress = serde_json::to_vec(self.engine.progress()).expect("it is data");
        let mut state = MemoryState::default();
        for space in Space::ALL {
            for (key, value) in self.state.entries(space) {
                state
                    .put(space, key.to_vec(), value.to_vec())
                    .expect("in memory");
            }
        }
        let query = Arc::clone(self.engine.query());
        let progress = serde_json::from_slice(&progress).expect("what was written");
        self.engine = Engine::new(query, progress)
            .expect("the same query")
            .with_timers_per_call(self.timers)
            .with_bytes_per_call(self.bytes);
        self.state = state;
    }

    pub fn take(&mut self, emitted: Emitted) -> usize {
        let mut emitted = emitted;
        let mut calls = 1;
        loop {
            self.outcome.rows.extend(lines(&emitted.rows));
            self.outcome.late.extend(lines(&emitted.late));
            self.outcome.dead.extend(lines(&emitted.dead));
            if !emitted.more {
                return calls;
            }
            emitted = self.engine.fire(&mut self.state).expect("it fires");
            calls += 1;
        }
    }

    /// Reads `count` more records of a partition.
    pub fn read(&mut self, log: &Log, partition: usize, count: usize) -> Result<(), EngineError> {
        let from = self.positions[partition];
        let to = from.saturating_add(count).min(log[partition].len());
        let batch = batch(partition as i32, from, &log[partition][from..to]);
        self.positions[partition] = to;
        let emitted = self.engine.process(&mut self.state, &batch)?;
        self.take(emitted);
        Ok(())
    }

    pub fn decide(&mut self, decision: Decision) {
        self.engine.decide(decision).expect("a decision in time");
        let emitted = self.engine.fire(&mut self.state).expect("it fires");
        self.take(emitted);
    }

    /// Reads the rest in the order of partitions, fires everything, and gives the outcome.
    pub fn finish(mut self, log: &Log) -> Outcome {
        for partition in 0..log.len() {
            self.read(log, partition, usize::MAX).expect("a good log");
        }
        self.drain()
    }

    pub fn drain(mut self) -> Outcome {
        let emitted = self.engine.drain(&mut self.state).expect("it drains");
        self.take(emitted);
        for space in [Space::Windows, Space::Timers] {
            let left = self
                .state
                .entries(space)
                .filter(|(key, _)| space == Space::Windows || key[0] == 0);
            assert_eq!(
                left.count(),
                0,
                "a drained job has no open windows in {space:?}"
            );
        }
        self.outcome.late.sort();
        self.outcome.dead.sort();
        self.outcome
    }
}
