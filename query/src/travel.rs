//! Time travel: which moment of a table a query means, and which snapshot that is.
//!
//! | written | by | is |
//! |---|---|---|
//! | `t FOR TIMESTAMP AS OF TIMESTAMP '2026-01-01 10:00:00'` | Trino | the snapshot that was current then |
//! | `t FOR VERSION AS OF 4711`, `… 'v1'` | Trino | that snapshot, that tag or branch |
//! | `t TIMESTAMP AS OF '2026-01-01'`, `t VERSION AS OF 4711` | Spark | the same |
//! | `FOR SYSTEM_TIME AS OF`, `FOR SYSTEM_VERSION AS OF` | SQL:2011 | the same |
//!
//! The parser knows one clause with an expression; the others are turned into that one token by token, so that neither a
//! comment nor a string that looks like them is touched.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Schema, TimeUnit};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{ColumnarValue, ExprSchemable};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, TableVersion, UnaryOperator, Value,
    ValueWithSpan,
};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use everlog_common::Millis;
use everlog_table::summary::{oldest_as_of, snapshot_as_of};
use iceberg::spec::{SchemaRef, SnapshotRef, TableMetadata};

use crate::error::one_line;
use crate::names::{self, quoted};
use crate::{AsOf, QueryError};

/// The function that stands for a version where the parser knows only an expression for a time.
const VERSION: &str = "everlog_version";
/// Characters of an expression for a time, at most.
const TIME_BYTES_MAX: usize = 1_000;
/// How tags begin that hold snapshots for readers: nobody's to ask for.
const LEASES: &str = "everlog-lease";

/// Clauses of all kinds as the one that the parser knows.
pub(crate) fn canonical(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>, QueryError> {
    let mut out: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let Some(clause) = clause(&tokens, at) else {
            out.push(token.clone());
            at += 1;
            continue;
        };
        let span = token.span;
        let mut put = |token: Token| out.push(TokenWithSpan::new(token, span));
        for word in ["FOR", "SYSTEM_TIME", "AS", "OF"] {
            put(Token::make_keyword(word));
        }
        at = clause.end;
        if clause.version {
            let (version, end) = version(&tokens, at)?;
            put(Token::make_word(VERSION, None));
            put(Token::LParen);
            put(version);
            put(Token::RParen);
            at = end;
        }
    }
    Ok(out)
}

struct Clause {
    version: bool,
    /// After its last token.
    end: usize,
}

/// The clause that begins at a token. Without FOR it must be a version that a literal follows: `SELECT version AS of` is
/// none, and `TIMESTAMP AS OF` is left to the parser, which knows it after a table's name.
fn clause(tokens: &[TokenWithSpan], at: usize) -> Option<Clause> {
    // white space before it is no part of it
    if matches!(tokens.get(at)?.token, Token::Whitespace(_)) {
        return None;
    }
    let (first, mut next) = word(tokens, at)?;
    let with_for = first.eq_ignore_ascii_case("for");
    let kind = if with_for {
        let (kind, after) = word(tokens, next)?;
        next = after;
        kind
    } else {
        first
    };
    let version = ["version", "system_version"]
        .iter()
        .any(|name| kind.eq_ignore_ascii_case(name));
    let time = with_for && kind.eq_ignore_ascii_case("timestamp");
    if !version && !time {
        return None;
    }
    for expected in ["as", "of"] {
        let (found, after) = word(tokens, next)?;
        if !found.eq_ignore_ascii_case(expected) {
            return None;
        }
        next = after;
    }
    if version && !with_for {
        let (literal, _) = significant(tokens, next)?;
        let is_literal = matches!(
            literal,
            Token::Number(..) | Token::SingleQuotedString(_) | Token::Minus
        );
        if !is_literal {
            return None;
        }
    }
    Some(Clause { version, end: next })
}

/// The next token that is no white space, and the place after it.
fn significant(tokens: &[TokenWithSpan], at: usize) -> Option<(&Token, usize)> {
    let rest = tokens.get(at..)?.iter().enumerate();
    let found = rest.map(|(i, t)| (&t.token, at + i + 1));
    found
        .into_iter()
        .find(|(token, _)| !matches!(token, Token::Whitespace(_)))
}

