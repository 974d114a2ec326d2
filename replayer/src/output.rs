//! Where a replay's events go: standard output, a file, a topic, or only a count. They live here, and not in the command
//! line, because exactly-once resumption is a matter between output and positions.
//!
//! | output | after `kill -9` and a resumption | how |
//! |---|---|---|
//! | `jsonl` | at least once | positions are saved after the flush |
//! | `jsonl:PATH` | exactly once | the file is cut back to the length saved with the positions |
//! | `kafka:TOPIC` | exactly once | positions travel in the transactions and are read back |
//! | `count` | exactly once | the count is saved with the positions |

pub mod json;
mod lines;
mod topic;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use everlog_common::{EventBatch, Offset, Partition, Positions, TopicName};
use uuid::Uuid;

use self::json::Encoding;
use self::lines::Lines;
use self::topic::TopicOutput;
use crate::resume::OutputState;

/// Why an output failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// `--output` is none of its forms.
    #[error("--output {0}: not one of jsonl, jsonl:PATH, count, kafka:TOPIC")]
    Form(String),
    /// Bytes that text cannot show.
    #[error(
        "partition {partition} offset {offset}: the {part} is not UTF-8: use --encoding base64"
    )]
    NotText {
        /// The partition.
        partition: Partition,
        /// The record.
        offset: Offset,
        /// `key`, `payload` or `header`.
        part: &'static str,
    },
    /// Writing failed.
    #[error("output {target}: {doing}")]
    Io {
        /// What is written to.
        target: String,
        /// What was to be done.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what the positions file remembers.
    #[error("output {target}: {what}")]
    File {
        /// The file.
        target: String,
        /// What differs, and what to do.
        what: String,
    },
    /// A record that the target topic cannot hold as it is.
    #[error("topic {topic} cannot hold partition {partition} offset {offset} as it is: {what}")]
    NotRepresentable {
        /// The target.
        topic: String,
        /// The partition.
        partition: Partition,
        /// The record.
        offset: Offset,
        /// Which part, and what to do.
        what: String,
    },
    /// The target topic is not fit.
    #[error("output kafka:{topic}: {what}")]
    Target {
        /// The target.
        topic: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The producer failed.
    #[error("output kafka:{topic}: {doing}: {detail}")]
    Producer {
        /// The target.
        topic: String,
        /// What was to be done.
        doing: &'static str,
        /// What the client said.
        detail: String,
    },
    /// The runtime is shutting down.
    #[error("output was stopped")]
    Stopped,
}

impl OutputError {
    /// The exit status that stands for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Form(_) | Self::Target { .. } => 2,
            Self::NotText { .. }
            | Self::Io { .. }
            | Self::File { .. }
            | Self::NotRepresentable { .. }
            | Self::Producer { .. }
            | Self::Stopped => 1,
        }
    }

    /// Whether the reader of standard output went away: the replay ends quietly.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// Where to, as the command line writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputTarget {
    /// JSON lines on standard output.
    Stdout,
    /// JSON lines in a file.
    File(PathBuf),
    /// Only counted.
    Count,
    /// A topic of the configured cluster.
    Topic(TopicName),
}

impl FromStr for OutputTarget {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, OutputError> {
        let wrong = || OutputError::Form(text.to_owned());
        match text.split_once(':') {
            None if text == "jsonl" => Ok(Self::Stdout),
            None if text == "count" => Ok(Self::Count),
            Some(("jsonl", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("kafka", topic)) => TopicName::new(topic).map(Self::Topic).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for OutputTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("jsonl"),
            Self::File(path) => write!(f, "jsonl:{}", path.display()),
            Self::Count => f.write_str("count"),
            Self::Topic(topic) => write!(f, "kafka:{topic}"),
        }
    }
}

impl OutputTarget {
    /// What the positions file holds of it before the first record.
    pub(crate) fn initial_state(&self) -> OutputState {
        match self {
            Self::Stdout => OutputState::Stdout {},
            Self::File(path) => OutputState::File {
                path: path.clone(),
                length: 0,
            },
            Self::Count => OutputState::Count { bytes: 0 },
            Self::Topic(topic) => OutputState::Topic {
                topic: topic.to_string(),
            },
        }
    }
}

/// What an output is opened with.
#[derive(Debug, Clone)]
pub(crate) struct OpenOutput {
    pub(crate) target: OutputTarget,
    pub(crate) encoding: Encoding,
    /// librdkafka properties, for a topic.
    pub(crate) kafka: BTreeMap<String, String>,
    pub(crate) run_id: Uuid,
    /// What was saved, where this run is resumed; none at the first run.
    pub(crate) saved: Option<(OutputState, Positions)>,
    /// Whether there is a positions file at all.
    pub(crate) resumable: bool,
}

/// An open output.
#[derive(Debug)]
pub(crate) enum Output {
    Lines(Lines),
    Count { bytes: u64 },
    Topic(TopicOutput),
}

impl Output {
    /// Opens it, and says where to go on if the output itself knows better than the positions file.
    pub(crate) async fn open(open: OpenOutput) -> Result<(Self, Option<Positions>), OutputError> {
        match open.target.clone() {
            OutputTarget::Stdout => Ok((Self::Lines(Lines::stdout(open.encoding)), None)),
            OutputTarget::File(path) => {
                let lines = Lines::file(path, &open).await?;
                Ok((Self::Lines(lines), None))
            }
            OutputTarget::Count => {
                let bytes = match open.saved {
                    Some((OutputState::Count { bytes }, _)) => bytes,
                    _ => 0,
                };
                Ok((Self::Count { bytes }, None))
            }
            OutputTarget::Topic(topic) => {
                let (output, positions) = TopicOutput::open(topic, open).await?;
                Ok((Self::Topic(output), positions))
            }
        }
    }

    /// Takes a batch. Not cancel-safe: what is written of it is not known afterwards.
    pub(crate) async fn write(&mut self, batch: EventBatch) -> Result<(), OutputError> {
        match self {
            Self::Lines(lines) => lines.write(batch).await,
            Self::Count { bytes } => {
                *bytes += payload_bytes(&batch);
                Ok(())
            }
            Self::Topic(topic) => topic.write(batch).await,
        }
    }

    /// Makes everything that was written final. `positions` are those right after it.
    pub(crate) async fn checkpoint(
        &mut self,
        positions: &Positions,
    ) -> Result<OutputState, OutputError> {
        match self {
            Self::Lines(lines) => lines.checkpoint().await,
            Self::Count { bytes } => Ok(OutputState::Count { bytes: *bytes }),
            Self::Topic(topic) => topic.checkpoint(positions).await,
        }
    }
}

/// Keys, values and headers of a batch.
fn payload_bytes(batch: &EventBatch) -> u64 {
    let rows = everlog_common::record::ROW_OVERHEAD_BYTES * batch.columns.len();
    batch.columns.bytes().saturating_sub(rows) as u64
}
