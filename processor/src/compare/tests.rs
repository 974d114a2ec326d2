use std::collections::BTreeMap;

use arrow_array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use everlog_common::Clock as _;
use everlog_common::Millis;
use everlog_common::clock::{ManualClock, SeededIds, SystemClock};
use everlog_table::archive::ArchiveDeps;
use everlog_table::catalog::memory::MemoryCatalog;
use everlog_table::job::{CommitEpoch, JobPartitioning, JobRows, JobTableSpec, Marker};
use object_store::memory::InMemory;

use super::*;

const MINUTE: i64 = 60_000;
const DAY: i64 = 86_400_000;

/// An event: a user, and when.
type Event = (u32, i64);
/// A session: user, start, end, events, amount.
type Session = (u32, i64, i64, i64, f64);

/// What sessions events make: the independent reference that the versions follow.
fn sessions(events: &[Event], gap: i64) -> Vec<Session> {
    let mut sorted = events.to_vec();
    sorted.sort_unstable();
    let mut found: Vec<Session> = Vec::new();
    for (user, at) in sorted {
        match found.last_mut() {
            Some(last) if last.0 == user && at - (last.2 - gap) <= gap => {
                last.2 = at + gap;
                last.3 += 1;
                last.4 += 0.5;
            }
            _ => found.push((user, at, at + gap, 1, 0.5)),
        }
    }
    // as a job puts them out
    found.sort_by_key(|s| (s.2, s.0, s.1));
    found
}

/// Users that come and go, over some days.
fn clicks(users: u32, days: i64) -> Vec<Event> {
    let mut seed = 7_u64;
    let mut below = move |n: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        i64::try_from((seed >> 33) % n).unwrap_or(0)
    };
    let mut events = Vec::new();
    for user in 0..users {
        let mut at = 1_700_000_000_000 + below(60) * MINUTE;
        let end = 1_700_000_000_000 + days * DAY;
        while at < end {
            events.push((user, at));
            at += match below(10) {
                0 => 60 + below(600),
                1..=3 => 15 + below(20),
                _ => 1 + below(8),
            } * MINUTE
                + below(60_000);
        }
    }
    events
}

fn columns() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    Arc::new(Schema::new(vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("session_start", time.clone(), false),
        Field::new("session_end", time, false),
        Field::new("events", DataType::Int64, false),
        Field::new("amount", DataType::Float64, false),
    ]))
}

fn batch(rows: &[Session]) -> RecordBatch {
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(
            rows.iter().map(|s| format!("user {:03}", s.0)),
        )),
        Arc::new(TimestampMillisecondArray::from_iter_values(
            rows.iter().map(|s| s.1),
        )),
        Arc::new(TimestampMillisecondArray::from_iter_values(
            rows.iter().map(|s| s.2),
        )),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|s| s.3))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|s| s.4))),
    ];
    RecordBatch::try_new(columns(), arrays).expect("rows")
}

struct Lake {
    deps: ArchiveDeps,
}

impl Lake {
    fn new() -> Self {
        let past = SystemClock::default().now().0 - DAY;
        let clock = Arc::new(ManualClock::at(Millis(past)));
        let ids = Arc::new(SeededIds::new(3));
        let catalog = MemoryCatalog::new(
            Arc::new(InMemory::new()),
            "lake://warehouse",
            Arc::clone(&clock) as _,
            Arc::clone(&ids) as _,
        );
        let deps = ArchiveDeps {
            catalog: Arc::new(catalog),
            clock,
            ids,
        };
        Self { deps }
    }

