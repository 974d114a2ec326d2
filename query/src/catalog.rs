//! Names to tables: archives, jobs' outputs and others of the namespace, at a moment; `NAME$suffix`, `NAME_v`, named files.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::catalog::TableProvider;
use everlog_common::{Ledger, Millis, TopicName};
use everlog_table::archive::{Archive, ArchiveDeps, ArchiveError};
use everlog_table::catalog::{CatalogError, LoadedTable, parse_namespace};
use everlog_table::files::PlannedFile;
use everlog_table::job::PROPERTY_JOB;
use everlog_table::manifests::{self, ManifestError};
use everlog_table::schema::{Column, ColumnMap, PROPERTY_TOPIC, table_name};
use everlog_table::snapshot::{LeaseMode, PinError, PinnedSnapshot, SnapshotSelector};
use everlog_table::storage::Storage;
use iceberg::TableIdent;
use iceberg::spec::{DataContentType, DataFileFormat, SnapshotRef};
use tokio::runtime::Handle;

use crate::error::chain;
use crate::live::{self, Tail};
use crate::names::{self, Suffix, quoted};
use crate::table::{Archived, Columns, Footers, LakeTable, LiveFile, Moment};
use crate::{AsOf, Lake, Progress, QueryError, TableKind, TableName, metadata, travel};

/// How many tables are looked at at once where all of them are listed.
const LOADS_AT_ONCE: usize = 8;

/// What a query asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    /// The name, as it was written; unquoted ones in lower case.
    pub(crate) name: String,
    /// Whether the namespace was written before it: named files have none.
    pub(crate) is_qualified: bool,
    /// The moment that the query gives this table.
    pub(crate) as_of: Option<AsOf>,
}

/// What a query has met so far: whatever it calls a table, it sees one state of it, and one end of its tail.
#[derive(Debug, Default)]
pub(crate) struct Met {
    progress: Arc<Progress>,
    loaded: HashMap<String, Option<LoadedTable>>,
    tails: HashMap<TopicName, Arc<Tail>>,
}

impl Met {
    /// By a query that tells how far it is.
    pub(crate) fn by(progress: &Arc<Progress>) -> Self {
        Self {
            progress: Arc::clone(progress),
            ..Self::default()
        }
    }
}

/// Every table that a session can ask for.
#[derive(Debug)]
pub(crate) struct Tables {
    lake: Lake,
    /// The moment of tables that a query gives none.
    as_of: Option<AsOf>,
    /// Whether archives come with their tails.
    live: bool,
    files: BTreeMap<String, Arc<dyn TableProvider>>,
    archives: Mutex<HashMap<String, Archive>>,
    footers: Arc<Footers>,
    io: Handle,
}

impl Tables {
    pub(crate) fn new(
        lake: Lake,
        as_of: Option<AsOf>,
        live: bool,
        files: BTreeMap<String, Arc<dyn TableProvider>>,
        io: Handle,
    ) -> Self {
        Self {
            lake,
            as_of,
            live,
            files,
            archives: Mutex::default(),
            footers: Arc::default(),
            io,
        }
    }

    /// The lake's time.
    pub(crate) fn now(&self) -> Millis {
        self.lake.clock.now()
    }

    /// What can be asked for, sorted by name.
    pub(crate) async fn list(&self) -> Result<Vec<TableName>, QueryError> {
        use futures::{StreamExt, TryStreamExt};
        let names = self.in_catalog().await?;
        let loads: Vec<_> = names
            .into_iter()
            .map(|name| async move {
                let loaded = self.load(&name).await?;
                Ok::<_, QueryError>(loaded.map(|table| (name, kind_of(&table))))
            })
            .collect();
        let loaded: Vec<Option<(String, TableKind)>> = futures::stream::iter(loads)
            .buffered(LOADS_AT_ONCE)
            .try_collect()
            .await?;
        if let Err(error) = self.lake.values.find().await {
            tracing::warn!(%error, "views of topics that only the registry knows are not listed");
        }
        let mut all: Vec<TableName> = Vec::new();
        for (name, kind) in loaded.into_iter().flatten() {
            if let TableKind::Archive { topic } = &kind
                && let Ok(known) = TopicName::new(topic)
                && self.lake.values.of(&known).is_some()
            {
                all.push(TableName {
                    name: format!("{name}_v"),
                    kind: TableKind::View {
                        topic: topic.clone(),
                    },
                });
            }
            all.push(TableName { name, kind });
        }
        for name in self.files.keys() {
            all.retain(|other| other.name != *name);
            all.push(TableName {
                name: name.clone(),
                kind: TableKind::File,
            });
        }
        all.sort();
        // a table of the namespace that is called as a view is goes before it
        all.dedup_by(|later, first| later.name == first.name);
        Ok(all)
    }

