//! Producers and the operator of the brokers: everything that is done to the log, told to the checker.

use std::collections::BTreeSet;
use std::sync::Arc;

use everlog_common::{Clock, Offset, Partition, TimestampType, TopicName, TopicPartition};
use everlog_kafka::memory::{MemoryRecord, Transaction};
use everlog_kafka::{Isolation, Log, PartitionFault};
use everlog_tests::checker::{Event, LogId, RecordView};
use futures::FutureExt;

use crate::world::{GROUP, World};

#[derive(Debug, Clone, Default)]
struct PartitionState {
    epoch: i32,
    log_start: i64,
    end: i64,
    /// Records outside of transactions: those that compaction may take.
    plain: BTreeSet<i64>,
    has_leader: bool,
}

#[derive(Debug)]
struct TopicState {
    name: TopicName,
    id: u128,
    partitions: Vec<PartitionState>,
    is_denied: bool,
}

/// The brokers' side of the world.
#[derive(Debug)]
pub struct Brokers {
    world: Arc<World>,
    topics: Vec<TopicState>,
    open: Vec<(Transaction, u64)>,
    transactions: u64,
    records: u64,
}

impl Brokers {
    /// The plan's topics, with some records each.
    pub fn new(world: Arc<World>) -> Self {
        let mut brokers = Self {
            topics: Vec::new(),
            open: Vec::new(),
            transactions: 0,
            records: 0,
            world,
        };
        let counts = brokers.world.plan.topics.clone();
        for (n, partitions) in counts.into_iter().enumerate() {
            if let Ok(name) = TopicName::new(&format!("t{n}")) {
                let id = brokers
                    .world
                    .log
                    .create_topic(&name, usize::try_from(partitions).unwrap_or(1));
                brokers.topics.push(TopicState {
                    name,
                    id: 0,
                    partitions: Vec::new(),
                    is_denied: false,
                });
                brokers.created(n, id.map_or(0, |id| id.0.as_u128()), partitions);
                let burst = brokers.world.rng.between(1, brokers.world.plan.burst);
                for _ in 0..burst {
                    brokers.append(n, None);
                }
            }
        }
        brokers
    }

    fn created(&mut self, topic: usize, id: u128, partitions: i32) {
        let state = &mut self.topics[topic];
        state.id = id;
        state.partitions = (0..partitions)
            .map(|_| PartitionState {
                has_leader: true,
                ..PartitionState::default()
            })
            .collect();
        self.world.recorder.record(Event::TopicCreated {
            topic: state.name.as_str().to_owned(),
            topic_id: id,
            partitions,
        });
    }

    /// All topics' names.
    pub fn names(&self) -> Vec<TopicName> {
        self.topics.iter().map(|t| t.name.clone()).collect()
    }

    /// The partitions of a topic.
    pub fn partitions(&self, topic: &TopicName) -> BTreeSet<i32> {
        let found = self.topics.iter().find(|t| t.name == *topic);
        let count = found.map_or(0, |t| t.partitions.len());
        (0..i32::try_from(count).unwrap_or(0)).collect()
    }

    fn any(&self) -> (usize, usize) {
        let rng = &self.world.rng;
        let topic = rng.index(self.topics.len());
        (topic, rng.index(self.topics[topic].partitions.len()))
    }

    fn place(&self, topic: usize, partition: usize) -> TopicPartition {
        let number = i32::try_from(partition).unwrap_or(0);
        TopicPartition::new(
            self.topics[topic].name.clone(),
            Partition::new(number).expect("not negative"),
        )
    }

    fn log_id(&self, topic: usize, partition: usize) -> LogId {
        let number = i32::try_from(partition).unwrap_or(0);
        (self.topics[topic].id, number)
    }

