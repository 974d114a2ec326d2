//! `everlog config`: checks the configuration, shows it, writes one to begin with.

use std::io::Write as _;

use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::settings::{self, Document, Needs};

/// Check the configuration, or print it
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check the file and the environment, and report every problem; asks no server
    ///
    /// Prints one line per problem and ends with 2, or a summary and 0.
    Check,
    /// Print what is in force, as TOML, with the place of each value; secrets are replaced
    Print {
        /// Print a commented file to begin with instead
        #[arg(long)]
        default: bool,
    },
    /// Print the reference of all keys, as Markdown (docs/configuration.md)
    Docs,
}

/// Runs it. `document` is only read where it is needed: a broken file must not hide the default one.
pub(crate) fn run(
    args: &ConfigArgs,
    document: impl FnOnce() -> Result<Document, settings::ConfigError>,
) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match args.what {
        What::Check => {
            let checked = document().and_then(|d| d.settings(Needs::ALL));
            match checked {
                Ok(settings) => {
                    for (section, line) in settings::summary(&settings) {
                        writeln!(out, "{section}: {line}")?;
                    }
                    writeln!(out, "ok")?;
                }
                Err(error) => {
                    for problem in error.problems() {
                        writeln!(out, "{problem}")?;
                    }
                    let problems = match error.problems().len() {
                        1 => "1 problem".to_owned(),
                        n => format!("{n} problems"),
                    };
                    return Err(Failure::usage(format!(
                        "{}: {problems}, as listed",
                        error.place()
                    )));
                }
            }
        }
        What::Print { default: true } => write!(out, "{}", settings::default_file())?,
        What::Print { default: false } => {
            let document = document()?;
            write!(out, "{}", settings::effective(document.raw()))?;
            // What is shown must also be right; what a command needs besides is that command's to say.
            document.settings(Needs::default())?;
        }
        What::Docs => write!(out, "{}", settings::reference())?,
    }
    out.flush()?;
    Ok(())
}
