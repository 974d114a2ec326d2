//! What is understood, what is refused with which words, and the Flink program.

use std::sync::Arc;
use std::time::Duration;

use arrow_schema::{DataType, Field, Schema};
use everlog_engine::{EventTime, Flink, Query, Refusal};

use crate::log::{Run, record, source_schema, try_query};

fn refuse(sql: &str) -> String {
    match try_query(sql, EventTime::default()) {
        Ok(_) => panic!("it is taken: {sql}"),
        Err(refusal) => {
            let text = refusal.to_string();
            assert!(!text.contains('\n'), "{text}");
            text
        }
    }
}

#[test]
fn what_cannot_be_repeated_or_ended_is_refused_with_the_way_out() {
    let window = "GROUP BY user_id, TUMBLE(ts, INTERVAL '1' HOUR)";
    let cases = [
        ("SELECT now() AS n FROM clicks".to_owned(), "now() gives another answer in each run"),
        (format!("SELECT user_id, max(random()) AS r FROM clicks {window}"), "random()"),
        ("SELECT uuid() AS id FROM clicks".to_owned(), "uuid()"),
        ("SELECT count(*) AS n FROM clicks".to_owned(), "an aggregate without a window"),
        ("SELECT user_id, count(*) AS n FROM clicks GROUP BY user_id".to_owned(), "TUMBLE(ts, INTERVAL '1' HOUR)"),
        (format!("SELECT array_agg(kind) AS k FROM clicks {window}"), "write array_agg(column ORDER BY ts)"),
        (format!("SELECT first_value(kind) AS k FROM clicks {window}"), "without ORDER BY depends on the order of arrival"),
        (format!("SELECT stddev(price) AS k FROM clicks {window}"), "as DECIMAL"),
        (format!("SELECT approx_distinct(kind) AS k FROM clicks {window}"), "count(DISTINCT"),
        (format!("SELECT median(price) AS k FROM clicks {window}"), "the aggregate median is not supported"),
        (format!("SELECT sum(DISTINCT price) AS k FROM clicks {window}"), "sum(DISTINCT"),
        (format!("SELECT count(*) AS n FROM clicks {window} ORDER BY n"), "ORDER BY and LIMIT"),
        (format!("SELECT count(*) AS n FROM clicks {window} LIMIT 3"), "ORDER BY and LIMIT"),
        ("SELECT DISTINCT user_id FROM clicks".to_owned(), "source.deduplicate"),
        ("SELECT a.user_id FROM clicks a JOIN clicks b ON a.user_id = b.user_id".to_owned(), "joins are not supported"),
        ("SELECT a.user_id FROM clicks a, clicks b".to_owned(), "joins are not supported"),
        ("SELECT * FROM (SELECT * FROM clicks)".to_owned(), "sub-queries"),
        ("SELECT user_id FROM clicks WHERE amount > (SELECT max(amount) FROM clicks)".to_owned(), "sub-queries"),
        ("SELECT * FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY ts) AS n FROM clicks) WHERE n = 1".to_owned(), "source.deduplicate"),
        ("SELECT sum(amount) OVER (ORDER BY ts) AS s FROM clicks".to_owned(), "OVER"),
        ("SELECT user_id FROM clicks UNION ALL SELECT user_id FROM clicks".to_owned(), "UNION"),
        ("WITH c AS (SELECT * FROM clicks) SELECT * FROM c".to_owned(), "WITH"),
        ("SELECT user_id, count(*) AS n FROM TABLE(TUMBLE(TABLE clicks, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY user_id, window_start".to_owned(), "the form that Flink also takes"),
        (format!("SELECT count(*) AS n FROM clicks {window}, SESSION(ts, INTERVAL '1' HOUR)"), "two windows"),
        (format!("SELECT TUMBLE_START(ts, INTERVAL '2' HOUR) AS s FROM clicks {window}"), "two windows"),
        (format!("SELECT TUMBLE(ts, INTERVAL '1' HOUR) AS w FROM clicks {window}"), "select TUMBLE_START"),
        ("SELECT TUMBLE_START(ts, INTERVAL '2' HOUR) AS s FROM clicks".to_owned(), "is not in GROUP BY"),
        ("SELECT user_id FROM clicks GROUP BY user_id, TUMBLE(timestamp_ms, INTERVAL '1' HOUR)".to_owned(), "windows are over the event time"),
        ("SELECT user_id FROM clicks GROUP BY user_id, TUMBLE(ts)".to_owned(), "TUMBLE takes (ts, size)"),
        ("SELECT user_id FROM clicks GROUP BY user_id, TUMBLE(ts, 5)".to_owned(), "is not an INTERVAL"),
        ("SELECT user_id FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '1' MONTH)".to_owned(), "write it in days"),
        ("SELECT user_id FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '0' SECOND)".to_owned(), "must be positive"),
        ("SELECT user_id FROM clicks GROUP BY user_id, HOP(ts, INTERVAL '2' HOUR, INTERVAL '1' HOUR)".to_owned(), "the slide comes first"),
        ("SELECT user_id FROM clicks GROUP BY user_id, SESSION(ts, CASE WHEN amount > 0 THEN INTERVAL '1' SECOND ELSE INTERVAL '2' SECOND END)".to_owned(), "is not a constant"),
        ("SELECT user_id, TUMBLE_PROCTIME(ts, INTERVAL '1' HOUR) AS p FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '1' HOUR)".to_owned(), "processing time"),
        (format!("SELECT count(*) AS n FROM clicks {window}").replace("user_id", "GROUPING SETS ((user_id), (kind))"), "GROUPING SETS"),
        (format!("SELECT count(*) AS n FROM clicks {window} WITH ROLLUP"), "ROLLUP"),
        ("SELECT user_id, count(*) AS n FROM clicks GROUP BY ALL".to_owned(), "GROUP BY ALL"),
        ("SELECT user_id FROM clicks TABLESAMPLE (10 PERCENT)".to_owned(), "TABLESAMPLE"),
        ("SELECT user_id FROM clicks FOR UPDATE".to_owned(), "FOR UPDATE"),
        ("SELECT user_id FROM clicks |> WHERE amount > 1".to_owned(), "|>"),
        ("SELECT * EXCLUDE (kind) FROM clicks".to_owned(), "not supported"),
        ("FROM clicks".to_owned(), "it selects no columns"),
        (format!("SELECT count(DISTINCT kind, amount) AS n FROM clicks {window}"), "it cannot be computed"),
        ("SELECT user_id FROM clicks GROUP BY user_id, HOP(ts, INTERVAL '1' SECOND, INTERVAL '1' DAY)".to_owned(), "HOP puts each record into 86400 windows"),
        ("SELECT userid FROM clicks".to_owned(), "userid"),
        ("SELECT User_Id FROM clicks".to_owned(), "User_Id"),
        ("SELECT user_id FROM events".to_owned(), "the job's source is clicks"),
        ("SELECT user_id, user_id FROM clicks".to_owned(), "user_id"),
        ("SELECT NULL AS n FROM clicks".to_owned(), "CAST(NULL AS STRING)"),
        ("INSERT INTO x SELECT 1".to_owned(), "not a SELECT"),
        ("SELECT user_id FROM clicks; SELECT 1".to_owned(), "more than one statement"),
        (String::new(), "it is empty"),
        ("SELEC user_id".to_owned(), "does not parse"),
        ("SELECT 1 AS one".to_owned(), "it has no FROM"),
    ];
    for (sql, expected) in cases {
        let text = refuse(&sql);
        assert!(
            text.contains(expected),
            "{sql}\n  expected {expected}\n  found {text}"
        );
    }
}

