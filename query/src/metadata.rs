//! Tables about a table: its snapshots, files, partitions, branches and tags; of archives its ledger and gaps. The names of
//! tables and columns are those of Trino's and Spark's metadata tables where these have them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, Int32Builder, Int64Builder, ListBuilder, MapBuilder, MapFieldNames,
    StringBuilder,
};
use arrow_array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, TimestampMillisecondArray,
};
use arrow_schema::{Field, Schema, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use everlog_common::Ledger;
use everlog_table::catalog::LoadedTable;
use everlog_table::manifests::{self, ManifestError};
use everlog_table::storage::Storage;
use everlog_table::summary::ancestry;
use iceberg::spec::{
    DataContentType, Datum, Literal, ManifestEntry, PrimitiveLiteral, PrimitiveType, SnapshotRef,
    TableMetadata, Transform, Type,
};
use serde_json::Value;

use crate::error::chain;
use crate::names::Suffix;
use crate::{QueryError, moments, travel};

/// Whether a table is about all snapshots, rather than about one.
pub(crate) const fn is_of_table(suffix: Suffix) -> bool {
    matches!(suffix, Suffix::Snapshots | Suffix::History | Suffix::Refs)
}

/// A column: its name, whether it may be null, its values.
type Column = (&'static str, bool, ArrayRef);

fn table(columns: Vec<Column>) -> Result<Arc<dyn TableProvider>, QueryError> {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, nullable, array)| Field::new(*name, array.data_type().clone(), *nullable))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, _, array)| array).collect();
    let failed = |error: &dyn Display| QueryError::Failed(format!("metadata: {error}"));
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(|e| failed(&e))?;
    let table = MemTable::try_new(schema, vec![vec![batch]]).map_err(|e| failed(&e))?;
    Ok(Arc::new(table))
}

fn longs(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn counts(values: impl IntoIterator<Item = u64>) -> ArrayRef {
    longs(
        values
            .into_iter()
            .map(|value| i64::try_from(value).unwrap_or(i64::MAX)),
    )
}

fn texts<'a>(values: impl IntoIterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn times(values: impl IntoIterator<Item = Option<i64>>) -> ArrayRef {
    let values: TimestampMillisecondArray = values.into_iter().collect();
    Arc::new(values.with_timezone("UTC"))
}

fn names() -> MapFieldNames {
    MapFieldNames {
        entry: "entries".to_owned(),
        key: "key".to_owned(),
        value: "value".to_owned(),
    }
}

/// A table about all snapshots.
pub(crate) fn of_table(
    suffix: Suffix,
    metadata: &TableMetadata,
) -> Result<Arc<dyn TableProvider>, QueryError> {
    match suffix {
        Suffix::Snapshots => snapshots(metadata),
        Suffix::History => history(metadata),
        _ => refs(metadata),
    }
}

fn snapshots(metadata: &TableMetadata) -> Result<Arc<dyn TableProvider>, QueryError> {
    let mut all: Vec<&SnapshotRef> = metadata.snapshots().collect();
    all.sort_by_key(|s| (s.sequence_number(), s.timestamp_ms(), s.snapshot_id()));
    let mut summaries = MapBuilder::new(Some(names()), StringBuilder::new(), StringBuilder::new());
    for snapshot in &all {
        let sorted: BTreeMap<_, _> = snapshot.summary().additional_properties.iter().collect();
        for (key, value) in sorted {
            summaries.keys().append_value(key);
            summaries.values().append_value(value);
        }
        summaries
            .append(true)
            .map_err(|e| QueryError::Failed(e.to_string()))?;
    }
    let parents: Int64Array = all.iter().map(|s| s.parent_snapshot_id()).collect();
    table(vec![
        (
            "committed_at",
            false,
            times(all.iter().map(|s| Some(s.timestamp_ms()))),
        ),
        (
            "snapshot_id",
            false,
            longs(all.iter().map(|s| s.snapshot_id())),
        ),
        ("parent_id", true, Arc::new(parents)),
        (
            "operation",
            false,
            texts(all.iter().map(|s| s.summary().operation.as_str())),
        ),
        (
            "manifest_list",
            false,
            texts(all.iter().map(|s| s.manifest_list())),
        ),
        ("summary", false, Arc::new(summaries.finish())),
    ])
}

