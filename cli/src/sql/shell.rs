//! The shell: a line editor, and what is typed into it.

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use everlog_query::output::Format;
use everlog_query::{QueryError, Session, quoted, script};
use rustyline::config::Configurer as _;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};
use tokio::task::JoinSet;

use super::answer::{Destination, Shown, answer};
use super::commands::{self, Command};
use super::names::{Assistant, Names, is_command};
use super::of_query;
use crate::failure::{Failure, Status};
use crate::{telemetry, text};

/// Lines that are remembered.
const HISTORY_LINES: usize = 1_000;
/// A longer line is not remembered: pasted data is no question.
const HISTORY_LINE_BYTES: usize = 64 << 10;
/// A query that was cancelled is waited for so long.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

type LineEditor = Editor<Assistant, FileHistory>;

/// Reads statements and commands until the end.
pub(super) async fn run(session: Arc<Session>, shown: Shown) -> Result<(), Failure> {
    let names = Arc::new(Mutex::new(Names::default()));
    let mut learning = JoinSet::new();
    learning.spawn(learn(Arc::clone(&session), Arc::clone(&names)));
    let history = history_file();
    let mut editor = editor(&session, &names, history.as_ref())?;
    let mut shell = Shell {
        session,
        names,
        learning,
        shown,
        out: None,
        timing: false,
    };
    telemetry::notice(concat!(
        "everlog ",
        env!("CARGO_PKG_VERSION"),
        ": SQL over the lake. \\? helps, \\q ends."
    ));
    loop {
        // The editor waits for keys in a thread of its own: what runs beside it goes on.
        let reading = tokio::task::spawn_blocking(move || {
            let line = editor.readline("everlog> ");
            (editor, line)
        });
        let line;
        (editor, line) = reading.await.map_err(|error| of_editor(&error))?;
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(of_editor(&error)),
        };
        if line.trim().is_empty() {
            continue;
        }
        remember(&mut editor, history.as_ref(), &line);
        match shell.take(&line).await {
            Ok(Next::Line) => {}
            Ok(Next::End) => return Ok(()),
            // The terminal is there still, whatever went wrong with one line.
            Err(failure) => telemetry::notice(&format!("error: {failure}")),
        }
    }
}

fn of_editor(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::from_error(Status::Failed, error).while_doing("reading from the terminal")
}

/// What comes after a line.
enum Next {
    Line,
    End,
}

struct Shell {
    session: Arc<Session>,
    names: Arc<Mutex<Names>>,
    /// Those that learn names; they end with the shell.
    learning: JoinSet<()>,
    shown: Shown,
    /// Where the next answer goes.
    out: Option<PathBuf>,
    timing: bool,
}

impl Shell {
    async fn take(&mut self, line: &str) -> Result<Next, Failure> {
        if !is_command(line) {
            for statement in script::statements(line).map_err(|e| of_query(&e))? {
                self.query(statement).await?;
            }
            return Ok(Next::Line);
        }
        if ["exit", "quit"].contains(&line.trim()) {
            return Ok(Next::End);
        }
        match Command::parse(line).map_err(Failure::usage)? {
            Command::Quit => return Ok(Next::End),
            Command::Help => say(commands::HELP)?,
            Command::Timing(timing) => {
                self.timing = timing.unwrap_or(!self.timing);
                let state = if self.timing { "on" } else { "off" };
                say(&format!("timing is {state}\n"))?;
            }
            Command::Format(format) => {
                if let Some(format) = format {
                    self.shown.format = format.of(true);
                }
                say(&format!(
                    "answers are written as {}\n",
                    name_of(self.shown.format)
                ))?;
            }
            Command::Out(path) => self.out = path,
            Command::Tables => {
                while self.learning.try_join_next().is_some() {}
                self.learning
                    .spawn(learn(Arc::clone(&self.session), Arc::clone(&self.names)));
                self.show("SHOW TABLES".to_owned()).await?;
            }
            Command::Columns(table) => self.show(format!("DESCRIBE {}", quoted(&table))).await?,
        }
        Ok(Next::Line)
    }

