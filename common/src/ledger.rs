//! The ledger: which offsets of which era of a topic a snapshot holds, and the rules by which it may change.
//!
//! Everything here is a value or a pure function. The committer applies [`Advance`]s to the ledger of the very
//! snapshot that its compare-and-swap names as parent; a refusal is the fence.
//!
//! | parent's entry for (generation, partition) | `advance.base` | verdict |
//! |---|---|---|
//! | none | none | accepted, `first` = start of the first segment |
//! | equal to `base` | some | accepted |
//! | anything else | anything else | [`Refusal::Fenced`] |
//!
//! Invariants
//! - L1 `first ≤ next`, `rows ≤ next − first`.
//! - L2 Applying an advance never lowers `next` or `rows` and never removes an entry, a generation or a gap.
//! - L3 Segments are contiguous: the first begins at the entry's `next`, each at its predecessor's end.
//! - L4 Two advances of which both expect the same base cannot both be accepted, unless they are one.

mod codec;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use codec::LedgerFormatError;

use crate::clock::Millis;
use crate::position::{Generation, Offset, OffsetRange, Partition, Position, Positions, TopicId};

/// Whose offsets a generation counts: what the broker says of itself and of the topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's id; none where the broker does not tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cluster_id: Option<String>,
    /// The topic's id; none before Kafka 2.8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub topic_id: Option<TopicId>,
}

impl Identity {
    /// Whether both may be the same incarnation: every part that both know is equal.
    pub fn agrees(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
        }
        same(self.cluster_id.as_ref(), other.cluster_id.as_ref())
            && same(self.topic_id.as_ref(), other.topic_id.as_ref())
    }

    /// This identity, with what only `other` knows filled in.
    fn merged(&self, other: &Self) -> Self {
        Self {
            cluster_id: self.cluster_id.clone().or_else(|| other.cluster_id.clone()),
            topic_id: self.topic_id.or(other.topic_id),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cluster {}",
            self.cluster_id.as_deref().unwrap_or("unknown")
        )?;
        match self.topic_id {
            Some(id) => write!(f, ", topic id {id}"),
            None => f.write_str(", topic id unknown"),
        }
    }
}

/// What the archive holds of one partition of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The log's first offset when archiving of this partition began.
    pub first: Offset,
    /// The next offset to archive. Everything in `[first, next)` is a row, a recorded gap, or an offset that the
    /// consumer protocol never delivers.
    pub next: Offset,
    /// A leader epoch that reached at least to `next` when it was archived, where known: lets the broker detect
    /// truncation (KIP-320). The last record's, unless offsets without rows of a later leader follow it: then the one of
    /// the leader at the time of the commit.
    pub leader_epoch: Option<i32>,
    /// Rows so far.
    pub rows: u64,
    /// [`crate::record::RunningHash`] over the rows so far.
    pub hash: u64,
}

/// One era of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GenerationLedger {
    /// Whose offsets these are.
    pub identity: Identity,
    /// Per partition.
    pub partitions: BTreeMap<Partition, Entry>,
}

/// Why an interval is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// Kafka had deleted the records (retention or DeleteRecords) before they were archived.
    Retention,
    /// The topic was re-created; what the old incarnation still held is unknown.
    Recreated,
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Retention => "retention",
            Self::Recreated => "recreated",
        })
    }
}

/// An interval that Kafka no longer had when its turn came. Kept for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The era.
    pub generation: Generation,
    /// The partition.
    pub partition: Partition,
    /// First missing offset.
    pub start: Offset,
    /// First offset that is not missing; none where nobody can know (the topic is gone).
    pub end: Option<Offset>,
    /// Why.
    pub reason: GapReason,
    /// When it was noticed.
    #[serde(rename = "at_ms")]
    pub at: Millis,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {} [{}, ", self.partition, self.start)?;
        match self.end {
            Some(end) => write!(f, "{end})")?,
            None => f.write_str("unknown)")?,
        }
        write!(f, " of generation {} ({})", self.generation, self.reason)
    }
}

/// One contiguous piece of an advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// Offsets that were read: their rows are in the commit's files; offsets without rows are none of the protocol's.
    Data {
        /// The offsets that the segment covers.
        range: OffsetRange,
        /// Rows in it.
        rows: u64,
    },
    /// Offsets that Kafka no longer has.
    Gap {
        /// First missing offset.
        start: Offset,
        /// First offset that is there again; none only as the last segment of a generation that is over.
        end: Option<Offset>,
        /// Why.
        reason: GapReason,
        /// When it was noticed.
        at: Millis,
    },
}

impl Segment {
    /// First offset.
    pub const fn start(&self) -> Offset {
        match self {
            Self::Data { range, .. } => range.start(),
            Self::Gap { start, .. } => *start,
        }
    }

    /// End, where known.
    pub const fn end(&self) -> Option<Offset> {
        match self {
            Self::Data { range, .. } => Some(range.end()),
            Self::Gap { end, .. } => *end,
        }
    }
}

