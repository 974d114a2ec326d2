//! Page checksums. The parquet crate verifies them when it reads, and writes none: so they are put into the page headers
//! of each finished column chunk. To be dropped once the crate can write them.

use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;

/// A page header begins with type, unpacked and packed size: fields 1, 2 and 3, each a 32-bit integer.
const I32_NEXT_FIELD: u8 = 0x15;
/// The longest such beginning: three field headers, three integers of at most five bytes.
const BEGINNING_MAX: usize = 18;

/// A column chunk whose pages carry checksums, and how it is to be described.
#[derive(Debug)]
pub(crate) struct CheckedChunk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) close: ColumnCloseResult,
}

/// Adds a checksum to every page of a chunk. `close` must describe `chunk` with positions counted from its first byte.
pub(super) fn with_checksums(
    chunk: &[u8],
    mut close: ColumnCloseResult,
) -> Result<CheckedChunk, ParquetError> {
    let unusable = |what: &str| ParquetError::General(format!("column chunk {what}"));
    let locations = close
        .offset_index
        .as_mut()
        .map(|index| &mut index.page_locations)
        .filter(|locations| !locations.is_empty())
        .ok_or_else(|| unusable("has no offset index"))?;
    let mut bytes = Vec::with_capacity(chunk.len() + 8 * (locations.len() + 1));
    let page = |start: i64, len: i64| {
        let start = usize::try_from(start).ok()?;
        chunk.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    };
    let mut at = 0;
    let has_dictionary = close.metadata.dictionary_page_offset().is_some();
    if has_dictionary {
        at = locations[0].offset;
        let dictionary = page(0, at).ok_or_else(|| unusable("is short"))?;
        append_page(&mut bytes, dictionary)?;
    }
    let first_data_page = position(bytes.len())?;
    for location in locations.iter_mut() {
        let len = i64::from(location.compressed_page_size);
        let found = page(location.offset, len).filter(|_| location.offset == at);
        let found = found.ok_or_else(|| unusable("has pages with holes between"))?;
        at += len;
        location.offset = position(bytes.len())?;
        append_page(&mut bytes, found)?;
        let len = position(bytes.len())? - location.offset;
        location.compressed_page_size =
            i32::try_from(len).map_err(|_| unusable("has a page that is too large"))?;
    }
    if usize::try_from(at) != Ok(chunk.len()) {
        return Err(unusable("has bytes after its last page"));
    }
    let added = position(bytes.len() - chunk.len())?;
    close.metadata = described(close.metadata, has_dictionary, first_data_page, added)?;
    close.bytes_written += added.unsigned_abs();
    Ok(CheckedChunk { bytes, close })
}

fn described(
    metadata: ColumnChunkMetaData,
    has_dictionary: bool,
    first_data_page: i64,
    added: i64,
) -> Result<ColumnChunkMetaData, ParquetError> {
    let (packed, unpacked) = (metadata.compressed_size(), metadata.uncompressed_size());
    metadata
        .into_builder()
        .set_total_compressed_size(packed + added)
        .set_total_uncompressed_size(unpacked + added)
        .set_dictionary_page_offset(has_dictionary.then_some(0))
        .set_data_page_offset(first_data_page)
        .build()
}

/// Appends header and body of a page, with a checksum of the body in the header: field 4, between the three that every
/// header begins with and the one that follows, whose distance to its predecessor shrinks by one.
fn append_page(out: &mut Vec<u8>, page: &[u8]) -> Result<(), ParquetError> {
    let unusable = || ParquetError::General("page header is not as expected".to_owned());
    let (beginning, packed_size) = beginning_of(page).ok_or_else(unusable)?;
    let header_len = page
        .len()
        .checked_sub(packed_size)
        .filter(|len| *len > beginning)
        .ok_or_else(unusable)?;
    let (header, body) = page.split_at(header_len);
    let next = header[beginning];
    let distance = next >> 4;
    if distance < 2 {
        return Err(unusable());
    }
    out.extend_from_slice(&header[..beginning]);
    out.push(I32_NEXT_FIELD);
    put_varint(out, zigzag(crc32fast::hash(body).cast_signed()));
    out.push(((distance - 1) << 4) | (next & 0x0f));
    out.extend_from_slice(&header[beginning + 1..]);
    out.extend_from_slice(body);
    Ok(())
}

/// Where the first three fields of a page header end, and the third, the packed size.
fn beginning_of(page: &[u8]) -> Option<(usize, usize)> {
    let page = &page[..page.len().min(BEGINNING_MAX)];
    let (mut at, mut value) = (0, 0);
    for _ in 0..3 {
        if *page.get(at)? != I32_NEXT_FIELD {
            return None;
        }
        at += 1;
        value = 0_u64;
        for shift in (0..35).step_by(7) {
            let byte = *page.get(at)?;
            at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
    }
    let positive = value & 1 == 0;
    positive.then_some((at, usize::try_from(value >> 1).ok()?))
}

fn zigzag(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)).cast_unsigned()
}

fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn position(bytes: usize) -> Result<i64, ParquetError> {
    i64::try_from(bytes).map_err(|e| ParquetError::External(Box::new(e)))
}
