//! What was written, and where: the file and the environment as located values, before any of it is judged by meaning.
//!
//! Invariants
//! - Nothing is dropped silently: a key that no one knows, a second spelling of the same key and a variable that could
//!   mean two keys are problems.
//! - A value from the environment wins over the file's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::decode::{self, Decodes};
use super::fields::{
    CATALOG_COMMON, FIELDS, KAFKA_COMMON, KAFKA_RESERVED, Kind, Section, did_you_mean, find,
    near_miss,
};
use crate::text;

/// Variables that begin so are configuration.
pub(crate) const ENV_PREFIX: &str = "EVERLOG_";

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A line of the file, from 1.
    Line(usize),
    /// A variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// A value as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Written {
    /// Text; from the environment everything but lists is.
    Text(String),
    /// A whole number, in decimal.
    Integer(String),
    /// Another number.
    Float(String),
    /// True or false.
    Switch(bool),
    /// A list; anything but text in it is none.
    List(Vec<Option<String>>),
    /// A date, or a table where none belongs.
    Other(&'static str),
}

/// A value and its place.
#[derive(Clone, PartialEq)]
pub(crate) struct Located {
    /// The value.
    pub(crate) value: Written,
    /// Its place.
    pub(crate) origin: Origin,
}

/// Something to correct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// `section.key`, or what else is wrong.
    pub(crate) key: String,
    /// Where it was written, if it was.
    pub(crate) origin: Option<Origin>,
    /// What is wrong and what would be right.
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::printable(&self.key))?;
        match (&self.origin, self.key.is_empty()) {
            (Some(origin), true) => write!(f, "{origin}: ")?,
            (Some(origin), false) => write!(f, " ({origin}): ")?,
            (None, true) => {}
            (None, false) => f.write_str(": ")?,
        }
        f.write_str(&text::printable(&self.message))
    }
}

/// Everything that was written.
#[derive(Clone, Default)]
pub(crate) struct Raw {
    values: BTreeMap<(Section, String), Located>,
    decodes: Decodes,
    /// The file is no TOML: nothing of it was read.
    is_broken: bool,
}

impl Raw {
    /// Whether the file has a syntax error, so that nothing can be said of what stands in it.
    pub(crate) const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// What `[decode."TOPIC"]` says of topics.
    pub(super) const fn decodes(&self) -> &Decodes {
        &self.decodes
    }

    /// One value.
    pub(crate) fn get(&self, section: Section, key: &str) -> Option<&Located> {
        self.values.get(&(section, key.to_owned()))
    }

    /// A section's values, ascending by key.
    pub(crate) fn section(&self, section: Section) -> impl Iterator<Item = (&str, &Located)> {
        self.values
            .iter()
            .filter(move |((s, _), _)| *s == section)
            .map(|((_, key), value)| (key.as_str(), value))
    }

