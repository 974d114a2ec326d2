//! A job for people and for programs.

use std::time::Duration;

use everlog_common::Millis;
use everlog_processor::registry::{self, JobView, Live, Output};
use everlog_processor::state::Header;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::facts::{JobFacts, VersionFacts};
use crate::text;

/// Beyond this a time is the end of all: a job that was drained has come there.
const END_MS: i64 = i64::MAX / 2;
/// Comparisons and promotions that are shown to people; programs get all.
const SHOWN: usize = 5;
/// Partitions whose positions are shown to people.
const PARTITIONS_SHOWN: usize = 32;

/// The heads of a table of versions.
const HEADS: [&str; 9] = [
    "JOB",
    "VERSION",
    "DOING",
    "EVENT TIME",
    "LAG",
    "RATE",
    "LIVE IN",
    "STATE",
    "LAST EPOCH",
];
const RIGHT: [usize; 4] = [4, 5, 6, 7];

/// An event time, or what stands in its place.
pub(super) fn event_time(ms: Option<i64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms >= END_MS => "the end (drained)".to_owned(),
        Some(ms) => text::time(Millis(ms)),
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn ago(then: i64, now: i64) -> String {
    format!("{} ago", text::duration(millis(now.saturating_sub(then))))
}

/// What a version does, as far as it can be told.
fn doing(live: Option<&Live>, now: i64) -> &'static str {
    match live {
        None => "not seen",
        Some(live) if live.is_running(now) => live.phase.name(),
        Some(live) if live.phase == registry::Phase::Ended => "ended",
        Some(_) => "silent",
    }
}

/// What a version says of itself that holds only as long as it runs.
fn while_running(live: Option<&Live>, now: i64) -> Option<&Live> {
    live.filter(|live| live.is_running(now))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for people, never negative"
)]
fn rate(live: &Live) -> String {
    text::rate(live.events_per_second as u64, Duration::from_secs(1))
}

fn line(job: &str, name: &str, facts: &VersionFacts, active: bool, now: i64) -> Vec<String> {
    let live = facts.live.as_ref();
    let running = while_running(live, now);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let epoch = match (live, &facts.epoch) {
        (Some(live), _) => Some(format!("{}, {}", live.epoch, ago(live.epoch_ms, now))),
        (None, Some(epoch)) => Some(epoch.epoch.to_string()),
        (None, None) => None,
    };
    vec![
        job.to_owned(),
        format!("{name}{}", if active { " (active)" } else { "" }),
        doing(live, now).to_owned(),
        event_time(facts.watermark_ms()),
        or_dash(running.and_then(|live| live.lag_records).map(text::count)),
        or_dash(running.map(rate)),
        or_dash(
            running
                .and_then(|live| live.eta_s)
                .map(|s| text::duration(Duration::from_secs(s))),
        ),
        or_dash(live.map(|live| text::bytes(live.state_bytes))),
        or_dash(epoch),
    ]
}

/// `everlog job list`, for people.
pub(super) fn list(jobs: &[JobFacts], now: Millis) -> String {
    let mut rows = vec![HEADS.map(str::to_owned).to_vec()];
    for job in jobs {
        for (name, facts) in &job.versions {
            let active = job.active.as_deref() == Some(name);
            rows.push(line(&job.registered.job, name, facts, active, now.0));
        }
    }
    text::table(&rows, &RIGHT)
}

/// A job for programs: what the registry and the table have, and of each version its newest epoch and live numbers.
#[derive(Debug, Serialize)]
struct JobJson {
    #[serde(flatten)]
    view: JobView,
    problems: Vec<String>,
}

/// A job for programs.
pub(super) fn as_json(job: &JobFacts, now: Millis) -> Value {
    let state = job.shared.as_ref().map(|(_, state)| state);
    let mut view = registry::view(&job.registered, state);
    for version in &mut view.versions {
        // a table of its own is not the one that the view was made with
        let Some(facts) = job.versions.get(&version.version) else {
            continue;
        };
        let own = facts
            .output
            .as_ref()
            .filter(|_| matches!(facts.registered.output, Output::Table { .. }));
        if let Some((_, at)) = own {
            version.head = at.head;
            version.committed_ms = at.head_time.map(|at| at.0);
            version.problem.clone_from(&at.problem);
            version.epoch = at.marker.as_ref().map(|m| m.epoch);
            version.rows = at.marker.as_ref().map(|m| m.rows);
        }
    }
    let json = JobJson {
        view,
        problems: job.problems.iter().map(ToString::to_string).collect(),
    };
    let mut json = serde_json::to_value(&json).unwrap_or_default();
    let versions = json.get_mut("versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten() {
        let Some(object) = version.as_object_mut() else {
            continue;
        };
        let name = object.get("version").and_then(Value::as_str).unwrap_or("");
        if let Some(facts) = job.versions.get(name) {
            add_to(object, facts, now);
        }
    }
    json
}

