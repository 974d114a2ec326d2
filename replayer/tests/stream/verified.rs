//! Verification against a log in memory: the archive of a log that was another one.

use everlog_common::TimestampType;
use everlog_kafka::memory::MemoryRecord;
use everlog_replayer::verify::{Check, Depth, Severity, VerifyRequest, verify};

use crate::support::{T, World, topic, tp};

fn record(text: &str, n: i64) -> MemoryRecord {
    MemoryRecord::value(text).at(1_000 + n, TimestampType::Create)
}

#[tokio::test(start_paused = true)]
async fn a_record_that_differs_is_found_at_its_offset_with_both_sides() {
    let (world, log, _) = World::in_memory();
    log.create_topic(&topic(T), 1);
    for n in 0..500 {
        log.append(&tp(T, 0), record(&format!("event {n}"), n));
    }
    world.commit_all(&topic(T), 100).await;
    let request = |depth| VerifyRequest {
        depth,
        ..VerifyRequest::new(topic(T))
    };
    for depth in [Depth::Quick, Depth::Sampled, Depth::Full] {
        let report = verify(request(depth), world.components(), &mut |_| {})
            .await
            .unwrap();
        assert!(report.holds(), "{report:?}");
        let compared = if depth == Depth::Quick { 0 } else { 500 };
        assert_eq!(report.records_compared, compared);
    }

    // The same cluster and topic by name and id, whose log says something else.
    let (other_world, other, _) = World::in_memory();
    other.create_topic(&topic(T), 1);
    for n in 0..500 {
        let text = match n {
            321 => "forged".to_owned(),
            _ => format!("event {n}"),
        };
        other.append(&tp(T, 0), record(&text, n));
    }
    let mut components = world.components();
    components.log = other_world.components().log;
    let report = verify(request(Depth::Sampled), components, &mut |_| {})
        .await
        .unwrap();
    assert_eq!(report.worst(), Some(Severity::Corruption), "{report:?}");
    let [finding] = &report.findings[..] else {
        panic!("{report:?}");
    };
    assert_eq!(finding.check, Check::Log);
    let (_, _, range) = finding.place.unwrap();
    assert_eq!((range.start().get(), range.end().get()), (321, 322));
    assert_eq!(finding.log.as_deref(), Some("value \"forged\""));
    assert_eq!(finding.archive.as_deref(), Some("value \"event 321\""));
}
