//! Files of a table, wherever they are: one [`Storage`] reads and writes full URIs on local disk, S3, Google Cloud
//! Storage or Azure, and hands the same to Iceberg as a [`FileIO`].
//!
//! ```text
//!   uri ── location ──► (store, key) ──► one client per bucket ──► object_store
//!                                            local files: durable (fsync) before a write returns
//! ```
//!
//! Invariants:
//!
//! * A URI is taken as written. Nothing in it is percent-decoded, as in the other Iceberg implementations: what a
//!   manifest says is what is opened.
//! * A read returns exactly the bytes asked for, or an error; never fewer.
//! * A write that returned is complete and, on local disk, survives a power cut: file and folders are synced.
//! * Every name is written once, since names carry UUIDs (but for [`Storage::create`], which is for names that do not). So puts need no `If-None-Match`, may be repeated by the client
//!   after a lost reply, and the reply to a repeated conditional put (412 for one's own object, or 409 that some stores
//!   answer when nothing landed) never has to be interpreted.
//! * A storage that was made for a folder ([`Storage::within`]) reads, writes, lists and deletes nothing outside of it and of
//!   what the operator allows besides, whatever metadata says.
//! * Every wait is bounded: connecting, each request, and all repetitions of a request together.
//!
//! Not promised: a writer that is dropped neither finished nor aborted leaves an unfinished multipart upload, which is
//! invisible, but is stored until the bucket's lifecycle rule removes it.

mod clients;
mod credentials;
mod durable;
mod error;
mod file_io;
mod location;
mod settings;
mod upload;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use everlog_common::Millis;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::FileIO;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};

pub use credentials::CredentialSource;
pub use error::{StorageError, StorageErrorKind};
pub(crate) use settings::parse_duration;
pub use upload::Upload;

use clients::ClientKey;
use credentials::Vended;
use location::{Location, Scheme};
use settings::StorageSettings;

/// One stored object, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// Full URI, written the way the listed prefix was.
    pub uri: String,
    /// Length in bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub last_modified: Millis,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// An object store addressed by full URIs. Clones share clients and connections.
///
/// Properties (Iceberg's own names; anything else is ignored, as the `[catalog]` section is shared with the catalog):
///
/// * S3: `s3.endpoint`, `s3.region` (or `client.region`), `s3.access-key-id`, `s3.secret-access-key`,
///   `s3.session-token`, `s3.path-style-access` (default: true with an endpoint, else false), `s3.anonymous`,
///   `s3.sse.type` and `s3.sse.key`. Without keys the environment's credentials are used: variables, web identity,
///   container, instance.
/// * Google: `gcs.oauth2.token`, `gcs.service.host`, `gcs.no-auth`, `gcs.service-account-path`, else the environment's.
/// * Azure: `adls.account-name`, `adls.account-key`, `adls.sas-token` or `adls.sas-token.ACCOUNT`, `adls.tenant-id` with
///   `adls.client-id` and `adls.client-secret`, else the environment's.
/// * All: `everlog.storage.connect-timeout` (5s), `everlog.storage.request-timeout` (60s),
///   `everlog.storage.retry-timeout` (2m), `everlog.storage.max-retries` (8); `everlog.storage.allowed-locations`: folders,
///   with commas in between, where files of a table may be besides its own.
#[derive(Clone)]
pub struct Storage {
    inner: Arc<Inner>,
    /// Outside of which nothing is touched; none: anything may be.
    folder: Option<Arc<Folder>>,
}

/// Where the files of a table may be.
struct Folder {
    uri: String,
    /// The folder itself, then what is allowed besides.
    allowed: Vec<Location>,
}

struct Inner {
    backend: Backend,
    settings: StorageSettings,
}

enum Backend {
    /// Clients are made on first use, one per bucket.
    Configured {
        properties: BTreeMap<String, String>,
        credentials: Option<Vended>,
        clients: Mutex<BTreeMap<ClientKey, Arc<dyn ObjectStore>>>,
    },
    /// Every URI goes to this store; the authority is the first part of the key.
    Injected(Arc<dyn ObjectStore>),
}

impl Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Storage");
        match &self.inner.backend {
            Backend::Configured { properties, .. } => out.field("properties", &properties.keys()),
            Backend::Injected(store) => out.field("store", &store.to_string()),
        };
        out.finish_non_exhaustive()
    }
}

impl Storage {
    /// A storage that reaches whatever the properties describe.
    pub fn from_properties(properties: &BTreeMap<String, String>) -> Result<Self, StorageError> {
        Self::configured(properties, None)
    }

