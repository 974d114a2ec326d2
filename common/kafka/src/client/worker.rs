//! The thread that owns a reader's client.
//!
//! It never waits for the caller: with no room in the outbox it stops taking messages (the client's queue fills, and the
//! client stops fetching) but goes on serving the group.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use everlog_common::{
    EventColumnsBuilder, Offset, Partition, TimestampType, TopicName, TopicPartition,
};
use rdkafka_sys::rd_kafka_timestamp_type_t as TimestampKind;

use super::classify;
use super::ffi::{
    Client, Code, Delivery, Failure, Flow, Message, PartitionList, Queue, Rebalance, Report,
};
use super::log::configuration;
use super::properties::MemoryPlan;
use super::reader::{Command, Request, Shared};
use super::slots::{Incoming, Slot, Slots, Taken};
use crate::{LogError, Membership, PartitionFault, ReaderEvent, ReaderOptions, StartAt};

/// How long one wait may last: a rebalance is noticed after so long at most.
const TICK: Duration = Duration::from_millis(50);
/// Leaving the group takes at most so long.
const LEAVE_LIMIT: Duration = Duration::from_secs(8);
/// Telling the client to check epochs takes at most so long (the checks themselves go on behind).
const CHECK_LIMIT: Duration = Duration::from_secs(5);
/// The client is asked for its fatal error and its brokers so often.
const CLIENT_CHECK: Duration = Duration::from_secs(1);

/// A rebalance that waits for the caller's answer.
#[derive(Debug)]
enum Pending {
    Assign,
    Revoke(Vec<TopicPartition>),
}

pub(super) struct Worker {
    client: Arc<Client>,
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    options: ReaderOptions,
    plan: MemoryPlan,
    slots: Slots,
    /// What the client has in its assignment, dead ones too.
    assigned: BTreeSet<TopicPartition>,
    paused: BTreeSet<TopicPartition>,
    pending: VecDeque<Pending>,
    /// Assignments that are no answer: they would be taken for one, so they wait for it. So does what is to be paused or
    /// resumed of them.
    deferred: VecDeque<Request>,
    /// For the estimate of what the client's queue holds.
    message_bytes: usize,
    client_checked: Instant,
    repeated: u64,
}

impl Worker {
    pub(super) fn new(
        properties: &BTreeMap<String, String>,
        options: ReaderOptions,
        plan: MemoryPlan,
        shared: Arc<Shared>,
    ) -> Result<Self, LogError> {
        let client = Client::new(properties).map_err(|e| configuration(&e))?;
        client.poll_as_consumer().map_err(|e| configuration(&e))?;
        let queue = Arc::new(Queue::new(&client));
        shared.attach(Some(Arc::clone(&queue)));
        let worker = Self {
            client,
            queue,
            shared,
            options,
            plan,
            slots: Slots::default(),
            assigned: BTreeSet::new(),
            paused: BTreeSet::new(),
            pending: VecDeque::new(),
            deferred: VecDeque::new(),
            message_bytes: 0,
            client_checked: Instant::now(),
            repeated: 0,
        };
        if let Membership::Group { topics, .. } = &worker.options.membership
            && !topics.is_empty()
        {
            worker.subscribe(topics)?;
        }
        Ok(worker)
    }

    pub(super) fn run(mut self) {
        let why = self.work();
        self.end(why);
    }

    /// Until the caller stops it or the client is lost; says why.
    fn work(&mut self) -> String {
        let mut full = false;
        loop {
            for command in self.shared.commands(full.then_some(TICK)) {
                let Command { request, reply } = command;
                // a caller that gave up does not need the answer
                reply.send(self.obey(request)).ok();
            }
            if self.shared.stop.load(Ordering::SeqCst) {
                return "the reader was closed".into();
            }
            if let Some(fatal) = self.look_after_the_client() {
                return fatal;
            }
            self.serve_group();
            let outbox = self.shared.outbox_bytes();
            full = outbox >= self.plan.own;
            if !full {
                self.take_messages(self.plan.own - outbox);
            }
            self.hand_over_what_is_due();
            self.count_held();
        }
    }

    /// The error that ended it for good, if any.
    fn look_after_the_client(&mut self) -> Option<String> {
        if self.client_checked.elapsed() < CLIENT_CHECK {
            return None;
        }
        self.client_checked = Instant::now();
        self.client.keep_a_broker();
        self.client.fatal()
    }

