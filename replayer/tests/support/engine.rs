//! What other engines do to a table: snapshots without a word of everlog in them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use everlog_common::{EventColumns, Generation, Ids, OffsetRange, Partition, TopicName};
use everlog_replayer::{EventStream, ReplayRequest, Until};
use everlog_table::catalog::{CommitReply, LoadedTable};
use everlog_table::files::PartitionRows;
use everlog_table::manifests;
use everlog_table::snapshot::{LeaseMode, PinnedSnapshot, SnapshotSelector};
use everlog_table::storage::Storage;
use everlog_table::writer::{SpareThreads, WriteRequest, write_files};
use iceberg::TableUpdate;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, MAIN_BRANCH, ManifestEntry,
    ManifestFile, ManifestWriterBuilder, Operation, Snapshot, SnapshotReference, SnapshotRetention,
    Summary,
};

use super::World;

impl World {
    /// The head of main, without a lease.
    pub async fn head(&self, name: &TopicName) -> PinnedSnapshot {
        let archive = self.archive(name).await;
        let head = archive.pin(&SnapshotSelector::Current, LeaseMode::Off);
        head.await.unwrap()
    }

    /// The object store.
    pub async fn storage(&self, name: &TopicName) -> Storage {
        self.archive(name).await.storage().await.unwrap()
    }

    /// The live data files, as manifests have them, oldest first.
    pub async fn data_files(&self, name: &TopicName) -> Vec<DataFile> {
        let state = self.archive(name).await.state().await.unwrap();
        let storage = self.storage(name).await;
        let metadata = &state.table.metadata;
        let snapshot = metadata.current_snapshot().unwrap();
        let list = manifests::read_list(&storage, snapshot, metadata.format_version());
        let mut files = Vec::new();
        for manifest in list.await.unwrap() {
            let entries = manifests::read_manifest(&storage, &manifest).await.unwrap();
            let live = entries.into_iter().filter(ManifestEntry::is_alive);
            files.extend(live.map(|e| (e.sequence_number(), e.data_file().clone())));
        }
        files.sort_by(|a, b| (a.0, a.1.file_path()).cmp(&(b.0, b.1.file_path())));
        files.into_iter().map(|(_, file)| file).collect()
    }

    /// Makes `data` all of the table's files, and `deletes` its delete files.
    pub async fn replace(
        &self,
        name: &TopicName,
        operation: Operation,
        data: Vec<DataFile>,
        deletes: Vec<DataFile>,
    ) {
        let table = self.archive(name).await.state().await.unwrap().table;
        let storage = self.storage(name).await;
        let ids = self.ids();
        let snapshot_id = ids.snapshot_id();
        let metadata = &table.metadata;
        let path = |file: &str| {
            let folder = metadata.location();
            format!("{folder}/metadata/foreign-{snapshot_id}-{file}")
        };
        let rows: u64 = data.iter().map(DataFile::record_count).sum();
        let mut list =
            vec![manifest(&table, &storage, snapshot_id, &path("data.avro"), data).await];
        if !deletes.is_empty() {
            let uri = path("deletes.avro");
            list.push(manifest(&table, &storage, snapshot_id, &uri, deletes).await);
        }
        let target = manifests::Target {
            metadata,
            storage: &storage,
            snapshot_id,
        };
        let parent = metadata.current_snapshot_id();
        let (list_path, _) = target.list(&path("list"), parent, list).await.unwrap();
        let snapshot = Snapshot::builder()
            .with_snapshot_id(snapshot_id)
            .with_parent_snapshot_id(parent)
            .with_sequence_number(metadata.next_sequence_number())
            .with_timestamp_ms(self.clock.now().0.max(metadata.last_updated_ms()))
            .with_manifest_list(list_path)
            .with_summary(Summary {
                operation,
                additional_properties: HashMap::from([(
                    "total-records".to_owned(),
                    rows.to_string(),
                )]),
            })
            .with_schema_id(metadata.current_schema_id())
            .build();
        let retention = SnapshotRetention::Branch {
            min_snapshots_to_keep: None,
            max_snapshot_age_ms: None,
            max_ref_age_ms: None,
        };
        let updates = vec![
            TableUpdate::AddSnapshot { snapshot },
            TableUpdate::SetSnapshotRef {
                ref_name: MAIN_BRANCH.to_owned(),
                reference: SnapshotReference::new(snapshot_id, retention),
            },
        ];
        let reply = self.catalog.commit(&table, vec![], updates, ids.uuid());
        assert!(matches!(reply.await, CommitReply::Committed(_)));
    }

