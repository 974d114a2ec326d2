//! A job as its file says it: read, checked as a whole, every value in its place. docs/jobs.md is the reference for users.
//!
//! Reading a job asks nobody: no broker, no registry, no environment. What is wrong is told all at once, each problem in one
//! line with its key, its line in the file, and what would be right.

mod document;

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use everlog_common::TopicName;
use everlog_decode::registry::RegistrySettings;
use everlog_decode::{Column, ColumnType, Columns};
use everlog_engine::{EventTime, Scope};
use everlog_replayer::request::From;
use everlog_table::schema::table_name;

pub use self::document::Problem;

use self::document::{Document, did_you_mean, one_line, shown};

const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_hours(365 * 24);
const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Bytes of a job file; a longer one is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Columns that the engine adds to those of the source.
const ENGINE_COLUMNS: [&str; 5] = ["ts", "_generation", "_partition", "_offset", "_timestamp"];

/// A job file that cannot be used: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobError {
    /// The file.
    pub place: String,
    /// At least one, in the order of the file as far as they have lines.
    pub problems: Vec<Problem>,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let newline = if i > 0 { "\n" } else { "" };
            write!(f, "{newline}{}: {problem}", self.place)?;
        }
        Ok(())
    }
}

impl std::error::Error for JobError {}

/// The name of a job, or of one of its versions: it names files, branches and topics.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A job, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Lower-case letters, digits, `-` and `_`, beginning with a letter.
    pub name: Name,
    /// The same, or beginning with a digit. No other version ever touches what this one has.
    pub version: Name,
    /// What it reads.
    pub source: Source,
    /// The query.
    pub sql: String,
    /// Where rows go.
    pub sink: Sink,
    /// Where records go that came too late.
    pub late: Side,
    /// Where records go that cannot be decoded or have no event time.
    pub dead_letter: Side,
    /// How often, and where to, the state is saved.
    pub checkpoint: Checkpoint,
    /// What it may take.
    pub limits: Limits,
}

/// What a job reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The topic.
    pub topic: TopicName,
    /// Where it begins.
    pub from: From,
    /// What a value says.
    pub format: Format,
    /// An SQL expression over the columns; SQL knows it as `ts`.
    pub event_time: String,
    /// How time passes.
    pub time: EventTime,
    /// A partition at whose end nothing has come for so long does not hold time back. None: it does, for ever.
    pub idle_timeout: Option<Duration>,
    /// Which records are one and the same.
    pub deduplicate: Option<Deduplicate>,
    /// What a record that cannot be decoded does.
    pub on_error: OnError,
}

impl Source {
    /// The topic's name in SQL: every character outside `[A-Za-z0-9_]` as `_`, as the archive's table has it.
    pub fn table(&self) -> String {
        table_name(&self.topic)
    }
}

/// What a value says.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// A JSON object with these fields.
    Json(Columns),
    /// An Avro record.
    Avro(Avro),
    /// Nothing: columns `key`, `value`, `headers`.
    Raw,
}

/// Avro by a schema registry.
#[derive(Debug, Clone, PartialEq)]
pub struct Avro {
    /// What every record is read into; none is the newest schema of the subject, as it is when the job first starts.
    pub columns: Option<Columns>,
    /// The subject of the topic's values.
    pub subject: String,
    /// Where the registry is.
    pub registry: Registry,
}

/// A schema registry, its secrets not yet looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// `http://` or `https://`
    pub url: String,
    /// Credentials.
    pub auth: Auth,
    /// For one request.
    pub timeout: Duration,
}

/// Credentials for the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// None.
    None,
    /// A user and a password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Bearer(Secret),
}

