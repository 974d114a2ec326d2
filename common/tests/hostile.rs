//! What is stored as text and comes back from anywhere: ledgers, names, positions.

use everlog_common::ledger::GenerationLedger;
use everlog_common::{
    Entry, Gap, GapReason, Generation, Identity, Ledger, Millis, Offset, Partition, Position,
    TopicId, TopicName,
};
use everlog_hostile::{feed, feed_text};

fn ledger() -> Ledger {
    let entry = |next: i64| Entry {
        first: Offset::new(3).expect("an offset"),
        next: Offset::new(next).expect("an offset"),
        leader_epoch: Some(7),
        rows: 5,
        hash: 0x0123_4567_89ab_cdef,
    };
    let era = |partitions: i32| GenerationLedger {
        identity: Identity {
            cluster_id: Some("4L6g3nShT-eMCtK--X86sw".to_owned()),
            topic_id: Some(TopicId(
                "b1d7f7ce-5d0c-4c5e-9b6e-0123456789ab"
                    .parse()
                    .expect("a UUID"),
            )),
        },
        partitions: (0..partitions)
            .map(|p| {
                (
                    Partition::new(p * 3).expect("a partition"),
                    entry(i64::from(p) + 1000),
                )
            })
            .collect(),
    };
    Ledger {
        generations: [(Generation(0), era(2)), (Generation(1), era(40))].into(),
        gaps: vec![Gap {
            generation: Generation(0),
            partition: Partition::new(3).expect("a partition"),
            start: Offset::new(100).expect("an offset"),
            end: None,
            reason: GapReason::Recreated,
            at: Millis(1_760_000_000_000),
        }],
    }
}

#[test]
fn any_text_is_a_ledger_that_is_written_the_same_again_or_refused() {
    let texts = [ledger().encode(), Ledger::default().encode()];
    let corpus = [texts[0].as_str(), &texts[1], r#"{"v":1,"generations":[]}"#];
    feed_text("ledger", &corpus, |text| {
        if let Ok(ledger) = Ledger::decode(text) {
            assert_eq!(
                Ledger::decode(&ledger.encode()).expect("its own form"),
                ledger
            );
            assert!(i64::try_from(ledger.rows()).is_ok());
            let _ = ledger.cut();
        }
    });
}

#[test]
fn packed_partitions_are_entries_or_refused() {
    // straight to the packed bytes: base64 seldom survives a change
    let text = ledger().encode();
    let packed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let packed = packed["generations"][1]["partitions"]
        .as_str()
        .expect("text")
        .to_owned();
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD_NO_PAD, packed)
        .expect("base64");
    let zeroes = [0; 60];
    feed(
        "packed ledger",
        &[bytes.as_slice(), &zeroes, &[0x80; 30]],
        |bytes| {
            let packed =
                base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, bytes);
            let text =
                format!(r#"{{"v":1,"generations":[{{"generation":0,"partitions":"{packed}"}}]}}"#);
            if let Ok(ledger) = Ledger::decode(&text) {
                assert_eq!(
                    Ledger::decode(&ledger.encode()).expect("its own form"),
                    ledger
                );
            }
        },
    );
}

#[test]
fn any_text_is_a_name_or_a_position_or_refused() {
    feed_text(
        "topic name",
        &["clickstream.raw", "orders-1_x", ".", ".."],
        |text| {
            if let Ok(name) = TopicName::new(text) {
                assert_eq!(name.as_str(), text);
                assert!(
                    text.len() <= 249
                        && text
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                );
                assert!(!matches!(text, "." | ".."));
            }
        },
    );
    feed_text("position", &[r#"{"generation":3,"offset":17}"#], |text| {
        if let Ok(position) = serde_json::from_str::<Position>(text) {
            let written = serde_json::to_string(&position).expect("JSON");
            assert_eq!(
                serde_json::from_str::<Position>(&written).expect("its own form"),
                position
            );
        }
    });
    feed_text(
        "topic id",
        &[r#""b1d7f7ce-5d0c-4c5e-9b6e-0123456789ab""#],
        |text| {
            if let Ok(id) = serde_json::from_str::<TopicId>(text) {
                assert_eq!(
                    serde_json::to_string(&id).expect("JSON").trim_matches('"'),
                    id.to_string()
                );
            }
        },
    );
}