    /// Like [`Self::from_properties`], for credentials that expire, and were vended just now: `credentials` is asked for
    /// new ones before they do.
    pub fn with_credentials(
        properties: &BTreeMap<String, String>,
        credentials: Arc<dyn CredentialSource>,
    ) -> Result<Self, StorageError> {
        Self::configured(properties, Some(Vended::now(credentials)))
    }

    /// A storage in which every URI, of any scheme, lives in `store`.
    pub fn from_store(store: Arc<dyn ObjectStore>) -> Self {
        let inner = Inner {
            backend: Backend::Injected(store),
            settings: StorageSettings::default(),
        };
        Self {
            inner: Arc::new(inner),
            folder: None,
        }
    }

    fn configured(
        properties: &BTreeMap<String, String>,
        credentials: Option<Vended>,
    ) -> Result<Self, StorageError> {
        let inner = Inner {
            settings: StorageSettings::parse(properties)?,
            backend: Backend::Configured {
                properties: properties.clone(),
                credentials,
                clients: Mutex::default(),
            },
        };
        Ok(Self {
            inner: Arc::new(inner),
            folder: None,
        })
    }

    /// The same storage for what is in this folder, and in `everlog.storage.allowed-locations`: any other location is
    /// refused. A folder within a folder must lie in it, or be allowed too.
    pub fn within(&self, folder: &str) -> Result<Self, StorageError> {
        let mut allowed = vec![self.parse(folder)?];
        for uri in &self.inner.settings.allowed {
            allowed.push(Location::parse(uri)?);
        }
        Ok(Self {
            inner: Arc::clone(&self.inner),
            folder: Some(Arc::new(Folder {
                uri: folder.to_owned(),
                allowed,
            })),
        })
    }

    /// Whether a folder can be where `uri` says: a location that is understood, in a store that the properties suffice
    /// for. No request is sent.
    pub fn check(&self, uri: &str) -> Result<(), StorageError> {
        self.open_prefix(uri).map(drop)
    }

    /// The whole object.
    pub async fn get(&self, uri: &str) -> Result<Bytes, StorageError> {
        let (store, location) = self.open(uri)?;
        let failed = |source| StorageError::from_store(uri, "get", source);
        let result = store.get(&location.key).await.map_err(failed)?;
        let expected = result.meta.size;
        let bytes = result.bytes().await.map_err(failed)?;
        exactly(uri, 0..expected, bytes)
    }

    /// The bytes of one range, all of them.
    pub async fn get_range(&self, uri: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let (store, location) = self.open(uri)?;
        let bytes = store
            .get_range(&location.key, range.clone())
            .await
            .map_err(|source| StorageError::from_store(uri, "get range", source))?;
        exactly(uri, range, bytes)
    }

