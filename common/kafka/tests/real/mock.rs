//! librdkafka's mock cluster, which the demo uses: no topic ids, no transactions, short retention.

use std::time::{Duration, Instant};

use everlog_common::TopicName;
use everlog_kafka::conformance::{Reading, World, at, numbered, partition};
use everlog_kafka::{Isolation, Log};
use rdkafka::mocking::MockCluster;

use crate::support::{Real, fresh};

#[tokio::test(flavor = "multi_thread")]
async fn the_mock_cluster_of_the_demo_is_read_to_its_end() {
    let mock = MockCluster::new(1).unwrap();
    let name = TopicName::new(&fresh("demo")).unwrap();
    mock.create_topic(name.as_str(), 2, 1).unwrap();
    let world = Real::at(mock.bootstrap_servers(), &[("fetch.wait.max.ms", "10")]);
    let began = Instant::now();
    let infos = world
        .log
        .describe(&[name.clone(), TopicName::new("absent").unwrap()])
        .await
        .unwrap();
    assert_eq!(infos.len(), 1);
    let info = infos[&name].as_ref().unwrap();
    assert_eq!(info.topic_id, None);
    assert_eq!(info.partitions.len(), 2);
    let topics = world.log.topics().await.unwrap();
    assert!(topics.iter().any(|t| t.name == name));
    assert!(world.log.cluster_id().await.unwrap().is_some());
    // asking for topic ids would have taken until the time limit
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );

    let tps = [partition(&name, 0), partition(&name, 1)];
    for tp in &tps {
        world.produce(tp, numbered(0, 1000)).await;
    }
    let bounds = world
        .log
        .bounds(&tps, Isolation::ReadCommitted)
        .await
        .unwrap();
    assert_eq!(bounds[&tps[0]].end.get(), 1000);
    let starts: Vec<_> = tps.iter().map(|tp| (tp.clone(), at(0))).collect();
    let mut reading = Reading::alone(&world.log, Isolation::ReadCommitted, &starts).await;
    for tp in &tps {
        reading.until_position(tp, 1000).await;
    }
    reading.close().await;
    // again from a position, as after a crash
    let mut again = Reading::alone(
        &world.log,
        Isolation::ReadCommitted,
        &[(tps[1].clone(), at(400))],
    )
    .await;
    world.produce(&tps[1], numbered(1000, 1010)).await;
    again.until_position(&tps[1], 1010).await;
    assert_eq!(again.offsets(&tps[1]), (400..1010).collect::<Vec<i64>>());
    again.close().await;
}
