//! What the reader tells, and what the group asks.

use std::collections::BTreeSet;
use std::time::Duration;

use everlog_common::{Millis, Partition, TimestampType, TopicName, TopicPartition};
use everlog_kafka::{Fetched, PartitionFault, ReaderEvent};

use super::topic::{Part, PartState};
use super::{ASSIGN, MIRROR, Pipeline, Question, REVOKE, THROWN_OUT};
use crate::error::{Failure, FailureKind, one_line};
use crate::status::Waiting;

/// So many faults of one kind in a row are believed.
const FAULTS_MAX: u32 = 5;

impl Pipeline {
    pub(super) async fn on_event(&mut self, event: ReaderEvent) {
        match event {
            ReaderEvent::Fetched(fetched) => self.on_fetched(fetched).await,
            ReaderEvent::Assigned(partitions) => self.on_assigned(partitions).await,
            ReaderEvent::Revoked { partitions, lost } => self.on_revoked(partitions, lost).await,
            ReaderEvent::Fault { partition, fault } => self.on_fault(&partition, fault).await,
        }
    }

    async fn on_fetched(&mut self, fetched: Fetched) {
        let now = self.now();
        let Some(topic) = self.topics.get_mut(&fetched.source.topic) else {
            return;
        };
        // anything else was taken away, fenced or stopped meanwhile: it is not ours to keep
        let Some(part) = topic.parts.get_mut(&fetched.source.partition) else {
            return;
        };
        let PartState::Reading(buffer) = &mut part.state else {
            return;
        };
        if !fetched.columns.is_empty() {
            let first = fetched.columns.row(0);
            if first.timestamp_type != TimestampType::None {
                let (at, range) = (Millis(first.timestamp_ms), fetched.range);
                part.ends.read(at, range.start(), range.end());
            }
        }
        let position = buffer.position();
        let rows = buffer.pending_rows();
        match buffer.accept(fetched.range, fetched.columns) {
            Ok(bytes) => {
                if buffer.position() > position {
                    let rows = buffer.pending_rows() - rows;
                    topic.grew(now, bytes, rows);
                }
            }
            Err(hole) => {
                let fault = PartitionFault::Other(hole.to_string());
                self.on_fault(&fetched.source, fault).await;
            }
        }
    }

    /// The reader gave up on a partition. What it brought before is right and is committed first: dropped, it could be
    /// gone from the log by the time that it is read again.
    pub(super) async fn on_fault(&mut self, tp: &TopicPartition, fault: PartitionFault) {
        let now = self.now();
        let ids = std::sync::Arc::clone(&self.components.ids);
        self.status.count_error(Some(&tp.topic), "reader");
        let Some(topic) = self.topics.get_mut(&tp.topic) else {
            return;
        };
        let Some(part) = topic.parts.get_mut(&tp.partition) else {
            return;
        };
        let wait = part.faults.next(ids.as_ref());
        let tries = part.faults.failures();
        tracing::warn!(topic = %tp.topic, partition = tp.partition.get(), %fault, tries, "reading stopped");
        let kind = match &fault {
            PartitionFault::Corrupt(_) => Some(FailureKind::Corrupt),
            PartitionFault::Denied(_) => Some(FailureKind::Denied),
            PartitionFault::Truncated(_) => Some(FailureKind::Truncated),
            PartitionFault::OutOfRange { .. }
            | PartitionFault::Gone(_)
            | PartitionFault::Other(_) => None,
        };
        let is_believed = match kind {
            Some(kind) => part.is_believed(kind, FAULTS_MAX),
            None => {
                part.other_fault();
                false
            }
        };
        if let Some(kind) = kind.filter(|_| is_believed) {
            self.stop_partition(tp, kind, fault.to_string()).await;
            return;
        }
        part.retry_at = now + wait;
        match std::mem::take(&mut part.state) {
            PartState::Reading(buffer) | PartState::Draining(buffer) if !buffer.is_settled() => {
                part.state = PartState::Draining(buffer);
                topic.flush = true;
            }
            stopped @ PartState::Stopped(_) => part.state = stopped,
            _ => {}
        }
        // a hole in what the reader says leaves it reading
        self.pause(&tp.topic, &[tp.partition]).await;
    }

