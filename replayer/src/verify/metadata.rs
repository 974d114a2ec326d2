//! What metadata alone must satisfy. Pure.

use std::collections::BTreeMap;

use everlog_common::{Generation, Ledger, Offset, OffsetRange, Partition};
use everlog_table::archive::SnapshotInfo;
use everlog_table::files::FileRange;

use super::{Check, Finding, Severity};

/// The ledgers of main's history, oldest first, must each extend the one before.
pub(super) fn history(snapshots: &[SnapshotInfo]) -> (usize, Vec<Finding>) {
    let mut found = Vec::new();
    let on_main = snapshots.iter().filter(|s| s.on_main);
    let ledgers: Vec<(i64, &Ledger, Option<u64>)> = on_main
        .filter_map(|s| Some((s.snapshot_id, s.ledger.as_ref()?, s.rows)))
        .collect();
    for (id, ledger, rows) in &ledgers {
        if let Some(rows) = rows
            && *rows != ledger.rows()
        {
            found.push(finding(
                None,
                format!(
                    "snapshot {id} has {rows} rows by its summary, and {} by its ledger",
                    ledger.rows()
                ),
            ));
        }
    }
    for pair in ledgers.windows(2) {
        if let [(before_id, before, _), (id, after, _)] = pair {
            for (place, what) in shrunk(before, after) {
                let what = format!(
                    "from snapshot {before_id} to snapshot {id} the ledger does not only grow: {what}"
                );
                found.push(finding(place, what));
            }
        }
    }
    (ledgers.len(), found)
}

type Place = (Generation, Partition, OffsetRange);

fn finding(place: Option<Place>, what: String) -> Finding {
    Finding {
        check: Check::History,
        severity: Severity::Corruption,
        place,
        what,
        log: None,
        archive: None,
    }
}

/// In what `after` is not an extension of `before` (L2 of the ledger).
fn shrunk(before: &Ledger, after: &Ledger) -> Vec<(Option<Place>, String)> {
    let mut found = Vec::new();
    for (generation, era) in &before.generations {
        for (partition, old) in &era.partitions {
            let Some(new) = after.entry(*generation, *partition) else {
                let what = format!("generation {generation} partition {partition} is gone");
                found.push((None, what));
                continue;
            };
            let place = OffsetRange::new(new.next.min(old.next), new.next.max(old.next))
                .ok()
                .map(|range| (*generation, *partition, range));
            if new.next < old.next {
                found.push((
                    place,
                    format!(
                        "partition {partition} went from {} back to {}",
                        old.next, new.next
                    ),
                ));
            } else if new.rows < old.rows {
                found.push((
                    place,
                    format!(
                        "partition {partition} had {} rows, then {}",
                        old.rows, new.rows
                    ),
                ));
            } else if new.first != old.first {
                found.push((
                    None,
                    format!(
                        "partition {partition} began at {}, then at {}",
                        old.first, new.first
                    ),
                ));
            } else if new.rows == old.rows && new.hash != old.hash {
                found.push((
                    None,
                    format!("the hash of partition {partition} changed, and its rows did not"),
                ));
            } else if new.rows - old.rows > new.next.since(old.next) {
                found.push((
                    place,
                    format!(
                        "partition {partition} got {} rows for {} offsets",
                        new.rows - old.rows,
                        new.next.since(old.next)
                    ),
                ));
            }
        }
    }
    for gap in &before.gaps {
        if !after.gaps.contains(gap) {
            found.push((None, format!("the recorded gap of {gap} is gone")));
        }
    }
    found
}

/// What files cover, partition by partition, against the ledger. `unknown` are rows in files that do not say what they
/// cover: with any, a partition may well have fewer.
pub(super) fn coverage(
    ledger: &Ledger,
    ranges: &[(usize, FileRange)],
    unknown: u64,
) -> Vec<Finding> {
    let mut by_partition: BTreeMap<(Generation, Partition), Vec<(usize, FileRange)>> =
        BTreeMap::new();
    for (file, range) in ranges {
        by_partition
            .entry((range.generation, range.partition))
            .or_default()
            .push((*file, *range));
    }
    let mut found = Vec::new();
    let mut tell = |severity, place: Option<Place>, what: String| {
        found.push(Finding {
            check: Check::Coverage,
            severity,
            place,
            what,
            log: None,
            archive: None,
        });
    };
    for ((generation, partition), ranges) in &mut by_partition {
        ranges.sort_by_key(|(_, r)| (r.range.start(), r.range.end()));
        for pair in ranges.windows(2) {
            if let [(_, a), (_, b)] = pair
                && b.range.start() < a.range.end()
                && let Ok(both) =
                    OffsetRange::new(b.range.start(), b.range.end().min(a.range.end()))
            {
                let what = format!("two files cover offsets {both} of partition {partition}");
                tell(
                    Severity::Corruption,
                    Some((*generation, *partition, both)),
                    what,
                );
            }
        }
        if ledger.entry(*generation, *partition).is_none() {
            let what = format!(
                "files have rows of generation {generation} partition {partition}, which the ledger does not know"
            );
            tell(Severity::Corruption, None, what);
        }
    }
    for (generation, era) in &ledger.generations {
        for (partition, entry) in &era.partitions {
            let none = Vec::new();
            let ranges = by_partition
                .get(&(*generation, *partition))
                .unwrap_or(&none);
            let rows: u64 = ranges.iter().map(|(_, r)| r.rows).sum();
            let last = ranges.iter().map(|(_, r)| r.range.end()).max();
            if let Some(last) = last.filter(|last| *last > entry.next)
                && let Ok(beyond) = OffsetRange::new(entry.next, last)
            {
                let what = format!(
                    "a file covers offsets {beyond} of partition {partition}, beyond the ledger"
                );
                tell(
                    Severity::Corruption,
                    Some((*generation, *partition, beyond)),
                    what,
                );
            }
            if rows > entry.rows || (rows < entry.rows && unknown == 0) {
                let (severity, place) = if rows < entry.rows {
                    (Severity::Gap, widest_hole(entry.first, entry.next, ranges))
                } else {
                    (Severity::Corruption, None)
                };
                let what = format!(
                    "files have {rows} rows of partition {partition}, the ledger counts {}",
                    entry.rows
                );
                tell(
                    severity,
                    place.map(|range| (*generation, *partition, range)),
                    what,
                );
            }
        }
    }
    found
}

