//! Two readings of the same offsets of one partition, held side by side. Pure.
//!
//! Equal runs are compared column by column; only where a column differs are its rows looked at one by one.

use std::cmp::Ordering;
use std::fmt::Write as _;

use everlog_common::record::{EventRef, TimestampType};
use everlog_common::{EventColumns, Offset, OffsetRange};

/// So many bytes of a field are shown.
const SHOWN_BYTES: usize = 64;

/// Where log and archive differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Records that the log has and the archive lacks.
    Missing {
        /// From the first to after the last of them.
        range: OffsetRange,
        /// How many.
        records: u64,
    },
    /// Records that the archive has and the log lacks.
    Extra {
        /// From the first to after the last of them.
        range: OffsetRange,
        /// How many.
        records: u64,
    },
    /// A record that is not the same on both sides.
    Changed {
        /// Which.
        offset: Offset,
        /// The fields that differ.
        fields: Vec<&'static str>,
        /// These fields as the log has them.
        log: String,
        /// These fields as the archive has them.
        archive: String,
    },
}

/// Whether the archive's rows are the log's pieces one after the other, in every field. Where they are not, [`compare`]
/// says how, and whether it matters.
pub fn identical(log: &[EventColumns], archive: &EventColumns) -> bool {
    let mut from = 0;
    for piece in log {
        if archive.len() - from < piece.len() {
            return false;
        }
        let ours = archive.slice(from, piece.len());
        if piece.offsets.values() != ours.offsets.values() || !equal(piece, &ours) {
            return false;
        }
        from += piece.len();
    }
    from == archive.len()
}

/// Compares what both sides have of the same offsets, in order; `found` is told every difference. Returns how many
/// records are on both sides, and the same.
pub fn compare(
    log: &EventColumns,
    archive: &EventColumns,
    found: &mut dyn FnMut(Difference),
) -> u64 {
    let (left, right) = (log.offsets.values(), archive.offsets.values());
    let (mut i, mut j) = (0, 0);
    let mut same = 0;
    while i < left.len() && j < right.len() {
        match left[i].cmp(&right[j]) {
            Ordering::Equal => {
                let both = left[i..].iter().zip(&right[j..]);
                let n = both.take_while(|(a, b)| a == b).count();
                same += compare_aligned(&log.slice(i, n), &archive.slice(j, n), found);
                i += n;
                j += n;
            }
            Ordering::Less => {
                let n = left[i..].partition_point(|offset| *offset < right[j]);
                one_sided(&left[i..i + n], |range, records| {
                    found(Difference::Missing { range, records });
                });
                i += n;
            }
            Ordering::Greater => {
                let n = right[j..].partition_point(|offset| *offset < left[i]);
                one_sided(&right[j..j + n], |range, records| {
                    found(Difference::Extra { range, records });
                });
                j += n;
            }
        }
    }
    one_sided(&left[i..], |range, records| {
        found(Difference::Missing { range, records });
    });
    one_sided(&right[j..], |range, records| {
        found(Difference::Extra { range, records });
    });
    same
}

fn one_sided(offsets: &[i64], mut tell: impl FnMut(OffsetRange, u64)) {
    let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else {
        return;
    };
    let first = Offset::new(*first).unwrap_or_default();
    let last = Offset::new(*last).unwrap_or_default();
    if let Ok(range) = OffsetRange::new(first, last.next()) {
        tell(range, offsets.len() as u64);
    }
}

/// Column by column, offsets left out.
fn equal(log: &EventColumns, archive: &EventColumns) -> bool {
    log.timestamps.values() == archive.timestamps.values()
        && log.timestamp_types.values() == archive.timestamp_types.values()
        && log.leader_epochs == archive.leader_epochs
        && log.keys == archive.keys
        && log.values == archive.values
        && log.headers == archive.headers
}

/// Rows with the same offsets.
fn compare_aligned(
    log: &EventColumns,
    archive: &EventColumns,
    found: &mut dyn FnMut(Difference),
) -> u64 {
    if equal(log, archive) {
        return log.len() as u64;
    }
    let mut same = 0;
    for i in 0..log.len() {
        match changed(&log.row(i), &archive.row(i)) {
            None => same += 1,
            Some(difference) => found(difference),
        }
    }
    same
}

