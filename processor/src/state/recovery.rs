//! What to do after a crash: a pure decision over what is there.
//!
//! The order of a checkpoint is
//!
//! ```text
//! 1. the epoch's file, created under a number that nobody else can use
//! 2. the outputs, one after the other, each with a marker in the same commit
//! 3. the local store, with the epoch's number in the same batch
//! 4. every so often a base image of the local store; then what lies before it is removed
//! ```
//!
//! so the files are the truth, outputs and local store follow them, and a crash between any two steps leaves them behind by
//! some epochs. Recovery goes forward only: an epoch whose file exists is committed wherever it is missing, by whoever comes
//! next. A number stands for one content for ever, so it does not matter who does it, or how often.

use std::collections::BTreeSet;

use super::epoch::Counts;
use crate::sink::Channel;

/// What an epoch's file says of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochCounts {
    /// The epoch.
    pub epoch: u64,
    /// Rows before it.
    pub before: Counts,
    /// Rows after it.
    pub after: Counts,
}

/// What an output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputFacts {
    /// Which.
    pub channel: Channel,
    /// Its marker's epoch and rows; none: nothing was ever committed.
    pub held: Option<(u64, u64)>,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The newest epoch's number.
    pub head: u64,
    /// Every epoch whose file exists.
    pub epochs: BTreeSet<u64>,
    /// Every epoch of which a whole base image exists.
    pub bases: BTreeSet<u64>,
    /// The epoch that the local store is at; none: there is no store of this very chain of epochs.
    pub local: Option<u64>,
    /// Counts of the newest epochs, ascending and without a hole up to the head: so far back as one of the outputs may
    /// miss something, or there are files.
    pub recent: Vec<EpochCounts>,
    /// The outputs.
    pub outputs: Vec<OutputFacts>,
}

/// How the local store gets to the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatePlan {
    /// It is there.
    Current,
    /// The epochs from here on are applied.
    Apply {
        /// The first.
        from: u64,
    },
    /// It is made anew: from a base image, or from nothing, and the epochs from here on.
    Rebuild {
        /// The image.
        base: Option<u64>,
        /// The first epoch after it.
        from: u64,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// To the local store.
    pub state: StatePlan,
    /// Which epochs to commit to which outputs, in this order.
    pub commits: Vec<(u64, Channel)>,
}

/// Why nothing can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Files are missing that the state cannot be made without.
    #[error(
        "the files of epochs {from} to {to} are missing, and no base image holds them: they were removed; bring them back, or begin the job anew under another version"
    )]
    Missing {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// The local store was at an epoch that the files do not reach.
    #[error(
        "the newest epoch is {head}, this machine has already applied epoch {local}: newer epochs were removed; bring them back, or begin the job anew under another version"
    )]
    LocalAhead {
        /// The newest epoch.
        head: u64,
        /// Where the local store is.
        local: u64,
    },
    /// An output misses rows that no file holds any more.
    #[error(
        "the output for {channel} holds {held} rows, and the rows from there to {first} are kept no longer: the output was removed or is another one; bring it back, or begin the job anew under another version"
    )]
    OutputBehind {
        /// Which.
        channel: Channel,
        /// Rows that it holds.
        held: u64,
        /// Rows before the oldest epoch that is kept.
        first: u64,
    },
    /// An output holds rows that the state knows nothing of.
    #[error(
        "the output for {channel} holds {held} rows up to epoch {epoch}, the state ends at {total} rows and epoch {head}: the state was removed or is another one; bring it back, or begin the job anew under another version"
    )]
    OutputAhead {
        /// Which.
        channel: Channel,
        /// Rows that it holds.
        held: u64,
        /// By which epoch.
        epoch: u64,
        /// Rows of the job.
        total: u64,
        /// The newest epoch.
        head: u64,
    },
    /// An output ends in the middle of an epoch, which no commit leaves behind.
    #[error(
        "the output for {channel} holds {held} rows, which is in the middle of epoch {epoch}: it was changed, or is another one; bring it back, or begin the job anew under another version"
    )]
    OutputTorn {
        /// Which.
        channel: Channel,
        /// Rows that it holds.
        held: u64,
        /// The epoch.
        epoch: u64,
    },
}

impl Counts {
    /// Of one output.
    pub fn of(self, channel: Channel) -> u64 {
        match channel {
            Channel::Rows => self.rows,
            Channel::Late => self.late,
            Channel::Dead => self.dead,
        }
    }
}

/// Decides.
pub fn decide(facts: &Facts) -> Result<Plan, Refusal> {
    let state = decide_state(facts)?;
    let mut commits = Vec::new();
    for output in &facts.outputs {
        decide_output(facts, output, &mut commits)?;
    }
    // Epoch by epoch, as without a crash; within an epoch in the order of the outputs.
    commits.sort_by_key(|(epoch, _)| *epoch);
    Ok(Plan { state, commits })
}

fn decide_state(facts: &Facts) -> Result<StatePlan, Refusal> {
    let head = facts.head;
    let all_from = |from: u64| {
        facts.epochs.range(from..=head).count() as u64 == (head + 1).saturating_sub(from)
    };
    match facts.local {
        Some(local) if local > head => return Err(Refusal::LocalAhead { head, local }),
        Some(local) if local == head => return Ok(StatePlan::Current),
        Some(local) if all_from(local + 1) => return Ok(StatePlan::Apply { from: local + 1 }),
        _ => {}
    }
    let bases = facts.bases.range(..=head).rev().copied().map(Some);
    let usable = bases
        .chain([None])
        .find(|base| all_from(base.unwrap_or(0) + 1));
    match usable {
        Some(base) => Ok(StatePlan::Rebuild {
            base,
            from: base.unwrap_or(0) + 1,
        }),
        None => {
            let newest = facts.bases.range(..=head).next_back().copied().unwrap_or(0);
            let missing = |n: &u64| !facts.epochs.contains(n);
            let from = (newest + 1..=head).find(missing).unwrap_or(newest + 1);
            let to = (from..=head).take_while(missing).last().unwrap_or(from);
            Err(Refusal::Missing { from, to })
        }
    }
}

fn decide_output(
    facts: &Facts,
    output: &OutputFacts,
    commits: &mut Vec<(u64, Channel)>,
) -> Result<(), Refusal> {
    let channel = output.channel;
    let (epoch, held) = output.held.unwrap_or((0, 0));
    let total = facts
        .recent
        .last()
        .map_or(0, |newest| newest.after.of(channel));
    if held > total || epoch > facts.head {
        return Err(Refusal::OutputAhead {
            channel,
            held,
            epoch,
            total,
            head: facts.head,
        });
    }
    let first = facts
        .recent
        .first()
        .map_or(0, |oldest| oldest.before.of(channel));
    if held < first {
        return Err(Refusal::OutputBehind {
            channel,
            held,
            first,
        });
    }
    for counts in &facts.recent {
        let (before, after) = (counts.before.of(channel), counts.after.of(channel));
        if before < held && held < after {
            return Err(Refusal::OutputTorn {
                channel,
                held,
                epoch: counts.epoch,
            });
        }
        if held <= before && before < after {
            commits.push((counts.epoch, channel));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
