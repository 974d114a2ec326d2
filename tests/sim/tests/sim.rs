//! Seeds: those that once failed, and many more.
//!
//! By environment: `EVERLOG_SIM_SEED=N` runs one world and shows its trace; `EVERLOG_SIM_SEEDS=N` so many worlds, from
//! `EVERLOG_SIM_FROM` on (`make sim`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use everlog_common::compute::Inline;
#[cfg(feature = "mutants")]
use everlog_common::mutants::{Mutant, plant};
use everlog_sim::plan::Plan;
use everlog_sim::{Report, run};

/// As in the binary: a fifth of a world's time is allocating.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Worlds that `make test` looks at.
const SEEDS: u64 = 2_000;

/// Worlds in which each planted bug has to show.
#[cfg(feature = "mutants")]
const MUTANT_SEEDS: u64 = 400;

/// Where failed seeds are kept, below the crate.
const KEPT: &str = "seeds.txt";

fn simulate(plan: Plan, with_lines: bool) -> Report {
    let _inline = Inline::here();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let seed = plan.seed;
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(run(plan, with_lines))
    }));
    let Ok(report) = caught else {
        panic!("seed {seed}: the simulation itself panicked; see above");
    };
    report
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

#[derive(Debug, Default)]
struct Sum {
    worlds: u64,
    simulated: Duration,
    records: u64,
    states: u64,
    emitted: u64,
    gaps: u64,
    faults: BTreeMap<&'static str, u64>,
    failed: Vec<Report>,
}

impl Sum {
    fn take(&mut self, report: Report) {
        self.worlds += 1;
        self.simulated += report.simulated;
        let counts = &report.outcome.counts;
        self.records += counts.records;
        self.states += counts.states;
        self.emitted += counts.emitted;
        self.gaps += counts.gaps;
        for (kind, n) in &counts.faults {
            *self.faults.entry(kind).or_default() += n;
        }
        if let Some(first) = report.outcome.violations.first() {
            println!("seed {}: {first}", report.seed);
            self.failed.push(report);
        }
    }
}

