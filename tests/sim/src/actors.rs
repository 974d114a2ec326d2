//! The processes under test: archivers, replays, maintenance.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use everlog_archiver::{
    Archiver, ArchiverError, Components, Maintenance, OnGap, RunSummary, Settings, StatusHandle,
    TopicPattern,
};
use everlog_common::{Clock, Partition, Positions, Source, TopicName};
use everlog_kafka::Log;
use everlog_replayer::handoff::Incarnation;
use everlog_replayer::{EventStream, Order, ReplayError, ReplayRequest, Until, one_line};
use everlog_table::archive::{Archive, ArchiveDeps};
use everlog_table::catalog::Catalog;
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings, Removal};
use everlog_table::schema::TableSettings;
use everlog_tests::checker::{Emission, Event};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::catalog::SimCatalog;
use crate::facts;
use crate::log::SimLog;
use crate::world::{GROUP, NAMESPACE, Process, World};

/// An archiver at work.
#[derive(Debug)]
pub struct RunningArchiver {
    /// Its process.
    pub process: Arc<Process>,
    task: JoinSet<Result<RunSummary, ArchiverError>>,
    stop: CancellationToken,
    /// What it says of itself.
    pub status: StatusHandle,
}

fn maintenance(world: &World) -> MaintenanceSettings {
    let kept = world.plan.snapshots_kept;
    MaintenanceSettings {
        expiry: ExpirySettings {
            age_max: Duration::from_secs(20),
            count_min: kept,
            count_max: kept + 4,
            ..ExpirySettings::default()
        },
        removal: Removal::Delete,
        ..MaintenanceSettings::default()
    }
}

fn settings(world: &World, topics: &[TopicName]) -> Settings {
    let plan = &world.plan;
    let patterns = topics.iter().cloned().map(TopicPattern::Name).collect();
    Settings {
        commit_interval: plan.commit_interval,
        discovery_interval: Duration::from_secs(2),
        idle_commit_interval: plan.idle_commit_interval,
        on_gap: if plan.records_gaps {
            OnGap::Record
        } else {
            OnGap::Stop
        },
        group: plan.is_group.then(|| GROUP.to_owned()),
        memory: plan.memory,
        maintenance: plan.maintains.then(|| Maintenance {
            interval: Duration::from_secs(30),
            settings: maintenance(world),
        }),
        table: TableSettings::default(),
        ..Settings::new(NAMESPACE, patterns)
    }
}

impl RunningArchiver {
    /// As the plan says.
    pub fn start(world: &Arc<World>, topics: &[TopicName]) -> Self {
        Self::with(world, settings(world, topics))
    }

    /// One that archives everything that there is, records what is missing, and ends.
    pub fn last(world: &Arc<World>, topics: &[TopicName]) -> Self {
        let settings = Settings {
            on_gap: OnGap::Record,
            group: None,
            until_caught_up: true,
            maintenance: None,
            ..settings(world, topics)
        };
        Self::with(world, settings)
    }

    fn with(world: &Arc<World>, settings: Settings) -> Self {
        let process = world.process("archiver");
        world.recorder.note(&format!("{} starts", process.name));
        let components = Components {
            log: Arc::new(SimLog::new(Arc::clone(&process))) as Arc<dyn Log>,
            catalog: Arc::new(SimCatalog::new(Arc::clone(&process))) as Arc<dyn Catalog>,
            clock: Arc::clone(&process.clock) as Arc<dyn Clock>,
            ids: process.ids(),
        };
        let archiver = Archiver::new(settings, components);
        let status = archiver.status();
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(archiver.run(stop.clone()));
        Self {
            process,
            task,
            stop,
            status,
        }
    }

    /// `kill -9`.
    pub async fn kill(mut self) {
        let name = &self.process.name;
        self.process
            .world
            .recorder
            .note(&format!("{name} is killed"));
        self.process.kill();
        self.task.shutdown().await;
    }

