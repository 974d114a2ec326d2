//! Answers that would be wrong without a word: each was, once, in what everlog is built on or in everlog itself.

mod support;

use everlog_query::{AsOf, QueryError, SessionOptions};
use iceberg::TableUpdate;
use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention};
use support::{NOON, Record, World, assert_counts, error, plan, rows, try_rows, utc, value};

const HOUR_MS: i64 = 3_600_000;

/// Row groups have 131,072 rows. Of two of which the first passes a filter in part and the second as a whole, a scan with a limit
/// read the second alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_takes_the_first_rows_that_pass_and_not_the_first_row_group_that_does() {
    let world = World::new().await;
    let records: Vec<Record> = (0..270_000).map(|n| Record::new(0, n)).collect();
    world.append("orders", &records).await;
    let session = world.session().await;
    let offsets = |from: i64| {
        let some = from..from + 5;
        some.map(|n| vec![n.to_string()]).collect::<Vec<_>>()
    };
    for (filter, from) in [
        ("partition = 0 AND \"offset\" >= 100000".to_owned(), 100_000),
        ("\"offset\" > 131070".to_owned(), 131_071),
        (
            format!("\"timestamp\" >= '{}'", utc(NOON + 90_000_000)),
            90_000,
        ),
    ] {
        let sql = format!(
            "SELECT \"offset\" FROM orders WHERE {filter} ORDER BY partition, \"offset\" LIMIT 5"
        );
        assert!(!plan(&session, &sql).await.contains("SortExec"), "{sql}");
        assert_eq!(rows(&session, &sql).await, offsets(from), "{sql}");
        let next = format!("{sql} OFFSET 5");
        assert_eq!(rows(&session, &next).await, offsets(from + 5), "{next}");
    }
    // any rows will do, but so many
    let sql = "SELECT value FROM orders WHERE \"offset\" >= 100000 LIMIT 150000";
    assert_eq!(rows(&session, sql).await.len(), 150_000);
}

/// A row without a value passes no comparison, nor what is the contrary of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_counts_no_rows_without_a_value() {
    let world = World::new().await;
    let records: Vec<Record> = (0..140_000)
        .map(|n| {
            let mut record = Record::new(0, n);
            if n < 131_072 && n != 7 {
                record.timestamp = None;
            }
            record
        })
        .collect();
    world.append("orders", &records).await;
    let session = world.session().await;
    let sql = format!(
        "SELECT \"offset\" FROM orders WHERE \"timestamp\" >= '{}' LIMIT 500",
        utc(NOON)
    );
    assert_eq!(rows(&session, &sql).await.len(), 500);
}

/// The hour of the lowest and of the highest time of a file says nothing of the hours between.
#[tokio::test(flavor = "multi_thread")]
async fn the_hour_of_a_day_prunes_nothing() {
    let world = World::new().await;
    // from noon on, for 20 hours
    let records: Vec<Record> = (0..20)
        .map(|n| {
            let mut record = Record::new(0, n);
            record.timestamp = Some(NOON + n * HOUR_MS);
            record
        })
        .collect();
    world.append("orders", &records).await;
    let session = world.session().await;
    let all = [
        ("CAST(\"timestamp\" AS TIME) >= '12:00:00'", "12"),
        ("\"timestamp\"::time < '02:00:00'", "2"),
        ("CAST(\"offset\" AS BOOLEAN) = false", "1"),
        ("CAST(\"timestamp\" AS DATE) = '2023-11-16'", "8"),
    ];
    assert_counts(&session, &all).await;
}

