//! `everlog status`: what is archived, how far behind, how far ahead of deletion.

mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use everlog_archiver::TopicPattern;
use everlog_archiver::headroom::{Headroom, HeadroomFacts, headroom};
use everlog_common::{
    Clock, Identity, Ledger, LogBounds, Millis, Offset, Partition, TimestampType, TopicName,
    TopicPartition,
};
use everlog_kafka::{
    Isolation, Log, LogError, Membership, ReaderEvent, ReaderOptions, StartAt, TopicConfig,
    TopicInfo,
};
use everlog_table::archive::{Archive, ArchiveDeps, TableState};
use everlog_table::schema::table_name;
use futures::StreamExt as _;

use crate::components;
use crate::failure::{Failure, Status, chain};
use crate::settings::Settings;
use crate::text;
use report::{
    GapLine, Kafka, LeaseLine, LiveEra, PartitionFacts, PartitionLine, Report, Table, Topic, eras,
    lag, lease_deadline,
};

/// Show per partition what is archived, how far behind it is, and how far ahead of deletion
///
/// Partitions with the least headroom come first: the time until Kafka deletes something that is not archived, by the age
/// of the oldest such record against retention.ms. BEHIND is that age. Under retention.bytes age alone says nothing, and the
/// headroom is unknown here: the archiver's metric also knows how fast the log's start moves, and takes the shorter time.
/// LAG counts offsets from the ledger to the end of the log, also those that Kafka has deleted. Topics are those of the
/// configuration, also where Kafka does not have them, and those that have a table in the namespace.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct StatusArgs {
    /// Only these topics
    topics: Vec<TopicName>,

    /// Write one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  everlog status                     everything, worst first
  everlog status --json | jq '.topics[].partitions[] | select(.headroom.state == \"overtaken\")'

The JSON object:
  version, time, kafka {cluster_id, problem}, topics [
    topic, in_kafka, problem, table {name, metadata_location, snapshot_id, snapshot_time, snapshot_age_seconds, snapshots, rows},
    generations [generation, cluster_id, topic_id, rows, is_live],
    gaps [generation, partition, start, end, reason, time], leases [tag, snapshot_id, deadline],
    partitions [partition, generation, archive {first, next, rows, hash}, log {start, end, high_watermark},
      lag_records, lag_seconds, headroom {state, seconds}, gaps]]
What is not known is null. headroom.state is ahead, unlimited, overtaken or unknown.
";

/// Questions about topics that are asked at the same time.
const AT_ONCE: usize = 8;
/// How long to look for the timestamps of the oldest records that are not archived.
const LOOK: Duration = Duration::from_secs(5);
/// In so many partitions at most.
const LOOK_PARTITIONS: usize = 256;

/// Runs it. A topic or cluster that does not answer is told in the report and by the exit status.
pub(crate) async fn run(args: &StatusArgs, settings: &Settings) -> Result<(), Failure> {
    let clock = components::clock();
    let catalog = components::catalog(settings).await?;
    let namespace = &settings.catalog.namespace;
    let deps = components::deps(&catalog);
    let log = match settings.kafka.get("bootstrap.servers") {
        Some(_) => Some(components::log(settings)?),
        None => None,
    };

    let archived = components::archived_topics(&*catalog, namespace).await?;
    let cluster = ask(log.as_deref(), settings, &archived, &args.topics).await;
    let names = chosen(args, settings, &archived, &cluster)?;
    let mut failure = None;
    let mut topics = Vec::new();
    for name in &names {
        let (topic, failed) = gather(name, &deps, settings, &cluster, log.as_deref(), &clock).await;
        topics.push(topic);
        failure = failure.or(failed);
    }
    let report = Report {
        version: 1,
        time: text::time(clock.now()),
        kafka: Kafka {
            cluster_id: cluster.id.clone(),
            problem: cluster.what_is_missing(),
        },
        topics,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let json = serde_json::to_string_pretty(&report)
            .map_err(|e| Failure::from_error(Status::Failed, &e))?;
        writeln!(out, "{json}")?;
    } else {
        write!(out, "{}", report.render())?;
    }
    out.flush()?;
    match (failure, cluster.what_is_missing()) {
        (Some(failure), _) => Err(failure),
        (None, Some(problem)) if log.is_some() => Err(Failure::new(
            Status::Failed,
            format!("kafka: {problem}; log bounds, lag and headroom are missing in the report"),
        )),
        (None, _) => Ok(()),
    }
}

