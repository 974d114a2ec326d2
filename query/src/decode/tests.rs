//! The view over a table in memory: what is read, what is decoded, and what each row gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{
    Array, ArrayRef, BinaryArray, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::physical_plan::displayable;
use datafusion::prelude::{SessionConfig, SessionContext};
use everlog_common::TopicName;
use everlog_decode::{Columns, ValueFormat};
use proptest::prelude::*;

use super::view::DecodedTable;
use super::{TopicFormat, TopicValues, Values as _};

fn archive(values: &[Option<&[u8]>]) -> RecordBatch {
    let rows = values.len();
    let offsets = (0..).take(rows).collect::<Vec<i64>>();
    let column = |array: ArrayRef| array;
    RecordBatch::try_from_iter_with_nullable([
        (
            "topic",
            column(Arc::new(StringArray::from(vec!["t"; rows]))),
            false,
        ),
        (
            "generation",
            Arc::new(Int32Array::from(vec![0; rows])),
            false,
        ),
        (
            "partition",
            Arc::new(Int32Array::from_iter_values(
                (0..).map(|i| i % 2).take(rows),
            )),
            false,
        ),
        ("offset", Arc::new(Int64Array::from(offsets.clone())), false),
        (
            "timestamp",
            Arc::new(TimestampMicrosecondArray::from(offsets).with_timezone("+00:00")),
            true,
        ),
        (
            "key",
            Arc::new(BinaryArray::from_iter(vec![Some(b"k"); rows])),
            true,
        ),
        (
            "value",
            Arc::new(BinaryArray::from_iter(values.iter().copied())),
            true,
        ),
    ])
    .unwrap()
}

const COLUMNS: [(&str, &str); 3] = [("user", "STRING"), ("n", "BIGINT"), ("_offset", "INT")];

fn context(values: &[Option<&[u8]>], columns: &[(&str, &str)]) -> SessionContext {
    let batch = archive(values);
    let half = batch.num_rows() / 2;
    let parts = vec![
        vec![batch.slice(0, half)],
        vec![batch.slice(half, batch.num_rows() - half)],
    ];
    let table = MemTable::try_new(batch.schema(), parts).unwrap();
    let format = ValueFormat::Json(Columns::parse(columns.iter().copied()).unwrap());
    let view = DecodedTable::new(Arc::new(table), format, None).unwrap();
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    context.register_table("t_v", Arc::new(view)).unwrap();
    context
}

async fn ask(context: &SessionContext, sql: &str) -> RecordBatch {
    let frame = context.sql(sql).await.unwrap();
    let schema = Arc::clone(frame.schema().inner());
    let batches = frame.collect().await.unwrap();
    arrow_select::concat::concat_batches(&schema, &batches).unwrap()
}

async fn plan(context: &SessionContext, sql: &str) -> String {
    let plan = context
        .sql(sql)
        .await
        .unwrap()
        .create_physical_plan()
        .await
        .unwrap();
    displayable(plan.as_ref()).indent(false).to_string()
}

