//! The archive of one topic: the only door to its Iceberg table.
//!
//! ```text
//!   archiver ──► append ──┐                                   ┌── files  ◄── replayer
//!               resolve   ├─► one compare-and-swap on the ──► pin (a lease)
//!   maintain ─► expiry ───┘   catalog, never sent twice       └── snapshots, state
//! ```
//!
//! Guarantees: files and ledger change in one swap or not at all; an append lands only if the ledger of the very parent
//! that the swap requires is what the caller read from; an outcome that nobody can know yet is said to be so.
//!
//! Not promised: anything about commits of other engines, beyond noticing them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everlog_common::ledger::Refusal;
use everlog_common::{Advance, Clock, Ids, Ledger, Millis, TopicName};
use iceberg::TableIdent;
use iceberg::spec::TableMetadata;

use crate::catalog::{
    Catalog, CatalogError, CatalogErrorKind, CreateReply, LoadedTable, parse_namespace,
};
use crate::files::{EncodedFile, PlannedFile};
use crate::handle::Handle;
use crate::maintain::ExpirySettings;
use crate::manifests::MergeSettings;
use crate::schema::{self, PROPERTY_TOPIC, TableSettings, folded_table_name, table_name};
use crate::snapshot::SharedLeases;
use crate::storage::Storage;
use crate::summary::{self, LEDGER};

mod accept;
mod append;
mod error;
mod parent;

pub use error::{ArchiveError, ArchiveErrorKind};
pub(crate) use parent::metadata_folder;

use append::Operation;
use parent::Parent;

/// What an [`Archive`] works with.
#[derive(Debug, Clone)]
pub struct ArchiveDeps {
    /// Where tables are named.
    pub catalog: Arc<dyn Catalog>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Identifiers and jitter.
    pub ids: Arc<dyn Ids>,
}

/// How often a table is made whose making had no known outcome.
const CREATE_ATTEMPTS: u32 = 5;
/// First pause between them.
const CREATE_PAUSE: Duration = Duration::from_millis(200);

/// How an [`Archive`] keeps its table in shape while it commits.
#[derive(Debug, Clone, Default)]
pub struct ArchiveOptions {
    /// Which snapshots expire along with commits; none: only [`Archive::maintain`] expires.
    pub expiry: Option<ExpirySettings>,
    /// When manifests are merged.
    pub merge: MergeSettings,
}

/// The archive of one topic. Clones share caches and take turns committing.
#[derive(Debug, Clone)]
pub struct Archive {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle,
    options: ArchiveOptions,
    topic: TopicName,
    /// Whose turn it is to commit, and what the last one left behind.
    turn: tokio::sync::Mutex<Option<Parent>>,
    /// Live files by manifest, of the last snapshot that was planned.
    planned: Mutex<BTreeMap<String, Arc<Vec<PlannedFile>>>>,
    leases: SharedLeases,
}