    /// The table that a query asks for.
    pub(crate) async fn find(
        &self,
        wanted: &Wanted,
        met: &mut Met,
    ) -> Result<Arc<dyn TableProvider>, QueryError> {
        if let Some(file) = self.files.get(&wanted.name)
            && !wanted.is_qualified
        {
            return match &wanted.as_of {
                None => Ok(Arc::clone(file)),
                Some(_) => Err(QueryError::Refused(format!(
                    "{} is a file, which has no history: leave out AS OF",
                    quoted(&wanted.name)
                ))),
            };
        }
        let (base, suffix) = names::split(&wanted.name);
        let (loaded, is_view) = self.named(base, &wanted.name, met).await?;
        if is_view && suffix.is_some_and(|suffix| suffix != Suffix::Live) {
            return Err(QueryError::UnknownTable(format!(
                "a view has no {}: ask for {}",
                quoted(&wanted.name),
                quoted(&format!(
                    "{}${}",
                    loaded.ident.name(),
                    suffix.map_or("", Suffix::text)
                ))
            )));
        }
        self.opened(loaded, suffix, is_view, wanted, met).await
    }

    async fn opened(
        &self,
        loaded: LoadedTable,
        suffix: Option<Suffix>,
        is_view: bool,
        wanted: &Wanted,
        met: &mut Met,
    ) -> Result<Arc<dyn TableProvider>, QueryError> {
        let name = loaded.ident.name().to_owned();
        let kind = kind_of(&loaded);
        let archive = matches!(kind, TableKind::Archive { .. });
        if let Some(suffix) = suffix {
            if suffix.of_archives_only() && !archive {
                return Err(QueryError::UnknownTable(format!(
                    "{} is no archive of a topic, so there is no {}: archives alone have $ledger, $gaps and $live",
                    quoted(&name),
                    quoted(&wanted.name)
                )));
            }
            if metadata::is_of_table(suffix) {
                if wanted.as_of.is_some() {
                    return Err(QueryError::Refused(format!(
                        "{} is about all snapshots: leave out AS OF, and filter by its columns",
                        quoted(&wanted.name)
                    )));
                }
                return metadata::of_table(suffix, &loaded.metadata);
            }
            if suffix == Suffix::Live && (wanted.as_of.is_some() || self.as_of.is_some()) {
                return Err(QueryError::Refused(format!(
                    "{} is about now: leave out AS OF, or ask for {} as of then",
                    quoted(&wanted.name),
                    quoted(&name)
                )));
            }
        }
        let as_of = wanted.as_of.as_ref().or(match suffix {
            Some(Suffix::Live) => None,
            _ => self.as_of.as_ref(),
        });
        if let Some(suffix) = suffix.filter(|suffix| *suffix != Suffix::Live) {
            let at = self.snapshot(&loaded, as_of)?;
            if let TableKind::Archive { topic } = &kind
                && suffix.of_archives_only()
            {
                let ledger = match &at {
                    Some(at) => self
                        .pinned(&topic_of(&name, topic)?, &name, at)
                        .await?
                        .ledger
                        .clone(),
                    None => Ledger::default(),
                };
                return metadata::of_ledger(suffix, &ledger);
            }
            let storage = self.storage(&loaded)?;
            return metadata::of_snapshot(suffix, &loaded, at.as_ref(), &storage).await;
        }
        let table = match kind {
            TableKind::Archive { topic } => {
                self.archive(&topic_of(&name, &topic)?, &loaded, as_of)
                    .await?
            }
            _ => self.other(&loaded, as_of).await?,
        };
        let table = Arc::new(table);
        let with_tail =
            suffix == Some(Suffix::Live) || self.live && wanted.as_of.is_none() && archive;
        let topic = table.topic().cloned();
        let provider: Arc<dyn TableProvider> = if with_tail {
            self.with_tail(table, met).await?
        } else {
            table
        };
        match topic.filter(|_| is_view) {
            None => Ok(provider),
            Some(topic) => match self.lake.values.of(&topic) {
                Some(view) => view.over(provider).await,
                None => Err(self.unknown(&wanted.name).await),
            },
        }
    }

