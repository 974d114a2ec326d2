//! Brokers' answers, from their bytes. Pure.
//!
//! kafka-protocol writes the requests. What comes back is read here, since that crate takes memory for as many elements as an
//! answer says it has, and a length that is wrong would end the process; here a count is held against the bytes that follow.
//! Field by field as the protocol's definition has them, for the versions that are asked for.

use bytes::Bytes;
use everlog_wire::AbortedTransaction;
use uuid::Uuid;

/// An answer ends early, or says what cannot be. Where: bytes from its front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it makes no sense at byte {0}")]
pub(super) struct Malformed(usize);

type Read<T> = Result<T, Malformed>;

/// Reads an answer off, field by field.
pub(super) struct Answer {
    bytes: Bytes,
    at: usize,
    /// Whether lengths are variable and fields may be tagged.
    flexible: bool,
}

impl Answer {
    pub(super) const fn new(bytes: Bytes, flexible: bool) -> Self {
        Self {
            bytes,
            at: 0,
            flexible,
        }
    }

    /// All of it, to take its memory back later.
    pub(super) fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// From here on by other rules: the header of an answer is not always as its body.
    pub(super) const fn make_flexible(&mut self, flexible: bool) {
        self.flexible = flexible;
    }

    const fn wrong<T>(&self) -> Read<T> {
        Err(Malformed(self.at))
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take<const N: usize>(&mut self) -> Read<[u8; N]> {
        let taken = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.first_chunk());
        let Some(taken) = taken.copied() else {
            return self.wrong();
        };
        self.at += N;
        Ok(taken)
    }

    fn i8(&mut self) -> Read<i8> {
        self.take().map(i8::from_be_bytes)
    }

    pub(super) fn i16(&mut self) -> Read<i16> {
        self.take().map(i16::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Read<i32> {
        self.take().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Read<i64> {
        self.take().map(i64::from_be_bytes)
    }

    fn uuid(&mut self) -> Read<Uuid> {
        self.take().map(Uuid::from_bytes)
    }

    fn varint(&mut self) -> Read<u32> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.take()?;
            value |= u32::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        self.wrong()
    }

    /// A length, where none is null; never more than there are bytes.
    fn length(&mut self, of_string: bool) -> Read<Option<usize>> {
        let length = if self.flexible {
            i64::from(self.varint()?) - 1
        } else if of_string {
            i64::from(self.i16()?)
        } else {
            i64::from(self.i32()?)
        };
        match usize::try_from(length) {
            Ok(length) if length <= self.left() => Ok(Some(length)),
            Err(_) if length == -1 => Ok(None),
            _ => self.wrong(),
        }
    }

    fn slice(&mut self, length: usize) -> Bytes {
        let slice = self.bytes.slice(self.at..self.at + length);
        self.at += length;
        slice
    }

    fn nullable_string(&mut self) -> Read<Option<String>> {
        let Some(length) = self.length(true)? else {
            return Ok(None);
        };
        let text = self.slice(length);
        match std::str::from_utf8(&text) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => self.wrong(),
        }
    }

    fn string(&mut self) -> Read<String> {
        match self.nullable_string()? {
            Some(text) => Ok(text),
            None => self.wrong(),
        }
    }

    /// Null is as good as none.
    fn blob(&mut self) -> Read<Bytes> {
        let length = self.length(false)?.unwrap_or(0);
        Ok(self.slice(length))
    }

    /// Null is as good as empty. An element takes a byte at least, so that no count is larger than what is there.
    fn array<T>(&mut self, mut each: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let count = self.length(false)?.unwrap_or(0);
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(each(self)?);
        }
        Ok(all)
    }

    /// Fields of versions to come.
    pub(super) fn tags(&mut self) -> Read<()> {
        if !self.flexible {
            return Ok(());
        }
        for _ in 0..self.varint()? {
            self.varint()?;
            let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
            if length > self.left() {
                return self.wrong();
            }
            self.at += length;
        }
        Ok(())
    }
}

