//! A catalog in a SQL database: SQLite for one machine, PostgreSQL for many.
//!
//! The tables are those of Iceberg's JDBC catalog, which pyiceberg and others share, so those read (and may write) what
//! everlog made, and the other way round:
//!
//! ```text
//!   iceberg_tables(catalog_name, table_namespace, table_name | metadata_location, previous_metadata_location, iceberg_type)
//!   iceberg_namespace_properties(catalog_name, namespace, property_key | property_value)
//! ```
//!
//! A commit is: read the row, check the requirements against the metadata it names, write the new metadata file under a
//! new name (durably), then one `UPDATE … WHERE metadata_location = <the one read>`. The database runs that statement
//! alone and atomically, so of two writers one changes no row, and knows it.
//!
//! What an error from that `UPDATE` means is decided by `classify`; no answer at all means `Unknown`: a statement that
//! waits for a lock in PostgreSQL can still land after its client has gone.

mod database;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::clock::RandomIds;
use everlog_common::{Ids, Millis};
use futures::StreamExt;
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use uuid::Uuid;

use super::metadata::{self, Applied, StorageOrParse, dotted};
use super::properties::{duration, optional, required, wrong};
use super::{Catalog, CatalogError, CommitReply, CreateReply, LoadedTable, Make, NewTable};
use crate::storage::{Storage, StorageError, StorageErrorKind};

use database::{Database, Row, Swap};

/// How often a load follows a pointer that moves while its metadata file is being read.
const LOAD_TRIES: usize = 3;

/// A catalog kept in SQLite or PostgreSQL.
///
/// Properties: `uri` (`sqlite://PATH`, `sqlite:PATH` or `postgres://…` with the driver's usual parameters, for instance
/// `sslmode=verify-full`), `warehouse`, `name` (default `everlog`: the catalog's name inside the database),
/// `everlog.catalog.request-timeout` (30s), and those of [`Storage`].
#[derive(Debug)]
pub struct SqlCatalog {
    database: Database,
    warehouse: String,
    storage: Storage,
    ids: Arc<dyn Ids>,
}

impl SqlCatalog {
    /// Opens the catalog and makes its two tables unless they are there; a SQLite file only if `make` says so.
    pub async fn connect(
        properties: &BTreeMap<String, String>,
        make: Make,
    ) -> Result<Self, CatalogError> {
        let storage = Storage::from_properties(properties)
            .map_err(|source| CatalogError::storage("open the catalog's storage", source))?;
        Self::open(properties, storage, Arc::new(RandomIds), make).await
    }

    /// Like [`Self::connect`], with storage and identifiers given.
    pub async fn open(
        properties: &BTreeMap<String, String>,
        storage: Storage,
        ids: Arc<dyn Ids>,
        make: Make,
    ) -> Result<Self, CatalogError> {
        let uri = required(properties, "uri", "sqlite://lake/catalog.db")?;
        let warehouse = required(properties, "warehouse", "file:///var/lib/everlog")?;
        let name = optional(properties, "name").unwrap_or("everlog");
        let limit = duration(properties, REQUEST_TIMEOUT, REQUEST_TIMEOUT_DEFAULT)?;
        let warehouse = absolute(warehouse, &storage)?;
        let storage = storage
            .within(&warehouse)
            .map_err(|source| CatalogError::storage("open the warehouse", source))?;
        Ok(Self {
            database: Database::open(uri, name, limit, make).await?,
            warehouse,
            storage,
            ids,
        })
    }

    /// Everything that is wrong with the properties and can be told without asking the database or the store.
    pub(super) fn check(properties: &BTreeMap<String, String>) -> Vec<CatalogError> {
        let uri = required(properties, "uri", "sqlite://lake/catalog.db").and_then(database::check);
        let limit = duration(properties, REQUEST_TIMEOUT, REQUEST_TIMEOUT_DEFAULT);
        let storage = Storage::from_properties(properties)
            .map_err(|source| CatalogError::storage("open the catalog's storage", source));
        let warehouse = required(properties, "warehouse", "file:///var/lib/everlog");
        let (storage, warehouse) = match (storage, warehouse) {
            (Ok(storage), Ok(warehouse)) => (None, absolute(warehouse, &storage).err()),
            (storage, warehouse) => (storage.err(), warehouse.err()),
        };
        let found = [uri.err(), warehouse, storage, limit.err()];
        found.into_iter().flatten().collect()
    }

