//! `everlog sql` as scripts and people see it, on a lake without tables: options, formats, files, and the shell on a
//! terminal.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A folder with a configuration, an empty catalog and a table of users.
fn configured() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temp dir");
    let at = dir.path().display();
    let text = format!(
        "[catalog]\ntype = \"sql\"\nuri = \"sqlite://{at}/catalog.db\"\nwarehouse = \"file://{at}/warehouse\"\n"
    );
    std::fs::write(dir.path().join("everlog.toml"), text).expect("write");
    std::fs::write(dir.path().join("catalog.db"), "").expect("write");
    let mut users = "id,name\n".to_owned();
    for id in 0..2_000 {
        users.push_str(&format!("{id},user {id}\n"));
    }
    std::fs::write(dir.path().join("users.csv"), users).expect("write");
    dir
}

fn command(dir: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().into_owned();
        if text.starts_with("EVERLOG_") || text == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.current_dir(dir);
    command
}

/// `everlog sql ARGS`, with a text on standard input.
fn piped(dir: &Path, args: &[&str], input: &str) -> Output {
    let mut child = command(dir, env!("CARGO_BIN_EXE_everlog"))
        .arg("sql")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run everlog");
    let mut stdin = child.stdin.take().expect("piped");
    // what is refused before it is read has no reader
    let _gone = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("end")
}

fn sql(dir: &Path, args: &[&str]) -> Output {
    piped(dir, args, "")
}

/// What a command that succeeds writes.
#[track_caller]
fn answer(dir: &Path, args: &[&str]) -> String {
    let output = sql(dir, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*said), (Some(0), ""), "{args:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The one line of a command that fails.
#[track_caller]
fn failure(output: &Output, status: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("error: "), "{said}");
    said.trim_end().to_owned()
}

#[test]
fn a_statement_is_answered_in_every_format() {
    let dir = configured();
    let dir = dir.path();
    let statement =
        "SELECT 1 AS n, '' AS empty, NULL AS nothing, 'NULL' AS word, chr(27) || '[2J' AS escape";
    assert_eq!(
        answer(dir, &[statement]),
        " n | empty | nothing |  word  |  escape\n\
         ---+-------+---------+--------+-----------\n\
         \u{20}1 |       | NULL    | \"NULL\" | \\u{1b}[2J\n\
         (1 row)\n"
    );
    assert_eq!(
        answer(dir, &["--format", "csv", statement]),
        "n,empty,nothing,word,escape\r\n1,\"\",,NULL,\x1b[2J\r\n"
    );
    assert_eq!(
        answer(dir, &["--format", "jsonl", statement]),
        "{\"n\":1,\"empty\":\"\",\"nothing\":null,\"word\":\"NULL\",\"escape\":\"\\u001b[2J\"}\n"
    );
    for (format, magic) in [
        ("parquet", &b"PAR1"[..]),
        ("arrow", &[0xff, 0xff, 0xff, 0xff]),
    ] {
        let output = sql(dir, &["--format", format, "SELECT 1 AS n"]);
        assert!(
            output.status.success() && output.stdout.starts_with(magic),
            "{format}"
        );
    }
}

