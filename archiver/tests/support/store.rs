//! An object store that a test can take away, folder by folder.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

/// What a store that does not take files answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum No {
    /// It is not reached.
    Away,
    /// Not allowed, so many times.
    Denied(u32),
}

/// A store in memory.
#[derive(Debug, Default)]
pub struct Store {
    inner: InMemory,
    /// What is answered to a write of any file whose path has this part.
    refused: Mutex<BTreeMap<String, No>>,
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Store {
    pub fn refuse(&self, part: &str, answer: No) {
        self.refused.lock().unwrap().insert(part.to_owned(), answer);
    }

    pub fn refuse_nothing(&self) {
        self.refused.lock().unwrap().clear();
    }

    fn allow(&self, location: &Path) -> object_store::Result<()> {
        let mut refused = self.refused.lock().unwrap();
        let found = refused
            .iter_mut()
            .find(|(part, _)| location.as_ref().contains(part.as_str()));
        let (path, source) = (location.to_string(), "the test says no".into());
        match found.map(|(_, no)| no) {
            None | Some(No::Denied(0)) => Ok(()),
            Some(No::Away) => Err(object_store::Error::Generic {
                store: "test",
                source,
            }),
            Some(No::Denied(left)) => {
                *left -= 1;
                Err(object_store::Error::PermissionDenied { path, source })
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.allow(location)?;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.allow(location)?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// For a catalog.
pub fn store() -> Arc<Store> {
    Arc::new(Store::default())
}
