//! A topic that is created anew, with fewer partitions and then with more: a job that follows it, one that is started again and
//! again, and a first replay over all of it have the same rows.

use std::time::Duration;

use everlog_processor::job::Job;
use everlog_processor::run::{Bound, Prepared, run};

use crate::world::{Desk, World, options};

const BEGIN: i64 = 1_700_000_000_000;

const JOB: &str = r#"
[job]
name = "counts"
version = "v1"

[source]
topic = "clicks"
format = "json"
columns = { user = "STRING NOT NULL", at = "BIGINT NOT NULL" }
event_time = "to_timestamp_millis(at)"
out_of_orderness = "0s"

[query]
sql = "SELECT user, TUMBLE_START(ts, INTERVAL '10' SECOND) AS began, count(*) AS events FROM clicks GROUP BY user, TUMBLE(ts, INTERVAL '10' SECOND)"

[sink]
type = "jsonl"
path = "DIR/rows.jsonl"
late = "jsonl:DIR/late.jsonl"

[checkpoint]
interval = "100ms"
location = "file://DIR/state"

[limits]
memory = "64MiB"
"#;

fn click(world: &World, partition: i32, user: &str, second: i64) {
    let at = BEGIN + second * 1_000;
    world.append(partition, &format!(r#"{{"user":"{user}","at":{at}}}"#), at);
}

fn create_anew(world: &World, partitions: usize) {
    world.log.delete_topic(&world.topic);
    world.log.create_topic(&world.topic, partitions);
}

/// Generation 1 has no partition 2, and nobody writes to its partition 1.
async fn generation_1(world: &World) {
    create_anew(world, 2);
    for second in 12..30 {
        click(world, 0, "u0", second);
    }
    world.archive_all(5).await;
}

/// Generation 2 has all three, of which two begin behind what the job has reached.
async fn generation_2(world: &World) {
    create_anew(world, 3);
    for second in 30..52 {
        click(world, 0, "u0", second);
    }
    for second in [15, 35, 51] {
        click(world, 1, "u1", second);
        click(world, 2, "u2", second);
    }
    world.archive_all(5).await;
}

/// The rows, and the late records in the order of their text.
fn output(desk: &Desk) -> (Vec<String>, Vec<String>) {
    let mut late = desk.lines("late.jsonl");
    late.sort_unstable();
    (desk.lines("rows.jsonl"), late)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_a_generation_lacks_and_the_next_has_is_late_by_the_log_alone() {
    let world = World::new(3).await;
    let live = Desk::new(JOB);
    for second in 0..12 {
        for partition in 0..3 {
            click(&world, partition, &format!("u{partition}"), second);
        }
    }
    live.run(&world, Bound::Now, false).await.unwrap();
    world.archive_all(5).await;

    let followed = Desk::new(JOB);
    let environment = followed.environment(&world);
    let job = Job::parse(followed.text(), "job.toml").unwrap();
    let prepared = Prepared::new(job, &environment).await.unwrap();
    let following = options(Bound::Never, false);
    let ended = tokio::spawn(run(prepared, environment, following.clone()));
    let has_read = async |events: u64| {
        let due = tokio::time::Instant::now() + Duration::from_secs(60);
        while following.observer.numbers().events < events {
            assert!(tokio::time::Instant::now() < due, "{events} events");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    has_read(36).await;

    generation_1(&world).await;
    live.run(&world, Bound::Now, false).await.unwrap();
    assert_eq!(
        live.lines("rows.jsonl").len(),
        3,
        "partition 1 is there and may yet get something"
    );
    live.run(&world, Bound::Now, false).await.unwrap();
    has_read(54).await;

    generation_2(&world).await;
    live.run(&world, Bound::Now, false).await.unwrap();
    live.run(&world, Bound::Now, true).await.unwrap();
    let expected = output(&live);
    let (rows, late) = &expected;
    assert_eq!(late.len(), 2, "second 15 of both: {late:?}");
    assert!(late.iter().all(|line| line.contains("\"generation\":2")));
    // u0: 0 to 50; u1 and u2: 0, 10, 30, 50
    assert_eq!(rows.len(), 14, "{rows:?}");

    has_read(82).await;
    following.stop.cancel();
    ended.await.unwrap().unwrap();
    followed.run(&world, Bound::Now, true).await.unwrap();
    assert_eq!(output(&followed), expected, "followed");

    for until in [Bound::Snapshot, Bound::Now] {
        let replay = Desk::new(JOB);
        replay.run(&world, until, true).await.unwrap();
        assert_eq!(output(&replay), expected, "{until:?}");
    }
}