    /// Reads the file's text; syntax errors end it, everything else is gathered.
    pub(crate) fn read_file(&mut self, text: &str, problems: &mut Vec<Problem>) {
        let lines = Lines::new(text);
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(first) => {
                self.is_broken = true;
                for error in syntax_errors(text, first) {
                    let (line, column) = error.span().map_or((1, 1), |s| lines.place(s.start));
                    problems.push(Problem {
                        key: String::new(),
                        origin: Some(Origin::Line(line)),
                        message: format!("column {column}: {}", one_line(error.message())),
                    });
                }
                return;
            }
        };
        for (name, value) in table.get_ref() {
            let origin = Origin::Line(lines.place(name.span().start).0);
            if name.get_ref() == decode::NAME {
                match value.get_ref() {
                    DeValue::Table(table) => self.decodes = decode::read(table, &lines, problems),
                    other => problems.push(Problem {
                        key: decode::NAME.to_owned(),
                        origin: Some(origin),
                        message: format!(
                            "must be tables, written [decode.\"TOPIC\"], not {}",
                            article(other.type_str())
                        ),
                    }),
                }
                continue;
            }
            let Some(section) = Section::parse(name.get_ref()) else {
                problems.push(unknown_section(name.get_ref(), origin));
                continue;
            };
            match value.get_ref() {
                DeValue::Table(table) => self.read_table(section, "", table, &lines, problems),
                other => problems.push(Problem {
                    key: section.name().to_owned(),
                    origin: Some(origin),
                    message: format!(
                        "must be a table, written [{}], not {}",
                        section.name(),
                        article(other.type_str())
                    ),
                }),
            }
        }
    }

    fn read_table(
        &mut self,
        section: Section,
        prefix: &str,
        table: &DeTable<'_>,
        lines: &Lines<'_>,
        problems: &mut Vec<Problem>,
    ) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            let origin = Origin::Line(lines.place(name.span().start).0);
            // A dotted key without quotes is a nested table to TOML; in a pass-through section both mean the same.
            if let (true, DeValue::Table(inner)) = (section.passes_through(), value.get_ref()) {
                self.read_table(section, &format!("{key}."), inner, lines, problems);
                continue;
            }
            let located = Located {
                value: written(value),
                origin: origin.clone(),
            };
            if let Some(problem) = judge_key(section, &key, &origin) {
                problems.push(problem);
            } else if let Some(before) = self.values.insert((section, key.clone()), located) {
                problems.push(Problem {
                    key: format!("{}.{key}", section.name()),
                    origin: Some(origin),
                    message: format!("is set twice, first at {}: remove one", before.origin),
                });
            }
        }
    }

    /// Takes the environment over the file. Variables without `__` are none of ours. Which key is meant depends on the file:
    /// of a broken one nothing can be said.
    pub(crate) fn read_environment(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        problems: &mut Vec<Problem>,
    ) {
        if self.is_broken {
            return;
        }
        let mut ours: Vec<(String, OsString)> = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(ENV_PREFIX) && name.contains("__"))
            .collect();
        ours.sort();
        // Candidates come from the file alone, so that one variable never changes what another means.
        let file = Self {
            values: self.values.clone(),
            ..Self::default()
        };
        for (name, value) in ours {
            let origin = Origin::Variable(name.clone());
            let problem = |message: String| Problem {
                key: name.clone(),
                origin: None,
                message,
            };
            let Ok(value) = value.into_string() else {
                problems.push(problem("its value is not UTF-8".to_owned()));
                continue;
            };
            let (section, key) = match file.key_of(&name) {
                Ok(found) => found,
                Err(message) => {
                    problems.push(problem(message));
                    continue;
                }
            };
            if let Some(problem) = judge_key(section, &key, &origin) {
                problems.push(problem);
                continue;
            }
            let list = find(section, &key).is_some_and(|f| f.kind == Kind::List);
            let value = if list {
                parse_list(&value)
            } else {
                Written::Text(value)
            };
            let located = Located {
                value,
                origin: origin.clone(),
            };
            let before = self.values.insert((section, key.clone()), located);
            if let Some(Located {
                origin: Origin::Variable(other),
                ..
            }) = before
            {
                problems.push(problem(format!(
                    "sets {}.{key} as {other} does: remove one",
                    section.name()
                )));
            }
        }
    }

    /// Which key a variable sets.
    ///
    /// | in the variable | matches in the key |
    /// |---|---|
    /// | `__` | `.` |
    /// | `_` | `.`, `-` or `_` |
    ///
    /// The keys that can be meant are those of the file and those that everlog knows; exactly one must fit. Where none
    /// does, a pass-through section takes the variable literally: in `[kafka]` every `_` is a `.`, in `[catalog]` `__` is
    /// `.` and `_` is `-`.
    fn key_of(&self, variable: &str) -> Result<(Section, String), String> {
        let rest = variable.strip_prefix(ENV_PREFIX).unwrap_or(variable);
        let (section_name, key) = rest.split_once("__").unwrap_or((rest, ""));
        if section_name.eq_ignore_ascii_case(decode::NAME) {
            return Err(
                "[decode] stands in the file alone, one table for each topic: [decode.\"TOPIC\"]"
                    .to_owned(),
            );
        }
        let section = Section::parse(&section_name.to_ascii_lowercase()).ok_or_else(|| {
            let hint = did_you_mean(
                &section_name.to_ascii_lowercase(),
                Section::ALL.map(Section::name),
            )
            .map_or_else(
                || "the sections are KAFKA, CATALOG, ARCHIVE, REPLAY and REGISTRY".to_owned(),
                |s| format!("did you mean {ENV_PREFIX}{}__{key}?", s.to_uppercase()),
            );
            format!("there is no section {section_name}; {hint}")
        })?;
        let key = key.to_ascii_lowercase();
        if key.is_empty() {
            return Err(format!(
                "names no key, write it {ENV_PREFIX}{section_name}__KEY"
            ));
        }
        let mut fitting: Vec<&str> = self
            .section(section)
            .map(|(key, _)| key)
            .chain(known(section).map(|key| -> &str { key }))
            .filter(|candidate| fits(&key, &candidate.to_ascii_lowercase()))
            .collect();
        fitting.sort_unstable();
        fitting.dedup();
        match (fitting.as_slice(), section) {
            ([one], _) => Ok((section, (*one).to_owned())),
            ([], Section::Kafka) => Ok((section, key.replace("__", ".").replace('_', "."))),
            ([], Section::Catalog) if key.contains("__") => {
                Ok((section, key.replace("__", ".").replace('_', "-")))
            }
            ([], Section::Catalog) => {
                let flat: Vec<(String, &str)> = known(section)
                    .map(|k| (k.replace(['.', '-'], "_"), k))
                    .collect();
                let hint = did_you_mean(&key, flat.iter().map(|(f, _)| f.as_str())).map_or_else(
                    || {
                        "write `__` for every `.` in the property's name, and `_` for every `-`"
                            .to_owned()
                    },
                    |f| {
                        format!(
                            "did you mean {ENV_PREFIX}CATALOG__{}? Else write `__` for every `.` in the property's name",
                            f.to_uppercase()
                        )
                    },
                );
                Err(format!("is no property that everlog knows; {hint}"))
            }
            // Judged with the other unknown keys.
            ([], _) => Ok((section, key)),
            (several, _) => Err(format!(
                "could mean {}: set the one that is meant in the file",
                several.join(" or ")
            )),
        }
    }
}

