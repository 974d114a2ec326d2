use std::collections::HashMap;

use iceberg::spec::{FormatVersion, TableMetadata, TableMetadataBuilder, UnboundPartitionSpec};

use super::*;

fn created(settings: &TableSettings) -> TableMetadata {
    let topic = TopicName::new("clickstream.raw").unwrap();
    let table = new_table("lake.everlog", &topic, settings).unwrap();
    let properties: HashMap<String, String> = table.properties.into_iter().collect();
    TableMetadataBuilder::new(
        table.schema,
        table
            .partition_spec
            .unwrap_or_else(|| UnboundPartitionSpec::builder().build()),
        table.sort_order.unwrap(),
        "file:///lake/t".to_owned(),
        FormatVersion::V2,
        properties,
    )
    .unwrap()
    .build()
    .unwrap()
    .metadata
}
