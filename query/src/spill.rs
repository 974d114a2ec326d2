//! The folder that a session's queries spill into: its own, gone with it, and taken away by a later session where a process
//! could not do that itself.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use tempfile::TempDir;

const PREFIX: &str = "everlog-sql-";
/// Held while the session lives; the system lets go of it with the process.
const LOCK: &str = "in-use";
/// How often a folder is tried.
const ATTEMPTS_MAX: usize = 3;
/// Entries that are looked at for what others left.
const LOOKED_AT_MAX: usize = 4_096;

/// Removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Spill {
    folder: TempDir,
    _lock: File,
}

impl Spill {
    /// A new folder in `parent`. What processes that were killed left there is removed.
    pub(crate) fn within(parent: &Path) -> io::Result<Self> {
        sweep(parent);
        for _ in 0..ATTEMPTS_MAX {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            let lock = File::create_new(folder.path().join(LOCK))?;
            // a sweep by another process may have come between
            if lock.try_lock().is_ok() && folder.path().join(LOCK).exists() {
                return Ok(Self {
                    folder,
                    _lock: lock,
                });
            }
        }
        Err(io::Error::other("other processes remove it at once"))
    }

    /// Removes it.
    pub(crate) fn close(self) -> io::Result<()> {
        self.folder.close()
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes folders whose owners are gone. One that cannot be looked at, or has no lock (yet), is left alone.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.take(LOOKED_AT_MAX).flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        match lock.try_lock() {
            Ok(()) => match std::fs::remove_dir_all(entry.path()) {
                Ok(()) => {
                    tracing::info!(folder = %entry.path().display(), "removed what a killed query left");
                }
                Err(error) => {
                    tracing::debug!(folder = %entry.path().display(), %error, "cannot be removed");
                }
            },
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_in_use_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join("everlog-sql-left");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join(LOCK), "").unwrap();
        std::fs::write(left.join("rows"), "x").unwrap();
        let strange = parent.path().join("everlog-sql-strange");
        std::fs::create_dir(&strange).unwrap();
        let first = Spill::within(parent.path()).unwrap();
        assert!(!left.exists() && strange.exists());
        let second = Spill::within(parent.path()).unwrap();
        assert!(first.path().exists() && second.path().exists());
        let gone = first.path().to_owned();
        drop(first);
        assert!(!gone.exists());
    }
}
