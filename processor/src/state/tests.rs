//! Whole jobs over real files and stores, killed wherever something can be left half done.

use std::collections::BTreeMap;
use std::ops::Range as Offsets;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use async_trait::async_trait;
use bytes::Bytes;
use everlog_common::{Generation, Offset, Partition, Position, Positions};
use everlog_engine::KEY_BYTES_MAX;
use everlog_table::storage::Storage;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use uuid::Uuid;

use super::epoch::{Writer, decode, decode_header, encode};
use super::*;
use crate::sink::file::FileSink;
use crate::sink::{Channel, Marker, Sink, SinkError};

/// Where a process may be killed: after so many steps nothing that it asks for is done any more. A step is a request to the
/// store or a commit of an output.
#[derive(Debug, Default)]
struct Life {
    left: AtomicU64,
    dead: AtomicBool,
    steps: AtomicU64,
    /// Whether the last step is done and only its reply is lost.
    reply_lost: AtomicBool,
    /// So many creations are told that another one of the name is under way, which comes to nothing.
    conflicts: AtomicU64,
}

impl Life {
    fn long() -> Arc<Self> {
        Self::of(u64::MAX, false)
    }

    fn of(steps: u64, reply_lost: bool) -> Arc<Self> {
        Arc::new(Self {
            left: steps.into(),
            reply_lost: reply_lost.into(),
            ..Self::default()
        })
    }

    /// Whether the step is done, and whether its caller hears of it.
    fn step(&self) -> (bool, bool) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        if self.dead.load(Ordering::Relaxed) {
            return (false, false);
        }
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            self.dead.store(true, Ordering::Relaxed);
            return (self.reply_lost.load(Ordering::Relaxed), false);
        }
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        (true, true)
    }
}

/// A store as one process sees it.
#[derive(Debug)]
struct Mortal {
    store: Arc<InMemory>,
    life: Arc<Life>,
    /// Creations whose reply is lost, so that the client asks again and is told that the object exists.
    repeat_creations: bool,
}

impl std::fmt::Display for Mortal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mortal")
    }
}

fn killed() -> object_store::Error {
    object_store::Error::Generic {
        store: "test",
        source: "killed".into(),
    }
}

