//! Consumer groups, in both protocols.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use everlog_common::{Offset, TopicName, TopicPartition};
use everlog_kafka::conformance::{self, Reading, World, alone, at, numbered, partition};
use everlog_kafka::{Isolation, Log, Membership, PartitionFault, ReaderEvent, ReaderOptions};

use crate::support::{Real, fresh};

pub const CLASSIC: &[(&str, &str)] = &[
    ("group.protocol", "classic"),
    ("session.timeout.ms", "6000"),
    ("heartbeat.interval.ms", "200"),
    ("topic.metadata.refresh.interval.ms", "500"),
];
pub const CONSUMER: &[(&str, &str)] = &[
    ("group.protocol", "consumer"),
    ("topic.metadata.refresh.interval.ms", "500"),
];
const PATIENCE: Duration = Duration::from_secs(90);

fn member(group: &str, topics: &[&TopicName]) -> ReaderOptions {
    ReaderOptions {
        membership: Membership::Group {
            group: group.to_owned(),
            topics: topics.iter().map(|t| (*t).clone()).collect(),
        },
        ..alone(Isolation::ReadCommitted)
    }
}

/// Members of one group over one ledger, which takes a batch only where it goes on: the fence, as a table has it.
struct Fleet<'a> {
    world: &'a Real,
    options: ReaderOptions,
    members: Vec<Reading>,
    ledger: BTreeMap<TopicPartition, i64>,
    rows: BTreeMap<TopicPartition, Vec<(i64, Vec<u8>)>>,
    /// Batches that came from a member that was not the owner any more.
    fenced: usize,
    lost: usize,
    gone: Vec<TopicPartition>,
}

impl<'a> Fleet<'a> {
    fn new(world: &'a Real, options: ReaderOptions) -> Self {
        Self {
            world,
            options,
            members: Vec::new(),
            ledger: BTreeMap::new(),
            rows: BTreeMap::new(),
            fenced: 0,
            lost: 0,
            gone: Vec::new(),
        }
    }

    async fn join(&mut self) {
        let reader = self.world.log.open(self.options.clone()).await.unwrap();
        self.members.push(Reading::new(reader));
    }

    /// Commits what a member read; what does not go on where the ledger ends is refused and read again.
    async fn commit(&mut self, index: usize) {
        let member = &mut self.members[index];
        let mut again = BTreeMap::new();
        for batch in std::mem::take(&mut member.batches) {
            let next = self.ledger.entry(batch.source.clone()).or_default();
            if *next != batch.range.start().get() {
                self.fenced += 1;
                again.insert(batch.source, at(*next));
                continue;
            }
            *next = batch.range.end().get();
            let rows = self.rows.entry(batch.source).or_default();
            for i in 0..batch.columns.len() {
                let row = batch.columns.row(i);
                rows.push((row.offset.get(), row.value.unwrap_or_default().to_vec()));
            }
        }
        member.rows.clear();
        self.lost += std::mem::take(&mut member.lost);
        for (tp, fault) in std::mem::take(&mut member.faults) {
            match fault {
                PartitionFault::Gone(_) => self.gone.push(tp),
                other => panic!("{tp}: {other}"),
            }
        }
        let again: Vec<_> = again
            .into_iter()
            .filter(|(tp, _)| member.owned.contains(tp))
            .collect();
        if !again.is_empty() {
            member.assign(&again).await;
        }
    }

    async fn leave(&mut self, index: usize) {
        let member = self.members.remove(index);
        member.close().await;
    }

