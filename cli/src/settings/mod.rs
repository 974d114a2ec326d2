//! Configuration: what was written becomes [`Settings`], or every problem at once.
//!
//! ```text
//!   everlog.toml ──┐                 check by fields::FIELDS
//!                  ├─► source::Raw ──────────────────────────► Settings | ConfigError(all problems)
//!   EVERLOG_*  ────┘
//! ```
//!
//! This is the only place that reads the environment. Settings are data: clients and clocks are made from them elsewhere.

mod decode;
mod docs;
mod fields;
mod source;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use everlog_archiver::TopicPattern;
use everlog_common::TopicName;
use everlog_decode::registry::check_address;
use everlog_kafka::Isolation;
use everlog_processor::job::{Auth, AuthProblem, Registry, Secret};
use everlog_query::TopicFormat;
use everlog_table::catalog::CatalogError;
use everlog_table::schema::PartitionBy;
use everlog_table::storage::StorageError;
use rdkafka::ClientConfig;

pub(crate) use decode::table_text;
pub(crate) use docs::{default_file, effective, reference};
use fields::{Absent, Field, KAFKA_COMMON, KAFKA_OWN, Kind, Section, did_you_mean, find};
use source::{Located, Origin, Problem, Raw, Written, one_line, shown_written};
pub(crate) use value::Properties;
use value::{format_bytes, format_duration, parse_bytes, parse_duration};

/// The file that is read where none is named.
pub(crate) const DEFAULT_FILE: &str = "everlog.toml";

/// What a command cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Needs {
    /// It talks to Kafka.
    pub(crate) kafka: bool,
    /// It archives.
    pub(crate) topics: bool,
}

impl Needs {
    /// Everything that some command needs.
    pub(crate) const ALL: Self = Self {
        kafka: true,
        topics: true,
    };
}

/// `on_gap` of the archiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnGap {
    /// The partition stops.
    Stop,
    /// The gap goes into the ledger.
    Record,
}

/// `[catalog]`.
#[derive(Debug, Clone)]
pub(crate) struct CatalogSettings {
    /// Everything for the catalog and the object store, `type`, `name`, `uri` and `warehouse` among it.
    pub(crate) properties: Properties,
    /// The tables' namespace.
    pub(crate) namespace: String,
}

/// `http` of the archiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Http {
    /// Where.
    pub(crate) address: SocketAddr,
    /// Whether it was written, in the file or a variable: the default gives way where it is in use.
    pub(crate) is_chosen: bool,
}

/// `[archive]`.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveSettings {
    /// Names, or regular expressions that begin with `^`.
    pub(crate) topics: Vec<String>,
    /// Between commits.
    pub(crate) commit_interval: Duration,
    /// What is visible.
    pub(crate) isolation: Isolation,
    /// What to do at a gap.
    pub(crate) on_gap: OnGap,
    /// Another cluster's id that is fine.
    pub(crate) accept_cluster: Option<String>,
    /// The consumer group, or alone.
    pub(crate) group: Option<String>,
    /// Bytes in memory.
    pub(crate) memory: u64,
    /// Between looks for new topics.
    pub(crate) discovery_interval: Duration,
    /// How new tables are partitioned.
    pub(crate) partition_by: PartitionBy,
    /// Where health and metrics are served.
    pub(crate) http: Option<Http>,
    /// Whether it maintains its tables.
    pub(crate) maintenance: bool,
    /// Whether maintenance deletes objects.
    pub(crate) delete_files: bool,
    /// When snapshots expire.
    pub(crate) snapshot_age: Duration,
    /// How many stay anyway.
    pub(crate) snapshots_min: usize,
    /// How many stay at most.
    pub(crate) snapshots_max: usize,
}

/// `[replay]`.
#[derive(Debug, Clone)]
pub(crate) struct ReplaySettings {
    /// Bytes read ahead.
    pub(crate) memory: u64,
    /// Decoding threads.
    pub(crate) threads: usize,
}

/// `[registry]`.
#[derive(Debug, Clone)]
pub(crate) struct RegistrySettings {
    /// Where it is, and who we are to it; its secrets are not looked up yet.
    pub(crate) registry: Registry,
    /// Where schemas are kept.
    pub(crate) cache: Option<PathBuf>,
}

