//! Which job is meant, and where what is kept of it lies.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use everlog_processor::job::Job;
use everlog_processor::registry::Registry;
use everlog_table::storage::{Storage, StorageError, StorageErrorKind};

use crate::failure::{Failure, Status};
use crate::settings::Settings;

/// Where a job's file puts its state if it does not say.
pub(crate) const LOCATION: &str = "file:///var/lib/everlog/jobs";

/// A job, as it is called on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobRef {
    /// By its name.
    Name(String),
    /// By its file.
    File(PathBuf),
}

impl FromStr for JobRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // no name has one of these
        if text.contains(['/', '.']) {
            return Ok(Self::File(text.into()));
        }
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        if begins && text.chars().all(plain) {
            return Ok(Self::Name(text.to_owned()));
        }
        Err(
            "a job is given by its name (a-z, 0-9, - and _), or by its file, whose path has a . or / in it"
                .to_owned(),
        )
    }
}

/// Options that say which job is meant.
#[derive(Debug, Clone, Args)]
pub(crate) struct JobArg {
    /// The job: its name, or its file (what has a `.` or `/` in it)
    pub(crate) job: JobRef,

    #[command(flatten)]
    pub(crate) at: LocationArg,
}

/// The option that says where jobs are.
#[derive(Debug, Clone, Args)]
pub(crate) struct LocationArg {
    /// Where the state of jobs is kept: their `checkpoint.location`. A job's file says it by itself
    /// [default: file:///var/lib/everlog/jobs]
    #[arg(long, value_name = "URI")]
    pub(crate) location: Option<String>,
}

/// The folder of all jobs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) storage: Storage,
    pub(crate) location: String,
}

impl Place {
    /// The folder that an option names, or the usual one. Nothing is read.
    pub(crate) fn of(arg: &LocationArg, settings: &Settings) -> Result<Self, Failure> {
        let location = arg.location.as_deref().unwrap_or(LOCATION);
        Self::at(location, settings)
    }

    fn at(location: &str, settings: &Settings) -> Result<Self, Failure> {
        let location = location.trim_end_matches('/').to_owned();
        let storage = Storage::from_properties(settings.catalog.properties.reveal())
            .map_err(|error| of_storage(&error))?;
        storage.check(&location).map_err(|error| {
            of_storage(&error).while_doing(&format!("the jobs' location {location}"))
        })?;
        Ok(Self { storage, location })
    }

    /// The registry of one job there.
    pub(crate) fn registry(&self, job: &str) -> Registry {
        Registry::new(self.storage.clone(), &self.location, job)
    }
}

impl JobArg {
    /// Where the job is, and its name.
    pub(crate) fn place(&self, settings: &Settings) -> Result<(Place, String), Failure> {
        match &self.job {
            JobRef::Name(name) => Ok((Place::of(&self.at, settings)?, name.clone())),
            JobRef::File(path) => {
                if self.at.location.is_some() {
                    return Err(Failure::usage(format!(
                        "--location is for a job that is given by its name; {} says where its state is",
                        path.display()
                    )));
                }
                let job = Job::read(path).map_err(|error| Failure::usage(one_line(&error)))?;
                let place = Place::at(&job.checkpoint.location, settings)?;
                Ok((place, job.name.as_str().to_owned()))
            }
        }
    }
}

/// All that is wrong with a job's file, on one line.
pub(crate) fn one_line(error: &everlog_processor::job::JobError) -> String {
    let all = error.to_string();
    let mut lines = all.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    match lines.count() {
        0 => first,
        more => format!("{first} (and {more} more: `everlog process --check` lists them)"),
    }
}

fn of_storage(error: &StorageError) -> Failure {
    let status = match error.kind() {
        StorageErrorKind::Invalid => Status::Usage,
        _ => Status::Failed,
    };
    Failure::from_error(status, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_a_name_or_a_file() {
        let of = |text: &str| text.parse::<JobRef>();
        assert_eq!(of("sessions"), Ok(JobRef::Name("sessions".to_owned())));
        assert_eq!(of("a-1_b"), Ok(JobRef::Name("a-1_b".to_owned())));
        for file in ["sessions.toml", "./sessions", "jobs/sessions.toml"] {
            assert_eq!(of(file), Ok(JobRef::File(file.into())));
        }
        for neither in ["", "Sessions", "1st", "a b", "sessions:v1"] {
            assert!(of(neither).is_err(), "{neither}");
        }
    }

    #[test]
    fn problems_of_a_file_are_one_line() {
        let error = Job::parse("[job]\nname = 1\n[sourcer]\n", "job.toml").unwrap_err();
        let line = one_line(&error);
        assert!(
            line.starts_with("job.toml: ") && !line.contains('\n'),
            "{line}"
        );
        assert!(line.contains("more: `everlog process --check`"), "{line}");
    }
}
