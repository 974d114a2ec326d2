//! `everlog schema view`: the decoded view of a topic as another engine's SQL.

mod engine;

use std::fmt::Write as _;
use std::io::Write as _;

use clap::Args;
use everlog_common::TopicName;
use everlog_decode::registry::Pinned;
use everlog_decode::{Columns, RegisteredSchema, ValueFormat};
use everlog_query::TopicFormat;
use everlog_query::decode::{KAFKA_COLUMNS, column_names};
use everlog_table::schema::table_name;

use self::engine::{Engine, Place};
use crate::failure::{Failure, Status};
use crate::settings::Settings;
use crate::sql::of_query;
use crate::telemetry;

/// Print the view of a topic's decoded values as SQL of another engine
///
/// JSON by the engine's own functions, with checks where it would round or guess: what everlog refuses is null there too. Avro
/// of a registry in Spark, by its from_avro; the others cannot decode it. There is no _error.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ViewArgs {
    /// The topic
    topic: TopicName,

    /// Whose SQL
    #[arg(long, value_enum, value_name = "ENGINE")]
    engine: Engine,

    /// What the engine calls the archive's table [default: CATALOG.NAMESPACE.TABLE by the configuration]
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  everlog schema view orders --engine trino
  everlog schema view orders --engine duckdb --table lake.everlog.orders | duckdb shop.db
";

/// Runs it.
pub(super) async fn run(args: &ViewArgs, settings: &Settings) -> Result<(), Failure> {
    let values = super::values(settings)?;
    let format = values.format(&args.topic).await;
    let format = format.map_err(|error| of_query(&error))?;
    let Some(format) = format else {
        return Err(Failure::usage(format!(
            "nobody said what the values of topic {0} are: add [decode.\"{0}\"] to the configuration; `everlog schema infer {0}` prints one",
            args.topic
        )));
    };
    let table = args.table.clone().unwrap_or_else(|| {
        let catalog = settings.catalog.properties.get("name").unwrap_or("everlog");
        let namespace = settings.catalog.namespace.split('.');
        let parts = std::iter::once(catalog).chain(namespace);
        let name = table_name(&args.topic);
        let parts = parts.chain([name.as_str()]);
        parts
            .map(|part| args.engine.quoted(part))
            .collect::<Vec<_>>()
            .join(".")
    });
    let view = View {
        engine: args.engine,
        table,
        name: format!("{}_v", table_name(&args.topic)),
    };
    let (sql, left_out) = match &format {
        ValueFormat::Json(columns) => view.json(columns),
        ValueFormat::Text => (view.text(), Vec::new()),
        ValueFormat::Avro(_) | ValueFormat::AvroAs(_) => {
            let sql = avro(&view, args, settings, &format).await?;
            (sql, Vec::new())
        }
    };
    for why in left_out {
        telemetry::notice(&why);
    }
    let mut out = std::io::stdout().lock();
    write!(out, "{sql}")?;
    out.flush()?;
    Ok(())
}

/// Avro by every version of the subject; only Spark reads it inside a column.
async fn avro(
    view: &View,
    args: &ViewArgs,
    settings: &Settings,
    format: &ValueFormat,
) -> Result<String, Failure> {
    let no = |why: String| Failure::new(Status::Failed, why);
    let ValueFormat::AvroAs(reader) = format else {
        return Err(no(format!(
            "Avro values are read by a schema elsewhere, and [decode.\"{}\"] declares columns: remove them there, or ask `everlog sql`",
            args.topic
        )));
    };
    if view.engine != Engine::Spark {
        return Err(no(format!(
            "{} cannot decode Avro inside a column: ask `everlog sql` for {}, or let a job write its columns to a table (docs/jobs.md)",
            view.engine.name(),
            view.name
        )));
    }
    let subject = match settings
        .decode
        .iter()
        .find(|(topic, _)| *topic == args.topic)
    {
        Some((_, TopicFormat::Avro { subject, .. })) => subject.clone(),
        _ => format!("{}-value", args.topic),
    };
    let registry = super::registry(settings)?;
    let registry = registry.ok_or_else(|| no("there is no [registry]".to_owned()))?;
    let of = |error| super::of_registry(&error);
    let mut versions = Vec::new();
    for number in registry
        .versions(&subject)
        .await
        .map_err(of)?
        .into_iter()
        .flatten()
    {
        versions.extend(registry.version(&subject, number).await.map_err(of)?);
    }
    view.avro(reader, &versions).map_err(no)
}

