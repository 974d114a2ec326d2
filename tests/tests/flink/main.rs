//! Flink as the oracle: the very text that [`everlog_engine::Query::flink`] gives is run by a real Flink over the same
//! Kafka topic, and its rows are those of everlog's engine, one by one.
//!
//! | windows | what Flink reads | why it is a fair comparison |
//! |---|---|---|
//! | tumble, hop | the topic, one partition, late records and all | lateness is per window and of the record's own partition in both |
//! | session | the records that count, with a watermark wider than the data | a late record splits Flink's sessions by the order of arrival |
//! | all three | several partitions, nothing late, no two records exactly one gap apart | Flink's rows are then a function of the records, too |
//!
//! Which records count is computed here from the rules alone. `docs/event-time.md` has them, and the differences.

mod clicks;
mod rows;
mod sides;

use std::path::Path;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use everlog_engine::{EventTime, Query, Scope};
use everlog_tests::broker::Broker;

use everlog_tests::everlog::{Everlog, Setup};

use clicks::{COLUMNS, Click, Clicks, Shape, fill, generate, produce, random};
use rows::{Place, assert_same, of_files, of_lines};
use sides::{OnFlink, everlog, kafka, on_flink, query, run_on_flink};

/// As many times each test is run, each time with other records.
fn rounds() -> u64 {
    everlog_services::environment("EVERLOG_FLINK_ROUNDS").map_or(1, |text| {
        text.parse().expect("EVERLOG_FLINK_ROUNDS is a number")
    })
}

/// A topic of this test and round.
fn topic(name: &str, round: u64) -> String {
    format!("flink-{name}-{round}")
}

const AGGREGATES: &str = "count(*) AS n, count(amount) AS amounts, count(DISTINCT kind) AS kinds, \
     count(*) FILTER (WHERE kind = 'view') AS views, sum(amount) AS total, sum(pieces) AS pieces, \
     avg(amount) AS mean, avg(pieces) AS mean_pieces, min(amount) AS low, max(amount) AS high, \
     min(kind) AS first_kind, max(kind) AS last_kind, sum(price) AS prices, avg(price) AS price, \
     min(price) AS cheap, max(price) AS dear, sum(paid) AS paid, min(paid) AS least, max(paid) AS most, \
     sum(amount) FILTER (WHERE kind = 'purchase') AS bought";

/// All aggregates of a window's records per user; `window` is the function, `arguments` what follows `ts`.
fn windowed(window: &str, arguments: &str) -> String {
    format!(
        "SELECT user_id, {window}_START(ts, {arguments}) AS s, {window}_END(ts, {arguments}) AS e, {AGGREGATES} \
         FROM clicks GROUP BY user_id, {window}(ts, {arguments})"
    )
}

const TUMBLE: (&str, &str) = ("TUMBLE", "INTERVAL '20' SECOND");
const HOP: (&str, &str) = ("HOP", "INTERVAL '5' SECOND, INTERVAL '20' SECOND");
const SESSION: (&str, &str) = ("SESSION", "INTERVAL '10' SECOND");
const GAP: Duration = Duration::from_secs(10);

fn bound(bound: Duration) -> EventTime {
    EventTime {
        bound,
        ..EventTime::default()
    }
}

fn place(query: &Query) -> Place {
    Place::new(&query.output_schema(), "e", &["user_id"], "s")
}

const LATE: Shape = Shape {
    partitions: 1,
    clicks: 4_000,
    users: 12,
    step: 600,
    disorder: 60_000,
    copies: 0,
    keyed: false,
};

#[tokio::test]
async fn tumbling_and_hopping_windows_have_flinks_rows_whatever_is_late() {
    let broker = Broker::new(&kafka().bootstrap);
    for round in 0..rounds() {
        let mut random = random(100 + round);
        let topic = topic("late", round);
        produce(&broker, &topic, &generate(&mut random, LATE)).await;
        for (window, arguments) in [TUMBLE, HOP] {
            let query = Arc::new(query(
                &windowed(window, arguments),
                bound(Duration::from_secs(8)),
            ));
            let ours = everlog(&query, &topic, &mut random);
            assert!(ours.late.len() > 400, "only {} were late", ours.late.len());
            place(&query).assert_in_order(&ours.rows);
            let mut theirs = on_flink(&query, &topic, OnFlink::AS_IT_COMES);
            place(&query).sort(&mut theirs);
            assert_same(&ours.rows, &theirs, window);
        }
    }
}

