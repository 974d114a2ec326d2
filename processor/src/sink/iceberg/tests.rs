use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use everlog_common::clock::{ManualClock, SeededIds, SystemClock};
use everlog_common::{Clock as _, Millis};
use everlog_table::catalog::memory::{Call, Fault, MemoryCatalog};
use everlog_table::job::JobPartitioning;
use futures::TryStreamExt as _;
use object_store::memory::InMemory;

use super::*;
use crate::state::{JobId, no_rows};

pub(crate) fn deps(seed: u64) -> (ArchiveDeps, Arc<MemoryCatalog>) {
    // Iceberg checks metadata against the machine's time, so ours runs in its past
    let past = SystemClock::default().now().0 - 86_400_000;
    let clock = Arc::new(ManualClock::at(Millis(past)));
    let ids = Arc::new(SeededIds::new(seed));
    let memory = Arc::new(MemoryCatalog::new(
        Arc::new(InMemory::new()),
        "lake://warehouse",
        Arc::clone(&clock) as _,
        Arc::clone(&ids) as _,
    ));
    let deps = ArchiveDeps {
        catalog: Arc::clone(&memory) as _,
        clock,
        ids,
    };
    (deps, memory)
}

fn spec() -> JobTableSpec {
    JobTableSpec {
        table: "sessions".to_owned(),
        job: "sessions".to_owned(),
        version: "v1".to_owned(),
        columns: Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)])),
        fingerprint: "f".to_owned(),
        partitioning: JobPartitioning::None,
        properties: BTreeMap::new(),
        about: BTreeMap::new(),
    }
}

fn epoch(number: u64, from: i64, to: i64) -> Epoch {
    let numbers = Int64Array::from_iter_values(from..to);
    let position = Position {
        generation: Generation(2),
        offset: Offset::new(to * 10).expect("an offset"),
    };
    Epoch {
        number,
        job: JobId::new("sessions", "v1").expect("a job"),
        fingerprint: 7,
        engine: "everlog 0.1".to_owned(),
        changes: Arc::default(),
        progress: br#"{"watermark":1700000000000,"partitions":{}}"#.to_vec(),
        positions: [(Partition::new(3).expect("a partition"), position)].into(),
        rows_before: from.unsigned_abs(),
        late_before: 0,
        dead_before: 0,
        rows: RecordBatch::try_new(spec().columns, vec![Arc::new(numbers)]).expect("rows"),
        late: no_rows(),
        dead: no_rows(),
    }
}

async fn rows(sink: &IcebergSink) -> Vec<i64> {
    let state = sink.table().state().await.expect("a state");
    let scan = sink.table().scan(state.main, None).await.expect("a scan");
    let batches: Vec<RecordBatch> = scan.batches().try_collect().await.expect("rows");
    batches
        .iter()
        .flat_map(|batch| {
            let numbers = batch.column(0).as_any().downcast_ref::<Int64Array>();
            numbers.expect("numbers").values().to_vec()
        })
        .collect()
}

#[tokio::test]
async fn epochs_are_there_once_whatever_becomes_of_replies_and_processes() {
    let (deps, memory) = deps(1);
    let mut sink = IcebergSink::open(deps.clone(), "everlog", &spec())
        .await
        .expect("a sink");
    assert_eq!(sink.committed().await.expect("read"), None);
    sink.commit(&epoch(1, 0, 3)).await.expect("committed");
    memory.inject(Call::Commit, Fault::LostAfter);
    sink.commit(&epoch(2, 3, 5)).await.expect("committed");
    // nothing to commit
    sink.commit(&epoch(3, 5, 5)).await.expect("done");
    sink.commit(&epoch(2, 3, 5)).await.expect("done");
    let held = sink.committed().await.expect("read").expect("a marker");
    assert_eq!((held.epoch, held.rows), (2, 5));
    assert_eq!(held.positions, epoch(2, 3, 5).positions);
    // another process goes on; the first one, which does not know, does no harm
    let mut other = IcebergSink::open(deps.clone(), "everlog", &spec())
        .await
        .expect("a sink");
    other.commit(&epoch(4, 5, 9)).await.expect("committed");
    sink.commit(&epoch(4, 5, 8)).await.expect("it is there");
    let error = sink
        .commit(&epoch(5, 8, 12))
        .await
        .expect_err("out of step");
    assert!(
        matches!(
            error,
            SinkError::OutOfStep { .. } | SinkError::Fenced { .. }
        ),
        "{error}"
    );
    assert_eq!(rows(&other).await, (0..9).collect::<Vec<_>>());
    let state = other.table().state().await.expect("a state");
    let marker = state.versions["v1"].marker.as_ref().expect("a marker");
    assert_eq!(marker.watermark, Some(1_700_000_000_000));
    assert_eq!(marker.positions, r#"{"3":[2,90]}"#);
}

#[tokio::test]
async fn a_version_that_was_dropped_says_so_and_not_that_another_process_came() {
    let (deps, _) = deps(3);
    let mut first = IcebergSink::open(deps.clone(), "everlog", &spec())
        .await
        .expect("a sink");
    first.commit(&epoch(1, 0, 3)).await.expect("committed");
    let second = JobTableSpec {
        version: "v2".to_owned(),
        ..spec()
    };
    let mut sink = IcebergSink::open(deps, "everlog", &second)
        .await
        .expect("a sink");
    let of_v2 = |number, from, to| Epoch {
        job: JobId::new("sessions", "v2").expect("a job"),
        ..epoch(number, from, to)
    };
    sink.commit(&of_v2(1, 0, 3)).await.expect("committed");
    let dropped = first.table().drop_version("v2").await;
    assert!(dropped.expect("dropped").is_some());
    let error = sink.commit(&of_v2(2, 3, 5)).await.expect_err("dropped");
    assert_eq!(error.exit_status(), 5);
    let error = error.to_string();
    assert!(
        error.contains("was dropped from the table") && !error.contains("took over"),
        "{error}"
    );
}

#[tokio::test]
async fn a_catalog_that_is_away_is_waited_for_and_not_for_ever() {
    let (deps, memory) = deps(2);
    let mut sink = IcebergSink::open(deps, "everlog", &spec())
        .await
        .expect("a sink");
    sink.commit(&epoch(1, 0, 3)).await.expect("committed");
    for _ in 0..15 {
        memory.inject(Call::Load, Fault::Unavailable);
    }
    sink.commit(&epoch(2, 3, 5))
        .await
        .expect("committed after a while");
    for _ in 0..3_000 {
        memory.inject(Call::Load, Fault::Unavailable);
    }
    let error = sink.commit(&epoch(3, 5, 6)).await.expect_err("given up");
    assert_eq!(error.exit_status(), 1, "{error}");
    memory.clear_faults();
    sink.commit(&epoch(3, 5, 6)).await.expect("committed");
    assert_eq!(rows(&sink).await, (0..6).collect::<Vec<_>>());
}

#[test]
fn positions_are_read_back_as_they_were_written() {
    let positions = epoch(1, 0, 3).positions;
    assert_eq!(
        parse_positions(&write_positions(&positions)),
        Some(positions)
    );
    assert_eq!(parse_positions("{\"x\":[0,1]}"), None);
    assert_eq!(parse_positions("{\"0\":[0,-1]}"), None);
    assert_eq!(watermark_of(b"{}"), None);
}
