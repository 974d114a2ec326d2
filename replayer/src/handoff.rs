//! History to tail at the Cut, and back: what to do next, as a pure function of what was seen.
//!
//! ```text
//!                 history read up to its ledger                    position < log start
//!   ┌─────────┐  ─────────────────────────────►  ┌───────────┐   ────────────────────────►  ┌─────────┐
//!   │ History │                                  │ Switching │                              │ History │
//!   └─────────┘  ◄─────────────────────────────  └───────────┘   ◄────────────────────────  └─────────┘
//!                   NewerSnapshot: go on in it         │ Tail: from exactly the positions
//!                                                      ▼
//!                                                  ┌──────┐   behind retention, re-created, new partitions
//!                                                  │ Live │  ─────────────────────────► Switching again
//!                                                  └──────┘
//! ```
//!
//! Proof obligations, each tested by the model in this module's tests
//! - T1 A partition is tailed from its position and from nowhere else, and only while `log start ≤ position`.
//! - T2 History is left for the tail, and the tail for history, at the position: offsets are immutable within a
//!   generation, so whatever snapshot is read next only extends what was emitted.
//! - T3 The tail belongs to the newest generation of the ledger and to the identity that the ledger has for it (H12).
//! - T5 Positions count only for the incarnation that they were read from, also before the archive has a word for it (H12).
//! - T4 A hole, a truncation or a foreign log is an error that names it, never a silent jump (H1, H42). It is one only on
//!   facts in the right order: the ledger must have been read after the log's bounds.

use std::collections::{BTreeMap, BTreeSet};

use everlog_common::mutants::Mutant;
use everlog_common::{
    Generation, Identity, Ledger, LogBounds, Offset, OffsetRange, Partition, Position, Positions,
};
use everlog_kafka::StartAt;

/// What the cluster said of the topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LiveFacts {
    /// Whose log it is.
    pub identity: Identity,
    /// Per partition of the topic that matters to the replay: of all of them, or the facts are not known yet.
    pub bounds: BTreeMap<Partition, LogBounds>,
    /// Where the log of the epoch of our last record ended, where the broker knows that.
    pub epoch_ends: BTreeMap<Partition, Offset>,
}

/// Whose log the offsets of a generation count. A generation's number alone does not say so before its first commit: if
/// the topic is created anew before that, the number goes to the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// The number, as positions have it.
    pub generation: Generation,
    /// Whose log it was when it was read.
    pub identity: Identity,
}

impl Incarnation {
    /// The ledger's newest.
    pub fn newest(ledger: &Ledger) -> Option<Self> {
        ledger.newest().map(|(generation, era)| Self {
            generation,
            identity: era.identity.clone(),
        })
    }

    /// The error that says so, where positions of this incarnation are not the ledger's nor, before the first commit, the
    /// live log's.
    pub fn contradicts(&self, ledger: &Ledger, live: Option<&Identity>) -> Option<SeamError> {
        let found = match ledger.generations.get(&self.generation) {
            Some(era) => &era.identity,
            None if ledger.newest().is_none() => live?,
            None => return None,
        };
        (!self.identity.agrees(found)).then(|| SeamError::OtherIncarnation {
            generation: self.generation,
            read: self.identity.clone(),
            found: found.clone(),
        })
    }
}

/// The last record that was read of a partition. The position may lie behind it: offsets without records follow, such as the
/// marker that a later leader wrote to end a transaction of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRead {
    /// Its leader's epoch.
    pub leader_epoch: i32,
    /// The offset after it: so far, and no farther, its epoch must reach.
    pub next: Offset,
}

/// Where we are.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The ledger of the snapshot that was read last, and read to its end.
    pub ledger: &'a Ledger,
    /// Whether that ledger was read after the live facts.
    pub ledger_is_fresh: bool,
    /// Next offsets.
    pub positions: &'a Positions,
    /// Whose positions those of the newest generation are, where known.
    pub incarnation: Option<&'a Incarnation>,
    /// The last record before the position, where it and its epoch are known.
    pub epochs: &'a BTreeMap<Partition, LastRead>,
    /// The partitions asked for; none: all.
    pub wanted: Option<&'a BTreeSet<Partition>>,
}

