//! A snapshot held for reading: which one, its files, its ledger, and the lease that keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use everlog_common::{Generation, Ledger, Millis, Offset, Partition, Positions};
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{ManifestContentType, ManifestEntry, ManifestFile, TableMetadata};

use crate::archive::{Archive, ArchiveError, ArchiveErrorKind};
use crate::catalog::{CatalogErrorKind, CommitReply, LoadedTable, commit_key};
use crate::files::{FileBounds, PlannedFile};
use crate::lease::{self, LeaseSwap};
use crate::manifests;
use crate::scan::ScanError;
use crate::schema::{ColumnMap, SchemaError};
use crate::storage::{Storage, StorageErrorKind};
use crate::summary::{oldest_as_of, snapshot_as_of};

/// Attempts to take a lease, each on a fresh state.
const LEASE_ATTEMPTS: u32 = 8;
/// How many manifests are read at once.
const READS_AT_ONCE: usize = 12;
/// The files of a larger table are not remembered between plans.
const REMEMBERED_FILES_MAX: usize = 500_000;

/// Which snapshot to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotSelector {
    /// The head of main.
    Current,
    /// This very one.
    Id(i64),
    /// The one that was main's head at this time, by the table's log.
    AsOf(Millis),
    /// Where a tag (or branch) points.
    Tag(String),
}

/// Whether to hold a snapshot against expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeaseMode {
    /// With a lease, or with a warning where the catalog does not let us write.
    #[default]
    Auto,
    /// Without.
    Off,
}

/// A tag that holds a snapshot against our expiry until its deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The tag's name, `everlog-lease-<deadline>-<id>`.
    pub tag: String,
    /// Until when.
    pub deadline: Millis,
    /// Whether this reader made it, rather than finding it made by another of this process.
    pub own: bool,
}

/// The leases of this process by snapshot; the last holder gives a lease back.
pub(crate) type SharedLeases = tokio::sync::Mutex<BTreeMap<i64, SharedLease>>;

#[derive(Debug)]
pub(crate) struct SharedLease {
    tag: String,
    deadline: Millis,
    holders: Arc<()>,
}

impl SharedLease {
    fn unused(&self) -> bool {
        Arc::strong_count(&self.holders) == 1
    }
}

/// Why a snapshot could not be pinned or planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// There is no such snapshot (any more).
    #[error("table {table}: {what}")]
    NotFound {
        /// The table.
        table: String,
        /// What was asked for, and what there is instead.
        what: String,
    },
    /// The table has no snapshot yet.
    #[error("table {table}: nothing was archived yet")]
    Empty {
        /// The table.
        table: String,
    },
    /// A manifest or manifest list of the snapshot is gone: it has expired. Plan again on the newest snapshot.
    #[error(
        "table {table}: snapshot {snapshot_id} has expired while it was read ({uri} is gone); read the newest snapshot, or keep this one with a lease or a tag"
    )]
    Vanished {
        /// The table.
        table: String,
        /// The snapshot.
        snapshot_id: i64,
        /// The file.
        uri: String,
    },
    /// Another engine put delete files on the table.
    #[error(
        "table {table}: snapshot {snapshot_id} has delete files ({uri}), which the archive does not read; rewrite the table's data files with the engine that wrote them (copy-on-write), or roll it back"
    )]
    DeleteFiles {
        /// The table.
        table: String,
        /// The snapshot.
        snapshot_id: i64,
        /// The delete manifest.
        uri: String,
    },
    /// Files and ledger contradict each other: nothing of this snapshot may be emitted.
    #[error("table {table}: snapshot {snapshot_id}: {what}")]
    Contradiction {
        /// The table.
        table: String,
        /// The snapshot.
        snapshot_id: i64,
        /// What differs.
        what: String,
    },
    /// A data file's entry cannot be used for planning.
    #[error("table {table}: snapshot {snapshot_id} cannot be planned")]
    Entry {
        /// The table.
        table: String,
        /// The snapshot.
        snapshot_id: i64,
        /// What is wrong with it.
        #[source]
        source: ScanError,
    },
    /// The table's columns are not what everlog reads.
    #[error("table {table} cannot be read")]
    Schema {
        /// The table.
        table: String,
        /// What is wrong with them.
        #[source]
        source: SchemaError,
    },
    /// Anything else about the table.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl PinError {
    /// What the caller does about it.
    pub fn kind(&self) -> ArchiveErrorKind {
        match self {
            Self::NotFound { .. }
            | Self::Empty { .. }
            | Self::DeleteFiles { .. }
            | Self::Schema { .. } => ArchiveErrorKind::Invalid,
            Self::Entry { source, .. } => match source.kind() {
                StorageErrorKind::Transient => ArchiveErrorKind::Transient,
                StorageErrorKind::Unauthorized => ArchiveErrorKind::Denied,
                StorageErrorKind::Invalid => ArchiveErrorKind::Invalid,
                StorageErrorKind::NotFound | StorageErrorKind::Corrupt => ArchiveErrorKind::Corrupt,
            },
            Self::Vanished { .. } | Self::Contradiction { .. } => ArchiveErrorKind::Corrupt,
            Self::Archive(error) => error.kind(),
        }
    }
}

