//! librdkafka behind small safe wrappers: the only place in this crate with `unsafe`.
//!
//! Every handle is freed by its wrapper's `Drop`, and every wrapper of something that belongs to a client keeps that
//! client alive: a leaked partition list or queue would hang `rd_kafka_destroy` for ever. Why not the safe consumers of the
//! binding: they set the rebalance *event* but no callback, after which queue calls get nothing; they lose header names
//! that are not UTF-8, leader epochs, and the offsets of end-of-partition messages.
#![allow(
    unsafe_code,
    reason = "librdkafka has a C interface; every use is wrapped here"
)]

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka_sys as sys;
use sys::rd_kafka_resp_err_t as Known;

use self::code::{code_of, numbered};
use super::brokerless::Brokerless;
use super::log::configuration;
use super::log_lines::LogLines;
use crate::LogError;

pub(super) mod admin;
mod code;
mod message;

pub(super) use self::code::Code;
use self::message::Event;
pub(super) use self::message::{Delivery, Message, Report};

const ERROR_TEXT_BYTES: usize = 512;

/// A failed call: librdkafka's code and words.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) text: String,
}

impl Failure {
    fn of(code: Code) -> Self {
        Self {
            code,
            text: code_text(code),
        }
    }

    pub(super) fn timed_out() -> Self {
        Self::of(Code::TIMED_OUT)
    }
}

/// What librdkafka calls an error.
pub(super) fn code_text(code: Code) -> String {
    // SAFETY: rd_kafka_err2str takes any code and returns a static string.
    unsafe { owned(numbered::rd_kafka_err2str(code.0)) }
}

/// # Safety
/// `text` is null or a NUL-terminated string that lives for the call.
unsafe fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: see above; not null.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure {
        code: Code::INVALID_ARG,
        text: format!("{text:?} contains a NUL byte"),
    })
}

fn millis(d: Duration) -> c_int {
    c_int::try_from(d.as_millis()).unwrap_or(c_int::MAX)
}

fn check(code: impl Into<Code>) -> Result<(), Failure> {
    let code = code.into();
    if code == Code::OK {
        Ok(())
    } else {
        Err(Failure::of(code))
    }
}

/// # Safety
/// `error` is null or an error object that nobody else frees.
unsafe fn take_error(error: *mut sys::rd_kafka_error_t) -> Result<(), Failure> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null and ours (see above); read before it is destroyed, destroyed once.
    unsafe {
        let failure = Failure {
            code: Code(numbered::rd_kafka_error_code(error)),
            text: owned(sys::rd_kafka_error_string(error)),
        };
        sys::rd_kafka_error_destroy(error);
        Err(failure)
    }
}

/// What the group wants, as the rebalance callback recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rebalance {
    Assign(Vec<(String, i32)>),
    Revoke {
        partitions: Vec<(String, i32)>,
        lost: bool,
    },
    Failed(String),
}

/// What the callbacks of one client write to.
#[derive(Debug, Default)]
pub(super) struct Callbacks {
    pub(super) log: LogLines,
    rebalances: Mutex<VecDeque<Rebalance>>,
    closing: AtomicBool,
}

/// A librdkafka client. Freed when the last of its users is dropped.
pub(super) struct Client {
    rk: NonNull<sys::rd_kafka_t>,
    callbacks: Arc<Callbacks>,
    /// The brokers that the properties name.
    watch: BrokerWatch,
}

// SAFETY: librdkafka documents rd_kafka_t as completely thread-safe.
unsafe impl Send for Client {}
// SAFETY: as above.
unsafe impl Sync for Client {}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let flags = c_int::try_from(sys::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE).unwrap_or(0);
        // SAFETY: rk is ours and every wrapper that uses it holds an Arc of this client, so none is left. Callbacks
        // run until this returns; `self.callbacks` is dropped only afterwards.
        unsafe { sys::rd_kafka_destroy_flags(self.rk.as_ptr(), flags) };
    }
}

/// # Safety
/// Called by librdkafka with a client that [`Client::new`] made, whose opaque is a [`Callbacks`].
unsafe extern "C" fn on_log(
    rk: *const sys::rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    line: *const c_char,
) {
    // SAFETY: rk is valid for the call (or null while a client is being made); the opaque set in Client::new outlives
    // the client; the strings are valid for the call.
    unsafe {
        if rk.is_null() {
            return;
        }
        let callbacks = sys::rd_kafka_opaque(rk).cast::<Callbacks>().cast_const();
        if let Some(callbacks) = callbacks.as_ref() {
            callbacks.log.line(level, &owned(facility), &owned(line));
        }
    }
}

