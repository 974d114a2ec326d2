//! What is there of a job, gathered: its registry, its tables, the newest epochs of its versions, and what they say while they
//! run.

use std::collections::BTreeMap;
use std::sync::Arc;

use everlog_common::Positions;
use everlog_processor::registry::{self, Live, Output, Reached, Registered, Registry, Version};
use everlog_processor::sink::iceberg::parse_positions;
use everlog_processor::state::{EpochLog, Header, JobId, StoreError};
use everlog_table::archive::ArchiveDeps;
use everlog_table::catalog::Catalog;
use everlog_table::job::{JobError, JobErrorKind, JobState, JobTable, VersionState};

use super::place::Place;
use crate::components;
use crate::failure::{Failure, Status};
use crate::settings::Settings;

/// A job as it is now.
#[derive(Debug)]
pub(crate) struct JobFacts {
    /// What the registry has.
    pub(crate) registered: Registered,
    /// The table that versions share, and its state.
    pub(crate) shared: Option<(JobTable, JobState)>,
    /// Who is active; none before the first was run.
    pub(crate) active: Option<String>,
    /// Who was before.
    pub(crate) previous: Option<String>,
    /// Of each version what there is.
    pub(crate) versions: BTreeMap<String, VersionFacts>,
    /// What could not be read, where it was asked to go on without it.
    pub(crate) problems: Vec<Failure>,
}

/// A version as it is now.
#[derive(Debug)]
pub(crate) struct VersionFacts {
    /// What the registry has.
    pub(crate) registered: Version,
    /// Its table, and its branch there.
    pub(crate) output: Option<(JobTable, VersionState)>,
    /// Its newest epoch.
    pub(crate) epoch: Option<Header>,
    /// The one before, where its output is a table that does not have all rows of the newest one.
    pub(crate) before: Option<Header>,
    /// What it said last of itself.
    pub(crate) live: Option<Live>,
}

impl VersionFacts {
    /// The event time that its output is complete up to, as its last commit to a table says, else as it says of itself.
    pub(crate) fn watermark_ms(&self) -> Option<i64> {
        let marker = self.output.as_ref().and_then(|(_, at)| at.marker.as_ref());
        match marker {
            Some(marker) => marker.watermark,
            None => self.live.as_ref().and_then(|live| live.watermark_ms),
        }
    }

    /// Where it was in its source when its output last grew; nowhere before that.
    pub(crate) fn positions(&self) -> Positions {
        let marker = self.output.as_ref().and_then(|(_, at)| at.marker.as_ref());
        marker
            .and_then(|marker| parse_positions(&marker.positions))
            .unwrap_or_default()
    }

    /// Where it is in its source, by what is committed: of a table what its branch shows, else the newest epoch.
    pub(crate) fn committed(&self) -> Positions {
        let reached = |header: &Header| Reached {
            rows: header.after.rows,
            positions: header.positions.clone(),
        };
        let epochs: Vec<Reached> = [&self.epoch, &self.before]
            .into_iter()
            .flatten()
            .map(reached)
            .collect();
        let marker = Reached {
            rows: self.rows_out(),
            positions: self.positions(),
        };
        match (&self.registered.output, epochs.first()) {
            (Output::Kafka { .. } | Output::Jsonl { .. }, Some(newest)) => newest.positions.clone(),
            _ => registry::committed(&epochs, &marker),
        }
    }

    /// Rows that its table's last commit says.
    fn rows_out(&self) -> u64 {
        let marker = self.output.as_ref().and_then(|(_, at)| at.marker.as_ref());
        marker.map_or(0, |marker| marker.rows)
    }

    /// What computed its rows.
    pub(crate) fn engine(&self) -> &str {
        let marker = self.output.as_ref().and_then(|(_, at)| at.marker.as_ref());
        match (marker, &self.epoch) {
            (Some(marker), _) => &marker.engine,
            (None, Some(epoch)) => &epoch.engine,
            (None, None) => &self.registered.engine,
        }
    }

    /// Whether it has put out anything.
    pub(crate) fn has_output(&self) -> bool {
        match &self.registered.output {
            Output::Branch { .. } | Output::Table { .. } => self
                .output
                .as_ref()
                .is_some_and(|(_, at)| at.head.is_some()),
            Output::Kafka { .. } | Output::Jsonl { .. } => self
                .epoch
                .as_ref()
                .is_some_and(|epoch| epoch.after.rows > 0),
        }
    }
}

/// Whether what cannot be read ends the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnProblem {
    /// It does: the command decides by these facts.
    Fail,
    /// It is told, and the rest is shown.
    Tell,
    /// It does for a table, which says who is active. A state that is damaged can be removed all the same.
    FailForTables,
}

impl OnProblem {
    fn judge<T>(
        self,
        found: Result<Option<T>, Failure>,
        problems: &mut Vec<Failure>,
    ) -> Result<Option<T>, Failure> {
        match found {
            Err(failure) if self != Self::Fail => {
                problems.push(failure);
                Ok(None)
            }
            found => found,
        }
    }
}

/// The catalog, connected once somebody needs it: a job that writes to Kafka alone needs none.
pub(crate) struct Lake<'a> {
    settings: &'a Settings,
    catalog: Option<Arc<dyn Catalog>>,
}

