//! Removal of files that nothing needs any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::Millis;
use everlog_common::mutants::Mutant;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{ManifestFile, SnapshotRef, TableMetadata};

use super::{MaintenanceReport, MaintenanceSettings, Removal};
use crate::archive::{ArchiveError, metadata_folder};
use crate::catalog::{LoadedTable, MetadataOwner};
use crate::files::{data_folder, is_metadata_file, is_table_file};
use crate::handle::Handle;
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
/// So many metadata files of unknown origin are looked at before the next of them: a look has a price in memory.
const JUDGED_AT_ONCE: usize = 1_000;
/// Data folders are searched again after so long where something was wrong with them.
const SEARCH_AGAIN: Duration = Duration::from_mins(10);
/// At most so many names are remembered from round to round; beyond that many, they are looked at anew.
const REMEMBERED_MAX: usize = 200_000;

/// What a process remembers from one round of maintenance to the next.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// The manifests of the manifest lists that were needed in the last round.
    lists: BTreeMap<String, Arc<Vec<ManifestFile>>>,
    /// When data folders were last searched, as time elapsed.
    data_searched: Option<Duration>,
    /// Why files of data folders stayed then, where there was a reason.
    data_held_back: Option<String>,
    /// Metadata files that the log does not lead to, but that were read and are this table's (G5).
    own: BTreeSet<Key>,
    /// Such files that are of no table that has anything, and stay.
    nobodys: BTreeSet<Key>,
    /// Since when, as time elapsed, this process has seen files unneeded; kept only where the past cannot be read.
    unneeded_since: BTreeMap<Key, Duration>,
}

/// Names as keys: scheme and host spelling aside, since engines write `s3`, `s3a` and `s3n` for one thing.
///
/// A key is a hash. Two names with one key make an unneeded file look needed, never the reverse.
type Key = u64;

fn key_of(uri: &str) -> Key {
    hash_of(path_of(uri))
}