    /// Tells it to end, which takes it some time.
    pub fn stop(&self) {
        let name = &self.process.name;
        self.process
            .world
            .recorder
            .note(&format!("{name} is stopped"));
        self.stop.cancel();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<Result<RunSummary, ArchiverError>> {
        let ended = self.task.try_join_next()?;
        Some(self.judge(ended))
    }

    /// Waits until it ends, at most so long.
    pub async fn wait(&mut self, limit: Duration) -> Option<Result<RunSummary, ArchiverError>> {
        let ended = tokio::time::timeout(limit, self.task.join_next()).await;
        let ended = ended.ok().flatten()?;
        Some(self.judge(ended))
    }

    fn judge(
        &self,
        ended: Result<Result<RunSummary, ArchiverError>, tokio::task::JoinError>,
    ) -> Result<RunSummary, ArchiverError> {
        let recorder = &self.process.world.recorder;
        let ended = ended.unwrap_or_else(|e| Err(ArchiverError::Panicked(e.to_string())));
        recorder.note(&format!("{} ended: {ended:?}", self.process.name));
        let what = match &ended {
            Err(ArchiverError::Panicked(what)) => Some(what.clone()),
            Err(ArchiverError::Stopped(failures)) => failures
                .iter()
                // nobody changes a configuration here: one that cannot work is a plan that contradicts itself
                .find(|f| matches!(f.kind.as_str(), "corrupt" | "configuration" | "other"))
                .map(ToString::to_string),
            _ => None,
        };
        if let Some(what) = what {
            recorder.record(Event::Wrong {
                what: format!("{} ended: {what}", self.process.name),
            });
        }
        ended
    }
}

/// Where a replay is, as it would be saved.
#[derive(Debug, Clone, Default)]
struct Saved {
    positions: Positions,
    incarnation: Option<Incarnation>,
    snapshot: Option<i64>,
}

/// A replay at work.
#[derive(Debug)]
pub struct RunningReplay {
    /// Its process.
    pub process: Arc<Process>,
    run: u64,
    request: ReplayRequest,
    saved: Arc<Mutex<Saved>>,
    task: JoinSet<Result<(), ReplayError>>,
    /// Batches between two savings of the positions.
    every: u64,
}

impl RunningReplay {
    /// A replay of a topic from its beginning.
    pub fn open(world: &Arc<World>, run: u64, topic: TopicName) -> Self {
        let rng = &world.rng;
        let request = ReplayRequest {
            until: if rng.chance(500) {
                Until::Never
            } else {
                Until::Now
            },
            order: if rng.chance(250) {
                Order::Time
            } else {
                Order::Partition
            },
            memory_bytes: if rng.chance(300) { 1 << 20 } else { 64 << 20 },
            ..ReplayRequest::new(topic)
        };
        let every = rng.between(1, 6);
        Self::start(world, run, request, every)
    }

    /// A replay of everything that there is, of these partitions.
    pub fn full(
        world: &Arc<World>,
        run: u64,
        topic: TopicName,
        partitions: &BTreeSet<i32>,
    ) -> Self {
        let all = partitions.iter().filter_map(|p| Partition::new(*p).ok());
        let request = ReplayRequest {
            partitions: Some(all.collect()),
            ..ReplayRequest::new(topic)
        };
        Self::start(world, run, request, 1)
    }

    /// A replay of what is archived of these partitions: their log is not to be had any more.
    pub fn archived(
        world: &Arc<World>,
        run: u64,
        topic: TopicName,
        partitions: &BTreeSet<i32>,
    ) -> Self {
        let all = partitions.iter().filter_map(|p| Partition::new(*p).ok());
        let request = ReplayRequest {
            partitions: Some(all.collect()),
            until: Until::Snapshot,
            ..ReplayRequest::new(topic)
        };
        Self::start(world, run, request, 1)
    }

    fn start(world: &Arc<World>, run: u64, request: ReplayRequest, every: u64) -> Self {
        let topic = request.topic.as_str().to_owned();
        world.recorder.record(Event::Opened { run, topic });
        let mut replay = Self {
            process: world.process("replay"),
            run,
            request,
            saved: Arc::default(),
            task: JoinSet::new(),
            every,
        };
        replay.spawn();
        replay
    }

