//! What every [`Log`] and [`LogReader`] must do, as small named cases over a [`World`] that plays producer and operator.
//!
//! Run all of them with [`conformance_tests!`](crate::conformance_tests). Cases panic when the contract is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use everlog_common::{Millis, Offset, Partition, TimestampType, TopicName, TopicPartition};

use crate::memory::MemoryRecord;
use crate::{
    Fetched, Isolation, Log, LogReader, Membership, PartitionFault, ReaderEvent, ReaderOptions,
    StartAt,
};

/// How long a case waits for something that must come.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a case waits to see that nothing comes.
const QUIET: Duration = Duration::from_millis(300);

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its records become visible.
    Commit,
    /// They never do.
    Abort,
    /// It stays open until the world ends.
    Open,
}

/// A cluster under test, and everything that others do to it.
#[async_trait]
pub trait World: Send + Sync {
    /// The log under test.
    fn log(&self) -> &dyn Log;
    /// A name that no topic had before.
    fn fresh_name(&self) -> TopicName;
    /// Creates a topic.
    async fn create_topic(&self, name: &TopicName, partitions: i32);
    /// Deletes a topic and creates it again, with one partition.
    async fn recreate_topic(&self, name: &TopicName);
    /// Grows a topic.
    async fn add_partitions(&self, name: &TopicName, total: i32);
    /// Appends records, and returns when they are acknowledged.
    async fn produce(&self, tp: &TopicPartition, records: Vec<MemoryRecord>);
    /// Appends records in a transaction of their own.
    async fn transaction(&self, tp: &TopicPartition, records: Vec<MemoryRecord>, ending: Ending);
    /// Moves the log's start.
    async fn delete_records(&self, tp: &TopicPartition, before: i64);
}

/// A world of several brokers that can be taken away.
#[async_trait]
pub trait Brokers: World {
    /// Takes away who leads a partition; nobody takes over. Other partitions of its topic go on.
    async fn lose_leader(&self, tp: &TopicPartition);
    /// Brings everybody back.
    async fn regain_leaders(&self);
}

/// One test per case, on the world that `$world` makes.
#[macro_export]
macro_rules! conformance_tests {
    ($world:expr) => {
        $crate::conformance_tests!($world =>
            rows_come_once_and_in_order
            reading_starts_exactly_where_assigned
            every_part_of_a_record_comes_as_it_was_written
            h03_control_records_at_the_end_move_the_position
            h04_aborted_records_are_offsets_without_rows
            h05_an_open_transaction_holds_the_end_back
            h09_an_empty_partition_has_an_end
            resume_at_the_end_skips_nothing
            a_position_outside_of_the_log_is_a_fault_and_can_be_mended
            h10_an_epoch_that_the_log_does_not_know_is_a_truncation
            h10_epochs_end_where_the_log_says
            unassigned_partitions_are_silent
            nothing_of_an_unassigned_partition_is_handed_out_any_more
            assigning_again_moves_a_partition
            bounds_and_times_are_answered_for_what_exists
            h12_a_recreated_topic_has_another_id
            h14_new_partitions_are_described
            h14_a_member_subscribes_to_other_topics_and_keeps_what_stays
            h23_a_group_shares_partitions_and_loses_nothing
        );
    };
    ($world:expr => $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::conformance::$case(&$world).await;
            }
        )*
    };
}

/// A partition of a topic.
pub fn partition(topic: &TopicName, number: i32) -> TopicPartition {
    TopicPartition::new(
        topic.clone(),
        Partition::new(number).expect("partition numbers in cases are not negative"),
    )
}

/// A start without an epoch.
pub fn at(offset: i64) -> StartAt {
    StartAt {
        offset: Offset::new(offset).expect("offsets in cases are not negative"),
        leader_epoch: None,
    }
}

/// Records with the values `from..to`.
pub fn numbered(from: usize, to: usize) -> Vec<MemoryRecord> {
    (from..to)
        .map(|n| MemoryRecord::value(n.to_string()).at(1_000 + n as i64, TimestampType::Create))
        .collect()
}

/// A reader alone.
pub fn alone(isolation: Isolation) -> ReaderOptions {
    ReaderOptions {
        membership: Membership::Alone,
        isolation,
        memory_bytes: 32 << 20,
        linger: Duration::from_millis(5),
    }
}

/// A reader with everything it told, checked against the contract as it comes.
#[derive(Debug)]
pub struct Reading {
    /// The reader.
    pub reader: Box<dyn LogReader>,
    /// Per partition: offset and value of each row.
    pub rows: BTreeMap<TopicPartition, Vec<(i64, Vec<u8>)>>,
    /// The batches as they came.
    pub batches: Vec<Fetched>,
    /// How often partitions were lost, not revoked.
    pub lost: usize,
    /// Per partition: the position after the last batch.
    pub positions: BTreeMap<TopicPartition, i64>,
    /// Partitions whose last batch reached the end.
    pub at_end: BTreeSet<TopicPartition>,
    /// Faults, in order.
    pub faults: Vec<(TopicPartition, PartitionFault)>,
    /// What the group gave and was not taken back.
    pub owned: BTreeSet<TopicPartition>,
    /// Positions of partitions from before they were taken away: where to go on (the ledger of these cases).
    pub ledger: BTreeMap<TopicPartition, i64>,
}