/// A secret: written in the file, or where to find it.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// In the job file.
    Literal(String),
    /// `env:NAME`
    Variable(String),
    /// `file:PATH`, without white space around it.
    File(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) => f.write_str("<redacted>"),
            Self::Variable(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// A secret that is not where it is said to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// No such variable.
    #[error("the variable {0}, which is named for the schema registry, is not set")]
    Variable(String),
    /// No such file.
    #[error("{path}, which is named for the schema registry, cannot be read")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Secret {
    /// `env:NAME`, `file:PATH`, or the secret itself; none where that names nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, secret) = match text.split_once(':') {
            Some(("env", name)) => (name, Self::Variable(name.to_owned())),
            Some(("file", path)) => (path, Self::File(path.into())),
            _ => (text, Self::Literal(text.to_owned())),
        };
        (!name.is_empty()).then_some(secret)
    }

    fn reveal(&self, variable: impl Fn(&str) -> Option<String>) -> Result<String, SecretError> {
        match self {
            Self::Literal(text) => Ok(text.clone()),
            Self::Variable(name) => {
                variable(name).ok_or_else(|| SecretError::Variable(name.clone()))
            }
            Self::File(path) => std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .map_err(|source| SecretError::File {
                    path: path.display().to_string(),
                    source,
                }),
        }
    }
}

/// Credentials that do not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthProblem {
    /// A user and no password.
    NoPassword,
    /// A password and no user.
    NoUser,
    /// A token, and a user or a password beside it.
    TokenAndUser,
}

impl Auth {
    /// What was given, if it goes together.
    pub fn of(
        user: Option<String>,
        password: Option<Secret>,
        token: Option<Secret>,
    ) -> Result<Self, AuthProblem> {
        match (user, password, token) {
            (None, None, None) => Ok(Self::None),
            (Some(user), Some(password), None) => Ok(Self::Basic { user, password }),
            (None, None, Some(token)) => Ok(Self::Bearer(token)),
            (Some(_), None, None) => Err(AuthProblem::NoPassword),
            (None, Some(_), None) => Err(AuthProblem::NoUser),
            (_, _, Some(_)) => Err(AuthProblem::TokenAndUser),
        }
    }
}

impl Registry {
    /// With its secrets, from files and by `variable` from the environment.
    pub fn settings(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<RegistrySettings, SecretError> {
        use everlog_decode::registry::Auth as Revealed;
        Ok(RegistrySettings {
            url: self.url.clone(),
            auth: match &self.auth {
                Auth::None => Revealed::None,
                Auth::Basic { user, password } => Revealed::Basic {
                    user: user.clone(),
                    password: password.reveal(variable)?,
                },
                Auth::Bearer(token) => Revealed::Bearer(token.reveal(variable)?),
            },
            timeout: self.timeout,
        })
    }
}

/// Which records are one and the same: of those with equal columns, within a time, the first counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deduplicate {
    /// The columns.
    pub by: Vec<String>,
    /// The time.
    pub within: Duration,
}

/// What a record that cannot be decoded does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It goes to the dead letters.
    DeadLetter,
    /// It ends the job.
    Stop,
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// An Iceberg table.
    Iceberg {
        /// Its name in the catalog's namespace.
        table: String,
        /// What each version writes to.
        output: Output,
    },
    /// A topic, of which each version gets its own.
    Kafka {
        /// Its name without the version.
        topic: TopicName,
        /// The columns that make a row's key; none: those that the query groups by.
        key: Option<Vec<String>>,
        /// The column of times that records get as theirs; none: when they are sent.
        timestamp: Option<String>,
    },
    /// A file of JSON lines.
    Jsonl {
        /// The file.
        path: PathBuf,
    },
}

/// What each version of a job with an Iceberg table writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A branch of one table.
    Branch,
    /// A table of its own.
    Table,
}

/// Where records go that are no rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// They are counted, and that is all: they are in the log.
    Count,
    /// A file of JSON lines.
    Jsonl(PathBuf),
    /// A topic of the version's own, whose name begins with this one.
    Kafka(TopicName),
}

/// How often, and where to, a job's state is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Time between two.
    pub interval: Duration,
    /// `file:///…`, `s3://…`, `gs://…`, `abfss://…`; without a slash at its end.
    pub location: String,
}

/// What a job may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: u64,
    /// Threads; none is as many as there are processors.
    pub threads: Option<usize>,
    /// Events a second.
    pub rate: Option<NonZeroU64>,
}

