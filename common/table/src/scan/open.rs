//! A file's footer: fetched in one request as a rule, checked, parsed.

use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
};

use super::columns::FileColumns;
use super::{FileFooter, Own, PlainFooter, RowGroupInfo, ScanError, bounds, guard};
use crate::files::PlannedFile;
use crate::footer::{self, Marks, TAIL_LEN};
use crate::storage::Storage;

/// How much of the end is fetched at first: larger files have larger footers.
const PREFETCH_MIN: u64 = 64 << 10;
const PREFETCH_MAX: u64 = 512 << 10;
const PREFETCH_SHARE: u64 = 64;
/// Magic, length of the footer, magic.
const FILE_BYTES_MIN: u64 = 12;

const MAGIC: &[u8] = b"PAR1";
const ENCRYPTED: &[u8] = b"PARE";

/// Reads a file's footer, and holds length and row count against the manifest.
pub async fn read_footer(storage: &Storage, file: &PlannedFile) -> Result<FileFooter, ScanError> {
    let footer = fetch(storage, file).await?;
    let planned = file.clone();
    parsed(file, move || parse(&planned, &footer)).await
}

/// Reads the footer of a Parquet file of any table: the same checks as for [`read_footer`], but for those that need an
/// archive's columns.
pub async fn read_plain_footer(
    storage: &Storage,
    file: &PlannedFile,
) -> Result<PlainFooter, ScanError> {
    let footer = fetch(storage, file).await?;
    let planned = file.clone();
    parsed(file, move || {
        let (parquet, marks) = decode(&planned, &footer, Marked::Perhaps)?;
        Ok(PlainFooter {
            parquet: Arc::new(parquet),
            checksums: marks.map(|marks| marks.checksums),
        })
    })
    .await
}

/// Parses on a thread that may block, and may fail as it likes.
async fn parsed<T: Send + 'static>(
    file: &PlannedFile,
    parse: impl FnOnce() -> Result<T, ScanError> + Send + 'static,
) -> Result<T, ScanError> {
    match everlog_common::compute::spawn(parse).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => {
            let what = "the Parquet footer's parser panicked";
            Err(ScanError::corrupt(&file.path, what))
        }
        Err(_) => Err(ScanError::Stopped {
            path: file.path.clone(),
        }),
    }
}

/// The footer's bytes.
async fn fetch(storage: &Storage, file: &PlannedFile) -> Result<Bytes, ScanError> {
    let size = file.size_bytes;
    if size < FILE_BYTES_MIN {
        let what = format!("by its manifest it has {size} bytes, too few for a Parquet file");
        return Err(ScanError::corrupt(&file.path, what));
    }
    let prefetch = (size / PREFETCH_SHARE)
        .clamp(PREFETCH_MIN, PREFETCH_MAX)
        .min(size);
    let mut tail = get(storage, file, size - prefetch..size).await?;
    let footer_len = footer_len(file, &tail)?;
    let needed = footer_len + TAIL_LEN;
    if needed > tail.len() {
        let start = size - needed as u64;
        let mut whole = get(storage, file, start..size - tail.len() as u64)
            .await?
            .to_vec();
        whole.extend_from_slice(&tail);
        tail = whole.into();
    }
    Ok(tail.slice(tail.len() - needed..tail.len() - TAIL_LEN))
}

async fn get(
    storage: &Storage,
    file: &PlannedFile,
    range: std::ops::Range<u64>,
) -> Result<Bytes, ScanError> {
    let source = match storage.get_range(&file.path, range).await {
        Ok(bytes) => return Ok(bytes),
        Err(source) => source,
    };
    // A file shorter than its manifest says looks like any other refused request.
    match storage.size(&file.path).await {
        Ok(size) if size != file.size_bytes => {
            let what = format!("it has {size} bytes, its manifest says {}", file.size_bytes);
            Err(ScanError::corrupt(&file.path, what))
        }
        _ => Err(ScanError::Storage {
            path: file.path.clone(),
            source,
        }),
    }
}

