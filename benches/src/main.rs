//! Archive, replay, job and query rates as ratios, measured in one run on one machine against real Kafka.
//!
//! `everlog-benches [EVENTS] [ROUNDS]` starts a broker, produces EVENTS events of 200 bytes to four partitions, and then, ROUNDS times
//! in turn (so that a noisy minute hits all alike):
//!
//! | run | what it is |
//! |---|---|
//! | drain | librdkafka alone: every message of the topic fetched and touched, nothing kept |
//! | archive | `everlog archive --until-caught-up`, commits every 10 s, zstd-1, from nothing |
//! | replay | `everlog replay --until snapshot --output count`: planned, ordered, verified |
//! | decode | the same Parquet files by the parquet crate alone, all columns, as many threads |
//! | verify | `everlog verify`: all of Kafka's records and the archive's side by side |
//! | hash | the continuity hash over as many rows, alone: its part of the archiver's CPU time |
//!
//! then the handoff's pause, jobs: see [`process`], and queries: see [`sql`].
//!
//! `everlog-benches process [EVENTS] [ROUNDS]` measures jobs alone, `everlog-benches parts [EVENTS]` where a job's time goes,
//! `everlog-benches sql [EVENTS] [ROUNDS]` queries alone.
//! `everlog-benches produce BOOTSTRAP EVENTS` fills the topic `bench` of a running Kafka alone, to profile by hand.
//!
//! Each run is a process of its own: wall time, CPU time (user and system) and peak resident memory are the kernel's. The
//! ratios are of medians. Wall time on a machine that also runs the broker is contention; CPU time is steadier.

#![allow(clippy::print_stdout, reason = "a report is what this program is for")]
#![allow(
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a measurement that fails should say so; figures are rounded"
)]

mod answers;
mod bare;
mod clicks;
mod handoff;
mod measure;
mod parts;
mod process;
mod sql;

use std::path::{Path, PathBuf};

use everlog_tests::broker::{Broker, Message};
use everlog_tests::everlog::{Everlog, Setup};
use everlog_tests::services::Kafka;
use measure::{Figures, median, run};

const TOPIC: &str = "bench";
const PARTITIONS: i32 = 4;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["drain", bootstrap, topic, events] => bare::drain(bootstrap, topic, number(events)),
        ["measure", program, args @ ..] => measure::measure(program, args),
        ["answers", program, args @ ..] => answers::follow(program, args),
        ["produce", bootstrap, events] => {
            produce_into(bootstrap, number(events));
        }
        ["decode", threads, files @ ..] => bare::decode(number(threads), files),
        ["parts", rest @ ..] => parts::report(&runtime(), or(rest.first(), 3_000_000)),
        ["process", rest @ ..] => {
            let (events, rounds) = (or(rest.first(), 5_000_000), or(rest.get(1), 3));
            process::report(&runtime(), &Kafka::start(), events, rounds);
        }
        ["sql", rest @ ..] => {
            let (events, rounds) = (or(rest.first(), 3_000_000), or(rest.get(1), 3));
            sql::report(&runtime(), &Kafka::start(), events, rounds);
        }
        ["hash", events, bytes] => bare::hash(number(events), number(bytes)),
        rest => {
            report(or(rest.first(), 3_000_000), or(rest.get(1), 3));
        }
    }
}

fn number(text: &str) -> usize {
    text.parse()
        .unwrap_or_else(|e| panic!("{text:?} is not a number: {e}"))
}

/// The number that was given, or the usual one.
fn or(given: Option<&&str>, usual: usize) -> usize {
    given.map_or(usual, |text| number(text))
}

