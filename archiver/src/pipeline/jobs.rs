//! What runs beside the loop: how it is started, and what it brings back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Identity, LogBounds, Partition, TopicName, TopicPartition};
use everlog_kafka::{Isolation, Log, LogError, TopicConfig, TopicInfo};
use everlog_table::archive::Archive;

use super::caught_up::Seen;
use super::commit::{self, Job, Report};
use super::prepare::{self, Answer};
use super::topic::JobKind;
use super::{Pipeline, Topic};
use crate::error::one_line;
use crate::settings::{Maintenance, Settings};
use crate::status::StatusHandle;

/// How old a topic's settings may be.
const CONFIG_AGE: Duration = Duration::from_secs(300);

/// What a task brought back.
pub(super) enum Done {
    Prepared {
        topic: TopicName,
        /// [`Topic::era_seen`] when it was asked.
        asked: u64,
        answer: Answer,
    },
    Committed {
        topic: TopicName,
        asked: u64,
        report: Box<Report>,
    },
    Discovered(Result<Discovered, LogError>),
    Targets(Result<Targets, LogError>),
    Observed(Observed),
    Maintained,
}

/// What there is to archive.
#[derive(Debug)]
pub(super) struct Discovered {
    pub(super) cluster_id: Option<String>,
    pub(super) topics: Vec<TopicInfo>,
    /// Topics that may exist, and about which the brokers do not speak to us.
    pub(super) refused: BTreeMap<TopicName, LogError>,
}

/// The ends that have to be reached.
#[derive(Debug)]
pub(super) struct Targets {
    pub(super) seen: Seen,
    /// Topics without an end, since we may not ask for it.
    pub(super) denied: BTreeMap<TopicName, LogError>,
}

/// A look at the logs.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// What was looked at.
    pub(super) asked: Vec<TopicPartition>,
    /// What answered.
    pub(super) bounds: BTreeMap<TopicPartition, LogBounds>,
    pub(super) configs: BTreeMap<TopicName, TopicConfig>,
    /// Why some of it, or all, could not be asked.
    pub(super) error: Option<LogError>,
}

impl Pipeline {
    pub(super) fn start_prepare(&mut self, name: &TopicName) {
        let now = self.now();
        let deps = self.deps();
        let ends_of = self.caught_up.as_ref().and_then(|c| c.identity(name));
        let ends_of = ends_of.cloned();
        let Some(topic) = self.topics.get_mut(name) else {
            return;
        };
        topic.job = Some(JobKind::Prepare);
        topic.last_job = topic.job;
        let request = prepare::Request {
            topic: name.clone(),
            archive: topic.table.as_ref().map(|(archive, _)| archive.clone()),
            partitions: topic.wanted(now),
            accept: self.accept,
            ends_of,
            settings: Arc::clone(&self.settings),
            log: Arc::clone(&self.components.log),
            deps,
        };
        let (topic, asked) = (name.clone(), topic.era_seen);
        self.jobs.spawn(async move {
            let answer = prepare::prepare(request).await;
            Done::Prepared {
                topic,
                asked,
                answer,
            }
        });
    }

    pub(super) fn start_commit(&mut self, name: &TopicName, reason: &'static str) {
        let now = self.now();
        let interval = self.settings.commit_interval;
        let deps = self.deps();
        let Some(topic) = self.topics.get_mut(name) else {
            return;
        };
        let (Some((archive, table)), Some(identity)) =
            (topic.table.clone(), topic.identity.clone())
        else {
            // nothing is read before a table and an identity are known
            topic.flush = false;
            return;
        };
        let cuts = topic.cut();
        if cuts.is_empty() {
            return;
        }
        // on the beat, unless this one is early or late
        let beat = topic.next_commit + interval;
        topic.next_commit = if now >= topic.next_commit && beat > now {
            beat
        } else {
            now + interval
        };
        tracing::debug!(topic = %name, reason, partitions = cuts.len(), "commit begins");
        topic.job = Some(JobKind::Commit);
        topic.last_job = topic.job;
        let asked = topic.era_seen;
        let job = Job {
            topic: name.clone(),
            archive,
            table,
            generation: topic.generation,
            identity,
            closing: topic.closing.clone(),
            cuts,
            isolation: self.settings.isolation,
            log: Arc::clone(&self.components.log),
            deps,
            status: self.status.clone(),
            encoders: Arc::clone(&self.encoders),
            spare: self.spare.clone(),
        };
        let topic = name.clone();
        self.jobs.spawn(async move {
            let report = Box::new(commit::commit(job).await);
            Done::Committed {
                topic,
                asked,
                report,
            }
        });
    }

