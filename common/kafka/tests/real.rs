//! The Kafka client keeps the contract on a real broker.

mod support;

use support::Real;

everlog_kafka::conformance_tests!(Real::new());
