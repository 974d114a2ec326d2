//! `everlog verify`: proves on the user's own data that nothing was lost, doubled or altered.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use everlog_common::TopicName;
use everlog_replayer::Components;
use everlog_replayer::verify::{
    Check, Depth, Finding, Outcome, Report, Severity, VerifyProgress, VerifyRequest, verify,
};
use everlog_table::snapshot::SnapshotSelector;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::failure::{Failure, Status};
use crate::replay::of_replay;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::{components, telemetry, text};

/// Prove that the archive of a topic is what Kafka's log was: nothing lost, nothing doubled, nothing altered
///
/// Reads only, while everything runs. Compares every record that Kafka still has with the archive, field by field, and checks
/// the whole archive for continuity: ledgers along the snapshots' history, ledger against files, what files cover, checksums,
/// order. Ends with 0 only if all holds; 3 if records are missing that nothing explains, 4 if something is stored that
/// should not be, or not as it was.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, group(ArgGroup::new("depth").args(["quick", "full"])))]
pub(crate) struct VerifyArgs {
    /// The topic
    topic: TopicName,

    /// Metadata only: seconds, whatever the archive's size
    #[arg(long)]
    quick: bool,

    /// Read every byte of the archive, and prove the running hash of every partition
    #[arg(long)]
    full: bool,

    /// Do not ask Kafka: check the archive by itself
    #[arg(long)]
    offline: bool,

    /// Verify this snapshot instead of the newest
    #[arg(long, value_name = "ID", value_parser = crate::replay::snapshot_id)]
    snapshot: Option<i64>,

    /// Which sample is drawn without --full; the report names it
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,

    /// Show so many findings; all are counted
    #[arg(long, value_name = "N", default_value = "20")]
    findings: usize,

    /// Write one JSON object instead of a report
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  everlog verify orders              footers, a sample of the data, and all that Kafka still has
  everlog verify orders --quick      in a health check
  everlog verify orders --full       every byte; also after another engine rewrote the table
  everlog verify orders --offline    without Kafka

The JSON object:
  version, topic, table, snapshot_id, depth, seed, holds, files, rows_decoded, records_compared, took_seconds,
  checks [name, state, detail], partitions [generation, partition, first, next, rows, compared {start, end}, same,
  compacted, hash_proven], gaps [generation, partition, start, end, reason], findings_gap, findings_corruption,
  findings [check, severity, generation, partition, start, end, what, log, archive]
";

/// Between two changes of the bar.
const REDRAW: Duration = Duration::from_millis(100);

/// Runs it.
pub(crate) async fn run(args: &VerifyArgs, settings: &Settings) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let signal = signals.token();
    let log = match settings.kafka.get("bootstrap.servers") {
        Some(_) if !args.offline => Some(components::log(settings)?),
        _ => None,
    };
    let components = Components {
        log,
        catalog: components::catalog(settings).await?,
        clock: components::clock(),
        ids: components::ids(),
        namespace: settings.catalog.namespace.clone(),
    };
    let request = VerifyRequest {
        depth: match (args.quick, args.full) {
            (true, _) => Depth::Quick,
            (_, true) => Depth::Full,
            _ => Depth::Sampled,
        },
        selector: args
            .snapshot
            .map_or(SnapshotSelector::Current, SnapshotSelector::Id),
        memory_bytes: usize::try_from(settings.replay.memory).unwrap_or(usize::MAX),
        threads: settings.replay.threads,
        findings_max: args.findings,
        seed: args.seed,
        ..VerifyRequest::new(args.topic.clone())
    };
    let mut view = View::new();
    let mut show = |progress: VerifyProgress| view.show(progress);
    let report = tokio::select! {
        report = verify(request, components, &mut show) => report.map_err(|e| of_replay(&e)),
        () = signal.cancelled() => {
            Err(Failure::new(Status::Failed, "interrupted: nothing is proven"))
        }
    };
    view.clear();
    let report = report?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", as_json(&report, args.seed))?;
    } else {
        write!(out, "{}", as_text(&report, args.seed))?;
    }
    out.flush()?;
    match report.worst() {
        None => Ok(()),
        Some(severity) => {
            let (status, what) = match severity {
                Severity::Gap => (Status::Gap, "records are missing"),
                Severity::Corruption => (Status::Corrupt, "it is not what the log was"),
            };
            let all: u64 = report.counts.values().sum();
            Err(Failure::new(
                status,
                format!(
                    "the archive of {} does not hold: {what} ({})",
                    report.topic,
                    text::things(all, "finding")
                ),
            ))
        }
    }
}