/// Versions of one kind of request that a broker speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spoken {
    pub(super) key: i16,
    pub(super) versions: (i16, i16),
}

/// ApiVersions 0 and 3: error code, and what is spoken. (Its header has no tags in any version.)
pub(super) fn versions(answer: &mut Answer) -> Read<(i16, Vec<Spoken>)> {
    let code = answer.i16()?;
    let all = answer.array(|a| {
        let spoken = Spoken {
            key: a.i16()?,
            versions: (a.i16()?, a.i16()?),
        };
        a.tags()?;
        Ok(spoken)
    })?;
    Ok((code, all))
}

/// SaslHandshake 1: error code, and the mechanisms that are offered.
pub(super) fn mechanisms(answer: &mut Answer) -> Read<(i16, Vec<String>)> {
    Ok((answer.i16()?, answer.array(Answer::string)?))
}

/// SaslAuthenticate 0 to 2.
#[derive(Debug)]
pub(super) struct Authenticated {
    pub(super) code: i16,
    pub(super) words: Option<String>,
    pub(super) message: Bytes,
    /// Milliseconds; 0 for ever.
    pub(super) lifetime: i64,
}

pub(super) fn authenticated(answer: &mut Answer, version: i16) -> Read<Authenticated> {
    Ok(Authenticated {
        code: answer.i16()?,
        words: answer.nullable_string()?,
        message: answer.blob()?,
        lifetime: if version >= 1 { answer.i64()? } else { 0 },
    })
}

/// Metadata 4 to 12.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) brokers: Vec<BrokerAt>,
    pub(super) topics: Vec<TopicAt>,
}

#[derive(Debug)]
pub(super) struct BrokerAt {
    pub(super) node: i32,
    pub(super) host: String,
    pub(super) port: i32,
}

#[derive(Debug)]
pub(super) struct TopicAt {
    pub(super) code: i16,
    pub(super) name: Option<String>,
    pub(super) id: Uuid,
    pub(super) partitions: Vec<PartitionAt>,
}

#[derive(Debug)]
pub(super) struct PartitionAt {
    pub(super) index: i32,
    /// -1 where nobody leads.
    pub(super) leader: i32,
    /// -1 where it is not said.
    pub(super) epoch: i32,
}

pub(super) fn metadata(answer: &mut Answer, version: i16) -> Read<Metadata> {
    let _throttled = answer.i32()?;
    let brokers = answer.array(|a| {
        let broker = BrokerAt {
            node: a.i32()?,
            host: a.string()?,
            port: a.i32()?,
        };
        let _rack = a.nullable_string()?;
        a.tags()?;
        Ok(broker)
    })?;
    let _cluster = answer.nullable_string()?;
    let _controller = answer.i32()?;
    let topics = answer.array(|a| {
        let code = a.i16()?;
        let name = a.nullable_string()?;
        let id = if version >= 10 {
            a.uuid()?
        } else {
            Uuid::nil()
        };
        let _is_internal = a.i8()?;
        let partitions = a.array(|a| {
            let _code = a.i16()?;
            let partition = PartitionAt {
                index: a.i32()?,
                leader: a.i32()?,
                epoch: if version >= 7 { a.i32()? } else { -1 },
            };
            // replicas, those in sync, those that are away
            let lists = if version >= 5 { 3 } else { 2 };
            for _ in 0..lists {
                a.array(Answer::i32)?;
            }
            a.tags()?;
            Ok(partition)
        })?;
        if version >= 8 {
            let _allowed = a.i32()?;
        }
        a.tags()?;
        Ok(TopicAt {
            code,
            name,
            id,
            partitions,
        })
    })?;
    Ok(Metadata { brokers, topics })
}

/// OffsetForLeaderEpoch 2 to 4.
#[derive(Debug)]
pub(super) struct EpochEndAt {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) code: i16,
    pub(super) epoch: i32,
    pub(super) end: i64,
}

