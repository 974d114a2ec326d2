//! The state that a commit is derived from, loaded and checked.

use std::collections::BTreeMap;

use everlog_common::Ledger;
use iceberg::spec::{
    MAIN_BRANCH, ManifestFile, SnapshotReference, SnapshotRetention, TableMetadata,
};

use super::{Archive, ArchiveError};
use crate::catalog::LoadedTable;
use crate::commit::Totals;
use crate::manifests;
use crate::schema::ColumnMap;
use crate::storage::Storage;
use crate::summary::{self, Found, LedgerProblem};

/// The head of main that the next commit goes on.
#[derive(Debug, Clone)]
pub(super) struct Parent {
    /// The whole table, as this state was read.
    pub(super) table: LoadedTable,
    /// Head of main; the swap requires it.
    pub(super) head: Option<i64>,
    /// Its ledger.
    pub(super) ledger: Ledger,
    /// Its manifests.
    pub(super) list: Vec<ManifestFile>,
    /// What it holds.
    pub(super) totals: Totals,
    /// How main keeps its snapshots, where somebody said so.
    pub(super) retention: Option<SnapshotRetention>,
    /// Whether it was read from the catalog for this very attempt, rather than kept from an earlier one.
    pub(super) fresh: bool,
}

impl Parent {
    /// The same for a later attempt: by then somebody else may have moved the table.
    pub(super) fn remembered(self) -> Self {
        Self {
            fresh: false,
            ..self
        }
    }
}

impl Archive {
    /// Reads the table, and makes sure that it is still the one that was opened.
    pub(crate) async fn load(&self) -> Result<LoadedTable, ArchiveError> {
        self.inner.load().await
    }

    /// Every branch and tag of a state.
    pub(crate) fn refs(
        &self,
        metadata: &TableMetadata,
    ) -> Result<BTreeMap<String, SnapshotReference>, ArchiveError> {
        self.inner.refs(metadata)
    }

    /// The ledger of a snapshot of this very state (the head of main where `at` is none); counts rows where a foreign
    /// snapshot does not tell.
    pub(crate) async fn find(
        &self,
        table: &LoadedTable,
        at: Option<i64>,
    ) -> Result<Found, ArchiveError> {
        let mut counted = BTreeMap::new();
        loop {
            let problem = match summary::find_ledger(&table.metadata, at, &counted) {
                Ok(found) => return Ok(found),
                Err(problem) => problem,
            };
            let LedgerProblem::RowsUnknown { snapshot_id } = problem else {
                return Err(ArchiveError::of_ledger(&self.table_name(), problem));
            };
            if counted.contains_key(&snapshot_id) {
                return Err(ArchiveError::of_ledger(&self.table_name(), problem));
            }
            let storage = self.store_of_files();
            let list = self.read_list(&storage, table, snapshot_id).await?;
            let totals = self.inner.totals(&storage, snapshot_id, &list).await?;
            counted.insert(snapshot_id, totals.rows);
        }
    }

    /// The manifests of a snapshot of this very state.
    pub(crate) async fn read_list(
        &self,
        storage: &Storage,
        table: &LoadedTable,
        snapshot_id: i64,
    ) -> Result<Vec<ManifestFile>, ArchiveError> {
        let Some(snapshot) = table.metadata.snapshot_by_id(snapshot_id) else {
            return Err(ArchiveError::of_ledger(
                &self.table_name(),
                LedgerProblem::NoSuchSnapshot { snapshot_id },
            ));
        };
        manifests::read_list(storage, snapshot, table.metadata.format_version())
            .await
            .map_err(|problem| ArchiveError::of_manifest(&self.table_name(), snapshot_id, problem))
    }

    /// What the next commit goes on, read from the catalog.
    pub(super) async fn load_parent(&self) -> Result<Parent, ArchiveError> {
        let table = self.load().await?;
        self.parent_of(table).await
    }

