//! DataFusion's Parquet source, but for filters on lists and structs, and those that bounds say nothing of.
//!
//! The source says of a filter that it takes it over by the table's columns, and then leaves out, file by file and without a
//! word, what it cannot evaluate while decoding. Of plain columns it can evaluate everything; of lists it cannot where a file
//! has them in another form than the table (other names inside, another writer). So filters on nested columns stay where they
//! are: above the scan. So do filters with a conversion in them that does not keep the order of values: row groups would be
//! passed over by what their lowest and highest value are converted to.

use std::any::Any;
use std::fmt::{self, Formatter};
use std::sync::Arc;

use datafusion::common::Result as PlanResult;
use datafusion::common::config::ConfigOptions;
use datafusion::datasource::physical_plan::{FileOpener, FileScanConfig, FileSource};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::object_store::ObjectStore;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::filter_pushdown::{FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::{DisplayFormatType, SortOrderPushdownResult};

use super::casts::keeps_order;

/// See the module.
pub(super) struct LakeSource {
    inner: Arc<dyn FileSource>,
}

impl LakeSource {
    pub(super) fn over(inner: Arc<dyn FileSource>) -> Arc<dyn FileSource> {
        Arc::new(Self { inner })
    }

    fn is_plain(&self, filter: &Arc<dyn PhysicalExpr>) -> bool {
        let schema = self.inner.table_schema().table_schema();
        let flat = collect_columns(filter).iter().all(|column| {
            let field = schema.fields().get(column.index());
            field.is_some_and(|field| !field.data_type().is_nested())
        });
        flat && keeps_order(filter, schema)
    }
}

impl FileSource for LakeSource {
    fn create_file_opener(
        &self,
        object_store: Arc<dyn ObjectStore>,
        base_config: &FileScanConfig,
        partition: usize,
    ) -> PlanResult<Arc<dyn FileOpener>> {
        // With a limit the source would read those row groups alone of which it believes that all rows pass, whatever
        // comes before them in order, and it believes so of rows that have no value, too.
        let mut config = base_config.clone();
        config.preserve_order = true;
        self.inner
            .create_file_opener(object_store, &config, partition)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn table_schema(&self) -> &TableSchema {
        self.inner.table_schema()
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        Self::over(self.inner.with_batch_size(batch_size))
    }

    fn filter(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.inner.filter()
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        self.inner.projection()
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        self.inner.metrics()
    }

    fn file_type(&self) -> &str {
        self.inner.file_type()
    }

    fn fmt_extra(&self, t: DisplayFormatType, f: &mut Formatter<'_>) -> fmt::Result {
        self.inner.fmt_extra(t, f)
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        config: &ConfigOptions,
    ) -> PlanResult<FilterPushdownPropagation<Arc<dyn FileSource>>> {
        let plain: Vec<bool> = filters.iter().map(|filter| self.is_plain(filter)).collect();
        let offered = filters.into_iter().zip(&plain).filter(|(_, plain)| **plain);
        let offered = offered.map(|(filter, _)| filter).collect();
        let taken = self.inner.try_pushdown_filters(offered, config)?;
        let mut answers = taken.filters.into_iter();
        let filters = plain.into_iter().map(|plain| {
            let answer = if plain { answers.next() } else { None };
            answer.unwrap_or(PushedDown::No)
        });
        Ok(FilterPushdownPropagation {
            filters: filters.collect(),
            updated_node: taken.updated_node.map(Self::over),
        })
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
        eq_properties: &EquivalenceProperties,
    ) -> PlanResult<SortOrderPushdownResult<Arc<dyn FileSource>>> {
        Ok(match self.inner.try_pushdown_sort(order, eq_properties)? {
            // Its sort is dropped with the limit that it may have: it stays.
            SortOrderPushdownResult::Exact { .. } | SortOrderPushdownResult::Unsupported => {
                SortOrderPushdownResult::Unsupported
            }
            SortOrderPushdownResult::Inexact { inner } => SortOrderPushdownResult::Inexact {
                inner: Self::over(inner),
            },
        })
    }

    fn try_pushdown_projection(
        &self,
        projection: &ProjectionExprs,
    ) -> PlanResult<Option<Arc<dyn FileSource>>> {
        let pushed = self.inner.try_pushdown_projection(projection)?;
        Ok(pushed.map(Self::over))
    }
}
