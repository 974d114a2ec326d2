//! The world: time, chance, what is recorded of it all, and the processes that live in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::clock::SeededIds;
use everlog_common::{Clock, Millis};
use everlog_kafka::memory::MemoryLog;
use everlog_table::catalog::LoadedTable;
use everlog_table::catalog::memory::MemoryCatalog;
use everlog_tests::checker::{Checker, Event, Outcome, SnapshotFacts};
use tokio::sync::Notify;
use twox_hash::XxHash3_64;

use crate::facts;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::store::Backing;

/// 14 November 2023, behind any machine's clock: the Iceberg library refuses metadata of the future.
const BEGIN: i64 = 1_700_000_000_000;

/// The namespace of all tables.
pub const NAMESPACE: &str = "lake";

/// Where the tables are.
pub const WAREHOUSE: &str = "sim://lake";

/// The consumer group, where there is one.
pub const GROUP: &str = "g";

/// Simulated time: it stands still while anybody works, and jumps to the next timer when nobody does.
#[derive(Debug)]
pub struct SimClock {
    start: tokio::time::Instant,
}

/// A process' own clock: it goes as fast as any, and may be wrong.
#[derive(Debug)]
pub struct ProcessClock {
    real: Arc<SimClock>,
    /// Milliseconds ahead of the real one.
    ahead: i64,
}

#[async_trait]
impl Clock for ProcessClock {
    fn now(&self) -> Millis {
        Millis(self.real.now().0 + self.ahead)
    }

    fn elapsed(&self) -> Duration {
        self.real.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        self.real.sleep(duration).await;
    }
}

#[async_trait]
impl Clock for SimClock {
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

struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
    checker: Checker,
}

/// Everything that happens goes through here: to the checker, and into the trace.
pub struct Recorder {
    clock: Arc<SimClock>,
    trace: Mutex<Trace>,
    /// What manifests say, by the name of the manifest list.
    pub(crate) snapshots: Mutex<BTreeMap<String, Arc<SnapshotFacts>>>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Trace> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line of the trace: what is in it must follow from the seed alone.
    pub fn note(&self, line: &str) {
        let at = self.clock.elapsed().as_micros();
        let mut trace = self.lock();
        let line = format!("{at:>12} {}", without_contents(line));
        let mut bytes = trace.hash.to_le_bytes().to_vec();
        bytes.extend_from_slice(line.as_bytes());
        trace.hash = XxHash3_64::oneshot(&bytes);
        if let Some(lines) = &mut trace.lines {
            lines.push(line);
        }
    }

    /// Something that the checker has to know.
    pub fn record(&self, event: Event) {
        self.note(&summary(&event));
        let before = self.lock().checker.violations().len();
        self.lock().checker.observe(event);
        let new: Vec<String> = self.lock().checker.violations()[before..]
            .iter()
            .map(ToString::to_string)
            .collect();
        for violation in new {
            self.note(&format!("VIOLATION {violation}"));
        }
    }

    /// Whether something is wrong already.
    pub fn is_broken(&self) -> bool {
        !self.lock().checker.violations().is_empty()
    }

    /// The checker's judgement, the trace's hash, and its lines where they were asked for.
    pub fn finish(&self) -> (Outcome, u64, Vec<String>) {
        let mut trace = self.lock();
        let checker = std::mem::take(&mut trace.checker);
        let lines = trace.lines.take().unwrap_or_default();
        (checker.finish(), trace.hash, lines)
    }
}