/// The largest interval of `[first, next)` that no file covers: where missing rows most likely were.
fn widest_hole(first: Offset, next: Offset, ranges: &[(usize, FileRange)]) -> Option<OffsetRange> {
    let mut at = first;
    let mut widest: Option<OffsetRange> = None;
    let ends = ranges
        .iter()
        .map(|(_, r)| (r.range.start(), r.range.end()))
        .chain([(next, next)]);
    for (start, end) in ends {
        if let Ok(hole) = OffsetRange::new(at, start.min(next).max(at))
            && widest.is_none_or(|w| hole.end().since(hole.start()) > w.end().since(w.start()))
        {
            widest = Some(hole);
        }
        at = at.max(end);
    }
    widest.filter(|hole| hole.end() > hole.start())
}

#[cfg(test)]
mod tests {
    use everlog_common::ledger::GenerationLedger;
    use everlog_common::{Entry, Millis};

    use super::*;

    fn offset(o: i64) -> Offset {
        Offset::new(o).unwrap()
    }

    fn p(p: i32) -> Partition {
        Partition::new(p).unwrap()
    }

    fn ledger(next: i64, rows: u64, hash: u64) -> Ledger {
        let mut era = GenerationLedger::default();
        era.partitions.insert(
            p(0),
            Entry {
                first: offset(0),
                next: offset(next),
                leader_epoch: None,
                rows,
                hash,
            },
        );
        let mut ledger = Ledger::default();
        ledger.generations.insert(Generation::FIRST, era);
        ledger
    }

    fn snapshots(ledgers: Vec<Ledger>) -> Vec<SnapshotInfo> {
        let infos = ledgers
            .into_iter()
            .enumerate()
            .map(|(i, ledger)| SnapshotInfo {
                snapshot_id: i64::try_from(i).unwrap(),
                parent_id: None,
                time: Millis(0),
                operation: "append".to_owned(),
                on_main: true,
                rows: Some(ledger.rows()),
                ledger: Some(ledger),
                refs: Vec::new(),
            });
        infos.collect()
    }

    fn range(start: i64, end: i64, rows: u64) -> FileRange {
        FileRange {
            generation: Generation::FIRST,
            partition: p(0),
            range: OffsetRange::new(offset(start), offset(end)).unwrap(),
            rows,
        }
    }

    #[test]
    fn a_history_that_grows_is_sound() {
        let (n, found) = history(&snapshots(vec![
            ledger(3, 3, 1),
            ledger(3, 3, 1),
            ledger(9, 5, 2),
        ]));
        assert_eq!((n, found), (3, vec![]));
    }

    #[test]
    fn whatever_does_not_grow_is_found() {
        let base = ledger(5, 4, 7);
        let mut without = ledger(5, 4, 7);
        without.generations.clear();
        for after in [
            ledger(4, 4, 7),
            ledger(6, 3, 7),
            ledger(6, 4, 8),
            ledger(6, 6, 8),
            without,
        ] {
            let (_, found) = history(&snapshots(vec![base.clone(), after.clone()]));
            assert_eq!(found.len(), 1, "{after:?}: {found:?}");
        }
        let mut lying = snapshots(vec![base]);
        lying[0].rows = Some(5);
        assert_eq!(history(&lying).1.len(), 1);
    }

    #[test]
    fn files_that_cover_what_the_ledger_counts_are_sound() {
        // [6, 8) is covered by a commit without rows
        let ranges = [(0, range(0, 6, 5)), (1, range(8, 10, 2))];
        assert_eq!(coverage(&ledger(10, 7, 0), &ranges, 0), vec![]);
    }

    #[test]
    fn a_missing_file_an_overlap_and_what_lies_beyond_are_found() {
        let ledger = ledger(10, 8, 0);
        let found = coverage(&ledger, &[(0, range(0, 4, 4)), (1, range(8, 10, 2))], 0);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].severity, Severity::Gap);
        let (_, _, hole) = found[0].place.unwrap();
        assert_eq!((hole.start().get(), hole.end().get()), (4, 8));
        let found = coverage(&ledger, &[(0, range(0, 6, 4)), (1, range(4, 10, 4))], 0);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].severity, Severity::Corruption);
        let found = coverage(&ledger, &[(0, range(0, 12, 8))], 0);
        assert_eq!(found.len(), 1, "{found:?}");
        let found = coverage(&ledger, &[(0, range(0, 10, 9))], 0);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            coverage(&ledger, &[(0, range(0, 4, 4))], 4),
            vec![],
            "the rest may be in the others"
        );
    }
}
