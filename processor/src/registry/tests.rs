use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Generation, Offset, Partition, Position};
use object_store::memory::InMemory;

use super::*;

fn version(topic: &str) -> Version {
    Version {
        output: Output::Branch {
            table: "sessions".to_owned(),
        },
        fingerprint: "f".to_owned(),
        engine: "0.1".to_owned(),
        created_ms: 1,
        sql: "SELECT 1".to_owned(),
        topic: topic.to_owned(),
        late: None,
        dead_letter: None,
        from: None,
        roles: None,
        schema: None,
    }
}

fn storage() -> Storage {
    Storage::from_store(Arc::new(InMemory::new()))
}

fn compared(left: &str, right: &str, hours: i64, agree: bool) -> Compared {
    Compared {
        left: left.to_owned(),
        right: right.to_owned(),
        from_ms: 0,
        to_ms: hours * 3_600_000,
        left_rows: 1,
        right_rows: 1,
        share: 1.0,
        agree,
        at_ms: 5,
    }
}

#[tokio::test]
async fn the_first_version_is_active_and_a_version_stays_what_it_is() {
    let storage = storage();
    let registry = Registry::new(storage.clone(), "lake://jobs/", "sessions");
    assert_eq!(registry.read().await.expect("read"), None);
    assert_eq!(registry.get().await.expect_err("none").exit_status(), 2);
    registry
        .register("v1", &version("clicks"))
        .await
        .expect("registered");
    registry
        .register("v2", &version("clicks"))
        .await
        .expect("registered");
    registry
        .register("v1", &version("clicks"))
        .await
        .expect("again");
    let found = registry.get().await.expect("read");
    assert_eq!(found.active.as_deref(), Some("v1"));
    assert_eq!(found.versions.len(), 2);
    let error = registry
        .register("v1", &version("orders"))
        .await
        .expect_err("another topic");
    assert!(error.to_string().contains("new version"), "{error}");
    let jobs = Registry::jobs(&storage, "lake://jobs")
        .await
        .expect("listed");
    assert_eq!(jobs, ["sessions"]);
}

#[tokio::test]
async fn changes_at_the_same_time_are_all_made() {
    let registry = Registry::new(storage(), "lake://jobs", "sessions");
    let changes = (0..12).map(|n| {
        let registry = registry.clone();
        async move {
            registry
                .register(&format!("v{n}"), &version("clicks"))
                .await
        }
    });
    for done in futures::future::join_all(changes).await {
        done.expect("registered");
    }
    assert_eq!(registry.get().await.expect("read").versions.len(), 12);
}

#[tokio::test]
async fn who_is_active_and_what_was_compared_is_remembered() {
    let registry = Registry::new(storage(), "lake://jobs", "sessions");
    registry
        .register("v1", &version("clicks"))
        .await
        .expect("registered");
    registry
        .register("v2", &version("clicks"))
        .await
        .expect("registered");
    registry
        .compared(&compared("v1", "v2", 1, true))
        .await
        .expect("noted");
    let tag = Some("before-v2".to_owned());
    registry
        .activated("v2", tag, Millis(7))
        .await
        .expect("noted");
    let error = registry.dropped("v2").await.expect_err("active");
    assert_eq!(error.exit_status(), 2);
    let found = registry.dropped("v1").await.expect("dropped");
    assert_eq!(
        (found.active.as_deref(), found.previous.as_deref()),
        (Some("v2"), None)
    );
    assert!(found.comparisons.is_empty());
    assert_eq!(found.activations.len(), 1);
    let shown = view(&found, None);
    assert_eq!(shown.versions.len(), 1);
    assert!(shown.versions[0].is_active);
    assert!(registry.activated("v1", None, Millis(8)).await.is_err());
}

fn at(generation: u32, offset: i64) -> Position {
    Position {
        generation: Generation(generation),
        offset: Offset::new(offset).expect("an offset"),
    }
}

fn positions(of: &[(i32, u32, i64)]) -> Positions {
    of.iter()
        .map(|(p, g, o)| (Partition::new(*p).expect("a partition"), at(*g, *o)))
        .collect()
}

#[test]
fn arrears_are_counted_in_one_generation_and_not_across_them() {
    let active = positions(&[(0, 1, 10), (1, 1, 20)]);
    assert_eq!(behind(&active, &active).records, Some(0));
    assert_eq!(
        behind(&positions(&[(0, 1, 4), (1, 1, 25)]), &active).records,
        Some(6)
    );
    assert_eq!(
        behind(&positions(&[(0, 0, 99), (1, 1, 20)]), &active).records,
        None
    );
    assert_eq!(behind(&positions(&[(0, 1, 10)]), &active).records, None);
    assert_eq!(
        behind(&positions(&[(0, 2, 0), (1, 1, 20)]), &active).records,
        Some(0)
    );
}

