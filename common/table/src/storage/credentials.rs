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

use super::{StorageError, StorageErrorKind};

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

/// A stated expiry is Unix time. It makes renewal earlier, and tells why a store would refuse: no decision about data rests
/// on it.
fn unix_time() -> Duration {
    let now = SystemClock::default().now();
    Duration::from_millis(u64::try_from(now.0).unwrap_or_default())
}

/// How long credentials are good, from when they were vended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    /// They are renewed after so long.
    renewal: Duration,
    /// They are over after so long, where their server says so.
    stated: Option<Duration>,
}

impl Life {
    /// Of credentials that were vended at `wall` (Unix time).
    fn of(properties: &BTreeMap<String, String>, wall: Duration) -> Self {
        let expires = properties
            .iter()
            .filter(|(key, _)| EXPIRES_AT.iter().any(|name| key.starts_with(name)))
            .filter_map(|(_, value)| value.parse().ok().map(Duration::from_millis))
            .min();
        let stated = expires.map(|expires| expires.saturating_sub(wall));
        let renewal = stated.map_or(REFRESH_AFTER, |stated| {
            (stated / 2).clamp(REFRESH_AFTER_MIN, REFRESH_AFTER)
        });
        Self { renewal, stated }
    }
}

/// A client's credentials, renewed before they expire.
///
/// * One renewal at a time; the others wait for it.
/// * When a renewal fails, the old ones go on being used: they may still be valid, and the store knows. The next is tried
///   after a pause, so that a catalog that hangs does not hold up every request to a store that works.
/// * Once they are over by what their server said, that failure is the answer: the store would only say that they are not
///   allowed, which reads as if somebody had taken a permission away.
pub(super) struct Refreshing<C, F> {
    source: Arc<dyn CredentialSource>,
    extract: F,
    current: Mutex<Option<Current<C>>>,
}

struct Current<C> {
    credential: Arc<C>,
    renew_at: Instant,
    /// When they are over, where their server says so.
    over_at: Option<Instant>,
    /// Why the last renewal failed.
    failed: Option<Failed>,
}

/// Why there are no new credentials, to be told to everybody until the next try.
#[derive(Debug, Clone)]
struct Failed {
    why: String,
    is_denied: bool,
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
        let current = initial.map(|credential| {
            Current::new(credential, vended.at, Life::of(properties, vended.wall))
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
        if let Some(young) = current.as_ref().filter(|c| Instant::now() < c.renew_at) {
            return young.usable();
        }
        let (asked, wall) = (Instant::now(), unix_time());
        let fetched = self.source.fetch().await.and_then(|properties| {
            let credential = (self.extract)(&properties)?;
            Ok(credential.map(|credential| (credential, Life::of(&properties, wall))))
        });
        let failed = match fetched {
            Ok(Some((credential, life))) => {
                return current
                    .insert(Current::new(credential, asked, life))
                    .usable();
            }
            Ok(None) => Failed {
                why: "the catalog vends none".to_owned(),
                is_denied: false,
            },
            Err(error) => Failed::of(&error),
        };
        let Some(old) = &mut *current else {
            return Err(failed.into());
        };
        tracing::warn!(
            source = ?self.source, reason = failed.why, is_over = old.is_over(),
            "credentials not renewed, using the old ones while they last"
        );
        old.renew_at = Instant::now() + RETRY_AFTER;
        old.failed = Some(failed);
        old.usable()
    }
}

impl<C> Current<C> {
    fn new(credential: C, vended: Instant, life: Life) -> Self {
        Self {
            credential: Arc::new(credential),
            renew_at: vended + life.renewal,
            over_at: life.stated.and_then(|stated| vended.checked_add(stated)),
            failed: None,
        }
    }

    fn is_over(&self) -> bool {
        self.over_at.is_some_and(|at| Instant::now() >= at)
    }

    /// The credentials; why there are no others, where they are over.
    fn usable(&self) -> object_store::Result<Arc<C>> {
        match &self.failed {
            Some(failed) if self.is_over() => Err(failed.clone().into()),
            _ => Ok(Arc::clone(&self.credential)),
        }
    }
}

impl Failed {
    fn of(error: &StorageError) -> Self {
        let mut why = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            why = format!("{why}: {error}");
            cause = error.source();
        }
        Self {
            why,
            is_denied: error.kind() == StorageErrorKind::Unauthorized,
        }
    }
}

