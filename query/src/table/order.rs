//! `ORDER BY partition, offset` without a sort, where the files' own order gives it.
//!
//! Rows of a file that everlog wrote ascend by (generation, partition, offset). Files whose bounds do not overlap make a chain
//! that ascends as a whole; chains are merged. This rule looks at sorts that stand on a scan: if chains are few enough, the
//! scan is cut into chains and says what order it has. The rules that follow then see that the sort is not needed, and put a
//! merge in its place. Scans that nobody wants sorted stay cut for speed.

use std::sync::Arc;

use datafusion::common::Result as PlanResult;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::ExecutionPlanProperties;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use everlog_table::files::PlannedFile;

use super::STORE;

/// More chains than this are not read at once: each holds a row group of the columns that are needed.
const CHAINS_MAX: usize = 32;

/// The rule.
#[derive(Debug, Default)]
pub(crate) struct LakeOrder;

impl PhysicalOptimizerRule for LakeOrder {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        plan.transform_down(|plan| {
            let Some(sort) = plan.as_any().downcast_ref::<SortExec>() else {
                return Ok(Transformed::no(plan));
            };
            let Some(input) = in_order(sort.input())? else {
                return Ok(Transformed::no(plan));
            };
            let wanted = sort.expr().iter().cloned();
            if !input.equivalence_properties().ordering_satisfy(wanted)? {
                return Ok(Transformed::no(plan));
            }
            Ok(Transformed::yes(plan.with_new_children(vec![input])?))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "lake_order"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The same plan on a scan in chains; none where it stands on something else, or the chains would be too many.
fn in_order(plan: &Arc<dyn ExecutionPlan>) -> PlanResult<Option<Arc<dyn ExecutionPlan>>> {
    let any = plan.as_any();
    if any.is::<ProjectionExec>() || any.is::<FilterExec>() {
        let [child] = plan.children()[..] else {
            return Ok(None);
        };
        let Some(child) = in_order(child)? else {
            return Ok(None);
        };
        return Ok(Some(Arc::clone(plan).with_new_children(vec![child])?));
    }
    let Some(scan) = any.downcast_ref::<DataSourceExec>() else {
        return Ok(None);
    };
    let Some(config) = scan.data_source().as_any().downcast_ref::<FileScanConfig>() else {
        return Ok(None);
    };
    let Some(chained) = chained(config) else {
        return Ok(None);
    };
    Ok(Some(DataSourceExec::from_data_source(chained)))
}

fn chained(config: &FileScanConfig) -> Option<FileScanConfig> {
    if config.object_store_url.as_str().trim_end_matches('/') != STORE.trim_end_matches('/') {
        return None;
    }
    let mut files = Vec::new();
    let mut columns = None;
    for file in config.file_groups.iter().flat_map(FileGroup::iter) {
        let sorted = file.extensions.as_ref()?.downcast_ref::<Sorted>()?;
        columns = Some(sorted.columns);
        files.push((sorted.key, file.clone()));
    }
    let [generation, partition, offset] = columns?;
    files.sort_by_key(|(key, _)| *key);
    let one_era = {
        let first = files.first()?.0.first.0;
        files
            .iter()
            .all(|(key, _)| key.first.0 == first && key.last.0 == first)
    };
    let mut chains: Vec<(Key, Vec<_>)> = Vec::new();
    for (key, file) in files {
        if let Some((end, chain)) = chains.iter_mut().find(|(end, _)| end.last < key.first) {
            *end = key;
            chain.push(file);
        } else if chains.len() == CHAINS_MAX {
            return None;
        } else {
            chains.push((key, vec![file]));
        }
    }
    let schema = config.file_schema();
    let ascending = |place: usize| {
        let column = Column::new(schema.field(place).name(), place);
        PhysicalSortExpr::new_default(Arc::new(column))
            .asc()
            .nulls_last()
    };
    let mut orders = Vec::new();
    orders.extend(LexOrdering::new(
        [generation, partition, offset].map(ascending),
    ));
    if one_era {
        orders.extend(LexOrdering::new([partition, offset].map(ascending)));
    }
    let groups = chains.into_iter().map(|(_, chain)| FileGroup::new(chain));
    Some(
        FileScanConfigBuilder::from(config.clone())
            .with_file_groups(groups.collect())
            .with_output_ordering(orders)
            .build(),
    )
}

/// A file whose rows ascend by (generation, partition, offset): what a plan's part carries for this rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sorted {
    /// Places of the three among the table's columns.
    columns: [usize; 3],
    key: Key,
}

impl Sorted {
    /// None where nothing is known of the file, or its rows may be in any order.
    pub(super) fn of(file: &PlannedFile, columns: [usize; 3]) -> Option<Self> {
        Key::of(file).map(|key| Self { columns, key })
    }
}

/// Between which rows a file lies, each column's bounds by itself: (generation, partition, offset).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    first: (u32, i32, i64),
    last: (u32, i32, i64),
}

impl Key {
    /// None where nothing is known of the file, or its rows may be in any order.
    fn of(file: &PlannedFile) -> Option<Self> {
        if !super::facts::is_own(&file.path) {
            return None;
        }
        let bounds = file.bounds.as_ref()?;
        Some(Self {
            first: (
                bounds.generation.0.0,
                bounds.partition.0.get(),
                bounds.offset.0.get(),
            ),
            last: (
                bounds.generation.1.0,
                bounds.partition.1.get(),
                bounds.offset.1.get(),
            ),
        })
    }
}
