//! From the parsed query to what the engine runs, by DataFusion's planner, analyzer and simplifier.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue, TableReference};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::expr::{AggregateFunction, NullTreatment, Sort};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Volatility};
use datafusion::optimizer::analyzer::Analyzer;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Optimizer, OptimizerContext};
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr, create_physical_sort_exprs};
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};

use super::Refusal;
use super::functions::{Context, Edge, WINDOWS, edge, instant};
use super::text;
use crate::aggregate::{Aggregate, Aggregates, Inputs, KeyCodec};
use crate::exact;
use crate::window::Window;

/// The name of the event time in SQL.
pub(crate) const EVENT_TIME: &str = "ts";
pub(crate) const GENERATION: &str = "_generation";
pub(crate) const PARTITION: &str = "_partition";
pub(crate) const OFFSET: &str = "_offset";
pub(crate) const TIMESTAMP: &str = "_timestamp";

/// A query that has been checked, as expressions over batches.
#[derive(Debug)]
pub(crate) struct Planned {
    /// The columns that a batch must bring: the source's, then where each record came from.
    pub base: SchemaRef,
    /// The same with the event time.
    pub full: SchemaRef,
    /// Where in `full` the event time stands.
    pub time_index: usize,
    /// The event time, over `base`.
    pub time: Arc<dyn PhysicalExpr>,
    /// WHERE, over `full`.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    /// The window and what follows it; without one, the projection over `full`.
    pub windowed: Option<Windowed>,
    pub projection: Vec<Arc<dyn PhysicalExpr>>,
    pub output: SchemaRef,
    /// The plan as text, which names everything that decides the rows.
    pub text: String,
    pub filter_text: Option<String>,
}

/// The windowed part of a query.
#[derive(Debug)]
pub(crate) struct Windowed {
    pub window: Window,
    /// Which columns of the full schema keys and aggregates need; their expressions are over these.
    pub columns: Vec<usize>,
    pub keys: Vec<Arc<dyn PhysicalExpr>>,
    pub codec: KeyCodec,
    pub aggregates: Aggregates,
    /// Keys, aggregates and the window's edges: what HAVING and SELECT see.
    pub grouped: SchemaRef,
    pub having: Option<Arc<dyn PhysicalExpr>>,
}

impl Windowed {
    /// Takes one row of nulls all the way from keys and arguments through the state to a result, so that what DataFusion
    /// plans but cannot run is known when the job is checked, and not when its first window fires.
    fn rehearse(&self, narrow: &DFSchema) -> datafusion::common::Result<()> {
        let null = |expression: &Arc<dyn PhysicalExpr>| {
            let data_type = expression.data_type(narrow.as_arrow())?;
            Ok(arrow_array::new_null_array(&data_type, 1))
        };
        let nulls = |expressions: &[Arc<dyn PhysicalExpr>]| {
            expressions
                .iter()
                .map(null)
                .collect::<datafusion::common::Result<Vec<_>>>()
        };
        let keys = self.codec.write(&nulls(&self.keys)?, 1)?;
        let mut columns = self.codec.read(keys.iter().map(Vec::as_slice))?;
        let inputs = self
            .aggregates
            .list
            .iter()
            .map(|aggregate| {
                let columns = nulls(&aggregate.inputs)?;
                Ok(Inputs {
                    columns,
                    filter: None,
                })
            })
            .collect::<datafusion::common::Result<Vec<_>>>()?;
        let mut fold = self.aggregates.fold(1)?;
        fold.update(&inputs, &mut [0])?;
        let states = fold.states()?;
        let mut fold = self.aggregates.fold(1)?;
        fold.merge(&[states.group(0)], &[0])?;
        columns.extend(fold.results()?);
        for (column, field) in columns.iter().zip(self.grouped.fields()) {
            if column.data_type() != field.data_type() {
                return datafusion::common::plan_err!(
                    "{} has two types, {} and {}",
                    field.name(),
                    field.data_type(),
                    column.data_type()
                );
            }
        }
        Ok(())
    }
}

