//! A job's query: event time, windows and their state, batch by batch.
//!
//! ```text
//!  decoded batch of one partition ──► Engine ──► rows, late records, dead records
//!                                      │  ▲
//!                             Progress ┘  └ State (open windows, timers)
//! ```
//!
//! - [`Query`] is SQL that has been checked: what could not give the same rows in every replay is a [`Refusal`].
//! - [`Engine`] takes batches, keeps open windows in a [`State`] and gives final rows as time passes them.
//! - [`Progress`] is the rest of what a checkpoint needs: positions, clocks, the decision log.
//!
//! The sequence of final rows is a function of the records of each partition and of the decision log, and of nothing
//! else: not of how partitions interleave, of batch borders, of crashes or of speed. `docs/event-time.md` has the rules
//! and the proof. (With time per partition, this holds for each partition's rows by themselves.)
//!
//! It does no I/O and knows no clock. What it does not promise: which rows come out of which call.

mod aggregate;
mod engine;
mod entry;
mod error;
pub mod event_time;
mod exact;
mod progress;
mod query;
mod sql;
mod state;
mod window;

pub use engine::{Emitted, Engine};
pub use error::EngineError;
pub use event_time::{Candidate, Choice, Clock, Decision, EventTime, Scope};
pub use progress::{Counters, PartitionProgress, Progress};
pub use query::{Query, Roles};
pub use sql::{Flink, Refusal};
pub use state::{KEY_BYTES_MAX, MemoryState, Space, State, StateError};
pub use window::Window;
