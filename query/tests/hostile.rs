//! The SQL entry under hostile text: any statement is an answer or an error of one line, never a panic, an abort, or memory
//! without bounds. What a corpus of good and of nasty statements becomes when it is changed, cut, repeated and mixed.

mod support;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use everlog_hostile::{counted, feed_text};
use everlog_query::{Limits, QueryError, SessionOptions};
use futures::StreamExt;
use support::{Record, World};

const CORPUS: [&str; 26] = [
    "SELECT 1",
    "SELECT partition, count(*), max(offset) FROM orders WHERE timestamp >= '2023-11-15' GROUP BY partition HAVING count(*) > 1 ORDER BY 1 LIMIT 10",
    "SELECT o.offset FROM orders AS o JOIN orders p ON o.offset = p.offset AND p.partition = 0 WHERE o.key = 'k1'",
    "SELECT count(*) FROM orders FOR TIMESTAMP AS OF TIMESTAMP '2026-01-31 10:00:00+02:00'",
    "SELECT count(*) FROM orders FOR VERSION AS OF 6341277311420927 AS then",
    "SELECT count(*) FROM orders VERSION AS OF 'audit-2026'",
    "SELECT committed_at, summary['total-records'] FROM \"orders$snapshots\" ORDER BY committed_at",
    "SELECT l.partition, g.reason FROM \"orders$ledger\" l LEFT JOIN \"orders$gaps\" g ON g.partition = l.partition",
    "SELECT file_path, lower_bounds FROM \"orders$files\"",
    "WITH x AS (SELECT 1 AS a) SELECT * FROM x UNION ALL SELECT 2",
    "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 10) SELECT sum(n) FROM t",
    "SELECT value ->> 'n', json_get_int(value, 'a', 0, 'b') + 1 FROM orders WHERE json_contains(value, 'n')",
    "SELECT row_number() OVER (PARTITION BY partition ORDER BY offset DESC ROWS BETWEEN 3 PRECEDING AND CURRENT ROW) FROM orders",
    "SELECT repeat('a', 10), lpad('b', 20, 'x'), array_repeat(1, 5), generate_series(1, 9), regexp_replace('aaa', 'a+', 'b')",
    "SELECT * FROM generate_series(1, 100) a CROSS JOIN range(0, 100) b",
    "SELECT CASE WHEN offset > 5 THEN 'x' ELSE NULL END, CAST(key AS VARCHAR), [1, 2, 3][2], {'a': 1} FROM orders",
    "SELECT (((((((((1)))))))))",
    "SELECT 1 + 2 * -3 / 4 % 5 || 'x' AND NOT true OR 1 IN (1, 2) AND 2 BETWEEN 1 AND 3 AND 'a' LIKE 'b%'",
    "SELECT date_bin(INTERVAL '6 hours', timestamp), sum(count(*)) OVER (ORDER BY 1) FROM orders GROUP BY 1",
    "SELECT DISTINCT key FROM orders EXCEPT SELECT key FROM orders WHERE offset < 10 INTERSECT SELECT NULL",
    "SELECT max(offset) FROM (SELECT offset FROM (SELECT * FROM orders) a) b WHERE EXISTS (SELECT 1 FROM orders)",
    "EXPLAIN ANALYZE SELECT count(value) FROM orders",
    "SHOW COLUMNS FROM orders",
    "COPY (SELECT 1) TO '/dev/null'",
    "SET datafusion.execution.batch_size = 0",
    "SELECT * FROM read_csv('/etc/passwd') /* a comment -- /* within */ */ -- and another",
];

/// What planning and reading may hold on the session's thread: the limit of what sorts and joins hold is within it.
const MEMORY: usize = 192 << 20;
/// A statement's own limit, and what looking at it may take on top of it on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// What one statement came to: rows, or the error; and the most bytes that it held at once.
type Ended = (Result<usize, QueryError>, usize);

/// A session on a thread of its own, which takes statements and tells how they ended.
fn session() -> (mpsc::SyncSender<String>, mpsc::Receiver<Ended>) {
    let (send, statements) = mpsc::sync_channel::<String>(0);
    let (told, ended) = mpsc::sync_channel::<Ended>(0);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (world, session) = runtime.block_on(async {
            let world = World::new().await;
            let records: Vec<Record> = (0..1_000).map(|n| Record::new(0, n)).collect();
            world.append("orders", &records).await;
            let limits = Limits {
                memory: 64 << 20,
                timeout: Some(TIMEOUT),
                max_rows: Some(10_000),
                spill_bytes: 64 << 20,
                threads: 1,
                ..world.limits()
            };
            let options = SessionOptions {
                limits,
                ..SessionOptions::default()
            };
            let session = world.session_with(options).await;
            (world, session)
        });
        for sql in statements {
            let asked = async {
                let mut answer = session.query(&sql).await?;
                let mut rows = 0;
                while let Some(batch) = answer.batches.next().await {
                    rows += batch.map_err(QueryError::of)?.num_rows();
                }
                Ok(rows)
            };
            if told.send(counted(|| runtime.block_on(asked))).is_err() {
                break;
            }
        }
        drop(world);
    });
    (send, ended)
}

#[test]
fn any_text_is_an_answer_or_an_error_of_one_line() {
    let (statements, ended) = session();
    let (answers, errors) = (std::cell::Cell::new(0_u64), std::cell::Cell::new(0_u64));
    feed_text("a statement", &CORPUS, |sql| {
        let began = Instant::now();
        statements
            .send(sql.to_owned())
            .expect("the session is there");
        let (end, held) = ended
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|why| panic!("no end after {:?}: {why}", began.elapsed()));
        assert!(held <= MEMORY, "{held} bytes were held");
        match end {
            Ok(_) => answers.set(answers.get() + 1),
            Err(error) => {
                let text = error.to_string();
                // a name that it quotes may have line breaks of its own
                let is_one = !text.contains('\n') || sql.contains('\n');
                assert!(!text.is_empty() && is_one, "{text:?}");
                errors.set(errors.get() + 1);
            }
        }
    });
    // neither a guard that refuses everything nor one that lets everything through
    assert!(answers.get() >= 40, "{} answers", answers.get());
    assert!(errors.get() >= 40, "{} errors", errors.get());
}
