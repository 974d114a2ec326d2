//! How a command ends: the exit status that scripts rely on, and one line that says what, where and what to do.

use std::error::Error;
use std::fmt;

use crate::settings::ConfigError;
use crate::text;

/// The exit status, a contract (docs/operations.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Nothing more fits.
    Failed = 1,
    /// Bad usage or configuration.
    Usage = 2,
    /// A gap.
    Gap = 3,
    /// Corrupt data.
    Corrupt = 4,
    /// Another writer: fenced, or a foreign change to the table.
    OtherWriter = 5,
}

impl Status {
    /// What a library says should be the exit status.
    pub(crate) const fn from_code(code: u8) -> Self {
        match code {
            2 => Self::Usage,
            3 => Self::Gap,
            4 => Self::Corrupt,
            5 => Self::OtherWriter,
            _ => Self::Failed,
        }
    }

    /// The number that the process ends with.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }
}

/// Why a command did not end with 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Say it, and end with this status.
    Reported {
        /// The exit status.
        status: Status,
        /// What is wrong, where, and what to do, on one line.
        message: String,
    },
    /// Whoever read our output has gone: nothing is wrong, and nobody listens.
    BrokenPipe,
}

impl Failure {
    /// A failure in words; control characters in them are escaped.
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self::Reported {
            status,
            message: text::printable(&message.into()).into_owned(),
        }
    }

    /// A failure in an error's words, its causes behind it.
    pub(crate) fn from_error(status: Status, error: &(dyn Error + 'static)) -> Self {
        Self::new(status, chain(error))
    }

    /// Bad usage.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Status::Usage, message)
    }

    /// Puts what was being done in front.
    pub(crate) fn while_doing(self, what: &str) -> Self {
        match self {
            Self::Reported { status, message } => Self::new(status, format!("{what}: {message}")),
            Self::BrokenPipe => Self::BrokenPipe,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::from_error(Status::Failed, &error)
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported { message, .. } => f.write_str(message),
            Self::BrokenPipe => f.write_str("the reader of the output has gone"),
        }
    }
}

/// An error and its causes on one line; a cause that a text before it has already is not repeated.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = one_line(&error.to_string());
    // with what is not shown
    let mut told = text.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = one_line(&error.to_string());
        if !more.is_empty() && !told.contains(&more) {
            told.push_str(&more);
            text.push_str(": ");
            text.push_str(&cut(more));
        }
        cause = error.source();
    }
    text
}

/// What is shown of one cause: servers answer with whole documents.
const SHOWN_CHARS: usize = 500;

fn cut(text: String) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// A text without line breaks or runs of blanks.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading x")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("disk on\nfire")]
    struct Inner;

    #[test]
    fn an_error_and_its_causes_are_one_line() {
        assert_eq!(chain(&Outer(Inner)), "reading x: disk on fire");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("storage: put x")]
    struct Put(#[source] std::io::Error);

    #[test]
    fn a_cause_that_is_a_document_is_cut() {
        let line = chain(&Put(std::io::Error::other(
            "<a>\n <b/>\n</a>\n".repeat(200),
        )));
        assert!(
            line.starts_with("storage: put x: <a> <b/> </a>") && line.len() < 600,
            "{line}"
        );
    }

    #[derive(Debug, thiserror::Error)]
    #[error("after 8 retries: {0}")]
    struct Retried(#[source] std::io::Error);

    #[test]
    fn a_document_that_every_cause_repeats_is_shown_once() {
        let document = std::io::Error::other("<Error>no room</Error> ".repeat(60));
        let line = chain(&Put(std::io::Error::other(Retried(document))));
        assert_eq!(line.matches("after 8 retries").count(), 1, "{line}");
        assert!(line.len() < 600, "{line}");
    }

    #[test]
    fn a_reader_that_left_is_no_failure_to_report() {
        let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(matches!(Failure::from(gone), Failure::BrokenPipe));
    }
}
