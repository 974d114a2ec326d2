//! `--until-caught-up`: which end every partition has to reach, and whether it has. No I/O.
//!
//! The end is the last stable offset as it was at the start, and the *ledger* must have reached it: a position that
//! only passed control records counts once it is committed.

use std::collections::BTreeMap;

use everlog_common::{Identity, LogBounds, Offset, Partition, TopicName, TopicPartition};

use super::topic::{Part, Topic};

/// What one partition has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    log_start: Offset,
    end: Offset,
}

/// Where a partition stands with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Still to be read.
    Reading,
    /// Read, not committed.
    Read,
    /// In the ledger, or never going to be.
    Done,
}

/// The ends of one incarnation of a topic: those of another one say nothing about it.
#[derive(Debug)]
struct Ends {
    identity: Identity,
    /// None: no broker has told yet.
    partitions: BTreeMap<Partition, Option<Target>>,
}

/// What all partitions have to reach.
#[derive(Debug, Default)]
pub(super) struct CaughtUp {
    topics: BTreeMap<TopicName, Ends>,
    is_set: bool,
}

/// A look at the ends.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Which incarnations were there, with all of their partitions.
    pub(super) topics: BTreeMap<TopicName, (Identity, Vec<Partition>)>,
    /// The ends of those that answered.
    pub(super) bounds: BTreeMap<TopicPartition, LogBounds>,
}

impl CaughtUp {
    /// Takes the ends that were seen at the start; at a later look only those that were not told before. Whether all of
    /// them are known now.
    pub(super) fn set(&mut self, seen: &Seen) -> bool {
        let is_first = !std::mem::replace(&mut self.is_set, true);
        for (name, (identity, partitions)) in &seen.topics {
            if is_first {
                self.topics.insert(
                    name.clone(),
                    Ends {
                        identity: identity.clone(),
                        partitions: partitions.iter().map(|p| (*p, None)).collect(),
                    },
                );
            }
            let Some(ends) = self.topics.get_mut(name) else {
                continue;
            };
            if !ends.identity.agrees(identity) {
                continue;
            }
            for (p, target) in &mut ends.partitions {
                let tp = TopicPartition::new(name.clone(), *p);
                if target.is_none() {
                    *target = seen.bounds.get(&tp).map(Target::of);
                }
            }
        }
        self.topics
            .values()
            .all(|ends| ends.partitions.values().all(Option::is_some))
    }

    /// Whether ends were seen at all.
    pub(super) const fn is_set(&self) -> bool {
        self.is_set
    }

    /// Takes the ends of another incarnation of a topic, all of them: partitions that are not among them are no more.
    pub(super) fn renew(
        &mut self,
        topic: &TopicName,
        identity: &Identity,
        bounds: &BTreeMap<TopicPartition, LogBounds>,
    ) {
        if let Some(ends) = self.topics.get_mut(topic) {
            *ends = Ends {
                identity: identity.clone(),
                partitions: bounds
                    .iter()
                    .map(|(tp, b)| (tp.partition, Some(Target::of(b))))
                    .collect(),
            };
        }
    }

    /// Which incarnation of a topic the ends are of.
    pub(super) fn identity(&self, topic: &TopicName) -> Option<&Identity> {
        self.topics.get(topic).map(|ends| &ends.identity)
    }

    /// Whether a topic is another one than its ends are of.
    pub(super) fn wants_ends(&self, name: &TopicName, topic: &Topic) -> bool {
        match (self.identity(name), &topic.identity) {
            (Some(of), Some(now)) => !of.agrees(now),
            _ => false,
        }
    }

    /// A topic that is not there any more has no end.
    pub(super) fn forget(&mut self, topic: &TopicName) {
        self.topics.remove(topic);
    }

    /// The topics that have ends.
    pub(super) fn topics(&self) -> impl Iterator<Item = &TopicName> {
        self.topics.keys()
    }

    fn progress(
        &self,
        name: &TopicName,
        topic: Option<&Topic>,
    ) -> impl Iterator<Item = (Partition, Progress)> {
        self.topics.get(name).into_iter().flat_map(move |ends| {
            ends.partitions.iter().map(move |(p, target)| {
                let progress = topic.map_or(Progress::Reading, |t| of(t, *p, ends, *target));
                (*p, progress)
            })
        })
    }

