//! What another library writes is read; what nobody writes is refused.

use std::io::Write as _;
use std::ops::ControlFlow;

use bytes::{BufMut as _, Bytes, BytesMut};
use everlog_common::TimestampType;
use everlog_wire::{
    AbortedTransaction, Batch, Batches, Codec, Record, Unpacker, Visibility, WireError,
};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, Record as Written, RecordBatchEncoder, RecordEncodeOptions,
    TimestampType as WrittenType,
};
use proptest::prelude::*;

/// A record, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    offset: i64,
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Row {
    fn of(record: &Record<'_>) -> Self {
        Self {
            offset: record.offset,
            timestamp: record.timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record
                .headers
                .clone()
                .map(|(k, v)| (k.to_vec(), v.map(<[u8]>::to_vec)))
                .collect(),
        }
    }
}

fn rows_of(bytes: &[u8], from: i64) -> Result<Vec<Row>, WireError> {
    let mut rows = Vec::new();
    let mut unpacker = Unpacker::new(1 << 30);
    for batch in Batches::of(bytes) {
        let all = unpacker.records(&batch?, from, |record| {
            rows.push(Row::of(&record));
            ControlFlow::Continue(())
        })?;
        assert!(all);
    }
    Ok(rows)
}

const CODECS: [(Compression, Codec); 5] = [
    (Compression::None, Codec::None),
    (Compression::Gzip, Codec::Gzip),
    (Compression::Snappy, Codec::Snappy),
    (Compression::Lz4, Codec::Lz4),
    (Compression::Zstd, Codec::Zstd),
];

fn pack(plain: &[u8], codec: Compression, framed: bool) -> Vec<u8> {
    match codec {
        Compression::None => plain.to_vec(),
        Compression::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(plain).unwrap();
            gzip.finish().unwrap()
        }
        // as librdkafka, and as Java
        Compression::Snappy if !framed => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
        Compression::Snappy => {
            let mut out = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
            for block in plain.chunks(700) {
                let packed = snap::raw::Encoder::new().compress_vec(block).unwrap();
                out.put_u32(u32::try_from(packed.len()).unwrap());
                out.extend_from_slice(&packed);
            }
            out
        }
        Compression::Lz4 => {
            let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
            lz4.write_all(plain).unwrap();
            lz4.finish().unwrap()
        }
        Compression::Zstd => zstd::stream::encode_all(plain, 1).unwrap(),
    }
}

/// Batches as kafka-protocol writes them. What it cannot write (headers with one name twice) is in `by_hand`.
fn written(rows: &[Row], codec: Compression, framed: bool, change: impl Fn(&mut Written)) -> Bytes {
    let records: Vec<_> = rows
        .iter()
        .map(|row| {
            let mut headers = IndexMap::new();
            for (name, value) in &row.headers {
                let name = String::from_utf8(name.clone()).unwrap();
                headers.insert(StrBytes::from_string(name), value.clone().map(Bytes::from));
            }
            let mut record = Written {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: 3,
                producer_id: -1,
                producer_epoch: -1,
                timestamp_type: WrittenType::Creation,
                offset: row.offset,
                sequence: i32::try_from(row.offset).unwrap(),
                timestamp: row.timestamp,
                key: row.key.clone().map(Bytes::from),
                value: row.value.clone().map(Bytes::from),
                headers,
            };
            change(&mut record);
            record
        })
        .collect();
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: codec,
    };
    RecordBatchEncoder::encode_with_custom_compression(
        &mut out,
        &records,
        &options,
        Some(|plain: &mut BytesMut, out: &mut BytesMut, codec| {
            out.put_slice(&pack(plain, codec, framed));
            Ok(())
        }),
    )
    .unwrap();
    out.freeze()
}

fn a_row(offset: i64) -> Row {
    Row {
        offset,
        timestamp: 1_700_000_000_000 + offset,
        key: Some(format!("key {offset}").into_bytes()),
        value: Some(b"the same value over and over again".to_vec()),
        headers: Vec::new(),
    }
}

/// Writes the CRC that the bytes of the first batch have.
fn with_its_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() > 21 {
        let length = i32::from_be_bytes(bytes[8..12].try_into().unwrap());
        let end = usize::try_from(length).unwrap_or(0).saturating_add(12);
        if let Some(covered) = bytes.get(21..end.min(bytes.len())) {
            let crc = crc32c::crc32c(covered);
            bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        }
    }
    bytes
}

fn bytes_or_null() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::of(prop::collection::vec(any::<u8>(), 0..60))
}

