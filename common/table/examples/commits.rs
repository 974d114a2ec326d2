//! Measures what a commit costs as a table grows: `commits [COUNT] [FOLDER] [FILES]` appends COUNT (10,000) small commits of FILES
//! (1) files each to a new table on SQLite and a local folder, with expiry along and maintenance every 500, and prints times
//! and sizes. The files hold nothing but their length. FOLDER stays, for `everlog verify bench --quick --offline` and the like.

#![allow(
    clippy::print_stdout,
    reason = "a program for people, who read its standard output"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use everlog_common::clock::{RandomIds, SystemClock};
use everlog_common::{
    Advance, Clock, Generation, Identity, Ids, Ledger, Millis, Offset, OffsetRange, Partition,
    Segment, TopicName,
};
use everlog_table::archive::{AppendRequest, Archive, ArchiveDeps, ArchiveOptions, CommitOutcome};
use everlog_table::catalog::connect;
use everlog_table::files::{EncodedFile, FileRange};
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings};
use everlog_table::manifests;
use everlog_table::schema::{Column, TableSettings};
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};
use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, Datum, Literal, Struct};

type Failure = Box<dyn std::error::Error>;

/// Commits between two lines of output.
const LINE: usize = 500;
const PARTITIONS: i32 = 12;
/// Rows that a file says it has, and its length.
const ROWS: u64 = 100;
const BYTES: u64 = 4096;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let count: usize = args.next().map_or(Ok(10_000), |count| count.parse())?;
    let kept = args.next();
    let files: usize = args.next().map_or(Ok(1), |files| files.parse())?;
    let temporary = tempfile::tempdir()?;
    let folder = kept.unwrap_or_else(|| temporary.path().display().to_string());
    let properties: BTreeMap<String, String> = [
        ("type", "sql".to_owned()),
        ("uri", format!("sqlite://{folder}/catalog.db")),
        ("warehouse", format!("file://{folder}/warehouse")),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    let clock = Arc::new(SystemClock::default());
    let deps = ArchiveDeps {
        catalog: connect(&properties).await?,
        clock: Arc::clone(&clock) as _,
        ids: Arc::new(RandomIds),
    };
    let topic = TopicName::new("bench")?;
    // Commits come faster than in life: what would expire by age expires by count.
    let expiry = ExpirySettings {
        count_max: 360,
        ..ExpirySettings::default()
    };
    let archive = Archive::open_or_create(deps, "everlog", &topic, &TableSettings::default())
        .await?
        .with_options(ArchiveOptions {
            expiry: Some(expiry.clone()),
            ..ArchiveOptions::default()
        });
    let data = PathBuf::from(format!("{folder}/warehouse/everlog/bench/data"));
    std::fs::create_dir_all(&data)?;
    let mut ledger = Ledger::default();
    let mut took: Vec<Duration> = Vec::with_capacity(count);
    println!("commits  p50 ms  p99 ms  max ms  manifests  snapshots  metadata bytes  plan ms");
    for number in 0..count {
        let request = request(&ledger, number, files, &data, clock.as_ref())?;
        let start = clock.elapsed();
        match archive.append(request).await? {
            CommitOutcome::Committed { ledger: next, .. } => ledger = next,
            other => return Err(format!("commit {number}: {other:?}").into()),
        }
        took.push(clock.elapsed().saturating_sub(start));
        if (number + 1) % LINE == 0 {
            line(
                &archive,
                &took[number + 1 - LINE..],
                number + 1,
                clock.as_ref(),
            )
            .await?;
            let settings = MaintenanceSettings {
                expiry: expiry.clone(),
                ..MaintenanceSettings::default()
            };
            archive.maintain(&settings).await?;
        }
    }
    let edge = took.len().min(100);
    println!(
        "first {edge}: p50 {:.2} ms, last {edge}: p50 {:.2} ms",
        percentile(&took[..edge], 50),
        percentile(&took[took.len() - edge..], 50)
    );
    Ok(())
}

