//! A catalog in memory, over any object store, with faults on demand: for tests and simulation.
//!
//! It stores real metadata files and swaps real pointers; what it leaves out is only the server. The conformance suite
//! holds it to the same behaviour as the real ones, and the faults are those that a server and a network can produce.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use everlog_common::{Clock, Ids};
use iceberg::spec::TableMetadata;
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use object_store::ObjectStore;
use uuid::Uuid;

use super::metadata::{self, Applied, dotted};
use super::{Catalog, CatalogError, CommitReply, CreateReply, LoadedTable, NewTable};
use crate::storage::Storage;

/// A call that a fault can hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`Catalog::load`].
    Load,
    /// [`Catalog::create`].
    Create,
    /// [`Catalog::commit`].
    Commit,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The catalog cannot be reached; nothing is done, and the caller knows.
    Unavailable,
    /// The request is lost on the way; nothing is done, and the caller does not know.
    LostBefore,
    /// The request is carried out and the reply is lost.
    LostAfter,
    /// No reply, and the request is carried out later: at [`MemoryCatalog::land`]. Commits only.
    Late,
    /// Somebody else is said to have been first. Nothing is done. Commits only.
    Conflict,
    /// The credentials are not accepted any more. Nothing is done.
    Denied,
}

/// A commit that is still on its way.
#[derive(Debug)]
struct Pending {
    base: LoadedTable,
    requirements: Vec<TableRequirement>,
    updates: Vec<TableUpdate>,
}

#[derive(Debug, Default)]
struct State {
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    faults: BTreeMap<Call, VecDeque<Fault>>,
    pending: VecDeque<Pending>,
    commits: u64,
    /// What it wrote last of each table: a swap need not read that again.
    written: BTreeMap<TableIdent, LoadedTable>,
}

/// A catalog in memory.
#[derive(Debug)]
pub struct MemoryCatalog {
    storage: Storage,
    warehouse: String,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
    state: Mutex<State>,
}