impl Job {
    /// Reads and checks a job file.
    pub fn read(path: &Path) -> Result<Self, JobError> {
        let place = path.display().to_string();
        let unreadable = |why: String| JobError {
            place: place.clone(),
            problems: vec![Problem {
                key: String::new(),
                line: None,
                message: why,
            }],
        };
        let length = std::fs::metadata(path).map(|m| m.len());
        if length.is_ok_and(|length| length > FILE_BYTES_MAX) {
            return Err(unreadable(
                "is longer than 1 MiB: this is no job file".to_owned(),
            ));
        }
        let text = std::fs::read_to_string(path).map_err(|error| {
            unreadable(format!(
                "cannot be read: {error}; docs/jobs.md shows a job file to begin with"
            ))
        })?;
        Self::parse(&text, &place)
    }

    /// Checks the text of a job file; `place` is what messages call it.
    pub fn parse(text: &str, place: &str) -> Result<Self, JobError> {
        let failed = |mut problems: Vec<Problem>| {
            problems.sort_by_key(|p| p.line.unwrap_or(usize::MAX));
            problems.dedup();
            JobError {
                place: place.to_owned(),
                problems,
            }
        };
        let mut document = Document::read(text).map_err(failed)?;
        let job = Check {
            file: &mut document,
        }
        .job();
        match job {
            Some(job) if document.problems.is_empty() => Ok(job),
            _ => Err(failed(document.problems)),
        }
    }
}

struct Check<'d, 'a> {
    file: &'d mut Document<'a>,
}

impl Check<'_, '_> {
    fn job(&mut self) -> Option<Job> {
        let name = self.name("name", "sessions");
        let version = self.name("version", "v1");
        let source = self.source();
        let sql = self.file.needed("query", "sql", "\"SELECT …\"");
        let topic = source.as_ref().map(|s| s.topic.clone());
        let sink = self.sink();
        let late = self.side("late");
        let dead_letter = self.side("dead_letter");
        if let (Some(sink), Some(late), Some(dead_letter)) = (&sink, &late, &dead_letter) {
            self.outputs_differ(topic.as_ref(), version.as_ref(), sink, late, dead_letter);
        }
        let checkpoint = self.checkpoint();
        let limits = self.limits();
        Some(Job {
            name: name?,
            version: version?,
            source: source?,
            sql: sql?,
            sink: sink?,
            late: late?,
            dead_letter: dead_letter?,
            checkpoint: checkpoint?,
            limits: limits?,
        })
    }

    /// The name of the job or of its version.
    fn name(&mut self, key: &str, example: &str) -> Option<Name> {
        let text = self.file.needed("job", key, &format!("{example:?}"))?;
        let is_job = key == "name";
        let longest = if is_job { 64 } else { 32 };
        let begins =
            text.starts_with(|c: char| c.is_ascii_lowercase() || (!is_job && c.is_ascii_digit()));
        let allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if !begins || text.len() > longest || !text.chars().all(allowed) {
            let beginning = if is_job {
                "a letter"
            } else {
                "a letter or digit"
            };
            let lower = text.to_ascii_lowercase();
            let hint = if lower != text && lower.chars().all(allowed) {
                format!("; write {lower:?}")
            } else {
                String::new()
            };
            self.file.problem(
                "job",
                key,
                format!(
                    "{text:?} cannot name files, branches and topics: 1 to {longest} of a-z, 0-9, - and _, beginning with {beginning}{hint}"
                ),
            );
            return None;
        }
        let reserved =
            text == "main" || text.starts_with("before-") || text.starts_with("everlog-");
        if !is_job && reserved {
            self.file.problem(
                "job",
                key,
                format!("{text:?} is a name that everlog gives itself; write one like \"v1\""),
            );
            return None;
        }
        Some(Name(text))
    }