/// How two records of one offset differ. A leader epoch that one side does not know is no difference, and neither is
/// what a record without a timestamp has in its place.
fn changed(log: &EventRef<'_>, archive: &EventRef<'_>) -> Option<Difference> {
    let time = |row: &EventRef<'_>| {
        let known = row.timestamp_type != TimestampType::None;
        known.then_some(row.timestamp_ms)
    };
    let epochs_differ =
        matches!((log.leader_epoch, archive.leader_epoch), (Some(a), Some(b)) if a != b);
    let checks = [
        (
            "timestamp_type",
            log.timestamp_type != archive.timestamp_type,
        ),
        ("timestamp", time(log) != time(archive)),
        ("key", log.key != archive.key),
        ("value", log.value != archive.value),
        ("headers", log.headers != archive.headers),
        ("leader_epoch", epochs_differ),
    ];
    let fields: Vec<&'static str> = checks
        .iter()
        .filter_map(|(name, differs)| differs.then_some(*name))
        .collect();
    if fields.is_empty() {
        return None;
    }
    Some(Difference::Changed {
        offset: log.offset,
        log: shown(log, &fields),
        archive: shown(archive, &fields),
        fields,
    })
}

fn shown(row: &EventRef<'_>, fields: &[&str]) -> String {
    let mut text = String::new();
    for field in fields {
        if !text.is_empty() {
            text.push_str(", ");
        }
        // writing to a string cannot fail
        let _ = match *field {
            "timestamp_type" => write!(text, "timestamp_type {:?}", row.timestamp_type),
            "timestamp" => write!(text, "timestamp {} ms", row.timestamp_ms),
            "key" => write!(text, "key {}", bytes(row.key)),
            "value" => write!(text, "value {}", bytes(row.value)),
            "leader_epoch" => write!(text, "leader_epoch {:?}", row.leader_epoch),
            _ => {
                let headers: Vec<String> = row
                    .headers
                    .iter()
                    .map(|(key, value)| format!("{}={}", bytes(Some(key)), bytes(*value)))
                    .collect();
                write!(text, "headers [{}]", headers.join(", "))
            }
        };
    }
    text
}

