//! What Tab completes: words of SQL, tables, and the columns of the tables that a line names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use everlog_query::{Session, TableKind, quoted, script};
use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};
use tokio::runtime::Handle;

use super::commands;

/// Who types does not wait longer for a catalog.
const PATIENCE: Duration = Duration::from_secs(1);
/// Tables of one line whose columns are looked for.
const TABLES_MAX: usize = 8;
/// Candidates that are shown.
const SHOWN_MAX: usize = 500;

/// Words that begin or join parts of queries.
const KEYWORDS: [&str; 66] = [
    "ALL",
    "AND",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CASE",
    "CAST",
    "CROSS",
    "CURRENT_TIMESTAMP",
    "DATE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "EXTRACT",
    "FALSE",
    "FILTER",
    "FIRST",
    "FOLLOWING",
    "FOR",
    "FROM",
    "FULL",
    "GROUP",
    "HAVING",
    "ILIKE",
    "IN",
    "INNER",
    "INTERSECT",
    "INTERVAL",
    "IS",
    "JOIN",
    "LAST",
    "LEFT",
    "LIKE",
    "LIMIT",
    "NOT",
    "NULL",
    "NULLS",
    "OF",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OUTER",
    "OVER",
    "PARTITION",
    "PRECEDING",
    "RIGHT",
    "ROWS",
    "SELECT",
    "SHOW",
    "TABLES",
    "THEN",
    "TIMESTAMP",
    "TRUE",
    "UNBOUNDED",
    "UNION",
    "VERSION",
    "WHEN",
    "WHERE",
    "WITH",
];

/// What may follow a table's name; the last three where it is an archive's.
const SUFFIXES: [&str; 5] = ["snapshots", "files", "history", "partitions", "refs"];
const ARCHIVE_SUFFIXES: [&str; 3] = ["ledger", "gaps", "live"];

/// Names that were seen, so that Tab answers at once.
#[derive(Debug, Default)]
pub(super) struct Names {
    tables: Vec<String>,
    columns: BTreeMap<String, Vec<String>>,
}

impl Names {
    /// Takes the tables that there are now, and forgets columns.
    pub(super) fn learn(&mut self, tables: &[everlog_query::TableName]) {
        self.columns.clear();
        self.tables.clear();
        for table in tables {
            self.tables.push(table.name.clone());
            let of_archive = matches!(table.kind, TableKind::Archive { .. });
            let in_lake =
                of_archive || matches!(table.kind, TableKind::Job { .. } | TableKind::Other);
            let suffixes = SUFFIXES.iter().filter(|_| in_lake);
            let suffixes = suffixes.chain(ARCHIVE_SUFFIXES.iter().filter(|_| of_archive));
            for suffix in suffixes {
                self.tables.push(format!("{}${suffix}", table.name));
            }
        }
    }

    /// The tables that a line names, as far as they are known.
    fn named_in(&self, line: &str) -> Vec<String> {
        let is_named = |table: &&String| {
            let words = line.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$')));
            let mut words = words.filter(|word| !word.is_empty());
            words.any(|word| word.eq_ignore_ascii_case(table))
                || quoted(table).starts_with('"') && line.contains(&quoted(table))
        };
        self.tables
            .iter()
            .filter(is_named)
            .take(TABLES_MAX)
            .cloned()
            .collect()
    }
}

/// What the line editor asks: what completes a word, and whether a statement is whole.
pub(super) struct Assistant {
    names: Arc<Mutex<Names>>,
    session: Arc<Session>,
    runtime: Handle,
}

impl Assistant {
    pub(super) fn new(names: Arc<Mutex<Names>>, session: Arc<Session>) -> Self {
        Self {
            names,
            session,
            runtime: Handle::current(),
        }
    }

    /// Columns of the tables that a line names. The editor has a thread of its own, which may wait.
    fn columns(&self, line: &str) -> Vec<String> {
        let lock = || self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = lock().named_in(line);
        let mut all = Vec::new();
        for table in tables {
            let known = lock().columns.get(&table).cloned();
            let columns = known.unwrap_or_else(|| {
                let asked = tokio::time::timeout(PATIENCE, self.session.columns(&table));
                let Ok(Ok(schema)) = self.runtime.block_on(asked) else {
                    return Vec::new();
                };
                let columns: Vec<String> =
                    schema.fields().iter().map(|f| f.name().clone()).collect();
                lock().columns.insert(table, columns.clone());
                columns
            });
            all.extend(columns);
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = line.get(..position).unwrap_or_default();
        let (start, place) = place_of(typed);
        let word = typed.get(start..).unwrap_or_default();
        let tables = || {
            self.names
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .tables
                .clone()
        };
        let candidates = match place {
            Place::Command => candidates(word, &[], &commands::NAMES),
            Place::Table => candidates(word, &tables(), &[]),
            Place::Any => {
                let mut names = self.columns(line);
                names.extend(tables());
                candidates(word, &names, &KEYWORDS)
            }
        };
        Ok((start, candidates))
    }
}

/// What may stand where a word is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Command,
    Table,
    Any,
}

