//! The binary, its configuration and its output.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use everlog_common::clock::{RandomIds, SystemClock};
use everlog_common::{Ledger, TopicName};
use everlog_table::archive::{Archive, ArchiveDeps};
use everlog_table::catalog::{self, CatalogError};
use serde_json::Value;

use crate::compare::{Log, Record};
use crate::services::{self, Postgres, RestCatalog, S3};

/// The binary that the same build made: `EVERLOG_BIN`, else the one beside the test's own.
pub fn binary() -> PathBuf {
    if let Some(path) = services::environment("EVERLOG_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("this test's path");
    let folder = test
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps");
    let path = folder.join("everlog");
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build -p everlog-cli --features failpoints` first, or `make test`",
        path.display()
    );
    path
}

/// One installation: a folder with a configuration.
#[derive(Debug)]
pub struct Everlog {
    dir: tempfile::TempDir,
    /// `everlog.toml`.
    pub config: PathBuf,
    /// The `[catalog]` section, for other readers of the same tables.
    pub catalog: BTreeMap<String, String>,
}

/// How the archiver is set up; the rest is what a new user gets.
#[derive(Debug, Clone)]
pub struct Setup {
    /// `bootstrap.servers`.
    pub bootstrap: String,
    /// Names or regular expressions.
    pub topics: Vec<String>,
    /// Lines for the `[archive]` section.
    pub archive: Vec<String>,
    /// Lines for the `[kafka]` section.
    pub kafka: Vec<String>,
    /// Lines for the `[replay]` section.
    pub replay: Vec<String>,
}

impl Setup {
    /// Archives `topics`, committing every second.
    pub fn new(bootstrap: &str, topics: &[&str]) -> Self {
        Self {
            bootstrap: bootstrap.to_owned(),
            topics: topics.iter().map(|t| (*t).to_owned()).collect(),
            archive: vec!["commit_interval = \"1s\"".to_owned()],
            kafka: Vec::new(),
            replay: Vec::new(),
        }
    }

    /// One more line of the `[archive]` section; it replaces an earlier one of the same key.
    #[must_use]
    pub fn archive(mut self, line: &str) -> Self {
        let key = line.split('=').next().unwrap_or(line).trim().to_owned();
        self.archive
            .retain(|l| l.split('=').next().map(str::trim) != Some(&key));
        self.archive.push(line.to_owned());
        self
    }

    /// One more line of the `[kafka]` section.
    #[must_use]
    pub fn kafka(mut self, line: &str) -> Self {
        self.kafka.push(line.to_owned());
        self
    }

    /// One more line of the `[replay]` section.
    #[must_use]
    pub fn replay(mut self, line: &str) -> Self {
        self.replay.push(line.to_owned());
        self
    }
}

impl Everlog {
    /// With a local warehouse and an SQLite catalog.
    pub fn local(setup: &Setup) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("everlog-lake")
            .tempdir()
            .expect("temp dir");
        let catalog = local_catalog(dir.path());
        Self::with_catalog(dir, setup, catalog)
    }

    /// The same with warehouse and catalog in a folder of the caller's.
    pub fn local_at(setup: &Setup, folder: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("everlog-lake")
            .tempdir()
            .expect("temp dir");
        Self::with_catalog(dir, setup, local_catalog(folder))
    }

    /// With a local warehouse and a PostgreSQL catalog.
    pub fn postgres(setup: &Setup, postgres: &Postgres) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("everlog-lake")
            .tempdir()
            .expect("temp dir");
        let warehouse = format!("file://{}/warehouse", dir.path().display());
        let catalog = [
            ("type", "sql"),
            ("name", "everlog"),
            ("uri", &postgres.uri),
            ("warehouse", &warehouse),
            ("namespace", "everlog"),
        ];
        let catalog = catalog.map(|(k, v)| (k.to_owned(), v.to_owned()));
        Self::with_catalog(dir, setup, catalog.into())
    }

    /// With a REST catalog and S3.
    pub fn rest(setup: &Setup, catalog: &RestCatalog, s3: &S3) -> Self {
        let properties = s3.properties();
        let properties = properties.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        Self::rest_with(setup, catalog, &properties.collect::<Vec<_>>())
    }

    /// With a REST catalog, and with `properties` of it besides.
    pub fn rest_with(setup: &Setup, catalog: &RestCatalog, properties: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("everlog-lake")
            .tempdir()
            .expect("temp dir");
        let mut all = BTreeMap::new();
        let usual = [
            ("type", "rest"),
            ("uri", &catalog.uri),
            ("warehouse", &catalog.warehouse),
            ("namespace", "everlog"),
        ];
        for (key, value) in properties.iter().chain(&usual) {
            all.insert((*key).to_owned(), (*value).to_owned());
        }
        Self::with_catalog(dir, setup, all)
    }

    /// With exactly these `[catalog]` properties; `DIR` in a value is the installation's folder.
    pub fn with_properties(setup: &Setup, properties: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("everlog-lake")
            .tempdir()
            .expect("temp dir");
        let at = dir.path().display().to_string();
        let catalog = properties
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.replace("DIR", &at)))
            .collect();
        Self::with_catalog(dir, setup, catalog)
    }

    fn with_catalog(
        dir: tempfile::TempDir,
        setup: &Setup,
        catalog: BTreeMap<String, String>,
    ) -> Self {
        let mut text = format!("[kafka]\n\"bootstrap.servers\" = {:?}\n", setup.bootstrap);
        for line in &setup.kafka {
            let _ = writeln!(text, "{line}");
        }
        text.push_str("\n[catalog]\n");
        for (key, value) in &catalog {
            let _ = writeln!(text, "{key:?} = {value:?}");
        }
        let _ = writeln!(text, "\n[archive]\ntopics = {:?}", setup.topics);
        for line in &setup.archive {
            let _ = writeln!(text, "{line}");
        }
        if !setup.replay.is_empty() {
            text.push_str("\n[replay]\n");
        }
        for line in &setup.replay {
            let _ = writeln!(text, "{line}");
        }
        let config = dir.path().join("everlog.toml");
        std::fs::write(&config, text).expect("write the configuration");
        Self {
            dir,
            config,
            catalog,
        }
    }

    /// A second installation on the same tables with other settings.
    #[must_use]
    pub fn beside(&self, setup: &Setup) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("everlog-lake")
            .tempdir()
            .expect("temp dir");
        Self::with_catalog(dir, setup, self.catalog.clone())
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `everlog --config … ARGS`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .env_remove("EVERLOG_KILL_AT")
            .arg("--config")
            .arg(&self.config)
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end; standard output and error are captured.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("run everlog")
    }

    /// Runs to the end and demands success.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "everlog {} ended with {}\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8 output")
    }

    /// Runs it, which must fail with `status`; the one line that it says about that.
    #[track_caller]
    pub fn fails(&self, args: &[&str], status: i32) -> String {
        failure(&self.run(args), &args.join(" "), status)
    }

    /// Runs it, which must fail with `status` before it has written anything; the one line that it says about that.
    #[track_caller]
    pub fn refuses(&self, args: &[&str], status: i32) -> String {
        let output = self.run(args);
        let args = args.join(" ");
        assert!(output.stdout.is_empty(), "everlog {args} wrote something");
        failure(&output, &args, status)
    }

    /// `archive --until-caught-up`, which must succeed.
    #[track_caller]
    pub fn archive(&self) {
        self.ok(&["archive", "--until-caught-up"]);
    }

    /// Starts it in the background; `kill_at` is `POINT@N`: the process kills itself with SIGKILL when it comes to
    /// that fail point for the Nth time. Empty for never.
    pub fn start(&self, args: &[&str], kill_at: &str) -> Running {
        let name = format!("{}.log", args.join("-").replace('/', "_"));
        let path = self.dir().join(name);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .expect("log file");
        let mut command = self.command(args);
        if !kill_at.is_empty() {
            command.env("EVERLOG_KILL_AT", kill_at);
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start everlog: {e}"));
        Running { child, log: path }
    }

    /// Runs it to the end and watches the memory that it takes.
    #[track_caller]
    pub fn measured(&self, args: &[&str], patience: Duration) -> Measured {
        let out = tempfile::NamedTempFile::new_in(self.dir()).expect("temp file");
        let err = tempfile::NamedTempFile::new_in(self.dir()).expect("temp file");
        let mut child = self
            .command(args)
            .stdout(out.reopen().expect("open"))
            .stderr(err.reopen().expect("open"))
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start everlog: {e}"));
        let due = Instant::now() + patience;
        let mut peak = 0;
        let status = loop {
            peak = memory_peak(child.id()).max(peak);
            if let Some(status) = child.try_wait().expect("wait for everlog") {
                break status;
            }
            if Instant::now() >= due {
                let _ = child.kill();
                let _ = child.wait();
                panic!("everlog {} did not end within {patience:?}", args.join(" "));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let text = |file: &tempfile::NamedTempFile| {
            let bytes = std::fs::read(file.path()).expect("read");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Measured {
            code: status.code(),
            stdout: text(&out),
            stderr: text(&err),
            memory_peak: peak,
        }
    }

    /// Starts it with its standard output in our hand: it waits where we do not read on.
    pub fn piped(&self, args: &[&str], kill_at: &str) -> Piped {
        let log = tempfile::NamedTempFile::new_in(self.dir()).expect("temp file");
        let mut command = self.command(args);
        if !kill_at.is_empty() {
            command.env("EVERLOG_KILL_AT", kill_at);
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(log.reopen().expect("open"))
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start everlog: {e}"));
        let out = child.stdout.take().expect("a pipe");
        Piped {
            child,
            out: Some(BufReader::new(out)),
            log,
        }
    }

    /// The ledger of a topic's table, as its catalog has it now; empty where there is no table yet.
    pub async fn ledger(&self, topic: &str) -> Ledger {
        let ledger = self.try_ledger(topic).await;
        ledger.unwrap_or_else(|error| panic!("the ledger of {topic}: {error}"))
    }

    /// The same, or why it cannot be told now.
    pub async fn try_ledger(&self, topic: &str) -> Result<Ledger, String> {
        let catalog = match catalog::connect_existing(&self.catalog).await {
            Ok(catalog) => catalog,
            Err(CatalogError::Absent { .. }) => return Ok(Ledger::default()),
            Err(error) => return Err(format!("the catalog: {error}")),
        };
        let deps = ArchiveDeps {
            catalog,
            clock: Arc::new(SystemClock::default()),
            ids: Arc::new(RandomIds),
        };
        let topic = TopicName::new(topic).expect("a topic's name");
        let archive = Archive::open(deps, "everlog", &topic).await;
        match archive.map_err(|error| error.to_string())? {
            None => Ok(Ledger::default()),
            Some(archive) => {
                let state = archive.state().await;
                Ok(state.map_err(|error| error.to_string())?.ledger)
            }
        }
    }

    /// `replay TOPIC` with `args`, as records.
    #[track_caller]
    pub fn replay(&self, topic: &str, args: &[&str]) -> Log {
        let mut all = vec!["replay", topic, "--encoding", "base64", "--output", "jsonl"];
        all.extend_from_slice(args);
        parse(&self.ok(&all))
    }
}

/// The `[catalog]` section for an SQLite catalog and a warehouse in one folder.
fn local_catalog(folder: &Path) -> BTreeMap<String, String> {
    let at = folder.display();
    let catalog = [
        ("type", "sql".to_owned()),
        ("name", "everlog".to_owned()),
        ("uri", format!("sqlite://{at}/catalog.db")),
        ("warehouse", format!("file://{at}/warehouse")),
        ("namespace", "everlog".to_owned()),
    ];
    catalog.map(|(k, v)| (k.to_owned(), v)).into()
}

/// The one line on standard error about why a run failed; log lines may stand before it.
#[track_caller]
pub fn failure(output: &Output, args: &str, status: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "everlog {args}\n{said}");
    let mut errors = said.lines().filter_map(|l| l.strip_prefix("error: "));
    let error = errors.next().unwrap_or_default().to_owned();
    assert!(
        errors.next().is_none() && said.trim_end().ends_with(&error) && !error.is_empty(),
        "everlog {args} should say one line about its failure\n{said}"
    );
    error
}

/// What `http://127.0.0.1:PORT/PATH` answers: status and body. None where nobody does.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    stream.set_write_timeout(Some(limit)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// How a run went, and how much memory it took.
#[derive(Debug)]
pub struct Measured {
    /// The exit status; none: ended by a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The most resident memory that was seen, in bytes.
    pub memory_peak: u64,
}

/// The most resident memory that a process had so far, in bytes, without the pages of its own file: a build for tests is ten
/// times the size of a release. 0 where it is gone. The kernel keeps the peak, so that only what happens between the last
/// look and the end escapes.
pub fn memory_peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok())
    };
    match (kilobytes("VmHWM:"), kilobytes("RssFile:")) {
        (Some(peak), Some(file)) => peak.saturating_sub(file) * 1024,
        _ => 0,
    }
}