    /// Whether every partition of every topic is done.
    pub(super) fn is_done(&self, topics: &BTreeMap<TopicName, Topic>) -> bool {
        self.is_set
            && self.topics.keys().all(|name| {
                self.progress(name, topics.get(name))
                    .all(|(_, p)| p == Progress::Done)
            })
    }

    /// Whether a topic has read everything that this process owns of it, and some of it is not in the ledger.
    pub(super) fn wants_flush(&self, name: &TopicName, topic: &Topic) -> bool {
        let mut any_read = false;
        for (p, progress) in self.progress(name, Some(topic)) {
            match progress {
                Progress::Reading if topic.parts.contains_key(&p) => return false,
                Progress::Read => any_read = true,
                Progress::Reading | Progress::Done => {}
            }
        }
        any_read
    }

    /// Whether a topic waits only for partitions that somebody else owns, so that only the table can tell.
    pub(super) fn waits_for_others(&self, name: &TopicName, topic: &Topic) -> bool {
        let mut others = false;
        for (p, progress) in self.progress(name, Some(topic)) {
            if progress != Progress::Done {
                if topic.parts.contains_key(&p) {
                    return false;
                }
                others = true;
            }
        }
        others
    }
}

impl Target {
    fn of(bounds: &LogBounds) -> Self {
        Self {
            log_start: bounds.log_start,
            end: bounds.end,
        }
    }
}

