//! `everlog job drop`: the end of a version.

use std::io::{IsTerminal as _, Write as _};

use clap::Args;
use everlog_processor::registry::Output;
use everlog_processor::run;
use everlog_processor::state::{EpochLog, Identity, JobId, StoreError};

use super::facts::{
    JobFacts, Lake, OnProblem, VersionFacts, gather, of_registry, of_store, of_table,
};
use super::place::JobArg;
use crate::failure::{Failure, Status};
use crate::process::scratch;
use crate::settings::Settings;
use crate::{components, telemetry, text};

/// End a version: remove its state, and its branch. Never the active one
///
/// Asks before it does so; where there is nobody to ask, --yes is needed. A process that still runs the version ends with
/// exit status 5. Rows of a version that was active once stay readable under the tags of the promotions; its files go with
/// `everlog maintain`. A topic, file or table of its own is left as it is, for its readers.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct DropArgs {
    #[command(flatten)]
    job: JobArg,

    /// The version
    #[arg(value_name = "VERSION")]
    version: String,

    /// Do not ask
    #[arg(long)]
    yes: bool,
}

const EXAMPLES: &str = "\
Examples:
  everlog job drop sessions v1
  everlog job drop sessions v1 --yes     in a script
";

/// What is known when a version shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts<'a> {
    job: &'a str,
    version: &'a str,
    /// By the table that it shares, or the registry.
    active: Option<&'a str>,
    /// By the registry.
    noted: Option<&'a str>,
    /// There is somebody who can be asked.
    is_terminal: bool,
    /// `--yes`
    yes: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Ask first.
    Ask,
    /// Do it.
    Drop,
    /// Do not.
    Refuse(String),
}

fn decide(facts: &Facts<'_>) -> Step {
    let Facts { job, version, .. } = facts;
    if [facts.active, facts.noted].contains(&Some(version)) {
        return Step::Refuse(format!(
            "version {version} of job {job} is active and cannot be dropped; promote another first"
        ));
    }
    match (facts.yes, facts.is_terminal) {
        (true, _) => Step::Drop,
        (false, true) => Step::Ask,
        (false, false) => Step::Refuse(format!(
            "dropping version {version} of job {job} cannot be undone, and there is nobody to ask: give --yes"
        )),
    }
}

/// Runs it.
pub(crate) async fn run(args: &DropArgs, settings: &Settings) -> Result<(), Failure> {
    let (place, job) = args.job.place(settings)?;
    let version = &args.version;
    let mut lake = Lake::new(settings);
    let facts = gather(&place, &job, &mut lake, OnProblem::FailForTables).await?;
    let of_version = facts.version(version)?;
    let step = decide(&Facts {
        job: &job,
        version,
        active: facts.active.as_deref(),
        noted: facts.registered.active.as_deref(),
        is_terminal: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
        yes: args.yes,
    });
    match step {
        Step::Refuse(why) => return Err(Failure::usage(why)),
        Step::Drop => {}
        Step::Ask => {
            for line in what_goes(&facts, version, of_version, components::clock().now().0) {
                telemetry::notice(&line);
            }
            let question = format!("Drop version {version} of job {job}? [y/N] ");
            if !confirmed(&question, &mut std::io::stdin().lock())? {
                return Err(Failure::new(
                    Status::Failed,
                    format!("nothing was dropped: version {version} of job {job} is as it was"),
                ));
            }
        }
    }
    // The branch first: from here on whoever still runs the version is stopped by its output. The registry last: what was cut
    // off is done by the same command.
    if let Some((table, _)) = &of_version.output
        && matches!(of_version.registered.output, Output::Branch { .. })
    {
        let dropped = table.drop_version(version).await;
        dropped.map_err(|error| of_table(&error))?;
    }
    let registry = place.registry(&job);
    let again = registry.get().await.map_err(|error| of_registry(&error))?;
    if again.active.as_deref() == Some(version) {
        return Err(Failure::usage(format!(
            "version {version} of job {job} became active meanwhile; look at `everlog job show {job}`"
        )));
    }
    let id = JobId {
        name: job.clone(),
        version: version.clone(),
    };
    // A process that still writes epochs loses the job first, so that none comes after the last was removed.
    if let Some(epoch) = &of_version.epoch {
        let identity = Identity {
            job: id.clone(),
            fingerprint: epoch.fingerprint,
            engine: epoch.engine.clone(),
        };
        let (storage, writer) = (place.storage.clone(), components::ids().uuid());
        match EpochLog::take_over(storage, &place.location, identity, writer).await {
            Ok(_) => {}
            // Damaged: nobody goes on with it.
            Err(error @ StoreError::Corrupt { .. }) => {
                tracing::debug!(%error, "the state is damaged, and removed as it is");
            }
            Err(error) => return Err(of_store(&error)),
        }
    }
    let files = EpochLog::remove_all(&place.storage, &place.location, &id)
        .await
        .map_err(|error| of_store(&error))?;
    // What this machine has of it. It is a cache: a folder that cannot be removed does no harm, and is told.
    let local = run::local_folder(&scratch(&place.location), &place.location, &id);
    if let Err(error) = std::fs::remove_dir_all(&local)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %local.display(), %error, "what this machine keeps of the version cannot be removed; remove it when nothing runs the version any more");
    }
    registry
        .dropped(version)
        .await
        .map_err(|error| of_registry(&error))?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{job}: version {version} is dropped; {} of state removed{}",
        text::things(files as u64, "file"),
        left_behind(&of_version.registered.output)
    )?;
    out.flush()?;
    Ok(())
}

