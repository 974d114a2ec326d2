//! Brokers that die, freeze, lose data, hold damaged data, or refuse. Each test has its own.

use std::io::{Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use everlog_kafka::conformance::{Reading, World, at, numbered, partition};
use everlog_kafka::{Isolation, Log, LogError, PartitionFault, StartAt};

use crate::support::{Broker, Real};

/// Everything is allowed that no rule forbids.
const AUTHORIZER: &[&str] = &[
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found=true",
];

/// Killed and started again while records come: the reader goes on by itself, nothing is lost or doubled.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_and_comes_back_is_no_fault() {
    let broker = Broker::start();
    let world = Real::at(broker.bootstrap(), &[]);
    let name = world.fresh_name();
    world.create_topic(&name, 2).await;
    let tps = [partition(&name, 0), partition(&name, 1)];
    let starts: Vec<_> = tps.iter().map(|tp| (tp.clone(), at(0))).collect();
    let mut reading = Reading::alone(&world.log, Isolation::ReadCommitted, &starts).await;
    let mut count = 0;
    for round in 0..2 {
        for tp in &tps {
            world.produce(tp, numbered(count, count + 2000)).await;
        }
        count += 2000;
        reading.step(Duration::from_millis(30)).await;
        if round == 0 {
            tokio::task::block_in_place(|| broker.kill());
            reading.step(Duration::from_millis(500)).await;
            let refused = world
                .log
                .bounds(&tps, Isolation::ReadCommitted)
                .await
                .unwrap_err();
            assert!(refused.is_transient(), "{refused}");
        } else {
            tokio::task::block_in_place(|| broker.stop());
        }
        reading.step(Duration::from_millis(100)).await;
        tokio::task::block_in_place(|| broker.start_again());
    }
    for tp in &tps {
        world.produce(tp, numbered(count, count + 10)).await;
        let end = i64::try_from(count).unwrap() + 10;
        reading.until_position(tp, end).await;
        assert_eq!(reading.offsets(tp), (0..end).collect::<Vec<i64>>());
    }
    assert!(reading.faults.is_empty(), "{:?}", reading.faults);
    reading.close().await;
}

/// The log loses its end under a reader (as an unclean election does): the reader stops and says so, a fresh one too, and
/// the epoch's end is told.
#[tokio::test(flavor = "multi_thread")]
async fn h10_a_log_that_lost_its_end_is_a_truncation() {
    let broker = Broker::start();
    let world = Real::at(broker.bootstrap(), &[]);
    let name = world.fresh_name();
    world.create_topic(&name, 1).await;
    let tp = partition(&name, 0);
    world.produce(&tp, numbered(0, 50)).await;
    let log_file = broker
        .data()
        .join(format!("{name}-0"))
        .join("00000000000000000000.log");
    let kept = std::fs::metadata(&log_file).unwrap().len();
    world.produce(&tp, numbered(50, 100)).await;
    let mut reading =
        Reading::alone(&world.log, Isolation::ReadCommitted, &[(tp.clone(), at(0))]).await;
    reading.until_position(&tp, 100).await;
    let epoch = reading.batches[0].columns.row(0).leader_epoch.unwrap();

    tokio::task::block_in_place(|| {
        broker.kill();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&log_file)
            .unwrap()
            .set_len(kept)
            .unwrap();
        broker.start_again();
    });
    let fault = reading.until_fault().await;
    assert!(
        matches!(
            fault,
            PartitionFault::Truncated(_) | PartitionFault::OutOfRange { .. }
        ),
        "{fault:?}"
    );
    assert_eq!(reading.positions[&tp], 100);
    // longer than before again, in a later epoch: offsets alone look right
    world.produce(&tp, numbered(900, 1000)).await;
    let ends = world.log.epoch_ends(&[(tp.clone(), epoch)]).await.unwrap();
    assert_eq!(ends[&tp].map(everlog_common::Offset::get), Some(50));
    let start = StartAt {
        leader_epoch: Some(epoch),
        ..at(100)
    };
    reading.faults.clear();
    reading.assign(&[(tp.clone(), start)]).await;
    let fault = reading.until_fault().await;
    assert!(matches!(fault, PartitionFault::Truncated(_)), "{fault:?}");
    let mut fresh =
        Reading::alone(&world.log, Isolation::ReadCommitted, &[(tp.clone(), start)]).await;
    let fault = fresh.until_fault().await;
    assert!(matches!(fault, PartitionFault::Truncated(_)), "{fault:?}");
    assert!(fresh.rows.is_empty());
    fresh.close().await;
    reading.close().await;
}

