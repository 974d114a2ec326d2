//! An epoch's rows as data files.
//!
//! Invariants
//! - Rows keep their order within a table partition; files of one partition follow each other.
//! - Bounds and null counts are exact where they are given; strings are cut to [`STRING_BOUND`] characters, the upper one
//!   upwards, as Iceberg does by default.
//! - Every page has a checksum. A file is complete or invisible. No stored object is ever removed.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, new_null_array};
use arrow_cast::cast::{CastOptions, cast_with_options};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use everlog_common::{Millis, compute};
use iceberg::arrow::{RecordBatchPartitionSplitter, schema_to_arrow_schema};
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, PrimitiveLiteral,
    PrimitiveType, Schema, Struct, TableMetadata, Type,
};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::statistics::Statistics;
use parquet::file::writer::SerializedFileWriter;

use super::{JobError, JobTable};
use crate::archive::ArchiveError;
use crate::catalog::LoadedTable;
use crate::files::data_folder;
use crate::footer;
use crate::writer::{checked_chunks, compression};

/// One file shall have so many bytes at most, about.
const FILE_BYTES_TARGET: u64 = 64 << 20;
/// Rows of one row group, at most.
const ROW_GROUP_ROWS: usize = 128 << 10;
/// Unpacked bytes of one row group, about.
const ROW_GROUP_BYTES: usize = 16 << 20;
/// Rows that are encoded at once.
const PIECE_ROWS: usize = 8 << 10;
/// Characters of a string's bound.
const STRING_BOUND: usize = 16;

/// Rows to be written, as the engine put them out.
#[derive(Debug, Clone)]
pub struct JobRows<'a> {
    /// The table, as it was read last.
    pub table: &'a LoadedTable,
    /// The rows, in the order in which they are to be read.
    pub rows: &'a RecordBatch,
}

/// A data file that is stored for good, and not yet part of the table.
#[derive(Debug, Clone)]
pub struct JobFile {
    /// As the manifest is going to have it.
    pub data_file: DataFile,
    /// The partition spec that it was written under.
    pub partition_spec_id: i32,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// When it was begun.
    pub written_at: Millis,
}

/// A file, encoded.
struct Encoded {
    bytes: Bytes,
    rows: u64,
    metadata: ParquetMetaData,
}

impl JobTable {
    /// Encodes rows and stores them as files, none where there are no rows. Every file is complete and durable when this
    /// returns.
    pub async fn write(&self, request: JobRows<'_>) -> Result<Vec<JobFile>, JobError> {
        let metadata = &request.table.metadata;
        let deps = self.handle().deps();
        let written_at = deps.clock.now();
        if request.rows.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let broken = |what: String| self.invalid(format!("rows cannot be written: {what}"));
        let schema = Arc::clone(metadata.current_schema());
        let arrow = Arc::new(schema_to_arrow_schema(&schema).map_err(|e| broken(e.to_string()))?);
        let compression = compression(metadata.properties()).map_err(broken)?;
        let rows = as_stored(request.rows, &arrow).map_err(broken)?;
        let spec_id = metadata.default_partition_spec_id();
        let mut files = Vec::new();
        for (folder, values, rows) in by_partition(metadata, rows).map_err(broken)? {
            let mut from = 0;
            while from < rows.num_rows() {
                let (job, arrow) = (rows.clone(), Arc::clone(&arrow));
                let encoded =
                    compute::spawn(move || encode_file(&job, from, &arrow, compression)).await;
                let encoded = match encoded {
                    Ok(Ok(encoded)) => encoded,
                    Ok(Err(error)) => return Err(broken(error.to_string())),
                    Err(error) if error.is_panic() => {
                        return Err(broken("the encoder panicked".to_owned()));
                    }
                    Err(_) => return Err(self.stopped()),
                };
                from += usize::try_from(encoded.rows).unwrap_or(usize::MAX);
                let path = match &folder {
                    Some(folder) => {
                        format!(
                            "{}/{folder}/{}.parquet",
                            data_folder(metadata),
                            deps.ids.uuid()
                        )
                    }
                    None => format!("{}/{}.parquet", data_folder(metadata), deps.ids.uuid()),
                };
                let bytes = encoded.bytes.len() as u64;
                self.put(&path, encoded.bytes.clone()).await?;
                fail::fail_point!("job::after_upload");
                let data_file =
                    describe(metadata, &schema, &path, &values, &encoded).map_err(broken)?;
                files.push(JobFile {
                    data_file,
                    partition_spec_id: spec_id,
                    rows: encoded.rows,
                    bytes,
                    written_at,
                });
            }
        }
        Ok(files)
    }

