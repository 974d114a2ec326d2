//! `everlog job`: which jobs there are, how far their versions have come, and the end of a version.

mod drop;
pub(crate) mod facts;
pub(crate) mod place;
mod report;

use std::io::Write as _;

use clap::{Args, Subcommand};
use everlog_common::Millis;
use serde_json::json;

use crate::components;
use crate::failure::Failure;
use crate::settings::Settings;

use self::facts::{Lake, OnProblem, gather};
use self::place::{JobArg, LocationArg, Place};

/// List jobs, show how far their versions have come, or end a version
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    List(ListArgs),
    Show(ShowArgs),
    Drop(drop::DropArgs),
}

/// List all jobs of a folder with their versions: who is active, where in event time, how far behind, how fast
///
/// DOING is history or live while a version runs, ended after an orderly end, and silent where nothing was heard of it for
/// three checkpoint intervals (a minute at least). LAG counts records to the end of the log, history included.
#[derive(Debug, Args)]
#[command(after_long_help = LIST_EXAMPLES)]
struct ListArgs {
    #[command(flatten)]
    at: LocationArg,

    /// Write one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

const LIST_EXAMPLES: &str = "\
Examples:
  everlog job list
  everlog job list --location s3://lake/jobs --json | jq '.jobs[].versions[] | select(.doing == \"silent\")'

The JSON object:
  version, time, location, jobs [as `everlog job show --json`]
";

/// Show a job: its versions, who is active, event-time positions, lag, who holds time back, state, comparisons, promotions
#[derive(Debug, Args)]
#[command(after_long_help = SHOW_EXAMPLES)]
struct ShowArgs {
    #[command(flatten)]
    job: JobArg,

    /// Write one JSON object instead of a report
    #[arg(long)]
    json: bool,
}

const SHOW_EXAMPLES: &str = "\
Examples:
  everlog job show sessions          by its name
  everlog job show sessions.toml     by its file, which says where its state is

The JSON object:
  job, active, previous, versions [version, is_active, output, created_ms, engine, sql, epoch, rows, committed_ms, head, problem,
    topic, from, watermark_ms, is_drained, doing,
    checkpoint {epoch, rows, late, dead, positions {PARTITION: {generation, offset}}},
    live {at_ms, started_ms, phase, interval_ms, epoch, epoch_ms, watermark_ms, held_by {generation, partition, watermark_ms},
      lag_records, events, events_per_second, eta_s, state_bytes, rows, late, dead}],
  tags {TAG: SNAPSHOT}, comparisons [left, right, from_ms, to_ms, left_rows, right_rows, share, agree, at_ms],
  activations [version, before, at_ms, tag], problems
Times are milliseconds since 1970. epoch, rows, committed_ms and head are what the output shows. What is not known is null.
";

/// Runs it.
pub(crate) async fn run(args: &JobArgs, settings: &Settings) -> Result<(), Failure> {
    match &args.what {
        What::List(args) => list(args, settings).await,
        What::Show(args) => show(args, settings).await,
        What::Drop(args) => drop::run(args, settings).await,
    }
}

fn now() -> Millis {
    components::clock().now()
}

async fn list(args: &ListArgs, settings: &Settings) -> Result<(), Failure> {
    let place = Place::of(&args.at, settings)?;
    let mut lake = Lake::new(settings);
    let mut jobs = Vec::new();
    let mut failed = Vec::new();
    for job in facts::jobs(&place).await? {
        match gather(&place, &job, &mut lake, OnProblem::Tell).await {
            Ok(facts) => jobs.push(facts),
            // one job's trouble is none of the others'
            Err(failure) => failed.push(failure),
        }
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let now = now();
        let shown: Vec<_> = jobs.iter().map(|job| report::as_json(job, now)).collect();
        let json = json!({
            "version": 1,
            "time": crate::text::time(now),
            "location": place.location,
            "jobs": shown,
        });
        writeln!(out, "{json:#}")?;
    } else if jobs.is_empty() && failed.is_empty() {
        writeln!(
            out,
            "there are no jobs in {}; `everlog process` runs one",
            place.location
        )?;
    } else {
        write!(out, "{}", report::list(&jobs, now()))?;
    }
    out.flush()?;
    failed.extend(jobs.into_iter().flat_map(|job| job.problems));
    first_of(failed)
}

async fn show(args: &ShowArgs, settings: &Settings) -> Result<(), Failure> {
    let (place, job) = args.job.place(settings)?;
    let mut lake = Lake::new(settings);
    let facts = gather(&place, &job, &mut lake, OnProblem::Tell).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", report::as_json(&facts, now()))?;
    } else {
        write!(out, "{}", report::show(&facts, &place.location, now()))?;
    }
    out.flush()?;
    first_of(facts.problems)
}