    fn count_held(&self) {
        let waiting: usize = self.slots.iter().map(Slot::bytes).sum();
        let queued = self.queue.len().saturating_mul(self.message_bytes);
        let held = self.shared.outbox_bytes() + waiting + queued;
        self.shared.held.store(held, Ordering::Relaxed);
    }

    // --- what the group and the client say ---------------------------------------------------------------------

    fn serve_group(&mut self) {
        let client = Arc::clone(&self.client);
        client.serve(|report| self.stray(report));
        while let Some(rebalance) = self.client.next_rebalance() {
            self.tell_rebalance(rebalance);
        }
    }

    /// What came outside of our queue: errors of the subscription or the client, and never a record.
    fn stray(&mut self, report: &Report) {
        let (code, text) = (report.code, &report.text);
        if code == Code::TOPIC_AUTHORIZATION_FAILED {
            // of a whole topic, whatever partition it names (the client leaves that at 0); sometimes of one that it does
            // not name. Other topics go on, and the log's answers tell which one it is
            self.client.log().line(4, "CONSUME", text);
            self.deny(&report.topic, text);
        } else if let Some(tp) = self.known(report) {
            let fault = if code == Code::OK {
                // going on would leave a hole here: start again from the position
                PartitionFault::Other("a record came by the wrong queue".into())
            } else {
                classify::partition(code, text, report.offset)
            };
            self.fail(&tp, fault);
        } else if classify::denied(code) {
            let failure = Failure {
                code,
                text: text.clone(),
            };
            let error = classify::request("read", &failure, None);
            self.shared.tell(|outbox| outbox.error = Some(error));
        } else if classify::mends_itself(code) {
            tracing::debug!(%text, "the client reports");
        } else {
            self.client.log().line(4, "CONSUME", text);
        }
    }

    /// Nothing of this topic may be read any more.
    fn deny(&mut self, topic: &str, text: &str) {
        let of_it: Vec<_> = self
            .slots
            .iter()
            .map(Slot::source)
            .filter(|tp| tp.topic.as_str() == topic)
            .cloned()
            .collect();
        for tp in of_it {
            self.fail(&tp, PartitionFault::Denied(text.to_owned()));
        }
    }

    fn known(&mut self, report: &Report) -> Option<TopicPartition> {
        let tp = source(&report.topic, report.partition)?;
        self.slots.get_mut(&tp).map(|slot| slot.source().clone())
    }

    fn tell_rebalance(&mut self, rebalance: Rebalance) {
        let event = match rebalance {
            Rebalance::Assign(partitions) => {
                self.pending.push_back(Pending::Assign);
                ReaderEvent::Assigned(sources(partitions))
            }
            Rebalance::Revoke { partitions, lost } => {
                let partitions = sources(partitions);
                for tp in &partitions {
                    self.hand_over(tp, false);
                    if let Some(slot) = self.slots.get_mut(tp) {
                        slot.die();
                    }
                }
                self.pending.push_back(Pending::Revoke(partitions.clone()));
                ReaderEvent::Revoked { partitions, lost }
            }
            Rebalance::Failed(text) => {
                self.assigned.clear();
                let dead: Vec<_> = self.slots.iter().map(|s| s.source().clone()).collect();
                for tp in dead {
                    self.fail(&tp, PartitionFault::Other(text.clone()));
                }
                return;
            }
        };
        self.shared.tell(|outbox| outbox.events.push_back(event));
    }

    // --- records -----------------------------------------------------------------------------------------------

    fn take_messages(&mut self, room: usize) {
        let now = Instant::now();
        let wait = self
            .slots
            .iter()
            .filter_map(Slot::waiting_since)
            .min()
            .map_or(TICK, |since| {
                self.options
                    .linger
                    .saturating_sub(now.duration_since(since))
                    .min(TICK)
            });
        let queue = Arc::clone(&self.queue);
        let mut taken = 0;
        let mut arrived = None;
        queue.consume(wait, &mut |delivery| {
            let message = match delivery {
                Delivery::Record(message) if message.code() == Code::OK => message,
                Delivery::Record(message) => {
                    self.take_report(&message.report());
                    return Flow::On;
                }
                Delivery::Report(report) => {
                    self.take_report(&report);
                    return Flow::On;
                }
            };
            let arrived = *arrived.get_or_insert_with(Instant::now);
            let bytes = self.take_message(&message, arrived);
            if bytes > 0 {
                // a slow average is enough for an estimate
                self.message_bytes = (self.message_bytes * 15 + bytes) / 16;
            }
            taken += bytes;
            if taken >= room { Flow::Stop } else { Flow::On }
        });
        if taken >= room {
            self.hand_over_everything();
        }
    }

