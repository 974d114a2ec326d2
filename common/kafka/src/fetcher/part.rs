//! One assigned partition: what it needs next, and what an answer means for it. Pure.
//!
//! ```text
//!   assigned ─► Leader? ─► Check (KIP-320: does the log still hold what was read before?) ─► Fetch ─► Fetch …
//!                  ▲            the leader changed, or refused, or its connection broke          │
//!                  └─────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants
//! - F1 Nothing is fetched of a leader's epoch before the position was checked against the log of that epoch, where an epoch
//!   of the record before it is known: a fetch names its epoch, and the broker refuses when it is another.
//! - F2 The topic's id, once heard, does not change: another id is another log, and a fault.
//! - F3 A dead partition needs nothing any more.

use std::time::{Duration, Instant};

use everlog_common::Offset;
use kafka_protocol::ResponseError;
use uuid::Uuid;

use crate::{PartitionFault, StartAt};

/// Between attempts of one partition, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// So many answers in a row that contradict themselves are damage.
const BEYOND_MAX: u8 = 3;

/// Who leads a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leader {
    pub(super) node: i32,
    /// None of clusters that do not say it.
    pub(super) epoch: Option<i32>,
}

/// What a partition needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: dead, paused, or under way.
    Nothing,
    /// To wait.
    Until(Instant),
    /// To hear who leads it.
    Leader,
    /// To be asked of this node where an epoch ended.
    Check(i32),
    /// To be fetched from this node.
    Fetch(i32),
}

/// What metadata say of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) topic_id: Option<Uuid>,
    pub(super) leader: Option<Leader>,
}

/// What a batch that was taken tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    /// The epoch in which it was written, where it says one.
    pub(super) epoch: Option<i32>,
    /// Who sent it.
    pub(super) leader: Leader,
}

/// What follows from an error code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// Ask who leads it, and try again.
    AskAgain,
    Fault(PartitionFault),
}

#[derive(Debug)]
pub(super) struct Part {
    /// Which assignment it is: what was fetched for another one is not taken.
    pub(super) id: u64,
    /// The next offset to fetch; rows below are handed over.
    pub(super) next: i64,
    /// The epoch of the last record before `next`, where known.
    last_epoch: Option<i32>,
    pub(super) topic_id: Option<Uuid>,
    leader: Option<Leader>,
    /// The leader whose log is known to hold everything before `next`: it sent it, or said so.
    checked: Option<Leader>,
    /// The newest epoch that was heard of.
    newest: Option<i32>,
    not_before: Option<Instant>,
    tries: u32,
    /// Answers in a row that went on beyond the end that they named.
    beyond: u8,
    pub(super) paused: bool,
    /// A request is under way.
    pub(super) busy: bool,
    pub(super) dead: bool,
    /// Its fault waits for the caller, or was taken: there is one for each assignment.
    pub(super) told_fault: bool,
}

impl Part {
    pub(super) fn new(id: u64, start: StartAt) -> Self {
        Self {
            id,
            next: start.offset.get(),
            last_epoch: start.leader_epoch.filter(|_| start.offset > Offset::ZERO),
            topic_id: None,
            leader: None,
            checked: None,
            newest: None,
            not_before: None,
            tries: 0,
            beyond: 0,
            paused: false,
            busy: false,
            dead: false,
            told_fault: false,
        }
    }

    pub(super) fn need(&self, now: Instant) -> Need {
        if self.dead || self.paused || self.busy {
            return Need::Nothing;
        }
        if let Some(at) = self.not_before
            && at > now
        {
            return Need::Until(at);
        }
        match self.leader {
            None => Need::Leader,
            Some(leader) if self.last_epoch.is_some() && self.checked != Some(leader) => {
                Need::Check(leader.node)
            }
            Some(leader) => Need::Fetch(leader.node),
        }
    }

    pub(super) fn leader(&self) -> Option<Leader> {
        self.leader
    }

    /// The epoch to name in requests; -1 where there is none.
    pub(super) fn leader_epoch(&self) -> i32 {
        self.leader.and_then(|leader| leader.epoch).unwrap_or(-1)
    }

    /// The epoch whose end is to be asked for.
    pub(super) fn epoch_to_check(&self) -> i32 {
        self.last_epoch.unwrap_or(-1)
    }

