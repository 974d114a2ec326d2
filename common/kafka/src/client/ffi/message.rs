//! A message as it lies in the client's memory.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use rdkafka_sys as sys;

use super::code::numbered;
use super::{Code, Failure, code_of, owned};

/// What the client says of a partition, or of itself, besides records.
#[derive(Debug)]
pub(in crate::client) struct Report {
    pub(in crate::client) code: Code,
    pub(in crate::client) text: String,
    /// Empty where it is of no topic.
    pub(in crate::client) topic: String,
    pub(in crate::client) partition: i32,
    pub(in crate::client) offset: i64,
}

/// Something of a queue.
pub(in crate::client) enum Delivery<'a> {
    Record(Message<'a>),
    Report(Report),
}

/// A message that the client holds, valid as long as that.
pub(in crate::client) struct Message<'a> {
    raw: NonNull<sys::rd_kafka_message_t>,
    borrowed: PhantomData<&'a sys::rd_kafka_message_t>,
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}@{}", self.topic(), self.partition(), self.offset())
    }
}

impl<'a> Message<'a> {
    /// # Safety
    /// `raw` is valid for `'a`.
    pub(super) unsafe fn new(raw: NonNull<sys::rd_kafka_message_t>) -> Self {
        Self {
            raw,
            borrowed: PhantomData,
        }
    }

    fn ptr(&self) -> *const sys::rd_kafka_message_t {
        self.raw.as_ptr().cast_const()
    }

    pub(in crate::client) fn code(&self) -> Code {
        // SAFETY: the message is valid; the code is read as a number.
        unsafe { code_of!((*self.ptr()).err) }
    }

    fn topic_ptr(&self) -> *mut sys::rd_kafka_topic_t {
        // SAFETY: the message is valid.
        unsafe { (*self.ptr()).rkt }
    }

    /// Names the topic as long as one of its partitions is assigned.
    pub(in crate::client) fn topic_handle(&self) -> usize {
        self.topic_ptr().addr()
    }

    /// Empty for an error that is nobody's.
    pub(in crate::client) fn topic(&self) -> &'a str {
        let topic = self.topic_ptr();
        if topic.is_null() {
            return "";
        }
        // SAFETY: the topic handle is valid as long as the message.
        let name = unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(topic)) };
        name.to_str().unwrap_or_default()
    }

    pub(in crate::client) fn partition(&self) -> i32 {
        // SAFETY: the message is valid.
        unsafe { (*self.ptr()).partition }
    }

    pub(in crate::client) fn offset(&self) -> i64 {
        // SAFETY: the message is valid.
        unsafe { (*self.ptr()).offset }
    }

    /// What it says, where it is no record.
    pub(in crate::client) fn report(&self) -> Report {
        Report {
            code: self.code(),
            // SAFETY: the message is valid; the string lives with it.
            text: unsafe { owned(sys::rd_kafka_message_errstr(self.ptr())) },
            topic: self.topic().to_owned(),
            partition: self.partition(),
            offset: self.offset(),
        }
    }

    pub(in crate::client) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka gives a pointer to key_len bytes that live with the message, or null.
        unsafe { bytes((*self.ptr()).key, (*self.ptr()).key_len) }
    }

    pub(in crate::client) fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: as above.
        unsafe { bytes((*self.ptr()).payload, (*self.ptr()).len) }
    }

    /// Milliseconds, and what they are.
    pub(in crate::client) fn timestamp(&self) -> (i64, sys::rd_kafka_timestamp_type_t) {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid; kind is written before the call returns.
        let at = unsafe { sys::rd_kafka_message_timestamp(self.ptr(), &raw mut kind) };
        (at, kind)
    }

    pub(in crate::client) fn leader_epoch(&self) -> Option<i32> {
        // SAFETY: the message is valid.
        let epoch = unsafe { sys::rd_kafka_message_leader_epoch(self.ptr()) };
        (epoch >= 0).then_some(epoch)
    }

    /// Name and value of each header, in order; an error where the client cannot tell them (more than 100,000, or bytes
    /// that are none), which is not the same as none. The interface has no length for names: one that holds a NUL byte
    /// comes cut off there.
    pub(in crate::client) fn headers(&self) -> Result<Headers<'a>, Failure> {
        let mut headers: *mut sys::rd_kafka_headers_t = ptr::null_mut();
        // SAFETY: the message is valid; the headers live with it.
        let code = unsafe { sys::rd_kafka_message_headers(self.ptr(), &raw mut headers) };
        let list = match Code::from(code) {
            Code::OK => headers,
            Code::NO_ENTRY => ptr::null_mut(),
            code => return Err(Failure::of(code)),
        };
        Ok(Headers {
            list,
            next: 0,
            message: PhantomData,
        })
    }
}

/// # Safety
/// `data` is null or points to `len` bytes that live for `'a`.
unsafe fn bytes<'a>(data: *const c_void, len: usize) -> Option<&'a [u8]> {
    if data.is_null() {
        return None;
    }
    // SAFETY: see above.
    Some(unsafe { std::slice::from_raw_parts(data.cast(), len) })
}

/// Something that came by a queue. Destroyed with everything it holds.
pub(super) struct Event(NonNull<sys::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is ours, and destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

impl Event {
    /// # Safety
    /// `raw` is null or an event that nobody else destroys.
    pub(super) unsafe fn new(raw: *mut sys::rd_kafka_event_t) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// What it brings. Taking a record's message out moves the client's position behind it.
    pub(super) fn delivery(&self) -> Delivery<'_> {
        // SAFETY: the event is valid; its message, if it is one, lives as long. A record's event has just one.
        unsafe {
            let message = sys::rd_kafka_event_message_next(self.0.as_ptr()).cast_mut();
            match NonNull::new(message) {
                Some(message) => Delivery::Record(Message::new(message)),
                None => Delivery::Report(self.report()),
            }
        }
    }

    fn report(&self) -> Report {
        let event = self.0.as_ptr();
        // SAFETY: the event is valid and the string lives with it; the partition is ours (or null), read, then destroyed
        // once.
        unsafe {
            let mut report = Report {
                code: Code(numbered::rd_kafka_event_error(event)),
                text: owned(sys::rd_kafka_event_error_string(event)),
                topic: String::new(),
                partition: -1,
                offset: -1,
            };
            let of = sys::rd_kafka_event_topic_partition(event);
            if !of.is_null() {
                report.topic = owned((*of).topic);
                report.partition = (*of).partition;
                report.offset = (*of).offset;
                sys::rd_kafka_topic_partition_destroy(of);
            }
            report
        }
    }
}

/// The headers of a message.
#[derive(Debug)]
pub(in crate::client) struct Headers<'a> {
    list: *const sys::rd_kafka_headers_t,
    next: usize,
    /// They live with the message.
    message: PhantomData<&'a sys::rd_kafka_message_t>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.list.is_null() {
            return None;
        }
        let mut name: *const c_char = ptr::null();
        let mut value: *const c_void = ptr::null();
        let mut size = 0;
        // SAFETY: the headers are valid as long as the message; an index beyond the last is an error code. Name and
        // value point into the message.
        unsafe {
            let code = sys::rd_kafka_header_get_all(
                self.list,
                self.next,
                &raw mut name,
                &raw mut value,
                &raw mut size,
            );
            if Code::from(code) != Code::OK || name.is_null() {
                return None;
            }
            self.next += 1;
            Some((CStr::from_ptr(name).to_bytes(), bytes(value, size)))
        }
    }
}