/// One byte of a stored batch is wrong: the partition stops there; others go on. Read from the batch itself, since librdkafka
/// 2.12.1 fails an assertion of its own when the batch lies further behind in a response (see the `client` module).
#[tokio::test(flavor = "multi_thread")]
async fn damaged_data_stops_its_partition() {
    let broker = Broker::start();
    let world = Real::at(broker.bootstrap(), &[]);
    let name = world.fresh_name();
    world.create_topic(&name, 2).await;
    let (bad, good) = (partition(&name, 0), partition(&name, 1));
    let large = |from: usize, to: usize| {
        numbered(from, to)
            .into_iter()
            .map(|r| r.key([b'k'; 1000]))
            .collect::<Vec<_>>()
    };
    world.produce(&bad, large(0, 10)).await;
    let log_file = broker
        .data()
        .join(format!("{name}-0"))
        .join("00000000000000000000.log");
    let whole = std::fs::metadata(&log_file).unwrap().len();
    world.produce(&bad, large(10, 20)).await;
    world.produce(&bad, large(20, 30)).await;
    world.produce(&good, numbered(0, 10)).await;
    tokio::task::block_in_place(|| {
        broker.stop();
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&log_file)
            .unwrap();
        let place = whole + 200;
        let mut byte = [0];
        file.seek(SeekFrom::Start(place)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(place)).unwrap();
        file.write_all(&[byte[0] ^ 0x10]).unwrap();
        drop(file);
        broker.start_again();
    });
    let mut reading = Reading::alone(
        &world.log,
        Isolation::ReadCommitted,
        &[(bad.clone(), at(10)), (good.clone(), at(0))],
    )
    .await;
    let fault = reading.until_fault().await;
    assert!(matches!(fault, PartitionFault::Corrupt(_)), "{fault:?}");
    reading.until_position(&good, 10).await;
    assert_eq!(reading.offsets(&bad), Vec::<i64>::new());
    reading.stays_quiet().await;
    reading.close().await;
}

/// A broker that stops answering: requests end in time and say that they may be tried again.
#[tokio::test(flavor = "multi_thread")]
async fn requests_to_a_broker_that_hangs_are_bounded() {
    let broker = Broker::start();
    let world = Real::at(
        broker.bootstrap(),
        &[("everlog.request.timeout.ms", "1500")],
    );
    let name = world.fresh_name();
    world.create_topic(&name, 1).await;
    let tp = partition(&name, 0);
    tokio::task::block_in_place(|| broker.freeze());
    let began = Instant::now();
    let refused = world
        .log
        .bounds(std::slice::from_ref(&tp), Isolation::ReadCommitted)
        .await
        .unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    let refused = world.log.epoch_ends(&[(tp.clone(), 0)]).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    tokio::task::block_in_place(|| broker.thaw());
    let began = Instant::now();
    while world
        .log
        .bounds(std::slice::from_ref(&tp), Isolation::ReadCommitted)
        .await
        .is_err()
    {
        assert!(began.elapsed() < Duration::from_mins(1));
    }
}

/// Nothing listens there: an error that says so, within the limit.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_cluster_is_an_error_that_says_so() {
    let world = Real::at(
        "127.0.0.1:1".to_owned(),
        &[("everlog.request.timeout.ms", "1000")],
    );
    let began = Instant::now();
    let refused = world.log.cluster_id().await.unwrap_err();
    assert!(matches!(refused, LogError::Unavailable { .. }));
    assert!(
        refused.to_string().contains("Connection refused"),
        "{refused}"
    );
    assert!(began.elapsed() < Duration::from_secs(8));
}