    /// Returns how many bytes were kept.
    fn take_message(&mut self, message: &Message<'_>, now: Instant) -> usize {
        let partition = message.partition();
        let Some(slot) = self.slots.find(message.topic_handle(), partition, || {
            source(message.topic(), partition)
        }) else {
            return 0;
        };
        let key = message.key();
        let value = message.value();
        let size = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        if slot.would_overflow(size) {
            let tp = slot.source().clone();
            self.hand_over(&tp, false);
            return self.take_message(message, now);
        }
        let headers = match message.headers() {
            Ok(headers) => headers,
            Err(_) if !slot.takes(message.offset()) => return 0,
            // without them it would be another record than was written
            Err(failure) => {
                let tp = slot.source().clone();
                let what = format!(
                    "the headers of the record at offset {} cannot be read (more than 100,000 of them, or malformed): {}",
                    message.offset(),
                    failure.text
                );
                self.fail(&tp, PartitionFault::Corrupt(what));
                return 0;
            }
        };
        let taken = slot.take_in(
            Incoming {
                offset: message.offset(),
                timestamp: timestamp(message),
                key,
                value,
                headers,
                leader_epoch: message.leader_epoch(),
            },
            now,
        );
        match taken {
            Taken::Kept { bytes } => {
                if slot.bytes() >= self.plan.batch {
                    let tp = slot.source().clone();
                    self.hand_over(&tp, false);
                }
                bytes
            }
            Taken::Repeated => {
                self.repeated += 1;
                tracing::debug!(
                    ?message,
                    total = self.repeated,
                    "the client repeated a record: dropped"
                );
                0
            }
            Taken::Unwanted => 0,
        }
    }

    fn take_report(&mut self, report: &Report) {
        let Some(tp) = self.known(report) else {
            return;
        };
        if report.code == Code::PARTITION_EOF {
            if let Some(slot) = self.slots.get_mut(&tp) {
                slot.reached_end(report.offset);
            }
            self.hand_over(&tp, true);
        } else if classify::mends_itself(report.code) {
            tracing::debug!(partition = %tp, text = report.text, "the client reports");
        } else {
            let fault = classify::partition(report.code, &report.text, report.offset);
            self.fail(&tp, fault);
        }
    }

    /// The partition delivers nothing more until it is assigned again.
    fn fail(&mut self, tp: &TopicPartition, fault: PartitionFault) {
        self.hand_over(tp, false);
        if let Some(slot) = self.slots.get_mut(tp) {
            if slot.is_dead() {
                return;
            }
            slot.die();
            let partition = tp.clone();
            self.shared.tell(|outbox| {
                outbox
                    .events
                    .push_back(ReaderEvent::Fault { partition, fault });
            });
        }
    }

    // --- handing over ------------------------------------------------------------------------------------------

    fn hand_over(&mut self, tp: &TopicPartition, at_end: bool) {
        let fetched = self.slots.get_mut(tp).and_then(|slot| slot.take(at_end));
        if let Some(fetched) = fetched {
            let bytes = fetched.columns.bytes();
            self.shared.tell(|outbox| {
                outbox.bytes += bytes;
                outbox.events.push_back(ReaderEvent::Fetched(fetched));
            });
        }
    }

    fn hand_over_what_is_due(&mut self) {
        let (now, linger) = (Instant::now(), self.options.linger);
        self.hand_over_if(|slot| slot.is_due(now, linger));
    }

    fn hand_over_everything(&mut self) {
        self.hand_over_if(|slot| slot.waiting_since().is_some());
    }

    fn hand_over_if(&mut self, due: impl Fn(&Slot) -> bool) {
        let batches: Vec<_> = self
            .slots
            .iter_mut()
            .filter(|slot| due(slot))
            .filter_map(|slot| slot.take(false))
            .collect();
        if batches.is_empty() {
            return;
        }
        self.shared.tell(|outbox| {
            for fetched in batches {
                outbox.bytes += fetched.columns.bytes();
                outbox.events.push_back(ReaderEvent::Fetched(fetched));
            }
        });
    }