fn of(topic: &Topic, partition: Partition, ends: &Ends, target: Option<Target>) -> Progress {
    let part = topic.parts.get(&partition);
    if topic.failure.is_some() || part.is_some_and(Part::is_stopped) {
        return Progress::Done;
    }
    let is_that_one = topic
        .identity
        .as_ref()
        .is_some_and(|identity| identity.agrees(&ends.identity));
    let Some(target) = target.filter(|_| is_that_one) else {
        return Progress::Reading;
    };
    match topic.entry(partition) {
        Some(entry) if entry.next >= target.end => return Progress::Done,
        // nothing in it, and nothing to say of it
        None if target.log_start >= target.end => return Progress::Done,
        _ => {}
    }
    match part.and_then(Part::buffer) {
        Some(buffer) if buffer.position() >= target.end => {
            // retention took all of it meanwhile, before anything was archived
            if buffer.is_settled() && buffer.base().is_none() {
                Progress::Done
            } else {
                Progress::Read
            }
        }
        _ => Progress::Reading,
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::ledger::GenerationLedger;
    use everlog_common::{Entry, EventColumns, Generation, OffsetRange, TopicId};

    use super::super::topic::PartState;
    use super::*;
    use crate::accumulator::Buffer;
    use crate::recovery::Start;

    fn o(v: i64) -> Offset {
        Offset::new(v).unwrap()
    }

    fn p(v: i32) -> Partition {
        Partition::new(v).unwrap()
    }

    fn name() -> TopicName {
        TopicName::new("t").unwrap()
    }

    fn identity(n: u128) -> Identity {
        Identity {
            cluster_id: None,
            topic_id: Some(TopicId(uuid::Uuid::from_u128(n))),
        }
    }

    /// Partition, log start, end; a negative end is one that was not told.
    fn seen(ends: &[(i32, i64, i64)]) -> Seen {
        let bounds = ends
            .iter()
            .filter(|(_, _, end)| *end >= 0)
            .map(|(n, start, end)| {
                let b = LogBounds {
                    log_start: o(*start),
                    end: o(*end),
                    high_watermark: o(*end),
                    leader_epoch: None,
                };
                (TopicPartition::new(name(), p(*n)), b)
            })
            .collect();
        let partitions = ends.iter().map(|(n, ..)| p(*n)).collect();
        Seen {
            topics: BTreeMap::from([(name(), (identity(1), partitions))]),
            bounds,
        }
    }

    fn targets(ends: &[(i32, i64, i64)]) -> CaughtUp {
        let mut caught_up = CaughtUp::default();
        caught_up.set(&seen(ends));
        caught_up
    }

    fn topic(next: Option<i64>, position: i64) -> Topic {
        let mut topic = Topic {
            identity: Some(identity(1)),
            ..Topic::default()
        };
        let entry = next.map(|next| Entry {
            first: o(0),
            next: o(next),
            leader_epoch: None,
            rows: 0,
            hash: 0,
        });
        if let Some(entry) = entry {
            let era = GenerationLedger {
                identity: Identity::default(),
                partitions: BTreeMap::from([(p(0), entry)]),
            };
            topic.ledger.generations.insert(Generation(0), era);
        }
        let from = next.unwrap_or(0);
        let mut buffer = Buffer::new(&Start {
            offset: o(from),
            leader_epoch: None,
            base: entry,
            began_under: None,
            gap: None,
        });
        if position > from {
            let range = OffsetRange::new(o(from), o(position)).unwrap();
            buffer.accept(range, EventColumns::empty()).unwrap();
        }
        assert_eq!(buffer.is_settled(), position == from);
        let part = Part {
            state: PartState::Reading(buffer),
            ..Part::default()
        };
        topic.parts.insert(p(0), part);
        topic
    }

    fn is_done(caught_up: &CaughtUp, topic: Topic) -> bool {
        caught_up.is_done(&BTreeMap::from([(name(), topic)]))
    }

    #[test]
    fn h03_control_records_at_the_end_count_once_they_are_in_the_ledger() {
        let caught_up = targets(&[(0, 0, 13)]);
        let read = topic(Some(11), 13);
        assert!(caught_up.wants_flush(&name(), &read));
        assert!(!is_done(&caught_up, read));
        assert!(is_done(&caught_up, topic(Some(13), 13)));
        let behind = topic(Some(11), 12);
        assert!(!caught_up.wants_flush(&name(), &behind) && !is_done(&caught_up, behind));
    }

    #[test]
    fn an_empty_partition_is_done_without_a_word_in_the_ledger() {
        assert!(is_done(&targets(&[(0, 0, 0)]), topic(None, 0)));
        assert!(is_done(&targets(&[(0, 40, 40)]), topic(None, 0)));
        assert!(!is_done(&targets(&[(0, 0, 5)]), topic(None, 0)));
    }

    #[test]
    fn a_partition_that_somebody_else_owns_is_done_when_the_table_says_so() {
        let caught_up = targets(&[(0, 0, 5), (1, 0, 5)]);
        let mine = topic(Some(5), 5);
        assert!(caught_up.waits_for_others(&name(), &mine));
        assert!(!is_done(&caught_up, mine));
        let busy = topic(Some(4), 5);
        assert!(!caught_up.waits_for_others(&name(), &busy));
        assert!(caught_up.wants_flush(&name(), &busy));
    }

    #[test]
    fn h12_another_incarnation_runs_to_its_own_ends_and_partitions_that_are_no_more_hold_nobody() {
        let mut caught_up = targets(&[(0, 0, 1000), (1, 0, 1000)]);
        let mut other = topic(Some(5), 5);
        other.identity = Some(identity(2));
        assert!(caught_up.wants_ends(&name(), &other));
        // what it has reached says nothing while its ends are not known
        let far = {
            let mut far = topic(Some(5000), 5000);
            far.identity = Some(identity(2));
            far
        };
        assert!(!is_done(&caught_up, far));
        let ends = seen(&[(0, 0, 5)]);
        caught_up.renew(&name(), &identity(2), &ends.bounds);
        assert!(!caught_up.wants_ends(&name(), &other));
        assert!(is_done(&caught_up, other));
        // and the ends of the one before are not taken for it
        caught_up.set(&targets_of(1));
        let mut still = topic(Some(5), 5);
        still.identity = Some(identity(2));
        assert!(is_done(&caught_up, still));
    }

    fn targets_of(n: u128) -> Seen {
        let mut seen = seen(&[(0, 0, 1000)]);
        seen.topics.get_mut(&name()).unwrap().0 = identity(n);
        seen
    }

    #[test]
    fn a_partition_whose_end_nobody_told_is_waited_for_and_the_others_keep_theirs() {
        let mut caught_up = CaughtUp::default();
        assert!(!caught_up.set(&seen(&[(0, 0, -1)])));
        assert!(!is_done(&caught_up, topic(Some(5), 5)));
        assert!(caught_up.set(&seen(&[(0, 0, 5)])));
        assert!(is_done(&caught_up, topic(Some(5), 5)));
        // the log goes on; the end does not
        assert!(caught_up.set(&seen(&[(0, 0, 9)])));
        assert!(is_done(&caught_up, topic(Some(5), 5)));
    }

    #[test]
    fn nothing_is_done_before_the_ends_are_known() {
        assert!(!CaughtUp::default().is_done(&BTreeMap::new()));
        assert!(targets(&[]).is_done(&BTreeMap::new()));
        assert!(!targets(&[(0, 0, 5)]).is_done(&BTreeMap::new()));
    }
}
