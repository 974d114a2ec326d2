//! `[decode."TOPIC"]`: how a topic's values are written. One table for each topic, in the file alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use everlog_common::TopicName;
use everlog_decode::{Column, ColumnType, Columns, SchemaId};
use everlog_query::{SchemaChoice, TopicFormat};
use toml::de::{DeTable, DeValue};

use super::docs::{toml_key, toml_text};
use super::fields::did_you_mean;
use super::source::{Lines, Origin, Problem, Written, shown_written, written};

/// The table's name in the file.
pub(super) const NAME: &str = "decode";

const KEYS: [&str; 4] = ["format", "columns", "schema", "subject"];
const FORMATS: [&str; 3] = ["json", "avro", "text"];

/// What was written for topics, by their names.
pub(super) type Decodes = BTreeMap<String, Decode>;

/// What was written for one topic.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Decode {
    line: usize,
    keys: BTreeMap<String, Value>,
    /// A key that nobody knows stands there too, which may be the one that is missed.
    has_unknown: bool,
}

/// A value and its line.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    One(Written, usize),
    /// Names with what they are, in the order of the file.
    Table(Vec<(String, Written, usize)>, usize),
}

impl Value {
    const fn line(&self) -> usize {
        match self {
            Self::One(_, line) | Self::Table(_, line) => *line,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::One(written, _) => shown_written(written),
            Self::Table(..) => "a table".to_owned(),
        }
    }
}

fn problem(key: String, line: usize, message: impl Into<String>) -> Problem {
    Problem {
        key,
        origin: Some(Origin::Line(line)),
        message: message.into(),
    }
}

/// The key of a problem with a topic's table.
fn of(topic: &str, key: &str) -> String {
    let topic = toml_key(topic);
    if key.is_empty() {
        format!("{NAME}.{topic}")
    } else {
        format!("{NAME}.{topic}.{key}")
    }
}

/// Reads the file's tables; what they mean is judged by [`formats`].
pub(super) fn read(table: &DeTable<'_>, lines: &Lines<'_>, problems: &mut Vec<Problem>) -> Decodes {
    let mut decodes = Decodes::new();
    for (topic, value) in table {
        let line = lines.line(topic.span().start);
        let topic = topic.get_ref().clone().into_owned();
        let DeValue::Table(inner) = value.get_ref() else {
            let example = format!("[{NAME}.{}]", toml_text("clickstream.raw"));
            let message = if KEYS.contains(&topic.as_str()) {
                format!("belongs in the table of a topic, like {example}")
            } else {
                format!("must be a table, written {}", heading(&topic))
            };
            problems.push(problem(of(&topic, ""), line, message));
            continue;
        };
        let mut keys = BTreeMap::new();
        let mut has_unknown = false;
        for (key, value) in inner {
            let line = lines.line(key.span().start);
            let key = key.get_ref().clone().into_owned();
            if !KEYS.contains(&key.as_str()) {
                has_unknown = true;
                let is_topic = matches!(value.get_ref(), DeValue::Table(_));
                problems.push(problem(
                    of(&topic, &key),
                    line,
                    unknown(&topic, &key, is_topic),
                ));
                continue;
            }
            let value = match value.get_ref() {
                DeValue::Table(columns) => {
                    let mut columns: Vec<_> = columns.iter().collect();
                    columns.sort_by_key(|(name, _)| name.span().start);
                    let columns = columns.into_iter().map(|(name, of)| {
                        let line = lines.line(name.span().start);
                        (name.get_ref().clone().into_owned(), written(of), line)
                    });
                    Value::Table(columns.collect(), line)
                }
                _ => Value::One(written(value), line),
            };
            keys.insert(key, value);
        }
        let decode = Decode {
            line,
            keys,
            has_unknown,
        };
        decodes.insert(topic, decode);
    }
    decodes
}

/// A key that nobody knows. A topic with a dot and without quotes is a table inside a table to TOML.
fn unknown(topic: &str, key: &str, is_table: bool) -> String {
    let hint = did_you_mean(key, KEYS);
    if is_table && hint.is_none() {
        return format!(
            "is unknown; if the topic is {topic}.{key}, write it in quotes: {}",
            heading(&format!("{topic}.{key}"))
        );
    }
    match hint {
        Some(key) => format!("is unknown; did you mean {key}?"),
        None => format!("is unknown; there are {}", KEYS.join(", ")),
    }
}

fn heading(topic: &str) -> String {
    format!("[{NAME}.{}]", toml_text(topic))
}

