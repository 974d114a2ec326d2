//! Removal of files that nothing needs any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::Millis;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{ManifestFile, SnapshotRef, TableMetadata};

use super::{MaintenanceReport, MaintenanceSettings};
use crate::archive::{Archive, ArchiveError, metadata_folder};
use crate::catalog::LoadedTable;
use crate::manifests::{self, ManifestError};
use crate::storage::{Storage, StorageError, StorageErrorKind, StoredObject};

/// Files of a snapshot stay at least so long after its expiry.
const EXPIRED_GRACE_MIN: Duration = Duration::from_hours(1);
/// Files that no snapshot ever needed stay at least so long.
const ORPHAN_AGE_MIN: Duration = Duration::from_hours(24);
/// How many manifest lists or manifests are read, or objects deleted, at once.
const AT_ONCE: usize = 12;
/// At most so many files go in one round.
const DELETES_MAX: usize = 20_000;
/// At most so many metadata logs are followed back in time; what is older goes by its age.
const LOGS_MAX: usize = 200;

/// What a process remembers from one round of maintenance to the next.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// The manifests of the manifest lists that were needed in the last round.
    lists: BTreeMap<String, Arc<Vec<ManifestFile>>>,
    /// When data folders were last searched, as time elapsed.
    data_searched: Option<Duration>,
}

/// Names as keys: scheme and host spelling aside, since engines write `s3`, `s3a` and `s3n` for one thing.
///
/// A key is a hash. Two names with one key make an unneeded file look needed, never the reverse.
type Key = u64;

fn key_of(uri: &str) -> Key {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    path_of(uri).hash(&mut hasher);
    hasher.finish()
}

/// Bucket and path of a URI, or the path of a local file.
fn path_of(uri: &str) -> &str {
    let rest = uri
        .split_once("://")
        .map_or_else(|| uri.split_once(':').map_or(uri, |(_, r)| r), |(_, r)| r);
    rest.trim_start_matches('/')
}

/// What is needed, and by which clock it is judged.
#[derive(Debug, Default)]
struct Needed {
    keys: BTreeSet<Key>,
    /// Some that the listing of metadata must show (G3).
    witnesses: Vec<String>,
    /// How many data files were counted as needed, some more than once.
    data_files: u64,
    /// Metadata files that are proven to be superseded since this long.
    superseded: BTreeMap<Key, Millis>,
}

/// A file that may go.
#[derive(Debug, Clone)]
struct Candidate {
    object: StoredObject,
    key: Key,
}