fn some_rows() -> impl Strategy<Value = Vec<Row>> {
    let row = (
        1_i64..4,
        0_i64..2_000_000_000_000,
        bytes_or_null(),
        bytes_or_null(),
        prop::collection::btree_map("[a-z]{0,5}", bytes_or_null(), 0..4),
    );
    prop::collection::vec(row, 1..60).prop_map(|rows| {
        let mut offset = 0;
        rows.into_iter()
            .map(|(step, timestamp, key, value, headers)| {
                offset += step;
                Row {
                    offset,
                    timestamp,
                    key,
                    value,
                    headers: headers
                        .into_iter()
                        .map(|(k, v)| (k.into_bytes(), v))
                        .collect(),
                }
            })
            .collect()
    })
}

proptest! {
    /// Any records by any codec come as they were written, from any offset on.
    #[test]
    fn what_kafka_protocol_writes_is_read(rows in some_rows(), codec in 0_usize..5, framed in any::<bool>(), from in 0_i64..200) {
        let (compression, expected) = CODECS[codec];
        let bytes = written(&rows, compression, framed, |_| ());
        let wanted: Vec<_> = rows.iter().filter(|row| row.offset >= from).cloned().collect();
        prop_assert_eq!(rows_of(&bytes, from).unwrap(), wanted);
        let first = Batches::of(&bytes).next().unwrap().unwrap();
        prop_assert_eq!((first.codec, first.leader_epoch), (expected, Some(3)));
    }

    /// A bit that flips anywhere is noticed, or was none of the records'.
    #[test]
    fn a_flipped_bit_is_never_another_record(at in any::<prop::sample::Index>(), bit in 0_u32..8, codec in 0_usize..5) {
        let rows: Vec<_> = (0..20).map(a_row).collect();
        let mut bytes = written(&rows, CODECS[codec].0, false, |_| ()).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        // outside of what the CRC covers: base offset, length, leader epoch, magic, the CRC itself
        let read = rows_of(&bytes, 0);
        if let Ok(read) = &read && !read.is_empty() {
            prop_assert!(at < 21, "read as {read:?}");
            let values = |rows: &[Row]| rows.iter().map(|row| row.value.clone()).collect::<Vec<_>>();
            prop_assert_eq!(values(read), values(&rows));
        }
    }
}

#[test]
fn a_batch_that_is_cut_off_ends_the_response() {
    let rows: Vec<_> = (0..10).map(a_row).collect();
    let mut bytes = written(&rows, Compression::None, false, |_| ()).to_vec();
    let whole = bytes.len();
    bytes.extend_from_slice(&written(&[a_row(10)], Compression::None, false, |_| ()));
    for end in [whole, whole + 1, whole + 11, whole + 40, bytes.len() - 1] {
        let mut batches = Batches::of(&bytes[..end]);
        assert_eq!(batches.by_ref().count(), 1);
        assert_eq!(batches.is_cut_off(), end != whole, "{end}");
    }
    assert_eq!(rows_of(&bytes, 0).unwrap().len(), 11);
    // what comes twice, or goes back, is no log
    bytes.extend_from_slice(&written(&[a_row(10)], Compression::None, false, |_| ()));
    let refused = rows_of(&bytes, 0).unwrap_err().to_string();
    assert!(
        refused.contains("before the end of the batch before it"),
        "{refused}"
    );
}