#[test]
fn event_times_must_be_times() {
    let with = |event_time: &str| -> Result<Query, Refusal> {
        Query::new(
            "SELECT ts FROM clicks",
            "clicks",
            source_schema(),
            event_time,
            EventTime::default(),
        )
    };
    for (event_time, expected) in [
        (
            "timestamp_ms",
            "say what it counts: to_timestamp_millis(column)",
        ),
        ("user_id", "is Utf8 and not a TIMESTAMP"),
        ("to_timestamp_millis(tmstamp)", "tmstamp"),
        ("now()", "another answer in each run"),
        ("to_timestamp(", "does not parse"),
        ("_timestamp, _offset", "one expression"),
    ] {
        let refusal = with(event_time).expect_err(event_time).to_string();
        assert!(refusal.contains(expected), "{event_time}: {refusal}");
    }
    for good in [
        "_timestamp",
        "to_timestamp_millis(timestamp_ms)",
        "coalesce(to_timestamp_millis(timestamp_ms), _timestamp)",
    ] {
        with(good).expect(good);
    }
    let schema = Arc::new(Schema::new(vec![Field::new("ts", DataType::Int64, true)]));
    let refusal = Query::new(
        "SELECT ts FROM c",
        "c",
        Arc::clone(&schema) as _,
        "_timestamp",
        EventTime::default(),
    )
    .expect_err("two ts");
    assert!(
        refusal.to_string().contains("rename the column"),
        "{refusal}"
    );
}

