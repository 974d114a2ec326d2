//! What a data file of everlog's says of itself beyond Parquet, in the footer's key-value metadata.
//!
//! | key | value |
//! |---|---|
//! | `everlog.format-version` | `1` |
//! | `everlog.topic` | the topic of every row |
//! | `everlog.ranges` | JSON: `[[generation, partition, first offset covered, offset after the last covered, rows], …]`, in the file's order |
//! | `everlog.checksums` | base64 of one XXH3-64 (8 bytes, little endian) per column chunk, over its bytes in the file; row group after row group |
//! | `everlog.footer-checksum` | XXH3-64 as 16 hexadecimal digits, over the footer's Thrift bytes with these 16 digits as `0` |
//!
//! So every byte that a read depends on is covered by a checksum that is looked at before anything is decoded: Parquet's
//! own page checksums leave out the page headers and the footer. Files that other engines wrote have none of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use everlog_common::{Offset, OffsetRange, Partition};
use parquet::file::metadata::{FileMetaData, KeyValue};
use twox_hash::XxHash3_64;

use crate::files::{FileRange, generation};

const KEY_FORMAT: &str = "everlog.format-version";
const KEY_TOPIC: &str = "everlog.topic";
const KEY_RANGES: &str = "everlog.ranges";
const KEY_CHECKSUMS: &str = "everlog.checksums";
const KEY_SEAL: &str = "everlog.footer-checksum";

const FORMAT: &str = "1";
const CREATED_BY: &str = concat!("everlog version ", env!("CARGO_PKG_VERSION"));
/// With which `created_by` begins in every version.
const CREATED_BY_PREFIX: &str = "everlog version ";

/// Digits of the seal.
const SEAL_LEN: usize = 16;
/// What lies between a key and its value of 16 bytes in Thrift's compact form: next field, binary, length.
const BEFORE_SEAL: [u8; 2] = [0x18, 0x10];
/// Length of the footer (4 bytes), then the magic.
pub(crate) const TAIL_LEN: usize = 8;

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) topic: String,
    pub(crate) ranges: Vec<FileRange>,
    /// Per column chunk, row group after row group.
    pub(crate) checksums: Vec<u64>,
}

/// The writer's name, as the footer has it.
pub(crate) fn created_by() -> String {
    CREATED_BY.to_owned()
}

/// Checksum of some bytes of a file.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

impl Marks {
    /// As key-value metadata, not sealed yet.
    pub(crate) fn to_key_values(&self) -> Vec<KeyValue> {
        let checksums: Vec<u8> = self
            .checksums
            .iter()
            .flat_map(|c| c.to_le_bytes())
            .collect();
        let pair = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
        vec![
            pair(KEY_FORMAT, FORMAT.to_owned()),
            pair(KEY_TOPIC, self.topic.clone()),
            pair(KEY_RANGES, ranges_to_json(&self.ranges)),
            pair(KEY_CHECKSUMS, STANDARD.encode(checksums)),
            pair(KEY_SEAL, "0".repeat(SEAL_LEN)),
        ]
    }

    /// What a footer says; none where another engine wrote the file.
    pub(crate) fn of(file: &FileMetaData) -> Result<Option<Self>, String> {
        let value = |key: &str| {
            let pairs = file.key_value_metadata()?;
            pairs.iter().find(|kv| kv.key == key)?.value.as_deref()
        };
        let ours = file
            .created_by()
            .is_some_and(|by| by.starts_with(CREATED_BY_PREFIX));
        if !ours {
            return Ok(None);
        }
        let needed = |key: &str| value(key).ok_or_else(|| format!("the footer lacks {key}"));
        let format = needed(KEY_FORMAT)?;
        if format != FORMAT {
            return Err(format!(
                "{KEY_FORMAT} is {format}, this version of everlog knows {FORMAT}"
            ));
        }
        let ranges = needed(KEY_RANGES)?;
        let checksums = needed(KEY_CHECKSUMS)?;
        Ok(Some(Self {
            topic: needed(KEY_TOPIC)?.to_owned(),
            ranges: ranges_from_json(ranges)
                .ok_or_else(|| format!("{KEY_RANGES} is unreadable"))?,
            checksums: checksums_from_text(checksums)
                .ok_or_else(|| format!("{KEY_CHECKSUMS} is unreadable"))?,
        }))
    }
}

fn ranges_to_json(ranges: &[FileRange]) -> String {
    let rows: Vec<[i64; 5]> = ranges
        .iter()
        .map(|r| {
            [
                i64::from(r.generation.as_i32()),
                i64::from(r.partition.get()),
                r.range.start().get(),
                r.range.end().get(),
                i64::try_from(r.rows).unwrap_or(i64::MAX),
            ]
        })
        .collect();
    serde_json::to_string(&rows).expect("numbers are JSON")
}