    fn source(&mut self) -> Option<Source> {
        let topic = self.file.needed("source", "topic", "\"clickstream.raw\"");
        let topic = topic.and_then(|text| self.topic("source", "topic", &text));
        let from = self.from();
        let format = self.format(topic.as_ref());
        let given = self.file.get("source", "event_time").is_some();
        let event_time = if given {
            self.file.text("source", "event_time")
        } else {
            // the record's own Kafka timestamp
            Some("_timestamp".to_owned())
        };
        let time = self.time(given);
        let idle_timeout = self.optional_duration("source", "idle_timeout", (SECOND, YEAR));
        let columns = match &format {
            Some(Format::Json(columns)) => Some(columns),
            Some(Format::Avro(avro)) => avro.columns.as_ref(),
            Some(Format::Raw) | None => None,
        };
        if let Some(columns) = columns {
            self.engine_columns(columns, event_time.as_deref());
        }
        let deduplicate = self.deduplicate(columns);
        let on_error = self.file.choice(
            "source",
            "on_error",
            &[
                ("dead_letter", OnError::DeadLetter),
                ("stop", OnError::Stop),
            ],
        );
        Some(Source {
            topic: topic?,
            from: from?,
            format: format?,
            event_time: event_time?,
            time: time?,
            idle_timeout: idle_timeout?,
            deduplicate: deduplicate?,
            on_error: on_error?,
        })
    }

    fn topic(&mut self, section: &str, key: &str, text: &str) -> Option<TopicName> {
        match TopicName::new(text) {
            Ok(topic) => Some(topic),
            Err(error) => {
                let hint = if text.starts_with('^') || text.contains('*') {
                    "; a job reads one topic"
                } else {
                    ""
                };
                self.file.problem(section, key, format!("{error}{hint}"));
                None
            }
        }
    }

    fn from(&mut self) -> Option<From> {
        if self.file.get("source", "from").is_none() {
            return Some(From::Beginning);
        }
        let text = self.file.text("source", "from")?;
        match text.parse() {
            Ok(from) => Some(from),
            Err(error) => {
                // written for the command line: `--from X: what`
                let message = error.to_string();
                let rest = message.strip_prefix("--from ").unwrap_or(&message);
                let what = rest.strip_prefix(&format!("{text}: ")).unwrap_or(rest);
                self.file
                    .problem("source", "from", format!("{text:?}: {}", one_line(what)));
                None
            }
        }
    }

    fn format(&mut self, topic: Option<&TopicName>) -> Option<Format> {
        const REGISTRY: [&str; 6] = [
            "registry",
            "registry_user",
            "registry_password",
            "registry_token",
            "registry_timeout",
            "subject",
        ];
        #[derive(Clone, Copy, PartialEq)]
        enum Kind {
            Json,
            Avro,
            Raw,
        }
        if self.file.get("source", "format").is_none() {
            self.file.missing("source", "format", "\"json\"");
            return None;
        }
        let choices = [
            ("json", Kind::Json),
            ("avro", Kind::Avro),
            ("raw", Kind::Raw),
        ];
        let kind = self.file.choice("source", "format", &choices)?;
        if kind != Kind::Avro {
            let why = "is for format = \"avro\": remove it";
            self.file.unfit("source", &REGISTRY, why);
        }
        match kind {
            Kind::Json => {
                if self.file.get("source", "columns").is_none() {
                    let example = "{ user_id = \"STRING NOT NULL\", timestamp_ms = \"BIGINT\" }";
                    self.file.missing("source", "columns", example);
                    return None;
                }
                Some(Format::Json(self.columns()?))
            }
            Kind::Raw => {
                let why = "has no meaning with format = \"raw\", whose columns are key, value and headers: remove it";
                self.file.unfit("source", &["columns"], why);
                Some(Format::Raw)
            }
            Kind::Avro => {
                let declared = self.file.get("source", "columns").is_some();
                let columns = declared.then(|| self.columns());
                let subject = match self.file.get("source", "subject") {
                    Some(_) => self.file.text("source", "subject"),
                    None => topic.map(|topic| format!("{topic}-value")),
                };
                let registry = self.registry();
                Some(Format::Avro(Avro {
                    columns: match columns {
                        Some(columns) => Some(columns?),
                        None => None,
                    },
                    subject: subject?,
                    registry: registry?,
                }))
            }
        }
    }

