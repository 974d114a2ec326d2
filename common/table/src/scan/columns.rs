//! Where a file has the table's columns: by field id, or by name in files that have no ids at all.

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, FieldRef, Schema};
use parquet::arrow::{PARQUET_FIELD_ID_META_KEY, ProjectionMask};
use parquet::schema::types::SchemaDescriptor;

use crate::schema::Column;

/// Per column, its number among the file's top-level columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileColumns {
    roots: [Option<usize>; Column::ALL.len()],
}

fn field_id(field: &Field) -> Option<i32> {
    field
        .metadata()
        .get(PARQUET_FIELD_ID_META_KEY)?
        .parse()
        .ok()
}

impl FileColumns {
    /// Finds the columns. Those that may be null may be missing.
    pub(super) fn resolve(schema: &Schema) -> Result<Self, String> {
        let fields = schema.fields();
        let has_ids = fields.iter().any(|f| field_id(f).is_some());
        let mut roots = [None; Column::ALL.len()];
        for column in Column::ALL {
            let is_it = |field: &FieldRef| match (has_ids, column.id_is_fixed()) {
                (false, _) => field.name() == column.name(),
                (true, true) => field_id(field) == Some(column.id()),
                (true, false) => field_id(field).is_some() && field.name() == column.name(),
            };
            let mut found = (0..fields.len()).filter(|i| is_it(&fields[*i]));
            let root = found.next();
            if found.next().is_some() {
                return Err(format!("it has column {} twice", column.name()));
            }
            if root.is_none() && column.required() {
                let (name, id) = (column.name(), column.id());
                return Err(format!("it lacks column {name} (field id {id})"));
            }
            roots[column.index()] = root;
        }
        Ok(Self { roots })
    }

    /// Whether the file has the column.
    pub(super) fn has(&self, column: Column) -> bool {
        self.roots[column.index()].is_some()
    }

    /// The file's schema, with the topic as a dictionary: so its one value is looked at once, not once per row.
    pub(super) fn with_topic_dictionary(&self, schema: &Schema) -> Schema {
        let topic = self.roots[Column::Topic.index()];
        let fields = schema.fields().iter().enumerate().map(|(i, field)| {
            if Some(i) != topic {
                return field.as_ref().clone();
            }
            let kind = DataType::Dictionary(
                Box::new(DataType::Int32),
                Box::new(field.data_type().clone()),
            );
            field.as_ref().clone().with_data_type(kind)
        });
        Schema::new(fields.collect::<Vec<Field>>()).with_metadata(schema.metadata().clone())
    }

    /// The wanted columns as the reader is to deliver them.
    pub(super) fn project(&self, wanted: &[Column], schema: &SchemaDescriptor) -> Projection {
        let mut roots: Vec<(usize, Column)> = wanted
            .iter()
            .filter_map(|c| Some((self.roots[c.index()]?, *c)))
            .collect();
        roots.sort_unstable();
        let mask = ProjectionMask::roots(schema, roots.iter().map(|(root, _)| *root));
        let leaves = (0..schema.num_columns())
            .filter(|leaf| mask.leaf_included(*leaf))
            .collect();
        Projection {
            columns: roots.into_iter().map(|(_, column)| column).collect(),
            leaves,
            mask,
        }
    }
}

/// Some of a file's columns.
#[derive(Debug, Clone)]
pub(super) struct Projection {
    /// In the order of delivery.
    columns: Vec<Column>,
    /// Numbers of their column chunks in a row group.
    pub(super) leaves: Vec<usize>,
    pub(super) mask: ProjectionMask,
}

impl Projection {
    /// A column of what was delivered.
    pub(super) fn column(&self, batch: &RecordBatch, column: Column) -> Option<ArrayRef> {
        let at = self.columns.iter().position(|c| *c == column)?;
        batch.columns().get(at).cloned()
    }
}