impl Reading {
    /// Wraps a reader.
    pub fn new(reader: Box<dyn LogReader>) -> Self {
        Self {
            reader,
            rows: BTreeMap::new(),
            batches: Vec::new(),
            lost: 0,
            positions: BTreeMap::new(),
            at_end: BTreeSet::new(),
            faults: Vec::new(),
            owned: BTreeSet::new(),
            ledger: BTreeMap::new(),
        }
    }

    /// Opens a reader alone, and assigns.
    pub async fn alone(
        log: &dyn Log,
        isolation: Isolation,
        starts: &[(TopicPartition, StartAt)],
    ) -> Self {
        let reader = log.open(alone(isolation)).await.expect("a reader opens");
        let mut reading = Self::new(reader);
        reading.assign(starts).await;
        reading
    }

    /// Assigns.
    pub async fn assign(&mut self, starts: &[(TopicPartition, StartAt)]) {
        for (tp, start) in starts {
            self.positions.insert(tp.clone(), start.offset.get());
            self.at_end.remove(tp);
        }
        self.reader.assign(starts).await.expect("assign");
    }

    /// Unassigns.
    pub async fn unassign(&mut self, partitions: &[TopicPartition]) {
        self.reader.unassign(partitions).await.expect("unassign");
        for tp in partitions {
            if let Some(position) = self.positions.remove(tp) {
                self.ledger.insert(tp.clone(), position);
            }
        }
    }

    /// Takes in whatever comes within `wait`; answers what the group asks. Returns how many events came.
    pub async fn step(&mut self, wait: Duration) -> usize {
        let events = self.reader.poll(wait).await.expect("poll");
        let count = events.len();
        for event in events {
            match event {
                ReaderEvent::Fetched(f) => {
                    let position = self
                        .positions
                        .get_mut(&f.source)
                        .unwrap_or_else(|| panic!("{} is not assigned", f.source));
                    assert_eq!(
                        f.range.start().get(),
                        *position,
                        "ranges of {} are contiguous",
                        f.source
                    );
                    *position = f.range.end().get();
                    let rows = self.rows.entry(f.source.clone()).or_default();
                    for i in 0..f.columns.len() {
                        let row = f.columns.row(i);
                        assert!(
                            f.range.contains(row.offset),
                            "{} in {}",
                            row.offset,
                            f.range
                        );
                        rows.push((row.offset.get(), row.value.unwrap_or_default().to_vec()));
                    }
                    if f.at_end {
                        self.at_end.insert(f.source.clone());
                    } else {
                        self.at_end.remove(&f.source);
                    }
                    self.batches.push(f);
                }
                ReaderEvent::Fault { partition, fault } => self.faults.push((partition, fault)),
                ReaderEvent::Assigned(given) => {
                    let starts: Vec<_> = given
                        .iter()
                        .map(|tp| (tp.clone(), at(self.ledger.get(tp).copied().unwrap_or(0))))
                        .collect();
                    self.owned.extend(given);
                    self.assign(&starts).await;
                }
                ReaderEvent::Revoked { partitions, lost } => {
                    self.lost += usize::from(lost);
                    for tp in &partitions {
                        self.owned.remove(tp);
                    }
                    self.unassign(&partitions).await;
                }
            }
        }
        count
    }

    /// Steps until `done`, at most a minute.
    pub async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "waited in vain until {what}; positions {:?}, faults {:?}, owned {:?}",
                self.positions,
                self.faults,
                self.owned
            );
            self.step(Duration::from_millis(100)).await;
        }
    }

    /// Steps until the position of `tp` is `offset`.
    pub async fn until_position(&mut self, tp: &TopicPartition, offset: i64) {
        self.until(&format!("the position of {tp} is {offset}"), |r| {
            r.positions.get(tp) == Some(&offset)
        })
        .await;
    }

    /// Steps until there are faults.
    pub async fn until_fault(&mut self) -> PartitionFault {
        self.until("a partition stops", |r| !r.faults.is_empty())
            .await;
        self.faults[0].1.clone()
    }

    /// Sees that nothing comes for a while.
    pub async fn stays_quiet(&mut self) {
        let began = Instant::now();
        while began.elapsed() < QUIET {
            let came = self.step(Duration::from_millis(50)).await;
            assert_eq!(came, 0, "nothing must come");
        }
    }

    /// The values of a partition, in order.
    pub fn values(&self, tp: &TopicPartition) -> Vec<String> {
        self.rows
            .get(tp)
            .map(|rows| {
                rows.iter()
                    .map(|(_, v)| String::from_utf8_lossy(v).into_owned())
                    .collect()
            })
            .unwrap_or_default()
    }

    /// The offsets of a partition's rows, in order.
    pub fn offsets(&self, tp: &TopicPartition) -> Vec<i64> {
        self.rows
            .get(tp)
            .map(|rows| rows.iter().map(|(o, _)| *o).collect())
            .unwrap_or_default()
    }

    /// Closes.
    pub async fn close(self) {
        self.reader.close().await.expect("close");
    }
}

