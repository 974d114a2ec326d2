//! A table, a clock and faults, and the checks that every state must pass.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use everlog_common::clock::{ManualClock, RandomIds, SeededIds, SystemClock};
use everlog_common::{
    Advance, Clock, Entry, EventColumnsBuilder, EventRef, Generation, Identity, Ids, Ledger,
    Millis, Offset, OffsetRange, Partition, Segment, TimestampType, TopicName,
};
use everlog_table::archive::{
    AppendRequest, Archive, ArchiveDeps, ArchiveError, ArchiveOptions, CommitOutcome,
};
use everlog_table::catalog::memory::MemoryCatalog;
use everlog_table::catalog::{Catalog, CommitReply, LoadedTable};
use everlog_table::files::{EncodedFile, FileRange, PartitionRows};
use everlog_table::manifests;
use everlog_table::schema::{Column, TableSettings};
use everlog_table::writer::{FILE_BYTES_TARGET, SpareThreads, WriteRequest, write_files};
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, Literal, MAIN_BRANCH,
    ManifestEntry, ManifestFile, ManifestWriterBuilder, Operation, Snapshot, SnapshotReference,
    SnapshotRetention, Struct, Summary, TableMetadata,
};
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use object_store::local::LocalFileSystem;

pub const NAMESPACE: &str = "everlog";
pub const WAREHOUSE: &str = "lake://warehouse";

/// The topic that all tests archive.
pub fn topic() -> TopicName {
    TopicName::new("orders").expect("a topic name")
}

pub fn partition(number: i32) -> Partition {
    Partition::new(number).expect("a partition")
}

pub fn offset(number: i64) -> Offset {
    Offset::new(number).expect("an offset")
}

/// A catalog, a store with files whose age can be set, a clock that stands still unless moved.
pub struct Rig {
    pub clock: Arc<ManualClock>,
    pub ids: Arc<SeededIds>,
    pub catalog: Arc<dyn Catalog>,
    pub memory: Arc<MemoryCatalog>,
    pub folder: tempfile::TempDir,
    files: AtomicU64,
}

