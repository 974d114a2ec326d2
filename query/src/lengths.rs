//! `octet_length` and `bit_length` of bytes too: a Kafka key or value is bytes, and those of DataFusion take text alone. As in
//! Spark and Trino, nothing is looked at but where a value begins and ends.

use std::any::Any;
use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_cast::cast;
use arrow_schema::{ArrowError, DataType};
use arrow_string::length::{bit_length, length};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::sql_types::{is_bytes, is_text};

/// What a length is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unit {
    Bytes,
    Bits,
}

/// Makes the functions known, in the place of DataFusion's.
pub(crate) fn register(registry: &mut dyn FunctionRegistry) -> Result<()> {
    for unit in [Unit::Bytes, Unit::Bits] {
        let function = Length {
            unit,
            signature: Signature::any(1, Volatility::Immutable),
        };
        registry.register_udf(Arc::new(ScalarUDF::new_from_impl(function)))?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Length {
    unit: Unit,
    signature: Signature,
}

impl Length {
    fn of(&self, values: &ArrayRef) -> std::result::Result<ArrayRef, ArrowError> {
        let lengths = match self.unit {
            _ if values.data_type().is_null() => Arc::clone(values),
            Unit::Bytes => length(values)?,
            Unit::Bits => bit_length(values)?,
        };
        cast(&lengths, &DataType::Int64)
    }
}

impl ScalarUDFImpl for Length {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &'static str {
        match self.unit {
            Unit::Bytes => "octet_length",
            Unit::Bits => "bit_length",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let name = self.name();
        let [of] = take_function_args(name, types)?;
        if !is_text(of) && !is_bytes(of) && !of.is_null() {
            return plan_err!("{name} takes text or bytes, not {of}");
        }
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [values] = take_function_args(self.name(), &args.args)?;
        Ok(match values {
            ColumnarValue::Array(values) => ColumnarValue::Array(self.of(values)?),
            ColumnarValue::Scalar(value) => {
                let lengths = self.of(&value.to_array()?)?;
                ColumnarValue::Scalar(ScalarValue::try_from_array(&lengths, 0)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    #[tokio::test]
    async fn lengths_of_text_and_bytes_are_counted_in_bytes_and_bits() {
        let mut state = SessionContext::new().state();
        register(&mut state).expect("known");
        let context = SessionContext::new_with_state(state);
        let answer = |sql: &'static str| {
            let context = context.clone();
            async move {
                let rows = context.sql(sql).await?.collect().await?;
                let rows = arrow_cast::pretty::pretty_format_batches(&rows)?.to_string();
                let rows = rows.lines().skip(3).filter(|line| !line.starts_with('+'));
                Ok::<_, datafusion::error::DataFusionError>(
                    rows.map(str::to_owned).collect::<Vec<_>>().join(" "),
                )
            }
        };
        for (sql, expected) in [
            (
                "SELECT octet_length('ö'), octet_length(X'00ff80'), octet_length(''), octet_length(NULL), bit_length(X'0102')",
                "| 2 | 3 | 0 |  | 16 |",
            ),
            // columns, cut into views and not
            (
                "SELECT octet_length(b), bit_length(arrow_cast(b, 'BinaryView')), octet_length(arrow_cast(b, 'LargeBinary')) \
                 FROM (VALUES (1, X'ff'), (2, NULL), (3, X'00112233445566778899aabbccddeeff')) AS t(n, b) ORDER BY n",
                "| 1 | 8 | 1 | |  |  |  | | 16 | 128 | 16 |",
            ),
        ] {
            let got = answer(sql).await.expect(sql);
            let got: Vec<&str> = got.split_whitespace().collect();
            let expected: Vec<&str> = expected.split_whitespace().collect();
            assert_eq!(got, expected, "{sql}");
        }
        for sql in ["SELECT octet_length(1)", "SELECT bit_length()"] {
            assert!(answer(sql).await.is_err(), "{sql}");
        }
    }
}