    /// Metadata came. With a leader it is tried again at once.
    pub(super) fn heard(&mut self, heard: Heard, now: Instant) -> Option<PartitionFault> {
        if let (Some(known), Some(id)) = (self.topic_id, heard.topic_id)
            && known != id
        {
            self.dead = true;
            let what = "the topic was deleted, and created again".to_owned();
            return Some(PartitionFault::Gone(what));
        }
        self.topic_id = self.topic_id.or(heard.topic_id);
        // Brokers hear of a new leader at different times: one that is behind does not undo what another said. (Without an
        // id, an older epoch may be another topic's.)
        let epoch = heard.leader.and_then(|leader| leader.epoch);
        let outdated = self.topic_id.is_some() && epoch.is_some() && epoch < self.newest;
        match heard.leader.filter(|_| !outdated) {
            Some(leader) => {
                self.leader = Some(leader);
                self.newest = epoch;
            }
            None if self.leader.is_none() => self.ask_again(now),
            // whoever leads it will say so when it is asked
            None => {}
        }
        None
    }

    /// Whoever led it is asked no more, until metadata name a leader.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.leader = None;
        let wait = BACKOFF.0.saturating_mul(1 << self.tries.min(10));
        self.tries = self.tries.saturating_add(1);
        self.not_before = Some(now + wait.min(BACKOFF.1));
    }

    /// The epoch of the last record ended at `end`, by a leader of `epoch` (both as the broker says them, -1 for none).
    pub(super) fn heard_epoch_end(&mut self, leader: Leader, epoch: i32, end: i64) -> Verdict {
        if end < 0 || epoch < 0 {
            return self.dies(PartitionFault::Truncated(format!(
                "the leader knows no epoch as old as {}, of which the record before offset {} was",
                self.epoch_to_check(),
                self.next
            )));
        }
        if end < self.next {
            return self.dies(PartitionFault::Truncated(format!(
                "epoch {} ended at offset {end} in the leader's log, and the next offset to read is {}",
                self.epoch_to_check(),
                self.next
            )));
        }
        self.checked = Some(leader);
        self.tries = 0;
        Verdict::Fine
    }

    /// Its broker is too old to say where epochs end: nothing is known but the offset.
    pub(super) fn is_checked_by(&mut self, leader: Leader) {
        self.checked = Some(leader);
    }

    fn dies(&mut self, fault: PartitionFault) -> Verdict {
        self.dead = true;
        Verdict::Fault(fault)
    }

    /// What a partition's error code means.
    pub(super) fn judge(&mut self, code: i16, now: Instant) -> Verdict {
        let verdict = judge(code, self.next);
        match &verdict {
            Verdict::Fine => self.tries = 0,
            Verdict::AskAgain => self.ask_again(now),
            Verdict::Fault(_) => self.dead = true,
        }
        verdict
    }

    /// The log up to `next` was taken, as `passed` says where that was more than nothing.
    pub(super) fn advance(&mut self, next: i64, passed: Option<Passed>) {
        self.next = self.next.max(next);
        self.beyond = 0;
        if let Some(Passed { epoch, leader }) = passed {
            // none too: what an older epoch's end is says nothing of batches that have none
            self.last_epoch = epoch;
            // what a leader sent needs no check against its log, and one against every other's: also that of a leader that
            // was heard of meanwhile
            self.checked = Some(leader);
        }
    }

    /// An answer went on beyond the end of the log that it named, with a hole before. Whether that was too often: a broker
    /// may have read a little later than it looked.
    pub(super) fn goes_beyond(&mut self, now: Instant) -> bool {
        self.beyond += 1;
        self.ask_again(now);
        self.beyond >= BEYOND_MAX
    }
}

