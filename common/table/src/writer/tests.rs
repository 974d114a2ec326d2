use std::sync::Arc;

use everlog_common::{EventColumns, EventColumnsBuilder, Generation, Offset, TimestampType};
use iceberg::spec::{Literal, PrimitiveLiteral, Struct};
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;

use super::*;
use crate::files::PlannedFile;
use crate::scan::read_footer;
use crate::schema::{Column, TableSettings};
use crate::test_table::{
    ARCHIVED_AT, columns, joined, partitioned_by, planned, range, read, rows, same, storage, table,
    topic, write, write_with, written,
};

const LARGE: u64 = FILE_BYTES_TARGET;

/// Rows that do not compress, so that sizes mean something.
fn noise(offsets: std::ops::Range<i64>, bytes: usize) -> EventColumns {
    let mut builder = EventColumnsBuilder::new();
    let mut state = 1_u64;
    for offset in offsets {
        let value: Vec<u8> = (0..bytes)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        builder.push(
            Offset::new(offset).unwrap(),
            (1, TimestampType::LogAppend),
            None,
            Some(&value),
            std::iter::empty(),
            None,
        );
    }
    builder.finish()
}

async fn read_all(storage: &Storage, files: &[EncodedFile]) -> Vec<crate::scan::DecodedRun> {
    let mut runs = Vec::new();
    for file in files {
        runs.extend(read(storage, &planned(file)).await.unwrap());
    }
    runs
}

#[tokio::test]
async fn what_is_written_is_read_back_in_order() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    let mut items = vec![
        rows(
            0,
            range(0, 50),
            vec![columns(0..20), columns([]), columns(30..40)],
        ),
        rows(1, range(5, 9), vec![]),
        rows(2, range(100, 400), vec![columns((100..400).step_by(3))]),
    ];
    let mut second = rows(0, range(0, 5), vec![columns(0..5)]);
    second.generation = Generation(1);
    items.push(second);
    let files = write(&table, &storage, items.clone(), LARGE).await.unwrap();
    assert_eq!(files.len(), 1);
    let runs = read_all(&storage, &files).await;
    assert!(same(&joined(runs), &written(&items)));
}

#[tokio::test]
async fn a_file_is_described_exactly() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    let items = vec![
        rows(3, range(10, 60), vec![columns(20..40)]),
        rows(7, range(0, 2), vec![columns(1..2)]),
    ];
    let files = write(&table, &storage, items, LARGE).await.unwrap();
    let [file] = &files[..] else {
        panic!("one file")
    };
    let data_file = &file.data_file;
    assert_eq!((file.rows, data_file.record_count()), (21, 21));
    assert_eq!(
        file.bytes,
        storage.size(data_file.file_path()).await.unwrap()
    );
    assert_eq!(file.bytes, data_file.file_size_in_bytes());
    let prefix = "memory://lake/everlog/orders_eu/data/archived_at_day=2023-11-14/";
    assert!(
        data_file.file_path().starts_with(prefix),
        "{}",
        data_file.file_path()
    );
    let day = Literal::Primitive(PrimitiveLiteral::Int(19_675));
    assert_eq!(
        *data_file.partition(),
        [Some(day)].into_iter().collect::<Struct>()
    );
    assert_eq!(data_file.sort_order_id(), Some(1));
    assert_eq!(data_file.split_offsets(), Some(&[4][..]));
    let ranges: Vec<_> = file
        .ranges
        .iter()
        .map(|r| (r.partition.get(), r.range, r.rows))
        .collect();
    assert_eq!(ranges, [(3, range(10, 60), 20), (7, range(0, 2), 1)]);
    let nulls = data_file.null_value_counts();
    assert_eq!(
        (
            nulls[&Column::Timestamp.id()],
            nulls[&Column::TimestampRaw.id()]
        ),
        (0, 21)
    );
    assert_eq!(data_file.value_counts()[&Column::Offset.id()], 21);
    for column in [Column::Key, Column::Value, Column::Headers, Column::Topic] {
        assert!(!data_file.lower_bounds().contains_key(&column.id()));
    }
    let sizes: u64 = data_file.column_sizes().values().sum();
    assert_eq!(data_file.column_sizes().len(), 14);
    assert!(sizes > 0 && sizes < file.bytes);

    let bounds = planned(file).bounds.unwrap();
    assert_eq!((bounds.partition.0.get(), bounds.partition.1.get()), (3, 7));
    assert_eq!((bounds.offset.0.get(), bounds.offset.1.get()), (1, 39));
    let ms = 1_690_000_000_000_i64;
    assert_eq!(
        bounds.timestamp_us,
        Some(((ms + 13) * 1000, (ms + 39 * 13) * 1000))
    );
    assert!(bounds.timestamps_known);
    assert!(bounds.may_hold_timestamp_from(ms + 39 * 13));
    assert!(!bounds.may_hold_timestamp_from(ms + 39 * 13 + 1));
    let at = ARCHIVED_AT.0 * 1000;
    assert_eq!(bounds.archived_at_us, Some((at, at)));

    let footer = read_footer(&storage, &planned(file)).await.unwrap();
    assert_eq!(footer.ranges, Some(file.ranges.clone()));
    assert_eq!(footer.row_groups.len(), 1);
    assert_eq!(footer.row_groups[0].bounds, Some(bounds));
}

