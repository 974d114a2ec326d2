//! The state on this machine's disk: a cache of the epochs' files, so that a job is not bound by memory and goes on at once after
//! a restart. It may be lost, torn or old at any time, and is then made anew from base image and epochs. `docs/adr/0007` says why it is
//! fjall.
//!
//! Applying an epoch is not one batch: changes are whole values, so applying some or all of them twice does no harm, and the
//! epoch's number goes in with the last. Until then the store says that it is at the epoch before, and the changes are read from
//! the overlay.

use std::fmt;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use everlog_engine::{KEY_BYTES_MAX, Space};
use fjall::config::{CompressionPolicy, PartitioningPolicy, PinningPolicy};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::changes::{Changes, ENTRY_OVERHEAD_BYTES};
use super::error::StoreError;

/// The form of what is stored here. Another one is thrown away and made anew.
const FORMAT: u32 = 1;
/// Changes that go into the store at a time.
const CHANGES_PER_BATCH: usize = 2_048;
/// Write buffers of one space that may wait for the disk.
const WAITING_BUFFERS_MAX: usize = 1;
/// How long to wait before looking at them again.
const FLUSH_WAIT: Duration = Duration::from_millis(1);
/// How often a store that another process has open is tried.
const LOCK_RETRY: Duration = Duration::from_millis(100);
/// The least that a write buffer and the cache are given.
const BUFFER_BYTES_MIN: u64 = 1 << 20;
const AT: &str = "at";

/// Where the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct At {
    format: u32,
    /// Of which job's epochs.
    pub(super) chain: Uuid,
    /// The last epoch that it has.
    pub(super) epoch: u64,
    /// Who wrote that epoch.
    pub(super) writer: Uuid,
}

impl At {
    pub(super) fn new(chain: Uuid, epoch: u64, writer: Uuid) -> Self {
        Self {
            format: FORMAT,
            chain,
            epoch,
            writer,
        }
    }
}

/// See the module's text.
pub struct Local {
    folder: PathBuf,
    memory: usize,
    db: Database,
    spaces: [Keyspace; 3],
    meta: Keyspace,
    /// The last to go.
    lock: File,
}

type Parts = (Database, [Keyspace; 3], Keyspace);

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

fn failed(folder: &Path, doing: &'static str) -> impl Fn(fjall::Error) -> StoreError {
    move |error| StoreError::Local {
        folder: folder.to_owned(),
        doing,
        what: error.to_string(),
    }
}

impl Local {
    /// Opens the store in `folder`, empty where there is none, or none that can be read. It holds about `memory` bytes. While another
    /// process has it open, waits as long as `patience`. Blocks.
    pub(super) fn open(
        folder: &Path,
        memory: usize,
        patience: Duration,
    ) -> Result<Self, StoreError> {
        let lock = lock(folder, patience)?;
        Self::open_locked(folder, memory, lock)
    }

    fn open_locked(folder: &Path, memory: usize, lock: File) -> Result<Self, StoreError> {
        let opened = Self::try_open(folder, memory).or_else(|error| {
            // Someone has it who does not know the lock file: it is not ours to remove.
            if matches!(error, fjall::Error::Locked) {
                return Err(StoreError::LocalInUse {
                    folder: folder.to_owned(),
                });
            }
            tracing::warn!(folder = %folder.display(), %error, "the local state cannot be opened: it is made anew");
            remove(folder)?;
            Self::try_open(folder, memory).map_err(failed(folder, "open it"))
        });
        let (db, spaces, meta) = opened?;
        Ok(Self {
            folder: folder.to_owned(),
            memory,
            db,
            spaces,
            meta,
            lock,
        })
    }