pub(super) fn epoch_ends(answer: &mut Answer) -> Read<Vec<EpochEndAt>> {
    let _throttled = answer.i32()?;
    let topics = answer.array(|a| {
        let topic = a.string()?;
        let ends = a.array(|a| {
            let end = EpochEndAt {
                topic: topic.clone(),
                code: a.i16()?,
                partition: a.i32()?,
                epoch: a.i32()?,
                end: a.i64()?,
            };
            a.tags()?;
            Ok(end)
        })?;
        a.tags()?;
        Ok(ends)
    })?;
    Ok(topics.into_iter().flatten().collect())
}

/// Fetch 4 to 17.
#[derive(Debug)]
pub(super) struct Fetched {
    /// Milliseconds.
    pub(super) throttled: i32,
    pub(super) code: i16,
    pub(super) topics: Vec<FetchedTopic>,
}

#[derive(Debug)]
pub(super) struct FetchedTopic {
    /// Its name or its id: what the version has.
    pub(super) name: Option<String>,
    pub(super) id: Uuid,
    pub(super) partitions: Vec<FetchedPartition>,
}

#[derive(Debug)]
pub(super) struct FetchedPartition {
    pub(super) index: i32,
    pub(super) code: i16,
    pub(super) high_watermark: i64,
    pub(super) last_stable: i64,
    pub(super) aborted: Vec<AbortedTransaction>,
    pub(super) records: Bytes,
}