/// The same, where it is a word without quotes.
fn word(tokens: &[TokenWithSpan], at: usize) -> Option<(&str, usize)> {
    match significant(tokens, at)? {
        (Token::Word(word), next) if word.quote_style.is_none() => Some((&word.value, next)),
        _ => None,
    }
}

fn version(tokens: &[TokenWithSpan], at: usize) -> Result<(Token, usize), QueryError> {
    match significant(tokens, at) {
        Some((token @ (Token::Number(..) | Token::SingleQuotedString(_)), end)) => {
            Ok((token.clone(), end))
        }
        Some((Token::Minus, next)) => match significant(tokens, next) {
            Some((Token::Number(digits, long), end)) => {
                Ok((Token::Number(format!("-{digits}"), *long), end))
            }
            _ => Err(no_version()),
        },
        _ => Err(no_version()),
    }
}

fn no_version() -> QueryError {
    QueryError::Syntax(
        "after VERSION AS OF comes a snapshot's number, or the name of a tag or branch in single quotes".to_owned(),
    )
}

/// A moment as a statement gives it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Given {
    /// A snapshot, a tag or a branch.
    At(AsOf),
    /// An expression for a time, not evaluated yet: as text, since what is nested may only be handled on large stacks.
    Time(String),
}

/// What a table's clause gives.
pub(crate) fn given(version: TableVersion) -> Result<Given, QueryError> {
    match version {
        TableVersion::ForSystemTimeAsOf(Expr::Function(function))
            if function.name.to_string() == VERSION =>
        {
            let FunctionArguments::List(list) = function.args else {
                return Err(no_version());
            };
            match list.args.into_iter().next() {
                Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))) => {
                    literal(&expr).map(Given::At)
                }
                _ => Err(no_version()),
            }
        }
        TableVersion::ForSystemTimeAsOf(expr) | TableVersion::TimestampAsOf(expr) => {
            let text = expr.to_string();
            if text.len() > TIME_BYTES_MAX {
                return Err(QueryError::Limit(format!(
                    "the time after AS OF has {} characters, more than {TIME_BYTES_MAX}",
                    text.len()
                )));
            }
            Ok(Given::Time(text))
        }
        TableVersion::VersionAsOf(expr) => literal(&expr).map(Given::At),
        TableVersion::Function(_) => Err(QueryError::Syntax(
            "AT and BEFORE are not understood after a table: write FOR TIMESTAMP AS OF or FOR VERSION AS OF".to_owned(),
        )),
    }
}

fn literal(expr: &Expr) -> Result<AsOf, QueryError> {
    match expr {
        Expr::Value(ValueWithSpan {
            value: Value::Number(digits, _),
            ..
        }) => digits.parse().map(AsOf::Snapshot).map_err(|_| {
            QueryError::Syntax(format!(
                "{digits} is no snapshot: they are whole numbers of 64 bits"
            ))
        }),
        Expr::Value(ValueWithSpan {
            value: Value::SingleQuotedString(name),
            ..
        }) => Ok(AsOf::Tag(name.clone())),
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr,
        } => match literal(expr)? {
            AsOf::Snapshot(id) => Ok(AsOf::Snapshot(id.saturating_neg())),
            _ => Err(no_version()),
        },
        _ => Err(no_version()),
    }
}

