//! Everything bigger than a crate: real services, workloads, and the comparison of what the broker's log holds with
//! what everlog gives back.
//!
//! - [`services`]: Kafka, S3 and the Iceberg REST catalog, started by `tests/services/*.sh`, stopped when dropped.
//! - [`broker`]: topics, producers, and an independent dump of a broker's log (plain polling, nothing of everlog's own
//!   ingest).
//! - [`checker`]: a history, and which promise it breaks.
//! - [`crashing`]: the places where tests kill the binary.
//! - [`engines`]: the tables as pyiceberg and DuckDB see them.
//! - [`everlog`]: the binary, its configuration and its output.
//! - [`values`]: JSON that is hard to read as columns.
//! - [`compare`]: records against records, and the first difference in words.
//!
//! A service that cannot be started fails the test: nothing is skipped.

#![allow(clippy::panic, reason = "a harness fails its test by panicking")]

pub mod broker;
pub mod checker;
pub mod compare;
pub mod crashing;
pub mod engines;
pub mod everlog;
pub mod values;

pub use everlog_services as services;