fn history(metadata: &TableMetadata) -> Result<Arc<dyn TableProvider>, QueryError> {
    let log = metadata.history();
    let current: Vec<i64> = ancestry(metadata, metadata.current_snapshot_id())
        .map(|snapshot| snapshot.snapshot_id())
        .collect();
    let parents: Int64Array = log
        .iter()
        .map(|entry| {
            metadata
                .snapshot_by_id(entry.snapshot_id)?
                .parent_snapshot_id()
        })
        .collect();
    let ancestors: Vec<bool> = log
        .iter()
        .map(|entry| current.contains(&entry.snapshot_id))
        .collect();
    table(vec![
        (
            "made_current_at",
            false,
            times(log.iter().map(|e| Some(e.timestamp_ms()))),
        ),
        (
            "snapshot_id",
            false,
            longs(log.iter().map(|e| e.snapshot_id)),
        ),
        ("parent_id", true, Arc::new(parents)),
        (
            "is_current_ancestor",
            false,
            Arc::new(BooleanArray::from(ancestors)),
        ),
    ])
}

fn refs(metadata: &TableMetadata) -> Result<Arc<dyn TableProvider>, QueryError> {
    let refs: BTreeMap<String, Value> = travel::refs(metadata)?.into_iter().collect();
    let long = |key: &'static str| -> Int64Array {
        refs.values()
            .map(|one| one.get(key).and_then(Value::as_i64))
            .collect()
    };
    let kept: Int32Array = refs
        .values()
        .map(|one| i32::try_from(one.get("min-snapshots-to-keep")?.as_i64()?).ok())
        .collect();
    let kinds = refs.values().map(|one| {
        let kind = one.get("type").and_then(Value::as_str).unwrap_or_default();
        kind.to_uppercase()
    });
    let kinds: Vec<String> = kinds.collect();
    table(vec![
        ("name", false, texts(refs.keys().map(String::as_str))),
        ("type", false, texts(kinds.iter().map(String::as_str))),
        ("snapshot_id", true, Arc::new(long("snapshot-id"))),
        (
            "max_reference_age_in_ms",
            true,
            Arc::new(long("max-ref-age-ms")),
        ),
        ("min_snapshots_to_keep", true, Arc::new(kept)),
        (
            "max_snapshot_age_in_ms",
            true,
            Arc::new(long("max-snapshot-age-ms")),
        ),
    ])
}

/// A table about one snapshot; none: about a table that has none yet.
pub(crate) async fn of_snapshot(
    suffix: Suffix,
    loaded: &LoadedTable,
    snapshot: Option<&SnapshotRef>,
    storage: &Storage,
) -> Result<Arc<dyn TableProvider>, QueryError> {
    let entries = match snapshot {
        Some(snapshot) => entries(loaded, snapshot, storage).await?,
        None => Vec::new(),
    };
    if suffix == Suffix::Files {
        files(&loaded.metadata, &entries)
    } else {
        partitions(&loaded.metadata, &entries)
    }
}

/// A table about what an archive's snapshot says that it holds.
pub(crate) fn of_ledger(
    suffix: Suffix,
    ledger: &Ledger,
) -> Result<Arc<dyn TableProvider>, QueryError> {
    match suffix {
        Suffix::Gaps => gaps(ledger),
        _ => entries_of(ledger),
    }
}

fn entries_of(ledger: &Ledger) -> Result<Arc<dyn TableProvider>, QueryError> {
    let mut rows = Vec::new();
    for (generation, era) in &ledger.generations {
        for (partition, entry) in &era.partitions {
            rows.push((*generation, *partition, entry, &era.identity));
        }
    }
    let generations = Int32Array::from_iter_values(rows.iter().map(|r| r.0.as_i32()));
    let partitions = Int32Array::from_iter_values(rows.iter().map(|r| r.1.get()));
    let epochs: Int32Array = rows.iter().map(|r| r.2.leader_epoch).collect();
    let hashes: Vec<String> = rows.iter().map(|r| format!("{:016x}", r.2.hash)).collect();
    let closed: Vec<bool> = rows.iter().map(|r| ledger.is_closed(r.0, r.1)).collect();
    let clusters: StringArray = rows.iter().map(|r| r.3.cluster_id.clone()).collect();
    let topics: StringArray = rows
        .iter()
        .map(|r| r.3.topic_id.as_ref().map(ToString::to_string))
        .collect();
    table(vec![
        ("generation", false, Arc::new(generations)),
        ("partition", false, Arc::new(partitions)),
        (
            "first_offset",
            false,
            longs(rows.iter().map(|r| r.2.first.get())),
        ),
        (
            "next_offset",
            false,
            longs(rows.iter().map(|r| r.2.next.get())),
        ),
        ("rows", false, counts(rows.iter().map(|r| r.2.rows))),
        ("leader_epoch", true, Arc::new(epochs)),
        ("hash", false, texts(hashes.iter().map(String::as_str))),
        ("is_closed", false, Arc::new(BooleanArray::from(closed))),
        ("cluster_id", true, Arc::new(clusters)),
        ("topic_id", true, Arc::new(topics)),
    ])
}

