//! `everlog promote` and `everlog rollback`: which version readers see.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use everlog_common::units::parse_duration;
use everlog_common::{Millis, Positions};
use everlog_processor::compare::Edges;
use everlog_processor::registry::{
    Behind, Output, PromoteFacts, PromoteRules, Readiness, Registered, behind, decide,
};
use everlog_table::job::{MovedMain, Promotion};
use serde_json::{Value, json};

use crate::compare::reach;
use crate::failure::{Failure, Status};
use crate::job::facts::{JobFacts, Lake, OnProblem, VersionFacts, gather, of_registry, of_table};
use crate::job::place::{JobArg, Place};
use crate::settings::Settings;
use crate::{components, text};

/// Make a version the active one: readers of the table's main see its rows from then on
///
/// With a shared table this is one atomic commit: main goes to the head of the version's branch, and what it was before gets a
/// tag. Readers see the old rows or the new ones, never a mixture. It is a replace, not an append: who reads main
/// incrementally must start anew. With a topic, file or table per version there is nothing to move: who is active is recorded,
/// consumers switch by name. It is done only if the version has caught up with the active one and the two were compared,
/// over a day of event time or half of what there is, and agreed; `everlog compare` does that.
#[derive(Debug, Args)]
#[command(after_long_help = PROMOTE_EXAMPLES)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    job: JobArg,

    /// The version
    #[arg(value_name = "VERSION")]
    version: String,

    /// Do not ask for a comparison that agrees; the version must have caught up all the same
    #[arg(long)]
    force: bool,

    /// Event time that the comparison must cover
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    min_compared: Duration,

    /// The version may be behind the active one by so many records: neither commits at every moment
    #[arg(long, value_name = "RECORDS", default_value = "10000")]
    max_behind: u64,

    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Write one JSON object instead of a report
    #[arg(long)]
    json: bool,
}

const PROMOTE_EXAMPLES: &str = "\
Examples:
  everlog compare sessions v1 v2 && everlog promote sessions v2
  everlog promote sessions v2 --dry-run                may it?
  everlog promote sessions v2 --min-compared 7d
  everlog promote sessions v2 --force                  the differences are what was wanted

The JSON object:
  version, job, active, before, output, changed, dry_run, overlooked [what of the comparison --force overlooked],
  behind {records, event_time_s}, main {table, snapshot_id, before, tag}; main is null where there is no shared table
";

/// Make the version active again that was before
///
/// The same commit as a promotion, in the other direction, and without asking what was compared. Main goes to where that
/// version's branch is: as fresh as ever if the version is kept running, else back in time to where it stopped.
#[derive(Debug, Args)]
#[command(after_long_help = ROLLBACK_EXAMPLES)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    job: JobArg,

    /// Write one JSON object instead of a report
    #[arg(long)]
    json: bool,
}

const ROLLBACK_EXAMPLES: &str = "\
Examples:
  everlog rollback sessions

The JSON object:
  version, job, active, before, output, changed, event_time_ms, is_running, main {table, snapshot_id, before, tag}
";

