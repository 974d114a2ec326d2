//! What the loop does with what its tasks bring back.

use std::collections::BTreeSet;
use std::time::Duration;

use everlog_common::{
    Gap, Identity, LogBounds, Offset, OffsetRange, Partition, Segment, TopicName, TopicPartition,
};
use everlog_kafka::{LogError, StartAt};
use everlog_table::archive::ArchiveErrorKind;

use super::commit::{End, Landed, Report};
use super::jobs::{Discovered, Done, Observed, Targets};
use super::prepare::{Failure as PrepareFailure, Prepared};
use super::topic::{Part, PartState};
use super::{DENIALS_MAX, FENCES_MAX, MISSING, NOTHING_ASSIGNED, OBSERVATION, Pipeline};
use crate::accumulator::Buffer;
use crate::error::{Failure, FailureKind, one_line, reason_of_log};
use crate::headroom::{HeadroomFacts, headroom, start_speed};
use crate::metrics::{PartitionLabels, ReasonLabels};
use crate::recovery::{Decision, TopicRefusal};
use crate::settings::TopicPattern;
use crate::status::Waiting;

/// How often a topic may answer with an earlier incarnation's id before that is believed.
const STALE_MAX: u32 = 8;

/// After so many looks in a row without an answer, what was seen before is not shown any longer.
const MISSES_MAX: u32 = 3;

impl Pipeline {
    pub(super) async fn on_done(&mut self, done: Done) {
        match done {
            Done::Prepared {
                topic,
                asked,
                answer,
            } => {
                if answer.has_accepted {
                    self.accept = None;
                }
                if self.answered(&topic, asked).is_some() {
                    self.on_prepared(&topic, answer.result).await;
                }
                self.forget_if_nothing_is_ours(&topic);
                self.check_ready();
            }
            Done::Committed {
                topic,
                asked,
                report,
            } => {
                fail::fail_point!("archiver::after_commit");
                self.on_committed(&topic, asked, *report).await;
                self.forget_if_nothing_is_ours(&topic);
            }
            Done::Discovered(result) => self.on_discovered(result).await,
            Done::Targets(result) => self.on_targets(result),
            Done::Observed(observed) => self.on_observed(observed),
            Done::Maintained => {
                let interval = self.settings.maintenance.as_ref().map(|m| m.interval);
                self.looks.maintenance = interval.map(|i| self.now() + i);
            }
        }
    }

    // ---- recovery

    async fn on_prepared(
        &mut self,
        name: &TopicName,
        result: Result<Box<Prepared>, PrepareFailure>,
    ) {
        match result {
            Ok(prepared) => self.on_facts(name, *prepared).await,
            Err(failure) => self.on_prepare_failure(name, failure).await,
        }
    }

    async fn on_prepare_failure(&mut self, name: &TopicName, failure: PrepareFailure) {
        let now = self.now();
        let why = one_line(&failure);
        let was_open = self.opened.contains(name);
        // what may pass, and how often in a row it is waited out
        let (stop, patience) = match &failure {
            PrepareFailure::Log(LogError::Denied { .. }) => {
                (Some(FailureKind::Denied), DENIALS_MAX)
            }
            // what was allowed before may be allowed again; what never was is a setting to be told of at once
            PrepareFailure::Archive(error)
                if was_open && error.kind() == ArchiveErrorKind::Denied =>
            {
                (Some(FailureKind::Denied), DENIALS_MAX)
            }
            PrepareFailure::Log(LogError::Invalid { .. }) => (Some(FailureKind::Configuration), 1),
            PrepareFailure::Refused(TopicRefusal::EndedGeneration { .. }) => {
                (Some(FailureKind::Other), STALE_MAX)
            }
            PrepareFailure::Refused(_) => (Some(FailureKind::Configuration), 1),
            PrepareFailure::Archive(error) => (FailureKind::of_archive(error), 1),
            PrepareFailure::Log(_) | PrepareFailure::Gone | PrepareFailure::Unsettled => (None, 1),
        };
        let is_believed = self.topics.get_mut(name).is_none_or(|topic| match stop {
            Some(kind) => topic.refusals.count(kind) >= patience,
            None => {
                topic.refusals.end();
                false
            }
        });
        if let Some(kind) = stop.filter(|_| is_believed) {
            self.fail_topic(name, kind, why).await;
            return;
        }
        let kind = match &failure {
            PrepareFailure::Archive(_) => "archive",
            _ => "log",
        };
        self.status.hold(name, kind, &why);
        if let Some(topic) = self.topics.get_mut(name) {
            topic.retry_at = now + topic.backoff.next(self.components.ids.as_ref());
        }
        tracing::warn!(topic = %name, reason = %why, "not recovered yet, trying again");
    }

