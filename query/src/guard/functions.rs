//! Functions whose results can be of any size, held to a size: memory that a function takes is counted by nobody, and what
//! cannot be had ends the process.

use std::any::Any;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef};
use arrow_cast::cast;
use arrow_schema::{DataType, FieldRef, TimeUnit};
use datafusion::common::{Result as PlanResult, ScalarValue};
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature,
};

use crate::QueryError;
use crate::sql_types::{is_bytes, is_text};

/// Bytes of one string that a function may make, and items of one list: a constant may be repeated for all rows of a batch.
const STRING_MAX: u64 = 64 << 10;
const LIST_MAX: u64 = 16 << 10;
/// What an item is counted for, where items have bytes of their own.
const ITEM_BYTES: u64 = 8;
/// The same of all rows of a batch together.
const ALL_MAX: u64 = 1 << 26;

/// How a function's result grows with its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Growth {
    /// The first argument's length, as often as the second says.
    Times,
    /// As long as the second argument says.
    Length,
    /// A list of as many as the second argument says, of the argument that is given here, with all that is in it.
    Copies(usize),
    /// From the first argument, or 0, to the second, by the third, or 1.
    Steps,
    /// The first argument's length, as often as the last one is long.
    Replaced,
    /// Not at all, but times become nanoseconds on the way, which are those of 1677 to 2262: others would wrap around.
    Nanoseconds,
}

/// The functions that are held to a size, of those given.
pub(crate) fn bounded(function: &Arc<ScalarUDF>) -> Option<ScalarUDF> {
    let growth = match function.name() {
        "repeat" => Growth::Times,
        "lpad" | "rpad" => Growth::Length,
        "array_repeat" => Growth::Copies(0),
        "array_resize" => Growth::Copies(2),
        "generate_series" | "range" => Growth::Steps,
        "date_trunc" | "date_bin" => Growth::Nanoseconds,
        "replace" | "regexp_replace" | "array_to_string" => Growth::Replaced,
        _ => return None,
    };
    Some(ScalarUDF::new_from_impl(Bounded {
        inner: Arc::clone(function.inner()),
        growth,
    }))
}

#[derive(Debug, Clone)]
struct Bounded {
    inner: Arc<dyn ScalarUDFImpl>,
    growth: Growth,
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.growth == other.growth && self.inner.name() == other.inner.name()
    }
}

impl Eq for Bounded {}

impl std::hash::Hash for Bounded {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.growth.hash(state);
        self.inner.name().hash(state);
    }
}

impl Bounded {
    fn check(&self, args: &ScalarFunctionArgs) -> PlanResult<()> {
        if self.growth == Growth::Nanoseconds {
            return self.check_times(args);
        }
        let one_max = match args.return_type() {
            _ if matches!(self.growth, Growth::Copies(_)) => LIST_MAX * ITEM_BYTES,
            DataType::List(_) | DataType::LargeList(_) => LIST_MAX,
            // what is replaced may be one's own long value: how long the outcome is, is not known before
            _ if self.growth == Growth::Replaced => ALL_MAX,
            _ => STRING_MAX,
        };
        let (mut all, mut row) = (0_u64, 0);
        // constants are looked at once
        let constant = args
            .args
            .iter()
            .all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let numbers = Numbers::of(&args.args)?;
        while row < rows {
            let one = self.growth.size(&args.args, &numbers, row);
            all = all.saturating_add(one);
            if one > one_max || all > ALL_MAX {
                return Err(QueryError::Limit(format!(
                    "{}(…) would make a value of up to {one} bytes or items, which is too large: at most {one_max} each, and \
                     {ALL_MAX} in a batch of {} rows; the table function generate_series makes rows instead",
                    self.inner.name(),
                    args.number_rows
                ))
                .into());
            }
            row += 1;
        }
        Ok(())
    }
}

impl Bounded {
    fn check_times(&self, args: &ScalarFunctionArgs) -> PlanResult<()> {
        for arg in &args.args {
            let per_second = match arg.data_type() {
                DataType::Timestamp(TimeUnit::Second, _) => 1,
                DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000,
                DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000_000,
                _ => continue,
            };
            let limit = i64::MAX / 1_000_000_000 * per_second;
            let times = match arg {
                ColumnarValue::Array(array) => Arc::clone(array),
                ColumnarValue::Scalar(value) => value.to_array()?,
            };
            let times = cast(&times, &DataType::Int64)?;
            let Some(times) = times.as_primitive_opt::<Int64Type>() else {
                continue;
            };
            if times
                .iter()
                .flatten()
                .any(|time| !(-limit..=limit).contains(&time))
            {
                return Err(QueryError::Limit(format!(
                    "{}(…) takes times from 1677 to 2262, and there is another one: leave it out by a filter, like timestamp < '2262-01-01'",
                    self.inner.name()
                ))
                .into());
            }
        }
        Ok(())
    }
}

/// The arguments that are numbers, as such; cast once per batch.
struct Numbers(Vec<Option<ArrayRef>>);

impl Numbers {
    fn of(args: &[ColumnarValue]) -> PlanResult<Self> {
        let number = |arg: &ColumnarValue| -> PlanResult<Option<ArrayRef>> {
            let kind = arg.data_type();
            let is_one = kind.is_integer()
                || matches!(
                    kind,
                    DataType::Date32 | DataType::Date64 | DataType::Timestamp(..)
                );
            if !is_one {
                return Ok(None);
            }
            let array = match arg {
                ColumnarValue::Array(array) => Arc::clone(array),
                ColumnarValue::Scalar(value) => value.to_array()?,
            };
            let array = if kind == DataType::Date32 {
                cast(&array, &DataType::Int32)?
            } else {
                array
            };
            Ok(Some(cast(&array, &DataType::Int64)?))
        };
        args.iter().map(number).collect::<PlanResult<_>>().map(Self)
    }

