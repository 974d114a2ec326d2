//! Signals to processes that this one started, and to itself.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::failure::Failure;

/// Lets the system end the child when we end in whatever way, `kill -9` included.
#[allow(
    unsafe_code,
    unused_variables,
    reason = "runs between fork and exec; where the system does not know it, the child is left to the destructor"
)]
pub(crate) fn dies_with_us(command: &mut tokio::process::Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: prctl is async-signal-safe, and nothing else is called.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        );
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
