//! Credentials that a catalog vends for a while.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::CredentialProvider;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::StorageError;

/// Vended credentials are asked for anew at this age. The shortest that the clouds hand out live 15 minutes; going by age
/// rather than by the stated expiry needs no agreement between two clocks.
const REFRESH_AFTER: Duration = Duration::from_mins(10);

/// Where new credentials come from once those at hand expire.
#[async_trait]
pub trait CredentialSource: Send + Sync + Debug {
    /// Properties with credentials that are valid now, and for a while. Bounded in time.
    async fn fetch(&self) -> Result<BTreeMap<String, String>, StorageError>;
}

/// A client's credentials, renewed before they expire.
///
/// * One renewal at a time; the others wait for it.
/// * When a renewal fails, the old ones go on being used: they may still be valid, and the store knows.
pub(super) struct Refreshing<C, F> {
    source: Arc<dyn CredentialSource>,
    extract: F,
    refresh_after: Duration,
    current: Mutex<Option<(Arc<C>, Instant)>>,
}

impl<C, F> Debug for Refreshing<C, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refreshing")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl<C, F> Refreshing<C, F> {
    /// Starts with `initial`, taken to be fresh.
    pub(super) fn new(initial: Option<C>, source: Arc<dyn CredentialSource>, extract: F) -> Self {
        let current = initial.map(|credential| (Arc::new(credential), Instant::now()));
        Self {
            source,
            extract,
            refresh_after: REFRESH_AFTER,
            current: Mutex::new(current),
        }
    }
}

#[async_trait]
impl<C, F> CredentialProvider for Refreshing<C, F>
where
    C: Debug + Send + Sync,
    F: Fn(&BTreeMap<String, String>) -> Result<Option<C>, StorageError> + Send + Sync,
{
    type Credential = C;

    async fn get_credential(&self) -> object_store::Result<Arc<C>> {
        let mut current = self.current.lock().await;
        if let Some((credential, since)) = &*current
            && since.elapsed() < self.refresh_after
        {
            return Ok(Arc::clone(credential));
        }
        let fetched = self
            .source
            .fetch()
            .await
            .and_then(|properties| (self.extract)(&properties));
        match (fetched, &*current) {
            (Ok(Some(credential)), _) => {
                let credential = Arc::new(credential);
                *current = Some((Arc::clone(&credential), Instant::now()));
                Ok(credential)
            }
            (Ok(None), Some((old, _))) => {
                tracing::warn!(source = ?self.source, "catalog vends no credentials any more, using the old ones");
                Ok(Arc::clone(old))
            }
            (Err(error), Some((old, _))) => {
                tracing::warn!(source = ?self.source, %error, "credentials not renewed, using the old ones");
                Ok(Arc::clone(old))
            }
            (Ok(None), None) => Err(no_credentials("the catalog vends none".into())),
            (Err(error), None) => Err(no_credentials(Box::new(error))),
        }
    }
}

fn no_credentials(source: Box<dyn std::error::Error + Send + Sync>) -> object_store::Error {
    object_store::Error::Generic {
        store: "vended credentials",
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Counting {
        calls: AtomicU64,
        failing: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl CredentialSource for Counting {
        async fn fetch(&self) -> Result<BTreeMap<String, String>, StorageError> {
            if self.failing.load(Ordering::SeqCst) {
                return Err(StorageError::Credentials {
                    source: "catalog is down".into(),
                });
            }
            let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            Ok(BTreeMap::from([("key".to_owned(), call.to_string())]))
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the signature of an extractor")]
    fn key(properties: &BTreeMap<String, String>) -> Result<Option<String>, StorageError> {
        Ok(properties.get("key").cloned())
    }

    #[tokio::test]
    async fn credentials_are_renewed_by_age_and_kept_when_renewal_fails() {
        let source = Arc::new(Counting::default());
        let start = || Refreshing::new(Some("0".to_owned()), Arc::clone(&source) as _, key);
        let young = start();
        assert_eq!(*young.get_credential().await.expect("initial"), "0");
        let old = Refreshing {
            refresh_after: Duration::ZERO,
            ..start()
        };
        assert_eq!(*old.get_credential().await.expect("renewed"), "1");
        assert_eq!(*old.get_credential().await.expect("renewed"), "2");
        source.failing.store(true, Ordering::SeqCst);
        assert_eq!(*old.get_credential().await.expect("kept"), "2");
        let none = Refreshing::<String, _>::new(None, Arc::clone(&source) as _, key);
        none.get_credential()
            .await
            .expect_err("nothing to fall back on");
        source.failing.store(false, Ordering::SeqCst);
        assert_eq!(*none.get_credential().await.expect("fetched"), "3");
        assert_eq!(*none.get_credential().await.expect("kept while young"), "3");
    }
}
