use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arrow_array::{
    Array, ArrayRef, BinaryViewArray, DictionaryArray, Int32Array, Int64Array, LargeBinaryArray,
    RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use bytes::Bytes;
use everlog_common::EventColumns;
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, Datum, ManifestEntry, ManifestStatus, Struct,
};
use parquet::arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use proptest::prelude::*;

use super::*;
use crate::codec::{RowContext, encode};
use crate::files::PartitionRows;
use crate::schema::{ColumnMap, TableSettings, table_schema};
use crate::test_table::{
    ARCHIVED_AT, Place, columns, events, joined, planned, range, read, rows, same, storage, table,
    topic, write, written,
};
use crate::writer::FILE_BYTES_TARGET;

const PATH: &str = "memory://lake/foreign.parquet";

/// Two partitions as a table of ours has them, in the order of `Column::ALL`.
fn arrays() -> (Vec<(Place, EventColumns)>, Vec<ArrayRef>) {
    let map = ColumnMap::resolve(&table_schema().unwrap()).unwrap();
    let topic = topic();
    let parts = [(0, 4, columns(10..40)), (1, 2, columns(0..25))];
    let batches: Vec<RecordBatch> = parts
        .iter()
        .map(|(generation, partition, rows)| {
            let context = RowContext {
                topic: &topic,
                generation: Generation(*generation),
                partition: Partition::new(*partition).unwrap(),
                archived_at: ARCHIVED_AT,
            };
            encode(&map, context, rows).unwrap()
        })
        .collect();
    let joined = Column::ALL
        .map(|column| {
            let of: Vec<&dyn Array> = batches
                .iter()
                .map(|b| b.column(column.index()).as_ref())
                .collect();
            arrow_select::concat::concat(&of).unwrap()
        })
        .to_vec();
    let expected = parts.map(|(g, p, rows)| ((g, p), rows)).to_vec();
    (expected, joined)
}

fn with_id(name: &str, id: i32, array: &ArrayRef) -> Field {
    let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
    Field::new(name, array.data_type().clone(), true).with_metadata(metadata)
}

/// A file as another engine might write it.
async fn foreign(
    storage: &Storage,
    columns: Vec<(Field, ArrayRef)>,
    properties: WriterProperties,
) -> PlannedFile {
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    let bytes = writer.into_inner().unwrap();
    let file = PlannedFile {
        path: PATH.to_owned(),
        size_bytes: bytes.len() as u64,
        rows: batch.num_rows() as u64,
        sequence_number: 1,
        bounds: None,
    };
    storage.put(PATH, Bytes::from(bytes)).await.unwrap();
    file
}

fn plain() -> WriterProperties {
    WriterProperties::builder().build()
}

fn fields(arrays: &[ArrayRef]) -> Vec<(Field, ArrayRef)> {
    Column::ALL
        .into_iter()
        .zip(arrays)
        .map(|(c, a)| (with_id(c.name(), c.id(), a), Arc::clone(a)))
        .collect()
}

async fn own_file(storage: &Storage, items: Vec<PartitionRows>) -> PlannedFile {
    let table = table(&TableSettings::default());
    let files = write(&table, storage, items, FILE_BYTES_TARGET)
        .await
        .unwrap();
    planned(&files[0])
}

