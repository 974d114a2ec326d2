//! The catalog: who names a table's current metadata, and swaps it.
//!
//! Iceberg's promise of atomic commits is the catalog's compare-and-swap, and everlog's exactly-once argument stands on
//! knowing what became of one. So this seam is ours and narrow: one read, one creation, one swap attempt, each reply
//! classified by what the caller may conclude from it.
//!
//! ```text
//!              ┌── sql     one row per table; SQLite or PostgreSQL
//!   Catalog ───┼── rest    Iceberg's REST protocol
//!              └── memory  a fake with faults, for tests and simulation
//! ```
//!
//! Invariants, each held by every implementation and checked by the conformance suite:
//!
//! * A swap is attempted once per call. Nothing below this seam sends a commit a second time, except after a reply that
//!   proves the first was not looked at (an expired token).
//! * [`CommitReply::Conflict`] and [`CommitReply::Refused`] mean *not applied, and never will be*. Everything that is not
//!   proof of either outcome is [`CommitReply::Unknown`].
//! * No object is ever deleted here; what a failed attempt wrote is left to orphan removal.
//! * Every wait has a bound of our own.

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
pub mod memory;
mod metadata;
mod properties;
pub mod rest;
mod server_time;
pub mod sql;

pub(crate) use metadata::{MetadataOwner, parse_named as parse_metadata};

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use everlog_common::{Ids, Millis};
use iceberg::spec::{Schema, SortOrder, TableMetadata, UnboundPartitionSpec};
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use uuid::Uuid;

use crate::storage::{Storage, StorageError};

/// A table as one read of the catalog showed it.
///
/// * `metadata` is what `metadata_location` holds: the two are never from different moments.
/// * It is a value: it does not change when the table does.
#[derive(Clone)]
pub struct LoadedTable {
    /// Namespace and name.
    pub ident: TableIdent,
    /// The whole table metadata.
    pub metadata: Arc<TableMetadata>,
    /// Where the catalog says that metadata is stored.
    pub metadata_location: String,
    /// Properties that the catalog gave for this table, for instance vended `s3.*` credentials. Never printed.
    pub config: BTreeMap<String, String>,
}

impl Debug for LoadedTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedTable")
            .field("ident", &self.ident)
            .field("metadata_location", &self.metadata_location)
            .field("config", &self.config.keys())
            .finish_non_exhaustive()
    }
}

/// What a table is created from.
#[derive(Debug, Clone)]
pub struct NewTable {
    /// Namespace and name. The namespace must exist.
    pub ident: TableIdent,
    /// The columns. Iceberg reassigns the field ids at creation, in order.
    pub schema: Schema,
    /// How rows map to partitions; unpartitioned where `None`.
    pub partition_spec: Option<UnboundPartitionSpec>,
    /// The order rows are written in; unsorted where `None`.
    pub sort_order: Option<SortOrder>,
    /// Table properties.
    pub properties: BTreeMap<String, String>,
    /// Where the table's files go; the catalog's warehouse decides where `None`.
    pub location: Option<String>,
}

/// What a creation came to. An error of kind [`CatalogErrorKind::Unknown`] means: load to find out.
#[derive(Debug)]
pub enum CreateReply {
    /// The table was made by this call.
    Created(LoadedTable),
    /// A table, or something else, had that name already; nothing was changed.
    Exists,
}

/// What one attempt to swap a table's metadata came to.
#[derive(Debug)]
pub enum CommitReply {
    /// The updates are in the table; this is the table right after them.
    Committed(LoadedTable),
    /// Somebody else changed the table first, or a requirement does not hold. This request was definitely not applied:
    /// reload and derive the commit anew. Look for the commit's own mark there first: a proxy that repeats requests can
    /// turn a success into a conflict with oneself (P5).
    Conflict,
    /// Definitely not applied, for another reason. The error's kind says whether trying again can help.
    Refused(CatalogError),
    /// Nobody can say yet whether the updates are, or will be, in the table. Read the table back before anything else,
    /// and delete nothing.
    Unknown(CatalogError),
}

/// A catalog of Iceberg tables.
#[async_trait]
pub trait Catalog: Send + Sync + Debug {
    /// Makes the namespace (and its parents, where the catalog has nested ones) unless it exists.
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError>;

    /// The names of all tables in a namespace, sorted; empty where the namespace does not exist.
    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError>;

    /// The table's state now, or `None` where there is no such table.
    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError>;

    /// Creates a table, unless the name is taken.
    async fn create(&self, table: NewTable) -> Result<CreateReply, CatalogError>;

