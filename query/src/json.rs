//! JSON functions for raw values, and the operators `->` and `->>`: on text and on bytes, since that is what a Kafka value is.
//!
//! | | gives | |
//! |---|---|---|
//! | `json_get(json, path…)`, `json -> path` | text | the JSON at the path, as it stands there |
//! | `json_as_text(json, path…)`, `json ->> path` | text | what a string says, the JSON of anything else; null of `null` |
//! | `json_get_str(json, path…)` | text | what a string says |
//! | `json_get_int(json, path…)` | 64-bit integer | a number whose value is whole, however it is written |
//! | `json_get_float(json, path…)` | double | the nearest to a number |
//! | `json_get_bool(json, path…)` | boolean | |
//! | `json_length(json, path…)` | 64-bit integer | the members of an object, the elements of an array |
//! | `json_contains(json, path…)` | boolean | whether anything is there, `null` too |
//!
//! A path is of keys (text) and places in arrays (integers, from 0). What is not there, is of another type, or stands in a
//! value that is no JSON to its last byte, gives null, and `json_contains` false; a null value gives null.
//!
//! The JSON is that of the decoded views (docs/decoding.md), read by the same code. Why not datafusion-functions-json: its
//! release for this DataFusion takes text alone, so that a value that is not UTF-8 would end the query, and gives null for
//! every negative integer.

use std::any::Any;
use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, Float64Builder, Int64Builder, StringBuilder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use datafusion::common::{DFSchema, Result, ScalarValue, plan_err};
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;
use everlog_decode::{JsonValue, PathPart, find};

use crate::sql_types::{is_bytes, is_text};

/// What a function gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Gives {
    Json,
    Text,
    String,
    Integer,
    Float,
    Boolean,
    Length,
    IsThere,
}

impl Gives {
    const ALL: [Self; 8] = [
        Self::Json,
        Self::Text,
        Self::String,
        Self::Integer,
        Self::Float,
        Self::Boolean,
        Self::Length,
        Self::IsThere,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Json => "json_get",
            Self::Text => "json_as_text",
            Self::String => "json_get_str",
            Self::Integer => "json_get_int",
            Self::Float => "json_get_float",
            Self::Boolean => "json_get_bool",
            Self::Length => "json_length",
            Self::IsThere => "json_contains",
        }
    }

    const fn of(self) -> DataType {
        match self {
            Self::Json | Self::Text | Self::String => DataType::Utf8,
            Self::Integer | Self::Length => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Boolean | Self::IsThere => DataType::Boolean,
        }
    }
}

/// Makes the functions and operators known.
pub(crate) fn register(registry: &mut dyn FunctionRegistry) -> Result<()> {
    for gives in Gives::ALL {
        registry.register_udf(Arc::new(function(gives)))?;
    }
    registry.register_expr_planner(Arc::new(Operators))
}