fn strings(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn described(log: &dyn Log, name: &TopicName) -> crate::TopicInfo {
    let mut found = log
        .describe(std::slice::from_ref(name))
        .await
        .expect("describe");
    let info = found.remove(name).expect("the topic exists");
    info.expect("and may be described")
}

async fn topic(world: &dyn World, partitions: i32) -> TopicName {
    let name = world.fresh_name();
    world.create_topic(&name, partitions).await;
    name
}

/// All rows of all partitions, each once, offsets increasing, ranges without holes up to the end.
pub async fn rows_come_once_and_in_order(world: &dyn World) {
    let name = topic(world, 3).await;
    let tps: Vec<_> = (0..3).map(|n| partition(&name, n)).collect();
    for tp in &tps {
        world.produce(tp, numbered(0, 500)).await;
    }
    let starts: Vec<_> = tps.iter().map(|tp| (tp.clone(), at(0))).collect();
    let mut reading = Reading::alone(world.log(), Isolation::ReadCommitted, &starts).await;
    for tp in &tps {
        reading.until_position(tp, 500).await;
        assert_eq!(reading.values(tp), strings(0..500));
    }
    for tp in &tps {
        world.produce(tp, numbered(500, 600)).await;
    }
    for tp in &tps {
        reading.until_position(tp, 600).await;
        assert_eq!(reading.values(tp), strings(0..600));
        assert_eq!(reading.offsets(tp), (0..600).collect::<Vec<i64>>());
    }
    reading.close().await;
}

/// The first row is the one at the assigned offset, whatever the batches of the log are.
pub async fn reading_starts_exactly_where_assigned(world: &dyn World) {
    let name = topic(world, 1).await;
    let tp = partition(&name, 0);
    world.produce(&tp, numbered(0, 100)).await;
    for start in [0, 1, 57, 99] {
        let mut reading = Reading::alone(
            world.log(),
            Isolation::ReadCommitted,
            &[(tp.clone(), at(start))],
        )
        .await;
        reading.until_position(&tp, 100).await;
        assert_eq!(reading.offsets(&tp), (start..100).collect::<Vec<i64>>());
        reading.close().await;
    }
}

/// h18, h19: nulls, empties, header order and duplicates, bytes that are not UTF-8, timestamps.
pub async fn every_part_of_a_record_comes_as_it_was_written(world: &dyn World) {
    let name = topic(world, 1).await;
    let tp = partition(&name, 0);
    let plain = || MemoryRecord::value("v").at(1_700_000_000_000, TimestampType::Create);
    let mut null_value = plain().key("k");
    null_value.value = None;
    let records = vec![
        plain(),
        null_value,
        MemoryRecord::value("").key("").at(1, TimestampType::Create),
        plain().key([0xff, 0x00, 0xfe]),
        plain()
            .header("b", Some(b"1"))
            .header("a", None)
            .header("b", Some(b""))
            .header("", Some(b"empty name"))
            .header([0xff, 0xfe], Some(&[0, 255])),
        plain().at(-1, TimestampType::None),
        plain().at(4_102_444_800_000, TimestampType::Create),
    ];
    world.produce(&tp, records.clone()).await;
    let mut reading = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(tp.clone(), at(0))],
    )
    .await;
    let count = records.len() as i64;
    reading.until_position(&tp, count).await;
    let mut read = Vec::new();
    for batch in &reading.batches {
        for i in 0..batch.columns.len() {
            let row = batch.columns.row(i);
            read.push(MemoryRecord {
                timestamp_ms: row.timestamp_ms,
                timestamp_type: row.timestamp_type,
                key: row.key.map(<[u8]>::to_vec),
                value: row.value.map(<[u8]>::to_vec),
                headers: row
                    .headers
                    .iter()
                    .map(|(k, v)| (k.to_vec(), v.map(<[u8]>::to_vec)))
                    .collect(),
            });
        }
    }
    assert_eq!(read, records);
    reading.close().await;
}

/// Markers behind the last row are part of the position, committed or aborted.
pub async fn h03_control_records_at_the_end_move_the_position(world: &dyn World) {
    let name = topic(world, 1).await;
    let tp = partition(&name, 0);
    world.produce(&tp, numbered(0, 5)).await;
    world
        .transaction(&tp, numbered(5, 12), Ending::Commit)
        .await;
    let mut reading = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(tp.clone(), at(0))],
    )
    .await;
    reading.until_position(&tp, 13).await;
    assert_eq!(reading.values(&tp), strings(0..12));
    assert!(reading.at_end.contains(&tp));
    reading.close().await;
}

