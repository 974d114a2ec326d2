//! Where to start, or why not: facts in, a decision out. No I/O, no clock, no memory of earlier decisions.
//!
//! ```text
//!             archived                        still in Kafka
//!  first ───────────────── next ─────────────────────────────── end ── high watermark
//!                           │
//!     log start ≤ next ≤ high watermark      Start at next
//!     next < log start                       Stop, or Start at the log start behind a gap
//!     next > high watermark                  Truncated
//!     the entry's epoch ended below next     Truncated
//!     nothing archived yet                   Start at the log start, never at the end
//! ```
//!
//! The same function decides at start-up, at every assignment by a group, after a fence, after a reader's fault and
//! when a topic was re-created: there is no second opinion anywhere.

use everlog_common::mutants::Mutant;
use everlog_common::{
    Entry, GapReason, Generation, Identity, Ledger, LogBounds, Millis, Offset, OffsetRange,
    Partition, Segment,
};
use everlog_kafka::Isolation;

use crate::settings::OnGap;

/// What is known of a topic and its table before any partition is looked at.
#[derive(Debug, Clone, Copy)]
pub struct TopicFacts<'a> {
    /// The table's ledger.
    pub ledger: &'a Ledger,
    /// What the brokers say now.
    pub identity: &'a Identity,
    /// The cluster that the operator accepts.
    pub accept_cluster: Option<&'a str>,
    /// The isolation that the table was created with, where it tells.
    pub recorded: Option<Isolation>,
    /// The isolation that is configured.
    pub configured: Isolation,
}

/// An entry of an era that is over: what the old incarnation still held is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// The era that is over.
    pub generation: Generation,
    /// Whose offsets it counted.
    pub identity: Identity,
    /// The partition.
    pub partition: Partition,
    /// Its entry, which stays as it is.
    pub entry: Entry,
}

/// The era that a topic is archived under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Era {
    /// Its number.
    pub generation: Generation,
    /// Whether the ledger does not know it yet.
    pub is_new: bool,
    /// What the next commit closes in older eras.
    pub closing: Vec<Closing>,
}

/// Why no partition of a topic may be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicRefusal {
    /// The table was written from another cluster.
    #[error(
        "the table holds offsets of cluster {archived}, this is cluster {connected}; if the topic moved there, set \
         archive.accept_cluster = \"{connected}\": a new generation starts"
    )]
    ForeignCluster {
        /// Whose offsets the ledger counts.
        archived: String,
        /// Who answers.
        connected: String,
    },
    /// An earlier incarnation answers again.
    #[error(
        "the brokers name {identity}, which is generation {generation} of the table and ended when generation {newest} \
         began; archive it into another namespace"
    )]
    EndedGeneration {
        /// What the brokers say.
        identity: Identity,
        /// Its number.
        generation: Generation,
        /// The era that followed.
        newest: Generation,
    },
    /// The table was filled under another isolation.
    #[error(
        "the table was filled with isolation {recorded}, configured is {configured}; it cannot change later"
    )]
    Isolation {
        /// As recorded.
        recorded: &'static str,
        /// As configured.
        configured: &'static str,
    },
}

/// Decides under which generation a topic is archived.
pub fn era(facts: TopicFacts<'_>) -> Result<Era, TopicRefusal> {
    if let Some(recorded) = facts.recorded
        && recorded != facts.configured
    {
        return Err(TopicRefusal::Isolation {
            recorded: recorded.as_str(),
            configured: facts.configured.as_str(),
        });
    }
    let Some((newest, held)) = facts.ledger.newest() else {
        return Ok(Era {
            generation: Generation::FIRST,
            is_new: true,
            closing: Vec::new(),
        });
    };
    if held.identity.agrees(facts.identity) {
        return Ok(Era {
            generation: newest,
            is_new: false,
            closing: closing_before(facts.ledger, newest),
        });
    }
    if let (Some(archived), Some(connected)) =
        (&held.identity.cluster_id, &facts.identity.cluster_id)
        && archived != connected
        && facts.accept_cluster != Some(connected)
    {
        return Err(TopicRefusal::ForeignCluster {
            archived: archived.clone(),
            connected: connected.clone(),
        });
    }
    let generation = facts.ledger.generation_for(facts.identity);
    if generation <= newest {
        return Err(TopicRefusal::EndedGeneration {
            identity: facts.identity.clone(),
            generation,
            newest,
        });
    }
    Ok(Era {
        generation,
        is_new: true,
        closing: closing_before(facts.ledger, generation),
    })
}

