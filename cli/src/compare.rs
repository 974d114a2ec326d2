//! `everlog compare`: two versions of a job, side by side.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{ArgGroup, Args};
use everlog_common::Millis;
use everlog_common::units::{format_duration, parse_bytes};
use everlog_processor::compare::{Edges, Mode, Sample, Settings as CompareSettings, Side, compare};
use everlog_processor::registry::{Output, Roles};
use everlog_replayer::request::parse_timestamp;
use everlog_table::job::JobTable;
use indicatif::ProgressBar;
use serde_json::json;

use crate::failure::{Failure, Status};
use crate::job::facts::{Lake, OnProblem, VersionFacts, gather, of_registry, of_table};
use crate::job::place::JobArg;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::{components, telemetry};

/// Compare two versions of a job: row by row where their logic is the same, else by what both must count alike
///
/// Reads only, and notes in the job's registry that it was done: `everlog promote` asks for it. Only windows count that lie
/// wholly in the event time that both outputs cover. With the same logic (a version against its own replay) every row must be
/// there on both sides, in all columns. With changed logic, windows of both sides that overlap form a group; counts and sums
/// must be equal per key and day; how windows became others is counted, and shown side by side. Ends with 0 where the
/// versions agree, 1 where they differ, or there is nothing to compare yet.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, group(ArgGroup::new("mode").args(["same", "changed"])))]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    job: JobArg,

    /// One version
    #[arg(value_name = "V1")]
    left: String,

    /// The other
    #[arg(value_name = "V2")]
    right: String,

    /// Compare row by row; the default where both have the same logic, or no windows
    #[arg(long)]
    same: bool,

    /// Compare by what is conserved; the default where windows of changed logic are compared
    #[arg(long)]
    changed: bool,

    /// The columns that make the key; without it those that both queries group by
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    keys: Option<Vec<String>>,

    /// The columns of a window's beginning and end; without it those that the queries put out
    #[arg(long, value_name = "START,END", value_parser = window)]
    window: Option<Edges>,

    /// The columns that both must count alike; without it the counts and sums that both put out
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    measures: Option<Vec<String>>,

    /// Compare windows from this event time on, in RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Millis>,

    /// Compare windows that end up to this event time
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Millis>,

    /// Compare `all` keys, a share of them like 5%, or as many as about so many rows have; the same ones every time
    #[arg(long, value_name = "SAMPLE", default_value = "all", value_parser = sample)]
    sample: Sample,

    /// By which share floating-point numbers may differ
    #[arg(long, value_name = "SHARE", default_value = "1e-9", value_parser = tolerance)]
    tolerance: f64,

    /// Show so many examples of what differs; all are counted
    #[arg(long, value_name = "N", default_value = "20")]
    examples: usize,

    /// Memory of the sorts, which go to disk beyond it
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_bytes)]
    memory: u64,

    /// Write one JSON object instead of a report
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  everlog compare sessions v1 v1-replayed      is a replay the same, row by row?
  everlog compare sessions v1 v2               what did the changed gap do?
  everlog compare sessions v1 v2 --sample 5%   of a huge output
  everlog compare sessions v1 v2 --measures views,purchases --json

The JSON object:
  version, job, mode, agree, left and right {version, table, snapshot_id, rows, from_ms, to_ms, engine}, from_ms, to_ms, share, keys,
  columns, not_compared, rows {left, right, outside_left, outside_right, border_left, border_right},
  same {equal, different, only_left, only_right}, groups {identical, equal_rows, moved, split, merged, mixed, only_left,
  only_right, not_conserved}, measures [column, left, right, key_days, key_days_equal, days, more_days],
  examples [kind, left, right], first_ms, last_ms
Times are milliseconds since 1970.
";

fn window(text: &str) -> Result<Edges, String> {
    match text.split_once(',') {
        Some((start, end)) if !start.is_empty() && !end.is_empty() && !end.contains(',') => {
            Ok(Edges::Both {
                start: start.to_owned(),
                end: end.to_owned(),
            })
        }
        _ => Err("write two columns with a comma between: session_start,session_end".to_owned()),
    }
}

fn time(text: &str) -> Result<Millis, String> {
    parse_timestamp("", text, text).map_err(|_| "write a time like 2026-01-31T12:00:00Z".to_owned())
}