#[tokio::test]
async fn files_of_other_engines_are_read_by_field_id_in_any_order_and_type() {
    let (expected, arrays) = arrays();
    let column = |c: Column| &arrays[c.index()];
    let binary = |c: Column| {
        let array = column(c)
            .as_any()
            .downcast_ref::<arrow_array::BinaryArray>();
        array.unwrap().clone()
    };
    let large: ArrayRef = Arc::new(LargeBinaryArray::from_iter(binary(Column::Value).iter()));
    let view: ArrayRef = Arc::new(BinaryViewArray::from_iter(binary(Column::Key).iter()));
    let note: ArrayRef = Arc::new(StringArray::from(vec!["x"; column(Column::Key).len()]));
    let mut reordered = vec![
        (with_id("note", 99, &note), note),
        (with_id("payload", Column::Value.id(), &large), large),
    ];
    for c in Column::ALL.into_iter().rev() {
        match c {
            Column::Value => {}
            Column::Key => reordered.push((with_id("key", c.id(), &view), Arc::clone(&view))),
            c => reordered.push((with_id(c.name(), c.id(), column(c)), Arc::clone(column(c)))),
        }
    }
    for (version, compression) in [
        (WriterVersion::PARQUET_1_0, Compression::UNCOMPRESSED),
        (WriterVersion::PARQUET_1_0, Compression::SNAPPY),
        (
            WriterVersion::PARQUET_2_0,
            Compression::ZSTD(ZstdLevel::default()),
        ),
        (WriterVersion::PARQUET_2_0, Compression::LZ4_RAW),
    ] {
        let storage = storage();
        let properties = WriterProperties::builder()
            .set_writer_version(version)
            .set_compression(compression)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let file = foreign(&storage, reordered.clone(), properties).await;
        let footer = read_footer(&storage, &file).await.unwrap();
        assert_eq!(footer.ranges, None);
        assert_eq!(footer.row_groups[0].bounds, None);
        let runs = read(&storage, &file).await.unwrap();
        assert!(
            same(&joined(runs), &expected),
            "{version:?} {compression:?}"
        );
    }
}

#[tokio::test]
async fn statistics_of_other_engines_are_used_and_missing_optional_columns_are_null() {
    let (expected, arrays) = arrays();
    let storage = storage();
    let kept = fields(&arrays).into_iter().filter(|(f, _)| {
        !["headers_raw", "timestamp_raw", "leader_epoch"].contains(&f.name().as_str())
    });
    let file = foreign(&storage, kept.collect(), plain()).await;
    let footer = read_footer(&storage, &file).await.unwrap();
    let bounds = footer.row_groups[0].bounds.unwrap();
    assert_eq!((bounds.offset.0.get(), bounds.offset.1.get()), (0, 39));
    assert_eq!(bounds.generation, (Generation(0), Generation(1)));
    assert!(bounds.timestamps_known);
    let runs = joined(read(&storage, &file).await.unwrap());
    for ((place, left), (other, right)) in runs.iter().zip(&expected) {
        assert_eq!(place, other);
        for (a, b) in events(left).into_iter().zip(events(right)) {
            assert_eq!(a.leader_epoch, None);
            assert_eq!(
                (a.offset, a.value, a.headers),
                (b.offset, b.value, b.headers)
            );
        }
    }
}

#[tokio::test]
async fn files_without_any_field_ids_are_read_by_name() {
    let (expected, arrays) = arrays();
    let storage = storage();
    let nameless = fields(&arrays)
        .into_iter()
        .map(|(f, a)| (Field::new(f.name(), a.data_type().clone(), true), a));
    let file = foreign(&storage, nameless.collect(), plain()).await;
    let runs = read(&storage, &file).await.unwrap();
    assert!(same(&joined(runs), &expected));
}

#[tokio::test]
async fn a_file_that_lacks_a_required_column_is_refused_by_its_name() {
    let (_, arrays) = arrays();
    let storage = storage();
    let kept = fields(&arrays)
        .into_iter()
        .filter(|(f, _)| f.name() != "partition");
    let file = foreign(&storage, kept.collect(), plain()).await;
    let error = read_footer(&storage, &file).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Corrupt);
    assert!(error.to_string().contains("partition"), "{error}");
}

async fn with_column(column: Column, array: ArrayRef) -> Result<Vec<DecodedRun>, ScanError> {
    let (_, arrays) = arrays();
    let storage = storage();
    let mut changed = fields(&arrays);
    changed[column.index()] = (with_id(column.name(), column.id(), &array), array);
    let file = foreign(&storage, changed, plain()).await;
    read(&storage, &file).await
}

#[tokio::test]
async fn rows_of_another_topic_are_refused() {
    let mut topics = vec!["orders.eu"; 55];
    assert!(
        with_column(Column::Topic, Arc::new(StringArray::from(topics.clone())))
            .await
            .is_ok()
    );
    topics[31] = "orders.us";
    let error = with_column(Column::Topic, Arc::new(StringArray::from(topics))).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("orders.us") && error.contains("row group 0"),
        "{error}"
    );
    let nulls = StringArray::new_null(55);
    assert!(with_column(Column::Topic, Arc::new(nulls)).await.is_err());
}

