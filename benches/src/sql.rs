//! SQL over the archive, here, in DuckDB and in pyiceberg: the same tables on local disk, the same questions, two threads each.
//!
//! | question | what it is |
//! |---|---|
//! | scan | offset, timestamp, key and value of every record |
//! | hour | the values of one hour of a day |
//! | group | how many records and which last offset each key has, and how many keys have so many |
//! | extract | one field of every JSON value, and how often which value is in it |
//! | join | the records by their users' country, which another topic has |
//! | values | the value of every record: what the next question has to read, whatever it decodes |
//! | view | four fields of every JSON value as columns: everlog's view `NAME_v` |
//!
//! everlog is `everlog sql` with a script. DuckDB reads the tables by `iceberg_scan` of the metadata file, pyiceberg by the
//! catalog to Arrow, from where PyArrow goes on. DuckDB decodes by the statement that suits it best, and once more by the view
//! that `everlog schema view --engine duckdb` prints, which checks what everlog checks.
//!
//! A process answers one question [`TIMES`] times; start, first answer and later ones are told apart ([`answers`]). All
//! answers to a question must be equal, and count as many records as were produced.

use std::io::Write as _;
use std::process::Command;

use everlog_tests::broker::Broker;
use everlog_tests::engines;
use everlog_tests::everlog::{Everlog, Setup};
use everlog_tests::services::{self, Kafka};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::answers::{self, Answers, MARK, Took};
use crate::clicks::{self, COLUMNS};
use crate::measure::median;

/// Threads of each engine.
const THREADS: &str = "2";
/// How often a process answers its question: once for the first time, and then as an engine that is there already.
const TIMES: usize = 5;
/// The clicks of a day, and who clicked.
const DAY: &str = "bench.day";
const USERS: &str = "bench.users";
/// Commits that a day is archived in.
const COMMITS: usize = 8;
/// The hour that is asked about, in milliseconds: 18:00 to 19:00 of 2025-10-09.
const HOUR: std::ops::Range<i64> = 1_760_032_800_000..1_760_036_400_000;

/// A question in two dialects; pyiceberg has a function of its name in `tests/scripts/bench_sql.py`. Its rows have a column
/// `n`, which adds up to the records that they speak of.
struct Question {
    name: &'static str,
    everlog: &'static str,
    duckdb: &'static str,
}

static QUESTIONS: [Question; 7] = [
    Question {
        name: "scan",
        everlog: r#"SELECT count(*) AS n, sum("offset") AS offsets, CAST(max("timestamp") AS BIGINT) / 1000 AS last,
            sum(octet_length(key)) AS key_bytes, sum(octet_length(value)) AS value_bytes
            FROM bench_day"#,
        duckdb: r#"SELECT count(*) AS n, sum("offset") AS offsets, epoch_ms(max("timestamp")) AS last,
            sum(octet_length(key)) AS key_bytes, sum(octet_length(value)) AS value_bytes
            FROM bench_day"#,
    },
    Question {
        name: "hour",
        everlog: r#"SELECT count(*) AS n, sum(octet_length(value)) AS value_bytes FROM bench_day
            WHERE "timestamp" >= '2025-10-09T18:00:00Z' AND "timestamp" < '2025-10-09T19:00:00Z'"#,
        duckdb: r#"SELECT count(*) AS n, sum(octet_length(value)) AS value_bytes FROM bench_day
            WHERE "timestamp" >= '2025-10-09T18:00:00Z' AND "timestamp" < '2025-10-09T19:00:00Z'"#,
    },
    Question {
        name: "group",
        everlog: GROUP,
        duckdb: GROUP,
    },
    Question {
        name: "extract",
        everlog: "SELECT value ->> 'event_type' AS event_type, count(*) AS n FROM bench_day GROUP BY 1 ORDER BY 1",
        duckdb: "SELECT decode(value) ->> 'event_type' AS event_type, count(*) AS n FROM bench_day GROUP BY 1 ORDER BY 1",
    },
    Question {
        name: "join",
        everlog: "SELECT country, count(*) AS n FROM bench_day AS clicks
            JOIN (SELECT key, value ->> 'country' AS country FROM bench_users) AS users ON clicks.key = users.key
            GROUP BY country ORDER BY country",
        duckdb: "SELECT country, count(*) AS n FROM bench_day AS clicks
            JOIN (SELECT key, decode(value) ->> 'country' AS country FROM bench_users) AS users ON clicks.key = users.key
            GROUP BY country ORDER BY country",
    },
    Question {
        name: "values",
        everlog: "SELECT count(*) AS n, sum(octet_length(value)) AS value_bytes FROM bench_day",
        duckdb: "SELECT count(*) AS n, sum(octet_length(value)) AS value_bytes FROM bench_day",
    },
    Question {
        name: VIEW,
        everlog: "SELECT count(*) AS n, sum(octet_length(user_id)) AS users, sum(octet_length(product_id)) AS products,
            sum(octet_length(event_type)) AS types, sum(timestamp_ms - 1760000000000) AS times FROM bench_day_v",
        duckdb: r#"SELECT count(*) AS n, sum(strlen(said.user_id)) AS users, sum(strlen(said.product_id)) AS products,
            sum(strlen(said.event_type)) AS types, sum(said.timestamp_ms - 1760000000000) AS times
            FROM (SELECT from_json(decode(value), '{"user_id": "VARCHAR", "product_id": "VARCHAR",
                                                    "event_type": "VARCHAR", "timestamp_ms": "BIGINT"}') AS said
                  FROM bench_day)"#,
    },
];

