//! From a batch to records with an event time: positions are checked, clocks move, what has no usable time is left out.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{DataType, TimeUnit};
use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{
    Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use datafusion::common::{DataFusionError, Result as DataFusionResult};

use super::Engine;
use crate::aggregate::Inputs;
use crate::error::EngineError;
use crate::event_time::unusable;
use crate::sql::{GENERATION, OFFSET, PARTITION, TIMESTAMP};

/// Records that were left out: offset and reason.
#[derive(Debug, Default)]
pub(super) struct LeftOut(pub(super) Vec<(i64, String)>);

impl LeftOut {
    pub fn push(&mut self, offset: i64, reason: String) {
        self.0.push((offset, reason));
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// The records of a batch that have an event time.
#[derive(Debug)]
pub(super) struct Admitted {
    pub partition: i32,
    /// Over the full schema.
    pub batch: RecordBatch,
    pub time_index: usize,
    pub offsets: Vec<i64>,
    /// Their partition's watermark before each of them.
    pub before: Vec<i64>,
}

/// Rows for which an expression failed.
pub(super) struct Bad {
    pub rows: Vec<(usize, String)>,
    pub good: BooleanArray,
}

impl Admitted {
    pub fn times(&self) -> &[i64] {
        self.batch
            .column(self.time_index)
            .as_primitive::<TimestampMillisecondType>()
            .values()
    }

    /// Keeps what `mask` says.
    pub fn keep(&mut self, mask: &BooleanArray) -> Result<(), EngineError> {
        if mask.true_count() == mask.len() {
            return Ok(());
        }
        self.batch = filter_record_batch(&self.batch, mask)?;
        self.offsets = keep(&self.offsets, mask);
        self.before = keep(&self.before, mask);
        Ok(())
    }

    /// Leaves out the rows for which an expression failed.
    pub fn drop_bad(&mut self, bad: Option<Bad>, dead: &mut LeftOut) -> Result<(), EngineError> {
        let Some(bad) = bad else {
            return Ok(());
        };
        for (row, reason) in bad.rows {
            dead.push(self.offsets[row], reason);
        }
        self.keep(&bad.good)
    }
}

pub(super) fn keep<T: Copy>(values: &[T], mask: &BooleanArray) -> Vec<T> {
    values
        .iter()
        .zip(mask.values())
        .filter(|(_, kept)| *kept)
        .map(|(value, _)| *value)
        .collect()
}

/// What an evaluation gives for some rows, so that the parts of a batch can be put together again.
pub(super) trait Parts: Sized {
    /// One after the other; there is at least one.
    fn concat(parts: &[Self]) -> DataFusionResult<Self>;
}

impl Parts for ArrayRef {
    fn concat(parts: &[Self]) -> DataFusionResult<Self> {
        let arrays: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        Ok(datafusion::arrow::compute::concat(&arrays)?)
    }
}

impl Parts for BooleanArray {
    fn concat(parts: &[Self]) -> DataFusionResult<Self> {
        let arrays: Vec<&dyn Array> = parts.iter().map(|part| part as &dyn Array).collect();
        let whole = datafusion::arrow::compute::concat(&arrays)?;
        Ok(whole.as_boolean().clone())
    }
}

impl Parts for Vec<ArrayRef> {
    fn concat(parts: &[Self]) -> DataFusionResult<Self> {
        let columns = parts.first().map_or(0, Vec::len);
        (0..columns)
            .map(|i| {
                let of_column: Vec<ArrayRef> =
                    parts.iter().map(|part| Arc::clone(&part[i])).collect();
                <ArrayRef as Parts>::concat(&of_column)
            })
            .collect()
    }
}

impl Parts for (Vec<ArrayRef>, Vec<Inputs>) {
    fn concat(parts: &[Self]) -> DataFusionResult<Self> {
        let keys: Vec<Vec<ArrayRef>> = parts.iter().map(|(keys, _)| keys.clone()).collect();
        let aggregates = parts.first().map_or(0, |(_, inputs)| inputs.len());
        let inputs = (0..aggregates)
            .map(|i| {
                let of_one: Vec<&Inputs> = parts.iter().map(|(_, inputs)| &inputs[i]).collect();
                let columns: Vec<Vec<ArrayRef>> =
                    of_one.iter().map(|part| part.columns.clone()).collect();
                let filters: Vec<BooleanArray> = of_one
                    .iter()
                    .filter_map(|part| part.filter.clone())
                    .collect();
                Ok(Inputs {
                    columns: <Vec<ArrayRef> as Parts>::concat(&columns)?,
                    filter: match filters.as_slice() {
                        [] => None,
                        filters => Some(<BooleanArray as Parts>::concat(filters)?),
                    },
                })
            })
            .collect::<DataFusionResult<_>>()?;
        Ok((<Vec<ArrayRef> as Parts>::concat(&keys)?, inputs))
    }
}

/// Evaluates over a batch; rows for which that fails are found and left out, so that one bad row stops nothing.
///
/// The result is over the good rows. What a row gives is what it gives alone: a condition that guards another
/// (`a <> 0 AND b / a > 1`) does so for the rows that it holds for, but DataFusion computes the guarded one for all rows
/// where only some pass the guard, so that a batch can fail none of whose rows does. Halving finds the parts that do not
/// fail, and costs nothing where the whole does not.
pub(super) fn rowwise<T: Parts>(
    batch: &RecordBatch,
    evaluate: impl Fn(&RecordBatch) -> DataFusionResult<T>,
) -> Result<(Option<Bad>, T), EngineError> {
    match evaluate(batch) {
        Ok(result) => return Ok((None, result)),
        Err(error) if batch.num_rows() == 0 => return Err(EngineError::Row(error)),
        Err(_) => {}
    }
    let (mut parts, mut rows) = (Vec::new(), Vec::new());
    by_halves(batch, 0, &evaluate, &mut parts, &mut rows);
    let result = if parts.is_empty() {
        evaluate(&batch.slice(0, 0))
    } else {
        T::concat(&parts)
    };
    let result = result.map_err(EngineError::Row)?;
    if rows.is_empty() {
        return Ok((None, result));
    }
    let mut good = vec![true; batch.num_rows()];
    for (row, _) in &rows {
        good[*row] = false;
    }
    let good = BooleanArray::from(good);
    Ok((Some(Bad { rows, good }), result))
}

fn by_halves<T>(
    batch: &RecordBatch,
    first: usize,
    evaluate: &impl Fn(&RecordBatch) -> DataFusionResult<T>,
    parts: &mut Vec<T>,
    bad: &mut Vec<(usize, String)>,
) {
    let error = match evaluate(batch) {
        Ok(part) => {
            parts.push(part);
            return;
        }
        Err(error) => error,
    };
    let count = batch.num_rows();
    if count <= 1 {
        bad.push((first, one_line(&error.strip_backtrace())));
        return;
    }
    let half = count / 2;
    let rest = batch.slice(half, count - half);
    by_halves(&batch.slice(0, half), first, evaluate, parts, bad);
    by_halves(&rest, first + half, evaluate, parts, bad);
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Timestamps of any unit as instants in milliseconds; without a zone they are in UTC. Finer units are rounded down.
///
/// Arrow's own cast between zones goes through calendar dates, row by row, and fails for times beyond them.
fn instants(times: &ArrayRef) -> DataFusionResult<ArrayRef> {
    let millis =
        match times.data_type() {
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                times.as_primitive::<TimestampMillisecondType>().clone()
            }
            DataType::Timestamp(TimeUnit::Second, _) => times
                .as_primitive::<TimestampSecondType>()
                .unary::<_, TimestampMillisecondType>(|time| time.saturating_mul(1_000)),
            DataType::Timestamp(TimeUnit::Microsecond, _) => times
                .as_primitive::<TimestampMicrosecondType>()
                .unary::<_, TimestampMillisecondType>(|time| time.div_euclid(1_000)),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => times
                .as_primitive::<TimestampNanosecondType>()
                .unary::<_, TimestampMillisecondType>(|time| time.div_euclid(1_000_000)),
            other => {
                return Err(DataFusionError::Execution(format!(
                    "{other} is not a TIMESTAMP"
                )));
            }
        };
    Ok(Arc::new(millis.with_timezone("UTC")))
}

impl Engine {
    /// Checks a batch, moves the partition's position and clock, and leaves out what has no usable event time.
    pub(super) fn admit(
        &mut self,
        batch: &RecordBatch,
        dead: &mut LeftOut,
    ) -> Result<Admitted, EngineError> {
        let base = self.base(batch)?;
        let first = |name| column::<Int32Type>(&base, name).map(|values| values.first().copied());
        if let (Some(generation), Some(partition)) = (first(GENERATION)?, first(PARTITION)?) {
            self.begin(generation, partition);
        }
        let (generation, partition) = self.check(&base)?;
        let planned = &Arc::clone(&self.query).planned;
        self.progress.counters.records += base.num_rows() as u64;
        let all_offsets = column::<Int64Type>(&base, OFFSET)?;
        let end = all_offsets.last().map_or(0, |last| last + 1);
        let (bad, times) = rowwise(&base, |batch| {
            instants(&planned.time.evaluate(batch)?.into_array(batch.num_rows())?)
        })?;
        let (base, offsets) = match bad {
            None => (base.clone(), all_offsets.to_vec()),
            Some(bad) => {
                for (row, reason) in &bad.rows {
                    dead.push(
                        all_offsets[*row],
                        format!("the event time cannot be computed: {reason}"),
                    );
                }
                (
                    filter_record_batch(&base, &bad.good)?,
                    keep(all_offsets, &bad.good),
                )
            }
        };
        let (mask, before) =
            self.tell_time(generation, partition, &base, &offsets, &times, dead)?;
        let at = self.position(partition)?;
        at.generation = generation;
        at.next_offset = end;
        self.obey(partition);

        let mut columns = base.columns().to_vec();
        // A null event time is never kept, but must not stand in a column that has none.
        if planned.time_index < columns.len() {
            columns[planned.time_index] = times;
        } else {
            columns.push(times);
        }
        let mut admitted = Admitted {
            partition,
            time_index: planned.time_index,
            offsets,
            before,
            batch: base,
        };
        match mask {
            None => admitted.batch = RecordBatch::try_new(Arc::clone(&planned.full), columns)?,
            Some(mask) => {
                let columns: Vec<ArrayRef> = columns
                    .iter()
                    .map(|column| arrow_select::filter::filter(column, &mask))
                    .collect::<Result<_, _>>()?;
                admitted.batch = RecordBatch::try_new(Arc::clone(&planned.full), columns)?;
                admitted.offsets = keep(&admitted.offsets, &mask);
                admitted.before = keep(&admitted.before, &mask);
            }
        }
        Ok(admitted)
    }

    /// Moves the partition's clock record by record. Gives which records are usable (all, if `None`), and the watermark
    /// before each.
    fn tell_time(
        &mut self,
        generation: i32,
        partition: i32,
        base: &RecordBatch,
        offsets: &[i64],
        times: &ArrayRef,
        dead: &mut LeftOut,
    ) -> Result<(Option<BooleanArray>, Vec<i64>), EngineError> {
        let times: &TimestampMillisecondArray = times
            .as_primitive_opt::<TimestampMillisecondType>()
            .ok_or_else(|| {
                EngineError::Batch("the event time is not in milliseconds".to_owned())
            })?;
        let kafka: &TimestampMillisecondArray = base
            .column_by_name(TIMESTAMP)
            .and_then(|column| column.as_primitive_opt())
            .ok_or_else(|| EngineError::Batch(format!("no column {TIMESTAMP}")))?;
        let mut before = Vec::with_capacity(offsets.len());
        let mut good: Option<Vec<bool>> = None;
        let waiting = self.pending.contains_key(&partition);
        let (bound, max_future) = (self.bound, self.max_future);
        let mut clock = self.position(partition)?.clock;
        for (row, offset) in offsets.iter().enumerate() {
            if waiting {
                let at = self.position(partition)?;
                at.generation = generation;
                at.next_offset = *offset;
                at.clock = clock;
                self.obey(partition);
                clock = self.position(partition)?.clock;
            }
            before.push(clock.watermark(bound));
            let time = times.is_valid(row).then(|| times.value(row));
            let stamp = kafka.is_valid(row).then(|| kafka.value(row));
            match (time, unusable(time, stamp, max_future)) {
                (Some(time), None) => clock.see(time),
                (_, reason) => {
                    dead.push(*offset, reason.unwrap_or_default());
                    good.get_or_insert_with(|| vec![true; offsets.len()])[row] = false;
                }
            }
        }
        self.position(partition)?.clock = clock;
        Ok((good.map(BooleanArray::from), before))
    }

    /// The batch's columns in the order of the base schema.
    fn base(&mut self, batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
        let schema = batch.schema_ref();
        let known = self
            .source
            .as_ref()
            .is_some_and(|(known, _)| Arc::ptr_eq(known, schema) || known == schema);
        if !known {
            let mut indices = Vec::new();
            for field in self.query.planned.base.fields() {
                let (index, found) = schema.column_with_name(field.name()).ok_or_else(|| {
                    EngineError::Batch(format!("it has no column {}", field.name()))
                })?;
                let same = field.data_type() == found.data_type()
                    || field.name() == TIMESTAMP
                        && matches!(
                            found.data_type(),
                            DataType::Timestamp(TimeUnit::Millisecond, _)
                        );
                if !same {
                    return Err(EngineError::Batch(format!(
                        "its column {} is {} and not {}",
                        field.name(),
                        found.data_type(),
                        field.data_type()
                    )));
                }
                indices.push(index);
            }
            self.source = Some((Arc::clone(schema), indices));
        }
        let indices = self.source.as_ref().map_or(&[][..], |(_, indices)| indices);
        let base = &self.query.planned.base;
        let columns = indices
            .iter()
            .zip(base.fields())
            .map(|(index, field)| {
                let column = batch.column(*index);
                if column.data_type() == field.data_type() {
                    return Ok(Arc::clone(column));
                }
                datafusion::arrow::compute::cast(column, field.data_type())
            })
            .collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(Arc::clone(base), columns)
            .map_err(|error| EngineError::Batch(error.to_string()))
    }

    /// One generation, one assigned partition, offsets increasing from the position on.
    fn check(&self, base: &RecordBatch) -> Result<(i32, i32), EngineError> {
        let single = |name: &str| -> Result<i32, EngineError> {
            let values = column::<Int32Type>(base, name)?;
            let first = values.first().copied().unwrap_or_default();
            if values.iter().any(|value| *value != first) {
                return Err(EngineError::Batch(format!("it has more than one {name}")));
            }
            Ok(first)
        };
        let (generation, partition) = (single(GENERATION)?, single(PARTITION)?);
        let at = self
            .progress
            .partitions
            .get(&partition)
            .ok_or(EngineError::Unassigned(partition))?;
        let mut next = if generation > at.generation {
            0
        } else {
            at.next_offset
        };
        for &offset in column::<Int64Type>(base, OFFSET)? {
            if offset < next || generation < at.generation || offset == i64::MAX {
                return Err(EngineError::Order {
                    partition,
                    at_generation: at.generation,
                    at_offset: next.max(at.next_offset),
                    generation,
                    offset,
                });
            }
            next = offset + 1;
        }
        Ok((generation, partition))
    }
}

fn column<'a, T: arrow_array::ArrowPrimitiveType>(
    base: &'a RecordBatch,
    name: &str,
) -> Result<&'a [T::Native], EngineError> {
    base.column_by_name(name)
        .and_then(|column| column.as_primitive_opt::<T>())
        .map(|array| &array.values()[..])
        .ok_or_else(|| EngineError::Batch(format!("no column {name}")))
}