fn gaps(ledger: &Ledger) -> Result<Arc<dyn TableProvider>, QueryError> {
    let gaps = &ledger.gaps;
    let generations = Int32Array::from_iter_values(gaps.iter().map(|g| g.generation.as_i32()));
    let partitions = Int32Array::from_iter_values(gaps.iter().map(|g| g.partition.get()));
    let ends: Int64Array = gaps
        .iter()
        .map(|g| g.end.map(everlog_common::Offset::get))
        .collect();
    let missing: Int64Array = gaps
        .iter()
        .map(|g| g.end.map(|end| end.get().saturating_sub(g.start.get())))
        .collect();
    let reasons: Vec<String> = gaps.iter().map(|g| g.reason.to_string()).collect();
    table(vec![
        ("generation", false, Arc::new(generations)),
        ("partition", false, Arc::new(partitions)),
        (
            "start_offset",
            false,
            longs(gaps.iter().map(|g| g.start.get())),
        ),
        ("end_offset", true, Arc::new(ends)),
        ("missing", true, Arc::new(missing)),
        ("reason", false, texts(reasons.iter().map(String::as_str))),
        (
            "noticed_at",
            false,
            times(gaps.iter().map(|g| Some(g.at.0))),
        ),
    ])
}

/// A live file, and the partition spec of the manifest that lists it.
struct Listed {
    spec: i32,
    entry: ManifestEntry,
}

async fn entries(
    loaded: &LoadedTable,
    snapshot: &SnapshotRef,
    storage: &Storage,
) -> Result<Vec<Listed>, QueryError> {
    let name = loaded.ident.name();
    let failed = |error: ManifestError| match &error {
        ManifestError::Missing { uri } => QueryError::NoSnapshot(format!(
            "table {name}: snapshot {} has expired ({uri} is gone); ask for a newer one",
            snapshot.snapshot_id()
        )),
        ManifestError::Storage { .. } => QueryError::Failed(chain(&error)),
        _ => QueryError::Corrupt(format!("table {name}: {}", chain(&error))),
    };
    let version = loaded.metadata.format_version();
    let list = manifests::read_list(storage, snapshot, version)
        .await
        .map_err(failed)?;
    let live: Vec<_> = list.into_iter().filter(manifests::has_live_files).collect();
    let read = manifests::read_manifests(storage, &live)
        .await
        .map_err(failed)?;
    let mut entries = Vec::new();
    for (file, listed) in live.iter().zip(read) {
        let spec = file.partition_spec_id;
        let alive = listed.into_iter().filter(ManifestEntry::is_alive);
        entries.extend(alive.map(|entry| Listed { spec, entry }));
    }
    entries.sort_by(|a, b| {
        let key = |e: &Listed| (e.entry.sequence_number(), e.entry.file_path().to_owned());
        key(a).cmp(&key(b))
    });
    Ok(entries)
}

