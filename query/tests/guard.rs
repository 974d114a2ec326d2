//! What is refused, and what is bounded: hostile statements end with one clear line, never with the process.

mod support;

use std::time::{Duration, Instant};

use everlog_query::{Limits, QueryError, Session, SessionOptions};
use futures::StreamExt;
use support::{Record, World, asked, error, rows, value};

async fn world() -> World {
    let world = World::new().await;
    let records: Vec<Record> = (0..1_000).map(|n| Record::new(0, n)).collect();
    world.append("orders", &records).await;
    world
}

async fn limited(world: &World, change: impl FnOnce(&mut Limits)) -> Session {
    let mut limits = world.limits();
    change(&mut limits);
    world
        .session_with(SessionOptions {
            limits,
            ..SessionOptions::default()
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_only_read_is_refused() {
    let world = world().await;
    let session = world.session().await;
    let secret = world.folder.path().join("secret.csv");
    std::fs::write(&secret, "a\n1\n").expect("written");
    let secret = secret.display();
    let out = world.folder.path().join("out");
    let statements = [
        "CREATE TABLE t AS SELECT 1".to_owned(),
        "CREATE VIEW v AS SELECT * FROM orders".to_owned(),
        format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{secret}'"),
        "CREATE FUNCTION f() RETURNS INT RETURN 1".to_owned(),
        "CREATE SCHEMA s".to_owned(),
        "DROP TABLE orders".to_owned(),
        "ALTER TABLE orders ADD COLUMN x INT".to_owned(),
        "TRUNCATE TABLE orders".to_owned(),
        "INSERT INTO orders SELECT * FROM orders".to_owned(),
        "WITH x AS (SELECT 1) INSERT INTO orders SELECT * FROM x".to_owned(),
        "UPDATE orders SET key = NULL".to_owned(),
        "DELETE FROM orders".to_owned(),
        "MERGE INTO orders USING orders o ON true WHEN MATCHED THEN DELETE".to_owned(),
        format!("COPY orders TO '{}'", out.display()),
        format!("COPY (SELECT 1) TO '{}' STORED AS PARQUET", out.display()),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        "RESET datafusion.execution.batch_size".to_owned(),
        "SHOW ALL".to_owned(),
        "SHOW datafusion.execution.batch_size".to_owned(),
        "PREPARE p AS SELECT 1".to_owned(),
        "EXECUTE p".to_owned(),
        "BEGIN".to_owned(),
        "COMMIT".to_owned(),
        "USE x".to_owned(),
        "CALL f()".to_owned(),
        "EXPLAIN DROP TABLE orders".to_owned(),
        "EXPLAIN INSERT INTO orders SELECT * FROM orders".to_owned(),
        "SELECT * INTO t FROM orders".to_owned(),
        "SELECT * FROM orders FOR UPDATE".to_owned(),
        "SELECT * FROM orders TABLESAMPLE BERNOULLI (1)".to_owned(),
        format!("SELECT * FROM '{secret}'"),
        format!("SELECT * FROM \"{secret}\""),
        format!("SELECT * FROM \"file://{secret}\""),
        "SELECT * FROM \"/etc/passwd\"".to_owned(),
        "SELECT * FROM \"../catalog.db\"".to_owned(),
        "SELECT * FROM \"https://example.com/x.parquet\"".to_owned(),
        format!("SELECT * FROM read_csv('{secret}')"),
        format!("SELECT * FROM read_parquet('{secret}')"),
        "SELECT * FROM parquet_metadata('/etc/passwd')".to_owned(),
        "SELECT pg_read_file('/etc/passwd')".to_owned(),
        "SELECT load_extension('x')".to_owned(),
        "SELECT * FROM information_schema.tables".to_owned(),
        "SELECT 1; SELECT 2".to_owned(),
        "SELECT 1; DROP TABLE orders".to_owned(),
        "ATTACH DATABASE 'x' AS x".to_owned(),
        "LOAD x".to_owned(),
        "INSTALL x".to_owned(),
        "KILL 1".to_owned(),
        // clauses that would be passed over
        "SELECT partition, count(*) FROM orders GROUP BY partition WITH ROLLUP".to_owned(),
        "SELECT partition, count(*) FROM orders GROUP BY partition WITH TOTALS".to_owned(),
        "SELECT key FROM orders EXCEPT ALL SELECT key FROM orders".to_owned(),
        "SELECT key FROM orders INTERSECT ALL SELECT key FROM orders".to_owned(),
        "SELECT * FROM orders LIMIT 1 BY partition".to_owned(),
        "SELECT * FROM orders ORDER BY partition WITH FILL".to_owned(),
        "SELECT * ILIKE 'x' FROM orders".to_owned(),
        "FROM orders LIMIT 1".to_owned(),
        "FROM orders |> LIMIT 1".to_owned(),
        "SELECT * FROM orders JOIN orders o".to_owned(),
        "SELECT * FROM orders LEFT JOIN orders o".to_owned(),
        "SELECT * FROM orders FULL JOIN orders o USING (\"offset\")".to_owned(),
        "SELECT * FROM orders NATURAL RIGHT JOIN orders o".to_owned(),
        "SELECT * FROM (orders JOIN orders o)".to_owned(),
        "SELECT * FROM generate_series(1, 3) WITH ORDINALITY".to_owned(),
        "SELECT * FROM generate_series(1, 3) TABLESAMPLE BERNOULLI (1)".to_owned(),
        "SELECT * FROM generate_series(1, nonsense(), 3)".to_owned(),
        "SELECT * FROM orders WHERE (partition = 0) IS DISTINCT FROM true AND \"offset\" > 5"
            .to_owned(),
        "SELECT * FROM orders WHERE (partition = 0) IS NOT DISTINCT FROM true OR \"offset\" > 5"
            .to_owned(),
        "ANALYZE TABLE orders COMPUTE STATISTICS".to_owned(),
        "VACUUM".to_owned(),
        String::new(),
        ";".to_owned(),
        "-- nothing".to_owned(),
        "nonsense".to_owned(),
    ];
    for sql in statements {
        let refused = error(&session, &sql).await;
        let what = refused.to_string();
        assert!(
            matches!(
                refused,
                QueryError::Refused(_)
                    | QueryError::Syntax(_)
                    | QueryError::UnknownTable(_)
                    | QueryError::Invalid(_)
            ),
            "{sql}: {refused:?}"
        );
        assert!(!what.is_empty() && !what.contains('\n'), "{sql}: {what}");
    }
    assert!(!out.exists());
    assert_eq!(value(&session, "SELECT count(*) FROM orders").await, "1000");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reads_is_let_through() {
    let world = world().await;
    let session = world.session().await;
    for sql in [
        "SELECT 1;",
        "VALUES (1), (2)",
        "FROM orders SELECT count(*)",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "WITH x AS (SELECT 1 AS a) SELECT * FROM x",
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 10) SELECT sum(n) FROM t",
        "SELECT * FROM generate_series(1, 3)",
        "SELECT * FROM range(0, 3)",
        "SELECT unnest([1, 2, 3])",
        "SELECT * FROM unnest([1, 2, 3])",
        "SELECT repeat('a', 10), lpad('a', 5, 'b'), replace('abc', 'b', 'xx'), generate_series(1, 5)",
        "SELECT row_number() OVER (PARTITION BY partition ORDER BY \"offset\") FROM orders LIMIT 1",
        "SELECT (SELECT max(\"offset\") FROM orders) FROM orders o WHERE EXISTS (SELECT 1 FROM orders p WHERE p.\"offset\" = o.\"offset\")",
        "SELECT offset FROM orders ORDER BY offset LIMIT 1",
        "SELECT o.offset, o.timestamp FROM orders AS o WHERE o.timestamp > '2023-01-01' AND o.offset BETWEEN 5 AND 7",
        "SELECT partition, offset, timestamp, key FROM orders WHERE offset > 5 AND timestamp IS NOT NULL ORDER BY partition, offset LIMIT 1",
        "EXPLAIN SELECT * FROM orders",
        "EXPLAIN ANALYZE SELECT count(value) FROM orders",
        "SHOW TABLES",
        "DESCRIBE orders",
        "SHOW COLUMNS FROM orders",
        "SELECT version FROM (SELECT 1 AS version)",
        "SELECT 1 AS of",
    ] {
        let found = asked(&session, sql).await;
        assert!(
            found.is_ok(),
            "{sql}: {}",
            found.err().map(|e| e.to_string()).unwrap_or_default()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_statements_work_or_are_refused_and_never_overflow() {
    let world = world().await;
    let session = world.session().await;
    let chain = |n: usize, part: &str, by: &str| vec![part; n].join(by);
    // two thousand work
    assert_eq!(
        value(&session, &format!("SELECT {}", chain(2_000, "1", "+"))).await,
        "2000"
    );
    let sql = format!(
        "SELECT count(*) FROM orders WHERE \"offset\" = {}",
        chain(2_000, "0", "+")
    );
    assert_eq!(value(&session, &sql).await, "1");
    let sql = format!(
        "SELECT max({}) FROM orders",
        chain(1_000, "\"offset\"", "+")
    );
    assert_eq!(value(&session, &sql).await, "999000");
    let sql = format!(
        "SELECT count(*) FROM orders WHERE {}",
        (0..1_000)
            .map(|n| format!("\"offset\" = {n}"))
            .collect::<Vec<_>>()
            .join(" OR ")
    );
    assert_eq!(value(&session, &sql).await, "1000");
    // whatever becomes of these, it is an answer or one line
    for sql in [
        format!("SELECT {}", chain(60_000, "1", "+")),
        format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000)),
        format!("SELECT {}", "(".repeat(100_000)),
        format!("SELECT {}true", "NOT ".repeat(20_000)),
        format!("SELECT {}1", "- ".repeat(20_000)),
        format!("SELECT {}1{}", "(SELECT ".repeat(1_000), ")".repeat(1_000)),
        format!("SELECT {}1{}", "abs(".repeat(3_000), ")".repeat(3_000)),
        format!("SELECT {}1{}", "[".repeat(3_000), "]".repeat(3_000)),
        format!(
            "SELECT {}1 {}",
            "CASE WHEN true THEN ".repeat(2_000),
            "END ".repeat(2_000)
        ),
        format!(
            "SELECT * FROM {}orders{}",
            "(SELECT * FROM ".repeat(1_000),
            ")".repeat(1_000)
        ),
        chain(2_000, "SELECT 1", " UNION ALL "),
        format!("SELECT * FROM {}", chain(1_000, "orders", ", ")),
        format!("SELECT '{}'", "x".repeat(2 << 20)),
        format!("SELECT 1 IN ({})", chain(200_000, "1", ",")),
        "SELECT ".to_owned() + &"\u{0}".repeat(100),
        "\"".repeat(1_001),
        "'".repeat(1_001),
        "/*".repeat(10_000),
        "$$".repeat(1_001),
    ] {
        match asked(&session, &sql).await {
            Ok(_) => {}
            Err(error) => {
                let what = error.to_string();
                assert!(
                    !what.contains('\n') && what.len() < 2_000,
                    "{} …: {what}",
                    &sql[..40.min(sql.len())]
                );
            }
        }
    }
    assert_eq!(value(&session, "SELECT count(*) FROM orders").await, "1000");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_any_size_are_refused_before_they_are_made() {
    let world = world().await;
    let session = world.session().await;
    for sql in [
        "SELECT repeat('a', 9000000000)",
        "SELECT length(repeat(repeat('a', 1000000), 1000000))",
        "SELECT lpad('a', 2000000000)",
        "SELECT rpad('a', 2000000000, 'xy')",
        "SELECT generate_series(1, 10000000000)",
        "SELECT array_agg(value) OVER () FROM generate_series(1, 10000000)",
        "SELECT unnest(generate_series(1, 1000000)) FROM orders",
        "SELECT range(0, 9223372036854775807)",
        "SELECT generate_series(-9223372036854775807, 9223372036854775807)",
        "SELECT range(TIMESTAMP '0001-01-01', TIMESTAMP '9999-01-01', INTERVAL '1 nanosecond')",
        "SELECT array_repeat(1, 10000000000)",
        "SELECT array_repeat(array_repeat(1, 16384), 16384)",
        "SELECT array_repeat(array_repeat(array_repeat('abc', 100), 100), 100)",
        "SELECT array_repeat(repeat('x', 65536), 16384)",
        "SELECT array_resize([1], 16384, repeat('x', 65536)) FROM orders",
        "SELECT array_resize([1], 10000000000)",
        "SELECT replace(repeat('a', 1000000), 'a', repeat('b', 1000000))",
        "SELECT regexp_replace(repeat('a', 1000000), 'a', repeat('b', 1000000), 'g')",
        "SELECT repeat('abc', \"offset\" * 1000000000) FROM orders",
    ] {
        let refused = error(&session, sql).await;
        assert!(
            matches!(
                refused,
                QueryError::Limit(_)
                    | QueryError::Failed(_)
                    | QueryError::Invalid(_)
                    | QueryError::Refused(_)
            ),
            "{sql}: {refused:?}"
        );
        assert!(!refused.to_string().contains('\n'), "{sql}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn time_is_bounded_also_of_what_never_ends() {
    let world = world().await;
    let session = limited(&world, |limits| {
        limits.timeout = Some(Duration::from_secs(2));
    })
    .await;
    for sql in [
        "SELECT count(*) FROM generate_series(1, 9000000000000) a WHERE a.value % 7 = 3",
        "SELECT count(*) FROM orders a, orders b, orders c, orders d WHERE a.\"offset\" + b.\"offset\" + c.\"offset\" + d.\"offset\" = 7",
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
        "SELECT * FROM generate_series(1, 9000000000000)",
    ] {
        let begun = Instant::now();
        let refused = error(&session, sql).await;
        assert!(
            matches!(refused, QueryError::Limit(_)),
            "{sql}: {refused:?}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{sql}: {:?}",
            begun.elapsed()
        );
    }
    // and the session goes on, when what did not yield at once has come to its next pause
    let begun = Instant::now();
    while support::try_rows(&session, "SELECT count(*) FROM orders")
        .await
        .is_err()
    {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_bounded() {
    let world = world().await;
    let session = limited(&world, |limits| limits.max_rows = Some(10)).await;
    assert_eq!(
        rows(&session, "SELECT * FROM orders LIMIT 10").await.len(),
        10
    );
    let refused = error(&session, "SELECT * FROM orders LIMIT 11").await;
    assert!(matches!(refused, QueryError::Limit(_)), "{refused:?}");
    assert!(
        refused.to_string().contains("more than 10 rows"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_and_sorts_spill_into_a_folder_that_is_removed() {
    let world = world().await;
    let spill = world.folder.path().join("spill");
    std::fs::create_dir(&spill).expect("a folder");
    let session = limited(&world, |limits| {
        limits.memory = 96 << 20;
        limits.spill.clone_from(&spill);
        limits.threads = 1;
    })
    .await;
    // more rows than memory
    let sql = "SELECT count(*), max(r) FROM (SELECT row_number() OVER (ORDER BY a.value % 1000, a.value::varchar || 'xxxxxxxxxxxx') AS r FROM generate_series(1, 2000000) a)";
    assert_eq!(rows(&session, sql).await, [["2000000", "2000000"]]);
    let entries = || std::fs::read_dir(&spill).expect("a folder").count();
    assert_eq!(entries(), 1);
    let sql =
        "SELECT max(s) FROM (SELECT sum(a.value) OVER () AS s FROM generate_series(1, 20000000) a)";
    let refused = error(&session, sql).await;
    assert!(matches!(refused, QueryError::Limit(_)), "{refused:?}");
    assert!(refused.to_string().contains("--memory"), "{refused}");
    drop(session);
    assert_eq!(entries(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sorts_by_expressions_give_their_order_and_no_column_more() {
    let world = world().await;
    let session = world.session().await;
    let sql = "SELECT offset FROM orders ORDER BY offset % 7 DESC, concat('x', cast(999 - offset AS VARCHAR)), offset";
    let mut expected: Vec<i64> = (0..1_000).collect();
    expected.sort_by_key(|n| (-(n % 7), format!("x{}", 999 - n)));
    let found = rows(&session, sql).await;
    let expected: Vec<[String; 1]> = expected.iter().map(|n| [n.to_string()]).collect();
    assert_eq!(found, expected);
    let plan = rows(&session, &format!("EXPLAIN {sql}")).await;
    assert!(format!("{plan:?}").contains("SortedExec"), "{plan:?}");
    // windows and joins above it see the order that was there before
    let sql = "SELECT a.r, b.o FROM (SELECT offset % 7 AS k, offset AS o, row_number() OVER (PARTITION BY offset % 7 ORDER BY 0 - offset) AS r FROM orders) a
               JOIN (SELECT offset AS o FROM orders) b ON a.o = b.o WHERE a.r <= 2 ORDER BY a.r + 0, b.o + 0";
    let found = rows(&session, sql).await;
    let expected: Vec<[String; 2]> = (993..1_000)
        .map(|n| ["1".to_owned(), n.to_string()])
        .chain((986..993).map(|n| ["2".to_owned(), n.to_string()]))
        .collect();
    assert_eq!(found, expected);
    let sql = "SELECT offset % 3 AS k, count(*), array_agg(offset ORDER BY 0 - offset)[1] FROM orders GROUP BY offset % 3 ORDER BY -k";
    assert_eq!(
        rows(&session, sql).await,
        [
            ["2", "333", "998"],
            ["1", "333", "997"],
            ["0", "334", "999"]
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_is_bounded() {
    let world = world().await;
    let session = limited(&world, |limits| {
        limits.memory = 96 << 20;
        limits.spill_bytes = 1 << 20;
        limits.threads = 1;
    })
    .await;
    let sql = "SELECT count(*), max(r) FROM (SELECT row_number() OVER (ORDER BY a.value % 1000, a.value::varchar || 'xxxxxxxxxxxx') AS r FROM generate_series(1, 2000000) a)";
    let refused = error(&session, sql).await;
    assert!(matches!(refused, QueryError::Limit(_)), "{refused:?}");
    assert!(
        refused.to_string().contains("temporary folder"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_dropped_ends_its_query_and_outlives_its_session() {
    let world = world().await;
    let session = world.session().await;
    let sql = "SELECT a.value FROM generate_series(1, 9000000000000) a";
    let mut answer = session.query(sql).await.expect("an answer");
    assert!(answer.batches.next().await.expect("a batch").is_ok());
    drop(answer);
    let mut answer = session.query(sql).await.expect("an answer");
    drop(session);
    for _ in 0..3 {
        assert!(answer.batches.next().await.expect("a batch").is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_values_say_what_to_do() {
    let world = world().await;
    let session = world.session().await;
    for (sql, part) in [
        ("SELECT cast('x' AS INT)", "try_cast"),
        ("SELECT 1 / (\"offset\" - 5) FROM orders", "nullif"),
        ("SELEC 1", "not SQL"),
        ("SELECT nosuchfunction(1)", "nosuchfunction"),
        ("SELECT count(*) FROM orders GROUP BY", "not SQL"),
    ] {
        let what = error(&session, sql).await.to_string();
        assert!(what.contains(part) && !what.contains('\n'), "{sql}: {what}");
    }
}
