//! The parts of the story as processes of their own, the same binary, so that they can be killed like any.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

use super::lake::{ARCHIVER, Lake};
use crate::failure::{Failure, Status};
use crate::kill;

/// `everlog archive` or `everlog process` in the background. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    log: PathBuf,
    child: Child,
    pid: u32,
}

impl Process {
    /// Starts the archiver.
    pub(super) fn archiver(lake: &Lake) -> Result<Self, Failure> {
        Self::start(lake, ARCHIVER, &["archive".into()])
    }

    /// Starts a job.
    pub(super) fn job(lake: &Lake, name: &'static str) -> Result<Self, Failure> {
        Self::start(lake, name, &["process".into(), lake.job(name).into()])
    }

    fn start(lake: &Lake, name: &'static str, args: &[OsString]) -> Result<Self, Failure> {
        let path = lake.log(name);
        let log = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut command = everlog(lake)?;
        command
            .args(["--log-level", "info"])
            .args(args)
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn()?;
        let pid = child.id().ok_or_else(|| ended(name, "at once", &path))?;
        Ok(Self {
            name,
            log: path,
            child,
            pid,
        })
    }

    /// What it is called.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// Its process id.
    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    /// An error if it has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(ended(
                self.name,
                &format!("by itself ({status})"),
                &self.log,
            )),
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub(super) async fn kill(mut self) -> Result<(), Failure> {
        self.child.kill().await?;
        Ok(())
    }

    /// SIGTERM; it must end with 0.
    pub(super) async fn stop(mut self, patience: Duration) -> Result<(), Failure> {
        kill::signal(self.pid, libc::SIGTERM)?;
        let Ok(status) = tokio::time::timeout(patience, self.child.wait()).await else {
            let how = format!("not within {patience:?}");
            return Err(ended(self.name, &how, &self.log));
        };
        let status = status?;
        if status.success() {
            Ok(())
        } else {
            Err(ended(self.name, &format!("with {status}"), &self.log))
        }
    }
}

/// A command that ends by itself; gives what it wrote. It must end with 0.
pub(super) async fn told<S: AsRef<OsStr>>(lake: &Lake, args: &[S]) -> Result<String, Failure> {
    let mut command = everlog(lake)?;
    let Output {
        status,
        stdout,
        stderr,
    } = command.args(args).output().await?;
    let said = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(said);
    }
    let words: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
    Err(Failure::new(
        Status::Failed,
        format!(
            "demo: everlog {} ended with {status}: {} {}",
            words.join(" "),
            String::from_utf8_lossy(&stderr).trim(),
            said.trim()
        ),
    ))
}

/// This binary on the demo's configuration, which is the whole of it, whatever this shell has set for another.
fn everlog(lake: &Lake) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--config")
        .arg(lake.config())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVERLOG_") {
            command.env_remove(name);
        }
    }
    kill::dies_with_us(&mut command);
    Ok(command)
}

fn ended(name: &str, how: &str, log: &Path) -> Failure {
    Failure::new(
        Status::Failed,
        format!(
            "demo: the process {name} ended {how}; see {}",
            log.display()
        ),
    )
}
