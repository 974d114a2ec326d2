//! What was produced, remembered independently of everything that is to be proved: per partition a count, the running
//! hash after every so many records, and what the business questions need; what a clean copy of it holds; and the sessions
//! in it, by a sort and a walk that know nothing of windows, watermarks or state.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};

use everlog_common::record::RunningHash;
use everlog_common::{
    EventColumns, EventColumnsBuilder, Ledger, Offset, Partition, Positions, TimestampType,
};

use super::clickstream::{Action, Click, Flaw, partition_of};

/// Partitions of the topic of clean events.
pub(super) const CLEAN_PARTITIONS: i32 = 8;

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
    const BEFORE: &[u8] = br#"{"event_id":"e00000000","user_id":"user-0000","product_id":"product-0000","event_type":""#;
    value
        .get(BEFORE.len()..)
        .and_then(|rest| rest.get(..9))
        .is_some_and(|word| word.eq_ignore_ascii_case(br#"purchase""#))
}

/// A partition's clean events, as a sum: how many, and a hash over their bytes in order.
pub(super) type CleanSum = (u64, u64);

/// Sums over the values alone, per partition: offsets and times of a derived topic are its own.
#[derive(Debug, Clone, Default)]
pub(super) struct CleanTally {
    partitions: BTreeMap<Partition, (u64, DefaultHasher)>,
}

impl CleanTally {
    /// Takes in the next value of a partition.
    pub(super) fn add(&mut self, partition: Partition, value: &[u8]) {
        let (count, hash) = self.partitions.entry(partition).or_default();
        *count += 1;
        hash.write(value);
        hash.write_u8(b'\n');
    }

    /// The sums so far.
    pub(super) fn sums(&self) -> BTreeMap<Partition, CleanSum> {
        let sum =
            |(p, (count, hash)): (&Partition, &(u64, DefaultHasher))| (*p, (*count, hash.finish()));
        self.partitions.iter().map(sum).collect()
    }
}

/// One session of a shopper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Session {
    /// The shopper's number.
    pub(super) shopper: u32,
    /// Its first event, in milliseconds since 1970.
    pub(super) start_ms: i64,
    /// A gap after its last event.
    pub(super) end_ms: i64,
    /// Events.
    pub(super) clicks: i64,
    /// Views among them.
    pub(super) views: i64,
    /// Purchases among them.
    pub(super) purchases: i64,
}

/// How sessions are made of events. Times are milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionRules {
    /// Events of a shopper that are further apart are of two sessions.
    pub(super) gap_ms: i64,
    /// A session is final so long after its end.
    pub(super) lateness_ms: i64,
    /// How far events of one partition may be out of order.
    pub(super) bound_ms: i64,
}

/// Everything that was produced, by partition and offset.
#[derive(Debug, Default)]
pub(super) struct Witness {
    partitions: BTreeMap<Partition, Seen>,
    clean: Clean,
}

/// What is left of it once copies and what is cut off are left out.
#[derive(Debug)]
struct Clean {
    /// Of how many partitions its topic is.
    partitions: i32,
    tally: CleanTally,
    /// The highest time in each of them.
    newest_ms: BTreeMap<i32, i64>,
    /// Shopper, time and action of each event.
    events: Vec<(u32, i64, Action)>,
    copies: u64,
    cut_off: u64,
}

impl Default for Clean {
    fn default() -> Self {
        Self {
            partitions: CLEAN_PARTITIONS,
            tally: CleanTally::default(),
            newest_ms: BTreeMap::new(),
            events: Vec::new(),
            copies: 0,
            cut_off: 0,
        }
    }
}

impl Clean {
    fn saw(&mut self, click: &Click) {
        match click.flaw {
            Flaw::Copy => self.copies += 1,
            Flaw::CutOff => self.cut_off += 1,
            Flaw::None => {
                let partition = partition_of(&click.key, self.partitions);
                if let Ok(partition) = Partition::new(partition) {
                    self.tally.add(partition, click.clean.as_bytes());
                }
                let newest = self.newest_ms.entry(partition).or_insert(i64::MIN);
                *newest = click.timestamp_ms.max(*newest);
                self.events
                    .push((click.shopper, click.timestamp_ms, click.action));
            }
        }
    }
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
        self.clean.saw(click);
        let seen = self.partitions.entry(partition).or_default();
        let before = seen.purchases.last().copied().unwrap_or(0);
        let next = i64::try_from(seen.purchases.len() - 1)
            .ok()
            .and_then(|o| Offset::new(o).ok())
            .unwrap_or(Offset::ZERO);
        seen.purchases
            .push(before + u32::from(click.says_purchase()));
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

