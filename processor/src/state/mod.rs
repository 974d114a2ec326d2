//! A job's state: as large as the disk, durable epoch by epoch, and at exactly the point that the outputs show.
//!
//! ```text
//! engine ──State──► JobState (changes in memory) ──seal──► Epoch ──► Checkpoints ──► file, outputs, local store
//! ```
//!
//! - [`JobState`] is what the engine works on.
//! - [`take_over`], then [`Taken::recover`], is how a job begins or goes on; [`Checkpoints::commit`] is how an epoch becomes
//!   final.
//! - [`recovery`] is the decision after a crash, [`EpochLog`] the files and the fence.
//!
//! Promised: whatever is killed, whenever and however often, outputs and state are those of an uninterrupted run; of two
//! processes with one version of a job the later one goes on, and the other ends with an error that says so.
//!
//! Not promised: that files of epochs may be removed by hand.

mod budget;
mod changes;
mod checkpoints;
pub(crate) mod epoch;
mod error;
mod local;
mod log;
mod overlay;
pub mod recovery;

pub use budget::{Budget, MEMORY_MIN};
pub use changes::{Change, Changes};
pub use checkpoints::{
    BasePolicy, CheckpointError, Checkpoints, Opening, Recovered, Taken, take_over,
};
pub use epoch::{Counts, Epoch, Header, JobId, no_rows};
pub use error::StoreError;
pub use everlog_engine::{Space, State, StateError};
pub use local::Local;
pub use log::{EpochLog, Identity, NewestProgress};
pub use overlay::{JobState, Sealing};

#[cfg(test)]
mod tests;