/// Records what the group wants and returns: the answer comes later, from a command. librdkafka waits for it in its state
/// `wait-assign-call` or `wait-unassign-call` with all partitions paused, as with its event interface. Once the client
/// closes nobody answers any more, so it is done here.
///
/// # Safety
/// As [`on_log`]; `partitions` is null or valid for the call.
unsafe extern "C" fn on_rebalance(
    rk: *mut sys::rd_kafka_t,
    code: Known,
    partitions: *mut sys::rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    // SAFETY: see above.
    unsafe {
        let Some(callbacks) = opaque.cast::<Callbacks>().cast_const().as_ref() else {
            return;
        };
        if callbacks.closing.load(Ordering::SeqCst) {
            answer_while_closing(rk, code, partitions);
            return;
        }
        let rebalance = match code {
            Known::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assign(names(partitions)),
            Known::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => Rebalance::Revoke {
                partitions: names(partitions),
                lost: sys::rd_kafka_assignment_lost(rk) != 0,
            },
            other => {
                sys::rd_kafka_assign(rk, ptr::null());
                Rebalance::Failed(code_text(other.into()))
            }
        };
        callbacks
            .rebalances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(rebalance);
    }
}

/// # Safety
/// As [`on_rebalance`].
unsafe fn answer_while_closing(
    rk: *mut sys::rd_kafka_t,
    code: Known,
    partitions: *mut sys::rd_kafka_topic_partition_list_t,
) {
    // SAFETY: rk and partitions are valid for the call; returned errors are taken once.
    unsafe {
        let cooperative =
            owned(sys::rd_kafka_rebalance_protocol(rk)) == "COOPERATIVE" && !partitions.is_null();
        if !cooperative {
            sys::rd_kafka_assign(rk, ptr::null());
        } else if code == Known::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // a terminating group treats it as an unassign; the list may be empty
            let empty = sys::rd_kafka_topic_partition_list_new(0);
            take_error(sys::rd_kafka_incremental_assign(rk, empty)).ok();
            sys::rd_kafka_topic_partition_list_destroy(empty);
        } else if take_error(sys::rd_kafka_incremental_unassign(rk, partitions)).is_err() {
            // some were never assigned here
            sys::rd_kafka_assign(rk, ptr::null());
        }
    }
}

/// # Safety
/// `list` is null or valid for the call.
unsafe fn names(list: *const sys::rd_kafka_topic_partition_list_t) -> Vec<(String, i32)> {
    // SAFETY: see above; an element's topic is a valid string as long as its list lives.
    unsafe {
        elements(list)
            .map(|e| (owned((*e).topic), (*e).partition))
            .collect()
    }
}

/// # Safety
/// `list` is null or valid for as long as the answer is used.
unsafe fn elements(
    list: *const sys::rd_kafka_topic_partition_list_t,
) -> impl Iterator<Item = *const sys::rd_kafka_topic_partition_t> {
    // SAFETY: see above; `elems` points to `cnt` elements.
    unsafe {
        let (first, count) = if list.is_null() {
            (ptr::null(), 0)
        } else {
            ((*list).elems.cast_const(), (*list).cnt)
        };
        items(first, count)
    }
}

/// Pointers to each of `count` items, without ever making references: they may hold codes that no enum has.
///
/// # Safety
/// `first` points to `count` items, or is null, for as long as the answer is used.
unsafe fn items<T>(first: *const T, count: c_int) -> impl Iterator<Item = *const T> {
    let count = if first.is_null() { 0 } else { count };
    // SAFETY: see above: never beyond the last.
    (0..usize::try_from(count).unwrap_or(0)).map(move |i| unsafe { first.add(i) })
}

/// Brings a client back that was told of no broker and would be silent for ever. One for each client; a log's own clients
/// have theirs.
#[derive(Debug)]
pub struct BrokerWatch {
    bootstrap: CString,
    brokerless: Mutex<Brokerless>,
}

impl BrokerWatch {
    /// For a client that is made with these properties.
    pub fn new(properties: &BTreeMap<String, String>) -> Result<Self, LogError> {
        Self::of(properties).map_err(|failure| configuration(&failure))
    }