const VALUES: [Option<&[u8]>; 6] = [
    Some(br#"{"user":"ann","n":1,"_offset":70}"#),
    Some(br#"{"user":"bob","n":"x"}"#),
    None,
    Some(b"no json"),
    Some(br#"{"user":"eve","n":5}"#),
    Some(br#"{"n":6}"#),
];

#[tokio::test]
async fn kafkas_columns_stand_beside_the_values() {
    let context = context(&VALUES, &COLUMNS);
    let all = ask(&context, "SELECT * FROM t_v ORDER BY _offset").await;
    let schema = all.schema();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(
        names,
        [
            "_topic",
            "_generation",
            "_partition",
            "_offset",
            "_timestamp",
            "_key",
            "user",
            "n",
            "value_offset",
            "_error"
        ]
    );
    let users: Vec<_> = all["user"].as_string::<i32>().iter().collect();
    assert_eq!(
        users,
        [Some("ann"), Some("bob"), None, None, Some("eve"), None]
    );
    let numbers: Vec<_> = all["n"].as_primitive::<Int64Type>().iter().collect();
    assert_eq!(numbers, [Some(1), None, None, None, Some(5), Some(6)]);
    let errors: Vec<_> = all["_error"].as_string::<i32>().iter().collect();
    assert_eq!(
        errors,
        [
            None,
            Some("n: \"x\" is not a number, BIGINT is expected"),
            None,
            Some(
                "the value is no JSON for these columns: an object with the columns is expected at byte 0, not 'n'"
            ),
            None,
            None,
        ]
    );
    assert_eq!(all["value_offset"].null_count(), 5);
}

#[tokio::test]
async fn columns_come_in_any_order_and_more_than_once() {
    let context = context(&VALUES, &COLUMNS);
    let sql = "SELECT n, _offset, _error, \"user\", _partition, n + 1 AS m FROM t_v WHERE \"user\" = 'eve'";
    let one = ask(&context, sql).await;
    assert_eq!(one.num_rows(), 1);
    assert_eq!(one["n"].as_primitive::<Int64Type>().value(0), 5);
    assert_eq!(one["m"].as_primitive::<Int64Type>().value(0), 6);
    assert_eq!(one["_offset"].as_primitive::<Int64Type>().value(0), 4);
    assert!(one["_error"].is_null(0));
    let bad = ask(
        &context,
        "SELECT count(*) AS c FROM t_v WHERE _error IS NOT NULL",
    )
    .await;
    assert_eq!(bad["c"].as_primitive::<Int64Type>().value(0), 2);
    let sum = "SELECT sum(n) AS s, count(\"user\") AS u FROM t_v WHERE _offset >= 4";
    let sum = ask(&context, sum).await;
    assert_eq!(sum["s"].as_primitive::<Int64Type>().value(0), 11);
    assert_eq!(sum["u"].as_primitive::<Int64Type>().value(0), 1);
    let limited = ask(&context, "SELECT n FROM t_v LIMIT 2").await;
    assert_eq!(limited.num_rows(), 2);
}

#[tokio::test]
async fn values_are_read_only_where_they_are_asked_for() {
    let context = context(&VALUES, &COLUMNS);
    for sql in [
        "SELECT count(*) FROM t_v",
        "SELECT _offset, _key FROM t_v WHERE _partition = 1",
        "SELECT max(_offset) FROM t_v",
    ] {
        let plan = plan(&context, sql).await;
        assert!(!plan.contains("DecodeExec"), "{sql}\n{plan}");
    }
    let count = ask(&context, "SELECT count(*) AS c FROM t_v").await;
    assert_eq!(count["c"].as_primitive::<Int64Type>().value(0), 6);
    let needed = plan(&context, "SELECT n FROM t_v WHERE _offset > 1").await;
    assert!(needed.contains("DecodeExec: columns=[n]"), "{needed}");
}

#[tokio::test]
async fn what_nobody_declared_has_no_view_and_what_needs_a_registry_says_so() {
    let topic = |name: &str| TopicName::new(name).unwrap();
    let avro = TopicFormat::Avro {
        columns: None,
        schema: super::SchemaChoice::Newest,
        subject: "a-value".to_owned(),
    };
    let values = TopicValues::new([(topic("a"), avro), (topic("t"), TopicFormat::Text)], None);
    values.find().await.unwrap();
    assert!(values.of(&topic("b")).is_none());
    assert_eq!(values.format(&topic("b")).await.unwrap(), None);
    assert_eq!(
        values.format(&topic("t")).await.unwrap(),
        Some(ValueFormat::Text)
    );
    let batch = archive(&VALUES);
    let table: Arc<dyn TableProvider> =
        Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap());
    let error = values
        .of(&topic("a"))
        .unwrap()
        .over(Arc::clone(&table))
        .await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "the values of topic a cannot be shown as columns: the values of topic a are Avro, and there is no [registry] in the configuration to ask for their schemas"
    );
    let text = values.of(&topic("t")).unwrap().over(table).await.unwrap();
    let context = SessionContext::new();
    context.register_table("t_v", text).unwrap();
    let all = ask(&context, "SELECT value FROM t_v WHERE _offset = 3").await;
    assert_eq!(all["value"].as_string::<i32>().value(0), "no json");
}

fn any_value() -> impl Strategy<Value = Option<Vec<u8>>> {
    let text = prop_oneof![
        6 => (0..100_i64, "[a-z]{0,3}").prop_map(|(n, user)| format!("{{\"n\":{n},\"user\":\"{user}\"}}")),
        1 => Just("{\"n\":1.5,\"user\":7}".to_owned()),
        1 => Just("{\"n\":1".to_owned()),
        1 => Just("{}".to_owned()),
    ];
    proptest::option::weighted(0.9, text.prop_map(String::into_bytes))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The model decodes each row alone, in a table of its own.
    #[test]
    fn the_view_is_each_row_decoded_alone(values in proptest::collection::vec(any_value(), 1..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let sql = "SELECT _offset, n, \"user\", _error FROM t_v ORDER BY _offset";
            let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            let together = ask(&context(&values, &COLUMNS[..2]), sql).await;
            let mut alone = BTreeMap::new();
            for (row, value) in values.iter().enumerate() {
                let one = ask(&context(&[*value], &COLUMNS[..2]), sql).await;
                alone.insert(row, one);
            }
            for (row, one) in alone {
                for name in ["n", "user", "_error"] {
                    let expected = together[name].slice(row, 1);
                    prop_assert_eq!(&one[name], &expected);
                }
            }
            // and each column by itself
            for name in ["n", "\"user\""] {
                let column = ask(&context(&values, &COLUMNS[..2]), &format!("SELECT {name} FROM t_v ORDER BY _offset")).await;
                prop_assert_eq!(column.column(0), &together[name.trim_matches('"')]);
            }
            Ok(())
        })?;
    }
}
