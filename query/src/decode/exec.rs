//! The plan that decodes: what comes from the archive's scan, its values last, goes out with columns of the values instead.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, SchemaRef};
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionMapping;
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::metrics::{
    BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet, RecordOutput as _,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties as _, PlanProperties,
};
use everlog_decode::{DecodeError, SchemaError, ValueFormat, ValueReader};
use futures::StreamExt as _;

use super::asking::Asking;
use crate::QueryError;
use crate::error::chain;

/// Bytes of values that are decoded at once, so that what comes of them is bounded; one value may be longer.
const CHUNK_BYTES: i64 = 8 << 20;

/// What is decoded, and how.
#[derive(Debug, Clone)]
pub(super) struct Decoding {
    pub(super) format: ValueFormat,
    /// Of the format's columns, in the order in which they go out.
    pub(super) projection: Vec<usize>,
    /// Whether what is wrong goes out behind them.
    pub(super) errors: bool,
    /// Where schemas come from.
    pub(super) registry: Option<Asking>,
}

/// Decodes the last column of its input, and gives the others as they are before what it decoded.
#[derive(Debug)]
pub(super) struct DecodeExec {
    input: Arc<dyn ExecutionPlan>,
    decoding: Arc<Decoding>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl DecodeExec {
    /// `schema` is of what goes out: the input's columns but the last, under their new names, and what is decoded.
    pub(super) fn new(
        input: Arc<dyn ExecutionPlan>,
        decoding: Arc<Decoding>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let before = input.schema();
        let kept = before.fields().len().saturating_sub(1);
        // what is known of the order and the equality of columns holds for those that pass through
        let passing = before.fields().iter().zip(schema.fields()).take(kept);
        let passing = passing.enumerate().map(|(at, (old, new))| {
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(old.name(), at));
            (column, new.name().clone())
        });
        let mapping = ProjectionMapping::try_new(passing, &before)?;
        let known = input.equivalence_properties();
        let properties = PlanProperties::new(
            known.project(&mapping, Arc::clone(&schema)),
            input.output_partitioning().project(&mapping, known),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Ok(Self {
            input,
            decoding,
            schema,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }
}

impl DisplayAs for DecodeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passing = self.input.schema().fields().len().saturating_sub(1);
        let names: Vec<&str> = self
            .schema
            .fields()
            .iter()
            .skip(passing)
            .map(|field| field.name().as_str())
            .collect();
        write!(f, "DecodeExec: columns=[{}]", names.join(", "))
    }
}

impl ExecutionPlan for DecodeExec {
    fn name(&self) -> &'static str {
        "DecodeExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    /// It does: rows go out as they come in. But the planner takes the word for columns' places too, and would put a sort by
    /// the first decoded column below, where the values stand in that place. The order itself is among the properties.
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("decoding has one input");
        };
        Ok(Arc::new(Self::new(
            input,
            Arc::clone(&self.decoding),
            Arc::clone(&self.schema),
        )?))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let decoding = &self.decoding;
        let reader = ValueReader::new(&decoding.format, &decoding.projection, decoding.errors)
            .map_err(of_schema)?;
        let state = Decoder {
            input: self.input.execute(partition, context)?,
            rest: None,
            reader,
            registry: decoding.registry.clone(),
            schema: Arc::clone(&self.schema),
            metrics: BaselineMetrics::new(&self.metrics, partition),
        };
        let stream = futures::stream::try_unfold(state, |mut state| async move {
            Ok(state.next().await?.map(|batch| (batch, state)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            stream,
        )))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Statistics> {
        let of_input = self.input.partition_statistics(partition)?;
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = of_input.num_rows;
        let passing = self.input.schema().fields().len().saturating_sub(1);
        for (known, unknown) in of_input
            .column_statistics
            .into_iter()
            .take(passing)
            .zip(&mut statistics.column_statistics)
        {
            *unknown = known;
        }
        Ok(statistics)
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

/// One partition on its way.
struct Decoder {
    input: SendableRecordBatchStream,
    /// What is left of a batch.
    rest: Option<RecordBatch>,
    reader: ValueReader,
    registry: Option<Asking>,
    schema: SchemaRef,
    metrics: BaselineMetrics,
}

impl Decoder {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let batch = loop {
            match self.rest.take() {
                Some(batch) => break batch,
                None => match self.input.next().await.transpose()? {
                    Some(batch) if batch.num_rows() == 0 => {}
                    Some(batch) => self.rest = Some(batch),
                    None => return Ok(None),
                },
            }
        };
        let rows = chunk(&lengths(&batch)?, CHUNK_BYTES);
        let batch = if rows < batch.num_rows() {
            self.rest = Some(batch.slice(rows, batch.num_rows() - rows));
            batch.slice(0, rows)
        } else {
            batch
        };
        let batch = with_binary_values(&batch)?;
        let values = values_of(&batch)?;
        if let Some(registry) = &self.registry {
            let unlearned = self.reader.unlearned(values);
            if !unlearned.is_empty() {
                for (id, answer) in registry.schemas(unlearned).await? {
                    let answer = answer.as_ref().map_err(String::as_str);
                    self.reader.learn(id, answer);
                }
            }
        }
        let timer = self.metrics.elapsed_compute().timer();
        let read = self.reader.read(values).map_err(of_decoding)?;
        let passing = batch.num_columns() - 1;
        let mut columns: Vec<ArrayRef> = batch.columns().iter().take(passing).cloned().collect();
        columns.extend(read.columns);
        if let Some(errors) = read.errors {
            columns.push(Arc::new(errors));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let decoded =
            RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        timer.done();
        Ok(Some(decoded.record_output(&self.metrics)))
    }
}

/// The batch with its last column as Binary: scans may give views.
fn with_binary_values(batch: &RecordBatch) -> Result<RecordBatch> {
    let Some((values, others)) = batch.columns().split_last() else {
        return internal_err!("a batch without values is to be decoded");
    };
    if values.data_type() == &DataType::Binary {
        return Ok(batch.clone());
    }
    let values = arrow_cast::cast(values, &DataType::Binary)?;
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    if let Some(last) = fields.last_mut() {
        *last = Arc::new(last.as_ref().clone().with_data_type(DataType::Binary));
    }
    let mut columns = others.to_vec();
    columns.push(values);
    Ok(RecordBatch::try_new(
        Arc::new(arrow_schema::Schema::new(fields)),
        columns,
    )?)
}

fn values_of(batch: &RecordBatch) -> Result<&BinaryArray> {
    let values = batch.columns().last();
    match values.and_then(|values| values.as_any().downcast_ref::<BinaryArray>()) {
        Some(values) => Ok(values),
        None => internal_err!("a batch without values is to be decoded"),
    }
}

/// How long the values are, each.
fn lengths(batch: &RecordBatch) -> Result<Int64Array> {
    let Some(values) = batch.columns().last() else {
        return internal_err!("a batch without values is to be decoded");
    };
    let lengths = arrow_string::length::length(values)?;
    let lengths = arrow_cast::cast(&lengths, &DataType::Int64)?;
    Ok(lengths.as_primitive::<Int64Type>().clone())
}

/// How many of the first rows are decoded at once: one, or as many as have so many bytes.
fn chunk(lengths: &Int64Array, bytes_max: i64) -> usize {
    let mut bytes = 0_i64;
    let fit = lengths.iter().take_while(|length| {
        bytes = bytes.saturating_add(length.unwrap_or(0));
        bytes <= bytes_max
    });
    fit.count().clamp(1, lengths.len().max(1))
}

fn of_schema(error: SchemaError) -> DataFusionError {
    QueryError::Failed(error.to_string()).into()
}

fn of_decoding(error: DecodeError) -> DataFusionError {
    QueryError::Failed(chain(&error)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_in_chunks_of_bytes_and_never_none() {
        let of = |values: &[Option<&[u8]>]| {
            let values = arrow_array::BinaryViewArray::from_iter(values.iter().copied());
            let batch = RecordBatch::try_from_iter([("value", Arc::new(values) as ArrayRef)]);
            lengths(&batch.unwrap()).unwrap()
        };
        let four = of(&[Some(b"aaaa"), Some(b"bbbb"), None, Some(b"cccc")]);
        assert_eq!(chunk(&four, 100), 4);
        assert_eq!(chunk(&four, 8), 3);
        assert_eq!(chunk(&four, 7), 1);
        assert_eq!(chunk(&four, 1), 1);
        assert_eq!(chunk(&four.slice(1, 3), 4), 2);
        assert_eq!(chunk(&of(&[Some(b"a")]), 0), 1);
    }

    #[test]
    fn views_become_plain_binary() {
        let views = arrow_array::BinaryViewArray::from_iter([Some(&b"a"[..]), None]);
        let batch = RecordBatch::try_from_iter([("value", Arc::new(views) as ArrayRef)]).unwrap();
        let plain = with_binary_values(&batch).unwrap();
        assert_eq!(
            values_of(&plain).unwrap(),
            &BinaryArray::from_iter([Some(&b"a"[..]), None])
        );
    }
}
