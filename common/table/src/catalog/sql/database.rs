//! The statements, for both databases, and what their errors mean.

use std::str::FromStr;
use std::time::{Duration, Instant};

use everlog_common::Millis;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteQueryResult,
    SqliteSynchronous,
};
use sqlx::{PgPool, SqlitePool};

use super::super::properties::wrong;
use super::super::server_time::ServerTime;
use super::super::{CatalogError, Make};

/// Connections of one catalog object. Its users commit one after the other; a few more read.
const CONNECTIONS_MAX: u32 = 4;
/// How long SQLite waits for another process's write before it says busy.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often opening is tried where another process is just making the same file.
const OPEN_TRIES: usize = 50;
/// Pause between those.
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// What a table's row holds for us.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) metadata_location: String,
}

/// What a statement that changes one row came to.
#[derive(Debug)]
pub(super) enum Swap {
    /// One row was changed.
    Done,
    /// None was: it is not, or no more, as required.
    Conflict,
    /// Definitely none was.
    Refused(CatalogError),
    /// Nobody knows.
    Unknown(CatalogError),
}

#[derive(Debug, Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// The catalog's tables in one database.
#[derive(Debug)]
pub(super) struct Database {
    pool: Pool,
    /// The catalog's name in the tables.
    name: String,
    /// For every statement.
    limit: Duration,
    /// Databases made by older programs have no `iceberg_type` column, and no views.
    has_type: bool,
    time: ServerTime,
}

/// Runs one statement on a connection of its own. `$conn` is bound to it inside `$run`.
///
/// The connection is not given back to the pool after an error or a timeout: what it is doing then is not known.
macro_rules! statement {
    ($self:expr, $what:expr, |$conn:ident| $run:expr) => {{
        let what: String = $what;
        match &$self.pool {
            Pool::Sqlite(pool) => statement!(@on pool, $self, what, $conn, $run),
            Pool::Postgres(pool) => statement!(@on pool, $self, what, $conn, $run),
        }
    }};
    (@on $pool:expr, $self:expr, $what:expr, $conn:ident, $run:expr) => {
        match tokio::time::timeout($self.limit, $pool.acquire()).await {
            Err(_) => Err(Failure::NotSent($what, "no connection in time".into())),
            Ok(Err(error)) => Err(Failure::NotSent($what, error.into())),
            Ok(Ok(mut connection)) => {
                let $conn = &mut *connection;
                match tokio::time::timeout($self.limit, $run).await {
                    Ok(Ok(result)) => Ok(result),
                    Ok(Err(error)) => {
                        drop(connection.detach());
                        Err(Failure::Answered($what, error))
                    }
                    Err(_) => {
                        drop(connection.detach());
                        Err(Failure::NoAnswer($what))
                    }
                }
            }
        }
    };
}

/// How many rows a statement changed, whichever driver ran it.
trait Changed {
    fn rows(&self) -> u64;
}

impl Changed for SqliteQueryResult {
    fn rows(&self) -> u64 {
        self.rows_affected()
    }
}

impl Changed for PgQueryResult {
    fn rows(&self) -> u64 {
        self.rows_affected()
    }
}

async fn rows<R: Changed>(
    executed: impl Future<Output = Result<R, sqlx::Error>>,
) -> Result<u64, sqlx::Error> {
    executed.await.map(|done| done.rows())
}

/// Why a statement gave no result.
#[derive(Debug)]
enum Failure {
    /// It never got to the database.
    NotSent(String, Box<dyn std::error::Error + Send + Sync>),
    /// The driver reported an error.
    Answered(String, sqlx::Error),
    /// Nothing came back in time.
    NoAnswer(String),
}

impl Failure {
    /// For statements that change nothing, or may be repeated.
    fn into_error(self) -> CatalogError {
        match self {
            Self::NotSent(what, source) => CatalogError::Unavailable { what, source },
            Self::NoAnswer(what) => CatalogError::Unavailable {
                what,
                source: "no answer in time".into(),
            },
            Self::Answered(what, error) => match classify(&error) {
                Meaning::Busy | Meaning::Unknown => CatalogError::Unavailable {
                    what,
                    source: error.into(),
                },
                Meaning::Denied => CatalogError::Unauthorized {
                    what,
                    message: error.to_string(),
                },
                Meaning::Taken | Meaning::Refused => refused(what, error),
            },
        }
    }