/// A snapshot that is being read.
///
/// * Ledger and files are of one snapshot, whatever is committed meanwhile.
/// * With a lease, our expiry leaves it alone until the deadline; call [`PinnedSnapshot::renew`] at two thirds.
#[derive(Debug)]
pub struct PinnedSnapshot {
    /// The snapshot.
    pub snapshot_id: i64,
    /// When it was made.
    pub time: Millis,
    /// What it holds.
    pub ledger: Ledger,
    /// What keeps it; none with [`LeaseMode::Off`] or where the catalog does not let us write.
    pub lease: Option<Lease>,
    table: LoadedTable,
    archive: Archive,
    storage: Storage,
    /// Held while this reader counts as one of the lease's.
    holder: Option<Arc<()>>,
}

/// What one attempt to swap a lease in came to.
enum Leased {
    Yes,
    Again,
    NotAllowed(String),
    Failed(ArchiveError),
}

impl Archive {
    /// Chooses a snapshot, takes a lease on it, and checks that both are there.
    pub async fn pin(
        &self,
        selector: &SnapshotSelector,
        mode: LeaseMode,
    ) -> Result<PinnedSnapshot, PinError> {
        let mut failure = None;
        let mut refusals = 0;
        for attempt in 0..LEASE_ATTEMPTS {
            if attempt > 0 {
                self.back_off(attempt).await;
            }
            let table = self.load().await?;
            let snapshot_id = self.choose(&table.metadata, selector)?;
            let found = self.find(&table, Some(snapshot_id)).await?;
            let mut pinned = self.pinned(table, snapshot_id, found.ledger)?;
            if mode == LeaseMode::Off {
                return Ok(pinned);
            }
            match self.lease(&mut pinned).await {
                Leased::Yes => return Ok(pinned),
                Leased::Again => {}
                // It may have been refused because the snapshot expired under us; a second look tells.
                Leased::NotAllowed(_) if refusals == 0 => refusals += 1,
                Leased::NotAllowed(why) => {
                    tracing::warn!(
                        table = %self.table(), snapshot_id, why,
                        "no lease: the catalog does not let this reader tag the snapshot, so expiry may take it away"
                    );
                    return Ok(pinned);
                }
                Leased::Failed(error) if error.kind() == ArchiveErrorKind::Transient => {
                    failure = Some(error);
                }
                Leased::Failed(error) => return Err(error.into()),
            }
        }
        Err(PinError::Archive(failure.unwrap_or_else(|| {
            ArchiveError::Contended {
                table: self.table().to_string(),
                attempts: LEASE_ATTEMPTS,
                last: None,
            }
        })))
    }

