//! The job file as written: sections, keys and where they stand. What a value may be is judged here by its kind; what it means,
//! by [`super::Job`]. Nothing is dropped silently, and all problems are told at once.

use std::fmt;
use std::time::Duration;

use everlog_common::units::{format_bytes, format_duration, parse_bytes, parse_duration};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Every section and its keys.
pub(super) const KEYS: [(&str, &[&str]); 6] = [
    ("job", &["name", "version"]),
    (
        "source",
        &[
            "topic",
            "from",
            "format",
            "columns",
            "registry",
            "registry_user",
            "registry_password",
            "registry_token",
            "registry_timeout",
            "subject",
            "event_time",
            "out_of_orderness",
            "allowed_lateness",
            "event_time_scope",
            "idle_timeout",
            "max_future",
            "max_skew",
            "deduplicate",
            "on_error",
        ],
    ),
    ("query", &["sql"]),
    (
        "sink",
        &[
            "type",
            "table",
            "topic",
            "key",
            "timestamp",
            "path",
            "output",
            "late",
            "dead_letter",
        ],
    ),
    ("checkpoint", &["interval", "location"]),
    ("limits", &["memory", "threads", "rate"]),
];

/// Sections of everlog.toml, for those who look for them here.
const SETTINGS: [&str; 6] = [
    "kafka", "catalog", "archive", "replay", "registry", "decode",
];

/// Something to correct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `section.key`; empty where the file is no TOML.
    pub key: String,
    /// The line, from 1; of what is missing, none.
    pub line: Option<usize>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.is_empty(), self.line) {
            (true, Some(line)) => write!(f, "line {line}: {}", self.message),
            (true, None) => f.write_str(&self.message),
            (false, Some(line)) => write!(f, "{} (line {line}): {}", self.key, self.message),
            (false, None) => write!(f, "{}: {}", self.key, self.message),
        }
    }
}

/// The file, and what was found wrong with it so far.
pub(super) struct Document<'a> {
    text: &'a str,
    table: DeTable<'a>,
    pub(super) problems: Vec<Problem>,
}

/// A value and its line.
#[derive(Clone, Copy)]
pub(super) struct Located<'a> {
    pub(super) value: &'a DeValue<'a>,
    pub(super) line: usize,
}

