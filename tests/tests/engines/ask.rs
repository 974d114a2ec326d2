//! Engines, asked.

use std::path::Path;
use std::process::{Command, Output};

use everlog_tests::everlog::{Everlog, binary};
use everlog_tests::services::{Flink, Trino, environment, script};
use serde_json::Value;

use crate::page::Block;

/// Rows, each cell as text; lists as JSON; null is none.
pub type Answer = Vec<Vec<Option<String>>>;

/// Which engines are asked: those of `EVERLOG_ENGINES`, or the two that need no server of their own.
pub fn selected(engine: &str) -> bool {
    let all = environment("EVERLOG_ENGINES").unwrap_or_else(|| "pyiceberg duckdb".to_owned());
    let mut all = all.split_whitespace().map(str::to_owned);
    all.any(|one| one == engine)
}

/// An engine that is connected to a lake.
pub enum Engine {
    PyIceberg,
    DuckDb,
    /// With its `spark-defaults.conf`.
    Spark(String),
    Trino(Box<Trino>),
    Flink(Box<Flink>),
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PyIceberg => "pyiceberg",
            Self::DuckDb => "DuckDB",
            Self::Spark(_) => "Spark",
            Self::Trino(_) => "Trino",
            Self::Flink(_) => "Flink",
        })
    }
}

/// A program of the page's blocks, and the names of its answers.
#[derive(Debug, Default)]
pub struct Program {
    pub text: String,
    pub answers: Vec<String>,
    /// The configuration of the engine, where the page has one.
    pub properties: String,
}

/// Puts the blocks together: the output of a shell's block is SQL that stands in its place, configuration is set aside.
pub fn program(everlog: &Everlog, blocks: &[Block]) -> Program {
    let mut program = Program::default();
    for block in blocks {
        match block.language.as_str() {
            "properties" => program.properties.push_str(&block.text),
            "sh" => program.text.push_str(&shell(everlog, &block.text)),
            _ => program.text.push_str(&block.text),
        }
        program.answers.extend(block.answers.iter().cloned());
    }
    program
}

/// A shell's output, in the installation's folder, where `everlog` is the binary under test.
pub fn shell(everlog: &Everlog, script: &str) -> String {
    let binary = binary();
    let folder = binary.parent().expect("the binary's folder");
    let path = environment("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", script])
        .env("PATH", format!("{}:{path}", folder.display()))
        .current_dir(everlog.dir());
    said(&command.output().expect("run bash"), script)
}

/// What a process said; it must have succeeded.
#[track_caller]
fn said(output: &Output, what: &str) -> String {
    assert!(
        output.status.success(),
        "{}{}\n{what}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn python() -> String {
    environment("EVERLOG_PYTHON").expect(
        "EVERLOG_PYTHON is not set: run the tests by `make test`, which prepares the readers",
    )
}

fn file(folder: &Path, text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in(folder).expect("a file");
    std::fs::write(file.path(), text).expect("the program");
    file
}

impl Engine {
    /// Runs a program; the answers of those of its statements that ask.
    #[track_caller]
    pub fn ask(&self, everlog: &Everlog, program: &str) -> Vec<Answer> {
        let text = file(everlog.dir(), program);
        match self {
            Self::PyIceberg => {
                let output = Command::new(python()).arg(text.path()).output();
                let lines = said(&output.expect("run python"), program);
                let lines = lines.lines();
                lines
                    .map(|line| vec![vec![Some(line.to_owned())]])
                    .collect()
            }
            Self::DuckDb => {
                let mut command = Command::new(python());
                command
                    .arg(script("../scripts/duckdb_sql.py"))
                    .arg(text.path());
                json(&said(&command.output().expect("run python"), program))
            }
            Self::Spark(properties) => {
                let properties = file(everlog.dir(), properties);
                let mut command = Command::new("bash");
                command
                    .arg(script("spark.sh"))
                    .arg("run")
                    .arg(script("../scripts/spark_sql.py"))
                    .args([properties.path(), text.path()]);
                json(&said(&command.output().expect("run bash"), program))
            }
            Self::Trino(trino) => json(&trino.query(program).join("\n")),
            Self::Flink(flink) => printed(&flink.text(program)),
        }
    }
}

/// Answers as JSON lines.
fn json(lines: &str) -> Vec<Answer> {
    let answer = |line: &str| -> Answer {
        let answer: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let rows = answer["rows"].as_array().expect("rows");
        let cells = |row: &Value| row.as_array().expect("cells").iter().map(cell).collect();
        rows.iter().map(cells).collect()
    };
    lines.lines().map(answer).collect()
}

fn cell(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// The answers to SELECTs in what Flink's SQL client prints.
fn printed(text: &str) -> Vec<Answer> {
    let mut answers = Vec::new();
    for statement in text.split("Flink SQL> ").skip(1) {
        if !statement.starts_with("SELECT") {
            continue;
        }
        assert!(
            statement.contains(" in set") || statement.contains("Empty set"),
            "{statement}"
        );
        let rows = statement.lines().filter(|line| line.starts_with('|'));
        let cells = |row: &str| -> Vec<Option<String>> {
            let row = row.trim_matches('|').split(" | ");
            row.map(|cell| Some(cell.trim().to_owned()).filter(|cell| cell != "<NULL>"))
                .collect()
        };
        answers.push(rows.skip(1).map(cells).collect());
    }
    answers
}