    /// For the statements that a commit or a creation is.
    fn into_swap(self) -> Swap {
        match self {
            Self::NotSent(..) => Swap::Refused(self.into_error()),
            Self::NoAnswer(what) => Swap::Unknown(CatalogError::OutcomeUnknown {
                what,
                source: "no answer in time".into(),
            }),
            Self::Answered(what, error) => match classify(&error) {
                Meaning::Taken => Swap::Conflict,
                Meaning::Busy => Swap::Refused(CatalogError::Unavailable {
                    what,
                    source: error.into(),
                }),
                Meaning::Denied => Swap::Refused(CatalogError::Unauthorized {
                    what,
                    message: error.to_string(),
                }),
                Meaning::Refused => Swap::Refused(refused(what, error)),
                Meaning::Unknown => Swap::Unknown(CatalogError::OutcomeUnknown {
                    what,
                    source: error.into(),
                }),
            },
        }
    }
}

fn refused(what: String, error: sqlx::Error) -> CatalogError {
    CatalogError::Refused {
        what,
        message: error.to_string(),
        source: Some(error.into()),
    }
}

/// What an error says about the statement that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Not done: the row is there already.
    Taken,
    /// Not done: somebody else was writing; may be tried again.
    Busy,
    /// Not done: no permission.
    Denied,
    /// Not done, and would not be next time.
    Refused,
    /// Done or not.
    Unknown,
}

fn classify(error: &sqlx::Error) -> Meaning {
    let sqlx::Error::Database(error) = error else {
        // Io, Tls, Protocol, WorkerCrashed and whatever comes later: the statement may have been carried out.
        return Meaning::Unknown;
    };
    if error.is_unique_violation() {
        return Meaning::Taken;
    }
    let code = error.code().unwrap_or_default();
    if error
        .try_downcast_ref::<sqlx::sqlite::SqliteError>()
        .is_some()
    {
        sqlite_meaning(&code)
    } else {
        postgres_meaning(&code)
    }
}

/// By the primary result code, which is the low byte of the extended one.
fn sqlite_meaning(code: &str) -> Meaning {
    match code.parse::<u32>().map(|code| code & 0xff) {
        // BUSY, LOCKED, INTERRUPT; CANTOPEN before anything is changed, for instance for want of a file descriptor
        Ok(5 | 6 | 9 | 14) => Meaning::Busy,
        Ok(3 | 8 | 23) => Meaning::Denied, // PERM, READONLY, AUTH
        Ok(1 | 12 | 18 | 19 | 20 | 25) => Meaning::Refused, // ERROR, NOTFOUND, TOOBIG, CONSTRAINT, MISMATCH, RANGE
        // IOERR, FULL, CORRUPT, NOMEM and the rest can strike in the middle of making the change durable.
        _ => Meaning::Unknown,
    }
}

/// By SQLSTATE. An error answer means that the statement was rolled back, unless the server was going down.
fn postgres_meaning(code: &str) -> Meaning {
    match code {
        "40003" => Meaning::Unknown,        // statement completion unknown
        "57014" | "55P03" => Meaning::Busy, // cancelled by a timeout of the server's, lock not available
        "42501" => Meaning::Denied,
        _ => match code.get(..2).unwrap_or_default() {
            "40" => Meaning::Busy, // serialization failure, deadlock
            "28" => Meaning::Denied,
            "22" | "23" | "25" | "42" | "0A" | "3D" | "3F" => Meaning::Refused,
            // 08 connection, 53 resources, 57 shutdown, 58 system, XX internal
            _ => Meaning::Unknown,
        },
    }
}

impl Database {
    pub(super) async fn open(
        uri: &str,
        name: &str,
        limit: Duration,
        make: Make,
    ) -> Result<Self, CatalogError> {
        let pool = match parse(uri)? {
            Options::Sqlite(options) => open_sqlite(options, limit, make).await?,
            Options::Postgres(options) => open_postgres(options, limit).await?,
        };
        let mut database = Self {
            pool,
            name: name.to_owned(),
            limit,
            has_type: true,
            time: ServerTime::default(),
        };
        database.make_tables().await?;
        database.has_type = database.find_type_column().await?;
        Ok(database)
    }

