//! What the run loop knows of one topic. No I/O: the loop asks, this answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use everlog_common::{
    Entry, Generation, Identity, Ledger, LogBounds, Millis, Offset, Partition, TopicName,
    TopicPartition,
};
use everlog_table::archive::Archive;
use everlog_table::catalog::LoadedTable;

use crate::accumulator::{Buffer, Cut};
use crate::backoff::Backoff;
use crate::error::{Failure, FailureKind};
use crate::lag::EndHistory;
use crate::recovery::Closing;

/// One topic.
#[derive(Debug, Default)]
pub(super) struct Topic {
    /// The table, once it was opened.
    pub(super) table: Option<(Archive, LoadedTable)>,
    /// Whose offsets are being read.
    pub(super) identity: Option<Identity>,
    /// Their era.
    pub(super) generation: Generation,
    /// What the next commit closes in older eras.
    pub(super) closing: Vec<Closing>,
    /// The newest ledger that was seen.
    pub(super) ledger: Ledger,
    pub(super) snapshot_time: Option<Millis>,
    pub(super) parts: BTreeMap<Partition, Part>,
    /// What runs for this table: never two things at once.
    pub(super) job: Option<JobKind>,
    /// What ran for it last, or runs.
    pub(super) last_job: Option<JobKind>,
    /// Counts how often everything was thrown away; an answer to an older question is void.
    pub(super) era_seen: u64,
    pub(super) retry_at: Duration,
    pub(super) backoff: Backoff,
    /// What recovery was refused, and by nothing else in between.
    pub(super) refusals: Streak,
    pub(super) next_commit: Duration,
    /// Commit what there is as soon as nothing else runs.
    pub(super) flush: bool,
    /// Since when there is something to commit.
    pub(super) dirty_since: Option<Duration>,
    pub(super) pending_bytes: usize,
    pub(super) pending_rows: u64,
    pub(super) flight_bytes: usize,
    /// Nothing of it is read until its commit is through: others need the memory.
    pub(super) is_paused: bool,
    pub(super) failure: Option<Failure>,
    pub(super) missing_since: Option<Duration>,
}

/// How often the same thing went wrong in a row.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Streak(Option<(FailureKind, u32)>);

impl Streak {
    /// Once more; how often by now.
    pub(super) fn count(&mut self, kind: FailureKind) -> u32 {
        let before = match self.0 {
            Some((last, count)) if last == kind => count,
            _ => 0,
        };
        self.0 = Some((kind, before.saturating_add(1)));
        before.saturating_add(1)
    }

    /// Something else happened.
    pub(super) const fn end(&mut self) {
        self.0 = None;
    }
}

/// What runs for a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobKind {
    Prepare,
    Commit,
}

impl JobKind {
    /// What runs next for a table after `last`: a commit, if there is a reason for one, or a recovery of what is wanted.
    ///
    /// They take turns. Where commits take longer than their interval, one is due whenever one has ended, and a partition
    /// that the group gave meanwhile would never be read.
    pub(super) const fn next(
        last: Option<Self>,
        commit: Option<&'static str>,
        is_wanted: bool,
    ) -> Option<(Self, &'static str)> {
        match (last, commit) {
            (Some(Self::Commit), _) | (_, None) if is_wanted => Some((Self::Prepare, "wanted")),
            (_, Some(reason)) => Some((Self::Commit, reason)),
            (_, None) => None,
        }
    }
}

/// One partition that this process owns.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) state: PartState,
    /// Fences in a row without a commit, and since when.
    pub(super) fences: u32,
    pub(super) fenced_since: Option<Duration>,
    /// The reader's faults in a row.
    pub(super) faults: Backoff,
    /// How many of them were of this kind, without another one in between.
    pub(super) same_fault: Streak,
    /// How often in a row the brokers had no answer that it could be recovered from.
    pub(super) retries: Backoff,
    /// How often in a row nobody answered when the logs were looked at.
    pub(super) misses: u32,
    /// The log's stable end with something behind it, and since when it stands there.
    pub(super) stable: Option<(Offset, Duration)>,
    /// Not recovered before.
    pub(super) retry_at: Duration,
    pub(super) ends: EndHistory,
    /// Looks at the log's start: the older one, and its successor.
    pub(super) starts: [Option<(Duration, Offset)>; 2],
}

