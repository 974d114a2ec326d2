//! The loop's decisions, as functions of facts: when an epoch ends, which partition is idle, what to read and what to hold.

use std::collections::BTreeMap;
use std::time::Duration;

use everlog_common::Partition;

/// What there is to save, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EpochFacts {
    /// Bytes of changes in this epoch.
    pub(super) changed: usize,
    /// Bytes of rows, late records and dead letters in it.
    pub(super) output: usize,
    /// Time since the epoch began, or since it was last looked who owns the job.
    pub(super) since: Duration,
    /// Whether anything is different from the last epoch: a position, a decision, a row.
    pub(super) dirty: bool,
    /// Whether the epoch before is still being committed.
    pub(super) committing: bool,
    /// Whether all that shall be processed was.
    pub(super) ending: bool,
}

/// When an epoch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EpochRules {
    /// Bytes of changes that one epoch may have.
    pub(super) changed_max: usize,
    /// The same of its output.
    pub(super) output_max: usize,
    /// Time between two.
    pub(super) interval: Duration,
}

/// What to do about the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EpochStep {
    /// Go on with it.
    GoOn,
    /// End it.
    Seal,
    /// It is full, and the one before is still being committed: take nothing more.
    Wait,
    /// There is nothing to save: look whether the job is still this process's.
    CheckOwner,
}

impl EpochRules {
    /// Whether an epoch has as much as it may have.
    pub(super) fn is_full(&self, changed: usize, output: usize) -> bool {
        changed >= self.changed_max || output >= self.output_max
    }

    /// Decides. One epoch at a time is committed, beside the work on the next: so two are held at most.
    pub(super) fn decide(&self, facts: &EpochFacts) -> EpochStep {
        let full = self.is_full(facts.changed, facts.output);
        if facts.committing {
            return if full || facts.ending {
                EpochStep::Wait
            } else {
                EpochStep::GoOn
            };
        }
        let due = facts.since >= self.interval;
        match facts.dirty {
            true if full || due || facts.ending => EpochStep::Seal,
            false if due && !facts.ending => EpochStep::CheckOwner,
            _ => EpochStep::GoOn,
        }
    }
}

/// Since when partitions have had nothing to read, by the process's own clock. It runs only while a partition stands at the
/// end of its log: one that is held back, behind, or of which nothing is known, is not idle.
#[derive(Debug, Default)]
pub(super) struct IdleClocks {
    since: BTreeMap<Partition, Duration>,
}

impl IdleClocks {
    /// A partition is, or is not, at the end of its log.
    pub(super) fn see(&mut self, partition: Partition, at_end: bool, now: Duration) {
        if at_end {
            self.since.entry(partition).or_insert(now);
        } else {
            self.since.remove(&partition);
        }
    }

    /// Records of a partition came.
    pub(super) fn wake(&mut self, partition: Partition) {
        self.since.remove(&partition);
    }

    /// The partitions that have been at their ends for `timeout`, ascending.
    pub(super) fn idle(&self, now: Duration, timeout: Duration) -> Vec<Partition> {
        let idle = |since: &Duration| now.saturating_sub(*since) >= timeout;
        let due = self.since.iter().filter(|(_, since)| idle(since));
        due.map(|(partition, _)| *partition).collect()
    }
}

/// How long after time passed idle partitions it may pass them again. They stay idle, and all that comes elsewhere would
/// let time pass them once more: each time other versions' decisions are read first, and an entry is written.
pub(super) fn between_passes(timeout: Duration) -> Duration {
    (timeout / 4).clamp(Duration::from_millis(100), Duration::from_secs(5))
}

/// Events per second over the last while.
#[derive(Debug, Default)]
pub(super) struct Rate {
    samples: std::collections::VecDeque<(Duration, u64)>,
}

/// What counts as now for a rate.
const RATE_SPAN: Duration = Duration::from_mins(1);
/// Between two samples.
const RATE_STEP: Duration = Duration::from_millis(500);