    fn columns(&mut self) -> Option<Columns> {
        let located = self.file.get("source", "columns")?;
        let line = located.line;
        let Some(table) = located.value.as_table() else {
            let message = format!(
                "must be a table of names and types, like {{ user_id = \"STRING NOT NULL\" }}, not {}",
                shown(located.value)
            );
            self.file.problem("source", "columns", message);
            return None;
        };
        let mut columns = Vec::new();
        let mut wrong = Vec::new();
        for (name, value, line) in self.file.entries(table) {
            let key = format!("source.columns.{name}");
            match value.as_str().map(str::parse::<ColumnType>) {
                Some(Ok(of)) => columns.push(Column {
                    name: name.to_owned(),
                    of,
                }),
                Some(Err(error)) => wrong.push((key, line, error.to_string())),
                None if value.as_table().is_some() => wrong.push((
                    key,
                    line,
                    "must be a type in quotes, like \"BIGINT\", not a table; for nested fields write \"ROW<name STRING, …>\", and a name with a dot in quotes".to_owned(),
                )),
                None => wrong.push((
                    key,
                    line,
                    format!("must be a type in quotes, like \"BIGINT\", not {}", shown(value)),
                )),
            }
        }
        if !wrong.is_empty() {
            for (key, line, message) in wrong {
                self.file.problem_at(key, Some(line), message);
            }
            return None;
        }
        match Columns::new(columns) {
            Ok(columns) => Some(columns),
            Err(error) => {
                let key = "source.columns".to_owned();
                self.file.problem_at(key, Some(line), error.to_string());
                None
            }
        }
    }

    /// Names that would stand twice in what SQL sees.
    fn engine_columns(&mut self, columns: &Columns, event_time: Option<&str>) {
        for name in ENGINE_COLUMNS {
            let is_declared = columns.iter().any(|c| c.name.eq_ignore_ascii_case(name));
            if !is_declared || (name == "ts" && event_time.map(str::trim) == Some("ts")) {
                continue;
            }
            let what = if name == "ts" {
                "is what SQL calls the event time: a field of that name can be declared only as it, by event_time = \"ts\""
            } else {
                "is a column that every job has: it cannot be declared"
            };
            let line = self.file.get("source", "columns").map(|l| l.line);
            self.file
                .problem_at(format!("source.columns.{name}"), line, what);
        }
    }

    fn registry(&mut self) -> Option<Registry> {
        let url = self
            .file
            .needed("source", "registry", "\"http://127.0.0.1:8081\"");
        let url = url.and_then(|url| match everlog_decode::registry::check_address(&url) {
            Ok(()) => Some(url),
            Err(why) => {
                self.file.problem("source", "registry", why);
                None
            }
        });
        let user = self.optional_text("source", "registry_user")?;
        let password = self.secret("registry_password")?;
        let token = self.secret("registry_token")?;
        let auth = match Auth::of(user, password, token) {
            Ok(auth) => Some(auth),
            Err(AuthProblem::NoPassword) => {
                let message = "is missing beside registry_user, add it like: registry_password = \"env:REGISTRY_PASSWORD\"";
                self.file.problem("source", "registry_password", message);
                None
            }
            Err(AuthProblem::NoUser) => {
                let message = "is missing beside registry_password";
                self.file.problem("source", "registry_user", message);
                None
            }
            Err(AuthProblem::TokenAndUser) => {
                let message =
                    "excludes registry_user and registry_password: write a token or those";
                self.file.problem("source", "registry_token", message);
                None
            }
        };
        let bounds = (Duration::from_millis(100), 60 * SECOND);
        let timeout = self.duration_or("source", "registry_timeout", bounds, 5 * SECOND);
        Some(Registry {
            url: url?,
            auth: auth?,
            timeout: timeout?,
        })
    }

    /// The outer none is a problem that was told.
    fn secret(&mut self, key: &str) -> Option<Option<Secret>> {
        let Some(text) = self.optional_text("source", key)? else {
            return Some(None);
        };
        let secret = Secret::parse(&text);
        if secret.is_none() {
            let message = "names nothing: write env:NAME or file:PATH";
            self.file.problem("source", key, message);
            return None;
        }
        Some(secret)
    }

