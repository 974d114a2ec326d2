//! A table's schema, held against the format.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, SchemaRef, TimeUnit};
use iceberg::spec::{NestedFieldRef, PrimitiveType, Schema, StructType, Type};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::{Column, SchemaError};

/// The columns of one table: which ids and names they have there.
///
/// * Every column of the format is there, with the format's type.
#[derive(Debug, Clone)]
pub struct ColumnMap {
    fields: [(i32, String); Column::ALL.len()],
    /// Ids of a header list's element, key and value.
    headers: [i32; 3],
    arrow: SchemaRef,
}

impl ColumnMap {
    /// Finds the columns in a table's schema.
    pub fn resolve(schema: &Schema) -> Result<Self, SchemaError> {
        let top = schema.as_struct();
        let mut found = Vec::with_capacity(Column::ALL.len());
        for column in Column::ALL {
            found.push(find(top, column)?);
        }
        refuse_unknown_required(top, &found)?;
        let headers = found[Column::Headers.index()];
        let (element_id, header_key, header_value) = resolve_headers(headers)?;
        let fields = std::array::from_fn(|i| (found[i].id, found[i].name.clone()));
        let arrow = arrow_schema(&fields, element_id, &header_key, &header_value);
        Ok(Self {
            fields,
            headers: [element_id, header_key.0, header_value.0],
            arrow,
        })
    }

    /// Refuses columns that have other ids than in `before`: what was written under those is not read any more.
    pub(crate) fn check_same_ids(&self, before: &Self) -> Result<(), SchemaError> {
        let moved = Column::ALL.into_iter().find(|column| {
            let is_headers = *column == Column::Headers;
            self.id(*column) != before.id(*column) || is_headers && self.headers != before.headers
        });
        match moved {
            None => Ok(()),
            Some(column) => Err(SchemaError::Moved {
                column: column.name(),
                id: self.id(column),
                before: before.id(column),
            }),
        }
    }

    /// The column's field id in this table.
    pub fn id(&self, column: Column) -> i32 {
        self.fields[column.index()].0
    }

    /// What the column is called in this table.
    pub fn name(&self, column: Column) -> &str {
        &self.fields[column.index()].1
    }

    /// The Arrow schema that data files are written with; its fields carry the field ids.
    pub fn arrow_schema(&self) -> &SchemaRef {
        &self.arrow
    }
}

fn find(top: &StructType, column: Column) -> Result<&NestedFieldRef, SchemaError> {
    let field = if column.id_is_fixed() {
        top.field_by_id(column.id())
    } else {
        top.field_by_name(column.name())
    };
    let field = field.ok_or(SchemaError::Missing {
        column: column.name(),
        id: column.id(),
    })?;
    match (column.primitive(), field.field_type.as_ref()) {
        (Some(expected), Type::Primitive(found)) if *found == expected => Ok(field),
        (None, Type::List(_)) => Ok(field),
        (expected, found) => {
            let expected = expected.map_or_else(
                || "list<struct<key: string, value: binary>>".to_owned(),
                |p| p.to_string(),
            );
            Err(wrong_type(field, found, &expected))
        }
    }
}

fn wrong_type(field: &NestedFieldRef, found: &Type, expected: &str) -> SchemaError {
    SchemaError::Type {
        column: field.name.clone(),
        id: field.id,
        found: found.to_string(),
        expected: expected.to_owned(),
    }
}

fn refuse_unknown_required(top: &StructType, known: &[&NestedFieldRef]) -> Result<(), SchemaError> {
    let is_known = |id: i32| known.iter().any(|k| k.id == id);
    match top.fields().iter().find(|f| f.required && !is_known(f.id)) {
        None => Ok(()),
        Some(field) => Err(SchemaError::UnknownRequired {
            column: field.name.clone(),
            id: field.id,
        }),
    }
}

type Named = (i32, String);

fn resolve_headers(headers: &NestedFieldRef) -> Result<(i32, Named, Named), SchemaError> {
    let expected = "list<struct<key: string, value: binary>>";
    let refused = || wrong_type(headers, &headers.field_type, expected);
    let Type::List(list) = headers.field_type.as_ref() else {
        return Err(refused());
    };
    let Type::Struct(entry) = list.element_field.field_type.as_ref() else {
        return Err(refused());
    };
    let part = |name: &str, kind: PrimitiveType| {
        entry
            .field_by_name(name)
            .filter(|f| *f.field_type == Type::Primitive(kind))
            .map(|f| (f.id, f.name.clone()))
            .ok_or_else(refused)
    };
    let key = part("key", PrimitiveType::String)?;
    let value = part("value", PrimitiveType::Binary)?;
    if let Some(other) = entry
        .fields()
        .iter()
        .find(|f| f.required && f.id != key.0 && f.id != value.0)
    {
        return Err(SchemaError::UnknownRequired {
            column: format!("{}.{}", headers.name, other.name),
            id: other.id,
        });
    }
    Ok((list.element_field.id, key, value))
}

fn arrow_schema(
    fields: &[(i32, String); Column::ALL.len()],
    element_id: i32,
    header_key: &Named,
    header_value: &Named,
) -> SchemaRef {
    let entry = Fields::from(vec![
        with_id(header_key.0, &header_key.1, DataType::Utf8, false),
        with_id(header_value.0, &header_value.1, DataType::Binary, true),
    ]);
    let element = with_id(element_id, "element", DataType::Struct(entry), false);
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
    let arrow: Vec<Field> = Column::ALL
        .into_iter()
        .map(|column| {
            let kind = match column {
                Column::Topic => {
                    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
                }
                Column::Generation
                | Column::Partition
                | Column::TimestampType
                | Column::LeaderEpoch => DataType::Int32,
                Column::Offset | Column::TimestampRaw => DataType::Int64,
                Column::Timestamp | Column::ArchivedAt => time(),
                Column::Key | Column::Value | Column::HeadersRaw => DataType::Binary,
                Column::Headers => DataType::List(Arc::new(element.clone())),
            };
            let (id, name) = &fields[column.index()];
            with_id(*id, name, kind, !column.required())
        })
        .collect();
    Arc::new(arrow_schema::Schema::new(arrow))
}

fn with_id(id: i32, name: &str, kind: DataType, nullable: bool) -> Field {
    let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
    Field::new(name, kind, nullable).with_metadata(metadata)
}
