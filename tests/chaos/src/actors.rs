//! Processes that are started again whenever they are gone.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use everlog_tests::crashing::fail_points;
use everlog_tests::everlog::{Everlog, Running};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::report::Tally;

/// What all threads see.
#[derive(Debug)]
pub struct Shared {
    /// Decides.
    pub seed: u64,
    /// Somebody wants it to end now.
    pub interrupted: AtomicBool,
    /// Nothing is started any more.
    pub ending: AtomicBool,
    /// Processes that are started now kill themselves at a fail point.
    pub arming: AtomicBool,
    /// What happened.
    pub tally: Tally,
    archiver_points: Vec<String>,
    replay_points: Vec<String>,
}

impl Shared {
    /// With the fail points that the sources name.
    pub fn new(seed: u64) -> Self {
        let points = |crates: &[&str]| fail_points(crates).into_iter().collect();
        Self {
            seed,
            interrupted: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            arming: AtomicBool::new(false),
            tally: Tally::default(),
            archiver_points: points(&["archiver", "common/table"]),
            replay_points: points(&["replayer"]),
        }
    }

    /// Every fail point.
    pub fn points(&self) -> BTreeSet<String> {
        let all = self.archiver_points.iter().chain(&self.replay_points);
        all.cloned().collect()
    }

    /// Whether it goes on.
    pub fn goes_on(&self) -> bool {
        !self.interrupted.load(Ordering::SeqCst) && !self.ending.load(Ordering::SeqCst)
    }

    /// Where the next process of this role kills itself: half the time where that has happened least.
    fn kill_at(&self, role: Role, rng: &mut StdRng) -> Option<(String, u32)> {
        if !self.arming.load(Ordering::SeqCst) || rng.random_bool(0.15) {
            return None;
        }
        let points = match role {
            Role::Archiver => &self.archiver_points,
            Role::Follower | Role::Bounded => &self.replay_points,
        };
        let least = points.iter().map(|p| self.tally.kills_at(p)).min()?;
        let rare = |p: &&String| self.tally.kills_at(p) == least;
        let point = if rng.random_bool(0.5) {
            let rarest: Vec<_> = points.iter().filter(rare).collect();
            (*rarest.choose(rng)?).clone()
        } else {
            points.choose(rng)?.clone()
        };
        Some((point, *[1, 1, 2, 3].choose(rng)?))
    }
}

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `archive`.
    Archiver,
    /// `replay --follow`.
    Follower,
    /// `replay --until now`, again and again from where it was.
    Bounded,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Archiver => "archiver",
            Self::Follower => "following replay",
            Self::Bounded => "bounded replay",
        }
    }
}

/// A process that is started again whenever it is gone.
#[derive(Debug)]
pub struct Actor {
    /// Its name in the report.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its installation.
    pub everlog: Arc<Everlog>,
    /// Its command line.
    pub args: Vec<String>,
    slot: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    running: Running,
    armed: Option<String>,
}

enum End {
    Killed,
    ByItself(ExitStatus, Option<String>, String),
    Over,
}