    fn of(properties: &BTreeMap<String, String>) -> Result<Self, Failure> {
        // both set the same, and the one that is set last counts
        let bootstrap = properties
            .get("metadata.broker.list")
            .or_else(|| properties.get("bootstrap.servers"));
        Ok(Self {
            bootstrap: c_string(bootstrap.map_or("", String::as_str))?,
            brokerless: Mutex::default(),
        })
    }

    /// To be called while something is waited for, every ten seconds at least: where the client has known no broker for so
    /// long, it starts again from the configured ones. Cheap.
    pub fn keep_a_broker<C: rdkafka::ClientContext>(&self, client: &rdkafka::client::Client<C>) {
        // SAFETY: the client is borrowed, so its rk is valid.
        unsafe { self.keep(client.native_ptr()) }
    }

    /// # Safety
    /// `rk` is valid for the call.
    unsafe fn keep(&self, rk: *mut sys::rd_kafka_t) {
        // SAFETY: see above.
        let known = unsafe { known_brokers(rk) };
        let lost = self
            .brokerless
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_lost(known, Instant::now());
        if lost {
            // SAFETY: see above; librdkafka copies the string.
            let added = unsafe { sys::rd_kafka_brokers_add(rk, self.bootstrap.as_ptr()) };
            tracing::info!(
                added,
                "the client knows no broker of the cluster: it starts again from the configured ones"
            );
        }
    }
}

/// How many brokers metadata named that are not gone since.
///
/// # Safety
/// `rk` is valid for the call.
unsafe fn known_brokers(rk: *mut sys::rd_kafka_t) -> usize {
    let mut count = 0;
    // SAFETY: see above; the ids are ours (or null) and freed once, unread.
    unsafe {
        let ids = sys::rd_kafka_brokers_learned_ids(rk, &raw mut count);
        sys::rd_kafka_mem_free(rk, ids.cast());
    }
    count
}

impl Client {
    /// A consumer client from librdkafka's properties. Connects in the background.
    pub(super) fn new(properties: &BTreeMap<String, String>) -> Result<Arc<Self>, Failure> {
        let callbacks = Arc::new(Callbacks::default());
        let watch = BrokerWatch::of(properties)?;
        let mut text = [0 as c_char; ERROR_TEXT_BYTES];
        // SAFETY: conf is made here and either passed on to rd_kafka_new, which owns it on success, or destroyed here;
        // the opaque is kept alive by `callbacks` beyond rd_kafka_destroy; the text buffer outlives the calls.
        unsafe {
            let conf = sys::rd_kafka_conf_new();
            for (key, value) in properties {
                if let Err(failure) = set_property(conf, key, value) {
                    sys::rd_kafka_conf_destroy(conf);
                    return Err(failure);
                }
            }
            sys::rd_kafka_conf_set_opaque(conf, Arc::as_ptr(&callbacks).cast_mut().cast());
            sys::rd_kafka_conf_set_log_cb(conf, Some(on_log));
            sys::rd_kafka_conf_set_rebalance_cb(conf, Some(on_rebalance));
            let rk = sys::rd_kafka_new(
                sys::rd_kafka_type_t::RD_KAFKA_CONSUMER,
                conf,
                text.as_mut_ptr(),
                text.len(),
            );
            let Some(rk) = NonNull::new(rk) else {
                sys::rd_kafka_conf_destroy(conf);
                return Err(Failure {
                    code: Code::INVALID_ARG,
                    text: owned(text.as_ptr()),
                });
            };
            Ok(Arc::new(Self {
                rk,
                callbacks,
                watch,
            }))
        }
    }

    fn ptr(&self) -> *mut sys::rd_kafka_t {
        self.rk.as_ptr()
    }

    /// What the client logged last.
    pub(super) fn log(&self) -> &LogLines {
        &self.callbacks.log
    }