    fn pinned(
        &self,
        table: LoadedTable,
        snapshot_id: i64,
        ledger: Ledger,
    ) -> Result<PinnedSnapshot, PinError> {
        let Some(snapshot) = table.metadata.snapshot_by_id(snapshot_id) else {
            return Err(self.not_found(format!("snapshot {snapshot_id} is not there")));
        };
        Ok(PinnedSnapshot {
            snapshot_id,
            time: Millis(snapshot.timestamp_ms()),
            ledger,
            lease: None,
            storage: self.store_of_files(),
            archive: self.clone(),
            table,
            holder: None,
        })
    }

    fn not_found(&self, what: String) -> PinError {
        PinError::NotFound {
            table: self.table().to_string(),
            what,
        }
    }

    /// Which snapshot a selector means in this state.
    fn choose(
        &self,
        metadata: &TableMetadata,
        selector: &SnapshotSelector,
    ) -> Result<i64, PinError> {
        let head = metadata
            .current_snapshot_id()
            .ok_or_else(|| PinError::Empty {
                table: self.table().to_string(),
            });
        match selector {
            SnapshotSelector::Current => head,
            SnapshotSelector::Id(id) if metadata.snapshot_by_id(*id).is_some() => Ok(*id),
            SnapshotSelector::Id(id) => {
                head?;
                Err(self.not_found(format!(
                    "snapshot {id} is not there (any more); {}",
                    range_of(metadata)
                )))
            }
            SnapshotSelector::AsOf(time) => {
                head?;
                snapshot_as_of(metadata, *time)
                    .map(|s| s.snapshot_id())
                    .ok_or_else(|| {
                        self.not_found(format!(
                            "what the table held at {} has expired or was never there; {}",
                            readable(*time),
                            range_of(metadata)
                        ))
                    })
            }
            SnapshotSelector::Tag(name) => {
                if let Some(snapshot) = metadata.snapshot_for_ref(name) {
                    return Ok(snapshot.snapshot_id());
                }
                let mut names: Vec<String> = self.refs(metadata)?.into_keys().collect();
                names.retain(|name| !name.starts_with(lease::PREFIX));
                if names.is_empty() {
                    names.push("none".to_owned());
                }
                Err(self.not_found(format!(
                    "there is no tag `{name}`; there are: {}",
                    names.join(", ")
                )))
            }
        }
    }

    /// Takes part in the process' lease of the snapshot, or makes one.
    async fn lease(&self, pinned: &mut PinnedSnapshot) -> Leased {
        let mut leases = self.leases().lock().await;
        let now = self.deps().clock.now();
        let metadata = &pinned.table.metadata;
        if let Some(shared) = leases.get(&pinned.snapshot_id) {
            let there = metadata
                .snapshot_for_ref(&shared.tag)
                .is_some_and(|s| s.snapshot_id() == pinned.snapshot_id);
            if there && lease::lasts(shared.deadline, now) {
                pinned.hold(shared, false);
                return Leased::Yes;
            }
        }
        let deadline = now.plus(lease::TERM);
        let id = self.deps().ids.uuid();
        let swap = lease::take(metadata, pinned.snapshot_id, deadline, id, None);
        let Some(swap) = swap else {
            return Leased::Again;
        };
        let tag = swap.tag.clone();
        match self
            .swap_lease(&pinned.table, swap, Some(pinned.snapshot_id))
            .await
        {
            Leased::Yes => {}
            other => return other,
        }
        let shared = SharedLease {
            tag,
            deadline,
            holders: Arc::default(),
        };
        pinned.hold(&shared, true);
        leases.insert(pinned.snapshot_id, shared);
        Leased::Yes
    }

