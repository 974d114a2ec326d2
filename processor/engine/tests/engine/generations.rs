//! Topics that were created anew: partitions that come, go, and come again. The rows follow from the records alone, however
//! early or late the run knew of it, and whether it was told by the topic or by the archive.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, Int32Array, RecordBatch};
use everlog_engine::{Decision, EventTime, Query};
use proptest::prelude::*;

use crate::log::{Outcome, Record, Run, batch, query, record};

const TUMBLE: &str = "SELECT user_id, TUMBLE_START(ts, INTERVAL '10' SECOND) AS s, count(*) AS n FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '10' SECOND)";
const SESSION: &str = "SELECT user_id, SESSION_START(ts, INTERVAL '5' SECOND) AS s, count(*) AS n FROM clicks GROUP BY user_id, SESSION(ts, INTERVAL '5' SECOND)";

/// Records by generation and partition.
type Eras = Vec<Vec<Vec<Record>>>;

fn compile(sql: &str, bound_ms: u64) -> Arc<Query> {
    let time = EventTime {
        bound: Duration::from_millis(bound_ms),
        lateness: Some(Duration::ZERO),
        ..EventTime::default()
    };
    query(sql, time)
}

fn of_generation(generation: i32, batch: &RecordBatch) -> RecordBatch {
    let index = batch.schema().index_of("_generation").expect("a column");
    let mut columns = batch.columns().to_vec();
    columns[index] = Arc::new(Int32Array::from(vec![generation; batch.num_rows()])) as ArrayRef;
    RecordBatch::try_new(batch.schema(), columns).expect("the same form")
}

/// What is known once `newest` is: an archive has the partitions of which there is a record, and the topic those that it has
/// now, if it was asked.
fn known(eras: &Eras, newest: usize, topic: Option<&[bool]>) -> (Vec<(i32, i32)>, Vec<(i32, i32)>) {
    let (mut there, mut absent) = (Vec::new(), Vec::new());
    for (generation, era) in eras.iter().enumerate().take(newest + 1) {
        for (partition, records) in era.iter().enumerate() {
            let place = (generation as i32, partition as i32);
            let now = topic.filter(|_| generation == newest);
            if !records.is_empty() || now.is_some_and(|topic| topic[partition]) {
                there.push(place);
            } else if generation < newest || now.is_some() {
                absent.push(place);
            }
        }
    }
    (there, absent)
}

fn tell(run: &mut Run, known: &(Vec<(i32, i32)>, Vec<(i32, i32)>)) {
    run.engine.lacks(known.1.iter().copied());
    run.engine.assign(&known.0);
    let emitted = run.engine.fire(&mut run.state).expect("it fires");
    run.take(emitted);
}

fn read(
    run: &mut Run,
    eras: &Eras,
    (generation, partition): (usize, usize),
    range: std::ops::Range<usize>,
) {
    let records = &eras[generation][partition][range.clone()];
    let batch = of_generation(
        generation as i32,
        &batch(partition as i32, range.start, records),
    );
    let emitted = run.engine.process(&mut run.state, &batch);
    run.take(emitted.expect("a good log"));
}

