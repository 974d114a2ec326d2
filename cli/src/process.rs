//! `everlog process`: a job, over history and then live.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use clap::{Args, ValueEnum};
use everlog_common::{Millis, Source};
use everlog_kafka::client::KafkaLog;
use everlog_processor::job::{Job, JobError};
use everlog_processor::run::{
    self, Bound, Environment, Estimate, Numbers, Observer, Prepared, RunError, RunOptions, Summary,
};
use everlog_table::storage::Storage;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::components;
use crate::failure::{Failure, Status};
use crate::job::place;
use crate::settings::{Needs, Settings};
use crate::signals::Signals;
use crate::{telemetry, text};

/// Run a job: SQL over a topic, history first, then live, each row exactly once
///
/// The job's file says what it reads, its event time, its query, where rows go and where its state is (docs/jobs.md). It
/// runs until SIGTERM or Ctrl-C, then ends after a last checkpoint; killed at any instant, it goes on exactly. Nothing is
/// written to standard output; on a terminal a progress bar goes to standard error.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ProcessArgs {
    /// The job's file
    #[arg(value_name = "JOB.toml")]
    job: PathBuf,

    /// Check the job and end: everything that is wrong with it, or its plan, its columns, and what a replay would take
    #[arg(long, conflicts_with_all = ["until", "drain", "http"])]
    check: bool,

    /// Print the same job as a Flink SQL program and end; with --until now one that ends where the topic does
    #[arg(long, conflicts_with_all = ["check", "drain", "http"])]
    flink: bool,

    /// Where to end: now (the end of the live topic when the job starts) or snapshot (of the archive; needs no Kafka)
    ///
    /// Windows that are still open are kept: the next run goes on with them.
    #[arg(long, value_enum, value_name = "WHERE")]
    until: Option<UntilArg>,

    /// At that end, fire all windows as if event time had ended; the job takes no more records after that
    #[arg(long, requires = "until")]
    drain: bool,

    /// Serve /metrics, /healthz and /readyz at this address, such as 127.0.0.1:9465
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
}

const EXAMPLES: &str = "\
Examples:
  everlog process --check sessions.toml                 is it right, and how long will it take?
  everlog process sessions.toml                         run for months
  everlog process sessions.toml --until now             up to here, then end; the next run goes on
  everlog process sessions.toml --until now --drain     up to here, and close every window
  everlog process --flink sessions.toml > sessions.sql  the same on Flink
";

/// `--until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UntilArg {
    /// The end of the live topic.
    Now,
    /// The end of the archive.
    Snapshot,
}

/// What the options and the job's file mean, before any configuration is read.
#[derive(Debug)]
pub(crate) struct Asked {
    job: Job,
    mode: Mode,
    until: Bound,
    drain: bool,
    http: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Run,
    Check,
    Flink,
}

impl ProcessArgs {
    /// Whether it is more than a question.
    pub(crate) fn runs(&self) -> bool {
        !self.check && !self.flink
    }

    /// Reads the options and the job's file.
    pub(crate) fn asked(&self) -> Result<Asked, Failure> {
        let mode = match (self.check, self.flink) {
            (true, _) => Mode::Check,
            (_, true) => Mode::Flink,
            _ => Mode::Run,
        };
        if mode == Mode::Flink && self.until == Some(UntilArg::Snapshot) {
            return Err(Failure::usage(
                "--flink --until snapshot: Flink reads the topic and not the archive; write --until now, or nothing; see `everlog process --help`",
            ));
        }
        let job = Job::read(&self.job).map_err(|error| refused(&error, mode))?;
        Ok(Asked {
            job,
            mode,
            until: match self.until {
                None => Bound::Never,
                Some(UntilArg::Now) => Bound::Now,
                Some(UntilArg::Snapshot) => Bound::Snapshot,
            },
            drain: self.drain,
            http: self.http,
        })
    }
}