/// The whole configuration, checked, every value present.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The client's properties.
    pub(crate) kafka: Properties,
    /// The catalog.
    pub(crate) catalog: CatalogSettings,
    /// The archiver.
    pub(crate) archive: ArchiveSettings,
    /// The replayer.
    pub(crate) replay: ReplaySettings,
    /// The schema registry, where there is one.
    pub(crate) registry: Option<RegistrySettings>,
    /// How topics' values are written, ascending by topic.
    pub(crate) decode: Vec<(TopicName, TopicFormat)>,
}

/// Everything that is wrong with the configuration.
#[derive(Debug)]
pub(crate) struct ConfigError {
    place: String,
    problems: Vec<Problem>,
}

impl ConfigError {
    /// The problems, in the order they were found.
    pub(crate) fn problems(&self) -> impl ExactSizeIterator<Item = String> {
        self.problems.iter().map(ToString::to_string)
    }

    /// What was read.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if self.problems.len() > 1 {
            write!(f, "{} problems: ", self.problems.len())?;
        }
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// What was written, before it is checked.
pub(crate) struct Document {
    raw: Raw,
    place: String,
    problems: Vec<Problem>,
}

/// Reads the file (the default one may be absent) and the environment.
pub(crate) fn read(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Document, ConfigError> {
    let path = file.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_path_buf);
    let mut place = path.display().to_string();
    let mut raw = Raw::default();
    let mut problems = Vec::new();
    match std::fs::read_to_string(&path) {
        Ok(text) => raw.read_file(&text, &mut problems),
        Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            place =
                format!("configuration (there is no {DEFAULT_FILE} here, name one with --config)");
        }
        Err(error) => {
            return Err(ConfigError {
                place,
                problems: vec![Problem {
                    key: String::new(),
                    origin: None,
                    message: format!(
                        "cannot be read: {error}; name another file with --config, or begin with `everlog config print --default > {DEFAULT_FILE}`"
                    ),
                }],
            });
        }
    }
    raw.read_environment(environment, &mut problems);
    Ok(Document {
        raw,
        place,
        problems,
    })
}

impl Document {
    /// What was written, for showing it.
    pub(crate) const fn raw(&self) -> &Raw {
        &self.raw
    }

    /// Checks everything; `needs` says what must not be absent. A file that is no TOML says nothing of its values: then
    /// that alone is the problem.
    pub(crate) fn settings(&self, needs: Needs) -> Result<Settings, ConfigError> {
        if self.raw.is_broken() {
            return Err(ConfigError {
                place: self.place.clone(),
                problems: self.problems.clone(),
            });
        }
        let mut check = Check {
            raw: &self.raw,
            problems: self.problems.clone(),
        };
        let settings = check.settings(needs);
        let mut problems = check.problems;
        problems.dedup();
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(ConfigError {
                place: self.place.clone(),
                problems,
            }),
        }
    }
}