#[test]
fn statements_come_from_a_file_or_standard_input_in_order() {
    let dir = configured();
    let dir = dir.path();
    let script = "-- two; of them\nSELECT 'a;b' AS x;\nSELECT 2 AS y;\n";
    let expected = "{\"x\":\"a;b\"}\n{\"y\":2}\n";
    std::fs::write(dir.join("script.sql"), script).expect("write");
    assert_eq!(
        answer(dir, &["--format", "jsonl", "-f", "script.sql"]),
        expected
    );
    assert_eq!(answer(dir, &["--format", "jsonl", "--", script]), expected);
    for args in [
        &["--format", "jsonl"][..],
        &["--format", "jsonl", "-f", "-"],
    ] {
        let output = piped(dir, args, script);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
    // what was answered before a failure stays, and the failure says where it is
    let output = piped(
        dir,
        &["--format", "jsonl"],
        "SELECT 1 AS x; SELECT * FROM nowhere; SELECT 3",
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"x\":1}\n");
    let line = failure(&output, 2);
    assert!(
        line.starts_with("error: statement 2: ") && line.contains("nowhere"),
        "{line}"
    );
}

#[test]
fn a_wrong_use_is_one_line_and_status_2() {
    let dir = configured();
    let dir = dir.path();
    std::fs::write(dir.join("latin1.sql"), [0xe9]).expect("write");
    let cases: &[(&[&str], &str)] = &[
        (&[], "standard input has no statement"),
        (&["--", "-- nothing"], "the statement has no statement"),
        (&["SELECT 'a"], "Unterminated"),
        (&["SELEC 1"], "SELEC"),
        (&["SELECT 1", "-f", "x.sql"], "cannot be used with"),
        (&["-f", "absent.sql"], "absent.sql"),
        (&["-f", "latin1.sql"], "not UTF-8"),
        (
            &["--as-of", "yesterday", "SELECT 1"],
            "not an RFC 3339 time",
        ),
        (
            &[
                "--as-of",
                "2026-01-31T08:00:00Z",
                "--snapshot",
                "1",
                "SELECT 1",
            ],
            "cannot be used with",
        ),
        (
            &["--snapshot", "1", "--tag", "a", "SELECT 1"],
            "cannot be used with",
        ),
        (&["--live", "--tag", "a", "SELECT 1"], "cannot be used with"),
        (
            &["--snapshot", "newest", "SELECT 1"],
            "a snapshot's id is a number",
        ),
        (&["--table", "users", "SELECT 1"], "users=users.csv"),
        (
            &["--table", "users=absent.csv", "SELECT * FROM users"],
            "absent.csv",
        ),
        (&["--memory", "0B", "SELECT 1"], "512MiB"),
        (&["--timeout", "0s", "SELECT 1"], "30s"),
        (&["--threads", "0", "SELECT 1"], "number of threads"),
        (&["--format", "xml", "SELECT 1"], "xml"),
        (
            &["--out", "x.csv", "SELECT 1; SELECT 2"],
            "has 2: run them one by one",
        ),
        (
            &["--format", "parquet", "SELECT 1; SELECT 2"],
            "has 2: run them one by one",
        ),
        (&["DROP TABLE users"], ""),
    ];
    for (args, what) in cases {
        let output = sql(dir, args);
        let line = failure(&output, 2);
        assert!(line.contains(what), "{args:?}: {line}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    assert!(!dir.join("x.csv").exists());
}

#[test]
fn a_file_is_replaced_by_a_whole_answer_and_by_nothing_else() {
    let dir = configured();
    let dir = dir.path();
    // the ending says what it is to hold
    let users = ["--table", "users=users.csv", "--out", "out.csv"];
    let ask = |more: &[&str]| sql(dir, &[&users[..], more].concat());
    assert!(ask(&["SELECT count(*) AS n FROM users"]).status.success());
    let read = || std::fs::read_to_string(dir.join("out.csv")).expect("read");
    assert_eq!(read(), "n\r\n2000\r\n");
    let mode = std::fs::metadata(dir.join("out.csv"))
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o600, 0o600);
    // what nobody else could read, nobody else can read now
    let mine = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(dir.join("out.csv"), mine).expect("set");
    assert!(ask(&["SELECT count(*) AS n FROM users"]).status.success());
    let mode = std::fs::metadata(dir.join("out.csv")).expect("there");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    // fails after its first rows, at a limit
    let line = failure(&ask(&["--max-rows", "100", "SELECT * FROM users"]), 1);
    assert!(line.contains("100"), "{line}");
    failure(&ask(&["SELECT * FROM nowhere"]), 2);
    assert_eq!(read(), "n\r\n2000\r\n");
    let mut left: Vec<String> = std::fs::read_dir(dir)
        .expect("list")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.contains("out.csv"))
        .collect();
    left.sort();
    assert_eq!(left, ["out.csv"]);
    let line = failure(&sql(dir, &["--out", "no/such/folder/x", "SELECT 1"]), 1);
    assert!(line.contains("no/such/folder/x"), "{line}");
}

#[test]
fn limits_end_a_query_with_status_1() {
    let dir = configured();
    let dir = dir.path();
    let users = ["--table", "users=users.csv"];
    let long = "SELECT count(*) FROM users a, users b, users c, users d WHERE a.id + b.id + c.id + d.id = 7";
    let began = Instant::now();
    let line = failure(
        &sql(dir, &[&users[..], &["--timeout", "1s", long]].concat()),
        1,
    );
    assert!(line.contains("1s"), "{line}");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let rows = "SELECT * FROM users";
    assert_eq!(
        answer(
            dir,
            &[
                &users[..],
                &["--max-rows", "2000", "--format", "jsonl", rows]
            ]
            .concat()
        )
        .lines()
        .count(),
        2_000
    );
    failure(
        &sql(dir, &[&users[..], &["--max-rows", "1999", rows]].concat()),
        1,
    );
}

/// Bound of every wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// A shell on a terminal of its own, which `script` makes.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
    seen: usize,
}

