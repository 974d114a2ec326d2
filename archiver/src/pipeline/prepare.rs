//! Gathers the facts that [`crate::recovery`] decides from: the ledger first, then what the brokers say.
//!
//! The order matters. The ledger is read before the log's bounds, so that a rival who moves it on meanwhile cannot make
//! a healthy log look too short; and the identity is read on both sides of the bounds, so that they belong to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{
    Identity, Ledger, LogBounds, Millis, Offset, Partition, TopicName, TopicPartition,
};
use everlog_kafka::{Isolation, Log, LogError};
use everlog_table::archive::{
    Archive, ArchiveDeps, ArchiveError, ArchiveErrorKind, ArchiveOptions, TableState,
};
use everlog_table::catalog::LoadedTable;
use everlog_table::summary;

use crate::recovery::{self, Decision, Era, PartitionFacts, TopicFacts, TopicRefusal};
use crate::settings::Settings;

/// What is asked.
pub(crate) struct Request {
    pub(crate) topic: TopicName,
    /// Opened before, or to be opened.
    pub(crate) archive: Option<Archive>,
    /// To be decided; may be none, to learn of the ledger only.
    pub(crate) partitions: BTreeSet<Partition>,
    /// A foreign snapshot to take as the new ground, while the operator's word for it was not used yet.
    pub(crate) accept: Option<i64>,
    /// Whose ends a catch-up runs to; those of another incarnation are looked up here.
    pub(crate) ends_of: Option<Identity>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) deps: ArchiveDeps,
}

/// The answer: facts of one moment, and what follows from them.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) archive: Archive,
    pub(crate) table: LoadedTable,
    pub(crate) identity: Identity,
    pub(crate) era: Era,
    pub(crate) ledger: Ledger,
    pub(crate) snapshot_time: Option<Millis>,
    pub(crate) decisions: BTreeMap<Partition, (Decision, Option<LogBounds>)>,
    /// The log's ends of every partition that there is, where [`Request::ends_of`] names another incarnation and all of
    /// them answered.
    pub(crate) ends: Option<BTreeMap<TopicPartition, LogBounds>>,
}

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// A foreign change was accepted just now, whatever came after it.
    pub(crate) has_accepted: bool,
    pub(crate) result: Result<Box<Prepared>, Failure>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Refused(#[from] TopicRefusal),
    #[error("the topic does not exist")]
    Gone,
    #[error("the brokers' answers contradict each other")]
    Unsettled,
}

/// How often the brokers may contradict themselves before the answer is what the others say.
const LOOKS: u32 = 3;

/// How long they have for it in between: a new leader hears of its followers within a fetch.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) async fn prepare(request: Request) -> Answer {
    let mut has_accepted = false;
    let result = gather(&request, &mut has_accepted).await.map(Box::new);
    Answer {
        has_accepted,
        result,
    }
}

async fn gather(request: &Request, has_accepted: &mut bool) -> Result<Prepared, Failure> {
    let log = request.log.as_ref();
    let archive = match request.archive.clone() {
        Some(archive) => archive,
        None => {
            // no table for a topic that is not there, or that nobody lets us read
            identity_of(log, &request.topic).await?;
            let mut table = request.settings.table.clone();
            table.properties.insert(
                summary::ISOLATION.to_owned(),
                request.settings.isolation.as_str().to_owned(),
            );
            let namespace = &request.settings.namespace;
            let options = ArchiveOptions {
                expiry: request
                    .settings
                    .maintenance
                    .as_ref()
                    .map(|m| m.settings.expiry.clone()),
                ..ArchiveOptions::default()
            };
            Archive::open_or_create(request.deps.clone(), namespace, &request.topic, &table)
                .await?
                .with_options(options)
        }
    };
    let state = state_of(&archive, request.accept, has_accepted).await?;
    for look_number in 1..=LOOKS {
        if look_number > 1 {
            request.deps.clock.sleep(PAUSE).await;
        }
        let (identity, partitions) = described(log, &request.topic).await?;
        let era = recovery::era(TopicFacts {
            ledger: &state.ledger,
            identity: &identity,
            accept_cluster: request.settings.accept_cluster.as_deref(),
            recorded: recorded_isolation(&state),
            configured: request.settings.isolation,
        })?;
        let facts = look(request, &state.ledger, &era).await?;
        let ends = match &request.ends_of {
            Some(known) if !known.agrees(&identity) => {
                ends_of(request, partitions.iter().copied()).await?
            }
            _ => None,
        };
        if identity_of(log, &request.topic).await? != identity {
            continue;
        }
        let decisions = decide(request, &state.ledger, &era, &facts);
        // one partition that does not settle must not keep the others: it is asked for again by itself
        if look_number < LOOKS && decisions.values().any(|(d, _)| *d == Decision::Unsettled) {
            continue;
        }
        return Ok(Prepared {
            archive,
            table: state.table,
            identity,
            era,
            ledger: state.ledger,
            snapshot_time: state.snapshot_time,
            decisions,
            ends,
        });
    }
    Err(Failure::Unsettled)
}