#[tokio::test]
async fn conditions_and_several_keys_are_flinks() {
    let broker = Broker::new(&kafka().bootstrap);
    for round in 0..rounds() {
        let mut random = random(200 + round);
        let topic = topic("conditions", round);
        produce(&broker, &topic, &generate(&mut random, LATE)).await;
        // what WHERE leaves out moves time in both
        let sql = "SELECT user_id, kind, TUMBLE_START(ts, INTERVAL '20' SECOND) AS s, TUMBLE_END(ts, INTERVAL '20' SECOND) AS e, \
                   TUMBLE_ROWTIME(ts, INTERVAL '20' SECOND) AS r, count(*) AS n, sum(amount) + count(*) AS more, \
                   CASE WHEN max(amount) > 500 THEN 'high' ELSE 'low' END AS level \
                   FROM clicks WHERE amount > 0 AND user_id <> 'user-3' \
                   GROUP BY user_id, kind, TUMBLE(ts, INTERVAL '20' SECOND) HAVING count(*) > 1";
        let query = Arc::new(query(sql, bound(Duration::from_secs(8))));
        let ours = everlog(&query, &topic, &mut random);
        assert!(ours.rows.len() > 100, "only {} rows", ours.rows.len());
        let place = Place::new(&query.output_schema(), "e", &["user_id", "kind"], "s");
        place.assert_in_order(&ours.rows);
        let mut theirs = on_flink(&query, &topic, OnFlink::AS_IT_COMES);
        place.sort(&mut theirs);
        assert_same(&ours.rows, &theirs, "conditions");
    }
}

/// Rule 2, from its text: partition and offset of the records that sessions take.
fn accepted(clicks: &[Vec<Click>], bound: Duration, lateness: Duration) -> BTreeSet<(i32, i64)> {
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).expect("short");
    let mut accepted = BTreeSet::new();
    for (partition, clicks) in (0..).zip(clicks) {
        let mut highest: Option<i64> = None;
        for (offset, click) in (0..).zip(clicks) {
            let watermark = highest.map(|highest| highest - ms(bound) - 1);
            if watermark.is_none_or(|watermark| click.time > watermark - ms(lateness)) {
                accepted.insert((partition, offset));
            }
            highest = highest.max(Some(click.time));
        }
    }
    accepted
}

#[tokio::test]
async fn sessions_have_flinks_rows_over_the_records_that_count() {
    let broker = Broker::new(&kafka().bootstrap);
    let several = Shape {
        partitions: 3,
        clicks: 1_500,
        users: 40,
        ..LATE
    };
    let bounded = Duration::from_secs(8);
    for round in 0..rounds() {
        let mut random = random(300 + round);
        let clicks = generate(&mut random, several);
        let name = topic("sessions", round);
        produce(&broker, &name, &clicks).await;
        for lateness in [Duration::ZERO, GAP] {
            let time = EventTime {
                lateness: Some(lateness),
                ..bound(bounded)
            };
            let query = Arc::new(query(&windowed(SESSION.0, SESSION.1), time));
            let ours = everlog(&query, &name, &mut random);
            let counted = accepted(&clicks, bounded, lateness);
            let all = clicks.iter().zip(0..).flat_map(|(clicks, partition)| {
                (0..)
                    .take(clicks.len())
                    .map(move |offset| (partition, offset))
            });
            let late: BTreeSet<(i32, i64)> = all.filter(|place| !counted.contains(place)).collect();
            assert!(late.len() > 400, "only {} were late", late.len());
            assert_eq!(ours.late, late, "which records are late");
            place(&query).assert_in_order(&ours.rows);

            let only = format!("{name}-{}", lateness.as_secs());
            let kept: Clicks = (0..)
                .zip(&clicks)
                .map(|(partition, clicks)| {
                    let kept = (0..)
                        .zip(clicks)
                        .filter(|(offset, _)| counted.contains(&(partition, *offset)));
                    kept.map(|(_, click)| click.clone()).collect()
                })
                .collect();
            produce(&broker, &only, &kept).await;
            let how = OnFlink {
                all_time: true,
                parallelism: 2,
            };
            let mut theirs = on_flink(&query, &only, how);
            place(&query).sort(&mut theirs);
            assert_same(&ours.rows, &theirs, "sessions");
        }
    }
}