/// Where a partition stands.
#[derive(Debug, Default)]
pub(super) enum PartState {
    /// To be recovered; nothing is read.
    #[default]
    Wanted,
    /// Being read.
    Reading(Buffer),
    /// The reader gave up: what was read is committed, then it is recovered.
    Draining(Buffer),
    /// Until the process is started again.
    Stopped(Failure),
}

impl Part {
    pub(super) fn wanted(retry_at: Duration) -> Self {
        Self {
            retry_at,
            ..Self::default()
        }
    }

    pub(super) const fn buffer(&self) -> Option<&Buffer> {
        match &self.state {
            PartState::Reading(buffer) | PartState::Draining(buffer) => Some(buffer),
            PartState::Wanted | PartState::Stopped(_) => None,
        }
    }

    pub(super) const fn buffer_mut(&mut self) -> Option<&mut Buffer> {
        match &mut self.state {
            PartState::Reading(buffer) | PartState::Draining(buffer) => Some(buffer),
            PartState::Wanted | PartState::Stopped(_) => None,
        }
    }

    pub(super) const fn is_wanted(&self) -> bool {
        matches!(self.state, PartState::Wanted)
    }

    pub(super) const fn is_reading(&self) -> bool {
        matches!(self.state, PartState::Reading(_))
    }

    pub(super) const fn is_stopped(&self) -> bool {
        matches!(self.state, PartState::Stopped(_))
    }

    /// Counts a fault of the reader; true where so many of its kind in a row are believed.
    pub(super) fn is_believed(&mut self, kind: FailureKind, needed: u32) -> bool {
        self.same_fault.count(kind) >= needed
    }

    /// The reader had a fault that means nothing by itself.
    pub(super) const fn other_fault(&mut self) {
        self.same_fault.end();
    }

    /// It was read and committed: what was wrong before is over.
    pub(super) fn is_well(&mut self) {
        self.faults.reset();
        self.retries.reset();
        self.same_fault.end();
    }

    /// How long the stable end has stood still before records that nobody may read yet: zero where it has not.
    pub(super) fn look_at_end(&mut self, now: Duration, bounds: LogBounds) -> Duration {
        if bounds.high_watermark <= bounds.end {
            self.stable = None;
            return Duration::ZERO;
        }
        match self.stable {
            Some((end, since)) if end == bounds.end => now.saturating_sub(since),
            _ => {
                self.stable = Some((bounds.end, now));
                Duration::ZERO
            }
        }
    }

    /// Keeps two looks at the log's start that lie apart, for its speed.
    pub(super) fn look_at_start(&mut self, now: Duration, log_start: Offset) {
        const APART: Duration = Duration::from_secs(900);
        match self.starts {
            [None, _] => self.starts[0] = Some((now, log_start)),
            [Some((first, _)), None] if now.saturating_sub(first) > APART => {
                self.starts[1] = Some((now, log_start));
            }
            [_, Some((second, at))] if now.saturating_sub(second) > APART => {
                self.starts = [Some((second, at)), Some((now, log_start))];
            }
            _ => {}
        }
    }
}

/// When a table commits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) table_limit: usize,
    pub(super) idle_interval: Duration,
}

impl Topic {
    /// Bytes of rows held for this topic.
    pub(super) const fn held_bytes(&self) -> usize {
        self.pending_bytes + self.flight_bytes
    }

    pub(super) const fn is_dirty(&self) -> bool {
        self.dirty_since.is_some()
    }

    /// Whether nothing of it can ever go on, so that waiting for it is pointless.
    pub(super) fn is_dead(&self) -> bool {
        self.failure.is_some()
            || (!self.parts.is_empty()
                && self.parts.values().all(
                    |p| matches!(&p.state, PartState::Stopped(f) if f.kind != FailureKind::Gap),
                ))
    }

