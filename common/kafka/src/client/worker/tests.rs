//! What needs a look inside: the client's own state after a failure.

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

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