fn options() -> ParserOptions {
    ParserOptions {
        // As in Flink, names are written as they are declared.
        enable_ident_normalization: false,
        map_string_types_to_utf8view: false,
        ..ParserOptions::default()
    }
}

/// Plans `sql` over a source with `schema`, in SQL called `table`, whose event time is `event_time`.
pub(crate) fn plan(
    sql: &str,
    table: &str,
    schema: &SchemaRef,
    event_time: &str,
) -> Result<Planned, Refusal> {
    let base = base_schema(schema)?;
    let time = plan_time(table, &base, event_time)?;
    let (full, time_index) = full_schema(&base, event_time)?;
    let mut columns: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
    if !columns.iter().any(|name| name == EVENT_TIME) {
        columns.push(EVENT_TIME.to_owned());
    }
    let mut statement = text::parse(sql)?;
    text::prepare(&mut statement, &columns)?;
    let context = Context::new(table, Arc::clone(&full));
    let planner = SqlToRel::new_with_options(&context, options());
    let plan = planner.sql_statement_to_plan(statement)?;
    refuse_volatile(&plan)?;
    let plan = analyze(plan)?;
    let text = plan.display_indent().to_string();
    split(&plan, base, full, time_index, time, text)
}

fn base_schema(schema: &SchemaRef) -> Result<SchemaRef, Refusal> {
    let own = [
        Field::new(GENERATION, DataType::Int32, false),
        Field::new(PARTITION, DataType::Int32, false),
        Field::new(OFFSET, DataType::Int64, false),
        Field::new(TIMESTAMP, instant(), true),
    ];
    for (i, field) in schema.fields().iter().enumerate() {
        if own.iter().any(|own| own.name() == field.name()) {
            return Err(Refusal::new(format!("the source declares the column {}", field.name()))
                .instead("_generation, _partition, _offset and _timestamp are there without being declared"));
        }
        if schema.fields()[..i]
            .iter()
            .any(|other| other.name() == field.name())
        {
            return Err(Refusal::new(format!(
                "the source declares the column {} twice",
                field.name()
            )));
        }
    }
    let fields = schema
        .fields()
        .iter()
        .cloned()
        .chain(own.into_iter().map(Arc::new));
    Ok(Arc::new(Schema::new(fields.collect::<Vec<FieldRef>>())))
}

fn full_schema(base: &SchemaRef, event_time: &str) -> Result<(SchemaRef, usize), Refusal> {
    let field = Arc::new(Field::new(EVENT_TIME, instant(), false));
    let mut fields: Vec<FieldRef> = base.fields().to_vec();
    let index = match fields.iter().position(|field| field.name() == EVENT_TIME) {
        Some(index) if event_time.trim() == EVENT_TIME => {
            fields[index] = field;
            index
        }
        Some(_) => {
            return Err(Refusal::new(
                "the source has a column ts, but SQL knows the event time under that name",
            )
            .instead("rename the column, or make it the event time (event_time = \"ts\")"));
        }
        None => {
            fields.push(field);
            fields.len() - 1
        }
    };
    Ok((Arc::new(Schema::new(fields)), index))
}

/// The type of an expression over the columns of `schema`, of a source called `table`; none where it means nothing alone.
pub(crate) fn type_of(
    table: &str,
    schema: &SchemaRef,
    expression: datafusion::sql::sqlparser::ast::Expr,
) -> Option<DataType> {
    let context = Context::new(table, Arc::clone(schema));
    let planner = SqlToRel::new_with_options(&context, options());
    let scan =
        LogicalPlanBuilder::scan(TableReference::bare(table), context.source(), None).ok()?;
    let expression = planner
        .sql_to_expr(expression, scan.schema(), &mut PlannerContext::new())
        .ok()?;
    expression.get_type(scan.schema()).ok()
}