    async fn on_facts(&mut self, name: &TopicName, prepared: Prepared) {
        self.status.release(name);
        self.opened.insert(name.clone());
        let is_other = self.topics.get(name).is_some_and(|t| {
            t.identity
                .as_ref()
                .is_some_and(|known| !known.agrees(&prepared.identity))
        });
        if is_other {
            self.topic_is_another(name, "seen while recovering").await;
            // the facts are of the new topic: they hold for every partition that was asked for
        }
        let Some(topic) = self.topics.get_mut(name) else {
            return;
        };
        topic.backoff.reset();
        topic.refusals.end();
        if let (Some(caught_up), Some(ends)) = (&mut self.caught_up, &prepared.ends) {
            caught_up.renew(name, &prepared.identity, ends);
        }
        if prepared.era.is_new && !prepared.era.closing.is_empty() {
            tracing::warn!(
                topic = %name, generation = prepared.era.generation.0, identity = %prepared.identity,
                "the topic was created anew: a new generation begins"
            );
        }
        topic.identity = Some(prepared.identity);
        topic.generation = prepared.era.generation;
        topic.closing = prepared.era.closing;
        topic.ledger = prepared.ledger;
        topic.snapshot_time = prepared.snapshot_time;
        topic.table = Some((prepared.archive, prepared.table));
        let mut starts = Vec::new();
        for (partition, (decision, bounds)) in prepared.decisions {
            let tp = TopicPartition::new(name.clone(), partition);
            self.on_decision(&tp, decision, bounds, &mut starts).await;
        }
        if !starts.is_empty() {
            self.assign(&starts).await;
        }
    }

    async fn on_decision(
        &mut self,
        tp: &TopicPartition,
        decision: Decision,
        bounds: Option<LogBounds>,
        starts: &mut Vec<(TopicPartition, StartAt)>,
    ) {
        let now = self.now();
        let Some(topic) = self.topics.get_mut(&tp.topic) else {
            return;
        };
        let (generation, snapshot_time) = (topic.generation, topic.snapshot_time);
        // taken away meanwhile, or decided otherwise
        let Some(part) = topic.parts.get_mut(&tp.partition).filter(|p| p.is_wanted()) else {
            return;
        };
        match decision {
            Decision::Start(start) => {
                if let Some(bounds) = bounds {
                    let archived_at = snapshot_time.filter(|_| start.base.is_some());
                    part.ends.begin(archived_at, bounds.end);
                }
                let buffer = Buffer::new(&start);
                let has_gap = buffer.has_gap();
                part.state = PartState::Reading(buffer);
                if has_gap {
                    topic.grew(now, 0, 0);
                }
                let next = start.base.map_or(start.offset, |b| b.next);
                self.status.moved(tp, generation, next);
                tracing::info!(
                    topic = %tp.topic, partition = tp.partition.get(), generation = generation.0,
                    offset = start.offset.get(), is_new = start.base.is_none(), has_gap,
                    "reading"
                );
                starts.push((
                    tp.clone(),
                    StartAt {
                        offset: start.offset,
                        leader_epoch: start.leader_epoch,
                    },
                ));
            }
            Decision::StopGap(missing) => {
                let what = format!(
                    "offsets {missing} were deleted by Kafka before they were archived ({} offsets); set \
                     archive.on_gap = \"record\" to note the gap and go on",
                    missing.len()
                );
                self.stop_partition(tp, FailureKind::Gap, what).await;
            }
            Decision::Truncated(truncation) => {
                self.stop_partition(tp, FailureKind::Truncated, truncation.to_string())
                    .await;
            }
            Decision::Unsettled => {
                part.retry_at = now + part.retries.next(self.components.ids.as_ref());
            }
            Decision::Absent => {
                part.retry_at = now + part.retries.next(self.components.ids.as_ref());
                self.status.unanswered(tp);
            }
        }
    }