    /// Swaps once, and looks whether the tag is what it should be afterwards.
    async fn swap_lease(
        &self,
        base: &LoadedTable,
        swap: LeaseSwap,
        expected: Option<i64>,
    ) -> Leased {
        let LeaseSwap {
            tag,
            requirements,
            updates,
        } = swap;
        let key = commit_key(&*self.deps().ids, self.deps().clock.now());
        let reply = self
            .deps()
            .catalog
            .commit(base, requirements, updates, key)
            .await;
        let after = match reply {
            CommitReply::Committed(table) => table,
            CommitReply::Conflict => return Leased::Again,
            CommitReply::Unknown(_) => match self.load().await {
                Ok(table) => table,
                Err(error) => return Leased::Failed(error),
            },
            CommitReply::Refused(error) => {
                return match error.kind() {
                    CatalogErrorKind::Unauthorized | CatalogErrorKind::Invalid => {
                        Leased::NotAllowed(error.to_string())
                    }
                    _ => Leased::Failed(self.catalog_error("cannot tag a snapshot", error)),
                };
            }
        };
        let found = after
            .metadata
            .snapshot_for_ref(&tag)
            .map(|s| s.snapshot_id());
        if found == expected {
            Leased::Yes
        } else {
            Leased::Again
        }
    }
}

impl PinnedSnapshot {
    fn hold(&mut self, shared: &SharedLease, own: bool) {
        self.lease = Some(Lease {
            tag: shared.tag.clone(),
            deadline: shared.deadline,
            own,
        });
        self.holder = Some(Arc::clone(&shared.holders));
    }

    /// The table as it was when the snapshot was pinned.
    pub fn table(&self) -> &LoadedTable {
        &self.table
    }

    /// The live data files, with the cross-checks done: rows add up to the ledger's, and no file reaches beyond it.
    pub async fn files(&self) -> Result<Vec<PlannedFile>, PinError> {
        let list = self.list().await?;
        if let Some(file) = manifests::delete_manifest(&list) {
            return Err(PinError::DeleteFiles {
                table: self.archive.table().to_string(),
                snapshot_id: self.snapshot_id,
                uri: file.manifest_path.clone(),
            });
        }
        let columns =
            ColumnMap::resolve(self.table.metadata.current_schema()).map_err(|source| {
                PinError::Schema {
                    table: self.archive.table().to_string(),
                    source,
                }
            })?;
        let live: Vec<ManifestFile> = list
            .into_iter()
            .filter(|file| {
                file.content == ManifestContentType::Data && manifests::has_live_files(file)
            })
            .collect();
        let planned: Vec<(String, Arc<Vec<PlannedFile>>)> = futures::stream::iter(live)
            .map(|file| self.planned(file, &columns))
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        self.remember(&planned);
        let mut files: Vec<PlannedFile> = planned
            .iter()
            .flat_map(|(_, files)| files.iter().cloned())
            .collect();
        check_plan(&self.ledger, &files).map_err(|what| PinError::Contradiction {
            table: self.archive.table().to_string(),
            snapshot_id: self.snapshot_id,
            what,
        })?;
        files.sort_by(|a, b| order(a).cmp(&order(b)));
        Ok(files)
    }

    async fn list(&self) -> Result<Vec<ManifestFile>, PinError> {
        let list = self
            .archive
            .read_list(&self.storage, &self.table, self.snapshot_id)
            .await;
        list.map_err(|error| self.vanished(error))
    }

    /// A missing file of a snapshot that may expire under its reader is no corruption yet.
    fn vanished(&self, error: ArchiveError) -> PinError {
        match error {
            ArchiveError::MissingFile { table, uri, .. } => PinError::Vanished {
                table,
                snapshot_id: self.snapshot_id,
                uri,
            },
            other => PinError::Archive(other),
        }
    }

