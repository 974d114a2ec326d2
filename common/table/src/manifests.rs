//! Manifests and manifest lists: reading them, adding to them, and keeping them few.
//!
//! Every append adds one manifest. Left alone, planning would open one file per commit; so an append also merges
//! manifests, by tiers of the number of files they list: where [`MergeSettings::fan_in`] manifests of one tier have come
//! together, they become one of a higher tier. Every entry is rewritten a few times in its life, no append rewrites more
//! than one group, and the number of manifests grows with the logarithm of the number of commits, plus one for each
//! full one.
//!
//! Invariants
//! - M1 A merge keeps every live entry with its snapshot id and its sequence numbers, and nothing else: entries that are
//!   deleted are not revived (they are in the old manifests for readers of the old snapshots).
//! - M2 Manifests of different partition specs, and delete manifests, are never merged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use iceberg::io::{FileIO, FileWrite};
use iceberg::spec::{
    DataFile, FormatVersion, Manifest, ManifestContentType, ManifestEntry, ManifestFile,
    ManifestList, ManifestListWriter, ManifestStatus, ManifestWriterBuilder, PartitionSpec,
    SchemaRef, Snapshot, TableMetadata, UNASSIGNED_SEQUENCE_NUMBER,
};

use crate::commit::Totals;
use crate::sealed;
use crate::storage::{Storage, StorageError, StorageErrorKind};

/// When manifests are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeSettings {
    /// So many of one tier become one.
    pub fan_in: usize,
    /// A merged manifest is not planned to be larger.
    pub bytes_target: u64,
}

impl Default for MergeSettings {
    fn default() -> Self {
        Self {
            fan_in: 16,
            bytes_target: 8 << 20,
        }
    }
}

/// Why manifests could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The object store failed.
    #[error("{doing} {uri}")]
    Storage {
        /// The file.
        uri: String,
        /// What was to be done.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: StorageError,
    },
    /// A file that a snapshot refers to is gone.
    #[error("{uri} is missing")]
    Missing {
        /// The file.
        uri: String,
    },
    /// A file does not hold what it must.
    #[error("{uri}: {what}")]
    Corrupt {
        /// The file.
        uri: String,
        /// What is wrong.
        what: String,
        /// What was noticed first.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Iceberg refused what we were about to write: a bug, or a table that is not ours to write.
    #[error("{uri} cannot be written")]
    Refused {
        /// The file.
        uri: String,
        /// Why.
        #[source]
        source: iceberg::Error,
    },
}

impl ManifestError {
    fn storage(uri: &str, doing: &'static str, source: StorageError) -> Self {
        if doing == "read" && source.kind() == StorageErrorKind::NotFound {
            return Self::Missing {
                uri: uri.to_owned(),
            };
        }
        Self::Storage {
            uri: uri.to_owned(),
            doing,
            source,
        }
    }

    fn corrupt(uri: &str, what: impl Into<String>) -> Self {
        Self::Corrupt {
            uri: uri.to_owned(),
            what: what.into(),
            source: None,
        }
    }

    fn unreadable(uri: &str, source: iceberg::Error) -> Self {
        Self::Corrupt {
            uri: uri.to_owned(),
            what: "not readable as an Iceberg manifest".to_owned(),
            source: Some(Box::new(source)),
        }
    }
}

/// How many manifests are read at once.
const READS_AT_ONCE: usize = 12;
/// Avro of this size or more is coded on a thread of its own.
const BLOCKING_BYTES: usize = 64 << 10;
/// About how large an entry is in Avro.
const ENTRY_BYTES: usize = 512;

/// A snapshot's manifest list.
pub async fn read_list(
    storage: &Storage,
    snapshot: &Snapshot,
    version: FormatVersion,
) -> Result<Vec<ManifestFile>, ManifestError> {
    let uri = snapshot.manifest_list();
    let bytes = storage
        .get(uri)
        .await
        .map_err(|source| ManifestError::storage(uri, "read", source))?;
    intact(uri, &bytes)?;
    let size = bytes.len();
    let parse = move || ManifestList::parse_with_version(&bytes, version);
    let list = parsed(uri, size, parse).await?;
    Ok(list.consume_entries().into_iter().collect())
}