fn plan_time(
    table: &str,
    base: &SchemaRef,
    event_time: &str,
) -> Result<Arc<dyn PhysicalExpr>, Refusal> {
    let context = Context::new(table, Arc::clone(base));
    let planner = SqlToRel::new_with_options(&context, options());
    let scan = LogicalPlanBuilder::scan(TableReference::bare(table), context.source(), None)?;
    let parsed = text::parse_expression(event_time)?;
    let expression = planner
        .sql_to_expr(parsed, scan.schema(), &mut PlannerContext::new())
        .map_err(|error| {
            let refusal = Refusal::from(error);
            Refusal::new(format!("event_time = \"{event_time}\": {}", refusal.reason))
        })?;
    let plan = scan.project(vec![expression.alias(EVENT_TIME)])?.build()?;
    refuse_volatile(&plan)?;
    let LogicalPlan::Projection(projection) = analyze(plan)? else {
        return Err(Refusal::new(format!(
            "event_time = \"{event_time}\" is not an expression"
        )));
    };
    let schema = projection.input.schema();
    let [expression] = projection.expr.as_slice() else {
        return Err(Refusal::new(format!(
            "event_time = \"{event_time}\" is not one expression"
        )));
    };
    let expression = expression.clone().unalias();
    let data_type = expression.get_type(schema)?;
    match data_type {
        DataType::Timestamp(..) => {}
        DataType::Int64 | DataType::UInt64 | DataType::Int32 => {
            return Err(Refusal::new(format!("event_time = \"{event_time}\" is a number"))
                .instead("say what it counts: to_timestamp_millis(column) or to_timestamp_seconds(column)"));
        }
        other => {
            return Err(Refusal::new(format!(
                "event_time = \"{event_time}\" is {other} and not a TIMESTAMP"
            ))
            .instead("convert it: to_timestamp(column), to_timestamp_millis(column)"));
        }
    }
    Ok(create_physical_expr(
        &expression,
        schema,
        &ExecutionProps::new(),
    )?)
}

fn analyze(plan: LogicalPlan) -> Result<LogicalPlan, Refusal> {
    let mut config = ConfigOptions::default();
    config.sql_parser.map_string_types_to_utf8view = false;
    let plan = Analyzer::new().execute_and_check(plan, &config, |_, _| {})?;
    // No other rule: they may move or rewrite what stands for the window.
    let optimizer = Optimizer::with_rules(vec![Arc::new(SimplifyExpressions::new())]);
    let context = OptimizerContext::new()
        .without_query_execution_start_time()
        .with_skip_failing_rules(false);
    Ok(optimizer.optimize(plan, &context, |_, _| {})?)
}