#[test]
fn the_rows_have_the_names_and_types_of_the_select() {
    let query = try_query(
        "SELECT user_id, HOP_START(ts, INTERVAL '5' MINUTE, INTERVAL '1' HOUR), HOP_ROWTIME(ts, INTERVAL '5' MINUTE, INTERVAL '1' HOUR) AS last, \
         sum(amount) * 2 AS twice, avg(amount) AS mean FROM clicks c WHERE c.amount > 0 \
         GROUP BY user_id, HOP(ts, INTERVAL '5' MINUTE, INTERVAL '1' HOUR) HAVING count(*) > 1",
        EventTime::default(),
    )
    .expect("a good query");
    let schema = query.output_schema();
    let columns: Vec<String> = schema
        .fields()
        .iter()
        .map(|f| format!("{} {}", f.name(), f.data_type()))
        .collect();
    let instant =
        DataType::Timestamp(arrow_schema::TimeUnit::Millisecond, Some("UTC".into())).to_string();
    assert_eq!(
        columns,
        [
            "user_id Utf8".to_owned(),
            format!("hop_start {instant}"),
            format!("last {instant}"),
            "twice Int64".to_owned(),
            "mean Float64".to_owned()
        ]
    );
    assert!(query.is_windowed());
    let text = query.explain();
    assert!(text.contains("hop, 1h long, one each 5m"), "{text}");
    assert!(text.contains("hop(c.ts, 300s, 3600s)"), "{text}");
    assert!(!text.contains("IntervalMonthDayNano"), "{text}");
}

#[test]
fn having_projection_keys_and_edges_are_computed_over_windows() {
    let query = Arc::new(
        try_query(
            "SELECT upper(user_id) AS who, count(*) + 1 AS n, TUMBLE_END(ts, INTERVAL '1' SECOND) AS e, \
             TUMBLE_ROWTIME(ts, INTERVAL '1' SECOND) AS r, length(user_id) AS l FROM clicks \
             GROUP BY user_id, length(user_id), TUMBLE(ts, INTERVAL '1' SECOND) HAVING count(*) >= 2",
            EventTime::default(),
        )
        .expect("a good query"),
    );
    let log = vec![vec![record("b", 1), record("a", 2), record("b", 3)]];
    let outcome = Run::assigned(&query, 1).finish(&log);
    assert_eq!(outcome.rows, ["B|3|1000|999|1"]);
}

