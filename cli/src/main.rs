//! everlog: Kafka and Iceberg as one log.
//!
//! One file per command, each a list of the calls that wire settings to components. What they share:
//!
//! - [`settings`]: the configuration, all problems at once
//! - [`failure`]: exit status and the one line on standard error
//! - [`telemetry`], [`signals`]: logs, and an orderly end
//!
//! Standard output is for data, standard error for everything said about it.

#![allow(
    clippy::print_stderr,
    reason = "the one line about a failure goes to standard error"
)]

mod archive;
mod compare;
mod components;
mod config;
mod demo;
mod failure;
mod job;
mod kill;
mod maintain;
mod process;
mod promote;
mod replay;
mod schema;
mod settings;
mod signals;
mod sql;
mod status;
mod telemetry;
mod text;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use failure::{Failure, Status};
use settings::Needs;
use telemetry::LogFormat;

/// For the C libraries as well. The system's allocator keeps what batches of all sizes leave behind, thread by thread:
/// an archiver that runs for months would hold much more than its budget.
#[cfg(not(test))] // tests count what parsers take
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One arena, since columns are made by one thread and dropped by another, and what is free goes back soon: a replay and
/// an archiver then take what their budgets say. In huge pages where the kernel has them: columns are made and dropped at
/// gigabytes a second, and each small page of them would be a fault. `MALLOC_CONF` in the environment goes before.
#[allow(unsafe_code, reason = "the allocator looks for a symbol of this name")]
// SAFETY: the type is a thin pointer to a text that ends with a zero, as the allocator expects.
#[unsafe(export_name = "malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 101] =
    b"narenas:1,thp:always,oversize_threshold:0,dirty_decay_ms:100,muzzy_decay_ms:0,background_thread:true\0";

/// The archiver's threads for what may block: requests to brokers, hashing, encoding, files. Each keeps memory of its own that
/// no budget counts, and as many tables as there are may commit at once. More than the requests to brokers that run at once, and
/// than the encoders, which wait for their files to be written.
const BLOCKING_THREADS: usize = 64;

/// Kafka and Iceberg as one log: archive every record exactly once, replay it, go on live
#[derive(Debug, Parser)]
#[command(name = "everlog", bin_name = "everlog", version, max_term_width = 100, after_long_help = AFTER_HELP)]
struct Cli {
    /// The configuration; without it everlog.toml in the working directory, and the environment
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// How log lines look; they go to standard error
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,