    fn at(&self, arg: usize, row: usize) -> Option<i64> {
        let array = self.0.get(arg)?.as_ref()?.as_primitive_opt::<Int64Type>()?;
        let row = if array.len() == 1 { 0 } else { row };
        (row < array.len() && array.is_valid(row)).then(|| array.value(row))
    }
}

/// Bytes of a value, with all that is in it.
fn bytes(arg: Option<&ColumnarValue>, row: usize) -> u64 {
    match arg {
        Some(ColumnarValue::Scalar(value)) => {
            let array = value.to_array();
            array.map_or(u64::MAX, |array| all_bytes(array.as_ref()))
        }
        Some(ColumnarValue::Array(array)) if row < array.len() => {
            all_bytes(array.slice(row, 1).as_ref())
        }
        Some(ColumnarValue::Array(_)) | None => 0,
    }
}

/// The same of all values of an array.
fn all_bytes(array: &dyn Array) -> u64 {
    let rows = 0..array.len();
    match array.data_type() {
        DataType::List(_) => match array.as_list_opt::<i32>() {
            Some(lists) => rows.map(|row| all_bytes(lists.value(row).as_ref())).sum(),
            None => u64::MAX,
        },
        DataType::LargeList(_) => match array.as_list_opt::<i64>() {
            Some(lists) => rows.map(|row| all_bytes(lists.value(row).as_ref())).sum(),
            None => u64::MAX,
        },
        of if is_text(of) || is_bytes(of) => {
            rows.map(|row| in_array(array, row).max(ITEM_BYTES)).sum()
        }
        DataType::Struct(_) | DataType::Map(..) => array.get_array_memory_size() as u64,
        _ => array.len() as u64 * ITEM_BYTES,
    }
}

/// How long a value is: bytes of strings, items of lists.
fn length(arg: Option<&ColumnarValue>, row: usize) -> u64 {
    match arg {
        Some(ColumnarValue::Scalar(value)) => match value {
            ScalarValue::Utf8(text)
            | ScalarValue::LargeUtf8(text)
            | ScalarValue::Utf8View(text) => text.as_ref().map_or(0, |text| text.len() as u64),
            ScalarValue::List(list) => in_array(list.as_ref(), 0),
            _ => 1,
        },
        Some(ColumnarValue::Array(array)) => in_array(array.as_ref(), row),
        None => 1,
    }
}

fn in_array(array: &dyn Array, row: usize) -> u64 {
    if row >= array.len() || array.is_null(row) {
        return 0;
    }
    let len = match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).len(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).len(),
        DataType::Utf8View => array.as_string_view().value(row).len(),
        DataType::Binary => array.as_binary::<i32>().value(row).len(),
        DataType::LargeBinary => array.as_binary::<i64>().value(row).len(),
        DataType::BinaryView => array.as_binary_view().value(row).len(),
        DataType::List(_) => array.as_list::<i32>().value(row).len(),
        DataType::LargeList(_) => array.as_list::<i64>().value(row).len(),
        _ => 1,
    };
    len as u64
}

impl Growth {
    /// How large the result of a row is, at most.
    fn size(self, args: &[ColumnarValue], numbers: &Numbers, row: usize) -> u64 {
        let positive = |value: i64| u64::try_from(value).unwrap_or(0);
        match self {
            Self::Times => {
                let times = numbers.at(1, row).map_or(0, positive);
                length(args.first(), row).saturating_mul(times)
            }
            Self::Nanoseconds => 0,
            Self::Length => numbers.at(1, row).map_or(0, positive),
            Self::Copies(of) => {
                let times = numbers.at(1, row).map_or(0, positive);
                times.saturating_mul(bytes(args.get(of), row).max(ITEM_BYTES))
            }
            Self::Steps => {
                let (start, stop) = match args.len() {
                    1 => (Some(0), numbers.at(0, row)),
                    _ => (numbers.at(0, row), numbers.at(1, row)),
                };
                let (Some(start), Some(stop)) = (start, stop) else {
                    return 0;
                };
                let step = match args.get(2) {
                    None => 1,
                    // steps of an interval are counted as if they were the smallest: a month of seconds is too many
                    Some(ColumnarValue::Scalar(step)) => interval_steps(step)
                        .or_else(|| numbers.at(2, row))
                        .unwrap_or(1)
                        .unsigned_abs(),
                    Some(ColumnarValue::Array(_)) => numbers.at(2, row).unwrap_or(1).unsigned_abs(),
                };
                stop.abs_diff(start) / step.max(1)
            }
            Self::Replaced => {
                let by = match args.len() {
                    0..=2 => args.get(1),
                    _ => args.get(2),
                };
                let grown = length(by, row);
                let len = length(args.first(), row);
                if grown <= 1 {
                    return 0;
                }
                len.saturating_mul(grown)
            }
        }
    }
}

/// An interval in the units that dates and times are counted in, as far as it is known here: days for those of a day and
/// more, else nanoseconds.
fn interval_steps(step: &ScalarValue) -> Option<i64> {
    match step {
        ScalarValue::IntervalMonthDayNano(Some(value)) => {
            let days = i64::from(value.months) * 28 + i64::from(value.days);
            Some(if days != 0 { days } else { value.nanoseconds })
        }
        _ => None,
    }
}

impl ScalarUDFImpl for Bounded {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> PlanResult<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> PlanResult<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> PlanResult<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        self.check(&args)?;
        self.inner.invoke_with_args(args)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> PlanResult<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> PlanResult<Interval> {
        self.inner.evaluate_bounds(input)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> PlanResult<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> PlanResult<bool> {
        self.inner.preserves_lex_ordering(inputs)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> PlanResult<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