impl<'a> Lake<'a> {
    pub(crate) const fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            catalog: None,
        }
    }

    pub(crate) async fn deps(&mut self) -> Result<ArchiveDeps, Failure> {
        let catalog = match &self.catalog {
            Some(catalog) => Arc::clone(catalog),
            None => components::catalog(self.settings).await?,
        };
        let deps = components::deps(&catalog);
        self.catalog = Some(catalog);
        Ok(deps)
    }

    async fn table(&mut self, table: &str, job: &str) -> Result<Option<JobTable>, Failure> {
        let deps = self.deps().await?;
        JobTable::open(deps, &self.settings.catalog.namespace, table, job)
            .await
            .map_err(|error| of_table(&error))
    }
}

/// Gathers all that is known of a job, which must be there.
pub(crate) async fn gather(
    place: &Place,
    job: &str,
    lake: &mut Lake<'_>,
    on_problem: OnProblem,
) -> Result<JobFacts, Failure> {
    let registered = place
        .registry(job)
        .get()
        .await
        .map_err(|error| of_registry(&error))?;
    let mut problems = Vec::new();
    let mut tables: BTreeMap<String, (JobTable, JobState)> = BTreeMap::new();
    let mut shared = None;
    for version in registered.versions.values() {
        let (Output::Branch { table } | Output::Table { table }) = &version.output else {
            continue;
        };
        if !tables.contains_key(table) {
            let read = read_table(lake, table, job).await;
            let of_table = match on_problem {
                OnProblem::FailForTables => OnProblem::Fail,
                other => other,
            };
            if let Some(read) = of_table.judge(read, &mut problems)? {
                tables.insert(table.clone(), read);
            }
        }
        if matches!(version.output, Output::Branch { .. }) {
            shared = shared.or_else(|| tables.get(table).cloned());
        }
    }
    let mut versions = BTreeMap::new();
    for (name, version) in &registered.versions {
        let output = match &version.output {
            Output::Branch { table } | Output::Table { table } => tables
                .get(table)
                .and_then(|(t, state)| Some((t.clone(), state.versions.get(name)?.clone()))),
            Output::Kafka { .. } | Output::Jsonl { .. } => None,
        };
        let id = JobId {
            name: job.to_owned(),
            version: name.clone(),
        };
        let epoch = EpochLog::newest(&place.storage, &place.location, &id)
            .await
            .map_err(|error| of_store(&error));
        let live = Live::read(&place.storage, &place.location, &id)
            .await
            .map_err(|error| Failure::from_error(Status::Failed, &error));
        let mut facts = VersionFacts {
            registered: version.clone(),
            output,
            epoch: on_problem.judge(epoch, &mut problems)?,
            before: None,
            live: on_problem.judge(live, &mut problems)?,
        };
        let in_table = matches!(version.output, Output::Branch { .. } | Output::Table { .. });
        if let Some(epoch) = &facts.epoch
            && in_table
            && epoch.after.rows > facts.rows_out()
            && let Some(number) = epoch.epoch.checked_sub(1).filter(|number| *number > 0)
        {
            let before = EpochLog::header_of(&place.storage, &place.location, &id, number).await;
            let before = before.map_err(|error| of_store(&error));
            facts.before = on_problem.judge(before, &mut problems)?;
        }
        versions.insert(name.clone(), facts);
    }
    let said = shared
        .as_ref()
        .map(|(_, state)| (state.active.as_str(), state.previous.as_deref()));
    let (active, previous) = registry::active(&registered, said);
    let (active, previous) = (active.map(str::to_owned), previous.map(str::to_owned));
    Ok(JobFacts {
        registered,
        shared,
        active,
        previous,
        versions,
        problems,
    })
}

async fn read_table(
    lake: &mut Lake<'_>,
    table: &str,
    job: &str,
) -> Result<Option<(JobTable, JobState)>, Failure> {
    let Some(table) = lake.table(table, job).await? else {
        return Ok(None);
    };
    let state = table.state().await.map_err(|error| of_table(&error))?;
    Ok(Some((table, state)))
}

impl JobFacts {
    /// One of the versions.
    pub(crate) fn version(&self, name: &str) -> Result<&VersionFacts, Failure> {
        self.versions.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.versions.keys().map(String::as_str).collect();
            Failure::usage(format!(
                "job {} has no version {name}; it has {}",
                self.registered.job,
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            ))
        })
    }
}

/// The jobs of a folder.
pub(crate) async fn jobs(place: &Place) -> Result<Vec<String>, Failure> {
    Registry::jobs(&place.storage, &place.location)
        .await
        .map_err(|error| of_registry(&error))
}

/// A failure of a job's registry.
pub(crate) fn of_registry(error: &registry::RegistryError) -> Failure {
    Failure::from_error(Status::from_code(error.exit_status()), error)
}

/// A failure of a job's epochs.
pub(crate) fn of_store(error: &StoreError) -> Failure {
    Failure::from_error(Status::from_code(error.exit_status()), error)
}

/// A failure of a job's table.
pub(crate) fn of_table(error: &JobError) -> Failure {
    let status = match error.kind() {
        JobErrorKind::Transient | JobErrorKind::Denied => Status::Failed,
        JobErrorKind::Invalid => Status::Usage,
        JobErrorKind::Corrupt => Status::Corrupt,
        JobErrorKind::Fenced => Status::OtherWriter,
    };
    Failure::from_error(status, error)
}