/// What is wrong with a job's file: all of it for who asks for that, else the first of it.
fn refused(error: &JobError, mode: Mode) -> Failure {
    if mode != Mode::Check || error.problems.len() < 2 {
        return Failure::usage(place::one_line(error));
    }
    for line in error.to_string().lines() {
        telemetry::notice(line);
    }
    Failure::usage(format!(
        "{}: {}",
        error.place,
        text::things(error.problems.len() as u64, "problem")
    ))
}

impl Asked {
    /// What the configuration must hold for it.
    pub(crate) fn needs(&self) -> Needs {
        let live = self.mode == Mode::Run && self.until != Bound::Snapshot;
        Needs {
            kafka: live,
            ..Needs::default()
        }
    }

    /// Threads that the job may use; none: as many as there are.
    pub(crate) fn threads(&self) -> Option<usize> {
        self.job.limits.threads
    }
}

/// Runs it. `settings` is asked for once the job was found right.
pub(crate) async fn run(
    asked: Asked,
    settings: impl FnOnce(Needs) -> Result<Settings, Failure>,
) -> Result<(), Failure> {
    let needs = asked.needs();
    match asked.mode {
        Mode::Check => Box::pin(check(asked, settings(needs))).await,
        Mode::Flink => flink(asked, settings(needs)).await,
        Mode::Run => Box::pin(process(asked, &settings(needs)?)).await,
    }
}

async fn check(asked: Asked, settings: Result<Settings, Failure>) -> Result<(), Failure> {
    let prepared = checked(asked.job).await?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", prepared.explain())?;
    // The job is right, whether or not there is an archive to look at.
    let estimated = match settings {
        Ok(settings) => estimate(prepared, &settings).await,
        Err(failure) => Err(failure),
    };
    match estimated {
        Ok(estimate) => write!(out, "{}", of_estimate(&estimate))?,
        Err(failure) => writeln!(out, "replay        not estimated: {failure}")?,
    }
    out.flush()?;
    Ok(())
}

async fn estimate(prepared: Prepared, settings: &Settings) -> Result<Estimate, Failure> {
    let environment = environment(prepared.job(), settings, true).await?;
    let estimated = prepared.estimate(&environment).await;
    estimated.map_err(|error| of_run(&error))
}

fn of_estimate(estimate: &Estimate) -> String {
    use std::fmt::Write as _;
    let mut said = format!(
        "replay        {} in {}, {}",
        text::things(estimate.records, "record"),
        text::things(estimate.files as u64, "file"),
        text::bytes(estimate.bytes)
    );
    if let Some(live) = estimate.live {
        let _ = write!(said, "; then {} in Kafka", text::things(live, "record"));
    }
    said.push('\n');
    let sample = &estimate.sample;
    if let Some(time) = estimate.time {
        let _ = writeln!(
            said,
            "time          {} at {}, as measured on the first {}",
            text::duration(time),
            text::rate(sample.records, sample.took),
            text::things(sample.records, "record")
        );
    }
    if let Some(first) = &sample.first_dead {
        let _ = writeln!(
            said,
            "unusable      {} of these, the first at {first}",
            text::count(sample.dead)
        );
    }
    if sample.late > 0 {
        let _ = writeln!(said, "too late      {} of these", text::count(sample.late));
    }
    said
}

async fn flink(asked: Asked, settings: Result<Settings, Failure>) -> Result<(), Failure> {
    let bounded = asked.until == Bound::Now;
    let prepared = checked(asked.job).await?;
    let kafka = match settings {
        Ok(settings) => settings.kafka.reveal().clone(),
        Err(failure) => {
            telemetry::notice(&format!(
                "note: the program says localhost:9092 for the brokers: {failure}"
            ));
            BTreeMap::new()
        }
    };
    let mut out = std::io::stdout().lock();
    let program = prepared
        .flink(&kafka, bounded)
        .map_err(|error| of_run(&error))?;
    out.write_all(program.as_bytes())?;
    out.flush()?;
    Ok(())
}