    async fn put(&self, path: &str, bytes: Bytes) -> Result<(), JobError> {
        let failed = |source| {
            JobError::Table(ArchiveError::Storage {
                table: self.handle().table_name(),
                doing: "cannot store a data file",
                source,
            })
        };
        let mut upload = self.storage().writer(path).map_err(failed)?;
        if let Err(source) = upload.write(bytes).await {
            if let Err(error) = upload.abort().await {
                tracing::warn!(path, %error, "unfinished data file was not given up");
            }
            return Err(failed(source));
        }
        upload.finish().await.map(drop).map_err(failed)
    }

    fn stopped(&self) -> JobError {
        JobError::Refused {
            table: self.handle().table_name(),
            what: "writing was stopped".to_owned(),
        }
    }
}

/// Rows with exactly the table's columns: cast, and null where the version has none.
fn as_stored(rows: &RecordBatch, arrow: &SchemaRef) -> Result<RecordBatch, String> {
    let own = rows.schema();
    if let Some(field) = own
        .fields()
        .iter()
        .find(|field| arrow.field_with_name(field.name()).is_err())
    {
        return Err(format!("the table has no column {}", field.name()));
    }
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let columns: Result<Vec<ArrayRef>, String> = arrow
        .fields()
        .iter()
        .map(|field| {
            let Some(column) = rows.column_by_name(field.name()) else {
                return Ok(new_null_array(field.data_type(), rows.num_rows()));
            };
            cast_with_options(column, field.data_type(), &strict)
                .map_err(|e| format!("column {}: {e}", field.name()))
        })
        .collect();
    RecordBatch::try_new(Arc::clone(arrow), columns?).map_err(|e| e.to_string())
}

type Part = (Option<String>, Struct, RecordBatch);

/// Rows by table partition, in the order of the partitions' folders.
fn by_partition(metadata: &TableMetadata, rows: RecordBatch) -> Result<Vec<Part>, String> {
    let spec = metadata.default_partition_spec();
    if spec.is_unpartitioned() {
        return Ok(vec![(None, Struct::empty(), rows)]);
    }
    let splitter = RecordBatchPartitionSplitter::try_new_with_computed_values(
        Arc::clone(metadata.current_schema()),
        Arc::clone(spec),
    )
    .map_err(|e| e.to_string())?;
    let split = splitter.split(&rows).map_err(|e| e.to_string())?;
    let mut parts: Vec<Part> = split
        .into_iter()
        .map(|(key, rows)| (Some(key.to_path()), key.data().clone(), rows))
        .collect();
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(parts)
}

/// Encodes rows from `from` on, as many as one file takes.
fn encode_file(
    rows: &RecordBatch,
    from: usize,
    arrow: &SchemaRef,
    compression: Compression,
) -> Result<Encoded, ParquetError> {
    let descriptor = ArrowSchemaConverter::new()
        .schema_root("table")
        .convert(arrow)?;
    let properties = Arc::new(
        WriterProperties::builder()
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_created_by(footer::created_by())
            .set_compression(compression)
            .set_statistics_enabled(EnabledStatistics::Page)
            .set_statistics_truncate_length(None)
            .set_column_index_truncate_length(Some(64))
            .build(),
    );
    let schema = descriptor.root_schema_ptr();
    let mut writer =
        SerializedFileWriter::new(Vec::new(), Arc::clone(&schema), Arc::clone(&properties))?;
    let factory = ArrowRowGroupWriterFactory::new(&writer, Arc::clone(arrow));
    let per_row = rows.get_array_memory_size() / rows.num_rows().max(1);
    let group_rows = (ROW_GROUP_BYTES / per_row.max(1)).clamp(1, ROW_GROUP_ROWS);
    let mut at = from;
    while at < rows.num_rows() && (writer.bytes_written() as u64) < FILE_BYTES_TARGET {
        let end = (at + group_rows).min(rows.num_rows());
        let mut columns = factory.create_column_writers(0)?;
        while at < end {
            let piece = rows.slice(at, PIECE_ROWS.min(end - at));
            let mut columns = columns.iter_mut();
            for (field, array) in arrow.fields().iter().zip(piece.columns()) {
                for (leaf, column) in compute_leaves(field, array)?.iter().zip(&mut columns) {
                    column.write(leaf)?;
                }
            }
            at += piece.num_rows();
        }
        let chunks = checked_chunks(columns, &schema, &properties)?;
        let mut group = writer.next_row_group()?;
        for chunk in chunks {
            group.append_column(&Bytes::from(chunk.bytes), chunk.close)?;
        }
        group.close()?;
    }
    let metadata = writer.finish()?;
    let bytes = std::mem::take(writer.inner_mut());
    Ok(Encoded {
        bytes: bytes.into(),
        rows: (at - from) as u64,
        metadata,
    })
}

