//! Why a query was refused or failed: one line that says what is wrong, where, and what to do.

use datafusion::error::DataFusionError;
use everlog_replayer::ReplayError;
use everlog_table::archive::{ArchiveError, ArchiveErrorKind};
use everlog_table::catalog::{CatalogError, CatalogErrorKind};

/// Why a query was refused or failed.
///
/// The text is complete in one line; [`std::error::Error::source`] adds what lies below it, where there is more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The statement cannot be read as SQL.
    #[error("{0}")]
    Syntax(String),
    /// The statement is SQL, but is not let through.
    #[error("{0}")]
    Refused(String),
    /// There is no such table.
    #[error("{0}")]
    UnknownTable(String),
    /// There is no such column.
    #[error("{0}")]
    UnknownColumn(String),
    /// There is no such moment of the table (any more).
    #[error("{0}")]
    NoSnapshot(String),
    /// The statement does not fit the tables: types, functions, names that mean two things.
    #[error("{0}")]
    Invalid(String),
    /// `$live` without a cluster.
    #[error(
        "the live tail needs the cluster: give its brokers in [kafka] (\"bootstrap.servers\"), or ask the table without $live"
    )]
    NoCluster,
    /// A limit was reached.
    #[error("{0}")]
    Limit(String),
    /// The query was cancelled.
    #[error("the query was cancelled")]
    Cancelled,
    /// A table cannot be read as everlog would have written it.
    #[error("{0}")]
    Corrupt(String),
    /// The table is sound, but everlog's SQL does not read such tables.
    #[error("{0}")]
    Unsupported(String),
    /// The catalog failed.
    #[error("{}", chain(.0))]
    Catalog(#[source] CatalogError),
    /// A table failed.
    #[error("{}", chain(.0))]
    Table(#[source] ArchiveError),
    /// Kafka's tail could not be read, or does not begin where the archive ends.
    #[error("{}", chain(.0))]
    Live(#[source] ReplayError),
    /// The local file of a named table cannot be used.
    #[error("{0}")]
    File(String),
    /// Anything else that went wrong while the query ran.
    #[error("{0}")]
    Failed(String),
}

/// What a [`QueryError`] means for an exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryErrorKind {
    /// The statement or the configuration is wrong.
    Usage,
    /// Stored data is corrupt.
    Corrupt,
    /// Records are gone for good.
    Gap,
    /// It may go well another time.
    Transient,
    /// Anything else.
    Other,
}

impl QueryError {
    /// What it means for an exit status.
    pub fn kind(&self) -> QueryErrorKind {
        match self {
            Self::Syntax(_)
            | Self::Refused(_)
            | Self::UnknownTable(_)
            | Self::UnknownColumn(_)
            | Self::NoSnapshot(_)
            | Self::Invalid(_)
            | Self::NoCluster
            | Self::File(_) => QueryErrorKind::Usage,
            Self::Corrupt(_) => QueryErrorKind::Corrupt,
            Self::Catalog(error) => match error.kind() {
                CatalogErrorKind::Transient => QueryErrorKind::Transient,
                CatalogErrorKind::Corrupt => QueryErrorKind::Corrupt,
                CatalogErrorKind::Invalid | CatalogErrorKind::NotFound => QueryErrorKind::Usage,
                CatalogErrorKind::Unauthorized | CatalogErrorKind::Unknown => QueryErrorKind::Other,
            },
            Self::Table(error) => match error.kind() {
                ArchiveErrorKind::Transient => QueryErrorKind::Transient,
                ArchiveErrorKind::Corrupt => QueryErrorKind::Corrupt,
                ArchiveErrorKind::Invalid => QueryErrorKind::Usage,
                _ => QueryErrorKind::Other,
            },
            Self::Live(error) => match error.exit_status() {
                2 => QueryErrorKind::Usage,
                3 => QueryErrorKind::Gap,
                4 => QueryErrorKind::Corrupt,
                _ => QueryErrorKind::Other,
            },
            Self::Limit(_) | Self::Cancelled | Self::Unsupported(_) | Self::Failed(_) => {
                QueryErrorKind::Other
            }
        }
    }
}

/// An error and what lies below it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        below = error.source();
    }
    one_line(&text)
}

/// Bytes of a message from elsewhere that are shown: it may repeat a whole statement.
const SHOWN_BYTES: usize = 1_200;

/// Without line breaks, so that who reads lines reads one error per line; not longer than anybody reads.
pub(crate) fn one_line(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_whitespace() {
        if out.len() + word.len() > SHOWN_BYTES {
            let left = SHOWN_BYTES.saturating_sub(out.len());
            let end = (0..=left.min(word.len()))
                .rev()
                .find(|at| word.is_char_boundary(*at));
            if !out.is_empty() {
                out.push(' ');
            }
            out.push_str(&word[..end.unwrap_or(0)]);
            out.push('…');
            return out;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

impl From<CatalogError> for QueryError {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(error)
    }
}

impl From<ArchiveError> for QueryError {
    fn from(error: ArchiveError) -> Self {
        Self::Table(error)
    }
}

impl From<QueryError> for DataFusionError {
    fn from(error: QueryError) -> Self {
        Self::External(Box::new(error))
    }
}
