//! Sessions of a JSON clickstream, here and on Flink: the same Kafka topic, the same query, two threads each.
//!
//! | run | what it is |
//! |---|---|
//! | kafka | `everlog process --until now --drain`: the archive is empty, everything comes from Kafka |
//! | archive | `everlog process --until snapshot --drain`: the same events from the archive |
//! | flink | Flink SQL in the form of `everlog process --flink`: state on the heap, objects reused, a checkpoint every 10 s |
//! | flink, TVF | the same with Flink's newer SESSION table function, which everlog does not take |
//!
//! Flink's figures begin when its last task runs, in a process that has run both programs over the whole topic before: neither
//! start nor warm-up is counted. Everlog's are whole processes, start included. All write their rows to files.

use std::path::Path;
use std::time::Duration;

use everlog_engine::{EventTime, Flink as Program, Query};
use everlog_tests::broker::Broker;
use everlog_tests::everlog::{Everlog, Setup};
use everlog_tests::services::{Flink, Kafka};
use tokio::runtime::Runtime;

use crate::clicks::{self, COLUMNS, SESSIONS, TOPIC};
use crate::measure::{self, Figures, median};
use crate::parts;

/// Threads of everlog, and Flink's parallelism.
const THREADS: usize = 2;
/// Users of the smaller of the two jobs that only open sessions: about as much state as the least memory of a job.
const USERS: usize = 450_000;

/// Everything about jobs: rates, checkpoints, memory, and where the time goes.
pub(crate) fn report(runtime: &Runtime, kafka: &Kafka, events: usize, rounds: usize) {
    let broker = Broker::new(&kafka.bootstrap);
    println!(
        "\nproducing {events} clicks of 200 bytes to {} partitions, lz4 ...",
        clicks::PARTITIONS
    );
    clicks::create(runtime, &broker, TOPIC);
    let empty = archived(kafka, TOPIC);
    clicks::fill(&broker, TOPIC, clicks::sessions(events));
    let full = archived(kafka, TOPIC);
    rates(kafka, [&empty, &full], events, rounds);
    checkpoints(&full, events, rounds);
    memory(runtime, kafka, &broker);
    parts::report(runtime, events.min(3_000_000));
}

/// An installation with what the topic holds now.
fn archived(kafka: &Kafka, topic: &str) -> Everlog {
    let lake = Everlog::local(&Setup::new(&kafka.bootstrap, &[topic]));
    lake.archive();
    lake
}

/// A job's file in the installation's folder, with all it keeps in a folder of its own.
struct Job {
    file: String,
    rows: std::path::PathBuf,
    state: std::path::PathBuf,
}

impl Job {
    fn new(lake: &Everlog, name: &str, topic: &str, interval: &str, memory: &str) -> Self {
        let folder = lake.dir().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        let (rows, state) = (folder.join("rows.jsonl"), folder.join("jobs"));
        let columns = COLUMNS
            .map(|(name, sql)| format!("{name} = {sql:?}"))
            .join(", ");
        let sql = SESSIONS.replace("bench_clicks", &topic.replace('.', "_"));
        let text = format!(
            "[job]\nname = {name:?}\nversion = \"v1\"\n\n\
             [source]\ntopic = {topic:?}\nformat = \"json\"\ncolumns = {{ {columns} }}\n\
             event_time = \"to_timestamp_millis(timestamp_ms)\"\nout_of_orderness = \"30s\"\n\n\
             [query]\nsql = {sql:?}\n\n\
             [sink]\ntype = \"jsonl\"\npath = {:?}\n\n\
             [checkpoint]\ninterval = {interval:?}\nlocation = \"file://{}\"\n\n\
             [limits]\nmemory = {memory:?}\nthreads = {THREADS}\n",
            rows.display().to_string(),
            state.display()
        );
        let file = folder.join("job.toml");
        std::fs::write(&file, text).expect("the job's file");
        Self {
            file: file.display().to_string(),
            rows,
            state,
        }
    }

    /// Runs it to a bound, which must succeed.
    fn run(&self, lake: &Everlog, bound: &[&str]) -> Figures {
        let args = [&["process", self.file.as_str()], bound].concat();
        measure::command(&lake.command(&args))
    }

    fn rows(&self) -> usize {
        lines(&self.rows)
    }
}

fn lines(file: &Path) -> usize {
    let text = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.iter().filter(|byte| **byte == b'\n').count()
}

const FROM_KAFKA: [&str; 3] = ["--until", "now", "--drain"];
const FROM_ARCHIVE: [&str; 3] = ["--until", "snapshot", "--drain"];

/// What came of one way to run the query.
struct Runs {
    name: &'static str,
    figures: Vec<Figures>,
    rows: usize,
}

