use proptest::prelude::*;

use super::*;

fn offset(v: i64) -> Offset {
    Offset::new(v).unwrap()
}

fn partition(v: i32) -> Partition {
    Partition::new(v).unwrap()
}

fn identity(topic: u128) -> Identity {
    Identity {
        cluster_id: Some("c1".to_owned()),
        topic_id: Some(TopicId(uuid::Uuid::from_u128(topic))),
    }
}

fn data(start: i64, end: i64, rows: u64) -> Segment {
    Segment::Data {
        range: OffsetRange::new(offset(start), offset(end)).unwrap(),
        rows,
    }
}

fn gap(start: i64, end: Option<i64>) -> Segment {
    Segment::Gap {
        start: offset(start),
        end: end.map(offset),
        reason: GapReason::Retention,
        at: Millis(1),
    }
}

fn advance(base: Option<Entry>, segments: Vec<Segment>) -> Advance {
    let rows: u64 = segments
        .iter()
        .map(|s| {
            if let Segment::Data { rows, .. } = s {
                *rows
            } else {
                0
            }
        })
        .sum();
    let hash = base.map_or(0, |b| b.hash);
    Advance {
        generation: Generation(0),
        identity: identity(1),
        partition: partition(0),
        base,
        segments,
        leader_epoch: Some(3),
        hash: if rows == 0 {
            hash
        } else {
            hash.wrapping_add(rows)
        },
    }
}

#[test]
fn a_new_partition_starts_at_the_logs_first_offset() {
    let ledger = Ledger::default()
        .apply(&[advance(None, vec![data(40, 50, 10)])])
        .unwrap();
    let entry = *ledger.entry(Generation(0), partition(0)).unwrap();
    assert_eq!(
        (entry.first, entry.next, entry.rows),
        (offset(40), offset(50), 10)
    );
}

#[test]
fn h03_offsets_without_rows_move_the_ledger() {
    let one = Ledger::default()
        .apply(&[advance(None, vec![data(0, 13, 5)])])
        .unwrap();
    let base = *one.entry(Generation(0), partition(0)).unwrap();
    let two = one
        .apply(&[advance(Some(base), vec![data(13, 17, 0)])])
        .unwrap();
    let entry = two.entry(Generation(0), partition(0)).unwrap();
    assert_eq!(
        (entry.next, entry.rows, entry.hash),
        (offset(17), 5, base.hash)
    );
}

#[test]
fn h27_a_writer_whose_base_was_moved_is_fenced() {
    let one = Ledger::default()
        .apply(&[advance(None, vec![data(0, 10, 10)])])
        .unwrap();
    // a second writer that also thinks the partition is new
    let refused = one
        .apply(&[advance(None, vec![data(0, 5, 5)])])
        .unwrap_err();
    assert!(matches!(refused[0], Refusal::Fenced { .. }), "{refused:?}");
    // same offsets, other content: the running hash tells them apart
    let mut base = *one.entry(Generation(0), partition(0)).unwrap();
    base.hash ^= 1;
    assert!(
        one.apply(&[advance(Some(base), vec![data(10, 12, 2)])])
            .is_err()
    );
}

#[test]
fn one_refusal_refuses_the_whole_commit_and_names_each() {
    let one = Ledger::default()
        .apply(&[advance(None, vec![data(0, 10, 10)])])
        .unwrap();
    let mut fresh = advance(None, vec![data(0, 1, 1)]);
    fresh.partition = partition(1);
    let refused = one
        .apply(&[advance(None, vec![data(0, 5, 5)]), fresh])
        .unwrap_err();
    assert_eq!(
        refused.iter().map(Refusal::partition).collect::<Vec<_>>(),
        vec![partition(0)]
    );
}

#[test]
fn h12_another_topic_id_is_the_next_generation() {
    let one = Ledger::default()
        .apply(&[advance(None, vec![data(0, 10, 10)])])
        .unwrap();
    assert_eq!(one.generation_for(&identity(1)), Generation(0));
    assert_eq!(one.generation_for(&identity(2)), Generation(1));
    let mut wrong = advance(None, vec![data(0, 3, 3)]);
    wrong.identity = identity(2);
    assert!(matches!(
        one.apply(&[wrong.clone()]).unwrap_err()[0],
        Refusal::Fenced { .. }
    ));
    wrong.generation = Generation(1);
    let two = one.apply(&[wrong]).unwrap();
    assert_eq!(two.newest().unwrap().0, Generation(1));
    assert_eq!(
        two.cut()[&partition(0)],
        Position {
            generation: Generation(1),
            offset: offset(3)
        }
    );
    assert!(two.descends_from(&one) && !one.descends_from(&two));
}