/// The first of several failures, which says how many there are.
pub(crate) fn first_of(failed: Vec<Failure>) -> Result<(), Failure> {
    let others = failed.len().saturating_sub(1);
    match failed.into_iter().next() {
        None => Ok(()),
        Some(Failure::Reported { status, message }) if others > 0 => Err(Failure::new(
            status,
            format!("{message} (and {others} more failed)"),
        )),
        Some(first) => Err(first),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use everlog_processor::registry::{Live, Output, Phase, Registered, Version};

    use super::facts::{JobFacts, VersionFacts};
    use super::*;
    use crate::failure::Status;

    /// A version as the registry has it, of a job that writes to Kafka.
    pub(crate) fn version(name: &str) -> Version {
        Version {
            output: Output::Kafka {
                topic: format!("sessions.{name}"),
            },
            fingerprint: "f".to_owned(),
            engine: "everlog 1".to_owned(),
            created_ms: 1_600_000_000_000,
            sql: "SELECT *\n  FROM clicks".to_owned(),
            topic: "clicks".to_owned(),
            late: None,
            dead_letter: None,
            from: Some("offset:5".to_owned()),
            roles: None,
            schema: None,
        }
    }

    /// What a running version said at a time.
    pub(crate) fn live(at_ms: i64) -> Live {
        Live {
            at_ms,
            started_ms: at_ms - 60_000,
            phase: Phase::History,
            interval_ms: 10_000,
            epoch: 7,
            epoch_ms: at_ms - 1_000,
            watermark_ms: Some(1_699_999_000_000),
            held_by: None,
            lag_records: Some(1_234),
            events: 99,
            events_per_second: 5_000.4,
            eta_s: Some(120),
            state_bytes: 2_048,
            rows: 3,
            late: 2,
            dead: 1,
        }
    }

    /// A job with these versions, none of which has put out anything.
    pub(crate) fn facts(versions: &[&str], active: &str) -> JobFacts {
        let registered: Registered = serde_json::from_value(json!({
            "format": 1,
            "job": "sessions",
            "active": active,
            "previous": null,
            "versions": versions.iter().map(|v| ((*v).to_owned(), json!(version(v)))).collect::<serde_json::Map<_, _>>(),
            "comparisons": [],
            "activations": [],
        }))
        .expect("a registry");
        let versions = registered.versions.iter().map(|(name, version)| {
            let facts = VersionFacts {
                registered: version.clone(),
                output: None,
                epoch: None,
                before: None,
                live: None,
            };
            (name.clone(), facts)
        });
        JobFacts {
            versions: versions.collect(),
            registered: registered.clone(),
            shared: None,
            active: registered.active.clone(),
            previous: None,
            problems: Vec::new(),
        }
    }

    #[test]
    fn several_failures_are_one_line() {
        let failed = |n: usize| {
            let all = (0..n).map(|n| Failure::new(Status::Corrupt, format!("no {n}")));
            first_of(all.collect())
        };
        assert!(failed(0).is_ok());
        assert_eq!(failed(1).unwrap_err().to_string(), "no 0");
        assert_eq!(
            failed(3).unwrap_err().to_string(),
            "no 0 (and 2 more failed)"
        );
    }
}