fn request(
    ledger: &Ledger,
    number: usize,
    files: usize,
    data: &Path,
    clock: &dyn Clock,
) -> Result<AppendRequest, Failure> {
    let partition = Partition::new(i32::try_from(number)? % PARTITIONS)?;
    let base = ledger.entry(Generation::FIRST, partition).copied();
    let start = base.map_or(Offset::ZERO, |entry| entry.next);
    let rows = ROWS * u64::try_from(files)?;
    let range = OffsetRange::new(start, after(start, rows)?)?;
    let now = clock.now();
    let files = (0..files)
        .map(|n| {
            let start = after(start, ROWS * u64::try_from(n)?)?;
            let path = data.join(format!("{number:06}-{n}-{}.parquet", RandomIds.uuid()));
            file(partition, start, &path, now)
        })
        .collect::<Result<_, Failure>>()?;
    Ok(AppendRequest {
        advances: vec![Advance {
            generation: Generation::FIRST,
            identity: Identity::default(),
            partition,
            base,
            segments: vec![Segment::Data { range, rows }],
            leader_epoch: None,
            hash: RandomIds.below(u64::MAX),
        }],
        files,
        archived_at: now,
        reference_time: None,
    })
}

fn after(start: Offset, count: u64) -> Result<Offset, Failure> {
    Ok(Offset::new(start.get() + i64::try_from(count)?)?)
}

/// A file that is as long as it says, and is never read.
fn file(
    partition: Partition,
    start: Offset,
    path: &Path,
    now: Millis,
) -> Result<EncodedFile, Failure> {
    File::create(path)?.set_len(BYTES)?;
    let range = OffsetRange::new(start, after(start, ROWS)?)?;
    let day = i32::try_from(now.0.div_euclid(86_400_000))?;
    let bounds = |offset: i64| {
        [
            (Column::Generation.id(), Datum::int(0)),
            (Column::Partition.id(), Datum::int(partition.get())),
            (Column::Offset.id(), Datum::long(offset)),
        ]
        .into()
    };
    let data_file = DataFileBuilder::default()
        .content(DataContentType::Data)
        .file_path(format!("file://{}", path.display()))
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::from_iter([Some(Literal::date(day))]))
        .record_count(ROWS)
        .file_size_in_bytes(BYTES)
        .lower_bounds(bounds(start.get()))
        .upper_bounds(bounds(range.end().get() - 1))
        .build()?;
    Ok(EncodedFile {
        data_file,
        partition_spec_id: 0,
        ranges: vec![FileRange {
            generation: Generation::FIRST,
            partition,
            range,
            rows: ROWS,
        }],
        bytes: BYTES,
        rows: ROWS,
    })
}

async fn line(
    archive: &Archive,
    took: &[Duration],
    commits: usize,
    clock: &dyn Clock,
) -> Result<(), Failure> {
    let table = archive.state().await?.table;
    let head = table.metadata.current_snapshot().ok_or("no head")?;
    let storage = archive.storage().await?;
    let list = manifests::read_list(&storage, head, table.metadata.format_version()).await?;
    let start = clock.elapsed();
    let pinned = archive
        .pin(&SnapshotSelector::Current, LeaseMode::Off)
        .await?;
    let files = pinned.files().await?.len();
    let plan = clock.elapsed().saturating_sub(start);
    println!(
        "{commits:>7} {:>7.2} {:>7.2} {:>7.2} {:>10} {:>10} {:>15} {:>8.1}  ({files} files)",
        percentile(took, 50),
        percentile(took, 99),
        percentile(took, 100),
        list.len(),
        table.metadata.snapshots().len(),
        storage.size(&table.metadata_location).await?,
        plan.as_secs_f64() * 1e3,
    );
    Ok(())
}

fn percentile(took: &[Duration], percent: usize) -> f64 {
    let mut sorted: Vec<Duration> = took.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}