/// A bar on a terminal, nothing in a pipe.
struct View {
    bar: Option<ProgressBar>,
    check: Option<Check>,
    began: Instant,
    drawn: Option<Instant>,
}

impl View {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = telemetry::bars().add(ProgressBar::new(1));
            if let Ok(style) = ProgressStyle::with_template("{bar:24} {percent:>3}%  {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(REDRAW);
            bar
        });
        Self {
            bar,
            check: None,
            began: Instant::now(),
            drawn: None,
        }
    }

    fn show(&mut self, progress: VerifyProgress) {
        let Some(bar) = &self.bar else { return };
        if self.check != Some(progress.check) {
            self.check = Some(progress.check);
            self.began = Instant::now();
        } else if self.drawn.is_some_and(|at| at.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        bar.set_length(progress.due.max(1));
        bar.set_position(progress.done.min(progress.due));
        let elapsed = self.began.elapsed();
        let left = progress.due.saturating_sub(progress.done);
        let eta = if progress.done > 0 && left > 0 {
            #[allow(clippy::cast_precision_loss, reason = "an estimate")]
            let share = left as f64 / progress.done as f64;
            let left = Duration::try_from_secs_f64(elapsed.as_secs_f64() * share);
            left.map_or_else(
                |_| String::new(),
                |left| format!("  ETA {}", text::duration(left)),
            )
        } else {
            String::new()
        };
        bar.set_message(format!(
            "{}  {} of {}  {}{eta}",
            progress.check.name(),
            text::count(progress.done),
            text::count(progress.due),
            text::rate(progress.done, elapsed),
        ));
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

const fn depth(report: &Report) -> &'static str {
    match report.depth {
        Depth::Quick => "quick",
        Depth::Sampled => "sampled",
        Depth::Full => "full",
    }
}

fn as_text(report: &Report, seed: u64) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    let snapshot = report.snapshot_id.map_or_else(
        || "no snapshot yet".to_owned(),
        |id| format!("snapshot {id}"),
    );
    let sample = if report.depth == Depth::Sampled {
        format!(", seed {seed}")
    } else {
        String::new()
    };
    line(format!(
        "{}  table {}, {snapshot}  ({}{sample}, {})",
        report.topic,
        report.table,
        depth(report),
        text::duration(report.took)
    ));
    line(String::new());
    for (check, outcome) in &report.checks {
        let found = report.findings.iter().any(|f| f.check == *check);
        let (mark, detail) = match outcome {
            _ if found => ("FAILED ", detail_of(outcome)),
            Outcome::Done { detail } => ("holds  ", detail.as_str()),
            Outcome::Skipped { reason } => ("skipped", reason.as_str()),
        };
        line(format!("  {mark}  {:10} {detail}", check.name()));
    }
    let mut rows = vec![
        [
            "GENERATION",
            "PARTITION",
            "ARCHIVED",
            "ROWS",
            "COMPARED WITH KAFKA",
            "SAME",
            "COMPACTED",
            "HASH",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for ((generation, partition), figures) in &report.partitions {
        let range = |range: Option<everlog_common::OffsetRange>| {
            range.map_or_else(|| "-".to_owned(), |r| r.to_string())
        };
        rows.push(vec![
            generation.to_string(),
            partition.to_string(),
            range(figures.covered),
            text::count(figures.rows),
            range(figures.compared),
            text::count(figures.same),
            text::count(figures.compacted),
            if figures.hash_proven { "proven" } else { "-" }.to_owned(),
        ]);
    }
    if rows.len() > 1 {
        line(String::new());
        for row in text::table(&rows, &[0, 1, 3, 5, 6]).lines() {
            line(format!("  {row}"));
        }
    }
    if !report.gaps.is_empty() {
        line(String::new());
        line("  Recorded gaps, which the ledger explains:".to_owned());
        for gap in &report.gaps {
            line(format!("    {gap}, noticed {}", text::time(gap.at)));
        }
    }
    if !report.findings.is_empty() {
        line(String::new());
        line("  Findings:".to_owned());
        for finding in &report.findings {
            line(format!("    {}: {}", finding.check.name(), finding.what));
            if let Some(log) = &finding.log {
                line(format!("      Kafka:   {log}"));
            }
            if let Some(archive) = &finding.archive {
                line(format!("      archive: {archive}"));
            }
        }
        let all: u64 = report.counts.values().sum();
        let more = all.saturating_sub(report.findings.len() as u64);
        if more > 0 {
            line(format!(
                "    and {} more (--findings N shows them)",
                text::count(more)
            ));
        }
    }
    line(String::new());
    line(if report.holds() {
        format!(
            "  All holds: {}, {} read, {} compared with Kafka.",
            text::things(report.files, "file"),
            text::things(report.rows_decoded, "row"),
            text::things(report.records_compared, "record"),
        )
    } else {
        "  It does not hold.".to_owned()
    });
    out
}

fn detail_of(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Done { detail } => detail,
        Outcome::Skipped { reason } => reason,
    }
}

fn as_json(report: &Report, seed: u64) -> Value {
    let checks: Vec<Value> = report
        .checks
        .iter()
        .map(|(check, outcome)| {
            let failed = report.findings.iter().any(|f| f.check == *check);
            let state = match outcome {
                _ if failed => "failed",
                Outcome::Done { .. } => "holds",
                Outcome::Skipped { .. } => "skipped",
            };
            json!({"name": check.name(), "state": state, "detail": detail_of(outcome)})
        })
        .collect();
    let partitions: Vec<Value> = report
        .partitions
        .iter()
        .map(|((generation, partition), f)| {
            json!({
                "generation": generation.0,
                "partition": partition.get(),
                "first": f.covered.map(|r| r.start().get()),
                "next": f.covered.map(|r| r.end().get()),
                "rows": f.rows,
                "compared": f.compared.map(|r| json!({"start": r.start().get(), "end": r.end().get()})),
                "same": f.same,
                "compacted": f.compacted,
                "hash_proven": f.hash_proven,
            })
        })
        .collect();
    let gaps: Vec<Value> = report
        .gaps
        .iter()
        .map(|gap| {
            json!({
                "generation": gap.generation.0,
                "partition": gap.partition.get(),
                "start": gap.start.get(),
                "end": gap.end.map(everlog_common::Offset::get),
                "reason": gap.reason.to_string(),
            })
        })
        .collect();
    let count = |severity| report.counts.get(&severity).copied().unwrap_or(0);
    json!({
        "version": 1,
        "topic": report.topic.as_str(),
        "table": report.table,
        "snapshot_id": report.snapshot_id,
        "depth": depth(report),
        "seed": seed,
        "holds": report.holds(),
        "files": report.files,
        "rows_decoded": report.rows_decoded,
        "records_compared": report.records_compared,
        "took_seconds": report.took.as_secs_f64(),
        "checks": checks,
        "partitions": partitions,
        "gaps": gaps,
        "findings_gap": count(Severity::Gap),
        "findings_corruption": count(Severity::Corruption),
        "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
    })
}

fn finding_json(finding: &Finding) -> Value {
    let place = finding.place;
    json!({
        "check": finding.check.name(),
        "severity": match finding.severity {
            Severity::Gap => "gap",
            Severity::Corruption => "corruption",
        },
        "generation": place.map(|(g, _, _)| g.0),
        "partition": place.map(|(_, p, _)| p.get()),
        "start": place.map(|(_, _, r)| r.start().get()),
        "end": place.map(|(_, _, r)| r.end().get()),
        "what": finding.what,
        "log": finding.log,
        "archive": finding.archive,
    })
}
