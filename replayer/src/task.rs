//! One task with an owner: it ends when its owner lets go of it, and its result waits until it is fetched.

use std::future::Future;

use tokio::task::JoinSet;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct OwnedTask<T> {
    name: &'static str,
    set: JoinSet<T>,
}

impl<T: Send + 'static> OwnedTask<T> {
    /// Starts it.
    pub(crate) fn spawn(
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        let mut set = JoinSet::new();
        set.spawn(future);
        Self { name, set }
    }

    /// Its result; the task's name where it was stopped from outside. Cancel-safe. To be asked once.
    pub(crate) async fn join(&mut self) -> Result<T, &'static str> {
        match self.set.join_next().await {
            Some(Ok(result)) => Ok(result),
            Some(Err(error)) if error.is_panic() => {
                std::panic::resume_unwind(error.into_panic());
            }
            Some(Err(_)) | None => Err(self.name),
        }
    }
}