async fn checked(job: Job) -> Result<Prepared, Failure> {
    let scratch = scratch(&job.checkpoint.location);
    let outside = (components::clock(), components::ids());
    let prepared = Prepared::checked(job, &scratch, outside, variable).await;
    prepared.map_err(|error| of_run(&error))
}

async fn process(asked: Asked, settings: &Settings) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let environment = environment(&asked.job, settings, asked.until != Bound::Snapshot).await?;
    let prepared = Prepared::new(asked.job, &environment)
        .await
        .map_err(|error| of_run(&error))?;
    let id = prepared.id();
    info!(job = %id, output = %prepared.output(), "job begins");
    let observer = Arc::new(Observer::new(&id.name, &id.version));

    let served = CancellationToken::new();
    let mut server = JoinSet::new();
    if let Some(address) = asked.http {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::new(
                Status::Failed,
                format!("--http {address}: cannot listen there: {error}; set another address"),
            )
        })?;
        info!(address = %listener.local_addr()?, "serving /healthz, /readyz and /metrics");
        let (observer, served) = (Arc::clone(&observer), served.clone());
        server.spawn(async move {
            let ended = async move { served.cancelled().await };
            let serving = axum::serve(listener, router(observer));
            serving.with_graceful_shutdown(ended).await
        });
    }

    let began = Instant::now();
    let view = View::new(&observer);
    let options = RunOptions {
        until: asked.until,
        drain: asked.drain,
        observer: Arc::clone(&observer),
        stop: signals.token(),
    };
    let ended = run::run(prepared, environment, options).await;
    drop(view);
    served.cancel();
    server.shutdown().await;
    let summary = ended.map_err(|error| of_run(&error))?;
    telemetry::notice(&describe(&summary, began.elapsed()));
    Ok(())
}

fn describe(summary: &Summary, elapsed: Duration) -> String {
    let mut said = format!(
        "{} in {} ({}); so far {}, {} too late, {} unusable",
        text::things(summary.events, "event"),
        text::duration(elapsed),
        text::rate(summary.events, elapsed),
        text::things(summary.counts.rows, "row"),
        text::count(summary.counts.late),
        text::count(summary.counts.dead)
    );
    if !summary.gaps.is_empty() {
        said.push_str(", ");
        said.push_str(&text::things(summary.gaps.len() as u64, "gap"));
        said.push_str(" passed");
    }
    match summary.watermark_ms {
        Some(at) if !summary.drained => {
            said.push_str("; event time ");
            said.push_str(&text::time(Millis(at)));
        }
        _ => {}
    }
    if summary.drained {
        said.push_str("; every window is closed");
    }
    said
}

/// What the job works with.
async fn environment(job: &Job, settings: &Settings, live: bool) -> Result<Environment, Failure> {
    let mut kafka: BTreeMap<String, String> = settings.kafka.reveal().clone();
    let id = everlog_processor::state::JobId {
        name: job.name.to_string(),
        version: job.version.to_string(),
    };
    // Brokers can tell the job from live work, and set it a quota.
    kafka
        .entry("client.id".to_owned())
        .or_insert_with(|| run::client_id(&id));
    let is_configured = ["bootstrap.servers", "metadata.broker.list"]
        .iter()
        .any(|key| kafka.contains_key(*key));
    let log = if live && is_configured {
        let log = KafkaLog::connect(&kafka);
        let log =
            log.map_err(|error| Failure::from_error(Status::Usage, &error).while_doing("kafka"))?;
        Some(Arc::new(log) as Arc<dyn everlog_kafka::Log>)
    } else {
        None
    };
    let storage = Storage::from_properties(settings.catalog.properties.reveal());
    Ok(Environment {
        log,
        catalog: components::catalog(settings).await?,
        clock: components::clock(),
        ids: components::ids(),
        namespace: settings.catalog.namespace.clone(),
        kafka,
        storage: storage.map_err(|error| Failure::from_error(Status::Usage, &error))?,
        scratch: scratch(&job.checkpoint.location),
        variable,
    })
}

