//! Which rows go into which row group. Pure.
//!
//! | the next partition's rows | go |
//! |---|---|
//! | fit into the row group that is open | into it |
//! | fit into an empty one | into the next |
//! | fit into none | into as many of their own as they need, about equally large |

use everlog_common::EventColumns;

use crate::files::PartitionRows;

/// How much goes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) rows: usize,
    /// Payload bytes. One row may have more.
    pub(super) bytes: usize,
}

impl Limits {
    /// Of a row group.
    pub(super) const ROW_GROUP: Self = Self {
        rows: 128 << 10,
        bytes: 16 << 20,
    };
    /// Of what is encoded at a time: a page ends between two such pieces at the latest.
    pub(super) const PIECE: Self = Self {
        rows: 16 << 10,
        bytes: 512 << 10,
    };

    fn hold(self, rows: usize, bytes: usize) -> bool {
        rows <= self.rows && bytes <= self.bytes
    }
}

/// Rows `from..from + len` of one batch of one of the items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) item: usize,
    pub(super) batch: usize,
    pub(super) from: usize,
    pub(super) len: usize,
}

/// Row groups in order, each as slices in order; no slice and no row group is empty.
pub(super) fn row_groups(items: &[PartitionRows], limits: Limits) -> Vec<Vec<Slice>> {
    let mut groups = Vec::new();
    let mut open: Vec<Slice> = Vec::new();
    let (mut open_rows, mut open_bytes) = (0, 0);
    for (item, partition) in items.iter().enumerate() {
        let rows: usize = partition.batches.iter().map(EventColumns::len).sum();
        let bytes: usize = partition.batches.iter().map(EventColumns::bytes).sum();
        let fits = limits.hold(rows, bytes);
        if !fits || !limits.hold(open_rows + rows, open_bytes + bytes) {
            groups.push(std::mem::take(&mut open));
            (open_rows, open_bytes) = (0, 0);
        }
        if fits {
            open.extend(whole(item, partition));
            open_rows += rows;
            open_bytes += bytes;
        } else {
            let parts = rows.div_ceil(limits.rows).max(bytes.div_ceil(limits.bytes));
            let even = Limits {
                rows: rows.div_ceil(parts),
                ..limits
            };
            groups.extend(cut(item, &partition.batches, even));
        }
    }
    groups.push(open);
    groups.retain(|g| !g.is_empty());
    groups
}

fn whole(item: usize, partition: &PartitionRows) -> impl Iterator<Item = Slice> {
    let batches = partition.batches.iter().enumerate();
    batches
        .filter(|(_, columns)| !columns.is_empty())
        .map(move |(batch, columns)| Slice {
            item,
            batch,
            from: 0,
            len: columns.len(),
        })
}

/// Cuts batches into pieces of at most so much, or of one row.
fn cut(item: usize, batches: &[EventColumns], limits: Limits) -> Vec<Vec<Slice>> {
    let mut pieces = Vec::new();
    let mut piece: Vec<Slice> = Vec::new();
    let mut left = limits;
    for (batch, columns) in batches.iter().enumerate() {
        let mut from = 0;
        while from < columns.len() {
            let mut len = take(columns, from, left);
            if len == 0 && piece.is_empty() {
                len = 1;
            }
            if len == 0 {
                pieces.push(std::mem::take(&mut piece));
                left = limits;
                continue;
            }
            let bytes = columns.slice(from, len).bytes();
            left.rows = left.rows.saturating_sub(len);
            left.bytes = left.bytes.saturating_sub(bytes);
            piece.push(Slice {
                item,
                batch,
                from,
                len,
            });
            from += len;
        }
    }
    pieces.push(piece);
    pieces
}

/// How many rows from `from` on are within the limits.
fn take(columns: &EventColumns, from: usize, limits: Limits) -> usize {
    let (mut fits, mut most) = (0, limits.rows.min(columns.len() - from));
    while fits < most {
        let tried = (fits + most).div_ceil(2);
        if columns.slice(from, tried).bytes() <= limits.bytes {
            fits = tried;
        } else {
            most = tried - 1;
        }
    }
    fits
}