/// An everlog whose standard output is read line by line; killed with SIGKILL when dropped.
#[derive(Debug)]
pub struct Piped {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
    log: tempfile::NamedTempFile,
}

impl Piped {
    /// The next `count` lines; fewer where it ends before.
    pub fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let mut line = String::new();
            let read = self.out.as_mut().map(|out| out.read_line(&mut line));
            match read.transpose().expect("UTF-8 output") {
                None | Some(0) => break,
                Some(_) => lines.push(line),
            }
        }
        lines
    }

    /// Goes away, as `head` does.
    pub fn hang_up(&mut self) {
        self.out = None;
    }

    /// What is left of its output, its exit status (none: ended by a signal), and its standard error. Whoever hangs is
    /// killed by the run of all tests.
    pub fn rest(mut self) -> (Vec<String>, Option<i32>, String) {
        let lines = self.lines(usize::MAX);
        let status = self.child.wait().expect("wait for everlog");
        let log = std::fs::read(self.log.path()).unwrap_or_default();
        (
            lines,
            status.code(),
            String::from_utf8_lossy(&log).into_owned(),
        )
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Records of `replay --output jsonl --encoding base64`.
#[track_caller]
pub fn parse(lines: &str) -> Log {
    let mut log = Log::new();
    for line in lines.lines() {
        let record = parse_line(line).unwrap_or_else(|| panic!("not a record: {line}"));
        log.entry(record.partition).or_default().push(record);
    }
    log
}

fn parse_line(line: &str) -> Option<Record> {
    let json: Value = serde_json::from_str(line).ok()?;
    let bytes = |v: &Value| match v {
        Value::Null => Some(None),
        Value::String(s) => base64::engine::general_purpose::STANDARD
            .decode(s)
            .ok()
            .map(Some),
        _ => None,
    };
    let flat = json
        .get("headers")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let mut headers = Vec::new();
    for pair in flat.chunks(2) {
        let key = match pair.first()? {
            Value::String(s) => s.as_bytes().to_vec(),
            odd => bytes(odd.get("base64")?)??,
        };
        headers.push((key, bytes(pair.get(1)?)?));
    }
    let timestamp_type = match json.get("tstype")?.as_str()? {
        "create" => "create",
        "logappend" => "logappend",
        "none" => "none",
        _ => return None,
    };
    let ts = json.get("ts").and_then(Value::as_i64);
    Some(Record {
        partition: i32::try_from(json.get("partition")?.as_i64()?).ok()?,
        offset: json.get("offset")?.as_i64()?,
        timestamp: if timestamp_type == "none" { None } else { ts },
        timestamp_type,
        key: bytes(json.get("key")?)?,
        value: bytes(json.get("payload")?)?,
        headers,
    })
}

/// A background everlog; killed with SIGKILL when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// `kill -9`, and waits for the end.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, then the exit status; it must end within `patience`.
    #[track_caller]
    pub fn stop(self, patience: Duration) -> Option<i32> {
        self.end_by(libc::SIGTERM, patience)
    }

    /// A signal, then the exit status; it must end within `patience`.
    #[track_caller]
    pub fn end_by(self, signal: i32, patience: Duration) -> Option<i32> {
        self.signal(signal);
        self.wait(patience)
    }

    /// Sends it a signal: with `SIGSTOP` it is away, and with `SIGCONT` back, as a process is whose machine hangs.
    #[track_caller]
    pub fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        #[allow(unsafe_code, reason = "sending a signal to our own child")]
        // SAFETY: plain system call on the child that this value owns.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "cannot signal everlog");
    }

    /// The exit status; it must end within `patience`. None: ended by a signal.
    #[track_caller]
    pub fn wait(mut self, patience: Duration) -> Option<i32> {
        let due = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for everlog") {
                return status.code();
            }
            assert!(
                Instant::now() < due,
                "everlog did not end within {patience:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// How it ended; none while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for everlog")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls `condition` until it holds.
#[track_caller]
pub fn eventually(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let due = Instant::now() + patience;
    while !condition() {
        assert!(
            Instant::now() < due,
            "{what} did not come true within {patience:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
