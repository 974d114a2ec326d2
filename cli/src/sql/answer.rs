//! One answer, from the query to where it is shown.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::PathBuf;

use everlog_query::output::{Format, Output, OutputError, PartFile, Sink};
use everlog_query::{QueryError, Session};
use futures::StreamExt as _;

use super::view::View;
use super::{of_output, of_query};
use crate::failure::{Failure, Status};

/// What is handed to standard output at a time.
const BUFFER: usize = 64 << 10;

/// Where answers go, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) format: Format,
    pub(super) destination: Destination,
}

/// Where answers go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    Stdout,
    File(PathBuf),
}

/// Runs a statement and shows its answer as it comes; says how many rows it had. Dropped on the way, the query is cancelled,
/// and a file that is not whole is gone.
pub(super) async fn answer(session: &Session, sql: &str, shown: &Shown) -> Result<u64, Failure> {
    let mut answer = session.query(sql).await.map_err(|e| of_query(&e))?;
    let view = View::new(&answer.progress);
    let file = match &shown.destination {
        Destination::Stdout => None,
        Destination::File(path) => {
            let file = PartFile::create(path).map_err(|error| of_file(path, &error))?;
            Some((path, file))
        }
    };
    let sink: Sink = match &file {
        None => Box::new(Stdout::new(&view)),
        Some((path, file)) => file.sink().map_err(|error| of_file(path, &error))?,
    };
    let output = |error: OutputError| match (&error, &file) {
        (OutputError::Io(error), Some((path, _))) => of_file(path, error),
        _ => of_output(&error),
    };
    let mut out = Output::new(shown.format, &answer.schema, sink).map_err(&output)?;
    while let Some(batch) = answer.batches.next().await {
        let batch = batch.map_err(|error| of_query(&QueryError::of(error)))?;
        out.write(&batch).map_err(&output)?;
    }
    // what the query holds is not needed any more
    drop(answer);
    let rows = out.finish().map_err(&output)?;
    if let Some((path, file)) = file {
        file.commit().map_err(|error| of_file(path, &error))?;
    }
    view.clear();
    Ok(rows)
}

fn of_file(path: &std::path::Path, error: &io::Error) -> Failure {
    Failure::new(
        Status::Failed,
        format!("cannot write {}: {error}", path.display()),
    )
}

/// Standard output; on a terminal the bar makes room for the first row.
struct Stdout {
    out: BufWriter<io::Stdout>,
    view: Option<View>,
}

impl Stdout {
    fn new(view: &View) -> Self {
        let stdout = io::stdout();
        let view = stdout.is_terminal().then(|| view.clone());
        Self {
            out: BufWriter::with_capacity(BUFFER, stdout),
            view,
        }
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(view) = self.view.take() {
            view.clear();
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
