//! What each answer took of a process that answers one question after the other.
//!
//! ```text
//!   process ──lines──► a small process of ours ──lines, and what they took──► here
//!                      clock and the process's CPU time at each line
//! ```
//!
//! An answer is the lines up to a [`MARK`]. It begins when the mark before it came and ends with its last line, so that the
//! mark itself costs nothing. What comes before the first mark is the process's start. All processes are measured so,
//! whatever they are written in: by the same clock, from outside.

#![allow(
    unsafe_code,
    reason = "the CPU time of another process is asked of the kernel"
)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::measure;

/// The line behind an answer.
pub(crate) const MARK: &str = r#"{"mark":"answered"}"#;

/// Time by the clock, and user and system time of all threads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Took {
    pub wall: Duration,
    pub cpu: Duration,
}

impl Took {
    fn since(self, earlier: Self) -> Self {
        Self {
            wall: self.wall.saturating_sub(earlier.wall),
            cpu: self.cpu.saturating_sub(earlier.cpu),
        }
    }
}

/// One answer: its rows, as objects by the columns' names.
#[derive(Debug)]
pub(crate) struct Answer {
    pub took: Took,
    pub rows: Vec<Value>,
}

/// A process from its start to its end.
#[derive(Debug)]
pub(crate) struct Answers {
    /// Until it could be asked.
    pub start: Took,
    pub answers: Vec<Answer>,
    /// Peak resident memory.
    pub peak_bytes: u64,
}

/// Runs `command`, which must succeed, and times its answers.
pub(crate) fn of(command: &Command) -> Answers {
    let text = measure::by_one_between("answers", command);
    let mut answers = Vec::new();
    let mut rows = Vec::new();
    let mut peak_bytes = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |text: &str| -> u64 {
            text.parse()
                .unwrap_or_else(|e| panic!("{command:?} said {line:?}: {e}"))
        };
        match words.as_slice() {
            ["answer", wall, cpu] => answers.push(Answer {
                took: Took {
                    wall: Duration::from_micros(number(wall)),
                    cpu: Duration::from_micros(number(cpu)),
                },
                rows: std::mem::take(&mut rows),
            }),
            ["peak", bytes] => peak_bytes = number(bytes),
            _ => rows.push(
                serde_json::from_str(line)
                    .unwrap_or_else(|e| panic!("{command:?} said {line:?}: {e}")),
            ),
        }
    }
    assert!(
        !answers.is_empty() && rows.is_empty() && peak_bytes > 0,
        "{command:?} did not answer to its end: {text}"
    );
    let start = answers.remove(0);
    assert!(start.rows.is_empty(), "{command:?} answered unasked");
    Answers {
        start: start.took,
        answers,
        peak_bytes,
    }
}

/// The process in between: runs `program`, hands its lines on, and says after each answer what it took, in microseconds of
/// wall and of CPU time.
#[allow(
    clippy::print_stdout,
    clippy::zombie_processes,
    reason = "a report is what it is for; waited for by wait4"
)]
pub(crate) fn follow(program: &str, args: &[&str]) {
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    let pid = libc::pid_t::try_from(child.id()).expect("a process id");
    let clock = cpu_clock(pid);
    let mut began = Took::default();
    let mut ended = None;
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.expect("lines of UTF-8");
        let now = Took {
            wall: start.elapsed(),
            cpu: cpu_time(clock),
        };
        if line == MARK {
            let took = ended.take().unwrap_or(now).since(began);
            println!("answer {} {}", took.wall.as_micros(), took.cpu.as_micros());
            began = now;
        } else {
            ended = Some(now);
            println!("{line}");
        }
    }
    println!("peak {}", measure::end_of(program, pid).peak_bytes);
}

fn cpu_clock(pid: libc::pid_t) -> libc::clockid_t {
    let mut clock = 0;
    // SAFETY: the kernel is asked about a child that was not waited for yet, and fills the number.
    let failed = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    assert_eq!(failed, 0, "no CPU clock of process {pid}");
    clock
}

/// User and system time of the process whose clock it is, which may have ended but was not waited for.
fn cpu_time(clock: libc::clockid_t) -> Duration {
    // SAFETY: all-zero is a valid value of the plain struct.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the clock's number is the kernel's own; it fills the struct.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(failed, 0, "the CPU clock of a child cannot be read");
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(time.tv_sec.unsigned_abs(), nanoseconds)
}