#[tokio::test]
async fn what_is_on_time_gives_flinks_rows_in_every_window_at_any_parallelism() {
    let broker = Broker::new(&kafka().bootstrap);
    let on_time = Shape {
        partitions: 4,
        clicks: 1_000,
        users: 60,
        // less than the bound by more than a grain
        disorder: 7_900,
        ..LATE
    };
    for round in 0..rounds() {
        let mut random = random(400 + round);
        let topic = topic("on-time", round);
        produce(&broker, &topic, &generate(&mut random, on_time)).await;
        for (window, arguments) in [TUMBLE, HOP, SESSION] {
            let query = Arc::new(query(
                &windowed(window, arguments),
                bound(Duration::from_secs(8)),
            ));
            let ours = everlog(&query, &topic, &mut random);
            assert_eq!(ours.late, BTreeSet::new());
            let how = OnFlink {
                all_time: false,
                parallelism: 2,
            };
            let mut theirs = on_flink(&query, &topic, how);
            place(&query).sort(&mut theirs);
            assert_same(&ours.rows, &theirs, window);
        }
    }
}

#[tokio::test]
async fn with_time_per_partition_each_partition_is_a_flink_of_its_own() {
    let broker = Broker::new(&kafka().bootstrap);
    let keyed = Shape {
        partitions: 2,
        clicks: 1_500,
        keyed: true,
        ..LATE
    };
    for round in 0..rounds() {
        let mut random = random(500 + round);
        let clicks = generate(&mut random, keyed);
        let name = topic("keyed", round);
        produce(&broker, &name, &clicks).await;
        let time = EventTime {
            scope: Scope::Partition,
            ..bound(Duration::from_secs(8))
        };
        let query = Arc::new(query(&windowed(HOP.0, HOP.1), time));
        let mut ours = everlog(&query, &name, &mut random);
        assert!(ours.late.len() > 400, "only {} were late", ours.late.len());
        place(&query).sort(&mut ours.rows);
        let mut theirs = Vec::new();
        for (number, partition) in clicks.into_iter().enumerate() {
            let own = format!("{name}-{number}");
            produce(&broker, &own, &[partition]).await;
            theirs.extend(on_flink(&query, &own, OnFlink::AS_IT_COMES));
        }
        place(&query).sort(&mut theirs);
        assert_same(&ours.rows, &theirs, "time per partition");
    }
}

#[tokio::test]
async fn duplicates_are_those_that_flink_drops() {
    let broker = Broker::new(&kafka().bootstrap);
    let copied = Shape { copies: 20, ..LATE };
    for round in 0..rounds() {
        let mut random = random(600 + round);
        let topic = topic("copies", round);
        produce(&broker, &topic, &generate(&mut random, copied)).await;
        let plain = query(&windowed(TUMBLE.0, TUMBLE.1), bound(Duration::from_secs(8)));
        // longer than the records' disorder: everlog can tell every copy, and Flink has no time to forget one
        let deduplicated = plain
            .deduplicate(&["event_id".to_owned()], Duration::from_secs(600))
            .expect("a column");
        let query = Arc::new(deduplicated);
        let ours = everlog(&query, &topic, &mut random);
        let mut theirs = on_flink(&query, &topic, OnFlink::AS_IT_COMES);
        place(&query).sort(&mut theirs);
        assert_same(&ours.rows, &theirs, "without duplicates");
    }
}

