//! The versions of a job: which there are, where each writes, who is active, what was compared.
//!
//! ```text
//! LOCATION/JOB/.registry/00000000000000000007.json     the whole registry; created once, never changed; the newest counts
//! ```
//!
//! A change is the next number, which can be created once: of two changes at a time one is made, and the other is derived
//! anew from what that left. Where versions share a table, the table says who is active ([`everlog_table::job`]), for it
//! is the table's main that readers see; the registry follows it.

mod live;
mod promote;

use std::collections::BTreeMap;

use bytes::Bytes;
use everlog_common::{Millis, Positions};
use everlog_decode::RegisteredSchema;
use everlog_decode::registry::Pinned;
use everlog_table::job::{JobState, JobTable};
use everlog_table::storage::{Storage, StorageError, StorageErrorKind};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};

use crate::sink::iceberg::parse_positions;

pub use everlog_engine::{Roles, Window};
pub use live::{HeldBy, Live, LiveError, Phase};
pub use promote::{
    Behind, PromoteFacts, PromoteRules, Reached, Readiness, behind, committed, decide,
};

/// The form of the files.
const FORMAT: u32 = 1;
const FOLDER: &str = ".registry";
/// Attempts to make a change, each on what the one before left.
const ATTEMPTS_MAX: u32 = 32;
/// Comparisons and changes that are remembered.
const REMEMBERED_MAX: usize = 100;

/// Where a version's rows go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum Output {
    /// A branch of a table that versions share.
    Branch {
        /// The table.
        table: String,
    },
    /// A table of its own.
    Table {
        /// The table.
        table: String,
    },
    /// A topic of its own.
    Kafka {
        /// The topic.
        topic: String,
    },
    /// A file of its own.
    Jsonl {
        /// Its path.
        path: String,
    },
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Branch { table } | Self::Table { table } => write!(f, "iceberg:{table}"),
            Self::Kafka { topic } => write!(f, "kafka:{topic}"),
            Self::Jsonl { path } => write!(f, "jsonl:{path}"),
        }
    }
}

/// What is known of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Where its rows go.
    pub output: Output,
    /// Of its logic, as text.
    pub fingerprint: String,
    /// What computes it.
    pub engine: String,
    /// When it was first run, in milliseconds since 1970.
    pub created_ms: i64,
    /// Its SQL.
    pub sql: String,
    /// The topic it reads.
    pub topic: String,
    /// Where its late records go; none: they are counted alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<Output>,
    /// Where its dead letters go; none: they are counted alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Output>,
    /// Where in the topic it began; none: at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Which part its columns play; what a comparison goes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Roles>,
    /// The schema that it reads Avro by, where its columns are a schema's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<ReaderSchema>,
}

/// The schema that a version reads Avro by: its subject's newest when it was first run. It is kept here so that wherever the
/// version is run, it has the same columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReaderSchema {
    /// The subject.
    pub subject: String,
    /// Its number in the schema registry.
    pub id: u32,
    /// Its version in the subject.
    pub version: i64,
    /// What it is: `AVRO`.
    pub kind: String,
    /// Its text.
    pub text: String,
    /// The texts of the schemas that it refers to, and that those refer to: each before the first that needs it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
}

impl ReaderSchema {
    /// Of what was pinned.
    pub fn new(subject: &str, pinned: Pinned) -> Self {
        Self {
            subject: subject.to_owned(),
            id: pinned.id.0,
            version: pinned.version,
            kind: pinned.schema.kind,
            text: pinned.schema.text,
            references: pinned.schema.references,
        }
    }

    /// As a decoder takes it.
    pub fn registered(&self) -> RegisteredSchema {
        RegisteredSchema {
            kind: self.kind.clone(),
            text: self.text.clone(),
            references: self.references.clone(),
        }
    }
}

impl std::fmt::Display for ReaderSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            id,
            version,
            subject,
            ..
        } = self;
        write!(f, "schema {id} (version {version} of subject {subject})")
    }
}

impl Version {
    /// The schema that it would be read by instead of `known`'s.
    fn reads_otherwise(&self, known: &Self) -> Option<String> {
        let (known, now) = (known.schema.as_ref()?, self.schema.as_ref()?);
        (known != now).then(|| format!("reads by {known}, and shall read by {now} now"))
    }