    /// Swaps the table's metadata once: applies `updates` if every one of `requirements` holds.
    ///
    /// * `base` is the state the updates were derived from. A catalog may apply them to a newer state as long as the
    ///   requirements hold there, so what must not have changed has to be among the requirements. Removal of snapshots is
    ///   not applied to a newer state where [`Self::removes_exactly`] says so.
    /// * `idempotency_key` marks this attempt for servers that recognise repeated requests. A new attempt, after the
    ///   old one's outcome is known, takes a new key.
    /// * Dropping the future leaves the outcome unknown.
    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
        idempotency_key: Uuid,
    ) -> CommitReply;

    /// Whether [`Self::commit`] removes snapshots from exactly `base`, and is a [`CommitReply::Conflict`] where the table
    /// has changed in anything since. Elsewhere a tag that another engine makes meanwhile goes with its snapshot: no
    /// requirement of the protocol says "no tag that I do not know".
    fn removes_exactly(&self) -> bool {
        false
    }

    /// The object store that holds this table's files, with the credentials the catalog vended for it, if any.
    fn storage_for(&self, table: &LoadedTable) -> Result<Storage, CatalogError>;

    /// What time it is where the catalog runs, as its answers so far tell; none where they do not, or where the catalog is
    /// a file of this machine. At most some seconds late, and not early.
    fn server_time(&self) -> Option<Millis> {
        None
    }
}

/// A new key for one attempt to commit: a UUID of version 7, which begins with the milliseconds of Unix time, by which
/// servers may forget the keys of old requests.
pub fn commit_key(ids: &dyn Ids, now: Millis) -> Uuid {
    let mut bytes = ids.uuid().into_bytes();
    let millis = u64::try_from(now.0).unwrap_or_default().to_be_bytes();
    for (byte, of_time) in bytes.iter_mut().zip(millis.into_iter().skip(2)) {
        *byte = of_time;
    }
    as_version_7(bytes)
}

fn as_version_7(bytes: [u8; 16]) -> Uuid {
    uuid::Builder::from_bytes(bytes)
        .with_variant(uuid::Variant::RFC4122)
        .with_version(uuid::Version::SortRand)
        .into_uuid()
}

/// What a caller can do about a [`CatalogError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogErrorKind {
    /// Not done; the same call may succeed later.
    Transient,
    /// Not done; credentials are missing, wrong, expired or not sufficient.
    Unauthorized,
    /// Not done; the namespace or table is not there.
    NotFound,
    /// Not done; the request or the configuration is wrong and stays so.
    Invalid,
    /// Stored data cannot be what a catalog or a writer would have stored.
    Corrupt,
    /// Done or not: nobody can say yet.
    Unknown,
}

impl From<crate::storage::StorageErrorKind> for CatalogErrorKind {
    fn from(kind: crate::storage::StorageErrorKind) -> Self {
        use crate::storage::StorageErrorKind as Stored;
        match kind {
            Stored::Transient => Self::Transient,
            Stored::NotFound | Stored::Corrupt => Self::Corrupt,
            Stored::Unauthorized => Self::Unauthorized,
            Stored::Invalid => Self::Invalid,
        }
    }
}

/// Boxed cause of an error.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a catalog call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The catalog was not reached, or was not able to answer; nothing was changed.
    #[error("catalog: {what}: not available")]
    Unavailable {
        /// What was asked, of whom.
        what: String,
        /// What went wrong.
        #[source]
        source: Cause,
    },
    /// The catalog does not accept who we are.
    #[error("catalog: {what}: not authorized: {message}; check the credentials in [catalog]")]
    Unauthorized {
        /// What was asked, of whom.
        what: String,
        /// The answer.
        message: String,
    },
    /// There is no catalog where it should be.
    #[error("no catalog at {place}: check catalog.uri, or start the archiver, which makes it")]
    Absent {
        /// Its file.
        place: String,
    },
    /// The catalog has no such namespace or table.
    #[error("catalog: {what}: not found: {message}")]
    NotFound {
        /// What was asked, of whom.
        what: String,
        /// The answer.
        message: String,
    },
    /// The catalog, or our own check before asking it, refused the request.
    #[error("catalog: {what}: refused: {message}")]
    Refused {
        /// What was asked, of whom.
        what: String,
        /// The answer.
        message: String,
        /// What went wrong, where more is known than the message.
        #[source]
        source: Option<Cause>,
    },
    /// A `[catalog]` property is missing or wrong.
    #[error("[catalog] {key}: {message}")]
    Property {
        /// The property's name.
        key: String,
        /// What is wrong with it and what would be right.
        message: String,
    },
    /// What the catalog or the table's metadata file holds cannot be read as what it should be.
    #[error("catalog: {what}: unreadable")]
    Unreadable {
        /// What was read.
        what: String,
        /// Why it cannot be read.
        #[source]
        source: Cause,
    },
    /// The table's object store failed.
    #[error("catalog: {what}: object store failed")]
    Storage {
        /// What was to be done.
        what: String,
        /// What went wrong.
        #[source]
        source: Box<StorageError>,
    },
    /// The request may or may not have been carried out.
    #[error("catalog: {what}: outcome unknown")]
    OutcomeUnknown {
        /// What was asked, of whom.
        what: String,
        /// What went wrong.
        #[source]
        source: Cause,
    },
}