fn report(events: usize, rounds: usize) {
    let kafka = Kafka::start();
    let (broker, sample) = produce_into(&kafka.bootstrap, events);
    let log_bytes = kafka.log_bytes(TOPIC);

    let me = std::env::current_exe().expect("this program's path");
    let mut drains = Vec::new();
    let mut archives = Vec::new();
    let mut replays = Vec::new();
    let mut decodes = Vec::new();
    let mut verifies = Vec::new();
    let mut hashes = Vec::new();
    let mut lake_bytes = 0;
    let mut file_count = 0;
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        let lake = Everlog::local(
            &Setup::new(&kafka.bootstrap, &[TOPIC]).archive("commit_interval = \"10s\""),
        );
        drains.push(run(
            &me,
            &["drain", &kafka.bootstrap, TOPIC, &events.to_string()],
        ));
        archives.push(measure::command(
            &lake.command(&["archive", "--until-caught-up"]),
        ));
        let counted = ["replay", TOPIC, "--until", "snapshot", "--output", "count"];
        replays.push(measure::command(&lake.command(&counted)));
        let files = parquet_files(&lake.dir().join("warehouse"));
        let mut args = vec!["decode".to_owned(), threads().to_string()];
        args.extend(files.iter().map(|f| f.display().to_string()));
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        decodes.push(run(&me, &words));
        verifies.push(measure::command(&lake.command(&["verify", TOPIC])));
        hashes.push(run(
            &me,
            &["hash", &events.to_string(), &sample.to_string()],
        ));
        lake_bytes = files
            .iter()
            .map(|f| f.metadata().map_or(0, |m| m.len()))
            .sum();
        file_count = files.len();
    }
    println!(
        "\n{events} events of 200 bytes (value {sample} bytes), {PARTITIONS} partitions, {} cores",
        threads()
    );
    println!("| run | events/s | CPU s per million | peak memory MB | runs, s |");
    println!("|---|---|---|---|---|");
    for (name, figures) in [
        ("drain", &drains),
        ("archive", &archives),
        ("replay", &replays),
        ("decode", &decodes),
        ("verify", &verifies),
        ("hash", &hashes),
    ] {
        row(name, figures, events);
    }
    let wall = |f: &[Figures]| median(f.iter().map(|f| f.wall.as_secs_f64()));
    let cpu = |f: &[Figures]| median(f.iter().map(|f| f.cpu.as_secs_f64()));
    let slower = if wall(&drains) > wall(&replays) {
        &drains
    } else {
        &replays
    };
    println!("\n| ratio | by wall time | by CPU time | floor | aim |\n|---|---|---|---|---|");
    for (name, base, of, floor, aim) in [
        ("archive / drain", &drains, &archives, "0.45", "0.6"),
        ("replay / bare decode", &decodes, &replays, "0.70", "0.85"),
        ("replay / drain", &drains, &replays, "2", "4"),
        (
            "verify / slower of drain and replay",
            slower,
            &verifies,
            "0.5",
            "0.8",
        ),
    ] {
        println!(
            "| {name} | {:.2} | {:.2} | {floor} | {aim} |",
            wall(base) / wall(of),
            cpu(base) / cpu(of)
        );
    }
    println!(
        "\nthe continuity hash is {:.1} % of the archiver's CPU time (aim: at most 3 %)",
        100.0 * cpu(&hashes) / cpu(&archives)
    );
    println!(
        "\nbytes per event: archive {:.1} in {file_count} files, Kafka's lz4 log {:.1}: {:.2}",
        lake_bytes as f64 / events as f64,
        log_bytes as f64 / events as f64,
        lake_bytes as f64 / log_bytes as f64
    );
    handoff::report(&runtime(), &kafka.bootstrap, &broker);
    process::report(&runtime(), &kafka, events, rounds);
    sql::report(&runtime(), &kafka, events, rounds);
}

/// Creates the topic and fills it. Gives the values' length.
fn produce_into(bootstrap: &str, events: usize) -> (Broker, usize) {
    println!("producing {events} events of 200 bytes to {PARTITIONS} partitions, lz4 ...");
    let broker = Broker::new(bootstrap);
    runtime().block_on(broker.create(TOPIC, PARTITIONS, &[]));
    let sample = produce(&broker, events);
    (broker, sample)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

fn row(name: &str, figures: &[Figures], events: usize) {
    let wall = median(figures.iter().map(|f| f.wall.as_secs_f64()));
    let cpu = median(figures.iter().map(|f| f.cpu.as_secs_f64()));
    let memory = figures
        .iter()
        .map(|f| f.peak_bytes)
        .max()
        .unwrap_or_default();
    let runs: Vec<String> = figures
        .iter()
        .map(|f| format!("{:.2}", f.wall.as_secs_f64()))
        .collect();
    println!(
        "| {name} | {:.0} | {:.2} | {:.0} | {} |",
        events as f64 / wall,
        cpu * 1e6 / events as f64,
        memory as f64 / 1e6,
        runs.join(" ")
    );
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Events that look like a clickstream: a JSON value, keys of a few thousand users. Gives the value's length.
fn produce(broker: &Broker, events: usize) -> usize {
    let feed = broker.producer(&[
        ("compression.type", "lz4"),
        ("batch.size", "262144"),
        ("linger.ms", "20"),
        ("queue.buffering.max.messages", "500000"),
    ]);
    let mut length = 0;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for n in 0..events {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let user = (state >> 33) % 5_000;
        let product = (state >> 20) % 20_000;
        let kind = ["view", "view", "view", "add_to_cart", "purchase"][n % 5];
        let time = 1_760_000_000_000_u64 + (n as u64) * 3;
        let key = format!("user-{user:05}");
        let mut value = format!(
            r#"{{"user_id":"{key}","product_id":"p-{product:06}","event_type":"{kind}","timestamp_ms":{time},"session":"{state:016x}","page":"/shop/{product}"}}"#
        );
        while value.len() < 200 {
            value.push(' ');
        }
        length = value.len();
        let partition = i32::try_from(user % u64::from(PARTITIONS.unsigned_abs())).unwrap_or(0);
        feed.send(
            TOPIC,
            &Message {
                partition,
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
                timestamp: i64::try_from(time).ok(),
                ..Message::default()
            },
        );
    }
    feed.flush();
    length
}

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "parquet") {
                found.push(path);
            }
        }
    }
    found
}