    /// Everything of a topic was read from another incarnation: nothing of it is kept.
    async fn topic_is_another(&mut self, name: &TopicName, how: &'static str) {
        let now = self.now();
        let Some(topic) = self.topics.get_mut(name) else {
            return;
        };
        tracing::warn!(topic = %name, rows_dropped = topic.pending_rows, how, "the topic is another one now");
        let reading = topic.make_void(now);
        topic.identity = None;
        topic.retry_at = now;
        let all: Vec<Partition> = topic.parts.keys().copied().collect();
        for partition in all {
            self.status
                .forget(&TopicPartition::new(name.clone(), partition));
        }
        self.pause(name, &reading).await;
    }

    // ---- commits

    async fn on_committed(&mut self, name: &TopicName, asked: u64, report: Report) {
        let is_current = self.answered(name, asked).is_some();
        if let Some(topic) = self.topics.get_mut(name) {
            topic.flight_bytes = 0;
        }
        if let Some(landed) = report.landed {
            self.on_landed(name, landed, is_current).await;
        }
        if !is_current {
            return;
        }
        for (partition, truncation) in report.truncated {
            let tp = TopicPartition::new(name.clone(), partition);
            self.stop_partition(&tp, FailureKind::Truncated, truncation.to_string())
                .await;
        }
        for (partition, why) in report.fenced {
            self.on_fenced(name, partition, &why).await;
        }
        for partition in report.unanswered {
            self.on_unanswered(name, partition).await;
        }
        for partition in report.unproven {
            self.on_unproven(name, partition).await;
        }
        match report.end {
            End::Done => {}
            End::AnotherTopic => self.topic_is_another(name, "seen before a commit").await,
            End::Gone => self.topic_is_another(name, "it is gone").await,
            End::Failed(kind, why) => self.fail_topic(name, kind, why).await,
        }
    }

    async fn on_landed(&mut self, name: &TopicName, landed: Landed, is_current: bool) {
        let now = self.now();
        let wall = self.components.clock.now();
        self.summary.commits += 1;
        self.summary.rows += landed.rows;
        let Some(topic) = self.topics.get_mut(name) else {
            return;
        };
        topic.ledger = landed.ledger;
        topic.snapshot_time = Some(wall);
        if !is_current {
            return;
        }
        let generation = topic.generation;
        let ledger = &topic.ledger;
        topic
            .closing
            .retain(|c| !ledger.is_closed(c.generation, c.partition));
        let mut moved: Vec<(Partition, Offset)> = Vec::new();
        let mut void: Vec<Partition> = Vec::new();
        for (partition, part) in &mut topic.parts {
            let entry = topic.ledger.entry(generation, *partition).copied();
            let is_ours = landed.partitions.contains(partition);
            let Some(buffer) = part.buffer_mut() else {
                continue;
            };
            let is_right = match entry {
                Some(entry) if is_ours && buffer.is_in_flight() => {
                    moved.push((*partition, entry.next));
                    buffer.committed(entry)
                }
                // not part of it: whoever moved it on has fenced us already
                _ => buffer.is_in_flight() || buffer.base() == entry,
            };
            if !is_right {
                void.push(*partition);
                continue;
            }
            if is_ours {
                (part.fences, part.fenced_since) = (0, None);
                let is_drained = matches!(&part.state, PartState::Draining(b) if b.is_settled());
                if is_drained {
                    part.state = PartState::Wanted;
                } else if part.is_reading() {
                    part.is_well();
                }
            }
        }
        topic.recount(now);
        for (partition, next) in moved {
            let tp = TopicPartition::new(name.clone(), partition);
            self.status.moved(&tp, generation, next);
            if !self.is_alone() {
                self.mirror.insert(tp, next);
            }
        }
        for (partition, gap) in landed.gaps {
            self.on_gap(name, partition, gap);
        }
        if !void.is_empty() {
            self.void(name, &void, Duration::ZERO).await;
        }
    }

