//! The live tier of the stream: events that wait to be proved, checks of the topic, and every way out of the tail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Clock, Generation, Identity, Offset, Partition, Position, Positions};
use everlog_kafka::{LogError, PartitionFault, StartAt};

use super::{EventStream, State};
use crate::error::ReplayError;
use crate::handoff::{Decision, Incarnation, LastRead, LiveFacts, Place, decide};
use crate::live::{Adjustment, Cluster, TailEvent, Tailer};
use crate::request::From;
use crate::task::OwnedTask;
use crate::unproven::Unproven;

/// The live topic's partitions, bounds and cluster are looked at so often, whether or not events come.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// While something is held back, it is asked so often whether others are at their ends: readers do not always tell.
const ENDS_INTERVAL: Duration = Duration::from_millis(500);
/// A wait for live events, at most: bounds how late anything else is noticed.
const POLL_WAIT: Duration = Duration::from_secs(1);
/// Falling out of the tail so often without an event in between is an error.
const FALLS_MAX: u32 = 8;

#[derive(Debug)]
pub(super) struct ReadingLive {
    pub(super) tailer: Tailer,
    identity: Identity,
    /// Events that may be of another incarnation yet.
    pub(super) unproven: Unproven,
    /// The look that tells.
    look: Option<OwnedTask<LookOutcome>>,
    /// Something was proved to be of this incarnation.
    verified: bool,
    check: Option<Check>,
    check_at: Duration,
    /// The question where logs end.
    ends: Option<OwnedTask<EndsOutcome>>,
    ends_at: Duration,
    lost: Option<(Partition, PartitionFault)>,
    pub(super) to_add: BTreeMap<Partition, StartAt>,
    /// Held back, and let go of by the reader: read again from their positions when they are released.
    pub(super) away: BTreeSet<Partition>,
}

type EndsOutcome = Result<BTreeMap<Partition, Offset>, LogError>;
type LookOutcome = Result<Option<Identity>, LogError>;
type CheckOutcome = Result<Option<LiveFacts>, LogError>;

#[derive(Debug)]
struct Check {
    task: OwnedTask<CheckOutcome>,
    /// Positions when it began: what was read later must not be held against it.
    reached: Positions,
    /// The same of the last records: the answer is about these.
    epochs: BTreeMap<Partition, LastRead>,
}

/// What the tail waits for.
#[derive(Debug)]
enum Seen {
    Events(Vec<TailEvent>),
    Identity(LookOutcome),
    Facts(CheckOutcome),
    Ends(EndsOutcome),
}

impl EventStream {
    pub(super) fn begin_live(&mut self, tailer: Tailer, identity: Identity, checked_at: Duration) {
        let generation = tailer.generation();
        for (partition, start) in tailer.starts() {
            self.enter(generation, *partition, start.offset);
        }
        self.learn(tailer.starts().keys().map(|p| (generation, *p)));
        self.incarnation = Some(Incarnation {
            generation,
            identity: identity.clone(),
        });
        self.state = State::Live(Box::new(ReadingLive {
            tailer,
            identity,
            unproven: Unproven::new(self.context.live_bytes()),
            look: None,
            verified: false,
            check: None,
            check_at: checked_at + CHECK_INTERVAL,
            ends: None,
            ends_at: Duration::ZERO,
            lost: None,
            to_add: BTreeMap::new(),
            away: BTreeSet::new(),
        }));
    }

    /// A partition of which nothing was emitted in this generation begins at `start` of the live log.
    fn enter(&mut self, generation: Generation, partition: Partition, start: Offset) {
        let known = self.reached.get(&partition);
        if known.is_some_and(|at| at.generation >= generation) {
            return;
        }
        let seeks = matches!(self.context.request.from, From::Timestamp(_))
            && !self.positions.contains_key(&partition);
        if seeks {
            self.seeking.insert(partition);
        }
        let position = Position {
            generation,
            offset: start,
        };
        self.reached.insert(partition, position);
        if !seeks {
            self.positions.insert(partition, position);
        }
    }

