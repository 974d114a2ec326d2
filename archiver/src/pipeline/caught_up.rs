//! `--until-caught-up`: which end every partition has to reach, and whether it has. No I/O.
//!
//! The end is the last stable offset as it was at the start, and the *ledger* must have reached it: a position that
//! only passed control records counts once it is committed.

use std::collections::BTreeMap;

use everlog_common::{LogBounds, Offset, Partition, TopicName, TopicPartition};

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

/// What all partitions have to reach.
#[derive(Debug, Default)]
pub(super) struct CaughtUp {
    targets: BTreeMap<TopicName, BTreeMap<Partition, Target>>,
    is_set: bool,
}

impl CaughtUp {
    /// Takes the ends that were seen at the start.
    pub(super) fn set(&mut self, bounds: &BTreeMap<TopicPartition, LogBounds>) {
        self.is_set = true;
        for (tp, b) in bounds {
            self.replace(&tp.topic, tp.partition, b);
        }
    }

    /// Takes another end for a partition, since its topic is another one now.
    pub(super) fn replace(&mut self, topic: &TopicName, partition: Partition, bounds: &LogBounds) {
        let target = Target {
            log_start: bounds.log_start,
            end: bounds.end,
        };
        self.targets
            .entry(topic.clone())
            .or_default()
            .insert(partition, target);
    }

    /// A topic that is not there any more has no end.
    pub(super) fn forget(&mut self, topic: &TopicName) {
        self.targets.remove(topic);
    }

    /// The topics that have ends.
    pub(super) fn topics(&self) -> impl Iterator<Item = &TopicName> {
        self.targets.keys()
    }

    fn progress(
        &self,
        name: &TopicName,
        topic: Option<&Topic>,
    ) -> impl Iterator<Item = (Partition, Progress)> {
        let targets = self.targets.get(name).into_iter().flatten();
        targets
            .map(move |(p, target)| (*p, topic.map_or(Progress::Reading, |t| of(t, *p, *target))))
    }

    /// Whether every partition of every topic is done.
    pub(super) fn is_done(&self, topics: &BTreeMap<TopicName, Topic>) -> bool {
        self.is_set
            && self.targets.keys().all(|name| {
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

fn of(topic: &Topic, partition: Partition, target: Target) -> Progress {
    let part = topic.parts.get(&partition);
    if topic.failure.is_some() || part.is_some_and(Part::is_stopped) {
        return Progress::Done;
    }
    if topic.identity.is_none() {
        return Progress::Reading;
    }
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
    use everlog_common::{Entry, EventColumns, Generation, Identity, OffsetRange};

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

    fn targets(ends: &[(i32, i64, i64)]) -> CaughtUp {
        let mut caught_up = CaughtUp::default();
        let bounds = ends
            .iter()
            .map(|(n, start, end)| {
                let b = LogBounds {
                    log_start: o(*start),
                    end: o(*end),
                    high_watermark: o(*end),
                };
                (TopicPartition::new(name(), p(*n)), b)
            })
            .collect();
        caught_up.set(&bounds);
        caught_up
    }

    fn topic(next: Option<i64>, position: i64) -> Topic {
        let mut topic = Topic {
            identity: Some(Identity::default()),
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
    fn nothing_is_done_before_the_ends_are_known() {
        assert!(!CaughtUp::default().is_done(&BTreeMap::new()));
        assert!(targets(&[]).is_done(&BTreeMap::new()));
        assert!(!targets(&[(0, 0, 5)]).is_done(&BTreeMap::new()));
    }
}
