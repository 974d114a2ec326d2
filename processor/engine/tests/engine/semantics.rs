//! Single rules, one at a time, with numbers that can be checked by hand.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use everlog_engine::event_time::{END, choose};
use everlog_engine::{
    Candidate, Decision, Engine, EngineError, EventTime, MemoryState, Progress, Query, Scope,
    Space, State, StateError,
};

use crate::log::{Record, Run, batch, query, record, try_query};

const SESSION: &str = "SELECT user_id, SESSION_START(ts, INTERVAL '10' SECOND) AS s, SESSION_END(ts, INTERVAL '10' SECOND) AS e, count(*) AS n FROM clicks GROUP BY user_id, SESSION(ts, INTERVAL '10' SECOND)";
const TUMBLE: &str = "SELECT user_id, TUMBLE_START(ts, INTERVAL '10' SECOND) AS s, count(*) AS n FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '10' SECOND)";
const HOP: &str = "SELECT user_id, HOP_START(ts, INTERVAL '5' SECOND, INTERVAL '10' SECOND) AS s, count(*) AS n FROM clicks GROUP BY user_id, HOP(ts, INTERVAL '5' SECOND, INTERVAL '10' SECOND)";

fn time(bound: u64, lateness: Option<u64>) -> EventTime {
    EventTime {
        bound: Duration::from_millis(bound),
        lateness: lateness.map(Duration::from_millis),
        ..EventTime::default()
    }
}

fn records(times: &[(&str, i64)]) -> Vec<Record> {
    times
        .iter()
        .map(|(user, time)| record(user, *time))
        .collect()
}

#[test]
fn flinks_counter_examples_have_one_answer_here() {
    // In Flink 2.1 the first two orders give different sessions, with every record on time.
    for order in [
        [("a", 0), ("b", 10_000), ("a", 10_000)],
        [("a", 0), ("a", 10_000), ("b", 10_000)],
    ] {
        let outcome =
            Run::assigned(&query(SESSION, time(1, None)), 1).finish(&vec![records(&order)]);
        assert_eq!(outcome.rows, ["a|0|20000|2", "b|10000|20000|1"]);
    }
}

#[test]
fn a_session_ends_after_the_gap_and_not_a_millisecond_before() {
    for (second, rows) in [
        (10_000, vec!["a|0|20000|2"]),
        (10_001, vec!["a|0|10000|1", "a|10001|20001|1"]),
        (-10_000, vec!["a|-10000|10000|2"]),
        (-10_001, vec!["a|-10001|-1|1", "a|0|10000|1"]),
    ] {
        let log = vec![records(&[("a", 0), ("a", second)])];
        let query = query(SESSION, time(60_000, None));
        assert_eq!(
            Run::assigned(&query, 1).finish(&log).rows,
            rows,
            "in one batch"
        );
        let mut run = Run::assigned(&query, 1);
        run.read(&log, 0, 1).expect("a good log");
        assert_eq!(run.finish(&log).rows, rows, "in two batches");
    }
}

#[test]
fn a_session_fires_when_the_watermark_reaches_last_plus_gap_plus_lateness() {
    let query = query(SESSION, time(0, Some(0)));
    let log = vec![records(&[("a", 0), ("x", 10_000), ("x", 10_001)])];
    let mut run = Run::assigned(&query, 1);
    run.read(&log, 0, 2).expect("a good log");
    assert!(run.outcome.rows.is_empty(), "the watermark is 9 999");
    run.read(&log, 0, 1).expect("a good log");
    assert_eq!(run.outcome.rows, ["a|0|10000|1"], "the watermark is 10 000");
}

#[test]
fn a_tumbling_window_fires_when_the_watermark_reaches_its_last_millisecond() {
    let query = query(TUMBLE, time(0, None));
    let log = vec![records(&[("a", 0), ("x", 9_999), ("x", 10_000)])];
    let mut run = Run::assigned(&query, 1);
    run.read(&log, 0, 2).expect("a good log");
    assert!(run.outcome.rows.is_empty(), "the watermark is 9 998");
    run.read(&log, 0, 1).expect("a good log");
    assert_eq!(run.outcome.rows, ["a|0|1", "x|0|1"]);
}

