//! How columns are encoded.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::{ColumnPath, SchemaDescriptor};

use crate::footer;
use crate::schema::{Column, ColumnMap};

/// Unpacked size at which a page ends.
const PAGE_BYTES: usize = 512 << 10;
/// A dictionary larger than this is given up.
const DICTIONARY_BYTES: usize = 1 << 20;

const CODEC: &str = "write.parquet.compression-codec";
const LEVEL: &str = "write.parquet.compression-level";

/// The compression that the table's properties ask for; zstd at level 1 where they do not.
pub(crate) fn compression(properties: &HashMap<String, String>) -> Result<Compression, String> {
    let codec = properties.get(CODEC).map_or("zstd", String::as_str);
    let level: Option<u32> = properties
        .get(LEVEL)
        .map(|text| {
            text.parse()
                .map_err(|e| format!("{LEVEL} is `{text}`: {e}"))
        })
        .transpose()?;
    let unusable = |e: parquet::errors::ParquetError| format!("{LEVEL}: {e}");
    Ok(match codec.to_ascii_lowercase().as_str() {
        "zstd" => {
            let level = i32::try_from(level.unwrap_or(1)).unwrap_or(i32::MAX);
            Compression::ZSTD(ZstdLevel::try_new(level).map_err(unusable)?)
        }
        "gzip" => {
            let level = level.map(GzipLevel::try_new).transpose();
            Compression::GZIP(level.map_err(unusable)?.unwrap_or_default())
        }
        "brotli" => {
            let level = level.map(BrotliLevel::try_new).transpose();
            Compression::BROTLI(level.map_err(unusable)?.unwrap_or_default())
        }
        "lz4" => Compression::LZ4_RAW,
        "snappy" => Compression::SNAPPY,
        "uncompressed" | "none" => Compression::UNCOMPRESSED,
        other => {
            return Err(format!(
                "{CODEC} is `{other}`: set zstd, lz4, snappy, gzip, brotli or uncompressed"
            ));
        }
    })
}

/// Per column: encoding where no dictionary is used, whether one is tried, statistics.
fn column_settings(column: Column) -> (Encoding, bool, EnabledStatistics) {
    use EnabledStatistics as Stats;
    let delta = Encoding::DELTA_BINARY_PACKED;
    let lengths = Encoding::DELTA_LENGTH_BYTE_ARRAY;
    match column {
        Column::Topic => (Encoding::PLAIN, true, Stats::None),
        Column::Partition => (delta, true, Stats::Page),
        Column::Offset | Column::Timestamp => (delta, false, Stats::Page),
        // Deltas of a constant are as small as a dictionary of one, and no value has to be looked up.
        Column::Generation | Column::ArchivedAt | Column::TimestampRaw => {
            (delta, false, Stats::Chunk)
        }
        Column::TimestampType | Column::LeaderEpoch => (delta, false, Stats::None),
        Column::Key | Column::Value | Column::Headers | Column::HeadersRaw => {
            (lengths, false, Stats::None)
        }
    }
}

/// How one file is written.
pub(super) fn properties(
    columns: &ColumnMap,
    schema: &SchemaDescriptor,
    compression: Compression,
    keys_dictionary: bool,
) -> Arc<WriterProperties> {
    let ascending = |column: Column| SortingColumn {
        column_idx: i32::try_from(column.index()).unwrap_or(0),
        descending: false,
        nulls_first: true,
    };
    let mut builder = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(footer::created_by())
        .set_compression(compression)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_sorting_columns(Some(vec![
            ascending(Column::Generation),
            ascending(Column::Partition),
            ascending(Column::Offset),
        ]));
    for (path, column, leaf) in paths(columns, schema) {
        let (encoding, dictionary, statistics) = column_settings(column);
        let dictionary = match column {
            Column::Key => keys_dictionary,
            // The names of headers repeat, their values need not.
            Column::Headers => leaf == 0,
            _ => dictionary,
        };
        builder = builder
            .set_column_encoding(path.clone(), encoding)
            .set_column_dictionary_enabled(path.clone(), dictionary)
            .set_column_statistics_enabled(path, statistics);
    }
    Arc::new(builder.build())
}

/// Every leaf of the file's schema, with its column and its number among the column's leaves.
fn paths(columns: &ColumnMap, schema: &SchemaDescriptor) -> Vec<(ColumnPath, Column, usize)> {
    let mut seen: BTreeMap<Column, usize> = BTreeMap::new();
    schema
        .columns()
        .iter()
        .filter_map(|leaf| {
            let path = leaf.path().clone();
            let root = path.parts().first()?;
            let column = Column::ALL.into_iter().find(|c| columns.name(*c) == root)?;
            let number = seen.entry(column).or_default();
            *number += 1;
            Some((path, column, *number - 1))
        })
        .collect()
}

/// Whether a dictionary makes the keys of a row group smaller.
pub(super) fn dictionary_pays<'a>(
    keys: impl Iterator<Item = Option<&'a [u8]>>,
    rows: usize,
) -> bool {
    let mut distinct = HashSet::new();
    let mut bytes = 0;
    for key in keys.flatten() {
        if distinct.insert(footer::checksum(key)) {
            bytes += key.len() + 4;
            if distinct.len() > rows / 4 || bytes > DICTIONARY_BYTES {
                return false;
            }
        }
    }
    !distinct.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dictionary_pays_for_keys_that_repeat() {
        let keys: Vec<Vec<u8>> = (0..1000_u32)
            .map(|i| (i % 100).to_le_bytes().to_vec())
            .collect();
        let unique: Vec<Vec<u8>> = (0..1000_u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let long: Vec<Vec<u8>> = (0..1000_u32)
            .map(|i| vec![(i % 16) as u8; 100_000])
            .collect();
        let pays =
            |keys: &[Vec<u8>]| dictionary_pays(keys.iter().map(|k| Some(k.as_slice())), keys.len());
        assert!(pays(&keys));
        assert!(!pays(&unique));
        assert!(!pays(&long));
        assert!(!dictionary_pays([None, None].into_iter(), 2));
    }

    #[test]
    fn the_tables_properties_choose_the_compression() {
        let of = |codec: &str, level: Option<&str>| {
            let mut properties = HashMap::from([(CODEC.to_owned(), codec.to_owned())]);
            properties.extend(level.map(|l| (LEVEL.to_owned(), l.to_owned())));
            compression(&properties)
        };
        let zstd = |level| Compression::ZSTD(ZstdLevel::try_new(level).unwrap());
        assert_eq!(compression(&HashMap::new()), Ok(zstd(1)));
        assert_eq!(of("ZSTD", Some("7")), Ok(zstd(7)));
        assert_eq!(of("lz4", None), Ok(Compression::LZ4_RAW));
        assert!(of("zstd", Some("99")).is_err());
        assert!(of("zstd", Some("fast")).is_err());
        assert!(of("lzma", None).is_err());
    }
}
