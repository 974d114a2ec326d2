//! Holding partitions back, and what a caller needs to know to do so.
//!
//! | tier | a held partition |
//! |---|---|
//! | history | its lane stops, and nothing is read for it alone |
//! | live, little waits | waits aside |
//! | live, [`Context::live_bytes`] / [`PAUSE_SHARE`] wait aside | is paused in the reader until it is released |
//! | live, [`Context::live_bytes`] wait aside | that of which most waits is dropped, and read again when it is released |
//!
//! A pause throws away what the client fetched ahead: so a short one is not worth it. What the pause comes too late for is
//! bounded by the reader's memory and by that for what waits to be proved, a quarter of the whole each; so the third row holds
//! all of it to three quarters.

use std::collections::BTreeSet;

use everlog_common::{Generation, Partition, Position};
use everlog_kafka::StartAt;

use super::tail::ReadingLive;
use super::{EventStream, State, is_there};
use crate::live::Adjustment;
use crate::request::{From, Order};

/// See the module's text.
const PAUSE_SHARE: usize = 4;

impl EventStream {
    /// Holds these partitions back from now on, and no others: no batch of them is handed out, and no gap of theirs passed,
    /// until a later call leaves them out. Nobody else waits for them, but at the borders that a replay has anyway: the next
    /// generation, and the tail, begin when everybody is through with history.
    ///
    /// It changes no row and no partition's order, only who comes first. Nothing comes, for ever, while all that are not
    /// [spent](EventStream::is_spent) are held; [`EventStream::advance`] returns before that happens without the
    /// caller's doing. It stays in force over switches and falls out of the tail.
    ///
    /// Memory: what was read of held partitions counts; in history nothing is read for them alone, live they are
    /// paused, and of what is too much all the same something is dropped and read again later.
    ///
    /// With [`Order::Time`] it does nothing: the order across partitions is fixed then, and each waits for every other one.
    pub fn hold(&mut self, held: &BTreeSet<Partition>) {
        if self.context.request.order == Order::Time {
            return;
        }
        if self.queue.held() != held {
            self.queue.hold(held);
            if let State::History(reading) = &mut self.state {
                reading.history.hold(held);
            }
        }
        // The caller has looked.
        self.spent = self.spent_others();
    }

    /// The partitions that exist, as far as is known: each with every generation that it has from the one that the replay
    /// begins in. It only grows: when the live topic does, and when it is created anew. Grown it is before any row of the new
    /// ones is handed out.
    pub fn partitions(&self) -> &BTreeSet<(Generation, Partition)> {
        &self.known
    }

    /// Whether the tail has reached the end of `partition` as the log last told it, and nothing is known to lie beyond. False
    /// in history, in a switch, and while more waits to be handed out. The log is asked every ten seconds at least.
    pub fn at_end(&self, partition: Partition) -> bool {
        let State::Live(live) = &self.state else {
            return false;
        };
        let at = self.reached.get(&partition);
        at.is_some_and(|at| live.tailer.is_at_end(partition, *at))
    }

    /// Whether nothing more comes of `partition` for now, however long is waited, unless others are read on, or something
    /// is written: its part of this generation's history is out, or the tail is at its end, or at the end that was asked
    /// for. So it must hold nobody back. False in a switch, which ends by itself.
    pub fn is_spent(&self, partition: Partition) -> bool {
        match &self.state {
            State::Ended | State::Failed => true,
            State::Switching(_) | State::Adjusting(_) => false,
            State::History(reading) => {
                !reading.history.has_more(partition) && !self.queue.has(partition)
            }
            State::Live(live) => self.is_spent_live(live, partition),
        }
    }

    fn is_spent_live(&self, live: &ReadingLive, partition: Partition) -> bool {
        if self.finished.contains(&partition) {
            return !self.queue.has(partition);
        }
        if !live.tailer.starts().contains_key(&partition) {
            return true;
        }
        let at = self.reached.get(&partition);
        at.is_some_and(|at| live.tailer.is_at_end(partition, *at)) || self.is_stopped(partition)
    }

    /// Whether it is at the end that was asked for.
    fn is_stopped(&self, partition: Partition) -> bool {
        let Some((generation, stops)) = &self.stops.offsets else {
            return false;
        };
        stops.get(&partition).is_none_or(|stop| {
            let end = Position {
                generation: *generation,
                offset: *stop,
            };
            is_there(&self.reached, partition, end)
        })
    }