#[tokio::test]
async fn a_time_that_microseconds_cannot_hold_makes_the_times_unknown() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    let mut builder = EventColumnsBuilder::new();
    for (offset, ms) in [(0, 5), (1, i64::MAX)] {
        builder.push(
            Offset::new(offset).unwrap(),
            (ms, TimestampType::Create),
            None,
            None,
            std::iter::empty(),
            None,
        );
    }
    let items = vec![rows(0, range(0, 2), vec![builder.finish()])];
    let files = write(&table, &storage, items, LARGE).await.unwrap();
    let bounds = planned(&files[0]).bounds.unwrap();
    assert_eq!(bounds.timestamp_us, Some((5000, 5000)));
    assert!(bounds.may_hold_timestamp_from(1_000_000));
    let footer = read_footer(&storage, &planned(&files[0])).await.unwrap();
    assert_eq!(footer.row_groups[0].bounds, Some(bounds));
}

#[tokio::test]
async fn files_have_page_checksums_the_chosen_encodings_and_no_statistics_of_content() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    let items = vec![rows(0, range(0, 5000), vec![columns(0..5000)])];
    let files = write(&table, &storage, items, LARGE).await.unwrap();
    let bytes = storage.get(files[0].data_file.file_path()).await.unwrap();
    let reader = SerializedFileReader::new(bytes.clone()).unwrap();
    let row_group = reader.metadata().row_group(0);
    let described: Vec<String> = row_group
        .columns()
        .iter()
        .map(|c| {
            let statistics = if c.statistics().is_some() { "+" } else { "-" };
            let dictionary = if c.dictionary_page_offset().is_some() {
                "d"
            } else {
                ""
            };
            let path = c.column_path().string();
            let encodings: Vec<String> = c
                .encodings()
                .filter(|e| e.to_string().starts_with("DELTA"))
                .map(|e| e.to_string())
                .collect();
            format!("{path}{statistics}{dictionary} {}", encodings.join(","))
        })
        .collect();
    assert_eq!(
        described,
        [
            "topic-d ",
            "generation+ DELTA_BINARY_PACKED",
            "partition+d ",
            "offset+ DELTA_BINARY_PACKED",
            "timestamp+ DELTA_BINARY_PACKED",
            "timestamp_type- DELTA_BINARY_PACKED",
            "key-d ",
            "value- DELTA_LENGTH_BYTE_ARRAY",
            "headers.list.element.key-d ",
            "headers.list.element.value- DELTA_LENGTH_BYTE_ARRAY",
            "leader_epoch- DELTA_BINARY_PACKED",
            "archived_at+ DELTA_BINARY_PACKED",
            "timestamp_raw+ DELTA_BINARY_PACKED",
            "headers_raw- DELTA_LENGTH_BYTE_ARRAY",
        ]
    );
    // The crate verifies page checksums where there are any: a changed page body is noticed in every column.
    for (number, column) in row_group.columns().iter().enumerate() {
        let (start, len) = column.byte_range();
        let mut changed = bytes.to_vec();
        changed[usize::try_from(start + len).unwrap() - 1] ^= 0x10;
        let reader = SerializedFileReader::new(bytes::Bytes::from(changed)).unwrap();
        let pages = reader
            .get_row_group(0)
            .unwrap()
            .get_column_page_reader(number);
        let error = pages.unwrap().find_map(Result::err).map(|e| e.to_string());
        assert!(
            error.as_ref().is_some_and(|e| e.contains("CRC")),
            "{}: {error:?}",
            column.column_path()
        );
    }
}