/// Where the word that is typed begins, and what it may be.
fn place_of(typed: &str) -> (usize, Place) {
    if typed.starts_with('\\') && !typed.contains(char::is_whitespace) {
        return (0, Place::Command);
    }
    let in_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    // a quoted name that is still open
    let open = typed.bytes().filter(|b| *b == b'"').count() % 2 == 1;
    let start = match typed.rfind('"') {
        Some(at) if open => at,
        _ => typed
            .char_indices()
            .rev()
            .take_while(|(_, c)| in_word(*c))
            .last()
            .map_or(typed.len(), |(at, _)| at),
    };
    let before = typed.get(..start).unwrap_or_default().trim_end();
    let last = before
        .rsplit(|c: char| !in_word(c) && c != '\\')
        .next()
        .unwrap_or_default();
    let is_table = ["from", "join", "describe", "\\d"]
        .iter()
        .any(|word| last.eq_ignore_ascii_case(word));
    (start, if is_table { Place::Table } else { Place::Any })
}

/// Names and words that begin with what is typed, each as it is inserted: names in quotes where they need them, words in
/// the case that is typed.
fn candidates(word: &str, names: &[String], keywords: &[&str]) -> Vec<Pair> {
    let bare = word.strip_prefix('"').unwrap_or(word).to_lowercase();
    let is_quoted = word.starts_with('"');
    let mut found: Vec<Pair> = names
        .iter()
        .filter(|name| name.to_lowercase().starts_with(&bare))
        .map(|name| Pair {
            display: name.clone(),
            replacement: if is_quoted {
                format!("\"{}\"", name.replace('"', "\"\""))
            } else {
                quoted(name)
            },
        })
        .collect();
    let lower = word.chars().any(char::is_lowercase);
    let words = keywords.iter().filter(|keyword| {
        !is_quoted && !bare.is_empty() && keyword.to_lowercase().starts_with(&bare)
    });
    found.extend(words.map(|keyword| {
        let text = if lower {
            keyword.to_lowercase()
        } else {
            (*keyword).to_owned()
        };
        Pair {
            display: text.clone(),
            replacement: text,
        }
    }));
    found.dedup_by(|a, b| a.replacement == b.replacement);
    found.truncate(SHOWN_MAX);
    found
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let typed = context.input();
        let whole = is_command(typed) || script::is_complete(typed);
        Ok(if whole {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}

/// Whether a line is for the shell, and no SQL.
pub(super) fn is_command(typed: &str) -> bool {
    let typed = typed.trim();
    typed.starts_with('\\') || ["exit", "quit"].contains(&typed)
}

impl Highlighter for Assistant {}

impl Hinter for Assistant {
    type Hint = String;
}

impl Helper for Assistant {}

#[cfg(test)]
mod tests {
    use everlog_query::TableName;

    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        let table = |name: &str, kind| TableName {
            name: name.to_owned(),
            kind,
        };
        let topic = "orders".to_owned();
        names.learn(&[
            table("Users", TableKind::File),
            table("orders", TableKind::Archive { topic }),
            table(
                "sessions",
                TableKind::Job {
                    job: "sessions".to_owned(),
                },
            ),
        ]);
        names
    }

    fn inserted(word: &str, names: &[String], keywords: &[&str]) -> Vec<String> {
        let found = candidates(word, names, keywords);
        found.into_iter().map(|pair| pair.replacement).collect()
    }

    #[test]
    fn a_word_is_looked_for_among_what_may_stand_there() {
        assert_eq!(place_of(""), (0, Place::Any));
        assert_eq!(place_of("SELECT off"), (7, Place::Any));
        assert_eq!(place_of("SELECT * FROM or"), (14, Place::Table));
        assert_eq!(place_of("select * from\n  \"orders$l"), (16, Place::Table));
        assert_eq!(place_of("SELECT * FROM a JOIN "), (21, Place::Table));
        assert_eq!(place_of("SELECT \"a\", of"), (12, Place::Any));
        assert_eq!(place_of("\\ti"), (0, Place::Command));
        assert_eq!(place_of("\\d or"), (3, Place::Table));
        assert_eq!(place_of("SELECT é"), (7, Place::Any));
    }

    #[test]
    fn names_are_inserted_as_sql_needs_them() {
        let names = names();
        let tables = &names.tables;
        assert_eq!(
            inserted("ord", tables, &[])[..2],
            ["orders", "\"orders$snapshots\""]
        );
        assert_eq!(
            inserted("\"orders$l", tables, &[]),
            ["\"orders$ledger\"", "\"orders$live\""]
        );
        assert_eq!(inserted("us", tables, &[]), ["\"Users\""]);
        assert!(inserted("sessions$l", tables, &[]).is_empty(), "no archive");
        assert_eq!(inserted("sel", &[], &KEYWORDS), ["select"]);
        assert_eq!(inserted("SEL", &[], &KEYWORDS), ["SELECT"]);
        assert!(inserted("", &[], &KEYWORDS).is_empty());
        assert_eq!(inserted("\\t", &[], &commands::NAMES), ["\\timing"]);
    }

    #[test]
    fn a_line_names_its_tables() {
        let names = names();
        assert_eq!(names.named_in("SELECT of FROM orders, o"), ["orders"]);
        assert_eq!(
            names.named_in("SELECT x FROM \"orders$live\" o"),
            ["orders$live"]
        );
        assert_eq!(names.named_in("SELECT x FROM \"Users\""), ["Users"]);
        assert!(names.named_in("SELECT orders_total").is_empty());
    }

    #[test]
    fn keywords_are_sorted_and_once() {
        assert!(KEYWORDS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_line_for_the_shell_is_whole_without_a_semicolon() {
        assert!(is_command("\\d") && is_command(" quit ") && !is_command("select 1"));
    }
}
