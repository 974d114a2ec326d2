//! The REST catalog against Iceberg's own server, with every fault that decides a reply.

mod support;

use std::time::Duration;

use everlog_common::Ids;
use everlog_common::clock::RandomIds;
use everlog_table::catalog::conformance::{self, Subject, property, set_property};
use everlog_table::catalog::{CatalogErrorKind as Kind, CommitReply, LoadedTable, connect};
use iceberg::TableRequirement;
use iceberg::spec::MAIN_BRANCH;
use support::{Properties, Service, chain, open, properties, s3, subject, with};

/// Less than the faults wait, and more than a busy machine needs for an answer.
const HASTY: [(&str, &str); 1] = [("everlog.catalog.request-timeout", "3s")];

/// A server with its warehouse on local disk.
fn local(options: &[&str]) -> (Service, tempfile::TempDir, Properties) {
    let warehouse = tempfile::tempdir().expect("folder");
    let location = format!("file://{}/lake", warehouse.path().display());
    let mut arguments = vec![location.as_str()];
    arguments.extend_from_slice(options);
    let service = Service::start("catalog.sh", &arguments);
    let properties = properties(&[("type", "rest"), ("uri", &service.said)]);
    (service, warehouse, properties)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_server_conforms() {
    let (_service, _warehouse, properties) = local(&[]);
    conformance::all(&subject(&properties, &properties).await).await;
    support::tells_the_time(&properties).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_everything_conforms_and_its_credentials_are_the_only_ones() {
    let (store, reach) = s3();
    let arguments = [
        "s3://warehouse/lake",
        &format!("s3.endpoint={}", reach["s3.endpoint"]),
        "s3.access-key-id=testkey",
        "s3.secret-access-key=testsecret",
        "s3.path-style-access=true",
        "--credential",
        "me:s3cret",
        "--token-seconds",
        "60",
        "--vend",
        "--idempotency",
        "PT30M",
        "--prefix",
        "ware/house",
    ];
    let service = Service::start("catalog.sh", &arguments);
    // no s3 property: whatever reaches the store was vended
    let properties = properties(&[
        ("type", "rest"),
        ("uri", &service.said),
        ("credential", "me:s3cret"),
        (
            "s3.session-token",
            "a token of ours that belongs to other keys",
        ),
    ]);
    let subject = subject(&properties, &properties).await;
    conformance::all(&subject).await;
    let table = subject.create().await;
    assert_eq!(
        table.config.get("s3.access-key-id").map(String::as_str),
        Some("testkey")
    );
    let printed = format!("{table:?} {:?}", subject.catalog);
    assert!(
        !printed.contains("testsecret") && !printed.contains("s3cret"),
        "{printed}"
    );
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    let committed = committed(reply);
    assert_eq!(
        committed.config, table.config,
        "credentials outlive a commit"
    );
    drop(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn p08_an_error_after_success_is_unknown_and_the_commit_is_there() {
    let (service, _warehouse, properties) = local(&[]);
    let subject = subject(&properties, &properties).await;
    for status in ["500", "502", "503", "504"] {
        let (table, reply) =
            faulty(&service, &subject, &format!("mode=after&status={status}")).await;
        assert_unknown(&reply);
        assert_eq!(
            property(&subject.load(&table.ident).await, "a"),
            Some("1"),
            "{status}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p08_an_error_before_is_just_as_unknown_and_nothing_is_there() {
    let (service, _warehouse, properties) = local(&[]);
    let subject = subject(&properties, &properties).await;
    for status in ["500", "502", "503", "504"] {
        let fault = format!("mode=before&status={status}");
        let (table, reply) = faulty(&service, &subject, &fault).await;
        assert_unknown(&reply);
        assert_eq!(
            property(&subject.load(&table.ident).await, "a"),
            None,
            "{status}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h26_a_connection_lost_before_or_after_is_unknown() {
    let (service, _warehouse, properties) = local(&[]);
    let subject = subject(&properties, &properties).await;
    let (table, reply) = faulty(&service, &subject, "mode=drop").await;
    assert_unknown(&reply);
    assert_eq!(property(&subject.load(&table.ident).await, "a"), Some("1"));
    let (table, reply) = faulty(&service, &subject, "mode=drop-before").await;
    assert_unknown(&reply);
    assert_eq!(property(&subject.load(&table.ident).await, "a"), None);
    let hits = service.run("fault", &[]);
    assert!(
        hits.contains("\"hits\":1"),
        "nothing was sent a second time: {hits}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_in_time_is_unknown_and_may_land_late() {
    let (service, _warehouse, properties) = local(&[]);
    let subject = subject(&properties, &properties).await;
    let hasty = Subject {
        catalog: open(&with(properties, &HASTY)).await,
        ..subject.clone()
    };
    for (mode, there_at_once) in [("late", true), ("delay", false)] {
        let table = subject.create().await;
        service.run("fault", &[&format!("mode={mode}&ms=8000")]);
        let reply = hasty
            .try_commit(&table, vec![], vec![set_property("a", "1")])
            .await;
        assert_unknown(&reply);
        let there = property(&subject.load(&table.ident).await, "a").is_some();
        assert_eq!(there, there_at_once, "{mode}");
        let landed = tokio::time::timeout(Duration::from_secs(30), async {
            while property(&subject.load(&table.ident).await, "a").is_none() {
                tokio::task::yield_now().await;
            }
        });
        landed.await.expect("it lands after its client has gone");
    }
}

/// What the archiver does with an unknown outcome: a neutral commit on the same parent settles it.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_on_its_way_is_dead_once_another_landed_on_its_parent() {
    let (service, _warehouse, properties) = local(&[]);
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    let (requirements, updates) = subject.append(&table).await;
    let (same_parent, neutral) = subject.append(&table).await;
    service.run("fault", &["mode=delay&ms=3000"]);
    let on_its_way = subject.try_commit(&table, requirements, updates);
    let settling = async {
        let sent = tokio::time::timeout(Duration::from_secs(20), async {
            while !service.run("fault", &[]).contains("\"hits\":1") {
                tokio::task::yield_now().await;
            }
        });
        sent.await.expect("it was never sent");
        subject
            .other
            .commit(&table, same_parent, neutral, RandomIds.uuid())
            .await
    };
    let (late, settled) = tokio::join!(on_its_way, settling);
    let settled = committed(settled);
    assert!(matches!(late, CommitReply::Conflict), "{late:?}");
    let loaded = subject.load(&table.ident).await;
    assert_eq!(loaded.metadata_location, settled.metadata_location);
    assert_eq!(loaded.metadata.snapshots().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_a_conflict_and_a_refusal_names_its_kind() {
    let (service, _warehouse, properties) = local(&[]);
    let subject = subject(&properties, &properties).await;
    let (table, reply) = faulty(&service, &subject, "mode=conflict").await;
    assert!(matches!(reply, CommitReply::Conflict), "{reply:?}");
    assert_eq!(property(&subject.load(&table.ident).await, "a"), None);
    let cases = [
        ("400", Kind::Invalid),
        ("401", Kind::Unauthorized),
        ("403", Kind::Unauthorized),
        ("404", Kind::NotFound),
        ("422", Kind::Invalid),
        ("429", Kind::Transient),
    ];
    for (status, kind) in cases {
        let fault = format!("mode=before&status={status}");
        let (table, reply) = faulty(&service, &subject, &fault).await;
        let CommitReply::Refused(error) = reply else {
            unreachable!("{status}: got {reply:?}")
        };
        assert_eq!(error.kind(), kind, "{}", chain(&error));
        assert_eq!(property(&subject.load(&table.ident).await, "a"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_renewed_once_and_the_commit_sent_again() {
    let (service, _warehouse, base) = local(&[
        "--credential",
        "me:s3cret",
        "--token-seconds",
        "3600",
        "--idempotency",
        "PT30M",
    ]);
    let properties = with(base.clone(), &[("credential", "me:s3cret")]);
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    service.run("revoke", &[]);
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    assert_eq!(property(&committed(reply), "a"), Some("1"));
    service.run("revoke", &[]);
    assert_eq!(
        property(&subject.load(&table.ident).await, "a"),
        Some("1"),
        "reads, too"
    );
    // one 401 is met with a new token, the second is the answer
    let (_, reply) = faulty(&service, &subject, "mode=auth&count=1").await;
    committed(reply);
    let (table, reply) = faulty(&service, &subject, "mode=auth&count=2").await;
    let CommitReply::Refused(error) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(error.kind(), Kind::Unauthorized, "{}", chain(&error));
    assert_eq!(property(&subject.load(&table.ident).await, "a"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_or_missing_credentials_are_named() {
    let (_service, _warehouse, base) = local(&["--credential", "me:s3cret"]);
    for pairs in [
        &[][..],
        &[("credential", "me:hunter2")],
        &[("token", "stale")],
    ] {
        let error = connect(&with(base.clone(), pairs))
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), Kind::Unauthorized, "{}", chain(&error));
        assert!(!chain(&error).contains("hunter2"), "{}", chain(&error));
    }
    let (_service, _warehouse, base) = local(&["--token", "t0ken"]);
    connect(&with(base.clone(), &[("token", "t0ken")]))
        .await
        .expect("accepted");
    let (_service, _warehouse, base) = local(&[]);
    let error = connect(&with(base, &[("rest.sigv4-enabled", "true")]))
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), Kind::Invalid, "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn short_lived_tokens_are_renewed_before_they_end() {
    let (service, _warehouse, base) = local(&["--credential", "me:s3cret", "--token-seconds", "2"]);
    let properties = with(base, &[("credential", "me:s3cret")]);
    let subject = subject(&properties, &properties).await;
    let mut table = subject.create().await;
    let until = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut commits = 0;
    while tokio::time::Instant::now() < until {
        let update = set_property("round", &commits.to_string());
        table = committed(subject.try_commit(&table, vec![], vec![update]).await);
        commits += 1;
    }
    assert!(commits > 1);
    assert!(
        !service.run("stats", &[]).contains("401"),
        "{}",
        service.run("stats", &[])
    );
}

/// The server answers a repeated key without doing it again: so the key arrives, and is one the server takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_idempotency_key_is_recognised_where_the_server_offers_it() {
    let (_service, _warehouse, properties) = local(&["--idempotency", "PT30M"]);
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    let (requirements, updates) = subject.append(&table).await;
    let key = RandomIds.uuid();
    let first = subject
        .catalog
        .commit(&table, requirements.clone(), updates.clone(), key)
        .await;
    let first = committed(first);
    let again = subject
        .catalog
        .commit(&table, requirements.clone(), updates.clone(), key)
        .await;
    assert_eq!(committed(again).metadata_location, first.metadata_location);
    let other = subject
        .catalog
        .commit(&table, requirements, updates, RandomIds.uuid())
        .await;
    assert!(matches!(other, CommitReply::Conflict), "{other:?}");
    assert_eq!(
        subject
            .load(&table.ident)
            .await
            .metadata
            .snapshots()
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_refuses_and_one_that_hangs_is_unknown() {
    let (service, _warehouse, properties) = local(&[]);
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    let hasty = with(properties, &HASTY);
    let hurried = Subject {
        catalog: open(&hasty).await,
        ..subject.clone()
    };
    service.run("pause", &[]);
    let error = tokio::time::timeout(Duration::from_secs(30), async {
        // on a busy machine a stopped process may answer for a moment
        loop {
            if let Err(error) = hurried.catalog.load(&table.ident).await {
                return error;
            }
        }
    });
    let error = error.await.expect("bounded");
    assert_eq!(error.kind(), Kind::Transient, "{}", chain(&error));
    let reply = hurried
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    assert_unknown(&reply);
    service.run("resume", &[]);
    service.run("kill", &[]);
    // on a connection that was open nobody can say; a new one is refused, and nothing was sent
    let refused = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let update = vec![set_property("a", "1")];
            match hurried.try_commit(&table, vec![], update).await {
                CommitReply::Refused(error) => return error,
                reply => assert_unknown(&reply),
            }
        }
    });
    let error = refused.await.expect("connections that were open are few");
    assert_eq!(error.kind(), Kind::Transient, "{}", chain(&error));
    let error = connect(&hasty).await.expect_err("gone");
    assert_eq!(error.kind(), Kind::Transient, "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn d3_a_proxys_page_passes_and_leaves_a_commit_open() {
    let (service, _warehouse, properties) = local(&[]);
    let subject = subject(&properties, &properties).await;
    for status in ["404", "400", "302", "200", "502"] {
        let fault = format!("mode=page&status={status}");
        let (table, reply) = faulty(&service, &subject, &fault).await;
        assert_unknown(&reply);
        let fault = format!("mode=page-after&status={status}");
        let (done, reply) = faulty(&service, &subject, &fault).await;
        assert_unknown(&reply);
        assert_eq!(property(&subject.load(&table.ident).await, "a"), None);
        assert_eq!(property(&subject.load(&done.ident).await, "a"), Some("1"));
        service.run(
            "fault",
            &[&format!("{fault}&method=GET").replace("page-after", "page")],
        );
        let error = subject.catalog.load(&table.ident).await.expect_err(status);
        assert_eq!(error.kind(), Kind::Transient, "{status}: {}", chain(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d3_a_page_in_place_of_a_token_passes() {
    let (service, _warehouse, base) = local(&["--credential", "me:s3cret"]);
    let properties = with(base, &[("credential", "me:s3cret")]);
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    for status in ["404", "400", "200", "503"] {
        service.run("revoke", &[]);
        service.run(
            "fault",
            &[&format!("mode=page&status={status}&path=/v1/oauth/tokens")],
        );
        let error = subject.catalog.load(&table.ident).await.expect_err(status);
        assert_eq!(error.kind(), Kind::Transient, "{status}: {}", chain(&error));
        let loaded = subject.load(&table.ident).await;
        assert_eq!(loaded.metadata, table.metadata);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_catalog_is_said_to_be_none() {
    let (service, _reach) = s3();
    let uri = format!("http://127.0.0.1:{}", service.port);
    let error = connect(&properties(&[("type", "rest"), ("uri", &uri)]))
        .await
        .expect_err("S3");
    assert_ne!(error.kind(), Kind::Unknown, "{}", chain(&error));
    for uri in ["127.0.0.1:1", "ftp://x", ""] {
        let error = connect(&properties(&[("type", "rest"), ("uri", uri)]))
            .await
            .expect_err(uri);
        assert!(error.to_string().contains("[catalog] uri"), "{error}");
    }
}

/// A fresh table, and the reply to a commit that meets the fault. Its key is new: nothing recognises it.
async fn faulty(service: &Service, subject: &Subject, fault: &str) -> (LoadedTable, CommitReply) {
    let table = subject.create().await;
    service.run("fault", &[fault]);
    let same = TableRequirement::RefSnapshotIdMatch {
        r#ref: MAIN_BRANCH.into(),
        snapshot_id: None,
    };
    let reply = subject
        .try_commit(&table, vec![same], vec![set_property("a", "1")])
        .await;
    (table, reply)
}

fn committed(reply: CommitReply) -> LoadedTable {
    match reply {
        CommitReply::Committed(table) => table,
        reply => unreachable!("got {reply:?}"),
    }
}

#[track_caller]
fn assert_unknown(reply: &CommitReply) {
    let CommitReply::Unknown(error) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(error.kind(), Kind::Unknown, "{}", chain(error));
}
