//! One stream processor for history and live: jobs, state, checkpoints, sinks.

pub mod compare;
pub mod job;
pub mod registry;
pub mod run;
pub mod sink;
pub mod state;
