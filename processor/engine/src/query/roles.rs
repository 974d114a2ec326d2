//! Which part a query's output columns play: what a comparison of two versions goes by.

use std::sync::Arc;

use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use serde::{Deserialize, Serialize};

use super::Query;
use crate::sql::{EDGE_END, EDGE_START, Windowed};
use crate::window::Window;

/// Which part the output columns play, by their names, and which windows there are. It is kept with a version for good, so
/// that versions can be compared when their job files are long gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// Columns that are what the query groups by, besides the window.
    pub keys: Vec<String>,
    /// The window; none where each record gives its row at once.
    pub window: Option<Window>,
    /// The column of a window's beginning; none where that is not put out.
    pub start: Option<String>,
    /// The column of a window's end; none where that is not put out.
    pub end: Option<String>,
    /// Columns whose sum over all windows of a key is the same however time is cut into windows: counts and sums, filtered
    /// or not. None where HAVING leaves windows out, for then it is not the same.
    pub conserved: Vec<String>,
    /// How much longer a window takes records after its end has been passed, in milliseconds.
    pub lateness_ms: i64,
}

/// Where a column of the output comes from.
enum Source {
    Key,
    Start,
    End,
    Conserved,
    Other,
}

impl Query {
    /// Which part its output columns play.
    pub fn roles(&self) -> Roles {
        let Some(windowed) = &self.planned.windowed else {
            return Roles::default();
        };
        let mut roles = Roles {
            window: Some(windowed.window),
            lateness_ms: self.lateness(),
            ..Roles::default()
        };
        let columns = self.planned.output.fields();
        for (expression, field) in self.planned.projection.iter().zip(columns) {
            let name = field.name().clone();
            match source(expression, windowed) {
                Source::Key => roles.keys.push(name),
                Source::Start => roles.start = roles.start.or(Some(name)),
                Source::End => roles.end = roles.end.or(Some(name)),
                Source::Conserved => roles.conserved.push(name),
                Source::Other => {}
            }
        }
        roles
    }
}

/// A column of the output that is a column of the groups, as it is: keys come first there, then the aggregates, then the
/// window's edges.
fn source(expression: &Arc<dyn PhysicalExpr>, windowed: &Windowed) -> Source {
    let Some(column) = expression.as_any().downcast_ref::<Column>() else {
        return Source::Other;
    };
    let keys = windowed.keys.len();
    if column.index() < keys {
        return Source::Key;
    }
    if let Some(aggregate) = windowed.aggregates.list.get(column.index() - keys) {
        let function = &aggregate.function;
        let adds_up = matches!(function.fun().name(), "count" | "sum") && !function.is_distinct();
        return if adds_up && windowed.having.is_none() {
            Source::Conserved
        } else {
            Source::Other
        };
    }
    match windowed.grouped.field(column.index()).name().as_str() {
        EDGE_START => Source::Start,
        EDGE_END => Source::End,
        _ => Source::Other,
    }
}
