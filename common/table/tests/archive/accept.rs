//! `everlog archive --accept SNAPSHOT`: what can be taken as it is, and what cannot.

use bytes::Bytes;
use everlog_common::Ledger;
use everlog_table::archive::{Archive, ArchiveErrorKind};
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};
use iceberg::spec::Operation;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::rig::{Foreign, Rig, committed, rows, written};

async fn append(rig: &Rig, archive: &Archive, ledger: &Ledger, number: i32, count: i64) -> Ledger {
    let request = written(archive, ledger, number, count, &*rig.clock).await;
    committed(archive.append(request).await)
}

async fn head(rig: &Rig) -> i64 {
    rig.load()
        .await
        .metadata
        .current_snapshot_id()
        .expect("a head")
}

/// A file of the table's head, as another engine writes it again: the rows from `skip` on, no metadata of ours.
async fn rewritten(rig: &Rig, archive: &Archive, place: usize, skip: usize) -> Bytes {
    let table = rig.load().await;
    let files = rig.rows_of(&table, head(rig).await).await;
    let storage = archive.storage().await.expect("a store");
    let bytes = storage.get(files[place].file_path()).await.expect("a file");
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .and_then(ParquetRecordBatchReaderBuilder::build)
        .expect("parquet");
    let batches: Vec<_> = reader.map(|batch| batch.expect("rows")).collect();
    let mut writer = ArrowWriter::try_new(Vec::new(), batches[0].schema(), None).expect("a writer");
    let mut left = skip;
    for batch in &batches {
        let from = left.min(batch.num_rows());
        left -= from;
        let rest = batch.slice(from, batch.num_rows() - from);
        writer.write(&rest).expect("written");
    }
    Bytes::from(writer.into_inner().expect("closed"))
}

/// After an accepted change: the archive goes on, and reads back what it counts.
async fn goes_on(rig: &Rig, archive: &Archive, ledger: &Ledger) {
    assert_eq!(&archive.state().await.expect("a state").ledger, ledger);
    let next = append(rig, archive, ledger, 0, 3).await;
    assert_eq!(next.rows(), ledger.rows() + 3);
    let pinned = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Off)
        .await
        .expect("a pin");
    pinned.files().await.expect("files");
    rig.check().await;
}

#[tokio::test]
async fn a_rolled_back_main_takes_back_its_ledger() {
    let rig = Rig::new(90);
    let archive = rig.process().await;
    let first = append(&rig, &archive, &Ledger::default(), 0, 10).await;
    let old = head(&rig).await;
    append(&rig, &archive, &first, 0, 5).await;
    rig.set_main_to(old).await;
    let wrong = archive.accept(old + 1).await.expect_err("another snapshot");
    assert_eq!(wrong.kind(), ArchiveErrorKind::Invalid);
    assert!(wrong.to_string().contains(&old.to_string()), "{wrong}");
    let ledger = archive.accept(old).await.expect("accepted");
    assert_eq!(ledger, first);
    let again = archive
        .accept(old)
        .await
        .expect("nothing to accept any more");
    assert_eq!(again, ledger);
    let summary = rig.load().await;
    let summary = summary
        .metadata
        .current_snapshot()
        .expect("a head")
        .summary()
        .clone();
    let accepted = summary
        .additional_properties
        .get("everlog.accepted-snapshot-id");
    assert_eq!(accepted, Some(&old.to_string()));
    goes_on(&rig, &archive, &ledger).await;
}

#[tokio::test]
async fn deleted_rows_are_counted_away_and_no_position_moves() {
    let rig = Rig::new(91);
    let archive = rig.process().await;
    let mut before = append(&rig, &archive, &Ledger::default(), 0, 10).await;
    before = append(&rig, &archive, &before, 1, 7).await;
    let id = rig.foreign(Foreign::of(Operation::Delete, 0)).await;
    let ledger = archive.accept(id).await.expect("accepted");
    let left: u64 = rows(&ledger).values().sum();
    assert!(left == 10 || left == 7, "one of the files is gone: {left}");
    assert_eq!(ledger.cut(), before.cut());
    goes_on(&rig, &archive, &ledger).await;
}

#[tokio::test]
async fn h40_rows_rewritten_by_another_engine_are_counted_by_reading_them() {
    let rig = Rig::new(92);
    let archive = rig.process().await;
    let before = append(&rig, &archive, &Ledger::default(), 0, 10).await;
    let content = rewritten(&rig, &archive, 0, 4).await;
    let change = Foreign {
        content: Some(content),
        ..Foreign::of(Operation::Overwrite, 4)
    };
    let id = rig.foreign(change).await;
    let ledger = archive.accept(id).await.expect("accepted");
    assert_eq!(rows(&ledger), [(0, 6)].into());
    assert_eq!(ledger.cut(), before.cut());
    goes_on(&rig, &archive, &ledger).await;
}

#[tokio::test]
async fn b01_rows_that_are_there_twice_cannot_be_accepted() {
    let rig = Rig::new(93);
    let archive = rig.process().await;
    append(&rig, &archive, &Ledger::default(), 0, 10).await;
    let content = rewritten(&rig, &archive, 0, 0).await;
    let change = Foreign {
        content: Some(content),
        ..Foreign::of(Operation::Append, 10)
    };
    let id = rig.foreign(change).await;
    let error = archive.accept(id).await.expect_err("double");
    assert_eq!(error.kind(), ArchiveErrorKind::Invalid);
    assert!(error.to_string().contains("two files"), "{error}");
}

#[tokio::test]
async fn rows_beyond_the_ledger_cannot_be_accepted() {
    let rig = Rig::new(94);
    let archive = rig.process().await;
    let ledger = append(&rig, &archive, &Ledger::default(), 0, 10).await;
    append(&rig, &archive, &ledger, 0, 10).await;
    let content = {
        let table = rig.load().await;
        let head = head(&rig).await;
        let files = rig.rows_of(&table, head).await;
        let newest = files
            .iter()
            .position(|f| f.lower_bounds().values().any(|b| b.to_string() == "10"))
            .expect("the second file");
        rewritten(&rig, &archive, newest, 0).await
    };
    let old = {
        let history = crate::rig::main_history(&rig.load().await.metadata);
        history[1]
    };
    // The newest commit is rolled back, and its rows come again from elsewhere.
    rig.set_main_to(old).await;
    let change = Foreign {
        content: Some(content),
        ..Foreign::of(Operation::Append, 10)
    };
    let id = rig.foreign(change).await;
    let error = archive.accept(id).await.expect_err("unknown offsets");
    assert!(error.to_string().contains("[10, 20)"), "{error}");
}
