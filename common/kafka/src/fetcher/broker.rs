//! The thread that fetches from one broker.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use everlog_common::{EventColumnsBuilder, Offset, TopicPartition};
use everlog_wire::{Batches, Unpacker, Visibility, WireError};

use super::answers::FetchedPartition;
use super::backoff::Backoff;
use super::connection::Connection;
use super::part::{Leader, Need, Passed, Verdict};
use super::requests::{self, Amount, EpochAsked, FetchAsked};
use super::settings::Address;
use super::state::{Rows, Shared};
use crate::{Isolation, LogError, PartitionFault};

/// A thread with nothing to do looks up so often.
const IDLE: Duration = Duration::from_secs(10);
/// How long a broker is asked to wait while a partition of its is paused, that may go on at any time.
const SHORT_WAIT: Duration = Duration::from_millis(50);
/// Batches of so many rows are taken to be followed by such ones.
const ROWS_TO_EXPECT: usize = 1_000;
/// A broker that throttles is obeyed for so long at once.
const THROTTLED_MAX: Duration = Duration::from_secs(30);

/// What a broker is asked next.
enum Work {
    Check(Vec<(u64, EpochAsked)>),
    Fetch(Vec<FetchAsked>, Duration),
}

pub(super) struct Broker {
    shared: Arc<Shared>,
    node: i32,
    unpacker: Unpacker,
    rows: EventColumnsBuilder,
    /// Which partition comes first in the next request: a broker fills its answers from the front.
    turn: usize,
    backoff: Backoff,
}

impl Broker {
    pub(super) fn new(shared: Arc<Shared>, node: i32) -> Self {
        let backoff = Backoff::new(shared.settings.backoff);
        let unpacker = Unpacker::new(shared.settings.response_max);
        Self {
            shared,
            node,
            unpacker,
            rows: EventColumnsBuilder::new(),
            turn: 0,
            backoff,
        }
    }

