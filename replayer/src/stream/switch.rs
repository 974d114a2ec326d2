//! From one tier to the other: asks the cluster, decides, and acts, until the next tier is ready to be read.
//!
//! Order matters, and is this: the log's bounds are read first, the newest ledger after them (a hole between them is then
//! real); the newest snapshot is leased before the caller lets the old one go; the live reader is assigned before
//! history is let go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Gap, Identity, Ledger, Partition, Positions};
use everlog_kafka::StartAt;
use everlog_table::snapshot::{PinError, PinnedSnapshot, SnapshotSelector};

use super::{Context, ReplayError};
use crate::handoff::{Decision, Incarnation, LastRead, LiveFacts, Place, SeamError, decide};
use crate::history::lanes::{Selection, Stops};
use crate::history::{History, Reading};
use crate::keeper::Keeper;
use crate::live::{Cluster, Tailer};
use crate::task::OwnedTask;

/// What neither tier has may be about to be archived: it is looked for again for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Wait per fall out of the tail without an event in between.
const FALL_BACKOFF: Duration = Duration::from_millis(100);

/// Everything a switch starts from.
#[derive(Debug)]
pub(super) struct SwitchInput {
    pub(super) context: Arc<Context>,
    pub(super) ledger: Ledger,
    pub(super) snapshot_id: Option<i64>,
    pub(super) reached: Positions,
    /// Whose positions those of the newest generation are.
    pub(super) incarnation: Option<Incarnation>,
    /// The partitions that are still to be read; none: whatever there is.
    pub(super) due: Option<BTreeSet<Partition>>,
    pub(super) epochs: BTreeMap<Partition, LastRead>,
    pub(super) stops: Stops,
    pub(super) passed: Vec<Gap>,
    pub(super) finished: BTreeSet<Partition>,
    pub(super) prepared: Option<OwnedTask<Option<Tailer>>>,
    /// The snapshot's files are gone: only another snapshot helps.
    pub(super) vanished: Option<ReplayError>,
    pub(super) falls: u32,
}

/// What is read next.
#[derive(Debug)]
pub(super) enum Switched {
    /// History of a newer snapshot.
    History {
        history: Box<History>,
        keeper: Box<Keeper>,
        ledger: Ledger,
        snapshot_id: i64,
    },
    /// The live log.
    Live {
        tailer: Box<Tailer>,
        identity: Identity,
        ledger: Ledger,
        checked_at: Duration,
    },
    /// Nothing is left to read.
    Nothing,
}

/// What the live reader is opened from while history is still being read.
#[derive(Debug)]
pub(super) struct Preparing {
    pub(super) cluster: Cluster,
    pub(super) ledger: Ledger,
    /// Where partitions will be when history ends.
    pub(super) reached: Positions,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) due: Option<BTreeSet<Partition>>,
    pub(super) epochs: BTreeMap<Partition, LastRead>,
    pub(super) memory_bytes: usize,
}

/// Opens the live reader at the Cut, if that is where the tail is going to begin. Anything else is left to the switch.
pub(super) async fn prepare(input: Preparing) -> Option<Tailer> {
    let facts = input.cluster.facts(&input.epochs).await.ok()??;
    let place = Place {
        ledger: &input.ledger,
        ledger_is_fresh: false,
        positions: &input.reached,
        incarnation: input.incarnation.as_ref(),
        epochs: &input.epochs,
        wanted: input.due.as_ref(),
    };
    let Decision::Tail { generation, starts } = decide(&place, &facts) else {
        return None;
    };
    let (cluster, reached) = (&input.cluster, &input.reached);
    let opened = Tailer::open(cluster, generation, starts, reached, input.memory_bytes).await;
    opened
        .inspect_err(|error| tracing::debug!(%error, "the live log could not be opened ahead"))
        .ok()
}

/// See the module's text.
pub(super) async fn switch(mut input: SwitchInput) -> Result<Switched, ReplayError> {
    let context = Arc::clone(&input.context);
    let clock = &context.clock;
    if input.falls > 1 {
        clock.sleep(FALL_BACKOFF * input.falls).await;
    }
    if let Some(vanished) = input.vanished.take() {
        return newer_or(&input, vanished).await;
    }
    let Some(cluster) = context.cluster.as_ref() else {
        return Ok(Switched::Nothing);
    };
    let mut prepared = match input.prepared.take() {
        Some(mut task) => task.join().await.ok().flatten(),
        None => None,
    };
    let began = clock.elapsed();
    loop {
        let checked_at = clock.elapsed();
        let problem = match cluster.facts(&input.epochs).await? {
            None => ReplayError::TopicGone(context.request.topic.clone()),
            Some(facts) => {
                let fresh = !context.may_refresh;
                match decide(&input.place(fresh), &facts) {
                    Decision::Tail { starts, .. } => {
                        let live = (facts, starts, checked_at);
                        return input.live(cluster, live, prepared.take()).await;
                    }
                    Decision::Stuck(problem) => return Err(seam(&context, problem)),
                    Decision::NewerSnapshot => {}
                }
                match newest(&context).await? {
                    None => {}
                    Some(pinned) => {
                        if let Some(history) = input.history(&pinned).await? {
                            return Ok(switched_to(history, pinned, &context));
                        }
                        input.ledger = pinned.ledger.clone();
                        pinned.release().await;
                    }
                }
                match decide(&input.place(true), &facts) {
                    Decision::Tail { starts, .. } => {
                        let live = (facts, starts, checked_at);
                        return input.live(cluster, live, prepared.take()).await;
                    }
                    Decision::Stuck(problem) if problem.is_final() => {
                        return Err(seam(&context, problem));
                    }
                    Decision::Stuck(problem) => seam(&context, problem),
                    Decision::NewerSnapshot => ReplayError::Stopped("the switch"),
                }
            }
        };
        if clock.elapsed().saturating_sub(began) >= PATIENCE {
            return Err(problem);
        }
        tracing::debug!(%problem, "looking at both tiers again");
        clock.sleep(LOOK_AGAIN).await;
    }
}

