//! What DataFusion says went wrong, as an error of ours.

use std::error::Error;

use arrow_schema::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use everlog_table::scan::ScanError;
use everlog_table::storage::StorageErrorKind;
use parquet::errors::ParquetError;

use crate::QueryError;
use crate::error::{chain, one_line};

/// How an error begins that may come of a column's type.
pub(crate) const DOES_NOT_FIT: &str = "the statement does not fit";

impl QueryError {
    /// What an error of DataFusion's means: the error of ours that is in it, where there is one.
    pub fn of(error: DataFusionError) -> Self {
        match error {
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
                Self::of(*inner)
            }
            DataFusionError::Collection(errors) => {
                let first = errors.into_iter().next();
                first.map_or_else(|| Self::Failed("the query failed".to_owned()), Self::of)
            }
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(other) => of_dyn(other.as_ref()),
            },
            DataFusionError::Shared(shared) => match std::sync::Arc::try_unwrap(shared) {
                Ok(inner) => Self::of(inner),
                Err(shared) => of_shared(shared.as_ref()),
            },
            other => of_shared(&other),
        }
    }
}

/// The same of an error that others hold too.
fn of_shared(error: &DataFusionError) -> QueryError {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
            of_shared(inner)
        }
        DataFusionError::Shared(inner) => of_shared(inner),
        DataFusionError::Collection(errors) => match errors.first() {
            Some(first) => of_shared(first),
            None => QueryError::Failed("the query failed".to_owned()),
        },
        DataFusionError::External(inner) => of_dyn(inner.as_ref()),
        DataFusionError::ParquetError(inner) => of_parquet(inner),
        DataFusionError::ArrowError(inner, _) => of_arrow(inner),
        DataFusionError::ResourcesExhausted(what) => exhausted(what),
        DataFusionError::SchemaError(inner, _) => of_schema(inner),
        DataFusionError::ExecutionJoin(inner) if inner.is_panic() => QueryError::Failed(
            "the engine came upon a state that it does not know (a panic) and gave the query up; please report the statement"
                .to_owned(),
        ),
        DataFusionError::ExecutionJoin(_) => QueryError::Cancelled,
        DataFusionError::SQL(inner, _) => {
            QueryError::Syntax(format!("not SQL: {}", one_line(&inner.to_string())))
        }
        DataFusionError::Plan(what) => {
            QueryError::Invalid(format!("{DOES_NOT_FIT}: {}", one_line(what)))
        }
        DataFusionError::NotImplemented(what) => {
            QueryError::Invalid(format!("not supported: {}", one_line(what)))
        }
        other => QueryError::Failed(one_line(&other.strip_backtrace())),
    }
}

fn of_dyn(error: &(dyn Error + Send + Sync + 'static)) -> QueryError {
    if let Some(own) = error.downcast_ref::<QueryError>() {
        let what = own.to_string();
        return match own {
            QueryError::Limit(_) => QueryError::Limit(what),
            QueryError::Corrupt(_) => QueryError::Corrupt(what),
            QueryError::Cancelled => QueryError::Cancelled,
            QueryError::Invalid(_) => QueryError::Invalid(what),
            _ => QueryError::Failed(what),
        };
    }
    if let Some(scan) = error.downcast_ref::<ScanError>() {
        return of_scan(scan);
    }
    if let Some(inner) = error.downcast_ref::<DataFusionError>() {
        return of_shared(inner);
    }
    if let Some(inner) = error.downcast_ref::<ParquetError>() {
        return of_parquet(inner);
    }
    if let Some(inner) = error.downcast_ref::<ArrowError>() {
        return of_arrow(inner);
    }
    QueryError::Failed(chain(error))
}

fn of_scan(error: &ScanError) -> QueryError {
    let what = chain(error);
    match error {
        ScanError::Corrupt { .. } => QueryError::Corrupt(what),
        ScanError::Unsupported { .. } => QueryError::Unsupported(what),
        ScanError::Stopped { .. } => QueryError::Cancelled,
        ScanError::Storage { source, .. } if source.kind() == StorageErrorKind::NotFound => {
            QueryError::NoSnapshot(format!(
                "{what}; its snapshot has expired while it was read: ask again, and tag what has to last"
            ))
        }
        _ => QueryError::Failed(what),
    }
}

fn of_parquet(error: &ParquetError) -> QueryError {
    match error {
        ParquetError::External(inner) => of_dyn(inner.as_ref()),
        ParquetError::NYI(what) => QueryError::Unsupported(one_line(what)),
        other => QueryError::Corrupt(format!(
            "a data file cannot be read as Parquet: {}",
            one_line(&other.to_string())
        )),
    }
}

fn of_arrow(error: &ArrowError) -> QueryError {
    match error {
        ArrowError::ExternalError(inner) => of_dyn(inner.as_ref()),
        ArrowError::DivideByZero => QueryError::Failed(
            "a division by zero: leave such rows out, or divide by nullif(x, 0)".to_owned(),
        ),
        ArrowError::CastError(what) | ArrowError::ParseError(what) => QueryError::Failed(format!(
            "{}: try_cast(x AS type) gives null where cast gives this",
            one_line(what)
        )),
        ArrowError::ParquetError(what) => {
            QueryError::Corrupt(format!("a data file cannot be read: {}", one_line(what)))
        }
        ArrowError::InvalidArgumentError(what)
            if what.to_ascii_lowercase().contains("utf-8")
                || what.to_ascii_lowercase().contains("utf8") =>
        {
            QueryError::Failed(format!(
                "{}: bytes that are no text; try_cast(x AS VARCHAR) gives null for them",
                one_line(what)
            ))
        }
        other => QueryError::Failed(one_line(&other.to_string())),
    }
}

fn of_schema(error: &SchemaError) -> QueryError {
    match error {
        SchemaError::FieldNotFound { field, .. } => QueryError::UnknownColumn(field.flat_name()),
        other => QueryError::Invalid(one_line(&other.to_string())),
    }
}

fn exhausted(what: &str) -> QueryError {
    let what = one_line(what);
    let what = what
        .split(" A human readable")
        .next()
        .unwrap_or_default()
        .to_owned();
    let hint = if what.contains("disk space") || what.contains("temporary") {
        "raise the limit of the temporary folder, or narrow the query"
    } else {
        "raise --memory, or narrow the query"
    };
    QueryError::Limit(format!("out of memory or disk: {what}; {hint}"))
}