    /// Starts what is looked at regularly.
    pub(super) fn look_around(&mut self, now: Duration) {
        if self.is_stopping() {
            return;
        }
        if self.looks.discovery.is_some_and(|at| now >= at) {
            self.looks.discovery = None;
            self.start_discovery();
        }
        if self.looks.observation.is_some_and(|at| now >= at) {
            self.looks.observation = None;
            self.start_observation(now);
        }
        if self.looks.targets.is_some_and(|at| now >= at) {
            self.looks.targets = None;
            self.start_targets();
        }
        if self.looks.maintenance.is_some_and(|at| now >= at) {
            self.looks.maintenance = None;
            self.start_maintenance();
        }
    }

    fn start_discovery(&mut self) {
        let log = Arc::clone(&self.components.log);
        let settings = Arc::clone(&self.settings);
        let mut known: Vec<TopicName> = self.topics.keys().cloned().collect();
        // the group takes these away, and somebody has to say why
        known.extend(self.looks.shared.keys().cloned());
        known.extend(self.looks.denied.keys().cloned());
        self.jobs
            .spawn(async move { Done::Discovered(discover(log.as_ref(), &settings, known).await) });
    }

    /// Looks up the ends that have to be reached.
    fn start_targets(&mut self) {
        let log = Arc::clone(&self.components.log);
        let isolation = self.settings.isolation;
        let settings = Arc::clone(&self.settings);
        self.jobs
            .spawn(async move { Done::Targets(ends(log.as_ref(), &settings, isolation).await) });
    }

    fn start_observation(&mut self, now: Duration) {
        let partitions: Vec<TopicPartition> = self
            .topics
            .iter()
            .filter(|(_, topic)| topic.failure.is_none())
            .flat_map(|(name, topic)| {
                topic
                    .parts
                    .keys()
                    .map(|p| TopicPartition::new(name.clone(), *p))
            })
            .collect();
        let topics: BTreeSet<TopicName> = partitions.iter().map(|tp| tp.topic.clone()).collect();
        self.looks.configs.retain(|name, _| topics.contains(name));
        let stale: Vec<TopicName> = topics
            .into_iter()
            .filter(|name| {
                self.looks
                    .configs
                    .get(name)
                    .is_none_or(|(at, _)| now.saturating_sub(*at) > CONFIG_AGE)
            })
            .collect();
        for name in &stale {
            self.looks.configs.entry(name.clone()).or_default().0 = now;
        }
        let log = Arc::clone(&self.components.log);
        let isolation = self.settings.isolation;
        self.jobs.spawn(async move {
            Done::Observed(observe(log.as_ref(), partitions, &stale, isolation).await)
        });
    }

    fn start_maintenance(&mut self) {
        let Some(maintenance) = self.settings.maintenance.clone() else {
            return;
        };
        let archives: Vec<(TopicName, Archive)> = self
            .topics
            .iter()
            .filter(|(_, topic)| topic.failure.is_none())
            .filter_map(|(name, topic)| Some((name.clone(), topic.table.as_ref()?.0.clone())))
            .collect();
        let status = self.status.clone();
        self.jobs.spawn(async move {
            maintain(archives, &maintenance, &status).await;
            Done::Maintained
        });
    }

    /// The topic, if the answer is to the question that was asked last.
    pub(super) fn answered(&mut self, name: &TopicName, asked: u64) -> Option<&mut Topic> {
        let topic = self.topics.get_mut(name)?;
        topic.job = None;
        (topic.era_seen == asked).then_some(topic)
    }
}

async fn discover(
    log: &dyn Log,
    settings: &Settings,
    known: Vec<TopicName>,
) -> Result<Discovered, LogError> {
    let cluster_id = log.cluster_id().await?;
    let mut found = Discovered {
        cluster_id,
        topics: Vec::new(),
        refused: BTreeMap::new(),
    };
    if !settings.only_named() {
        found.topics = log.topics().await?;
        found.topics.retain(|info| settings.wants(&info.name));
    }
    let mut unlisted: BTreeSet<TopicName> = settings.named().into_iter().chain(known).collect();
    for info in &found.topics {
        unlisted.remove(&info.name);
    }
    if !unlisted.is_empty() {
        // not there, or not allowed: only asked by name the brokers tell which
        let unlisted: Vec<TopicName> = unlisted.into_iter().collect();
        for (name, info) in log.describe(&unlisted).await? {
            match info {
                Ok(info) => found.topics.push(info),
                Err(error) => {
                    found.refused.insert(name, error);
                }
            }
        }
    }
    Ok(found)
}

