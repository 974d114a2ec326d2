//! A lake on this machine: a SQLite catalog, files in a folder, records written as the archiver writes them, and the same
//! records in memory to compare answers with.

#![allow(dead_code, reason = "each test binary uses some of it")]

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use everlog_common::clock::{ManualClock, RandomIds, SystemClock};
use everlog_common::{
    Advance, Clock, EventColumnsBuilder, EventRef, Gap, GapReason, Generation, Identity, Ids,
    Millis, Offset, OffsetRange, Partition, Segment, TimestampType, TopicName,
};
use everlog_query::{Answer, Lake, Limits, NoValues, QueryError, Session, SessionOptions};
use everlog_table::archive::{AppendRequest, Archive, ArchiveDeps, CommitOutcome};
use everlog_table::catalog::{Catalog, CommitReply, LoadedTable, connect};
use everlog_table::files::PartitionRows;
use everlog_table::manifests;
use everlog_table::schema::TableSettings;
use everlog_table::storage::Storage;
use everlog_table::writer::{SpareThreads, WriteRequest, write_files};
use futures::StreamExt;
use iceberg::TableUpdate;
use iceberg::spec::{
    DataContentType, DataFile, MAIN_BRANCH, ManifestEntry, ManifestFile, ManifestWriterBuilder,
    Operation, Snapshot, SnapshotReference, SnapshotRetention, Summary,
};

pub const NAMESPACE: &str = "everlog";
/// A moment at noon.
pub const NOON: i64 = 1_700_049_600_000;

/// A record as a test makes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    pub fn new(partition: i32, offset: i64) -> Self {
        Self {
            partition,
            offset,
            timestamp: Some(NOON + offset * 1_000),
            key: Some(format!("k{}", offset % 5).into_bytes()),
            value: Some(format!("{{\"n\":{offset}}}").into_bytes()),
            headers: Vec::new(),
        }
    }
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub catalog: Arc<dyn Catalog>,
    pub clock: Arc<ManualClock>,
    /// How much time passes after a commit.
    pub pause: Duration,
}