/// Why neither the archive nor the log has what comes next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeamError {
    /// Another cluster.
    #[error(
        "the archive's newest generation {generation} is of {archived}, the live topic of {live}: this is another cluster; check bootstrap.servers"
    )]
    OtherCluster {
        /// Newest generation.
        generation: Generation,
        /// What the ledger has.
        archived: Identity,
        /// What the broker says.
        live: Identity,
    },
    /// The topic was made anew, and the archive does not have the new one yet.
    #[error(
        "the topic was created anew ({live}; the archive's newest generation {generation} is of {archived}) and the new one is not archived yet: start the archiver, then replay again"
    )]
    Recreated {
        /// Newest generation.
        generation: Generation,
        /// What the ledger has.
        archived: Identity,
        /// What the broker says.
        live: Identity,
    },
    /// The positions are those of an incarnation that never was archived.
    #[error(
        "offsets were read as generation {generation} of {read}, but that generation is of {found}: the topic was created anew before its first commit (or its table was), so the positions mean nothing in it; replay from the beginning"
    )]
    OtherIncarnation {
        /// The generation.
        generation: Generation,
        /// Whose log was read.
        read: Identity,
        /// Whose log it is.
        found: Identity,
    },
    /// Between the archive's end and the log's start something is missing.
    #[error(
        "partition {partition}: offsets {range} of generation {generation} are neither in the archive nor in Kafka: the log begins at {end} now, the archive ends at {start}; start the archiver with on_gap = \"record\" to record the gap, then replay again", start = range.start(), end = range.end()
    )]
    Hole {
        /// The partition.
        partition: Partition,
        /// The era.
        generation: Generation,
        /// What is missing.
        range: OffsetRange,
    },
    /// The log is shorter than what was read of it.
    #[error(
        "partition {partition}: the log was truncated: it ends at {end}, but records up to {position} were read from it; compare both with `everlog verify`"
    )]
    Truncated {
        /// The partition.
        partition: Partition,
        /// Our next offset.
        position: Offset,
        /// Where the log (or our record's epoch in it) ends.
        end: Offset,
        /// It is the epoch that ended. A log's end may trail behind a new leader's; where an epoch ended does not change.
        by_epoch: bool,
    },
    /// The live topic has fewer partitions than the archive.
    #[error("partition {partition} is in the archive, but not in the live topic any more")]
    PartitionGone {
        /// The partition.
        partition: Partition,
    },
}

impl SeamError {
    /// Whether it is a gap in the data.
    pub const fn is_gap(&self) -> bool {
        matches!(self, Self::Hole { .. })
    }

    /// Whether no later look at either tier can say otherwise.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Truncated { by_epoch: true, .. })
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Tail the newest generation from here.
    Tail {
        /// Its number.
        generation: Generation,
        /// Where each partition starts. Partitions new to both tiers are in there too.
        starts: BTreeMap<Partition, StartAt>,
    },
    /// Lease the newest snapshot, before the old one is let go, and go on in it from the positions.
    NewerSnapshot,
    /// Neither tier has what comes next. It may still be about to be archived: ask again for a while, then give up.
    Stuck(SeamError),
}

/// What to do once everything that `place.ledger` holds was emitted.
pub fn decide(place: &Place<'_>, live: &LiveFacts) -> Decision {
    // An empty ledger has no identity to compare with: it must at least be known to be empty now.
    if place.ledger.newest().is_none() && !place.ledger_is_fresh {
        return Decision::NewerSnapshot;
    }
    match tail(place, live) {
        Ok((generation, starts)) => Decision::Tail { generation, starts },
        Err(problem) if place.ledger_is_fresh => Decision::Stuck(problem),
        Err(_) => Decision::NewerSnapshot,
    }
}

fn tail(
    place: &Place<'_>,
    live: &LiveFacts,
) -> Result<(Generation, BTreeMap<Partition, StartAt>), SeamError> {
    let other = place
        .incarnation
        .and_then(|before| before.contradicts(place.ledger, Some(&live.identity)));
    if let Some(problem) = other {
        return Err(problem);
    }
    let generation = match place.ledger.newest() {
        None => Generation::FIRST,
        Some((generation, newest)) => {
            check_identity(generation, &newest.identity, &live.identity)?;
            let mut archived = newest.partitions.keys();
            let gone = archived.find(|p| is_wanted(place, **p) && !live.bounds.contains_key(p));
            if let Some(partition) = gone {
                return Err(SeamError::PartitionGone {
                    partition: *partition,
                });
            }
            generation
        }
    };
    let mut starts = BTreeMap::new();
    for (partition, bounds) in &live.bounds {
        if is_wanted(place, *partition) {
            let epoch_end = live.epoch_ends.get(partition).copied();
            let start = start_of(place, generation, *partition, *bounds, epoch_end)?;
            starts.insert(*partition, start);
        }
    }
    Ok((generation, starts))
}