fn footer_len(file: &PlannedFile, tail: &[u8]) -> Result<usize, ScanError> {
    let corrupt = |what: &str| ScanError::corrupt(&file.path, what);
    let (_, end) = tail
        .split_last_chunk::<TAIL_LEN>()
        .ok_or_else(|| corrupt("it ends early"))?;
    let (len, magic) = end.split_at(4);
    if magic == ENCRYPTED {
        let what = "it is encrypted: everlog reads no encrypted files";
        return Err(ScanError::unsupported(&file.path, what));
    }
    if magic != MAGIC {
        return Err(corrupt(
            "it does not end as a Parquet file where its manifest says that it ends",
        ));
    }
    let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]);
    let fits = u64::from(len) <= file.size_bytes - FILE_BYTES_MIN;
    match usize::try_from(len) {
        Ok(len) if fits && len <= guard::FOOTER_BYTES_MAX => Ok(len),
        _ => Err(corrupt("its footer is longer than it can be")),
    }
}

pub(crate) fn parse(file: &PlannedFile, footer: &[u8]) -> Result<FileFooter, ScanError> {
    let corrupt = |what: String| ScanError::corrupt(&file.path, what);
    let unreadable = |e: parquet::errors::ParquetError| corrupt(format!("footer: {e}"));
    let (parquet, marks) = decode(file, footer, Marked::IfOurs)?;
    let parquet = Arc::new(parquet);
    // The file's own Arrow schema would have types chosen by its writer; Parquet's types are the same for every writer.
    let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let read = ArrowReaderMetadata::try_new(Arc::clone(&parquet), plain).map_err(unreadable)?;
    let columns = FileColumns::resolve(read.schema()).map_err(corrupt)?;
    let metadata = if marks.is_some() {
        read
    } else {
        let schema = Arc::new(columns.with_topic_dictionary(read.schema()));
        let options = ArrowReaderOptions::new().with_schema(schema);
        ArrowReaderMetadata::try_new(Arc::clone(&parquet), options).map_err(unreadable)?
    };
    let row_groups: Vec<RowGroupInfo> = parquet
        .row_groups()
        .iter()
        .enumerate()
        .map(|(index, row_group)| describe(index, row_group, &columns, &parquet))
        .collect::<Result<_, _>>()
        .map_err(corrupt)?;
    check_bounds(file, &row_groups).map_err(corrupt)?;
    let (ranges, own) = match marks {
        Some(Marks {
            topic,
            ranges,
            checksums,
        }) => (Some(ranges), Some(Own { topic, checksums })),
        None => (None, None),
    };
    Ok(FileFooter {
        ranges,
        row_groups,
        metadata,
        columns,
        own,
    })
}

/// Whether a file that everlog wrote says what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marked {
    /// An archive's files do.
    IfOurs,
    /// Those of jobs do not.
    Perhaps,
}

/// What every Parquet file's footer must be, and what a file of everlog's says of itself.
fn decode(
    file: &PlannedFile,
    footer: &[u8],
    marked: Marked,
) -> Result<(ParquetMetaData, Option<Marks>), ScanError> {
    let corrupt = |what: String| ScanError::corrupt(&file.path, what);
    let sealed = footer::sealed(footer);
    if sealed == Some(false) {
        return Err(corrupt("the footer does not match its checksum".to_owned()));
    }
    guard::check(footer).map_err(|what| corrupt(what.to_owned()))?;
    let parquet = ParquetMetaDataReader::decode_metadata(footer)
        .map_err(|e| corrupt(format!("footer: {e}")))?;
    check_layout(file, footer.len(), &parquet).map_err(corrupt)?;
    let marks = match (marked, sealed) {
        (Marked::Perhaps, None) => None,
        _ => Marks::of(parquet.file_metadata()).map_err(corrupt)?,
    };
    if let Some(marks) = &marks {
        check_marks(sealed, marks, &parquet).map_err(corrupt)?;
    }
    Ok((parquet, marks))
}

/// Everything that the footer points at must lie before it, and the rows must be those of the manifest.
fn check_layout(
    file: &PlannedFile,
    footer_len: usize,
    parquet: &ParquetMetaData,
) -> Result<(), String> {
    let end = file.size_bytes - (footer_len + TAIL_LEN) as u64;
    let mut rows = 0_u64;
    for (index, row_group) in parquet.row_groups().iter().enumerate() {
        let bad = |what: &str| format!("footer: row group {index} {what}");
        rows = u64::try_from(row_group.num_rows())
            .ok()
            .and_then(|r| rows.checked_add(r))
            .ok_or_else(|| bad("has an impossible number of rows"))?;
        for column in row_group.columns() {
            if !lies_before(column, end) {
                return Err(bad("has a column chunk outside the file"));
            }
            if column.num_values() < row_group.num_rows() {
                return Err(bad("has a column with fewer values than rows"));
            }
        }
    }
    let total = parquet.file_metadata().num_rows();
    if u64::try_from(total) != Ok(rows) || rows != file.rows {
        return Err(format!(
            "its row groups have {rows} rows, its footer says {total}, its manifest {}",
            file.rows
        ));
    }
    Ok(())
}