/// Aborted data at the start, in the middle and at the end; a start inside of it.
pub async fn h04_aborted_records_are_offsets_without_rows(world: &dyn World) {
    let name = topic(world, 1).await;
    let tp = partition(&name, 0);
    world
        .transaction(&tp, numbered(90, 93), Ending::Abort)
        .await; // 0..3, marker 3
    world.produce(&tp, numbered(0, 2)).await; // 4, 5
    world
        .transaction(&tp, numbered(93, 95), Ending::Abort)
        .await; // 6, 7, marker 8
    world.produce(&tp, numbered(2, 3)).await; // 9
    world
        .transaction(&tp, numbered(95, 99), Ending::Abort)
        .await; // 10..14, marker 14
    let bounds = world
        .log()
        .bounds(std::slice::from_ref(&tp), Isolation::ReadCommitted)
        .await
        .expect("bounds");
    assert_eq!(bounds[&tp].end.get(), 15);
    for (start, offsets) in [
        (0, vec![4, 5, 9]),
        (1, vec![4, 5, 9]),
        (7, vec![9]),
        (11, vec![]),
    ] {
        let mut reading = Reading::alone(
            world.log(),
            Isolation::ReadCommitted,
            &[(tp.clone(), at(start))],
        )
        .await;
        reading.until_position(&tp, 15).await;
        assert_eq!(reading.offsets(&tp), offsets, "from {start}");
        assert!(reading.at_end.contains(&tp));
        reading.close().await;
    }
    let mut everything = Reading::alone(
        world.log(),
        Isolation::ReadUncommitted,
        &[(tp.clone(), at(0))],
    )
    .await;
    everything.until_position(&tp, 15).await;
    assert_eq!(everything.rows[&tp].len(), 12);
    everything.close().await;
}

/// The end under `read_committed` is the last stable offset; nothing behind it is delivered.
pub async fn h05_an_open_transaction_holds_the_end_back(world: &dyn World) {
    let name = topic(world, 1).await;
    let tp = partition(&name, 0);
    world.produce(&tp, numbered(0, 5)).await;
    world.transaction(&tp, numbered(5, 9), Ending::Open).await;
    world.produce(&tp, numbered(9, 10)).await;
    let ask = |isolation| world.log().bounds(std::slice::from_ref(&tp), isolation);
    let committed = ask(Isolation::ReadCommitted).await.expect("bounds")[&tp];
    assert_eq!(committed.end.get(), 5);
    assert_eq!(committed.high_watermark.get(), 10);
    let uncommitted = ask(Isolation::ReadUncommitted).await.expect("bounds")[&tp];
    assert_eq!(uncommitted.end.get(), 10);

    let mut reading = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(tp.clone(), at(0))],
    )
    .await;
    reading.until_position(&tp, 5).await;
    reading.stays_quiet().await;
    let mut everything = Reading::alone(
        world.log(),
        Isolation::ReadUncommitted,
        &[(tp.clone(), at(0))],
    )
    .await;
    everything.until_position(&tp, 10).await;
    assert_eq!(everything.values(&tp), strings(0..10));
    reading.close().await;
    everything.close().await;
}

/// An empty partition, and one that lost all its records, have bounds and no rows; the first append is delivered.
pub async fn h09_an_empty_partition_has_an_end(world: &dyn World) {
    let name = topic(world, 2).await;
    let (empty, emptied) = (partition(&name, 0), partition(&name, 1));
    world.produce(&emptied, numbered(0, 10)).await;
    world.delete_records(&emptied, 10).await;
    let bounds = world
        .log()
        .bounds(&[empty.clone(), emptied.clone()], Isolation::ReadCommitted)
        .await
        .expect("bounds");
    assert_eq!(
        (bounds[&empty].log_start.get(), bounds[&empty].end.get()),
        (0, 0)
    );
    assert_eq!(
        (bounds[&emptied].log_start.get(), bounds[&emptied].end.get()),
        (10, 10)
    );
    let mut reading = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(empty.clone(), at(0)), (emptied.clone(), at(10))],
    )
    .await;
    reading.stays_quiet().await;
    world.produce(&empty, numbered(0, 1)).await;
    world.produce(&emptied, numbered(10, 11)).await;
    reading.until_position(&empty, 1).await;
    reading.until_position(&emptied, 11).await;
    reading.close().await;
}