#[tokio::test]
async fn a_value_of_the_dictionary_that_no_row_uses_is_no_topic_of_the_file() {
    let values: ArrayRef = Arc::new(StringArray::from(vec!["orders.us", "orders.eu"]));
    let topics = DictionaryArray::new(Int32Array::from_value(1, 55), values);
    assert!(with_column(Column::Topic, Arc::new(topics)).await.is_ok());
}

#[tokio::test]
async fn values_that_cannot_be_are_refused() {
    let ints = |v: i32| -> ArrayRef { Arc::new(Int32Array::from_value(v, 55)) };
    let longs = |v: i64| -> ArrayRef { Arc::new(Int64Array::from_value(v, 55)) };
    let micros = TimestampMicrosecondArray::from_value(1_500, 55);
    for (column, array) in [
        (Column::Partition, ints(-1)),
        (Column::Partition, longs(1)),
        (Column::Generation, ints(-1)),
        (Column::Offset, longs(-1)),
        (Column::TimestampType, ints(7)),
        (
            Column::Offset,
            Arc::new(Int64Array::new_null(55)) as ArrayRef,
        ),
        (Column::Timestamp, Arc::new(micros) as ArrayRef),
        (
            Column::HeadersRaw,
            Arc::new(arrow_array::BinaryArray::from(vec![&b"??"[..]; 55])),
        ),
    ] {
        let error = with_column(column, array).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt, "{column:?}");
        assert!(error.to_string().contains(PATH), "{error}");
    }
}

#[tokio::test]
async fn a_run_ends_where_offsets_do_not_increase() {
    let offsets: Vec<i64> = [vec![5, 6, 9], vec![9, 10], vec![1], vec![0, 100]].concat();
    let mut offsets = offsets;
    offsets.extend(200..247);
    let runs = with_column(Column::Offset, Arc::new(Int64Array::from(offsets)))
        .await
        .unwrap();
    let cuts: Vec<(i64, usize)> = runs
        .iter()
        .map(|r| (r.columns.first_offset().unwrap().get(), r.columns.len()))
        .collect();
    // The second partition begins at row 30.
    assert_eq!(cuts, [(5, 3), (9, 2), (1, 1), (0, 24), (222, 25)]);
}

#[tokio::test]
async fn another_topics_own_file_is_refused() {
    let storage = storage();
    let file = own_file(&storage, vec![rows(0, range(0, 9), vec![columns(0..9)])]).await;
    let footer = read_footer(&storage, &file).await.unwrap();
    let other = TopicName::new("orders.us").unwrap();
    let error = read_row_group(&storage, &file, &footer, 0, &other).await;
    assert!(error.unwrap_err().to_string().contains("orders.eu"));
    let none = read_row_group(&storage, &file, &footer, 7, &topic()).await;
    assert!(none.is_err());
}

#[tokio::test]
async fn p13_a_file_of_another_length_than_its_manifest_says_is_corrupt() {
    let storage = storage();
    let file = own_file(&storage, vec![rows(0, range(0, 9), vec![columns(0..9)])]).await;
    let bytes = storage.get(&file.path).await.unwrap();
    for size in [
        0,
        4,
        11,
        file.size_bytes - 1,
        file.size_bytes + 1,
        file.size_bytes * 9,
    ] {
        let other = PlannedFile {
            size_bytes: size,
            ..file.clone()
        };
        let error = read_footer(&storage, &other).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt, "{size}: {error}");
    }
    for len in 0..bytes.len() {
        let cut = PlannedFile {
            path: format!("memory://lake/cut-{len}.parquet"),
            ..file.clone()
        };
        storage.put(&cut.path, bytes.slice(..len)).await.unwrap();
        let error = read_footer(&storage, &cut).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt, "{len}: {error}");
        let shorter = PlannedFile {
            size_bytes: len as u64,
            ..cut
        };
        assert!(read_footer(&storage, &shorter).await.is_err(), "{len}");
    }
    let fewer = PlannedFile {
        rows: file.rows - 1,
        ..file
    };
    let error = read_footer(&storage, &fewer).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Corrupt);
}

