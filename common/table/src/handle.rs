//! One table as a process knows it: what is the same for the archive of a topic and for the output of a job.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::Millis;
use iceberg::TableIdent;
use iceberg::spec::{FormatVersion, ManifestFile, SnapshotReference, TableMetadata};
use uuid::Uuid;

use crate::archive::{ArchiveDeps, ArchiveError, catalog_error};
use crate::catalog::{CatalogError, LoadedTable};
use crate::commit::{self, Totals};
use crate::maintain::Upkeep;
use crate::manifests;
use crate::storage::Storage;

/// First wait before another attempt; doubles, with jitter.
const BACKOFF_FIRST: Duration = Duration::from_millis(40);
/// Longest wait before another attempt.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A table that was opened.
pub(crate) struct Handle {
    pub(crate) deps: ArchiveDeps,
    pub(crate) ident: TableIdent,
    /// The table that was opened; another one under the same name is not ours.
    pub(crate) uuid: Uuid,
    pub(crate) storage: Storage,
    /// Held once by every commit whose outcome may be open: nothing is deleted meanwhile.
    pub(crate) open_commits: Arc<()>,
    upkeep: tokio::sync::Mutex<Upkeep>,
}

/// The catalog is shared by all clones.
impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("table", &self.ident)
            .field("uuid", &self.uuid)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// The handle of a table that was just read.
    pub(crate) fn of(deps: ArchiveDeps, table: &LoadedTable) -> Result<Self, ArchiveError> {
        let opened = deps.catalog.storage_for(table).and_then(|storage| {
            storage
                .within(table.metadata.location())
                .map_err(|source| CatalogError::storage("find the table's folder", source))
        });
        let storage = opened.map_err(|source| {
            catalog_error(&table.ident, "cannot open the table's object store", source)
        })?;
        Ok(Self {
            deps,
            ident: table.ident.clone(),
            uuid: table.metadata.uuid(),
            storage,
            open_commits: Arc::default(),
            upkeep: tokio::sync::Mutex::default(),
        })
    }

    /// Another handle on the same table, sharing nothing with this one.
    pub(crate) fn apart(&self) -> Self {
        Self {
            deps: self.deps.clone(),
            ident: self.ident.clone(),
            uuid: self.uuid,
            storage: self.storage.clone(),
            open_commits: Arc::default(),
            upkeep: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn deps(&self) -> &ArchiveDeps {
        &self.deps
    }

    pub(crate) fn table(&self) -> &TableIdent {
        &self.ident
    }

    pub(crate) fn table_name(&self) -> String {
        self.ident.to_string()
    }

    pub(crate) fn store_of_files(&self) -> Storage {
        self.storage.clone()
    }

    pub(crate) fn upkeep(&self) -> &tokio::sync::Mutex<Upkeep> {
        &self.upkeep
    }

    /// How many commits have an outcome that may be open.
    pub(crate) fn open_commits(&self) -> usize {
        Arc::strong_count(&self.open_commits) - 1
    }

    pub(crate) fn catalog_error(&self, doing: &'static str, source: CatalogError) -> ArchiveError {
        catalog_error(&self.ident, doing, source)
    }

    /// Reads the table, and makes sure that it is still the one that was opened.
    pub(crate) async fn load(&self) -> Result<LoadedTable, ArchiveError> {
        let loaded = self
            .deps
            .catalog
            .load(&self.ident)
            .await
            .map_err(|source| self.catalog_error("cannot read the table", source))?;
        let replaced = |what: &str| ArchiveError::Replaced {
            table: self.table_name(),
            what: what.to_owned(),
        };
        let table = loaded.ok_or_else(|| replaced("the table was dropped"))?;
        if table.metadata.uuid() != self.uuid {
            return Err(replaced("the table was dropped and made anew"));
        }
        self.check_format(&table.metadata)?;
        Ok(table)
    }

    fn check_format(&self, metadata: &TableMetadata) -> Result<(), ArchiveError> {
        match metadata.format_version() {
            FormatVersion::V2 => Ok(()),
            other => Err(ArchiveError::Unsupported {
                table: self.table_name(),
                what: format!(
                    "it has Iceberg format {other}, everlog reads and writes format v2; restore the table from before the upgrade"
                ),
            }),
        }
    }

    /// Every branch and tag of a state.
    pub(crate) fn refs(
        &self,
        metadata: &TableMetadata,
    ) -> Result<BTreeMap<String, SnapshotReference>, ArchiveError> {
        refs_of(metadata).map_err(|source| ArchiveError::Corrupt {
            table: self.table_name(),
            what: "its branches and tags cannot be read".to_owned(),
            source: Some(Box::new(source)),
        })
    }

    /// What a snapshot of these manifests holds.
    pub(crate) async fn totals(
        &self,
        storage: &Storage,
        snapshot_id: i64,
        list: &[ManifestFile],
    ) -> Result<Totals, ArchiveError> {
        match manifests::totals(list) {
            Some(totals) => Ok(totals),
            None => manifests::count(storage, list).await.map_err(|problem| {
                ArchiveError::of_manifest(&self.table_name(), snapshot_id, problem)
            }),
        }
    }

    /// Refuses while this machine's clock is ahead of the catalog's, or of `reference`: a snapshot would get a time that
    /// all later ones have to follow, and leases would look as if they were over. What the catalog said may be old (a
    /// machine that slept does not count the seconds), so it is asked before this is believed.
    pub(crate) async fn check_clock(&self, reference: Option<Millis>) -> Result<(), ArchiveError> {
        let deps = &self.deps;
        let known = deps.catalog.server_time();
        if commit::clock_ahead(deps.clock.now(), known).is_some() {
            self.load().await?;
        }
        let times = [reference, deps.catalog.server_time()];
        let Some(reference) = times.into_iter().flatten().min() else {
            return Ok(());
        };
        match commit::clock_ahead(deps.clock.now(), Some(reference)) {
            None => Ok(()),
            Some(ahead) => Err(ArchiveError::ClockAhead {
                table: self.table_name(),
                reference,
                ahead_ms: u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// Waits before the next attempt: exponential, with full jitter on its upper half.
    pub(crate) async fn back_off(&self, attempt: u32) {
        let whole = BACKOFF_FIRST
            .saturating_mul(1 << attempt.min(10))
            .min(BACKOFF_MAX);
        let half = whole / 2;
        let millis = u64::try_from(half.as_millis()).unwrap_or(0);
        let jitter = Duration::from_millis(self.deps.ids.below(millis + 1));
        self.deps.clock.sleep(half + jitter).await;
    }
}

/// Every branch and tag. The library keeps them to itself, except in what it serializes.
fn refs_of(
    metadata: &TableMetadata,
) -> Result<BTreeMap<String, SnapshotReference>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Refs {
        #[serde(default)]
        refs: HashMap<String, SnapshotReference>,
    }
    let json = serde_json::to_vec(metadata)?;
    let Refs { refs } = serde_json::from_slice(&json)?;
    Ok(refs.into_iter().collect())
}
