//! Requests about topics and offsets, each with its own queue and a time limit.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use rdkafka_sys as sys;
use uuid::Uuid;

use super::{
    Client, Code, Failure, PartitionList, Queue, check, code_of, millis, numbered, owned,
    take_error,
};

/// Time beyond a request's own limit after which its answer is not waited for any more.
const GRACE: Duration = Duration::from_secs(1);

struct Options(NonNull<sys::rd_kafka_AdminOptions_t>);

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: ours and freed once.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0.as_ptr()) };
    }
}

impl Options {
    fn new(
        client: &Client,
        request: sys::rd_kafka_admin_op_t,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let mut text = [0 as c_char; super::ERROR_TEXT_BYTES];
        // SAFETY: rk is valid; the options are wrapped at once; the buffer outlives the call.
        unsafe {
            let options = sys::rd_kafka_AdminOptions_new(client.ptr(), request);
            let options = Self(NonNull::new(options).ok_or_else(Failure::timed_out)?);
            check(sys::rd_kafka_AdminOptions_set_request_timeout(
                options.0.as_ptr(),
                millis(timeout),
                text.as_mut_ptr(),
                text.len(),
            ))?;
            Ok(options)
        }
    }

    fn read_committed(self) -> Result<Self, Failure> {
        let level = sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED;
        // SAFETY: the options are valid; the error is taken once.
        unsafe {
            take_error(sys::rd_kafka_AdminOptions_set_isolation_level(
                self.0.as_ptr(),
                level,
            ))?;
        }
        Ok(self)
    }
}

struct Event(NonNull<sys::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours and freed once; what it lent was copied before.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

fn answer(queue: &Queue, timeout: Duration) -> Result<Event, Failure> {
    // SAFETY: the queue is valid; the event is wrapped at once; its error text lives with it.
    unsafe {
        let event = sys::rd_kafka_queue_poll(queue.ptr(), millis(timeout + GRACE));
        let event = Event(NonNull::new(event).ok_or_else(Failure::timed_out)?);
        let code = Code(numbered::rd_kafka_event_error(event.0.as_ptr()));
        if code == Code::OK {
            Ok(event)
        } else {
            Err(Failure {
                code,
                text: owned(sys::rd_kafka_event_error_string(event.0.as_ptr())),
            })
        }
    }
}

/// # Safety
/// `items` is null or points to `count` pointers for as long as the answer is used.
unsafe fn pointers<T>(items: *const *const T, count: usize) -> impl Iterator<Item = *const T> {
    let count = if items.is_null() { 0 } else { count };
    // SAFETY: see above: never beyond the last.
    (0..count)
        .map(move |i| unsafe { *items.add(i) })
        .filter(|item| !item.is_null())
}

/// One topic's description.
#[derive(Debug)]
pub(in crate::client) struct Description {
    pub(in crate::client) name: String,
    /// Zero where the broker knows none.
    pub(in crate::client) id: Uuid,
    pub(in crate::client) internal: bool,
    /// Number, and whether it has a leader.
    pub(in crate::client) partitions: Vec<(i32, bool)>,
    pub(in crate::client) error: Option<Failure>,
}

/// One partition's offset.
#[derive(Debug)]
pub(in crate::client) struct ListedOffset {
    pub(in crate::client) topic: String,
    pub(in crate::client) partition: i32,
    pub(in crate::client) offset: i64,
    pub(in crate::client) timestamp: i64,
    /// The epoch of the leader that answered, where it tells.
    pub(in crate::client) leader_epoch: Option<i32>,
    pub(in crate::client) code: Code,
}

/// Which offset is asked for.
#[derive(Debug, Clone, Copy)]
pub(in crate::client) enum OffsetSpec {
    Earliest,
    LatestCommitted,
    LatestUncommitted,
    AtTime(i64),
}

/// A request for offsets that is under way.
#[derive(Debug)]
pub(in crate::client) struct PendingOffsets {
    queue: Queue,
    timeout: Duration,
}

impl Client {
    /// Descriptions of the named topics (distinct names).
    pub(in crate::client) fn describe_topics(
        self: &Arc<Self>,
        names: &[&str],
        timeout: Duration,
    ) -> Result<Vec<Description>, Failure> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let owned_names: Vec<CString> = names
            .iter()
            .map(|n| super::c_string(n))
            .collect::<Result<_, _>>()?;
        let mut raw: Vec<*const c_char> = owned_names.iter().map(|n| n.as_ptr()).collect();
        let options = Options::new(
            self,
            sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            timeout,
        )?;
        let queue = Queue::new(self);
        // SAFETY: the names live until the collection has copied them; the collection is destroyed once, after the
        // request copied it; the result lives with the event.
        unsafe {
            let topics = sys::rd_kafka_TopicCollection_of_topic_names(raw.as_mut_ptr(), raw.len());
            sys::rd_kafka_DescribeTopics(self.ptr(), topics, options.0.as_ptr(), queue.ptr());
            sys::rd_kafka_TopicCollection_destroy(topics);
            let event = answer(&queue, timeout)?;
            let result = sys::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
            let mut count = 0;
            let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            Ok(pointers(topics.cast_const(), count)
                .map(|t| description(t))
                .collect())
        }
    }

    /// Asks for one offset per partition; [`PendingOffsets::wait`] has the answer, so that several can run at once.
    pub(in crate::client) fn list_offsets<'a>(
        self: &Arc<Self>,
        partitions: impl IntoIterator<Item = (&'a str, i32)>,
        spec: OffsetSpec,
        timeout: Duration,
    ) -> Result<PendingOffsets, Failure> {
        let mut list = PartitionList::with_capacity(8);
        let wanted = match spec {
            OffsetSpec::Earliest => {
                sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_EARLIEST as i64
            }
            OffsetSpec::LatestCommitted | OffsetSpec::LatestUncommitted => {
                sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST as i64
            }
            OffsetSpec::AtTime(ms) => ms.max(0),
        };
        for (topic, partition) in partitions {
            list.add_at(topic, partition, wanted, None)?;
        }
        let mut options = Options::new(
            self,
            sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS,
            timeout,
        )?;
        if matches!(spec, OffsetSpec::LatestCommitted) {
            options = options.read_committed()?;
        }
        let queue = Queue::new(self);
        // SAFETY: all are valid for the call; librdkafka copies list and options.
        unsafe {
            sys::rd_kafka_ListOffsets(self.ptr(), list.0, options.0.as_ptr(), queue.ptr());
        }
        Ok(PendingOffsets { queue, timeout })
    }

    /// The settings of a topic that have a value.
    pub(in crate::client) fn topic_config(
        self: &Arc<Self>,
        name: &str,
        timeout: Duration,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let name = super::c_string(name)?;
        let options = Options::new(
            self,
            sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS,
            timeout,
        )?;
        let queue = Queue::new(self);
        // SAFETY: the resource is destroyed once, after the request copied it; the result lives with the event.
        unsafe {
            let kind = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
            let mut resource = sys::rd_kafka_ConfigResource_new(kind, name.as_ptr());
            sys::rd_kafka_DescribeConfigs(
                self.ptr(),
                &raw mut resource,
                1,
                options.0.as_ptr(),
                queue.ptr(),
            );
            sys::rd_kafka_ConfigResource_destroy(resource);
            let event = answer(&queue, timeout)?;
            let result = sys::rd_kafka_event_DescribeConfigs_result(event.0.as_ptr());
            let mut count = 0;
            let resources = sys::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
            let mut values = BTreeMap::new();
            for resource in pointers(resources.cast_const(), count) {
                let code = Code(numbered::rd_kafka_ConfigResource_error(resource));
                if code != Code::OK {
                    return Err(Failure {
                        code,
                        text: owned(sys::rd_kafka_ConfigResource_error_string(resource)),
                    });
                }
                let mut entries = 0;
                let configs = sys::rd_kafka_ConfigResource_configs(resource, &raw mut entries);
                for entry in pointers(configs.cast_const(), entries) {
                    let value = sys::rd_kafka_ConfigEntry_value(entry);
                    if !value.is_null() {
                        let name = owned(sys::rd_kafka_ConfigEntry_name(entry));
                        values.insert(name, owned(value));
                    }
                }
            }
            Ok(values)
        }
    }
}