fn sample(text: &str) -> Result<Sample, String> {
    let wrong =
        || "write `all`, a share of the keys like 5%, or a number of rows like 1000000".to_owned();
    if text == "all" {
        return Ok(Sample::All);
    }
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.trim().parse().map_err(|_| wrong())?;
        return if percent > 0.0 && percent <= 100.0 {
            Ok(Sample::Share(percent / 100.0))
        } else {
            Err(wrong())
        };
    }
    match text.replace('_', "").parse() {
        Ok(rows) if rows > 0 => Ok(Sample::Rows(rows)),
        _ => Err(wrong()),
    }
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("write a share of the number, from 0 to less than 1, like 1e-9".to_owned()),
    }
}

/// What is known of one of the versions when they shall be compared.
#[derive(Debug, Clone, PartialEq)]
struct SideFacts<'a> {
    version: &'a str,
    fingerprint: &'a str,
    roles: Option<&'a Roles>,
}

/// How the two are compared, before rows are read.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    mode: Mode,
    keys: Vec<String>,
    window: Option<Edges>,
    measures: Vec<String>,
    horizon: Duration,
}

/// Decides it: what the options say, else what the queries say.
fn plan(left: &SideFacts<'_>, right: &SideFacts<'_>, args: &CompareArgs) -> Result<Plan, String> {
    let none = Roles::default();
    let (one, other) = (left.roles.unwrap_or(&none), right.roles.unwrap_or(&none));
    let both = |of_one: &[String], of_other: &[String]| -> Vec<String> {
        let common = of_one.iter().filter(|column| of_other.contains(column));
        common.cloned().collect()
    };
    let window = match (&args.window, Edges::of(one), Edges::of(other)) {
        (Some(given), _, _) => Some(given.clone()),
        (None, Some(a), Some(b)) if a == b => Some(a),
        (None, Some(a), Some(b)) => {
            let names = |edges: &Edges| edges.columns().cloned().collect::<Vec<_>>().join(" and ");
            return Err(format!(
                "the edges of windows are {} of {}, and {} of {}: give both versions the same names, or compare with --window START,END what both have",
                names(&a),
                left.version,
                names(&b),
                right.version
            ));
        }
        (None, _, _) => None,
    };
    let same_logic = left.fingerprint == right.fingerprint;
    let mode = match (args.same, args.changed) {
        (true, _) => Mode::Same,
        (_, true) => Mode::Changed,
        _ if same_logic || window.is_none() => Mode::Same,
        _ => Mode::Changed,
    };
    let millis = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    Ok(Plan {
        mode,
        keys: args
            .keys
            .clone()
            .unwrap_or_else(|| both(&one.keys, &other.keys)),
        window,
        measures: args
            .measures
            .clone()
            .unwrap_or_else(|| both(&one.conserved, &other.conserved)),
        horizon: millis(length_ms(one).max(length_ms(other)))
            + millis(one.lateness_ms.max(other.lateness_ms)),
    })
}

/// The gap or size of the windows; 0 without windows.
fn length_ms(roles: &Roles) -> i64 {
    roles.window.map_or(0, |window| window.length())
}

/// The event time that a version's output is complete up to: its watermark, less what windows wait for late records.
fn complete_to(watermark_ms: Option<i64>, lateness_ms: i64) -> Option<i64> {
    watermark_ms.map(|at| match at {
        // of a job that was drained
        i64::MAX => at,
        at => at.saturating_sub(lateness_ms),
    })
}

