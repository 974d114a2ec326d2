//! The archiver as a process of its own, the same binary, so that it can be killed like one.

use std::fs::OpenOptions;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::lake::Lake;
use crate::failure::{Failure, Status};
use crate::process;

/// `everlog archive` in the background. Dropping it kills it.
#[derive(Debug)]
pub(super) struct ArchiverProcess {
    child: Child,
    pid: u32,
}

impl ArchiverProcess {
    /// Starts it on the demo's configuration.
    pub(super) fn start(lake: &Lake) -> Result<Self, Failure> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(lake.log())?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("--config")
            .arg(lake.config())
            .args(["--log-level", "info", "archive"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        // The demo's file is the whole configuration, whatever this shell has set for another.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("EVERLOG_") {
                command.env_remove(name);
            }
        }
        process::dies_with_us(&mut command);
        let child = command.spawn()?;
        let pid = child.id().ok_or_else(|| ended("at once", lake))?;
        Ok(Self { child, pid })
    }

    /// Its process id.
    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    /// An error if it has ended by itself.
    pub(super) fn check(&mut self, lake: &Lake) -> Result<(), Failure> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(ended(&format!("by itself ({status})"), lake)),
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub(super) async fn kill(mut self) -> Result<(), Failure> {
        self.child.kill().await?;
        Ok(())
    }

    /// SIGTERM; it must end with 0.
    pub(super) async fn stop(mut self, patience: Duration, lake: &Lake) -> Result<(), Failure> {
        process::signal(self.pid, libc::SIGTERM)?;
        let Ok(status) = tokio::time::timeout(patience, self.child.wait()).await else {
            return Err(ended(&format!("not within {patience:?}"), lake));
        };
        let status = status?;
        if status.success() {
            Ok(())
        } else {
            Err(ended(&format!("with {status}"), lake))
        }
    }
}

fn ended(how: &str, lake: &Lake) -> Failure {
    Failure::new(
        Status::Failed,
        format!(
            "demo: the archiver ended {how}; see {}",
            lake.log().display()
        ),
    )
}
