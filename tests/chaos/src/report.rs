//! What was done to it, and how it took it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Counted by every thread.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    faults: BTreeMap<String, u64>,
    at_points: BTreeMap<String, u64>,
    at_random: BTreeMap<&'static str, u64>,
    ended: BTreeMap<String, u64>,
    recoveries: Vec<(Duration, String)>,
    facts: Vec<(String, String)>,
    violations: Vec<String>,
}

impl Tally {
    fn with<T>(&self, act: impl FnOnce(&mut Counts) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A fault took place.
    pub fn fault(&self, kind: &str) {
        self.with(|c| *c.faults.entry(kind.to_owned()).or_default() += 1);
    }

    /// A process killed itself at this fail point.
    pub fn killed_at(&self, point: &str) {
        self.with(|c| *c.at_points.entry(point.to_owned()).or_default() += 1);
    }

    /// How often a process was killed at this fail point.
    pub fn kills_at(&self, point: &str) -> u64 {
        self.with(|c| c.at_points.get(point).copied().unwrap_or(0))
    }

    /// A process was killed at a moment of chance.
    pub fn killed(&self, what: &'static str) {
        self.with(|c| *c.at_random.entry(what).or_default() += 1);
    }

    /// A process ended by itself with a status that its supervisor answers by starting it again.
    pub fn ended(&self, how: &str) {
        self.with(|c| *c.ended.entry(how.to_owned()).or_default() += 1);
    }

    /// Everything was caught up with so long after the faults were over.
    pub fn recovered(&self, after: Duration, from: &str) {
        self.with(|c| c.recoveries.push((after, from.to_owned())));
    }

    /// A line of the report.
    pub fn fact(&self, name: &str, value: impl ToString) {
        self.with(|c| c.facts.push((name.to_owned(), value.to_string())));
    }

    /// A promise was broken, or could not be proven.
    pub fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        println!("VIOLATION: {what}");
        self.with(|c| c.violations.push(what));
    }

    /// How many there were.
    pub fn violations(&self) -> usize {
        self.with(|c| c.violations.len())
    }

    /// How often everything was caught up with.
    pub fn recoveries(&self) -> usize {
        self.with(|c| c.recoveries.len())
    }

    /// All kills.
    pub fn kills(&self) -> u64 {
        self.with(|c| c.at_points.values().chain(c.at_random.values()).sum())
    }

    /// Prints everything. `points` are the fail points that there are.
    pub fn print(&self, points: &BTreeSet<String>) {
        let kills = self.kills();
        self.with(|c| {
            let row = |name: &str, value: &str| println!("  {name:<52} {value:>9}");
            println!("\nfaults by kind");
            for (kind, count) in &c.faults {
                row(kind, &count.to_string());
            }
            println!("kill -9 at a moment of chance");
            for (what, count) in &c.at_random {
                row(what, &count.to_string());
            }
            println!("kill -9 at fail points");
            for point in points {
                let count = c.at_points.get(point).copied().unwrap_or(0);
                row(point, &count.to_string());
            }
            row("kill -9, all", &kills.to_string());
            println!("ended by themselves, and started again");
            for (how, count) in &c.ended {
                row(how, &count.to_string());
            }
            println!("recoveries");
            row("caught up after faults", &c.recoveries.len().to_string());
            let mut times: Vec<_> = c.recoveries.clone();
            times.sort();
            if let (Some(median), Some((worst, from))) = (times.get(times.len() / 2), times.last())
            {
                row("median", &format!("{:.1} s", median.0.as_secs_f64()));
                row("worst", &format!("{:.1} s", worst.as_secs_f64()));
                println!("    after {from}");
            }
            println!("facts");
            for (name, value) in &c.facts {
                row(name, value);
            }
            println!("violations: {}", c.violations.len());
            for what in &c.violations {
                println!("  {what}");
            }
        });
    }
}
