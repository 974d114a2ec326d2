//! What is asked of brokers, and their answers, as plain values. The versions' differences end here.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use everlog_common::{Partition, TopicName, TopicPartition};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::{
    ApiKey, BrokerId, FetchRequest, MetadataRequest, OffsetForLeaderEpochRequest,
    TopicName as WireName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::answers::{self, FetchedPartition};
use super::connection::Connection;
use super::part::{Heard, Leader};
use super::settings::Address;
use crate::{Isolation, LogError};

/// From this version on a fetch names topics by their ids.
const FETCH_BY_ID: i16 = 13;
/// Version 18 says something to followers only.
const FETCH_NEWEST: i16 = 17;

fn wire_name(topic: &TopicName) -> WireName {
    WireName(StrBytes::from_string(topic.as_str().to_owned()))
}

fn too_old(what: &str) -> LogError {
    LogError::Invalid {
        what: what.to_owned(),
        detail: "the broker is older than Kafka 0.11, or no Kafka".into(),
    }
}

// --- leaders ---------------------------------------------------------------------------------------------------------

/// What metadata say of a topic.
#[derive(Debug)]
pub(super) struct TopicHeard {
    /// Not allowed, not there.
    pub(super) error: Option<ResponseError>,
    pub(super) partitions: BTreeMap<i32, Heard>,
}

/// What metadata say.
#[derive(Debug, Default)]
pub(super) struct ClusterHeard {
    pub(super) brokers: BTreeMap<i32, Address>,
    pub(super) topics: BTreeMap<TopicName, TopicHeard>,
}

/// Asks for the leaders of some topics. Never creates one.
pub(super) fn metadata<'a>(
    connection: &mut Connection<'_>,
    topics: impl Iterator<Item = &'a TopicName>,
) -> Result<ClusterHeard, LogError> {
    let version = connection
        .version(ApiKey::Metadata, 12)
        // before that, asking for a topic may create it
        .filter(|version| *version >= 4)
        .ok_or_else(|| too_old("metadata"))?;
    let topics = topics
        .map(|topic| MetadataRequestTopic::default().with_name(Some(wire_name(topic))))
        .collect();
    let question = MetadataRequest::default()
        .with_topics(Some(topics))
        .with_allow_auto_topic_creation(false);
    let key = ApiKey::Metadata;
    let mut answer = connection.ask(key, version, &question, Duration::ZERO)?;
    let answer =
        answers::metadata(&mut answer, version).map_err(|e| connection.nonsense(key, &e))?;
    let mut heard = ClusterHeard::default();
    for broker in answer.brokers {
        if let Ok(port @ 1..) = u16::try_from(broker.port) {
            let host = broker.host;
            heard.brokers.insert(broker.node, Address { host, port });
        }
    }
    for topic in answer.topics {
        let Some(name) = topic.name.and_then(|name| TopicName::new(&name).ok()) else {
            continue;
        };
        let topic_id = (!topic.id.is_nil()).then_some(topic.id);
        let partitions = topic.partitions.into_iter().map(|p| {
            let leader = Leader {
                node: p.leader,
                epoch: (p.epoch >= 0).then_some(p.epoch),
            };
            // one that nobody leads, or that is not to be reached
            let is_there = leader.node >= 0 && heard.brokers.contains_key(&leader.node);
            let leader = is_there.then_some(leader);
            (p.index, Heard { topic_id, leader })
        });
        let partitions = partitions.collect();
        let error = ResponseError::try_from_code(topic.code);
        heard.topics.insert(name, TopicHeard { error, partitions });
    }
    Ok(heard)
}

// --- ends of epochs --------------------------------------------------------------------------------------------------

/// A partition whose last epoch is to be looked up.
#[derive(Debug, Clone)]
pub(super) struct EpochAsked {
    pub(super) tp: TopicPartition,
    pub(super) leader_epoch: i32,
    pub(super) epoch: i32,
}

/// The answer: error code, the epoch found, and where it ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct EpochEnd {
    pub(super) code: i16,
    pub(super) epoch: i32,
    pub(super) end: i64,
}

/// Where epochs ended; none where the broker is too old to say it.
pub(super) fn epoch_ends(
    connection: &mut Connection<'_>,
    asked: &[EpochAsked],
) -> Result<Option<BTreeMap<TopicPartition, EpochEnd>>, LogError> {
    let key = ApiKey::OffsetForLeaderEpoch;
    // before version 3 brokers let only those ask it who may do everything
    let Some(version) = connection.version(key, 4).filter(|version| *version >= 3) else {
        return Ok(None);
    };
    let mut topics: BTreeMap<&TopicName, Vec<OffsetForLeaderPartition>> = BTreeMap::new();
    for one in asked {
        let partition = OffsetForLeaderPartition::default()
            .with_partition(one.tp.partition.get())
            .with_current_leader_epoch(one.leader_epoch)
            .with_leader_epoch(one.epoch);
        topics.entry(&one.tp.topic).or_default().push(partition);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        OffsetForLeaderTopic::default()
            .with_topic(wire_name(topic))
            .with_partitions(partitions)
    });
    let question = OffsetForLeaderEpochRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_topics(topics.collect());
    let mut answer = connection.ask(key, version, &question, Duration::ZERO)?;
    let answer = answers::epoch_ends(&mut answer).map_err(|e| connection.nonsense(key, &e))?;
    let mut ends = BTreeMap::new();
    for end in answer {
        if let Some(tp) = source(&end.topic, end.partition) {
            let end = EpochEnd {
                code: end.code,
                epoch: end.epoch,
                end: end.end,
            };
            ends.insert(tp, end);
        }
    }
    Ok(Some(ends))
}