/// A file was chosen, or passed over, by what its manifest says of it: where its footer says otherwise, rows that were asked
/// for would be missing without a trace.
fn check_bounds(file: &PlannedFile, row_groups: &[RowGroupInfo]) -> Result<(), String> {
    fn lie_in<T: PartialOrd + Copy>(inner: (T, T), outer: (T, T)) -> bool {
        outer.0 <= inner.0 && inner.1 <= outer.1
    }
    let Some(outer) = &file.bounds else {
        return Ok(());
    };
    for group in row_groups.iter().filter(|group| group.rows > 0) {
        let Some(inner) = &group.bounds else {
            continue;
        };
        let differs = if !lie_in(inner.generation, outer.generation) {
            "generations"
        } else if !lie_in(inner.partition, outer.partition) {
            "partitions"
        } else if !lie_in(inner.offset, outer.offset) {
            "offsets"
        } else if outer.timestamps_known
            && !inner
                .timestamp_us
                .is_none_or(|inner| outer.timestamp_us.is_some_and(|outer| lie_in(inner, outer)))
        {
            "timestamps"
        } else {
            continue;
        };
        return Err(format!(
            "footer: row group {} has {differs} that are outside of what the manifest says of the file (offsets {} to {} \
             of partitions {} to {}, not {} to {} of {} to {})",
            group.index,
            inner.offset.0,
            inner.offset.1,
            inner.partition.0,
            inner.partition.1,
            outer.offset.0,
            outer.offset.1,
            outer.partition.0,
            outer.partition.1,
        ));
    }
    Ok(())
}

fn lies_before(column: &ColumnChunkMetaData, end: u64) -> bool {
    let first = column
        .dictionary_page_offset()
        .unwrap_or(column.data_page_offset());
    let start = u64::try_from(first)
        .ok()
        .filter(|s| *s >= MAGIC.len() as u64);
    let len = u64::try_from(column.compressed_size()).ok();
    start
        .zip(len)
        .and_then(|(start, len)| start.checked_add(len))
        .is_some_and(|limit| limit <= end)
}

fn check_marks(
    sealed: Option<bool>,
    marks: &Marks,
    parquet: &ParquetMetaData,
) -> Result<(), String> {
    if sealed.is_none() {
        return Err("the footer has no checksum, though everlog wrote it".to_owned());
    }
    let chunks: usize = parquet
        .row_groups()
        .iter()
        .map(RowGroupMetaData::num_columns)
        .sum();
    if marks.checksums.len() != chunks {
        let found = marks.checksums.len();
        return Err(format!(
            "the footer has {found} checksums for {chunks} column chunks"
        ));
    }
    let covered: u64 = marks
        .ranges
        .iter()
        .map(|r| r.rows)
        .fold(0, u64::saturating_add);
    if u64::try_from(parquet.file_metadata().num_rows()) != Ok(covered) {
        return Err(format!(
            "its ranges have {covered} rows, not as many as the file"
        ));
    }
    Ok(())
}

fn describe(
    index: usize,
    row_group: &RowGroupMetaData,
    columns: &FileColumns,
    parquet: &ParquetMetaData,
) -> Result<RowGroupInfo, String> {
    let schema = parquet.file_metadata().schema_descr();
    let bounds = bounds::of_row_group(row_group, &|column| {
        columns
            .has(column)
            .then(|| columns.project(&[column], schema))
    });
    let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(RowGroupInfo {
        index,
        rows: bytes(row_group.num_rows()),
        compressed_bytes: row_group
            .columns()
            .iter()
            .map(|c| bytes(c.compressed_size()))
            .sum(),
        uncompressed_bytes: bytes(row_group.total_byte_size()),
        bounds: bounds.map_err(|what| format!("footer: row group {index}: {what}"))?,
    })
}
