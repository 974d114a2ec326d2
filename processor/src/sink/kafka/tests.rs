//! Against a real Kafka: fencing, lost replies, and what recovery reads.

use std::sync::OnceLock;

use arrow_array::{ArrayRef, Int64Array, StringArray, TimestampMillisecondArray};
use everlog_services::{Kafka, Proxy};
use rdkafka::message::Timestamp;
use rdkafka::producer::{BaseProducer, Producer as _};

use super::*;
use crate::state::no_rows;

fn cluster() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

fn properties(bootstrap: &str) -> BTreeMap<String, String> {
    [("bootstrap.servers".to_owned(), bootstrap.to_owned())].into()
}

async fn create(bootstrap: &str, topic: &str, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> =
        client_config(&properties(bootstrap)).create().unwrap();
    // The rows' times are years ago, and retention counts from them.
    let new =
        NewTopic::new(topic, partitions, TopicReplication::Fixed(-1)).set("retention.ms", "-1");
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT));
    for made in admin.create_topics([&new], &options).await.unwrap() {
        made.unwrap();
    }
}

fn settings(bootstrap: &str, topic: &str) -> KafkaSettings {
    KafkaSettings {
        properties: properties(bootstrap),
        topic: TopicName::new(topic).unwrap(),
        key: vec!["user".into()],
        timestamp: Some("at".into()),
        owner: None,
    }
}

fn job(name: &str) -> JobId {
    JobId::new(name, "v1").unwrap()
}

async fn open(topic: &str) -> Result<KafkaSink, SinkError> {
    KafkaSink::open(
        settings(&cluster().bootstrap, topic),
        job(topic),
        Channel::Rows,
    )
    .await
}

/// Epochs of so many rows, one after the other.
fn epochs(name: &str, sizes: &[i64]) -> Vec<Epoch> {
    let mut before = 0;
    let epoch = |(n, size): (usize, &i64)| {
        let rows = before..before + size;
        let users: StringArray = rows
            .clone()
            .map(|n| (n % 3 != 0).then(|| format!("user {}", n % 5)))
            .collect();
        let numbers = Int64Array::from_iter_values(rows.clone());
        let at = TimestampMillisecondArray::from_iter_values(rows.map(|n| 1_700_000_000_000 + n));
        let columns: [(&str, ArrayRef); 3] = [
            ("user", Arc::new(users)),
            ("n", Arc::new(numbers)),
            ("at", Arc::new(at)),
        ];
        let epoch = Epoch {
            number: n as u64 + 1,
            job: job(name),
            fingerprint: 1,
            engine: "engine 1".into(),
            changes: Arc::default(),
            progress: Vec::new(),
            positions: BTreeMap::new(),
            rows_before: u64::try_from(before).unwrap(),
            late_before: 0,
            dead_before: 0,
            rows: RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true)))
                .unwrap(),
            late: no_rows(),
            dead: no_rows(),
        };
        before += size;
        epoch
    };
    sizes.iter().enumerate().map(epoch).collect()
}

/// Everything committed in a topic of one partition: key, value, timestamp. The end of a transaction shows a moment after its commit
/// returned: waits for so many rows.
fn committed(bootstrap: &str, topic: &str, count: usize) -> Vec<(Option<String>, String, i64)> {
    let consumer: BaseConsumer = client_config(&properties(bootstrap))
        .set("group.id", "test")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(topic, 0, Offset::Beginning)
        .unwrap();
    consumer.assign(&assignment).unwrap();
    let due = Instant::now() + Duration::from_mins(1);
    let mut all = Vec::new();
    loop {
        assert!(
            Instant::now() < due,
            "{} of {count} rows in {topic}: {all:?}",
            all.len()
        );
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(message)) => {
                let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
                let Timestamp::CreateTime(ms) = message.timestamp() else {
                    panic!("no timestamp");
                };
                all.push((
                    message.key().map(text),
                    text(message.payload().unwrap()),
                    ms,
                ));
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None if all.len() >= count => return all,
            Some(Err(_)) | None => {}
        }
    }
}

/// Row n once, in order.
fn assert_rows(bootstrap: &str, topic: &str, count: i64) {
    let found = committed(bootstrap, topic, usize::try_from(count).unwrap());
    let expected: Vec<_> = (0..count)
        .map(|n| {
            let user = (n % 3 != 0).then(|| format!("user {}", n % 5));
            let at = 1_700_000_000_000 + n;
            let seconds = at / 1000 - 1_700_000_000;
            let json = serde_json::json!({
                "user": user, "n": n, "at": format!("2023-11-14T22:13:{:02}.{:03}", 20 + seconds, at % 1000)
            });
            (user, json, at)
        })
        .collect();
    let found: Vec<_> = found
        .into_iter()
        .map(|(key, value, at)| {
            let mut json: serde_json::Value = serde_json::from_str(&value).unwrap();
            // No fraction where it is zero.
            let text = json["at"].as_str().unwrap().to_owned();
            if !text.contains('.') {
                json["at"] = format!("{text}.000").into();
            }
            (key, json, at)
        })
        .collect();
    assert_eq!(found.len(), expected.len());
    assert_eq!(found, expected);
}

