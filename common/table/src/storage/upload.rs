//! An object written piece by piece.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, PutPayloadMut};
use tokio::task::JoinSet;

use super::StorageError;

/// Bytes per part. All parts but the last are exactly as long, which some stores demand.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts on their way at once; more are waited for, so at most this many plus one are in memory.
const PARTS_IN_FLIGHT: usize = 4;

/// An object on its way into a store. Small ones go out as one put, larger ones as a multipart upload.
///
/// * Nothing is visible before [`Self::finish`] returned.
/// * After an error it is aborted, and takes no more bytes.
#[derive(Debug)]
pub struct Upload {
    store: Arc<dyn ObjectStore>,
    uri: String,
    key: Path,
    buffered: PutPayloadMut,
    written: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Everything so far is buffered.
    Small,
    Multipart(Box<dyn MultipartUpload>, JoinSet<object_store::Result<()>>),
    /// An error was returned, and the upload aborted.
    Failed,
}

impl Upload {
    pub(super) fn new(store: Arc<dyn ObjectStore>, uri: String, key: Path) -> Self {
        Self {
            store,
            uri,
            key,
            buffered: PutPayloadMut::new(),
            written: 0,
            state: State::Small,
        }
    }

    /// Where it goes.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Bytes taken so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes more bytes. Waits while too many are on their way.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        match self.try_write(bytes).await {
            Ok(()) => Ok(()),
            Err(source) => Err(self.fail(source).await),
        }
    }

    /// Completes the object and returns its length; from here on it is stored for good.
    pub async fn finish(mut self) -> Result<u64, StorageError> {
        match self.try_finish().await {
            Ok(()) => Ok(self.written),
            Err(source) => Err(self.fail(source).await),
        }
    }

    /// Gives the object up. What was sent is removed as far as the store can be reached.
    pub async fn abort(mut self) -> Result<(), StorageError> {
        self.abort_parts()
            .await
            .map_err(|source| StorageError::from_store(&self.uri, "abort upload of", source))
    }

    async fn try_write(&mut self, mut bytes: Bytes) -> object_store::Result<()> {
        if matches!(self.state, State::Failed) {
            return Err(already_failed());
        }
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = PART_BYTES - self.buffered.content_length();
            self.buffered.push(bytes.split_to(room.min(bytes.len())));
            if self.buffered.content_length() == PART_BYTES {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    async fn send_part(&mut self) -> object_store::Result<()> {
        if matches!(self.state, State::Small) {
            let upload = self.store.put_multipart(&self.key).await?;
            self.state = State::Multipart(upload, JoinSet::new());
        }
        let State::Multipart(upload, parts) = &mut self.state else {
            return Err(already_failed());
        };
        while parts.len() >= PARTS_IN_FLIGHT {
            joined(parts.join_next().await)?;
        }
        let part: PutPayload = std::mem::take(&mut self.buffered).freeze();
        parts.spawn(upload.put_part(part));
        Ok(())
    }

    async fn try_finish(&mut self) -> object_store::Result<()> {
        match &self.state {
            State::Failed => return Err(already_failed()),
            State::Small => {
                let whole = std::mem::take(&mut self.buffered).freeze();
                return self.store.put(&self.key, whole).await.map(drop);
            }
            State::Multipart(..) => {}
        }
        if self.buffered.content_length() > 0 {
            self.send_part().await?;
        }
        let State::Multipart(upload, parts) = &mut self.state else {
            return Err(already_failed());
        };
        while !parts.is_empty() {
            joined(parts.join_next().await)?;
        }
        match upload.complete().await {
            Ok(_) => Ok(()),
            // A lost reply and the client's own repetition end in "no such upload" though the object is there. The
            // name is ours alone, so an object of this length is this one.
            Err(error) => match self.store.head(&self.key).await {
                Ok(meta) if meta.size == self.written => Ok(()),
                _ => Err(error),
            },
        }
    }

    async fn fail(&mut self, source: object_store::Error) -> StorageError {
        if let Err(error) = self.abort_parts().await {
            tracing::warn!(uri = self.uri, %error, "failed upload could not be aborted");
        }
        StorageError::from_store(&self.uri, "write", source)
    }

    async fn abort_parts(&mut self) -> object_store::Result<()> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Small | State::Failed => Ok(()),
            State::Multipart(mut upload, mut parts) => {
                parts.shutdown().await;
                upload.abort().await
            }
        }
    }
}

fn joined(
    part: Option<Result<object_store::Result<()>, tokio::task::JoinError>>,
) -> object_store::Result<()> {
    match part {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(source)) => Err(object_store::Error::JoinError { source }),
    }
}

fn already_failed() -> object_store::Error {
    object_store::Error::Generic {
        store: "upload",
        source: "an earlier write failed".into(),
    }
}