impl CatalogError {
    pub(crate) fn storage(what: impl Into<String>, source: StorageError) -> Self {
        Self::Storage {
            what: what.into(),
            source: Box::new(source),
        }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> CatalogErrorKind {
        match self {
            Self::Unavailable { .. } => CatalogErrorKind::Transient,
            Self::Unauthorized { .. } => CatalogErrorKind::Unauthorized,
            Self::Absent { .. } | Self::NotFound { .. } => CatalogErrorKind::NotFound,
            Self::Refused { .. } | Self::Property { .. } => CatalogErrorKind::Invalid,
            Self::Unreadable { .. } => CatalogErrorKind::Corrupt,
            Self::Storage { source, .. } => source.kind().into(),
            Self::OutcomeUnknown { .. } => CatalogErrorKind::Unknown,
        }
    }
}

/// Whether a catalog that is a file is made where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// With the folders above it: for whoever archives.
    IfMissing,
    /// For whoever only looks: a wrong address must not leave an empty catalog behind.
    Never,
}

/// Opens the catalog that a `[catalog]` section describes, and makes it where it is a file that is not there.
///
/// The keys are Iceberg's own: `type` (`sql` or `rest`), `uri`, `warehouse`, `name`, and everything the chosen catalog
/// and the object store understand. See [`sql::SqlCatalog`], [`rest::RestCatalog`] and [`Storage`].
pub async fn connect(
    properties: &BTreeMap<String, String>,
) -> Result<Arc<dyn Catalog>, CatalogError> {
    open(properties, Make::IfMissing).await
}

/// Like [`connect`], for readers: a catalog that is not there is [`CatalogError::Absent`].
pub async fn connect_existing(
    properties: &BTreeMap<String, String>,
) -> Result<Arc<dyn Catalog>, CatalogError> {
    open(properties, Make::Never).await
}

async fn open(
    properties: &BTreeMap<String, String>,
    make: Make,
) -> Result<Arc<dyn Catalog>, CatalogError> {
    match kind(properties)? {
        Kind::Sql => Ok(Arc::new(sql::SqlCatalog::connect(properties, make).await?)),
        Kind::Rest => Ok(Arc::new(rest::RestCatalog::connect(properties).await?)),
    }
}

/// Everything that [`connect`] would refuse without asking anybody. No request is sent, and nothing is made.
pub fn check(properties: &BTreeMap<String, String>) -> Vec<CatalogError> {
    match kind(properties) {
        Ok(Kind::Sql) => sql::SqlCatalog::check(properties),
        Ok(Kind::Rest) => rest::RestCatalog::check(properties),
        Err(error) => vec![error],
    }
}

enum Kind {
    Sql,
    Rest,
}

fn kind(properties: &BTreeMap<String, String>) -> Result<Kind, CatalogError> {
    match properties.get("type").map(String::as_str) {
        Some("sql") => Ok(Kind::Sql),
        Some("rest") => Ok(Kind::Rest),
        Some(other) => Err(CatalogError::Property {
            key: "type".into(),
            message: format!("`{other}` is not supported, give `sql` or `rest`"),
        }),
        None => Err(CatalogError::Property {
            key: "type".into(),
            message: "missing, give `sql` or `rest`".into(),
        }),
    }
}

/// Reads a namespace as configuration writes it: levels separated by dots.
pub fn parse_namespace(namespace: &str) -> Result<NamespaceIdent, CatalogError> {
    let levels: Vec<&str> = namespace.split('.').collect();
    if levels.iter().any(|level| level.trim().is_empty()) {
        return Err(CatalogError::Property {
            key: "namespace".into(),
            message: format!(
                "`{namespace}` has an empty level, give a name like `everlog` or `lake.everlog`"
            ),
        });
    }
    NamespaceIdent::from_strs(levels).map_err(|error| CatalogError::Property {
        key: "namespace".into(),
        message: error.to_string(),
    })
}
