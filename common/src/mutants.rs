//! Bugs on purpose: what the simulation's checker has to find, so that its silence about the true code means something.
//!
//! Each is planted where the true code decides otherwise, behind [`Mutant::is_planted`]. Without the feature `mutants`,
//! which no release has, that is `false` at compile time, and nothing of a bug is in the binary. With it, a simulation
//! plants one in its own thread ([`plant`]), one at a time.

/// A planted bug. The number is that of the trap in docs/testing.md, where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// P2, P4: an advance is applied whatever the ledger says, so that a zombie moves it back or twice on; and the second look
    /// at what came out is left out too.
    LedgerFenceOff,
    /// P1, P5, P7: after a refusal the same files are added behind what is there by now.
    RetryAddsAgain,
    /// P8: a conflict is taken for a failure, and what the attempt stored is deleted.
    DeleteOnConflict,
    /// P6, P9: an unknown outcome is taken for a failure, and the data files are deleted.
    DeleteOnUnknown,
    /// The commit names a file that was not stored.
    CommitBeforeFile,
    /// Every data file of a table partition has the same name.
    NameUsedAgain,
    /// Empty values become null on the way into the table.
    EmptyValueLost,
    /// Headers are stored in another order.
    HeadersReversed,
    /// Every timestamp is stored as CreateTime.
    TimestampTypeLost,
    /// Timestamps are stored in whole seconds.
    TimestampCut,
    /// Leader epochs are not stored.
    EpochLost,
    /// A file's bounds are those of its first row.
    BoundsOfFirstRow,
    /// The last row of a larger batch is not buffered.
    RowLost,
    /// B3, H3: the ledger goes on behind the last row, not where the reader is.
    MaxRowPlusOne,
    /// H15, H16: a partition without a ledger entry begins at its end.
    StartAtEnd,
    /// P2, H1: what retention took is passed without a word.
    GapUnrecorded,
    /// A gap is recorded one offset too long.
    GapTooLong,
    /// P12, H10: a truncated log is not noticed.
    TruncationUnseen,
    /// P12, H12: a topic that was created anew is not noticed before a commit.
    TopicIdUnseen,
    /// H4: aborted and open transactions are read.
    ReadsUncommitted,
    /// The running hash does not go on from the ledger's.
    HashFromZero,
    /// H29: files that nothing needs are removed at once, those of commits on their way included.
    OrphansAtOnce,
    /// Only the head's files count as needed.
    NeededByHeadOnly,
    /// H41: the tail begins one offset late.
    TailOneLate,
    /// H41: the tail begins one offset early, and nothing drops what was given before.
    TailOneEarly,
    /// The position after a batch is one offset early.
    PositionOneEarly,
    /// A file is not read whose first offset is the first that is wanted.
    FilePruned,
    /// Tombstones are read as empty values.
    TombstoneLost,
    /// H27: the replay ends with the archive, and says that this was all.
    TailLeftOut,
    /// H42: a partition that the log does not reach back for is tailed from its start.
    HoleUnseen,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::LedgerFenceOff,
        Self::RetryAddsAgain,
        Self::DeleteOnConflict,
        Self::DeleteOnUnknown,
        Self::CommitBeforeFile,
        Self::NameUsedAgain,
        Self::EmptyValueLost,
        Self::HeadersReversed,
        Self::TimestampTypeLost,
        Self::TimestampCut,
        Self::EpochLost,
        Self::BoundsOfFirstRow,
        Self::RowLost,
        Self::MaxRowPlusOne,
        Self::StartAtEnd,
        Self::GapUnrecorded,
        Self::GapTooLong,
        Self::TruncationUnseen,
        Self::TopicIdUnseen,
        Self::ReadsUncommitted,
        Self::HashFromZero,
        Self::OrphansAtOnce,
        Self::NeededByHeadOnly,
        Self::TailOneLate,
        Self::TailOneEarly,
        Self::PositionOneEarly,
        Self::FilePruned,
        Self::TombstoneLost,
        Self::TailLeftOut,
        Self::HoleUnseen,
    ];

    /// Whether this thread has the bug.
    #[cfg(feature = "mutants")]
    pub fn is_planted(self) -> bool {
        PLANTED.get() == Some(self)
    }

    /// Never, without the feature.
    #[cfg(not(feature = "mutants"))]
    #[inline]
    pub const fn is_planted(self) -> bool {
        false
    }
}

#[cfg(feature = "mutants")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// This thread has this bug from now on, and no other; none: it is sound again.
#[cfg(feature = "mutants")]
pub fn plant(mutant: Option<Mutant>) {
    PLANTED.set(mutant);
}