impl PendingOffsets {
    /// The answer.
    pub(in crate::client) fn wait(self) -> Result<Vec<ListedOffset>, Failure> {
        let event = answer(&self.queue, self.timeout)?;
        // SAFETY: the result and everything in it lives with the event.
        unsafe {
            let result = sys::rd_kafka_event_ListOffsets_result(event.0.as_ptr());
            let mut count = 0;
            let infos = sys::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
            Ok(pointers(infos.cast_const(), count)
                .filter_map(|info| {
                    let tp = sys::rd_kafka_ListOffsetsResultInfo_topic_partition(info);
                    if tp.is_null() {
                        return None;
                    }
                    Some(ListedOffset {
                        topic: owned((*tp).topic),
                        partition: (*tp).partition,
                        offset: (*tp).offset,
                        timestamp: sys::rd_kafka_ListOffsetsResultInfo_timestamp(info),
                        leader_epoch: Some(sys::rd_kafka_topic_partition_get_leader_epoch(tp))
                            .filter(|epoch| *epoch >= 0),
                        code: code_of!((*tp).err),
                    })
                })
                .collect())
        }
    }
}

/// # Safety
/// `topic` is valid for the call.
unsafe fn description(topic: *const sys::rd_kafka_TopicDescription_t) -> Description {
    // SAFETY: everything read belongs to `topic`.
    unsafe {
        let error = sys::rd_kafka_TopicDescription_error(topic);
        let code = Code(numbered::rd_kafka_error_code(error));
        let failed = !error.is_null() && code != Code::OK;
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let id = if id.is_null() {
            Uuid::nil()
        } else {
            Uuid::from_u64_pair(
                sys::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned(),
                sys::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned(),
            )
        };
        let mut count = 0;
        let partitions = sys::rd_kafka_TopicDescription_partitions(topic, &raw mut count);
        Description {
            name: owned(sys::rd_kafka_TopicDescription_name(topic)),
            id,
            internal: sys::rd_kafka_TopicDescription_is_internal(topic) != 0 as c_int,
            partitions: if failed {
                Vec::new()
            } else {
                pointers(partitions.cast_const(), count)
                    .map(|p| {
                        let has_leader = !sys::rd_kafka_TopicPartitionInfo_leader(p).is_null();
                        (sys::rd_kafka_TopicPartitionInfo_partition(p), has_leader)
                    })
                    .collect()
            },
            error: failed.then(|| Failure {
                code,
                text: owned(sys::rd_kafka_error_string(error)),
            }),
        }
    }
}
