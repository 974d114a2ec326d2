//! Outputs with a positions file, killed at any instant and run again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::clock::{SeededIds, SystemClock};
use everlog_common::{Clock, Millis};
use everlog_kafka::memory::MemoryLog;
use everlog_replayer::output::json::Encoding;
use everlog_replayer::{OutputTarget, Session, SessionError, SessionOptions, Step, Summary};
use everlog_table::catalog::memory::MemoryCatalog;
use object_store::memory::InMemory;
use proptest::prelude::*;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::support::{Produced, T, WAREHOUSE, World, o, request, topic, tp};

/// The machine's clock, so much faster that checkpoints are a few milliseconds apart.
#[derive(Debug, Default)]
struct FastClock(SystemClock);

const FASTER: u32 = 500;

#[async_trait]
impl Clock for FastClock {
    fn now(&self) -> Millis {
        Millis(1_700_000_000_000).plus(self.elapsed())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed() * FASTER
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration / FASTER).await;
    }
}

fn world() -> (World, MemoryLog) {
    let clock: Arc<dyn Clock> = Arc::new(FastClock::default());
    let ids = Arc::new(SeededIds::new(7));
    let store = Arc::new(InMemory::new());
    let catalog = MemoryCatalog::new(store, WAREHOUSE, Arc::clone(&clock), ids);
    let log = MemoryLog::new(Arc::clone(&clock));
    let world = World::new(clock, Arc::new(log.clone()), Arc::new(catalog));
    (world, log)
}

/// What a process is: when it is killed, what is under way on other threads comes to its end, and nothing begins any more.
fn process() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn options(output: OutputTarget, positions: &Path) -> SessionOptions {
    SessionOptions {
        output,
        encoding: Encoding::Text,
        resume: Some(positions.to_owned()),
        kafka: BTreeMap::new(),
    }
}

/// Runs a session to its end; or, after so many polls, drops everything as it is.
fn run(
    world: &World,
    options: &SessionOptions,
    polls: Option<usize>,
) -> Option<Result<Summary, SessionError>> {
    let process = process();
    let outcome = process.block_on(async {
        let mut left = polls.unwrap_or(usize::MAX);
        let whole = async {
            let components = world.hesitant();
            let mut session = Session::open(request(), components, options.clone()).await?;
            let signal = CancellationToken::new();
            while session.step(&signal).await? != Step::Ended {}
            Ok(session.close().await)
        };
        let mut whole = pin!(whole);
        std::future::poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(None);
            }
            left -= 1;
            whole.as_mut().poll(context).map(Some)
        })
        .await
    });
    drop(process);
    outcome
}

/// Per partition the offsets and payloads of a file of JSON lines.
fn lines(path: &Path) -> BTreeMap<i32, Vec<(i64, String)>> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line");
    let mut rows: BTreeMap<i32, Vec<(i64, String)>> = BTreeMap::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let partition = i32::try_from(line["partition"].as_i64().unwrap()).unwrap();
        let payload = line["payload"].as_str().unwrap().to_owned();
        rows.entry(partition)
            .or_default()
            .push((line["offset"].as_i64().unwrap(), payload));
    }
    rows
}

/// What happens between two runs.
#[derive(Debug, Clone, Copy)]
enum Act {
    Produce(i32, usize),
    Commit,
    /// Everything is archived, and Kafka forgets it.
    Forget,
    /// A write that was under way when the machine lost power.
    Junk(usize),
    Nothing,
}

fn acts() -> impl Strategy<Value = Vec<(usize, Act)>> {
    let act = prop_oneof![
        3 => (0..3, 1_usize..60).prop_map(|(p, n)| Act::Produce(p, n)),
        1 => Just(Act::Commit),
        1 => Just(Act::Forget),
        1 => (1_usize..200).prop_map(Act::Junk),
        2 => Just(Act::Nothing),
    ];
    prop::collection::vec((1_usize..400, act), 1..16)
}

struct Killed {
    _folder: tempfile::TempDir,
    file: PathBuf,
    produced: Produced,
    count: Summary,
    file_summary: Summary,
}

