//! A version's rows in the order of the sweep, sorted on disk where they do not fit into memory.

use std::cmp::Ordering;
use std::fmt;
use std::sync::atomic::{self, AtomicI64};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt64Array};
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use arrow_select::filter::filter_record_batch;
use arrow_select::take::take_record_batch;
use datafusion::arrow::compute::cast;
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext, ident};
use everlog_table::job::JobScan;
use futures::{StreamExt as _, TryStreamExt as _};
use twox_hash::XxHash3_64;

use super::{Columns, CompareError, Edges, Settings, Side};

/// A sort needs room for some batches, however small the budget.
const SORT_BYTES_MIN: usize = 8 << 20;
/// A batch is this part of the budget, at most.
const PIECES: usize = 32;

/// A version's rows, one after the other.
pub(super) struct Sorted {
    version: String,
    stream: SendableRecordBatchStream,
    plan: Arc<dyn ExecutionPlan>,
    converters: Converters,
    columns: Arc<Columns>,
    /// Of a window one of whose edges alone is put out.
    length: i64,
    current: Option<Arc<Prepared>>,
    next: usize,
    /// Rows in the snapshot, sampled or not.
    pub(super) rows: u64,
    lengths: Arc<Lengths>,
}

/// How long windows are, in milliseconds, as far as rows came by.
#[derive(Debug)]
struct Lengths {
    shortest: AtomicI64,
    longest: AtomicI64,
}

impl Default for Lengths {
    fn default() -> Self {
        Self {
            shortest: AtomicI64::new(i64::MAX),
            longest: AtomicI64::new(0),
        }
    }
}

impl Lengths {
    /// Notes those of a batch. What is no time is told where rows are prepared.
    fn note(&self, batch: &RecordBatch, edges: &Edges) {
        let Edges::Both { start, end } = edges else {
            return;
        };
        let times = |name: &str, up| {
            batch
                .column_by_name(name)
                .and_then(|of| millis(of, up).ok())
        };
        let (Some(starts), Some(ends)) = (times(start, false), times(end, true)) else {
            return;
        };
        for (start, end) in starts.iter().zip(&ends) {
            let length = end.saturating_sub(*start);
            self.shortest.fetch_min(length, atomic::Ordering::Relaxed);
            self.longest.fetch_max(length, atomic::Ordering::Relaxed);
        }
    }
}

/// What makes rows of both sides comparable.
struct Converters {
    keys: Option<RowConverter>,
    rest: Option<RowConverter>,
}

/// A batch, ready to be compared.
pub(super) struct Prepared {
    pub(super) batch: RecordBatch,
    keys: Option<Rows>,
    rest: Option<Rows>,
    start: Vec<i64>,
    end: Vec<i64>,
    /// Per measure.
    measures: Vec<Values>,
}

/// One row.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) of: Arc<Prepared>,
    pub(super) index: usize,
}

impl Row {
    pub(super) fn key(&self) -> &[u8] {
        self.of
            .keys
            .as_ref()
            .and_then(|keys| (self.index < keys.num_rows()).then(|| keys.row(self.index).data()))
            .unwrap_or_default()
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.of
            .rest
            .as_ref()
            .and_then(|rest| (self.index < rest.num_rows()).then(|| rest.row(self.index).data()))
            .unwrap_or_default()
    }

    /// In milliseconds, rounded down.
    pub(super) fn start(&self) -> i64 {
        self.of.start.get(self.index).copied().unwrap_or(i64::MIN)
    }

    /// In milliseconds, rounded up.
    pub(super) fn end(&self) -> i64 {
        self.of.end.get(self.index).copied().unwrap_or(i64::MAX)
    }

    pub(super) fn window_cmp(&self, other: &Self) -> Ordering {
        self.key()
            .cmp(other.key())
            .then(self.start().cmp(&other.start()))
            .then(self.end().cmp(&other.end()))
    }

    /// The value of a measure; nulls count nothing.
    pub(super) fn measure(&self, measure: usize) -> Number {
        self.of
            .measures
            .get(measure)
            .map_or(Number::default(), |values| values.at(self.index))
    }
}

/// Values of a measure.
enum Values {
    Exact(Vec<i128>, u32),
    Float(Vec<f64>),
}