    /// What is being read of it.
    pub(super) fn reading(&self) -> Vec<Partition> {
        self.parts
            .iter()
            .filter(|(_, part)| part.is_reading())
            .map(|(p, _)| *p)
            .collect()
    }

    /// Whether nothing of it may be read now. `is_too_much`: tables whose commits are on their way hold too much of the
    /// memory; then each of them waits for its own commit.
    pub(super) fn must_wait(&self, is_too_much: bool) -> bool {
        self.job == Some(JobKind::Commit) && (is_too_much || self.is_paused)
    }

    /// Something came in.
    pub(super) fn grew(&mut self, now: Duration, bytes: usize, rows: u64) {
        self.pending_bytes += bytes;
        self.pending_rows += rows;
        self.dirty_since.get_or_insert(now);
    }

    /// Counts again, after buffers went.
    pub(super) fn recount(&mut self, now: Duration) {
        let buffers = || self.parts.values().filter_map(Part::buffer);
        self.pending_bytes = buffers().map(Buffer::pending_bytes).sum();
        self.pending_rows = buffers().map(Buffer::pending_rows).sum();
        let is_dirty = buffers().any(|b| !b.is_empty());
        self.dirty_since = is_dirty.then(|| self.dirty_since.unwrap_or(now));
    }

    /// Why a commit is due now; none if it is not.
    pub(super) fn commit_due(&self, now: Duration, rules: Rules) -> Option<&'static str> {
        let since = self.dirty_since?;
        if self.job.is_some() || self.failure.is_some() {
            None
        } else if self.flush {
            Some("flush")
        } else if self.pending_bytes >= rules.table_limit {
            Some("bytes")
        } else if now >= self.next_commit && (self.pending_rows > 0 || self.has_gap()) {
            Some("interval")
        } else if now.saturating_sub(since) >= rules.idle_interval {
            Some("idle")
        } else {
            None
        }
    }

    fn has_gap(&self) -> bool {
        self.parts
            .values()
            .filter_map(Part::buffer)
            .any(Buffer::has_gap)
    }

    /// Everything buffered, for one commit.
    pub(super) fn cut(&mut self) -> Vec<Cut> {
        let cuts: Vec<Cut> = self
            .parts
            .iter_mut()
            .filter_map(|(p, part)| part.buffer_mut()?.cut(*p))
            .collect();
        self.pending_bytes = 0;
        self.pending_rows = 0;
        self.dirty_since = None;
        self.flush = false;
        self.flight_bytes = cuts.iter().map(Cut::bytes).sum();
        cuts
    }

    /// Partitions that may be recovered now.
    pub(super) fn wanted(&self, now: Duration) -> BTreeSet<Partition> {
        self.parts
            .iter()
            .filter(|(_, part)| part.is_wanted() && part.retry_at <= now)
            .map(|(p, _)| *p)
            .collect()
    }

    /// Throws away what was read, also what is stopped: everything is recovered anew. Returns what was being read.
    pub(super) fn make_void(&mut self, now: Duration) -> Vec<Partition> {
        self.era_seen += 1;
        let mut reading = Vec::new();
        for (p, part) in &mut self.parts {
            if part.buffer().is_some() {
                reading.push(*p);
            }
            *part = Part::wanted(now);
        }
        self.recount(now);
        reading
    }

    /// Stops the whole topic.
    pub(super) fn fail(&mut self, now: Duration, failure: Failure) -> Vec<Partition> {
        let reading = self.make_void(now);
        self.failure = Some(failure);
        reading
    }

    /// The ledger's entry of a partition in the topic's era.
    pub(super) fn entry(&self, partition: Partition) -> Option<Entry> {
        self.ledger.entry(self.generation, partition).copied()
    }

    /// Up to where everything is archived, or holds no rows.
    pub(super) fn archived(&self, partition: Partition) -> Option<Offset> {
        let held = self.entry(partition).map(|e| e.next);
        let Some(buffer) = self.parts.get(&partition).and_then(Part::buffer) else {
            return held;
        };
        if buffer.pending_rows() == 0 && !buffer.is_in_flight() && !buffer.has_gap() {
            Some(buffer.position())
        } else {
            held.or_else(|| buffer.base().map(|b| b.next))
        }
    }

    /// Everything that is stopped.
    pub(super) fn failures(&self) -> Vec<Failure> {
        let parts = self.parts.values().filter_map(|p| match &p.state {
            PartState::Stopped(failure) => Some(failure.clone()),
            _ => None,
        });
        self.failure.iter().cloned().chain(parts).collect()
    }
}