    fn on_gap(&mut self, name: &TopicName, partition: Partition, gap: Segment) {
        let Segment::Gap {
            start,
            end,
            reason,
            at,
        } = gap
        else {
            return;
        };
        let generation = self
            .topics
            .get(name)
            .map(|t| t.generation)
            .unwrap_or_default();
        let missing = end.and_then(|end| OffsetRange::new(start, end).ok());
        let tp = TopicPartition::new(name.clone(), partition);
        self.status
            .metrics()
            .gap_offsets
            .get_or_create(&ReasonLabels::new(&tp, &reason.to_string()))
            .inc_by(missing.map_or(0, OffsetRange::len));
        let gap = Gap {
            generation,
            partition,
            start,
            end,
            reason,
            at,
        };
        tracing::warn!(topic = %name, %gap, "gap recorded");
        self.record_gap(gap);
    }

    /// What was read of a partition without a leader could not be checked. It is read again from the ledger once somebody
    /// answers for it; until then nobody deletes anything of it either.
    async fn on_unanswered(&mut self, name: &TopicName, partition: Partition) {
        let ids = std::sync::Arc::clone(&self.components.ids);
        let Some(part) = self
            .topics
            .get_mut(name)
            .and_then(|t| t.parts.get_mut(&partition))
        else {
            return;
        };
        let wait = part.retries.next(ids.as_ref());
        tracing::warn!(topic = %name, partition = partition.get(), "left out of a commit: no broker answers for it");
        self.status
            .unanswered(&TopicPartition::new(name.clone(), partition));
        self.void(name, &[partition], wait).await;
    }

    /// Leaders changed while it was read: it is read again from the ledger, now that the new one is there.
    async fn on_unproven(&mut self, name: &TopicName, partition: Partition) {
        let ids = std::sync::Arc::clone(&self.components.ids);
        let part = self
            .topics
            .get_mut(name)
            .and_then(|t| t.parts.get_mut(&partition));
        let Some(part) = part else {
            return;
        };
        let wait = part.retries.next(ids.as_ref());
        tracing::info!(
            topic = %name, partition = partition.get(),
            "its leader changed while the last offsets were read: reading them again"
        );
        self.void(name, &[partition], wait).await;
    }

    async fn on_fenced(&mut self, name: &TopicName, partition: Partition, why: &str) {
        let now = self.now();
        let patience = self.settings.patience();
        let Some(part) = self
            .topics
            .get_mut(name)
            .and_then(|t| t.parts.get_mut(&partition))
        else {
            return;
        };
        part.fences += 1;
        let since = *part.fenced_since.get_or_insert(now);
        let fences = part.fences;
        tracing::warn!(topic = %name, partition = partition.get(), fences, reason = why, "fenced");
        if fences >= FENCES_MAX && now.saturating_sub(since) >= patience {
            let tp = TopicPartition::new(name.clone(), partition);
            let what = format!(
                "another writer archives this partition: fenced {fences} times in {} s without a commit of our own \
                 ({why}); run one archiver, or let all of them share a group (archive.group)",
                now.saturating_sub(since).as_secs()
            );
            self.stop_partition(&tp, FailureKind::AnotherWriter, what)
                .await;
            return;
        }
        // somewhere else in time than the rival, or both go on in step
        let wait =
            Duration::from_millis(self.components.ids.below(200 * u64::from(fences.min(10))));
        self.void(name, &[partition], wait).await;
    }