impl Values {
    fn of(array: &ArrayRef) -> Result<Self, String> {
        let failed = |e: arrow_schema::ArrowError| e.to_string();
        match array.data_type() {
            DataType::Decimal128(_, scale) => {
                let values = array.as_primitive::<Decimal128Type>();
                let exact = values.iter().map(Option::unwrap_or_default).collect();
                Ok(Self::Exact(exact, u32::try_from(*scale).unwrap_or(0)))
            }
            of if of.is_integer() => {
                let wide = cast(array, &DataType::Int64).map_err(failed)?;
                let values = wide.as_primitive::<Int64Type>();
                let exact = values
                    .iter()
                    .map(|v| v.unwrap_or_default().into())
                    .collect();
                Ok(Self::Exact(exact, 0))
            }
            of if of.is_floating() => {
                let wide = cast(array, &DataType::Float64).map_err(failed)?;
                let values = wide.as_primitive::<Float64Type>();
                Ok(Self::Float(
                    values.iter().map(Option::unwrap_or_default).collect(),
                ))
            }
            other => Err(format!("is {other}, which has no sum")),
        }
    }

    fn at(&self, index: usize) -> Number {
        match self {
            Self::Exact(values, scale) => Number::Exact {
                unscaled: values.get(index).copied().unwrap_or_default(),
                scale: *scale,
            },
            Self::Float(values) => Number::Float(values.get(index).copied().unwrap_or_default()),
        }
    }
}

/// A sum: exact for integers and decimals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// `unscaled` / 10^`scale`.
    Exact {
        /// The digits.
        unscaled: i128,
        /// Of which so many are behind the point.
        scale: u32,
    },
    /// A floating-point number.
    Float(f64),
}

impl Default for Number {
    fn default() -> Self {
        Self::Exact {
            unscaled: 0,
            scale: 0,
        }
    }
}

impl Number {
    pub(super) fn plus(self, other: Self) -> Self {
        match (self, other) {
            (
                Self::Exact { unscaled, scale },
                Self::Exact {
                    unscaled: more,
                    scale: other,
                },
            ) => {
                let wide = scale.max(other);
                let raised =
                    |n: i128, by: u32| 10_i128.checked_pow(by).and_then(|ten| n.checked_mul(ten));
                let sum = raised(unscaled, wide - scale)
                    .zip(raised(more, wide - other))
                    .and_then(|(a, b)| a.checked_add(b));
                match sum {
                    Some(unscaled) => Self::Exact {
                        unscaled,
                        scale: wide,
                    },
                    None => Self::Float(self.as_f64() + other_f64(more, other)),
                }
            }
            (a, b) => Self::Float(a.as_f64() + b.as_f64()),
        }
    }

    pub(super) fn as_f64(self) -> f64 {
        match self {
            Self::Exact { unscaled, scale } => other_f64(unscaled, scale),
            Self::Float(value) => value,
        }
    }

    /// Whether two sums are the same, floats within a share of the larger.
    pub(super) fn agrees(self, other: Self, tolerance: f64) -> bool {
        match (self, other) {
            (Self::Exact { .. }, Self::Exact { .. }) => {
                // brought to one scale by adding nothing of the other's
                let zero = |of: Self| match of {
                    Self::Exact { scale, .. } => Self::Exact { unscaled: 0, scale },
                    Self::Float(_) => Self::Float(0.0),
                };
                self.plus(zero(other)) == other.plus(zero(self))
            }
            (a, b) => {
                let (a, b) = (a.as_f64(), b.as_f64());
                // also two infinities, whose difference is no number
                a.total_cmp(&b).is_eq()
                    || (a - b).abs() <= tolerance * a.abs().max(b.abs())
                    || (a.is_nan() && b.is_nan())
            }
        }
    }
}

fn other_f64(unscaled: i128, scale: u32) -> f64 {
    #[allow(
        clippy::cast_precision_loss,
        reason = "shown or compared as a float then"
    )]
    let value = unscaled as f64;
    value / 10_f64.powi(i32::try_from(scale).unwrap_or(i32::MAX))
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exact { unscaled, scale: 0 } => write!(f, "{unscaled}"),
            Self::Exact { unscaled, scale } => {
                let digits = unscaled.unsigned_abs().to_string();
                let scale = usize::try_from(scale).unwrap_or(0);
                let digits = format!("{digits:0>width$}", width = scale + 1);
                let (whole, part) = digits.split_at(digits.len() - scale);
                let sign = if unscaled < 0 { "-" } else { "" };
                write!(f, "{sign}{whole}.{part}")
            }
            Self::Float(value) => write!(f, "{value}"),
        }
    }
}