impl Rate {
    /// So many events had been read at `now`.
    pub(super) fn sample(&mut self, now: Duration, events: u64) {
        let recent = self.samples.back().map(|(at, _)| *at);
        if recent.is_some_and(|at| now < at + RATE_STEP) {
            return;
        }
        self.samples.push_back((now, events));
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| *at + RATE_SPAN <= now)
        {
            self.samples.pop_front();
        }
    }

    /// Events a second.
    pub(super) fn per_second(&self, now: Duration, events: u64) -> f64 {
        let Some((since, before)) = self.samples.front() else {
            return 0.0;
        };
        let span = now.saturating_sub(*since).as_secs_f64();
        if span > 0.0 {
            events.saturating_sub(*before) as f64 / span
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: EpochRules = EpochRules {
        changed_max: 100,
        output_max: 50,
        interval: Duration::from_secs(10),
    };

    fn facts(changed: usize, output: usize, seconds: u64) -> EpochFacts {
        EpochFacts {
            changed,
            output,
            since: Duration::from_secs(seconds),
            dirty: true,
            committing: false,
            ending: false,
        }
    }

    #[test]
    fn an_epoch_ends_when_it_is_full_or_due_or_the_last() {
        assert_eq!(RULES.decide(&facts(99, 49, 9)), EpochStep::GoOn);
        assert_eq!(RULES.decide(&facts(100, 0, 0)), EpochStep::Seal);
        assert_eq!(RULES.decide(&facts(0, 50, 0)), EpochStep::Seal);
        assert_eq!(RULES.decide(&facts(0, 0, 10)), EpochStep::Seal);
        let last = EpochFacts {
            ending: true,
            ..facts(0, 0, 0)
        };
        assert_eq!(RULES.decide(&last), EpochStep::Seal);
    }

    #[test]
    fn a_quiet_job_only_looks_whether_it_is_still_its_own() {
        let quiet = |seconds, ending| {
            RULES.decide(&EpochFacts {
                dirty: false,
                ending,
                ..facts(0, 0, seconds)
            })
        };
        assert_eq!(quiet(9, false), EpochStep::GoOn);
        assert_eq!(quiet(10, false), EpochStep::CheckOwner);
        assert_eq!(quiet(10, true), EpochStep::GoOn);
    }

    proptest! {
        /// However facts fall: never two commits at a time, and nothing is taken beyond a full epoch.
        #[test]
        fn at_most_two_epochs_are_held(changed in 0_usize..200, output in 0_usize..100, seconds in 0_u64..20, dirty: bool, committing: bool, ending: bool) {
            let facts = EpochFacts { dirty, committing, ending, ..facts(changed, output, seconds) };
            let step = RULES.decide(&facts);
            if committing {
                prop_assert!(matches!(step, EpochStep::GoOn | EpochStep::Wait));
                prop_assert_eq!(step == EpochStep::Wait, RULES.is_full(changed, output) || ending);
            } else if dirty && RULES.is_full(changed, output) {
                prop_assert_eq!(step, EpochStep::Seal);
            }
        }
    }

    #[test]
    fn the_idle_clock_runs_only_at_the_end() {
        let p = |n| Partition::new(n).unwrap();
        let s = Duration::from_secs;
        let mut clocks = IdleClocks::default();
        clocks.see(p(0), true, s(0));
        clocks.see(p(1), true, s(0));
        clocks.see(p(2), false, s(0));
        clocks.see(p(1), false, s(3)); // something came to the log
        clocks.see(p(1), true, s(4));
        clocks.see(p(0), true, s(4));
        assert_eq!(clocks.idle(s(5), s(5)), [p(0)]);
        assert_eq!(clocks.idle(s(9), s(5)), [p(0), p(1)]);
        clocks.wake(p(0));
        assert_eq!(clocks.idle(s(9), s(5)), [p(1)]);
    }

    #[test]
    fn time_passes_idle_partitions_now_and_then() {
        let s = Duration::from_secs;
        assert_eq!(between_passes(s(1)), Duration::from_millis(250));
        assert_eq!(between_passes(s(3_600)), s(5));
        assert_eq!(between_passes(Duration::ZERO), Duration::from_millis(100));
    }

    #[test]
    fn a_rate_is_of_the_last_minute() {
        let mut rate = Rate::default();
        for second in 0..200 {
            let events = if second < 100 { 10 * second } else { 1_000 };
            rate.sample(Duration::from_secs(second), events);
        }
        assert!(rate.per_second(Duration::from_secs(200), 1_000) < 0.001);
        let mut rate = Rate::default();
        for second in 0..10 {
            rate.sample(Duration::from_secs(second), 7 * second);
        }
        assert!((rate.per_second(Duration::from_secs(10), 70) - 7.0).abs() < 0.001);
    }
}
