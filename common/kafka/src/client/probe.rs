//! Where leader epochs ended.
//!
//! librdkafka has no call for it, but it asks the broker itself (`OffsetForLeaderEpoch`) whenever it is told to seek to
//! an offset with an epoch, and says what the broker answered when the epoch ended below that offset. So a consumer of its
//! own seeks, paused, to an offset beyond every log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use everlog_common::{Offset, TopicPartition};

use super::classify::{self, EpochEnd};
use super::ffi::{Client, Code, Failure, Flow, PartitionList, Queue};
use super::log::configuration;
use super::properties::ClientProperties;
use crate::LogError;

/// Beyond every log, and far from librdkafka's logical offsets.
const BEYOND: i64 = i64::MAX / 2;
const WHAT: &str = "ends of leader epochs";

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
    let refused = client.seek(&all, timeout)?;
    if let Some((topic, partition, failure)) = refused.into_iter().next() {
        return Err(Failure {
            code: failure.code,
            text: format!("{topic}-{partition}: {}", failure.text),
        });
    }
    let mut answers = BTreeMap::new();
    let mut failed = None;
    while answers.len() < asked.len() && failed.is_none() {
        let left = timeout.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Failure::timed_out());
        }
        client.serve(|_| {});
        queue.consume(left.min(Duration::from_millis(100)), &mut |message| {
            let tp = asked.keys().find(|tp| {
                tp.topic.as_str() == message.topic() && tp.partition.get() == message.partition()
            });
            if let Some(tp) = tp {
                let text = message.error_text();
                match classify::epoch_end(&text) {
                    Some(end) => {
                        answers.insert(tp.clone(), Some(end));
                    }
                    // it went away since it was looked up
                    None if classify::gone(message.code()) => {
                        answers.insert(tp.clone(), None);
                    }
                    None if message.code() == Code::OK => {}
                    None => {
                        failed = Some(Failure {
                            code: message.code(),
                            text: format!("{tp}: {text}"),
                        });
                    }
                }
            }
            Flow::On
        });
    }
    match failed {
        Some(failure) => Err(failure),
        None => Ok(answers
            .into_iter()
            .filter_map(|(tp, answer)| match answer? {
                EpochEnd::At(offset) => Some((tp, Some(offset))),
                EpochEnd::Unknown => Some((tp, None)),
            })
            .collect()),
    }
}
