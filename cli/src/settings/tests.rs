use super::*;

pub(super) fn document(file: &str, variables: &[(&str, &str)]) -> Document {
    let mut raw = Raw::default();
    let mut problems = Vec::new();
    raw.read_file(file, &mut problems);
    raw.read_environment(
        variables
            .iter()
            .map(|(k, v)| (OsString::from(k), OsString::from(v))),
        &mut problems,
    );
    Document {
        raw,
        place: "everlog.toml".to_owned(),
        problems,
    }
}

pub(super) fn problems(file: &str, variables: &[(&str, &str)], needs: Needs) -> Vec<String> {
    document(file, variables)
        .settings(needs)
        .err()
        .map(|e| e.problems().collect())
        .unwrap_or_default()
}

const SMALL: &str = r#"
[kafka]
"bootstrap.servers" = "127.0.0.1:9092"
[catalog]
type = "sql"
uri = "sqlite://lake/catalog.db"
warehouse = "file:///var/lib/everlog"
[archive]
topics = ["clickstream.raw", "^orders\\..*"]
"#;

#[test]
fn a_small_file_gets_every_default() {
    let settings = document(SMALL, &[]).settings(Needs::ALL).unwrap();
    assert_eq!(settings.catalog.namespace, "everlog");
    assert_eq!(settings.catalog.properties.get("name"), Some("everlog"));
    assert_eq!(settings.archive.commit_interval, Duration::from_secs(10));
    assert_eq!(settings.archive.isolation, Isolation::ReadCommitted);
    assert_eq!(settings.archive.on_gap, OnGap::Stop);
    assert_eq!(settings.archive.group, None);
    assert_eq!(settings.archive.memory, 512 << 20);
    assert_eq!(
        settings.archive.http,
        Some(Http {
            address: SocketAddr::from(([127, 0, 0, 1], 9464)),
            is_chosen: false,
        })
    );
    assert!(settings.archive.maintenance && settings.archive.delete_files);
    assert_eq!(settings.replay.memory, 256 << 20);
    assert!(settings.replay.threads >= 1);
}

#[test]
fn the_environment_wins_over_the_file() {
    let settings = document(
        SMALL,
        &[
            ("EVERLOG_ARCHIVE__COMMIT_INTERVAL", "1s"),
            ("EVERLOG_ARCHIVE__MAINTENANCE", "false"),
            ("EVERLOG_ARCHIVE__SNAPSHOTS_MIN", "3"),
            ("EVERLOG_ARCHIVE__HTTP", ""),
            ("EVERLOG_KAFKA__BOOTSTRAP_SERVERS", "broker:9092"),
            ("EVERLOG_CATALOG__S3_PATH_STYLE_ACCESS", "true"),
        ],
    )
    .settings(Needs::ALL)
    .unwrap();
    assert_eq!(settings.archive.commit_interval, Duration::from_secs(1));
    assert!(!settings.archive.maintenance);
    assert_eq!(settings.archive.snapshots_min, 3);
    assert_eq!(settings.archive.http, None);
    assert_eq!(settings.kafka.get("bootstrap.servers"), Some("broker:9092"));
    assert_eq!(
        settings.catalog.properties.get("s3.path-style-access"),
        Some("true")
    );
}

#[test]
fn all_problems_are_reported_at_once_by_key_and_line() {
    let found = problems(
        r#"
[kafka]
"bootstrap.server" = "x"
"sasl.mechanism" = "NO"
"socket.timeout.ms" = "soon"
[catalog]
type = "sqll"
namespace = "a..b"
[archive]
topics = ["ok", "no way", "^(", "orders.*"]
commit_interval = 10
isolation = "read-committed"
on_gap = true
memory = "12"
http = "9464"
snapshots_min = 50
snapshots_max = 10
snapshot_age = "1s"
[replay]
threads = -1
"#,
        &[("EVERLOG_REPLAY__MEMORY", "1KiB")],
        Needs::ALL,
    );
    for expected in [
        "kafka.bootstrap.servers: is missing, add it like: \"bootstrap.servers\" = \"127.0.0.1:9092\"",
        "kafka.bootstrap.server (line 3): is no property of librdkafka; did you mean bootstrap.servers?",
        "kafka.socket.timeout.ms (line 5): librdkafka refuses it: ",
        "catalog.type (line 7): must be \"sql\" or \"rest\", not \"sqll\" (did you mean \"sql\"?)",
        "catalog.uri: is missing",
        "catalog.namespace (line 8): \"a..b\" has an empty level",
        "archive.topics (line 10): \"no way\" is not a topic name",
        "archive.topics (line 10): \"^(\" is not a regular expression: ",
        "archive.topics (line 10): \"orders.*\" is not a topic name (1 to 249 characters of [A-Za-z0-9._-]); a regular expression begins with ^",
        "archive.commit_interval (line 11): must be text with a unit, like \"10s\", not the number 10",
        "archive.isolation (line 12): must be \"read_committed\" or \"read_uncommitted\", not \"read-committed\" (did you mean \"read_committed\"?)",
        "archive.on_gap (line 13): must be text in quotes, not true",
        "archive.memory (line 14): \"12\" is not a size",
        "archive.http (line 15): \"9464\" is not IP:PORT",
        "archive.snapshots_min (line 16): is 50, more than snapshots_max, 10",
        "archive.snapshot_age (line 18): is 1s, must be from 1m to 3650d",
        "replay.memory (EVERLOG_REPLAY__MEMORY): is 1KiB, must be from 16MiB to 1024GiB",
        "replay.threads (line 20): must be a whole number, not negative, not the number -1",
    ] {
        assert!(
            found.iter().any(|p| p.starts_with(expected)),
            "{expected}\nin {found:#?}"
        );
    }
}