/// What one commit adds to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The era it belongs to.
    pub generation: Generation,
    /// Whose offsets they are, as the broker said right before the commit.
    pub identity: Identity,
    /// The partition.
    pub partition: Partition,
    /// The ledger entry that the rows were read against; none for a partition new to the ledger. The fence.
    pub base: Option<Entry>,
    /// Contiguous pieces; never empty.
    pub segments: Vec<Segment>,
    /// Leader epoch of the last row, or what the base had, or the leader's own; none where none is known to reach to the advance's end
    /// (see [`Entry::leader_epoch`]).
    pub leader_epoch: Option<i32>,
    /// The running hash after the last row.
    pub hash: u64,
}

impl Advance {
    /// Where it begins: the base's `next`, or the first segment's start.
    pub fn start(&self) -> Option<Offset> {
        self.base
            .map(|b| b.next)
            .or_else(|| self.segments.first().map(Segment::start))
    }

    /// Where it ends, where that is known.
    pub fn end(&self) -> Option<Offset> {
        self.segments.iter().rev().find_map(Segment::end)
    }

    /// Whether it only says that an era is over.
    fn closes_only(&self) -> bool {
        matches!(self.segments[..], [Segment::Gap { end: None, .. }])
    }

    /// Rows in it.
    pub fn rows(&self) -> u64 {
        self.segments
            .iter()
            .map(|s| match s {
                Segment::Data { rows, .. } => *rows,
                Segment::Gap { .. } => 0,
            })
            .sum()
    }
}

/// Why an advance was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Somebody else moved this entry, or its generation: what was read is void and has to be read again from the
    /// ledger.
    #[error("partition {partition}: the ledger says {found}, this writer expected {expected}")]
    Fenced {
        /// The partition.
        partition: Partition,
        /// What the ledger holds.
        found: String,
        /// What the writer had read from.
        expected: String,
    },
    /// The advance is not well-formed: a bug of the writer, never of the table.
    #[error("partition {partition}: {what}")]
    Malformed {
        /// The partition.
        partition: Partition,
        /// Which rule it breaks.
        what: String,
    },
}

impl Refusal {
    /// The partition that was refused.
    pub const fn partition(&self) -> Partition {
        match self {
            Self::Fenced { partition, .. } | Self::Malformed { partition, .. } => *partition,
        }
    }
}

/// Which offsets a table holds, per generation and partition, and which are missing for good.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Per era; numbers are dense from 0.
    pub generations: BTreeMap<Generation, GenerationLedger>,
    /// Every recorded gap, in the order of recording.
    pub gaps: Vec<Gap>,
}

impl Ledger {
    /// The newest era, if anything was archived yet.
    pub fn newest(&self) -> Option<(Generation, &GenerationLedger)> {
        self.generations.iter().next_back().map(|(g, l)| (*g, l))
    }

    /// The entry of a partition in an era.
    pub fn entry(&self, generation: Generation, partition: Partition) -> Option<&Entry> {
        self.generations
            .get(&generation)?
            .partitions
            .get(&partition)
    }

    /// Rows of all entries: must equal the row count of the table's live files.
    pub fn rows(&self) -> u64 {
        self.generations
            .values()
            .flat_map(|g| g.partitions.values())
            .map(|e| e.rows)
            .sum()
    }

    /// The number under which `identity` is archived: the newest generation that agrees with it, else the highest
    /// plus one.
    pub fn generation_for(&self, identity: &Identity) -> Generation {
        self.generations
            .iter()
            .rev()
            .find(|(_, g)| g.identity.agrees(identity))
            .map(|(number, _)| *number)
            .or_else(|| self.newest().map(|(number, _)| number.next()))
            .unwrap_or(Generation::FIRST)
    }

    /// The Cut: where each partition of the newest generation goes on in the live log.
    pub fn cut(&self) -> Positions {
        let Some((generation, ledger)) = self.newest() else {
            return Positions::new();
        };
        ledger
            .partitions
            .iter()
            .map(|(p, e)| {
                (
                    *p,
                    Position {
                        generation,
                        offset: e.next,
                    },
                )
            })
            .collect()
    }

    /// Gaps of one partition of one era, in order of offset.
    pub fn gaps_of(&self, generation: Generation, partition: Partition) -> Vec<Gap> {
        let mut gaps: Vec<Gap> = self
            .gaps
            .iter()
            .filter(|g| g.generation == generation && g.partition == partition)
            .copied()
            .collect();
        gaps.sort_by_key(|g| g.start);
        gaps
    }

    /// Whether a partition of an era ended: what its incarnation still held is unknown for good.
    pub fn is_closed(&self, generation: Generation, partition: Partition) -> bool {
        self.gaps
            .iter()
            .any(|g| g.generation == generation && g.partition == partition && g.end.is_none())
    }