impl serde::Serialize for Number {
    /// As text: JSON's numbers are floats with many readers.
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Sorted {
    pub(super) async fn open(
        side: &Side,
        columns: &Arc<Columns>,
        share: f64,
        settings: &Settings,
    ) -> Result<Self, CompareError> {
        let scan = side
            .table
            .scan(side.snapshot_id, Some(&columns.compared))
            .await?;
        let rows = scan.rows();
        let schema = scan.schema();
        let failed = |what: String| CompareError::Sort {
            version: side.version.clone(),
            what,
        };
        let sort_error = |error: DataFusionError| failed(error.to_string());
        let budget = (settings.memory / 2).max(SORT_BYTES_MIN);
        let mode = match &settings.folder {
            Some(folder) => DiskManagerMode::Directories(vec![folder.clone()]),
            None => DiskManagerMode::OsTmpDirectory,
        };
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_limit(budget, 1.0)
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(mode))
            .build_arc()
            .map_err(sort_error)?;
        let config = SessionConfig::new()
            .with_target_partitions(1)
            .with_batch_size(1024)
            .with_sort_spill_reservation_bytes(budget / 4);
        let context = SessionContext::new_with_config_rt(config, runtime);
        let lengths = Arc::new(Lengths::default());
        let source = Source {
            lengths: Arc::clone(&lengths),
            scan: Mutex::new(Some(Arc::new(scan))),
            schema: Arc::clone(&schema),
            columns: Arc::clone(columns),
            share,
            piece: budget / PIECES,
        };
        let table = StreamingTable::try_new(Arc::clone(&schema), vec![Arc::new(source)])
            .map_err(sort_error)?;
        let window = columns.window.iter().flat_map(Edges::columns);
        let by: Vec<_> = columns
            .keys
            .iter()
            .chain(window)
            .chain(&columns.rest)
            .map(|column| ident(column).sort(true, true))
            .collect();
        let mut sorted = context.read_table(Arc::new(table)).map_err(sort_error)?;
        if !by.is_empty() {
            sorted = sorted.sort(by).map_err(sort_error)?;
        }
        let task = Arc::new(sorted.task_ctx());
        let plan = sorted.create_physical_plan().await.map_err(sort_error)?;
        let stream = execute_stream(Arc::clone(&plan), task).map_err(sort_error)?;
        let converter = |names: &[String]| -> Result<Option<RowConverter>, CompareError> {
            if names.is_empty() {
                return Ok(None);
            }
            let fields: Result<Vec<SortField>, _> = names
                .iter()
                .map(|name| {
                    schema
                        .field_with_name(name)
                        .map(|field| SortField::new(field.data_type().clone()))
                })
                .collect();
            fields
                .and_then(RowConverter::new)
                .map(Some)
                .map_err(|e| failed(e.to_string()))
        };
        Ok(Self {
            version: side.version.clone(),
            stream,
            plan,
            converters: Converters {
                keys: converter(&columns.keys)?,
                rest: converter(&columns.rest)?,
            },
            columns: Arc::clone(columns),
            length: side.length_ms,
            current: None,
            next: 0,
            rows,
            lengths,
        })
    }

    /// By how much windows of this version differ in length, in milliseconds; 0 where all are of one length. Known with the
    /// first row, as a sort reads all of them before.
    pub(super) fn stretch(&self) -> i64 {
        let of = |length: &AtomicI64| length.load(atomic::Ordering::Relaxed);
        of(&self.lengths.longest)
            .saturating_sub(of(&self.lengths.shortest))
            .max(0)
    }

    /// How often the sort has put rows on disk so far.
    pub(super) fn spills(&self) -> usize {
        let mut spills = 0;
        let mut plans = vec![Arc::clone(&self.plan)];
        while let Some(plan) = plans.pop() {
            spills += plan.metrics().and_then(|m| m.spill_count()).unwrap_or(0);
            plans.extend(plan.children().into_iter().cloned());
        }
        spills
    }