    /// A version's output, committed in a few epochs.
    async fn side(&self, version: &str, rows: &[Session]) -> Side {
        let spec = JobTableSpec {
            table: "sessions".to_owned(),
            job: "sessions".to_owned(),
            version: version.to_owned(),
            columns: columns(),
            fingerprint: version.to_owned(),
            partitioning: JobPartitioning::None,
            properties: BTreeMap::new(),
            about: BTreeMap::new(),
        };
        let table = JobTable::open_or_create(self.deps.clone(), "everlog", &spec)
            .await
            .expect("a table");
        let mut before = 0;
        for (number, piece) in rows.chunks(rows.len().div_ceil(3).max(1)).enumerate() {
            let state = table.state().await.expect("a state");
            let files = table
                .write(JobRows {
                    table: &state.table,
                    rows: &batch(piece),
                })
                .await
                .expect("files");
            let after = before + piece.len() as u64;
            let marker = Marker {
                job: "sessions".to_owned(),
                version: version.to_owned(),
                epoch: number as u64 + 1,
                rows: after,
                positions: "{}".to_owned(),
                watermark: None,
                engine: "test".to_owned(),
            };
            let commit = CommitEpoch {
                marker,
                rows_before: before,
                files,
            };
            table.commit(&commit).await.expect("committed");
            before = after;
        }
        let state = table.state().await.expect("a state");
        Side {
            version: version.to_owned(),
            snapshot_id: state.versions[version].head,
            table,
            columns: columns()
                .fields()
                .iter()
                .map(|f| f.name().clone())
                .collect(),
            length_ms: 0,
            from_ms: None,
            to_ms: None,
        }
    }
}

fn settings(mode: Mode) -> Settings {
    Settings {
        mode,
        keys: vec!["user_id".to_owned()],
        window: Some(Edges::Both {
            start: "session_start".to_owned(),
            end: "session_end".to_owned(),
        }),
        measures: vec!["events".to_owned(), "amount".to_owned()],
        horizon: Duration::from_mins(30),
        examples: 5,
        ..Settings::default()
    }
}

/// What a version has put out when its watermark is at `to`.
fn until(rows: &[Session], to: i64) -> Vec<Session> {
    rows.iter().filter(|s| s.2 <= to).copied().collect()
}

fn minutes(n: i64) -> i64 {
    n * MINUTE
}

#[tokio::test]
async fn a_replay_of_the_same_logic_agrees_row_by_row() {
    let rows = sessions(&clicks(40, 4), minutes(30));
    assert!(rows.len() > 500);
    let lake = Lake::new();
    let left = lake.side("v1", &rows).await;
    let right = lake.side("v1-again", &rows).await;
    let report = compare(&left, &right, &settings(Mode::Same))
        .await
        .expect("compared");
    assert!(report.agrees(), "{report}");
    let same = report.same.expect("rows");
    // of the last end there may be more
    assert!(same.equal >= rows.len() as u64 - 1);
    assert_eq!(report.exit_status(), 0);
    assert!(
        report.to_string().contains("every row is there"),
        "{report}"
    );
}

#[tokio::test]
async fn one_wrong_row_in_many_is_found_and_shown() {
    let rows = sessions(&clicks(40, 4), minutes(30));
    let lake = Lake::new();
    let left = lake.side("v1", &rows).await;
    let mut wrong = rows.clone();
    wrong[300].3 += 1;
    let gone = wrong.remove(200);
    wrong[100].4 += 1e-12;
    let right = lake.side("v2", &wrong).await;
    let report = compare(&left, &right, &settings(Mode::Same))
        .await
        .expect("compared");
    let same = report.same.expect("rows");
    assert_eq!(
        (same.different, same.only_left, same.only_right),
        (1, 1, 0),
        "{report}"
    );
    assert_eq!(report.exit_status(), 1);
    assert_eq!(report.examples.len(), 2);
    let json = report.to_json();
    assert_eq!(json["agree"], false);
    assert!(json.to_string().contains(&format!("user {:03}", gone.0)));
}