/// At the end, pause, append, resume: the first record appended is delivered. (librdkafka's batch interface loses it.)
pub async fn resume_at_the_end_skips_nothing(world: &dyn World) {
    let name = topic(world, 2).await;
    let (a, b) = (partition(&name, 0), partition(&name, 1));
    let mut reading = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(a.clone(), at(0)), (b.clone(), at(0))],
    )
    .await;
    for round in 0..10 {
        let (from, to) = (round * 10, round * 10 + 10);
        world.produce(&a, numbered(from, to)).await;
        world.produce(&b, numbered(from, to)).await;
        reading.until_position(&a, to as i64).await;
        reading.until_position(&b, to as i64).await;
        // once nothing comes any more, the end was seen
        reading.step(Duration::from_millis(50)).await;
        reading
            .reader
            .pause(std::slice::from_ref(&a))
            .await
            .expect("pause");
        if round % 2 == 0 {
            world.produce(&b, Vec::new()).await;
            reading.step(Duration::from_millis(20)).await;
        }
        reading
            .reader
            .resume(std::slice::from_ref(&a))
            .await
            .expect("resume");
    }
    assert_eq!(reading.values(&a), strings(0..100));
    assert_eq!(reading.values(&b), strings(0..100));

    reading
        .reader
        .pause(std::slice::from_ref(&a))
        .await
        .expect("pause");
    world.produce(&a, numbered(100, 110)).await;
    reading.stays_quiet().await;
    reading
        .reader
        .resume(std::slice::from_ref(&a))
        .await
        .expect("resume");
    reading.until_position(&a, 110).await;
    assert_eq!(reading.values(&a), strings(0..110));
    assert!(reading.faults.is_empty());
    reading.close().await;
}

/// h01: below the log's start and beyond its end: a fault of that partition alone; assigned again it reads on.
pub async fn a_position_outside_of_the_log_is_a_fault_and_can_be_mended(world: &dyn World) {
    let name = topic(world, 3).await;
    let (low, high, good) = (
        partition(&name, 0),
        partition(&name, 1),
        partition(&name, 2),
    );
    for tp in [&low, &high, &good] {
        world.produce(tp, numbered(0, 20)).await;
    }
    world.delete_records(&low, 10).await;
    let mut reading = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[
            (low.clone(), at(3)),
            (high.clone(), at(500)),
            (good.clone(), at(0)),
        ],
    )
    .await;
    reading.until_position(&good, 20).await;
    reading
        .until("both faults are told", |r| r.faults.len() == 2)
        .await;
    for (tp, asked) in [(&low, 3), (&high, 500)] {
        let fault = reading.faults.iter().find(|(f, _)| f == tp);
        match fault {
            Some((_, PartitionFault::OutOfRange { offset, .. })) => {
                assert_eq!(offset.map(Offset::get), Some(asked), "{tp}");
            }
            other => panic!("{tp}: {other:?}"),
        }
    }
    reading.stays_quiet().await;
    reading
        .assign(&[(low.clone(), at(10)), (high.clone(), at(20))])
        .await;
    world.produce(&high, numbered(20, 21)).await;
    reading.until_position(&low, 20).await;
    reading.until_position(&high, 21).await;
    assert_eq!(reading.offsets(&low), (10..20).collect::<Vec<i64>>());
    assert_eq!(reading.faults.len(), 2);
    reading.close().await;
}

/// The ledger says an epoch that the log never had.
pub async fn h10_an_epoch_that_the_log_does_not_know_is_a_truncation(world: &dyn World) {
    let name = topic(world, 1).await;
    let tp = partition(&name, 0);
    world.produce(&tp, numbered(0, 20)).await;
    let start = |offset, epoch| StartAt {
        leader_epoch: Some(epoch),
        ..at(offset)
    };
    let mut known = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(tp.clone(), start(10, 0))],
    )
    .await;
    known.until_position(&tp, 20).await;
    assert!(known.faults.is_empty());
    // again with the same reader, to which the partition is no news
    for (offset, epoch) in [(10, 7), (30, 0)] {
        known.faults.clear();
        known.rows.clear();
        known.assign(&[(tp.clone(), start(offset, epoch))]).await;
        let fault = known.until_fault().await;
        assert!(
            matches!(fault, PartitionFault::Truncated(_)),
            "{offset} in epoch {epoch}: {fault:?}"
        );
        assert!(known.rows.is_empty());
    }
    known.close().await;
    let mut fresh = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(tp.clone(), start(10, 7))],
    )
    .await;
    let fault = fresh.until_fault().await;
    assert!(matches!(fault, PartitionFault::Truncated(_)), "{fault:?}");
    assert!(fresh.rows.is_empty());
    fresh.close().await;
}

/// The current epoch ends at the log's end; an unknown one has none; what does not exist is absent.
pub async fn h10_epochs_end_where_the_log_says(world: &dyn World) {
    let name = topic(world, 2).await;
    let (a, b) = (partition(&name, 0), partition(&name, 1));
    world.produce(&a, numbered(0, 20)).await;
    let ends = world
        .log()
        .epoch_ends(&[
            (a.clone(), 0),
            (b.clone(), 9),
            (partition(&name, 7), 0),
            (partition(&world.fresh_name(), 0), 0),
        ])
        .await
        .expect("epoch ends");
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert_eq!(ends[&a].map(Offset::get), Some(20));
    assert_eq!(ends[&b], None);
    let again = world.log().epoch_ends(&[(b.clone(), 0)]).await;
    assert_eq!(again.expect("epoch ends")[&b].map(Offset::get), Some(0));
}

