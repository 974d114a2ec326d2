use arrow_array::builder::BinaryBuilder;
use everlog_common::record::EventColumnsBuilder;
use everlog_common::{EventRef, Offset, TimestampType};
use proptest::prelude::*;

use super::*;
use crate::schema::table_schema;

type Owned = (
    (i64, i8),
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(Vec<u8>, Option<Vec<u8>>)>,
    Option<i32>,
);

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn header_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "[a-zé]{0,6}".prop_map(String::into_bytes),
        1 => bytes(),
        1 => Just(vec![0xff, 0xfe]),
    ]
}

fn milliseconds() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => 0..4_102_444_800_000_i64,
        1 => any::<i64>(),
        1 => -100_000_000_000_000_i64..0,
        1 => prop::sample::select(vec![
            i64::MIN,
            i64::MAX,
            -1,
            0,
            i64::MIN / 1000,
            i64::MIN / 1000 - 1,
            i64::MAX / 1000,
            i64::MAX / 1000 + 1,
            253_402_300_799_999, // 9999-12-31T23:59:59.999Z
            253_402_300_800_000,
            -62_135_596_800_001, // before the year 1
        ]),
    ]
}

fn record() -> impl Strategy<Value = Owned> {
    (
        (milliseconds(), -1_i8..=1),
        prop::option::of(bytes()),
        prop::option::of(bytes()),
        prop::collection::vec((header_key(), prop::option::of(bytes())), 0..4),
        prop::option::of(0_i32..100),
    )
}

fn build(records: &[Owned]) -> EventColumns {
    let mut builder = EventColumnsBuilder::new();
    for (i, ((ms, kind), key, value, headers, epoch)) in records.iter().enumerate() {
        builder.push(
            Offset::new(i as i64 * 3).unwrap(),
            (*ms, TimestampType::from_code(*kind).unwrap()),
            key.as_deref(),
            value.as_deref(),
            headers.iter().map(|(k, v)| (k.as_slice(), v.as_deref())),
            *epoch,
        );
    }
    builder.finish()
}

fn rows(columns: &EventColumns) -> Vec<EventRef<'_>> {
    (0..columns.len()).map(|i| columns.row(i)).collect()
}

fn stored(columns: &EventColumns) -> RecordBatch {
    let topic = TopicName::new("t").unwrap();
    let context = RowContext {
        topic: &topic,
        generation: Generation(2),
        partition: Partition::new(7).unwrap(),
        archived_at: Millis(1_700_000_000_123),
    };
    let map = ColumnMap::resolve(&table_schema().unwrap()).unwrap();
    encode(&map, context, columns).unwrap()
}

fn decoded(batch: &RecordBatch) -> Result<EventColumns, CodecError> {
    StoredColumns::collect(|c| batch.column_by_name(c.name()).cloned())?.decode()
}

proptest! {
    #[test]
    fn h18_h19_any_record_comes_back_bit_for_bit(
        records in prop::collection::vec(record(), 0..30),
        cut in any::<prop::sample::Index>(),
    ) {
        let all = build(&records);
        let from = if records.is_empty() { 0 } else { cut.index(records.len()) };
        for columns in [all.clone(), all.slice(from, all.len() - from)] {
            let back = decoded(&stored(&columns)).unwrap();
            prop_assert_eq!(rows(&back), rows(&columns));
            prop_assert_eq!(back.headers.data_type(), columns.headers.data_type());
            prop_assert_eq!(back.headers.null_count(), 0);
            prop_assert!(EventColumns::concat(&[back, columns]).is_ok());
        }
    }

    #[test]
    fn the_spare_columns_are_used_only_where_they_must_be(record in record()) {
        let batch = stored(&build(std::slice::from_ref(&record)));
        let null = |c: Column| batch.column(c.index()).is_null(0);
        let ((ms, kind), _, _, headers, _) = record;
        let utf8 = headers.iter().all(|(k, _)| std::str::from_utf8(k).is_ok());
        prop_assert_eq!(null(Column::Headers), !utf8);
        prop_assert_eq!(null(Column::HeadersRaw), utf8);
        let fits = ms != -1 && kind != -1 && ms.checked_mul(1000).is_some();
        prop_assert_eq!(null(Column::Timestamp), !fits);
        prop_assert_eq!(null(Column::TimestampRaw), fits || ms == -1);
    }

    #[test]
    fn any_bytes_as_raw_headers_are_a_list_or_an_error(raw in bytes()) {
        let batch = stored(&build(&[((1, 0), None, None, vec![], None)]));
        let mut builder = BinaryBuilder::new();
        builder.append_value(&raw);
        let column: ArrayRef = Arc::new(builder.finish());
        let _ = StoredColumns::collect(|c| match c {
            Column::HeadersRaw => Some(Arc::clone(&column)),
            c => batch.column_by_name(c.name()).cloned(),
        })
        .unwrap()
        .decode();
    }
}

