//! A statement parsed, held against what is allowed, and its tables taken out of it.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, GroupByExpr, Ident, JoinConstraint,
    JoinOperator, LimitClause, ObjectName, ObjectNamePart, OrderBy, OrderByKind, Query, Select,
    SelectItem, SetExpr, SetOperator, SetQuantifier, ShowStatementFilterPosition,
    ShowStatementInClause, ShowStatementOptions, Statement, TableAlias, TableFactor,
    TableWithJoins, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::{LakeDialect, READ_ONLY};
use crate::QueryError;
use crate::error::one_line;
use crate::names::quoted;
use crate::travel::{self, Given};

/// Bytes of a statement, at most.
const BYTES_MAX: usize = 1 << 20;
/// Tokens of a statement, white space not counted, at most.
const TOKENS_MAX: usize = 100_000;
/// Bytes of one text in a statement, at most: it may be repeated for all rows of a batch.
const LITERAL_BYTES_MAX: usize = 64 << 10;
/// How deep the parser goes into what is in parentheses, CASE, NOT and the like.
const PARSER_DEPTH: usize = 256;
/// How deep expressions may be nested: chains of operators are.
const EXPR_DEPTH_MAX: usize = 4_000;
/// How many queries may be in each other, or in a chain of UNION, EXCEPT and INTERSECT.
const QUERY_DEPTH_MAX: usize = 500;
/// How many tables a statement may name.
const TABLES_MAX: usize = 256;
/// Table functions that there are; they give their rows piece by piece.
const TABLE_FUNCTIONS: [&str; 2] = ["generate_series", "range"];

/// A statement that may be asked.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A query, or what explains one.
    Query(Parsed),
    /// `SHOW TABLES`, with the pattern of LIKE.
    Tables(Option<String>),
    /// `SHOW COLUMNS FROM t`, `DESCRIBE t`.
    Columns(String),
}

/// A query, and the tables that it names.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// As DataFusion is to plan it: tables under the names of `tables`.
    pub(crate) statement: Statement,
    /// Each table once.
    pub(crate) tables: Vec<Named>,
    /// What WITH names: a table of this name need not be one of the lake's.
    pub(crate) with: Vec<String>,
    /// Columns as they are named anywhere, for messages.
    pub(crate) columns: Vec<String>,
}

/// A table that a query names.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Named {
    /// What the plan calls it.
    pub(crate) alias: String,
    /// What the lake calls it.
    pub(crate) name: String,
    /// What was written before the name: namespaces.
    pub(crate) namespace: Vec<String>,
    /// At which moment; none: not said.
    pub(crate) at: Option<Given>,
}

/// Parses one statement.
pub(crate) fn parse(sql: &str) -> Result<Asked, QueryError> {
    if sql.len() > BYTES_MAX {
        return Err(QueryError::Limit(format!(
            "the statement has {} bytes, more than {BYTES_MAX}: put long lists into a file and name it with --table",
            sql.len()
        )));
    }
    let tokens = Tokenizer::new(&LakeDialect, sql)
        .tokenize_with_location()
        .map_err(|error| {
            QueryError::Syntax(format!("not SQL: {}", one_line(&error.to_string())))
        })?;
    let count = tokens
        .iter()
        .filter(|token| !matches!(token.token, Token::Whitespace(_)))
        .count();
    if count > TOKENS_MAX {
        return Err(QueryError::Limit(format!(
            "the statement has {count} words and signs, more than {TOKENS_MAX}: put long lists into a file and name it with --table"
        )));
    }
    let tokens = travel::canonical(tokens)?;
    let statements = Parser::new(&LakeDialect)
        .with_recursion_limit(PARSER_DEPTH)
        .with_tokens_with_locations(tokens)
        .parse_statements()
        .map_err(|error| match error {
            ParserError::RecursionLimitExceeded => QueryError::Limit(format!(
                "the statement is nested deeper than {PARSER_DEPTH}: split it by WITH"
            )),
            ParserError::ParserError(what) | ParserError::TokenizerError(what) => {
                QueryError::Syntax(format!("not SQL: {}", one_line(&what)))
            }
        })?;
    let mut statements = statements.into_iter();
    let Some(statement) = statements.next() else {
        return Err(QueryError::Syntax("there is no statement".to_owned()));
    };
    if statements.next().is_some() {
        return Err(QueryError::Refused(
            "there is more than one statement: ask them one after the other".to_owned(),
        ));
    }
    asked(statement)
}

