//! Why an archiver ended, and with which exit status.

use std::error::Error;
use std::fmt;

use everlog_common::{Partition, TopicName};
use everlog_kafka::LogError;
use everlog_table::archive::{ArchiveError, ArchiveErrorKind};

/// What kind of failure stopped a partition or a topic. Ordered by what an operator has to look at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// Stored data breaks a rule.
    Corrupt,
    /// Somebody else writes to the table.
    AnotherWriter,
    /// Kafka deleted records before they were archived.
    Gap,
    /// The log is shorter than the archive.
    Truncated,
    /// Configuration that cannot work: another cluster, another isolation, a clash of names.
    Configuration,
    /// Not allowed.
    Denied,
    /// Anything else.
    Other,
}

impl FailureKind {
    /// The process' exit status (design: *Command line and files*).
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Corrupt => 4,
            Self::AnotherWriter => 5,
            Self::Gap => 3,
            Self::Configuration => 2,
            Self::Truncated | Self::Denied | Self::Other => 1,
        }
    }

    /// For metrics and health.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Corrupt => "corrupt",
            Self::AnotherWriter => "another_writer",
            Self::Gap => "retention",
            Self::Truncated => "truncated",
            Self::Configuration => "configuration",
            Self::Denied => "denied",
            Self::Other => "other",
        }
    }

    /// Whether the reason may lie with this process alone (its permissions, its settings, what its client brought), so that
    /// another member of the group may do better. What lies with the table or the log stops whoever tries.
    pub(crate) const fn may_pass_by_others(self) -> bool {
        match self {
            Self::Configuration | Self::Denied | Self::Other => true,
            Self::Corrupt | Self::AnotherWriter | Self::Gap | Self::Truncated => false,
        }
    }

    /// What an error of the archive means for its topic; none where it is worth waiting for.
    pub(crate) fn of_archive(error: &ArchiveError) -> Option<Self> {
        match error.kind() {
            ArchiveErrorKind::Transient => None,
            ArchiveErrorKind::ForeignChange => Some(Self::AnotherWriter),
            ArchiveErrorKind::Corrupt => Some(Self::Corrupt),
            ArchiveErrorKind::Denied => Some(Self::Denied),
            // the commit writes other files; nobody else meets it
            ArchiveErrorKind::Stale => Some(Self::Other),
            ArchiveErrorKind::Invalid | ArchiveErrorKind::NameClash => Some(Self::Configuration),
        }
    }
}

/// What kind of reason an error of the log is, for health.
pub(crate) const fn reason_of_log(error: &LogError) -> &'static str {
    match error {
        LogError::Unavailable { .. } => "brokers",
        LogError::Denied { .. } => FailureKind::Denied.as_str(),
        LogError::Invalid { .. } => FailureKind::Configuration.as_str(),
        _ => FailureKind::Other.as_str(),
    }
}

/// What stopped, and why. It stays stopped until the process is started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The topic.
    pub topic: TopicName,
    /// The partition; none: the whole topic.
    pub partition: Option<Partition>,
    /// What kind.
    pub kind: FailureKind,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            Some(partition) => write!(f, "{}-{partition}: {}", self.topic, self.message),
            None => write!(f, "{}: {}", self.topic, self.message),
        }
    }
}

/// Why an archiver ended otherwise than cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiverError {
    /// It ended in an orderly way, but something had stopped before. Never empty; the worst first.
    #[error("{}", Failures(.0))]
    Stopped(Vec<Failure>),
    /// The Kafka client cannot go on.
    #[error("kafka")]
    Log(#[source] LogError),
    /// A task of the archiver panicked.
    #[error("a task of the archiver ended by a panic: {0}")]
    Panicked(String),
}

struct Failures<'a>(&'a [Failure]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.0.first() {
            write!(f, "{first}")?;
        }
        match self.0.len() {
            0 | 1 => Ok(()),
            n => write!(f, " (and {} more)", n - 1),
        }
    }
}

impl ArchiverError {
    /// The process' exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Stopped(failures) => failures.first().map_or(1, |f| f.kind.exit_status()),
            Self::Log(LogError::Invalid { .. }) => 2,
            Self::Log(_) | Self::Panicked(_) => 1,
        }
    }

    /// From what stopped; the worst first.
    pub(crate) fn of_failures(mut failures: Vec<Failure>) -> Self {
        failures.sort_by_key(|f| f.kind);
        Self::Stopped(failures)
    }
}

/// What is shown of one cause: servers answer with whole documents.
const SHOWN_CHARS: usize = 500;

/// An error with its causes on one line.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut line = squeezed(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = squeezed(&error.to_string());
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// Without line breaks and runs of blanks, and not longer than anybody reads.
fn squeezed(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_failure_decides_the_exit_status() {
        let failure = |kind| Failure {
            topic: TopicName::new("t").unwrap(),
            partition: Some(Partition::new(1).unwrap()),
            kind,
            message: "why".to_owned(),
        };
        let ended = ArchiverError::of_failures(vec![
            failure(FailureKind::Gap),
            failure(FailureKind::AnotherWriter),
        ]);
        assert_eq!(ended.exit_status(), 5);
        assert_eq!(ended.to_string(), "t-1: why (and 1 more)");
        for (kind, status) in [
            (FailureKind::Gap, 3),
            (FailureKind::Corrupt, 4),
            (FailureKind::Configuration, 2),
            (FailureKind::Truncated, 1),
        ] {
            let ended = ArchiverError::of_failures(vec![failure(kind)]);
            assert_eq!(ended.exit_status(), status);
        }
    }

    #[test]
    fn a_server_that_answers_with_a_document_makes_one_line_of_a_sane_length() {
        let body = "<Error>\n  <Code>SlowDown</Code>\n</Error>\n".repeat(100);
        let line = one_line(&std::io::Error::other(body));
        assert!(
            line.starts_with("<Error> <Code>SlowDown</Code> </Error> <Error>") && line.len() < 600,
            "{line}"
        );
    }
}