#[test]
fn no_headers_are_an_empty_list_and_a_null_list_reads_as_none() {
    let columns = build(&[((1, 0), None, None, vec![], None)]);
    let batch = stored(&columns);
    assert_eq!(batch.column(Column::Headers.index()).null_count(), 0);
    let null = new_null_array(batch.column(Column::Headers.index()).data_type(), 1);
    let back = StoredColumns::collect(|c| match c {
        Column::Headers => Some(Arc::clone(&null)),
        c => batch.column_by_name(c.name()).cloned(),
    })
    .unwrap()
    .decode()
    .unwrap();
    assert_eq!(rows(&back), rows(&columns));
}

#[test]
fn missing_optional_columns_read_as_null_and_missing_required_ones_are_named() {
    let batch = stored(&build(&[((1, 0), Some(vec![1]), None, vec![], Some(4))]));
    let without = |missing: Column| {
        StoredColumns::collect(|c| {
            (c != missing)
                .then(|| batch.column_by_name(c.name()).cloned())
                .flatten()
        })
        .and_then(StoredColumns::decode)
    };
    assert_eq!(without(Column::Key).unwrap().row(0).key, None);
    assert_eq!(
        without(Column::LeaderEpoch).unwrap().row(0).leader_epoch,
        None
    );
    assert_eq!(without(Column::Timestamp).unwrap().row(0).timestamp_ms, -1);
    assert!(without(Column::Headers).unwrap().row(0).headers.is_empty());
    let error = without(Column::Offset).unwrap_err().to_string();
    assert!(
        error.contains("offset") && error.contains("missing"),
        "{error}"
    );
}

#[test]
fn b21_a_stored_time_that_is_no_whole_millisecond_is_refused() {
    let batch = stored(&build(&[((1, 0), None, None, vec![], None)]));
    let altered: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1_001]));
    let error = StoredColumns::collect(|c| match c {
        Column::Timestamp => Some(Arc::clone(&altered)),
        c => batch.column_by_name(c.name()).cloned(),
    })
    .unwrap()
    .decode()
    .unwrap_err();
    assert!(error.to_string().contains("1001"), "{error}");
}

#[test]
fn values_that_nobody_could_have_stored_are_refused() {
    let batch = stored(&build(&[((1, 0), None, None, vec![], None)]));
    let with = |column: Column, array: ArrayRef| {
        StoredColumns::collect(|c| {
            if c == column {
                Some(Arc::clone(&array))
            } else {
                batch.column_by_name(c.name()).cloned()
            }
        })
        .and_then(StoredColumns::decode)
    };
    assert!(with(Column::Offset, Arc::new(Int64Array::from(vec![-1]))).is_err());
    assert!(with(Column::Offset, Arc::new(Int64Array::from(vec![None]))).is_err());
    assert!(with(Column::Offset, Arc::new(Int32Array::from(vec![1]))).is_err());
    assert!(with(Column::TimestampType, Arc::new(Int32Array::from(vec![2]))).is_err());
    assert!(with(Column::TimestampRaw, Arc::new(Int64Array::from(vec![5]))).is_err());
    assert!(with(Column::Key, Arc::new(StringArray::from(vec!["k"]))).is_err());
}