impl World {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().display();
        let properties = BTreeMap::from([
            ("type".to_owned(), "sql".to_owned()),
            ("uri".to_owned(), format!("sqlite://{path}/catalog.db")),
            ("warehouse".to_owned(), format!("file://{path}/lake")),
        ]);
        let catalog = connect(&properties).await.expect("a catalog");
        // A table is made at the machine's time, which snapshots do not go behind; ours runs a little ahead of it, and no
        // further than Iceberg puts up with.
        let ahead = SystemClock::default().now().0 + 10_000;
        Self {
            folder,
            catalog,
            clock: Arc::new(ManualClock::at(Millis(ahead))),
            pause: Duration::from_secs(5),
        }
    }

    /// The same, less than a second ahead of the machine's time: what others write to the catalog is soon later than all that there is.
    pub async fn near() -> Self {
        let world = Self::new().await;
        Self {
            clock: Arc::new(ManualClock::at(
                SystemClock::default()
                    .now()
                    .plus(Duration::from_millis(300)),
            )),
            pause: Duration::from_millis(50),
            ..world
        }
    }

    /// Waits until the machine's time is the world's.
    pub async fn catch_up(&self) {
        while SystemClock::default().now().0 <= self.clock.now().0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn deps(&self) -> ArchiveDeps {
        ArchiveDeps {
            catalog: Arc::clone(&self.catalog),
            clock: Arc::clone(&self.clock) as _,
            ids: Arc::new(RandomIds),
        }
    }

    pub fn lake(&self) -> Lake {
        Lake {
            catalog: Arc::clone(&self.catalog),
            namespace: NAMESPACE.to_owned(),
            clock: Arc::clone(&self.clock) as _,
            ids: Arc::new(RandomIds),
            log: None,
            values: Arc::new(NoValues),
        }
    }

    pub fn limits(&self) -> Limits {
        Limits {
            memory: 256 << 20,
            spill: self.folder.path().to_owned(),
            spill_bytes: 1 << 30,
            threads: 2,
            ..Limits::default()
        }
    }

    pub async fn session(&self) -> Session {
        self.session_with(SessionOptions {
            limits: self.limits(),
            ..SessionOptions::default()
        })
        .await
    }

    pub async fn session_with(&self, options: SessionOptions) -> Session {
        Session::open(self.lake(), options)
            .await
            .expect("a session")
    }

    pub async fn archive(&self, topic: &str) -> Archive {
        let topic = TopicName::new(topic).expect("a topic");
        Archive::open_or_create(self.deps(), NAMESPACE, &topic, &TableSettings::default())
            .await
            .expect("an archive")
    }

    /// Commits records, ascending by partition and offset, and lets some seconds pass; gives the snapshot.
    pub async fn append(&self, topic: &str, records: &[Record]) -> i64 {
        self.append_cut(topic, records, 64 << 20).await
    }

    /// The same in files of about so many bytes.
    pub async fn append_cut(&self, topic: &str, records: &[Record], bytes: u64) -> i64 {
        let archive = self.archive(topic).await;
        let state = archive.state().await.expect("a state");
        let mut by_partition: BTreeMap<i32, Vec<&Record>> = BTreeMap::new();
        for record in records {
            by_partition
                .entry(record.partition)
                .or_default()
                .push(record);
        }
        let (mut rows, mut advances) = (Vec::new(), Vec::new());
        for (number, records) in by_partition {
            let partition = Partition::new(number).expect("a partition");
            let base = state.ledger.entry(Generation::FIRST, partition).copied();
            let start = base.map_or(Offset::ZERO, |entry| entry.next);
            let end = records.last().map_or(start.get(), |last| last.offset + 1);
            let range = OffsetRange::new(start, Offset::new(end).expect("an offset"));
            let range = range.expect("a range");
            rows.push(PartitionRows {
                generation: Generation::FIRST,
                partition,
                range,
                batches: vec![columns(&records)],
            });
            advances.push(Advance {
                generation: Generation::FIRST,
                identity: Identity::default(),
                partition,
                base,
                segments: vec![Segment::Data {
                    range,
                    rows: records.len() as u64,
                }],
                leader_epoch: None,
                hash: RandomIds.below(u64::MAX),
            });
        }
        let files = write_files(
            WriteRequest {
                table: &state.table,
                storage: archive.storage().await.expect("a store"),
                topic: archive.topic().clone(),
                archived_at: self.clock.now(),
                rows,
                file_bytes_target: bytes,
                spare: SpareThreads::none(),
            },
            &RandomIds,
        )
        .await
        .expect("files");
        self.commit(&archive, advances, files).await
    }

    /// Commits a gap of a partition.
    pub async fn gap(&self, topic: &str, number: i32, until: i64) -> i64 {
        let archive = self.archive(topic).await;
        let state = archive.state().await.expect("a state");
        let partition = Partition::new(number).expect("a partition");
        let base = state.ledger.entry(Generation::FIRST, partition).copied();
        let gap = Gap {
            generation: Generation::FIRST,
            partition,
            start: base.map_or(Offset::ZERO, |entry| entry.next),
            end: Some(Offset::new(until).expect("an offset")),
            reason: GapReason::Retention,
            at: self.clock.now(),
        };
        let advance = Advance {
            generation: Generation::FIRST,
            identity: Identity::default(),
            partition,
            base,
            segments: vec![Segment::Gap {
                start: gap.start,
                end: gap.end,
                reason: gap.reason,
                at: gap.at,
            }],
            leader_epoch: None,
            hash: base.map_or(0, |entry| entry.hash),
        };
        self.commit(&archive, vec![advance], Vec::new()).await
    }

    async fn commit(
        &self,
        archive: &Archive,
        advances: Vec<Advance>,
        files: Vec<everlog_table::files::EncodedFile>,
    ) -> i64 {
        let request = AppendRequest {
            advances,
            files,
            archived_at: self.clock.now(),
            reference_time: None,
        };
        let outcome = archive.append(request).await.expect("an outcome");
        let CommitOutcome::Committed { snapshot_id, .. } = outcome else {
            panic!("{outcome:?}");
        };
        self.clock.advance(self.pause);
        snapshot_id
    }

    pub async fn loaded(&self, topic: &str) -> LoadedTable {
        self.archive(topic)
            .await
            .state()
            .await
            .expect("a state")
            .table
    }

    pub async fn storage(&self, topic: &str) -> Storage {
        self.archive(topic).await.storage().await.expect("a store")
    }

    /// Points a tag at a snapshot, as another engine would.
    pub async fn tag(&self, topic: &str, name: &str, snapshot_id: i64) {
        let retention = SnapshotRetention::Tag {
            max_ref_age_ms: None,
        };
        self.swap(
            topic,
            vec![TableUpdate::SetSnapshotRef {
                ref_name: name.to_owned(),
                reference: SnapshotReference::new(snapshot_id, retention),
            }],
        )
        .await;
    }

    pub async fn swap(&self, topic: &str, updates: Vec<TableUpdate>) {
        let table = self.loaded(topic).await;
        let reply = self
            .catalog
            .commit(&table, vec![], updates, RandomIds.uuid());
        let reply = reply.await;
        assert!(matches!(reply, CommitReply::Committed(_)), "{reply:?}");
    }

    /// The live data files, as manifests have them.
    pub async fn data_files(&self, topic: &str) -> Vec<DataFile> {
        let table = self.loaded(topic).await;
        let storage = self.storage(topic).await;
        let snapshot = table.metadata.current_snapshot().expect("a snapshot");
        let list = manifests::read_list(&storage, snapshot, table.metadata.format_version());
        let mut files = Vec::new();
        for manifest in list.await.expect("a list") {
            let entries = manifests::read_manifest(&storage, &manifest).await;
            let live = entries
                .expect("entries")
                .into_iter()
                .filter(ManifestEntry::is_alive);
            files.extend(live.map(|entry| entry.data_file().clone()));
        }
        files
    }

    /// Makes these all of the table's files, as another engine's rewrite does.
    pub async fn rewrite(&self, topic: &str, data: Vec<DataFile>, deletes: Vec<DataFile>) -> i64 {
        let table = self.loaded(topic).await;
        let storage = self.storage(topic).await;
        let snapshot_id = i64::try_from(RandomIds.below(1 << 62)).expect("positive");
        let metadata = &table.metadata;
        let path = |file: &str| {
            format!(
                "{}/metadata/foreign-{snapshot_id}-{file}",
                metadata.location()
            )
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
        let (list_path, _) = target
            .list(&path("list"), parent, list)
            .await
            .expect("a list");
        let snapshot = Snapshot::builder()
            .with_snapshot_id(snapshot_id)
            .with_parent_snapshot_id(parent)
            .with_sequence_number(metadata.next_sequence_number())
            .with_timestamp_ms(self.clock.now().0.max(metadata.last_updated_ms()))
            .with_manifest_list(list_path)
            .with_summary(Summary {
                operation: Operation::Replace,
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
        self.swap(
            topic,
            vec![
                TableUpdate::AddSnapshot { snapshot },
                TableUpdate::SetSnapshotRef {
                    ref_name: MAIN_BRANCH.to_owned(),
                    reference: SnapshotReference::new(snapshot_id, retention),
                },
            ],
        )
        .await;
        self.clock.advance(self.pause);
        snapshot_id
    }

    /// A file's place on this machine.
    pub fn path_of(&self, uri: &str) -> PathBuf {
        PathBuf::from(uri.strip_prefix("file://").expect("a local file"))
    }
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
        storage.file_io().new_output(uri).expect("an output"),
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
        writer.add_file(file, -1).expect("added");
    }
    writer.write_manifest_file().await.expect("written")
}

fn columns(records: &[&Record]) -> everlog_common::EventColumns {
    let mut builder = EventColumnsBuilder::new();
    for record in records {
        builder.push_event(&EventRef {
            offset: Offset::new(record.offset).expect("an offset"),
            timestamp_ms: record.timestamp.unwrap_or(-1),
            timestamp_type: match record.timestamp {
                Some(_) => TimestampType::Create,
                None => TimestampType::None,
            },
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: record
                .headers
                .iter()
                .map(|(key, value)| (key.as_bytes(), value.as_deref()))
                .collect(),
            leader_epoch: None,
        });
    }
    builder.finish()
}

/// Every row of an answer.
pub async fn batches(answer: Answer) -> Result<Vec<RecordBatch>, QueryError> {
    let mut stream = answer.batches;
    let mut all = Vec::new();
    while let Some(batch) = stream.next().await {
        all.push(batch.map_err(QueryError::of)?);
    }
    Ok(all)
}

pub async fn asked(session: &Session, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
    batches(session.query(sql).await?).await
}

/// Rows as text, null as `∅`.
pub async fn try_rows(session: &Session, sql: &str) -> Result<Vec<Vec<String>>, QueryError> {
    let mut rows = Vec::new();
    for batch in asked(session, sql).await? {
        let options = FormatOptions::new().with_null("∅");
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|array| ArrayFormatter::try_new(array.as_ref(), &options).expect("a formatter"))
            .collect();
        for row in 0..batch.num_rows() {
            rows.push(
                columns
                    .iter()
                    .map(|column| column.value(row).to_string())
                    .collect(),
            );
        }
    }
    Ok(rows)
}

pub async fn rows(session: &Session, sql: &str) -> Vec<Vec<String>> {
    try_rows(session, sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The one value of an answer of one row and one column.
pub async fn value(session: &Session, sql: &str) -> String {
    let rows = rows(session, sql).await;
    assert_eq!((rows.len(), rows[0].len()), (1, 1), "{sql}: {rows:?}");
    rows[0][0].clone()
}

pub async fn error(session: &Session, sql: &str) -> QueryError {
    match try_rows(session, sql).await {
        Ok(rows) => panic!("{sql}: expected an error, got {} rows", rows.len()),
        Err(error) => error,
    }
}

/// The physical plan.
pub async fn plan(session: &Session, sql: &str) -> String {
    let rows = rows(session, &format!("EXPLAIN {sql}")).await;
    let physical = rows
        .iter()
        .find(|row| row[0] == "physical_plan")
        .expect("a plan");
    physical[1].clone()
}

/// A time as SQL has it, without a zone.
pub fn utc(ms: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(ms).expect("a time");
    time.format("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// So many rows of `orders` pass each filter.
pub async fn assert_counts(session: &Session, all: &[(&str, &str)]) {
    for (filter, expected) in all {
        let sql = format!("SELECT count(*) FROM orders WHERE {filter}");
        assert_eq!(value(session, &sql).await, *expected, "{sql}");
    }
}
