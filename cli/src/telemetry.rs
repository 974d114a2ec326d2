//! Logs: text or JSON, on standard error only, and without tearing a progress bar apart.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::failure::Failure;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Progress bars are drawn through this, so that log lines can be put above them.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// The one place to which progress bars are added. Hidden unless standard error is a terminal.
pub(crate) fn bars() -> &'static MultiProgress {
    BARS.get_or_init(|| {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        MultiProgress::with_draw_target(target)
    })
}

/// Writes one line to standard error, above the progress bar if there is one. Nobody to read it is no failure.
pub(crate) fn notice(line: &str) {
    bars().suspend(|| {
        let mut stderr = io::stderr().lock();
        let _gone = writeln!(stderr, "{line}");
    });
}

struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bars().suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for AboveBars {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// What `--log-level` says, as a filter: a level, or several directives of which each has a `=`. A word that is neither
/// would be taken for the name of a module, and switch everything off.
fn directives(level: &str) -> Result<EnvFilter, String> {
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(word))
    };
    for directive in level.split(',').map(str::trim) {
        if !is_level(directive) && !directive.contains('=') {
            return Err(format!("{directive:?} is no level"));
        }
    }
    if is_level(level) {
        return Ok(EnvFilter::new(of_level(level)));
    }
    EnvFilter::try_new(level).map_err(|error| error.to_string())
}

/// A level for everything. The object store's client tells of every request that it repeats, dozens a second where a store
/// is away, and the store of a job's state of its files: that is for who debugs them. What comes of it is told by everlog.
fn of_level(level: &str) -> String {
    if level.eq_ignore_ascii_case("info") {
        format!("{level},object_store=warn,fjall=warn,lsm_tree=warn")
    } else {
        level.to_owned()
    }
}

/// Begins logging. `level` wins over `RUST_LOG`, which wins over `default`.
pub(crate) fn start(format: LogFormat, level: Option<&str>, default: &str) -> Result<(), Failure> {
    let filter = match level {
        Some(level) => directives(level).map_err(|error| {
            Failure::usage(format!(
                "--log-level {level}: {error}; write error, warn, info, debug or trace, or a filter like everlog_archiver=debug; see `everlog --help`"
            ))
        })?,
        None => EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| EnvFilter::new(of_level(default))),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AboveBars);
    let started = match format {
        LogFormat::Text => builder
            .with_ansi(io::stderr().is_terminal() && !no_color())
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| {
        Failure::new(
            crate::failure::Status::Failed,
            format!("cannot begin logging: {error}"),
        )
    })
}

/// <https://no-color.org>
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_one_of_five_or_a_filter() {
        for right in [
            "warn",
            "DEBUG",
            "off",
            "everlog_archiver=debug",
            "warn,everlog_kafka=trace",
        ] {
            assert!(directives(right).is_ok(), "{right}");
        }
        for wrong in [
            "nonsense",
            "everlog_archiver",
            "warn,nonsense",
            "a=nonsense",
            "",
        ] {
            assert!(directives(wrong).is_err(), "{wrong}");
        }
        let shown = directives("info").unwrap().to_string();
        assert!(shown.contains("object_store=warn"), "{shown}");
        assert_eq!(directives("debug").unwrap().to_string(), "debug");
    }
}
