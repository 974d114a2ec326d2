//! What the manifest says of a file, and where the file goes.

use std::collections::HashMap;

use everlog_common::mutants::Mutant;
use everlog_common::{Generation, Partition, TopicName};
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, Literal, SortDirection,
    Struct, TableMetadata, Transform,
};
use iceberg::transform::create_transform_function;
use uuid::Uuid;

use super::encode::FinishedFile;
use crate::files::data_folder;
use crate::schema::{Column, ColumnMap};

/// Where rows belong by the table's partition spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TablePartition {
    values: Struct,
    /// As a folder; none in an unpartitioned table.
    folder: Option<String>,
}

/// A partition field that everlog cannot write.
#[derive(Debug)]
pub(super) struct BadField {
    pub(super) field: String,
    pub(super) message: String,
}

impl TablePartition {
    /// The table partition of rows that have all of this in common.
    pub(super) fn of(
        metadata: &TableMetadata,
        topic: &TopicName,
        generation: Generation,
        partition: Partition,
        archived_at_us: i64,
    ) -> Result<Self, BadField> {
        let spec = metadata.default_partition_spec();
        let mut values = Vec::with_capacity(spec.fields().len());
        for field in spec.fields() {
            let refused = |message: String| BadField {
                field: field.name.clone(),
                message,
            };
            let column = Column::ALL.into_iter().find(|c| c.id() == field.source_id);
            let source = match column {
                Some(Column::Topic) => Datum::string(topic.as_str()),
                Some(Column::Generation) => Datum::int(generation.as_i32()),
                Some(Column::Partition) => Datum::int(partition.get()),
                Some(Column::ArchivedAt) => Datum::timestamptz_micros(archived_at_us),
                _ if field.transform == Transform::Void => {
                    values.push(None);
                    continue;
                }
                _ => {
                    let allowed = "everlog writes only tables partitioned by topic, generation, partition or archived_at; \
                                   drop the field from the partition spec";
                    return Err(refused(allowed.to_owned()));
                }
            };
            let value = create_transform_function(&field.transform)
                .and_then(|transform| transform.transform_literal(&source))
                .map_err(|e| refused(e.to_string()))?;
            values.push(value.map(Literal::from));
        }
        let values: Struct = values.into_iter().collect();
        let folder = (!spec.is_unpartitioned()).then(|| {
            spec.partition_to_path(&values, std::sync::Arc::clone(metadata.current_schema()))
        });
        Ok(Self { values, folder })
    }

    /// The full URI of a new file.
    pub(super) fn new_path(&self, metadata: &TableMetadata, id: Uuid) -> String {
        let location = data_folder(metadata);
        let id = if Mutant::NameUsedAgain.is_planted() {
            Uuid::nil()
        } else {
            id
        };
        match &self.folder {
            Some(folder) => format!("{location}/{folder}/{id}.parquet"),
            None => format!("{location}/{id}.parquet"),
        }
    }
}

/// The file as the manifest is going to have it.
pub(super) fn data_file(
    metadata: &TableMetadata,
    columns: &ColumnMap,
    partition: &TablePartition,
    path: &str,
    file: &FinishedFile,
) -> Result<DataFile, String> {
    let id = |column: Column| columns.id(column);
    let bounded = |at: fn((Datum, Datum)) -> Datum| -> HashMap<i32, Datum> {
        bounds(file)
            .into_iter()
            .map(|(column, both)| (id(column), at(both)))
            .collect()
    };
    let counted = crate::schema::BOUNDED;
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(path.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(partition.values.clone())
        .partition_spec_id(metadata.default_partition_spec_id())
        .record_count(file.rows)
        .file_size_in_bytes(file.bytes)
        .column_sizes(column_sizes(file))
        .value_counts(counted.map(|c| (id(c), file.rows)).into())
        .null_value_counts(
            counted
                .map(|c| (id(c), file.metrics.nulls[c.index()]))
                .into(),
        )
        .lower_bounds(bounded(|(lower, _)| lower))
        .upper_bounds(bounded(|(_, upper)| upper))
        .split_offsets(Some(split_offsets(file)));
    if let Some(order) = satisfied_order(metadata, file) {
        builder.sort_order_id(order);
    }
    builder.build().map_err(|e| e.to_string())
}

fn bounds(file: &FinishedFile) -> Vec<(Column, (Datum, Datum))> {
    let metrics = &file.metrics;
    let ints = |(a, b): (i32, i32)| (Datum::int(a), Datum::int(b));
    let longs = |(a, b): (i64, i64)| (Datum::long(a), Datum::long(b));
    let times = |(a, b): (i64, i64)| (Datum::timestamptz_micros(a), Datum::timestamptz_micros(b));
    let archived_at = metrics.archived_at;
    let offset = if Mutant::BoundsOfFirstRow.is_planted() {
        (metrics.offset.0, metrics.offset.0)
    } else {
        metrics.offset
    };
    let mut bounds = vec![
        (Column::Generation, ints(metrics.generation)),
        (Column::Partition, ints(metrics.partition)),
        (Column::Offset, longs(offset)),
        (Column::ArchivedAt, times((archived_at, archived_at))),
    ];
    bounds.extend(metrics.timestamp.map(|b| (Column::Timestamp, times(b))));
    bounds.extend(
        metrics
            .timestamp_raw
            .map(|b| (Column::TimestampRaw, longs(b))),
    );
    bounds
}

fn column_sizes(file: &FinishedFile) -> HashMap<i32, u64> {
    let mut sizes: HashMap<i32, u64> = HashMap::new();
    for row_group in file.metadata.row_groups() {
        for column in row_group.columns() {
            let info = column.column_descr().self_type().get_basic_info().clone();
            if info.has_id() {
                let size = u64::try_from(column.compressed_size()).unwrap_or(0);
                *sizes.entry(info.id()).or_default() += size;
            }
        }
    }
    sizes
}

/// Where row groups begin.
fn split_offsets(file: &FinishedFile) -> Vec<i64> {
    file.metadata
        .row_groups()
        .iter()
        .filter_map(|row_group| row_group.columns().first())
        .filter_map(|column| i64::try_from(column.byte_range().0).ok())
        .collect()
}

/// The table's sort order, if the file is in it: ours, and no second generation puts partitions out of order.
fn satisfied_order(metadata: &TableMetadata, file: &FinishedFile) -> Option<i32> {
    let order = metadata.default_sort_order();
    let expected = [Column::Partition.id(), Column::Offset.id()];
    let ours = order.fields.len() == expected.len()
        && order.fields.iter().zip(expected).all(|(field, id)| {
            field.source_id == id
                && field.transform == Transform::Identity
                && field.direction == SortDirection::Ascending
        });
    (ours && file.metrics.partitions_ascend)
        .then(|| i32::try_from(order.order_id).ok())
        .flatten()
}