    async fn with_tail(
        &self,
        table: Arc<LakeTable>,
        met: &mut Met,
    ) -> Result<Arc<dyn TableProvider>, QueryError> {
        let known = table.topic().and_then(|topic| met.tails.get(topic));
        let tail = match known {
            Some(tail) => Arc::clone(tail),
            None => {
                let progress = Arc::clone(&met.progress);
                let tail = Arc::new(Tail::of(&self.lake, &table, progress).await?);
                met.tails.insert(tail.topic().clone(), Arc::clone(&tail));
                tail
            }
        };
        Ok(live::over(table, tail))
    }

    /// The names in the catalog.
    async fn in_catalog(&self) -> Result<Vec<String>, QueryError> {
        let namespace = parse_namespace(&self.lake.namespace)?;
        Ok(self.lake.catalog.list_tables(&namespace).await?)
    }

    async fn load(&self, name: &str) -> Result<Option<LoadedTable>, QueryError> {
        let namespace = parse_namespace(&self.lake.namespace)?;
        let ident = TableIdent::new(namespace, name.to_owned());
        match self.lake.catalog.load(&ident).await {
            Ok(loaded) => Ok(loaded),
            // a catalog may refuse names that no table of its can have
            Err(CatalogError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn exactly(&self, name: &str, met: &mut Met) -> Result<Option<LoadedTable>, QueryError> {
        if !is_possible(name) {
            return Ok(None);
        }
        if let Some(known) = met.loaded.get(name) {
            return Ok(known.clone());
        }
        let loaded = self.load(name).await?;
        met.loaded.insert(name.to_owned(), loaded.clone());
        Ok(loaded)
    }

    /// A table by its name, by its topic's name, or in other letters; and whether its view is meant.
    async fn named(
        &self,
        base: &str,
        whole: &str,
        met: &mut Met,
    ) -> Result<(LoadedTable, bool), QueryError> {
        if let Some(table) = self.exactly(base, met).await? {
            return Ok((table, false));
        }
        if let Ok(topic) = TopicName::new(base) {
            let name = table_name(&topic);
            if name != base
                && let Some(table) = self.exactly(&name, met).await?
                && kind_of(&table)
                    == (TableKind::Archive {
                        topic: base.to_owned(),
                    })
            {
                return Ok((table, false));
            }
        }
        let all = self.in_catalog().await?;
        let alike = |name: &str| {
            let mut alike = all.iter().filter(|other| other.eq_ignore_ascii_case(name));
            alike.next().filter(|_| alike.next().is_none()).cloned()
        };
        if let Some(name) = alike(base)
            && let Some(table) = self.exactly(&name, met).await?
        {
            return Ok((table, false));
        }
        let viewed = base.strip_suffix("_v").and_then(|name| {
            let exact = all.iter().find(|other| *other == name).cloned();
            exact.or_else(|| alike(name))
        });
        if let Some(name) = viewed
            && let Some(table) = self.exactly(&name, met).await?
            && let TableKind::Archive { topic } = kind_of(&table)
            && let Ok(topic) = TopicName::new(&topic)
        {
            if self.lake.values.of(&topic).is_none() {
                self.lake.values.find().await?;
            }
            if self.lake.values.of(&topic).is_some() {
                return Ok((table, true));
            }
            return Err(QueryError::UnknownTable(format!(
                "there is no view {}: nobody said what the values of topic {topic} are; give [decode.\"{topic}\"] in the \
                 configuration, or ask for {}",
                quoted(base),
                quoted(table.ident.name()),
            )));
        }
        Err(self.unknown(whole).await)
    }

    /// That there is no such table, and what there is.
    async fn unknown(&self, name: &str) -> QueryError {
        let (base, _) = names::split(name);
        let mut all: Vec<String> = match self.in_catalog().await {
            Ok(all) => all,
            Err(error) => return error,
        };
        all.extend(self.files.keys().cloned());
        if let Some((table, _)) = name.rsplit_once('$')
            && all.iter().any(|other| other == table)
        {
            let suffixes = Suffix::ALL.map(Suffix::text);
            return QueryError::UnknownTable(format!(
                "there is no table {}: after $ comes one of {}",
                quoted(name),
                suffixes.join(", ")
            ));
        }
        let looks_like_a_file = name.contains('/') || name.contains("://");
        let hint = if looks_like_a_file {
            "files are read only where they were named: --table name=path".to_owned()
        } else {
            names::hint("tables", base, all.iter().map(String::as_str))
        };
        QueryError::UnknownTable(format!("there is no table {}; {hint}", quoted(name)))
    }

    fn storage(&self, loaded: &LoadedTable) -> Result<Storage, QueryError> {
        let storage = self.lake.catalog.storage_for(loaded)?;
        storage
            .within(loaded.metadata.location())
            .map_err(|error| QueryError::Failed(chain(&error)))
    }

    /// The snapshot of a moment; none: the table has none yet.
    fn snapshot(
        &self,
        loaded: &LoadedTable,
        as_of: Option<&AsOf>,
    ) -> Result<Option<SnapshotRef>, QueryError> {
        travel::snapshot_at(loaded.ident.name(), &loaded.metadata, as_of)
    }

    async fn archive(
        &self,
        topic: &TopicName,
        loaded: &LoadedTable,
        as_of: Option<&AsOf>,
    ) -> Result<LakeTable, QueryError> {
        let name = loaded.ident.name();
        let Some(at) = self.snapshot(loaded, as_of)? else {
            return self.empty(loaded, Some((topic, Ledger::default())));
        };
        let pinned = self.pinned(topic, name, &at).await?;
        let files = pinned.files().await.map_err(|error| of_pin(name, error))?;
        let metadata = &pinned.table().metadata;
        let schema = travel::schema_at(metadata, &at, as_of);
        let schema = schema.map_err(|error| unreadable(name, &error))?;
        let columns = Columns::of(&schema).map_err(|error| unreadable(name, &error))?;
        let map = ColumnMap::resolve(&schema)
            .map_err(|error| QueryError::Unsupported(format!("table {name}: {}", chain(&error))))?;
        let files = files.into_iter().map(|planned| LiveFile {
            planned,
            entry: None,
        });
        Ok(LakeTable {
            name: name.to_owned(),
            archive: archived(topic, pinned.ledger.clone(), &columns, &map),
            columns,
            files: files.collect(),
            storage: pinned.storage().clone(),
            moment: Some(Moment {
                snapshot_id: pinned.snapshot_id,
                time: pinned.time,
            }),
            footers: Arc::clone(&self.footers),
            io: self.io.clone(),
        })
    }

    /// An archive at a snapshot that was found for the query.
    async fn pinned(
        &self,
        topic: &TopicName,
        name: &str,
        at: &SnapshotRef,
    ) -> Result<PinnedSnapshot, QueryError> {
        // Of the moment's name and the snapshot's, the snapshot's: what was found is what is read.
        let selector = SnapshotSelector::Id(at.snapshot_id());
        let mut archive = self.opened_archive(topic).await?;
        // Expiry leaves files alone for an hour after it took a snapshot away; so a query needs no lease, and writes nothing.
        let mut pinned = archive.pin(&selector, LeaseMode::Off).await;
        if let Err(PinError::Archive(ArchiveError::Replaced { .. })) = &pinned {
            self.forget(topic);
            archive = self.opened_archive(topic).await?;
            pinned = archive.pin(&selector, LeaseMode::Off).await;
        }
        pinned.map_err(|error| of_pin(name, error))
    }

    async fn opened_archive(&self, topic: &TopicName) -> Result<Archive, QueryError> {
        let known = {
            let archives = self.archives.lock().unwrap_or_else(PoisonError::into_inner);
            archives.get(topic.as_str()).cloned()
        };
        if let Some(archive) = known {
            return Ok(archive);
        }
        let deps = ArchiveDeps {
            catalog: Arc::clone(&self.lake.catalog),
            clock: Arc::clone(&self.lake.clock),
            ids: Arc::clone(&self.lake.ids),
        };
        let Some(archive) = Archive::open(deps, &self.lake.namespace, topic).await? else {
            return Err(self.unknown(&table_name(topic)).await);
        };
        let mut archives = self.archives.lock().unwrap_or_else(PoisonError::into_inner);
        archives.insert(topic.as_str().to_owned(), archive.clone());
        Ok(archive)
    }

    fn forget(&self, topic: &TopicName) {
        let mut archives = self.archives.lock().unwrap_or_else(PoisonError::into_inner);
        archives.remove(topic.as_str());
    }

    /// A table that is no archive: a job's, or somebody else's.
    async fn other(
        &self,
        loaded: &LoadedTable,
        as_of: Option<&AsOf>,
    ) -> Result<LakeTable, QueryError> {
        let name = loaded.ident.name();
        let Some(at) = self.snapshot(loaded, as_of)? else {
            return self.empty(loaded, None);
        };
        let schema = travel::schema_at(&loaded.metadata, &at, as_of);
        let schema = schema.map_err(|error| unreadable(name, &error))?;
        let columns = Columns::of(&schema).map_err(|error| unreadable(name, &error))?;
        let storage = self.storage(loaded)?;
        let failed = |error| of_manifest(name, at.snapshot_id(), error);
        let list = manifests::read_list(&storage, &at, loaded.metadata.format_version())
            .await
            .map_err(failed)?;
        if let Some(file) = manifests::delete_manifest(&list) {
            return Err(deletes(name, at.snapshot_id(), &file.manifest_path));
        }
        let live: Vec<_> = list.into_iter().filter(manifests::has_live_files).collect();
        let entries = manifests::read_manifests(&storage, &live)
            .await
            .map_err(failed)?;
        let mut files = Vec::new();
        for entry in entries
            .into_iter()
            .flatten()
            .filter(iceberg::spec::ManifestEntry::is_alive)
        {
            let file = entry.data_file();
            let path = file.file_path();
            if file.content_type() != DataContentType::Data {
                return Err(deletes(name, at.snapshot_id(), path));
            }
            if file.file_format() != DataFileFormat::Parquet {
                return Err(QueryError::Unsupported(format!(
                    "table {name}: data file {path} is {}, and everlog reads Parquet; rewrite the table with \
                     write.format.default = parquet in the engine that wrote it",
                    file.file_format()
                )));
            }
            files.push(LiveFile {
                planned: PlannedFile {
                    path: path.to_owned(),
                    size_bytes: file.file_size_in_bytes(),
                    rows: file.record_count(),
                    sequence_number: entry.sequence_number().unwrap_or_default(),
                    bounds: None,
                },
                entry: Some(Arc::new(file.clone())),
            });
        }
        files.sort_by(|a, b| {
            let key = |f: &LiveFile| (f.planned.sequence_number, f.planned.path.clone());
            key(a).cmp(&key(b))
        });
        Ok(LakeTable {
            name: name.to_owned(),
            columns,
            files,
            storage,
            moment: Some(Moment {
                snapshot_id: at.snapshot_id(),
                time: Millis(at.timestamp_ms()),
            }),
            archive: None,
            footers: Arc::clone(&self.footers),
            io: self.io.clone(),
        })
    }

    /// A table without a snapshot.
    fn empty(
        &self,
        loaded: &LoadedTable,
        archive: Option<(&TopicName, Ledger)>,
    ) -> Result<LakeTable, QueryError> {
        let name = loaded.ident.name();
        let schema = loaded.metadata.current_schema();
        let columns = Columns::of(schema).map_err(|error| unreadable(name, &error))?;
        let archive = match archive {
            None => None,
            Some((topic, ledger)) => {
                let map = ColumnMap::resolve(schema).map_err(|error| {
                    QueryError::Unsupported(format!("table {name}: {}", chain(&error)))
                })?;
                archived(topic, ledger, &columns, &map)
            }
        };
        Ok(LakeTable {
            name: name.to_owned(),
            columns,
            files: Vec::new(),
            storage: self.storage(loaded)?,
            moment: None,
            archive,
            footers: Arc::clone(&self.footers),
            io: self.io.clone(),
        })
    }
}

fn archived(
    topic: &TopicName,
    ledger: Ledger,
    columns: &Columns,
    map: &ColumnMap,
) -> Option<Archived> {
    let place = |column: Column| columns.place(map.id(column));
    Some(Archived {
        topic: topic.clone(),
        ledger,
        order: [
            place(Column::Generation)?,
            place(Column::Partition)?,
            place(Column::Offset)?,
        ],
    })
}

fn topic_of(table: &str, topic: &str) -> Result<TopicName, QueryError> {
    TopicName::new(topic)
        .map_err(|error| QueryError::Corrupt(format!("table {table}: its everlog.topic: {error}")))
}

/// What a table is, by its properties.
fn kind_of(table: &LoadedTable) -> TableKind {
    let properties = table.metadata.properties();
    if let Some(topic) = properties.get(PROPERTY_TOPIC) {
        TableKind::Archive {
            topic: topic.clone(),
        }
    } else if let Some(job) = properties.get(PROPERTY_JOB) {
        TableKind::Job { job: job.clone() }
    } else {
        TableKind::Other
    }
}

/// Whether a catalog may be asked for a table of this name: not for paths, nor for what no table is called.
fn is_possible(name: &str) -> bool {
    const LONGEST: usize = 512;
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$' | ' ');
    !name.is_empty()
        && name.len() <= LONGEST
        && name.chars().all(allowed)
        && name != "."
        && name != ".."
}

fn unreadable(name: &str, error: &iceberg::Error) -> QueryError {
    QueryError::Unsupported(format!(
        "table {name}: its columns cannot be read: {}",
        error.message()
    ))
}

fn deletes(name: &str, snapshot_id: i64, uri: &str) -> QueryError {
    QueryError::Unsupported(format!(
        "table {name}: snapshot {snapshot_id} has delete files ({uri}), which everlog does not apply; rewrite the table's \
         data files with the engine that wrote them (copy-on-write), or ask for a snapshot before them"
    ))
}

fn of_manifest(name: &str, snapshot_id: i64, error: ManifestError) -> QueryError {
    match &error {
        ManifestError::Missing { uri } => gone(name, snapshot_id, uri),
        ManifestError::Storage { .. } => QueryError::Failed(chain(&error)),
        _ => QueryError::Corrupt(format!("table {name}: {}", chain(&error))),
    }
}

fn gone(name: &str, snapshot_id: i64, uri: &str) -> QueryError {
    QueryError::NoSnapshot(format!(
        "table {name}: snapshot {snapshot_id} has expired ({uri} is gone); ask for a newer one, and tag what has to last"
    ))
}

fn of_pin(name: &str, error: PinError) -> QueryError {
    match error {
        PinError::NotFound { .. } | PinError::Empty { .. } => QueryError::NoSnapshot(chain(&error)),
        PinError::Vanished {
            snapshot_id, uri, ..
        } => gone(name, snapshot_id, &uri),
        PinError::DeleteFiles {
            snapshot_id, uri, ..
        } => deletes(name, snapshot_id, &uri),
        PinError::Contradiction { .. } => QueryError::Corrupt(chain(&error)),
        PinError::Archive(error) => QueryError::Table(error),
        PinError::Entry { .. }
            if error.kind() == everlog_table::archive::ArchiveErrorKind::Invalid =>
        {
            QueryError::Unsupported(chain(&error))
        }
        PinError::Entry { .. } => QueryError::Corrupt(chain(&error)),
        other => QueryError::Unsupported(chain(&other)),
    }
}