/// A table partition as Iceberg's folders write it.
fn partition_text(metadata: &TableMetadata, listed: &Listed) -> String {
    let file = listed.entry.data_file();
    let Some(spec) = metadata.partition_spec_by_id(listed.spec) else {
        return String::new();
    };
    if spec.is_unpartitioned() {
        return String::new();
    }
    let values = file.partition().fields();
    if spec.fields().len() != values.len() {
        return String::new();
    }
    // of an old spec, a column may be gone from the schema of now
    let schemas = std::iter::once(metadata.current_schema()).chain(metadata.schemas_iter());
    let mut kinds = schemas.filter_map(|schema| spec.partition_type(schema).ok());
    let kinds = kinds.next();
    let parts = spec.fields().iter().zip(values).enumerate();
    let parts = parts.map(|(place, (field, value))| {
        let kind = kinds.as_ref().and_then(|kinds| kinds.fields().get(place));
        let kind = kind.and_then(|kind| kind.field_type.as_primitive_type());
        let text = match (kind, value.as_ref().and_then(Literal::as_primitive_literal)) {
            _ if field.transform == Transform::Void => "null".to_owned(),
            (_, None) => "null".to_owned(),
            (Some(kind), Some(value)) => moment(kind, &value).unwrap_or_else(|| {
                let value = Literal::Primitive(value);
                let kind = Type::Primitive(kind.clone());
                field.transform.to_human_string(&kind, Some(&value))
            }),
            (None, Some(value)) => format!("{value:?}"),
        };
        format!("{}={text}", field.name)
    });
    parts.collect::<Vec<_>>().join("/")
}

/// A time as text, whatever it is: the library has a calendar for some of them alone.
fn moment(kind: &PrimitiveType, value: &PrimitiveLiteral) -> Option<String> {
    let (unit, zoned) = match kind {
        PrimitiveType::Timestamp => (TimeUnit::Microsecond, false),
        PrimitiveType::Timestamptz => (TimeUnit::Microsecond, true),
        PrimitiveType::TimestampNs => (TimeUnit::Nanosecond, false),
        PrimitiveType::TimestamptzNs => (TimeUnit::Nanosecond, true),
        PrimitiveType::Date => return date(value),
        _ => return None,
    };
    match value {
        PrimitiveLiteral::Long(value) => Some(moments::text(*value, unit, zoned)),
        _ => None,
    }
}

fn date(value: &PrimitiveLiteral) -> Option<String> {
    match value {
        PrimitiveLiteral::Int(days) => Some(moments::date(*days)),
        _ => None,
    }
}

/// A bound as text.
fn bound_text(bound: &Datum) -> String {
    if let Some(text) = moment(bound.data_type(), bound.literal()) {
        return text;
    }
    let text = bound.to_string();
    let inside = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    inside.map_or(text.clone(), str::to_owned)
}