    /// Everything that the table holds, per generation and partition.
    async fn all_rows(&self, name: &TopicName) -> Vec<PartitionRows> {
        let request = ReplayRequest {
            until: Until::Snapshot,
            lease: LeaseMode::Off,
            ..ReplayRequest::new(name.clone())
        };
        let mut stream = EventStream::open(request, self.components()).await.unwrap();
        let mut rows: BTreeMap<(Generation, Partition), Vec<EventColumns>> = BTreeMap::new();
        while let Some(batch) = stream.next().await.unwrap() {
            if !batch.columns.is_empty() {
                let all = rows.entry((batch.generation, batch.partition)).or_default();
                all.push(batch.columns);
            }
        }
        stream.close().await;
        let ledger = self.ledger(name).await;
        let rows = rows.into_iter().map(|((generation, partition), batches)| {
            let entry = ledger.entry(generation, partition).unwrap();
            PartitionRows {
                generation,
                partition,
                range: OffsetRange::new(entry.first, entry.next).unwrap(),
                batches,
            }
        });
        rows.collect()
    }

    /// Files with these rows, that are part of no table yet.
    pub async fn written(&self, name: &TopicName, rows: Vec<PartitionRows>) -> Vec<DataFile> {
        let table = self.archive(name).await.state().await.unwrap().table;
        let request = WriteRequest {
            table: &table,
            storage: self.storage(name).await,
            topic: name.clone(),
            archived_at: self.clock.now(),
            rows,
            file_bytes_target: 16 << 10,
            spare: SpareThreads::none(),
        };
        let files = write_files(request, self.ids().as_ref()).await.unwrap();
        files.into_iter().map(|f| f.data_file).collect()
    }

    /// Rewrites all data files into others; gives the paths of the old ones.
    pub async fn compact(&self, name: &TopicName) -> Vec<String> {
        let old = self.data_files(name).await;
        let rows = self.all_rows(name).await;
        let new = self.written(name, rows).await;
        self.replace(name, Operation::Replace, new, Vec::new())
            .await;
        old.iter().map(|f| f.file_path().to_owned()).collect()
    }

    /// Removes objects, as the expiry of the snapshots that need them does.
    pub async fn remove(&self, name: &TopicName, paths: &[String]) {
        let storage = self.storage(name).await;
        for path in paths {
            storage.delete(path).await.unwrap();
        }
    }
}

/// A delete file of no rows' worth; only that it is there counts.
pub fn delete_file(table: &LoadedTable, of: &DataFile) -> DataFile {
    DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(format!(
            "{}/data/deletes.parquet",
            table.metadata.location()
        ))
        .file_format(DataFileFormat::Parquet)
        .partition(of.partition().clone())
        .record_count(1)
        .file_size_in_bytes(100)
        .build()
        .unwrap()
}

async fn manifest(
    table: &LoadedTable,
    storage: &Storage,
    snapshot_id: i64,
    uri: &str,
    files: Vec<DataFile>,
) -> ManifestFile {
    let metadata = &table.metadata;
    let builder = ManifestWriterBuilder::new(
        storage.file_io().new_output(uri).unwrap(),
        Some(snapshot_id),
        Arc::clone(metadata.current_schema()),
        (**metadata.default_partition_spec()).clone(),
    );
    let deletes = files
        .iter()
        .any(|f| f.content_type() != DataContentType::Data);
    let mut writer = if deletes {
        builder.build_v2_deletes()
    } else {
        builder.build_v2_data()
    };
    for file in files {
        writer.add_file(file, -1).unwrap();
    }
    writer.write_manifest_file().await.unwrap()
}