pub(super) fn fetched(answer: &mut Answer, version: i16) -> Read<Fetched> {
    let throttled = answer.i32()?;
    let mut code = 0;
    if version >= 7 {
        code = answer.i16()?;
        let _session = answer.i32()?;
    }
    let topics = answer.array(|a| {
        let (name, id) = if version >= 13 {
            (None, a.uuid()?)
        } else {
            (Some(a.string()?), Uuid::nil())
        };
        let partitions = a.array(|a| {
            let (index, code) = (a.i32()?, a.i16()?);
            let (high_watermark, last_stable) = (a.i64()?, a.i64()?);
            if version >= 5 {
                let _log_start = a.i64()?;
            }
            let aborted = a.array(|a| {
                let aborted = AbortedTransaction {
                    producer_id: a.i64()?,
                    first_offset: a.i64()?,
                };
                a.tags()?;
                Ok(aborted)
            })?;
            if version >= 11 {
                let _nearer_replica = a.i32()?;
            }
            let records = a.blob()?;
            a.tags()?;
            Ok(FetchedPartition {
                index,
                code,
                high_watermark,
                last_stable,
                aborted,
                records,
            })
        })?;
        a.tags()?;
        Ok(FetchedTopic {
            name,
            id,
            partitions,
        })
    })?;
    Ok(Fetched {
        throttled,
        code,
        topics,
    })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::messages as wire;
    use kafka_protocol::protocol::{Encodable, StrBytes};

    use super::*;

    fn text(text: &'static str) -> StrBytes {
        StrBytes::from_static_str(text)
    }

    fn encoded<T: Encodable>(message: &T, version: i16) -> Bytes {
        let mut out = BytesMut::new();
        message.encode(&mut out, version).unwrap();
        out.freeze()
    }

    fn a_fetch(version: i16) -> Bytes {
        use wire::fetch_response as f;
        let aborted = f::AbortedTransaction::default()
            .with_producer_id(wire::ProducerId(7))
            .with_first_offset(99);
        let partition = |n, records: Option<&'static [u8]>, aborted| {
            f::PartitionData::default()
                .with_partition_index(n)
                .with_error_code(6)
                .with_high_watermark(1_000 + i64::from(n))
                .with_last_stable_offset(900)
                .with_aborted_transactions(aborted)
                .with_records(records.map(Bytes::from_static))
        };
        let mut topic = f::FetchableTopicResponse::default().with_partitions(vec![
            partition(0, Some(b"records"), Some(vec![aborted])),
            partition(1, None, None),
        ]);
        if version >= 13 {
            topic = topic.with_topic_id(Uuid::from_u128(5));
        } else {
            topic = topic.with_topic(wire::TopicName(text("clicks")));
        }
        let mut answer = wire::FetchResponse::default()
            .with_throttle_time_ms(12)
            .with_responses(vec![topic]);
        if version >= 7 {
            answer = answer.with_error_code(3);
        }
        encoded(&answer, version)
    }

    fn some_metadata(version: i16) -> Bytes {
        use wire::metadata_response as m;
        let mut partition = m::MetadataResponsePartition::default()
            .with_partition_index(2)
            .with_leader_id(wire::BrokerId(1))
            .with_replica_nodes(vec![wire::BrokerId(1), wire::BrokerId(2)])
            .with_isr_nodes(vec![wire::BrokerId(1)]);
        if version >= 7 {
            partition = partition.with_leader_epoch(4);
        }
        let mut topic = m::MetadataResponseTopic::default()
            .with_name(Some(wire::TopicName(text("clicks"))))
            .with_error_code(5)
            .with_partitions(vec![partition]);
        if version >= 10 {
            topic = topic.with_topic_id(Uuid::from_u128(5));
        }
        let broker = m::MetadataResponseBroker::default()
            .with_node_id(wire::BrokerId(1))
            .with_host(text("kafka"))
            .with_port(9092)
            .with_rack(Some(text("a")));
        let answer = wire::MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_cluster_id(Some(text("id")))
            .with_topics(vec![topic]);
        encoded(&answer, version)
    }

    fn some_epoch_ends(version: i16) -> Bytes {
        use wire::offset_for_leader_epoch_response as o;
        let end = o::EpochEndOffset::default()
            .with_error_code(74)
            .with_partition(3)
            .with_leader_epoch(8)
            .with_end_offset(1 << 40);
        let topic = o::OffsetForLeaderTopicResult::default()
            .with_topic(wire::TopicName(text("clicks")))
            .with_partitions(vec![end]);
        let answer = wire::OffsetForLeaderEpochResponse::default().with_topics(vec![topic]);
        encoded(&answer, version)
    }

    /// What another library writes is read, in every version that is asked for, to the last byte.
    #[test]
    fn every_version_is_read_as_it_is_written() {
        for version in 4..=17 {
            let bytes = a_fetch(version);
            let mut answer = Answer::new(bytes.clone(), version >= 12);
            let read = fetched(&mut answer, version).unwrap();
            answer.tags().unwrap();
            assert_eq!(answer.left(), 0, "{version}");
            assert_eq!(
                (read.throttled, read.code),
                (12, if version >= 7 { 3 } else { 0 })
            );
            let topic = &read.topics[0];
            if version >= 13 {
                assert_eq!(
                    (topic.id, topic.name.as_deref()),
                    (Uuid::from_u128(5), None)
                );
            } else {
                assert_eq!(topic.name.as_deref(), Some("clicks"));
            }
            let (first, second) = (&topic.partitions[0], &topic.partitions[1]);
            assert_eq!(
                (
                    first.index,
                    first.code,
                    first.high_watermark,
                    first.last_stable
                ),
                (0, 6, 1_000, 900)
            );
            assert_eq!(
                (&first.records[..], first.aborted.len()),
                (&b"records"[..], 1)
            );
            assert_eq!(
                (first.aborted[0].producer_id, first.aborted[0].first_offset),
                (7, 99)
            );
            assert_eq!(
                (second.index, second.records.len(), second.aborted.len()),
                (1, 0, 0)
            );
        }
        for version in 4..=12 {
            let mut answer = Answer::new(some_metadata(version), version >= 9);
            let read = metadata(&mut answer, version).unwrap();
            let broker = &read.brokers[0];
            assert_eq!(
                (broker.node, broker.host.as_str(), broker.port),
                (1, "kafka", 9092)
            );
            let topic = &read.topics[0];
            assert_eq!((topic.code, topic.name.as_deref()), (5, Some("clicks")));
            assert_eq!(
                topic.id,
                if version >= 10 {
                    Uuid::from_u128(5)
                } else {
                    Uuid::nil()
                }
            );
            let partition = &topic.partitions[0];
            let epoch = if version >= 7 { 4 } else { -1 };
            assert_eq!(
                (partition.index, partition.leader, partition.epoch),
                (2, 1, epoch),
                "{version}"
            );
        }
        for version in 2..=4 {
            let mut answer = Answer::new(some_epoch_ends(version), version >= 4);
            let read = epoch_ends(&mut answer).unwrap();
            answer.tags().unwrap();
            assert_eq!(answer.left(), 0);
            let end = &read[0];
            assert_eq!(
                (
                    end.topic.as_str(),
                    end.partition,
                    end.code,
                    end.epoch,
                    end.end
                ),
                ("clicks", 3, 74, 8, 1 << 40)
            );
        }
        for version in 0..=2 {
            let message = wire::SaslAuthenticateResponse::default()
                .with_error_code(58)
                .with_error_message(Some(text("no")))
                .with_auth_bytes(Bytes::from_static(b"v=x"));
            let message = if version >= 1 {
                message.with_session_lifetime_ms(77)
            } else {
                message
            };
            let mut answer = Answer::new(encoded(&message, version), version >= 2);
            let read = authenticated(&mut answer, version).unwrap();
            assert_eq!(
                (read.code, read.words.as_deref(), &read.message[..]),
                (58, Some("no"), &b"v=x"[..])
            );
            assert_eq!(read.lifetime, if version >= 1 { 77 } else { 0 });
        }
        let handshake = wire::SaslHandshakeResponse::default()
            .with_error_code(33)
            .with_mechanisms(vec![text("PLAIN"), text("GSSAPI")]);
        let mut answer = Answer::new(encoded(&handshake, 1), false);
        assert_eq!(
            mechanisms(&mut answer).unwrap(),
            (33, vec!["PLAIN".to_owned(), "GSSAPI".to_owned()])
        );
        for version in [0, 3] {
            let one = wire::api_versions_response::ApiVersion::default()
                .with_api_key(1)
                .with_min_version(4)
                .with_max_version(17);
            let message = wire::ApiVersionsResponse::default().with_api_keys(vec![one]);
            let mut answer = Answer::new(encoded(&message, version), version >= 3);
            let spoken = Spoken {
                key: 1,
                versions: (4, 17),
            };
            assert_eq!(versions(&mut answer).unwrap(), (0, vec![spoken]));
        }
    }

    /// Whatever comes: an answer or an error, in little memory.
    #[test]
    fn hostile_answers_are_read_or_refused() {
        type Reads = fn(&mut Answer, i16) -> bool;
        let targets: [(&str, Vec<(i16, bool, Bytes)>, Reads); 3] = [
            (
                "fetch answer",
                [4, 11, 12, 17].map(|v| (v, v >= 12, a_fetch(v))).to_vec(),
                |a, v| fetched(a, v).is_ok(),
            ),
            (
                "metadata answer",
                [4, 8, 9, 12]
                    .map(|v| (v, v >= 9, some_metadata(v)))
                    .to_vec(),
                |a, v| metadata(a, v).is_ok(),
            ),
            (
                "epochs' ends answer",
                [2, 4].map(|v| (v, v >= 4, some_epoch_ends(v))).to_vec(),
                |a, _| epoch_ends(a).is_ok(),
            ),
        ];
        for (name, corpus, reads) in targets {
            for (version, flexible, example) in corpus {
                everlog_hostile::feed(name, &[&example[..]], |bytes| {
                    let mut answer = Answer::new(Bytes::copy_from_slice(bytes), flexible);
                    let read = reads(&mut answer, version);
                    assert!(read || bytes != &example[..]);
                });
            }
        }
    }
}