/// What a table held at a time does not change by what came of it later.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_does_not_change_what_was_seen_before_it() {
    let world = World::near().await;
    let mut snapshots = Vec::new();
    for commit in 0..3 {
        let records: Vec<Record> = (0..10).map(|n| Record::new(0, commit * 10 + n)).collect();
        let id = world.append("orders", &records).await;
        let table = world.loaded("orders").await;
        let snapshot = table.metadata.snapshot_by_id(id).expect("a snapshot");
        snapshots.push((id, snapshot.timestamp_ms()));
    }
    let retention = SnapshotRetention::Branch {
        min_snapshots_to_keep: None,
        max_snapshot_age_ms: None,
        max_ref_age_ms: None,
    };
    let back = TableUpdate::SetSnapshotRef {
        ref_name: MAIN_BRANCH.to_owned(),
        reference: SnapshotReference::new(snapshots[0].0, retention),
    };
    world.catch_up().await;
    world.swap("orders", vec![back]).await;
    let session = world.session().await;
    for (at, expected) in [
        (snapshots[1].1, "20"),
        (snapshots[2].1 - 1, "20"),
        (snapshots[2].1, "30"),
    ] {
        let sql = format!(
            "SELECT count(*) FROM orders FOR TIMESTAMP AS OF '{}'",
            utc(at)
        );
        assert_eq!(value(&session, &sql).await, expected, "{sql}");
    }
    // an archive that lost records is none until somebody says so
    let sql = "SELECT count(*) FROM orders";
    let refused = error(&session, sql).await;
    assert!(refused.to_string().contains("main was moved"), "{refused}");
    // as the table's own account of it has it
    let sql = "SELECT snapshot_id FROM \"orders$history\" ORDER BY made_current_at";
    let ids: Vec<String> = rows(&session, sql).await.into_iter().flatten().collect();
    let made: Vec<String> = snapshots.iter().map(|(id, _)| id.to_string()).collect();
    assert_eq!(ids[..3], made);
    let refused = error(
        &session,
        &format!(
            "SELECT * FROM orders FOR TIMESTAMP AS OF '{}'",
            utc(snapshots[0].1 - 1)
        ),
    )
    .await;
    assert!(matches!(refused, QueryError::NoSnapshot(_)), "{refused}");
}