#[test]
fn a_topic_id_learnt_later_is_taken_into_the_ledger() {
    let mut first = advance(None, vec![data(0, 10, 10)]);
    first.identity.topic_id = None;
    let one = Ledger::default().apply(&[first]).unwrap();
    let base = *one.entry(Generation(0), partition(0)).unwrap();
    let two = one
        .apply(&[advance(Some(base), vec![data(10, 11, 1)])])
        .unwrap();
    assert_eq!(two.generations[&Generation(0)].identity, identity(1));
    assert_eq!(two.generation_for(&identity(9)), Generation(1));
}

#[test]
fn b24_a_gap_is_kept_with_reason_and_time() {
    let one = Ledger::default()
        .apply(&[advance(None, vec![data(0, 10, 10)])])
        .unwrap();
    let base = *one.entry(Generation(0), partition(0)).unwrap();
    let two = one
        .apply(&[advance(
            Some(base),
            vec![gap(10, Some(50)), data(50, 60, 4)],
        )])
        .unwrap();
    assert_eq!(two.gaps_of(Generation(0), partition(0)).len(), 1);
    assert_eq!(
        two.entry(Generation(0), partition(0)).unwrap().next,
        offset(60)
    );
    let base = *two.entry(Generation(0), partition(0)).unwrap();
    // an open gap closes a generation: it must be the last segment and does not move the position
    assert!(
        two.apply(&[advance(Some(base), vec![gap(60, None), data(60, 61, 1)])])
            .is_err()
    );
    let three = two
        .apply(&[advance(Some(base), vec![gap(60, None)])])
        .unwrap();
    assert_eq!(
        three.entry(Generation(0), partition(0)).unwrap().next,
        offset(60)
    );
    assert_eq!(Ledger::decode(&three.encode()).unwrap(), three);
}

#[test]
fn h12_an_ended_generation_is_closed_once_and_takes_no_more_rows() {
    let one = Ledger::default()
        .apply(&[advance(None, vec![data(0, 10, 10)])])
        .unwrap();
    let base = *one.entry(Generation(0), partition(0)).unwrap();
    let closing = advance(Some(base), vec![gap(10, None)]);
    let mut fresh = advance(None, vec![data(0, 3, 3)]);
    (fresh.identity, fresh.generation) = (identity(2), Generation(1));
    let two = one.apply(&[closing.clone(), fresh]).unwrap();
    // a zombie of the old era
    let late = advance(Some(base), vec![data(10, 12, 2)]);
    assert!(matches!(
        two.apply(&[late]).unwrap_err()[0],
        Refusal::Fenced { .. }
    ));
    // a second archiver that noticed the same
    assert_eq!(two.apply(&[closing]).unwrap(), two);
}

#[test]
fn h10_an_epoch_that_may_not_reach_to_the_end_is_not_kept() {
    let one = Ledger::default()
        .apply(&[advance(None, vec![data(0, 10, 10)])])
        .unwrap();
    let base = *one.entry(Generation(0), partition(0)).unwrap();
    assert_eq!(base.leader_epoch, Some(3));
    let mut trailing = advance(Some(base), vec![data(10, 12, 0)]);
    trailing.leader_epoch = None;
    let two = one.apply(&[trailing]).unwrap();
    assert_eq!(
        two.entry(Generation(0), partition(0)).unwrap().leader_epoch,
        None
    );
}

#[test]
fn malformed_advances_are_refused() {
    let bad = [
        vec![],
        vec![data(0, 10, 11)],
        vec![data(0, 10, 1), data(11, 12, 1)],
        vec![data(0, 10, 1), gap(10, Some(10))],
    ];
    for segments in bad {
        let refused = Ledger::default()
            .apply(&[advance(None, segments.clone())])
            .unwrap_err();
        assert!(
            matches!(refused[0], Refusal::Malformed { .. }),
            "{segments:?}"
        );
    }
    let twice = advance(None, vec![data(0, 1, 1)]);
    assert!(Ledger::default().apply(&[twice.clone(), twice]).is_err());
}

#[test]
fn a_thousand_partitions_stay_compact() {
    let mut ledger = Ledger::default();
    let mut era = GenerationLedger {
        identity: identity(1),
        ..Default::default()
    };
    for p in 0..1000 {
        let next = 1_000_000_000 + i64::from(p) * 7919;
        let entry = Entry {
            first: Offset::ZERO,
            next: offset(next),
            leader_epoch: Some(12),
            rows: next.unsigned_abs(),
            hash: 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(next.unsigned_abs()),
        };
        era.partitions.insert(partition(p), entry);
    }
    ledger.generations.insert(Generation(0), era);
    let text = ledger.encode();
    assert!(text.len() < 24 * 1000, "{} bytes", text.len());
    assert_eq!(Ledger::decode(&text).unwrap(), ledger);
}

