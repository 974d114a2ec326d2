//! `make demo` is the README's first command: it must succeed, and what it leaves behind must work.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn everlog(dir: &std::path::Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everlog"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVERLOG_") {
            command.env_remove(name);
        }
    }
    command
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("run everlog")
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn the_demo_proves_its_story_and_leaves_a_lake_that_commands_work_on() {
    let dir = tempfile::tempdir().expect("temp dir");
    let began = Instant::now();
    let told = ok(&everlog(dir.path(), &["demo", "--dir", "lake"]));
    // On two busy cores, unoptimised; the promise of two minutes is for a machine of one's own.
    assert!(began.elapsed() < Duration::from_secs(300), "{told}");
    for step in [
        "an embedded Kafka broker",
        "kill -9",
        "it went on exactly at the ledger's offsets",
        "Kafka has forgotten",
        "handed off to Kafka at partition:offset",
        "proof: all 280,000 events came once, in order, bit for bit",
        "the archive alone holds them all",
        "time travel: how many purchases",
        "proof: Silver has all",
        "those are dead letters",
        "in the middle of its replay",
        "it went on exactly from there",
        "proof: both have exactly the sessions",
        "clicks: ",
        "one commit, after which readers of the table see version 2",
        "time travel: sessions before and after",
        "every proof held",
    ] {
        assert!(told.contains(step), "{step} in {told}");
    }

    // The commands that it prints.
    let config = "lake/everlog.toml";
    let all = ok(&everlog(
        dir.path(),
        &[
            "--config",
            config,
            "replay",
            "clickstream.raw",
            "--until",
            "snapshot",
            "--output",
            "count",
        ],
    ));
    assert!(all.contains("340000"), "{all}");
    let snapshot = told
        .lines()
        .find_map(|l| l.split("--snapshot ").nth(1))
        .and_then(|rest| rest.split_whitespace().next())
        .expect("a snapshot to try");
    let then = ok(&everlog(
        dir.path(),
        &[
            "--config",
            config,
            "replay",
            "clickstream.raw",
            "--snapshot",
            snapshot,
            "--output",
            "count",
        ],
    ));
    assert_ne!(then, all);
    let first = ok(&everlog(
        dir.path(),
        &[
            "--config",
            config,
            "replay",
            "clickstream.raw",
            "--until",
            "offset:2",
            "--snapshot",
            snapshot,
            "--partitions",
            "1",
        ],
    ));
    let lines: Vec<serde_json::Value> = first
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2, "{first}");
    assert_eq!(
        (&lines[0]["offset"], &lines[1]["offset"]),
        (&0.into(), &1.into())
    );
    assert_eq!(lines[0]["source"], "archive");

    let shown = ok(&everlog(
        dir.path(),
        &[
            "--config",
            config,
            "job",
            "show",
            "lake/sessions-v2.toml",
            "--json",
        ],
    ));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["active"], "v2", "{shown}");
    let back = ok(&everlog(
        dir.path(),
        &["--config", config, "rollback", "lake/sessions-v2.toml"],
    ));
    assert!(back.contains("v1"), "{back}");
    for job in ["silver", "sessions-v1", "sessions-v2"] {
        let file = format!("lake/{job}.toml");
        let program = ok(&everlog(
            dir.path(),
            &["--config", config, "process", "--flink", &file],
        ));
        assert!(program.contains("CREATE TABLE"), "{program}");
    }

    // Another demo does not destroy what is not its own.
    std::fs::create_dir(dir.path().join("mine")).expect("folder");
    std::fs::write(dir.path().join("mine/thesis.txt"), "years").expect("file");
    let refused = everlog(dir.path(), &["demo", "--dir", "mine"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(dir.path().join("mine/thesis.txt").exists());
}