/// What the cluster said.
#[derive(Debug, Default)]
struct Cluster {
    id: Option<String>,
    topics: BTreeMap<TopicName, TopicInfo>,
    bounds: BTreeMap<TopicPartition, LogBounds>,
    /// Partitions that Kafka has, and for which no broker answered.
    unanswered: BTreeSet<TopicPartition>,
    configs: BTreeMap<TopicName, TopicConfig>,
    problem: Option<String>,
}

async fn ask(
    log: Option<&dyn Log>,
    settings: &Settings,
    archived: &[TopicName],
    asked: &[TopicName],
) -> Cluster {
    let Some(log) = log else {
        return Cluster {
            problem: Some("kafka.bootstrap.servers is not set".to_owned()),
            ..Cluster::default()
        };
    };
    let mut cluster = Cluster::default();
    if let Err(error) = cluster.fill(log, settings, archived, asked).await {
        let why = chain(&error);
        cluster.problem = Some(match settings.kafka.get("bootstrap.servers") {
            Some(servers) if error.is_transient() && cluster.topics.is_empty() => {
                format!("cannot reach {servers}: check kafka \"bootstrap.servers\" ({why})")
            }
            _ => why,
        });
    }
    cluster
}

impl Cluster {
    /// Why bounds are missing, if any are.
    fn what_is_missing(&self) -> Option<String> {
        if self.problem.is_some() {
            return self.problem.clone();
        }
        let first = self.unanswered.first()?;
        let others = match self.unanswered.len() {
            1 => String::new(),
            n => format!(" and {} more", text::things(n as u64 - 1, "partition")),
        };
        Some(format!(
            "no broker answers for {first}{others}: without a leader, or the leader is away"
        ))
    }

    /// Whether it has the topic; none: it did not say.
    fn has(&self, name: &TopicName) -> Option<bool> {
        let has = self.topics.contains_key(name);
        (has || self.problem.is_none()).then_some(has)
    }

