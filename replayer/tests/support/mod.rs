//! A world to replay in: a cluster and a catalog in memory, an archiver of few lines whose progress the test decides, and
//! a checker that compares what was emitted with what the log once held.

#![allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "every test binary uses its own part; the clock of the tests is tokio's"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::clock::SeededIds;
use everlog_common::record::RunningHash;
use everlog_common::{
    Advance, Clock, EventBatch, EventColumns, GapReason, Generation, Identity, Ledger, LogBounds,
    Millis, Offset, OffsetRange, Partition, Positions, Segment, TopicName, TopicPartition,
};
use everlog_kafka::memory::{MemoryLog, MemoryRecord};
use everlog_kafka::{
    Isolation, Log, LogError, LogReader, Membership, OffsetAtTime, ReaderEvent, ReaderOptions,
    StartAt, TopicConfig, TopicInfo,
};
use everlog_replayer::{Components, EventStream, From, ReplayError, ReplayRequest, Until};
use everlog_table::archive::{AppendRequest, Archive, ArchiveDeps, CommitOutcome};
use everlog_table::catalog::Catalog;
use everlog_table::catalog::memory::MemoryCatalog;
use everlog_table::files::PartitionRows;
use everlog_table::schema::TableSettings;
use everlog_table::writer::{FILE_BYTES_TARGET, SpareThreads, WriteRequest, write_files};
use object_store::memory::InMemory;

/// 14 November 2023, behind any machine's clock.
const BEGIN: i64 = 1_700_000_000_000;

/// The topic of most tests.
pub const T: &str = "t";
pub const NAMESPACE: &str = "lake";
pub const WAREHOUSE: &str = "memory:///lake";

/// Tokio's time, which a test may pause: then it jumps to the next timer whenever nobody has work.
#[derive(Debug)]
pub struct TestClock {
    start: tokio::time::Instant,
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> Millis {
        Millis(BEGIN).plus(self.start.elapsed())
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

pub fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

pub fn p(n: i32) -> Partition {
    Partition::new(n).unwrap()
}

pub fn o(n: i64) -> Offset {
    Offset::new(n).unwrap()
}

pub fn tp(name: &str, n: i32) -> TopicPartition {
    TopicPartition::new(topic(name), p(n))
}

pub fn request() -> ReplayRequest {
    ReplayRequest::new(topic(T))
}

pub fn until(until: Until) -> ReplayRequest {
    ReplayRequest { until, ..request() }
}

pub fn from(from: From) -> ReplayRequest {
    ReplayRequest { from, ..request() }
}

/// A topic of which one part is archived and the rest is live.
pub async fn half_archived(partitions: usize, rows: usize) -> (World, MemoryLog, Produced) {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), partitions);
    let mut produced = Produced::default();
    for n in 0..partitions {
        produced.produce(&log, &topic(T), i32::try_from(n).unwrap(), rows);
    }
    world.commit_all(&topic(T), 37).await;
    for n in 0..partitions {
        produced.produce(&log, &topic(T), i32::try_from(n).unwrap(), rows);
    }
    (world, log, produced)
}

/// Reads until `count` events came.
pub async fn read_some(stream: &mut EventStream, replayed: &mut Replayed, count: usize) {
    while replayed.count() < count {
        let next = tokio::time::timeout(Duration::from_secs(300), stream.next()).await;
        match next.expect("events come").unwrap() {
            Some(batch) => replayed.take(&batch),
            None => return,
        }
    }
}

/// Reads to the error that must come; what came before it is in `replayed`.
pub async fn read_to_error(stream: &mut EventStream, replayed: &mut Replayed) -> ReplayError {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(300), stream.next()).await;
        match next.expect("an end comes") {
            Ok(Some(batch)) => replayed.take(&batch),
            Ok(None) => panic!("it ended without an error"),
            Err(error) => return error,
        }
    }
}

/// (generation, partition) → offset and value, in order of emission.
pub type Emitted = BTreeMap<(u32, i32), Vec<(i64, String)>>;

/// What other engines do to a table.
pub mod engine;

#[derive(Debug)]
pub struct World {
    pub clock: Arc<dyn Clock>,
    pub log: Arc<dyn Log>,
    pub catalog: Arc<dyn Catalog>,
    /// What was asked of [`World::hesitant`]'s readers besides events.
    pub asked: Asked,
    seeds: AtomicU64,
}

