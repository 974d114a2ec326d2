//! The output table of a job: each version of the job writes its own branch, one of them also writes main.
//!
//! ```text
//!            ┌── branch v1 ●──●──●──●──●        active until then: main goes along, in the same swap
//!   table ───┤                        ╲ before-v2 (tag)
//!            ├── main      ●──●──●──●──● ═╗ promote: one swap
//!            └── branch v2 ●──●──●──●──●──●──●  active from then on: main goes along
//! ```
//!
//! | key | in | holds |
//! |---|---|---|
//! | `everlog.job` | property, summary | whose table it is |
//! | `everlog.job.format-version` | property | version of these keys, `1` |
//! | `everlog.job.active` | property | the version that writes main |
//! | `everlog.job.previous` | property | the version that was active before: where a rollback goes |
//! | `everlog.job.promotion` | property | which promotion was the last: how it is recognised after a lost reply |
//! | `everlog.job.version.<version>` | property | [`VersionRecord`], as JSON |
//! | `everlog.job.version`, `.epoch`, `.rows`, `.positions`, `.watermark`, `.engine` | summary | [`Marker`] |
//! | `everlog.commit-id` | summary | which commit made the snapshot |
//!
//! Invariants
//! - J1 A version's rows are one sequence. A commit brings a piece of it, and its marker with the number of rows so far, in one
//!   swap, on exactly the head whose marker counts as many rows as there are before the piece.
//! - J2 Of main and the active version's branch, one swap moves both. It requires that main is where that branch is.
//!   Versions that are not active never move main.
//! - J3 Every swap requires that main and every version's branch are where they were read: a promotion between the read and
//!   the swap is a conflict, also where the catalog applies commits to newer states.
//! - J4 What was sent and got no reply is looked for by the rows that the branch's head counts. To send the same piece again on
//!   the same head is safe: of two swaps that require one head, one at most can land, and both put in the same files.
//! - J5 Nothing is deleted here. What failed attempts leave is orphan removal's, a day later ([`JobTable::maintain`]).
//! - J6 Columns are only added, and are all optional: what a table once held can be read by every version's readers.

mod columns;
mod commit;
mod decide;
mod error;
mod expiry;
mod marker;
mod promote;
mod read;
mod state;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow_schema::SchemaRef;
use iceberg::spec::{Transform, UnboundPartitionSpec};
use iceberg::{TableIdent, TableRequirement, TableUpdate};

use crate::archive::{ArchiveDeps, ArchiveError, catalog_error};
use crate::catalog::{
    Catalog, CatalogError, CatalogErrorKind, CommitReply, CreateReply, LoadedTable, NewTable,
    commit_key, parse_namespace,
};
use crate::handle::Handle;
use crate::schema::PROPERTY_TOPIC;
use crate::storage::Storage;

pub use columns::{ColumnChange, Fit, fit, stored_type};
pub use commit::{CommitEpoch, JobOutcome};
pub use decide::{Refusal, Step, decide};
pub use error::{JobError, JobErrorKind};
pub use expiry::plan_job_expiry;
pub use marker::Marker;
pub use promote::{MovedMain, Promotion};
pub use read::JobScan;
pub use state::{JobState, VersionRecord, VersionState};
pub use write::{JobFile, JobRows};

/// Whose table it is: the job's name.
pub const PROPERTY_JOB: &str = "everlog.job";
/// Version of the properties and summary entries.
pub const PROPERTY_FORMAT: &str = "everlog.job.format-version";
/// The version that writes main.
pub const PROPERTY_ACTIVE: &str = "everlog.job.active";
/// The version that was active before.
pub const PROPERTY_PREVIOUS: &str = "everlog.job.previous";
/// Which promotion was the last.
pub const PROPERTY_PROMOTION: &str = "everlog.job.promotion";
/// Followed by a version: what is known of it.
pub const PROPERTY_VERSION: &str = "everlog.job.version.";
/// The format that this code reads and writes.
const FORMAT: &str = "1";

/// How often a change of properties or columns is tried.
const ATTEMPTS_MAX: u32 = 16;
/// First pause between attempts to make a table whose making had no known outcome.
const CREATE_PAUSE: Duration = Duration::from_millis(200);