    fn time(&mut self, event_time: bool) -> Option<EventTime> {
        let long = (Duration::ZERO, YEAR);
        if event_time && self.file.get("source", "out_of_orderness").is_none() {
            self.file.problem(
                "source",
                "out_of_orderness",
                "is missing beside event_time: say how far records of a partition may be out of order, like: out_of_orderness = \"30s\"",
            );
        }
        let bound = self.duration_or("source", "out_of_orderness", long, Duration::ZERO);
        let lateness = self.optional_duration("source", "allowed_lateness", long);
        let scope = [("global", Scope::Global), ("partition", Scope::Partition)];
        let scope = self.file.choice("source", "event_time_scope", &scope);
        let future = (SECOND, CENTURY);
        let max_future = self.duration_or("source", "max_future", future, 3_600 * SECOND);
        let max_skew = self.optional_duration("source", "max_skew", (SECOND, YEAR));
        if scope == Some(Scope::Partition) {
            let why = "has no meaning with event_time_scope = \"partition\", where each partition has its own time: remove it";
            self.file
                .unfit("source", &["max_skew", "idle_timeout"], why);
        }
        Some(EventTime {
            bound: bound?,
            lateness: lateness?,
            scope: scope?,
            max_future: Some(max_future?),
            max_skew: max_skew?,
        })
    }

    /// The outer none is a problem that was told.
    fn deduplicate(&mut self, columns: Option<&Columns>) -> Option<Option<Deduplicate>> {
        let Some(located) = self.file.get("source", "deduplicate") else {
            return Some(None);
        };
        let form = "must be like { by = [\"event_id\"], within = \"1h\" }";
        let wrong = |check: &mut Self, what: String| {
            check.file.problem("source", "deduplicate", what);
            None
        };
        let Some(table) = located.value.as_table() else {
            let found = shown(located.value);
            return wrong(self, format!("{form}, not {found}"));
        };
        let mut by = None;
        let mut within = None;
        let mut problem = None;
        for (key, value, _) in self.file.entries(table) {
            match key {
                "by" => {
                    by = value.as_array().and_then(|items| {
                        items
                            .iter()
                            .map(|item| item.get_ref().as_str().map(str::to_owned))
                            .collect::<Option<Vec<_>>>()
                    });
                }
                "within" => match value.as_str().map(everlog_common::units::parse_duration) {
                    Some(Ok(time)) if time >= Duration::from_millis(1) && time <= YEAR => {
                        within = Some(time);
                    }
                    Some(Ok(_)) => problem = Some("within must be from 1ms to 365d".to_owned()),
                    Some(Err(error)) => problem = Some(format!("within: {error}")),
                    None => {}
                },
                _ => {
                    let hint = did_you_mean(key, ["by", "within"])
                        .map(|meant| format!("; did you mean {meant}?"))
                        .unwrap_or_default();
                    problem = Some(format!("{key} is unknown{hint}"));
                }
            }
        }
        if let Some(problem) = problem {
            return wrong(self, problem);
        }
        let (Some(by), Some(within)) = (by.filter(|by| !by.is_empty()), within) else {
            return wrong(self, form.to_owned());
        };
        if let Some(columns) = columns {
            let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
            if let Some(strange) = by.iter().find(|name| !names.contains(&name.as_str())) {
                let hint = did_you_mean(strange, names.iter().copied()).map_or_else(
                    || format!("; the columns are {}", names.join(", ")),
                    |name| format!("; did you mean {name}?"),
                );
                return wrong(self, format!("there is no column {strange}{hint}"));
            }
        }
        Some(Some(Deduplicate { by, within }))
    }