/// Entries of eras before `generation` whose end is not recorded yet.
fn closing_before(ledger: &Ledger, generation: Generation) -> Vec<Closing> {
    ledger
        .generations
        .range(..generation)
        .flat_map(|(number, era)| {
            era.partitions.iter().map(|(partition, entry)| Closing {
                generation: *number,
                identity: era.identity.clone(),
                partition: *partition,
                entry: *entry,
            })
        })
        .filter(|c| !ledger.is_closed(c.generation, c.partition))
        .collect()
}

/// What is known of a partition.
#[derive(Debug, Clone, Copy)]
pub struct PartitionFacts<'a> {
    /// The ledger's entry in the topic's era.
    pub entry: Option<&'a Entry>,
    /// The log's ends; none where the partition does not exist, or nobody answers for it now.
    pub bounds: Option<LogBounds>,
    /// Where the entry's leader epoch ended, where the entry has one and the broker knows it.
    pub epoch_end: Option<Offset>,
    /// What to do where Kafka was faster.
    pub on_gap: OnGap,
    /// When this is noticed.
    pub now: Millis,
}

/// How a partition is read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The next offset to read.
    pub offset: Offset,
    /// The epoch before it, for the broker to compare.
    pub leader_epoch: Option<i32>,
    /// The entry that what is read goes on from.
    pub base: Option<Entry>,
    /// What the next advance begins with: an interval that Kafka no longer has.
    pub gap: Option<Segment>,
    /// The epoch of the leader that was there before anything was read, where it said so.
    pub began_under: Option<i32>,
}

/// What becomes of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Read it.
    Start(Start),
    /// Records that were not archived are gone; the operator wants to know before anything goes on.
    StopGap(OffsetRange),
    /// The log was cut below what is archived.
    Truncated(Truncation),
    /// The broker's answers contradict each other (a leader that just changed): ask again.
    Unsettled,
    /// There is no such partition (yet, or any more), or nobody answers for it now: ask again.
    Absent,
}

/// How a log was cut below what is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the log was truncated: archived up to {next}, {} (unclean leader election, or a restored broker); the archive \
     holds records that Kafka lost", Where(*.end, *.leader_epoch)
)]
pub struct Truncation {
    /// The next offset to archive.
    pub next: Offset,
    /// Where the log, or the epoch, ends.
    pub end: Offset,
    /// The epoch that ended; none: the log itself is shorter.
    pub leader_epoch: Option<i32>,
}

struct Where(Offset, Option<i32>);

impl std::fmt::Display for Where {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            Some(epoch) => write!(f, "leader epoch {epoch} ended at {}", self.0),
            None => write!(f, "the log ends at {}", self.0),
        }
    }
}

/// Decides where a partition is read on.
pub fn partition(facts: PartitionFacts<'_>) -> Decision {
    let Some(bounds) = facts.bounds else {
        return Decision::Absent;
    };
    let Some(entry) = facts.entry.copied() else {
        return Decision::Start(Start {
            offset: if Mutant::StartAtEnd.is_planted() {
                bounds.end
            } else {
                bounds.log_start
            },
            leader_epoch: None,
            base: None,
            began_under: bounds.leader_epoch,
            gap: None,
        });
    };
    let next = entry.next;
    if Mutant::TruncationUnseen.is_planted() && next <= bounds.high_watermark {
        return Decision::Start(Start {
            offset: next,
            leader_epoch: None,
            base: Some(entry),
            began_under: bounds.leader_epoch,
            gap: None,
        });
    }
    if let Some(end) = facts.epoch_end
        && end < next
    {
        return Decision::Truncated(Truncation {
            next,
            end,
            leader_epoch: entry.leader_epoch,
        });
    }
    if next > bounds.high_watermark {
        // a new leader's high watermark may trail for a moment; the epoch's end does not
        return if facts.epoch_end.is_some() {
            Decision::Unsettled
        } else {
            Decision::Truncated(Truncation {
                next,
                end: bounds.high_watermark,
                leader_epoch: None,
            })
        };
    }
    match OffsetRange::new(next, bounds.log_start) {
        Err(_) => Decision::Start(Start {
            offset: next,
            leader_epoch: entry.leader_epoch,
            base: Some(entry),
            began_under: bounds.leader_epoch,
            gap: None,
        }),
        Ok(missing) if Mutant::GapTooLong.is_planted() && facts.on_gap == OnGap::Record => {
            Decision::Start(Start {
                offset: missing.end().next(),
                leader_epoch: None,
                base: Some(entry),
                began_under: bounds.leader_epoch,
                gap: Some(Segment::Gap {
                    start: missing.start(),
                    end: Some(missing.end().next()),
                    reason: GapReason::Retention,
                    at: facts.now,
                }),
            })
        }
        Ok(missing) => match facts.on_gap {
            OnGap::Stop => Decision::StopGap(missing),
            OnGap::Record => Decision::Start(Start {
                offset: bounds.log_start,
                leader_epoch: None,
                base: Some(entry),
                began_under: bounds.leader_epoch,
                gap: Some(Segment::Gap {
                    start: missing.start(),
                    end: Some(missing.end()),
                    reason: GapReason::Retention,
                    at: facts.now,
                }),
            }),
        },
    }
}

