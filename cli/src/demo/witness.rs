//! What was produced, remembered independently of everything that is to be proved: per partition a count, the running
//! hash after every so many records, and what the business question needs.

use std::collections::BTreeMap;

use everlog_common::record::RunningHash;
use everlog_common::{
    EventColumns, EventColumnsBuilder, Ledger, Offset, Partition, Positions, TimestampType,
};

use super::clickstream::{Action, Click};

/// One partition's records, as a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum {
    /// How many.
    pub(super) count: u64,
    /// The running hash over them, in order.
    pub(super) hash: u64,
    /// Purchases among them.
    pub(super) purchases: u64,
}

/// Sums of a stream of records, per partition.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    partitions: BTreeMap<Partition, (RunningHashState, Sum)>,
}

#[derive(Debug, Clone)]
struct RunningHashState(RunningHash);

impl Default for RunningHashState {
    fn default() -> Self {
        Self(RunningHash::from(0))
    }
}

impl Tally {
    /// Takes in the next rows of a partition.
    pub(super) fn add(&mut self, partition: Partition, columns: &EventColumns) {
        let (hash, sum) = self.partitions.entry(partition).or_default();
        hash.0.update(columns);
        sum.hash = hash.0.value();
        sum.count += columns.len() as u64;
        for value in columns.values.iter().flatten() {
            if is_purchase(value) {
                sum.purchases += 1;
            }
        }
    }

    /// The sums so far.
    pub(super) fn sums(&self) -> BTreeMap<Partition, Sum> {
        self.partitions.iter().map(|(p, (_, s))| (*p, *s)).collect()
    }

    /// Records of all partitions.
    pub(super) fn count(&self) -> u64 {
        self.partitions.values().map(|(_, s)| s.count).sum()
    }

    /// Purchases of all partitions.
    pub(super) fn purchases(&self) -> u64 {
        self.partitions.values().map(|(_, s)| s.purchases).sum()
    }
}

/// Reads the answer out of the bytes that came back, not out of what was meant to be sent. Ids have a fixed width, so the
/// action has a fixed place.
fn is_purchase(value: &[u8]) -> bool {
    const BEFORE: &[u8] = br#"{"user_id":"user-0000","product_id":"product-0000","event_type":""#;
    value
        .get(BEFORE.len()..)
        .is_some_and(|rest| rest.starts_with(br#"purchase""#))
}

/// Everything that was produced, by partition and offset.
#[derive(Debug, Default)]
pub(super) struct Witness {
    partitions: BTreeMap<Partition, Seen>,
}

#[derive(Debug)]
struct Seen {
    hash: RunningHash,
    /// Purchases among the first `i` records, at index `i`.
    purchases: Vec<u32>,
    /// Rows that the hash does not hold yet.
    open: EventColumnsBuilder,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            hash: RunningHash::from(0),
            purchases: vec![0],
            open: EventColumnsBuilder::new(),
        }
    }
}

impl Seen {
    fn settle(&mut self) {
        if !self.open.is_empty() {
            self.hash.update(&self.open.finish());
        }
    }
}

/// Rows that are hashed together.
const CHUNK: usize = 1_024;

impl Witness {
    /// The next record of its partition; it will have the next offset.
    pub(super) fn saw(&mut self, click: &Click) {
        let Ok(partition) = Partition::new(click.partition) else {
            return;
        };
        let seen = self.partitions.entry(partition).or_default();
        let before = seen.purchases.last().copied().unwrap_or(0);
        let next = i64::try_from(seen.purchases.len() - 1)
            .ok()
            .and_then(|o| Offset::new(o).ok())
            .unwrap_or(Offset::ZERO);
        seen.purchases
            .push(before + u32::from(click.action == Action::Purchase));
        let headers = [(&b"source"[..], Some(click.device.as_bytes()))];
        seen.open.push(
            next,
            (click.timestamp_ms, TimestampType::Create),
            Some(click.key.as_bytes()),
            Some(click.value.as_bytes()),
            headers.into_iter(),
            None,
        );
        if seen.open.len() >= CHUNK {
            seen.settle();
        }
    }