/// A manifest's entries, with what they inherit from the manifest list filled in.
pub async fn read_manifest(
    storage: &Storage,
    file: &ManifestFile,
) -> Result<Vec<ManifestEntry>, ManifestError> {
    let uri = &file.manifest_path;
    if file.key_metadata.is_some() {
        return Err(ManifestError::corrupt(
            uri,
            "it is encrypted, which everlog does not read",
        ));
    }
    let bytes = storage
        .get(uri)
        .await
        .map_err(|source| ManifestError::storage(uri, "read", source))?;
    if u64::try_from(file.manifest_length).ok() != Some(bytes.len() as u64) {
        return Err(ManifestError::corrupt(
            uri,
            format!(
                "it is {} bytes long where its manifest list says {}",
                bytes.len(),
                file.manifest_length
            ),
        ));
    }
    intact(uri, &bytes)?;
    let size = bytes.len();
    let manifest = parsed(uri, size, move || Manifest::parse_avro(&bytes)).await?;
    let (entries, _) = manifest.into_parts();
    Ok(entries
        .into_iter()
        .map(|entry| inherit(Arc::unwrap_or_clone(entry), file))
        .collect())
}

fn intact(uri: &str, bytes: &[u8]) -> Result<(), ManifestError> {
    if sealed::is_intact(uri, bytes) {
        Ok(())
    } else {
        Err(ManifestError::corrupt(uri, sealed::DAMAGED))
    }
}

/// The manifests' entries, in the order of the manifests; several are read at once.
pub async fn read_manifests(
    storage: &Storage,
    files: &[ManifestFile],
) -> Result<Vec<Vec<ManifestEntry>>, ManifestError> {
    // collected first: a closure inside the stream keeps the future from being `Send` wherever it is spawned
    let reads: Vec<_> = files
        .iter()
        .map(|file| read_manifest(storage, file))
        .collect();
    futures::stream::iter(reads)
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await
}

/// What Iceberg's specification has an entry inherit from its manifest.
fn inherit(mut entry: ManifestEntry, file: &ManifestFile) -> ManifestEntry {
    entry.snapshot_id = entry.snapshot_id.or(Some(file.added_snapshot_id));
    if entry.status == ManifestStatus::Added || file.sequence_number == 0 {
        entry.sequence_number = entry.sequence_number.or(Some(file.sequence_number));
        entry.file_sequence_number = entry.file_sequence_number.or(Some(file.sequence_number));
    }
    entry
}

/// What a snapshot holds, from its manifest list alone; none where an old engine left the counts out.
pub fn totals(list: &[ManifestFile]) -> Option<Totals> {
    let mut totals = Totals::default();
    for file in list {
        if file.content != ManifestContentType::Data {
            continue;
        }
        let files = u64::from(file.added_files_count?) + u64::from(file.existing_files_count?);
        // Of counts that cannot be right, a sum that stays at the top is as wrong as they are.
        totals.files = totals.files.saturating_add(files);
        for rows in [file.added_rows_count?, file.existing_rows_count?] {
            totals.rows = totals.rows.saturating_add(rows);
        }
    }
    Some(totals)
}

/// What a snapshot holds, by reading every manifest.
pub async fn count(storage: &Storage, list: &[ManifestFile]) -> Result<Totals, ManifestError> {
    let mut counted = Totals {
        bytes: Some(0),
        ..Totals::default()
    };
    for file in list {
        if file.content != ManifestContentType::Data {
            continue;
        }
        for entry in read_manifest(storage, file).await? {
            if entry.is_alive() {
                counted.files += 1;
                counted.rows = counted.rows.saturating_add(entry.record_count());
                let size = entry.file_size_in_bytes();
                counted.bytes = counted.bytes.map(|b| b.saturating_add(size));
            }
        }
    }
    Ok(counted)
}

/// The first delete manifest that deletes anything.
pub fn delete_manifest(list: &[ManifestFile]) -> Option<&ManifestFile> {
    list.iter().find(|file| {
        file.content == ManifestContentType::Deletes
            && (file.has_added_files() || file.has_existing_files())
    })
}

/// Whether anything in a manifest is alive.
pub fn has_live_files(file: &ManifestFile) -> bool {
    file.has_added_files() || file.has_existing_files()
}

