//! A topic, its archive, and jobs over both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::clock::{RandomIds, SystemClock};
use everlog_common::record::RunningHash;
use everlog_common::{
    Advance, Clock, EventColumns, GapReason, Identity, Ledger, Offset, OffsetRange, Partition,
    Segment, TimestampType, TopicName, TopicPartition,
};
use everlog_kafka::memory::{MemoryLog, MemoryRecord};
use everlog_kafka::{Isolation, Log, Membership, ReaderEvent, ReaderOptions, StartAt};
use everlog_processor::job::Job;
use everlog_processor::run::{
    Bound, Environment, Observer, Prepared, RunError, RunOptions, Summary, run,
};
use everlog_table::archive::{AppendRequest, Archive, ArchiveDeps, CommitOutcome};
use everlog_table::catalog::Catalog;
use everlog_table::catalog::memory::MemoryCatalog;
use everlog_table::files::PartitionRows;
use everlog_table::schema::TableSettings;
use everlog_table::storage::Storage;
use everlog_table::writer::{FILE_BYTES_TARGET, SpareThreads, WriteRequest, write_files};
use object_store::memory::InMemory;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub const NAMESPACE: &str = "lake";

pub fn partition(n: i32) -> Partition {
    Partition::new(n).unwrap()
}

fn offset(n: i64) -> Offset {
    Offset::new(n).unwrap()
}

/// A topic and its archive.
#[derive(Debug, Clone)]
pub struct World {
    pub log: MemoryLog,
    pub catalog: Arc<dyn Catalog>,
    pub clock: Arc<dyn Clock>,
    pub topic: TopicName,
}