/// h18, h19: what only bytes by hand can say. Headers with one name twice and with bytes that are not UTF-8; the broker's time.
#[test]
fn headers_and_timestamps_that_libraries_lose_are_kept() {
    let mut record = vec![0, 0, 0, 1, 1]; // attributes, both deltas, no key, no value
    record.push(4 << 1);
    for (name, value) in [
        (&b"b"[..], Some(&b"1"[..])),
        (b"a", None),
        (b"b", Some(b"")),
        (b"\xff\xfe", Some(b"\0")),
    ] {
        record.push(u8::try_from(name.len()).unwrap() << 1);
        record.extend_from_slice(name);
        match value {
            None => record.push(1),
            Some(value) => {
                record.push(u8::try_from(value.len()).unwrap() << 1);
                record.extend_from_slice(value);
            }
        }
    }
    record.insert(0, u8::try_from(record.len()).unwrap() << 1);
    let by_hand = |attributes: i16, base: i64, max: i64| {
        let mut bytes = Vec::new();
        bytes.put_i64(77);
        bytes.put_i32(i32::try_from(49 + record.len()).unwrap());
        bytes.put_i32(-1);
        bytes.put_i8(2);
        bytes.put_u32(0);
        bytes.put_i16(attributes);
        bytes.put_i32(5);
        bytes.put_i64(base);
        bytes.put_i64(max);
        bytes.put_i64(-1);
        bytes.put_i16(-1);
        bytes.put_i32(-1);
        bytes.put_i32(1);
        bytes.extend_from_slice(&record);
        with_its_crc(bytes)
    };
    let bytes = by_hand(0, -1, -1);
    let batch = Batches::of(&bytes).next().unwrap().unwrap();
    assert_eq!(
        (batch.base_offset, batch.last_offset, batch.leader_epoch),
        (77, 82, None)
    );
    let mut seen = Vec::new();
    Unpacker::new(1 << 30)
        .records(&batch, 0, |r| {
            seen.push((Row::of(&r), r.timestamp_type));
            ControlFlow::Continue(())
        })
        .unwrap();
    let (row, kind) = &seen[0];
    assert_eq!((row.timestamp, *kind), (-1, TimestampType::None));
    let names: Vec<_> = row
        .headers
        .iter()
        .map(|(k, v)| (k.as_slice(), v.as_deref()))
        .collect();
    assert_eq!(
        names,
        [
            (&b"b"[..], Some(&b"1"[..])),
            (b"a", None),
            (b"b", Some(b"")),
            (b"\xff\xfe", Some(b"\0"))
        ]
    );
    // the append time is the batch's, whatever the records say
    let bytes = by_hand(1 << 3, 1_000, 9_000);
    let batch = Batches::of(&bytes).next().unwrap().unwrap();
    Unpacker::new(1 << 30)
        .records(&batch, 0, |r| {
            assert_eq!(
                (r.timestamp_ms, r.timestamp_type),
                (9_000, TimestampType::LogAppend)
            );
            ControlFlow::Continue(())
        })
        .unwrap();
}

/// h20: a record far larger than the window that batches are unpacked through, between small ones.
#[test]
fn h20_giants_pass_and_their_memory_is_given_back() {
    let mut rows: Vec<_> = (0..30).map(a_row).collect();
    rows[7].value = Some((0..5_000_000_u32).map(|n| (n % 251) as u8).collect());
    for (codec, _) in CODECS {
        let bytes = written(&rows, codec, true, |_| ());
        assert_eq!(rows_of(&bytes, 0).unwrap(), rows, "{codec:?}");
    }
}

/// A bomb costs as much memory as its largest record, and not as much as it holds.
#[test]
fn a_batch_is_not_unpacked_as_a_whole() {
    let rows: Vec<_> = (0..200)
        .map(|n| Row {
            value: Some(vec![0; 500_000]),
            ..a_row(n)
        })
        .collect();
    for (codec, _) in &CODECS[1..] {
        let bytes = written(&rows, *codec, true, |_| ());
        let mut unpacker = Unpacker::new(1 << 30);
        let (count, held) = everlog_hostile::counted(|| {
            let batch = Batches::of(&bytes).next().unwrap().unwrap();
            let mut count = 0;
            unpacker
                .records(&batch, 0, |_| {
                    count += 1;
                    ControlFlow::Continue(())
                })
                .unwrap();
            count
        });
        assert_eq!(count, 200);
        assert!(held < 16 << 20, "{codec:?} held {held}");
    }
}

/// h20: and one that is larger than anyone allows is refused before it is whole.
#[test]
fn h20_a_record_beyond_the_limit_is_refused() {
    let rows = [
        a_row(0),
        Row {
            value: Some(vec![0; 5_000_000]),
            ..a_row(1)
        },
    ];
    for (codec, _) in &CODECS[1..] {
        let bytes = written(&rows, *codec, true, |_| ());
        let batch = Batches::of(&bytes).next().unwrap().unwrap();
        let read = Unpacker::new(1 << 20).records(&batch, 0, |_| ControlFlow::Continue(()));
        let refused = read.unwrap_err().to_string();
        assert!(refused.contains("more than 1048576 bytes"), "{refused}");
    }
}