impl Rig {
    pub fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Iceberg checks metadata against the machine's time, so ours runs in its past.
        let past = SystemClock::default().now().0 - 30 * 86_400_000;
        let clock = Arc::new(ManualClock::at(Millis(past)));
        let ids = Arc::new(SeededIds::new(seed));
        let store = LocalFileSystem::new_with_prefix(folder.path()).expect("a store");
        let memory = Arc::new(MemoryCatalog::new(
            Arc::new(store),
            WAREHOUSE,
            Arc::clone(&clock) as _,
            Arc::clone(&ids) as _,
        ));
        Self {
            clock,
            ids,
            catalog: Arc::clone(&memory) as _,
            memory,
            folder,
            files: AtomicU64::new(0),
        }
    }

    pub fn deps(&self) -> ArchiveDeps {
        ArchiveDeps {
            catalog: Arc::clone(&self.catalog),
            clock: Arc::clone(&self.clock) as _,
            ids: Arc::clone(&self.ids) as _,
        }
    }

    /// A process of its own: nothing shared but the table.
    pub async fn process(&self) -> Archive {
        Archive::open_or_create(self.deps(), NAMESPACE, &topic(), &TableSettings::default())
            .await
            .expect("an archive")
    }

    pub async fn process_with(&self, options: ArchiveOptions) -> Archive {
        self.process().await.with_options(options)
    }

    pub fn ident(&self) -> TableIdent {
        TableIdent::from_strs([NAMESPACE, "orders"]).expect("a name")
    }

    pub async fn load(&self) -> LoadedTable {
        let loaded = self.catalog.load(&self.ident()).await.expect("a catalog");
        loaded.expect("a table")
    }

    pub fn clock_now(&self) -> i64 {
        self.clock.now().0
    }

    /// Adds rows per partition to what a ledger holds, in one file.
    pub async fn request(&self, ledger: &Ledger, rows: &[(i32, u64)]) -> AppendRequest {
        let advances: Vec<Advance> = rows
            .iter()
            .map(|(number, count)| self.advance(ledger, *number, *count))
            .collect();
        self.request_of(advances).await
    }

    pub fn advance(&self, ledger: &Ledger, number: i32, rows: u64) -> Advance {
        let base: Option<Entry> = ledger.entry(Generation::FIRST, partition(number)).copied();
        let start = base.map_or(Offset::ZERO, |entry| entry.next);
        // One offset more than rows: a control record ends every advance.
        let end = offset(start.get() + i64::try_from(rows).expect("few") + 1);
        Advance {
            generation: Generation::FIRST,
            identity: Identity::default(),
            partition: partition(number),
            base,
            segments: vec![Segment::Data {
                range: OffsetRange::new(start, end).expect("a range"),
                rows,
            }],
            leader_epoch: None,
            hash: if rows == 0 {
                base.map_or(0, |entry| entry.hash)
            } else {
                self.ids.below(u64::MAX)
            },
        }
    }

    pub async fn request_of(&self, advances: Vec<Advance>) -> AppendRequest {
        let ranges: Vec<FileRange> = advances
            .iter()
            .filter(|advance| advance.rows() > 0)
            .map(|advance| FileRange {
                generation: advance.generation,
                partition: advance.partition,
                range: OffsetRange::new(
                    advance.start().expect("segments"),
                    advance.end().expect("segments"),
                )
                .expect("a range"),
                rows: advance.rows(),
            })
            .collect();
        let files = if ranges.is_empty() {
            Vec::new()
        } else {
            vec![self.file(ranges).await]
        };
        AppendRequest {
            advances,
            files,
            archived_at: self.clock.now(),
            reference_time: None,
        }
    }

    /// A stored file. Its content is of no interest here, its manifest entry is.
    pub async fn file(&self, ranges: Vec<FileRange>) -> EncodedFile {
        let number = self.files.fetch_add(1, Ordering::SeqCst);
        let table = self.load().await;
        let path = format!("{}/data/{number:05}.parquet", table.metadata.location());
        self.file_at(&path, ranges).await
    }

    /// The same under a name.
    pub async fn file_at(&self, path: &str, ranges: Vec<FileRange>) -> EncodedFile {
        let table = self.load().await;
        let storage = self.catalog.storage_for(&table).expect("a storage");
        let bytes = Bytes::from(format!("rows of file {path}"));
        let size = bytes.len() as u64;
        storage.put(path, bytes).await.expect("stored");
        EncodedFile {
            data_file: data_file(path, size, &ranges, self.clock.now()),
            partition_spec_id: table.metadata.default_partition_spec_id(),
            rows: ranges.iter().map(|range| range.rows).sum(),
            bytes: size,
            ranges,
        }
    }

    /// Appends rows, expecting success.
    pub async fn append(&self, archive: &Archive, rows: &[(i32, u64)]) -> Ledger {
        let ledger = archive.state().await.expect("a state").ledger;
        let request = self.request(&ledger, rows).await;
        committed(archive.append(request).await)
    }

    /// Sets every file's time that lies ahead of the clock to the clock's: the store's time is the clock's.
    pub fn stamp_files(&self) {
        let now = u64::try_from(self.clock.now().0).expect("after 1970");
        let now = UNIX_EPOCH + Duration::from_millis(now);
        for path in walk(self.folder.path()) {
            let file = std::fs::File::options()
                .write(true)
                .open(&path)
                .expect("open");
            let modified = file.metadata().and_then(|m| m.modified()).expect("time");
            if modified > now {
                file.set_modified(now).expect("set time");
            }
        }
    }

    /// Every object in the store.
    pub fn objects(&self) -> BTreeSet<String> {
        walk(self.folder.path())
            .into_iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    /// Commits a snapshot as another engine would: no word of everlog in it.
    pub async fn foreign(&self, change: Foreign) -> i64 {
        let table = self.load().await;
        let metadata = &table.metadata;
        let storage = self.catalog.storage_for(&table).expect("a storage");
        let snapshot_id = self.ids.snapshot_id();
        let parent = metadata.current_snapshot();
        let mut list: Vec<ManifestFile> = Vec::new();
        if let Some(parent) = parent {
            list = manifests::read_list(&storage, parent, metadata.format_version())
                .await
                .expect("a list");
        }
        let mut live: Vec<ManifestEntry> = Vec::new();
        for file in &list {
            let entries = manifests::read_manifest(&storage, file)
                .await
                .expect("a manifest");
            live.extend(entries.into_iter().filter(ManifestEntry::is_alive));
        }
        let path = |name: &str| {
            format!(
                "{}/metadata/foreign-{snapshot_id}-{name}",
                metadata.location()
            )
        };
        let (mut added, mut removed): (Vec<DataFile>, Vec<ManifestEntry>) =
            (Vec::new(), Vec::new());
        match change.operation {
            Operation::Append => added.push(change.file(self, &table, change.rows).await),
            Operation::Delete => removed.extend(live.first().cloned()),
            Operation::Replace | Operation::Overwrite => {
                let rows: u64 = live.iter().map(ManifestEntry::record_count).sum();
                added.push(change.file(self, &table, rows - change.rows).await);
                removed = std::mem::take(&mut live);
            }
        }
        let gone: BTreeSet<String> = removed.iter().map(|e| e.file_path().to_owned()).collect();
        if !gone.is_empty() {
            list.clear();
        }
        let output = storage
            .file_io()
            .new_output(path("m0.avro"))
            .expect("output");
        let spec = (**metadata.default_partition_spec()).clone();
        let schema = Arc::clone(metadata.current_schema());
        let mut writer =
            ManifestWriterBuilder::new(output, Some(snapshot_id), schema, spec).build_v2_data();
        for file in added {
            writer.add_file(file, -1).expect("added");
        }
        for entry in removed {
            writer
                .add_delete_file(
                    entry.data_file.clone(),
                    entry.sequence_number.expect("known"),
                    entry.file_sequence_number,
                )
                .expect("removed");
        }
        if !gone.is_empty() {
            for entry in live.into_iter().filter(|e| !gone.contains(e.file_path())) {
                writer
                    .add_existing_file(
                        entry.data_file.clone(),
                        entry.snapshot_id.expect("known"),
                        entry.sequence_number.expect("known"),
                        entry.file_sequence_number,
                    )
                    .expect("kept");
            }
        }
        list.insert(0, writer.write_manifest_file().await.expect("written"));
        let target = manifests::Target {
            metadata,
            storage: &storage,
            snapshot_id,
        };
        let parent_id = metadata.current_snapshot_id();
        let (list_path, list) = target
            .list(&path("list"), parent_id, list)
            .await
            .expect("written");
        let totals = manifests::totals(&list).expect("counts");
        let mut properties = HashMap::new();
        if change.tells_totals {
            properties.insert("total-records".to_owned(), totals.rows.to_string());
        }
        let snapshot = Snapshot::builder()
            .with_snapshot_id(snapshot_id)
            .with_parent_snapshot_id(parent_id)
            .with_sequence_number(metadata.next_sequence_number())
            .with_timestamp_ms(self.clock.now().0.max(metadata.last_updated_ms()))
            .with_manifest_list(list_path)
            .with_summary(Summary {
                operation: change.operation,
                additional_properties: properties,
            })
            .with_schema_id(metadata.current_schema_id())
            .build();
        let updates = vec![TableUpdate::AddSnapshot { snapshot }, set_main(snapshot_id)];
        self.commit(&table, vec![], updates).await;
        snapshot_id
    }

    /// What another engine's statement does.
    pub async fn commit(
        &self,
        table: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) {
        let key = self.ids.uuid();
        let reply = self.catalog.commit(table, requirements, updates, key).await;
        assert!(matches!(reply, CommitReply::Committed(_)), "{reply:?}");
    }

    /// Moves main, as an operator's rollback does.
    pub async fn set_main_to(&self, snapshot_id: i64) {
        let table = self.load().await;
        self.commit(&table, vec![], vec![set_main(snapshot_id)])
            .await;
    }

    /// Points a tag at a snapshot.
    pub async fn tag(&self, name: &str, snapshot_id: i64) {
        let table = self.load().await;
        let reference = SnapshotReference::new(
            snapshot_id,
            SnapshotRetention::Tag {
                max_ref_age_ms: None,
            },
        );
        let updates = vec![TableUpdate::SetSnapshotRef {
            ref_name: name.to_owned(),
            reference,
        }];
        self.commit(&table, vec![], updates).await;
    }

    pub async fn expire(&self, snapshot_ids: Vec<i64>) {
        let table = self.load().await;
        let updates = vec![TableUpdate::RemoveSnapshots { snapshot_ids }];
        self.commit(&table, vec![], updates).await;
    }

    /// The live rows per (generation, partition) range: what a reader of a snapshot would get.
    pub async fn rows_of(&self, table: &LoadedTable, snapshot_id: i64) -> Vec<DataFile> {
        let storage = self.catalog.storage_for(table).expect("a storage");
        let snapshot = table
            .metadata
            .snapshot_by_id(snapshot_id)
            .expect("a snapshot");
        let list = manifests::read_list(&storage, snapshot, table.metadata.format_version())
            .await
            .expect("a list");
        let mut files = Vec::new();
        for file in &list {
            for entry in manifests::read_manifest(&storage, file)
                .await
                .expect("a manifest")
            {
                if entry.is_alive() {
                    assert!(entry.sequence_number().is_some_and(|n| n > 0));
                    files.push(entry.data_file().clone());
                }
            }
        }
        files
    }

    /// R5, R6 at every snapshot that is there: rows count what the ledger counts, no file twice, every file stored.
    pub async fn check(&self) {
        let table = self.load().await;
        let storage = self.catalog.storage_for(&table).expect("a storage");
        for snapshot in table.metadata.snapshots() {
            let id = snapshot.snapshot_id();
            assert!(
                storage
                    .exists(snapshot.manifest_list())
                    .await
                    .expect("store")
            );
            let files = self.rows_of(&table, id).await;
            let mut paths = BTreeSet::new();
            let mut rows = 0;
            for file in &files {
                assert!(
                    paths.insert(file.file_path().to_owned()),
                    "{} twice",
                    file.file_path()
                );
                assert!(storage.exists(file.file_path()).await.expect("store"));
                rows += file.record_count();
            }
            let summary = &snapshot.summary().additional_properties;
            if let Some(text) = summary.get("everlog.ledger") {
                let ledger = Ledger::decode(text).expect("a ledger");
                assert_eq!(ledger.rows(), rows, "ledger and files of snapshot {id}");
                assert_eq!(summary.get("total-records"), Some(&rows.to_string()));
                assert_eq!(
                    summary.get("total-data-files"),
                    Some(&files.len().to_string())
                );
            }
        }
    }
}