#[tokio::test]
async fn a_thousand_quiet_partitions_make_one_small_file() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    let items: Vec<PartitionRows> = (0..1000)
        .map(|p| {
            let start = 1_000_000_000 + i64::from(p);
            rows(
                p,
                range(start, start + 10),
                vec![columns(start..start + 10)],
            )
        })
        .collect();
    let files = write(&table, &storage, items.clone(), LARGE).await.unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].ranges.len(), 1000);
    let path = files[0].data_file.file_path();
    let bytes = storage.get(path).await.unwrap();
    let footer_len = bytes[bytes.len() - 8..]
        .first_chunk::<4>()
        .copied()
        .unwrap();
    let footer_len = u32::from_le_bytes(footer_len);
    assert!(footer_len < 64 << 10, "footer of {footer_len} bytes");
    let footer = read_footer(&storage, &planned(&files[0])).await.unwrap();
    assert_eq!(footer.row_groups.len(), 1);
    let runs = read_all(&storage, &files).await;
    assert!(same(&joined(runs), &written(&items)));
}

#[tokio::test]
async fn files_end_at_their_target_and_tile_what_a_partition_covers() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    let value = 64 << 10;
    let items = vec![
        rows(0, range(0, 10), vec![noise(3..9, 100)]),
        rows(
            1,
            range(0, 5000),
            vec![noise(10..1500, value), noise(1600..2000, value)],
        ),
        rows(2, range(7, 9), vec![noise(7..9, 100)]),
    ];
    let target = 8 << 20;
    let files = write(&table, &storage, items.clone(), target)
        .await
        .unwrap();
    let bytes: u64 = files.iter().map(|f| f.bytes).sum();
    assert!(
        files.len() as u64 <= bytes.div_ceil(target) + 1,
        "{} files",
        files.len()
    );
    assert!(files.len() > 3);
    for file in &files[..files.len() - 1] {
        assert!(file.bytes >= target && file.bytes < target + (40 << 20));
    }
    let of_1: Vec<_> = files
        .iter()
        .flat_map(|f| &f.ranges)
        .filter(|r| r.partition.get() == 1)
        .collect();
    assert_eq!(of_1.first().unwrap().range.start().get(), 0);
    assert_eq!(of_1.last().unwrap().range.end().get(), 5000);
    assert!(
        of_1.windows(2)
            .all(|w| w[0].range.end() == w[1].range.start())
    );
    assert_eq!(of_1.iter().map(|r| r.rows).sum::<u64>(), 1890);
    let runs = read_all(&storage, &files).await;
    assert!(same(&joined(runs), &written(&items)));
}

