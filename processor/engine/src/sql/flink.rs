//! The same job as a Flink SQL program.

use std::fmt;
use std::time::Duration;

use super::Refusal;
use super::plan::EVENT_TIME;
use super::translate::{Translation, interval};
use crate::query::Query;
use arrow_schema::{DataType, TimeUnit};

/// What the Flink program needs that the query does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flink {
    /// The options of the source table, as `('connector', 'kafka')`.
    pub source: Vec<(String, String)>,
    /// The name of the sink table.
    pub sink_name: String,
    /// The options of the sink table.
    pub sink: Vec<(String, String)>,
    /// How far the watermark trails the event time, where it is not the job's bound: wider than all the data makes Flink
    /// hold everything until the end.
    pub watermark: Option<Duration>,
}

/// The program's text.
pub(crate) struct Program<'a> {
    query: &'a Query,
    flink: &'a Flink,
    /// The event time and the query as Flink reads them.
    event_time: String,
    select: String,
}

/// A type's name in Flink SQL, and in ours.
pub(crate) fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::Int16 | DataType::UInt8 => "SMALLINT".to_owned(),
        DataType::Int32 | DataType::UInt16 => "INT".to_owned(),
        DataType::Int64 | DataType::UInt32 => "BIGINT".to_owned(),
        DataType::UInt64 => "DECIMAL(20, 0)".to_owned(),
        DataType::Float16 | DataType::Float32 => "FLOAT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "STRING".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTES".to_owned(),
        DataType::Date32 | DataType::Date64 => "DATE".to_owned(),
        DataType::Time32(_) | DataType::Time64(_) => "TIME".to_owned(),
        DataType::Timestamp(unit, zone) => {
            let kind = if zone.is_some() {
                "TIMESTAMP_LTZ"
            } else {
                "TIMESTAMP"
            };
            let digits = match unit {
                TimeUnit::Second => 0,
                TimeUnit::Millisecond => 3,
                TimeUnit::Microsecond => 6,
                TimeUnit::Nanosecond => 9,
            };
            format!("{kind}({digits})")
        }
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => format!("DECIMAL({p}, {s})"),
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            format!("ARRAY<{}>", sql_type(field.data_type()))
        }
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| format!("{} {}", quoted(field.name()), sql_type(field.data_type())))
                .collect();
            format!("ROW<{}>", fields.join(", "))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                let of: Vec<String> = fields.iter().map(|f| sql_type(f.data_type())).collect();
                format!("MAP<{}>", of.join(", "))
            }
            other => other.to_string(),
        },
        DataType::Dictionary(_, value) => sql_type(value),
        other => other.to_string(),
    }
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn options(f: &mut fmt::Formatter<'_>, options: &[(String, String)]) -> fmt::Result {
    let lines: Vec<String> = options
        .iter()
        .map(|(key, value)| format!("  {} = {}", literal(key), literal(value)))
        .collect();
    writeln!(f, ") WITH (\n{}\n);", lines.join(",\n"))
}

impl<'a> Program<'a> {
    /// Refuses what Flink does not have, or answers otherwise.
    pub fn new(query: &'a Query, flink: &'a Flink) -> Result<Self, Refusal> {
        let table = match &query.dedup {
            Some(_) => format!("{}_deduplicated", query.table),
            None => query.table.clone(),
        };
        Ok(Self {
            query,
            flink,
            event_time: Translation::new(query).event_time()?,
            select: Translation::new(query).select(&table)?,
        })
    }

    fn source(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = self.query;
        writeln!(f, "CREATE TABLE {} (", quoted(&query.table))?;
        let mut columns: Vec<String> = query
            .schema
            .fields()
            .iter()
            .map(|field| {
                let null = if field.is_nullable() { "" } else { " NOT NULL" };
                format!(
                    "  {} {}{null}",
                    quoted(field.name()),
                    sql_type(field.data_type())
                )
            })
            .collect();
        let mentions =
            |name: &str| mentions(&query.sql, name) || mentions(&query.event_time_text, name);
        if mentions("_timestamp") {
            columns.push(
                "  `_timestamp` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL".to_owned(),
            );
        }
        if mentions("_partition") {
            columns.push("  `_partition` INT METADATA FROM 'partition' VIRTUAL".to_owned());
        }
        if mentions("_offset") {
            columns.push("  `_offset` BIGINT METADATA FROM 'offset' VIRTUAL".to_owned());
        }
        if query.event_time_text != EVENT_TIME {
            columns.push(format!("  {} AS {}", quoted(EVENT_TIME), self.event_time));
        }
        if query.dedup.is_some() {
            columns.push("  `_arrival` AS PROCTIME()".to_owned());
        }
        // Flink's SQL watermark is the expression itself, ours is one millisecond below it.
        let trail =
            self.flink.watermark.unwrap_or(query.event_time.bound) + Duration::from_millis(1);
        columns.push(format!(
            "  WATERMARK FOR `{EVENT_TIME}` AS `{EVENT_TIME}` - {}",
            interval(trail)
        ));
        writeln!(f, "{}", columns.join(",\n"))?;
        options(f, &self.flink.source)
    }

    fn deduplicated(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(plan) = &self.query.dedup else {
            return Ok(());
        };
        let by: Vec<String> = plan.dedup.by.iter().map(|name| quoted(name)).collect();
        let table = &self.query.table;
        writeln!(
            f,
            "-- Flink's bound is how long it keeps a key in processing time, ours is between event times."
        )?;
        writeln!(
            f,
            "SET 'table.exec.state.ttl' = '{} ms';\n",
            plan.dedup.within
        )?;
        writeln!(
            f,
            "CREATE TEMPORARY VIEW {} AS",
            quoted(&format!("{table}_deduplicated"))
        )?;
        writeln!(
            f,
            "SELECT * FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY {} ORDER BY `_arrival`) AS `_copy` FROM {}) WHERE `_copy` = 1;\n",
            by.join(", "),
            quoted(table),
        )
    }

    fn sink(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "CREATE TABLE {} (", quoted(&self.flink.sink_name))?;
        let columns: Vec<String> = self
            .query
            .planned
            .output
            .fields()
            .iter()
            .map(|field| format!("  {} {}", quoted(field.name()), sql_type(field.data_type())))
            .collect();
        writeln!(f, "{}", columns.join(",\n"))?;
        options(f, &self.flink.sink)
    }
}

/// Whether `name` stands in `text` as a word of its own.
fn mentions(text: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.split(|c| !word(c)).any(|found| found == name)
}

impl fmt::Display for Program<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SET 'table.local-time-zone' = 'UTC';\n")?;
        self.source(f)?;
        writeln!(f)?;
        self.deduplicated(f)?;
        self.sink(f)?;
        write!(
            f,
            "\nINSERT INTO {}\n{};\n",
            quoted(&self.flink.sink_name),
            self.select
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::{Field, Fields};

    use super::*;

    #[test]
    fn nested_types_have_flinks_names() {
        let entries = Fields::from(vec![
            Field::new("key", DataType::Utf8, false),
            Field::new("value", DataType::Int64, true),
        ]);
        let of_row = DataType::Struct(entries.clone());
        let entries = Field::new("entries", DataType::Struct(entries), false);
        let map = DataType::Map(Arc::new(entries), false);
        let list = DataType::List(Arc::new(Field::new("item", map, true)));
        assert_eq!(sql_type(&list), "ARRAY<MAP<STRING, BIGINT>>");
        assert_eq!(sql_type(&of_row), "ROW<`key` STRING, `value` BIGINT>");
    }
}