/// Calls of readers, each with its partitions.
pub type Asked = Arc<Mutex<Vec<(&'static str, Vec<i32>)>>>;

impl World {
    /// Everything in memory.
    pub fn in_memory() -> (Self, MemoryLog, Arc<MemoryCatalog>) {
        let clock: Arc<dyn Clock> = Arc::new(TestClock {
            start: tokio::time::Instant::now(),
        });
        let ids = Arc::new(SeededIds::new(42));
        let store = Arc::new(InMemory::new());
        let catalog = Arc::new(MemoryCatalog::new(
            store,
            WAREHOUSE,
            Arc::clone(&clock),
            ids,
        ));
        let log = MemoryLog::new(Arc::clone(&clock));
        let world = Self::new(
            clock,
            Arc::new(log.clone()),
            Arc::clone(&catalog) as Arc<dyn Catalog>,
        );
        (world, log, catalog)
    }

    pub fn new(clock: Arc<dyn Clock>, log: Arc<dyn Log>, catalog: Arc<dyn Catalog>) -> Self {
        Self {
            clock,
            log,
            catalog,
            asked: Asked::default(),
            seeds: AtomicU64::new(1),
        }
    }

    /// Every process draws its own identifiers.
    pub fn ids(&self) -> Arc<SeededIds> {
        let seed = self.seeds.fetch_add(1, Ordering::SeqCst);
        Arc::new(SeededIds::new(seed.wrapping_mul(0x1234_5678_9abc_def1)))
    }

    fn deps(&self) -> ArchiveDeps {
        ArchiveDeps {
            catalog: Arc::clone(&self.catalog),
            clock: Arc::clone(&self.clock),
            ids: self.ids(),
        }
    }

    /// The same world behind a network that makes every answer wait a moment, before and after it is given.
    pub fn hesitant(&self) -> Components {
        Components {
            log: Some(Arc::new(HesitantLog(
                Arc::clone(&self.log),
                Arc::clone(&self.asked),
            ))),
            ..self.components()
        }
    }

    pub fn components(&self) -> Components {
        Components {
            log: Some(Arc::clone(&self.log)),
            catalog: Arc::clone(&self.catalog),
            clock: Arc::clone(&self.clock),
            ids: self.ids(),
            namespace: NAMESPACE.to_owned(),
        }
    }

    pub async fn archive(&self, name: &TopicName) -> Archive {
        let settings = TableSettings::default();
        Archive::open_or_create(self.deps(), NAMESPACE, name, &settings)
            .await
            .unwrap()
    }

    pub async fn ledger(&self, name: &TopicName) -> Ledger {
        self.archive(name).await.state().await.unwrap().ledger
    }

    async fn identity(&self, name: &TopicName) -> (Identity, Vec<Partition>) {
        let described = self.log.describe(std::slice::from_ref(name)).await.unwrap();
        let info = described[name].as_ref().unwrap().clone();
        let identity = Identity {
            cluster_id: self.log.cluster_id().await.unwrap(),
            topic_id: info.topic_id,
        };
        (identity, info.partitions)
    }

    /// One commit of the archiver: at most `offsets` of every partition, gaps recorded, an old generation closed.
    pub async fn commit(&self, name: &TopicName, offsets: i64) {
        let archive = self.archive(name).await;
        let state = archive.state().await.unwrap();
        let (identity, partitions) = self.identity(name).await;
        let generation = state.ledger.generation_for(&identity);
        let mut advances = Vec::new();
        let mut rows = Vec::new();
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
        for partition in partitions {
            let source = TopicPartition::new(name.clone(), partition);
            let all = [source.clone()];
            let bounds = self
                .log
                .bounds(&all, Isolation::ReadCommitted)
                .await
                .unwrap()[&source];
            let base = state.ledger.entry(generation, partition).copied();
            let first = base.map_or(bounds.log_start, |b| b.next);
            let mut segments = Vec::new();
            if first < bounds.log_start {
                segments.push(Segment::Gap {
                    start: first,
                    end: Some(bounds.log_start),
                    reason: GapReason::Retention,
                    at: self.clock.now(),
                });
            }
            let from = first.max(bounds.log_start);
            let until = o((from.get() + offsets).min(bounds.end.get()));
            let (mut hash, mut epoch) = (
                RunningHash::from(base.map_or(0, |b| b.hash)),
                base.and_then(|b| b.leader_epoch),
            );
            if let Ok(range) = OffsetRange::new(from, until) {
                let batches = self.read(&source, range).await;
                let count: usize = batches.iter().map(EventColumns::len).sum();
                for columns in &batches {
                    hash.update(columns);
                    epoch = columns.row(columns.len() - 1).leader_epoch.or(epoch);
                }
                segments.push(Segment::Data {
                    range,
                    rows: count as u64,
                });
                rows.push(PartitionRows {
                    generation,
                    partition,
                    range,
                    batches,
                });
            }
            if !segments.is_empty() {
                advances.push(Advance {
                    generation,
                    identity: identity.clone(),
                    partition,
                    base,
                    segments,
                    leader_epoch: epoch,
                    hash: hash.value(),
                });
            }
        }
        if advances.is_empty() {
            return;
        }
        let archived_at = self.clock.now();
        let request = WriteRequest {
            table: &state.table,
            storage: archive.storage().await.unwrap(),
            topic: name.clone(),
            archived_at,
            rows,
            file_bytes_target: FILE_BYTES_TARGET,
            spare: SpareThreads::none(),
        };
        let files = write_files(request, self.ids().as_ref()).await.unwrap();
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

    /// Commits until everything is archived.
    pub async fn commit_all(&self, name: &TopicName, offsets: i64) {
        loop {
            let before = self.ledger(name).await;
            self.commit(name, offsets).await;
            if self.ledger(name).await == before {
                return;
            }
        }
    }

    /// What a consumer reads of a range.
    pub async fn read(&self, source: &TopicPartition, range: OffsetRange) -> Vec<EventColumns> {
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
        let mut batches = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            for event in reader.poll(Duration::from_secs(1)).await.unwrap() {
                match event {
                    ReaderEvent::Fetched(fetched) => {
                        at = fetched.range.end();
                        let columns = fetched.columns.slice_offsets(range.start(), range.end());
                        if !columns.is_empty() {
                            batches.push(columns);
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        reader.close().await.unwrap();
        batches
    }

    pub async fn open(&self, request: ReplayRequest) -> Result<EventStream, ReplayError> {
        EventStream::open(request, self.components()).await
    }

    /// A whole replay.
    pub async fn replay(&self, request: ReplayRequest) -> Result<Replayed, ReplayError> {
        let mut stream = self.open(request).await?;
        let mut replayed = Replayed::default();
        while let Some(batch) = stream.next().await? {
            replayed.take(&batch);
        }
        replayed.positions = stream.positions().clone();
        replayed.gaps = stream
            .gaps_passed()
            .iter()
            .map(ToString::to_string)
            .collect();
        stream.close().await;
        Ok(replayed)
    }
}

/// What a replay gave.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Replayed {
    pub rows: Emitted,
    /// In order of emission: partition, offset, timestamp.
    pub sequence: Vec<(i32, i64, i64)>,
    pub archived: usize,
    pub live: usize,
    pub positions: Positions,
    pub gaps: Vec<String>,
    at: BTreeMap<i32, (Generation, Offset)>,
}

impl Replayed {
    /// Checks what every batch promises, and keeps its rows.
    pub fn take(&mut self, batch: &EventBatch) {
        let partition = batch.partition.get();
        if let Some((generation, offset)) = self.at.get(&partition) {
            let position = (batch.generation, batch.range.start());
            assert!(
                position >= (*generation, *offset),
                "{position:?} after {generation}:{offset}"
            );
        }
        self.at
            .insert(partition, (batch.generation, batch.range.end()));
        let rows = self
            .rows
            .entry((batch.generation.0, partition))
            .or_default();
        for i in 0..batch.columns.len() {
            let row = batch.columns.row(i);
            assert!(batch.range.contains(row.offset));
            assert!(rows.last().is_none_or(|(last, _)| *last < row.offset.get()));
            let value = String::from_utf8_lossy(row.value.unwrap_or_default()).into_owned();
            rows.push((row.offset.get(), value));
            self.sequence
                .push((partition, row.offset.get(), row.timestamp_ms));
        }
        match batch.source {
            everlog_common::Source::Archive => self.archived += batch.columns.len(),
            everlog_common::Source::Live => self.live += batch.columns.len(),
        }
    }

    pub fn offsets(&self, generation: u32, partition: i32) -> Vec<i64> {
        let rows = self.rows.get(&(generation, partition));
        rows.into_iter().flatten().map(|(o, _)| *o).collect()
    }

    pub fn count(&self) -> usize {
        self.rows.values().map(Vec::len).sum()
    }
}

/// Appends records whose value names partition and offset, and remembers them.
#[derive(Debug, Default)]
pub struct Produced {
    pub rows: BTreeMap<i32, Vec<(i64, String)>>,
}

impl Produced {
    pub fn produce(&mut self, log: &MemoryLog, name: &TopicName, partition: i32, count: usize) {
        for _ in 0..count {
            self.at(log, name, partition, BEGIN);
        }
    }

    pub fn at(&mut self, log: &MemoryLog, name: &TopicName, partition: i32, ms: i64) -> i64 {
        let tp = TopicPartition::new(name.clone(), p(partition));
        let rows = self.rows.entry(partition).or_default();
        let value = format!("{partition}/{}", rows.len());
        let record = MemoryRecord::value(&value).at(ms, everlog_common::TimestampType::Create);
        let offset = log.append(&tp, record).get();
        rows.push((offset, value));
        offset
    }

    pub fn count(&self) -> usize {
        self.rows.values().map(Vec::len).sum()
    }

    /// All of it was emitted, as generation 0, once and in order.
    pub fn assert_emitted(&self, replayed: &Replayed) {
        for (partition, rows) in &self.rows {
            let found = replayed.rows.get(&(0, *partition));
            let found = found.map_or(&[][..], Vec::as_slice);
            assert!(
                found == rows,
                "partition {partition}: {} of {} rows, or others",
                found.len(),
                rows.len()
            );
        }
        assert_eq!(replayed.count(), self.count());
    }
}

/// A log whose requests and readers give way to other tasks at every step, so that whoever waits for them can be stopped there.
#[derive(Debug)]
struct HesitantLog(Arc<dyn Log>, Asked);

/// See [`HesitantLog`]. What was fetched is handed over without a step in between: that is what readers promise.
#[derive(Debug)]
struct HesitantReader(Box<dyn LogReader>, Asked);

impl HesitantReader {
    fn asked<'a>(
        &self,
        what: &'static str,
        partitions: impl IntoIterator<Item = &'a TopicPartition>,
    ) {
        let partitions = partitions.into_iter().map(|tp| tp.partition.get());
        let call = (what, partitions.collect());
        self.1.lock().unwrap().push(call);
    }
}

async fn hesitate() {
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
}

#[async_trait]
impl Log for HesitantLog {
    async fn cluster_id(&self) -> Result<Option<String>, LogError> {
        hesitate().await;
        self.0.cluster_id().await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        hesitate().await;
        self.0.topics().await
    }

    async fn describe(
        &self,
        topics: &[TopicName],
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, LogError>>, LogError> {
        hesitate().await;
        let answer = self.0.describe(topics).await;
        hesitate().await;
        answer
    }

    async fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        hesitate().await;
        let answer = self.0.bounds(partitions, isolation).await;
        hesitate().await;
        answer
    }

    async fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        at: Millis,
    ) -> Result<BTreeMap<TopicPartition, OffsetAtTime>, LogError> {
        self.0.offsets_at(partitions, at).await
    }

    async fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
        hesitate().await;
        self.0.epoch_ends(partitions).await
    }

    async fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError> {
        self.0.topic_config(topic).await
    }

    async fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError> {
        hesitate().await;
        let reader = self.0.open(options).await?;
        hesitate().await;
        Ok(Box::new(HesitantReader(reader, Arc::clone(&self.1))))
    }
}

#[async_trait]
impl LogReader for HesitantReader {
    async fn poll(&mut self, wait: Duration) -> Result<Vec<ReaderEvent>, LogError> {
        hesitate().await;
        self.0.poll(wait).await
    }

    async fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), LogError> {
        self.asked("assign", partitions.iter().map(|(tp, _)| tp));
        hesitate().await;
        self.0.assign(partitions).await?;
        hesitate().await;
        Ok(())
    }

    async fn subscribe(&mut self, topics: &[TopicName]) -> Result<(), LogError> {
        self.0.subscribe(topics).await
    }

    async fn unassign(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.asked("unassign", partitions);
        hesitate().await;
        self.0.unassign(partitions).await
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.asked("pause", partitions);
        hesitate().await;
        self.0.pause(partitions).await
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.asked("resume", partitions);
        hesitate().await;
        self.0.resume(partitions).await
    }

    async fn mirror(&mut self, positions: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        self.0.mirror(positions).await
    }

    fn held_bytes(&self) -> usize {
        self.0.held_bytes()
    }

    async fn close(self: Box<Self>) -> Result<(), LogError> {
        hesitate().await;
        self.0.close().await
    }
}