#[tokio::test]
async fn rows_and_marker_are_committed_together_and_a_next_process_goes_on() {
    let topic = "sink.goes.on";
    create(&cluster().bootstrap, topic, 1).await;
    let epochs = epochs(topic, &[3, 0, 2_500, 1]);
    let mut sink = open(topic).await.unwrap();
    assert_eq!(sink.committed().await.unwrap(), None);
    for epoch in &epochs[..3] {
        sink.commit(epoch).await.unwrap();
        sink.commit(epoch).await.unwrap();
    }
    drop(sink);
    let mut sink = open(topic).await.unwrap();
    let marker = sink.committed().await.unwrap().unwrap();
    assert_eq!(marker, Marker::after(&epochs[2], Channel::Rows));
    for epoch in &epochs {
        sink.commit(epoch).await.unwrap();
    }
    assert_rows(&cluster().bootstrap, topic, 2_504);
    // Another topic under the same version would begin in the middle.
    create(&cluster().bootstrap, "sink.other", 1).await;
    let other = settings(&cluster().bootstrap, "sink.other");
    let error = KafkaSink::open(other, job(topic), Channel::Rows)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("went to topic sink.goes.on before"),
        "{error}"
    );
    // Other channels and versions have markers of their own.
    let other = settings(&cluster().bootstrap, "sink.other");
    let mut late = KafkaSink::open(other, job(topic), Channel::Late)
        .await
        .unwrap();
    assert_eq!(late.committed().await.unwrap(), None);
}

/// What brokers do to a transaction that was open for too long looks to its producer like another process.
#[tokio::test]
async fn who_still_owns_the_job_goes_on_where_its_producer_was_fenced() {
    let topic = "sink.timed.out";
    create(&cluster().bootstrap, topic, 1).await;
    let storage = everlog_table::storage::Storage::from_store(Arc::new(
        object_store::memory::InMemory::new(),
    ));
    let take_over = |writer: u128| {
        let identity = crate::state::Identity {
            job: job(topic),
            fingerprint: 1,
            engine: "engine 1".into(),
        };
        let writer = uuid::Uuid::from_u128(writer);
        EpochLog::take_over(storage.clone(), "s3://bucket/jobs", identity, writer)
    };
    let (log, _) = take_over(1).await.unwrap();
    let settings = KafkaSettings {
        owner: Some(log),
        ..settings(&cluster().bootstrap, topic)
    };
    let epochs = epochs(topic, &[3, 4, 5]);
    let mut sink = KafkaSink::open(settings, job(topic), Channel::Rows)
        .await
        .unwrap();
    sink.commit(&epochs[0]).await.unwrap();
    let fence = || {
        let id = format!("everlog-job-{topic}-v1-rows");
        let properties = properties(&cluster().bootstrap);
        compute::spawn(move || TransactionalProducer::open(&properties, &id, &[]).map(drop))
    };
    fence().await.unwrap().unwrap();
    sink.commit(&epochs[1]).await.unwrap();
    assert_rows(&cluster().bootstrap, topic, 7);
    // once the job is another process's, it is over
    take_over(2).await.unwrap();
    fence().await.unwrap().unwrap();
    let error = sink.commit(&epochs[2]).await.unwrap_err();
    assert!(matches!(error, SinkError::Fenced { .. }), "{error}");
    assert_rows(&cluster().bootstrap, topic, 7);
}

#[tokio::test]
async fn a_zombie_is_fenced_wherever_it_is() {
    let topic = "sink.zombie";
    create(&cluster().bootstrap, topic, 1).await;
    let epochs = epochs(topic, &[10, 10, 10]);
    let mut zombie = open(topic).await.unwrap();
    zombie.commit(&epochs[0]).await.unwrap();
    // It stands in the middle of a transaction, its rows sent.
    let producer = zombie.producer().await.unwrap();
    let rows = Rows {
        settings: Arc::clone(&zombie.settings),
        target: zombie.target.clone(),
        batch: epochs[1].rows.clone(),
        marker_key: zombie.key(),
        marker: b"{}".to_vec(),
    };
    producer.begin().unwrap();
    for n in 0..10 {
        let text = format!("zombie {n}");
        producer
            .send(
                BaseRecord::to(topic)
                    .key(b"k".as_slice())
                    .payload(text.as_bytes()),
            )
            .unwrap();
    }
    let mut sink = open(topic).await.unwrap();
    assert_eq!(sink.committed().await.unwrap().unwrap().rows, 10);
    sink.commit(&epochs[1]).await.unwrap();
    let error = producer.commit().unwrap_err();
    assert!(
        matches!(error, TransactionError::Fenced { .. }),
        "{error:?}"
    );
    assert!(matches!(
        rows.commit(&producer),
        Err(Failed::Transaction(_))
    ));
    drop(producer);
    // And before one.
    let error = zombie.commit(&epochs[1]).await.unwrap_err();
    assert!(
        matches!(error, SinkError::Fenced { .. }) && error.exit_status() == 5,
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "output kafka:sink.zombie: another process runs job sink.zombie version v1 and took over; this one ends, nothing is lost or doubled"
    );
    sink.commit(&epochs[2]).await.unwrap();
    assert_rows(&cluster().bootstrap, topic, 30);
}