    /// The next rebalance that the callback recorded.
    pub(super) fn next_rebalance(&self) -> Option<Rebalance> {
        self.callbacks
            .rebalances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// The error that ended this client for good, if any.
    pub(super) fn fatal(&self) -> Option<String> {
        let mut text = [0 as c_char; ERROR_TEXT_BYTES];
        // SAFETY: the buffer outlives the call and its length is given.
        unsafe {
            let code: Code =
                sys::rd_kafka_fatal_error(self.ptr(), text.as_mut_ptr(), text.len()).into();
            (code != Code::OK).then(|| format!("{}: {}", code_text(code), owned(text.as_ptr())))
        }
    }

    /// Makes `rd_kafka_consumer_poll` serve everything: logs, errors, rebalances.
    pub(super) fn poll_as_consumer(&self) -> Result<(), Failure> {
        // SAFETY: rk is a consumer.
        check(unsafe { sys::rd_kafka_poll_set_consumer(self.ptr()) })
    }

    /// Serves callbacks (rebalances above all) without waiting; what comes as a message goes to `each`.
    pub(super) fn serve(&self, mut each: impl FnMut(&Report)) {
        loop {
            // SAFETY: rk is a consumer; the message is ours, and destroyed after its last use.
            let report = unsafe {
                let message = sys::rd_kafka_consumer_poll(self.ptr(), 0);
                let Some(borrowed) = NonNull::new(message) else {
                    return;
                };
                let report = Message::new(borrowed).report();
                sys::rd_kafka_message_destroy(message);
                report
            };
            each(&report);
        }
    }

    /// These topics, by name, and no others. The client itself waits with it while a rebalance is under way.
    pub(super) fn subscribe<'a>(
        &self,
        topics: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Failure> {
        let mut list = PartitionList::with_capacity(8);
        let mut is_empty = true;
        for topic in topics {
            list.add(topic, -1)?;
            is_empty = false;
        }
        // SAFETY: both are valid; librdkafka copies the list, and refuses an empty one.
        check(unsafe {
            if is_empty {
                sys::rd_kafka_unsubscribe(self.ptr())
            } else {
                sys::rd_kafka_subscribe(self.ptr(), list.0)
            }
        })
    }

    pub(super) fn incremental_assign(&self, list: &PartitionList) -> Result<(), Failure> {
        // SAFETY: both are valid; librdkafka copies the list; the error is taken once.
        unsafe { take_error(sys::rd_kafka_incremental_assign(self.ptr(), list.0)) }
    }

    pub(super) fn incremental_unassign(&self, list: &PartitionList) -> Result<(), Failure> {
        // SAFETY: as above.
        unsafe { take_error(sys::rd_kafka_incremental_unassign(self.ptr(), list.0)) }
    }

    pub(super) fn pause(&self, list: &PartitionList) -> Result<(), Failure> {
        // SAFETY: both are valid; librdkafka only writes the elements' error codes.
        check(unsafe { sys::rd_kafka_pause_partitions(self.ptr(), list.0) })
    }

    pub(super) fn resume(&self, list: &PartitionList) -> Result<(), Failure> {
        // SAFETY: as above.
        check(unsafe { sys::rd_kafka_resume_partitions(self.ptr(), list.0) })
    }

    /// Moves assigned partitions; waits until the seeks have begun. Answers with the partitions that refused.
    pub(super) fn seek(
        &self,
        list: &PartitionList,
        timeout: Duration,
    ) -> Result<Vec<(String, i32, Failure)>, Failure> {
        // SAFETY: both are valid; librdkafka writes the elements' error codes, which are read after it returned.
        unsafe {
            let error = sys::rd_kafka_seek_partitions(self.ptr(), list.0, millis(timeout));
            take_error(error)?;
            Ok(elements(list.0)
                .filter(|e| code_of!((**e).err) != Code::OK)
                .map(|e| {
                    (
                        owned((*e).topic),
                        (*e).partition,
                        Failure::of(code_of!((*e).err)),
                    )
                })
                .collect())
        }
    }

    /// Sends offsets to the group without waiting for the answer.
    pub(super) fn commit_async(&self, list: &PartitionList) -> Result<(), Failure> {
        // SAFETY: both are valid; librdkafka copies the list.
        check(unsafe { sys::rd_kafka_commit(self.ptr(), list.0, 1) })
    }

    /// Leaves the group and stops all partitions, for at most `limit`; false when time was up. Rebalances that come
    /// up meanwhile are answered inside their callback.
    pub(super) fn close(self: &Arc<Self>, limit: Duration) -> bool {
        self.callbacks.closing.store(true, Ordering::SeqCst);
        let queue = Queue::new(self);
        // SAFETY: rk and the queue are valid; the error is taken once.
        let begun =
            unsafe { take_error(sys::rd_kafka_consumer_close_queue(self.ptr(), queue.ptr())) };
        if begun.is_err() {
            return false;
        }
        let started = Instant::now();
        // SAFETY: rk and the queue are valid; callbacks are the ones above.
        unsafe {
            while sys::rd_kafka_consumer_closed(self.ptr()) == 0 {
                if started.elapsed() > limit {
                    return false;
                }
                sys::rd_kafka_queue_poll_callback(queue.ptr(), 50);
            }
        }
        true
    }

    /// Brings a client back that lost its last broker and would be silent for ever (see [`super::brokerless`]). Cheap; to be
    /// called now and then.
    pub(super) fn keep_a_broker(&self) {
        // SAFETY: rk is valid.
        unsafe { self.watch.keep(self.ptr()) }
    }

    /// The cluster's id as the last metadata said it.
    pub(super) fn cluster_id(&self) -> Option<String> {
        // SAFETY: rk is valid; the string is ours and freed once after copying.
        unsafe {
            let id = sys::rd_kafka_clusterid(self.ptr(), 0);
            if id.is_null() {
                return None;
            }
            let text = owned(id);
            sys::rd_kafka_mem_free(self.ptr(), id.cast());
            Some(text)
        }
    }

    /// Brokers, and with `all` every topic with its partitions and error code.
    pub(super) fn metadata(
        &self,
        all: bool,
        timeout: Duration,
    ) -> Result<ClusterMetadata, Failure> {
        let mut raw: *const sys::rd_kafka_metadata = ptr::null();
        // SAFETY: rk is valid; on success `raw` is ours: read, then destroyed once.
        unsafe {
            check(Code(numbered::rd_kafka_metadata(
                self.ptr(),
                c_int::from(all),
                ptr::null_mut(),
                &raw mut raw,
                millis(timeout),
            )))?;
            if raw.is_null() {
                return Err(Failure::timed_out());
            }
            let read = ClusterMetadata {
                brokers: usize::try_from((*raw).broker_cnt).unwrap_or(0),
                topics: items((*raw).topics.cast_const(), (*raw).topic_cnt)
                    .map(|t| {
                        let partitions = items((*t).partitions.cast_const(), (*t).partition_cnt);
                        let ids = partitions.map(|p| ((*p).id, (*p).leader >= 0)).collect();
                        (owned((*t).topic), code_of!((*t).err), ids)
                    })
                    .collect(),
            };
            sys::rd_kafka_metadata_destroy(raw);
            Ok(read)
        }
    }
}

/// # Safety
/// `conf` is valid.
unsafe fn set_property(
    conf: *mut sys::rd_kafka_conf_t,
    key: &str,
    value: &str,
) -> Result<(), Failure> {
    let (c_key, c_value) = (c_string(key)?, c_string(value)?);
    let mut text = [0 as c_char; ERROR_TEXT_BYTES];
    // SAFETY: all pointers are valid for the call; librdkafka copies the strings.
    let result = unsafe {
        sys::rd_kafka_conf_set(
            conf,
            c_key.as_ptr(),
            c_value.as_ptr(),
            text.as_mut_ptr(),
            text.len(),
        )
    };
    if result == sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
        return Ok(());
    }
    Err(Failure {
        code: Code::INVALID_ARG,
        // SAFETY: librdkafka wrote a terminated string.
        text: format!("property {key}: {}", unsafe { owned(text.as_ptr()) }),
    })
}

