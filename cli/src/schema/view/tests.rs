//! The text of views, column by column. (What DuckDB makes of it is tested in tests/tests/schema.rs.)

use super::*;

fn view(engine: Engine) -> View {
    View {
        engine,
        table: "c.n.t".to_owned(),
        name: "t_v".to_owned(),
    }
}

fn value(engine: Engine, name: &str, of: &str) -> Result<String, String> {
    let place = Place::whole("_json").field(name);
    engine.value(&place, &of.parse().unwrap())
}

#[test]
fn the_statement_has_kafkas_columns_and_the_values() {
    let columns = Columns::parse([("user", "STRING"), ("_offset", "BIGINT")]).unwrap();
    let (sql, left_out) = view(Engine::DuckDb).json(&columns);
    assert_eq!(
        sql,
        r#"CREATE OR REPLACE VIEW "t_v" AS
SELECT
  "topic" AS "_topic",
  "generation" AS "_generation",
  "partition" AS "_partition",
  "offset" AS "_offset",
  "timestamp" AS "_timestamp",
  "key" AS "_key",
  json_extract_string(_json, '/user') AS "user",
  TRY_CAST(regexp_extract(json_extract_string(_json, '/_offset'), '^(-?(?:0|[1-9][0-9]*))(?:[.]0+)?$', 1) AS BIGINT) AS "value_offset"
FROM (SELECT *, CASE WHEN json_valid(TRY(decode("value"))) THEN TRY(decode("value")) END AS _json FROM c.n.t) AS t;
"#
    );
    assert!(left_out.is_empty());
    let (sql, _) = view(Engine::Trino).json(&columns);
    assert!(
        sql.starts_with("CREATE OR REPLACE VIEW c.n.\"t_v\" AS\nSELECT\n  \"topic\" AS \"_topic\""),
        "{sql}"
    );
    let (sql, _) = view(Engine::Spark).json(&columns);
    assert!(
        sql.starts_with("CREATE OR REPLACE TEMPORARY VIEW `t_v` AS\nSELECT\n  `topic` AS `_topic`"),
        "{sql}"
    );
}

#[test]
fn conversions_never_round() {
    use Engine::{DuckDb, Spark, Trino};
    for (engine, of, sql) in [
        (
            Spark,
            "INT",
            r"TRY_CAST(regexp_extract(try_variant_get(try_parse_json(_json), '$[\'c\']', 'string'), '^(-?(?:0|[1-9][0-9]*))(?:[.]0+)?$', 1) AS INT)",
        ),
        (
            Trino,
            "BIGINT",
            r#"TRY_CAST(regexp_extract(json_extract_scalar(_json, '$["c"]'), '^(-?(?:0|[1-9][0-9]*))(?:[.]0+)?$', 1) AS BIGINT)"#,
        ),
        (
            Trino,
            "STRING",
            r#"COALESCE(json_extract_scalar(_json, '$["c"]'), NULLIF(json_format(json_extract(_json, '$["c"]')), 'null'))"#,
        ),
        (
            Trino,
            "BOOLEAN",
            r#"CASE json_format(json_extract(_json, '$["c"]')) WHEN 'true' THEN TRUE WHEN 'false' THEN FALSE END"#,
        ),
        (
            DuckDb,
            "DECIMAL(10, 2)",
            "CASE WHEN regexp_matches(json_extract_string(_json, '/c'), '^-?(?:0|[1-9][0-9]*)(?:[.][0-9]{1,2}0*)?$') THEN TRY_CAST(json_extract_string(_json, '/c') AS DECIMAL(10, 2)) END",
        ),
        (
            Spark,
            "DATE",
            r"CASE WHEN try_variant_get(try_parse_json(_json), '$[\'c\']', 'string') RLIKE '^[0-9]{4}-[0-9]{2}-[0-9]{2}$' THEN TRY_CAST(try_variant_get(try_parse_json(_json), '$[\'c\']', 'string') AS DATE) END",
        ),
        (
            Spark,
            "BYTES",
            r"CASE WHEN try_variant_get(try_parse_json(_json), '$[\'c\']', 'string') RLIKE '^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$' THEN try_to_binary(try_variant_get(try_parse_json(_json), '$[\'c\']', 'string'), 'base64') END",
        ),
        (
            Spark,
            "BOOLEAN",
            r"CASE WHEN schema_of_variant(try_variant_get(try_parse_json(_json), '$[\'c\']', 'variant')) = 'BOOLEAN' THEN try_variant_get(try_parse_json(_json), '$[\'c\']', 'boolean') END",
        ),
        (
            Trino,
            "ARRAY<BIGINT>",
            r#"transform(TRY_CAST(json_extract(_json, '$["c"]') AS ARRAY(JSON)), e0 -> TRY_CAST(regexp_extract(json_extract_scalar(e0, '$'), '^(-?(?:0|[1-9][0-9]*))(?:[.]0+)?$', 1) AS BIGINT))"#,
        ),
        (
            Trino,
            "ROW<a STRING, b BOOLEAN>",
            r#"CASE WHEN json_format(json_extract(_json, '$["c"]')) LIKE '{%' THEN CAST(ROW(COALESCE(json_extract_scalar(_json, '$["c"]["a"]'), NULLIF(json_format(json_extract(_json, '$["c"]["a"]')), 'null')), CASE json_format(json_extract(_json, '$["c"]["b"]')) WHEN 'true' THEN TRUE WHEN 'false' THEN FALSE END) AS ROW("a" VARCHAR, "b" BOOLEAN)) END"#,
        ),
        (
            Spark,
            "MAP<STRING, STRING>",
            r"CASE WHEN get_json_object(_json, '$[\'c\']') LIKE '{%' THEN transform_values(from_json(get_json_object(_json, '$[\'c\']'), 'MAP<STRING, STRING>'), (ke0, e0) -> e0) END",
        ),
    ] {
        assert_eq!(value(engine, "c", of).unwrap(), sql, "{of}");
    }
    let instant = value(Trino, "c", "TIMESTAMP_LTZ(3)").unwrap();
    assert!(
        instant.ends_with("THEN CAST(TRY(from_iso8601_timestamp_nanos(replace(json_extract_scalar(_json, '$[\"c\"]'), ' ', 'T'))) AS TIMESTAMP(6) WITH TIME ZONE) END"),
        "{instant}"
    );
    // what is too large for the column is null, though the view's column is wider
    let small = value(Trino, "c", "TINYINT").unwrap();
    assert!(
        small.starts_with("CAST(TRY_CAST(regexp_extract(")
            && small.ends_with(" AS TINYINT) AS INTEGER)"),
        "{small}"
    );
}