/// Whether a lower-case variable part can stand for a key.
fn fits(variable: &str, key: &str) -> bool {
    let mut variable = variable.as_bytes();
    let mut key = key.as_bytes();
    loop {
        match (variable, key) {
            ([], []) => return true,
            ([b'_', b'_', v @ ..], [b'.', k @ ..])
            | ([b'_', v @ ..], [b'.' | b'-' | b'_', k @ ..]) => (variable, key) = (v, k),
            ([a, v @ ..], [b, k @ ..]) if a == b => (variable, key) = (v, k),
            _ => return false,
        }
    }
}

/// The names that everlog knows in a section.
fn known(section: Section) -> impl Iterator<Item = &'static str> {
    let common: &[&str] = match section {
        Section::Kafka => KAFKA_COMMON,
        Section::Catalog => CATALOG_COMMON,
        Section::Archive | Section::Replay | Section::Registry => &[],
    };
    let reserved = KAFKA_RESERVED
        .iter()
        .filter(move |_| section == Section::Kafka)
        .map(|(key, _)| *key);
    FIELDS
        .iter()
        .filter(move |f| f.section == section)
        .map(|f| f.key)
        .chain(common.iter().copied())
        .chain(reserved)
}

/// Whether a key may stand in a section at all.
fn judge_key(section: Section, key: &str, origin: &Origin) -> Option<Problem> {
    let problem = |message: String| {
        Some(Problem {
            key: format!("{}.{key}", section.name()),
            origin: Some(origin.clone()),
            message,
        })
    };
    if find(section, key).is_some() {
        return None;
    }
    let allowed = match section {
        Section::Kafka => {
            if let Some((_, reason)) = KAFKA_RESERVED.iter().find(|(k, _)| *k == key) {
                return problem(format!("is set by everlog, remove it: {reason}"));
            }
            // librdkafka itself is asked when the values are judged.
            true
        }
        // A property of a catalog or store that we have never heard of may be right, a near miss of a known one is not.
        Section::Catalog => {
            CATALOG_COMMON.contains(&key)
                || (key.contains('.') && near_miss(key, CATALOG_COMMON).is_none())
        }
        Section::Archive | Section::Replay | Section::Registry => false,
    };
    if allowed {
        return None;
    }
    let elsewhere = FIELDS
        .iter()
        .find(|f| f.section != section && f.key == key)
        .map(|f| format!("it belongs in [{}]", f.section.name()));
    let hint = did_you_mean(key, known(section))
        .map(|k| format!("did you mean {k}?"))
        .or(elsewhere)
        .unwrap_or_else(|| {
            "`everlog config print --default` shows every key that there is".to_owned()
        });
    problem(format!("is unknown; {hint}"))
}

