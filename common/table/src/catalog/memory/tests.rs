use everlog_common::Millis;
use everlog_common::clock::{ManualClock, SeededIds, SystemClock};
use object_store::memory::InMemory;

use super::super::CatalogErrorKind;
use super::super::conformance::{self, Subject, property, set_property};
use super::*;
use crate::sealed::without_contents;

fn subject(clock: Arc<dyn Clock>) -> (Arc<MemoryCatalog>, Subject) {
    let ids: Arc<dyn Ids> = Arc::new(SeededIds::new(7));
    let catalog = Arc::new(MemoryCatalog::new(
        Arc::new(InMemory::new()),
        "memory://lake",
        Arc::clone(&clock),
        Arc::clone(&ids),
    ));
    let subject = Subject {
        catalog: Arc::clone(&catalog) as _,
        other: Arc::clone(&catalog) as _,
        namespace: NamespaceIdent::new("everlog".into()),
        ids,
        clock,
    };
    (catalog, subject)
}

#[tokio::test]
async fn the_memory_catalog_conforms() {
    let (_, subject) = subject(Arc::new(SystemClock::default()));
    conformance::all(&subject).await;
    conformance::a_table_needs_its_namespace(&subject).await;
}

#[tokio::test]
async fn p05_a_reply_lost_after_success_is_unknown_and_the_commit_is_there() {
    let (catalog, subject) = subject(Arc::new(SystemClock::default()));
    let table = subject.create().await;
    catalog.inject(Call::Commit, Fault::LostAfter);
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    let CommitReply::Unknown(error) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(error.kind(), CatalogErrorKind::Unknown);
    assert_eq!(property(&subject.load(&table.ident).await, "a"), Some("1"));
}

#[tokio::test]
async fn p08_a_request_lost_before_is_just_as_unknown_and_nothing_is_there() {
    let (catalog, subject) = subject(Arc::new(SystemClock::default()));
    let table = subject.create().await;
    catalog.inject(Call::Commit, Fault::LostBefore);
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    assert!(matches!(reply, CommitReply::Unknown(_)), "{reply:?}");
    assert_eq!(property(&subject.load(&table.ident).await, "a"), None);
}

#[tokio::test]
async fn a_late_commit_lands_only_where_its_requirements_still_hold() {
    let (catalog, subject) = subject(Arc::new(SystemClock::default()));
    let table = subject.create().await;
    for overtaken in [false, true] {
        let before = subject.load(&table.ident).await;
        let (requirements, updates) = subject.append(&before).await;
        catalog.inject(Call::Commit, Fault::Late);
        let reply = subject.try_commit(&before, requirements, updates).await;
        assert!(matches!(reply, CommitReply::Unknown(_)), "{reply:?}");
        let unchanged = subject.load(&table.ident).await;
        assert_eq!(unchanged.metadata_location, before.metadata_location);
        if overtaken {
            let (requirements, updates) = subject.append(&before).await;
            let reply = subject.try_commit(&before, requirements, updates).await;
            assert!(matches!(reply, CommitReply::Committed(_)), "{reply:?}");
        }
        assert_eq!(catalog.land().await, Some(!overtaken));
    }
    assert_eq!(catalog.land().await, None);
}

#[tokio::test]
async fn faults_are_met_in_order_and_only_by_their_call() {
    let (catalog, subject) = subject(Arc::new(SystemClock::default()));
    let table = subject.create().await;
    catalog.inject(Call::Load, Fault::Unavailable);
    catalog.inject(Call::Load, Fault::Denied);
    catalog.inject(Call::Commit, Fault::Conflict);
    catalog.inject(Call::Commit, Fault::Unavailable);
    let kind = |loaded: Result<_, CatalogError>| {
        loaded
            .map(|_: Option<LoadedTable>| ())
            .map_err(|e| e.kind())
    };
    assert_eq!(
        kind(catalog.load(&table.ident).await),
        Err(CatalogErrorKind::Transient)
    );
    assert_eq!(
        kind(catalog.load(&table.ident).await),
        Err(CatalogErrorKind::Unauthorized)
    );
    assert_eq!(kind(catalog.load(&table.ident).await), Ok(()));
    let commits = catalog.commits();
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    assert!(matches!(reply, CommitReply::Conflict), "{reply:?}");
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    assert!(matches!(reply, CommitReply::Refused(_)), "{reply:?}");
    assert_eq!(catalog.commits(), commits);
}

fn plain(json: &mut serde_json::Value) {
    match json {
        serde_json::Value::String(text) => *text = without_contents(text),
        serde_json::Value::Array(all) => all.iter_mut().for_each(plain),
        serde_json::Value::Object(all) => all.values_mut().for_each(plain),
        _ => {}
    }
}

#[tokio::test]
async fn one_seed_and_one_clock_make_the_same_files() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let clock = ManualClock::at(Millis(1_700_000_000_000));
        let (_, subject) = subject(Arc::new(clock));
        let table = subject.create().await;
        let (requirements, updates) = subject.append(&table).await;
        let reply = subject.try_commit(&table, requirements, updates).await;
        let CommitReply::Committed(table) = reply else {
            unreachable!("got {reply:?}")
        };
        let reply = subject
            .try_commit(&table, vec![], vec![set_property("a", "1")])
            .await;
        let CommitReply::Committed(table) = reply else {
            unreachable!("got {reply:?}")
        };
        assert_eq!(table.metadata.last_updated_ms(), 1_700_000_000_000);
        // what names tell of contents aside: maps are written in any order
        let mut metadata = serde_json::to_value(&*table.metadata).expect("JSON");
        plain(&mut metadata);
        runs.push((without_contents(&table.metadata_location), metadata));
    }
    assert_eq!(runs[0], runs[1]);
}
