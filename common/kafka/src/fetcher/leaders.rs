//! The thread that knows who leads what: it asks for metadata, and starts a thread for each broker that leads something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use everlog_common::{TopicName, TopicPartition};
use kafka_protocol::ResponseError;

use super::backoff::Backoff;
use super::broker::Broker;
use super::connection::Connection;
use super::part::Need;
use super::requests::{self, ClusterHeard};
use super::settings::Address;
use super::state::{Shared, State};
use crate::{LogError, PartitionFault};

/// A thread with nothing to do looks up so often.
const IDLE: Duration = Duration::from_secs(10);

pub(super) struct Leaders {
    shared: Arc<Shared>,
    /// The reader's number, for the names of threads.
    number: u64,
    threads: BTreeMap<i32, JoinHandle<()>>,
    backoff: Backoff,
    /// Which of the brokers is asked next.
    turn: usize,
    refreshed: Instant,
}

impl Leaders {
    pub(super) fn new(shared: Arc<Shared>, number: u64) -> Self {
        let backoff = Backoff::new(shared.settings.backoff);
        Self {
            shared,
            number,
            threads: BTreeMap::new(),
            backoff,
            turn: usize::try_from(number).unwrap_or(0),
            refreshed: Instant::now(),
        }
    }

    /// Until the reader ends, and all its threads with it.
    pub(super) fn run(mut self) {
        while let Some(topics) = self.next_topics() {
            match self.ask(&topics) {
                Ok(heard) => {
                    self.backoff.succeeded();
                    self.refreshed = Instant::now();
                    self.take_in(&topics, heard);
                }
                Err(_) if self.shared.lock().is_stopped() => break,
                Err(error) => {
                    let wait = self.backoff.failed();
                    if self.backoff.is_first() {
                        tracing::warn!(%error, "no broker says who leads: trying again");
                    } else {
                        tracing::debug!(%error, "no broker says who leads");
                    }
                    if !error.is_transient() && self.backoff.is_long() {
                        self.shared.report(error);
                    }
                    if !self.shared.rest(wait) {
                        break;
                    }
                }
            }
        }
        for (node, thread) in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                tracing::error!(node, "the thread that fetched from a broker panicked");
            }
        }
    }

    /// Waits until leaders are to be looked up; none when the reader ends.
    fn next_topics(&self) -> Option<BTreeSet<TopicName>> {
        let mut state = self.shared.lock();
        loop {
            if state.is_stopped() {
                return None;
            }
            let now = Instant::now();
            let refresh = self.shared.settings.refresh;
            let is_due = self.refreshed.elapsed() >= refresh;
            let mut wait = IDLE.min(refresh.saturating_sub(self.refreshed.elapsed()));
            let mut topics = BTreeSet::new();
            for (tp, part) in &state.parts {
                match part.need(now) {
                    Need::Leader => {
                        topics.insert(tp.topic.clone());
                    }
                    Need::Until(at) => wait = wait.min(at.saturating_duration_since(now)),
                    _ if is_due && !part.dead => {
                        topics.insert(tp.topic.clone());
                    }
                    _ => {}
                }
            }
            if !topics.is_empty() {
                return Some(topics);
            }
            if is_due {
                wait = IDLE;
            }
            state = self.shared.wait(state, wait.max(Duration::from_millis(1)));
        }
    }

    /// Asks one broker after the other until one answers: those that are known, and those that are configured.
    fn ask(&mut self, topics: &BTreeSet<TopicName>) -> Result<ClusterHeard, LogError> {
        let settings = &self.shared.settings;
        // not always the same: one that is cut off from the others may answer, and not know better
        self.turn = self.turn.wrapping_add(1);
        let mut all: Vec<Address> = self.shared.lock().brokers.values().cloned().collect();
        let first = self.turn.checked_rem(all.len()).unwrap_or(0);
        all.rotate_left(first);
        let configured = settings.bootstrap.iter().cloned();
        let first = self.turn % settings.bootstrap.len().max(1);
        let (before, behind): (Vec<_>, Vec<_>) =
            configured.enumerate().partition(|(n, _)| *n < first);
        for (_, address) in behind.into_iter().chain(before) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        let mut failed = None;
        for address in all {
            if self.shared.lock().is_stopped() {
                break;
            }
            let answer = Connection::open(&address, settings, &self.shared.sockets)
                .and_then(|mut connection| requests::metadata(&mut connection, topics.iter()));
            match answer {
                Ok(heard) => return Ok(heard),
                Err(error) => {
                    tracing::debug!(broker = %address, %error, "no metadata");
                    // that a broker does not let us in says more than that another is away
                    if failed.as_ref().is_none_or(LogError::is_transient) {
                        failed = Some(error);
                    }
                }
            }
        }
        Err(failed.unwrap_or_else(|| LogError::Closed("the reader ends".into())))
    }

    fn take_in(&mut self, asked: &BTreeSet<TopicName>, heard: ClusterHeard) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        if !heard.brokers.is_empty() {
            state.brokers = heard.brokers;
        }
        let mut faults: Vec<(TopicPartition, u64, PartitionFault)> = Vec::new();
        for (tp, part) in &mut state.parts {
            if part.dead || !asked.contains(&tp.topic) {
                continue;
            }
            let needs = part.leader().is_none();
            let topic = heard.topics.get(&tp.topic);
            let denied = topic
                .and_then(|topic| topic.error)
                .filter(|error| *error == ResponseError::TopicAuthorizationFailed);
            if let Some(error) = denied {
                let fault = PartitionFault::Denied(format!("topic {}: {error}", tp.topic));
                faults.push((tp.clone(), part.id, fault));
                continue;
            }
            let said = topic.and_then(|topic| topic.partitions.get(&tp.partition.get()));
            match said {
                Some(said) if needs || said.leader.is_some() => {
                    if let Some(fault) = part.heard(*said, now) {
                        faults.push((tp.clone(), part.id, fault));
                    }
                }
                // Deleted, or not heard of yet by that broker: the log's answers tell which, and until then it is silence.
                None if needs => part.ask_again(now),
                _ => {}
            }
        }
        for (tp, id, fault) in faults {
            state.fail(&tp, id, fault);
        }
        let nodes = nodes(&state);
        drop(state);
        for node in nodes {
            self.start(node);
        }
        self.shared.ring();
        self.shared.ready.notify_one();
    }

    fn start(&mut self, node: i32) {
        if self.threads.get(&node).is_some_and(|t| !t.is_finished()) {
            return;
        }
        let broker = Broker::new(Arc::clone(&self.shared), node);
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new()
            .name(format!("everlog-fetch-{}-{node}", self.number))
            .spawn(move || {
                let words = LastWords(shared);
                broker.run();
                drop(words);
            });
        match started {
            Ok(thread) => {
                self.threads.insert(node, thread);
            }
            Err(error) => {
                tracing::error!(node, %error, "a thread could not be started: trying again");
                let now = Instant::now();
                let mut state = self.shared.lock();
                let parts = state.parts.values_mut();
                for part in parts.filter(|p| p.leader().is_some_and(|l| l.node == node)) {
                    part.ask_again(now);
                }
            }
        }
    }
}

/// Who leads something.
fn nodes(state: &State) -> BTreeSet<i32> {
    let leaders = state.parts.values().filter_map(super::part::Part::leader);
    leaders.map(|leader| leader.node).collect()
}

/// Ends the reader when one of its threads panics: nobody waits for what will not come.
pub(super) struct LastWords(pub(super) Arc<Shared>);

impl Drop for LastWords {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end("a thread of the reader panicked");
            self.0.stop();
        }
    }
}