#[tokio::test]
async fn a_row_group_is_decoded_in_batches() {
    let storage = storage();
    let items = vec![rows(0, range(0, 100_000), vec![columns(0..100_000)])];
    let expected = written(&items);
    let file = own_file(&storage, items).await;
    let footer = read_footer(&storage, &file).await.unwrap();
    assert_eq!(footer.row_groups.len(), 1);
    let runs = read_row_group(&storage, &file, &footer, 0, &topic()).await;
    let runs = runs.unwrap();
    assert!(runs.len() > 3, "{} batches", runs.len());
    assert!(same(&joined(runs), &expected));
    // nobody waits for it any more
    let fetched = fetch(&storage, &file, &footer, 0, &topic()).await.unwrap();
    assert!(decode::run(&fetched, &Weak::new()).unwrap().is_empty());
}

#[tokio::test]
async fn a_vanished_file_is_not_found_and_not_corrupt() {
    let file = PlannedFile {
        path: "memory://lake/gone.parquet".to_owned(),
        size_bytes: 1000,
        rows: 1,
        sequence_number: 1,
        bounds: None,
    };
    let error = read_footer(&storage(), &file).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::NotFound);
}

#[tokio::test]
async fn no_flipped_byte_of_a_file_ever_gives_a_wrong_row() {
    let storage = storage();
    let items = vec![
        rows(0, range(0, 9), vec![columns(0..9)]),
        rows(3, range(5, 30), vec![columns((5..30).step_by(2))]),
    ];
    let expected = written(&items);
    let file = own_file(&storage, items).await;
    let bytes = storage.get(&file.path).await.unwrap();
    let mut harmless = 0;
    for at in 0..bytes.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= mask;
            storage.put(&file.path, Bytes::from(flipped)).await.unwrap();
            match read(&storage, &file).await {
                Ok(runs) => {
                    assert!(same(&joined(runs), &expected), "byte {at} ^ {mask:#x}");
                    harmless += 1;
                }
                Err(error) => {
                    assert_eq!(
                        error.kind(),
                        StorageErrorKind::Corrupt,
                        "byte {at}: {error}"
                    );
                }
            }
        }
    }
    // What no read depends on: the first magic, two columns that are constant, the page indexes.
    assert!(
        harmless < bytes.len() * 3 / 2,
        "{harmless} of {}",
        bytes.len() * 3
    );
}

#[tokio::test]
async fn page_checksums_alone_find_every_flipped_byte_of_a_page() {
    let storage = storage();
    let items = vec![rows(0, range(0, 9), vec![columns(0..9)])];
    let file = own_file(&storage, items).await;
    let bytes = storage.get(&file.path).await.unwrap();
    let mut footer = read_footer(&storage, &file).await.unwrap();
    footer.own.as_mut().unwrap().checksums.clear();
    let parquet = Arc::clone(footer.metadata.metadata());
    for column in parquet.row_group(0).columns() {
        if [1, 11].contains(&column.column_descr().self_type().get_basic_info().id()) {
            continue; // not read
        }
        let (start, len) = column.byte_range();
        // The last page's last byte, and the one before: bodies, whatever the headers' lengths are.
        for at in [start + len - 1, start + len - 2] {
            let mut flipped = bytes.to_vec();
            flipped[usize::try_from(at).unwrap()] ^= 0x04;
            storage.put(&file.path, Bytes::from(flipped)).await.unwrap();
            let error = read_row_group(&storage, &file, &footer, 0, &topic()).await;
            let error = error.unwrap_err().to_string();
            assert!(error.contains("CRC"), "{}: {error}", column.column_path());
        }
    }
}

#[tokio::test]
async fn a_file_that_says_everlog_wrote_it_must_carry_its_checksums() {
    let (_, arrays) = arrays();
    let storage = storage();
    let properties = WriterProperties::builder()
        .set_created_by("everlog version 0.1.0".to_owned())
        .build();
    let file = foreign(&storage, fields(&arrays), properties).await;
    let error = read_footer(&storage, &file).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Corrupt);
}