/// A function whose answer is not the same in a replay is refused before anything folds it.
fn refuse_volatile(plan: &LogicalPlan) -> Result<(), Refusal> {
    let mut refusal = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|expression| {
                if let Expr::ScalarFunction(call) = expression
                    && call.func.signature().volatility != Volatility::Immutable
                {
                    let name = call.func.name().to_owned();
                    refusal = Some(
                        Refusal::new(format!("{name}() gives another answer in each run, so that no replay could repeat its rows"))
                            .instead("use the event time ts, or _timestamp, the record's Kafka timestamp"),
                    );
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    refusal.map_or(Ok(()), Err)
}

/// Takes the plan apart: SELECT over HAVING over GROUP BY over WHERE over the source.
fn split(
    plan: &LogicalPlan,
    base: SchemaRef,
    full: SchemaRef,
    time_index: usize,
    time: Arc<dyn PhysicalExpr>,
    text: String,
) -> Result<Planned, Refusal> {
    let LogicalPlan::Projection(select) = plan else {
        return Err(unexpected(plan));
    };
    let (above, below) = conditions(&select.input);
    let props = ExecutionProps::new();
    let (windowed, projection, seen, filters) = match below {
        LogicalPlan::Aggregate(aggregate) => {
            let (filters, leaf) = conditions(&aggregate.input);
            check_leaf(leaf)?;
            let grouped = Grouped::new(aggregate, leaf.schema())?;
            let post = grouped.schema.clone();
            let rewrite = |expression: &Expr| grouped.rewrite(expression);
            let projection = select
                .expr
                .iter()
                .map(rewrite)
                .collect::<Result<Vec<_>, _>>()?;
            let having = above
                .iter()
                .map(|e| rewrite(e))
                .collect::<Result<Vec<_>, _>>()?;
            let having = physical_condition(having, &post)?;
            let windowed = grouped.finish(aggregate, leaf.schema(), having)?;
            (Some(windowed), projection, post, filters)
        }
        leaf => {
            check_leaf(leaf)?;
            let schema = leaf.schema().as_ref().clone();
            for expression in select.expr.iter().chain(above.iter().copied()) {
                refuse_windows(expression)?;
            }
            (None, select.expr.clone(), schema, above)
        }
    };
    let leaf_schema = leaf_of(plan).schema();
    for filter in &filters {
        refuse_windows(filter)?;
    }
    let filters: Vec<Expr> = filters.into_iter().cloned().collect();
    let filter_text = (!filters.is_empty()).then(|| {
        filters
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" AND ")
    });
    let filter = physical_condition(filters, leaf_schema)?;
    let mut fields: Vec<Field> = Vec::new();
    let mut expressions = Vec::new();
    for (expression, named) in projection.iter().zip(select.schema.fields()) {
        let physical = create_physical_expr(expression, &seen, &props)?;
        let data_type = physical.data_type(seen.as_arrow())?;
        if data_type == DataType::Null {
            return Err(
                Refusal::new(format!("the column {} is only ever NULL", named.name()))
                    .instead("give it a type: CAST(NULL AS STRING)"),
            );
        }
        if fields.iter().any(|field| field.name() == named.name()) {
            return Err(
                Refusal::new(format!("two columns are called {}", named.name()))
                    .instead("name them with AS"),
            );
        }
        let nullable = physical.nullable(seen.as_arrow())?;
        fields.push(Field::new(named.name(), data_type, nullable));
        expressions.push(physical);
    }
    Ok(Planned {
        base,
        full,
        time_index,
        time,
        filter,
        windowed,
        projection: expressions,
        output: Arc::new(Schema::new(fields)),
        text,
        filter_text,
    })
}

fn unexpected(plan: &LogicalPlan) -> Refusal {
    let text = plan.display().to_string();
    Refusal::new(format!("this part of it is not supported: {text}"))
        .instead("write it as SELECT … FROM source WHERE … GROUP BY keys, window HAVING …")
}

/// The conditions that stand above a plan, and the plan below them.
fn conditions(mut plan: &LogicalPlan) -> (Vec<&Expr>, &LogicalPlan) {
    let mut conditions = Vec::new();
    while let LogicalPlan::Filter(filter) = plan {
        conditions.push(&filter.predicate);
        plan = &filter.input;
    }
    (conditions, plan)
}

fn leaf_of(mut plan: &LogicalPlan) -> &LogicalPlan {
    loop {
        plan = match plan {
            LogicalPlan::Projection(node) => &node.input,
            LogicalPlan::Filter(node) => &node.input,
            LogicalPlan::Aggregate(node) => &node.input,
            leaf => return leaf,
        };
    }
}

fn check_leaf(plan: &LogicalPlan) -> Result<(), Refusal> {
    match plan {
        LogicalPlan::TableScan(_) => Ok(()),
        LogicalPlan::SubqueryAlias(alias) if matches!(*alias.input, LogicalPlan::TableScan(_)) => {
            Ok(())
        }
        other => Err(unexpected(other)),
    }
}

fn physical_condition(
    conditions: Vec<Expr>,
    schema: &DFSchema,
) -> Result<Option<Arc<dyn PhysicalExpr>>, Refusal> {
    let Some(all) = conditions.into_iter().reduce(Expr::and) else {
        return Ok(None);
    };
    Ok(Some(create_physical_expr(
        &all,
        schema,
        &ExecutionProps::new(),
    )?))
}

fn call_name(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::ScalarFunction(call) => Some(call.func.name()),
        _ => None,
    }
}

