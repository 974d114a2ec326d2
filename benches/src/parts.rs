//! Where a job's time goes: decoding, grouping and state, each by itself, on one thread.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray};
use everlog_common::clock::RandomIds;
use everlog_common::record::TimestampType;
use everlog_common::{EventColumns, EventColumnsBuilder, Ids as _, Offset, Positions};
use everlog_decode::Decoder;
use everlog_engine::{Engine, EventTime, Progress, Query, Space, State, StateError};
use everlog_processor::state::{
    BasePolicy, Budget, Identity, JobId, JobState, Opening, Sealing, no_rows, take_over,
};
use everlog_table::storage::Storage;
use tokio::runtime::Runtime;

use crate::clicks;

/// Rows that go through at a time, as in a running job.
const ROWS: usize = 32_768;
/// Rows after which an epoch ends: ten seconds' worth and more.
const EPOCH_ROWS: usize = 1_000_000;

/// The state, and how long everything took that was asked of it.
struct Timed<'a> {
    state: &'a mut JobState,
    took: Cell<Duration>,
}

impl Timed<'_> {
    fn timed<T>(&self, work: impl FnOnce(&JobState) -> T) -> T {
        let began = Instant::now();
        let done = work(self.state);
        self.took.set(self.took.get() + began.elapsed());
        done
    }

    fn timed_mut<T>(&mut self, work: impl FnOnce(&mut JobState) -> T) -> T {
        let began = Instant::now();
        let done = work(self.state);
        self.took.set(self.took.get() + began.elapsed());
        done
    }
}

impl State for Timed<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.timed(|state| state.get(space, key))
    }

    fn get_many(&self, space: Space, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StateError> {
        self.timed(|state| state.get_many(space, keys))
    }

    fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) -> Result<(), StateError> {
        self.timed_mut(|state| state.put(space, key, value))
    }

    fn delete(&mut self, space: Space, key: Vec<u8>) -> Result<(), StateError> {
        self.timed_mut(|state| state.delete(space, key))
    }

    fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
        self.timed(|state| state.range(space, from, to, limit))
    }
}

/// Seconds of one thread.
#[derive(Debug, Default)]
struct Took {
    decoding: Duration,
    grouping: Duration,
    state: Duration,
    epochs: Duration,
}

/// Runs the sessions' query over `count` clicks in memory and prints the shares.
pub(crate) fn report(runtime: &Runtime, count: usize) {
    let batches = batches(count);
    let folder = tempfile::tempdir().expect("temp dir");
    let took = runtime.block_on(run(batches, folder.path()));
    let all = took.decoding + took.grouping + took.state + took.epochs;
    println!("\n{count} clicks on one thread, from values in memory to rows:");
    println!("| part | s per million | share |\n|---|---|---|");
    for (name, part) in [
        ("decoding (JSON to columns)", took.decoding),
        (
            "grouping (lateness, keys, sessions, aggregates, rows)",
            took.grouping,
        ),
        ("state (reads and writes)", took.state),
        ("epochs (files, local store)", took.epochs),
    ] {
        println!(
            "| {name} | {:.2} | {:.0} % |",
            part.as_secs_f64() * 1e6 / count as f64,
            100.0 * part.as_secs_f64() / all.as_secs_f64()
        );
    }
    println!(
        "\nevents/s of one core: {:.0}",
        count as f64 / all.as_secs_f64()
    );
}

/// The clicks as they come out of Kafka or a data file, partition by partition in turn.
fn batches(count: usize) -> Vec<(i32, EventColumns)> {
    let mut open: BTreeMap<i32, (i64, EventColumnsBuilder)> = BTreeMap::new();
    let mut full = Vec::new();
    for click in clicks::sessions(count) {
        let (offset, builder) = open.entry(click.partition).or_default();
        builder.push(
            Offset::new(*offset).expect("not negative"),
            (click.time, TimestampType::Create),
            Some(click.key.as_bytes()),
            Some(click.value.as_bytes()),
            std::iter::empty(),
            None,
        );
        *offset += 1;
        if builder.len() == ROWS {
            full.push((click.partition, builder.finish()));
        }
    }
    full.extend(
        open.into_iter()
            .map(|(partition, (_, mut builder))| (partition, builder.finish())),
    );
    full
}

