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
    self::command(&command)
}

/// Runs `command`; it must succeed.
pub(crate) fn command(command: &Command) -> Figures {
    let text = by_one_between("measure", command);
    let figures: Vec<u64> = text
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    match figures.as_slice() {
        [wall, cpu, peak_bytes] => Figures {
            wall: Duration::from_micros(*wall),
            cpu: Duration::from_micros(*cpu),
            peak_bytes: *peak_bytes,
        },
        _ => panic!("{command:?} was not measured: {text}"),
    }
}

/// Runs `command` by a small process of ours, which does `what` with it, and gives what that one says; both must succeed. The
/// kernel counts what the parent of a process holds into the process's own peak, and this one holds a producer and its
/// queues.
pub(crate) fn by_one_between(what: &str, command: &Command) -> String {
    let me = std::env::current_exe().expect("this program's path");
    let mut between = Command::new(me);
    between.arg(what).arg(command.get_program());
    between.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => between.env(key, value),
            None => between.env_remove(key),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        between.current_dir(folder);
    }
    let output = between
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {between:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed, {}: {text}",
        output.status
    );
    text
}

/// The process in between: runs `program`, and says wall time, CPU time (both in microseconds) and peak memory.
#[allow(
    clippy::zombie_processes,
    reason = "waited for by wait4, which also tells its usage"
)]
#[allow(
    clippy::disallowed_methods,
    reason = "this is a measurement of real time"
)]
pub(crate) fn measure(program: &str, args: &[&str]) {
    let start = Instant::now();
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    let pid = libc::pid_t::try_from(child.id()).expect("a process id");
    let used = end_of(program, pid);
    let wall = start.elapsed();
    println!(
        "{} {} {}",
        wall.as_micros(),
        used.cpu.as_micros(),
        used.peak_bytes
    );
}

/// What a process used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// Peak resident memory.
    pub peak_bytes: u64,
}

/// Waits for a child that nobody else waits for; it must succeed.
pub(crate) fn end_of(program: &str, pid: libc::pid_t) -> Used {
    let mut status = 0;
    // SAFETY: all-zero is a valid value of the plain struct; wait4 fills both on success.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is ours and is waited for exactly once, here.
    let ended = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert!(ended == pid && status == 0, "{program} ended with {status}");
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.unsigned_abs())
            + Duration::from_micros(t.tv_usec.unsigned_abs())
    };
    Used {
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
