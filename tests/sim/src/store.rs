//! The object store: a server that records all that happens to its objects, and the way of each process to it, on which
//! requests fail before or after they had their effect.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use everlog_common::{Clock, Millis};
use everlog_tests::checker::{Event, FileFacts};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use twox_hash::XxHash3_64;

use crate::facts;
use crate::world::{Process, Recorder, SimClock};

/// The server.
#[derive(Debug)]
pub struct Backing {
    inner: InMemory,
    clock: Arc<SimClock>,
    recorder: Arc<Recorder>,
    modified: Mutex<BTreeMap<Path, Millis>>,
    /// What manifests say: names are written once, and what is in them is asked for at every commit.
    manifests: Mutex<BTreeMap<String, Vec<FileFacts>>>,
}

impl std::fmt::Display for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("sim")
    }
}

/// An object's key, from its full name.
pub fn key_of(uri: &str) -> &str {
    uri.split_once("://").map_or(uri, |(_, rest)| rest)
}

impl Backing {
    pub(crate) fn new(clock: Arc<SimClock>, recorder: Arc<Recorder>) -> Self {
        Self {
            inner: InMemory::new(),
            clock,
            recorder,
            modified: Mutex::default(),
            manifests: Mutex::default(),
        }
    }

    fn modified(&self) -> MutexGuard<'_, BTreeMap<Path, Millis>> {
        self.modified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object's bytes, at once.
    pub fn bytes(&self, uri: &str) -> Option<Bytes> {
        let path = Path::from(key_of(uri));
        let read = async { self.inner.get(&path).await.ok()?.bytes().await.ok() };
        read.now_or_never().flatten()
    }

    /// What a manifest says; nothing where it cannot be read.
    pub(crate) fn manifest(
        &self,
        path: &str,
        read: impl FnOnce() -> Option<Vec<FileFacts>>,
    ) -> Vec<FileFacts> {
        let mut manifests = self
            .manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = manifests.get(path) {
            return known.clone();
        }
        let facts = read();
        if let Some(facts) = &facts {
            manifests.insert(path.to_owned(), facts.clone());
        }
        facts.unwrap_or_default()
    }

    /// By the simulation's clock.
    fn stamped(&self, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(at) = self.modified().get(&meta.location) {
            meta.last_modified = std::time::UNIX_EPOCH
                .checked_add(std::time::Duration::from_millis(at.0.unsigned_abs()))
                .unwrap_or(std::time::UNIX_EPOCH)
                .into();
        }
        meta
    }
}

#[async_trait]
impl ObjectStore for Backing {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let bytes: Bytes = payload.clone().into();
        let put = self.inner.put_opts(location, payload, opts).await?;
        self.modified().insert(location.clone(), self.clock.now());
        let rows = location
            .as_ref()
            .ends_with(".parquet")
            .then(|| facts::rows(&bytes).map(Arc::new))
            .flatten();
        self.recorder.record(Event::Put {
            name: location.to_string(),
            len: bytes.len() as u64,
            hash: XxHash3_64::oneshot(&bytes),
            rows,
        });
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented {
            operation: "multipart upload".to_owned(),
            implementer: "sim: its files are small".to_owned(),
        })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut result = self.inner.get_opts(location, options).await?;
        result.meta = self.stamped(result.meta);
        Ok(result)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let recorder = Arc::clone(&self.recorder);
        self.inner
            .delete_stream(locations)
            .inspect(move |deleted| {
                if let Ok(path) = deleted {
                    recorder.record(Event::Deleted {
                        name: path.to_string(),
                    });
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.inner.list(prefix).collect::<Vec<_>>().now_or_never();
        let listed: Vec<_> = listed
            .unwrap_or_default()
            .into_iter()
            .map(|meta| meta.map(|meta| self.stamped(meta)))
            .collect();
        futures::stream::iter(listed).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        listed.objects = listed
            .objects
            .into_iter()
            .map(|meta| self.stamped(meta))
            .collect();
        Ok(listed)
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented {
            operation: "copy".to_owned(),
            implementer: "sim: nobody copies".to_owned(),
        })
    }
}

/// A process' way to the store.
#[derive(Debug, Clone)]
pub struct Client {
    process: Arc<Process>,
}

impl Client {
    /// Of this process.
    pub fn new(process: Arc<Process>) -> Self {
        Self { process }
    }

    fn server(&self) -> &Backing {
        &self.process.world.store
    }

    fn strikes(&self, per_mille: u64, kind: &'static str) -> Result<()> {
        if self.process.world.strikes(per_mille, kind) {
            return Err(Error::Generic {
                store: "sim",
                source: kind.into(),
            });
        }
        Ok(())
    }

    async fn delete_one(&self, path: Path) -> Result<Path> {
        let per_mille = self.process.world.plan.faults.delete;
        self.process.pass("delete").await;
        self.strikes(per_mille / 2, "delete refused")?;
        self.server().delete(&path).await?;
        self.process.pass("deleted").await;
        self.strikes(per_mille / 2, "delete done and refused")?;
        Ok(path)
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("sim")
    }
}

#[async_trait]
impl ObjectStore for Client {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let faults = &self.process.world.plan.faults;
        self.process.pass("put").await;
        self.strikes(faults.put_before, "put refused")?;
        let put = self.server().put_opts(location, payload, opts).await?;
        self.process.pass("put done").await;
        self.strikes(faults.put_after, "put done and refused")?;
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.server().put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.process.pass("get").await;
        self.strikes(self.process.world.plan.faults.get, "get")?;
        self.server().get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let client = self.clone();
        locations
            .then(move |path| {
                let client = client.clone();
                async move { client.delete_one(path?).await }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (client, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            client.process.pass("list").await;
            match client.strikes(client.process.world.plan.faults.get, "list") {
                Ok(()) => client.server().list(prefix.as_ref()),
                Err(error) => futures::stream::iter([Err(error)]).boxed(),
            }
        };
        listing.flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.process.pass("list").await;
        self.server().list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.server().copy_opts(from, to, options).await
    }
}