fn rates(kafka: &Kafka, [empty, full]: [&Everlog; 2], events: usize, rounds: usize) {
    let flink = OnFlink::start(kafka);
    println!("warming Flink up ...");
    for table_function in [false, true] {
        flink.run(table_function);
    }
    let mut all = ["kafka", "archive", "flink", "flink, TVF"].map(|name| Runs {
        name,
        figures: Vec::new(),
        rows: 0,
    });
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        let name = format!("round-{round}");
        let job = Job::new(empty, &name, TOPIC, "10s", "1GiB");
        all[0].figures.push(job.run(empty, &FROM_KAFKA));
        all[0].rows = job.rows();
        let job = Job::new(full, &name, TOPIC, "10s", "1GiB");
        all[1].figures.push(job.run(full, &FROM_ARCHIVE));
        all[1].rows = job.rows();
        for (runs, table_function) in all[2..].iter_mut().zip([false, true]) {
            let (figures, rows) = flink.run(table_function);
            runs.figures.push(figures);
            runs.rows = rows;
        }
    }
    println!("\n{events} clicks into sessions, {THREADS} threads:");
    println!(
        "| run | events/s | events/s per core used | CPU s per million | peak memory MB | rows | runs, s |\n|---|---|---|---|---|---|---|"
    );
    for runs in &all {
        let (wall, cpu) = (wall(&runs.figures), cpu(&runs.figures));
        let peak = runs.figures.iter().map(|f| f.peak_bytes).max();
        println!(
            "| {} | {:.0} | {:.0} | {:.2} | {:.0} | {} | {} |",
            runs.name,
            events as f64 / wall,
            events as f64 / cpu,
            cpu * 1e6 / events as f64,
            peak.unwrap_or_default() as f64 / 1e6,
            runs.rows,
            seconds(&runs.figures),
        );
    }
    for runs in &all[1..] {
        assert_eq!(runs.rows, all[0].rows, "{} gave other rows", runs.name);
    }
    let best = if wall(&all[2].figures) < wall(&all[3].figures) {
        &all[2].figures
    } else {
        &all[3].figures
    };
    println!("\n| ratio | by wall time | by CPU time | floor |\n|---|---|---|---|");
    for (name, ours, floor) in [
        ("kafka / the faster Flink", &all[0].figures, "5"),
        (
            "archive / the faster Flink",
            &all[1].figures,
            "more than kafka",
        ),
    ] {
        println!(
            "| {name} | {:.2} | {:.2} | {floor} |",
            wall(best) / wall(ours),
            cpu(best) / cpu(ours)
        );
    }
}

fn wall(figures: &[Figures]) -> f64 {
    median(figures.iter().map(|f| f.wall.as_secs_f64()))
}

fn cpu(figures: &[Figures]) -> f64 {
    median(figures.iter().map(|f| f.cpu.as_secs_f64()))
}

fn seconds(figures: &[Figures]) -> String {
    let all = figures
        .iter()
        .map(|f| format!("{:.2}", f.wall.as_secs_f64()));
    all.collect::<Vec<_>>().join(" ")
}

/// A Flink that has the topic as its table, and room for all its state.
struct OnFlink {
    flink: Flink,
    folder: tempfile::TempDir,
    query: Query,
    bootstrap: String,
}

impl OnFlink {
    fn start(kafka: &Kafka) -> Self {
        let folder = tempfile::tempdir().expect("temp dir");
        let query = Query::new(
            SESSIONS,
            "bench_clicks",
            clicks::columns().schema(),
            "to_timestamp_millis(timestamp_ms)",
            EventTime {
                bound: Duration::from_secs(30),
                ..EventTime::default()
            },
        )
        .expect("a good query");
        let slots = THREADS.to_string();
        Self {
            flink: Flink::start(&["--slots", &slots, "--heap", "6g"]),
            folder,
            query,
            bootstrap: kafka.bootstrap.clone(),
        }
    }