fn function(gives: Gives) -> ScalarUDF {
    ScalarUDF::new_from_impl(JsonFunction {
        gives,
        signature: Signature::variadic_any(Volatility::Immutable),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonFunction {
    gives: Gives,
    signature: Signature,
}

impl ScalarUDFImpl for JsonFunction {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &'static str {
        self.gives.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let name = self.name();
        let Some((json, path)) = types.split_first() else {
            return plan_err!("{name} needs a JSON value, like {name}(value, 'user_id')");
        };
        if !is_text(json) && !is_bytes(json) && !json.is_null() {
            return plan_err!("{name} takes JSON as text or bytes, not {json}");
        }
        if let Some(wrong) = path
            .iter()
            .find(|of| !is_text(of) && !of.is_integer() && !of.is_null())
        {
            return plan_err!(
                "{name} takes a path of keys (text) and places in arrays (integers), not {wrong}; where it was meant to be compared, write parentheses around the JSON expression"
            );
        }
        Ok(self.gives.of())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_one = args
            .args
            .iter()
            .all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_one { 1 } else { args.number_rows };
        let mut args = args.args.iter();
        let json = Texts::new(args.next(), rows)?;
        let path: Vec<Part> = args.map(Part::new).collect::<Result<_>>()?;
        let found = self.gives.all(&json, &path, rows);
        if is_one {
            let scalar = ScalarValue::try_from_array(&found, 0)?;
            return Ok(ColumnarValue::Scalar(scalar));
        }
        Ok(ColumnarValue::Array(found))
    }
}

/// JSON texts, however they are stored; none of them is copied.
struct Texts {
    array: ArrayRef,
    /// One value for all rows.
    is_one: bool,
}

impl Texts {
    fn new(given: Option<&ColumnarValue>, rows: usize) -> Result<Self> {
        Ok(match given {
            Some(ColumnarValue::Array(array)) => Self {
                array: Arc::clone(array),
                is_one: false,
            },
            Some(ColumnarValue::Scalar(scalar)) => Self {
                array: scalar.to_array()?,
                is_one: true,
            },
            None => Self {
                array: arrow_array::new_null_array(&DataType::Null, rows),
                is_one: false,
            },
        })
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        let row = if self.is_one { 0 } else { row };
        let array = &self.array;
        if row >= array.len() || array.is_null(row) {
            return None;
        }
        Some(match array.data_type() {
            DataType::Utf8 => array.as_string::<i32>().value(row).as_bytes(),
            DataType::LargeUtf8 => array.as_string::<i64>().value(row).as_bytes(),
            DataType::Utf8View => array.as_string_view().value(row).as_bytes(),
            DataType::Binary => array.as_binary::<i32>().value(row),
            DataType::LargeBinary => array.as_binary::<i64>().value(row),
            DataType::BinaryView => array.as_binary_view().value(row),
            _ => return None,
        })
    }
}

/// A step of a path, the same for all rows or not.
struct Part {
    /// Utf8 or Int64.
    array: ArrayRef,
    is_one: bool,
}

impl Part {
    fn new(given: &ColumnarValue) -> Result<Self> {
        let (array, is_one) = match given {
            ColumnarValue::Array(array) => (Arc::clone(array), false),
            ColumnarValue::Scalar(scalar) => (scalar.to_array()?, true),
        };
        let of = if is_text(array.data_type()) {
            DataType::Utf8
        } else {
            DataType::Int64
        };
        // what no array has a place for is null
        let array = arrow_cast::cast(&array, &of)?;
        Ok(Self { array, is_one })
    }

    /// None: there is no such place.
    fn get(&self, row: usize) -> Option<PathPart<'_>> {
        let row = if self.is_one { 0 } else { row };
        if row >= self.array.len() || self.array.is_null(row) {
            return None;
        }
        if self.array.data_type() == &DataType::Utf8 {
            return Some(PathPart::Key(self.array.as_string::<i32>().value(row)));
        }
        let index = self.array.as_primitive::<Int64Type>().value(row);
        u64::try_from(index).ok().map(PathPart::Index)
    }
}

impl Gives {
    fn all(self, json: &Texts, path: &[Part], rows: usize) -> ArrayRef {
        let mut scratch = Vec::new();
        let mut inner = Vec::new();
        let mut parts = Vec::with_capacity(path.len());
        // the value at the path of a row; the outer none is of a row without JSON
        macro_rules! each {
            ($builder:ident, $give:expr) => {{
                for row in 0..rows {
                    let Some(text) = json.get(row) else {
                        $builder.append_null();
                        continue;
                    };
                    parts.clear();
                    parts.extend(path.iter().map_while(|part| part.get(row)));
                    let found = if parts.len() == path.len() {
                        find(text, &parts, &mut scratch)
                    } else {
                        None
                    };
                    let give: fn(Option<JsonValue<'_>>, &mut Vec<u8>, &mut _) = $give;
                    give(found, &mut inner, &mut $builder);
                }
                Arc::new($builder.finish())
            }};
        }
        match self {
            Self::Json | Self::Text | Self::String => {
                let mut builder = StringBuilder::with_capacity(rows, 0);
                match self {
                    Self::Json => each!(builder, |found, _, builder: &mut StringBuilder| {
                        builder.append_option(found.map(JsonValue::json));
                    }),
                    Self::Text => each!(builder, |found, inner, builder: &mut StringBuilder| {
                        builder.append_option(found.and_then(|value| value.text(inner)));
                    }),
                    _ => each!(builder, |found, inner, builder: &mut StringBuilder| {
                        builder.append_option(found.and_then(|value| value.string(inner)));
                    }),
                }
            }
            Self::Integer => {
                let mut builder = Int64Builder::with_capacity(rows);
                each!(builder, |found, _, builder: &mut Int64Builder| {
                    builder.append_option(found.and_then(JsonValue::integer));
                })
            }
            Self::Length => {
                let mut builder = Int64Builder::with_capacity(rows);
                each!(builder, |found, inner, builder: &mut Int64Builder| {
                    let length = found.and_then(|value| value.len(inner));
                    builder.append_option(length.and_then(|length| i64::try_from(length).ok()));
                })
            }
            Self::Float => {
                let mut builder = Float64Builder::with_capacity(rows);
                each!(builder, |found, _, builder: &mut Float64Builder| {
                    builder.append_option(found.and_then(JsonValue::float));
                })
            }
            Self::Boolean => {
                let mut builder = BooleanBuilder::with_capacity(rows);
                each!(builder, |found, _, builder: &mut BooleanBuilder| {
                    builder.append_option(found.and_then(JsonValue::boolean));
                })
            }
            Self::IsThere => {
                let mut builder = BooleanBuilder::with_capacity(rows);
                each!(builder, |found, _, builder: &mut BooleanBuilder| {
                    builder.append_value(found.is_some());
                })
            }
        }
    }
}

/// `json -> path` and `json ->> path`; how close they bind is the dialect's to say.
#[derive(Debug)]
struct Operators;

impl ExprPlanner for Operators {
    fn plan_binary_op(
        &self,
        expr: RawBinaryExpr,
        _: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>> {
        let gives = match expr.op {
            BinaryOperator::Arrow => Gives::Json,
            BinaryOperator::LongArrow => Gives::Text,
            _ => return Ok(PlannerResult::Original(expr)),
        };
        let planned = call(gives, expr.left, expr.right);
        Ok(PlannerResult::Planned(planned))
    }
}

fn call(gives: Gives, json: Expr, path: Expr) -> Expr {
    let function = Arc::new(function(gives));
    Expr::ScalarFunction(ScalarFunction::new_udf(function, vec![json, path]))
}

#[cfg(test)]
mod tests {
    use arrow_array::{BinaryArray, BinaryViewArray, RecordBatch, StringArray};
    use datafusion::prelude::SessionContext;

    use super::*;

    async fn ask(sql: &str) -> Vec<Vec<Option<String>>> {
        let values: Vec<Option<&[u8]>> = vec![
            Some(br#"{"user":"ann","n":-5,"price":1.5,"ok":true,"tags":["a",{"b":"c"}],"none":null}"#),
            Some(br#"{"user":"b\u00f6b","n":"7","price":3,"ok":"x","tags":{}}"#),
            Some(b"no json"),
            Some(b"\xff\xfe"),
            None,
        ];
        let text: Vec<Option<&str>> = values
            .iter()
            .map(|v| v.and_then(|v| std::str::from_utf8(v).ok()))
            .collect();
        let batch = RecordBatch::try_from_iter([
            (
                "value",
                Arc::new(BinaryArray::from_iter(values.clone())) as ArrayRef,
            ),
            ("view", Arc::new(BinaryViewArray::from_iter(values))),
            ("text", Arc::new(StringArray::from(text))),
            (
                "key",
                Arc::new(StringArray::from(vec![
                    Some("user"),
                    Some("n"),
                    Some("user"),
                    None,
                    None,
                ])),
            ),
        ])
        .unwrap();
        let mut context = SessionContext::new();
        register(&mut context).unwrap();
        context.register_batch("t", batch).unwrap();
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        let mut rows = Vec::new();
        for batch in batches {
            for row in 0..batch.num_rows() {
                rows.push(
                    batch
                        .columns()
                        .iter()
                        .map(|column| {
                            ScalarValue::try_from_array(column, row)
                                .ok()
                                .filter(|value| !value.is_null())
                                .map(|value| value.to_string())
                        })
                        .collect(),
                );
            }
        }
        rows
    }

    async fn column(sql: &str) -> Vec<Option<String>> {
        let rows = ask(&format!("SELECT {sql} FROM t")).await;
        rows.into_iter().map(|row| row[0].clone()).collect()
    }

    fn some(values: &[&str]) -> Vec<Option<String>> {
        values
            .iter()
            .map(|v| (!v.is_empty()).then(|| (*v).to_owned()))
            .collect()
    }

    #[tokio::test]
    async fn functions_read_bytes_views_and_text() {
        for json in ["value", "view", "text"] {
            for (call, expected) in [
                ("json_get_str({}, 'user')", ["ann", "böb", "", "", ""]),
                ("json_get_int({}, 'n')", ["-5", "", "", "", ""]),
                ("json_as_text({}, 'n')", ["-5", "7", "", "", ""]),
                ("json_get({}, 'n')", ["-5", "\"7\"", "", "", ""]),
                ("json_get_float({}, 'price')", ["1.5", "3", "", "", ""]),
                ("json_get_int({}, 'price')", ["", "3", "", "", ""]),
                ("json_get_bool({}, 'ok')", ["true", "", "", "", ""]),
                ("json_length({}, 'tags')", ["2", "0", "", "", ""]),
                ("json_length({})", ["6", "5", "", "", ""]),
                ("json_get_str({}, 'tags', 1, 'b')", ["c", "", "", "", ""]),
                ("json_get_str({}, 'tags', -1)", ["", "", "", "", ""]),
                ("json_as_text({}, 'none')", ["", "", "", "", ""]),
                ("json_get({}, 'none')", ["null", "", "", "", ""]),
                ("json_get_str({}, key)", ["ann", "7", "", "", ""]),
                ("json_get_str({}, NULL)", ["", "", "", "", ""]),
            ] {
                let call = call.replace("{}", json);
                assert_eq!(column(&call).await, some(&expected), "{call}");
            }
        }
        assert_eq!(
            column("json_contains(value, 'none')").await,
            some(&["true", "false", "false", "false", ""])
        );
        assert_eq!(
            ask("SELECT json_get_int('{\"a\":[1,2]}', 'a', 1), json_get_str(NULL, 'a')").await,
            [vec![Some("2".to_owned()), None]]
        );
    }

    #[tokio::test]
    async fn operators_are_the_functions() {
        assert_eq!(
            column("value ->> 'user'").await,
            some(&["ann", "böb", "", "", ""])
        );
        assert_eq!(
            column("t.text -> 'tags' -> 1 ->> 'b'").await,
            some(&["c", "", "", "", ""])
        );
        assert_eq!(
            column("t.value -> 'none'").await,
            some(&["null", "", "", "", ""])
        );
    }

    #[tokio::test]
    async fn what_is_no_json_argument_is_refused_when_planned() {
        let mut context = SessionContext::new();
        register(&mut context).unwrap();
        for (sql, expected) in [
            (
                "SELECT json_get(1, 'a')",
                "takes JSON as text or bytes, not Int64",
            ),
            (
                "SELECT json_get('{}', 1.5)",
                "takes a path of keys (text) and places",
            ),
            ("SELECT json_get_str()", "json_get_str"),
        ] {
            let planned = match context.sql(sql).await {
                Ok(frame) => frame.collect().await.map(|_| ()),
                Err(error) => Err(error),
            };
            let error = planned.unwrap_err().to_string();
            assert!(error.contains(expected), "{sql}: {error}");
        }
    }
}
