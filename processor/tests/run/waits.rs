//! A store that does not answer, or answers late: a stop is obeyed all the same, and what is said last stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use everlog_processor::job::Job;
use everlog_processor::registry::{Live, Phase};
use everlog_processor::run::{Bound, Environment, Prepared, RunOptions, Summary, run};
use everlog_processor::state::JobId;
use everlog_table::storage::Storage;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

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
idle_timeout = "1s"

[query]
sql = "SELECT user, TUMBLE_START(ts, INTERVAL '10' SECOND) AS began, count(*) AS events FROM clicks GROUP BY user, TUMBLE(ts, INTERVAL '10' SECOND)"

[sink]
type = "jsonl"
path = "DIR/rows.jsonl"

[checkpoint]
interval = "100ms"
location = "s3://bucket/jobs"

[limits]
memory = "64MiB"
"#;

/// Passes on what it is asked for, but for what a test says.
#[derive(Debug, Default)]
struct Slow {
    store: InMemory,
    /// The registry of versions is not read: whoever asks waits for ever.
    is_silent: AtomicBool,
    asked: AtomicBool,
    /// Statuses of a job that runs are written late.
    is_late: AtomicBool,
}

impl std::fmt::Display for Slow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slow")
    }
}

#[async_trait]
impl ObjectStore for Slow {
    async fn put_opts(&self, key: &Key, load: PutPayload, how: PutOptions) -> Result<PutResult> {
        let is_status = key.as_ref().ends_with("status.json");
        if is_status && self.is_late.load(Ordering::Relaxed) {
            let bytes: Vec<u8> = load.iter().flat_map(|bytes| bytes.to_vec()).collect();
            if !String::from_utf8_lossy(&bytes).contains("ended") {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
        self.store.put_opts(key, load, how).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(key, how).await
    }

    async fn get_opts(&self, key: &Key, how: GetOptions) -> Result<GetResult> {
        self.store.get_opts(key, how).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        self.store.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let of_registry = prefix.is_some_and(|key| key.as_ref().contains(".registry"));
        if of_registry && self.is_silent.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
            return futures::stream::pending().boxed();
        }
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, how: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, how).await
    }
}

struct Running {
    options: RunOptions,
    storage: Storage,
    ended: tokio::task::JoinHandle<std::result::Result<Summary, everlog_processor::run::RunError>>,
}

/// A job with a partition that falls silent, on a store.
async fn start(desk: &Desk, world: &World, store: &Arc<Slow>) -> Running {
    for second in 0..25 {
        let at = BEGIN + second * 1_000;
        world.append(0, &format!(r#"{{"user":"a","at":{at}}}"#), at);
    }
    let storage = Storage::from_store(Arc::clone(store) as Arc<dyn ObjectStore>);
    let environment = Environment {
        storage: storage.clone(),
        ..desk.environment(world)
    };
    let job = Job::parse(desk.text(), "job.toml").unwrap();
    let prepared = Prepared::new(job, &environment).await.unwrap();
    let options = options(Bound::Never, false);
    let ended = tokio::spawn(run(prepared, environment, options.clone()));
    Running {
        options,
        storage,
        ended,
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let due = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(tokio::time::Instant::now() < due, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_obeyed_while_the_other_versions_cannot_be_read() {
    let (world, store, desk) = (World::new(2).await, Arc::<Slow>::default(), Desk::new(JOB));
    let running = start(&desk, &world, &store).await;
    let observer = Arc::clone(&running.options.observer);
    eventually("all is read", || observer.numbers().events == 25).await;
    store.is_silent.store(true, Ordering::Relaxed);
    eventually("the silent partition is to be passed", || {
        store.asked.load(Ordering::Relaxed)
    })
    .await;
    running.options.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(20), running.ended).await;
    let summary = ended.expect("it ends").unwrap().unwrap();
    assert_eq!(summary.events, 25);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_status_does_not_come_after_the_last_one() {
    let (world, store, desk) = (World::new(2).await, Arc::<Slow>::default(), Desk::new(JOB));
    let running = start(&desk, &world, &store).await;
    let observer = Arc::clone(&running.options.observer);
    eventually("all is read", || observer.numbers().events == 25).await;
    store.is_late.store(true, Ordering::Relaxed);
    // one is written every 100 ms
    tokio::time::sleep(Duration::from_millis(500)).await;
    running.options.stop.cancel();
    running.ended.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let id = JobId::new("counts", "v1").unwrap();
    let said = Live::read(&running.storage, "s3://bucket/jobs", &id).await;
    assert_eq!(said.unwrap().unwrap().phase, Phase::Ended);
}
