//! Local files that survive a power cut.
//!
//! The library's local store renames a complete file into place, but syncs neither the file nor its folder: after a power
//! cut the catalog could name a metadata file that is empty or gone. This wrapper syncs both before a write returns.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use everlog_common::Millis;

use super::{Removed, StorageError};
use crate::files::is_table_file;

/// Folders remembered as synced up to the root; beyond that many, they are synced anew.
const KNOWN_FOLDERS_MAX: usize = 16_384;
/// Processes that may have been killed while they wrote the same file.
const STAGED_MAX: u32 = 1_000;

/// The local file system, with writes that are on disk when they return.
#[derive(Debug)]
pub(super) struct DurableFiles {
    files: LocalFileSystem,
    syncer: Arc<Syncer>,
}

#[derive(Debug, Default)]
struct Syncer {
    /// Folders whose own entries, up to the root, were synced since this process first wrote below them.
    known: Mutex<BTreeSet<PathBuf>>,
}

impl DurableFiles {
    pub(super) fn new() -> Self {
        Self {
            files: LocalFileSystem::new(),
            syncer: Arc::default(),
        }
    }
}

impl Display for DurableFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DurableFiles")
    }
}

impl Syncer {
    async fn sync(self: &Arc<Self>, file: PathBuf) -> Result<()> {
        let syncer = Arc::clone(self);
        let synced = tokio::task::spawn_blocking(move || syncer.sync_now(&file)).await?;
        synced.map_err(|error| object_store::Error::Generic {
            store: "local files",
            source: Box::new(error),
        })
    }

    fn sync_now(&self, file: &FilePath) -> Result<(), StorageError> {
        sync_path(file)?;
        let Some(folder) = file.parent() else {
            return Ok(());
        };
        sync_path(folder)?;
        if self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(folder)
        {
            return Ok(());
        }
        // The folder may be new, made by us or by another process that did not sync it: its entry in the parent, and
        // the parent's, must be on disk too.
        for ancestor in folder.ancestors().skip(1) {
            match sync_path(ancestor) {
                // A folder we may not even open is one we cannot have made.
                Err(StorageError::Sync { source, .. })
                    if source.kind() == ErrorKind::PermissionDenied => {}
                result => result?,
            }
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_FOLDERS_MAX {
            known.clear();
        }
        known.insert(folder.to_path_buf());
        Ok(())
    }
}

impl DurableFiles {
    /// The library gives a new file its name before anything of it is synced: after a power cut the name could stand for half a
    /// file, and no one may write to it again. Here the content is on disk first.
    async fn create(&self, location: &Path, payload: PutPayload) -> Result<PutResult> {
        let path = self.files.path_to_filesystem(location)?;
        let syncer = Arc::clone(&self.syncer);
        let created = tokio::task::spawn_blocking(move || {
            create_now(&path, &payload).and_then(|is_new| {
                // Also where it was there already: whoever wrote it may have lost power before its folder was synced.
                let synced = syncer.sync_now(&path).map_err(std::io::Error::other);
                synced.map(|()| is_new)
            })
        });
        match created.await? {
            Ok(true) => Ok(PutResult {
                e_tag: None,
                version: None,
            }),
            Ok(false) => Err(object_store::Error::AlreadyExists {
                path: location.to_string(),
                source: "there is a file of that name".into(),
            }),
            Err(error) => Err(object_store::Error::Generic {
                store: "local files",
                source: Box::new(error),
            }),
        }
    }
}

/// Whether the file is new. Beside it there is a file `NAME#N` until it is complete, which listings do not show.
fn create_now(path: &FilePath, payload: &PutPayload) -> std::io::Result<bool> {
    let folder = path.parent().unwrap_or(FilePath::new("/"));
    std::fs::create_dir_all(folder)?;
    let (staged, mut file) = stage(path)?;
    let mut write = || -> std::io::Result<()> {
        for chunk in payload {
            file.write_all(chunk)?;
        }
        file.sync_all()
    };
    // A link, unlike a renaming, never replaces.
    let linked = write().and_then(|()| std::fs::hard_link(&staged, path));
    let removed = std::fs::remove_file(&staged);
    match linked {
        Ok(()) => removed.map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// A file of our own beside `path`.
fn stage(path: &FilePath) -> std::io::Result<(PathBuf, File)> {
    let mut number = 1u32;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("#{number}"));
        match File::create_new(&name) {
            Ok(file) => return Ok((name.into(), file)),
            // Another's, or left by a process that was killed.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < STAGED_MAX => {
                number += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn sync_path(path: &FilePath) -> Result<(), StorageError> {
    let synced = File::open(path).and_then(|file| match file.sync_all() {
        // Some file systems cannot sync a folder; they say so by EINVAL.
        Err(error) if error.kind() == ErrorKind::InvalidInput && path.is_dir() => Ok(()),
        result => result,
    });
    synced.map_err(|source| StorageError::Sync {
        path: path.to_path_buf(),
        source,
    })
}

/// Removes the unfinished files of writes below a folder: those that were last written before `before`.
pub(super) async fn remove_staged(folder: &Path, before: Millis) -> Result<Removed> {
    let root = FilePath::new("/").join(folder.as_ref());
    let removed = tokio::task::spawn_blocking(move || remove_staged_now(&root, before)).await?;
    removed.map_err(|error| object_store::Error::Generic {
        store: "local files",
        source: Box::new(error),
    })
}

fn remove_staged_now(root: &FilePath, before: Millis) -> std::io::Result<Removed> {
    let mut removed = Removed::default();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            // Not through links: what they lead to may be anybody's.
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let name = entry.file_name();
            if !kind.is_file() || !name.to_str().is_some_and(is_staged) {
                continue;
            }
            // It may be finished, and so renamed, at any moment.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let written = metadata.modified()?.duration_since(std::time::UNIX_EPOCH);
            let is_old =
                written.is_ok_and(|at| i64::try_from(at.as_millis()).is_ok_and(|at| at < before.0));
            if is_old && std::fs::remove_file(entry.path()).is_ok() {
                removed.files += 1;
                removed.bytes += metadata.len();
            }
        }
    }
    Ok(removed)
}

/// Whether a name is what the library writes to until a table's file is complete.
fn is_staged(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(file, number)| {
        is_table_file(file) && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    })
}

#[async_trait]
impl ObjectStore for DurableFiles {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        if opts.mode == PutMode::Create {
            return self.create(location, payload).await;
        }
        let result = self.files.put_opts(location, payload, opts).await?;
        self.syncer
            .sync(self.files.path_to_filesystem(location)?)
            .await?;
        Ok(result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.files.put_multipart_opts(location, opts).await?;
        Ok(Box::new(DurableUpload {
            upload,
            file: self.files.path_to_filesystem(location)?,
            syncer: Arc::clone(&self.syncer),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await?;
        self.syncer.sync(self.files.path_to_filesystem(to)?).await
    }
}

#[derive(Debug)]
struct DurableUpload {
    upload: Box<dyn MultipartUpload>,
    file: PathBuf,
    syncer: Arc<Syncer>,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.upload.complete().await?;
        self.syncer.sync(self.file.clone()).await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}