const GROUP: &str = r#"SELECT times, count(*) AS keys, sum(times) AS n, sum(last) AS last
    FROM (SELECT key, count(*) AS times, max("offset") AS last FROM bench_day GROUP BY key) AS keys
    GROUP BY times ORDER BY times"#;
const VIEW: &str = "view";
/// The last question once more for DuckDB, by the view that everlog prints.
const PRINTED: &str =
    "SELECT count(*) AS n, sum(strlen(user_id)) AS users, sum(strlen(product_id)) AS products,
    sum(strlen(event_type)) AS types, sum(timestamp_ms - 1760000000000) AS times FROM bench_day_v";

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Everlog,
    DuckDb,
    Pyiceberg,
    /// DuckDB by the view that everlog prints.
    Printed,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Everlog => "everlog",
            Self::DuckDb => "DuckDB",
            Self::Pyiceberg => "pyiceberg",
            Self::Printed => "DuckDB, printed view",
        }
    }

    fn all(question: &Question) -> &'static [Self] {
        static ALL: [Engine; 4] = [
            Engine::Everlog,
            Engine::DuckDb,
            Engine::Pyiceberg,
            Engine::Printed,
        ];
        if question.name == VIEW {
            &ALL
        } else {
            &ALL[..3]
        }
    }
}

/// Everything about queries.
pub(crate) fn report(runtime: &Runtime, kafka: &Kafka, events: usize, rounds: usize) {
    let lake = Lake::new(runtime, kafka, events);
    let mut all = Vec::new();
    for question in &QUESTIONS {
        for engine in Engine::all(question) {
            all.push(Runs::new(question, *engine));
        }
    }
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        for runs in &mut all {
            let command = lake.asking(runs.engine, runs.question);
            runs.add(answers::of(&command));
        }
    }
    for question in &QUESTIONS {
        let asked: Vec<&Runs> = of(&all, question.name).collect();
        let hours = clicks::day(events).filter(|click| HOUR.contains(&click.time));
        let records = match question.name {
            "hour" => hours.count(),
            _ => events,
        };
        equal(question, &asked, records);
    }
    println!(
        "\nSQL over {events} clicks in {COMMITS} commits, {THREADS} threads; milliseconds of wall time and of CPU time:"
    );
    println!(
        "| question | engine | wall, first | CPU, first | wall, later | CPU, later | peak memory MB |\n|---|---|---|---|---|---|---|"
    );
    for engine in [Engine::Everlog, Engine::DuckDb, Engine::Pyiceberg] {
        let starts = all.iter().filter(|runs| runs.engine == engine);
        let starts: Vec<Took> = starts
            .flat_map(|runs| runs.starts.iter().copied())
            .collect();
        println!(
            "| start | {} | {:.0} | {:.0} | | | |",
            engine.name(),
            wall(&starts) * 1e3,
            cpu(&starts) * 1e3
        );
    }
    for runs in &all {
        println!(
            "| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            runs.question.name,
            runs.engine.name(),
            wall(&runs.first) * 1e3,
            cpu(&runs.first) * 1e3,
            wall(&runs.later) * 1e3,
            cpu(&runs.later) * 1e3,
            runs.peak_bytes as f64 / 1e6
        );
    }
    println!("\nThe later answers, everlog's time being 1: above 1, everlog is faster.");
    println!("| question | against | by wall time | by CPU time | aim |\n|---|---|---|---|---|");
    for question in &QUESTIONS {
        let asked: Vec<&Runs> = of(&all, question.name).collect();
        let Some((ours, others)) = asked.split_first() else {
            continue;
        };
        for theirs in others {
            let aim = match theirs.engine {
                Engine::DuckDb => "1",
                _ => "",
            };
            println!(
                "| {} | {} | {:.2} | {:.2} | {aim} |",
                question.name,
                theirs.engine.name(),
                wall(&theirs.later) / wall(&ours.later),
                cpu(&theirs.later) / cpu(&ours.later)
            );
        }
    }
    decoding(&all, events);
}