    /// Runs a statement. Ctrl-C ends it, and not the shell.
    async fn query(&mut self, statement: String) -> Result<(), Failure> {
        let shown = match self.out.take() {
            Some(path) => Shown {
                destination: Destination::File(path),
                ..self.shown.clone()
            },
            None if self.shown.format.is_binary() => {
                return Err(Failure::usage(format!(
                    "{} is not for a terminal: give \\o FILE first, or \\format table",
                    name_of(self.shown.format)
                )));
            }
            None => self.shown.clone(),
        };
        let began = Instant::now();
        let session = Arc::clone(&self.session);
        let to_file = shown.destination != Destination::Stdout;
        let answered = interruptible(async move { answer(&session, &statement, &shown).await });
        let rows = answered.await?;
        if to_file {
            say(&format!("{} written\n", text::things(rows, "row")))?;
        }
        if self.timing {
            say(&format!(
                "Time: {:.3} ms\n",
                began.elapsed().as_secs_f64() * 1_000.0
            ))?;
        }
        Ok(())
    }

    /// Shows the answer to a question about the lake, whatever is set for others.
    async fn show(&self, statement: String) -> Result<(), Failure> {
        let session = Arc::clone(&self.session);
        let shown = Shown {
            format: Format::Table,
            destination: Destination::Stdout,
        };
        let answered = interruptible(async move { answer(&session, &statement, &shown).await });
        answered.await.map(|_| ())
    }
}

/// Runs what may take long until Ctrl-C.
async fn interruptible<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let mut running = JoinSet::new();
    running.spawn(work);
    let interrupted = async {
        match tokio::signal::ctrl_c().await {
            Ok(()) => {}
            // without the signal the query goes on to its end
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = interrupted => {
            running.abort_all();
            let ended = async { while running.join_next().await.is_some() {} };
            // a query that computes sees it at its next rest
            let _late = tokio::time::timeout(CANCEL_PATIENCE, ended).await;
            Err(of_query(&QueryError::Cancelled))
        }
        ended = running.join_next() => match ended {
            Some(Ok(result)) => result,
            Some(Err(error)) => {
                Err(Failure::from_error(Status::Failed, &error).while_doing("running the statement"))
            }
            None => Err(of_query(&QueryError::Cancelled)),
        },
    }
}

fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn name_of(format: Format) -> &'static str {
    match format {
        Format::Table => "a table",
        Format::Csv => "CSV",
        Format::Jsonl => "JSON lines",
        Format::Parquet => "Parquet",
        Format::ArrowFile | Format::ArrowStream => "Arrow IPC",
    }
}

/// Learns the tables' names in the background; a lake that does not answer is told of by the first query.
async fn learn(session: Arc<Session>, names: Arc<Mutex<Names>>) {
    if let Ok(tables) = session.tables().await {
        names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .learn(&tables);
    }
}

fn editor(
    session: &Arc<Session>,
    names: &Arc<Mutex<Names>>,
    history: Option<&PathBuf>,
) -> Result<LineEditor, Failure> {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .history_ignore_space(true)
        .build();
    let mut editor = LineEditor::with_config(config).map_err(|error| of_editor(&error))?;
    editor
        .set_max_history_size(HISTORY_LINES)
        .map_err(|error| of_editor(&error))?;
    editor.set_helper(Some(Assistant::new(Arc::clone(names), Arc::clone(session))));
    if let Some(path) = history {
        match editor.load_history(path) {
            Ok(()) => {}
            Err(ReadlineError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => telemetry::notice(&format!("note: {}: {error}", path.display())),
        }
    }
    Ok(editor)
}

/// Adds a line to the history, at once: the shell may be killed.
fn remember(editor: &mut LineEditor, history: Option<&PathBuf>, line: &str) {
    if line.len() > HISTORY_LINE_BYTES {
        return;
    }
    let added = editor.add_history_entry(line).unwrap_or(false);
    if let Some(path) = history.filter(|_| added)
        && let Err(error) = editor.append_history(path)
    {
        telemetry::notice(&format!("note: {}: {error}", path.display()));
    }
}

/// Where lines are remembered, in a folder for its owner alone; none where there is no such place.
fn history_file() -> Option<PathBuf> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let state = folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local").join("state")))?;
    let folder = state.join("everlog");
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder);
    match made {
        Ok(()) => Some(folder.join("sql_history")),
        Err(error) => {
            telemetry::notice(&format!("note: no history: {}: {error}", folder.display()));
            None
        }
    }
}