#[tokio::test]
async fn footers_with_impossible_lengths_are_refused_without_reading_them() {
    let storage = storage();
    for (len, magic) in [
        (u32::MAX, b"PAR1"),
        (1 << 30, b"PAR1"),
        (993, b"PAR1"),
        (10, b"PARE"),
    ] {
        let mut bytes = vec![0; 1000];
        bytes[992..996].copy_from_slice(&len.to_le_bytes());
        bytes[996..].copy_from_slice(magic);
        storage.put(PATH, Bytes::from(bytes)).await.unwrap();
        let file = PlannedFile {
            path: PATH.to_owned(),
            size_bytes: 1000,
            rows: 0,
            sequence_number: 1,
            bounds: None,
        };
        assert!(read_footer(&storage, &file).await.is_err(), "{len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_files_of_other_engines_are_rows_or_an_error_and_never_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        near_end in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_, arrays) = arrays();
            let storage = storage();
            let file = foreign(&storage, fields(&arrays), plain()).await;
            let mut bytes = storage.get(PATH).await.unwrap().to_vec();
            let len = bytes.len();
            let span = if near_end { len / 4 } else { len };
            for (index, value) in changes {
                bytes[len - 1 - index.index(span)] = value;
            }
            storage.put(PATH, Bytes::from(bytes)).await.unwrap();
            let _ = read(&storage, &file).await;
        });
    }

    #[test]
    fn any_bytes_as_a_footer_are_an_error(mut footer in prop::collection::vec(any::<u8>(), 0..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let len = u32::try_from(footer.len()).unwrap();
        let mut bytes = b"PAR1".to_vec();
        bytes.append(&mut footer);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(b"PAR1");
        let file = PlannedFile {
            path: PATH.to_owned(),
            size_bytes: bytes.len() as u64,
            rows: 1,
            sequence_number: 1,
            bounds: None,
        };
        runtime.block_on(async {
            let storage = storage();
            storage.put(PATH, Bytes::from(bytes)).await.unwrap();
            prop_assert!(read_footer(&storage, &file).await.is_err());
            Ok(())
        })?;
    }
}

fn entry(file: &mut DataFileBuilder) -> ManifestEntry {
    let file = file
        .file_path(PATH.to_owned())
        .partition(Struct::empty())
        .record_count(10)
        .file_size_in_bytes(1000)
        .build()
        .unwrap();
    ManifestEntry::builder()
        .status(ManifestStatus::Added)
        .sequence_number(3)
        .data_file(file)
        .build()
}

fn plan(file: &mut DataFileBuilder) -> Result<PlannedFile, ScanError> {
    let map = ColumnMap::resolve(&table_schema().unwrap()).unwrap();
    PlannedFile::from_entry(&entry(file), &map)
}

fn data() -> DataFileBuilder {
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_format(DataFileFormat::Parquet);
    builder
}

#[test]
fn a_manifest_without_statistics_leaves_the_bounds_unknown() {
    let file = plan(&mut data()).unwrap();
    assert_eq!(
        (file.bounds, file.rows, file.sequence_number),
        (None, 10, 3)
    );
}

#[test]
fn a_manifest_that_contradicts_itself_is_corrupt() {
    let bounds = |lower: i64, upper: i64| {
        let of = |offset: i64| {
            HashMap::from([
                (2, Datum::int(0)),
                (3, Datum::int(1)),
                (4, Datum::long(offset)),
            ])
        };
        let mut file = data();
        file.lower_bounds(of(lower)).upper_bounds(of(upper));
        plan(&mut file)
    };
    let planned = bounds(3, 3).unwrap().bounds.unwrap();
    assert_eq!(planned.offset.0.get(), 3);
    assert!(!planned.timestamps_known);
    for (lower, upper) in [(4, 3), (-1, 3)] {
        let error = bounds(lower, upper).unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt);
    }
}

#[test]
fn delete_files_and_other_formats_are_refused_with_the_way_on() {
    let mut deletes = data();
    deletes.content(DataContentType::PositionDeletes);
    let mut orc = data();
    orc.file_format(DataFileFormat::Orc);
    for (mut file, word) in [(deletes, "delete"), (orc, "orc")] {
        let error = plan(&mut file).unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Invalid);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn times_in_other_units_are_refused_by_their_type() {
    let array = arrow_array::TimestampMillisecondArray::from_value(5, 55);
    assert!(matches!(
        array.data_type(),
        DataType::Timestamp(TimeUnit::Millisecond, _)
    ));
    let error = with_column(Column::Timestamp, Arc::new(array)).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("timestamp"), "{error}");
}