    async fn read_row(&self, table: &TableIdent) -> Result<Option<Row>, CatalogError> {
        self.database
            .row(&dotted(table.namespace()), table.name())
            .await
    }

    /// Follows the row to its metadata. Another engine may swap, and delete the old file, in between: then once more.
    async fn load_current(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        let mut failed: Option<(String, StorageOrParse)> = None;
        for _ in 0..LOAD_TRIES {
            let Some(row) = self.read_row(table).await? else {
                return Ok(None);
            };
            match failed.take() {
                Some((location, error)) if location == row.metadata_location => {
                    return Err(self.missing(table, &location, error).await);
                }
                _ => {}
            }
            match metadata::read(&self.storage, &row.metadata_location).await {
                Ok(metadata) => {
                    return Ok(Some(LoadedTable {
                        ident: table.clone(),
                        metadata,
                        metadata_location: row.metadata_location,
                        config: BTreeMap::new(),
                    }));
                }
                Err(StorageOrParse::Storage(error))
                    if error.kind() == StorageErrorKind::NotFound =>
                {
                    failed = Some((row.metadata_location, StorageOrParse::Storage(error)));
                }
                Err(error) => return Err(error.into_catalog(&row.metadata_location)),
            }
        }
        Err(CatalogError::Unavailable {
            what: format!("load {table}"),
            source: "it changed faster than it could be read".into(),
        })
    }

    /// What it means that a metadata file is not there: where nothing at all is in its folder, the folder is away (not
    /// mounted, say), and may come back; else somebody deleted it.
    async fn missing(
        &self,
        table: &TableIdent,
        location: &str,
        error: StorageOrParse,
    ) -> CatalogError {
        let folder = location.rsplit_once('/').map_or("", |(folder, _)| folder);
        let first = match self.storage.list(folder) {
            Ok(mut listing) => listing.next().await,
            Err(error) => Some(Err(error)),
        };
        match first {
            None => CatalogError::Unavailable {
                what: format!("load {table}"),
                source: format!(
                    "nothing is in {folder}, where {location} should be; is it mounted?"
                )
                .into(),
            },
            Some(_) => error.into_catalog(location),
        }
    }

    /// The state that a commit builds on: the one it was derived from, if that is still current.
    async fn current(&self, base: &LoadedTable) -> Result<Option<LoadedTable>, CatalogError> {
        match self.read_row(&base.ident).await? {
            None => Ok(None),
            // A metadata file is never changed, so the same name is the same metadata.
            Some(row) if row.metadata_location == base.metadata_location => Ok(Some(base.clone())),
            Some(_) => self.load_current(&base.ident).await,
        }
    }

    fn location_of(&self, table: &NewTable) -> String {
        match &table.location {
            Some(location) => location.trim_end_matches('/').to_owned(),
            None => metadata::default_location(&self.warehouse, &table.ident),
        }
    }
}

const REQUEST_TIMEOUT: &str = "everlog.catalog.request-timeout";
const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

