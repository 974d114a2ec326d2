//! What is compared with what.
//!
//! * A number and a text are not: DataFusion would compare both as text, by which 9 is more than 10.
//! * A time of a table and one of the statement are compared as the table has it, in microseconds: DataFusion would turn both into
//!   nanoseconds, which end in 2262, so that `< '9999-12-31'` would end the query, and so would one record from the far future.
//! * A decimal and a number with a point are compared as decimals, the number being what is written: DataFusion would turn both into
//!   doubles, of which many decimals have one.

use std::sync::Arc;

use arrow_cast::parse::string_to_datetime;
use arrow_schema::{DECIMAL128_MAX_PRECISION, DataType, TimeUnit};
use chrono::{DateTime, Utc};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result as PlanResult, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, InList, InSubquery};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Between, Case, Cast, Expr, ExprSchemable, LogicalPlan, Operator};

use crate::QueryError;
use crate::sql_types::{is_text, is_utc, name};

/// Refuses comparisons of numbers with text.
pub(super) fn check(plan: &LogicalPlan) -> Result<(), QueryError> {
    let mut wrong = None;
    let visited = plan.apply_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        if let LogicalPlan::Join(join) = node {
            for (left, right) in &join.on {
                wrong = wrong.take().or_else(|| mixed(left, right, &schema));
            }
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                wrong = wrong.take().or_else(|| of_expr(expr, &schema));
                Ok(if wrong.is_some() {
                    TreeNodeRecursion::Stop
                } else {
                    TreeNodeRecursion::Continue
                })
            })
        })
    });
    match (wrong, visited) {
        (Some(what), _) => Err(QueryError::Invalid(what)),
        (None, Err(error)) => Err(QueryError::of(error)),
        (None, Ok(_)) => Ok(()),
    }
}

/// What an expression compares that is not to be compared.
fn of_expr(expr: &Expr, schema: &DFSchema) -> Option<String> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(*op) => {
            mixed(left, right, schema)
        }
        Expr::Between(Between {
            expr, low, high, ..
        }) => mixed(expr, low, schema).or_else(|| mixed(expr, high, schema)),
        Expr::InList(InList { expr, list, .. }) => {
            list.iter().find_map(|item| mixed(expr, item, schema))
        }
        Expr::InSubquery(InSubquery { expr, subquery, .. }) => {
            let of = subquery.subquery.schema().fields().first()?.data_type();
            mixed_types(expr, &expr.get_type(schema).ok()?, of)
        }
        Expr::Case(Case {
            expr: Some(expr),
            when_then_expr,
            ..
        }) => when_then_expr
            .iter()
            .find_map(|(when, _)| mixed(expr, when, schema)),
        _ => None,
    }
}

const fn is_comparison(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

fn mixed(left: &Expr, right: &Expr, schema: &DFSchema) -> Option<String> {
    let (of_left, of_right) = (left.get_type(schema).ok()?, right.get_type(schema).ok()?);
    if is_text(&of_left) {
        return mixed_types(right, &of_right, &of_left);
    }
    mixed_types(left, &of_left, &of_right)
}

fn mixed_types(number: &Expr, of: &DataType, other: &DataType) -> Option<String> {
    (of.is_numeric() && is_text(other)).then(|| {
        let called = match number {
            Expr::Column(column) => column.name.clone(),
            other => other.human_display().to_string(),
        };
        format!(
            "{called} is {}, and is compared with text: write the number without quotes, or CAST the text to {}",
            name(of),
            name(of)
        )
    })
}

/// The same expression, times of tables compared in microseconds, and decimals as such.
pub(super) fn as_meant(expr: Expr, schema: &DFSchema) -> PlanResult<Transformed<Expr>> {
    Ok(match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(op) => {
            let at_left = as_compared(&right, &left, schema);
            let at_right = as_compared(&left, &right, schema);
            let changed = at_left.is_some() || at_right.is_some();
            let binary = BinaryExpr {
                left: at_left.map_or(left, Box::new),
                op,
                right: at_right.map_or(right, Box::new),
            };
            Transformed::new_transformed(Expr::BinaryExpr(binary), changed)
        }
        Expr::Between(between) => {
            let low = as_compared(&between.expr, &between.low, schema);
            let high = as_compared(&between.expr, &between.high, schema);
            match (low, high) {
                // both or none: else they would be brought to nanoseconds again
                (Some(low), Some(high)) => Transformed::yes(Expr::Between(Between {
                    low: Box::new(low),
                    high: Box::new(high),
                    ..between
                })),
                _ => Transformed::no(Expr::Between(between)),
            }
        }
        Expr::InList(list) => {
            let items = list.list.iter();
            let items = items.map(|item| as_compared(&list.expr, item, schema));
            match items.collect::<Option<Vec<Expr>>>() {
                Some(items) => Transformed::yes(Expr::InList(InList {
                    list: items,
                    ..list
                })),
                None => Transformed::no(Expr::InList(list)),
            }
        }
        other => Transformed::no(other),
    })
}

