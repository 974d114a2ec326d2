//! Where leader epochs ended.
//!
//! librdkafka has no call for it, but it asks the broker itself (`OffsetForLeaderEpoch`) whenever it is told to seek to
//! an offset with an epoch, and says what the broker answered when the epoch ended below that offset. So a consumer of its
//! own seeks, paused, to an offset beyond every log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use everlog_common::{Offset, TopicPartition};

use super::classify::{self, EpochEnd};
use super::ffi::{Client, Delivery, Failure, Flow, PartitionList, Queue};
use super::log::configuration;
use super::properties::ClientProperties;
use crate::LogError;

/// Beyond every log, and far from librdkafka's logical offsets.
const BEYOND: i64 = i64::MAX / 2;
/// Once some have answered, the others have so long from the last answer on.
const STRAGGLERS: Duration = Duration::from_secs(3);
const WHAT: &str = "ends of leader epochs";

/// What was answered: an unanswered partition is absent, and keeps the others waiting for a few seconds at most.
pub(super) fn epoch_ends(
    properties: &ClientProperties,
    asked: &BTreeMap<TopicPartition, i32>,
) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
    let client = Client::new(&properties.for_probe()).map_err(|e| configuration(&e))?;
    let answers = ask(&client, asked, properties.request_timeout)
        .map_err(|e| classify::request(WHAT, &e, client.log().last_error()));
    client.close(Duration::from_secs(1));
    answers
}

fn list(partitions: &BTreeMap<TopicPartition, i32>) -> Result<PartitionList, Failure> {
    let mut list = PartitionList::with_capacity(partitions.len());
    for (tp, epoch) in partitions {
        list.add_at(tp.topic.as_str(), tp.partition.get(), BEYOND, Some(*epoch))?;
    }
    Ok(list)
}

fn ask(
    client: &std::sync::Arc<Client>,
    asked: &BTreeMap<TopicPartition, i32>,
    timeout: Duration,
) -> Result<BTreeMap<TopicPartition, Option<Offset>>, Failure> {
    let began = Instant::now();
    let queue = Queue::new(client);
    for tp in asked.keys() {
        queue.forward_partition(tp.topic.as_str(), tp.partition.get())?;
    }
    let all = list(asked)?;
    // paused, so that nothing is fetched at the impossible offset
    client.pause(&all)?;
    client.incremental_assign(&all)?;
    let refused: Vec<_> = client.seek(&all, timeout)?;
    // what was refused gets no answer: its partition went away, or is about to have a leader again
    let mut open: BTreeSet<&TopicPartition> = asked
        .keys()
        .filter(|tp| {
            !refused.iter().any(|(topic, partition, _)| {
                tp.topic.as_str() == topic && tp.partition.get() == *partition
            })
        })
        .collect();
    let mut failed = refused.into_iter().next().map(|(.., failure)| failure);
    let mut answers = BTreeMap::new();
    let mut answered_at = None;
    while !open.is_empty() {
        let left = timeout.saturating_sub(began.elapsed());
        let waited = answered_at.is_some_and(|at: Instant| at.elapsed() > STRAGGLERS);
        if left.is_zero() || waited {
            break;
        }
        client.serve(|_| {});
        queue.consume(left.min(Duration::from_millis(100)), &mut |delivery| {
            let Delivery::Report(report) = delivery else {
                return Flow::On;
            };
            let tp = open.iter().copied().find(|tp| {
                tp.topic.as_str() == report.topic && tp.partition.get() == report.partition
            });
            let Some(tp) = tp else {
                return Flow::On;
            };
            let (code, text) = (report.code, report.text);
            match classify::epoch_end(&text) {
                Some(EpochEnd::At(offset)) => answers.insert(tp.clone(), Some(offset)),
                Some(EpochEnd::Unknown) => answers.insert(tp.clone(), None),
                None if classify::mends_itself(code) => return Flow::On,
                None => {
                    // one that went away since it was looked up is no failure
                    if !classify::gone(code) {
                        let text = format!("{tp}: {text}");
                        failed.get_or_insert(Failure { code, text });
                    }
                    None
                }
            };
            answered_at = Some(Instant::now());
            open.remove(tp);
            Flow::On
        });
    }
    match failed {
        Some(failure) if answers.is_empty() => Err(failure),
        None if answers.is_empty() && open.len() == asked.len() => Err(Failure::timed_out()),
        _ => Ok(answers),
    }
}