#[test]
fn lateness_is_judged_by_the_records_own_partition() {
    let query = query(TUMBLE, time(0, None));
    // Partition 0 is far ahead; partition 1 holds the watermark, and its old record is on time.
    let log = vec![records(&[("a", 50_000), ("a", 1)]), records(&[("a", 2)])];
    let outcome = Run::assigned(&query, 2).finish(&log);
    assert_eq!(outcome.rows, ["a|0|1", "a|50000|1"]);
    assert_eq!(outcome.late.len(), 1);
    assert!(
        outcome.late[0].starts_with("0|0|1|its event time of 1 ms is 49998 ms behind"),
        "{:?}",
        outcome.late
    );
}

#[test]
fn a_hopping_window_takes_what_another_of_the_same_record_does_not() {
    let query = query(HOP, time(0, None));
    // At 10 500 the window from 0 to 10 000 is over, the one from 5 000 to 15 000 is not.
    let log = vec![records(&[("a", 10_500), ("a", 9_000), ("a", 4_000)])];
    let run = Run::assigned(&query, 1);
    let outcome = run.finish(&log);
    assert_eq!(outcome.rows, ["a|5000|2", "a|10000|1"]);
    assert_eq!(outcome.late.len(), 1);
}

#[test]
fn a_partly_late_record_leaves_the_windows_of_others_alone() {
    let query = query(HOP, time(0, None));
    // Partition 1 is behind: there the same pane still counts in both windows.
    let log = vec![
        records(&[("a", 10_500), ("a", 9_000)]),
        records(&[("a", 8_000), ("a", 30_000)]),
    ];
    let mut run = Run::assigned(&query, 2);
    run.read(&log, 0, 2).expect("a good log");
    assert_eq!(run.engine.progress().counters.partly_late, 1);
    let outcome = run.finish(&log);
    assert_eq!(
        outcome.rows,
        ["a|0|1", "a|5000|3", "a|10000|1", "a|25000|1", "a|30000|1"]
    );
}

#[test]
fn a_poisoned_clock_is_a_dead_letter_and_moves_nothing() {
    let query = query(TUMBLE, time(0, None));
    let mut poisoned = record("a", 4_000_000_000_000);
    poisoned.kafka = Some(1_000);
    let mut unjudged = record("a", 2_000);
    unjudged.kafka = None;
    let mut nothing = record("a", 0);
    nothing.time = None;
    let never = record("a", i64::MAX);
    let log = vec![vec![
        record("a", 1_000),
        poisoned,
        unjudged,
        nothing,
        never,
        record("a", 3_000),
    ]];
    let outcome = Run::assigned(&query, 1).finish(&log);
    assert_eq!(outcome.rows, ["a|0|3"]);
    assert!(outcome.late.is_empty());
    let reasons: Vec<&str> = outcome
        .dead
        .iter()
        .map(|line| line.rsplit('|').next().expect("a reason"))
        .collect();
    assert!(
        reasons[0].contains("ahead of the record's Kafka timestamp"),
        "{reasons:?}"
    );
    assert_eq!(reasons[1], "the event time is null");
    assert!(
        reasons[2].contains("outside the years 1 to 9999"),
        "{reasons:?}"
    );
}

#[test]
fn a_silent_partition_holds_time_back_until_a_decision() {
    let query = query(TUMBLE, time(0, None));
    let log = vec![
        records(&[("a", 1_000), ("a", 25_000)]),
        records(&[("b", 1), ("b", 26_000)]),
    ];
    let mut run = Run::assigned(&query, 2);
    run.read(&log, 0, 2).expect("a good log");
    assert!(run.outcome.rows.is_empty(), "partition 1 is silent");
    let decision = run.engine.idle(1).expect("it holds time back");
    assert_eq!(
        decision,
        Decision {
            generation: 0,
            partition: 1,
            offset: 0,
            floor: 24_999
        }
    );
    run.decide(decision);
    assert_eq!(run.outcome.rows, ["a|0|1"]);
    assert_eq!(
        run.engine.idle(1),
        None,
        "nothing is gained by a second one"
    );
    let outcome = run.finish(&log);
    assert_eq!(outcome.rows, ["a|0|1", "a|20000|1", "b|20000|1"]);
    assert_eq!(
        outcome.late.len(),
        1,
        "b at 1 ms is late by decision: {:?}",
        outcome.late
    );
}