    async fn make_tables(&self) -> Result<(), CatalogError> {
        for (table, sql) in [
            ("iceberg_tables", TABLES),
            ("iceberg_namespace_properties", NAMESPACES),
        ] {
            // Asked first: the tables may belong to somebody who lets us use them, but make none.
            if self.has_table(table).await? {
                continue;
            }
            let made = statement!(self, format!("make {table}"), |conn| rows(
                sqlx::query(sql).execute(conn)
            ));
            match made {
                Ok(_) => {}
                // Two processes at once: PostgreSQL may report the other's creation as a violation of its own catalog.
                Err(Failure::Answered(_, error)) if classify(&error) == Meaning::Taken => {}
                Err(failure) => return Err(failure.into_error()),
            }
        }
        Ok(())
    }

    async fn has_table(&self, table: &str) -> Result<bool, CatalogError> {
        let sql = match self.pool {
            Pool::Sqlite(_) => {
                "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND lower(name) = $1"
            }
            Pool::Postgres(_) => "SELECT count(*) FROM pg_class WHERE oid = to_regclass($1)",
        };
        self.count(sql, &[table]).await.map(|count| count > 0)
    }

    async fn find_type_column(&self) -> Result<bool, CatalogError> {
        let sql = match self.pool {
            Pool::Sqlite(_) => {
                "SELECT count(*) FROM pragma_table_info('iceberg_tables') WHERE lower(name) = 'iceberg_type'"
            }
            Pool::Postgres(_) => {
                "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('iceberg_tables') \
                 AND attname = 'iceberg_type' AND NOT attisdropped"
            }
        };
        self.count(sql, &[]).await.map(|count| count > 0)
    }

    async fn count(&self, sql: &'static str, values: &[&str]) -> Result<i64, CatalogError> {
        let counted = statement!(self, "look".into(), |conn| {
            let mut query = sqlx::query_scalar::<_, i64>(sql);
            for value in values {
                query = query.bind((*value).to_owned());
            }
            query.fetch_one(conn)
        });
        counted.map_err(Failure::into_error)
    }

    pub(super) async fn has_namespace(&self, namespace: &str) -> Result<bool, CatalogError> {
        // A namespace may exist by its properties or, made by older programs, by its tables alone.
        let sql = "SELECT (SELECT count(*) FROM iceberg_namespace_properties WHERE catalog_name = $1 AND namespace = $2) \
                   + (SELECT count(*) FROM iceberg_tables WHERE catalog_name = $1 AND table_namespace = $2)";
        self.count(sql, &[&self.name, namespace])
            .await
            .map(|count| count > 0)
    }

