//! Opening a replay: what is asked for, what there is, and where to begin.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Generation, Ledger, Offset, Partition, Position};
use everlog_kafka::Isolation;
use everlog_table::archive::{Archive, ArchiveDeps, ArchiveError};
use everlog_table::catalog::LoadedTable;
use everlog_table::snapshot::{PinError, PinnedSnapshot, SnapshotSelector};
use everlog_table::summary::ISOLATION;
use tokio::task::JoinSet;

use super::queue::Queue;
use super::switch::reading;
use super::{Components, Context, EventStream, ReadingHistory, State};
use crate::error::ReplayError;
use crate::handoff::{Incarnation, LiveFacts, SeamError, other_cluster};
use crate::history::lanes::{Selection, Stops};
use crate::history::{History, find_timestamp};
use crate::keeper::Keeper;
use crate::live::Cluster;
use crate::progress::Meter;
use crate::rate::RateLimit;
use crate::request::{From, Order, ReplayRequest, Until};

/// How often the log's end is asked for while it lies below what is archived: a new leader's may trail for a moment.
const TRAILING_ASKS: u32 = 6;
/// Between two of those.
const TRAILING_WAIT: Duration = Duration::from_millis(500);

impl EventStream {
    /// Opens a replay: pins the snapshot, notes where the live log ends now, and plans. Nothing is emitted before the
    /// ledger's cross-checks have passed.
    pub async fn open(
        mut request: ReplayRequest,
        components: Components,
    ) -> Result<Self, ReplayError> {
        request.validate()?;
        let archive = open_archive(&request, &components).await?;
        let pinned = pin(&archive, &request).await?;
        let ledger = pinned
            .as_ref()
            .map_or_else(Ledger::default, |p| p.ledger.clone());
        let cluster = match &components.log {
            _ if !request.is_live() => None,
            Some(log) => Some(Cluster {
                log: Arc::clone(log),
                topic: request.topic.clone(),
                isolation: isolation(&archive, pinned.as_ref()).await?,
                wanted: request.partitions.clone(),
                clock: Arc::clone(&components.clock),
            }),
            None if ends_in_history(&request, &ledger) => None,
            None => return Err(ReplayError::NoKafka(request.topic)),
        };
        // After the pin: so the end seen now is not before the Cut.
        let facts = match &cluster {
            None => None,
            Some(cluster) => Some(live_facts(cluster, &request, &ledger).await?),
        };
        check(&request, &ledger, facts.as_ref())?;
        if let Some(facts) = &facts {
            begin_live_partitions(&mut request, &ledger, facts);
        }
        let stops = stops(&request, &ledger, facts.as_ref());
        let context = Arc::new(Context {
            may_refresh: matches!(request.selector, SnapshotSelector::Current),
            request,
            archive,
            cluster,
            clock: components.clock,
        });
        let live = facts.iter().flat_map(|facts| {
            let generation = ledger.generation_for(&facts.identity);
            facts.bounds.keys().map(move |p| (generation, *p))
        });
        let live: Vec<(Generation, Partition)> = live.collect();
        let incarnation = Incarnation::newest(&ledger).or_else(|| {
            facts.map(|facts| Incarnation {
                generation: Generation::FIRST,
                identity: facts.identity,
            })
        });
        let mut stream = Self::begin(context, pinned, ledger, (stops, incarnation)).await?;
        stream.learn(live);
        stream.learn_ledger();
        stream.grew = false;
        Ok(stream)
    }

