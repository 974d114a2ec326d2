//! Error codes as numbers.

use std::ffi::c_int;

use rdkafka_sys::rd_kafka_resp_err_t as Known;

/// An error code as the number it is: brokers send codes that the binding's enum does not have, and an enum that holds such
/// a number is undefined behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) struct Code(pub(super) c_int);

macro_rules! codes {
    ($($name:ident = $known:ident,)*) => {
        impl Code {
            $(pub(in crate::client) const $name: Self = Self(Known::$known as c_int);)*
            /// The topic id in a request is not that of the name.
            pub(in crate::client) const INCONSISTENT_TOPIC_ID: Self = Self(103);
        }
    };
}

codes! {
    OK = RD_KAFKA_RESP_ERR_NO_ERROR,
    PARTITION_EOF = RD_KAFKA_RESP_ERR__PARTITION_EOF,
    INVALID_ARG = RD_KAFKA_RESP_ERR__INVALID_ARG,
    UNSUPPORTED_FEATURE = RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE,
    CONFLICT = RD_KAFKA_RESP_ERR__CONFLICT,
    NO_ENTRY = RD_KAFKA_RESP_ERR__NOENT,
    UNSUPPORTED_VERSION = RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION,
    INVALID_REQUEST = RD_KAFKA_RESP_ERR_INVALID_REQUEST,
    INVALID_GROUP_ID = RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
    INCONSISTENT_GROUP_PROTOCOL = RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL,
    FATAL = RD_KAFKA_RESP_ERR__FATAL,
    DESTROY = RD_KAFKA_RESP_ERR__DESTROY,
    FENCED = RD_KAFKA_RESP_ERR__FENCED,
    TIMED_OUT = RD_KAFKA_RESP_ERR__TIMED_OUT,
    TRANSPORT = RD_KAFKA_RESP_ERR__TRANSPORT,
    RESOLVE = RD_KAFKA_RESP_ERR__RESOLVE,
    ALL_BROKERS_DOWN = RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN,
    WAIT_COORD = RD_KAFKA_RESP_ERR__WAIT_COORD,
    MAX_POLL_EXCEEDED = RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED,
    AUTHENTICATION = RD_KAFKA_RESP_ERR__AUTHENTICATION,
    SASL_AUTHENTICATION_FAILED = RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED,
    TOPIC_AUTHORIZATION_FAILED = RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    GROUP_AUTHORIZATION_FAILED = RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
    CLUSTER_AUTHORIZATION_FAILED = RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_OR_PART = RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
    UNKNOWN_TOPIC_ID = RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID,
    NO_SUCH_TOPIC = RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
    NO_SUCH_PARTITION = RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION,
    LOG_TRUNCATION = RD_KAFKA_RESP_ERR__LOG_TRUNCATION,
    AUTO_OFFSET_RESET = RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET,
    OFFSET_OUT_OF_RANGE = RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,
    BAD_MSG = RD_KAFKA_RESP_ERR__BAD_MSG,
    BAD_COMPRESSION = RD_KAFKA_RESP_ERR__BAD_COMPRESSION,
    NOT_IMPLEMENTED = RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED,
    UNDERFLOW = RD_KAFKA_RESP_ERR__UNDERFLOW,
    INVALID_MSG = RD_KAFKA_RESP_ERR_INVALID_MSG,
    UNSUPPORTED_COMPRESSION_TYPE = RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE,
}

impl From<Known> for Code {
    fn from(known: Known) -> Self {
        Self(known as c_int)
    }
}

/// Functions whose code may be a broker's, declared with the number.
pub(super) mod numbered {
    use std::ffi::{c_char, c_int};

    use rdkafka_sys as sys;

    unsafe extern "C" {
        pub(in crate::client::ffi) fn rd_kafka_err2str(code: c_int) -> *const c_char;
        pub(in crate::client::ffi) fn rd_kafka_error_code(
            error: *const sys::rd_kafka_error_t,
        ) -> c_int;
        pub(in crate::client::ffi) fn rd_kafka_event_error(
            event: *mut sys::rd_kafka_event_t,
        ) -> c_int;
        pub(in crate::client::ffi) fn rd_kafka_ConfigResource_error(
            resource: *const sys::rd_kafka_ConfigResource_t,
        ) -> c_int;
        pub(in crate::client::ffi) fn rd_kafka_metadata(
            rk: *mut sys::rd_kafka_t,
            all_topics: c_int,
            only: *mut sys::rd_kafka_topic_t,
            metadata: *mut *const sys::rd_kafka_metadata,
            timeout_ms: c_int,
        ) -> c_int;
    }
}

/// Reads an error code through a raw pointer, as the number it is.
macro_rules! code_of {
    ($place:expr) => {
        $crate::client::ffi::Code((&raw const $place).cast::<std::ffi::c_int>().read())
    };
}

pub(super) use code_of;