    pub(super) async fn ensure_namespace(&self, namespace: &str) -> Result<(), CatalogError> {
        if self.has_namespace(namespace).await? {
            return Ok(());
        }
        let sql = "INSERT INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value) \
                   VALUES ($1, $2, 'exists', 'true') ON CONFLICT DO NOTHING";
        let made = statement!(self, format!("make namespace {namespace}"), |conn| rows(
            sqlx::query(sql)
                .bind(self.name.clone())
                .bind(namespace.to_owned())
                .execute(conn)
        ));
        match made {
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.into_error()),
        }
    }

    /// Whether any row, table or view, has the name.
    pub(super) async fn is_taken(
        &self,
        namespace: &str,
        table: &str,
    ) -> Result<bool, CatalogError> {
        let sql = "SELECT count(*) FROM iceberg_tables \
                   WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3";
        self.count(sql, &[&self.name, namespace, table])
            .await
            .map(|count| count > 0)
    }

    pub(super) async fn tables(&self, namespace: &str) -> Result<Vec<String>, CatalogError> {
        let sql = format!(
            "SELECT table_name FROM iceberg_tables WHERE catalog_name = $1 AND table_namespace = $2{}",
            self.only_tables()
        );
        let listed = statement!(self, format!("list tables of {namespace}"), |conn| {
            sqlx::query_scalar::<_, String>(&sql)
                .bind(self.name.clone())
                .bind(namespace.to_owned())
                .fetch_all(conn)
        });
        let mut names = listed.map_err(Failure::into_error)?;
        // Here rather than by the database, whose collation may order as it likes.
        names.sort();
        Ok(names)
    }

    pub(super) async fn row(
        &self,
        namespace: &str,
        table: &str,
    ) -> Result<Option<Row>, CatalogError> {
        // SQLite is this very machine
        let time = match self.pool {
            Pool::Sqlite(_) => "CAST(NULL AS INTEGER)",
            Pool::Postgres(_) => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        };
        let sql = format!(
            "SELECT metadata_location, {time} FROM iceberg_tables \
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3{}",
            self.only_tables()
        );
        let what = || format!("load {namespace}.{table}");
        let found = statement!(self, what(), |conn| {
            sqlx::query_as::<_, (Option<String>, Option<i64>)>(&sql)
                .bind(self.name.clone())
                .bind(namespace.to_owned())
                .bind(table.to_owned())
                .fetch_optional(conn)
        });
        let found = found.map_err(Failure::into_error)?;
        if let Some((_, Some(time))) = found {
            self.time.saw(Instant::now(), Millis(time));
        }
        match found.map(|(location, _)| location) {
            None => Ok(None),
            Some(Some(metadata_location)) => Ok(Some(Row { metadata_location })),
            Some(None) => Err(CatalogError::Unreadable {
                what: what(),
                source: "its row names no metadata".into(),
            }),
        }
    }

    /// What time it is at the server, as far as it told.
    pub(super) fn server_time(&self) -> Option<Millis> {
        self.time.at(Instant::now())
    }

    pub(super) async fn insert(&self, namespace: &str, table: &str, location: &str) -> Swap {
        let sql = if self.has_type {
            "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location, iceberg_type) \
             VALUES ($1, $2, $3, $4, 'TABLE')"
        } else {
            "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location) \
             VALUES ($1, $2, $3, $4)"
        };
        let inserted = statement!(self, format!("create {namespace}.{table}"), |conn| {
            let query = sqlx::query(sql)
                .bind(self.name.clone())
                .bind(namespace.to_owned());
            rows(
                query
                    .bind(table.to_owned())
                    .bind(location.to_owned())
                    .execute(conn),
            )
        });
        match inserted {
            Ok(_) => Swap::Done,
            Err(failure) => failure.into_swap(),
        }
    }

    /// The compare-and-swap: one statement, one row, or nothing.
    pub(super) async fn swap(&self, namespace: &str, table: &str, from: &str, to: &str) -> Swap {
        let sql = format!(
            "UPDATE iceberg_tables SET metadata_location = $1, previous_metadata_location = $2 \
             WHERE catalog_name = $3 AND table_namespace = $4 AND table_name = $5 \
             AND metadata_location = $2{}",
            self.only_tables()
        );
        let what = format!("commit to {namespace}.{table}");
        let swapped = statement!(self, what, |conn| {
            let query = sqlx::query(&sql).bind(to.to_owned()).bind(from.to_owned());
            let query = query.bind(self.name.clone()).bind(namespace.to_owned());
            rows(query.bind(table.to_owned()).execute(conn))
        });
        match swapped {
            Ok(1) => Swap::Done,
            Ok(_) => Swap::Conflict,
            Err(failure) => failure.into_swap(),
        }
    }

    fn only_tables(&self) -> &'static str {
        if self.has_type {
            " AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)"
        } else {
            ""
        }
    }
}

const TABLES: &str = "CREATE TABLE IF NOT EXISTS iceberg_tables (\
    catalog_name VARCHAR(255) NOT NULL, \
    table_namespace VARCHAR(255) NOT NULL, \
    table_name VARCHAR(255) NOT NULL, \
    metadata_location VARCHAR(1000), \
    previous_metadata_location VARCHAR(1000), \
    iceberg_type VARCHAR(5), \
    PRIMARY KEY (catalog_name, table_namespace, table_name))";

const NAMESPACES: &str = "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (\
    catalog_name VARCHAR(255) NOT NULL, \
    namespace VARCHAR(255) NOT NULL, \
    property_key VARCHAR(255) NOT NULL, \
    property_value VARCHAR(1000), \
    PRIMARY KEY (catalog_name, namespace, property_key))";

/// A database's address, read.
enum Options {
    Sqlite(Box<SqliteConnectOptions>),
    Postgres(Box<PgConnectOptions>),
}

/// Whether a URI names a database; nothing is opened.
pub(super) fn check(uri: &str) -> Result<(), CatalogError> {
    parse(uri).map(drop)
}