/// What another engine does to the table.
#[derive(Debug, Clone)]
pub struct Foreign {
    pub operation: Operation,
    /// Append: so many new rows. Replace and overwrite: so many rows are lost on the way.
    pub rows: u64,
    /// Whether its summary has `total-records`.
    pub tells_totals: bool,
    /// What its new file holds; something that nobody can read, where none.
    pub content: Option<Bytes>,
}

impl Foreign {
    pub fn of(operation: Operation, rows: u64) -> Self {
        Self {
            operation,
            rows,
            tells_totals: true,
            content: None,
        }
    }

    async fn file(&self, rig: &Rig, table: &LoadedTable, rows: u64) -> DataFile {
        let path = format!(
            "{}/data/foreign-{}.parquet",
            table.metadata.location(),
            rig.ids.uuid()
        );
        let storage = rig.catalog.storage_for(table).expect("a storage");
        let content = self.content.clone();
        let content = content.unwrap_or_else(|| Bytes::from_static(b"foreign"));
        let size = content.len() as u64;
        storage.put(&path, content).await.expect("stored");
        let some = FileRange {
            generation: Generation::FIRST,
            partition: partition(0),
            range: OffsetRange::new(Offset::ZERO, offset(1)).expect("a range"),
            rows,
        };
        let bare = data_file(&path, size, &[some], rig.clock.now());
        DataFileBuilder::default()
            .content(bare.content_type())
            .file_path(path)
            .file_format(bare.file_format())
            .partition(bare.partition().clone())
            .record_count(rows)
            .file_size_in_bytes(size)
            .build()
            .expect("a data file")
    }
}

