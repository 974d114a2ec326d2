//! The archiver's and the replayer's own code, in a world that one seed decides.
//!
//! ```text
//!   Plan::of(seed) ──► World: brokers, catalog, object store, time, chance
//!                        │
//!          director ─────┤ produces, deletes, elects, kills, resumes … until its steps are done
//!                        ▼
//!     archivers, replays, maintenance ──► every request passes a process that may die, freeze or lie there
//!                        │
//!                        ▼
//!                    Recorder ──► Checker (everlog_tests::checker) and the trace's hash
//! ```
//!
//! - One thread, one runtime with paused time: nothing runs at the same time, and what runs next follows from the seed.
//!   Work that would go to other threads runs inline ([`everlog_common::compute::Inline`]).
//! - A run ends with the faults over: then everything must be archived, and a replay from the beginning must give the log.
//! - The same seed gives the same trace: a test says so.
//!
//! Start reading at [`run`], then [`plan`], then [`world`].

pub mod actors;
pub mod broker;
pub mod catalog;
mod facts;
pub mod log;
pub mod plan;
pub mod rng;
pub mod store;
pub mod world;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use everlog_archiver::ArchiverError;
use everlog_common::{Clock, TopicName};
use everlog_tests::checker::{Event, Outcome};
use tokio::task::JoinSet;

use crate::actors::{RunningArchiver, RunningReplay};
use crate::broker::Brokers;
use crate::plan::{Plan, Weights};
use crate::world::World;

/// How long everything may take once the faults are over.
const RECOVERY: Duration = Duration::from_secs(900);

/// Replays at a time.
const REPLAYS_MAX: usize = 3;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// The checker's judgement.
    pub outcome: Outcome,
    /// Of everything that happened.
    pub trace_hash: u64,
    /// What happened, where that was asked for.
    pub lines: Vec<String>,
    /// Time that passed in the world.
    pub simulated: Duration,
}

/// Runs a world to its end. To be called on a current-thread runtime with paused time, under
/// [`everlog_common::compute::Inline`].
pub async fn run(plan: Plan, with_lines: bool) -> Report {
    let seed = plan.seed;
    let world = World::new(plan, with_lines);
    let mut director = Director {
        brokers: Brokers::new(Arc::clone(&world)),
        archivers: Vec::new(),
        replays: Vec::new(),
        others: JoinSet::new(),
        runs: 0,
        world: Arc::clone(&world),
    };
    director.direct().await;
    director.settle().await;
    drop(director);
    let (outcome, trace_hash, lines) = world.recorder.finish();
    Report {
        seed,
        outcome,
        trace_hash,
        lines,
        simulated: world.clock.elapsed(),
    }
}

struct Director {
    world: Arc<World>,
    brokers: Brokers,
    archivers: Vec<RunningArchiver>,
    replays: Vec<RunningReplay>,
    others: JoinSet<()>,
    runs: u64,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Produce,
    Transact,
    Skip,
    DeleteRecords,
    Compact,
    Elect,
    Truncate,
    Grow,
    Recreate,
    Leader,
    Kill,
    Stop,
    Group,
    Replay,
    Maintain,
    Fault,
    Deny,
    Rest,
}

fn acts(weights: &Weights) -> [(Act, u64); 18] {
    let w = weights;
    [
        (Act::Produce, w.produce),
        (Act::Transact, w.transact),
        (Act::Skip, w.skip),
        (Act::DeleteRecords, w.delete_records),
        (Act::Compact, w.compact),
        (Act::Elect, w.elect),
        (Act::Truncate, w.truncate),
        (Act::Grow, w.grow),
        (Act::Recreate, w.recreate),
        (Act::Leader, w.leader),
        (Act::Kill, w.kill),
        (Act::Stop, w.stop),
        (Act::Group, w.group),
        (Act::Replay, w.replay),
        (Act::Maintain, w.maintain),
        (Act::Fault, w.fault),
        (Act::Deny, w.deny),
        (Act::Rest, w.rest),
    ]
}

impl Director {
    async fn direct(&mut self) {
        let world = Arc::clone(&self.world);
        let acts = acts(&world.plan.weights);
        let total: u64 = acts.iter().map(|(_, weight)| weight).sum();
        for _ in 0..world.plan.steps {
            if world.recorder.is_broken() {
                return;
            }
            self.look_after().await;
            let pause = world
                .rng
                .below(u64::try_from(world.plan.pause_max.as_millis()).unwrap_or(1));
            world.clock.sleep(Duration::from_millis(pause)).await;
            let mut at = world.rng.below(total);
            let act = acts.iter().find(|(_, weight)| {
                let is_it = at < *weight;
                at = at.saturating_sub(*weight);
                is_it
            });
            if let Some((act, _)) = act {
                self.act(*act).await;
            }
        }
    }

    async fn act(&mut self, act: Act) {
        let rng = self.world.rng.clone();
        match act {
            Act::Produce => self.brokers.produce(),
            Act::Transact => self.brokers.transact(),
            Act::Skip => self.brokers.skip(),
            Act::DeleteRecords => self.brokers.delete_records(),
            Act::Compact => self.brokers.compact(),
            Act::Elect => self.brokers.elect(),
            Act::Truncate => self.brokers.truncate(),
            Act::Grow => self.brokers.grow(),
            Act::Recreate => self.brokers.recreate(),
            Act::Leader => self.brokers.leader(),
            Act::Fault => self.brokers.fault(),
            Act::Deny => self.brokers.deny(),
            Act::Group => self.brokers.group(),
            Act::Kill => {
                if !self.archivers.is_empty() {
                    let which = rng.index(self.archivers.len());
                    self.archivers.remove(which).kill().await;
                }
            }
            Act::Stop => {
                if let Some(archiver) = rng.pick(&self.archivers) {
                    archiver.stop();
                }
            }
            Act::Replay => self.replay().await,
            Act::Maintain => {
                let names = self.brokers.names();
                if let Some(topic) = rng.pick(&names) {
                    let process = self.world.process("maintenance");
                    self.others.spawn(actors::maintain(process, topic.clone()));
                }
            }
            Act::Rest => self.rest().await,
        }
    }