/// What decoding takes beside reading: the view less the values.
fn decoding(all: &[Runs], events: usize) {
    println!("\nDecoding alone, four columns: the view's time less the values'.");
    println!("| engine | values/s | values/s per core used |\n|---|---|---|");
    for runs in of(all, VIEW) {
        let reader = match runs.engine {
            Engine::Printed => Engine::DuckDb,
            engine => engine,
        };
        let Some(reading) = of(all, "values").find(|values| values.engine == reader) else {
            continue;
        };
        let rate = |both: f64, reading: f64| match both - reading {
            more if more > 0.0 => format!("{:.0}", events as f64 / more),
            _ => "too little to measure".to_owned(),
        };
        println!(
            "| {} | {} | {} |",
            runs.engine.name(),
            rate(wall(&runs.later), wall(&reading.later)),
            rate(cpu(&runs.later), cpu(&reading.later))
        );
    }
}

fn of<'a>(all: &'a [Runs], question: &'a str) -> impl Iterator<Item = &'a Runs> {
    all.iter()
        .filter(move |runs| runs.question.name == question)
}

/// Whether all engines said the same every time, about as many records as there are.
fn equal(question: &Question, asked: &[&Runs], records: usize) {
    let mut said = asked.iter().flat_map(|runs| {
        let answers = runs.answers.iter();
        answers.map(move |rows| (runs.engine.name(), rows))
    });
    let (name, first) = said.next().expect("somebody was asked");
    let counts = first.iter().map(|row| row["n"].as_u64());
    let counted: u64 = counts.map(|n| n.expect("a column n")).sum();
    assert_eq!(
        usize::try_from(counted),
        Ok(records),
        "{}: {name} counted other records",
        question.name
    );
    for (other, rows) in said {
        assert_eq!(
            rows, first,
            "{}: {other} does not say what {name} says",
            question.name
        );
    }
}

fn wall(took: &[Took]) -> f64 {
    median(took.iter().map(|took| took.wall.as_secs_f64()))
}

fn cpu(took: &[Took]) -> f64 {
    median(took.iter().map(|took| took.cpu.as_secs_f64()))
}

/// What came of asking one engine one question.
struct Runs {
    question: &'static Question,
    engine: Engine,
    starts: Vec<Took>,
    first: Vec<Took>,
    later: Vec<Took>,
    answers: Vec<Vec<Value>>,
    peak_bytes: u64,
}

impl Runs {
    fn new(question: &'static Question, engine: Engine) -> Self {
        Self {
            question,
            engine,
            starts: Vec::new(),
            first: Vec::new(),
            later: Vec::new(),
            answers: Vec::new(),
            peak_bytes: 0,
        }
    }

    fn add(&mut self, run: Answers) {
        assert_eq!(
            run.answers.len(),
            TIMES,
            "{} did not answer",
            self.engine.name()
        );
        self.starts.push(run.start);
        for (n, answer) in run.answers.into_iter().enumerate() {
            let times = if n == 0 {
                &mut self.first
            } else {
                &mut self.later
            };
            times.push(answer.took);
            self.answers.push(answer.rows);
        }
        self.peak_bytes = self.peak_bytes.max(run.peak_bytes);
    }
}