    // ---- looking around

    async fn on_discovered(&mut self, result: Result<Discovered, LogError>) {
        let now = self.now();
        let found = match result {
            Ok(found) => found,
            Err(error) => {
                let why = one_line(&error);
                if !error.is_transient() && !self.looks.was_discovered {
                    self.break_down(error);
                    return;
                }
                self.status.trouble(Waiting::Brokers, &why);
                tracing::warn!(reason = %why, "topics could not be listed, trying again");
                let wait = self
                    .looks
                    .discovery_backoff
                    .next(self.components.ids.as_ref());
                self.looks.discovery = Some(now + wait);
                return;
            }
        };
        self.status.no_trouble(Waiting::Brokers);
        self.looks.discovery_backoff.reset();
        self.looks.discovery = Some(now + self.settings.discovery_interval);
        let is_first = !std::mem::replace(&mut self.looks.was_discovered, true);
        if is_first && self.caught_up.is_some() {
            self.looks.targets = Some(now);
        }
        self.compare(&found, now).await;
        self.count_denials(&found).await;
        self.share(&found, now).await;
        for info in &found.topics {
            if self.is_alone()
                && self
                    .topics
                    .get(&info.name)
                    .is_none_or(|t| t.failure.is_none())
            {
                for partition in &info.partitions {
                    self.want(&TopicPartition::new(info.name.clone(), *partition), now);
                }
            }
        }
        self.look_for_configured(&found, is_first);
        self.check_ready();
    }

    /// Topics that the brokers refuse to describe: told at once, and where one is being archived it stops if that goes on. The
    /// others have no part in it.
    async fn count_denials(&mut self, found: &Discovered) {
        let is_denied =
            |name: &TopicName| matches!(found.refused.get(name), Some(LogError::Denied { .. }));
        self.looks.denied.retain(|name, _| is_denied(name));
        for (name, error) in &found.refused {
            let why = one_line(error);
            if !is_denied(name) {
                tracing::debug!(topic = %name, reason = %why, "the topic was not described");
                continue;
            }
            let was_known = self.topics.contains_key(name) || self.looks.shared.contains_key(name);
            let (times, is_known) = self.looks.denied.entry(name.clone()).or_default();
            *times += 1;
            *is_known |= was_known;
            let is_over = *is_known && *times > STALE_MAX;
            if *times == 1 {
                tracing::warn!(topic = %name, reason = %why, "not allowed to see a configured topic: nothing of it is archived until we are");
            }
            let is_open = self.topics.get(name).is_none_or(|t| t.failure.is_none());
            if is_over && is_open {
                // a group has taken it away by now
                self.topics.entry(name.clone()).or_default();
                self.fail_topic(name, FailureKind::Denied, why).await;
            }
        }
    }

