//! `everlog sql`: questions to the lake, one shot, by a script, or in a shell.

mod answer;
mod commands;
mod kafka;
mod names;
mod shell;
mod view;

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use everlog_common::units::{parse_bytes, parse_duration};
use everlog_query::output::{Format, OutputError};
use everlog_query::{
    AsOf, Lake, Limits, NamedFile, QueryError, QueryErrorKind, Session, SessionOptions, script,
};
use everlog_replayer::request::parse_timestamp;

use self::answer::{Destination, Shown};
use crate::failure::{Failure, Status};
use crate::replay::snapshot_id;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::{components, schema, text};

/// Ask the lake in SQL: as it is, as it was, and with what Kafka holds beyond it
///
/// Every archive and every job's output in the namespace is a table (docs/sql.md). Reading is all that is possible. Without a
/// statement, standard input is read; on a terminal a shell begins, where `\?` helps.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct SqlArgs {
    /// One statement, or several with semicolons between them
    #[arg(value_name = "STATEMENT", conflicts_with = "file")]
    statement: Option<String>,

    /// Run the statements of a file, one after the other; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// How answers are written [default: what the ending of --out says, else table]
    ///
    /// A table is for people, whether on a terminal or not; the others are for programs.
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<FormatArg>,

    /// Write the answer to this file: it appears when it is whole
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Ask every table as it was then
    #[arg(long, value_name = "RFC3339", conflicts_with_all = ["snapshot", "tag", "live"])]
    as_of: Option<String>,

    /// Ask every table at this snapshot
    #[arg(long, value_name = "ID", value_parser = snapshot_id, conflicts_with_all = ["tag", "live"])]
    snapshot: Option<i64>,

    /// Ask every table at the snapshot that this tag or branch points at
    #[arg(long, value_name = "NAME", conflicts_with = "live")]
    tag: Option<String>,

    /// Let a local CSV, JSON lines or Parquet file be a table; may be given several times
    #[arg(long = "table", value_name = "NAME=PATH", value_parser = named_file)]
    tables: Vec<NamedFile>,

    /// Ask archives together with what Kafka holds beyond them, up to its end when the query begins
    #[arg(long)]
    live: bool,

    /// What sorts, joins and groups may hold in memory before they go to disk [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,

    /// End a query that takes longer, such as 30s
    #[arg(long, value_name = "DURATION", value_parser = time_limit)]
    timeout: Option<Duration>,

    /// End a query whose answer has more rows
    #[arg(long, value_name = "N")]
    max_rows: Option<u64>,

    /// Threads that work on a query [default: as many as there are cores]
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<usize>,
}

const EXAMPLES: &str = "\
Examples:
  everlog sql                                                    a shell
  everlog sql 'SELECT count(*) FROM orders'
  everlog sql --live 'SELECT count(*) FROM orders'               with what Kafka holds beyond the archive
  everlog sql --as-of 2026-01-31T08:00:00Z 'SELECT count(*) FROM orders'
  everlog sql --format parquet --out day.parquet \"SELECT * FROM orders WHERE timestamp >= '2026-01-31'\"
  everlog sql --table users=users.csv 'SELECT * FROM users'
  everlog sql -f report.sql --format csv > report.csv
";

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// Aligned columns.
    Table,
    /// RFC 4180; null is nothing, an empty text is "".
    Csv,
    /// One JSON object a row; bytes are base64.
    Jsonl,
    /// A Parquet file.
    Parquet,
    /// Arrow IPC: a file with --out, a stream on standard output.
    Arrow,
}

impl FormatArg {
    /// What a file whose name ends so holds.
    fn of_ending(ending: &str) -> Option<Self> {
        Some(match ending.to_ascii_lowercase().as_str() {
            "csv" => Self::Csv,
            "jsonl" | "ndjson" => Self::Jsonl,
            "parquet" => Self::Parquet,
            "arrow" => Self::Arrow,
            _ => return None,
        })
    }

    fn of(self, is_file: bool) -> Format {
        match self {
            Self::Table => Format::Table,
            Self::Csv => Format::Csv,
            Self::Jsonl => Format::Jsonl,
            Self::Parquet => Format::Parquet,
            Self::Arrow if is_file => Format::ArrowFile,
            Self::Arrow => Format::ArrowStream,
        }
    }
}