async fn run(batches: Vec<(i32, EventColumns)>, folder: &std::path::Path) -> Took {
    let query = Query::new(
        clicks::SESSIONS,
        "bench_clicks",
        clicks::columns().schema(),
        "to_timestamp_millis(timestamp_ms)",
        EventTime {
            bound: Duration::from_secs(30),
            ..EventTime::default()
        },
    )
    .expect("a good query");
    let query = Arc::new(query);
    let taken = take_over(Opening {
        storage: Storage::from_properties(&BTreeMap::new()).expect("local storage"),
        location: format!("file://{}/jobs", folder.display()),
        identity: Identity {
            job: JobId::new("parts", "v1").expect("a name"),
            fingerprint: query.fingerprint(),
            engine: "bench".to_owned(),
        },
        writer: RandomIds.uuid(),
        local: folder.join("local"),
        local_memory: Budget::of(1 << 30).local,
        patience: Duration::from_secs(1),
        base: BasePolicy::default(),
    })
    .await
    .expect("a new job");
    let recovered = taken.recover(Vec::new()).await.expect("a new job");
    let (mut state, mut checkpoints) = (recovered.state, recovered.checkpoints);
    let mut engine = Engine::new(Arc::clone(&query), Progress::default()).expect("a new job");
    let partitions: Vec<(i32, i32)> = (0..4).map(|partition| (0, partition)).collect();
    engine.assign(&partitions);
    let mut decoder = Decoder::json(clicks::columns());
    let mut took = Took::default();
    let mut rows: Vec<RecordBatch> = Vec::new();
    let mut since = 0;
    let count = batches.len();
    for (number, (partition, columns)) in batches.into_iter().enumerate() {
        let began = Instant::now();
        let decoded = decoder.decode(&columns).expect("rows");
        assert_eq!(decoded.dead, []);
        let batch = with_places(&decoded.columns, partition, &columns);
        took.decoding += began.elapsed();

        let began = Instant::now();
        let mut timed = Timed {
            state: &mut state,
            took: Cell::default(),
        };
        let mut emitted = engine.process(&mut timed, &batch).expect("a good batch");
        rows.push(emitted.rows);
        while emitted.more {
            emitted = engine.fire(&mut timed).expect("it fires");
            rows.push(emitted.rows);
        }
        let of_state = timed.took.get();
        took.state += of_state;
        took.grouping += began.elapsed().saturating_sub(of_state);

        since += batch.num_rows();
        if since >= EPOCH_ROWS || number + 1 == count {
            since = 0;
            let began = Instant::now();
            let schema = query.output_schema();
            let epoch = state.seal(Sealing {
                progress: serde_json::to_vec(engine.progress()).expect("it is data"),
                positions: Positions::default(),
                rows: arrow_select::concat::concat_batches(&schema, &rows).expect("one schema"),
                late: no_rows(),
                dead: no_rows(),
            });
            rows.clear();
            checkpoints.commit(&epoch).await.expect("an epoch");
            state.settle(epoch.number);
            took.epochs += began.elapsed();
        }
    }
    checkpoints.close().await.expect("an end");
    took
}

/// The decoded columns with those that the engine adds.
fn with_places(decoded: &RecordBatch, partition: i32, rows: &EventColumns) -> RecordBatch {
    let count = rows.len();
    let times = rows.timestamps.values().iter().copied();
    let own: [(&str, ArrayRef); 4] = [
        ("_generation", Arc::new(Int32Array::from(vec![0; count]))),
        (
            "_partition",
            Arc::new(Int32Array::from(vec![partition; count])),
        ),
        (
            "_offset",
            Arc::new(Int64Array::from_iter_values(
                rows.offsets.values().iter().copied(),
            )),
        ),
        (
            "_timestamp",
            Arc::new(TimestampMillisecondArray::from_iter_values(times).with_timezone("UTC")),
        ),
    ];
    let schema = decoded.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let columns = names.zip(decoded.columns().iter().cloned());
    RecordBatch::try_from_iter_with_nullable(
        columns
            .chain(own)
            .map(|(name, column)| (name, column, true)),
    )
    .expect("columns of one length")
}