#[tokio::test]
async fn the_table_says_who_is_active_among_those_that_share_it() {
    let registry = Registry::new(storage(), "lake://jobs", "sessions");
    for name in ["v1", "v2"] {
        registry
            .register(name, &version("clicks"))
            .await
            .expect("registered");
    }
    let elsewhere = Version {
        output: Output::Table {
            table: "sessions_v3".to_owned(),
        },
        ..version("clicks")
    };
    registry
        .register("v3", &elsewhere)
        .await
        .expect("registered");
    let found = registry.get().await.expect("read");
    assert_eq!(active(&found, None), (Some("v1"), None));
    assert_eq!(active(&found, Some(("v1", None))), (Some("v1"), None));
    // main was moved, and that was not noted
    let moved = Some(("v2", Some("v1")));
    assert_eq!(active(&found, moved), (Some("v2"), Some("v1")));
    // of a version elsewhere the table knows nothing
    let found = registry
        .activated("v3", None, Millis(7))
        .await
        .expect("noted");
    assert_eq!(active(&found, moved), (Some("v3"), Some("v1")));
}

#[test]
fn an_epoch_counts_once_its_rows_are_in_the_output() {
    let at = |rows, offset| Reached {
        rows,
        positions: positions(&[(0, 0, offset)]),
    };
    let marker = at(5, 50);
    let offset = |epochs: &[Reached], marker: &Reached| committed(epochs, marker);
    // the newest epoch is being committed: the one before is what counts
    assert_eq!(
        offset(&[at(7, 90), at(5, 80)], &marker),
        at(5, 80).positions
    );
    // epochs without rows leave no marker
    assert_eq!(
        offset(&[at(5, 90), at(5, 80)], &marker),
        at(5, 90).positions
    );
    // taken over before the last one was committed
    assert_eq!(offset(&[at(7, 90), at(7, 90)], &marker), marker.positions);
    // nothing is out yet
    assert_eq!(offset(&[at(2, 9)], &Reached::default()), Positions::new());
    assert_eq!(offset(&[at(0, 9)], &Reached::default()), at(0, 9).positions);
    // the state is gone, or is of an earlier release
    assert_eq!(offset(&[], &marker), marker.positions);
}

#[tokio::test]
async fn outputs_of_a_version_do_not_change() {
    let registry = Registry::new(storage(), "lake://jobs", "sessions");
    let file = |path: &str| {
        Some(Output::Jsonl {
            path: path.to_owned(),
        })
    };
    let counting = version("clicks");
    let writing = Version {
        late: file("late.jsonl"),
        ..counting.clone()
    };
    registry.register("v1", &counting).await.expect("first");
    let error = registry.register("v1", &writing).await.unwrap_err();
    assert_eq!(
        (error.exit_status(), error.to_string().as_str()),
        (
            2,
            "job sessions: version v1 has had its late records counted alone, and shall have them written to jsonl:late.jsonl now: an output of a version stays what it is; a changed job is a new version: give it another `version` in [job]"
        )
    );
    registry.register("v2", &writing).await.expect("another");
    let stored = registry.get().await.expect("read").versions["v2"].clone();
    assert_eq!(stored, writing);
    for other in [
        counting.clone(),
        Version {
            late: file("other.jsonl"),
            ..counting.clone()
        },
        Version {
            dead_letter: file("dead.jsonl"),
            ..writing.clone()
        },
        Version {
            output: Output::Kafka {
                topic: "sessions.v2".to_owned(),
            },
            ..writing.clone()
        },
    ] {
        let error = registry.register("v2", &other).await.unwrap_err();
        assert!(matches!(error, RegistryError::Changed { .. }), "{error}");
    }
    registry.register("v2", &writing).await.expect("the same");

    // a version that would write to another one's file does not become known, so that its job's file can be mended
    let taking = Version {
        dead_letter: file("late.jsonl"),
        ..counting.clone()
    };
    let error = registry.register("v3", &taking).await.unwrap_err();
    assert_eq!(
        (error.exit_status(), error.to_string().as_str()),
        (
            2,
            "job sessions: version v3 would write its dead letters to jsonl:late.jsonl, which version v2 writes its late records to; give it another place: put the version into its name"
        )
    );
    registry.register("v3", &counting).await.expect("mended");
}

fn ready_facts() -> PromoteFacts {
    PromoteFacts {
        version: "v2".to_owned(),
        active: "v1".to_owned(),
        has_output: true,
        behind: Behind {
            records: Some(3),
            event_time: None,
        },
        can_be_compared: true,
        comparison: Some(compared("v1", "v2", 24, true)),
        comparable: None,
    }
}

const FORCED: PromoteRules = PromoteRules {
    records_max: 10_000,
    event_time_max: Duration::from_mins(1),
    compared_min: Duration::from_hours(24),
    force: true,
};