    /// A record, each with bytes of its own.
    fn record(&mut self) -> MemoryRecord {
        self.records += 1;
        let rng = self.world.rng.clone();
        let now = self.world.clock.now().0;
        let mut record = MemoryRecord::value(format!("v{}", self.records));
        if rng.chance(100) {
            record
                .value
                .get_or_insert_default()
                .resize(usize::try_from(rng.between(100, 3000)).unwrap_or(100), b'x');
        }
        // The number is in the key where the value has no room for it.
        match rng.below(12) {
            0 => record.value = None,
            1 => record.value = Some(Vec::new()),
            _ => {}
        }
        let has_number = record.value.as_ref().is_some_and(|v| !v.is_empty());
        record = match rng.below(4) {
            0 if has_number => record,
            1 if has_number => record.key(""),
            _ => record.key(format!("k{}", self.records)),
        };
        for n in 0..rng.below(5).saturating_sub(2) {
            let value = format!("h{}", rng.below(100));
            record = match rng.below(3) {
                0 => record.header("a", None),
                1 => record.header(if n == 0 { "b" } else { "a" }, Some(b"")),
                _ => record.header("a", Some(value.as_bytes())),
            };
        }
        match rng.below(14) {
            10 => record.at(i64::MAX - 1, TimestampType::Create),
            11 => record.at(-5_000_000, TimestampType::LogAppend),
            12 => record.at(0, TimestampType::Create),
            0 => record.at(-1, TimestampType::None),
            1 => record.at(now, TimestampType::LogAppend),
            2 => record.at(now - 1_000_000, TimestampType::Create),
            _ => record.at(now, TimestampType::Create),
        }
    }

    fn append(&mut self, topic: usize, txn: Option<(Transaction, u64)>) {
        let partition = self.world.rng.index(self.topics[topic].partitions.len());
        self.append_to(topic, partition, txn);
    }

    fn append_to(&mut self, topic: usize, partition: usize, txn: Option<(Transaction, u64)>) {
        let record = self.record();
        let place = self.place(topic, partition);
        let log = self.log_id(topic, partition);
        let offset = match txn {
            Some((txn, _)) => self.world.log.append_in(txn, &place, record.clone()),
            None => self.world.log.append(&place, record.clone()),
        };
        let offset = offset.get();
        let state = &mut self.topics[topic].partitions[partition];
        state.end = offset + 1;
        if txn.is_none() {
            state.plain.insert(offset);
        }
        let view = RecordView {
            offset,
            timestamp_ms: record.timestamp_ms,
            timestamp_type: match record.timestamp_type {
                TimestampType::Create => 0,
                TimestampType::LogAppend => 1,
                TimestampType::None => -1,
            },
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &record.headers,
        };
        let event = Event::Appended {
            log,
            offset,
            epoch: state.epoch,
            canonical: view.canonical(),
            txn: txn.map(|(_, number)| number),
        };
        self.world.recorder.record(event);
    }

    /// Records in one partition, or in all of a topic.
    pub fn produce(&mut self) {
        let (topic, partition) = self.any();
        let everywhere = self.world.rng.chance(300);
        for _ in 0..self.world.rng.between(1, self.world.plan.burst) {
            if everywhere {
                self.append(topic, None);
            } else {
                self.append_to(topic, partition, None);
            }
        }
    }

    /// A transaction begins, goes on, or ends.
    pub fn transact(&mut self) {
        let rng = self.world.rng.clone();
        let begins = self.open.is_empty() || (self.open.len() < 4 && rng.chance(400));
        if begins {
            self.transactions += 1;
            self.open.push((self.world.log.begin(), self.transactions));
        }
        let which = rng.index(self.open.len());
        let txn = self.open[which];
        let topic = rng.index(self.topics.len());
        for _ in 0..rng.below(self.world.plan.burst.min(8)) {
            self.append(topic, Some(txn));
        }
        if rng.chance(600) {
            self.end(which, rng.chance(600));
        }
    }

    fn end(&mut self, which: usize, committed: bool) {
        let (txn, number) = self.open.remove(which);
        if committed {
            self.world.log.commit(txn);
        } else {
            self.world.log.abort(txn);
        }
        self.world.recorder.record(Event::TransactionEnded {
            txn: number,
            committed,
        });
        self.tell_ends();
    }

    /// Control records are offsets, too.
    fn tell_ends(&mut self) {
        for topic in 0..self.topics.len() {
            for partition in 0..self.topics[topic].partitions.len() {
                let place = self.place(topic, partition);
                let log = self.log_id(topic, partition);
                let Some(end) = self.end_of(&place) else {
                    continue;
                };
                let state = &mut self.topics[topic].partitions[partition];
                if state.end != end {
                    state.end = end;
                    self.world.recorder.record(Event::LogEnd { log, end });
                }
            }
        }
    }

