//! The binary as scripts see it: exit status, what goes to which output, one line about a failure.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `everlog ARGS` in a folder of its own, with nothing configured by the environment.
fn everlog(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everlog"));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy().into_owned();
        if name_text.starts_with("EVERLOG_") || name_text == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
        .args(args)
        .current_dir(dir)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("run everlog")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// The one line on standard error of a command that failed.
#[track_caller]
fn failure(output: &Output, status: i32) -> String {
    let text = err(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("error: "), "{text}");
    text.trim_end().to_owned()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("temp dir")
}

/// A configuration whose lake is in the folder and whose broker is not there.
fn configured() -> tempfile::TempDir {
    let dir = folder();
    let at = dir.path().display();
    let text = format!(
        "[kafka]\n\"bootstrap.servers\" = \"127.0.0.1:1\"\n\"everlog.request.timeout.ms\" = 500\n\
         [catalog]\ntype = \"sql\"\nuri = \"sqlite://{at}/catalog.db\"\nwarehouse = \"file://{at}/warehouse\"\n\
         [archive]\ntopics = [\"orders\"]\n"
    );
    std::fs::write(dir.path().join("everlog.toml"), text).expect("write");
    // an empty database: only the archiver makes one
    std::fs::write(dir.path().join("catalog.db"), "").expect("write");
    dir
}

#[test]
fn help_goes_to_standard_output_and_lists_what_there_is() {
    let dir = folder();
    let output = everlog(dir.path(), &["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = out(&output);
    for expected in [
        "demo",
        "archive",
        "replay",
        "status",
        "verify",
        "process",
        "sql",
        "schema",
        "compare",
        "promote",
        "rollback",
        "job ",
        "maintain",
        "config",
        "Exit status:",
        "Examples:",
        "EVERLOG_<SECTION>__<KEY>",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    // Later work: not a word of it before it is there.
    assert!(!text.contains("\n  gateway"), "{text}");
    assert_eq!(err(&output), "");
}

#[test]
fn every_command_has_help_with_examples() {
    let dir = folder();
    for command in [
        "archive",
        "replay",
        "status",
        "maintain",
        "sql",
        "compare",
        "promote",
        "rollback",
        "schema infer",
        "schema check",
        "schema view",
        "job list",
        "job show",
        "job drop",
    ] {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = everlog(dir.path(), &words, &[]);
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(out(&output).contains("Examples:"), "{command}");
    }
    let text = out(&everlog(dir.path(), &["replay", "--help"], &[]));
    for option in [
        "--from",
        "--until",
        "--follow",
        "--snapshot",
        "--as-of",
        "--tag",
        "--partitions",
        "--order",
        "--rate",
        "--resume",
        "--on-gap",
        "--lease",
        "--encoding",
        "--output",
    ] {
        assert!(text.contains(option), "{option} in {text}");
    }
    let text = out(&everlog(dir.path(), &["archive", "--help"], &[]));
    for option in ["--until-caught-up", "--accept"] {
        assert!(text.contains(option), "{option} in {text}");
    }
}

#[test]
fn commands_about_jobs_say_what_is_missing() {
    let dir = configured();
    let location = format!("file://{}/jobs", dir.path().display());
    let listed = everlog(dir.path(), &["job", "list", "--location", &location], &[]);
    assert_eq!(listed.status.code(), Some(0), "{}", err(&listed));
    assert!(out(&listed).starts_with("there are no jobs in file://"));
    for (args, expected) in [
        (&["job", "show", "sessions"][..], "there is no job sessions"),
        (
            &["compare", "sessions", "v1", "v2"],
            "there is no job sessions",
        ),
        (&["promote", "sessions", "v2"], "there is no job sessions"),
        (&["rollback", "sessions"], "there is no job sessions"),
        (
            &["job", "drop", "sessions", "v1", "--yes"],
            "there is no job sessions",
        ),
        (&["rollback", "Sessions"], "a job is given by its name"),
        (
            &["rollback", "sessions.toml"],
            "--location is for a job that is given by its name",
        ),
    ] {
        let words = [args, &["--location", location.as_str()]].concat();
        let line = failure(&everlog(dir.path(), &words, &[]), 2);
        assert!(line.contains(expected), "{args:?}: {line}");
    }
    let line = failure(&everlog(dir.path(), &["job", "show", "none.toml"], &[]), 2);
    assert!(line.contains("none.toml: cannot be read"), "{line}");
    let words = ["job", "list", "--location", "jobs"];
    let line = failure(&everlog(dir.path(), &words, &[]), 2);
    assert!(line.contains("the jobs' location jobs"), "{line}");
    assert!(!dir.path().join("jobs").exists(), "nothing was made");
}

#[test]
fn a_job_is_checked_and_shown_as_flink_has_it_before_anything_is_configured() {
    let dir = folder();
    let page = include_str!("../../docs/jobs.md");
    let (_, job) = page.split_once("```toml\n").expect("a job");
    let (job, _) = job.split_once("```").expect("its end");
    std::fs::write(dir.path().join("sessions.toml"), job).expect("write");
    let process = |args: &[&str]| {
        let words = [&["process"], args, &["sessions.toml"]].concat();
        let output = everlog(dir.path(), &words, &[]);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        output
    };
    let checked = out(&process(&["--check"]));
    assert!(
        checked.contains("not estimated: configuration"),
        "{checked}"
    );
    let shown = process(&["--flink"]);
    assert!(err(&shown).starts_with("note: "), "{}", err(&shown));
    assert!(out(&shown).contains("INSERT INTO `sessions`"));
}

#[test]
fn bad_usage_is_one_line_and_exit_status_2() {
    let dir = folder();
    for (args, expected) in [
        (&["frobnicate"][..], "unrecognized subcommand 'frobnicate'"),
        (&["archive", "--until-caught"], "--until-caught-up"),
        (&["replay"], "<TOPIC>"),
        (&["replay", "no topic"], "not a topic name"),
        (&["replay", "t", "--from", "yesterday"], "--from"),
        (&["replay", "t", "--partitions", "5-3"], "--partitions"),
        (&["replay", "t", "--output", "csv"], "--output"),
        (&["replay", "t", "--rate", "0"], "--rate"),
        (&["replay", "t", "--snapshot", "1", "--tag", "x"], "--tag"),
        (&["--log-format", "xml", "status"], "--log-format"),
        (&["archive", "--accept", "newest"], "--accept"),
        (
            &["--log-level", "nonsense", "status"],
            "--log-level nonsense",
        ),
        (&[], "no command was given"),
    ] {
        let output = everlog(dir.path(), args, &[]);
        let line = failure(&output, 2);
        assert!(line.contains(expected), "{expected} in {line}");
        assert!(line.contains("--help"), "{line}");
        assert_eq!(out(&output), "", "{args:?}");
    }
}

#[test]
fn all_problems_of_the_configuration_come_at_once_on_one_line() {
    let dir = folder();
    std::fs::write(
        dir.path().join("everlog.toml"),
        "[kafka]\n\"bootstrap.server\" = \"x:1\"\n[catalog]\ntype = \"sq\"\n[archive]\ncommit_interval = \"10\"\ncolour = 1\n",
    )
    .expect("write");
    let output = everlog(
        dir.path(),
        &["archive"],
        &[("EVERLOG_ARCHIVE__ON_GAP", "skip")],
    );
    let line = failure(&output, 2);
    for expected in [
        "error: everlog.toml: ",
        "kafka.bootstrap.server (line 2): is no property of librdkafka; did you mean bootstrap.servers?",
        "kafka.bootstrap.servers: is missing",
        "catalog.type (line 4): must be \"sql\" or \"rest\", not \"sq\"",
        "catalog.uri: is missing",
        "archive.topics: is missing",
        "archive.commit_interval (line 6): \"10\" is not a duration",
        "archive.colour (line 7): is unknown",
        "archive.on_gap (EVERLOG_ARCHIVE__ON_GAP): must be \"stop\" or \"record\", not \"skip\"",
    ] {
        assert!(line.contains(expected), "{expected}\nin {line}");
    }
    // `config check` gives each problem a line of its own, on standard output.
    let output = everlog(dir.path(), &["config", "check"], &[]);
    failure(&output, 2);
    assert_eq!(out(&output).lines().count(), 7, "{}", out(&output));
}

#[test]
fn a_file_that_is_not_there_is_told_unless_it_is_the_default() {
    let dir = folder();
    let output = everlog(dir.path(), &["--config", "nowhere.toml", "status"], &[]);
    let line = failure(&output, 2);
    assert!(line.contains("nowhere.toml: cannot be read"), "{line}");
    let at = dir.path().display();
    let variables = [
        ("EVERLOG_CATALOG__TYPE", "sql".to_owned()),
        ("EVERLOG_CATALOG__URI", format!("sqlite://{at}/catalog.db")),
        ("EVERLOG_CATALOG__WAREHOUSE", format!("file://{at}/lake")),
        ("EVERLOG_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1".to_owned()),
        ("EVERLOG_ARCHIVE__TOPICS", "a,b".to_owned()),
    ];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let output = everlog(dir.path(), &["config", "check"], &variables);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).ends_with("ok\n"));
}

#[test]
fn the_default_file_is_accepted_and_printed_back_without_secrets() {
    let dir = folder();
    let output = everlog(dir.path(), &["config", "print", "--default"], &[]);
    assert_eq!(output.status.code(), Some(0));
    std::fs::write(dir.path().join("everlog.toml"), &output.stdout).expect("write");
    assert_eq!(
        everlog(dir.path(), &["config", "check"], &[]).status.code(),
        Some(0)
    );
    let secret = [("EVERLOG_KAFKA__SASL_PASSWORD", "hunter2")];
    let output = everlog(dir.path(), &["config", "print"], &secret);
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(text.contains("\"sasl.password\" = \"<redacted>\"") && !text.contains("hunter2"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = folder();
    // Longer than a pipe's buffer only matters for the write to meet the closed end; one page more than enough.
    for args in [&["config", "docs"][..], &["--help"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_everlog"))
            .args(args)
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run everlog");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("wait");
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        assert_eq!(err(&output), "");
    }
}

#[test]
fn what_is_not_there_fails_with_one_line_that_says_what_to_do() {
    let dir = configured();
    let line = failure(&everlog(dir.path(), &["maintain", "orders"], &[]), 1);
    assert!(
        line.contains("orders") && line.contains("everlog archive"),
        "{line}"
    );
    let output = everlog(
        dir.path(),
        &["replay", "orders", "--until", "snapshot"],
        &[],
    );
    let line = failure(&output, 1);
    assert!(
        line.contains("orders") && line.contains("not archived"),
        "{line}"
    );
    let output = everlog(dir.path(), &["maintain"], &[]);
    assert_eq!(
        (output.status.code(), out(&output).as_str()),
        (Some(0), "nothing is archived in namespace everlog\n")
    );
}

#[test]
fn a_command_that_only_looks_makes_no_catalog() {
    let dir = configured();
    let file = dir.path().join("lake").join("catalog.db");
    let uri = format!("sqlite://{}", file.display());
    for args in [
        &["status"][..],
        &["maintain"],
        &["replay", "orders", "--until", "snapshot"],
    ] {
        let output = everlog(dir.path(), args, &[("EVERLOG_CATALOG__URI", &uri)]);
        let line = failure(&output, 1);
        let expected = format!(
            "no catalog at {}: check catalog.uri, or start the archiver",
            file.display()
        );
        assert!(line.contains(&expected), "{line}");
        assert!(!dir.path().join("lake").exists(), "{args:?} made a folder");
    }
}

#[test]
fn status_tells_what_it_knows_when_kafka_does_not_answer() {
    let dir = configured();
    let output = everlog(dir.path(), &["status", "--json"], &[]);
    let line = failure(&output, 1);
    assert!(
        line.contains("kafka: cannot reach 127.0.0.1:1: check kafka \"bootstrap.servers\""),
        "{line}"
    );
    let json: serde_json::Value = serde_json::from_str(&out(&output)).expect("JSON");
    assert_eq!(json["version"], 1);
    assert!(json["kafka"]["problem"].is_string(), "{json}");
    // configured by name, and nobody can say whether it is there
    assert_eq!(json["topics"][0]["topic"], "orders");
    assert!(json["topics"][0]["in_kafka"].is_null() && json["topics"][0]["table"].is_null());
}

#[test]
fn a_failure_is_json_where_the_log_is() {
    let dir = folder();
    let output = everlog(
        dir.path(),
        &["--log-format", "json", "--config", "nowhere.toml", "status"],
        &[],
    );
    assert_eq!(output.status.code(), Some(2));
    let json: serde_json::Value = serde_json::from_str(&err(&output)).expect("JSON");
    assert_eq!(json["level"], "ERROR");
    assert_eq!(json["exit_status"], 2);
    assert!(
        json["message"]
            .as_str()
            .is_some_and(|m| m.contains("nowhere.toml"))
    );
}

#[test]
fn a_view_for_another_engine_needs_no_server() {
    let dir = folder();
    let at = dir.path().display();
    let config = format!(
        "[catalog]\ntype = \"sql\"\nuri = \"sqlite://{at}/catalog.db\"\nwarehouse = \"file://{at}/warehouse\"\n\
         [decode.\"a.b\"]\nformat = \"json\"\ncolumns = {{ user = \"STRING\", t = \"TIME(3)\" }}\n[decode.c]\nformat = \"text\"\n"
    );
    std::fs::write(dir.path().join("everlog.toml"), config).unwrap();
    let run = |args: &[&str]| everlog(dir.path(), args, &[]);
    let output = run(&["schema", "view", "a.b", "--engine", "spark"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let sql = out(&output);
    assert!(
        sql.contains("CREATE OR REPLACE TEMPORARY VIEW `a_b_v` AS\n")
            && sql.contains("FROM `everlog`.`everlog`.`a_b`) AS t;"),
        "{sql}"
    );
    assert_eq!(
        err(&output),
        "column t is left out: Spark has no type for a time of day: declare it STRING\n"
    );
    let output = run(&[
        "schema", "view", "c", "--engine", "trino", "--table", "x.y.c",
    ]);
    assert!(
        out(&output).contains("CREATE OR REPLACE VIEW x.y.\"c_v\" AS"),
        "{}",
        out(&output)
    );
    for (args, status, message) in [
        (
            &["schema", "view", "d", "--engine", "trino"][..],
            2,
            "error: nobody said what the values of topic d are: add [decode.\"d\"] to the configuration; `everlog schema infer d` prints one\n",
        ),
        (
            &["schema", "check", "a.b"],
            2,
            "error: the values of topic a.b are not Avro, by [decode.\"a.b\"]: only schemas of a registry can be checked\n",
        ),
        (
            &["schema", "check", "d"],
            2,
            "error: schemas are checked by the registry that has them: add [registry] with its url to the configuration\n",
        ),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert_eq!(err(&output), message, "{args:?}");
        assert_eq!(out(&output), "", "{args:?}");
    }
}