    async fn fill(
        &mut self,
        log: &dyn Log,
        settings: &Settings,
        archived: &[TopicName],
        asked: &[TopicName],
    ) -> Result<(), LogError> {
        self.id = log.cluster_id().await?;
        let patterns = patterns(settings);
        let wanted: BTreeSet<&TopicName> = archived.iter().chain(asked).collect();
        self.topics = log
            .topics()
            .await?
            .into_iter()
            .filter(|t| wanted.contains(&t.name) || patterns.iter().any(|p| p.matches(&t.name)))
            .map(|t| (t.name.clone(), t))
            .collect();
        let partitions: Vec<TopicPartition> = self
            .topics
            .values()
            .flat_map(|t| {
                t.partitions
                    .iter()
                    .map(|p| TopicPartition::new(t.name.clone(), *p))
            })
            .collect();
        self.bounds = match log.bounds(&partitions, settings.archive.isolation).await {
            Ok(bounds) => bounds,
            Err(error) => {
                self.unanswered = partitions.into_iter().collect();
                return Err(error);
            }
        };
        self.unanswered = partitions
            .into_iter()
            .filter(|tp| !self.bounds.contains_key(tp))
            .collect();
        // Where reading the configuration is not allowed, headroom is unknown and the rest is not.
        self.configs = futures::stream::iter(self.topics.keys().cloned())
            .map(|topic| async move {
                let config = log.topic_config(&topic).await.ok()?;
                Some((topic, config))
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        Ok(())
    }
}

fn patterns(settings: &Settings) -> Vec<TopicPattern> {
    settings
        .archive
        .topics
        .iter()
        .filter_map(|t| TopicPattern::parse(t).ok())
        .collect()
}

/// The topics that the configuration gives by name.
fn named(settings: &Settings) -> Vec<TopicName> {
    patterns(settings)
        .into_iter()
        .filter_map(|pattern| match pattern {
            TopicPattern::Name(name) => Some(name),
            TopicPattern::Regex(_) => None,
        })
        .collect()
}

/// The topics to report on: those asked for, else all that are archived or should be.
fn chosen(
    args: &StatusArgs,
    settings: &Settings,
    archived: &[TopicName],
    cluster: &Cluster,
) -> Result<Vec<TopicName>, Failure> {
    let names: BTreeSet<TopicName> = if args.topics.is_empty() {
        archived
            .iter()
            .chain(cluster.topics.keys())
            .cloned()
            .chain(named(settings))
            .collect()
    } else {
        args.topics.iter().cloned().collect()
    };
    let named = named(settings);
    for name in &args.topics {
        if !archived.contains(name)
            && !cluster.topics.contains_key(name)
            && !named.contains(name)
            && cluster.problem.is_none()
        {
            return Err(Failure::new(
                Status::Failed,
                format!(
                    "topic {name} is neither in Kafka nor archived in namespace {}; `everlog status` without a name lists what is",
                    settings.catalog.namespace
                ),
            ));
        }
    }
    Ok(names.into_iter().collect())
}

async fn gather(
    name: &TopicName,
    deps: &ArchiveDeps,
    settings: &Settings,
    cluster: &Cluster,
    log: Option<&dyn Log>,
    clock: &Arc<dyn Clock>,
) -> (Topic, Option<Failure>) {
    let namespace = &settings.catalog.namespace;
    let mut topic = Topic {
        topic: name.as_str().to_owned(),
        in_kafka: cluster.has(name),
        table: None,
        problem: None,
        generations: Vec::new(),
        gaps: Vec::new(),
        leases: Vec::new(),
        partitions: Vec::new(),
    };
    let mut ledger = Ledger::default();
    let mut failure = None;
    match read_table(name, deps, namespace).await {
        Ok(None) => {}
        Ok(Some(read)) => {
            let (table, leases) = describe_table(name, namespace, &read, clock.now());
            topic.table = Some(table);
            topic.leases = leases;
            ledger = read.state.ledger;
        }
        Err(failed) => {
            topic.problem = Some(failed.to_string());
            failure = Some(failed);
        }
    }
    topic.gaps = ledger.gaps.iter().map(GapLine::of).collect();
    let live = live_era(name, &ledger, cluster);
    topic.generations = eras(&ledger, live);
    // Where the ledger is not known, nothing is known of what is not archived.
    let log = log.filter(|_| failure.is_none());
    topic.partitions = partitions(name, &ledger, live, cluster, log, settings, clock).await;
    if failure.is_some() {
        topic
            .partitions
            .iter_mut()
            .for_each(PartitionLine::lose_ledger);
    }
    (topic, failure)
}

struct ReadTable {
    state: TableState,
    snapshots: Vec<everlog_table::archive::SnapshotInfo>,
}

async fn read_table(
    name: &TopicName,
    deps: &ArchiveDeps,
    namespace: &str,
) -> Result<Option<ReadTable>, Failure> {
    let of = |e| components::of_archive(&e);
    let Some(archive) = Archive::open(deps.clone(), namespace, name)
        .await
        .map_err(of)?
    else {
        return Ok(None);
    };
    let state = archive.state().await.map_err(of)?;
    let snapshots = archive.snapshots().await.map_err(of)?;
    Ok(Some(ReadTable { state, snapshots }))
}

fn describe_table(
    name: &TopicName,
    namespace: &str,
    read: &ReadTable,
    now: Millis,
) -> (Table, Vec<LeaseLine>) {
    let state = &read.state;
    let table = Table {
        name: format!("{namespace}.{}", table_name(name)),
        metadata_location: state.table.metadata_location.clone(),
        snapshot_id: state.snapshot_id,
        snapshot_time: state.snapshot_time.map(text::time),
        snapshot_age_seconds: state.snapshot_time.map(|t| text::seconds(now.since(t))),
        snapshots: read.snapshots.len(),
        rows: state.ledger.rows(),
    };
    let leases = read
        .snapshots
        .iter()
        .flat_map(|s| s.refs.iter().map(|r| (r, s.snapshot_id)))
        .filter_map(|(tag, snapshot_id)| {
            Some(LeaseLine {
                tag: tag.clone(),
                snapshot_id,
                deadline: text::time(lease_deadline(tag)?),
            })
        })
        .collect();
    (table, leases)
}

fn live_era(name: &TopicName, ledger: &Ledger, cluster: &Cluster) -> LiveEra {
    match cluster.topics.get(name) {
        Some(info) => LiveEra::of(
            ledger,
            &Identity {
                cluster_id: cluster.id.clone(),
                topic_id: info.topic_id,
            },
        ),
        None if cluster.problem.is_some() => LiveEra::Unknown,
        None => LiveEra::Gone,
    }
}

async fn partitions(
    name: &TopicName,
    ledger: &Ledger,
    live: LiveEra,
    cluster: &Cluster,
    log: Option<&dyn Log>,
    settings: &Settings,
    clock: &Arc<dyn Clock>,
) -> Vec<PartitionLine> {
    let shown = match live {
        LiveEra::Is(era) => era,
        LiveEra::Unknown | LiveEra::Gone => ledger.newest().map(|(era, _)| era).unwrap_or_default(),
    };
    let mut numbers: BTreeSet<Partition> = ledger
        .generations
        .get(&shown)
        .map(|g| g.partitions.keys().copied().collect())
        .unwrap_or_default();
    if let Some(info) = cluster.topics.get(name) {
        numbers.extend(info.partitions.iter().copied());
    }
    let at = |p: Partition| TopicPartition::new(name.clone(), p);
    let bounds = |p: Partition| cluster.bounds.get(&at(p)).copied();
    let next = |p: Partition| ledger.entry(shown, p).map(|e| e.next);

    let behind: Vec<(TopicPartition, Offset)> = numbers
        .iter()
        .filter_map(|p| {
            let bounds = bounds(*p)?;
            let from = next(*p).map_or(bounds.log_start, |n| n.max(bounds.log_start));
            (lag(next(*p), &bounds) > 0).then(|| (at(*p), from))
        })
        .take(LOOK_PARTITIONS)
        .collect();
    let oldest = match log {
        Some(log) if !behind.is_empty() => {
            first_timestamps(log, &behind, settings.archive.isolation, clock).await
        }
        _ => BTreeMap::new(),
    };
    let now = clock.now();
    numbers
        .iter()
        .map(|p| {
            let bounds = bounds(*p);
            let age = bounds.and_then(|b| {
                if lag(next(*p), &b) == 0 {
                    Some(Duration::ZERO)
                } else {
                    oldest.get(&at(*p)).map(|t| now.since(*t))
                }
            });
            let ahead = bounds.map_or(Headroom::Unknown, |b| {
                headroom(&HeadroomFacts {
                    config: cluster.configs.get(name).cloned(),
                    log_start: b.log_start,
                    next: next(*p).unwrap_or(b.log_start),
                    oldest_unarchived: age,
                    // One look shows no speed; the archiver's metrics, which look again and again, do.
                    start_speed: None,
                })
            });
            PartitionLine::of(&PartitionFacts {
                partition: *p,
                generation: shown,
                entry: ledger.entry(shown, *p).copied(),
                bounds,
                is_unanswered: cluster.unanswered.contains(&at(*p)),
                oldest: age,
                headroom: ahead,
                gaps: ledger.gaps.iter().filter(|g| g.partition == *p).count(),
            })
        })
        .collect()
}

/// The timestamps of the first records at these offsets, as far as they come soon.
async fn first_timestamps(
    log: &dyn Log,
    at: &[(TopicPartition, Offset)],
    isolation: Isolation,
    clock: &Arc<dyn Clock>,
) -> BTreeMap<TopicPartition, Millis> {
    let mut found = BTreeMap::new();
    if let Err(error) = look(log, at, isolation, clock, &mut found).await {
        tracing::debug!(%error, "the oldest records that are not archived were not read");
    }
    found
}

async fn look(
    log: &dyn Log,
    at: &[(TopicPartition, Offset)],
    isolation: Isolation,
    clock: &Arc<dyn Clock>,
    found: &mut BTreeMap<TopicPartition, Millis>,
) -> Result<(), LogError> {
    let mut reader = log
        .open(ReaderOptions {
            membership: Membership::Alone,
            isolation,
            memory_bytes: 16 << 20,
            linger: Duration::from_millis(10),
        })
        .await?;
    let starts: Vec<(TopicPartition, StartAt)> = at
        .iter()
        .map(|(partition, offset)| {
            let start = StartAt {
                offset: *offset,
                leader_epoch: None,
            };
            (partition.clone(), start)
        })
        .collect();
    reader.assign(&starts).await?;
    let due = clock.elapsed() + LOOK;
    let mut open: BTreeSet<&TopicPartition> = at.iter().map(|(p, _)| p).collect();
    while !open.is_empty() && clock.elapsed() < due {
        for event in reader.poll(Duration::from_millis(100)).await? {
            match event {
                ReaderEvent::Fetched(fetched) => {
                    if fetched.columns.is_empty() && !fetched.at_end {
                        continue;
                    }
                    open.remove(&fetched.source);
                    if fetched.columns.is_empty() || found.contains_key(&fetched.source) {
                        continue;
                    }
                    let first = fetched.columns.row(0);
                    if first.timestamp_type != TimestampType::None {
                        found.insert(fetched.source, Millis(first.timestamp_ms));
                    }
                }
                ReaderEvent::Fault { partition, .. } => {
                    open.remove(&partition);
                }
                ReaderEvent::Assigned(_) | ReaderEvent::Revoked { .. } => {}
            }
        }
    }
    reader.close().await
}