/// Two sessions, one into a file and one that counts, killed again and again while the log goes on.
fn killed_again_and_again(acts: &[(usize, Act)]) -> Killed {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.jsonl");
    let to_file = options(
        OutputTarget::File(file.clone()),
        &folder.path().join("file.json"),
    );
    let counted = options(OutputTarget::Count, &folder.path().join("count.json"));
    let (world, log) = world();
    let mut produced = Produced::default();
    log.create_topic(&topic(T), 3);
    log.limit_batches(9);
    let own = process();
    for partition in 0..3 {
        produced.produce(&log, &topic(T), partition, 80);
    }
    own.block_on(world.commit_all(&topic(T), 20));
    for partition in 0..3 {
        produced.produce(&log, &topic(T), partition, 80);
    }
    for (polls, act) in acts {
        for options in [&to_file, &counted] {
            if let Some(ended) = run(&world, options, Some(*polls)) {
                ended.unwrap();
            }
        }
        match *act {
            Act::Produce(partition, count) => produced.produce(&log, &topic(T), partition, count),
            Act::Commit => own.block_on(world.commit_all(&topic(T), 1000)),
            Act::Forget => {
                own.block_on(world.commit_all(&topic(T), 1000));
                for (partition, rows) in &produced.rows {
                    log.delete_records(&tp(T, *partition), o(i64::try_from(rows.len()).unwrap()));
                }
            }
            Act::Junk(bytes) => {
                if let Ok(mut text) = std::fs::read(&file)
                    && folder.path().join("file.json").exists()
                {
                    text.extend(std::iter::repeat_n(b'{', bytes));
                    std::fs::write(&file, text).unwrap();
                }
            }
            Act::Nothing => {}
        }
    }
    Killed {
        file_summary: run(&world, &to_file, None).unwrap().unwrap(),
        count: run(&world, &counted, None).unwrap().unwrap(),
        _folder: folder,
        file,
        produced,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 50, ..ProptestConfig::with_cases(16) })]

    /// h46: exactly once, whatever instant a run ends at, in history, at the seam and in the tail.
    #[test]
    fn h46_file_and_count_have_everything_once_however_often_they_are_killed(acts in acts()) {
        let killed = killed_again_and_again(&acts);
        prop_assert_eq!(&lines(&killed.file), &killed.produced.rows);
        let events = killed.produced.count() as u64;
        let values = killed.produced.rows.values().flatten().map(|(_, v)| v.len() as u64);
        prop_assert_eq!(killed.count, Summary { events, bytes: Some(values.sum()) });
        prop_assert_eq!(killed.file_summary.events, events);
    }
}

#[test]
fn a_run_is_killed_before_in_and_after_the_switch() {
    // how many polls a run takes, and where it is killed: each fortieth of it
    let folder = tempfile::tempdir().unwrap();
    let (world, log) = world();
    let mut produced = Produced::default();
    log.create_topic(&topic(T), 2);
    log.limit_batches(20);
    produced.produce(&log, &topic(T), 0, 300);
    process().block_on(world.commit_all(&topic(T), 100));
    produced.produce(&log, &topic(T), 0, 300);
    produced.produce(&log, &topic(T), 1, 100);
    let mut tiers = [0, 0];
    for polls in (1..600).step_by(3) {
        let file = folder.path().join(format!("{polls}.jsonl"));
        let positions = folder.path().join(format!("{polls}.json"));
        let options = options(OutputTarget::File(file.clone()), &positions);
        if let Some(ended) = run(&world, &options, Some(polls)) {
            ended.unwrap();
            break;
        }
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        tiers[usize::from(text.contains(r#""source":"live""#))] += 1;
        run(&world, &options, None).unwrap().unwrap();
        assert_eq!(lines(&file), produced.rows, "killed after {polls} polls");
    }
    assert!(
        tiers[0] > 5 && tiers[1] > 5,
        "{tiers:?} killed in history and in the tail"
    );
}

#[test]
fn an_output_that_is_not_what_was_saved_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (world, log) = world();
    log.create_topic(&topic(T), 1);
    let mut produced = Produced::default();
    produced.produce(&log, &topic(T), 0, 50);
    process().block_on(world.commit_all(&topic(T), 1000));
    let file = folder.path().join("out.jsonl");
    let positions = folder.path().join("positions.json");
    let options = options(OutputTarget::File(file.clone()), &positions);
    run(&world, &options, None).unwrap().unwrap();
    let whole = std::fs::read(&file).unwrap();
    // shorter than it was
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let error = run(&world, &options, None).unwrap().unwrap_err();
    assert!(error.to_string().contains("changed since"), "{error}");
    // a file of somebody else's, and no positions yet
    std::fs::write(&file, &whole).unwrap();
    std::fs::remove_file(&positions).unwrap();
    let error = run(&world, &options, None).unwrap().unwrap_err();
    assert!(error.to_string().contains("there already"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), whole, "it is left alone");
    // positions that were torn
    std::fs::remove_file(&file).unwrap();
    run(&world, &options, None).unwrap().unwrap();
    let text = std::fs::read(&positions).unwrap();
    std::fs::write(&positions, &text[..text.len() / 2]).unwrap();
    let error = run(&world, &options, None).unwrap().unwrap_err();
    assert!(
        error.to_string().contains("not a whole positions file"),
        "{error}"
    );
}

#[test]
fn h12_a_resumed_run_knows_whose_log_its_positions_count() {
    let folder = tempfile::tempdir().unwrap();
    let (world, log) = world();
    log.create_topic(&topic(T), 1);
    process().block_on(world.archive(&topic(T)));
    Produced::default().produce(&log, &topic(T), 0, 50);
    let options = options(OutputTarget::Count, &folder.path().join("positions.json"));
    assert_eq!(run(&world, &options, None).unwrap().unwrap().events, 50);
    // created anew before the first commit, and longer than the old one was
    log.recreate_topic(&topic(T));
    Produced::default().produce(&log, &topic(T), 0, 80);
    for archived in [false, true] {
        if archived {
            process().block_on(world.commit_all(&topic(T), 1000));
        }
        let error = run(&world, &options, None).unwrap().unwrap_err();
        let line = everlog_replayer::one_line(&error);
        assert!(line.contains("replay from the beginning"), "{line}");
    }
}