    /// error, warn, info, debug, trace, or a filter like everlog_archiver=debug; wins over RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit status:
  0  done
  1  failed
  2  bad usage or configuration
  3  a gap: Kafka deleted records before they were archived
  4  corrupt data
  5  another writer: fenced, or a foreign change to the table
  130  ended at once by a second SIGTERM or Ctrl-C, without a last commit

Every value of the configuration can be set as EVERLOG_<SECTION>__<KEY>, for instance
EVERLOG_KAFKA__BOOTSTRAP_SERVERS=broker:9092.

Examples:
  everlog config print --default > everlog.toml    a file to begin with
  everlog config check                             is it right?
";

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Archive(archive::ArchiveArgs),
    Replay(replay::ReplayArgs),
    Verify(verify::VerifyArgs),
    Status(status::StatusArgs),
    Process(process::ProcessArgs),
    Sql(sql::SqlArgs),
    Schema(schema::SchemaArgs),
    Compare(compare::CompareArgs),
    Promote(promote::PromoteArgs),
    Rollback(promote::RollbackArgs),
    Job(job::JobArgs),
    Maintain(maintain::MaintainArgs),
    Config(config::ConfigArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let format = cli.log_format;
    match run(cli) {
        Ok(()) | Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(Failure::Reported { status, message }) => {
            report(format, status, &message);
            ExitCode::from(status.code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    #[allow(
        clippy::disallowed_methods,
        reason = "the environment is read here and judged in settings"
    )]
    let document = || settings::read(cli.config.as_deref(), std::env::vars_os());
    let command = match &cli.command {
        Command::Config(args) => return config::run(args, document),
        command => command,
    };
    // A long-running process tells what it does; a command that answers a question has one line about a failure.
    let level = match command {
        Command::Archive(_) => "info",
        Command::Process(args) if args.runs() => "info",
        Command::Replay(_) | Command::Sql(_) | Command::Schema(_) => "warn",
        _ => "off",
    };
    telemetry::start(cli.log_format, cli.log_level.as_deref(), level)?;
    kill::arm_kill_at()?;
    let settings = |needs| Ok::<_, Failure>(document()?.settings(needs)?);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(command, Command::Archive(_)) {
        runtime.max_blocking_threads(BLOCKING_THREADS);
    }
    let mut job = None;
    if let Command::Process(args) = command {
        let asked = args.asked()?;
        if let Some(threads) = asked.threads() {
            runtime.worker_threads(threads);
        }
        job = Some(asked);
    }
    let runtime = runtime.enable_all().build()?;
    let ended = runtime.block_on(async {
        match command {
            Command::Demo(args) => demo::run(args).await,
            Command::Archive(args) => archive::run(args, &settings(Needs::ALL)?).await,
            Command::Replay(args) => {
                let asked = args.asked()?;
                let settings = settings(asked.needs())?;
                replay::run(asked, &settings).await
            }
            Command::Verify(args) => verify::run(args, &settings(Needs::default())?).await,
            Command::Status(args) => status::run(args, &settings(Needs::default())?).await,
            Command::Process(_) => match job {
                Some(asked) => Box::pin(process::run(asked, settings)).await,
                None => Ok(()),
            },
            Command::Sql(args) => {
                let asked = args.asked()?;
                let settings = settings(Needs::default())?;
                Box::pin(sql::run(asked, &settings)).await
            }
            Command::Schema(args) => {
                let settings = settings(Needs::default())?;
                Box::pin(schema::run(args, &settings)).await
            }
            Command::Compare(args) => compare::run(args, &settings(Needs::default())?).await,
            Command::Promote(args) => promote::promote(args, &settings(Needs::default())?).await,
            Command::Rollback(args) => promote::rollback(args, &settings(Needs::default())?).await,
            Command::Job(args) => job::run(args, &settings(Needs::default())?).await,
            Command::Maintain(args) => maintain::run(args, &settings(Needs::default())?).await,
            Command::Config(_) => Ok(()),
        }
    });
    // Everything that must end in order has; a request that a broker does not answer is not waited for.
    runtime.shutdown_background();
    ended
}

/// The one line about a failure; as JSON where the log is.
fn report(format: LogFormat, status: Status, message: &str) {
    telemetry::bars().clear().ok();
    match format {
        LogFormat::Text => telemetry::notice(&format!("error: {message}")),
        LogFormat::Json => telemetry::notice(
            &serde_json::json!({
                "level": "ERROR",
                "message": message,
                "exit_status": status.code(),
            })
            .to_string(),
        ),
    }
}

/// What clap found: help and version are no errors, the rest is one line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody to read the help is no failure.
            error.print().ok();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            telemetry::notice("error: no command was given; `everlog --help` lists them");
            return ExitCode::from(Status::Usage.code());
        }
        _ => {}
    }
    telemetry::notice(&format!(
        "error: {}",
        usage_line(
            &error.render().to_string(),
            &addressed(std::env::args().skip(1))
        )
    ));
    ExitCode::from(Status::Usage.code())
}

/// The command that the words call, whatever is wrong with its options.
fn addressed(words: impl Iterator<Item = String>) -> String {
    let mut command = Cli::command();
    let mut path = "everlog".to_owned();
    for word in words {
        if let Some(sub) = command.find_subcommand(&word).cloned() {
            path = format!("{path} {word}");
            command = sub;
        }
    }
    path
}

/// Clap's several lines as one: what is wrong, its tip, and where to read on.
fn usage_line(rendered: &str, addressed: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut command = addressed.to_owned();
    for line in rendered.lines().map(str::trim) {
        if let Some(usage) = line.strip_prefix("Usage: ") {
            let words: Vec<&str> = usage
                .split_whitespace()
                .take_while(|w| !w.starts_with(['-', '<', '[']))
                .filter(|w| w.bytes().all(|b| b.is_ascii_lowercase()))
                .collect();
            if !words.is_empty() {
                command = words.join(" ");
            }
        } else if !line.is_empty() && !line.starts_with("For more information") {
            parts.push(line.strip_prefix("error: ").unwrap_or(line));
        }
    }
    let what = parts.join("; ").replace(":; ", ": ");
    format!("{what}; see `{command} --help`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_usage_error_is_one_line() {
        let error = Cli::try_parse_from(["everlog", "config", "print", "--defalt"]).unwrap_err();
        let line = usage_line(&error.render().to_string(), "everlog");
        assert_eq!(
            line,
            "unexpected argument '--defalt' found; tip: a similar argument exists: '--default'; see `everlog config print --help`"
        );
        let words = ["everlog", "replay", "orders", "--rate", "0"];
        let error = Cli::try_parse_from(words).unwrap_err();
        let called = addressed(words.into_iter().skip(1).map(str::to_owned));
        assert_eq!(
            usage_line(&error.render().to_string(), &called),
            "invalid value '0' for '--rate <N>': write a number of events a second, 1 or more; see `everlog replay --help`"
        );
    }
}