    /// The next row; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Row>, CompareError> {
        loop {
            if let Some(current) = &self.current
                && self.next < current.batch.num_rows()
            {
                self.next += 1;
                return Ok(Some(Row {
                    of: Arc::clone(current),
                    index: self.next - 1,
                }));
            }
            let Some(batch) = self.stream.next().await else {
                self.current = None;
                return Ok(None);
            };
            let failed = |what: String| CompareError::Sort {
                version: self.version.clone(),
                what,
            };
            let batch = batch.map_err(|e| failed(e.to_string()))?;
            let prepared = prepare(batch, &self.columns, self.length, &self.converters);
            let prepared = prepared.map_err(failed)?;
            self.current = Some(Arc::new(prepared));
            self.next = 0;
        }
    }
}

fn prepare(
    batch: RecordBatch,
    columns: &Columns,
    length: i64,
    converters: &Converters,
) -> Result<Prepared, String> {
    let column = |name: &String| {
        batch
            .column_by_name(name)
            .cloned()
            .ok_or_else(|| format!("column {name} is missing"))
    };
    let converted =
        |names: &[String], converter: Option<&RowConverter>| -> Result<Option<Rows>, String> {
            let Some(converter) = converter else {
                return Ok(None);
            };
            let arrays: Vec<ArrayRef> = names.iter().map(column).collect::<Result<_, _>>()?;
            converter
                .convert_columns(&arrays)
                .map(Some)
                .map_err(|e| e.to_string())
        };
    let (start, end) = match &columns.window {
        Some(edges) => {
            let time = |name: &String, up: bool| {
                millis(&column(name)?, up).map_err(|what| format!("column {name} {what}"))
            };
            let moved = |times: &[i64], by: i64| -> Vec<i64> {
                times.iter().map(|at| at.saturating_add(by)).collect()
            };
            match edges {
                Edges::Both { start, end } => (time(start, false)?, time(end, true)?),
                Edges::Start(start) => {
                    let start = time(start, false)?;
                    let end = moved(&start, length);
                    (start, end)
                }
                Edges::End(end) => {
                    let end = time(end, true)?;
                    (moved(&end, -length), end)
                }
            }
        }
        None => (vec![0; batch.num_rows()], vec![0; batch.num_rows()]),
    };
    let measures: Result<Vec<Values>, String> = columns
        .measures
        .iter()
        .map(|name| Values::of(&column(name)?).map_err(|what| format!("column {name} {what}")))
        .collect();
    Ok(Prepared {
        keys: converted(&columns.keys, converters.keys.as_ref())?,
        rest: converted(&columns.rest, converters.rest.as_ref())?,
        start,
        end,
        measures: measures?,
        batch,
    })
}

/// Times in milliseconds.
fn millis(array: &ArrayRef, up: bool) -> Result<Vec<i64>, String> {
    let micros = match array.data_type() {
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        other => return Err(format!("is {other} and no time")),
    };
    let times = cast(array, &micros).map_err(|e| e.to_string())?;
    let times = times.as_primitive::<TimestampMicrosecondType>();
    Ok(times
        .iter()
        .map(|at| {
            let at = at.unwrap_or_default();
            let down = at.div_euclid(1_000);
            if up && at.rem_euclid(1_000) != 0 {
                down + 1
            } else {
                down
            }
        })
        .collect())
}

/// The latest end of a window, in milliseconds.
pub(super) async fn last(side: &Side, edges: &Edges) -> Result<Option<i64>, CompareError> {
    let (column, after) = match edges {
        Edges::Both { end, .. } | Edges::End(end) => (end, 0),
        Edges::Start(start) => (start, side.length_ms),
    };
    let scan = side
        .table
        .scan(side.snapshot_id, Some(std::slice::from_ref(column)))
        .await?;
    let mut last = None;
    let mut batches = Box::pin(scan.batches());
    while let Some(batch) = batches.try_next().await? {
        let Some(array) = batch.columns().first() else {
            break;
        };
        let times = millis(array, false).map_err(|what| CompareError::Sort {
            version: side.version.clone(),
            what: format!("column {column} {what}"),
        })?;
        last = last.max(times.into_iter().max());
    }
    Ok(last.map(|last| last.saturating_add(after)))
}

/// The snapshot's rows, those of sampled keys alone, for the sort.
struct Source {
    lengths: Arc<Lengths>,
    /// Taken by the one execution that there is.
    scan: Mutex<Option<Arc<JobScan>>>,
    schema: SchemaRef,
    columns: Arc<Columns>,
    share: f64,
    /// Bytes that are handed over at once, about.
    piece: usize,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
}