#[test]
fn a_command_asks_only_for_what_it_needs() {
    let only_catalog = "[catalog]\ntype = \"rest\"\nuri = \"http://127.0.0.1:8181\"";
    assert_eq!(
        problems(only_catalog, &[], Needs::default()),
        Vec::<String>::new()
    );
    assert_eq!(problems(only_catalog, &[], Needs::ALL).len(), 2);
}

/// What opening the catalog refuses without asking anybody is found by the check, by key and line.
#[test]
fn a_catalog_that_cannot_be_opened_is_a_problem() {
    for (kind, key, value, expected) in [
        (
            "sql",
            "uri",
            "foo",
            "catalog.uri (line 3): give `sqlite://PATH`",
        ),
        (
            "sql",
            "uri",
            "http://x",
            "catalog.uri (line 3): give `sqlite://PATH`",
        ),
        (
            "rest",
            "uri",
            "sqlite://x",
            "catalog.uri (line 3): `sqlite://x` is not a http",
        ),
        (
            "rest",
            "uri",
            "http://x:99999",
            "catalog.uri (line 3): `http://x:99999` is no address: invalid port",
        ),
        (
            "sql",
            "warehouse",
            "hdfs://x",
            "catalog.warehouse (line 4): `hdfs://x` has the scheme `hdfs`",
        ),
        (
            "sql",
            "warehouse",
            "file://relative/dir",
            "catalog.warehouse (line 4): `file://relative/dir` names a host",
        ),
        (
            "sql",
            "warehouse",
            "s3:/b",
            "catalog.warehouse (line 4): `s3:/b` is neither",
        ),
        (
            "sql",
            "everlog.catalog.request-timeout",
            "abc",
            "catalog.everlog.catalog.request-timeout (line 5): `abc`",
        ),
        (
            "rest",
            "everlog.catalog.request-timeout",
            "abc",
            "catalog.everlog.catalog.request-timeout (line 5): `abc`",
        ),
        (
            "sql",
            "everlog.storage.max-retries",
            "x",
            "catalog.everlog.storage.max-retries (line 5): `x` is not",
        ),
    ] {
        let uri = if kind == "sql" {
            "sqlite://c.db"
        } else {
            "http://c"
        };
        let mut lines = vec![
            "[catalog]".to_owned(),
            format!("type = {kind:?}"),
            format!("uri = {uri:?}"),
            "warehouse = \"file:///w\"".to_owned(),
        ];
        let line = format!("{key:?} = {value:?}");
        match lines
            .iter()
            .position(|l| l.starts_with(&format!("{key} =")))
        {
            Some(at) => lines[at] = line,
            None => lines.push(line),
        }
        let found = problems(&lines.join("\n"), &[], Needs::default());
        assert!(
            found.len() == 1 && found[0].starts_with(expected),
            "{expected}\nin {found:#?}"
        );
    }
    let password = "[catalog]\ntype = \"rest\"\nuri = \"ftp://ann:hunter2@x/\"";
    let found = problems(password, &[], Needs::default());
    assert!(
        found.len() == 1 && !found[0].contains("hunter2"),
        "{found:?}"
    );
}