    /// Applies all of `advances`, or none: every refusal is reported.
    pub fn apply(&self, advances: &[Advance]) -> Result<Self, Vec<Refusal>> {
        let mut next = self.clone();
        let mut refusals = Vec::new();
        for advance in advances {
            if let Err(refusal) = next.apply_one(self, advance) {
                refusals.push(refusal);
            }
        }
        if refusals.is_empty() {
            Ok(next)
        } else {
            Err(refusals)
        }
    }

    /// Applies one advance to `self`, which descends from `parent` by earlier advances of the same commit.
    fn apply_one(&mut self, parent: &Self, advance: &Advance) -> Result<(), Refusal> {
        let partition = advance.partition;
        let generation = advance.generation;
        let malformed = |what: &str| Refusal::Malformed {
            partition,
            what: what.to_owned(),
        };

        // An old generation may only be closed by a gap; a live one must be what the identity maps to.
        let due = parent.generation_for(&advance.identity);
        if due != generation {
            return Err(Refusal::Fenced {
                partition,
                found: format!("generation {due} for {}", advance.identity),
                expected: format!("generation {generation}"),
            });
        }
        if parent
            .newest()
            .is_some_and(|(newest, _)| generation < newest)
            && !advance.closes_only()
        {
            return Err(Refusal::Fenced {
                partition,
                found: format!("generation {generation} ended"),
                expected: format!("generation {generation} goes on"),
            });
        }
        let held = parent.entry(generation, partition);
        if self.entry(generation, partition) != held {
            return Err(malformed("two advances of one partition in one commit"));
        }
        if held != advance.base.as_ref() {
            return Err(Refusal::Fenced {
                partition,
                found: describe(held),
                expected: describe(advance.base.as_ref()),
            });
        }
        let start = advance
            .start()
            .ok_or_else(|| malformed("an advance without segments"))?;
        let (end, rows) = walk(start, &advance.segments).map_err(|what| malformed(&what))?;
        let base = advance.base.unwrap_or(Entry {
            first: start,
            next: start,
            leader_epoch: None,
            rows: 0,
            hash: 0,
        });
        if rows == 0 && advance.hash != base.hash {
            return Err(malformed("the running hash moved without rows"));
        }
        let entry = Entry {
            first: base.first,
            next: end,
            leader_epoch: advance.leader_epoch,
            rows: base
                .rows
                .checked_add(rows)
                .ok_or_else(|| malformed("row count overflows"))?,
            hash: advance.hash,
        };
        let era = self.generations.entry(generation).or_default();
        era.identity = era.identity.merged(&advance.identity);
        era.partitions.insert(partition, entry);
        for segment in &advance.segments {
            if let Segment::Gap {
                start,
                end,
                reason,
                at,
            } = *segment
            {
                // an era is closed once, whoever says it again
                if end.is_none() && self.is_closed(generation, partition) {
                    continue;
                }
                self.gaps.push(Gap {
                    generation,
                    partition,
                    start,
                    end,
                    reason,
                    at,
                });
            }
        }
        Ok(())
    }

    /// Whether `self` may descend from `ancestor` (L2): the checker's rule R4, also asserted by the committer.
    pub fn descends_from(&self, ancestor: &Self) -> bool {
        ancestor.generations.iter().all(|(number, old)| {
            self.generations.get(number).is_some_and(|new| {
                new.identity.agrees(&old.identity)
                    && old.partitions.iter().all(|(p, o)| {
                        new.partitions.get(p).is_some_and(|n| {
                            n.first == o.first && n.next >= o.next && n.rows >= o.rows
                        })
                    })
            })
        }) && self.gaps.len() >= ancestor.gaps.len()
            && self.gaps[..ancestor.gaps.len()] == ancestor.gaps[..]
    }
}

fn describe(entry: Option<&Entry>) -> String {
    match entry {
        None => "nothing".to_owned(),
        Some(e) => format!(
            "next {} after {} rows (hash {:016x})",
            e.next, e.rows, e.hash
        ),
    }
}

/// Checks that segments are contiguous from `start`; gives their end and row count.
fn walk(start: Offset, segments: &[Segment]) -> Result<(Offset, u64), String> {
    let (mut at, mut rows) = (start, 0_u64);
    for (i, segment) in segments.iter().enumerate() {
        if segment.start() != at {
            return Err(format!(
                "a segment begins at {}, its predecessor ends at {at}",
                segment.start()
            ));
        }
        match segment {
            Segment::Data { range, rows: held } => {
                if *held > range.len() {
                    return Err(format!("{held} rows in {range}"));
                }
                rows += held;
                at = range.end();
            }
            Segment::Gap { end: Some(end), .. } => {
                if *end <= at {
                    return Err(format!("a gap [{at}, {end}) is empty"));
                }
                at = *end;
            }
            Segment::Gap { end: None, .. } => {
                if i + 1 != segments.len() {
                    return Err("a gap without an end is not the last segment".to_owned());
                }
            }
        }
    }
    if segments.is_empty() {
        Err("an advance without segments".to_owned())
    } else {
        Ok((at, rows))
    }
}

#[cfg(test)]
mod tests;
