//! How many threads encode at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Threads that writers may take beside the one that each has, shared by all writers that are given a clone. A writer never
/// waits for one: it takes what is free, a row group each, and gives it back when the row group has been handed on.
#[derive(Debug, Clone)]
pub struct SpareThreads(Arc<Semaphore>);

/// One of them, as long as this lives.
#[derive(Debug)]
pub(super) struct Helper {
    _permit: OwnedSemaphorePermit,
}

impl SpareThreads {
    /// So many.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))))
    }

    /// None: each writer encodes alone.
    pub fn none() -> Self {
        Self::new(0)
    }

    pub(super) fn take(&self) -> Option<Helper> {
        let permit = Arc::clone(&self.0).try_acquire_owned().ok()?;
        Some(Helper { _permit: permit })
    }
}
