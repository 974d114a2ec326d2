//! The Kafka client on real brokers. All tests here share one broker; those that disturb it start their own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail their test"
)]

mod brokerless;
mod cluster;
mod disturbed;
mod groups;
mod mock;
mod records;
mod support;

use support::Real;

everlog_kafka::conformance_tests!(Real::new());
