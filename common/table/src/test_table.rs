//! A table in memory for the tests of writer and reader.

use std::sync::Arc;

use everlog_common::clock::SeededIds;
use everlog_common::{
    EventColumns, EventColumnsBuilder, EventRef, Generation, Millis, Offset, OffsetRange,
    Partition, TimestampType, TopicName,
};
use iceberg::spec::{
    FormatVersion, ManifestEntry, ManifestStatus, TableMetadata, TableMetadataBuilder,
    UnboundPartitionSpec,
};
use object_store::memory::InMemory;

use crate::catalog::LoadedTable;
use crate::files::{EncodedFile, PartitionRows, PlannedFile};
use crate::scan::{DecodedRun, ScanError, read_footer, read_row_group};
use crate::schema::{ColumnMap, TableSettings, new_table};
use crate::storage::Storage;
use crate::writer::{SpareThreads, WriteError, WriteRequest, write_files};

pub(crate) const ARCHIVED_AT: Millis = Millis(1_700_000_000_123);

pub(crate) fn topic() -> TopicName {
    TopicName::new("orders.eu").unwrap()
}

pub(crate) fn metadata(settings: &TableSettings) -> TableMetadata {
    let table = new_table("everlog", &topic(), settings).unwrap();
    TableMetadataBuilder::new(
        table.schema,
        table
            .partition_spec
            .unwrap_or_else(|| UnboundPartitionSpec::builder().build()),
        table.sort_order.unwrap(),
        "memory://lake/everlog/orders_eu".to_owned(),
        FormatVersion::V2,
        table.properties.into_iter().collect(),
    )
    .unwrap()
    .build()
    .unwrap()
    .metadata
}

pub(crate) fn partitioned_by(text: &str) -> TableSettings {
    TableSettings {
        partition_by: text.parse().unwrap(),
        ..TableSettings::default()
    }
}

pub(crate) fn table(settings: &TableSettings) -> LoadedTable {
    let ident = new_table("everlog", &topic(), settings).unwrap().ident;
    LoadedTable {
        ident,
        metadata: Arc::new(metadata(settings)),
        metadata_location: String::new(),
        config: Default::default(),
    }
}

pub(crate) fn storage() -> Storage {
    Storage::from_store(Arc::new(InMemory::new()))
}

pub(crate) fn range(start: i64, end: i64) -> OffsetRange {
    OffsetRange::new(Offset::new(start).unwrap(), Offset::new(end).unwrap()).unwrap()
}

/// Rows at these offsets; what is in them follows from the offset.
pub(crate) fn columns(offsets: impl IntoIterator<Item = i64>) -> EventColumns {
    let mut builder = EventColumnsBuilder::new();
    for offset in offsets {
        let key = format!("key-{}", offset % 7).into_bytes();
        let value = format!("{{\"offset\":{offset},\"text\":\"a value\"}}").into_bytes();
        let trace = offset.to_le_bytes();
        let headers: [(&[u8], Option<&[u8]>); 2] = [(b"trace", Some(&trace)), (b"empty", None)];
        let with = usize::try_from(offset % 3).unwrap();
        builder.push(
            Offset::new(offset).unwrap(),
            (1_690_000_000_000 + offset * 13, TimestampType::Create),
            (offset % 5 != 0).then_some(key.as_slice()),
            (offset % 11 != 0).then_some(value.as_slice()),
            headers.into_iter().take(with),
            (offset % 2 == 0).then_some(4),
        );
    }
    builder.finish()
}

pub(crate) fn rows(
    partition: i32,
    covered: OffsetRange,
    batches: Vec<EventColumns>,
) -> PartitionRows {
    PartitionRows {
        generation: Generation::FIRST,
        partition: Partition::new(partition).unwrap(),
        range: covered,
        batches,
    }
}

pub(crate) async fn write(
    table: &LoadedTable,
    storage: &Storage,
    rows: Vec<PartitionRows>,
    file_bytes_target: u64,
) -> Result<Vec<EncodedFile>, WriteError> {
    write_with(
        table,
        storage,
        rows,
        file_bytes_target,
        SpareThreads::new(1),
    )
    .await
}

pub(crate) async fn write_with(
    table: &LoadedTable,
    storage: &Storage,
    rows: Vec<PartitionRows>,
    file_bytes_target: u64,
    spare: SpareThreads,
) -> Result<Vec<EncodedFile>, WriteError> {
    let request = WriteRequest {
        table,
        storage: storage.clone(),
        topic: topic(),
        archived_at: ARCHIVED_AT,
        rows,
        file_bytes_target,
        spare,
    };
    write_files(request, &SeededIds::new(1)).await
}

/// The file as a plan has it.
pub(crate) fn planned(file: &EncodedFile) -> PlannedFile {
    let columns = ColumnMap::resolve(metadata(&TableSettings::default()).current_schema()).unwrap();
    let entry = ManifestEntry::builder()
        .status(ManifestStatus::Added)
        .sequence_number(1)
        .data_file(file.data_file.clone())
        .build();
    PlannedFile::from_entry(&entry, &columns).unwrap()
}

pub(crate) async fn read(
    storage: &Storage,
    file: &PlannedFile,
) -> Result<Vec<DecodedRun>, ScanError> {
    let footer = read_footer(storage, file).await?;
    let mut runs = Vec::new();
    for row_group in 0..footer.row_groups.len() {
        runs.extend(read_row_group(storage, file, &footer, row_group, &topic()).await?);
    }
    Ok(runs)
}

pub(crate) fn events(columns: &EventColumns) -> Vec<EventRef<'_>> {
    (0..columns.len()).map(|i| columns.row(i)).collect()
}

pub(crate) type Place = (u32, i32);

/// Everything written, per (generation, partition), as one value.
pub(crate) fn written(rows: &[PartitionRows]) -> Vec<(Place, EventColumns)> {
    rows.iter()
        .filter(|r| r.rows() > 0)
        .map(|r| {
            let place = (r.generation.0, r.partition.get());
            (place, EventColumns::concat(&r.batches).unwrap())
        })
        .collect()
}

/// Runs joined where one goes on with the partition of the one before.
pub(crate) fn joined(runs: Vec<DecodedRun>) -> Vec<(Place, EventColumns)> {
    let mut joined: Vec<(Place, Vec<EventColumns>)> = Vec::new();
    for run in runs {
        assert!(!run.columns.is_empty());
        let place = (run.generation.0, run.partition.get());
        match joined.last_mut() {
            Some((last, parts)) if *last == place => parts.push(run.columns),
            _ => joined.push((place, vec![run.columns])),
        }
    }
    joined
        .into_iter()
        .map(|(place, parts)| (place, EventColumns::concat(&parts).unwrap()))
        .collect()
}

pub(crate) fn same(left: &[(Place, EventColumns)], right: &[(Place, EventColumns)]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .all(|((p, a), (q, b))| p == q && events(a) == events(b))
}