/// Goes on in the newest snapshot; fails with `vanished` if that is still the one whose files are gone.
async fn newer_or(input: &SwitchInput, vanished: ReplayError) -> Result<Switched, ReplayError> {
    let context = &input.context;
    let Some(pinned) = newest(context).await? else {
        return Err(vanished);
    };
    if Some(pinned.snapshot_id) == input.snapshot_id {
        pinned.release().await;
        return Err(vanished);
    }
    let history = match input.history(&pinned).await? {
        Some(history) => history,
        // Everything of it was emitted: an empty history leads to the switch.
        None => History::new(reading(context, &pinned, Vec::new()), Vec::new()),
    };
    Ok(switched_to(history, pinned, context))
}

async fn newest(context: &Context) -> Result<Option<PinnedSnapshot>, ReplayError> {
    let pinned = context
        .archive
        .pin(&SnapshotSelector::Current, context.request.lease)
        .await;
    match pinned {
        Ok(pinned) => Ok(Some(pinned)),
        Err(PinError::Empty { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn switched_to(history: History, pinned: PinnedSnapshot, context: &Context) -> Switched {
    Switched::History {
        history: Box::new(history),
        ledger: pinned.ledger.clone(),
        snapshot_id: pinned.snapshot_id,
        keeper: Box::new(Keeper::new(pinned, Arc::clone(&context.clock))),
    }
}

fn seam(context: &Context, source: SeamError) -> ReplayError {
    ReplayError::Seam {
        topic: context.request.topic.clone(),
        source,
    }
}

pub(super) fn reading(
    context: &Context,
    pinned: &PinnedSnapshot,
    files: Vec<everlog_table::files::PlannedFile>,
) -> Reading {
    Reading {
        topic: context.request.topic.clone(),
        storage: pinned.storage().clone(),
        files: Arc::new(files),
        order: context.request.order,
        memory_bytes: context.request.memory_bytes,
        threads: context.request.threads,
        clock: Arc::clone(&context.clock),
    }
}

impl SwitchInput {
    fn place(&self, ledger_is_fresh: bool) -> Place<'_> {
        Place {
            ledger: &self.ledger,
            ledger_is_fresh,
            positions: &self.reached,
            incarnation: self.incarnation.as_ref(),
            epochs: &self.epochs,
            wanted: self.due.as_ref(),
        }
    }

    /// What a newer snapshot has beyond the positions; none where it has nothing.
    async fn history(&self, pinned: &PinnedSnapshot) -> Result<Option<History>, ReplayError> {
        let request = &self.context.request;
        let before = self.incarnation.as_ref();
        if let Some(problem) = before.and_then(|i| i.contradicts(&pinned.ledger, None)) {
            return Err(seam(&self.context, problem));
        }
        let selection = Selection {
            ledger: &pinned.ledger,
            positions: &self.reached,
            from: request.from,
            wanted: request.partitions.as_ref(),
            stops: &self.stops,
            passed: &self.passed,
        };
        let mut phases = selection.phases();
        for phase in &mut phases {
            phase.lanes.retain(|p, _| !self.finished.contains(p));
        }
        phases.retain(|phase| !phase.lanes.is_empty());
        if phases.is_empty() {
            return Ok(None);
        }
        let files = pinned.files().await?;
        Ok(Some(History::new(
            reading(&self.context, pinned, files),
            phases,
        )))
    }

    /// Tails from `starts`, by the reader opened ahead where it begins at the same offsets.
    async fn live(
        self,
        cluster: &Cluster,
        (facts, starts, checked_at): (LiveFacts, BTreeMap<Partition, StartAt>, Duration),
        prepared: Option<Tailer>,
    ) -> Result<Switched, ReplayError> {
        let generation = self
            .ledger
            .newest()
            .map_or_else(Default::default, |(g, _)| g);
        let ready = |t: &Tailer| t.generation() == generation && *t.starts() == starts;
        let mut tailer = match prepared {
            Some(tailer) if ready(&tailer) => tailer,
            other => {
                if let Some(stale) = other {
                    stale.close().await;
                }
                let memory_bytes = self.context.live_bytes();
                Tailer::open(cluster, generation, starts, &self.reached, memory_bytes).await?
            }
        };
        tailer.heard_ends(facts.bounds.iter().map(|(p, bounds)| (*p, bounds.end)));
        Ok(Switched::Live {
            tailer: Box::new(tailer),
            identity: facts.identity,
            ledger: self.ledger,
            checked_at,
        })
    }
}