impl<'a> Document<'a> {
    /// Reads the text. One that is no TOML says nothing of its values: its problems are all that is known then.
    pub(super) fn read(text: &'a str) -> Result<Self, Vec<Problem>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(errors
                .iter()
                .map(|error| Problem {
                    key: String::new(),
                    line: Some(error.span().map_or(1, |span| line_of(text, span.start))),
                    message: one_line(error.message()),
                })
                .collect());
        }
        let mut document = Self {
            text,
            table: table.into_inner(),
            problems: Vec::new(),
        };
        document.judge_keys();
        Ok(document)
    }

    /// Every section and key must be one that there is.
    fn judge_keys(&mut self) {
        let mut found = Vec::new();
        for (name, value) in &self.table {
            let line = line_of(self.text, name.span().start);
            let name: &str = name.get_ref();
            let Some((_, keys)) = KEYS.iter().find(|(section, _)| *section == name) else {
                found.push((name.to_owned(), line, unknown_section(name)));
                continue;
            };
            let Some(table) = value.get_ref().as_table() else {
                let kind = article(value.get_ref().type_str());
                let message = format!("must be a section, written [{name}], not {kind}");
                found.push((name.to_owned(), line, message));
                continue;
            };
            for key in table.keys() {
                let line = line_of(self.text, key.span().start);
                let key: &str = key.get_ref();
                if !keys.contains(&key) {
                    let message = unknown_key(name, keys, key);
                    found.push((format!("{name}.{key}"), line, message));
                }
            }
        }
        // in the order of the file
        found.sort_by_key(|(_, line, _)| *line);
        for (key, line, message) in found {
            self.problems.push(Problem {
                key,
                line: Some(line),
                message,
            });
        }
    }

    /// What is written for a key.
    pub(super) fn get(&self, section: &str, key: &str) -> Option<Located<'_>> {
        let table = entry(&self.table, section)?.1.get_ref().as_table()?;
        let (name, value) = entry(table, key)?;
        Some(Located {
            value: value.get_ref(),
            line: line_of(self.text, name.span().start),
        })
    }

    /// The entries of a table, in the order of the file, with their lines.
    pub(super) fn entries<'t>(
        &self,
        table: &'t DeTable<'_>,
    ) -> Vec<(&'t str, &'t DeValue<'t>, usize)> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        entries
            .into_iter()
            .map(|(name, value)| {
                let line = line_of(self.text, name.span().start);
                let name: &str = name.get_ref();
                (name, value.get_ref(), line)
            })
            .collect()
    }

    /// Something is wrong with what a key says, or with its being absent.
    pub(super) fn problem(&mut self, section: &str, key: &str, message: impl Into<String>) {
        let line = self.get(section, key).map(|located| located.line);
        self.problem_at(format!("{section}.{key}"), line, message);
    }

    pub(super) fn problem_at(
        &mut self,
        key: String,
        line: Option<usize>,
        message: impl Into<String>,
    ) {
        self.problems.push(Problem {
            key,
            line,
            message: message.into(),
        });
    }

    /// It must be there.
    pub(super) fn missing(&mut self, section: &str, key: &str, example: &str) {
        self.problem(
            section,
            key,
            format!("is missing, add it like: {key} = {example}"),
        );
    }

    /// What has no meaning beside what else is written.
    pub(super) fn unfit(&mut self, section: &str, keys: &[&str], why: &str) {
        for key in keys {
            if self.get(section, key).is_some() {
                self.problem(section, key, why);
            }
        }
    }

    fn wrong_kind(&mut self, section: &str, key: &str, expected: &str) {
        let Some(located) = self.get(section, key) else {
            return;
        };
        let message = format!("must be {expected}, not {}", shown(located.value));
        self.problem(section, key, message);
    }

    /// Text that is not empty.
    pub(super) fn text(&mut self, section: &str, key: &str) -> Option<String> {
        let text = self.get(section, key)?.value.as_str().map(str::to_owned);
        match text {
            None => {
                self.wrong_kind(section, key, "text in quotes");
                None
            }
            Some(text) if text.trim().is_empty() => {
                self.problem(section, key, "must not be empty");
                None
            }
            text => text,
        }
    }

    /// Text that must be there.
    pub(super) fn needed(&mut self, section: &str, key: &str, example: &str) -> Option<String> {
        if self.get(section, key).is_none() {
            self.missing(section, key, example);
            return None;
        }
        self.text(section, key)
    }

    /// One of these words, or the first where none is written.
    pub(super) fn choice<T: Copy>(
        &mut self,
        section: &str,
        key: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        if self.get(section, key).is_none() {
            return choices.first().map(|(_, value)| *value);
        }
        let text = self.text(section, key)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let words: Vec<String> = choices
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect();
        let hint = did_you_mean(&text, choices.iter().map(|(word, _)| *word))
            .map(|word| format!(" (did you mean {word:?}?)"))
            .unwrap_or_default();
        let message = format!("must be {}, not {text:?}{hint}", words.join(" or "));
        self.problem(section, key, message);
        None
    }

    /// A span of time within bounds.
    pub(super) fn duration(
        &mut self,
        section: &str,
        key: &str,
        bounds: (Duration, Duration),
    ) -> Option<Duration> {
        let value = self.with_unit(section, key, "10s", parse_duration)?;
        self.within(section, key, value, bounds, format_duration)
    }

    /// A size within bounds.
    pub(super) fn bytes(&mut self, section: &str, key: &str, bounds: (u64, u64)) -> Option<u64> {
        let value = self.with_unit(section, key, "512MiB", parse_bytes)?;
        self.within(section, key, value, bounds, format_bytes)
    }

    /// What a text with a unit says.
    fn with_unit<T>(
        &mut self,
        section: &str,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(text) = self.get(section, key)?.value.as_str().map(str::to_owned) else {
            let expected = format!("text with a unit, like \"{example}\"");
            self.wrong_kind(section, key, &expected);
            return None;
        };
        parse(&text)
            .map_err(|message| self.problem(section, key, message))
            .ok()
    }

    fn within<T: PartialOrd + Copy>(
        &mut self,
        section: &str,
        key: &str,
        value: T,
        (min, max): (T, T),
        show: impl Fn(T) -> String,
    ) -> Option<T> {
        if value >= min && value <= max {
            return Some(value);
        }
        let (value, min, max) = (show(value), show(min), show(max));
        let message = format!("is {value}, must be from {min} to {max}");
        self.problem(section, key, message);
        None
    }

    /// A whole number within bounds.
    pub(super) fn integer(
        &mut self,
        section: &str,
        key: &str,
        (min, max): (u64, u64),
    ) -> Option<u64> {
        let number = match self.get(section, key)?.value {
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let Some(number) = number else {
            self.wrong_kind(section, key, "a whole number");
            return None;
        };
        match u64::try_from(number) {
            Ok(number) if (min..=max).contains(&number) => Some(number),
            _ => {
                let message = format!("is {number}, must be from {min} to {max}");
                self.problem(section, key, message);
                None
            }
        }
    }
}