#[test]
fn after_a_syntax_error_nothing_is_said_to_be_missing() {
    let broken = SMALL.replace("[archive]", "[archive");
    let found = problems(&broken, &[("EVERLOG_ARCHIVE__NOPE", "1")], Needs::ALL);
    assert!(
        !found.is_empty() && found.iter().all(|p| p.starts_with("line ")),
        "{found:?}"
    );
    let twice = SMALL.replace("type = \"sql\"", "type = \"sql\"\ntype = \"sql\"");
    let found = problems(&twice, &[], Needs::ALL);
    assert!(
        found.len() == 1 && found[0].contains("duplicate key"),
        "{found:?}"
    );
}

#[test]
fn an_address_that_was_written_is_chosen_even_where_it_is_the_default() {
    let written = format!("{SMALL}http = \"127.0.0.1:9464\"");
    let settings = document(&written, &[]).settings(Needs::ALL).unwrap();
    assert!(settings.archive.http.is_some_and(|http| http.is_chosen));
}

#[test]
fn a_secret_of_one_letter_leaves_the_message_whole() {
    assert_eq!(
        redact("no such value: e", "sasl.password", "e"),
        "no such value: e"
    );
    assert_eq!(
        redact("no hunter2", "sasl.password", "hunter2"),
        "no <redacted>"
    );
}

#[test]
fn secrets_are_in_no_debug_output_and_not_in_what_is_printed() {
    let file = format!(
        "{SMALL}\n[replay]\n[catalog.s3]\nsecret-access-key = \"hunter2\"\naccess-key-id = \"me\""
    )
    .replace("sqlite://lake/catalog.db", "postgres://ann:hunter2@db/lake");
    let document = document(
        &file,
        &[
            ("EVERLOG_KAFKA__SASL_PASSWORD", "hunter2"),
            ("EVERLOG_CATALOG__TOKEN", "hunter2"),
        ],
    );
    let settings = document.settings(Needs::ALL).unwrap();
    assert_eq!(settings.kafka.get("sasl.password"), Some("hunter2"));
    assert!(!format!("{settings:?}").contains("hunter2"));
    let shown = effective(document.raw());
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("\"sasl.password\" = \"<redacted>\"  # EVERLOG_KAFKA__SASL_PASSWORD"));
    assert!(shown.contains("\"s3.access-key-id\" = \"me\""), "{shown}");
    assert!(
        summary(&settings)["catalog"].contains("postgres://ann:<redacted>@db/lake"),
        "{settings:?}"
    );
}

#[test]
fn what_is_printed_can_be_read_back() {
    // what is printed is written, the defaults too: an address then gives way no more
    let small = format!("{SMALL}http = \"127.0.0.1:9464\"");
    let first = document(&small, &[("EVERLOG_ARCHIVE__TOPICS", "a,b")]);
    let text = effective(first.raw());
    let again = document(&text, &[]);
    assert_eq!(
        format!("{:?}", again.settings(Needs::ALL).unwrap()),
        format!("{:?}", first.settings(Needs::ALL).unwrap()),
        "{text}"
    );
}

#[test]
fn the_default_file_is_right_as_it_stands_and_with_every_comment_taken_away() {
    let text = default_file();
    assert!(
        text.contains("# Too small: More snapshots and smaller files"),
        "{text}"
    );
    document(&text, &[]).settings(Needs::ALL).unwrap();
    let all: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.starts_with("[decode") => rest,
            Some(rest) if rest.contains(" = ") && !rest.ends_with('.') => rest,
            _ => line,
        })
        // user and password are the other way to say it
        .filter(|line| !line.starts_with("token = "))
        .fold(String::new(), |text, line| text + line + "\n");
    let settings = document(&all, &[]).settings(Needs::ALL).unwrap();
    assert_eq!(settings.archive.group.as_deref(), Some("everlog-archive"));
    assert_eq!(settings.replay.threads, 2);
    assert!(settings.registry.is_some());
    assert_eq!(settings.decode[0].0.to_string(), "clickstream.raw");
}