    fn try_open(folder: &Path, memory: usize) -> Result<Parts, fjall::Error> {
        std::fs::create_dir_all(folder)?;
        let memory_bytes = memory as u64;
        let db = Database::builder(folder)
            .cache_size((memory_bytes / 2).max(BUFFER_BYTES_MIN))
            .max_journaling_size((memory_bytes * 2).max(64 << 20))
            .worker_threads(2)
            .open()?;
        // Per space one buffer is written to while another may wait; what is in them takes about twice its bytes.
        let buffer = (memory_bytes / 24).max(BUFFER_BYTES_MIN);
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(buffer)
                .data_block_compression_policy(CompressionPolicy::disabled())
                .expect_point_read_hits(true)
                // What grows with the state stays out of memory, but for what the cache holds.
                .index_block_pinning_policy(PinningPolicy::all(false))
                .filter_block_pinning_policy(PinningPolicy::all(false))
                .index_block_partitioning_policy(PartitioningPolicy::all(true))
                .filter_block_partitioning_policy(PartitioningPolicy::all(true))
        };
        let spaces = [
            db.keyspace("windows", options)?,
            db.keyspace("timers", options)?,
            db.keyspace("dedup", options)?,
        ];
        let meta = db.keyspace("meta", || {
            KeyspaceCreateOptions::default().max_memtable_size(BUFFER_BYTES_MIN)
        })?;
        Ok((db, spaces, meta))
    }

    /// The same store, empty. Blocks.
    pub(super) fn recreate(self) -> Result<Self, StoreError> {
        let Self {
            folder,
            memory,
            db,
            spaces,
            meta,
            lock,
        } = self;
        drop((spaces, meta));
        drop(db);
        remove(&folder)?;
        Self::open_locked(&folder, memory, lock)
    }

    /// Where it is; none: nowhere, or it cannot be told.
    pub(super) fn at(&self) -> Result<Option<At>, StoreError> {
        let stored = self
            .meta
            .get(AT)
            .map_err(failed(&self.folder, "read where it is"))?;
        let at = stored.and_then(|bytes| serde_json::from_slice::<At>(&bytes).ok());
        Ok(at.filter(|at| at.format == FORMAT))
    }

    /// Whether the store can hold this key.
    pub(super) fn check_key(key: &[u8]) -> Result<(), StoreError> {
        if !key.is_empty() && key.len() <= KEY_BYTES_MAX {
            return Ok(());
        }
        Err(StoreError::Local {
            folder: PathBuf::new(),
            doing: "keep a key",
            what: format!(
                "it has {} bytes, 1 to {KEY_BYTES_MAX} are possible: group by something shorter, such as a hash of it",
                key.len()
            ),
        })
    }

    pub(super) fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Ok(None);
        }
        let value = self.spaces[space as usize].get(key);
        Ok(value
            .map_err(failed(&self.folder, "read a key"))?
            .map(|v| v.to_vec()))
    }

    pub(super) fn get_many(
        &self,
        space: Space,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        // In key order, neighbours share their blocks.
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|n| keys[*n]);
        let mut values = vec![None; keys.len()];
        for n in order {
            values[n] = self.get(space, keys[n])?;
        }
        Ok(values)
    }

    pub(super) fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = self.spaces[space as usize].range(from..to).take(limit);
        let pairs = range.map(|guard| {
            guard
                .into_inner()
                .map(|(key, value)| (key.to_vec(), value.to_vec()))
        });
        pairs
            .collect::<Result<_, _>>()
            .map_err(failed(&self.folder, "read keys"))
    }

    /// Applies an epoch's changes. Blocks. A crash in between leaves the store where it was.
    pub(super) fn apply(&self, changes: &Changes, at: At) -> Result<(), StoreError> {
        self.load(
            changes
                .iter()
                .map(|(space, key, value)| (space, key.as_slice(), value.map(Vec::as_slice))),
        )?;
        self.set_at(at)
    }

    /// Changes alone: where the store is, is not said before [`Self::set_at`].
    pub(super) fn load<'a>(
        &self,
        changes: impl Iterator<Item = (Space, &'a [u8], Option<&'a [u8]>)>,
    ) -> Result<(), StoreError> {
        let failed = failed(&self.folder, "apply an epoch");
        let mut changes = changes.peekable();
        while changes.peek().is_some() {
            let mut batch = self.db.batch();
            for (space, key, value) in changes.by_ref().take(CHANGES_PER_BATCH) {
                let space = &self.spaces[space as usize];
                match value {
                    Some(value) => batch.insert(space, key, value),
                    None => batch.remove(space, key),
                }
            }
            batch.commit().map_err(&failed)?;
            // The store itself would let four of them wait, per space.
            while self
                .spaces
                .iter()
                .any(|s| s.sealed_memtable_count() > WAITING_BUFFERS_MAX)
            {
                std::thread::sleep(FLUSH_WAIT);
            }
        }
        Ok(())
    }

    pub(super) fn set_at(&self, at: At) -> Result<(), StoreError> {
        let failed = failed(&self.folder, "say where it is");
        let text = serde_json::to_vec(&at).unwrap_or_default();
        self.meta.insert(AT, text).map_err(failed)
    }

    /// What is in it survives a power cut from here on, where the epochs' files alone would need long to be applied again.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.db
            .persist(PersistMode::SyncData)
            .map_err(failed(&self.folder, "sync it"))
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.db.disk_space().unwrap_or(0)
    }

    /// Everything, while epochs are applied.
    pub(super) fn image(&self) -> Image {
        Image {
            spaces: self.spaces.clone(),
            folder: self.folder.clone(),
            space: 0,
            from: Vec::new(),
        }
    }
}

/// All entries, piece by piece.
///
/// Each piece is as the store is when it is read, so that the whole is of no single epoch: with every epoch applied to it that came
/// after it was begun, it is the state again, since changes are whole values. Reading all of it from one snapshot of the store
/// would make the store keep in memory whatever is written meanwhile.
pub(super) struct Image {
    spaces: [Keyspace; 3],
    folder: PathBuf,
    space: usize,
    from: Vec<u8>,
}

