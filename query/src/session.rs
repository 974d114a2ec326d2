//! A session: one analyst's door to a lake.

use arrow_schema::SchemaRef;

use crate::{Answer, Lake, QueryError, SessionOptions, TableName};

/// One analyst's door to a lake. Queries of a session may run at the same time; they share its limits of memory and disk.
#[derive(Debug)]
pub struct Session {
    lake: Lake,
    options: SessionOptions,
}

impl Session {
    /// Opens a session. Nothing of the lake is read yet; named files are looked at.
    pub async fn open(lake: Lake, options: SessionOptions) -> Result<Self, QueryError> {
        Ok(Self { lake, options })
    }

    /// Runs one statement: a query, `SHOW TABLES`, `SHOW COLUMNS FROM t`, `DESCRIBE t`, `EXPLAIN`.
    pub async fn query(&self, sql: &str) -> Result<Answer, QueryError> {
        let _ = (&self.lake, &self.options, sql);
        Err(QueryError::Refused(String::new()))
    }

    /// What can be asked for: archives, jobs' tables, views, named files; sorted by name.
    pub async fn tables(&self) -> Result<Vec<TableName>, QueryError> {
        Ok(Vec::new())
    }

    /// The columns of a table, a view, or a `$` table.
    pub async fn columns(&self, table: &str) -> Result<SchemaRef, QueryError> {
        Err(QueryError::UnknownTable(table.to_owned()))
    }
}