impl Archive {
    pub(super) async fn remove_files(
        &self,
        settings: &MaintenanceSettings,
        report: &mut MaintenanceReport,
    ) -> Result<(), ArchiveError> {
        let mut upkeep = self.upkeep().lock().await;
        let elapsed = self.deps().clock.elapsed();
        let search_data = upkeep
            .data_searched
            .is_none_or(|last| elapsed.saturating_sub(last) >= settings.orphan_interval);
        let table = self.load().await?;
        if let Some(reason) = self.held_back(&table) {
            report.held_back = Some(reason);
            return Ok(());
        }
        let mut listed = Vec::new();
        let mut newest = Millis(0);
        let mut listing = self.listing(&metadata_folder(&table.metadata))?;
        while let Some(object) = listing.next().await {
            let object = object.map_err(|source| self.cannot_list(source))?;
            newest = newest.max(object.last_modified);
            listed.push(object);
        }
        // G4: the newest object bounds the store's time from below.
        let now = self.deps().clock.now().min(newest);
        let grace = settings.expired_grace.max(EXPIRED_GRACE_MIN);
        let mut needed = Needed::default();
        let Some(past) = self.past_state(&table, now, grace, &mut needed).await? else {
            report.held_back = Some(format!(
                "the metadata file that was current {} s ago is gone, so nobody can tell what readers of that time need",
                grace.as_secs()
            ));
            return Ok(());
        };
        self.need(&table, &past, search_data, &mut upkeep, &mut needed)
            .await?;
        if let Some(hidden) = not_shown(&table, &listed, &needed) {
            report.held_back = Some(format!(
                "the listing does not show {hidden}, which the table needs; nothing can be told to be unneeded"
            ));
            return Ok(());
        }
        let mut sorted = Sorted {
            needed: &needed,
            settings,
            now,
            due: Vec::new(),
            waiting: (0, 0),
            shown: 0,
        };
        for object in listed {
            sorted.add(object);
        }
        if search_data {
            sorted.shown = 0;
            let of_metadata = sorted.due.len();
            let mut listing = self.listing(&data_folder(&table.metadata))?;
            while let Some(object) = listing.next().await {
                sorted.add(object.map_err(|source| self.cannot_list(source))?);
            }
            // Live files may be elsewhere, but where none at all is shown, names do not match: then the data stays.
            if sorted.shown == 0 && needed.data_files > 0 {
                sorted.due.truncate(of_metadata);
                report.held_back = Some(
                    "the listing of the data folder shows none of the table's data files; they stay"
                        .to_owned(),
                );
            }
        }
        (report.files_waiting, report.bytes_waiting) = sorted.waiting;
        let mut candidates = sorted.due;
        candidates.sort_by_key(|candidate| candidate.object.last_modified);
        candidates.truncate(DELETES_MAX);
        if search_data {
            report.data_searched = true;
            upkeep.data_searched = Some(elapsed);
        }
        self.delete(&table, candidates, settings, &mut upkeep, report)
            .await
    }

    /// Why nothing may be deleted in this state at all.
    fn held_back(&self, table: &LoadedTable) -> Option<String> {
        let properties = table.metadata.properties();
        if properties
            .get("gc.enabled")
            .is_some_and(|enabled| enabled.eq_ignore_ascii_case("false"))
        {
            return Some("the table has gc.enabled=false".to_owned());
        }
        let open = self.open_commits();
        (open > 0).then(|| format!("the outcome of {open} commits is not known yet"))
    }

    /// The table's metadata as it was `grace` ago: what readers may still rely on. Follows the metadata log back, and
    /// notes which metadata files are superseded since when. None where a file on the way is gone.
    async fn past_state(
        &self,
        table: &LoadedTable,
        now: Millis,
        grace: Duration,
        needed: &mut Needed,
    ) -> Result<Option<Arc<TableMetadata>>, ArchiveError> {
        let storage = self.store_of_files();
        let mut past: Option<Arc<TableMetadata>> = None;
        let mut reading = Arc::clone(&table.metadata);
        let mut since = Millis(table.metadata.last_updated_ms());
        if now.since(since) >= grace {
            past = Some(Arc::clone(&reading));
        }
        for step in 0..LOGS_MAX {
            let mut oldest: Option<String> = None;
            for entry in reading.metadata_log().iter().rev() {
                let key = key_of(&entry.metadata_file);
                if step == 0 {
                    // Engines follow the log of the current metadata, so its files stay.
                    needed.keys.insert(key);
                }
                needed.superseded.entry(key).or_insert(since);
                since = Millis(entry.timestamp_ms.min(since.0));
                oldest = Some(entry.metadata_file.clone());
                if past.is_none() && now.since(since) >= grace {
                    match read_metadata(&storage, &entry.metadata_file).await {
                        Ok(found) => past = Some(Arc::new(found)),
                        Err(error) if gone(&error) => return Ok(None),
                        Err(error) => return Err(self.reading(error)),
                    }
                }
            }
            let Some(oldest) = oldest else {
                // The table's first metadata: there was nothing before it to need anything.
                return Ok(Some(past.unwrap_or(reading)));
            };
            match read_metadata(&storage, &oldest).await {
                Ok(found) => reading = Arc::new(found),
                Err(error) if gone(&error) => return Ok(past),
                Err(error) => return Err(self.reading(error)),
            }
        }
        Ok(past)
    }

