//! What only the memory log can be asked: groups step by step, zombies, determinism.

use std::sync::Arc;
use std::time::Duration;

use everlog_common::clock::ManualClock;
use everlog_common::{Clock, Offset, Partition, TopicName, TopicPartition};

use super::{MemoryLog, MemoryRecord, Request};
use crate::{
    Isolation, Log, LogError, LogReader, Membership, PartitionFault, ReaderEvent, ReaderOptions,
    StartAt,
};

fn topic() -> TopicName {
    TopicName::new("orders").unwrap()
}

fn tp(n: i32) -> TopicPartition {
    TopicPartition::new(topic(), Partition::new(n).unwrap())
}

fn at(offset: i64) -> StartAt {
    StartAt {
        offset: Offset::new(offset).unwrap(),
        leader_epoch: None,
    }
}

fn options(membership: Membership) -> ReaderOptions {
    ReaderOptions {
        membership,
        isolation: Isolation::ReadCommitted,
        memory_bytes: 1 << 20,
        linger: Duration::ZERO,
    }
}

fn group() -> Membership {
    Membership::Group {
        group: "g".into(),
        topics: vec![topic()],
    }
}

async fn one(reader: &mut Box<dyn LogReader>) -> ReaderEvent {
    let mut events = reader.poll(Duration::ZERO).await.unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

/// Answers whatever the group asks until nobody is asked any more; returns who holds what.
async fn settle(readers: &mut [Box<dyn LogReader>]) {
    loop {
        let mut quiet = true;
        for reader in readers.iter_mut() {
            for event in reader.poll(Duration::ZERO).await.unwrap() {
                quiet = false;
                match event {
                    ReaderEvent::Assigned(given) => {
                        let starts: Vec<_> = given.into_iter().map(|tp| (tp, at(0))).collect();
                        reader.assign(&starts).await.unwrap();
                    }
                    ReaderEvent::Revoked { partitions, .. } => {
                        reader.unassign(&partitions).await.unwrap();
                    }
                    _ => {}
                }
            }
        }
        if quiet {
            return;
        }
    }
}

#[tokio::test]
async fn a_group_spreads_partitions_and_asks_before_it_takes_them() {
    let log = MemoryLog::new(Arc::new(ManualClock::default()));
    log.create_topic(&topic(), 5);
    let mut readers = vec![log.open(options(group())).await.unwrap()];
    settle(&mut readers).await;
    assert_eq!(log.owned("g", 1).len(), 5);

    readers.push(log.open(options(group())).await.unwrap());
    // the first is asked, and keeps its partitions until it has answered
    let ReaderEvent::Revoked { partitions, lost } = one(&mut readers[0]).await else {
        panic!("expected a revocation");
    };
    assert!(!lost && partitions.len() == 2, "{partitions:?}");
    let ReaderEvent::Assigned(given) = one(&mut readers[1]).await else {
        panic!("expected an assignment");
    };
    assert!(given.is_empty());
    readers[1].assign(&[]).await.unwrap();
    assert_eq!(log.owned("g", 2), vec![]);
    readers[0].unassign(&partitions).await.unwrap();
    settle(&mut readers).await;
    assert_eq!((log.owned("g", 1).len(), log.owned("g", 2).len()), (3, 2));

    log.add_partitions(&topic(), 6);
    settle(&mut readers).await;
    assert_eq!((log.owned("g", 1).len(), log.owned("g", 2).len()), (3, 3));

    readers.remove(0).close().await.unwrap();
    settle(&mut readers).await;
    assert_eq!(log.owned("g", 2).len(), 6);
}

#[tokio::test]
async fn h23_a_zombie_reads_on_until_it_hears_that_it_lost_its_partitions() {
    let log = MemoryLog::new(Arc::new(ManualClock::default()));
    log.create_topic(&topic(), 1);
    let mut zombie = vec![log.open(options(group())).await.unwrap()];
    settle(&mut zombie).await;
    log.deafen("g", 1, true);
    log.expel("g", 1);
    let mut second = vec![log.open(options(group())).await.unwrap()];
    settle(&mut second).await;
    assert_eq!(log.owned("g", 2), vec![tp(0)]);

    log.append_values(&tp(0), ["a", "b"]);
    for reader in [&mut zombie[0], &mut second[0]] {
        let ReaderEvent::Fetched(rows) = one(reader).await else {
            panic!("both read");
        };
        assert_eq!(rows.columns.len(), 2);
    }
    log.deafen("g", 1, false);
    let ReaderEvent::Revoked { partitions, lost } = one(&mut zombie[0]).await else {
        panic!("expected a loss");
    };
    assert!(lost && partitions == vec![tp(0)]);
    zombie[0].unassign(&partitions).await.unwrap();
    settle(&mut zombie).await;
    assert_eq!(log.owned("g", 1), vec![]);
}

#[tokio::test]
async fn budgets_bound_a_poll_and_starve_nobody() {
    let log = MemoryLog::new(Arc::new(ManualClock::default()));
    log.create_topic(&topic(), 3);
    for p in 0..3 {
        log.append_values(&tp(p), vec![[b'x'; 1000]; 10]);
    }
    let mut reader = log
        .open(ReaderOptions {
            memory_bytes: 2500,
            ..options(Membership::Alone)
        })
        .await
        .unwrap();
    let starts: Vec<_> = (0..3).map(|p| (tp(p), at(0))).collect();
    reader.assign(&starts).await.unwrap();
    let mut seen = [0; 3];
    for _ in 0..3 {
        let mut bytes = 0;
        for event in reader.poll(Duration::ZERO).await.unwrap() {
            let ReaderEvent::Fetched(f) = event else {
                panic!("{event:?}");
            };
            bytes += f.columns.bytes();
            seen[usize::try_from(f.source.partition.get()).unwrap()] += f.columns.len();
        }
        assert!(bytes <= 2500 + 1040, "{bytes}");
    }
    assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
}

#[tokio::test]
async fn waiting_passes_on_the_injected_clock_and_ends_with_an_append() {
    let clock = Arc::new(ManualClock::default());
    let log = MemoryLog::new(Arc::<ManualClock>::clone(&clock));
    log.create_topic(&topic(), 1);
    let mut reader = log.open(options(Membership::Alone)).await.unwrap();
    reader.assign(&[(tp(0), at(0))]).await.unwrap();
    let before = clock.now();
    assert!(
        reader
            .poll(Duration::from_secs(5))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(clock.now().since(before), Duration::from_secs(5));

    let log = MemoryLog::new(Arc::new(everlog_common::clock::SystemClock::default()));
    log.create_topic(&topic(), 1);
    let mut reader = log.open(options(Membership::Alone)).await.unwrap();
    reader.assign(&[(tp(0), at(0))]).await.unwrap();
    let (events, ()) = tokio::join!(reader.poll(Duration::from_mins(1)), async {
        log.append(&tp(0), MemoryRecord::value("late"));
    });
    assert_eq!(events.unwrap().len(), 1);
}

#[tokio::test]
async fn a_deleted_topic_is_silence_and_a_recreated_one_is_read_on() {
    let log = MemoryLog::new(Arc::new(ManualClock::default()));
    let old = log.create_topic(&topic(), 1);
    log.append_values(&tp(0), ["a", "b"]);
    let mut reader = log.open(options(Membership::Alone)).await.unwrap();
    reader.assign(&[(tp(0), at(2))]).await.unwrap();
    log.delete_topic(&topic());
    assert!(reader.poll(Duration::ZERO).await.unwrap().is_empty());
    let new = log.create_topic(&topic(), 1);
    assert_ne!(old, new);
    log.append_values(&tp(0), ["x", "y", "z"]);
    let ReaderEvent::Fetched(rows) = one(&mut reader).await else {
        panic!("rows of the new topic");
    };
    assert_eq!(rows.columns.values.value(0), b"z");
}

#[tokio::test]
async fn requests_and_partitions_fail_on_demand() {
    let log = MemoryLog::new(Arc::new(ManualClock::default()));
    log.create_topic(&topic(), 1);
    log.append_values(&tp(0), ["a"]);
    let mut left = 2;
    log.intercept(move |request| {
        (request == Request::Bounds && left > 0).then(|| {
            left -= 1;
            LogError::Unavailable {
                what: "bounds".into(),
                detail: "injected".into(),
            }
        })
    });
    for _ in 0..2 {
        let refused = log.bounds(&[tp(0)], Isolation::ReadCommitted).await;
        assert!(refused.unwrap_err().is_transient());
    }
    assert_eq!(
        log.bounds(&[tp(0)], Isolation::ReadCommitted)
            .await
            .unwrap()[&tp(0)]
            .end
            .get(),
        1
    );
    let mut reader = log.open(options(Membership::Alone)).await.unwrap();
    reader.assign(&[(tp(0), at(0))]).await.unwrap();
    log.fault(&tp(0), PartitionFault::Corrupt("bad CRC".into()));
    assert!(matches!(
        one(&mut reader).await,
        ReaderEvent::Fault {
            fault: PartitionFault::Corrupt(_),
            ..
        }
    ));
    assert!(reader.poll(Duration::ZERO).await.unwrap().is_empty());
    reader.assign(&[(tp(0), at(0))]).await.unwrap();
    assert!(matches!(one(&mut reader).await, ReaderEvent::Fetched(_)));
}