fn parse(uri: &str) -> Result<Options, CatalogError> {
    match uri.split_once(':') {
        Some(("sqlite", _)) => {
            let options = SqliteConnectOptions::from_str(uri)
                .map_err(|error| wrong("uri", error.to_string()))?;
            if uri.contains(":memory:") || uri.contains("mode=memory") {
                let message = "a catalog in memory would forget its tables; name a file";
                return Err(wrong("uri", message));
            }
            Ok(Options::Sqlite(Box::new(options)))
        }
        Some(("postgres" | "postgresql", _)) => PgConnectOptions::from_str(uri)
            .map(|options| Options::Postgres(Box::new(options)))
            .map_err(|error| wrong("uri", error.to_string())),
        _ => {
            let message = "give `sqlite://PATH` or `postgres://USER@HOST/DATABASE`";
            Err(wrong("uri", message))
        }
    }
}

async fn open_sqlite(
    options: Box<SqliteConnectOptions>,
    limit: Duration,
    make: Make,
) -> Result<Pool, CatalogError> {
    let options = options
        .create_if_missing(make == Make::IfMissing)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // Before our own limit: its `busy` is a definite no, our running out of patience is not.
        .busy_timeout(BUSY_TIMEOUT.min(limit / 2));
    let file = options.get_filename().to_path_buf();
    if make == Make::Never && !tokio::fs::try_exists(&file).await.unwrap_or(true) {
        return Err(CatalogError::Absent {
            place: file.display().to_string(),
        });
    }
    if let Some(folder) = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        tokio::fs::create_dir_all(folder).await.map_err(|error| {
            wrong(
                "uri",
                format!("cannot make the folder {}: {error}", folder.display()),
            )
        })?;
    }
    let what = format!("open {}", file.display());
    let mut last = None;
    for _ in 0..OPEN_TRIES {
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS_MAX);
        match pool.connect_with(options.clone()).await {
            Ok(pool) => return Ok(Pool::Sqlite(pool)),
            // Another process is switching a new file to its write-ahead log, which knows no waiting.
            Err(error) if classify(&error) == Meaning::Busy => last = Some(error),
            Err(error) => return Err(Failure::Answered(what, error).into_error()),
        }
        tokio::time::sleep(OPEN_PAUSE).await;
    }
    Err(CatalogError::Unavailable {
        what,
        source: last.map_or_else(|| "busy".into(), Into::into),
    })
}

async fn open_postgres(
    options: Box<PgConnectOptions>,
    limit: Duration,
) -> Result<Pool, CatalogError> {
    let what = format!(
        "connect to {}@{}:{}/{}",
        options.get_username(),
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or_default()
    );
    let connecting = PgPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(limit)
        .connect_with(options.application_name("everlog"));
    match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(pool)) => Ok(Pool::Postgres(pool)),
        Ok(Err(error)) => Err(Failure::Answered(what, error).into_error()),
        Err(_) => Err(Failure::NoAnswer(what).into_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p08_only_errors_that_prove_it_say_that_nothing_was_done() {
        let sqlite = [
            ("5", Meaning::Busy),
            ("517", Meaning::Busy), // BUSY_SNAPSHOT
            ("8", Meaning::Denied),
            ("1", Meaning::Refused),
            ("10", Meaning::Unknown),
            ("1034", Meaning::Unknown), // IOERR_FSYNC
            ("13", Meaning::Unknown),
            ("", Meaning::Unknown),
        ];
        for (code, meaning) in sqlite {
            assert_eq!(sqlite_meaning(code), meaning, "SQLite {code}");
        }
        let postgres = [
            ("40001", Meaning::Busy),
            ("40003", Meaning::Unknown),
            ("57014", Meaning::Busy),
            ("57P01", Meaning::Unknown),
            ("08006", Meaning::Unknown),
            ("42501", Meaning::Denied),
            ("42P01", Meaning::Refused),
            ("25006", Meaning::Refused),
            ("53100", Meaning::Unknown),
            ("XX000", Meaning::Unknown),
            ("", Meaning::Unknown),
        ];
        for (code, meaning) in postgres {
            assert_eq!(postgres_meaning(code), meaning, "PostgreSQL {code}");
        }
        assert_eq!(classify(&sqlx::Error::WorkerCrashed), Meaning::Unknown);
        assert_eq!(classify(&sqlx::Error::PoolTimedOut), Meaning::Unknown);
    }
}
