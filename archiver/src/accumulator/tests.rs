use everlog_common::{EventColumnsBuilder, Ledger, TimestampType};
use proptest::prelude::*;

use super::*;

fn offset(v: i64) -> Offset {
    Offset::new(v).unwrap()
}

fn range(a: i64, b: i64) -> OffsetRange {
    OffsetRange::new(offset(a), offset(b)).unwrap()
}

fn p0() -> Partition {
    Partition::new(0).unwrap()
}

/// Rows at the offsets of `[a, b)` that are not divisible by 5: the others are holes.
fn columns(a: i64, b: i64) -> EventColumns {
    let mut builder = EventColumnsBuilder::new();
    for o in (a..b).filter(|o| o % 5 != 0) {
        let value = o.to_le_bytes();
        builder.push(
            offset(o),
            (o, TimestampType::Create),
            None,
            Some(&value),
            [].into_iter(),
            Some(1),
        );
    }
    builder.finish()
}

fn start(base: Option<Entry>, at: i64, gap: Option<Segment>) -> Start {
    Start {
        offset: offset(at),
        leader_epoch: None,
        base,
        began_under: None,
        gap,
    }
}

fn offsets(cut: &Cut) -> Vec<i64> {
    cut.batches
        .iter()
        .flat_map(|b| b.offsets.values().to_vec())
        .collect()
}

#[test]
fn what_was_read_before_is_dropped_and_a_skipped_offset_is_an_error() {
    let mut buffer = Buffer::new(&start(None, 10, None));
    assert!(buffer.accept(range(10, 20), columns(10, 20)).unwrap() > 0);
    assert_eq!(buffer.accept(range(12, 20), columns(12, 20)).unwrap(), 0);
    buffer.accept(range(15, 25), columns(15, 25)).unwrap();
    assert_eq!(
        buffer.accept(range(26, 27), columns(26, 27)),
        Err(Hole {
            expected: offset(25),
            found: offset(26)
        })
    );
    let cut = buffer.cut(p0()).unwrap();
    assert_eq!(
        offsets(&cut),
        vec![11, 12, 13, 14, 16, 17, 18, 19, 21, 22, 23, 24]
    );
    assert_eq!((cut.range, cut.end()), (Some(range(10, 25)), offset(25)));
    cut.seal().unwrap();
}

#[test]
fn h03_an_end_of_partition_behind_control_records_is_an_advance_without_rows() {
    let mut buffer = Buffer::new(&start(None, 10, None));
    buffer.accept(range(10, 13), EventColumns::empty()).unwrap();
    assert_eq!((buffer.bytes(), buffer.pending_rows()), (0, 0));
    let cut = buffer.cut(p0()).unwrap();
    let advance = cut.advance(
        Generation(0),
        &Identity::default(),
        None,
        cut.seal().unwrap(),
    );
    assert_eq!(advance.hash, 0);
    let ledger = Ledger::default().apply(&[advance]).unwrap();
    let entry = ledger.entry(Generation(0), p0()).unwrap();
    assert_eq!((entry.next, entry.rows), (offset(13), 0));
    assert!(cut.partition_rows(Generation(0)).is_none());
}

#[test]
fn one_cut_at_a_time_and_the_next_goes_on_from_what_it_made() {
    let mut buffer = Buffer::new(&start(None, 0, None));
    buffer.accept(range(0, 4), columns(0, 4)).unwrap();
    let first = buffer.cut(p0()).unwrap();
    buffer.accept(range(4, 9), columns(4, 9)).unwrap();
    assert!(buffer.cut(p0()).is_none() && buffer.is_in_flight());
    let advance = first.advance(
        Generation(0),
        &Identity::default(),
        Some(1),
        first.seal().unwrap(),
    );
    let ledger = Ledger::default().apply(&[advance]).unwrap();
    assert!(buffer.committed(*ledger.entry(Generation(0), p0()).unwrap()));
    let second = buffer.cut(p0()).unwrap();
    assert_eq!(offsets(&second), vec![4, 6, 7, 8]);
    let advance = second.advance(
        Generation(0),
        &Identity::default(),
        Some(1),
        second.seal().unwrap(),
    );
    let ledger = ledger.apply(&[advance]).unwrap();
    let entry = *ledger.entry(Generation(0), p0()).unwrap();
    assert!(buffer.committed(entry) && buffer.is_settled() && buffer.bytes() == 0);

    let mut whole = RunningHash::from(0);
    whole.update(&columns(0, 9));
    assert_eq!(entry.hash, whole.value());
}

#[test]
fn a_landed_entry_that_is_not_what_was_cut_voids_the_buffer() {
    let mut buffer = Buffer::new(&start(None, 0, None));
    buffer.accept(range(0, 4), columns(0, 4)).unwrap();
    buffer.cut(p0()).unwrap();
    let entry = Entry {
        first: offset(0),
        next: offset(3),
        leader_epoch: None,
        rows: 3,
        hash: 1,
    };
    assert!(!buffer.committed(entry));
    assert!(!buffer.committed(entry));
}