/// What was unassigned delivers nothing, and goes on where it is assigned again.
pub async fn unassigned_partitions_are_silent(world: &dyn World) {
    let name = topic(world, 2).await;
    let (a, b) = (partition(&name, 0), partition(&name, 1));
    let mut reading = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(a.clone(), at(0)), (b.clone(), at(0))],
    )
    .await;
    world.produce(&a, numbered(0, 10)).await;
    reading.until_position(&a, 10).await;
    reading.unassign(&[a.clone(), partition(&name, 1)]).await;
    world.produce(&a, numbered(10, 20)).await;
    world.produce(&b, numbered(0, 10)).await;
    reading.stays_quiet().await;
    reading.assign(&[(a.clone(), at(10))]).await;
    reading.until_position(&a, 20).await;
    assert_eq!(reading.values(&a), strings(0..20));
    reading.close().await;
}

/// Taken away in the middle of much data: nothing comes any more after `unassign` returned, also of what was fetched.
pub async fn nothing_of_an_unassigned_partition_is_handed_out_any_more(world: &dyn World) {
    let name = topic(world, 1).await;
    let tp = partition(&name, 0);
    world.produce(&tp, numbered(0, 20_000)).await;
    let options = alone(Isolation::ReadCommitted);
    let mut reader = world.log().open(options).await.expect("a reader opens");
    let mut next = 0;
    for round in 0..20 {
        let starts = [(tp.clone(), at(next))];
        reader.assign(&starts).await.expect("assign");
        for event in reader.poll(QUIET).await.expect("poll") {
            match event {
                ReaderEvent::Fetched(f) => {
                    assert_eq!(f.range.start().get(), next);
                    next = f.range.end().get();
                }
                other => panic!("{other:?}"),
            }
        }
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let gone = std::slice::from_ref(&tp);
        reader.unassign(gone).await.expect("unassign");
        let after = reader.poll(Duration::from_millis(5)).await.expect("poll");
        assert_eq!(after.len(), 0);
    }
    assert!(next > 0);
    reader.close().await.expect("close");
}

/// Assigning what is assigned starts it anew, back and forth, in the middle of its data too.
pub async fn assigning_again_moves_a_partition(world: &dyn World) {
    let name = topic(world, 1).await;
    let tp = partition(&name, 0);
    world.produce(&tp, numbered(0, 2000)).await;
    let mut reading = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(tp.clone(), at(0))],
    )
    .await;
    for start in [1500, 10, 1999, 0, 700] {
        reading.step(Duration::from_millis(20)).await;
        reading.assign(&[(tp.clone(), at(start))]).await;
        reading.rows.clear();
        reading.until_position(&tp, 2000).await;
        assert_eq!(reading.offsets(&tp), (start..2000).collect::<Vec<i64>>());
    }
    reading.close().await;
}

/// Bounds, times and descriptions of what exists; what does not is absent and delays nothing.
pub async fn bounds_and_times_are_answered_for_what_exists(world: &dyn World) {
    let name = topic(world, 2).await;
    let (a, b) = (partition(&name, 0), partition(&name, 1));
    world.produce(&a, numbered(0, 50)).await;
    world.delete_records(&a, 5).await;
    let missing = [partition(&name, 9), partition(&world.fresh_name(), 0)];
    let mut asked = vec![a.clone(), b.clone()];
    asked.extend(missing);
    let log = world.log();
    for isolation in [Isolation::ReadCommitted, Isolation::ReadUncommitted] {
        let bounds = log.bounds(&asked, isolation).await.expect("bounds");
        assert_eq!(bounds.keys().collect::<Vec<_>>(), vec![&a, &b]);
        let of_a = bounds[&a];
        assert_eq!(
            (
                of_a.log_start.get(),
                of_a.end.get(),
                of_a.high_watermark.get()
            ),
            (5, 50, 50)
        );
    }
    assert!(
        log.bounds(&[], Isolation::ReadCommitted)
            .await
            .expect("bounds")
            .is_empty()
    );
    // numbered() counts timestamps from 1000
    let found = log.offsets_at(&asked, Millis(1_010)).await.expect("times");
    assert_eq!(found.keys().collect::<Vec<_>>(), vec![&a]);
    assert_eq!((found[&a].offset.get(), found[&a].timestamp.0), (10, 1_010));
    let none = log.offsets_at(&asked, Millis(9_999)).await.expect("times");
    assert!(none.is_empty(), "{none:?}");

    let absent = world.fresh_name();
    let found = log
        .describe(&[name.clone(), absent.clone()])
        .await
        .expect("describe");
    assert_eq!(found.keys().collect::<Vec<_>>(), vec![&name]);
    assert_eq!(described(log, &name).await.partitions.len(), 2);
    assert!(
        log.topics()
            .await
            .expect("topics")
            .iter()
            .any(|t| t.name == name)
    );
    assert!(log.topic_config(&name).await.is_ok());
    assert!(matches!(
        log.topic_config(&absent).await,
        Err(crate::LogError::UnknownTopic(t)) if t == absent.as_str()
    ));
    assert!(log.cluster_id().await.expect("cluster id").is_some());
}