    /// What it puts out, each with where that goes.
    fn outputs(&self) -> [(&'static str, Option<&Output>); 3] {
        [
            ("rows", Some(&self.output)),
            ("late records", self.late.as_ref()),
            ("dead letters", self.dead_letter.as_ref()),
        ]
    }

    /// The first of its outputs that goes elsewhere than that of `known`: what, where it went, and where it shall go.
    fn moved(&self, known: &Self) -> Option<String> {
        let place = |output: Option<&Output>| {
            output.map_or_else(
                || "counted alone".to_owned(),
                |output| format!("written to {output}"),
            )
        };
        let pairs = known.outputs().into_iter().zip(self.outputs());
        let mut moved = pairs.filter(|((_, before), (_, now))| before != now);
        moved.next().map(|((what, before), (_, now))| {
            format!(
                "has had its {what} {}, and shall have them {} now: an output of a version stays what it is",
                place(before),
                place(now)
            )
        })
    }

    /// Where it would write to what is `other`'s, another version of the job.
    fn collides(&self, name: &str, other: &Self) -> Option<String> {
        let pairs = self.outputs().into_iter().flat_map(|(what, output)| {
            let theirs = other.outputs().into_iter();
            theirs.map(move |(their, taken)| (what, output, their, taken))
        });
        let mut same = pairs.filter_map(|(what, output, their, taken)| {
            let output =
                output.filter(|o| Some(*o) == taken && !matches!(o, Output::Branch { .. }));
            output.map(|output| {
                format!(
                    "would write its {what} to {output}, which version {name} writes its {their} to"
                )
            })
        });
        same.next()
    }
}

/// That two versions were compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compared {
    /// One version.
    pub left: String,
    /// The other.
    pub right: String,
    /// Event time that was compared, from and to, in milliseconds since 1970.
    pub from_ms: i64,
    /// See `from_ms`.
    pub to_ms: i64,
    /// Rows of the first that were compared.
    pub left_rows: u64,
    /// Rows of the other.
    pub right_rows: u64,
    /// Which share of the keys, 1 for all.
    pub share: f64,
    /// Whether they agree: in every row for the same logic, in what is conserved for changed logic.
    pub agree: bool,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// One change of who is active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activated {
    /// The version.
    pub version: String,
    /// The one before.
    pub before: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The tag of what main was before, where there is a table.
    pub tag: Option<String>,
}

/// Everything that is known of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registered {
    format: u32,
    /// The job.
    pub job: String,
    /// The active version; none before the first was run.
    pub active: Option<String>,
    /// The one that was active before.
    pub previous: Option<String>,
    /// All versions, by name.
    pub versions: BTreeMap<String, Version>,
    /// The newest comparisons, oldest first.
    pub comparisons: Vec<Compared>,
    /// The newest changes of who is active, oldest first.
    pub activations: Vec<Activated>,
}

/// Why the registry could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The store failed.
    #[error("job {job}: cannot {doing} its registry below {folder}")]
    Storage {
        /// The job.
        job: String,
        /// What was to be done.
        doing: &'static str,
        /// Where.
        folder: String,
        /// What went wrong.
        #[source]
        source: StorageError,
    },
    /// A file of the registry is not one.
    #[error(
        "job {job}: {uri} cannot be read as a registry: {what}; was it written by a newer everlog?"
    )]
    Corrupt {
        /// The job.
        job: String,
        /// The file.
        uri: String,
        /// What is wrong.
        what: String,
    },
    /// Others change it all the time.
    #[error("job {job}: its registry was changed by others {attempts} times in a row; try again")]
    Contended {
        /// The job.
        job: String,
        /// How often.
        attempts: u32,
    },
    /// The job, or the version, is not there.
    #[error("{what}")]
    Unknown {
        /// What is missing, and what there is.
        what: String,
    },
    /// A version would become another one.
    #[error(
        "job {job}: version {version} {what}; a changed job is a new version: give it another `version` in [job]"
    )]
    Changed {
        /// The job.
        job: String,
        /// The version.
        version: String,
        /// What changed.
        what: String,
    },
    /// A version would write to another one's output.
    #[error(
        "job {job}: version {version} {what}; give it another place: put the version into its name"
    )]
    Taken {
        /// The job.
        job: String,
        /// The version.
        version: String,
        /// What would be written where, and whose that is.
        what: String,
    },
    /// The version is active.
    #[error("job {job}: version {version} is active and cannot be dropped; promote another first")]
    Active {
        /// The job.
        job: String,
        /// The version.
        version: String,
    },
}

impl RegistryError {
    /// The exit status that stands for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Storage { .. } | Self::Contended { .. } => 1,
            Self::Corrupt { .. } => 4,
            Self::Unknown { .. }
            | Self::Changed { .. }
            | Self::Taken { .. }
            | Self::Active { .. } => 2,
        }
    }
}