macro_rules! step {
    ($self:ident, $work:expr) => {{
        match $self.life.step() {
            (false, _) => Err(killed()),
            (true, true) => $work,
            (true, false) => {
                let _ = $work;
                Err(killed())
            }
        }
    }};
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(
        &self,
        key: &Key,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let creates = opts.mode == PutMode::Create;
        let less = |left: u64| left.checked_sub(1);
        let conflicts = &self.life.conflicts;
        if creates
            && conflicts
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .is_ok()
        {
            return Err(object_store::Error::AlreadyExists {
                path: key.to_string(),
                source: "409 Conflict".into(),
            });
        }
        let done = step!(
            self,
            self.store
                .put_opts(key, payload.clone(), opts.clone())
                .await
        )?;
        if creates && self.repeat_creations {
            return self.store.put_opts(key, payload, opts).await;
        }
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        step!(self, self.store.put_multipart_opts(key, opts).await)
    }

    async fn get_opts(&self, key: &Key, opts: GetOptions) -> object_store::Result<GetResult> {
        step!(self, self.store.get_opts(key, opts).await)
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        match self.life.step() {
            (true, _) => self.store.delete_stream(keys),
            (false, _) => Box::pin(futures::stream::once(async { Err(killed()) })),
        }
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.life.step() {
            (true, _) => self.store.list(prefix),
            (false, _) => Box::pin(futures::stream::once(async { Err(killed()) })),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        step!(self, self.store.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Key, to: &Key, opts: CopyOptions) -> object_store::Result<()> {
        step!(self, self.store.copy_opts(from, to, opts).await)
    }
}

/// A sink as one process sees it.
struct MortalSink {
    sink: FileSink,
    life: Arc<Life>,
}

#[async_trait]
impl Sink for MortalSink {
    fn channel(&self) -> Channel {
        self.sink.channel()
    }

    fn target(&self) -> String {
        self.sink.target()
    }

    async fn committed(&mut self) -> Result<Option<Marker>, SinkError> {
        step!(self, self.sink.committed().await.map_err(|_| killed()))
            .map_err(|_| SinkError::Stopped)
    }

    async fn commit(&mut self, epoch: &Epoch) -> Result<(), SinkError> {
        let mut refused = None;
        let done = step!(self, {
            let done = self.sink.commit(epoch).await;
            done.map_err(|e| {
                refused = Some(e);
                killed()
            })
        });
        done.map_err(|_| refused.unwrap_or(SinkError::Stopped))
    }
}

/// What outlives processes.
struct World {
    store: Arc<InMemory>,
    folder: tempfile::TempDir,
    runs: AtomicU64,
}

const EVENTS: i64 = 600;

fn identity() -> Identity {
    Identity {
        job: JobId::new("counts", "v1").unwrap(),
        fingerprint: 42,
        engine: "engine 1".into(),
    }
}

struct Process {
    recovered: Recovered,
    at: i64,
    /// As in the state.
    expected: BTreeMap<Vec<u8>, i64>,
}

impl World {
    fn new() -> Self {
        Self {
            store: Arc::default(),
            folder: tempfile::tempdir().unwrap(),
            runs: AtomicU64::new(1),
        }
    }

    fn output(&self, channel: Channel) -> PathBuf {
        self.folder.path().join(format!("{channel}.jsonl"))
    }

    fn outputs(&self) -> Vec<String> {
        let read = |c| std::fs::read_to_string(self.output(c)).unwrap_or_default();
        Channel::ALL.into_iter().map(read).collect()
    }

    fn local(&self, machine: u64) -> PathBuf {
        self.folder.path().join(format!("machine-{machine}"))
    }

    fn opening(&self, life: &Arc<Life>, machine: u64) -> Opening {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let store = Mortal {
            store: Arc::clone(&self.store),
            life: Arc::clone(life),
            repeat_creations: run.is_multiple_of(3),
        };
        Opening {
            storage: Storage::from_store(Arc::new(store)),
            location: "s3://bucket/jobs".into(),
            identity: identity(),
            writer: Uuid::from_u128(u128::from(run)),
            local: self.local(machine),
            local_memory: 8 << 20,
            patience: Duration::from_secs(20),
            base: BasePolicy { epochs_min: 4 },
        }
    }

    async fn sinks(&self, life: &Arc<Life>) -> Result<Vec<Box<dyn Sink>>, SinkError> {
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        for channel in Channel::ALL {
            let patience = Duration::from_secs(20);
            let sink =
                FileSink::open(self.output(channel), identity().job, channel, patience).await?;
            sinks.push(Box::new(MortalSink {
                sink,
                life: Arc::clone(life),
            }));
        }
        Ok(sinks)
    }

    async fn start(&self, life: &Arc<Life>, machine: u64) -> Result<Process, CheckpointError> {
        let taken = take_over(self.opening(life, machine)).await?;
        let sinks = self.sinks(life).await?;
        let recovered = taken.recover(sinks).await?;
        let at = match &recovered.progress {
            None => 0,
            Some(progress) => std::str::from_utf8(progress).unwrap().parse().unwrap(),
        };
        let expected = state_at(at);
        let process = Process {
            recovered,
            at,
            expected,
        };
        process.check();
        Ok(process)
    }

    /// A process from its start to the end of the log, or to its death.
    async fn run(
        &self,
        life: &Arc<Life>,
        machine: u64,
        sizes: &[i64],
    ) -> Result<(), CheckpointError> {
        let mut process = self.start(life, machine).await?;
        let mut sizes = sizes.iter().cycle();
        while process.at < EVENTS {
            let size = *sizes.next().unwrap();
            process.epoch(size).await?;
        }
        process.check();
        process.recovered.checkpoints.close().await
    }
}

fn key_of(event: i64) -> Vec<u8> {
    format!("key {}", event * 7919 % 53).into_bytes()
}

fn state_at(at: i64) -> BTreeMap<Vec<u8>, i64> {
    let mut all = BTreeMap::new();
    for event in 0..at {
        change(&mut all, event);
    }
    all
}

/// The computation: counts per key, and every 17th event removes its key.
fn change(all: &mut BTreeMap<Vec<u8>, i64>, event: i64) -> i64 {
    let key = key_of(event);
    if event % 17 == 0 {
        return all.remove(&key).unwrap_or(0);
    }
    let count = all.entry(key).or_insert(0);
    *count += 1;
    *count
}

fn batch(numbers: Vec<i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from(numbers));
    RecordBatch::try_from_iter([("n", column)]).unwrap()
}

fn at_offset(at: i64) -> Positions {
    let position = Position {
        generation: Generation(0),
        offset: Offset::new(at).unwrap(),
    };
    [(Partition::new(0).unwrap(), position)].into()
}

impl Process {
    fn process(&mut self, events: Offsets<i64>) -> (Vec<i64>, Vec<i64>, Vec<i64>) {
        let state = &mut self.recovered.state;
        let (mut rows, mut late, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        for event in events {
            let key = key_of(event);
            let count = change(&mut self.expected, event);
            let stored = state.get(Space::Windows, &key).unwrap();
            let stored = stored.map_or(0, |v| i64::from_be_bytes(v.try_into().unwrap()));
            if event % 17 == 0 {
                assert_eq!(stored, count);
                state.delete(Space::Windows, key).unwrap();
            } else {
                assert_eq!(stored + 1, count, "event {event}");
                state
                    .put(Space::Windows, key, count.to_be_bytes().to_vec())
                    .unwrap();
            }
            if event % 3 == 0 {
                rows.push(event * 1_000 + count);
            }
            if event % 11 == 0 {
                late.push(event);
            }
            if event % 97 == 0 {
                dead.push(event);
            }
        }
        (rows, late, dead)
    }

    async fn epoch(&mut self, size: i64) -> Result<(), CheckpointError> {
        let to = (self.at + size).min(EVENTS);
        let (rows, late, dead) = self.process(self.at..to);
        self.at = to;
        let epoch = self.recovered.state.seal(Sealing {
            progress: to.to_string().into_bytes(),
            positions: at_offset(to),
            rows: batch(rows),
            late: batch(late),
            dead: batch(dead),
        });
        self.recovered.checkpoints.commit(&epoch).await?;
        self.recovered.state.settle(epoch.number);
        Ok(())
    }

    /// The state is exactly that of the events before.
    fn check(&self) {
        let state = &self.recovered.state;
        assert_eq!(self.recovered.state.unsettled(), 0);
        let all = state
            .range(Space::Windows, &[0], &[255], usize::MAX)
            .unwrap();
        let all: BTreeMap<_, _> = all
            .into_iter()
            .map(|(k, v)| (k, i64::from_be_bytes(v.try_into().unwrap())))
            .collect();
        assert_eq!(all, self.expected, "the state after {} events", self.at);
    }
}

/// What an uninterrupted run leaves.
async fn uninterrupted() -> Vec<String> {
    let world = World::new();
    world.run(&Life::long(), 0, &[37, 11, 90]).await.unwrap();
    world.outputs()
}

#[tokio::test]
async fn killed_before_or_after_every_single_step_the_outputs_are_the_same() {
    let expected = uninterrupted().await;
    assert_eq!(expected[0].lines().count(), 200);
    let world = World::new();
    let life = Life::long();
    world.run(&life, 0, &[130]).await.unwrap();
    assert_eq!(world.outputs(), expected, "whatever the size of epochs");
    let steps = life.steps.load(Ordering::Relaxed);
    assert!(steps > 40, "{steps}");
    for step in 0..steps {
        let world = World::new();
        // The next process of the same machine, or of another.
        let life = Life::of(step, step % 2 == 0);
        if world.run(&life, 0, &[130]).await.is_ok() {
            continue;
        }
        world.run(&Life::long(), step % 3, &[77]).await.unwrap();
        assert_eq!(world.outputs(), expected, "killed at step {step}");
    }
}

#[test]
fn killed_anywhere_any_number_of_times_on_any_machine_the_outputs_are_the_same() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let expected = runtime.block_on(uninterrupted());
    let life = (
        0u64..120,
        any::<bool>(),
        0u64..3,
        any::<bool>(),
        prop::collection::vec(1i64..60, 1..4),
    );
    let mut runner = TestRunner::new(Config::with_cases(12));
    runner
        .run(&prop::collection::vec(life, 1..7), |lives| {
            runtime.block_on(async {
                let world = World::new();
                for (steps, reply_lost, machine, lose_local, sizes) in lives {
                    let life = Life::of(steps, reply_lost);
                    let _ = world.run(&life, machine, &sizes).await;
                    if lose_local {
                        let _ = std::fs::remove_dir_all(world.local(machine));
                    }
                }
                world.run(&Life::long(), 0, &[50]).await.unwrap();
                assert_eq!(world.outputs(), expected);
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn the_later_process_fences_the_former() {
    let world = World::new();
    let life = Life::long();
    let mut former = world.start(&life, 0).await.unwrap();
    former.epoch(100).await.unwrap();
    let later = take_over(world.opening(&life, 1)).await.unwrap();
    let error = former
        .recovered
        .checkpoints
        .check_owner()
        .await
        .unwrap_err();
    assert!(error.is_fenced() && error.exit_status() == 5, "{error}");
    let error = former.epoch(100).await.unwrap_err();
    assert!(error.is_fenced(), "{error}");
    assert_eq!(
        error.to_string(),
        "job counts version v1: another process took it over at epoch 3; this one ends, nothing is lost or doubled; let one process at a time run a version of a job"
    );
    drop(former);
    let sinks = world.sinks(&life).await.unwrap();
    let recovered = later.recover(sinks).await.unwrap();
    assert_eq!(recovered.progress.as_deref(), Some(&b"100"[..]));
    assert_eq!(recovered.positions, at_offset(100));
    drop(recovered);
    world.run(&life, 2, &[100]).await.unwrap();
    assert_eq!(world.outputs(), uninterrupted().await);
}

#[tokio::test]
async fn a_process_that_slept_while_its_numbers_were_removed_is_fenced_all_the_same() {
    let world = World::new();
    let life = Life::long();
    let mut sleeper = world.start(&life, 0).await.unwrap();
    sleeper.epoch(10).await.unwrap();
    let log = world.opening(&life, 0);
    let (rows, late, dead) = sleeper.process(10..20);
    let asleep = sleeper.recovered.state.seal(Sealing {
        progress: b"20".to_vec(),
        positions: at_offset(20),
        rows: batch(rows),
        late: batch(late),
        dead: batch(dead),
    });
    let mut sleeping = sleeper.recovered.checkpoints;
    let taken = take_over(world.opening(&life, 1)).await.unwrap();
    // The outputs are let go, as by a process that lost its machine.
    sleeping.let_outputs_go();
    let sinks = world.sinks(&life).await.unwrap();
    let recovered = taken.recover(sinks).await.unwrap();
    let at = 10;
    let mut other = Process {
        recovered,
        at,
        expected: state_at(at),
    };
    for _ in 0..40 {
        other.epoch(10).await.unwrap();
    }
    let listing = |store: Arc<InMemory>| async move {
        use futures::TryStreamExt as _;
        let all: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
        all.iter()
            .map(|o| o.location.to_string())
            .collect::<Vec<_>>()
    };
    other.recovered.checkpoints.close().await.unwrap();
    let before = listing(Arc::clone(&world.store)).await;
    let epochs = before
        .iter()
        .filter(|n| n.strip_suffix(".epoch").is_some())
        .count();
    assert!(epochs <= 33, "bounded: {before:?}");
    let first = format!("{:020}.epoch", asleep.number);
    assert!(
        !before.iter().any(|n| n.ends_with(&first)),
        "its number is free again: {before:?}"
    );
    // also while it has nothing to write, and before it would take an output back
    let error = sleeping.check_owner().await.unwrap_err();
    assert!(error.is_fenced(), "{error}");
    let error = sleeping.commit(&asleep).await.unwrap_err();
    assert!(error.is_fenced(), "{error}");
    assert_eq!(
        listing(Arc::clone(&world.store)).await,
        before,
        "it left nothing behind"
    );
    drop(log);
    world.run(&life, 2, &[100]).await.unwrap();
    assert_eq!(world.outputs(), uninterrupted().await);
}

/// Everything in the store.
async fn objects(store: &Arc<InMemory>) -> BTreeMap<Key, Bytes> {
    use futures::TryStreamExt as _;
    use object_store::ObjectStoreExt as _;
    let listed: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    let mut all = BTreeMap::new();
    for object in listed {
        let read = store.get(&object.location).await.unwrap();
        all.insert(object.location, read.bytes().await.unwrap());
    }
    all
}

/// A process of a version that was dropped may finish a base image after that. Whoever begins a version of that name anew
/// must neither take it for its own, nor remove epochs because of it.
#[tokio::test]
async fn an_image_of_a_job_that_was_dropped_does_no_harm() {
    use object_store::ObjectStoreExt as _;
    let expected = uninterrupted().await;
    for size in [40, 10] {
        let world = World::new();
        world.run(&Life::long(), 0, &[10]).await.unwrap();
        let left: Vec<_> = objects(&world.store)
            .await
            .into_iter()
            .filter(|(key, _)| key.as_ref().contains("/bases/"))
            .collect();
        assert!(left.iter().any(|(key, _)| key.as_ref().ends_with(".base")));
        let storage = world.opening(&Life::long(), 0).storage;
        EpochLog::remove_all(&storage, "s3://bucket/jobs", &identity().job)
            .await
            .unwrap();
        assert!(objects(&world.store).await.is_empty());
        for (key, bytes) in left {
            world.store.put(&key, bytes.into()).await.unwrap();
        }
        for channel in Channel::ALL {
            let path = world.output(channel);
            std::fs::remove_file(path.with_extension("jsonl.everlog")).unwrap();
            std::fs::remove_file(path).unwrap();
        }
        world.run(&Life::long(), 1, &[size]).await.unwrap();
        // all of the state is there for a machine that has none of it
        let process = world.start(&Life::long(), 2).await.unwrap();
        assert_eq!(process.at, EVENTS);
        assert_eq!(world.outputs(), expected, "epochs of {size}");
    }
}

/// S3 refuses one of two creations of a name that are under way at once; the other may be one's own, or fail.
#[tokio::test]
async fn a_creation_that_was_in_the_way_of_another_is_no_fence() {
    let world = World::new();
    let life = Life::long();
    let mut process = world.start(&life, 0).await.unwrap();
    life.conflicts.store(2, Ordering::Relaxed);
    process.epoch(10).await.unwrap();
    assert_eq!(life.conflicts.load(Ordering::Relaxed), 0);
    drop(process);
    world.run(&life, 1, &[100]).await.unwrap();
    assert_eq!(world.outputs(), uninterrupted().await);
}

/// Until the last file of a job is gone, the newest epoch is there: else a process that still runs could go on.
#[tokio::test]
async fn the_newest_epoch_is_removed_last() {
    let world = World::new();
    let life = Life::long();
    let mut process = world.start(&life, 0).await.unwrap();
    for _ in 0..3 {
        process.epoch(10).await.unwrap();
    }
    drop(process);
    let newest = format!("{:020}.epoch", 4);
    let mut kills = 0;
    for steps in 0..20 {
        let storage = world.opening(&Life::of(steps, false), 0).storage;
        let removed = EpochLog::remove_all(&storage, "s3://bucket/jobs", &identity().job).await;
        let left = objects(&world.store).await;
        if removed.is_ok() {
            assert!(left.is_empty(), "{left:?}");
            assert!(kills > 0);
            return;
        }
        kills += 1;
        let there = left.keys().any(|key| key.as_ref().ends_with(&newest));
        assert!(there || left.is_empty(), "after {steps} steps: {left:?}");
    }
    panic!("never removed");
}

#[tokio::test]
async fn state_that_is_not_of_this_job_query_or_engine_is_refused_and_stays_as_it_is() {
    let world = World::new();
    let life = Life::long();
    world.run(&life, 0, &[200]).await.unwrap();
    let ask = |change: fn(&mut Identity)| {
        let mut opening = world.opening(&life, 0);
        change(&mut opening.identity);
        take_over(opening)
    };
    let error = ask(|i| i.fingerprint = 43).await.unwrap_err();
    assert!(
        error.to_string().contains("made by another query"),
        "{error}"
    );
    assert_eq!(error.exit_status(), 2);
    let error = ask(|i| i.engine = "engine 2".into()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("made by engine 1, this is engine 2"),
        "{error}"
    );
    // Another version is another state.
    let other = ask(|i| i.job.version = "v2".into()).await.unwrap();
    assert_eq!(other.epoch(), 1);
    // A copied folder is found out.
    let from = Key::from("bucket/jobs/counts/v1/epochs/00000000000000000004.epoch");
    let to = Key::from("bucket/jobs/counts/v3/epochs/00000000000000000001.epoch");
    let _ = world
        .store
        .copy_opts(&from, &to, CopyOptions::default())
        .await;
    let error = ask(|i| i.job.version = "v3".into()).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::OtherJob { .. } | StoreError::Corrupt { .. }
        ),
        "{error}"
    );
    world.run(&life, 0, &[200]).await.unwrap();
}

#[tokio::test]
async fn outputs_and_state_that_do_not_belong_together_are_refused() {
    let life = Life::long();
    let world = World::new();
    world.run(&life, 0, &[30]).await.unwrap();
    // The output is gone, its marker too: the rows cannot be made again from what is kept.
    for name in ["rows.jsonl", "rows.jsonl.everlog"] {
        std::fs::remove_file(world.folder.path().join(name)).unwrap();
    }
    let error = world.run(&life, 0, &[30]).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the output for rows holds 0 rows"),
        "{error}"
    );
    assert_eq!(error.exit_status(), 4);

    // The state is gone, the outputs are there.
    let world = World::new();
    world.run(&life, 0, &[30]).await.unwrap();
    let world = World {
        store: Arc::default(),
        ..world
    };
    let error = world.run(&life, 5, &[30]).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the state was removed or is another one"),
        "{error}"
    );
}

#[tokio::test]
async fn a_damaged_epoch_is_found() {
    let world = World::new();
    let life = Life::long();
    world.run(&life, 0, &[300]).await.unwrap();
    let key = Key::from("bucket/jobs/counts/v1/epochs/00000000000000000002.epoch");
    let mut bytes = world
        .store
        .get_opts(&key, GetOptions::default())
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec();
    let middle = bytes.len() - 40;
    bytes[middle] ^= 1;
    world
        .store
        .put_opts(&key, bytes.into(), PutOptions::default())
        .await
        .unwrap();
    std::fs::remove_dir_all(world.local(0)).unwrap();
    let error = world.run(&life, 0, &[300]).await.unwrap_err();
    assert!(
        error.to_string().contains("its checksum is wrong"),
        "{error}"
    );
    assert_eq!(error.exit_status(), 4);
}

fn one_epoch() -> Epoch {
    let mut changes = Changes::default();
    changes.set(Space::Windows, b"a".to_vec(), Some(vec![1, 2, 3]));
    changes.set(Space::Windows, b"a".to_vec(), Some(vec![4; 100]));
    changes.set(Space::Timers, b"b".to_vec(), None);
    for n in 0..20_000u32 {
        changes.set(Space::Dedup, n.to_be_bytes().to_vec(), Some(Vec::new()));
    }
    Epoch {
        number: 7,
        job: identity().job,
        fingerprint: u64::MAX,
        engine: "engine 1".into(),
        changes: Arc::new(changes),
        progress: b"{\"x\":1}".to_vec(),
        positions: at_offset(17),
        rows_before: 3,
        late_before: 0,
        dead_before: u64::MAX / 2,
        rows: batch(vec![1, 2, 3]),
        late: no_rows(),
        dead: batch(vec![9]),
    }
}

#[test]
fn an_epoch_comes_back_as_it_was_and_any_damage_is_found() {
    let epoch = one_epoch();
    let writer = Writer {
        chain: Uuid::from_u128(1),
        writer: Uuid::from_u128(2),
        parent: Uuid::from_u128(3),
        takes_over: false,
    };
    let file = encode(&epoch, writer).unwrap();
    assert!(file.len() < 100_000, "compressed: {}", file.len());
    let (header, back) = decode(&file).unwrap();
    assert_eq!(
        (header.epoch, header.chain, header.after),
        (7, writer.chain, epoch.after())
    );
    assert_eq!(back.changes, epoch.changes);
    assert_eq!(
        (&back.progress, &back.positions),
        (&epoch.progress, &epoch.positions)
    );
    assert_eq!((&back.rows, &back.dead), (&epoch.rows, &epoch.dead));
    assert_eq!(decode_header(&file).unwrap().0, header);
    for at in (0..file.len())
        .step_by(7)
        .chain(0..200)
        .chain(file.len() - 200..file.len())
    {
        let mut damaged = file.clone();
        damaged[at] ^= 0x20;
        assert!(decode(&damaged).is_err(), "byte {at}");
        assert!(decode(&file[..at]).is_err(), "cut at {at}");
    }
    everlog_hostile::feed("epoch file", &[&file], |bytes| {
        let _ = decode(bytes);
        let _ = decode_header(bytes);
    });
}

const WRITER: Writer = Writer {
    chain: Uuid::from_u128(1),
    writer: Uuid::from_u128(2),
    parent: Uuid::from_u128(3),
    takes_over: false,
};

/// The file as the form before had it: without the checksum of the progress.
fn of_form_1(file: &[u8]) -> Vec<u8> {
    let length = u32::from_le_bytes(file[8..12].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&file[12..12 + length]).unwrap();
    header["format"] = 1.into();
    let checksum = header.as_object_mut().unwrap().remove("progress_checksum");
    assert!(checksum.is_some());
    let header = serde_json::to_vec(&header).unwrap();
    let mut old = file[..8].to_vec();
    old.extend_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
    old.extend_from_slice(&header);
    let sum = twox_hash::XxHash3_64::oneshot(&old);
    old.extend_from_slice(&sum.to_le_bytes());
    old.extend_from_slice(&file[12 + length + 8..file.len() - 8]);
    let sum = twox_hash::XxHash3_64::oneshot(&old);
    old.extend_from_slice(&sum.to_le_bytes());
    old
}

#[test]
fn a_file_of_the_form_before_is_read() {
    let epoch = one_epoch();
    let file = encode(&epoch, WRITER).unwrap();
    let old = of_form_1(&file);
    let (header, back) = decode(&old).unwrap();
    assert_eq!((header.epoch, &back.progress), (7, &epoch.progress));
    assert_eq!((&back.changes, &back.rows), (&epoch.changes, &epoch.rows));
}

/// However large an epoch is: of another version's only header and progress are read, once each.
#[tokio::test]
async fn the_progress_of_an_epoch_is_read_alone() {
    let store = Arc::new(InMemory::new());
    let storage = Storage::from_store(Arc::clone(&store) as Arc<dyn ObjectStore>);
    let (epoch, job) = (one_epoch(), identity().job);
    let uri = format!(
        "s3://bucket/jobs/{}/{}/epochs/{:020}.epoch",
        job.name, job.version, 7
    );
    let progress = async |file: &[u8], known| {
        let bytes = Bytes::copy_from_slice(file);
        storage.put(&uri, bytes).await.unwrap();
        EpochLog::newest_progress(&storage, "s3://bucket/jobs", &job, known).await
    };
    let file = encode(&epoch, WRITER).unwrap();
    let expected = |progress| {
        Some(NewestProgress {
            epoch: 7,
            writer: WRITER.writer,
            progress,
        })
    };
    let whole = expected(Some(epoch.progress.clone()));
    assert_eq!(progress(&file, None).await.unwrap(), whole);
    let other = Some((7, Uuid::from_u128(9)));
    assert_eq!(progress(&file, other).await.unwrap(), whole);
    let known = Some((7, WRITER.writer));
    assert_eq!(progress(&file, known).await.unwrap(), expected(None));
    assert_eq!(progress(&of_form_1(&file), None).await.unwrap(), whole);

    let extent = decode_header(&file).unwrap().1;
    let section = decode_header(&file)
        .unwrap()
        .0
        .progress_range(extent)
        .unwrap();
    // what is not read may be damaged
    let mut damaged = file.clone();
    for at in [extent, section.end as usize, file.len() - 1] {
        damaged[at] ^= 0x20;
    }
    assert!(decode(&damaged).is_err());
    assert_eq!(progress(&damaged, None).await.unwrap(), whole);
    // what is read may not
    for at in section {
        let mut damaged = file.clone();
        damaged[at as usize] ^= 0x20;
        let error = progress(&damaged, None).await.unwrap_err();
        assert!(
            error.to_string().contains("its progress is wrong"),
            "{error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// The state reads as a plain map does, whatever of it is in which layer.
    #[test]
    fn the_overlay_reads_as_one_map(
        steps in prop::collection::vec((0u8..10, 0u8..60, 0u8..60, 0usize..20), 1..400),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let local = Arc::new(Local::open(folder.path(), 1 << 20, Duration::ZERO).unwrap());
        let mut state = JobState::new(Arc::new(identity()), Arc::clone(&local), 0, Counts::default());
        let mut model = BTreeMap::new();
        let mut sealed = std::collections::VecDeque::new();
        for (what, a, b, limit) in steps {
            match what {
                0..=3 => {
                    state.put(Space::Timers, vec![a], vec![b]).unwrap();
                    model.insert(vec![a], vec![b]);
                }
                4 | 5 => {
                    state.delete(Space::Timers, vec![a]).unwrap();
                    model.remove(&vec![a]);
                }
                6 => sealed.push_back(state.seal(Sealing {
                    progress: Vec::new(),
                    positions: Positions::new(),
                    rows: no_rows(),
                    late: no_rows(),
                    dead: no_rows(),
                })),
                7 => if let Some(epoch) = sealed.pop_front() {
                    let at = local::At::new(Uuid::nil(), epoch.number, Uuid::nil());
                    local.apply(&epoch.changes, at).unwrap();
                    if b % 2 == 0 {
                        state.settle(epoch.number);
                    }
                },
                _ => {
                    let keys: Vec<Vec<u8>> = vec![vec![a], vec![b], vec![a]];
                    let expected: Vec<_> = keys.iter().map(|k| model.get(k).cloned()).collect();
                    prop_assert_eq!(state.get_many(Space::Timers, &keys).unwrap(), expected);
                    let expected: Vec<_> = model.iter()
                        .filter(|(k, _)| k[0] >= a && k[0] < b).take(limit)
                        .map(|(k, v)| (k.clone(), v.clone())).collect();
                    prop_assert_eq!(state.range(Space::Timers, &[a], &[b], limit).unwrap(), expected);
                }
            }
        }
        let all: Vec<_> = model.into_iter().collect();
        prop_assert_eq!(state.range(Space::Timers, &[], &[255], usize::MAX).unwrap(), all);
    }
}

#[test]
fn keys_that_the_store_cannot_hold_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let local = Arc::new(Local::open(folder.path(), 1 << 20, Duration::ZERO).unwrap());
    let mut state = JobState::new(Arc::new(identity()), local, 0, Counts::default());
    let error = state
        .put(Space::Windows, vec![0; KEY_BYTES_MAX + 1], Vec::new())
        .unwrap_err();
    assert!(error.to_string().contains("65536 bytes"), "{error}");
    assert!(state.put(Space::Windows, Vec::new(), Vec::new()).is_err());
    state
        .put(Space::Windows, vec![0; KEY_BYTES_MAX], Vec::new())
        .unwrap();
    assert_eq!(
        state
            .get(Space::Windows, &vec![0; KEY_BYTES_MAX + 1])
            .unwrap(),
        None
    );
}

/// The same in a folder of this machine.
#[tokio::test]
async fn on_local_disk_one_of_two_processes_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = folder.path().join("new").join("jobs");
    let opening = |n: u128| Opening {
        storage: Storage::from_properties(&BTreeMap::new()).unwrap(),
        location: format!("file://{}/", jobs.display()),
        identity: identity(),
        writer: Uuid::from_u128(n),
        local: jobs.join("counts/v1/local"),
        local_memory: 8 << 20,
        patience: Duration::from_secs(20),
        base: BasePolicy { epochs_min: 2 },
    };
    let mut at = 0;
    for n in 1..4 {
        let recovered = take_over(opening(n)).await.unwrap();
        let recovered = recovered.recover(Vec::new()).await.unwrap();
        let mut process = Process {
            recovered,
            at,
            expected: state_at(at),
        };
        process.check();
        for _ in 0..5 {
            process.epoch(20).await.unwrap();
        }
        at = process.at;
        if n == 3 {
            take_over(opening(9)).await.unwrap();
            let error = process.epoch(20).await.unwrap_err();
            assert!(error.is_fenced(), "{error}");
        } else {
            process.recovered.checkpoints.close().await.unwrap();
        }
    }
    let epochs = std::fs::read_dir(jobs.join("counts/v1/epochs")).unwrap();
    let names: Vec<_> = epochs
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.len() < 12, "{names:?}");
    assert!(
        names
            .iter()
            .all(|name| name.strip_suffix(".epoch").is_some()),
        "{names:?}"
    );
}

/// The same on a real object store, whose conditional put is the fence.
#[tokio::test]
async fn on_s3_one_of_two_processes_goes_on() {
    let s3 = everlog_services::S3::start();
    let storage = Storage::from_properties(&s3.properties().into_iter().collect()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let opening = |n: u128| Opening {
        storage: storage.clone(),
        location: "s3://warehouse/jobs".into(),
        identity: identity(),
        writer: Uuid::from_u128(n),
        local: folder.path().join(n.to_string()),
        local_memory: 8 << 20,
        patience: Duration::ZERO,
        base: BasePolicy { epochs_min: 2 },
    };
    let first = take_over(opening(1))
        .await
        .unwrap()
        .recover(Vec::new())
        .await
        .unwrap();
    let mut process = Process {
        recovered: first,
        at: 0,
        expected: BTreeMap::new(),
    };
    for _ in 0..6 {
        process.epoch(20).await.unwrap();
    }
    let second = take_over(opening(2)).await.unwrap();
    let error = process.epoch(20).await.unwrap_err();
    assert!(error.is_fenced(), "{error}");
    let second = second.recover(Vec::new()).await.unwrap();
    let process = Process {
        recovered: second,
        at: 120,
        expected: state_at(120),
    };
    process.check();
    // Of many at once one gets each number.
    let log = Arc::new(Mutex::new(Vec::new()));
    let all = (0..8u32).map(|n| {
        let (storage, log) = (storage.clone(), Arc::clone(&log));
        async move {
            let created = storage
                .create("s3://warehouse/jobs/race", Bytes::from(n.to_string()))
                .await
                .unwrap();
            if created {
                log.lock().unwrap_or_else(PoisonError::into_inner).push(n);
            }
        }
    });
    futures::future::join_all(all).await;
    assert_eq!(log.lock().unwrap_or_else(PoisonError::into_inner).len(), 1);
    let removed = EpochLog::remove_all(&storage, "s3://warehouse/jobs", &identity().job)
        .await
        .unwrap();
    assert!(removed >= 4, "{removed}");
}

#[test]
fn names_that_are_no_part_of_a_path_are_refused() {
    for (name, version) in [
        ("", "v1"),
        ("a/b", "v1"),
        ("..", "v1"),
        ("a", ".x"),
        ("a", "ü"),
    ] {
        let error = JobId::new(name, version).unwrap_err();
        assert!(error.contains("not 1 to 100 characters"), "{error}");
    }
    assert!(JobId::new("sessions-by.user_1", "v1.2").is_ok());
    let _ = Path::new("");
}
