//! The same rows, byte for byte: from the archive, from the live log, from both, in one run or in many that are cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use everlog_processor::run::{Bound, Prepared, RunError, run};
use proptest::prelude::*;

use crate::world::{Desk, World, options};

const JOB: &str = r#"
[job]
name = "sessions"
version = "v1"

[source]
topic = "clicks"
format = "json"
columns = { user = "STRING NOT NULL", kind = "STRING", at = "BIGINT" }
event_time = "to_timestamp_millis(at)"
out_of_orderness = "2s"
allowed_lateness = "1s"

[query]
sql = """
SELECT user, SESSION_START(ts, INTERVAL '10' SECOND) AS began, SESSION_END(ts, INTERVAL '10' SECOND) AS ended,
       count(*) AS events, count(*) FILTER (WHERE kind = 'buy') AS bought, min(kind) AS first_kind
FROM clicks GROUP BY user, SESSION(ts, INTERVAL '10' SECOND)"""

[sink]
type = "jsonl"
path = "DIR/rows.jsonl"
late = "jsonl:DIR/late.jsonl"
dead_letter = "jsonl:DIR/dead.jsonl"

[checkpoint]
interval = "100ms"
location = "file://DIR/state"

[limits]
memory = "64MiB"
"#;

const BEGIN: i64 = 1_700_000_000_000;

/// One record of the generated log.
#[derive(Debug, Clone)]
struct Click {
    partition: i32,
    user: u8,
    kind: u8,
    /// Time since the one before, and how far it is off.
    step_ms: i64,
    off_ms: i64,
    /// 0: no JSON; 1: no time; else a good record.
    shape: u8,
}

fn clicks(partitions: i32) -> impl Strategy<Value = Vec<Click>> {
    let click = (
        0..partitions,
        0_u8..6,
        0_u8..3,
        0_i64..3_000,
        prop_oneof![4 => 0_i64..2_000, 1 => 2_000_i64..20_000],
        0_u8..60,
    )
        .prop_map(|(partition, user, kind, step_ms, off_ms, shape)| Click {
            partition,
            user,
            kind,
            step_ms,
            off_ms,
            shape,
        });
    prop::collection::vec(click, 50..400)
}

/// Appends all; every partition has something, so that none holds time back for ever.
fn produce(world: &World, clicks: &[Click], partitions: i32) {
    let mut now = BEGIN;
    for partition in 0..partitions {
        let value = format!(r#"{{"user":"u0","kind":"view","at":{now}}}"#);
        world.append(partition, &value, now);
    }
    for click in clicks {
        now += click.step_ms;
        let at = now - click.off_ms;
        let kind = ["view", "add", "buy"][usize::from(click.kind)];
        let value = match click.shape {
            0 => "no json".to_owned(),
            1 => format!(r#"{{"user":"u{}","kind":"{kind}"}}"#, click.user),
            _ => format!(r#"{{"user":"u{}","kind":"{kind}","at":{at}}}"#, click.user),
        };
        world.append(click.partition, &value, now);
    }
}

/// What a job put out: rows in their order, late records and dead letters as sets.
#[derive(Debug, PartialEq)]
struct Output {
    rows: Vec<String>,
    late: BTreeSet<String>,
    dead: BTreeSet<String>,
}

fn output(desk: &Desk) -> Output {
    let set = |name| {
        let lines = desk.lines(name);
        let count = lines.len();
        let set: BTreeSet<String> = lines.into_iter().collect();
        assert_eq!(set.len(), count, "{name} has a line twice");
        set
    };
    Output {
        rows: desk.lines("rows.jsonl"),
        late: set("late.jsonl"),
        dead: set("dead.jsonl"),
    }
}

/// Runs a job to its end through so many attempts that are cut off after a while, as a kill would.
async fn run_through(desk: &Desk, world: &World, cuts: &[u64]) {
    for cut in cuts {
        let environment = desk.environment(world);
        let job = everlog_processor::job::Job::parse(desk.text(), "job.toml").unwrap();
        let prepared = Prepared::new(job, &environment).await.unwrap();
        let running = run(prepared, environment, options(Bound::Now, true));
        let ended = tokio::time::timeout(Duration::from_millis(*cut), running).await;
        if let Ok(ended) = ended {
            ended.unwrap();
            return;
        }
    }
    desk.run(world, Bound::Now, true).await.unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn history_live_and_both_give_the_same_rows_however_they_are_cut(
        partitions in 1_i32..4,
        seed_clicks in clicks(3),
        share in prop::collection::vec(1_i64..400, 3),
        step in 1_i64..200,
        batch in 1_usize..100,
        cuts in prop::collection::vec(1_u64..400, 0..4),
    ) {
        let clicks: Vec<Click> = seed_clicks
            .into_iter()
            .map(|click| Click { partition: click.partition % partitions, ..click })
            .collect();
        runtime().block_on(async {
            // live alone: the archive is empty
            let count = usize::try_from(partitions).unwrap();
            let live = World::new(count).await;
            produce(&live, &clicks, partitions);
            live.log.limit_batches(batch);
            let desk = Desk::new(JOB);
            let done = desk.run(&live, Bound::Now, true).await.unwrap();
            assert!(done.drained);
            let expected = output(&desk);
            let records = clicks.len() + count;
            assert_eq!(done.events, records as u64);
            assert_eq!(done.counts.rows, expected.rows.len() as u64);
            let kept: u64 = expected.rows.iter().map(|row| {
                serde_json::from_str::<serde_json::Value>(row).unwrap()["events"].as_u64().unwrap()
            }).sum();
            assert_eq!(kept + expected.late.len() as u64 + expected.dead.len() as u64, records as u64);

            // history alone
            let history = World::new(count).await;
            produce(&history, &clicks, partitions);
            history.archive_all(step).await;
            let desk = Desk::new(JOB);
            desk.run(&history, Bound::Snapshot, true).await.unwrap();
            assert_eq!(output(&desk), expected, "history alone");

            // a part of it is archived, then more comes; cut off now and then
            let both = World::new(count).await;
            produce(&both, &clicks, partitions);
            both.log.limit_batches(batch);
            let ends: BTreeMap<i32, i64> = (0..).zip(share.iter().copied()).collect();
            both.archive_to(&ends, step).await;
            let desk = Desk::new(JOB);
            run_through(&desk, &both, &cuts).await;
            assert_eq!(output(&desk), expected, "both, cut off after {cuts:?} ms");

            // the same in two runs, of which the first keeps its windows open, with the archive growing in between
            let desk = Desk::new(JOB);
            desk.run(&both, Bound::Snapshot, false).await.unwrap();
            both.archive_all(step).await;
            desk.run(&both, Bound::Now, true).await.unwrap();
            assert_eq!(output(&desk), expected, "in two runs");

            // what was drained stays so
            desk.run(&both, Bound::Now, true).await.unwrap();
            let again = desk.run(&both, Bound::Now, false).await;
            assert!(matches!(again, Err(RunError::Engine { .. })), "{again:?}");
            assert_eq!(output(&desk), expected, "run again");
        });
    }
}