    fn end_of(&self, place: &TopicPartition) -> Option<i64> {
        let all = [place.clone()];
        let bounds = self.world.log.bounds(&all, Isolation::ReadUncommitted);
        Some(bounds.now_or_never()?.ok()?.get(place)?.end.get())
    }

    fn stable_end_of(&self, place: &TopicPartition) -> Option<i64> {
        let all = [place.clone()];
        let bounds = self.world.log.bounds(&all, Isolation::ReadCommitted);
        Some(bounds.now_or_never()?.ok()?.get(place)?.end.get())
    }

    /// Offsets without records.
    pub fn skip(&mut self) {
        let (topic, partition) = self.any();
        let place = self.place(topic, partition);
        let count = self.world.rng.between(1, 5);
        self.world
            .log
            .skip_offsets(&place, u32::try_from(count).unwrap_or(1));
        self.tell_ends();
    }

    /// Retention: somewhere below the end, and now and then everything.
    pub fn delete_records(&mut self) {
        let (topic, partition) = self.any();
        let place = self.place(topic, partition);
        let log = self.log_id(topic, partition);
        let Some(end) = self.stable_end_of(&place) else {
            return;
        };
        let rng = self.world.rng.clone();
        let state = &mut self.topics[topic].partitions[partition];
        let span = u64::try_from(end - state.log_start).unwrap_or(0);
        let by = if rng.chance(300) {
            span
        } else {
            rng.below(span + 1)
        };
        let offset = state.log_start + i64::try_from(by).unwrap_or(0);
        if offset <= state.log_start {
            return;
        }
        state.log_start = offset;
        state.plain = state.plain.split_off(&offset);
        self.world
            .log
            .delete_records(&place, Offset::new(offset).unwrap_or_default());
        self.world.recorder.record(Event::LogStart { log, offset });
    }

    /// Compaction takes some records.
    pub fn compact(&mut self) {
        let (topic, partition) = self.any();
        let place = self.place(topic, partition);
        let log = self.log_id(topic, partition);
        let rng = self.world.rng.clone();
        let state = &mut self.topics[topic].partitions[partition];
        let share = rng.between(50, 900);
        let gone: BTreeSet<i64> = state
            .plain
            .iter()
            .copied()
            .filter(|_| rng.chance(share))
            .collect();
        state.plain.retain(|offset| !gone.contains(offset));
        for offset in &gone {
            self.world.recorder.record(Event::Compacted {
                log,
                offset: *offset,
            });
        }
        self.world
            .log
            .compact(&place, |offset, _| gone.contains(&offset));
    }

    /// A clean election.
    pub fn elect(&mut self) {
        let (topic, partition) = self.any();
        let place = self.place(topic, partition);
        self.world.log.bump_epoch(&place);
        self.topics[topic].partitions[partition].epoch += 1;
        self.world.recorder.note(&format!("{place} new epoch"));
    }

    /// An unclean election: the newest records are lost.
    pub fn truncate(&mut self) {
        let (topic, partition) = self.any();
        let place = self.place(topic, partition);
        let log = self.log_id(topic, partition);
        let rng = self.world.rng.clone();
        let state = &mut self.topics[topic].partitions[partition];
        let span = u64::try_from(state.end - state.log_start).unwrap_or(0);
        if span == 0 {
            return;
        }
        let lost = rng.between(1, span.min(12));
        let end = state.end - i64::try_from(lost).unwrap_or(0);
        state.epoch += 1;
        state.end = end;
        state.plain.split_off(&end);
        let epoch = state.epoch;
        self.world
            .log
            .truncate(&place, Offset::new(end).unwrap_or_default());
        self.world
            .recorder
            .record(Event::Truncated { log, end, epoch });
    }

    /// One partition more.
    pub fn grow(&mut self) {
        let topic = self.world.rng.index(self.topics.len());
        let total = self.topics[topic].partitions.len() + 1;
        if total > 6 {
            return;
        }
        self.world
            .log
            .add_partitions(&self.topics[topic].name, total);
        self.topics[topic].partitions.push(PartitionState {
            has_leader: true,
            ..PartitionState::default()
        });
        self.world.recorder.record(Event::PartitionsAdded {
            topic_id: self.topics[topic].id,
            partitions: i32::try_from(total).unwrap_or(1),
        });
        self.append_to(topic, total - 1, None);
    }