    async fn planned(
        &self,
        file: ManifestFile,
        columns: &ColumnMap,
    ) -> Result<(String, Arc<Vec<PlannedFile>>), PinError> {
        let remembered = self
            .archive
            .planned_files()
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&file.manifest_path)
            .cloned();
        if let Some(files) = remembered {
            return Ok((file.manifest_path, files));
        }
        let entries = manifests::read_manifest(&self.storage, &file)
            .await
            .map_err(|problem| {
                let table = self.archive.table().to_string();
                self.vanished(ArchiveError::of_manifest(&table, self.snapshot_id, problem))
            })?;
        let files = entries
            .iter()
            .filter(|entry| entry.is_alive())
            .map(|entry: &ManifestEntry| PlannedFile::from_entry(entry, columns))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| PinError::Entry {
                table: self.archive.table().to_string(),
                snapshot_id: self.snapshot_id,
                source,
            })?;
        Ok((file.manifest_path, Arc::new(files)))
    }

    /// Manifests never change, so what they list is kept for the next plan: of this snapshot's manifests alone.
    fn remember(&self, planned: &[(String, Arc<Vec<PlannedFile>>)]) {
        let count: usize = planned.iter().map(|(_, files)| files.len()).sum();
        let mut remembered = self
            .archive
            .planned_files()
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        remembered.clear();
        if count <= REMEMBERED_FILES_MAX {
            let entries = planned
                .iter()
                .map(|(path, files)| (path.clone(), Arc::clone(files)));
            remembered.extend(entries);
        }
    }

    /// Where history ends and the live log begins, per partition of the newest generation.
    pub fn cut(&self) -> Positions {
        self.ledger.cut()
    }

    /// The object store that holds the files.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// When to call [`PinnedSnapshot::renew`]; none without a lease.
    pub fn renew_at(&self) -> Option<Millis> {
        self.lease
            .as_ref()
            .map(|lease| lease::renew_at(lease.deadline))
    }

    /// Extends the lease to its full term from now. An error of kind `Transient` may be tried again until the deadline.
    pub async fn renew(&mut self) -> Result<(), PinError> {
        let Some(held) = self.lease.clone() else {
            return Ok(());
        };
        let archive = self.archive.clone();
        let mut leases = archive.leases().lock().await;
        if let Some(shared) = leases.get(&self.snapshot_id) {
            // Another reader of this process renewed it already.
            if shared.deadline > held.deadline {
                self.hold(shared, false);
                return Ok(());
            }
        }
        let mut failure = None;
        for attempt in 0..LEASE_ATTEMPTS {
            if attempt > 0 {
                archive.back_off(attempt).await;
            }
            let table = archive.load().await?;
            let deadline = archive.deps().clock.now().plus(lease::TERM);
            let id = archive.deps().ids.uuid();
            let old = Some(held.tag.as_str());
            let swap = lease::take(&table.metadata, self.snapshot_id, deadline, id, old);
            let Some(swap) = swap else {
                return Err(archive.not_found(format!(
                    "snapshot {} was expired in spite of its lease {}; {}",
                    self.snapshot_id,
                    held.tag,
                    range_of(&table.metadata)
                )));
            };
            let tag = swap.tag.clone();
            match archive
                .swap_lease(&table, swap, Some(self.snapshot_id))
                .await
            {
                Leased::Yes => {
                    let holders = self.holder.clone().unwrap_or_default();
                    let shared = SharedLease {
                        tag,
                        deadline,
                        holders,
                    };
                    self.hold(&shared, true);
                    leases.insert(self.snapshot_id, shared);
                    return Ok(());
                }
                Leased::Again => {}
                Leased::NotAllowed(why) => failure = Some(archive.invalid(why)),
                Leased::Failed(error) => failure = Some(error),
            }
        }
        Err(PinError::Archive(failure.unwrap_or_else(|| {
            ArchiveError::Contended {
                table: archive.table().to_string(),
                attempts: LEASE_ATTEMPTS,
                last: None,
            }
        })))
    }

    /// Ends the reading. The last reader of this process gives the lease back; a failure is only logged, since the
    /// deadline ends the lease too.
    pub async fn release(mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        drop(self.holder.take());
        let mut leases = self.archive.leases().lock().await;
        match leases.get(&self.snapshot_id) {
            Some(shared) if shared.unused() => {}
            _ => return,
        }
        let tag = leases
            .remove(&self.snapshot_id)
            .map_or(lease.tag, |shared| shared.tag);
        for attempt in 0..LEASE_ATTEMPTS {
            if attempt > 0 {
                self.archive.back_off(attempt).await;
            }
            let given_back = match self.archive.load().await {
                Ok(table) => match lease::give_back(&table.metadata, &tag) {
                    Some(swap) => self.archive.swap_lease(&table, swap, None).await,
                    None => Leased::Yes,
                },
                Err(error) => Leased::Failed(error),
            };
            match given_back {
                Leased::Yes => return,
                Leased::Again => {}
                Leased::NotAllowed(why) => {
                    tracing::warn!(table = %self.archive.table(), tag, why, "lease not given back");
                    return;
                }
                Leased::Failed(error) => {
                    tracing::warn!(table = %self.archive.table(), tag, %error, "lease not given back yet");
                }
            }
        }
    }
}