    pub(super) async fn step_live(&mut self) -> Result<(), ReplayError> {
        if self.is_done() {
            self.let_go();
            return Ok(());
        }
        let now = self.context.clock.elapsed();
        let State::Live(live) = &mut self.state else {
            return Ok(());
        };
        if let Some((partition, fault)) = live.lost.take() {
            return self.fall(partition, fault);
        }
        if let Some(change) = self.adjustment() {
            self.adjust(change);
            return Ok(());
        }
        let in_doubt = self.in_doubt();
        let State::Live(live) = &mut self.state else {
            return Ok(());
        };
        if let Some(cluster) = &self.context.cluster {
            live.begin_checks(cluster, &self.epochs, &self.reached, now);
            live.ask_for_ends(cluster, in_doubt, now);
        }
        let clock = Arc::clone(&self.context.clock);
        match live.wait(clock.as_ref(), now).await? {
            Seen::Events(events) if live.waits_for_proof() => live.unproven.put(events),
            Seen::Events(events) => self.take_in(events),
            Seen::Identity(found) => self.looked(found)?,
            Seen::Facts(Ok(facts)) => self.checked(facts),
            Seen::Facts(Err(error))
                if error.is_transient() && (live.verified || live.has_topic_id()) =>
            {
                tracing::warn!(%error, "the live topic cannot be checked now");
                live.check = None;
            }
            Seen::Facts(Err(error)) => return Err(error.into()),
            Seen::Ends(answer) => {
                live.ends = None;
                match answer {
                    Ok(ends) => live.tailer.heard_ends(ends),
                    // the checks find out what is wrong
                    Err(error) => tracing::debug!(%error, "where logs end is not known now"),
                }
            }
        }
        Ok(())
    }

    fn adjust(&mut self, change: Adjustment) {
        let State::Live(mut live) = std::mem::replace(&mut self.state, State::Ended) else {
            return;
        };
        let reached = self.reached.clone();
        let task = async move {
            live.tailer.adjust(change, &reached).await?;
            Ok(live)
        };
        let task = OwnedTask::spawn("telling the live reader what to read", task);
        self.state = State::Adjusting(task);
    }

    pub(super) fn adjusted(&mut self, mut live: Box<ReadingLive>) {
        let generation = live.tailer.generation();
        let added = std::mem::take(&mut live.to_add);
        self.learn(added.keys().map(|p| (generation, *p)));
        for (partition, start) in added {
            self.enter(generation, partition, start.offset);
        }
        self.state = State::Live(live);
    }

    /// What a look at the topic's identity found, for the events that were fetched before it began.
    fn looked(&mut self, found: LookOutcome) -> Result<(), ReplayError> {
        let now = self.context.clock.elapsed();
        let State::Live(live) = &mut self.state else {
            return Ok(());
        };
        live.look = None;
        match found {
            Ok(Some(identity)) if live.is_of(&identity) => {
                let events = live.prove();
                self.take_in(events);
            }
            // Deleted, or created anew: what was not proved is not emitted, and the switch finds out.
            Ok(_) => {
                self.falls += 1;
                if self.falls > FALLS_MAX {
                    return Err(ReplayError::Unsettled(self.context.request.topic.clone()));
                }
                self.start_switch(None, None);
            }
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "live events wait until the topic's identity is known again");
                live.unproven.unanswered(now);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// What the cluster says now, compared with what is being read.
    fn checked(&mut self, facts: Option<LiveFacts>) {
        let due = self.due(&self.reached);
        let State::Live(live) = &mut self.state else {
            return;
        };
        let check = live.check.take();
        let (reached, epochs) = check.map_or_else(Default::default, |c| (c.reached, c.epochs));
        let Some(facts) = facts else {
            // Deleted, or between deletion and re-creation: the switch finds out.
            self.start_switch(None, None);
            return;
        };
        // While nothing is archived, the identity that the tail began with is all there is to compare.
        let nothing_archived = self.ledger.newest().is_none();
        let place = Place {
            ledger: &self.ledger,
            ledger_is_fresh: nothing_archived,
            positions: &reached,
            incarnation: self.incarnation.as_ref(),
            epochs: &epochs,
            wanted: due.as_ref(),
        };
        let same = facts.identity == live.identity;
        if same {
            let ends = facts.bounds.iter().map(|(p, bounds)| (*p, bounds.end));
            live.tailer.heard_ends(ends);
        }
        let generation = live.tailer.generation();
        match decide(&place, &facts) {
            Decision::Tail {
                generation: g,
                starts,
            } if same && g == generation => {
                let known = live.tailer.starts();
                let new = starts.into_iter().filter(|(p, _)| !known.contains_key(p));
                let new: BTreeMap<_, _> = new.collect();
                if nothing_archived && !new.is_empty() {
                    self.start_switch(None, None);
                    return;
                }
                live.to_add = new;
                if !live.verified && live.unproven.is_asked() && !live.has_topic_id() {
                    let events = live.prove();
                    self.take_in(events);
                }
            }
            _ => self.start_switch(None, None),
        }
    }

    /// A partition cannot be tailed on: back to the switch, which knows what that means.
    fn fall(&mut self, partition: Partition, fault: PartitionFault) -> Result<(), ReplayError> {
        self.falls += 1;
        let final_fault = matches!(
            fault,
            PartitionFault::Denied(_) | PartitionFault::Corrupt(_)
        );
        if final_fault || self.falls > FALLS_MAX {
            return Err(ReplayError::Fault {
                topic: self.context.request.topic.clone(),
                partition,
                source: fault,
            });
        }
        tracing::info!(%partition, %fault, "the live log cannot be read on: looking at both tiers again");
        self.start_switch(None, None);
        Ok(())
    }

    /// Queues live events.
    fn take_in(&mut self, events: Vec<TailEvent>) {
        for event in events {
            match event {
                TailEvent::Batch(batch) => self.take_batch(batch),
                TailEvent::Lost(partition, fault) => {
                    if let State::Live(live) = &mut self.state {
                        live.lost.get_or_insert((partition, fault));
                    }
                }
            }
        }
    }
}

impl ReadingLive {
    /// Whether the brokers know the topic's id, so that a look proves what it is of.
    fn has_topic_id(&self) -> bool {
        self.identity.topic_id.is_some()
    }