    /// One run over the whole topic, and its number of rows.
    fn run(&self, table_function: bool) -> (Figures, usize) {
        let rows = self.folder.path().join("rows");
        let _ = std::fs::remove_dir_all(&rows);
        let pairs = |pairs: &[(&str, &str)]| {
            let owned = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            owned.collect::<Vec<_>>()
        };
        let program = self.query.flink(&Program {
            source: pairs(&[
                ("connector", "kafka"),
                ("topic", TOPIC),
                ("properties.bootstrap.servers", &self.bootstrap),
                ("properties.isolation.level", "read_committed"),
                ("scan.startup.mode", "earliest-offset"),
                ("scan.bounded.mode", "latest-offset"),
                ("format", "json"),
            ]),
            sink_name: "sessions".to_owned(),
            sink: pairs(&[
                ("connector", "filesystem"),
                ("path", &rows.display().to_string()),
                ("format", "json"),
            ]),
            watermark: None,
        });
        let mut program = program.expect("Flink has all of it");
        if table_function {
            let (tables, _) = program.split_once("INSERT INTO").expect("its INSERT");
            program = format!("{tables}{TABLE_FUNCTION}");
        }
        let checkpoints = format!(
            "execution.checkpointing.dir=file://{}/checkpoints",
            self.folder.path().display()
        );
        let parallelism = format!("parallelism.default={THREADS}");
        let jobs = self.flink.sql(
            &program,
            &[
                &parallelism,
                "pipeline.object-reuse=true",
                "state.backend.type=hashmap",
                "execution.checkpointing.interval=10s",
                &checkpoints,
            ],
        );
        let [job] = jobs.as_slice() else {
            panic!("one INSERT is one job: {jobs:?}");
        };
        let said: serde_json::Value = serde_json::from_str(job).expect("a line of JSON");
        assert_eq!(said["state"], "FINISHED", "{program}");
        let number = |name: &str| {
            said[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{name} in {said}"))
        };
        let files = std::fs::read_dir(&rows).expect("Flink's files");
        let rows = files.map(|file| lines(&file.expect("a file").path())).sum();
        let figures = Figures {
            wall: Duration::from_millis(number("ms")),
            cpu: Duration::from_millis(number("cpu_ms")),
            peak_bytes: number("peak_bytes"),
        };
        (figures, rows)
    }
}

/// [`SESSIONS`] as Flink's newer form has it.
const TABLE_FUNCTION: &str = "INSERT INTO `sessions` SELECT user_id, window_start, window_end, \
     count(*) FILTER (WHERE event_type = 'view'), count(*) FILTER (WHERE event_type = 'purchase') \
     FROM SESSION(TABLE bench_clicks PARTITION BY user_id, DESCRIPTOR(ts), INTERVAL '30' MINUTE) \
     GROUP BY user_id, window_start, window_end;";

/// What checkpoints cost: from the archive, where a second of work is most.
fn checkpoints(full: &Everlog, events: usize, rounds: usize) {
    let mut all = [
        ("1h", "none but the last"),
        ("10s", "default"),
        ("1s", "ten times as often"),
    ]
    .map(|(interval, name)| (interval, name, Vec::new()));
    for round in 1..=rounds {
        for (interval, _, figures) in &mut all {
            let job = Job::new(
                full,
                &format!("every-{interval}-{round}"),
                TOPIC,
                interval,
                "1GiB",
            );
            figures.push(job.run(full, &FROM_ARCHIVE));
        }
    }
    let (base_wall, base_cpu) = (wall(&all[0].2), cpu(&all[0].2));
    println!(
        "\ncheckpoints, {events} clicks from the archive (an epoch also ends when its changes or rows are many):"
    );
    println!(
        "| interval | | runs, s | cost by wall time | cost by CPU time | ceiling |\n|---|---|---|---|---|---|"
    );
    for (interval, name, figures) in &all {
        println!(
            "| {interval} | {name} | {} | {:+.1} % | {:+.1} % | 10 % |",
            seconds(figures),
            100.0 * (wall(figures) / base_wall - 1.0),
            100.0 * (cpu(figures) / base_cpu - 1.0),
        );
    }
}

/// Whether memory holds when the state grows to ten times as much.
fn memory(runtime: &Runtime, kafka: &Kafka, broker: &Broker) {
    println!("\nopen sessions, one for each user, with `limits.memory = \"64MiB\"`:");
    println!("| users | events/s | peak memory MB | files of the state, MB |\n|---|---|---|---|");
    let mut peaks = Vec::new();
    for users in [USERS, 10 * USERS] {
        let topic = format!("bench.open.{users}");
        clicks::create(runtime, broker, &topic);
        let lake = archived(kafka, &topic);
        clicks::fill(broker, &topic, clicks::open(users));
        let job = Job::new(&lake, "open", &topic, "10s", "64MiB");
        let figures = job.run(&lake, &["--until", "now"]);
        assert_eq!(job.rows(), 0, "all sessions are open");
        println!(
            "| {users} | {:.0} | {:.0} | {:.0} |",
            users as f64 / figures.wall.as_secs_f64(),
            figures.peak_bytes as f64 / 1e6,
            bytes(&job.state) as f64 / 1e6,
        );
        peaks.push(figures.peak_bytes as f64);
    }
    println!(
        "\nten times the state takes {:.2} times the memory",
        peaks[1] / peaks[0]
    );
}

/// Bytes of all files in a folder and below.
fn bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