/// What stays of an output when its version goes.
fn left_behind(output: &Output) -> String {
    match output {
        Output::Branch { table } => {
            format!("; its branch of table {table} is gone, its files go with `everlog maintain`")
        }
        Output::Table { table } => format!("; its table {table} is left, drop it in the catalog"),
        Output::Kafka { topic } => {
            format!("; its topic {topic} is left, delete it when nobody reads it")
        }
        Output::Jsonl { path } => format!("; its file {path} is left"),
    }
}

/// What a person should know before they say yes.
fn what_goes(facts: &JobFacts, version: &str, of_version: &VersionFacts, now: i64) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(epoch) = &of_version.epoch {
        lines.push(format!(
            "its state goes: {} epochs so far, {}",
            text::count(epoch.epoch),
            text::things(epoch.after.rows, "row")
        ));
    }
    if let Some((table, at)) = &of_version.output
        && matches!(of_version.registered.output, Output::Branch { .. })
    {
        let rows = at.rows.map_or_else(String::new, |rows| {
            format!(" with {}", text::things(rows, "row"))
        });
        lines.push(format!("its branch of table {} goes{rows}", table.table()));
    }
    if facts.previous.as_deref() == Some(version) {
        lines.push("there will be nothing to roll back to".to_owned());
    }
    if let Some(live) = of_version.live.as_ref().filter(|l| l.is_running(now)) {
        let heard = std::time::Duration::from_millis(
            u64::try_from(now.saturating_sub(live.at_ms)).unwrap_or(0),
        );
        lines.push(format!(
            "a process runs it (last heard {} ago), and will end with exit status 5",
            text::duration(heard)
        ));
    }
    lines
}

/// Asks on standard error, where the answer is not data.
fn confirmed(question: &str, answers: &mut impl std::io::BufRead) -> Result<bool, Failure> {
    let mut err = std::io::stderr().lock();
    write!(err, "{question}")?;
    err.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, live};
    use super::*;

    #[test]
    fn the_active_version_is_never_dropped_and_nobody_is_dropped_unasked() {
        let facts = Facts {
            job: "sessions",
            version: "v1",
            active: Some("v2"),
            noted: Some("v2"),
            is_terminal: true,
            yes: false,
        };
        assert_eq!(decide(&facts), Step::Ask);
        assert_eq!(decide(&Facts { yes: true, ..facts }), Step::Drop);
        let unasked = Facts {
            is_terminal: false,
            ..facts
        };
        assert!(matches!(decide(&unasked), Step::Refuse(why) if why.contains("--yes")));
        assert_eq!(
            decide(&Facts {
                yes: true,
                ..unasked
            }),
            Step::Drop
        );
        for active in [
            Facts {
                active: Some("v1"),
                yes: true,
                ..facts
            },
            Facts {
                noted: Some("v1"),
                yes: true,
                ..facts
            },
        ] {
            assert!(matches!(decide(&active), Step::Refuse(why) if why.contains("is active")));
        }
    }

    #[test]
    fn only_yes_is_yes() {
        for yes in ["y\n", "YES\n", " y "] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yep\n", "v1\n"] {
            assert!(!is_yes(no), "{no:?}");
        }
        let answer = |text: &str| confirmed("", &mut text.as_bytes()).unwrap();
        assert!(answer("y\n") && !answer(""));
    }

    #[test]
    fn who_is_asked_hears_what_goes() {
        let mut job = facts(&["v1", "v2"], "v2");
        job.previous = Some("v1".to_owned());
        if let Some(v1) = job.versions.get_mut("v1") {
            v1.live = Some(live(1_000_000));
        }
        let lines = what_goes(&job, "v1", &job.versions["v1"], 1_004_000).join("\n");
        assert!(lines.contains("nothing to roll back to"), "{lines}");
        assert!(lines.contains("last heard 4.0 s ago"), "{lines}");
        let later = what_goes(&job, "v1", &job.versions["v1"], 9_000_000).join("\n");
        assert!(!later.contains("a process runs it"), "{later}");
    }
}