/// How a job's rows map to table partitions: not at all, unless asked for. Rows leave a job in the order of their windows'
/// ends, so that files have narrow bounds of it anyway, and a replay of years would make a file per day and epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum JobPartitioning {
    /// One partition.
    #[default]
    None,
    /// By a transform of a column, for instance the day of the window's end.
    By {
        /// The column's name.
        column: String,
        /// `day`, `hour`, `month`, `year`, `identity`, `bucket[16]` …
        transform: Transform,
    },
}

/// What a job's version writes, and where.
#[derive(Debug, Clone)]
pub struct JobTableSpec {
    /// The table's name in the namespace.
    pub table: String,
    /// The job's name.
    pub job: String,
    /// The version; also its branch's name.
    pub version: String,
    /// The columns that the version puts out.
    pub columns: SchemaRef,
    /// Of the version's logic: a version keeps it for good.
    pub fingerprint: String,
    /// How a new table is partitioned.
    pub partitioning: JobPartitioning,
    /// Further properties of a new table.
    pub properties: BTreeMap<String, String>,
    /// What people shall know of the version, for instance its SQL.
    pub about: BTreeMap<String, String>,
}

/// The output table of a job. Clones share what is known of it.
#[derive(Debug, Clone)]
pub struct JobTable {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    handle: Handle,
    job: String,
}

impl JobTable {
    /// Opens a job's table; none where there is no table of that name.
    pub async fn open(
        deps: ArchiveDeps,
        namespace: &str,
        table: &str,
        job: &str,
    ) -> Result<Option<Self>, JobError> {
        let ident = ident_of(namespace, table)?;
        let loaded = deps
            .catalog
            .load(&ident)
            .await
            .map_err(|source| catalog_error(&ident, "cannot read the table", source))?;
        match loaded {
            Some(loaded) => Self::of_table(deps, &loaded, job).map(Some),
            None => Ok(None),
        }
    }

    /// Opens the table for a version that writes to it: makes the table where there is none, with this version active, and
    /// else makes sure that the version's columns fit, adding those that may be added.
    ///
    /// Safe to call again, and by several processes at once.
    pub async fn open_or_create(
        deps: ArchiveDeps,
        namespace: &str,
        spec: &JobTableSpec,
    ) -> Result<Self, JobError> {
        check_version(&spec.version)?;
        let ident = ident_of(namespace, &spec.table)?;
        let mut last = None;
        for attempt in 0..5_u32 {
            if let Some(table) = Self::open(deps.clone(), namespace, &spec.table, &spec.job).await?
            {
                table.admit(spec).await?;
                return Ok(table);
            }
            deps.catalog
                .ensure_namespace(ident.namespace())
                .await
                .map_err(|source| catalog_error(&ident, "cannot make the namespace", source))?;
            match deps.catalog.create(new_table(&ident, spec, &deps)?).await {
                Ok(CreateReply::Created(loaded)) => {
                    return Self::of_table(deps, &loaded, &spec.job);
                }
                Ok(CreateReply::Exists) => {}
                // Made or not: the name is given once, so both looking and asking again are safe.
                Err(error) if error.kind() == CatalogErrorKind::Unknown => last = Some(error),
                Err(source) => {
                    return Err(catalog_error(&ident, "cannot make the table", source).into());
                }
            }
            deps.clock.sleep(CREATE_PAUSE * (1 << attempt)).await;
        }
        Err(JobError::Table(ArchiveError::Contended {
            table: ident.to_string(),
            attempts: 5,
            last,
        }))
    }