    /// In a group: tells it which topics there are to share, by name. What an expression means is decided here, and here
    /// alone: clients and brokers have other languages for it, and would take in internal topics. A topic that is not seen is
    /// kept for a while, since a look may miss one. One that failed here for a reason that another member may not have is
    /// left to the others, until this process is started again.
    async fn share(&mut self, found: &Discovered, now: Duration) {
        if self.is_alone() {
            return;
        }
        // one look may miss a topic, however seldom looks are
        let patience = MISSING.max(2 * self.settings.discovery_interval);
        let looks = &mut self.looks;
        for info in &found.topics {
            looks.shared.insert(info.name.clone(), now);
        }
        looks.shared.retain(|name, seen| {
            !looks.denied.contains_key(name) && now.saturating_sub(*seen) <= patience
        });
        let is_ours_to_give_up = |name: &TopicName| {
            let failure = self.topics.get(name).and_then(|t| t.failure.as_ref());
            failure.is_some_and(|failure| failure.kind.may_pass_by_others())
        };
        let topics: BTreeSet<TopicName> = looks
            .shared
            .keys()
            .filter(|name| !is_ours_to_give_up(name))
            .cloned()
            .collect();
        // who shares nothing waits for nobody
        if topics.is_empty() {
            self.status.no_trouble(Waiting::Group);
        } else if !self.was_assigned {
            self.status.wait_for(Waiting::Group, NOTHING_ASSIGNED);
        }
        if topics == looks.subscription {
            return;
        }
        tracing::info!(topics = topics.len(), "the topics to share have changed");
        let names: Vec<TopicName> = topics.iter().cloned().collect();
        match self.reader.subscribe(&names).await {
            Ok(()) => self.looks.subscription = topics,
            Err(error) => self.on_reader_error(error),
        }
    }

    /// Says which of the configured topics are not there: once, and again when that changes.
    fn look_for_configured(&mut self, found: &Discovered, is_first: bool) {
        let is_found = |name: &TopicName| found.topics.iter().any(|info| info.name == *name);
        let missing: BTreeSet<TopicName> = self
            .settings
            .named()
            .into_iter()
            .filter(|name| !is_found(name) && !found.refused.contains_key(name))
            .collect();
        for name in missing.difference(&self.looks.missing) {
            tracing::warn!(topic = %name, "a configured topic is not in Kafka: nothing of it is archived until it is");
        }
        self.looks.missing = missing;
        if is_first {
            for pattern in &self.settings.topics {
                if matches!(pattern, TopicPattern::Regex(_))
                    && !found.topics.iter().any(|info| pattern.matches(&info.name))
                {
                    tracing::warn!(%pattern, "no topic matches the configured expression");
                }
            }
        }
    }

    /// Whether the topics that are being read are still the same ones.
    async fn compare(&mut self, found: &Discovered, now: Duration) {
        let names: Vec<TopicName> = self.topics.keys().cloned().collect();
        for name in names {
            let info = found.topics.iter().find(|info| info.name == name);
            let Some(topic) = self.topics.get_mut(&name) else {
                continue;
            };
            if topic.failure.is_some() {
                continue;
            }
            if found.refused.contains_key(&name) {
                // it may well be there: being refused is another matter than being missing
                topic.missing_since = None;
                continue;
            }
            let Some(info) = info else {
                let since = *topic.missing_since.get_or_insert(now);
                let is_over = now.saturating_sub(since) > MISSING;
                if is_over && topic.job.is_none() && (self.is_alone() || self.caught_up.is_some()) {
                    self.topic_is_gone(&name).await;
                }
                continue;
            };
            topic.missing_since = None;
            let identity = Identity {
                cluster_id: found.cluster_id.clone(),
                topic_id: info.topic_id,
            };
            if topic
                .identity
                .as_ref()
                .is_some_and(|known| !known.agrees(&identity))
            {
                self.topic_is_another(&name, "seen while looking around")
                    .await;
            }
            if self.is_alone() {
                self.drop_what_is_no_more(&name, &info.partitions, now)
                    .await;
            }
        }
    }

    /// A topic that was created anew may have fewer partitions than the one before. One that is being read stays: the
    /// brokers that answered may be behind.
    async fn drop_what_is_no_more(
        &mut self,
        name: &TopicName,
        partitions: &[Partition],
        now: Duration,
    ) {
        let Some(topic) = self.topics.get(name) else {
            return;
        };
        let no_more: Vec<Partition> = topic
            .parts
            .iter()
            .filter(|(p, part)| part.is_wanted() && !partitions.contains(p))
            .map(|(p, _)| *p)
            .collect();
        if no_more.is_empty() {
            return;
        }
        let names = super::topic::full_names(name, &no_more);
        for tp in &names {
            self.drop_partition(tp, now);
        }
        if let Err(error) = self.reader.unassign(&names).await {
            self.on_reader_error(error);
        }
    }