// --- records ---------------------------------------------------------------------------------------------------------

/// A partition to fetch.
#[derive(Debug, Clone)]
pub(super) struct FetchAsked {
    pub(super) tp: TopicPartition,
    /// Which assignment it is for.
    pub(super) id: u64,
    pub(super) topic_id: Option<Uuid>,
    pub(super) offset: i64,
    /// Who is asked.
    pub(super) leader: Leader,
}

/// How much to fetch, and how long to wait for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amount {
    pub(super) wait: Duration,
    pub(super) min: i32,
    pub(super) max: i32,
    pub(super) partition_max: i32,
}

/// An answer.
#[derive(Debug)]
pub(super) struct FetchedAll {
    pub(super) throttled: Duration,
    pub(super) partitions: BTreeMap<TopicPartition, FetchedPartition>,
    /// All of its memory; to be given back when nothing of it is needed any more.
    pub(super) memory: Bytes,
}

/// Fetches partitions of which the connection's broker is the leader.
pub(super) fn fetch(
    connection: &mut Connection<'_>,
    asked: &[FetchAsked],
    isolation: Isolation,
    amount: Amount,
) -> Result<FetchedAll, LogError> {
    let key = ApiKey::Fetch;
    // ids are asked for where all are known; names say nothing of which topic of that name is meant
    let by_id = asked.iter().all(|one| one.topic_id.is_some());
    let newest = if by_id { FETCH_NEWEST } else { FETCH_BY_ID - 1 };
    let version = connection
        .version(key, newest)
        .ok_or_else(|| too_old("fetch"))?;
    let by_id = version >= FETCH_BY_ID;
    // a broker fills its answer in the order of the request: topics as they come, partitions as they come in them
    let mut topics: Vec<FetchTopic> = Vec::new();
    let mut places = BTreeMap::new();
    for one in asked {
        let partition = FetchPartition::default()
            .with_partition(one.tp.partition.get())
            .with_current_leader_epoch(one.leader.epoch.unwrap_or(-1))
            .with_fetch_offset(one.offset)
            .with_log_start_offset(-1)
            .with_partition_max_bytes(amount.partition_max);
        // an old incarnation and a new one may be asked for at once
        let place = *places
            .entry((&one.tp.topic, one.topic_id.filter(|_| by_id)))
            .or_insert_with(|| {
                topics.push(if by_id {
                    FetchTopic::default().with_topic_id(one.topic_id.unwrap_or_default())
                } else {
                    FetchTopic::default().with_topic(wire_name(&one.tp.topic))
                });
                topics.len() - 1
            });
        if let Some(topic) = topics.get_mut(place) {
            topic.partitions.push(partition);
        }
    }
    let names: BTreeMap<Uuid, &TopicName> = asked
        .iter()
        .filter_map(|one| Some((one.topic_id?, &one.tp.topic)))
        .collect();
    let mut question = FetchRequest::default()
        .with_max_wait_ms(i32::try_from(amount.wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(amount.min)
        .with_max_bytes(amount.max)
        .with_isolation_level(i8::from(isolation == Isolation::ReadCommitted))
        // no session: each request says everything, and nobody's session is evicted for it
        .with_session_id(0)
        .with_session_epoch(-1)
        .with_topics(topics);
    if version < 15 {
        question = question.with_replica_id(BrokerId(-1));
    }
    let mut answer = connection.ask(key, version, &question, amount.wait)?;
    let memory = answer.bytes();
    let answer =
        answers::fetched(&mut answer, version).map_err(|e| connection.nonsense(key, &e))?;
    if let Some(error) = ResponseError::try_from_code(answer.code) {
        return Err(connection.nonsense(key, &error));
    }
    let mut partitions = BTreeMap::new();
    for topic in answer.topics {
        let name = match topic.name {
            None => names.get(&topic.id).map(|name| (*name).clone()),
            Some(name) => TopicName::new(&name).ok(),
        };
        let Some(name) = name else { continue };
        for p in topic.partitions {
            let Ok(partition) = Partition::new(p.index) else {
                continue;
            };
            partitions.insert(TopicPartition::new(name.clone(), partition), p);
        }
    }
    Ok(FetchedAll {
        throttled: Duration::from_millis(u64::try_from(answer.throttled).unwrap_or(0)),
        partitions,
        memory,
    })
}

fn source(topic: &str, partition: i32) -> Option<TopicPartition> {
    Some(TopicPartition::new(
        TopicName::new(topic).ok()?,
        Partition::new(partition).ok()?,
    ))
}