#[test]
fn the_registry_is_judged_as_in_a_job() {
    let registry = |text: &str| format!("{SMALL}\n[registry]\n{text}");
    let settings = document(
        &registry("url = \"https://r:8081\"\nuser = \"ann\""),
        &[("EVERLOG_REGISTRY__PASSWORD", "hunter2")],
    );
    assert!(!effective(settings.raw()).contains("hunter2"));
    let settings = settings.settings(Needs::ALL).unwrap();
    assert!(!format!("{settings:?}").contains("hunter2"));
    let registry_of = settings.registry.unwrap();
    assert_eq!(registry_of.registry.timeout, Duration::from_secs(5));
    assert_eq!(registry_of.cache, None);
    assert!(matches!(registry_of.registry.auth, Auth::Basic { .. }));
    for (text, expected) in [
        (
            "user = \"ann\"\npassword = \"x\"",
            "registry.url: is missing, add it like: url = ",
        ),
        (
            "url = \"r:8081\"",
            "registry.url (line 12): \"r:8081\" is no http:// or https:// address; write it like",
        ),
        (
            "url = \"http://r\"\nuser = \"a\"",
            "registry.password: is missing beside user, add it like: password = \"env:REGISTRY_PASSWORD\"",
        ),
        (
            "url = \"http://r\"\npassword = \"a\"",
            "registry.user: is missing beside password",
        ),
        (
            "url = \"http://r\"\nuser = \"a\"\ntoken = \"b\"",
            "registry.token (line 14): excludes user and password: write a token or those",
        ),
        (
            "url = \"http://r\"\ntoken = \"env:\"",
            "registry.token (line 13): names nothing: write env:NAME or file:PATH",
        ),
        (
            "url = \"http://r\"\ntimeout = \"1h\"",
            "registry.timeout (line 13): is 1h, must be from 100ms to 1m",
        ),
        (
            "uri = \"http://r\"",
            "registry.uri (line 12): is unknown; did you mean url?",
        ),
    ] {
        let found = problems(&registry(text), &[], Needs::ALL);
        assert!(
            found.iter().any(|p| p.starts_with(expected)),
            "{expected}\n{found:#?}"
        );
    }
}

#[test]
fn the_page_of_the_configuration_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let due = reference();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &due).unwrap();
    }
    let held = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        held == due,
        "docs/configuration.md is not what the code says: run UPDATE_GOLDEN=1 cargo test -p everlog-cli page_of_the_configuration, and read the difference"
    );
}

#[test]
fn an_expression_that_becomes_too_large_is_refused() {
    let long = format!("^{}", "a.*".repeat(2_000));
    let file = SMALL.replace("\"clickstream.raw\"", &format!("{long:?}"));
    let problems = problems(&file, &[], Needs::ALL);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].ends_with(
            "is not a regular expression: it becomes too large, write a shorter one, or several"
        ),
        "{problems:?}"
    );
}

#[test]
fn any_text_is_a_configuration_or_refused_with_its_problems() {
    let full = default_file();
    everlog_hostile::feed_text("everlog.toml", &[SMALL, &full], |text| {
        let document = document(text, &[("EVERLOG_ARCHIVE__COMMIT_INTERVAL", "1s")]);
        // what the client library takes is its own; values are judged in the next test
        let mut raw = Raw::default();
        raw.read_file(text, &mut Vec::new());
        assert_eq!(raw.is_broken(), document.raw().is_broken());
        if !document.raw().is_broken() {
            let _ = effective(document.raw());
        }
    });
    let variables = "EVERLOG_KAFKA__SASL_PASSWORD=x\nEVERLOG_ARCHIVE__TOPICS=a,b\nEVERLOG_CATALOG__S3__ENDPOINT=http://x\n\
                     EVERLOG_REPLAY__THREADS=2\nEVERLOG_ARCHIVE__MEMORY=64MiB";
    everlog_hostile::feed_text("environment", &[variables], |text| {
        let variables: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let _ = document(SMALL, &variables);
    });
}

#[test]
fn any_value_is_read_and_written_back_or_refused() {
    let values = [
        "1h30m",
        "10s",
        "512MiB",
        "true",
        "[\"a\"]",
        "2",
        "127.0.0.1:9464",
        "day(archived_at)",
        "^a.*",
    ];
    everlog_hostile::feed_text("value", &values, |text| {
        if let Ok(duration) = parse_duration(text) {
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        if let Ok(bytes) = parse_bytes(text) {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
        let _ = value::shown("uri", text);
    });
    // every field, with what it does not expect, up to settings or problems
    let fields: Vec<String> = fields::FIELDS
        .iter()
        .filter(|field| field.section != Section::Kafka)
        .map(|field| format!("EVERLOG_{}__{}", field.section.name(), field.key).to_uppercase())
        .collect();
    // quoted as it is, it would break the message's one line
    let mut values = values.to_vec();
    values.push("\n2MiB\n");
    everlog_hostile::feed_text("field", &values, |text| {
        let name = &fields[text.len() % fields.len()];
        let read = document(SMALL, &[(name.as_str(), text)]).settings(Needs::default());
        if let Err(error) = read {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    });
}
