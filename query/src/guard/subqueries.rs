//! A query in the place of a value has one row at most: where it may have more, that is looked at while it runs. DataFusion would
//! give a row for each.

use std::any::Any;
use std::mem::size_of_val;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, Field, FieldRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::utils::take_function_args;
use datafusion::common::{Column, Result as PlanResult, ScalarValue, internal_err};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::expr::AggregateFunctionParams;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Expr, LogicalPlanBuilder, Signature, Subquery,
    Volatility,
};

use crate::QueryError;

/// The same expression, its rows counted where it is a query that may have several.
pub(super) fn of_one_row(expr: Expr) -> PlanResult<Transformed<Expr>> {
    let Expr::ScalarSubquery(subquery) = expr else {
        return Ok(Transformed::no(expr));
    };
    // of those that speak of the row around them, the planner wants an aggregate itself
    let is_one = subquery.subquery.max_rows().is_some_and(|rows| rows <= 1);
    if is_one || !subquery.outer_ref_columns.is_empty() {
        return Ok(Transformed::no(Expr::ScalarSubquery(subquery)));
    }
    let Subquery {
        subquery: plan,
        outer_ref_columns,
        spans,
    } = subquery;
    let schema = Arc::clone(plan.schema());
    let (qualifier, field) = schema.qualified_field(0);
    let column = Expr::Column(Column::from((qualifier, field.as_ref())));
    let only = Expr::AggregateFunction(AggregateFunction {
        func: Arc::new(AggregateUDF::new_from_impl(Only::default())),
        params: AggregateFunctionParams {
            args: vec![column],
            distinct: false,
            filter: None,
            order_by: Vec::new(),
            null_treatment: None,
        },
    });
    let plan = LogicalPlanBuilder::from(plan)
        .aggregate(Vec::<Expr>::new(), [only.alias(field.name())])?
        .build()?;
    Ok(Transformed::yes(Expr::ScalarSubquery(Subquery {
        subquery: Arc::new(plan),
        outer_ref_columns,
        spans,
    })))
}

/// The value of the only row; null where there is none, an error where there are several.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Only {
    signature: Signature,
}

impl Default for Only {
    fn default() -> Self {
        Self {
            signature: Signature::any(1, Volatility::Immutable),
        }
    }
}

impl AggregateUDFImpl for Only {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &'static str {
        "only_row"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> PlanResult<DataType> {
        let [of] = take_function_args(self.name(), types)?;
        Ok(of.clone())
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> PlanResult<Vec<FieldRef>> {
        let of = args.return_type().clone();
        Ok(vec![
            Arc::new(Field::new("rows", DataType::Int64, false)),
            Arc::new(Field::new("value", of, true)),
        ])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> PlanResult<Box<dyn Accumulator>> {
        Ok(Box::new(OnlyRow {
            rows: 0,
            value: ScalarValue::try_from(args.return_type())?,
        }))
    }
}

#[derive(Debug)]
struct OnlyRow {
    rows: i64,
    value: ScalarValue,
}

impl OnlyRow {
    fn take(&mut self, values: &ArrayRef, row: usize, rows: i64) -> PlanResult<()> {
        if rows > 0 && self.rows == 0 {
            self.value = ScalarValue::try_from_array(values, row)?;
            self.value.compact();
        }
        self.rows = self.rows.saturating_add(rows);
        if self.rows > 1 {
            return Err(QueryError::Invalid(
                "a query in the place of a value gave more than one row: add LIMIT 1, max(…), or compare with IN".to_owned(),
            )
            .into());
        }
        Ok(())
    }
}

impl Accumulator for OnlyRow {
    fn update_batch(&mut self, values: &[ArrayRef]) -> PlanResult<()> {
        let [values] = take_function_args("only_row", values)?;
        let rows = i64::try_from(values.len()).unwrap_or(i64::MAX);
        self.take(values, 0, rows)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> PlanResult<()> {
        let [rows, values] = take_function_args("only_row", states)?;
        let Some(rows) = rows.as_primitive_opt::<Int64Type>() else {
            return internal_err!("only_row counts rows");
        };
        (0..rows.len()).try_for_each(|row| self.take(values, row, rows.value(row)))
    }

    fn state(&mut self) -> PlanResult<Vec<ScalarValue>> {
        Ok(vec![
            ScalarValue::Int64(Some(self.rows)),
            self.value.clone(),
        ])
    }

    fn evaluate(&mut self) -> PlanResult<ScalarValue> {
        Ok(self.value.clone())
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.value.size()
    }
}
