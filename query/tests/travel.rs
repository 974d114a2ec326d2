//! Moments of tables: every way to name one, what there is to say of one that is not there, and tables about tables.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use everlog_common::Millis;
use everlog_query::{AsOf, QueryError, SessionOptions, TableKind};
use everlog_table::job::{
    CommitEpoch, JobOutcome, JobPartitioning, JobRows, JobTable, JobTableSpec, Marker, Promotion,
};
use iceberg::TableUpdate;
use support::{NAMESPACE, Record, World, error, rows, try_rows, utc, value};

/// Ten records per commit, three commits; each snapshot with the time at which it was made.
async fn world() -> (World, Vec<(i64, Millis)>) {
    let world = World::new().await;
    let mut snapshots = Vec::new();
    for commit in 0..3 {
        let records: Vec<Record> = (0..10).map(|n| Record::new(0, commit * 10 + n)).collect();
        let id = world.append("orders", &records).await;
        let table = world.loaded("orders").await;
        let snapshot = table.metadata.snapshot_by_id(id).expect("a snapshot");
        snapshots.push((id, Millis(snapshot.timestamp_ms())));
    }
    (world, snapshots)
}

fn sql_time(at: Millis) -> String {
    utc(at.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_name_a_moment_finds_its_snapshot() {
    let (world, snapshots) = world().await;
    let (second, at) = snapshots[1];
    world.tag("orders", "audit-1", second).await;
    let session = world.session().await;
    let time = sql_time(at);
    let iso = time.replace(' ', "T");
    for moment in [
        format!("FOR VERSION AS OF {second}"),
        format!("FOR VERSION AS OF '{second}'"),
        format!("VERSION AS OF {second}"),
        format!("FOR SYSTEM_VERSION AS OF {second}"),
        "FOR VERSION AS OF 'audit-1'".to_owned(),
        "VERSION AS OF 'audit-1'".to_owned(),
        format!("FOR TIMESTAMP AS OF TIMESTAMP '{time}'"),
        format!("FOR TIMESTAMP AS OF TIMESTAMP '{time}' + INTERVAL '4 seconds'"),
        format!("TIMESTAMP AS OF '{time}'"),
        format!("TIMESTAMP AS OF '{iso}Z'"),
        format!("for system_time /* then */ as of '{iso}+00:00'"),
    ] {
        let sql = format!("SELECT count(*) FROM orders {moment}");
        assert_eq!(value(&session, &sql).await, "20", "{sql}");
        let sql =
            format!("SELECT max(o.\"offset\") FROM orders {moment} AS o WHERE o.key IS NOT NULL");
        assert_eq!(value(&session, &sql).await, "19", "{sql}");
    }
    assert_eq!(value(&session, "SELECT count(*) FROM orders").await, "30");
    assert_eq!(
        value(
            &session,
            "SELECT count(*) FROM orders FOR VERSION AS OF 'main'"
        )
        .await,
        "30"
    );
    // by the lake's clock, which in this test is ahead of the system's
    let sql = format!("SELECT now() >= TIMESTAMP '{}'", sql_time(snapshots[2].1));
    assert_eq!(value(&session, &sql).await, "true");
    let sql = "SELECT count(*) FROM orders FOR TIMESTAMP AS OF now()";
    assert_eq!(value(&session, sql).await, "30");
    let sql = "SELECT count(*) FROM orders TIMESTAMP AS OF now() - INTERVAL '100 years'";
    let refused = error(&session, sql).await;
    assert!(matches!(refused, QueryError::NoSnapshot(_)), "{refused:?}");
    let qualified =
        format!("SELECT count(orders.value) FROM everlog.orders VERSION AS OF {second}");
    assert_eq!(value(&session, &qualified).await, "20");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_at_two_times_is_two_tables_in_one_query() {
    let (world, snapshots) = world().await;
    let session = world.session().await;
    let sql = format!(
        "SELECT count(*), count(old.\"offset\"), count(then.\"offset\") FROM orders AS now
         LEFT JOIN orders FOR VERSION AS OF {} AS old ON now.\"offset\" = old.\"offset\"
         LEFT JOIN orders FOR TIMESTAMP AS OF '{}' AS then ON now.\"offset\" = then.\"offset\"",
        snapshots[0].0,
        sql_time(snapshots[1].1)
    );
    assert_eq!(rows(&session, &sql).await, [["30", "10", "20"]]);
    let sql = format!(
        "WITH orders AS (SELECT * FROM orders VERSION AS OF {}) SELECT count(*) FROM orders
         UNION ALL SELECT count(*) FROM everlog.orders ORDER BY 1",
        snapshots[0].0
    );
    assert_eq!(rows(&session, &sql).await, [["10"], ["30"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_may_be_of_a_moment_as_a_whole() {
    let (world, snapshots) = world().await;
    world.tag("orders", "audit-1", snapshots[0].0).await;
    for (as_of, expected) in [
        (AsOf::Snapshot(snapshots[0].0), "10"),
        (AsOf::Time(snapshots[1].1), "20"),
        (AsOf::Tag("audit-1".to_owned()), "10"),
    ] {
        let session = world
            .session_with(SessionOptions {
                as_of: Some(as_of.clone()),
                limits: world.limits(),
                ..SessionOptions::default()
            })
            .await;
        assert_eq!(
            value(&session, "SELECT count(*) FROM orders").await,
            expected,
            "{as_of:?}"
        );
        let sql = "SELECT sum(record_count) FROM \"orders$files\"";
        assert_eq!(value(&session, sql).await, expected, "{as_of:?}");
        let sql = format!(
            "SELECT count(*) FROM orders VERSION AS OF {}",
            snapshots[2].0
        );
        assert_eq!(value(&session, &sql).await, "30");
        // about all snapshots, whatever the moment
        assert_eq!(
            value(&session, "SELECT count(*) FROM \"orders$snapshots\"").await,
            "3"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_that_is_not_there_is_an_error_that_names_the_nearest() {
    let (world, snapshots) = world().await;
    world.tag("orders", "audit-1", snapshots[1].0).await;
    world
        .swap(
            "orders",
            vec![TableUpdate::RemoveSnapshots {
                snapshot_ids: vec![snapshots[0].0],
            }],
        )
        .await;
    let session = world.session().await;
    let no = |error: QueryError| match error {
        QueryError::NoSnapshot(what) => what,
        other => panic!("{other:?}"),
    };
    let sql = format!("SELECT 1 FROM orders VERSION AS OF {}", snapshots[0].0);
    let what = no(error(&session, &sql).await);
    assert!(what.contains(&snapshots[0].0.to_string()), "{what}");
    assert!(what.contains(&snapshots[1].0.to_string()), "{what}");
    assert!(
        what.contains("orders$snapshots") && !what.contains('\n'),
        "{what}"
    );
    let sql = format!(
        "SELECT 1 FROM orders FOR TIMESTAMP AS OF '{}'",
        sql_time(snapshots[0].1)
    );
    let what = no(error(&session, &sql).await);
    assert!(
        what.contains("the nearest is") && what.contains(&snapshots[1].0.to_string()),
        "{what}"
    );
    let what = no(error(&session, "SELECT 1 FROM orders VERSION AS OF 'audit1'").await);
    assert!(what.contains("did you mean \"audit-1\""), "{what}");
    for (sql, part) in [
        (
            "SELECT 1 FROM orders FOR TIMESTAMP AS OF 'yesterday'",
            "no time to travel to",
        ),
        (
            "SELECT 1 FROM orders FOR TIMESTAMP AS OF 5",
            "no time to travel to",
        ),
        (
            "SELECT 1 FROM orders o FOR TIMESTAMP AS OF now()",
            "not SQL",
        ),
        (
            "SELECT 1 FROM orders FOR VERSION AS OF key",
            "VERSION AS OF",
        ),
        (
            "SELECT 1 FROM \"orders$snapshots\" FOR VERSION AS OF 1",
            "leave out AS OF",
        ),
    ] {
        let what = error(&session, sql).await.to_string();
        assert!(what.contains(part), "{sql}: {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_tables_say_what_the_table_has() {
    let (world, snapshots) = world().await;
    world.tag("orders", "audit-1", snapshots[1].0).await;
    world.gap("orders", 1, 40).await;
    let session = world.session().await;
    let sql = "SELECT snapshot_id, parent_id, operation, summary['total-records'] FROM \"orders$snapshots\" ORDER BY committed_at";
    let found = rows(&session, sql).await;
    assert_eq!(found.len(), 4);
    assert_eq!(
        found[1],
        [
            snapshots[1].0.to_string(),
            snapshots[0].0.to_string(),
            "append".to_owned(),
            "20".to_owned()
        ]
    );
    assert_eq!(found[0][1], "∅");
    let sql = "SELECT count(*), sum(record_count), min(file_format), min(content), min(lower_bounds[4]) FROM \"orders$files\"";
    assert_eq!(
        rows(&session, sql).await,
        [["3", "30", "PARQUET", "0", "0"]]
    );
    let sql = "SELECT sum(record_count), sum(file_count), sum(total_size) > 0, min(partition) LIKE 'archived_at_day=%' FROM \"orders$partitions\"";
    assert_eq!(rows(&session, sql).await, [["30", "3", "true", "true"]]);
    let sql = format!(
        "SELECT count(*) FROM \"orders$files\" FOR VERSION AS OF {}",
        snapshots[0].0
    );
    assert_eq!(value(&session, &sql).await, "1");
    let sql = "SELECT is_current_ancestor, count(*) FROM \"orders$history\" GROUP BY 1";
    assert_eq!(rows(&session, sql).await, [["true", "4"]]);
    let sql = "SELECT name, type, snapshot_id FROM \"orders$refs\" WHERE name = 'audit-1'";
    assert_eq!(
        rows(&session, sql).await,
        [[
            "audit-1".to_owned(),
            "TAG".to_owned(),
            snapshots[1].0.to_string()
        ]]
    );
    let sql = "SELECT generation, partition, first_offset, next_offset, rows, is_closed FROM \"orders$ledger\" ORDER BY 2";
    assert_eq!(
        rows(&session, sql).await,
        [
            ["0", "0", "0", "30", "30", "false"],
            ["0", "1", "0", "40", "0", "false"]
        ]
    );
    let sql = format!(
        "SELECT next_offset FROM \"orders$ledger\" VERSION AS OF {}",
        snapshots[0].0
    );
    assert_eq!(value(&session, &sql).await, "10");
    let sql = "SELECT partition, start_offset, end_offset, missing, reason FROM \"orders$gaps\"";
    assert_eq!(
        rows(&session, sql).await,
        [["1", "0", "40", "40", "retention"]]
    );
    for (table, columns) in [
        (
            "orders$snapshots",
            "committed_at,snapshot_id,parent_id,operation,manifest_list,summary",
        ),
        (
            "orders$history",
            "made_current_at,snapshot_id,parent_id,is_current_ancestor",
        ),
        (
            "orders$refs",
            "name,type,snapshot_id,max_reference_age_in_ms,min_snapshots_to_keep,max_snapshot_age_in_ms",
        ),
    ] {
        let schema = session.columns(table).await.expect("columns");
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names.join(","), columns);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_find_tables_or_the_nearest() {
    let (world, _) = world().await;
    let one = [Record::new(0, 0)];
    world.append("Clicks.raw", &one).await;
    let session = world.session().await;
    for name in [
        "Clicks_raw",
        "clicks_raw",
        "\"Clicks.raw\"",
        "\"Clicks_raw\"",
        "everlog.clicks_raw",
    ] {
        assert_eq!(
            value(&session, &format!("SELECT count(*) FROM {name}")).await,
            "1",
            "{name}"
        );
    }
    assert_eq!(
        value(&session, "SELECT count(*) FROM clicks_raw$ledger").await,
        "1"
    );
    let found = session.tables().await.expect("tables");
    let found: Vec<(String, TableKind)> = found.into_iter().map(|t| (t.name, t.kind)).collect();
    let archive = |topic: &str| TableKind::Archive {
        topic: topic.to_owned(),
    };
    assert_eq!(
        found,
        [
            ("Clicks_raw".to_owned(), archive("Clicks.raw")),
            ("orders".to_owned(), archive("orders"))
        ]
    );
    assert_eq!(
        rows(&session, "SHOW TABLES LIKE 'ord%'").await,
        [["orders", "archive", "orders"]]
    );
    let described = rows(&session, "DESCRIBE orders").await;
    assert_eq!(described[3], ["offset", "BIGINT", "NO"]);
    assert_eq!(
        described[4],
        ["timestamp", "TIMESTAMP(6) WITH TIME ZONE", "YES"]
    );
    assert_eq!(rows(&session, "SHOW COLUMNS FROM orders").await, described);
    for (sql, part) in [
        ("SELECT 1 FROM ordres", "did you mean orders?"),
        (
            "SELECT 1 FROM \"orders$snapshot\"",
            "after $ comes one of snapshots, files",
        ),
        ("SELECT 1 FROM xyz", "there are \"Clicks_raw\", orders"),
        ("SELECT 1 FROM other.orders", "the namespace is everlog"),
        ("SELECT 1 FROM orders_v", "[decode.\"orders\"]"),
        ("SELECT 1 FROM \"orders$live\"", "brokers"),
        (
            "SELECT offst FROM orders",
            "there is no column offst; did you mean \"offset\"?",
        ),
        ("SELECT o.valu FROM orders o", "did you mean value?"),
    ] {
        let what = error(&session, sql).await.to_string();
        let part = part.replace("\"offset\"", "offset");
        assert!(what.contains(&part), "{sql}: {what}");
    }
    let what = error(&session, "SELECT \"offset\" + key FROM orders")
        .await
        .to_string();
    assert!(
        what.contains("offset is BIGINT") && what.contains("key is VARBINARY"),
        "{what}"
    );
}

fn job_columns(more: bool) -> Arc<Schema> {
    let mut fields = vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("views", DataType::Int64, false),
    ];
    if more {
        fields.push(Field::new("clicks", DataType::Int64, false));
    }
    Arc::new(Schema::new(fields))
}

async fn epoch(world: &World, version: &str, number: u64, from: u64, to: u64) -> JobTable {
    let columns = job_columns(version == "v2");
    let spec = JobTableSpec {
        table: "sessions".to_owned(),
        job: "sessions".to_owned(),
        version: version.to_owned(),
        columns: Arc::clone(&columns),
        fingerprint: version.to_owned(),
        partitioning: JobPartitioning::None,
        properties: BTreeMap::new(),
        about: BTreeMap::new(),
    };
    let table = JobTable::open_or_create(world.deps(), NAMESPACE, &spec)
        .await
        .expect("a table");
    let numbers: Vec<i64> = (from..to).map(|n| i64::try_from(n).expect("few")).collect();
    let mut arrays: Vec<arrow_array::ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(
            numbers.iter().map(|n| format!("user {}", n % 7)),
        )),
        Arc::new(Int64Array::from(numbers.clone())),
    ];
    if version == "v2" {
        arrays.push(Arc::new(Int64Array::from(numbers)));
    }
    let rows = RecordBatch::try_new(columns, arrays).expect("rows");
    let state = table.state().await.expect("a state");
    let request = JobRows {
        table: &state.table,
        rows: &rows,
    };
    let files = table.write(request).await.expect("files");
    let commit = CommitEpoch {
        marker: Marker {
            job: "sessions".to_owned(),
            version: version.to_owned(),
            epoch: number,
            rows: to,
            positions: "{}".to_owned(),
            watermark: None,
            engine: "test".to_owned(),
        },
        rows_before: from,
        files,
    };
    let outcome = table.commit(&commit).await.expect("a commit");
    assert!(
        matches!(outcome, JobOutcome::Committed { .. }),
        "{outcome:?}"
    );
    world.clock.advance(world.pause);
    table
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_table_is_its_active_version_and_its_branches_are_versions() {
    let world = World::new().await;
    epoch(&world, "v1", 1, 0, 100).await;
    epoch(&world, "v1", 2, 100, 150).await;
    epoch(&world, "v2", 1, 0, 200).await;
    let session = world.session().await;
    assert_eq!(
        value(&session, "SELECT count(*) FROM sessions").await,
        "150"
    );
    let sql = "SELECT count(*), sum(clicks) FROM sessions FOR VERSION AS OF 'v2'";
    assert_eq!(rows(&session, sql).await, [["200", "19900"]]);
    // rows of before the column have none
    let sql = "SELECT count(*), count(clicks) FROM sessions";
    assert_eq!(rows(&session, sql).await, [["150", "0"]]);
    let sql = "SELECT count(*) FROM sessions WHERE views >= 140 AND user_id = 'user 0'";
    assert_eq!(value(&session, sql).await, "2");
    let sql = "SELECT count(*) FROM sessions WHERE clicks = 5 OR views = 7";
    assert_eq!(value(&session, sql).await, "1");
    let sql = "SELECT user_id, count(*) FROM sessions GROUP BY user_id ORDER BY user_id LIMIT 1";
    assert_eq!(rows(&session, sql).await, [["user 0", "22"]]);
    let what = error(&session, "SELECT 1 FROM \"sessions$ledger\"")
        .await
        .to_string();
    assert!(what.contains("no archive"), "{what}");
    let sql = "SELECT name FROM \"sessions$refs\" WHERE type = 'BRANCH' ORDER BY 1";
    assert_eq!(rows(&session, sql).await, [["main"], ["v1"], ["v2"]]);
    // a join between a job's table and an archive
    let records: Vec<Record> = (0..10).map(|n| Record::new(0, n)).collect();
    world.append("orders", &records).await;
    let sql = "SELECT count(*) FROM sessions s JOIN orders o ON s.views = o.\"offset\"";
    assert_eq!(value(&session, sql).await, "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_jobs_table_was_at_a_time_is_what_its_active_version_was_then() {
    let world = World::near().await;
    epoch(&world, "v1", 1, 0, 100).await;
    epoch(&world, "v2", 1, 0, 200).await;
    let table = epoch(&world, "v1", 2, 100, 150).await;
    let promotion = Promotion {
        version: "v2".to_owned(),
        from: "v1".to_owned(),
    };
    world.catch_up().await;
    table.promote(&promotion).await.expect("promoted");
    let session = world.session().await;
    let sql = "SELECT count(*) FROM sessions";
    assert_eq!(value(&session, sql).await, "200");
    let sql = "SELECT CAST(arrow_cast(made_current_at, 'Int64') AS VARCHAR), snapshot_id FROM \"sessions$history\"";
    let log: Vec<(i64, String)> = rows(&session, sql)
        .await
        .into_iter()
        .map(|row| (row[0].parse().expect("a time"), row[1].clone()))
        .collect();
    assert_eq!(log.len(), 3, "{log:?}");
    for (at, _) in &log {
        let then = log.iter().rev().find(|(time, _)| time <= at);
        let then = &then.expect("itself").1;
        let of = |moment: String| format!("SELECT count(*) FROM sessions FOR {moment}");
        let by_time = of(format!("TIMESTAMP AS OF '{}'", sql_time(Millis(*at))));
        let by_id = of(format!("VERSION AS OF {then}"));
        assert_eq!(
            value(&session, &by_time).await,
            value(&session, &by_id).await,
            "{by_time}"
        );
    }
    // the version that was not active yet is not what anybody saw
    let first = sql_time(Millis(log[0].0));
    let sql = format!("SELECT count(*) FROM sessions FOR TIMESTAMP AS OF '{first}'");
    assert_eq!(value(&session, &sql).await, "100");
}

#[tokio::test(flavor = "multi_thread")]
async fn local_files_are_tables_under_their_names() {
    let (world, _) = world().await;
    let csv = world.folder.path().join("a b%.csv");
    std::fs::write(&csv, "key,name\nk0,zero\nk1,one\n").expect("written");
    let json = world.folder.path().join("n.jsonl");
    std::fs::write(&json, "{\"n\": 1}\n{\"n\": 2}\n").expect("written");
    let named = |name: &str, path: &std::path::Path| everlog_query::NamedFile {
        name: name.to_owned(),
        path: path.to_owned(),
    };
    let session = world
        .session_with(SessionOptions {
            files: vec![named("names", &csv), named("numbers", &json)],
            limits: world.limits(),
            ..SessionOptions::default()
        })
        .await;
    let sql =
        "SELECT n.name, count(*) FROM orders o JOIN names n ON o.key = n.key GROUP BY 1 ORDER BY 1";
    assert_eq!(rows(&session, sql).await, [["one", "6"], ["zero", "6"]]);
    assert_eq!(value(&session, "SELECT sum(n) FROM numbers").await, "3");
    assert!(
        try_rows(&session, "SELECT 1 FROM names VERSION AS OF 1")
            .await
            .is_err()
    );
    let missing = everlog_query::Session::open(
        world.lake(),
        SessionOptions {
            files: vec![named("x", &world.folder.path().join("none.csv"))],
            limits: world.limits(),
            ..SessionOptions::default()
        },
    );
    let what = missing.await.expect_err("no such file").to_string();
    assert!(
        what.contains("--table x=") && !what.contains('\n'),
        "{what}"
    );
}