/// The registry of one job.
#[derive(Debug, Clone)]
pub struct Registry {
    storage: Storage,
    folder: String,
    job: String,
}

impl Registry {
    /// The registry of a job, below the folder of all jobs. Nothing is read or made.
    pub fn new(storage: Storage, location: &str, job: &str) -> Self {
        Self {
            storage,
            folder: format!("{}/{job}/{FOLDER}", location.trim_end_matches('/')),
            job: job.to_owned(),
        }
    }

    /// The jobs that have a registry in a folder.
    pub async fn jobs(storage: &Storage, location: &str) -> Result<Vec<String>, RegistryError> {
        let location = location.trim_end_matches('/');
        let failed = |source| RegistryError::Storage {
            job: "(all)".to_owned(),
            doing: "list",
            folder: location.to_owned(),
            source,
        };
        let mut listing = storage.list(location).map_err(failed)?;
        let mut jobs = Vec::new();
        loop {
            match listing.try_next().await {
                Ok(Some(object)) => {
                    let mut parts = object.uri.rsplit('/');
                    let (_, folder, job) = (parts.next(), parts.next(), parts.next());
                    if folder == Some(FOLDER)
                        && let Some(job) = job
                        && !jobs.iter().any(|known| known == job)
                    {
                        jobs.push(job.to_owned());
                    }
                }
                Ok(None) => break,
                Err(error) if error.kind() == StorageErrorKind::NotFound => break,
                Err(source) => return Err(failed(source)),
            }
        }
        jobs.sort_unstable();
        Ok(jobs)
    }

    /// Everything that is known; none where the job was never run.
    pub async fn read(&self) -> Result<Option<Registered>, RegistryError> {
        Ok(self.newest().await?.map(|(_, registered)| registered))
    }

    /// The same of a job that must be there.
    pub async fn get(&self) -> Result<Registered, RegistryError> {
        self.read().await?.ok_or_else(|| RegistryError::Unknown {
            what: format!(
                "there is no job {} in {}; `everlog job list` shows those there, and of another place --location or the job's file tells",
                self.job,
                self.folder
                    .trim_end_matches(FOLDER)
                    .trim_end_matches('/')
                    .trim_end_matches(self.job.as_str())
            ),
        })
    }

    /// Makes a version known, whenever it is run. The first one is active. One that is known stays what it is, and none writes to
    /// what is another's but to a table's other branch.
    pub async fn register(
        &self,
        name: &str,
        version: &Version,
    ) -> Result<Registered, RegistryError> {
        self.update(|registered| {
            if let Some(known) = registered.versions.get(name) {
                let changed = |what: String| RegistryError::Changed {
                    job: self.job.clone(),
                    version: name.to_owned(),
                    what,
                };
                if let Some(what) = version.moved(known) {
                    return Err(changed(what));
                }
                if known.fingerprint != version.fingerprint {
                    return Err(changed(
                        "has other logic than when it was first run".to_owned(),
                    ));
                }
                if known.topic != version.topic {
                    return Err(changed(format!(
                        "reads {}, and shall read {} now",
                        known.topic, version.topic
                    )));
                }
                if let Some(what) = version.reads_otherwise(known) {
                    return Err(changed(what));
                }
                // An older everlog kept the schema on the version's first host alone.
                if let (None, Some(schema)) = (&known.schema, &version.schema) {
                    let schema = schema.clone();
                    if let Some(known) = registered.versions.get_mut(name) {
                        known.schema = Some(schema);
                    }
                    return Ok(true);
                }
                return Ok(false);
            }
            // Before it is known, since then its outputs stay what they are.
            let others = registered.versions.iter();
            let mut taken = others.filter_map(|(other, theirs)| version.collides(other, theirs));
            if let Some(what) = taken.next() {
                return Err(RegistryError::Taken {
                    job: self.job.clone(),
                    version: name.to_owned(),
                    what,
                });
            }
            registered.versions.insert(name.to_owned(), version.clone());
            if registered.active.is_none() {
                registered.active = Some(name.to_owned());
            }
            Ok(true)
        })
        .await
    }

    /// Notes a comparison.
    pub async fn compared(&self, compared: &Compared) -> Result<Registered, RegistryError> {
        self.update(|registered| {
            registered.comparisons.push(compared.clone());
            bound(&mut registered.comparisons);
            Ok(true)
        })
        .await
    }

