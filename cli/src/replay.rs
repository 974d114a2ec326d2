//! `everlog replay`: history in order, then the live topic.

use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args, ValueEnum};
use everlog_common::{Source, TopicName};
use everlog_replayer::output::OutputTarget;
use everlog_replayer::output::json::Encoding;
use everlog_replayer::request::{
    From, OnGap, Order, ReplayRequest, Until, parse_partitions, parse_timestamp,
};
use everlog_replayer::session::{Session, SessionError, SessionOptions, Step, Summary};
use everlog_replayer::{Components, Progress, ReplayError};
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tracing::info;

use crate::components;
use crate::failure::{Failure, Status};
use crate::settings::{Needs, Settings};
use crate::signals::Signals;
use crate::{telemetry, text};

/// Replay a topic in order: history from its table, then, without gap or duplicate, the live topic
///
/// Reads from the archive up to the offsets of its newest snapshot, and from Kafka from exactly there. Without options: from
/// the beginning until what Kafka ended with when the replay began. Events go to standard output as JSON lines in kcat's
/// form with `generation` and `source` added; on a terminal a progress bar goes to standard error.
#[derive(Debug, Args)]
#[command(
    after_long_help = EXAMPLES,
    group(ArgGroup::new("history").args(["snapshot", "as_of", "tag"]))
)]
pub(crate) struct ReplayArgs {
    /// The topic
    topic: TopicName,

    /// Where to begin: beginning, offset:N (of the newest generation), offset:GENERATION:N, timestamp:RFC3339
    ///
    /// A timestamp means the first visible record at or after it, in either tier, out-of-order timestamps included.
    #[arg(long, value_name = "WHERE", default_value = "beginning")]
    from: String,

    /// Where to end, exclusive: snapshot, now, offset:N, timestamp:RFC3339 [default: now]
    ///
    /// `snapshot` ends with the archive and needs no Kafka; it is the default with --snapshot, --as-of and --tag. `now` is
    /// the end of the live topic when the replay begins.
    #[arg(long, value_name = "WHERE")]
    until: Option<String>,

    /// Never end: go on with the live topic
    #[arg(long, conflicts_with = "until")]
    follow: bool,

    /// Read this snapshot
    #[arg(long, value_name = "ID", value_parser = snapshot_id)]
    snapshot: Option<i64>,

    /// Read the snapshot that was the newest then
    #[arg(long, value_name = "RFC3339")]
    as_of: Option<String>,

    /// Read the snapshot that a tag or branch points at
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,

    /// Only these partitions, like 0,3-5
    #[arg(long, value_name = "LIST")]
    partitions: Option<String>,

    /// partition: batches of partitions interleave freely; time: merged by timestamp
    ///
    /// Within a partition the order is always the log's. By time it is total within one snapshot, ties by partition and
    /// offset, and the order of arrival in the live topic.
    #[arg(long, value_name = "ORDER", default_value = "partition")]
    order: String,

    /// So many events a second, at most
    #[arg(long, value_name = "N", value_parser = events_per_second)]
    rate: Option<NonZeroU64>,

    /// Keep the position in this file, and go on from it: exactly once for jsonl:PATH, kafka:TOPIC and count
    ///
    /// Killed at any instant and run again, the replay goes on. Standard output is at least once: the position is saved after
    /// the flush.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,

    /// At a recorded gap: pass it with a line on standard error, or stop with exit status 3
    #[arg(long, value_name = "WAY", default_value = "pass")]
    on_gap: String,

    /// Whether to hold the snapshot against expiry by a tag
    #[arg(long, value_enum, default_value = "auto")]
    lease: Lease,

    /// How bytes become JSON strings: text (an error where they are not UTF-8) or base64
    #[arg(long, value_name = "ENCODING", default_value = "text")]
    encoding: String,

    /// Where events go: jsonl, jsonl:PATH, kafka:TOPIC, or count (prints how many there were)
    #[arg(long, value_name = "OUTPUT", default_value = "jsonl")]
    output: String,
}

fn events_per_second(text: &str) -> Result<NonZeroU64, String> {
    text.parse()
        .map_err(|_| "write a number of events a second, 1 or more".to_owned())
}

/// The id of a snapshot, which `everlog status` shows.
pub(crate) fn snapshot_id(text: &str) -> Result<i64, String> {
    text.parse()
        .map_err(|_| "a snapshot's id is a number: `everlog status TOPIC` shows it".to_owned())
}

const EXAMPLES: &str = "\
Examples:
  everlog replay orders --follow                                   everything, then live, for ever
  everlog replay orders --from timestamp:2026-01-31T08:00:00Z --until timestamp:2026-01-31T09:00:00Z
  everlog replay orders --until snapshot --output count            how many events are archived
  everlog replay orders --as-of 2026-01-31T08:00:00Z               as the archive was then
  everlog replay orders --output kafka:orders.copy --resume pos    exactly once, however often it is killed
";

/// `--lease`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lease {
    /// Where the catalog lets us write.
    Auto,
    /// Never.
    Off,
}

