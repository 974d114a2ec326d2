//! The functions that a query may use: DataFusion's, and names for the windows.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, SchemaRef, TimeUnit};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DataFusionError, Result, TableReference};
use datafusion::execution::SessionStateDefaults;
use datafusion::logical_expr::logical_plan::builder::LogicalTableSource;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner};
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TableSource, Volatility, WindowUDF,
};

/// The type of event times and of windows' bounds: an instant, in milliseconds.
pub(crate) fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// The window functions, in Flink's form for GROUP BY.
pub(crate) const WINDOWS: [&str; 3] = ["tumble", "hop", "session"];

/// What of a window can be selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Edge {
    Start,
    End,
    Rowtime,
}

/// Splits `session_start` into the window and its edge.
pub(crate) fn edge(name: &str) -> Option<(&'static str, Edge)> {
    let (window, edge) = name.split_once('_')?;
    let window = WINDOWS.iter().find(|known| **known == window)?;
    let edge = match edge {
        "start" => Edge::Start,
        "end" => Edge::End,
        "rowtime" => Edge::Rowtime,
        _ => return None,
    };
    Some((window, edge))
}

/// A name that planning understands and that is taken out of the plan before anything runs.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Placeholder {
    name: String,
    edge: bool,
    signature: Signature,
}

impl ScalarUDFImpl for Placeholder {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        if self.edge {
            return Ok(instant());
        }
        let fields = ["start", "end"].map(|name| Field::new(name, instant(), false));
        Ok(DataType::Struct(Fields::from_iter(fields)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Plan(format!(
            "{} stands in GROUP BY only",
            self.name.to_uppercase()
        )))
    }
}

/// What planning may refer to.
pub(crate) struct Context {
    table: String,
    source: Arc<dyn TableSource>,
    scalars: BTreeMap<String, Arc<ScalarUDF>>,
    aggregates: BTreeMap<String, Arc<AggregateUDF>>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    options: ConfigOptions,
}

impl Context {
    pub fn new(table: &str, schema: SchemaRef) -> Self {
        let mut scalars = BTreeMap::new();
        for function in SessionStateDefaults::default_scalar_functions() {
            for alias in function.aliases() {
                scalars.insert(alias.clone(), Arc::clone(&function));
            }
            scalars.insert(function.name().to_owned(), function);
        }
        for window in WINDOWS {
            let mut names = vec![(window.to_owned(), false)];
            names
                .extend(["start", "end", "rowtime"].map(|edge| (format!("{window}_{edge}"), true)));
            for (name, edge) in names {
                let placeholder = Placeholder {
                    name: name.clone(),
                    edge,
                    signature: Signature::variadic_any(Volatility::Immutable),
                };
                scalars.insert(name, Arc::new(ScalarUDF::from(placeholder)));
            }
        }
        let mut aggregates = BTreeMap::new();
        for function in SessionStateDefaults::default_aggregate_functions() {
            for alias in function.aliases() {
                aggregates.insert(alias.clone(), Arc::clone(&function));
            }
            aggregates.insert(function.name().to_owned(), function);
        }
        Self {
            table: table.to_owned(),
            source: Arc::new(LogicalTableSource::new(schema)),
            scalars,
            aggregates,
            planners: SessionStateDefaults::default_expr_planners(),
            options: ConfigOptions::default(),
        }
    }

    pub fn source(&self) -> Arc<dyn TableSource> {
        Arc::clone(&self.source)
    }
}

impl ContextProvider for Context {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        if name.table() == self.table {
            return Ok(Arc::clone(&self.source));
        }
        Err(DataFusionError::Plan(format!(
            "there is no table {name}: the job's source is {}",
            self.table
        )))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.scalars.get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.aggregates.get(name).cloned()
    }

    fn get_window_meta(&self, _: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        self.scalars.keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.aggregates.keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}