    /// Until the reader ends.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut connection: Option<(Address, Connection<'_>)> = None;
        while let Some((address, work)) = self.next_work() {
            let usable = connection
                .take()
                .filter(|(of, open)| *of == address && !open.is_too_old(Instant::now()));
            let opened = match usable {
                Some((_, open)) => Ok(open),
                None => Connection::open(&address, &shared.settings, &shared.sockets),
            };
            let done = opened.and_then(|mut open| {
                let rest = self.work(&mut open, &work)?;
                Ok((open, rest))
            });
            self.release(&work, done.is_err());
            match done {
                Ok((open, rest)) => {
                    self.backoff.succeeded();
                    connection = Some((address, open));
                    if !rest.is_zero() && !shared.rest(rest.min(THROTTLED_MAX)) {
                        return;
                    }
                }
                // its connections were cut
                Err(_) if shared.lock().is_stopped() => return,
                Err(error) => {
                    let wait = self.backoff.failed();
                    if self.backoff.is_first() {
                        tracing::warn!(broker = %address, %error, "cannot read from a broker: trying again");
                    } else {
                        tracing::debug!(broker = %address, %error, "cannot read from a broker");
                    }
                    if !error.is_transient() && self.backoff.is_long() {
                        shared.report(error);
                    }
                    if !shared.rest(wait) {
                        return;
                    }
                }
            }
        }
    }

    /// Waits until there is something to ask, and marks it as under way.
    fn next_work(&mut self) -> Option<(Address, Work)> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        loop {
            if state.is_stopped() {
                return None;
            }
            let now = Instant::now();
            let has_room = state.has_room(shared.bounds);
            let (mut checks, mut fetches, mut wait) = (Vec::new(), Vec::new(), IDLE);
            let mut paused = false;
            for (tp, part) in &state.parts {
                match part.need(now) {
                    Need::Check(node) if node == self.node => {
                        let asked = EpochAsked {
                            tp: tp.clone(),
                            leader_epoch: part.leader_epoch(),
                            epoch: part.epoch_to_check(),
                        };
                        checks.push((part.id, asked));
                    }
                    Need::Fetch(node) if node == self.node => fetches.push(FetchAsked {
                        tp: tp.clone(),
                        id: part.id,
                        topic_id: part.topic_id,
                        offset: part.next,
                        leader: Leader {
                            node,
                            epoch: part.leader().and_then(|leader| leader.epoch),
                        },
                    }),
                    Need::Until(at) => wait = wait.min(at.saturating_duration_since(now)),
                    _ => {
                        let leader = part.leader();
                        let is_ours = leader.is_some_and(|leader| leader.node == self.node);
                        paused |= is_ours && part.paused && !part.dead;
                    }
                }
            }
            let work = if !checks.is_empty() {
                Some(Work::Check(checks))
            } else if has_room && !fetches.is_empty() {
                self.turn = (self.turn + 1) % fetches.len();
                fetches.rotate_left(self.turn);
                let longest = shared.settings.fetch_wait;
                let wait = if paused {
                    longest.min(SHORT_WAIT)
                } else {
                    longest
                };
                Some(Work::Fetch(fetches, wait))
            } else {
                None
            };
            if let Some(work) = work {
                let address = state.brokers.get(&self.node).cloned();
                for (tp, id) in asked(&work) {
                    let part = state.parts.get_mut(tp).filter(|part| part.id == id);
                    match part {
                        Some(part) if address.is_some() => part.busy = true,
                        // it has left the cluster since
                        Some(part) => part.ask_again(now),
                        None => {}
                    }
                }
                if let Some(address) = address {
                    return Some((address, work));
                }
                shared.ring();
                continue;
            }
            state = shared.wait(state, wait.max(Duration::from_millis(1)));
        }
    }

    /// What was asked is under way no more.
    fn release(&self, work: &Work, failed: bool) {
        let now = Instant::now();
        let mut is_led = true;
        let mut state = self.shared.lock();
        for (tp, id) in asked(work) {
            if let Some(part) = state.parts.get_mut(tp).filter(|part| part.id == id) {
                part.busy = false;
                if failed && !part.dead {
                    part.ask_again(now);
                }
                is_led &= part.leader().is_some_and(|leader| leader.node == self.node);
            }
        }
        drop(state);
        // others have to do with it only where a leader is to be found, or is another broker by now
        if !is_led {
            self.shared.ring();
        }
    }

    /// Answers how long to rest.
    fn work(&mut self, connection: &mut Connection<'_>, work: &Work) -> Result<Duration, LogError> {
        match work {
            Work::Check(asked) => self.check(connection, asked).map(|()| Duration::ZERO),
            Work::Fetch(asked, wait) => self.fetch(connection, asked, *wait),
        }
    }

    fn check(
        &self,
        connection: &mut Connection<'_>,
        asked: &[(u64, EpochAsked)],
    ) -> Result<(), LogError> {
        let questions: Vec<_> = asked.iter().map(|(_, one)| one.clone()).collect();
        let ends = requests::epoch_ends(connection, &questions)?;
        let now = Instant::now();
        let mut state = self.shared.lock();
        for (id, one) in asked {
            let part = state.parts.get_mut(&one.tp);
            let Some(part) = part.filter(|part| part.id == *id && !part.dead) else {
                continue;
            };
            let leader = Leader {
                node: self.node,
                epoch: (one.leader_epoch >= 0).then_some(one.leader_epoch),
            };
            let verdict = match &ends {
                // nobody can say it: what is known is the offset
                None => {
                    part.is_checked_by(leader);
                    continue;
                }
                Some(ends) => match ends.get(&one.tp) {
                    None => {
                        part.ask_again(now);
                        continue;
                    }
                    Some(end) => match part.judge(end.code, now) {
                        Verdict::Fine => part.heard_epoch_end(leader, end.epoch, end.end),
                        other => other,
                    },
                },
            };
            if let Verdict::Fault(fault) = verdict {
                state.fail(&one.tp, *id, fault);
            }
        }
        drop(state);
        self.shared.ready.notify_one();
        Ok(())
    }

    fn fetch(
        &mut self,
        connection: &mut Connection<'_>,
        asked: &[FetchAsked],
        wait: Duration,
    ) -> Result<Duration, LogError> {
        let settings = &self.shared.settings;
        let amount = Amount {
            wait,
            min: settings.fetch_min,
            max: settings.fetch_max,
            partition_max: settings.partition_max,
        };
        let mut answer = requests::fetch(connection, asked, self.shared.isolation, amount)?;
        let bytes = answer.memory.len();
        self.shared.hold(bytes);
        for one in asked {
            match answer.partitions.remove(&one.tp) {
                Some(fetched) => self.take(one, fetched),
                None => {
                    self.judge(one, None);
                }
            }
        }
        self.shared.let_go(bytes);
        drop(answer.partitions);
        connection.give_back(answer.memory);
        Ok(answer.throttled)
    }

    /// Whether a partition's answer has no error; without an answer it is asked again. One that was paused meanwhile is handed
    /// over all the same: dropped, a large one that takes longer than the pauses are apart would never come.
    fn judge(&self, one: &FetchAsked, code: Option<i16>) -> bool {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let part = state.parts.get_mut(&one.tp);
        let Some(part) = part.filter(|part| part.id == one.id && !part.dead) else {
            return false;
        };
        let verdict = match code {
            Some(code) => part.judge(code, now),
            None => {
                part.ask_again(now);
                Verdict::AskAgain
            }
        };
        match verdict {
            Verdict::Fine => true,
            Verdict::AskAgain => false,
            Verdict::Fault(fault) => {
                state.fail(&one.tp, one.id, fault);
                drop(state);
                self.shared.ready.notify_one();
                false
            }
        }
    }

    fn take(&mut self, one: &FetchAsked, fetched: FetchedPartition) {
        if !self.judge(one, Some(fetched.code)) {
            return;
        }
        match self.read(one, fetched) {
            Ok(()) => {}
            Err(error) => {
                let fault = match error {
                    WireError::OldFormat { .. } => PartitionFault::Corrupt(format!(
                        "{error}: librdkafka reads it, with everlog.fetch.client = \"librdkafka\" in [kafka]"
                    )),
                    _ => PartitionFault::Corrupt(error.to_string()),
                };
                self.shared.fail(&one.tp, one.id, fault);
            }
        }
        // what was not handed over is of an assignment that is gone
        drop(self.rows.finish());
    }

    /// Hands over what was fetched, up to the first thing that is wrong with it.
    fn read(&mut self, one: &FetchAsked, fetched: FetchedPartition) -> Result<(), WireError> {
        let Self {
            shared,
            unpacker,
            rows,
            ..
        } = self;
        let high = fetched.high_watermark;
        let (mut visibility, end) = match shared.isolation {
            Isolation::ReadCommitted => (
                Visibility::of_committed(fetched.aborted),
                if fetched.last_stable >= 0 {
                    fetched.last_stable
                } else {
                    high
                },
            ),
            Isolation::ReadUncommitted => (Visibility::of_everything(), high),
        };
        let mut next = one.offset;
        let mut passed = None;
        let deliver = |rows: &mut EventColumnsBuilder, next, passed, end| {
            let columns = rows.finish();
            if columns.len() >= ROWS_TO_EXPECT {
                rows.expect_like(&columns);
            }
            let rows = Rows {
                columns,
                next,
                passed,
                end,
            };
            shared.deliver(&one.tp, one.id, rows)
        };
        let mut batches = Batches::of(&fetched.records);
        let mut wrong = None;
        for batch in batches.by_ref() {
            let judged = batch.and_then(|batch| Ok((batch, visibility.sees(&batch, unpacker)?)));
            let (batch, is_seen) = match judged {
                Ok(judged) => judged,
                Err(error) => {
                    wrong = Some(error);
                    break;
                }
            };
            if batch.last_offset < next {
                continue;
            }
            // Where a log ends it has no holes. No CRC covers a batch's offset: a flipped bit in it would be a gap.
            if high > next && batch.base_offset > next && batch.last_offset >= high {
                deliver(rows, next, passed, None);
                return shared.goes_beyond(&one.tp, one.id, batch.base_offset);
            }
            let of_batch = Some(Passed {
                epoch: batch.leader_epoch,
                leader: one.leader,
            });
            if is_seen {
                let mut gone = false;
                let from = next;
                let read = unpacker.records(&batch, from, |record| {
                    let size =
                        record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
                    let bytes = rows.bytes();
                    let overflows =
                        bytes.saturating_add(size) > EventColumnsBuilder::BATCH_BYTES_MAX;
                    if bytes >= shared.bounds.batch || (overflows && bytes > 0) {
                        gone = !deliver(rows, record.offset, of_batch, None);
                        if gone {
                            return ControlFlow::Break(());
                        }
                    }
                    let Ok(offset) = Offset::new(record.offset) else {
                        return ControlFlow::Break(());
                    };
                    rows.push(
                        offset,
                        (record.timestamp_ms, record.timestamp_type),
                        record.key,
                        record.value,
                        record.headers,
                        batch.leader_epoch,
                    );
                    next = record.offset.saturating_add(1);
                    ControlFlow::Continue(())
                });
                if gone {
                    return Ok(());
                }
                if let Err(error) = read {
                    wrong = Some(error);
                    break;
                }
            }
            next = batch.last_offset.saturating_add(1);
            passed = of_batch;
        }
        if wrong.is_none() && next == one.offset && batches.is_cut_off() {
            wrong = Some(WireError::Malformed {
                offset: next,
                what: "the broker sent a part of it",
            });
        }
        let end = wrong.is_none().then_some(end);
        deliver(rows, next, passed, end);
        wrong.map_or(Ok(()), Err)
    }
}

fn asked(work: &Work) -> Box<dyn Iterator<Item = (&TopicPartition, u64)> + '_> {
    match work {
        Work::Check(asked) => Box::new(asked.iter().map(|(id, one)| (&one.tp, *id))),
        Work::Fetch(asked, _) => Box::new(asked.iter().map(|one| (&one.tp, one.id))),
    }
}
