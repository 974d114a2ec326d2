//! The query as text: parsing, and what can be refused before anything is planned.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    GroupByExpr, Ident, Query, Select, SelectItem, SetExpr, Statement, TableFactor,
    WildcardAdditionalOptions, visit_expressions, visit_expressions_mut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::Refusal;
use super::functions::{WINDOWS, edge};

/// Deduplication of the source: of records with equal `by` whose event times differ by at most `within` of one that was
/// kept, the first in its partition is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dedup {
    pub by: Vec<String>,
    pub within: i64,
}

/// Parses one expression.
pub(crate) fn parse_expression(text: &str) -> Result<Expr, Refusal> {
    let mut parser = Parser::new(&GenericDialect {})
        .try_with_sql(text)
        .map_err(|error| Refusal::new(format!("event_time does not parse: {error}")))?;
    let expression = parser
        .parse_expr()
        .map_err(|error| Refusal::new(format!("event_time does not parse: {error}")))?;
    let next = parser.peek_token();
    if next.token == datafusion::sql::sqlparser::tokenizer::Token::EOF {
        return Ok(expression);
    }
    Err(Refusal::new(format!(
        "event_time is one expression, but {next} follows it"
    )))
}

/// Parses the query and refuses what its shape shows.
pub(crate) fn parse(sql: &str) -> Result<Statement, Refusal> {
    let squeezed: String = sql.to_uppercase().split_whitespace().collect();
    let table_function = WINDOWS
        .iter()
        .chain(&["cumulate"])
        .find(|window| squeezed.contains(&format!("{}(TABLE", window.to_uppercase())));
    if let Some(window) = table_function {
        let name = window.to_uppercase();
        return Err(Refusal::new(format!("{name}(TABLE …) in FROM is not understood")).instead(
            "use the form that Flink also takes: GROUP BY key, TUMBLE(ts, INTERVAL '1' HOUR), HOP(ts, slide, size) or SESSION(ts, gap), with TUMBLE_START and the like",
        ));
    }
    let mut statements = Parser::parse_sql(&GenericDialect {}, sql).map_err(|error| {
        Refusal::new(
            error
                .to_string()
                .replace("sql parser error: ", "it does not parse: "),
        )
    })?;
    let statement = match (statements.pop(), statements.is_empty()) {
        (Some(statement), true) => statement,
        (None, _) => return Err(Refusal::new("it is empty")),
        _ => return Err(Refusal::new("it is more than one statement")),
    };
    let Statement::Query(query) = &statement else {
        return Err(Refusal::new("it is not a SELECT")
            .instead("a job's source and sink stand in the job file; its SQL is one SELECT"));
    };
    check_query(query)?;
    Ok(statement)
}

fn check_query(query: &Query) -> Result<(), Refusal> {
    if query.with.is_some() {
        return Err(Refusal::new("WITH is not supported")
            .instead("write it as one SELECT, or as two jobs, one reading what the other writes"));
    }
    if query.order_by.is_some() || query.limit_clause.is_some() || query.fetch.is_some() {
        return Err(Refusal::new("ORDER BY and LIMIT have no end to sort or count to in a stream").instead(
            "rows come out in the order of window end, key, window start; for the top N per window run Flink's ROW_NUMBER() query over this job's output",
        ));
    }
    let SetExpr::Select(select) = query.body.as_ref() else {
        return Err(
            Refusal::new("UNION and other set operations are not supported")
                .instead("run one job per SELECT, with the same sink topic or one table each"),
        );
    };
    check_select(select)?;
    // What the planner passes over without a word must not be written as if it did something.
    let ignored = [
        (!query.locks.is_empty(), "FOR UPDATE"),
        (query.for_clause.is_some(), "FOR XML, JSON or BROWSE"),
        (query.settings.is_some(), "SETTINGS"),
        (query.format_clause.is_some(), "FORMAT"),
        (!query.pipe_operators.is_empty(), "|>"),
    ];
    refuse_any(&ignored)?;
    let found = visit_expressions(query, |expression| match check_expression(expression) {
        Ok(()) => ControlFlow::Continue(()),
        Err(refusal) => ControlFlow::Break(refusal),
    });
    match found {
        ControlFlow::Break(refusal) => Err(refusal),
        ControlFlow::Continue(()) => Ok(()),
    }
}