    // --- commands ----------------------------------------------------------------------------------------------

    fn obey(&mut self, request: Request) -> Result<(), LogError> {
        match request {
            Request::Assign {
                partitions,
                answers: true,
            } => {
                if matches!(self.pending.front(), Some(Pending::Assign)) {
                    self.pending.pop_front();
                }
                let done = self.assign(&partitions);
                if done.is_err() {
                    // the group waits for an answer all the same; the caller may assign once more
                    self.client
                        .incremental_assign(&PartitionList::with_capacity(0))
                        .ok();
                }
                self.obey_deferred();
                done
            }
            Request::Unassign {
                mut partitions,
                answers: true,
            } => {
                if let Some(Pending::Revoke(_)) = self.pending.front()
                    && let Some(Pending::Revoke(asked)) = self.pending.pop_front()
                {
                    partitions.extend(asked);
                }
                self.drop_deferred(&partitions);
                let done = self.unassign(&partitions);
                self.obey_deferred();
                done
            }
            request @ (Request::Assign { .. } | Request::Unassign { .. }) => {
                // bring up what the group wants by now, so that this is not taken for the answer
                self.serve_group();
                if self.pending.is_empty() {
                    return self.change(request);
                }
                self.silence(&request);
                self.deferred.push_back(request);
                Ok(())
            }
            Request::Subscribe(topics) => self.subscribe(&topics),
            Request::Pause(partitions) => {
                let (later, now) = self.deferred_of(partitions);
                if !later.is_empty() {
                    self.deferred.push_back(Request::Pause(later));
                }
                self.pause(&now)
            }
            Request::Resume(partitions) => {
                let (later, now) = self.deferred_of(partitions);
                if !later.is_empty() {
                    self.deferred.push_back(Request::Resume(later));
                }
                self.resume(&now)
            }
            Request::Mirror(positions) => {
                self.mirror(&positions);
                Ok(())
            }
        }
    }

    /// Those whose assignment still waits, and the others.
    fn deferred_of(
        &self,
        partitions: Vec<TopicPartition>,
    ) -> (Vec<TopicPartition>, Vec<TopicPartition>) {
        let waits = |tp: &TopicPartition| {
            self.deferred.iter().any(|request| match request {
                Request::Assign { partitions, .. } => partitions.iter().any(|(p, _)| p == tp),
                _ => false,
            })
        };
        partitions.into_iter().partition(waits)
    }

    /// What was asked for before the caller knew that the group takes the partition back comes too late.
    fn drop_deferred(&mut self, taken: &[TopicPartition]) {
        for request in &mut self.deferred {
            match request {
                Request::Assign { partitions, .. } => {
                    partitions.retain(|(tp, _)| !taken.contains(tp));
                }
                Request::Pause(partitions) | Request::Resume(partitions) => {
                    partitions.retain(|tp| !taken.contains(tp));
                }
                _ => {}
            }
        }
    }

    fn obey_deferred(&mut self) {
        while self.pending.is_empty()
            && let Some(request) = self.deferred.pop_front()
        {
            let partitions: Vec<_> = match &request {
                Request::Assign { partitions, .. } => {
                    partitions.iter().map(|(tp, _)| tp.clone()).collect()
                }
                _ => Vec::new(),
            };
            if let Err(error) = self.change(request) {
                if partitions.is_empty() {
                    // nobody waits for it any more
                    self.client.log().line(4, "ASSIGN", &error.to_string());
                }
                for partition in partitions {
                    let fault = PartitionFault::Other(error.to_string());
                    self.shared.tell(|outbox| {
                        outbox
                            .events
                            .push_back(ReaderEvent::Fault { partition, fault });
                    });
                }
            }
        }
    }

    fn change(&mut self, request: Request) -> Result<(), LogError> {
        match request {
            Request::Assign { partitions, .. } => self.assign(&partitions),
            Request::Unassign { partitions, .. } => self.unassign(&partitions),
            // in their turn, whatever else is asked of the same partitions behind them
            Request::Pause(partitions) => self.pause(&partitions),
            Request::Resume(partitions) => self.resume(&partitions),
            other => self.obey(other),
        }
    }