fn ranges_from_json(text: &str) -> Option<Vec<FileRange>> {
    let rows: Vec<[i64; 5]> = serde_json::from_str(text).ok()?;
    rows.into_iter()
        .map(|[era, partition, start, end, rows]| {
            let range = OffsetRange::new(Offset::new(start).ok()?, Offset::new(end).ok()?).ok()?;
            Some(FileRange {
                generation: generation(era)?,
                partition: Partition::new(i32::try_from(partition).ok()?).ok()?,
                range,
                rows: u64::try_from(rows).ok()?,
            })
        })
        .collect()
}

fn checksums_from_text(text: &str) -> Option<Vec<u64>> {
    let bytes = STANDARD.decode(text).ok()?;
    let (chunks, rest) = bytes.as_chunks::<8>();
    rest.is_empty()
        .then(|| chunks.iter().map(|c| u64::from_le_bytes(*c)).collect())
}

/// Puts the checksum into the footer that `tail`, the end of a file, ends with.
pub(crate) fn seal(tail: &mut [u8]) -> Result<(), String> {
    let footer = footer_of(tail).ok_or("the end of the file is no footer")?;
    let footer = &mut tail[footer];
    let at = seal_position(footer).ok_or("the footer has no place for its checksum")?;
    let digits = format!("{:016x}", checksum(footer));
    footer[at..at + SEAL_LEN].copy_from_slice(digits.as_bytes());
    Ok(())
}

/// Whether a footer is what was sealed; none where it has no seal.
pub(crate) fn sealed(footer: &[u8]) -> Option<bool> {
    let at = seal_position(footer)?;
    let mut unsealed = footer.to_vec();
    unsealed[at..at + SEAL_LEN].fill(b'0');
    let digits = format!("{:016x}", checksum(&unsealed));
    Some(footer[at..at + SEAL_LEN] == *digits.as_bytes())
}

/// Where the footer is in the end of a file.
fn footer_of(tail: &[u8]) -> Option<std::ops::Range<usize>> {
    let end = tail.len().checked_sub(TAIL_LEN)?;
    let (len, _) = tail[end..].split_first_chunk::<4>()?;
    let start = end.checked_sub(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    Some(start..end)
}

/// Where the digits are: no value of another key can look like it, since after a value comes a zero byte.
fn seal_position(footer: &[u8]) -> Option<usize> {
    let mut pattern = KEY_SEAL.as_bytes().to_vec();
    pattern.extend_from_slice(&BEFORE_SEAL);
    let last = footer
        .windows(pattern.len())
        .rposition(|window| window == pattern)?;
    let at = last + pattern.len();
    (at + SEAL_LEN <= footer.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use everlog_common::Generation;

    use super::*;

    #[test]
    fn ranges_and_checksums_read_back_as_they_were_written() {
        let range = |generation, partition, start, end, rows| FileRange {
            generation: Generation(generation),
            partition: Partition::new(partition).unwrap(),
            range: OffsetRange::new(Offset::new(start).unwrap(), Offset::new(end).unwrap())
                .unwrap(),
            rows,
        };
        let ranges = vec![
            range(0, 3, 0, 10, 10),
            range(1, 0, i64::MAX - 1, i64::MAX, 1),
        ];
        let text = ranges_to_json(&ranges);
        assert_eq!(text.split(']').next(), Some("[[0,3,0,10,10"));
        assert_eq!(ranges_from_json(&text), Some(ranges));
        for bad in [
            "",
            "[[0,0,5,5,0]]",
            "[[0,-1,0,1,1]]",
            "[[0,0,0,1]]",
            "[[-1,0,0,1,1]]",
        ] {
            assert_eq!(ranges_from_json(bad), None, "{bad}");
        }
        assert_eq!(
            checksums_from_text(&STANDARD.encode([1, 0, 0, 0, 0, 0, 0, 0])),
            Some(vec![1])
        );
        assert_eq!(checksums_from_text(&STANDARD.encode([1, 2, 3])), None);
    }

    #[test]
    fn a_seal_is_broken_by_any_change() {
        let mut file = b"something ".to_vec();
        let start = file.len();
        file.extend_from_slice(KEY_SEAL.as_bytes());
        file.extend_from_slice(&BEFORE_SEAL);
        file.extend_from_slice("0".repeat(SEAL_LEN).as_bytes());
        file.extend_from_slice(b"\0rest");
        let len = u32::try_from(file.len() - start).unwrap();
        file.extend_from_slice(&len.to_le_bytes());
        file.extend_from_slice(b"PAR1");
        seal(&mut file).unwrap();
        let footer = file[start..file.len() - TAIL_LEN].to_vec();
        assert_eq!(sealed(&footer), Some(true));
        for i in 0..footer.len() {
            let mut changed = footer.clone();
            changed[i] ^= 1;
            assert_ne!(sealed(&changed), Some(true), "byte {i}");
        }
        assert!(seal(&mut [0; 3]).is_err());
    }
}