#[test]
fn a_decision_about_the_past_is_refused() {
    let query = query(TUMBLE, time(0, None));
    let mut run = Run::assigned(&query, 1);
    run.read(&vec![records(&[("a", 1), ("a", 2)])], 0, 2)
        .expect("a good log");
    let late = Decision {
        generation: 0,
        partition: 0,
        offset: 1,
        floor: 5,
    };
    assert!(matches!(
        run.engine.decide(late),
        Err(EngineError::LateDecision { .. })
    ));
    let now = Decision { offset: 2, ..late };
    run.engine.decide(now).expect("in time");
    run.engine.decide(now).expect("the same again");
    assert_eq!(run.engine.progress().decisions, [now]);
}

#[test]
fn a_partition_that_is_passed_again_and_again_has_one_entry() {
    let query = query(TUMBLE, time(0, None));
    let times: Vec<(&str, i64)> = (1..=50).map(|i| ("a", i * 1_000)).collect();
    let log = vec![records(&times), vec![]];
    let mut run = Run::assigned(&query, 2);
    for _ in 0..50 {
        run.read(&log, 0, 1).expect("a good log");
        let decision = run.engine.idle(1).expect("it holds time back");
        assert!(run.engine.decide(decision).expect("in time"));
        let lower = Decision {
            floor: decision.floor - 1,
            ..decision
        };
        assert!(
            !run.engine.decide(lower).expect("said already"),
            "a lower floor says nothing more"
        );
    }
    let only = Decision {
        generation: 0,
        partition: 1,
        offset: 0,
        floor: 49_999,
    };
    assert_eq!(run.engine.progress().decisions, [only]);
    assert_eq!(run.engine.progress().watermark, 49_999);
}

#[test]
fn a_silent_partition_does_not_end_because_all_others_have() {
    let query = query(TUMBLE, time(0, None));
    let mut run = Run::assigned(&query, 2);
    run.decide(Decision {
        generation: 0,
        partition: 0,
        offset: 0,
        floor: END,
    });
    assert_eq!(run.engine.idle(1), None);
}

#[test]
fn with_time_per_partition_nobody_is_passed() {
    let by_partition = EventTime {
        scope: Scope::Partition,
        ..time(0, None)
    };
    let mut run = Run::assigned(&query(TUMBLE, by_partition), 2);
    run.read(&vec![records(&[("a", 50_000)]), vec![]], 0, 1)
        .expect("a good log");
    assert_eq!(run.engine.idle(1), None);
}

#[test]
fn a_partition_that_has_ended_no_longer_counts() {
    let query = query(TUMBLE, time(0, None));
    let log = vec![records(&[("a", 1)]), records(&[("b", 1), ("b", 30_000)])];
    let mut run = Run::assigned(&query, 2);
    run.read(&log, 0, 1).expect("a good log");
    run.read(&log, 1, 2).expect("a good log");
    assert!(run.outcome.rows.is_empty());
    run.decide(Decision {
        generation: 0,
        partition: 0,
        offset: 1,
        floor: END,
    });
    assert_eq!(run.outcome.rows, ["a|0|1", "b|0|1"]);
}

#[test]
fn offsets_without_records_move_the_position() {
    let query = query(TUMBLE, time(0, None));
    let mut run = Run::assigned(&query, 2);
    run.read(&vec![records(&[("a", 1), ("a", 30_000)]), vec![]], 0, 2)
        .expect("a good log");
    run.engine
        .decide(Decision {
            generation: 0,
            partition: 1,
            offset: 7,
            floor: 20_000,
        })
        .expect("in time");
    let emitted = run
        .engine
        .advance(&mut run.state, 0, 1, 6)
        .expect("a position");
    assert_eq!(emitted.rows.num_rows(), 0);
    let emitted = run
        .engine
        .advance(&mut run.state, 0, 1, 7)
        .expect("a position");
    assert_eq!(emitted.rows.num_rows(), 1);
    assert_eq!(emitted.watermark, Some(20_000));
}