/// Which manifests, by their place in the list, the next commit makes one of; none, or two and more.
pub fn plan_merge(list: &[ManifestFile], settings: MergeSettings) -> Vec<usize> {
    let fan_in = settings.fan_in.max(2);
    let bytes = |file: &ManifestFile| u64::try_from(file.manifest_length).unwrap_or(u64::MAX);
    let mut tiers: BTreeMap<(u32, i32), Vec<usize>> = BTreeMap::new();
    for (place, file) in list.iter().enumerate() {
        let counts = (file.added_files_count, file.existing_files_count);
        let (Some(added), Some(existing)) = counts else {
            continue;
        };
        let full = bytes(file) > settings.bytes_target / 2;
        if file.content != ManifestContentType::Data || full || file.key_metadata.is_some() {
            continue;
        }
        let files = added.saturating_add(existing).max(1);
        let base = u32::try_from(fan_in).unwrap_or(u32::MAX);
        let tier = files.checked_ilog(base).unwrap_or(0);
        tiers
            .entry((tier, file.partition_spec_id))
            .or_default()
            .push(place);
    }
    // Lowest tier first: it is the cheapest, and fills the higher ones.
    let Some((_, mut group)) = tiers.into_iter().find(|(_, group)| group.len() >= fan_in) else {
        return Vec::new();
    };
    let mut sum = 0_u64;
    group.retain(|place| {
        let size = list.get(*place).map_or(u64::MAX, bytes);
        sum = sum.saturating_add(size);
        sum <= settings.bytes_target
    });
    if group.len() < 2 {
        group.clear();
    }
    group
}

/// What is the same for all manifests of one commit.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The table, as the commit's parent has it.
    pub metadata: &'a TableMetadata,
    /// Where the files go.
    pub storage: &'a Storage,
    /// The snapshot to be.
    pub snapshot_id: i64,
}

impl Target<'_> {
    fn spec(&self, id: i32, uri: &str) -> Result<PartitionSpec, ManifestError> {
        self.metadata
            .partition_spec_by_id(id)
            .map(|spec| (**spec).clone())
            .ok_or_else(|| {
                ManifestError::corrupt(uri, format!("the table has no partition spec {id}"))
            })
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(self.metadata.current_schema())
    }

    /// Stores the manifests of a commit's new files, which come with their partition specs, one for each spec. `prefix` is
    /// what their names begin with.
    pub(crate) async fn add_all(
        &self,
        prefix: &str,
        files: impl IntoIterator<Item = (i32, DataFile)>,
    ) -> Result<Vec<ManifestFile>, ManifestError> {
        let mut by_spec: BTreeMap<i32, Vec<DataFile>> = BTreeMap::new();
        for (spec, file) in files {
            by_spec.entry(spec).or_default().push(file);
        }
        let mut added = Vec::with_capacity(by_spec.len());
        for (spec, files) in by_spec {
            added.push(self.add(&format!("{prefix}-a{spec}"), spec, files).await?);
        }
        Ok(added)
    }

    /// What is left of the parent's manifests: a group that is due is merged into one, in the place of its first, and manifests
    /// without live files are left out.
    pub(crate) async fn merge_due(
        &self,
        prefix: &str,
        mut old: Vec<ManifestFile>,
        settings: MergeSettings,
    ) -> Result<Vec<ManifestFile>, ManifestError> {
        let group = plan_merge(&old, settings);
        if let Some(first) = group.first() {
            let merged: Vec<ManifestFile> = group
                .iter()
                .filter_map(|place| old.get(*place).cloned())
                .collect();
            let spec = merged.first().map_or(0, |file| file.partition_spec_id);
            let file = self.merge(&format!("{prefix}-m"), spec, &merged).await?;
            if let Some(slot) = old.get_mut(*first) {
                *slot = file;
            }
            let mut place = 0;
            old.retain(|_| {
                let keep = place == *first || !group.contains(&place);
                place += 1;
                keep
            });
            fail::fail_point!("commit::after_merge");
        }
        old.retain(has_live_files);
        Ok(old)
    }

    /// Stores the manifest of a commit's new files. `stem` is its name without the checksum and the extension.
    pub(crate) async fn add(
        &self,
        stem: &str,
        spec_id: i32,
        files: Vec<DataFile>,
    ) -> Result<ManifestFile, ManifestError> {
        let spec = self.spec(spec_id, stem)?;
        let count = files.len();
        let coded = code_manifest(
            count,
            self.snapshot_id,
            self.schema(),
            spec,
            move |writer| {
                for file in files {
                    writer.add_file(file, UNASSIGNED_SEQUENCE_NUMBER)?;
                }
                Ok(())
            },
        );
        self.store(stem, coded.await).await
    }

    /// Stores one manifest of the live entries of several (M1), named as by [`Self::add`].
    async fn merge(
        &self,
        stem: &str,
        spec_id: i32,
        manifests: &[ManifestFile],
    ) -> Result<ManifestFile, ManifestError> {
        let spec = self.spec(spec_id, stem)?;
        let mut live = Vec::new();
        for entries in read_manifests(self.storage, manifests).await? {
            live.extend(entries.into_iter().filter(ManifestEntry::is_alive));
        }
        for entry in &live {
            let known = entry.snapshot_id.is_some()
                && entry.sequence_number.is_some()
                && entry.file_sequence_number.is_some();
            if !known {
                return Err(ManifestError::corrupt(
                    entry.file_path(),
                    "its manifest entry has no sequence number",
                ));
            }
        }
        let expected: u64 = manifests
            .iter()
            .flat_map(|m| [m.added_rows_count, m.existing_rows_count])
            .fold(0, |sum, rows| sum.saturating_add(rows.unwrap_or(0)));
        let found = live
            .iter()
            .map(ManifestEntry::record_count)
            .fold(0, u64::saturating_add);
        if expected != found {
            return Err(ManifestError::corrupt(
                stem,
                format!(
                    "manifests to merge list {found} rows where the manifest list says {expected}"
                ),
            ));
        }
        let count = live.len();
        let coded = code_manifest(
            count,
            self.snapshot_id,
            self.schema(),
            spec,
            move |writer| {
                for entry in live {
                    writer.add_existing_file(
                        entry.data_file,
                        entry.snapshot_id.unwrap_or_default(),
                        entry.sequence_number.unwrap_or_default(),
                        entry.file_sequence_number,
                    )?;
                }
                Ok(())
            },
        );
        self.store(stem, coded.await).await
    }

    /// Stores the manifest list, named as by [`Self::add`]; gives its name, and its entries as a reader is going to see them.
    pub async fn list(
        &self,
        stem: &str,
        parent: Option<i64>,
        mut list: Vec<ManifestFile>,
    ) -> Result<(String, Vec<ManifestFile>), ManifestError> {
        let sequence_number = self.metadata.next_sequence_number();
        for file in &mut list {
            if file.sequence_number == UNASSIGNED_SEQUENCE_NUMBER {
                file.sequence_number = sequence_number;
            }
            if file.min_sequence_number == UNASSIGNED_SEQUENCE_NUMBER {
                file.min_sequence_number = sequence_number;
            }
        }
        let buffer = Buffer::default();
        let coded = async {
            let written = Box::new(buffer.clone());
            let mut writer =
                ManifestListWriter::v2(written, self.snapshot_id, parent, sequence_number);
            writer.add_manifests(list.iter().cloned())?;
            writer.close().await
        };
        coded.await.map_err(|source| ManifestError::Refused {
            uri: stem.to_owned(),
            source,
        })?;
        let bytes = buffer.take();
        let uri = sealed::avro_name(stem, &bytes);
        self.put(&uri, bytes).await?;
        Ok((uri, list))
    }

    async fn store(
        &self,
        stem: &str,
        coded: iceberg::Result<(ManifestFile, Bytes)>,
    ) -> Result<ManifestFile, ManifestError> {
        let (mut file, bytes) = coded.map_err(|source| ManifestError::Refused {
            uri: stem.to_owned(),
            source,
        })?;
        file.manifest_path = sealed::avro_name(stem, &bytes);
        self.put(&file.manifest_path, bytes).await?;
        Ok(file)
    }

    async fn put(&self, uri: &str, bytes: Bytes) -> Result<(), ManifestError> {
        self.storage
            .put(uri, bytes)
            .await
            .map_err(|source| ManifestError::storage(uri, "write", source))
    }
}