/// Files in the order in which they are mostly read; those without bounds come last.
fn order(file: &PlannedFile) -> (bool, Option<(Generation, Partition, Offset)>, &str) {
    let first = file
        .bounds
        .as_ref()
        .map(|b| (b.generation.0, b.partition.0, b.offset.0));
    (first.is_none(), first, &file.path)
}

/// The cross-checks of a plan, before anything of it is emitted.
fn check_plan(ledger: &Ledger, files: &[PlannedFile]) -> Result<(), String> {
    let mut paths = BTreeSet::new();
    if let Some(file) = files.iter().find(|file| !paths.insert(file.path.as_str())) {
        return Err(format!(
            "{} is listed twice: its rows would be read twice",
            file.path
        ));
    }
    // Of counts that cannot be right, a sum that stays at the top is as wrong as they are.
    let rows = files
        .iter()
        .fold(0_u64, |sum, file| sum.saturating_add(file.rows));
    if rows != ledger.rows() {
        return Err(format!(
            "its files have {rows} rows, its ledger counts {}",
            ledger.rows()
        ));
    }
    for file in files {
        let Some(bounds) = &file.bounds else {
            continue;
        };
        // Of a file with several partitions, the offset bound belongs to one of them: the furthest must reach it.
        let reach = furthest(ledger, bounds);
        if reach.is_none_or(|next| bounds.offset.1 >= next) {
            return Err(format!(
                "{} holds offset {} of partitions {} to {} (generations {} to {}), which its ledger does not know (next: {})",
                file.path,
                bounds.offset.1,
                bounds.partition.0,
                bounds.partition.1,
                bounds.generation.0,
                bounds.generation.1,
                reach.map_or_else(|| "none".to_owned(), |next| next.to_string())
            ));
        }
        // No offset is there twice: bounds that are too narrow would hide rows from who asks for a part.
        let places = places(ledger, bounds);
        if u128::from(file.rows) > places {
            return Err(format!(
                "{} has {} rows, and by its bounds (offsets {} to {} of partitions {} to {}, generations {} to {}) room for \
                 {places}",
                file.path,
                file.rows,
                bounds.offset.0,
                bounds.offset.1,
                bounds.partition.0,
                bounds.partition.1,
                bounds.generation.0,
                bounds.generation.1,
            ));
        }
    }
    check_cover(ledger, files)
}