/// Entries of an image.
pub(super) type Piece = Vec<(Space, Vec<u8>, Vec<u8>)>;

impl Image {
    /// The next entries, of about `bytes` bytes; none: that was all. Blocks.
    pub(super) fn next(&mut self, bytes: usize) -> Result<Option<Piece>, StoreError> {
        let (mut piece, mut held) = (Piece::new(), 0);
        while held < bytes {
            let (Some(keyspace), Some(space)) =
                (self.spaces.get(self.space), Space::ALL.get(self.space))
            else {
                break;
            };
            let mut last = None;
            for guard in keyspace.range(self.from.as_slice()..) {
                let (key, value) = guard
                    .into_inner()
                    .map_err(failed(&self.folder, "read it for a base image"))?;
                held += key.len() + value.len() + ENTRY_OVERHEAD_BYTES;
                piece.push((*space, key.to_vec(), value.to_vec()));
                if held >= bytes {
                    last = Some(key.to_vec());
                    break;
                }
            }
            match last {
                Some(mut last) => {
                    last.push(0);
                    self.from = last;
                }
                None => {
                    self.space += 1;
                    self.from.clear();
                }
            }
        }
        Ok((!piece.is_empty()).then_some(piece))
    }
}

fn remove(folder: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::Local {
            folder: folder.to_owned(),
            doing: "remove it",
            what: error.to_string(),
        }),
    }
}

/// The file that says who has the store. It lies beside the folder: the store's own lock lies in it, so that whoever waits for that
/// one makes files in a folder that another process removes, or begins one anew that is there by then.
fn lock_file(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    folder.with_file_name(name)
}

/// Waits for the store as long as `patience`. It is given back when the file is closed, also by a process that was killed.
fn lock(folder: &Path, patience: Duration) -> Result<File, StoreError> {
    let problem = |error: std::io::Error| StoreError::Local {
        folder: folder.to_owned(),
        doing: "lock it",
        what: error.to_string(),
    };
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent).map_err(problem)?;
    }
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true);
    let file = file.open(lock_file(folder)).map_err(problem)?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if began.elapsed() < patience => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::LocalInUse {
                    folder: folder.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(problem(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Whatever is applied while an image is read: with those epochs applied to it once more, it is the state.
    #[test]
    fn an_image_that_is_read_while_epochs_are_applied_is_the_state_once_they_are_applied_to_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |name: &str| Local::open(&folder.path().join(name), 1 << 20, Duration::ZERO);
        let store = open("store").expect("a store");
        let mut random = 1_u64;
        let mut epoch = || {
            let mut changes = Changes::default();
            for _ in 0..300 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let key = format!("{:04}", (random >> 33) % 2_000).into_bytes();
                let space = Space::ALL[usize::try_from(random >> 20 & 1).expect("small")];
                let value = (random >> 50 & 3 > 0).then(|| random.to_le_bytes().to_vec());
                changes.set(space, key, value);
            }
            changes
        };
        let at = At::new(Uuid::nil(), 1, Uuid::nil());
        for _ in 0..10 {
            store.apply(&epoch(), at).expect("applied");
        }
        let copy = open("copy").expect("a store");
        let (mut image, mut meanwhile, mut pieces) = (store.image(), Vec::new(), 0);
        while let Some(piece) = image.next(4 << 10).expect("a piece") {
            let entries = piece.iter();
            let entries = entries.map(|(s, k, v)| (*s, k.as_slice(), Some(v.as_slice())));
            copy.load(entries).expect("loaded");
            pieces += 1;
            let changes = epoch();
            store.apply(&changes, at).expect("applied");
            meanwhile.push(changes);
        }
        assert!(pieces > 20, "{pieces}");
        for changes in &meanwhile {
            copy.apply(changes, at).expect("applied");
        }
        for space in Space::ALL {
            let all = |local: &Local| local.range(space, b"0", b"9", usize::MAX).expect("read");
            assert_eq!(all(&store), all(&copy), "{space:?}");
        }
    }

    #[test]
    fn a_store_is_made_anew_while_another_process_waits_for_it() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("v1");
        let patience = Duration::from_secs(10);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // what it gets it gives back at once
                    match Local::open(&folder, 1 << 20, Duration::ZERO) {
                        Ok(_) | Err(StoreError::LocalInUse { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    std::thread::sleep(LOCK_RETRY);
                }
            });
            let all = || -> Result<(), StoreError> {
                for _ in 0..30 {
                    Local::open(&folder, 1 << 20, patience)?.recreate()?;
                }
                Ok(())
            };
            let outcome = all();
            done.store(true, Ordering::Relaxed);
            outcome.expect("made anew each time");
        });
    }
}
