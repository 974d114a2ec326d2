//! Rows as JSON lines in a file, exactly once.
//!
//! Beside `PATH` lies `PATH.everlog`, the marker: how many rows and bytes of the file are committed, and by which epoch. Rows
//! are written and synced, then the marker is replaced as a whole. What the file holds beyond the marker's bytes is no part of
//! it, and is cut off when the file is opened, and before anything is written.
//!
//! The file is locked while a process writes it. A process that takes a job over waits for the earlier one to end, which it
//! does at its next checkpoint, since it is fenced there.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use everlog_common::{Positions, compute};
use serde::{Deserialize, Serialize};

use super::{Channel, Marker, Sink, SinkError, Step, TextLines, next_step};
use crate::state::{Epoch, JobId};

/// Rows that are encoded before they are written: bounds the buffer.
const ROWS_PER_WRITE: usize = 4_096;
/// How often a lock that another process holds is tried.
const LOCK_RETRY: Duration = Duration::from_millis(100);
const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    channel: Channel,
    bytes: u64,
    marker: Marker,
}

/// See the module's text.
#[derive(Debug)]
pub struct FileSink {
    target: String,
    channel: Channel,
    /// None while it works, and after it was stopped in the middle.
    open: Option<Box<Open>>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    job: JobId,
    channel: Channel,
    file: File,
    stored: Stored,
    /// Steps after which a test ends, as a kill would.
    #[cfg(test)]
    steps_left: Option<u32>,
}

impl FileSink {
    /// Opens the file and cuts it back to what is committed. While another process holds it, waits as long as `patience`.
    pub async fn open(
        path: PathBuf,
        job: JobId,
        channel: Channel,
        patience: Duration,
    ) -> Result<Self, SinkError> {
        let target = format!("jsonl:{}", path.display());
        let opened = compute::spawn(move || Open::new(path, job, channel, patience));
        Ok(Self {
            target,
            channel,
            open: Some(Box::new(opened.await.map_err(|_| SinkError::Stopped)??)),
        })
    }

    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Open) -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let mut open = self.open.take().ok_or(SinkError::Stopped)?;
        let done = compute::spawn(move || {
            let result = work(&mut open);
            (open, result)
        });
        let (open, result) = done.await.map_err(|_| SinkError::Stopped)?;
        self.open = Some(open);
        result
    }
}

#[async_trait]
impl Sink for FileSink {
    fn channel(&self) -> Channel {
        self.channel
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    async fn committed(&mut self) -> Result<Option<Marker>, SinkError> {
        self.with(|open| {
            open.stored = open
                .read_marker()?
                .ok_or_else(|| open.wrong("its marker is gone".into()))?;
            Ok(open.held().cloned())
        })
        .await
    }

    async fn commit(&mut self, epoch: &Epoch) -> Result<(), SinkError> {
        let Some(open) = &self.open else {
            return Err(SinkError::Stopped);
        };
        if next_step(open.held(), epoch, self.channel)? == Step::Done {
            return Ok(());
        }
        let rows = self.channel.of(epoch).clone();
        let marker = Marker::after(epoch, self.channel);
        self.with(move |open| {
            let lines = TextLines::new(&rows).map_err(|source| SinkError::Lines {
                target: open.target(),
                source,
            })?;
            open.append(&lines, marker)
        })
        .await
    }
}

/// The marker of the file at `path`.
fn marker_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".everlog");
    path.with_file_name(name)
}