    async fn topic_is_gone(&mut self, name: &TopicName) {
        let Some(topic) = self.topics.remove(name) else {
            return;
        };
        tracing::warn!(topic = %name, rows_dropped = topic.pending_rows, "the topic does not exist any more");
        self.status.forget_topic(name);
        if let Some(caught_up) = &mut self.caught_up {
            caught_up.forget(name);
            self.gone.push(Failure {
                topic: name.clone(),
                partition: None,
                kind: FailureKind::Other,
                message: "the topic was deleted while it was being archived".to_owned(),
            });
        }
        if self.is_alone() {
            let all: Vec<Partition> = topic.parts.keys().copied().collect();
            let names = super::topic::full_names(name, &all);
            if let Err(error) = self.reader.unassign(&names).await {
                self.on_reader_error(error);
            }
        }
    }

    fn check_ready(&mut self) {
        if !self.looks.was_discovered {
            return;
        }
        let missing: Vec<&str> = self.looks.missing.iter().map(TopicName::as_str).collect();
        let opening = self
            .topics
            .iter()
            .find(|(_, t)| t.table.is_none() && t.failure.is_none());
        if opening.is_none()
            && !self.topics.is_empty()
            && let Some(snapshot) = self.accept.take()
        {
            tracing::warn!(
                snapshot,
                "--accept was of no use: no table has a foreign change at this snapshot"
            );
        }
        let denied: Vec<&str> = self.looks.denied.keys().map(TopicName::as_str).collect();
        if !denied.is_empty() {
            let why = format!("configured and not allowed to see: {}", denied.join(", "));
            self.status.not_ready(why);
        } else if !self.is_alone() && !self.was_assigned && !self.looks.shared.is_empty() {
            self.status.not_ready(NOTHING_ASSIGNED.to_owned());
        } else if !missing.is_empty() {
            let why = format!("configured and not in Kafka: {}", missing.join(", "));
            self.status.not_ready(why);
        } else if let Some((name, _)) = opening {
            let why = format!("the table of topic {name} is not open yet");
            self.status.not_ready(why);
        } else {
            self.status.set_ready();
        }
    }

    fn on_targets(&mut self, result: Result<Targets, LogError>) {
        let now = self.now();
        let Targets { seen, denied } = match result {
            Ok(targets) => targets,
            Err(error) => {
                let why = format!(
                    "the ends to catch up to are not known: {}",
                    one_line(&error)
                );
                tracing::warn!(reason = %why, "trying again");
                self.status
                    .trouble_because(Waiting::Ends, reason_of_log(&error), &why);
                let wait = self
                    .looks
                    .targets_backoff
                    .next(self.components.ids.as_ref());
                self.looks.targets = Some(now + wait);
                return;
            }
        };
        self.status.no_trouble(Waiting::Ends);
        let Some(caught_up) = &mut self.caught_up else {
            return;
        };
        let is_first = !caught_up.is_set();
        if !caught_up.set(&seen) {
            // some have no leader: the others go on, these are waited for
            let wait = self
                .looks
                .targets_backoff
                .next(self.components.ids.as_ref());
            self.looks.targets = Some(now + wait);
        }
        if !is_first {
            return;
        }
        for name in self.settings.named() {
            if seen.topics.contains_key(&name) {
                continue;
            }
            let (kind, message) = match denied.get(&name) {
                Some(error) => (FailureKind::Denied, one_line(error)),
                None => (FailureKind::Other, "the topic does not exist".to_owned()),
            };
            self.gone.push(Failure {
                topic: name,
                partition: None,
                kind,
                message,
            });
        }
        // with a group, the table tells of what other members archive
        for name in seen.topics.into_keys() {
            self.topics.entry(name).or_default();
        }
    }