#[test]
fn what_breaks_off_stops_there() {
    let rows: Vec<_> = (0..2_000).map(a_row).collect();
    for (codec, _) in CODECS {
        let bytes = written(&rows, codec, false, |_| ());
        let batch: Batch<'_> = Batches::of(&bytes).next().unwrap().unwrap();
        let mut count = 0;
        let all = Unpacker::new(1 << 30).records(&batch, 0, |_| {
            count += 1;
            if count == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!((all, count), (Ok(false), 3));
    }
}

#[test]
fn errors_name_the_batch_and_what_is_wrong() {
    let bytes = written(&[a_row(4_711)], Compression::None, false, |_| ()).to_vec();
    let refused = |change: &dyn Fn(&mut Vec<u8>), sealed: bool| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        let bytes = if sealed { with_its_crc(bytes) } else { bytes };
        rows_of(&bytes, 0).unwrap_err().to_string()
    };
    let cases: [(&str, bool, &dyn Fn(&mut Vec<u8>)); 7] = [
        ("has the CRC", false, &|b| *b.last_mut().unwrap() ^= 1),
        ("message format v1", true, &|b| b[16] = 1),
        ("not known", true, &|b| b[16] = 7),
        ("codec 6 is not known", true, &|b| b[22] |= 6),
        ("more records than offsets", true, &|b| b[60] = 9),
        ("ends before its last record", true, &|b| {
            b[26] = 3;
            b[60] = 2;
        }),
        ("do not fit its length", true, &|b| b[61] -= 2),
    ];
    for (words, sealed, change) in cases {
        let text = refused(change, sealed);
        assert!(
            text.contains(words) && text.contains("4711"),
            "{words}: {text}"
        );
    }
}

/// Markers and what they abort: the rule of Kafka's own consumer.
#[test]
fn h04_what_was_aborted_is_not_seen() {
    let of = |offset: i64, producer: i64, transactional: bool, marker: Option<i16>| {
        let mut row = a_row(offset);
        if let Some(kind) = marker {
            row.key = Some([0_i16.to_be_bytes(), kind.to_be_bytes()].concat());
        }
        written(&[row], Compression::None, false, |record| {
            record.producer_id = producer;
            record.transactional = transactional;
            record.control = marker.is_some();
        })
    };
    let log = [
        of(0, -1, false, None),
        of(1, 7, true, None),
        of(2, 8, true, None),
        of(3, 7, true, Some(0)),
        of(4, 7, true, None),
        of(5, 8, true, Some(1)),
        of(6, 7, true, Some(1)),
        of(7, 7, false, None),
        of(8, 9, true, None),
        of(9, 9, true, Some(0)),
    ]
    .concat();
    let seen = |mut visibility: Visibility| -> Vec<i64> {
        let mut unpacker = Unpacker::new(1 << 30);
        Batches::of(&log)
            .map(Result::unwrap)
            .filter(|batch| visibility.sees(batch, &mut unpacker).unwrap())
            .map(|batch| batch.base_offset)
            .collect()
    };
    let aborted = |producer_id, first_offset| AbortedTransaction {
        producer_id,
        first_offset,
    };
    assert_eq!(seen(Visibility::of_everything()), [0, 1, 2, 4, 7, 8]);
    let committed = Visibility::of_committed(vec![aborted(9, 8), aborted(7, 1)]);
    assert_eq!(seen(committed), [0, 2, 4, 7]);
    assert_eq!(
        seen(Visibility::of_committed(Vec::new())),
        [0, 1, 2, 4, 7, 8]
    );
}

/// Whatever comes: an error or records, in little memory. The CRC is made right, or nothing would get beyond it.
#[test]
fn hostile_batches_end_in_records_or_errors() {
    let rows: Vec<_> = (0..8)
        .map(|n| Row {
            headers: vec![(b"h".to_vec(), Some(b"v".to_vec()))],
            ..a_row(n)
        })
        .collect();
    let corpus: Vec<Vec<u8>> = CODECS
        .iter()
        .map(|(codec, _)| written(&rows, *codec, true, |_| ()).to_vec())
        .collect();
    let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
    everlog_hostile::feed("record batches", &corpus, |bytes| {
        let bytes = with_its_crc(bytes.to_vec());
        let mut visibility = Visibility::of_committed(Vec::new());
        let mut unpacker = Unpacker::new(1 << 30);
        let mut next = 0;
        for batch in Batches::of(&bytes) {
            let Ok(batch) = batch else { return };
            if !visibility.sees(&batch, &mut unpacker).unwrap_or(false) {
                continue;
            }
            let read = unpacker.records(&batch, next, |record| {
                assert!(record.offset >= next && record.offset <= batch.last_offset);
                next = record.offset + 1;
                record.headers.for_each(drop);
                ControlFlow::Continue(())
            });
            if read.is_err() {
                return;
            }
        }
    });
}