fn add_to(object: &mut Map<String, Value>, facts: &VersionFacts, now: Millis) {
    let registered = &facts.registered;
    let live = facts.live.as_ref();
    let more = [
        ("topic", json!(registered.topic)),
        (
            "from",
            json!(registered.from.as_deref().unwrap_or("beginning")),
        ),
        ("watermark_ms", json!(facts.watermark_ms())),
        ("is_drained", json!(facts.watermark_ms() >= Some(END_MS))),
        ("doing", json!(doing(live, now.0))),
        ("checkpoint", json!(facts.epoch.as_ref().map(checkpoint))),
        ("live", json!(live)),
    ];
    for (key, value) in more {
        object.insert(key.to_owned(), value);
    }
}

fn checkpoint(epoch: &Header) -> Value {
    let positions: Map<String, Value> = epoch
        .positions
        .iter()
        .map(|(partition, at)| {
            let at = json!({"generation": at.generation.0, "offset": at.offset.get()});
            (partition.get().to_string(), at)
        })
        .collect();
    json!({
        "epoch": epoch.epoch,
        "rows": epoch.after.rows,
        "late": epoch.after.late,
        "dead": epoch.after.dead,
        "positions": positions,
    })
}

/// `everlog job show`, for people.
pub(super) fn show(job: &JobFacts, location: &str, now: Millis) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&format!("{}  in {location}", job.registered.job));
    let active = job.active.as_deref().unwrap_or("none");
    let before = job
        .previous
        .as_ref()
        .map(|before| format!(", before it {before}"))
        .unwrap_or_default();
    line(&format!("  active   {active}{before}"));
    if let Some((table, _)) = &job.shared {
        line(&format!("  table    {}", table.table()));
    }
    line("");
    for row in list(std::slice::from_ref(job), now).lines() {
        line(&format!("  {row}"));
    }
    for (name, facts) in &job.versions {
        line("");
        line(&format!("  {name}"));
        for (what, value) in details(name, facts, now) {
            line(&format!("    {what:<12} {value}"));
        }
    }
    let registered = &job.registered;
    if !registered.comparisons.is_empty() {
        line("");
        line("  Compared, the newest first:");
    }
    for compared in registered.comparisons.iter().rev().take(SHOWN) {
        let verdict = if compared.agree { "agree" } else { "differ" };
        let sample = if compared.share < 1.0 {
            format!(" of {:.2} % of the keys", compared.share * 100.0)
        } else {
            String::new()
        };
        line(&format!(
            "    {} and {} {verdict}: {} and {} rows{sample}, event time {} to {}, {}",
            compared.left,
            compared.right,
            text::count(compared.left_rows),
            text::count(compared.right_rows),
            event_time(Some(compared.from_ms)),
            event_time(Some(compared.to_ms)),
            ago(compared.at_ms, now.0),
        ));
    }
    if !registered.activations.is_empty() {
        line("");
        line("  Who became active, the newest first:");
    }
    for activated in registered.activations.iter().rev().take(SHOWN) {
        let before = activated.before.as_deref().unwrap_or("none");
        let tag = activated
            .tag
            .as_ref()
            .map(|tag| format!("; main before that is tagged {tag}"))
            .unwrap_or_default();
        line(&format!(
            "    {} after {before}, {}{tag}",
            activated.version,
            text::time(Millis(activated.at_ms)),
        ));
    }
    for problem in &job.problems {
        line("");
        line(&format!("  not known: {problem}"));
    }
    out
}