    /// What a deferred request moves or takes away delivers nothing until then.
    fn silence(&mut self, request: &Request) {
        let partitions: Vec<&TopicPartition> = match request {
            Request::Assign { partitions, .. } => partitions.iter().map(|(tp, _)| tp).collect(),
            Request::Unassign { partitions, .. } => partitions.iter().collect(),
            _ => Vec::new(),
        };
        let partitions: Vec<_> = partitions.into_iter().cloned().collect();
        self.forget(&partitions);
    }

    /// Nothing of these is handed out any more.
    fn forget(&mut self, partitions: &[TopicPartition]) {
        for tp in partitions {
            self.slots.remove(tp);
        }
        self.shared.withdraw(partitions);
    }

    fn error(&self, what: &str, failure: &Failure) -> LogError {
        classify::request(what, failure, self.client.log().last_error())
    }

    fn subscribe(&self, topics: &[TopicName]) -> Result<(), LogError> {
        if self.options.membership == Membership::Alone {
            return Err(LogError::Invalid {
                what: "subscribe".into(),
                detail: "a reader alone is no member of a group".into(),
            });
        }
        let names: BTreeSet<&str> = topics.iter().map(TopicName::as_str).collect();
        self.client
            .subscribe(names)
            .map_err(|e| self.error("subscribe", &e))
    }

    fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), LogError> {
        // later ones win where a partition is named twice
        let starts: BTreeMap<_, _> = partitions.iter().cloned().collect();
        let again: Vec<_> = starts
            .keys()
            .filter(|tp| self.assigned.contains(tp))
            .cloned()
            .collect();
        if !again.is_empty() {
            self.unassign(&again)?;
        }
        if let Err(failure) = self.give(&starts) {
            let error = self.error("assign", &failure);
            // some may have got as far as the client's assignment
            for tp in starts.keys() {
                if let Ok(list) = list_of([tp]) {
                    self.client.incremental_unassign(&list).ok();
                }
            }
            // the pause for the check outlives the assignment: whoever assigns them next has to end it
            self.paused.extend(starts.into_keys());
            return Err(error);
        }
        for (tp, start) in starts {
            self.assigned.insert(tp.clone());
            self.slots.insert(Slot::new(tp, start.offset));
        }
        Ok(())
    }

    /// Gives the client partitions that it does not have. The order matters:
    /// - A partition's queue is forwarded before, or the first messages go to the group's queue; and again after, since
    ///   the client undoes it when an earlier assignment of the partition has stopped, which may be only now.
    /// - A start with an epoch is checked against the log by a seek (KIP-320): the assignment alone is checked only
    ///   where the partition is news to the client. Paused meanwhile, so that nothing is fetched unchecked.
    fn give(&mut self, starts: &BTreeMap<TopicPartition, StartAt>) -> Result<(), Failure> {
        let mut all = PartitionList::with_capacity(starts.len());
        let mut checked = BTreeMap::new();
        let mut still = Vec::new();
        for (tp, start) in starts {
            let (topic, partition) = (tp.topic.as_str(), tp.partition.get());
            all.add_at(topic, partition, start.offset.get(), start.leader_epoch)?;
            self.queue.forward_partition(topic, partition)?;
            let was_paused = self.paused.remove(tp);
            if start.leader_epoch.is_some() && start.offset > Offset::ZERO {
                checked.insert(tp, *start);
                still.push(tp);
            } else if was_paused {
                self.client
                    .resume(&PartitionList::of([(topic, partition)])?)?;
            }
        }
        let still = list_of(still)?;
        if !checked.is_empty() {
            self.client.pause(&still)?;
        }
        self.client.incremental_assign(&all)?;
        for tp in starts.keys() {
            self.queue
                .forward_partition(tp.topic.as_str(), tp.partition.get())?;
        }
        if !checked.is_empty() {
            self.check_epochs(checked)?;
            self.client.resume(&still)?;
        }
        Ok(())
    }

    fn check_epochs(&self, mut starts: BTreeMap<&TopicPartition, StartAt>) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let mut list = PartitionList::with_capacity(starts.len());
            for (tp, start) in &starts {
                list.add_at(
                    tp.topic.as_str(),
                    tp.partition.get(),
                    start.offset.get(),
                    start.leader_epoch,
                )?;
            }
            let refused = self.client.seek(&list, CHECK_LIMIT)?;
            let Some((_, _, failure)) = refused.first() else {
                return Ok(());
            };
            if began.elapsed() > CHECK_LIMIT {
                return Err(failure.clone());
            }
            // not started yet: an earlier assignment of it is about to stop
            starts.retain(|tp, _| {
                refused.iter().any(|(topic, partition, _)| {
                    tp.topic.as_str() == topic && tp.partition.get() == *partition
                })
            });
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn unassign(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.forget(partitions);
        let mut taken = BTreeSet::new();
        for tp in partitions {
            if self.assigned.remove(tp) {
                taken.insert(tp);
            }
        }
        let all =
            list_of(taken.iter().copied()).and_then(|list| self.client.incremental_unassign(&list));
        if all.is_ok() {
            return Ok(());
        }
        // one that the client does not have makes it refuse all; the empty list at the end answers the group
        for tp in taken {
            if let Ok(list) = list_of([tp]) {
                self.client.incremental_unassign(&list).ok();
            }
        }
        self.client
            .incremental_unassign(&PartitionList::with_capacity(0))
            .map_err(|e| self.error("unassign", &e))
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let known: Vec<_> = partitions
            .iter()
            .filter(|tp| self.assigned.contains(tp))
            .cloned()
            .collect();
        list_of(&known)
            .and_then(|list| self.client.pause(&list))
            .map_err(|e| self.error("pause", &e))?;
        self.paused.extend(known);
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let known: Vec<_> = partitions
            .iter()
            .filter(|tp| self.paused.contains(tp))
            .cloned()
            .collect();
        list_of(&known)
            .and_then(|list| self.client.resume(&list))
            .map_err(|e| self.error("resume", &e))?;
        for tp in &known {
            self.paused.remove(tp);
        }
        Ok(())
    }

    /// Best effort: what the group does not take is only logged.
    fn mirror(&self, positions: &[(TopicPartition, Offset)]) {
        let mut list = PartitionList::with_capacity(positions.len());
        let sent = positions
            .iter()
            .try_for_each(|(tp, offset)| {
                list.add_at(tp.topic.as_str(), tp.partition.get(), offset.get(), None)
            })
            .and_then(|()| self.client.commit_async(&list));
        if let Err(failure) = sent {
            tracing::debug!(
                text = failure.text,
                "offsets were not mirrored to the group"
            );
        }
    }

    // --- the end -----------------------------------------------------------------------------------------------

    fn end(mut self, why: String) {
        // the client would wait for these for ever
        while let Some(pending) = self.pending.pop_front() {
            let answered = match pending {
                Pending::Assign => self.assign(&[]),
                Pending::Revoke(partitions) => self.unassign(&partitions),
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "a rebalance was not answered while closing");
            }
        }
        self.shared.attach(None);
        if !self.client.close(LEAVE_LIMIT) {
            tracing::warn!(
                "the client did not leave the group in time; the group will time it out"
            );
        }
        self.shared.held.store(0, Ordering::Relaxed);
        self.shared.tell(|outbox| outbox.ended = Some(why));
    }
}