/// A partition that nobody leads is described, and that is all that is known of it: what is asked of it is not answered, which
/// is neither an error of the others nor a statement. The others are read on; it comes back as it was.
pub async fn a_partition_without_a_leader_is_not_known_and_the_others_are(world: &dyn Brokers) {
    let name = topic(world, 3).await;
    let tps: Vec<_> = (0..3).map(|n| partition(&name, n)).collect();
    for tp in &tps {
        world.produce(tp, numbered(0, 20)).await;
    }
    let log = world.log();
    let starts: Vec<_> = tps.iter().map(|tp| (tp.clone(), at(0))).collect();
    let mut reading = Reading::alone(log, Isolation::ReadCommitted, &starts).await;
    for tp in &tps {
        reading.until_position(tp, 20).await;
    }
    world.lose_leader(&tps[0]).await;

    // who was connected to it hears of that first
    let began = Instant::now();
    let bounds = loop {
        match log.bounds(&tps, Isolation::ReadCommitted).await {
            Ok(bounds) => break bounds,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        assert!(began.elapsed() < PATIENCE, "the brokers do not answer");
    };
    assert_eq!(bounds.keys().collect::<Vec<_>>(), vec![&tps[1], &tps[2]]);
    assert!(bounds.values().all(|b| b.end.get() == 20), "{bounds:?}");
    let asked: Vec<_> = tps.iter().map(|tp| (tp.clone(), 0)).collect();
    let ends = log.epoch_ends(&asked).await.expect("epoch ends");
    assert_eq!(ends.keys().collect::<Vec<_>>(), vec![&tps[1], &tps[2]]);
    assert!(
        ends.values().all(|end| end.map(Offset::get) == Some(20)),
        "{ends:?}"
    );
    // it is still there, and by itself as little known
    assert_eq!(described(log, &name).await.partitions.len(), 3);
    // (an error while the cluster still names who is away)
    match log.bounds(&tps[..1], Isolation::ReadUncommitted).await {
        Ok(alone) => assert!(alone.is_empty(), "{alone:?}"),
        Err(error) => assert!(error.is_transient(), "{error}"),
    }
    match log.epoch_ends(&asked[..1]).await {
        Ok(alone) => assert!(alone.is_empty(), "{alone:?}"),
        Err(error) => assert!(error.is_transient(), "{error}"),
    }
    // "no such record" would be a statement
    let refused = log.offsets_at(&tps, Millis(0)).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    for tp in &tps[1..] {
        world.produce(tp, numbered(20, 25)).await;
        reading.until_position(tp, 25).await;
    }

    world.regain_leaders().await;
    let began = Instant::now();
    loop {
        let answer = log.bounds(&tps, Isolation::ReadCommitted).await;
        if let Some(back) = answer.ok().and_then(|b| b.get(&tps[0]).copied()) {
            assert_eq!((back.log_start.get(), back.end.get()), (0, 20));
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.produce(&tps[0], numbered(20, 25)).await;
    reading.until_position(&tps[0], 25).await;
    for tp in &tps {
        assert_eq!(reading.values(tp), strings(0..25));
    }
    assert!(reading.faults.is_empty(), "{:?}", reading.faults);
    reading.close().await;
}

/// The name stays, the id does not.
pub async fn h12_a_recreated_topic_has_another_id(world: &dyn World) {
    let name = topic(world, 1).await;
    let log = world.log();
    let before = described(log, &name).await.topic_id;
    assert!(before.is_some());
    world.recreate_topic(&name).await;
    let after = described(log, &name).await.topic_id;
    assert!(after.is_some());
    assert_ne!(before, after);
}

/// Growth shows in the description, and the new partition can be read from its first record.
pub async fn h14_new_partitions_are_described(world: &dyn World) {
    let name = topic(world, 1).await;
    let mut reading = Reading::alone(
        world.log(),
        Isolation::ReadCommitted,
        &[(partition(&name, 0), at(0))],
    )
    .await;
    world.add_partitions(&name, 3).await;
    let new = partition(&name, 2);
    world.produce(&new, numbered(0, 3)).await;
    let info = described(world.log(), &name).await;
    assert_eq!(info.partitions.len(), 3);
    reading.assign(&[(new.clone(), at(0))]).await;
    reading.until_position(&new, 3).await;
    reading.close().await;
}

/// A subscription changes: what is new is given, what is left out is taken back, and what stays is read on where it was. With
/// none at first nothing is given.
pub async fn h14_a_member_subscribes_to_other_topics_and_keeps_what_stays(world: &dyn World) {
    let (stays, goes, comes) = (
        topic(world, 2).await,
        topic(world, 1).await,
        topic(world, 1).await,
    );
    let options = ReaderOptions {
        membership: Membership::Group {
            group: format!("group-of-{stays}"),
            topics: Vec::new(),
        },
        ..alone(Isolation::ReadCommitted)
    };
    let all = |name: &TopicName, count| (0..count).map(|n| partition(name, n)).collect();
    let (kept, left, new): (BTreeSet<_>, BTreeSet<_>, BTreeSet<_>) =
        (all(&stays, 2), all(&goes, 1), all(&comes, 1));
    for tp in kept.iter().chain(&left).chain(&new) {
        world.produce(tp, numbered(0, 10)).await;
    }
    let mut reading = Reading::new(world.log().open(options).await.expect("a reader opens"));
    reading.stays_quiet().await;
    let subscribe = async |reading: &mut Reading, topics: &[TopicName]| {
        reading.reader.subscribe(topics).await.expect("subscribe");
    };
    subscribe(&mut reading, &[stays.clone(), goes.clone()]).await;
    let first: BTreeSet<_> = kept.union(&left).cloned().collect();
    reading
        .until("the first topics are given", |r| r.owned == first)
        .await;
    for tp in &first {
        reading.until_position(tp, 10).await;
    }
    subscribe(&mut reading, &[comes.clone(), stays.clone()]).await;
    let second: BTreeSet<_> = kept.union(&new).cloned().collect();
    reading
        .until("the other topics are given", |r| r.owned == second)
        .await;
    for tp in &second {
        world.produce(tp, numbered(10, 20)).await;
        reading.until_position(tp, 20).await;
        assert_eq!(reading.values(tp), strings(0..20));
    }
    subscribe(&mut reading, &[]).await;
    reading
        .until("everything is taken back", |r| r.owned.is_empty())
        .await;
    assert!(reading.faults.is_empty(), "{:?}", reading.faults);
    reading.close().await;
    let mut alone = Reading::alone(world.log(), Isolation::ReadCommitted, &[]).await;
    let refused = alone.reader.subscribe(&[stays]).await;
    assert!(matches!(refused, Err(crate::LogError::Invalid { .. })));
    alone.close().await;
}

/// Two members share; records appended all the while are read by one or the other, none by nobody; who closes leaves
/// everything to the other.
pub async fn h23_a_group_shares_partitions_and_loses_nothing(world: &dyn World) {
    let name = topic(world, 4).await;
    let tps: Vec<_> = (0..4).map(|n| partition(&name, n)).collect();
    let options = || ReaderOptions {
        membership: Membership::Group {
            group: format!("group-of-{name}"),
            topics: vec![name.clone()],
        },
        ..alone(Isolation::ReadCommitted)
    };
    let open = async || Reading::new(world.log().open(options()).await.expect("a reader opens"));
    for tp in &tps {
        world.produce(tp, numbered(0, 10)).await;
    }
    let mut first = open().await;
    first
        .until("the first has all", |r| r.owned.len() == 4)
        .await;
    for tp in &tps {
        first.until_position(tp, 10).await;
    }
    let mut second = open().await;
    let began = Instant::now();
    while first.owned.len() != 2 || second.owned.len() != 2 {
        assert!(began.elapsed() < PATIENCE, "the group does not settle");
        first.step(Duration::from_millis(20)).await;
        // where the second goes on is what the first left: a table would say it
        for (tp, position) in &first.ledger {
            let known = second.ledger.entry(tp.clone()).or_default();
            *known = (*known).max(*position);
        }
        second.step(Duration::from_millis(20)).await;
    }
    assert!(first.owned.is_disjoint(&second.owned));
    for tp in &tps {
        world.produce(tp, numbered(10, 20)).await;
    }
    let mine: Vec<_> = second.owned.iter().cloned().collect();
    for tp in &mine {
        second.until_position(tp, 20).await;
        assert_eq!(second.values(tp), strings(10..20));
    }
    for tp in first.owned.clone() {
        first.until_position(&tp, 20).await;
        assert_eq!(first.values(&tp), strings(0..20));
    }
    let positions = second.positions.clone();
    second.close().await;
    for (tp, position) in positions {
        first.ledger.insert(tp, position);
    }
    first
        .until("the first has all again", |r| r.owned.len() == 4)
        .await;
    for tp in &tps {
        world.produce(tp, numbered(20, 21)).await;
        first.until_position(tp, 21).await;
    }
    assert!(first.faults.is_empty());
    first.close().await;
}
