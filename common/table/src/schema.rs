//! The table as docs/table-format.md specifies it: columns, partition spec, sort order, properties, names.
//!
//! | id | column | type | |
//! |---|---|---|---|
//! | 1 | `topic` | string, required | |
//! | 2 | `generation` | int, required | era of the topic, from 0 |
//! | 3 | `partition` | int, required | Kafka partition |
//! | 4 | `offset` | long, required | Kafka offset |
//! | 5 | `timestamp` | timestamptz | Kafka's milliseconds; null where the record has none or microseconds cannot hold it |
//! | 6 | `timestamp_type` | int, required | 0 CreateTime, 1 LogAppendTime, -1 none |
//! | 7 | `key` | binary | null and empty differ |
//! | 8 | `value` | binary | null (tombstone) and empty differ |
//! | 9 | `headers` | list of struct of key and value | order and duplicate keys kept; null and empty value differ |
//! | 10 | `leader_epoch` | int | where the client reports it |
//! | 11 | `archived_at` | timestamptz, required | one value per commit |
//! | 12 | `timestamp_raw` | long | milliseconds, only where `timestamp` cannot hold them |
//! | 13 | `headers_raw` | binary | the whole header list, only where a header key is not UTF-8 |
//! | 14, 15, 16 | `headers`' element, its `key` and `value` | struct, string, binary | |
//!
//! Invariants
//! - A column is what its field id says, whatever it is called now: columns 1 to 11 are found by id. The ids of the
//!   spare and the nested fields are the catalog's to assign, so those are found by name.
//! - Columns that other engines add are tolerated as long as a row may leave them out.

mod names;
mod partitioning;
mod properties;
mod resolve;

use iceberg::TableIdent;
use iceberg::spec::{
    ListType, NestedField, NestedFieldRef, NullOrder, PrimitiveType, Schema, SortDirection,
    SortField, SortOrder, StructType, Transform, Type,
};

use everlog_common::TopicName;

use crate::catalog::{CatalogError, NewTable, parse_namespace};

pub use names::{folded_table_name, table_name};
pub use partitioning::{PartitionBy, PartitionTerm};
pub(crate) use properties::BOUNDED;
pub use properties::{
    FORMAT_VERSION, PROPERTY_FORMAT, PROPERTY_LEDGER, PROPERTY_TOPIC, TableSettings,
};
pub use resolve::ColumnMap;

/// A column of the table, by what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Column {
    /// The topic's name, in every row.
    Topic,
    /// The topic's era.
    Generation,
    /// The partition.
    Partition,
    /// The offset.
    Offset,
    /// The record's time, where microseconds can hold it.
    Timestamp,
    /// Where the time comes from.
    TimestampType,
    /// The record's key.
    Key,
    /// The record's value.
    Value,
    /// The record's headers.
    Headers,
    /// The partition leader's epoch.
    LeaderEpoch,
    /// When the commit was made.
    ArchivedAt,
    /// Milliseconds that `timestamp` cannot hold.
    TimestampRaw,
    /// Headers that `headers` cannot hold.
    HeadersRaw,
}

impl Column {
    /// All columns, in the table's order.
    pub const ALL: [Self; 13] = [
        Self::Topic,
        Self::Generation,
        Self::Partition,
        Self::Offset,
        Self::Timestamp,
        Self::TimestampType,
        Self::Key,
        Self::Value,
        Self::Headers,
        Self::LeaderEpoch,
        Self::ArchivedAt,
        Self::TimestampRaw,
        Self::HeadersRaw,
    ];

    /// The name that creation gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Generation => "generation",
            Self::Partition => "partition",
            Self::Offset => "offset",
            Self::Timestamp => "timestamp",
            Self::TimestampType => "timestamp_type",
            Self::Key => "key",
            Self::Value => "value",
            Self::Headers => "headers",
            Self::LeaderEpoch => "leader_epoch",
            Self::ArchivedAt => "archived_at",
            Self::TimestampRaw => "timestamp_raw",
            Self::HeadersRaw => "headers_raw",
        }
    }

    /// The field id that creation gives it.
    pub const fn id(self) -> i32 {
        match self {
            Self::Topic => 1,
            Self::Generation => 2,
            Self::Partition => 3,
            Self::Offset => 4,
            Self::Timestamp => 5,
            Self::TimestampType => 6,
            Self::Key => 7,
            Self::Value => 8,
            Self::Headers => 9,
            Self::LeaderEpoch => 10,
            Self::ArchivedAt => 11,
            Self::TimestampRaw => 12,
            Self::HeadersRaw => 13,
        }
    }

    /// Whether the id is part of the format; the others are what the catalog assigned.
    pub(crate) const fn id_is_fixed(self) -> bool {
        self.id() <= Self::ArchivedAt.id()
    }

    /// Whether every row has a value.
    pub const fn required(self) -> bool {
        matches!(
            self,
            Self::Topic
                | Self::Generation
                | Self::Partition
                | Self::Offset
                | Self::TimestampType
                | Self::ArchivedAt
        )
    }

    /// Position in [`Self::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// The type, where it is not nested.
    const fn primitive(self) -> Option<PrimitiveType> {
        Some(match self {
            Self::Topic => PrimitiveType::String,
            Self::Generation | Self::Partition | Self::TimestampType | Self::LeaderEpoch => {
                PrimitiveType::Int
            }
            Self::Offset | Self::TimestampRaw => PrimitiveType::Long,
            Self::Timestamp | Self::ArchivedAt => PrimitiveType::Timestamptz,
            Self::Key | Self::Value | Self::HeadersRaw => PrimitiveType::Binary,
            Self::Headers => return None,
        })
    }

    const fn doc(self) -> &'static str {
        match self {
            Self::Topic => "Kafka topic",
            Self::Generation => "era of the topic: one cluster id and topic id; counts from 0",
            Self::Partition => "Kafka partition",
            Self::Offset => "Kafka offset",
            Self::Timestamp => {
                "Kafka timestamp; null where the record has none, or timestamp_raw holds it"
            }
            Self::TimestampType => "0 CreateTime, 1 LogAppendTime, -1 none",
            Self::Key => "record key; null and empty differ",
            Self::Value => "record value; null is a tombstone and differs from empty",
            Self::Headers => "record headers in order; null where headers_raw holds them",
            Self::LeaderEpoch => "epoch of the partition leader, where known",
            Self::ArchivedAt => "when the commit was made; one value per commit",
            Self::TimestampRaw => "Kafka timestamp in milliseconds, where timestamp cannot hold it",
            Self::HeadersRaw => {
                "all headers of a record with a key that is not UTF-8, in everlog's binary form"
            }
        }
    }
}