/// Reads eras one after the other, as a stream hands them out. What is known of a generation is told while the one before
/// is being read, or, with what `ahead` says, some generations earlier.
fn run(
    query: &Arc<Query>,
    eras: &Eras,
    topics: &[Vec<bool>],
    ahead: usize,
    (decisions, seed): (&[Decision], u64),
) -> (Outcome, Vec<Decision>) {
    let mut dice = seed;
    let mut roll = |bound: usize| {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(dice >> 33).expect("31 bits") % bound
    };
    let mut run = Run::new(query, 0);
    decisions.iter().for_each(|decision| run.decide(*decision));
    let last = eras.len() - 1;
    let of = |newest: usize| known(eras, newest, topics.get(newest).map(Vec::as_slice));
    let mut told = of(ahead.min(last));
    tell(&mut run, &told);
    for (generation, era) in eras.iter().enumerate() {
        let mut at = vec![0; era.len()];
        let count: usize = era.iter().map(Vec::len).sum();
        let tells_at = roll(count + 1);
        let mut done = 0;
        loop {
            if tells_at <= done
                && generation + 1 + ahead <= last
                && told
                    .0
                    .iter()
                    .all(|(g, _)| *g as usize <= generation + ahead)
            {
                told = of(generation + 1 + ahead);
                tell(&mut run, &told);
            }
            let open: Vec<usize> = (0..era.len()).filter(|p| at[*p] < era[*p].len()).collect();
            if open.is_empty() {
                break;
            }
            let partition = open[roll(open.len())];
            let to = (at[partition] + 1 + roll(4)).min(era[partition].len());
            read(&mut run, eras, (generation, partition), at[partition]..to);
            done += to - at[partition];
            at[partition] = to;
            if roll(5) == 0 {
                run.restart();
                tell(&mut run, &told);
            }
        }
    }
    let made = run.engine.progress().decisions.clone();
    let mut outcome = run.drain();
    outcome.late.sort_unstable();
    (outcome, made)
}