    async fn step(&mut self) {
        for index in 0..self.members.len() {
            let ledger = self.ledger.clone();
            let member = &mut self.members[index];
            member.ledger = ledger;
            member.step(Duration::from_millis(5)).await;
            self.commit(index).await;
        }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            let owned: Vec<_> = self.members.iter().map(|m| m.owned.len()).collect();
            let positions: Vec<_> = self.members.iter().map(|m| &m.positions).collect();
            assert!(
                began.elapsed() < PATIENCE,
                "waited in vain until {what}: {owned:?} {positions:?}"
            );
            self.step().await;
        }
    }

    /// Until everybody has a share and all is given.
    async fn settle(&mut self, partitions: usize) {
        self.until("the group settles", |f| {
            let owned: Vec<_> = f.members.iter().map(|m| m.owned.len()).collect();
            owned.iter().sum::<usize>() == partitions && !owned.contains(&0)
        })
        .await;
    }

    fn read(&self, tp: &TopicPartition) -> usize {
        self.rows.get(tp).map_or(0, Vec::len)
    }

    fn assert_all(&self, tps: &[TopicPartition], count: usize) {
        for tp in tps {
            let rows = &self.rows[tp];
            let offsets: Vec<_> = rows.iter().map(|(o, _)| *o).collect();
            let expected: Vec<_> = (0..i64::try_from(count).unwrap()).collect();
            assert!(offsets == expected, "{tp}: lost or doubled");
            for (offset, value) in rows {
                assert_eq!(value, offset.to_string().as_bytes(), "{tp}");
            }
        }
    }
}

async fn topic(world: &Real, partitions: i32) -> (TopicName, Vec<TopicPartition>) {
    let name = world.fresh_name();
    world.create_topic(&name, partitions).await;
    let tps = (0..partitions).map(|n| partition(&name, n)).collect();
    (name, tps)
}