/// Runs it.
pub(crate) async fn run(args: &CompareArgs, settings: &Settings) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let signal = signals.token();
    let (place, job) = args.job.place(settings)?;
    let mut lake = Lake::new(settings);
    let facts = gather(&place, &job, &mut lake, OnProblem::Fail).await?;
    let (left, right) = (facts.version(&args.left)?, facts.version(&args.right)?);
    if args.left == args.right {
        return Err(Failure::usage(format!(
            "a version is compared with another one, not {} with itself",
            args.left
        )));
    }
    let plan = plan(
        &side_facts(&args.left, left),
        &side_facts(&args.right, right),
        args,
    )
    .map_err(Failure::usage)?;
    let one = side(&args.left, left, &plan, args).await?;
    let other = side(&args.right, right, &plan, args).await?;
    if plan.window.is_none() && left.positions() != right.positions() {
        telemetry::notice(
            "note: the rows have no windows, and the two versions have not read the same records: what one of them has yet to put out counts as a difference",
        );
    }
    if let Some(note) = of_lateness(
        (&args.left, left.registered.roles.as_ref()),
        (&args.right, right.registered.roles.as_ref()),
    ) {
        telemetry::notice(&note);
    }
    if left.engine() != right.engine() {
        telemetry::notice(&format!(
            "note: {} was computed by {}, {} by {}: answers of two releases may differ",
            args.left,
            left.engine(),
            args.right,
            right.engine()
        ));
    }
    let asked = CompareSettings {
        mode: plan.mode,
        keys: plan.keys,
        window: plan.window,
        measures: plan.measures,
        sample: args.sample,
        horizon: plan.horizon,
        tolerance: args.tolerance,
        examples: args.examples,
        memory: usize::try_from(args.memory).unwrap_or(usize::MAX),
        folder: None,
    };
    let waiting = Waiting::begin(&format!("comparing {} with {}", args.left, args.right));
    let report = tokio::select! {
        report = compare(&one, &other, &asked) => report.map_err(|error| {
            Failure::from_error(Status::from_code(error.exit_status()), &error)
        }),
        () = signal.cancelled() => {
            Err(Failure::new(Status::Failed, "interrupted: nothing was compared"))
        }
    };
    drop(waiting);
    let report = report?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut json = report.to_json();
        if let Some(object) = json.as_object_mut() {
            object.insert("version".to_owned(), json!(1));
            for (name, side) in [("left", left), ("right", right)] {
                let of_side = object.get_mut(name).and_then(|side| side.as_object_mut());
                if let Some(of_side) = of_side {
                    of_side.insert("engine".to_owned(), json!(side.engine()));
                }
            }
        }
        writeln!(out, "{json:#}")?;
    } else {
        writeln!(out, "{report}")?;
    }
    out.flush()?;
    place
        .registry(&job)
        .compared(&report.note(components::clock().now()))
        .await
        .map_err(|error| of_registry(&error).while_doing("the comparison could not be noted"))?;
    if report.agrees() {
        return Ok(());
    }
    let why = if report.rows.left == 0 || report.rows.right == 0 {
        "there is nothing to compare: no event time is covered by both"
    } else {
        "they differ, as the report tells"
    };
    Err(Failure::new(
        Status::from_code(report.exit_status()),
        format!(
            "versions {} and {} of job {job}: {why}",
            args.left, args.right
        ),
    ))
}