fn entry<'t, 'a>(
    table: &'t DeTable<'a>,
    key: &str,
) -> Option<(
    &'t Spanned<std::borrow::Cow<'a, str>>,
    &'t Spanned<DeValue<'a>>,
)> {
    table.iter().find(|(name, _)| name.get_ref() == key)
}

fn unknown_section(name: &str) -> String {
    if SETTINGS.contains(&name) {
        return format!("is no section of a job: [{name}] belongs in everlog.toml");
    }
    let hint = did_you_mean(name, KEYS.iter().map(|(section, _)| *section))
        .map(|section| format!("did you mean [{section}]?"))
        .or_else(|| home_of(name).map(|section| format!("it belongs in [{section}]")))
        .unwrap_or_else(|| {
            "the sections are [job], [source], [query], [sink], [checkpoint] and [limits]"
                .to_owned()
        });
    format!("is unknown; {hint}")
}

fn unknown_key(section: &str, keys: &[&str], key: &str) -> String {
    let hint = home_of(key)
        .map(|section| format!("it belongs in [{section}]"))
        .or_else(|| did_you_mean(key, keys.iter().copied()).map(|k| format!("did you mean {k}?")))
        .unwrap_or_else(|| format!("[{section}] has {}", keys.join(", ")));
    format!("is unknown; {hint}")
}

fn home_of(key: &str) -> Option<&'static str> {
    KEYS.iter()
        .find(|(_, keys)| keys.contains(&key))
        .map(|(section, _)| *section)
}

/// The candidate that a mistyped name most likely meant.
pub(super) fn did_you_mean<'c>(
    wrong: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    // what is far longer than any name is none, and comparing it would take its time
    if wrong.len() > 100 {
        return None;
    }
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(wrong, c), c))
        .filter(|(distance, c)| *distance <= (c.len() / 4).max(2))
        .min()
        .map(|(_, c)| c)
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or_default();
    before.iter().filter(|b| **b == b'\n').count() + 1
}

/// A value as a message shows it.
pub(super) fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => {
            let short: String = text.chars().take(60).collect();
            format!("{short:?}")
        }
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(switch) => switch.to_string(),
        other => article(other.type_str()),
    }
}

fn article(kind: &str) -> String {
    let an = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if an { "an" } else { "a" })
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