/// The silent loss: the client pauses retained partitions at each rebalance and goes on from its own position.
async fn a_rebalance_at_the_end_skips_nothing(properties: &[(&str, &str)]) {
    let world = Real::with(properties);
    let (name, tps) = topic(&world, 4).await;
    let mut fleet = Fleet::new(&world, member(&fresh("group"), &[&name]));
    let mut count = 0;
    fleet.join().await;
    for round in 0..4 {
        fleet.settle(tps.len()).await;
        for tp in &tps {
            world.produce(tp, numbered(count, count + 10)).await;
        }
        count += 10;
        fleet
            .until("all is read", |f| tps.iter().all(|tp| f.read(tp) == count))
            .await;
        // at the end everywhere: now members come and go
        for _ in 0..5 {
            fleet.step().await;
        }
        if round % 2 == 0 {
            fleet.join().await;
        } else {
            fleet.leave(0).await;
        }
    }
    fleet.settle(tps.len()).await;
    for tp in &tps {
        world.produce(tp, numbered(count, count + 10)).await;
    }
    count += 10;
    fleet
        .until("all is read", |f| tps.iter().all(|tp| f.read(tp) == count))
        .await;
    fleet.assert_all(&tps, count);
    while !fleet.members.is_empty() {
        fleet.leave(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classic_rebalance_at_the_end_skips_nothing() {
    a_rebalance_at_the_end_skips_nothing(CLASSIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kip_848_rebalance_at_the_end_skips_nothing() {
    a_rebalance_at_the_end_skips_nothing(CONSUMER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h23_a_kip_848_group_shares_partitions_and_loses_nothing() {
    conformance::h23_a_group_shares_partitions_and_loses_nothing(&Real::with(CONSUMER)).await;
}

/// Members come and go as fast as they can while records arrive.
async fn a_rebalance_storm_loses_nothing(properties: &[(&str, &str)], joins: usize) {
    let world = Real::with(properties);
    let (name, tps) = topic(&world, 4).await;
    let mut fleet = Fleet::new(&world, member(&fresh("group"), &[&name]));
    let producer = world.producer(&[("linger.ms", "0")]);
    fleet.join().await;
    let mut count = 0;
    for n in 0..joins {
        fleet.join().await;
        for tp in &tps {
            Real::produce_with(&producer, tp, &numbered(count, count + 5));
        }
        count += 5;
        for _ in 0..n % 9 {
            fleet.step().await;
        }
        if fleet.members.len() > 3 {
            fleet.leave(n % 3).await;
        }
    }
    fleet
        .until("all is read", |f| tps.iter().all(|tp| f.read(tp) >= count))
        .await;
    fleet.assert_all(&tps, count);
    while !fleet.members.is_empty() {
        fleet.leave(0).await;
    }
    eprintln!("fenced {} lost {}", fleet.fenced, fleet.lost);
    // whoever reads what is another's was thrown out, and is told so
    assert!(
        fleet.fenced == 0 || fleet.lost > 0,
        "{} fenced batches, nobody lost anything",
        fleet.fenced
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn h23_a_classic_rebalance_storm_loses_nothing() {
    a_rebalance_storm_loses_nothing(CLASSIC, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h23_a_kip_848_rebalance_storm_loses_nothing() {
    a_rebalance_storm_loses_nothing(CONSUMER, 60).await;
}

/// Partitions that appear later are given, and topics, once they are subscribed to; a topic that is deleted is taken away.
async fn a_group_gives_what_appears_later(properties: &[(&str, &str)]) {
    let world = Real::with(properties);
    let prefix = fresh("later");
    let of = |n: u32| TopicName::new(&format!("{prefix}.{n}")).unwrap();
    world.create_topic(&of(0), 1).await;
    let mut fleet = Fleet::new(&world, member(&fresh("group"), &[&of(0)]));
    fleet.join().await;
    fleet.settle(1).await;
    world.create_topic(&of(1), 2).await;
    world.add_partitions(&of(0), 3).await;
    let both = [of(0), of(1)];
    fleet.members[0].reader.subscribe(&both).await.unwrap();
    fleet.settle(5).await;
    let tps: Vec<_> = (0..3)
        .map(|p| partition(&of(0), p))
        .chain((0..2).map(|p| partition(&of(1), p)))
        .collect();
    for tp in &tps {
        world.produce(tp, numbered(0, 3)).await;
    }
    fleet
        .until("all is read", |f| tps.iter().all(|tp| f.read(tp) == 3))
        .await;
    fleet.assert_all(&tps, 3);
    world.delete_topic(&of(1)).await;
    fleet
        .until("the deleted topic is taken away", |f| {
            f.members[0].owned.len() == 3
        })
        .await;
    fleet.leave(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h14_a_classic_group_gives_what_appears_later() {
    a_group_gives_what_appears_later(CLASSIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h14_a_kip_848_group_gives_what_appears_later() {
    a_group_gives_what_appears_later(CONSUMER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h14_a_kip_848_member_subscribes_to_other_topics_and_keeps_what_stays() {
    let world = Real::with(CONSUMER);
    conformance::h14_a_member_subscribes_to_other_topics_and_keeps_what_stays(&world).await;
}

async fn until_assigned(reader: &mut Box<dyn everlog_kafka::LogReader>, count: usize) {
    let began = Instant::now();
    let mut given = 0;
    while given < count {
        assert!(began.elapsed() < PATIENCE, "not assigned");
        for event in reader.poll(Duration::from_millis(100)).await.unwrap() {
            if let ReaderEvent::Assigned(tps) = event {
                given += tps.len();
                let starts: Vec<_> = tps.into_iter().map(|tp| (tp, at(0))).collect();
                reader.assign(&starts).await.unwrap();
            }
        }
    }
}

/// Closing, and dropping, in the middle of a rebalance that nobody answered; the next member does not wait for a timeout.
async fn leaving_in_every_state_neither_hangs_nor_blocks_the_group(properties: &[(&str, &str)]) {
    let world = Real::with(properties);
    let (name, tps) = topic(&world, 2).await;
    let options = member(&fresh("group"), &[&name]);
    for how in ["assigned", "unanswered", "at once", "dropped"] {
        let mut reader = world.log.open(options.clone()).await.unwrap();
        match how {
            "at once" => {}
            "unanswered" => {
                let began = Instant::now();
                while !reader
                    .poll(Duration::from_millis(100))
                    .await
                    .unwrap()
                    .iter()
                    .any(|e| matches!(e, ReaderEvent::Assigned(_)))
                {
                    assert!(began.elapsed() < PATIENCE);
                }
            }
            _ => until_assigned(&mut reader, tps.len()).await,
        }
        let began = Instant::now();
        if how == "dropped" {
            drop(reader);
        } else {
            reader.close().await.unwrap();
        }
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{how}: {:?}",
            began.elapsed()
        );
    }
    let began = Instant::now();
    let mut last = world.log.open(options).await.unwrap();
    until_assigned(&mut last, tps.len()).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "the group waits for somebody: {:?}",
        began.elapsed()
    );
    last.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_a_classic_group_neither_hangs_nor_blocks_it() {
    leaving_in_every_state_neither_hangs_nor_blocks_the_group(CLASSIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_a_kip_848_group_neither_hangs_nor_blocks_it() {
    leaving_in_every_state_neither_hangs_nor_blocks_the_group(CONSUMER).await;
}

/// The caller is busy for longer than the session and the poll interval: the membership lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_poll_stays_in_the_group() {
    let mut properties = CLASSIC.to_vec();
    properties.push(("max.poll.interval.ms", "6000"));
    let world = Real::with(&properties);
    let (name, tps) = topic(&world, 2).await;
    for tp in &tps {
        world.produce(tp, numbered(0, 1000)).await;
    }
    let mut fleet = Fleet::new(&world, member(&fresh("group"), &[&name]));
    fleet.join().await;
    fleet.settle(2).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    for tp in &tps {
        world.produce(tp, numbered(1000, 1010)).await;
    }
    fleet
        .until("all is read", |f| tps.iter().all(|tp| f.read(tp) == 1010))
        .await;
    assert_eq!((fleet.lost, fleet.fenced), (0, 0));
    fleet.assert_all(&tps, 1010);
    fleet.leave(0).await;
}

/// A rebalance that comes while partitions are assigned for other reasons is answered by its answer, not by those.
#[tokio::test(flavor = "multi_thread")]
async fn other_assignments_are_not_taken_for_the_answer() {
    let world = Real::with(CLASSIC);
    let (name, tps) = topic(&world, 4).await;
    for tp in &tps {
        world.produce(tp, numbered(0, 10)).await;
    }
    let options = member(&fresh("group"), &[&name]);
    let mut first = Reading::new(world.log.open(options.clone()).await.unwrap());
    first.until("it has all", |r| r.owned.len() == 4).await;
    for tp in &tps {
        first.until_position(tp, 10).await;
    }
    let mut second = Reading::new(world.log.open(options).await.unwrap());
    // moved back and forth, with the revocation somewhere in between
    let began = Instant::now();
    while first.owned.len() == 4 {
        assert!(began.elapsed() < PATIENCE);
        let tp = tps[0].clone();
        if first.owned.contains(&tp) {
            first.assign(&[(tp, at(3))]).await;
        }
        first.step(Duration::from_millis(1)).await;
        second.step(Duration::from_millis(1)).await;
    }
    let began = Instant::now();
    while second.owned.len() < 2 {
        assert!(began.elapsed() < PATIENCE, "the second gets its share");
        first.step(Duration::from_millis(10)).await;
        second.step(Duration::from_millis(10)).await;
    }
    assert!(first.owned.is_disjoint(&second.owned));
    for tp in &tps {
        world.produce(tp, numbered(10, 12)).await;
    }
    for tp in first.owned.clone() {
        first.until_position(&tp, 12).await;
    }
    for tp in second.owned.clone() {
        second.until_position(&tp, 12).await;
    }
    first.close().await;
    second.close().await;
}

/// The mirror is for lag tools: the group's committed offsets show it, and nothing reads them back.
#[tokio::test(flavor = "multi_thread")]
async fn positions_are_mirrored_to_the_group() {
    let world = Real::with(CLASSIC);
    let (name, tps) = topic(&world, 1).await;
    let group = fresh("group");
    let mut reader = world.log.open(member(&group, &[&name])).await.unwrap();
    until_assigned(&mut reader, 1).await;
    reader
        .mirror(&[(tps[0].clone(), Offset::new(42).unwrap())])
        .await
        .unwrap();
    let began = Instant::now();
    while world.committed(&group, &tps[0]) != Some(42) {
        assert!(began.elapsed() < PATIENCE, "not mirrored");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    reader.close().await.unwrap();
    // alone, without a group of the user's: nowhere to mirror to, and no complaint
    let mut reader = world
        .log
        .open(alone(Isolation::ReadCommitted))
        .await
        .unwrap();
    reader
        .mirror(&[(tps[0].clone(), Offset::new(43).unwrap())])
        .await
        .unwrap();
    reader.close().await.unwrap();
}