fn files(
    metadata: &TableMetadata,
    entries: &[Listed],
) -> Result<Arc<dyn TableProvider>, QueryError> {
    let all: Vec<_> = entries
        .iter()
        .map(|listed| listed.entry.data_file())
        .collect();
    let content = Int32Array::from_iter_values(all.iter().map(|f| match f.content_type() {
        DataContentType::Data => 0,
        DataContentType::PositionDeletes => 1,
        DataContentType::EqualityDeletes => 2,
    }));
    let formats: Vec<String> = all
        .iter()
        .map(|f| f.file_format().to_string().to_uppercase())
        .collect();
    let specs = Int32Array::from_iter_values(entries.iter().map(|listed| listed.spec));
    let partitions: Vec<String> = entries
        .iter()
        .map(|entry| partition_text(metadata, entry))
        .collect();
    let orders: Int32Array = all.iter().map(|f| f.sort_order_id()).collect();
    let failed = |error: arrow_schema::ArrowError| QueryError::Failed(error.to_string());
    let numbers = |pick: &dyn Fn(usize) -> HashMap<i32, u64>| -> Result<ArrayRef, QueryError> {
        let mut map = MapBuilder::new(Some(names()), Int64Builder::new(), Int64Builder::new());
        for place in 0..all.len() {
            let sorted: BTreeMap<i32, u64> = pick(place).into_iter().collect();
            for (id, number) in sorted {
                map.keys().append_value(i64::from(id));
                map.values()
                    .append_value(i64::try_from(number).unwrap_or(i64::MAX));
            }
            map.append(true).map_err(failed)?;
        }
        Ok(Arc::new(map.finish()))
    };
    let bounds = |lower: bool| -> Result<ArrayRef, QueryError> {
        let mut map = MapBuilder::new(Some(names()), Int64Builder::new(), StringBuilder::new());
        for file in &all {
            let bounds = if lower {
                file.lower_bounds()
            } else {
                file.upper_bounds()
            };
            let sorted: BTreeMap<_, _> = bounds.iter().collect();
            for (id, bound) in sorted {
                map.keys().append_value(i64::from(*id));
                map.values().append_value(bound_text(bound));
            }
            map.append(true).map_err(failed)?;
        }
        Ok(Arc::new(map.finish()))
    };
    let mut keys = BinaryBuilder::new();
    let mut splits = ListBuilder::new(Int64Builder::new());
    let mut equality = ListBuilder::new(Int32Builder::new());
    for file in &all {
        keys.append_option(file.key_metadata());
        splits.append_option(
            file.split_offsets()
                .map(|all| all.iter().copied().map(Some)),
        );
        equality.append_option(file.equality_ids().map(|all| all.into_iter().map(Some)));
    }
    table(vec![
        ("content", false, Arc::new(content)),
        ("file_path", false, texts(all.iter().map(|f| f.file_path()))),
        (
            "file_format",
            false,
            texts(formats.iter().map(String::as_str)),
        ),
        ("spec_id", false, Arc::new(specs)),
        (
            "partition",
            false,
            texts(partitions.iter().map(String::as_str)),
        ),
        (
            "record_count",
            false,
            counts(all.iter().map(|f| f.record_count())),
        ),
        (
            "file_size_in_bytes",
            false,
            counts(all.iter().map(|f| f.file_size_in_bytes())),
        ),
        (
            "column_sizes",
            false,
            numbers(&|i| all[i].column_sizes().clone())?,
        ),
        (
            "value_counts",
            false,
            numbers(&|i| all[i].value_counts().clone())?,
        ),
        (
            "null_value_counts",
            false,
            numbers(&|i| all[i].null_value_counts().clone())?,
        ),
        (
            "nan_value_counts",
            false,
            numbers(&|i| all[i].nan_value_counts().clone())?,
        ),
        ("lower_bounds", false, bounds(true)?),
        ("upper_bounds", false, bounds(false)?),
        ("key_metadata", true, Arc::new(keys.finish())),
        ("split_offsets", true, Arc::new(splits.finish())),
        ("equality_ids", true, Arc::new(equality.finish())),
        ("sort_order_id", true, Arc::new(orders)),
    ])
}

fn partitions(
    metadata: &TableMetadata,
    entries: &[Listed],
) -> Result<Arc<dyn TableProvider>, QueryError> {
    #[derive(Default)]
    struct Sum {
        rows: u64,
        files: u64,
        bytes: u64,
        updated: Option<(i64, i64)>,
    }
    let mut sums: BTreeMap<(i32, String), Sum> = BTreeMap::new();
    for listed in entries {
        let entry = &listed.entry;
        let file = entry.data_file();
        if file.content_type() != DataContentType::Data {
            continue;
        }
        let key = (listed.spec, partition_text(metadata, listed));
        let sum = sums.entry(key).or_default();
        sum.rows = sum.rows.saturating_add(file.record_count());
        sum.bytes = sum.bytes.saturating_add(file.file_size_in_bytes());
        sum.files += 1;
        let made = entry
            .snapshot_id()
            .and_then(|id| metadata.snapshot_by_id(id));
        let made = made.map(|snapshot| (snapshot.timestamp_ms(), snapshot.snapshot_id()));
        sum.updated = sum.updated.max(made);
    }
    let specs = Int32Array::from_iter_values(sums.keys().map(|(spec, _)| *spec));
    let updated: TimestampMicrosecondArray = sums
        .values()
        .map(|sum| Some(sum.updated?.0.saturating_mul(1000)))
        .collect();
    let by: Int64Array = sums.values().map(|sum| Some(sum.updated?.1)).collect();
    table(vec![
        (
            "partition",
            false,
            texts(sums.keys().map(|(_, text)| text.as_str())),
        ),
        ("spec_id", false, Arc::new(specs)),
        (
            "record_count",
            false,
            counts(sums.values().map(|sum| sum.rows)),
        ),
        (
            "file_count",
            false,
            counts(sums.values().map(|sum| sum.files)),
        ),
        (
            "total_size",
            false,
            counts(sums.values().map(|sum| sum.bytes)),
        ),
        (
            "last_updated_at",
            true,
            Arc::new(updated.with_timezone("UTC")),
        ),
        ("last_updated_snapshot_id", true, Arc::new(by)),
    ])
}