impl Open {
    fn new(
        path: PathBuf,
        job: JobId,
        channel: Channel,
        patience: Duration,
    ) -> Result<Self, SinkError> {
        let io = |doing, source| SinkError::Io {
            target: format!("jsonl:{}", path.display()),
            doing,
            source,
        };
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| io("open it", e))?;
        let empty = Stored {
            format: FORMAT,
            channel,
            bytes: 0,
            marker: Marker {
                job: job.name.clone(),
                version: job.version.clone(),
                epoch: 0,
                rows: 0,
                positions: Positions::new(),
                engine: String::new(),
            },
        };
        let mut open = Self {
            path,
            job,
            channel,
            file,
            stored: empty,
            #[cfg(test)]
            steps_left: None,
        };
        // Another version's file is told at once: its process would be waited for in vain.
        open.read_marker()?;
        lock(&open.file, patience, &open.path)?;
        match open.read_marker()? {
            Some(stored) => open.stored = stored,
            None if open.length()? > 0 => {
                return Err(open.wrong(
                    "it is there already and no job's output; remove it, or name another file"
                        .into(),
                ));
            }
            None => open.write_marker(&open.stored.clone())?,
        }
        let length = open.length()?;
        if length < open.stored.bytes {
            return Err(open.wrong(format!(
                "it has {length} bytes where {} were committed: it was changed or removed; bring it back, or begin the job anew under another version",
                open.stored.bytes
            )));
        }
        open.cut()?;
        Ok(open)
    }

    fn held(&self) -> Option<&Marker> {
        (self.stored.marker.epoch > 0).then_some(&self.stored.marker)
    }

    fn length(&self) -> Result<u64, SinkError> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(|e| self.io("read its length", e))?.len())
    }

    /// What is behind the committed bytes was never committed.
    fn cut(&mut self) -> Result<(), SinkError> {
        let bytes = self.stored.bytes;
        let cut = self
            .file
            .set_len(bytes)
            .and_then(|()| self.file.seek(SeekFrom::Start(bytes)));
        cut.map(drop).map_err(|e| self.io("cut it", e))
    }

    fn append(&mut self, lines: &TextLines, marker: Marker) -> Result<(), SinkError> {
        self.step()?;
        self.cut()?;
        let mut bytes = self.stored.bytes;
        let mut buffer = Vec::new();
        for from in (0..lines.len()).step_by(ROWS_PER_WRITE) {
            buffer.clear();
            let to = (from + ROWS_PER_WRITE).min(lines.len());
            lines
                .append(from, to, &mut buffer)
                .map_err(|source| SinkError::Lines {
                    target: self.target(),
                    source,
                })?;
            self.step()?;
            self.file
                .write_all(&buffer)
                .map_err(|e| self.io("write to it", e))?;
            bytes += buffer.len() as u64;
        }
        self.step()?;
        self.file.sync_all().map_err(|e| self.io("sync it", e))?;
        self.step()?;
        let stored = Stored {
            format: FORMAT,
            channel: self.channel,
            bytes,
            marker,
        };
        self.write_marker(&stored)?;
        self.stored = stored;
        self.step()
    }

    fn read_marker(&self) -> Result<Option<Stored>, SinkError> {
        let path = marker_path(&self.path);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("read its marker", error)),
        };
        let stored: Stored = serde_json::from_str(&text).map_err(|e| {
            self.wrong(format!(
                "its marker {} cannot be read ({e})",
                path.display()
            ))
        })?;
        let marker = &stored.marker;
        if stored.format != FORMAT {
            return Err(self.wrong(format!(
                "its marker has form {}, this everlog reads form {FORMAT}",
                stored.format
            )));
        }
        if (&marker.job, &marker.version, stored.channel)
            != (&self.job.name, &self.job.version, self.channel)
        {
            return Err(self.wrong(format!(
                "it is the output for {} of job {} version {}, not for {} of job {}: name another file",
                stored.channel, marker.job, marker.version, self.channel, self.job
            )));
        }
        Ok(Some(stored))
    }

    /// Replaces the marker. When it returns, the new one survives a power cut.
    fn write_marker(&mut self, stored: &Stored) -> Result<(), SinkError> {
        let mut text = serde_json::to_string(stored)
            .map_err(|e| self.io("write its marker", std::io::Error::other(e)))?;
        text.push('\n');
        let path = marker_path(&self.path);
        let temporary = path.with_extension("everlog.tmp");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|e| self.io("write its marker", e))?;
        self.step()?;
        std::fs::rename(&temporary, &path).map_err(|e| self.io("replace its marker", e))?;
        self.step()?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let sync = File::open(folder.unwrap_or(Path::new("."))).and_then(|f| f.sync_all());
        sync.map_err(|e| self.io("sync its folder", e))
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "a test counts")]
    fn step(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&mut self) -> Result<(), SinkError> {
        match &mut self.steps_left {
            Some(0) => Err(SinkError::Stopped),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn target(&self) -> String {
        format!("jsonl:{}", self.path.display())
    }

    fn io(&self, doing: &'static str, source: std::io::Error) -> SinkError {
        SinkError::Io {
            target: self.target(),
            doing,
            source,
        }
    }

    fn wrong(&self, what: String) -> SinkError {
        SinkError::Target {
            target: self.target(),
            what,
        }
    }
}

fn lock(file: &File, patience: Duration, path: &Path) -> Result<(), SinkError> {
    let target = || format!("jsonl:{}", path.display());
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if began.elapsed() < patience => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(SinkError::InUse { target: target() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(SinkError::Io {
                    target: target(),
                    doing: "lock it",
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int64Array, RecordBatch};

    use super::*;
    use crate::state::no_rows;

    fn job() -> JobId {
        JobId::new("sessions", "v1").unwrap()
    }

    /// Epochs of 0 to 6,000 rows that count on.
    fn epochs() -> Vec<Epoch> {
        let mut before = 0u64;
        let sizes = [3, 0, 6_000, 1, 0, 7];
        let epoch = |(n, size): (usize, u64)| {
            let from = i64::try_from(before).unwrap();
            let to = from + i64::try_from(size).unwrap();
            let column: ArrayRef = Arc::new(Int64Array::from_iter_values(from..to));
            let epoch = Epoch {
                number: n as u64 + 1,
                job: job(),
                fingerprint: 7,
                engine: "e".into(),
                changes: Arc::default(),
                progress: Vec::new(),
                positions: Positions::new(),
                rows_before: before,
                late_before: 0,
                dead_before: 0,
                rows: RecordBatch::try_from_iter([("n", column)]).unwrap(),
                late: no_rows(),
                dead: no_rows(),
            };
            before += size;
            epoch
        };
        sizes.into_iter().enumerate().map(epoch).collect()
    }

    fn expected() -> String {
        let lines: Vec<_> = (0..6_011).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        lines.concat()
    }

    async fn open(path: &Path) -> Result<FileSink, SinkError> {
        FileSink::open(path.to_owned(), job(), Channel::Rows, Duration::ZERO).await
    }

    #[tokio::test]
    async fn killed_after_any_step_the_file_is_as_if_nothing_had_happened() {
        let mut crashes = 0;
        for steps in 0..200 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("rows.jsonl");
            let mut sink = open(&path).await.unwrap();
            sink.open.as_mut().unwrap().steps_left = Some(steps);
            let mut died = false;
            for epoch in &epochs() {
                if sink.commit(epoch).await.is_err() {
                    died = true;
                    break;
                }
            }
            // What a process may leave behind a kill: bytes that were never committed.
            drop(sink);
            crashes += u32::from(died);
            let mut sink = open(&path).await.unwrap();
            let held = sink.committed().await.unwrap();
            let rows = held.as_ref().map_or(0, |m| m.rows);
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            assert_eq!(
                lines as u64, rows,
                "after the cut the file holds what the marker says"
            );
            // Recovery commits again from any epoch that may not have arrived.
            for epoch in &epochs() {
                sink.commit(epoch).await.unwrap();
            }
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                expected(),
                "killed after {steps} steps"
            );
            let marker = sink.committed().await.unwrap().unwrap();
            assert_eq!((marker.rows, marker.epoch), (6_011, 6));
            if !died {
                assert!(crashes > 20, "every step was one to die at: {crashes}");
                return;
            }
        }
        panic!("it never came through");
    }

    #[tokio::test]
    async fn an_epoch_out_of_step_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let mut sink = open(&path).await.unwrap();
        let epochs = epochs();
        let error = sink.commit(&epochs[2]).await.unwrap_err();
        assert!(
            matches!(
                error,
                SinkError::OutOfStep {
                    held: 0,
                    before: 3,
                    ..
                }
            ),
            "{error}"
        );
        sink.commit(&epochs[0]).await.unwrap();
        let mut half = epochs[2].clone();
        half.rows_before = 1;
        assert!(sink.commit(&half).await.is_err());
        sink.commit(&epochs[2]).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_this_jobs_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, "somebody's\n").unwrap();
        let error = open(&path).await.unwrap_err().to_string();
        assert!(error.contains("no job's output"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody's\n");

        std::fs::remove_file(&path).unwrap();
        let mut sink = open(&path).await.unwrap();
        sink.commit(&epochs()[0]).await.unwrap();
        let error = open(&path).await.unwrap_err();
        assert_eq!(error.exit_status(), 1, "waiting helps: {error}");
        let error = error.to_string();
        assert!(error.contains("another process still writes it"), "{error}");
        // which its process need not end for
        let other = JobId::new("sessions", "v2").unwrap();
        let error = FileSink::open(path.clone(), other, Channel::Rows, Duration::MAX).await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("of job sessions version v1, not for rows of job sessions version v2"),
            "{error}"
        );
        let error = FileSink::open(path.clone(), job(), Channel::Late, Duration::MAX).await;
        assert!(error.is_err());
        drop(sink);
        std::fs::remove_file(&path).unwrap();
        let error = open(&path).await.unwrap_err().to_string();
        assert!(
            error.contains("has 0 bytes where 24 were committed"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn any_text_is_a_marker_or_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        drop(open(&path).await.unwrap());
        let marker = marker_path(&path);
        let whole = std::fs::read_to_string(&marker).unwrap();
        for cut in 0..whole.len() - 2 {
            std::fs::write(&marker, &whole[..cut]).unwrap();
            let error = open(&path).await.unwrap_err();
            assert!(matches!(error, SinkError::Target { .. }), "{cut}: {error}");
        }
    }
}
