//! A world to archive in: brokers and catalog in memory, time that passes when nobody works, and ways to look at what
//! was archived.

#![allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "every test binary uses its own part; the clock of the tests is tokio's"
)]

pub mod broker;
pub mod counted;
pub mod lens;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use everlog_archiver::{
    Archiver, ArchiverError, Components, RunSummary, Settings, StatusHandle, TopicPattern,
};
use everlog_common::clock::SeededIds;
use everlog_common::record::RunningHash;
use everlog_common::{
    Clock, EventColumns, Generation, Ledger, Millis, Offset, Partition, TopicName, TopicPartition,
};
use everlog_kafka::memory::{MemoryLog, MemoryRecord};
use everlog_kafka::{Isolation, Log, Membership, ReaderEvent, ReaderOptions, StartAt};
use everlog_table::archive::{Archive, ArchiveDeps};
use everlog_table::catalog::memory::MemoryCatalog;
use everlog_table::catalog::{
    Catalog, CatalogError, CommitReply, CreateReply, LoadedTable, NewTable,
};
use everlog_table::scan;
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};
use everlog_table::storage::Storage;
use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention};
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use object_store::ObjectStore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::lens::Lens;
use self::store::Store;

/// 14 November 2023, behind any machine's clock.
const BEGIN: i64 = 1_700_000_000_000;

/// Tokio's time, which a test may pause: then it jumps to the next timer whenever nobody has work.
#[derive(Debug)]
pub struct TestClock {
    start: tokio::time::Instant,
}

impl TestClock {
    pub fn new() -> Self {
        Self {
            start: tokio::time::Instant::now(),
        }
    }
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

/// One partition's rows: offset and value.
pub type Rows = Vec<(i64, Vec<u8>)>;

/// A catalog that a test can take away.
#[derive(Debug)]
pub struct Gate {
    inner: Arc<MemoryCatalog>,
    pub is_closed: std::sync::atomic::AtomicBool,
    clock: Arc<dyn Clock>,
    /// How far the catalog's time is behind this machine's; none: it does not tell.
    behind: std::sync::Mutex<Option<Duration>>,
    /// Tables whose commits are refused.
    without_commits: std::sync::Mutex<BTreeSet<String>>,
}

impl Gate {
    fn check(&self) -> Result<(), CatalogError> {
        if self.is_closed.load(std::sync::atomic::Ordering::SeqCst) {
            Err(CatalogError::Unavailable {
                what: "anything".to_owned(),
                source: "the gate is closed".into(),
            })
        } else {
            Ok(())
        }
    }

    pub fn close(&self) {
        self.is_closed
            .store(true, std::sync::atomic::Ordering::SeqCst);
    }

    pub fn open(&self) {
        self.is_closed
            .store(false, std::sync::atomic::Ordering::SeqCst);
    }

    /// The catalog's time is so far behind this machine's.
    pub fn set_behind(&self, behind: Duration) {
        *self.behind.lock().unwrap() = Some(behind);
    }

    /// Commits of these tables are refused from now on, and of no others.
    pub fn refuse_commits(&self, tables: &[&str]) {
        *self.without_commits.lock().unwrap() = tables.iter().map(|t| (*t).to_owned()).collect();
    }
}

fn away(what: &str) -> CatalogError {
    CatalogError::Unavailable {
        what: what.to_owned(),
        source: "it is away".into(),
    }
}

#[async_trait]
impl Catalog for Gate {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.check()?;
        self.inner.ensure_namespace(namespace).await
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        self.check()?;
        self.inner.list_tables(namespace).await
    }

    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        self.check()?;
        self.inner.load(table).await
    }

    async fn create(&self, table: NewTable) -> Result<CreateReply, CatalogError> {
        self.check()?;
        self.inner.create(table).await
    }

    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
        idempotency_key: uuid::Uuid,
    ) -> CommitReply {
        if let Err(error) = self.check() {
            return CommitReply::Refused(error);
        }
        let table = base.ident.name();
        if self.without_commits.lock().unwrap().contains(table) {
            return CommitReply::Refused(away("commit"));
        }
        self.inner
            .commit(base, requirements, updates, idempotency_key)
            .await
    }

    fn storage_for(&self, table: &LoadedTable) -> Result<Storage, CatalogError> {
        self.inner.storage_for(table)
    }

    fn server_time(&self) -> Option<Millis> {
        let behind = *self.behind.lock().unwrap();
        let ms = i64::try_from(behind?.as_millis()).unwrap();
        Some(Millis(self.clock.now().0 - ms))
    }
}