/// Bytes, bounds and ranges are the same, however many row groups were encoded at once.
#[tokio::test]
async fn threads_that_help_change_nothing() {
    let table = table(&TableSettings::default());
    let value = 64 << 10;
    let items = vec![
        rows(0, range(0, 10), vec![noise(3..9, 100)]),
        rows(2, range(0, 300_000), vec![columns(0..290_000)]),
        rows(4, range(0, 2000), vec![noise(10..1500, value)]),
    ];
    let mut seen = Vec::new();
    for spare in [0, 1, 3] {
        let (storage, spare) = (storage(), SpareThreads::new(spare));
        let target = 8 << 20;
        let files = write_with(&table, &storage, items.clone(), target, spare.clone()).await;
        let files = files.unwrap();
        assert!(files.len() > 2, "{} files", files.len());
        let mut stored = Vec::new();
        for file in &files {
            let path = file.data_file.file_path();
            stored.push(storage.get(path).await.unwrap());
        }
        let ranges: Vec<_> = files.iter().map(|f| f.ranges.clone()).collect();
        let described: Vec<_> = files.into_iter().map(|f| f.data_file).collect();
        seen.push((stored, ranges, described));
    }
    assert!(seen.windows(2).all(|w| w[0] == w[1]));
}

#[tokio::test]
async fn h20_a_record_of_a_hundred_megabytes_is_stored() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    let items = vec![rows(
        0,
        range(0, 3),
        vec![noise(0..1, 10), noise(1..2, 100 << 20), noise(2..3, 10)],
    )];
    let files = write(&table, &storage, items.clone(), LARGE).await.unwrap();
    let runs = read_all(&storage, &files).await;
    assert!(same(&joined(runs), &written(&items)));
}

#[tokio::test]
async fn no_rows_make_no_file() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    let none = write(&table, &storage, vec![], LARGE).await.unwrap();
    let empty = vec![rows(0, range(0, 5), vec![columns([])])];
    let empty = write(&table, &storage, empty, LARGE).await.unwrap();
    assert!(none.is_empty() && empty.is_empty());
}

#[tokio::test]
async fn tables_partitioned_otherwise_get_files_per_table_partition() {
    let items: Vec<PartitionRows> = (0..6)
        .map(|p| rows(p, range(0, 10), vec![columns(0..10)]))
        .collect();
    for (spec, expected) in [
        ("none", 1),
        ("hour(archived_at)", 1),
        ("year(archived_at)", 1),
        ("identity(partition)", 6),
        ("month(archived_at), truncate(2, partition)", 3),
        ("identity(generation)", 1),
    ] {
        let (table, storage) = (table(&partitioned_by(spec)), storage());
        let files = write(&table, &storage, items.clone(), LARGE).await.unwrap();
        assert_eq!(files.len(), expected, "{spec}");
        let runs = read_all(&storage, &files).await;
        assert!(same(&joined(runs), &written(&items)), "{spec}");
        let fields = table.metadata.default_partition_spec().fields().len();
        for file in &files {
            assert_eq!(file.data_file.partition().fields().len(), fields);
        }
    }
}

#[tokio::test]
async fn two_generations_of_one_partition_in_a_file_are_not_in_the_tables_order() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    let mut second = rows(0, range(0, 5), vec![columns(0..5)]);
    second.generation = Generation(1);
    let items = vec![rows(0, range(5, 9), vec![columns(5..9)]), second];
    let files = write(&table, &storage, items, LARGE).await.unwrap();
    assert_eq!(files[0].data_file.sort_order_id(), None);
}