fn asked(statement: Statement) -> Result<Asked, QueryError> {
    match statement {
        Statement::ShowTables { show_options, .. } => shown_tables(show_options).map(Asked::Tables),
        Statement::ShowColumns { show_options, .. } => {
            let name = show_options.show_in.and_then(|shown| shown.parent_name);
            name.map(|name| Asked::Columns(last_of(&name)))
                .ok_or_else(|| {
                    QueryError::Syntax("SHOW COLUMNS needs a table: SHOW COLUMNS FROM t".to_owned())
                })
        }
        Statement::ExplainTable { table_name, .. } => Ok(Asked::Columns(last_of(&table_name))),
        Statement::Explain { ref statement, .. } if !matches!(**statement, Statement::Query(_)) => {
            Err(refused("what EXPLAIN is to explain"))
        }
        Statement::Query(_) | Statement::Explain { .. } => query(statement).map(Asked::Query),
        other => {
            let text = other.to_string();
            let verb = text
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned();
            Err(refused(&verb))
        }
    }
}

fn refused(what: &str) -> QueryError {
    QueryError::Refused(format!("{what} is refused: {READ_ONLY}"))
}

fn shown_tables(options: ShowStatementOptions) -> Result<Option<String>, QueryError> {
    use datafusion::sql::sqlparser::ast::ShowStatementFilter;
    if options
        .show_in
        .is_some_and(|shown| shown.clause == ShowStatementInClause::IN)
    {
        return Err(QueryError::Refused(
            "there is one namespace, the one of [catalog]: SHOW TABLES".to_owned(),
        ));
    }
    let filter = match options.filter_position {
        None => return Ok(None),
        Some(
            ShowStatementFilterPosition::Infix(filter)
            | ShowStatementFilterPosition::Suffix(filter),
        ) => filter,
    };
    match filter {
        ShowStatementFilter::Like(pattern)
        | ShowStatementFilter::ILike(pattern)
        | ShowStatementFilter::NoKeyword(pattern) => Ok(Some(pattern)),
        ShowStatementFilter::Where(_) => Err(QueryError::Syntax(
            "SHOW TABLES takes LIKE 'pattern' and nothing else".to_owned(),
        )),
    }
}

fn query(mut statement: Statement) -> Result<Parsed, QueryError> {
    let mut walk = Walk::default();
    if let ControlFlow::Break(error) = statement.visit(&mut walk) {
        return Err(error);
    }
    let Walk {
        tables,
        with,
        columns,
        ..
    } = walk;
    Ok(Parsed {
        statement,
        tables,
        with,
        columns,
    })
}

