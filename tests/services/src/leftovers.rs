//! Servers that tests of one process share are never dropped: they are stopped when the process exits, or the tests of the next
//! one would run beside them.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, Once, PoisonError};

use crate::script;

/// The folders of all servers that this process started.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A new folder for a server. Whatever still runs in it when the process exits is killed, and the folder removed.
pub(crate) fn folder(prefix: &str) -> tempfile::TempDir {
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        #[allow(unsafe_code, reason = "the standard library has no such hook")]
        // SAFETY: the function takes nothing, gives nothing, and does not unwind.
        let refused = unsafe { libc::atexit(stop_all) };
        assert_eq!(refused, 0, "the system takes no exit handler");
    });
    let dir = tempfile::Builder::new()
        .prefix(prefix)
        .tempdir()
        .expect("temp dir");
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    folders.push(dir.path().to_owned());
    dir
}

extern "C" fn stop_all() {
    // a thread of a test that goes on may hold it; nothing is waited for here
    let Ok(folders) = FOLDERS.try_lock() else {
        return;
    };
    let left: Vec<_> = folders.iter().filter(|folder| folder.exists()).collect();
    if left.is_empty() {
        return;
    }
    let _ = Command::new("bash")
        .arg(script("stop-all.sh"))
        .args(&left)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    for folder in left {
        let _ = std::fs::remove_dir_all(folder);
    }
}