/// The broker says no: to a topic, and to a group. (A topic that may not even be described is silence to a reader; asking for
/// it says why.)
#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_is_denied() {
    let broker = Broker::start_with(AUTHORIZER);
    let world = Real::at(broker.bootstrap(), &[]);
    let (closed, open) = (world.fresh_name(), world.fresh_name());
    world.create_topic(&closed, 1).await;
    world.create_topic(&open, 1).await;
    let (secret, free) = (partition(&closed, 0), partition(&open, 0));
    world.produce(&secret, numbered(0, 5)).await;
    world.produce(&free, numbered(0, 5)).await;
    let rules = [
        ["--deny-principal", "Read", "--topic", closed.as_str()],
        // a resource with rules is closed to everybody but whom they allow
        ["--allow-principal", "Describe", "--topic", closed.as_str()],
        ["--deny-principal", "Read", "--group", "closed-group"],
    ];
    for [who, operation, kind, resource] in rules {
        tokio::task::block_in_place(|| {
            broker.tool(&[
                "org.apache.kafka.tools.AclCommand",
                "--add",
                who,
                "User:ANONYMOUS",
                "--operation",
                operation,
                kind,
                resource,
                "--force",
            ]);
        });
    }
    let began = Instant::now();
    loop {
        let mut reading = Reading::alone(
            &world.log,
            Isolation::ReadCommitted,
            &[(secret.clone(), at(0)), (free.clone(), at(0))],
        )
        .await;
        reading.until_position(&free, 5).await;
        // rules reach the broker a moment after they are made
        if reading.positions[&secret] != 0 {
            assert!(began.elapsed() < Duration::from_secs(30));
            reading.close().await;
            continue;
        }
        let fault = reading.until_fault().await;
        assert!(matches!(fault, PartitionFault::Denied(_)), "{fault:?}");
        reading.close().await;
        break;
    }
    let mut member = world
        .log
        .open(everlog_kafka::ReaderOptions {
            membership: everlog_kafka::Membership::Group {
                group: "closed-group".to_owned(),
                topics: vec![open.clone()],
            },
            ..everlog_kafka::conformance::alone(Isolation::ReadCommitted)
        })
        .await
        .unwrap();
    let began = Instant::now();
    let refused = loop {
        assert!(began.elapsed() < Duration::from_secs(30), "not denied");
        if let Err(error) = member.poll(Duration::from_millis(200)).await {
            break error;
        }
    };
    assert!(matches!(refused, LogError::Denied { .. }), "{refused}");
    member.close().await.unwrap();
}

/// What may not even be described is told of that topic alone, whatever else is asked in the same request.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_described_takes_nothing_from_the_others() {
    let broker = Broker::start_with(AUTHORIZER);
    let world = Real::at(broker.bootstrap(), &[]);
    let (closed, open) = (world.fresh_name(), world.fresh_name());
    for name in [&closed, &open] {
        world.create_topic(name, 1).await;
        world.produce(&partition(name, 0), numbered(0, 5)).await;
    }
    tokio::task::block_in_place(|| broker.close_topic(&closed));
    let names = [closed.clone(), open.clone()];
    let began = Instant::now();
    // rules reach the broker a moment after they are made
    let described = loop {
        let described = world.log.describe(&names).await.unwrap();
        if described[&closed].is_err() {
            break described;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "not closed");
    };
    assert!(matches!(described[&closed], Err(LogError::Denied { .. })));
    assert_eq!(described[&open].as_ref().unwrap().partitions.len(), 1);
    let topics = world.log.topics().await.unwrap();
    let listed: Vec<_> = topics.iter().map(|t| &t.name).collect();
    assert!(
        listed.contains(&&open) && !listed.contains(&&closed),
        "{listed:?}"
    );

    let tps = [partition(&closed, 0), partition(&open, 0)];
    let bounds = world.log.bounds(&tps, Isolation::ReadCommitted).await;
    let bounds = bounds.unwrap();
    assert_eq!(bounds.keys().collect::<Vec<_>>(), vec![&tps[1]]);
    assert_eq!(bounds[&tps[1]].leader_epoch, Some(0));
    let epochs: Vec<_> = tps.iter().map(|tp| (tp.clone(), 0)).collect();
    let ends = world.log.epoch_ends(&epochs).await.unwrap();
    assert_eq!(ends.keys().collect::<Vec<_>>(), vec![&tps[1]]);
    // where nothing else is asked it is an error, as is a statement that would be wrong
    for refused in [
        world
            .log
            .bounds(&tps[..1], Isolation::ReadCommitted)
            .await
            .err(),
        world.log.epoch_ends(&epochs[..1]).await.err(),
        world
            .log
            .offsets_at(&tps, everlog_common::Millis(0))
            .await
            .err(),
        world.log.topic_config(&closed).await.err(),
    ] {
        assert!(
            matches!(refused, Some(LogError::Denied { .. })),
            "{refused:?}"
        );
    }
}