    /// The sums of all that was produced.
    pub(super) fn sums(&mut self) -> BTreeMap<Partition, Sum> {
        self.partitions
            .iter_mut()
            .map(|(partition, seen)| {
                seen.settle();
                let sum = Sum {
                    count: seen.purchases.len() as u64 - 1,
                    hash: seen.hash.value(),
                    purchases: seen.purchases.last().copied().unwrap_or(0).into(),
                };
                (*partition, sum)
            })
            .collect()
    }

    /// Purchases among the records below `positions`.
    pub(super) fn purchases_below(&self, positions: &Positions) -> u64 {
        positions
            .iter()
            .filter_map(|(partition, position)| {
                let seen = self.partitions.get(partition)?;
                let at = usize::try_from(position.offset.get()).ok()?;
                seen.purchases.get(at).map(|p| u64::from(*p))
            })
            .sum()
    }
}

/// Sums by the ledger itself: what the archive says that it holds. It counts no purchases.
pub(super) fn sums_of_ledger(ledger: &Ledger) -> BTreeMap<Partition, Sum> {
    ledger
        .newest()
        .map(|(_, generation)| {
            generation
                .partitions
                .iter()
                .map(|(partition, entry)| {
                    let sum = Sum {
                        count: entry.rows,
                        hash: entry.hash,
                        purchases: 0,
                    };
                    (*partition, sum)
                })
                .collect()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use everlog_common::{Generation, Position};

    use super::super::clickstream::Clickstream;
    use super::*;

    fn columns(clicks: &[Click]) -> EventColumns {
        let mut builder = EventColumnsBuilder::new();
        for (i, click) in clicks.iter().enumerate() {
            builder.push(
                Offset::new(i64::try_from(i).unwrap()).unwrap(),
                (click.timestamp_ms, TimestampType::Create),
                Some(click.key.as_bytes()),
                Some(click.value.as_bytes()),
                [(&b"source"[..], Some(click.device.as_bytes()))].into_iter(),
                Some(0),
            );
        }
        builder.finish()
    }

    #[test]
    fn what_comes_back_sums_up_to_what_was_produced_and_a_swap_does_not() {
        let clicks: Vec<Click> = Clickstream::new(3, 1).take(3_000).collect();
        let mut witness = Witness::default();
        for click in &clicks {
            witness.saw(click);
        }
        let all = columns(&clicks);
        let partition = Partition::new(0).unwrap();
        let mut tally = Tally::default();
        tally.add(partition, &all.slice(0, 1_000));
        tally.add(partition, &all.slice(1_000, 2_000));
        assert_eq!(tally.sums(), witness.sums());
        assert_eq!(tally.count(), 3_000);

        let mut swapped = clicks.clone();
        swapped.swap(10, 11);
        let mut tally = Tally::default();
        tally.add(partition, &columns(&swapped));
        assert_ne!(tally.sums(), witness.sums());
        assert_eq!(tally.purchases(), witness.sums()[&partition].purchases);
    }

    #[test]
    fn purchases_are_known_at_every_position() {
        let clicks: Vec<Click> = Clickstream::new(3, 2).take(2_000).collect();
        let mut witness = Witness::default();
        for click in &clicks {
            witness.saw(click);
        }
        let zero: Vec<&Click> = clicks.iter().filter(|c| c.partition == 0).collect();
        let due = zero
            .iter()
            .take(500)
            .filter(|c| c.action == Action::Purchase)
            .count();
        let positions = Positions::from([(
            Partition::new(0).unwrap(),
            Position {
                generation: Generation::FIRST,
                offset: Offset::new(500).unwrap(),
            },
        )]);
        assert_eq!(witness.purchases_below(&positions), due as u64);
    }
}