/// Where this machine keeps a job's state at work: beside its checkpoints where these are on this machine, else where the
/// system has room for what can be made again.
pub(crate) fn scratch(location: &str) -> PathBuf {
    if let Some(path) = location.strip_prefix("file://") {
        return Path::new(path).join(".local");
    }
    cache()
}

/// Where the system has room for what everlog can make again.
pub(crate) fn cache() -> PathBuf {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let cache = folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/tmp"));
    cache.join("everlog")
}

#[allow(
    clippy::disallowed_methods,
    reason = "a secret that a job's file or the configuration names"
)]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn router(observer: Arc<Observer>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(observer)
}

async fn healthz() -> &'static str {
    "running\n"
}

async fn readyz(State(observer): State<Arc<Observer>>) -> (StatusCode, &'static str) {
    match observer.numbers().tier {
        Some(_) => (StatusCode::OK, "ready\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not ready: opening\n"),
    }
}

async fn metrics(State(observer): State<Arc<Observer>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], observer.render_metrics()).into_response()
}

fn of_run(error: &RunError) -> Failure {
    Failure::from_error(Status::from_code(error.exit_status()), error)
}

/// A progress bar on a terminal, a line per gap everywhere.
struct View {
    bar: Option<ProgressBar>,
    _drawing: JoinSet<()>,
}

/// Between two changes of the bar.
const REDRAW: Duration = Duration::from_millis(200);

impl View {
    fn new(observer: &Arc<Observer>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = telemetry::bars().add(ProgressBar::new(1_000));
            bar.enable_steady_tick(REDRAW);
            bar
        });
        let mut drawing = JoinSet::new();
        drawing.spawn(draw(Arc::clone(observer), bar.clone()));
        Self {
            bar,
            _drawing: drawing,
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

async fn draw(observer: Arc<Observer>, bar: Option<ProgressBar>) {
    let mut gaps = 0;
    let mut has_end = None;
    loop {
        tokio::time::sleep(REDRAW).await;
        let numbers = observer.numbers();
        for gap in numbers.gaps.get(gaps..).unwrap_or_default() {
            telemetry::notice(&format!("gap passed: {gap}"));
        }
        gaps = numbers.gaps.len();
        let Some(bar) = &bar else { continue };
        let share = share(&numbers);
        if has_end != Some(share.is_some()) {
            has_end = Some(share.is_some());
            let template = match share {
                Some(_) => "{bar:12} {percent:>3}%  {wide_msg}",
                None => "{spinner} {wide_msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
        }
        if let Some(share) = share {
            bar.set_position(share);
        }
        bar.set_message(message(&numbers));
    }
}

/// How much of what there is to read is read, in thousandths; none where that is not known, or the job follows the topic.
fn share(numbers: &Numbers) -> Option<u64> {
    let left = numbers.left.or(numbers.eta.and(numbers.lag))?;
    Some(numbers.events.saturating_mul(1_000) / (numbers.events + left).max(1))
}

fn message(numbers: &Numbers) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people, never negative"
    )]
    let per_second = numbers.events_per_second as u64;
    let mut message = format!(
        "{} events  {}  {}",
        text::count(numbers.events),
        text::rate(per_second, Duration::from_secs(1)),
        match numbers.tier {
            Some(Source::Archive) => "archive",
            Some(Source::Live) => "live",
            None => "opening",
        }
    );
    if let Some(left) = numbers.eta {
        message.push_str("  ETA ");
        message.push_str(&text::duration(left));
    } else if let Some(lag) = numbers.lag.filter(|lag| *lag > 0) {
        message.push_str("  lag ");
        message.push_str(&text::count(lag));
    }
    message.push_str("  rows ");
    message.push_str(&text::count(numbers.counts.rows));
    message.push_str("  state ");
    message.push_str(&text::bytes(numbers.state_bytes));
    message.push_str("  epoch ");
    message.push_str(&numbers.epoch.to_string());
    if let Some(at) = numbers.watermark_ms {
        message.push_str("  at ");
        message.push_str(&text::time(Millis(at)));
    }
    // last: a narrow terminal cuts it off
    if let Some(by) = numbers.held_by {
        message.push_str("  waiting for partition ");
        message.push_str(&by.partition.to_string());
    }
    message
}