    /// The bytes of each range, in the order asked. Ranges close to each other are fetched by one request.
    pub async fn get_ranges(
        &self,
        uri: &str,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Bytes>, StorageError> {
        let (store, location) = self.open(uri)?;
        let asked: Vec<Range<u64>> = ranges.iter().filter(|r| !r.is_empty()).cloned().collect();
        let fetched = store
            .get_ranges(&location.key, &asked)
            .await
            .map_err(|source| StorageError::from_store(uri, "get ranges", source))?;
        let mut fetched = fetched.into_iter();
        let take = |range: &Range<u64>| {
            if range.is_empty() {
                return Ok(Bytes::new());
            }
            exactly(uri, range.clone(), fetched.next().unwrap_or_default())
        };
        ranges.iter().map(take).collect()
    }

    /// The object's length in bytes.
    pub async fn size(&self, uri: &str) -> Result<u64, StorageError> {
        let (store, location) = self.open(uri)?;
        let meta = store
            .head(&location.key)
            .await
            .map_err(|source| StorageError::from_store(uri, "head", source))?;
        Ok(meta.size)
    }

    /// Whether there is such an object.
    pub async fn exists(&self, uri: &str) -> Result<bool, StorageError> {
        match self.size(uri).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == StorageErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Stores a whole object under a name that was never used before. (What nobody decides anything by may be stored under
    /// one name again and again: readers see the one or the other.)
    pub async fn put(&self, uri: &str, bytes: Bytes) -> Result<(), StorageError> {
        let (store, location) = self.open(uri)?;
        store
            .put(&location.key, PutPayload::from_bytes(bytes))
            .await
            .map_err(|source| StorageError::from_store(uri, "put", source))?;
        Ok(())
    }

    /// Stores a whole object unless there is one of that name already: then `false`, and nothing changed. Of several
    /// callers only one ever gets `true`. On local disk the name shows the whole content or is not there, whenever the
    /// power fails.
    ///
    /// `false` may also mean this very call's own object, where the store's reply was lost and the client asked again: a
    /// caller to whom that matters reads it and compares.
    pub async fn create(&self, uri: &str, bytes: Bytes) -> Result<bool, StorageError> {
        let (store, location) = self.open(uri)?;
        let payload = PutPayload::from_bytes(bytes);
        match store
            .put_opts(&location.key, payload, PutMode::Create.into())
            .await
        {
            Ok(_) => Ok(true),
            // S3 answers 409 where another conditional put of the name is under way; the client tells it as the first.
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(false),
            Err(source) => Err(StorageError::from_store(uri, "create", source)),
        }
    }

    /// Begins an object that is written piece by piece. It becomes visible with [`Upload::finish`].
    pub fn writer(&self, uri: &str) -> Result<Upload, StorageError> {
        let (store, location) = self.open(uri)?;
        Ok(Upload::new(store, uri.to_owned(), location.key))
    }

    /// Removes an object; one that is not there is no error.
    pub async fn delete(&self, uri: &str) -> Result<(), StorageError> {
        let (store, location) = self.open(uri)?;
        match store.delete(&location.key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StorageError::from_store(uri, "delete", source)),
        }
    }

    /// Removes what local writes that were cut off left beside their names (`NAME#1`) before a time; listings do not show
    /// it. Other stores have no such files: what an upload leaves there is the bucket's to remove.
    pub(crate) async fn remove_staged(
        &self,
        prefix: &str,
        before: Millis,
    ) -> Result<Removed, StorageError> {
        let (_, location) = self.open_prefix(prefix)?;
        if location.scheme != Scheme::File {
            return Ok(Removed::default());
        }
        durable::remove_staged(&location.key, before)
            .await
            .map_err(|source| StorageError::from_store(prefix, "remove leftovers below", source))
    }

    /// Every object below a prefix, which ends at a `/` whether it is written or not. Nothing there is an empty list.
    pub fn list(
        &self,
        prefix: &str,
    ) -> Result<BoxStream<'static, Result<StoredObject, StorageError>>, StorageError> {
        let (store, location) = self.open_prefix(prefix)?;
        let listed = prefix.to_owned();
        let listing = store
            .list(Some(&location.key))
            .map(move |object| match object {
                Ok(meta) => Ok(StoredObject {
                    uri: location.uri_of(&meta.location),
                    size: meta.size,
                    last_modified: Millis(meta.last_modified.timestamp_millis()),
                }),
                Err(source) => Err(StorageError::from_store(&listed, "list", source)),
            });
        Ok(listing.boxed())
    }

    /// The same storage for Iceberg's own readers and writers.
    pub fn file_io(&self) -> FileIO {
        file_io::file_io(self.clone())
    }

    fn open(&self, uri: &str) -> Result<(Arc<dyn ObjectStore>, Location), StorageError> {
        let (store, location) = self.open_prefix(uri)?;
        if location.key.is_root() {
            return Err(StorageError::Location {
                uri: uri.to_owned(),
                message: "names no object".into(),
            });
        }
        Ok((store, location))
    }

    /// Where a URI leads, if this storage may go there.
    fn parse(&self, uri: &str) -> Result<Location, StorageError> {
        let location = match &self.inner.backend {
            Backend::Injected(_) => Location::parse_any(uri)?,
            Backend::Configured { .. } => Location::parse(uri)?,
        };
        match &self.folder {
            Some(folder) if !folder.allowed.iter().any(|f| f.contains(&location)) => {
                Err(StorageError::Outside {
                    uri: uri.to_owned(),
                    folder: folder.uri.clone(),
                })
            }
            _ => Ok(location),
        }
    }

    #[cfg(test)]
    pub(crate) fn allows(&self, uri: &str) -> bool {
        self.parse(uri).is_ok()
    }

    fn open_prefix(&self, uri: &str) -> Result<(Arc<dyn ObjectStore>, Location), StorageError> {
        let location = self.parse(uri)?;
        let (properties, credentials, clients) = match &self.inner.backend {
            Backend::Injected(store) => return Ok((Arc::clone(store), location)),
            Backend::Configured {
                properties,
                credentials,
                clients,
            } => (properties, credentials, clients),
        };
        let key = ClientKey::of(&location);
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok((Arc::clone(client), location));
        }
        let client = clients::build(&key, properties, credentials.as_ref(), &self.inner.settings)?;
        clients.insert(key, Arc::clone(&client));
        Ok((client, location))
    }
}

/// P13: a store, or a proxy before it, may answer a range with fewer bytes and call it success.
fn exactly(uri: &str, range: Range<u64>, bytes: Bytes) -> Result<Bytes, StorageError> {
    let expected = range.end - range.start;
    if bytes.len() as u64 == expected {
        return Ok(bytes);
    }
    Err(StorageError::Length {
        uri: uri.to_owned(),
        start: range.start,
        expected,
        got: bytes.len() as u64,
    })
}

#[cfg(test)]
mod tests;