fn named_file(text: &str) -> Result<NamedFile, String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok(NamedFile {
            name: name.to_owned(),
            path: PathBuf::from(path),
        }),
        _ => Err("write a name and a path, such as users=users.csv".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err("write a size, such as 512MiB".to_owned()),
        bytes => Ok(bytes),
    }
}

fn time_limit(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("write a duration, such as 30s".to_owned()),
        limit => Ok(limit),
    }
}

/// More threads than this help nobody.
const THREADS_MAX: usize = 1_024;

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=THREADS_MAX).contains(&threads) => Ok(threads),
        _ => Err(format!("write a number of threads from 1 to {THREADS_MAX}")),
    }
}

/// What the options mean, before any configuration is read.
#[derive(Debug)]
pub(crate) struct Asked {
    input: Input,
    shown: Shown,
    options: SessionOptions,
}

#[derive(Debug)]
enum Input {
    Statements(Vec<String>),
    Shell,
}

impl SqlArgs {
    /// Reads the options, and the script.
    pub(crate) fn asked(&self) -> Result<Asked, Failure> {
        let as_of = match (&self.as_of, self.snapshot, &self.tag) {
            (Some(at), _, _) => Some(AsOf::Time(
                parse_timestamp("--as-of", at, at).map_err(|error| wrong(&error.to_string()))?,
            )),
            (_, Some(id), _) => Some(AsOf::Snapshot(id)),
            (_, _, Some(tag)) => Some(AsOf::Tag(tag.clone())),
            (None, None, None) => None,
        };
        let ending = self.out.as_deref().and_then(Path::extension);
        let format = self
            .format
            .or_else(|| FormatArg::of_ending(ending?.to_str()?))
            .unwrap_or(FormatArg::Table)
            .of(self.out.is_some());
        let destination = match &self.out {
            Some(path) => Destination::File(path.clone()),
            None => Destination::Stdout,
        };
        if destination == Destination::Stdout
            && format.is_binary()
            && std::io::stdout().is_terminal()
        {
            return Err(wrong(
                "this format is not for a terminal: give --out FILE, or a pipe",
            ));
        }
        let input = self.input(&destination, format)?;
        let defaults = Limits::default();
        Ok(Asked {
            input,
            shown: Shown {
                format,
                destination,
            },
            options: SessionOptions {
                as_of,
                live: self.live,
                files: self.tables.clone(),
                limits: Limits {
                    memory: self.memory.unwrap_or(defaults.memory),
                    timeout: self.timeout,
                    max_rows: self.max_rows,
                    threads: self.threads.unwrap_or(defaults.threads),
                    ..defaults
                },
            },
        })
    }

    fn input(&self, destination: &Destination, format: Format) -> Result<Input, Failure> {
        let standard_input = Path::new("-");
        let (from, text) = match (&self.statement, &self.file) {
            (Some(statement), _) => ("the statement".to_owned(), statement.clone()),
            (None, Some(path)) if path != standard_input => {
                let from = path.display().to_string();
                let file = std::fs::File::open(path)
                    .map_err(|error| wrong(&format!("--file {from}: {error}")))?;
                let text = read(file, &from)?;
                (from, text)
            }
            (None, file) => {
                let stdin = std::io::stdin();
                if file.is_none() && stdin.is_terminal() {
                    return self.shell(destination);
                }
                let from = "standard input".to_owned();
                let text = read(stdin.lock(), &from)?;
                (from, text)
            }
        };
        let statements = script::statements(&text).map_err(|error| of_query(&error))?;
        match statements.len() {
            0 => Err(wrong(&format!("{from} has no statement"))),
            1 => Ok(Input::Statements(statements)),
            many if *destination != Destination::Stdout || format.is_binary() => {
                Err(wrong(&format!(
                    "a file holds the answer of one statement, and {from} has {many}: run them one by one"
                )))
            }
            _ => Ok(Input::Statements(statements)),
        }
    }

