//! A pinned snapshot as a table of DataFusion's.

use arrow_schema::SchemaRef;
use everlog_common::{Ledger, TopicName};

/// A table at one snapshot: an archive's, a job's, or another one of the namespace.
///
/// It is a [`datafusion::catalog::TableProvider`]: its `scan` is an execution plan over exactly that snapshot's files.
#[derive(Debug)]
pub struct LakeTable {
    schema: SchemaRef,
    topic: Option<TopicName>,
    ledger: Option<Ledger>,
}

impl LakeTable {
    /// Its columns: strings and bytes as Arrow views, times in microseconds UTC.
    pub fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }

    /// Whose archive it is; none of other tables.
    pub fn topic(&self) -> Option<&TopicName> {
        self.topic.as_ref()
    }

    /// What the snapshot holds, of archives: its cut is where Kafka goes on.
    pub fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }
}
