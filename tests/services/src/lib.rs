//! Real servers for tests, each in its own folder, on ports of its own, stopped when dropped. The scripts beside this crate
//! start them; a server that cannot be started fails the test: nothing is skipped.

#![allow(clippy::panic, reason = "a harness fails its test by panicking")]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

mod leftovers;
mod ports;

use leftovers::folder;
pub use ports::free_ports;

/// A variable that `make test` sets.
#[allow(
    clippy::disallowed_methods,
    reason = "how the test runner tells where things are"
)]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Where the service scripts are.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Runs a service script; its standard output, trimmed. A failure ends the test with everything the script said.
pub fn run(name: &str, args: &[&str]) -> String {
    let output = try_run(name, args);
    assert!(
        output.status.success(),
        "{name} {} failed ({}); run tests/services/setup.sh, then the same command by hand\n{}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn try_run(name: &str, args: &[&str]) -> Output {
    Command::new("bash")
        .arg(script(name))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {name}: {e}"))
}

/// A Kafka cluster (KRaft).
#[derive(Debug)]
pub struct Kafka {
    dir: tempfile::TempDir,
    /// Bootstrap addresses.
    pub bootstrap: String,
}

impl Kafka {
    /// One broker.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One broker with extra server properties, or `--nodes N`.
    pub fn start_with(args: &[&str]) -> Self {
        let dir = folder("everlog-kafka");
        let nodes: u16 = args
            .iter()
            .position(|a| *a == "--nodes")
            .and_then(|i| args.get(i + 1))
            .map_or(1, |n| n.parse().expect("a number of nodes"));
        let ports = if args.contains(&"--secure") {
            6
        } else {
            2 * nodes
        };
        Self::start_on(dir, free_ports(ports), args)
    }

    /// So many brokers, each behind a proxy: clients reach them through it once they know the cluster, and so do the brokers
    /// each other; the controllers' own connections are direct.
    pub fn start_behind_proxies(nodes: u16, args: &[&str]) -> (Self, Vec<Proxy>) {
        let dir = folder("everlog-kafka");
        let port = free_ports(2 * nodes);
        let proxies: Vec<_> = (0..nodes).map(|i| Proxy::start(port + 2 * i)).collect();
        let seen: Vec<_> = proxies.iter().map(|p| p.port().to_string()).collect();
        let (nodes, seen) = (nodes.to_string(), seen.join(","));
        let all = [&["--nodes", &nodes, "--advertise", &seen], args].concat();
        (Self::start_on(dir, port, &all), proxies)
    }

    fn start_on(dir: tempfile::TempDir, port: u16, args: &[&str]) -> Self {
        let (path, port) = (dir.path().display().to_string(), port.to_string());
        let mut all = vec!["start", &path, &port];
        all.extend_from_slice(args);
        let bootstrap = run("kafka.sh", &all);
        Self { dir, bootstrap }
    }

    /// One broker with listeners for TLS and SASL besides: see `kafka.sh start --secure`.
    pub fn start_secure(certificates: &Certificates) -> Self {
        let folder = certificates.dir.path().display().to_string();
        Self::start_with(&["--secure", &folder])
    }

    /// A listener of a secure broker, by its distance from the plain one.
    pub fn listener(&self, distance: u16) -> String {
        let port = self.bootstrap.rsplit(':').next().unwrap_or_default();
        let port: u16 = port.parse().expect("a port");
        format!("localhost:{}", port + distance)
    }

    fn path(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// Bytes of a topic's log segments on the first node's disk.
    pub fn log_bytes(&self, topic: &str) -> u64 {
        let data = self.dir.path().join("node1").join("data");
        std::fs::read_dir(data)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| {
                let name = e.file_name().to_string_lossy().into_owned();
                name.rsplit_once('-').is_some_and(|(t, _)| t == topic)
            })
            .filter_map(|e| std::fs::read_dir(e.path()).ok())
            .flat_map(Iterator::flatten)
            .filter(|f| f.path().extension().is_some_and(|x| x == "log"))
            .map(|f| f.metadata().map_or(0, |m| m.len()))
            .sum()
    }

    /// The first segment of a partition's log on the first node's disk.
    pub fn log_file(&self, topic: &str, partition: i32) -> PathBuf {
        self.dir
            .path()
            .join("node1")
            .join("data")
            .join(format!("{topic}-{partition}"))
            .join("00000000000000000000.log")
    }

    /// Runs one of Kafka's own tools, told where the cluster is; what it said.
    pub fn tool(&self, name: &str, args: &[&str]) -> String {
        let mut all = vec!["tool", name, "--bootstrap-server", &self.bootstrap];
        all.extend_from_slice(args);
        run("kafka.sh", &all)
    }

    /// Runs `kafka.sh VERB DIR NODE`: `kill-node`, `start-node`, `stop-node`, `pause-node`, `resume-node`.
    pub fn node(&self, verb: &str, node: u16) {
        run("kafka.sh", &[verb, &self.path(), &node.to_string()]);
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = try_run("kafka.sh", &["stop", &self.path()]);
    }
}

/// Certificates of a throw-away authority: see `certs.sh`.
#[derive(Debug)]
pub struct Certificates {
    dir: tempfile::TempDir,
    /// The password of the user `alice` of a secure broker, and of the client's locked key.
    pub password: String,
}

impl Certificates {
    /// Makes them.
    pub fn make() -> Self {
        let dir = open_dir("everlog-certs");
        run("certs.sh", &[&dir.path().display().to_string()]);
        let password = std::fs::read_to_string(dir.path().join("client.password"));
        Self {
            password: password.expect("the password").trim().to_owned(),
            dir,
        }
    }

    /// One of the files.
    pub fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

/// TLS in front of a server of this machine.
#[derive(Debug)]
pub struct Tls {
    dir: tempfile::TempDir,
    /// `https://localhost:PORT`
    pub uri: String,
}

impl Tls {
    /// Starts it in front of what listens on a port, with a certificate: `server`, `elsewhere`, `expired`.
    pub fn start(upstream: u16, certificates: &Certificates, name: &str) -> Self {
        let dir = open_dir("everlog-tls");
        let pem = certificates.file(&format!("{name}.both.pem"));
        let (port, upstream) = (free_ports(1).to_string(), upstream.to_string());
        let uri = run(
            "tls.sh",
            &[
                "start",
                &dir.path().display().to_string(),
                &port,
                &upstream,
                &pem,
            ],
        );
        Self { dir, uri }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = try_run("tls.sh", &["stop", &self.dir.path().display().to_string()]);
    }
}

/// An S3 server with a bucket `warehouse`.
#[derive(Debug)]
pub struct S3 {
    dir: tempfile::TempDir,
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
}

/// The key pair that `s3.sh` sets.
pub const S3_ACCESS_KEY: &str = "testkey";
/// See [`S3_ACCESS_KEY`].
pub const S3_SECRET_KEY: &str = "testsecret";

impl S3 {
    /// Starts it.
    pub fn start() -> Self {
        let dir = folder("everlog-s3");
        let port = free_ports(1);
        run(
            "s3.sh",
            &[
                "start",
                &dir.path().display().to_string(),
                &port.to_string(),
                "warehouse",
            ],
        );
        Self {
            dir,
            endpoint: format!("http://127.0.0.1:{port}"),
        }
    }

    /// Where it keeps what it holds.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `s3.sh VERB DIR`: `pause`, `resume`, `kill`.
    pub fn control(&self, verb: &str) {
        run("s3.sh", &[verb, &self.dir.path().display().to_string()]);
    }

    /// Starts it again on its port, with what it holds.
    pub fn restart(&self) {
        let port = self
            .endpoint
            .rsplit(':')
            .next()
            .unwrap_or_default()
            .to_owned();
        run(
            "s3.sh",
            &[
                "start",
                &self.dir.path().display().to_string(),
                &port,
                "warehouse",
            ],
        );
    }

    /// Iceberg's properties for this server.
    pub fn properties(&self) -> Vec<(String, String)> {
        [
            ("s3.endpoint", self.endpoint.as_str()),
            ("s3.access-key-id", S3_ACCESS_KEY),
            ("s3.secret-access-key", S3_SECRET_KEY),
            ("s3.region", "us-east-1"),
            ("s3.path-style-access", "true"),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = try_run("s3.sh", &["resume", &self.dir.path().display().to_string()]);
        let _ = try_run("s3.sh", &["stop", &self.dir.path().display().to_string()]);
    }
}

/// Iceberg's own REST catalog server over an S3 server's bucket.
#[derive(Debug)]
pub struct RestCatalog {
    dir: tempfile::TempDir,
    /// `http://127.0.0.1:PORT`.
    pub uri: String,
    /// The warehouse it serves.
    pub warehouse: String,
}

impl RestCatalog {
    /// Starts it with its warehouse on `s3`.
    pub fn start(s3: &S3) -> Self {
        Self::start_with(s3, &[])
    }

    /// Starts it with `options` of `catalog.sh start` besides.
    pub fn start_with(s3: &S3, options: &[&str]) -> Self {
        let dir = folder("everlog-catalog");
        let port = free_ports(2).to_string();
        let path = dir.path().display().to_string();
        let warehouse = "s3://warehouse/lake".to_owned();
        let properties: Vec<String> = s3
            .properties()
            .into_iter()
            .filter(|(k, _)| k != "s3.region")
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        let mut args = vec!["start", &path, &port, &warehouse];
        args.extend(options);
        args.extend(properties.iter().map(String::as_str));
        let uri = run("catalog.sh", &args);
        Self {
            dir,
            uri,
            warehouse,
        }
    }

    /// Makes requests fail: see `catalog.sh fault`.
    pub fn fault(&self, query: &str) {
        run(
            "catalog.sh",
            &["fault", &self.dir.path().display().to_string(), query],
        );
    }

    /// Every token that was given out ends now.
    pub fn revoke(&self) {
        run(
            "catalog.sh",
            &["revoke", &self.dir.path().display().to_string()],
        );
    }

    /// Requests so far by route, as JSON.
    pub fn stats(&self) -> String {
        run(
            "catalog.sh",
            &["stats", &self.dir.path().display().to_string()],
        )
    }
}

impl Drop for RestCatalog {
    fn drop(&mut self) {
        let _ = try_run(
            "catalog.sh",
            &["stop", &self.dir.path().display().to_string()],
        );
    }
}

/// A PostgreSQL server with an empty database.
#[derive(Debug)]
pub struct Postgres {
    dir: tempfile::TempDir,
    port: u16,
    /// `postgres://…`
    pub uri: String,
}

impl Postgres {
    /// Starts it.
    pub fn start() -> Self {
        let dir = open_dir("everlog-postgres");
        let mut postgres = Self {
            dir,
            port: free_ports(1),
            uri: String::new(),
        };
        postgres.uri = postgres.restart();
        postgres
    }

    /// `kill -9`.
    pub fn kill(&self) {
        run("postgres.sh", &["kill", &self.path()]);
    }

    /// Starts it again on its port, with what it holds.
    pub fn restart(&self) -> String {
        run(
            "postgres.sh",
            &["start", &self.path(), &self.port.to_string()],
        )
    }

    fn path(&self) -> String {
        self.dir.path().display().to_string()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = try_run("postgres.sh", &["stop", &self.path()]);
    }
}

/// A folder that others may enter: servers that refuse to run as root run as somebody else.
fn open_dir(prefix: &str) -> tempfile::TempDir {
    let dir = folder(prefix);
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("permissions");
    dir
}

/// A schema registry with Confluent's API.
#[derive(Debug)]
pub struct SchemaRegistry {
    dir: tempfile::TempDir,
    /// The address for Confluent's clients.
    pub url: String,
}

impl SchemaRegistry {
    /// Starts it.
    pub fn start() -> Self {
        let dir = open_dir("everlog-registry");
        let (path, port) = (dir.path().display().to_string(), free_ports(2).to_string());
        let url = run("schema-registry.sh", &["start", &path, &port]);
        Self { dir, url }
    }

    /// Registers an Avro schema with references `NAME=SUBJECT:VERSION`; its id.
    pub fn register(&self, subject: &str, schema: &str, references: &[&str]) -> u32 {
        let file = self.dir.path().join("schema.avsc");
        std::fs::write(&file, schema).expect("the schema's file");
        let (path, file) = (
            self.dir.path().display().to_string(),
            file.display().to_string(),
        );
        let mut all = vec!["register", &path, subject, &file];
        all.extend_from_slice(references);
        let id = run("schema-registry.sh", &all);
        id.parse()
            .unwrap_or_else(|_| panic!("the registry gave {id} for an id"))
    }

    /// Runs `schema-registry.sh VERB DIR [ARG]`: `kill`, `stop`, `delete SUBJECT`.
    pub fn control(&self, verb: &str, args: &[&str]) {
        let path = self.dir.path().display().to_string();
        run(
            "schema-registry.sh",
            &[&[verb, path.as_str()], args].concat(),
        );
    }
}

impl Drop for SchemaRegistry {
    fn drop(&mut self) {
        let path = self.dir.path().display().to_string();
        let _ = try_run("schema-registry.sh", &["stop", &path]);
    }
}

/// A Flink session cluster with its Kafka connector.
#[derive(Debug)]
pub struct Flink {
    dir: tempfile::TempDir,
    /// `http://127.0.0.1:PORT`, Flink's REST server.
    pub url: String,
}

impl Flink {
    /// Starts it; `options` are those of `flink.sh start`: Flink's own, as `parallelism.default=2`, and `--slots N`, `--heap SIZE`.
    pub fn start(options: &[&str]) -> Self {
        let dir = open_dir("everlog-flink");
        let (path, port) = (dir.path().display().to_string(), free_ports(2).to_string());
        let url = run("flink.sh", &[&["start", &path, &port], options].concat());
        Self { dir, url }
    }

    /// Runs an SQL program as Flink's SQL client would, with Flink's options for its session, and waits until its INSERTs
    /// have ended. A line of JSON for each: `job`, `state`, `ms`, and of the process meanwhile `cpu_ms`, `peak_bytes`.
    pub fn sql(&self, program: &str, options: &[&str]) -> Vec<String> {
        let mut file = tempfile::NamedTempFile::new_in(self.dir.path()).expect("a file");
        file.write_all(program.as_bytes()).expect("the program");
        let (path, file) = (
            self.dir.path().display().to_string(),
            file.path().display().to_string(),
        );
        let said = run("flink.sh", &[&["sql", &path, &file], options].concat());
        said.lines().map(str::to_owned).collect()
    }

    /// The same; what Flink's SQL client would print, the rows of SELECTs too.
    pub fn text(&self, program: &str) -> String {
        let mut file = tempfile::NamedTempFile::new_in(self.dir.path()).expect("a file");
        file.write_all(program.as_bytes()).expect("the program");
        let (path, file) = (
            self.dir.path().display().to_string(),
            file.path().display().to_string(),
        );
        run("flink.sh", &["text", &path, &file])
    }
}

impl Drop for Flink {
    fn drop(&mut self) {
        let _ = try_run(
            "flink.sh",
            &["stop", &self.dir.path().display().to_string()],
        );
    }
}

/// A Trino of one node.
#[derive(Debug)]
pub struct Trino {
    dir: tempfile::TempDir,
}

impl Trino {
    /// Starts it with a catalog of this name and these properties.
    pub fn start(catalog: &str, properties: &str) -> Self {
        let dir = open_dir("everlog-trino");
        let file = dir.path().join("given.properties");
        std::fs::write(&file, properties).expect("the properties");
        let (path, file) = (dir.path().display().to_string(), file.display().to_string());
        let port = free_ports(1).to_string();
        run("trino.sh", &["start", &path, &port, catalog, &file]);
        Self { dir }
    }

    /// Runs statements, each ended by a semicolon at a line's end. A line of JSON for each that asks: `columns`, `rows`.
    pub fn query(&self, statements: &str) -> Vec<String> {
        let mut file = tempfile::NamedTempFile::new_in(self.dir.path()).expect("a file");
        file.write_all(statements.as_bytes())
            .expect("the statements");
        let (path, file) = (
            self.dir.path().display().to_string(),
            file.path().display().to_string(),
        );
        let said = run("trino.sh", &["query", &path, &file]);
        said.lines().map(str::to_owned).collect()
    }
}

impl Drop for Trino {
    fn drop(&mut self) {
        let _ = try_run(
            "trino.sh",
            &["stop", &self.dir.path().display().to_string()],
        );
    }
}

/// A TCP proxy in front of one server.
#[derive(Debug)]
pub struct Proxy {
    dir: tempfile::TempDir,
    port: u16,
}

impl Proxy {
    /// Starts it in front of a local server.
    pub fn start(upstream: u16) -> Self {
        let dir = folder("everlog-proxy");
        let control = free_ports(2);
        let proxy = Self {
            dir,
            port: control + 1,
        };
        run(
            "toxiproxy.sh",
            &["start", &proxy.path(), &control.to_string()],
        );
        run(
            "toxiproxy.sh",
            &[
                "proxy",
                &proxy.path(),
                "it",
                &proxy.port.to_string(),
                &upstream.to_string(),
            ],
        );
        proxy
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `toxiproxy.sh toxic`: a fault of this type for what goes `downstream` (answers) or `upstream` (requests).
    pub fn toxic(&self, kind: &str, attributes: &str, stream: &str) {
        run(
            "toxiproxy.sh",
            &["toxic", &self.path(), "it", kind, attributes, stream],
        );
    }

    /// No faults any more.
    pub fn reset(&self) {
        run("toxiproxy.sh", &["reset", &self.path()]);
    }

    fn path(&self) -> String {
        self.dir.path().display().to_string()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = try_run("toxiproxy.sh", &["stop", &self.path()]);
    }
}