/// Versions that take records of another lateness do not count the same ones: what is late for one alone looks lost.
fn of_lateness(one: (&str, Option<&Roles>), other: (&str, Option<&Roles>)) -> Option<String> {
    let late = |roles: Option<&Roles>| roles.filter(|r| r.window.is_some()).map(|r| r.lateness_ms);
    let (a, b) = (late(one.1)?, late(other.1)?);
    let shown = |ms: i64| format_duration(Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
    (a != b).then(|| {
        format!(
            "note: {} takes records up to {} late, {} up to {}: they do not count the same records; the same source.allowed_lateness in both would",
            one.0,
            shown(a),
            other.0,
            shown(b)
        )
    })
}

fn side_facts<'a>(version: &'a str, facts: &'a VersionFacts) -> SideFacts<'a> {
    SideFacts {
        version,
        fingerprint: &facts.registered.fingerprint,
        roles: facts.registered.roles.as_ref(),
    }
}

async fn side(
    version: &str,
    facts: &VersionFacts,
    plan: &Plan,
    args: &CompareArgs,
) -> Result<Side, Failure> {
    let output = &facts.registered.output;
    if !matches!(output, Output::Branch { .. } | Output::Table { .. }) {
        return Err(Failure::usage(format!(
            "version {version} writes to {output}; everlog compares outputs in Iceberg tables"
        )));
    }
    let Some((table, at)) = &facts.output else {
        return Err(Failure::new(
            Status::Failed,
            format!(
                "version {version} has no rows yet: {output} is not there, or knows nothing of it"
            ),
        ));
    };
    if let Some(problem) = &at.problem {
        return Err(Failure::new(
            Status::OtherWriter,
            format!("table {}: {problem}", table.table()),
        ));
    }
    let columns = at
        .record
        .as_ref()
        .map(|record| record.columns.clone())
        .ok_or_else(|| {
            Failure::new(
                Status::Corrupt,
                format!(
                    "table {}: what it keeps of version {version} cannot be read; was it written by a newer everlog?",
                    table.table()
                ),
            )
        })?;
    let none = Roles::default();
    let roles = facts.registered.roles.as_ref().unwrap_or(&none);
    // In mid-stream a version begins with its first row; which key would have had an earlier one is not known.
    let began = match (&facts.registered.from, &plan.window) {
        (Some(_), Some(edges)) => reach(table, at.head, edges, length_ms(roles))
            .await?
            .map(|(first, _)| first),
        _ => None,
    };
    let lateness = roles.lateness_ms;
    let complete = complete_to(facts.watermark_ms(), lateness);
    let (from_ms, to_ms) = within(began, complete, args.from, args.to);
    Ok(Side {
        version: version.to_owned(),
        table: table.clone(),
        snapshot_id: at.head,
        columns,
        length_ms: length_ms(roles),
        from_ms,
        to_ms,
    })
}

/// From where to where rows reach in event time, in milliseconds, by the files' bounds; none where they do not tell.
pub(crate) async fn reach(
    table: &JobTable,
    snapshot_id: Option<i64>,
    edges: &Edges,
    length_ms: i64,
) -> Result<Option<(i64, i64)>, Failure> {
    let columns: Vec<String> = edges.columns().cloned().collect();
    let scan = table
        .scan(snapshot_id, Some(&columns))
        .await
        .map_err(|error| of_table(&error))?;
    let bounds = |column: &str| {
        let (first, last) = scan.bounds(column)?;
        Some((first.div_euclid(1_000), last.div_euclid(1_000)))
    };
    Ok(match edges {
        Edges::Both { start, end } => bounds(start)
            .zip(bounds(end))
            .map(|((first, _), (_, last))| (first, last)),
        Edges::Start(start) => {
            bounds(start).map(|(first, last)| (first, last.saturating_add(length_ms)))
        }
        Edges::End(end) => bounds(end).map(|(first, last)| (first.saturating_sub(length_ms), last)),
    })
}

/// The event time of a side: what it has, cut to what was asked for. Where it is not known how far it is complete, its rows
/// tell, and what was asked for can only cut it short where that is known.
fn within(
    began: Option<i64>,
    complete: Option<i64>,
    from: Option<Millis>,
    to: Option<Millis>,
) -> (Option<i64>, Option<i64>) {
    let from_ms = began.max(from.map(|at| at.0));
    let to_ms = complete.map(|there| to.map_or(there, |at| there.min(at.0)));
    (from_ms, to_ms)
}

/// Something moves on a terminal while it takes long.
struct Waiting(Option<ProgressBar>);

impl Waiting {
    fn begin(what: &str) -> Self {
        Self(std::io::stderr().is_terminal().then(|| {
            let bar = telemetry::bars().add(ProgressBar::new_spinner());
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        }))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use everlog_processor::registry::Window;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CompareArgs,
    }

    fn args(more: &[&str]) -> CompareArgs {
        let words = ["compare", "sessions", "v1", "v2"];
        Line::try_parse_from(words.iter().chain(more)).unwrap().args
    }

    fn roles(gap: i64, lateness_ms: i64) -> Roles {
        Roles {
            keys: vec!["user_id".to_owned(), "region".to_owned()],
            window: Some(Window::Session { gap }),
            start: Some("since".to_owned()),
            end: Some("till".to_owned()),
            conserved: vec!["views".to_owned(), "spent".to_owned()],
            lateness_ms,
        }
    }

    fn edges(start: &str, end: &str) -> Option<Edges> {
        Some(Edges::Both {
            start: start.to_owned(),
            end: end.to_owned(),
        })
    }

    fn facts<'a>(version: &'a str, fingerprint: &'a str, roles: &'a Roles) -> SideFacts<'a> {
        SideFacts {
            version,
            fingerprint,
            roles: Some(roles),
        }
    }

    #[test]
    fn the_same_logic_is_compared_row_by_row_and_changed_logic_by_what_is_conserved() {
        let (one, mut other) = (roles(30, 5), roles(20, 7));
        let same = plan(&facts("v1", "f", &one), &facts("v2", "f", &one), &args(&[])).unwrap();
        assert_eq!(same.mode, Mode::Same);
        other.conserved = vec!["spent".to_owned(), "clicks".to_owned()];
        other.keys = vec!["user_id".to_owned()];
        let (v1, v2) = (facts("v1", "f", &one), facts("v2", "g", &other));
        let changed = plan(&v1, &v2, &args(&[])).unwrap();
        assert_eq!(
            changed,
            Plan {
                mode: Mode::Changed,
                keys: vec!["user_id".to_owned()],
                window: edges("since", "till"),
                measures: vec!["spent".to_owned()],
                horizon: Duration::from_millis(37),
            }
        );
        // without windows only rows can be compared
        other.window = None;
        let v2 = facts("v2", "g", &other);
        assert_eq!(plan(&v1, &v2, &args(&[])).unwrap().mode, Mode::Same);
    }

    #[test]
    fn another_lateness_is_told() {
        let (half, third) = (roles(1, 1_800_000), roles(1, 1_200_000));
        let none = Roles::default();
        assert_eq!(of_lateness(("v1", Some(&half)), ("v3", Some(&half))), None);
        assert_eq!(of_lateness(("v1", Some(&half)), ("v3", Some(&none))), None);
        assert_eq!(of_lateness(("v1", None), ("v3", Some(&half))), None);
        let note = of_lateness(("v1", Some(&half)), ("v2", Some(&third))).unwrap();
        assert!(
            note.starts_with("note: v1 takes records up to 30m late, v2 up to 20m: "),
            "{note}"
        );
    }

    #[test]
    fn options_win_over_what_the_queries_say() {
        let one = roles(30, 5);
        let (v1, v2) = (facts("v1", "f", &one), facts("v2", "f", &one));
        let more = [
            "--changed",
            "--keys",
            "a,b",
            "--window",
            "s,e",
            "--measures",
            "n",
        ];
        let asked = plan(&v1, &v2, &args(&more)).unwrap();
        assert_eq!(asked.mode, Mode::Changed);
        assert_eq!(asked.keys, ["a", "b"]);
        assert_eq!(asked.window, edges("s", "e"));
        assert_eq!(asked.measures, ["n"]);
        let v2 = facts("v2", "g", &one);
        assert_eq!(plan(&v1, &v2, &args(&["--same"])).unwrap().mode, Mode::Same);
        let words = ["compare", "sessions", "v1", "v2", "--same", "--changed"];
        assert!(Line::try_parse_from(words).is_err());
    }

    #[test]
    fn windows_of_two_names_are_not_guessed() {
        let (one, mut other) = (roles(30, 0), roles(30, 0));
        (other.start, other.end) = (Some("a".to_owned()), Some("b".to_owned()));
        let (v1, v2) = (facts("v1", "f", &one), facts("v2", "g", &other));
        let why = plan(&v1, &v2, &args(&[])).unwrap_err();
        assert!(
            why.contains("since and till") && why.contains("a and b"),
            "{why}"
        );
    }

    #[test]
    fn what_is_complete_ends_before_what_may_still_come_late() {
        assert_eq!(complete_to(None, 5), None);
        assert_eq!(complete_to(Some(100), 5), Some(95));
        assert_eq!(complete_to(Some(i64::MAX), 5), Some(i64::MAX));
        assert_eq!(within(None, None, None, None), (None, None));
        let asked = (Some(Millis(10)), Some(Millis(50)));
        assert_eq!(
            within(None, Some(95), asked.0, asked.1),
            (Some(10), Some(50))
        );
        assert_eq!(
            within(Some(20), Some(40), asked.0, asked.1),
            (Some(20), Some(40))
        );
    }

    #[test]
    fn options_are_checked() {
        assert_eq!(sample("all"), Ok(Sample::All));
        assert_eq!(sample("5%"), Ok(Sample::Share(0.05)));
        assert_eq!(sample("1_000"), Ok(Sample::Rows(1_000)));
        for wrong in ["0", "0%", "101%", "half", "", "-5%", "1.5"] {
            assert!(sample(wrong).is_err(), "{wrong}");
        }
        assert_eq!(window("a,b").ok(), edges("a", "b"));
        for wrong in ["a", "a,", ",b", "a,b,c"] {
            assert!(window(wrong).is_err(), "{wrong}");
        }
        assert!(tolerance("0").is_ok() && tolerance("1").is_err() && tolerance("NaN").is_err());
        assert_eq!(time("1970-01-01T00:00:01Z"), Ok(Millis(1_000)));
        assert!(time("yesterday").is_err());
    }
}