/// Codes a manifest. Iceberg's writer writes to a file of its own kind; here that is memory, so that storing it is ours,
/// with our errors.
async fn code_manifest(
    entries: usize,
    snapshot_id: i64,
    schema: SchemaRef,
    spec: PartitionSpec,
    fill: impl FnOnce(&mut iceberg::spec::ManifestWriter) -> iceberg::Result<()> + Send + 'static,
) -> iceberg::Result<(ManifestFile, Bytes)> {
    const NAME: &str = "memory:///manifest.avro";
    let code = move || {
        futures::executor::block_on(async move {
            let memory = FileIO::new_with_memory();
            let output = memory.new_output(NAME)?;
            let mut writer =
                ManifestWriterBuilder::new(output, Some(snapshot_id), schema, spec).build_v2_data();
            fill(&mut writer)?;
            let file = writer.write_manifest_file().await?;
            let bytes = memory.new_input(NAME)?.read().await?;
            Ok((file, bytes))
        })
    };
    blocking(entries.saturating_mul(ENTRY_BYTES), code).await
}

/// Runs a parser over bytes that anybody may have written: that it panics on some is no reason to end, but damage.
async fn parsed<T: Send + 'static>(
    uri: &str,
    bytes: usize,
    parse: impl FnOnce() -> iceberg::Result<T> + Send + 'static,
) -> Result<T, ManifestError> {
    // Whatever a panic leaves half done is dropped with it: the parser owns all that it touches.
    let guarded = move || std::panic::catch_unwind(std::panic::AssertUnwindSafe(parse));
    match blocking(bytes, guarded).await {
        Ok(Ok(parsed)) => Ok(parsed),
        Ok(Err(source)) => Err(ManifestError::unreadable(uri, source)),
        Err(_) => Err(ManifestError::corrupt(
            uri,
            "not readable as an Iceberg manifest: its parser met what it does not expect",
        )),
    }
}

