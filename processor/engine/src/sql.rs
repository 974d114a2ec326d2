//! From SQL text to a checked query: what is understood, what is refused, and why.

mod flink;
pub(crate) mod functions;
mod plan;
mod text;
mod translate;

pub use flink::Flink;
pub(crate) use flink::{Program, sql_type};
pub(crate) use plan::{
    EDGE_END, EDGE_ROWTIME, EDGE_START, GENERATION, OFFSET, PARTITION, Planned, TIMESTAMP,
    Windowed, plan,
};
pub(crate) use text::Dedup;

use std::fmt;

/// Why a query is not run, and what to do instead. One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong, and where.
    pub reason: String,
    /// What to do, or how Flink does it.
    pub instead: Option<String>,
}

impl Refusal {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: one_line(&reason.into()),
            instead: None,
        }
    }

    pub(crate) fn instead(mut self, instead: impl Into<String>) -> Self {
        self.instead = Some(one_line(&instead.into()));
        self
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the query is refused: {}", self.reason)?;
        match &self.instead {
            Some(instead) => write!(f, "; {instead}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<datafusion::common::DataFusionError> for Refusal {
    fn from(error: datafusion::common::DataFusionError) -> Self {
        let mut text = error.strip_backtrace();
        for noise in [
            "Error during planning: ",
            "Schema error: ",
            "SQL error: ",
            "type_coercion caused by ",
        ] {
            text = text.replace(noise, "");
        }
        Refusal::new(text)
    }
}