#[test]
fn a_window_without_keys_counts_all() {
    for select in ["count(*) AS n", "'all' AS n"] {
        let sql = format!(
            "SELECT TUMBLE_START(ts, INTERVAL '1' SECOND) AS s, {select} FROM clicks GROUP BY TUMBLE(ts, INTERVAL '1' SECOND)"
        );
        let query = Arc::new(try_query(&sql, EventTime::default()).expect("a good query"));
        let log = vec![
            vec![record("b", 1), record("a", 2)],
            vec![record("c", 3), record("c", 5_000)],
        ];
        let rows = Run::assigned(&query, 2).finish(&log).rows;
        let n = if select.starts_with('c') {
            ["3", "1"]
        } else {
            ["all", "all"]
        };
        assert_eq!(rows, [format!("0|{}", n[0]), format!("5000|{}", n[1])]);
    }
}

#[test]
fn a_star_is_the_declared_columns_and_the_event_time() {
    let query = try_query("SELECT * FROM clicks", EventTime::default()).expect("a good query");
    let names: Vec<String> = query
        .output_schema()
        .fields()
        .iter()
        .map(|f| f.name().clone())
        .collect();
    assert_eq!(
        names,
        ["user_id", "kind", "amount", "price", "timestamp_ms", "ts"]
    );
    let names: Vec<String> = query
        .input_schema()
        .fields()
        .iter()
        .map(|f| f.name().clone())
        .collect();
    assert_eq!(
        names[5..],
        ["_generation", "_partition", "_offset", "_timestamp"]
    );
}

#[test]
fn fingerprints_differ_where_rows_could() {
    let one = |sql: &str, bound| {
        let event_time = EventTime {
            bound: Duration::from_secs(bound),
            ..EventTime::default()
        };
        try_query(sql, event_time)
            .expect("a good query")
            .fingerprint()
    };
    let a = one("SELECT user_id FROM clicks WHERE amount > 1", 1);
    assert_eq!(
        a,
        one("select user_id\nfrom clicks where amount > 1;", 1),
        "how it is written does not matter"
    );
    assert_ne!(a, one("SELECT user_id FROM clicks WHERE amount > 2", 1));
    assert_ne!(a, one("SELECT user_id FROM clicks WHERE amount > 1", 2));
}

#[test]
fn flink_gets_the_same_job() {
    let sql = "SELECT user_id, SESSION_START(ts, INTERVAL '30' MINUTE) AS s, count(*) FILTER (WHERE kind = 'view') AS views, avg(amount) AS mean, sum(amount) AS total FROM clicks GROUP BY user_id, SESSION(ts, INTERVAL '30' MINUTE)";
    let event_time = EventTime {
        bound: Duration::from_secs(30),
        ..EventTime::default()
    };
    let query = try_query(sql, event_time).expect("a good query");
    let options = |connector: &str| vec![("connector".to_owned(), connector.to_owned())];
    let mut flink = Flink {
        source: options("kafka"),
        sink_name: "sessions".to_owned(),
        sink: options("filesystem"),
        watermark: None,
    };
    let expected = "SET 'table.local-time-zone' = 'UTC';

CREATE TABLE `clicks` (
  `user_id` STRING NOT NULL,
  `kind` STRING,
  `amount` BIGINT,
  `price` DOUBLE,
  `timestamp_ms` BIGINT,
  `ts` AS TO_TIMESTAMP_LTZ(`timestamp_ms`, 3),
  WATERMARK FOR `ts` AS `ts` - INTERVAL '30.001' SECOND(2, 3)
) WITH (
  'connector' = 'kafka'
);

CREATE TABLE `sessions` (
  `user_id` STRING,
  `s` TIMESTAMP_LTZ(3),
  `views` BIGINT,
  `mean` DOUBLE,
  `total` BIGINT
) WITH (
  'connector' = 'filesystem'
);

INSERT INTO `sessions`
SELECT
  `user_id`,
  SESSION_START(`ts`, INTERVAL '30' MINUTE) AS `s`,
  count(*) FILTER (WHERE `kind` = 'view') AS `views`,
  avg(CAST(`amount` AS DOUBLE)) AS `mean`,
  sum(`amount`) AS `total`
FROM
  `clicks`
GROUP BY
  `user_id`, SESSION(`ts`, INTERVAL '30' MINUTE);
";
    assert_eq!(query.flink(&flink).expect("a program"), expected);
    flink.watermark = Some(Duration::from_secs(365 * 86_400));
    assert!(
        query
            .flink(&flink)
            .expect("a program")
            .contains("INTERVAL '365 00:00:00.001' DAY(3) TO SECOND(3)")
    );

    let query = query
        .deduplicate(
            &["user_id".to_owned(), "ts".to_owned()],
            Duration::from_secs(600),
        )
        .expect("columns");
    let text = query.flink(&flink).expect("a program");
    assert!(
        text.contains("ROW_NUMBER() OVER (PARTITION BY `user_id`, `ts` ORDER BY `_arrival`)"),
        "{text}"
    );
    assert!(
        text.contains("FROM\n  `clicks_deduplicated`\nGROUP BY"),
        "{text}"
    );
}