/// Runs what may take long for an async task on a thread of its own.
async fn blocking<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes < BLOCKING_BYTES {
        return work();
    }
    match everlog_common::compute::spawn(work).await {
        Ok(done) => done,
        // The work cannot be cancelled, so its panic is the only way here, and goes on in us.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[derive(Debug, Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn take(&self) -> Bytes {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Bytes::from(std::mem::take(&mut *held))
    }
}

#[async_trait]
impl FileWrite for Buffer {
    async fn write(&mut self, bytes: Bytes) -> iceberg::Result<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.extend_from_slice(&bytes);
        Ok(())
    }

    async fn close(&mut self) -> iceberg::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(files: u32, bytes: i64) -> ManifestFile {
        ManifestFile {
            manifest_path: String::new(),
            manifest_length: bytes,
            partition_spec_id: 0,
            content: ManifestContentType::Data,
            sequence_number: 1,
            min_sequence_number: 1,
            added_snapshot_id: 1,
            added_files_count: Some(files),
            existing_files_count: Some(0),
            deleted_files_count: Some(0),
            added_rows_count: Some(u64::from(files)),
            existing_rows_count: Some(0),
            deleted_rows_count: Some(0),
            partitions: None,
            key_metadata: None,
            first_row_id: None,
        }
    }

    /// Commits with a merge where one is planned; gives the number of entries rewritten.
    fn commit(list: &mut Vec<ManifestFile>, files: u32, settings: MergeSettings) -> u64 {
        let group = plan_merge(list, settings);
        let mut rewritten = 0;
        if !group.is_empty() {
            let bytes: i64 = group.iter().map(|i| list[*i].manifest_length - 6_000).sum();
            let entries: u32 = group
                .iter()
                .filter_map(|i| list[*i].added_files_count)
                .sum();
            rewritten = u64::from(entries);
            let mut place = 0;
            list.retain(|_| {
                place += 1;
                !group.contains(&(place - 1))
            });
            list.push(manifest(entries, bytes + 6_000));
        }
        list.insert(0, manifest(files, 6_000 + 500 * i64::from(files)));
        rewritten
    }

    #[test]
    fn manifests_stay_few_and_entries_are_rarely_rewritten() {
        let settings = MergeSettings::default();
        let (mut list, mut most, mut rewritten) = (Vec::new(), 0, 0);
        for _ in 0..100_000 {
            rewritten += commit(&mut list, 1, settings);
            most = most.max(list.len());
        }
        assert!(most <= 75, "{most} manifests at most in 100,000 commits");
        assert!(rewritten <= 100_000 * 5, "{rewritten} entries rewritten");
        let files: u32 = list.iter().filter_map(|m| m.added_files_count).sum();
        assert_eq!(files, 100_000);
    }

    #[test]
    fn other_specs_deletes_and_unknown_counts_are_left_alone() {
        let settings = MergeSettings::default();
        let mut list: Vec<ManifestFile> = (0..15).map(|_| manifest(1, 100)).collect();
        let mut other = manifest(1, 100);
        other.partition_spec_id = 1;
        list.push(other);
        let mut deletes = manifest(1, 100);
        deletes.content = ManifestContentType::Deletes;
        list.push(deletes);
        let mut unknown = manifest(1, 100);
        unknown.existing_files_count = None;
        list.push(unknown);
        assert!(plan_merge(&list, settings).is_empty());
        list.push(manifest(1, 100));
        assert_eq!(plan_merge(&list, settings).len(), 16);
    }

    proptest! {
        #[test]
        fn a_planned_group_is_small_enough_and_of_one_kind(
            sizes in prop::collection::vec((1_u32..5000, 100_i64..9_000_000), 0..80),
        ) {
            let list: Vec<ManifestFile> = sizes.iter().map(|(f, b)| manifest(*f, *b)).collect();
            let settings = MergeSettings::default();
            let group = plan_merge(&list, settings);
            prop_assert!(group.len() != 1);
            let bytes: i64 = group.iter().map(|i| list[*i].manifest_length).sum();
            prop_assert!(bytes.unsigned_abs() <= settings.bytes_target);
            prop_assert!(group.is_sorted());
        }
    }
}