/// Refuses windows and their edges where no window can be.
fn refuse_windows(expression: &Expr) -> Result<(), Refusal> {
    let mut found = None;
    expression.apply(|expression| match call_name(expression) {
        Some(name) if WINDOWS.contains(&name) || edge(name).is_some() => {
            found = Some(name.to_uppercase());
            Ok(TreeNodeRecursion::Stop)
        }
        _ => Ok(TreeNodeRecursion::Continue),
    })?;
    match found {
        None => Ok(()),
        Some(name) => Err(Refusal::new(format!("{name} stands where no window is"))
            .instead("windows stand in GROUP BY by themselves, their _START and _END in SELECT and HAVING")),
    }
}

/// GROUP BY: which of the expressions is the window, and what stands above it.
struct Grouped {
    window: Window,
    index: usize,
    column: Column,
    schema: DFSchema,
}

/// What the groups call a window's beginning.
pub(crate) const EDGE_START: &str = "$start";
/// What the groups call a window's end.
pub(crate) const EDGE_END: &str = "$end";
/// What the groups call a window's last millisecond.
pub(crate) const EDGE_ROWTIME: &str = "$rowtime";

const EDGES: [(Edge, &str); 3] = [
    (Edge::Start, EDGE_START),
    (Edge::End, EDGE_END),
    (Edge::Rowtime, EDGE_ROWTIME),
];

impl Grouped {
    fn new(
        aggregate: &datafusion::logical_expr::Aggregate,
        leaf: &DFSchema,
    ) -> Result<Self, Refusal> {
        let mut window = None;
        for (index, expression) in aggregate.group_expr.iter().enumerate() {
            let expression = expression.clone().unalias();
            match call_name(&expression) {
                Some(name) if WINDOWS.contains(&name) => {
                    if window.is_some() {
                        return Err(Refusal::new("GROUP BY has more than one window"));
                    }
                    window = Some((index, read_window(&expression, leaf)?));
                }
                _ => refuse_windows(&expression)?,
            }
        }
        let Some((index, window)) = window else {
            return Err(Refusal::new("an aggregate without a window never has a last value").instead(
                "add a window: GROUP BY key, TUMBLE(ts, INTERVAL '1' HOUR); in Flink the same query gives an updating result",
            ));
        };
        let (qualifier, field) = aggregate.schema.qualified_field(index);
        let column = Column::new(qualifier.cloned(), field.name());
        let mut fields: Vec<(Option<TableReference>, FieldRef)> = aggregate
            .schema
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != index)
            .map(|(_, (qualifier, field))| (qualifier.cloned(), Arc::clone(field)))
            .collect();
        for (_, name) in EDGES {
            fields.push((None, Arc::new(Field::new(name, instant(), false))));
        }
        let schema = DFSchema::new_with_metadata(fields, HashMap::default())?;
        Ok(Self {
            window,
            index,
            column,
            schema,
        })
    }

    /// Puts the window's edges in place of SESSION_START(…) and the like.
    fn rewrite(&self, expression: &Expr) -> Result<Expr, Refusal> {
        let rewritten = expression
            .clone()
            .transform_up(|expression| {
                let found = call_name(&expression).and_then(edge);
                let Some((_, edge)) = found else {
                    return Ok(Transformed::no(expression));
                };
                let name = EDGES
                    .iter()
                    .find(|(known, _)| *known == edge)
                    .map_or(EDGE_END, |e| e.1);
                Ok(Transformed::yes(Expr::Column(Column::new_unqualified(
                    name,
                ))))
            })?
            .data;
        if rewritten.column_refs().contains(&self.column) {
            let name = self.window.name().to_uppercase();
            return Err(Refusal::new(format!("{name}(…) is selected"))
                .instead(format!("select {name}_START(…) and {name}_END(…)")));
        }
        Ok(rewritten)
    }

    fn finish(
        self,
        aggregate: &datafusion::logical_expr::Aggregate,
        leaf: &DFSchema,
        having: Option<Arc<dyn PhysicalExpr>>,
    ) -> Result<Windowed, Refusal> {
        let keys: Vec<Expr> = aggregate
            .group_expr
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != self.index)
            .map(|(_, expression)| expression.clone().unalias())
            .collect();
        let calls = aggregate
            .aggr_expr
            .iter()
            .map(|expression| check_aggregate(expression, leaf))
            .collect::<Result<Vec<_>, _>>()?;
        let (columns, narrow) = narrow(leaf, &keys, &calls)?;
        let props = ExecutionProps::new();
        let keys = keys
            .iter()
            .map(|key| create_physical_expr(key, &narrow, &props))
            .collect::<Result<Vec<_>, _>>()?;
        let mut fields = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            let data_type = key.data_type(narrow.as_arrow())?;
            fields.push(Arc::new(Field::new(format!("key{i}"), data_type, true)));
        }
        let mut list = Vec::new();
        for (call, field) in calls
            .iter()
            .zip(&aggregate.schema.fields()[aggregate.group_expr.len()..])
        {
            list.push(call.build(field, &narrow)?);
        }
        let windowed = Windowed {
            window: self.window,
            columns,
            keys,
            codec: KeyCodec::new(fields)?,
            aggregates: Aggregates::new(list)?,
            grouped: Arc::clone(self.schema.inner()),
            having,
        };
        windowed.rehearse(&narrow).map_err(|error| {
            let refusal = Refusal::from(error);
            Refusal::new(format!("it cannot be computed: {}", refusal.reason))
        })?;
        Ok(windowed)
    }
}