fn details(name: &str, facts: &VersionFacts, now: Millis) -> Vec<(&'static str, String)> {
    let registered = &facts.registered;
    let mut rows = Vec::new();
    let output = match &registered.output {
        Output::Branch { table } => format!("iceberg:{table}, branch {name}"),
        other => other.to_string(),
    };
    rows.push(("output", output));
    if let Some((_, at)) = &facts.output {
        let rows_there = at.rows.map(|rows| text::things(rows, "row"));
        let head = at.head.map(|head| format!("snapshot {head}"));
        let time = at.head_time.map(|at| ago(at.0, now.0));
        let known: Vec<String> = [rows_there, head, time].into_iter().flatten().collect();
        if !known.is_empty() {
            rows.push(("", known.join(", ")));
        }
        if let Some(problem) = &at.problem {
            rows.push(("problem", problem.clone()));
        }
    }
    rows.push((
        "reads",
        format!(
            "{} from {}",
            registered.topic,
            registered.from.as_deref().unwrap_or("beginning")
        ),
    ));
    rows.push(("first run", text::time(Millis(registered.created_ms))));
    rows.push(("engine", facts.engine().to_owned()));
    let held = facts.live.as_ref().and_then(|live| live.held_by);
    let held = held.map_or_else(String::new, |held| {
        format!(
            "; partition {} of generation {} holds it back, at {}",
            held.partition,
            held.generation,
            event_time(held.watermark_ms)
        )
    });
    rows.push((
        "event time",
        format!("{}{held}", event_time(facts.watermark_ms())),
    ));
    if let Some(live) = &facts.live {
        let running = while_running(Some(live), now.0);
        let speed = match running {
            Some(live) => {
                let lag = live.lag_records.map_or_else(
                    || "lag not known".to_owned(),
                    |lag| format!("{} behind the log's end", text::things(lag, "record")),
                );
                let eta = live.eta_s.map_or_else(String::new, |s| {
                    format!(", live in {}", text::duration(Duration::from_secs(s)))
                });
                format!("{}, {lag}, {}{eta}", live.phase.name(), rate(live))
            }
            None => doing(Some(live), now.0).to_owned(),
        };
        rows.push((
            "doing",
            format!("{speed}; last heard {}", ago(live.at_ms, now.0)),
        ));
        rows.push((
            "state",
            format!(
                "{}; epoch {}, {}",
                text::bytes(live.state_bytes),
                live.epoch,
                ago(live.epoch_ms, now.0)
            ),
        ));
    }
    if let Some(epoch) = &facts.epoch {
        rows.push((
            "checkpoint",
            format!(
                "epoch {}: {}, {} late, {}",
                epoch.epoch,
                text::things(epoch.after.rows, "row"),
                text::count(epoch.after.late),
                text::things(epoch.after.dead, "dead letter"),
            ),
        ));
        let positions = epoch.positions.iter();
        let mut shown: Vec<String> = positions
            .take(PARTITIONS_SHOWN)
            .map(|(partition, at)| {
                format!(
                    "{}: {}/{}",
                    partition.get(),
                    at.generation.0,
                    at.offset.get()
                )
            })
            .collect();
        if epoch.positions.len() > PARTITIONS_SHOWN {
            shown.push(format!("… of {}", epoch.positions.len()));
        }
        if !shown.is_empty() {
            rows.push((
                "position",
                format!("{} (partition: generation/offset)", shown.join("  ")),
            ));
        }
    }
    let sql: Vec<&str> = registered.sql.split_whitespace().collect();
    rows.push(("sql", sql.join(" ")));
    rows
}

#[cfg(test)]
mod tests {
    use everlog_processor::registry::{HeldBy, Phase};

    use super::super::tests::{facts, live};
    use super::*;

    const NOW: Millis = Millis(1_700_000_100_000);

    #[test]
    fn a_running_version_shows_how_far_it_is() {
        let job = facts(&["v1", "v2"], "v1");
        let table = list(std::slice::from_ref(&job), NOW);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(lines[1].contains("v1 (active)  not seen"), "{table}");
        let mut job = job;
        if let Some(v2) = job.versions.get_mut("v2") {
            v2.live = Some(Live {
                held_by: Some(HeldBy {
                    generation: 0,
                    partition: 3,
                    watermark_ms: Some(1_699_999_000_000),
                }),
                ..live(NOW.0 - 4_000)
            });
        }
        let shown = show(&job, "file:///jobs", NOW);
        for expected in [
            "active   v1",
            "v2           history   2023-11-14T21:56:40.000Z  1,234  5,000/s  2 min 0 s  2.0 KiB  7, 5.0 s ago",
            "; partition 3 of generation 0 holds it back, at 2023-11-14T21:56:40.000Z",
            "history, 1,234 records behind the log's end, 5,000/s, live in 2 min 0 s; last heard 4.0 s ago",
            "output       kafka:sessions.v2",
            "reads        clicks from offset:5",
        ] {
            assert!(shown.contains(expected), "{expected}\n{shown}");
        }
    }

    #[test]
    fn what_holds_only_while_it_runs_is_not_shown_of_one_that_does_not() {
        let mut job = facts(&["v1"], "v1");
        for (live, expected) in [
            (live(NOW.0 - 3_600_000), "silent"),
            (
                Live {
                    phase: Phase::Ended,
                    watermark_ms: Some(i64::MAX),
                    ..live(NOW.0)
                },
                "ended",
            ),
        ] {
            if let Some(v1) = job.versions.get_mut("v1") {
                v1.live = Some(live);
            }
            let table = list(std::slice::from_ref(&job), NOW);
            assert!(table.contains(expected), "{table}");
            assert!(!table.contains("1,234") && !table.contains("/s"), "{table}");
        }
        assert!(list(&[job], NOW).contains("the end (drained)"));
    }

    #[test]
    fn programs_get_everything() {
        let mut job = facts(&["v1", "v2"], "v2");
        if let Some(v2) = job.versions.get_mut("v2") {
            v2.live = Some(live(NOW.0));
        }
        let json = as_json(&job, NOW);
        assert_eq!(json["job"], "sessions");
        assert_eq!(json["active"], "v2");
        let v2 = &json["versions"][1];
        assert_eq!(v2["is_active"], true);
        assert_eq!(v2["doing"], "history");
        assert_eq!(v2["live"]["lag_records"], 1_234);
        assert_eq!(v2["from"], "offset:5");
        assert_eq!(v2["is_drained"], false);
        assert!(json["versions"][0]["live"].is_null());
    }
}