/// The file as the manifest is going to have it.
fn describe(
    metadata: &TableMetadata,
    schema: &Schema,
    path: &str,
    partition: &Struct,
    file: &Encoded,
) -> Result<DataFile, String> {
    let mut sizes: HashMap<i32, u64> = HashMap::new();
    for group in file.metadata.row_groups() {
        for column in group.columns() {
            let info = column.column_descr().self_type().get_basic_info().clone();
            if info.has_id() {
                let size = u64::try_from(column.compressed_size()).unwrap_or(0);
                *sizes.entry(info.id()).or_default() += size;
            }
        }
    }
    let splits: Vec<i64> = file
        .metadata
        .row_groups()
        .iter()
        .filter_map(|group| group.columns().first())
        .filter_map(|column| i64::try_from(column.byte_range().0).ok())
        .collect();
    let (mut values, mut nulls) = (HashMap::new(), HashMap::new());
    let (mut lower, mut upper) = (HashMap::new(), HashMap::new());
    for field in schema.as_struct().fields() {
        let Type::Primitive(primitive) = &*field.field_type else {
            continue;
        };
        let Some(found) = bounds(file, field.id, primitive) else {
            continue;
        };
        values.insert(field.id, file.rows);
        nulls.insert(field.id, found.nulls);
        lower.extend(found.lower.map(|bound| (field.id, bound)));
        upper.extend(found.upper.map(|bound| (field.id, bound)));
    }
    DataFileBuilder::default()
        .content(DataContentType::Data)
        .file_path(path.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(partition.clone())
        .partition_spec_id(metadata.default_partition_spec_id())
        .record_count(file.rows)
        .file_size_in_bytes(file.bytes.len() as u64)
        .column_sizes(sizes)
        .value_counts(values)
        .null_value_counts(nulls)
        .lower_bounds(lower)
        .upper_bounds(upper)
        .split_offsets(Some(splits))
        .build()
        .map_err(|e| e.to_string())
}

struct Found {
    nulls: u64,
    lower: Option<Datum>,
    upper: Option<Datum>,
}

/// What a file's statistics tell of a column; none where they tell nothing.
fn bounds(file: &Encoded, id: i32, of: &PrimitiveType) -> Option<Found> {
    let mut found = Found {
        nulls: 0,
        lower: None,
        upper: None,
    };
    // one row group without bounds, though it has values, and there are none
    let mut known = true;
    for group in file.metadata.row_groups() {
        let column = group.columns().iter().find(|column| {
            let info = column.column_descr().self_type().get_basic_info();
            info.has_id() && info.id() == id
        })?;
        let statistics = column.statistics()?;
        let nulls = statistics.null_count_opt()?;
        found.nulls += nulls;
        if i64::try_from(nulls) == Ok(group.num_rows()) {
            continue;
        }
        match (value(statistics, of, true), value(statistics, of, false)) {
            (Some(low), Some(high)) => {
                found.lower = Some(match found.lower.take() {
                    Some(before) if before <= low => before,
                    _ => low,
                });
                found.upper = Some(match found.upper.take() {
                    Some(before) if before >= high => before,
                    _ => high,
                });
            }
            _ => known = false,
        }
    }
    if !known {
        (found.lower, found.upper) = (None, None);
    }
    found.lower = found.lower.and_then(|bound| cut(bound, true));
    found.upper = found.upper.and_then(|bound| cut(bound, false));
    Some(found)
}

/// The smallest or largest value of a row group, exact.
fn value(statistics: &Statistics, of: &PrimitiveType, least: bool) -> Option<Datum> {
    fn one<'a, T>(least: bool, min: Option<&'a T>, max: Option<&'a T>) -> Option<&'a T> {
        if least { min } else { max }
    }
    Some(match (statistics, of) {
        (Statistics::Boolean(s), PrimitiveType::Boolean) => {
            Datum::bool(*one(least, s.min_opt(), s.max_opt())?)
        }
        (Statistics::Int32(s), PrimitiveType::Int) => {
            Datum::int(*one(least, s.min_opt(), s.max_opt())?)
        }
        (Statistics::Int32(s), PrimitiveType::Date) => {
            Datum::date(*one(least, s.min_opt(), s.max_opt())?)
        }
        (Statistics::Int64(s), PrimitiveType::Long) => {
            Datum::long(*one(least, s.min_opt(), s.max_opt())?)
        }
        (Statistics::Int64(s), PrimitiveType::Timestamp) => {
            Datum::timestamp_micros(*one(least, s.min_opt(), s.max_opt())?)
        }
        (Statistics::Int64(s), PrimitiveType::Timestamptz) => {
            Datum::timestamptz_micros(*one(least, s.min_opt(), s.max_opt())?)
        }
        (Statistics::Int64(s), PrimitiveType::Time) => {
            Datum::time_micros(*one(least, s.min_opt(), s.max_opt())?).ok()?
        }
        (Statistics::Int32(s), PrimitiveType::Decimal { .. }) => {
            decimal(of, i128::from(*one(least, s.min_opt(), s.max_opt())?))?
        }
        (Statistics::Int64(s), PrimitiveType::Decimal { .. }) => {
            decimal(of, i128::from(*one(least, s.min_opt(), s.max_opt())?))?
        }
        (Statistics::FixedLenByteArray(s), PrimitiveType::Decimal { .. }) => decimal(
            of,
            big_endian(one(least, s.min_opt(), s.max_opt())?.data())?,
        )?,
        // Parquet's statistics leave NaN out, and so do Iceberg's bounds
        (Statistics::Float(s), PrimitiveType::Float) => {
            Datum::float(*one(least, s.min_opt(), s.max_opt())?)
        }
        (Statistics::Double(s), PrimitiveType::Double) => {
            Datum::double(*one(least, s.min_opt(), s.max_opt())?)
        }
        (Statistics::ByteArray(s), PrimitiveType::String) => {
            let bytes = one(least, s.min_opt(), s.max_opt())?;
            Datum::string(bytes.as_utf8().ok()?)
        }
        _ => return None,
    })
}

fn decimal(of: &PrimitiveType, unscaled: i128) -> Option<Datum> {
    Datum::try_from_bytes(&unscaled.to_be_bytes(), of.clone()).ok()
}

fn big_endian(bytes: &[u8]) -> Option<i128> {
    let first = *bytes.first()?;
    if bytes.len() > 16 {
        return None;
    }
    let fill = if first & 0x80 == 0 { 0 } else { 0xff };
    let mut whole = [fill; 16];
    whole[16 - bytes.len()..].copy_from_slice(bytes);
    Some(i128::from_be_bytes(whole))
}

/// A string's bound, cut: downwards where it is the lower one, upwards where it is the upper one.
fn cut(bound: Datum, lower: bool) -> Option<Datum> {
    let PrimitiveLiteral::String(text) = bound.literal() else {
        return Some(bound);
    };
    if text.chars().count() <= STRING_BOUND {
        return Some(bound);
    }
    let mut kept: Vec<char> = text.chars().take(STRING_BOUND).collect();
    if lower {
        return Some(Datum::string(kept.into_iter().collect::<String>()));
    }
    while let Some(last) = kept.pop() {
        let next = match u32::from(last) {
            0xd7ff => char::from_u32(0xe000),
            code => char::from_u32(code + 1),
        };
        if let Some(next) = next {
            kept.push(next);
            return Some(Datum::string(kept.into_iter().collect::<String>()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_string_has_bounds_that_hold_it() {
        let text = "a string that is longer than a bound".to_owned();
        let whole = Datum::string(text.clone());
        let low = cut(whole.clone(), true).expect("a bound");
        let high = cut(whole.clone(), false).expect("a bound");
        assert!(low <= whole && whole <= high);
        assert_eq!(high, Datum::string("a string that it"));
        let top: String = std::iter::repeat_n(char::MAX, 20).collect();
        assert_eq!(cut(Datum::string(top), false), None);
        let short = Datum::string("short");
        assert_eq!(cut(short.clone(), false), Some(short));
    }

    #[test]
    fn a_decimal_of_few_bytes_keeps_its_sign() {
        assert_eq!(big_endian(&[0xff, 0xfe]), Some(-2));
        assert_eq!(big_endian(&[0x01, 0x00]), Some(256));
        assert_eq!(big_endian(&[]), None);
    }
}