/// Cuts a batch into pieces of at most so much, or of one row.
pub(super) fn pieces(columns: &EventColumns, limits: Limits) -> Vec<EventColumns> {
    let mut pieces = Vec::new();
    let mut from = 0;
    while from < columns.len() {
        let len = take(columns, from, limits).max(1);
        pieces.push(columns.slice(from, len));
        from += len;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use everlog_common::{
        EventColumnsBuilder, Generation, Offset, OffsetRange, Partition, TimestampType,
    };
    use proptest::prelude::*;

    use super::*;

    fn partition(number: i32, batches: &[Vec<usize>]) -> PartitionRows {
        let mut offset = 0;
        let batches = batches
            .iter()
            .map(|sizes| {
                let mut builder = EventColumnsBuilder::new();
                for size in sizes {
                    let value = vec![7; *size];
                    builder.push(
                        Offset::new(offset).unwrap(),
                        (0, TimestampType::Create),
                        None,
                        Some(&value),
                        std::iter::empty(),
                        None,
                    );
                    offset += 1;
                }
                builder.finish()
            })
            .collect();
        PartitionRows {
            generation: Generation::FIRST,
            partition: Partition::new(number).unwrap(),
            range: OffsetRange::new(Offset::ZERO, Offset::new(offset + 1).unwrap()).unwrap(),
            batches,
        }
    }

    const LIMITS: Limits = Limits {
        rows: 100,
        bytes: 100 * 60,
    };

    fn rows_of(groups: &[Vec<Slice>]) -> Vec<usize> {
        let rows = |group: &Vec<Slice>| group.iter().map(|s| s.len).sum();
        groups.iter().map(rows).collect()
    }

    #[test]
    fn small_partitions_share_a_row_group() {
        let items: Vec<PartitionRows> = (0..30).map(|p| partition(p, &[vec![1; 3]])).collect();
        let groups = row_groups(&items, LIMITS);
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].len(), 30);
    }

    #[test]
    fn row_groups_are_cut_at_partition_borders() {
        let items: Vec<PartitionRows> = (0..3).map(|p| partition(p, &[vec![1; 60]])).collect();
        let groups = row_groups(&items, LIMITS);
        let partitions: Vec<Vec<usize>> = groups
            .iter()
            .map(|g| g.iter().map(|s| s.item).collect())
            .collect();
        assert_eq!(partitions, [[0], [1], [2]]);
    }

    #[test]
    fn a_large_partition_has_row_groups_of_its_own_about_equally_large() {
        let items = [
            partition(0, &[vec![1; 5]]),
            partition(1, &[vec![1; 150], vec![1; 100]]),
            partition(2, &[vec![1; 5]]),
        ];
        assert_eq!(rows_of(&row_groups(&items, LIMITS)), [5, 84, 84, 82, 5]);
    }

    #[test]
    fn h20_a_record_larger_than_any_row_group_has_one_of_its_own() {
        let items = [partition(0, &[vec![1, 1, 50_000, 1]])];
        assert_eq!(rows_of(&row_groups(&items, LIMITS)), [1, 1, 1, 1]);
        let items = [partition(0, &[vec![50_000]]), partition(1, &[vec![1]])];
        assert_eq!(rows_of(&row_groups(&items, LIMITS)), [1, 1]);
    }

    proptest! {
        #[test]
        fn every_row_is_in_exactly_one_row_group_in_order(
            sizes in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(0_usize..3_000, 0..60), 0..4), 0..8)
        ) {
            let items: Vec<PartitionRows> = (0..).zip(&sizes).map(|(p, b)| partition(p, b)).collect();
            let groups = row_groups(&items, LIMITS);
            let mut seen = Vec::new();
            for group in &groups {
                prop_assert!(!group.is_empty());
                let rows: usize = group.iter().map(|s| s.len).sum();
                let bytes: usize = group.iter()
                    .map(|s| items[s.item].batches[s.batch].slice(s.from, s.len).bytes())
                    .sum();
                prop_assert!(LIMITS.hold(rows, bytes) || rows == 1);
                for slice in group {
                    let rows = slice.from..slice.from + slice.len;
                    seen.extend(rows.map(|r| (slice.item, slice.batch, r)));
                }
            }
            let all: Vec<(usize, usize, usize)> = sizes.iter().enumerate()
                .flat_map(|(i, batches)| batches.iter().enumerate()
                    .flat_map(move |(b, rows)| (0..rows.len()).map(move |r| (i, b, r))))
                .collect();
            prop_assert_eq!(seen, all);
        }
    }
}
