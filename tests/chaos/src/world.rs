//! Servers, archivers and replays, and how they are disturbed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use everlog_common::{Generation, Ledger, Partition};
use everlog_tests::broker::{Broker, PATIENCE};
use everlog_tests::compare::{Log, Record};
use everlog_tests::everlog::{Everlog, Setup, eventually};
use everlog_tests::services::{Kafka, Proxy, RestCatalog, S3};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::actors::{Actor, Role, Shared};
use crate::load;
use crate::plan::{Fault, Line, Targets};

/// Within this time after the last fault everything that was in Kafka then is archived, and every follower goes on.
pub const RECOVERY: Duration = Duration::from_secs(60);

/// A topic: its name, its partitions, and whether its table is in the local warehouse.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// Its name.
    pub name: &'static str,
    /// How many.
    pub partitions: i32,
    /// Else in S3, through the REST catalog.
    pub is_local: bool,
}

const fn topic(name: &'static str, partitions: i32, is_local: bool) -> Topic {
    Topic {
        name,
        partitions,
        is_local,
    }
}

/// An idempotent producer's.
pub const PLAIN: Topic = topic("plain", 6, false);
/// A transactional producer's.
pub const TXN: Topic = topic("txn", 3, false);
/// Whose records are deleted before they are archived.
pub const GAP: Topic = topic("gap", 2, false);
/// In the local warehouse.
pub const DISK: Topic = topic("disk", 2, true);
/// All of them.
pub const TOPICS: [Topic; 4] = [PLAIN, TXN, GAP, DISK];

