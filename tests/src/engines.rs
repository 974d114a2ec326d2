//! The tables as other engines see them: `tests/scripts/read_tables.py` in pyiceberg and DuckDB; and what another engine
//! does to them: `tests/scripts/foreign.py`.

use std::fmt::Write as _;
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

use crate::compare::{Log, Record};
use crate::everlog::Everlog;
use crate::services;

/// What an engine read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Reading {
    /// The snapshot it read.
    pub snapshot: i64,
    /// Rows.
    pub rows: u64,
    /// SHA-256 over the canonical lines, in hexadecimal.
    pub sha256: String,
}

/// Lets another engine work on `table` of a local lake: see `tests/scripts/foreign.py`.
#[track_caller]
pub fn foreign(everlog: &Everlog, table: &str, args: &[&str]) -> Value {
    let property = |key: &str| everlog.catalog.get(key).cloned().unwrap_or_default();
    let output = Command::new(python())
        .arg(services::script("../scripts/foreign.py"))
        .args(["--uri", property("uri").trim_start_matches("sqlite://")])
        .args(["--table", &format!("{}.{table}", property("namespace"))])
        .args(args)
        .output()
        .expect("run python");
    assert!(
        output.status.success(),
        "foreign.py {} failed\n{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("one JSON line")
}

/// Python with the packages that read the tables.
#[track_caller]
pub fn python() -> String {
    services::environment("EVERLOG_PYTHON").unwrap_or_else(|| {
        panic!(
            "EVERLOG_PYTHON is not set: run the tests by `make test` and measurements by `make bench`, which prepare the readers"
        )
    })
}

/// Reads `table` (of generation 0 and up) with `engine` (`pyiceberg` or `duckdb`).
#[track_caller]
pub fn read(everlog: &Everlog, engine: &str, table: &str, snapshot: Option<i64>) -> Reading {
    let script = services::script("../scripts/read_tables.py");
    let property = |key: &str| everlog.catalog.get(key).cloned().unwrap_or_default();
    let rest = property("type") == "rest";
    let uri = property("uri");
    let mut command = Command::new(python());
    command
        .arg(script)
        .args([
            "--engine",
            engine,
            "--catalog",
            if rest { "rest" } else { "sqlite" },
        ])
        .args(["--uri", uri.trim_start_matches("sqlite://")])
        .args(["--table", &format!("{}.{table}", property("namespace"))]);
    if let Some(id) = snapshot {
        command.args(["--snapshot", &id.to_string()]);
    }
    for (key, value) in everlog.catalog.iter().filter(|(k, _)| k.starts_with("s3.")) {
        command.args(["-p", &format!("{key}={value}")]);
    }
    let output = command.output().expect("run python");
    assert!(
        output.status.success(),
        "{engine} cannot read {table}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("one JSON line")
}

/// The same digest from records of generation 0, formed by this crate alone.
pub fn digest(log: &Log) -> (u64, String) {
    let mut text = String::new();
    let mut rows = 0;
    for record in log.values().flatten() {
        line(&mut text, record);
        rows += 1;
    }
    (rows, sha256_hex(text.as_bytes()))
}

fn line(out: &mut String, record: &Record) {
    let kind = match record.timestamp_type {
        "create" => 0,
        "logappend" => 1,
        _ => -1,
    };
    let ts = record
        .timestamp
        .map_or("null".to_owned(), |t| t.to_string());
    let _ = write!(out, "0,{},{},{ts},{kind},", record.partition, record.offset);
    hex(out, record.key.as_deref());
    out.push(',');
    hex(out, record.value.as_deref());
    out.push_str(",[");
    for (i, (key, value)) in record.headers.iter().enumerate() {
        out.push_str(if i == 0 { "[" } else { ",[" });
        hex(out, Some(key));
        out.push(',');
        hex(out, value.as_deref());
        out.push(']');
    }
    out.push_str("]\n");
}

fn hex(out: &mut String, bytes: Option<&[u8]>) {
    match bytes {
        None => out.push_str("null"),
        Some(b) => b.iter().for_each(|byte| {
            let _ = write!(out, "{byte:02x}");
        }),
    }
}

/// SHA-256 by coreutils: the tests need it once a table, which is no reason for a dependency.
fn sha256_hex(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(file.path(), bytes).expect("write");
    let output = Command::new("sha256sum")
        .arg(file.path())
        .output()
        .expect("run sha256sum");
    assert!(output.status.success(), "sha256sum failed");
    String::from_utf8_lossy(&output.stdout)
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned()
}