    fn of_table(deps: ArchiveDeps, table: &LoadedTable, job: &str) -> Result<Self, JobError> {
        let properties = table.metadata.properties();
        let name = table.ident.to_string();
        match properties.get(PROPERTY_JOB) {
            Some(owner) if owner == job => {}
            Some(owner) => {
                return Err(JobError::OtherJob {
                    table: name,
                    job: job.to_owned(),
                    owner: format!("job {owner}"),
                });
            }
            None => {
                let owner = match properties.get(PROPERTY_TOPIC) {
                    Some(topic) => format!("the archive of topic {topic}"),
                    None => "somebody else (it has no property everlog.job)".to_owned(),
                };
                return Err(JobError::OtherJob {
                    table: name,
                    job: job.to_owned(),
                    owner,
                });
            }
        }
        match properties.get(PROPERTY_FORMAT).map(String::as_str) {
            Some(FORMAT) => {}
            other => {
                return Err(JobError::Table(ArchiveError::Unsupported {
                    table: name,
                    what: format!(
                        "its {PROPERTY_FORMAT} is {}, this everlog reads and writes {FORMAT}; use the everlog that made it, or a newer one",
                        other.unwrap_or("missing")
                    ),
                }));
            }
        }
        let inner = Inner {
            handle: Handle::of(deps, table)?,
            job: job.to_owned(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Namespace and name of the table.
    pub fn table(&self) -> &TableIdent {
        self.inner.handle.table()
    }

    /// The job's name.
    pub fn job(&self) -> &str {
        &self.inner.job
    }

    /// The object store that holds the table's files.
    pub fn storage(&self) -> Storage {
        self.handle().store_of_files()
    }

    fn handle(&self) -> &Handle {
        &self.inner.handle
    }

    /// Makes sure that a version may write: that it is known to the table, and that there is a column for each of its own.
    async fn admit(&self, spec: &JobTableSpec) -> Result<(), JobError> {
        let mut last = None;
        for attempt in 1..=ATTEMPTS_MAX {
            let table = self.handle().load().await?;
            let state = self.state_of(&table)?;
            let known = state
                .versions
                .get(&spec.version)
                .and_then(|v| v.record.as_ref());
            if let Some(record) = known
                && record.fingerprint != spec.fingerprint
            {
                return Err(JobError::Logic {
                    table: self.handle().table_name(),
                    version: spec.version.clone(),
                });
            }
            let active = state
                .versions
                .get(&state.active)
                .and_then(|v| v.record.as_ref())
                .map(|record| record.columns.as_slice());
            let fit = fit(
                table.metadata.current_schema(),
                known.map(|record| record.columns.as_slice()),
                active,
                &spec.columns,
            );
            let added = match fit {
                Fit::AsIs => Vec::new(),
                Fit::Add(columns) => columns,
                Fit::Refused(change) => {
                    return Err(JobError::Columns {
                        table: self.handle().table_name(),
                        version: spec.version.clone(),
                        change: Box::new(change),
                    });
                }
            };
            if known.is_some() && added.is_empty() {
                return Ok(());
            }
            let metadata = &table.metadata;
            let mut requirements = vec![
                TableRequirement::UuidMatch {
                    uuid: metadata.uuid(),
                },
                TableRequirement::CurrentSchemaIdMatch {
                    current_schema_id: metadata.current_schema_id(),
                },
            ];
            let mut updates = Vec::new();
            if !added.is_empty() {
                requirements.push(TableRequirement::LastAssignedFieldIdMatch {
                    last_assigned_field_id: metadata.last_column_id(),
                });
                let schema = columns::extended(metadata, &added)
                    .map_err(|source| self.invalid(format!("columns cannot be added: {source}")))?;
                updates.push(TableUpdate::AddSchema { schema });
                updates.push(TableUpdate::SetCurrentSchema { schema_id: -1 });
            }
            if known.is_none() {
                let record = VersionRecord::new(spec, self.handle().deps().clock.now());
                updates.push(TableUpdate::SetProperties {
                    updates: [(
                        format!("{PROPERTY_VERSION}{}", spec.version),
                        record.to_json(),
                    )]
                    .into(),
                });
            }
            match self.swap(&table, requirements, updates).await {
                // what an unknown outcome did is seen by the next read: nothing here is done twice
                CommitReply::Committed(_) | CommitReply::Conflict => last = None,
                CommitReply::Unknown(error) => last = Some(error),
                CommitReply::Refused(error) if error.kind() == CatalogErrorKind::Transient => {
                    last = Some(error);
                }
                CommitReply::Refused(error) => {
                    return Err(self
                        .handle()
                        .catalog_error("cannot add the version", error)
                        .into());
                }
            }
            if attempt > 1 {
                self.handle().back_off(attempt).await;
            }
        }
        Err(self.contended(ATTEMPTS_MAX, last))
    }

    async fn swap(
        &self,
        table: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> CommitReply {
        let deps = self.handle().deps();
        let key = commit_key(&*deps.ids, deps.clock.now());
        deps.catalog.commit(table, requirements, updates, key).await
    }

    fn invalid(&self, what: String) -> JobError {
        JobError::Table(ArchiveError::Invalid {
            table: self.handle().table_name(),
            what,
        })
    }

    fn contended(&self, attempts: u32, last: Option<CatalogError>) -> JobError {
        JobError::Table(ArchiveError::Contended {
            table: self.handle().table_name(),
            attempts,
            last,
        })
    }
}

/// The tables of a namespace that are outputs of jobs, with their jobs' names, by table.
pub async fn job_tables(
    catalog: &dyn Catalog,
    namespace: &str,
) -> Result<BTreeMap<String, String>, CatalogError> {
    let namespace = parse_namespace(namespace)?;
    let mut found = BTreeMap::new();
    for name in catalog.list_tables(&namespace).await? {
        let ident = TableIdent::new(namespace.clone(), name.clone());
        let loaded = catalog.load(&ident).await?;
        let job = loaded.and_then(|t| t.metadata.properties().get(PROPERTY_JOB).cloned());
        found.extend(job.map(|job| (name, job)));
    }
    Ok(found)
}

/// A version names a branch, a part of a property's name, and folders of its state.
pub fn check_version(version: &str) -> Result<(), JobError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let taken =
        version == "main" || version.starts_with("before-") || version.starts_with("everlog-");
    let begins = version
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if begins && version.len() <= 100 && version.bytes().all(plain) && !taken {
        return Ok(());
    }
    Err(JobError::VersionName {
        version: version.to_owned(),
    })
}

fn ident_of(namespace: &str, table: &str) -> Result<TableIdent, JobError> {
    match parse_namespace(namespace) {
        Ok(namespace) => Ok(TableIdent::new(namespace, table.to_owned())),
        Err(source) => Err(JobError::Table(ArchiveError::Catalog {
            table: format!("{namespace}.{table}"),
            doing: "cannot be named",
            source,
        })),
    }
}

/// How other engines shall write to the table, and read it.
const DEFAULTS: [(&str, &str); 8] = [
    ("write.format.default", "parquet"),
    ("write.parquet.compression-codec", "zstd"),
    ("write.parquet.compression-level", "1"),
    ("write.parquet.row-group-size-bytes", "33554432"),
    ("write.delete.mode", "copy-on-write"),
    ("write.update.mode", "copy-on-write"),
    ("write.merge.mode", "copy-on-write"),
    // every version's branch is kept until it is dropped by name
    ("history.expire.max-ref-age-ms", "9223372036854775807"),
];

fn new_table(
    ident: &TableIdent,
    spec: &JobTableSpec,
    deps: &ArchiveDeps,
) -> Result<NewTable, JobError> {
    let refused = |what: String| {
        JobError::Table(ArchiveError::Invalid {
            table: ident.to_string(),
            what,
        })
    };
    let schema = columns::new_schema(&spec.columns).map_err(|change| JobError::Columns {
        table: ident.to_string(),
        version: spec.version.clone(),
        change: Box::new(change),
    })?;
    let partition_spec = match &spec.partitioning {
        JobPartitioning::None => None,
        JobPartitioning::By { column, transform } => {
            let field = schema.field_by_name(column).ok_or_else(|| {
                refused(format!(
                    "it cannot be partitioned by {column}, which the query does not put out; it puts out {}",
                    columns::names(&spec.columns)
                ))
            })?;
            let name = match transform {
                Transform::Identity => column.clone(),
                Transform::Bucket(_) => format!("{column}_bucket"),
                Transform::Truncate(_) => format!("{column}_trunc"),
                other => format!("{column}_{other}"),
            };
            let spec = UnboundPartitionSpec::builder()
                .add_partition_field(field.id, name, *transform)
                .map_err(|error| refused(error.to_string()))?;
            Some(spec.build())
        }
    };
    let mut properties: BTreeMap<String, String> = DEFAULTS
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for (key, value) in &spec.properties {
        if key.starts_with("everlog.") || key == "format-version" {
            return Err(refused(format!(
                "property {key} is everlog's own and cannot be set"
            )));
        }
        properties.insert(key.clone(), value.clone());
    }
    let record = VersionRecord::new(spec, deps.clock.now());
    for (key, value) in [
        (PROPERTY_JOB.to_owned(), spec.job.clone()),
        (PROPERTY_FORMAT.to_owned(), FORMAT.to_owned()),
        (PROPERTY_ACTIVE.to_owned(), spec.version.clone()),
        (
            format!("{PROPERTY_VERSION}{}", spec.version),
            record.to_json(),
        ),
    ] {
        properties.insert(key, value);
    }
    Ok(NewTable {
        ident: ident.clone(),
        schema,
        partition_spec,
        sort_order: None,
        properties,
        location: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_name_that_no_tag_of_ours_has() {
        for good in ["v1", "2", "2026-01-01", "a.b_c"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "main",
            "before-v2",
            "everlog-lease-1",
            "a b",
            "-v",
            "ü",
            "a/b",
        ] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }
}