    /// The same of a state that was just read.
    pub(super) async fn parent_of(&self, table: LoadedTable) -> Result<Parent, ArchiveError> {
        let found = self.find(&table, None).await?;
        self.check_columns(&table.metadata, found.written_by)?;
        let list = match found.snapshot_id {
            Some(head) => self.read_list(&self.store_of_files(), &table, head).await?,
            None => Vec::new(),
        };
        self.parent_with(table, found.snapshot_id, found.ledger, list)
            .await
    }

    /// Whether the columns are still the ones that we write, and that snapshot `last` of ours was written in.
    fn check_columns(
        &self,
        metadata: &TableMetadata,
        last: Option<i64>,
    ) -> Result<(), ArchiveError> {
        let before = last
            .and_then(|id| metadata.snapshot_by_id(id)?.schema_id())
            .and_then(|id| metadata.schema_by_id(id))
            .and_then(|schema| ColumnMap::resolve(schema).ok());
        ColumnMap::resolve(metadata.current_schema())
            .and_then(|now| before.map_or(Ok(()), |before| now.check_same_ids(&before)))
            .map_err(|source| ArchiveError::SchemaChanged {
                table: self.table_name(),
                source,
            })
    }

    /// Puts a parent together, checking once more that files and ledger agree.
    pub(super) async fn parent_with(
        &self,
        table: LoadedTable,
        head: Option<i64>,
        ledger: Ledger,
        list: Vec<ManifestFile>,
    ) -> Result<Parent, ArchiveError> {
        let retention = self
            .refs(&table.metadata)?
            .remove(MAIN_BRANCH)
            .map(|reference| reference.retention);
        if let Some(file) = manifests::delete_manifest(&list) {
            return Err(ArchiveError::ForeignChange {
                table: self.table_name(),
                snapshot_id: head,
                operation: "delete".to_owned(),
                what: format!(
                    "the head of main has delete files ({}), which an archive must not have",
                    file.manifest_path
                ),
            });
        }
        let snapshot = head.and_then(|id| table.metadata.snapshot_by_id(id));
        let mut totals = match head {
            Some(head) => {
                self.inner
                    .totals(&self.store_of_files(), head, &list)
                    .await?
            }
            None => Totals {
                bytes: Some(0),
                ..Totals::default()
            },
        };
        if totals.rows != ledger.rows() {
            return Err(ArchiveError::Corrupt {
                table: self.table_name(),
                what: format!(
                    "snapshot {} lists files with {} rows, its ledger counts {}; nothing is committed on top of it",
                    head.unwrap_or_default(),
                    totals.rows,
                    ledger.rows()
                ),
                source: None,
            });
        }
        totals.bytes = totals
            .bytes
            .or_else(|| summary::summary_number(snapshot?, "total-files-size"));
        Ok(Parent {
            table,
            head,
            ledger,
            list,
            totals,
            retention,
            fresh: true,
        })
    }
}

/// Where a table's metadata files go.
pub(crate) fn metadata_folder(metadata: &TableMetadata) -> String {
    match metadata.properties().get("write.metadata.path") {
        Some(path) => path.trim_end_matches('/').to_owned(),
        None => format!("{}/metadata", metadata.location().trim_end_matches('/')),
    }
}

/// The parent's successor, once `snapshot_id` has landed with what was prepared.
pub(super) fn after_commit(
    table: LoadedTable,
    prepared: Prepared,
    retention: Option<SnapshotRetention>,
) -> Option<Parent> {
    // A catalog may answer with a later state than ours; then the next commit reads it.
    if table.metadata.current_snapshot_id() != Some(prepared.snapshot_id) {
        return None;
    }
    Some(Parent {
        table,
        head: Some(prepared.snapshot_id),
        ledger: prepared.ledger,
        list: prepared.list,
        totals: prepared.totals,
        retention,
        fresh: false,
    })
}

/// What was stored for one attempt.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) snapshot_id: i64,
    pub(super) ledger: Ledger,
    pub(super) list: Vec<ManifestFile>,
    pub(super) totals: Totals,
}

/// The catalog is shared by all clones.
impl std::fmt::Debug for super::Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive")
            .field("topic", &self.topic)
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