/// What the options mean, before any configuration is read.
#[derive(Debug)]
pub(crate) struct Asked {
    request: ReplayRequest,
    output: OutputTarget,
    encoding: Encoding,
    resume: Option<PathBuf>,
}

impl ReplayArgs {
    /// Reads the options.
    pub(crate) fn asked(&self) -> Result<Asked, Failure> {
        let selector = match (self.snapshot, &self.as_of, &self.tag) {
            (Some(id), _, _) => SnapshotSelector::Id(id),
            (_, Some(at), _) => {
                SnapshotSelector::AsOf(parse_timestamp("--as-of", at, at).map_err(wrong)?)
            }
            (_, _, Some(tag)) => SnapshotSelector::Tag(tag.clone()),
            (None, None, None) => SnapshotSelector::Current,
        };
        let until: Option<Until> = self
            .until
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(wrong)?;
        let until = Until::resolve(until, self.follow, &selector).map_err(wrong)?;
        let partitions = self
            .partitions
            .as_deref()
            .map(parse_partitions)
            .transpose()
            .map_err(wrong)?;
        let request = ReplayRequest {
            from: self.from.parse::<From>().map_err(wrong)?,
            until,
            selector,
            partitions,
            order: self.order.parse::<Order>().map_err(wrong)?,
            rate: self.rate,
            on_gap: self.on_gap.parse::<OnGap>().map_err(wrong)?,
            lease: match self.lease {
                Lease::Auto => LeaseMode::Auto,
                Lease::Off => LeaseMode::Off,
            },
            ..ReplayRequest::new(self.topic.clone())
        };
        request.validate().map_err(wrong)?;
        Ok(Asked {
            request,
            output: self.output.parse().map_err(wrong)?,
            encoding: self.encoding.parse().map_err(wrong)?,
            resume: self.resume.clone(),
        })
    }
}

fn wrong(error: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{error}; see `everlog replay --help`"))
}

impl Asked {
    /// What the configuration must hold for it.
    pub(crate) fn needs(&self) -> Needs {
        Needs {
            kafka: self.request.is_live() || matches!(self.output, OutputTarget::Topic(_)),
            ..Needs::default()
        }
    }
}

/// Runs it.
pub(crate) async fn run(asked: Asked, settings: &Settings) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let signal = signals.token();
    let log = if asked.request.is_live() {
        Some(components::log(settings)?)
    } else {
        None
    };
    let components = Components {
        log,
        catalog: components::catalog(settings).await?,
        clock: components::clock(),
        ids: components::ids(),
        namespace: settings.catalog.namespace.clone(),
    };
    let mut request = asked.request;
    request.memory_bytes = usize::try_from(settings.replay.memory).unwrap_or(usize::MAX);
    request.threads = settings.replay.threads;
    let options = SessionOptions {
        output: asked.output.clone(),
        encoding: asked.encoding,
        resume: asked.resume,
        kafka: settings.kafka.reveal().clone(),
    };

    let began = Instant::now();
    // A signal that comes while it opens ends it at once: nothing has been read or written yet.
    let mut session = tokio::select! {
        opened = Session::open(request, components, options) => opened.map_err(|e| of_session(&e))?,
        () = signal.cancelled() => return Ok(()),
    };
    info!(run_id = %session.run_id(), "replay begins");
    let mut view = View::new(&asked.output);
    let ended = loop {
        let step = session.step(&signal).await;
        view.show(&session);
        match step {
            Ok(Step::Emitted(_)) => {}
            Ok(Step::Ended | Step::Cancelled) => break Ok(()),
            Err(error) => break Err(of_session(&error)),
        }
    };
    view.clear();
    let summary = session.close().await;
    ended?;
    if asked.output == OutputTarget::Count {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", summary.events)?;
        out.flush()?;
    }
    telemetry::notice(&describe(&summary, began.elapsed(), &view));
    Ok(())
}

fn describe(summary: &Summary, elapsed: Duration, view: &View) -> String {
    let bytes = summary
        .bytes
        .map(|b| format!(", {}", text::bytes(b)))
        .unwrap_or_default();
    let before = summary.events.saturating_sub(view.events);
    let before = if before > 0 {
        format!(", {} of them in earlier runs", text::count(before))
    } else {
        String::new()
    };
    let gaps = if view.gaps > 0 {
        format!(", {} passed", text::things(view.gaps as u64, "gap"))
    } else {
        String::new()
    };
    format!(
        "{}{bytes} in {} ({}){before}{gaps}",
        text::things(summary.events, "event"),
        text::duration(elapsed),
        text::rate(view.events, elapsed)
    )
}

/// What people see while it runs: a bar on a terminal, a line per gap everywhere.
struct View {
    bar: Option<ProgressBar>,
    has_end: Option<bool>,
    gaps: usize,
    events: u64,
    drawn: Option<Instant>,
    shown: Arc<Mutex<Option<(Instant, Progress)>>>,
    /// Says so where nothing comes any more.
    ticker: JoinSet<()>,
}

