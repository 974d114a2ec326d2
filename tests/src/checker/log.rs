//! What the brokers hold, and held: every version of every record, and what became of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, LogId, digest};

/// A record at an offset; a truncated one stays here beside what came after it.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) digest: u64,
    pub(super) canonical: Vec<u8>,
    pub(super) epoch: i32,
    txn: Option<u64>,
    is_compacted: bool,
    is_truncated: bool,
}

/// Where a log was cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) end: i64,
    pub(super) epoch: i32,
}

#[derive(Debug, Default)]
pub(super) struct PartitionLog {
    records: BTreeMap<i64, Vec<Version>>,
    log_start: i64,
    end: i64,
    open: BTreeMap<u64, i64>,
    aborted: BTreeSet<u64>,
    pub(super) cuts: Vec<Cut>,
}

impl PartitionLog {
    pub(super) fn log_start(&self) -> i64 {
        self.log_start
    }

    /// Where a consumer of committed records comes to its end.
    pub(super) fn stable_end(&self) -> i64 {
        self.open.values().copied().min().unwrap_or(self.end)
    }

    /// Nothing was ever in it that would have to be archived.
    pub(super) fn is_untouched(&self) -> bool {
        self.stable_end() == self.log_start
    }

    /// Every version that was ever at an offset.
    pub(super) fn versions(&self, offset: i64) -> &[Version] {
        self.records.get(&offset).map_or(&[], Vec::as_slice)
    }

    /// Whether its record's fate is to be seen: not aborted, and not open.
    pub(super) fn is_committed(&self, version: &Version) -> bool {
        version
            .txn
            .is_none_or(|txn| !self.aborted.contains(&txn) && !self.open.contains_key(&txn))
    }

    /// Records in `[from, to)` that were committed and neither compacted nor truncated away, those below the log's start
    /// included.
    pub(super) fn kept(&self, from: i64, to: i64) -> impl Iterator<Item = (i64, &Version)> {
        let range = from..to.max(from);
        self.records.range(range).filter_map(|(offset, versions)| {
            let last = versions.last()?;
            let is_kept = !last.is_compacted && !last.is_truncated && self.is_committed(last);
            is_kept.then_some((*offset, last))
        })
    }

    /// Whether what is at an offset came in the place of something that a truncation cut off.
    pub(super) fn is_replacement(&self, offset: i64, version: &Version) -> bool {
        let mut cuts = self.cuts.iter();
        cuts.any(|cut| offset >= cut.end && version.epoch >= cut.epoch)
    }

    /// The same, where a ledger that is at `next` with a leader epoch of its own is past the cut, and of a leader before it:
    /// nothing can be archived behind that, and the archiver has to stop there.
    pub(super) fn is_beyond_reach(
        &self,
        offset: i64,
        version: &Version,
        next: i64,
        leader_epoch: Option<i32>,
    ) -> bool {
        self.cuts.iter().any(|cut| {
            offset >= cut.end
                && version.epoch >= cut.epoch
                && next > cut.end
                && leader_epoch.is_some_and(|epoch| epoch < cut.epoch)
        })
    }

    /// Whether one of these records is one that a truncation cut off, at the cut or behind it.
    pub(super) fn has_lost_one_of(&self, given: &BTreeMap<i64, u64>, offset: i64) -> bool {
        let cuts = self.cuts.iter().filter(|cut| cut.end <= offset);
        let Some(from) = cuts.map(|cut| cut.end).min() else {
            return false;
        };
        given.range(from..).any(|(at, digest)| {
            let version = self.versions(*at).iter().find(|v| v.digest == *digest);
            version.is_some_and(|v| v.is_truncated)
        })
    }

    /// The same, from the log's start on: what a consumer gets now.
    pub(super) fn visible(&self, from: i64, to: i64) -> impl Iterator<Item = (i64, &Version)> {
        self.kept(from.max(self.log_start), to.min(self.stable_end()))
    }
}

#[derive(Debug, Default)]
pub(super) struct Brokers {
    current: BTreeMap<String, u128>,
    /// Every incarnation that a topic ever had, in order.
    incarnations: BTreeMap<String, Vec<u128>>,
    logs: BTreeMap<LogId, PartitionLog>,
}

impl Brokers {
    /// Topics that exist, with the incarnation that does.
    pub(super) fn topics(&self) -> impl Iterator<Item = (&str, u128)> {
        self.current.iter().map(|(name, id)| (name.as_str(), *id))
    }

    /// Every incarnation that a topic ever had, newest first.
    pub(super) fn incarnations(&self, topic: &str) -> impl Iterator<Item = u128> {
        let all = self.incarnations.get(topic);
        all.into_iter().flatten().rev().copied()
    }

    pub(super) fn current(&self, topic: &str) -> Option<u128> {
        self.current.get(topic).copied()
    }

    pub(super) fn partitions(&self, topic_id: u128) -> impl Iterator<Item = (i32, &PartitionLog)> {
        self.logs
            .range((topic_id, 0)..=(topic_id, i32::MAX))
            .map(|((_, partition), log)| (*partition, log))
    }

    pub(super) fn log(&self, log: LogId) -> Option<&PartitionLog> {
        self.logs.get(&log)
    }

    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::TopicCreated {
                topic,
                topic_id,
                partitions,
            } => {
                let all = self.incarnations.entry(topic.clone()).or_default();
                all.push(topic_id);
                self.current.insert(topic, topic_id);
                self.grow(topic_id, partitions);
            }
            Event::PartitionsAdded {
                topic_id,
                partitions,
            } => self.grow(topic_id, partitions),
            Event::TopicDeleted { topic } => {
                self.current.remove(&topic);
            }
            Event::Appended {
                log,
                offset,
                epoch,
                canonical,
                txn,
            } => {
                let log = self.logs.entry(log).or_default();
                if let Some(txn) = txn {
                    log.open.entry(txn).or_insert(offset);
                }
                log.records.entry(offset).or_default().push(Version {
                    digest: digest(&canonical, Some(epoch)),
                    canonical,
                    epoch,
                    txn,
                    is_compacted: false,
                    is_truncated: false,
                });
                log.end = offset + 1;
            }
            Event::LogEnd { log, end } => self.logs.entry(log).or_default().end = end,
            Event::TransactionEnded { txn, committed } => {
                for log in self.logs.values_mut() {
                    if log.open.remove(&txn).is_some() && !committed {
                        log.aborted.insert(txn);
                    }
                }
            }
            Event::Compacted { log, offset } => {
                let log = self.logs.entry(log).or_default();
                if let Some(last) = log.records.get_mut(&offset).and_then(|v| v.last_mut()) {
                    last.is_compacted = true;
                }
            }
            Event::LogStart { log, offset } => {
                let log = self.logs.entry(log).or_default();
                log.log_start = log.log_start.max(offset);
            }
            Event::Truncated { log, end, epoch } => {
                let log = self.logs.entry(log).or_default();
                for (_, versions) in log.records.range_mut(end..) {
                    if let Some(last) = versions.last_mut() {
                        last.is_truncated = true;
                    }
                }
                log.open.retain(|_, first| *first < end);
                log.end = end;
                log.cuts.push(Cut { end, epoch });
            }
            _ => {}
        }
    }

    fn grow(&mut self, topic_id: u128, partitions: i32) {
        for partition in 0..partitions {
            self.logs.entry((topic_id, partition)).or_default();
        }
    }
}
