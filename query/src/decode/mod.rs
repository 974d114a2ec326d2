//! Values as columns: which archives have a view `NAME_v`, and what its columns are.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use everlog_common::TopicName;

use crate::QueryError;
use crate::table::LakeTable;

/// How the values of topics are decoded.
pub trait Values: Send + Sync + Debug {
    /// The view on a topic's archive; none where nobody said what its values are.
    fn of(&self, topic: &TopicName) -> Option<Arc<dyn ValueView>>;
}

/// A way to see an archive's values as columns.
#[async_trait]
pub trait ValueView: Send + Sync + Debug {
    /// The view over an archive's table, at the moment that the table is of.
    async fn over(&self, table: Arc<LakeTable>) -> Result<Arc<dyn TableProvider>, QueryError>;
}

/// No views.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoValues;

impl Values for NoValues {
    fn of(&self, _: &TopicName) -> Option<Arc<dyn ValueView>> {
        None
    }
}
