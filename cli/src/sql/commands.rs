//! What the shell understands besides SQL: lines that begin with a backslash.

use std::path::PathBuf;

use super::FormatArg;
use clap::ValueEnum as _;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// `\d`: the tables.
    Tables,
    /// `\d TABLE`: its columns.
    Columns(String),
    /// `\timing`, with `on` or `off` behind it or to change it.
    Timing(Option<bool>),
    /// `\format FORMAT`, or which it is.
    Format(Option<FormatArg>),
    /// `\o FILE`: the next answer goes there; without a file, to the terminal again.
    Out(Option<PathBuf>),
    /// `\?`.
    Help,
    /// `\q`.
    Quit,
}

/// Their names, for completion.
pub(super) const NAMES: [&str; 6] = ["\\?", "\\d", "\\format", "\\o", "\\q", "\\timing"];

/// What `\?` shows.
pub(super) const HELP: &str = "\
A statement ends with a semicolon and may have several lines.

  \\d               the tables
  \\d TABLE         the columns of a table, such as \\d orders or \\d orders$files
  \\format FORMAT   table, csv, jsonl, parquet or arrow
  \\o FILE          write the next answer to a file, in the format that is set
  \\timing          say how long statements take, or not any more
  \\?               this
  \\q               end, as does Ctrl-D

Ctrl-C ends the statement that runs, and drops the line that is typed. Tab completes names and words.
";

impl Command {
    /// Reads a line that begins with a backslash.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let (name, rest) = match line.split_once(char::is_whitespace) {
            Some((name, rest)) => (name, rest.trim().trim_end_matches(';').trim_end()),
            None => (line.trim_end_matches(';'), ""),
        };
        let given = (!rest.is_empty()).then_some(rest);
        match (name, given) {
            ("\\d", None) => Ok(Self::Tables),
            ("\\d", Some(table)) => Ok(Self::Columns(unquoted(table))),
            ("\\timing", None) => Ok(Self::Timing(None)),
            ("\\timing", Some("on")) => Ok(Self::Timing(Some(true))),
            ("\\timing", Some("off")) => Ok(Self::Timing(Some(false))),
            ("\\timing", Some(_)) => Err("\\timing takes on, off, or nothing".to_owned()),
            ("\\format", None) => Ok(Self::Format(None)),
            ("\\format", Some(format)) => FormatArg::from_str(format, true)
                .map(|format| Self::Format(Some(format)))
                .map_err(|_| "\\format takes table, csv, jsonl, parquet or arrow".to_owned()),
            ("\\o", path) => Ok(Self::Out(path.map(PathBuf::from))),
            ("\\?", None) => Ok(Self::Help),
            ("\\q", None) => Ok(Self::Quit),
            ("\\?" | "\\q", Some(_)) => Err(format!("{name} takes nothing")),
            _ => Err(format!("{name} is no command; \\? lists them")),
        }
    }
}

/// A name as SQL writes it, as it is.
fn unquoted(name: &str) -> String {
    match name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_a_backslash_are_commands_or_told_what_is_wrong() {
        let parse = Command::parse;
        assert_eq!(parse("\\d"), Ok(Command::Tables));
        assert_eq!(parse(" \\d; "), Ok(Command::Tables));
        assert_eq!(
            parse("\\d  orders$files ;"),
            Ok(Command::Columns("orders$files".to_owned()))
        );
        assert_eq!(
            parse("\\d \"A\"\"b\""),
            Ok(Command::Columns("A\"b".to_owned()))
        );
        assert_eq!(parse("\\timing"), Ok(Command::Timing(None)));
        assert_eq!(parse("\\timing off"), Ok(Command::Timing(Some(false))));
        assert_eq!(
            parse("\\format CSV"),
            Ok(Command::Format(Some(FormatArg::Csv)))
        );
        assert_eq!(
            parse("\\o a b.csv"),
            Ok(Command::Out(Some("a b.csv".into())))
        );
        assert_eq!(parse("\\o"), Ok(Command::Out(None)));
        assert_eq!(parse("\\?"), Ok(Command::Help));
        assert_eq!(parse("\\q"), Ok(Command::Quit));
        for (line, word) in [
            ("\\x", "\\x is no command"),
            ("\\", "\\ is no command"),
            ("\\timing maybe", "on, off"),
            ("\\format xml", "table, csv"),
            ("\\q now", "takes nothing"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
        for name in NAMES {
            assert!(parse(name).is_ok(), "{name}");
            assert!(HELP.contains(&format!("  {name}")), "{name}");
        }
    }
}
