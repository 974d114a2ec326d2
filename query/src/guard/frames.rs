//! Windows in the order of bytes. What a RANGE of them is, DataFusion does not say, since nothing can be added to bytes; with
//! neither bound so many away, it is a frame of GROUPS, which it has.

use arrow_schema::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result as PlanResult, ScalarValue};
use datafusion::logical_expr::{
    Expr, ExprSchemable, WindowFrame, WindowFrameBound, WindowFrameUnits,
};

use crate::sql_types::is_bytes;

/// The same expression, its frame one of groups where it is a range of bytes.
pub(super) fn in_groups(expr: Expr, schema: &DFSchema) -> PlanResult<Transformed<Expr>> {
    let Expr::WindowFunction(mut function) = expr else {
        return Ok(Transformed::no(expr));
    };
    let params = &mut function.params;
    let by_bytes = params.order_by.iter().any(|by| {
        let of = by.expr.get_type(schema);
        of.is_ok_and(|of: DataType| is_bytes(&of))
    });
    let frame = &params.window_frame;
    let is_plain = |bound: &WindowFrameBound| match bound {
        WindowFrameBound::CurrentRow => true,
        WindowFrameBound::Preceding(by) | WindowFrameBound::Following(by) => by.is_null(),
    };
    let changes = by_bytes
        && frame.units == WindowFrameUnits::Range
        && is_plain(&frame.start_bound)
        && is_plain(&frame.end_bound);
    if changes {
        params.window_frame = WindowFrame::new_bounds(
            WindowFrameUnits::Groups,
            as_count(&frame.start_bound),
            as_count(&frame.end_bound),
        );
    }
    Ok(Transformed::new_transformed(
        Expr::WindowFunction(function),
        changes,
    ))
}

/// The same bound, its "unbounded" of the type that groups are counted in.
fn as_count(bound: &WindowFrameBound) -> WindowFrameBound {
    let all = ScalarValue::UInt64(None);
    match bound {
        WindowFrameBound::CurrentRow => WindowFrameBound::CurrentRow,
        WindowFrameBound::Preceding(_) => WindowFrameBound::Preceding(all),
        WindowFrameBound::Following(_) => WindowFrameBound::Following(all),
    }
}
