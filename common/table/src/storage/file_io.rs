//! [`Storage`] as Iceberg's own file interface, for its manifest readers and writers.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, StorageConfig,
    StorageFactory,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Storage, StorageError, StorageErrorKind, Upload};

pub(super) fn file_io(storage: Storage) -> FileIO {
    FileIOBuilder::new(Arc::new(ByStorage(storage))).build()
}

/// Both factory and storage. The library wants both serializable, to send them to other processes; ours hold open
/// clients and stay where they are, so serializing one is an error.
#[derive(Debug, Clone)]
struct ByStorage(Storage);

impl Serialize for ByStorage {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom(
            "a storage with open clients cannot be serialized",
        ))
    }
}

impl<'de> Deserialize<'de> for ByStorage {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom(
            "a storage with open clients cannot be deserialized",
        ))
    }
}

#[typetag::serde(name = "EverlogStorageFactory")]
impl StorageFactory for ByStorage {
    fn build(&self, _: &StorageConfig) -> iceberg::Result<Arc<dyn iceberg::io::Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

#[typetag::serde(name = "EverlogStorage")]
#[async_trait]
impl iceberg::io::Storage for ByStorage {
    async fn exists(&self, path: &str) -> iceberg::Result<bool> {
        self.0.exists(path).await.map_err(to_iceberg)
    }

    async fn metadata(&self, path: &str) -> iceberg::Result<FileMetadata> {
        let size = self.0.size(path).await.map_err(to_iceberg)?;
        Ok(FileMetadata { size })
    }

    async fn read(&self, path: &str) -> iceberg::Result<Bytes> {
        self.0.get(path).await.map_err(to_iceberg)
    }

    async fn reader(&self, path: &str) -> iceberg::Result<Box<dyn FileRead>> {
        Ok(Box::new(Reader {
            storage: self.0.clone(),
            uri: path.to_owned(),
        }))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> iceberg::Result<()> {
        self.0.put(path, bytes).await.map_err(to_iceberg)
    }

    async fn writer(&self, path: &str) -> iceberg::Result<Box<dyn FileWrite>> {
        Ok(Box::new(Writer(Some(
            self.0.writer(path).map_err(to_iceberg)?,
        ))))
    }

    async fn delete(&self, path: &str) -> iceberg::Result<()> {
        self.0.delete(path).await.map_err(to_iceberg)
    }

    async fn delete_prefix(&self, path: &str) -> iceberg::Result<()> {
        let mut below = self.0.list(path).map_err(to_iceberg)?;
        while let Some(object) = below.next().await {
            let object = object.map_err(to_iceberg)?;
            self.0.delete(&object.uri).await.map_err(to_iceberg)?;
        }
        Ok(())
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> iceberg::Result<()> {
        while let Some(path) = paths.next().await {
            self.0.delete(&path).await.map_err(to_iceberg)?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> iceberg::Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> iceberg::Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

#[derive(Debug)]
struct Reader {
    storage: Storage,
    uri: String,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> iceberg::Result<Bytes> {
        self.storage
            .get_range(&self.uri, range)
            .await
            .map_err(to_iceberg)
    }
}

#[derive(Debug)]
struct Writer(Option<Upload>);

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> iceberg::Result<()> {
        self.0
            .as_mut()
            .ok_or_else(closed)?
            .write(bytes)
            .await
            .map_err(to_iceberg)
    }

    async fn close(&mut self) -> iceberg::Result<()> {
        self.0
            .take()
            .ok_or_else(closed)?
            .finish()
            .await
            .map(drop)
            .map_err(to_iceberg)
    }
}

fn closed() -> iceberg::Error {
    iceberg::Error::new(iceberg::ErrorKind::DataInvalid, "file is closed already")
}

fn to_iceberg(error: StorageError) -> iceberg::Error {
    let kind = match error.kind() {
        StorageErrorKind::Invalid | StorageErrorKind::Corrupt => iceberg::ErrorKind::DataInvalid,
        StorageErrorKind::NotFound
        | StorageErrorKind::Unauthorized
        | StorageErrorKind::Transient => iceberg::ErrorKind::Unexpected,
    };
    let retryable = error.kind() == StorageErrorKind::Transient;
    iceberg::Error::new(kind, error.to_string())
        .with_retryable(retryable)
        .with_source(error)
}