/// A line without what names of metadata files say of their bytes: JSON has no order, and Avro files end with random markers.
fn without_contents(line: &str) -> String {
    const AROUND: [char; 9] = ['"', '[', ']', '\'', ':', ',', ';', '(', ')'];
    let words = line.split(' ').map(|word| {
        let name = word.trim_matches(AROUND);
        if name.contains('/') {
            word.replace(name, &everlog_table::sealed::without_contents(name))
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// An event in a line. Bytes that are not the seed's alone (metadata as JSON has no order) are left out.
fn summary(event: &Event) -> String {
    match event {
        Event::Put {
            name, len, rows, ..
        } => match rows {
            Some(rows) => format!("put {name} {len} bytes {} rows", rows.len()),
            None => format!("put {name} {len} bytes"),
        },
        Event::Table(state) => {
            let ids: Vec<i64> = state.snapshots.iter().map(|s| s.id).collect();
            let head = state
                .head
                .and_then(|id| state.snapshots.iter().find(|s| s.id == id));
            let ledger = head
                .and_then(|s| s.ledger.as_ref())
                .map(everlog_common::Ledger::encode);
            format!(
                "table {} head {:?} of {ids:?} ledger {}",
                state.topic,
                state.head,
                ledger.unwrap_or_default()
            )
        }
        Event::Appended {
            log,
            offset,
            epoch,
            txn,
            canonical,
        } => format!(
            "append {:x}-{} {offset} epoch {epoch} txn {txn:?} {:016x}",
            log.0 & 0xffff,
            log.1,
            XxHash3_64::oneshot(canonical)
        ),
        Event::Emitted(e) => format!(
            "emit run {} {}:{} [{}, {}) {} rows{}",
            e.run,
            e.generation,
            e.partition,
            e.range.0,
            e.range.1,
            e.rows.len(),
            if e.is_live { " live" } else { "" }
        ),
        other => format!("{other:?}"),
    }
}

/// A table now and before, as the catalog's server has it.
#[derive(Debug)]
pub(crate) struct Versions {
    pub(crate) now: LoadedTable,
    pub(crate) before: Option<LoadedTable>,
    /// When that changed.
    pub(crate) at: Duration,
}

/// How long a catalog may answer with what was before: replicas and caches of one trail by seconds.
const STALE: Duration = Duration::from_secs(3);

impl Versions {
    /// The state before, while some part of a catalog may still have it.
    pub(crate) fn stale(&self, now: Duration) -> Option<&LoadedTable> {
        let is_recent = now.saturating_sub(self.at) < STALE;
        self.before.as_ref().filter(|_| is_recent)
    }
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// What it is like.
    pub plan: Plan,
    /// Chance.
    pub rng: Rng,
    /// Time.
    pub clock: Arc<SimClock>,
    /// The trace and the checker.
    pub recorder: Arc<Recorder>,
    /// The brokers.
    pub log: MemoryLog,
    /// The catalog's server.
    pub catalog: Arc<MemoryCatalog>,
    /// The object store's server.
    pub store: Arc<Backing>,
    /// Whether anything goes wrong at all.
    pub has_faults: AtomicBool,
    processes: AtomicU64,
    /// Requests on their way at the catalog's server: they outlive whoever sent them.
    pub(crate) server: Mutex<tokio::task::JoinSet<()>>,
    pub(crate) attempts: AtomicU64,
    /// Tables as they are, and as they were before their last change: the server need not parse what it wrote.
    pub(crate) tables: Mutex<BTreeMap<String, Versions>>,
}

impl World {
    /// An empty one.
    pub fn new(plan: Plan, with_lines: bool) -> Arc<Self> {
        let rng = Rng::new(plan.seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0xe7e1);
        let clock = Arc::new(SimClock {
            start: tokio::time::Instant::now(),
        });
        let recorder = Arc::new(Recorder {
            clock: Arc::clone(&clock),
            trace: Mutex::new(Trace {
                hash: plan.seed,
                lines: with_lines.then(Vec::new),
                checker: Checker::new(),
            }),
            snapshots: Mutex::default(),
        });
        let store = Arc::new(Backing::new(Arc::clone(&clock), Arc::clone(&recorder)));
        let catalog = MemoryCatalog::new(
            Arc::clone(&store) as Arc<dyn object_store::ObjectStore>,
            WAREHOUSE,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::new(SeededIds::new(plan.seed ^ 0xca7a)),
        );
        let log = MemoryLog::new(Arc::clone(&clock) as Arc<dyn Clock>);
        log.limit_batches(plan.batch_rows);
        Arc::new(Self {
            plan,
            rng,
            clock,
            recorder,
            log,
            catalog: Arc::new(catalog),
            store,
            has_faults: AtomicBool::new(true),
            processes: AtomicU64::new(1),
            server: Mutex::default(),
            attempts: AtomicU64::new(0),
            tables: Mutex::default(),
        })
    }

    /// The catalog swapped a table's metadata.
    pub(crate) fn swapped(&self, table: &LoadedTable) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let name = table.ident.name().to_owned();
        let before = tables.remove(&name).map(|versions| versions.now);
        let now = table.clone();
        let at = self.clock.elapsed();
        tables.insert(name, Versions { now, before, at });
        drop(tables);
        facts::record_table(self, &table.metadata, &table.metadata_location);
    }

    /// Whether something that happens so often happens now.
    pub fn strikes(&self, per_mille: u64, kind: &'static str) -> bool {
        let strikes =
            per_mille > 0 && self.has_faults.load(Ordering::SeqCst) && self.rng.chance(per_mille);
        if strikes {
            self.recorder.record(Event::Fault { kind });
        }
        strikes
    }

    /// A new process.
    pub fn process(self: &Arc<Self>, kind: &str) -> Arc<Process> {
        let number = self.processes.fetch_add(1, Ordering::SeqCst);
        let ahead = if self.strikes(self.plan.faults.skew, "wrong clock") {
            i64::try_from(self.rng.below(3_630_000)).unwrap_or(0) - 3_600_000
        } else {
            0
        };
        Arc::new(Process {
            name: format!("{kind}{number}"),
            number,
            world: Arc::clone(self),
            is_dead: AtomicBool::new(false),
            died: Notify::new(),
            clock: Arc::new(ProcessClock {
                real: Arc::clone(&self.clock),
                ahead,
            }),
            frozen_until: Mutex::new(Duration::ZERO),
        })
    }
}

/// One process: what all its requests have in common.
#[derive(Debug)]
pub struct Process {
    /// For the trace.
    pub name: String,
    number: u64,
    /// Where it lives.
    pub world: Arc<World>,
    is_dead: AtomicBool,
    died: Notify,
    /// What it takes for the time.
    pub clock: Arc<ProcessClock>,
    frozen_until: Mutex<Duration>,
}

impl Process {
    /// Identifiers that no other process draws.
    pub fn ids(&self) -> Arc<SeededIds> {
        let seed = self.world.plan.seed.wrapping_mul(0x1234_5678_9abc_def1);
        Arc::new(SeededIds::new(
            seed ^ self.number.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        ))
    }

    /// Ends it: none of its requests goes on from here.
    pub fn kill(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
        self.died.notify_one();
    }

    /// Whether it was ended.
    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }

    /// Waits until it dies.
    pub async fn died(&self) {
        self.died.notified().await;
    }

    /// Lets it go on, if it stood still.
    pub fn thaw(&self) {
        *self
            .frozen_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Duration::ZERO;
    }

    /// A request passes here, on its way out and on its way back. Time passes, and anything may happen to the process.
    pub async fn pass(&self, what: &str) {
        let world = &self.world;
        if world.strikes(world.plan.faults.crash, "crash") {
            world
                .recorder
                .note(&format!("{} dies at {what}", self.name));
            self.kill();
        }
        if world.strikes(world.plan.faults.freeze, "freeze") {
            let until = world.clock.elapsed() + world.rng.millis(1_000, 200_000);
            world
                .recorder
                .note(&format!("{} freezes at {what}", self.name));
            *self
                .frozen_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = until;
        }
        let takes = if world.strikes(world.plan.faults.slow, "slow") {
            world.rng.millis(500, 20_000)
        } else if world.rng.chance(300) {
            Duration::ZERO
        } else {
            Duration::from_micros(world.rng.between(50, 30_000))
        };
        if !takes.is_zero() {
            world.clock.sleep(takes).await;
        }
        loop {
            if self.is_dead() {
                std::future::pending::<()>().await;
            }
            let until = *self
                .frozen_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let left = until.saturating_sub(world.clock.elapsed());
            if left.is_zero() {
                return;
            }
            world.clock.sleep(left.min(Duration::from_secs(5))).await;
        }
    }
}