fn select_for_flink(sql: &str) -> Result<String, Refusal> {
    let query = try_query(sql, EventTime::default()).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let program = query.flink(&Flink {
        sink_name: "rows".to_owned(),
        ..Flink::default()
    })?;
    let (_, insert) = program.split_once("INSERT INTO `rows`").expect("an INSERT");
    Ok(insert.split_whitespace().collect::<Vec<_>>().join(" "))
}

const TUMBLE: &str = "GROUP BY user_id, TUMBLE(ts, INTERVAL '1 hour')";

#[test]
fn flink_has_other_names_for_the_same() {
    for (ours, theirs) in [
        ("length(kind)", "CAST(CHAR_LENGTH(`kind`) AS INT)"),
        ("strpos(kind, 'a')", "CAST(INSTR(`kind`, 'a') AS INT)"),
        ("starts_with(kind, 'v')", "(INSTR(`kind`, 'v') = 1)"),
        (
            "ends_with(kind, 'v')",
            "(RIGHT(`kind`, CHAR_LENGTH('v')) = 'v')",
        ),
        (
            "concat(kind, '-', user_id)",
            "CONCAT_WS('', `kind`, '-', `user_id`)",
        ),
        ("nvl(kind, 'x')", "COALESCE(`kind`, 'x')"),
        ("log(price)", "LOG10(`price`)"),
        ("pow(amount, 2)", "CAST(POWER(`amount`, 2) AS DOUBLE)"),
        ("ceil(amount)", "CAST(CEIL(`amount`) AS DOUBLE)"),
        ("amount * 1.5", "`amount` * 1.5E0"),
        ("date_trunc('hour', ts)", "FLOOR(`ts` TO HOUR)"),
        (
            "extract(month FROM ts)",
            "CAST(EXTRACT(MONTH FROM `ts`) AS INT)",
        ),
        (
            "date_part('day', ts)",
            "CAST(EXTRACT(DAY FROM `ts`) AS INT)",
        ),
        ("amount::DOUBLE PRECISION", "CAST(`amount` AS DOUBLE)"),
        ("CAST(amount AS TEXT)", "CAST(`amount` AS STRING)"),
        ("trim(kind)", "TRIM(`kind`)"),
        ("substring(kind FROM 2 FOR 3)", "SUBSTR(`kind`, 2, 3)"),
        ("kind ILIKE 'V%'", "(LOWER(`kind`) LIKE LOWER('V%'))"),
        ("_partition", "`_partition`"),
    ] {
        let text = select_for_flink(&format!("SELECT {ours} AS x FROM clicks")).expect(ours);
        assert_eq!(
            text,
            format!("SELECT {theirs} AS `x` FROM `clicks`;"),
            "{ours}"
        );
    }
    for (ours, theirs) in [
        (
            "bool_and(amount > 0)",
            "(MIN(CASE WHEN `amount` > 0 THEN 1 WHEN NOT (`amount` > 0) THEN 0 END) = 1)",
        ),
        (
            "bool_or(amount > 0) FILTER (WHERE kind = 'buy')",
            "(MAX(CASE WHEN `amount` > 0 THEN 1 WHEN NOT (`amount` > 0) THEN 0 END) FILTER (WHERE `kind` = 'buy') = 1)",
        ),
        ("mean(price)", "avg(`price`)"),
        ("count(DISTINCT kind)", "count(DISTINCT `kind`)"),
    ] {
        let text =
            select_for_flink(&format!("SELECT {ours} AS x FROM clicks {TUMBLE}")).expect(ours);
        let expected = format!(
            "SELECT {theirs} AS `x` FROM `clicks` GROUP BY `user_id`, TUMBLE(`ts`, INTERVAL '1' HOUR);"
        );
        assert_eq!(text, expected, "{ours}");
    }
}