impl World {
    /// A topic of so many partitions, with an archive that is empty.
    pub async fn new(partitions: usize) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let store = Arc::new(InMemory::new());
        let catalog = MemoryCatalog::new(
            store,
            "memory:///lake",
            Arc::clone(&clock),
            Arc::new(RandomIds),
        );
        let log = MemoryLog::new(Arc::clone(&clock));
        let topic = TopicName::new("clicks").unwrap();
        log.create_topic(&topic, partitions);
        let world = Self {
            log,
            catalog: Arc::new(catalog),
            clock,
            topic,
        };
        world.archive().await;
        world
    }

    /// One record: a value, at a Kafka timestamp.
    pub fn append(&self, to: i32, value: &str, ms: i64) -> i64 {
        let tp = TopicPartition::new(self.topic.clone(), partition(to));
        let record = MemoryRecord::value(value).at(ms, TimestampType::Create);
        self.log.append(&tp, record).get()
    }

    fn deps(&self) -> ArchiveDeps {
        ArchiveDeps {
            catalog: Arc::clone(&self.catalog),
            clock: Arc::clone(&self.clock),
            ids: Arc::new(RandomIds),
        }
    }

    async fn archive(&self) -> Archive {
        let settings = TableSettings::default();
        Archive::open_or_create(self.deps(), NAMESPACE, &self.topic, &settings)
            .await
            .unwrap()
    }

    pub async fn ledger(&self) -> Ledger {
        self.archive().await.state().await.unwrap().ledger
    }

    /// Archives what is there up to these offsets per partition, a commit per so many offsets of each.
    pub async fn archive_to(&self, ends: &BTreeMap<i32, i64>, step: i64) {
        loop {
            let before = self.ledger().await;
            self.commit(ends, step).await;
            if self.ledger().await == before {
                return;
            }
        }
    }

    /// Archives everything.
    pub async fn archive_all(&self, step: i64) {
        let ends = (0..64).map(|p| (p, i64::MAX)).collect();
        self.archive_to(&ends, step).await;
    }

    async fn commit(&self, ends: &BTreeMap<i32, i64>, step: i64) {
        let archive = self.archive().await;
        let state = archive.state().await.unwrap();
        let described = self
            .log
            .describe(std::slice::from_ref(&self.topic))
            .await
            .unwrap();
        let info = described[&self.topic].as_ref().unwrap().clone();
        let identity = Identity {
            cluster_id: self.log.cluster_id().await.unwrap(),
            topic_id: info.topic_id,
        };
        let generation = state.ledger.generation_for(&identity);
        let (mut advances, mut rows) = (Vec::new(), Vec::new());
        if let Some((old, era)) = state.ledger.newest().filter(|(g, _)| *g < generation) {
            for (partition, entry) in &era.partitions {
                let gap = Segment::Gap {
                    start: entry.next,
                    end: None,
                    reason: GapReason::Recreated,
                    at: self.clock.now(),
                };
                advances.push(Advance {
                    generation: old,
                    identity: era.identity.clone(),
                    partition: *partition,
                    base: Some(*entry),
                    segments: vec![gap],
                    leader_epoch: entry.leader_epoch,
                    hash: entry.hash,
                });
            }
        }
        for at in info.partitions {
            let source = TopicPartition::new(self.topic.clone(), at);
            let all = [source.clone()];
            let bounds = self.log.bounds(&all, Isolation::ReadCommitted).await;
            let bounds = bounds.unwrap()[&source];
            let base = state.ledger.entry(generation, at).copied();
            let from = base.map_or(bounds.log_start, |b| b.next);
            let end = ends.get(&at.get()).copied().unwrap_or(0);
            let until = from
                .get()
                .saturating_add(step)
                .min(end)
                .min(bounds.end.get());
            let Ok(range) = OffsetRange::new(from, offset(until.max(from.get()))) else {
                continue;
            };
            if range.is_empty() {
                continue;
            }
            let batches = self.read(&source, range).await;
            let mut hash = RunningHash::from(base.map_or(0, |b| b.hash));
            let mut epoch = base.and_then(|b| b.leader_epoch);
            for columns in &batches {
                hash.update(columns);
                epoch = columns.row(columns.len() - 1).leader_epoch.or(epoch);
            }
            advances.push(Advance {
                generation,
                identity: identity.clone(),
                partition: at,
                base,
                segments: vec![Segment::Data {
                    range,
                    rows: batches.iter().map(EventColumns::len).sum::<usize>() as u64,
                }],
                leader_epoch: epoch,
                hash: hash.value(),
            });
            rows.push(PartitionRows {
                generation,
                partition: at,
                range,
                batches,
            });
        }
        if advances.is_empty() {
            return;
        }
        let archived_at = self.clock.now();
        let request = WriteRequest {
            table: &state.table,
            storage: archive.storage().await.unwrap(),
            topic: self.topic.clone(),
            archived_at,
            rows,
            file_bytes_target: FILE_BYTES_TARGET,
            spare: SpareThreads::none(),
        };
        let files = write_files(request, &RandomIds).await.unwrap();
        let append = AppendRequest {
            advances,
            files,
            archived_at,
            reference_time: None,
        };
        match archive.append(append).await.unwrap() {
            CommitOutcome::Committed { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    async fn read(&self, source: &TopicPartition, range: OffsetRange) -> Vec<EventColumns> {
        let options = ReaderOptions {
            membership: Membership::Alone,
            isolation: Isolation::ReadCommitted,
            memory_bytes: 64 << 20,
            linger: Duration::from_millis(1),
        };
        let mut reader = self.log.open(options).await.unwrap();
        let start = StartAt {
            offset: range.start(),
            leader_epoch: None,
        };
        reader.assign(&[(source.clone(), start)]).await.unwrap();
        let (mut batches, mut at) = (Vec::new(), range.start());
        while at < range.end() {
            for event in reader.poll(Duration::from_secs(1)).await.unwrap() {
                let ReaderEvent::Fetched(fetched) = event else {
                    panic!("{event:?}");
                };
                at = fetched.range.end();
                let columns = fetched.columns.slice_offsets(range.start(), range.end());
                if !columns.is_empty() {
                    batches.push(columns);
                }
            }
        }
        reader.close().await.unwrap();
        batches
    }
}

/// A folder with a job: its file, state and outputs.
#[derive(Debug)]
pub struct Desk {
    pub folder: TempDir,
    text: String,
}

impl Desk {
    /// `DIR` in the text is the folder.
    pub fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = text.replace("DIR", &folder.path().display().to_string());
        Self { folder, text }
    }

    /// The job with other words in its file.
    pub fn with(&self, from: &str, to: &str) -> String {
        assert!(self.text.contains(from), "{from}");
        self.text.replace(from, to)
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of lines; none where there is no file.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn environment(&self, world: &World) -> Environment {
        environment(world, self.folder.path())
    }

    /// Runs the job to a bound.
    pub async fn run(&self, world: &World, until: Bound, drain: bool) -> Result<Summary, RunError> {
        self.run_text(&self.text, world, until, drain).await
    }

    /// The same with another text of the file.
    pub async fn run_text(
        &self,
        text: &str,
        world: &World,
        until: Bound,
        drain: bool,
    ) -> Result<Summary, RunError> {
        let environment = self.environment(world);
        let job = Job::parse(text, "job.toml").unwrap_or_else(|e| panic!("{e}"));
        let prepared = Prepared::new(job, &environment).await?;
        run(prepared, environment, options(until, drain)).await
    }
}

pub fn options(until: Bound, drain: bool) -> RunOptions {
    RunOptions {
        until,
        drain,
        observer: Arc::new(Observer::new("job", "v")),
        stop: CancellationToken::new(),
    }
}

pub fn environment(world: &World, folder: &Path) -> Environment {
    Environment {
        log: Some(Arc::new(world.log.clone())),
        catalog: Arc::clone(&world.catalog),
        clock: Arc::clone(&world.clock),
        ids: Arc::new(RandomIds),
        namespace: NAMESPACE.to_owned(),
        kafka: BTreeMap::new(),
        storage: Storage::from_properties(&BTreeMap::new()).unwrap(),
        scratch: folder.join("scratch"),
        variable: |_| None,
    }
}