    fn reading(&self, error: MetadataError) -> ArchiveError {
        match error {
            MetadataError::Storage(source) => ArchiveError::Storage {
                table: self.table().to_string(),
                doing: "cannot read an older metadata file",
                source,
            },
            MetadataError::Parse { uri, source } => ArchiveError::Corrupt {
                table: self.table().to_string(),
                what: format!("metadata file {uri} cannot be read"),
                source: Some(source),
            },
        }
    }

    /// Everything that the state now and the past one need.
    async fn need(
        &self,
        table: &LoadedTable,
        past: &TableMetadata,
        search_data: bool,
        upkeep: &mut Upkeep,
        needed: &mut Needed,
    ) -> Result<(), ArchiveError> {
        needed.keys.insert(key_of(&table.metadata_location));
        needed.witnesses.push(table.metadata_location.clone());
        needed_statistics(&table.metadata, &mut needed.keys);
        needed_statistics(past, &mut needed.keys);
        let expired: Vec<SnapshotRef> = past
            .snapshots()
            .filter(|s| table.metadata.snapshot_by_id(s.snapshot_id()).is_none())
            .cloned()
            .collect();
        let live: Vec<SnapshotRef> = table.metadata.snapshots().cloned().collect();
        let mut lists = BTreeMap::new();
        let mut found = self.lists(&live, true, upkeep).await?;
        found.extend(self.lists(&expired, false, upkeep).await?);
        let mut all: BTreeMap<String, ManifestFile> = BTreeMap::new();
        let head = table.metadata.current_snapshot();
        for (path, list) in found {
            needed.keys.insert(key_of(&path));
            for file in list.iter() {
                needed.keys.insert(key_of(&file.manifest_path));
                all.entry(file.manifest_path.clone())
                    .or_insert_with(|| file.clone());
            }
            if head.is_some_and(|head| head.manifest_list() == path) {
                needed.witnesses.push(path.clone());
                needed
                    .witnesses
                    .extend(list.iter().map(|file| file.manifest_path.clone()));
            }
            lists.insert(path, list);
        }
        upkeep.lists = lists;
        if search_data {
            self.need_data(all.into_values().collect(), needed).await?;
        }
        Ok(())
    }

    async fn need_data(
        &self,
        all: Vec<ManifestFile>,
        needed: &mut Needed,
    ) -> Result<(), ArchiveError> {
        let storage = self.store_of_files();
        let reads: Vec<_> = all
            .into_iter()
            .map(|file| {
                let storage = &storage;
                async move { (manifests::read_manifest(storage, &file).await, file) }
            })
            .collect();
        let mut reads = futures::stream::iter(reads).buffer_unordered(AT_ONCE);
        while let Some((entries, file)) = reads.next().await {
            match entries {
                Ok(entries) => {
                    for entry in entries {
                        // What is deleted in one snapshot is needed by an older one, which has it in its own manifests.
                        if entry.is_alive() {
                            needed.keys.insert(key_of(entry.file_path()));
                            needed.data_files += 1;
                        }
                    }
                }
                Err(problem) => {
                    return Err(ArchiveError::of_manifest(
                        &self.table().to_string(),
                        file.added_snapshot_id,
                        problem,
                    ));
                }
            }
        }
        Ok(())
    }