impl std::ops::Deref for Inner {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

/// A commit that is on its way. Dropped, it counts as over: its caller starts again from the ledger.
#[derive(Debug)]
struct OpenCommit {
    _counted: Arc<()>,
}

impl OpenCommit {
    fn new(counter: &Arc<()>) -> Self {
        Self {
            _counted: Arc::clone(counter),
        }
    }
}

/// A table as one read showed it, with its ledger.
#[derive(Debug, Clone)]
pub struct TableState {
    /// The table.
    pub table: LoadedTable,
    /// Head of main; none before the first commit.
    pub snapshot_id: Option<i64>,
    /// When it was made.
    pub snapshot_time: Option<Millis>,
    /// What the head holds.
    pub ledger: Ledger,
}

/// What one commit adds.
#[derive(Debug, Clone)]
pub struct AppendRequest {
    /// Per partition, where it goes on and what it adds. May come without files: offsets without rows, gaps.
    pub advances: Vec<Advance>,
    /// Files that are written and durable, holding exactly the advances' rows.
    pub files: Vec<EncodedFile>,
    /// The commit's time: the `archived_at` of its rows.
    pub archived_at: Millis,
    /// A time to compare our clock with, beside the catalog's own ([`crate::catalog::Catalog::server_time`]), where one is
    /// known: nothing is committed while our clock is over 30 s ahead of either.
    pub reference_time: Option<Millis>,
}

/// What became of an append.
#[derive(Debug)]
#[must_use = "an unknown outcome must be resolved, a fence obeyed"]
pub enum CommitOutcome {
    /// Files and ledger are in the table.
    Committed {
        /// The snapshot that this commit made.
        snapshot_id: i64,
        /// The ledger in it.
        ledger: Ledger,
        /// Attempts it took.
        attempts: u32,
    },
    /// Nothing was committed: some entries are not what the advances were read from.
    Fenced {
        /// Which, and why. Partitions not named may be proposed again.
        refusals: Vec<Refusal>,
        /// The ledger that fenced.
        ledger: Ledger,
    },
    /// Nobody can say yet. Propose nothing else for these partitions, delete nothing, and call [`Archive::resolve`].
    Unknown(PendingCommit),
}

/// A commit whose outcome is open.
#[derive(Debug)]
pub struct PendingCommit {
    operation: Operation,
}

impl PendingCommit {
    /// What was to be committed.
    pub fn request(&self) -> &AppendRequest {
        &self.operation.request
    }
}

/// One snapshot, for people and for choosing.
#[derive(Debug, Clone)]
pub struct SnapshotInfo {
    /// Its id.
    pub snapshot_id: i64,
    /// The one before it.
    pub parent_id: Option<i64>,
    /// When it was made.
    pub time: Millis,
    /// `append`, `replace` …
    pub operation: String,
    /// Whether it is in the history of main.
    pub on_main: bool,
    /// What it holds, where it says so.
    pub ledger: Option<Ledger>,
    /// Rows in the table then, where it says so.
    pub rows: Option<u64>,
    /// Tags and branches that point at it, sorted.
    pub refs: Vec<String>,
}

impl Archive {
    /// Opens the archive of a topic; none where it has none yet.
    pub async fn open(
        deps: ArchiveDeps,
        namespace: &str,
        topic: &TopicName,
    ) -> Result<Option<Self>, ArchiveError> {
        let ident = ident_of(namespace, topic)?;
        let failed = |source| catalog_error(&ident, "cannot read the table", source);
        match deps.catalog.load(&ident).await.map_err(failed)? {
            Some(table) => Self::of_table(deps, topic, &table).map(Some),
            None => Ok(None),
        }
    }

    /// Opens the archive of a topic, making namespace and table where they are not there yet.
    pub async fn open_or_create(
        deps: ArchiveDeps,
        namespace: &str,
        topic: &TopicName,
        settings: &TableSettings,
    ) -> Result<Self, ArchiveError> {
        let ident = ident_of(namespace, topic)?;
        if let Some(archive) = Self::open(deps.clone(), namespace, topic).await? {
            return archive.unless_name_is_taken().await;
        }
        if let Some(clash) = folded_clash(&deps, &ident, topic, |_, _| true).await? {
            return Err(clash);
        }
        let table = schema::new_table(namespace, topic, settings).map_err(|source| {
            ArchiveError::Invalid {
                table: ident.to_string(),
                what: source.to_string(),
            }
        })?;
        let catalog = &deps.catalog;
        catalog
            .ensure_namespace(ident.namespace())
            .await
            .map_err(|source| catalog_error(&ident, "cannot make the namespace", source))?;
        let mut last = None;
        for attempt in 0..CREATE_ATTEMPTS {
            match catalog.create(table.clone()).await {
                Ok(CreateReply::Created(table)) => {
                    return Self::of_table(deps, topic, &table)?
                        .unless_name_is_taken()
                        .await;
                }
                Ok(CreateReply::Exists) => {}
                // Made or not: the name is given once, so both looking and asking again are safe.
                Err(error) if error.kind() == CatalogErrorKind::Unknown => last = Some(error),
                Err(source) => return Err(catalog_error(&ident, "cannot make the table", source)),
            }
            if let Some(archive) = Self::open(deps.clone(), namespace, topic).await? {
                return archive.unless_name_is_taken().await;
            }
            deps.clock.sleep(CREATE_PAUSE * (1 << attempt)).await;
        }
        let source = last.unwrap_or_else(|| CatalogError::Unavailable {
            what: format!("create {ident}"),
            source: "the catalog says that it exists, but does not show it".into(),
        });
        Err(catalog_error(&ident, "cannot make the table", source))
    }