#[track_caller]
fn refused(facts: &PromoteFacts, rules: &PromoteRules) -> String {
    match decide(facts, rules) {
        Readiness::NotReady { reasons } => reasons.join(" "),
        Readiness::Ready { .. } => panic!("it is ready"),
    }
}

#[track_caller]
fn overlooked(facts: &PromoteFacts, rules: &PromoteRules) -> usize {
    match decide(facts, rules) {
        Readiness::Ready { overlooked } => overlooked.len(),
        Readiness::NotReady { reasons } => panic!("it is not ready: {reasons:?}"),
    }
}

#[test]
fn a_version_takes_over_when_it_caught_up_and_was_compared() {
    let rules = PromoteRules::default();
    assert_eq!(overlooked(&ready_facts(), &rules), 0);
    assert_eq!(overlooked(&ready_facts(), &FORCED), 0);
    // by event time alone, where records cannot be counted
    let mut facts = ready_facts();
    facts.behind = Behind {
        records: None,
        event_time: Some(Duration::from_secs(59)),
    };
    assert_eq!(overlooked(&facts, &rules), 0);
    // the active one needs nothing
    facts.version = "v1".to_owned();
    facts.behind = Behind::default();
    facts.comparison = None;
    assert_eq!(overlooked(&facts, &rules), 0);
}

#[test]
fn whoever_is_behind_or_empty_is_not_promoted_by_force_either() {
    let rules = PromoteRules::default();
    let changes: [(&dyn Fn(&mut PromoteFacts), &str); 3] = [
        (&|f| f.behind.records = Some(10_001), "by 10001 records"),
        (&|f| f.behind.records = None, "more than can be counted"),
        (&|f| f.has_output = false, "has put out nothing"),
    ];
    for (change, expected) in changes {
        let mut facts = ready_facts();
        change(&mut facts);
        for rules in [&rules, &FORCED] {
            let reasons = refused(&facts, rules);
            assert!(reasons.contains(expected), "{reasons}");
        }
    }
}

#[test]
fn force_overlooks_what_the_comparison_lacks() {
    let rules = PromoteRules::default();
    let changes: [(&dyn Fn(&mut PromoteFacts), &str); 4] = [
        (&|f| f.comparison = None, "never compared"),
        (
            &|f| f.comparison = Some(compared("v1", "v2", 1, true)),
            "covers 3600 s of event time where 86400 s",
        ),
        (
            &|f| f.comparison = Some(compared("v1", "v2", 24, false)),
            "differences",
        ),
        (&|f| f.can_be_compared = false, "Iceberg outputs alone"),
    ];
    for (change, expected) in changes {
        let mut facts = ready_facts();
        change(&mut facts);
        let reasons = refused(&facts, &rules);
        assert!(reasons.contains(expected), "{reasons}");
        assert_eq!(overlooked(&facts, &FORCED), 1, "{expected}");
    }
}

#[test]
fn less_is_asked_for_where_less_can_be_compared() {
    let rules = PromoteRules::default();
    let facts = |comparable| PromoteFacts {
        comparison: Some(compared("v1", "v2", 1, true)),
        comparable: Some(Duration::from_mins(comparable)),
        ..ready_facts()
    };
    assert_eq!(overlooked(&facts(50), &rules), 0);
    assert_eq!(overlooked(&facts(120), &rules), 0);
    assert!(refused(&facts(121), &rules).contains("compare them again"));
    // of years, a day
    assert!(refused(&facts(3 * 365 * 24 * 60), &rules).contains("where 86400 s"));
}

fn read_by(id: u32) -> Version {
    Version {
        schema: Some(ReaderSchema {
            subject: "clicks-value".to_owned(),
            id,
            version: 1,
            kind: "AVRO".to_owned(),
            text: r#"{"type":"record","name":"Click","fields":[]}"#.to_owned(),
            references: Vec::new(),
        }),
        ..version("clicks")
    }
}

#[tokio::test]
async fn a_version_is_read_by_one_schema_for_ever() {
    let registry = Registry::new(storage(), "lake://jobs", "sessions");
    // as an older everlog wrote it
    let old = registry
        .register("v1", &version("clicks"))
        .await
        .expect("registered");
    assert!(
        !serde_json::to_string(&old)
            .expect("JSON")
            .contains("schema")
    );
    let filled = registry
        .register("v1", &read_by(7))
        .await
        .expect("the record says nothing of it yet");
    assert_eq!(filled.versions["v1"].schema, read_by(7).schema);
    assert_eq!(registry.get().await.expect("read"), filled);
    let error = registry
        .register("v1", &read_by(8))
        .await
        .expect_err("another schema");
    assert!(
        error
            .to_string()
            .contains("reads by schema 7 (version 1 of subject clicks-value)"),
        "{error}"
    );
    let kept = registry
        .register("v1", &version("clicks"))
        .await
        .expect("whoever knows of none leaves it");
    assert_eq!(kept, filled);
}