/// Who is not let in by the catalog is told so, and not that it may pass.
impl From<Failed> for object_store::Error {
    fn from(failed: Failed) -> Self {
        let source = failed.why.into();
        if failed.is_denied {
            return Self::Unauthenticated {
                path: "vended credentials".to_owned(),
                source,
            };
        }
        Self::Generic {
            store: "vended credentials",
            source,
        }
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
        denying: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl CredentialSource for Counting {
        async fn fetch(&self) -> Result<BTreeMap<String, String>, StorageError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if self.denying.load(Ordering::SeqCst) {
                return Err(StorageError::from_store(
                    "t",
                    "ask for credentials of",
                    object_store::Error::Unauthenticated {
                        path: "t".to_owned(),
                        source: "unknown client".into(),
                    },
                ));
            }
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

    /// As a client's user sees it: the store's own answer would be "not authorized".
    #[tokio::test]
    async fn credentials_that_are_over_are_not_used_and_the_catalogs_failure_is_the_answer() {
        let source = Arc::new(Counting::default());
        source.failing.store(true, Ordering::SeqCst);
        let ago = Duration::from_secs(5);
        let vended = Vended {
            source: Arc::clone(&source) as _,
            at: Instant::now().checked_sub(ago).expect("some seconds up"),
            wall: unix_time().saturating_sub(ago),
        };
        let stated = |expires: Duration| {
            [(EXPIRES_AT[0].to_owned(), expires.as_millis().to_string())].into()
        };
        let over = stated(unix_time().saturating_sub(Duration::from_secs(1)));
        let lasting = stated(unix_time() + Duration::from_secs(600));
        let given = Refreshing::new(Some("0".to_owned()), &vended, &over, key);
        age(&given).await;
        let told = |error: object_store::Error| StorageError::from_store("s3://b/f", "put", error);
        for _ in 0..20 {
            let error = told(given.get_credential().await.expect_err("over"));
            assert_eq!(error.kind(), StorageErrorKind::Transient);
            assert!(
                format!("{error:?}").contains("catalog is down"),
                "{error:?}"
            );
        }
        assert_eq!(source.asked.load(Ordering::SeqCst), 1, "one try a pause");
        let good = Refreshing::new(Some("0".to_owned()), &vended, &lasting, key);
        age(&good).await;
        assert_eq!(*good.get_credential().await.expect("still good"), "0");
        // who is not let in waits for nothing that passes by itself
        source.denying.store(true, Ordering::SeqCst);
        age(&given).await;
        let error = told(given.get_credential().await.expect_err("over"));
        assert_eq!(error.kind(), StorageErrorKind::Unauthorized);
        source.denying.store(false, Ordering::SeqCst);
        source.failing.store(false, Ordering::SeqCst);
        age(&given).await;
        assert_eq!(*given.get_credential().await.expect("renewed"), "1");
        assert_eq!(*given.get_credential().await.expect("young"), "1");
    }

    #[test]
    fn half_of_a_stated_life_is_used_and_never_more_than_ten_minutes() {
        let wall = Duration::from_secs(1_700_000_000);
        let renewal = |properties: &BTreeMap<String, String>| Life::of(properties, wall).renewal;
        let stating = |key: &str, rest: i64| {
            let at = i64::try_from(wall.as_millis()).expect("small") + rest * 1_000;
            renewal(&[(key.to_owned(), at.to_string())].into())
        };
        for key in EXPIRES_AT {
            assert_eq!(stating(key, 300), Duration::from_secs(150));
            assert_eq!(stating(key, 3_600), REFRESH_AFTER);
            assert_eq!(stating(key, -60), REFRESH_AFTER_MIN);
        }
        let account = "adls.sas-token-expires-at-ms.account.dfs.core.windows.net";
        assert_eq!(stating(account, 300), Duration::from_secs(150));
        assert_eq!(renewal(&none()), REFRESH_AFTER);
        let odd = [(EXPIRES_AT[0].to_owned(), "soon".to_owned())].into();
        assert_eq!(renewal(&odd), REFRESH_AFTER);
    }
}