    async fn begin(
        context: Arc<Context>,
        pinned: Option<PinnedSnapshot>,
        ledger: Ledger,
        (stops, incarnation): (Stops, Option<Incarnation>),
    ) -> Result<Self, ReplayError> {
        let request = &context.request;
        let mut starts = request.start.clone().unwrap_or_default();
        if let Some(wanted) = &request.partitions {
            starts.retain(|p, _| wanted.contains(p));
        }
        let everything = Stops::default();
        let files = match &pinned {
            Some(pinned) => pinned.files().await?,
            None => Vec::new(),
        };
        let reading = pinned.as_ref().map(|p| reading(&context, p, files));
        let mut seeking = BTreeSet::new();
        if let (From::Timestamp(at), Some(reading)) = (request.from, &reading) {
            let selection = Selection {
                ledger: &ledger,
                positions: &starts,
                from: From::Beginning,
                wanted: request.partitions.as_ref(),
                stops: &everything,
                passed: &[],
            };
            let unresolved = selection
                .starts()
                .into_keys()
                .filter(|p| !starts.contains_key(p));
            seeking = unresolved.collect();
            let only = Selection {
                wanted: Some(&seeking),
                ..selection
            };
            let found = find_timestamp(reading, only, at).await?;
            seeking.retain(|p| !found.contains_key(p));
            starts.extend(found);
        }
        let selection = Selection {
            ledger: &ledger,
            positions: &starts,
            from: request.from,
            wanted: request.partitions.as_ref(),
            stops: &stops,
            passed: &[],
        };
        let reached = selection.starts();
        let mut positions = reached.clone();
        positions.retain(|p, _| !seeking.contains(p));
        let phases = selection.phases();
        let snapshot_id = pinned.as_ref().map(|p| p.snapshot_id);
        let mut stream = Self {
            state: State::Ended,
            queue: Queue::default(),
            known: BTreeSet::new(),
            grew: false,
            spent: BTreeSet::new(),
            ledger,
            snapshot_id,
            keeper: None,
            stops,
            finished: BTreeSet::new(),
            seeking,
            reached,
            positions,
            incarnation,
            epochs: BTreeMap::new(),
            gaps: Vec::new(),
            rate: request
                .rate
                .map(|rate| RateLimit::new(rate, context.clock.elapsed())),
            meter: Meter::default(),
            vanished: 0,
            falls: 0,
            cleanup: JoinSet::new(),
            context,
        };
        match (pinned, reading) {
            (Some(pinned), Some(reading)) => {
                let clock = Arc::clone(&stream.context.clock);
                stream.keeper = Some(Keeper::new(pinned, clock));
                stream.state = State::History(Box::new(ReadingHistory {
                    history: History::new(reading, phases),
                    prepared: None,
                }));
            }
            _ if stream.is_done() => {}
            _ => stream.start_switch(None, None),
        }
        Ok(stream)
    }
}

async fn open_archive(
    request: &ReplayRequest,
    components: &Components,
) -> Result<Archive, ReplayError> {
    let deps = ArchiveDeps {
        catalog: Arc::clone(&components.catalog),
        clock: Arc::clone(&components.clock),
        ids: Arc::clone(&components.ids),
    };
    let archive = Archive::open(deps, &components.namespace, &request.topic).await?;
    archive.ok_or_else(|| ReplayError::NotArchived {
        topic: request.topic.clone(),
        namespace: components.namespace.clone(),
    })
}

