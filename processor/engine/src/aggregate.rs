//! The query's aggregates: arguments out of a batch, state as bytes, results.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::FieldRef;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator, Operator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::BinaryExpr;

/// One aggregate function of the query.
#[derive(Debug)]
pub(crate) struct Aggregate {
    pub function: Arc<AggregateFunctionExpr>,
    /// What it is computed from: its arguments, then the keys it sorts by.
    pub inputs: Vec<Arc<dyn PhysicalExpr>>,
    /// Its FILTER (WHERE …).
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    pub state: Vec<FieldRef>,
}

impl Aggregate {
    pub fn new(
        function: AggregateFunctionExpr,
        filter: Option<Arc<dyn PhysicalExpr>>,
    ) -> Result<Self> {
        let mut inputs = function.expressions();
        inputs.extend(function.order_bys().iter().map(|key| Arc::clone(&key.expr)));
        let state = function.state_fields()?;
        Ok(Self {
            function: Arc::new(function),
            inputs,
            filter,
            state,
        })
    }

    fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>> {
        if self.function.groups_accumulator_supported() {
            return self.function.create_groups_accumulator();
        }
        let function = Arc::clone(&self.function);
        Ok(Box::new(GroupsAccumulatorAdapter::new(move || {
            function.create_accumulator()
        })))
    }
}

/// What one aggregate gets from a batch.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub columns: Vec<ArrayRef>,
    pub filter: Option<BooleanArray>,
}

impl Inputs {
    /// Keeps the rows that `mask` says.
    pub fn keep(&mut self, mask: &BooleanArray) -> Result<()> {
        for column in &mut self.columns {
            *column = arrow_select::filter::filter(column, mask)?;
        }
        if let Some(of_rows) = &mut self.filter {
            *of_rows = arrow_select::filter::filter(of_rows, mask)?
                .as_boolean()
                .clone();
        }
        Ok(())
    }
}

/// All aggregates of the query, and how their state is written.
#[derive(Debug)]
pub(crate) struct Aggregates {
    pub list: Vec<Aggregate>,
    converter: Option<RowConverter>,
}

impl Aggregates {
    pub fn new(list: Vec<Aggregate>) -> Result<Self> {
        let fields: Vec<SortField> = list
            .iter()
            .flat_map(|aggregate| &aggregate.state)
            .map(|field| SortField::new(field.data_type().clone()))
            .collect();
        let converter = if fields.is_empty() {
            None
        } else {
            Some(RowConverter::new(fields)?)
        };
        Ok(Self { list, converter })
    }

    /// Evaluates what every aggregate needs from `batch`.
    pub fn inputs(&self, batch: &RecordBatch) -> Result<Vec<Inputs>> {
        self.list
            .iter()
            .map(|aggregate| {
                let filter = match &aggregate.filter {
                    None => None,
                    Some(filter) => Some(mask(filter, batch)?),
                };
                let columns = match (evaluate(&aggregate.inputs, batch), &filter) {
                    // What its FILTER leaves out may be what it cannot be computed from.
                    (Err(_), Some(filter)) => evaluate_where(&aggregate.inputs, batch, filter)?,
                    (columns, _) => columns?,
                };
                Ok(Inputs { columns, filter })
            })
            .collect()
    }

    /// Starts to fold states and rows into `groups` groups.
    pub fn fold(&self, groups: usize) -> Result<Fold<'_>> {
        let accumulators = self
            .list
            .iter()
            .map(Aggregate::accumulator)
            .collect::<Result<Vec<_>>>()?;
        Ok(Fold {
            aggregates: self,
            accumulators,
            groups,
            places: Vec::new(),
        })
    }
}

/// Evaluates expressions to one array each.
pub(crate) fn evaluate(
    expressions: &[Arc<dyn PhysicalExpr>],
    batch: &RecordBatch,
) -> Result<Vec<ArrayRef>> {
    expressions
        .iter()
        .map(|expression| expression.evaluate(batch)?.into_array(batch.num_rows()))
        .collect()
}

/// Evaluates expressions for the rows that `mask` keeps; what the others have is not said.
fn evaluate_where(
    expressions: &[Arc<dyn PhysicalExpr>],
    batch: &RecordBatch,
    mask: &BooleanArray,
) -> Result<Vec<ArrayRef>> {
    expressions
        .iter()
        .map(|expression| {
            let values = expression.evaluate_selection(batch, mask)?;
            values.into_array(batch.num_rows())
        })
        .collect()
}

/// Evaluates a condition; null counts as false.
///
/// Where that fails and the condition is an AND, its right side is evaluated for the rows that the left side holds for:
/// DataFusion does so for few rows or none, and else computes `b / a` of `a <> 0 AND b / a > 1` for every row.
pub(crate) fn mask(condition: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<BooleanArray> {
    let error = match evaluate_condition(condition, batch, None) {
        Ok(mask) => return Ok(mask),
        Err(error) => error,
    };
    match condition.as_any().downcast_ref::<BinaryExpr>() {
        Some(both) if *both.op() == Operator::And => {
            let left = mask(both.left(), batch)?;
            let right = evaluate_condition(both.right(), batch, Some(&left))?;
            Ok(datafusion::arrow::compute::and(&left, &right)?)
        }
        _ => Err(error),
    }
}

/// Evaluates a condition, for the rows `of` if these are given.
fn evaluate_condition(
    condition: &Arc<dyn PhysicalExpr>,
    batch: &RecordBatch,
    of: Option<&BooleanArray>,
) -> Result<BooleanArray> {
    let values = match of {
        None => condition.evaluate(batch)?,
        Some(rows) => condition.evaluate_selection(batch, rows)?,
    };
    let array = values.into_array(batch.num_rows())?;
    let array = array.as_boolean_opt().ok_or_else(|| {
        datafusion::common::DataFusionError::Execution(format!(
            "a condition is {} and not BOOLEAN",
            array.data_type()
        ))
    })?;
    Ok(if array.null_count() == 0 {
        array.clone()
    } else {
        datafusion::arrow::compute::prep_null_mask_filter(array)
    })
}

/// The aggregates over a number of groups, while they are computed: first stored states, then rows.
///
/// DataFusion's accumulators take it for granted that a call has a value for every group that no call before it had; where
/// none of the values is null they do not look which groups have one. So groups with a stored state are placed first,
/// and [`Fold::merge`] shows the accumulators only these. Every other group must have a row in [`Fold::update`].
pub(crate) struct Fold<'a> {
    aggregates: &'a Aggregates,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    groups: usize,
    /// Where the accumulators have each group; the same place if empty.
    places: Vec<usize>,
}

