//! The blocks of `docs/engines.md`, and what is put into them where they speak of somebody's lake.

use std::path::Path;

/// Who runs blocks: an engine, and behind a dash the kind of catalog where it is not a REST server.
pub const RUNNERS: [&str; 10] = [
    "everlog",
    "pyiceberg",
    "duckdb",
    "spark",
    "trino",
    "flink",
    "pyiceberg-sqlite",
    "duckdb-sqlite",
    "spark-postgres",
    "trino-postgres",
];

/// What the page says for somebody's lake.
pub const STANDS_FOR: [&str; 13] = [
    "http://catalog:8181",
    "minio:9000",
    "ACCESS_KEY",
    "SECRET_KEY",
    "6341277311420927",
    "2026-01-31 08:00:00",
    "2026-01-31T08:00:00",
    "1769846400000",
    "/var/lib/everlog/catalog.db",
    "db:5432/lake",
    "DB_USER",
    "DB_PASSWORD",
    "s3://warehouse/lake",
];

/// A fenced block.
#[derive(Debug, Clone)]
pub struct Block {
    /// One of [`RUNNERS`].
    pub runner: String,
    /// What its statements answer, in their order, by names that the test knows.
    pub answers: Vec<String>,
    /// `sql`, `python`, `properties`, `sh`.
    pub language: String,
    pub text: String,
    /// Of the fence, from 1.
    pub line: usize,
}

/// A page of the documents.
pub fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of a page; each has a line above it that says who runs it: `<!-- run: RUNNER ANSWER... -->`.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut marker: Option<Vec<String>> = None;
    let mut inside = false;
    for (number, line) in (1..).zip(page.lines()) {
        if inside {
            if line == "```" {
                inside = false;
            } else {
                let block = found.last_mut().expect("a block is open");
                block.text.push_str(line);
                block.text.push('\n');
            }
        } else if let Some(language) = line.strip_prefix("```") {
            let words = marker
                .take()
                .unwrap_or_else(|| panic!("line {number}: nobody runs this block"));
            let [runner, answers @ ..] = words.as_slice() else {
                panic!("line {number}: nobody runs this block");
            };
            found.push(Block {
                runner: runner.clone(),
                answers: answers.to_vec(),
                language: language.to_owned(),
                text: String::new(),
                line: number,
            });
            inside = true;
        } else {
            assert!(
                marker.is_none(),
                "line {number}: a block should follow its marker"
            );
            let words = line
                .strip_prefix("<!-- run: ")
                .and_then(|rest| rest.strip_suffix(" -->"));
            marker = words.map(|words| words.split_whitespace().map(str::to_owned).collect());
        }
    }
    assert!(!inside && marker.is_none(), "a block does not end");
    found
}

/// The blocks of one runner, with this lake's names in them.
pub fn of(runner: &str, lake: &[(&str, String)]) -> Vec<Block> {
    let mut blocks = blocks(&read("engines.md"));
    blocks.retain(|block| block.runner == runner);
    assert!(!blocks.is_empty(), "no block for {runner}");
    for block in &mut blocks {
        for (placeholder, real) in lake {
            block.text = block.text.replace(placeholder, real);
        }
        for placeholder in STANDS_FOR {
            assert!(
                !block.text.contains(placeholder)
                    || lake.iter().any(|(_, real)| real.contains(placeholder)),
                "line {}: nothing was put in for {placeholder}",
                block.line
            );
        }
    }
    blocks
}