    /// Notes who is active.
    pub async fn activated(
        &self,
        version: &str,
        tag: Option<String>,
        now: Millis,
    ) -> Result<Registered, RegistryError> {
        self.update(|registered| {
            if !registered.versions.contains_key(version) {
                return Err(self.no_version(registered, version));
            }
            if registered.active.as_deref() == Some(version) {
                return Ok(false);
            }
            let before = registered.active.replace(version.to_owned());
            registered.previous.clone_from(&before);
            registered.activations.push(Activated {
                version: version.to_owned(),
                before,
                at_ms: now.0,
                tag: tag.clone(),
            });
            bound(&mut registered.activations);
            Ok(true)
        })
        .await
    }

    /// Forgets a version. The active one stays.
    pub async fn dropped(&self, version: &str) -> Result<Registered, RegistryError> {
        self.update(|registered| {
            if registered.active.as_deref() == Some(version) {
                return Err(RegistryError::Active {
                    job: self.job.clone(),
                    version: version.to_owned(),
                });
            }
            if registered.versions.remove(version).is_none() {
                return Err(self.no_version(registered, version));
            }
            if registered.previous.as_deref() == Some(version) {
                registered.previous = None;
            }
            registered
                .comparisons
                .retain(|c| c.left != version && c.right != version);
            Ok(true)
        })
        .await
    }

    fn no_version(&self, registered: &Registered, version: &str) -> RegistryError {
        let known: Vec<&str> = registered.versions.keys().map(String::as_str).collect();
        RegistryError::Unknown {
            what: format!(
                "job {} has no version {version}; it has {}",
                self.job,
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            ),
        }
    }

    /// Makes a change, on what is there at that moment; false: there is nothing to change.
    async fn update(
        &self,
        change: impl Fn(&mut Registered) -> Result<bool, RegistryError>,
    ) -> Result<Registered, RegistryError> {
        for _ in 0..ATTEMPTS_MAX {
            let (number, mut registered) = self.newest().await?.unwrap_or_else(|| {
                let empty = Registered {
                    format: FORMAT,
                    job: self.job.clone(),
                    active: None,
                    previous: None,
                    versions: BTreeMap::new(),
                    comparisons: Vec::new(),
                    activations: Vec::new(),
                };
                (0, empty)
            });
            if !change(&mut registered)? {
                return Ok(registered);
            }
            let text =
                serde_json::to_vec_pretty(&registered).map_err(|error| RegistryError::Corrupt {
                    job: self.job.clone(),
                    uri: self.uri(number + 1),
                    what: error.to_string(),
                })?;
            let created = self
                .storage
                .create(&self.uri(number + 1), Bytes::from(text))
                .await;
            match created {
                Ok(true) => return Ok(registered),
                Ok(false) => {}
                Err(source) => return Err(self.failed("change", source)),
            }
        }
        Err(RegistryError::Contended {
            job: self.job.clone(),
            attempts: ATTEMPTS_MAX,
        })
    }

    fn uri(&self, number: u64) -> String {
        format!("{}/{number:020}.json", self.folder)
    }

    fn failed(&self, doing: &'static str, source: StorageError) -> RegistryError {
        RegistryError::Storage {
            job: self.job.clone(),
            doing,
            folder: self.folder.clone(),
            source,
        }
    }

    async fn newest(&self) -> Result<Option<(u64, Registered)>, RegistryError> {
        let mut listing = self
            .storage
            .list(&self.folder)
            .map_err(|source| self.failed("read", source))?;
        let mut last = None;
        loop {
            match listing.try_next().await {
                Ok(Some(object)) => {
                    let name = object.uri.rsplit('/').next().unwrap_or_default();
                    let number = name
                        .strip_suffix(".json")
                        .and_then(|n| n.parse::<u64>().ok());
                    last = last.max(number);
                }
                Ok(None) => break,
                Err(error) if error.kind() == StorageErrorKind::NotFound => break,
                Err(source) => return Err(self.failed("read", source)),
            }
        }
        let Some(number) = last else { return Ok(None) };
        let uri = self.uri(number);
        let bytes = self
            .storage
            .get(&uri)
            .await
            .map_err(|source| self.failed("read", source))?;
        let corrupt = |what: String| RegistryError::Corrupt {
            job: self.job.clone(),
            uri: uri.clone(),
            what,
        };
        let registered: Registered =
            serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
        if registered.format != FORMAT {
            return Err(corrupt(format!(
                "its format is {}, not {FORMAT}",
                registered.format
            )));
        }
        if registered.job != self.job {
            return Err(corrupt(format!("it is of job {}", registered.job)));
        }
        Ok(Some((number, registered)))
    }
}

fn bound<T>(list: &mut Vec<T>) {
    let over = list.len().saturating_sub(REMEMBERED_MAX);
    list.drain(..over);
}