fn read_window(expression: &Expr, leaf: &DFSchema) -> Result<Window, Refusal> {
    let Expr::ScalarFunction(call) = expression else {
        return Err(Refusal::new("a window is not a function"));
    };
    let name = call.func.name().to_uppercase();
    let Some((time, lengths)) = call.args.split_first() else {
        return Err(Refusal::new(format!("{name} has no arguments")));
    };
    let on_time = matches!(time, Expr::Column(column) if column.name == EVENT_TIME && leaf.has_column(column));
    if !on_time {
        return Err(Refusal::new(format!("{name} is over {time}"))
            .instead(format!("windows are over the event time: {name}(ts, …)")));
    }
    let lengths = lengths
        .iter()
        .map(|length| read_length(&name, length))
        .collect::<Result<Vec<i64>, _>>()?;
    match (call.func.name(), lengths.as_slice()) {
        ("tumble", &[size]) => Ok(Window::Tumble { size }),
        ("session", &[gap]) => Ok(Window::Session { gap }),
        ("hop", &[slide, size]) if size / slide > WINDOWS_PER_RECORD_MAX => Err(Refusal::new(format!(
            "HOP puts each record into {} windows",
            size / slide
        ))
        .instead(format!("make the slide longer: at most {WINDOWS_PER_RECORD_MAX} are possible, which is a day by minutes"))),
        ("hop", &[slide, size]) if size % slide == 0 && size >= slide => Ok(Window::Hop { slide, size }),
        ("hop", &[slide, size]) => Err(Refusal::new(format!(
            "HOP(ts, slide, size) has a size of {size} ms, which is not a multiple of its slide of {slide} ms"
        ))
        .instead("the slide comes first, then the size; Flink demands a multiple too")),
        _ => Err(Refusal::new(format!("{name} has the wrong number of arguments"))),
    }
}

/// The longest window, 100 years: sums of times stay far from overflow.
const LENGTH_MAX: i64 = 36_525 * 86_400_000;

/// The most windows that a record can count in: it sets a timer for each, and each gives a row.
const WINDOWS_PER_RECORD_MAX: i64 = 1_440;