/// What `rd_kafka_metadata` says.
#[derive(Debug)]
pub(super) struct ClusterMetadata {
    pub(super) brokers: usize,
    /// Name, error, partitions and whether each has a leader.
    pub(super) topics: Vec<(String, Code, Vec<(i32, bool)>)>,
}

/// An owned list of partitions.
pub(super) struct PartitionList(*mut sys::rd_kafka_topic_partition_list_t);

impl fmt::Debug for PartitionList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the list is valid.
        f.debug_tuple("PartitionList")
            .field(&unsafe { names(self.0) })
            .finish()
    }
}

impl Drop for PartitionList {
    fn drop(&mut self) {
        // SAFETY: the list is ours and freed once.
        unsafe { sys::rd_kafka_topic_partition_list_destroy(self.0) };
    }
}

impl PartitionList {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let capacity = c_int::try_from(capacity).unwrap_or(0);
        // SAFETY: always returns a list (librdkafka aborts when out of memory).
        Self(unsafe { sys::rd_kafka_topic_partition_list_new(capacity) })
    }

    pub(super) fn of<'a>(
        partitions: impl IntoIterator<Item = (&'a str, i32)>,
    ) -> Result<Self, Failure> {
        let mut list = Self::with_capacity(8);
        for (topic, partition) in partitions {
            list.add(topic, partition)?;
        }
        Ok(list)
    }

    pub(super) fn add(&mut self, topic: &str, partition: i32) -> Result<(), Failure> {
        self.entry(topic, partition).map(drop)
    }

    pub(super) fn add_at(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        leader_epoch: Option<i32>,
    ) -> Result<(), Failure> {
        let entry = self.entry(topic, partition)?;
        // SAFETY: the entry is valid until the list changes.
        unsafe {
            (*entry).offset = offset;
            if let Some(epoch) = leader_epoch {
                sys::rd_kafka_topic_partition_set_leader_epoch(entry, epoch);
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        topic: &str,
        partition: i32,
    ) -> Result<*mut sys::rd_kafka_topic_partition_t, Failure> {
        let topic = c_string(topic)?;
        // SAFETY: the list is valid, the name is copied.
        Ok(unsafe { sys::rd_kafka_topic_partition_list_add(self.0, topic.as_ptr(), partition) })
    }
}

/// A queue of a client.
pub(super) struct Queue {
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// Outlives the queue.
    client: Arc<Client>,
}

// SAFETY: librdkafka's queues are thread-safe.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the reference is ours and given back once, before the client.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// What a receiver of [`Queue::consume`] wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// The next message, if it is there.
    On,
    /// No more now; the rest stays in the queue.
    Stop,
}