#[test]
fn what_an_engine_cannot_give_exactly_is_left_out() {
    let columns = Columns::parse([
        ("a", "DECIMAL(20, 2)"),
        ("b", "TIMESTAMP_LTZ(9)"),
        ("c", "TIME(3)"),
        ("it's", "INT"),
        ("rest", "ARRAY<ROW<x DECIMAL(38, 0)>>"),
    ])
    .unwrap();
    let (sql, left_out) = view(Engine::DuckDb).json(&columns);
    assert_eq!(
        left_out,
        [
            "column a is left out: DuckDB reads numbers in JSON as doubles, which hold 15 digits, not 20: declare it STRING",
            "column b is left out: DuckDB has no nanoseconds in this type: declare it with (6), or STRING",
            "column rest is left out: DuckDB reads numbers in JSON as doubles, which hold 15 digits, not 38: declare it STRING",
        ]
    );
    assert!(sql.starts_with("-- column a is left out: "), "{sql}");
    assert!(sql.contains("'/it''s'"), "{sql}");
    let (_, left_out) = view(Engine::Spark).json(&columns);
    assert_eq!(
        left_out,
        [
            "column b is left out: Spark has no nanoseconds in this type: declare it with (6), or STRING",
            "column c is left out: Spark has no type for a time of day: declare it STRING",
            "column it's is left out: Spark's paths cannot name the field \"it's\"",
        ]
    );
    let (_, left_out) = view(Engine::Trino).json(&columns);
    assert_eq!(
        left_out,
        [
            "column b is left out: Trino has no nanoseconds in Iceberg's views: declare it with (6), or STRING"
        ]
    );
}

#[test]
fn names_do_not_break_out() {
    for engine in [Engine::Spark, Engine::Trino, Engine::DuckDb] {
        assert_eq!(engine.quoted("a\"b`c").matches(['"', '`']).count(), 5);
    }
    assert_eq!(Engine::Spark.literal("a'b\\c"), "'a\\'b\\\\c'");
    assert_eq!(Engine::DuckDb.literal("a'b\\c"), "'a''b\\c'");
    let odd = value(Engine::DuckDb, "a/b~c'd", "STRING").unwrap();
    assert_eq!(odd, "json_extract_string(_json, '/a~1b~0c''d')");
    let odd = value(Engine::Trino, "a\"b\\c'd", "INT").unwrap();
    assert!(odd.contains(r#"'$["a\"b\\c''d"]'"#), "{odd}");
}

#[test]
fn avro_is_read_in_spark_by_every_version() {
    let record = |fields: &str| {
        RegisteredSchema::avro(&format!(
            r#"{{"type":"record","name":"R","fields":[{fields}]}}"#
        ))
    };
    let first = record(r#"{"name":"a","type":"int"}"#);
    let second = record(
        r#"{"name":"a","type":"long"},{"name":"b'","type":["null","string"],"default":null}"#,
    );
    let version = |id: u32, schema: &RegisteredSchema| Pinned {
        id: everlog_decode::SchemaId(id),
        version: i64::from(id),
        schema: schema.clone(),
    };
    let versions = [version(7, &first), version(9, &second)];
    let sql = view(Engine::Spark).avro(&second, &versions).unwrap();
    for part in [
        "-- needs the package spark-avro",
        "  _record.`a` AS `a`,\n  _record.`b'` AS `b'`\nFROM (SELECT *, CASE WHEN hex(substring(`value`, 1, 1)) <> '00' THEN NULL ELSE CASE conv(hex(substring(`value`, 2, 4)), 16, 10)",
        "WHEN '7' THEN from_avro(substring(`value`, 6), '{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":\"a\",\"type\":\"int\"}]}', map('mode', 'PERMISSIVE', 'avroSchema', '{",
        "\"name\":\"b\\'\"",
    ] {
        assert!(sql.contains(part), "{part}\n{sql}");
    }
    let mut refers = versions.to_vec();
    refers[0].schema.references.push("x".to_owned());
    let error = view(Engine::Spark).avro(&second, &refers).unwrap_err();
    assert_eq!(
        error,
        "Spark's from_avro takes schemas that refer to no others, and version 7 does"
    );
}