#[test]
fn crumbs_are_put_together() {
    let mut buffer = Buffer::new(&start(None, 1, None));
    for o in 1..2000 {
        buffer.accept(range(o, o + 1), columns(o, o + 1)).unwrap();
    }
    assert!(buffer.pending.batches.len() <= CRUMBS_MAX + 2);
    assert_eq!(buffer.pending_rows(), 1600);
    let bytes: usize = buffer.pending.batches.iter().map(EventColumns::bytes).sum();
    let overhead = buffer.pending.batches.len() * BATCH_OVERHEAD_BYTES;
    assert_eq!(buffer.bytes(), bytes + overhead);
    let cut = buffer.cut(p0()).unwrap();
    cut.seal().unwrap();
    assert_eq!(
        offsets(&cut),
        offsets(&Cut {
            batches: vec![columns(1, 2000)],
            ..cut.clone()
        })
    );
}

#[test]
fn rows_outside_of_their_range_are_found_before_they_are_written() {
    let mut buffer = Buffer::new(&start(None, 0, None));
    buffer.accept(range(0, 4), columns(0, 9)).unwrap();
    assert!(buffer.cut(p0()).unwrap().seal().is_err());
    let mut buffer = Buffer::new(&start(None, 0, None));
    buffer.accept(range(0, 4), columns(0, 4)).unwrap();
    buffer.accept(range(4, 9), columns(2, 9)).unwrap();
    assert!(buffer.cut(p0()).unwrap().seal().is_err());
}

#[derive(Debug, Clone)]
enum Step {
    /// The reader brings so many offsets, beginning so far before the position.
    Fetch {
        back: i64,
        len: i64,
    },
    Cut,
    /// The cut lands, or a rival was first and has archived so many offsets.
    Land {
        rival: Option<i64>,
    },
    /// Crash, or the partition is taken away and comes back.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            4 => (0_i64..6, 1_i64..12).prop_map(|(back, len)| Step::Fetch { back, len }),
            2 => Just(Step::Cut),
            3 => prop::option::weighted(0.2, 1_i64..9).prop_map(|rival| Step::Land { rival }),
            1 => Just(Step::Restart),
        ],
        1..80,
    )
}

proptest! {
    /// Whatever the batch borders, cuts, fences and restarts: what was accepted tiles the offsets and holds every row
    /// of the log once, in order, and the ledger's hash is that of the whole log.
    #[test]
    fn p01_segments_tile_and_rows_come_once(steps in steps(), first in 0_i64..20) {
        let mut ledger = Ledger::default();
        let mut archived: Vec<i64> = Vec::new();
        let mut commit = |ledger: &mut Ledger, cut: &Cut| {
            let advance = cut.advance(Generation(0), &Identity::default(), None, cut.seal().unwrap());
            let next = ledger.apply(&[advance]);
            if let Ok(next) = next {
                *ledger = next;
                archived.extend(offsets(cut));
                true
            } else { false }
        };
        let recover = |ledger: &Ledger| {
            let base = ledger.entry(Generation(0), p0()).copied();
            Buffer::new(&start(base, base.map_or(first, |b| b.next.get()), None))
        };
        let mut buffer = recover(&ledger);
        let mut flying: Option<Cut> = None;
        for step in steps {
            match step {
                Step::Fetch { back, len } => {
                    let from = (buffer.position().get() - back).max(first);
                    buffer.accept(range(from, from + len), columns(from, from + len)).unwrap();
                }
                Step::Cut => if let Some(cut) = buffer.cut(p0()) { flying = Some(cut); },
                Step::Land { rival } => {
                    let Some(cut) = flying.take() else { continue };
                    if let Some(len) = rival {
                        let mut other = recover(&ledger);
                        let at = other.position().get();
                        other.accept(range(at, at + len), columns(at, at + len)).unwrap();
                        prop_assert!(commit(&mut ledger, &other.cut(p0()).unwrap()));
                        prop_assert!(!commit(&mut ledger, &cut), "fenced");
                        buffer = recover(&ledger);
                    } else {
                        prop_assert!(commit(&mut ledger, &cut));
                        prop_assert!(buffer.committed(*ledger.entry(Generation(0), p0()).unwrap()));
                    }
                }
                Step::Restart => {
                    // a commit on its way may still land, or not
                    if let Some(cut) = flying.take() && cut.rows() % 2 == 0 { commit(&mut ledger, &cut); }
                    buffer = recover(&ledger);
                }
            }
        }
        let next = ledger.entry(Generation(0), p0()).map_or(first, |e| e.next.get());
        let expected: Vec<i64> = (first..next).filter(|o| o % 5 != 0).collect();
        prop_assert_eq!(archived, expected);
        let mut whole = RunningHash::from(0);
        whole.update(&columns(first, next));
        prop_assert_eq!(ledger.entry(Generation(0), p0()).map_or(0, |e| e.hash), whole.value());
    }
}