fn read_length(name: &str, expression: &Expr) -> Result<i64, Refusal> {
    let Expr::Literal(literal, _) = expression else {
        return Err(
            Refusal::new(format!("{name}'s length {expression} is not a constant"))
                .instead("write INTERVAL '30' MINUTE"),
        );
    };
    let parts = match literal {
        ScalarValue::IntervalMonthDayNano(Some(v)) => Some((v.months, v.days, v.nanoseconds)),
        ScalarValue::IntervalDayTime(Some(v)) => {
            Some((0, v.days, i64::from(v.milliseconds) * 1_000_000))
        }
        ScalarValue::IntervalYearMonth(Some(months)) => Some((*months, 0, 0)),
        _ => None,
    };
    let Some((months, days, nanoseconds)) = parts else {
        return Err(
            Refusal::new(format!("{name}'s length {literal} is not an INTERVAL"))
                .instead("write INTERVAL '30' MINUTE"),
        );
    };
    if months != 0 {
        return Err(Refusal::new(format!(
            "{name}'s length is in months or years, which are not all equally long"
        ))
        .instead("write it in days"));
    }
    if nanoseconds % 1_000_000 != 0 {
        return Err(Refusal::new(format!(
            "{name}'s length is finer than a millisecond"
        )));
    }
    let length = i64::from(days) * 86_400_000 + nanoseconds / 1_000_000;
    if !(1..=LENGTH_MAX).contains(&length) {
        return Err(Refusal::new(format!("{name}'s length is {length} ms"))
            .instead("it must be positive and at most 100 years"));
    }
    Ok(length)
}

/// An aggregate of the query that has been checked.
struct Call {
    function: AggregateFunction,
    sorts: Vec<Sort>,
}

/// Aggregates that do not depend on the order of rows, doubles aside.
const ORDER_FREE: [&str; 10] = [
    "count", "sum", "avg", "min", "max", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor",
];
/// Aggregates that depend on the order of rows, and take it from their ORDER BY.
const ORDERED: [&str; 4] = ["first_value", "last_value", "array_agg", "string_agg"];

fn check_aggregate(expression: &Expr, leaf: &DFSchema) -> Result<Call, Refusal> {
    let expression = expression.clone().unalias();
    let Expr::AggregateFunction(function) = expression else {
        return Err(Refusal::new(format!("{expression} is not an aggregate")));
    };
    let name = function.func.name().to_owned();
    let params = &function.params;
    for part in params
        .args
        .iter()
        .chain(params.filter.as_deref())
        .chain(params.order_by.iter().map(|s| &s.expr))
    {
        refuse_windows(part)?;
    }
    let argument = match params.args.first() {
        Some(argument) => argument.get_type(leaf)?,
        None => return Err(Refusal::new(format!("{name} has no argument"))),
    };
    let mut sorts = Vec::new();
    if ORDER_FREE.contains(&name.as_str()) {
        check_order_free(&name, params.distinct, &argument)?;
    } else if ORDERED.contains(&name.as_str()) {
        check_ordered(&name, params.distinct, &params.order_by)?;
        sorts.clone_from(&params.order_by);
        for hidden in [GENERATION, PARTITION, OFFSET] {
            let index = leaf
                .index_of_column_by_name(None, hidden)
                .ok_or_else(|| Refusal::new(format!("no column {hidden}")))?;
            let (qualifier, field) = leaf.qualified_field(index);
            let column = Column::new(qualifier.cloned(), field.name());
            sorts.push(Sort::new(Expr::Column(column), true, false));
        }
    } else {
        return Err(refuse_aggregate(&name));
    }
    Ok(Call { function, sorts })
}

fn check_order_free(name: &str, distinct: bool, argument: &DataType) -> Result<(), Refusal> {
    if distinct && name != "count" && matches!(name, "sum" | "avg") {
        return Err(Refusal::new(format!("{name}(DISTINCT …) is not supported"))
            .instead("count(DISTINCT …) is; or deduplicate the source"));
    }
    if matches!(argument, DataType::Float16) && name != "count" {
        return Err(
            Refusal::new(format!("{name} over half floats is not supported"))
                .instead("CAST the argument to DOUBLE or DECIMAL"),
        );
    }
    Ok(())
}