/// Runs these seeds on all cores, each world on one thread; ends early when many have failed.
fn simulate_all(seeds: &[u64]) -> Sum {
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let at = usize::try_from(next.fetch_add(1, Ordering::SeqCst)).unwrap();
                    let Some(seed) = seeds.get(at) else { return };
                    let report = simulate(Plan::of(*seed), false);
                    let mut sum = sum.lock().unwrap();
                    sum.take(report);
                    if sum.worlds % 1_000 == 0 {
                        println!("{} of {} worlds", sum.worlds, seeds.len());
                    }
                    if sum.failed.len() >= 20 {
                        return;
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

fn report(sum: &Sum, took: Duration) {
    println!(
        "{} worlds, {:.1} simulated hours in {:.1} s; {} records, {} catalog states, {} rows replayed, {} gaps",
        sum.worlds,
        sum.simulated.as_secs_f64() / 3600.0,
        took.as_secs_f64(),
        sum.records,
        sum.states,
        sum.emitted,
        sum.gaps
    );
    for (kind, n) in &sum.faults {
        println!("  {n:>9} {kind}");
    }
}

fn assert_holds(sum: &Sum) {
    let Some(first) = sum.failed.iter().min_by_key(|f| f.seed) else {
        return;
    };
    let all: Vec<u64> = sum.failed.iter().map(|f| f.seed).collect();
    panic!(
        "{} worlds break a promise: {all:?}; the first: {}\n  see it again: make sim SEED={}\n  keep it: add it to tests/sim/{KEPT}",
        all.len(),
        first.outcome.violations[0],
        first.seed
    );
}

fn kept() -> Vec<u64> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(KEPT);
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .filter_map(|line| line.split('#').next()?.trim().parse().ok())
        .collect()
}

#[test]
fn worlds_of_many_seeds_hold_every_promise() {
    let began = Instant::now();
    if let Some(seed) = variable("EVERLOG_SIM_SEED") {
        let plan = Plan::of(seed);
        println!("{plan:#?}");
        #[cfg(feature = "mutants")]
        plant(asked_mutants().and_then(|asked| asked.into_iter().next()));
        let one = simulate(plan, true);
        for line in &one.lines {
            println!("{line}");
        }
        let mut sum = Sum::default();
        sum.take(one);
        report(&sum, began.elapsed());
        return assert_holds(&sum);
    }
    let count = variable("EVERLOG_SIM_SEEDS").unwrap_or(SEEDS);
    let from = variable("EVERLOG_SIM_FROM").unwrap_or(1);
    let seeds: Vec<u64> = (from..from + count).collect();
    let sum = simulate_all(&seeds);
    report(&sum, began.elapsed());
    assert_holds(&sum);
}

#[test]
fn worlds_that_once_failed_hold() {
    let sum = simulate_all(&kept());
    assert_holds(&sum);
}

/// Those that are asked for by name; none: nothing is asked for.
#[cfg(feature = "mutants")]
fn asked_mutants() -> Option<Vec<Mutant>> {
    let names = std::env::var("EVERLOG_SIM_MUTANT").ok()?;
    let named = |name: &str| {
        let mut all = Mutant::ALL.into_iter();
        all.find(|mutant| format!("{mutant:?}") == name)
            .unwrap_or_else(|| panic!("no bug is called {name:?}"))
    };
    (!names.is_empty()).then(|| names.split(',').map(named).collect())
}

/// Of each mutant: after how many seeds which rule found it; none: it was not found.
#[cfg(feature = "mutants")]
fn seeds_to_detect(mutant: Mutant, budget: u64) -> Option<(u64, u64, String)> {
    let (next, found) = (AtomicU64::new(1), Mutex::new(None::<(u64, String)>));
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                plant(Some(mutant));
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed > budget || found.lock().unwrap().is_some() {
                        break;
                    }
                    let report = simulate(Plan::of(seed), false);
                    if let Some(first) = report.outcome.violations.first() {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|(before, _)| seed < *before) {
                            *found = Some((seed, first.to_string()));
                        }
                    }
                }
                plant(None);
            });
        }
    });
    let tried = next.load(Ordering::SeqCst) - 1;
    let (seed, what) = found.into_inner().unwrap()?;
    Some((seed, tried.min(budget), what))
}

/// The checker is not blind: each planted bug is found, by seeds for which the true code holds.
#[cfg(feature = "mutants")]
#[test]
fn every_planted_bug_is_found() {
    let budget = variable("EVERLOG_SIM_SEEDS").unwrap_or(MUTANT_SEEDS);
    let mut missed = Vec::new();
    println!("| bug | seeds | found by |\n|---|---|---|");
    let planted = asked_mutants().unwrap_or_else(|| Mutant::ALL.to_vec());
    for mutant in planted {
        match seeds_to_detect(mutant, budget) {
            Some((seed, _, what)) => {
                println!("| {mutant:?} | {seed} | {} |", what.replace('|', "/"));
            }
            None => {
                println!("| {mutant:?} | not in {budget} | |");
                missed.push(mutant);
            }
        }
    }
    assert!(missed.is_empty(), "not found in {budget} seeds: {missed:?}");
}

#[test]
fn one_seed_gives_one_trace() {
    for seed in [3, 7, 11, 19, 23, 42, 77, 104, 211, 512] {
        let first = simulate(Plan::of(seed), true);
        let second = simulate(Plan::of(seed), true);
        let differs = first
            .lines
            .iter()
            .zip(&second.lines)
            .position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!(
                "seed {seed}: line {at} is\n{}\nand was\n{}\nafter\n{}",
                second.lines[at],
                first.lines[at],
                first.lines[at.saturating_sub(5)..at].join("\n")
            );
        }
        assert_eq!(first, second, "seed {seed}");
    }
}