/// A small file system of its own, and the file that fills it; unmounted when dropped.
#[derive(Debug)]
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where this process may not mount one.
    fn mount(folder: &Path) -> Option<Self> {
        std::fs::create_dir_all(folder).expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=192m", "everlog-chaos"]);
        let output = mount.arg(folder).output().ok()?;
        output.status.success().then(|| Self(folder.to_path_buf()))
    }

    /// Takes all the space that is left.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.0.join("ballast")).expect("a file");
        let block = vec![0xa5_u8; 1 << 16];
        let due = Instant::now() + Duration::from_secs(20);
        for size in [1 << 16, 512, 1] {
            while file.write_all(&block[..size]).is_ok() {
                assert!(Instant::now() < due, "a small disk that does not get full");
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("the ballast");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Everything that runs.
#[derive(Debug)]
pub struct World {
    /// See [`Shared`].
    pub shared: Arc<Shared>,
    /// A handle on the cluster.
    pub broker: Broker,
    /// Two of one group on S3, and one on the local disk.
    pub archivers: Vec<Arc<Actor>>,
    /// Followers, and a bounded one.
    pub replays: Vec<Arc<Actor>>,
    /// Every record that was ever in Kafka, kept before it is deleted there.
    pub truth: BTreeMap<&'static str, Log>,
    /// What Kafka deleted of [`GAP`] that may not have been archived: partition, first offset, next offset.
    pub overtaken: Vec<(i32, i64, i64)>,
    /// On the tables, past the proxies: for questions.
    pub cloud: Arc<Everlog>,
    /// The same in the local warehouse.
    pub local: Arc<Everlog>,
    kafka: Kafka,
    broker_lines: Vec<Proxy>,
    store_line: Proxy,
    catalog_line: Proxy,
    catalog: RestCatalog,
    s3: S3,
    disk: Option<SmallDisk>,
    frozen: Vec<(Arc<Actor>, u32)>,
    runtime: tokio::runtime::Runtime,
}

fn port_of(address: &str) -> u16 {
    let port = address.rsplit(':').next().unwrap_or_default();
    port.parse().expect("a port")
}

/// A replay that writes to a file and resumes; `more` says how far.
fn replay(
    name: &str,
    role: Role,
    everlog: &Arc<Everlog>,
    topic: &str,
    more: &[&str],
) -> Arc<Actor> {
    let at = |file: &str| everlog.dir().join(file).display().to_string();
    let output = format!("jsonl:{}", at("out"));
    let position = at("pos");
    let usual = [
        "--encoding",
        "base64",
        "--output",
        &output,
        "--resume",
        &position,
    ];
    let args = [&["replay", topic], more, &usual].concat();
    Actor::new(name, role, Arc::clone(everlog), &args)
}

impl World {
    /// Starts the servers; no archiver runs yet.
    pub async fn start(shared: &Arc<Shared>) -> Self {
        // half of the seeds: the protocol of KIP-848
        let is_new_protocol = shared.seed.is_multiple_of(2);
        let settings = [
            "group.consumer.min.heartbeat.interval.ms=200",
            "group.consumer.heartbeat.interval.ms=200",
            "group.consumer.min.session.timeout.ms=1000",
            "group.consumer.session.timeout.ms=3000",
            "group.min.session.timeout.ms=1000",
            "replica.socket.timeout.ms=5000",
        ];
        let args: Vec<&str> = settings.iter().flat_map(|s| ["--set", *s]).collect();
        let (kafka, broker_lines) = Kafka::start_behind_proxies(3, &args);
        let broker = Broker::new(&kafka.bootstrap);
        for topic in TOPICS {
            let config = [("min.insync.replicas", "2")];
            broker.create(topic.name, topic.partitions, &config).await;
        }
        let s3 = S3::start();
        let mut catalog = RestCatalog::start(&s3);
        let store_line = Proxy::start(port_of(&s3.endpoint));
        let catalog_line = Proxy::start(port_of(&catalog.uri));

        let names: Vec<_> = TOPICS
            .iter()
            .filter(|t| !t.is_local)
            .map(|t| t.name)
            .collect();
        // what hangs is given up in time for what RECOVERY promises
        let common = |setup: Setup| {
            setup
                .kafka("\"socket.timeout.ms\" = \"10000\"")
                .archive("snapshots_max = 20")
                .archive("snapshots_min = 5")
        };
        let setup = common(Setup::new(&kafka.bootstrap, &names))
            .archive("commit_interval = \"500ms\"")
            .archive("on_gap = \"record\"")
            .archive("group = \"chaos\"");
        let setup = if is_new_protocol {
            setup.kafka("\"group.protocol\" = \"consumer\"")
        } else {
            setup
                .kafka("\"session.timeout.ms\" = \"3000\"")
                .kafka("\"heartbeat.interval.ms\" = \"500\"")
        };
        let cloud = Arc::new(Everlog::rest(&setup, &catalog, &s3));
        catalog.uri = format!("http://127.0.0.1:{}", catalog_line.port());
        let mut properties = s3.properties();
        let through = format!("http://127.0.0.1:{}", store_line.port());
        for (key, value) in &mut properties {
            if key == "s3.endpoint" {
                through.clone_into(value);
            }
        }
        for key in [
            "everlog.catalog.request-timeout",
            "everlog.storage.request-timeout",
        ] {
            properties.push((key.to_owned(), "10s".to_owned()));
        }
        let properties: Vec<_> = properties
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        let member = || Arc::new(Everlog::rest_with(&setup, &catalog, &properties));

        let small = std::env::temp_dir().join("small");
        let disk = SmallDisk::mount(&small);
        let local_setup = common(Setup::new(&kafka.bootstrap, &[DISK.name]));
        let local = Arc::new(Everlog::local_at(&local_setup, &small));

        let archive = |name: &str, everlog: &Arc<Everlog>| {
            Actor::new(name, Role::Archiver, Arc::clone(everlog), &["archive"])
        };
        let archivers = vec![
            archive("archiver-0", &member()),
            archive("archiver-1", &member()),
            archive("archiver-local", &local),
        ];
        let follow = ["--follow"];
        let beside_local = Arc::new(local.beside(&local_setup));
        let replays = vec![
            replay(
                "follower-plain",
                Role::Follower,
                &member(),
                PLAIN.name,
                &follow,
            ),
            replay("follower-txn", Role::Follower, &member(), TXN.name, &follow),
            replay(
                "follower-local",
                Role::Follower,
                &beside_local,
                DISK.name,
                &follow,
            ),
            replay(
                "bounded-plain",
                Role::Bounded,
                &member(),
                PLAIN.name,
                &["--until", "now"],
            ),
        ];
        let tally = &shared.tally;
        tally.fact(
            "group protocol",
            if is_new_protocol {
                "consumer"
            } else {
                "classic"
            },
        );
        let is_mounted = if disk.is_some() {
            "yes"
        } else {
            "no: not permitted here"
        };
        tally.fact("a small disk that fills up", is_mounted);
        Self {
            shared: Arc::clone(shared),
            broker,
            archivers,
            replays,
            truth: BTreeMap::new(),
            overtaken: Vec::new(),
            cloud,
            local,
            kafka,
            broker_lines,
            store_line,
            catalog_line,
            catalog,
            s3,
            disk,
            frozen: Vec::new(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime"),
        }
    }

    /// `bootstrap.servers`.
    pub fn bootstrap(&self) -> &str {
        &self.kafka.bootstrap
    }

    /// What there is to be disturbed.
    pub fn targets(&self) -> Targets {
        Targets {
            archivers: self.archivers.len(),
            replays: self.replays.len(),
            brokers: 3,
            disk: self.disk.is_some(),
        }
    }

    /// All processes that are started again.
    pub fn actors(&self) -> impl Iterator<Item = &Arc<Actor>> {
        self.archivers.iter().chain(&self.replays)
    }

    /// Where to ask about a topic's table.
    pub fn table_of(&self, topic: Topic) -> &Everlog {
        if topic.is_local {
            &self.local
        } else {
            &self.cloud
        }
    }

    /// A topic's ledger; none where the catalog does not tell now.
    pub fn ledger(&self, topic: Topic) -> Option<Ledger> {
        let asked = self.table_of(topic).try_ledger(topic.name);
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(10), asked).await });
        answer.ok()?.ok()
    }

    /// The next offset to archive; 0 before the first.
    pub fn next(ledger: &Ledger, partition: i32) -> i64 {
        let partition = Partition::new(partition).expect("a partition");
        ledger
            .entry(Generation(0), partition)
            .map_or(0, |e| e.next.get())
    }

    /// Begins a fault.
    pub fn begin(&mut self, fault: &Fault) {
        self.shared.tally.fault(&fault.kind());
        match fault {
            Fault::FreezeArchiver(n) => self.freeze(&Arc::clone(&self.archivers[*n])),
            Fault::FreezeReplay(n) => self.freeze(&Arc::clone(&self.replays[*n])),
            Fault::KillBroker(node) => self.kafka.node("kill-node", *node),
            Fault::StopBroker(node) => self.kafka.node("stop-node", *node),
            Fault::FreezeBroker(node) => self.kafka.node("pause-node", *node),
            Fault::Elect => {
                let all = ["--election-type", "preferred", "--all-topic-partitions"];
                self.kafka.tool("leader-election", &all);
            }
            Fault::Catalog(query) => self.catalog.fault(query),
            Fault::FreezeStore => self.s3.control("pause"),
            Fault::KillStore => self.s3.control("kill"),
            Fault::Network(line, toxic) => {
                self.line(*line)
                    .toxic(toxic.kind, toxic.attributes, toxic.stream);
            }
            Fault::Trim(percent) => self.trim(*percent),
            Fault::Overtake => self.overtake(),
            Fault::FillDisk => self.disk.as_ref().expect("a small disk").fill(),
        }
    }

    /// Ends it.
    pub fn heal(&mut self, fault: &Fault) {
        match fault {
            Fault::FreezeArchiver(_) | Fault::FreezeReplay(_) => {
                for (actor, pid) in self.frozen.drain(..) {
                    actor.thaw(pid);
                }
            }
            Fault::KillBroker(node) | Fault::StopBroker(node) => {
                self.kafka.node("start-node", *node);
                self.await_in_sync();
            }
            Fault::FreezeBroker(node) => {
                self.kafka.node("resume-node", *node);
                self.await_in_sync();
            }
            Fault::Catalog(_) => self.catalog.fault("mode="),
            Fault::FreezeStore => self.s3.control("resume"),
            Fault::KillStore => self.s3.restart(),
            Fault::Network(line, _) => {
                self.line(*line).reset();
                if matches!(line, Line::Broker(_)) {
                    self.await_in_sync();
                }
            }
            Fault::FillDisk => self.disk.as_ref().expect("a small disk").free(),
            Fault::Elect | Fault::Trim(_) | Fault::Overtake => {}
        }
    }

    fn freeze(&mut self, actor: &Arc<Actor>) {
        if let Some(pid) = actor.signal(libc::SIGSTOP) {
            self.frozen.push((Arc::clone(actor), pid));
        }
    }

    fn line(&self, line: Line) -> &Proxy {
        match line {
            Line::Store => &self.store_line,
            Line::Catalog => &self.catalog_line,
            Line::Broker(node) => &self.broker_lines[usize::from(node) - 1],
        }
    }

    /// No broker may go before all copies are whole again: the next one's death must cost nobody a record.
    fn await_in_sync(&self) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.kafka.bootstrap);
        let consumer: BaseConsumer = config.create().expect("consumer");
        eventually("all copies are whole", 2 * PATIENCE, || {
            let Ok(metadata) = consumer.fetch_metadata(None, Duration::from_secs(5)) else {
                return false;
            };
            let mut partitions = metadata
                .topics()
                .iter()
                .flat_map(rdkafka::metadata::MetadataTopic::partitions);
            metadata.brokers().len() == 3
                && partitions.all(|p| p.leader() >= 0 && p.isr().len() == p.replicas().len())
        });
    }

    /// Keeps what Kafka holds of a topic now.
    pub fn keep(&mut self, topic: Topic) {
        let log = self.broker.dump(topic.name);
        let kept = self.truth.entry(topic.name).or_default();
        for (partition, records) in log {
            let known = kept.entry(partition).or_default();
            let last = known.last().map_or(-1, |r: &Record| r.offset);
            known.extend(records.into_iter().filter(|r| r.offset > last));
        }
    }

    /// Deletes a share of what is archived.
    fn trim(&mut self, percent: u8) {
        for topic in [PLAIN, TXN, DISK] {
            let Some(ledger) = self.ledger(topic) else {
                continue;
            };
            self.keep(topic);
            for partition in 0..topic.partitions {
                let (start, _) = self.broker.bounds(topic.name, partition);
                let archived = (Self::next(&ledger, partition) - start).max(0);
                let before = start + archived * i64::from(percent) / 100;
                let deleted = self.broker.delete_records(topic.name, partition, before);
                self.runtime.block_on(deleted);
            }
        }
    }

    /// Deletes what came while the archivers hung.
    fn overtake(&mut self) {
        let Some(ledger) = self.ledger(GAP) else {
            return;
        };
        let archivers: Vec<_> = self.archivers.iter().take(2).map(Arc::clone).collect();
        archivers.iter().for_each(|a| self.freeze(a));
        let feed = self.broker.producer(&[("enable.idempotence", "true")]);
        load::fill(&feed, GAP.name, GAP.partitions, 0..200);
        let partition = i32::try_from(self.overtaken.len()).expect("small") % GAP.partitions;
        let (_, end) = self.broker.bounds(GAP.name, partition);
        self.keep(GAP);
        self.overtaken
            .push((partition, Self::next(&ledger, partition), end));
        let deleted = self.broker.delete_records(GAP.name, partition, end);
        self.runtime.block_on(deleted);
        for (actor, pid) in self.frozen.drain(..) {
            actor.thaw(pid);
        }
    }

    /// Waits until everything that is in Kafka now is archived, and until every follower has gone on. Whether that came true.
    pub fn recover(&self, from: &str) -> bool {
        let began = Instant::now();
        let lengths: Vec<_> = self.followers().map(|f| (f, written(f))).collect();
        if !self.catch_up(from) {
            return false;
        }
        let waits = |(follower, before): &(&Arc<Actor>, u64)| written(follower) <= *before;
        while lengths.iter().any(waits) && began.elapsed() < RECOVERY && self.shared.goes_on() {
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut goes_on = true;
        for (follower, _) in lengths.iter().filter(|f| waits(f) && self.shared.goes_on()) {
            let name = &follower.name;
            let what = format!("{name} did not go on within {RECOVERY:?} after {from}");
            self.shared.tally.violation(what);
            goes_on = false;
        }
        goes_on
    }

    /// Waits until everything that is in Kafka now is archived. Whether that came true.
    pub fn catch_up(&self, from: &str) -> bool {
        let began = Instant::now();
        let mut behind = Vec::new();
        for topic in TOPICS {
            for partition in 0..topic.partitions {
                let (_, end) = self.broker.bounds(topic.name, partition);
                behind.push((topic, partition, end));
            }
        }
        while !behind.is_empty() && began.elapsed() < RECOVERY && self.shared.goes_on() {
            let mut ledgers = BTreeMap::new();
            behind.retain(|(topic, partition, end)| {
                let ledger = ledgers
                    .entry(topic.name)
                    .or_insert_with(|| self.ledger(*topic));
                ledger
                    .as_ref()
                    .is_none_or(|l| Self::next(l, *partition) < *end)
            });
            std::thread::sleep(Duration::from_millis(100));
        }
        if !self.shared.goes_on() {
            return true;
        }
        for (topic, partition, end) in &behind {
            let ledger = self.ledger(*topic).unwrap_or_default();
            let what = format!(
                "{}-{partition} was not archived up to {end} (but {}) within {RECOVERY:?} after {from}",
                topic.name,
                Self::next(&ledger, *partition),
            );
            self.shared.tally.violation(what);
        }
        if behind.is_empty() {
            self.shared.tally.recovered(began.elapsed(), from);
        }
        behind.is_empty()
    }

    /// The replays that follow.
    pub fn followers(&self) -> impl Iterator<Item = &Arc<Actor>> {
        self.replays.iter().filter(|r| r.role == Role::Follower)
    }
}

/// Where a replay writes.
pub fn output(replay: &Actor) -> PathBuf {
    replay.everlog.dir().join("out")
}

/// Bytes that a replay has written.
fn written(replay: &Actor) -> u64 {
    std::fs::metadata(output(replay)).map_or(0, |m| m.len())
}