/// A name as the lake has it: in lower case where it is not quoted.
fn normal(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

fn last_of(name: &ObjectName) -> String {
    let last = name.0.last().and_then(ObjectNamePart::as_ident);
    last.map(normal).unwrap_or_default()
}

/// Goes through a statement once.
#[derive(Debug, Default)]
struct Walk {
    tables: Vec<Named>,
    with: Vec<String>,
    columns: Vec<String>,
    exprs: usize,
    queries: usize,
    named: usize,
}

impl VisitorMut for Walk {
    type Break = QueryError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<QueryError> {
        self.queries += 1;
        if self.queries > QUERY_DEPTH_MAX {
            return ControlFlow::Break(too_deep(QUERY_DEPTH_MAX, "queries"));
        }
        if let Some(with) = &query.with {
            let names = with.cte_tables.iter().map(|cte| normal(&cte.alias.name));
            self.with.extend(names);
        }
        match check_query(query) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<QueryError> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<QueryError> {
        self.exprs += 1;
        if self.exprs > EXPR_DEPTH_MAX {
            return ControlFlow::Break(too_deep(EXPR_DEPTH_MAX, "expressions"));
        }
        if is_swallowing(expr) {
            return ControlFlow::Break(QueryError::Syntax(
                "what follows IS [NOT] DISTINCT FROM would reach over AND and OR: write parentheses around the comparison, like \
                 (a IS DISTINCT FROM b) AND …"
                    .to_owned(),
            ));
        }
        let column = match expr {
            Expr::Identifier(ident) => Some(normal(ident)),
            Expr::CompoundIdentifier(parts) => parts.last().map(normal),
            _ => None,
        };
        if let Some(column) = column
            && !self.columns.contains(&column)
            && self.columns.len() < 64
        {
            self.columns.push(column);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, _: &mut Expr) -> ControlFlow<QueryError> {
        self.exprs -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &mut Value) -> ControlFlow<QueryError> {
        match value {
            Value::SingleQuotedString(text) | Value::DoubleQuotedString(text)
                if text.len() > LITERAL_BYTES_MAX =>
            {
                ControlFlow::Break(QueryError::Limit(format!(
                    "a text of the statement has {} bytes, more than {LITERAL_BYTES_MAX}: put it into a file and name it with --table",
                    text.len()
                )))
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<QueryError> {
        self.named += 1;
        if self.named > TABLES_MAX {
            return ControlFlow::Break(QueryError::Limit(format!(
                "the statement names more than {TABLES_MAX} tables"
            )));
        }
        match self.factor(factor) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

fn too_deep(most: usize, what: &str) -> QueryError {
    QueryError::Limit(format!(
        "{what} are nested deeper than {most} (a chain of operators nests too): put long lists into a file and name it with --table"
    ))
}

/// Clauses that DataFusion would pass over without a word, or that do not belong to reading. Every part of a query is named
/// here, so that one which comes with a newer parser is not passed over either.
fn check_query(query: &Query) -> Result<(), QueryError> {
    let Query {
        with,
        body,
        order_by,
        limit_clause,
        fetch: _,
        locks,
        for_clause,
        settings,
        format_clause,
        pipe_operators,
    } = query;
    let ctes = with.iter().flat_map(|with| &with.cte_tables);
    let clause = if !locks.is_empty() {
        "FOR UPDATE"
    } else if for_clause.is_some() {
        "FOR XML and the like"
    } else if settings.is_some() {
        "SETTINGS"
    } else if format_clause.is_some() {
        "FORMAT (--format is for it)"
    } else if !pipe_operators.is_empty() {
        "|>"
    } else if order_by.as_ref().is_some_and(has_more_than_order) {
        "WITH FILL and INTERPOLATE"
    } else if ctes.clone().any(|cte| cte.from.is_some()) {
        "WITH … FROM"
    } else if let Some(LimitClause::LimitOffset { limit_by, .. }) = limit_clause
        && !limit_by.is_empty()
    {
        "LIMIT … BY (row_number() OVER (PARTITION BY …) in a subquery is for it)"
    } else {
        return check_body(body);
    };
    Err(refused(clause))
}

fn has_more_than_order(order_by: &OrderBy) -> bool {
    let OrderBy { kind, interpolate } = order_by;
    let fills = match kind {
        OrderByKind::Expressions(exprs) => exprs.iter().any(|expr| expr.with_fill.is_some()),
        OrderByKind::All(_) => false,
    };
    interpolate.is_some() || fills
}

fn check_body(body: &SetExpr) -> Result<(), QueryError> {
    let mut waiting = vec![body];
    let mut operations = 0;
    while let Some(body) = waiting.pop() {
        match body {
            SetExpr::Select(select) => check_select(select)?,
            // looked at as a query of its own
            SetExpr::Query(_) | SetExpr::Values(_) => {}
            SetExpr::SetOperation {
                op,
                set_quantifier,
                left,
                right,
            } => {
                check_set_operation(*op, *set_quantifier)?;
                operations += 1;
                if operations > QUERY_DEPTH_MAX {
                    return Err(too_deep(QUERY_DEPTH_MAX, "queries"));
                }
                waiting.push(left);
                waiting.push(right);
            }
            SetExpr::Insert(_) => return Err(refused("INSERT")),
            SetExpr::Update(_) => return Err(refused("UPDATE")),
            SetExpr::Delete(_) => return Err(refused("DELETE")),
            SetExpr::Merge(_) => return Err(refused("MERGE")),
            SetExpr::Table(_) => {
                return Err(QueryError::Syntax(
                    "TABLE t is not understood: write SELECT * FROM t".to_owned(),
                ));
            }
        }
    }
    Ok(())
}

/// DataFusion gives each row of EXCEPT ALL and INTERSECT ALL as often as the left side has it.
fn check_set_operation(op: SetOperator, quantifier: SetQuantifier) -> Result<(), QueryError> {
    let all = matches!(quantifier, SetQuantifier::All | SetQuantifier::AllByName);
    if all && op != SetOperator::Union {
        return Err(refused(&format!(
            "{op} ALL (number equal rows by row_number() on both sides, and leave out ALL)"
        )));
    }
    Ok(())
}

fn check_select(select: &Select) -> Result<(), QueryError> {
    let Select {
        select_token: _,
        optimizer_hint: _,
        distinct: _,
        select_modifiers,
        top,
        top_before_distinct: _,
        projection,
        exclude,
        into,
        from,
        lateral_views,
        prewhere,
        selection: _,
        connect_by,
        group_by,
        cluster_by,
        distribute_by,
        sort_by,
        having: _,
        named_window: _,
        qualify: _,
        window_before_qualify: _,
        value_table_mode,
        flavor: _,
    } = select;
    let modified = match group_by {
        GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers) => {
            !modifiers.is_empty()
        }
    };
    let clause = if into.is_some() {
        "SELECT INTO"
    } else if top.is_some() {
        "TOP (LIMIT is for it)"
    } else if prewhere.is_some() {
        "PREWHERE"
    } else if !connect_by.is_empty() {
        "CONNECT BY"
    } else if !lateral_views.is_empty() {
        "LATERAL VIEW"
    } else if !(cluster_by.is_empty() && distribute_by.is_empty() && sort_by.is_empty()) {
        "CLUSTER BY, DISTRIBUTE BY and SORT BY"
    } else if modified {
        "GROUP BY … WITH ROLLUP, CUBE or TOTALS (GROUP BY ROLLUP (…) and CUBE (…) are for it)"
    } else if select_modifiers.is_some() {
        "what stands between SELECT and its columns"
    } else if value_table_mode.is_some() {
        "SELECT AS STRUCT or VALUE"
    } else if exclude.is_some() {
        "EXCLUDE behind the columns (SELECT * EXCLUDE (…) is for it)"
    } else if projection.iter().any(is_filtered_wildcard) {
        "SELECT * ILIKE"
    } else if projection.is_empty() {
        return Err(QueryError::Syntax(
            "there are no columns: write SELECT * FROM t".to_owned(),
        ));
    } else {
        return from.iter().try_for_each(check_joins);
    };
    Err(refused(clause))
}

fn is_filtered_wildcard(item: &SelectItem) -> bool {
    match item {
        SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) => {
            options.opt_ilike.is_some()
        }
        _ => false,
    }
}

/// A join that says nothing of which rows belong together would give all pairs.
fn check_joins(tables: &TableWithJoins) -> Result<(), QueryError> {
    for join in &tables.joins {
        if join.global {
            return Err(refused("GLOBAL JOIN"));
        }
        let (constraint, keeps_right) = match &join.join_operator {
            JoinOperator::Join(constraint)
            | JoinOperator::Inner(constraint)
            | JoinOperator::Left(constraint)
            | JoinOperator::LeftOuter(constraint) => (constraint, false),
            JoinOperator::Right(constraint)
            | JoinOperator::RightOuter(constraint)
            | JoinOperator::FullOuter(constraint) => (constraint, true),
            _ => continue,
        };
        // what a row has in it, unnested, belongs to it
        let of_row = matches!(
            join.relation,
            TableFactor::UNNEST { .. } | TableFactor::Derived { lateral: true, .. }
        );
        match constraint {
            JoinConstraint::None if !of_row => {
                return Err(QueryError::Syntax(
                    "a JOIN without ON or USING would pair every row with every other: say which belong together, or write CROSS JOIN"
                        .to_owned(),
                ));
            }
            // the column of both would be that of the left side alone, null where there is none
            JoinConstraint::Using(_) | JoinConstraint::Natural if keeps_right => {
                return Err(refused(
                    "USING or NATURAL of a RIGHT or FULL JOIN (ON a.x = b.x, and coalesce(a.x, b.x) for the column of both, are for it)",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Walk {
    fn factor(&mut self, factor: &mut TableFactor) -> Result<(), QueryError> {
        match factor {
            TableFactor::Derived { sample: None, .. } | TableFactor::UNNEST { .. } => Ok(()),
            TableFactor::NestedJoin {
                table_with_joins, ..
            } => check_joins(table_with_joins),
            TableFactor::Function { name, args, .. } => check_function(name, args),
            TableFactor::Table {
                name,
                alias: _,
                args: Some(args),
                with_hints,
                version: None,
                with_ordinality: false,
                partitions,
                json_path: None,
                sample: None,
                index_hints,
            } if with_hints.is_empty()
                && partitions.is_empty()
                && index_hints.is_empty()
                && args.settings.is_none() =>
            {
                check_function(name, &args.args)
            }
            TableFactor::Table {
                name,
                alias,
                args: None,
                with_hints,
                version,
                with_ordinality: false,
                partitions,
                json_path: None,
                sample: None,
                index_hints,
            } if with_hints.is_empty() && partitions.is_empty() && index_hints.is_empty() => {
                let at = version.take().map(travel::given).transpose()?;
                self.table(name, alias, at)
            }
            TableFactor::Table { name, .. } => Err(QueryError::Refused(format!(
                "what follows the table {name} is refused: of a table come its name, FOR TIMESTAMP AS OF or FOR VERSION AS OF, \
                 and an alias"
            ))),
            _ => Err(refused("this form of table")),
        }
    }

    fn table(
        &mut self,
        name: &mut ObjectName,
        alias: &mut Option<TableAlias>,
        at: Option<Given>,
    ) -> Result<(), QueryError> {
        let mut parts = Vec::with_capacity(name.0.len());
        for part in &name.0 {
            let ident = part
                .as_ident()
                .ok_or_else(|| refused("a function as a table's name"))?;
            parts.push(ident.clone());
        }
        let Some(last) = parts.pop() else {
            return Err(QueryError::Syntax("a table without a name".to_owned()));
        };
        let wanted = normal(&last);
        let namespace: Vec<String> = parts.iter().map(normal).collect();
        if namespace.is_empty() && at.is_none() {
            let named = Named {
                alias: wanted.clone(),
                name: wanted,
                namespace,
                at,
            };
            if !self.tables.contains(&named) {
                self.tables.push(named);
            }
            return Ok(());
        }
        let known = self
            .tables
            .iter()
            .find(|t| t.name == wanted && t.namespace == namespace && t.at == at);
        let called = match known {
            Some(known) => known.alias.clone(),
            None => {
                let called = format!("{wanted} ({})", self.tables.len());
                self.tables.push(Named {
                    alias: called.clone(),
                    name: wanted.clone(),
                    namespace,
                    at,
                });
                called
            }
        };
        if alias.is_none() {
            *alias = Some(TableAlias {
                explicit: true,
                name: Ident::with_quote('"', wanted),
                columns: Vec::new(),
            });
        }
        *name = ObjectName::from(vec![Ident::with_quote('"', called)]);
        Ok(())
    }
}

fn check_function(name: &ObjectName, args: &[FunctionArg]) -> Result<(), QueryError> {
    let called = last_of(name);
    if name.0.len() == 1 && TABLE_FUNCTIONS.contains(&called.as_str()) {
        if args.iter().all(is_constant) {
            return Ok(());
        }
        // DataFusion would leave out an argument that it cannot plan
        return Err(QueryError::Syntax(format!(
            "{called} takes constants, like {called}(1, 10)"
        )));
    }
    Err(QueryError::Refused(format!(
        "there is no table function {}: there are {}; files are read only where they were named (--table name=path)",
        quoted(&called),
        TABLE_FUNCTIONS.join(", ")
    )))
}

fn is_constant(arg: &FunctionArg) -> bool {
    let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = arg else {
        return false;
    };
    let mut expr = expr;
    loop {
        expr = match expr {
            Expr::Value(_) | Expr::TypedString(_) => return true,
            Expr::Interval(interval) => &interval.value,
            Expr::UnaryOp { expr, .. } | Expr::Nested(expr) | Expr::Cast { expr, .. } => expr,
            _ => return false,
        };
    }
}

/// The parser takes all that follows DISTINCT FROM, ANDs and ORs too, for what is compared.
fn is_swallowing(expr: &Expr) -> bool {
    let (Expr::IsDistinctFrom(_, compared) | Expr::IsNotDistinctFrom(_, compared)) = expr else {
        return false;
    };
    let connected = |op: &BinaryOperator| {
        matches!(
            op,
            BinaryOperator::And | BinaryOperator::Or | BinaryOperator::Xor
        )
    };
    matches!(compared.as_ref(), Expr::BinaryOp { op, .. } if connected(op))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(sql: &str) -> Vec<Named> {
        match parse(sql).unwrap() {
            Asked::Query(parsed) => parsed.tables,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tables_are_taken_out_each_once() {
        let found = tables(
            "WITH x AS (SELECT * FROM Orders) SELECT * FROM x JOIN \"orders$files\" f ON true JOIN orders o ON true",
        );
        let names: Vec<&str> = found.iter().map(|t| t.name.as_str()).collect();
        assert!(
            names.contains(&"orders") && names.contains(&"x") && names.contains(&"orders$files")
        );
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn one_table_at_two_times_is_two_tables() {
        let found = tables(
            "SELECT * FROM orders FOR VERSION AS OF 1 a, orders FOR VERSION AS OF 'v1' b, orders c, everlog.orders d",
        );
        assert_eq!(found.len(), 4);
        assert!(found.iter().all(|t| t.name == "orders"));
        let aliases: std::collections::BTreeSet<&str> =
            found.iter().map(|t| t.alias.as_str()).collect();
        assert_eq!(aliases.len(), 4);
    }
}