/// The time that an expression gives: a constant of the statement, as `now() - INTERVAL '1 day'`. What has no zone is UTC.
pub(crate) fn time_of(state: &SessionState, expr: &str) -> Result<Millis, QueryError> {
    let bad = |why: &str| {
        QueryError::Invalid(format!(
            "{expr} is no time to travel to: {}; write TIMESTAMP '2026-01-31 10:00:00' (UTC), \
             '2026-01-31T10:00:00+02:00' or now() - INTERVAL '1 day'",
            one_line(why)
        ))
    };
    let no_columns = DFSchema::empty();
    let evaluated = || -> datafusion::error::Result<(ScalarValue, DataType)> {
        let logical = state.create_logical_expr(expr, &no_columns)?;
        let kind = logical.get_type(&no_columns)?;
        let millis = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        let cast = logical.cast_to(&millis, &no_columns)?;
        // now() is what the simplifier puts in its place
        let context = SimplifyContext::default()
            .with_schema(Arc::new(no_columns.clone()))
            .with_config_options(Arc::clone(state.config_options()))
            .with_query_execution_start_time(state.execution_props().query_execution_start_time);
        let simplifier = ExprSimplifier::new(context);
        let constant = simplifier.simplify(simplifier.coerce(cast, &no_columns)?)?;
        let physical = state.create_physical_expr(constant, &no_columns)?;
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)?;
        let value = match physical.evaluate(&row)? {
            ColumnarValue::Scalar(value) => value,
            ColumnarValue::Array(array) => ScalarValue::try_from_array(&array, 0)?,
        };
        Ok((value, kind))
    };
    let (value, kind) = evaluated().map_err(|error| bad(&error.strip_backtrace()))?;
    let is_time = matches!(
        kind,
        DataType::Timestamp(..)
            | DataType::Date32
            | DataType::Date64
            | DataType::Utf8
            | DataType::Utf8View
            | DataType::LargeUtf8
    );
    if !is_time {
        return Err(bad(&format!("it is of type {kind}")));
    }
    match value {
        ScalarValue::TimestampMillisecond(Some(millis), _) => Ok(Millis(millis)),
        _ => Err(bad("it is null")),
    }
}

/// Branches and tags by name. The library keeps them to itself, except in what it serializes.
pub(crate) fn refs(
    metadata: &TableMetadata,
) -> Result<serde_json::Map<String, serde_json::Value>, QueryError> {
    let whole = serde_json::to_value(metadata)
        .map_err(|error| QueryError::Corrupt(format!("the table's branches and tags: {error}")))?;
    let refs = whole.get("refs").and_then(serde_json::Value::as_object);
    Ok(refs.cloned().unwrap_or_default())
}

/// The snapshot of a moment; none: the table has no snapshot yet, and none was asked for.
pub(crate) fn snapshot_at(
    table: &str,
    metadata: &TableMetadata,
    as_of: Option<&AsOf>,
) -> Result<Option<SnapshotRef>, QueryError> {
    let head = metadata.current_snapshot();
    let Some(as_of) = as_of else {
        return Ok(head.cloned());
    };
    let found = match as_of {
        AsOf::Time(time) => snapshot_as_of(metadata, *time),
        AsOf::Snapshot(id) => metadata.snapshot_by_id(*id),
        AsOf::Tag(name) => metadata.snapshot_for_ref(name).or_else(|| {
            let id = name.parse().ok()?;
            metadata.snapshot_by_id(id)
        }),
    };
    match found {
        Some(snapshot) => Ok(Some(Arc::clone(snapshot))),
        None => Err(missing(table, metadata, as_of)?),
    }
}

/// The columns of a snapshot: those of then, but of a branch (and of now) those of now, as in Spark.
pub(crate) fn schema_at(
    metadata: &TableMetadata,
    snapshot: &SnapshotRef,
    as_of: Option<&AsOf>,
) -> Result<SchemaRef, iceberg::Error> {
    let is_branch = match as_of {
        None => true,
        Some(AsOf::Tag(name)) => is_branch(metadata, name),
        Some(_) => false,
    };
    if is_branch {
        Ok(Arc::clone(metadata.current_schema()))
    } else {
        snapshot.schema(metadata)
    }
}

fn is_branch(metadata: &TableMetadata, name: &str) -> bool {
    let refs = refs(metadata).unwrap_or_default();
    refs.get(name)
        .and_then(|one| one.get("type")?.as_str())
        .is_some_and(|kind| kind == "branch")
}

