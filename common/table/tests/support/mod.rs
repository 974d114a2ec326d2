//! Real servers for these tests: started by the repository's scripts in a folder of their own, stopped when dropped.

#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(clippy::panic, reason = "a harness fails its test by panicking")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use everlog_common::Ids;
use everlog_common::clock::{RandomIds, SystemClock};
use everlog_services::free_ports;
use everlog_table::catalog::conformance::Subject;
use everlog_table::catalog::{Catalog, connect};
use iceberg::NamespaceIdent;

pub type Properties = BTreeMap<String, String>;

pub fn properties(pairs: &[(&str, &str)]) -> Properties {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

pub fn with(mut base: Properties, pairs: &[(&str, &str)]) -> Properties {
    base.extend(properties(pairs));
    base
}

/// Two handles on one catalog, and a namespace of this test's own.
pub async fn subject(first: &Properties, second: &Properties) -> Subject {
    Subject {
        catalog: open(first).await,
        other: open(second).await,
        namespace: NamespaceIdent::new(format!("lake_{}", RandomIds.uuid().simple())),
        ids: Arc::new(RandomIds),
        clock: Arc::new(SystemClock::default()),
    }
}

pub async fn open(properties: &Properties) -> Arc<dyn Catalog> {
    connect(properties)
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// The server's time is this machine's, since it runs here.
pub async fn tells_the_time(given: &Properties) {
    let subject = subject(given, given).await;
    let table = subject.create().await;
    subject.catalog.load(&table.ident).await.expect("a table");
    let (here, there) = (subject.clock.now(), subject.catalog.server_time());
    let there = there.expect("it tells");
    assert!(
        here.since(there).as_secs() < 20 && there.since(here).as_secs() < 2,
        "{here:?} {there:?}"
    );
}

/// An error with its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

pub fn services() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/services")
}

fn script(name: &str, args: &[&str]) -> Output {
    Command::new("bash")
        .arg(services().join(name))
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn said(name: &str, args: &[&str], output: &Output) -> String {
    assert!(
        output.status.success(),
        "{name} {}: {}{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A server in a folder of its own.
#[derive(Debug)]
pub struct Service {
    script: &'static str,
    pub folder: tempfile::TempDir,
    pub port: u16,
    /// What the script said at the start.
    pub said: String,
}

impl Service {
    pub fn start(script_name: &'static str, args: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("everlog-")
            .tempdir()
            .expect("folder");
        // Servers that refuse to run as root run as somebody else, who has to get in.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("permissions");
        let port = free_ports(2);
        // made before it runs, so that a start that fails half-way is stopped, too
        let mut service = Self {
            script: script_name,
            folder,
            port,
            said: String::new(),
        };
        service.said = service.restart(args);
        service
    }

    /// Runs the script's `command` for this server.
    pub fn run(&self, command: &str, args: &[&str]) -> String {
        let path = self.folder.path().to_str().expect("utf-8").to_owned();
        let mut all = vec![command, &path];
        all.extend_from_slice(args);
        said(self.script, &all, &script(self.script, &all))
    }

    /// Starts it, or starts it again after a `stop` or `kill`, on the same port and data.
    pub fn restart(&self, args: &[&str]) -> String {
        let port = self.port.to_string();
        let mut all = vec![port.as_str()];
        all.extend_from_slice(args);
        self.run("start", &all)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(path) = self.folder.path().to_str() {
            script(self.script, &["stop", path]);
        }
    }
}

/// MinIO with the bucket `warehouse`, and the properties that reach it.
pub fn s3() -> (Service, Properties) {
    let service = Service::start("s3.sh", &["warehouse"]);
    let endpoint = format!("http://127.0.0.1:{}", service.port);
    let properties = properties(&[
        ("s3.endpoint", &endpoint),
        ("s3.access-key-id", "testkey"),
        ("s3.secret-access-key", "testsecret"),
        ("s3.region", "us-east-1"),
    ]);
    (service, properties)
}

/// Runs a Python program with pyiceberg; gives what it printed.
pub fn python(program: &str, args: &[&str]) -> Output {
    Command::new(python_program())
        .args(["-c", program])
        .args(args)
        .output()
        .expect("python")
}

#[allow(
    clippy::disallowed_methods,
    reason = "how the test runner says where things are"
)]
pub fn python_program() -> PathBuf {
    if let Some(given) = std::env::var_os("EVERLOG_PYTHON") {
        return given.into();
    }
    let output = Command::new("bash")
        .args(["-c", ". \"$0\"/lib.sh && py_env"])
        .arg(services())
        .output()
        .expect("bash");
    PathBuf::from(said("lib.sh", &["py_env"], &output)).join("bin/python")
}
