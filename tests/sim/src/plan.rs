//! What a seed's world is like: sizes and faults, each seed with its own mix (swarm testing), so that rare pairs of faults
//! meet undiluted.

use std::time::Duration;

use crate::rng::Rng;

/// How often something is done, in a thousand times; 0 in worlds that do not know it.
pub type PerMille = u64;

/// What happens to the processes' requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// The process dies right before, or right after, a request has its effect.
    pub crash: PerMille,
    /// The process stands still for seconds to minutes, and goes on as if nothing had been.
    pub freeze: PerMille,
    /// A request takes seconds.
    pub slow: PerMille,
    /// The catalog: not reached, nothing done.
    pub catalog_away: PerMille,
    /// The catalog: not done, and nobody says so.
    pub commit_lost_before: PerMille,
    /// The catalog: done, and nobody says so.
    pub commit_lost_after: PerMille,
    /// The catalog: done later, and nobody says so.
    pub commit_late: PerMille,
    /// The catalog: said to be somebody else's turn, though it was nobody's.
    pub commit_conflict: PerMille,
    /// The catalog: done, repeated on the way, and the second answer is a conflict with oneself (P5).
    pub commit_conflict_with_self: PerMille,
    /// The catalog: the request arrives a second time, later.
    pub commit_twice: PerMille,
    /// The catalog: an answer from before the last change.
    pub load_stale: PerMille,
    /// The catalog: the token is not accepted.
    pub denied: PerMille,
    /// The store: refused, nothing done.
    pub put_before: PerMille,
    /// The store: done, and an error nevertheless.
    pub put_after: PerMille,
    /// The store: a read fails.
    pub get: PerMille,
    /// The store: a delete fails, done or not.
    pub delete: PerMille,
    /// The brokers: a request fails.
    pub log: PerMille,
    /// The brokers: a reader's poll takes its time.
    pub poll_slow: PerMille,
    /// The brokers: an answer about topics or bounds from a moment ago.
    pub log_stale: PerMille,
    /// A process' clock is wrong, by up to an hour behind or some seconds ahead.
    pub skew: PerMille,
}

/// What the director does, by weight; 0 is never.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights {
    /// Records, alone.
    pub produce: u64,
    /// A transaction begins, goes on, or ends.
    pub transact: u64,
    /// Offsets without records.
    pub skip: u64,
    /// The log's start moves.
    pub delete_records: u64,
    /// Records vanish by compaction.
    pub compact: u64,
    /// A clean election.
    pub elect: u64,
    /// An unclean election.
    pub truncate: u64,
    /// A partition more.
    pub grow: u64,
    /// The topic is deleted and created anew.
    pub recreate: u64,
    /// A partition loses its leader, or has one again.
    pub leader: u64,
    /// An archiver is killed.
    pub kill: u64,
    /// An archiver is told to end.
    pub stop: u64,
    /// The group throws a member out, or keeps it from hearing.
    pub group: u64,
    /// A replay is opened, or killed and resumed.
    pub replay: u64,
    /// A round of maintenance by a process of its own.
    pub maintain: u64,
    /// A partition's reader meets a fault.
    pub fault: u64,
    /// A topic is closed to everybody, or open again.
    pub deny: u64,
    /// Nothing, for a while.
    pub rest: u64,
}

/// A seed's world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// All of this comes from it.
    pub seed: u64,
    /// Partitions per topic.
    pub topics: Vec<i32>,
    /// Archivers at a time.
    pub archivers: usize,
    /// Whether they share the work as a group; else each does all of it.
    pub is_group: bool,
    /// Whether archivers record gaps, or stop at them.
    pub records_gaps: bool,
    /// How often archivers commit.
    pub commit_interval: Duration,
    /// How often positions without rows are committed.
    pub idle_commit_interval: Duration,
    /// What an archiver may hold in memory.
    pub memory: usize,
    /// Rows in a batch of the log, at most.
    pub batch_rows: usize,
    /// Whether archivers maintain their tables.
    pub maintains: bool,
    /// Snapshots that stay.
    pub snapshots_kept: usize,
    /// What the director does before the world comes to rest.
    pub steps: u64,
    /// The longest time between two of them.
    pub pause_max: Duration,
    /// Records that one step produces, at most.
    pub burst: u64,
    /// What goes wrong.
    pub faults: Faults,
    /// What is done.
    pub weights: Weights,
}

impl Plan {
    /// The world of a seed.
    pub fn of(seed: u64) -> Self {
        let rng = Rng::new(seed);
        // Half of the faults are unknown to a world; the others are rare in one and frequent in the next.
        let fault = |frequent: u64| -> PerMille {
            match rng.below(6) {
                0..3 => 0,
                3 => frequent / 8,
                4 => frequent / 3,
                _ => frequent,
            }
        };
        let faults = Faults {
            crash: fault(25),
            freeze: fault(8),
            slow: fault(60),
            catalog_away: fault(120),
            commit_lost_before: fault(150),
            commit_lost_after: fault(250),
            commit_late: fault(150),
            commit_conflict: fault(150),
            commit_conflict_with_self: fault(150),
            commit_twice: fault(150),
            load_stale: fault(150),
            denied: fault(30),
            put_before: fault(80),
            put_after: fault(80),
            get: fault(60),
            delete: fault(150),
            log: fault(100),
            poll_slow: fault(300),
            log_stale: fault(100),
            skew: fault(500),
        };
        let weight = |often: u64| match rng.below(4) {
            0 | 1 => 0,
            2 => often.div_ceil(3),
            _ => often,
        };
        let weights = Weights {
            produce: 30,
            transact: weight(25),
            skip: weight(4),
            delete_records: weight(5),
            compact: weight(6),
            elect: weight(5),
            truncate: weight(2),
            grow: weight(3),
            recreate: weight(2),
            leader: weight(4),
            kill: weight(8),
            stop: weight(4),
            group: weight(8),
            replay: 6 + weight(12),
            maintain: weight(4),
            fault: weight(4),
            deny: weight(2),
            rest: 3,
        };
        let archivers = if rng.chance(350) { 2 } else { 1 };
        let topics = match rng.below(8) {
            0..5 => 1,
            5 | 6 => 2,
            _ => 3,
        };
        Self {
            seed,
            topics: (0..topics)
                .map(|_| i32::try_from(rng.between(1, 4)).unwrap_or(1))
                .collect(),
            archivers,
            is_group: rng.chance(if archivers > 1 { 600 } else { 150 }),
            records_gaps: rng.chance(500),
            commit_interval: *rng
                .pick(&[1, 2, 5, 10].map(Duration::from_secs))
                .unwrap_or(&Duration::from_secs(1)),
            idle_commit_interval: rng.millis(2_000, 60_000),
            memory: if rng.chance(200) { 16 << 20 } else { 64 << 20 },
            batch_rows: usize::try_from(rng.between(1, 40)).unwrap_or(1),
            maintains: rng.chance(300),
            snapshots_kept: usize::try_from(rng.between(2, 8)).unwrap_or(2),
            steps: rng.between(15, 55),
            pause_max: rng.millis(500, 8_000),
            burst: rng.between(1, 30),
            faults,
            weights,
        }
    }
}