    /// The topic anew, under another id.
    pub fn recreate(&mut self) {
        let topic = self.world.rng.index(self.topics.len());
        let name = self.topics[topic].name.clone();
        let partitions = i32::try_from(self.topics[topic].partitions.len()).unwrap_or(1);
        self.world.recorder.record(Event::TopicDeleted {
            topic: name.as_str().to_owned(),
        });
        let before: Vec<i64> = self.topics[topic]
            .partitions
            .iter()
            .map(|p| p.end)
            .collect();
        let id = self.world.log.recreate_topic(&name);
        self.created(topic, id.map_or(0, |id| id.0.as_u128()), partitions);
        for _ in 0..self.world.rng.below(self.world.plan.burst) {
            self.append(topic, None);
        }
        // a reader that has not noticed finds records where it stands: only the topic's id tells them apart
        if self.world.rng.chance(500) {
            let more = i64::try_from(self.world.rng.between(1, self.world.plan.burst)).unwrap_or(1);
            for (partition, end) in before.into_iter().enumerate() {
                while self.topics[topic].partitions[partition].end < end + more {
                    self.append_to(topic, partition, None);
                }
            }
        }
    }

    /// A partition loses its leader, or has one again.
    pub fn leader(&mut self) {
        let (topic, partition) = self.any();
        let place = self.place(topic, partition);
        let state = &mut self.topics[topic].partitions[partition];
        state.has_leader = !state.has_leader;
        if state.has_leader {
            self.world.log.regain_leader(&place);
        } else {
            self.world.log.lose_leader(&place);
        }
        self.world
            .recorder
            .note(&format!("{place} leader {}", state.has_leader));
        // what happened to it meanwhile, nobody was able to ask
        self.tell_ends();
    }

    /// Readers of a partition meet a fault.
    pub fn fault(&self) {
        let (topic, partition) = self.any();
        let place = self.place(topic, partition);
        let why = "injected".to_owned();
        let fault = match self.world.rng.below(2) {
            0 => PartitionFault::Other(why),
            _ => PartitionFault::Gone(why),
        };
        self.world.recorder.note(&format!("{place} {fault:?}"));
        self.world.log.fault(&place, fault);
    }

    /// A topic is closed to everybody, or open again.
    pub fn deny(&mut self) {
        let topic = self.world.rng.index(self.topics.len());
        let state = &mut self.topics[topic];
        state.is_denied = !state.is_denied;
        self.world.log.deny(&state.name, state.is_denied);
        let line = format!("{} denied {}", state.name, state.is_denied);
        self.world.recorder.note(&line);
        self.tell_ends();
    }

    /// The group throws a member out, or keeps it from hearing, or lets it hear again.
    pub fn group(&self) {
        let members = self.world.log.members(GROUP);
        let Some(member) = self.world.rng.pick(&members) else {
            return;
        };
        let what = self.world.rng.below(4);
        self.world
            .recorder
            .note(&format!("group member {member}: {what}"));
        match what {
            0 => self.world.log.expel(GROUP, *member),
            1 => {
                self.world.log.deafen(GROUP, *member, true);
                self.world.log.expel(GROUP, *member);
            }
            _ => self.world.log.deafen(GROUP, *member, false),
        }
    }

    /// Everything is well: leaders are there, transactions end, members hear.
    pub fn settle(&mut self) {
        while !self.open.is_empty() {
            let committed = self.world.rng.chance(500);
            self.end(0, committed);
        }
        for topic in 0..self.topics.len() {
            self.topics[topic].is_denied = false;
            self.world.log.deny(&self.topics[topic].name, false);
            for partition in 0..self.topics[topic].partitions.len() {
                let place = self.place(topic, partition);
                self.topics[topic].partitions[partition].has_leader = true;
                self.world.log.regain_leader(&place);
            }
        }
        // Something has to be archived now. (And a topic that was created anew has no place in the table before its first
        // record, and no replay crosses to it.)
        for topic in 0..self.topics.len() {
            for partition in 0..self.topics[topic].partitions.len() {
                self.append_to(topic, partition, None);
            }
        }
        self.tell_ends();
        for member in self.world.log.members(GROUP) {
            self.world.log.deafen(GROUP, member, false);
        }
    }
}
