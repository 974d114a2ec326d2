//! A cluster of three brokers, of which one goes away.

use std::sync::Mutex;

use async_trait::async_trait;
use everlog_common::{TopicName, TopicPartition};
use everlog_kafka::Log;
use everlog_kafka::conformance::{self, Brokers, Ending, World};
use everlog_kafka::memory::MemoryRecord;

use crate::support::{Broker, Real};

/// Three brokers; topics have one replica per partition, so that nobody takes over.
struct Cluster {
    brokers: Broker,
    world: Real,
    killed: Mutex<Vec<i32>>,
}

impl Cluster {
    fn start() -> Self {
        let brokers = Broker::start_nodes(3, &["min.insync.replicas=1"]);
        let world = Real::at(brokers.bootstrap(), &[]);
        Self {
            brokers,
            world,
            killed: Mutex::default(),
        }
    }
}

#[async_trait]
impl World for Cluster {
    fn log(&self) -> &dyn Log {
        &self.world.log
    }

    fn fresh_name(&self) -> TopicName {
        self.world.fresh_name()
    }

    async fn create_topic(&self, name: &TopicName, partitions: i32) {
        self.world.create_topic(name, partitions).await;
    }

    async fn recreate_topic(&self, name: &TopicName) {
        self.world.recreate_topic(name).await;
    }

    async fn add_partitions(&self, name: &TopicName, total: i32) {
        self.world.add_partitions(name, total).await;
    }

    async fn produce(&self, tp: &TopicPartition, records: Vec<MemoryRecord>) {
        self.world.produce(tp, records).await;
    }

    async fn transaction(&self, tp: &TopicPartition, records: Vec<MemoryRecord>, ending: Ending) {
        self.world.transaction(tp, records, ending).await;
    }

    async fn delete_records(&self, tp: &TopicPartition, before: i64) {
        self.world.delete_records(tp, before).await;
    }
}

#[async_trait]
impl Brokers for Cluster {
    async fn lose_leader(&self, tp: &TopicPartition) {
        tokio::task::block_in_place(|| {
            let leader = self.world.leader(tp);
            self.brokers.kill_node(leader);
            self.killed.lock().unwrap().push(leader);
        });
    }

    async fn regain_leaders(&self) {
        let killed = std::mem::take(&mut *self.killed.lock().unwrap());
        tokio::task::block_in_place(|| {
            for node in killed {
                self.brokers.start_node(node);
            }
        });
    }
}

/// One of three brokers dies: its partitions are not known, in bounded time, and everything else is.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_a_leader_is_not_known_and_the_others_are() {
    let cluster = tokio::task::block_in_place(Cluster::start);
    conformance::a_partition_without_a_leader_is_not_known_and_the_others_are(&cluster).await;
}
