//! Rows held against what the format promises, before anything is encoded. Pure.

use everlog_common::Millis;

use super::WriteError;
use crate::files::PartitionRows;

/// The end of the year 9999: what other engines can still show.
const ARCHIVED_AT_MAX: i64 = 253_402_300_799_999;

/// The commit's time in microseconds.
pub(super) fn archived_at(at: Millis) -> Result<i64, WriteError> {
    if (0..=ARCHIVED_AT_MAX).contains(&at.0) {
        Ok(at.0 * 1000)
    } else {
        Err(WriteError::ArchivedAt { ms: at.0 })
    }
}

/// Partitions ascend, offsets increase within their range.
pub(super) fn rows(rows: &[PartitionRows]) -> Result<(), WriteError> {
    for (i, item) in rows.iter().enumerate() {
        let broken = |what: String| WriteError::Rows {
            partition: item.partition.get(),
            what,
        };
        let place = |r: &PartitionRows| (r.generation, r.partition);
        if i > 0 && place(&rows[i - 1]) >= place(item) {
            return Err(broken("partitions do not ascend".to_owned()));
        }
        let mut next = item.range.start().get();
        for batch in &item.batches {
            let offsets = batch.offsets.values();
            let Some((first, last)) = offsets.first().zip(offsets.last()) else {
                continue;
            };
            let increase = offsets
                .iter()
                .zip(&offsets[1..])
                .fold(true, |all, (a, b)| all & (a < b));
            if !increase || *first < next || *last >= item.range.end().get() {
                let range = item.range;
                return Err(broken(format!(
                    "offsets {first} to {last} do not increase within {range}"
                )));
            }
            next = *last + 1;
        }
    }
    Ok(())
}