fn check_select(select: &Select) -> Result<(), Refusal> {
    if select.distinct.is_some() {
        return Err(Refusal::new("SELECT DISTINCT would have to remember every row for ever").instead(
            "deduplicate by key within a time bound (source.deduplicate in the job file; in Flink: ROW_NUMBER() OVER (PARTITION BY key ORDER BY proctime) = 1 with a state TTL), or count(DISTINCT column) in a window",
        ));
    }
    if select.qualify.is_some() || !select.named_window.is_empty() {
        return Err(refuse_over());
    }
    let other = [
        (select.top.is_some(), "TOP"),
        (select.into.is_some(), "INTO"),
        (!select.lateral_views.is_empty(), "LATERAL VIEW"),
        (select.prewhere.is_some(), "PREWHERE"),
        (!select.connect_by.is_empty(), "CONNECT BY"),
        (!select.cluster_by.is_empty(), "CLUSTER BY"),
        (!select.distribute_by.is_empty(), "DISTRIBUTE BY"),
        (!select.sort_by.is_empty(), "SORT BY"),
        (select.exclude.is_some(), "EXCLUDE"),
        (
            select.value_table_mode.is_some(),
            "SELECT AS STRUCT or AS VALUE",
        ),
        (
            select.select_modifiers.is_some(),
            "a modifier between SELECT and the columns",
        ),
        (
            matches!(&select.group_by, GroupByExpr::All(_)),
            "GROUP BY ALL",
        ),
    ];
    refuse_any(&other)?;
    let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = &select.group_by;
    if !modifiers.is_empty() {
        return Err(refuse_groupings());
    }
    if select.projection.is_empty() {
        return Err(Refusal::new("it selects no columns").instead("name them, or write *"));
    }
    if select.from.is_empty() {
        return Err(Refusal::new("it has no FROM").instead("name the job's source"));
    }
    let [from] = select.from.as_slice() else {
        return Err(refuse_join());
    };
    if !from.joins.is_empty() {
        return Err(refuse_join());
    }
    match &from.relation {
        TableFactor::Table {
            args: None,
            with_hints,
            version,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
            ..
        } => refuse_any(&[
            (sample.is_some(), "TABLESAMPLE"),
            (
                version.is_some(),
                "FOR SYSTEM_TIME AS OF, a table as it once was,",
            ),
            (
                !with_hints.is_empty() || !index_hints.is_empty(),
                "a hint behind the table",
            ),
            (*with_ordinality, "WITH ORDINALITY"),
            (!partitions.is_empty(), "PARTITION behind the table"),
            (json_path.is_some(), "a path behind the table"),
        ]),
        TableFactor::Derived { subquery, .. } => {
            let text = subquery.to_string().to_uppercase();
            Err(if text.contains("ROW_NUMBER") {
                refuse_over()
            } else {
                refuse_subquery()
            })
        }
        _ => Err(
            Refusal::new(format!("FROM {} is not supported", from.relation))
                .instead("FROM names the job's source; windows stand in GROUP BY"),
        ),
    }
}

/// Refuses the first that is there.
fn refuse_any(forms: &[(bool, &str)]) -> Result<(), Refusal> {
    match forms.iter().find(|(there, _)| *there) {
        Some((_, name)) => Err(Refusal::new(format!("{name} is not supported"))),
        None => Ok(()),
    }
}

fn refuse_groupings() -> Refusal {
    Refusal::new("GROUPING SETS, CUBE and ROLLUP are not supported")
        .instead("run one job per grouping")
}

fn refuse_join() -> Refusal {
    Refusal::new("a job reads one source: joins are not supported").instead(
        "run the join on Flink (JOIN … ON a.ts BETWEEN b.ts - INTERVAL … AND b.ts, or FOR SYSTEM_TIME AS OF), reading this job's output",
    )
}

fn refuse_subquery() -> Refusal {
    Refusal::new("sub-queries are not supported")
        .instead("write it as one SELECT, or as two jobs, one reading what the other writes")
}

fn refuse_over() -> Refusal {
    Refusal::new("OVER, ROW_NUMBER and QUALIFY are not supported").instead(
        "to deduplicate use source.deduplicate = { by = [\"key\"], within = \"10m\" } in the job file; other OVER queries run on Flink, over this job's output",
    )
}

fn check_expression(expression: &Expr) -> Result<(), Refusal> {
    match expression {
        Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => Err(refuse_subquery()),
        Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_) => Err(refuse_groupings()),
        Expr::Function(function) => check_function(function),
        _ => Ok(()),
    }
}

fn check_function(function: &Function) -> Result<(), Refusal> {
    if function.over.is_some() {
        return Err(refuse_over());
    }
    let name = function_name(function);
    if name.ends_with("_proctime") && WINDOWS.iter().any(|w| name.starts_with(w)) {
        return Err(Refusal::new(format!(
            "{} is processing time, which no replay can repeat",
            name.to_uppercase()
        ))
        .instead(format!(
            "use {}_ROWTIME or _END",
            name.trim_end_matches("_proctime").to_uppercase()
        )));
    }
    if matches!(
        name.as_str(),
        "cumulate" | "cumulate_start" | "cumulate_end"
    ) {
        return Err(Refusal::new("CUMULATE is not supported")
            .instead("in Flink: CUMULATE(TABLE t, DESCRIPTOR(ts), step, size)"));
    }
    let (window, arguments) = match edge(&name) {
        Some((window, _)) => (window, arguments(function)),
        None if WINDOWS.contains(&name.as_str()) => (name.as_str(), arguments(function)),
        None => return Ok(()),
    };
    let shape = match window {
        "hop" => "(ts, slide, size)",
        "tumble" => "(ts, size)",
        _ => "(ts, gap)",
    };
    let expected = if window == "hop" { 3 } else { 2 };
    if arguments.len() != expected {
        return Err(Refusal::new(format!(
            "{} takes {shape}, not {function}",
            name.to_uppercase()
        )));
    }
    Ok(())
}