/// Between two changes of the bar.
const REDRAW: Duration = Duration::from_millis(100);
/// A tail that is silent for so long has no rate to show.
const QUIET: Duration = Duration::from_secs(2);

impl View {
    fn new(output: &OutputTarget) -> Self {
        let stdout_is_shown = *output == OutputTarget::Stdout && std::io::stdout().is_terminal();
        let bar = (std::io::stderr().is_terminal() && !stdout_is_shown).then(|| {
            let bar = telemetry::bars().add(ProgressBar::new(1_000));
            bar.enable_steady_tick(REDRAW);
            bar
        });
        let shown = Arc::default();
        let mut ticker = JoinSet::new();
        if let Some(bar) = &bar {
            ticker.spawn(say_when_quiet(bar.clone(), Arc::clone(&shown)));
        }
        Self {
            bar,
            has_end: None,
            gaps: 0,
            events: 0,
            drawn: None,
            shown,
            ticker,
        }
    }

    fn show(&mut self, session: &Session) {
        let gaps = session.gaps_passed();
        for gap in gaps.get(self.gaps..).unwrap_or_default() {
            telemetry::notice(&format!("gap passed: {gap}"));
        }
        self.gaps = gaps.len();
        let progress = session.progress();
        self.events = progress.events;
        let Some(bar) = &self.bar else {
            return;
        };
        if self.drawn.is_some_and(|at| at.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        let has_end = progress.share.is_some();
        if self.has_end != Some(has_end) {
            self.has_end = Some(has_end);
            let template = if has_end {
                "{bar:12} {percent:>3}%  {wide_msg}"
            } else {
                "{spinner} {wide_msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
        }
        if let Some(share) = progress.share {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped to 0..=1000 right here"
            )]
            bar.set_position((share.clamp(0.0, 1.0) * 1_000.0) as u64);
        }
        bar.set_message(message(&progress, None));
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), progress));
    }

    fn clear(&mut self) {
        self.ticker.abort_all();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The step that waits for the next batch cannot draw meanwhile.
async fn say_when_quiet(bar: ProgressBar, shown: Arc<Mutex<Option<(Instant, Progress)>>>) {
    loop {
        tokio::time::sleep(QUIET / 2).await;
        let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, progress)) = &*shown
            && at.elapsed() >= QUIET
        {
            bar.set_message(message(progress, Some(at.elapsed())));
        }
    }
}

/// `quiet`: how long nothing came.
fn message(progress: &Progress, quiet: Option<Duration>) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people, never negative"
    )]
    let per_second = progress.events_per_second as u64;
    let rate = match quiet {
        None => text::rate(per_second, Duration::from_secs(1)),
        Some(quiet) => format!(
            "nothing for {}",
            text::duration(Duration::from_secs(quiet.as_secs()))
        ),
    };
    let mut message = format!(
        "{} events  {rate}  {}",
        text::count(progress.events),
        match progress.tier {
            Source::Archive => "archive",
            Source::Live => "live",
        }
    );
    if let Some(left) = progress.left.filter(|_| quiet.is_none()) {
        message.push_str("  ETA ");
        message.push_str(&text::duration(left));
    }
    // last: a narrow terminal cuts it off
    if let Some(time) = progress.time {
        message.push_str("  at ");
        message.push_str(&text::time(time));
    }
    message
}

fn of_session(error: &SessionError) -> Failure {
    if error.is_broken_pipe() {
        return Failure::BrokenPipe;
    }
    Failure::from_error(Status::from_code(error.exit_status()), error)
}

/// A failure of a replay without output, as the demo has them.
pub(crate) fn of_replay(error: &ReplayError) -> Failure {
    Failure::from_error(Status::from_code(error.exit_status()), error)
}

#[cfg(test)]
mod tests {
    use everlog_common::Millis;

    use super::*;

    #[test]
    fn the_bar_says_how_many_how_fast_where_and_how_long() {
        let progress = Progress {
            tier: Source::Archive,
            events: 1_234_567,
            events_per_second: 345_678.9,
            time: Some(Millis(0)),
            events_left: Some(10),
            share: Some(0.5),
            left: Some(Duration::from_secs(12)),
        };
        assert_eq!(
            message(&progress, None),
            "1,234,567 events  345,000/s  archive  ETA 12 s  at 1970-01-01T00:00:00.000Z"
        );
        assert_eq!(
            message(&progress, Some(Duration::from_secs(7))),
            "1,234,567 events  nothing for 7.0 s  archive  at 1970-01-01T00:00:00.000Z"
        );
    }

    #[test]
    fn the_summary_tells_runs_and_gaps_apart() {
        let view = View {
            bar: None,
            has_end: None,
            gaps: 1,
            events: 200,
            drawn: None,
            shown: Arc::default(),
            ticker: JoinSet::new(),
        };
        let summary = Summary {
            events: 500,
            bytes: Some(2_048),
        };
        assert_eq!(
            describe(&summary, Duration::from_secs(2), &view),
            "500 events, 2.0 KiB in 2.0 s (100/s), 300 of them in earlier runs, 1 gap passed"
        );
    }
}