    fn sink(&mut self) -> Option<Sink> {
        #[derive(Clone, Copy)]
        enum Kind {
            Iceberg,
            Kafka,
            Jsonl,
        }
        if self.file.get("sink", "type").is_none() {
            self.file.missing("sink", "type", "\"iceberg\"");
            return None;
        }
        let choices = [
            ("iceberg", Kind::Iceberg),
            ("kafka", Kind::Kafka),
            ("jsonl", Kind::Jsonl),
        ];
        let kind = self.file.choice("sink", "type", &choices)?;
        let unfit = |check: &mut Self, keys: &[(&str, &str)]| {
            for (key, kind) in keys {
                let why = format!("is for type = {kind:?}: remove it");
                check.file.unfit("sink", &[key], &why);
            }
        };
        match kind {
            Kind::Iceberg => {
                unfit(
                    self,
                    &[
                        ("topic", "kafka"),
                        ("key", "kafka"),
                        ("timestamp", "kafka"),
                        ("path", "jsonl"),
                    ],
                );
                let table = self.file.needed("sink", "table", "\"sessions\"");
                let output = [("branch", Output::Branch), ("table", Output::Table)];
                let output = self.file.choice("sink", "output", &output);
                let table = table?;
                let fits = table.len() <= 200
                    && table.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                if !fits {
                    let hint = if table.contains('.') {
                        "; the namespace is the one in everlog.toml"
                    } else {
                        ""
                    };
                    self.file.problem(
                        "sink",
                        "table",
                        format!(
                            "{table:?} is no table name: up to 200 letters, digits and _{hint}"
                        ),
                    );
                    return None;
                }
                Some(Sink::Iceberg {
                    table,
                    output: output?,
                })
            }
            Kind::Kafka => {
                unfit(
                    self,
                    &[
                        ("table", "iceberg"),
                        ("output", "iceberg"),
                        ("path", "jsonl"),
                    ],
                );
                let topic = self.file.needed("sink", "topic", "\"sessions\"")?;
                let topic = self.topic("sink", "topic", &topic)?;
                let key = self.sink_key();
                let timestamp = self.optional_text("sink", "timestamp");
                Some(Sink::Kafka {
                    topic,
                    key: key?,
                    timestamp: timestamp?,
                })
            }
            Kind::Jsonl => {
                unfit(
                    self,
                    &[
                        ("table", "iceberg"),
                        ("output", "iceberg"),
                        ("topic", "kafka"),
                        ("key", "kafka"),
                        ("timestamp", "kafka"),
                    ],
                );
                let path = self.file.needed("sink", "path", "\"sessions.jsonl\"")?;
                Some(Sink::Jsonl { path: path.into() })
            }
        }
    }

    fn side(&mut self, key: &str) -> Option<Side> {
        if self.file.get("sink", key).is_none() {
            return Some(Side::Count);
        }
        let text = self.file.text("sink", key)?;
        if text == "count" {
            return Some(Side::Count);
        }
        match text.split_once(':') {
            Some(("jsonl", path)) if !path.is_empty() => Some(Side::Jsonl(path.into())),
            Some(("kafka", topic)) => self.topic("sink", key, topic).map(Side::Kafka),
            _ => {
                let message =
                    format!("must be \"count\", \"jsonl:PATH\" or \"kafka:TOPIC\", not {text:?}");
                self.file.problem("sink", key, message);
                None
            }
        }
    }

    /// The columns that make the key of rows in a topic; none where the file does not say.
    fn sink_key(&mut self) -> Option<Option<Vec<String>>> {
        let Some(located) = self.file.get("sink", "key") else {
            return Some(None);
        };
        let names = located.value.as_array().and_then(|items| {
            items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
        });
        if let Some(names) = names.filter(|names| !names.is_empty()) {
            return Some(Some(names));
        }
        let found = shown(located.value);
        let message = format!("must name columns of the query, like [\"user_id\"], not {found}");
        self.file.problem("sink", "key", message);
        None
    }

    /// Nothing is written to twice, and nothing that is read is written to.
    fn outputs_differ(
        &mut self,
        topic: Option<&TopicName>,
        version: Option<&Name>,
        sink: &Sink,
        late: &Side,
        dead_letter: &Side,
    ) {
        let key = match sink {
            Sink::Kafka { .. } => "topic",
            _ => "path",
        };
        let file = |path: &Path| Some((path.display().to_string(), false));
        let of_version =
            |topic: &TopicName| version.map(|version| (version_topic(topic, version), true));
        let place = |side: &Side| match side {
            Side::Count => None,
            Side::Jsonl(path) => file(path),
            Side::Kafka(topic) => of_version(topic),
        };
        let rows = match sink {
            Sink::Iceberg { .. } => None,
            Sink::Kafka { topic, .. } => of_version(topic),
            Sink::Jsonl { path } => file(path),
        };
        let outputs = [
            (key, rows),
            ("late", place(late)),
            ("dead_letter", place(dead_letter)),
        ];
        for (i, (key, output)) in outputs.iter().enumerate() {
            let Some((name, is_topic)) = output else {
                continue;
            };
            if *is_topic && topic.is_some_and(|topic| topic.as_str() == name) {
                let message = "is the topic that the job reads: what it writes would come again; give another one";
                self.file.problem("sink", key, message);
            }
            let before = outputs.iter().take(i).find(|(_, other)| other == output);
            if let Some((other, _)) = before {
                let message = format!("goes to the same place as sink.{other}: give another one");
                self.file.problem("sink", key, message);
            }
        }
    }

