//! `NAME$live`: an archive, and Kafka's tail from exactly its ledger.

use std::sync::Arc;

use datafusion::catalog::TableProvider;

use crate::table::LakeTable;
use crate::{Lake, QueryError};

/// The archive's newest snapshot with what Kafka holds beyond it, up to its end now.
pub(crate) async fn over(
    lake: &Lake,
    table: Arc<LakeTable>,
) -> Result<Arc<dyn TableProvider>, QueryError> {
    let _ = table;
    match lake.log {
        Some(_) => Err(QueryError::Refused("the live tail is not there yet".to_owned())),
        None => Err(QueryError::NoCluster),
    }
}