/// A view in the making.
struct View {
    engine: Engine,
    table: String,
    name: String,
}

impl View {
    /// The statement: Kafka's columns, and these.
    fn statement(&self, columns: &[(String, String)], from: &str, comments: &[String]) -> String {
        let quoted = |name: &str| self.engine.quoted(name);
        let mut out = String::new();
        for comment in comments {
            let _ = writeln!(out, "-- {comment}");
        }
        let name = quoted(&self.name);
        let _ = match self.engine {
            Engine::Spark => writeln!(out, "CREATE OR REPLACE TEMPORARY VIEW {name} AS"),
            Engine::DuckDb => writeln!(out, "CREATE OR REPLACE VIEW {name} AS"),
            Engine::Trino => {
                let place = self.table.rsplit_once('.').map_or("", |(place, _)| place);
                let dot = if place.is_empty() { "" } else { "." };
                writeln!(out, "CREATE OR REPLACE VIEW {place}{dot}{name} AS")
            }
        };
        out.push_str("SELECT\n");
        let kafka = KAFKA_COLUMNS
            .iter()
            .map(|(name, column)| (quoted(column.name()), quoted(name)));
        let values = columns
            .iter()
            .map(|(name, sql)| (sql.clone(), quoted(name)));
        let all: Vec<String> = kafka
            .chain(values)
            .map(|(sql, name)| format!("  {sql} AS {name}"))
            .collect();
        let _ = writeln!(out, "{}\nFROM {from};", all.join(",\n"));
        out
    }

    /// The table, with one more column.
    fn with(&self, name: &str, sql: &str) -> String {
        format!("(SELECT *, {sql} AS {name} FROM {}) AS t", self.table)
    }

    /// JSON; and which columns were left out.
    fn json(&self, declared: &Columns) -> (String, Vec<String>) {
        let place = Place::whole("_json");
        let names = column_names(declared);
        let mut columns = Vec::new();
        let mut left_out = Vec::new();
        for (column, name) in declared.iter().zip(names) {
            match self.engine.value(&place.field(&column.name), &column.of) {
                Ok(sql) => columns.push((name, sql)),
                Err(why) => left_out.push(one_line(&format!("column {name} is left out: {why}"))),
            }
        }
        let json = self.engine.json_of(&self.engine.quoted("value"));
        let sql = self.statement(&columns, &self.with("_json", &json), &left_out);
        (sql, left_out)
    }

    fn text(&self) -> String {
        let text = self.engine.text_of(&self.engine.quoted("value"));
        let columns = [("value".to_owned(), text)];
        self.statement(&columns, &self.table, &[])
    }

    /// Avro in Spark: each value by its writer's schema, as the reader's.
    fn avro(&self, reader: &RegisteredSchema, versions: &[Pinned]) -> Result<String, String> {
        let columns = ValueFormat::AvroAs(reader.clone()).columns();
        let columns = columns.map_err(|error| error.to_string())?;
        if let Some(version) = versions.iter().find(|v| !v.schema.references.is_empty()) {
            return Err(format!(
                "Spark's from_avro takes schemas that refer to no others, and version {} does",
                version.version
            ));
        }
        if !reader.references.is_empty() {
            return Err(
                "Spark's from_avro takes schemas that refer to no others, and the one that is read by does"
                    .to_owned(),
            );
        }
        let literal = |text: &str| self.engine.literal(text);
        let value = self.engine.quoted("value");
        let mut sql = format!(
            "CASE WHEN hex(substring({value}, 1, 1)) <> '00' THEN NULL ELSE CASE conv(hex(substring({value}, 2, 4)), 16, 10)"
        );
        for version in versions {
            let _ = write!(
                sql,
                "\n    WHEN '{}' THEN from_avro(substring({value}, 6), {}, map('mode', 'PERMISSIVE', 'avroSchema', {}))",
                version.id,
                literal(&version.schema.text),
                literal(&reader.text)
            );
        }
        sql.push_str("\n  END END");
        let names = column_names(&columns);
        let fields = columns.iter().zip(names).map(|(column, name)| {
            (
                name,
                format!("_record.{}", self.engine.quoted(&column.name)),
            )
        });
        let fields: Vec<(String, String)> = fields.collect();
        let comments = [
            "needs the package spark-avro; run it again when the subject has a new version"
                .to_owned(),
        ];
        Ok(self.statement(&fields, &self.with("_record", &sql), &comments))
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