fn is_wanted(place: &Place<'_>, partition: Partition) -> bool {
    place.wanted.is_none_or(|w| w.contains(&partition))
}

/// H12, T3.
fn check_identity(
    generation: Generation,
    archived: &Identity,
    live: &Identity,
) -> Result<(), SeamError> {
    if archived.agrees(live) {
        return Ok(());
    }
    Err(
        other_cluster(generation, archived, live).unwrap_or_else(|| SeamError::Recreated {
            generation,
            archived: archived.clone(),
            live: live.clone(),
        }),
    )
}

/// The error that says so, where both know their cluster and these differ: no waiting helps against it.
pub fn other_cluster(
    generation: Generation,
    archived: &Identity,
    live: &Identity,
) -> Option<SeamError> {
    let differ = archived.cluster_id.as_ref()? != live.cluster_id.as_ref()?;
    differ.then(|| SeamError::OtherCluster {
        generation,
        archived: archived.clone(),
        live: live.clone(),
    })
}

fn start_of(
    place: &Place<'_>,
    generation: Generation,
    partition: Partition,
    bounds: LogBounds,
    epoch_end: Option<Offset>,
) -> Result<StartAt, SeamError> {
    let at = place.positions.get(&partition).copied();
    let Some(position) = at.filter(|at| at.generation >= generation) else {
        let offset = start_of_new(place, generation, partition, bounds)?;
        return Ok(StartAt {
            offset,
            leader_epoch: None,
        });
    };
    let offset = match position.offset {
        offset if Mutant::TailOneLate.is_planted() => offset.next(),
        offset if Mutant::TailOneEarly.is_planted() => {
            Offset::new(offset.get() - 1).unwrap_or(offset)
        }
        offset if Mutant::HoleUnseen.is_planted() => offset.max(bounds.log_start),
        offset => offset,
    };
    not_before(bounds.log_start, generation, partition, offset)?;
    let last = place.epochs.get(&partition);
    let cut = last.zip(epoch_end);
    let cut = cut.and_then(|(last, end)| (end < last.next.min(offset)).then_some(end));
    let end = cut.map_or(bounds.high_watermark, |end| end.min(bounds.high_watermark));
    if end < offset && was_read(place, position, partition) {
        return Err(SeamError::Truncated {
            partition,
            position: offset,
            end,
            by_epoch: cut.is_some(),
        });
    }
    // The client compares it with the position as well: only one that reaches there.
    let reaches = |last: &&LastRead| last.next >= offset || epoch_end.is_some_and(|e| e >= offset);
    Ok(StartAt {
        // A position that was only asked for may lie beyond the end: the log is read from there on, once it is there.
        offset: offset.min(bounds.end.max(bounds.log_start)),
        leader_epoch: last.filter(reaches).map(|last| last.leader_epoch),
    })
}

/// T1, H1.
fn not_before(
    log_start: Offset,
    generation: Generation,
    partition: Partition,
    offset: Offset,
) -> Result<(), SeamError> {
    match OffsetRange::new(offset, log_start) {
        Err(_) => Ok(()),
        Ok(range) => Err(SeamError::Hole {
            partition,
            generation,
            range,
        }),
    }
}

/// Whether records right before `position` were read, so that the log must reach there. A position that was only asked
/// for (`--from offset:N`) may lie anywhere.
fn was_read(place: &Place<'_>, position: Position, partition: Partition) -> bool {
    let entry = place.ledger.entry(position.generation, partition);
    let archived = entry.is_some_and(|e| e.first <= position.offset && position.offset <= e.next);
    archived || place.epochs.contains_key(&partition)
}

/// A partition of which nothing was emitted. The log has all of it while it still begins at 0. Otherwise somebody may
/// have archived what is gone: only a ledger read after the bounds tells. If that does not have it, the log's start is the
/// beginning that there is: the archive is going to begin there as well, or before it, where an archiver has read what the
/// log has lost since, and has yet to commit it.
fn start_of_new(
    place: &Place<'_>,
    generation: Generation,
    partition: Partition,
    bounds: LogBounds,
) -> Result<Offset, SeamError> {
    let first = match place.ledger.entry(generation, partition) {
        Some(entry) => entry.first,
        None if place.ledger_is_fresh => bounds.log_start,
        None => Offset::ZERO,
    };
    not_before(bounds.log_start, generation, partition, first)?;
    Ok(first)
}

#[cfg(test)]
mod tests;