    /// Archivers that ended are started again, sooner or later; replays that ended are forgotten.
    async fn look_after(&mut self) {
        for mut archiver in std::mem::take(&mut self.archivers) {
            if archiver.process.is_dead() {
                archiver.kill().await;
            } else if archiver.ended().is_none() {
                self.archivers.push(archiver);
            }
        }
        if self.archivers.len() < self.world.plan.archivers && self.world.rng.chance(500) {
            let topics = self.brokers.names();
            self.archivers
                .push(RunningArchiver::start(&self.world, &topics));
        }
        for mut replay in std::mem::take(&mut self.replays) {
            if replay.process.is_dead() {
                replay.kill().await;
                replay.resume();
                self.replays.push(replay);
            } else if replay.ended().is_none() {
                self.replays.push(replay);
            }
        }
        while self.others.try_join_next().is_some() {}
    }

    /// A replay more, or one that is killed and goes on.
    async fn replay(&mut self) {
        let rng = self.world.rng.clone();
        if self.replays.len() < REPLAYS_MAX && (self.replays.is_empty() || rng.chance(500)) {
            let names = self.brokers.names();
            if let Some(topic) = rng.pick(&names) {
                self.runs += 1;
                self.replays
                    .push(RunningReplay::open(&self.world, self.runs, topic.clone()));
            }
            return;
        }
        let which = rng.index(self.replays.len());
        let replay = &mut self.replays[which];
        replay.kill().await;
        replay.resume();
    }

    /// Hours in which nobody runs: what is old enough then may be removed.
    async fn rest(&mut self) {
        for archiver in std::mem::take(&mut self.archivers) {
            archiver.kill().await;
        }
        for mut replay in std::mem::take(&mut self.replays) {
            replay.kill().await;
        }
        self.others.shutdown().await;
        let rest = self.world.rng.millis(60_000, 30 * 3_600_000);
        self.world.recorder.note("rest");
        self.world.clock.sleep(rest).await;
    }

    /// The faults are over: everything is archived, and a replay gives the log.
    async fn settle(&mut self) {
        let world = Arc::clone(&self.world);
        if world.recorder.is_broken() {
            return;
        }
        world.recorder.note("the faults are over");
        world.has_faults.store(false, Ordering::SeqCst);
        self.brokers.settle();
        for archiver in std::mem::take(&mut self.archivers) {
            archiver.kill().await;
        }
        for mut replay in std::mem::take(&mut self.replays) {
            replay.kill().await;
        }
        self.others.shutdown().await;
        // What is still on its way arrives before, or while the last archiver works.
        let wait = world.rng.millis(0, 100_000);
        world.clock.sleep(wait).await;
        let topics = self.brokers.names();
        let mut last = RunningArchiver::last(&world, &topics);
        let ended = last.wait(RECOVERY).await;
        let mut stopped: Vec<(TopicName, Option<i32>)> = Vec::new();
        match ended {
            Some(Err(ArchiverError::Stopped(failures))) => {
                for failure in failures {
                    let partition = failure.partition.map(everlog_common::Partition::get);
                    world.recorder.record(Event::Stopped {
                        topic: failure.topic.as_str().to_owned(),
                        partition,
                        kind: failure.kind.as_str().to_owned(),
                    });
                    stopped.push((failure.topic, partition));
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => world.recorder.record(Event::Wrong {
                what: format!("the last archiver ended: {error}"),
            }),
            None => {
                world.recorder.note("the last archiver did not end");
                last.kill().await;
            }
        }
        let mut server =
            std::mem::take(&mut *world.server.lock().unwrap_or_else(PoisonError::into_inner));
        while server.join_next().await.is_some() {}
        world.recorder.record(Event::Settled);
        for topic in topics {
            self.replay_all(topic, &stopped).await;
        }
    }

    /// What is archived is given to its end, and then the log; of what stopped, only what is archived.
    async fn replay_all(&mut self, topic: TopicName, stopped: &[(TopicName, Option<i32>)]) {
        let all: BTreeSet<i32> = self.brokers.partitions(&topic);
        let has_stopped = |p: &i32| {
            stopped.contains(&(topic.clone(), Some(*p))) || stopped.contains(&(topic.clone(), None))
        };
        let (over, full): (BTreeSet<i32>, BTreeSet<i32>) = all.into_iter().partition(has_stopped);
        if !full.is_empty() {
            self.runs += 1;
            let replay = RunningReplay::full(&self.world, self.runs, topic.clone(), &full);
            self.finish(replay, full).await;
        }
        if !over.is_empty() {
            self.runs += 1;
            let replay = RunningReplay::archived(&self.world, self.runs, topic, &over);
            self.finish(replay, BTreeSet::new()).await;
        }
    }

    async fn finish(&self, mut replay: RunningReplay, full: BTreeSet<i32>) {
        let (run, recorder) = (self.runs, &self.world.recorder);
        match replay.wait(RECOVERY).await {
            Some(true) => recorder.record(Event::Finished { run, full }),
            ended => recorder.record(Event::Wrong {
                what: format!("the last replay (run {run}): {ended:?}"),
            }),
        }
    }
}
