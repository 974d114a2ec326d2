//! Deduplication of the source: what is kept depends on each partition's records alone.

use std::sync::Arc;
use std::time::Duration;

use everlog_engine::{EventTime, Query, Space};
use proptest::prelude::*;

use crate::log::{Log, Record, Run, batch, record, try_query};

const WITHIN: i64 = 20;

fn deduplicated(sql: &str, bound: u64) -> Arc<Query> {
    let event_time = EventTime {
        bound: Duration::from_millis(bound),
        ..EventTime::default()
    };
    let query = try_query(sql, event_time).expect("the query is good");
    let by = ["user_id".to_owned()];
    Arc::new(
        query
            .deduplicate(&by, Duration::from_millis(WITHIN as u64))
            .expect("a column"),
    )
}

const COPY: &str = "SELECT user_id, _partition, _offset FROM clicks";

fn reference(log: &Log, bound: i64) -> (Vec<Vec<String>>, Vec<String>) {
    let (mut rows, mut late) = (Vec::new(), Vec::new());
    for (p, records) in log.iter().enumerate() {
        let mut kept: Vec<(&str, i64)> = Vec::new();
        let mut w = i64::MIN / 2;
        let mut own = Vec::new();
        for (o, r) in records.iter().enumerate() {
            let t = r.time.expect("a time");
            if t <= w - WITHIN {
                late.push(format!("0|{p}|{o}"));
            } else if !kept
                .iter()
                .any(|(user, other)| *user == r.user && (t - other).abs() <= WITHIN)
            {
                kept.push((&r.user, t));
                own.push(format!("{}|{p}|{o}", r.user));
            }
            w = w.max(t - bound - 1);
        }
        rows.push(own);
    }
    (rows, late)
}

fn log_strategy() -> impl Strategy<Value = Log> {
    let one = (0..4_usize, 0..12_i64, -80_i64..20);
    let records = prop::collection::vec(one, 0..60).prop_map(|raw| {
        let mut now = 0;
        raw.into_iter()
            .map(|(user, step, jump)| {
                now += step;
                record(
                    ["a", "b", "c", "d"][user],
                    if jump > 0 { now } else { now + jump / 2 },
                )
            })
            .collect::<Vec<Record>>()
    });
    prop::collection::vec(records, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_first_of_equal_records_is_kept_in_any_order_of_reading(
        log in log_strategy(),
        bound in 0..30_u64,
        cuts in prop::collection::vec((0..3_usize, 1..9_usize, any::<bool>()), 0..200),
    ) {
        let query = deduplicated(COPY, bound);
        let mut run = Run::assigned(&query, log.len()).timers_per_call(2).bytes_per_call(60);
        for (partition, count, restart) in cuts {
            run.read(&log, partition % log.len(), count).expect("a good log");
            if restart {
                run.restart();
            }
        }
        let outcome = run.finish(&log);
        let (rows, late) = reference(&log, bound as i64);
        for (p, expected) in rows.iter().enumerate() {
            let part = format!("|{p}|");
            let own: Vec<String> = outcome.rows.iter().filter(|row| row.contains(&part)).cloned().collect();
            prop_assert_eq!(&own, expected);
        }
        let places: Vec<String> =
            outcome.late.iter().map(|l| l.split('|').take(3).collect::<Vec<_>>().join("|")).collect();
        prop_assert_eq!(places.len(), late.len());
        for place in late {
            prop_assert!(places.contains(&place), "{} is late", place);
        }
    }
}

#[test]
fn what_can_not_be_repeated_any_more_is_forgotten() {
    let query = deduplicated(COPY, 0);
    let log = vec![
        (0..1_000)
            .map(|i| record(&format!("user-{i}"), i * 10))
            .collect::<Vec<_>>(),
    ];
    let mut run = Run::assigned(&query, 1);
    run.read(&log, 0, 1_000).expect("a good log");
    assert_eq!(run.outcome.rows.len(), 1_000);
    assert!(
        run.state.len(Space::Dedup) <= 5,
        "{} keys are remembered",
        run.state.len(Space::Dedup)
    );
    assert_eq!(run.state.len(Space::Dedup), run.state.len(Space::Timers));
}

#[test]
fn a_key_that_no_store_takes_is_a_dead_letter() {
    let query = deduplicated(COPY, 0);
    let log = vec![vec![
        record("a", 0),
        record(&"x".repeat(70_000), 1),
        record("b", 2),
        record("a", 3),
    ]];
    let mut run = Run::assigned(&query, 1);
    run.read(&log, 0, 4).expect("a good log");
    assert_eq!(run.outcome.rows, ["a|0|0", "b|0|2"]);
    let [dead] = run.outcome.dead.as_slice() else {
        panic!("{:?}", run.outcome.dead);
    };
    assert!(
        dead.starts_with("0|0|1|its key for deduplication takes 7"),
        "{dead}"
    );
}

#[test]
fn windows_count_what_is_left_after_deduplication() {
    let query = deduplicated(
        "SELECT user_id, count(*) AS n FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '1' SECOND)",
        100,
    );
    let log = vec![vec![
        record("a", 1),
        record("a", 2),
        record("a", 50),
        record("a", 60),
        record("b", 2),
    ]];
    let outcome = Run::assigned(&query, 1).finish(&log);
    assert_eq!(outcome.rows, ["a|2", "b|1"]);
}

#[test]
fn deduplication_needs_known_columns_and_a_bound() {
    let query = || try_query(COPY, EventTime::default()).expect("the query is good");
    let second = Duration::from_secs(1);
    let refusal = query()
        .deduplicate(&["id".to_owned()], second)
        .expect_err("no such column");
    assert!(
        refusal
            .to_string()
            .contains("the column id, which is not one of user_id"),
        "{refusal}"
    );
    assert!(query().deduplicate(&[], second).is_err());
    assert!(
        query()
            .deduplicate(&["user_id".to_owned()], Duration::ZERO)
            .is_err()
    );
}

#[test]
fn one_call_forgets_a_bounded_number_of_keys() {
    let query = deduplicated(COPY, 0);
    let users: Vec<String> = (0..100).map(|user| format!("user-{user:02}")).collect();
    let mut all: Vec<Record> = users.iter().map(|user| record(user, 1_000)).collect();
    all.push(record("x", 50_000));
    for (timers, bytes) in [(7, 1 << 30), (1 << 20, 200)] {
        let mut run = Run::assigned(&query, 1)
            .timers_per_call(timers)
            .bytes_per_call(bytes);
        let mut emitted = run
            .engine
            .process(&mut run.state, &batch(0, 0, &all))
            .expect("a good log");
        assert_eq!(emitted.rows.num_rows(), all.len());
        let (mut left, mut calls) = (run.state.len(Space::Dedup), 1);
        assert!((94..101).contains(&left), "{left} keys after one call");
        while emitted.more {
            emitted = run.engine.fire(&mut run.state).expect("it goes on");
            let now = run.state.len(Space::Dedup);
            assert!(left - now <= 7, "{} keys in one call", left - now);
            (left, calls) = (now, calls + 1);
        }
        assert_eq!((left, run.state.len(Space::Timers)), (1, 1));
        assert!(calls > 10, "{calls} calls");
    }
}