impl Terminal {
    fn open(dir: &Path) -> Self {
        // in place of the shell: one that waited would be ended by Ctrl-C too, and say 130
        let everlog = format!(
            "exec {} sql --table users=users.csv",
            env!("CARGO_BIN_EXE_everlog")
        );
        let mut child = command(dir, "script")
            .args(["--quiet", "--return", "--command", &everlog, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm")
            .env("XDG_STATE_HOME", dir.join("state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run script");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let mut stdout = child.stdout.take().expect("piped");
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut some = [0; 4_096];
            while let Ok(count @ 1..) = stdout.read(&mut some) {
                shown
                    .lock()
                    .expect("not poisoned")
                    .extend_from_slice(&some[..count]);
            }
        });
        Self {
            keys: child.stdin.take().expect("piped"),
            child,
            screen,
            seen: 0,
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("a terminal");
        self.keys.flush().expect("a terminal");
    }

    /// Waits until something is shown, behind what was waited for before.
    #[track_caller]
    fn shows(&mut self, what: &str) {
        let began = Instant::now();
        loop {
            let screen = self.screen.lock().expect("not poisoned").clone();
            let new = String::from_utf8_lossy(&screen[self.seen..]).into_owned();
            if let Some(at) = new.find(what) {
                self.seen += at + what.len();
                return;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{what:?} is not shown in\n{new:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[test]
fn the_shell_takes_lines_completes_words_and_survives_ctrl_c() {
    let dir = configured();
    let mut shell = Terminal::open(dir.path());
    shell.shows("everlog> ");
    // a statement of two lines
    shell.press("SELECT 40 +\r2 AS sum;\r");
    shell.shows("  42");
    shell.shows("(1 row)");
    // Tab completes a word and a table, of which it knows the name
    shell.shows("everlog> ");
    shell.press("sel\t count(*) + 1 AS more FROM use\t;\r");
    shell.shows("2001");
    shell.shows("everlog> ");
    shell.press("\\d users\r");
    shell.shows("BIGINT");
    shell.shows("everlog> ");
    shell.press("\\timing\r");
    shell.shows("timing is on");
    // Ctrl-C ends what runs, and not the shell
    shell.shows("everlog> ");
    // eight billion rows take minutes, and four million of them held at most
    shell.press("SELECT count(*) FROM users a, users b, users c WHERE a.id + b.id + c.id = 7;\r");
    // the bar: it runs, and Ctrl-C is a signal now
    shell.shows(" rows ");
    shell.press("\u{3}");
    shell.shows("the query was cancelled");
    shell.shows("everlog> ");
    shell.press("SELECT 'still ' || 'here' AS x;\r");
    shell.shows("still here");
    shell.shows("Time: ");
    // Ctrl-C drops what is typed
    shell.shows("everlog> ");
    shell.press("SELECT nothing\u{3}");
    shell.shows("everlog> ");
    shell.press("SELECT * FROM nowhere;\r");
    shell.shows("error: ");
    shell.shows("everlog> ");
    shell.press("\\format csv\r");
    shell.shows("CSV");
    shell.shows("everlog> ");
    shell.press("\\o out.csv\r");
    shell.shows("everlog> ");
    shell.press("SELECT 1 AS n;\r");
    shell.shows("1 row written");
    shell.shows("everlog> ");
    shell.press("\\q\r");
    let began = Instant::now();
    let status = loop {
        match shell.child.try_wait().expect("wait") {
            Some(status) => break status,
            None => assert!(began.elapsed() < PATIENCE, "it does not end"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0));
    assert_eq!(
        std::fs::read_to_string(dir.path().join("out.csv")).expect("read"),
        "n\r\n1\r\n"
    );
    let history = dir.path().join("state/everlog/sql_history");
    let lines = std::fs::read_to_string(&history).expect("history");
    assert!(
        lines.contains("still ") && lines.contains("\\timing"),
        "{lines}"
    );
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&history), 0o600);
    assert_eq!(mode(history.parent().expect("a folder")), 0o700);
}