fn unknown_section(name: &str, origin: Origin) -> Problem {
    let home = FIELDS.iter().find(|f| f.key == name).map(|f| f.section);
    let names = Section::ALL.map(Section::name).into_iter();
    let hint = did_you_mean(name, names.chain([decode::NAME]))
        .map(|s| format!("did you mean [{s}]?"))
        .or_else(|| home.map(|s| format!("it belongs in [{}]", s.name())))
        .unwrap_or_else(|| {
            "the sections are [kafka], [catalog], [archive], [replay], [registry] and [decode.\"TOPIC\"]".to_owned()
        });
    Problem {
        key: name.to_owned(),
        origin: Some(origin),
        message: format!("is unknown; {hint}"),
    }
}

/// A value in a message.
pub(super) fn shown_written(written: &Written) -> String {
    match written {
        Written::Text(text) => format!("{text:?}"),
        Written::Integer(number) | Written::Float(number) => format!("the number {number}"),
        Written::Switch(switch) => switch.to_string(),
        Written::List(_) => article("list"),
        Written::Other(what) => (*what).to_owned(),
    }
}

pub(super) fn written(value: &Spanned<DeValue<'_>>) -> Written {
    match value.get_ref() {
        DeValue::String(text) => Written::Text(text.clone().into_owned()),
        DeValue::Integer(number) => Written::Integer(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.as_str().to_owned(), |n| n.to_string()),
        ),
        DeValue::Float(number) => Written::Float(number.as_str().to_owned()),
        DeValue::Boolean(switch) => Written::Switch(*switch),
        DeValue::Array(items) => Written::List(
            items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect(),
        ),
        DeValue::Datetime(_) => Written::Other("a date"),
        DeValue::Table(_) => Written::Other("a table"),
    }
}

/// A list in a variable: a TOML array, or items separated by commas.
fn parse_list(text: &str) -> Written {
    if text.trim_start().starts_with('[')
        && let Ok(value) = DeValue::parse(text)
    {
        return written(&value);
    }
    Written::List(
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| Some(item.to_owned()))
            .collect(),
    )
}

/// What else is no TOML near the first such place. Each error takes as much memory as the text: a file that is none at all has
/// more of them than anybody reads.
fn syntax_errors(text: &str, first: toml::de::Error) -> Vec<toml::de::Error> {
    /// Bytes behind the first error in which more are looked for.
    const NEAR: usize = 512;
    let near = first.span().map_or(0, |span| span.start) + NEAR;
    // up to the end of a line, which is no place in the middle of a character
    let end = text
        .bytes()
        .enumerate()
        .skip(near)
        .find(|(_, byte)| *byte == b'\n')
        .map_or(text.len(), |(at, _)| at + 1);
    let part = text.get(..end).unwrap_or(text);
    let (_, mut errors) = DeTable::parse_recoverable(part);
    if end < text.len() {
        // what is open at the end may be closed behind it
        errors.retain(|error| error.span().is_none_or(|span| span.end < end));
    }
    if errors.is_empty() {
        errors.push(first);
    }
    errors
}

