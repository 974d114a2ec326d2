//! What the view's columns are: Kafka's, the value's, and what is wrong with the value. Pure.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use everlog_decode::Columns;
use everlog_table::schema::Column;

use crate::QueryError;

/// Kafka's columns in a view, and what they are in the archive.
pub const KAFKA_COLUMNS: [(&str, Column); 6] = [
    ("_topic", Column::Topic),
    ("_generation", Column::Generation),
    ("_partition", Column::Partition),
    ("_offset", Column::Offset),
    ("_timestamp", Column::Timestamp),
    ("_key", Column::Key),
];

/// What is wrong with a value.
pub(super) const ERROR: &str = "_error";

/// A column of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The archive's column at this place.
    Archive(usize),
    /// The value's column at this place.
    Value(usize),
    /// What is wrong with the value.
    Error,
}

/// The view's columns.
#[derive(Debug, Clone)]
pub(super) struct ViewColumns {
    /// As SQL sees them.
    pub(super) schema: SchemaRef,
    /// What each is.
    pub(super) sources: Vec<Source>,
    /// The archive's column of values.
    pub(super) value: usize,
}

impl ViewColumns {
    /// Over an archive of these columns.
    pub(super) fn new(archive: &Schema, decoded: &Columns) -> Result<Self, QueryError> {
        let place = |column: Column| {
            archive.index_of(column.name()).map_err(|_| {
                QueryError::Corrupt(format!(
                    "the archive's table has no column {}, which its view needs",
                    column.name()
                ))
            })
        };
        let mut fields = Vec::new();
        let mut sources = Vec::new();
        for (name, column) in KAFKA_COLUMNS {
            let at = place(column)?;
            fields.push(archive.field(at).clone().with_name(name));
            sources.push(Source::Archive(at));
        }
        let names = column_names(decoded);
        for (at, (column, name)) in decoded.iter().zip(names).enumerate() {
            fields.push(Field::new(name, column.of.sql.arrow(), true));
            sources.push(Source::Value(at));
        }
        fields.push(Field::new(ERROR, DataType::Utf8, true));
        sources.push(Source::Error);
        Ok(Self {
            schema: Arc::new(Schema::new(fields)),
            sources,
            value: place(Column::Value)?,
        })
    }

    /// The name in the archive of one of Kafka's columns.
    pub(super) fn in_archive(name: &str) -> Option<&'static str> {
        KAFKA_COLUMNS
            .iter()
            .find(|(view, _)| *view == name)
            .map(|(_, column)| column.name())
    }
}

/// What a value's columns are called in the view: as they are, but for those that are called like one of Kafka's (`_offset`), which get
/// `value` before their name (`value_offset`), and as many `_` behind it as it takes to be the only one.
pub fn column_names(decoded: &Columns) -> Vec<String> {
    names(decoded.iter().map(|column| column.name.as_str()))
}

fn names<'a>(decoded: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let is_taken =
        |name: &str| name == ERROR || KAFKA_COLUMNS.iter().any(|(kafka, _)| *kafka == name);
    let mut given: Vec<String> = Vec::new();
    for name in decoded.clone() {
        let mut name = name.to_owned();
        if is_taken(&name) {
            name.insert_str(0, "value");
            while decoded.clone().any(|other| other == name) || given.contains(&name) {
                name.push('_');
            }
        }
        given.push(name);
    }
    given
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_column_called_like_one_of_kafkas_gets_another_name() {
        let named = |columns: &[&str]| names(columns.iter().copied());
        assert_eq!(named(&["a", "offset"]), ["a", "offset"]);
        assert_eq!(
            named(&["_offset", "_error", "value_offset", "_OFFSET"]),
            ["value_offset_", "value_error", "value_offset", "_OFFSET"]
        );
    }

    #[test]
    fn an_archive_without_values_is_refused() {
        let archive = Schema::new(vec![Field::new("topic", DataType::Utf8, false)]);
        let columns = Columns::parse([("a", "INT")]).unwrap();
        let error = ViewColumns::new(&archive, &columns).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the archive's table has no column generation, which its view needs"
        );
    }

    proptest! {
        #[test]
        fn no_name_is_given_twice(
            columns in proptest::collection::btree_set("(value)?(_offset|_key|_error|a)_{0,2}", 0..8),
        ) {
            let given = names(columns.iter().map(String::as_str));
            let mut all: Vec<&str> = given.iter().map(String::as_str).chain(KAFKA_COLUMNS.map(|k| k.0)).chain([ERROR]).collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all.len(), count);
        }
    }
}