#[test]
fn a_newer_version_is_refused_not_misread() {
    let error = Ledger::decode(r#"{"v":2,"anything":[]}"#).unwrap_err();
    assert!(matches!(error, LedgerFormatError::Version(2)), "{error}");
}

#[test]
fn a_ledger_of_more_rows_than_there_can_be_is_refused_so_that_no_sum_overflows() {
    let entry = Entry {
        first: offset(0),
        next: offset(i64::MAX),
        leader_epoch: None,
        rows: i64::MAX.unsigned_abs(),
        hash: 0,
    };
    let of = |partitions: i32| {
        let era = GenerationLedger {
            identity: identity(1),
            partitions: (0..partitions).map(|p| (partition(p), entry)).collect(),
        };
        let ledger = Ledger {
            generations: BTreeMap::from([(Generation(0), era)]),
            gaps: Vec::new(),
        };
        ledger.encode()
    };
    assert_eq!(Ledger::decode(&of(1)).unwrap().rows(), entry.rows);
    for partitions in [2, 3, 100] {
        let error = Ledger::decode(&of(partitions)).unwrap_err();
        assert!(error.to_string().contains("more rows than"), "{error}");
    }
}

fn entries() -> impl Strategy<Value = BTreeMap<Partition, Entry>> {
    prop::collection::btree_map(
        (0_i32..i32::MAX).prop_map(|p| Partition::new(p).unwrap()),
        (
            0_i64..1 << 62,
            0_u64..1 << 61,
            any::<u64>(),
            prop::option::of(0_i32..i32::MAX),
            any::<u64>(),
        )
            .prop_map(|(first, covered, rows, leader_epoch, hash)| Entry {
                first: Offset::new(first).unwrap(),
                next: Offset::new(first + i64::try_from(covered).unwrap()).unwrap(),
                leader_epoch,
                // all partitions together have fewer rows than there are offsets
                rows: if covered == 0 {
                    0
                } else {
                    rows % covered.min(1 << 50)
                },
                hash,
            }),
        0..40,
    )
}

proptest! {
    #[test]
    fn every_ledger_survives_its_stored_form(
        eras in prop::collection::vec(entries(), 0..4), topics in prop::collection::vec(any::<u128>(), 4),
    ) {
        let mut ledger = Ledger::default();
        for (i, partitions) in eras.into_iter().enumerate() {
            let number = Generation(u32::try_from(i).unwrap());
            ledger.generations.insert(number, GenerationLedger { identity: identity(topics[i]), partitions });
        }
        prop_assert_eq!(Ledger::decode(&ledger.encode()).unwrap(), ledger);
    }

    #[test]
    fn no_text_makes_the_decoder_panic(text in ".{0,200}", packed in prop::collection::vec(any::<u8>(), 0..200)) {
        use base64::Engine as _;
        let _ = Ledger::decode(&text);
        let b64 = base64::engine::general_purpose::STANDARD_NO_PAD.encode(&packed);
        let _ = Ledger::decode(&format!(r#"{{"v":1,"generations":[{{"generation":0,"partitions":"{b64}"}}]}}"#));
    }

    /// L2, L4 by a model: writers that read the ledger at different times propose; whatever the interleaving, the
    /// accepted data segments tile the offsets without overlap.
    #[test]
    fn p04_accepted_advances_never_overlap(
        steps in prop::collection::vec((0_usize..3, 0_i32..2, 1_i64..5, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let mut ledger = Ledger::default();
        let mut views = [Ledger::default(), Ledger::default(), Ledger::default()];
        let mut accepted: BTreeMap<Partition, Vec<(i64, i64)>> = BTreeMap::new();
        for (writer, p, len, refresh, is_gap) in steps {
            if refresh {
                views[writer] = ledger.clone();
            }
            let p = partition(p);
            let base = views[writer].entry(Generation(0), p).copied();
            let start = base.map_or(0, |b| b.next.get());
            let segment = if is_gap { gap(start, Some(start + len)) } else {
                data(start, start + len, len.unsigned_abs())
            };
            let mut proposal = advance(base, vec![segment]);
            proposal.partition = p;
            let parent = ledger.clone();
            match ledger.apply(&[proposal]) {
                Ok(next) => {
                    prop_assert!(next.descends_from(&parent));
                    accepted.entry(p).or_default().push((start, start + len));
                    ledger = next;
                }
                Err(refusals) => {
                    let held = parent.entry(Generation(0), p).copied();
                    prop_assert!(held != base, "refused without a rival: {:?}", refusals);
                }
            }
        }
        for runs in accepted.values() {
            prop_assert_eq!(runs[0].0, 0);
            for pair in runs.windows(2) {
                prop_assert_eq!(pair[0].1, pair[1].0);
            }
        }
    }
}
