//! A process's own figures, as the kernel counts them.

#![allow(
    unsafe_code,
    reason = "wait4 is the only way to one child's own resource usage"
)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one process took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// From start to end.
    pub wall: Duration,
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// Peak resident memory.
    pub peak_bytes: u64,
}

/// Runs `program`; it must succeed.
pub(crate) fn run(program: &Path, args: &[&str]) -> Figures {
    let mut command = Command::new(program);
    command.args(args);
    self::command(command)
}

/// Runs `command`; it must succeed.
#[allow(
    clippy::zombie_processes,
    reason = "waited for by wait4, which also tells its usage"
)]
#[allow(
    clippy::disallowed_methods,
    reason = "this is a measurement of real time"
)]
pub(crate) fn command(mut command: Command) -> Figures {
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let pid = libc::pid_t::try_from(child.id()).expect("a process id");
    let mut status = 0;
    // SAFETY: all-zero is a valid value of the plain struct; wait4 fills both on success.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is ours and is waited for exactly once, here.
    let ended = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let wall = start.elapsed();
    assert!(
        ended == pid && status == 0,
        "{command:?} ended with {status}"
    );
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.unsigned_abs())
            + Duration::from_micros(t.tv_usec.unsigned_abs())
    };
    Figures {
        wall,
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak_bytes: usage.ru_maxrss.unsigned_abs() * 1024,
    }
}

/// The middle value.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