#[tokio::test]
async fn an_open_transaction_of_another_job_does_not_hide_the_marker() {
    let topic = "sink.hidden";
    create(&cluster().bootstrap, topic, 1).await;
    let epochs = epochs(topic, &[10, 10]);
    let mut sink = open(topic).await.unwrap();
    // Another job's marker is written and not decided: nothing behind it is stable.
    let other: BaseProducer = client_config(&properties(&cluster().bootstrap))
        .set("transactional.id", "somebody-else")
        .create()
        .unwrap();
    other.init_transactions(REQUEST_TIMEOUT).unwrap();
    other.begin_transaction().unwrap();
    let theirs = BaseRecord::to(MARKERS)
        .partition(0)
        .key("other/v1/rows")
        .payload("{}");
    other.send(theirs).map_err(|(e, _)| e).unwrap();
    other.flush(REQUEST_TIMEOUT).unwrap();
    sink.commit(&epochs[0]).await.unwrap();
    drop(sink);
    let mut opening = tokio::task::JoinSet::new();
    opening.spawn(open(topic));
    // It waits, and does not take an old marker, or none, for the newest.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(opening.try_join_next().is_none());
    tokio::task::spawn_blocking(move || other.abort_transaction(REQUEST_TIMEOUT).unwrap())
        .await
        .unwrap();
    let mut sink = opening.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(sink.committed().await.unwrap().unwrap().rows, 10);
    for epoch in &epochs {
        sink.commit(epoch).await.unwrap();
    }
    assert_rows(&cluster().bootstrap, topic, 20);
}

#[tokio::test]
async fn the_marker_is_found_however_many_others_follow_and_a_missing_topic_is_an_error() {
    let error = open("sink.missing").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "output kafka:sink.missing: the topic does not exist: create it"
    );
    assert_eq!(error.exit_status(), 2);
    let topic = "sink.far.back";
    create(&cluster().bootstrap, topic, 1).await;
    let epochs = epochs(topic, &[10]);
    let mut sink = open(topic).await.unwrap();
    sink.commit(&epochs[0]).await.unwrap();
    let producer: BaseProducer = client_config(&properties(&cluster().bootstrap))
        .create()
        .unwrap();
    for n in 0..3_000 {
        let key = format!("{n}/v1/rows");
        let record = BaseRecord::to(MARKERS).partition(0).key(&key).payload("{}");
        producer.send(record).map_err(|(e, _)| e).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(REQUEST_TIMEOUT).unwrap();
    drop(sink);
    let mut sink = open(topic).await.unwrap();
    assert_eq!(sink.committed().await.unwrap().unwrap().rows, 10);
    sink.commit(&epochs[0]).await.unwrap();
    assert_rows(&cluster().bootstrap, topic, 10);
}

/// Requests arrive, answers do not: the transaction is committed, and nobody hears of it.
#[tokio::test]
async fn a_commit_whose_reply_is_lost_is_neither_lost_nor_repeated() {
    let (kafka, proxies) = Kafka::start_behind_proxies(1, &[]);
    let proxy: &Proxy = &proxies[0];
    let through = format!("127.0.0.1:{}", proxy.port());
    let topic = "sink.lost.reply";
    create(&kafka.bootstrap, topic, 1).await;
    let epochs = epochs(topic, &[10, 10, 10]);
    let mut sink = KafkaSink::open(settings(&through, topic), job(topic), Channel::Rows)
        .await
        .unwrap();
    sink.commit(&epochs[0]).await.unwrap();

    // The process dies while it waits for the answer.
    proxy.toxic("timeout", r#"{"timeout":0}"#, "downstream");
    let committing = tokio::time::timeout(Duration::from_secs(8), sink.commit(&epochs[1])).await;
    assert!(committing.is_err(), "no answer came");
    proxy.reset();
    drop(sink);
    let mut sink = KafkaSink::open(settings(&through, topic), job(topic), Channel::Rows)
        .await
        .unwrap();
    let held = sink.committed().await.unwrap().unwrap().rows;
    assert!(held == 10 || held == 20, "{held}");
    sink.commit(&epochs[1]).await.unwrap();

    // The process lives on, and the answer is late.
    proxy.toxic("timeout", r#"{"timeout":0}"#, "downstream");
    let committing = sink.commit(&epochs[2]);
    let healing = async {
        tokio::time::sleep(Duration::from_secs(15)).await;
        proxy.reset();
    };
    let (committed, ()) = tokio::join!(committing, healing);
    committed.unwrap();
    sink.commit(&epochs[2]).await.unwrap();
    assert_eq!(sink.committed().await.unwrap().unwrap().rows, 30);
    drop(sink);
    assert_rows(&through, topic, 30);
}
