//! The binary, on real servers, while everything that can die dies.
//!
//! ```text
//!   producers ──► Kafka, three nodes ──► two archivers in a group ──► proxies ──► S3, REST catalog
//!    idempotent        │    │            (killed at fail points)                      │
//!    transactional     │    └──────────► an archiver ──► a small local disk           │
//!                      └───── followers and bounded replays, killed and resumed ──────┘
//! ```
//!
//! `everlog-chaos MINUTES [SEED]`, which `make chaos` runs: rounds of faults that the seed decides ([`plan`]). During a round
//! every process that starts is armed to kill itself at a fail point; after each round everything that Kafka then had must be
//! archived, and every follower must have gone on, within [`world::RECOVERY`]. At the end ([`judge`]) the archive, archive
//! and tail together, and what killed and resumed replays gave are compared with the log, record by record, and
//! `everlog verify --full` must hold.
//!
//! The seed decides what is disturbed when; how processes interleave is theirs.

#![allow(clippy::print_stdout, reason = "a report is what this program is for")]
#![allow(clippy::panic, reason = "a harness that fails should say so")]

mod actors;
mod judge;
mod load;
mod plan;
mod report;
mod world;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::signal::unix::{SignalKind, signal};

use crate::actors::{Actor, Shared};
use crate::load::Transactions;
use crate::plan::{Plan, Round};
use crate::world::{DISK, GAP, PLAIN, TXN, World};

/// Megabytes that a run may take, and that it leaves to others.
const DISK_MAX_MB: u64 = 3_000;
const DISK_FREE_MB: u64 = 1_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<u64>().ok());
    let (Some(minutes), true) = (number(0), args.len() <= 2) else {
        println!("usage: everlog-chaos MINUTES [SEED]");
        return ExitCode::from(2);
    };
    let by_chance = || RandomState::new().build_hasher().finish() % 1_000_000;
    let seed = number(1).unwrap_or_else(by_chance);
    let shared = Arc::new(Shared::new(seed));
    watch_signals(&shared);
    let folder = std::env::temp_dir();
    println!(
        "chaos: {minutes} minutes of faults, SEED={seed}, in {}",
        folder.display()
    );

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Ok(mut world) = catch_unwind(AssertUnwindSafe(|| runtime.block_on(World::start(&shared))))
    else {
        println!("the servers did not start");
        return ExitCode::from(1);
    };
    let ran = catch_unwind(AssertUnwindSafe(|| {
        run(&mut world, Duration::from_secs(60 * minutes));
    }));
    if let Err(panic) = ran {
        shared
            .tally
            .violation(format!("the harness: {}", judge::said(&*panic)));
    }
    shared.ending.store(true, Ordering::SeqCst);
    for actor in world.actors() {
        drop(actor.take());
    }
    if shared.interrupted.load(Ordering::SeqCst) {
        println!("interrupted: nothing is proven");
        return ExitCode::from(130);
    }
    shared.tally.print(&shared.points());
    if shared.tally.violations() == 0 {
        println!("chaos: nothing was lost, doubled or altered, SEED={seed}");
        return ExitCode::SUCCESS;
    }
    println!(
        "chaos: FAILED with SEED={seed}; logs and tables are kept in {}",
        folder.display()
    );
    // their folders are the evidence; the servers are stopped by whoever started us
    std::mem::forget(world);
    ExitCode::from(1)
}

/// Ctrl-C and SIGTERM end it between two steps; a second one ends it at once, and the script that started it cleans up.
fn watch_signals(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate()).expect("signals");
            loop {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
                if shared.interrupted.swap(true, Ordering::SeqCst) {
                    std::process::abort();
                }
                println!("ending ...");
            }
        });
    });
}

fn run(world: &mut World, limit: Duration) {
    let shared = Arc::clone(&world.shared);
    let sent: Arc<[AtomicU64; 3]> = Arc::default();
    let transactions = Arc::new(Transactions::default());
    let producers = produce(world, &sent, &transactions);
    let supervise = |a: &Arc<Actor>| a.supervise(&shared);
    let mut supervisors: Vec<_> = world.archivers.iter().map(supervise).collect();
    // anti-vacuous: before the first fault everything works; a replay needs a table
    let mut is_sound = world.catch_up("the start");
    supervisors.extend(world.replays.iter().map(supervise));
    is_sound = is_sound && world.recover("the start of replays");
    println!("everything runs");
    let mut plan = Plan::new(shared.seed, world.targets());
    let mut chance = StdRng::seed_from_u64(!shared.seed);
    let began = Instant::now();
    let mut number = 0;
    while is_sound && began.elapsed() < limit && shared.goes_on() && has_room() {
        number += 1;
        is_sound = round(world, number, &plan.round(), &mut chance);
    }
    let went_on_for = began.elapsed();
    if is_sound {
        world.actors().for_each(|a| a.kill_if_armed(&shared));
        world.recover("the last kill");
    }

    shared.ending.store(true, Ordering::SeqCst);
    for (what, thread) in producers
        .into_iter()
        .chain(supervisors.into_iter().map(|s| ("a supervisor", s)))
    {
        if let Err(panic) = thread.join() {
            shared
                .tally
                .violation(format!("{what}: {}", judge::said(&*panic)));
        }
    }
    if shared.interrupted.load(Ordering::SeqCst) {
        return;
    }
    // nobody starts what ended since: the judge needs all that go on for ever
    judge::judge(world, sent[0].load(Ordering::SeqCst));
    conclude(&shared, &transactions, number, went_on_for);
}