pub(super) fn function_name(function: &Function) -> String {
    function.name.to_string().to_lowercase()
}

fn arguments(function: &Function) -> &[FunctionArg] {
    match &function.args {
        FunctionArguments::List(list) => &list.args,
        _ => &[],
    }
}

/// Writes the query as it is planned: `*` names the columns, SESSION_START(ts, gap) refers to the SESSION(ts, gap) of
/// GROUP BY, and edges without a name are called session_start and so on.
pub(crate) fn prepare(statement: &mut Statement, columns: &[String]) -> Result<(), Refusal> {
    let Statement::Query(query) = statement else {
        return Ok(());
    };
    let SetExpr::Select(select) = query.body.as_mut() else {
        return Ok(());
    };
    one_window(select)?;
    let mut projection = Vec::with_capacity(select.projection.len());
    for item in std::mem::take(&mut select.projection) {
        match item {
            SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options)
                if options == WildcardAdditionalOptions::default() =>
            {
                projection.extend(columns.iter().map(|name| {
                    SelectItem::UnnamedExpr(Expr::Identifier(Ident::with_quote('"', name)))
                }));
            }
            SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => {
                return Err(
                    Refusal::new("* with EXCEPT, REPLACE and the like is not supported")
                        .instead("name the columns"),
                );
            }
            SelectItem::UnnamedExpr(Expr::Function(function))
                if edge(&function_name(&function)).is_some() =>
            {
                let alias = Ident::new(function_name(&function));
                projection.push(SelectItem::ExprWithAlias {
                    expr: Expr::Function(function),
                    alias,
                });
            }
            item => projection.push(item),
        }
    }
    select.projection = projection;
    let _: ControlFlow<()> = visit_expressions_mut(statement, |expression| {
        if let Expr::Function(function) = expression {
            refer_to_window(function);
        }
        ControlFlow::Continue(())
    });
    Ok(())
}

fn refer_to_window(function: &mut Function) {
    let Some((window, _)) = edge(&function_name(function)) else {
        return;
    };
    let mut inner = function.clone();
    inner.name = vec![Ident::new(window)].into();
    function.args = FunctionArguments::List(FunctionArgumentList {
        duplicate_treatment: None,
        args: vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Function(
            inner,
        )))],
        clauses: Vec::new(),
    });
}

/// Every window and every edge of the query must be the same window.
fn one_window(select: &Select) -> Result<(), Refusal> {
    let mut seen: Vec<(String, String)> = Vec::new();
    let mut grouped = false;
    let mut look = |expression: &Expr, in_group_by: bool| {
        let _: ControlFlow<()> = visit_expressions(expression, |expression| {
            if let Expr::Function(function) = expression {
                let name = function_name(function);
                let window = edge(&name).map_or(name.as_str(), |(window, _)| window);
                if WINDOWS.contains(&window) {
                    grouped |= in_group_by;
                    let arguments: Vec<_> = arguments(function)
                        .iter()
                        .map(ToString::to_string)
                        .collect();
                    seen.push((window.to_uppercase(), arguments.join(", ")));
                }
            }
            ControlFlow::Continue(())
        });
    };
    if let GroupByExpr::Expressions(expressions, _) = &select.group_by {
        expressions
            .iter()
            .for_each(|expression| look(expression, true));
    }
    for item in &select.projection {
        if let SelectItem::UnnamedExpr(expression)
        | SelectItem::ExprWithAlias {
            expr: expression, ..
        } = item
        {
            look(expression, false);
        }
    }
    if let Some(having) = &select.having {
        look(having, false);
    }
    let Some((first, rest)) = seen.split_first() else {
        return Ok(());
    };
    if let Some(other) = rest.iter().find(|other| *other != first) {
        return Err(Refusal::new(format!(
            "it names two windows, {}({}) and {}({})",
            first.0, first.1, other.0, other.1
        ))
        .instead("a query has one window, written the same way in GROUP BY and in SELECT"));
    }
    if !grouped && !matches!(&select.group_by, GroupByExpr::Expressions(e, _) if !e.is_empty()) {
        return Err(Refusal::new(format!(
            "{}({}) is not in GROUP BY",
            first.0, first.1
        )));
    }
    Ok(())
}