/// A constant as one of the kind that it is compared with; none: there is none, or it is that already.
fn as_compared(with: &Expr, constant: &Expr, schema: &DFSchema) -> Option<Expr> {
    match with.get_type(schema).ok()? {
        DataType::Timestamp(TimeUnit::Microsecond, zone) => as_microseconds(constant, zone),
        DataType::Decimal128(..) => as_decimal(constant),
        _ => None,
    }
}

fn as_microseconds(constant: &Expr, zone: Option<Arc<str>>) -> Option<Expr> {
    if zone.as_deref().is_some_and(|zone| !is_utc(zone)) {
        return None;
    }
    let moment = moment_of(constant)?;
    if moment.timestamp_subsec_nanos() % 1_000 != 0 {
        return None;
    }
    let value = ScalarValue::TimestampMicrosecond(Some(moment.timestamp_micros()), zone);
    Some(Expr::Literal(value, None))
}

/// The decimal that a number is written as. The shortest text of a double is what was written, up to 15 digits, and as near as can be
/// told beyond.
fn as_decimal(constant: &Expr) -> Option<Expr> {
    let (number, sign) = match constant {
        Expr::Negative(number) => (number.as_ref(), -1),
        number => (number, 1),
    };
    let number = match number {
        Expr::Literal(ScalarValue::Float64(Some(number)), _) if number.is_finite() => number,
        // a whole number is compared as a decimal anyway
        Expr::Literal(value, _) if value.data_type().is_integer() => return Some(constant.clone()),
        _ => return None,
    };
    let text = number.to_string();
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let value: i128 = format!("{whole}{part}").parse().ok()?;
    let digits = value.unsigned_abs().checked_ilog10().unwrap_or(0) + 1;
    let scale = u8::try_from(part.len()).ok()?;
    let precision = u8::try_from(digits).ok()?.max(scale);
    if precision > DECIMAL128_MAX_PRECISION {
        return None;
    }
    let scale = i8::try_from(scale).ok()?;
    let decimal = ScalarValue::Decimal128(Some(value * sign), precision, scale);
    Some(Expr::Literal(decimal, None))
}

/// The moment that a text of the statement says, by itself, as TIMESTAMP or as DATE; UTC where it says no zone.
fn moment_of(expr: &Expr) -> Option<DateTime<Utc>> {
    let (text, is_date) = match expr {
        Expr::Literal(value, _) => (value, false),
        Expr::Cast(Cast { expr, data_type }) => match (expr.as_ref(), data_type) {
            (
                Expr::Literal(value, _),
                DataType::Timestamp(TimeUnit::Nanosecond | TimeUnit::Microsecond, zone),
            ) if zone.as_deref().is_none_or(is_utc) => (value, false),
            (Expr::Literal(value, _), DataType::Date32) => (value, true),
            _ => return None,
        },
        _ => return None,
    };
    let (ScalarValue::Utf8(Some(text))
    | ScalarValue::LargeUtf8(Some(text))
    | ScalarValue::Utf8View(Some(text))) = text
    else {
        return None;
    };
    if is_date {
        let date: chrono::NaiveDate = text.trim().parse().ok()?;
        return Some(date.and_time(chrono::NaiveTime::MIN).and_utc());
    }
    string_to_datetime(&Utc, text).ok()
}