    fn spawn(&mut self) {
        let saved = self.lock().clone();
        let request = ReplayRequest {
            start: Some(saved.positions).filter(|p| !p.is_empty()),
            incarnation: saved.incarnation,
            resumed_snapshot: saved.snapshot,
            ..self.request.clone()
        };
        let (process, saved) = (Arc::clone(&self.process), Arc::clone(&self.saved));
        let (run, every) = (self.run, self.every);
        self.task
            .spawn(async move { replay(&process, request, run, every, &saved).await });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `kill -9`.
    pub async fn kill(&mut self) {
        self.process.kill();
        self.task.shutdown().await;
    }

    /// A new process goes on from the saved positions.
    pub fn resume(&mut self) {
        let world = Arc::clone(&self.process.world);
        self.process = world.process("replay");
        let positions: BTreeMap<i32, (u32, i64)> = self
            .lock()
            .positions
            .iter()
            .map(|(p, at)| (p.get(), (at.generation.0, at.offset.get())))
            .collect();
        world.recorder.record(Event::Resumed {
            run: self.run,
            positions,
        });
        self.spawn();
    }

    /// Whether it ended by itself, and well.
    pub fn ended(&mut self) -> Option<bool> {
        let ended = self.task.try_join_next()?;
        Some(self.judge(ended))
    }

    /// Waits until it ends, at most so long; whether it ended well.
    pub async fn wait(&mut self, limit: Duration) -> Option<bool> {
        let ended = tokio::time::timeout(limit, self.task.join_next()).await;
        Some(self.judge(ended.ok().flatten()?))
    }

    fn judge(&self, ended: Result<Result<(), ReplayError>, tokio::task::JoinError>) -> bool {
        let recorder = &self.process.world.recorder;
        let name = &self.process.name;
        let (line, is_wrong) = match &ended {
            // one that follows goes on for ever
            Ok(Ok(())) => ("well".to_owned(), self.request.until == Until::Never),
            Ok(Err(error)) => (
                one_line(error),
                error.exit_status() == 4 || matches!(error, ReplayError::Skipped { .. }),
            ),
            Err(error) => (error.to_string(), error.is_panic()),
        };
        recorder.note(&format!("{name} ended: {line}"));
        if is_wrong {
            recorder.record(Event::Wrong {
                what: format!("{name} (run {}) ended: {line}", self.run),
            });
        }
        matches!(ended, Ok(Ok(())))
    }
}

async fn replay(
    process: &Arc<Process>,
    request: ReplayRequest,
    run: u64,
    every: u64,
    saved: &Mutex<Saved>,
) -> Result<(), ReplayError> {
    let world = &process.world;
    let components = everlog_replayer::Components {
        log: Some(Arc::new(SimLog::new(Arc::clone(process))) as Arc<dyn Log>),
        catalog: Arc::new(SimCatalog::new(Arc::clone(process))) as Arc<dyn Catalog>,
        clock: Arc::clone(&process.clock) as Arc<dyn Clock>,
        ids: process.ids(),
        namespace: NAMESPACE.to_owned(),
    };
    let mut stream = EventStream::open(request, components).await?;
    let (mut since, mut passed) = (0, 0);
    let save = |stream: &EventStream| {
        let mut saved = saved.lock().unwrap_or_else(PoisonError::into_inner);
        *saved = Saved {
            positions: stream.positions().clone(),
            incarnation: stream.incarnation().cloned(),
            snapshot: stream.snapshot_id(),
        };
    };
    loop {
        let batch = match stream.next().await {
            Ok(Some(batch)) => batch,
            Ok(None) => break,
            Err(error) => {
                // what came before the error is sound
                save(&stream);
                return Err(error);
            }
        };
        for gap in &stream.gaps_passed()[passed..] {
            world.recorder.record(Event::Passed {
                run,
                generation: gap.generation.0,
                partition: gap.partition.get(),
                range: (gap.start.get(), gap.end.map(everlog_common::Offset::get)),
            });
        }
        passed = stream.gaps_passed().len();
        world.recorder.record(Event::Emitted(Emission {
            run,
            generation: batch.generation.0,
            partition: batch.partition.get(),
            range: (batch.range.start().get(), batch.range.end().get()),
            rows: facts::emitted(&batch.columns),
            is_live: batch.source == Source::Live,
        }));
        since += 1;
        if since >= every {
            since = 0;
            save(&stream);
        }
        process.pass("batch").await;
    }
    save(&stream);
    stream.close().await;
    Ok(())
}

/// A round of maintenance by a process of its own.
pub async fn maintain(process: Arc<Process>, topic: TopicName) {
    let world = &process.world;
    let deps = ArchiveDeps {
        catalog: Arc::new(SimCatalog::new(Arc::clone(&process))) as Arc<dyn Catalog>,
        clock: Arc::clone(&process.clock) as Arc<dyn Clock>,
        ids: process.ids(),
    };
    let line = match Archive::open(deps, NAMESPACE, &topic).await {
        Ok(Some(archive)) => match archive.maintain(&maintenance(world)).await {
            Ok(report) => format!(
                "{} expired, {} deleted",
                report.snapshots_expired, report.files_deleted
            ),
            Err(error) => error.to_string(),
        },
        Ok(None) => "no table".to_owned(),
        Err(error) => error.to_string(),
    };
    world
        .recorder
        .note(&format!("{} maintained {topic}: {line}", process.name));
}