    /// Stops one partition for good; the others go on.
    pub(super) async fn stop_partition(
        &mut self,
        tp: &TopicPartition,
        kind: FailureKind,
        message: String,
    ) {
        let now = self.now();
        let failure = Failure {
            topic: tp.topic.clone(),
            partition: Some(tp.partition),
            kind,
            message,
        };
        tracing::error!(
            topic = %tp.topic, partition = tp.partition.get(), kind = kind.as_str(), reason = %failure.message,
            "partition stopped"
        );
        self.status.stopped(&failure);
        let Some(topic) = self.topics.get_mut(&tp.topic) else {
            return;
        };
        if let Some(part) = topic.parts.get_mut(&tp.partition) {
            let was_reading = part.buffer().is_some();
            part.state = PartState::Stopped(failure);
            topic.recount(now);
            if was_reading {
                self.pause(&tp.topic, &[tp.partition]).await;
            }
        }
    }

    /// The group gives partitions: each is recovered from the ledger as it is now, then read.
    async fn on_assigned(&mut self, partitions: Vec<TopicPartition>) {
        let now = self.now();
        tracing::info!(partitions = partitions.len(), "assigned by the group");
        self.was_assigned = true;
        self.status.no_trouble(Waiting::Group);
        // an empty gift is answered at once
        let wait = if partitions.is_empty() {
            Duration::ZERO
        } else {
            ASSIGN
        };
        self.questions.push_back(Question::Assigned {
            deadline: now + wait,
        });
        for tp in partitions {
            if self.settings.wants(&tp.topic) {
                self.want(&tp, now);
            } else {
                tracing::warn!(topic = %tp.topic, partition = tp.partition.get(), "the group gave what is not configured: it is not read");
            }
        }
        self.answer_the_group(now).await;
    }

    /// A partition is ours from now on; it will be recovered.
    pub(super) fn want(&mut self, tp: &TopicPartition, now: Duration) {
        let interval = self.settings.commit_interval;
        let jitter = self.jitter(interval);
        let topic = self.topics.entry(tp.topic.clone()).or_insert_with(|| {
            tracing::info!(topic = %tp.topic, "topic found");
            super::Topic {
                next_commit: now + jitter,
                ..super::Topic::default()
            }
        });
        topic
            .parts
            .entry(tp.partition)
            .or_insert_with(|| Part::wanted(now));
    }

    /// Somewhere within one interval, so that many tables do not all commit at once.
    fn jitter(&self, interval: Duration) -> Duration {
        let ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(ms / 10 + self.components.ids.below(ms - ms / 10))
    }