#[tokio::test]
async fn rows_without_windows_are_flinks_in_the_order_of_the_log() {
    let broker = Broker::new(&kafka().bootstrap);
    for round in 0..rounds() {
        let mut random = random(700 + round);
        let topic = topic("rows", round);
        produce(&broker, &topic, &generate(&mut random, LATE)).await;
        let sql = "SELECT event_id, upper(kind) AS kind, coalesce(user_id, 'nobody') AS who, amount * 2 + pieces AS score, \
                   CASE WHEN amount > 500 THEN 'high' WHEN amount IS NULL THEN NULL ELSE 'low' END AS level, \
                   price / 4 AS quarter, paid, CAST(amount AS STRING) AS amount_text, timestamp_ms % 1000 AS ms, ts, \
                   kind || '-' || user_id AS both, abs(amount) AS size, char_length(event_id) AS letters, \
                   _partition, _offset, _timestamp AS logged \
                   FROM clicks WHERE kind IN ('view', 'purchase') AND (user_id LIKE 'user-1%' OR amount BETWEEN 10 AND 400)";
        let query = Arc::new(query(sql, bound(Duration::from_secs(8))));
        let ours = everlog(&query, &topic, &mut random);
        assert!(ours.rows.len() > 500, "only {} rows", ours.rows.len());
        let theirs = on_flink(&query, &topic, OnFlink::AS_IT_COMES);
        assert_same(&ours.rows, &theirs, "no windows");
    }
}

/// A job's file: `sql` over the topic, rows into `rows`, everything in a folder of its own.
fn job(folder: &Path, topic: &str, sql: &str, rows: &Path) -> String {
    std::fs::create_dir_all(folder).expect("a folder");
    let columns = COLUMNS
        .map(|(name, sql)| format!("{name} = {sql:?}"))
        .join(", ");
    let text = format!(
        "[job]\nname = \"rows\"\nversion = \"v1\"\n\n\
         [source]\ntopic = {topic:?}\nformat = \"json\"\ncolumns = {{ {columns} }}\n\
         event_time = \"to_timestamp_millis(timestamp_ms)\"\nout_of_orderness = \"8s\"\n\n\
         [query]\nsql = {sql:?}\n\n\
         [sink]\ntype = \"jsonl\"\npath = {:?}\n\n\
         [checkpoint]\ninterval = \"1s\"\nlocation = \"file://{}\"\n",
        rows.display().to_string(),
        folder.join("jobs").display(),
    );
    let file = folder.join("job.toml");
    std::fs::write(&file, text).expect("the job's file");
    file.display().to_string()
}

#[tokio::test]
async fn the_binary_live_and_from_the_archive_and_the_program_that_it_prints_give_the_same_rows() {
    let broker = Broker::new(&kafka().bootstrap);
    for round in 0..rounds() {
        let mut random = random(800 + round);
        let topic = format!("flink_binary_{round}");
        broker.create(&topic, 1, &[]).await;
        // its archive is empty, so everything comes from Kafka
        let live = Everlog::local(&Setup::new(&kafka().bootstrap, &[&topic]));
        live.archive();
        fill(&broker, &topic, &generate(&mut random, LATE));
        let sql = windowed(HOP.0, HOP.1).replace("FROM clicks", &format!("FROM {topic}"));
        let plain = query(&windowed(HOP.0, HOP.1), bound(Duration::from_secs(8)));
        let (schema, place) = (plain.output_schema(), place(&plain));

        let file = live.dir().join("rows.jsonl");
        let ours = job(&live.dir().join("job"), &topic, &sql, &file);
        live.ok(&["process", &ours, "--until", "now", "--drain"]);
        let rows = of_lines(&file, &schema);
        assert!(rows.len() > 2_500, "only {} rows", rows.len());
        place.assert_in_order(&rows);

        let lake = Everlog::local(&Setup::new(&kafka().bootstrap, &[&topic]));
        lake.archive();
        let file = lake.dir().join("rows.jsonl");
        let replay = job(&lake.dir().join("job"), &topic, &sql, &file);
        lake.ok(&["process", &replay, "--until", "snapshot", "--drain"]);
        assert_same(&of_lines(&file, &schema), &rows, "archive (left) and live");

        let folder = live.dir().join("flink-rows");
        let theirs = job(&live.dir().join("flink"), &topic, &sql, &folder);
        let program = live.ok(&["process", "--flink", &theirs, "--until", "now"]);
        run_on_flink(&program, 1);
        let mut theirs = of_files(&folder, &schema);
        place.sort(&mut theirs);
        assert_same(&rows, &theirs, "the program that the binary prints");
    }
}