/// Whatever a query calls a table, and however it asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn one_query_sees_one_snapshot_of_a_table_by_all_its_names() {
    let world = World::new().await;
    world.append("orders", &[Record::new(0, 0)]).await;
    let session = world.session().await;
    let sql = "SELECT (SELECT count(value) FROM orders) AS a, (SELECT count(key) FROM everlog.orders) AS b,
            (SELECT count(*) FROM \"ORDERS\") AS c, (SELECT sum(record_count) FROM \"orders$files\") AS d,
            (SELECT sum(rows) FROM \"orders$ledger\") AS e";
    let archiving = async {
        for n in 1..60 {
            world.append("orders", &[Record::new(0, n)]).await;
        }
    };
    let asking = async {
        for _ in 0..40 {
            let row = rows(&session, sql).await.remove(0);
            assert!(row.iter().all(|count| *count == row[0]), "{row:?}");
        }
    };
    tokio::join!(archiving, asking);
    assert_eq!(rows(&session, sql).await, [["60"; 5]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_not_compared_as_text() {
    let world = World::new().await;
    let records: Vec<Record> = (0..120).map(|n| Record::new(0, n)).collect();
    world.append("orders", &records).await;
    let session = world.session().await;
    for filter in [
        "\"offset\" < '100'",
        "'100' > \"offset\"",
        "\"offset\" BETWEEN '5' AND '10'",
        "\"offset\" IN (1, '2')",
        "\"offset\" IN (SELECT 'a')",
        "\"offset\" IS DISTINCT FROM '1'",
        "CASE \"offset\" WHEN '1' THEN true END",
        "EXISTS (SELECT 1 FROM orders o WHERE o.\"offset\" = CAST(orders.key AS VARCHAR))",
    ] {
        let sql = format!("SELECT count(*) FROM orders WHERE {filter}");
        let refused = error(&session, &sql).await;
        assert!(
            matches!(refused, QueryError::Invalid(_)) && refused.to_string().contains("BIGINT"),
            "{sql}: {refused}"
        );
    }
    let sql = "SELECT count(*) FROM orders a JOIN (SELECT 'x' AS n) b ON a.\"offset\" = b.n";
    assert!(matches!(error(&session, sql).await, QueryError::Invalid(_)));
    let all = [
        ("\"offset\" < CAST('100' AS BIGINT)", "100"),
        ("key = 'k1'", "24"),
        ("\"offset\" < 99.5", "100"),
    ];
    assert_counts(&session, &all).await;
}

/// A producer may give any time: what a query says of others does not change by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_from_the_far_future_spoils_no_answer() {
    let world = World::new().await;
    let records: Vec<Record> = [NOON, 253_402_300_800_000, 9_223_372_036_854_775, -1_500]
        .into_iter()
        .zip(0..)
        .map(|(time, n)| {
            let mut record = Record::new(0, n);
            record.timestamp = Some(time);
            record
        })
        .collect();
    world.append("orders", &records).await;
    let session = world.session().await;
    let all = [
        ("\"timestamp\" < '9999-12-31'", "2"),
        ("\"timestamp\" >= TIMESTAMP '2023-11-15 12:00:00'", "3"),
        (
            "\"timestamp\" BETWEEN '0001-01-01' AND '9999-12-31 23:59:59'",
            "2",
        ),
        ("\"timestamp\" > DATE '9999-12-31'", "2"),
        (
            "\"timestamp\" IN ('2023-11-15 12:00:00', '1600-01-01')",
            "1",
        ),
        ("\"timestamp\" > now() - INTERVAL '1 hour'", "2"),
        ("\"timestamp\" IS DISTINCT FROM '2023-11-15 12:00:00'", "3"),
    ];
    assert_counts(&session, &all).await;
    let sql = "SELECT lower_bounds[5], upper_bounds[5] FROM \"orders$files\"";
    let found = rows(&session, sql).await;
    assert_eq!(
        found,
        [["1969-12-31T23:59:58.500Z", "+294247-01-10T04:00:54.775Z"]]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn decimals_are_compared_as_such_and_now_is_an_instant() {
    let world = World::new().await;
    world.append("orders", &[Record::new(0, 0)]).await;
    let session = world.session().await;
    for sql in [
        "SELECT CAST(TIMESTAMPTZ '2026-01-01T23:30:00Z' AT TIME ZONE 'Europe/Berlin' AS VARCHAR) LIKE '2026-01-02T00:30%'",
        "SELECT CAST('999999999.999' AS DECIMAL(20, 3)) = 999999999.999",
        "SELECT CAST('-0.10' AS DECIMAL(20, 2)) IN (5, -0.1)",
        "SELECT CAST('99999999999.99' AS DECIMAL(13, 2)) BETWEEN 1 AND 99999999999.99",
        "SELECT CAST('99999999999.99' AS DECIMAL(13, 2)) <> 99999999999.991",
        "SELECT 1.5e300 > 1 AND 1.0 / 3 > 0.3333333333",
        "SELECT now() AT TIME ZONE 'Europe/Berlin' = now()",
        "SELECT octet_length(value) = 7 FROM orders",
        "SELECT topic LIKE 'ord%' FROM orders WHERE topic LIKE 'ord%' AND topic NOT LIKE 'x_%'",
    ] {
        assert_eq!(value(&session, sql).await, "true", "{sql}");
    }
    assert!(
        try_rows(&session, "SELECT * FROM orders WHERE topic LIKE 'x%'")
            .await
            .expect("no rows")
            .is_empty()
    );
}

/// A moment for the whole query, and what is about now.
#[tokio::test(flavor = "multi_thread")]
async fn a_moment_of_the_session_is_not_passed_over() {
    let world = World::new().await;
    let first = world.append("orders", &[Record::new(0, 0)]).await;
    world.append("orders", &[Record::new(0, 1)]).await;
    let session = world
        .session_with(SessionOptions {
            as_of: Some(AsOf::Snapshot(first)),
            limits: world.limits(),
            ..SessionOptions::default()
        })
        .await;
    assert_eq!(value(&session, "SELECT count(*) FROM orders").await, "1");
    let refused = error(&session, "SELECT count(*) FROM \"orders$live\"").await;
    assert!(matches!(refused, QueryError::Refused(_)), "{refused}");
}

/// As often as the left side of a join has rows, so often would each row come.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_in_the_place_of_a_value_has_one_row() {
    let world = World::new().await;
    let records: Vec<Record> = (0..10).map(|n| Record::new(0, n)).collect();
    world.append("orders", &records).await;
    let session = world.session().await;
    for sql in [
        "SELECT (SELECT \"offset\" FROM orders) AS x",
        "SELECT count(*) FROM orders WHERE \"offset\" <= (SELECT \"offset\" FROM orders WHERE \"offset\" IN (3, 5))",
        "SELECT (SELECT * FROM (VALUES (1), (2)))",
    ] {
        let refused = error(&session, sql).await;
        let what = refused.to_string();
        assert!(what.contains("more than one row"), "{sql}: {what}");
    }
    for (sql, expected) in [
        (
            "SELECT (SELECT \"offset\" FROM orders WHERE \"offset\" = 7) AS x",
            "7",
        ),
        (
            "SELECT (SELECT \"offset\" FROM orders WHERE \"offset\" = 70) IS NULL",
            "true",
        ),
        (
            "SELECT count(*) FROM orders WHERE \"offset\" <= (SELECT \"offset\" FROM orders WHERE key = 'k3' LIMIT 1 OFFSET 0)",
            "4",
        ),
        (
            "SELECT count(*) FROM orders o WHERE (SELECT count(*) FROM orders p WHERE p.key = o.key) = 2",
            "10",
        ),
    ] {
        assert_eq!(value(&session, sql).await, expected, "{sql}");
    }
    let answer = session.query("SELECT (SELECT \"offset\" FROM orders WHERE \"offset\" = 7)");
    let answer = answer.await.expect("an answer");
    assert_eq!(answer.schema.field(0).name(), "offset");
}