    /// The manifest lists of snapshots, by name. Of snapshots that must not be there any more, a list may be missing.
    async fn lists(
        &self,
        snapshots: &[SnapshotRef],
        must_be_there: bool,
        upkeep: &Upkeep,
    ) -> Result<Vec<(String, Arc<Vec<ManifestFile>>)>, ArchiveError> {
        let storage = self.store_of_files();
        let reads = snapshots.iter().map(|snapshot| {
            let (storage, upkeep) = (&storage, upkeep);
            async move {
                let path = snapshot.manifest_list().to_owned();
                if let Some(list) = upkeep.lists.get(&path) {
                    return Ok(Some((path, Arc::clone(list))));
                }
                let version = iceberg::spec::FormatVersion::V2;
                match manifests::read_list(storage, snapshot, version).await {
                    Ok(list) => Ok(Some((path, Arc::new(list)))),
                    Err(ManifestError::Missing { .. }) if !must_be_there => Ok(None),
                    Err(problem) => Err(ArchiveError::of_manifest(
                        &self.table().to_string(),
                        snapshot.snapshot_id(),
                        problem,
                    )),
                }
            }
        });
        let found: Vec<Option<(String, Arc<Vec<ManifestFile>>)>> =
            futures::stream::iter(reads.collect::<Vec<_>>())
                .buffered(AT_ONCE)
                .try_collect()
                .await?;
        Ok(found.into_iter().flatten().collect())
    }

    fn listing(
        &self,
        folder: &str,
    ) -> Result<BoxStream<'static, Result<StoredObject, StorageError>>, ArchiveError> {
        self.store_of_files()
            .list(folder)
            .map_err(|source| self.cannot_list(source))
    }

    fn cannot_list(&self, source: StorageError) -> ArchiveError {
        ArchiveError::Storage {
            table: self.table().to_string(),
            doing: "cannot list the table's files",
            source,
        }
    }

    async fn delete(
        &self,
        before: &LoadedTable,
        candidates: Vec<Candidate>,
        settings: &MaintenanceSettings,
        upkeep: &mut Upkeep,
        report: &mut MaintenanceReport,
    ) -> Result<(), ArchiveError> {
        if candidates.is_empty() {
            return Ok(());
        }
        // Once more, right before: what came to the table while we looked.
        let table = self.load().await?;
        if let Some(reason) = self.held_back(&table) {
            report.held_back = Some(reason);
            return Ok(());
        }
        let mut needed = Needed::default();
        let news: Vec<SnapshotRef> = table
            .metadata
            .snapshots()
            .filter(|s| before.metadata.snapshot_by_id(s.snapshot_id()).is_none())
            .cloned()
            .collect();
        let mut fresh = Vec::new();
        for (path, list) in self.lists(&news, true, upkeep).await? {
            needed.keys.insert(key_of(&path));
            for file in list.iter() {
                needed.keys.insert(key_of(&file.manifest_path));
                let known = before
                    .metadata
                    .snapshot_by_id(file.added_snapshot_id)
                    .is_some();
                if !known {
                    fresh.push(file.clone());
                }
            }
        }
        self.need_data(fresh, &mut needed).await?;
        needed.keys.insert(key_of(&table.metadata_location));
        let logged = table.metadata.metadata_log().iter();
        needed
            .keys
            .extend(logged.map(|entry| key_of(&entry.metadata_file)));
        let storage = self.store_of_files();
        let doomed: Vec<Candidate> = candidates
            .into_iter()
            .filter(|candidate| !needed.keys.contains(&candidate.key))
            .collect();
        if !settings.deletes {
            report.files_deleted = doomed.len();
            report.bytes_deleted = doomed.iter().map(|c| c.object.size).sum();
            report.held_back = Some("deletion is switched off".to_owned());
            return Ok(());
        }
        let deletes: Vec<_> = doomed
            .into_iter()
            .map(|candidate| {
                let storage = &storage;
                async move {
                    let deleted = storage.delete(&candidate.object.uri).await;
                    (deleted, candidate)
                }
            })
            .collect();
        let mut deletes = futures::stream::iter(deletes).buffer_unordered(AT_ONCE);
        while let Some((deleted, candidate)) = deletes.next().await {
            deleted.map_err(|source| ArchiveError::Storage {
                table: self.table().to_string(),
                doing: "cannot delete a file that nothing needs",
                source,
            })?;
            tracing::debug!(uri = candidate.object.uri, "deleted");
            report.files_deleted += 1;
            report.bytes_deleted += candidate.object.size;
        }
        Ok(())
    }
}