/// A topic is closed under a group that reads it. Whoever owns nothing of it, or nothing of its partition 0, must not end, and
/// the other topics are read on; once it is no longer subscribed to, the group is as before.
async fn a_topic_that_is_closed_ends_no_member(properties: &[(&str, &str)]) {
    let mut settings = AUTHORIZER.to_vec();
    settings.push("group.consumer.heartbeat.interval.ms=200");
    let broker = Broker::start_with(&settings);
    let world = Real::at(broker.bootstrap(), properties);
    let (closed, open) = (world.fresh_name(), world.fresh_name());
    for name in [&closed, &open] {
        world.create_topic(name, 3).await;
    }
    let options = everlog_kafka::ReaderOptions {
        membership: everlog_kafka::Membership::Group {
            group: "g".to_owned(),
            topics: vec![closed.clone(), open.clone()],
        },
        ..everlog_kafka::conformance::alone(Isolation::ReadCommitted)
    };
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(Reading::new(world.log.open(options.clone()).await.unwrap()));
    }
    let patience = Duration::from_secs(90);
    let opened: Vec<_> = (0..3).map(|n| partition(&open, n)).collect();
    // one ledger for all; a poll that fails ends the test
    let mut ledger = std::collections::BTreeMap::new();
    let mut round = async |members: &mut Vec<Reading>| {
        for member in members.iter_mut() {
            member.ledger.clone_from(&ledger);
            member.step(Duration::from_millis(20)).await;
            for (tp, at) in member.positions.iter().chain(&member.ledger) {
                let known = ledger.entry(tp.clone()).or_insert(*at);
                *known = (*known).max(*at);
            }
        }
        ledger.clone()
    };
    let began = Instant::now();
    while members.iter().map(|m| m.owned.len()).sum::<usize>() < 6
        || members.iter().any(|m| m.owned.is_empty())
    {
        assert!(began.elapsed() < patience, "the group does not settle");
        round(&mut members).await;
    }
    tokio::task::block_in_place(|| broker.close_topic(&closed));
    let began = Instant::now();
    let is_closed = |m: &Reading| {
        let denied = |f: &(_, PartitionFault)| matches!(f.1, PartitionFault::Denied(_));
        m.faults.iter().any(denied) || m.owned.iter().all(|tp| tp.topic != closed)
    };
    while !members.iter().all(is_closed) {
        assert!(began.elapsed() < patience, "nobody hears of it");
        round(&mut members).await;
    }
    for member in &mut members {
        let only = std::slice::from_ref(&open);
        member.reader.subscribe(only).await.unwrap();
    }
    for tp in &opened {
        world.produce(tp, numbered(0, 10)).await;
    }
    let began = Instant::now();
    loop {
        let ledger = round(&mut members).await;
        if opened.iter().all(|tp| ledger.get(tp) == Some(&10)) {
            break;
        }
        assert!(
            began.elapsed() < patience,
            "the open topic is not read: {ledger:?}"
        );
    }
    for (tp, fault) in members.iter().flat_map(|m| &m.faults) {
        assert_eq!(tp.topic, closed, "{fault:?}");
        assert!(matches!(fault, PartitionFault::Denied(_)), "{fault:?}");
    }
    for member in members {
        member.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_closed_ends_no_member_of_a_classic_group() {
    a_topic_that_is_closed_ends_no_member(crate::groups::CLASSIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_closed_ends_no_member_of_a_kip_848_group() {
    a_topic_that_is_closed_ends_no_member(crate::groups::CONSUMER).await;
}

/// A broker that is away is asked now and then, not ten thousand times a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_away_is_asked_with_pauses() {
    // Takes connections and drops them, so that they can be counted.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&count);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            drop(connection);
        }
    });
    let properties = [("bootstrap.servers".to_owned(), address)].into();
    let log = everlog_kafka::client::KafkaLog::connect(&properties).unwrap();
    let name = everlog_common::TopicName::new("orders").unwrap();
    let asked = async {
        let names = [name.clone()];
        let described = log.describe(&names).await;
        let config = log.topic_config(&name).await;
        (described, config)
    };
    let answers = tokio::time::timeout(Duration::from_secs(8), asked).await;
    if let Ok((described, config)) = answers {
        assert!(described.unwrap_err().is_transient());
        assert!(config.unwrap_err().is_transient());
    }
    let connections = count.load(std::sync::atomic::Ordering::SeqCst);
    assert!((1..200).contains(&connections), "{connections} connections");
}
