//! JSON lines on standard output or in a file. Encoding and writing run on a blocking thread, one batch at a time, while
//! the next batch is being read.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write};
use std::path::PathBuf;

use everlog_common::{EventBatch, compute};
use tokio::task::JoinHandle;

use super::json::{Encoding, JsonLines};
use super::{OpenOutput, OutputError};
use crate::resume::OutputState;

/// Rows that are encoded before they are written: bounds the buffer.
const ROWS_PER_WRITE: usize = 4096;

#[derive(Debug)]
enum Sink {
    Stdout(std::io::Stdout),
    File {
        file: File,
        path: PathBuf,
        length: u64,
    },
}

#[derive(Debug)]
struct Writer {
    sink: Sink,
    json: JsonLines,
    buffer: Vec<u8>,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Lines {
    /// None while a job has it, or after one failed.
    writer: Option<Box<Writer>>,
    job: Option<JoinHandle<(Box<Writer>, Result<(), OutputError>)>>,
}

impl Lines {
    pub(super) fn stdout(encoding: Encoding) -> Self {
        Self::new(Sink::Stdout(std::io::stdout()), encoding)
    }

    /// Opens the file where the positions file says that it is; anew at a first run.
    pub(super) async fn file(path: PathBuf, open: &OpenOutput) -> Result<Self, OutputError> {
        let saved = match &open.saved {
            Some((OutputState::File { length, .. }, _)) => Some(*length),
            _ => None,
        };
        let resumable = open.resumable;
        let opened = compute::spawn(move || open_file(path, saved, resumable));
        let sink = opened.await.map_err(|_| OutputError::Stopped)??;
        Ok(Self::new(sink, open.encoding))
    }

    fn new(sink: Sink, encoding: Encoding) -> Self {
        Self {
            writer: Some(Box::new(Writer {
                sink,
                json: JsonLines::new(encoding),
                buffer: Vec::new(),
            })),
            job: None,
        }
    }

    pub(super) async fn write(&mut self, batch: EventBatch) -> Result<(), OutputError> {
        let mut writer = self.idle().await?;
        self.job = Some(compute::spawn(move || {
            let written = writer.write(&batch);
            (writer, written)
        }));
        Ok(())
    }

    /// Flushed; a file is also synced, so that the positions file never knows of bytes that a power cut takes away.
    pub(super) async fn checkpoint(&mut self) -> Result<OutputState, OutputError> {
        let mut writer = self.idle().await?;
        let flushed = compute::spawn(move || {
            let state = writer.flush();
            (writer, state)
        });
        let (writer, state) = flushed.await.map_err(|_| OutputError::Stopped)?;
        let state = state?;
        self.writer = Some(writer);
        Ok(state)
    }

    /// The writer, once the batch before is through.
    async fn idle(&mut self) -> Result<Box<Writer>, OutputError> {
        if let Some(job) = self.job.take() {
            let (writer, written) = job.await.map_err(|_| OutputError::Stopped)?;
            written?;
            return Ok(writer);
        }
        self.writer.take().ok_or(OutputError::Stopped)
    }
}

impl Writer {
    fn write(&mut self, batch: &EventBatch) -> Result<(), OutputError> {
        let rows = batch.columns.len();
        for from in (0..rows).step_by(ROWS_PER_WRITE) {
            self.buffer.clear();
            let to = (from + ROWS_PER_WRITE).min(rows);
            let encoded = self.json.append(batch, (from, to), &mut self.buffer);
            // Whole lines before a record that cannot be shown are written all the same.
            self.sink.write(&self.buffer)?;
            encoded?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<OutputState, OutputError> {
        match &mut self.sink {
            Sink::Stdout(out) => {
                out.lock().flush().map_err(|e| stdout_error("flush", e))?;
                Ok(OutputState::Stdout {})
            }
            Sink::File { file, path, length } => {
                file.sync_data().map_err(|e| file_error(path, "sync", e))?;
                Ok(OutputState::File {
                    path: path.clone(),
                    length: *length,
                })
            }
        }
    }
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        match self {
            Self::Stdout(out) => out
                .lock()
                .write_all(bytes)
                .map_err(|e| stdout_error("write", e)),
            Self::File { file, path, length } => {
                file.write_all(bytes)
                    .map_err(|e| file_error(path, "write", e))?;
                *length += bytes.len() as u64;
                Ok(())
            }
        }
    }
}

fn open_file(path: PathBuf, saved: Option<u64>, resumable: bool) -> Result<Sink, OutputError> {
    let mut options = File::options();
    options
        .write(true)
        .create(saved.is_none_or(|length| length == 0));
    let mut file = options
        .open(&path)
        .map_err(|e| file_error(&path, "open", e))?;
    let there = file
        .metadata()
        .map_err(|e| file_error(&path, "read the length", e))?
        .len();
    let wrong = |what: String| OutputError::File {
        target: format!("jsonl:{}", path.display()),
        what,
    };
    let length = match saved {
        Some(length) if there < length => {
            return Err(wrong(format!(
                "it has {there} bytes, {length} were written when the positions were saved; it was changed since: remove it and the positions file to begin anew"
            )));
        }
        Some(length) => length,
        None if resumable && there > 0 => {
            return Err(wrong(
                "it is there already and the positions file is new; remove it, or name another file".to_owned(),
            ));
        }
        None => 0,
    };
    // What was written after the positions were saved is written again.
    file.set_len(length)
        .map_err(|e| file_error(&path, "cut", e))?;
    file.seek(SeekFrom::Start(length))
        .map_err(|e| file_error(&path, "seek", e))?;
    // The file's name must survive a power cut as well, since the positions file refers to it.
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(std::path::Path::new(".")))
        .and_then(|f| f.sync_all())
        .map_err(|e| file_error(&path, "sync the folder", e))?;
    Ok(Sink::File { file, path, length })
}

fn stdout_error(doing: &'static str, source: std::io::Error) -> OutputError {
    OutputError::Io {
        target: "jsonl".to_owned(),
        doing,
        source,
    }
}

fn file_error(path: &std::path::Path, doing: &'static str, source: std::io::Error) -> OutputError {
    OutputError::Io {
        target: format!("jsonl:{}", path.display()),
        doing,
        source,
    }
}