/// The formats of topics, ascending by topic; what is wrong goes to the problems.
pub(super) fn formats(
    decodes: &Decodes,
    has_registry: bool,
    problems: &mut Vec<Problem>,
) -> Vec<(TopicName, TopicFormat)> {
    let mut formats = Vec::new();
    for (name, decode) in decodes {
        let mut check = Check {
            topic: name,
            decode,
            problems,
        };
        let topic = match TopicName::new(name) {
            Ok(topic) => Some(topic),
            Err(error) => {
                check.problem("", error.to_string());
                None
            }
        };
        let format = check.format(has_registry);
        if let (Some(topic), Some(format)) = (topic, format) {
            formats.push((topic, format));
        }
    }
    formats
}

struct Check<'a> {
    topic: &'a str,
    decode: &'a Decode,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn problem(&mut self, key: &str, message: impl Into<String>) {
        let line = self
            .decode
            .keys
            .get(key)
            .map_or(self.decode.line, Value::line);
        self.problems
            .push(problem(of(self.topic, key), line, message));
    }

    /// A key is missing; told where nothing stands there that it may be.
    fn missing(&mut self, message: impl Into<String>) {
        if !self.decode.has_unknown {
            self.problem("", message);
        }
    }

    /// Keys that have no meaning here.
    fn unfit(&mut self, keys: &[&str], why: &str) {
        for key in keys {
            if self.decode.keys.contains_key(*key) {
                self.problem(key, why);
            }
        }
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.decode.keys.get(key)? {
            Value::One(Written::Text(text), _) if text.trim().is_empty() => {
                self.problem(key, "must not be empty");
                None
            }
            Value::One(Written::Text(text), _) => Some(text.clone()),
            other => {
                let message = format!("must be text in quotes, not {}", other.shown());
                self.problem(key, message);
                None
            }
        }
    }

    fn format(&mut self, has_registry: bool) -> Option<TopicFormat> {
        if !self.decode.keys.contains_key("format") {
            self.missing("has no format, add it like: format = \"json\"");
            return None;
        }
        let format = self.text("format")?;
        match format.as_str() {
            "text" => {
                let why =
                    "has no meaning with format = \"text\", whose one column is value: remove it";
                self.unfit(&["columns", "schema", "subject"], why);
                Some(TopicFormat::Text)
            }
            "json" => {
                let why = "is for format = \"avro\": remove it";
                self.unfit(&["schema", "subject"], why);
                if !self.decode.keys.contains_key("columns") {
                    let message = format!(
                        "has no columns, add them like: columns = {{ user_id = \"STRING\", timestamp_ms = \"BIGINT\" }}; `everlog schema infer {}` prints those of a sample",
                        self.topic
                    );
                    self.missing(message);
                    return None;
                }
                self.columns().map(TopicFormat::Json)
            }
            "avro" => self.avro(has_registry),
            other => {
                let hint = did_you_mean(other, FORMATS)
                    .map(|format| format!(" (did you mean {format:?}?)"))
                    .unwrap_or_default();
                let message =
                    format!("must be \"json\", \"avro\" or \"text\", not {other:?}{hint}");
                self.problem("format", message);
                None
            }
        }
    }

    fn avro(&mut self, has_registry: bool) -> Option<TopicFormat> {
        if !has_registry {
            let message = "is read by the schemas of a registry, and there is none: add [registry] with its url";
            self.problem("format", message);
        }
        let subject = match self.decode.keys.get("subject") {
            Some(_) => self.text("subject"),
            None => Some(format!("{}-value", self.topic)),
        };
        let schema = self.schema();
        let columns = match self.decode.keys.get("columns") {
            Some(_) => Some(self.columns()?),
            None => None,
        };
        if columns.is_some() {
            self.unfit(&["schema"], "has no meaning beside columns: remove one");
        }
        Some(TopicFormat::Avro {
            columns,
            schema: schema?,
            subject: subject?,
        })
    }

    fn schema(&mut self) -> Option<SchemaChoice> {
        let expected = "must be \"newest\", a version like \"v3\", or the id of a schema like 17";
        let choice = match self.decode.keys.get("schema") {
            None => return Some(SchemaChoice::Newest),
            Some(Value::One(Written::Text(text), _)) if text == "newest" => {
                return Some(SchemaChoice::Newest);
            }
            Some(Value::One(Written::Text(text), _)) => text
                .strip_prefix('v')
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .filter(|version| *version > 0)
                .map(SchemaChoice::Version),
            Some(Value::One(Written::Integer(number), _)) => {
                number.parse().ok().map(|id| SchemaChoice::Id(SchemaId(id)))
            }
            Some(_) => None,
        };
        if choice.is_none() {
            let found = self.decode.keys.get("schema").map(Value::shown);
            let message = format!("{expected}, not {}", found.unwrap_or_default());
            self.problem("schema", message);
        }
        choice
    }

    fn columns(&mut self) -> Option<Columns> {
        let Some(Value::Table(written, _)) = self.decode.keys.get("columns") else {
            let found = self.decode.keys.get("columns").map(Value::shown);
            let message = format!(
                "must be a table of names and types, like {{ user_id = \"STRING NOT NULL\" }}, not {}",
                found.unwrap_or_default()
            );
            self.problem("columns", message);
            return None;
        };
        let mut columns = Vec::new();
        let before = self.problems.len();
        for (name, written, line) in written {
            let wrong = match written {
                Written::Text(text) => match text.parse::<ColumnType>() {
                    Ok(of) => {
                        columns.push(Column {
                            name: name.clone(),
                            of,
                        });
                        continue;
                    }
                    Err(error) => error.to_string(),
                },
                other => format!(
                    "must be a type in quotes, like \"BIGINT\", not {}; for nested fields write \"ROW<name STRING, …>\", and a name with a dot in quotes",
                    shown_written(other)
                ),
            };
            let key = of(self.topic, &format!("columns.{}", toml_key(name)));
            self.problems.push(problem(key, *line, wrong));
        }
        if self.problems.len() > before {
            return None;
        }
        match Columns::new(columns) {
            Ok(columns) => Some(columns),
            Err(error) => {
                self.problem("columns", error.to_string());
                None
            }
        }
    }
}

