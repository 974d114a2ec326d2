//! `everlog verify` on real Kafka: what is sound holds, and every kind of damage is found, with its interval.

use std::path::{Path, PathBuf};

use everlog_tests::broker::{Broker, Message};
use everlog_tests::everlog::{Everlog, Setup};
use everlog_tests::services::Kafka;
use serde_json::Value;

/// Runs `everlog verify` and gives its exit status and its report.
fn verify(everlog: &Everlog, topic: &str, args: &[&str]) -> (i32, Value) {
    let mut all = vec!["verify", topic, "--json"];
    all.extend_from_slice(args);
    let output = everlog.run(&all);
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}\n{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap_or(-1), report)
}

fn state<'a>(report: &'a Value, check: &str) -> &'a str {
    let checks = report["checks"].as_array().expect("checks");
    let found = checks.iter().find(|c| c["name"] == check);
    found.and_then(|c| c["state"].as_str()).unwrap_or("absent")
}

fn data_files(everlog: &Everlog) -> Vec<PathBuf> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                below(&path, found);
            } else if path.extension().is_some_and(|e| e == "parquet") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    below(&everlog.dir().join("warehouse"), &mut found);
    found.sort();
    found
}

#[tokio::test]
async fn a_sound_archive_holds_and_every_damage_is_found() {
    let kafka = Kafka::start();
    let broker = Broker::new(&kafka.bootstrap);
    let topic = "verify.sound";
    broker.create(topic, 3, &[]).await;
    let feed = broker.producer(&[]);
    feed.fill(topic, 3, 0..3_000);
    let transactional = broker.producer(&[("transactional.id", "verify")]);
    transactional.init_transactions();
    for aborts in [true, false, true] {
        transactional.begin();
        transactional.fill(topic, 3, 3_000..3_300);
        if aborts {
            transactional.abort();
        } else {
            transactional.commit();
        }
    }
    feed.send(
        topic,
        &Message {
            partition: 1,
            value: None,
            headers: vec![("null", None), ("empty", Some(b""))],
            timestamp: Some(i64::MAX / 10),
            ..Message::default()
        },
    );
    feed.flush();
    let everlog = Everlog::local(&Setup::new(&kafka.bootstrap, &[topic]));
    everlog.archive();
    feed.fill(topic, 3, 4_000..6_000);
    everlog.archive();

    let rows = 3_000 + 300 + 1 + 2_000;
    let (status, report) = verify(&everlog, topic, &["--quick"]);
    assert_eq!(
        (status, report["holds"].as_bool()),
        (0, Some(true)),
        "{report}"
    );
    assert_eq!(state(&report, "log"), "skipped");
    let (status, report) = verify(&everlog, topic, &[]);
    assert_eq!(
        (status, report["records_compared"].as_u64()),
        (0, Some(rows)),
        "{report}"
    );
    assert_eq!(state(&report, "hashes"), "skipped");
    let (status, report) = verify(&everlog, topic, &["--full"]);
    assert_eq!(
        (status, report["records_compared"].as_u64()),
        (0, Some(rows)),
        "{report}"
    );
    for check in [
        "history",
        "manifests",
        "files",
        "coverage",
        "data",
        "hashes",
        "log",
    ] {
        assert_eq!(state(&report, check), "holds", "{report}");
    }

    // What Kafka has deleted meanwhile is still proven by hash.
    broker.delete_records(topic, 0, 500).await;
    let (status, report) = verify(&everlog, topic, &["--full"]);
    assert_eq!(status, 0, "{report}");
    let partitions = report["partitions"].as_array().expect("partitions");
    assert_eq!(partitions[0]["compared"]["start"], 500);
    assert!(
        partitions.iter().all(|p| p["hash_proven"] == true),
        "{report}"
    );

    // What came after the archive's last commit is no gap; what Kafka deleted before it was archived is one.
    feed.fill(topic, 3, 6_000..6_300);
    let (status, report) = verify(&everlog, topic, &[]);
    assert_eq!(status, 0, "{report}");
    let (_, end) = broker.bounds(topic, 2);
    let next = report["partitions"][2]["next"].as_i64().expect("next");
    broker.delete_records(topic, 2, end).await;
    let (status, report) = verify(&everlog, topic, &["--quick"]);
    assert_eq!(status, 3, "{report}");
    let finding = &report["findings"][0];
    assert_eq!(
        (
            finding["partition"].as_i64(),
            finding["start"].as_i64(),
            finding["end"].as_i64()
        ),
        (Some(2), Some(next), Some(end)),
        "{report}"
    );

    // A byte flipped, a file cut, a file gone.
    let file = data_files(&everlog).remove(0);
    let sound = std::fs::read(&file).expect("a data file");
    let mut damaged = sound.clone();
    damaged[sound.len() / 3] ^= 1;
    std::fs::write(&file, &damaged).expect("written");
    for args in [&["--offline"][..], &["--offline", "--full"]] {
        let (status, report) = verify(&everlog, topic, args);
        assert_eq!((status, state(&report, "data")), (4, "failed"), "{report}");
    }
    std::fs::write(&file, &sound[..sound.len() - 1]).expect("written");
    let (status, report) = verify(&everlog, topic, &["--offline", "--quick"]);
    assert_eq!((status, state(&report, "files")), (4, "failed"), "{report}");
    std::fs::remove_file(&file).expect("removed");
    let (status, report) = verify(&everlog, topic, &["--offline", "--quick"]);
    assert_eq!((status, state(&report, "files")), (3, "failed"), "{report}");
    std::fs::write(&file, &sound).expect("written");
    let (status, report) = verify(&everlog, topic, &["--offline", "--full"]);
    assert_eq!(status, 0, "{report}");
}