/// The tables, and how each engine finds them.
struct Lake {
    everlog: Everlog,
    /// `NAME=METADATA_FILE` of the tables, for DuckDB.
    metadata: Vec<String>,
    /// The view as everlog prints it for DuckDB.
    view: String,
}

impl Lake {
    /// Produces and archives: a day in eight parts, as one that is archived while it goes on.
    fn new(runtime: &Runtime, kafka: &Kafka, events: usize) -> Self {
        println!(
            "\nproducing {events} clicks of one day to {} partitions, and archiving them in {COMMITS} parts ...",
            clicks::PARTITIONS
        );
        let broker = Broker::new(&kafka.bootstrap);
        clicks::create(runtime, &broker, DAY);
        clicks::create(runtime, &broker, USERS);
        let setup = Setup::new(&kafka.bootstrap, &[DAY, USERS]);
        let everlog = Everlog::local(&setup.archive("commit_interval = \"60s\""));
        let columns = COLUMNS.map(|(name, sql)| format!("{name} = {sql:?}"));
        let values = format!(
            "\n[decode.{DAY:?}]\nformat = \"json\"\ncolumns = {{ {} }}\n",
            columns.join(", ")
        );
        let file = std::fs::OpenOptions::new()
            .append(true)
            .open(&everlog.config);
        let written = file.and_then(|mut file| file.write_all(values.as_bytes()));
        written.expect("the configuration");
        clicks::fill(&broker, USERS, clicks::users(events));
        let mut day = clicks::day(events);
        for part in 0..COMMITS {
            let count = events * (part + 1) / COMMITS - events * part / COMMITS;
            clicks::fill(&broker, DAY, day.by_ref().take(count));
            everlog.archive();
        }
        let metadata = [DAY, USERS].map(|topic| {
            let status = everlog.ok(&["status", topic, "--json"]);
            let status: Value = serde_json::from_str(&status).expect("JSON");
            let place = status["topics"][0]["table"]["metadata_location"].as_str();
            let place = place.unwrap_or_else(|| panic!("no table of {topic}: {status}"));
            format!(
                "{}={}",
                topic.replace('.', "_"),
                place.trim_start_matches("file://")
            )
        });
        let view = [
            "schema",
            "view",
            DAY,
            "--engine",
            "duckdb",
            "--table",
            "bench_day",
        ];
        Self {
            view: everlog.ok(&view),
            everlog,
            metadata: metadata.into(),
        }
    }

    /// A process that answers a question so many times.
    fn asking(&self, engine: Engine, question: &Question) -> Command {
        match engine {
            Engine::Everlog => self.everlog(question),
            Engine::DuckDb => self.duckdb(question.duckdb),
            Engine::Printed => {
                let mut command = self.duckdb(PRINTED);
                command.args(["--view", &self.view]);
                command
            }
            Engine::Pyiceberg => {
                let catalog = self.everlog.dir().join("catalog.db");
                let mut command = python("pyiceberg", question.name);
                command.arg("--catalog").arg(catalog);
                command
            }
        }
    }

    fn everlog(&self, question: &Question) -> Command {
        let mark: Value = serde_json::from_str(MARK).expect("JSON");
        let mark = format!(
            "SELECT '{}' AS mark;\n",
            mark["mark"].as_str().unwrap_or_default()
        );
        let answer = format!("{};\n{mark}", question.everlog);
        let file = self.everlog.dir().join(format!("{}.sql", question.name));
        std::fs::write(&file, mark + &answer.repeat(TIMES)).expect("the script");
        let file = file.display().to_string();
        let args = [
            "sql",
            "--threads",
            THREADS,
            "--format",
            "jsonl",
            "--file",
            &file,
        ];
        self.everlog.command(&args)
    }

    fn duckdb(&self, question: &str) -> Command {
        let mut command = python("duckdb", question);
        for table in &self.metadata {
            command.args(["--table", table]);
        }
        command
    }
}

fn python(engine: &str, question: &str) -> Command {
    let mut command = Command::new(engines::python());
    command
        .arg(services::script("../scripts/bench_sql.py"))
        .args([engine, "--question", question])
        .args(["--threads", THREADS, "--times", &TIMES.to_string()]);
    command
}