    /// The group takes partitions back. What was read of them is committed first, unless they belong to somebody else
    /// already: then it is void, and reading it again is their business.
    async fn on_revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) {
        let now = self.now();
        tracing::info!(
            partitions = partitions.len(),
            lost,
            "taken back by the group"
        );
        if lost {
            // thrown out: nothing is read until it is a member again and the group says what is its
            self.status.wait_for(Waiting::Group, THROWN_OUT);
        }
        let mut waiting = BTreeSet::new();
        for tp in &partitions {
            let Some(topic) = self.topics.get_mut(&tp.topic) else {
                continue;
            };
            let Some(part) = topic.parts.get_mut(&tp.partition) else {
                continue;
            };
            // not to be recovered any more either
            part.retry_at = Duration::MAX;
            match std::mem::take(&mut part.state) {
                PartState::Reading(buffer) | PartState::Draining(buffer)
                    if !lost && !buffer.is_settled() =>
                {
                    part.state = PartState::Draining(buffer);
                }
                PartState::Stopped(failure) => {
                    part.state = PartState::Stopped(failure);
                    continue;
                }
                _ => {
                    topic.recount(now);
                    continue;
                }
            }
            topic.flush |= topic.is_dirty();
            waiting.insert(tp.clone());
        }
        if !waiting.is_empty() {
            // nothing more of these: the last commit has an end
            let names: Vec<TopicPartition> = waiting.iter().cloned().collect();
            if let Err(error) = self.reader.pause(&names).await {
                self.on_reader_error(error);
            }
        }
        self.questions.push_back(Question::Revoked {
            partitions,
            waiting,
            deadline: now + REVOKE,
        });
        self.answer_the_group(now).await;
    }

    /// Answers the group, in the order of its questions: gives back what is committed or has waited for long enough,
    /// and does not let it wait for a recovery that takes long (what is recovered later is assigned then).
    pub(super) async fn answer_the_group(&mut self, now: Duration) {
        while let Some(question) = self.questions.front_mut() {
            match question {
                Question::Assigned { deadline } => {
                    if now < *deadline {
                        return;
                    }
                    self.assign(&[]).await;
                }
                Question::Revoked {
                    waiting, deadline, ..
                } => {
                    waiting.retain(|tp| {
                        self.topics
                            .get(&tp.topic)
                            .and_then(|t| t.parts.get(&tp.partition))
                            .and_then(Part::buffer)
                            .is_some_and(|b| !b.is_settled())
                    });
                    if !waiting.is_empty() && now < *deadline {
                        return;
                    }
                    self.give_back(now).await;
                }
            }
        }
    }

    /// Answers the revocation at the head of the questions.
    async fn give_back(&mut self, now: Duration) {
        let Some(Question::Revoked { partitions, .. }) = self.questions.pop_front() else {
            return;
        };
        for tp in &partitions {
            self.drop_partition(tp, now);
        }
        if let Err(error) = self.reader.unassign(&partitions).await {
            self.on_reader_error(error);
        }
    }

    /// A partition is not ours any more.
    pub(super) fn drop_partition(&mut self, tp: &TopicPartition, now: Duration) {
        self.status.forget(tp);
        self.mirror.remove(tp);
        let Some(topic) = self.topics.get_mut(&tp.topic) else {
            return;
        };
        topic.parts.remove(&tp.partition);
        topic.recount(now);
        self.forget_if_nothing_is_ours(&tp.topic);
    }

    /// Forgets a topic of which no partition is ours any more, once nothing runs for it and nobody waits for its ledger.
    /// It would be held for ever: nobody prepares or commits it again.
    pub(super) fn forget_if_nothing_is_ours(&mut self, name: &TopicName) {
        let is_needed = self
            .caught_up
            .as_ref()
            .is_some_and(|c| c.topics().any(|t| t == name));
        let is_over = self
            .topics
            .get(name)
            .is_some_and(|t| t.parts.is_empty() && t.job.is_none() && t.failure.is_none());
        if is_over && !is_needed {
            self.topics.remove(name);
            self.status.forget_topic(name);
        }
    }

    /// Hands starts to the reader. A reader that fails brings the partitions back to recovery.
    pub(super) async fn assign(&mut self, starts: &[(TopicPartition, everlog_kafka::StartAt)]) {
        if matches!(self.questions.front(), Some(Question::Assigned { .. })) {
            self.questions.pop_front();
        }
        if let Err(error) = self.reader.assign(starts).await {
            let now = self.now();
            for (tp, _) in starts {
                if let Some(topic) = self.topics.get_mut(&tp.topic)
                    && let Some(part) = topic.parts.get_mut(&tp.partition)
                {
                    part.retry_at = now + part.retries.next(self.components.ids.as_ref());
                    part.state = PartState::Wanted;
                    topic.recount(now);
                }
            }
            self.on_reader_error(error);
            return;
        }
        let is_all = self.is_full && !self.is_alone();
        let names: Vec<TopicPartition> = starts
            .iter()
            .map(|(tp, _)| tp)
            .filter(|tp| is_all || self.topics.get(&tp.topic).is_some_and(|t| t.is_paused))
            .cloned()
            .collect();
        if !names.is_empty()
            && let Err(error) = self.reader.pause(&names).await
        {
            self.on_reader_error(error);
        }
    }

    /// What somebody else archived, or what cannot be trusted: it is read again from the ledger.
    pub(super) async fn void(
        &mut self,
        name: &TopicName,
        partitions: &[Partition],
        wait: Duration,
    ) {
        let now = self.now();
        if let Some(topic) = self.topics.get_mut(name) {
            for p in partitions {
                if let Some(part) = topic.parts.get_mut(p)
                    && !part.is_stopped()
                {
                    part.state = PartState::Wanted;
                    // one that is being given back stays for ever
                    if part.retry_at != Duration::MAX {
                        part.retry_at = now + wait;
                    }
                }
            }
            topic.recount(now);
        }
        self.pause(name, partitions).await;
    }

    /// Mirrors what is archived to the group, for lag tools. Nothing ever reads it back.
    pub(super) async fn mirror_to_group(&mut self, now: Duration) {
        if self.mirror.is_empty() || now < self.looks.mirror {
            return;
        }
        self.looks.mirror = now + MIRROR;
        let positions: Vec<_> = std::mem::take(&mut self.mirror).into_iter().collect();
        if let Err(error) = self.reader.mirror(&positions).await {
            tracing::debug!(reason = %one_line(&error), "mirroring to the group failed");
        }
    }
}
