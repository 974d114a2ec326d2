//! The same log, read in many ways, gives the same bytes, and they are the batch reference's.

use std::sync::Arc;
use std::time::Duration;

use everlog_engine::{Decision, EventTime, Query, Scope};
use proptest::prelude::*;

use crate::log::{Log, Outcome, Record, Run, query};
use crate::reference::{Rules, Shape, reference};

const SELECT: &str = "count(*) AS n, count(*) FILTER (WHERE kind = 'view') AS views, sum(amount) AS total, min(amount) AS low, \
     max(amount) AS high, sum(price) AS price, avg(price) AS mean, count(DISTINCT kind) AS kinds, \
     first_value(kind ORDER BY ts) AS first, last_value(amount ORDER BY ts) AS last, array_agg(amount ORDER BY ts) AS amounts";

fn sql(shape: Shape) -> String {
    let (name, arguments) = match shape {
        Shape::Session { gap } => ("SESSION", format!("ts, {}", interval(gap))),
        Shape::Hop { slide, size } if slide == size => {
            ("TUMBLE", format!("ts, {}", interval(size)))
        }
        Shape::Hop { slide, size } => (
            "HOP",
            format!("ts, {}, {}", interval(slide), interval(size)),
        ),
    };
    format!(
        "SELECT user_id, {name}_START({arguments}) AS s, {name}_END({arguments}) AS e, {SELECT} \
         FROM clicks GROUP BY user_id, {name}({arguments})"
    )
}

fn interval(ms: i64) -> String {
    format!("INTERVAL '{}.{:03}' SECOND", ms / 1000, ms % 1000)
}

fn compile(rules: Rules, explicit: bool, scope: Scope) -> Arc<Query> {
    let event_time = EventTime {
        bound: Duration::from_millis(rules.bound as u64),
        lateness: explicit.then(|| Duration::from_millis(rules.lateness as u64)),
        scope,
        max_future: Some(Duration::from_millis(rules.max_future as u64)),
        max_skew: None,
    };
    query(&sql(rules.shape), event_time)
}

/// Records near each other in time, mostly forward, 40 % out of order, some far too late, some from the future.
fn log_strategy(partitions: usize) -> impl Strategy<Value = Log> {
    let one = (
        0..4_usize,
        0..10_u8,
        -60_i64..60,
        0..3_usize,
        prop::option::of(-5_i64..5),
        0..5_usize,
        0..40_u8,
    );
    let records = prop::collection::vec(one, 0..40).prop_map(|raw| {
        let mut now = 0;
        raw.into_iter()
            .map(|(user, mode, jump, kind, amount, price, odd)| {
                now += jump.abs() / 6;
                // Multiples of five, sometimes one more: exact gaps, gaps of one too much and equal times are common.
                let time =
                    if mode < 6 { now } else { now + jump } / 5 * 5 + i64::from(odd % 11 == 10);
                Record {
                    user: ["ann", "bob", "cy", ""][user].to_owned(),
                    kind: ["view", "cart", "buy"][kind],
                    amount,
                    price: [0.1, 1e16, -1e16, 3.25, -0.7][price],
                    time: (odd != 0).then_some(if odd == 1 { time + 5_000 } else { time }),
                    kafka: (odd < 20).then_some(time),
                }
            })
            .collect::<Vec<_>>()
    });
    prop::collection::vec(records, partitions)
}

fn rules_strategy() -> impl Strategy<Value = (Rules, bool)> {
    let shape = prop_oneof![
        (1..5_i64).prop_map(|gap| Shape::Session { gap: gap * 5 }),
        (2..5_i64).prop_map(|size| Shape::Hop {
            slide: size * 5,
            size: size * 5
        }),
        (1..4_i64, 2..5_i64).prop_map(|(slide, times)| Shape::Hop {
            slide: slide * 5,
            size: slide * times * 5
        }),
    ];
    (shape, 0..4_i64, prop::option::of(0..40_i64)).prop_map(|(shape, bound, lateness)| {
        let default = match shape {
            Shape::Session { gap } => gap,
            Shape::Hop { .. } => 0,
        };
        let rules = Rules {
            shape,
            bound: bound * 7,
            lateness: lateness.unwrap_or(default),
            max_future: 1_000,
        };
        (rules, lateness.is_some())
    })
}

/// A small random source, so that a failing case is one number.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

/// Reads the log in a random interleaving with random batch sizes and restarts.
fn read_randomly(run: &mut Run, log: &Log, dice: &mut Dice) {
    let most = [1, 3, 50][dice.roll(3)];
    loop {
        let open: Vec<usize> = (0..log.len())
            .filter(|p| run.positions[*p] < log[*p].len())
            .collect();
        if open.is_empty() {
            return;
        }
        let partition = open[dice.roll(open.len())];
        run.read(log, partition, 1 + dice.roll(most))
            .expect("a good log");
        if dice.roll(4) == 0 {
            run.restart();
        }
    }
}