/// Pins what is asked for. A resumed `--order time` prefers the snapshot of the earlier run, so that the same rows are
/// merged; where it is gone, the newest one has them all, only their order across partitions may differ.
async fn pin(
    archive: &Archive,
    request: &ReplayRequest,
) -> Result<Option<PinnedSnapshot>, ReplayError> {
    let current = matches!(request.selector, SnapshotSelector::Current);
    if let Some(id) = request.resumed_snapshot
        && current
        && request.order == Order::Time
    {
        match archive.pin(&SnapshotSelector::Id(id), request.lease).await {
            Ok(pinned) => return Ok(Some(pinned)),
            Err(error) => {
                tracing::info!(snapshot_id = id, %error, "going on in the newest snapshot");
            }
        }
    }
    match archive.pin(&request.selector, request.lease).await {
        Ok(pinned) => Ok(Some(pinned)),
        Err(PinError::Empty { .. }) if current && request.is_live() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The isolation that the archive is written with, also before its first commit, so that both tiers show the same records.
async fn isolation(
    archive: &Archive,
    pinned: Option<&PinnedSnapshot>,
) -> Result<Isolation, ArchiveError> {
    match pinned {
        Some(pinned) => Ok(isolation_of(pinned.table())),
        None => Ok(isolation_of(&archive.state().await?.table)),
    }
}

/// The isolation that a table records.
pub(crate) fn isolation_of(table: &LoadedTable) -> Isolation {
    let recorded = table.metadata.properties().get(ISOLATION);
    match recorded.map(String::as_str) {
        Some(name) if name == Isolation::ReadUncommitted.as_str() => Isolation::ReadUncommitted,
        _ => Isolation::ReadCommitted,
    }
}

/// The live log as it is now. One that ends below what is archived was truncated: a replay that ended with it would leave
/// out archived records, silently.
async fn live_facts(
    cluster: &Cluster,
    request: &ReplayRequest,
    ledger: &Ledger,
) -> Result<LiveFacts, ReplayError> {
    let mut asked = 1;
    loop {
        let facts = cluster.facts(&BTreeMap::new()).await?;
        let facts = facts.ok_or_else(|| ReplayError::TopicGone(request.topic.clone()))?;
        let Some(problem) = truncation(request, ledger, &facts) else {
            return Ok(facts);
        };
        if asked == TRAILING_ASKS {
            return Err(ReplayError::Seam {
                topic: request.topic.clone(),
                source: problem,
            });
        }
        asked += 1;
        cluster.clock.sleep(TRAILING_WAIT).await;
    }
}

/// A partition that is asked for, and whose log is shorter than what is archived of the same incarnation.
fn truncation(request: &ReplayRequest, ledger: &Ledger, facts: &LiveFacts) -> Option<SeamError> {
    let (_, newest) = ledger.newest()?;
    if !newest.identity.agrees(&facts.identity) {
        return None;
    }
    let mut wanted = newest.partitions.iter().filter(|(p, _)| request.wants(**p));
    wanted.find_map(|(partition, entry)| {
        let end = facts.bounds.get(partition)?.high_watermark;
        (end < entry.next).then_some(SeamError::Truncated {
            partition: *partition,
            position: entry.next,
            end,
            by_epoch: false,
        })
    })
}

/// Whether the archive reaches the asked end in every partition, so that Kafka has no part in it.
fn ends_in_history(request: &ReplayRequest, ledger: &Ledger) -> bool {
    let (Until::Offset(until), Some((_, newest))) = (request.until, ledger.newest()) else {
        return false;
    };
    let mut wanted = newest.partitions.iter().filter(|(p, _)| request.wants(**p));
    wanted.all(|(_, entry)| entry.next >= until)
}

fn check(
    request: &ReplayRequest,
    ledger: &Ledger,
    facts: Option<&LiveFacts>,
) -> Result<(), ReplayError> {
    let known = |partition: &Partition| {
        let mut eras = ledger.generations.values();
        eras.any(|era| era.partitions.contains_key(partition))
            || facts.is_some_and(|f| f.bounds.contains_key(partition))
    };
    let mut asked = request.partitions.iter().flatten();
    if let Some(partition) = asked.find(|p| !known(p)) {
        return Err(ReplayError::NoSuchPartition {
            topic: request.topic.clone(),
            partition: *partition,
        });
    }
    if let (Some(facts), Some((generation, newest))) = (facts, ledger.newest())
        && let Some(source) = other_cluster(generation, &newest.identity, &facts.identity)
    {
        return Err(ReplayError::Seam {
            topic: request.topic.clone(),
            source,
        });
    }
    let live = facts.map(|f| &f.identity);
    let before = request.incarnation.as_ref();
    if let Some(source) = before.and_then(|i| i.contradicts(ledger, live)) {
        return Err(ReplayError::Seam {
            topic: request.topic.clone(),
            source,
        });
    }
    let newest = ledger.newest().map_or(Generation::FIRST, |(g, _)| g);
    let live = facts.map(|facts| ledger.generation_for(&facts.identity));
    if let From::Offset {
        generation: Some(asked),
        ..
    } = request.from
        && asked > live.map_or(newest, |live| live.max(newest))
    {
        return Err(ReplayError::NoSuchGeneration {
            topic: request.topic.clone(),
            generation: asked,
            newest,
        });
    }
    if let (Some(facts), Some(live)) = (facts, live)
        && let Some(error) = beyond_the_end(request, ledger, facts, live)
    {
        return Err(error);
    }
    let mut positions = request.start.iter().flatten();
    match positions.find(|(_, at)| at.generation > newest) {
        None => Ok(()),
        Some((partition, position)) => Err(ReplayError::AheadOfSnapshot {
            partition: *partition,
            position: *position,
            newest,
        }),
    }
}

/// A position that neither tier reaches: of a log that was truncated, or of another one. A replay that waits for an offset
/// by number would wait in silence, too.
fn beyond_the_end(
    request: &ReplayRequest,
    ledger: &Ledger,
    facts: &LiveFacts,
    live: Generation,
) -> Option<ReplayError> {
    let asked_for = match request.from {
        From::Offset { generation, offset } if request.until == Until::Never => {
            let generation = generation.unwrap_or(live);
            Some(Position { generation, offset })
        }
        _ => None,
    };
    let wanted = facts.bounds.iter().filter(|(p, _)| request.wants(**p));
    let mut beyond = wanted.filter_map(|(partition, bounds)| {
        let saved = request.start.as_ref().and_then(|s| s.get(partition));
        let position = saved.copied().or(asked_for)?;
        let archived = ledger
            .entry(live, *partition)
            .map_or(Offset::ZERO, |e| e.next);
        let end = bounds.high_watermark.max(archived);
        (position.generation == live && position.offset > end).then_some((
            *partition,
            position.offset,
            end,
        ))
    });
    let (partition, offset, end) = beyond.next()?;
    Some(ReplayError::BeyondTheEnd {
        topic: request.topic.clone(),
        partition,
        offset,
        end,
    })
}

/// Partitions that are not archived yet begin at the asked offset, too, and not with their log.
fn begin_live_partitions(request: &mut ReplayRequest, ledger: &Ledger, facts: &LiveFacts) {
    let From::Offset { generation, offset } = request.from else {
        return;
    };
    let live = ledger.generation_for(&facts.identity);
    if generation.is_some_and(|asked| asked != live) {
        return;
    }
    let mut starts = request.start.take().unwrap_or_default();
    for (partition, bounds) in &facts.bounds {
        let is_new = ledger.entry(live, *partition).is_none() && !starts.contains_key(partition);
        if is_new && request.wants(*partition) && offset > bounds.log_start {
            let position = Position {
                generation: live,
                offset: offset.min(bounds.end),
            };
            starts.insert(*partition, position);
        }
    }
    if !starts.is_empty() {
        request.start = Some(starts);
    }
}

/// Where the replay ends, by what is there now.
fn stops(request: &ReplayRequest, ledger: &Ledger, facts: Option<&LiveFacts>) -> Stops {
    let timestamp = match request.until {
        Until::Timestamp(at) => Some(at.0),
        _ => None,
    };
    let newest = ledger.newest().map_or(Generation::FIRST, |(g, _)| g);
    let bound = |end: Offset| match request.until {
        Until::Offset(until) => until.min(end),
        _ => end,
    };
    let offsets = match facts {
        _ if request.until == Until::Never => None,
        Some(facts) => {
            let live = facts.bounds.iter().filter(|(p, _)| request.wants(**p));
            let ends: BTreeMap<Partition, Offset> =
                live.map(|(p, bounds)| (*p, bound(bounds.end))).collect();
            Some((ledger.generation_for(&facts.identity), ends))
        }
        None => match request.until {
            Until::Offset(until) => {
                let partitions = ledger.newest().map(|(_, era)| era.partitions.keys());
                let wanted = partitions
                    .into_iter()
                    .flatten()
                    .filter(|p| request.wants(**p));
                Some((newest, wanted.map(|p| (*p, until)).collect()))
            }
            _ => None,
        },
    };
    Stops { offsets, timestamp }
}
