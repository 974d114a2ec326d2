//! Data files as values: what the writer hands to a commit, and what a plan hands to the reader.
//!
//! ```text
//!   PartitionRows ── writer ──► EncodedFile ──► manifest ──► PlannedFile ── scan ──► DecodedRun
//! ```

use everlog_common::{EventColumns, Generation, Offset, OffsetRange, Partition};
use iceberg::spec::{
    DataContentType, DataFile, DataFileFormat, Datum, ManifestEntry, PrimitiveLiteral,
    TableMetadata,
};

use crate::scan::ScanError;
use crate::schema::{Column, ColumnMap};

/// Where a table's data files go, without a slash at the end.
pub(crate) fn data_folder(metadata: &TableMetadata) -> String {
    let properties = metadata.properties();
    let configured = properties
        .get("write.data.path")
        .or_else(|| properties.get("write.folder-storage.path"));
    match configured {
        Some(path) => path.trim_end_matches('/').to_owned(),
        None => format!("{}/data", metadata.location().trim_end_matches('/')),
    }
}

/// Whether a name is that of a file of a kind that tables consist of.
pub(crate) fn is_table_file(uri: &str) -> bool {
    const KINDS: [&str; 5] = [".parquet", ".avro", ".orc", ".stats", ".puffin"];
    is_metadata_file(uri) || KINDS.iter().any(|kind| uri.ends_with(kind))
}

/// Whether a name is that of a table's metadata.
pub(crate) fn is_metadata_file(uri: &str) -> bool {
    const KINDS: [&str; 3] = [".metadata.json", ".metadata.json.gz", ".gz.metadata.json"];
    KINDS.iter().any(|kind| uri.ends_with(kind))
}

/// Which offsets of one partition a file covers, and with how many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// The topic's era.
    pub generation: Generation,
    /// The partition.
    pub partition: Partition,
    /// Covered offsets: those without a row are not in the log for a reader of the recorded isolation.
    pub range: OffsetRange,
    /// Rows.
    pub rows: u64,
}

/// What one commit adds of one partition.
///
/// * Offsets increase strictly from row to row, also across batches, and lie in `range`.
#[derive(Debug, Clone)]
pub struct PartitionRows {
    /// The topic's era.
    pub generation: Generation,
    /// The partition.
    pub partition: Partition,
    /// Offsets that the commit covers; there may be fewer rows, also none.
    pub range: OffsetRange,
    /// The rows, in order.
    pub batches: Vec<EventColumns>,
}

impl PartitionRows {
    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.batches.iter().map(|b| b.len() as u64).sum()
    }
}

/// A data file that is stored for good, and not yet part of any table.
#[derive(Debug, Clone)]
pub struct EncodedFile {
    /// As the manifest is going to have it.
    pub data_file: DataFile,
    /// The partition spec that it was written under, which may not be the table's default any more when it is committed.
    pub partition_spec_id: i32,
    /// What it covers, ascending by (generation, partition).
    pub ranges: Vec<FileRange>,
    /// Length of the file.
    pub bytes: u64,
    /// Rows in the file.
    pub rows: u64,
}

/// Smallest and largest values of the rows of a file, or of a row group; exact in files that everlog wrote, at worst wider
/// in others. All bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileBounds {
    /// Eras.
    pub generation: (Generation, Generation),
    /// Partitions.
    pub partition: (Partition, Partition),
    /// Offsets, over all partitions.
    pub offset: (Offset, Offset),
    /// Column `timestamp`, microseconds; none where no row has one, or where it is not known.
    pub timestamp_us: Option<(i64, i64)>,
    /// Whether `timestamp_us` tells of every timestamp: false where one only fits `timestamp_raw`, or nobody knows.
    pub timestamps_known: bool,
    /// Column `archived_at`, microseconds; none where it is not known.
    pub archived_at_us: Option<(i64, i64)>,
}

impl FileBounds {
    /// Whether a row at or after `ms` may be among these. A row without a timestamp is at no time.
    pub fn may_hold_timestamp_from(&self, ms: i64) -> bool {
        if !self.timestamps_known {
            return true;
        }
        self.timestamp_us
            .is_some_and(|(_, upper)| upper >= ms.saturating_mul(1000))
    }
}

/// A live data file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Full URI.
    pub path: String,
    /// Length by the manifest; the reader holds the file against it.
    pub size_bytes: u64,
    /// Rows by the manifest; the reader holds the file against it.
    pub rows: u64,
    /// Iceberg's data sequence number.
    pub sequence_number: i64,
    /// None where the manifest has no statistics: the file must be read to know.
    pub bounds: Option<FileBounds>,
}

