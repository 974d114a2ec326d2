//! Whether an epoch may be committed, decided from facts: no I/O here.
//!
//! A version's rows are one sequence, the same in every run, and an epoch brings a numbered piece of it. So the number of
//! rows that the branch's head counts says what there is, whichever process put it there, and in epochs of whatever size.

use super::Marker;

/// What to do with an epoch, given the marker at the head of its branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Commit it on this very head.
    Proceed,
    /// Its rows are there already, or it has none: a reply was lost, or a crash came between commit and note.
    AlreadyCommitted,
    /// It must not be committed.
    Refused(Refusal),
}

/// Why an epoch is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The branch has rows of the epoch, and not all, or not all that came before it.
    OutOfStep {
        /// Rows that the epoch builds on.
        before: u64,
        /// Rows with it.
        after: u64,
        /// Rows at the branch's head.
        found: u64,
    },
    /// The version was dropped while it was running.
    Dropped,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfStep {
                before,
                after,
                found,
            } => write!(
                f,
                "its branch holds {found} rows, the epoch brings rows {before} to {after}: another process runs this version too, or state and table are not of one run; run one process per version, or begin anew under another version"
            ),
            Self::Dropped => write!(
                f,
                "the version was dropped from the table; stop this process, or run it under a new version"
            ),
        }
    }
}

/// Decides about an epoch that brings rows `rows_before` to `epoch.rows`. `registered`: the table knows the version.
pub fn decide(registered: bool, head: Option<&Marker>, rows_before: u64, epoch: &Marker) -> Step {
    if !registered {
        return Step::Refused(Refusal::Dropped);
    }
    let found = head.map_or(0, |marker| marker.rows);
    if found >= epoch.rows {
        Step::AlreadyCommitted
    } else if found == rows_before {
        Step::Proceed
    } else {
        Step::Refused(Refusal::OutOfStep {
            before: rows_before,
            after: epoch.rows,
            found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(epoch: u64, rows: u64) -> Marker {
        Marker {
            job: "sessions".to_owned(),
            version: "v1".to_owned(),
            epoch,
            rows,
            positions: format!("p{epoch}"),
            watermark: None,
            engine: "0".to_owned(),
        }
    }

    #[test]
    fn what_comes_next_goes_on_and_what_is_there_is_done() {
        let head = marker(4, 10);
        assert_eq!(decide(true, Some(&head), 10, &marker(5, 12)), Step::Proceed);
        assert_eq!(decide(true, None, 0, &marker(1, 3)), Step::Proceed);
        let done = Step::AlreadyCommitted;
        assert_eq!(decide(true, Some(&head), 8, &marker(4, 10)), done);
        // of another process that cut the sequence elsewhere
        assert_eq!(decide(true, Some(&head), 6, &marker(9, 9)), done);
        assert_eq!(decide(true, Some(&head), 10, &marker(5, 10)), done);
        assert_eq!(decide(true, None, 0, &marker(1, 0)), done);
    }

    #[test]
    fn a_piece_that_does_not_follow_is_refused() {
        let head = marker(4, 10);
        for (before, after) in [(11, 12), (9, 12), (0, 11)] {
            let refused = Step::Refused(Refusal::OutOfStep {
                before,
                after,
                found: 10,
            });
            assert_eq!(
                decide(true, Some(&head), before, &marker(5, after)),
                refused
            );
        }
        assert_eq!(
            decide(false, Some(&head), 10, &marker(5, 12)),
            Step::Refused(Refusal::Dropped)
        );
    }
}
