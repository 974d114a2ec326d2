//! What tables and files say, read by nothing of everlog's own: Iceberg's and Parquet's libraries on the stored bytes.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use everlog_common::{EventColumns, Ledger, TimestampType};
use everlog_tests::checker::{
    Event, FileFacts, FileRow, RecordView, SnapshotFacts, TableState, digest,
};
use iceberg::spec::{
    Datum, FormatVersion, Manifest, ManifestList, PrimitiveLiteral, SnapshotRef, TableMetadata,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::store::{Backing, key_of};
use crate::world::World;

/// Where a snapshot keeps the ledger.
const LEDGER: &str = "everlog.ledger";
/// Whose table it is.
const TOPIC: &str = "everlog.topic";

/// The rows of a data file, in its order; none where it is not readable, or not of our columns.
pub fn rows(bytes: &Bytes) -> Option<Vec<FileRow>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).ok()?;
    let mut rows = Vec::new();
    for batch in reader.build().ok()? {
        batch_rows(&batch.ok()?, &mut rows)?;
    }
    Some(rows)
}

fn batch_rows(batch: &RecordBatch, rows: &mut Vec<FileRow>) -> Option<()> {
    let int = |name: &str| {
        Some(
            batch
                .column_by_name(name)?
                .as_primitive_opt::<Int32Type>()?
                .clone(),
        )
    };
    let (generations, partitions) = (int("generation")?, int("partition")?);
    let (types, epochs) = (int("timestamp_type")?, int("leader_epoch")?);
    let offsets = batch
        .column_by_name("offset")?
        .as_primitive_opt::<Int64Type>()?;
    let times = batch
        .column_by_name("timestamp")?
        .as_primitive_opt::<TimestampMicrosecondType>()?;
    let raw = batch
        .column_by_name("timestamp_raw")
        .and_then(|c| c.as_primitive_opt::<Int64Type>().cloned());
    let keys = batch.column_by_name("key")?.as_binary_opt::<i32>()?;
    let values = batch.column_by_name("value")?.as_binary_opt::<i32>()?;
    let headers = batch.column_by_name("headers")?.as_list_opt::<i32>()?;
    for i in 0..batch.num_rows() {
        let mut list: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        if headers.is_valid(i) {
            let pairs = headers.value(i);
            let pairs = pairs.as_struct_opt()?;
            let names = pairs.column(0).as_string_opt::<i32>()?;
            let contents = pairs.column(1).as_binary_opt::<i32>()?;
            for n in 0..pairs.len() {
                let content = contents.is_valid(n).then(|| contents.value(n).to_vec());
                list.push((names.value(n).as_bytes().to_vec(), content));
            }
        }
        let raw = raw
            .as_ref()
            .filter(|raw| raw.is_valid(i))
            .map(|raw| raw.value(i));
        let timestamp_ms = raw
            .or_else(|| times.is_valid(i).then(|| times.value(i).div_euclid(1000)))
            .unwrap_or(-1);
        let view = RecordView {
            offset: offsets.value(i),
            timestamp_ms,
            timestamp_type: i8::try_from(types.value(i)).ok()?,
            key: keys.is_valid(i).then(|| keys.value(i)),
            value: values.is_valid(i).then(|| values.value(i)),
            headers: &list,
        };
        let epoch = epochs.is_valid(i).then(|| epochs.value(i));
        rows.push(FileRow {
            generation: u32::try_from(generations.value(i)).ok()?,
            partition: partitions.value(i),
            offset: view.offset,
            digest: digest(&view.canonical(), epoch),
        });
    }
    Some(())
}

/// Offsets and digests of what a replay gave.
pub fn emitted(columns: &EventColumns) -> Vec<(i64, u64)> {
    (0..columns.len())
        .map(|i| {
            let row = columns.row(i);
            let headers: Vec<(Vec<u8>, Option<Vec<u8>>)> = row
                .headers
                .iter()
                .map(|(k, v)| (k.to_vec(), v.map(<[u8]>::to_vec)))
                .collect();
            let view = RecordView {
                offset: row.offset.get(),
                timestamp_ms: row.timestamp_ms,
                timestamp_type: match row.timestamp_type {
                    TimestampType::Create => 0,
                    TimestampType::LogAppend => 1,
                    TimestampType::None => -1,
                },
                key: row.key,
                value: row.value,
                headers: &headers,
            };
            (view.offset, digest(&view.canonical(), row.leader_epoch))
        })
        .collect()
}

/// What a snapshot needs and holds. Of manifests that are not there, or not readable, the names remain, and the checker
/// finds nothing below them.
pub fn snapshot(store: &Backing, snapshot: &SnapshotRef, version: FormatVersion) -> SnapshotFacts {
    let list_name = snapshot.manifest_list();
    let mut metadata = vec![key_of(list_name).to_owned()];
    let mut files = Vec::new();
    let list = store
        .bytes(list_name)
        .and_then(|bytes| ManifestList::parse_with_version(&bytes, version).ok());
    for file in list.iter().flat_map(ManifestList::entries) {
        metadata.push(key_of(&file.manifest_path).to_owned());
        files.extend(store.manifest(&file.manifest_path, || manifest(store, &file.manifest_path)));
    }
    let ledger = snapshot.summary().additional_properties.get(LEDGER);
    SnapshotFacts {
        id: snapshot.snapshot_id(),
        parent: snapshot.parent_snapshot_id(),
        ledger: ledger.and_then(|text| Ledger::decode(text).ok()),
        metadata,
        files,
    }
}

/// The live files of a manifest; none where it is not there.
fn manifest(store: &Backing, path: &str) -> Option<Vec<FileFacts>> {
    let manifest = Manifest::parse_avro(&store.bytes(path)?).ok()?;
    let live = manifest.entries().iter().filter(|e| e.is_alive());
    let facts = live.map(|entry| {
        let data = entry.data_file();
        FileFacts {
            path: key_of(data.file_path()).to_owned(),
            len: data.file_size_in_bytes(),
            rows: data.record_count(),
            bounds: bounds(data.lower_bounds(), data.upper_bounds()),
        }
    });
    Some(facts.collect())
}

/// Of generation, partition and offset: fields 2, 3 and 4.
fn bounds(lower: &HashMap<i32, Datum>, upper: &HashMap<i32, Datum>) -> Option<[(i64, i64); 3]> {
    let number = |datum: &Datum| match datum.literal() {
        PrimitiveLiteral::Int(n) => Some(i64::from(*n)),
        PrimitiveLiteral::Long(n) => Some(*n),
        _ => None,
    };
    let bound = |id: i32| Some((number(lower.get(&id)?)?, number(upper.get(&id)?)?));
    Some([bound(2)?, bound(3)?, bound(4)?])
}

/// Tells the checker what a table is now.
pub fn record_table(world: &World, metadata: &TableMetadata, location: &str) {
    let Some(topic) = metadata.properties().get(TOPIC) else {
        return;
    };
    let mut known = world
        .recorder
        .snapshots
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let mut snapshots: Vec<_> = metadata.snapshots().collect();
    snapshots.sort_unstable_by_key(|s| s.sequence_number());
    let snapshots = snapshots
        .into_iter()
        .map(|s| {
            let facts = known
                .entry(s.manifest_list().to_owned())
                .or_insert_with(|| Arc::new(snapshot(&world.store, s, metadata.format_version())));
            Arc::clone(facts)
        })
        .collect();
    drop(known);
    world.recorder.record(Event::Table(TableState {
        topic: topic.clone(),
        metadata: key_of(location).to_owned(),
        snapshots,
        head: metadata.current_snapshot_id(),
    }));
}