impl MemoryCatalog {
    /// An empty catalog whose tables go below `warehouse` (any scheme) in `store`.
    ///
    /// Under a simulated clock, metadata is stamped with its time. It should not run ahead of the machine's, against
    /// which the library checks metadata.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        warehouse: &str,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn Ids>,
    ) -> Self {
        let storage = Storage::from_store(store)
            .within(warehouse)
            .expect("a warehouse that a test names is a location");
        Self {
            storage,
            warehouse: warehouse.to_owned(),
            clock,
            ids,
            state: Mutex::default(),
        }
    }

    /// The next call of this kind that has no fault before it in the queue meets this one.
    pub fn inject(&self, call: Call, fault: Fault) {
        self.state()
            .faults
            .entry(call)
            .or_default()
            .push_back(fault);
    }

    /// Takes back every fault that no call has met yet.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Carries out the oldest commit that is still on its way. Returns whether it changed the table, or `None` when none
    /// is on its way.
    pub async fn land(&self) -> Option<bool> {
        let Pending {
            base,
            requirements,
            updates,
        } = self.state().pending.pop_front()?;
        let reply = self.apply(&base, &requirements, updates).await;
        Some(matches!(reply, CommitReply::Committed(_)))
    }

    /// How many commits changed a table.
    pub fn commits(&self) -> u64 {
        self.state().commits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self, call: Call) -> Option<Fault> {
        self.state()
            .faults
            .get_mut(&call)
            .and_then(VecDeque::pop_front)
    }

    fn pointer(&self, table: &TableIdent) -> Option<String> {
        let state = self.state();
        state
            .namespaces
            .get(&dotted(table.namespace()))?
            .get(table.name())
            .cloned()
    }

    async fn read(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        let Some(metadata_location) = self.pointer(table) else {
            return Ok(None);
        };
        let metadata = metadata::read(&self.storage, &metadata_location)
            .await
            .map_err(|error| error.into_catalog(&metadata_location))?;
        Ok(Some(loaded(table, metadata, metadata_location)))
    }

    async fn current(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        let pointer = self.pointer(table);
        let written = self.state().written.get(table).cloned();
        match written {
            Some(written) if Some(&written.metadata_location) == pointer.as_ref() => {
                Ok(Some(written))
            }
            _ => self.read(table).await,
        }
    }

    /// Changes the pointer from `from` to `to`, if it is `from`.
    fn swap(&self, table: &TableIdent, from: Option<&str>, to: &str) -> bool {
        let mut state = self.state();
        let Some(tables) = state.namespaces.get_mut(&dotted(table.namespace())) else {
            return false;
        };
        if tables.get(table.name()).map(String::as_str) != from {
            return false;
        }
        tables.insert(table.name().to_owned(), to.to_owned());
        state.commits += u64::from(from.is_some());
        true
    }

    async fn apply(
        &self,
        base: &LoadedTable,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> CommitReply {
        let table = &base.ident;
        let current = match self.current(table).await {
            Ok(Some(current)) => current,
            Ok(None) => return CommitReply::Refused(no_such_table(table)),
            Err(error) => return CommitReply::Refused(error),
        };
        let previous = current.metadata_location.as_str();
        if metadata::must_be_current(&updates) && previous != base.metadata_location {
            return CommitReply::Conflict;
        }
        let adds_snapshot = updates
            .iter()
            .any(|u| matches!(u, TableUpdate::AddSnapshot { .. }));
        let metadata =
            match metadata::apply(table, &current.metadata, previous, requirements, updates) {
                Applied::Ready(metadata) => metadata,
                Applied::Conflict => return CommitReply::Conflict,
                Applied::Refused(error) => return CommitReply::Refused(error),
            };
        let stamped = if adds_snapshot {
            Ok(*metadata) // stamped with its snapshot's time
        } else {
            self.stamp(&metadata, current.metadata.last_updated_ms())
        };
        let metadata = match stamped {
            Ok(metadata) => metadata,
            Err(error) => return CommitReply::Refused(error),
        };
        let chance = self.ids.uuid();
        let next = match metadata::write(&self.storage, &metadata, Some(previous), chance).await {
            Ok(next) => next,
            Err(error) => return CommitReply::Refused(error),
        };
        if self.swap(table, Some(previous), &next) {
            let now = loaded(table, Arc::new(metadata), next);
            self.state().written.insert(table.clone(), now.clone());
            CommitReply::Committed(now)
        } else {
            CommitReply::Conflict
        }
    }

    /// The library stamps metadata with the machine's time; here time is the injected clock's.
    fn stamp(
        &self,
        metadata: &TableMetadata,
        not_before: i64,
    ) -> Result<TableMetadata, CatalogError> {
        let stamp = || -> serde_json::Result<TableMetadata> {
            let mut json = serde_json::to_value(metadata)?;
            let at = self.clock.now().0.max(not_before);
            if let Some(field) = json.get_mut("last-updated-ms") {
                *field = at.into();
            }
            // A main that is moved without a new snapshot is logged with the machine's time too.
            let log = json
                .get_mut("snapshot-log")
                .and_then(|log| log.as_array_mut());
            for field in log.into_iter().flatten() {
                if let Some(logged) = field.get_mut("timestamp-ms")
                    && logged.as_i64().is_some_and(|ms| ms > at)
                {
                    *logged = at.into();
                }
            }
            serde_json::from_value(json)
        };
        stamp().map_err(|error| CatalogError::Unreadable {
            what: "stamp metadata".into(),
            source: Box::new(error),
        })
    }

    async fn make(&self, table: NewTable) -> Result<CreateReply, CatalogError> {
        let ident = table.ident.clone();
        if !self
            .state()
            .namespaces
            .contains_key(&dotted(ident.namespace()))
        {
            return Err(CatalogError::NotFound {
                what: format!("create {ident}"),
                message: format!("namespace {} does not exist", dotted(ident.namespace())),
            });
        }
        if self.pointer(&ident).is_some() {
            return Ok(CreateReply::Exists);
        }
        let location = match &table.location {
            Some(location) => location.trim_end_matches('/').to_owned(),
            None => metadata::default_location(&self.warehouse, &ident),
        };
        let metadata = metadata::first(table, location, self.ids.uuid())?;
        if let Err(error) = metadata::check_free(&self.storage, &ident, &metadata).await {
            // somebody else may have made this very table meanwhile, and filled it
            return if self.pointer(&ident).is_some() {
                Ok(CreateReply::Exists)
            } else {
                Err(error)
            };
        }
        let metadata = self.stamp(&metadata, 0)?;
        let metadata_location =
            metadata::write(&self.storage, &metadata, None, self.ids.uuid()).await?;
        if self.swap(&ident, None, &metadata_location) {
            Ok(CreateReply::Created(loaded(
                &ident,
                Arc::new(metadata),
                metadata_location,
            )))
        } else {
            Ok(CreateReply::Exists)
        }
    }
}

