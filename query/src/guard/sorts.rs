//! Sorts by expressions, as sorts by columns.
//!
//! A sort holds the rows that it is given, evaluates its keys from them, and does so again when it merges; how much memory the
//! merge needs it guesses from the rows. Keys that are larger than the columns they are made of break that guess. As columns
//! they are evaluated once, counted, and spilled with their rows.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use datafusion::common::Result as PlanResult;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};

/// Puts the keys of sorts into columns. Sorts that keep their first rows alone hold few, and stay as they are.
#[derive(Debug)]
pub(crate) struct SortKeys;

impl PhysicalOptimizerRule for SortKeys {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let Some(sort) = plan.as_any().downcast_ref::<SortExec>() else {
                return Ok(Transformed::no(plan));
            };
            Ok(match by_columns(sort)? {
                Some(sort) => Transformed::yes(sort),
                None => Transformed::no(plan),
            })
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "sort_keys"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn is_column(expr: &Arc<dyn PhysicalExpr>) -> bool {
    expr.as_any().is::<Column>()
}

/// The same sort by columns; none: it is one.
fn by_columns(sort: &SortExec) -> PlanResult<Option<Arc<dyn ExecutionPlan>>> {
    if sort.fetch().is_some() || sort.expr().iter().all(|key| is_column(&key.expr)) {
        return Ok(None);
    }
    let schema = sort.schema();
    let kept: Vec<ProjectionExpr> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(place, field)| ProjectionExpr {
            expr: Arc::new(Column::new(field.name(), place)),
            alias: field.name().clone(),
        })
        .collect();
    let mut columns = kept.clone();
    let mut keys = Vec::with_capacity(sort.expr().len());
    for key in sort.expr() {
        if is_column(&key.expr) {
            keys.push(key.clone());
            continue;
        }
        let alias = format!("sort key {}", keys.len());
        let column = Column::new(&alias, columns.len());
        keys.push(PhysicalSortExpr::new(Arc::new(column), key.options));
        columns.push(ProjectionExpr {
            expr: Arc::clone(&key.expr),
            alias,
        });
    }
    let Some(keys) = LexOrdering::new(keys) else {
        return Ok(None);
    };
    let with_keys = ProjectionExec::try_new(columns, Arc::clone(sort.input()))?;
    let sorted = SortExec::new(keys, Arc::new(with_keys))
        .with_preserve_partitioning(sort.preserve_partitioning());
    Ok(Some(Arc::new(Sorted {
        input: Arc::new(ProjectionExec::try_new(kept, Arc::new(sorted))?),
        properties: Arc::clone(sort.properties()),
    })))
}

/// What it lets through is in the order of the expressions, which cannot be seen any more from the columns that are left.
#[derive(Debug)]
struct Sorted {
    input: Arc<dyn ExecutionPlan>,
    /// Of the sort by expressions.
    properties: Arc<PlanProperties>,
}

impl DisplayAs for Sorted {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SortedExec")?;
        match self.properties.output_ordering() {
            Some(order) => write!(f, ": expr=[{order}]"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for Sorted {
    fn name(&self) -> &'static str {
        "SortedExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let input = children.pop().unwrap_or_else(|| Arc::clone(&self.input));
        Ok(Arc::new(Self {
            input,
            properties: Arc::clone(&self.properties),
        }))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> PlanResult<SendableRecordBatchStream> {
        debug_assert!(partition < self.input.output_partitioning().partition_count());
        self.input.execute(partition, context)
    }
}
