//! Values as columns: the view `NAME_v` on the archive `NAME`.
//!
//! ```text
//!   archive's scan ──► Kafka's columns and value ──► DecodeExec ──► Kafka's columns · the wanted columns of the value · _error
//!                      filters on Kafka's columns      └─ everlog-decode, the schemas of a registry
//!                      and limits go down to it
//! ```
//!
//! - [`TopicValues`]: what the configuration and the registry say of topics; the [`Values`] of a session
//! - `columns`: what the view's columns are and are called
//! - `asking`: requests to the registry
//! - `view`, `exec`: the view as a table of DataFusion's, and the plan that decodes
//!
//! Guarantees
//! - Values are decoded when a column of theirs is asked for, and only those columns.
//! - A value that cannot be decoded never ends a query: its columns are null, and `_error` says why.
//! - A column's value depends on the record and the column alone, not on what else a query asks for.
//!
//! A table of the namespace that is itself called `NAME_v` goes before the view.

mod asking;
mod columns;
mod exec;
mod topics;
mod view;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use everlog_common::TopicName;

use crate::QueryError;

pub use columns::{KAFKA_COLUMNS, column_names};
pub use topics::{SchemaChoice, TopicFormat, TopicValues};

/// How the values of topics are decoded.
#[async_trait]
pub trait Values: Send + Sync + Debug {
    /// Finds out what only a registry knows: which topics it has schemas of. Asked before views are listed, and before one is
    /// looked for that [`Values::of`] does not know; an error is the registry's, and leaves what the configuration says.
    async fn find(&self) -> Result<(), QueryError> {
        Ok(())
    }

    /// The view on a topic's archive; none where nobody said what its values are.
    fn of(&self, topic: &TopicName) -> Option<Arc<dyn ValueView>>;
}

/// A way to see an archive's values as columns.
#[async_trait]
pub trait ValueView: Send + Sync + Debug {
    /// The view over an archive's table, at the moment that the table is of. The table's columns are called as
    /// docs/table-format.md calls them.
    async fn over(
        &self,
        table: Arc<dyn TableProvider>,
    ) -> Result<Arc<dyn TableProvider>, QueryError>;
}

/// No views.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoValues;

impl Values for NoValues {
    fn of(&self, _: &TopicName) -> Option<Arc<dyn ValueView>> {
        None
    }
}