/// Starts the producers.
fn produce(
    world: &World,
    sent: &Arc<[AtomicU64; 3]>,
    transactions: &Arc<Transactions>,
) -> Vec<(&'static str, JoinHandle<()>)> {
    let (broker, shared) = (world.broker.clone(), Arc::clone(&world.shared));
    let counters = Arc::clone(sent);
    let plain = std::thread::spawn(move || {
        let topics = [(PLAIN.name, PLAIN.partitions, &counters[0])];
        load::idempotent(&broker, &shared, &topics, 60, Duration::from_millis(200));
    });
    let (broker, shared) = (world.broker.clone(), Arc::clone(&world.shared));
    let counters = Arc::clone(sent);
    let others = std::thread::spawn(move || {
        let topics = [
            (GAP.name, GAP.partitions, &counters[1]),
            (DISK.name, DISK.partitions, &counters[2]),
        ];
        load::idempotent(&broker, &shared, &topics, 20, Duration::from_millis(250));
    });
    let (bootstrap, shared) = (world.bootstrap().to_owned(), Arc::clone(&world.shared));
    let done = Arc::clone(transactions);
    let transactional = std::thread::spawn(move || {
        load::transactional(&bootstrap, &shared, TXN.name, TXN.partitions, &done);
    });
    vec![
        ("the idempotent producer", plain),
        ("the other idempotent producer", others),
        ("the transactional producer", transactional),
    ]
}

/// Faults, some time, no faults; whether all caught up.
fn round(world: &mut World, number: u32, round: &Round, chance: &mut StdRng) -> bool {
    let shared = Arc::clone(&world.shared);
    let names: Vec<_> = round.faults.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    for fault in &round.faults {
        world.begin(fault);
    }
    shared.arming.store(true, Ordering::SeqCst);
    let (began, mut each) = (Instant::now(), 0.6);
    while began.elapsed() < round.hold && shared.goes_on() {
        // whoever is killed starts again, armed
        for actor in world.actors() {
            if chance.random_bool(each) {
                actor.kill(&shared);
            }
        }
        each = 0.08;
        std::thread::sleep(Duration::from_secs(1));
    }
    shared.arming.store(false, Ordering::SeqCst);
    for fault in round.faults.iter().rev() {
        world.heal(fault);
    }
    let healed = Instant::now();
    let caught_up = world.recover(&format!("round {number}: {names}"));
    println!(
        "round {number:>3}: {names}; held {:.1} s, {} {:.1} s after; kills so far {}",
        round.hold.as_secs_f64(),
        if caught_up {
            "caught up"
        } else {
            "NOT caught up"
        },
        healed.elapsed().as_secs_f64(),
        shared.tally.kills(),
    );
    caught_up
}

/// The last figures, and whether enough happened for the run to prove anything.
fn conclude(shared: &Shared, transactions: &Transactions, rounds: u32, length: Duration) {
    let tally = &shared.tally;
    let figure = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    tally.fact("transactions committed", figure(&transactions.committed));
    tally.fact("transactions aborted", figure(&transactions.aborted));
    tally.fact("transactions abandoned", figure(&transactions.abandoned));
    tally.fact("transactions failed", figure(&transactions.failed));
    tally.fact("rounds of faults", rounds);
    tally.fact(
        "minutes of faults",
        format!("{:.1}", length.as_secs_f64() / 60.0),
    );
    if rounds == 0 || tally.recoveries() <= 1 {
        tally.violation("nothing happened: no round of faults was survived");
    }
    let never: Vec<_> = shared
        .points()
        .into_iter()
        .filter(|p| tally.kills_at(p) == 0)
        .collect();
    if length > Duration::from_mins(10) && !never.is_empty() {
        tally.violation(format!("fail points where nothing was killed: {never:?}"));
    }
}

/// Whether the disk has room for another round.
fn has_room() -> bool {
    let folder = std::env::temp_dir();
    let number = |command: &mut Command| {
        let text = command.output().map(|o| o.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.split_whitespace()
            .find_map(|word| word.parse::<u64>().ok())
    };
    let used = number(Command::new("du").args(["-sm"]).arg(&folder));
    let free = number(
        Command::new("df")
            .args(["-m", "--output=avail"])
            .arg(&folder),
    );
    let is_enough =
        used.is_none_or(|mb| mb < DISK_MAX_MB) && free.is_none_or(|mb| mb > DISK_FREE_MB);
    if !is_enough {
        println!("no more faults: {used:?} MB used, {free:?} MB free");
    }
    is_enough
}