async fn ends(
    log: &dyn Log,
    settings: &Settings,
    isolation: Isolation,
) -> Result<Targets, LogError> {
    let found = discover(log, settings, Vec::new()).await?;
    let mut denied = BTreeMap::new();
    for (name, error) in found.refused {
        if !matches!(error, LogError::Denied { .. }) {
            return Err(error);
        }
        denied.insert(name, error);
    }
    let cluster_id = found.cluster_id;
    let topics: BTreeMap<TopicName, (Identity, Vec<Partition>)> = found
        .topics
        .into_iter()
        .map(|info| {
            let identity = Identity {
                cluster_id: cluster_id.clone(),
                topic_id: info.topic_id,
            };
            (info.name, (identity, info.partitions))
        })
        .collect();
    let all: Vec<TopicPartition> = topics
        .iter()
        .flat_map(|(name, (_, partitions))| {
            partitions
                .iter()
                .map(|p| TopicPartition::new(name.clone(), *p))
        })
        .collect();
    let bounds = if all.is_empty() {
        BTreeMap::new()
    } else {
        log.bounds(&all, isolation).await?
    };
    let seen = Seen { topics, bounds };
    Ok(Targets { seen, denied })
}

/// Looks at logs: all at once, and topic by topic where the brokers refuse that for a reason that may be one topic's.
async fn observe(
    log: &dyn Log,
    asked: Vec<TopicPartition>,
    stale: &[TopicName],
    isolation: Isolation,
) -> Observed {
    let mut observed = Observed {
        asked,
        ..Observed::default()
    };
    if observed.asked.is_empty() {
        return observed;
    }
    match log.bounds(&observed.asked, isolation).await {
        Ok(bounds) => observed.bounds = bounds,
        // no answer to one request is not made better by a hundred more
        Err(error) if error.is_transient() => {
            observed.error = Some(error);
            return observed;
        }
        Err(_) => {
            for of_topic in observed.asked.chunk_by(|a, b| a.topic == b.topic) {
                match log.bounds(of_topic, isolation).await {
                    Ok(bounds) => observed.bounds.extend(bounds),
                    Err(error) => {
                        let is_over = error.is_transient();
                        observed.error = Some(error);
                        if is_over {
                            return observed;
                        }
                    }
                }
            }
        }
    }
    for topic in stale {
        // not everybody may read topic settings: the headroom is unknown then
        match log.topic_config(topic).await {
            Ok(config) => {
                observed.configs.insert(topic.clone(), config);
            }
            Err(error) => {
                tracing::debug!(%topic, reason = %one_line(&error), "topic settings not read");
            }
        }
    }
    observed
}

/// One table after the other; a failure is told and never stops anything.
async fn maintain(
    archives: Vec<(TopicName, Archive)>,
    maintenance: &Maintenance,
    status: &StatusHandle,
) {
    for (topic, archive) in archives {
        match archive.maintain(&maintenance.settings).await {
            Ok(report) => {
                tracing::info!(
                    %topic,
                    snapshots_expired = report.snapshots_expired,
                    snapshots_left = report.snapshots_left,
                    files_deleted = report.files_deleted,
                    bytes_deleted = report.bytes_deleted,
                    files_waiting = report.files_waiting,
                    bytes_waiting = report.bytes_waiting,
                    "maintained"
                );
                if let Some(reason) = &report.held_back {
                    tracing::warn!(%topic, %reason, "files that nothing needs are not removed");
                }
                if let Some(reason) = &report.not_searched {
                    tracing::info!(%topic, %reason, "a data folder is not searched for files that nothing needs");
                }
                status.maintained(&topic, report.held_back.is_some());
            }
            Err(error) => {
                status.count_error(Some(&topic), "maintenance");
                tracing::warn!(%topic, reason = %one_line(&error), "maintenance failed");
            }
        }
    }
}