#[async_trait]
impl Catalog for SqlCatalog {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        let levels: &[String] = namespace;
        for depth in 1..=levels.len() {
            let level = levels.get(..depth).unwrap_or(levels).join(".");
            self.database.ensure_namespace(&level).await?;
        }
        Ok(())
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        self.database.tables(&dotted(namespace)).await
    }

    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        self.load_current(table).await
    }

    async fn create(&self, table: NewTable) -> Result<CreateReply, CatalogError> {
        let ident = table.ident.clone();
        let namespace = dotted(ident.namespace());
        if !self.database.has_namespace(&namespace).await? {
            return Err(CatalogError::NotFound {
                what: format!("create {ident}"),
                message: format!("namespace {namespace} does not exist"),
            });
        }
        if self.database.is_taken(&namespace, ident.name()).await? {
            return Ok(CreateReply::Exists);
        }
        let location = self.location_of(&table);
        let metadata = metadata::first(table, location, self.ids.uuid())?;
        if let Err(error) = metadata::check_free(&self.storage, &ident, &metadata).await {
            // somebody else may have made this very table meanwhile, and filled it
            return if self.database.is_taken(&namespace, ident.name()).await? {
                Ok(CreateReply::Exists)
            } else {
                Err(error)
            };
        }
        let metadata_location =
            metadata::write(&self.storage, &metadata, None, self.ids.uuid()).await?;
        match self
            .database
            .insert(&namespace, ident.name(), &metadata_location)
            .await
        {
            Swap::Done => Ok(CreateReply::Created(LoadedTable {
                ident,
                metadata: Arc::new(metadata),
                metadata_location,
                config: BTreeMap::new(),
            })),
            Swap::Conflict => Ok(CreateReply::Exists),
            Swap::Refused(error) | Swap::Unknown(error) => Err(error),
        }
    }

    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
        _idempotency_key: Uuid,
    ) -> CommitReply {
        let current = match self.current(base).await {
            Ok(Some(current)) => current,
            Ok(None) => {
                return CommitReply::Refused(CatalogError::NotFound {
                    what: format!("commit to {}", base.ident),
                    message: "no such table".into(),
                });
            }
            Err(error) => return CommitReply::Refused(error),
        };
        let previous = current.metadata_location.as_str();
        if metadata::must_be_current(&updates) && previous != base.metadata_location {
            return CommitReply::Conflict;
        }
        let applied = metadata::apply(
            &base.ident,
            &current.metadata,
            previous,
            &requirements,
            updates,
        );
        let metadata = match applied {
            Applied::Ready(metadata) => metadata,
            Applied::Conflict => return CommitReply::Conflict,
            Applied::Refused(error) => return CommitReply::Refused(error),
        };
        // Before the swap, and durable: what the row names must be there even after a power cut.
        let chance = self.ids.uuid();
        let next = match metadata::write(&self.storage, &metadata, Some(previous), chance).await {
            Ok(next) => next,
            Err(error) => return CommitReply::Refused(error),
        };
        let namespace = dotted(base.ident.namespace());
        match self
            .database
            .swap(&namespace, base.ident.name(), previous, &next)
            .await
        {
            Swap::Done => CommitReply::Committed(LoadedTable {
                ident: base.ident.clone(),
                metadata: Arc::from(metadata),
                metadata_location: next,
                config: BTreeMap::new(),
            }),
            Swap::Conflict => CommitReply::Conflict,
            Swap::Refused(error) => CommitReply::Refused(error),
            Swap::Unknown(error) => CommitReply::Unknown(error),
        }
    }

    fn removes_exactly(&self) -> bool {
        true
    }

    fn storage_for(&self, _table: &LoadedTable) -> Result<Storage, CatalogError> {
        Ok(self.storage.clone())
    }

    fn server_time(&self) -> Option<Millis> {
        self.database.server_time()
    }
}

/// A warehouse as every engine can use it, whatever folder it starts in: an absolute path, or a URI of a store that is
/// known. Anything else would end up beside the working directory of whoever archives.
fn absolute(warehouse: &str, storage: &Storage) -> Result<String, CatalogError> {
    storage.check(warehouse).map_err(|error| match error {
        StorageError::Location { message, .. } => wrong(
            "warehouse",
            format!(
                "`{warehouse}` {message}; give file:///path, s3://bucket/prefix, gs://… or abfss://…"
            ),
        ),
        other => CatalogError::storage("open the warehouse", other),
    })?;
    let trimmed = warehouse.trim_end_matches('/');
    if trimmed.contains("://") || trimmed.starts_with("file:/") {
        Ok(trimmed.to_owned())
    } else {
        Ok(format!("file://{trimmed}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warehouse_is_an_absolute_path_or_the_uri_of_a_known_store() {
        let storage = Storage::from_properties(&BTreeMap::new()).expect("storage");
        let absolute = |warehouse: &str| absolute(warehouse, &storage);
        assert_eq!(absolute("s3://b/w/").ok().as_deref(), Some("s3://b/w"));
        assert_eq!(absolute("file:///w").ok().as_deref(), Some("file:///w"));
        assert_eq!(absolute("/a b/w").ok().as_deref(), Some("file:///a b/w"));
        for wrong in [
            "lake",
            "relative/dir",
            "s3:/b",
            "s3:b",
            "hdfs://n/w",
            "file://lake/w",
        ] {
            let error = absolute(wrong).expect_err(wrong).to_string();
            assert!(
                error.starts_with("[catalog] warehouse: ") && error.contains(wrong),
                "{error}"
            );
        }
    }
}