/// A version, for people: what `everlog job list` and `show` print.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VersionView {
    /// Its name.
    pub version: String,
    /// Whether it is the active one.
    pub is_active: bool,
    /// Where its rows go.
    pub output: String,
    /// When it was first run, in milliseconds since 1970.
    pub created_ms: i64,
    /// What computes it.
    pub engine: String,
    /// Its SQL.
    pub sql: String,
    /// The last epoch that its output shows.
    pub epoch: Option<u64>,
    /// Rows that its output shows.
    pub rows: Option<u64>,
    /// When its output last grew, in milliseconds since 1970.
    pub committed_ms: Option<i64>,
    /// Where it was in its source then.
    #[serde(skip)]
    pub positions: Option<Positions>,
    /// The snapshot at the head of its branch.
    pub head: Option<i64>,
    /// Why its output cannot be written to, where that is so.
    pub problem: Option<String>,
}

/// A job, for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobView {
    /// The job.
    pub job: String,
    /// The active version.
    pub active: Option<String>,
    /// The one that was active before.
    pub previous: Option<String>,
    /// Its versions, by name.
    pub versions: Vec<VersionView>,
    /// What main was before each promotion: tags and snapshots, where there is a table.
    pub tags: BTreeMap<String, i64>,
    /// The newest comparisons.
    pub comparisons: Vec<Compared>,
    /// The newest changes of who is active.
    pub activations: Vec<Activated>,
}

/// Who is active, and who was before. `table` is what the versions' shared table says of both, where there is one. Among
/// versions that share a table the table decides, since its main is what readers see, and the registry follows it; where the
/// active version writes elsewhere, the registry decides.
pub fn active<'a>(
    registered: &'a Registered,
    table: Option<(&'a str, Option<&'a str>)>,
) -> (Option<&'a str>, Option<&'a str>) {
    let noted = registered.active.as_deref();
    let version = noted.and_then(|noted| registered.versions.get(noted));
    let shares = version.is_none_or(|version| matches!(version.output, Output::Branch { .. }));
    match table {
        Some((active, previous)) if shares && noted != Some(active) => (Some(active), previous),
        // the registry may also know of a version before that writes elsewhere
        _ => (noted, registered.previous.as_deref()),
    }
}

/// What is known of a job, with what its shared table shows.
pub fn view(registered: &Registered, table: Option<&JobState>) -> JobView {
    let said = table.map(|table| (table.active.as_str(), table.previous.as_deref()));
    let (active, previous) = active(registered, said);
    let (active, previous) = (active.map(str::to_owned), previous.map(str::to_owned));
    let versions = registered
        .versions
        .iter()
        .map(|(name, version)| {
            let found = table
                .filter(|_| matches!(version.output, Output::Branch { .. }))
                .and_then(|table| table.versions.get(name));
            let marker = found.and_then(|found| found.marker.as_ref());
            VersionView {
                version: name.clone(),
                is_active: active.as_ref() == Some(name),
                output: version.output.to_string(),
                created_ms: version.created_ms,
                engine: marker.map_or_else(|| version.engine.clone(), |m| m.engine.clone()),
                sql: version.sql.clone(),
                epoch: marker.map(|m| m.epoch),
                rows: marker.map(|m| m.rows),
                committed_ms: found.and_then(|found| found.head_time).map(|at| at.0),
                positions: marker.and_then(|m| parse_positions(&m.positions)),
                head: found.and_then(|found| found.head),
                problem: found.and_then(|found| found.problem.clone()),
            }
        })
        .collect();
    let tags = table
        .map(|table| {
            table
                .refs
                .iter()
                .filter(|(name, reference)| !reference.is_branch() && name.starts_with("before-"))
                .map(|(name, reference)| (name.clone(), reference.snapshot_id))
                .collect()
        })
        .unwrap_or_default();
    JobView {
        job: registered.job.clone(),
        active,
        previous,
        versions,
        tags,
        comparisons: registered.comparisons.clone(),
        activations: registered.activations.clone(),
    }
}

/// Reads a job's shared table, if its versions have one.
pub async fn shared_table(
    registered: &Registered,
    deps: everlog_table::archive::ArchiveDeps,
    namespace: &str,
) -> Result<Option<JobTable>, everlog_table::job::JobError> {
    let table = registered
        .versions
        .values()
        .find_map(|version| match &version.output {
            Output::Branch { table } => Some(table.clone()),
            _ => None,
        });
    match table {
        Some(table) => JobTable::open(deps, namespace, &table, &registered.job).await,
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests;
