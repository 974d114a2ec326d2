//! Table properties: ours, and what they ask of other engines.

use std::collections::BTreeMap;

use everlog_common::TopicName;

use super::{Column, PartitionBy, SchemaError};

/// Whose table it is.
pub const PROPERTY_TOPIC: &str = "everlog.topic";
/// The ledger, mirrored from the newest snapshot that advanced it.
pub const PROPERTY_LEDGER: &str = "everlog.ledger";
/// Version of the table format.
pub const PROPERTY_FORMAT: &str = "everlog.format-version";
/// The version that this code reads and writes.
pub const FORMAT_VERSION: &str = "1";

const OURS: &str = "everlog.";

/// What other engines shall do when they write to the table, compact it for instance; and what they need to know to read
/// it.
const DEFAULTS: [(&str, &str); 9] = [
    // Statistics only where they are exact and of use: truncated ones of binary columns prune wrongly.
    ("write.metadata.metrics.default", "none"),
    ("write.format.default", "parquet"),
    ("write.parquet.compression-codec", "zstd"),
    ("write.parquet.compression-level", "1"),
    ("write.parquet.row-group-size-bytes", "33554432"),
    // everlog reads no delete files.
    ("write.delete.mode", "copy-on-write"),
    ("write.update.mode", "copy-on-write"),
    ("write.merge.mode", "copy-on-write"),
    // Iceberg's vectorized Spark reader knows the DELTA encodings only since 1.11; its other reader always did.
    ("read.parquet.vectorization.enabled", "false"),
];

/// Columns whose bounds are kept.
pub(crate) const BOUNDED: [Column; 6] = [
    Column::Generation,
    Column::Partition,
    Column::Offset,
    Column::Timestamp,
    Column::ArchivedAt,
    Column::TimestampRaw,
];

/// How new tables are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableSettings {
    /// How rows map to table partitions.
    pub partition_by: PartitionBy,
    /// Further table properties; they win over everlog's defaults.
    pub properties: BTreeMap<String, String>,
}

impl TableSettings {
    pub(super) fn table_properties(
        &self,
        topic: &TopicName,
    ) -> Result<BTreeMap<String, String>, SchemaError> {
        let mut properties: BTreeMap<String, String> = DEFAULTS
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        for column in BOUNDED {
            let key = format!("write.metadata.metrics.column.{}", column.name());
            properties.insert(key, "full".to_owned());
        }
        for (key, value) in &self.properties {
            // the archiver records what it was told; whoever else sets it decides nothing
            let is_ours = key.starts_with(OURS) && key != crate::summary::ISOLATION;
            if is_ours || key == "format-version" {
                return Err(SchemaError::Property {
                    key: key.clone(),
                    message: "is everlog's own and cannot be set".to_owned(),
                });
            }
            properties.insert(key.clone(), value.clone());
        }
        properties.insert(PROPERTY_TOPIC.to_owned(), topic.as_str().to_owned());
        properties.insert(PROPERTY_FORMAT.to_owned(), FORMAT_VERSION.to_owned());
        Ok(properties)
    }
}
