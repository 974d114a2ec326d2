//! Conversions that keep the order of values. By bounds, a file or a row group may be passed over where its lowest and
//! highest value, converted like every other, say that no row passes a filter: that is right only if what lies between the two lies
//! between them once it is converted, too. The hour of a day does not.

use std::sync::Arc;

use arrow_schema::{DataType, Schema};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastColumnExpr, CastExpr, TryCastExpr};

use crate::sql_types::is_utc;

/// Whether all conversions in a filter keep the order of values, or are such that bounds are not used at all.
pub(super) fn keeps_order(filter: &Arc<dyn PhysicalExpr>, schema: &Schema) -> bool {
    let mut keeps = true;
    let walked = filter.apply(|expr| {
        let any = expr.as_any();
        let conversion = if let Some(cast) = any.downcast_ref::<CastExpr>() {
            Some((cast.expr(), cast.cast_type()))
        } else if let Some(cast) = any.downcast_ref::<TryCastExpr>() {
            Some((cast.expr(), cast.cast_type()))
        } else {
            let cast = any.downcast_ref::<CastColumnExpr>();
            cast.map(|cast| (cast.expr(), cast.target_field().data_type()))
        };
        if let Some((from, to)) = conversion {
            let from = from.data_type(schema)?;
            // between text and anything else, bounds are not used
            keeps &= from.is_string() != to.is_string() || is_monotone(&from, to);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.is_ok() && keeps
}

/// Whether of two values the greater one is, converted, never the lesser one.
fn is_monotone(from: &DataType, to: &DataType) -> bool {
    let is_utc = |zone: &Option<Arc<str>>| zone.as_deref().is_none_or(is_utc);
    match (from, to) {
        _ if from == to => true,
        // what does not fit is an error or null, not another number
        _ if from.is_integer() && to.is_numeric() => true,
        _ if from.is_string() && to.is_string() => true,
        (DataType::Float16 | DataType::Float32, DataType::Float32 | DataType::Float64)
        | (DataType::Date32, DataType::Date64)
        | (
            DataType::Binary | DataType::BinaryView | DataType::LargeBinary,
            DataType::Binary | DataType::BinaryView | DataType::LargeBinary,
        ) => true,
        // the same moment
        (DataType::Timestamp(_, Some(_)), DataType::Timestamp(_, Some(_)))
        | (DataType::Timestamp(_, None), DataType::Timestamp(_, None)) => true,
        (DataType::Timestamp(_, one), DataType::Timestamp(_, other)) => {
            is_utc(one) && is_utc(other)
        }
        (DataType::Timestamp(_, zone), DataType::Date32 | DataType::Date64)
        | (DataType::Date32 | DataType::Date64, DataType::Timestamp(_, zone)) => is_utc(zone),
        (DataType::Timestamp(..), DataType::Int64) | (DataType::Date32, DataType::Int32) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::{Field, TimeUnit};
    use datafusion::common::ScalarValue;
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{binary, cast, col, lit, try_cast};

    use super::*;

    #[test]
    fn bounds_are_used_through_conversions_that_keep_the_order_alone() {
        let micros =
            |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let nanos = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let time = DataType::Time64(TimeUnit::Microsecond);
        for (from, to, expected) in [
            (DataType::Int64, DataType::Int64, true),
            (DataType::Int32, DataType::Int64, true),
            (DataType::Int64, DataType::Float64, true),
            (DataType::Int64, DataType::Boolean, false),
            (DataType::Utf8View, DataType::Utf8, true),
            // not used by bounds at all
            (DataType::Int64, DataType::Utf8, true),
            (micros(Some("UTC")), nanos, true),
            (micros(Some("UTC")), micros(None), true),
            (micros(Some("Europe/Berlin")), micros(None), false),
            (micros(Some("UTC")), DataType::Date32, true),
            (micros(Some("Europe/Berlin")), DataType::Date32, false),
            (micros(Some("UTC")), time.clone(), false),
            (micros(None), time, false),
            (DataType::Float64, DataType::Int64, false),
        ] {
            let schema = Schema::new(vec![Field::new("c", from.clone(), true)]);
            let column = || col("c", &schema).unwrap();
            for converted in [
                cast(column(), &schema, to.clone()).unwrap(),
                try_cast(column(), &schema, to.clone()).unwrap(),
            ] {
                let null = lit(ScalarValue::try_from(&to).unwrap());
                let filter = binary(converted, Operator::Gt, null, &schema).unwrap();
                assert_eq!(keeps_order(&filter, &schema), expected, "{from} to {to}");
            }
        }
    }
}