    /// Whether what was fetched before a look that found `identity` is of the incarnation that is being read.
    fn is_of(&self, identity: &Identity) -> bool {
        self.identity.topic_id == identity.topic_id && self.identity.agrees(identity)
    }

    /// Whether events wait before they are handed on. Without ids only the first ones do, for one check of everything else.
    fn waits_for_proof(&self) -> bool {
        self.has_topic_id() || !self.verified
    }

    /// Starts what is due of looks and checks.
    fn begin_checks(
        &mut self,
        cluster: &Cluster,
        epochs: &BTreeMap<Partition, LastRead>,
        reached: &Positions,
        now: Duration,
    ) {
        let look_is_due = self.unproven.look_at().is_some_and(|at| at <= now);
        if look_is_due && self.has_topic_id() {
            self.unproven.look_began(now);
            let (cluster, first) = (cluster.clone(), !self.verified);
            let look = async move { cluster.look(first).await };
            self.look = Some(OwnedTask::spawn("the look at the topic's identity", look));
        }
        let first = look_is_due && !self.has_topic_id() && !self.verified;
        if self.check.is_none() && (first || now >= self.check_at) {
            if first {
                self.unproven.look_began(now);
            }
            let (cluster, asked) = (cluster.clone(), epochs.clone());
            let check = async move { cluster.facts(&asked).await };
            self.check = Some(Check {
                task: OwnedTask::spawn("the check of the live topic", check),
                reached: reached.clone(),
                epochs: epochs.clone(),
            });
            self.check_at = now + CHECK_INTERVAL;
        }
    }

    /// Asks where the logs of these end, now and then.
    fn ask_for_ends(&mut self, cluster: &Cluster, of: BTreeSet<Partition>, now: Duration) {
        if of.is_empty() || self.ends.is_some() || now < self.ends_at {
            return;
        }
        self.ends_at = now + ENDS_INTERVAL;
        let cluster = cluster.clone();
        let ends = async move { cluster.ends(&of).await };
        self.ends = Some(OwnedTask::spawn("the look at the logs' ends", ends));
    }

    /// What comes next: events, or an answer. Cancel-safe.
    async fn wait(&mut self, clock: &dyn Clock, now: Duration) -> Result<Seen, ReplayError> {
        // What is under way is waited for by itself.
        let check_at = Some(self.check_at).filter(|_| self.check.is_none());
        // Without ids the check is the look.
        let look_at = self.unproven.look_at();
        let look_at = look_at.filter(|_| self.has_topic_id() || self.check.is_none());
        let ends_at = Some(self.ends_at).filter(|at| self.ends.is_none() && *at > now);
        let due = check_at.into_iter().chain(look_at).chain(ends_at).min();
        let wait = due.map_or(POLL_WAIT, |due| POLL_WAIT.min(due.saturating_sub(now)));
        let full = self.unproven.is_full();
        let (tailer, look, check) = (&mut self.tailer, &mut self.look, &mut self.check);
        let ends = &mut self.ends;
        let events = async {
            if full {
                clock.sleep(wait).await;
                return Ok(Vec::new());
            }
            tailer.poll(wait).await
        };
        tokio::select! {
            biased;
            facts = answer(check.as_mut().map(|c| &mut c.task)) => Ok(Seen::Facts(facts?)),
            found = answer(look.as_mut()) => Ok(Seen::Identity(found?)),
            ends = answer(ends.as_mut()) => Ok(Seen::Ends(ends?)),
            events = events => Ok(Seen::Events(events?)),
        }
    }

    /// The events that a look has proved to be of this incarnation.
    fn prove(&mut self) -> Vec<TailEvent> {
        if !self.verified {
            fail::fail_point!("replay::first_live");
            self.verified = true;
        }
        if self.has_topic_id() {
            self.unproven.proved()
        } else {
            // There is no second look: what came meanwhile goes on too, or it would wait for ever.
            self.unproven.everything()
        }
    }
}

/// A task's result; never, where there is no task.
async fn answer<T: Send + 'static>(task: Option<&mut OwnedTask<T>>) -> Result<T, ReplayError> {
    match task {
        Some(task) => task.join().await.map_err(ReplayError::Stopped),
        None => std::future::pending().await,
    }
}