#[cfg(test)]
mod tests {
    use everlog_processor::registry::HeldBy;
    use everlog_processor::run::Sample;
    use everlog_processor::state::Counts;

    use super::*;

    #[test]
    fn the_bar_says_how_far_how_fast_and_who_holds_time_back() {
        let numbers = Numbers {
            tier: Some(Source::Archive),
            events: 1_234_567,
            events_per_second: 345_678.9,
            watermark_ms: Some(0),
            held_by: Some(HeldBy {
                generation: 0,
                partition: 3,
                watermark_ms: Some(0),
            }),
            left: Some(1_234_567),
            eta: Some(Duration::from_secs(12)),
            state_bytes: 2_048,
            epoch: 7,
            counts: Counts {
                rows: 1_000,
                late: 0,
                dead: 0,
            },
            ..Numbers::default()
        };
        assert_eq!(
            message(&numbers),
            "1,234,567 events  345,000/s  archive  ETA 12 s  rows 1,000  state 2.0 KiB  epoch 7  at 1970-01-01T00:00:00.000Z  waiting for partition 3"
        );
        assert_eq!(share(&numbers), Some(500));
        assert_eq!(share(&Numbers::default()), None);
    }

    #[test]
    fn the_summary_says_what_was_done_and_where_time_is() {
        let summary = Summary {
            events: 500,
            epochs: 3,
            rolled_forward: 0,
            counts: Counts {
                rows: 7,
                late: 1,
                dead: 0,
            },
            watermark_ms: Some(0),
            drained: false,
            gaps: vec!["one".to_owned()],
        };
        assert_eq!(
            describe(&summary, Duration::from_secs(2)),
            "500 events in 2.0 s (250/s); so far 7 rows, 1 too late, 0 unusable, 1 gap passed; event time 1970-01-01T00:00:00.000Z"
        );
        let drained = Summary {
            drained: true,
            watermark_ms: None,
            gaps: Vec::new(),
            ..summary
        };
        assert_eq!(
            describe(&drained, Duration::from_secs(2)),
            "500 events in 2.0 s (250/s); so far 7 rows, 1 too late, 0 unusable; every window is closed"
        );
    }

    #[test]
    fn an_estimate_says_how_much_how_long_and_what_cannot_be_used() {
        let estimate = Estimate {
            files: 3,
            bytes: 5 << 20,
            records: 1_000_000,
            live: Some(17),
            sample: Sample {
                records: 200_000,
                took: Duration::from_secs(2),
                dead: 2,
                first_dead: Some("partition 0 offset 7: no JSON".to_owned()),
                late: 0,
            },
            time: Some(Duration::from_secs(10)),
        };
        assert_eq!(
            of_estimate(&estimate),
            "replay        1,000,000 records in 3 files, 5.0 MiB; then 17 records in Kafka\n\
             time          10 s at 100,000/s, as measured on the first 200,000 records\n\
             unusable      2 of these, the first at partition 0 offset 7: no JSON\n"
        );
    }

    #[test]
    fn state_at_work_is_beside_local_checkpoints() {
        assert_eq!(
            scratch("file:///var/lib/everlog/jobs"),
            Path::new("/var/lib/everlog/jobs/.local")
        );
        assert!(scratch("s3://lake/jobs").ends_with("everlog"));
    }
}
