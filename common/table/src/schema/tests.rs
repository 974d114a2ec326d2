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

fn ids_of(metadata: &TableMetadata) -> Vec<(i32, String)> {
    let mut ids: Vec<(i32, String)> = metadata
        .current_schema()
        .field_id_to_name_map()
        .iter()
        .map(|(id, name)| (*id, name.clone()))
        .collect();
    ids.sort();
    ids
}

#[test]
fn creation_assigns_exactly_the_documented_field_ids() {
    let expected = [
        (1, "topic"),
        (2, "generation"),
        (3, "partition"),
        (4, "offset"),
        (5, "timestamp"),
        (6, "timestamp_type"),
        (7, "key"),
        (8, "value"),
        (9, "headers"),
        (10, "leader_epoch"),
        (11, "archived_at"),
        (12, "timestamp_raw"),
        (13, "headers_raw"),
        (14, "headers.element"),
        (15, "headers.element.key"),
        (16, "headers.element.value"),
    ];
    let metadata = created(&TableSettings::default());
    let expected: Vec<(i32, String)> = expected.map(|(id, n)| (id, n.to_owned())).into();
    assert_eq!(ids_of(&metadata), expected);
    assert_eq!(metadata.last_column_id(), 16);
    // Ids that do not depend on who assigns them: reassigning our own schema changes nothing.
    assert_eq!(
        metadata.current_schema().as_struct(),
        table_schema().unwrap().as_struct()
    );
}

#[test]
fn a_new_table_has_the_documented_types() {
    let metadata = created(&TableSettings::default());
    let described: Vec<String> = metadata
        .current_schema()
        .as_struct()
        .fields()
        .iter()
        .map(|f| {
            let need = if f.required { "required" } else { "optional" };
            format!("{} {} {need}", f.name, f.field_type)
        })
        .collect();
    assert_eq!(
        described,
        [
            "topic string required",
            "generation int required",
            "partition int required",
            "offset long required",
            "timestamp timestamptz optional",
            "timestamp_type int required",
            "key binary optional",
            "value binary optional",
            "headers list optional",
            "leader_epoch int optional",
            "archived_at timestamptz required",
            "timestamp_raw long optional",
            "headers_raw binary optional",
        ]
    );
}

#[test]
fn a_new_table_is_partitioned_by_day_of_archiving_and_sorted_by_partition_and_offset() {
    let metadata = created(&TableSettings::default());
    let spec = metadata.default_partition_spec();
    let fields: Vec<(i32, i32, &str, Transform)> = spec
        .fields()
        .iter()
        .map(|f| (f.source_id, f.field_id, f.name.as_str(), f.transform))
        .collect();
    assert_eq!(fields, [(11, 1000, "archived_at_day", Transform::Day)]);
    let order = metadata.default_sort_order();
    let sorted: Vec<(i32, Transform, SortDirection)> = order
        .fields
        .iter()
        .map(|f| (f.source_id, f.transform, f.direction))
        .collect();
    let ascending = SortDirection::Ascending;
    assert_eq!(
        sorted,
        [
            (3, Transform::Identity, ascending),
            (4, Transform::Identity, ascending)
        ]
    );
    assert_eq!(order.order_id, 1);
}

#[test]
fn a_new_table_says_whose_it_is_and_what_other_engines_shall_keep() {
    let metadata = created(&TableSettings::default());
    let property = |key: &str| metadata.properties().get(key).map(String::as_str);
    assert_eq!(property(PROPERTY_TOPIC), Some("clickstream.raw"));
    assert_eq!(property(PROPERTY_FORMAT), Some("1"));
    assert_eq!(property("write.metadata.metrics.default"), Some("none"));
    for column in [
        "generation",
        "partition",
        "offset",
        "timestamp",
        "archived_at",
    ] {
        let key = format!("write.metadata.metrics.column.{column}");
        assert_eq!(property(&key), Some("full"), "{column}");
    }
    assert_eq!(property("write.delete.mode"), Some("copy-on-write"));
}

#[test]
fn own_properties_win_but_never_over_those_that_say_what_the_table_is() {
    let with = |key: &str| TableSettings {
        properties: [(key.to_owned(), "x".to_owned())].into(),
        ..TableSettings::default()
    };
    let metadata = created(&with("write.parquet.compression-level"));
    assert_eq!(
        metadata.properties()["write.parquet.compression-level"],
        "x"
    );
    let topic = TopicName::new("t").unwrap();
    for key in ["everlog.topic", "everlog.ledger", "format-version"] {
        let refused = new_table("ns", &topic, &with(key));
        assert!(
            matches!(refused, Err(SchemaError::Property { .. })),
            "{key}"
        );
    }
}