#[tokio::test]
async fn a_version_that_began_in_mid_stream_agrees_where_both_have_everything() {
    let events = clicks(40, 4);
    let rows = sessions(&events, minutes(30));
    let from = 1_700_000_000_000 + DAY + 12_345;
    let later: Vec<Event> = events.iter().copied().filter(|e| e.1 >= from).collect();
    let cut = sessions(&later, minutes(30));
    let lake = Lake::new();
    let mut left = lake.side("v1", &cut).await;
    left.from_ms = Some(from);
    let right = lake.side("v2", &rows).await;
    let report = compare(&left, &right, &settings(Mode::Same))
        .await
        .expect("compared");
    assert!(report.agrees(), "{report}");
    assert!(report.rows.outside_right > 100);
    assert!(
        report.rows.border_left > 0,
        "sessions that were cut: {report}"
    );
    assert!(report.rows.left > 300);
    // the same holds for what is conserved
    let report = compare(&left, &right, &settings(Mode::Changed))
        .await
        .expect("compared");
    assert!(report.agrees(), "{report}");
    assert_eq!(
        report.groups.expect("groups").identical,
        report.groups.expect("groups").all()
    );
}

#[tokio::test]
async fn another_gap_cuts_sessions_otherwise_and_conserves_what_is_counted() {
    let events = clicks(60, 5);
    let (v1, v2) = (
        sessions(&events, minutes(30)),
        sessions(&events, minutes(20)),
    );
    // both are still running: sessions are open, in each of them others
    let (to1, to2) = (
        1_700_000_000_000 + 4 * DAY,
        1_700_000_000_000 + 4 * DAY + minutes(3),
    );
    let lake = Lake::new();
    let mut left = lake.side("v1", &until(&v1, to1)).await;
    let mut right = lake.side("v2", &until(&v2, to2)).await;
    left.to_ms = Some(to1);
    right.to_ms = Some(to2);
    let report = compare(&left, &right, &settings(Mode::Changed))
        .await
        .expect("compared");
    assert!(report.agrees(), "{report}");
    let groups = report.groups.expect("groups");
    assert!(groups.split > 50 && groups.moved > 50, "{report}");
    assert_eq!(
        groups.merged + groups.mixed + groups.only_left + groups.only_right,
        0,
        "{report}"
    );
    assert!(report.rows.border_right > 0, "{report}");
    assert_eq!(report.measures.len(), 2);
    assert!(report.measures[0].key_days > 100);
    assert_eq!(report.measures[0].left, report.measures[0].right);
    assert!(
        report
            .examples
            .iter()
            .all(|e| !e.left.is_empty() && !e.right.is_empty())
    );
    // the other way round, sessions are merged
    let report = compare(&right, &left, &settings(Mode::Changed))
        .await
        .expect("compared");
    assert!(report.agrees(), "{report}");
    assert_eq!(report.groups.expect("groups").merged, groups.split);
    // row by row they are different, as they must be
    let report = compare(&left, &right, &settings(Mode::Same))
        .await
        .expect("compared");
    assert_eq!(report.exit_status(), 1);
}

#[tokio::test]
async fn events_that_one_version_lost_are_found_in_their_key_and_day() {
    let events = clicks(60, 5);
    let lost: Vec<Event> = {
        let mut some = events.clone();
        some.remove(1_000);
        some
    };
    let lake = Lake::new();
    let left = lake.side("v1", &sessions(&events, minutes(30))).await;
    let right = lake.side("v2", &sessions(&lost, minutes(20))).await;
    let report = compare(&left, &right, &settings(Mode::Changed))
        .await
        .expect("compared");
    assert_eq!(report.exit_status(), 1, "{report}");
    let events = &report.measures[0];
    assert_eq!(events.key_days - events.key_days_equal, 1, "{report}");
    assert_eq!(events.days.len(), 1);
    assert_eq!(report.groups.expect("groups").not_conserved, 1);
}

