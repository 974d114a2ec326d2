//! What needs a look inside: the client's own state after a failure.

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

use super::*;
use crate::Isolation;
use crate::client::properties::ClientProperties;

fn worker(bootstrap: String) -> Worker {
    let given = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap)]);
    let options = ReaderOptions {
        membership: Membership::Alone,
        isolation: Isolation::ReadCommitted,
        memory_bytes: 8 << 20,
        linger: Duration::ZERO,
    };
    let plan = MemoryPlan::new(options.memory_bytes, 1);
    let (properties, _) = ClientProperties::parse(&given).unwrap().for_reader(
        &options.membership,
        options.isolation,
        &plan,
    );
    Worker::new(&properties, options, plan, Arc::new(Shared::new())).unwrap()
}

/// The pause that the check of an epoch needs outlives an assignment that fails, in the client. A later start without an
/// epoch (a gap was recorded) has no check that would end it.
#[test]
fn a_failed_assignment_leaves_no_partition_paused() {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic("t", 1, 1).unwrap();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", mock.bootstrap_servers())
        .create()
        .unwrap();
    for value in ["a", "b", "c"] {
        let record: BaseRecord<'_, (), str> = BaseRecord::to("t").payload(value);
        producer.send(record).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();

    let tp = source("t", 0).unwrap();
    let mut worker = worker(mock.bootstrap_servers());
    // the client has it, unknown to the worker: it refuses to take it again, once it was paused
    let mut list = PartitionList::with_capacity(1);
    list.add_at("t", 0, 0, None).unwrap();
    worker.client.incremental_assign(&list).unwrap();
    let start = |leader_epoch| StartAt {
        offset: Offset::new(1).unwrap(),
        leader_epoch,
    };
    worker.assign(&[(tp.clone(), start(Some(0)))]).unwrap_err();

    worker.assign(&[(tp.clone(), start(None))]).unwrap();
    let began = Instant::now();
    loop {
        worker.serve_group();
        worker.take_messages(1 << 20);
        worker.hand_over_everything();
        let mut rows = 0;
        worker.shared.tell(|outbox| {
            for event in &outbox.events {
                match event {
                    ReaderEvent::Fetched(fetched) => rows += fetched.columns.len(),
                    other => panic!("{other:?}"),
                }
            }
        });
        if rows == 2 {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "the partition is still paused: {rows} rows"
        );
    }
    worker.end("the test is over".to_owned());
}

/// A log of three records, and a worker that has just been told of a rebalance which nobody has answered yet.
fn in_a_rebalance() -> (MockCluster<'static, DefaultProducerContext>, Worker) {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic("t", 2, 1).unwrap();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", mock.bootstrap_servers())
        .create()
        .unwrap();
    for partition in [0, 1] {
        for value in ["a", "b", "c"] {
            let record: BaseRecord<'_, (), str> =
                BaseRecord::to("t").partition(partition).payload(value);
            producer.send(record).unwrap();
        }
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    let mut worker = worker(mock.bootstrap_servers());
    worker.pending.push_back(Pending::Assign);
    (mock, worker)
}

/// Takes messages until `enough`, or until a while has passed: how many rows came of each partition.
fn rows(
    worker: &mut Worker,
    enough: impl Fn(&BTreeMap<i32, usize>) -> bool,
) -> BTreeMap<i32, usize> {
    let began = Instant::now();
    loop {
        worker.serve_group();
        worker.take_messages(1 << 20);
        worker.hand_over_everything();
        let mut rows = BTreeMap::new();
        worker.shared.tell(|outbox| {
            for event in &outbox.events {
                match event {
                    ReaderEvent::Fetched(fetched) => {
                        *rows.entry(fetched.source.partition.get()).or_default() +=
                            fetched.columns.len();
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        if enough(&rows) || began.elapsed() > Duration::from_secs(30) {
            return rows;
        }
    }
}

fn from_the_start(partition: i32) -> (TopicPartition, StartAt) {
    let start = StartAt {
        offset: Offset::ZERO,
        leader_epoch: None,
    };
    (source("t", partition).unwrap(), start)
}

fn assign(partitions: Vec<(TopicPartition, StartAt)>, answers: bool) -> Request {
    Request::Assign {
        partitions,
        answers,
    }
}

/// An assignment that is no answer waits for the answer to the group, and what is said of it meanwhile waits with it.
#[test]
fn a_pause_of_an_assignment_that_waits_for_the_groups_turn_holds_once_it_is_made() {
    let (_mock, mut worker) = in_a_rebalance();
    let (held, free) = (from_the_start(0), from_the_start(1));
    let of_held = vec![held.0.clone()];
    worker
        .obey(assign(vec![held.clone(), free.clone()], false))
        .unwrap();
    worker
        .obey(Request::Pause(vec![held.0.clone(), free.0.clone()]))
        .unwrap();
    worker.obey(Request::Resume(vec![free.0])).unwrap();
    assert!(worker.assigned.is_empty(), "it waits for the answer");
    worker.obey(assign(Vec::new(), true)).unwrap();
    assert_eq!(worker.assigned.len(), 2);
    let came = rows(&mut worker, |rows| rows.get(&1) == Some(&3));
    assert_eq!(came, [(1, 3)].into(), "the paused one was read");
    worker.obey(Request::Resume(of_held)).unwrap();
    let came = rows(&mut worker, |rows| rows.len() == 2 && rows[&0] == 3);
    assert_eq!(came, [(0, 3), (1, 3)].into());
    worker.end("the test is over".to_owned());
}

/// What was said of an assignment goes with it: a later one begins unpaused.
#[test]
fn a_pause_does_not_outlive_the_assignment_that_it_waited_with() {
    let (_mock, mut worker) = in_a_rebalance();
    let given = from_the_start(0);
    let taken = vec![given.0.clone()];
    worker.pending.clear();
    worker.pending.push_back(Pending::Revoke(taken.clone()));
    worker.pending.push_back(Pending::Assign);
    worker.obey(assign(vec![given.clone()], false)).unwrap();
    worker.obey(Request::Pause(taken.clone())).unwrap();
    worker
        .obey(Request::Unassign {
            partitions: taken,
            answers: true,
        })
        .unwrap();
    worker.obey(assign(vec![given], true)).unwrap();
    let came = rows(&mut worker, |rows| rows.get(&0) == Some(&3));
    assert_eq!(came, [(0, 3)].into(), "still paused");
    worker.end("the test is over".to_owned());
}