/// Finds lines by byte positions.
pub(super) struct Lines<'a> {
    text: &'a str,
}

impl<'a> Lines<'a> {
    const fn new(text: &'a str) -> Self {
        Self { text }
    }

    /// The line, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.place(at).0
    }

    /// Line and column, from 1.
    fn place(&self, at: usize) -> (usize, usize) {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        let line = before.split(|b| *b == b'\n').count();
        let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
        (line, column)
    }
}

/// A message without line breaks.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A TOML type with its article.
pub(crate) fn article(kind: &str) -> String {
    let an = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if an { "an" } else { "a" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(file: &str, variables: &[(&str, &str)]) -> (Raw, Vec<String>) {
        let mut raw = Raw::default();
        let mut problems = Vec::new();
        raw.read_file(file, &mut problems);
        raw.read_environment(
            variables
                .iter()
                .map(|(k, v)| (OsString::from(k), OsString::from(v))),
            &mut problems,
        );
        (raw, problems.iter().map(ToString::to_string).collect())
    }

    fn text(raw: &Raw, section: Section, key: &str) -> Option<String> {
        match &raw.get(section, key)?.value {
            Written::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    #[test]
    fn a_dotted_key_means_the_same_with_and_without_quotes() {
        let (quoted, p) = from("[kafka]\n\"bootstrap.servers\" = \"a:1\"", &[]);
        assert_eq!(p, Vec::<String>::new());
        let (nested, p) = from("[kafka]\nbootstrap.servers = \"a:1\"", &[]);
        assert_eq!(p, Vec::<String>::new());
        for raw in [quoted, nested] {
            assert_eq!(
                text(&raw, Section::Kafka, "bootstrap.servers").as_deref(),
                Some("a:1")
            );
        }
        let (_, p) = from(
            "[kafka]\n\"bootstrap.servers\" = \"a:1\"\nbootstrap.servers = \"b:1\"",
            &[],
        );
        assert_eq!(p.len(), 1, "{p:?}");
        assert!(p[0].contains("set twice"), "{p:?}");
    }

    #[test]
    fn syntax_errors_name_their_line() {
        let (_, p) = from("[kafka]\nx = \n[archive", &[]);
        assert!(p.iter().any(|p| p.starts_with("line 2: ")), "{p:?}");
        assert!(p.iter().any(|p| p.starts_with("line 3: ")), "{p:?}");
    }

    #[test]
    fn unknown_keys_are_found_all_at_once_with_what_was_meant() {
        let (_, p) = from(
            "[archve]\n[archive]\ntopic = []\nthreads = 2\nwhatever = 1\n[catalog]\nwarehose = \"x\"\ns3.endpiont = 1\n[kafka]\n\"group.id\" = \"g\"",
            &[
                ("EVERLOG_ARCHIVE__ON_GAPS", "stop"),
                ("EVERLOG_ARCHVE__ON_GAP", "stop"),
            ],
        );
        for expected in [
            "archve (line 1): is unknown; did you mean [archive]?",
            "archive.topic (line 3): is unknown; did you mean topics?",
            "archive.threads (line 4): is unknown; it belongs in [replay]",
            "archive.whatever (line 5): is unknown; `everlog config print --default`",
            "catalog.warehose (line 7): is unknown; did you mean warehouse?",
            "catalog.s3.endpiont (line 8): is unknown; did you mean s3.endpoint?",
            "kafka.group.id (line 10): is set by everlog, remove it: set `group` in [archive]",
            "archive.on_gaps (EVERLOG_ARCHIVE__ON_GAPS): is unknown; did you mean on_gap?",
            "EVERLOG_ARCHVE__ON_GAP: there is no section ARCHVE; did you mean EVERLOG_ARCHIVE__ON_GAP?",
        ] {
            assert!(
                p.iter().any(|p| p.starts_with(expected)),
                "{expected} in {p:#?}"
            );
        }
        assert_eq!(p.len(), 9, "{p:#?}");
    }

    #[test]
    fn variables_find_their_keys() {
        let (raw, p) = from(
            "[kafka]\n\"bootstrap.servers\" = \"file:1\"\n[catalog]\n\"x.odd_name-here\" = \"file\"",
            &[
                ("EVERLOG_KAFKA__BOOTSTRAP_SERVERS", "env:1"),
                ("EVERLOG_KAFKA__SASL_PASSWORD", "p"),
                ("EVERLOG_KAFKA__SOCKET__BLOCKING_MAX_MS", "5"),
                ("EVERLOG_CATALOG__S3_ACCESS_KEY_ID", "k"),
                ("EVERLOG_CATALOG__S3__ENDPOINT", "e"),
                ("EVERLOG_CATALOG__X_ODD_NAME_HERE", "env"),
                ("EVERLOG_CATALOG__HEADER__X_TENANT", "t"),
                ("EVERLOG_CATALOG__OAUTH2_SERVER_URI", "u"),
                ("EVERLOG_ARCHIVE__COMMIT_INTERVAL", "1s"),
                ("EVERLOG_SERVICE_HOST", "not ours"),
                ("OTHER__THING", "not ours"),
            ],
        );
        assert_eq!(p, Vec::<String>::new());
        for (section, key, value) in [
            (Section::Kafka, "bootstrap.servers", "env:1"),
            (Section::Kafka, "sasl.password", "p"),
            (Section::Kafka, "socket.blocking.max.ms", "5"),
            (Section::Catalog, "s3.access-key-id", "k"),
            (Section::Catalog, "s3.endpoint", "e"),
            (Section::Catalog, "x.odd_name-here", "env"),
            (Section::Catalog, "header.x-tenant", "t"),
            (Section::Catalog, "oauth2-server-uri", "u"),
            (Section::Archive, "commit_interval", "1s"),
        ] {
            assert_eq!(text(&raw, section, key).as_deref(), Some(value), "{key}");
        }
    }

    #[test]
    fn a_variable_that_could_mean_two_keys_is_refused() {
        let (_, p) = from(
            "[catalog]\n\"s3.a-b\" = \"1\"\n\"s3.a.b\" = \"2\"",
            &[("EVERLOG_CATALOG__S3_A_B", "x")],
        );
        assert_eq!(
            p,
            [
                "EVERLOG_CATALOG__S3_A_B: could mean s3.a-b or s3.a.b: set the one that is meant in the file"
            ]
        );
        let (_, p) = from("", &[("EVERLOG_CATALOG__S3_ENDPONT", "x")]);
        assert!(
            p[0].contains("did you mean EVERLOG_CATALOG__S3_ENDPOINT?"),
            "{p:?}"
        );
        let (_, p) = from(
            "",
            &[
                ("EVERLOG_CATALOG__S3_ENDPOINT", "x"),
                ("EVERLOG_CATALOG__S3__ENDPOINT", "y"),
            ],
        );
        assert!(p[0].contains("remove one"), "{p:?}");
    }

    #[test]
    fn a_list_in_a_variable_is_an_array_or_separated_by_commas() {
        let (raw, p) = from("", &[("EVERLOG_ARCHIVE__TOPICS", "[\"^a{1,2}\", \"b\"]")]);
        assert!(p.is_empty());
        let items = |raw: &Raw| match &raw.get(Section::Archive, "topics").unwrap().value {
            Written::List(items) => items.iter().flatten().cloned().collect::<Vec<_>>(),
            _ => Vec::new(),
        };
        assert_eq!(items(&raw), ["^a{1,2}", "b"]);
        let (raw, _) = from("", &[("EVERLOG_ARCHIVE__TOPICS", "a, b,")]);
        assert_eq!(items(&raw), ["a", "b"]);
    }
}