    fn checkpoint(&mut self) -> Option<Checkpoint> {
        let bounds = (Duration::from_millis(100), 3_600 * SECOND);
        let interval = self.duration_or("checkpoint", "interval", bounds, 10 * SECOND);
        let location = if self.file.get("checkpoint", "location").is_none() {
            Some("file:///var/lib/everlog/jobs".to_owned())
        } else {
            self.file.text("checkpoint", "location")
        };
        let location = location.and_then(|text| match parse_location(&text) {
            Ok(location) => Some(location),
            Err(message) => {
                self.file.problem("checkpoint", "location", message);
                None
            }
        });
        Some(Checkpoint {
            interval: interval?,
            location: location?,
        })
    }

    fn limits(&mut self) -> Option<Limits> {
        let memory = match self.file.get("limits", "memory") {
            None => Some(GIB),
            Some(_) => self.file.bytes("limits", "memory", (64 * MIB, 1_024 * GIB)),
        };
        let threads = match self.file.get("limits", "threads") {
            None => Some(None),
            Some(_) => self
                .file
                .integer("limits", "threads", (1, 1_024))
                .and_then(|n| usize::try_from(n).ok())
                .map(Some),
        };
        let rate = match self.file.get("limits", "rate") {
            None => Some(None),
            Some(_) => self
                .file
                .integer("limits", "rate", (1, u64::from(u32::MAX)))
                .map(NonZeroU64::new),
        };
        Some(Limits {
            memory: memory?,
            threads: threads?,
            rate: rate?,
        })
    }

    /// The outer none is a problem that was told.
    fn optional_text(&mut self, section: &str, key: &str) -> Option<Option<String>> {
        match self.file.get(section, key) {
            None => Some(None),
            Some(_) => self.file.text(section, key).map(Some),
        }
    }

    /// The outer none is a problem that was told.
    fn optional_duration(
        &mut self,
        section: &str,
        key: &str,
        bounds: (Duration, Duration),
    ) -> Option<Option<Duration>> {
        match self.file.get(section, key) {
            None => Some(None),
            Some(_) => self.file.duration(section, key, bounds).map(Some),
        }
    }

    fn duration_or(
        &mut self,
        section: &str,
        key: &str,
        bounds: (Duration, Duration),
        default: Duration,
    ) -> Option<Duration> {
        self.optional_duration(section, key, bounds)
            .map(|given| given.unwrap_or(default))
    }
}

/// The topic that a version writes its rows, late records or dead letters to: no two versions write to one.
pub(crate) fn version_topic(topic: &TopicName, version: &Name) -> String {
    format!("{topic}.{version}")
}

/// Where a job's state is kept, without a slash at its end.
fn parse_location(text: &str) -> Result<String, String> {
    let forms = "write file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or abfss://…";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(if text.starts_with('/') {
            format!("{text:?} is no location: write \"file://{text}\"")
        } else {
            format!("{text:?} is no location: {forms}")
        });
    };
    let right = match scheme {
        "file" => rest.starts_with('/') && !rest.trim_matches('/').is_empty(),
        "s3" | "s3a" | "gs" | "abfs" | "abfss" => !rest.trim_matches('/').is_empty(),
        _ => false,
    };
    let climbs = rest.split('/').any(|part| part == ".." || part == ".");
    if right && !climbs {
        Ok(text.trim_end_matches('/').to_owned())
    } else if scheme == "file" && !rest.starts_with('/') {
        Err(format!(
            "{text:?} names a host: a file's location has three slashes, file:///{rest}"
        ))
    } else {
        Err(format!("{text:?} is no location: {forms}"))
    }
}

#[cfg(test)]
mod tests;
