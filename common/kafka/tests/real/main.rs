//! The Kafka client on real brokers. All tests here share one broker; those that disturb it start their own.

mod disturbed;
mod groups;
mod mock;
mod records;
mod support;

use support::Real;

everlog_kafka::conformance_tests!(Real::new());