#[test]
fn flink_groups_by_expressions_and_not_by_their_new_names() {
    let sql = "SELECT upper(user_id) AS who, kind, count(*) AS n FROM clicks \
         GROUP BY who, 2, TUMBLE(ts, INTERVAL '1' HOUR) HAVING n > 1";
    assert_eq!(
        select_for_flink(sql).expect("a program"),
        "SELECT upper(`user_id`) AS `who`, `kind`, count(*) AS `n` FROM `clicks` \
         GROUP BY upper(`user_id`), `kind`, TUMBLE(`ts`, INTERVAL '1' HOUR) HAVING (count(*)) > 1;"
    );
}

#[test]
fn what_flink_lacks_or_answers_otherwise_is_refused_for_it() {
    let rows = |x: &str| format!("SELECT {x} AS x FROM clicks");
    let windows = |x: &str| format!("SELECT {x} AS x FROM clicks {TUMBLE}");
    for (sql, expected) in [
        (rows("_generation"), "knows no _generation"),
        (rows("regexp_replace(kind, 'a', 'b')"), "regexp_replace"),
        (rows("greatest(amount, 2)"), "greatest"),
        (rows("round(price, 2)"), "round"),
        (rows("substr(kind, amount)"), "before the first character"),
        (rows("left(kind, -1)"), "left"),
        (rows("date_part('dow', ts)"), "the unit dow"),
        (
            rows("CAST(ts AS STRING)"),
            "casts TIMESTAMP_LTZ(3) to STRING otherwise",
        ),
        (
            rows("CAST(price AS STRING)"),
            "casts DOUBLE to STRING otherwise",
        ),
        (rows("amount & 3"), "`amount` & 3"),
        (rows("kind ~ 'a+'"), "`kind` ~ 'a+'"),
        (rows("kind LIKE 'a\\%'"), "LIKE with a backslash"),
        (rows("ts + INTERVAL '1 day'"), "write INTERVAL '1' HOUR"),
        (
            windows("bit_and(amount)"),
            "does not have the aggregate bit_and",
        ),
        (
            windows("first_value(kind ORDER BY ts)"),
            "FIRST_VALUE takes values in the order of arrival",
        ),
        (
            windows("array_agg(kind ORDER BY ts)"),
            "ARRAY_AGG takes values in the order of arrival",
        ),
        (
            windows("string_agg(kind, ',' ORDER BY ts)"),
            "LISTAGG takes values in the order of arrival",
        ),
    ] {
        let refusal = select_for_flink(&sql).expect_err(&sql);
        assert!(
            refusal.reason.contains(expected)
                || refusal
                    .instead
                    .as_deref()
                    .is_some_and(|i| i.contains(expected)),
            "{sql}: {refusal}"
        );
        assert!(!refusal.to_string().contains('\n'), "{refusal}");
    }
    let query = Query::new(
        "SELECT user_id FROM clicks",
        "clicks",
        source_schema(),
        "to_timestamp(kind)",
        EventTime::default(),
    )
    .expect("a good query");
    let refusal = query
        .flink(&Flink::default())
        .expect_err("its own text form");
    assert!(
        refusal.to_string().contains("TIMESTAMP_LTZ(3)"),
        "{refusal}"
    );
}
