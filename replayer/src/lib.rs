//! History and tail of a topic as one ordered stream of events.
//!
//! ```text
//!   Iceberg table ──► history ──┐
//!      (pinned snapshot)        ├──► EventStream ──► processor, gateway, Session (command line)
//!   Kafka ──────────► live ─────┘
//!                      handoff: from exactly the position where history ends, and back
//! ```
//!
//! - [`EventStream`]: batches in order, historic, then live; the one thing that everybody consumes
//! - [`ReplayRequest`]: what to replay; [`request`] has the parsers of the command line's options
//! - [`Session`]: a stream with an output and a positions file, resumable after `kill -9`
//! - [`history`]: planning and merging, pure; [`handoff`]: the decisions at the seam, pure
//!
//! Guarantees
//! - Per generation and partition offsets strictly increase; every batch begins where the one before ended, or behind a
//!   recorded gap. A duplicate, a hole or a missing file is an error that names the interval, never emitted and never
//!   skipped.
//! - Any file layout is read right, also after another engine rewrote the files; memory is bounded by the request, or by
//!   one row group of the files, where that is larger.
//! - [`EventStream::hold`] changes who comes first, and nothing else: for who has to keep event time together.
//! - [`EventStream::positions`] is one value at every instant, in mid-switch too: a replay resumed from any of them equals
//!   one that was never interrupted.
//!
//! Not promised
//! - An order across partitions, besides [`Order::Time`] within one pinned snapshot.
//! - That a topic deleted and made anew is noticed where the brokers know no topic ids (before Kafka 2.8): the cluster's
//!   id and leader epochs are all there is to compare then. With ids it is noticed before a record of the new one is
//!   handed out.
//!
//! Start reading at [`EventStream`], then [`handoff`] and [`history::planner`].
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use everlog_common::clock::{RandomIds, SystemClock};
//! use everlog_kafka::Log;
//! use everlog_replayer::{Components, EventStream, ReplayError, ReplayRequest};
//! use everlog_table::catalog::Catalog;
//!
//! async fn count(catalog: Arc<dyn Catalog>, log: Arc<dyn Log>) -> Result<u64, ReplayError> {
//!     let topic = "clickstream.raw".parse().expect("a topic's name");
//!     let components = Components {
//!         log: Some(log),
//!         catalog,
//!         clock: Arc::new(SystemClock::default()),
//!         ids: Arc::new(RandomIds),
//!         namespace: "everlog".to_owned(),
//!     };
//!     let mut events = 0;
//!     let mut stream = EventStream::open(ReplayRequest::new(topic), components).await?;
//!     while let Some(batch) = stream.next().await? {
//!         events += batch.columns.len() as u64;
//!     }
//!     stream.close().await;
//!     Ok(events)
//! }
//! ```

pub mod error;
pub mod handoff;
pub mod history;
mod keeper;
mod live;
pub mod output;
mod progress;
mod rate;
pub mod request;
pub mod resume;
pub mod session;
mod stream;
mod task;
mod unproven;
pub mod verify;

pub use error::{ReplayError, one_line};
pub use output::{OutputError, OutputTarget};
pub use progress::Progress;
pub use request::{From, OnGap, Order, ReplayRequest, RequestError, Until};
pub use session::{Session, SessionError, SessionOptions, Step, Summary};
pub use stream::{Advance, Components, EventStream};