impl Fold<'_> {
    /// Folds stored states in, once: state `i` into group `groups[i]`.
    pub fn merge(&mut self, states: &[&[u8]], groups: &[usize]) -> Result<()> {
        let Some(converter) = &self.aggregates.converter else {
            return Ok(());
        };
        if states.is_empty() {
            return Ok(());
        }
        let stored = self.place(groups);
        let groups: Vec<usize> = groups.iter().map(|group| self.places[*group]).collect();
        let parser = converter.parser();
        let columns = converter.convert_rows(states.iter().map(|bytes| parser.parse(bytes)))?;
        let mut columns = columns.as_slice();
        for (aggregate, accumulator) in self.aggregates.list.iter().zip(&mut self.accumulators) {
            let (own, rest) = columns.split_at(aggregate.state.len());
            accumulator.merge_batch(own, &groups, None, stored)?;
            columns = rest;
        }
        Ok(())
    }

    /// Places the groups that have a stored state first, in their order, and says how many there are.
    fn place(&mut self, stored: &[usize]) -> usize {
        let mut has_state = vec![false; self.groups];
        for group in stored {
            has_state[*group] = true;
        }
        let count = has_state.iter().filter(|has| **has).count();
        let (mut first, mut other) = (0, count);
        self.places = has_state
            .into_iter()
            .map(|has| {
                let next = if has { &mut first } else { &mut other };
                *next += 1;
                *next - 1
            })
            .collect();
        count
    }

    /// Folds rows in, once: row `i` into group `groups[i]`. The groups are the accumulators' afterwards.
    pub fn update(&mut self, inputs: &[Inputs], groups: &mut [usize]) -> Result<()> {
        if !self.places.is_empty() {
            for group in groups.iter_mut() {
                *group = self.places[*group];
            }
        }
        for (input, accumulator) in inputs.iter().zip(&mut self.accumulators) {
            accumulator.update_batch(&input.columns, groups, input.filter.as_ref(), self.groups)?;
        }
        Ok(())
    }

    /// The groups' states, a row of bytes each.
    pub fn states(mut self) -> Result<States> {
        let Some(converter) = &self.aggregates.converter else {
            return Ok(States {
                rows: None,
                places: Vec::new(),
            });
        };
        let mut columns = Vec::new();
        for accumulator in &mut self.accumulators {
            columns.extend(accumulator.state(EmitTo::All)?);
        }
        Ok(States {
            rows: Some(converter.convert_columns(&columns)?),
            places: self.places,
        })
    }

    /// The groups' results, a column per aggregate, where every group has a stored state.
    pub fn results(mut self) -> Result<Vec<ArrayRef>> {
        self.accumulators
            .iter_mut()
            .map(|accumulator| accumulator.evaluate(EmitTo::All))
            .collect()
    }
}

/// States of groups as bytes.
#[derive(Debug)]
pub(crate) struct States {
    rows: Option<Rows>,
    places: Vec<usize>,
}

impl States {
    pub fn group(&self, group: usize) -> &[u8] {
        let place = self.places.get(group).copied().unwrap_or(group);
        self.rows
            .as_ref()
            .map_or(&[], |rows| rows.row(place).data())
    }
}

/// The one key where nothing is grouped by: no store takes an empty one.
pub(crate) const NO_KEY: &[u8] = &[0];

/// Group keys as bytes that sort as their values do, nulls first.
#[derive(Debug)]
pub(crate) struct KeyCodec {
    pub fields: Vec<FieldRef>,
    converter: Option<RowConverter>,
}

impl KeyCodec {
    pub fn new(fields: Vec<FieldRef>) -> Result<Self> {
        let sort: Vec<SortField> = fields
            .iter()
            .map(|field| SortField::new(field.data_type().clone()))
            .collect();
        let converter = if sort.is_empty() {
            None
        } else {
            Some(RowConverter::new(sort)?)
        };
        Ok(Self { fields, converter })
    }

    pub fn write(&self, columns: &[ArrayRef], count: usize) -> Result<Vec<Vec<u8>>> {
        let Some(converter) = &self.converter else {
            return Ok(vec![NO_KEY.to_vec(); count]);
        };
        let rows = converter.convert_columns(columns)?;
        Ok(rows.iter().map(|row| row.data().to_vec()).collect())
    }

    pub fn read<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let Some(converter) = &self.converter else {
            return Ok(Vec::new());
        };
        let parser = converter.parser();
        let keys: Vec<&[u8]> = keys.collect();
        Ok(converter.convert_rows(keys.iter().map(|key| parser.parse(key)))?)
    }
}