/// A topic's table as the file would hold it.
pub(crate) fn table_text(topic: &str, format: &TopicFormat) -> String {
    let mut out = format!("{}\n", heading(topic));
    let (name, columns) = match format {
        TopicFormat::Json(columns) => ("json", Some(columns)),
        TopicFormat::Text => ("text", None),
        TopicFormat::Avro { columns, .. } => ("avro", columns.as_ref()),
    };
    let _ = writeln!(out, "format = \"{name}\"");
    if let TopicFormat::Avro {
        schema, subject, ..
    } = format
    {
        match schema {
            SchemaChoice::Newest if columns.is_some() => {}
            SchemaChoice::Newest => out.push_str("schema = \"newest\"\n"),
            SchemaChoice::Id(id) => {
                let _ = writeln!(out, "schema = {id}");
            }
            SchemaChoice::Version(version) => {
                let _ = writeln!(out, "schema = \"v{version}\"");
            }
        }
        let _ = writeln!(out, "subject = {}", toml_text(subject));
    }
    if let Some(columns) = columns {
        let _ = writeln!(out, "\n[{NAME}.{}.columns]", toml_text(topic));
        for column in columns {
            let of = toml_text(&column.of.to_string());
            let _ = writeln!(out, "{} = {of}", toml_key(&column.name));
        }
    }
    out
}

/// The tables as TOML, with their places.
pub(super) fn effective(decodes: &Decodes) -> String {
    let mut out = String::new();
    let value = |written: &Written| match written {
        Written::Text(text) => Some(toml_text(text)),
        Written::Integer(number) | Written::Float(number) => Some(number.clone()),
        Written::Switch(switch) => Some(switch.to_string()),
        Written::List(_) | Written::Other(_) => None,
    };
    for (topic, decode) in decodes {
        let _ = writeln!(out, "\n{}", heading(topic));
        for key in KEYS {
            if let Some(Value::One(written, line)) = decode.keys.get(key)
                && let Some(value) = value(written)
            {
                let _ = writeln!(out, "{key} = {value}  # line {line}");
            }
        }
        if let Some(Value::Table(columns, _)) = decode.keys.get("columns") {
            let _ = writeln!(out, "\n[{NAME}.{}.columns]", toml_text(topic));
            for (name, written, line) in columns {
                if let Some(value) = value(written) {
                    let _ = writeln!(out, "{} = {value}  # line {line}", toml_key(name));
                }
            }
        }
    }
    out
}