    fn shell(&self, destination: &Destination) -> Result<Input, Failure> {
        if !std::io::stdout().is_terminal() {
            return Err(wrong(
                "no statement was given: write it behind the command, or give --file FILE",
            ));
        }
        match destination {
            Destination::Stdout => Ok(Input::Shell),
            Destination::File(_) => Err(wrong(
                "--out needs a statement; in the shell, \\o FILE writes the next answer to a file",
            )),
        }
    }
}

/// Reads a script; one that is too long is refused later, and not read to its end.
fn read(from: impl std::io::Read, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let limit = script::BYTES_MAX as u64 + 1;
    from.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(&format!("{name}: {error}")))?;
    if bytes.len() as u64 == limit {
        return Err(wrong(&format!(
            "{name} is longer than {}, and no script",
            text::bytes(script::BYTES_MAX as u64)
        )));
    }
    String::from_utf8(bytes).map_err(|_| wrong(&format!("{name} is not UTF-8")))
}

fn wrong(what: &str) -> Failure {
    Failure::usage(format!("{what}; see `everlog sql --help`"))
}

/// What a query's thread ends by, if it does, is told by the query's error, in one line.
fn silence_queries() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() == Some(everlog_query::THREAD_NAME) {
            tracing::debug!(%info, "a query ended by a panic");
        } else {
            others(info);
        }
    }));
}

/// Runs it.
pub(crate) async fn run(asked: Asked, settings: &Settings) -> Result<(), Failure> {
    silence_queries();
    let lake = Lake {
        catalog: components::catalog(settings).await?,
        namespace: settings.catalog.namespace.clone(),
        clock: components::clock(),
        ids: components::ids(),
        log: kafka::OnDemand::configured(settings),
        values: schema::values(settings)?,
    };
    let session = Session::open(lake, asked.options).await;
    let session = session.map_err(|error| of_query(&error))?;
    let statements = match asked.input {
        Input::Shell => return shell::run(Arc::new(session), asked.shown).await,
        Input::Statements(statements) => statements,
    };
    let signals = Signals::listen()?;
    let signal = signals.token();
    let many = statements.len() > 1;
    for (i, statement) in statements.iter().enumerate() {
        let answered = tokio::select! {
            biased;
            () = signal.cancelled() => Err(of_query(&QueryError::Cancelled)),
            answered = answer::answer(&session, statement, &asked.shown) => answered,
        };
        match answered {
            Ok(_) => {}
            Err(failure) if many => {
                return Err(failure.while_doing(&format!("statement {}", i + 1)));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// A failure of a query.
pub(crate) fn of_query(error: &QueryError) -> Failure {
    let status = match error.kind() {
        QueryErrorKind::Usage => Status::Usage,
        QueryErrorKind::Corrupt => Status::Corrupt,
        QueryErrorKind::Gap => Status::Gap,
        QueryErrorKind::Transient | QueryErrorKind::Other => Status::Failed,
    };
    Failure::from_error(status, error)
}

/// A failure to write an answer.
fn of_output(error: &OutputError) -> Failure {
    if error.is_broken_pipe() {
        return Failure::BrokenPipe;
    }
    Failure::from_error(Status::Failed, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_with_their_units() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert!(size("0B").is_err() && size("much").is_err());
        assert_eq!(time_limit("1m30s"), Ok(Duration::from_secs(90)));
        assert!(time_limit("0s").is_err() && time_limit("30").is_err());
        assert_eq!(threads("2"), Ok(2));
        assert!(threads("0").is_err() && threads("-1").is_err() && threads("1025").is_err());
        let file = named_file("users=a=b.csv").unwrap();
        assert_eq!(
            (file.name.as_str(), file.path),
            ("users", PathBuf::from("a=b.csv"))
        );
        assert!(
            named_file("users").is_err() && named_file("=x").is_err() && named_file("x=").is_err()
        );
    }

    #[test]
    fn arrow_is_a_file_in_a_file_and_a_stream_in_a_pipe() {
        assert_eq!(FormatArg::Arrow.of(true), Format::ArrowFile);
        assert_eq!(FormatArg::Arrow.of(false), Format::ArrowStream);
    }
}