/// The first file that the listing of metadata should show and does not (G3).
fn not_shown(table: &LoadedTable, listed: &[StoredObject], needed: &Needed) -> Option<String> {
    let folder = metadata_folder(&table.metadata);
    let shown: BTreeSet<Key> = listed.iter().map(|object| key_of(&object.uri)).collect();
    let mut hidden = needed
        .witnesses
        .iter()
        .filter(|uri| path_of(uri).starts_with(path_of(&folder)) && !shown.contains(&key_of(uri)));
    let elsewhere = needed
        .witnesses
        .iter()
        .all(|uri| !path_of(uri).starts_with(path_of(&folder)));
    hidden
        .next()
        .cloned()
        .or_else(|| elsewhere.then(|| format!("anything below {folder}")))
}

/// Listed objects, told apart.
struct Sorted<'a> {
    needed: &'a Needed,
    settings: &'a MaintenanceSettings,
    now: Millis,
    due: Vec<Candidate>,
    waiting: (usize, u64),
    shown: u64,
}

impl Sorted<'_> {
    fn add(&mut self, object: StoredObject) {
        let key = key_of(&object.uri);
        if self.needed.keys.contains(&key) {
            self.shown += 1;
            return;
        }
        if !is_ours_to_judge(&object.uri) {
            return;
        }
        let candidate = Candidate { object, key };
        let due = is_due(&candidate, self.needed, self.settings, self.now);
        if due && self.due.len() < 2 * DELETES_MAX {
            self.due.push(candidate);
        } else {
            self.waiting.0 += 1;
            self.waiting.1 += candidate.object.size;
        }
    }
}

/// G1 and G2.
fn is_due(
    candidate: &Candidate,
    needed: &Needed,
    settings: &MaintenanceSettings,
    now: Millis,
) -> bool {
    if let Some(since) = needed.superseded.get(&candidate.key) {
        return now.since(*since) >= settings.expired_grace.max(EXPIRED_GRACE_MIN);
    }
    now.since(candidate.object.last_modified) >= settings.orphan_age.max(ORPHAN_AGE_MIN)
}

/// Files of kinds that tables consist of. Anything else in the folders is somebody else's.
fn is_ours_to_judge(uri: &str) -> bool {
    const KINDS: [&str; 7] = [
        ".parquet",
        ".avro",
        ".orc",
        ".metadata.json",
        ".metadata.json.gz",
        ".stats",
        ".puffin",
    ];
    KINDS.iter().any(|kind| uri.ends_with(kind))
}

fn needed_statistics(metadata: &TableMetadata, keys: &mut BTreeSet<Key>) {
    keys.extend(
        metadata
            .statistics_iter()
            .map(|file| key_of(&file.statistics_path)),
    );
    let partitions = metadata.partition_statistics_iter();
    keys.extend(partitions.map(|file| key_of(&file.statistics_path)));
}

/// Where a table's data files go.
fn data_folder(metadata: &TableMetadata) -> String {
    let properties = metadata.properties();
    match properties.get("write.data.path") {
        Some(path) => path.trim_end_matches('/').to_owned(),
        None => format!("{}/data", metadata.location().trim_end_matches('/')),
    }
}

enum MetadataError {
    Storage(StorageError),
    Parse {
        uri: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn gone(error: &MetadataError) -> bool {
    matches!(error, MetadataError::Storage(source) if source.kind() == StorageErrorKind::NotFound)
}

async fn read_metadata(storage: &Storage, uri: &str) -> Result<TableMetadata, MetadataError> {
    let bytes = storage.get(uri).await.map_err(MetadataError::Storage)?;
    crate::catalog::parse_metadata(&bytes).map_err(|source| MetadataError::Parse {
        uri: uri.to_owned(),
        source,
    })
}