    /// The sums of what is clean, by the partition that it belongs in.
    pub(super) fn clean_sums(&self) -> BTreeMap<Partition, CleanSum> {
        self.clean.tally.sums()
    }

    /// Events that are clean.
    pub(super) fn clean(&self) -> u64 {
        self.clean.events.len() as u64
    }

    /// Records that were there before.
    pub(super) fn copies(&self) -> u64 {
        self.clean.copies
    }

    /// Records that are cut off.
    pub(super) fn cut_off(&self) -> u64 {
        self.clean.cut_off
    }

    /// The sessions that are final by now, by shopper and time.
    pub(super) fn sessions(&self, rules: SessionRules) -> Vec<Session> {
        let newest = self.clean.newest_ms.values().min();
        let now = newest.map_or(i64::MIN, |newest| newest - rules.bound_ms - 1);
        let mut events = self.clean.events.clone();
        events.sort_unstable_by_key(|(shopper, at, _)| (*shopper, *at));
        let mut sessions = Vec::new();
        let mut open: Option<Session> = None;
        for (shopper, at, action) in events {
            // An open session ends a gap after its last event, so far.
            let goes_on = open.is_some_and(|s| s.shopper == shopper && at <= s.end_ms);
            if !goes_on {
                sessions.extend(open.take());
            }
            let session = open.get_or_insert(Session {
                shopper,
                start_ms: at,
                end_ms: at,
                clicks: 0,
                views: 0,
                purchases: 0,
            });
            session.end_ms = at + rules.gap_ms;
            session.clicks += 1;
            session.views += i64::from(action == Action::View);
            session.purchases += i64::from(action == Action::Purchase);
        }
        sessions.extend(open);
        sessions.retain(|session| session.end_ms + rules.lateness_ms <= now);
        sessions
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

    fn click(shopper: u32, timestamp_ms: i64, action: Action) -> Click {
        let key = format!("user-{shopper:04}");
        Click {
            partition: partition_of(&key, 1),
            key,
            value: String::new(),
            clean: format!("{shopper} {timestamp_ms}"),
            timestamp_ms,
            device: "web",
            shopper,
            action,
            flaw: Flaw::None,
        }
    }

    #[test]
    fn sessions_end_with_a_gap_and_are_final_once_time_has_passed_them() {
        let mut witness = Witness::default();
        let clicks = [
            (1, 100, Action::View),
            (2, 100, Action::View),
            (1, 120, Action::Purchase),
            (1, 110, Action::View), // late
            (1, 131, Action::View), // more than a gap after 120
            (2, 110, Action::View), // exactly a gap
        ];
        for (shopper, at, action) in clicks {
            witness.saw(&click(shopper, at, action));
        }
        // Time is what the slowest partition has: each is told of one shopper far ahead.
        let rules = SessionRules {
            gap_ms: 10,
            lateness_ms: 5,
            bound_ms: 3,
        };
        let ends = |witness: &Witness| -> Vec<(u32, i64, i64)> {
            let all = witness.sessions(rules).into_iter();
            all.filter(|s| s.shopper < 3)
                .map(|s| (s.shopper, s.start_ms, s.end_ms))
                .collect()
        };
        let mut tell_all = |at| {
            for shopper in 100..400 {
                witness.saw(&click(shopper, at, Action::View));
            }
            ends(&witness)
        };
        // 120 + 10 + 5 is 135; time is 3 + 1 behind
        assert_eq!(tell_all(138), [(2, 100, 120)]);
        assert_eq!(tell_all(139), [(1, 100, 130), (2, 100, 120)]);
        assert_eq!(tell_all(150), [(1, 100, 130), (1, 131, 141), (2, 100, 120)]);
        let first = witness.sessions(rules)[0];
        assert_eq!((first.clicks, first.views, first.purchases), (3, 2, 1));
    }

    #[test]
    fn what_is_clean_is_what_comes_once_and_whole() {
        let mut witness = Witness::default();
        let mut tally = CleanTally::default();
        let mut records = 0;
        for click in Clickstream::new(3, 4).take(20_000) {
            witness.saw(&click);
            records += 1;
            if click.flaw == Flaw::None {
                let partition = partition_of(&click.key, CLEAN_PARTITIONS);
                let value = click.value.replace("VIEW", "view");
                let value = value.replace("PURCHASE", "purchase");
                let value = value.replace("ADD_TO_CART", "add_to_cart");
                tally.add(Partition::new(partition).unwrap(), value.as_bytes());
            }
        }
        assert_eq!(
            witness.clean() + witness.copies() + witness.cut_off(),
            records
        );
        assert!(witness.copies() > 0 && witness.cut_off() > 0);
        assert_eq!(tally.sums(), witness.clean_sums());
    }

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
        let due = zero.iter().take(500).filter(|c| c.says_purchase()).count();
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