/// Runs `everlog promote`.
pub(crate) async fn promote(args: &PromoteArgs, settings: &Settings) -> Result<(), Failure> {
    let (place, job) = args.job.place(settings)?;
    let version = &args.version;
    let mut lake = Lake::new(settings);
    let facts = gather(&place, &job, &mut lake, OnProblem::Fail).await?;
    let target = facts.version(version)?;
    let active = facts.active.clone().unwrap_or_else(|| version.clone());
    let asked = promote_facts(&facts, version, &active).await?;
    let rules = PromoteRules {
        records_max: args.max_behind,
        compared_min: args.min_compared,
        force: args.force,
        ..PromoteRules::default()
    };
    let overlooked = match decide(&asked, &rules) {
        Readiness::Ready { overlooked } => overlooked,
        Readiness::NotReady { reasons } => {
            return Err(Failure::new(
                Status::Failed,
                format!(
                    "{version} of job {job} was not promoted: {}",
                    reasons.join("; ")
                ),
            ));
        }
    };
    let done = if args.dry_run {
        None
    } else {
        Some(activate(&place, &facts, version).await?)
    };
    let shown = Shown {
        job: &job,
        version,
        before: (active != *version).then_some(active.as_str()),
        output: &target.registered.output,
        moved: done.as_ref().and_then(|done| done.moved.as_ref()),
        table: target
            .output
            .as_ref()
            .map(|(table, _)| table.table().to_string()),
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut json = shown.as_json(done.as_ref().is_some_and(|done| done.changed));
        let more = [
            ("dry_run", json!(args.dry_run)),
            ("overlooked", json!(overlooked)),
            (
                "behind",
                json!({
                    "records": asked.behind.records,
                    "event_time_s": asked.behind.event_time.map(text::seconds),
                }),
            ),
        ];
        if let Some(object) = json.as_object_mut() {
            object.extend(more.map(|(key, value)| (key.to_owned(), value)));
        }
        writeln!(out, "{json:#}")?;
    } else {
        for what in &overlooked {
            writeln!(out, "overlooked: {what}")?;
        }
        if args.dry_run {
            writeln!(out, "{job}: {version} may be promoted; nothing was changed")?;
        } else {
            write!(
                out,
                "{}",
                shown.as_text(done.as_ref().is_some_and(|done| done.changed))
            )?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Runs `everlog rollback`.
pub(crate) async fn rollback(args: &RollbackArgs, settings: &Settings) -> Result<(), Failure> {
    let (place, job) = args.job.place(settings)?;
    let mut lake = Lake::new(settings);
    let facts = gather(&place, &job, &mut lake, OnProblem::Fail).await?;
    let now = components::clock().now();
    let target = match whereto(
        &facts.registered,
        facts.active.as_deref(),
        facts.previous.as_deref(),
    ) {
        Back::To(version) => version,
        Back::Refuse(why) => return Err(Failure::usage(why)),
        Back::NoteFirst { active } => {
            place
                .registry(&job)
                .activated(&active, None, now)
                .await
                .map_err(|error| of_registry(&error))?;
            return Err(Failure::new(
                Status::Failed,
                format!(
                    "a promotion or rollback of job {job} was cut off after the table had it: {active} is active, which is noted now, and nothing else was changed; run the rollback again if {active} is not what you want"
                ),
            ));
        }
    };
    let of_target = facts.version(&target)?;
    let done = activate(&place, &facts, &target).await?;
    let shown = Shown {
        job: &job,
        version: &target,
        before: facts.active.as_deref(),
        output: &of_target.registered.output,
        moved: done.moved.as_ref(),
        table: of_target
            .output
            .as_ref()
            .map(|(table, _)| table.table().to_string()),
    };
    let is_running = of_target
        .live
        .as_ref()
        .is_some_and(|live| live.is_running(now.0));
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut json = shown.as_json(done.changed);
        if let Some(object) = json.as_object_mut() {
            object.insert("event_time_ms".to_owned(), json!(of_target.watermark_ms()));
            object.insert("is_running".to_owned(), json!(is_running));
        }
        writeln!(out, "{json:#}")?;
    } else {
        write!(out, "{}", shown.as_text(done.changed))?;
        if !is_running {
            let at = of_target
                .watermark_ms()
                .filter(|at| *at != i64::MAX)
                .map_or_else(String::new, |at| {
                    format!(" at event time {}", text::time(Millis(at)))
                });
            writeln!(
                out,
                "{target} does not seem to be running: its output ends where it stopped{at}; `everlog process` goes on with it"
            )?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Where a rollback goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Back {
    /// To this version.
    To(String),
    /// The registry does not yet know what the table says: whether the last command was a promotion, which shall be undone, or
    /// a rollback, which is done already, only the user knows.
    NoteFirst { active: String },
    /// Nowhere.
    Refuse(String),
}

fn whereto(registered: &Registered, active: Option<&str>, previous: Option<&str>) -> Back {
    let job = &registered.job;
    let Some(active) = active else {
        return Back::Refuse(format!("no version of job {job} is active yet"));
    };
    if registered.active.as_deref() != Some(active) && registered.versions.contains_key(active) {
        return Back::NoteFirst {
            active: active.to_owned(),
        };
    }
    match previous {
        Some(previous) if registered.versions.contains_key(previous) => {
            Back::To(previous.to_owned())
        }
        Some(previous) => Back::Refuse(format!(
            "version {previous} of job {job}, which was active before, was dropped; run the old logic as a new version, and promote that"
        )),
        None => {
            let tags: Vec<&str> = registered
                .activations
                .iter()
                .filter_map(|activated| activated.tag.as_deref())
                .collect();
            let rest = if registered.activations.is_empty() {
                "nothing was promoted yet".to_owned()
            } else if tags.is_empty() {
                "the version before it was dropped".to_owned()
            } else {
                format!(
                    "the version before it was dropped; what main was can be read under the tags {}",
                    tags.join(", ")
                )
            };
            Back::Refuse(format!(
                "there is nothing to roll job {job} back to from {active}: {rest}"
            ))
        }
    }
}

/// What was done.
struct Done {
    /// Whether the version was not active before.
    changed: bool,
    /// Main, where there is a shared table.
    moved: Option<MovedMain>,
}

/// Makes a version the active one: in the table first, which readers see, then in the registry.
async fn activate(place: &Place, facts: &JobFacts, version: &str) -> Result<Done, Failure> {
    let target = facts.version(version)?;
    let branch = matches!(target.registered.output, Output::Branch { .. });
    let moved = match (&facts.shared, branch) {
        (Some((table, state)), true) => {
            let promotion = Promotion {
                version: version.to_owned(),
                from: state.active.clone(),
            };
            let moved = table.promote(&promotion).await;
            Some(moved.map_err(|error| of_table(&error))?)
        }
        _ => None,
    };
    let tag = moved.as_ref().and_then(|moved| moved.tag.clone());
    let job = &facts.registered.job;
    place
        .registry(job)
        .activated(version, tag, components::clock().now())
        .await
        .map_err(|error| {
            let what = if moved.is_some() {
                format!("main is at {version} already, only the registry of job {job} does not know it yet, run the same command again")
            } else {
                format!("{version} of job {job} is not active")
            };
            of_registry(&error).while_doing(&what)
        })?;
    Ok(Done {
        changed: facts.active.as_deref() != Some(version),
        moved,
    })
}

async fn promote_facts(
    facts: &JobFacts,
    version: &str,
    active: &str,
) -> Result<PromoteFacts, Failure> {
    let (target, before) = (facts.version(version)?, facts.versions.get(active));
    let comparison = facts.registered.comparisons.iter().rev().find(|compared| {
        let pair = [compared.left.as_str(), compared.right.as_str()];
        pair.contains(&version) && pair.contains(&active)
    });
    let comparable = match before {
        Some(before) => comparable(span(target).await?, span(before).await?),
        None => None,
    };
    let can_be_compared = before.is_some_and(|before| {
        [target, before].iter().all(|side| {
            matches!(
                side.registered.output,
                Output::Branch { .. } | Output::Table { .. }
            )
        })
    });
    Ok(PromoteFacts {
        version: version.to_owned(),
        active: active.to_owned(),
        has_output: target.has_output(),
        behind: arrears(target, before),
        can_be_compared,
        comparison: comparison.cloned(),
        comparable,
    })
}

/// How far a version is behind the active one: by what of both is committed, and by the event time of the outputs.
fn arrears(version: &VersionFacts, active: Option<&VersionFacts>) -> Behind {
    let of_active = active.map_or_else(Positions::new, VersionFacts::committed);
    Behind {
        event_time: lag_of(output_watermark(version), active.and_then(output_watermark)),
        ..behind(&version.committed(), &of_active)
    }
}

/// The event time that a table's last commit of a version says. What a process says of itself is older where it has died since.
fn output_watermark(facts: &VersionFacts) -> Option<i64> {
    let (_, at) = facts.output.as_ref()?;
    at.marker.as_ref()?.watermark
}

/// None where one of them was drained: that closed its windows at an end of its own, wherever the other has got to.
fn lag_of(version: Option<i64>, active: Option<i64>) -> Option<Duration> {
    let open = |at: Option<i64>| at.filter(|at| *at != i64::MAX);
    let lag = open(active)?.saturating_sub(open(version)?);
    Some(Duration::from_millis(u64::try_from(lag).unwrap_or(0)))
}

/// From where to where the rows of a version reach in event time, in milliseconds.
async fn span(facts: &VersionFacts) -> Result<Option<(i64, i64)>, Failure> {
    let (Some((table, at)), Some(roles)) = (&facts.output, &facts.registered.roles) else {
        return Ok(None);
    };
    let Some(edges) = Edges::of(roles) else {
        return Ok(None);
    };
    let length_ms = roles.window.map_or(0, |window| window.length());
    reach(table, at.head, &edges, length_ms).await
}

/// The event time that both reach over.
fn comparable(one: Option<(i64, i64)>, other: Option<(i64, i64)>) -> Option<Duration> {
    let ((from, to), (other_from, other_to)) = (one?, other?);
    let both = to.min(other_to).saturating_sub(from.max(other_from));
    Some(Duration::from_millis(u64::try_from(both).unwrap_or(0)))
}

/// A change of who is active, for people and programs.
struct Shown<'a> {
    job: &'a str,
    version: &'a str,
    before: Option<&'a str>,
    output: &'a Output,
    moved: Option<&'a MovedMain>,
    table: Option<String>,
}

impl Shown<'_> {
    fn as_text(&self, changed: bool) -> String {
        let Self { job, version, .. } = self;
        let before = self
            .before
            .filter(|_| changed)
            .map_or_else(String::new, |before| format!(", and no longer {before}"));
        let mut text = if changed {
            format!("{job}: {version} is active{before}\n")
        } else {
            format!("{job}: {version} is active, as it was\n")
        };
        match (self.moved, self.output) {
            (Some(moved), _) if moved.attempts == 0 => {}
            (Some(moved), _) => {
                let table = self.table.as_deref().unwrap_or("the table");
                let from = moved
                    .before
                    .map_or_else(|| "nowhere".to_owned(), |id| format!("snapshot {id}"));
                _ = write!(
                    text,
                    "main of {table} went from {from} to snapshot {}",
                    moved.snapshot_id
                );
                if let Some(tag) = &moved.tag {
                    _ = write!(text, "; what it was before is tagged {tag}");
                }
                text.push_str(
                    "\nwho reads main incrementally must start anew: the new head does not descend from the old one\n",
                );
            }
            (None, output) if changed => {
                _ = writeln!(
                    text,
                    "consumers read {output} from now on; nothing was moved, they switch by themselves"
                );
            }
            (None, _) => {}
        }
        text
    }

    fn as_json(&self, changed: bool) -> Value {
        let main = self.moved.map(|moved| {
            json!({
                "table": self.table,
                "snapshot_id": moved.snapshot_id,
                "before": moved.before,
                "tag": moved.tag,
            })
        });
        json!({
            "version": 1,
            "job": self.job,
            "active": self.version,
            "before": self.before,
            "output": self.output.to_string(),
            "changed": changed,
            "main": main,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tests::facts;

    #[test]
    fn a_rollback_goes_to_the_version_before() {
        let mut job = facts(&["v1", "v2"], "v2");
        let back = |job: &JobFacts| {
            whereto(
                &job.registered,
                job.active.as_deref(),
                job.previous.as_deref(),
            )
        };
        assert!(
            matches!(back(&job), Back::Refuse(why) if why.contains("nothing was promoted yet"))
        );
        job.previous = Some("v1".to_owned());
        assert_eq!(back(&job), Back::To("v1".to_owned()));
        job.previous = Some("v0".to_owned());
        assert!(
            matches!(back(&job), Back::Refuse(why) if why.contains("v0") && why.contains("was dropped"))
        );
        // the table had it, and the registry did not
        job.previous = Some("v2".to_owned());
        job.active = Some("v1".to_owned());
        assert_eq!(
            back(&job),
            Back::NoteFirst {
                active: "v1".to_owned()
            }
        );
        job.active = None;
        assert!(matches!(back(&job), Back::Refuse(_)));
    }

    #[test]
    fn what_can_be_compared_is_what_both_reach_over() {
        let hours = |n: u64| Some(Duration::from_hours(n));
        let at = |from: i64, to: i64| Some((from * 3_600_000, to * 3_600_000));
        assert_eq!(comparable(at(0, 10), at(4, 20)), hours(6));
        assert_eq!(comparable(at(0, 10), at(20, 30)), hours(0));
        assert_eq!(comparable(None, at(20, 30)), None);
        assert_eq!(
            lag_of(Some(5_000), Some(65_000)),
            Some(Duration::from_mins(1))
        );
        assert_eq!(lag_of(Some(65_000), Some(5_000)), Some(Duration::ZERO));
        // of one that was drained the positions tell: it is closed, and the other may have read on
        assert_eq!(lag_of(Some(i64::MAX), Some(5_000)), None);
        assert_eq!(lag_of(Some(5_000), Some(i64::MAX)), None);
        assert_eq!(lag_of(None, Some(5_000)), None);
    }

    #[test]
    fn a_version_that_never_ran_is_behind_whoever_did() {
        let job = facts(&["v1", "v2"], "v1");
        let (v1, v2) = (&job.versions["v1"], &job.versions["v2"]);
        // neither has a position: there are no arrears
        assert_eq!(arrears(v2, Some(v1)).records, Some(0));
        assert_eq!(arrears(v2, None).records, Some(0));
        assert!(!v2.has_output());
    }

    #[test]
    fn who_promotes_is_told_what_readers_see() {
        let output = Output::Branch {
            table: "sessions".to_owned(),
        };
        let moved = MovedMain {
            snapshot_id: 7,
            before: Some(5),
            tag: Some("before-v2".to_owned()),
            active: "v2".to_owned(),
            previous: Some("v1".to_owned()),
            attempts: 1,
        };
        let shown = Shown {
            job: "sessions",
            version: "v2",
            before: Some("v1"),
            output: &output,
            moved: Some(&moved),
            table: Some("everlog.sessions".to_owned()),
        };
        let text = shown.as_text(true);
        assert!(text.starts_with("sessions: v2 is active, and no longer v1\nmain of everlog.sessions went from snapshot 5 to snapshot 7; what it was before is tagged before-v2\n"), "{text}");
        assert!(text.contains("must start anew"), "{text}");
        assert_eq!(shown.as_json(true)["main"]["tag"], "before-v2");
        let topic = Output::Kafka {
            topic: "sessions.v2".to_owned(),
        };
        let shown = Shown {
            output: &topic,
            moved: None,
            table: None,
            ..shown
        };
        assert!(
            shown
                .as_text(true)
                .contains("consumers read kafka:sessions.v2 from now on")
        );
        assert_eq!(shown.as_text(false), "sessions: v2 is active, as it was\n");
        assert!(shown.as_json(false)["main"].is_null());
    }
}
