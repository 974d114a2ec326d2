//! Credentials that a catalog vends for a while.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::Clock;
use everlog_common::clock::SystemClock;
use object_store::CredentialProvider;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::StorageError;

/// Vended credentials are asked for anew at this age, or when half of the life is over that their server states. The
/// shortest that the clouds hand out live 15 minutes.
const REFRESH_AFTER: Duration = Duration::from_mins(10);
/// Whatever a server states, they are used for so long: a clock of ours that runs ahead must not ask without end.
const REFRESH_AFTER_MIN: Duration = Duration::from_secs(30);
/// After a renewal that failed, the next is tried this much later; meanwhile the old ones are used.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Properties that state when credentials expire, in Unix milliseconds.
const EXPIRES_AT: [&str; 3] = [
    "s3.session-token-expires-at-ms",
    "gcs.oauth2.token-expires-at",
    "adls.sas-token-expires-at-ms",
];

/// Where new credentials come from once those at hand expire.
#[async_trait]
pub trait CredentialSource: Send + Sync + Debug {
    /// Properties with credentials that are valid now, and for a while. Bounded in time.
    async fn fetch(&self) -> Result<BTreeMap<String, String>, StorageError>;
}

/// Where credentials come from, and when those at hand were vended.
#[derive(Debug, Clone)]
pub(super) struct Vended {
    source: Arc<dyn CredentialSource>,
    at: Instant,
    /// Unix time then.
    wall: Duration,
}

impl Vended {
    /// Those at hand were vended just now. A client may be made of them much later.
    pub(super) fn now(source: Arc<dyn CredentialSource>) -> Self {
        Self {
            source,
            at: Instant::now(),
            wall: unix_time(),
        }
    }
}

/// A stated expiry is Unix time. It only makes renewal earlier: no decision about data rests on it.
fn unix_time() -> Duration {
    let now = SystemClock::default().now();
    Duration::from_millis(u64::try_from(now.0).unwrap_or_default())
}

/// How long after `wall` (Unix time) credentials are renewed that were vended then.
fn life(properties: &BTreeMap<String, String>, wall: Duration) -> Duration {
    let stated = properties
        .iter()
        .filter(|(key, _)| EXPIRES_AT.iter().any(|name| key.starts_with(name)))
        .filter_map(|(_, value)| value.parse().ok().map(Duration::from_millis))
        .min();
    stated.map_or(REFRESH_AFTER, |expires| {
        let half = expires.saturating_sub(wall) / 2;
        half.clamp(REFRESH_AFTER_MIN, REFRESH_AFTER)
    })
}

/// A client's credentials, renewed before they expire.
///
/// * One renewal at a time; the others wait for it.
/// * When a renewal fails, the old ones go on being used: they may still be valid, and the store knows. The next is tried
///   after a pause, so that a catalog that hangs does not hold up every request to a store that works.
pub(super) struct Refreshing<C, F> {
    source: Arc<dyn CredentialSource>,
    extract: F,
    current: Mutex<Option<Current<C>>>,
}

struct Current<C> {
    credential: Arc<C>,
    renew_at: Instant,
}

impl<C, F> Debug for Refreshing<C, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refreshing")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl<C, F> Refreshing<C, F> {
    /// Starts with `initial`, which was vended with `properties` when `vended` says.
    pub(super) fn new(
        initial: Option<C>,
        vended: &Vended,
        properties: &BTreeMap<String, String>,
        extract: F,
    ) -> Self {
        let current = initial.map(|credential| Current {
            credential: Arc::new(credential),
            renew_at: vended.at + life(properties, vended.wall),
        });
        Self {
            source: Arc::clone(&vended.source),
            extract,
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
        if let Some(Current {
            credential,
            renew_at,
        }) = &*current
            && Instant::now() < *renew_at
        {
            return Ok(Arc::clone(credential));
        }
        let (asked, wall) = (Instant::now(), unix_time());
        let fetched = self.source.fetch().await.and_then(|properties| {
            let credential = (self.extract)(&properties)?;
            Ok(credential.map(|credential| (credential, life(&properties, wall))))
        });
        match (fetched, &mut *current) {
            (Ok(Some((credential, life))), current) => {
                let credential = Arc::new(credential);
                *current = Some(Current {
                    credential: Arc::clone(&credential),
                    renew_at: asked + life,
                });
                Ok(credential)
            }
            (Ok(None), Some(old)) => {
                tracing::warn!(source = ?self.source, "catalog vends no credentials any more, using the old ones");
                Ok(old.kept())
            }
            (Err(error), Some(old)) => {
                tracing::warn!(source = ?self.source, %error, "credentials not renewed, using the old ones");
                Ok(old.kept())
            }
            (Ok(None), None) => Err(no_credentials("the catalog vends none".into())),
            (Err(error), None) => Err(no_credentials(Box::new(error))),
        }
    }
}