impl PlannedFile {
    /// What a manifest says of a file. Refuses what the reader could not read right: delete files, other formats,
    /// statistics that contradict themselves.
    pub fn from_entry(entry: &ManifestEntry, columns: &ColumnMap) -> Result<Self, ScanError> {
        let file = entry.data_file();
        let path = file.file_path().to_owned();
        if file.content_type() != DataContentType::Data {
            let what = "it is a delete file: everlog reads no table with row-level deletes; rewrite the table's data files \
                        with the deletes applied, in the engine that wrote them";
            return Err(ScanError::unsupported(&path, what));
        }
        if file.file_format() != DataFileFormat::Parquet {
            let what = format!(
                "its format is {}: everlog reads Parquet; set write.format.default back and rewrite the file",
                file.file_format()
            );
            return Err(ScanError::unsupported(&path, what));
        }
        let sequence_number = entry.sequence_number().ok_or_else(|| {
            ScanError::corrupt(&path, "the manifest has no sequence number for it")
        })?;
        Ok(Self {
            bounds: bounds_of(file, columns)?,
            size_bytes: file.file_size_in_bytes(),
            rows: file.record_count(),
            sequence_number,
            path,
        })
    }
}

fn bounds_of(file: &DataFile, columns: &ColumnMap) -> Result<Option<FileBounds>, ScanError> {
    let pair = |column: Column| pair_of(file, columns.id(column));
    let (Some(generation), Some(partition), Some(offset)) = (
        pair(Column::Generation),
        pair(Column::Partition),
        pair(Column::Offset),
    ) else {
        return Ok(None);
    };
    let all_null = |column: Column| {
        let id = columns.id(column);
        file.null_value_counts()
            .get(&id)
            .is_some_and(|nulls| *nulls == file.record_count())
    };
    let timestamp_us = pair(Column::Timestamp);
    let known =
        (timestamp_us.is_some() || all_null(Column::Timestamp)) && all_null(Column::TimestampRaw);
    let raw = RawBounds {
        generation,
        partition,
        offset,
        timestamp_us,
        timestamps_known: known,
        archived_at_us: pair(Column::ArchivedAt),
    };
    raw.checked()
        .map(Some)
        .map_err(|what| ScanError::corrupt(file.file_path(), what))
}

/// Bounds as numbers, before anybody knows that they can be what they claim to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawBounds {
    pub(crate) generation: (i64, i64),
    pub(crate) partition: (i64, i64),
    pub(crate) offset: (i64, i64),
    pub(crate) timestamp_us: Option<(i64, i64)>,
    pub(crate) timestamps_known: bool,
    pub(crate) archived_at_us: Option<(i64, i64)>,
}

impl RawBounds {
    pub(crate) fn checked(self) -> Result<FileBounds, String> {
        fn both<T>(
            name: &str,
            (lower, upper): (i64, i64),
            convert: impl Fn(i64) -> Option<T>,
        ) -> Result<(T, T), String> {
            let converted = (lower <= upper)
                .then(|| Some((convert(lower)?, convert(upper)?)))
                .flatten();
            converted.ok_or_else(|| format!("bounds of {name} are {lower} to {upper}"))
        }
        let ordered =
            |name: &str, pair: Option<(i64, i64)>| pair.map(|p| both(name, p, Some)).transpose();
        Ok(FileBounds {
            generation: both("generation", self.generation, generation)?,
            partition: both("partition", self.partition, |v| {
                Partition::new(i32::try_from(v).ok()?).ok()
            })?,
            offset: both("offset", self.offset, |v| Offset::new(v).ok())?,
            timestamp_us: ordered("timestamp", self.timestamp_us)?,
            timestamps_known: self.timestamps_known,
            archived_at_us: ordered("archived_at", self.archived_at_us)?,
        })
    }
}

/// A stored generation number; the column is a 32-bit integer.
pub(crate) fn generation(value: i64) -> Option<Generation> {
    let value = i32::try_from(value).ok()?;
    u32::try_from(value).ok().map(Generation)
}

/// A column's lowest and highest value in a file, by its manifest; none where that does not say.
pub(crate) fn pair_of(file: &DataFile, id: i32) -> Option<(i64, i64)> {
    let lower = file.lower_bounds().get(&id).and_then(number);
    let upper = file.upper_bounds().get(&id).and_then(number);
    lower.zip(upper)
}

fn number(datum: &Datum) -> Option<i64> {
    match datum.literal() {
        PrimitiveLiteral::Int(value) => Some(i64::from(*value)),
        PrimitiveLiteral::Long(value) => Some(*value),
        _ => None,
    }
}