pub struct World {
    pub clock: Arc<dyn Clock>,
    pub log: MemoryLog,
    /// The archivers' way to it; the test itself goes straight.
    pub lens: Arc<Lens>,
    pub catalog: Arc<MemoryCatalog>,
    pub store: Arc<Store>,
    /// The archivers' way to it; the test itself goes straight.
    pub gate: Arc<Gate>,
    seeds: std::sync::atomic::AtomicU64,
}

/// An archiver at work.
pub struct Running {
    task: JoinSet<Result<RunSummary, ArchiverError>>,
    pub stop: CancellationToken,
    pub status: StatusHandle,
}

impl Running {
    /// Ends it in an orderly way.
    pub async fn end(mut self) -> Result<RunSummary, ArchiverError> {
        self.stop.cancel();
        self.task.join_next().await.unwrap().unwrap()
    }

    /// Waits until it ends by itself.
    pub async fn ended(mut self) -> Result<RunSummary, ArchiverError> {
        self.task.join_next().await.unwrap().unwrap()
    }

    /// `kill -9`.
    pub async fn crash(mut self) {
        self.task.shutdown().await;
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        match self.task.try_join_next() {
            None => false,
            Some(ended) => panic!("it ended: {ended:?}"),
        }
    }
}

impl World {
    pub fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TestClock::new());
        let store = store::store();
        let catalog = MemoryCatalog::new(
            Arc::clone(&store) as Arc<dyn ObjectStore>,
            "memory:///lake",
            Arc::clone(&clock),
            Arc::new(SeededIds::new(42)),
        );
        let catalog = Arc::new(catalog);
        let log = MemoryLog::new(Arc::clone(&clock));
        Self {
            lens: Arc::new(Lens::new(log.clone())),
            log,
            store,
            gate: Arc::new(Gate {
                inner: Arc::clone(&catalog),
                is_closed: std::sync::atomic::AtomicBool::new(false),
                clock: Arc::clone(&clock),
                behind: std::sync::Mutex::default(),
                without_commits: std::sync::Mutex::default(),
            }),
            clock,
            catalog,
            seeds: std::sync::atomic::AtomicU64::new(1),
        }
    }

    /// Every process draws its own identifiers.
    fn ids(&self) -> Arc<SeededIds> {
        let seed = self.seeds.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Arc::new(SeededIds::new(seed.wrapping_mul(0x1234_5678_9abc_def1)))
    }

    pub fn settings(&self, topics: &[&str]) -> Settings {
        let patterns = topics
            .iter()
            .map(|t| TopicPattern::parse(t).unwrap())
            .collect();
        Settings {
            commit_interval: Duration::from_secs(1),
            discovery_interval: Duration::from_secs(1),
            ..Settings::new("lake", patterns)
        }
    }

    pub fn components(&self) -> Components {
        Components {
            log: Arc::clone(&self.lens) as Arc<dyn Log>,
            catalog: Arc::clone(&self.gate) as Arc<dyn Catalog>,
            clock: Arc::clone(&self.clock),
            ids: self.ids(),
        }
    }

    pub fn start(&self, settings: Settings) -> Running {
        let archiver = Archiver::new(settings, self.components());
        let status = archiver.status();
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(archiver.run(stop.clone()));
        Running { task, stop, status }
    }

    /// Archives everything that is there, and ends.
    pub async fn catch_up(&self, topics: &[&str]) -> Result<RunSummary, ArchiverError> {
        let settings = Settings {
            until_caught_up: true,
            ..self.settings(topics)
        };
        tokio::time::timeout(Duration::from_secs(600), self.start(settings).ended())
            .await
            .expect("ten minutes are enough to catch up")
    }

    pub fn produce(&self, tp: &TopicPartition, values: std::ops::Range<usize>) {
        for i in values {
            let record = MemoryRecord::value(format!("{tp}:{i}")).key(format!("k{}", i % 7));
            self.log.append(tp, record);
        }
    }

    /// Waits until `check` holds.
    pub async fn wait_for(&self, what: &str, mut check: impl AsyncFnMut() -> bool) {
        let due = self.clock.elapsed() + Duration::from_secs(400);
        let mut wait = Duration::from_millis(20);
        while self.clock.elapsed() < due {
            if check().await {
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(500));
        }
        panic!("{what}: not in 400 s");
    }

    /// Waits until the ledger of a partition has reached `next`.
    pub async fn wait_for_ledger(&self, tp: &TopicPartition, next: i64) {
        let what = format!("{tp} to be archived up to {next}");
        self.wait_for(&what, async || {
            self.ledger(&tp.topic)
                .await
                .newest()
                .and_then(|(_, era)| era.partitions.get(&tp.partition))
                .is_some_and(|e| e.next >= o(next))
        })
        .await;
    }

    fn deps(&self) -> ArchiveDeps {
        ArchiveDeps {
            catalog: Arc::clone(&self.catalog) as Arc<dyn Catalog>,
            clock: Arc::clone(&self.clock),
            ids: self.ids(),
        }
    }

    pub async fn archive(&self, topic: &TopicName) -> Option<Archive> {
        Archive::open(self.deps(), "lake", topic).await.unwrap()
    }

    pub async fn ledger(&self, topic: &TopicName) -> Ledger {
        match self.archive(topic).await {
            None => Ledger::default(),
            Some(archive) => archive.state().await.unwrap().ledger,
        }
    }

    async fn table(&self, name: &str) -> LoadedTable {
        let ident = TableIdent::from_strs(["lake", name]).unwrap();
        self.catalog.load(&ident).await.unwrap().unwrap()
    }

    /// The table's oldest snapshot.
    pub async fn first_snapshot(&self, name: &str) -> i64 {
        let table = self.table(name).await;
        let oldest = table
            .metadata
            .snapshots()
            .min_by_key(|s| s.sequence_number());
        oldest.unwrap().snapshot_id()
    }

    /// Sets main to a snapshot, as another engine would.
    pub async fn roll_back(&self, name: &str, snapshot_id: i64) {
        let table = self.table(name).await;
        let update = TableUpdate::SetSnapshotRef {
            ref_name: MAIN_BRANCH.to_owned(),
            reference: SnapshotReference::new(
                snapshot_id,
                SnapshotRetention::branch(None, None, None),
            ),
        };
        let reply = self
            .catalog
            .commit(&table, Vec::new(), vec![update], uuid::Uuid::from_u128(7))
            .await;
        assert!(matches!(reply, CommitReply::Committed(_)), "{reply:?}");
    }

    /// Every row of the table's files, by generation and partition, in file order.
    pub async fn archived(&self, name: &TopicName) -> BTreeMap<(Generation, Partition), Rows> {
        let archive = self.archive(name).await.expect("the table is there");
        archived_rows(&archive, name).await
    }

    /// The log's end, as a count.
    pub async fn log_end(&self, tp: &TopicPartition) -> usize {
        let bounds = self
            .log
            .bounds(std::slice::from_ref(tp), Isolation::ReadCommitted)
            .await
            .unwrap();
        usize::try_from(bounds[tp].end.get()).unwrap()
    }

    /// What a consumer sees of a partition now, from the log's start to its end.
    pub async fn visible(&self, tp: &TopicPartition) -> Vec<EventColumns> {
        visible_in(&self.log, tp).await
    }

    pub async fn visible_rows(&self, tp: &TopicPartition) -> Rows {
        self.visible(tp).await.iter().flat_map(rows_of).collect()
    }

    /// The archive equals the log: every visible row once, in order, nothing else; ledger, hash and row counts agree.
    pub async fn assert_equals_log(&self, name: &str, partitions: i32) {
        let name = topic(name);
        let mut archived = self.archived(&name).await;
        let ledger = self.ledger(&name).await;
        let generation = ledger.newest().map(|(g, _)| g).unwrap_or_default();
        for n in 0..partitions {
            let tp = TopicPartition::new(name.clone(), p(n));
            let visible = self.visible(&tp).await;
            let expected: Rows = visible.iter().flat_map(rows_of).collect();
            let mut found = archived.remove(&(generation, p(n))).unwrap_or_default();
            found.sort();
            assert_same(&tp, &found, &expected);
            let entry = ledger.entry(generation, p(n));
            assert_eq!(entry.map_or(0, |e| e.rows), expected.len() as u64, "{tp}");
            let mut hash = RunningHash::from(0);
            for columns in &visible {
                hash.update(columns);
            }
            assert_eq!(entry.map_or(0, |e| e.hash), hash.value(), "hash of {tp}");
        }
        assert!(archived.is_empty(), "rows of nobody: {:?}", archived.keys());
    }
}

