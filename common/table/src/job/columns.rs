//! A job's columns as the table's: types, and what a later version may change.

use std::fmt;
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Schema as ArrowSchema, TimeUnit};
use iceberg::arrow::{arrow_type_to_type, schema_to_arrow_schema};
use iceberg::spec::{
    ListType, NestedField, NestedFieldRef, Schema, StructType, TableMetadata, Type,
};

/// Why columns cannot be a table's, or no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnChange {
    /// A type that Iceberg does not have.
    Unsupported {
        /// The column.
        column: String,
        /// What is wrong with it, and what to write instead.
        what: String,
    },
    /// Two columns of one name, case aside.
    Twice {
        /// The column.
        column: String,
    },
    /// Another type than the table's.
    Type {
        /// The column.
        column: String,
        /// The table's type.
        table: String,
        /// The version's type.
        version: String,
    },
    /// A column that the active version puts out and this one does not.
    Missing {
        /// The column.
        column: String,
    },
    /// A column that every row of the table must have.
    Required {
        /// The column.
        column: String,
    },
    /// A version that wrote other columns before.
    Changed {
        /// What it wrote.
        before: String,
        /// What it puts out now.
        now: String,
    },
}

impl fmt::Display for ColumnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported { column, what } => write!(f, "column {column} {what}"),
            Self::Twice { column } => write!(
                f,
                "two columns are named {column}, which some engines do not tell apart; give one of them another name with AS"
            ),
            Self::Type {
                column,
                table,
                version,
            } => write!(f, "column {column} is {version}, and {table} in the table"),
            Self::Missing { column } => write!(
                f,
                "column {column} is not there, which the active version puts out"
            ),
            Self::Required { column } => write!(
                f,
                "column {column} is not there, which every row of the table must have"
            ),
            Self::Changed { before, now } => write!(
                f,
                "it wrote the columns {before} until now, and puts out {now}; other logic is another version"
            ),
        }
    }
}

/// Whether a version's columns fit a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// There is a column for each.
    AsIs,
    /// There is, once these are added.
    Add(Vec<FieldRef>),
    /// They do not.
    Refused(ColumnChange),
}

/// The names of columns, for people.
pub(super) fn names(schema: &ArrowSchema) -> String {
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    names.join(", ")
}

/// Decides whether a version's columns fit a table. `known`: what the version wrote before; `active`: what the active one
/// writes.
pub fn fit(
    table: &Schema,
    known: Option<&[String]>,
    active: Option<&[String]>,
    columns: &ArrowSchema,
) -> Fit {
    match try_fit(table, known, active, columns) {
        Ok(added) if added.is_empty() => Fit::AsIs,
        Ok(added) => Fit::Add(added),
        Err(change) => Fit::Refused(change),
    }
}

fn try_fit(
    table: &Schema,
    known: Option<&[String]>,
    active: Option<&[String]>,
    columns: &ArrowSchema,
) -> Result<Vec<FieldRef>, ColumnChange> {
    let wanted = stored_fields(columns)?;
    let has = |name: &str| wanted.iter().any(|f| f.name() == name);
    if let Some(known) = known
        && (known.len() != wanted.len() || !known.iter().all(|name| has(name)))
    {
        return Err(ColumnChange::Changed {
            before: known.join(", "),
            now: names(columns),
        });
    }
    if known.is_none()
        && let Some(column) = active
            .unwrap_or_default()
            .iter()
            .find(|column| !has(column))
    {
        return Err(ColumnChange::Missing {
            column: column.clone(),
        });
    }
    let there = schema_to_arrow_schema(table).map_err(|e| ColumnChange::Unsupported {
        column: "(of the table)".to_owned(),
        what: format!("cannot be read: {e}"),
    })?;
    let left_out = there
        .fields()
        .iter()
        .find(|field| !field.is_nullable() && !has(field.name()));
    if let Some(field) = left_out {
        return Err(ColumnChange::Required {
            column: field.name().clone(),
        });
    }
    let mut added = Vec::new();
    for field in wanted {
        let Ok(same) = there.field_with_name(field.name()) else {
            let folded = field.name().to_lowercase();
            if there
                .fields()
                .iter()
                .any(|f| f.name().to_lowercase() == folded)
            {
                return Err(ColumnChange::Twice {
                    column: field.name().clone(),
                });
            }
            added.push(field);
            continue;
        };
        let (table, version) = (bare(same.data_type()), bare(field.data_type()));
        if table != version {
            return Err(ColumnChange::Type {
                column: field.name().clone(),
                table: table.to_string(),
                version: version.to_string(),
            });
        }
    }
    Ok(added)
}