#[tokio::test]
async fn a_sample_is_of_whole_keys_and_the_same_every_time() {
    let rows = sessions(&clicks(200, 2), minutes(30));
    let lake = Lake::new();
    let left = lake.side("v1", &rows).await;
    let right = lake.side("v2", &rows).await;
    let of = async |sample| {
        let settings = Settings {
            sample,
            ..settings(Mode::Same)
        };
        compare(&left, &right, &settings).await.expect("compared")
    };
    let (half, again) = (of(Sample::Share(0.5)).await, of(Sample::Share(0.5)).await);
    assert_eq!(half, again);
    assert!(half.agrees());
    let all = rows.len() as u64;
    assert!(
        half.rows.left > all / 4 && half.rows.left < all * 3 / 4,
        "{half}"
    );
    let some = of(Sample::Rows(all / 2)).await;
    assert!(some.share < 0.3 && some.rows.left < all / 2, "{some}");
    let every = of(Sample::Rows(all * 2)).await;
    assert!((every.share - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn outputs_larger_than_the_memory_are_sorted_on_disk() {
    let rows = sessions(&clicks(1_500, 14), minutes(20));
    assert!(rows.len() > 150_000, "{}", rows.len());
    let lake = Lake::new();
    let left = lake.side("v1", &rows).await;
    let right = lake.side("v2", &rows).await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = Settings {
        memory: 1,
        folder: Some(folder.path().to_owned()),
        ..settings(Mode::Same)
    };
    let report = compare(&left, &right, &settings).await.expect("compared");
    assert!(report.agrees(), "{report}");
    assert!(report.rows.left >= rows.len() as u64 - 1);
    // that was more than fits
    let columns = Arc::new(super::columns(&left, &right, &settings).expect("columns"));
    let mut sorted = Sorted::open(&left, &columns, 1.0, &settings)
        .await
        .expect("sorted");
    let mut read = 0;
    while sorted.next().await.expect("a row").is_some() {
        read += 1;
    }
    assert_eq!(read, rows.len());
    assert!(sorted.spills() > 0);
}

#[tokio::test]
async fn what_cannot_be_compared_is_said() {
    let lake = Lake::new();
    let left = lake.side("v1", &sessions(&clicks(3, 1), minutes(30))).await;
    let empty = Side {
        snapshot_id: None,
        ..left.clone()
    };
    let report = compare(&left, &empty, &settings(Mode::Same))
        .await
        .expect("compared");
    assert_eq!(report.exit_status(), 1);
    assert!(
        report.to_string().contains("nothing to compare"),
        "{report}"
    );
    for (settings, word) in [
        (
            Settings {
                keys: vec!["nobody".to_owned()],
                ..settings(Mode::Same)
            },
            "nobody",
        ),
        (
            Settings {
                measures: Vec::new(),
                ..settings(Mode::Changed)
            },
            "--measures",
        ),
        (
            Settings {
                window: None,
                ..settings(Mode::Changed)
            },
            "without windows",
        ),
        (
            Settings {
                sample: Sample::Share(0.0),
                ..settings(Mode::Same)
            },
            "share",
        ),
    ] {
        let error = compare(&left, &left, &settings).await.expect_err(word);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(error.exit_status(), 2);
    }
    // rows without windows are compared as a whole
    let plain = Settings {
        keys: Vec::new(),
        window: None,
        measures: Vec::new(),
        ..settings(Mode::Same)
    };
    let report = compare(&left, &left, &plain).await.expect("compared");
    assert!(report.agrees(), "{report}");
}

#[tokio::test]
async fn one_edge_of_a_window_of_a_known_length_is_enough() {
    let lake = Lake::new();
    // hours of a day and a half, of which the second version has not put out the last ones
    let hours = |count: i64, width: i64| -> Vec<Session> {
        let each = |n: i64| {
            let start = 1_700_000_000_000 + n * width * 60 * MINUTE;
            (7, start, start + width * 60 * MINUTE, 10 * width, 0.5)
        };
        (0..count).map(each).collect()
    };
    let mut left = lake.side("v1", &hours(36, 1)).await;
    let mut right = lake.side("v2", &hours(30, 1)).await;
    for side in [&mut left, &mut right] {
        side.length_ms = 60 * MINUTE;
    }
    for edges in [
        Edges::Start("session_start".to_owned()),
        Edges::End("session_end".to_owned()),
    ] {
        let asked = Settings {
            window: Some(edges),
            ..settings(Mode::Same)
        };
        // the end of what both cover is taken from the rows: of the last end there may be more
        let report = compare(&left, &right, &asked).await.expect("compared");
        assert!(report.agrees(), "{report}");
        let same = report.same.expect("rows");
        assert_eq!((same.equal, report.rows.outside_left), (29, 7));
    }
    // windows of another length, by their beginnings alone
    let mut wide = lake.side("v3", &hours(15, 2)).await;
    wide.length_ms = 120 * MINUTE;
    wide.to_ms = Some(i64::MAX);
    let asked = Settings {
        window: Some(Edges::Start("session_start".to_owned())),
        measures: vec!["events".to_owned()],
        horizon: Duration::ZERO,
        ..settings(Mode::Changed)
    };
    let left = Side {
        to_ms: Some(1_700_000_000_000 + 30 * 60 * MINUTE),
        ..left
    };
    let report = compare(&left, &wide, &asked).await.expect("compared");
    assert!(report.agrees(), "{report}");
    assert_eq!(report.groups.expect("groups").merged, 15);
}

#[tokio::test]
async fn what_a_session_that_is_open_in_both_versions_begins_with_is_no_loss() {
    let start = 1_700_000_000_000;
    // one that ended long ago says how long sessions are; then two clicks, a pause of 25 minutes, and clicks all the time
    let mut events: Vec<Event> = (0..18).map(|n| (1, start + n * 10 * MINUTE)).collect();
    let later = start + DAY;
    events.push((1, later));
    events.extend((0..30).map(|n| (1, later + minutes(25) + n * 5 * MINUTE)));
    let to = later + minutes(150);
    events.retain(|event| event.1 < to);
    let lake = Lake::new();
    let side = async |version: &str, gap: i64, events: &[Event]| {
        let mut side = lake
            .side(
                version,
                &until(&sessions(events, minutes(gap)), to - minutes(gap)),
            )
            .await;
        side.to_ms = Some(to - minutes(gap));
        side
    };
    let (left, right) = (side("v1", 30, &events).await, side("v2", 20, &events).await);
    let report = compare(&left, &right, &settings(Mode::Changed))
        .await
        .expect("compared");
    assert!(report.agrees(), "{report}");
    assert_eq!(
        report.rows.border_right, 1,
        "the click before the pause: {report}"
    );
    // who was not seen again for longer than any session lasts has nothing open: what is missing there is missing
    let silent: Vec<Event> = events
        .iter()
        .copied()
        .filter(|event| event.1 <= later)
        .collect();
    let to = to + DAY;
    let side = async |version: &str, gap: i64, events: &[Event]| {
        let mut side = lake.side(version, &sessions(events, minutes(gap))).await;
        side.to_ms = Some(to - minutes(gap));
        side
    };
    let lost = side("v3", 30, &silent[..silent.len() - 1]).await;
    let whole = side("v4", 20, &silent).await;
    let report = compare(&lost, &whole, &settings(Mode::Changed))
        .await
        .expect("compared");
    assert!(!report.agrees(), "{report}");
    assert_eq!(report.groups.expect("groups").only_right, 1, "{report}");
}

#[test]
fn edges_are_told_by_what_a_query_puts_out() {
    let roles = |window: Option<Window>, start: bool, end: bool| Roles {
        window,
        start: start.then(|| "a".to_owned()),
        end: end.then(|| "b".to_owned()),
        ..Roles::default()
    };
    let (session, tumble) = (Window::Session { gap: 5 }, Window::Tumble { size: 5 });
    let both = Some(Edges::Both {
        start: "a".to_owned(),
        end: "b".to_owned(),
    });
    assert_eq!(Edges::of(&roles(Some(session), true, true)), both);
    // how long a session was, its beginning does not tell
    assert_eq!(Edges::of(&roles(Some(session), true, false)), None);
    let start = Some(Edges::Start("a".to_owned()));
    assert_eq!(Edges::of(&roles(Some(tumble), true, false)), start);
    let end = Some(Edges::End("b".to_owned()));
    assert_eq!(Edges::of(&roles(Some(tumble), false, true)), end);
    assert_eq!(Edges::of(&roles(Some(tumble), false, false)), None);
    assert_eq!(Edges::of(&Roles::default()), None);
}