    /// Those that are spent, of those that are not held; none of them while nobody is.
    fn spent_others(&self) -> BTreeSet<Partition> {
        let held = self.queue.held();
        if held.is_empty() {
            return BTreeSet::new();
        }
        let known = self.known.iter().map(|(_, partition)| *partition);
        known
            .filter(|p| !held.contains(p) && self.is_spent(*p))
            .collect()
    }

    /// Whether the caller has to look again at what it holds back. To be asked when nothing is ready.
    pub(super) fn others_changed(&mut self) -> bool {
        let settled = matches!(self.state, State::History(_) | State::Live(_));
        if !settled || self.queue.held().is_empty() {
            return false;
        }
        let spent = self.spent_others();
        let changed = spent != self.spent;
        self.spent = spent;
        changed
    }

    /// These exist.
    pub(super) fn learn(&mut self, found: impl IntoIterator<Item = (Generation, Partition)>) {
        for (generation, partition) in found {
            if self.context.request.wants(partition) {
                self.grew |= self.known.insert((generation, partition));
            }
        }
    }

    /// Those of the ledger, from where the replay begins.
    pub(super) fn learn_ledger(&mut self) {
        let newest = self.ledger.newest().map_or(Generation::FIRST, |(g, _)| g);
        let begins = match self.context.request.from {
            From::Beginning => Generation::FIRST,
            From::Offset { generation, .. } => generation.unwrap_or(newest),
            From::Timestamp(_) => newest,
        };
        let mut found = Vec::new();
        for (generation, era) in &self.ledger.generations {
            for partition in era.partitions.keys() {
                let at = self.reached.get(partition);
                if *generation >= at.map_or(begins, |at| at.generation) {
                    found.push((*generation, *partition));
                }
            }
        }
        self.learn(found);
    }

    /// Something of `partition` was read and dropped before it was handed out: what was concluded from it goes, too.
    pub(super) fn read_again(&mut self, partition: Partition) {
        self.finished.remove(&partition);
        let seeks = matches!(self.context.request.from, From::Timestamp(_));
        if seeks && !self.positions.contains_key(&partition) {
            self.seeking.insert(partition);
        }
    }

    /// Partitions that hold others back, unless they are at their ends, which is not known.
    pub(super) fn in_doubt(&self) -> BTreeSet<Partition> {
        let held = self.queue.held();
        let State::Live(live) = &self.state else {
            return BTreeSet::new();
        };
        if held.is_empty() {
            return BTreeSet::new();
        }
        let doubtful = live.tailer.starts().keys().filter(|p| {
            let at = self.reached.get(p);
            let comes = at.is_some_and(|at| live.tailer.is_beyond(**p, *at));
            !held.contains(p) && !comes && !self.is_spent_live(live, **p)
        });
        doubtful.copied().collect()
    }

    /// What the live reader is to read from now on, where that changes. To be asked when nothing is ready. What the reader is
    /// to let go of is dropped here.
    pub(super) fn adjustment(&mut self) -> Option<Adjustment> {
        let live_bytes = self.context.live_bytes();
        let State::Live(live) = &mut self.state else {
            return None;
        };
        let held = self.queue.held();
        let idle = held.is_empty() && live.away.is_empty() && live.tailer.paused().is_empty();
        if idle && live.to_add.is_empty() {
            return None;
        }
        let mut change = Adjustment {
            add: live.to_add.clone(),
            ..Adjustment::default()
        };
        let back: Vec<Partition> = live.away.difference(held).copied().collect();
        for partition in back {
            live.away.remove(&partition);
            if let Some(at) = self.reached.get(&partition) {
                let last = self.epochs.get(&partition);
                let start = StartAt {
                    offset: at.offset,
                    leader_epoch: last
                        .filter(|last| last.next >= at.offset)
                        .map(|last| last.leader_epoch),
                };
                change.add.insert(partition, start);
            }
        }
        let paused = live.tailer.paused();
        change.resume = paused.difference(held).copied().collect();
        if self.queue.aside_bytes() >= live_bytes / PAUSE_SHARE {
            let reading = held.iter().filter(|p| live.tailer.reads(**p));
            change.pause = reading.filter(|p| !paused.contains(p)).copied().collect();
        }
        while self.queue.aside_bytes() > live_bytes
            && let Some(partition) = self.queue.heaviest()
        {
            self.queue.forget(partition);
            live.unproven.forget(partition);
            live.away.insert(partition);
            change.pause.remove(&partition);
            change.leave.insert(partition);
        }
        for partition in &change.leave {
            self.read_again(*partition);
        }
        (!change.is_empty()).then_some(change)
    }
}