/// Compares without printing everything.
pub fn assert_same(tp: &TopicPartition, found: &Rows, expected: &Rows) {
    if found == expected {
        return;
    }
    let first = found
        .iter()
        .zip(expected)
        .position(|(a, b)| a != b)
        .unwrap_or(found.len().min(expected.len()));
    panic!(
        "{tp}: {} rows archived, {} expected; the first difference at row {first}: {:?} instead of {:?}",
        found.len(),
        expected.len(),
        found
            .get(first)
            .map(|r| (r.0, String::from_utf8_lossy(&r.1).into_owned())),
        expected
            .get(first)
            .map(|r| (r.0, String::from_utf8_lossy(&r.1).into_owned())),
    );
}

pub fn rows_of(columns: &EventColumns) -> Rows {
    (0..columns.len())
        .map(|i| {
            let row = columns.row(i);
            (row.offset.get(), row.value.unwrap_or_default().to_vec())
        })
        .collect()
}

pub async fn archived_rows(
    archive: &Archive,
    name: &TopicName,
) -> BTreeMap<(Generation, Partition), Rows> {
    let mut rows: BTreeMap<(Generation, Partition), Rows> = BTreeMap::new();
    if archive.state().await.unwrap().snapshot_id.is_none() {
        return rows;
    }
    let pin = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Off)
        .await
        .unwrap();
    for file in pin.files().await.unwrap() {
        let footer = scan::read_footer(pin.storage(), &file).await.unwrap();
        for group in 0..footer.row_groups.len() {
            let runs = scan::read_row_group(pin.storage(), &file, &footer, group, name)
                .await
                .unwrap();
            for run in runs {
                rows.entry((run.generation, run.partition))
                    .or_default()
                    .extend(rows_of(&run.columns));
            }
        }
    }
    rows
}

/// Reads a partition by the log's own reader, from its start to its end.
pub async fn visible_in(log: &dyn Log, tp: &TopicPartition) -> Vec<EventColumns> {
    let bounds = log
        .bounds(std::slice::from_ref(tp), Isolation::ReadCommitted)
        .await
        .unwrap();
    let Some(bounds) = bounds.get(tp).copied() else {
        return Vec::new();
    };
    if bounds.log_start == bounds.end {
        return Vec::new();
    }
    let mut reader = log
        .open(ReaderOptions {
            membership: Membership::Alone,
            isolation: Isolation::ReadCommitted,
            memory_bytes: 64 << 20,
            linger: Duration::from_millis(10),
        })
        .await
        .unwrap();
    let start = StartAt {
        offset: bounds.log_start,
        leader_epoch: None,
    };
    reader.assign(&[(tp.clone(), start)]).await.unwrap();
    let mut parts = Vec::new();
    let mut at = bounds.log_start;
    while at < bounds.end {
        for event in reader.poll(Duration::from_millis(100)).await.unwrap() {
            match event {
                ReaderEvent::Fetched(fetched) => {
                    at = fetched.range.end();
                    parts.push(fetched.columns);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    reader.close().await.unwrap();
    parts
}
