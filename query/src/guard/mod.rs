//! What is let through: one statement that reads, of a bounded size, over tables that were named.
//!
//! ```text
//!   text ─► tokens ─► statement ─► names ─► logical plan ─► run
//!        length    allow-list   tables     allow-list     memory, disk, time, rows
//! ```
//!
//! * Twice an allow-list: on the parsed statement, and on the plan that came of it. What neither knows is refused.
//! * Nothing runs on a thread with a small stack: parsing, planning and running go on the session's own threads.
//! * What is compared is of one kind, and times and decimals are compared as tables have them.
//! * Functions whose results can be of any size take only so much.

mod comparisons;
mod dialect;
mod frames;
mod functions;
mod memory;
mod sorts;
mod statement;
mod subqueries;
mod windows;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan};

pub(crate) use dialect::LakeDialect;
pub(crate) use functions::bounded;
pub(crate) use memory::Shares;
pub(crate) use sorts::SortKeys;
pub(crate) use statement::{Asked, Named, Parsed, parse};
pub(crate) use windows::{CountWindows, Yielding};

use crate::QueryError;

/// What only reads.
pub(crate) const READ_ONLY: &str = "everlog sql only reads: SELECT, WITH, VALUES, EXPLAIN, SHOW TABLES, SHOW COLUMNS FROM t, DESCRIBE t";

/// The plan that a statement asked for, if it only reads, and as it was meant.
pub(crate) fn allowed(plan: LogicalPlan) -> Result<LogicalPlan, QueryError> {
    check_plan(&plan)?;
    comparisons::check(&plan)?;
    meant(plan)
}

/// The plan, its expressions as the statement means them.
fn meant(plan: LogicalPlan) -> Result<LogicalPlan, QueryError> {
    let rewritten = plan.transform_up_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        let names = NamePreserver::new(&node);
        node.map_expressions(|expr| {
            let saved = names.save(&expr);
            let rewritten = expr.transform_up(|expr| {
                comparisons::as_meant(expr, &schema)?
                    .transform_data(subqueries::of_one_row)?
                    .transform_data(|expr| frames::in_groups(expr, &schema))
            })?;
            Ok(rewritten.update_data(|expr| saved.restore(expr)))
        })
    });
    rewritten.map(|plan| plan.data).map_err(QueryError::of)
}

/// Refuses plans that do anything but read.
fn check_plan(plan: &LogicalPlan) -> Result<(), QueryError> {
    let mut refused = None;
    let visited = plan.apply_with_subqueries(|node| {
        let what = match node {
            LogicalPlan::Window(window) if window.window_expr.iter().any(collects) => {
                "a list or a text of all rows for each row is as large as their square (GROUP BY and join it instead)"
            }
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::Repartition(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::TableScan(_)
            | LogicalPlan::EmptyRelation(_)
            | LogicalPlan::Subquery(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::Values(_)
            | LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::RecursiveQuery(_) => return Ok(TreeNodeRecursion::Continue),
            LogicalPlan::Statement(_) => "it changes the session",
            LogicalPlan::Extension(_) => "it has a part that is not known here",
            LogicalPlan::DescribeTable(_) => "it is no query",
            LogicalPlan::Dml(_) => "it changes rows",
            LogicalPlan::Ddl(_) => "it changes tables",
            LogicalPlan::Copy(_) => "it writes a file",
        };
        refused = Some(what);
        Ok(TreeNodeRecursion::Stop)
    });
    if let Err(error) = visited {
        return Err(QueryError::of(error));
    }
    match refused {
        None => Ok(()),
        Some(what) => Err(QueryError::Refused(format!(
            "the statement is refused, for {what}; {READ_ONLY}"
        ))),
    }
}

/// Whether a window gives each row a value that grows with the window.
fn collects(expr: &Expr) -> bool {
    let mut found = false;
    let visited = expr.apply(|expr| {
        if let Expr::WindowFunction(function) = expr {
            let name = function.fun.name();
            found |= matches!(name, "array_agg" | "string_agg" | "listagg");
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found || visited.is_err()
}
