//! The log in memory keeps the contract.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use everlog_common::clock::SystemClock;
use everlog_common::{Offset, TopicName, TopicPartition};
use everlog_kafka::Log;
use everlog_kafka::conformance::{self, Brokers, Ending, World};
use everlog_kafka::memory::{MemoryLog, MemoryRecord};

struct InMemory {
    log: MemoryLog,
    names: AtomicU32,
    lost: Mutex<Vec<TopicPartition>>,
}

impl InMemory {
    fn new() -> Self {
        Self {
            log: MemoryLog::new(Arc::new(SystemClock::default())),
            names: AtomicU32::new(0),
            lost: Mutex::default(),
        }
    }
}

fn count(partitions: i32) -> usize {
    usize::try_from(partitions).unwrap()
}

#[async_trait]
impl World for InMemory {
    fn log(&self) -> &dyn Log {
        &self.log
    }

    fn fresh_name(&self) -> TopicName {
        let n = self.names.fetch_add(1, Ordering::Relaxed);
        TopicName::new(&format!("topic-{n}")).unwrap()
    }

    async fn create_topic(&self, name: &TopicName, partitions: i32) {
        self.log.create_topic(name, count(partitions));
    }

    async fn recreate_topic(&self, name: &TopicName) {
        self.log.recreate_topic(name);
    }

    async fn add_partitions(&self, name: &TopicName, total: i32) {
        self.log.add_partitions(name, count(total));
    }

    async fn produce(&self, tp: &TopicPartition, records: Vec<MemoryRecord>) {
        for record in records {
            self.log.append(tp, record);
        }
    }

    async fn transaction(&self, tp: &TopicPartition, records: Vec<MemoryRecord>, ending: Ending) {
        let txn = self.log.begin();
        for record in records {
            self.log.append_in(txn, tp, record);
        }
        match ending {
            Ending::Commit => self.log.commit(txn),
            Ending::Abort => self.log.abort(txn),
            Ending::Open => {}
        }
    }

    async fn delete_records(&self, tp: &TopicPartition, before: i64) {
        self.log.delete_records(tp, Offset::new(before).unwrap());
    }
}

#[async_trait]
impl Brokers for InMemory {
    async fn lose_leader(&self, tp: &TopicPartition) {
        self.log.lose_leader(tp);
        self.lost.lock().unwrap().push(tp.clone());
    }

    async fn regain_leaders(&self) {
        for tp in self.lost.lock().unwrap().drain(..) {
            self.log.regain_leader(&tp);
        }
    }
}

everlog_kafka::conformance_tests!(InMemory::new());

#[tokio::test]
async fn a_partition_without_a_leader_is_not_known_and_the_others_are() {
    let world = InMemory::new();
    conformance::a_partition_without_a_leader_is_not_known_and_the_others_are(&world).await;
}