/// Why there is no such moment, and which are near.
fn missing(table: &str, metadata: &TableMetadata, as_of: &AsOf) -> Result<QueryError, QueryError> {
    let shown = quoted(table);
    let (Some(newest), Some((since, oldest))) =
        (metadata.current_snapshot(), oldest_as_of(metadata))
    else {
        return Ok(QueryError::NoSnapshot(format!(
            "table {shown} has no snapshot yet"
        )));
    };
    let at = |id: i64, time: Millis| format!("{id} ({})", readable(time));
    let named =
        |snapshot: &SnapshotRef| at(snapshot.snapshot_id(), Millis(snapshot.timestamp_ms()));
    let range = format!(
        "its {} snapshots reach from {} to {}: see {}",
        metadata.snapshots().len(),
        at(oldest, since),
        named(newest),
        quoted(&format!("{table}$snapshots"))
    );
    let what = match as_of {
        AsOf::Time(time) => format!(
            "table {shown} has no snapshot of {} or before (any more); the nearest is {}, and {range}",
            readable(*time),
            at(oldest, since)
        ),
        AsOf::Snapshot(id) => {
            let wanted = id.to_string();
            let ids: Vec<String> = metadata
                .snapshots()
                .map(|s| s.snapshot_id().to_string())
                .collect();
            let near = names::nearest(&wanted, ids.iter().map(String::as_str));
            let near: Vec<String> = near
                .iter()
                .filter_map(|id| metadata.snapshot_by_id(id.parse().ok()?))
                .map(named)
                .collect();
            let near = if near.is_empty() {
                String::new()
            } else {
                format!("the most similar are {}; ", near.join(", "))
            };
            format!("table {shown} has no snapshot {id} (any more); {near}{range}")
        }
        AsOf::Tag(name) => {
            let refs = refs(metadata)?;
            let names: Vec<&str> = refs
                .keys()
                .map(String::as_str)
                .filter(|name| !name.starts_with(LEASES))
                .collect();
            format!(
                "table {shown} has no tag or branch '{name}'; {}",
                names::hint("tags and branches", name, names.iter().copied())
            )
        }
    };
    Ok(QueryError::NoSnapshot(what))
}

/// A time as people read it.
pub(crate) fn readable(time: Millis) -> String {
    chrono::DateTime::from_timestamp_millis(time.0).map_or_else(
        || format!("{} ms", time.0),
        |time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
    )
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;
    use crate::guard::LakeDialect;

    fn rewritten(sql: &str) -> String {
        let tokens = Tokenizer::new(&LakeDialect, sql)
            .tokenize_with_location()
            .unwrap();
        let tokens = canonical(tokens).unwrap();
        tokens.iter().map(|t| t.token.to_string()).collect()
    }

    #[test]
    fn every_way_to_write_a_version_becomes_one() {
        for sql in [
            "FROM t FOR VERSION AS OF 5",
            "FROM t for /* x */ version as of 5",
            "FROM t VERSION AS OF 5",
            "FROM t FOR SYSTEM_VERSION AS OF 5",
        ] {
            assert_eq!(
                rewritten(sql),
                "FROM t FORSYSTEM_TIMEASOFeverlog_version(5)",
                "{sql}"
            );
        }
        assert!(rewritten("FROM t VERSION AS OF 'v1' x").ends_with("everlog_version('v1') x"));
        assert!(rewritten("FROM t FOR TIMESTAMP AS OF now()").contains("FORSYSTEM_TIMEASOF now()"));
    }

    #[test]
    fn what_only_looks_like_a_version_is_left_alone() {
        for sql in [
            "SELECT version AS of FROM t",
            "SELECT 'FOR VERSION AS OF 5' FROM t",
            "SELECT 1 -- FOR VERSION AS OF 5",
            "SELECT \"for\" version AS of FROM t",
            "FROM t TIMESTAMP AS OF '2026-01-01'",
        ] {
            assert_eq!(rewritten(sql), sql);
        }
        let tokens = Tokenizer::new(&LakeDialect, "FROM t FOR VERSION AS OF x");
        let tokens = {
            let mut tokens = tokens;
            tokens.tokenize_with_location().unwrap()
        };
        assert!(canonical(tokens).is_err());
    }
}