#[test]
fn partition_specs_read_back_as_they_are_written() {
    for text in [
        "none",
        "day(archived_at)",
        "hour(archived_at)",
        "identity(partition)",
        "day(archived_at), identity(partition)",
        "month(archived_at), bucket(16, partition), identity(generation)",
        "truncate(10, partition)",
    ] {
        let by: PartitionBy = text.parse().unwrap();
        assert_eq!(by.to_string(), text);
        let settings = TableSettings {
            partition_by: by.clone(),
            ..TableSettings::default()
        };
        let spec = created(&settings).default_partition_spec().clone();
        assert_eq!(spec.fields().len(), by.terms().len());
    }
    assert_eq!(PartitionBy::default().to_string(), "day(archived_at)");
}

#[test]
fn partition_specs_that_would_split_runs_or_explode_are_refused() {
    for text in [
        "",
        "day(timestamp)",
        "identity(archived_at)",
        "identity(offset)",
        "bucket(partition)",
        "bucket(0, partition)",
        "bucket(x, partition)",
        "day(partition)",
        "identity(topic)",
        "day(archived_at), hour(archived_at)",
        "day(archived_at",
        "day archived_at",
        "none, day(archived_at)",
    ] {
        let refused: Result<PartitionBy, _> = text.parse();
        assert!(refused.is_err(), "{text}");
    }
}

#[test]
fn table_names_replace_what_catalogs_do_not_take_and_clash_case_folded() {
    let name = |t: &str| table_name(&TopicName::new(t).unwrap());
    assert_eq!(name("clickstream.raw"), "clickstream_raw");
    assert_eq!(name("a-b.c_D9"), "a_b_c_D9");
    let folded = |t: &str| folded_table_name(&TopicName::new(t).unwrap());
    assert_eq!(folded("Orders.EU"), folded("orders-eu"));
    assert_ne!(folded("orders"), folded("order_s"));
}

/// The schema with one field changed or left out.
fn changed(change: impl Fn(&NestedField) -> Option<NestedField>) -> Schema {
    let fields: Vec<NestedFieldRef> = table_schema()
        .unwrap()
        .as_struct()
        .fields()
        .iter()
        .filter_map(|f| change(f).map(NestedFieldRef::new))
        .collect();
    Schema::builder().with_fields(fields).build().unwrap()
}

#[test]
fn h35_a_dropped_column_is_named() {
    for column in Column::ALL {
        let schema = changed(|f| (f.id != column.id()).then(|| f.clone()));
        let error = ColumnMap::resolve(&schema).unwrap_err();
        assert!(error.to_string().contains(column.name()), "{error}");
    }
}

#[test]
fn h35_a_column_of_that_name_with_another_id_is_another_column() {
    let schema = changed(|f| {
        let mut f = f.clone();
        if f.name == "offset" {
            f.id = 99;
        }
        Some(f)
    });
    let error = ColumnMap::resolve(&schema).unwrap_err();
    assert!(matches!(
        error,
        SchemaError::Missing {
            column: "offset",
            id: 4
        }
    ));
}

#[test]
fn h35_a_changed_type_is_refused_and_both_types_are_named() {
    let schema = changed(|f| {
        let kind = if f.name == "partition" {
            Type::Primitive(PrimitiveType::Long)
        } else {
            f.field_type.as_ref().clone()
        };
        Some(NestedField::new(f.id, &f.name, kind, f.required))
    });
    let error = ColumnMap::resolve(&schema).unwrap_err().to_string();
    assert!(error.contains("long") && error.contains("int"), "{error}");
}

#[test]
fn h35_renamed_and_added_columns_are_tolerated_unless_they_are_required() {
    let renamed = changed(|f| {
        let mut f = f.clone();
        if f.id == Column::Value.id() {
            f.name = "payload".to_owned();
        }
        Some(f)
    });
    let columns = ColumnMap::resolve(&renamed).unwrap();
    assert_eq!(columns.name(Column::Value), "payload");
    assert_eq!(columns.id(Column::Value), 8);

    let with = |required: bool| {
        let added = NestedField::new(17, "note", Type::Primitive(PrimitiveType::String), required);
        let mut fields = table_schema().unwrap().as_struct().fields().to_vec();
        fields.insert(0, added.into());
        Schema::builder().with_fields(fields).build().unwrap()
    };
    assert!(ColumnMap::resolve(&with(false)).is_ok());
    let refused = ColumnMap::resolve(&with(true));
    assert!(matches!(
        refused,
        Err(SchemaError::UnknownRequired { id: 17, .. })
    ));
}

#[test]
fn the_arrow_schema_carries_every_field_id() {
    let columns = ColumnMap::resolve(&table_schema().unwrap()).unwrap();
    let converted = iceberg::arrow::arrow_schema_to_schema(columns.arrow_schema()).unwrap();
    assert_eq!(
        converted.field_id_to_name_map(),
        table_schema().unwrap().field_id_to_name_map()
    );
}
