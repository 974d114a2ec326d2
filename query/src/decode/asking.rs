//! Requests to the registry: made where the session was opened, since the threads that queries run on do no network.

use std::fmt::Debug;
use std::sync::Arc;

use everlog_decode::registry::{Pinned, Registry, RegistryError};
use everlog_decode::{RegisteredSchema, SchemaId};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::QueryError;
use crate::error::chain;

/// A registry, and who asks it.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    registry: Arc<Registry>,
    /// None: whoever waits asks.
    io: Option<Handle>,
}

impl Asking {
    /// Asked from the runtime in which this is called.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            io: Handle::try_current().ok(),
        }
    }

    /// The names of all subjects.
    pub(super) async fn subjects(&self) -> Result<Vec<String>, QueryError> {
        self.run(|registry| async move { registry.subjects().await })
            .await
    }

    /// The newest schema of a subject.
    pub(super) async fn newest(&self, subject: &str) -> Result<Option<Pinned>, QueryError> {
        let subject = subject.to_owned();
        self.run(|registry| async move { registry.newest(&subject).await })
            .await
    }

    /// A version of a subject.
    pub(super) async fn version(
        &self,
        subject: &str,
        version: i64,
    ) -> Result<Option<Pinned>, QueryError> {
        let subject = subject.to_owned();
        self.run(move |registry| async move { registry.version(&subject, version).await })
            .await
    }

    /// The schemas of numbers, or why there is none.
    pub(super) async fn schemas(
        &self,
        ids: Vec<SchemaId>,
    ) -> Result<Vec<(SchemaId, Result<RegisteredSchema, String>)>, QueryError> {
        self.run(|registry| async move { registry.schemas(ids).await })
            .await
    }

    /// Dropped with whoever waits for it.
    async fn run<T, F>(&self, ask: impl FnOnce(Arc<Registry>) -> F) -> Result<T, QueryError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
    {
        let asked = ask(Arc::clone(&self.registry));
        let answer = match &self.io {
            None => asked.await,
            Some(io) => {
                let mut task = JoinSet::new();
                task.spawn_on(asked, io);
                match task.join_next().await {
                    Some(Ok(answer)) => answer,
                    Some(Err(_)) | None => return Err(QueryError::Cancelled),
                }
            }
        };
        answer.map_err(|error| QueryError::Failed(chain(&error)))
    }
}