const ELEMENT_ID: i32 = 14;
/// The field id that creation gives a header's key.
pub(crate) const HEADER_KEY_ID: i32 = 15;
/// The field id that creation gives a header's value.
pub(crate) const HEADER_VALUE_ID: i32 = 16;

/// Why a table cannot be described, or is not what this version of everlog reads and writes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// A column is gone.
    #[error(
        "column `{column}` (field id {id}) is not in the table's schema: it was dropped; restore the schema, field ids \
         included, from an earlier version of the table's metadata"
    )]
    Missing {
        /// Its name in the format.
        column: &'static str,
        /// Its id in the format.
        id: i32,
    },
    /// A column has another type.
    #[error(
        "column `{column}` (field id {id}) has type {found}, everlog needs {expected}; undo the schema change"
    )]
    Type {
        /// Its name in the format.
        column: String,
        /// Its id.
        id: i32,
        /// The type it has.
        found: String,
        /// The type it must have.
        expected: String,
    },
    /// Somebody added a column that no row may leave out.
    #[error(
        "column `{column}` (field id {id}) was added as required, but everlog does not know it; make it optional"
    )]
    UnknownRequired {
        /// Its name.
        column: String,
        /// Its id.
        id: i32,
    },
    /// A column was dropped and made anew.
    #[error(
        "column `{column}` was made anew (field id {id}, before {before}), so that what is archived of it cannot be read; \
         restore the schema, field ids included, from an earlier version of the table's metadata"
    )]
    Moved {
        /// Its name in the format.
        column: &'static str,
        /// Its id now.
        id: i32,
        /// Its id when the table was last written.
        before: i32,
    },
    /// The partition spec asked for cannot be used.
    #[error("partition spec `{text}`: {message}")]
    PartitionBy {
        /// As it was asked for.
        text: String,
        /// What is wrong with it and what would be right.
        message: String,
    },
    /// A table property may not be set by hand.
    #[error("table property `{key}`: {message}")]
    Property {
        /// The property.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// The namespace cannot be one.
    #[error("namespace cannot be used")]
    Namespace(#[source] CatalogError),
    /// Iceberg refused the description.
    #[error("iceberg does not accept the table")]
    Refused(#[source] iceberg::Error),
}

impl From<iceberg::Error> for SchemaError {
    fn from(error: iceberg::Error) -> Self {
        Self::Refused(error)
    }
}

/// What the topic's table is created from.
pub fn new_table(
    namespace: &str,
    topic: &TopicName,
    settings: &TableSettings,
) -> Result<NewTable, SchemaError> {
    let namespace = parse_namespace(namespace).map_err(SchemaError::Namespace)?;
    Ok(NewTable {
        ident: TableIdent::new(namespace, table_name(topic)),
        schema: table_schema()?,
        partition_spec: settings.partition_by.to_spec()?,
        sort_order: Some(sort_order()?),
        properties: settings.table_properties(topic)?,
        location: None,
    })
}

/// The schema of a new table. Creation reassigns the ids, and comes to the same ones: first the top level in order, then
/// what is nested.
pub fn table_schema() -> Result<Schema, SchemaError> {
    let fields = Column::ALL.into_iter().map(|column| {
        let kind = column
            .primitive()
            .map_or_else(headers_type, Type::Primitive);
        let field = NestedField::new(column.id(), column.name(), kind, column.required());
        NestedFieldRef::new(field.with_doc(column.doc()))
    });
    Ok(Schema::builder().with_fields(fields).build()?)
}

fn headers_type() -> Type {
    let entry = StructType::new(vec![
        NestedField::required(HEADER_KEY_ID, "key", Type::Primitive(PrimitiveType::String)).into(),
        NestedField::optional(
            HEADER_VALUE_ID,
            "value",
            Type::Primitive(PrimitiveType::Binary),
        )
        .into(),
    ]);
    let element = NestedField::list_element(ELEMENT_ID, Type::Struct(entry), true);
    Type::List(ListType::new(element.into()))
}

/// (partition, offset), ascending.
fn sort_order() -> Result<SortOrder, SchemaError> {
    let by = |column: Column| SortField {
        source_id: column.id(),
        transform: Transform::Identity,
        direction: SortDirection::Ascending,
        null_order: NullOrder::First,
    };
    Ok(SortOrder::builder()
        .with_order_id(1)
        .with_sort_field(by(Column::Partition))
        .with_sort_field(by(Column::Offset))
        .build_unbound()?)
}

#[cfg(test)]
mod tests;