    fn on_observed(&mut self, observed: Observed) {
        let now = self.now();
        self.looks.observation = Some(now + self.settings.discovery_interval.min(OBSERVATION));
        match &observed.error {
            Some(error) => {
                let why = one_line(error);
                tracing::warn!(reason = %why, "the logs' bounds could not be read");
                self.status.trouble(Waiting::Bounds, &why);
            }
            None => self.status.no_trouble(Waiting::Bounds),
        }
        for (name, config) in observed.configs {
            self.looks.configs.insert(name, (now, Some(config)));
        }
        for tp in observed.asked {
            match observed.bounds.get(&tp) {
                Some(bounds) => self.look_at(&tp, *bounds, now),
                None => self.look_in_vain(&tp, observed.error.is_none()),
            }
        }
    }

    /// Nobody told anything of a partition. `has_asked`: the others were answered, so that it is this one's own matter.
    fn look_in_vain(&mut self, tp: &TopicPartition, has_asked: bool) {
        let Some(topic) = self.topics.get_mut(&tp.topic) else {
            return;
        };
        // a topic that is gone is said elsewhere
        let is_there = topic.missing_since.is_none() && topic.failure.is_none();
        let Some(part) = topic.parts.get_mut(&tp.partition) else {
            return;
        };
        part.misses = part.misses.saturating_add(1);
        if part.misses >= MISSES_MAX {
            self.status.unseen(tp);
        }
        if has_asked && is_there {
            self.status.unanswered(tp);
        }
    }

    /// Lag and headroom of one partition.
    fn look_at(&mut self, tp: &TopicPartition, bounds: LogBounds, now: Duration) {
        let wall = self.components.clock.now();
        let config = self
            .looks
            .configs
            .get(&tp.topic)
            .and_then(|(_, c)| c.clone());
        let Some(topic) = self.topics.get_mut(&tp.topic) else {
            return;
        };
        if topic.failure.is_some() {
            return;
        }
        let archived = topic.archived(tp.partition).unwrap_or(bounds.log_start);
        let Some(part) = topic.parts.get_mut(&tp.partition) else {
            return;
        };
        part.misses = 0;
        let stands = part.look_at_end(now, bounds);
        part.ends.look(wall, bounds.end);
        part.look_at_start(now, bounds.log_start);
        let age = part.ends.age(wall, archived);
        let facts = HeadroomFacts {
            config,
            log_start: bounds.log_start,
            next: archived,
            oldest_unarchived: age,
            start_speed: part.start_speed(now, bounds.log_start),
        };
        self.status.looked(tp, bounds, archived);
        let labels = PartitionLabels::from(tp);
        let metrics = self.status.metrics();
        let behind_it = bounds.high_watermark.since(bounds.end);
        metrics
            .open_transaction_offsets
            .get_or_create(&labels)
            .set(i64::try_from(behind_it).unwrap_or(i64::MAX));
        metrics
            .open_transaction_seconds
            .get_or_create(&labels)
            .set(stands.as_secs_f64());
        for (gauge, seconds) in [
            (&metrics.lag_seconds, age.map(|d| d.as_secs_f64())),
            (
                &metrics.retention_headroom_seconds,
                headroom(&facts).seconds(),
            ),
        ] {
            match seconds {
                Some(seconds) => {
                    gauge.get_or_create(&labels).set(seconds);
                }
                // absent is what unknown looks like to an alert
                None => {
                    gauge.remove(&labels);
                }
            }
        }
    }
}

impl Part {
    /// How fast the log's start moves, since the older look.
    fn start_speed(&self, now: Duration, log_start: Offset) -> Option<f64> {
        start_speed(self.starts[0]?, (now, log_start))
    }
}
