//! A table's columns: as SQL sees them, and where a file has them. By field id, never by place or by name: files of before
//! a rename have the old names, files of other engines another order, and what is gone came back may be another column.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DataFusionError, Result as PlanResult};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
};
use iceberg::arrow::schema_to_arrow_schema;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

/// A table's columns, as SQL sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns {
    /// Names and types. Strings and bytes are views: no batch of large values overflows, and values are not copied.
    pub(crate) schema: SchemaRef,
    /// The field id of each.
    pub(crate) ids: Vec<i32>,
}

impl Columns {
    /// The columns of an Iceberg schema.
    pub(crate) fn of(schema: &iceberg::spec::Schema) -> Result<Self, iceberg::Error> {
        let arrow = schema_to_arrow_schema(schema)?;
        let fields: Vec<Field> = arrow
            .fields()
            .iter()
            .map(|field| {
                Field::new(
                    field.name(),
                    top_level(field.data_type()),
                    field.is_nullable(),
                )
            })
            .collect();
        Ok(Self {
            schema: Arc::new(Schema::new(fields)),
            ids: schema.as_struct().fields().iter().map(|f| f.id).collect(),
        })
    }

    /// The place of a column.
    pub(crate) fn place(&self, id: i32) -> Option<usize> {
        self.ids.iter().position(|i| *i == id)
    }

    /// What finds these columns in files.
    pub(crate) fn adapter(&self) -> Arc<dyn PhysicalExprAdapterFactory> {
        let names = self
            .schema
            .fields()
            .iter()
            .map(|field| field.name().clone());
        Arc::new(ById {
            names: self.ids.iter().copied().zip(names).collect(),
        })
    }
}

fn top_level(kind: &DataType) -> DataType {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        other => plain(other),
    }
}

/// A type as Parquet's own reader has it, without field ids inside.
fn plain(kind: &DataType) -> DataType {
    let field = |field: &FieldRef| {
        Arc::new(Field::new(
            field.name(),
            plain(field.data_type()),
            field.is_nullable(),
        ))
    };
    match kind {
        DataType::LargeUtf8 => DataType::Utf8,
        DataType::LargeBinary => DataType::Binary,
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("UTC".into())),
        DataType::List(element) => DataType::List(field(element)),
        DataType::LargeList(element) => DataType::LargeList(field(element)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        other => other.clone(),
    }
}

/// A field's id in a file.
fn id_of(field: &Field) -> Option<i32> {
    let text = field.metadata().get(PARQUET_FIELD_ID_META_KEY)?;
    text.parse().ok()
}

/// Finds columns in files by their ids; by name in files that have no ids at all, as Iceberg's readers do.
#[derive(Debug)]
struct ById {
    names: HashMap<i32, String>,
}

impl PhysicalExprAdapterFactory for ById {
    fn create(
        &self,
        logical_file_schema: SchemaRef,
        physical_file_schema: SchemaRef,
    ) -> PlanResult<Arc<dyn PhysicalExprAdapter>> {
        let renamed = renamed(&physical_file_schema, &self.names)?;
        let inner =
            DefaultPhysicalExprAdapterFactory.create(logical_file_schema, Arc::new(renamed))?;
        Ok(Arc::new(Renamed {
            inner,
            file: physical_file_schema,
        }))
    }
}

/// A file's schema with the names that the table gives its columns. Columns that the table does not have get names that
/// no table has.
fn renamed(file: &Schema, names: &HashMap<i32, String>) -> PlanResult<Schema> {
    let has_ids = file.fields().iter().any(|field| id_of(field).is_some());
    if !has_ids {
        return Ok(file.clone());
    }
    let mut seen = Vec::new();
    let mut fields = Vec::with_capacity(file.fields().len());
    for (place, field) in file.fields().iter().enumerate() {
        let name = id_of(field).and_then(|id| names.get(&id));
        if let Some(name) = name {
            if seen.contains(&name) {
                let what = format!("the file has column {name} twice");
                return Err(DataFusionError::Execution(what));
            }
            seen.push(name);
        }
        let name = name.map_or_else(|| format!("\u{0}{place}"), Clone::clone);
        fields.push(field.as_ref().clone().with_name(name));
    }
    Ok(Schema::new(fields))
}

/// An adapter for the file under the table's names, whose expressions go back to the file's own names.
#[derive(Debug)]
struct Renamed {
    inner: Arc<dyn PhysicalExprAdapter>,
    file: SchemaRef,
}

impl PhysicalExprAdapter for Renamed {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> PlanResult<Arc<dyn PhysicalExpr>> {
        let rewritten = self.inner.rewrite(expr)?;
        rewritten
            .transform(|expr| {
                let Some(column) = expr.as_any().downcast_ref::<Column>() else {
                    return Ok(Transformed::no(expr));
                };
                let field = self.file.fields().get(column.index()).ok_or_else(|| {
                    DataFusionError::Internal(format!("no column {}", column.index()))
                })?;
                if field.name() == column.name() {
                    return Ok(Transformed::no(expr));
                }
                let own: Arc<dyn PhysicalExpr> =
                    Arc::new(Column::new(field.name(), column.index()));
                Ok(Transformed::yes(own))
            })
            .data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, kind: DataType, id: Option<i32>) -> Field {
        let metadata = id.map(|id| (PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string()));
        Field::new(name, kind, true).with_metadata(metadata.into_iter().collect())
    }

    fn names() -> HashMap<i32, String> {
        HashMap::from([(1, "a".to_owned()), (2, "b".to_owned())])
    }

    #[test]
    fn columns_are_found_by_id_whatever_the_file_calls_them() {
        let file = Schema::new(vec![
            field("b", DataType::Int64, Some(7)),
            field("old", DataType::Int64, Some(2)),
            field("a", DataType::Int64, Some(1)),
        ]);
        let found = renamed(&file, &names()).unwrap();
        let found: Vec<&str> = found.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(found, ["\u{0}0", "b", "a"]);
        let table = Arc::new(Schema::new(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("b", DataType::Int64, true),
        ]));
        let adapter = ById { names: names() }
            .create(table, Arc::new(file))
            .unwrap();
        let rewritten = adapter.rewrite(Arc::new(Column::new("b", 1))).unwrap();
        let column = rewritten.as_any().downcast_ref::<Column>().unwrap();
        assert_eq!((column.name(), column.index()), ("old", 1));
    }

    #[test]
    fn files_without_ids_are_read_by_name_and_an_id_twice_is_refused() {
        let plain = Schema::new(vec![field("a", DataType::Int64, None)]);
        assert_eq!(renamed(&plain, &names()).unwrap(), plain);
        let twice = Schema::new(vec![
            field("x", DataType::Int64, Some(1)),
            field("y", DataType::Int64, Some(1)),
        ]);
        assert!(renamed(&twice, &names()).is_err());
    }
}