/// Offsets, without the reasons that only the engine gives.
fn places(lines: &[String]) -> Vec<String> {
    let place = |line: &String| line.split('|').take(3).collect::<Vec<_>>().join("|");
    let mut places: Vec<String> = lines.iter().map(place).collect();
    places.sort();
    places
}

fn same(found: &Outcome, expected: &Outcome) -> Result<(), TestCaseError> {
    prop_assert_eq!(&found.rows, &expected.rows);
    prop_assert_eq!(places(&found.late), places(&expected.late));
    prop_assert_eq!(places(&found.dead), places(&expected.dead));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_reading_gives_the_reference(
        log in (1..5_usize).prop_flat_map(log_strategy),
        (rules, explicit) in rules_strategy(),
        seed in any::<u64>(),
    ) {
        let query = compile(rules, explicit, Scope::Global);
        let expected = reference(&log, rules, &[]);
        let mut dice = Dice(seed);
        let mut first: Option<Outcome> = None;
        for (timers, bytes) in [(1, 1 << 30), (2, 300), (1 << 20, 1), (1 << 20, 1 << 30)] {
            let mut run = Run::assigned(&query, log.len()).timers_per_call(timers).bytes_per_call(bytes);
            read_randomly(&mut run, &log, &mut dice);
            let outcome = run.drain();
            same(&outcome, &expected)?;
            prop_assert_eq!(first.get_or_insert_with(|| outcome.clone()), &outcome, "the reasons too");
        }
    }

    #[test]
    fn silent_and_new_partitions_are_passed_by_decisions_only(
        log in (2..5_usize).prop_flat_map(log_strategy),
        (rules, explicit) in rules_strategy(),
        seed in any::<u64>(),
    ) {
        let query = compile(rules, explicit, Scope::Global);
        let mut dice = Dice(seed);
        // The first run finds some partitions late, and lets time pass silent ones: its decisions are the log's.
        let mut run = Run::new(&query, log.len());
        let mut decisions: Vec<Decision> = run.engine.assign(&[(0, 0)]);
        let mut known = 1;
        loop {
            if known < log.len() && dice.roll(4) == 0 {
                decisions.extend(run.engine.assign(&[(0, known as i32)]));
                known += 1;
            }
            let open: Vec<usize> = (0..known).filter(|p| run.positions[*p] < log[*p].len()).collect();
            if open.is_empty() {
                if known == log.len() {
                    break;
                }
                continue;
            }
            run.read(&log, open[dice.roll(open.len())], 1 + dice.roll(5)).expect("a good log");
            if dice.roll(3) == 0 && let Some(decision) = run.engine.idle(dice.roll(known) as i32) {
                decisions.push(decision);
                run.decide(decision);
            }
            if dice.roll(4) == 0 {
                run.restart();
            }
        }
        let first = run.drain();
        same(&first, &reference(&log, rules, &decisions))?;
        for _ in 0..3 {
            let mut run = Run::new(&query, log.len());
            decisions.iter().for_each(|decision| run.decide(*decision));
            let all: Vec<(i32, i32)> = (0..log.len() as i32).map(|p| (0, p)).collect();
            prop_assert_eq!(run.engine.assign(&all), vec![]);
            read_randomly(&mut run, &log, &mut dice);
            prop_assert_eq!(&run.drain(), &first);
        }
    }

    #[test]
    fn with_time_per_partition_each_partition_is_its_own_job(
        log in (1..4_usize).prop_flat_map(log_strategy),
        (rules, explicit) in rules_strategy(),
        seed in any::<u64>(),
    ) {
        let mut log = log;
        for (p, records) in log.iter_mut().enumerate() {
            records.iter_mut().for_each(|record| record.user = format!("{}@{p}", record.user));
        }
        let query = compile(rules, explicit, Scope::Partition);
        let mut run = Run::assigned(&query, log.len()).timers_per_call(3).bytes_per_call(400);
        read_randomly(&mut run, &log, &mut Dice(seed));
        let all = run.drain();
        let mut late = Vec::new();
        for p in 0..log.len() {
            let mut alone = vec![Vec::new(); log.len()];
            alone[p].clone_from(&log[p]);
            let expected = reference(&alone, rules, &[]);
            let suffix = format!("@{p}|");
            let own: Vec<String> = all.rows.iter().filter(|row| row.contains(&suffix)).cloned().collect();
            prop_assert_eq!(own, expected.rows);
            late.extend(expected.late);
        }
        prop_assert_eq!(places(&all.late), places(&late));
    }
}