pub fn set_main(snapshot_id: i64) -> TableUpdate {
    TableUpdate::SetSnapshotRef {
        ref_name: MAIN_BRANCH.to_owned(),
        reference: SnapshotReference::new(
            snapshot_id,
            SnapshotRetention::Branch {
                min_snapshots_to_keep: None,
                max_snapshot_age_ms: None,
                max_ref_age_ms: None,
            },
        ),
    }
}

fn data_file(path: &str, size: u64, ranges: &[FileRange], at: Millis) -> DataFile {
    let rows: u64 = ranges.iter().map(|range| range.rows).sum();
    let numbers = |f: &dyn Fn(&FileRange) -> i64| -> (i64, i64) {
        let all: Vec<i64> = ranges.iter().map(f).collect();
        let least = *all.iter().min().expect("ranges");
        (least, *all.iter().max().expect("ranges"))
    };
    let int = |n: i64| Datum::int(i32::try_from(n).expect("small"));
    let generation = numbers(&|r| i64::from(r.generation.0));
    let part = numbers(&|r| i64::from(r.partition.get()));
    let first = numbers(&|r| r.range.start().get()).0;
    let last = numbers(&|r| r.range.start().get() + i64::try_from(r.rows).expect("few") - 1).1;
    let lower = HashMap::from([
        (Column::Generation.id(), int(generation.0)),
        (Column::Partition.id(), int(part.0)),
        (Column::Offset.id(), Datum::long(first)),
    ]);
    let upper = HashMap::from([
        (Column::Generation.id(), int(generation.1)),
        (Column::Partition.id(), int(part.1)),
        (Column::Offset.id(), Datum::long(last)),
    ]);
    let day = i32::try_from(at.0.div_euclid(86_400_000)).expect("a day");
    DataFileBuilder::default()
        .content(DataContentType::Data)
        .file_path(path.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::from_iter([Some(Literal::date(day))]))
        .record_count(rows)
        .file_size_in_bytes(size)
        .lower_bounds(lower)
        .upper_bounds(upper)
        .build()
        .expect("a data file")
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The ledger of a commit that must have succeeded.
pub fn committed(outcome: Result<CommitOutcome, ArchiveError>) -> Ledger {
    match outcome {
        Ok(CommitOutcome::Committed { ledger, .. }) => ledger,
        other => panic!("expected a commit, got {other:?}"),
    }
}

pub fn main_history(metadata: &TableMetadata) -> Vec<i64> {
    everlog_table::summary::ancestry(metadata, metadata.current_snapshot_id())
        .map(|s| s.snapshot_id())
        .collect()
}

/// Rows per partition, by the ledger.
pub fn rows(ledger: &Ledger) -> BTreeMap<i32, u64> {
    ledger
        .generations
        .values()
        .flat_map(|era| era.partitions.iter())
        .map(|(p, entry)| (p.get(), entry.rows))
        .collect()
}

/// Real rows in a real file.
pub async fn written(
    archive: &Archive,
    ledger: &Ledger,
    number: i32,
    count: i64,
    clock: &dyn Clock,
) -> AppendRequest {
    let base: Option<Entry> = ledger.entry(Generation::FIRST, partition(number)).copied();
    let start = base.map_or(Offset::ZERO, |entry| entry.next);
    let range = OffsetRange::new(start, offset(start.get() + count)).expect("a range");
    let mut builder = EventColumnsBuilder::new();
    for i in 0..count {
        let value = format!("value {}", start.get() + i).into_bytes();
        builder.push_event(&EventRef {
            offset: offset(start.get() + i),
            timestamp_ms: 1_700_000_000_000 + i,
            timestamp_type: TimestampType::Create,
            key: None,
            value: Some(&value),
            headers: Vec::new(),
            leader_epoch: None,
        });
    }
    let state = archive.state().await.expect("a state");
    let files = write_files(
        WriteRequest {
            table: &state.table,
            storage: archive.storage().await.expect("a store"),
            topic: archive.topic().clone(),
            archived_at: clock.now(),
            rows: vec![PartitionRows {
                generation: Generation::FIRST,
                partition: partition(number),
                range,
                batches: vec![builder.finish()],
            }],
            file_bytes_target: FILE_BYTES_TARGET,
            spare: SpareThreads::none(),
        },
        &RandomIds,
    )
    .await
    .expect("files");
    let advance = Advance {
        generation: Generation::FIRST,
        identity: Identity::default(),
        partition: partition(number),
        base,
        segments: vec![Segment::Data {
            range,
            rows: count.unsigned_abs(),
        }],
        leader_epoch: None,
        hash: RandomIds.below(u64::MAX),
    };
    AppendRequest {
        advances: vec![advance],
        files,
        archived_at: clock.now(),
        reference_time: Some(clock.now()),
    }
}