/// Whether the files' bounds leave room for every row that the ledger counts: where they lie elsewhere than they say, nobody
/// who asks for a part would find them. Offsets without rows are no proof of anything, so a partition may lack as many
/// offsets as it has of those.
fn check_cover(ledger: &Ledger, files: &[PlannedFile]) -> Result<(), String> {
    struct Cover {
        partition: Partition,
        rows: u64,
        next: Offset,
        /// What is covered is covered up to here, and comes to so many offsets.
        end: Offset,
        offsets: u64,
    }
    let filled = || files.iter().filter(|file| file.rows > 0);
    let mut all: Vec<&FileBounds> = filled().filter_map(|file| file.bounds.as_ref()).collect();
    if all.len() < filled().count() {
        // anything may be in a file of which nothing is known
        return Ok(());
    }
    all.sort_by_key(|bounds| bounds.offset.0);
    let mut eras: BTreeMap<Generation, Vec<Cover>> = BTreeMap::new();
    for (generation, era) in &ledger.generations {
        let covers = era.partitions.iter().map(|(partition, entry)| Cover {
            partition: *partition,
            rows: entry.rows,
            next: entry.next,
            end: entry.first,
            offsets: 0,
        });
        eras.insert(*generation, covers.collect());
    }
    for bounds in all {
        for (_, covers) in eras.range_mut(bounds.generation.0..=bounds.generation.1) {
            let from = covers.partition_point(|cover| cover.partition < bounds.partition.0);
            let covers = covers.get_mut(from..).unwrap_or_default();
            for cover in covers
                .iter_mut()
                .take_while(|cover| cover.partition <= bounds.partition.1)
            {
                let low = bounds.offset.0.max(cover.end);
                let high = bounds.offset.1.next().min(cover.next);
                if low < high {
                    cover.offsets += high.since(low);
                    cover.end = high;
                }
            }
        }
    }
    for (generation, covers) in &eras {
        if let Some(short) = covers.iter().find(|cover| cover.offsets < cover.rows) {
            let twice = overlap(files, *generation, short.partition);
            return Err(format!(
                "{twice}its ledger counts {} rows of partition {} of generation {generation}, and by the bounds of its files there \
                 are no more than {}: rows are there twice, or a manifest does not tell the truth",
                short.rows, short.partition, short.offsets
            ));
        }
    }
    Ok(())
}

/// Two files that both say to hold the same offsets of a partition, in words.
fn overlap(files: &[PlannedFile], generation: Generation, partition: Partition) -> String {
    let mut there: Vec<(&FileBounds, &str)> = files
        .iter()
        .filter_map(|file| Some((file.bounds.as_ref()?, file.path.as_str())))
        .filter(|(b, _)| b.generation.0 <= generation && generation <= b.generation.1)
        .filter(|(b, _)| b.partition.0 <= partition && partition <= b.partition.1)
        .collect();
    there.sort_by_key(|(bounds, _)| bounds.offset);
    let pairs = there.iter().zip(there.get(1..).unwrap_or_default());
    let found = pairs.map(|((a, one), (b, other))| {
        let (from, until) = (b.offset.0, a.offset.1.min(b.offset.1).next());
        (from < until).then(|| {
            format!("{one} and {other}: offsets [{from}, {until}) of partition {partition} are there twice; ")
        })
    });
    found.flatten().next().unwrap_or_default()
}

/// How many rows there can be within bounds: every offset of every partition that the ledger knows.
fn places(ledger: &Ledger, bounds: &FileBounds) -> u128 {
    let offsets = u128::from(bounds.offset.1.since(bounds.offset.0)) + 1;
    let partitions: usize = ledger
        .generations
        .range(bounds.generation.0..=bounds.generation.1)
        .map(|(_, era)| {
            era.partitions
                .range(bounds.partition.0..=bounds.partition.1)
                .count()
        })
        .sum();
    offsets * partitions as u128
}

fn furthest(ledger: &Ledger, bounds: &FileBounds) -> Option<Offset> {
    ledger
        .generations
        .range(bounds.generation.0..=bounds.generation.1)
        .flat_map(|(_, era)| {
            era.partitions
                .range(bounds.partition.0..=bounds.partition.1)
        })
        .map(|(_, entry)| entry.next)
        .max()
}

/// What there is, for who asked for something else.
fn range_of(metadata: &TableMetadata) -> String {
    let newest = metadata.current_snapshot();
    match (oldest_as_of(metadata), newest) {
        (Some((time, oldest)), Some(newest)) => format!(
            "there are snapshots from {} ({oldest}) to {} ({})",
            readable(time),
            readable(Millis(newest.timestamp_ms())),
            newest.snapshot_id()
        ),
        _ => "there are no snapshots".to_owned(),
    }
}

fn readable(time: Millis) -> String {
    chrono::DateTime::from_timestamp_millis(time.0).map_or_else(
        || format!("{} ms", time.0),
        |time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
    )
}