impl Actor {
    /// Not started yet.
    pub fn new(name: &str, role: Role, everlog: Arc<Everlog>, args: &[&str]) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            role,
            everlog,
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            slot: Mutex::new(None),
        })
    }

    fn slot(&self) -> MutexGuard<'_, Option<Held>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it, and again whenever it ends, until nothing is started any more.
    pub fn supervise(self: &Arc<Self>, shared: &Arc<Shared>) -> JoinHandle<()> {
        let (this, shared) = (Arc::clone(self), Arc::clone(shared));
        std::thread::spawn(move || {
            let mut name = DefaultHasher::new();
            this.name.hash(&mut name);
            let mut rng = StdRng::seed_from_u64(shared.seed ^ name.finish());
            while shared.goes_on() {
                let armed = shared.kill_at(this.role, &mut rng);
                this.start(armed);
                let pause = match this.until_ended(&shared) {
                    End::Over => return,
                    End::Killed => Duration::ZERO,
                    End::ByItself(status, armed, log) => this.judge(&shared, status, armed, &log),
                };
                std::thread::sleep(pause);
            }
        })
    }

    fn start(&self, armed: Option<(String, u32)>) {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let at = armed.as_ref().map(|(point, n)| format!("{point}@{n}"));
        let running = self.everlog.start(&args, &at.unwrap_or_default());
        self.note(running.pid());
        *self.slot() = Some(Held {
            running,
            armed: armed.map(|(point, _)| point),
        });
    }

    /// Leaves a note for whoever cleans up after us, in the form of the service scripts: process and its start.
    fn note(&self, pid: u32) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let began = stat.rsplit(") ").next().and_then(|s| s.split(' ').nth(19));
        let folder = std::env::temp_dir().join("processes").join(&self.name);
        let written = std::fs::create_dir_all(&folder).and_then(|()| {
            std::fs::write(
                folder.join("pid"),
                format!("{pid} {}\n", began.unwrap_or("")),
            )
        });
        written.expect("a note of the process");
    }

    fn until_ended(&self, shared: &Shared) -> End {
        loop {
            {
                let mut slot = self.slot();
                let Some(held) = slot.as_mut() else {
                    return End::Killed;
                };
                if let Some(status) = held.running.ended() {
                    let log = held.running.log();
                    let armed = slot.take().and_then(|held| held.armed);
                    return End::ByItself(status, armed, log);
                }
            }
            if !shared.goes_on() {
                return End::Over;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Counts how it ended, and how long to wait before it is started again.
    fn judge(
        &self,
        shared: &Shared,
        status: ExitStatus,
        armed: Option<String>,
        log: &str,
    ) -> Duration {
        let last = || {
            let lines: Vec<&str> = log.lines().rev().take(12).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n    ")
        };
        match (status.signal(), status.code(), armed) {
            (Some(libc::SIGKILL), _, Some(point)) => {
                shared.tally.killed_at(&point);
                Duration::ZERO
            }
            (_, Some(0), _) if self.role == Role::Bounded => {
                shared.tally.ended("bounded replay: came to the end");
                Duration::from_millis(500)
            }
            // what a supervisor restarts
            (_, Some(1), _) => {
                let how = format!("{}: exit status 1", self.role.name());
                shared.tally.ended(&how);
                Duration::from_millis(500)
            }
            _ => {
                let what = format!("{} ended with {status}\n    {}", self.name, last());
                shared.tally.violation(what);
                Duration::from_secs(1)
            }
        }
    }

    /// `kill -9`, where it runs.
    pub fn kill(&self, shared: &Shared) {
        // its place is free only when it is gone: the next one wants the same files
        let mut slot = self.slot();
        if let Some(held) = slot.take() {
            held.running.kill();
            shared.tally.killed(self.role.name());
        }
    }

    /// The same, where it is still to kill itself.
    pub fn kill_if_armed(&self, shared: &Shared) {
        let is_armed = self
            .slot()
            .as_ref()
            .is_some_and(|held| held.armed.is_some());
        if is_armed {
            self.kill(shared);
        }
    }

    /// Sends it a signal, where it runs; its process id.
    pub fn signal(&self, signal: i32) -> Option<u32> {
        let slot = self.slot();
        let held = slot.as_ref()?;
        held.running.signal(signal);
        Some(held.running.pid())
    }

    /// Lets it go on, where it is still the same process.
    pub fn thaw(&self, pid: u32) {
        let slot = self.slot();
        if let Some(held) = slot.as_ref().filter(|held| held.running.pid() == pid) {
            held.running.signal(libc::SIGCONT);
        }
    }

    /// Takes it away from its supervisor, which must have ended; none where it does not run.
    pub fn take(&self) -> Option<Running> {
        self.slot().take().map(|held| held.running)
    }
}