impl Queue {
    pub(super) fn new(client: &Arc<Client>) -> Self {
        // SAFETY: rk is valid; a queue is always returned.
        let queue = unsafe { sys::rd_kafka_queue_new(client.ptr()) };
        Self {
            queue: NonNull::new(queue).expect("rd_kafka_queue_new always returns a queue"),
            client: Arc::clone(client),
        }
    }

    fn ptr(&self) -> *mut sys::rd_kafka_queue_t {
        self.queue.as_ptr()
    }

    /// Lets everything of a partition come here. Before it is assigned: what came earlier stays where it was.
    pub(super) fn forward_partition(&self, topic: &str, partition: i32) -> Result<(), Failure> {
        let name = c_string(topic)?;
        // SAFETY: rk is valid; the partition queue's reference is given back here; the forwarding holds its own.
        unsafe {
            let source =
                sys::rd_kafka_queue_get_partition(self.client.ptr(), name.as_ptr(), partition);
            if source.is_null() {
                return Err(Failure::of(Code::NO_SUCH_PARTITION));
            }
            sys::rd_kafka_queue_forward(source, self.ptr());
            sys::rd_kafka_queue_destroy(source);
        }
        Ok(())
    }

    /// Hands what is there to `each`, after waiting at most `wait` for the first. It lives only during the call.
    ///
    /// One call for each, as an event, on purpose (all of it as of librdkafka 2.12.1). The two interfaces that take many at
    /// once move the client's position, from which it goes on after a pause or a rebalance, over records that they never
    /// gave: the one for batches by an end that it reports, the one with a callback by the marker of a transaction whose
    /// records it has just dropped as outdated (`rd_kafka_op_handle_std` looks at no version, taking one out does before
    /// it). The one for single messages logs what is wrong with a partition according to metadata, without its name.
    pub(super) fn consume<F: FnMut(Delivery<'_>) -> Flow>(&self, wait: Duration, each: &mut F) {
        let mut wait = millis(wait);
        let mut left = None;
        while left != Some(0) {
            // SAFETY: the queue is valid, and the event is ours.
            let event = unsafe { Event::new(sys::rd_kafka_queue_poll(self.ptr(), wait)) };
            let Some(event) = event else {
                return;
            };
            if each(event.delivery()) == Flow::Stop {
                return;
            }
            // what was there by then and no more: the caller has a group to serve, however much goes on arriving
            left = Some(left.map_or_else(|| self.len(), |left| left - 1));
            wait = 0;
        }
    }

    /// Ends a wait in [`Queue::consume`], now or the next one.
    pub(super) fn wake(&self) {
        // SAFETY: the queue is valid.
        unsafe { sys::rd_kafka_queue_yield(self.ptr()) };
    }

    /// How many messages are in it.
    pub(super) fn len(&self) -> usize {
        // SAFETY: the queue is valid.
        unsafe { sys::rd_kafka_queue_length(self.ptr()) }
    }
}
