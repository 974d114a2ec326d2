//! Records against records.

use std::collections::BTreeMap;

/// One record, owned, with everything that has to survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Kafka partition.
    pub partition: i32,
    /// Kafka offset.
    pub offset: i64,
    /// Milliseconds; none where the record has no timestamp.
    pub timestamp: Option<i64>,
    /// `create`, `logappend` or `none`.
    pub timestamp_type: &'static str,
    /// Null and empty differ.
    pub key: Option<Vec<u8>>,
    /// Null and empty differ.
    pub value: Option<Vec<u8>>,
    /// In order, duplicates kept.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// Records per partition, in the order in which they came.
pub type Log = BTreeMap<i32, Vec<Record>>;

/// Number of records in all partitions.
pub fn count(log: &Log) -> usize {
    log.values().map(Vec::len).sum()
}

/// Panics with the first difference per partition: nothing missing, doubled, reordered or altered.
#[track_caller]
pub fn assert_same(expected: &Log, found: &Log, what: &str) {
    let mut differences = Vec::new();
    for partition in expected
        .keys()
        .chain(found.keys())
        .collect::<std::collections::BTreeSet<_>>()
    {
        let none = Vec::new();
        let want = expected.get(partition).unwrap_or(&none);
        let have = found.get(partition).unwrap_or(&none);
        let first = (0..want.len().max(have.len())).find(|&i| want.get(i) != have.get(i));
        if let Some(i) = first {
            differences.push(format!(
                "partition {partition}, record {i} (of {} wanted, {} found)\n  want {}\n  have {}",
                want.len(),
                have.len(),
                brief(want.get(i)),
                brief(have.get(i)),
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{what}: the logs differ\n{}",
        differences.join("\n")
    );
}

fn brief(record: Option<&Record>) -> String {
    let Some(r) = record else {
        return "nothing".to_owned();
    };
    let bytes = |b: Option<&Vec<u8>>| {
        b.map_or("null".to_owned(), |b| {
            format!(
                "{} bytes {:?}",
                b.len(),
                String::from_utf8_lossy(&b[..b.len().min(40)])
            )
        })
    };
    format!(
        "offset {} ts {:?} {} key {} value {} headers {}",
        r.offset,
        r.timestamp,
        r.timestamp_type,
        bytes(r.key.as_ref()),
        bytes(r.value.as_ref()),
        r.headers.len(),
    )
}