/// Reads values by their fields and gathers what is wrong.
struct Check<'a> {
    raw: &'a Raw,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn settings(&mut self, needs: Needs) -> Option<Settings> {
        use Section::{Archive, Catalog, Replay};

        let kafka = self.kafka(needs);
        let kind = self.text(Catalog, "type", true);
        let name = self.text(Catalog, "name", false);
        let uri = self.text(Catalog, "uri", true);
        let warehouse = self.text(Catalog, "warehouse", kind.as_deref() == Some("sql"));
        let namespace = self.namespace();
        let mut properties = self.pass_through(Catalog);
        for (key, value) in [
            ("type", kind),
            ("name", name),
            ("uri", uri),
            ("warehouse", warehouse),
        ] {
            if let Some(value) = value {
                properties.insert(key, value);
            }
        }
        self.catalog(&properties);

        let topics = self.topics(needs);
        let commit_interval = self.duration(Archive, "commit_interval");
        let isolation = self.text(Archive, "isolation", false);
        let on_gap = self.text(Archive, "on_gap", false);
        let accept_cluster = self.text(Archive, "accept_cluster", false);
        let group = self.text(Archive, "group", false);
        let archive_memory = self.bytes(Archive, "memory");
        let discovery_interval = self.duration(Archive, "discovery_interval");
        let partition_by = self.partition_by();
        let http = self.http();
        let maintenance = self.switch(Archive, "maintenance");
        let delete_files = self.switch(Archive, "delete_files");
        let snapshot_age = self.duration(Archive, "snapshot_age");
        let snapshots_min = self.integer(Archive, "snapshots_min");
        let snapshots_max = self.integer(Archive, "snapshots_max");
        if let (Some(min), Some(max)) = (snapshots_min, snapshots_max)
            && min > max
        {
            let message = format!("is {min}, more than snapshots_max, {max}");
            self.problem(Archive, "snapshots_min", message);
        }
        let replay_memory = self.bytes(Replay, "memory");
        let threads = match self.raw.get(Replay, "threads") {
            Some(_) => self.integer(Replay, "threads"),
            None => Some(std::thread::available_parallelism().map_or(1, |n| n.get() as u64)),
        };
        let registry = self.registry();
        let has_registry = self.raw.get(Section::Registry, "url").is_some();
        let decode = decode::formats(self.raw.decodes(), has_registry, &mut self.problems);

        Some(Settings {
            kafka,
            catalog: CatalogSettings {
                properties,
                namespace: namespace?,
            },
            archive: ArchiveSettings {
                topics,
                commit_interval: commit_interval?,
                isolation: match isolation?.as_str() {
                    "read_uncommitted" => Isolation::ReadUncommitted,
                    _ => Isolation::ReadCommitted,
                },
                on_gap: match on_gap?.as_str() {
                    "record" => OnGap::Record,
                    _ => OnGap::Stop,
                },
                accept_cluster,
                group,
                memory: archive_memory?,
                discovery_interval: discovery_interval?,
                partition_by: partition_by?,
                http,
                maintenance: maintenance?,
                delete_files: delete_files?,
                snapshot_age: snapshot_age?,
                snapshots_min: usize::try_from(snapshots_min?).ok()?,
                snapshots_max: usize::try_from(snapshots_max?).ok()?,
            },
            replay: ReplaySettings {
                memory: replay_memory?,
                threads: usize::try_from(threads?).ok()?,
            },
            registry: registry?,
            decode,
        })
    }

    /// `[registry]`; the outer none is a problem that was told.
    fn registry(&mut self) -> Option<Option<RegistrySettings>> {
        let section = Section::Registry;
        let url = self.text(section, "url", false);
        let user = self.text(section, "user", false);
        let password = self.secret("password");
        let token = self.secret("token");
        let timeout = self.duration(section, "timeout");
        let cache = self.text(section, "cache", false).map(PathBuf::from);
        let auth = match Auth::of(user, password?, token?) {
            Ok(auth) => auth,
            Err(AuthProblem::NoPassword) => {
                let message =
                    "is missing beside user, add it like: password = \"env:REGISTRY_PASSWORD\"";
                self.problem(section, "password", message.to_owned());
                return None;
            }
            Err(AuthProblem::NoUser) => {
                self.problem(section, "user", "is missing beside password".to_owned());
                return None;
            }
            Err(AuthProblem::TokenAndUser) => {
                let message = "excludes user and password: write a token or those";
                self.problem(section, "token", message.to_owned());
                return None;
            }
        };
        let Some(url) = url else {
            // the timeout alone is what `config print` shows of no registry
            let others = ["user", "password", "token", "cache"];
            if others
                .iter()
                .any(|key| self.raw.get(section, key).is_some())
            {
                let message = "is missing, add it like: url = \"http://127.0.0.1:8081\"";
                self.problem(section, "url", message.to_owned());
            }
            return Some(None);
        };
        if let Err(why) = check_address(&url) {
            self.problem(section, "url", why);
            return None;
        }
        Some(Some(RegistrySettings {
            registry: Registry {
                url,
                auth,
                timeout: timeout?,
            },
            cache,
        }))
    }

    /// A secret, or where to find it; the outer none is a problem that was told.
    fn secret(&mut self, key: &str) -> Option<Option<Secret>> {
        let Some(text) = self.text(Section::Registry, key, false) else {
            return Some(None);
        };
        let secret = Secret::parse(&text);
        if secret.is_none() {
            let message = "names nothing: write env:NAME or file:PATH";
            self.problem(Section::Registry, key, message.to_owned());
            return None;
        }
        Some(secret)
    }

    /// `[kafka]`: each property is shown to librdkafka, which knows its own names and values best.
    fn kafka(&mut self, needs: Needs) -> Properties {
        let section = Section::Kafka;
        let mut properties = self.pass_through(section);
        if let Some(servers) = self.text(section, "bootstrap.servers", needs.kafka) {
            properties.insert("bootstrap.servers", servers);
        }
        for (key, value) in properties.reveal() {
            if key == KAFKA_OWN {
                if !matches!(value.parse::<u64>(), Ok(100..=600_000)) {
                    let message = "must be a number of milliseconds from 100 to 600000".to_owned();
                    self.problem(section, key, message);
                }
                continue;
            }
            let Err(error) = ClientConfig::new().set(key, value).create_native_config() else {
                continue;
            };
            let detail = match error {
                rdkafka::error::KafkaError::ClientConfig(_, detail, ..) => detail,
                other => other.to_string(),
            };
            let message = match did_you_mean(key, KAFKA_COMMON.iter().copied()) {
                Some(meant) if meant != key.as_str() => {
                    format!("is no property of librdkafka; did you mean {meant}?")
                }
                _ => format!(
                    "librdkafka refuses it: {}",
                    redact(&one_line(&detail), key, value)
                ),
            };
            self.problem(section, key, message);
        }
        properties
    }

    /// `[catalog]`: what opening it would refuse, by the same code. A part that is missing is told by its field.
    fn catalog(&mut self, properties: &Properties) {
        if ["type", "uri"]
            .iter()
            .any(|key| properties.get(key).is_none())
        {
            return;
        }
        for error in everlog_table::catalog::check(properties.reveal()) {
            let (key, message) = match &error {
                CatalogError::Property { key, message } => (key.as_str(), message.clone()),
                CatalogError::Storage { source, .. } => match &**source {
                    StorageError::Property { key, message } => (key.as_str(), message.clone()),
                    other => ("warehouse", other.to_string()),
                },
                other => ("uri", other.to_string()),
            };
            if key == "warehouse" && properties.get(key).is_none() {
                continue;
            }
            let message = match properties.get(key) {
                Some(value) => redact(&one_line(&message), key, value),
                None => message,
            };
            self.problem(Section::Catalog, key, message);
        }
    }

    fn pass_through(&mut self, section: Section) -> Properties {
        let mut properties = Properties::default();
        let written: Vec<(String, Written)> = self
            .raw
            .section(section)
            .filter(|(key, _)| find(section, key).is_none())
            .map(|(key, located)| (key.to_owned(), located.value.clone()))
            .collect();
        for (key, value) in written {
            match value {
                Written::Text(text) | Written::Integer(text) | Written::Float(text) => {
                    properties.insert(&key, text);
                }
                Written::Switch(switch) => properties.insert(&key, switch.to_string()),
                Written::List(_) => self.problem(
                    section,
                    &key,
                    "must be text, a number, or true or false, not a list".to_owned(),
                ),
                Written::Other(what) => self.problem(
                    section,
                    &key,
                    format!("must be text, a number, or true or false, not {what}"),
                ),
            }
        }
        properties
    }

    fn namespace(&mut self) -> Option<String> {
        let namespace = self.text(Section::Catalog, "namespace", false)?;
        if namespace.split('.').any(|level| level.trim().is_empty()) {
            self.problem(
                Section::Catalog,
                "namespace",
                format!("{namespace:?} has an empty level, write a name like \"everlog\" or \"lake.everlog\""),
            );
            return None;
        }
        Some(namespace)
    }

    fn topics(&mut self, needs: Needs) -> Vec<String> {
        let topics = self.list(Section::Archive, "topics", needs.topics);
        for topic in &topics {
            if let Err(wrong) = TopicPattern::parse(topic) {
                self.problem(Section::Archive, "topics", wrong.to_string());
            }
        }
        topics
    }

    fn partition_by(&mut self) -> Option<PartitionBy> {
        let text = self.text(Section::Archive, "partition_by", false)?;
        match text.parse() {
            Ok(partition_by) => Some(partition_by),
            Err(error) => {
                let error: everlog_table::schema::SchemaError = error;
                self.problem(Section::Archive, "partition_by", error.to_string());
                None
            }
        }
    }

    fn http(&mut self) -> Option<Http> {
        let text = self.text(Section::Archive, "http", false)?;
        if text.is_empty() {
            return None;
        }
        let Ok(address) = text.parse() else {
            self.problem(
                Section::Archive,
                "http",
                format!("{text:?} is not IP:PORT, like \"127.0.0.1:9464\" or \"[::]:9464\""),
            );
            return None;
        };
        Some(Http {
            address,
            is_chosen: self.raw.get(Section::Archive, "http").is_some(),
        })
    }

    fn problem(&mut self, section: Section, key: &str, message: String) {
        self.problems.push(Problem {
            key: format!("{}.{key}", section.name()),
            origin: self.raw.get(section, key).map(|l| l.origin.clone()),
            message,
        });
    }

    /// What is written for a field, else its default. `None` where nothing holds; that it must not is said here.
    fn value(
        &mut self,
        section: Section,
        key: &str,
        needed: bool,
    ) -> Option<(&'static Field, Located)> {
        let field = find(section, key).expect("only keys of FIELDS are asked for");
        if let Some(located) = self.raw.get(section, key) {
            return Some((field, located.clone()));
        }
        match field.absent {
            Absent::Default(default) => Some((
                field,
                Located {
                    // As from a variable: every kind reads text from there.
                    value: Written::Text(default.to_owned()),
                    origin: Origin::Variable(String::new()),
                },
            )),
            Absent::Required(_) if needed => {
                self.problem(
                    section,
                    key,
                    format!("is missing, add it like: {key} = {}", field.example)
                        .replace(&format!("{key} ="), &format!("{} =", docs::toml_key(key))),
                );
                None
            }
            Absent::Required(_) | Absent::Means(_) => None,
        }
    }

    fn wrong_type(&mut self, field: &Field, written: &Written, expected: &str) {
        let found = shown_written(written);
        self.problem(
            field.section,
            field.key,
            format!("must be {expected}, not {found}"),
        );
    }

    fn text(&mut self, section: Section, key: &str, needed: bool) -> Option<String> {
        let (field, located) = self.value(section, key, needed)?;
        let Written::Text(text) = &located.value else {
            self.wrong_type(field, &located.value, "text in quotes");
            return None;
        };
        match field.kind {
            Kind::Choice(choices) if !choices.contains(&text.as_str()) => {
                let hint = did_you_mean(text, choices.iter().copied())
                    .map(|c| format!(" (did you mean {c:?}?)"))
                    .unwrap_or_default();
                let choices: Vec<String> = choices.iter().map(|c| format!("{c:?}")).collect();
                self.problem(
                    section,
                    key,
                    format!("must be {}, not {text:?}{hint}", choices.join(" or ")),
                );
                None
            }
            Kind::Text if text.trim().is_empty() => {
                self.problem(section, key, "must not be empty".to_owned());
                None
            }
            _ => Some(text.clone()),
        }
    }

    fn list(&mut self, section: Section, key: &str, needed: bool) -> Vec<String> {
        let Some((field, located)) = self.value(section, key, needed) else {
            return Vec::new();
        };
        let Written::List(items) = &located.value else {
            let expected = format!("a list, like {}", field.example);
            self.wrong_type(field, &located.value, &expected);
            return Vec::new();
        };
        if items.is_empty() {
            self.problem(section, key, "must not be empty".to_owned());
        }
        if items.iter().any(Option::is_none) {
            self.problem(
                section,
                key,
                "must hold nothing but text in quotes".to_owned(),
            );
        }
        items.iter().flatten().cloned().collect()
    }

    fn duration(&mut self, section: Section, key: &str) -> Option<Duration> {
        let (field, located) = self.value(section, key, false)?;
        let Written::Text(text) = &located.value else {
            self.wrong_type(field, &located.value, "text with a unit, like \"10s\"");
            return None;
        };
        let Kind::Duration { min, max } = field.kind else {
            return None;
        };
        match parse_duration(text) {
            Ok(duration) => {
                let (min, max) = (Duration::from_millis(min), Duration::from_millis(max));
                self.within(field, duration, (min, max), |d| format_duration(*d))
            }
            Err(message) => {
                self.problem(section, key, message);
                None
            }
        }
    }

    fn bytes(&mut self, section: Section, key: &str) -> Option<u64> {
        let (field, located) = self.value(section, key, false)?;
        let Written::Text(text) = &located.value else {
            self.wrong_type(field, &located.value, "text with a unit, like \"512MiB\"");
            return None;
        };
        let Kind::Bytes { min, max } = field.kind else {
            return None;
        };
        match parse_bytes(text) {
            Ok(bytes) => self.within(field, bytes, (min, max), |b| format_bytes(*b)),
            Err(message) => {
                self.problem(section, key, message);
                None
            }
        }
    }

    fn integer(&mut self, section: Section, key: &str) -> Option<u64> {
        let (field, located) = self.value(section, key, false)?;
        let number = match (&located.value, &located.origin) {
            (Written::Integer(number), _) => number.parse().ok(),
            (Written::Text(text), Origin::Variable(_)) => text.trim().parse().ok(),
            _ => None,
        };
        let (Some(number), Kind::Integer { min, max }) = (number, field.kind) else {
            self.wrong_type(field, &located.value, "a whole number, not negative");
            return None;
        };
        self.within(field, number, (min, max), ToString::to_string)
    }

    fn switch(&mut self, section: Section, key: &str) -> Option<bool> {
        let (field, located) = self.value(section, key, false)?;
        match (&located.value, &located.origin) {
            (Written::Switch(switch), _) => Some(*switch),
            (Written::Text(text), Origin::Variable(_)) if text == "true" => Some(true),
            (Written::Text(text), Origin::Variable(_)) if text == "false" => Some(false),
            (other, _) => {
                self.wrong_type(field, other, "true or false");
                None
            }
        }
    }

    fn within<T: PartialOrd>(
        &mut self,
        field: &Field,
        value: T,
        (min, max): (T, T),
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        if value < min || value > max {
            self.problem(
                field.section,
                field.key,
                format!(
                    "is {}, must be from {} to {}",
                    show(&value),
                    show(&min),
                    show(&max)
                ),
            );
            return None;
        }
        Some(value)
    }
}

