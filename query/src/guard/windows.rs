//! What DataFusion's operators leave open: windows that hold all of their input count nothing of it, and operators that make
//! many rows of few do not yield. What goes into the first is counted here, against the session's memory, until the query
//! ends; the second yield with each batch.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use datafusion::common::Result as PlanResult;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::WindowAggExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use futures::StreamExt;

/// Puts a [`Counted`] below each window that holds its input. To be the last rule but for the checks.
#[derive(Debug)]
pub(crate) struct CountWindows;

impl PhysicalOptimizerRule for CountWindows {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let Some(window) = plan.as_any().downcast_ref::<WindowAggExec>() else {
                return Ok(Transformed::no(plan));
            };
            let input: Arc<dyn ExecutionPlan> = Arc::new(Counted {
                input: Arc::clone(window.input()),
            });
            Ok(Transformed::yes(plan.with_new_children(vec![input])?))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "count_windows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Operators that make many rows of few: their input is at its end, or in memory, long before they are, and where it is
/// nobody polls what yields.
const MULTIPLIERS: [&str; 8] = [
    "CrossJoinExec",
    "NestedLoopJoinExec",
    "HashJoinExec",
    "SortMergeJoinExec",
    "SymmetricHashJoinExec",
    "PiecewiseMergeJoinExec",
    "UnnestExec",
    "RecursiveQueryExec",
];

/// Has each of them yield with its batches, so that a query that is cancelled ends.
#[derive(Debug)]
pub(crate) struct Yielding;

impl PhysicalOptimizerRule for Yielding {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            if MULTIPLIERS.contains(&plan.name()) {
                return Ok(Transformed::yes(
                    Arc::new(CooperativeExec::new(plan)) as Arc<dyn ExecutionPlan>
                ));
            }
            Ok(Transformed::no(plan))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "yielding"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Lets batches through, and counts them.
#[derive(Debug)]
struct Counted {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for Counted {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CountedExec")
    }
}

impl ExecutionPlan for Counted {
    fn name(&self) -> &'static str {
        "CountedExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
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
        Ok(Arc::new(Self { input }))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> PlanResult<SendableRecordBatchStream> {
        debug_assert!(partition < self.input.output_partitioning().partition_count());
        let held =
            MemoryConsumer::new(format!("Window[{partition}]")).register(context.memory_pool());
        let schema = self.input.schema();
        let input = self.input.execute(partition, context)?;
        let counted = futures::stream::unfold((input, held), |(mut input, held)| async move {
            let next = match input.next().await? {
                Ok(batch) => held.try_grow(batch.get_array_memory_size()).map(|()| batch),
                Err(error) => Err(error),
            };
            Some((next, (input, held)))
        });
        // The reservation lives as long as the stream, which the window holds until it is done.
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, counted)))
    }
}