/// A job's columns as they are stored: all of them optional (J6).
fn stored_fields(columns: &ArrowSchema) -> Result<Vec<FieldRef>, ColumnChange> {
    let mut fields: Vec<FieldRef> = Vec::with_capacity(columns.fields().len());
    for field in columns.fields() {
        let unsupported = |what: String| ColumnChange::Unsupported {
            column: field.name().clone(),
            what,
        };
        let folded = field.name().to_lowercase();
        if fields.iter().any(|f| f.name().to_lowercase() == folded) {
            return Err(ColumnChange::Twice {
                column: field.name().clone(),
            });
        }
        let stored = stored_type(field.data_type()).map_err(unsupported)?;
        fields.push(Arc::new(Field::new(field.name(), stored, true)));
    }
    Ok(fields)
}

/// The Arrow type that a column of a type is stored as, and read as; wider where Iceberg has no such type. Times are cut to
/// microseconds.
pub fn stored_type(of: &DataType) -> Result<DataType, String> {
    const UTC: &str = "+00:00";
    Ok(match of {
        DataType::Boolean => DataType::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
            DataType::Int32
        }
        DataType::Int64 | DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 | DataType::Float32 => DataType::Float32,
        DataType::Float64 => DataType::Float64,
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
            if *scale >= 0 =>
        {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Date32 | DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(_, Some(_)) => {
            DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => DataType::LargeBinary,
        DataType::Dictionary(_, values) => stored_type(values)?,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => {
            let item = stored_type(item.data_type())?;
            DataType::List(Arc::new(Field::new("element", item, true)))
        }
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|field| {
                stored_type(field.data_type())
                    .map(|stored| Arc::new(Field::new(field.name(), stored, true)))
            });
            DataType::Struct(fields.collect::<Result<_, _>>()?)
        }
        DataType::Null => {
            return Err("has no type; write CAST(NULL AS …) with one".to_owned());
        }
        other => {
            return Err(format!(
                "is {other}, which an Iceberg table does not hold; CAST it, for instance to DECIMAL(38, 9) or VARCHAR"
            ));
        }
    })
}

/// A type without what does not matter: ids, names of list items, whether nested values may be null.
fn bare(of: &DataType) -> DataType {
    match of {
        DataType::List(item) => DataType::List(Arc::new(Field::new(
            "element",
            bare(item.data_type()),
            true,
        ))),
        DataType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(|f| Arc::new(Field::new(f.name(), bare(f.data_type()), true)))
                .collect(),
        ),
        other => stored_type(other).unwrap_or_else(|_| other.clone()),
    }
}

/// The schema of a new table.
pub(super) fn new_schema(columns: &ArrowSchema) -> Result<Schema, ColumnChange> {
    let fields = stored_fields(columns)?;
    let broken = |column: &str, what: String| ColumnChange::Unsupported {
        column: column.to_owned(),
        what,
    };
    let fields = nested(&fields, 0).map_err(|(column, what)| broken(&column, what))?;
    Schema::builder()
        .with_fields(fields)
        .build()
        .map_err(|e| broken("(of the query)", e.to_string()))
}

/// The table's schema with columns added to it.
pub(super) fn extended(metadata: &TableMetadata, added: &[FieldRef]) -> Result<Schema, String> {
    let current = metadata.current_schema();
    let mut fields: Vec<NestedFieldRef> = current.as_struct().fields().to_vec();
    let new = nested(added, metadata.last_column_id())
        .map_err(|(column, what)| format!("{column}: {what}"))?;
    fields.extend(new);
    Schema::builder()
        .with_fields(fields)
        .with_identifier_field_ids(current.identifier_field_ids())
        .build()
        .map_err(|e| e.to_string())
}

/// Columns with ids after `last`, the outer ones first.
fn nested(fields: &[FieldRef], last: i32) -> Result<Vec<NestedFieldRef>, (String, String)> {
    let first = last + 1;
    let count = i32::try_from(fields.len()).unwrap_or(i32::MAX);
    let mut next = first.saturating_add(count);
    (first..)
        .zip(fields)
        .map(|(id, field)| {
            let of = iceberg_type(field.data_type(), &mut next)
                .map_err(|what| (field.name().clone(), what))?;
            Ok(NestedField::optional(id, field.name(), of).into())
        })
        .collect()
}