/// An example for the default file.
pub(super) const EXAMPLE: &str = "\
[decode.\"clickstream.raw\"]
format = \"json\"
columns = { user_id = \"STRING NOT NULL\", amount = \"DECIMAL(10, 2)\", timestamp_ms = \"BIGINT\" }
";

/// What the tables are about, for the default file and the docs.
pub(super) const ABOUT: &str = "How a topic's values are written, for the views NAME_v of `everlog sql` and for `everlog schema`: one table for each \
     topic. Avro topics whose subject is TOPIC-value in [registry] need none.";

/// The part of docs/configuration.md.
pub(super) const REFERENCE: &str = "
## `[decode.\"TOPIC\"]`

How a topic's values are written, for the views `NAME_v` of `everlog sql` ([sql.md](sql.md)) and for `everlog schema`: one table for
each topic, in the file alone. `everlog schema infer TOPIC` prints one. A topic without a table whose subject is `TOPIC-value` in
`[registry]` is read by that subject's newest schema.

| key | takes | without it | what it does |
|---|---|---|---|
| `format` | `json`, `avro` or `text` | needed | How values are written: JSON objects, Avro by the registry, or UTF-8, which is the column `value`. |
| `columns` | table of names and types | needed by `json`; with `avro` the fields of a schema | The fields that become columns; the types are those of jobs ([decoding.md](decoding.md#types)). |
| `schema` | `\"newest\"`, a version like `\"v3\"`, or the id of a schema like `17` | `\"newest\"` | With `avro`: the schema that every value is read by, whichever it was written with. |
| `subject` | text | `TOPIC-value` | With `avro`: the subject of the topic's values. |

```toml
[decode.\"clickstream.raw\"]
format = \"json\"
columns = { user_id = \"STRING NOT NULL\", amount = \"DECIMAL(10, 2)\", timestamp_ms = \"BIGINT\" }

[decode.\"orders\"]
format = \"avro\"
```
";

#[cfg(test)]
mod tests {
    use super::super::tests::{document, problems};
    use super::super::{Needs, effective};
    use super::*;

    const SMALL: &str = "[catalog]\ntype = \"sql\"\nuri = \"sqlite://lake/catalog.db\"\nwarehouse = \"file:///var/lib/everlog\"\n";

    fn read(text: &str) -> Vec<(String, TopicFormat)> {
        let settings = document(&format!("{SMALL}{text}"), &[])
            .settings(Needs::default())
            .unwrap();
        let decode = settings.decode.into_iter();
        decode
            .map(|(topic, format)| (topic.to_string(), format))
            .collect()
    }

    #[test]
    fn a_topics_table_says_how_its_values_are_read() {
        let formats = read(
            "[registry]\nurl = \"http://r:8081\"\n\
             [decode.\"a.b\"]\nformat = \"json\"\ncolumns = { z = \"INT\", \"x.y\" = \"STRING NOT NULL\" }\n\
             [decode.t]\nformat = \"text\"\n\
             [decode.u]\nformat = \"avro\"\n\
             [decode.v]\nformat = \"avro\"\nschema = \"v3\"\nsubject = \"s\"\n\
             [decode.w]\nformat = \"avro\"\nschema = 17\n\
             [decode.x]\nformat = \"avro\"\n[decode.x.columns]\na = \"BIGINT\"\n",
        );
        let columns = Columns::parse([("z", "INT"), ("x.y", "STRING NOT NULL")]).unwrap();
        let avro = |columns: Option<Columns>, schema, subject: &str| TopicFormat::Avro {
            columns,
            schema,
            subject: subject.to_owned(),
        };
        assert_eq!(formats[0], ("a.b".to_owned(), TopicFormat::Json(columns)));
        let one = Columns::parse([("a", "BIGINT")]).unwrap();
        assert_eq!(
            formats[1..],
            [
                ("t".to_owned(), TopicFormat::Text),
                ("u".to_owned(), avro(None, SchemaChoice::Newest, "u-value")),
                ("v".to_owned(), avro(None, SchemaChoice::Version(3), "s")),
                (
                    "w".to_owned(),
                    avro(None, SchemaChoice::Id(SchemaId(17)), "w-value")
                ),
                (
                    "x".to_owned(),
                    avro(Some(one), SchemaChoice::Newest, "x-value")
                ),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_what_would_be_right() {
        for (text, expected) in [
            (
                "[decode.t]",
                "decode.t (line 5): has no format, add it like: format = \"json\"",
            ),
            (
                "[decode.t]\nformat = \"jsn\"",
                "decode.t.format (line 6): must be \"json\", \"avro\" or \"text\", not \"jsn\" (did you mean \"json\"?)",
            ),
            (
                "[decode.t]\nformat = 1",
                "decode.t.format (line 6): must be text in quotes, not the number 1",
            ),
            (
                "[decode.t]\nformat = \"json\"",
                "decode.t (line 5): has no columns, add them like: columns = { user_id",
            ),
            (
                "[decode.t]\nformat = \"json\"\ncolums = {}",
                "decode.t.colums (line 7): is unknown; did you mean columns?",
            ),
            (
                "[decode.t]\nformat = \"json\"\ncolumns = {}",
                "decode.t.columns (line 7): there are no columns: name at least one",
            ),
            (
                "[decode.t]\nformat = \"json\"\ncolumns = { a = \"INTT\" }",
                "decode.t.columns.a (line 7): \"INTT\" is not a column type: there is no type INTT; did you mean INT?",
            ),
            (
                "[decode.t]\nformat = \"json\"\ncolumns = { a = 5 }",
                "decode.t.columns.a (line 7): must be a type in quotes, like \"BIGINT\", not the number 5",
            ),
            (
                "[decode.t]\nformat = \"json\"\ncolumns = \"a\"",
                "decode.t.columns (line 7): must be a table of names and types, like { user_id = \"STRING NOT NULL\" }, not \"a\"",
            ),
            (
                "[decode.t]\nformat = \"json\"\nschema = 1\ncolumns = { a = \"INT\" }",
                "decode.t.schema (line 7): is for format = \"avro\": remove it",
            ),
            (
                "[decode.t]\nformat = \"text\"\ncolumns = { a = \"INT\" }",
                "decode.t.columns (line 7): has no meaning with format = \"text\"",
            ),
            (
                "[decode.a.b]\nformat = \"text\"",
                "decode.a.b (line 5): is unknown; if the topic is a.b, write it in quotes: [decode.\"a.b\"]",
            ),
            (
                "[decode]\nformat = \"text\"",
                "decode.format (line 6): belongs in the table of a topic, like [decode.\"clickstream.raw\"]",
            ),
            (
                "decode = 1",
                "decode (line 5): must be tables, written [decode.\"TOPIC\"], not an integer",
            ),
            (
                "[decode.t]\nformat = \"avro\"",
                "decode.t.format (line 6): is read by the schemas of a registry, and there is none: add [registry] with its url",
            ),
            (
                "[decode.\"a b\"]\nformat = \"text\"",
                "decode.\"a b\" (line 5): ",
            ),
        ] {
            let file = if text.starts_with("decode =") {
                format!("\n\n\n\n{text}\n{SMALL}")
            } else {
                format!("{SMALL}{text}")
            };
            let found = problems(&file, &[], Needs::default());
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{expected}\n{found:#?}"
            );
        }
        let with_registry = "[registry]\nurl = \"http://r\"\n[decode.t]\nformat = \"avro\"\n";
        for (text, expected) in [
            (
                "schema = \"latest\"",
                "decode.t.schema (line 9): must be \"newest\", a version like \"v3\", or the id of a schema like 17, not \"latest\"",
            ),
            (
                "schema = 1.5",
                "decode.t.schema (line 9): must be \"newest\"",
            ),
            (
                "schema = 3\ncolumns = { a = \"INT\" }",
                "decode.t.schema (line 9): has no meaning beside columns: remove one",
            ),
            (
                "subject = \" \"",
                "decode.t.subject (line 9): must not be empty",
            ),
        ] {
            let found = problems(
                &format!("{SMALL}{with_registry}{text}"),
                &[],
                Needs::default(),
            );
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{expected}\n{found:#?}"
            );
        }
        let found = problems(
            SMALL,
            &[("EVERLOG_DECODE__T__FORMAT", "text")],
            Needs::default(),
        );
        assert_eq!(
            found,
            [
                "EVERLOG_DECODE__T__FORMAT: [decode] stands in the file alone, one table for each topic: [decode.\"TOPIC\"]"
            ]
        );
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let columns =
            Columns::parse([("user id", "STRING NOT NULL"), ("n", "ROW<`a``b` INT>")]).unwrap();
        for format in [
            TopicFormat::Json(columns.clone()),
            TopicFormat::Text,
            TopicFormat::Avro {
                columns: Some(columns),
                schema: SchemaChoice::Newest,
                subject: "a\"b".to_owned(),
            },
            TopicFormat::Avro {
                columns: None,
                schema: SchemaChoice::Version(2),
                subject: "s".to_owned(),
            },
        ] {
            let text = format!(
                "[registry]\nurl = \"http://r\"\n{}",
                table_text("clickstream.raw", &format)
            );
            assert_eq!(
                read(&text),
                [("clickstream.raw".to_owned(), format.clone())]
            );
            let shown = effective(document(&format!("{SMALL}{text}"), &[]).raw());
            let again = document(&shown, &[]).settings(Needs::default()).unwrap();
            assert_eq!(again.decode[0].1, format, "{shown}");
        }
    }
}