    /// Two tables whose names differ in case alone may have been made at the same time. As long as nothing was archived
    /// into this one, it gives way to one that has something, or whose name is less, so that of the two one is left.
    async fn unless_name_is_taken(self) -> Result<Self, ArchiveError> {
        let table = self.load().await?;
        if table.metadata.current_snapshot_id().is_some() {
            return Ok(self);
        }
        let Inner { handle, topic, .. } = &*self.inner;
        let Handle { deps, ident, .. } = handle;
        let clash = folded_clash(deps, ident, topic, |other, has_rows| {
            has_rows || other < ident.name()
        })
        .await?;
        match clash {
            Some(clash) => Err(clash),
            None => Ok(self),
        }
    }

    /// The same archive with other options, sharing nothing with the first.
    pub fn with_options(self, options: ArchiveOptions) -> Self {
        let handle = self.inner.handle.apart();
        Self::assemble(handle, options, self.inner.topic.clone())
    }

    fn of_table(
        deps: ArchiveDeps,
        topic: &TopicName,
        table: &LoadedTable,
    ) -> Result<Self, ArchiveError> {
        match table.metadata.properties().get(PROPERTY_TOPIC) {
            Some(owner) if owner == topic.as_str() => {}
            Some(owner) => {
                return Err(ArchiveError::NameClash {
                    topic: topic.clone(),
                    table: table.ident.to_string(),
                    owner: owner.clone(),
                });
            }
            None => {
                return Err(ArchiveError::NotAnArchive {
                    topic: topic.clone(),
                    table: table.ident.to_string(),
                });
            }
        }
        let handle = Handle::of(deps, table)?;
        Ok(Self::assemble(
            handle,
            ArchiveOptions::default(),
            topic.clone(),
        ))
    }

    fn assemble(handle: Handle, options: ArchiveOptions, topic: TopicName) -> Self {
        let inner = Inner {
            handle,
            options,
            topic,
            turn: tokio::sync::Mutex::default(),
            planned: Mutex::default(),
            leases: SharedLeases::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The topic.
    pub fn topic(&self) -> &TopicName {
        &self.inner.topic
    }

    /// Namespace and name of the table.
    pub fn table(&self) -> &TableIdent {
        &self.inner.ident
    }

    /// The object store that holds the table's files.
    #[allow(
        clippy::unused_async,
        reason = "opening may take a look at the catalog for credentials that do not renew themselves"
    )]
    pub async fn storage(&self) -> Result<Storage, ArchiveError> {
        Ok(self.store_of_files())
    }

    pub(crate) fn store_of_files(&self) -> Storage {
        self.inner.store_of_files()
    }

    /// What is the same for every kind of table.
    pub(crate) fn handle(&self) -> &Handle {
        &self.inner.handle
    }

    /// The table's state now, read from the catalog. A foreign change is an error.
    pub async fn state(&self) -> Result<TableState, ArchiveError> {
        let table = self.load().await?;
        let found = self.find(&table, None).await?;
        let time = found
            .snapshot_id
            .and_then(|id| table.metadata.snapshot_by_id(id))
            .map(|snapshot| Millis(snapshot.timestamp_ms()));
        Ok(TableState {
            table,
            snapshot_id: found.snapshot_id,
            snapshot_time: time,
            ledger: found.ledger,
        })
    }

    /// Every snapshot that is still there, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, ArchiveError> {
        let table = self.load().await?;
        let refs = self.refs(&table.metadata)?;
        let mut names: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for (name, reference) in refs {
            names.entry(reference.snapshot_id).or_default().push(name);
        }
        Ok(describe(&table.metadata, names))
    }