#[async_trait]
impl Catalog for MemoryCatalog {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        let levels: &[String] = namespace;
        for depth in 1..=levels.len() {
            let level = levels.get(..depth).unwrap_or(levels).join(".");
            self.state().namespaces.entry(level).or_default();
        }
        Ok(())
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        let state = self.state();
        let tables = state.namespaces.get(&dotted(namespace));
        Ok(tables
            .map(|tables| tables.keys().cloned().collect())
            .unwrap_or_default())
    }

    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        let what = || format!("load {table}");
        match self.next_fault(Call::Load) {
            None => self.read(table).await,
            Some(Fault::Denied) => Err(denied(what())),
            Some(_) => Err(unavailable(what())),
        }
    }

    async fn create(&self, table: NewTable) -> Result<CreateReply, CatalogError> {
        let what = format!("create {}", table.ident);
        match self.next_fault(Call::Create) {
            None => self.make(table).await,
            Some(Fault::Denied) => Err(denied(what)),
            Some(Fault::Unavailable | Fault::Conflict) => Err(unavailable(what)),
            Some(Fault::LostBefore | Fault::Late) => Err(unknown(what)),
            Some(Fault::LostAfter) => {
                self.make(table).await?;
                Err(unknown(what))
            }
        }
    }

    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
        _idempotency_key: Uuid,
    ) -> CommitReply {
        let what = format!("commit to {}", base.ident);
        match self.next_fault(Call::Commit) {
            None => self.apply(base, &requirements, updates).await,
            Some(Fault::Unavailable) => CommitReply::Refused(unavailable(what)),
            Some(Fault::Denied) => CommitReply::Refused(denied(what)),
            Some(Fault::Conflict) => CommitReply::Conflict,
            Some(Fault::LostBefore) => CommitReply::Unknown(unknown(what)),
            Some(Fault::LostAfter) => {
                // Refused or not: the caller does not learn it.
                drop(self.apply(base, &requirements, updates).await);
                CommitReply::Unknown(unknown(what))
            }
            Some(Fault::Late) => {
                self.state().pending.push_back(Pending {
                    base: base.clone(),
                    requirements,
                    updates,
                });
                CommitReply::Unknown(unknown(what))
            }
        }
    }

    fn removes_exactly(&self) -> bool {
        true
    }

    fn storage_for(&self, _table: &LoadedTable) -> Result<Storage, CatalogError> {
        Ok(self.storage.clone())
    }
}

fn loaded(table: &TableIdent, metadata: Arc<TableMetadata>, location: String) -> LoadedTable {
    LoadedTable {
        ident: table.clone(),
        metadata,
        metadata_location: location,
        config: BTreeMap::new(),
    }
}

fn no_such_table(table: &TableIdent) -> CatalogError {
    CatalogError::NotFound {
        what: format!("commit to {table}"),
        message: "no such table".into(),
    }
}

fn unavailable(what: String) -> CatalogError {
    CatalogError::Unavailable {
        what,
        source: "injected: cannot be reached".into(),
    }
}

fn denied(what: String) -> CatalogError {
    CatalogError::Unauthorized {
        what,
        message: "injected: token expired".into(),
    }
}

fn unknown(what: String) -> CatalogError {
    CatalogError::OutcomeUnknown {
        what,
        source: "injected: no reply".into(),
    }
}

#[cfg(test)]
mod tests;