fn iceberg_type(of: &DataType, next: &mut i32) -> Result<Type, String> {
    let mut id = || {
        *next += 1;
        *next - 1
    };
    match of {
        DataType::List(item) => {
            let own = id();
            let element = iceberg_type(item.data_type(), next)?;
            Ok(Type::List(ListType {
                element_field: NestedField::list_element(own, element, false).into(),
            }))
        }
        DataType::Struct(fields) => {
            let ids: Vec<i32> = fields.iter().map(|_| id()).collect();
            let fields: Result<Vec<NestedFieldRef>, String> = ids
                .into_iter()
                .zip(fields)
                .map(|(id, field)| {
                    let of = iceberg_type(field.data_type(), next)?;
                    Ok(NestedField::optional(id, field.name(), of).into())
                })
                .collect();
            Ok(Type::Struct(StructType::new(fields?)))
        }
        other => arrow_type_to_type(other).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(fields: &[(&str, DataType)]) -> ArrowSchema {
        let fields = fields
            .iter()
            .map(|(name, of)| Field::new(*name, of.clone(), false));
        ArrowSchema::new(fields.collect::<Vec<_>>())
    }

    fn sessions() -> ArrowSchema {
        let ms = DataType::Timestamp(TimeUnit::Millisecond, None);
        schema(&[
            ("user_id", DataType::Utf8View),
            ("session_start", ms.clone()),
            ("session_end", ms),
            ("views", DataType::Int64),
        ])
    }

    fn with(mut base: ArrowSchema, name: &str, of: DataType) -> ArrowSchema {
        let mut fields: Vec<FieldRef> = base.fields().to_vec();
        fields.push(Arc::new(Field::new(name, of, true)));
        base.fields = fields.into();
        base
    }

    fn without(base: &ArrowSchema, name: &str) -> ArrowSchema {
        let left = base.fields().iter().filter(|f| f.name() != name).cloned();
        ArrowSchema::new(left.collect::<Vec<_>>())
    }

    #[test]
    fn a_later_version_may_add_columns_and_nothing_else() {
        let table = new_schema(&sessions()).expect("a schema");
        let active: Vec<String> = ["user_id", "session_start", "session_end", "views"]
            .map(str::to_owned)
            .to_vec();
        let fitted = |columns: &ArrowSchema| fit(&table, None, Some(&active), columns);
        assert_eq!(fitted(&sessions()), Fit::AsIs);
        let Fit::Add(added) = fitted(&with(sessions(), "purchases", DataType::Int64)) else {
            panic!("a column can be added");
        };
        assert_eq!(added.len(), 1);
        assert!(added[0].is_nullable());
        assert_eq!(
            fitted(&without(&sessions(), "views")),
            Fit::Refused(ColumnChange::Missing {
                column: "views".to_owned()
            })
        );
        let changed = with(without(&sessions(), "views"), "views", DataType::Utf8);
        let Fit::Refused(ColumnChange::Type { column, .. }) = fitted(&changed) else {
            panic!("a type cannot change");
        };
        assert_eq!(column, "views");
        let folded = with(sessions(), "Views", DataType::Int64);
        assert!(matches!(
            fitted(&folded),
            Fit::Refused(ColumnChange::Twice { .. })
        ));
    }

    #[test]
    fn a_version_keeps_its_columns_also_after_others_added_some() {
        let both = new_schema(&with(sessions(), "purchases", DataType::Int64)).expect("a schema");
        let own: Vec<String> = sessions()
            .fields()
            .iter()
            .map(|f| f.name().clone())
            .collect();
        assert_eq!(fit(&both, Some(&own), Some(&own), &sessions()), Fit::AsIs);
        let more = with(sessions(), "purchases", DataType::Int64);
        assert!(matches!(
            fit(&both, Some(&own), Some(&own), &more),
            Fit::Refused(ColumnChange::Changed { .. })
        ));
    }

    #[test]
    fn nested_columns_get_ids_after_the_outer_ones_and_can_be_added() {
        let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8View, true)));
        let table = new_schema(&with(sessions(), "products", list.clone())).expect("a schema");
        let ids: Vec<i32> = table.as_struct().fields().iter().map(|f| f.id).collect();
        assert_eq!(ids, [1, 2, 3, 4, 5]);
        assert_eq!(table.highest_field_id(), 6);
        let same = with(sessions(), "products", list);
        assert_eq!(fit(&table, None, None, &same), Fit::AsIs);
    }

    #[test]
    fn what_iceberg_does_not_hold_is_refused_with_the_way_on() {
        let null = with(sessions(), "nothing", DataType::Null);
        let change = new_schema(&null).expect_err("no type");
        assert!(change.to_string().contains("CAST(NULL AS"), "{change}");
    }
}