    pub(crate) fn deps(&self) -> &ArchiveDeps {
        &self.inner.deps
    }

    pub(crate) fn leases(&self) -> &SharedLeases {
        &self.inner.leases
    }

    pub(crate) fn planned_files(&self) -> &Mutex<BTreeMap<String, Arc<Vec<PlannedFile>>>> {
        &self.inner.planned
    }

    fn table_name(&self) -> String {
        self.inner.ident.to_string()
    }

    pub(crate) fn invalid(&self, what: String) -> ArchiveError {
        ArchiveError::Invalid {
            table: self.table_name(),
            what,
        }
    }

    pub(crate) fn catalog_error(&self, doing: &'static str, source: CatalogError) -> ArchiveError {
        catalog_error(&self.inner.ident, doing, source)
    }
}

fn describe(metadata: &TableMetadata, mut names: BTreeMap<i64, Vec<String>>) -> Vec<SnapshotInfo> {
    let main: Vec<i64> = summary::ancestry(metadata, metadata.current_snapshot_id())
        .map(|snapshot| snapshot.snapshot_id())
        .collect();
    let mut snapshots: Vec<_> = metadata.snapshots().collect();
    snapshots.sort_by_key(|s| (s.sequence_number(), s.timestamp_ms(), s.snapshot_id()));
    snapshots
        .into_iter()
        .map(|s| SnapshotInfo {
            snapshot_id: s.snapshot_id(),
            parent_id: s.parent_snapshot_id(),
            time: Millis(s.timestamp_ms()),
            operation: s.summary().operation.as_str().to_owned(),
            on_main: main.contains(&s.snapshot_id()),
            ledger: s
                .summary()
                .additional_properties
                .get(LEDGER)
                .and_then(|text| Ledger::decode(text).ok()),
            rows: summary::summary_number(s, "total-records"),
            refs: names.remove(&s.snapshot_id()).unwrap_or_default(),
        })
        .collect()
}

fn ident_of(namespace: &str, topic: &TopicName) -> Result<TableIdent, ArchiveError> {
    let name = table_name(topic);
    match parse_namespace(namespace) {
        Ok(namespace) => Ok(TableIdent::new(namespace, name)),
        Err(source) => Err(ArchiveError::Catalog {
            table: format!("{namespace}.{name}"),
            doing: "cannot be named",
            source,
        }),
    }
}

pub(crate) fn catalog_error(
    ident: &TableIdent,
    doing: &'static str,
    source: CatalogError,
) -> ArchiveError {
    ArchiveError::Catalog {
        table: ident.to_string(),
        doing,
        source,
    }
}

/// Some catalogs fold the case of names, so a name that differs in case alone is taken, by one that `counts`.
async fn folded_clash(
    deps: &ArchiveDeps,
    ident: &TableIdent,
    topic: &TopicName,
    counts: impl Fn(&str, bool) -> bool,
) -> Result<Option<ArchiveError>, ArchiveError> {
    let folded = folded_table_name(topic);
    let names = deps
        .catalog
        .list_tables(ident.namespace())
        .await
        .map_err(|source| catalog_error(ident, "cannot list the namespace's tables", source))?;
    let taken = names
        .into_iter()
        .find(|name| name != ident.name() && name.to_lowercase() == folded);
    let Some(name) = taken else {
        return Ok(None);
    };
    let other = TableIdent::new(ident.namespace().clone(), name);
    let loaded = deps
        .catalog
        .load(&other)
        .await
        .map_err(|source| catalog_error(&other, "cannot read the table", source))?;
    let has_rows = loaded
        .as_ref()
        .is_some_and(|table| table.metadata.current_snapshot_id().is_some());
    if !counts(other.name(), has_rows) {
        return Ok(None);
    }
    let owner = loaded
        .as_ref()
        .and_then(|table| table.metadata.properties().get(PROPERTY_TOPIC).cloned());
    Ok(Some(ArchiveError::NameClash {
        topic: topic.clone(),
        owner: owner.unwrap_or_else(|| format!("(none; the table is {other})")),
        table: other.to_string(),
    }))
}