fn hash_of(path: &str) -> Key {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// The key of the path alone: one store may have several names (`container@account.dfs…` and `….blob…`, an access point).
fn bare_key_of(uri: &str) -> Key {
    let path = path_of(uri);
    let bare = match uri.split_once("://") {
        Some((_, rest)) if !rest.starts_with('/') => path.split_once('/').map_or(path, |(_, p)| p),
        _ => path,
    };
    hash_of(bare.trim_start_matches('/'))
}

/// Bucket and path of a URI, or the path of a local file.
fn path_of(uri: &str) -> &str {
    let rest = uri
        .split_once("://")
        .map_or_else(|| uri.split_once(':').map_or(uri, |(_, r)| r), |(_, r)| r);
    rest.trim_start_matches('/')
}

/// Whether one name is that of something in a folder; schemes aside.
fn is_below(uri: &str, folder: &str) -> bool {
    path_of(uri)
        .strip_prefix(path_of(folder).trim_end_matches('/'))
        .is_some_and(|rest| rest.starts_with('/'))
}

/// What is needed, and by which clock it is judged.
#[derive(Debug, Default)]
struct Needed {
    /// Under both keys: a name that only looks needed stays, which does no harm.
    keys: BTreeSet<Key>,
    /// The data files among them, by their names without any folder. Known where data is searched.
    data_names: BTreeSet<Key>,
    /// Some that the listing of metadata must show (G3).
    witnesses: Vec<String>,
    /// Metadata files that are proven to be superseded since this long.
    superseded: BTreeMap<Key, Millis>,
}

impl Needed {
    fn add(&mut self, uri: &str) {
        self.keys.insert(key_of(uri));
        self.keys.insert(bare_key_of(uri));
    }

    fn has(&self, uri: &str) -> bool {
        self.keys.contains(&key_of(uri)) || self.keys.contains(&bare_key_of(uri))
    }
}

/// A file that may go.
#[derive(Debug, Clone)]
struct Candidate {
    object: StoredObject,
    key: Key,
}

/// Whose the metadata files are that nothing of this table leads to.
enum Judged {
    /// Another table lives in these folders, so that nothing may go. Says which file tells.
    Another(String),
    /// No other table's so far. The table's own that are old enough, and how many were not looked at.
    Partly { own: Vec<Candidate>, left: usize },
    /// No other table's. The table's own that are old enough.
    All { own: Vec<Candidate> },
}

/// What readers of the last hour may still rely on.
enum Past {
    /// The table as it was then.
    Known(Arc<TableMetadata>),
    /// Nobody can read any more how it was: a file goes once this process has itself seen it unneeded for that long.
    Unknown,
}

impl Handle {
    pub(crate) async fn remove_files(
        &self,
        settings: &MaintenanceSettings,
        report: &mut MaintenanceReport,
    ) -> Result<(), ArchiveError> {
        let mut upkeep = self.upkeep().lock().await;
        let elapsed = self.deps().clock.elapsed();
        let interval = match &upkeep.data_held_back {
            Some(_) => settings.orphan_interval.min(SEARCH_AGAIN),
            None => settings.orphan_interval,
        };
        let search_data = upkeep
            .data_searched
            .is_none_or(|last| elapsed.saturating_sub(last) >= interval);
        let table = self.load().await?;
        if let Some(reason) = self.held_back(&table) {
            report.held_back = Some(reason);
            return Ok(());
        }
        let metadata_folder = metadata_folder(&table.metadata);
        let mut listed = Vec::new();
        let mut newest = Millis(0);
        let mut listing = self.listing(&metadata_folder)?;
        while let Some(object) = listing.next().await {
            let object = object.map_err(|source| self.cannot_list(source))?;
            newest = newest.max(object.last_modified);
            listed.push(object);
        }
        // where the listing of metadata shows data, too, nothing may go before it is known what data is needed
        let search_data = search_data
            || holds_data(&table.metadata, &metadata_folder)
            || listed.iter().any(|object| is_data(&object.uri));
        // G4: the newest object bounds the store's time from below.
        let now = self.deps().clock.now().min(newest);
        let grace = settings.expired_grace.max(EXPIRED_GRACE_MIN);
        let mut needed = Needed::default();
        let past = self.past_state(&table, now, grace, &mut needed).await?;
        let state = match &past {
            Past::Known(past) => Some(&**past),
            Past::Unknown => None,
        };
        self.need(&table, state, search_data, &mut upkeep, &mut needed)
            .await?;
        if let Some(hidden) = not_shown(&table, &listed, &needed) {
            report.held_back = Some(format!(
                "the listing does not show {hidden}, which the table needs; nothing can be told to be unneeded"
            ));
            return Ok(());
        }
        let mut sorted = Sorted {
            needed: &needed,
            own: &upkeep.own,
            settings,
            now,
            due: Vec::new(),
            unknown: Vec::new(),
            waiting: (0, 0),
            shown: 0,
        };
        for object in listed {
            sorted.add(object);
        }
        if search_data {
            self.search_data(&table, &mut sorted, report).await?;
        }
        let Sorted {
            mut due,
            unknown,
            waiting,
            ..
        } = sorted;
        match self
            .judge(&table, unknown, settings, now, &mut upkeep)
            .await?
        {
            Judged::Another(reason) => {
                report.held_back = Some(reason);
                due.clear();
            }
            // what is known to be this table's own may go, whoever else may be here: so the next round has less to look at
            Judged::Partly { own, left } => {
                report.held_back = Some(format!(
                    "{left} metadata files are yet to be looked at, whether they are this table's; the next round goes on"
                ));
                due = own;
            }
            Judged::All { own } => due.extend(own),
        }
        if search_data {
            report.data_searched = true;
            upkeep.data_searched = Some(elapsed);
            upkeep.data_held_back.clone_from(&report.held_back);
        } else if report.held_back.is_none() {
            report.held_back.clone_from(&upkeep.data_held_back);
        }
        (report.files_waiting, report.bytes_waiting) = waiting;
        if matches!(past, Past::Known(_)) {
            upkeep.unneeded_since.clear();
        } else {
            let since = &mut upkeep.unneeded_since;
            if since.len() > REMEMBERED_MAX {
                since.clear();
            }
            since.retain(|key, _| !needed.keys.contains(key));
            due.retain(|candidate| {
                let seen = *since.entry(candidate.key).or_insert(elapsed);
                let is_due = elapsed.saturating_sub(seen) >= grace;
                if !is_due {
                    report.files_waiting += 1;
                    report.bytes_waiting += candidate.object.size;
                }
                is_due
            });
        }
        due.sort_by_key(|candidate| candidate.object.last_modified);
        due.truncate(DELETES_MAX);
        self.delete(&table, due, settings, &mut upkeep, report)
            .await?;
        if search_data && report.held_back.is_none() {
            self.remove_staged(&table, settings, now, report).await?;
        }
        Ok(())
    }

    /// Sorts what is in the table's data folders: those below its own location, for any other may be shared.
    async fn search_data(
        &self,
        table: &LoadedTable,
        sorted: &mut Sorted<'_>,
        report: &mut MaintenanceReport,
    ) -> Result<(), ArchiveError> {
        let metadata = &table.metadata;
        let metadata_files = metadata_folder(metadata);
        let (folders, elsewhere) = data_folders(metadata);
        if let Some(folder) = elsewhere {
            report.not_searched = Some(format!(
                "{folder} is not below the table's location {}, so other tables may have files there too",
                metadata.location()
            ));
        }
        for folder in folders {
            let before = sorted.due.len();
            sorted.shown = 0;
            let mut listing = self.listing(&folder)?;
            while let Some(object) = listing.next().await {
                let object = object.map_err(|source| self.cannot_list(source))?;
                // Sorted already, as metadata.
                if !is_below(&object.uri, &metadata_files) {
                    sorted.add(object);
                }
            }
            // Whose files these are is told by the table's own among them.
            let others = sorted.due.get(before..).unwrap_or_default();
            if sorted.shown == 0
                && let Some(reason) = whose(metadata, sorted.needed, &folder, others)
            {
                sorted.due.truncate(before);
                report.held_back = Some(reason);
            }
        }
        Ok(())
    }

    /// G5: reads the metadata files that nothing of this table leads to, so many as a round may.
    async fn judge(
        &self,
        table: &LoadedTable,
        mut unknown: Vec<StoredObject>,
        settings: &MaintenanceSettings,
        now: Millis,
        upkeep: &mut Upkeep,
    ) -> Result<Judged, ArchiveError> {
        let storage = self.store_of_files();
        let uuid = table.metadata.uuid();
        for remembered in [&mut upkeep.own, &mut upkeep.nobodys] {
            if remembered.len() > REMEMBERED_MAX {
                remembered.clear();
            }
        }
        unknown.retain(|object| !upkeep.nobodys.contains(&key_of(&object.uri)));
        let left = choose(&mut unknown, settings.judged_max);
        let mut own = Vec::new();
        let mut unknown = unknown.into_iter();
        loop {
            let slice = unknown.by_ref().take(JUDGED_AT_ONCE);
            let reads: Vec<_> = slice
                .map(|object| {
                    let storage = &storage;
                    async move { (storage.get(&object.uri).await, object) }
                })
                .collect();
            if reads.is_empty() {
                break;
            }
            let mut reads = futures::stream::iter(reads).buffered(AT_ONCE);
            while let Some((read, object)) = reads.next().await {
                let bytes = match read {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == StorageErrorKind::NotFound => continue,
                    Err(source) => return Err(self.reading(MetadataError::Storage(source))),
                };
                let another = match MetadataOwner::of(&bytes) {
                    Ok(owner) if owner.table_uuid == Some(uuid) => {
                        let candidate = Candidate::of(object);
                        upkeep.own.insert(candidate.key);
                        let is_due = is_old(&candidate.object, settings, now);
                        if is_due && own.len() < 2 * DELETES_MAX {
                            own.push(candidate);
                        }
                        continue;
                    }
                    // What a creation left behind that another won, or a table that has nothing yet: it stays.
                    Ok(owner) if owner.table_uuid.is_some() && owner.snapshots == 0 => {
                        upkeep.nobodys.insert(key_of(&object.uri));
                        continue;
                    }
                    Ok(_) => "is another table's metadata",
                    Err(_) => "cannot be read, and may be another table's metadata",
                };
                return Ok(Judged::Another(format!(
                    "{} {another}; of two tables in one folder, none can tell which files the other needs",
                    object.uri
                )));
            }
        }
        Ok(match left {
            0 => Judged::All { own },
            left => Judged::Partly { own, left },
        })
    }

    /// Removes what local writes left beside their names when they were cut off.
    async fn remove_staged(
        &self,
        table: &LoadedTable,
        settings: &MaintenanceSettings,
        now: Millis,
        report: &mut MaintenanceReport,
    ) -> Result<(), ArchiveError> {
        let age = settings.orphan_age.max(ORPHAN_AGE_MIN);
        let before = Millis(
            now.0
                .saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)),
        );
        let mut folders = data_folders(&table.metadata).0;
        folders.push(metadata_folder(&table.metadata));
        for folder in folders {
            let removed = self
                .store_of_files()
                .remove_staged(&folder, before)
                .await
                .map_err(|source| ArchiveError::Storage {
                    table: self.table().to_string(),
                    doing: "cannot remove what an interrupted write left",
                    source,
                })?;
            report.files_deleted += removed.files;
            report.bytes_deleted += removed.bytes;
        }
        Ok(())
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
    /// notes which metadata files are superseded since when.
    async fn past_state(
        &self,
        table: &LoadedTable,
        now: Millis,
        grace: Duration,
        needed: &mut Needed,
    ) -> Result<Past, ArchiveError> {
        let storage = self.store_of_files();
        let known = |past: Option<Arc<TableMetadata>>| past.map_or(Past::Unknown, Past::Known);
        let mut past: Option<Arc<TableMetadata>> = None;
        let mut reading = Arc::clone(&table.metadata);
        let mut since = Millis(table.metadata.last_updated_ms());
        // Older entries than one that is gone still tell which files are superseded.
        let mut lost = false;
        if now.since(since) >= grace {
            past = Some(Arc::clone(&reading));
        }
        for step in 0..LOGS_MAX {
            let mut oldest: Option<String> = None;
            for entry in reading.metadata_log().iter().rev() {
                let key = key_of(&entry.metadata_file);
                if step == 0 {
                    // Engines follow the log of the current metadata, so its files stay.
                    needed.add(&entry.metadata_file);
                }
                needed.superseded.entry(key).or_insert(since);
                since = Millis(entry.timestamp_ms.min(since.0));
                oldest = Some(entry.metadata_file.clone());
                if past.is_none() && !lost && now.since(since) >= grace {
                    match read_metadata(&storage, &entry.metadata_file).await {
                        Ok(found) => past = Some(Arc::new(found)),
                        Err(error) if gone(&error) => lost = true,
                        Err(error) => return Err(self.reading(error)),
                    }
                }
            }
            let Some(oldest) = oldest else {
                // The table's first metadata: there was nothing before it to need anything.
                return Ok(known(past.or((!lost).then_some(reading))));
            };
            match read_metadata(&storage, &oldest).await {
                Ok(found) => reading = Arc::new(found),
                Err(error) if gone(&error) => return Ok(known(past)),
                Err(error) => return Err(self.reading(error)),
            }
        }
        Ok(known(past))
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
        past: Option<&TableMetadata>,
        search_data: bool,
        upkeep: &mut Upkeep,
        needed: &mut Needed,
    ) -> Result<(), ArchiveError> {
        needed.add(&table.metadata_location);
        needed.witnesses.push(table.metadata_location.clone());
        need_statistics(&table.metadata, needed);
        if let Some(past) = past {
            need_statistics(past, needed);
        }
        let mut expired: Vec<SnapshotRef> = past
            .into_iter()
            .flat_map(TableMetadata::snapshots)
            .filter(|s| table.metadata.snapshot_by_id(s.snapshot_id()).is_none())
            .cloned()
            .collect();
        expired.sort_unstable_by_key(|s| s.sequence_number());
        let mut live: Vec<SnapshotRef> = table.metadata.snapshots().cloned().collect();
        // the metadata keeps them in no order; requests are made in one
        live.sort_unstable_by_key(|s| s.sequence_number());
        if Mutant::NeededByHeadOnly.is_planted() {
            live.retain(|s| Some(s.snapshot_id()) == table.metadata.current_snapshot_id());
        }
        let mut lists = BTreeMap::new();
        let mut found = self.lists(&live, true, upkeep).await?;
        found.extend(self.lists(&expired, false, upkeep).await?);
        let mut all: BTreeMap<String, ManifestFile> = BTreeMap::new();
        let head = table.metadata.current_snapshot();
        for (path, list) in found {
            needed.add(&path);
            for file in list.iter() {
                needed.add(&file.manifest_path);
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
                            needed.add(entry.file_path());
                            needed
                                .data_names
                                .insert(hash_of(name_of(entry.file_path())));
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
        let mut news: Vec<SnapshotRef> = table
            .metadata
            .snapshots()
            .filter(|s| before.metadata.snapshot_by_id(s.snapshot_id()).is_none())
            .cloned()
            .collect();
        news.sort_unstable_by_key(|s| s.sequence_number());
        let mut fresh = Vec::new();
        for (path, list) in self.lists(&news, true, upkeep).await? {
            needed.add(&path);
            for file in list.iter() {
                needed.add(&file.manifest_path);
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
        needed.add(&table.metadata_location);
        for entry in table.metadata.metadata_log() {
            needed.add(&entry.metadata_file);
        }
        let storage = self.store_of_files();
        let doomed: Vec<Candidate> = candidates
            .into_iter()
            .filter(|candidate| !needed.has(&candidate.object.uri))
            .collect();
        if settings.removal != Removal::Delete {
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
            upkeep.unneeded_since.remove(&candidate.key);
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
        .filter(|uri| is_below(uri, &folder) && !shown.contains(&key_of(uri)));
    let elsewhere = needed.witnesses.iter().all(|uri| !is_below(uri, &folder));
    hidden
        .next()
        .cloned()
        .or_else(|| elsewhere.then(|| format!("anything below {folder}")))
}

/// Leaves so many to be looked at in this round, and tells how many others there are: the newest, since a table in use shows
/// itself there at once, and the oldest, which are the ones that go.
fn choose(unknown: &mut Vec<StoredObject>, max: usize) -> usize {
    unknown.sort_by_key(|object| std::cmp::Reverse(object.last_modified));
    let left = unknown.len().saturating_sub(max);
    if left > 0 {
        let newest = max.div_ceil(2);
        unknown.drain(newest..newest + left);
    }
    left
}

impl Candidate {
    fn of(object: StoredObject) -> Self {
        let key = key_of(&object.uri);
        Self { object, key }
    }
}

/// Listed objects, told apart.
struct Sorted<'a> {
    needed: &'a Needed,
    own: &'a BTreeSet<Key>,
    settings: &'a MaintenanceSettings,
    now: Millis,
    due: Vec<Candidate>,
    /// Metadata files that nothing of this table leads to.
    unknown: Vec<StoredObject>,
    waiting: (usize, u64),
    shown: u64,
}

impl Sorted<'_> {
    fn add(&mut self, object: StoredObject) {
        if self.needed.has(&object.uri) {
            self.shown += 1;
            return;
        }
        // Files of other kinds are somebody else's.
        if !is_table_file(&object.uri) {
            return;
        }
        let candidate = Candidate::of(object);
        let key = &candidate.key;
        let is_own = self.needed.superseded.contains_key(key) || self.own.contains(key);
        if is_metadata_file(&candidate.object.uri) && !is_own {
            self.unknown.push(candidate.object);
            return;
        }
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
    is_old(&candidate.object, settings, now)
}

fn is_old(object: &StoredObject, settings: &MaintenanceSettings, now: Millis) -> bool {
    Mutant::OrphansAtOnce.is_planted()
        || now.since(object.last_modified) >= settings.orphan_age.max(ORPHAN_AGE_MIN)
}

/// The folders that are searched for data files: where they go without a setting, and where a setting sends them if that
/// is below the table's own location. Else also that place, which is not searched.
fn data_folders(metadata: &TableMetadata) -> (Vec<String>, Option<String>) {
    let location = metadata.location().trim_end_matches('/');
    let plain = format!("{location}/data");
    let configured = data_folder(metadata);
    if configured == plain || is_below(&configured, &plain) {
        (vec![plain], None)
    } else if is_below(&plain, &configured) && is_below(&configured, location) {
        (vec![configured], None)
    } else if is_below(&configured, location) {
        (vec![plain, configured], None)
    } else {
        (vec![plain], Some(configured))
    }
}

/// Why files stay that a folder shows which shows none of the table's own; none where they are known to be the table's.
///
/// The default folder of a table whose files go elsewhere by now may well hold nothing but what is left of old times.
/// Everything there is the table's own if no other table is at its location, which would show where metadata is by default
/// (G5); and none of it is needed if nothing that the table needs has such a name, in whatever folder it says that is (links,
/// hosts of two names).
fn whose(
    metadata: &TableMetadata,
    needed: &Needed,
    folder: &str,
    others: &[Candidate],
) -> Option<String> {
    let first = others.first()?;
    let known = others.iter().find(|other| {
        needed
            .data_names
            .contains(&hash_of(name_of(&other.object.uri)))
    });
    if let Some(known) = known {
        return Some(format!(
            "the table needs a file of the name of {}, and says that it is in another folder: one folder may have two names; \
             name it in the table as it is listed",
            known.object.uri
        ));
    }
    let location = metadata.location().trim_end_matches('/');
    let (searched, elsewhere) = data_folders(metadata);
    let goes_elsewhere = searched.len() > 1 || elsewhere.is_some();
    let is_left = goes_elsewhere && folder == format!("{location}/data");
    let would_show = metadata_folder(metadata) == format!("{location}/metadata");
    if is_left && would_show && !needed.data_names.is_empty() {
        return None;
    }
    Some(format!(
        "{folder} shows none of the table's data files, so that nothing tells whose the {} others are (as {}); they stay. If \
         new files go there, this ends with the next commit; else, where no other table or program keeps files there, \
         delete them by hand",
        others.len(),
        first.object.uri
    ))
}

/// The last part of a name.
fn name_of(uri: &str) -> &str {
    uri.rsplit('/').next().unwrap_or(uri)
}

/// Whether data files lie in the metadata folder or below it, by what the table says of itself
/// (`write.metadata.path` may be any folder, the table's own location as well).
fn holds_data(metadata: &TableMetadata, metadata_folder: &str) -> bool {
    let (folders, elsewhere) = data_folders(metadata);
    let plain = |folder: &str| path_of(folder).trim_end_matches('/').to_owned();
    folders
        .iter()
        .chain(&elsewhere)
        .any(|folder| plain(folder) == plain(metadata_folder) || is_below(folder, metadata_folder))
}

/// Whether a name is one of a data file (Avro is what manifests are, too).
fn is_data(uri: &str) -> bool {
    let extension = uri.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|e| e.eq_ignore_ascii_case("parquet") || e.eq_ignore_ascii_case("orc"))
}

fn need_statistics(metadata: &TableMetadata, needed: &mut Needed) {
    for file in metadata.statistics_iter() {
        needed.add(&file.statistics_path);
    }
    for file in metadata.partition_statistics_iter() {
        needed.add(&file.statistics_path);
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
    crate::catalog::parse_metadata(uri, &bytes).map_err(|source| MetadataError::Parse {
        uri: uri.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_two_names_is_needed_under_both() {
        let mut needed = Needed::default();
        needed.add("abfss://lake@acct.dfs.core.windows.net/everlog/t/data/a.parquet");
        needed.add("s3a://bucket/everlog/t/data/b.parquet");
        needed.add("file:///lake/c.parquet");
        for name in [
            "abfss://lake@acct.blob.core.windows.net/everlog/t/data/a.parquet",
            "s3://access-point-alias/everlog/t/data/b.parquet",
            "file:/lake/c.parquet",
            "/lake/c.parquet",
            "file://localhost/lake/c.parquet",
        ] {
            assert!(needed.has(name), "{name}");
        }
        assert!(!needed.has("s3://bucket/everlog/t/data/c.parquet"));
        assert!(!needed.has("file:///lake/x/c.parquet"));
    }

    #[test]
    fn a_folder_holds_what_is_below_it_and_not_what_begins_like_it() {
        assert!(is_below("s3://b/t/data/x", "s3a://b/t/"));
        assert!(!is_below("s3://b/t2/x", "s3://b/t"));
        assert!(!is_below("s3://b/t", "s3://b/t"));
    }
}
