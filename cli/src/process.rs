//! What concerns the process as such: its allocator, and signals to processes that it started and to itself.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::failure::Failure;

/// Keeps the C library's allocator to a few arenas. It would make eight per core, each of which holds on to what it was once
/// given: columns are made by one thread and dropped by another, so that a replay of 256 MiB took three times as much. To
/// be called before other threads are there.
pub(crate) fn keep_arenas_few() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const ARENAS: libc::c_int = 2;
        #[allow(unsafe_code, reason = "the allocator is told by a call alone")]
        // SAFETY: a plain call without pointers, which sets a number; it cannot fail in a way that matters.
        let _set = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }
}

/// Between two looks at the memory that this process takes.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// After giving back did not help: what is there is needed.
const PATIENT_INTERVAL: Duration = Duration::from_secs(1);

/// Gives free memory back to the system whenever the process takes more than five eighths of `setting`, until it is dropped.
/// Columns of all sizes that live for a while leave holes between them, and the allocator keeps those.
pub(crate) async fn give_memory_back(setting: u64) -> Infallible {
    let most = setting / 8 * 5;
    loop {
        let mut wait = LOOK_INTERVAL;
        if memory_taken().is_some_and(|taken| taken > most) {
            // It cannot panic, and what it did not give back it gives the next time.
            tokio::task::spawn_blocking(trim).await.ok();
            if memory_taken().is_some_and(|taken| taken > most) {
                wait = PATIENT_INTERVAL;
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// Resident bytes that belong to no file; none where the system does not tell.
fn memory_taken() -> Option<u64> {
    // Linux reports pages of 4 KiB or more; counting them as that only makes this later.
    const PAGE_BYTES: u64 = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split(' ').skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(shared) * PAGE_BYTES)
}

fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code, reason = "the allocator is told by a call alone")]
        // SAFETY: a call without pointers, which may be made from any thread at any time.
        let _any = unsafe { libc::malloc_trim(0) };
    }
}

/// Sends `signal` to a process of ours.
pub(crate) fn signal(pid: u32, signal: i32) -> std::io::Result<()> {
    let pid = libc::pid_t::try_from(pid)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?;
    #[allow(unsafe_code, reason = "the standard library sends SIGKILL only")]
    // SAFETY: a plain system call without pointers; the caller owns the process, so its id is not reused.
    let sent = unsafe { libc::kill(pid, signal) };
    if sent == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Names the variable for crash tests: `POINT@N`, the process kills itself when it comes to POINT for the Nth time.
const KILL_AT: &str = "EVERLOG_KILL_AT";

/// Arms the fail point that crash tests ask for; nothing where they do not.
pub(crate) fn arm_kill_at() -> Result<(), Failure> {
    let Some(value) = std::env::var_os(KILL_AT) else {
        return Ok(());
    };
    let wrong = |why: &str| Failure::usage(format!("{KILL_AT}: {why}"));
    let value = value.to_string_lossy().into_owned();
    let (point, count) = value
        .rsplit_once('@')
        .and_then(|(point, n)| Some((point, n.parse::<u64>().ok()?)))
        .ok_or_else(|| wrong("write POINT@N"))?;
    if !fail::has_failpoints() {
        return Err(wrong(
            "this build has no fail points; build with --features failpoints",
        ));
    }
    let met = AtomicU64::new(0);
    fail::cfg_callback(point, move || {
        if met.fetch_add(1, Ordering::SeqCst) + 1 == count {
            // If this fails the test that asked for it sees that the process lives on.
            signal(std::process::id(), libc::SIGKILL).ok();
        }
    })
    .map_err(|why| wrong(&why))
}