#[test]
fn a_key_in_two_partitions_is_named_with_both_offsets() {
    for sql in [SESSION, TUMBLE, HOP] {
        let event_time = EventTime {
            scope: Scope::Partition,
            ..time(0, None)
        };
        let log = vec![
            records(&[("a", 1), ("b", 2)]),
            records(&[("c", 1), ("b", 2)]),
        ];
        let mut run = Run::assigned(&query(sql, event_time), 2);
        run.read(&log, 0, 2).expect("a good log");
        let error = run.read(&log, 1, 2).expect_err("b is in partition 0");
        assert_eq!(
            error.to_string(),
            "the key b occurs in partition 0 (offset 1) and in partition 1 (offset 1): with event_time_scope = \"partition\" the key must determine the partition; use event_time_scope = \"global\""
        );
    }
}

#[test]
fn a_key_whose_panes_lie_in_two_partitions_is_named_when_a_window_has_both() {
    let by_partition = EventTime {
        scope: Scope::Partition,
        ..time(0, None)
    };
    let log = vec![records(&[("a", 1_000)]), records(&[("a", 6_000)])];
    let mut run = Run::assigned(&query(HOP, by_partition), 2);
    run.read(&log, 0, 1).expect("one pane");
    run.read(&log, 1, 1).expect("another pane");
    let error = run.engine.drain(&mut run.state).expect_err("two owners");
    assert!(
        matches!(
            error,
            EngineError::TwoPartitions {
                first: 0,
                second: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn records_come_once_and_in_order() {
    let query = query(TUMBLE, time(0, None));
    let all = records(&[("a", 1), ("a", 2), ("a", 3)]);
    let mut run = Run::assigned(&query, 1);
    run.read(&vec![all.clone()], 0, 2).expect("a good log");
    let again = run.engine.process(&mut run.state, &batch(0, 1, &all[1..2]));
    assert!(
        matches!(
            again,
            Err(EngineError::Order {
                offset: 1,
                at_offset: 2,
                ..
            })
        ),
        "{again:?}"
    );
    let unknown = run.engine.process(&mut run.state, &batch(4, 0, &all));
    assert!(
        matches!(unknown, Err(EngineError::Unassigned(4))),
        "{unknown:?}"
    );
}

#[test]
fn a_drained_job_takes_no_more() {
    let query = query(TUMBLE, time(0, None));
    let log = vec![records(&[("a", 1)])];
    let mut run = Run::assigned(&query, 1);
    run.read(&log, 0, 1).expect("a good log");
    let emitted = run.engine.drain(&mut run.state).expect("it drains");
    assert_eq!((emitted.rows.num_rows(), emitted.watermark), (1, Some(END)));
    let more = run.engine.process(&mut run.state, &batch(0, 1, &log[0]));
    assert!(matches!(more, Err(EngineError::Drained)));
}

#[test]
fn progress_of_another_query_is_refused() {
    let progress = Run::assigned(&query(TUMBLE, time(0, None)), 1)
        .engine
        .progress()
        .clone();
    for other in [
        query(SESSION, time(0, None)),
        query(TUMBLE, time(1, None)),
        query(TUMBLE, time(0, Some(5))),
    ] {
        let error = Engine::new(other, progress.clone()).expect_err("another query");
        assert!(matches!(error, EngineError::OtherQuery { .. }));
    }
    assert!(Engine::new(query(TUMBLE, time(0, None)), progress).is_ok());
}

#[test]
fn one_call_gives_a_bounded_number_of_rows() {
    for sql in [SESSION, TUMBLE, HOP] {
        let query = query(sql, time(0, None));
        let mut run = Run::assigned(&query, 1).timers_per_call(7);
        let mut all: Vec<Record> = (0..100)
            .map(|i| record(&format!("user-{i:03}"), 1_000))
            .collect();
        all.push(record("x", 100_000));
        let emitted = run
            .engine
            .process(&mut run.state, &batch(0, 0, &all))
            .expect("a good log");
        assert!(emitted.more && emitted.rows.num_rows() <= 7);
        assert!(run.take(emitted) > 10);
        let mut sorted = run.outcome.rows.clone();
        sorted.sort_by_key(|row| {
            (
                row.split('|')
                    .nth(1)
                    .expect("a start")
                    .parse::<i64>()
                    .expect("a number"),
                row.clone(),
            )
        });
        assert_eq!(run.outcome.rows, sorted);
        assert!(sorted.len() >= 100);
    }
}

#[test]
fn one_call_looks_at_a_bounded_number_of_bytes() {
    const EACH: usize = 20_000;
    const BYTES: usize = 3 * EACH;
    let long = |n: usize| format!("{n:03}{}", "x".repeat(EACH / 2));
    let groups = 40;
    // long keys, and long states
    for (key, aggregate) in [
        ("user_id", "count(*)"),
        ("amount", "array_agg(user_id ORDER BY ts)"),
    ] {
        for window in ["TUMBLE", "SESSION"] {
            let window = format!("{window}(ts, INTERVAL '1' SECOND)");
            let sql =
                format!("SELECT {key}, {aggregate} AS a FROM clicks GROUP BY {key}, {window}");
            let query = query(&sql, time(0, None));
            let mut all: Vec<Record> = (0..2 * groups)
                .map(|i| Record {
                    amount: Some((i % groups) as i64),
                    ..record(&long(i % groups), 1_000)
                })
                .collect();
            all.push(record("x", 100_000));
            let calls = |bytes: usize| {
                let mut run = Run::assigned(&query, 1).bytes_per_call(bytes);
                let emitted = run
                    .engine
                    .process(&mut run.state, &batch(0, 0, &all))
                    .expect("a good log");
                let first = emitted.rows.num_rows();
                let calls = run.take(emitted);
                (first, calls, run.outcome.rows)
            };
            let (first, bounded, rows) = calls(BYTES);
            assert!((1..=4).contains(&first), "{sql}: {first} rows");
            assert!(bounded >= groups / 4, "{sql}: {bounded} calls");
            assert_eq!(calls(1 << 30), (groups, 1, rows), "{sql}");
        }
    }
}

#[test]
fn an_average_that_its_type_does_not_hold_names_key_and_window() {
    let amounts = |amounts: &[(&'static str, usize)]| -> Vec<Record> {
        let one = |(kind, digits): &(&'static str, usize)| Record {
            kind,
            ..record(&format!("1{}", "0".repeat(*digits)), 2_000)
        };
        amounts.iter().map(one).collect()
    };
    for window in [
        "TUMBLE(ts, INTERVAL '1' SECOND)",
        "SESSION(ts, INTERVAL '1' SECOND)",
    ] {
        let sql = format!(
            "SELECT kind, avg(CAST(user_id AS DECIMAL(38, 0))) AS mean FROM clicks GROUP BY kind, {window}"
        );
        let query = query(&sql, time(0, None));
        let drained = |log: Vec<Record>| {
            let mut run = Run::assigned(&query, 1);
            run.read(&vec![log], 0, usize::MAX).expect("a good log");
            run.engine.drain(&mut run.state).map(|emitted| emitted.rows)
        };
        let good = drained(amounts(&[("buy", 33), ("view", 33)])).expect("it holds these");
        assert_eq!(good.num_rows(), 2);
        let error = drained(amounts(&[("buy", 33), ("view", 36), ("buy", 1)]))
            .expect_err("34 digits before the point");
        assert!(matches!(error, EngineError::Output { .. }), "{error:?}");
        let text = error.to_string();
        for part in [
            "Overflow",
            "kind view",
            "window start 1970-01-01T00:00:02Z",
            "window end 1970-01-01T00:00:03Z",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn a_session_that_grew_waits_for_its_place_among_those_that_end_with_it() {
    let query = query(SESSION, time(0, Some(20_000)));
    // z's timer is still that of its first record, so it is looked at before a and m.
    let log = vec![records(&[
        ("z", 0),
        ("z", 1_000),
        ("a", 1_000),
        ("m", 1_000),
        ("x", 90_000),
    ])];
    let mut run = Run::assigned(&query, 1).timers_per_call(2);
    run.read(&log, 0, 1).expect("a good log");
    run.read(&log, 0, 4).expect("a good log");
    assert_eq!(
        run.outcome.rows,
        ["a|1000|11000|1", "m|1000|11000|1", "z|0|11000|2"]
    );
}

#[test]
fn an_expression_that_fails_costs_its_record_only() {
    let sql = "SELECT user_id, sum(100 / amount) AS n FROM clicks WHERE 10 / amount < 100 GROUP BY user_id, TUMBLE(ts, INTERVAL '1' SECOND)";
    let mut all: Vec<Record> = (1..=10).map(|i| record("a", i)).collect();
    all[3].amount = Some(0);
    all[7].amount = Some(0);
    let outcome = Run::assigned(&query(sql, time(100, None)), 1).finish(&vec![all]);
    assert_eq!(outcome.rows, ["a|800"]);
    assert_eq!(outcome.dead.len(), 2);
    assert!(
        outcome.dead[0].contains("ivide by zero"),
        "{:?}",
        outcome.dead
    );
}

#[test]
fn what_a_condition_guards_is_computed_where_it_holds() {
    // DataFusion computes 10 / amount for all of a batch where only some of its amounts are not 0.
    let window = "GROUP BY user_id, TUMBLE(ts, INTERVAL '1' SECOND)";
    let stateless = "SELECT user_id, amount FROM clicks WHERE amount <> 0 AND 10 / amount >= 5";
    let filtered = format!(
        "SELECT user_id, count(*) AS n, sum(100 / amount) FILTER (WHERE amount <> 0) AS q FROM clicks {window}"
    );
    let having = format!(
        "SELECT user_id, sum(amount) AS n FROM clicks {window} HAVING sum(amount) <> 0 AND 12 / sum(amount) >= 2"
    );
    let amounts = [3, 0, 1, 2, 0, 5, 0, 0, 2, 1];
    let mut all: Vec<Record> = (1..=10).map(|i| record("a", i)).collect();
    for (record, amount) in all.iter_mut().zip(amounts) {
        record.amount = Some(amount);
    }
    let mut users = all.clone();
    for (i, record) in users.iter_mut().enumerate() {
        record.user = format!("u{i}");
    }
    for size in [1, 2, 3, 10] {
        let rows = |sql: &str, all: &[Record]| {
            let log = vec![all.to_vec()];
            let mut run = Run::assigned(&query(sql, time(100, None)), 1);
            while run.positions[0] < all.len() {
                run.read(&log, 0, size).expect("a good log");
            }
            let outcome = run.drain();
            assert_eq!(outcome.dead, Vec::<String>::new(), "{sql}");
            outcome.rows
        };
        assert_eq!(rows(stateless, &all), ["a|1", "a|2", "a|2", "a|1"]);
        assert_eq!(rows(&filtered, &all), ["a|10|353"]);
        assert_eq!(
            rows(&having, &users),
            ["u0|3", "u2|1", "u3|2", "u5|5", "u8|2", "u9|1"]
        );
    }
}

#[test]
fn a_row_that_cannot_be_computed_ends_the_job_by_its_name() {
    let sql = "SELECT user_id, 10 / sum(amount) AS q FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '1' SECOND)";
    let mut all = records(&[("a", 1), ("b", 2), ("c", 3)]);
    all[1].amount = Some(0);
    let mut run = Run::assigned(&query(sql, time(0, None)), 1);
    run.read(&vec![all], 0, 3).expect("nothing fires");
    let error = run.engine.drain(&mut run.state).expect_err("b has no q");
    let text = error.to_string();
    assert!(
        text.contains("user_id b") && text.contains("window start 1970-01-01T00:00:00"),
        "{text}"
    );
    assert!(
        text.contains("ivide by zero") && text.contains("NULLIF"),
        "{text}"
    );
}

#[test]
fn without_a_window_rows_come_at_once_in_the_order_of_the_records() {
    let sql = "SELECT user_id, upper(kind) AS kind, ts, _offset FROM clicks WHERE amount > 0";
    let mut all = records(&[("a", 5), ("b", 4), ("c", 3)]);
    all[1].amount = Some(-1);
    let query = query(sql, time(0, None));
    assert!(!query.is_windowed());
    let mut run = Run::assigned(&query, 1);
    run.read(&vec![all], 0, 3).expect("a good log");
    assert_eq!(run.outcome.rows, ["a|VIEW|5|0", "c|VIEW|3|2"]);
    assert_eq!(run.engine.progress().counters.filtered, 1);
}

#[test]
fn reading_goes_to_the_slowest_partition() {
    let at = |partition| Candidate {
        generation: 0,
        partition,
        at_end: false,
    };
    let timed = [(at(0), 500), (at(1), 100), (at(2), 100), (at(3), 130)];
    let choice = choose(&timed, Some(30));
    assert_eq!(choice.next, Some((0, 1)));
    assert_eq!(choice.slowest, Some(((0, 1), 100)));
    assert_eq!(choice.held, [(0, 0)]);
    let ended = Candidate {
        at_end: true,
        ..at(1)
    };
    let choice = choose(&[(at(0), 500), (ended, 100)], Some(30));
    assert_eq!((choice.next, choice.held.len()), (Some((0, 0)), 0));
    assert_eq!(choose(&[(ended, 100)], None).next, None);

    let query: Arc<Query> = query(SESSION, time(0, None));
    let mut run = Run::assigned(&query, 2);
    assert_eq!(
        run.engine.next_partition(&[at(1), at(0)]).next,
        Some((0, 0)),
        "neither has a time"
    );
    run.read(&vec![records(&[("a", 1)]), vec![]], 0, 1)
        .expect("a good log");
    let choice = run.engine.next_partition(&[at(0), at(1)]);
    assert_eq!(
        (choice.next, choice.held),
        (Some((0, 1)), vec![(0, 0)]),
        "one has none yet"
    );
}

#[test]
fn without_a_window_partitions_are_held_back_too() {
    let sql = "SELECT user_id, ts FROM clicks";
    let held = |time: EventTime, ahead: i64| {
        let query: Arc<Query> = query(sql, time);
        let mut run = Run::assigned(&query, 2);
        let log = vec![records(&[("a", ahead)]), records(&[("b", 0)])];
        run.read(&log, 0, 1).expect("a good log");
        run.read(&log, 1, 1).expect("a good log");
        let at = |partition| Candidate {
            generation: 0,
            partition,
            at_end: false,
        };
        run.engine.next_partition(&[at(0), at(1)]).held
    };
    assert_eq!(held(time(0, None), 60_000), []);
    assert_eq!(held(time(0, None), 60_001), [(0, 0)]);
    let own = EventTime {
        max_skew: Some(Duration::from_secs(1)),
        ..time(0, None)
    };
    assert_eq!(held(own.clone(), 1_000), []);
    assert_eq!(held(own.clone(), 1_001), [(0, 0)]);
    let alone = EventTime {
        scope: Scope::Partition,
        ..own
    };
    assert_eq!(held(alone, 1_000_000), []);
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let query = query(TUMBLE, time(0, None));
    let mut engine = Engine::new(query, Progress::default()).expect("a new job");
    engine.assign(&[(0, 0)]);
    let good = batch(0, 0, &records(&[("a", 1)]));
    let without = good.project(&[0, 1, 2, 3, 5, 6, 7, 8]).expect("columns");
    let error = engine
        .process(&mut MemoryState::default(), &without)
        .expect_err("no timestamp_ms");
    assert_eq!(
        error.to_string(),
        "a batch does not fit the query: it has no column timestamp_ms"
    );
}

#[test]
fn a_key_that_no_store_takes_is_a_dead_letter() {
    let long = "x".repeat(70_000);
    let log = vec![records(&[("a", 0), (&long, 1), ("b", 2), ("a", 3)])];
    for sql in [SESSION, TUMBLE, HOP] {
        let query = query(sql, time(0, None));
        let outcome = Run::assigned(&query, 1).finish(&log);
        let without = vec![records(&[("a", 0), ("b", 2), ("a", 3)])];
        let expected = Run::assigned(&query, 1).finish(&without);
        assert_eq!(outcome.rows, expected.rows, "{sql}");
        let [dead] = outcome.dead.as_slice() else {
            panic!("{sql}: {:?}", outcome.dead);
        };
        let (place, reason) = dead.rsplit_once('|').expect("a reason");
        assert_eq!(place, "0|0|1");
        assert!(
            reason.starts_with("its group key takes 7")
                && reason.ends_with(" bytes in the job's state, where at most 65522 fit"),
            "{reason}"
        );
        let alone = Run::assigned(&query, 1).finish(&vec![records(&[(&long, 1)])]);
        assert_eq!((alone.rows.len(), alone.dead.len()), (0, 1), "{sql}");
    }
}

#[test]
fn the_longest_keys_that_are_taken_fit_into_every_space() {
    for sql in [SESSION, TUMBLE, HOP] {
        for (scope, deduplicated) in [
            (Scope::Global, false),
            (Scope::Global, true),
            (Scope::Partition, false),
        ] {
            let event_time = EventTime {
                scope,
                ..time(0, None)
            };
            let by = ["user_id".to_owned()];
            let query = try_query(sql, event_time)
                .and_then(|query| match deduplicated {
                    true => query.deduplicate(&by, Duration::from_millis(1)),
                    false => Ok(query),
                })
                .expect("the query is good");
            let (mut rows, mut dead) = (0, 0);
            let query = Arc::new(query);
            // Their lengths in the state lie around what fits.
            for length in (63_200..63_700).step_by(8) {
                let user = "x".repeat(length);
                let outcome = Run::assigned(&query, 1).finish(&vec![records(&[(&user, 5_000)])]);
                assert_ne!(outcome.rows.is_empty(), outcome.dead.is_empty());
                rows += usize::from(!outcome.rows.is_empty());
                dead += outcome.dead.len();
            }
            assert!(
                rows > 0 && dead > 0,
                "{sql} {scope:?}: {rows} rows, {dead} dead"
            );
        }
    }
}

#[test]
fn windows_need_no_key() {
    for (window, rows) in [
        ("TUMBLE(ts, INTERVAL '10' SECOND)", vec!["2", "1"]),
        ("SESSION(ts, INTERVAL '10' SECOND)", vec!["3"]),
    ] {
        let sql = format!("SELECT count(*) AS n FROM clicks GROUP BY {window}");
        let log = vec![records(&[("a", 0), ("b", 5_000), ("c", 12_000)])];
        let outcome = Run::assigned(&query(&sql, time(0, None)), 1).finish(&log);
        assert_eq!(outcome.rows, rows, "{window}");
    }
}

/// A state that keeps a mark for what was deleted, as stores on disk do, and counts the marks that are read.
#[derive(Default)]
struct Marked {
    state: MemoryState,
    marks: BTreeSet<Vec<u8>>,
    deleted: usize,
    read: RefCell<usize>,
}

impl State for Marked {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.state.get(space, key)
    }

    fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) -> Result<(), StateError> {
        self.marks.remove(&key);
        self.state.put(space, key, value)
    }

    fn delete(&mut self, space: Space, key: Vec<u8>) -> Result<(), StateError> {
        self.state.delete(space, key.clone())?;
        if space == Space::Timers {
            self.deleted += 1;
            self.marks.insert(key);
        }
        Ok(())
    }

    fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
        let found = self.state.range(space, from, to, limit)?;
        let end = match found.last() {
            Some((last, _)) if found.len() == limit => last,
            _ => to,
        };
        let passed = self
            .marks
            .iter()
            .filter(|mark| from <= mark.as_slice() && mark.as_slice() < end);
        *self.read.borrow_mut() += passed.count();
        Ok(found)
    }
}

#[test]
fn what_has_fired_is_not_looked_at_again() {
    let users: Vec<String> = (0..40).map(|user| format!("user-{user:02}")).collect();
    let all: Vec<Record> = (0..2_000_usize)
        .map(|i| record(&users[i * 7 % users.len()], i as i64 * 100))
        .collect();
    for sql in [SESSION, TUMBLE, HOP] {
        for scope in [Scope::Global, Scope::Partition] {
            let event_time = EventTime {
                scope,
                ..time(500, None)
            };
            let query = try_query(sql, event_time)
                .and_then(|query| {
                    query.deduplicate(&["user_id".to_owned()], Duration::from_millis(300))
                })
                .expect("the query is good");
            let mut engine = Engine::new(Arc::new(query), Progress::default())
                .expect("a new job")
                .with_timers_per_call(8);
            let mut state = Marked::default();
            assert_eq!(engine.assign(&[(0, 0)]), []);
            for (n, some) in all.chunks(25).enumerate() {
                let mut emitted = engine
                    .process(&mut state, &batch(0, n * 25, some))
                    .expect("a good log");
                while emitted.more {
                    emitted = engine.fire(&mut state).expect("it fires");
                }
            }
            let mut emitted = engine.drain(&mut state).expect("it drains");
            while emitted.more {
                emitted = engine.fire(&mut state).expect("it fires");
            }
            let read = *state.read.borrow();
            assert!(state.deleted > 500, "{} timers fired", state.deleted);
            assert!(
                read <= state.deleted,
                "{sql} {scope:?}: {read} marks were read of {}",
                state.deleted
            );
        }
    }
}