/// `partitions` of a topic, by their full names.
pub(super) fn full_names(topic: &TopicName, partitions: &[Partition]) -> Vec<TopicPartition> {
    partitions
        .iter()
        .map(|p| TopicPartition::new(topic.clone(), *p))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(end: i64, high_watermark: i64) -> LogBounds {
        LogBounds {
            log_start: Offset::ZERO,
            end: Offset::new(end).unwrap(),
            high_watermark: Offset::new(high_watermark).unwrap(),
        }
    }

    #[test]
    fn only_faults_of_one_kind_in_a_row_are_believed() {
        let mut part = Part::default();
        for _ in 0..4 {
            assert!(!part.is_believed(FailureKind::Corrupt, 5));
        }
        assert!(!part.is_believed(FailureKind::Denied, 5));
        for _ in 0..4 {
            assert!(!part.is_believed(FailureKind::Corrupt, 5));
        }
        part.other_fault();
        for _ in 0..4 {
            assert!(!part.is_believed(FailureKind::Corrupt, 5));
        }
        assert!(part.is_believed(FailureKind::Corrupt, 5));
    }

    #[test]
    fn a_partition_is_recovered_although_a_commit_is_always_due() {
        use JobKind::{Commit, Prepare};
        let (due, wanted) = (Some((Commit, "interval")), Some((Prepare, "wanted")));
        let mut last = None;
        for expected in [due, wanted, due, wanted] {
            let next = JobKind::next(last, Some("interval"), true);
            assert_eq!(next, expected);
            last = next.map(|(kind, _)| kind);
        }
        for last in [None, Some(Commit), Some(Prepare)] {
            assert_eq!(JobKind::next(last, Some("interval"), false), due);
            assert_eq!(JobKind::next(last, None, true), wanted);
            assert_eq!(JobKind::next(last, None, false), None);
        }
    }

    #[test]
    fn h05_a_stable_end_that_stands_still_before_records_is_timed_and_one_that_moves_is_not() {
        let s = Duration::from_secs;
        let mut part = Part::default();
        assert_eq!(part.look_at_end(s(10), bounds(5, 5)), s(0));
        assert_eq!(part.look_at_end(s(20), bounds(5, 9)), s(0));
        assert_eq!(part.look_at_end(s(50), bounds(5, 12)), s(30));
        assert_eq!(part.look_at_end(s(60), bounds(7, 12)), s(0));
        assert_eq!(part.look_at_end(s(65), bounds(7, 12)), s(5));
        assert_eq!(part.look_at_end(s(70), bounds(12, 12)), s(0));
        assert_eq!(part.look_at_end(s(90), bounds(12, 13)), s(0));
    }

    #[test]
    fn b07_a_table_waits_for_its_own_commit_and_for_nothing_else() {
        let mut topic = Topic::default();
        assert!(!topic.must_wait(true));
        topic.job = Some(JobKind::Prepare);
        assert!(!topic.must_wait(true));
        topic.job = Some(JobKind::Commit);
        assert!(topic.must_wait(true) && !topic.must_wait(false));
        // once paused it stays so until the commit is through: reading on and off would only throw away what was fetched
        topic.is_paused = true;
        assert!(topic.must_wait(false));
        topic.job = None;
        assert!(!topic.must_wait(false));
    }
}