/// For people: text where it is printable ASCII, else hexadecimal; the length where it is cut.
fn bytes(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else {
        return "null".to_owned();
    };
    let part = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let rest = if part.len() < bytes.len() {
        format!("… ({} bytes)", bytes.len())
    } else {
        String::new()
    };
    if part.iter().all(|b| matches!(b, b' '..=b'~')) {
        format!("\"{}\"{rest}", String::from_utf8_lossy(part).escape_debug())
    } else {
        let mut text = "0x".to_owned();
        for byte in part {
            // writing to a string cannot fail
            let _ = write!(text, "{byte:02x}");
        }
        text + &rest
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::record::EventColumnsBuilder;
    use proptest::prelude::*;

    use super::*;

    fn event(offset: i64, value: &str) -> EventRef<'_> {
        EventRef {
            offset: Offset::new(offset).unwrap(),
            timestamp_ms: 1_000 + offset,
            timestamp_type: TimestampType::Create,
            key: None,
            value: Some(value.as_bytes()),
            headers: vec![(b"h".as_slice(), None)],
            leader_epoch: Some(0),
        }
    }

    fn columns(events: &[EventRef<'_>]) -> EventColumns {
        let mut builder = EventColumnsBuilder::new();
        for event in events {
            builder.push_event(event);
        }
        builder.finish()
    }

    fn differences(log: &EventColumns, archive: &EventColumns) -> (u64, Vec<Difference>) {
        let mut all = Vec::new();
        let same = compare(log, archive, &mut |d| all.push(d));
        (same, all)
    }

    #[test]
    fn every_field_is_compared() {
        let one = event(7, "a");
        let changes: Vec<(&str, EventRef<'_>)> = vec![
            (
                "timestamp",
                EventRef {
                    timestamp_ms: 0,
                    ..one.clone()
                },
            ),
            (
                "timestamp_type",
                EventRef {
                    timestamp_type: TimestampType::LogAppend,
                    ..one.clone()
                },
            ),
            (
                "key",
                EventRef {
                    key: Some(b""),
                    ..one.clone()
                },
            ),
            (
                "value",
                EventRef {
                    value: None,
                    ..one.clone()
                },
            ),
            (
                "value",
                EventRef {
                    value: Some(b"b"),
                    ..one.clone()
                },
            ),
            (
                "headers",
                EventRef {
                    headers: vec![],
                    ..one.clone()
                },
            ),
            (
                "headers",
                EventRef {
                    headers: vec![(b"h", Some(b""))],
                    ..one.clone()
                },
            ),
            (
                "leader_epoch",
                EventRef {
                    leader_epoch: Some(1),
                    ..one.clone()
                },
            ),
        ];
        for (field, other) in changes {
            let (same, found) =
                differences(&columns(std::slice::from_ref(&one)), &columns(&[other]));
            assert_eq!(same, 0, "{field}");
            let [
                Difference::Changed {
                    fields,
                    log,
                    archive,
                    ..
                },
            ] = &found[..]
            else {
                panic!("{field}: {found:?}");
            };
            assert_eq!(fields[..], [field]);
            assert_ne!(log, archive);
        }
    }

    #[test]
    fn what_one_side_cannot_know_is_no_difference() {
        let one = event(7, "a");
        let unknown = EventRef {
            leader_epoch: None,
            ..one.clone()
        };
        assert_eq!(
            differences(&columns(&[one]), &columns(&[unknown])),
            (1, vec![])
        );
    }

    proptest! {
        /// Against the obvious: two maps.
        #[test]
        fn differences_are_those_of_two_maps(
            log in proptest::collection::btree_map(0_i64..40, 0_u8..3, 0..30),
            archive in proptest::collection::btree_map(0_i64..40, 0_u8..3, 0..30),
            alike in proptest::bool::ANY,
            cuts in (0_usize..30, 0_usize..30),
        ) {
            let archive = if alike { log.clone() } else { archive };
            let text = ["a", "b", "c"];
            let rows = |side: &std::collections::BTreeMap<i64, u8>| {
                let events: Vec<_> = side.iter().map(|(o, v)| event(*o, text[usize::from(*v)])).collect();
                columns(&events)
            };
            let (same, found) = differences(&rows(&log), &rows(&archive));
            let (a, b) = (cuts.0.min(cuts.1).min(log.len()), cuts.0.max(cuts.1).min(log.len()));
            let whole = rows(&log);
            let pieces = [whole.slice(0, a), whole.slice(a, b - a), whole.slice(b, log.len() - b)];
            prop_assert_eq!(identical(&pieces, &rows(&archive)), log == archive);
            let mut missing = 0;
            let mut extra = 0;
            let mut changed = Vec::new();
            for difference in found {
                match difference {
                    Difference::Missing { range, records } => {
                        let of = log.range(range.start().get()..range.end().get());
                        prop_assert!(of.clone().all(|(o, _)| !archive.contains_key(o)));
                        prop_assert_eq!(of.count() as u64, records);
                        missing += records;
                    }
                    Difference::Extra { range, records } => {
                        let of = archive.range(range.start().get()..range.end().get());
                        prop_assert!(of.clone().all(|(o, _)| !log.contains_key(o)));
                        prop_assert_eq!(of.count() as u64, records);
                        extra += records;
                    }
                    Difference::Changed { offset, .. } => changed.push(offset.get()),
                }
            }
            let only = |a: &std::collections::BTreeMap<i64, u8>, b: &std::collections::BTreeMap<i64, u8>| {
                a.keys().filter(|o| !b.contains_key(o)).count() as u64
            };
            prop_assert_eq!(missing, only(&log, &archive));
            prop_assert_eq!(extra, only(&archive, &log));
            let expected: Vec<i64> = log.iter().filter(|(o, v)| archive.get(o).is_some_and(|w| w != *v)).map(|(o, _)| *o).collect();
            prop_assert_eq!(&changed, &expected);
            let both = log.keys().filter(|o| archive.contains_key(o)).count();
            prop_assert_eq!(same, (both - expected.len()) as u64);
        }
    }
}