/// What a batch that is about to be committed is compared with.
#[derive(Debug, Clone, Copy)]
pub struct CommitFacts {
    /// The last row's offset, where the batch has rows.
    pub last_row: Option<Offset>,
    /// The leader epoch of the last row, or the base's.
    pub leader_epoch: Option<i32>,
    /// Where the batch ends.
    pub end: Offset,
    /// Where that epoch ended, where the broker knows it.
    pub epoch_end: Option<Offset>,
    /// The log's high watermark.
    pub high_watermark: Offset,
    /// The epoch of the leader that told the high watermark, where it says so.
    pub leaders_epoch: Option<i32>,
    /// The epoch of the leader that was there before reading began (see [`Start::began_under`]).
    pub began_under: Option<i32>,
    /// Whether offsets without rows lie before a row of a leader who came after they were read, for all that is known.
    pub has_unproven_hole: bool,
}

/// Whether a batch may be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitCheck {
    /// It may; with the epoch that the ledger keeps: only one that provably reaches to the batch's end, since a later
    /// leader's control records behind the last row would make it look truncated ever after. Where the last row's does not,
    /// it is the leader's under whom all of it was read: without any, a log that is cut below the end and grows again would
    /// not be noticed.
    Sound(Option<i32>),
    /// There are offsets without rows, and leaders changed while they were read: an unclean one may have records there. They lie
    /// behind what the last row's epoch reaches to, or before a row of a later leader. To be read again, from the ledger.
    Unproven,
    /// The log was cut below what the batch holds.
    Truncated(Truncation),
    /// The broker's answers contradict each other: ask again.
    Unsettled,
}

/// Decides whether a batch is still what the log says.
pub fn before_commit(facts: CommitFacts) -> CommitCheck {
    if Mutant::TruncationUnseen.is_planted() {
        return CommitCheck::Sound(facts.leader_epoch);
    }
    let after_row = facts.last_row.map(Offset::next);
    if let (Some(end), Some(row)) = (facts.epoch_end, after_row)
        && end < row
    {
        return CommitCheck::Truncated(Truncation {
            next: row,
            end,
            leader_epoch: facts.leader_epoch,
        });
    }
    if facts.high_watermark < facts.end {
        return match facts.epoch_end {
            Some(end) if end >= facts.end => CommitCheck::Unsettled,
            _ => CommitCheck::Truncated(Truncation {
                next: facts.end,
                end: facts.high_watermark,
                leader_epoch: None,
            }),
        };
    }
    if facts.has_unproven_hole {
        return CommitCheck::Unproven;
    }
    let reaches = match facts.epoch_end {
        Some(end) => end >= facts.end,
        None => after_row == Some(facts.end),
    };
    if reaches {
        return CommitCheck::Sound(facts.leader_epoch);
    }
    match facts.leaders_epoch {
        // brokers that do not tell: nothing can be proven then, nor later
        None => CommitCheck::Sound(None),
        // one leader all the time: answers may be old, and then name an older one
        Some(now) if facts.began_under == Some(now) && facts.leader_epoch <= Some(now) => {
            CommitCheck::Sound(Some(now))
        }
        Some(_) => CommitCheck::Unproven,
    }
}

#[cfg(test)]
mod tests;