/// Keeps a secret that a client's message repeats out of it. What is no longer than a few characters is no secret, and
/// replacing it would take the message apart.
fn redact(message: &str, key: &str, value: &str) -> String {
    let shown = value::shown(key, value);
    if shown != value && value.chars().count() >= 4 {
        message.replace(value, &shown)
    } else {
        message.to_owned()
    }
}

/// What `config check` says of a configuration that is right: one line per part.
pub(crate) fn summary(settings: &Settings) -> BTreeMap<&'static str, String> {
    let property = |key| {
        settings
            .catalog
            .properties
            .get(key)
            .unwrap_or("(the catalog's own)")
    };
    BTreeMap::from([
        (
            "kafka",
            settings
                .kafka
                .get("bootstrap.servers")
                .unwrap_or("(not set)")
                .to_owned(),
        ),
        (
            "catalog",
            format!(
                "{} at {}, warehouse {}, namespace {}",
                property("type"),
                value::shown("uri", property("uri")),
                value::shown("warehouse", property("warehouse")),
                settings.catalog.namespace
            ),
        ),
        (
            "archive",
            format!(
                "{} every {}, {}",
                settings.archive.topics.join(", "),
                format_duration(settings.archive.commit_interval),
                settings.archive.isolation.as_str()
            ),
        ),
    ])
}

#[cfg(test)]
mod tests;