fn judge(code: i16, next: i64) -> Verdict {
    use ResponseError as E;
    let Some(error) = E::try_from_code(code) else {
        return Verdict::Fine;
    };
    Verdict::Fault(match error {
        // a leader that moves, starts or has not heard of something yet
        E::UnknownTopicOrPartition
        | E::UnknownTopicId
        | E::InconsistentTopicId
        | E::LeaderNotAvailable
        | E::BrokerNotAvailable
        | E::NotLeaderOrFollower
        | E::ReplicaNotAvailable
        | E::FencedLeaderEpoch
        | E::UnknownLeaderEpoch
        | E::OffsetNotAvailable
        | E::KafkaStorageError
        | E::RequestTimedOut
        | E::NetworkException => return Verdict::AskAgain,
        E::OffsetOutOfRange => PartitionFault::OutOfRange {
            offset: Offset::new(next).ok(),
            detail: format!("the leader's log does not hold offset {next}"),
        },
        E::TopicAuthorizationFailed | E::ClusterAuthorizationFailed => {
            PartitionFault::Denied(format!("{error}"))
        }
        E::CorruptMessage | E::InvalidRecord | E::UnsupportedCompressionType => {
            PartitionFault::Corrupt(format!("the broker says: {error}"))
        }
        _ => PartitionFault::Other(format!("the broker says: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(offset: i64, epoch: Option<i32>) -> Part {
        let start = StartAt {
            offset: Offset::new(offset).unwrap(),
            leader_epoch: epoch,
        };
        Part::new(1, start)
    }

    fn led(node: i32, epoch: i32) -> Leader {
        Leader {
            node,
            epoch: Some(epoch),
        }
    }

    const fn heard(leader: Option<Leader>, id: u128) -> Heard {
        Heard {
            topic_id: Some(Uuid::from_u128(id)),
            leader,
        }
    }

    /// A log as its leaders have it: epochs with their first offsets.
    fn end_of(epochs: &[(i32, i64)], log_end: i64, asked: i32) -> (i32, i64) {
        let Some(at) = epochs.iter().rposition(|(epoch, _)| *epoch <= asked) else {
            return (-1, -1);
        };
        (
            epochs[at].0,
            epochs.get(at + 1).map_or(log_end, |(_, from)| *from),
        )
    }

    #[derive(Debug)]
    enum Coming {
        Code(i16),
        End(Leader, i32, i64),
        Rows(Leader, Vec<(i32, u64)>),
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A new leader; the log is cut to this part (in percent) of what was not read yet, or of all where `unclean`.
        Elect {
            node: i32,
            unclean: bool,
            keep: i64,
        },
        Append(i64),
        Metadata,
        Refused(i16),
        Broken,
        Pause,
        Resume,
        /// A request goes out, and the broker's answer is on its way.
        Ask,
        /// It comes.
        Answer,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3, any::<bool>(), 0_i64..=100).prop_map(|(node, unclean, keep)| Step::Elect {
                node,
                unclean,
                keep
            }),
            (1_i64..20).prop_map(Step::Append),
            Just(Step::Metadata),
            // moving, fenced, starting, failing
            prop::sample::select(&[3_i16, 5, 6, 56, 74, 75, 78, 100][..]).prop_map(Step::Refused),
            Just(Step::Broken),
            Just(Step::Pause),
            Just(Step::Resume),
            Just(Step::Ask),
            Just(Step::Ask),
            Just(Step::Answer),
            Just(Step::Answer),
        ]
    }

    proptest! {
        /// h10, h11: however leaders move and logs are cut, what is read is one log without a hole, or the reader says that it
        /// was cut: never a record of another history than the one before it.
        #[test]
        fn nothing_is_read_on_from_another_history(steps in prop::collection::vec(step(), 1..80), start in 0_i64..10) {
            // each record is the epoch that wrote it and a number of its own
            let mut log: Vec<(i32, u64)> = (0..10).map(|n| (0, n)).collect();
            let mut epochs = vec![(0, 0_i64)];
            let mut leader = led(0, 0);
            let mut stamp = 100;
            let mut now = Instant::now();
            let index = |n: i64| usize::try_from(n).unwrap();
            // what was read before: that log as it was
            let mut read: Vec<(i32, u64)> = log[..index(start)].to_vec();
            let mut part = part(start, (start > 0).then_some(0));
            let mut under_way = None;
            for step in steps {
                now += Duration::from_secs(3);
                match step {
                    Step::Elect { node, unclean, keep } => {
                        let end = i64::try_from(log.len()).unwrap();
                        let safe = if unclean { 0 } else { part.next };
                        let cut = safe + (end - safe).max(0) * keep / 100;
                        log.truncate(index(cut));
                        epochs.retain(|(_, from)| *from <= cut);
                        leader = led(node, leader.epoch.unwrap() + 1);
                        epochs.retain(|(_, from)| *from < cut);
                        epochs.push((leader.epoch.unwrap(), cut));
                    }
                    Step::Append(count) => for _ in 0..count {
                        stamp += 1;
                        log.push((leader.epoch.unwrap(), stamp));
                    },
                    Step::Metadata => { part.heard(heard(Some(leader), 1), now); }
                    Step::Refused(code) => if !part.dead && under_way.take().is_some() {
                        part.busy = false;
                        prop_assert_eq!(part.judge(code, now), Verdict::AskAgain);
                    },
                    Step::Broken => if !part.dead && under_way.take().is_some() {
                        part.busy = false;
                        part.ask_again(now);
                    },
                    Step::Pause => part.paused = true,
                    Step::Resume => part.paused = false,
                    Step::Ask => match part.need(now) {
                        Need::Nothing => prop_assert!(part.dead || part.paused || part.busy),
                        Need::Until(at) => prop_assert!(at > now),
                        Need::Leader => { part.heard(heard(Some(leader), 1), now); }
                        need @ (Need::Check(_) | Need::Fetch(_)) => {
                            let asked = part.leader().unwrap();
                            let end = i64::try_from(log.len()).unwrap();
                            part.busy = true;
                            // the broker refuses what names another epoch than its own, or is asked of another broker
                            under_way = Some(if asked != leader {
                                Coming::Code(ResponseError::FencedLeaderEpoch.code())
                            } else if matches!(need, Need::Check(_)) {
                                let (epoch, end) = end_of(&epochs, end, part.epoch_to_check());
                                Coming::End(asked, epoch, end)
                            } else if part.next > end {
                                Coming::Code(ResponseError::OffsetOutOfRange.code())
                            } else {
                                // what was read is the front of this leader's log
                                prop_assert_eq!(&read[..], &log[..read.len()]);
                                let to = (part.next + 3).min(end);
                                Coming::Rows(asked, log[index(part.next)..index(to)].to_vec())
                            });
                        }
                    },
                    Step::Answer => if let Some(coming) = under_way.take() {
                        part.busy = false;
                        if part.dead {
                            continue;
                        }
                        match coming {
                            Coming::Code(code) => { part.judge(code, now); }
                            Coming::End(asked, epoch, end) => { part.heard_epoch_end(asked, epoch, end); }
                            Coming::Rows(leader, rows) => {
                                prop_assert_eq!(part.judge(0, now), Verdict::Fine);
                                read.extend(&rows);
                                let next = part.next + i64::try_from(rows.len()).unwrap();
                                let passed = rows.last().map(|(epoch, _)| Passed { epoch: Some(*epoch), leader });
                                part.advance(next, passed);
                            }
                        }
                    },
                }
                if part.dead {
                    prop_assert_eq!(part.need(now), Need::Nothing);
                }
            }
        }
    }

    #[test]
    fn h12_another_id_is_another_log() {
        let now = Instant::now();
        let mut part = part(0, None);
        assert_eq!(part.heard(heard(Some(led(1, 0)), 7), now), None);
        assert_eq!(part.need(now), Need::Fetch(1));
        let fault = part.heard(heard(Some(led(1, 0)), 8), now);
        assert!(matches!(fault, Some(PartitionFault::Gone(_))));
        assert_eq!(part.need(now), Need::Nothing);
    }

    #[test]
    fn h11_a_broker_that_is_behind_does_not_undo_an_election() {
        let now = Instant::now();
        let mut part = part(0, None);
        part.heard(heard(Some(led(1, 5)), 7), now);
        part.judge(ResponseError::NotLeaderOrFollower.code(), now);
        let later = now + BACKOFF.1;
        part.heard(heard(Some(led(2, 6)), 7), later);
        assert_eq!(part.need(later), Need::Fetch(2));
        part.ask_again(later);
        part.heard(heard(Some(led(1, 5)), 7), later);
        assert_eq!(part.leader(), None);
    }

    #[test]
    fn attempts_are_paced_and_the_pace_is_forgotten_by_success() {
        let mut now = Instant::now();
        let mut part = part(0, None);
        let mut waits = Vec::new();
        for _ in 0..8 {
            part.ask_again(now);
            let Need::Until(at) = part.need(now) else {
                panic!("it waits")
            };
            waits.push((at - now).as_millis());
            now = at;
            assert_eq!(part.need(now), Need::Leader);
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        part.heard(heard(Some(led(0, 0)), 1), now);
        assert_eq!(part.judge(0, now), Verdict::Fine);
        part.ask_again(now);
        assert_eq!(part.need(now), Need::Until(now + BACKOFF.0));
    }

    #[test]
    fn codes_mean_what_the_protocol_says() {
        let of = |error: ResponseError| judge(error.code(), 42);
        assert_eq!(judge(0, 0), Verdict::Fine);
        assert_eq!(of(ResponseError::UnknownTopicId), Verdict::AskAgain);
        assert_eq!(of(ResponseError::KafkaStorageError), Verdict::AskAgain);
        let Verdict::Fault(PartitionFault::OutOfRange { offset, .. }) =
            of(ResponseError::OffsetOutOfRange)
        else {
            panic!("a fault");
        };
        assert_eq!(offset.map(Offset::get), Some(42));
        for (error, words) in [
            (ResponseError::TopicAuthorizationFailed, "not allowed"),
            (ResponseError::CorruptMessage, "corrupt"),
            (ResponseError::UnknownServerError, "the broker says"),
            (ResponseError::Unknown(4711), "4711"),
        ] {
            let Verdict::Fault(fault) = of(error) else {
                panic!("a fault")
            };
            assert!(fault.to_string().contains(words), "{fault}");
        }
    }
}