impl<C> Current<C> {
    fn kept(&mut self) -> Arc<C> {
        self.renew_at = Instant::now() + RETRY_AFTER;
        Arc::clone(&self.credential)
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
        asked: AtomicU64,
        failing: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl CredentialSource for Counting {
        async fn fetch(&self) -> Result<BTreeMap<String, String>, StorageError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
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

    fn none() -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// As if the time had come.
    async fn age<C, F>(given: &Refreshing<C, F>) {
        let mut current = given.current.lock().await;
        current.as_mut().expect("credentials").renew_at = Instant::now();
    }

    #[tokio::test]
    async fn credentials_are_renewed_by_age_and_kept_when_renewal_fails() {
        let source = Arc::new(Counting::default());
        let vended = Vended::now(Arc::clone(&source) as _);
        let given = Refreshing::new(Some("0".to_owned()), &vended, &none(), key);
        assert_eq!(*given.get_credential().await.expect("initial"), "0");
        age(&given).await;
        assert_eq!(*given.get_credential().await.expect("renewed"), "1");
        assert_eq!(*given.get_credential().await.expect("young"), "1");
        age(&given).await;
        assert_eq!(*given.get_credential().await.expect("renewed"), "2");
        source.failing.store(true, Ordering::SeqCst);
        age(&given).await;
        assert_eq!(*given.get_credential().await.expect("kept"), "2");
        let none = Refreshing::<String, _>::new(None, &vended, &none(), key);
        none.get_credential()
            .await
            .expect_err("nothing to fall back on");
        source.failing.store(false, Ordering::SeqCst);
        assert_eq!(*none.get_credential().await.expect("fetched"), "3");
        assert_eq!(*none.get_credential().await.expect("kept while young"), "3");
    }

    #[tokio::test]
    async fn a_renewal_that_failed_is_tried_again_after_a_pause_and_not_by_every_request() {
        let source = Arc::new(Counting::default());
        source.failing.store(true, Ordering::SeqCst);
        let vended = Vended::now(Arc::clone(&source) as _);
        let given = Refreshing::new(Some("0".to_owned()), &vended, &none(), key);
        age(&given).await;
        for _ in 0..100 {
            assert_eq!(*given.get_credential().await.expect("kept"), "0");
        }
        assert_eq!(source.asked.load(Ordering::SeqCst), 1);
        let renew_at = given.current.lock().await.as_ref().map(|c| c.renew_at);
        let pause = renew_at
            .expect("kept")
            .saturating_duration_since(Instant::now());
        assert!(pause > RETRY_AFTER / 2 && pause <= RETRY_AFTER, "{pause:?}");
        age(&given).await;
        given.get_credential().await.expect("kept");
        assert_eq!(source.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn credentials_that_were_vended_long_before_their_first_use_are_renewed_at_it() {
        let source = Arc::new(Counting::default());
        let ago = REFRESH_AFTER_MIN + Duration::from_secs(1);
        let vended = Vended {
            source: Arc::clone(&source) as _,
            at: Instant::now().checked_sub(ago).expect("half a minute up"),
            wall: unix_time(),
        };
        // of a minute's life, half of which is over
        let expires = unix_time() + Duration::from_secs(60);
        let stated = [(EXPIRES_AT[0].to_owned(), expires.as_millis().to_string())].into();
        let old = Refreshing::new(Some("0".to_owned()), &vended, &stated, key);
        assert_eq!(*old.get_credential().await.expect("renewed"), "1");
        let vended = Vended::now(Arc::clone(&source) as _);
        let young = Refreshing::new(Some("0".to_owned()), &vended, &stated, key);
        assert_eq!(*young.get_credential().await.expect("young"), "0");
    }

    #[test]
    fn half_of_a_stated_life_is_used_and_never_more_than_ten_minutes() {
        let wall = Duration::from_secs(1_700_000_000);
        let stating = |key: &str, rest: i64| {
            let at = i64::try_from(wall.as_millis()).expect("small") + rest * 1_000;
            life(&[(key.to_owned(), at.to_string())].into(), wall)
        };
        for key in EXPIRES_AT {
            assert_eq!(stating(key, 300), Duration::from_secs(150));
            assert_eq!(stating(key, 3_600), REFRESH_AFTER);
            assert_eq!(stating(key, -60), REFRESH_AFTER_MIN);
        }
        let account = "adls.sas-token-expires-at-ms.account.dfs.core.windows.net";
        assert_eq!(stating(account, 300), Duration::from_secs(150));
        assert_eq!(life(&none(), wall), REFRESH_AFTER);
        let odd = [(EXPIRES_AT[0].to_owned(), "soon".to_owned())].into();
        assert_eq!(life(&odd, wall), REFRESH_AFTER);
    }
}