fn list_of<'a>(
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
) -> Result<PartitionList, Failure> {
    PartitionList::of(
        partitions
            .into_iter()
            .map(|tp| (tp.topic.as_str(), tp.partition.get())),
    )
}

fn source(topic: &str, partition: i32) -> Option<TopicPartition> {
    Some(TopicPartition::new(
        TopicName::new(topic).ok()?,
        Partition::new(partition).ok()?,
    ))
}

fn sources(partitions: Vec<(String, i32)>) -> Vec<TopicPartition> {
    let mut sources: Vec<_> = partitions
        .iter()
        .filter_map(|(topic, partition)| source(topic, *partition))
        .collect();
    sources.sort();
    sources
}

/// A record without a timestamp says -1, whatever type it names.
fn timestamp(message: &Message<'_>) -> (i64, TimestampType) {
    match message.timestamp() {
        (at, TimestampKind::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME) => (at, TimestampType::LogAppend),
        (at, TimestampKind::RD_KAFKA_TIMESTAMP_CREATE_TIME) if at != -1 => {
            (at, TimestampType::Create)
        }
        _ => (-1, TimestampType::None),
    }
}

#[cfg(test)]
mod tests;

// one batch must take the largest record Kafka allows next to a full one
const _: () = assert!(EventColumnsBuilder::BATCH_BYTES_MAX <= 1 << 30);