/// The table's state; a foreign change that the operator accepted is taken as it is, and that is said.
async fn state_of(
    archive: &Archive,
    accept: Option<i64>,
    has_accepted: &mut bool,
) -> Result<TableState, ArchiveError> {
    match (archive.state().await, accept) {
        (Err(error), Some(accepted)) if error.kind() == ArchiveErrorKind::ForeignChange => {
            if let ArchiveError::ForeignChange { snapshot_id, .. } = &error
                && *snapshot_id != Some(accepted)
            {
                return Err(error);
            }
            archive.accept(accepted).await?;
            *has_accepted = true;
            tracing::warn!(topic = %archive.topic(), snapshot = accepted, "foreign snapshot accepted");
            archive.state().await
        }
        (state, _) => state,
    }
}

/// The isolation that the table says it was filled with.
fn recorded_isolation(state: &TableState) -> Option<Isolation> {
    let text = state.table.metadata.properties().get(summary::ISOLATION)?;
    [Isolation::ReadCommitted, Isolation::ReadUncommitted]
        .into_iter()
        .find(|i| i.as_str() == text)
}

/// What the brokers say of themselves and of a topic.
pub(crate) async fn identity_of(log: &dyn Log, topic: &TopicName) -> Result<Identity, Failure> {
    Ok(described(log, topic).await?.0)
}

/// The same, with the partitions that there are.
async fn described(
    log: &dyn Log,
    topic: &TopicName,
) -> Result<(Identity, Vec<Partition>), Failure> {
    let mut described = log.describe(std::slice::from_ref(topic)).await?;
    let info = described.remove(topic).ok_or(Failure::Gone)??;
    let identity = Identity {
        cluster_id: log.cluster_id().await?,
        topic_id: info.topic_id,
    };
    Ok((identity, info.partitions))
}

/// The ends of all of a topic's partitions; none where one of them did not answer.
async fn ends_of(
    request: &Request,
    partitions: impl Iterator<Item = Partition>,
) -> Result<Option<BTreeMap<TopicPartition, LogBounds>>, LogError> {
    let all: Vec<TopicPartition> = partitions
        .map(|p| TopicPartition::new(request.topic.clone(), p))
        .collect();
    let ends = request.log.bounds(&all, request.settings.isolation).await?;
    Ok((ends.len() == all.len()).then_some(ends))
}

struct Looked {
    /// Of those that answered.
    bounds: BTreeMap<TopicPartition, LogBounds>,
    epoch_ends: BTreeMap<TopicPartition, Option<Offset>>,
}

async fn look(request: &Request, ledger: &Ledger, era: &Era) -> Result<Looked, LogError> {
    let all: Vec<TopicPartition> = request
        .partitions
        .iter()
        .map(|p| TopicPartition::new(request.topic.clone(), *p))
        .collect();
    if all.is_empty() {
        return Ok(Looked {
            bounds: BTreeMap::new(),
            epoch_ends: BTreeMap::new(),
        });
    }
    let mut bounds = request.log.bounds(&all, request.settings.isolation).await?;
    let epochs: Vec<(TopicPartition, i32)> = all
        .into_iter()
        .filter(|tp| bounds.contains_key(tp))
        .filter_map(|tp| {
            let epoch = ledger.entry(era.generation, tp.partition)?.leader_epoch?;
            Some((tp, epoch))
        })
        .collect();
    let epoch_ends = if epochs.is_empty() {
        BTreeMap::new()
    } else {
        request.log.epoch_ends(&epochs).await?
    };
    // no answer is not "an epoch that the broker does not know": the partition is asked for again
    for (tp, _) in &epochs {
        if !epoch_ends.contains_key(tp) {
            bounds.remove(tp);
        }
    }
    Ok(Looked { bounds, epoch_ends })
}

fn decide(
    request: &Request,
    ledger: &Ledger,
    era: &Era,
    facts: &Looked,
) -> BTreeMap<Partition, (Decision, Option<LogBounds>)> {
    let now = request.deps.clock.now();
    request
        .partitions
        .iter()
        .map(|p| {
            let tp = TopicPartition::new(request.topic.clone(), *p);
            let bounds = facts.bounds.get(&tp).copied();
            let decision = recovery::partition(PartitionFacts {
                entry: ledger.entry(era.generation, *p),
                bounds,
                epoch_end: facts.epoch_ends.get(&tp).copied().flatten(),
                on_gap: request.settings.on_gap,
                now,
            });
            (*p, (decision, bounds))
        })
        .collect()
}