impl PartitionStream for Source {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let scan = self
            .scan
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let batches = match scan {
            Some(scan) => JobScan::clone(&scan).batches().boxed(),
            None => futures::stream::empty().boxed(),
        };
        let keys = self.columns.keys.clone();
        let (share, piece) = (self.share, self.piece);
        let (lengths, window) = (Arc::clone(&self.lengths), self.columns.window.clone());
        let sampled = batches
            .map_err(|error| DataFusionError::External(Box::new(error)))
            .and_then(move |batch| {
                let sampled = sample(batch, &keys, share).and_then(|batch| {
                    if let Some(edges) = &window {
                        lengths.note(&batch, edges);
                    }
                    pieces(&batch, piece)
                });
                async move { sampled }
            })
            .map_ok(|pieces| futures::stream::iter(pieces.into_iter().map(Ok)))
            .try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            sampled,
        ))
    }
}

/// A batch in pieces of about so many bytes, each with memory of its own: a sort counts all that a batch holds on to, and has
/// to hold some of them at once.
fn pieces(batch: &RecordBatch, bytes: usize) -> Result<Vec<RecordBatch>, DataFusionError> {
    let rows = batch.num_rows();
    let held = batch.get_array_memory_size();
    if held <= bytes || rows == 0 {
        return Ok(vec![batch.clone()]);
    }
    let per_piece = (rows / held.div_ceil(bytes.max(1))).max(1);
    (0..rows)
        .step_by(per_piece)
        .map(|from| {
            let to = (from + per_piece).min(rows);
            let places: UInt64Array = (from as u64..to as u64).collect();
            take_record_batch(batch, &places)
                .map_err(|error| DataFusionError::ArrowError(Box::new(error), None))
        })
        .collect()
}

/// The rows of keys whose hash lies below the share: a function of the key alone.
fn sample(batch: RecordBatch, keys: &[String], share: f64) -> Result<RecordBatch, DataFusionError> {
    if share >= 1.0 || keys.is_empty() {
        return Ok(batch);
    }
    let arrays: Vec<ArrayRef> = keys
        .iter()
        .filter_map(|key| batch.column_by_name(key).cloned())
        .collect();
    let fields = arrays
        .iter()
        .map(|array| SortField::new(array.data_type().clone()))
        .collect();
    let rows = RowConverter::new(fields)
        .and_then(|converter| converter.convert_columns(&arrays))
        .map_err(|error| DataFusionError::ArrowError(Box::new(error), None))?;
    let kept: BooleanArray = rows
        .iter()
        .map(|row| Some(is_sampled(row.data(), share)))
        .collect();
    filter_record_batch(&batch, &kept)
        .map_err(|error| DataFusionError::ArrowError(Box::new(error), None))
}

fn is_sampled(key: &[u8], share: f64) -> bool {
    // 53 bits: as many as a float has
    let place = (XxHash3_64::oneshot(key) >> 11) as f64 / (1_u64 << 53) as f64;
    place < share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(unscaled: i128, scale: u32) -> Number {
        Number::Exact { unscaled, scale }
    }

    #[test]
    fn sums_of_decimals_are_exact_and_readable() {
        let sum = exact(105, 2).plus(exact(-3, 0)).plus(exact(5, 1));
        assert_eq!(sum.to_string(), "-1.45");
        assert_eq!(exact(7, 3).to_string(), "0.007");
        assert!(exact(10, 1).agrees(exact(1, 0), 0.0));
        assert!(!exact(11, 1).agrees(exact(1, 0), 0.5));
    }

    #[test]
    fn floats_agree_within_the_tolerance() {
        assert!(Number::Float(0.1 + 0.2).agrees(Number::Float(0.3), 1e-9));
        assert!(!Number::Float(0.31).agrees(Number::Float(0.3), 1e-9));
    }

    #[test]
    fn a_sample_is_about_the_share_and_always_the_same() {
        let kept = |share: f64| {
            (0..10_000_u32)
                .filter(|n| is_sampled(&n.to_be_bytes(), share))
                .count()
        };
        let some = kept(0.25);
        assert!((2_300..2_700).contains(&some), "{some}");
        assert_eq!(kept(0.25), some);
        assert_eq!(kept(1.0), 10_000);
        // a smaller sample is part of a larger one
        assert!(
            (0..1_000_u32)
                .all(|n| !is_sampled(&n.to_be_bytes(), 0.1) || is_sampled(&n.to_be_bytes(), 0.2))
        );
    }
}