fn eras() -> impl Strategy<Value = (Eras, Vec<Vec<bool>>)> {
    let one = (0..3_usize, 0..4_000_i64, -9_000..2_000_i64);
    let partition = prop_oneof![
        1 => Just(Vec::new()),
        2 => prop::collection::vec(one, 1..12),
    ];
    let partitions = prop::collection::vec((partition, any::<bool>()), 3);
    prop::collection::vec(partitions, 2..5).prop_map(|raw| {
        let mut begins = 0;
        let (mut eras, mut topics) = (Vec::new(), Vec::new());
        for era in raw {
            let mut ends = begins;
            let mut of_era: Vec<Vec<Record>> = Vec::new();
            let mut topic = Vec::new();
            for (raw, is_there) in era {
                let mut now = begins;
                let records = raw.into_iter().map(|(user, step, off)| {
                    now += step;
                    record(["ann", "bob", "cy"][user], (now + off).max(0))
                });
                let records: Vec<Record> = records.collect();
                ends = ends.max(now);
                topic.push(is_there || !records.is_empty());
                of_era.push(records);
            }
            // a generation that nobody wrote to is none
            if of_era.iter().all(Vec::is_empty) {
                of_era[0].push(record("ann", begins));
                topic[0] = true;
            }
            begins = ends;
            eras.push(of_era);
            topics.push(topic);
        }
        (eras, topics)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn rows_do_not_depend_on_when_generations_were_known(
        (eras, topics) in eras(),
        bound_ms in 0..3_000_u64,
        sessions: bool,
        seeds in any::<[u64; 4]>(),
    ) {
        let query = compile(if sessions { SESSION } else { TUMBLE }, bound_ms);
        // live: the topic is asked while it is the newest, and has partitions that nobody writes to
        let (live, decisions) = run(&query, &eras, &topics, 0, (&[], seeds[0]));
        // down for a while, and begun anew over all of it, by the archive alone and with the topic as it is
        let last = eras.len() - 1;
        for (n, (topics, ahead, decisions)) in [
            (&topics[..], 1, &[][..]),
            (&topics[..], last, &[][..]),
            (&[][..], last, &[][..]),
            (&[][..], last, &decisions[..]),
        ]
        .into_iter()
        .enumerate()
        {
            let (replayed, _) = run(&query, &eras, topics, ahead, (decisions, seeds[n]));
            prop_assert_eq!(&replayed, &live, "replay {}", n);
        }
    }
}

fn clicks(user: &str, seconds: std::ops::Range<i64>) -> Vec<Record> {
    seconds.map(|s| record(user, s * 1_000)).collect()
}

/// The partition takes the time that the job has reached without it, and no more is late than that.
#[test]
fn a_partition_that_comes_back_counts_again() {
    let query = compile(TUMBLE, 0);
    let eras = vec![
        vec![clicks("a", 0..10), clicks("b", 0..10)],
        vec![clicks("a", 10..30), Vec::new()],
        vec![
            clicks("a", 30..45),
            [clicks("b", 25..26), clicks("b", 32..45)].concat(),
        ],
    ];
    let topics = [vec![true, true], vec![true, false], vec![true, true]];
    for (topics, ahead) in [(&topics[..], 0), (&topics[..], 2), (&[][..], 2)] {
        let (outcome, decisions) = run(&query, &eras, topics, ahead, (&[], 7));
        // at the border time was at 28.999 s: of second 25 the window was open yet, so nothing is late
        assert_eq!(outcome.late, Vec::<String>::new());
        assert_eq!(
            outcome.rows,
            [
                "a|0|10",
                "b|0|10",
                "a|10000|10",
                "a|20000|10",
                "b|20000|1",
                "a|30000|10",
                "b|30000|8",
                "a|40000|5",
                "b|40000|5"
            ]
        );
        let joined = Decision {
            generation: 2,
            partition: 1,
            offset: 0,
            floor: 28_999,
        };
        assert_eq!(decisions, [joined]);
    }
}

/// Without it being known that a generation lacks it, a partition waits, and nothing is lost by that.
#[test]
fn a_partition_of_which_nothing_is_known_yet_is_waited_for() {
    let query = compile(TUMBLE, 0);
    let eras = vec![
        vec![clicks("a", 0..5), clicks("b", 0..5)],
        vec![clicks("a", 5..40), clicks("b", 5..40)],
    ];
    let mut live = Run::new(&query, 0);
    tell(&mut live, &(vec![(0, 0), (0, 1), (1, 0)], Vec::new()));
    for place in [(0, 0), (0, 1), (1, 0)] {
        read(&mut live, &eras, place, 0..eras[place.0][place.1].len());
    }
    assert!(live.outcome.rows.is_empty(), "it may come yet");
    tell(&mut live, &known(&eras, 1, None));
    read(&mut live, &eras, (1, 1), 0..35);
    let outcome = live.drain();
    assert!(outcome.late.is_empty());
    assert_eq!(outcome.rows.len(), 8);
}

/// What a topic lacks it may get: raised to more partitions after it was created anew with fewer.
#[test]
fn a_partition_may_come_back_within_a_generation() {
    let query = compile(TUMBLE, 0);
    let eras = vec![
        vec![clicks("a", 0..5), clicks("b", 0..5)],
        vec![clicks("a", 5..25), clicks("b", 18..40)],
    ];
    let mut live = Run::new(&query, 0);
    tell(&mut live, &(vec![(0, 0), (0, 1)], Vec::new()));
    read(&mut live, &eras, (0, 0), 0..5);
    read(&mut live, &eras, (0, 1), 0..5);
    tell(&mut live, &(vec![(0, 0), (0, 1), (1, 0)], vec![(1, 1)]));
    read(&mut live, &eras, (1, 0), 0..20);
    assert_eq!(live.outcome.rows, ["a|0|10", "b|0|5", "a|10000|10"]);
    tell(
        &mut live,
        &(vec![(0, 0), (0, 1), (1, 0), (1, 1)], Vec::new()),
    );
    read(&mut live, &eras, (1, 1), 0..22);
    let decisions = live.engine.progress().decisions.clone();
    let live = live.drain();
    // seconds 18 and 19 are of a window that was out
    assert_eq!((live.late.len(), live.rows.len()), (2, 6));
    // who obeys the entry has the same rows
    let (mut replayed, _) = run(&query, &eras, &[], 1, (&decisions, 3));
    replayed.late.sort_unstable();
    let mut late = live.late.clone();
    late.sort_unstable();
    assert_eq!((replayed.rows, replayed.late), (live.rows, late));
}