fn check_ordered(name: &str, distinct: bool, order_by: &[Sort]) -> Result<(), Refusal> {
    if order_by.is_empty() {
        return Err(Refusal::new(format!(
            "{name} without ORDER BY depends on the order of arrival"
        ))
        .instead(format!(
            "write {name}(column ORDER BY ts): ties are broken by partition and offset"
        )));
    }
    if distinct {
        return Err(Refusal::new(format!("{name}(DISTINCT …) is not supported"))
            .instead("deduplicate the source, or use count(DISTINCT …)"));
    }
    Ok(())
}

fn refuse_aggregate(name: &str) -> Refusal {
    let refusal = Refusal::new(format!("the aggregate {name} is not supported"));
    if name.starts_with("approx_") {
        return refusal.instead("its answer depends on how rows are cut into batches, so no replay could repeat it: count(DISTINCT …), min, max and avg can be repeated");
    }
    if name.starts_with("stddev")
        || name.starts_with("var")
        || name.starts_with("co")
        || name.starts_with("regr")
    {
        return refusal.instead("over doubles its answer depends on the order of arrival: emit count(*), sum(x) and sum(x * x) as DECIMAL and compute it from them");
    }
    refusal.instead("there are count, sum, avg, min, max, bool_and, bool_or, bit_and, bit_or, bit_xor, and with ORDER BY first_value, last_value, array_agg, string_agg")
}

impl Call {
    fn build(&self, field: &Field, schema: &DFSchema) -> Result<Aggregate, Refusal> {
        let props = ExecutionProps::new();
        let params = &self.function.params;
        let arguments = params
            .args
            .iter()
            .map(|argument| create_physical_expr(argument, schema, &props))
            .collect::<Result<Vec<_>, _>>()?;
        let data_type = arguments[0].data_type(schema.as_arrow())?;
        let name = self.function.func.name();
        let function = match exact::order_free(name, &data_type) {
            Some(own) => Arc::new(own),
            None => Arc::clone(&self.function.func),
        };
        let sorts = create_physical_sort_exprs(&self.sorts, schema, &props)?;
        let filter = match &params.filter {
            None => None,
            Some(filter) => Some(create_physical_expr(filter, schema, &props)?),
        };
        let function = AggregateExprBuilder::new(function, arguments)
            .schema(Arc::clone(schema.inner()))
            .alias(field.name())
            .order_by(sorts)
            .with_distinct(params.distinct)
            .with_ignore_nulls(params.null_treatment == Some(NullTreatment::IgnoreNulls))
            .build()?;
        if function.field().data_type() != field.data_type() {
            return Err(Refusal::new(format!(
                "{} has two types, {} and {}",
                field.name(),
                function.field().data_type(),
                field.data_type()
            )));
        }
        Ok(Aggregate::new(function, filter)?)
    }
}

/// The columns that keys and aggregates use, and their schema.
fn narrow(
    leaf: &DFSchema,
    keys: &[Expr],
    calls: &[Call],
) -> Result<(Vec<usize>, DFSchema), Refusal> {
    let mut used = vec![false; leaf.fields().len()];
    let mut mark = |expression: &Expr| -> Result<(), Refusal> {
        for column in expression
            .column_refs()
            .into_iter()
            .collect::<BTreeSet<_>>()
        {
            used[leaf.index_of_column(column)?] = true;
        }
        Ok(())
    };
    keys.iter().try_for_each(&mut mark)?;
    for call in calls {
        let params = &call.function.params;
        params
            .args
            .iter()
            .chain(params.filter.as_deref())
            .try_for_each(&mut mark)?;
        call.sorts.iter().try_for_each(|sort| mark(&sort.expr))?;
    }
    let columns: Vec<usize> = (0..used.len()).filter(|i| used[*i]).collect();
    let fields = columns
        .iter()
        .map(|i| {
            let (qualifier, field) = leaf.qualified_field(*i);
            (qualifier.cloned(), Arc::clone(field))
        })
        .collect();
    Ok((
        columns,
        DFSchema::new_with_metadata(fields, HashMap::default())?,
    ))
}