#[tokio::test]
async fn rows_that_break_the_rules_are_refused_before_anything_is_stored() {
    let (table, storage) = (table(&TableSettings::default()), storage());
    for items in [
        vec![rows(0, range(0, 5), vec![columns(0..6)])],
        vec![rows(0, range(1, 5), vec![columns(0..2)])],
        vec![rows(0, range(0, 9), vec![columns([3, 2])])],
        vec![rows(0, range(0, 9), vec![columns([3, 3])])],
        vec![rows(0, range(0, 9), vec![columns(3..5), columns(4..6)])],
        vec![rows(1, range(0, 9), vec![]), rows(1, range(0, 9), vec![])],
        vec![rows(1, range(0, 9), vec![]), rows(0, range(0, 9), vec![])],
    ] {
        let refused = write(&table, &storage, items, LARGE).await;
        assert!(matches!(refused, Err(WriteError::Rows { .. })));
    }
    let request = WriteRequest {
        table: &table,
        storage: storage.clone(),
        topic: topic(),
        archived_at: Millis(i64::MAX),
        rows: vec![],
        file_bytes_target: LARGE,
        spare: SpareThreads::none(),
    };
    let ids = everlog_common::clock::SeededIds::new(1);
    let refused = write_files(request, &ids).await;
    assert!(matches!(refused, Err(WriteError::ArchivedAt { .. })));
}

#[tokio::test]
async fn a_partition_spec_over_event_time_is_refused_by_name() {
    let storage = storage();
    let mut table = table(&TableSettings::default());
    let metadata = Arc::unwrap_or_clone(table.metadata);
    let spec = iceberg::spec::UnboundPartitionSpec::builder()
        .add_partition_field(5, "timestamp_day", iceberg::spec::Transform::Day)
        .unwrap()
        .build();
    let builder = metadata.into_builder(None).add_default_partition_spec(spec);
    table.metadata = Arc::new(builder.unwrap().build().unwrap().metadata);
    let items = vec![rows(0, range(0, 5), vec![columns(0..5)])];
    let error = write(&table, &storage, items, LARGE).await.unwrap_err();
    assert!(error.to_string().contains("timestamp_day"), "{error}");
}

#[tokio::test]
async fn the_tables_data_path_is_used() {
    let mut settings = TableSettings::default();
    let path = "memory://elsewhere/data/";
    settings
        .properties
        .insert("write.data.path".to_owned(), path.to_owned());
    let (table, storage) = (table(&settings), storage());
    let items = vec![rows(0, range(0, 5), vec![columns(0..5)])];
    let files = write(&table, &storage, items, LARGE).await.unwrap();
    let path = files[0].data_file.file_path();
    assert!(
        path.starts_with("memory://elsewhere/data/archived_at_day="),
        "{path}"
    );
    let file: PlannedFile = planned(&files[0]);
    assert_eq!(read(&storage, &file).await.unwrap().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_partitions_come_back_whole_and_their_files_cover_them(
        shapes in prop::collection::btree_map(
            (0_u32..3, 0_i32..20),
            prop::collection::vec((1_i64..5, 0_i64..40), 0..4),
            0..12,
        ),
        target in prop::sample::select(vec![1_u64, 20_000, LARGE]),
    ) {
        let items: Vec<PartitionRows> = shapes
            .into_iter()
            .map(|((generation, partition), batches)| {
                let mut next = 0;
                let batches: Vec<EventColumns> = batches
                    .into_iter()
                    .map(|(step, count)| {
                        let offsets = (0..count).map(move |i| next + i * step);
                        next += count * step + 1;
                        columns(offsets)
                    })
                    .collect();
                let mut item = rows(partition, range(0, next + 1), batches);
                item.generation = Generation(generation);
                item
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (table, storage) = (table(&TableSettings::default()), storage());
            let files = write(&table, &storage, items.clone(), target).await.unwrap();
            let runs = read_all(&storage, &files).await;
            prop_assert!(same(&joined(runs), &written(&items)));
            let rows: u64 = files.iter().map(|f| f.rows).sum();
            prop_assert_eq!(rows, items.iter().map(PartitionRows::rows).sum::<u64>());
            for item in items.iter().filter(|i| i.rows() > 0) {
                let covered: Vec<_> = files.iter().flat_map(|f| &f.ranges)
                    .filter(|r| (r.generation, r.partition) == (item.generation, item.partition))
                    .collect();
                prop_assert_eq!(covered[0].range.start(), item.range.start());
                prop_assert_eq!(covered[covered.len() - 1].range.end(), item.range.end());
            }
            Ok(())
        })?;
    }
}
