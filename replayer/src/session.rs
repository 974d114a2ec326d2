//! A replay with its output and its positions file: what `everlog replay` runs.
//!
//! ```text
//!   stream ──batch──► output ──checkpoint──► positions file
//!             (write)    flush / sync / commit      (replaced as a whole)
//! ```
//!
//! A checkpoint is due [`CHECKPOINT_INTERVAL`] after the first batch that it covers, also while no further batch comes, so
//! that a quiet topic leaves no transaction open; one more is taken at the end, after a signal, and before an error of
//! the stream is reported.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Clock, Gap, compute};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::ReplayError;
use crate::output::json::Encoding;
use crate::output::{OpenOutput, Output, OutputError, OutputTarget};
use crate::progress::Progress;
use crate::request::{ReplayRequest, RequestError};
use crate::resume::{Asked, OutputState, ResumeError, ResumeFile, ResumeState};
use crate::stream::{Components, EventStream};

/// Between a batch and the checkpoint that covers it.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// Where events go, and where positions are kept.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Where events go.
    pub output: OutputTarget,
    /// How bytes become JSON strings.
    pub encoding: Encoding,
    /// The positions file; none: a run that is killed begins anew.
    pub resume: Option<PathBuf>,
    /// librdkafka properties, for an output to a topic.
    pub kafka: BTreeMap<String, String>,
}

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Reading failed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// Writing failed.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The positions file failed.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

impl SessionError {
    /// The exit status that stands for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Replay(error) => error.exit_status(),
            Self::Output(error) => error.exit_status(),
            Self::Resume(error) => error.exit_status(),
        }
    }

    /// Whether the reader of standard output went away: the replay ends quietly.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.is_broken_pipe())
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many events went out.
    Emitted(usize),
    /// The replay is at its end; everything is saved.
    Ended,
    /// The caller's signal came; everything is saved.
    Cancelled,
}

/// What a session did, over all runs with the same positions file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Events.
    pub events: u64,
    /// Bytes of keys, values and headers, where the output counts them.
    pub bytes: Option<u64>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Session {
    stream: EventStream,
    output: Output,
    file: Option<Arc<ResumeFile>>,
    state: ResumeState,
    clock: Arc<dyn Clock>,
    /// When the next checkpoint is due; none while everything is saved.
    due: Option<Duration>,
}

impl Session {
    /// Opens output, stream and positions file, in this order: an output that knows better where the last run ended
    /// decides where to begin, and the run id is saved before the first record.
    pub async fn open(
        mut request: ReplayRequest,
        components: Components,
        options: SessionOptions,
    ) -> Result<Self, SessionError> {
        if let OutputTarget::Topic(topic) = &options.output
            && *topic == request.topic
        {
            let error = RequestError::IntoItself(topic.clone());
            return Err(ReplayError::from(error).into());
        }
        let file = options.resume.map(ResumeFile::new).map(Arc::new);
        let initial = options.output.initial_state();
        let asked = Asked::of(&request, options.encoding);
        let saved = match &file {
            Some(file) => {
                file.lock()?;
                file.load(&request.topic, &initial, &asked)?
            }
            None => None,
        };
        let run_id = saved
            .as_ref()
            .map_or_else(|| components.ids.uuid(), |s| s.run_id);
        let open = OpenOutput {
            target: options.output,
            encoding: options.encoding,
            kafka: options.kafka,
            run_id,
            saved: saved
                .as_ref()
                .map(|s| (s.output.clone(), s.positions.clone())),
            resumable: file.is_some(),
        };
        let (output, committed) = Output::open(open).await?;
        if let Some(saved) = &saved {
            request.start = Some(committed.unwrap_or_else(|| saved.positions.clone()));
            request.incarnation.clone_from(&saved.incarnation);
            request.resumed_snapshot = saved.snapshot_id;
        }
        let events = saved.as_ref().map_or(0, |s| s.events);
        let state = ResumeState {
            run_id,
            topic: request.topic.clone(),
            snapshot_id: None,
            incarnation: None,
            positions: request.start.clone().unwrap_or_default(),
            events,
            output: saved.map_or(initial, |s| s.output),
            asked: Some(asked),
        };
        let clock = Arc::clone(&components.clock);
        let stream = EventStream::open(request, components).await?;
        let mut session = Self {
            stream,
            output,
            file,
            state,
            clock,
            due: None,
        };
        session.checkpoint().await?;
        Ok(session)
    }

    /// Names the run.
    pub fn run_id(&self) -> Uuid {
        self.state.run_id
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.stream.progress()
    }

    /// Recorded gaps passed so far.
    pub fn gaps_passed(&self) -> &[Gap] {
        self.stream.gaps_passed()
    }

    /// What went out so far.
    pub fn summary(&self) -> Summary {
        Summary {
            events: self.state.events,
            bytes: match &self.output {
                Output::Count { bytes } => Some(*bytes),
                Output::Lines(_) | Output::Topic(_) => None,
            },
        }
    }

    /// The next batch, read and written. A signal is looked at only where nothing is half done.
    pub async fn step(&mut self, signal: &CancellationToken) -> Result<Step, SessionError> {
        loop {
            let clock = Arc::clone(&self.clock);
            let due = self.due;
            let wait = async move {
                match due {
                    Some(due) => clock.sleep(due.saturating_sub(clock.elapsed())).await,
                    None => std::future::pending().await,
                }
            };
            let batch = tokio::select! {
                biased;
                () = signal.cancelled() => {
                    self.checkpoint().await?;
                    return Ok(Step::Cancelled);
                }
                batch = self.stream.next() => batch,
                () = wait => {
                    self.checkpoint().await?;
                    continue;
                }
            };
            match batch {
                Ok(Some(batch)) => {
                    let rows = batch.columns.len();
                    self.output.write(batch).await?;
                    fail::fail_point!("replay::output_written");
                    self.state.events += rows as u64;
                    let now = self.clock.elapsed();
                    let due = *self.due.get_or_insert(now + CHECKPOINT_INTERVAL);
                    if now >= due {
                        self.checkpoint().await?;
                    }
                    return Ok(Step::Emitted(rows));
                }
                Ok(None) => {
                    self.checkpoint().await?;
                    return Ok(Step::Ended);
                }
                Err(error) => {
                    // What came before the error is sound, and is kept.
                    self.checkpoint().await?;
                    return Err(error.into());
                }
            }
        }
    }

    /// Makes what was written final, then saves where that is.
    async fn checkpoint(&mut self) -> Result<(), SessionError> {
        let positions = self.stream.positions().clone();
        let output: OutputState = self.output.checkpoint(&positions).await?;
        fail::fail_point!("replay::output_final");
        self.due = None;
        self.state.positions = positions;
        self.state.output = output;
        self.state.snapshot_id = self.stream.snapshot_id();
        self.state.incarnation = self.stream.incarnation().cloned();
        if let Some(file) = self.file.as_ref().map(Arc::clone) {
            let state = self.state.clone();
            let saved = compute::spawn(move || file.save(&state));
            saved
                .await
                .map_err(|_| ReplayError::Stopped("saving the positions"))??;
        }
        fail::fail_point!("replay::position_saved");
        Ok(())
    }

    /// Ends it in order: closes the live reader, gives the lease back.
    pub async fn close(self) -> Summary {
        let summary = self.summary();
        self.stream.close().await;
        summary
    }
}
